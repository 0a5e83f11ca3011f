"""Grant, transfer, receipt: made out to whom the certificates name, and given up when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.cli import transfers
from arraylift.cli.connection import Connection
from arraylift.cli.transfers import Receipt
from arraylift.errors import ArrayliftError, Conflict, InvalidRequest, NotFound, PeerUnavailable
from arraylift.ids import check_id
from arraylift.v1 import common_pb2, image_pb2, volume_pb2
from tests.unit.cli.conftest import Daemons
from tests.unit.cli.fakes import hex_id


def send(
    array: Connection, target: Connection, seen: list[int] | None = None, *, full: bool = False
) -> Receipt:
    def on_spans(done: int, _figures: common_pb2.TransferFigures) -> None:
        if seen is not None:
            seen.append(done)

    return transfers.send_snapshot(array, target, hex_id(1), image_name="web1", full=full, on_spans=on_spans)


def test_the_grant_names_the_array_as_its_certificate_does(
    array: Connection, target: Connection, daemons: Daemons
) -> None:
    seen: list[int] = []
    receipt = send(array, target, seen)
    (granted,) = daemons.admin.granted
    (sent,) = daemons.backup_logic.received
    assert (granted.array, granted.image_name, granted.no_base) == ("a7", "web1", False)
    assert check_id(granted.transfer_id, "transfer") == sent.transfer_id
    assert (sent.grant, sent.target_address) == (b"g" * 32, daemons.target_address)
    assert seen == [1, 2]
    assert (receipt.receipt_id, receipt.change_source) == (hex_id(77), "births")
    assert receipt.base_image_id == hex_id(5)
    assert daemons.admin.revoked == []


def test_a_full_backup_has_no_base(array: Connection, target: Connection, daemons: Daemons) -> None:
    send(array, target, full=True)
    assert daemons.admin.granted[0].no_base


def test_a_transfer_that_fails_is_given_up(array: Connection, target: Connection, daemons: Daemons) -> None:
    daemons.backup_logic.error = Conflict("a sampled span differed")
    with pytest.raises(Conflict, match="sampled span"):
        send(array, target)
    assert daemons.admin.revoked == [daemons.admin.granted[0].transfer_id]


def test_an_interrupted_transfer_is_given_up(array: Connection, target: Connection, daemons: Daemons) -> None:
    def interrupt(_done: int, _figures: common_pb2.TransferFigures) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfers.send_snapshot(array, target, hex_id(1), image_name="web1", full=False, on_spans=interrupt)
    assert len(daemons.admin.revoked) == 1


def test_no_receipt_is_a_failure(array: Connection, target: Connection, daemons: Daemons) -> None:
    daemons.backup_logic.has_receipt = False
    with pytest.raises(ArrayliftError, match="without a receipt"):
        send(array, target)
    assert len(daemons.admin.revoked) == 1


def test_a_restore_names_the_target_as_its_certificate_does(
    array: Connection, target: Connection, daemons: Daemons
) -> None:
    receipt = transfers.restore_image(
        target, array, hex_id(3), volume_name="back", on_spans=lambda _done, _figures: None
    )
    (prepared,) = daemons.volumes.received
    (sent,) = daemons.images.sent
    assert (prepared.target, prepared.volume_name) == ("t7", "back")
    assert (sent.receiver_address, sent.transfer_id) == (daemons.array_address, prepared.transfer_id)
    assert receipt.receipt_id == hex_id(9)


def test_identity_needs_a_daemon(daemons: Daemons) -> None:
    connection = Connection("array", "127.0.0.1:1", daemons.pki)
    with pytest.raises(PeerUnavailable, match=r"array 127\.0\.0\.1:1"):
        connection.identity()
    connection.close()


def test_identity_needs_a_certificate_of_our_ca(daemons: Daemons, tmp_path: Path) -> None:
    from arraylift import pki

    pki.init_ca(str(tmp_path))
    pki.issue(str(tmp_path), "operator", "admin")
    connection = Connection("array", daemons.array_address, tmp_path)
    with pytest.raises(PeerUnavailable, match="certificate verify failed"):
        connection.identity()
    connection.close()


@pytest.fixture
def snapshots(daemons: Daemons) -> None:
    daemons.volumes.snapshots = [
        volume_pb2.Snapshot(snapshot_id=hex_id(number), volume_name=volume, name=name)
        for number, (volume, name) in enumerate([("a", "mon"), ("a", "tue"), ("a", "tue"), ("b@c", "mon")])
    ]


@pytest.mark.usefixtures("snapshots")
@pytest.mark.parametrize(("reference", "number"), [("a@mon", 0), (hex_id(2), 2), ("b@c@mon", 3)])
def test_a_snapshot_is_found_by_id_and_by_name(array: Connection, reference: str, number: int) -> None:
    assert transfers.find_snapshot(array, reference).snapshot_id == hex_id(number)


@pytest.mark.usefixtures("snapshots")
def test_a_name_that_two_snapshots_bear_is_refused(array: Connection) -> None:
    with pytest.raises(InvalidRequest, match="2 snapshots are named a@tue"):
        transfers.find_snapshot(array, "a@tue")
    with pytest.raises(NotFound, match="no snapshot b@c@tue"):
        transfers.find_snapshot(array, "b@c@tue")


def test_an_image_is_found_by_name_newest_first_and_by_id(target: Connection, daemons: Daemons) -> None:
    daemons.images.images = [image_pb2.Image(image_id=hex_id(number), name="web1") for number in (3, 2)]
    assert transfers.find_image(target, "web1").image_id == hex_id(3)
    assert transfers.find_image(target, hex_id(2)).image_id == hex_id(2)
    with pytest.raises(NotFound, match="no image nobody"):
        transfers.find_image(target, "nobody")


def test_a_long_list_comes_page_by_page_up_to_its_limit(target: Connection, daemons: Daemons) -> None:
    daemons.images.images = [image_pb2.Image(image_id=hex_id(number)) for number in range(25)]
    daemons.images.page_max = 10
    found = transfers.list_images(target, count_max=100)
    assert [image.image_id for image in found] == [hex_id(number) for number in range(25)]
    assert len(transfers.list_images(target, count_max=12)) == 12
    assert daemons.images.page_sizes[-2:] == [12, 12], "no page is asked for more than is wanted"
