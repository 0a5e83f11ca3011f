"""What the commands about VMs, and the demo, ask of virtual center, host and array.

Invariants:
  V1 a VM that could not be made leaves no volume that was imported for it, unless it is not known
     whether it was made: then the volumes stay, and the error names them.
Callers: main thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from arraylift.cli import peers, volume_data
from arraylift.cli.connection import Connection
from arraylift.cli.disk_files import DiskFile
from arraylift.cli.interrupts import shielded
from arraylift.cli.local_files import SourceFile
from arraylift.cli.session import Session
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import check_name, random_id
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import EXTENT_BYTES_MAX
from arraylift.v1 import virtual_center_pb2, vm_pb2, volume_pb2

_ID = re.compile(r"[0-9a-f]{32}")

Found = virtual_center_pb2.GetManagedVmResponse


@dataclass(frozen=True, slots=True)
class NewVm:
    """What an operator says of a VM that is to be made of disk images."""

    name: str
    memory_bytes: int
    cpus: int = 1
    host: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    firmware: str = ""
    networks: Sequence[str] = ()


def is_id(reference: str) -> bool:
    """Whether it looks like a VM's id."""
    return bool(_ID.fullmatch(reference))


def find_vm(center: Connection, reference: str) -> Found:
    """Return the VM of an id or a name, with its host. Raises NotFound."""
    if is_id(reference):
        with contextlib.suppress(NotFound):  # a name may look like an id
            return _managed(center, virtual_center_pb2.GetManagedVmRequest(vm_id=reference))
    try:
        return _managed(center, virtual_center_pb2.GetManagedVmRequest(name=reference))
    except NotFound:
        raise NotFound(
            f"there is no VM {reference}", subject=f"vm {reference}", next_step="see `arraylift vm ls`"
        ) from None


def _managed(center: Connection, request: virtual_center_pb2.GetManagedVmRequest) -> Found:
    answer: Found = center.call(center.center.GetManagedVm, request)
    return answer


def host_of(session: Session, vm: str) -> tuple[Connection, str]:
    """Return the agent of the VM's host, and the VM's id. Raises NotFound."""
    found = find_vm(session.vcenter, vm)
    return session.daemon_at("host", found.host.address), found.vm.vm_id


def array_named(session: Session, reference: str | None) -> Connection:
    """Return the array of a registered name or an address; without either, the one of the state."""
    if reference is None:
        return session.array
    if ":" in reference:
        return session.daemon_at("array", reference)
    return session.daemon_at("array", peers.find_peer(session.server, "array", reference).address)


def check_no_disk(session: Session, array: Connection, volume: str) -> None:
    """Raise WrongState if a VM has the volume, as far as there is a virtual center to ask: the array
    knows nothing of VMs."""
    for vm, disk in _users(session, array, volume):
        raise WrongState(
            f"volume {volume} is {disk.name} of VM {vm.config.name}",
            subject=f"volume {volume}",
            next_step=f"`arraylift vm rm {vm.config.name}` removes both, --force the volume",
        )


def check_not_running(session: Session, array: Connection, volume: str) -> None:
    """Raise WrongState if a VM that is not off has the volume, as ``check_no_disk``: what it has read
    would not be so any more."""
    for vm, disk in _users(session, array, volume):
        if vm.power != vm_pb2.POWER_STATE_OFF:
            raise WrongState(
                f"volume {volume} is {disk.name} of VM {vm.config.name}, which is not off",
                subject=f"volume {volume}",
                next_step=f"`arraylift vm stop {vm.config.name}` first; or --force",
            )


def _users(session: Session, array: Connection, volume: str) -> Iterator[tuple[vm_pb2.Vm, vm_pb2.Disk]]:
    """Yield the VMs that have a volume, none where no virtual center is known. Raises WrongState where it
    does not answer."""
    try:
        center = session.vcenter
    except NotFound:  # none is known, so neither are VMs
        return
    array_name = array.identity().name
    request = virtual_center_pb2.ListManagedVmsRequest()
    try:
        for vm in center.listing(center.center.ListManagedVms, request, "vms"):
            for disk in vm.config.disks:
                if disk.volume_name == volume and disk.array == array_name:
                    yield vm, disk
    except (PeerUnavailable, DeadlineExceeded) as error:
        raise WrongState(
            f"whether a VM has volume {volume} cannot be said: {error.message}",
            subject=f"volume {volume}",
            next_step=f"{error.next_step}; or --force",
        ) from None


