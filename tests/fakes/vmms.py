"""The VMMs of several hosts without a hypervisor: guests that run, come in, or were sent.

They are processes of their own: they outlive a host agent that is killed, and die with their host's power.
What the driver here keeps is the contract of hostagent/live_move.py; what is asserted, at every change, is
the law of migrations: no guest runs on two hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from arraylift.errors import NotFound, PeerUnavailable, WrongState
from arraylift.ids import MigrationId, SnapshotId, VmId
from arraylift.nbd.uri import NbdUri
from arraylift.vm.types import Disk
from hostagent.live_move import MoveProgress
from hostagent.vm_types import VmRecord
from hostagent.volumes import TakenSnapshot, VolumeFacts
from tests.unit.hostagent.stage import FakeDriver

ADDRESS = "migration.{}:{}"


@dataclass
class Incoming:
    """A VMM that waits for memory; ``whole`` when all of it has come."""

    migration_id: MigrationId
    whole: bool = False


@dataclass
class Vmms:
    """Every VMM process there is, by host and VM."""

    running: set[tuple[str, VmId]] = field(default_factory=set)
    incoming: dict[tuple[str, VmId], Incoming] = field(default_factory=dict)
    sent: dict[tuple[str, VmId], MigrationId] = field(default_factory=dict)

    def run(self, host: str, vm_id: VmId) -> None:
        others = [other for other, one in self.running if one == vm_id and other != host]
        assert not others, f"VM {vm_id} runs on {host} and on {others}"
        self.running.add((host, vm_id))

    def power_cut(self, host: str) -> None:
        """Everything on that host is gone."""
        self.running = {one for one in self.running if one[0] != host}
        self.incoming = {key: one for key, one in self.incoming.items() if key[0] != host}
        self.sent = {key: one for key, one in self.sent.items() if key[0] != host}


class VmmDriver(FakeDriver):
    """The driver, and mover, of one host agent's process; ``during_send`` is called in mid-send."""

    def __init__(self, vmms: Vmms, host: str, *, live: bool = True) -> None:
        super().__init__()
        self.vmms, self.host = vmms, host
        self.mover = self if live else None
        self.during_send: Callable[[], None] = lambda: None
        self.start_error: Exception | None = None

    # -- Driver ---------------------------------------------------------------------------------

    def resume(self, vm: VmRecord) -> None:
        """Whatever there is of it goes on as it is (W2)."""

    def start(self, vm: VmRecord) -> None:
        if self.start_error is not None:
            raise self.start_error
        assert (self.host, vm.vm_id) not in self.vmms.sent, "a guest that was sent is not started again"
        self.vmms.run(self.host, vm.vm_id)

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        for processes in (self.vmms.running, self.vmms.incoming, self.vmms.sent):
            for key in [key for key in processes if key[0] == self.host and key[1] not in running]:
                processes.discard(key) if isinstance(processes, set) else processes.pop(key)

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        self.vmms.running.discard((self.host, vm.vm_id))

    def is_running(self, vm_id: VmId) -> bool:
        return (self.host, vm_id) in self.vmms.running

    def release(self, vm: VmRecord) -> None:
        key = self.host, vm.vm_id
        assert not any(key in some for some in (self.vmms.running, self.vmms.incoming, self.vmms.sent))
        self.released.append(vm.vm_id)

    # -- LiveMover ------------------------------------------------------------------------------

    def expect(self, vm: VmRecord, migration_id: MigrationId) -> str:
        known = self.vmms.incoming.get((self.host, vm.vm_id))
        if known is None or known.migration_id != migration_id:
            self.vmms.incoming[self.host, vm.vm_id] = Incoming(migration_id)
        return ADDRESS.format(self.host, vm.vm_id)

    def accept(self, vm: VmRecord, migration_id: MigrationId) -> None:
        key = self.host, vm.vm_id
        if key in self.vmms.running:
            return
        come = self.vmms.incoming.get(key)
        if come is None or come.migration_id != migration_id or not come.whole:
            raise NotFound("no whole guest came")
        del self.vmms.incoming[key]
        self.vmms.run(*key)

    def dismiss(self, vm: VmRecord, migration_id: MigrationId) -> None:
        self.vmms.incoming.pop((self.host, vm.vm_id), None)

    def send(
        self, vm: VmRecord, migration_id: MigrationId, address: str, *, downtime_ms_max: int, seconds_max: int
    ) -> Iterator[MoveProgress]:
        yield MoveProgress(0, 100)
        self.during_send()
        key = self.host, vm.vm_id
        if self.vmms.sent.get(key) != migration_id:
            if key not in self.vmms.running:
                raise WrongState("the guest is off")
            waiting = {ADDRESS.format(*where): come for where, come in self.vmms.incoming.items()}
            come = waiting.get(address)
            if come is None or come.migration_id != migration_id or come.whole:
                raise PeerUnavailable("nobody waits there")
            self.vmms.running.discard(key)
            self.vmms.sent[key] = migration_id
            come.whole = True
        yield MoveProgress(100, 0)

    def is_sent(self, vm: VmRecord, migration_id: MigrationId) -> bool:
        return self.vmms.sent.get((self.host, vm.vm_id)) == migration_id

    def downtime_ns(self, vm: VmRecord, migration_id: MigrationId) -> int:
        return 7_000_000 if self.is_sent(vm, migration_id) else 0

    def take_back(self, vm: VmRecord, migration_id: MigrationId) -> None:
        if self.vmms.sent.pop((self.host, vm.vm_id), None) is not None:
            self.vmms.run(self.host, vm.vm_id)

    def let_go(self, vm: VmRecord, migration_id: MigrationId) -> None:
        self.vmms.sent.pop((self.host, vm.vm_id), None)


class FakeVolumes:
    """An array that has every volume it was told of, and no snapshots."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def find(self, address: str, name: str) -> VolumeFacts | None:
        return VolumeFacts(name, 1 << 20, 0, 0) if name in self.names else None

    def create(self, address: str, name: str, size_bytes: int) -> None:
        self.names.add(name)

    def delete(self, address: str, name: str) -> None:
        self.names.discard(name)

    def snapshot_group(
        self, address: str, names: Sequence[str], label: str, *, timeout_seconds: float
    ) -> list[TakenSnapshot]:
        raise AssertionError("no snapshots here")

    def snapshots_labelled(self, address: str, names: Sequence[str], label: str) -> list[TakenSnapshot]:
        raise AssertionError("no snapshots here")

    def delete_snapshot(self, address: str, snapshot_id: SnapshotId) -> None:
        raise AssertionError("no snapshots here")

    def create_export(self, address: str, export: str, volume_name: str) -> NbdUri:
        raise AssertionError("no exports here")

    def delete_export(self, address: str, export: str) -> None:
        raise AssertionError("no exports here")

    def read(self, address: str, name: str) -> Iterator[tuple[int, bytes]]:
        raise AssertionError("nothing is read here")

    def write(self, address: str, name: str, pieces: Iterator[tuple[int, bytes]]) -> None:
        raise AssertionError("nothing is written here")


def disk_of(name: str) -> Disk:
    """A disk on the only array there is."""
    return Disk("root", "a1", "array:7403", name, 1 << 20)
