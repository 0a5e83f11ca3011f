"""What the networks of VMs are on this host, as its settings say.

| Setting | The guest's interface |
|---|---|
| ``NAME=isolated`` | leads nowhere |
| ``NAME=user`` | reaches out through this host's own connections, and is reached by nobody |
| ``NAME=bridge:br0`` | is a port of that bridge; takes CAP_NET_ADMIN |

``*`` stands for every network that is not named.
Callers: the composition root reads, launch opens; the thread that holds the guest's lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from arraylift.errors import InvalidRequest, WrongState

_BRIDGE = re.compile(r"bridge:([A-Za-z0-9._-]{1,15})")
_TUNSETIFF, _SIOCBRADDIF, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x89A2, 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_UP = 0x0002, 0x1000, 0x4000, 0x1
_NAME = "16s"


@dataclass(frozen=True, slots=True)
class Backend:
    """``option`` as ``-netdev`` takes it, without the id; ``descriptor`` is inherited by QEMU, or -1."""

    option: str
    descriptor: int = -1


class Networks:
    """The settings, checked."""

    def __init__(self, settings: Iterable[str]) -> None:
        """Raises InvalidRequest."""
        self._kinds: Mapping[str, str] = dict(map(_parse, settings))

    def check(self, network: str) -> str:
        """What it is. Raises WrongState: this host has no such network."""
        kind = self._kinds.get(network) or self._kinds.get("*")
        if kind is None:
            raise WrongState(
                f"this host has no network {network!r}",
                subject=f"network {network}",
                next_step="add it to `networks` in the host's settings",
            )
        return kind

    def open(self, network: str) -> Backend:
        """Raises WrongState (no such network; no right to make a port of the bridge)."""
        kind = self.check(network)
        if kind == "user":
            return Backend("user")
        if kind == "isolated":
            return Backend("user,restrict=on")
        bridge = kind.partition(":")[2]
        try:
            descriptor = _tap_on(bridge)
        except OSError as error:
            raise WrongState(
                f"no port of bridge {bridge} for network {network!r}: {error}",
                subject=f"network {network}",
                next_step="make the bridge, and give this daemon CAP_NET_ADMIN and /dev/net/tun",
            ) from error
        return Backend(f"tap,fd={descriptor}", descriptor)


def _parse(setting: str) -> tuple[str, str]:
    name, equals, kind = setting.partition("=")
    if not name or not equals or not (kind in {"user", "isolated"} or _BRIDGE.fullmatch(kind)):
        raise InvalidRequest(
            f"{setting!r} says nothing about a network",
            next_step="write NAME=user, NAME=isolated or NAME=bridge:br0",
        )
    return name, kind


def _tap_on(bridge: str) -> int:
    """A network interface that lives as long as its descriptor, as a port of the bridge. Raises OSError."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        asked = struct.pack(f"{_NAME}H14x", b"", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        given: bytes = fcntl.ioctl(descriptor, _TUNSETIFF, asked)
        name = given[:16]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            index = socket.if_nametoindex(name.rstrip(b"\0").decode())
            fcntl.ioctl(control, _SIOCBRADDIF, struct.pack(f"{_NAME}i20x", bridge.encode(), index))
            flags = struct.unpack_from(
                "H", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("40s", name)), 16
            )[0]
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(f"{_NAME}H22x", name, flags | _IFF_UP))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
