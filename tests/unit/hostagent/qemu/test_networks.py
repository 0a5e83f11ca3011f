"""What networks are on this host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from arraylift.errors import InvalidRequest, WrongState
from hostagent.qemu.live_move import parse_ports
from hostagent.qemu.networks import Networks
from tests.programs import lacking

_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
BRIDGE = "alt-test-br"


def test_a_name_goes_before_the_star() -> None:
    networks = Networks(["lan=user", "*=isolated"])
    assert networks.open("lan").option == "user"
    assert networks.open("any").option == "user,restrict=on"
    assert networks.open("any").descriptor == -1


def test_what_is_not_named_is_refused() -> None:
    with pytest.raises(WrongState, match="no network 'lan'"):
        Networks(["wan=user"]).check("lan")
    with pytest.raises(WrongState, match="no port of bridge no-such-bridge"):
        Networks(["lan=bridge:no-such-bridge"]).open("lan")


@pytest.mark.parametrize(
    "setting", ["lan", "=user", "lan=", "lan=nat", "lan=bridge:", "lan=bridge:../x", "lan=bridge:a b"]
)
def test_settings_that_say_nothing_are_refused(setting: str) -> None:
    with pytest.raises(InvalidRequest):
        Networks([setting])


@pytest.fixture
def bridge() -> Iterator[str]:
    name = BRIDGE.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCBRADDBR, name.ljust(16, b"\0"))
        except OSError as error:
            lacking(f"no bridge can be made here: {error}")
        yield BRIDGE
        with contextlib.suppress(OSError):
            fcntl.ioctl(control, _SIOCBRDELBR, name.ljust(16, b"\0"))


def test_a_port_of_a_bridge_lives_as_long_as_its_descriptor(bridge: str) -> None:
    backend = Networks([f"lan=bridge:{bridge}"]).open("lan")
    ports = f"/sys/class/net/{bridge}/brif"
    assert len(os.listdir(ports)) == 1
    assert backend.option == f"tap,fd={backend.descriptor}"
    os.close(backend.descriptor)
    assert os.listdir(ports) == []


def test_ports_are_a_range() -> None:
    assert list(parse_ports("7480-7482")) == [7480, 7481, 7482]
    for bad in ("", "7480", "2-1", "0-5", "1-65536", "a-b", "-1-5"):
        with pytest.raises(InvalidRequest):
            parse_ports(bad)
