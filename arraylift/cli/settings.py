"""Where the command line finds its daemons: options, then the environment, then the state directory.

Owns: the names of everything in a state directory:
``<name>.toml`` (one a daemon), ``<name>/`` (its data), ``pki/``, ``run/<name>.pid|.log``.
Callers: main thread.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from arraylift.config import load
from arraylift.errors import NotFound
from arraylift.rpc.address import split_address
from backup_server.config import ServerSettings
from dedup_target.config import TargetSettings
from hostagent.config import DRIVERS, HostSettings
from primary_array.config import ArraySettings
from vcenter.config import CenterSettings

__all__ = ["DRIVERS", "HostSettings"]  # for the rest of the command line, which sees no daemon itself

STATE_ROOT = Path("~/.local/state/arraylift")
BASE_PORT = 7401
NBD_PORT_OFFSET = 5
"""Of the array's NBD, where ports are given; by default it is NBD's own."""

FollowsCenter = HostSettings | ServerSettings
"""Settings with the address of a virtual center."""

DaemonSettings = ArraySettings | TargetSettings | CenterSettings | HostSettings | ServerSettings

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # to call, not to listen


@dataclass(frozen=True, slots=True)
class DaemonKind:
    """One sort of daemon that ``arraylift up`` runs."""

    noun: str
    module: str
    name: str
    port_offset: int
    settings: type[DaemonSettings]

    @property
    def role(self) -> str:
        """In its certificate."""
        return self.noun


ARRAY = DaemonKind("array", "primary_array", "array1", 2, ArraySettings)
TARGET = DaemonKind("target", "dedup_target", "target1", 3, TargetSettings)
VCENTER = DaemonKind("vcenter", "vcenter", "vcenter1", 0, CenterSettings)
HOST = DaemonKind("host", "hostagent", "host1", 1, HostSettings)
SERVER = DaemonKind("server", "backup_server", "server1", 4, ServerSettings)
KINDS = (TARGET, ARRAY, VCENTER, HOST, SERVER)
"""In the order in which they are started: each calls those before it."""


@dataclass(frozen=True, slots=True)
class CliSettings:
    """What the environment may say: ARRAYLIFT_STATE, _PKI, and the daemons' addresses."""

    state: Path = field(default=STATE_ROOT, metadata={"doc": "State directory of `arraylift up`."})
    pki: Path | None = field(default=None, metadata={"doc": "Directory with operator-admin.pem and ca.pem."})
    array: str | None = field(default=None, metadata={"doc": "host:port of the array."})
    target: str | None = field(default=None, metadata={"doc": "host:port of the target."})
    vcenter: str | None = field(default=None, metadata={"doc": "host:port of the virtual center."})
    server: str | None = field(default=None, metadata={"doc": "host:port of the backup server."})


@dataclass(frozen=True, slots=True)
class Overrides:
    """The options that every command takes; None where not given."""

    json: bool = False
    debug: bool = False
    state: Path | None = None
    pki: Path | None = None
    array: str | None = None
    target: str | None = None
    vcenter: str | None = None
    server: str | None = None

    def over(self, other: Overrides) -> Overrides:
        """Return these options, and where they are not given those of ``other``."""
        merged = {item.name: getattr(self, item.name) or getattr(other, item.name) for item in _FIELDS}
        return Overrides(**merged)


_FIELDS = dataclasses.fields(Overrides)


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a state directory; ``named``: by an option, which other commands need as well."""

    root: Path
    named: bool = False

    def command(self, words: str) -> str:
        """Return a command for this directory, as a person types it."""
        return f"`arraylift {words} --state {self.root}`" if self.named else f"`arraylift {words}`"

    def config(self, kind: DaemonKind) -> Path:
        return self.root / f"{kind.name}.toml"

    def data(self, kind: DaemonKind) -> Path:
        return self.root / kind.name

    def pid(self, kind: DaemonKind) -> Path:
        return self.run / f"{kind.name}.pid"

    def log(self, kind: DaemonKind) -> Path:
        return self.run / f"{kind.name}.log"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    def load(self, kind: DaemonKind) -> DaemonSettings:
        """Return a daemon's settings as its file says; the environment is this process's, not its.

        Raises NotFound (no such file), InvalidRequest, NotPermitted.
        """
        path = self.config(kind)
        if not os.path.lexists(path):
            raise NotFound(
                f"there is no {kind.noun} in {self.root}",
                subject=str(path),
                next_step=f"start one with {self.command('up')}, or give --{kind.noun} ADDRESS",
            )
        return load(kind.settings, path, environment={})


@dataclass(frozen=True, slots=True)
class Places:
    """What options and environment come to."""

    layout: Layout
    pki: Path | None
    addresses: dict[str, str]  # noun -> host:port, where one was given

    def address(self, kind: DaemonKind) -> str:
        """Return ``host:port`` to call. Raises what ``Layout.load`` does, InvalidRequest."""
        given = self.addresses.get(kind.noun)
        if given:
            split_address(given)
            return given
        return callable_address(self.layout.load(kind).listen)

    def away_step(self, kind: DaemonKind) -> str:
        """Return what to do when that daemon does not answer; empty where only its address is known."""
        if kind.noun in self.addresses:
            return ""
        return f"look with {self.layout.command('status')}; {self.layout.command('up')} starts what is down"

    def pki_directory(self) -> Path:
        """Return the directory of the operator's certificate."""
        if self.pki is not None:
            return self.pki
        for kind in KINDS:
            if os.path.lexists(self.layout.config(kind)):
                return absolute(self.layout.load(kind).pki)
        return self.layout.pki


def places(overrides: Overrides, environment: CliSettings | None = None) -> Places:
    """Resolve where everything is. ``environment`` stands in for the process's own in tests."""
    found = load(CliSettings) if environment is None else environment
    pki = overrides.pki or found.pki
    given = {
        "array": overrides.array or found.array,
        "target": overrides.target or found.target,
        "vcenter": overrides.vcenter or found.vcenter,
        "server": overrides.server or found.server,
    }
    return Places(
        layout=Layout(absolute(overrides.state or found.state), named=overrides.state is not None),
        pki=absolute(pki) if pki else None,
        addresses={noun: address for noun, address in given.items() if address},
    )


def absolute(path: Path) -> Path:
    """Return ``path`` from the root, ``~`` resolved; links stay."""
    return Path(os.path.abspath(path.expanduser()))


def listening(settings: DaemonSettings) -> list[str]:
    """Return every address that a daemon listens on."""
    more = [settings.nbd_listen] if isinstance(settings, ArraySettings) and settings.nbd_listen else []
    return [settings.listen, *more]


def with_nbd_port(settings: DaemonSettings, port: int) -> DaemonSettings:
    """Return the settings with another port for NBD, where they serve it; 0: any that is free."""
    if not isinstance(settings, ArraySettings) or not settings.nbd_listen:
        return settings
    return dataclasses.replace(settings, nbd_listen=f"{settings.nbd_listen.rpartition(':')[0]}:{port}")


def callable_address(listen: str) -> str:
    """Return the address to call a daemon at that listens at ``listen`` on this machine."""
    host, port = split_address(listen)
    shown = f"[{host}]" if ":" in host else host
    return f"{_ANYWHERE.get(host, shown)}:{port}"
