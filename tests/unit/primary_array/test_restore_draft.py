"""Restores at the array: progress that survives, roots that are checked, leases that lapse."""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import (
    AlreadyExists,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotPermitted,
    OutOfSpace,
    WrongState,
)
from arraylift.exchange import wire
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import (
    Commit,
    Committed,
    Figures,
    Limits,
    Missing,
    Open,
    Opened,
    Reply,
    Request,
)
from arraylift.exchange.serve_lane import serve_lane
from arraylift.ids import TransferId
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmenter
from arraylift.segments.tree import encode_leaf, no_leaves, root_of
from arraylift.sizes import GRANULE_BYTES, MIB, SPAN_BYTES, spans_of
from primary_array.draft import Draft
from primary_array.pool import Pool
from primary_array.pool_types import VolumeSource
from primary_array.restore_draft import Note, RestoreGrant, decode_tag, encode_tag, solid_runs
from primary_array.restores import Restores
from tests.fakes.disk import FakeFiles
from tests.property.test_commit_states import _offer, _segments

KEY_BYTES = bytes(range(32))
KEY = FingerprintKey(KEY_BYTES)
TARGET = {"role": "target", "name": "target1"}
SECRET = b"s" * 32
LEASE_SECONDS = 100
DISK = np.random.default_rng(1).bytes(MIB) + bytes(MIB) + np.random.default_rng(2).bytes(70_144)


@dataclass
class HandClock:
    """Stands still until it is turned."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 1


@dataclass
class Array:
    """A pool on a simulated disk and its restores."""

    files: FakeFiles = field(default_factory=FakeFiles)
    clock: HandClock = field(default_factory=HandClock)
    dead: bool = False

    def __post_init__(self) -> None:
        self.pool = Pool.open(self.files, "/pool")
        self.restores = Restores(
            self.pool, b"s" * 32, clock=self.clock, limits=Limits(), lease_seconds=LEASE_SECONDS
        )

    def killed(self) -> Array:
        """The array after kill -9, started again."""
        files = self.files.after_kill()
        self.dead = True
        self.restores.close()
        return Array(files, self.clock)

    def close(self) -> None:
        if not self.dead:
            self.restores.close()
            self.pool.close()

    @property
    def volume_names(self) -> list[str]:
        return [volume.name for volume in self.pool.volumes()]

    def opening(self, number: int = 1, volume: str = "back") -> Open:
        transfer_id = TransferId(f"{number:032x}")
        grant = self.restores.prepare(transfer_id, target="target1", volume_name=volume)
        return Open(
            transfer_id=transfer_id,
            grant=grant,
            attempt=0,
            lane=0,
            image_bytes=len(DISK),
            segmentation=DEFAULT_SEGMENTATION,
            source_state=None,
            key=KEY_BYTES,
            root=_root(DISK),
        )

    def content(self, volume: str) -> bytes:
        into = bytearray(len(DISK))
        self.pool.read_into(VolumeSource(volume), 0, memoryview(into))
        return bytes(into)


class Lane:
    """A target's lane, one request at a time."""

    def __init__(self, array: Array, opening: Open, **peer: str) -> None:
        self._requests: deque[bytes] = deque()
        who = {**TARGET, **peer}
        self._replies = serve_lane(
            iter(self._requests.popleft, None), lambda message: array.restores.find(message, **who)
        )
        self.batch = 0
        opened = self.ask(opening, Opened)
        assert isinstance(opened, Opened)
        self.opened = opened

    def ask(self, request: Request, *answers: type[Reply]) -> Reply:
        self._requests.append(wire.encode_request(request))
        while not isinstance(reply := next(self._replies), answers):
            pass
        return reply

    def deliver(self, spans: list[int], disk: bytes = DISK) -> None:
        for span in spans:
            self.batch += 1
            offer, pieces = _offer(self.batch, span, disk, KEY)
            missing = self.ask(offer, Missing)
            assert isinstance(missing, Missing)
            if missing.wanted is not None:
                self._requests.append(wire.encode_request(_segments(missing, pieces)))

    def commit(self) -> Committed:
        reply = self.ask(Commit(False, Figures()), Committed)
        assert isinstance(reply, Committed)
        return reply

    def cut(self) -> None:
        self._replies.close()  # type: ignore[attr-defined]


