"""A VM's folder: logs stay small, sockets have long paths, records and variables come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Corruption
from hostagent import unix_sockets
from hostagent.qemu.guest_folder import CONSOLE, LOG_BYTES_MAX, QEMU_LOG, GuestFolder
from hostagent.qemu.run_record import RunRecord

RECORD = RunRecord(stale=(("a:1", "export"),))


@pytest.fixture
def folder(tmp_path: Path) -> GuestFolder:
    found = GuestFolder(RealFiles(), str(tmp_path / ("long" * 40) / "vm"))
    found.make()
    return found


def test_a_record_outlives_the_process(folder: GuestFolder) -> None:
    assert folder.record is None
    folder.keep(RECORD)
    assert GuestFolder(RealFiles(), folder.path).record == RECORD
    folder.drop_record()
    assert GuestFolder(RealFiles(), folder.path).record is None


def test_sockets_work_at_paths_that_the_kernel_does_not_take(folder: GuestFolder) -> None:
    assert len(folder.monitor_path) > 108
    for _ in range(2):  # the second time over what a QEMU before left
        listeners = folder.listeners()
        for listener, path in zip(listeners, (folder.monitor_path, folder.agent_path), strict=True):
            with listener, unix_sockets.connect(path, seconds=1) as caller:
                answer, _ = listener.accept()
                with answer:
                    answer.sendall(b"x")
                    assert caller.recv(1) == b"x"


def test_a_log_is_cut_while_its_writer_goes_on(folder: GuestFolder) -> None:
    log = folder.open_log(CONSOLE)
    try:
        os.write(log, b"first line\n" + b"x" * LOG_BYTES_MAX + b"last line\n")
        folder.trim_logs()
        os.write(log, b"next line\n")
    finally:
        os.close(log)
    assert Path(folder.path, CONSOLE).read_bytes() == b"next line\n"
    kept = Path(folder.path, f"{CONSOLE}.1").read_bytes()
    assert kept.endswith(b"last line\n")
    assert len(kept) == LOG_BYTES_MAX
    folder.trim_logs()
    assert Path(folder.path, CONSOLE).read_bytes() == b"next line\n"


def test_a_console_goes_on_and_qemus_own_log_begins_anew(folder: GuestFolder) -> None:
    for name, anew in ((CONSOLE, False), (QEMU_LOG, True)):
        for line in (b"one ", b"two\x1b"):
            log = folder.open_log(name, anew=anew)
            os.write(log, line)
            os.close(log)
    assert Path(folder.path, CONSOLE).read_bytes() == b"one two\x1b"
    assert Path(folder.path, f"{QEMU_LOG}.1").read_bytes() == b"one "
    assert folder.log_end(QEMU_LOG) == "two"


def test_a_log_that_is_no_file_of_ours_is_not_followed(folder: GuestFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    os.symlink(victim, Path(folder.path, CONSOLE))
    with pytest.raises(OSError, match="symbolic links"):
        folder.open_log(CONSOLE)
    assert victim.read_bytes() == b"mine"


def test_variables_are_bounded(folder: GuestFolder) -> None:
    assert folder.variables() == b""
    folder.put_variables(b"v" * 100)
    assert folder.variables() == b"v" * 100
    with open(folder.open_variables(), "r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(Corruption):
        folder.variables()


def test_nothing_stays_of_a_vm_that_is_gone(folder: GuestFolder) -> None:
    folder.keep(RECORD)
    for listener in folder.listeners():
        listener.close()
    os.close(folder.open_log(CONSOLE))
    folder.remove()
    assert not Path(folder.path).exists()
    folder.remove()
