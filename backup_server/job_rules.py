"""What jobs are, and the rules by which they go: states, steps, retries, ids, plans. Pure.

Invariants:
  J1 states go forward only: queued, running, then one of the three ends.
  J2 ids of everything that a job makes elsewhere follow from the job's id: a replay after a crash
     is the same call, and whoever finds such a thing finds the job.
  J4 a failed job is repeated by a new one that names it, at most as often as its order says, and only if the
     same work may succeed later. A cancelled one is not.
  J3 a job that is to end badly (``ending``) never makes anything again; it only cleans up.
Callers: any thread.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import blake2b

from arraylift.errors import (
    ArrayliftError,
    Conflict,
    DeadlineExceeded,
    LeaseLost,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.vm.types import LATER, ConsistencyLevel, NetworkInterface, VmConfig, VmSnapshot
from backup_server.model import ChangeSource

DISKS_PER_JOB_MAX = 2
"""Disks of one job that are sent at once."""

TRANSFER_PATIENCE_SECONDS_MAX = 60
"""Longest time without progress that array and target retry by themselves before they tell us: well
below the silence that ``peers`` bears, and cheap, for a transfer that is asked for again goes on."""

JOBS_UNFINISHED_MAX = 4096
"""Jobs queued and running; more are refused."""

JOBS_KEPT_MAX = 10_000
"""Jobs that have ended and are remembered; the oldest are forgotten."""

RETRIES_MAX = 10
"""Times that a failed job is started again, at most."""

NAME_BYTES_MAX = 255
RESTORE_TAG = "arraylift.restore"


class JobKind(IntEnum):
    """Numbers are those of the proto."""

    BACKUP = 1
    RESTORE = 2


class JobState(IntEnum):
    """Numbers are those of the proto."""

    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def ended(self) -> bool:
        """No step of it runs again."""
        return self >= JobState.SUCCEEDED


_NEXT = {
    JobState.QUEUED: {JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED},
}


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """What a backup job was asked for."""

    target: str
    full: bool
    direct: bool
    level_min: ConsistencyLevel
    exclude_disks: tuple[str, ...]
    gateway: str = field(default="", metadata={LATER: True})
    """The array that reads foreign disks; empty: the first that is registered."""
    change_source: ChangeSource = field(default=ChangeSource.UNSPECIFIED, metadata={LATER: True})
    """Of volumes: UNSPECIFIED (births), or SUPPLIED, where the VMM can."""
    policy: str = field(default="", metadata={LATER: True})
    """Whose run started it; empty: nobody's."""
    bytes_per_second_max: int = field(default=0, metadata={LATER: True})
    """Read, of each disk; 0: no limit."""
    retries_max: int = field(default=0, metadata={LATER: True})
    """Times that the job is started again, as a new one, where it failed by what may pass."""


@dataclass(frozen=True, slots=True)
class FileOrder:
    """Which files a restore brings back into a VM, and how."""

    volume: str
    paths: tuple[str, ...]
    on_disk: bool
    """On a disk that is made of them; else through the agent of the guest."""
    directory: str
    """In the guest; empty: where they were."""
    overwrite: bool


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What a restore job was asked for; empty where the job chooses."""

    backup_id: str
    as_name: str
    host: str
    array: str
    start: bool
    direct: bool
    keep_identity: bool
    in_place: bool = field(default=False, metadata={LATER: True})
    """Onto the disks of the VM that it is a backup of; name, host, array and identity are that VM's."""
    stop: bool = field(default=False, metadata={LATER: True})
    """In place: a running VM is powered off; without, it is refused."""
    disks: tuple[str, ...] = field(default=(), metadata={LATER: True})
    """Only these: in place, or as volumes without a VM; empty: all, with a VM."""
    volume: str = field(default="", metadata={LATER: True})
    """What the one disk becomes; empty: a name of the job's."""
    attach: str = field(default="", metadata={LATER: True})
    """A VM, by name or id, that gets the volumes."""
    memory_bytes: int = field(default=0, metadata={LATER: True})
    """Of the new VM; 0: as it was. So are CPUs and networks."""
    cpus: int = field(default=0, metadata={LATER: True})
    networks: tuple[str, ...] = field(default=(), metadata={LATER: True})
    """Of its interfaces, in order, as many as there are to be."""

    files: FileOrder | None = field(default=None, metadata={LATER: True})
    """Only these, into the job's VM."""

    @property
    def edits(self) -> bool:
        """The new VM is to have other attributes than the old one."""
        return bool(self.memory_bytes or self.cpus or self.networks)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is kept."""

    reason: str
    message: str
    subject: str
    next_step: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One step that began. ``result`` is a document, empty until it is done."""

    name: str
    started_at_ns: int
    ended_at_ns: int = 0
    detail: str = ""
    result: str = ""
    tries: int = field(default=0, metadata={LATER: True})
    """That failed and were made again."""
    trouble: str = field(default="", metadata={LATER: True})
    """Why the last of them failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the database keeps it, without its steps."""

    job_id: str
    kind: JobKind
    state: JobState
    vm_id: str
    vm_name: str
    created_at_ns: int
    backup: BackupOrder | None = None
    restore: RestoreOrder | None = None
    ended_at_ns: int = 0
    ending: JobState | None = None
    """How it is going to end badly, once it has cleaned up (J3)."""
    failure: Failure | None = None
    cancel_asked: bool = False
    sweeps_left: int = 0
    """Times that the reaper will clean up after it again: a call that was given up may still land."""
    retry_of: str = field(default="", metadata={LATER: True})
    """The job that this one repeats."""
    retried_by: str = field(default="", metadata={LATER: True})
    retry_number: int = field(default=0, metadata={LATER: True})
    not_before_ns: int = field(default=0, metadata={LATER: True})
    """A retry is queued until then."""

    @property
    def backup_id(self) -> str:
        """Of the backup that it makes, or restores."""
        return self.restore.backup_id if self.restore is not None else self.job_id


