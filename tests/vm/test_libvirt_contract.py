"""The libvirt driver keeps the contract of drivers, with a real libvirtd and real guests on an array."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError
from arraylift.guest.build import Guest
from arraylift.ids import VmId, random_id
from arraylift.rpc.channels import Channels
from arraylift.rpc.identity import demanded_name
from arraylift.vm.types import Disk
from hostagent.libvirt.build import LibvirtPlaces, build
from hostagent.libvirt.driver import LibvirtDriver
from hostagent.peers import CHANNELS_MAX, ArrayVolumes
from hostagent.vm_rules import make_uuid
from hostagent.vm_store import VmStore
from hostagent.vm_types import VmRecord, VmState
from tests.contract.test_vm_driver_contract import (
    Kit,
    test_a_forgotten_vm_can_be_made_again,
    test_a_freeze_is_bounded_and_a_thaw_always_harmless,
    test_files_come_back_as_they_were_put,
    test_nothing_is_frozen_after_a_restart,
    test_power_is_idempotent_and_files_need_it,
)
from tests.e2e.cluster import ARRAY, Cluster
from tests.e2e.daemon import wait_until
from tests.unit.hostagent.stage import config
from tests.vm.libvirtd import Libvirtd
from tests.vm.vm_house import _pieces

__all__ = [
    "test_a_forgotten_vm_can_be_made_again",
    "test_a_freeze_is_bounded_and_a_thaw_always_harmless",
    "test_files_come_back_as_they_were_put",
    "test_nothing_is_frozen_after_a_restart",
    "test_power_is_idempotent_and_files_need_it",
]

MEMORY_BYTES = 192 << 20


class Patient(LibvirtDriver):
    """Started is a guest whose agent answers: the contract asks for its files at once."""

    def start(self, vm: VmRecord) -> None:
        super().start(vm)
        wait_until(lambda: self._answers(vm), "its agent answers", seconds=120)

    def _answers(self, vm: VmRecord) -> bool:
        with contextlib.suppress(ArrayliftError):
            self._channel(vm.vm_id).execute("guest-ping", timeout_seconds=2)
            return True
        return False


@dataclass
class Rig:
    libvirtd: Libvirtd
    cluster: Cluster
    home: Path
    disks: tuple[Disk, ...]


@pytest.fixture(scope="module")
def rig(guest: Guest) -> Iterator[Rig]:
    libvirtd = Libvirtd()
    home = Path(tempfile.mkdtemp(prefix="alh-"))
    cluster = Cluster(home)
    try:
        cluster.tls("host", "host1")
        libvirtd.give_credentials(cluster.pki, "host1")
        cluster.array.start()
        libvirtd.start()
        disks = []
        for image in guest.disks:
            cluster.import_pieces(image.stem, image.stat().st_size, _pieces(image))
            size_bytes = image.stat().st_size
            disks.append(Disk(image.stem, ARRAY, cluster.array.address, image.stem, size_bytes))
        yield Rig(libvirtd, cluster, home, tuple(disks))
    finally:
        cluster.close()
        libvirtd.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def kit(rig: Rig, tmp_path: Path) -> Iterator[Kit]:
    """A VM of its own over the same volumes, and two drivers as two processes have them."""
    channels = Channels(rig.cluster.tls("host", "host1"), channels_max=CHANNELS_MAX)
    attributes = replace(
        config("contract", *rig.disks), uuid=make_uuid(bytes.fromhex(random_id())), networks=()
    )
    vm = VmRecord(
        VmId(random_id()), replace(attributes, memory_bytes=MEMORY_BYTES, cpus=1), VmState.OFF, 1, "", ()
    )
    store = VmStore(RealFiles(), str(tmp_path / "store"))
    store.vms.put(vm)

    def driver() -> LibvirtDriver:
        places = LibvirtPlaces(
            host="host1",
            state=str(tmp_path),
            pki=str(rig.cluster.pki),
            uri=rig.libvirtd.uri,
            exports=str(rig.libvirtd.exports),
            listen="",
        )
        made = build(
            places,
            store,
            ArrayVolumes(channels),
            RealFiles(),
            clock=SYSTEM_CLOCK,
            tls_name=lambda host: demanded_name("array", host=host),
        ).driver
        made.__class__ = Patient
        return made

    made = Kit(driver(), driver(), vm, tmp_path)
    try:
        yield made
    finally:
        made.driver.stop(vm, grace_seconds=0, force=True)
        made.driver.release(vm)
        made.driver.forget(vm)
        channels.close()
        store.close()
