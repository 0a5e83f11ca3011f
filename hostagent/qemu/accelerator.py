"""What makes guests fast on this host: found out by running one, never by looking.

A guest of a few bytes is started with each accelerator in turn; it leaves through a port, with a code of its
own. What hangs, crashes or is not there within PROBE_SECONDS is not used.
Callers: the composition root, once at start.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from arraylift.errors import InvalidRequest, WrongState
from arraylift.logs import get_logger
from hostagent.qemu.processes import Account

PROBE_SECONDS = {"kvm": 3.0, "tcg": 10.0}
"""Accelerators, the faster first, and how long a guest of a few bytes may take."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_PORT, _LEAVE = 0xF4, 0x2A
_EXIT_CODE = _LEAVE << 1 | 1

# A firmware that goes from real mode through protected mode with paging to long mode, computes with x87 and
# SSE2, asks CPUID and the time-stamp counter, and writes _LEAVE to _PORT; it stops where SSE2 adds wrongly.
# Half an accelerator (a hypervisor that emulates instructions, and not all) does not get through.
_CODE = bytes.fromhex(
    "fa2e660f0116e8000f20c00c010f22c066ea18000f00080066b810008ed88ec08ed0bc00"
    "800000dbe331c0bf00100000b9000c0000f3abc7050010000003200000c7050020000003"
    "300000c7050030000083000000b8001000000f22d80f20e00d200600000f22e0b9800000"
    "c00f320d000100000f300f20c083e0fb0d020000800f22c0ea8b000f00180048b8efcdab"
    "896745230166480f6ec0660fd4c066480f7ec34801c04839c37512e81000000031c00fa2"
    "0f3166baf400b02aeef4ebfdd9e8d9eadec1c3900000000000000000ffff0000009bcf00"
    "ffff00000093cf00ffff0000009baf001f00c8000f00"
)
_ROM_BYTES = 64 << 10
_RESET = _ROM_BYTES - 16
_JUMP = bytes.fromhex("ea000000f0")  # to F000:0000, where the code begins

_log = get_logger("qemu")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """``sandbox``: whether this QEMU runs with its system calls filtered."""

    name: str
    sandbox: bool

    @property
    def cpu(self) -> str:
        """The model that guests see unless the settings say another."""
        return "host" if self.name == "kvm" else "qemu64"


def find_accelerator(program: str, *, wanted: str = "", account: Account | None = None) -> Accelerator:
    """Try them, and return the first that runs a guest. ``wanted`` is tried alone.

    Raises WrongState (none does, or no QEMU), InvalidRequest (an unknown one is wanted).
    """
    if wanted and wanted not in PROBE_SECONDS:
        raise InvalidRequest(
            f"{wanted!r} is no accelerator",
            next_step=f"use one of {', '.join(PROBE_SECONDS)}, or none to probe",
        )
    for name in [wanted] if wanted else PROBE_SECONDS:
        for sandbox in (True, False):
            why = _probe(program, Accelerator(name, sandbox), account)
            if not why:
                _log.info("accelerator_found", accelerator=name, sandbox=sandbox)
                return Accelerator(name, sandbox)
            _log.info("accelerator_unfit", accelerator=name, sandbox=sandbox, why=why)
            if why == _HUNG:
                break  # without a sandbox it would hang as well
    raise WrongState(
        f"{program} runs no guest on this machine",
        subject=program,
        next_step="see the host's log for what each accelerator did; install qemu-system-x86",
    )


_HUNG = "it did not end in time"


def _probe(program: str, accelerator: Accelerator, account: Account | None) -> str:
    """Return why it does not run, or nothing."""
    rom = bytearray(_ROM_BYTES)
    rom[: len(_CODE)] = _CODE
    rom[_RESET : _RESET + len(_JUMP)] = _JUMP
    descriptor = os.memfd_create("probe")
    try:
        os.write(descriptor, rom)
        done = subprocess.run(
            _command(program, accelerator, f"/proc/self/fd/{descriptor}"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(descriptor,),
            check=False,
            timeout=PROBE_SECONDS[accelerator.name],
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
        )
    except subprocess.TimeoutExpired:
        return _HUNG
    except OSError as error:
        raise WrongState(
            f"{program} does not start: {error}",
            subject=program,
            next_step="install qemu-system-x86, or name the program in the host's settings",
        ) from error
    finally:
        os.close(descriptor)
    said = done.stderr[-300:].decode("utf-8", "replace").strip()
    return "" if done.returncode == _EXIT_CODE else f"exit code {done.returncode}: {said}"


def _command(program: str, accelerator: Accelerator, rom_path: str) -> Sequence[str]:
    return [
        *(program, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-m", "16M"),
        *("-machine", f"pc,accel={accelerator.name}", "-cpu", accelerator.cpu, "-bios", rom_path),
        *("-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=4"),
        *(("-sandbox", SANDBOX) if accelerator.sandbox else ()),
    ]
