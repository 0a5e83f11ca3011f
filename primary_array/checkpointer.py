"""Write checkpoints: pages that changed, then the file that names them, then away with what is old.

Owns: the order of these steps, and the thread that takes them beside commits.
Invariants:
  H1 new pages are durable before the checkpoint that names them is published, and that before
     older checkpoints go, and those before older journals.
  H2 one checkpoint is written at a time; commits go on meanwhile, into the new journal.
  H3 a full disk leaves things as they are, to be tried again after more journal.
Callers: MapCommit asks for one when its journal is long; ``close`` writes the last.
Format: docs/formats/pool-v2.md. Why: docs/decisions/0076-pages-are-written-once.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, OutOfSpace, Overloaded
from arraylift.logs import get_logger
from primary_array import map_checkpoint, map_journal
from primary_array.map_commit import MapCommit, Rotation
from primary_array.page_file import PageFile
from primary_array.reserve import Reserve
from primary_array.superblock import Layout

_log = get_logger("checkpointer")


class Checkpointer:
    """For one pool. ``background``: a thread writes; otherwise the commit that asks does, and holds
    the others up, which makes every step of a test repeatable."""

    def __init__(
        self,
        files: Files,
        layout: Layout,
        *,
        commit: MapCommit,
        pages: PageFile,
        reserve: Reserve,
        background: bool = False,
    ) -> None:
        self._files = files
        self._layout = layout
        self._commit = commit
        self._pages = pages
        self._reserve = reserve
        self._one = threading.Lock()  # H2; taken before the commit lock, but by the inline way
        self._wanted = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)
            self._thread.start()
            commit.on_journal_full = self._wanted.set
        else:
            commit.on_journal_full = self._write_inside_if_free

    # -- ways to one ------------------------------------------------------------------------

    def write(self) -> None:
        """Write a checkpoint while commits go on. Raises OutOfSpace, StoreFailed."""
        with self._one:
            with self._commit.transaction():
                rotation = self._commit.rotate()
            if rotation is None:
                return
            with self._commit.guarded():
                done = self._publish(rotation)
            with self._commit.transaction():
                self._finish(rotation, done=done)

    def write_inside(self) -> None:
        """Write a checkpoint inside the caller's transaction. Errors as ``write``."""
        rotation = self._commit.rotate()
        if rotation is not None:
            self._finish(rotation, done=self._publish(rotation))

    def _write_inside_if_free(self) -> None:
        """The inline way: a commit has its lock already, and waits for nobody; the next one asks again."""
        if self._one.acquire(blocking=False):
            try:
                self.write_inside()
            finally:
                self._one.release()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let no checkpoint be written; what is being written ends first."""
        with self._one:
            yield

    def rewrite(self) -> None:
        """Write a checkpoint with every page anew, where what is there is damaged (pool_check)."""
        with self._one, self._commit.transaction():
            rotation = self._commit.rotate()
            if rotation is not None:
                for page in map_checkpoint.Shared(rotation.captured.maps).pages:
                    page.home = 0
                self._finish(rotation, done=self._publish(rotation))

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()  # before the look, so that no call of ``close`` is cleared away
            if self._stopping:
                return
            try:
                self.write()
            except ArrayliftError as error:  # callers meet a failed store themselves
                _log.error("checkpoint_failed", error=str(error))

    # -- steps ------------------------------------------------------------------------------

    def _publish(self, rotation: Rotation) -> bool:
        """Write pages and checkpoint (H1); False if the disk is full (H3)."""
        shared = map_checkpoint.Shared(rotation.captured.maps)
        fresh = [page for page in shared.pages if not page.home]
        try:
            new = dict(zip(map(id, fresh), self._pages.store(fresh), strict=True))
            homes = [new.get(id(page), (page.home, page.checksum)) for page in shared.pages]
            parts = list(
                map_checkpoint.encode(
                    rotation.captured, shared, homes, number=rotation.number, sequence=rotation.sequence
                )
            )
            path = self._layout.checkpoint(rotation.number)
            self._files.publish(path, parts, label=map_checkpoint.LABEL)
        except (OutOfSpace, Overloaded):
            return False
        for page, (place, checksum) in zip(shared.pages, homes, strict=True):
            page.checksum, page.home = checksum, place  # in this order: a check that runs looks at both
        self._pages.keep(place for place, _ in homes)
        return True

    def _finish(self, rotation: Rotation, *, done: bool) -> None:
        if not done:
            self._commit.put_rotation_off()
            return
        remove_older(self._files, self._layout, rotation.number)
        self._reserve.restore()

    def close(self) -> None:
        """Stop the thread, then leave everything in a checkpoint and an empty journal."""
        self._stopping = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        self._commit.on_journal_full = lambda: None
        try:
            with self._commit.transaction():
                if self._commit.worth_a_checkpoint:
                    self.write_inside()
        finally:
            try:
                self._commit.close()
            finally:
                self._pages.close()


def remove_older(files: Files, layout: Layout, number: int) -> None:
    """Remove what checkpoint ``number`` replaced; checkpoints first, so that none stands without
    its journals (H1)."""
    for old in layout.checkpoints(files):
        if old < number:
            files.remove(layout.checkpoint(old), label=map_checkpoint.LABEL)
    for old in layout.journals(files):
        if old < number:
            files.remove(layout.journal(old), label=map_journal.LABEL)
