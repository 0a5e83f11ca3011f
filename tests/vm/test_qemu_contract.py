"""The QEMU driver keeps the contract of drivers, with a real guest on a real array.

That nothing is frozen after a restart takes a death of the process: test_guest_faults.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError, NotFound, WrongState
from arraylift.guest.build import Guest
from arraylift.ids import VmId, random_id
from arraylift.rpc.channels import Channels
from arraylift.rpc.identity import demanded_name
from arraylift.vm.types import Disk
from hostagent.peers import CHANNELS_MAX, ArrayVolumes
from hostagent.qemu.assemble import QemuSettings, qemu_driver
from hostagent.qemu.qemu_driver import QemuDriver
from hostagent.vm_rules import make_uuid
from hostagent.vm_store import VmStore
from hostagent.vm_types import VmRecord, VmState
from tests.contract.test_vm_driver_contract import (
    Kit,
    test_a_forgotten_vm_can_be_made_again,
    test_a_freeze_is_bounded_and_a_thaw_always_harmless,
    test_files_come_back_as_they_were_put,
    test_power_is_idempotent_and_files_need_it,
)
from tests.e2e.cluster import ARRAY, Cluster
from tests.e2e.daemon import free_port, wait_until
from tests.unit.hostagent.stage import config
from tests.vm.vm_house import _pieces

__all__ = [
    "test_a_forgotten_vm_can_be_made_again",
    "test_a_freeze_is_bounded_and_a_thaw_always_harmless",
    "test_files_come_back_as_they_were_put",
    "test_power_is_idempotent_and_files_need_it",
]

MEMORY_BYTES = 192 << 20


class Patient(QemuDriver):
    """Started is a guest whose agent answers: the contract asks for its files at once."""

    def start(self, vm: VmRecord) -> None:
        super().start(vm)
        wait_until(lambda: self._answers(vm), "its agent answers", seconds=120)

    def _answers(self, vm: VmRecord) -> bool:
        with contextlib.suppress(ArrayliftError):
            self._channels.of(vm.vm_id).execute("guest-ping", timeout_seconds=2)
            return True
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[Cluster]:
    """An array that has the guest's disks."""
    made = Cluster(tmp_path_factory.mktemp("array"))
    try:
        text = made.array.config_path.read_text()
        made.array.config_path.write_text(text.replace('"127.0.0.1:0"', f'"127.0.0.1:{free_port()}"'))
        made.array.start()
        for image in guest.disks:
            made.import_pieces(image.stem, image.stat().st_size, _pieces(image))
        yield made
    finally:
        made.close()


@pytest.fixture
def kit(cluster: Cluster, guest: Guest, tmp_path: Path) -> Iterator[Kit]:
    """A VM over those disks, and its driver."""
    tls = cluster.tls("host", "host1")
    channels = Channels(tls, channels_max=CHANNELS_MAX)
    disks = [
        Disk(image.stem, ARRAY, cluster.array.address, image.stem, image.stat().st_size)
        for image in guest.disks
    ]
    attributes = replace(config("contract", *disks), uuid=make_uuid(bytes.fromhex(random_id())), networks=())
    attributes = replace(attributes, memory_bytes=MEMORY_BYTES, cpus=1)
    vm = VmRecord(VmId(random_id()), attributes, VmState.OFF, 1, "", ())
    store = VmStore(RealFiles(), str(tmp_path / "store"))
    settings = QemuSettings(
        program="qemu-system-x86_64",
        accelerator="",
        cpu="",
        user="",
        networks=(),
        ovmf_code="",
        ovmf_variables="",
        migration_ports="7480-7499",
        listen_host="127.0.0.1",
        told_host="127.0.0.1",
        tls_name_of=lambda host: demanded_name("host", host=host),
    )
    driver = qemu_driver(
        settings,
        state=str(tmp_path),
        host="host1",
        files=RealFiles(),
        volumes=ArrayVolumes(channels),
        tls=tls,
        firmware=lambda _: b"",
        marks=store.marks,
    )
    driver.__class__ = Patient
    try:
        yield Kit(driver, driver, vm, tmp_path)
    finally:
        driver.stop(vm, grace_seconds=0, force=True)
        driver.release(vm)
        driver.forget(vm)
        channels.close()
        store.close()


def test_a_disk_that_was_taken_away_while_it_runs_is_out_of_reach(kit: Kit) -> None:
    data = kit.vm.config.disks[2]
    kit.driver.start(kit.vm)
    put(kit, data, "/a", b"x")
    for _ in range(2):
        kit.driver.detach(kit.vm, data)
    with pytest.raises((NotFound, WrongState)):
        put(kit, data, "/a", b"x")
    for _ in range(2):
        kit.driver.attach(kit.vm, data)
    kit.put(
        "/run/tasks/mount.sh",
        b"umount -l /data2; until disk=$(findfs LABEL=data2); do sleep 0.1; done\nmount $disk /data2\n",
    )
    kit.put("/run/tasks/mount.go", b"")
    wait_until(lambda: can_put(kit, data), "it is mounted again", seconds=30)


def put(kit: Kit, disk: Disk, path: str, data: bytes) -> None:
    source = kit.folder / "other"
    source.write_bytes(data)
    kit.driver.put_file(kit.vm, disk, path, source=str(source), mode=0)


def can_put(kit: Kit, disk: Disk) -> bool:
    with contextlib.suppress(NotFound, WrongState):
        put(kit, disk, "/a", b"y")
        return True
    return False
