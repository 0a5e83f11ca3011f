"""Bitmaps of a real QEMU, without a guest: its nodes are written through its own monitor and NBD server."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import PeerUnavailable
from arraylift.ids import LineageId, PoolId, SnapshotId, SourceState
from arraylift.nbd.client import NbdClient
from arraylift.nbd.uri import NbdUri
from arraylift.sizes import MIB
from arraylift.vm.types import Disk, DiskSnapshot, VmConfig
from hostagent.change_tracking import MarkId
from hostagent.mark_record import Place
from hostagent.mark_store import MarkStore
from hostagent.marks import MarkKeeper
from hostagent.qemu.dirty_bitmaps import QemuBitmaps, WatchedVm
from hostagent.qemu.monitor import Monitor, MonitorRefused
from hostagent.unix_sockets import listen
from hostagent.vm_types import VmRecord, VmState
from tests.e2e.daemon import wait_until
from tests.programs import need
from tests.unit.hostagent.material import VM_ID

SIZE = 64 * MIB
PLACES = {Place("a:1", "v0"): "disk-0", Place("a:1", "v1"): "disk-1"}
SLOW = "disk-1"


class Qemu:
    """Nodes without a machine, the second of which answers late; at a path longer than sockets take."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ("long" * 25)
        self.folder.mkdir()
        listener = listen(str(self.folder / "monitor.sock"))
        nodes = [
            {"driver": "null-co", "size": SIZE, "node-name": "disk-0", "read-zeroes": True},
            {"driver": "null-co", "size": SIZE, "node-name": SLOW, "latency-ns": 800_000_000},
        ]
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64",
                "-machine",
                "none",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-S",
            ]
            + ["-chardev", f"socket,id=m,fd={listener.fileno()},server=on,wait=off", "-mon", "m,mode=control"]
            + [word for node in nodes for word in ("-blockdev", json.dumps(node))],
            pass_fds=[listener.fileno()],
        )
        listener.close()
        self.monitor = Monitor(str(self.folder / "monitor.sock"), "VM web1")
        self.watched = WatchedVm(self.monitor, PLACES, str(self.folder / "changes.sock"))
        self.bitmaps = QemuBitmaps(lambda _: self.watched, RealFiles())

        def answers() -> bool:
            try:
                return bool(self.monitor.execute("query-status"))
            except PeerUnavailable:
                return False

        wait_until(answers, "QEMU answers", seconds=30)

    def write(self, node: str, first_mib: int, count_mib: int = 1) -> None:
        command = f'qemu-io {node} "write {first_mib}M {count_mib}M"'
        self.monitor.execute("human-monitor-command", {"command-line": command})

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    need("qemu-system-x86_64")
    running = Qemu(tmp_path)
    yield running
    running.close()


VM = VmRecord(
    VM_ID,
    VmConfig("web1", "", 1, MIB, tuple(Disk(f"d{i}", "a", "a:1", f"v{i}", SIZE) for i in range(2))),
    VmState.ON,
    3,
    "",
    (),
)
A, B = MarkId("a" * 32), MarkId("b" * 32)
FIRST, SECOND = PLACES


def dirty(qemu: Qemu, place: Place, *marks: MarkId) -> list[int]:
    spans, size = qemu.bitmaps.read(VM, place, marks)
    assert size == SIZE
    return [int(index) for index in spans.nonzero()[0]]


def test_what_is_written_between_is_dirty_and_nothing_else(qemu: Qemu) -> None:
    assert qemu.bitmaps.look(VM) == {FIRST: {}, SECOND: {}}
    qemu.write("disk-0", 1)
    qemu.bitmaps.add(VM, A)
    qemu.write("disk-0", 5, 2)
    qemu.bitmaps.add(VM, B)
    qemu.write("disk-0", 9)
    assert qemu.bitmaps.look(VM) == {place: {A: True, B: True} for place in PLACES}
    qemu.bitmaps.stop(VM, [A])
    qemu.write("disk-0", 20)
    qemu.bitmaps.stop(VM, [B, A, MarkId("c" * 32)])
    qemu.write("disk-0", 30)
    assert qemu.bitmaps.look(VM) == {place: {A: False, B: False} for place in PLACES}
    assert dirty(qemu, FIRST, A) == [5, 6, 9]
    assert dirty(qemu, FIRST, B) == [9, 20]
    assert dirty(qemu, FIRST, A, B) == [5, 6, 9, 20]
    assert dirty(qemu, SECOND, A, B) == []
    qemu.bitmaps.drop(VM, [A])
    qemu.bitmaps.drop(VM, [A])
    assert qemu.bitmaps.look(VM) == {place: {B: False} for place in PLACES}
    with pytest.raises(MonitorRefused):
        qemu.bitmaps.read(VM, FIRST, [A])
    assert dirty(qemu, FIRST, B) == [9, 20], "a reading that failed leaves no server behind"
    assert [path.name for path in qemu.folder.iterdir()] == ["monitor.sock"]