def _root(disk: bytes) -> bytes:
    leaves = no_leaves(spans_of(len(disk)))
    for span in range(spans_of(len(disk))):
        view = memoryview(disk)[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]
        if any(view):
            pieces = Segmenter(DEFAULT_SEGMENTATION).cut(view)
            lengths = np.array([len(piece) for piece in pieces], dtype="<u4").tobytes()
            leaf = KEY.node(encode_leaf(lengths, KEY.segments(pieces)))
            leaves[span] = np.frombuffer(leaf, np.uint8)
    return root_of(leaves, image_bytes=len(disk), segmentation=DEFAULT_SEGMENTATION, key=KEY)


@pytest.fixture
def array() -> Iterator[Array]:
    made = Array()
    yield made
    made.close()


# -- a restore ----------------------------------------------------------------------------------


def test_a_volume_appears_at_its_commit_and_not_before(array: Array) -> None:
    lane = Lane(array, array.opening())
    lane.deliver([0, 1, 2])
    assert array.volume_names == []
    receipt = lane.commit()
    assert array.volume_names == ["back"]
    assert array.content("back") == DISK
    assert array.pool.volume("back").mapped_bytes == MIB + 2 * GRANULE_BYTES, "D3"
    opening = array.opening()
    for later in (array, array.killed()):
        found = Lane(later, opening).opened.committed
        assert found is not None
        assert (found.root, found.image_id) == (receipt.root, receipt.image_id), "S3"
    assert array.pool.drafts() == []


def test_a_restore_goes_on_after_a_kill_and_checks_the_root_over_both_lives(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0, 1])
    array.clock.now += 10  # the progress note is due
    lane.deliver([2])
    lane.cut()
    later = array.killed()
    assert later.volume_names == []
    lane = Lane(later, opening)
    durable = Coverage.from_bitmap(lane.opened.durable_spans, 3).flags.tolist()
    assert durable[:2] == [True, True]
    lane.deliver([span for span in range(3) if not durable[span]])
    assert lane.commit().root == opening.root
    assert later.content("back") == DISK
    later.close()


def test_bytes_that_changed_on_the_array_between_two_lives_are_found(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0, 1])
    array.clock.now += 10
    lane.deliver([2])
    lane.cut()
    later = array.killed()
    (draft,) = later.pool.drafts()
    later.pool.resume_draft(draft.draft_id).write(100, b"not from the image")
    lane = Lane(later, opening)
    lane.deliver(
        [span for span in range(3) if not Coverage.from_bitmap(lane.opened.durable_spans, 3).flags[span]]
    )
    with pytest.raises(Corruption, match="root"):
        lane.commit()
    assert later.volume_names == []
    later.close()


def test_an_image_that_is_not_the_one_announced(array: Array) -> None:
    lane = Lane(array, replace(array.opening(), root=bytes(32)))
    lane.deliver([0, 1, 2])
    with pytest.raises(Corruption, match="root"):
        lane.commit()
    assert array.volume_names == []


def test_a_commit_that_lacks_spans_or_wants_to_inherit(array: Array) -> None:
    lane = Lane(array, array.opening())
    lane.deliver([0])
    with pytest.raises(InvalidRequest, match="2 spans"):
        lane.commit()
    lane = Lane(array, array.opening())
    lane.deliver([1, 2])
    with pytest.raises(InvalidRequest, match="no base"):
        lane.ask(Commit(True, Figures()), Committed)
    assert array.volume_names == []


# -- who may, and for how long ------------------------------------------------------------------


