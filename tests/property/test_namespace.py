"""Names as they are listed, against a dict of paths; odd ones never merge, nor look like paths."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import Fingerprint, ImageId, KeyId, TenantId, check_name
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from dedup_target.manifest_format import ImageManifest
from dedup_target.namespace import (
    BackupNames,
    Name,
    Path,
    check_path,
    folder_of,
    list_folder,
    page_of,
    spelled,
)

PARTS = ["a", "b", ".", "..", "%", "%2E", "%%", "", "ä", "a\u0308", "a b", "null", "con", "日本", "\u202ex"]


def image(number: int, name: str, at: int = 0) -> ImageManifest:
    return ImageManifest(
        image_id=ImageId(f"{number:032x}"),
        name=name,
        tenant=TenantId(1),
        tenant_name="default",
        root=Fingerprint(bytes(32)),
        image_bytes=number + 1,
        segmentation=DEFAULT_SEGMENTATION,
        key_id=KeyId(bytes(8)),
        source_state=None,
        base_image_id=None,
        committed_at_ns=at,
    )


def is_image_name(name: str) -> bool:
    try:
        check_name(name, "image name", slash=True)
    except InvalidRequest:
        return False
    return True


image_names = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join).filter(is_image_name)
flat_names = st.sampled_from([part for part in [*PARTS, "x/y", "../x"] if part and part == part.strip()])


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[ImageManifest], list[BackupNames]]:
    names = draw(st.lists(image_names, max_size=12))
    times = [draw(st.integers(0, 3)) for _ in names]
    images = [image(number, name, at) for number, (name, at) in enumerate(zip(names, times, strict=True))]
    backups, left = [], list(images)
    for number in range(draw(st.integers(0, 3))):
        taken, left = left[:2], left[2:]
        disks = tuple((f"disk{place}", one.image_id) for place, one in enumerate(taken))
        gone = (("gone", ImageId("f" * 32)),) if draw(st.booleans()) else ()
        backups.append(BackupNames(f"{number:032x}", draw(flat_names), disks + gone))
    return images, backups


def model(images: Sequence[ImageManifest], backups: Sequence[BackupNames]) -> dict[Path, list[ImageManifest]]:
    """Every image under its one path."""
    by_id = {one.image_id: one for one in images}
    paths: dict[Path, list[ImageManifest]] = {}
    named = set()
    for backup in backups:
        for disk, image_id in backup.disks:
            if image_id in by_id:
                named.add(image_id)
                path = (spelled(backup.vm_name), backup.backup_id, disk)
                paths.setdefault(path, []).append(by_id[image_id])
    for one in images:
        if one.image_id not in named:
            paths.setdefault(tuple(spelled(part) for part in one.name.split("/")), []).append(one)
    return paths


def walk(images: list[ImageManifest], backups: list[BackupNames], folder: Path) -> dict[Path, Name]:
    """Everything below a folder, by listing it as a client would."""
    found: dict[Path, Name] = {}
    for name in list_folder(images, backups, folder_of("/".join(folder))):
        path = (*folder, name.part)
        if name.is_folder:
            below = walk(images, backups, path)
            assert below, "no folder is empty"
            assert name.committed_at_ns == max(each.committed_at_ns for each in below.values())
            found |= below
        else:
            found[path] = name
    return found


@given(store=stores())
def test_browsing_finds_every_image_once_and_nothing_else(
    store: tuple[list[ImageManifest], list[BackupNames]],
) -> None:
    images, backups = store
    expected = model(images, backups)
    found = walk(images, backups, ())
    assert found.keys() == expected.keys()
    for path, name in found.items():
        versions = expected[path]
        newest = max(versions, key=lambda one: (one.committed_at_ns, one.image_id))
        assert (name.image_id, name.size_bytes) == (newest.image_id, newest.image_bytes)
        assert name.version_count == len(versions)
    assert sum(name.version_count for name in found.values()) == len(images)


@given(store=stores(), size=st.integers(1, 5), gone=st.integers(0, 11))
def test_pages_are_the_whole_also_when_names_go_meanwhile(
    store: tuple[list[ImageManifest], list[BackupNames]], size: int, gone: int
) -> None:
    images, backups = store
    whole = list_folder(images, backups, ())
    assert whole == sorted(whole, key=lambda name: name.order)
    seen: list[Name] = []
    token = ""
    while True:
        page, token = page_of(whole, size, token)
        seen += page
        if not token:
            break
        assert len(page) == size
    assert seen == whole
    page, token = page_of(whole, size, "")
    assume(token)
    left = [name for place, name in enumerate(whole) if place != gone]
    rest, _ = page_of(left, 10_000, token)
    assert rest == [name for name in left if name.order > page[-1].order]


@given(one=st.text(max_size=6), other=st.text(max_size=6))
def test_two_names_are_never_spelled_alike(one: str, other: str) -> None:
    for part in (spelled(one), spelled(other)):
        assert part not in {"", ".", ".."}
        assert "/" not in part
    assert (spelled(one) == spelled(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a\0b",
        "a/\n",
        " a",
        "a/ b",
        "x" * 256,
        "\ud800",
    ],
)
def test_what_no_new_file_may_be_called(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_path(name, "file name")


@pytest.mark.parametrize("name", ["a", "a/b/c", "ä/日本", "...", "a b", "%2E%2E", "C:\\x", "x" * 255])
def test_what_a_new_file_may_be_called(name: str) -> None:
    assert check_path(name, "file name") == name


@pytest.mark.parametrize("path", ["/", "a/", "/a", "a//b", "..", "a/../b", "\0", "a/\x1b[2J", "x" * 1025])
def test_folders_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        folder_of(path)


@given(path=st.text(max_size=20))
def test_any_folder_is_found_or_refused(path: str) -> None:
    images = [image(1, "a/b"), image(2, "a/../b")]
    with contextlib.suppress(InvalidRequest, NotFound):
        assert list_folder(images, [], folder_of(path))


@pytest.mark.parametrize("token", ["x", "folder", "thing/a", "/", "\0"])
def test_foreign_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        page_of([], 10, token)


def test_a_file_and_a_folder_may_share_a_name() -> None:
    images = [image(1, "a"), image(2, "a/b"), image(3, "a", at=7)]
    folder, file = list_folder(images, [], ())
    assert (folder.part, folder.is_folder, folder.version_count) == ("a", True, 0)
    assert (file.part, file.is_folder, file.image_id, file.version_count) == (
        "a",
        False,
        images[2].image_id,
        2,
    )