def test_a_stop_waits_for_writes_on_their_way(qemu: Qemu) -> None:
    """B1: the array may have one in its snapshot that QEMU has not marked yet."""
    path = str(qemu.folder.parent / "w.sock")
    qemu.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
    export = {"type": "nbd", "id": "w", "name": "w", "node-name": SLOW, "writable": True}
    qemu.monitor.execute("block-export-add", export)
    counts: list[int] = []
    with NbdClient(NbdUri("w", tls=False, socket_path=path)) as client:
        for attempt, seconds in enumerate((0.1, 0.3, 0.6)):  # how long a write may take to QEMU
            mark = MarkId(f"{attempt}" * 32)
            qemu.bitmaps.add(VM, mark)
            writer = threading.Thread(target=client.write, args=(7 * MIB, bytes(4096)))
            writer.start()
            writer.join(seconds)
            on_its_way = writer.is_alive()
            qemu.bitmaps.stop(VM, [mark])
            writer.join(10)
            if on_its_way:
                counts += [
                    one["count"]
                    for node in qemu.monitor.execute("query-named-block-nodes", {"flat": True})
                    for one in node.get("dirty-bitmaps", [])
                    if node["node-name"] == SLOW and one["name"] == f"al-{mark}"
                ]
            if any(counts):
                return
    pytest.fail(f"no write that was on its way was marked: {counts}")


def test_the_keeper_tells_what_a_real_vmm_saw(qemu: Qemu, tmp_path: Path) -> None:
    store = MarkStore(RealFiles(), str(tmp_path / "marks"), known=[VM_ID])
    states: list[DiskSnapshot] = []

    def take(keeper: MarkKeeper) -> DiskSnapshot:
        mark = keeper.begin(VM)
        assert mark is not None
        state = SourceState(PoolId("1" * 32), LineageId("2" * 32), len(states))
        disk = DiskSnapshot("d0", "a", "a:1", "v0", SnapshotId("3" * 32), SIZE, state)
        keeper.settle(VM, mark, [disk])
        states.append(disk)
        return disk

    keeper = MarkKeeper(qemu.bitmaps, store)
    for place in (3, 11, 40):
        take(keeper)
        qemu.write("disk-0", place)
    keeper = MarkKeeper(qemu.bitmaps, MarkStore(RealFiles(), str(tmp_path / "marks"), known=[VM_ID]))
    last = take(keeper)

    def told(since: DiskSnapshot) -> list[tuple[int, int]] | None:
        assert since.state is not None
        found = keeper.changes(VM, last, since.state, ranges_max=9)
        return None if found is None else [(int(a) // MIB, int(b)) for a, b in zip(*found, strict=True)]

    assert told(states[0]) == [(3, MIB), (11, MIB), (40, MIB)]
    assert told(states[2]) == [(40, MIB)]
    take(keeper)
    last = states[-1]
    assert told(states[0]) is None
    assert told(states[3]) == []
    qemu.monitor.execute(
        "block-dirty-bitmap-remove", {"node": "disk-0", "name": f"al-{_second_newest(qemu)}"}
    )
    assert told(states[3]) is None


def _second_newest(qemu: Qemu) -> MarkId:
    stopped = [mark for mark, records in qemu.bitmaps.look(VM)[FIRST].items() if not records]
    counts = {
        one["name"].removeprefix("al-"): one["count"]
        for node in qemu.monitor.execute("query-named-block-nodes", {"flat": True})
        if node["node-name"] == "disk-0"
        for one in node["dirty-bitmaps"]
    }
    return next(mark for mark in stopped if counts[mark] == 0)
