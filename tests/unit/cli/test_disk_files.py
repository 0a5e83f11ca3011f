"""Disk files of other formats: the disk inside, whole, or an error; nothing of what a hostile one names."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arraylift.cli import qemu_tools
from arraylift.cli.disk_files import ConvertedImage, new_disk, open_disk
from arraylift.cli.disk_formats import HEAD_BYTES, DiskFormat, check_info, format_of
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.nbd.client import NbdClient
from arraylift.sizes import KIB, MIB
from tests.e2e.disks import random_disk
from tests.programs import need
from tests.unit.cli.conftest import Arraylift, Daemons

FORMATS = ["qcow2", "vmdk", "vhdx"]
SIZE = 12 * MIB


@pytest.fixture(scope="module")
def disk() -> bytes:
    content = bytearray(SIZE)
    for number, at in enumerate((0, 3 * MIB + 300 * KIB, 11 * MIB)):
        content[at : at + 500 * KIB] = random_disk(500 * KIB, seed=number)
    return bytes(content)


@pytest.fixture
def raw(disk: bytes, tmp_path: Path) -> Path:
    need("qemu-img", "qemu-nbd")
    path = tmp_path / "disk.raw"
    path.write_bytes(disk)
    return path


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=60)


def made(raw: Path, disk_format: str) -> Path:
    path = raw.with_suffix(f".{disk_format}")
    qemu_img("convert", "-O", disk_format, raw, path)
    return path


def nothing_runs(folder: Path) -> bool:
    """No program is left that has a file of this folder open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes() and process.name != str(
                os.getpid()
            ):
                return False
        except OSError:
            continue
    return True


@pytest.mark.parametrize("disk_format", FORMATS)
def test_the_disk_inside_is_read_without_its_holes(raw: Path, disk: bytes, disk_format: str) -> None:
    with open_disk(made(raw, disk_format)) as source:
        assert source.size_bytes == SIZE
        content, read = bytearray(SIZE), 0
        for start, end in source.data_ranges(0, SIZE):
            for at in range(start, end, 700_000):
                piece = source.read(at, min(700_000, end - at))
                content[at : at + len(piece)] = piece
                read += len(piece)
        assert bytes(content) == disk
        if disk_format != "vhdx":  # whose blocks have 8 MiB
            assert read < 4 * MIB
        part = list(source.data_ranges(MIB, 2 * MIB))
        assert disk_format == "vhdx" or part == []
    assert nothing_runs(raw.parent)


@pytest.mark.parametrize("disk_format", FORMATS)
def test_a_volume_comes_in_and_goes_out_again(
    raw: Path, disk: bytes, disk_format: str, arraylift: Arraylift, daemons: Daemons
) -> None:
    image, out = made(raw, disk_format), raw.parent / "out"
    document = arraylift("array", "volumes", "import", "web1", image, "--json").document
    assert document["bytes_written"] < 4 * MIB
    assert bytes(daemons.volumes.volumes["web1"]) == disk
    document = arraylift(
        "array", "volumes", "export", "web1", out, "--format", disk_format, "--json"
    ).document
    assert document["format"] == disk_format
    qemu_img("compare", "-f", "raw", "-F", disk_format, raw, out)
    assert out.stat().st_blocks * 512 < SIZE
    assert arraylift("array", "volumes", "write", "web1", out, "--json").document["bytes_differing"] == 0
    assert arraylift("array", "volumes", "export", "web1", out, "--format", disk_format).code == 4
    assert arraylift("vm", "create", "web", "--disk", image).code == 0
    assert bytes(daemons.volumes.volumes["web-disk0"]) == disk
    assert nothing_runs(raw.parent)


def test_a_raw_disk_that_begins_like_an_image_is_raw_if_that_is_said(
    raw: Path, arraylift: Arraylift, daemons: Daemons
) -> None:
    image = made(raw, "qcow2")
    raw.write_bytes(image.read_bytes())
    assert arraylift("array", "volumes", "import", "v", raw, "--format", "raw").code == 0
    assert bytes(daemons.volumes.volumes["v"]) == raw.read_bytes()
    assert arraylift("array", "volumes", "import", "w", image, "--format", "vmdk").code == 2
    assert arraylift("array", "volumes", "import", "w", image, "--format", "iso").code == 2
    assert "w" not in daemons.volumes.volumes


