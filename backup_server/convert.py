"""Edge: the server's own values to and from messages; VMs are in ``arraylift.vm.convert``."""

from __future__ import annotations

import dataclasses

from google.protobuf.message import DecodeError

from arraylift.errors import Corruption
from arraylift.exchange import convert as exchange
from arraylift.v1 import backup_pb2, common_pb2, image_pb2
from arraylift.vm import convert as shared
from backup_server.engine import JobView
from backup_server.job_rules import Failure, JobState, Step
from backup_server.model import Backup, BackupDisk, ChangeSource, Verdict

_SOURCES = frozenset(ChangeSource)


def backup_to_pb(backup: Backup) -> backup_pb2.Backup:
    return backup_pb2.Backup(
        backup_id=backup.backup_id,
        vm_id=backup.vm_id,
        vm_name=backup.vm_name,
        target=backup.target,
        snapshot_at_ns=backup.snapshot_at_ns,
        level=int(backup.level),  # type: ignore[arg-type]
        frozen_ns=backup.frozen_ns,
        disks=[
            backup_pb2.BackupDisk(
                disk_name=disk.disk_name,
                image_id=disk.image_id,
                size_bytes=disk.size_bytes,
                root=disk.root,
                figures=exchange.figures_to_pb(disk.figures),
                array=disk.array,
                state=None if disk.state is None else exchange.state_to_pb(disk.state),
                change_source=int(disk.change_source),  # type: ignore[arg-type]
            )
            for disk in backup.disks
        ],
        config=shared.config_to_pb(backup.config),
        incremental=backup.incremental,
        lock_until_ns=backup.lock_until_ns,
        firmware_variables=backup.firmware_variables,
        policy=backup.policy,
    )


def change_source(number: int) -> ChangeSource:
    """One of a later release promises nothing."""
    return ChangeSource(number) if number in _SOURCES else ChangeSource.UNSPECIFIED


def _backup_from_pb(backup: backup_pb2.Backup, target: str) -> Backup:
    return Backup(
        backup_id=backup.backup_id,
        vm_id=backup.vm_id,
        vm_name=backup.vm_name,
        target=target,
        snapshot_at_ns=backup.snapshot_at_ns,
        level=shared.level_reached(backup.level),
        frozen_ns=backup.frozen_ns,
        disks=tuple(
            BackupDisk(
                disk_name=disk.disk_name,
                image_id=disk.image_id,
                size_bytes=disk.size_bytes,
                root=disk.root,
                figures=exchange.figures_from_pb(disk.figures),
                array=disk.array,
                state=exchange.state_from_pb(disk.state) if disk.HasField("state") else None,
                change_source=change_source(disk.change_source),
            )
            for disk in backup.disks
        ),
        config=shared.config_from_pb(backup.config),
        incremental=backup.incremental,
        firmware_variables=backup.firmware_variables,
        policy=backup.policy,
    )


def backup_to_manifest(backup: Backup) -> image_pb2.BackupManifest:
    """Deterministic: a replay must be the same manifest, byte for byte. The lock is the target's to keep."""
    backup = dataclasses.replace(backup, lock_until_ns=0)
    return image_pb2.BackupManifest(
        backup_id=backup.backup_id,
        vm_id=backup.vm_id,
        vm_name=backup.vm_name,
        snapshot_at_ns=backup.snapshot_at_ns,
        images=[
            image_pb2.BackupImage(disk_name=disk.disk_name, image_id=disk.image_id) for disk in backup.disks
        ],
        attributes=backup_to_pb(backup).SerializeToString(deterministic=True),
    )


def backup_from_manifest(manifest: image_pb2.BackupManifest, target: str) -> Backup:
    """``target`` is where it was found. Raises Corruption if the attributes are not the manifest's."""
    what = f"backup {manifest.backup_id} on target {target}"
    try:
        backup = _backup_from_pb(backup_pb2.Backup.FromString(manifest.attributes), target)
    except DecodeError as error:
        raise Corruption(f"the attributes of {what} cannot be read: {error}", subject=what) from None
    images = [(image.disk_name, image.image_id) for image in manifest.images]
    if backup.backup_id != manifest.backup_id or images != [
        (disk.disk_name, disk.image_id) for disk in backup.disks
    ]:
        raise Corruption(f"the attributes of {what} are another backup's", subject=what)
    return dataclasses.replace(backup, lock_until_ns=manifest.lock_until_ns)


def verdict_from_pb(news: image_pb2.VerifyImageResponse) -> Verdict:
    return Verdict(
        containers_done=news.containers_done,
        containers_total=news.containers_total,
        done=news.done,
        whole=news.whole,
        damaged_span_count=news.damaged_span_count,
        damaged_spans=tuple(news.damaged_spans),
        oldest_check_at_ns=news.oldest_check_at_ns,
        bytes_read=news.bytes_read,
    )


def failure_to_pb(failure: Failure | None) -> common_pb2.ErrorDetail | None:
    if failure is None:
        return None
    return common_pb2.ErrorDetail(
        reason=failure.reason, subject=failure.subject, next_step=failure.next_step, fields=failure.fields
    )


def _figures_of(view: JobView, step: Step) -> common_pb2.TransferFigures | None:
    verb, _, disk_name = step.name.partition(" ")
    done = view.outcome.figures.get(disk_name) if verb == "send" and step.ended_at_ns else None
    return exchange.figures_to_pb(done[1]) if done is not None else None


def job_to_pb(view: JobView) -> backup_pb2.Job:
    job, outcome = view.job, view.outcome
    return backup_pb2.Job(
        job_id=job.job_id,
        kind=int(job.kind),  # type: ignore[arg-type]
        state=int(job.state),  # type: ignore[arg-type]
        vm_name=outcome.vm_name,
        vm_id=outcome.vm_id,
        created_at_ns=job.created_at_ns,
        ended_at_ns=job.ended_at_ns,
        steps=[
            backup_pb2.JobStep(
                name=step.name,
                started_at_ns=step.started_at_ns,
                # With its job every step is over, done or not.
                ended_at_ns=step.ended_at_ns or job.ended_at_ns,
                detail=step.detail if step.ended_at_ns or not job.state.ended else "not done",
                tries=step.tries,
                trouble=step.trouble,
                figures=_figures_of(view, step),
            )
            for step in view.steps
        ],
        spans_done=view.spans_done,
        spans_total=view.spans_total,
        figures=exchange.figures_to_pb(view.figures),
        frozen_ns=outcome.frozen_ns,
        error=failure_to_pb(job.failure),
        error_text=job.failure.message if job.failure is not None else "",
        backup_id=job.backup_id if job.restore is not None or job.state is JobState.SUCCEEDED else "",
        result_vm_id=outcome.result_vm_id if job.state is JobState.SUCCEEDED else "",
        level=int(outcome.level),  # type: ignore[arg-type]
        policy=job.backup.policy if job.backup is not None else "",
        retry_of=job.retry_of,
        retried_by=job.retried_by,
        retry_number=job.retry_number,
        not_before_ns=job.not_before_ns,
        safeties=[
            backup_pb2.SafetySnapshot(
                disk_name=one.disk_name,
                array=one.array,
                volume_name=one.volume_name,
                snapshot_id=one.snapshot_id,
                name=one.name,
            )
            for one in outcome.safeties
        ],
    )
