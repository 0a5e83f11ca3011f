from arraylift.v1 import backup_logic_pb2 as _backup_logic_pb2
from arraylift.v1 import vm_pb2 as _vm_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VmSelection(_message.Message):
    __slots__ = ("vms", "tags", "hosts", "all", "exclude_vms", "exclude_tags")
    VMS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_VMS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_TAGS_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    exclude_vms: _containers.RepeatedScalarFieldContainer[str]
    exclude_tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vms: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., hosts: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ..., exclude_vms: _Optional[_Iterable[str]] = ..., exclude_tags: _Optional[_Iterable[str]] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("cron", "time_zone", "jitter_seconds")
    CRON_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    JITTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    cron: _containers.RepeatedScalarFieldContainer[str]
    time_zone: str
    jitter_seconds: int
    def __init__(self, cron: _Optional[_Iterable[str]] = ..., time_zone: _Optional[str] = ..., jitter_seconds: _Optional[int] = ...) -> None: ...

class Retention(_message.Message):
    __slots__ = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within_seconds")
    KEEP_LAST_FIELD_NUMBER: _ClassVar[int]
    KEEP_HOURLY_FIELD_NUMBER: _ClassVar[int]
    KEEP_DAILY_FIELD_NUMBER: _ClassVar[int]
    KEEP_WEEKLY_FIELD_NUMBER: _ClassVar[int]
    KEEP_MONTHLY_FIELD_NUMBER: _ClassVar[int]
    KEEP_YEARLY_FIELD_NUMBER: _ClassVar[int]
    KEEP_WITHIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    keep_last: int
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    keep_yearly: int
    keep_within_seconds: int
    def __init__(self, keep_last: _Optional[int] = ..., keep_hourly: _Optional[int] = ..., keep_daily: _Optional[int] = ..., keep_weekly: _Optional[int] = ..., keep_monthly: _Optional[int] = ..., keep_yearly: _Optional[int] = ..., keep_within_seconds: _Optional[int] = ...) -> None: ...

class BackupWindow(_message.Message):
    __slots__ = ("weekdays", "from_time", "to_time")
    WEEKDAYS_FIELD_NUMBER: _ClassVar[int]
    FROM_TIME_FIELD_NUMBER: _ClassVar[int]
    TO_TIME_FIELD_NUMBER: _ClassVar[int]
    weekdays: _containers.RepeatedScalarFieldContainer[str]
    from_time: str
    to_time: str
    def __init__(self, weekdays: _Optional[_Iterable[str]] = ..., from_time: _Optional[str] = ..., to_time: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "disabled", "selection", "schedule", "target", "exclude_disks", "level_min", "change_source", "retention", "windows", "bytes_per_second_max", "lock_days", "full_every_days", "comment", "retries_max")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DISKS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_MIN_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    LOCK_DAYS_FIELD_NUMBER: _ClassVar[int]
    FULL_EVERY_DAYS_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    RETRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    name: str
    disabled: bool
    selection: VmSelection
    schedule: Schedule
    target: str
    exclude_disks: _containers.RepeatedScalarFieldContainer[str]
    level_min: _vm_pb2.ConsistencyLevel
    change_source: _backup_logic_pb2.ChangeSource
    retention: Retention
    windows: _containers.RepeatedCompositeFieldContainer[BackupWindow]
    bytes_per_second_max: int
    lock_days: int
    full_every_days: int
    comment: str
    retries_max: int
    def __init__(self, name: _Optional[str] = ..., disabled: _Optional[bool] = ..., selection: _Optional[_Union[VmSelection, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., target: _Optional[str] = ..., exclude_disks: _Optional[_Iterable[str]] = ..., level_min: _Optional[_Union[_vm_pb2.ConsistencyLevel, str]] = ..., change_source: _Optional[_Union[_backup_logic_pb2.ChangeSource, str]] = ..., retention: _Optional[_Union[Retention, _Mapping]] = ..., windows: _Optional[_Iterable[_Union[BackupWindow, _Mapping]]] = ..., bytes_per_second_max: _Optional[int] = ..., lock_days: _Optional[int] = ..., full_every_days: _Optional[int] = ..., comment: _Optional[str] = ..., retries_max: _Optional[int] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyState]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyState, _Mapping]]] = ...) -> None: ...

