"""The daemons of one state directory: configure, start, wait for health, stop.

Invariants:
  U1 ``up`` is idempotent: what runs is left alone, what exists is never replaced.
  U2 if one daemon does not come up, those that this call started are stopped again.
  U3 one ``up`` or ``down`` at a time works on a state directory (flock on ``run/lock``).
  U4 when ``up`` returns, the backup server knows the others, and the virtual center its host.
Callers: main thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift import pki
from arraylift.cli import peers, processes
from arraylift.cli.connection import OPERATOR_NAME, OPERATOR_ROLE, Connection
from arraylift.cli.interrupts import shielded
from arraylift.cli.local_files import open_log
from arraylift.cli.processes import ProcessRecord
from arraylift.cli.settings import (
    BASE_PORT,
    DRIVERS,
    HOST,
    KINDS,
    NBD_PORT_OFFSET,
    SERVER,
    VCENTER,
    DaemonKind,
    DaemonSettings,
    FollowsCenter,
    HostSettings,
    Layout,
    absolute,
    callable_address,
    listening,
    with_nbd_port,
)
from arraylift.clock import SYSTEM_CLOCK
from arraylift.config import child_environment, render
from arraylift.durable import RealFiles
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    WrongState,
)
from arraylift.exit_codes import error_of
from arraylift.rpc.address import check_bindable, split_address
from arraylift.sizes import MIB
from arraylift.v1 import virtual_center_pb2

READY_SECONDS = 60.0
"""How long a daemon may take to answer its health check; it recovers its store meanwhile."""

HOST_SECONDS = 20.0
"""How long the host may take to make itself known to the virtual center."""

LOG_BYTES_MAX = 16 * MIB
"""A longer log is set aside as ``<name>.log.1`` when its daemon is started."""

LOG_TAIL_BYTES = 64 * 1024
PORT_MAX = 65535
_POLL_SECONDS = 0.05
_ERROR_MARK = "arraylift: error: "


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """One line of ``arraylift status``."""

    kind: DaemonKind
    name: str
    address: str
    state: Path
    log: Path
    record: ProcessRecord | None  # None: not running, or started by somebody else
    health: str  # "serving", or why not
    started: bool = False  # by this call

    @property
    def is_up(self) -> bool:
        return self.health == "serving"


def up(
    layout: Layout,
    *,
    base_port: int | None = None,
    pki_directory: Path | None = None,
    driver: str | None = None,
) -> list[DaemonStatus]:
    """Configure what is missing and start what does not run (U1, U2); return all, serving.

    Raises WrongState (port taken, running on other ports or by another driver), InvalidRequest, and
    what the daemon ended with.
    """
    with _alone(layout):
        settings = {kind: configure(layout, kind, base_port, pki_directory) for kind in KINDS}
        if driver is not None:
            settings[HOST] = choose_driver(layout, settings[HOST], driver)
        issue_missing(absolute(next(iter(settings.values())).pki), settings)
        running = {kind: processes.read_record(layout.pid(kind)) for kind in KINDS}
        for kind in KINDS:
            if running[kind] is None:
                for address in listening(settings[kind]):
                    check_bindable(address)
        started: list[tuple[DaemonKind, ProcessRecord]] = []
        try:
            marks = {}
            for kind in KINDS:
                if running[kind] is None:
                    with shielded():
                        marks[kind] = _start(layout, kind, settings[kind], started)
            for kind, record in started:
                _wait_ready(layout, kind, settings[kind], record, log_start=marks[kind])
            _introduce(settings)
        except BaseException:
            with shielded():
                for kind, record in reversed(started):
                    processes.stop(record)
                    processes.forget(layout.pid(kind))
            raise
        new = {kind for kind, _ in started}
        return [
            dataclasses.replace(_status(layout, kind, settings[kind]), started=kind in new) for kind in KINDS
        ]


def down(layout: Layout, kinds: Sequence[DaemonKind] = KINDS) -> list[tuple[DaemonKind, str]]:
    """Stop what runs; return what became of each: stopped, killed, or not running."""
    _check_exists(layout)
    with _alone(layout):
        return [(kind, _stop(layout, kind)) for kind in reversed(kinds)]


def status(layout: Layout) -> list[DaemonStatus]:
    """Look at every daemon. Raises NotFound (no such state directory)."""
    _check_exists(layout)
    return [_status(layout, kind, layout.load(kind)) for kind in KINDS]


def configure(
    layout: Layout, kind: DaemonKind, base_port: int | None, pki_directory: Path | None
) -> DaemonSettings:
    """Return a daemon's settings, writing its file where it is missing or its port is to move."""
    if base_port is not None and not 1 <= base_port <= PORT_MAX - NBD_PORT_OFFSET:
        raise InvalidRequest(f"--base-port must be 1 to {PORT_MAX - NBD_PORT_OFFSET}, not {base_port}")
    if not layout.config(kind).exists():
        port = (base_port or BASE_PORT) + kind.port_offset
        settings = new_settings(layout, kind, port, pki_directory or layout.pki)
        if base_port is not None:
            settings = with_nbd_port(settings, base_port + NBD_PORT_OFFSET)
        write_settings(layout, kind, settings)
        return settings
    settings = layout.load(kind)
    host = settings.listen.rpartition(":")[0]
    wanted = None if base_port is None else f"{host}:{base_port + kind.port_offset}"
    if wanted is None or wanted == settings.listen:
        return settings
    if processes.read_record(layout.pid(kind)) is not None:
        raise WrongState(
            f"{kind.name} runs at {settings.listen}",
            subject=kind.name,
            next_step=f"{layout.command('down')} first, then up with the new port",
        )
    assert base_port is not None
    moved = with_nbd_port(dataclasses.replace(settings, listen=wanted), base_port + NBD_PORT_OFFSET)
    if isinstance(moved, FollowsCenter):
        old_port = int(settings.listen.rpartition(":")[2]) - kind.port_offset + VCENTER.port_offset
        if moved.vcenter == f"{host}:{old_port}":  # the local one, which moves too
            moved = dataclasses.replace(moved, vcenter=f"{host}:{base_port + VCENTER.port_offset}")
    write_settings(layout, kind, moved)
    return moved


