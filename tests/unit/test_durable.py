"""RealFiles on real file systems: kill -9 at every step, short writes, O_DIRECT, holes, handles."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.durable import Files, OsCalls, RealFiles
from arraylift.errors import ArrayliftError, Corruption, NotFound, OutOfSpace, StoreFailed, WrongState
from arraylift.failpoints import Failpoints
from tests.programs import lacking

PAGE = 4096
OLD, NEW = b"old" * 50_000, b"newer" * 50_000

_CHILD = """
import sys
from arraylift.durable import RealFiles
from arraylift.failpoints import Failpoints

failpoints = Failpoints()
files = RealFiles(failpoints)
root, spec = sys.argv[1:]
lock = files.lock(root)
failpoints.arm(spec)
{body}
print("answered", flush=True)
"""

PUBLISH_STEPS = ("open", "create", "write", "fsync", "rename", "fsync_dir")


def run_child(root: Path, spec: str, body: str) -> bool:
    """Run ``body`` in a process of its own; True if it answered, False if the failpoint killed it."""
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD.format(body=body), str(root), spec],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr.decode()
    assert (ended.stdout == b"answered\n") == (ended.returncode == 0)
    return ended.returncode == 0


@pytest.fixture
def files() -> RealFiles:
    return RealFiles(Failpoints())


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A directory on tmpfs."""
    if not os.path.isdir("/dev/shm"):
        lacking("no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


# -- kill -9 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", PUBLISH_STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_publish_killed_at_any_step_leaves_old_or_new(
    tmp_path: Path, files: RealFiles, step: str, when: str
) -> None:
    path = str(tmp_path / "a")
    files.publish(path, [OLD], label="t")
    body = "files.publish(root + '/a', [b'newer' * 50_000], label='t')"
    assert not run_child(tmp_path, f"t.{step}.{when}=kill", body), "the failpoint is never hit"
    renamed = (step, when) in {("rename", "after"), ("fsync_dir", "before"), ("fsync_dir", "after")}
    assert files.read(path) == (NEW if renamed else OLD), "D1"
    left = {name for name in os.listdir(tmp_path) if name.endswith(".tmp")}
    assert files.sweep(str(tmp_path)) == len(left)
    assert sorted(os.listdir(tmp_path)) == ["a", "lock"]
    files.lock(str(tmp_path)).close()


def test_every_failpoint_of_publish_is_in_the_list_above(tmp_path: Path) -> None:
    seen: list[str] = []

    class Recording(Failpoints):
        def hit(self, name: str) -> None:
            seen.append(name)

    RealFiles(Recording()).publish(str(tmp_path / "a"), [NEW], label="t")
    assert seen == [f"t.{step}.{when}" for step in PUBLISH_STEPS for when in ("before", "after")]


def test_a_log_killed_at_any_step_keeps_what_was_synced(tmp_path: Path, files: RealFiles) -> None:
    body = (
        "log = files.append_file(root + '/log', label='l')\n"
        "log.append(b'one.')\n"
        "log.sync()\n"
        "print('one.', flush=True, file=open(root + '/acked', 'w'))\n"
        "log.append(b'two.')\n"
        "log.truncate(4)\n"
        "log.append(b'six.')\n"
        "log.sync()\n"
    )
    hits, answered, content = 0, False, b""
    while not answered:
        hits += 1
        directory = tmp_path / str(hits)
        directory.mkdir()
        answered = run_child(directory, f"l.*=kill@{hits}", body)
        content = files.read(str(directory / "log")) if files.exists(str(directory / "log")) else b""
        assert content in {b"", b"one.", b"one.two.", b"one.six."}
        if (directory / "acked").exists():
            assert content.startswith(b"one."), "D2"
    assert content == b"one.six."
    assert hits - 1 == 22, "2 for each of open, create, fsync_dir, 3 appends, truncate, 4 syncs"


