"""Parsers that lie, crash or hang, and images that make them: refused in bounded time, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import Corruption, NotFound, WrongState
from arraylift.sizes import KIB
from backup_server.catalog import batch_format as form
from backup_server.catalog import frames, sandbox
from backup_server.catalog.batch import Batch, Paths, Unread
from backup_server.catalog.browse import Volume
from backup_server.catalog.frames import FrameKind
from backup_server.catalog.sandbox import ParserLimits, ParserRun
from tests.unit.backup_server.catalog.images import BytesImage, disks, listed
from tests.unit.backup_server.catalog.truth import golden_image

IMAGE = BytesImage(bytes(range(256)) * 256)
DISKS = disks(IMAGE)
SIZE = IMAGE.size_bytes
DONE = frames.frame(FrameKind.DONE)
VOLUME = Volume("disk0", "ext4", "", "", SIZE, readable=True)
FIRST = frames.encode_volume(VOLUME)
FILE_MODE, DIRECTORY_MODE = 0o100644, 0o40755


def row(name: str | bytes = "", **more: Any) -> dict[str, Any]:
    """One entry as a lie may have it: fields of a record, shares of heaps, pieces."""
    raw = name.encode() if isinstance(name, str) else name
    return {"name": raw, "mode": FILE_MODE, "parent": 0, "directory": form.NO_DIRECTORY, **more}


ROOT = row(mode=DIRECTORY_MODE, parent=form.NO_DIRECTORY, directory=0)


def batch(*rows: dict[str, Any], heads: tuple[int, ...] = ()) -> bytes:
    """Pack rows as they are, whatever they say."""
    records, pieces, heaps = b"", b"", dict.fromkeys(form.HEAPS, b"")
    for one in rows:
        shares = {heap: one.get(heap, b"") for heap in form.HEAPS}
        own = one.get("pieces", ())
        fields = {f"{heap}_bytes": len(share) for heap, share in shares.items()}
        fields |= {"pieces": len(own)} | {key: value for key, value in one.items() if key not in shares}
        fields["pieces"] = one.get("piece_count", len(own))
        records += form.RECORD.pack(*(fields.get(field, 0) for field, _ in form.RECORD_FIELDS))
        for kind, disk, offset, length in own:
            pieces += form.PIECE.pack(kind, disk, 0, offset, length)
        for heap, share in shares.items():
            heaps[heap] += share
    lengths = [len(heap) for heap in heaps.values()]
    payload = form.HEADS.pack(*(heads or (len(rows), len(pieces) // form.PIECE.size, *lengths)))
    payload += records + pieces + b"".join(heaps.values())
    return frames.frame(FrameKind.BATCH, payload)


def entry(name: str, **more: Any) -> bytes:
    return batch(row(name, **more))


def pieces(*packed: tuple[int, int, int, int], **more: Any) -> bytes:
    """A file of 100 bytes in these pieces: kind, disk, offset, length."""
    return batch(row("file", size=100, pieces=packed, **more))


def packed(told: bytes) -> str:
    """Return an expression for these bytes that an argument of a command can hold."""
    return f"zlib.decompress({zlib.compress(told)!r})"


def lying(program: str, *, seconds: float = 20.0, reads_max: int = 50) -> ParserRun:
    """Start a parser of our own making: ``w`` writes, ``r`` reads."""
    prelude = "import os, sys, time, signal, zlib\nw = lambda data: os.write(1, data)\n"
    prelude += "r = lambda n: os.read(0, n)\n"
    command = [sys.executable, "-S", "-c", prelude + program]
    return ParserRun(DISKS, limits=ParserLimits(run_seconds=seconds, reads_max=reads_max), command=command)


def gone(pid: int) -> bool:
    """Say whether a process is no more; a run waits for its own, so this needs no patience."""
    return not Path(f"/proc/{pid}").exists()


LIES = {
    "garbage": b"garbage " * 1000,
    "huge frame": frames.HEADER.pack(FrameKind.BATCH, 1 << 31),
    "unknown kind": frames.HEADER.pack(99, 0),
    "kind of the parent": frames.frame(FrameKind.BYTES, b"x"),
    "read beyond the end": frames.encode_read(0, SIZE - 10, 11),
    "read far beyond": frames.encode_read(0, (1 << 64) - 1, 1),
    "read too large": frames.encode_read(0, 0, frames.READ_BYTES_MAX + 1),
    "read of nothing": frames.encode_read(0, 0, 0),
    "read of no disk": frames.encode_read(1, 0, 1),
    "read cut short": frames.frame(FrameKind.READ, b"\0"),
    "volume cut short": frames.frame(FrameKind.VOLUME, b"\0"),
    "two volumes": FIRST,
    "batch cut short": frames.frame(FrameKind.BATCH, b"\0"),
    "batch of nothing": batch(),
    "batch that claims more": batch(row("a"), heads=(2, 0, 1, 0, 0, 0, 0)),
    "batch that claims far more": batch(row("a"), heads=(0xFFFFFFFF, 0, 1, 0, 0, 0, 0)),
    "heap too long": batch(row("a", name_bytes=2)),
    "heap too short": batch(row("ab", name_bytes=1)),
    "name with a slash": entry("../etc"),
    "name of a parent": entry(".."),
    "name of itself": batch(row("a"), row(".")),
    "name with NUL": entry("a\0b"),
    "no name": entry(""),
    "long name": entry("n" * (frames.NAME_BYTES_MAX + 1)),
    "no type": entry("a", mode=0o644),
    "type unknown": entry("a", mode=0o030644),
    "mode too large": entry("a", mode=0o1100644),
    "target of a file": entry("a", target=b"b"),
    "target with NUL": entry("a", mode=0o120777, target=b"b\0"),
    "long target": entry("a", mode=0o120777, target=b"t" * 5000),
    "size beyond reason": entry("a", size=1 << 63),
    "attributes cut": entry("a", attribute=b"\1\0\5\0\0\0ab"),
    "attribute without name": entry("a", attribute=form.ATTRIBUTE.pack(0, 1) + b"v"),
    "attributes without end": entry("a", attribute=bytes(form.ATTRIBUTES_BYTES_MAX + 1)),
    "flaw without end": entry("a", flaw=bytes(301)),
    "a file that is a directory": entry("a", directory=1),
    "directory out of turn": entry("a", mode=DIRECTORY_MODE, directory=5),
    "parent that did not come": entry("a", parent=1),
    "a root in a list": batch(ROOT),
    "words in a list": frames.encode_unread(0, "why"),
    "reason unknown": frames.encode_failed(77, "?"),
    "failed cut short": frames.frame(FrameKind.FAILED),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_list_is_refused(lie: str) -> None:
    run = lying(f"w({packed(FIRST + LIES[lie] + DONE)}); time.sleep(60)")
    with pytest.raises(Corruption, match="gave what it may not"):
        sandbox.list_entries(run, "disk0", "/")
    assert gone(run.pid)


FIRST_LIES = {
    "nothing": DONE,
    "an entry": entry("a"),
    "another volume": frames.encode_volume(replace(VOLUME, key="disk1")),
    "one that is not readable": frames.encode_volume(replace(VOLUME, readable=False)),
    "one of boundless size": frames.encode_volume(replace(VOLUME, size_bytes=(1 << 64) - 1)),
}


@pytest.mark.parametrize("lie", FIRST_LIES)
def test_lies_about_the_volume_are_refused(lie: str) -> None:
    for use in (sandbox.list_entries, sandbox.find_file):
        with pytest.raises(Corruption, match="gave what it may not"):
            use(lying(f"w({FIRST_LIES[lie] + DONE!r}); time.sleep(60)"), "disk0", "/file")


@pytest.mark.parametrize("told", [FIRST + FIRST, entry("a"), FIRST + frames.encode_unread(0, "x")])
def test_a_lying_survey_is_refused(told: bytes) -> None:
    with pytest.raises(Corruption, match="gave what it may not"):
        sandbox.survey(lying(f"w({told + DONE!r}); time.sleep(60)"))


WALK_LIES = {
    "nothing": DONE,
    "no root": entry("a"),
    "root without a number": batch({**ROOT, "directory": form.NO_DIRECTORY}),
    "root that is a file": batch({**ROOT, "mode": FILE_MODE}),
    "two roots": batch(ROOT) + batch({**ROOT, "directory": 1}),
    "a root later": batch(ROOT, {**ROOT, "directory": 1}),
    "a child before its parent": batch(ROOT, row("a", parent=1), row("d", mode=DIRECTORY_MODE, directory=1)),
    "a directory in itself": batch(ROOT, row("d", mode=DIRECTORY_MODE, directory=1, parent=1)),
    "a number twice": batch(ROOT, row("d", mode=DIRECTORY_MODE, directory=0)),
    "words about no directory": batch(ROOT) + frames.encode_unread(1, "x"),
    "words cut short": batch(ROOT) + frames.frame(FrameKind.UNREAD, b"\0"),
    "a path without end": batch(
        ROOT, *(row("n" * 255, mode=DIRECTORY_MODE, parent=at, directory=at + 1) for at in range(20))
    ),
    "a file without its pieces": batch(ROOT, row("a", size=1)),
}


@pytest.mark.parametrize("lie", WALK_LIES)
def test_a_lying_walk_is_refused(lie: str) -> None:
    run = lying(f"w({FIRST + WALK_LIES[lie] + DONE!r}); time.sleep(60)")
    with pytest.raises(Corruption, match="gave what it may not"):
        list(sandbox.walk(run, "disk0"))
    assert gone(run.pid)


FILE_LIES = {
    "nothing": DONE,
    "two entries": batch(row("file"), row("file")),
    "two batches": entry("file") + entry("file"),
    "another file": entry("other"),
    "pieces of a directory": batch(row("file", mode=DIRECTORY_MODE, pieces=((2, 0, 0, 1),))),
    "pieces missing": pieces(),
    "pieces short": pieces((1, 0, 0, 99)),
    "pieces beyond the size": pieces((1, 0, 0, 101)),
    "pieces that overflow": pieces(*[(2, 0, 0, 1 << 60)] * 16, (2, 0, 0, 100)),
    "some pieces and a flaw": pieces((1, 0, 0, 99), flaw=b"broken"),
    "empty piece": pieces((1, 0, 0, 0), (1, 0, 0, 100)),
    "outside the image": pieces((1, 0, SIZE - 99, 100)),
    "far outside": pieces((1, 0, (1 << 64) - 1, 100)),
    "longer than the image": batch(row("file", size=SIZE + 1, pieces=((1, 0, 0, SIZE + 1),))),
    "no such disk": pieces((1, 1, 0, 100)),
    "zeros with an offset": pieces((2, 0, 5, 100)),
    "zeros on a disk": pieces((2, 1, 0, 100)),
    "literal without bytes": pieces((3, 0, 0, 100)),
    "literal too long": pieces((3, 0, 0, 100), literal=bytes(101)),
    "literal of nothing": pieces((2, 0, 0, 100), literal=b"x"),
    "literal without end": batch(
        row("file", size=1 << 17, pieces=((3, 0, 0, 1 << 17),), literal=bytes(1 << 17))
    ),
    "kind unknown": pieces((9, 0, 0, 100)),
    "pieces of nobody": pieces((1, 0, 0, 100), piece_count=0),
    "more pieces than there are": pieces((1, 0, 0, 100), piece_count=2),
}


@pytest.mark.parametrize("lie", FILE_LIES)
def test_lies_about_a_file_are_refused(lie: str) -> None:
    run = lying(f"w({packed(FIRST + FILE_LIES[lie] + DONE)}); time.sleep(60)")
    with pytest.raises(Corruption, match="gave what it may not"):
        sandbox.find_file(run, "disk0", "/file")
    assert gone(run.pid)


def test_what_is_true_passes() -> None:
    share = form.ATTRIBUTE.pack(6, 2) + b"user.a" + b"\0\1"
    told = pieces((1, 0, 7, 50), (2, 0, 0, 48), (3, 0, 0, 2), literal=b"ab", attribute=share, flaw=b"odd\n")
    run = lying(f"w({FIRST + told + DONE!r}); time.sleep(60)")
    volume, found, parts = sandbox.find_file(run, "", "/d/file")
    assert volume == VOLUME
    assert (found.path, found.name, found.size_bytes) == ("/d/file", "file", 100)
    assert (found.attributes, found.flaw) == (((b"user.a", b"\0\1"),), "odd?")
    assert [piece.length for piece in parts] == [50, 48, 2]
    assert parts[-1].literal == b"ab"
    assert gone(run.pid)


def test_a_true_walk_passes() -> None:
    told = batch(ROOT, row("d", mode=DIRECTORY_MODE, directory=1), row("a", size=3, flaw=b"torn"))
    told += batch(
        row("e", parent=1, mode=DIRECTORY_MODE, directory=2), row("b", parent=2, mode=0o120777, target=b"x")
    )
    told += frames.encode_unread(2, "half of it")
    run = lying(f"w({FIRST + told + DONE!r}); time.sleep(60)")
    volume, one, two, unread = sandbox.walk(run, "")
    assert volume == VOLUME
    paths = Paths()
    assert isinstance(one, Batch)
    assert isinstance(two, Batch)
    found = [file for batch in (one, two) for file, _ in paths.entries(batch)]
    assert [file.path for file in found] == ["/", "/d", "/a", "/d/e", "/d/e/b"]
    assert [file.flaw for file in found] == ["", "", "torn", "", ""]
    assert unread == Unread(2, "half of it")
    assert gone(run.pid)


def test_a_walk_that_is_left_ends_its_parser() -> None:
    run = lying(f"w({FIRST + batch(ROOT)!r}); time.sleep(60)")
    walk = sandbox.walk(run, "")
    assert next(walk) == VOLUME
    walk.close()  # type: ignore[attr-defined]
    assert gone(run.pid)


def test_one_name_for_ever_is_cut() -> None:
    told = packed(batch(*[row("same")] * 1000))
    run = lying(f"w({FIRST!r})\ntold = {told}\nwhile True: w(told)", seconds=30)
    with pytest.raises(Corruption, match="more than 100000 names"):
        sandbox.list_entries(run, "", "/")
    assert gone(run.pid)


def test_endless_names_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ENTRIES_MAX", 1000)
    before, after = entry("0000").split(b"0000")
    program = f"[w({before!r} + b'%04d' % number + {after!r}) for number in range(1001)]; time.sleep(60)"
    run = lying(f"w({FIRST!r}); {program}")
    with pytest.raises(Corruption, match="more than 1000 names"):
        sandbox.list_entries(run, "", "/")


def test_endless_reads_are_cut() -> None:
    run = lying(f"while True: w({frames.encode_read(0, 0, 64 * KIB)!r}); r(100000)")
    with pytest.raises(WrongState, match="more than 50 reads"):
        sandbox.list_entries(run, "", "/")
    assert gone(run.pid)


@pytest.mark.parametrize(
    "program",
    [
        "time.sleep(600)",
        "while True: pass",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        # asks, and never takes what it is given: the parent must not wait in a write
        f"w({frames.encode_read(0, 0, 64 * KIB) * 40!r}); time.sleep(600)",
    ],
)
def test_a_parser_that_hangs_is_killed(program: str) -> None:
    started = time.monotonic()
    run = lying(program, seconds=0.7)
    with pytest.raises(WrongState, match=r"could not be read in 0\.7 s"):
        sandbox.list_entries(run, "", "/")
    assert gone(run.pid)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        (f"w({FIRST[:20]!r}); os.kill(os.getpid(), signal.SIGABRT)", "SIGABRT"),
    ],
)
def test_a_parser_that_dies_is_reported(program: str, how: str) -> None:
    run = lying(program)
    with pytest.raises(WrongState, match=how):
        sandbox.list_entries(run, "", "/")
    assert gone(run.pid)


def test_messages_of_a_parser_are_made_safe() -> None:
    told = frames.encode_failed(0, "no \x1b[2J file")
    run = lying(f"w({told!r}); time.sleep(60)")
    with pytest.raises(NotFound, match=r"no \?\[2J file"):
        sandbox.list_entries(run, "", "/")


def test_a_parser_can_open_and_start_nothing(tmp_path: Path) -> None:
    """The limits of the real parser, tried from within by a module that imports it."""
    tried = """
