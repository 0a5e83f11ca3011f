"""What results look like to scripts and to people."""

from __future__ import annotations

from arraylift.cli.show import figures_rows, moment, plain, printable, ratio
from arraylift.v1 import backup_logic_pb2, common_pb2, image_pb2, volume_pb2


def test_messages_become_plain_values() -> None:
    image = image_pb2.Image(
        image_id="1",
        root=b"\x01\xff",
        image_bytes=2**40,
        segmentation=common_pb2.Segmentation(policy=common_pb2.SEGMENTATION_POLICY_FIXED),
    )
    document = plain(image)
    assert document["root"] == "01ff"
    assert document["image_bytes"] == 2**40, "a number, not a string"
    assert document["segmentation"]["policy"] == "segmentation_policy_fixed"
    assert document["source_state"] is None
    assert document["name"] == ""


def test_lists_and_unknown_enum_values_pass() -> None:
    listed = volume_pb2.ListVolumesResponse(volumes=[volume_pb2.Volume(name="a")])
    assert plain(listed)["volumes"][0]["name"] == "a"
    newer = backup_logic_pb2.SendSnapshotResponse.FromString(b"\x28\x63")  # change_source = 99
    assert plain(newer)["change_source"] == 99


def test_figures_of_a_sender_that_reads_no_source_say_no_ratio() -> None:
    restored = dict(figures_rows(common_pb2.TransferFigures(bytes_offered=10, duration_ns=10**9, attempts=1)))
    assert "ratio" not in restored
    assert restored["time"] == "1.00 s, 10 B/s"
    sent = dict(figures_rows(common_pb2.TransferFigures(bytes_read=100, bytes_stored=50, attempts=2)))
    assert sent["ratio"] == "2.0:1 read to stored"
    assert sent["time"] == "0.00 s, resumed 1 time"
    both = dict(figures_rows(common_pb2.TransferFigures(bytes_read=100, attempts=2), transfers=2))
    assert both["time"] == "0.00 s"


def test_small_words() -> None:
    assert ratio(10, 4) == "2.5:1"
    assert ratio(10, 0) == "-"
    assert moment(0) == ""
    assert moment(1_700_000_000 * 10**9) == "2023-11-14 22:13:20 UTC"
    assert printable("a\x1b[0m\nb\u202e") == "a\N{REPLACEMENT CHARACTER}[0m\nb\N{REPLACEMENT CHARACTER}"
