"""A bounded cache that loads each thing once."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from arraylift.errors import NotFound
from dedup_target import loading_cache
from dedup_target.loading_cache import LoadingCache


def test_the_least_recently_used_goes_first() -> None:
    loads: list[int] = []

    def load(key: int) -> tuple[str, int]:
        loads.append(key)
        return str(key), 10

    cache: LoadingCache[int, str] = LoadingCache(bytes_max=20, load=load)
    assert [cache.get(key) for key in (1, 2, 1, 3, 1, 2)] == ["1", "2", "1", "3", "1", "2"]
    assert loads == [1, 2, 3, 2]
    assert cache.kept_bytes == 20
    cache.drop(1)
    assert cache.kept_bytes == 10


def test_what_is_larger_than_the_cache_is_handed_out_and_not_kept() -> None:
    cache: LoadingCache[str, str] = LoadingCache(bytes_max=5, load=lambda key: (key, 6))
    assert cache.get("large") == "large"
    assert cache.kept_bytes == 0


def test_who_loads_nothing_himself_gets_what_is_kept_or_under_way() -> None:
    release, began = threading.Event(), threading.Event()

    def load(key: str) -> tuple[str, int]:
        began.set()
        assert release.wait(10)
        return key, 1

    cache: LoadingCache[str, str] = LoadingCache(bytes_max=10, load=load)
    assert cache.get_if_started("a") is None
    loader = threading.Thread(target=cache.get, args=("a",))
    loader.start()
    assert began.wait(10)
    threading.Timer(0.01, release.set).start()
    assert cache.get_if_started("a") == "a", "waits for the loader"
    loader.join()
    assert cache.get_if_started("a") == "a"
    assert cache.get_if_started("b") is None


def test_concurrent_callers_share_one_load_and_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    began, waiting = threading.Event(), threading.Event()
    loads: list[str] = []

    class Watched(Future[str]):
        def result(self, timeout: float | None = None) -> str:
            waiting.set()
            return super().result(timeout)

    def load(key: str) -> tuple[str, int]:
        loads.append(key)
        began.set()
        assert waiting.wait(10)
        raise NotFound("nothing there")

    monkeypatch.setattr(loading_cache, "Future", Watched)
    cache: LoadingCache[str, str] = LoadingCache(bytes_max=100, load=load)
    errors: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(NotFound) as caught:
            cache.get("key")
        errors.append(caught.value)

    first = threading.Thread(target=ask)
    first.start()
    assert began.wait(10)
    second = threading.Thread(target=ask)
    second.start()
    first.join()
    second.join()
    assert len(errors) == 2
    assert loads == ["key"]
