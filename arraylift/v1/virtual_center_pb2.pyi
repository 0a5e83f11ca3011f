from arraylift.v1 import vm_pb2 as _vm_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HostState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOST_STATE_UNSPECIFIED: _ClassVar[HostState]
    HOST_STATE_ALIVE: _ClassVar[HostState]
    HOST_STATE_LOST: _ClassVar[HostState]
HOST_STATE_UNSPECIFIED: HostState
HOST_STATE_ALIVE: HostState
HOST_STATE_LOST: HostState

class Host(_message.Message):
    __slots__ = ("name", "address", "state", "memory_bytes", "memory_free_bytes", "cpus", "vm_count", "last_report_ns", "driver", "load_percent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    VM_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_REPORT_NS_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    LOAD_PERCENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    state: HostState
    memory_bytes: int
    memory_free_bytes: int
    cpus: int
    vm_count: int
    last_report_ns: int
    driver: str
    load_percent: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[_Union[HostState, str]] = ..., memory_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., cpus: _Optional[int] = ..., vm_count: _Optional[int] = ..., last_report_ns: _Optional[int] = ..., driver: _Optional[str] = ..., load_percent: _Optional[int] = ...) -> None: ...

class RegisterHostRequest(_message.Message):
    __slots__ = ("name", "address", "driver")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    driver: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., driver: _Optional[str] = ...) -> None: ...

class RegisterHostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportInventoryRequest(_message.Message):
    __slots__ = ("name", "sequence", "vms", "memory_bytes", "memory_free_bytes", "cpus", "load_percent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    LOAD_PERCENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequence: int
    vms: _containers.RepeatedCompositeFieldContainer[_vm_pb2.Vm]
    memory_bytes: int
    memory_free_bytes: int
    cpus: int
    load_percent: int
    def __init__(self, name: _Optional[str] = ..., sequence: _Optional[int] = ..., vms: _Optional[_Iterable[_Union[_vm_pb2.Vm, _Mapping]]] = ..., memory_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., cpus: _Optional[int] = ..., load_percent: _Optional[int] = ...) -> None: ...

class ReportInventoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHostsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHostsResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[Host]
    def __init__(self, hosts: _Optional[_Iterable[_Union[Host, _Mapping]]] = ...) -> None: ...

class RemoveHostRequest(_message.Message):
    __slots__ = ("name", "missing_ok")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    name: str
    missing_ok: bool
    def __init__(self, name: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class RemoveHostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListManagedVmsRequest(_message.Message):
    __slots__ = ("host", "page_size", "page_token")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    host: str
    page_size: int
    page_token: str
    def __init__(self, host: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListManagedVmsResponse(_message.Message):
    __slots__ = ("vms", "revision", "next_page_token")
    VMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[_vm_pb2.Vm]
    revision: int
    next_page_token: str
    def __init__(self, vms: _Optional[_Iterable[_Union[_vm_pb2.Vm, _Mapping]]] = ..., revision: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetManagedVmRequest(_message.Message):
    __slots__ = ("vm_id", "name")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GetManagedVmResponse(_message.Message):
    __slots__ = ("vm", "host")
    VM_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    host: Host
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ..., host: _Optional[_Union[Host, _Mapping]] = ...) -> None: ...

class WatchInventoryRequest(_message.Message):
    __slots__ = ("after_revision",)
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    def __init__(self, after_revision: _Optional[int] = ...) -> None: ...

class WatchInventoryResponse(_message.Message):
    __slots__ = ("revision", "vms", "removed_vm_ids", "listing")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_VM_IDS_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    revision: int
    vms: _containers.RepeatedCompositeFieldContainer[_vm_pb2.Vm]
    removed_vm_ids: _containers.RepeatedScalarFieldContainer[str]
    listing: bool
    def __init__(self, revision: _Optional[int] = ..., vms: _Optional[_Iterable[_Union[_vm_pb2.Vm, _Mapping]]] = ..., removed_vm_ids: _Optional[_Iterable[str]] = ..., listing: _Optional[bool] = ...) -> None: ...

class PrepareBackupRequest(_message.Message):
    __slots__ = ("vm_id", "name", "level_min", "lease_seconds", "exclude_disks", "changes_since")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_MIN_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DISKS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_SINCE_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    level_min: _vm_pb2.ConsistencyLevel
    lease_seconds: int
    exclude_disks: _containers.RepeatedScalarFieldContainer[str]
    changes_since: _containers.RepeatedCompositeFieldContainer[_vm_pb2.DiskState]
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ..., level_min: _Optional[_Union[_vm_pb2.ConsistencyLevel, str]] = ..., lease_seconds: _Optional[int] = ..., exclude_disks: _Optional[_Iterable[str]] = ..., changes_since: _Optional[_Iterable[_Union[_vm_pb2.DiskState, _Mapping]]] = ...) -> None: ...

class PrepareBackupResponse(_message.Message):
    __slots__ = ("host", "vm", "snapshot")
    HOST_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    host: Host
    vm: _vm_pb2.Vm
    snapshot: _vm_pb2.VmSnapshot
    def __init__(self, host: _Optional[_Union[Host, _Mapping]] = ..., vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ..., snapshot: _Optional[_Union[_vm_pb2.VmSnapshot, _Mapping]] = ...) -> None: ...

class ReleaseSnapshotRequest(_message.Message):
    __slots__ = ("vm_id", "vm_snapshot_id")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    vm_snapshot_id: str
    def __init__(self, vm_id: _Optional[str] = ..., vm_snapshot_id: _Optional[str] = ...) -> None: ...

class ReleaseSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewSnapshotRequest(_message.Message):
    __slots__ = ("vm_id", "vm_snapshot_id")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    vm_snapshot_id: str
    def __init__(self, vm_id: _Optional[str] = ..., vm_snapshot_id: _Optional[str] = ...) -> None: ...

class RenewSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlaceVmRequest(_message.Message):
    __slots__ = ("memory_bytes", "cpus", "arrays")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    cpus: int
    arrays: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, memory_bytes: _Optional[int] = ..., cpus: _Optional[int] = ..., arrays: _Optional[_Iterable[str]] = ...) -> None: ...

class PlaceVmResponse(_message.Message):
    __slots__ = ("host",)
    HOST_FIELD_NUMBER: _ClassVar[int]
    host: Host
    def __init__(self, host: _Optional[_Union[Host, _Mapping]] = ...) -> None: ...

class ProvisionVmRequest(_message.Message):
    __slots__ = ("vm_id", "config", "host", "firmware_variables")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    config: _vm_pb2.VmConfig
    host: str
    firmware_variables: bytes
    def __init__(self, vm_id: _Optional[str] = ..., config: _Optional[_Union[_vm_pb2.VmConfig, _Mapping]] = ..., host: _Optional[str] = ..., firmware_variables: _Optional[bytes] = ...) -> None: ...

class ProvisionVmResponse(_message.Message):
    __slots__ = ("vm", "host")
    VM_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    host: Host
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ..., host: _Optional[_Union[Host, _Mapping]] = ...) -> None: ...