def backup_order(job: Job) -> BackupOrder:
    """What a backup job was asked for."""
    assert job.backup is not None, "a backup job has a backup's order"
    return job.backup


def moved(job: Job, state: JobState) -> Job:
    """Return the job in its next state (J1)."""
    assert state in _NEXT.get(job.state, ()), f"job {job.job_id} goes from {job.state} to {state}"
    return replace(job, state=state)


def failure_of(error: ArrayliftError) -> Failure:
    """Keep an error."""
    return Failure(error.reason, error.message, error.subject, error.next_step, dict(error.fields))


# -- retries ------------------------------------------------------------------------------------

_RETRYABLE = (PeerUnavailable, DeadlineExceeded, Overloaded, Conflict, LeaseLost)


@dataclass(frozen=True, slots=True)
class Pacing:
    """How long a job waits for others. Seconds."""

    patience_seconds: float = 300.0
    """A step that fails for so long, without progress between, fails the job."""
    pause_seconds: float = 0.5
    pause_seconds_max: float = 10.0
    lease_seconds: int = 60
    """Of a VM snapshot; the renewer restarts it three times as often."""
    sweeps: int = 3
    sweep_seconds: float = 300.0
    """Between two rounds of the reaper; three rounds outlast every deadline of a call."""

    retry_seconds: float = 60.0
    """Before a failed job is started again the first time; doubling up to a maximum."""
    retry_seconds_max: float = 3600.0

    @property
    def transfer_patience_seconds(self) -> int:
        """What a transfer is given of it: a cut must not be hidden from us for longer."""
        return max(1, min(TRANSFER_PATIENCE_SECONDS_MAX, math.ceil(self.patience_seconds)))


def is_retryable(error: ArrayliftError) -> bool:
    """The same call may succeed later."""
    return isinstance(error, _RETRYABLE)


def retry_of(job: Job, *, now_ns: int, pacing: Pacing) -> Job | None:
    """The job that repeats a backup which failed by what may pass; None: it stays failed (J4)."""
    order = job.backup
    if order is None or job.failure is None or job.retry_number >= min(order.retries_max, RETRIES_MAX):
        return None
    if job.failure.reason not in {one.reason for one in _RETRYABLE}:
        return None
    pause = min(pacing.retry_seconds_max, pacing.retry_seconds * 2.0**job.retry_number)
    return Job(
        job_id=derived_id(job.job_id, "retry"),
        kind=job.kind,
        state=JobState.QUEUED,
        vm_id=job.vm_id,
        vm_name=job.vm_name,
        created_at_ns=now_ns,
        backup=order,
        retry_of=job.job_id,
        retry_number=job.retry_number + 1,
        not_before_ns=now_ns + int(pause * 1e9),
    )


def pause_before(retry: int, pacing: Pacing) -> float:
    """Seconds to wait before retry number ``retry``, from 0: doubling up to a maximum."""
    return min(pacing.pause_seconds_max, pacing.pause_seconds * 2.0 ** min(retry, 30))


# -- ids ----------------------------------------------------------------------------------------


def _derived(job_id: str, parts: tuple[str, ...], size: int) -> bytes:
    text = "\0".join((job_id, *parts)).encode()
    return blake2b(text, digest_size=size, person=b"arraylift job").digest()


