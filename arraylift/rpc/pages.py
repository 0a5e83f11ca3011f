"""Pages of a listing: how a server cuts them, and how a client follows them.

Invariants:
  G1 a page ends before PAGE_BYTES_MAX, or at the size asked for, and has at least one item if any
     is left: every listing fits into messages, and ends.
  G2 a token is the key of its page's last item: what comes or goes meanwhile shifts nothing. Who
     follows all pages sees once each item that was there all the time.
  G3 a peer whose pages lead nowhere is Corruption.
Callers: edges, any thread.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from arraylift.errors import Corruption, InvalidRequest
from arraylift.sizes import KIB, MIB

PAGE_BYTES_MAX = 3 * MIB
PAGES_MAX = 10_000
TOKEN_CHARS_MAX = 64 * KIB
_FRAME_BYTES = 8
"""What an item costs in its message beside its own bytes."""

Key = tuple[str | int, ...]
Item = TypeVar("Item")
Made = TypeVar("Made", bound=Message)


def after(token: str, *kinds: type) -> Key | None:
    """Return the key behind which a page begins, its parts of ``kinds``; None: the first page.

    Raises InvalidRequest.
    """
    if not token:
        return None
    try:
        parts = json.loads(token) if len(token) <= TOKEN_CHARS_MAX else None
    except (ValueError, RecursionError):
        parts = None
    if (
        not isinstance(parts, list)
        or [type(part) for part in parts] != list(kinds)
        or any(isinstance(part, int) and not -(1 << 63) <= part < 1 << 63 for part in parts)
    ):
        raise InvalidRequest("the page token is not one of ours", next_step="begin with the first page")
    return tuple(parts)


def rest(items: Sequence[Item], behind: Key | None, key: Callable[[Item], Key]) -> Sequence[Item]:
    """Return what lies behind ``behind`` in items that are sorted by ``key``."""
    return items if behind is None else items[bisect_right(items, behind, key=key) :]


def cut(
    items: Iterable[Item], size: int, *, key: Callable[[Item], Key], to_pb: Callable[[Item], Made]
) -> tuple[list[Made], str]:
    """Return the first page of ``items`` as messages, and the token of the next (G1, G2).

    ``size`` 0: as many as a page holds. The token is empty where nothing is left.
    """
    page: list[Made] = []
    page_bytes = 0
    last: Item | None = None
    for item in items:
        message = to_pb(item)
        page_bytes += message.ByteSize() + _FRAME_BYTES
        if last is not None and (len(page) == size or page_bytes > PAGE_BYTES_MAX):
            return page, json.dumps(key(last))
        page.append(message)
        last = item
    return page, ""


def frame(field: int, message: Message) -> bytes:
    """Return a message as it lies in the repeated ``field`` of another: so that a long listing of messages
    that rarely change is joined, and not made anew each time."""
    body = message.SerializeToString()
    head, length = bytearray([field << 3 | 2]), len(body)
    assert field < 16, "its tag is one byte"
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def cut_frames(
    items: Iterable[Item], size: int, *, key: Callable[[Item], Key], to_frame: Callable[[Item], bytes]
) -> tuple[bytes, str]:
    """Return the first page as the bytes of its field, and the token of the next; else as ``cut``."""
    page: list[bytes] = []
    page_bytes = 0
    last: Item | None = None
    for item in items:
        data = to_frame(item)
        page_bytes += len(data)
        if last is not None and (len(page) == size or page_bytes > PAGE_BYTES_MAX):
            return b"".join(page), json.dumps(key(last))
        page.append(data)
        last = item
    return b"".join(page), ""


def follow(ask: Callable[[Any], Any], request: Any) -> Iterator[Any]:
    """Yield the answers to a request for a listing, page by page. Raises Corruption (G3)."""
    for _ in range(PAGES_MAX):
        answer = ask(request)
        yield answer
        if not answer.next_page_token:
            return
        if answer.next_page_token == request.page_token:
            break
        asked, request = request, type(request)()
        request.CopyFrom(asked)
        request.page_token = answer.next_page_token
    raise Corruption(
        "a listing does not end: its pages lead nowhere",
        subject=type(request).__name__,
        next_step="look into that daemon's log; it may be of another version",
    )
