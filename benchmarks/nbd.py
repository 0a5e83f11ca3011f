"""``python -m benchmarks nbd``: fio through the array's NBD, beside qemu-nbd on the same bytes.

Both serve a disk of the same random content, ours out of a pool, theirs out of a file. fio (libnbd) asks
them in turns, over TCP and over a Unix socket; nbdcopy asks them through TLS, which fio cannot. The
page cache is warm for both. At the end fio asks the array once more while it sends backups.
Callers: main thread; a thread of its own sends backups.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arraylift.cli import transfers
from arraylift.config import child_environment
from arraylift.errors import ArrayliftError, NotFound
from arraylift.sizes import GIB, MIB
from arraylift.v1 import volume_pb2
from benchmarks import daemons, report

PROGRAMS = ("fio", "nbdcopy", "nbdinfo", "qemu-nbd")
DISK_BYTES, QUICK_BYTES = GIB, 256 * MIB
SECONDS, QUICK_SECONDS = 4.0, 1.0
OURS, THEIRS = "arraylift", "qemu-nbd"
COMMAND_SECONDS_MAX = 300


@dataclass(frozen=True, slots=True)
class Case:
    """One way to ask; ``least`` is the goal, in ``unit``, over TCP."""

    name: str
    fio: tuple[str, ...]
    unit: str
    least: float | None = None


CASES = (
    Case("read 1 MiB", ("--rw=read", "--bs=1m", "--iodepth=4"), "MB/s", 500),
    Case("write 1 MiB", ("--rw=write", "--bs=1m", "--iodepth=4"), "MB/s", 300),
    Case("random read 4 KiB, depth 16", ("--rw=randread", "--bs=4k", "--iodepth=16"), "1/s", 10_000),
    Case("random write 4 KiB, depth 16", ("--rw=randwrite", "--bs=4k", "--iodepth=16"), "1/s", 10_000),
    Case(
        "random write 4 KiB, each flushed", ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"), "1/s"
    ),
)
BUSY_CASES = CASES[2:4]
BUSY_LEAST = 0.5
"""Share of the quiet figure that is kept during a backup."""


@dataclass
class Figures:
    """Samples by (case, way, server); ``busy``: by case, during backups."""

    samples: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    backups: int = 0

    def median(self, case: str, way: str, server: str) -> float:
        return statistics.median(self.samples[case, way, server])


def run(console: Console, work: Path, *, rounds: int, quick: bool, json_path: Path | None) -> int:
    """Measure and print; returns 1 where a goal is missed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NotFound(f"this needs {', '.join(missing)}", next_step="install fio, libnbd-bin and qemu-utils")
    about = report.machine()
    scratch = work / "nbd"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        figures = _measure(scratch, rounds=rounds, quick=quick, console=console)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    reached = _show(figures, console)
    if json_path:
        found = {
            "machine": about,
            "samples": [
                {"case": case, "way": way, "server": server, "values": values}
                for (case, way, server), values in figures.samples.items()
            ],
            "during_backups": figures.busy,
        }
        json_path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if reached else 1


# -- the servers --------------------------------------------------------------------------------


