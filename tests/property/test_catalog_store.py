"""The catalog's store against a model: random histories, in any order, with walks that broke off."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from arraylift.durable import RealFiles
from arraylift.errors import WrongState
from backup_server.catalog.batch import Batch
from backup_server.catalog.entry import Volume
from backup_server.catalog_store.rows import CatalogState, StoredBackup
from backup_server.catalog_store.store import CatalogStore
from tests.unit.backup_server.catalog_store.walks import Tree, batch_of, paths_of

KEY = "disk0/p1"
VOLUME = Volume(KEY, "ext4", "", "", 1 << 20, readable=True)
NAMES = ("a", "b", "c")
PATHS = tuple(f"/{one}" for one in NAMES) + tuple(f"/d{each}/{one}" for each in (1, 2) for one in NAMES)
TREES = st.dictionaries(st.sampled_from(PATHS), st.integers(0, 2), max_size=8)
INSTANTS = st.integers(0, 12)


class Histories(RuleBasedStateMachine):
    """Backups come at any time of the past or now, go, are catalogued again, whole or broken off."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="catalog-")
        self.store = CatalogStore(RealFiles(), f"{self.folder.name}/catalog.db")
        self.model: dict[str, Tree] = {}
        self.ids = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    @rule(tree=TREES, at=INSTANTS, reached=st.integers(0, 9), breaks=st.booleans())
    def backed_up(self, tree: Tree, at: int, reached: int, breaks: bool) -> None:
        self.ids += 1
        self._catalog(f"backup{self.ids}", tree, at, reached if breaks else None)

    @rule(tree=TREES, at=INSTANTS, index=st.integers(0, 20), breaks=st.booleans())
    def again(self, tree: Tree, at: int, index: int, breaks: bool) -> None:
        if self.model:
            self._catalog([*self.model][index % len(self.model)], tree, at, 1 if breaks else None)

    @rule(index=st.integers(0, 20))
    def deleted(self, index: int) -> None:
        if self.model:
            gone = [*self.model][index % len(self.model)]
            del self.model[gone]
            self.store.forget(gone)

    @rule(tree=TREES, at=INSTANTS)
    def crashed(self, tree: Tree, at: int) -> None:
        """K2: what is not finished leaves nothing."""
        backup = StoredBackup("crash", "vm", "vm", at, CatalogState.WAITING, "", ("disk0",))
        self.store.begin(backup, [VOLUME])
        walk = self.store.add_walk(backup, KEY, iter([batch_of(tree)]))
        next(walk)
        walk.close()
        self.store.forget("crash")

    def _catalog(self, backup_id: str, tree: Tree, at: int, reached: int | None) -> None:
        backup = StoredBackup(backup_id, "vm", "vm", at, CatalogState.WAITING, "", ("disk0",))
        if reached is not None:
            tree = dict(sorted(tree.items())[:reached])

        def walk() -> Iterator[Batch]:
            yield batch_of(tree)
            if reached is not None:
                raise WrongState("the parser took too long")

        self.store.begin(backup, [VOLUME])
        list(self.store.add_walk(backup, KEY, walk()))
        self.store.finish(dataclasses.replace(backup, state=CatalogState.DONE))
        (volume,) = self.store.volumes(backup_id)
        assert volume.walked
        assert volume.whole is (reached is None)
        self.model[backup_id] = tree

    @invariant()
    def every_backup_is_as_it_was(self) -> None:
        for backup_id, tree in getattr(self, "model", {}).items():
            for by_inode in (False, True):
                found = list(self.store.files(backup_id, KEY, by_inode=by_inode))
                versions = {one.entry.path: one.entry.modified_at_ns for one in found if one.entry.is_file}
                assert versions == tree
                assert len(found) == len({one.entry.path for one in found}) == len(paths_of(tree))
                assert all(one.pieces[0].offset == 4096 * tree[one.entry.path] for one in found if one.pieces)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=14, deadline=None)
