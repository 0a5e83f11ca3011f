"""Composition root of the host agent: ``python -m hostagent``."""

from __future__ import annotations

import sys

from arraylift import config

config.quiet_grpc()

from arraylift import daemon
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest
from arraylift.pki import TlsMaterial
from arraylift.rpc.address import split_address
from arraylift.rpc.channels import Channels
from arraylift.rpc.identity import demanded_name
from arraylift.rpc.server import service_of
from arraylift.v1 import vm_pb2_grpc
from hostagent.adoption import Adoption
from hostagent.config import DRIVERS, HostSettings
from hostagent.disk_copy import DiskCopies
from hostagent.emulated import EmulatedDriver
from hostagent.found_guests import FoundGuests
from hostagent.guest_files import GuestFiles
from hostagent.libvirt import build as libvirt
from hostagent.libvirt.driver import LibvirtDriver
from hostagent.load import LoadMeter
from hostagent.locks import KeyedLocks
from hostagent.machines import Machines
from hostagent.migration import Migrations
from hostagent.peers import CHANNELS_MAX, ArrayVolumes, VirtualCenter
from hostagent.qemu.assemble import QemuSettings, qemu_driver
from hostagent.qemu.qemu_driver import QemuDriver
from hostagent.reaper import Reaper
from hostagent.reporter import HostFacts, Reporter
from hostagent.service.vms import VmEdge
from hostagent.vm_snapshots import VmSnapshots
from hostagent.vm_store import VmStore


def build(settings: HostSettings, tls: TlsMaterial) -> daemon.Built:
    """Open the records, take over the VMs, start reaper and reporter, join the service to them."""
    _check(settings)
    state = str(settings.state.expanduser().absolute())
    store = VmStore(RealFiles(), state)
    channels = Channels(tls, channels_max=CHANNELS_MAX)
    volumes = ArrayVolumes(channels)
    driver, guests = _driver(settings, state, volumes, store, tls)
    locks = KeyedLocks("VM")
    facts = HostFacts(
        settings.name,
        settings.advertise or settings.listen,
        settings.driver,
        settings.memory_bytes,
        settings.cpus,
    )
    reporters: list[Reporter] = []

    def changed() -> None:
        for reporter in reporters:
            reporter.changed()

    machines = Machines(store, driver, volumes, locks, clock=SYSTEM_CLOCK, changed=changed)
    adoption = Adoption(store, guests, machines, locks) if guests else None
    if adoption:
        adoption.start()
    snapshots = VmSnapshots(store, driver, volumes, locks, clock=SYSTEM_CLOCK)
    files = GuestFiles(RealFiles(), f"{state}/guest-files", store, driver)
    if settings.vcenter:
        center = VirtualCenter(channels, settings.vcenter)
        load = LoadMeter(SYSTEM_CLOCK)
        reporters.append(Reporter(center, facts, machines.listed, token=store.token, load=load.percent))
        reporters[0].start()
    # A thread each: an array that hangs under one kind of work does not hold up the others.
    reapers = [Reaper(work) for work in (snapshots.reap, machines.reap, machines.notice, driver.reap)]

    def close() -> None:
        if adoption:
            adoption.close()
        for reporter in reporters:
            reporter.close()
        for reaper in reapers:
            reaper.close()
        snapshots.close()
        channels.close()
        store.close()

    migrations = Migrations(store, driver, locks, machines)
    edge = VmEdge(settings.name, machines, snapshots, files, migrations)
    return daemon.Built([service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, edge)], close)


def _driver(
    settings: HostSettings, state: str, volumes: ArrayVolumes, store: VmStore, tls: TlsMaterial
) -> tuple[EmulatedDriver | QemuDriver | LibvirtDriver, FoundGuests | None]:
    """The VMM, and where it has guests of others to adopt."""
    # Files of their own: what fails to reach the disk there must not stop the records.
    files = RealFiles()
    if settings.driver == "emulated":
        copies = DiskCopies(files, f"{state}/guest-disks", volumes)
        return EmulatedDriver(copies, clock=SYSTEM_CLOCK, firmware=store.firmware.get), None
    if settings.driver == "libvirt":
        return _libvirt_driver(settings, state, volumes, store)
    chosen = QemuSettings(
        program=settings.qemu_program,
        accelerator=settings.qemu_accelerator,
        cpu=settings.qemu_cpu,
        user=settings.qemu_user,
        networks=settings.networks,
        ovmf_code=str(settings.ovmf_code),
        ovmf_variables=str(settings.ovmf_variables),
        migration_ports=settings.migration_ports,
        listen_host=split_address(settings.listen)[0],
        told_host=split_address(settings.advertise or settings.listen)[0],
        tls_name_of=lambda host: demanded_name("host", host=host),
    )
    driver = qemu_driver(
        chosen,
        state=state,
        host=settings.name,
        files=files,
        volumes=volumes,
        tls=tls,
        firmware=store.firmware.get,
        marks=store.marks,
    )
    return driver, None


def _libvirt_driver(
    settings: HostSettings, state: str, volumes: ArrayVolumes, store: VmStore
) -> tuple[LibvirtDriver, FoundGuests]:
    parts = libvirt.build(
        libvirt.LibvirtPlaces(
            host=settings.name,
            state=state,
            pki=str(settings.pki.expanduser().absolute()),
            uri=settings.libvirt_uri,
            exports=settings.libvirt_exports,
            listen=settings.libvirt_listen,
        ),
        store,
        volumes,
        RealFiles(),
        clock=SYSTEM_CLOCK,
        tls_name=lambda address: demanded_name("array", host=address),
    )
    return parts.driver, parts.guests


def _check(settings: HostSettings) -> None:
    if settings.driver not in DRIVERS:
        raise InvalidRequest(
            f"{settings.driver!r} is no driver of this release", next_step=f"use one of {', '.join(DRIVERS)}"
        )
    if settings.memory_bytes <= 0 or settings.cpus <= 0:
        raise InvalidRequest("memory_bytes and cpus are positive")
    for address in filter(None, (settings.vcenter, settings.advertise)):
        split_address(address)


if __name__ == "__main__":
    sys.exit(daemon.run("host", HostSettings, build))
