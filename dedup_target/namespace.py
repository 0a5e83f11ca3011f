"""Names as people browse them: folders made of what images and backups are called ([0053]).

A tenant's namespace has no state of its own: it follows from the manifests. An image that a backup
names is listed as vm/backup/disk, where the backup's part is its id; any other under its own name,
whose parts '/' separates. Images of one name are versions of one file; the newest is shown.
Invariants:
  N1 a part that is listed is never empty, '.', '..', nor has it a '/': what is called so is
     spelled with '%', as is '%' itself, so that two names never become one.
  N2 a page goes on behind the last part that was listed, whatever came or went meanwhile.
Names never become paths here or anywhere else. Pure; callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import ImageId, check_name
from dedup_target.manifest_format import ImageManifest

FOLDER_BYTES_MAX = 1024

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupNames:
    """What a backup calls its images."""

    backup_id: str
    vm_name: str
    disks: tuple[tuple[str, ImageId], ...]


@dataclass(frozen=True, slots=True)
class Name:
    """One part below a folder. Of a folder, the time is that of the newest image in it."""

    part: str
    is_folder: bool
    image_id: ImageId | None
    size_bytes: int
    committed_at_ns: int
    version_count: int

    @property
    def order(self) -> tuple[str, bool]:
        """Folders before files of the same name."""
        return self.part, not self.is_folder


def check_path(name: str, what: str) -> str:
    """Return ``name`` if a new file may be called so: every part of it would be a name of its own.

    Raises InvalidRequest.
    """
    check_name(name, what, slash=True)
    for part in name.split("/"):
        check_name(part, f"every part of a {what}")
    return name


def folder_of(path: str) -> Path:
    """Return the parts of a folder as it was listed; none is the root. Raises InvalidRequest."""
    if len(path.encode(errors="surrogatepass")) > FOLDER_BYTES_MAX:
        raise InvalidRequest(f"a folder has at most {FOLDER_BYTES_MAX} bytes")
    if not path:
        return ()
    parts = tuple(path.split("/"))
    for part in parts:
        check_name(part, "every part of a folder")
    return parts


def spelled(part: str) -> str:
    """Return a part as it is listed (N1)."""
    part = part.replace("%", "%25").replace("/", "%2F")
    if part in {".", ".."}:
        return part.replace(".", "%2E")
    return part or "%"


def list_folder(images: Iterable[ImageManifest], backups: Iterable[BackupNames], folder: Path) -> list[Name]:
    """Return what is in a folder of the tenant whose images and backups these are, in order.

    Raises NotFound, unless it is the root.
    """
    found: dict[tuple[str, bool], Name] = {}
    for path, image in _paths({image.image_id: image for image in images}, backups):
        if len(path) <= len(folder) or path[: len(folder)] != folder:
            continue
        name = _name(path[len(folder) :], image)
        known = found.get(name.order)
        found[name.order] = name if known is None else _together(known, name)
    if not found and folder:
        raise NotFound(
            f"there is no folder {'/'.join(folder)}",
            subject=f"folder {'/'.join(folder)}",
            next_step="list the one above it",
        )
    return [found[order] for order in sorted(found)]


def _paths(
    images: dict[ImageId, ImageManifest], backups: Iterable[BackupNames]
) -> Iterator[tuple[Path, ImageManifest]]:
    left = dict(images)
    for backup in backups:
        for disk, image_id in backup.disks:
            image = images.get(image_id)
            if image is not None:
                left.pop(image_id, None)
                yield (spelled(backup.vm_name), spelled(backup.backup_id), spelled(disk)), image
    for image in left.values():
        yield tuple(map(spelled, image.name.split("/"))), image


def _name(below: Path, image: ImageManifest) -> Name:
    part, *rest = below
    if rest:
        return Name(part, True, None, 0, image.committed_at_ns, 0)
    return Name(part, False, image.image_id, image.image_bytes, image.committed_at_ns, 1)


def _together(one: Name, other: Name) -> Name:
    """Two of one name: the newest stands for both."""
    newest = max(one, other, key=lambda name: (name.committed_at_ns, name.image_id or ""))
    count = one.version_count + other.version_count
    return Name(
        newest.part, newest.is_folder, newest.image_id, newest.size_bytes, newest.committed_at_ns, count
    )


def page_of(names: list[Name], size: int, token: str) -> tuple[list[Name], str]:
    """Return up to ``size`` names behind ``token``, and the token of the next page (N2).

    Raises InvalidRequest (token).
    """
    if token:
        kind, slash, part = token.partition("/")
        if kind not in {"folder", "file"} or not slash:
            raise InvalidRequest("the page token is not one of ours", next_step="start from the first page")
        names = [name for name in names if name.order > (part, kind == "file")]
    page = names[:size]
    if len(names) <= size:
        return page, ""
    return page, f"{'folder' if page[-1].is_folder else 'file'}/{page[-1].part}"