from backup_server.catalog import parser
import os, socket
parser.limit(10, 512 << 20)
said = []
for what in (lambda: os.open('/etc/passwd', os.O_RDONLY), socket.socket, os.fork, os.pipe):
    try: said.append(str(what()))
    except OSError as error: said.append(type(error).__name__)
os.write(1, ' '.join(said).encode())
"""
    root = Path(sandbox.__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", tried], cwd=root, capture_output=True, timeout=30, check=True, env={}
    )
    assert ended.stdout.decode().split() == ["OSError", "OSError", "BlockingIOError", "OSError"]


def test_limits_of_memory_and_cpu_hold() -> None:
    root = Path(sandbox.__file__).resolve().parents[2]
    prelude = "from backup_server.catalog import parser\nparser.limit(1, 256 << 20)\n"
    for program, code in (("while True: pass", -signal.SIGKILL), ("bytearray(300 << 20)", 1)):
        command = [sys.executable, "-c", prelude + program]
        ended = subprocess.run(command, cwd=root, capture_output=True, timeout=30, check=False, env={})
        assert ended.returncode == code
        assert (b"MemoryError" in ended.stderr) == (code == 1)


def test_nothing_is_left_of_the_parsers() -> None:
    assert listed(BytesImage(golden_image("ext4-fast-commit")), "/")
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [command for command in commands if b"backup_server.catalog.parser" in command]
