"""A libvirtd of the test's own: unprivileged, without systemd, with everything it keeps below one folder.

As root it runs as ``nobody``: libvirtd serves sessions only to accounts that are not root. The guest's
processes outlive it, as they do on a real host, so ``close`` ends them by their pids.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.e2e.daemon import wait_until
from tests.programs import lacking, need

NOBODY = 65534
PROGRAM = "/usr/sbin/libvirtd"
_QEMU_CONF = """stdio_handler = "file"
security_driver = "none"
max_core = 0
nbd_tls = 1
nbd_tls_x509_cert_dir = "{tls}"
backup_tls_x509_cert_dir = "{tls}"
backup_tls_x509_verify = 1
"""


class Libvirtd:
    """One libvirtd. ``folder`` is its account's: disks and sockets lie there."""

    def __init__(self) -> None:
        need("virsh", "qemu-system-x86_64", "qemu-img")
        if not Path(PROGRAM).exists():
            lacking("needs the program libvirtd")
        try:
            import libvirt  # noqa: F401
        except ImportError:
            lacking("needs the program libvirt-python")
        self.folder = Path(tempfile.mkdtemp(prefix="alv-"))  # a short name: sockets lie in it
        self.folder.chmod(0o755)
        for name in ("run", "config/libvirt", "cache", "data", "disks", "exports", "tls"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "config/libvirt/qemu.conf").write_text(_QEMU_CONF.format(tls=self.folder / "tls"))
        log = self.folder / "libvirtd.log"
        conf = f'log_level = 3\nlog_outputs = "3:file:{log}"\n'
        (self.folder / "libvirtd.conf").write_text(conf)
        self.uri = f"qemu+unix:///session?socket={self.folder}/run/libvirt/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    # -- life -----------------------------------------------------------------------------------

    def give(self) -> None:
        """Everything below the folder to its account."""
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def give_credentials(self, pki: Path, host: str) -> None:
        """What an admin gives QEMU so that it reaches arrays by TLS, and they it."""
        tls = self.folder / "tls"
        for kind in ("client", "server"):
            shutil.copy(pki / f"host-{host}.pem", tls / f"{kind}-cert.pem")
            shutil.copy(pki / f"host-{host}.key", tls / f"{kind}-key.pem")
        shutil.copy(pki / "ca.pem", tls / "ca-cert.pem")

    def start(self) -> None:
        self.give()
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        for kind, name in (
            ("RUNTIME_DIR", "run"),
            ("CONFIG_HOME", "config"),
            ("CACHE_HOME", "cache"),
            ("DATA_HOME", "data"),
        ):
            environment[f"XDG_{kind}"] = str(self.folder / name)
        command = [PROGRAM, "--config", str(self.folder / "libvirtd.conf")]
        root = os.geteuid() == 0
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=NOBODY if root else None,
            group=NOBODY if root else None,
            extra_groups=[] if root else None,
        )
        wait_until(lambda: self.virsh("list", check=False).returncode == 0, "libvirtd answers", seconds=30)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """End guests, libvirtd and the folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait()
        for pid in self.guest_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while self.guest_pids() and time.monotonic() < until:
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def guest_pids(self) -> list[int]:
        """QEMU and qemu-nbd processes that work below our folder."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes()
                    program = os.path.basename(words.split(b"\0")[0])
                    if program.startswith(b"qemu-") and str(self.folder).encode() in words:
                        found.append(int(name))
        return found

    # -- guests ---------------------------------------------------------------------------------

    def virsh(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["virsh", "--quiet", "--connect", self.uri, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def define(self, xml: str) -> None:
        path = self.folder / "domain.xml"
        path.write_text(xml)
        self.virsh("define", path)

    def agent(self, guest: str, command: str, **arguments: object) -> Any:
        asked = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.virsh("qemu-agent-command", guest, asked).stdout)["return"]

    def run(self, guest: str, script: str) -> str:
        """A shell script inside the guest; its output."""
        import base64

        pid = self.agent(
            guest, "guest-exec", **{"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        )
        while not (done := self.agent(guest, "guest-exec-status", pid=pid["pid"]))["exited"]:
            time.sleep(0.1)
        said = base64.b64decode(done.get("out-data", "")).decode()
        assert done["exitcode"] == 0, (script, said, done)
        return said

    def wait_for_agent(self, guest: str, *, seconds: float = 120.0) -> None:
        ping = json.dumps({"execute": "guest-ping"})
        wait_until(
            lambda: self.virsh("qemu-agent-command", guest, ping, check=False).returncode == 0,
            f"the agent of {guest} answers",
            seconds=seconds,
        )


def guest_xml(name: str, disks: list[tuple[Path, str]], *, more: str = "", memory_mib: int = 192) -> str:
    """A domain with these files, of these formats, as virtio disks with serial numbers."""
    devices = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}' discard='unmap'/>"
        f"<source file='{escape(str(path))}'/><target dev='vd{'abcdef'[place]}' bus='virtio'/>"
        f"<serial>{path.stem}</serial></disk>"
        for place, (path, kind) in enumerate(disks)
    )
    return (
        f"<domain type='qemu'><name>{escape(name)}</name><memory unit='MiB'>{memory_mib}</memory>"
        "<vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>"
        "<devices>"
        f"{devices}{more}<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<serial type='pty'/></devices></domain>"
    )
