"""Manifests: the commit points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arraylift import envelope
from arraylift.durable import RealFiles
from arraylift.errors import AlreadyExists, ArrayliftError, Corruption, NotFound, WrongState
from arraylift.ids import ImageId, TenantId
from dedup_target import manifest_format
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.manifest_store import ManifestStore
from tests.unit.dedup_target.material import TENANT, manifest, toy_sealer


def _store(path: Path) -> ManifestStore:
    return ManifestStore(DirectoryBackend(RealFiles(), str(path)), toy_sealer)


def test_what_is_published_is_there_after_a_restart(tmp_path: Path) -> None:
    store = _store(tmp_path)
    images = [manifest(1), replace(manifest(2), source_state=None, base_image_id=manifest(1).image_id)]
    images.append(replace(manifest(3, name="dépôt/disk"), lock_until_ns=1 << 62, transfer_id=""))
    for image in images:
        store.publish(image)
    for one in (store, _store(tmp_path)):
        assert one.all() == images[::-1]
        assert one.get(images[1].image_id) == images[1]
        assert one.damaged == []


def test_newest_is_by_time_then_id_and_within_a_tenant(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number, at_ns in ((1, 50), (2, 70), (3, 70), (4, 60)):
        store.publish(manifest(number, at_ns=at_ns))
    store.publish(replace(manifest(5, at_ns=90), tenant=TenantId(8)))
    store.publish(manifest(6, name="web1/disk1", at_ns=99))
    names = [int(image.image_id, 16) for image in store.by_name(TENANT, "web1/disk0")]
    assert names == [3, 2, 4, 1]
    newest = store.newest(TENANT, "web1/disk0")
    assert newest is not None
    assert int(newest.image_id, 16) == 3
    assert store.newest(TENANT, "none") is None


def test_one_id_one_image(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.publish(manifest(1))
    with pytest.raises(AlreadyExists):
        store.publish(manifest(1))
    store.replace(replace(manifest(1), lock_until_ns=5))
    assert _store(tmp_path).get(manifest(1).image_id).lock_until_ns == 5
    store.remove(manifest(1).image_id)
    for act in (store.get, store.remove):
        with pytest.raises(NotFound):
            act(manifest(1).image_id)
    with pytest.raises(NotFound):
        store.replace(manifest(1))
    assert _store(tmp_path).all() == []


def test_a_transfer_finds_its_image(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.publish(manifest(1))
    assert store.by_transfer("c" * 32) == manifest(1)
    assert store.by_transfer("e" * 32) is None


def test_damaged_manifests_are_reported_and_block_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number in (1, 2, 3):
        store.publish(manifest(number))
    folder = tmp_path / "manifests"
    first = folder / f"{manifest(1).image_id}.alm"
    first.write_bytes(first.read_bytes()[:-1])
    (folder / f"{manifest(9).image_id}.alm").write_bytes(
        (folder / f"{manifest(2).image_id}.alm").read_bytes()
    )
    (folder / "README").write_text("hello")
    again = _store(tmp_path)
    assert [int(image.image_id, 16) for image in again.all()] == [3, 2]
    assert sorted(one.file_name for one in again.damaged) == sorted([first.name, f"{9:032x}.alm", "README"])
    assert first.exists()


def test_every_flipped_bit_is_an_error() -> None:
    data = manifest_format.encode(manifest(1), toy_sealer)
    for place in range(len(data) * 8):
        content = bytearray(data)
        content[place // 8] ^= 1 << place % 8
        with pytest.raises(ArrayliftError):
            manifest_format.decode(bytes(content), toy_sealer, what="manifest")
    for size in range(len(data)):
        with pytest.raises(ArrayliftError):
            manifest_format.decode(data[:size], toy_sealer, what="manifest")


def test_nobody_without_the_key_makes_a_manifest() -> None:
    forged = manifest_format.encode(manifest(1), lambda _tenant, _body: b"f" * 32)
    with pytest.raises(Corruption, match="seal"):
        manifest_format.decode(forged, toy_sealer, what="manifest")


def test_the_unknown_is_refused() -> None:
    data = bytearray(manifest_format.encode(manifest(1), toy_sealer))
    data[8] = 2
    with pytest.raises(WrongState, match="version 2"):
        manifest_format.decode(bytes(data), toy_sealer, what="manifest")
    body, _ = envelope.decode(
        manifest_format.MAGIC, manifest_format.encode(manifest(1), toy_sealer), what="m"
    )
    for wrong in (body[:-1] + b',"zz":1}', body.replace(b'"image_bytes":', b'"image_bytes": ')):
        sealed = envelope.encode(manifest_format.MAGIC, wrong, toy_sealer(TENANT, wrong))
        with pytest.raises(Corruption):
            manifest_format.decode(sealed, toy_sealer, what="manifest")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_id", "../../etc/passwd"),
        ("image_bytes", -1),
        ("image_bytes", True),
        ("root", "00"),
        ("figures", [1]),
        ("segmentation", {}),
        ("source_state", {"pool_id": "x"}),
        ("name", "a\nb"),
        ("tenant", "zz"),
    ],
)
def test_senseless_fields_are_corruption(field: str, value: object) -> None:
    data = manifest_format.encode(manifest(1), toy_sealer)
    fields = envelope.decode_json(manifest_format.MAGIC, data, what="m", keys=manifest_format._KEYS)
    fields[field] = value
    body = envelope.canonical_json(fields)
    with pytest.raises(Corruption, match="make no sense"):
        manifest_format.decode(
            envelope.encode(manifest_format.MAGIC, body, toy_sealer(TENANT, body)),
            toy_sealer,
            what="manifest",
        )


def test_names_never_become_paths(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.publish(manifest(1, name="..x/etc"))
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == [f"{1:032x}.alm"]
    with pytest.raises(NotFound):
        store.get(ImageId("../x"))
