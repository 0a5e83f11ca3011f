"""A guest that boots by UEFI keeps what its firmware remembers, through backup and restore."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.guest.build import Guest
from tests.programs import lacking
from tests.vm.vm_house import running_vm_house, said

pytestmark = pytest.mark.timeout(300)
VARIABLE = "/sys/firmware/efi/efivars/Reminder-a11f7003-0b5e-4c62-9a0e-00e098032b8c"


def test_variables_come_back_with_a_restore(guest: Guest, tmp_path: Path) -> None:
    if not Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists():
        lacking("needs the program OVMF")
    with running_vm_house(tmp_path) as house:
        vm = house.boot(house.make_guest("web", guest, firmware="uefi"))
        assert said(house.console(vm), "firmware") == "uefi"
        assert house.run_in(vm, f"[ -e {VARIABLE} ] || echo none") == "none\n"
        house.run_in(vm, f"printf '\\007\\000\\000\\000remembered' >{VARIABLE}")
        job = house.back_up_vm("web")
        house.delete_vm("web")
        house.restore_vm(job.backup_id, as_name="web2")

        restored = house.boot(house.all_vms()["web2"])
        assert restored.config.firmware == "uefi"
        assert said(house.console(restored), "firmware") == "uefi"
        assert house.run_in(restored, f"tail -c +5 {VARIABLE}") == "remembered"