def test_only_the_granted_target_opens_a_restore(array: Array) -> None:
    opening = array.opening()
    for peer in ({"name": "target2"}, {"role": "array"}):
        with pytest.raises(NotPermitted):
            Lane(array, opening, **peer)
    with pytest.raises(NotPermitted):
        Lane(array, replace(opening, grant=bytes(32)))
    with pytest.raises(NotPermitted):  # which says nothing about other restores
        Lane(array, replace(opening, transfer_id=TransferId("f" * 32)))
    with pytest.raises(InvalidRequest, match="key"):
        Lane(array, replace(opening, key=b""))
    assert array.pool.drafts() == []


def test_a_newer_attempt_fences_the_older(array: Array) -> None:
    opening = array.opening()
    old = Lane(array, opening)
    old.deliver([0])
    new = Lane(array, opening)
    with pytest.raises(LeaseLost):
        old.deliver([1])
    with pytest.raises(WrongState, match="another image"):
        Lane(array, replace(opening, root=bytes(32)))
    new.deliver(
        [span for span in range(3) if not Coverage.from_bitmap(new.opened.durable_spans, 3).flags[span]]
    )
    new.commit()
    assert array.content("back") == DISK


def test_a_name_belongs_to_one_restore(array: Array) -> None:
    array.opening(1)
    assert array.opening(1).grant == array.opening(1).grant
    with pytest.raises(AlreadyExists):
        array.opening(2)
    with pytest.raises(AlreadyExists, match="something else"):
        array.opening(1, volume="other")
    array.pool.create_volume("taken", MIB)
    with pytest.raises(AlreadyExists):
        array.opening(3, volume="taken")


def test_a_restore_that_nobody_continues_leaves_nothing(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0])
    array.clock.now += 10 * LEASE_SECONDS
    array.restores.reap()
    lane.deliver([1])  # an open lane holds the lease
    lane.cut()
    array.clock.now += LEASE_SECONDS - 1
    array.restores.reap()
    assert len(array.pool.drafts()) == 1
    array.clock.now += 2
    array.restores.reap()
    assert array.pool.drafts() == []
    with pytest.raises(NotFound):
        Lane(array, opening)
    assert array.pool.stats().slots_used == 0
    array.opening(2)  # the name is free


def test_a_lane_for_which_there_is_no_thread_keeps_no_restore_alive(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    message = array.opening()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            Lane(array, message)
    array.clock.now += LEASE_SECONDS + 1
    array.restores.reap()
    assert array.pool.drafts() == []


def test_a_restore_whose_first_note_met_a_full_disk_begins_again(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = array.opening()
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "save_progress", _full)
        with pytest.raises(OutOfSpace):
            Lane(array, opening)
    lane = Lane(array, opening)
    lane.deliver([0, 1, 2])
    lane.commit()
    assert array.content("back") == DISK
    assert array.pool.drafts() == []


def test_a_draft_whose_first_note_met_a_full_disk_goes_with_its_lease(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "save_progress", _full)
        with pytest.raises(OutOfSpace):
            Lane(array, array.opening())
    array.clock.now += LEASE_SECONDS + 1
    array.restores.reap()
    assert array.pool.drafts() == []


def test_a_lapsed_restore_that_a_full_disk_keeps_goes_in_a_later_round(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(array, array.opening())
    lane.deliver([0])
    lane.cut()
    array.clock.now += LEASE_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "abort", _full)
        array.restores.reap()  # an error here would end the reaper's thread for good
        with pytest.raises(OutOfSpace):
            array.restores.revoke(TransferId(f"{1:032x}"))
    assert len(array.pool.drafts()) == 1
    array.restores.reap()
    assert array.pool.drafts() == []


def test_a_draft_that_nobody_can_read_stops_no_start_on_a_full_disk(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    array.pool.begin_volume("odd", MIB).save_progress(b"not a note")
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "abort", _full)
        again = array.killed()
    assert len(again.pool.drafts()) == 1
    later = again.killed()
    assert later.pool.drafts() == []
    later.close()


def _full(*_: object) -> None:
    raise OutOfSpace("full")


def test_leases_restart_in_full_with_the_array(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0])
    lane.cut()
    array.clock.now += LEASE_SECONDS - 1
    later = array.killed()
    later.clock.now += LEASE_SECONDS - 1
    later.restores.reap()
    assert len(later.pool.drafts()) == 1
    later.clock.now += 2
    later.restores.reap()
    assert later.pool.drafts() == []
    later.close()


