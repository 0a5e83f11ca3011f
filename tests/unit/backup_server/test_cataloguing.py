"""Backups come into the catalog by themselves, leave it, and are found; nothing of it hurts a backup."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Conflict, InvalidRequest, NotFound, PeerUnavailable, WrongState
from arraylift.v1 import catalog_pb2 as pb
from backup_server.catalog import browse
from backup_server.catalog.batch import Batch, Unread
from backup_server.catalog.entry import DiskSet, Volume
from backup_server.catalog_store.rows import CatalogState, StoredBackup
from backup_server.catalog_store.store import CatalogStore
from backup_server.cataloguing import Cataloguing
from backup_server.service.catalog import CatalogEdge, CatalogQueryEdge
from tests.fakes.backup_server import Rig
from tests.unit.backup_server.catalog.images import FileImage, disks, make_image, stage_tree
from tests.unit.backup_server.catalog_store.walks import Tree, batch_of

KEY = "disk0"
CONTEXT: Any = None


class FakeParser:
    """Knows one volume; ``fails`` is raised by its survey, ``breaks`` in the middle of a walk."""

    def __init__(self) -> None:
        self.tree: Tree = {"/etc/hosts": 1, "/etc/other": 1}
        self.fails: Exception | None = None
        self.breaks: Exception | None = None
        self.walks = 0

    def survey(self, disks: DiskSet) -> Sequence[Volume]:
        if self.fails:
            raise self.fails
        swap = Volume("disk1", "swap", "", "", 1 << 20, readable=False, remark="swap space")
        return [Volume(KEY, "ext4", "", "", 1 << 20, readable=True), swap]

    def walk(self, disks: DiskSet, volume: str) -> Iterator[Volume | Batch | Unread]:
        self.walks += 1
        assert volume == KEY
        yield batch_of(self.tree)
        if self.breaks:
            raise self.breaks


class Desk:
    """A server with backups, its catalog, and the edge."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self.rig = rig
        self.parser = FakeParser()
        self.path = str(path / "catalog.db")
        self.open()

    def open(self) -> None:
        server = self.rig.server
        self.store = CatalogStore(RealFiles(), self.path)
        self.cataloguing = Cataloguing(
            self.store, server.backups, server.disks, self.parser, RealFiles(), seconds=0.01
        )
        self.edge = CatalogQueryEdge(self.cataloguing, server.backups)

    def back_up(self) -> str:
        job_id = self.rig.order_backup()
        self.rig.run(job_id)
        return job_id

    def found(self, pattern: str = "hosts", **more: Any) -> list[str]:
        answer = self.edge.FindFiles(pb.FindFilesRequest(pattern=pattern, **more), CONTEXT)
        return [f"{one.file.path} {one.newest_backup_id} {one.backup_count}" for one in answer.files]

    def volumes(self, backup_id: str) -> list[tuple[str, int]]:
        answer = self.edge.ListFileVolumes(pb.ListFileVolumesRequest(backup_id=backup_id), CONTEXT)
        return [(one.name, one.state) for one in answer.volumes]


