"""Users come and go together; who takes the handle away is alone, and is not starved."""

from __future__ import annotations

import threading
import time

from dedup_target.read_gate import ReadGate


def test_nobody_uses_what_is_taken_away() -> None:
    gate, inside, worst, stop = ReadGate(), [0], [0], threading.Event()
    count = threading.Lock()

    def use() -> None:
        while not stop.is_set():
            with gate.using():
                with count:
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                time.sleep(0.0005)
                with count:
                    inside[0] -= 1

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    seen = []
    for _ in range(50):
        with gate.alone():
            seen.append(inside[0])
    stop.set()
    for user in users:
        user.join()
    assert seen == [0] * 50
    assert worst[0] > 1, "users do not wait for each other"


def test_an_error_inside_opens_the_gate_again() -> None:
    gate = ReadGate()
    for way in (gate.using, gate.alone):
        try:
            with way():
                raise KeyError
        except KeyError:
            pass
    with gate.alone():
        pass
    with gate.using():
        pass
