"""File operations of all guests of a host: agents that take their time hold nobody up for good."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Overloaded, PeerUnavailable
from arraylift.ids import VmId
from hostagent.guest_agent import operations
from hostagent.guest_agent.channel import AgentChannel
from hostagent.guest_agent.operations import FILE_CALLS_MAX, GuestOperations
from hostagent.vm_types import VmRecord, VmState
from tests.unit.hostagent.stage import config


def test_slow_agents_do_not_hold_up_the_others_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "ROOM_SECONDS", 0.1, raising=False)
    inside, go_on = threading.Semaphore(0), threading.Event()

    def hangs(_: VmId) -> AgentChannel:
        inside.release()
        go_on.wait(20)
        raise PeerUnavailable("its agent is gone")

    vm = VmRecord(VmId("1" * 32), config("web1"), VmState.ON, 1, "", ())
    made = GuestOperations(hangs, serial_of=lambda _vm, _disk: "", files=RealFiles())
    with ThreadPoolExecutor(FILE_CALLS_MAX + 1) as pool:
        calls = [pool.submit(made.list_files, vm, None, "/") for _ in range(FILE_CALLS_MAX)]  # type: ignore[arg-type]
        try:
            for _ in calls:
                assert inside.acquire(timeout=10)
            one_more = pool.submit(made.list_files, vm, None, "/")  # type: ignore[arg-type]
            assert isinstance(one_more.exception(timeout=5), Overloaded)
        finally:
            go_on.set()
        assert all(isinstance(call.exception(timeout=10), PeerUnavailable) for call in calls)
    with pytest.raises(PeerUnavailable):  # there is room again
        made.list_files(vm, None, "/")  # type: ignore[arg-type]
