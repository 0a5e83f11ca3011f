from arraylift.v1 import backup_logic_pb2 as _backup_logic_pb2
from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PowerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POWER_STATE_UNSPECIFIED: _ClassVar[PowerState]
    POWER_STATE_OFF: _ClassVar[PowerState]
    POWER_STATE_ON: _ClassVar[PowerState]

class ConsistencyLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_LEVEL_UNSPECIFIED: _ClassVar[ConsistencyLevel]
    CONSISTENCY_LEVEL_CRASH: _ClassVar[ConsistencyLevel]
    CONSISTENCY_LEVEL_FILESYSTEM: _ClassVar[ConsistencyLevel]
    CONSISTENCY_LEVEL_APPLICATION: _ClassVar[ConsistencyLevel]
POWER_STATE_UNSPECIFIED: PowerState
POWER_STATE_OFF: PowerState
POWER_STATE_ON: PowerState
CONSISTENCY_LEVEL_UNSPECIFIED: ConsistencyLevel
CONSISTENCY_LEVEL_CRASH: ConsistencyLevel
CONSISTENCY_LEVEL_FILESYSTEM: ConsistencyLevel
CONSISTENCY_LEVEL_APPLICATION: ConsistencyLevel

class Disk(_message.Message):
    __slots__ = ("name", "array", "array_address", "volume_name", "size_bytes", "foreign")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    ARRAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    name: str
    array: str
    array_address: str
    volume_name: str
    size_bytes: int
    foreign: str
    def __init__(self, name: _Optional[str] = ..., array: _Optional[str] = ..., array_address: _Optional[str] = ..., volume_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., foreign: _Optional[str] = ...) -> None: ...

class NetworkInterface(_message.Message):
    __slots__ = ("mac", "network")
    MAC_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    mac: str
    network: str
    def __init__(self, mac: _Optional[str] = ..., network: _Optional[str] = ...) -> None: ...

class VmConfig(_message.Message):
    __slots__ = ("name", "uuid", "cpus", "memory_bytes", "disks", "networks", "tags", "firmware")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    uuid: str
    cpus: int
    memory_bytes: int
    disks: _containers.RepeatedCompositeFieldContainer[Disk]
    networks: _containers.RepeatedCompositeFieldContainer[NetworkInterface]
    tags: _containers.ScalarMap[str, str]
    firmware: str
    def __init__(self, name: _Optional[str] = ..., uuid: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disks: _Optional[_Iterable[_Union[Disk, _Mapping]]] = ..., networks: _Optional[_Iterable[_Union[NetworkInterface, _Mapping]]] = ..., tags: _Optional[_Mapping[str, str]] = ..., firmware: _Optional[str] = ...) -> None: ...

