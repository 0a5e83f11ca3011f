"""Which disks may be found after the power is cut, given what a kernel had not yet synced.

Pure: reads a ``FakeKernel``, makes new ones. Small histories are enumerated whole; beyond the
stated maxima the extremes come first and the rest is drawn with a seed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from tests.fakes.content import LOST, Content, Outcome, outcomes
from tests.fakes.kernel import ROOT, Entry, FakeKernel, Inode, NameOp

NAME_STATES_MAX = 256
CONTENTS_PER_FILE_MAX = 64
DRAWS_PER_STATE = 8
"""Draws tried for each state wanted, before taking the space to be used up."""

Variant = tuple[Content, str]
"""A content and the story of how it came about."""


def states(kernel: FakeKernel, *, maximum: int, seed: int) -> Iterator[tuple[FakeKernel, str]]:
    """Yield distinct legal disks, at most ``maximum``, each with its story."""
    draw = random.Random(seed)
    contents = {number: _contents(inode, draw) for number, inode in kernel.inodes.items() if inode.pending}
    spaces = [
        (names, story, [number for number in sorted(_reachable(names)) if number in contents])
        for names, story in _name_states(kernel, draw)
    ]
    total = sum(math.prod(len(contents[number]) for number in files) for _, _, files in spaces)
    picks = (
        _all_picks(spaces, contents) if total <= maximum else _drawn_picks(spaces, contents, maximum, draw)
    )
    for index, choice in itertools.islice(picks, maximum):
        names, story, files = spaces[index]
        chosen = {number: contents[number][which] for number, which in zip(files, choice, strict=True)}
        told = [story, *(f"file #{number}: {text}" for number, (_, text) in chosen.items())]
        found = {number: content for number, (content, _) in chosen.items()}
        yield _boot(kernel, names, found), "; ".join(told)


Space = tuple[dict[Entry, int], str, list[int]]
Pick = tuple[int, tuple[int, ...]]


def _all_picks(spaces: list[Space], contents: dict[int, list[Variant]]) -> Iterator[Pick]:
    for index, (_, _, files) in enumerate(spaces):
        for choice in itertools.product(*(range(len(contents[number])) for number in files)):
            yield index, choice


def _drawn_picks(
    spaces: list[Space], contents: dict[int, list[Variant]], maximum: int, draw: random.Random
) -> Iterator[Pick]:
    seen: set[Pick] = set()
    # Variants 0 and 1 of each file are "all lost" and "all kept".
    for index, (_, _, files) in enumerate(spaces):
        for extreme in (0, 1):
            pick = index, tuple(min(extreme, len(contents[number]) - 1) for number in files)
            if pick not in seen:
                seen.add(pick)
                yield pick
    for _ in range(maximum * DRAWS_PER_STATE):
        index = draw.randrange(len(spaces))
        pick = index, tuple(draw.randrange(len(contents[number])) for number in spaces[index][2])
        if pick not in seen:
            seen.add(pick)
            yield pick


# -- names ------------------------------------------------------------------------------------


def _name_states(kernel: FakeKernel, draw: random.Random) -> list[tuple[dict[Entry, int], str]]:
    """Every set of unsynced name changes that is closed under "happened before on the same name"."""
    ops = kernel.pending_names
    if 2 ** len(ops) <= NAME_STATES_MAX:
        masks: Iterator[int] = iter(range(2 ** len(ops)))
    else:
        prefixes = [(1 << count) - 1 for count in range(len(ops) + 1)]
        drawn = [draw.getrandbits(len(ops)) for _ in range(NAME_STATES_MAX - len(prefixes))]
        masks = iter([*prefixes, *drawn])
    found: dict[frozenset[tuple[Entry, int]], tuple[dict[Entry, int], str]] = {}
    for mask in masks:
        chosen = [op for index, op in enumerate(ops) if mask >> index & 1]
        if not _closed(ops, mask):
            continue
        names = kernel.durable_names.copy()
        for op in chosen:
            op.apply(names)
        key = frozenset(_visible(names).items())
        missing = [op.text for index, op in enumerate(ops) if not mask >> index & 1]
        found.setdefault(key, (names, f"names lost: {missing or 'none'}"))
    return list(found.values())


def _closed(ops: list[NameOp], mask: int) -> bool:
    missing: set[Entry] = set()
    for index, op in enumerate(ops):
        entries = {entry for entry, _ in op.entries}
        if mask >> index & 1 and entries & missing:
            return False
        if not mask >> index & 1:
            missing |= entries
    return True


def _reachable(names: dict[Entry, int]) -> set[int]:
    return {ROOT, *_visible(names).values()}


def _visible(names: dict[Entry, int]) -> dict[Entry, int]:
    """The entries that hang on the root; a directory whose own name is lost takes its own along."""
    children: dict[int, list[tuple[Entry, int]]] = {}
    for entry, number in names.items():
        children.setdefault(entry[0], []).append((entry, number))
    visible: dict[Entry, int] = {}
    waiting = [ROOT]
    while waiting:
        for entry, number in children.get(waiting.pop(), []):
            visible[entry] = number
            waiting.append(number)
    return visible


# -- contents ---------------------------------------------------------------------------------


def _contents(inode: Inode, draw: random.Random) -> list[Variant]:
    """Distinct contents of one file; "all lost" and "all kept" come first."""
    sizes, replay = [], inode.durable.copy()
    for op in inode.pending:
        sizes.append(replay.size)
        op.apply(replay)
    options = [outcomes(op, size) for op, size in zip(inode.pending, sizes, strict=True)]
    found: list[Variant] = []
    for combination in _combinations(options, draw):
        content = inode.durable.copy()
        for outcome in combination:
            outcome.apply(content)
        if all(content != other for other, _ in found):
            found.append((content, ", ".join(outcome.name for outcome in combination)))
    return found


def _combinations(options: list[list[Outcome]], draw: random.Random) -> Iterator[tuple[Outcome, ...]]:
    lost = tuple(LOST for _ in options)
    kept = tuple(choices[1] for choices in options)
    yield lost
    yield kept
    if math.prod(len(choices) for choices in options) <= CONTENTS_PER_FILE_MAX:
        yield from itertools.product(*options)
        return
    edges = [(*kept[:index], LOST, *lost[index + 1 :]) for index in range(len(options))]
    holes = [(*kept[:index], LOST, *kept[index + 1 :]) for index in range(len(options))]
    tears = [
        (*kept[:index], outcome, *lost[index + 1 :])
        for index, choices in enumerate(options)
        for outcome in choices[2:]
    ]
    # Three quarters for the shapes most like a real crash, the rest for any mixture.
    shapes = edges + holes + tears
    if len(shapes) > CONTENTS_PER_FILE_MAX * 3 // 4:
        shapes = draw.sample(shapes, CONTENTS_PER_FILE_MAX * 3 // 4)
    yield from shapes
    for _ in range(CONTENTS_PER_FILE_MAX - len(shapes)):
        yield tuple(draw.choice(choices) for choices in options)


# -- booting ----------------------------------------------------------------------------------


def _boot(kernel: FakeKernel, names: dict[Entry, int], found: dict[int, Content]) -> FakeKernel:
    """A new machine with this disk: everything on it is durable, nothing is pending."""
    fresh = FakeKernel(kernel.capacity_bytes)
    fresh.names = _visible(names)
    fresh.durable_names = fresh.names.copy()
    for number in {ROOT, *fresh.names.values()}:
        old = kernel.inodes[number]
        content = found.get(number, old.durable)
        fresh.inodes[number] = Inode(
            number, old.is_dir, durable=content, current=content, unreadable=old.unreadable
        )
    fresh.next_inode = kernel.next_inode
    return fresh
