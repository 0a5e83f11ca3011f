"""All transfers of a target: grants, who may use them, leases, and what is left of old ones.

Invariants:
  R1 a transfer is opened by the peer that its grant names, with its grant, only.
  R2 a transfer that nobody continued for its lease is forgotten; its log goes, and with it
     its hold on segments. Leases run on our monotonic clock and restart in full (law 9).
  R3 an image whose manifest was published before a crash is committed, whatever its log says; also
     where the log is long forgotten, and the same transfer is asked for again.
  R4 a transfer that the target granted to itself lives as long as the call that it serves: what a
     crash left of one is removed at the next start, and no peer can open it.
Limits: TRANSFERS_MAX transfers. Callers: any thread; the reaper is a thread of its own.
"""

from __future__ import annotations

import contextlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Corruption,
    LeaseLost,
    NotFound,
    NotPermitted,
    OutOfSpace,
    Overloaded,
    WrongState,
)
from arraylift.exchange.messages import Limits, Open
from arraylift.ids import Fingerprint, ImageId, TenantId, TransferId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from dedup_target.image_reader import ImageReader
from dedup_target.manifest_format import ImageManifest
from dedup_target.mark import LiveLog, TreeRoot
from dedup_target.store import Store
from dedup_target.transfer import Transfer
from dedup_target.transfer_format import CommittedTransfer, GrantParameters
from dedup_target.transfer_log import TransferLog

TRANSFERS_MAX = 512
REAP_SECONDS = 5.0
SENDER_ROLE = "array"
"""Of the certificate that a sender shows: a name alone could be another daemon's."""
LOCAL_PEER = ""
"""Whom a grant names that the target gave to itself: no certificate has that name."""
IDLE_SECONDS = 5.0
"""A lane that is silent gives its container buffer up after this: others wait for it."""

_log = get_logger("transfers")


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """What CreateGrant asks for, checked."""

    transfer_id: TransferId
    peer: str
    tenant_name: str
    image_name: str
    base_image_id: ImageId | None
    no_base: bool