class Stage:
    """The array with its target, and qemu-nbd for each way, over disks of the same content."""

    def __init__(self, scratch: Path, size_bytes: int, stack: contextlib.ExitStack) -> None:
        self._scratch = scratch
        self._stack = stack
        self.disk = scratch / "disk.raw"
        _fill(self.disk, size_bytes)
        pki = daemons.make_pki(scratch)
        self.credentials = _credentials(scratch / "credentials", pki)
        self._port = daemons.free_port()
        nbd = {
            "nbd_listen": f"127.0.0.1:{self._port}",
            "nbd_tls": "offered",
            "nbd_socket": str(scratch / "ours.sock"),
        }
        kinds: tuple[tuple[str, str, str, dict[str, str]], ...] = (
            ("array", "primary_array", "array1", nbd),
            ("target", "dedup_target", "target1", {}),
        )
        started = []
        for noun, module, name, more in kinds:
            one = daemons.start(noun, module, name, scratch=scratch, pki_directory=pki, more=more)
            stack.callback(daemons.stop, one)
            started.append(one)
        for one in started:
            daemons.wait_until_ready(one, scratch=scratch)
        self.array, self.target = (one.connection for one in started)
        for volume in ("disk", "other"):
            request = volume_pb2.CreateVolumeRequest(name=volume, size_bytes=size_bytes)
            self.array.call(self.array.volumes.CreateVolume, request)
            export = volume_pb2.CreateExportRequest(name=volume, volume_name=volume)
            self.array.call(self.array.volumes.CreateExport, export)
        self.uris = {
            ("TCP", OURS): f"nbd://127.0.0.1:{self._port}/disk",
            ("Unix socket", OURS): f"nbd+unix:///disk?socket={scratch}/ours.sock",
        }
        self._tls_ports = {OURS: self._port, THEIRS: daemons.free_port()}
        self._start_theirs()
        for volume in ("disk", "other"):
            _run("nbdcopy", str(self.disk), f"nbd+unix:///{volume}?socket={scratch}/ours.sock")
        for uri in self.uris.values():
            _run("nbdcopy", uri, "null:")

    def _start_theirs(self) -> None:
        port = daemons.free_port()
        self.uris["TCP", THEIRS] = f"nbd://127.0.0.1:{port}"
        self.uris["Unix socket", THEIRS] = f"nbd+unix:///?socket={self._scratch}/theirs.sock"
        tls = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={self.credentials}"
        ways = (
            ["-b", "127.0.0.1", "-p", str(port)],
            ["-k", f"{self._scratch}/theirs.sock"],
            ["-b", "127.0.0.1", "-p", str(self._tls_ports[THEIRS]), "--object", tls, "--tls-creds", "tls"],
        )
        for way in ways:
            server = subprocess.Popen(
                ["qemu-nbd", "-f", "raw", "-t", "-e", "16", "--cache=writeback", *way, str(self.disk)],
                env=child_environment(),
            )
            self._stack.callback(_end, server)
        theirs = [uri for (_, name), uri in self.uris.items() if name == THEIRS]
        for uri in (*theirs, self.tls_uri(THEIRS)):
            _wait_for(["nbdinfo", "--size", uri])

    def tls_uri(self, server: str) -> str:
        """For programs that let a URI name certificates, which fio does not."""
        export = "disk" if server == OURS else ""
        return f"nbds://127.0.0.1:{self._tls_ports[server]}/{export}?tls-certificates={self.credentials}"

    def back_up(self) -> None:
        """Send all of the other volume once, read whole."""
        request = volume_pb2.CreateSnapshotsRequest(volume_names=["other"])
        (snapshot,) = self.array.call(self.array.volumes.CreateSnapshots, request).snapshots
        transfers.send_snapshot(
            self.array, self.target, snapshot.snapshot_id, image_name=snapshot.snapshot_id, full=True,
            on_spans=lambda *_: None,
        )  # fmt: skip


def _fill(path: Path, size_bytes: int) -> None:
    source = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(source.randbytes(MIB))


def _credentials(folder: Path, pki: Path) -> Path:
    """A folder as QEMU wants it, for both ends: one certificate names a server and a client."""
    folder.mkdir()
    shutil.copy(pki / "ca.pem", folder / "ca-cert.pem")
    for role, name in (("server", "array-array1"), ("client", "operator-admin")):
        for suffix, end in (("pem", "cert"), ("key", "key")):
            shutil.copy(pki / f"{name}.{suffix}", folder / f"{role}-{end}.pem")
    return folder


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(30)


