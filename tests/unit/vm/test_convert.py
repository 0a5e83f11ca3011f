"""Values of VMs to messages and back: nothing is lost, and what is unknown promises nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest
from arraylift.ids import LineageId, PoolId, SnapshotId, SourceState, VmId, VmSnapshotId
from arraylift.v1 import virtual_center_pb2, vm_pb2
from arraylift.vm import convert
from arraylift.vm.types import (
    ConsistencyLevel,
    DirtyBitmap,
    Disk,
    DiskSnapshot,
    DiskState,
    ForeignSource,
    NetworkInterface,
    PowerState,
    SnapshotRequest,
    SuppliedChanges,
    Vm,
    VmConfig,
    VmSnapshot,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
vm_ids = st.builds(VmId, texts)
disks = st.builds(Disk, texts, texts, texts, texts, u64, texts)
configs = st.builds(
    VmConfig,
    name=texts,
    uuid=texts,
    cpus=u32,
    memory_bytes=u64,
    disks=st.lists(disks, max_size=3).map(tuple),
    networks=st.lists(st.builds(NetworkInterface, texts, texts), max_size=3).map(tuple),
    tags=st.dictionaries(texts, texts, max_size=3).map(lambda tags: tuple(sorted(tags.items()))),
    firmware=texts,
)
ids = st.integers(0, 2**128 - 1).map("{:032x}".format)
states = st.builds(SourceState, st.builds(PoolId, ids), st.builds(LineageId, ids), u64)
packed = st.binary(max_size=16)
disk_snapshots = st.builds(
    DiskSnapshot,
    texts,
    texts,
    texts,
    texts,
    st.builds(SnapshotId, texts),
    u64,
    st.none() | states,
    st.none() | st.builds(SuppliedChanges, states, packed, packed),
    st.none() | st.builds(ForeignSource, texts, st.none() | st.builds(DirtyBitmap, texts, states)),
)
levels = st.sampled_from(ConsistencyLevel)
values = st.one_of(
    configs,
    disks,
    st.builds(Vm, vm_ids, configs, st.sampled_from(PowerState), texts, u64),
    st.builds(
        VmSnapshot,
        vm_snapshot_id=st.builds(VmSnapshotId, texts),
        vm_id=vm_ids,
        name=texts,
        level=levels,
        frozen_ns=u64,
        created_at_ns=st.integers(-(2**63), 2**63 - 1),
        config=configs,
        disks=st.lists(disk_snapshots, max_size=3).map(tuple),
        lease_seconds=u32,
        firmware_variables=st.binary(max_size=9),
    ),
)

WAYS: dict[type, tuple[Any, Any]] = {
    VmConfig: (convert.config_to_pb, convert.config_from_pb),
    Disk: (convert.disk_to_pb, convert.disk_from_pb),
    Vm: (convert.vm_to_pb, convert.vm_from_pb),
    VmSnapshot: (convert.snapshot_to_pb, convert.snapshot_from_pb),
}


@given(values)
def test_what_goes_out_comes_back(value: object) -> None:
    there, back = WAYS[type(value)]
    wire = there(value).SerializeToString()
    again = back(type(there(value)).FromString(wire))
    assert again == value
    assert hash(again) == hash(value)


def test_every_field_of_the_messages_has_a_value() -> None:
    """A field that is added to vm.proto alone would be dropped in silence."""
    for value, message in (
        (VmConfig, vm_pb2.VmConfig),
        (Disk, vm_pb2.Disk),
        (NetworkInterface, vm_pb2.NetworkInterface),
        (Vm, vm_pb2.Vm),
        (DiskSnapshot, vm_pb2.DiskSnapshot),
        (VmSnapshot, vm_pb2.VmSnapshot),
        (SnapshotRequest, vm_pb2.CreateVmSnapshotRequest),
        (SnapshotRequest, virtual_center_pb2.PrepareBackupRequest),
    ):
        assert {one.name for one in fields(value)} == set(message.DESCRIPTOR.fields_by_name), value


@pytest.mark.parametrize("kind", [vm_pb2.CreateVmSnapshotRequest, virtual_center_pb2.PrepareBackupRequest])
@given(
    asked=st.builds(
        SnapshotRequest,
        vm_ids,
        texts,
        levels,
        u32,
        st.lists(texts, max_size=3).map(tuple),
        st.lists(st.builds(DiskState, texts, states), max_size=3).map(tuple),
    )
)
def test_host_and_center_are_asked_alike(kind: Any, asked: SnapshotRequest) -> None:
    message = convert.snapshot_request_to_pb(asked, kind)
    assert convert.snapshot_request_from_pb(message) == asked


def test_what_a_later_release_says_promises_nothing() -> None:
    assert convert.level_reached(9) is ConsistencyLevel.UNSPECIFIED
    assert convert.power_from_pb(9) is PowerState.UNKNOWN
    assert not convert.vm_from_pb(vm_pb2.Vm(power=9)).running  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="level 9 is unknown"):
        convert.level_demanded(9)


def test_the_numbers_are_those_of_the_contract() -> None:
    for enum, pb_enum, prefix in (
        (ConsistencyLevel, vm_pb2.ConsistencyLevel, "CONSISTENCY_LEVEL_"),
        (PowerState, vm_pb2.PowerState, "POWER_STATE_"),
    ):
        named = {f"{prefix}{one.name}".replace("UNKNOWN", "UNSPECIFIED"): one.value for one in enum}
        assert named == dict(pb_enum.items())