def derived_id(job_id: str, *parts: str) -> str:
    """Return the 32 hex digits of something that the job makes (J2)."""
    return _derived(job_id, parts, 16).hex()


def transfer_id(job_id: str, disk_name: str) -> str:
    """Of one disk's transfer, and hence of the image that a backup makes of it."""
    return derived_id(job_id, "transfer", disk_name)


def restore_group_id(job_id: str) -> str:
    """Of the restores that are swapped in together."""
    return derived_id(job_id, "group")


def safety_name(job_id: str) -> str:
    """Of the snapshots that keep what the disks held before a restore in place."""
    return f"before-restore-{job_id[:12]}"


def new_vm_id(job_id: str) -> str:
    """Of the VM that a restore makes."""
    return derived_id(job_id, "vm")


def new_uuid(job_id: str) -> str:
    """For the firmware of a restored VM."""
    return str(uuid.UUID(bytes=_derived(job_id, ("uuid",), 16), version=5))


def new_mac(job_id: str, index: int) -> str:
    """For network interface ``index`` of a restored VM; of QEMU's range, as the host's own."""
    return "52:54:00:" + _derived(job_id, ("mac", str(index)), 3).hex(":")


def restored_volume_name(vm_name: str, disk_name: str, job_id: str) -> str:
    """``<vm>-<disk>-<job>``, cut to what a name may have; two jobs never share one."""
    tail = f"-{disk_name[:63]}-{job_id[:12]}"
    room = NAME_BYTES_MAX - len(tail.encode())
    return vm_name.encode()[:room].decode("utf-8", "ignore").rstrip() + tail


def image_name(vm_id: str, disk_name: str) -> str:
    """All images of one disk share it: the newest is the base of the next."""
    return f"{vm_id}/{disk_name}"


# -- plans --------------------------------------------------------------------------------------


def step_name(verb: str, disk_name: str = "") -> str:
    """``"send disk0"``, ``"publish"``."""
    return f"{verb} {disk_name}" if disk_name else verb


def check_snapshot(snapshot: VmSnapshot, order: BackupOrder) -> None:
    """Raise WrongState unless the snapshot is what a backup needs: every disk once, its level."""
    wanted = [disk.name for disk in snapshot.config.disks if disk.name not in order.exclude_disks]
    found = [disk.disk_name for disk in snapshot.disks]
    subject = f"VM {snapshot.config.name}"
    if not wanted:
        raise WrongState(f"{subject} has no disk to back up", subject=subject, next_step="exclude fewer")
    if sorted(wanted) != sorted(found):
        raise WrongState(
            f"the snapshot of {subject} has the disks {', '.join(found) or 'none'}, "
            f"and not {', '.join(wanted)}",
            subject=subject,
            next_step="look at the host's log, then repeat",
        )
    if snapshot.level < order.level_min:
        raise WrongState(
            f"the snapshot of {subject} reached level {snapshot.level.name.lower()} only, "
            f"{order.level_min.name.lower()} was demanded",
            subject=subject,
            next_step="see to the guest's agent, or demand less",
        )
    for disk in snapshot.disks:
        if disk.foreign is not None and disk.state is None:
            raise WrongState(
                f"the host does not name the state of disk {disk.disk_name} of {subject}",
                subject=subject,
                next_step="look at the host's log",
            )


def edited_config(config: VmConfig, order: RestoreOrder) -> VmConfig:
    """Attributes of a VM as the order wants them; an interface keeps its MAC, a further one gets none."""
    networks = config.networks
    if order.networks:
        macs = [one.mac for one in networks] + [""] * len(order.networks)
        networks = tuple(
            NetworkInterface(mac=mac, network=name) for mac, name in zip(macs, order.networks, strict=False)
        )
    return replace(
        config,
        memory_bytes=order.memory_bytes or config.memory_bytes,
        cpus=order.cpus or config.cpus,
        networks=networks,
    )


def restored_config(config: VmConfig, *, name: str, job_id: str, keep_identity: bool) -> VmConfig:
    """Attributes of the VM that a restore makes: without disks yet, tagged with the job."""
    networks = config.networks
    if not keep_identity:
        networks = tuple(
            NetworkInterface(mac=new_mac(job_id, index), network=network.network)
            for index, network in enumerate(networks)
        )
    return replace(
        config,
        name=name,
        uuid=config.uuid if keep_identity else new_uuid(job_id),
        disks=(),
        networks=networks,
        tags=tuple(sorted({**dict(config.tags), RESTORE_TAG: job_id}.items())),
    )