def _run(*command: str) -> str:
    ended = subprocess.run(
        command,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    if ended.returncode:
        raise ArrayliftError(f"{' '.join(command)}: {(ended.stdout + ended.stderr)[-2000:]}")
    return ended.stdout


def _wait_for(command: Sequence[str], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            _run(*command)
        except ArrayliftError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


# -- measuring ----------------------------------------------------------------------------------


def _measure(scratch: Path, *, rounds: int, quick: bool, console: Console) -> Figures:
    figures, seconds = Figures(), QUICK_SECONDS if quick else SECONDS
    size_bytes = QUICK_BYTES if quick else DISK_BYTES
    with contextlib.ExitStack() as stack, console.status("starting") as status:
        stage = Stage(scratch, size_bytes, stack)
        for number in range(rounds):
            servers = (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS)
            for case in CASES:
                for way in ("TCP", "Unix socket"):
                    status.update(f"round {number + 1}: {case.name}, {way}")
                    for server in servers:
                        value = _fio(case, stage.uris[way, server], size_bytes, seconds)
                        figures.samples[case.name, way, server].append(value)
            for case in CASES[:2]:
                status.update(f"round {number + 1}: {case.name}, TLS")
                for server in servers:
                    value = _nbdcopy(case, stage.tls_uri(server), stage.disk, size_bytes)
                    figures.samples[case.name, "TLS", server].append(value)
        for case in BUSY_CASES:
            status.update(f"during backups: {case.name}")
            with _backups(stage, figures):
                figures.busy[case.name].append(_fio(case, stage.uris["TCP", OURS], size_bytes, 2 * seconds))
    return figures


def _fio(case: Case, uri: str, size_bytes: int, seconds: float) -> float:
    """Return MB/s or requests a second, as the case counts."""
    said = _run(
        "fio",
        "--name=case",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--size={size_bytes}",
        "--time_based",
        f"--runtime={seconds}",
        "--ramp_time=0.5",
        "--output-format=json",
        *case.fio,
    )
    job = json.loads(said[said.index("{") :])["jobs"][0]
    part = job["write"] if "write" in case.fio[0] else job["read"]
    value: float = part["bw_bytes"] / 1e6 if case.unit == "MB/s" else part["iops"]
    return value


def _nbdcopy(case: Case, uri: str, disk: Path, size_bytes: int) -> float:
    """Return MB/s of one connection that copies the whole disk, one way or the other."""
    ends = [str(disk), uri] if "write" in case.fio[0] else [uri, "null:"]
    began = time.perf_counter()
    _run("nbdcopy", "--connections=1", "--requests=4", "--request-size=1048576", *ends)
    return size_bytes / 1e6 / (time.perf_counter() - began)


@contextlib.contextmanager
def _backups(stage: Stage, figures: Figures) -> Iterator[None]:
    """Meanwhile backups are sent, one after the other."""
    over = threading.Event()
    failed: list[ArrayliftError] = []

    def send() -> None:
        while not over.is_set():
            try:
                stage.back_up()
            except ArrayliftError as error:
                failed.append(error)
                return
            figures.backups += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
    if failed:
        raise failed[0]


# -- telling ------------------------------------------------------------------------------------


def _show(figures: Figures, console: Console) -> bool:
    """Print; returns whether every goal is reached."""
    shown = Table("case", "way", "arraylift", "qemu-nbd", "goal", "reached", box=None)
    for column in shown.columns[2:5]:
        column.justify = "right"
    missed = 0
    for case in CASES:
        for way in ("TCP", "Unix socket", "TLS"):
            if (case.name, way, OURS) not in figures.samples:
                continue
            ours, theirs = (figures.median(case.name, way, server) for server in (OURS, THEIRS))
            least = case.least if way == "TCP" else None
            reached = least is None or ours >= least
            missed += not reached
            verdict = "" if least is None else "yes" if reached else "no"
            goal = "" if least is None else f"{least:,.0f}"
            shown.add_row(case.name, way, f"{ours:,.0f} {case.unit}", f"{theirs:,.0f}", goal, verdict)
    for name, values in figures.busy.items():
        busy, quiet = statistics.median(values), figures.median(name, "TCP", OURS)
        reached = busy >= BUSY_LEAST * quiet
        missed += not reached
        goal = f"{BUSY_LEAST * quiet:,.0f}"
        shown.add_row(
            f"{name}, during backups", "TCP", f"{busy:,.0f} 1/s", "", goal, "yes" if reached else "no"
        )
    console.print(shown)
    console.print(f"{figures.backups} backups ended meanwhile")
    return missed == 0
