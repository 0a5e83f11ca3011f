"""``python -m benchmarks inventory``: how fast a virtual center answers that has thousands of VMs.

A real center, as a process; its hosts are one further process, in which each reports all of its VMs every
REPORT_SECONDS, as host agents do. What is measured is what a caller waits, over TLS, everything decoded:
the whole listing, that of one host, a VM by name and by id, and the way of a change from its host's report to
a watcher.
Callers: main thread; ``_hosts`` is the process of the hosts.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from arraylift import pki
from arraylift.cli.connection import OPERATOR_NAME, OPERATOR_ROLE, Connection
from arraylift.rpc.channel import call, connect
from arraylift.sizes import GIB
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc, vm_pb2
from benchmarks import daemons

VMS, HOSTS = 10_000, 100
ROUNDS = 100
REPORT_SECONDS = 5.0
GOAL_SECONDS = 0.1
"""What list, find and watch are to stay below, nineteen times in twenty."""

SETTLE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds that one question took, over all rounds."""

    what: str
    median: float
    p95: float
    worst: float

    @property
    def reached(self) -> bool:
        return self.p95 < GOAL_SECONDS


def run(console: Console, work: Path, *, vms: int, json_path: Path | None, rounds: int = ROUNDS) -> int:
    """Measure; returns 0 if all stay below the goal, else 1."""
    scratch = work / "inventory"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        figures = _measure(console, scratch, vms, rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = Table("what", "median", "95 of 100", "worst", "below 100 ms", box=None)
    table.title = f"a center with {vms:,} VMs on {_host_count(vms)} hosts that report"
    for one in figures:
        cells = (f"{seconds * 1000:.1f} ms" for seconds in (one.median, one.p95, one.worst))
        table.add_row(one.what, *cells, "yes" if one.reached else "no")
    console.print(table)
    if json_path is not None:
        found = [asdict(one) for one in figures]
        json_path.write_text(json.dumps({"vms": vms, "figures": found}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(one.reached for one in figures) else 1


def _host_count(vms: int) -> int:
    return min(HOSTS, vms)


def _measure(console: Console, scratch: Path, vms: int, rounds: int) -> list[Figure]:
    directory = scratch / "pki"
    directory.mkdir()
    pki.init_ca(str(directory))
    for role, name in (("vcenter", "vcenter1"), (OPERATOR_ROLE, OPERATOR_NAME)):
        pki.issue(str(directory), role, name)
    center = daemons.start("vcenter", "vcenter", "vcenter1", scratch=scratch, pki_directory=directory)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    hosts = multiprocessing.get_context("spawn").Process(
        target=_hosts, args=(theirs, str(directory), center.connection.address, vms), daemon=True
    )
    try:
        daemons.wait_until_ready(center, scratch=scratch)
        with console.status("hosts report"):
            hosts.start()
            assert ours.poll(SETTLE_SECONDS), "the hosts did not report"
            ours.recv()
        with console.status("asking"):
            return list(_figures(center.connection, ours, vms, rounds))
    finally:
        if hosts.is_alive():
            hosts.terminate()
            hosts.join()
        daemons.stop(center)


def _figures(center: Connection, hosts: Pipe, vms: int, rounds: int) -> Iterator[Figure]:
    stub = center.center

    def list_all() -> None:
        found = list(center.listing(stub.ListManagedVms, pb.ListManagedVmsRequest(), "vms"))
        assert len(found) == vms, len(found)

    def list_host() -> None:
        request = pb.ListManagedVmsRequest(host=_host_name(0))
        assert list(center.listing(stub.ListManagedVms, request, "vms"))

    draw = np.random.default_rng(1)

    def by_name() -> None:
        name = f"vm{draw.integers(vms)}"
        assert center.call(stub.GetManagedVm, pb.GetManagedVmRequest(name=name)).vm.config.name == name

    def by_id() -> None:
        vm_id = f"{draw.integers(vms):032x}"
        assert center.call(stub.GetManagedVm, pb.GetManagedVmRequest(vm_id=vm_id)).vm.vm_id == vm_id

    yield _figure("list all", list_all, rounds)
    yield _figure("list one host's", list_host, rounds)
    yield _figure("find by name", by_name, rounds)
    yield _figure("find by id", by_id, rounds)
    yield _of("a change, to a watcher", _watched(center, hosts, vms, rounds))


def _figure(what: str, ask: Callable[[], None], rounds: int) -> Figure:
    ask()  # connections, and messages that are made once
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return _of(what, seconds)


def _of(what: str, seconds: list[float]) -> Figure:
    return Figure(what, float(np.median(seconds)), float(np.quantile(seconds, 0.95)), max(seconds))


def _watched(center: Connection, hosts: Pipe, vms: int, rounds: int) -> list[float]:
    """From the moment at which a host sends a report to that at which the watcher has the VM's new tag."""
    seconds = []
    with center.stream(center.center.WatchInventory, pb.WatchInventoryRequest()) as events:
        while not next(events).revision:
            pass
        for number in range(rounds):
            mark = f"change {number}"
            hosts.send((number * 7919 % vms, mark))
            for event in events:
                if any(vm.config.tags.get("mark") == mark for vm in event.vms):
                    break
            seconds.append(time.monotonic() - hosts.recv())
    return seconds


# -- the hosts' process ---------------------------------------------------------------------------


def _host_name(number: int) -> str:
    return f"host{number}"


def _vm(number: int, host: str) -> vm_pb2.Vm:
    disks = [
        vm_pb2.Disk(
            name=f"disk{disk}",
            array="array1",
            array_address="array1.example.org:7403",
            volume_name=f"vm{number}-disk{disk}",
            size_bytes=32 * GIB,
        )
        for disk in range(2)
    ]
    config = vm_pb2.VmConfig(
        name=f"vm{number}",
        uuid=f"00000000-0000-4000-8000-{number:012x}",
        cpus=2,
        memory_bytes=4 * GIB,
        disks=disks,
        networks=[vm_pb2.NetworkInterface(mac="52:54:00:00:00:01", network="lan")],
        tags={"tier": "gold"},
        firmware="bios",
    )
    return vm_pb2.Vm(
        vm_id=f"{number:032x}", config=config, power=vm_pb2.POWER_STATE_ON, host=host, revision=1
    )


def _hosts(pipe: Pipe, pki_directory: str, center: str, vms: int) -> None:
    """Report for every host; change one VM whenever the pipe says so, and say when it was sent."""
    count = _host_count(vms)
    stubs: list[Any] = []
    reports: list[pb.ReportInventoryRequest] = []
    for number in range(count):
        name = _host_name(number)
        pki.issue(pki_directory, "host", name)
        channel = connect(center, pki.load(pki_directory, "host", name), "vcenter", "vcenter1")
        make_stub: Any = virtual_center_pb2_grpc.VirtualCenterServiceStub
        stubs.append(make_stub(channel))
        request = pb.RegisterHostRequest(name=name, address="127.0.0.1:9", driver="generated")
        call(stubs[-1].RegisterHost, request, peer="center")
        own = [_vm(one, name) for one in range(number, vms, count)]
        reports.append(
            pb.ReportInventoryRequest(
                name=name, vms=own, memory_bytes=256 * GIB, memory_free_bytes=64 * GIB, cpus=64
            )
        )
    lock = threading.Lock()

    def send(number: int) -> float:
        with lock:
            reports[number].sequence += 1
            started = time.monotonic()
            call(stubs[number].ReportInventory, reports[number], peer="center")
        return started

    for number in range(count):
        send(number)
    pipe.send("ready")

    def heartbeats() -> None:
        while True:
            for number in range(count):
                send(number)
                time.sleep(REPORT_SECONDS / count)

    threading.Thread(target=heartbeats, daemon=True).start()
    while True:
        number, mark = pipe.recv()
        vm = reports[number % count].vms[number // count]
        with lock:
            vm.config.tags["mark"] = mark
            vm.revision += 1
        pipe.send(send(number % count))
