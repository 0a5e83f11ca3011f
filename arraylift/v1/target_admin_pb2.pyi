from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UnitRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNIT_ROLE_UNSPECIFIED: _ClassVar[UnitRole]
    UNIT_ROLE_ACTIVE: _ClassVar[UnitRole]
    UNIT_ROLE_ARCHIVE: _ClassVar[UnitRole]
UNIT_ROLE_UNSPECIFIED: UnitRole
UNIT_ROLE_ACTIVE: UnitRole
UNIT_ROLE_ARCHIVE: UnitRole

class CreateGrantRequest(_message.Message):
    __slots__ = ("transfer_id", "array", "tenant", "image_name", "base_image_id", "no_base")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NO_BASE_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    array: str
    tenant: str
    image_name: str
    base_image_id: str
    no_base: bool
    def __init__(self, transfer_id: _Optional[str] = ..., array: _Optional[str] = ..., tenant: _Optional[str] = ..., image_name: _Optional[str] = ..., base_image_id: _Optional[str] = ..., no_base: _Optional[bool] = ...) -> None: ...

class CreateGrantResponse(_message.Message):
    __slots__ = ("grant", "base_image_id")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    BASE_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    grant: bytes
    base_image_id: str
    def __init__(self, grant: _Optional[bytes] = ..., base_image_id: _Optional[str] = ...) -> None: ...