class Transfers:
    """The registry."""

    def __init__(
        self, store: Store, images: ImageReader, *, limits: Limits, lease_seconds: int, clock: Clock
    ) -> None:
        self._store = store
        self._images = images
        self._limits = limits
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._transfers: dict[TransferId, Transfer] = {}
        for transfer_id in store.transfers.list():
            self._recover(transfer_id)
        self._stop = threading.Event()
        self._reaper = threading.Thread(target=self._reap_for_ever, name="transfer-reaper", daemon=True)
        self._reaper.start()

    # -- grants ---------------------------------------------------------------------------------

    def create_grant(self, request: GrantRequest) -> tuple[bytes, ImageId | None]:
        """Return (grant, chosen base). Idempotent by transfer id.

        Raises NotFound (base), AlreadyExists (another request with this id), Overloaded,
        OutOfSpace (the target's reserve, the tenant's quota).
        """
        with self._lock:
            known = self._transfers.get(request.transfer_id)
            if known is not None and known.is_over:
                self._forget(known)
            elif known is not None:
                return self._same_grant(known, request)
            transfer = self._grant(self._with_near_base(request))
        return self._store.grant_for(request.transfer_id), transfer.grant.base_image_id

    def _with_near_base(self, request: GrantRequest) -> GrantRequest:
        """A base in another unit is none: its root promises nothing of the unit that receives."""
        if request.base_image_id is None or not self._store.manifests.is_elsewhere(request.base_image_id):
            return request
        return replace(request, base_image_id=None, no_base=True)

    @property
    def bases(self) -> frozenset[ImageId]:
        """Images that open transfers build on."""
        with self._lock:
            open_ones = [one.grant for one in self._transfers.values() if one.receipt() is None]
        return frozenset(grant.base_image_id for grant in open_ones if grant.base_image_id is not None)

    def _grant(self, request: GrantRequest) -> Transfer:
        """Admit a transfer whose id is free. Caller holds the lock."""
        self._store.reserve.check_begin()  # before a tenant's key is made for nothing
        tenant = self._store.keys.get_or_create(request.tenant_name)
        self._store.space.check_transfer(tenant.tenant)
        if len(self._transfers) >= TRANSFERS_MAX:
            raise Overloaded(
                f"{TRANSFERS_MAX} transfers are open",
                next_step="let some commit or lapse, or revoke their grants",
            )
        made = self._made(request, tenant.tenant)
        base = self._base_for(request, tenant.tenant) if made is None else None
        log = self._store.transfers.create(
            GrantParameters(
                transfer_id=request.transfer_id,
                peer=request.peer,
                tenant=tenant.tenant,
                tenant_name=tenant.name,
                image_name=request.image_name,
                base_image_id=base.image_id if base else request.base_image_id,
                base_root=base.root if base else None,
            )
        )
        if made is not None:
            _note_committed(log, made)  # R3
        transfer = self._transfers[request.transfer_id] = self._transfer(log)
        return transfer

    def _base_for(self, request: GrantRequest, tenant: TenantId) -> ImageManifest | None:
        """Raises NotFound."""
        if request.base_image_id is None:
            newest = self._store.unit.manifests.newest(tenant, request.image_name)
            return None if request.no_base else newest
        base = self._store.manifests.get(request.base_image_id)
        if base.tenant != tenant:
            raise NotFound(f"there is no image {request.base_image_id}", next_step="list the images")
        return base

    def _made(self, request: GrantRequest, tenant: TenantId) -> ImageManifest | None:
        """The image that this transfer made before it was forgotten. Raises AlreadyExists (another's)."""
        try:
            image = self._store.manifests.get(ImageId(request.transfer_id))
        except NotFound:
            return None
        if (image.tenant, image.name) != (tenant, request.image_name):
            raise _granted_elsewhere(request.transfer_id)
        return image

    def _same_grant(self, known: Transfer, request: GrantRequest) -> tuple[bytes, ImageId | None]:
        grant = known.grant
        asked = (request.peer, request.image_name, request.tenant_name or grant.tenant_name)
        same_base = request.base_image_id in (None, grant.base_image_id)
        if request.base_image_id is not None and self._store.manifests.is_elsewhere(request.base_image_id):
            same_base |= grant.base_image_id is None
        if request.no_base:
            same_base = grant.base_image_id is None
        if (grant.peer, grant.image_name, grant.tenant_name) != asked or not same_base:
            raise _granted_elsewhere(request.transfer_id)
        return self._store.grant_for(request.transfer_id), grant.base_image_id

    def revoke(self, transfer_id: TransferId) -> None:
        """Give a transfer up. Raises NotFound, WrongState (committed)."""
        with self._lock:
            transfer = self._known(transfer_id)
            with transfer.lock:  # a commit that has begun comes first
                if transfer.receipt() is not None:
                    raise WrongState(
                        f"transfer {transfer_id} has committed",
                        next_step="delete its image instead, if that is meant",
                    )
                self._forget(transfer)

    # -- local transfers ------------------------------------------------------------------------

    def begin_local(self, request: GrantRequest) -> Transfer:
        """Make a transfer for data that this process sends, instead of one that an earlier call of the
        same id left or still runs: that one is fenced. Returns a committed one as it is.

        Raises NotFound (base), AlreadyExists (a peer's transfer of that id), Overloaded, OutOfSpace.
        """
        assert request.peer == LOCAL_PEER, "R4"
        with self._lock:
            known = self._transfers.get(request.transfer_id)
            if known is not None:
                if known.grant.peer != LOCAL_PEER:
                    raise _granted_elsewhere(request.transfer_id)
                with known.lock:  # a commit that has begun comes first
                    if known.receipt() is not None:
                        return known
                    self._forget(known)
            return self._grant(request)

    def end_local(self, transfer: Transfer) -> None:
        """The call is over, however: nothing is left but the image, if it was committed (R4)."""
        with self._lock:
            if self._transfers.get(transfer.transfer_id) is transfer:
                self._forget(transfer)

    # -- opening --------------------------------------------------------------------------------

    def find(self, message: Open, *, role: str, name: str) -> Transfer:
        """Return the transfer that a peer opens (R1). Raises NotFound, NotPermitted."""
        with self._lock:
            transfer = self._known(message.transfer_id)
        expected = self._store.grant_for(message.transfer_id)
        granted = (role, name) == (SENDER_ROLE, transfer.grant.peer)
        if not granted or not hmac.compare_digest(expected, message.grant):
            raise NotPermitted(
                f"{role} {name} holds no grant for transfer {message.transfer_id}",
                next_step="ask the target for a grant that names this array",
            )
        return transfer

    def _known(self, transfer_id: TransferId) -> Transfer:
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            raise NotFound(
                f"there is no transfer {transfer_id}",
                next_step="its lease may have lapsed; ask for a new grant",
            )
        return transfer

    @property
    def open_count(self) -> int:
        """Transfers that have not committed."""
        with self._lock:
            return sum(transfer.receipt() is None for transfer in self._transfers.values())

    # -- what collection must know (law 8) ------------------------------------------------------

    def live_logs(self) -> list[LiveLog]:
        """What each transfer that has not committed made durable so far."""
        return [transfer.frozen_log() for transfer in self._live()]

    def live_bases(self) -> list[TreeRoot]:
        """The bases that they may inherit from, also where the image is deleted by now."""
        return [
            TreeRoot(grant.tenant, Fingerprint(grant.base_root), f"the base of transfer {grant.transfer_id}")
            for grant in (transfer.grant for transfer in self._live())
            if grant.base_root is not None
        ]

    def _live(self) -> list[Transfer]:
        with self._lock:
            return [transfer for transfer in self._transfers.values() if transfer.receipt() is None]

    def while_nobody_sends(self, change: Callable[[], None]) -> None:
        """Fence every attempt, change where transfers are taken in, and look up what they promised.

        Transfers that build on a base are given up.
        """
        with self._lock, contextlib.ExitStack() as held:
            running = [one for one in self._transfers.values() if one.receipt() is None]
            for transfer in running:
                held.enter_context(transfer.lock)  # a commit that has begun comes first
                transfer.fence(LeaseLost("the target begins to store elsewhere", next_step="open it again"))
            change()
            for transfer in running:
                if transfer.receipt() is not None:
                    continue
                if transfer.grant.base_image_id is None and not transfer.is_over:
                    transfer.void_lost()
                else:  # its base is not where its segments go from now on
                    self._forget(transfer)

    # -- recovery and leases --------------------------------------------------------------------

    def _transfer(self, log: TransferLog) -> Transfer:
        return Transfer(
            self._store,
            self._images,
            log,
            limits=self._limits,
            lease_seconds=self._lease_seconds,
            clock=self._clock,
        )

    def _recover(self, transfer_id: TransferId) -> None:
        try:
            log = self._store.transfers.open(transfer_id)
        except (Corruption, WrongState) as error:
            _log.error("transfer_log_unreadable", transfer=transfer_id, error=str(error))
            return
        if log.state.grant.peer == LOCAL_PEER:  # R4
            log.close()
            self._store.transfers.remove(transfer_id)
            _log.info("local_transfer_dropped", transfer=transfer_id)
            return
        image = self._store.manifests.by_transfer(transfer_id)
        if image is not None and log.state.committed is None:  # R3
            _note_committed(log, image)
        transfer = self._transfers[transfer_id] = self._transfer(log)
        if self._store.in_doubt and log.state.committed is None:
            self._recheck(transfer)  # before the doubt ends: it ends with the images, not with the logs

    def _recheck(self, transfer: Transfer) -> None:
        try:
            self._store.reserve.with_room(transfer.void_lost)
        except (OutOfSpace, Overloaded) as error:  # a start needs no room: begun anew, nothing is lost
            _log.warning("transfer_dropped", transfer=transfer.transfer_id, error=str(error))
            self._forget(transfer)

    def _reap_for_ever(self) -> None:
        while not self._stop.wait(REAP_SECONDS):
            _, error = attempt(self.reap, "looking after transfers")
            if error is not None:
                _log.warning("transfers_not_reaped", error=str(error))

    def reap(self) -> None:
        """Forget what nobody continued (R2), and seal what a silent lane has begun."""
        with self._lock:
            running = list(self._transfers.values())
        for transfer in running:
            transfer.rotate_lanes(older_than_seconds=IDLE_SECONDS, wait=False)
        with self._lock:
            for transfer in [one for one in self._transfers.values() if one.lapsed]:
                _log.info("transfer_lapsed", transfer=transfer.transfer_id)
                try:
                    self._forget(transfer)
                except ArrayliftError as error:
                    _log.warning("transfer_left", transfer=transfer.transfer_id, error=str(error))

    def _forget(self, transfer: Transfer) -> None:
        """Give a transfer up. Where its log cannot be removed, it still counts for collection (law 8),
        since the next process would believe that log; the reaper tries again."""
        # Whoever called its lanes may never be heard of again: they must not keep buffers for him.
        transfer.rotate_lanes(older_than_seconds=0, wait=False)
        transfer.give_up()
        with contextlib.suppress(NotFound):
            self._store.transfers.remove(transfer.transfer_id)
        del self._transfers[transfer.transfer_id]

    def close(self) -> None:
        """Stop the reaper, fence every lane, close every log."""
        self._stop.set()
        self._reaper.join()
        with self._lock:
            for transfer in self._transfers.values():
                transfer.close()


def _note_committed(log: TransferLog, image: ImageManifest) -> None:
    log.append_committed(CommittedTransfer(image.root, image.image_id, dict(image.figures)))
    log.sync()


def _granted_elsewhere(transfer_id: TransferId) -> AlreadyExists:
    return AlreadyExists(
        f"transfer {transfer_id} was granted for something else",
        subject=f"transfer {transfer_id}",
        next_step="make a new transfer id",
    )
