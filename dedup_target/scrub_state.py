"""How far a unit's scrub has come, and when it saw which containers.

Containers are seen in the order of their ids, so a period is a few *laps*: (last id, no
earlier than). Those of the period before are kept, for what the present one has not reached.
Invariants:
  P1 what ``seen_at`` answers is never later than the moment at which reading began.
  P2 a lost or damaged file costs nothing but the work: all counts as unseen.
Limits: LAPS_MAX laps; NAMED_MAX containers or images by name. Pure but for the codec; the caller locks.
Format: docs/formats/scrub-v1.md
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field, replace
from typing import Any

from arraylift import envelope
from arraylift.errors import Corruption
from arraylift.ids import ContainerId, ImageId, UnitId, check_id

MAGIC = b"ALSCRUB1"
LAPS_MAX = 512
NAMED_MAX = 1000

_KEYS = frozenset({"before", "period", "unit_id"})
_PERIOD_KEYS = frozenset({"affected_images", "figures", "laps", "last_id", "started_at_ns", "unreadable"})


@dataclass(frozen=True, slots=True)
class Figures:
    """What a period has cost and found so far."""

    bytes_read: int = 0
    records_checked: int = 0
    records_damaged: int = 0
    """Quarantined by it."""
    containers_worn: int = 0
    """Header, directory or frames damaged, and every record still to be had."""

    def plus(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, name) + getattr(other, name) for name in Figures.__slots__))


@dataclass(frozen=True, slots=True)
class Period:
    """One pass over a unit. ``laps`` ascend; each says that the containers up to its id, and above the
    lap before, were read at that time or later."""

    started_at_ns: int
    last_id: int
    """The highest container that belongs to it: newer ones wait for the next."""
    laps: tuple[tuple[int, int], ...] = ()
    figures: Figures = field(default_factory=Figures)
    unreadable: tuple[ContainerId, ...] = ()
    affected_images: tuple[ImageId, ...] = ()

    @property
    def cursor(self) -> int:
        """Every container up to this one was seen."""
        return self.laps[-1][0] if self.laps else 0

    @property
    def done(self) -> bool:
        return self.cursor >= self.last_id

    def seen_at(self, container: int) -> int | None:
        """When, at the earliest; None: not in this period (P1)."""
        place = bisect.bisect_left(self.laps, (container, 0))
        return self.laps[place][1] if place < len(self.laps) else None

    def advanced(self, container: int, at_ns: int, figures: Figures, *, unreadable: bool) -> Period:
        """With one more container, read at that time."""
        assert container > self.cursor, "containers are seen in ascending order"
        return replace(
            self,
            laps=_shortened((*self.laps, (container, at_ns))),
            figures=self.figures.plus(figures),
            unreadable=((*self.unreadable, ContainerId(container)) if unreadable else self.unreadable)[
                :NAMED_MAX
            ],
        )

    def finished(self, at_ns: int, affected: list[ImageId]) -> Period:
        """All of it was seen; ids at the end may have no container."""
        laps = self.laps if self.done else _shortened((*self.laps, (self.last_id, at_ns)))
        return replace(self, laps=laps, affected_images=tuple(affected[:NAMED_MAX]))


LAP_NS = 60 * 10**9
"""Containers that were read within a minute share a lap; later on, within a 256th of the period so far."""

_Laps = tuple[tuple[int, int], ...]


def _shortened(laps: _Laps) -> _Laps:
    """Join the last two if they are close, and all that are close for their number if they are many."""
    laps = (*laps[:-2], *_joined(laps[-2:], LAP_NS))
    if len(laps) > LAPS_MAX:
        laps = _joined(laps, abs(laps[-1][1] - laps[0][1]) // (LAPS_MAX // 2))
    if len(laps) > LAPS_MAX:  # a clock that jumped to and fro
        laps = ((laps[-1][0], min(at_ns for _, at_ns in laps)),)
    return laps


def _joined(laps: _Laps, width_ns: int) -> _Laps:
    """With laps joined to one before that began less than ``width_ns`` earlier, whose time stays (P1)."""
    kept: list[tuple[int, int]] = []
    for last, at_ns in laps:
        if kept and 0 <= at_ns - kept[-1][1] < width_ns:
            kept[-1] = (last, kept[-1][1])
        else:
            kept.append((last, at_ns))
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class ScrubState:
    """The present period of a unit, or its last one, and the one before."""

    period: Period | None = None
    before: Period | None = None

    def begun(self, now_ns: int, last_id: int) -> ScrubState:
        """A new period; the present one is kept for what it saw."""
        return ScrubState(Period(now_ns, last_id), self.period or self.before)

    def seen_at(self, container: int) -> int | None:
        """When a container was last read, at the earliest."""
        for period in (self.period, self.before):
            found = period.seen_at(container) if period is not None else None
            if found is not None:
                return found
        return None


# -- the file -----------------------------------------------------------------------------------


def encode(state: ScrubState, unit_id: UnitId) -> bytes:
    """The whole file."""
    body = {"before": _fields(state.before), "period": _fields(state.period), "unit_id": unit_id}
    return envelope.encode(MAGIC, envelope.canonical_json(body))


def decode(data: bytes, unit_id: UnitId) -> ScrubState:
    """Raises Corruption, also for another unit's; WrongState for a newer format."""
    what = f"the scrub's position in unit {unit_id}"
    fields = envelope.decode_json(MAGIC, data, what=what, keys=_KEYS)
    try:
        if fields["unit_id"] != unit_id:
            raise ValueError("it is another unit's")
        return ScrubState(_period(fields["period"]), _period(fields["before"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corruption(f"{what} makes no sense: {error}", subject=what) from error


def _fields(period: Period | None) -> dict[str, Any] | None:
    if period is None:
        return None
    return {
        "affected_images": list(period.affected_images),
        "figures": {name: getattr(period.figures, name) for name in Figures.__slots__},
        "laps": [[f"{last:016x}", at_ns] for last, at_ns in period.laps],
        "last_id": f"{period.last_id:016x}",
        "started_at_ns": period.started_at_ns,
        "unreadable": [f"{container:016x}" for container in period.unreadable],
    }


def _period(fields: dict[str, Any] | None) -> Period | None:
    if fields is None:
        return None
    if fields.keys() != _PERIOD_KEYS:
        raise ValueError("a period does not have the fields of its version")
    laps = tuple((int(last, 16), _count(at_ns)) for last, at_ns in fields["laps"])
    if [last for last, _ in laps] != sorted({last for last, _ in laps}):
        raise ValueError("laps do not ascend")
    return Period(
        started_at_ns=_count(fields["started_at_ns"]),
        last_id=int(fields["last_id"], 16),
        laps=laps,
        figures=Figures(**{name: _count(value) for name, value in fields["figures"].items()}),
        unreadable=tuple(ContainerId(int(container, 16)) for container in fields["unreadable"]),
        affected_images=tuple(
            ImageId(check_id(image_id, "image id")) for image_id in fields["affected_images"]
        ),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no count")
    return value
