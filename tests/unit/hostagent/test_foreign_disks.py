"""The contract of hostagent/foreign_disks.py, kept by the libvirt driver over a fake libvirt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import OutOfSpace, PeerUnavailable, WrongState
from arraylift.ids import SourceState, VmId, VmSnapshotId, random_id
from arraylift.vm.types import Disk, DiskSnapshot
from hostagent.foreign_disks import STATES_MAX
from hostagent.libvirt.backup_xml import checkpoint_name, checkpointed
from hostagent.libvirt.domain_xml import facts
from hostagent.libvirt.exports import ExportPlaces
from hostagent.libvirt.foreign import LibvirtForeignDisks
from hostagent.libvirt.off_exports import OffExports
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.libvirt import FakeGuest, FakeHypervisor
from tests.unit.hostagent.libvirt.material import UUID, domain

VM_ID = VmId(UUID.replace("-", ""))


class Stage:
    """A guest with two qcow2 disks and a raw one."""

    def __init__(self, folder: str, free_bytes_min: int = 0) -> None:
        self.hypervisor = FakeHypervisor()
        self.guest = self.hypervisor.guests[UUID] = FakeGuest(domain())
        self.known: set[VmSnapshotId] = set()
        self.places = ExportPlaces(RealFiles(), folder, free_bytes_min=free_bytes_min)
        self.foreign = self.again()
        read = facts(self.guest.xml, what="it")
        disks = tuple(Disk(one.target, "", "", "", 64 << 20, one.where) for one in read.disks)
        self.vm = VmRecord(VM_ID, read.config("web", disks), VmState.ON, 1, "", (), adopted=True)

    def again(self) -> LibvirtForeignDisks:
        """As another process of the host agent has them."""
        return LibvirtForeignDisks(
            self.hypervisor,
            self.places,
            OffExports("", "test"),
            clock=SYSTEM_CLOCK,
            is_known=lambda vm_snapshot_id: vm_snapshot_id in self.known,
        )

    def exports(self) -> bool:
        return self.guest.job is not None

    def export(
        self, since: dict[str, SourceState] | None = None, *, told: bool = True
    ) -> dict[str, DiskSnapshot]:
        """Begin one, and end it."""
        snapshot = VmSnapshotId(random_id())
        exported = self.begin(snapshot, since)
        self.foreign.end(VM_ID, snapshot, told=told)
        return exported

    def begin(
        self, snapshot: VmSnapshotId, since: dict[str, SourceState] | None = None
    ) -> dict[str, DiskSnapshot]:
        disks = self.vm.config.disks
        self.known.add(snapshot)
        self.foreign.prepare(self.vm, snapshot, disks, since or {})
        told = self.foreign.begin(self.vm, snapshot, disks, since or {}, timeout_seconds=5)
        return {one.disk_name: one for one in told}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(str(tmp_path))


def states(exported: dict[str, DiskSnapshot]) -> dict[str, SourceState]:
    return {name: one.state for name, one in exported.items() if one.state is not None}


def vouched(exported: dict[str, DiskSnapshot]) -> set[str]:
    return {
        name for name, one in exported.items() if one.foreign is not None and one.foreign.bitmap is not None
    }


def test_every_state_has_a_name_of_its_own_and_bitmaps_name_theirs(stage: Stage) -> None:
    first = stage.export()
    assert vouched(first) == set()
    assert len({one.state for one in first.values()}) == 3
    second = stage.export(states(first))
    assert vouched(second) == {"vda", "vdb"}, "raw files keep no bitmaps"
    for name in ("vda", "vdb"):
        foreign = second[name].foreign
        assert foreign is not None
        assert foreign.bitmap is not None
        assert foreign.bitmap.since == first[name].state
        assert foreign.uri.startswith(f"nbd+unix:///{second[name].state.pool_id}-{name}?socket=")  # type: ignore[union-attr]
    assert not set(states(first).values()) & set(states(second).values())


def test_another_disks_or_guests_state_is_vouched_for_by_nobody(stage: Stage) -> None:
    first = states(stage.export())
    crossed = {"vda": first["vdb"], "vdb": first["vda"]}
    assert vouched(stage.export(crossed)) == set()
    assert (
        vouched(stage.export({"vda": SourceState(first["vda"].pool_id, first["vda"].lineage_id, 2)})) == set()
    )
    stranger = stage.export()["vda"].state
    assert stranger is not None
    stage.guest.checkpoints.clear()
    assert vouched(stage.export({"vda": stranger})) == set()


def test_what_libvirt_refuses_is_exported_with_less(stage: Stage) -> None:
    first = states(stage.export())
    stage.guest.broken.add(checkpoint_name(VmSnapshotId(first["vda"].pool_id)))
    lessened = stage.export(first)
    assert vouched(lessened) == set()
    assert vouched(stage.export(states(lessened))) == {"vda", "vdb"}, "it has made a new one"
    stage.guest.bitmapless = True
    bare = stage.export()
    assert vouched(stage.export(states(bare))) == set()
    stage.guest.active = False
    stage.guest.active = True
    stage.hypervisor.begin_backup = _refuse  # type: ignore[method-assign]
    with pytest.raises(WrongState, match="never"):
        stage.export()


def _refuse(uuid: str, backup_xml: str, checkpoint_xml: str, *, seconds: float) -> None:
    raise WrongState("never")


def test_a_snapshot_inside_the_images_ends_all_trust(stage: Stage) -> None:
    first = states(stage.export())
    stage.guest.internal_snapshots = 1
    assert vouched(stage.export(first)) == set()
    assert stage.guest.checkpoints == {}
    stage.guest.internal_snapshots = 0
    assert vouched(stage.export(first)) == set(), "what happened meanwhile nobody has recorded"


def test_one_export_a_guest_and_any_process_ends_it(stage: Stage) -> None:
    mine = VmSnapshotId(random_id())
    stage.begin(mine)
    with pytest.raises(WrongState, match="another backup"):
        stage.export()
    assert stage.exports()
    other = stage.again()
    other.end(VM_ID, VmSnapshotId(random_id()), told=True)
    assert stage.exports(), "another's export is not ended"
    scratch = Path(stage.places.scratch(VM_ID, mine, "vda"))
    scratch.touch()
    for _ in range(2):
        other.end(VM_ID, mine, told=False)
    assert not stage.exports()
    assert not scratch.exists()
    assert stage.guest.checkpoints == {}, "nobody was told of its states"


def test_an_export_that_nobody_knows_of_makes_way(stage: Stage) -> None:
    stage.begin(VmSnapshotId(random_id()))
    stage.known.clear()  # the host lost its records
    stage.export()
    assert not stage.exports()
    stage.guest.job = "<domainbackup><disks><disk name='vda' exportname='vda'/></disks></domainbackup>"
    with pytest.raises(WrongState, match="another backup"):
        stage.export()
    assert stage.exports(), "the admin's own job is left alone"


def test_an_end_outlives_the_guest_and_waits_for_libvirt(stage: Stage) -> None:
    mine = VmSnapshotId(random_id())
    stage.begin(mine)
    stage.hypervisor.fail = PeerUnavailable("libvirtd is away")
    with pytest.raises(PeerUnavailable):
        stage.foreign.end(VM_ID, mine, told=True)
    stage.hypervisor.fail = None
    stage.hypervisor.guests.clear()
    stage.foreign.end(VM_ID, mine, told=True)


def test_an_export_needs_room_and_ends_when_there_is_none(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path))
    mine = VmSnapshotId(random_id())
    stage.begin(mine)
    Path(stage.places.scratch(VM_ID, mine, "vda")).touch()
    stage.foreign.reap()
    assert stage.exports()
    stage.places.free_bytes_min = 1 << 60
    stage.foreign.reap()
    assert not stage.exports()
    with pytest.raises(OutOfSpace):
        stage.export()


def test_a_disk_that_is_gone_is_said_before_the_freeze(stage: Stage) -> None:
    stage.guest.xml = stage.guest.xml.replace("dev='vdb'", "dev='vdz'")
    with pytest.raises(WrongState, match="no disk vdb"):
        stage.export()
    assert stage.hypervisor.begun == []


def test_a_disk_on_the_network_needs_a_guest_that_runs(stage: Stage) -> None:
    stage.guest.xml = stage.guest.xml.replace("file='/vms/vda.qcow2'", "").replace(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source />",
        "<disk type='network' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source protocol='rbd' name='x'/>",
    )
    assert len(stage.export()) == 3
    stage.guest.active = False
    with pytest.raises(WrongState, match="only while it runs"):
        stage.export()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.booleans(), st.integers(0, 5)), max_size=14))
def test_checkpoints_stay_few_and_those_asked_for_stay(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, bool, int]]
) -> None:
    """X3, F2: whatever is asked in whatever order, a bitmap stands only for a checkpoint that is there."""
    stage = Stage(str(tmp_path_factory.mktemp("x")))
    stage.guest.checkpoints["admins-own"] = "<domaincheckpoint/>"
    past: list[dict[str, SourceState]] = []
    for ask, which, told, accident in steps:
        since = past[-1 - which % len(past)] if ask and past else {}
        name = checkpoint_name(VmSnapshotId(since["vda"].pool_id)) if since else ""
        if accident == 0 and stage.guest.checkpoints.get(name):
            stage.guest.broken.add(name)
        known = name in stage.guest.checkpoints and name not in stage.guest.broken
        exported = stage.export(since, told=told)
        assert (vouched(exported) == {"vda", "vdb"}) == known
        ours = [one for one in stage.guest.checkpoints if one.startswith("arraylift-")]
        assert len(ours) <= STATES_MAX
        assert "admins-own" in stage.guest.checkpoints
        if known:
            assert name in ours
        if told:
            past.append(states(exported))
            made = checkpoint_name(VmSnapshotId(states(exported)["vda"].pool_id))
            assert checkpointed(stage.guest.checkpoints[made]) == {"vda", "vdb"}
