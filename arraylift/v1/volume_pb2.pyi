from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FindingSeverity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_SEVERITY_UNSPECIFIED: _ClassVar[FindingSeverity]
    FINDING_SEVERITY_NOTE: _ClassVar[FindingSeverity]
    FINDING_SEVERITY_WARNING: _ClassVar[FindingSeverity]
    FINDING_SEVERITY_ERROR: _ClassVar[FindingSeverity]
FINDING_SEVERITY_UNSPECIFIED: FindingSeverity
FINDING_SEVERITY_NOTE: FindingSeverity
FINDING_SEVERITY_WARNING: FindingSeverity
FINDING_SEVERITY_ERROR: FindingSeverity

class Volume(_message.Message):
    __slots__ = ("volume_id", "name", "size_bytes", "mapped_bytes", "state", "snapshot_count", "unique_bytes")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    name: str
    size_bytes: int
    mapped_bytes: int
    state: _common_pb2.SourceState
    snapshot_count: int
    unique_bytes: int
    def __init__(self, volume_id: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., mapped_bytes: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., snapshot_count: _Optional[int] = ..., unique_bytes: _Optional[int] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("snapshot_id", "volume_id", "volume_name", "name", "size_bytes", "state", "created_at_ns", "pinned", "group_id", "mapped_bytes", "unique_bytes")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    MAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    volume_id: str
    volume_name: str
    name: str
    size_bytes: int
    state: _common_pb2.SourceState
    created_at_ns: int
    pinned: bool
    group_id: str
    mapped_bytes: int
    unique_bytes: int
    def __init__(self, snapshot_id: _Optional[str] = ..., volume_id: _Optional[str] = ..., volume_name: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., created_at_ns: _Optional[int] = ..., pinned: _Optional[bool] = ..., group_id: _Optional[str] = ..., mapped_bytes: _Optional[int] = ..., unique_bytes: _Optional[int] = ...) -> None: ...

class CreateVolumeRequest(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CreateVolumeResponse(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class ListVolumesRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class DeleteVolumeRequest(_message.Message):
    __slots__ = ("name", "cascade", "missing_ok")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CASCADE_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    name: str
    cascade: bool
    missing_ok: bool
    def __init__(self, name: _Optional[str] = ..., cascade: _Optional[bool] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteVolumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImportVolumeRequest(_message.Message):
    __slots__ = ("header", "extent", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: ImportHeader
    extent: Extent
    end: ImportEnd
    def __init__(self, header: _Optional[_Union[ImportHeader, _Mapping]] = ..., extent: _Optional[_Union[Extent, _Mapping]] = ..., end: _Optional[_Union[ImportEnd, _Mapping]] = ...) -> None: ...

class ImportEnd(_message.Message):
    __slots__ = ("extent_count", "bytes_written")
    EXTENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    extent_count: int
    bytes_written: int
    def __init__(self, extent_count: _Optional[int] = ..., bytes_written: _Optional[int] = ...) -> None: ...

class ImportHeader(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportVolumeResponse(_message.Message):
    __slots__ = ("volume", "bytes_written")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    bytes_written: int
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ..., bytes_written: _Optional[int] = ...) -> None: ...

class ReadExtentsRequest(_message.Message):
    __slots__ = ("volume_name", "snapshot_id", "offset", "length", "with_holes")
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WITH_HOLES_FIELD_NUMBER: _ClassVar[int]
    volume_name: str
    snapshot_id: str
    offset: int
    length: int
    with_holes: bool
    def __init__(self, volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., with_holes: _Optional[bool] = ...) -> None: ...

class ReadExtentsResponse(_message.Message):
    __slots__ = ("extent", "zero_bytes", "size_bytes")
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    ZERO_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    extent: Extent
    zero_bytes: int
    size_bytes: int
    def __init__(self, extent: _Optional[_Union[Extent, _Mapping]] = ..., zero_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class WriteExtentsRequest(_message.Message):
    __slots__ = ("volume_name", "extent", "zero_bytes")
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    ZERO_BYTES_FIELD_NUMBER: _ClassVar[int]
    volume_name: str
    extent: Extent
    zero_bytes: int
    def __init__(self, volume_name: _Optional[str] = ..., extent: _Optional[_Union[Extent, _Mapping]] = ..., zero_bytes: _Optional[int] = ...) -> None: ...

class WriteExtentsResponse(_message.Message):
    __slots__ = ("bytes_written", "extent_count")
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    EXTENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    bytes_written: int
    extent_count: int
    def __init__(self, bytes_written: _Optional[int] = ..., extent_count: _Optional[int] = ...) -> None: ...

class CreateSnapshotsRequest(_message.Message):
    __slots__ = ("volume_names", "name")
    VOLUME_NAMES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    volume_names: _containers.RepeatedScalarFieldContainer[str]
    name: str
    def __init__(self, volume_names: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ...) -> None: ...

class CreateSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("volume_name",)
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    volume_name: str
    def __init__(self, volume_name: _Optional[str] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id", "missing_ok")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    missing_ok: bool
    def __init__(self, snapshot_id: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListChangedExtentsRequest(_message.Message):
    __slots__ = ("snapshot_id", "since")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    since: _common_pb2.SourceState
    def __init__(self, snapshot_id: _Optional[str] = ..., since: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ...) -> None: ...

class ListChangedExtentsResponse(_message.Message):
    __slots__ = ("offsets", "lengths")
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    offsets: bytes
    lengths: bytes
    def __init__(self, offsets: _Optional[bytes] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class PrepareRestoreRequest(_message.Message):
    __slots__ = ("transfer_id", "target", "volume_name", "reference_volume", "reference_snapshot_id", "group_id")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_VOLUME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    target: str
    volume_name: str
    reference_volume: str
    reference_snapshot_id: str
    group_id: str
    def __init__(self, transfer_id: _Optional[str] = ..., target: _Optional[str] = ..., volume_name: _Optional[str] = ..., reference_volume: _Optional[str] = ..., reference_snapshot_id: _Optional[str] = ..., group_id: _Optional[str] = ...) -> None: ...

class CommitRestoreGroupRequest(_message.Message):
    __slots__ = ("group_id", "transfer_ids", "safety_name")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_IDS_FIELD_NUMBER: _ClassVar[int]
    SAFETY_NAME_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    transfer_ids: _containers.RepeatedScalarFieldContainer[str]
    safety_name: str
    def __init__(self, group_id: _Optional[str] = ..., transfer_ids: _Optional[_Iterable[str]] = ..., safety_name: _Optional[str] = ...) -> None: ...

class CommitRestoreGroupResponse(_message.Message):
    __slots__ = ("volumes", "safeties")
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    SAFETIES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    safeties: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ..., safeties: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class PrepareRestoreResponse(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: bytes
    def __init__(self, grant: _Optional[bytes] = ...) -> None: ...

class RevokeRestoreRequest(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class RevokeRestoreResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolStatsResponse(_message.Message):
    __slots__ = ("pool_id", "granule_bytes", "slots_used", "data_file_bytes", "free_bytes", "volume_count", "snapshot_count", "map_bytes")
    POOL_ID_FIELD_NUMBER: _ClassVar[int]
    GRANULE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_USED_FIELD_NUMBER: _ClassVar[int]
    DATA_FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    pool_id: str
    granule_bytes: int
    slots_used: int
    data_file_bytes: int
    free_bytes: int
    volume_count: int
    snapshot_count: int
    map_bytes: int
    def __init__(self, pool_id: _Optional[str] = ..., granule_bytes: _Optional[int] = ..., slots_used: _Optional[int] = ..., data_file_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., volume_count: _Optional[int] = ..., snapshot_count: _Optional[int] = ..., map_bytes: _Optional[int] = ...) -> None: ...

class ResizeVolumeRequest(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ResizeVolumeResponse(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class CloneVolumeRequest(_message.Message):
    __slots__ = ("snapshot_id", "name")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    name: str
    def __init__(self, snapshot_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class CloneVolumeResponse(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class RollbackVolumeRequest(_message.Message):
    __slots__ = ("volume_name", "snapshot_id", "safety_name")
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SAFETY_NAME_FIELD_NUMBER: _ClassVar[int]
    volume_name: str
    snapshot_id: str
    safety_name: str
    def __init__(self, volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., safety_name: _Optional[str] = ...) -> None: ...

class RollbackVolumeResponse(_message.Message):
    __slots__ = ("volume", "safety")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    safety: Snapshot
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ..., safety: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("severity", "kind", "subject", "message", "next_step", "repairable", "repaired")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    REPAIRABLE_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    severity: FindingSeverity
    kind: str
    subject: str
    message: str
    next_step: str
    repairable: bool
    repaired: bool
    def __init__(self, severity: _Optional[_Union[FindingSeverity, str]] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., message: _Optional[str] = ..., next_step: _Optional[str] = ..., repairable: _Optional[bool] = ..., repaired: _Optional[bool] = ...) -> None: ...

class CheckPoolRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class CheckPoolResponse(_message.Message):
    __slots__ = ("findings", "granules_checked", "granules_total", "done")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    GRANULES_CHECKED_FIELD_NUMBER: _ClassVar[int]
    GRANULES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    granules_checked: int
    granules_total: int
    done: bool
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., granules_checked: _Optional[int] = ..., granules_total: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class Export(_message.Message):
    __slots__ = ("name", "volume_name", "snapshot_id", "read_only", "uri", "connection_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    volume_name: str
    snapshot_id: str
    read_only: bool
    uri: str
    connection_count: int
    def __init__(self, name: _Optional[str] = ..., volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., read_only: _Optional[bool] = ..., uri: _Optional[str] = ..., connection_count: _Optional[int] = ...) -> None: ...

class CreateExportRequest(_message.Message):
    __slots__ = ("name", "volume_name", "snapshot_id", "read_only")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    volume_name: str
    snapshot_id: str
    read_only: bool
    def __init__(self, name: _Optional[str] = ..., volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class CreateExportResponse(_message.Message):
    __slots__ = ("export",)
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    export: Export
    def __init__(self, export: _Optional[_Union[Export, _Mapping]] = ...) -> None: ...

class ListExportsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExportsResponse(_message.Message):
    __slots__ = ("exports",)
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    exports: _containers.RepeatedCompositeFieldContainer[Export]
    def __init__(self, exports: _Optional[_Iterable[_Union[Export, _Mapping]]] = ...) -> None: ...

class DeleteExportRequest(_message.Message):
    __slots__ = ("name", "missing_ok")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    name: str
    missing_ok: bool
    def __init__(self, name: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteExportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
