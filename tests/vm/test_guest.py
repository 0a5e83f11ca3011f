"""The guest itself: it boots from its own disk both ways, answers, and goes off cleanly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from arraylift.guest.build import Guest
from hostagent.debugfs import find_program
from tests.vm.plain_qemu import PlainQemu
from tests.vm.traces import Traces, read_traces


def test_it_boots_by_bios_and_goes_off_by_its_agent(guest: Guest, tmp_path: Path) -> None:
    with PlainQemu(tmp_path, guest.disks) as qemu:
        qemu.wait_for("GUEST-READY")
        assert "GUEST-BOOTED firmware=bios" in qemu.said()
        frozen = qemu.ask_agent("guest-fsfreeze-freeze")
        assert frozen == 3
        assert qemu.ask_agent("guest-fsfreeze-thaw") == 3
        qemu.wait_for("GUEST-THAW")
        assert qemu.said().index("GUEST-FREEZE") < qemu.said().index("GUEST-THAW")
        qemu._converse("agent", {"execute": "guest-sync", "arguments": {"id": 1}})
        with pytest.raises((TimeoutError, ValueError)):
            qemu.ask_agent("guest-shutdown")  # never answers
        qemu.wait_off()
    for number in (1, 2):
        subprocess.run([find_program("e2fsck"), "-fn", qemu.disk(number)], check=True, capture_output=True)


def test_it_boots_by_uefi_and_heeds_its_power_button(guest: Guest, tmp_path: Path) -> None:
    with PlainQemu(tmp_path, guest.disks, uefi=True) as qemu:
        qemu.wait_for("GUEST-READY")
        assert "GUEST-BOOTED firmware=uefi" in qemu.said()
        qemu.press_power_button()
        qemu.wait_off()
    command = [find_program("dumpe2fs"), "-h", str(qemu.disk(1))]
    state = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "needs_recovery" not in state


def test_its_writer_tells_copies_apart(guest: Guest, tmp_path: Path) -> None:
    def copied() -> Traces:
        return read_traces([qemu.disk(number).read_bytes() for number in range(3)], tmp_path)

    with PlainQemu(tmp_path, guest.disks) as qemu:
        qemu.wait_for("GUEST-READY")
        before = [int(line) for line in qemu.run("writer more 5").split()]
        assert min(before) >= 5
        assert qemu.ask_agent("guest-fsfreeze-freeze") == 3
        held = copied()
        assert qemu.ask_agent("guest-fsfreeze-thaw") == 3
        assert held.quiesced, held
        assert held.synced[0] >= max(before)
        qemu.run("writer more 5")
        torn = copied()
        assert not torn.frozen, torn


def test_it_is_given_as_qcow2(guest: Guest, tmp_path: Path) -> None:
    for raw, made in zip(guest.disks, guest.write_qcow2(tmp_path), strict=True):
        subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, made], check=True)
