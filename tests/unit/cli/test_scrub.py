"""Scrub, verdicts, healing, locks and tenants by the command line."""

from __future__ import annotations

import pytest

from arraylift.cli.times import duration_seconds, lock_end_ns
from arraylift.errors import InvalidRequest
from arraylift.v1 import image_pb2, target_admin_pb2, volume_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id
from tests.unit.cli.test_backups import backup

DAY = 86_400


def test_a_clean_scrub(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.admin.scrub_ends = target_admin_pb2.ScrubResponse(
        containers_done=2, containers_total=2, records_checked=5000, done=True
    )
    ended = arraylift("target", "scrub", "--rate", "50M", "--restart")
    assert "5,000 checked" in ended.out
    (asked,) = daemons.admin.scrubs
    assert (asked.unit, asked.bytes_per_second_max, asked.restart) == ("", 50 << 20, True)


def test_damage_is_shown_and_has_its_exit_code(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.admin.scrub_ends = target_admin_pb2.ScrubResponse(
        done=True, records_damaged=2, affected_images=[hex_id(7)], unreadable_containers=["00" * 8]
    )
    ended = arraylift("target", "scrub")
    assert ended.code == 10
    assert hex_id(7) in ended.out
    assert "1 images lack some" in ended.err
    assert arraylift("target", "scrub", "--json").document["records_damaged"] == 2


def test_a_scrub_without_an_end_is_an_error(arraylift: Arraylift, daemons: Daemons) -> None:
    assert arraylift("target", "scrub").code == 1


@pytest.fixture
def image(daemons: Daemons) -> image_pb2.Image:
    made = image_pb2.Image(image_id=hex_id(3), name="web1", tenant="acme", image_bytes=4)
    daemons.images.images = [made]
    return made


def test_an_image_is_verified_and_locked(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    assert "whole" in arraylift("target", "images", "verify", "web1").out
    assert arraylift("target", "images", "verify", "web1", "--max-age", "0").code == 0
    daemons.images.damaged_spans = [4, 5]
    ended = arraylift("target", "images", "verify", "web1", "--max-age", "12h")
    assert ended.code == 10
    assert "2 of 1 MiB: 4, 5" in ended.out
    assert [one.max_age_seconds for one in daemons.images.verified] == [30 * DAY, 0, DAY // 2]
    assert arraylift("target", "images", "lock", "web1", "--until", "2030-01-31").code == 0
    assert daemons.images.locked[0].until_ns == 1_896_048_000 * 10**9
    assert arraylift("target", "images", "lock", "web1").code == 2


def with_snapshot(daemons: Daemons, size_bytes: int = 4) -> str:
    snapshot = volume_pb2.Snapshot(
        snapshot_id=hex_id(9), volume_name="d", name="before", size_bytes=size_bytes
    )
    daemons.volumes.snapshots = [snapshot]
    return "d@before"


def test_healing_is_a_dry_run_unless_told(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    daemons.images.damaged_spans = [4]
    ended = arraylift("target", "heal", "web1", "--snapshot", with_snapshot(daemons))
    assert ended.code == 0
    assert "--apply" in ended.out
    assert daemons.admin.granted == []
    assert daemons.images.deleted == []


def test_healing_sends_the_snapshot_beside_and_verifies(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    daemons.images.damaged_spans = [4]
    document = arraylift(
        "target", "heal", "web1", "--snapshot", with_snapshot(daemons), "--apply", "--json"
    ).document
    (granted,) = daemons.admin.granted
    assert (granted.image_name, granted.tenant, granted.no_base) == (f"heal/{hex_id(3)}", "acme", True)
    assert daemons.images.deleted == [hex_id(77)], "the scratch image, and not the damaged one"
    assert [one.max_age_seconds for one in daemons.images.verified] == [30 * DAY, 0]
    assert (document["applied"], document["after"]["whole"]) == (True, True)


def test_a_snapshot_that_lacks_it_too_is_told(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    daemons.images.damaged_spans, daemons.images.heals = [4, 5], False
    ended = arraylift("target", "heal", "web1", "--snapshot", with_snapshot(daemons), "--apply")
    assert ended.code == 10
    assert "2 of 2 damaged spans" in ended.err


def test_another_disk_s_snapshot_heals_nothing(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    daemons.images.damaged_spans = [4]
    ended = arraylift("target", "heal", "web1", "--snapshot", with_snapshot(daemons, 5), "--apply")
    assert ended.code == 2
    assert daemons.admin.granted == []


def test_a_whole_image_needs_no_healing(
    arraylift: Arraylift, daemons: Daemons, image: image_pb2.Image
) -> None:
    ended = arraylift("target", "heal", "web1", "--snapshot", with_snapshot(daemons), "--apply")
    assert "nothing" in ended.out
    assert daemons.admin.granted == []


def test_tenants(arraylift: Arraylift, daemons: Daemons) -> None:
    assert "none" in arraylift("target", "tenants", "ls").out
    assert arraylift("target", "tenants", "quota", "default", "10M").code == 0
    assert daemons.admin.quotas == {"default": 10 << 20}
    assert "10 %" in arraylift("target", "tenants", "ls").out
    assert arraylift("target", "tenants", "quota", "default", "none").code == 0
    assert daemons.admin.quotas == {"default": 0}
    assert arraylift("target", "tenants", "quota", "default", "0").code == 2


def test_the_stats_tell_of_space_and_clock(arraylift: Arraylift, daemons: Daemons) -> None:
    told = arraylift("target", "stats").out
    assert "below the reserve of 60 B" in told
    assert "until a daemon confirms the time" in told
    assert "2 images, 70 B in 0 containers, 50 B free" in told
    assert "1 images, 0 B in 0 containers; absent" in told


def test_a_backup_is_locked_and_its_lock_shown(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.server.backups = [backup(2, "web")]
    assert (
        "locked until 2030-01-31 12:00:00 UTC"
        in arraylift("backups", "lock", "web", "--until", "2030-01-31T12:00").out
    )
    assert "2030-01-31" in arraylift("backups", "ls").out
    assert "2030-01-31" in arraylift("backups", "show", "web").out
    assert arraylift("backups", "verify", "web", "--max-age", "7d").code == 0
    assert daemons.server.max_ages == [7 * DAY]


def test_durations_and_times() -> None:
    given = {
        "90d": 90 * DAY,
        "12h": DAY // 2,
        "1.5 h": 5400,
        "45s": 45,
        "0": 0,
        "2W": 14 * DAY,
        "1y": 365 * DAY,
    }
    assert {text: duration_seconds(text) for text in given} == given
    for text in ("", "90", "d", "-1d", "1 month"):
        with pytest.raises(InvalidRequest):
            duration_seconds(text)
    assert lock_end_ns("2030-01-31T13:00+01:00", "") == lock_end_ns("2030-01-31T12:00", "")
    for until, duration in (("", ""), ("2030-01-31", "1d"), ("soon", "")):
        with pytest.raises(InvalidRequest):
            lock_end_ns(until, duration)
