"""The two disks that pass the contract of ``Files``, each with what a test needs around it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arraylift.durable import Files, RealFiles
from arraylift.failpoints import Failpoints
from tests.fakes.disk import FakeFiles

KINDS = ("real", "fake")


@dataclass
class Rig:
    """A Files and a directory on it that exists and is empty."""

    files: Files
    failpoints: Failpoints
    root: str

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def reopened(self) -> Files:
        """Another process's view of the same disk, after this one was killed."""
        if isinstance(self.files, FakeFiles):
            self.files = self.files.after_kill()
        else:
            self.files = RealFiles(Failpoints())
        return self.files

    @contextlib.contextmanager
    def no_handles(self) -> Iterator[None]:
        if isinstance(self.files, FakeFiles):
            self.files.set_handles_max(0)
            yield
            self.files.set_handles_max(1024)
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def make_rig(kind: str, directory: Path) -> Rig:
    """Return a rig of one of KINDS; the real one lives in ``directory``."""
    failpoints = Failpoints()
    if kind == "real":
        return Rig(RealFiles(failpoints), failpoints, str(directory))
    files = FakeFiles(failpoints=failpoints)
    files.make_dirs("/store")
    return Rig(files, failpoints, "/store")
