"""What the demo does once its disks are made: two VMs, backups, changes, a restore, every comparison.

Invariant:
  S1 nothing is called equal that was not compared byte for byte: the restored disks with the source's
     volumes and with the target's images, the restored files with what was put into the guest.
Callers: the demo, main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift.cli import backups, demo_disks, files, images, jobs, vm_calls, volume_data
from arraylift.cli.connection import Connection
from arraylift.cli.demo_disks import DemoDisks
from arraylift.cli.demo_report import Report, Step
from arraylift.cli.local_files import NewFile, SourceFile, SourceImage
from arraylift.cli.session import Session
from arraylift.cli.settings import ARRAY, HOST, KINDS, SERVER, TARGET, VCENTER, Layout, callable_address
from arraylift.cli.transfers import find_image
from arraylift.cli.volume_data import Piece
from arraylift.errors import Corruption
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import GIB, human
from arraylift.v1 import backup_pb2, vm_pb2, volume_pb2

RESTORED = "web-restored"


@dataclass(frozen=True, slots=True)
class Daemons:
    """The five, connected."""

    target: Connection
    array: Connection
    center: Connection
    host: Connection
    server: Connection


@dataclass(slots=True)
class Story:
    """The demo's VMs and backups."""

    session: Session
    report: Report
    daemons: Daemons
    disks: DemoDisks

    def run(self) -> None:
        """Tell it. Raises what fails, Corruption where something differs."""
        web = self._create("web", [self.disks.one, self.disks.data])
        shop = self._create("shop", [self.disks.two])
        first = self._back_up("back up web, full", web)
        self._change(web)
        second = self._back_up("back up web, increment", web)
        self._back_up("back up shop, full", shop)
        restored = self._restore(second)
        self._compare(web, restored, second)
        self._files(first, second)

    def _create(self, name: str, images: Sequence[Path]) -> vm_pb2.Vm:
        with self.report.step(f"create VM {name}") as step, contextlib.ExitStack() as stack:
            sources = [stack.enter_context(SourceImage(path)) for path in images]
            wanted = vm_calls.NewVm(name=name, memory_bytes=GIB)
            daemons = self.daemons
            made = vm_calls.create_vm(self.session, daemons.center, daemons.array, wanted, sources).vm
            total = sum(source.size_bytes for source in sources)
            count = len(sources)
            step.note = f"{count} disk{'' if count == 1 else 's'} of {human(total)}, running"
            return vm_calls.power_vm(daemons.center, made.vm_id, on=True)

    def _back_up(self, name: str, vm: vm_pb2.Vm) -> backup_pb2.Backup:
        server = self.daemons.server
        with self.report.step(name) as step:
            request = backup_pb2.StartBackupRequest(vms=[vm.vm_id])
            job_ids = server.call(
                server.backups.StartBackup, request, timeout_seconds=LONG_CALL_SECONDS
            ).job_ids
            job = self._follow(job_ids[0], step)
            step.image_bytes = sum(disk.size_bytes for disk in vm.config.disks)
        return backups.find_backup(server, job.backup_id)

    def _follow(self, job_id: str, step: Step) -> backup_pb2.Job:
        ended = jobs.follow(self.session, self.daemons.server, [job_id])
        jobs.check_outcome(ended)
        step.figures, step.frozen_ns = ended[0].figures, ended[0].frozen_ns
        return ended[0]

    def _change(self, vm: vm_pb2.Vm) -> None:
        host, change = self.daemons.host, self.disks.change
        with self.report.step("change files in web") as step:
            for put in change.put:
                with SourceFile(put.source) as source:
                    place = vm_pb2.GuestPath(vm_id=vm.vm_id, disk_name=put.disk, path=put.path)
                    vm_calls.put_file(host, place, source)
            place = vm_pb2.GuestPath(vm_id=vm.vm_id, disk_name="disk0", path=change.removed)
            vm_calls.remove_file(host, place)
            step.note = "a file replaced, one added on each disk, one removed"

    def _restore(self, backup: backup_pb2.Backup) -> vm_pb2.Vm:
        server = self.daemons.server
        with self.report.step("restore web as a new VM") as step:
            request = backup_pb2.StartRestoreRequest(backup_id=backup.backup_id, as_name=RESTORED)
            answer = server.call(server.backups.StartRestore, request, timeout_seconds=LONG_CALL_SECONDS)
            job = self._follow(answer.job_id, step)
        return vm_calls.find_vm(self.daemons.center, job.result_vm_id).vm

    def _compare(self, web: vm_pb2.Vm, restored: vm_pb2.Vm, backup: backup_pb2.Backup) -> None:
        """S1, for disks."""
        made = {disk.name: disk for disk in restored.config.disks}
        image_ids = {disk.disk_name: disk.image_id for disk in backup.disks}
        names = [disk.name for disk in web.config.disks]
        if not set(names) == set(made) == set(image_ids):
            raise Corruption(
                f"{RESTORED} has disks {sorted(made)}, web {names}, the backup {sorted(image_ids)}"
            )
        taken = {name: self.disks.directory / f"restored-{name}.img" for name in names}
        with self.report.step("compare with web's disks") as step:
            for disk in web.config.disks:
                export_volume(self.session, self.daemons.array, made[disk.name].volume_name, taken[disk.name])
                compare_volume(self.session, self.daemons.array, disk.volume_name, taken[disk.name])
            step.note = "every byte equal"
        with self.report.step("compare with the images") as step:
            for disk in web.config.disks:
                compare_image(self.session, self.daemons.target, image_ids[disk.name], taken[disk.name])
            step.note = "every byte equal"
        with self.report.step("check the file systems") as step:
            for path in taken.values():
                demo_disks.check_file_system(path)
                path.unlink()
            step.note = "e2fsck: clean"

    def _files(self, first: backup_pb2.Backup, second: backup_pb2.Backup) -> None:
        """S1, for files: the one that was replaced, and the one that was removed."""
        change = self.disks.change
        with self.report.step("restore two files") as step:
            wanted = (
                (second, change.put[0].path, change.put[0].source),
                (first, change.removed, change.removed_source),
            )
            for number, (backup, path, source) in enumerate(wanted):
                to = self.disks.directory / f"file-{number}"
                server = self.daemons.server
                with self.session.progress(f"get {path}", 0) as bar:
                    files.get_file(
                        server, backup.backup_id, "disk0", path, to, overwrite=False, on_size=bar.sized
                    )
                if to.read_bytes() != source.read_bytes():
                    raise Corruption(f"{path} of backup {backup.backup_id} is not what it was", subject=path)
            step.note = "the changed one, and the removed one of the first backup: equal"


