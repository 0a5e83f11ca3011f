"""Files of a backup put back into the running guest, through its agent ([0046]).

plan, then ``files``: one after the other, each whole or not at all.
Invariants:
  P1 where no directory is named, files go where they were only if their volume is the guest's own root: the
     one that is chosen where none is named. A partition's paths would mean other files.
  P2 without ``overwrite`` no file of the guest is replaced; no directory is made.
  P3 what cannot be put back is told of that file, and the rest goes on; then the job fails and says how
     many.
Limits: GUEST_FILE_BYTES_MAX a file. Content and permissions come back; the owner is that of the file that is
replaced. Links and special files do not pass through an agent.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arraylift.errors import ArrayliftError, InvalidRequest, NotFound, WrongState
from arraylift.sizes import GIB, MIB, human
from arraylift.vm.types import PowerState
from backup_server.backup_disks import BackupDisks
from backup_server.catalog.entry import DiskSet
from backup_server.engine import Outcome
from backup_server.file_reads import Browser, Data, Done, FileReads, Layout, Start, shown
from backup_server.inventory import Inventory
from backup_server.job_rules import FileOrder, Job, Step
from backup_server.job_run import JobRun
from backup_server.job_turns import Demand
from backup_server.model import Located
from backup_server.ports import Host, HostRef, Peers

PLAN, FILES = "plan", "files"
GUEST_FILE_BYTES_MAX = GIB
PROBLEMS_TOLD_MAX = 5


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """Which guest, and which disk of it the paths are on; no disk: its first."""

    vm_id: str
    host: HostRef
    volume: str
    disk_name: str


class GuestRestoreJob:
    """Runs restores of files into guests (engine.Runner)."""

    def __init__(self, disks: BackupDisks, browser: Browser, inventory: Inventory, peers: Peers) -> None:
        self._disks, self._browser = disks, browser
        self._inventory, self._peers = inventory, peers

    def place(self, run: JobRun) -> Demand:
        return Demand(self._planning(run).host.name, (), "")

    def run(self, run: JobRun) -> None:
        plan, done = self._planning(run), set[str]()
        count = run.step(FILES, int, lambda: self._put_all(run, plan, done), detail=lambda n: f"{n:,} files")
        assert count >= 0

    def clean_up(self, run: JobRun) -> None:
        """Nothing is left of a file that was not put whole; those that were, stay."""

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:  # noqa: ARG002 - of all runners
        return Outcome(job.vm_id, job.vm_name, {}, result_vm_id=job.vm_id)

    # -- steps ------------------------------------------------------------------------------

    def _planning(self, run: JobRun) -> GuestPlan:
        return run.step(PLAN, GuestPlan, lambda: self._plan(run.job), detail=lambda plan: plan.volume)

    def _look(self, job: Job) -> Located:
        found = self._inventory.look(self._inventory.side(direct=_is_direct(job)), job.vm_id)
        if found.vm.power is not PowerState.ON:
            raise WrongState(
                f"VM {found.vm.config.name} does not run",
                subject=f"VM {found.vm.config.name}",
                next_step="start it, or restore the files on a disk",
            )
        return found

    def _plan(self, job: Job) -> GuestPlan:
        files, found = _files(job), self._look(job)
        with self._disks.opened(job.backup_id) as disks:
            volume, _, _ = self._browser.find(disks, _probe(files), files.volume)
            if files.directory:
                disk_name = ""
            else:
                root, disk_name = self._root(disks), volume.key.split("/")[0]
                if volume.key != root:  # P1
                    raise InvalidRequest(
                        f"{volume.key} is not the guest's root, so nobody knows where it is mounted",
                        next_step="name a directory of the guest",
                    )
                disk_name = "" if disk_name == "lvm" else disk_name
        return GuestPlan(found.vm.vm_id, HostRef(found.host, found.host_address), volume.key, disk_name)

    def _root(self, disks: DiskSet) -> str:
        """The volume with /etc or /Windows in it; none: the largest, which is no root."""
        for path in ("/etc", "/Windows"):
            try:
                return self._browser.find(disks, path, "")[0].key
            except NotFound:
                continue
        return ""

    def _put_all(self, run: JobRun, plan: GuestPlan, done: set[str]) -> int:
        """One try; what earlier tries put is in ``done``."""
        files, found = _files(run.job), self._look(run.job)
        host = self._peers.host(HostRef(found.host, found.host_address))
        problems: list[tuple[str, str]] = []
        put = _Put(host, plan, files)
        with self._disks.opened(run.job.backup_id) as disks:
            reads = FileReads(self._browser, disks, plan.volume, hard_links=False)
            stream = _Stream(reads.read(files.paths, recursive=True))
            while (start := stream.start()) is not None:
                run.check()
                path = start.entry.path
                if (start.entry.is_directory and not start.problem) or path in done:
                    continue
                try:
                    put.put(start, stream)
                    done.add(path)
                except (NotFound, WrongState, InvalidRequest) as error:  # P3
                    problems.append((shown(path), error.message))
        if problems:
            told = "; ".join(f"{path}: {why}" for path, why in problems[:PROBLEMS_TOLD_MAX])
            more = f"; and {len(problems) - PROBLEMS_TOLD_MAX:,} more" * (len(problems) > PROBLEMS_TOLD_MAX)
            raise WrongState(
                f"{len(problems):,} files were not put back, {len(done):,} were: {told}{more}",
                subject=f"VM {run.job.vm_name}",
                next_step="restore those to a directory or on a disk; say that files are to be replaced",
                problem_count=len(problems),
            )
        return len(done)


class _Stream:
    """Files one by one out of a stream of starts and data."""

    def __init__(self, parts: Iterator[Start | Data | Layout | Done]) -> None:
        self._parts = parts
        self._next: Start | Done | None = None

    def start(self) -> Start | None:
        """The next file; what was not taken of the last one's data is passed over."""
        one: Start | Data | Layout | Done = self._next or next(self._parts)
        self._next = None
        while isinstance(one, Data):
            one = next(self._parts)
        return one if isinstance(one, Start) else None

    def content(self, start: Start) -> Iterator[bytes]:
        """All bytes of the file, zeros included. Raises WrongState: what came of it is void."""
        at = 0
        while True:
            one = next(self._parts)
            if isinstance(one, Data):
                yield from _zeros(one.offset - at)
                yield one.data
                at = one.offset + len(one.data)
                continue
            if isinstance(one, Start) and one.problem and one.entry.path == start.entry.path:
                raise WrongState(one.problem)
            assert not isinstance(one, Layout), "data were asked for"
            self._next = one
            yield from _zeros(start.entry.size_bytes - at)
            return


