"""A bounded cache that loads what it lacks, each thing once however many ask.

Invariants:
  L1 the sizes of what is kept never add up to more than ``bytes_max``; a thing larger
     than that is handed out and not kept.
  L2 concurrent callers of one key share one load, and its error.
Callers: any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LoadingCache(Generic[K, V]):
    """Least recently used goes first."""

    def __init__(self, *, bytes_max: int, load: Callable[[K], tuple[V, int]]) -> None:
        """``load`` returns a value and its size in bytes; it may raise."""
        self._bytes_max = bytes_max
        self._load = load
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._loading: dict[K, Future[V]] = {}
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        return self._bytes

    def peek(self, key: K) -> V | None:
        """Return what is kept, without loading."""
        with self._lock:
            kept = self._kept.get(key)
            return kept[0] if kept else None

    def get_if_started(self, key: K) -> V | None:
        """Return what is kept, or what somebody loads now, with his error; else None."""
        with self._lock:
            kept = self._kept.get(key)
            if kept:
                self._kept.move_to_end(key)
                return kept[0]
            shared = self._loading.get(key)
        return None if shared is None else shared.result()

    def get(self, key: K) -> V:
        """Return the value, loading it if need be (L2)."""
        with self._lock:
            kept = self._kept.get(key)
            if kept:
                self._kept.move_to_end(key)
                return kept[0]
            shared = self._loading.get(key)
            mine = shared or self._loading.setdefault(key, Future())
        return self._load_for_all(key, mine) if shared is None else shared.result()

    def _load_for_all(self, key: K, mine: Future[V]) -> V:
        try:
            value, size = self._load(key)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            self._keep(key, value, size)
        mine.set_result(value)
        return value

    def drop(self, key: K) -> None:
        """Forget a key."""
        with self._lock:
            _, size = self._kept.pop(key, (None, 0))
            self._bytes -= size

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: K, value: V, size: int) -> None:
        if size > self._bytes_max:
            return
        while self._bytes + size > self._bytes_max:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
        self._kept[key] = (value, size)
        self._bytes += size
        assert self._bytes <= self._bytes_max, "L1"
