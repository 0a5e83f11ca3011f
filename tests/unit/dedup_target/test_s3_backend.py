"""An object store that stumbles, cuts, vanishes: repeated within bounds, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arraylift.errors import InvalidRequest, NotFound, PeerUnavailable
from dedup_target import superblock
from dedup_target.anchored_backend import AnchoredBackend
from dedup_target.s3_backend import Patience, S3Backend, parse_location
from tests.contract.backend_rig import IMPATIENT, SUPERBLOCK
from tests.fakes.object_store import ObjectStore

CONTENT = b"content" * 30_000


@pytest.fixture
def store(object_store: Callable[[], ObjectStore]) -> ObjectStore:
    made = object_store()
    made.faults.clear()
    return made


def _open(store: ObjectStore, location: str) -> S3Backend:
    return S3Backend(location, endpoint=store.endpoint, patience=IMPATIENT)


@pytest.mark.parametrize("fault", ["refuse", "cut", "lose"])
def test_a_put_that_stumbles_is_repeated(store: ObjectStore, fault: str) -> None:
    location = store.make_bucket()
    backend = _open(store, location)
    store.fail_puts(fault, 1)
    before = len(store.requests)
    backend.put("manifests/a.alm", [CONTENT], label="t")
    assert len(store.requests) - before == 2
    assert backend.get("manifests/a.alm") == CONTENT


def test_a_cut_upload_shows_nothing(store: ObjectStore) -> None:
    location = store.make_bucket()
    store.fail_puts("cut", 20)
    with pytest.raises(PeerUnavailable, match="does not serve manifests/a"):
        _open(store, location).put("manifests/a.alm", [CONTENT], label="t")
    assert store.keys(location) == []


@pytest.mark.parametrize("fault", ["refuse", "lose", "short"])
def test_a_read_that_stumbles_is_repeated_or_an_error_never_less(store: ObjectStore, fault: str) -> None:
    location = store.make_bucket()
    backend = _open(store, location)
    backend.put("manifests/a.alm", [CONTENT], label="t")
    for read in (lambda: backend.get("manifests/a.alm"), lambda: backend.get("manifests/a.alm", 7, 200_000)):
        store.faults["GET"].append(fault)
        try:
            found = read()
        except PeerUnavailable:
            if fault != "short":
                raise
            continue
        assert CONTENT.find(found) in {0, 7}
        assert len(found) in {len(CONTENT), 200_000}


def test_a_store_that_is_down_is_told_in_time() -> None:
    patience = Patience(connect_seconds=1, request_seconds=1, retries_max=1, retry_seconds=1)
    backend = S3Backend("s3://bucket/unit", endpoint="http://127.0.0.1:9", patience=patience)
    for call in (backend.get, backend.size, backend.exists, backend.list):
        with pytest.raises(PeerUnavailable) as raised:
            call("unit.alu")
        assert "s3://bucket/unit" in raised.value.subject
        assert "reachable" in raised.value.next_step
        assert len(raised.value.message) < 500


def test_a_bucket_that_is_gone_is_no_missing_object(store: ObjectStore) -> None:
    location = store.make_bucket()
    backend = AnchoredBackend(_open(store, location), is_local=False)
    with pytest.raises(NotFound):
        backend.get(superblock.NAME)
    backend.put(superblock.NAME, [SUPERBLOCK], label="t")
    with pytest.raises(NotFound):
        backend.get("manifests/a.alm")
    store.drop_bucket(location)
    for call in (backend.get, backend.size):
        with pytest.raises(PeerUnavailable, match="no storage unit"):
            call("manifests/a.alm")
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        backend.put("manifests/a.alm", [b"x"], label="t")
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        backend.remove("manifests/a.alm", label="t", missing_ok=True)


def test_units_in_one_bucket_do_not_see_each_other(store: ObjectStore) -> None:
    location = store.make_bucket()
    one, two = _open(store, f"{location}/one"), _open(store, f"{location}/one2")
    one.put("manifests/a.alm", [b"x"], label="t")
    assert two.list("") == []
    assert not two.exists("manifests/a.alm")
    assert store.keys(location) == ["one/manifests/a.alm"]


def test_places_are_checked() -> None:
    assert parse_location("s3://bucket") == ("bucket", "")
    assert parse_location("s3://bucket/a/b/") == ("bucket", "a/b")
    for bad in ("s3://", "s3:///a", "bucket/a", "s3://bucket/a//b", "s3://bucket/../b", "/srv"):
        with pytest.raises(InvalidRequest):
            parse_location(bad)
