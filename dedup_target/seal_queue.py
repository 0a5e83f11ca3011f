"""The writer thread: seals full containers while the lanes fill the next ones.

Owns: the order of law 1 up to the index: container durable, then its index batch.
Invariants:
  Q1 a ticket is ``sealed`` only when its container is durable and its index batch synced.
  Q2 containers of one lane are sealed in the order in which they were filled.
  Q3 a job that fails fails its attempt; the queue goes on with the next.
  Q4 what ``admit`` refuses is not written: a tenant's quota and the target's reserve (law 17). What other
     threads are about to write for the same tenant counts.
Limits: as many jobs as the container store has buffers. Callers: submit from any
thread; jobs run on the queue's own.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from arraylift.errors import ArrayliftError, LeaseLost
from arraylift.ids import TenantId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_store import ContainerStore, SealedContainer

_log = get_logger("seal_queue")


class Ticket:
    """Stands for a container until it is sealed (Q1)."""

    __slots__ = ("sealed",)

    def __init__(self) -> None:
        self.sealed = False


@dataclass(frozen=True, slots=True)
class SealJob:
    """Seal ``buffer``; then call ``done`` with what was written, or with what went wrong."""

    buffer: ContainerBuffer
    ticket: Ticket
    done: Callable[[SealedContainer | None, ArrayliftError | None], None]


class SealQueue:
    """One writer for one storage unit."""

    def __init__(
        self,
        containers: ContainerStore,
        add: Callable[[SealedContainer], None],
        admit: Callable[[TenantId, int], None],
    ) -> None:
        """``add`` indexes a sealed container. ``admit`` gets tenant and bytes of each; raises OutOfSpace
        to refuse it."""
        self._admit = admit
        self._admitting = threading.Lock()
        self._under_way: Counter[TenantId] = Counter()
        self._containers = containers
        self._add = add
        self._jobs: queue.Queue[SealJob | None] = queue.Queue()  # bounded by the store's buffers
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="container-writer", daemon=True)
        self._thread.start()

    def submit(self, job: SealJob) -> None:
        """Queue a job; the buffer belongs to the queue from now on."""
        with self._closing:
            if not self._closed:
                self._jobs.put(job)
                return
        self._containers.release(job.buffer)
        job.done(None, LeaseLost("the target has begun to store elsewhere"))

    def seal_now(self, buffer: ContainerBuffer) -> SealedContainer:
        """Seal and index in the caller's thread, with the same order and the same errors."""
        try:
            with self._admitted(buffer.tenant, buffer.file_bytes):
                sealed = self._containers.seal(buffer)
                self._add(sealed)
        finally:
            self._containers.release(buffer)
        _log.info(
            "container_sealed",
            container=sealed.container_id,
            kind=sealed.kind.name.lower(),
            record_count=len(sealed.directory),
            file_bytes=sealed.file_bytes,
        )
        return sealed

    @contextlib.contextmanager
    def _admitted(self, tenant: TenantId, file_bytes: int) -> Iterator[None]:
        """Have so much admitted, and counted until it is indexed (Q4). Raises OutOfSpace."""
        with self._admitting:
            self._admit(tenant, self._under_way[tenant] + file_bytes)
            self._under_way[tenant] += file_bytes
        try:
            yield
        finally:
            with self._admitting:
                self._under_way[tenant] -= file_bytes

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            sealed, error = attempt(partial(self.seal_now, job.buffer), "sealing a container")
            job.ticket.sealed = sealed is not None
            job.done(sealed, error)

    def close(self) -> None:
        """Seal what is queued, then end. What comes later is refused."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