class PolicyState(_message.Message):
    __slots__ = ("policy", "last_run_at_ns", "next_run_at_ns", "problem")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LAST_RUN_AT_NS_FIELD_NUMBER: _ClassVar[int]
    NEXT_RUN_AT_NS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    last_run_at_ns: int
    next_run_at_ns: int
    problem: str
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ..., last_run_at_ns: _Optional[int] = ..., next_run_at_ns: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class RemovePolicyRequest(_message.Message):
    __slots__ = ("name", "missing_ok")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    name: str
    missing_ok: bool
    def __init__(self, name: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class RemovePolicyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlanPolicyRequest(_message.Message):
    __slots__ = ("name", "policy", "run_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: Policy
    run_count: int
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., run_count: _Optional[int] = ...) -> None: ...

class PlanPolicyResponse(_message.Message):
    __slots__ = ("vms", "runs_at_ns")
    VMS_FIELD_NUMBER: _ClassVar[int]
    RUNS_AT_NS_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[PlannedVm]
    runs_at_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, vms: _Optional[_Iterable[_Union[PlannedVm, _Mapping]]] = ..., runs_at_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class PlannedVm(_message.Message):
    __slots__ = ("vm_id", "vm_name", "host", "chosen", "reason")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    vm_name: str
    host: str
    chosen: bool
    reason: str
    def __init__(self, vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., host: _Optional[str] = ..., chosen: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class RunPolicyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RunPolicyResponse(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanRetentionRequest(_message.Message):
    __slots__ = ("name", "policy", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: Policy
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class PlanRetentionResponse(_message.Message):
    __slots__ = ("backups", "digest", "kept_count", "deleted_count", "next_page_token")
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KEPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DELETED_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    backups: _containers.RepeatedCompositeFieldContainer[PlannedBackup]
    digest: bytes
    kept_count: int
    deleted_count: int
    next_page_token: str
    def __init__(self, backups: _Optional[_Iterable[_Union[PlannedBackup, _Mapping]]] = ..., digest: _Optional[bytes] = ..., kept_count: _Optional[int] = ..., deleted_count: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class PlannedBackup(_message.Message):
    __slots__ = ("backup_id", "vm_name", "snapshot_at_ns", "kept", "reasons")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AT_NS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    vm_name: str
    snapshot_at_ns: int
    kept: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, backup_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., snapshot_at_ns: _Optional[int] = ..., kept: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class ApplyRetentionRequest(_message.Message):
    __slots__ = ("name", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ApplyRetentionResponse(_message.Message):
    __slots__ = ("deleted_count", "kept_count", "problems")
    DELETED_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    deleted_count: int
    kept_count: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, deleted_count: _Optional[int] = ..., kept_count: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportUnprotectedRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ReportUnprotectedResponse(_message.Message):
    __slots__ = ("vms", "next_page_token")
    VMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[ProtectionGap]
    next_page_token: str
    def __init__(self, vms: _Optional[_Iterable[_Union[ProtectionGap, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReportOverdueRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ReportOverdueResponse(_message.Message):
    __slots__ = ("vms", "next_page_token")
    VMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[ProtectionGap]
    next_page_token: str
    def __init__(self, vms: _Optional[_Iterable[_Union[ProtectionGap, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ProtectionGap(_message.Message):
    __slots__ = ("vm_id", "vm_name", "host", "policy", "last_backup_at_ns", "due_at_ns", "reason")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LAST_BACKUP_AT_NS_FIELD_NUMBER: _ClassVar[int]
    DUE_AT_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    vm_name: str
    host: str
    policy: str
    last_backup_at_ns: int
    due_at_ns: int
    reason: str
    def __init__(self, vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., host: _Optional[str] = ..., policy: _Optional[str] = ..., last_backup_at_ns: _Optional[int] = ..., due_at_ns: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportSpaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportSpaceResponse(_message.Message):
    __slots__ = ("vms", "targets")
    VMS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[ProtectedSpace]
    targets: _containers.RepeatedCompositeFieldContainer[ProtectedSpace]
    def __init__(self, vms: _Optional[_Iterable[_Union[ProtectedSpace, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[ProtectedSpace, _Mapping]]] = ...) -> None: ...

class ProtectedSpace(_message.Message):
    __slots__ = ("name", "backup_count", "bytes_protected", "bytes_sent", "bytes_stored")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTES_PROTECTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_STORED_FIELD_NUMBER: _ClassVar[int]
    name: str
    backup_count: int
    bytes_protected: int
    bytes_sent: int
    bytes_stored: int
    def __init__(self, name: _Optional[str] = ..., backup_count: _Optional[int] = ..., bytes_protected: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_stored: _Optional[int] = ...) -> None: ...