class RevokeGrantRequest(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class RevokeGrantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTargetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTargetStatsResponse(_message.Message):
    __slots__ = ("image_count", "logical_bytes", "segment_count", "container_count", "container_bytes", "plain_bytes", "free_bytes", "open_transfer_count", "quarantined_count", "reserve_bytes", "below_reserve", "condemned_bytes", "lock_clock_ns", "lock_clock_lags", "cache_bytes", "units")
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_TRANSFER_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BELOW_RESERVE_FIELD_NUMBER: _ClassVar[int]
    CONDEMNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOCK_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    LOCK_CLOCK_LAGS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    image_count: int
    logical_bytes: int
    segment_count: int
    container_count: int
    container_bytes: int
    plain_bytes: int
    free_bytes: int
    open_transfer_count: int
    quarantined_count: int
    reserve_bytes: int
    below_reserve: bool
    condemned_bytes: int
    lock_clock_ns: int
    lock_clock_lags: bool
    cache_bytes: int
    units: _containers.RepeatedCompositeFieldContainer[UnitStats]
    def __init__(self, image_count: _Optional[int] = ..., logical_bytes: _Optional[int] = ..., segment_count: _Optional[int] = ..., container_count: _Optional[int] = ..., container_bytes: _Optional[int] = ..., plain_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., open_transfer_count: _Optional[int] = ..., quarantined_count: _Optional[int] = ..., reserve_bytes: _Optional[int] = ..., below_reserve: _Optional[bool] = ..., condemned_bytes: _Optional[int] = ..., lock_clock_ns: _Optional[int] = ..., lock_clock_lags: _Optional[bool] = ..., cache_bytes: _Optional[int] = ..., units: _Optional[_Iterable[_Union[UnitStats, _Mapping]]] = ...) -> None: ...

class UnitStats(_message.Message):
    __slots__ = ("unit", "image_count", "segment_count", "container_count", "container_bytes", "plain_bytes", "free_bytes", "absent")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    unit: str
    image_count: int
    segment_count: int
    container_count: int
    container_bytes: int
    plain_bytes: int
    free_bytes: int
    absent: bool
    def __init__(self, unit: _Optional[str] = ..., image_count: _Optional[int] = ..., segment_count: _Optional[int] = ..., container_count: _Optional[int] = ..., container_bytes: _Optional[int] = ..., plain_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., absent: _Optional[bool] = ...) -> None: ...

class SurveySpaceRequest(_message.Message):
    __slots__ = ("by_vm",)
    BY_VM_FIELD_NUMBER: _ClassVar[int]
    by_vm: bool
    def __init__(self, by_vm: _Optional[bool] = ...) -> None: ...

class SpaceUse(_message.Message):
    __slots__ = ("name", "image_count", "logical_bytes", "mapped_bytes", "plain_bytes", "stored_bytes", "metadata_bytes", "garbage_bytes", "container_bytes", "unique_stored_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    GARBAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    image_count: int
    logical_bytes: int
    mapped_bytes: int
    plain_bytes: int
    stored_bytes: int
    metadata_bytes: int
    garbage_bytes: int
    container_bytes: int
    unique_stored_bytes: int
    def __init__(self, name: _Optional[str] = ..., image_count: _Optional[int] = ..., logical_bytes: _Optional[int] = ..., mapped_bytes: _Optional[int] = ..., plain_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., garbage_bytes: _Optional[int] = ..., container_bytes: _Optional[int] = ..., unique_stored_bytes: _Optional[int] = ...) -> None: ...

class SurveySpaceResponse(_message.Message):
    __slots__ = ("images_done", "images_total", "done", "total", "tenants", "units", "vms")
    IMAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    images_done: int
    images_total: int
    done: bool
    total: SpaceUse
    tenants: _containers.RepeatedCompositeFieldContainer[SpaceUse]
    units: _containers.RepeatedCompositeFieldContainer[SpaceUse]
    vms: _containers.RepeatedCompositeFieldContainer[SpaceUse]
    def __init__(self, images_done: _Optional[int] = ..., images_total: _Optional[int] = ..., done: _Optional[bool] = ..., total: _Optional[_Union[SpaceUse, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[SpaceUse, _Mapping]]] = ..., units: _Optional[_Iterable[_Union[SpaceUse, _Mapping]]] = ..., vms: _Optional[_Iterable[_Union[SpaceUse, _Mapping]]] = ...) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ("unit", "dry_run", "live_percent_min", "bytes_per_second_max")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    LIVE_PERCENT_MIN_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    unit: str
    dry_run: bool
    live_percent_min: int
    bytes_per_second_max: int
    def __init__(self, unit: _Optional[str] = ..., dry_run: _Optional[bool] = ..., live_percent_min: _Optional[int] = ..., bytes_per_second_max: _Optional[int] = ...) -> None: ...

class CollectGarbageResponse(_message.Message):
    __slots__ = ("phase", "done", "total", "cycle", "container_count", "live_bytes", "dead_bytes", "condemned_count", "copied_container_count", "copied_bytes", "deleted_count", "deleted_bytes", "pinned_count")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_COUNT_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONDEMNED_COUNT_FIELD_NUMBER: _ClassVar[int]
    COPIED_CONTAINER_COUNT_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELETED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DELETED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_COUNT_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done: int
    total: int
    cycle: int
    container_count: int
    live_bytes: int
    dead_bytes: int
    condemned_count: int
    copied_container_count: int
    copied_bytes: int
    deleted_count: int
    deleted_bytes: int
    pinned_count: int
    def __init__(self, phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., cycle: _Optional[int] = ..., container_count: _Optional[int] = ..., live_bytes: _Optional[int] = ..., dead_bytes: _Optional[int] = ..., condemned_count: _Optional[int] = ..., copied_container_count: _Optional[int] = ..., copied_bytes: _Optional[int] = ..., deleted_count: _Optional[int] = ..., deleted_bytes: _Optional[int] = ..., pinned_count: _Optional[int] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("unit", "bytes_per_second_max", "restart")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    unit: str
    bytes_per_second_max: int
    restart: bool
    def __init__(self, unit: _Optional[str] = ..., bytes_per_second_max: _Optional[int] = ..., restart: _Optional[bool] = ...) -> None: ...

class ScrubResponse(_message.Message):
    __slots__ = ("containers_done", "containers_total", "bytes_read", "records_checked", "records_damaged", "period_started_at_ns", "done", "containers_worn", "unreadable_containers", "affected_images")
    CONTAINERS_DONE_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    RECORDS_CHECKED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    PERIOD_STARTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_WORN_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    containers_done: int
    containers_total: int
    bytes_read: int
    records_checked: int
    records_damaged: int
    period_started_at_ns: int
    done: bool
    containers_worn: int
    unreadable_containers: _containers.RepeatedScalarFieldContainer[str]
    affected_images: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, containers_done: _Optional[int] = ..., containers_total: _Optional[int] = ..., bytes_read: _Optional[int] = ..., records_checked: _Optional[int] = ..., records_damaged: _Optional[int] = ..., period_started_at_ns: _Optional[int] = ..., done: _Optional[bool] = ..., containers_worn: _Optional[int] = ..., unreadable_containers: _Optional[_Iterable[str]] = ..., affected_images: _Optional[_Iterable[str]] = ...) -> None: ...

class Unit(_message.Message):
    __slots__ = ("name", "unit_id", "role", "location", "endpoint", "absent", "problem", "image_count", "container_bytes", "affected_images", "draining")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_BYTES_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit_id: str
    role: UnitRole
    location: str
    endpoint: str
    absent: bool
    problem: str
    image_count: int
    container_bytes: int
    affected_images: _containers.RepeatedScalarFieldContainer[str]
    draining: bool
    def __init__(self, name: _Optional[str] = ..., unit_id: _Optional[str] = ..., role: _Optional[_Union[UnitRole, str]] = ..., location: _Optional[str] = ..., endpoint: _Optional[str] = ..., absent: _Optional[bool] = ..., problem: _Optional[str] = ..., image_count: _Optional[int] = ..., container_bytes: _Optional[int] = ..., affected_images: _Optional[_Iterable[str]] = ..., draining: _Optional[bool] = ...) -> None: ...

class ListUnitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListUnitsResponse(_message.Message):
    __slots__ = ("units",)
    UNITS_FIELD_NUMBER: _ClassVar[int]
    units: _containers.RepeatedCompositeFieldContainer[Unit]
    def __init__(self, units: _Optional[_Iterable[_Union[Unit, _Mapping]]] = ...) -> None: ...

class AddUnitRequest(_message.Message):
    __slots__ = ("name", "role", "location", "endpoint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: UnitRole
    location: str
    endpoint: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[_Union[UnitRole, str]] = ..., location: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class AddUnitResponse(_message.Message):
    __slots__ = ("unit",)
    UNIT_FIELD_NUMBER: _ClassVar[int]
    unit: Unit
    def __init__(self, unit: _Optional[_Union[Unit, _Mapping]] = ...) -> None: ...

class DrainUnitRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DrainUnitResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: MoveProgress
    def __init__(self, progress: _Optional[_Union[MoveProgress, _Mapping]] = ...) -> None: ...

class RetireUnitRequest(_message.Message):
    __slots__ = ("name", "lose_images")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOSE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    lose_images: bool
    def __init__(self, name: _Optional[str] = ..., lose_images: _Optional[bool] = ...) -> None: ...

class RetireUnitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MoveImagesRequest(_message.Message):
    __slots__ = ("to_unit", "image_ids", "older_than_seconds", "dry_run")
    TO_UNIT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    to_unit: str
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    older_than_seconds: int
    dry_run: bool
    def __init__(self, to_unit: _Optional[str] = ..., image_ids: _Optional[_Iterable[str]] = ..., older_than_seconds: _Optional[int] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class MoveImagesResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: MoveProgress
    def __init__(self, progress: _Optional[_Union[MoveProgress, _Mapping]] = ...) -> None: ...

class MoveProgress(_message.Message):
    __slots__ = ("images_done", "images_total", "image_id", "bytes_read", "bytes_stored", "kept_image_ids", "kept_reasons", "done")
    IMAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    BYTES_STORED_FIELD_NUMBER: _ClassVar[int]
    KEPT_IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    KEPT_REASONS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    images_done: int
    images_total: int
    image_id: str
    bytes_read: int
    bytes_stored: int
    kept_image_ids: _containers.RepeatedScalarFieldContainer[str]
    kept_reasons: _containers.RepeatedScalarFieldContainer[str]
    done: bool
    def __init__(self, images_done: _Optional[int] = ..., images_total: _Optional[int] = ..., image_id: _Optional[str] = ..., bytes_read: _Optional[int] = ..., bytes_stored: _Optional[int] = ..., kept_image_ids: _Optional[_Iterable[str]] = ..., kept_reasons: _Optional[_Iterable[str]] = ..., done: _Optional[bool] = ...) -> None: ...

class RebuildUnitRequest(_message.Message):
    __slots__ = ("unit",)
    UNIT_FIELD_NUMBER: _ClassVar[int]
    unit: str
    def __init__(self, unit: _Optional[str] = ...) -> None: ...

class RebuildUnitResponse(_message.Message):
    __slots__ = ("containers_done", "containers_total", "records", "manifests_restored", "containers_damaged", "done")
    CONTAINERS_DONE_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    MANIFESTS_RESTORED_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    containers_done: int
    containers_total: int
    records: int
    manifests_restored: int
    containers_damaged: int
    done: bool
    def __init__(self, containers_done: _Optional[int] = ..., containers_total: _Optional[int] = ..., records: _Optional[int] = ..., manifests_restored: _Optional[int] = ..., containers_damaged: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("name", "quota_bytes", "stored_bytes", "image_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    quota_bytes: int
    stored_bytes: int
    image_count: int
    def __init__(self, name: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., image_count: _Optional[int] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("tenants",)
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("tenant", "quota_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    quota_bytes: int
    def __init__(self, tenant: _Optional[str] = ..., quota_bytes: _Optional[int] = ...) -> None: ...

class SetQuotaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfirmTimeRequest(_message.Message):
    __slots__ = ("wall_ns",)
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    wall_ns: int
    def __init__(self, wall_ns: _Optional[int] = ...) -> None: ...

class ConfirmTimeResponse(_message.Message):
    __slots__ = ("lock_clock_ns", "lags")
    LOCK_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    LAGS_FIELD_NUMBER: _ClassVar[int]
    lock_clock_ns: int
    lags: bool
    def __init__(self, lock_clock_ns: _Optional[int] = ..., lags: _Optional[bool] = ...) -> None: ...
