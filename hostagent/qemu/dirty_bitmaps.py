"""Dirty bitmaps of running QEMUs, one on each disk for a mark; read through QEMU's own NBD server.

Invariants: those that marks.Bitmaps states, and
  B1 bitmaps of all disks begin and stop in one ``transaction``, which first waits for every request on its
     way: QEMU marks a write when it is answered, later than the array has it.
  B2 the NBD server runs for the time of one reading, behind a socket that only this host's agent reaches.
Callers: marks, under the VM's lock. Why: docs/decisions/0092-marks-of-a-vmm.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, PeerUnavailable
from arraylift.nbd.client import NbdClient
from arraylift.nbd.grains import mark as mark_grains
from arraylift.nbd.uri import NbdUri
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of
from hostagent.change_tracking import MarkId
from hostagent.mark_record import Place
from hostagent.marks import Spans
from hostagent.unix_sockets import listen, short_path
from hostagent.vm_types import VmRecord

LOOK_SECONDS = 2.0
"""A QEMU that hangs shall not hold a snapshot up for long: it is not tracked then."""

TRANSACTION_SECONDS = 10.0
"""A transaction waits for writes on their way; an array that is away holds it up."""

_PREFIX = "al-"
_EXPORT, _SERVER = "al-changes", "al-changes-listener"


class Commands(Protocol):
    """QEMU's monitor."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        seconds: float = ...,
        descriptor: int | None = None,
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class WatchedVm:
    """A running QEMU: the nodes of its disks, and where a socket for reading may lie."""

    commands: Commands
    nodes: Mapping[Place, str]
    socket_path: str


class QemuBitmaps:
    """Bitmaps of all VMs. ``find`` raises PeerUnavailable for one that does not run."""

    def __init__(self, find: Callable[[VmRecord], WatchedVm], files: Files) -> None:
        self._find, self._files = find, files

    def look(self, vm: VmRecord) -> Mapping[Place, Mapping[MarkId, bool]]:
        watched = self._find(vm)
        told = watched.commands.execute("query-named-block-nodes", {"flat": True}, seconds=LOOK_SECONDS)
        bitmaps = {
            node.get("node-name"): dict(_sound(node.get("dirty-bitmaps")))
            for node in (told if isinstance(told, list) else [])
            if isinstance(node, dict)
        }
        return {place: bitmaps.get(node, {}) for place, node in watched.nodes.items()}

    def add(self, vm: VmRecord, mark: MarkId) -> None:
        watched = self._find(vm)
        data = {"name": _PREFIX + mark, "granularity": GRANULE_BYTES, "persistent": False}
        self._transact(
            watched, "block-dirty-bitmap-add", [{"node": node, **data} for node in watched.nodes.values()]
        )

    def stop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        self._on_all(vm, "block-dirty-bitmap-disable", marks)

    def drop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        self._on_all(vm, "block-dirty-bitmap-remove", marks)

    def read(self, vm: VmRecord, place: Place, marks: Sequence[MarkId]) -> tuple[Spans, int]:
        watched = self._find(vm)
        names = [_PREFIX + mark for mark in marks]
        contexts = [f"qemu:dirty-bitmap:{name}" for name in names]
        with (
            self._served(watched, watched.nodes[place], names) as uri,
            NbdClient(uri, contexts=contexts) as client,
        ):
            if client.contexts != frozenset(contexts):
                raise PeerUnavailable(f"QEMU of {vm.subject} does not show its bitmaps", subject=vm.subject)
            spans: Spans = np.zeros(spans_of(client.size_bytes), np.bool_)
            for offset, states in client.status():
                for extents in states.values():
                    # Whatever it says that we do not know counts as dirty.
                    mark_grains(spans, SPAN_BYTES, offset, extents, extents[:, 1] != 0)
            return spans, client.size_bytes

    # -- inside ---------------------------------------------------------------------------------

    def _on_all(self, vm: VmRecord, action: str, marks: Collection[MarkId]) -> None:
        watched, seen = self._find(vm), self.look(vm)
        self._transact(
            watched,
            action,
            [
                {"node": node, "name": _PREFIX + mark}
                for place, node in watched.nodes.items()
                for mark in marks
                if mark in seen[place]
            ],
        )

    @staticmethod
    def _transact(watched: WatchedVm, action: str, each: list[dict[str, object]]) -> None:
        """B1."""
        if each:
            actions = [{"type": action, "data": data} for data in each]
            watched.commands.execute("transaction", {"actions": actions}, seconds=TRANSACTION_SECONDS)

    @contextlib.contextmanager
    def _served(self, watched: WatchedVm, node: str, names: list[str]) -> Iterator[NbdUri]:
        """B2. The socket is made here: QEMU may be forbidden to make one."""
        commands, path = watched.commands, watched.socket_path
        with contextlib.suppress(ArrayliftError):  # what a process before this one left
            commands.execute("nbd-server-stop")
        self._files.remove(path, label="changes-socket", missing_ok=True)
        listener = listen(path)
        try:
            commands.execute("getfd", {"fdname": _SERVER}, descriptor=listener.fileno())
        finally:
            listener.close()
        try:
            address = {"type": "fd", "data": {"str": _SERVER}}
            commands.execute("nbd-server-start", {"addr": address, "max-connections": 1})
            export = {"type": "nbd", "id": _EXPORT, "name": _EXPORT, "node-name": node, "bitmaps": names}
            commands.execute("block-export-add", export)
            with short_path(path) as short:
                yield NbdUri(_EXPORT, tls=False, socket_path=short)
        finally:
            with contextlib.suppress(ArrayliftError):  # its exports end with it
                commands.execute("nbd-server-stop")
            self._files.remove(path, label="changes-socket", missing_ok=True)


def _sound(told: object) -> Iterator[tuple[MarkId, bool]]:
    """Our bitmaps of a node, and whether they record."""
    for one in told if isinstance(told, list) else []:
        name = one.get("name", "") if isinstance(one, dict) else ""
        if isinstance(name, str) and name.startswith(_PREFIX) and not one.get("inconsistent"):
            yield MarkId(name.removeprefix(_PREFIX)), bool(one.get("recording", True))