class PowerVmRequest(_message.Message):
    __slots__ = ("vm_id", "power", "grace_seconds", "force")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    power: _vm_pb2.PowerState
    grace_seconds: int
    force: bool
    def __init__(self, vm_id: _Optional[str] = ..., power: _Optional[_Union[_vm_pb2.PowerState, str]] = ..., grace_seconds: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...

class PowerVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class RemoveVmRequest(_message.Message):
    __slots__ = ("vm_id", "keep_volumes", "missing_ok")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_VOLUMES_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    keep_volumes: bool
    missing_ok: bool
    def __init__(self, vm_id: _Optional[str] = ..., keep_volumes: _Optional[bool] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class RemoveVmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttachVmVolumeRequest(_message.Message):
    __slots__ = ("vm_id", "disk")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    disk: _vm_pb2.Disk
    def __init__(self, vm_id: _Optional[str] = ..., disk: _Optional[_Union[_vm_pb2.Disk, _Mapping]] = ...) -> None: ...

class AttachVmVolumeResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class SynchronizeHostsRequest(_message.Message):
    __slots__ = ("host",)
    HOST_FIELD_NUMBER: _ClassVar[int]
    host: str
    def __init__(self, host: _Optional[str] = ...) -> None: ...

class SynchronizeHostsResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[Host]
    def __init__(self, hosts: _Optional[_Iterable[_Union[Host, _Mapping]]] = ...) -> None: ...

class GetVmHistoryRequest(_message.Message):
    __slots__ = ("vm_id", "name", "page_size", "page_token")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    name: str
    page_size: int
    page_token: str
    def __init__(self, vm_id: _Optional[str] = ..., name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetVmHistoryResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[VmHistoryEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[VmHistoryEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class VmHistoryEntry(_message.Message):
    __slots__ = ("at_ns", "host", "config", "removed")
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    at_ns: int
    host: str
    config: _vm_pb2.VmConfig
    removed: bool
    def __init__(self, at_ns: _Optional[int] = ..., host: _Optional[str] = ..., config: _Optional[_Union[_vm_pb2.VmConfig, _Mapping]] = ..., removed: _Optional[bool] = ...) -> None: ...

class MigrateVmRequest(_message.Message):
    __slots__ = ("vm_id", "host", "live", "downtime_ms_max", "seconds_max")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    DOWNTIME_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    SECONDS_MAX_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    host: str
    live: bool
    downtime_ms_max: int
    seconds_max: int
    def __init__(self, vm_id: _Optional[str] = ..., host: _Optional[str] = ..., live: _Optional[bool] = ..., downtime_ms_max: _Optional[int] = ..., seconds_max: _Optional[int] = ...) -> None: ...

class MigrateVmResponse(_message.Message):
    __slots__ = ("phase", "bytes_sent", "bytes_left", "vm", "host", "downtime_ns", "waits_for")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_LEFT_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DOWNTIME_NS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    phase: str
    bytes_sent: int
    bytes_left: int
    vm: _vm_pb2.Vm
    host: Host
    downtime_ns: int
    waits_for: str
    def __init__(self, phase: _Optional[str] = ..., bytes_sent: _Optional[int] = ..., bytes_left: _Optional[int] = ..., vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ..., host: _Optional[_Union[Host, _Mapping]] = ..., downtime_ns: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class ListMigrationsRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class ListMigrationsResponse(_message.Message):
    __slots__ = ("migrations",)
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    migrations: _containers.RepeatedCompositeFieldContainer[Migration]
    def __init__(self, migrations: _Optional[_Iterable[_Union[Migration, _Mapping]]] = ...) -> None: ...

class Migration(_message.Message):
    __slots__ = ("migration_id", "vm_id", "vm_name", "source", "destination", "live", "phase", "began_at_ns", "waits_for", "undone_because")
    MIGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_NS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    UNDONE_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    migration_id: str
    vm_id: str
    vm_name: str
    source: str
    destination: str
    live: bool
    phase: str
    began_at_ns: int
    waits_for: str
    undone_because: str
    def __init__(self, migration_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., source: _Optional[str] = ..., destination: _Optional[str] = ..., live: _Optional[bool] = ..., phase: _Optional[str] = ..., began_at_ns: _Optional[int] = ..., waits_for: _Optional[str] = ..., undone_because: _Optional[str] = ...) -> None: ...