def test_a_killed_holder_frees_the_lock_and_its_token_is_never_reused(tmp_path: Path) -> None:
    assert not run_child(tmp_path, "here=kill", "failpoints.hit('here')")
    hold = _CHILD.format(body="print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path, ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WrongState, match=f"pid {holder.pid} on "):
            RealFiles(Failpoints()).lock(str(tmp_path))
        holder.kill()
        holder.wait()
    lock = RealFiles(Failpoints()).lock(str(tmp_path))
    assert lock.token == 3
    lock.close()


# -- the kernel's moods ----------------------------------------------------------------------


class MoodyCalls(OsCalls):
    """Short writes and reads, a file system without holes, calls that fail."""

    def __init__(self, *, piece_bytes: int = 1 << 30, errors: dict[str, int] | None = None) -> None:
        super().__init__()
        self.piece_bytes = piece_bytes
        self.errors = errors or {}

    def _fail(self, call: str) -> None:
        if call in self.errors:
            raise OSError(self.errors[call], os.strerror(self.errors[call]))

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        return super().pwrite(descriptor, data[: self.piece_bytes], offset)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        self._fail("pread")
        return super().pread(descriptor, min(length, self.piece_bytes), offset)

    def preadv(self, descriptor: int, into: memoryview, offset: int) -> int:
        self._fail("preadv")
        return super().preadv(descriptor, into[: self.piece_bytes], offset)

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        self._fail("punch")
        super().punch(descriptor, offset, length)

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._fail("ftruncate")
        super().ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._fail("close")

    def drop_cache(self, descriptor: int) -> None:
        self._fail("drop_cache")
        super().drop_cache(descriptor)


def moody(*, piece_bytes: int = 1 << 30, **errors: int) -> RealFiles:
    return RealFiles(Failpoints(), system=MoodyCalls(piece_bytes=piece_bytes, errors=errors))


def test_short_writes_and_reads_are_continued(tmp_path: Path) -> None:
    files = moody(piece_bytes=7)
    content = bytes(range(200))
    files.publish(str(tmp_path / "a"), [content, content], label="t")
    assert files.read(str(tmp_path / "a"), 3) == (content + content)[3:]
    log = files.append_file(str(tmp_path / "a"), label="l")
    log.append(content)
    slots = files.random_file(str(tmp_path / "a"), label="r")
    into = bytearray(700)
    slots.read_into(0, memoryview(into))
    assert into == content * 3 + bytes(100)


def test_failing_reads_are_corruption_and_poison_nothing(tmp_path: Path) -> None:
    files = moody(pread=errno.EIO, preadv=errno.EIO)
    files.publish(str(tmp_path / "a"), [b"x"], label="t")
    with pytest.raises(Corruption, match="cannot be read"):
        files.read(str(tmp_path / "a"))
    slots = files.random_file(str(tmp_path / "a"), label="r")
    with pytest.raises(Corruption, match="cannot be read"):
        slots.read_into(0, memoryview(bytearray(1)))
    slots.write(0, b"y")
    slots.sync()


@pytest.mark.parametrize("way", ["exists", "read", "publish"])
def test_an_error_is_gone_with_who_caught_it(tmp_path: Path, files: RealFiles, way: str) -> None:
    """Held by a frame of its own traceback it would keep its caller's frames until Python collects."""
    missing = str(tmp_path / "none" / "file")

    def lingering() -> int:
        return sum(isinstance(one, OSError | ArrayliftError) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = lingering()
        with contextlib.suppress(NotFound):
            if way == "publish":
                files.publish(missing, [b"x"], label="t")
            elif way == "read":
                files.read(missing)
            else:
                assert not files.exists(missing)
        assert lingering() == before
    finally:
        gc.enable()


def test_close_and_cache_advice_may_fail(tmp_path: Path) -> None:
    files = moody(close=errno.EIO, drop_cache=errno.EINVAL)
    files.publish(str(tmp_path / "a"), [b"x"], label="t")
    files.append_file(str(tmp_path / "a"), label="l").close()
    assert files.read(str(tmp_path / "a")) == b"x"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_holes_punch_writes_zeros_and_never_grows_the_file(tmp_path: Path, code: int) -> None:
    slots = moody(punch=code).random_file(str(tmp_path / "slots"), label="r")
    slots.write(0, b"x" * (3 << 20))
    slots.punch(PAGE, 2 << 20)
    slots.punch((3 << 20) - 5, 1 << 40)
    into = bytearray(3 << 20)
    slots.read_into(0, memoryview(into))
    assert into[:PAGE] == b"x" * PAGE
    assert not any(into[PAGE : PAGE + (2 << 20)])
    assert into[PAGE + (2 << 20) : -5] == b"x" * ((1 << 20) - PAGE - 5)
    assert into[-5:] == bytes(5)
    assert os.path.getsize(tmp_path / "slots") == 3 << 20


def test_a_punch_that_fails_poisons(tmp_path: Path) -> None:
    slots = moody(punch=errno.EIO).random_file(str(tmp_path / "slots"), label="r")
    with pytest.raises(StoreFailed):
        slots.punch(0, PAGE)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel cuts writes short at ``size`` and then refuses them: a full disk in mid-write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_in_mid_write_leaves_nothing(tmp_path: Path, files: RealFiles) -> None:
    files.publish(str(tmp_path / "a"), [b"old"], label="t")
    log = files.append_file(str(tmp_path / "log"), label="l")
    log.append(b"x" * 6000)
    slots = files.random_file(str(tmp_path / "slots"), label="r")
    with file_size_limit(8192):
        with pytest.raises(OutOfSpace):
            files.publish(str(tmp_path / "a"), [b"1" * 8000, b"2" * 8000], label="t")
        with pytest.raises(OutOfSpace):
            log.append(b"y" * 6000)
        with pytest.raises(OutOfSpace):
            slots.write(4096, b"z" * 8192)
        assert files.read(str(tmp_path / "log")) == b"x" * 6000, "D4"
    assert sorted(os.listdir(tmp_path)) == ["a", "log", "slots"]
    assert files.read(str(tmp_path / "a")) == b"old"
    log.append(b"y" * 6000)
    log.sync()
    assert files.read(str(tmp_path / "log")) == b"x" * 6000 + b"y" * 6000


def test_a_log_that_cannot_be_cut_back_is_poisoned(tmp_path: Path) -> None:
    files = moody(ftruncate=errno.EIO)
    log = files.append_file(str(tmp_path / "log"), label="l")
    with file_size_limit(4096), pytest.raises(StoreFailed):
        log.append(b"y" * 6000)
    with pytest.raises(StoreFailed):
        log.append(b"y")


# -- O_DIRECT, tmpfs -------------------------------------------------------------------------


class DirectSpy(OsCalls):
    """Notes whether files were opened past the page cache."""

    def __init__(self, *, refuse: bool = False) -> None:
        super().__init__()
        self.direct: list[bool] = []
        self.refuse = refuse

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_CREAT:
            self.direct.append(bool(flags & os.O_DIRECT))
            if self.refuse and flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().open(path, flags)


def aligned(length: int) -> memoryview:
    memory = mmap.mmap(-1, length)
    memory[:] = os.urandom(length)
    return memoryview(memory)


def test_one_part_of_whole_pages_goes_past_the_cache(tmp_path: Path) -> None:
    spy = DirectSpy()
    files = RealFiles(Failpoints(), system=spy)
    view = aligned(4 * PAGE)
    for parts, direct in (
        ([view], [True]),
        ([view[:-1]], [False]),
        ([view, view], [False]),
        ([view.tobytes()], [False]),
        ([view[:0]], [False]),
    ):
        spy.direct.clear()
        files.publish(str(tmp_path / "a"), parts, label="t")
        assert spy.direct == direct
        assert files.read(str(tmp_path / "a")) == b"".join(parts)


def test_where_direct_is_refused_it_is_written_through_the_cache(tmp_path: Path) -> None:
    spy = DirectSpy(refuse=True)
    view = aligned(2 * PAGE)
    RealFiles(Failpoints(), system=spy).publish(str(tmp_path / "a"), [view], label="t")
    assert spy.direct == [True, False]
    assert (tmp_path / "a").read_bytes() == view


def test_unaligned_memory_falls_back_within_the_write(tmp_path: Path, files: RealFiles) -> None:
    view = aligned(4 * PAGE)[8 : 8 + 2 * PAGE]
    files.publish(str(tmp_path / "a"), [view], label="t")
    assert (tmp_path / "a").read_bytes() == view


def test_a_store_works_on_tmpfs(shared_memory: Path, files: Files) -> None:
    view = aligned(4 * PAGE)
    path = str(shared_memory / "a")
    files.publish(path, [view], label="t")
    assert files.read(path) == view
    slots = files.random_file(str(shared_memory / "slots"), label="r")
    slots.write(0, view)
    slots.punch(PAGE, 2 * PAGE)
    slots.sync()
    assert slots.allocated_bytes() == 2 * PAGE
    files.lock(str(shared_memory)).close()
    files.make_dirs(str(shared_memory / "b" / "c"))
    assert files.sweep(str(shared_memory)) == 0


# -- threads and handles ---------------------------------------------------------------------


def test_two_threads_publishing_one_path_never_mix(tmp_path: Path, files: RealFiles) -> None:
    path = str(tmp_path / "a")
    contents = [bytes([number]) * 100_000 for number in range(4)]
    files.publish(path, [contents[0]], label="t")
    seen: list[bytes] = []

    def publish(content: bytes) -> None:
        for _ in range(10):
            files.publish(path, [content[:50_000], content[50_000:]], label="t")
            seen.append(files.read(path))

    threads = [threading.Thread(target=publish, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 40
    assert set(seen) <= set(contents)
    assert os.listdir(tmp_path) == ["a"]


def test_no_call_leaks_a_handle(tmp_path: Path) -> None:
    failpoints = Failpoints()
    root = str(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for step in ("", "open.after", "create.after", "fsync.before", "fsync_dir.before", "sync.before"):
        files = RealFiles(failpoints)
        with contextlib.suppress(StoreFailed):
            failpoints.arm(f"t.{step}=eio" if step else "")
            files.publish(root + "/a", [b"x"], label="t")
            log = files.append_file(root + "/a", label="t")
            log.close()
        with contextlib.suppress(StoreFailed):
            files.lock(root).close()
        assert len(os.listdir("/proc/self/fd")) == before, step
