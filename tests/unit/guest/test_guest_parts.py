"""What the guest's builder makes, looked at without booting it (tests/vm does)."""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from arraylift.errors import NotFound
from arraylift.guest import build, content, disks, kernel, packages, programs
from tests.programs import need


def test_sample_files_are_the_same_each_time_and_differ_between_disks() -> None:
    once, again = dict(content.sample_files("data1")), dict(content.sample_files("data1"))
    assert once == again
    other = dict(content.sample_files("data2"))
    assert once.keys() == other.keys()
    assert all(once[name] != other[name] for name in once)


def test_boot_record_has_an_active_fat_and_a_root_that_do_not_overlap() -> None:
    record = disks._boot_record(b"code")
    assert len(record) == disks.SECTOR_BYTES
    assert record[510:] == b"\x55\xaa"
    rows = [struct.unpack_from("<B3sB3sII", record, 446 + 16 * number) for number in range(4)]
    assert [(row[0], row[2]) for row in rows] == [(0x80, 0xEF), (0, 0x83), (0, 0), (0, 0)]

    assert rows[0][4] * 512 == disks.ESP_START
    assert rows[1][4] == rows[0][4] + rows[0][5]
    assert (rows[1][4] + rows[1][5]) * 512 == disks.BOOT_DISK_BYTES


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A kernel's package with three modules: one needs another, one is compressed, one is built in."""
    modules = tmp_path / "usr/lib/modules/9.9-cloud"
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/virtio_pci.ko\nkernel/virtio_console.ko\n")
    needs = {"virtio_blk": "virtio-ring", "virtio_net": "", "virtio-rng": "", "virtio-ring": ""}
    for name, needed in needs.items():
        data = b"\x7fELF\0depends=" + needed.encode() + b"\0"
        path = modules / f"kernel/{name}.ko"
        if name == "virtio_net":
            path.with_suffix(".ko.xz").write_bytes(lzma.compress(data))
        else:
            path.write_bytes(data)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-9.9-cloud").write_bytes(b"kernel")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"busybox")
    return tmp_path


def test_initramfs_is_an_archive_with_modules_after_what_they_need(unpacked: Path, tmp_path: Path) -> None:
    need("cpio")
    archive = kernel.initramfs(unpacked, kernel.find_kernel(unpacked), b"#!init")
    into = tmp_path / "taken-out"
    into.mkdir()
    subprocess.run(
        ["cpio", "-i", "-d", "--quiet", "--no-preserve-owner", "-f", "dev/*"],
        cwd=into,
        input=archive,
        check=True,
    )
    assert (into / "init").read_bytes() == b"#!init"
    assert (into / "init").stat().st_mode & 0o111
    names = (into / "etc/modules").read_text().split()
    assert names == ["virtio_ring", "virtio_blk", "virtio_net", "virtio_rng"]
    assert (into / "lib/modules/virtio_net.ko").read_bytes().startswith(b"\x7fELF")


def test_a_module_that_is_nowhere_is_told(unpacked: Path) -> None:
    found = kernel.find_kernel(unpacked)
    (found.modules / "kernel/virtio-rng.ko").unlink()
    with pytest.raises(NotFound, match="no module virtio_rng"):
        kernel.initramfs(unpacked, found, b"")


def test_packages_are_the_newest_kernel_and_the_agents_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    depends = {
        packages.KERNEL: ["linux-image-6.1.0-9-cloud-amd64", "<virtual>"],
        packages.AGENT: ["libglib2.0-0", "init-system-helpers"],
        "libglib2.0-0": ["libc6", "zlib1g"],
        "libc6": ["libglib2.0-0"],
        "zlib1g": [],
    }

    def run(command: list[str]) -> str:
        lines = (f"  Depends: {name}\n" for name in depends[command[-1]])
        return f"{command[-1]}\n{''.join(lines)}"

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(programs, "find", lambda name, package: name)
    names = packages.names()
    assert "linux-image-6.1.0-9-cloud-amd64" in names
    assert names[-4:] == [packages.AGENT, "libc6", "libglib2.0-0", "zlib1g"]
    assert "init-system-helpers" not in names


def test_no_guest_is_kept_before_one_is_built(tmp_path: Path) -> None:
    assert build.kept(tmp_path) is None


def test_a_program_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"exit status 2: .*no-such-file"):
        programs.run(["ls", tmp_path / "no-such-file"])
