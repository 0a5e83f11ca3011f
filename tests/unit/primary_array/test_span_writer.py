"""SpanWriter: order, the wait of ``drain``, and what a failed write stops."""

from __future__ import annotations

import threading

import pytest

from arraylift.errors import OutOfSpace, StoreFailed
from primary_array.span_writer import SPANS_QUEUED_MAX, SpanWriter


def test_spans_are_written_in_order_and_drain_waits_for_the_last() -> None:
    written: list[int] = []
    gate = threading.Event()

    def write(span: int, _plain: bytes, _leaf: bytes) -> None:
        gate.wait(10)
        written.append(span)

    writer = SpanWriter(write)
    for span in range(SPANS_QUEUED_MAX):
        writer.put(span, b"x", b"leaf")
    assert written == []
    gate.set()
    writer.drain()
    assert written == list(range(SPANS_QUEUED_MAX))
    writer.close()


def test_put_waits_while_the_queue_is_full() -> None:
    gate = threading.Event()
    writer = SpanWriter(lambda *_: _wait(gate))
    for span in range(SPANS_QUEUED_MAX + 1):  # one is in the thread's hands
        writer.put(span, b"", b"")
    late = threading.Thread(target=writer.put, args=(99, b"", b""))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    gate.set()
    late.join(10)
    assert not late.is_alive()
    writer.close()


@pytest.mark.parametrize("defect", [False, True])
def test_a_failed_write_stops_all_later_ones_and_is_raised(defect: bool) -> None:
    tried: list[int] = []

    def write(span: int, _plain: bytes, _leaf: bytes) -> None:
        tried.append(span)
        if span == 1:
            raise ZeroDivisionError if defect else OutOfSpace("full")

    writer = SpanWriter(write)
    expected = StoreFailed if defect else OutOfSpace
    writer.put(0, b"", b"")
    writer.put(1, b"", b"")
    with pytest.raises(expected):
        writer.drain()
    with pytest.raises(expected):
        writer.put(2, b"", b"")
    with pytest.raises(expected):
        writer.drain()
    writer.close()
    assert tried == [0, 1]


def _wait(gate: threading.Event) -> None:
    gate.wait(10)
