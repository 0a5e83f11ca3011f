"""A backup server over the fake peers: small waits, and a hook that can kill it at any boundary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.pki import TlsMaterial
from arraylift.vm.types import ConsistencyLevel
from backup_server.engine import JobView
from backup_server.job_rules import BackupOrder, Pacing, RestoreOrder
from backup_server.job_turns import Limits
from backup_server.model import Backup, ChangeSource, PeerKind, RegisteredPeer
from backup_server.orders import Choice
from backup_server.peers import Deadlines, GrpcPeers
from backup_server.server import BackupServer
from tests.fakes.world import World

PACING = Pacing(
    patience_seconds=1.5,
    pause_seconds=0.01,
    pause_seconds_max=0.05,
    lease_seconds=30,
    sweeps=1,
    sweep_seconds=3600.0,
)
DEADLINES = Deadlines(
    call_seconds=1.0, long_seconds=1.0, transfer_seconds=60.0, silence_seconds=1.0, health_seconds=1.0
)


class Killed(BaseException):
    """The process is gone: nothing after this line of it happens."""


class Rig:
    """One state directory; ``restart`` is a new process on it. Jobs run in the caller's thread."""

    def __init__(
        self,
        path: Path,
        world: World,
        tls: TlsMaterial,
        *,
        center: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self.world = world
        self.limits = limits
        self._path = path
        self._tls = tls
        self._center = center
        self.boundaries: list[str] = []
        self.kill_at: int | None = None
        self.kill_on = ""
        self.on_boundary: Callable[[str], None] = lambda _name: None
        self._dead = False
        self.peers = GrpcPeers(tls, DEADLINES)
        self.server = self._open()
        for kind, name, role in (
            (PeerKind.TARGET, "target1", "target"),
            (PeerKind.ARRAY, "array1", "array"),
            (PeerKind.HOST, "host1", "host"),
        ):
            self.server.registry.add(RegisteredPeer(kind, name, world.addresses[role]))

    def _open(self) -> BackupServer:
        return BackupServer(
            RealFiles(),
            str(self._path),
            self.peers,
            center_address=self.world.addresses["vcenter"] if self._center else "",
            clock=SYSTEM_CLOCK,
            pacing=PACING,
            limits=self.limits,
            hook=self._hook,
        )

    def _hook(self, name: str) -> None:
        if self._dead:
            raise Killed
        self.boundaries.append(name)
        self.on_boundary(name)
        late = self.kill_at is not None and len(self.boundaries) > self.kill_at
        if late or name == self.kill_on:
            self._dead = True
            raise Killed

    def restart(self) -> None:
        """Drop everything that a process holds, and open anew."""
        self.close()
        self._dead = False
        self.boundaries = []
        self.kill_at = None
        self.kill_on = ""
        self.peers = GrpcPeers(self._tls, DEADLINES)
        self.server = self._open()

    def close(self) -> None:
        self.server.close(self.peers.close)

    # -- orders -----------------------------------------------------------------------------

    def order_backup(
        self,
        vm: str = "web1",
        *,
        full: bool = False,
        direct: bool = False,
        level_min: ConsistencyLevel = ConsistencyLevel.UNSPECIFIED,
        exclude: tuple[str, ...] = (),
        gateway: str = "",
        change_source: ChangeSource = ChangeSource.UNSPECIFIED,
    ) -> str:
        """Accept a backup job; returns its id."""
        order = BackupOrder("", full, direct, level_min, exclude, gateway, change_source)
        return self.server.orders.start_backups(Choice((vm,), all=False, tag=""), order)[0]

    def order_restore(
        self,
        backup_id: str,
        *,
        name: str = "",
        array: str = "",
        start: bool = False,
        direct: bool = False,
        keep: bool = False,
    ) -> str:
        """Accept a restore job; returns its id."""
        return self.server.orders.start_restore(
            RestoreOrder(backup_id, name, "", array, start=start, direct=direct, keep_identity=keep)
        )

    def order_in_place(
        self, backup_id: str, *, stop: bool = True, start: bool = False, direct: bool = False
    ) -> str:
        """Accept a restore in place; returns its job's id."""
        order = RestoreOrder(
            *(backup_id, "", "", ""),
            start=start,
            direct=direct,
            keep_identity=False,
            in_place=True,
            stop=stop,
        )
        return self.server.orders.start_restore(order)

    def run(self, job_id: str) -> JobView:
        """Run a job in this thread; returns how it stands then."""
        self.server.engine.run(job_id)
        return self.server.engine.view(job_id)

    def back_up(self, vm: str = "web1", *, full: bool = False, direct: bool = False) -> Backup:
        """One backup, start to end."""
        view = self.run(self.order_backup(vm, full=full, direct=direct))
        assert view.job.failure is None, view.job.failure
        return self.server.db.backup(view.job.job_id)

    def sweep(self) -> None:
        """As many rounds of the reaper as it takes, after all late calls came in."""
        self.world.wait_idle()
        for _ in range(10):
            if not self.server.engine.sweep():
                self.server.backups.finish_deletes()
                return
        raise AssertionError("the reaper never ends")