def create_vm(
    session: Session, center: Connection, array: Connection, wanted: NewVm, sources: Sequence[DiskFile]
) -> virtual_center_pb2.ProvisionVmResponse:
    """Import each image as volume ``<name>-disk<n>``, and make a VM of them (V1).

    Raises AlreadyExists (VM or volume), and what the calls raise.
    """
    check_name(wanted.name, "a VM name")
    check_vm_name_free(center, wanted.name)
    array_name = array.identity().name
    vm_id = random_id()
    disks: list[vm_pb2.Disk] = []
    asked = False
    try:
        for number, source in enumerate(sources):
            volume = f"{wanted.name}-disk{number}"
            with session.progress(f"import {volume}", source.size_bytes) as bar:
                volume_data.import_volume(array, source, volume, bar.update)
            disks.append(
                vm_pb2.Disk(
                    name=f"disk{number}",
                    array=array_name,
                    array_address=array.address,
                    volume_name=volume,
                    size_bytes=source.size_bytes,
                )
            )
        config = vm_pb2.VmConfig(
            name=wanted.name,
            cpus=wanted.cpus,
            memory_bytes=wanted.memory_bytes,
            disks=disks,
            tags=wanted.tags,
            firmware=wanted.firmware,
            networks=[vm_pb2.NetworkInterface(network=name) for name in wanted.networks],
        )
        request = virtual_center_pb2.ProvisionVmRequest(vm_id=vm_id, config=config, host=wanted.host)
        asked = True
        made: virtual_center_pb2.ProvisionVmResponse = center.call(
            center.center.ProvisionVm, request, timeout_seconds=LONG_CALL_SECONDS
        )
        return made
    except BaseException as error:
        with shielded():
            left = _undo(center if asked else None, array, vm_id, [disk.volume_name for disk in disks])
        if left and isinstance(error, ArrayliftError):
            error.next_step = f"these volumes are left on {array.label}: {', '.join(left)}; {error.next_step}"
        raise


def check_vm_name_free(center: Connection, name: str) -> None:
    """Raise AlreadyExists early: an import may take long."""
    try:
        center.call(center.center.GetManagedVm, virtual_center_pb2.GetManagedVmRequest(name=name))
    except NotFound:
        return
    raise AlreadyExists(f"VM {name} exists", subject=f"vm {name}", next_step="give another name")


def _undo(center: Connection | None, array: Connection, vm_id: str, volumes: Sequence[str]) -> list[str]:
    """Remove the volumes, unless a VM may have them; return those that are left (V1)."""
    left = list(volumes)
    try:
        if center is not None:
            gone = virtual_center_pb2.RemoveVmRequest(vm_id=vm_id, keep_volumes=True, missing_ok=True)
            center.call(center.center.RemoveVm, gone)
        for volume in volumes:
            request = volume_pb2.DeleteVolumeRequest(name=volume, missing_ok=True)
            array.call(array.volumes.DeleteVolume, request)
            left.remove(volume)
    except ArrayliftError:
        return left  # the first error is the one to tell
    return left


def power_vm(center: Connection, vm_id: str, *, on: bool, force: bool = False, grace: int = 0) -> vm_pb2.Vm:
    """Switch a VM on or off. Idempotent."""
    power = vm_pb2.POWER_STATE_ON if on else vm_pb2.POWER_STATE_OFF
    request = virtual_center_pb2.PowerVmRequest(vm_id=vm_id, power=power, force=force, grace_seconds=grace)
    answer: virtual_center_pb2.PowerVmResponse = center.call(
        center.center.PowerVm, request, timeout_seconds=LONG_CALL_SECONDS
    )
    return answer.vm


def put_file(host: Connection, place: vm_pb2.GuestPath, source: SourceFile) -> vm_pb2.GuestFile:
    """Write a local file into a guest, whole or not at all."""
    return put_pieces(host, place, source.pieces(EXTENT_BYTES_MAX), mode=source.permissions)


def put_pieces(
    host: Connection, place: vm_pb2.GuestPath, pieces: Iterable[bytes], *, mode: int
) -> vm_pb2.GuestFile:
    """Likewise, of pieces of at most EXTENT_BYTES_MAX."""

    def requests() -> Iterator[vm_pb2.PutGuestFileRequest]:
        yield vm_pb2.PutGuestFileRequest(header=place, mode=mode)
        for data in pieces:
            yield vm_pb2.PutGuestFileRequest(data=data)
        yield vm_pb2.PutGuestFileRequest(last=True)

    answer: vm_pb2.PutGuestFileResponse = host.upload(host.vms.PutGuestFile, requests())
    return answer.file


def remove_file(host: Connection, place: vm_pb2.GuestPath) -> None:
    """Remove a guest's file. Raises NotFound, WrongState (a directory)."""
    host.call(
        host.vms.RemoveGuestFile,
        vm_pb2.RemoveGuestFileRequest(file=place),
        timeout_seconds=LONG_CALL_SECONDS,
    )


def parse_tags(given: Sequence[str]) -> dict[str, str]:
    """Return "key=value" words as a map. Raises InvalidRequest."""
    tags = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InvalidRequest(f"{word!r} is no tag", next_step="write key=value")
        tags[key] = value
    return tags