@pytest.fixture
def desk(rig: Rig, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(rig, tmp_path)
    yield made
    made.store.close()


def test_backups_come_and_go(desk: Desk) -> None:
    first = desk.back_up()
    assert {state for _, state in desk.volumes(first)} == {pb.CATALOG_STATE_WAITING}
    assert desk.cataloguing.round()
    assert desk.found() == [f"/etc/hosts {first} 1"]
    assert desk.volumes(first) == [(KEY, pb.CATALOG_STATE_DONE), ("disk1", pb.CATALOG_STATE_DONE)]
    second = desk.back_up()
    desk.parser.tree = {"/etc/hosts": 1}
    assert desk.cataloguing.round()
    assert desk.cataloguing.round()
    assert desk.parser.walks == 2
    assert desk.found() == [f"/etc/hosts {second} 2"]
    versions = desk.edge.ListFileVersions(
        pb.ListFileVersionsRequest(vm="web1", volume=KEY, path="/etc/other"), CONTEXT
    ).versions
    assert [(one.absent, list(one.backup_ids)) for one in versions] == [(True, [second]), (False, [first])]
    desk.rig.server.backups.delete(first)
    assert desk.cataloguing.round()
    assert desk.found("other") == []
    assert desk.store.states() == {second: CatalogState.DONE}


@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_a_catalog_that_is_lost_is_filled_again(desk: Desk, damage: str) -> None:
    backup = desk.back_up()
    desk.cataloguing.round()
    before = desk.found("*")
    desk.store.close()
    path = Path(desk.path)
    for suffix in ("-wal", "-shm"):
        Path(desk.path + suffix).unlink(missing_ok=True)
    path.unlink() if damage == "lost" else path.write_bytes(path.read_bytes()[:4096] + b"\x5a" * 65536)
    desk.open()
    desk.cataloguing.round()  # what is torn shows at the latest here, and is begun anew
    desk.cataloguing.round()
    assert desk.found("*") == before != []
    assert desk.volumes(backup)[0] == (KEY, pb.CATALOG_STATE_DONE)


def test_what_cannot_be_parsed_is_noted_and_asked_again_on_demand(desk: Desk) -> None:
    backup = desk.back_up()
    desk.parser.fails = WrongState("the parser crashed")
    assert desk.cataloguing.round()
    assert {state for _, state in desk.volumes(backup)} == {pb.CATALOG_STATE_FAILED}
    desk.parser.fails, desk.parser.breaks = None, WrongState("the parser took too long")
    assert desk.cataloguing.round()
    assert desk.parser.walks == 0
    list(desk.edge.CatalogBackup(pb.CatalogBackupRequest(backup_id=backup), CONTEXT))
    assert desk.volumes(backup)[0] == (KEY, pb.CATALOG_STATE_FAILED)
    assert len(desk.found()) == 1  # what came is true
    desk.parser.breaks = None
    news = list(desk.edge.CatalogBackup(pb.CatalogBackupRequest(backup_id=backup), CONTEXT))
    assert [(one.volume, one.files_done, one.done) for one in news] == [(KEY, 4, False), ("", 0, True)]
    assert desk.volumes(backup)[0] == (KEY, pb.CATALOG_STATE_DONE)
    assert len(list(desk.edge.CatalogBackup(pb.CatalogBackupRequest(backup_id=backup), CONTEXT))) == 1
    with pytest.raises(NotFound):
        list(desk.edge.CatalogBackup(pb.CatalogBackupRequest(backup_id="0" * 32), CONTEXT))


@pytest.mark.parametrize("where", ["fails", "breaks"])
def test_a_target_that_is_away_is_waited_for(desk: Desk, where: str) -> None:
    desk.back_up()
    setattr(desk.parser, where, PeerUnavailable("away"))
    assert not desk.cataloguing.round()
    assert desk.found() == []
    setattr(desk.parser, where, None)
    assert desk.cataloguing.round()
    assert len(desk.found()) == 1


def test_a_backup_is_deleted_while_it_is_parsed(desk: Desk) -> None:
    backup = desk.rig.server.backups.get(desk.back_up())
    parsing = desk.cataloguing.catalog(backup)
    next(parsing)
    desk.rig.server.backups.delete(backup.backup_id)
    list(parsing)
    assert desk.store.states() == {}
    assert desk.found() == []


def test_the_thread_catalogs_and_stops_in_the_middle(desk: Desk) -> None:
    backup = desk.rig.server.backups.get(desk.back_up())
    parsing = desk.cataloguing.catalog(backup)
    next(parsing)
    desk.cataloguing.stop()
    list(parsing)
    assert desk.store.states() == {backup.backup_id: CatalogState.WAITING}
    assert desk.found() == []
    desk.store.close()
    desk.open()
    desk.cataloguing.start()
    for _ in range(1_000):
        if desk.store.states() == {backup.backup_id: CatalogState.DONE}:
            break
        time.sleep(0.01)
    desk.cataloguing.stop()
    desk.cataloguing.join()
    assert len(desk.found()) == 1


def test_a_catalog_is_made_anew_while_the_present_one_answers(desk: Desk) -> None:
    backup = desk.back_up()
    desk.cataloguing.round()
    desk.parser.tree = {"/etc/hosts": 5}
    rebuild = desk.edge.RebuildCatalog(pb.RebuildCatalogRequest(), CONTEXT)
    news = [next(rebuild)]
    assert len(desk.found("other")) == 1
    with pytest.raises(Conflict):
        list(desk.edge.RebuildCatalog(pb.RebuildCatalogRequest(), CONTEXT))
    news += rebuild
    assert (news[-1].done, news[-1].backups_done, news[-1].files_done) == (True, 1, 3)
    assert desk.found("other") == []
    assert desk.found() == [f"/etc/hosts {backup} 1"]
    assert desk.store.states() == {backup: CatalogState.DONE}
    news = list(desk.edge.RebuildCatalog(pb.RebuildCatalogRequest(target="target1"), CONTEXT))
    assert news[-1].done
    assert not Path(desk.path + ".new").exists()


def test_pages_of_files(desk: Desk) -> None:
    desk.parser.tree = {f"/file{number}": 1 for number in range(5)}
    desk.back_up()
    desk.cataloguing.round()
    paths, token = [], ""
    for _ in range(3):
        answer = desk.edge.FindFiles(
            pb.FindFilesRequest(pattern="file", page_size=2, page_token=token), CONTEXT
        )
        token = answer.next_page_token
        paths += [one.file.path for one in answer.files]
    assert sorted(paths) == sorted(desk.parser.tree)
    assert token == ""
    for request in (
        pb.FindFilesRequest(pattern="a", page_size=1_001),
        pb.FindFilesRequest(pattern=""),
        pb.FindFilesRequest(pattern="a", page_token="[1]"),
    ):
        with pytest.raises(InvalidRequest):
            desk.edge.FindFiles(request, CONTEXT)
    with pytest.raises(NotFound):
        desk.edge.FindFiles(pb.FindFilesRequest(pattern="a", vm="nobody"), CONTEXT)


def test_the_service_is_joined_of_its_parts(desk: Desk) -> None:
    edge = CatalogEdge(desk.edge)
    assert edge.FindFiles == desk.edge.FindFiles
    with pytest.raises(AssertionError):
        CatalogEdge(desk.edge, desk.edge)


@pytest.mark.parametrize("kind", ["ext4"])
def test_the_catalog_says_what_the_parser_says(tmp_path: Path, kind: str) -> None:
    tree = stage_tree(tmp_path / "tree") if kind == "ext4" else None
    image = disks(FileImage(make_image(tmp_path / "image", tree, kind)))
    with closing(CatalogStore(RealFiles(), f"{tmp_path}/catalog.db")) as store:
        (volume,) = browse.survey(image)
        backup = StoredBackup("one", "vm", "vm", 1, CatalogState.DONE, "", (image[0].name,))
        store.begin(backup, [volume])
        list(store.add_walk(backup, volume.key, browse.walk(image, volume.key)))
        paths = browse.Paths()
        truth: dict[str, object] = {}
        for part in browse.walk(image, volume.key):
            if isinstance(part, Batch):
                truth |= {entry.path: (entry, tuple(pieces)) for entry, pieces in paths.entries(part)}
        found = {one.entry.path: (one.entry, one.pieces) for one in store.files("one", volume.key)}
        assert found == truth
        assert len(found) > 1
