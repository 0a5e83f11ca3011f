"""A guest under a QEMU of the test's own, over copies of the images: for tests of the guest itself."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.daemon import wait_until
from tests.programs import lacking

BOOT_SECONDS = 100.0
OFF_SECONDS = 60.0
_OVMF = Path("/usr/share/OVMF")


class PlainQemu:
    """One process; leaving the context ends it."""

    def __init__(self, home: Path, disks: tuple[Path, ...], *, uefi: bool = False) -> None:
        self.home = home
        self.console = home / "console.log"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-serial", f"file:{self.console}", "-device", "virtio-serial-pci"]
        command += ["-chardev", f"socket,id=agent,path={self._socket('agent')},server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        command += ["-qmp", f"unix:{self._socket('qmp')},server=on,wait=off"]
        for number, disk in enumerate(disks):
            copy = home / f"disk{number}.img"
            subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
            command += ["-blockdev", f"driver=file,node-name=n{number},filename={copy}"]
            command += ["-device", f"virtio-blk-pci,drive=n{number}"]
        command += self._firmware() if uefi else []
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(OFF_SECONDS)

    def disk(self, number: int) -> Path:
        return self.home / f"disk{number}.img"

    def said(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, word: str, *, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the guest says ``word`` on its console."""
        try:
            wait_until(
                lambda: word in self.said() or self._process.poll() is not None,
                f"{word} on the console",
                seconds=seconds,
            )
        finally:
            assert word in self.said(), self.said()[-3000:]

    def wait_off(self) -> None:
        self._process.wait(OFF_SECONDS)

    def press_power_button(self) -> None:
        """As a host does that knows no agent."""
        self._converse("qmp", {"execute": "qmp_capabilities"}, {"execute": "system_powerdown"}, greeted=True)

    def ask_agent(self, command: str, **arguments: Any) -> Any:
        """One command to the guest agent."""
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self._converse("agent", {"execute": command, "arguments": dashed})
        assert "return" in answer, answer
        return answer["return"]

    def run(self, script: str) -> str:
        """Run a script in the guest to its end."""
        started = self.ask_agent("guest-exec", path="/bin/sh", arg=["-c", script], capture_output=True)
        while not (state := self.ask_agent("guest-exec-status", pid=started["pid"]))["exited"]:
            time.sleep(0.05)
        assert state["exitcode"] == 0, (script, state)
        return base64.b64decode(state.get("out-data", "")).decode()

    def _converse(self, name: str, *requests: object, greeted: bool = False) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(30)
            link.connect(str(self._socket(name)))
            lines = link.makefile("rb")
            if greeted:
                lines.readline()
            answer: Any = {}
            for request in requests:
                link.sendall(json.dumps(request).encode() + b"\n")
                answer = json.loads(lines.readline())
            return answer

    def _socket(self, name: str) -> Path:
        return self.home / f"{name}.sock"

    def _firmware(self) -> list[str]:
        code, variables = _OVMF / "OVMF_CODE_4M.fd", _OVMF / "OVMF_VARS_4M.fd"
        if not code.exists():
            lacking("needs the program OVMF")
        mine = self.home / "variables.fd"
        mine.write_bytes(variables.read_bytes())
        pflash = "if=pflash,format=raw"
        return [
            *("-drive", f"{pflash},unit=0,readonly=on,file={code}"),
            *("-drive", f"{pflash},unit=1,file={mine}"),
        ]
