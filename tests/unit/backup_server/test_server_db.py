"""The database: what it keeps, what it refuses, what a failure of its disk does."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from arraylift import errors
from arraylift.vm.types import VmSnapshot
from backup_server import documents, job_rules, server_db, server_schema
from backup_server.backup_index import BackupIndex
from backup_server.job_rules import Job, JobKind, JobState, Step, backup_order
from backup_server.model import Backup, PeerKind, RegisteredPeer
from backup_server.policies.policy import Policy, Selection, WindowText
from backup_server.policies.retention import Retention
from backup_server.policies.schedule import Schedule
from backup_server.policy_store import PolicyStore, Start
from backup_server.server_db import JobFilter, ServerDb
from tests.unit.backup_server.material import SNAPSHOT, VM_ID, backup, job, located, restore_job

GOLDEN = Path(__file__).parents[2] / "golden" / "server-db-v3.sql"
GOLDEN_V1, GOLDEN_V2 = GOLDEN.with_name("server-db-v1.sql"), GOLDEN.with_name("server-db-v2.sql")
POLICY = Policy(
    "nightly",
    selection=Selection(all=True, exclude_vms=("test-*",)),
    schedule=Schedule(("30 2 * * *",), "Europe/Berlin", 600),
    retention=Retention(keep_daily=7),
    windows=(WindowText(("sat",), "22:00", "06:00"),),
)
START = Start("nightly", "e" * 32, "web1", 5, 6)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "server.db")


def fill(db: ServerDb) -> None:
    """What the golden file holds."""
    db.add_jobs([job(1)])
    db.update_job(job(1).job_id, state=JobState.RUNNING)
    db.save_step(job(1).job_id, located())
    db.save_backup(backup(9))
    db.save_peer(RegisteredPeer(PeerKind.TARGET, "target1", "127.0.0.1:7404"))
    db.save_peer(RegisteredPeer(PeerKind.ARRAY, "array1", "127.0.0.1:7403"))
    fill_policies(db)


def fill_policies(db: ServerDb) -> None:
    store = PolicyStore(db)
    store.set(POLICY, now_ns=4)
    store.begin_run("nightly", 5, [START])


def dump(path: str) -> str:
    with sqlite3.connect(path) as plain:
        text = "\n".join(plain.iterdump()) + "\n"
    plain.close()
    return text


def test_what_is_kept_is_there_after_a_restart(path: str) -> None:
    db = ServerDb(path)
    fill(db)
    db.add_jobs([restore_job(2, backup(9).backup_id)])
    for _ in range(2):
        assert [one.job_id for one in db.jobs(unfinished=False, limit=9)] == [
            restore_job(2, "").job_id,
            job(1).job_id,
        ]
        assert db.job(job(1).job_id) == replace(job(1), state=JobState.RUNNING)
        assert db.job(restore_job(2, "").job_id) == restore_job(2, backup(9).backup_id)
        assert db.steps(job(1).job_id) == [located()]
        assert db.backup(backup(9).backup_id) == backup(9)
        assert [peer.name for peer in db.peers()] == ["array1", "target1"]
        db.close()
        db = ServerDb(path)
    db.close()


def test_version_3_is_written(path: str) -> None:
    db = ServerDb(path)
    fill(db)
    db.close()
    assert dump(path) == GOLDEN.read_text(encoding="utf-8")


def load_golden(path: str, golden: Path, version: int) -> None:
    with sqlite3.connect(path) as plain:
        plain.executescript(golden.read_text(encoding="utf-8"))
        plain.execute(f"PRAGMA application_id={server_schema.APPLICATION_ID}")
        plain.execute(f"PRAGMA user_version={version}")
    plain.close()


@pytest.mark.parametrize(("golden", "version"), [(GOLDEN_V1, 1), (GOLDEN_V2, 2), (GOLDEN, 3)])
def test_the_golden_databases_read(path: str, golden: Path, version: int) -> None:
    load_golden(path, golden, version)
    for _ in range(2):  # the second time it is of this version
        db = ServerDb(path)
        assert db.steps(job(1).job_id) == [located()]
        assert db.backups() == [backup(9)]
        kept = PolicyStore(db).all()
        assert [one.policy for one in kept] == ([POLICY] if version >= 2 else [])
        assert PolicyStore(db).starts(count_max=9) == ([START] if version >= 2 else [])
        db.close()


@pytest.mark.parametrize(("golden", "version"), [(GOLDEN_V1, 1), (GOLDEN_V2, 2)])
def test_an_earlier_version_becomes_what_is_made_anew(path: str, golden: Path, version: int) -> None:
    load_golden(path, golden, version)
    db = ServerDb(path)
    if version == 1:
        fill_policies(db)
    db.close()
    assert dump(path) == GOLDEN.read_text(encoding="utf-8")


def test_one_unfinished_backup_a_vm(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    with pytest.raises(errors.Conflict) as caught:
        db.add_jobs([job(2, vm_id="f" * 32), job(3)])
    assert caught.value.fields == {"job_id": job(1).job_id}
    assert len(db.jobs(unfinished=True, limit=9)) == 1, "all or none"
    db.update_job(job(1).job_id, state=JobState.FAILED)
    db.add_jobs([job(3), restore_job(4, "0" * 32)])
    db.close()


def test_jobs_are_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_db, "JOBS_UNFINISHED_MAX", 2)
    monkeypatch.setattr(server_db, "JOBS_KEPT_MAX", 3)
    db = ServerDb(path)
    db.add_jobs([restore_job(1, ""), restore_job(2, "")])
    with pytest.raises(errors.Overloaded):
        db.add_jobs([restore_job(3, "")])
    db.save_step(restore_job(1, "").job_id, located())
    for number in range(1, 9):
        db.update_job(restore_job(number, "").job_id, state=JobState.FAILED, sweeps_left=int(number == 2))
        db.add_jobs([restore_job(number + 2, "")])
    kept = [int(one.job_id, 16) for one in db.jobs(unfinished=False, limit=99)]
    assert kept == [10, 9, 8, 2], "what is to be swept is not forgotten"
    assert db.steps(restore_job(1, "").job_id) == []
    assert [one.job_id for one in db.jobs_to_sweep()] == [restore_job(2, "").job_id]
    db.close()


def test_jobs_are_listed_by_what_is_asked(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    db.update_job(job(1).job_id, state=JobState.FAILED)
    db.add_jobs([replace(job(2), backup=replace(backup_order(job(2)), policy="nightly"))])
    db.add_jobs([restore_job(3, backup(9).backup_id), replace(job(4, vm_id="f" * 32), vm_name="db1")])

    def found(**only: object) -> list[int]:
        return [int(one.job_id, 16) for one in db.jobs(limit=9, only=JobFilter(**only))]  # type: ignore[arg-type]

    assert found() == [4, 3, 2, 1]
    assert found(vm="e" * 32) == [3, 2, 1]
    assert found(vm="web2") == [3]
    assert found(vm="nobody") == []
    assert found(states=(JobState.FAILED,)) == [1]
    assert found(states=(JobState.QUEUED, JobState.FAILED), kind=JobKind.BACKUP) == [4, 2, 1]
    assert found(since_ns=3) == [4, 3]
    assert found(policy="nightly") == [2]
    assert found(policy="night") == []
    assert [int(one.job_id, 16) for one in db.jobs(limit=9, behind=job(4).job_id, unfinished=True)] == [3, 2]
    assert db.user_of_backup(backup(9).backup_id) == restore_job(3, "").job_id
    assert db.user_of_backup(job(2).job_id) == job(2).job_id, "it makes it"
    assert db.user_of_backup(job(1).job_id) == "", "it has ended"
    db.close()


def test_the_index_of_backups_says_what_their_documents_say(path: str) -> None:
    db, index = ServerDb(path), BackupIndex(ServerDb(path))
    made = [
        replace(backup(number, at_ns=number * 10), policy="p" * (number % 2), incremental=number != 3)
        for number in range(1, 6)
    ]
    db.save_backups(made)
    db.save_backup(replace(made[4], lock_until_ns=99))  # a later word counts
    db.save_backup(backup(6, target="target2", vm="db1"))
    db.save_backup(made[1])
    db.begin_delete(made[0].backup_id)
    assert [(one.backup_id, one.held) for one in index.made_by("p", now_ns=98)] == [
        (made[4].backup_id, "locked"),
        (made[2].backup_id, ""),
    ]
    assert index.made_by("p", now_ns=99)[0].held == ""
    assert index.to_lock("p", seconds=0, now_ns=0) == [(made[2].backup_id, 30)]
    assert index.to_lock("p", seconds=0, now_ns=30) == []
    assert index.newest() == {(VM_ID, "p"): 50, (VM_ID, ""): 40}
    assert index.was_read_whole(VM_ID, target="target1", since_ns=30)
    assert not index.was_read_whole(VM_ID, target="target1", since_ns=31)
    assert not index.was_read_whole(VM_ID, target="target2", since_ns=0)
    assert index.on_target("target1") == {one.backup_id for one in made[1:]}
    size = made[0].disks[0].size_bytes
    assert [one[:3] for one in index.space("target")] == [("target1", 4, 4 * size), ("target2", 1, size)]
    assert [one.name for one in index.space("vm_name")] == ["db1", "web1"]
    assert db.last_backup(VM_ID, target="target1") == replace(made[4], lock_until_ns=99)
    assert db.last_backup(VM_ID, target="target3") is None
    db.close()


def test_what_is_found_on_a_target_is_left_to_a_job_that_has_not_succeeded(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    db.save_backups([backup(1), backup(2)], found=True)
    assert [int(one.backup_id, 16) for one in db.backups()] == [2]
    db.update_job(job(1).job_id, state=JobState.SUCCEEDED)
    db.save_backups([backup(1)], found=True)
    assert len(db.backups()) == 2
    db.close()


def test_steps_keep_their_order(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    for name in ("b", "a", "c"):
        db.save_step(job(1).job_id, Step(name, 1))
    db.save_step(job(1).job_id, Step("b", 1, 2, "d", '"x"'))
    assert [step.name for step in db.steps(job(1).job_id)] == ["b", "a", "c"]
    assert db.steps(job(1).job_id)[0].result == '"x"'
    db.close()


def test_backups_are_listed_newest_first_and_deletion_hides(path: str) -> None:
    db = ServerDb(path)
    for number, at_ns in ((1, 50), (2, 70), (3, 70)):
        db.save_backup(backup(number, at_ns=at_ns))
    db.save_backup(backup(4, vm="db1"))
    assert [int(one.backup_id, 16) for one in db.backups(vm="web1")] == [3, 2, 1]
    db.begin_delete(backup(2).backup_id)
    db.save_backup(backup(2))
    assert [int(one.backup_id, 16) for one in db.backups(vm="web1")] == [3, 1]
    with pytest.raises(errors.NotFound):
        db.backup(backup(2).backup_id)
    assert [int(one.backup_id, 16) for one in db.backups(deleting=True)] == [2]
    db.forget_backup(backup(2).backup_id)
    assert db.backups(deleting=True) == []
    db.close()


def test_a_failed_change_leaves_nothing(path: str) -> None:
    db = ServerDb(path)
    with pytest.raises(errors.NotFound):
        db.update_job("0" * 32, cancel_asked=True)
    with pytest.raises(errors.NotFound):
        db.save_job(job(1))
    db.add_jobs([job(1)])
    db.close()


def test_a_failed_disk_poisons(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    db._db.execute("PRAGMA query_only=ON")  # stands for a disk that refuses
    with pytest.raises(errors.StoreFailed):
        db.update_job(job(1).job_id, cancel_asked=True)
    db._db.execute("PRAGMA query_only=OFF")
    with pytest.raises(errors.StoreFailed, match="failed"):
        db.update_job(job(1).job_id, cancel_asked=True)
    assert not db.job(job(1).job_id).cancel_asked
    db.close()
    again = ServerDb(path)
    assert again.update_job(job(1).job_id, cancel_asked=True).cancel_asked
    again.close()


def test_a_full_disk_is_told_and_heals(path: str) -> None:
    db = ServerDb(path)
    db.add_jobs([job(1)])
    pages = db._db.execute("PRAGMA page_count").fetchone()[0]
    db._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(errors.OutOfSpace):
        db.save_step(job(1).job_id, Step("x", 1, detail="y" * 100_000))
    db._db.execute("PRAGMA max_page_count=1000000")
    db.save_step(job(1).job_id, Step("x", 1, detail="y" * 100_000))
    db.close()


def test_damage_is_told(path: str) -> None:
    db = ServerDb(path)
    fill(db)
    db.close()
    content = bytearray(Path(path).read_bytes())
    content[4096:12288] = b"\x55" * 8192
    Path(path).write_bytes(content)
    with pytest.raises(errors.Corruption):
        ServerDb(path)
    Path(path).write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(errors.Corruption):
        ServerDb(path)


def test_another_version_is_refused(path: str) -> None:
    ServerDb(path).close()
    with sqlite3.connect(path) as plain:
        plain.execute(f"PRAGMA user_version={server_schema.VERSION + 1}")
    plain.close()
    with pytest.raises(errors.WrongState, match="version"):
        ServerDb(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"vm_name"', '"name"'), (':"web1"', ":7"), ('"state":1', '"state":99'), ('"full":false', '"full":0')],
)
def test_senseless_documents_are_corruption(old: str, new: str) -> None:
    text = documents.dump(job(1))
    assert old in text
    with pytest.raises(errors.Corruption, match="job 1"):
        documents.load(Job, text.replace(old, new), what="job 1")


def test_a_document_may_be_older_than_a_field() -> None:
    plain = json.loads(documents.dump(SNAPSHOT))
    assert plain["config"]["tags"] == {"a": "b"}, "an object, as it always was"
    del plain["lease_seconds"]
    old = documents.load(VmSnapshot, json.dumps(plain), what="it")
    assert old == replace(SNAPSHOT, lease_seconds=0)
    del plain["frozen_ns"]
    with pytest.raises(errors.Corruption):
        documents.load(VmSnapshot, json.dumps(plain), what="it")


def test_documents_come_back() -> None:
    for value in (job(1), restore_job(1, "x"), located(), backup(1)):
        assert documents.load(type(value), documents.dump(value), what="it") == value
    failed = replace(
        job(1), failure=job_rules.failure_of(errors.NotFound("a", who="b")), ending=JobState.FAILED
    )
    assert documents.load(Job, documents.dump(failed), what="it") == failed
    with pytest.raises(errors.Corruption):
        documents.load(Backup, "[", what="it")
