"""The way of a real guest through backup, loss and restore, as ``arraylift demo --vm`` tells it.

Invariants:
  T1 nothing is called equal that was not hashed inside the guest, before its loss and after it booted again.
  T2 a backup is called of one instant only by the records in it that the guest's writer left on three disks.
Callers: the demo, main thread.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from arraylift.cli import backups, files, jobs, vm_calls
from arraylift.cli.demo_report import Report, Step
from arraylift.cli.demo_story import Daemons
from arraylift.cli.guest_tasks import GuestTasks
from arraylift.cli.local_files import SourceImage
from arraylift.cli.session import Session
from arraylift.errors import Corruption
from arraylift.guest.build import Guest
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import MIB, human
from arraylift.v1 import backup_pb2, virtual_center_pb2, vm_pb2

NAME = "web"
MEMORY_BYTES = 256 * MIB
ROUNDS = 10
"""That the writer does before a backup."""

_FILES = "find /srv /data1 /data2 /etc -type f ! -path '*/writer/*' ! -name writer | sort | xargs sha256sum"
_WRITERS = (("disk0", "/var/lib/writer"), ("disk1", "/writer"), ("disk2", "/writer"))
_LEVELS = {
    vm_pb2.CONSISTENCY_LEVEL_CRASH: "as after a power cut",
    vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM: "file systems frozen",
    vm_pb2.CONSISTENCY_LEVEL_APPLICATION: "application told, file systems frozen",
}


@dataclass(slots=True)
class VmStory:
    """One guest, its backups, its end, its return. ``scratch``: for files out of backups."""

    session: Session
    report: Report
    daemons: Daemons
    guest: Guest
    scratch: Path

    def run(self) -> None:
        """Tell it. Raises what fails, Corruption where something is not what it was."""
        vm = self._create()
        tasks = self._boot("boot it", vm)
        first = self._back_up("back up, full, while it writes", tasks)
        self._judge(first)
        self._change(tasks)
        with self.report.step("hash its files inside") as step:
            before = tasks.run(_FILES)
            step.note = f"{len(before.splitlines())} files"
        second = self._back_up("back up, increment", tasks)
        rounds = self._judge(second)
        self._destroy(vm)
        restored = self._restore(second)
        again = self._boot("boot the restored VM", restored)
        self._compare(again, before, rounds)

    def _create(self) -> vm_pb2.Vm:
        with self.report.step(f"create VM {NAME}") as step, contextlib.ExitStack() as stack:
            sources = [stack.enter_context(SourceImage(path)) for path in self.guest.disks]
            wanted = vm_calls.NewVm(name=NAME, memory_bytes=MEMORY_BYTES)
            daemons = self.daemons
            made = vm_calls.create_vm(self.session, daemons.center, daemons.array, wanted, sources).vm
            total = sum(source.size_bytes for source in sources)
            step.note = f"{len(sources)} disks, {human(total)} in all, in volumes of the array"
            return made

    def _boot(self, name: str, vm: vm_pb2.Vm) -> GuestTasks:
        with self.report.step(name) as step:
            vm_calls.power_vm(self.daemons.center, vm.vm_id, on=True)
            tasks = GuestTasks(self.daemons.host, vm)
            tasks.wait_ready()
            facts = tasks.run("uname -sr; [ -d /sys/firmware/efi ] && echo UEFI || echo BIOS").splitlines()
            step.note = f"from its own disk over NBD by {facts[1]}; its agent answers: {facts[0]}"
        return tasks

    def _back_up(self, name: str, tasks: GuestTasks) -> backup_pb2.Backup:
        server = self.daemons.server
        tasks.run(f"writer more {ROUNDS}")
        with self.report.step(name) as step:
            request = backup_pb2.StartBackupRequest(vms=[NAME])
            job_ids = server.call(
                server.backups.StartBackup, request, timeout_seconds=LONG_CALL_SECONDS
            ).job_ids
            job = self._follow(job_ids[0], step)
            found = backups.find_backup(server, job.backup_id)
            step.image_bytes = sum(path.stat().st_size for path in self.guest.disks)
            step.note = (
                f"frozen for {job.frozen_ns / 1e6:.0f} ms, {_LEVELS.get(found.level, 'level unknown')}"
            )
        return found

    def _follow(self, job_id: str, step: Step) -> backup_pb2.Job:
        ended = jobs.follow(self.session, self.daemons.server, [job_id])
        jobs.check_outcome(ended)
        step.figures, step.frozen_ns = ended[0].figures, ended[0].frozen_ns
        return ended[0]

    def _judge(self, backup: backup_pb2.Backup) -> int:
        """T2. Returns the round at which all three disks stand."""
        with self.report.step("look into the backup") as step:
            rounds = {
                f"{folder}/{name} of {disk}": self._records(backup, disk, f"{folder}/{name}")
                for disk, folder in _WRITERS
                for name in ("synced", "lazy")
            }
            if len(set(rounds.values())) != 1:
                raise Corruption(f"backup {backup.backup_id} is of several instants: {rounds}")
            (found,) = set(rounds.values())
            step.note = f"of one instant: its three disks stand at record {found} of the guest's writer"
        return found

    def _records(self, backup: backup_pb2.Backup, disk: str, path: str) -> int:
        to = self.scratch / "records"
        with self.session.progress(f"get {path}", 0) as bar:
            files.get_file(
                self.daemons.server, backup.backup_id, disk, path, to, overwrite=True, on_size=bar.sized
            )
        return len(to.read_bytes().splitlines())

    def _change(self, tasks: GuestTasks) -> None:
        with self.report.step("change files inside") as step:
            tasks.run(
                "dd if=/dev/urandom of=/srv/fresh bs=1M count=2 2>/dev/null; "
                "echo changed >/etc/motd; rm /data1/00.txt; cp /srv/files/33.bin /data2/copied"
            )
            step.note = "one new, one changed, one removed, one copied to another disk"

    def _destroy(self, vm: vm_pb2.Vm) -> None:
        center = self.daemons.center
        with self.report.step("destroy the VM") as step:
            vm_calls.power_vm(center, vm.vm_id, on=False, force=True)
            gone = virtual_center_pb2.RemoveVmRequest(vm_id=vm.vm_id)
            center.call(center.center.RemoveVm, gone, timeout_seconds=LONG_CALL_SECONDS)
            step.note = "switched off hard; it and its volumes are gone"

    def _restore(self, backup: backup_pb2.Backup) -> vm_pb2.Vm:
        server = self.daemons.server
        with self.report.step("restore it from the backup") as step:
            request = backup_pb2.StartRestoreRequest(backup_id=backup.backup_id, as_name=NAME)
            answer = server.call(server.backups.StartRestore, request, timeout_seconds=LONG_CALL_SECONDS)
            job = self._follow(answer.job_id, step)
            step.note = "into new volumes, as a VM with a UUID of its own"
        return vm_calls.find_vm(self.daemons.center, job.result_vm_id).vm

    def _compare(self, tasks: GuestTasks, before: str, rounds: int) -> None:
        """T1. The writer had been at work, so it goes on where the backup was."""
        with self.report.step("look at it from inside") as step:
            after = tasks.run(_FILES)
            if after != before:
                odd = sorted(set(before.splitlines()) ^ set(after.splitlines()))
                raise Corruption(f"{len(odd)} files differ inside the restored VM, e.g. {odd[0]}")
            stands = min(map(int, tasks.run("writer more 1").split()))
            if stands <= rounds:
                raise Corruption(f"the writer is at record {stands}, the backup was at {rounds}")
            count = len(after.splitlines())
            step.note = f"all {count} files equal by SHA-256; the writer went on after record {rounds}"
