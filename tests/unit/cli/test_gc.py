"""``target gc``, ``target space`` and ``backups rm --dry-run``: what is asked, and what is shown."""

from __future__ import annotations

import pytest

from arraylift.v1 import backup_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.test_backups import backup


@pytest.fixture(autouse=True)
def _fresh(daemons: Daemons) -> None:
    daemons.admin.collected.clear()
    daemons.admin.is_cut = False


def test_gc_runs_cycles_and_tells_each(arraylift: Arraylift, daemons: Daemons) -> None:
    ended = arraylift("target", "gc", "--cycles", "3", "--unit", "u1", "--rate", "2M", "--json")
    assert ended.code == 0
    assert [one["cycle"] for one in ended.document] == [1, 2, 3]
    asked = daemons.admin.collected[0]
    assert (asked.unit, asked.dry_run, asked.bytes_per_second_max, asked.live_percent_min) == (
        "u1",
        False,
        2 << 20,
        0,
    )
    shown = arraylift("target", "gc").out
    assert "deleted" in shown
    assert len(daemons.admin.collected) == 4


def test_gc_prints_its_plan(arraylift: Arraylift, daemons: Daemons) -> None:
    ended = arraylift("target", "gc", "--dry-run", "--cycles", "3", "--live-percent", "100")
    assert ended.code == 0
    assert "75.0 % of 3.9 KiB in 4 containers are alive" in ended.out
    assert [(one.dry_run, one.live_percent_min) for one in daemons.admin.collected] == [(True, 100)]


def test_a_stream_that_is_cut_is_no_answer(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.admin.is_cut = True
    assert arraylift("target", "gc").code == 8
    assert arraylift("target", "space").code == 8


def test_space(arraylift: Arraylift) -> None:
    ended = arraylift("target", "space")
    assert ended.code == 0
    assert "unit web" in ended.out
    assert "4.0:1 deduplication, 2.0:1 compression" in ended.out
    assert "only its own" not in ended.out
    shown = arraylift("target", "space", "--by-vm").out
    assert "only its own" in shown
    assert "5.0 MiB" in shown
    assert (
        arraylift("target", "space", "--by-vm", "--json").document["vms"][0]["unique_stored_bytes"] == 5 << 20
    )


def test_backups_rm_says_what_would_come_free(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.backups = [backup(2, "web")]
    daemons.server.peers[backup_pb2.PEER_KIND_TARGET, backup(2, "web").target] = daemons.target_address
    daemons.server.deleted.clear()
    ended = arraylift("backups", "rm", backup(2, "web").backup_id, "--dry-run")
    assert ended.code == 0
    assert "3.0 MiB" in ended.out
    assert daemons.server.deleted == []