HOSTILE = {
    "a backing file": ["create", "-f", "qcow2", "-b", "{raw}", "-F", "raw", "{out}"],
    "an external data file": ["create", "-f", "qcow2", "-o", "data_file={raw}.data", "{out}", "20M"],
    "a backing file ": ["create", "-f", "vmdk", "-b", "{raw}.vmdk", "-F", "vmdk", "{out}"],
    "names other files": ["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "{out}", "20M"],
    "a VHD image": ["create", "-f", "vpc", "{out}", "20M"],
}  # fmt: skip


@pytest.mark.parametrize("why", HOSTILE)
def test_an_image_that_names_other_files_is_refused(raw: Path, why: str) -> None:
    made(raw, "vmdk").rename(f"{raw}.vmdk")
    out = raw.parent / "hostile"
    qemu_img(*(word.format(raw=raw, out=out) for word in HOSTILE[why]))
    with pytest.raises(InvalidRequest, match=why.strip()):
        open_disk(out)


def test_no_program_sees_an_image_whose_header_names_other_files(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = raw.parent / "hostile"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={raw}.data", out, "20M")
    monkeypatch.setattr(qemu_tools, "info", lambda *_: pytest.fail("F1"))
    with pytest.raises(InvalidRequest, match="external data"):
        open_disk(out)


def test_what_qemu_img_says_is_judged_too() -> None:
    fine: dict[str, Any] = {"format": "qcow2", "virtual-size": 512}
    assert check_info(fine, DiskFormat.QCOW2, "d") == 512
    odd: list[dict[str, Any]] = [
        {"backing-filename": "/etc/shadow"},
        {"format": "raw"},
        {"encrypted": True},
        {"virtual-size": 513},
        {"virtual-size": "512"},
        {"virtual-size": 1 << 60},
        {"format-specific": {"data": {"data-file": "/etc/shadow"}}},
        {"format-specific": {"data": {"extents": [{}, {}]}}},
    ]
    for more in odd:
        with pytest.raises(InvalidRequest):
            check_info({**fine, **more}, DiskFormat.QCOW2, "d")


def test_heads_that_end_early() -> None:
    for head in (b"QFI\xfb", b"QFI\xfb\0\0\0\3" + bytes(30), b"KDMV"):
        with pytest.raises(InvalidRequest, match="ends in its header"):
            format_of(head, "d")
    assert format_of(bytes(HEAD_BYTES), "d") is DiskFormat.RAW
    assert format_of(b"", "d") is DiskFormat.RAW


@pytest.mark.parametrize("at", [16, 32, 40, 48, 65_536, 131_072])
def test_a_damaged_image_is_an_error_or_the_disk_and_leaves_no_program(
    raw: Path, disk: bytes, at: int
) -> None:
    path = made(raw, "qcow2")
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with contextlib.suppress(ArrayliftError), open_disk(path) as source:
        for start, end in source.data_ranges(0, source.size_bytes):
            source.read(start, min(end - start, MIB))
    assert nothing_runs(raw.parent)


def test_without_the_programs_raw_still_works_and_the_rest_says_what_to_install(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = made(raw, "qcow2")
    monkeypatch.setenv("PATH", "/nowhere")
    with open_disk(raw) as source:
        assert source.size_bytes == SIZE
    with pytest.raises(NotFound, match=r"no qemu-img on this machine.*qemu-utils"):
        open_disk(image)
    with pytest.raises(NotFound, match="qemu-utils"):
        new_disk(raw.parent / "new", DiskFormat.VMDK, SIZE, overwrite=False)
    assert sorted(os.listdir(raw.parent)) == ["disk.qcow2", "disk.raw"]


def test_an_export_that_is_broken_off_leaves_nothing_and_replaces_nothing(raw: Path) -> None:
    out = raw.parent / "out.qcow2"

    def break_off() -> None:
        with new_disk(out, DiskFormat.QCOW2, SIZE, overwrite=False) as new:
            new.write(0, b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert os.listdir(raw.parent) == ["disk.raw"]
    out.write_bytes(b"older")
    with pytest.raises(AlreadyExists):
        new_disk(out, DiskFormat.QCOW2, SIZE, overwrite=False)
    with new_disk(out, DiskFormat.QCOW2, SIZE, overwrite=True) as new:
        assert out.read_bytes() == b"older"
        new.write(0, b"new")
        new.commit(SIZE)
    with open_disk(out) as source:
        assert source.read(0, 4) == b"new\0"
    assert nothing_runs(raw.parent)


def test_an_image_that_a_vm_uses_is_not_read(raw: Path) -> None:
    path = made(raw, "qcow2")
    user = qemu_tools.ImageServer(path, DiskFormat.QCOW2, writable=True)
    try:
        with pytest.raises((WrongState, InvalidRequest), match="lock"):
            ConvertedImage(path, DiskFormat.QCOW2)
    finally:
        user.kill()


def test_a_server_whose_socket_is_there_before_it_listens_is_waited_for(
    raw: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = made(raw, "qcow2"), [1, 2, 3]

    def connected(*args: Any, **named: Any) -> NbdClient:
        if refused:
            refused.pop()
            raise PeerUnavailable("connection refused")
        return NbdClient(*args, **named)

    monkeypatch.setattr(qemu_tools, "NbdClient", connected)
    with open_disk(path) as source:
        assert source.read(3 * MIB, 512 * KIB) == disk[3 * MIB : 3 * MIB + 512 * KIB]
