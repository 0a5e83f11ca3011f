"""Which arrays, targets, hosts and virtual center this server knows, and where they are reached.

Invariants:
  G1 a peer that unfinished jobs or backups need is not removed.
  G2 a registered virtual center comes before the one of the settings.
Limits: PEERS_MAX peers; PROBES_MAX health checks at once. Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from arraylift.errors import ArrayliftError, InvalidRequest, NotFound, Overloaded, WrongState
from backup_server.backup_index import BackupIndex
from backup_server.job_rules import JOBS_UNFINISHED_MAX, Job
from backup_server.model import PeerKind, RegisteredPeer
from backup_server.ports import HostRef, Peers
from backup_server.server_db import ServerDb

PEERS_MAX = 1024
PROBES_MAX = 8
SETTINGS_CENTER = "vcenter"
"""Name of the virtual center that the settings name, which is known by its address only."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A peer, and what its health check said; empty: it serves. None: not asked."""

    peer: RegisteredPeer
    problem: str | None


class Registry:
    """Peers by kind and name."""

    def __init__(self, db: ServerDb, peers: Peers, *, center_address: str) -> None:
        self._db = db
        self._peers = peers
        self._center = (
            RegisteredPeer(PeerKind.VCENTER, SETTINGS_CENTER, center_address) if center_address else None
        )
        self._changing = threading.Lock()

    def add(self, peer: RegisteredPeer) -> None:
        """Add, or change the address. Raises Overloaded."""
        with self._changing:
            known = self._db.peers()
            same = any((one.kind, one.name) == (peer.kind, peer.name) for one in known)
            if len(known) >= PEERS_MAX and not same:
                raise Overloaded(f"{PEERS_MAX} peers are registered", next_step="remove some")
            self._db.save_peer(peer)

    def remove(self, kind: PeerKind, name: str) -> None:
        """Raises NotFound, WrongState (G1)."""
        with self._changing:
            peer = self.find(kind, name)
            users = [f"job {job.job_id}" for job in self._unfinished() if _needs(job, peer)]
            if kind is PeerKind.TARGET:
                users += [f"backup {one}" for one in sorted(BackupIndex(self._db).on_target(name))]
            if users:
                raise WrongState(
                    f"{len(users)} jobs and backups need {peer}, {users[0]} among them",
                    subject=str(peer),
                    next_step="let the jobs end, delete the backups; or add it again with another address",
                )
            self._db.remove_peer(kind, name)

    def _unfinished(self) -> list[Job]:
        return self._db.jobs(unfinished=True, limit=JOBS_UNFINISHED_MAX)

    def all(self, kind: PeerKind | None = None) -> list[RegisteredPeer]:
        """By kind and name, the virtual center of the settings included."""
        found = self._db.peers()
        if self._center is not None and not any(one.kind is PeerKind.VCENTER for one in found):
            found.append(self._center)
        return [peer for peer in found if kind in (None, peer.kind)]

    def find(self, kind: PeerKind, name: str) -> RegisteredPeer:
        """Raises NotFound."""
        for peer in self.all(kind):
            if peer.name == name:
                return peer
        raise NotFound(
            f"no {kind.word} {name} is registered",
            subject=f"{kind.word} {name}",
            next_step="add it, or list what there is",
        )

    def target(self, name: str) -> RegisteredPeer:
        """By name; empty: the only one. Raises NotFound, InvalidRequest (several)."""
        if name:
            return self.find(PeerKind.TARGET, name)
        targets = self.all(PeerKind.TARGET)
        if not targets:
            raise NotFound("no target is registered", subject="target", next_step="add one")
        if len(targets) > 1:
            raise InvalidRequest(f"{len(targets)} targets are registered", next_step="name one of them")
        return targets[0]

    def array(self, name: str, address: str = "") -> RegisteredPeer:
        """By name; ``address`` is where a host says it is, for one that nobody registered."""
        try:
            return self.find(PeerKind.ARRAY, name)
        except NotFound:
            if not address:
                raise
            return RegisteredPeer(PeerKind.ARRAY, name, address)

    def center(self) -> RegisteredPeer | None:
        """The virtual center, if there is one (G2)."""
        return next(iter(self.all(PeerKind.VCENTER)), None)

    def hosts(self) -> list[HostRef]:
        """For direct mode."""
        return [HostRef(peer.name, peer.address) for peer in self.all(PeerKind.HOST)]

    def probe(self, peers: Iterable[RegisteredPeer]) -> list[Probed]:
        """Ask each for its health."""
        with ThreadPoolExecutor(PROBES_MAX, thread_name_prefix="probe") as pool:
            return list(pool.map(self._probe, peers))

    def _probe(self, peer: RegisteredPeer) -> Probed:
        try:
            self._peers.check(peer)
        except ArrayliftError as error:
            return Probed(peer, str(error))
        return Probed(peer, "")


def _needs(job: Job, peer: RegisteredPeer) -> bool:
    """Hosts, arrays and the virtual center may be any that a running job came upon."""
    if peer.kind is PeerKind.TARGET:
        return job.restore is not None or (job.backup is not None and job.backup.target == peer.name)
    direct = job.backup.direct if job.backup is not None else job.restore is not None and job.restore.direct
    if peer.kind is PeerKind.ARRAY:
        return True
    return direct == (peer.kind is PeerKind.HOST)