class _Put:
    """Puts files into one guest."""

    def __init__(self, host: Host, plan: GuestPlan, files: FileOrder) -> None:
        self._host, self._plan, self._files = host, plan, files
        self._listed: tuple[str, frozenset[str]] = ("", frozenset())

    def put(self, start: Start, stream: _Stream) -> None:
        """Raises what is wrong with this file, or PeerUnavailable and OutOfSpace for all."""
        entry = start.entry
        if start.problem:
            raise WrongState(start.problem)
        if not entry.is_file:
            raise WrongState("links and special files do not pass through an agent")
        if entry.size_bytes > GUEST_FILE_BYTES_MAX:
            raise WrongState(f"it has {human(entry.size_bytes)}, more than an agent is given")
        path = self._path(entry.path)
        if not self._files.overwrite and path in self._names(path.rpartition("/")[0] or "/"):
            raise WrongState("there is one already")  # P2
        failures: list[ArrayliftError] = []

        def content() -> Iterator[bytes]:
            try:
                yield from stream.content(start)
            except ArrayliftError as error:
                failures.append(error)
                raise  # the call is cut, and the guest keeps what it has

        try:
            self._host.put_file(
                self._plan.vm_id, self._plan.disk_name, path, mode=entry.mode & 0o7777, pieces=content()
            )
        except ArrayliftError:
            if failures:
                raise failures[0] from None
            raise

    def _names(self, directory: str) -> frozenset[str]:
        """Paths in a directory of the guest; that of the last is kept."""
        if self._listed[0] != directory:
            found = self._host.list_files(self._plan.vm_id, self._plan.disk_name, directory)
            self._listed = (directory, frozenset(found))
        return self._listed[1]

    def _path(self, path: str) -> str:
        """Where it was, or below the directory, with what lies below the path that was asked for."""
        if not path.isprintable():
            raise WrongState("no agent is given such a name")
        if not self._files.directory:
            return path
        asked = next(
            one for one in self._files.paths if path == one or path.startswith(one.rstrip("/") + "/")
        )
        above = asked.rpartition("/")[0]
        return self._files.directory.rstrip("/") + path[len(above) :]


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, MIB))
        count -= MIB


def _probe(files: FileOrder) -> str:
    """A path that shows which volume is meant."""
    return next((path for path in files.paths if path != "/"), "/")


def _is_direct(job: Job) -> bool:
    assert job.restore is not None, "a restore job has a restore's order"
    return job.restore.direct


def _files(job: Job) -> FileOrder:
    assert job.restore is not None, "a restore job has a restore's order"
    assert job.restore.files is not None, "this one is of files"
    return job.restore.files
