"""Run long work beside a streaming call: progress while it runs, its result or its error at the end.

Limits: NEWS_MAX reports wait for a slow reader; older ones are dropped for newer. A caller
who leaves sets ``cancelled``; the work ends by itself, soon after.
Callers: edges, in the call's handler thread; the work has a thread of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import grpc

from arraylift.errors import ArrayliftError, Cancelled
from arraylift.outcome import attempt

NEWS_MAX = 4
_POLL_SECONDS = 0.5

T = TypeVar("T")


class _End(Generic[T]):
    def __init__(self, result: T | None, error: ArrayliftError | None) -> None:
        self.result = result
        self.error = error


def stream_long_call(
    context: grpc.ServicerContext,
    run: Callable[[Callable[[T], None]], T],
    *,
    cancelled: threading.Event,
    what: str,
) -> Iterator[T]:
    """Yield what ``run`` reports through its argument, then what it returns. Raises its error."""
    news: queue.Queue[T | _End[T]] = queue.Queue(NEWS_MAX)
    if not context.add_callback(cancelled.set):
        raise Cancelled("the caller left")  # before the work began: nobody would ever stop it

    def put(item: T | _End[T]) -> None:
        while True:
            try:
                return news.put_nowait(item)
            except queue.Full:
                try:
                    news.get_nowait()
                except queue.Empty:
                    continue

    def work() -> None:
        put(_End(*attempt(lambda: run(put), what)))

    threading.Thread(target=work, name=what[:40], daemon=True).start()
    while True:
        try:
            item = news.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if not context.is_active():
                raise Cancelled("the caller left") from None
            continue
        if not isinstance(item, _End):
            yield item
        elif item.error is not None:
            raise item.error
        else:
            assert item.result is not None, "long work returns what it did"
            yield item.result
            return
