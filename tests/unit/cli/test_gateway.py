"""``array gateway send``: states, bases, bitmaps; ``array transfers``: seen, slowed, stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.errors import PeerUnavailable
from arraylift.v1 import common_pb2, image_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id

SEND = ("array", "gateway", "send", "nbd://h/disk", "--image", "vm/d")


@pytest.fixture
def based(daemons: Daemons) -> common_pb2.SourceState:
    """The target has an image of that name; returns its state."""
    state = common_pb2.SourceState(pool_id=hex_id(1), lineage_id=hex_id(2), birth=7)
    daemons.images.images = [
        image_pb2.Image(image_id=hex_id(4), name="vm/d", image_bytes=512, source_state=state)
    ]
    return state


def test_a_first_backup_has_a_state_of_its_own_and_no_bitmap(arraylift: Arraylift, daemons: Daemons) -> None:
    for _ in range(2):
        document = arraylift(*SEND, "--bitmap", "b", "--rate", "1M", "--json").document
        assert document["image_id"] == hex_id(78)
        assert document["base_image_id"] is None
    first, second = daemons.backup_logic.foreign
    assert not first.HasField("bitmap"), "nothing is known since when it counts"
    assert first.bytes_per_second_max == 1 << 20
    assert first.state != second.state
    state = first.state
    assert daemons.admin.granted[0].no_base
    assert arraylift(*SEND, "--full", "--json").document["state"] != f"{state.pool_id}:{state.lineage_id}:1"


def test_a_bitmap_counts_from_the_newest_images_state(
    arraylift: Arraylift, daemons: Daemons, based: common_pb2.SourceState
) -> None:
    shown = arraylift(*SEND, "--bitmap", "b").out
    assert "bitmap" in shown
    assert hex_id(4) in shown
    (request,) = daemons.backup_logic.foreign
    assert (request.uri, request.bitmap.name, request.bitmap.since) == ("nbd://h/disk", "b", based)
    assert request.state.birth == 8
    assert (request.state.pool_id, request.state.lineage_id) != (based.pool_id, based.lineage_id)
    assert daemons.admin.granted[0].base_image_id == hex_id(4)


def test_a_state_that_was_noted_is_said_instead(
    arraylift: Arraylift, daemons: Daemons, based: common_pb2.SourceState
) -> None:
    other = f"{hex_id(8)}:{hex_id(9)}:3"
    assert arraylift(*SEND, "--bitmap", "b", "--since", other).code == 0
    since = daemons.backup_logic.foreign[0].bitmap.since
    assert (since.pool_id, since.lineage_id, since.birth) == (hex_id(8), hex_id(9), 3)


@pytest.mark.parametrize(
    "options",
    [
        ["--full", "--bitmap", "b"],
        ["--since", f"{hex_id(8)}:{hex_id(9)}:3"],
        ["--bitmap", "b", "--since", "yesterday"],
        ["--certificates", "/nowhere"],
        ["--rate", "fast"],
    ],
)
def test_options_that_contradict(arraylift: Arraylift, daemons: Daemons, options: list[str]) -> None:
    assert arraylift(*SEND, *options).code == 2
    assert not daemons.backup_logic.foreign


def test_certificates_of_another_site_go_along(
    arraylift: Arraylift, daemons: Daemons, tmp_path: Path
) -> None:
    (tmp_path / "ca-cert.pem").write_bytes(b"ca")
    assert arraylift(*SEND, "--certificates", tmp_path).code == 0
    given = daemons.backup_logic.foreign[0].credentials
    assert (given.ca_pem, given.certificate_pem, given.key_pem) == (b"ca", b"", b"")
    (tmp_path / "client-cert.pem").write_bytes(b"cert")
    (tmp_path / "client-key.pem").write_bytes(b"key")
    assert arraylift(*SEND, "--certificates", tmp_path).code == 0
    assert daemons.backup_logic.foreign[1].credentials.key_pem == b"key"


def test_a_transfer_that_fails_is_given_up(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.backup_logic.error = PeerUnavailable("the NBD server hung up")
    ended = arraylift(*SEND)
    assert ended.code != 0
    assert "hung up" in ended.err
    assert daemons.admin.revoked == [daemons.admin.granted[0].transfer_id]


def test_running_transfers_are_seen_slowed_and_stopped(arraylift: Arraylift, daemons: Daemons) -> None:
    shown = arraylift("array", "transfers", "ls").out
    assert hex_id(79) in shown
    assert "1/2" in shown
    (listed,) = arraylift("array", "transfers", "ls", "--json").document
    assert listed["source"] == "snapshot s"
    assert "20.0 MiB/s" in arraylift("array", "transfers", "rate", hex_id(79), "20M").out
    assert "as fast" in arraylift("array", "transfers", "rate", hex_id(79), "0").out
    assert daemons.backup_logic.rates == [(hex_id(79), 20 << 20), (hex_id(79), 0)]
    assert arraylift("array", "transfers", "cancel", hex_id(79)).code == 0
    assert daemons.backup_logic.cancelled == [hex_id(79)]
