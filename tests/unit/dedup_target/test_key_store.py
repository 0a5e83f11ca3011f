"""Keys: made once, wrapped on disk, lost loudly."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest, NotFound, WrongState
from arraylift.grants import encode_secret, grant_for, load_grant_secret
from arraylift.ids import TenantId, TransferId
from arraylift.segments.fingerprint import key_id_of
from dedup_target import key_store
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.key_store import KeyStore, TenantKey, load_wrapping_key


def _open(path: Path) -> KeyStore:
    files = RealFiles()
    backend = DirectoryBackend(files, str(path / "unit"))
    return KeyStore(backend, load_wrapping_key(files, str(path), holds_keys=bool(backend.list("keys"))))


def test_a_tenant_keeps_its_key(tmp_path: Path) -> None:
    store = _open(tmp_path)
    first, other = store.get_or_create("acme"), store.get_or_create("")
    assert store.get_or_create("acme") is first
    assert other.name == "default"
    assert first.tenant != other.tenant
    assert first.key != other.key
    assert first.key_id == key_id_of(first.key)
    again = _open(tmp_path)
    assert again.all() == [first, other]
    assert again.by_id(first.tenant) == again.by_name("acme") == first


def test_keys_are_on_disk_wrapped_only_and_not_in_reprs(tmp_path: Path) -> None:
    key = _open(tmp_path).get_or_create("acme")
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.key not in everything
    assert key.key.hex().encode() not in everything
    assert "key=" not in repr(key)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*.k*"))


def test_unknown_tenants_and_bad_names_are_refused(tmp_path: Path) -> None:
    store = _open(tmp_path)
    with pytest.raises(NotFound):
        store.by_name("acme")
    with pytest.raises(NotFound):
        store.by_id(TenantId(5))
    with pytest.raises(InvalidRequest):
        store.get_or_create("a/b")


def test_the_number_of_tenants_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "TENANTS_MAX", 1)
    store = _open(tmp_path)
    store.get_or_create("one")
    with pytest.raises(InvalidRequest):
        store.get_or_create("two")


def test_a_lost_wrapping_key_is_not_replaced(tmp_path: Path) -> None:
    _open(tmp_path).get_or_create("acme")
    (tmp_path / "wrapping.key").unlink()
    with pytest.raises(WrongState, match=r"wrapping\.key is missing"):
        _open(tmp_path)
    assert not (tmp_path / "wrapping.key").exists()


def test_another_wrapping_key_is_noticed(tmp_path: Path) -> None:
    _open(tmp_path).get_or_create("acme")
    (tmp_path / "wrapping.key").write_bytes(encode_secret(b"w" * 32))
    with pytest.raises(WrongState, match="another wrapping key"):
        _open(tmp_path)


def test_a_key_file_about_another_tenant_is_refused(tmp_path: Path) -> None:
    key = _open(tmp_path).get_or_create("acme")
    folder = tmp_path / "unit" / "keys"
    (folder / f"{key.tenant:016x}.alk").rename(folder / f"{key.tenant ^ 1:016x}.alk")
    with pytest.raises(Corruption):
        _open(tmp_path)


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    store = _open(tmp_path)
    key = store.get_or_create("acme")
    twin = TenantKey(TenantId(key.tenant ^ 1), "acme", key.key, key.key_id)
    data = key_store.encode_key(twin, store._wrapping_key)
    (tmp_path / "unit" / "keys" / f"{twin.tenant:016x}.alk").write_bytes(data)
    with pytest.raises(Corruption, match="one tenant"):
        _open(tmp_path)


def test_every_flipped_bit_is_an_error() -> None:
    key = b"k" * 32
    data = key_store.encode_key(TenantKey(TenantId(7), "acme", key, key_id_of(key)), b"w" * 32)
    for place in range(len(data) * 8):
        content = bytearray(data)
        content[place // 8] ^= 1 << place % 8
        with pytest.raises(ArrayliftError):
            key_store.decode_key(bytes(content), b"w" * 32, what="key file")


def test_grants_are_the_same_each_time_and_differ_by_transfer(tmp_path: Path) -> None:
    secret = load_grant_secret(RealFiles(), str(tmp_path))
    assert load_grant_secret(RealFiles(), str(tmp_path)) == secret
    one, two = TransferId("1" * 32), TransferId("2" * 32)
    assert grant_for(secret, one) == grant_for(secret, one)
    assert grant_for(secret, one) != grant_for(secret, two)
    assert len(grant_for(secret, one)) == 32
