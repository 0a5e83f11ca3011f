"""What results look like: tables for people, plain values for --json.

Callers: main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from arraylift.clock import utc_text
from arraylift.errors import InvalidRequest
from arraylift.sizes import human, parse_size
from arraylift.v1 import common_pb2

_WHOLE = {"id", "created", "committed", "address"}


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose name begins with '>' is aligned to the right.

    Numbers, times and ids stay whole on a narrow terminal; the other columns fold.
    """
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.lstrip(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right or column in _WHOLE,
        )
    return made


def row(made: Table, *cells: object) -> None:
    """Add a row of plain text: what stands in a cell is never markup."""
    made.add_row(*(Text(printable(str(cell))) for cell in cells))


def pairs(rows: Sequence[tuple[str, object]], title: str | None = None) -> Table:
    """Return a table of names and values."""
    made = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        row(made, name, value)
    return made


def printable(text: str) -> str:
    """Return ``text`` with what could steer a terminal replaced: names come from other machines."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def moment(nanoseconds: int) -> str:
    """Return UTC nanoseconds as people write a time; empty for 0."""
    if not nanoseconds:
        return ""
    return utc_text(nanoseconds)


def ratio(whole: int, part: int) -> str:
    """Return ``whole : part`` as ``"12.5:1"``; "-" where nothing was needed."""
    return f"{whole / part:.1f}:1" if part else "-"


def size_bytes(text: str) -> int:
    """Return the bytes that an operator wrote, e.g. "64K". Raises InvalidRequest."""
    try:
        size = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(str(error)) from None
    if not 0 <= size < 1 << 63:
        raise InvalidRequest(f"{text} is no size")
    return size


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON takes it: every field, bytes in hex, enums by their short names."""
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> Any:
    if field.message_type is not None and not field.is_repeated and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_plain_value(item, field) for item in value]
    return _plain_value(value, field)


def _plain_value(value: Any, field: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.lower() if known else value
    return value


def figures_rows(figures: common_pb2.TransferFigures, *, transfers: int = 1) -> list[tuple[str, object]]:
    """Return the figures of a transfer, or the sum of several, for ``pairs``."""
    seconds = figures.duration_ns / 1e9
    moved = max(figures.bytes_read, figures.bytes_offered)  # a target that sends reads no source
    rate = f", {human(moved / seconds)}/s" if seconds else ""
    spans = (
        f"{figures.spans_total:,} in all; {figures.spans_read:,} read, {figures.spans_sampled:,} sampled, "
        f"{figures.spans_hole:,} holes, {figures.spans_resumed:,} resumed"
    )
    cuts = figures.attempts - transfers
    again = f", resumed {cuts} time{'' if cuts == 1 else 's'}" if cuts > 0 else ""
    rows: list[tuple[str, object]] = [
        ("spans", spans),
        ("read", human(figures.bytes_read)),
        ("offered", f"{human(figures.bytes_offered)} in {figures.segments_offered:,} segments"),
        ("sent", f"{human(figures.bytes_sent)} in {figures.segments_sent:,} segments"),
        ("on the wire", human(figures.bytes_sent_wire)),
        ("stored", human(figures.bytes_stored)),
        ("time", f"{seconds:.2f} s{rate}{again}"),
    ]
    if figures.bytes_read:
        rows.insert(-1, ("ratio", f"{ratio(figures.bytes_read, figures.bytes_stored)} read to stored"))
    return rows


def short_name(enum: Any, value: int) -> str:
    """Return an enum's value as people write it: without its prefix, in small letters."""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    if known is None:
        return str(value)
    names = [each.name for each in enum.DESCRIPTOR.values]
    prefix = names[0].removesuffix("UNSPECIFIED")
    text = str(known.name).removeprefix(prefix)
    return "" if text == "UNSPECIFIED" else text.lower().replace("_", " ")


def value_of(enum: Any, text: str) -> int:
    """Return the number of an enum's value as people write it. Raises InvalidRequest, naming all."""
    known: dict[str, int] = {
        short_name(enum, number): number for number in enum.DESCRIPTOR.values_by_number if number
    }
    if text.lower() not in known:
        raise InvalidRequest(f"{text!r} is none of {', '.join(known)}", next_step="write one of these")
    return known[text.lower()]