# -- pieces -------------------------------------------------------------------------------------


@given(solid=st.lists(st.booleans(), min_size=1, max_size=16), short=st.integers(1, GRANULE_BYTES))
def test_solid_runs_are_the_granules_that_hold_something(solid: list[bool], short: int) -> None:
    plain = bytearray((len(solid) - 1) * GRANULE_BYTES + short)
    for granule, full in enumerate(solid):
        if full:
            plain[min((granule + 1) * GRANULE_BYTES, len(plain)) - 1] = 1
    runs = solid_runs(bytes(plain))
    covered = {
        granule
        for start, stop in runs
        for granule in range(start // GRANULE_BYTES, -(-stop // GRANULE_BYTES))
    }
    assert covered == {granule for granule, full in enumerate(solid) if full}
    assert all(stop <= len(plain) and start < stop for start, stop in runs)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(runs)), "runs are as long as may be"


@given(flags=st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_progress_note_comes_back_without_the_key(flags: list[bool]) -> None:
    grant = RestoreGrant(TransferId("a" * 32), "target1", "back", b"g" * 32, "group")
    opened = Open(
        transfer_id=grant.transfer_id,
        grant=grant.grant,
        attempt=3,
        lane=0,
        image_bytes=len(DISK),
        segmentation=DEFAULT_SEGMENTATION,
        source_state=None,
        key=KEY_BYTES,
        root=b"r" * 32,
    )
    written = Coverage(3)
    written.flags[:] = flags
    tag = encode_tag(Note(grant, opened, written, has_content=True, whole=flags[0]))
    assert KEY_BYTES.hex().encode() not in tag
    found = decode_tag(tag)
    assert found.grant == grant
    assert (found.opened.root, found.opened.image_bytes) == (opened.root, opened.image_bytes)
    assert found.written.flags.tolist() == flags
    assert (found.has_content, found.whole) == (True, flags[0])
    fields = json.loads(tag)
    old = {name: value for name, value in fields.items() if name not in {"group_id", "has_content", "whole"}}
    first = decode_tag(json.dumps({**old, "version": 1}).encode())
    assert (first.grant.group_id, first.has_content, first.whole) == ("", False, False)
    for name in ("version", "image_bytes", "segmentation", "root", "written", "grant"):
        for bad in ("null", '"\\u20ac"', "{}", "1e300", "-1"):
            damaged = {**fields, name: json.loads(bad)}
            with pytest.raises(Corruption):
                decode_tag(json.dumps(damaged).encode())
        fields_without = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(Corruption):
            decode_tag(json.dumps(fields_without).encode())
    for cut in (b"", tag[:-1], b"[]"):
        with pytest.raises(Corruption):
            decode_tag(cut)


def test_a_revoked_restore_leaves_nothing_and_ends_its_lanes(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0])
    array.restores.revoke(opening.transfer_id)
    array.restores.revoke(opening.transfer_id)
    with pytest.raises(LeaseLost, match="given up"):
        lane.deliver([1])
    assert array.pool.drafts() == []
    assert array.volume_names == []
    with pytest.raises(NotFound):
        Lane(array, opening)


def test_a_restore_that_has_committed_is_not_revoked(array: Array) -> None:
    opening = array.opening()
    lane = Lane(array, opening)
    lane.deliver([0, 1, 2])
    lane.commit()
    array.restores.revoke(opening.transfer_id)
    assert array.content("back") == DISK