def choose_driver(layout: Layout, settings: DaemonSettings, driver: str) -> DaemonSettings:
    """Return the host's settings with another driver, written down; a host that runs keeps its own."""
    assert isinstance(settings, HostSettings)
    if driver not in DRIVERS:
        raise InvalidRequest(f"{driver!r} is no driver: {', '.join(DRIVERS)}", subject=driver)
    if driver == settings.driver:
        return settings
    if processes.read_record(layout.pid(HOST)) is not None:
        raise WrongState(
            f"{HOST.name} runs its VMs by the driver {settings.driver}",
            subject=HOST.name,
            next_step=f"{layout.command('down')} first, then up with the new driver",
        )
    chosen = dataclasses.replace(settings, driver=driver)
    write_settings(layout, HOST, chosen)
    return chosen


def new_settings(layout: Layout, kind: DaemonKind, port: int, pki_directory: Path) -> DaemonSettings:
    """Return the settings of a new daemon; it calls the virtual center of the same directory."""
    made: DaemonSettings = kind.settings(
        name=kind.name, listen=f"127.0.0.1:{port}", state=layout.data(kind), pki=pki_directory
    )
    if isinstance(made, FollowsCenter) and layout.config(VCENTER).exists():
        made = dataclasses.replace(made, vcenter=callable_address(layout.load(VCENTER).listen))
    return made


def write_settings(layout: Layout, kind: DaemonKind, settings: DaemonSettings) -> None:
    """Write a daemon's file, whole."""
    RealFiles().publish(str(layout.config(kind)), [render(settings).encode()], label="settings")


def issue_missing(directory: Path, settings: dict[DaemonKind, DaemonSettings]) -> None:
    """Make the CA and the certificates that are not there; those that are stay (U1), but for those of
    older releases, which nobody takes any more."""
    with contextlib.suppress(AlreadyExists):
        pki.init_ca(str(directory))
    wanted = [(OPERATOR_ROLE, OPERATOR_NAME)]
    wanted += [(kind.role, settings[kind].name) for kind in settings]
    for role, name in wanted:
        path = directory / f"{role}-{name}.pem"
        if not path.exists():
            pki.issue(str(directory), role, name)
        elif role != OPERATOR_ROLE and not (known := pki.show(str(path))).names_role:
            pki.issue(str(directory), role, name, known.hosts)


def prepare(layout: Layout) -> None:
    """Make the directories."""
    RealFiles().make_dirs(str(layout.run))


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """U3; makes the directories."""
    prepare(layout)
    try:
        lock = RealFiles().lock(str(layout.run))
    except WrongState:
        raise WrongState(
            f"another arraylift up or down works on {layout.root}",
            subject=str(layout.root),
            next_step="wait for it, then repeat",
        ) from None
    try:
        yield
    finally:
        lock.close()


def _check_exists(layout: Layout) -> None:
    if not layout.run.is_dir():
        raise NotFound(
            f"there are no daemons in {layout.root}",
            subject=str(layout.root),
            next_step="start them with `arraylift up`, or name their directory with --state",
        )


def _start(
    layout: Layout,
    kind: DaemonKind,
    settings: DaemonSettings,
    started: list[tuple[DaemonKind, ProcessRecord]],
) -> int:
    """Start one daemon, add it to ``started``, return where its part of the log begins."""
    log = layout.log(kind)
    files = RealFiles()
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        files.move(str(log), f"{log}.1", label="log")
    log_descriptor = open_log(log)
    try:
        log_start = os.fstat(log_descriptor).st_size
        # What this process was told by its environment about itself is not meant for a daemon.
        environment = child_environment(
            ARRAYLIFT_NAME=settings.name,
            ARRAYLIFT_LISTEN=settings.listen,
            ARRAYLIFT_STATE=str(absolute(settings.state)),
            ARRAYLIFT_PKI=str(absolute(settings.pki)),
        )
        arguments = ["-m", kind.module, "--config", str(layout.config(kind))]
        record = processes.spawn(arguments, environment, log_descriptor)
    finally:
        os.close(log_descriptor)
    started.append((kind, record))
    processes.write_record(layout.pid(kind), record)
    return log_start


