"""Read the trees of a range ahead of its bytes, and have containers loaded before they are wanted.

Whoever reads an image forward takes groups of spans from here. While one group is worked on, the
next GROUPS_AHEAD are located already; a container of which they want much is loaded by the store's
readers meanwhile, several at once, in the order of need.
Limits: GROUPS_AHEAD groups of locators (about 100 bytes a segment); the store bounds the loading.
Callers: one thread a reader.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import ArrayliftError
from arraylift.ids import ContainerId
from arraylift.segments.tree import Leaf
from dedup_target.segment_index import Locator

GROUPS_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Located:
    """Spans, their leaves (None for a hole), and where the segments of all of them lie, in order."""

    spans: list[int]
    leaves: list[Leaf | None]
    fingerprints: list[bytes]
    locators: list[Locator]


class ReadAhead:
    """An iterator over groups of spans, each located."""

    def __init__(
        self,
        groups: Iterable[list[int]],
        locate: Callable[[list[int]], Located],
        prefetch: Callable[[list[ContainerId]], None],
        *,
        whole_from_bytes: int,
    ) -> None:
        """``locate`` may raise: the error comes in the place of its group, after those before it."""
        self._groups = groups
        self._locate = locate
        self._prefetch = prefetch
        self._whole_from_bytes = whole_from_bytes
        self._waiting: deque[Located | ArrayliftError] = deque()
        self._wanted: Counter[ContainerId] = Counter()
        self._asked: set[ContainerId] = set()

    def __iter__(self) -> Iterator[Located]:
        for spans in self._groups:
            self._add(spans)
            if len(self._waiting) > GROUPS_AHEAD:
                yield self._take()
        while self._waiting:
            yield self._take()

    def _add(self, spans: list[int]) -> None:
        try:
            located = self._locate(spans)
        except ArrayliftError as error:
            self._waiting.append(error)
            return
        self._waiting.append(located)
        for locator in located.locators:
            self._wanted[locator.container] += locator.stored_bytes
        touched = dict.fromkeys(locator.container for locator in located.locators)
        much = [one for one in touched if self._wanted[one] >= self._whole_from_bytes]
        self._prefetch([one for one in much if one not in self._asked])
        self._asked.update(much)

    def _take(self) -> Located:
        located = self._waiting.popleft()
        if isinstance(located, ArrayliftError):
            raise located
        for locator in located.locators:
            self._wanted[locator.container] -= locator.stored_bytes
        for container in {locator.container for locator in located.locators}:
            if not self._wanted[container]:
                del self._wanted[container]
                self._asked.discard(container)
        return located
