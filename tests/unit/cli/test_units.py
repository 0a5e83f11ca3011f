"""``target units``: what is asked of the target, and what is shown."""

from __future__ import annotations

import pytest

from arraylift.v1 import target_admin_pb2 as pb
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id


@pytest.fixture(autouse=True)
def _fresh(daemons: Daemons) -> None:
    daemons.admin.unit_calls.clear()
    daemons.admin.is_cut = False


def test_units_are_listed_with_their_problems(arraylift: Arraylift) -> None:
    ended = arraylift("target", "units", "ls")
    assert ended.code == 0
    assert "absent: no answer" in ended.out
    assert "s3://backups/target1" in ended.out
    listed = arraylift("target", "units", "ls", "--json").document
    assert [one["name"] for one in listed] == ["active", "cold"]


def test_a_unit_is_added_at_an_absolute_place(arraylift: Arraylift, daemons: Daemons) -> None:
    assert arraylift("target", "units", "add", "cold", "s3://b/p", "--endpoint", "http://h:1").code == 0
    assert arraylift("target", "units", "add", "disk2", "some/where", "--role", "active").code == 0
    far, near = daemons.admin.unit_calls
    assert (far.location, far.endpoint, far.role) == ("s3://b/p", "http://h:1", pb.UNIT_ROLE_ARCHIVE)
    assert near.location.startswith("/")
    assert near.role == pb.UNIT_ROLE_ACTIVE
    assert arraylift("target", "units", "add", "x", "/y", "--role", "middle").code == 2


def test_a_move_tells_what_stays_and_why(arraylift: Arraylift, daemons: Daemons) -> None:
    ended = arraylift("target", "units", "move", "--older-than", "1.5", "--to", "cold")
    assert ended.code == 0
    assert "it is the newest" in ended.out
    (asked,) = daemons.admin.unit_calls
    assert (asked.older_than_seconds, asked.to_unit, asked.dry_run) == (129_600, "cold", False)


def test_a_dry_run_lists_what_would_move(arraylift: Arraylift, daemons: Daemons) -> None:
    document = arraylift("target", "units", "move", hex_id(1), "--dry-run", "--json").document
    assert document["would_move"] == [hex_id(1)]
    assert daemons.admin.unit_calls[0].dry_run
    assert "would move" in arraylift("target", "units", "move", hex_id(1), "--dry-run").out


def test_a_move_names_images_or_an_age(arraylift: Arraylift) -> None:
    assert arraylift("target", "units", "move").code == 2
    assert arraylift("target", "units", "move", hex_id(1), "--older-than", "3").code == 2


def test_drain_and_retire(arraylift: Arraylift, daemons: Daemons) -> None:
    assert "3 images" in arraylift("target", "units", "drain", "cold").out
    assert arraylift("target", "units", "retire", "cold", "--lose-images").code == 0
    assert [type(one).__name__ for one in daemons.admin.unit_calls] == [
        "DrainUnitRequest",
        "RetireUnitRequest",
    ]
    assert daemons.admin.unit_calls[1].lose_images


def test_a_rebuild_tells_what_it_restored(arraylift: Arraylift, daemons: Daemons) -> None:
    assert "restored from replicas" in arraylift("target", "rebuild", "cold").out
    assert arraylift("target", "rebuild", "--json").document["manifests_restored"] == 2
    assert [one.unit for one in daemons.admin.unit_calls] == ["cold", ""]
    daemons.admin.is_cut = True
    assert arraylift("target", "rebuild").code == 8


def test_a_move_that_is_cut_is_no_answer(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.admin.is_cut = True
    ended = arraylift("target", "units", "drain", "cold")
    assert ended.code == 8
    assert "stays moved" in ended.err
