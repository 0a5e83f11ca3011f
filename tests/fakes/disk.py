"""``FakeFiles``: the real durable code over a disk in memory whose power can be cut.

It is ``RealFiles`` over a simulated kernel, so what the tests crash is the algorithm that ships.

What is assumed of the disk
- Nothing is durable until its fsync returns. A file's fsync makes its content and size durable, not
  its name; a directory's fsync makes the names in it durable, not the content of the files, nor the
  directory's own name. (ext4 gives more; we do not lean on it.)
- Unsynced writes of one file are lost, kept or torn, each for itself, in any mixture: a longer write
  kept over an earlier one that was lost leaves zeros between.
- A sector of 512 bytes that was durable before is written whole or not at all. An in-place write of up
  to four sectors keeps any subset of them, a longer one a prefix. A write that grows the file keeps any
  prefix (some cut points are tried), or only its size, with zeros for data.
- truncate and punch happen or do not.
- create, mkdir, rename and unlink are atomic each, and happen or do not, in any combination in which the
  changes of one name keep their order. A file that no name leads to is gone.
- A failed fsync loses what was pending: the cache goes on showing it, later fsyncs succeed, the disk
  never gets it, unless it already had by then.
- Locks, handles and the cache die with the machine; with the process (``after_kill``) only locks and handles.
- Durable bytes do not change by themselves; for that there are ``corrupt`` and ``fail_reads``.

Use
    for cut, files in every_power_cut(run):          # run(FakeFiles) is the sequence under test
        reopen the store on files, and check what must hold

or by hand: ``files.crash_after(n)``, catch ``PowerCut``, go through ``files.post_crash_states()``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from arraylift.durable import RealFiles
from arraylift.failpoints import Failpoints
from tests.fakes.crash_states import states
from tests.fakes.kernel import FakeKernel, PowerCut

__all__ = ["STATES_MAX", "FakeFiles", "PowerCut", "every_power_cut"]

STATES_MAX = 256
"""Post-crash states given out for one moment, unless told otherwise."""

_ERRNO = {"eio": errno.EIO, "enospc": errno.ENOSPC}


class FakeFiles(RealFiles):
    """Files over a simulated machine. Any thread, as RealFiles.

    ``capacity_bytes`` makes the disk finite (pages of 4 KiB; names are free).
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        failpoints: Failpoints | None = None,
        kernel: FakeKernel | None = None,
        story: str = "new disk",
    ) -> None:
        self.kernel = kernel or FakeKernel(capacity_bytes)
        self.story = story
        """How this disk came to be; for the message of a failing assert."""
        super().__init__(failpoints or Failpoints(), system=self.kernel)

    # -- crashes ------------------------------------------------------------------------------

    @property
    def op_count(self) -> int:
        """Primitive changes so far (create, write, truncate, punch, fsync, mkdir, rename, unlink)."""
        return self.kernel.op_count

    @property
    def op_log(self) -> list[str]:
        """The last primitive changes, oldest first."""
        return list(self.kernel.log)

    def crash_after(self, operations: int) -> None:
        """Let ``operations`` more primitive changes pass; the one after them is in flight when the
        power goes: it raises PowerCut, and so does everything on this instance from then on."""
        self.kernel.crash_at = self.kernel.op_count + operations

    def post_crash_states(self, *, maximum: int = STATES_MAX, seed: int = 0) -> Iterator[FakeFiles]:
        """Yield the disks that may be found if the power goes (or went) at this moment.

        All of them if they are no more than ``maximum``, else the extremes and a seeded sample.
        Each is a fresh machine; this instance is not changed.
        """
        for kernel, story in states(self.kernel, maximum=maximum, seed=seed):
            yield FakeFiles(kernel=kernel, story=f"seed {seed}; {story}")

    def after_kill(self) -> FakeFiles:
        """Kill the process, not the machine: what is unsynced stays, and stays unsynced.

        This instance is dead afterwards.
        """
        return FakeFiles(kernel=self.kernel.restart(), story=f"{self.story}; process killed")

    # -- faults -------------------------------------------------------------------------------

    def fail_after(self, operations: int, kind: str) -> None:
        """Let ``operations`` more primitive changes pass and fail the next, once, with "eio" or "enospc".

        A failing write leaves its first half; everything else failing changes nothing.
        """
        self.kernel.faults[self.kernel.op_count + operations] = _ERRNO[kind]

    def fill_after(self, operations: int) -> None:
        """Let ``operations`` more primitive changes pass; then the disk is full, and stays so until
        ``set_capacity`` or a removal makes room."""
        self.kernel.full_at = self.kernel.op_count + operations

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Give the disk room, or take it."""
        self.kernel.capacity_bytes = capacity_bytes

    def set_handles_max(self, handles_max: int) -> None:
        """Let every further open fail (EMFILE) beyond so many."""
        self.kernel.handles_max = handles_max

    def corrupt(self, path: str, offset: int, bit: int = 0) -> None:
        """Flip one bit on the disk and in the cache."""
        with self.kernel.mutex:
            inode = self.kernel.resolve(path)
            assert 0 <= offset < inode.current.size, f"{path} has no byte {offset}"
            assert not inode.pending, f"sync {path} before its durable bytes are damaged"
            content = inode.current.copy()
            content.write(offset, bytes([content.read(offset, 1)[0] ^ 1 << bit]))
            inode.current = inode.durable = content

    def fail_reads(self, path: str, *, failing: bool = True) -> None:
        """Let reads of the file fail with EIO from now on, or heal it."""
        with self.kernel.mutex:
            self.kernel.resolve(path).unreadable = failing


def every_power_cut(
    run: Callable[[FakeFiles], object], *, states_max: int = STATES_MAX, seed: int = 0
) -> Iterator[tuple[int, FakeFiles]]:
    """Cut the power at each primitive change that ``run`` makes on an empty disk, and once after it.

    Yields (number of the change in flight, a post-crash state), after ``run`` has been cut: so what
    ``run`` noted as acknowledged, if it starts by forgetting its notes, is what must be there.
    """
    cut, finished = 0, False
    while not finished:
        files = FakeFiles()
        files.crash_after(cut)
        try:
            run(files)
            finished = True
        except PowerCut:
            pass
        for state in files.post_crash_states(maximum=states_max, seed=seed):
            yield cut, state
        cut += 1
