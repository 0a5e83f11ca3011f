"""Who may use disks by NBD is what the security page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.errors import NotPermitted
from arraylift.nbd.access import ROLES_READING, ROLES_WRITING, may_write
from arraylift.rpc.identity import ROLES, Peer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "security.md"


def test_the_page_and_the_table_agree() -> None:
    part = PAGE.read_text(encoding="utf-8").split("\n## Disks by NBD\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")][2:]
    told = {access.strip(): set(roles.strip().split(", ")) for roles, access in rows}
    assert told == {"read, write": set(ROLES_WRITING), "read": set(ROLES_READING), "nothing": {"others"}}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_what_the_table_says(role: str) -> None:
    if role in ROLES_WRITING | ROLES_READING:
        assert may_write(Peer(role, "x")) == (role in ROLES_WRITING)
    else:
        with pytest.raises(NotPermitted):
            may_write(Peer(role, "x"))


def test_without_identities_everybody_may() -> None:
    assert may_write(None)
