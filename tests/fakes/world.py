"""What a virtual center, a host, an array and a target hold together, as far as jobs touch it.

Every call is recorded, and may be made to fail, hang, come late, lose its answer, or happen twice.
Of data there is none but what a test puts there: an image is its size.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from arraylift.errors import AlreadyExists, Conflict, Corruption, NotFound, PeerUnavailable, WrongState
from arraylift.ids import random_id
from arraylift.v1 import (
    common_pb2,
    image_pb2,
    target_admin_pb2,
    vm_pb2,
    volume_pb2,
)
from backup_server.job_rules import RESTORE_TAG
from tests.fakes.world_array import GRANT, SPAN, ArraySide

Handler = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call.

    fail: ``error``, without effect. lost: the effect, then no answer. hang: nothing, until the
    caller gives up. late: the effect, after the caller gave up. twice: the effect, twice.
    Of streams also: cut: one message, then no more. mute: one message, then silence.
    """

    kind: str
    error: Exception = field(default_factory=lambda: PeerUnavailable("the peer is down"))
    meanwhile: Callable[[], object] = lambda: None
    """What else happens before the caller hears of it: of fail and lost."""


class World(ArraySide):
    """What the four daemons hold."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.addresses: dict[str, str] = {}
        self._idle = threading.Condition(self.lock)
        self._active = 0
        self.reset()

    def reset(self) -> None:
        """One VM ``web1`` with two disks, one ``db1`` with one; no faults."""
        with self.lock:
            self.calls: list[tuple[str, Any]] = []
            self.faults: dict[str, deque[Fault]] = defaultdict(deque)
            self.vms: dict[str, vm_pb2.Vm] = {}
            self.vm_snapshots: dict[str, vm_pb2.VmSnapshot] = {}
            self.volumes: dict[str, int] = {}
            self.grants: dict[str, target_admin_pb2.CreateGrantRequest] = {}
            self.bases: dict[str, str] = {}
            self.images: dict[str, tuple[str, int]] = {}
            self.damaged_images: set[str] = set()
            self.clock_lags = False
            self.image_content: dict[str, bytes] = {}
            self.restores: dict[str, volume_pb2.PrepareRestoreRequest] = {}
            self.whole: dict[str, str] = {}
            """Images that have arrived for a restore in place, by transfer."""
            self.held: dict[str, str] = {}
            """The image that a volume holds since such a restore."""
            self.guest_files: dict[str, tuple[str, int, bytes]] = {}
            self.guest_folders = {"", "/etc"}
            self.made_by = {}
            self.lineages: dict[str, str] = {}
            self.safeties: dict[str, volume_pb2.Snapshot] = {}
            """By ``VOLUME@CONTENT``."""
            self.swapped_under_a_guest: list[str] = []
            self.manifests: dict[str, image_pb2.BackupManifest] = {}
            self.made_manifests: list[str] = []
            self.frozen_ns = 7_000_000
            self.vmm_tracks = False
            """The VMM tells what changed since a state that it is asked for."""
            self.variables: dict[str, bytes] = {}
            """Firmware variables, by VM id."""
            self.told_by: dict[str, dict[str, int]] = {}
            """Revisions of VMs, where a host tells another than ours."""
            self.gateways: dict[str, str] = {}
            """The array that sent a foreign disk, by transfer."""
            self._add_vm("web1", ("disk0", "disk1"), {"tier": "gold"})
            self._add_vm("db1", ("disk0",), {})
            self.own_volumes = set(self.volumes)

    def _add_vm(self, name: str, disks: tuple[str, ...], tags: dict[str, str]) -> None:
        config = vm_pb2.VmConfig(
            name=name,
            uuid="00000000-0000-4000-8000-000000000001",
            cpus=2,
            memory_bytes=1 << 30,
            networks=[vm_pb2.NetworkInterface(mac="52:54:00:00:00:01", network="lan")],
            tags=tags,
            firmware="bios",
        )
        for index, disk in enumerate(disks):
            volume = f"{name}-{disk}"
            self.volumes[volume] = (3 + index) * SPAN
            config.disks.append(
                vm_pb2.Disk(
                    name=disk,
                    array="array1",
                    array_address=self.addresses.get("array", ""),
                    volume_name=volume,
                    size_bytes=self.volumes[volume],
                )
            )
        vm_id = random_id()
        self.vms[vm_id] = vm_pb2.Vm(
            vm_id=vm_id, config=config, power=vm_pb2.POWER_STATE_ON, host="host1", revision=1
        )

    # -- for tests --------------------------------------------------------------------------

    def fault(self, method: str, *kinds: str | Fault) -> None:
        """The next calls of a method meet these."""
        for kind in kinds:
            self.faults[method].append(Fault(kind) if isinstance(kind, str) else kind)

    def count(self, method: str) -> int:
        """Calls of a method so far."""
        with self.lock:
            return sum(name == method for name, _ in self.calls)

    def vm_named(self, name: str) -> vm_pb2.Vm:
        with self.lock:
            return next(vm for vm in self.vms.values() if vm.config.name == name)

    def wait_idle(self) -> None:
        """Wait until no call is under way: late ones have had their effect."""
        with self._idle:
            assert self._idle.wait_for(lambda: self._active == 0, timeout=30), "a call never ended"

    def leftovers(self) -> list[str]:
        """What no backup, VM or lease accounts for."""
        with self.lock:
            named = {image.image_id for one in self.manifests.values() for image in one.images}
            disks = {disk.volume_name for vm in self.vms.values() for disk in vm.config.disks}
            found = [f"VM snapshot {one.name}" for one in self.vm_snapshots.values()]
            found += [f"grant {one}" for one in self.grants if one not in self.images and one not in named]
            found += [f"image {one}" for one in self.images if one not in named]
            found += [f"lost image {one}" for one in named - self.images.keys()]
            found += [f"volume {one}" for one in self.volumes.keys() - self.own_volumes - disks]
            found += [f"draft for {one.volume_name}" for one in self.restores.values() if one.group_id]
            return found

    def restored(self) -> list[vm_pb2.Vm]:
        """VMs that restores made."""
        with self.lock:
            return [vm for vm in self.vms.values() if RESTORE_TAG in vm.config.tags]

    # -- faults -----------------------------------------------------------------------------

    def _enter(self, method: str, request: Any) -> Fault:
        with self.lock:
            self._active += 1
            self.calls.append((method, request))
            waiting = self.faults.get(method)
            return waiting.popleft() if waiting else Fault("none")

    def _leave(self) -> None:
        with self._idle:
            self._active -= 1
            self._idle.notify_all()

    def one(self, method: str, handler: Handler) -> Callable[[Any, grpc.ServicerContext], Any]:
        """Wrap a handler that answers once."""

        def behave(request: Any, context: grpc.ServicerContext) -> Any:
            fault = self._enter(method, request)
            try:
                if fault.kind == "fail":
                    fault.meanwhile()
                    raise fault.error
                if fault.kind in {"hang", "late"}:
                    _until_left(context)
                    if fault.kind == "hang":
                        raise PeerUnavailable("too late to matter")
                with self.lock:
                    answer = handler(request)
                    if fault.kind == "twice":
                        answer = handler(request)
                if fault.kind == "lost":
                    fault.meanwhile()
                    raise fault.error
                return answer
            finally:
                self._leave()

        return behave

    def many(self, method: str, handler: Handler) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        """Wrap a handler that answers by a stream; it locks by itself."""

        def behave(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            fault = self._enter(method, request)
            try:
                if fault.kind == "fail":
                    raise fault.error
                if fault.kind == "hang":
                    _until_left(context)
                    return
                for index, message in enumerate(handler(request)):
                    if fault.kind == "lost" and getattr(message, "receipt_id", False):
                        raise fault.error
                    yield message
                    if index == 0 and fault.kind == "cut":
                        raise fault.error
                    if index == 0 and fault.kind in {"mute", "late"}:
                        _until_left(context)
                        if fault.kind == "mute":
                            return
            finally:
                self._leave()

        return behave

    # -- VMs --------------------------------------------------------------------------------

    def _vm(self, vm_id: str, name: str = "") -> vm_pb2.Vm:
        for vm in self.vms.values():
            if vm.vm_id == vm_id or (name and vm.config.name == name):
                return vm
        raise NotFound(f"there is no VM {vm_id or name}")

    def create_snapshot(self, request: Any) -> vm_pb2.VmSnapshot:
        vm = self._vm(request.vm_id)
        for known in self.vm_snapshots.values():
            if (known.vm_id, known.name) == (request.vm_id, request.name):
                return known
        made = vm_pb2.VmSnapshot(
            vm_snapshot_id=random_id(),
            vm_id=vm.vm_id,
            name=request.name,
            level=vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM,
            frozen_ns=self.frozen_ns,
            created_at_ns=1_700_000_000_000_000_000 + len(self.calls),
            config=vm.config,
            lease_seconds=request.lease_seconds,
        )
        since = {one.disk_name: one.state for one in request.changes_since}
        for disk in vm.config.disks:
            if disk.name not in request.exclude_disks:
                made.disks.append(self._disk_snapshot(disk, since.get(disk.name)))
        made.firmware_variables = self.variables.get(vm.vm_id, b"")
        self.vm_snapshots[made.vm_snapshot_id] = made
        return made

    def _disk_snapshot(self, disk: vm_pb2.Disk, since: common_pb2.SourceState | None) -> vm_pb2.DiskSnapshot:
        made = vm_pb2.DiskSnapshot(
            disk_name=disk.name,
            size_bytes=disk.size_bytes,
            state=common_pb2.SourceState(pool_id=random_id(), lineage_id=random_id(), birth=1),
        )
        if disk.foreign:
            made.foreign.uri = f"nbd://127.0.0.1/{disk.name}"
            if since is not None and self.vmm_tracks:
                made.foreign.bitmap.name = "b"
                made.foreign.bitmap.since.CopyFrom(since)
            return made
        made.array, made.array_address = disk.array, disk.array_address
        made.volume_name, made.snapshot_id = disk.volume_name, random_id()
        if since is not None and self.vmm_tracks:
            made.changes.since.CopyFrom(since)
            made.changes.offsets, made.changes.lengths = bytes(8), (4096).to_bytes(8, "little")
        return made

    def snapshot(self, request: Any) -> vm_pb2.VmSnapshot:
        if request.vm_snapshot_id not in self.vm_snapshots:
            raise NotFound(f"there is no VM snapshot {request.vm_snapshot_id}")
        return self.vm_snapshots[request.vm_snapshot_id]

    def delete_snapshot(self, request: Any) -> object:
        return self.vm_snapshots.pop(request.vm_snapshot_id, None)

    def create_vm(self, request: Any) -> vm_pb2.Vm:
        known = self.vms.get(request.vm_id)
        if known is not None:
            bare = vm_pb2.VmConfig()
            bare.CopyFrom(known.config)
            del bare.disks[:]
            if bare != request.config:
                raise AlreadyExists(f"VM {request.vm_id} is another")
            return known
        if any(vm.config.name == request.config.name for vm in self.vms.values()):
            raise AlreadyExists(f"there is a VM {request.config.name}")
        made = vm_pb2.Vm(
            vm_id=request.vm_id, config=request.config, power=vm_pb2.POWER_STATE_OFF, host="host1"
        )
        self.vms[request.vm_id] = made
        self.variables[request.vm_id] = request.firmware_variables
        return made

    def remove_vm(self, request: Any) -> object:
        vm = self.vms.get(request.vm_id)
        if vm is not None and vm.power == vm_pb2.POWER_STATE_ON:
            raise WrongState("the VM runs")
        assert request.keep_volumes, "volumes are removed by name"
        return self.vms.pop(request.vm_id, None)

    def attach(self, request: Any) -> vm_pb2.Vm:
        vm = self._vm(request.vm_id)
        if request.disk.volume_name not in self.volumes:
            raise NotFound(f"there is no volume {request.disk.volume_name}")
        if request.disk.name not in [disk.name for disk in vm.config.disks]:
            vm.config.disks.append(request.disk)
        return vm

    def list_guest_files(self, request: Any) -> vm_pb2.ListGuestFilesResponse:
        folder = request.directory.path.rstrip("/")
        if folder not in self.guest_folders:
            raise NotFound(f"there is no {folder or '/'}")
        files = [
            vm_pb2.GuestFile(path=path) for path in self.guest_files if path.rpartition("/")[0] == folder
        ]
        return vm_pb2.ListGuestFilesResponse(files=files)

    def put_guest_file(self, requests: Any) -> vm_pb2.PutGuestFileResponse:
        """Holds the lock to its end."""
        content, header, mode = b"", vm_pb2.GuestPath(), 0
        for request in requests:
            content += request.data
            if request.HasField("header"):
                header, mode = request.header, request.mode
            if request.last:
                if header.path.rpartition("/")[0] not in self.guest_folders:
                    raise NotFound(f"there is no directory for {header.path}")
                self.guest_files[header.path] = (header.disk_name, mode, content)
                return vm_pb2.PutGuestFileResponse()
        raise Conflict("it was cut")

    def power(self, vm_id: str, power: int) -> vm_pb2.Vm:
        vm = self._vm(vm_id)
        vm.power = power  # type: ignore[assignment]
        return vm

    # -- target -----------------------------------------------------------------------------

    def create_grant(self, request: Any) -> target_admin_pb2.CreateGrantResponse:
        known = self.grants.get(request.transfer_id)
        if known is None:
            images = [one for one, (name, _) in self.images.items() if name == request.image_name]
            if request.base_image_id and request.base_image_id not in self.images:
                raise NotFound(f"there is no image {request.base_image_id}")
            chosen = request.base_image_id or (images[-1] if images and not request.no_base else "")
            self.grants[request.transfer_id] = request
            self.bases[request.transfer_id] = chosen
        elif (known.array, known.image_name, known.no_base) != (
            request.array,
            request.image_name,
            request.no_base,
        ) or request.base_image_id not in ("", self.bases[request.transfer_id]):
            raise AlreadyExists("that transfer is another")
        base = self.bases[request.transfer_id]
        return target_admin_pb2.CreateGrantResponse(grant=GRANT, base_image_id=base)

    def revoke_grant(self, request: Any) -> target_admin_pb2.RevokeGrantResponse:
        self._granted(request.transfer_id)
        if request.transfer_id in self.images:
            raise WrongState("the transfer has committed")
        del self.grants[request.transfer_id]
        return target_admin_pb2.RevokeGrantResponse()

    def delete_image(self, request: Any) -> image_pb2.DeleteImageResponse:
        for manifest in self.manifests.values():
            if any(image.image_id == request.image_id for image in manifest.images):
                raise WrongState(f"backup {manifest.backup_id} names it")
        if self.images.pop(request.image_id, None) is None and not request.missing_ok:
            raise NotFound(f"there is no image {request.image_id}")
        self.grants.pop(request.image_id, None)
        return image_pb2.DeleteImageResponse()

    def publish(self, request: Any) -> image_pb2.PublishBackupResponse:
        manifest = request.manifest
        known = self.manifests.get(manifest.backup_id)
        if known is not None:
            if known != manifest:
                raise AlreadyExists("that backup is another")
            return image_pb2.PublishBackupResponse()
        for image in manifest.images:
            if image.image_id not in self.images:
                raise NotFound(f"there is no image {image.image_id}")
        self.manifests[manifest.backup_id] = manifest
        self.made_manifests.append(manifest.backup_id)
        return image_pb2.PublishBackupResponse()

    def get_manifest(self, request: Any) -> image_pb2.GetBackupManifestResponse:
        if request.backup_id not in self.manifests:
            raise NotFound(f"there is no backup {request.backup_id}")
        return image_pb2.GetBackupManifestResponse(manifest=self.manifests[request.backup_id])

    def list_manifests(self, request: Any) -> image_pb2.ListBackupManifestsResponse:
        found = sorted(self.manifests.values(), key=lambda one: (one.snapshot_at_ns, one.backup_id))[::-1]
        at = int(request.page_token or 0)
        page = found[at : at + 2]
        more = at + 2 < len(found)
        return image_pb2.ListBackupManifestsResponse(
            manifests=page, next_page_token=str(at + 2) if more else ""
        )

    def delete_manifest(self, request: Any) -> image_pb2.DeleteBackupManifestResponse:
        known = self.manifests.get(request.backup_id)
        if known is not None and known.lock_until_ns:
            raise WrongState(f"backup {request.backup_id} is locked")
        manifest = self.manifests.pop(request.backup_id, None)
        if manifest is None and not request.missing_ok:
            raise NotFound(f"there is no backup {request.backup_id}")
        for image in manifest.images if manifest is not None else ():
            self.images.pop(image.image_id, None)
            self.grants.pop(image.image_id, None)
        return image_pb2.DeleteBackupManifestResponse()

    def lock_image(self, request: Any) -> image_pb2.LockImageResponse:
        manifest = self.manifests.get(request.backup_id)
        if manifest is None:
            raise NotFound(f"there is no backup {request.backup_id}")
        if request.until_ns < manifest.lock_until_ns:
            raise WrongState("it is locked for longer")
        manifest.lock_until_ns = request.until_ns
        return image_pb2.LockImageResponse(lock_until_ns=request.until_ns)

    def verify_image(self, request: Any) -> Iterator[image_pb2.VerifyImageResponse]:
        with self.lock:
            if request.image_id not in self.images:
                raise NotFound(f"there is no image {request.image_id}")
            damaged = request.image_id in self.damaged_images
        yield image_pb2.VerifyImageResponse(containers_done=1, containers_total=4)
        last = image_pb2.VerifyImageResponse(done=True, whole=not damaged, oldest_check_at_ns=7)
        last.damaged_spans.extend(range(12 * damaged))
        last.damaged_span_count = len(last.damaged_spans)
        last.bytes_read = 0 if request.max_age_seconds else SPAN
        yield last

    def stats(self, _request: Any) -> target_admin_pb2.GetTargetStatsResponse:
        return target_admin_pb2.GetTargetStatsResponse(lock_clock_lags=self.clock_lags)

    def confirm_time(self, request: Any) -> target_admin_pb2.ConfirmTimeResponse:
        self.clock_lags = False
        return target_admin_pb2.ConfirmTimeResponse(lock_clock_ns=request.wall_ns)

    def compose_image(self, requests: Any) -> Iterator[image_pb2.ComposeImageResponse]:
        asked = list(requests)
        header, end, content = asked[0].header, asked[-1].end, bytearray(asked[0].header.size_bytes)
        extents = [one for request in asked[1:-1] for one in request.extents.extents]
        assert (end.extent_count, end.bytes_written) == (len(extents), sum(one.length for one in extents))
        yield image_pb2.ComposeImageResponse(spans_done=0)
        with self.lock:
            for one in extents:
                data = one.literal
                if not data:
                    data = self.image_content[one.image_id][one.image_offset :][: one.length]
                content[one.offset : one.offset + one.length] = data.ljust(one.length, b"\0")
            self.images[header.transfer_id] = (header.name, header.size_bytes)
            self.image_content[header.transfer_id] = bytes(content)
        yield image_pb2.ComposeImageResponse(image=image_pb2.Image(image_id=header.transfer_id))

    def read_range(self, request: Any) -> Iterator[image_pb2.ReadRangeResponse]:
        with self.lock:
            if request.image_id not in self.images:
                raise NotFound(f"there is no image {request.image_id}")
            size = self.images[request.image_id][1]
            content = self.image_content.get(request.image_id, b"").ljust(size, b"\0")
        end = request.offset + request.length if request.length else size
        for at in range(request.offset, end, SPAN):
            data = content[at : min(end, at + SPAN)]
            if request.image_id in self.damaged_images:
                raise Corruption("a segment does not match its fingerprint")
            if any(data):
                yield image_pb2.ReadRangeResponse(offset=at, data=data)
            else:
                yield image_pb2.ReadRangeResponse(offset=at, zero_bytes=len(data))


def _until_left(context: grpc.ServicerContext) -> None:
    left = threading.Event()
    if context.add_callback(left.set):
        assert left.wait(60), "the caller never gave up"
