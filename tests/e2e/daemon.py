"""One daemon under test: a real process with its state, its log and its certificate."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from arraylift.cli.settings import KINDS
from tests.e2e.health import is_serving

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02

_CHANCE = random.SystemRandom()  # hypothesis sets the seed of the usual one


def free_port(count: int = 1) -> int:
    """A loopback port, the first of ``count`` neighbours, that nobody listens on now.

    Below those that the system hands out by itself: any connection might take one of them before it is used.
    """
    for _ in range(100):
        first = _CHANCE.randrange(12_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError(f"no {count} neighbouring ports are free")


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = START_SECONDS) -> None:
    """Poll ``condition``; fail after ``seconds``, saying ``what`` did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(POLL_SECONDS)


class Daemon:
    """Starts, kills and restarts one daemon; ``close`` leaves no process behind."""

    def __init__(
        self, module: str, name: str, *, home: Path, pki: Path, settings: Mapping[str, object]
    ) -> None:
        self.module = module
        self.role = next(kind.role for kind in KINDS if kind.module == module)
        self.name = name
        self.home = home
        self.state = home / name
        self.address = f"127.0.0.1:{free_port()}"
        self.log_path = home / f"{name}.log"
        self.config_path = home / f"{name}.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[int] = set()
        ports = {"nbd_listen": "127.0.0.1:0"} if module == "primary_array" else {}
        fields = {
            **ports,
            "name": name,
            "listen": self.address,
            "state": str(self.state),
            "pki": str(pki),
            **settings,
        }
        lines = (
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
            for key, value in fields.items()
        )
        self.config_path.write_text("\n".join(lines) + "\n")

    # -- life -----------------------------------------------------------------------------------

    def launch(self, *, failpoints: str = "", prefix: tuple[str, ...] = ()) -> None:
        """Start the process without waiting for it; ``prefix`` runs it under another program."""
        assert not self.running, f"{self.name} runs already"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ARRAYLIFT_")}
        if failpoints:
            environment["ARRAYLIFT_FAILPOINTS"] = failpoints
        command = [*prefix, sys.executable, "-m", self.module, "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            log.write(f"--- start, failpoints {failpoints!r}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def start(self, *, failpoints: str = "", prefix: tuple[str, ...] = ()) -> None:
        """Start it and wait until it answers."""
        self.launch(failpoints=failpoints, prefix=prefix)
        self.wait_started()

    def wait_started(self) -> None:
        """Wait until a launched daemon answers."""
        wait_until(self._answers, f"{self.name} answers")
        self._family = {self.pid, *self.children()}

    def wait_started_or_dead(self) -> bool:
        """Wait until a launched daemon answers (True), or has ended, as a failpoint may have it (False)."""
        wait_until(lambda: not self.running or is_serving(self.address), f"{self.name} answers or ends")
        if self.running:
            self._family = {self.pid, *self.children()}
        return self.running

    def _answers(self) -> bool:
        assert self.running, f"{self.name} ended while it started:\n{self.log_tail()}"
        return is_serving(self.address)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, as subprocess tells it: -9 after SIGKILL; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[int]:
        """Processes that this one started and that still run."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def kill(self) -> None:
        """kill -9, by process id; the children must end by themselves."""
        self._family |= set(self.children())
        os.kill(self.pid, signal.SIGKILL)
        self.wait_dead()

    def wait_dead(self, *, seconds: float = START_SECONDS) -> None:
        """Wait until the process, killed by us or by a failpoint, and all its children are gone."""
        wait_until(lambda: not self.running, f"{self.name} ends", seconds=seconds)
        self._family.discard(self.pid)
        wait_until(
            lambda: not any(_alive(pid) for pid in self._family),
            f"{self.name}'s children end",
            seconds=seconds,
        )
        self._family.clear()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        self.wait_dead(seconds=STOP_SECONDS)
        code = self._process.poll()
        assert code is not None
        return code

    def close(self) -> None:
        """End it however it is."""
        if self._process is not None and self.running:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # -- looks ----------------------------------------------------------------------------------

    def rss_bytes_max(self) -> int:
        """Largest peak of resident memory, of the process and of each of its children."""
        return max(_peak_rss(pid) for pid in (self.pid, *self.children()))

    def reset_peaks(self) -> None:
        """Forget earlier peaks of memory, where the system lets us."""
        for pid in (self.pid, *self.children()):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def log_tail(self, lines: int = 40) -> str:
        """The end of its log, all its lives in one."""
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _peak_rss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
