"""Variables of UEFI firmware, in the files in which libvirt's guests have them.

Owns: ``<folder>/<VM id>.nvram`` of VMs of ours; libvirt owns the others, which are only read.
Callers: driver, the thread that holds the VM's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from arraylift.durable import Files
from arraylift.ids import VmId
from arraylift.logs import get_logger
from hostagent.firmware_store import FIRMWARE_VARIABLES_UNPACKED_MAX, pack_variables, unpack_variables
from hostagent.vm_types import VmRecord

_log = get_logger("libvirt_variables")


class Variables:
    """``stored``: what the host keeps of a VM that was made with variables."""

    def __init__(self, files: Files, folder: str, stored: Callable[[VmId], bytes]) -> None:
        self._files, self._folder, self._stored = files, folder, stored

    def read(self, path: str) -> bytes:
        """What a guest has, packed; b"" if it has none, or they are out of our reach."""
        if not path:
            return b""
        try:
            if os.stat(path).st_size > FIRMWARE_VARIABLES_UNPACKED_MAX:
                raise OSError("they are too many")
            with open(path, "rb") as file:
                return pack_variables(file.read())
        except FileNotFoundError:
            return b""  # it never ran
        except OSError as error:
            _log.warning("firmware_variables_unread", path=path, error=str(error))
            return b""

    def place(self, vm: VmRecord) -> str:
        """The file for a VM of ours; made from what is stored before its first start. "": libvirt's own."""
        packed = self._stored(vm.vm_id)
        if not packed:
            return ""
        path = self._path(vm.vm_id)
        if not os.path.exists(path):
            self._files.publish(path, [unpack_variables(packed)], label="nvram")
            owner = os.stat(self._folder)
            if os.geteuid() == 0:
                os.chown(path, owner.st_uid, owner.st_gid)  # the VMM's account has the folder
        return path

    def forget(self, vm_id: VmId) -> None:
        self._files.remove(self._path(vm_id), label="nvram", missing_ok=True)

    def _path(self, vm_id: VmId) -> str:
        return os.path.join(self._folder, f"{vm_id}.nvram")
