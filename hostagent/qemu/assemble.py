"""Put a QEMU driver together out of a host's settings.

Callers: the composition root, once.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass

from arraylift.durable import Files
from arraylift.errors import InvalidRequest, NotPermitted, PeerUnavailable
from arraylift.ids import VmId
from arraylift.pki import TlsMaterial
from hostagent.guest_agent.operations import GuestOperations
from hostagent.mark_record import Place
from hostagent.marks import MarkKeeper, MarkTable
from hostagent.qemu.accelerator import find_accelerator
from hostagent.qemu.command_line import disk_serial
from hostagent.qemu.dirty_bitmaps import QemuBitmaps, WatchedVm
from hostagent.qemu.exports import node_name
from hostagent.qemu.launch import Launcher, Setup
from hostagent.qemu.live_move import MovePlaces, QemuMover, parse_ports
from hostagent.qemu.networks import Networks
from hostagent.qemu.processes import Account, Processes
from hostagent.qemu.qemu_driver import AgentChannels, QemuDriver
from hostagent.qemu.tls_files import write_tls_files
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import VmRecord
from hostagent.volumes import Volumes


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """As hostagent/config.py documents them."""

    program: str
    accelerator: str
    cpu: str
    user: str
    networks: tuple[str, ...]
    ovmf_code: str
    ovmf_variables: str
    migration_ports: str
    listen_host: str
    told_host: str
    tls_name_of: Callable[[str], str]
    """What a host that is reached at an address must have in its certificate."""


def qemu_driver(
    settings: QemuSettings,
    *,
    state: str,
    host: str,
    files: Files,
    volumes: Volumes,
    tls: TlsMaterial,
    firmware: Callable[[VmId], bytes],
    marks: MarkTable,
) -> QemuDriver:
    """Probe this host, and return its driver. Raises InvalidRequest (settings), WrongState (no QEMU)."""
    account, ports = _account(settings.user), parse_ports(settings.migration_ports)
    accelerator = find_accelerator(settings.program, wanted=settings.accelerator, account=account)
    tls_path = f"{state}/qemu-tls"
    write_tls_files(files, tls_path, tls, account)
    setup = Setup(
        program=settings.program,
        accelerator=accelerator,
        networks=Networks(settings.networks),
        tls_path=tls_path,
        firmware_code=settings.ovmf_code,
        firmware_variables=settings.ovmf_variables,
        cpu=settings.cpu,
    )
    processes = Processes(account)
    vmm = Vmm(
        files,
        f"{state}/qemu",
        host=host,
        volumes=volumes,
        launcher=Launcher(setup, processes, files),
        processes=processes,
        firmware=firmware,
    )
    channels = AgentChannels(vmm)
    operations = GuestOperations(channels.of, serial_of=lambda _vm, disk: disk_serial(disk.name), files=files)
    places = MovePlaces(
        listen=settings.listen_host, told=settings.told_host, ports=ports, tls_name_of=settings.tls_name_of
    )

    def left(vm_id: VmId) -> None:
        operations.stopped(vm_id)
        channels.drop(vm_id)

    tracker = MarkKeeper(QemuBitmaps(lambda vm: _watched(vmm, vm), files), marks)
    return QemuDriver(vmm, channels, operations, tracker=tracker, mover=QemuMover(vmm, places, left=left))


def _watched(vmm: Vmm, vm: VmRecord) -> WatchedVm:
    """Raises PeerUnavailable: it does not run."""
    guest = vmm.guest(vm.vm_id)
    if not guest.alive:
        raise PeerUnavailable(f"{vm.subject} does not run", subject=vm.subject)
    nodes = {
        Place(disk.array_address, disk.volume_name): node_name(disk.export)
        for disk in guest.record.disks
        if any(disk.serves(one) for one in vm.config.disks)
    }
    return WatchedVm(guest.monitor, nodes, guest.folder.changes_path)


def _account(user: str) -> Account | None:
    """Raises InvalidRequest (no such user), NotPermitted (we are not root)."""
    if not user:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise InvalidRequest(
            f"this machine has no user {user!r}", next_step="make it, or leave qemu_user empty"
        ) from None
    if os.geteuid() != 0:
        raise NotPermitted("only root can run QEMU as another user", next_step="leave qemu_user empty")
    groups = {entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if user in group.gr_mem)}
    return Account(entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))
