"""Running guests on their way between hosts, by QEMU's own migration: LiveMover for QEMU.

The guest's memory goes over mutual TLS; the disks stay on their array, exported to both hosts. The QEMU that
receives was started standing still, and its disks are inactive until it runs. The one that has sent stands
still with inactive disks, and takes them back when it is told to run on.
Invariants: those of hostagent/live_move.py, and
  R1 the run record names the migration before QEMU is told anything of it, and ``sent`` is durable before
     it is answered.
  R2 only a host of this site may send a guest here: its certificate is of our CA and says so.
Limits: one port of MIGRATION_PORTS for each guest that comes in. Callers: migration.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arraylift.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import MigrationId, VmId
from arraylift.logs import get_logger
from hostagent.live_move import MoveProgress
from hostagent.qemu.exports import TLS_OBJECT, TLS_SERVER_OBJECT
from hostagent.qemu.guest import Guest
from hostagent.qemu.monitor import MonitorRefused
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import VmRecord

POLL_SECONDS = 0.2
END_SECONDS = 10.0
"""How long QEMU may take to cancel, or to become whole after the last byte."""

BANDWIDTH_MAX = 8 << 30
MEMORY_POLLS_SILENT_MAX = 10
"""A QEMU that sends may be slow to answer; after so many polls without an answer it is taken to hang."""

_AUTHORIZED = "hosts"
_BROKEN = ("failed", "cancelled")
_UNDER_WAY = ("setup", "active", "device", "pre-switchover", "wait-unplug")

_log = get_logger("qemu")


@dataclass(frozen=True, slots=True)
class MovePlaces:
    """``listen``: where guests come in here; ``told``: how others reach that; ``ports`` to choose from.
    ``tls_name_of`` gives the name that a host reached at an address must have in its certificate."""

    listen: str
    told: str
    ports: Sequence[int]
    tls_name_of: Callable[[str], str]


def parse_ports(text: str) -> Sequence[int]:
    """``FIRST-LAST``. Raises InvalidRequest."""
    first, dash, last = text.partition("-")
    if dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535:
        return range(int(first), int(last) + 1)
    raise InvalidRequest(f"{text!r} is no range of ports", next_step="write FIRST-LAST, e.g. 7480-7499")


class QemuMover:
    """``left``: called when a guest does not run here any more."""

    def __init__(self, vmm: Vmm, places: MovePlaces, *, left: Callable[[VmId], None]) -> None:
        self._vmm, self._places, self._left = vmm, places, left

    # -- the new host ---------------------------------------------------------------------------

    def expect(self, vm: VmRecord, migration_id: MigrationId) -> str:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            if guest.alive and guest.record.incoming == migration_id:
                return self._address(guest)
            self._vmm.end_by_force(guest)
            with self._vmm.starting(guest, vm, incoming=migration_id):
                self._open_port(guest)
                address = self._address(guest)
            _log.info("guest_expected", vm=vm.vm_id, migration=migration_id, address=address)
            return address

    def _open_port(self, guest: Guest) -> None:
        rules = [{"match": "CN=host/*", "policy": "allow", "format": "glob"}]
        guest.monitor.execute(
            "object-add", {"qom-type": "authz-list", "id": _AUTHORIZED, "policy": "deny", "rules": rules}
        )
        guest.monitor.execute(  # R2
            "migrate-set-parameters", {"tls-creds": TLS_SERVER_OBJECT, "tls-authz": _AUTHORIZED}
        )
        _set_capabilities(guest, "return-path")
        for port in self._places.ports:
            try:
                guest.monitor.execute("migrate-incoming", {"uri": _uri(self._places.listen, port)})
            except MonitorRefused as error:
                _log.debug("migration_port_taken", port=port, error=str(error))
            else:
                return
        raise Overloaded(
            "no port is free for a guest that comes in",
            next_step="wait for other moves to end, or widen `migration_ports` in the host's settings",
        )

    def _address(self, guest: Guest) -> str:
        listening = _migration(guest).get("socket-address")
        for one in listening if isinstance(listening, list) else ():
            if isinstance(one, dict) and str(one.get("port", "")).isdecimal():
                return f"{_bracketed(self._places.told)}:{one['port']}"
        raise PeerUnavailable(
            "QEMU does not say where it listens", subject=f"VM {guest.vm_id}", next_step="retry"
        )

    def accept(self, vm: VmRecord, migration_id: MigrationId) -> None:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            if not guest.alive:
                raise NotFound(f"no guest of {vm.subject} has come", subject=vm.subject)
            if guest.record.incoming:
                self._await_whole(guest, vm)
                guest.monitor.execute("cont")
                FAILPOINTS.hit("qemu.accepted")
                guest.folder.keep(replace(guest.record, incoming=""))
                _log.info("guest_came", vm=vm.vm_id, migration=migration_id)

    def _await_whole(self, guest: Guest, vm: VmRecord) -> None:
        """Its last byte has been sent: it is whole within moments, or never."""
        until = time.monotonic() + END_SECONDS
        while guest.status(seconds=END_SECONDS) == "inmigrate":
            if time.monotonic() >= until or not guest.alive:
                self._vmm.end_by_force(guest)
                raise NotFound(f"the guest of {vm.subject} did not come whole", subject=vm.subject)
            time.sleep(POLL_SECONDS)

    def dismiss(self, vm: VmRecord, migration_id: MigrationId) -> None:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            if guest.record.incoming == migration_id:
                self._vmm.end_by_force(guest)
                _log.info("guest_dismissed", vm=vm.vm_id, migration=migration_id)

    # -- the old host ---------------------------------------------------------------------------

    def send(
        self, vm: VmRecord, migration_id: MigrationId, address: str, *, downtime_ms_max: int, seconds_max: int
    ) -> Iterator[MoveProgress]:
        guest = self._vmm.guest(vm.vm_id)
        until = time.monotonic() + seconds_max
        with guest.lock:
            if not self._sent(guest, migration_id):
                self._begin(guest, vm, migration_id, address, downtime_ms_max)
        silent = 0
        while not self.is_sent(vm, migration_id):
            if guest.record.outgoing != migration_id:
                raise WrongState(f"{vm.subject} was taken back", subject=vm.subject)
            if not guest.alive:
                raise WrongState(f"{vm.subject} went off on its way", subject=vm.subject)
            try:
                info = _migration(guest)
                silent = 0
            except (DeadlineExceeded, PeerUnavailable):
                silent += 1
                if silent > MEMORY_POLLS_SILENT_MAX:
                    raise
                continue
            self._check(guest, vm, info, late=time.monotonic() >= until)
            yield _progress(info)
            time.sleep(POLL_SECONDS)

    def _begin(
        self, guest: Guest, vm: VmRecord, migration_id: MigrationId, address: str, downtime_ms: int
    ) -> None:
        if not guest.alive:
            raise WrongState(f"{vm.subject} is off", subject=vm.subject)
        record = guest.record
        if record.outgoing not in ("", migration_id):
            raise WrongState(f"{vm.subject} is being sent in another migration", subject=vm.subject)
        if record.outgoing == migration_id and _migration(guest).get("status") in _UNDER_WAY:
            return  # it is followed
        if not guest.has_plain_places(vm):
            raise WrongState(
                f"{vm.subject} had disks taken away while it ran: no other host would build the same machine",
                subject=vm.subject,
                next_step="power it off and on once, or move it while it is off",
            )
        guest.folder.keep(replace(record, outgoing=migration_id))  # R1
        FAILPOINTS.hit("qemu.sending")
        host, _, port = address.rpartition(":")
        _set_capabilities(guest, "return-path", "auto-converge")
        guest.monitor.execute(
            "migrate-set-parameters",
            {
                "tls-creds": TLS_OBJECT,
                "tls-hostname": self._places.tls_name_of(host.strip("[]")),
                "downtime-limit": downtime_ms,
                "max-bandwidth": BANDWIDTH_MAX,
            },
        )
        guest.monitor.execute("migrate", {"uri": f"tcp:{host}:{port}"})
        _log.info("guest_leaves", vm=vm.vm_id, migration=migration_id, address=address)

    def _check(self, guest: Guest, vm: VmRecord, info: dict[str, Any], *, late: bool) -> None:
        """Raises what has ended a sending, or ends one that is late."""
        if info.get("status") in _BROKEN:
            raise PeerUnavailable(
                f"{vm.subject} did not get to the other host: {str(info.get('error-desc', 'cut'))[:300]}",
                subject=vm.subject,
                next_step="see that host's log; both hosts need the same QEMU and CPU model",
            )
        if late:
            guest.monitor.execute("migrate_cancel")
            raise DeadlineExceeded(
                f"{vm.subject} changes its memory faster than it can be sent",
                subject=vm.subject,
                next_step="allow more time or a longer stand, or move it while it is off",
            )

    def is_sent(self, vm: VmRecord, migration_id: MigrationId) -> bool:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            return self._sent(guest, migration_id)

    def _sent(self, guest: Guest, migration_id: MigrationId) -> bool:
        record = guest.record
        if record.outgoing != migration_id or record.sent or not guest.alive:
            return record.outgoing == migration_id and record.sent
        try:
            info, does = _migration(guest), guest.status(seconds=END_SECONDS)
        except (DeadlineExceeded, PeerUnavailable):
            return False
        # "completed" alone may be of another time: when this guest came, or was sent and taken back.
        if info.get("status") != "completed" or does != "postmigrate":
            return False
        downtime_ms = info.get("downtime", 0)
        downtime_ns = downtime_ms * 1_000_000 if type(downtime_ms) is int else 0
        guest.folder.keep(replace(record, sent=True, downtime_ns=downtime_ns))  # R1
        _log.info("guest_sent", vm=guest.vm_id, migration=migration_id, downtime_ms=downtime_ms)
        return True

    def downtime_ns(self, vm: VmRecord, migration_id: MigrationId) -> int:
        record = self._vmm.guest(vm.vm_id).record
        return record.downtime_ns if record.outgoing == migration_id else 0

    def take_back(self, vm: VmRecord, migration_id: MigrationId) -> None:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            if guest.record.outgoing != migration_id:
                return
            if guest.alive:
                self._cancel(guest)
                if guest.status(seconds=END_SECONDS) != "running":
                    guest.monitor.execute("cont")
                FAILPOINTS.hit("qemu.taken-back")
            guest.folder.keep(replace(guest.record, outgoing="", sent=False, downtime_ns=0))
            _log.info("guest_taken_back", vm=vm.vm_id, migration=migration_id)

    def _cancel(self, guest: Guest) -> None:
        """Return when nothing is being sent. Raises DeadlineExceeded."""
        until = time.monotonic() + END_SECONDS
        guest.monitor.execute("migrate_cancel")
        while _migration(guest).get("status", "none") not in ("none", "completed", *_BROKEN):
            if time.monotonic() >= until:
                raise DeadlineExceeded(
                    "QEMU does not end a sending", subject=f"VM {guest.vm_id}", next_step="retry"
                )
            time.sleep(POLL_SECONDS)

    def let_go(self, vm: VmRecord, migration_id: MigrationId) -> None:
        guest = self._vmm.guest(vm.vm_id)
        with guest.lock:
            if guest.record.outgoing == migration_id:
                self._vmm.end_by_force(guest)
                self._left(vm.vm_id)


def _migration(guest: Guest) -> dict[str, Any]:
    said = guest.monitor.execute("query-migrate")
    return said if isinstance(said, dict) else {}


def _set_capabilities(guest: Guest, *names: str) -> None:
    wanted = [{"capability": name, "state": True} for name in names]
    guest.monitor.execute("migrate-set-capabilities", {"capabilities": wanted})


def _progress(info: dict[str, Any]) -> MoveProgress:
    memory = info.get("ram")
    memory = memory if isinstance(memory, dict) else {}
    return MoveProgress(*(_count(memory.get(name)) for name in ("transferred", "remaining")))


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def _uri(host: str, port: int) -> str:
    return f"tcp:{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
