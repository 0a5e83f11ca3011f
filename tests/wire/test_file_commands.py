"""``arraylift target names`` and ``target images``, against a real target in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from arraylift.cli.app import run
from arraylift.sizes import KIB, MIB
from tests.wire.stage import House
from tests.wire.test_exchange_fencing import Target

NOISE = np.random.default_rng(8).bytes(2 * MIB)

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def target(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    house.identity("operator", "admin")
    # In a process of its own the target's log would be on its standard error.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    made = Target(house, Path(tmp_path_factory.mktemp("target")))
    yield made
    made.close()
    structlog.reset_defaults()


@pytest.fixture
def command(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command; returns its document, or the error's reason."""
    monkeypatch.setenv("ARRAYLIFT_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def arraylift(*arguments: object, fails: bool = False) -> Any:
        options = ["--json", "--pki", target.house.directory, "--target", target.server.address]
        code = run([*options, "target", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code != 0) == fails, err
        document = json.loads(out)
        return document["error"]["message"] if fails else document

    return arraylift


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> bytes:
    """A file with holes; returns its bytes."""
    plain = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            os.pwrite(file.fileno(), data, offset)
            plain[offset : offset + len(data)] = data
    return bytes(plain)


def test_a_sparse_file_is_written_and_listed(command: Command, target: Target, tmp_path: Path) -> None:
    plain = sparse(tmp_path / "f", 9 * MIB + 13, {5: b"head", 4 * MIB: NOISE, 9 * MIB + 10: b"end"})
    image = command("images", "write", "cli/f", tmp_path / "f")
    assert target.read(image["image_id"]) == plain
    assert image["figures"]["bytes_read"] < 3 * MIB, "holes do not travel"
    assert [(name["name"], name["is_folder"]) for name in command("names", "ls")] == [("cli", True)]
    (name,) = command("names", "ls", "cli")
    assert (name["name"], name["image_id"], name["size_bytes"]) == ("f", image["image_id"], len(plain))
    assert command("names", "ls", "cli", "--limit", "1") == [name]
    command("images", "read", "cli/f", "--to", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == plain


def test_a_file_may_be_cut_by_size_and_repeated(command: Command, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(NOISE)
    arguments = ("images", "write", "cli/fixed", tmp_path / "f", "--fixed", "8K", "--transfer-id", "a" * 32)
    first = command(*arguments)
    assert first["segmentation"]["policy"] == "segmentation_policy_fixed"
    assert first["figures"]["segments_offered"] == len(NOISE) // (8 * KIB)
    assert command(*arguments) == first


def test_changes_are_laid_over_a_base(command: Command, target: Target, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(NOISE)
    base = command("images", "write", "cli/vm/disk", tmp_path / "base")
    block = sparse(tmp_path / "block", 200 * KIB, {70 * KIB: b"in the middle"})
    image = command(
        "images",
        "synthesize",
        "cli/vm/disk",
        "--base",
        base["image_id"],
        "--zero",
        "1.5M=64K",
        "--change",
        f"100K={tmp_path / 'block'}",
    )
    expected = bytearray(NOISE)
    expected[100 * KIB : 300 * KIB] = block
    expected[1536 * KIB : 1600 * KIB] = bytes(64 * KIB)
    assert target.read(image["image_id"]) == bytes(expected)
    assert image["base_image_id"] == base["image_id"]
    found = command("images", "diff", base["image_id"], image["image_id"])
    assert found["range_count"] == len(found["ranges"]) >= 2
    covered = [(one["offset"], one["offset"] + one["length"]) for one in found["ranges"]]
    for start, end in ((100 * KIB, 300 * KIB), (1536 * KIB, 1600 * KIB)):
        assert any(low <= start and end <= high for low, high in covered)
    assert found["total_bytes"] < 700 * KIB
    assert command("images", "diff", "cli/vm/disk", image["image_id"])["ranges"] == []


def test_extents_are_composed(command: Command, target: Target, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(NOISE)
    source = command("images", "write", "cli/source", tmp_path / "f")
    extents = [
        {"offset": "2M", "hex": "68656c6c6f"},
        {"offset": 0, "length": "1M", "image": "cli/source", "image_offset": "1M"},
        {"offset": MIB, "length": 10, "image": source["image_id"]},
        {"offset": MIB + 10, "length": 5},
    ]
    (tmp_path / "extents.json").write_text(json.dumps(extents))
    image = command("images", "compose", "cli/composed", tmp_path / "extents.json", "--size", "3M")
    expected = (NOISE[MIB:] + NOISE[:10]).ljust(2 * MIB, b"\0") + b"hello"
    assert target.read(image["image_id"]) == expected.ljust(3 * MIB, b"\0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "no JSON"),
        ("{}", "no list"),
        ("[7]", "extent 0"),
        ('[{"offset": 0}, {"offset": "x", "length": 1}]', "extent 1"),
        ('[{"length": 1}]', "extent 0"),
        ('[{"offset": 0, "hex": "zz"}]', "extent 0"),
        ('[{"offset": 0, "length": 1, "color": "red"}]', "color"),
        ('[{"offset": -1, "length": 1}]', "extent 0"),
        ('[{"offset": 0, "length": 1, "image": 7}]', "extent 0"),
        ('[{"offset": 0, "length": 1, "image": "cli/nowhere"}]', "nowhere"),
    ],
)
def test_extents_that_make_no_sense_are_named(command: Command, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "extents.json").write_text(text)
    message = command("images", "compose", "x", tmp_path / "extents.json", "--size", "1M", fails=True)
    assert says in message


def test_what_cannot_be_written_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert "0 bytes" in command("images", "write", "x", tmp_path / "empty", fails=True)
    assert "directory" in command("images", "write", "x", tmp_path, fails=True)
    (tmp_path / "f").write_bytes(b"x")
    assert "'..'" in command("images", "write", "a/../b", tmp_path / "f", fails=True)
    assert "segment sizes" in command("images", "write", "x", tmp_path / "f", "--fixed", "1M", fails=True)
    base = command("images", "write", "cli/small", tmp_path / "f")
    arguments = ("images", "synthesize", "x", "--base", base["image_id"])
    assert "no '='" in command(*arguments, "--zero", "5", fails=True)
    assert "not within" in command(*arguments, "--zero", "1=1", fails=True)
    assert "folder" in command("names", "ls", "nowhere", fails=True)
