"""Have the guest of ``arraylift.guest`` run scripts, by nothing but files put into it and got out of it.

How it does that: ``arraylift/guest/files/tasks``. Callers: the demo, main thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TypeVar

from arraylift.cli import vm_calls
from arraylift.cli.connection import Connection
from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import (
    ArrayliftError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.v1 import vm_pb2

BOOT_SECONDS = 180.0
TASK_SECONDS = 120.0
OUTPUT_BYTES_MAX = 1 << 20
_POLL_SECONDS = 0.2
_numbers = itertools.count(1)

Answer = TypeVar("Answer")


class GuestTasks:
    """The runner of one guest."""

    def __init__(self, host: Connection, vm: vm_pb2.Vm) -> None:
        self._host, self._vm = host, vm

    def wait_ready(self) -> float:
        """Wait until the guest has booted and runs scripts; return for how long its kernel has run.

        Raises DeadlineExceeded.
        """

        def asked() -> str | None:
            try:
                return self.run("cut -d ' ' -f 1 /proc/uptime")
            except (PeerUnavailable, WrongState, DeadlineExceeded, NotFound, Overloaded):
                return None  # no agent yet, or no place for scripts

        return float(self._until(asked, f"{self._vm.config.name} has not booted", BOOT_SECONDS))

    def run(self, script: str) -> str:
        """Run a script to its end, which must be a good one, and return what it said.

        Raises ArrayliftError (its exit status), DeadlineExceeded, and what the files' calls raise.
        """
        name = f"/run/tasks/demo{next(_numbers)}"
        self._put(f"{name}.sh", script.encode())
        self._put(f"{name}.go", b"")

        def ended() -> bytes | None:
            try:
                return self._get(f"{name}.status")
            except NotFound:
                return None

        status = self._until(ended, f"a script has not ended in {self._vm.config.name}", TASK_SECONDS)
        said = self._get(f"{name}.out").decode(errors="replace")
        if status.strip() != b"0":
            raise ArrayliftError(
                f"a script failed in {self._vm.config.name}: {said.strip()[-300:]}",
                subject=f"vm {self._vm.config.name}",
            )
        return said

    def _put(self, path: str, data: bytes) -> None:
        vm_calls.put_pieces(self._host, self._place(path), [data] if data else [], mode=0o644)

    def _get(self, path: str) -> bytes:
        request = vm_pb2.GetGuestFileRequest(file=self._place(path))
        taken = bytearray()
        with self._host.stream(self._host.vms.GetGuestFile, request) as answers:
            for answer in answers:
                taken += answer.data
                if len(taken) > OUTPUT_BYTES_MAX:
                    raise ArrayliftError(f"{path} has more than {OUTPUT_BYTES_MAX:,} bytes", subject=path)
        return bytes(taken)

    def _place(self, path: str) -> vm_pb2.GuestPath:
        return vm_pb2.GuestPath(vm_id=self._vm.vm_id, path=path)

    @staticmethod
    def _until(ask: Callable[[], Answer | None], failure: str, seconds: float) -> Answer:
        deadline = SYSTEM_CLOCK.monotonic() + seconds
        while True:
            answer = ask()
            if answer is not None:
                return answer
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise DeadlineExceeded(f"{failure} within {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
