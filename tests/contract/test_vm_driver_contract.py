"""What every VMM driver keeps (hostagent/driver.py): the real one and the fake of the unit tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import NotFound, WrongState
from arraylift.ids import VmId, random_id
from arraylift.rpc.channels import Channels
from arraylift.sizes import MIB
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.debugfs import find_program
from hostagent.disk_copy import DiskCopies
from hostagent.driver import Driver
from hostagent.emulated import EmulatedDriver
from hostagent.peers import CHANNELS_MAX, ArrayVolumes
from hostagent.vm_types import VmRecord, VmState
from tests.e2e.cluster import in_thread
from tests.programs import need
from tests.unit.hostagent.fake_array import FakeArray
from tests.unit.hostagent.stage import FakeDriver, config
from tests.wire.stage import House


@dataclass
class Kit:
    driver: Driver
    again: Driver
    vm: VmRecord
    folder: Path

    @property
    def disk(self) -> Disk:
        return self.vm.config.disks[0]

    def put(self, name: str, data: bytes) -> None:
        source = self.folder / "source"
        source.write_bytes(data)
        self.driver.put_file(self.vm, self.disk, name, source=str(source), mode=0o644)

    def get(self, name: str, driver: Driver | None = None) -> bytes:
        into = self.folder / "into"
        into.unlink(missing_ok=True)
        (driver or self.driver).get_file(self.vm, self.disk, name, into=str(into))
        return into.read_bytes()


@pytest.fixture(params=["emulated", "fake"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    """A driver with a VM that is off, and a second driver over the same state, as after a restart."""
    pki.init_ca(str(tmp_path / "pki"))
    house = House(str(tmp_path / "pki"))
    array = FakeArray(house, "a1")
    channels = Channels(house.identity("host"), channels_max=CHANNELS_MAX)
    disk = Disk("root", "a1", array.address, "disk", 8 * MIB)
    vm = VmRecord(VmId(random_id()), config("web1", disk), VmState.OFF, 1, "", ())
    try:
        if request.param == "fake":
            fake = FakeDriver()
            yield Kit(fake, fake, vm, tmp_path)
        else:
            need("debugfs", "mke2fs")
            image = tmp_path / "disk.ext4"
            with image.open("wb") as file:
                file.truncate(8 * MIB)
            subprocess.run([find_program("mke2fs"), "-q", "-F", "-t", "ext4", str(image)], check=True)
            array.volumes["disk"] = bytearray(image.read_bytes())

            def driver() -> Driver:
                copies = DiskCopies(RealFiles(), str(tmp_path / "disks"), ArrayVolumes(channels))
                return EmulatedDriver(copies, clock=SYSTEM_CLOCK)

            yield Kit(driver(), driver(), vm, tmp_path)
    finally:
        channels.close()
        array.close()


def test_power_is_idempotent_and_files_need_it(kit: Kit) -> None:
    assert not kit.driver.is_running(kit.vm.vm_id)
    with pytest.raises(WrongState):
        kit.put("/a", b"x")
    kit.driver.start(kit.vm)
    kit.driver.start(kit.vm)
    assert kit.driver.is_running(kit.vm.vm_id)
    kit.put("/a", b"x")
    for force in (False, True):
        kit.driver.stop(kit.vm, grace_seconds=5, force=force)
    assert not kit.driver.is_running(kit.vm.vm_id)
    with pytest.raises(WrongState):
        kit.get("/a")


def test_files_come_back_as_they_were_put(kit: Kit) -> None:
    kit.driver.start(kit.vm)
    for content in (b"one", b"", bytes(range(256)) * 2000):
        kit.put("/file", content)
        assert kit.get("/file") == content
    assert "/file" in [file.path for file in kit.driver.list_files(kit.vm, kit.disk, "/")]
    kit.driver.remove_file(kit.vm, kit.disk, "/file")
    for missing in (lambda: kit.get("/file"), lambda: kit.driver.remove_file(kit.vm, kit.disk, "/file")):
        with pytest.raises(NotFound):
            missing()


def test_a_freeze_is_bounded_and_a_thaw_always_harmless(kit: Kit) -> None:
    kit.driver.thaw(kit.vm.vm_id)
    kit.driver.start(kit.vm)
    assert kit.driver.freeze(kit.vm, timeout_seconds=5) >= ConsistencyLevel.CRASH
    kit.driver.thaw(kit.vm.vm_id)
    kit.driver.thaw(kit.vm.vm_id)
    kit.put("/after", b"goes on")
    kit.driver.freeze(kit.vm, timeout_seconds=5)
    kit.driver.stop(kit.vm, grace_seconds=0, force=True)
    kit.driver.start(kit.vm)
    assert kit.get("/after") == b"goes on"


def test_nothing_is_frozen_after_a_restart(kit: Kit) -> None:
    kit.driver.start(kit.vm)
    kit.put("/before", b"x")
    kit.driver.freeze(kit.vm, timeout_seconds=5)
    kit.again.resume(kit.vm)
    assert kit.again.is_running(kit.vm.vm_id)
    assert kit.get("/before", kit.again) == b"x"


def test_a_disk_that_was_taken_away_is_out_of_reach(kit: Kit) -> None:
    kit.driver.start(kit.vm)
    kit.driver.detach(kit.vm, kit.disk)
    kit.driver.detach(kit.vm, kit.disk)
    with pytest.raises(NotFound):
        kit.put("/a", b"x")
    kit.driver.attach(kit.vm, kit.disk)
    kit.driver.attach(kit.vm, kit.disk)
    kit.put("/a", b"x")


def test_a_forgotten_vm_can_be_made_again(kit: Kit) -> None:
    kit.driver.start(kit.vm)
    kit.driver.stop(kit.vm, grace_seconds=1, force=False)
    kit.driver.forget(kit.vm)
    assert not kit.driver.is_running(kit.vm.vm_id)
    kit.driver.start(kit.vm)
    kit.put("/a", b"x")


@pytest.mark.parametrize("kit", ["emulated"], indirect=True)  # the fake's freeze is a record only
def test_files_are_held_back_while_frozen(kit: Kit) -> None:
    kit.driver.start(kit.vm)
    kit.driver.freeze(kit.vm, timeout_seconds=5)

    def held() -> Iterator[None]:
        kit.put("/held", b"x")
        yield

    put = in_thread(held)
    put.thread.join(0.3)
    assert put.thread.is_alive()
    kit.again.resume(kit.vm)
    with pytest.raises(NotFound):
        kit.get("/held", kit.again)
    kit.driver.thaw(kit.vm.vm_id)
    put.wait()
    assert kit.get("/held") == b"x"
