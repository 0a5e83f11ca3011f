"""``python -m benchmarks server``: how fast a backup server answers that has thousands of VMs and backups.

One process, over a database with a month of backups of each VM and their jobs; the inventory is a list, so
that only the server's own work is measured: what a request costs from its message to its answer's bytes.
Callers: main thread.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.exchange.messages import Figures
from arraylift.sizes import GIB
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import policy_pb2
from arraylift.vm.types import ConsistencyLevel, Disk, NetworkInterface, PowerState, Vm, VmConfig
from backup_server.catalog import browse
from backup_server.job_rules import BackupOrder, Job, JobKind, JobState, derived_id
from backup_server.model import Backup, BackupDisk, PeerKind, RegisteredPeer
from backup_server.policies.policy import Policy, Selection
from backup_server.policies.retention import Retention
from backup_server.policies.schedule import Schedule
from backup_server.ports import Peers
from backup_server.server import BackupServer
from backup_server.service.backup import BackupEdge
from backup_server.service.policies import PolicyEdge
from benchmarks.inventory import Figure

VMS, BACKUPS_PER_VM = 1_000, 30
HOSTS, TAGS = 20, 4
ROUNDS = 20
GOAL_SECONDS = 0.2
DAY_NS = 86_400 * 10**9
NIGHTLY = Policy(
    "nightly",
    selection=Selection(all=True, exclude_tags=("tier=scratch",)),
    schedule=Schedule(("30 2 * * *",), "Europe/Berlin", 3600),
    retention=Retention(keep_last=3, keep_daily=14, keep_weekly=4, keep_monthly=6),
    full_every_days=14,
)


class _Center:
    """An inventory that costs nothing."""

    def __init__(self, vms: list[Vm]) -> None:
        self._vms = vms

    def vms(self) -> list[Vm]:
        return self._vms


class _Peers:
    def __init__(self, vms: list[Vm]) -> None:
        self._center = _Center(vms)

    def center(self, _peer: RegisteredPeer) -> _Center:
        return self._center


def run(console: Console, work: Path, *, vms: int, json_path: Path | None, rounds: int = ROUNDS) -> int:
    """Measure; returns 0 if all stay below the goal, else 1."""
    scratch = work / "server"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        figures = list(_measure(console, scratch, vms, rounds))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = Table("what", "median", "95 of 100", "worst", "below 200 ms", box=None)
    table.title = f"a server with {vms:,} VMs and {vms * BACKUPS_PER_VM:,} backups"
    for one in figures:
        cells = (f"{seconds * 1000:.1f} ms" for seconds in (one.median, one.p95, one.worst))
        table.add_row(one.what, *cells, "yes" if one.p95 < GOAL_SECONDS else "no")
    console.print(table)
    if json_path is not None:
        found = [asdict(one) for one in figures]
        json_path.write_text(json.dumps({"vms": vms, "figures": found}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(one.p95 < GOAL_SECONDS for one in figures) else 1


def _measure(console: Console, scratch: Path, vms: int, rounds: int) -> Iterator[Figure]:
    everybody = [_vm(number) for number in range(vms)]
    server = BackupServer(
        RealFiles(),
        str(scratch / "state"),
        cast("Peers", _Peers(everybody)),
        center_address="127.0.0.1:7401",
        clock=SYSTEM_CLOCK,
    )
    try:
        with console.status("making backups"):
            _fill(server, everybody)
        edge = BackupEdge(
            server.engine,
            server.orders,
            server.backups,
            server.registry,
            peers=server.peers,
            browser=browse,
        )
        policies = PolicyEdge(
            server.policies, server.policy_runs, server.reports, server.registry, SYSTEM_CLOCK
        )
        with console.status("asking"):
            for what, ask in _questions(server, edge, policies, everybody):
                yield _timed(what, ask, rounds)
    finally:
        server.close(lambda: None)


def _questions(
    server: BackupServer, edge: BackupEdge, policies: PolicyEdge, everybody: list[Vm]
) -> Iterator[tuple[str, Callable[[], object]]]:
    nobody = cast("Any", None)
    vm = everybody[len(everybody) // 2]

    def pages() -> object:
        request, count = pb.ListBackupsRequest(), 0
        while True:
            answer = edge.ListBackups(request, nobody)
            count += len(answer.backups)
            answer.SerializeToString()
            if not answer.next_page_token:
                return count
            request.page_token = answer.next_page_token

    def asked(method: Callable[[Any, Any], Any], request: object) -> Callable[[], object]:
        return lambda: method(request, nobody).SerializeToString()

    yield "backups, a page of 100", asked(edge.ListBackups, pb.ListBackupsRequest(page_size=100))
    yield "backups, a page as large as it may be", asked(edge.ListBackups, pb.ListBackupsRequest())
    yield "backups of a VM by name", asked(edge.ListBackups, pb.ListBackupsRequest(vm=vm.config.name))
    yield "backups of a VM by id", asked(edge.ListBackups, pb.ListBackupsRequest(vm=vm.vm_id))
    yield "jobs, a page of 100", asked(edge.ListJobs, pb.ListJobsRequest())
    yield "jobs of a VM", asked(edge.ListJobs, pb.ListJobsRequest(vm=vm.config.name))
    failed = pb.ListJobsRequest(states=[pb.JOB_STATE_FAILED], policy=NIGHTLY.name)
    yield "failed jobs of a policy", asked(edge.ListJobs, failed)
    yield "schedule: a run begins", lambda: server.policy_runs._begin(NIGHTLY, 1, spread=True)
    plan = policy_pb2.PlanPolicyRequest(name=NIGHTLY.name)
    yield "schedule: what a policy means", asked(policies.PlanPolicy, plan)
    yield (
        "retention: the plan, first page",
        asked(policies.PlanRetention, policy_pb2.PlanRetentionRequest(name=NIGHTLY.name, page_size=100)),
    )
    yield "is a full backup due", lambda: server.orders._full_is_due(NIGHTLY, vm, "target1")
    yield "report: unprotected", asked(policies.ReportUnprotected, policy_pb2.ReportUnprotectedRequest())
    yield "report: overdue", asked(policies.ReportOverdue, policy_pb2.ReportOverdueRequest())
    yield "report: space", asked(policies.ReportSpace, policy_pb2.ReportSpaceRequest())


def _timed(what: str, ask: Callable[[], object], rounds: int) -> Figure:
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        ask()
        found.append(time.perf_counter() - begun)
    found.sort()
    return Figure(what, found[len(found) // 2], found[min(len(found) - 1, len(found) * 95 // 100)], found[-1])


# -- what there is ------------------------------------------------------------------------------


def _vm(number: int) -> Vm:
    name = f"vm{number:04d}"
    config = VmConfig(
        name=name,
        uuid=f"00000000-0000-4000-8000-{number:012x}",
        cpus=4,
        memory_bytes=8 * GIB,
        disks=tuple(
            Disk(f"disk{index}", "array1", "127.0.0.1:7403", f"{name}-disk{index}", 64 * GIB)
            for index in range(2)
        ),
        networks=(NetworkInterface(f"52:54:00:00:{number // 256:02x}:{number % 256:02x}", "lan"),),
        tags=(
            ("owner", f"team{number % 17}"),
            ("tier", ("gold", "silver", "bronze", "scratch")[number % TAGS]),
        ),
    )
    vm_id = derived_id(name, "vm")
    return Vm(
        vm_id=cast("Any", vm_id), config=config, power=PowerState.ON, host=f"host{number % HOSTS}", revision=1
    )


def _fill(server: BackupServer, everybody: list[Vm]) -> None:
    now = SYSTEM_CLOCK.wall_ns()
    server.registry.add(RegisteredPeer(PeerKind.TARGET, "target1", "127.0.0.1:7404"))
    for name in (NIGHTLY.name, "weekly"):
        server.policies.set(replace(NIGHTLY, name=name), now_ns=now - 40 * DAY_NS)
    server.policies.begin_run(NIGHTLY.name, now - DAY_NS // 2, [])
    order = BackupOrder("target1", False, False, ConsistencyLevel.UNSPECIFIED, (), policy=NIGHTLY.name)
    for day in range(BACKUPS_PER_VM, 0, -1):
        made = [_backup(vm, day, now - day * DAY_NS + number) for number, vm in enumerate(everybody)]
        server.db.save_backups(made)
        if day > 10_000 // len(everybody):
            continue
        jobs = [
            Job(
                one.backup_id,
                JobKind.BACKUP,
                JobState.FAILED if number % 50 == 0 else JobState.SUCCEEDED,
                one.vm_id,
                one.vm_name,
                one.snapshot_at_ns,
                backup=order,
                ended_at_ns=one.snapshot_at_ns + 10**9,
            )
            for number, one in enumerate(made)
        ]
        server.db.add_jobs(jobs)


def _backup(vm: Vm, day: int, at_ns: int) -> Backup:
    figures = Figures(spans_total=65_536, bytes_read=GIB, bytes_sent=GIB // 4, bytes_stored=GIB // 8)
    backup_id = derived_id(vm.vm_id, str(day))
    return Backup(
        backup_id=backup_id,
        vm_id=vm.vm_id,
        vm_name=vm.config.name,
        target="target1",
        snapshot_at_ns=at_ns,
        level=ConsistencyLevel.FILESYSTEM,
        frozen_ns=200_000_000,
        disks=tuple(
            BackupDisk(
                disk.name, derived_id(backup_id, disk.name), disk.size_bytes, b"r" * 32, figures, "array1"
            )
            for disk in vm.config.disks
        ),
        config=vm.config,
        incremental=day % 14 != 0,
        policy=NIGHTLY.name if day != 5 else "",
    )
