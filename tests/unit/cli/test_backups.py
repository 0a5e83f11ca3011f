"""Backups, restores, jobs and files inside backups by the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from arraylift.cli import jobs as cli_jobs
from arraylift.clock import SystemClock
from arraylift.errors import ArrayliftError, NotFound
from arraylift.v1 import backup_logic_pb2, backup_pb2, catalog_pb2, common_pb2, vm_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id

RUNNING, SUCCEEDED = backup_pb2.JOB_STATE_RUNNING, backup_pb2.JOB_STATE_SUCCEEDED
FAILED, CANCELLED = backup_pb2.JOB_STATE_FAILED, backup_pb2.JOB_STATE_CANCELLED


def job(number: int, state: backup_pb2.JobState, reason: str = "") -> backup_pb2.Job:
    return backup_pb2.Job(
        job_id=hex_id(number),
        kind=backup_pb2.JOB_KIND_BACKUP,
        state=state,
        vm_name=f"vm{number}",
        created_at_ns=10**18,
        ended_at_ns=10**18 + 2_500_000_000 if state != RUNNING else 0,
        figures=common_pb2.TransferFigures(bytes_read=4096, bytes_stored=1024),
        frozen_ns=12_300_000,
        backup_id=hex_id(number) if state == SUCCEEDED else "",
        error=common_pb2.ErrorDetail(reason=reason, next_step="do better") if reason else None,
        error_text=f"it failed by {reason}" if reason else "",
    )


def backup(number: int, vm: str, at: int = 0) -> backup_pb2.Backup:
    return backup_pb2.Backup(
        backup_id=f"{number:08x}" + "0" * 24,
        vm_name=vm,
        vm_id=hex_id(500),
        target="t7",
        snapshot_at_ns=at or number * 10**9,
        level=vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM,
        disks=[backup_pb2.BackupDisk(disk_name="disk0", image_id=hex_id(900), size_bytes=4096)],
        incremental=number % 2 == 0,
    )


@pytest.mark.parametrize("count", [1, 3])
def test_a_backup_waits_for_its_jobs_and_shows_them(
    arraylift: Arraylift, daemons: Daemons, count: int
) -> None:
    daemons.server.jobs = {hex_id(n): [job(n, RUNNING), job(n, SUCCEEDED)] for n in range(1, count + 1)}
    ended = arraylift("backup", *(f"vm{n}" for n in range(1, count + 1)), "--full", "--direct")
    assert ended.code == 0, ended.err
    asked = daemons.server.started[0]
    assert (len(asked.vms), asked.full, asked.direct, asked.all, asked.target) == (
        count,
        True,
        True,
        False,
        "",
    )
    for n in range(1, count + 1):
        assert hex_id(n) in ended.out
    assert "4.0:1" in ended.out
    assert "12.3" in ended.out
    assert "2.5" in ended.out


@pytest.mark.parametrize(
    ("reasons", "code"),
    [
        (["", "not_found"], 3),
        (["not_found", "corruption", "peer_unavailable"], 10),
        (["peer_unavailable", "", "not_found"], 8),
        (["invented_later"], 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst_job(
    arraylift: Arraylift, daemons: Daemons, reasons: list[str], code: int
) -> None:
    for number, reason in enumerate(reasons, start=1):
        state = job(number, FAILED, reason) if reason else job(number, SUCCEEDED)
        daemons.server.jobs[hex_id(number)] = [state]
    ended = arraylift("backup", "--all", "--json")
    assert ended.code == code
    assert [each["vm_name"] for each in ended.document] == [f"vm{n}" for n in range(1, len(reasons) + 1)]
    assert ended.err.count("\n") == 1
    assert "do better" in ended.err
    failures = len([reason for reason in reasons if reason])
    assert (f"({failures} of {len(reasons)} jobs did not succeed)" in ended.err) == (failures > 1)


def test_a_cancelled_job_is_no_success(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, CANCELLED)]}
    ended = arraylift("backup", "vm1")
    assert (ended.code, ended.err) == (1, "arraylift: error: the backup of vm1 was cancelled\n")


def test_a_watch_that_ends_early_is_no_success(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, RUNNING), job(1, SUCCEEDED)]}
    daemons.server.cut_watch = True
    ended = arraylift("backup", "vm1")
    assert ended.code == 8
    assert f"the job goes on: `arraylift job watch {hex_id(1)}`" in ended.err


def test_without_waiting_the_ids_are_the_answer(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, RUNNING)]}
    ended = arraylift("backup", "--tag", "tier=gold", "--target", "t7", "--no-wait", "--json")
    assert ended.document == [{"job_id": hex_id(1)}]
    asked = daemons.server.started[0]
    assert (asked.tag, asked.target) == ("tier=gold", "t7")


def test_what_a_backup_must_be_and_how_its_disks_are_read(arraylift: Arraylift, daemons: Daemons) -> None:
    words = ("--consistency", "application", "--changes", "supplied", "--gateway", "a8")
    arraylift("backup", "web", *words, "--exclude-disk", "swap", "--exclude-disk", "scratch", "--no-wait")
    arraylift("backup", "web", "--no-wait")
    asked, plain = daemons.server.started
    assert asked.level_min == vm_pb2.CONSISTENCY_LEVEL_APPLICATION
    assert asked.change_source == backup_logic_pb2.CHANGE_SOURCE_SUPPLIED
    assert (asked.gateway, list(asked.exclude_disks)) == ("a8", ["swap", "scratch"])
    assert plain == backup_pb2.StartBackupRequest(vms=["web"])
    assert arraylift("backup", "web", "--consistency", "perfect").code == 2


@pytest.mark.parametrize("words", [[], ["web", "--all"], ["--all", "--tag", "a=b"]])
def test_which_vms_is_said_once(arraylift: Arraylift, daemons: Daemons, words: list[str]) -> None:
    assert arraylift("backup", *words).code == 2
    assert daemons.server.started == []


def test_no_vm_with_that_tag_is_no_job(arraylift: Arraylift) -> None:
    assert arraylift("backup", "--tag", "a=b").out == "no VM was found\n"


def test_a_restore_takes_the_newest_backup_of_a_name(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, SUCCEEDED)]}
    daemons.server.backups = [backup(2, "web", 7), backup(1, "web", 9), backup(3, "db", 11)]
    words = ("--as", "back", "--host", "h7", "--array", "a8", "--start", "--keep-identity", "--direct")
    assert arraylift("restore", "web", *words).code == 0
    asked = daemons.server.restored[0]
    assert asked.backup_id == backup(1, "web").backup_id
    assert (asked.as_name, asked.host, asked.array) == ("back", "h7", "a8")
    assert asked.start
    assert asked.keep_identity
    assert asked.direct


def test_a_restore_in_place_tells_where_the_old_state_is(arraylift: Arraylift, daemons: Daemons) -> None:
    done = job(1, SUCCEEDED)
    done.safeties.add(disk_name="disk0", array="a8", volume_name="web-0", snapshot_id="5" * 32, name="before")
    daemons.server.jobs = {hex_id(1): [done]}
    daemons.server.backups = [backup(1, "web", 9)]
    ended = arraylift("restore", "web", "--in-place", "--stop")
    assert ended.code == 0
    asked = daemons.server.restored[0]
    assert (asked.in_place, asked.stop, asked.start) == (True, True, False)
    assert f"what disk0 held is kept: array a8, snapshot web-0@before ({'5' * 32})" in ended.err
    assert "web-0@before" in arraylift("job", "show", hex_id(1)).out


@pytest.mark.parametrize(
    ("reference", "found"),
    [("00000002", 2), ("00000002" + "0" * 24, 2), ("db", 3), (hex_id(500), 3), ("0000000a", 10)],
)
def test_a_backup_is_found(arraylift: Arraylift, daemons: Daemons, reference: str, found: int) -> None:
    daemons.server.backups = [backup(1, "web"), backup(2, "web"), backup(3, "db"), backup(10, "0000000a")]
    if reference == hex_id(500):
        daemons.server.backups.pop()
    shown = arraylift("backups", "show", reference, "--json").document
    assert shown["backup_id"] == f"{found:08x}" + "0" * 24


@pytest.mark.parametrize(("reference", "code"), [("0000", 2), ("nobody", 3), ("000", 3)])
def test_a_backup_is_not_guessed(arraylift: Arraylift, daemons: Daemons, reference: str, code: int) -> None:
    daemons.server.backups = [backup(1, "web"), backup(2, "web")]
    assert arraylift("backups", "show", reference).code == code


def test_backups_are_listed_shown_verified_and_removed(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.backups = [backup(2, "web"), backup(3, "db")]
    listed = arraylift("backups", "ls")
    assert "incremental" in listed.out
    assert "filesystem" in listed.out
    assert len(arraylift("backups", "ls", "db", "--json").document) == 1
    assert hex_id(900) in arraylift("backups", "show", "web").out
    assert arraylift("backups", "verify", "web", "--json").document["disks"] == {"disk0": 4096}
    assert arraylift("backups", "rm", "web").code == 3, "one of several is never removed by a VM's name"
    assert arraylift("backups", "rm", "00000002").code == 0
    assert daemons.server.deleted == [backup(2, "").backup_id]
    assert arraylift("backups", "rm", "ffff").code == 3
    assert arraylift("backups", "rm", "ffff", "--missing-ok").code == 0


def test_half_a_verification_is_none(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.backups = [backup(2, "web")]
    daemons.server.verified_short = 1
    ended = arraylift("backups", "verify", "web")
    assert ended.code == 10
    assert "verified 4,095 of 4,096 bytes of disk0" in ended.err


def test_jobs(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(n): [job(n, state)] for n, state in ((1, SUCCEEDED), (0x12, RUNNING))}
    assert len(arraylift("job", "ls", "--json").document) == 2
    daemons.server.jobs |= {hex_id(n): [job(n, SUCCEEDED)] for n in (0x20, 0x21, 0x22)}
    assert len(arraylift("job", "ls", "--json").document) == 5, "over three pages"
    assert len(arraylift("job", "ls", "--limit", "3", "--json").document) == 3
    assert "running" in arraylift("job", "ls").out
    assert "12.3 ms" in arraylift("job", "show", hex_id(1)).out
    assert arraylift("job", "watch", hex_id(1)).code == 0
    assert arraylift("job", "cancel", hex_id(0x12)).code == 0
    assert daemons.server.cancelled == [hex_id(0x12)]
    assert arraylift("job", "show", "0000").code == 2
    assert arraylift("job", "show", "ffff").code == 3
    assert arraylift("job", "show", hex_id(7)).code == 3
    daemons.server.jobs = {hex_id(3): [job(3, FAILED, "out_of_space")]}
    assert arraylift("job", "watch", hex_id(3)).code == 7
    assert "it failed by out_of_space" in arraylift("job", "show", hex_id(3)).out


def test_a_file_of_a_backup_comes_with_its_attributes(
    arraylift: Arraylift, daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = daemons.server
    server.backups = [backup(2, "web")]
    server.content = b"127.0.0.1 localhost\n"
    server.file = backup_pb2.BackupFile(
        path="/etc/hosts", size_bytes=20, mode=0o104755, modified_at_ns=10**18 + 5, uid=7
    )
    assert "-rwsr-xr-x" in arraylift("files", "ls", "web", "/etc").out
    assert len(arraylift("files", "ls", "web", "/etc", "--json").document) == 3, "over two pages"
    assert arraylift("files", "get", "web", "/etc/hosts").code == 0
    made = tmp_path / "hosts"
    assert made.read_bytes() == server.content
    assert made.stat().st_mode & 0o7777 == 0o755, "never somebody's set-user-id"
    assert made.stat().st_mtime_ns == 10**18 + 5
    assert arraylift("files", "get", "web", "/etc/hosts").code == 4
    assert arraylift("files", "get", "web", "/etc/hosts", "--force").code == 0
    assert arraylift("files", "get", "web", "/etc/nothing", "other").code == 3
    assert arraylift("files", "get", "web", "/").code == 2
    server.content = b"damaged"
    assert arraylift("files", "get", "web", "/etc/hosts", "other").code == 10
    server.file.mode = 0o120777
    assert arraylift("files", "get", "web", "/etc/hosts", "other").code == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["hosts"]


def test_an_error_comes_out_of_a_job_whole() -> None:
    failed = job(1, FAILED, "not_found")
    failed.error.fields["job_id"] = "x"
    error = cli_jobs.error_of(failed)
    assert isinstance(error, NotFound)
    assert (error.next_step, error.fields) == ("do better", {"job_id": "x"})
    assert str(error).startswith("the backup of vm1 failed: it failed by not_found")
    assert type(cli_jobs.error_of(backup_pb2.Job(state=FAILED))) is ArrayliftError


def test_a_running_job_is_drawn_with_step_spans_bytes_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "wall_ns", lambda _self: 10**18 + 2 * 10**9)
    running = job(1, RUNNING)
    running.steps.add(name="snapshot", started_at_ns=10**18, ended_at_ns=10**18 + 1)
    running.steps.add(name="send disk0", started_at_ns=10**18)
    running.spans_done, running.spans_total = 3, 40
    running.figures.bytes_read = 1 << 21
    assert cli_jobs.progress_note(running) == ("send disk0, 3/40 spans, read 2.0 MiB, sent 0 B, 1.0 MiB/s")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with cli_jobs.JobView(console, 2, enabled=True) as view:
        for state in (running, job(2, SUCCEEDED), job(1, SUCCEEDED), running):
            view.update(state)
        assert view._bars.tasks[0].completed == 2
        assert len(view._bars.tasks) == 1


def test_files_come_back_and_what_does_not_is_told(
    arraylift: Arraylift, daemons: Daemons, tmp_path: Path
) -> None:
    daemons.server.backups = [backup(1, "web")]
    attributes = backup_pb2.BackupFile(mode=0o100640, size_bytes=6, modified_at_ns=10**18)
    start = catalog_pb2.FileStart(path=b"/etc/caf\xe9", file=attributes)
    lost = catalog_pb2.FileStart(path=b"/etc/lost", file=attributes, problem="its inode is damaged")
    daemons.catalog.files = [
        catalog_pb2.ReadFilesResponse(start=start),
        catalog_pb2.ReadFilesResponse(data=catalog_pb2.FileData(offset=2, data=b"file")),
        catalog_pb2.ReadFilesResponse(done=catalog_pb2.FilesDone(file_count=1)),
    ]
    words = ("files", "restore", "web", "/etc", "/srv", "--to", tmp_path / "to", "--volume", "disk0/p1")
    ended = arraylift(*words, "--no-owner", "--json")
    assert (ended.code, ended.document["file_count"], ended.document["problem_count"]) == (0, 1, 0)
    (made,) = (tmp_path / "to" / "etc").iterdir()
    assert (made.read_bytes(), made.stat().st_mode, made.stat().st_mtime) == (b"\0\0file", 0o100640, 10**9)
    (asked,) = daemons.catalog.read
    assert (list(asked.paths), asked.volume, asked.recursive) == (["/etc", "/srv"], "disk0/p1", True)
    daemons.catalog.files.insert(0, catalog_pb2.ReadFilesResponse(start=lost))
    ended = arraylift(*words, "--overwrite")
    assert ended.code == 1
    assert "/etc/lost: its inode is damaged" in ended.err
    assert "1 files or directories did not come back" in ended.err
    assert arraylift(*words, "--json").document["problem_count"] == 2
    del daemons.catalog.files[-1]
    assert arraylift(*words).code == 10


def test_single_disks_and_other_attributes_are_asked_for(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, SUCCEEDED)]}
    daemons.server.backups = [backup(1, "web")]
    words = ("--disk", "disk1", "--volume", "mine", "--attach", "db")
    assert arraylift("restore", "web", *words).code == 0
    attributes = ("--memory", "8G", "--cpus", "6", "--network", "lab", "--network", "dmz")
    assert arraylift("restore", "web", *attributes).code == 0
    disks, edited = daemons.server.restored
    assert (list(disks.disks), disks.volume, disks.attach) == (["disk1"], "mine", "db")
    assert (edited.memory_bytes, edited.cpus, list(edited.networks)) == (8 << 30, 6, ["lab", "dmz"])
    assert not edited.disks


def test_files_are_put_back_into_a_guest(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    daemons.server.jobs = {hex_id(1): [job(1, SUCCEEDED)]}
    daemons.server.backups = [backup(1, "web")]
    words = ("files", "restore", "web", "/etc/hosts")
    assert arraylift(*words, "--guest", "--vm", "db", "--directory", "/tmp", "--overwrite").code == 0
    asked = daemons.catalog.started[0]
    assert (asked.destination, asked.vm, asked.directory) == (
        catalog_pb2.FILE_DESTINATION_GUEST,
        "db",
        "/tmp",
    )
    assert (list(asked.paths), asked.overwrite) == (["/etc/hosts"], True)
    assert arraylift(*words, "--as-disk").code == 0
    assert daemons.catalog.started[-1].destination == catalog_pb2.FILE_DESTINATION_RESTORE_DISK
    for wrong in (
        (),
        ("--guest", "--as-disk"),
        ("--guest", "--to", tmp_path),
        ("--to", tmp_path, "--vm", "db"),
    ):
        assert arraylift(*words, *wrong).code == 2


def test_jobs_are_asked_for_by_conditions(arraylift: Arraylift, daemons: Daemons) -> None:
    states = ("--state", "failed", "--state", "queued")
    assert arraylift("job", "ls", *states, "--kind", "backup", "--vm", "web").code == 0
    request = daemons.server.requests[-1]
    assert list(request.states) == [FAILED, backup_pb2.JOB_STATE_QUEUED]
    assert (request.kind, request.vm, request.since_ns) == (backup_pb2.JOB_KIND_BACKUP, "web", 0)
    assert arraylift("job", "ls", "--since", "1h", "--policy", "nightly").code == 0
    assert daemons.server.requests[-1].since_ns > 0
    refused = arraylift("job", "ls", "--state", "lost")
    assert refused.code != 0
    assert "queued, running, succeeded" in refused.err


def test_the_log_of_a_job_is_a_line_a_step(arraylift: Arraylift, daemons: Daemons) -> None:
    done = job(1, FAILED, "peer_unavailable")
    done.steps.add(name="locate", started_at_ns=10**18, ended_at_ns=10**18 + 250_000_000, detail="host h1")
    step = done.steps.add(name="send disk0", started_at_ns=10**18, ended_at_ns=10**18 + 1_500_000_000)
    step.tries, step.trouble, step.figures.bytes_read = 2, "it was down", 4096
    done.retried_by = hex_id(2)
    daemons.server.jobs = {hex_id(1): [done]}
    shown = arraylift("job", "show", hex_id(1), "--log")
    assert shown.code == 0, shown.err
    for word in ("0.25", "host h1", "1.50", "it was down", "4.0 KiB", "12.3 ms", hex_id(2)):
        assert word in shown.out, shown.out


def test_who_waits_for_a_backup_waits_for_its_retry(arraylift: Arraylift, daemons: Daemons) -> None:
    failed = job(1, FAILED, "peer_unavailable")
    failed.retried_by = hex_id(2)
    daemons.server.jobs = {hex_id(1): [failed], hex_id(2): [job(2, SUCCEEDED)]}
    ended = arraylift("backup", "vm1", "--retries", "1")
    assert daemons.server.started[0].retries_max == 1
    assert ended.code == 0, ended.err
    assert hex_id(2) in ended.out
