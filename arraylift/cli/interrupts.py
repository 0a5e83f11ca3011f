"""Ctrl-C, SIGTERM and SIGHUP: all end the command the same way, and never in the middle of a clean-up.

Callers: main thread.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install() -> None:
    """From now on every ending signal raises KeyboardInterrupt; an ignored one stays so (nohup)."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Hold ending signals back until the block has ended: what it does is done whole."""
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