def _wait_ready(
    layout: Layout, kind: DaemonKind, settings: DaemonSettings, record: ProcessRecord, *, log_start: int
) -> None:
    address = callable_address(settings.listen)
    deadline = SYSTEM_CLOCK.monotonic() + READY_SECONDS
    last = "no answer yet"
    while SYSTEM_CLOCK.monotonic() < deadline:
        if processes.exited_within(record, _POLL_SECONDS):
            raise _start_failure(layout, kind, record, log_start)
        last = _health(kind, address, absolute(settings.pki))
        if last == "serving":
            return
    raise DeadlineExceeded(
        f"{kind.name} did not serve within {READY_SECONDS:.0f} s: {last}",
        subject=kind.name,
        next_step=f"look into {layout.log(kind)}",
    )


def _introduce(settings: dict[DaemonKind, DaemonSettings]) -> None:
    """U4. Raises DeadlineExceeded, and what the calls raise."""
    of_server = settings[SERVER]
    with contextlib.closing(
        Connection(SERVER.noun, callable_address(of_server.listen), absolute(of_server.pki))
    ) as server:
        for kind, found in settings.items():
            if kind is not SERVER:
                peers.add_peer(server, kind.noun, found.name, callable_address(found.listen))
    of_host, address = settings[HOST], callable_address(settings[VCENTER].listen)
    if isinstance(of_host, FollowsCenter) and of_host.vcenter == address:
        with contextlib.closing(Connection(VCENTER.noun, address, absolute(settings[VCENTER].pki))) as center:
            _wait_host(center, of_host.name)


def _wait_host(center: Connection, name: str) -> None:
    deadline = SYSTEM_CLOCK.monotonic() + HOST_SECONDS
    alive = virtual_center_pb2.HOST_STATE_ALIVE
    while True:
        hosts = center.call(center.center.ListHosts, virtual_center_pb2.ListHostsRequest()).hosts
        if any(host.name == name and host.state == alive for host in hosts):
            return
        if SYSTEM_CLOCK.monotonic() > deadline:
            raise DeadlineExceeded(
                f"host {name} has not made itself known to {center.label} within {HOST_SECONDS:.0f} s",
                subject=f"host {name}",
                next_step="look into its log",
            )
        time.sleep(_POLL_SECONDS)


def _start_failure(layout: Layout, kind: DaemonKind, record: ProcessRecord, log_start: int) -> ArrayliftError:
    """Return what the daemon said when it ended, as an error of the same kind."""
    code = processes.exit_status(record)
    log = layout.log(kind)
    begin = max(log_start, log.stat().st_size - LOG_TAIL_BYTES)
    said = RealFiles().read(str(log), begin).decode("utf-8", "replace").splitlines()
    lines = [line.partition(_ERROR_MARK)[2] for line in said if line.startswith(_ERROR_MARK)]
    if lines:
        return error_of(code or 1, f"{kind.name} did not start: {lines[-1]}")
    last = said[-1] if said else "it said nothing"
    return ArrayliftError(
        f"{kind.name} ended at once, with exit code {code}: {last}",
        subject=kind.name,
        next_step=f"look into {log}",
    )


def _stop(layout: Layout, kind: DaemonKind) -> str:
    record = processes.read_record(layout.pid(kind))
    how = "not running" if record is None else processes.stop(record)
    processes.forget(layout.pid(kind))
    return how


def _status(layout: Layout, kind: DaemonKind, settings: DaemonSettings) -> DaemonStatus:
    record = processes.read_record(layout.pid(kind))
    address = callable_address(settings.listen)
    return DaemonStatus(
        kind=kind,
        name=settings.name,
        address=address,
        state=absolute(settings.state),
        log=layout.log(kind),
        record=record,
        health=_health(kind, address, absolute(settings.pki)) if record else "down",
    )


def _health(kind: DaemonKind, address: str, pki_directory: Path) -> str:
    """Return "serving", or why not."""
    if not _accepts(address):
        return "not listening"
    connection = Connection(kind.noun, address, pki_directory)
    try:
        return "serving" if connection.is_serving() else "not serving"
    except ArrayliftError as error:
        return error.message
    finally:
        connection.close()


def _accepts(address: str) -> bool:
    """A cheap look before gRPC's slower one, whose back-off would delay the news."""
    try:
        with socket.create_connection(split_address(address), timeout=1):
            return True
    except OSError:
        return False
