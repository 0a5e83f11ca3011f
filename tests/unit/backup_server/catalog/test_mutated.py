"""Damaged images of every kind: an answer in bounded time, and nothing that is not checked."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError, InvalidRequest, NotFound, WrongState
from arraylift.sizes import KIB, MIB
from backup_server.catalog import browse
from backup_server.catalog.browse import Disk, ParserLimits
from tests import campaign
from tests.unit.backup_server.catalog.images import make_image, stage_tree
from tests.unit.backup_server.catalog.truth import fat_tree, golden_image, make_fat, make_xfs, walked

REFUSALS = (WrongState, NotFound, InvalidRequest)
"""What a real parser may end in: never Corruption, which is a parser that lies."""

LIMITS = ParserLimits(run_seconds=20.0, cpu_seconds=10)
PAGE = 4 * KIB
CONTENT_BYTES_MAX = 16 * MIB


@dataclass
class Patched:
    """A file as an image, some of whose pages are others."""

    path: Path
    pages: dict[int, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size_bytes = self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            content = bytearray(file.read(length))
        for number, page in self.pages.items():
            start, end = max(offset, number * PAGE), min(offset + length, (number + 1) * PAGE)
            if start < end:
                content[start - offset : end - offset] = page[start - number * PAGE : end - number * PAGE]
        return bytes(content)

    def patch(self, offset: int, content: bytes) -> None:
        number, at = divmod(offset, PAGE)
        if number not in self.pages:
            self.pages[number] = bytearray(self.read(number * PAGE, PAGE))
        content = content[: len(self.pages[number]) - at]
        self.pages[number][at : at + len(content)] = content


@dataclass(frozen=True)
class Sound:
    """The disks of one backup, and which of their pages hold something."""

    paths: tuple[Path, ...]
    used: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[Sound]:
    folder = tmp_path_factory.mktemp("sound")
    tree = stage_tree(folder / "tree", sparse=False)
    (folder / "fat").mkdir()
    kinds = [("ext4", "-b", "1024"), ("ext3", "-b", "1024"), ("ext4", "-I", "256", "-O", "inline_data")]
    sets = [
        [make_image(folder / f"ext{number}", tree, *kind, size=10 * MIB)] for number, kind in enumerate(kinds)
    ]
    sets.append([make_fat(folder / "fat16", fat_tree(folder / "fat"), 16, 20 * MIB)])
    for path in [*tree.iterdir(), *(tree / "d" / "e" / "f").iterdir()]:
        if path.is_symlink() or not path.name.isascii():
            path.unlink()
    for path in (tree / "d" / "e" / "f").iterdir():
        path.unlink()
    sets.append([make_xfs(folder / "xfs", tree)])
    for name in ("ntfs", "ext4-fast-commit"):
        (folder / name).write_bytes(golden_image(name))
        sets.append([folder / name])
    physical = [folder / "pv0", folder / "pv1"]
    for number, path in enumerate(physical):
        path.write_bytes(golden_image(f"lvm2-pv{number}") + bytes(63 * MIB))
    with physical[0].open("r+b") as file:
        file.seek(MIB)
        file.write((folder / "ext0").read_bytes())
    sets.append(physical)
    return [Sound(tuple(paths), tuple(used_pages(paths))) for paths in sets]


def used_pages(paths: list[Path]) -> list[tuple[int, int]]:
    """Return (disk, page) of what is not zeros, of a disk at most 4,000."""
    used = []
    for disk, path in enumerate(paths):
        found = []
        with path.open("rb") as file:
            for number in range(path.stat().st_size // PAGE):
                if any(page := file.read(PAGE)) and len(set(page)) > 1:
                    found.append((disk, number))
        used += found[:4000]
    return used


def mutate(seed: int, sound: list[Sound]) -> None:
    chance = random.Random(seed)
    base = sound[seed % len(sound)]
    images = [Patched(path) for path in base.paths]
    early = base.used[: max(8, len(base.used) // chance.choice((1, 3, 20)))]
    for _ in range(chance.choice((1, 8, 64, 300))):
        disk, page = chance.choice(early)
        width = chance.choice((1, 1, 2, 4, 8, 16))
        content = chance.choice((chance.randbytes(width), b"\xff" * width, bytes(width)))
        images[disk].patch(page * PAGE + chance.randrange(PAGE), content)
    disks = [Disk(f"disk{number}", image) for number, image in enumerate(images)]
    started = time.monotonic()
    try:
        volumes = [volume.key for volume in browse.survey(disks, limits=LIMITS) if volume.readable]
        for key in volumes:
            found = walked(disks, key, limits=LIMITS)
            left = CONTENT_BYTES_MAX
            for path, (entry, pieces) in found.files.items():
                if entry.is_file and pieces and entry.size_bytes <= left:
                    left -= entry.size_bytes
                    assert len(found.content(path)) == entry.size_bytes
    except REFUSALS:
        pass
    except ArrayliftError as error:
        raise AssertionError(f"seed {seed}: a sound parser lied: {error}") from error
    assert time.monotonic() - started < 60, f"seed {seed}"


@pytest.mark.parametrize("seed", range(32))
def test_mutated_images_get_an_answer_in_bounded_time(seed: int, sound: list[Sound]) -> None:
    mutate(seed, sound)


@pytest.mark.campaign
def test_many_mutated_images(sound: list[Sound]) -> None:
    seed = campaign.seed_of("mutated images")
    for number in range(campaign.scaled(3000)):
        mutate(seed + number, sound)