@contextlib.contextmanager
def connected(layout: Layout) -> Iterator[Daemons]:
    """The daemons of a state directory."""
    with contextlib.ExitStack() as stack:
        found = {
            kind: stack.enter_context(
                contextlib.closing(
                    Connection(kind.noun, callable_address(layout.load(kind).listen), layout.pki)
                )
            )
            for kind in KINDS
        }
        yield Daemons(
            target=found[TARGET],
            array=found[ARRAY],
            center=found[VCENTER],
            host=found[HOST],
            server=found[SERVER],
        )


def export_volume(session: Session, array: Connection, name: str, to: Path) -> None:
    """Write a volume into a new sparse file."""
    volume = volume_data.get_volume(array, name)
    request = volume_pb2.ReadExtentsRequest(volume_name=name)
    with NewFile(to, overwrite=False) as new, session.progress(f"export {name}", volume.size_bytes) as bar:
        volume_data.export(array, request, volume.size_bytes, new, bar.update)


def compare_volume(session: Session, array: Connection, name: str, path: Path) -> None:
    """Raise Corruption unless a volume equals a file in every byte."""
    size = volume_data.get_volume(array, name).size_bytes
    request = volume_pb2.ReadExtentsRequest(volume_name=name)
    _compare(session, f"volume {name}", size, volume_data.read_pieces(array, request, size), path)


def compare_image(session: Session, target: Connection, image_id: str, path: Path) -> None:
    """Raise Corruption unless an image equals a file in every byte."""
    size = find_image(target, image_id).image_bytes
    _compare(session, f"image {image_id}", size, images.read_pieces(target, image_id, 0, size), path)


def _compare(session: Session, what: str, size_bytes: int, pieces: Iterable[Piece], path: Path) -> None:
    with SourceImage(path) as source, session.progress(f"compare {what}", size_bytes) as bar:
        if size_bytes != source.size_bytes:
            raise Corruption(
                f"{what} has {size_bytes:,} bytes, the restored one {source.size_bytes:,}", subject=what
            )
        difference = volume_data.differing(pieces, source, bar.update)
    if difference.ranges:
        raise Corruption(
            f"{what} differs from the restored one in {len(difference.ranges)} ranges, the first at byte "
            f"{difference.ranges[0][0]:,}",
            subject=what,
            next_step="run it again with --keep and look into the daemons' logs",
        )
