"""A running QEMU with one qcow2 disk, steered by QMP: foreign storage for the gateway.

No guest is needed: writes are issued through the disk's device, as a guest's are.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.daemon import wait_until

SECONDS = 30
_DEVICE = "/machine/peripheral/vd0/virtio-backend"


def run(*command: object) -> str:
    """Run a program that must succeed."""
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=2 * SECONDS, check=False
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


class Qemu:
    """One process; ``close`` ends it."""

    def __init__(self, home: Path, size_bytes: int) -> None:
        self.home = home
        self.disk = home / "disk.qcow2"
        self.size_bytes = size_bytes
        self.log = home / "qemu.log"
        self.nbd_socket = home / "fleece.sock"
        self._count = 0
        run("qemu-img", "create", "-q", "-f", "qcow2", self.disk, size_bytes)
        self._start()

    def _start(self) -> None:
        control = self.home / "qmp.sock"
        node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.disk}"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "32", "-nodefaults"]
        command += ["-display", "none", "-blockdev", node, "-device", "virtio-blk-pci,drive=disk,id=vd0"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-qmp", f"unix:{control},server=on,wait=off"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(control.exists, "QEMU listens", seconds=SECONDS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(control))
        self._lines = self._socket.makefile("rb")
        assert "QMP" in json.loads(self._lines.readline())
        self.ask("qmp_capabilities")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        self._process.kill()
        self._process.wait(SECONDS)

    def kill_and_restart(self) -> None:
        """As after a crash of the host; bitmaps in memory are gone."""
        self.close()
        for name in ("qmp.sock", "fleece.sock"):
            with contextlib.suppress(FileNotFoundError):
                (self.home / name).unlink()
        self._start()

    def ask(self, command: str, **arguments: Any) -> Any:
        """One QMP command; its error fails the test."""
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": dashed}).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, f"{command}: {answer}"
                return answer["return"]

    # -- the disk -------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | bytearray, disk: bytearray) -> None:
        """Write into the running disk, and into the copy that the test keeps."""
        source = self.home / "write.bin"
        source.write_bytes(data)
        self._io(f"write -s {source} {offset} {len(data)}")
        disk[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int, disk: bytearray) -> None:
        self._io(f"write -z -u {offset} {length}")
        disk[offset : offset + length] = bytes(length)

    def _io(self, what: str) -> None:
        said = self.ask("human-monitor-command", command_line=f'qemu-io -d {_DEVICE} "{what}"')
        assert not said, said
        assert "failed" not in self.log.read_text(), self.log.read_text()

    # -- states of it ---------------------------------------------------------------------------

    def freeze(self, *, begin_bitmap: str, end_bitmap: str = "") -> str:
        """Have an export show the disk as it is now, whatever is written later (a fleecing node).

        In the same instant a bitmap begins to note what changes from now on, and another one, begun
        earlier, ends and is exported beside. Returns the URI.
        """
        self._count += 1
        name, overlay = f"state{self._count}", self.home / f"fleece{self._count}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", overlay, self.size_bytes)
        file = {"driver": "file", "filename": str(overlay)}
        self.ask("blockdev-add", node_name=name, driver="qcow2", file=file, backing="disk")
        actions = [
            _action("block-dirty-bitmap-add", node="disk", name=begin_bitmap),
            _action("blockdev-backup", **{"job-id": name}, device="disk", target=name, sync="none"),
        ]
        if end_bitmap:
            actions.append(_action("block-dirty-bitmap-disable", node="disk", name=end_bitmap))
        self.ask("transaction", actions=actions)
        if self._count == 1 or not self.nbd_socket.exists():
            address = {"type": "unix", "data": {"path": str(self.nbd_socket)}}
            self.ask("nbd-server-start", addr=address)
        bitmaps = {"bitmaps": [end_bitmap]} if end_bitmap else {}
        self.ask("block-export-add", type="nbd", id=name, node_name=name, name=name, **bitmaps)
        return f"nbd+unix:///{name}?socket={self.nbd_socket}"

    def release(self, uri: str) -> None:
        """Stop showing that state."""
        name = uri.partition("///")[2].partition("?")[0]
        self.ask("block-export-del", id=name, mode="hard")
        wait_until(lambda: not self.ask("query-block-exports"), "the export ends", seconds=SECONDS)
        self.ask("block-job-cancel", device=name)
        wait_until(lambda: not self.ask("query-jobs"), "the job ends", seconds=SECONDS)
        self.ask("blockdev-del", node_name=name)


def _action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}