class Vm(_message.Message):
    __slots__ = ("vm_id", "config", "power", "host", "revision")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    config: VmConfig
    power: PowerState
    host: str
    revision: int
    def __init__(self, vm_id: _Optional[str] = ..., config: _Optional[_Union[VmConfig, _Mapping]] = ..., power: _Optional[_Union[PowerState, str]] = ..., host: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class DiskSnapshot(_message.Message):
    __slots__ = ("disk_name", "array", "array_address", "volume_name", "snapshot_id", "size_bytes", "state", "changes", "foreign")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    ARRAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    array: str
    array_address: str
    volume_name: str
    snapshot_id: str
    size_bytes: int
    state: _common_pb2.SourceState
    changes: _backup_logic_pb2.SuppliedChanges
    foreign: ForeignSource
    def __init__(self, disk_name: _Optional[str] = ..., array: _Optional[str] = ..., array_address: _Optional[str] = ..., volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., changes: _Optional[_Union[_backup_logic_pb2.SuppliedChanges, _Mapping]] = ..., foreign: _Optional[_Union[ForeignSource, _Mapping]] = ...) -> None: ...

class ForeignSource(_message.Message):
    __slots__ = ("uri", "bitmap")
    URI_FIELD_NUMBER: _ClassVar[int]
    BITMAP_FIELD_NUMBER: _ClassVar[int]
    uri: str
    bitmap: _backup_logic_pb2.DirtyBitmap
    def __init__(self, uri: _Optional[str] = ..., bitmap: _Optional[_Union[_backup_logic_pb2.DirtyBitmap, _Mapping]] = ...) -> None: ...

class VmSnapshot(_message.Message):
    __slots__ = ("vm_snapshot_id", "vm_id", "name", "level", "frozen_ns", "created_at_ns", "config", "disks", "lease_seconds", "firmware_variables")
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    FROZEN_NS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    vm_snapshot_id: str
    vm_id: str
    name: str
    level: ConsistencyLevel
    frozen_ns: int
    created_at_ns: int
    config: VmConfig
    disks: _containers.RepeatedCompositeFieldContainer[DiskSnapshot]
    lease_seconds: int
    firmware_variables: bytes
    def __init__(self, vm_snapshot_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., name: _Optional[str] = ..., level: _Optional[_Union[ConsistencyLevel, str]] = ..., frozen_ns: _Optional[int] = ..., created_at_ns: _Optional[int] = ..., config: _Optional[_Union[VmConfig, _Mapping]] = ..., disks: _Optional[_Iterable[_Union[DiskSnapshot, _Mapping]]] = ..., lease_seconds: _Optional[int] = ..., firmware_variables: _Optional[bytes] = ...) -> None: ...

class CreateVmRequest(_message.Message):
    __slots__ = ("vm_id", "config", "firmware_variables")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    config: VmConfig
    firmware_variables: bytes
    def __init__(self, vm_id: _Optional[str] = ..., config: _Optional[_Union[VmConfig, _Mapping]] = ..., firmware_variables: _Optional[bytes] = ...) -> None: ...

class CreateVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class GetVmRequest(_message.Message):
    __slots__ = ("vm_id", "name")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GetVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class ListVmsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListVmsResponse(_message.Message):
    __slots__ = ("vms",)
    VMS_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[Vm]
    def __init__(self, vms: _Optional[_Iterable[_Union[Vm, _Mapping]]] = ...) -> None: ...

class DeleteVmRequest(_message.Message):
    __slots__ = ("vm_id", "keep_volumes", "missing_ok")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_VOLUMES_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    keep_volumes: bool
    missing_ok: bool
    def __init__(self, vm_id: _Optional[str] = ..., keep_volumes: _Optional[bool] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteVmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PowerOnRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class PowerOnResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class PowerOffRequest(_message.Message):
    __slots__ = ("vm_id", "grace_seconds", "force")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    grace_seconds: int
    force: bool
    def __init__(self, vm_id: _Optional[str] = ..., grace_seconds: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...

class PowerOffResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class CreateVmSnapshotRequest(_message.Message):
    __slots__ = ("vm_id", "name", "level_min", "lease_seconds", "exclude_disks", "changes_since")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_MIN_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DISKS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_SINCE_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    level_min: ConsistencyLevel
    lease_seconds: int
    exclude_disks: _containers.RepeatedScalarFieldContainer[str]
    changes_since: _containers.RepeatedCompositeFieldContainer[DiskState]
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ..., level_min: _Optional[_Union[ConsistencyLevel, str]] = ..., lease_seconds: _Optional[int] = ..., exclude_disks: _Optional[_Iterable[str]] = ..., changes_since: _Optional[_Iterable[_Union[DiskState, _Mapping]]] = ...) -> None: ...

class DiskState(_message.Message):
    __slots__ = ("disk_name", "state")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    state: _common_pb2.SourceState
    def __init__(self, disk_name: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ...) -> None: ...

class CreateVmSnapshotResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: VmSnapshot
    def __init__(self, snapshot: _Optional[_Union[VmSnapshot, _Mapping]] = ...) -> None: ...

class GetVmSnapshotRequest(_message.Message):
    __slots__ = ("vm_snapshot_id",)
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    vm_snapshot_id: str
    def __init__(self, vm_snapshot_id: _Optional[str] = ...) -> None: ...

class GetVmSnapshotResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: VmSnapshot
    def __init__(self, snapshot: _Optional[_Union[VmSnapshot, _Mapping]] = ...) -> None: ...

class ListVmSnapshotsRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class ListVmSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[VmSnapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[VmSnapshot, _Mapping]]] = ...) -> None: ...

class RenewVmSnapshotRequest(_message.Message):
    __slots__ = ("vm_snapshot_id",)
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    vm_snapshot_id: str
    def __init__(self, vm_snapshot_id: _Optional[str] = ...) -> None: ...

class RenewVmSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteVmSnapshotRequest(_message.Message):
    __slots__ = ("vm_snapshot_id",)
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    vm_snapshot_id: str
    def __init__(self, vm_snapshot_id: _Optional[str] = ...) -> None: ...

class DeleteVmSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttachVolumeRequest(_message.Message):
    __slots__ = ("vm_id", "disk")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    disk: Disk
    def __init__(self, vm_id: _Optional[str] = ..., disk: _Optional[_Union[Disk, _Mapping]] = ...) -> None: ...

class AttachVolumeResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class DetachVolumeRequest(_message.Message):
    __slots__ = ("vm_id", "disk_name")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    disk_name: str
    def __init__(self, vm_id: _Optional[str] = ..., disk_name: _Optional[str] = ...) -> None: ...

class DetachVolumeResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class GuestPath(_message.Message):
    __slots__ = ("vm_id", "disk_name", "path")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    disk_name: str
    path: str
    def __init__(self, vm_id: _Optional[str] = ..., disk_name: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class GuestFile(_message.Message):
    __slots__ = ("path", "size_bytes", "mode", "uid", "gid", "modified_at_ns")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., modified_at_ns: _Optional[int] = ...) -> None: ...

class PutGuestFileRequest(_message.Message):
    __slots__ = ("header", "data", "mode", "last")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    header: GuestPath
    data: bytes
    mode: int
    last: bool
    def __init__(self, header: _Optional[_Union[GuestPath, _Mapping]] = ..., data: _Optional[bytes] = ..., mode: _Optional[int] = ..., last: _Optional[bool] = ...) -> None: ...

class PutGuestFileResponse(_message.Message):
    __slots__ = ("file",)
    FILE_FIELD_NUMBER: _ClassVar[int]
    file: GuestFile
    def __init__(self, file: _Optional[_Union[GuestFile, _Mapping]] = ...) -> None: ...

class GetGuestFileRequest(_message.Message):
    __slots__ = ("file",)
    FILE_FIELD_NUMBER: _ClassVar[int]
    file: GuestPath
    def __init__(self, file: _Optional[_Union[GuestPath, _Mapping]] = ...) -> None: ...

class GetGuestFileResponse(_message.Message):
    __slots__ = ("file", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: GuestFile
    data: bytes
    def __init__(self, file: _Optional[_Union[GuestFile, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ListGuestFilesRequest(_message.Message):
    __slots__ = ("directory", "page_size", "page_token")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    directory: GuestPath
    page_size: int
    page_token: str
    def __init__(self, directory: _Optional[_Union[GuestPath, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListGuestFilesResponse(_message.Message):
    __slots__ = ("files", "next_page_token")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[GuestFile]
    next_page_token: str
    def __init__(self, files: _Optional[_Iterable[_Union[GuestFile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RemoveGuestFileRequest(_message.Message):
    __slots__ = ("file",)
    FILE_FIELD_NUMBER: _ClassVar[int]
    file: GuestPath
    def __init__(self, file: _Optional[_Union[GuestPath, _Mapping]] = ...) -> None: ...

class RemoveGuestFileResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExpectVmRequest(_message.Message):
    __slots__ = ("vm_id", "migration_id", "config", "live", "revision")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    migration_id: str
    config: VmConfig
    live: bool
    revision: int
    def __init__(self, vm_id: _Optional[str] = ..., migration_id: _Optional[str] = ..., config: _Optional[_Union[VmConfig, _Mapping]] = ..., live: _Optional[bool] = ..., revision: _Optional[int] = ...) -> None: ...

class ExpectVmResponse(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class HandOverVmRequest(_message.Message):
    __slots__ = ("vm_id", "migration_id", "live", "address", "downtime_ms_max", "seconds_max", "revision")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DOWNTIME_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    SECONDS_MAX_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    migration_id: str
    live: bool
    address: str
    downtime_ms_max: int
    seconds_max: int
    revision: int
    def __init__(self, vm_id: _Optional[str] = ..., migration_id: _Optional[str] = ..., live: _Optional[bool] = ..., address: _Optional[str] = ..., downtime_ms_max: _Optional[int] = ..., seconds_max: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class HandOverVmResponse(_message.Message):
    __slots__ = ("bytes_sent", "bytes_left", "handed_over", "downtime_ns", "firmware_variables")
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_LEFT_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    DOWNTIME_NS_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    bytes_sent: int
    bytes_left: int
    handed_over: bool
    downtime_ns: int
    firmware_variables: bytes
    def __init__(self, bytes_sent: _Optional[int] = ..., bytes_left: _Optional[int] = ..., handed_over: _Optional[bool] = ..., downtime_ns: _Optional[int] = ..., firmware_variables: _Optional[bytes] = ...) -> None: ...

class AcceptVmRequest(_message.Message):
    __slots__ = ("vm_id", "migration_id", "firmware_variables")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    migration_id: str
    firmware_variables: bytes
    def __init__(self, vm_id: _Optional[str] = ..., migration_id: _Optional[str] = ..., firmware_variables: _Optional[bytes] = ...) -> None: ...

class AcceptVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: Vm
    def __init__(self, vm: _Optional[_Union[Vm, _Mapping]] = ...) -> None: ...

class AbandonMigrationRequest(_message.Message):
    __slots__ = ("vm_id", "migration_id")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    migration_id: str
    def __init__(self, vm_id: _Optional[str] = ..., migration_id: _Optional[str] = ...) -> None: ...

class AbandonMigrationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishMigrationRequest(_message.Message):
    __slots__ = ("vm_id", "migration_id")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    migration_id: str
    def __init__(self, vm_id: _Optional[str] = ..., migration_id: _Optional[str] = ...) -> None: ...

class FinishMigrationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
