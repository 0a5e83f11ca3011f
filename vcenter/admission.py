"""What the virtual center lets in: values that came from a peer, checked against the contract. Pure.

Invariants:
  V1 nothing that a peer says gets in unless it keeps the contract's limits.
Every function raises InvalidRequest. Callers: edges (``convert``, ``service``), any thread.
"""

from __future__ import annotations

from collections.abc import Sized

from arraylift.errors import InvalidRequest
from arraylift.ids import check_id, check_name
from arraylift.sizes import IMAGE_BYTES_MAX
from arraylift.vm.types import (
    DISKS_MAX,
    FOREIGN_BYTES_MAX,
    LEASE_SECONDS_MAX,
    LEASE_SECONDS_MIN,
    NETWORKS_MAX,
    TAGS_MAX,
    Disk,
    PowerState,
    SnapshotRequest,
    Vm,
    VmConfig,
    VmSnapshot,
)
from vcenter.model import VMS_PER_HOST_MAX, Report

TEXT_BYTES_MAX = 255
URI_CHARS_MAX = 4096
COUNT_MAX = 2**63 - 1
"""Largest number that every store of ours keeps."""


def check_report(report: Report) -> Report:
    """Return the whole inventory of a host."""
    _check_few(report.vms, VMS_PER_HOST_MAX, "VMs")
    for vm in report.vms:
        check_vm(vm)
        if vm.host != report.host:
            raise InvalidRequest(f"a report of host {report.host} speaks of a VM on host {vm.host}")
    if len({vm.vm_id for vm in report.vms}) != len(report.vms):
        raise InvalidRequest("a report names a VM twice")
    if not report.sequence:
        raise InvalidRequest("a report has a sequence number, from 1 on")
    _check_count(report.sequence, "a sequence")
    _check_count(report.memory_bytes, "memory")
    _check_count(report.memory_free_bytes, "free memory")
    _check_count(report.load_percent, "load")
    return report


def check_vm(vm: Vm) -> Vm:
    """Return a VM that its host told of."""
    check_id(vm.vm_id, "VM id")
    if vm.power is PowerState.UNKNOWN:
        raise InvalidRequest(f"VM {vm.vm_id} is neither on nor off")
    _check_count(vm.revision, "the revision of a VM")
    check_config(vm.config)
    return vm


def check_config(config: VmConfig) -> VmConfig:
    """Return the configuration."""
    name = check_name(config.name, "VM name")
    _check_few(config.disks, DISKS_MAX, f"disks of VM {name}")
    _check_few(config.networks, NETWORKS_MAX, f"networks of VM {name}")
    _check_few(config.tags, TAGS_MAX, f"tags of VM {name}")
    for disk in config.disks:
        check_disk(disk)
    if len({disk.name for disk in config.disks}) != len(config.disks):
        raise InvalidRequest(f"two disks of VM {name} have one name")
    _check_text(config.uuid, "UUID")
    _check_count(config.memory_bytes, "the memory of a VM")
    for network in config.networks:
        _check_text(network.mac, "MAC")
        _check_text(network.network, "network")
    for key, value in config.tags:
        _check_text(key, "tag")
        _check_text(value, "value of a tag")
    _check_text(config.firmware, "firmware")
    return config


def check_disk(disk: Disk) -> Disk:
    """Return the disk."""
    check_name(disk.name, "disk name")
    if disk.size_bytes > IMAGE_BYTES_MAX:
        raise InvalidRequest(f"disk {disk.name!r} has more than {IMAGE_BYTES_MAX} bytes")
    _check_text(disk.array, "array")
    _check_text(disk.array_address, "array address")
    _check_text(disk.volume_name, "volume name")
    if len(disk.foreign.encode()) > FOREIGN_BYTES_MAX:
        raise InvalidRequest(f"where disk {disk.name!r} lies has more than {FOREIGN_BYTES_MAX} bytes")
    return disk


def check_snapshot_request(request: SnapshotRequest) -> SnapshotRequest:
    """Return what somebody wants captured."""
    check_id(request.vm_id, "VM id")
    check_name(request.name, "name of the VM snapshot")
    if request.lease_seconds and not LEASE_SECONDS_MIN <= request.lease_seconds <= LEASE_SECONDS_MAX:
        raise InvalidRequest(
            f"a lease of {request.lease_seconds} s is not possible",
            next_step=f"ask for {LEASE_SECONDS_MIN} to {LEASE_SECONDS_MAX} s, or 0",
        )
    _check_few(request.exclude_disks, DISKS_MAX, "disks to leave out")
    for name in request.exclude_disks:
        check_name(name, "disk name")
    return request


def check_snapshot(snapshot: VmSnapshot) -> VmSnapshot:
    """Return a VM snapshot that a host told of."""
    check_id(snapshot.vm_snapshot_id, "VM snapshot id")
    check_id(snapshot.vm_id, "VM id")
    check_name(snapshot.name, "name of the VM snapshot")
    check_config(snapshot.config)
    _check_few(snapshot.disks, DISKS_MAX, "disk snapshots")
    for disk in snapshot.disks:
        check_name(disk.disk_name, "disk name")
        if disk.foreign is not None:
            _check_uri(disk.foreign.uri)
            continue
        check_name(disk.array, "array")
        _check_text(disk.array_address, "array address")
        check_name(disk.volume_name, "volume name")
        check_id(disk.snapshot_id, "snapshot id")
    return snapshot


def _check_uri(value: str) -> None:
    """The gateway parses it; here it must only be something to hand on."""
    if not value.isprintable() or not 0 < len(value) <= URI_CHARS_MAX:
        raise InvalidRequest(f"{value[:40]!r} is no place where a foreign disk is read")


def _check_text(value: str, what: str) -> None:
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise InvalidRequest(f"{what} {value[:40]!r} has more than {TEXT_BYTES_MAX} bytes")


def _check_count(value: int, what: str) -> None:
    if value > COUNT_MAX:
        raise InvalidRequest(f"{what} is at most {COUNT_MAX}, not {value}")


def _check_few(values: Sized, count_max: int, what: str) -> None:
    if len(values) > count_max:
        raise InvalidRequest(f"{len(values)} {what}; at most {count_max}")
