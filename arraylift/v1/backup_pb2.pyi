from arraylift.v1 import backup_logic_pb2 as _backup_logic_pb2
from arraylift.v1 import common_pb2 as _common_pb2
from arraylift.v1 import vm_pb2 as _vm_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PEER_KIND_UNSPECIFIED: _ClassVar[PeerKind]
    PEER_KIND_ARRAY: _ClassVar[PeerKind]
    PEER_KIND_TARGET: _ClassVar[PeerKind]
    PEER_KIND_HOST: _ClassVar[PeerKind]
    PEER_KIND_VCENTER: _ClassVar[PeerKind]

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_BACKUP: _ClassVar[JobKind]
    JOB_KIND_RESTORE: _ClassVar[JobKind]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
PEER_KIND_UNSPECIFIED: PeerKind
PEER_KIND_ARRAY: PeerKind
PEER_KIND_TARGET: PeerKind
PEER_KIND_HOST: PeerKind
PEER_KIND_VCENTER: PeerKind
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_BACKUP: JobKind
JOB_KIND_RESTORE: JobKind
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class JobStep(_message.Message):
    __slots__ = ("name", "started_at_ns", "ended_at_ns", "detail", "tries", "trouble", "figures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    started_at_ns: int
    ended_at_ns: int
    detail: str
    tries: int
    trouble: str
    figures: _common_pb2.TransferFigures
    def __init__(self, name: _Optional[str] = ..., started_at_ns: _Optional[int] = ..., ended_at_ns: _Optional[int] = ..., detail: _Optional[str] = ..., tries: _Optional[int] = ..., trouble: _Optional[str] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "kind", "state", "vm_name", "vm_id", "created_at_ns", "ended_at_ns", "steps", "spans_done", "spans_total", "figures", "frozen_ns", "error", "error_text", "backup_id", "result_vm_id", "level", "safeties", "policy", "retry_of", "retried_by", "retry_number", "not_before_ns")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    SPANS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_NS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_TEXT_FIELD_NUMBER: _ClassVar[int]
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_VM_ID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SAFETIES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    RETRIED_BY_FIELD_NUMBER: _ClassVar[int]
    RETRY_NUMBER_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_NS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: JobKind
    state: JobState
    vm_name: str
    vm_id: str
    created_at_ns: int
    ended_at_ns: int
    steps: _containers.RepeatedCompositeFieldContainer[JobStep]
    spans_done: int
    spans_total: int
    figures: _common_pb2.TransferFigures
    frozen_ns: int
    error: _common_pb2.ErrorDetail
    error_text: str
    backup_id: str
    result_vm_id: str
    level: _vm_pb2.ConsistencyLevel
    safeties: _containers.RepeatedCompositeFieldContainer[SafetySnapshot]
    policy: str
    retry_of: str
    retried_by: str
    retry_number: int
    not_before_ns: int
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., vm_name: _Optional[str] = ..., vm_id: _Optional[str] = ..., created_at_ns: _Optional[int] = ..., ended_at_ns: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[JobStep, _Mapping]]] = ..., spans_done: _Optional[int] = ..., spans_total: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., frozen_ns: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., error_text: _Optional[str] = ..., backup_id: _Optional[str] = ..., result_vm_id: _Optional[str] = ..., level: _Optional[_Union[_vm_pb2.ConsistencyLevel, str]] = ..., safeties: _Optional[_Iterable[_Union[SafetySnapshot, _Mapping]]] = ..., policy: _Optional[str] = ..., retry_of: _Optional[str] = ..., retried_by: _Optional[str] = ..., retry_number: _Optional[int] = ..., not_before_ns: _Optional[int] = ...) -> None: ...

class SafetySnapshot(_message.Message):
    __slots__ = ("disk_name", "array", "volume_name", "snapshot_id", "name")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    VOLUME_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    array: str
    volume_name: str
    snapshot_id: str
    name: str
    def __init__(self, disk_name: _Optional[str] = ..., array: _Optional[str] = ..., volume_name: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class BackupDisk(_message.Message):
    __slots__ = ("disk_name", "image_id", "size_bytes", "root", "figures", "array", "state", "change_source")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    image_id: str
    size_bytes: int
    root: bytes
    figures: _common_pb2.TransferFigures
    array: str
    state: _common_pb2.SourceState
    change_source: _backup_logic_pb2.ChangeSource
    def __init__(self, disk_name: _Optional[str] = ..., image_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., root: _Optional[bytes] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., array: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., change_source: _Optional[_Union[_backup_logic_pb2.ChangeSource, str]] = ...) -> None: ...

class Backup(_message.Message):
    __slots__ = ("backup_id", "vm_id", "vm_name", "target", "snapshot_at_ns", "level", "frozen_ns", "disks", "config", "incremental", "lock_until_ns", "firmware_variables", "policy")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AT_NS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    FROZEN_NS_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    INCREMENTAL_FIELD_NUMBER: _ClassVar[int]
    LOCK_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    vm_id: str
    vm_name: str
    target: str
    snapshot_at_ns: int
    level: _vm_pb2.ConsistencyLevel
    frozen_ns: int
    disks: _containers.RepeatedCompositeFieldContainer[BackupDisk]
    config: _vm_pb2.VmConfig
    incremental: bool
    lock_until_ns: int
    firmware_variables: bytes
    policy: str
    def __init__(self, backup_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., target: _Optional[str] = ..., snapshot_at_ns: _Optional[int] = ..., level: _Optional[_Union[_vm_pb2.ConsistencyLevel, str]] = ..., frozen_ns: _Optional[int] = ..., disks: _Optional[_Iterable[_Union[BackupDisk, _Mapping]]] = ..., config: _Optional[_Union[_vm_pb2.VmConfig, _Mapping]] = ..., incremental: _Optional[bool] = ..., lock_until_ns: _Optional[int] = ..., firmware_variables: _Optional[bytes] = ..., policy: _Optional[str] = ...) -> None: ...

class StartBackupRequest(_message.Message):
    __slots__ = ("vms", "all", "full", "direct", "target", "level_min", "exclude_disks", "tag", "gateway", "change_source", "retries_max")
    VMS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LEVEL_MIN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_DISKS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    RETRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    full: bool
    direct: bool
    target: str
    level_min: _vm_pb2.ConsistencyLevel
    exclude_disks: _containers.RepeatedScalarFieldContainer[str]
    tag: str
    gateway: str
    change_source: _backup_logic_pb2.ChangeSource
    retries_max: int
    def __init__(self, vms: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ..., full: _Optional[bool] = ..., direct: _Optional[bool] = ..., target: _Optional[str] = ..., level_min: _Optional[_Union[_vm_pb2.ConsistencyLevel, str]] = ..., exclude_disks: _Optional[_Iterable[str]] = ..., tag: _Optional[str] = ..., gateway: _Optional[str] = ..., change_source: _Optional[_Union[_backup_logic_pb2.ChangeSource, str]] = ..., retries_max: _Optional[int] = ...) -> None: ...

class StartBackupResponse(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StartRestoreRequest(_message.Message):
    __slots__ = ("backup_id", "as_name", "host", "array", "start", "direct", "keep_identity", "in_place", "stop", "disks", "volume", "attach", "memory_bytes", "cpus", "networks")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    AS_NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    KEEP_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    as_name: str
    host: str
    array: str
    start: bool
    direct: bool
    keep_identity: bool
    in_place: bool
    stop: bool
    disks: _containers.RepeatedScalarFieldContainer[str]
    volume: str
    attach: str
    memory_bytes: int
    cpus: int
    networks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, backup_id: _Optional[str] = ..., as_name: _Optional[str] = ..., host: _Optional[str] = ..., array: _Optional[str] = ..., start: _Optional[bool] = ..., direct: _Optional[bool] = ..., keep_identity: _Optional[bool] = ..., in_place: _Optional[bool] = ..., stop: _Optional[bool] = ..., disks: _Optional[_Iterable[str]] = ..., volume: _Optional[str] = ..., attach: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., cpus: _Optional[int] = ..., networks: _Optional[_Iterable[str]] = ...) -> None: ...

class StartRestoreResponse(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("running_only", "limit", "page_token", "vm", "states", "kind", "since_ns", "policy")
    RUNNING_ONLY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SINCE_NS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    running_only: bool
    limit: int
    page_token: str
    vm: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    kind: JobKind
    since_ns: int
    policy: str
    def __init__(self, running_only: _Optional[bool] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ..., vm: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ..., kind: _Optional[_Union[JobKind, str]] = ..., since_ns: _Optional[int] = ..., policy: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBackupsRequest(_message.Message):
    __slots__ = ("vm", "page_size", "page_token")
    VM_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vm: str
    page_size: int
    page_token: str
    def __init__(self, vm: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBackupsResponse(_message.Message):
    __slots__ = ("backups", "next_page_token")
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    backups: _containers.RepeatedCompositeFieldContainer[Backup]
    next_page_token: str
    def __init__(self, backups: _Optional[_Iterable[_Union[Backup, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetBackupRequest(_message.Message):
    __slots__ = ("backup_id",)
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    def __init__(self, backup_id: _Optional[str] = ...) -> None: ...

class GetBackupResponse(_message.Message):
    __slots__ = ("backup",)
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    backup: Backup
    def __init__(self, backup: _Optional[_Union[Backup, _Mapping]] = ...) -> None: ...

class DeleteBackupRequest(_message.Message):
    __slots__ = ("backup_id", "missing_ok")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    missing_ok: bool
    def __init__(self, backup_id: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteBackupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyBackupRequest(_message.Message):
    __slots__ = ("backup_id", "max_age_seconds")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    max_age_seconds: int
    def __init__(self, backup_id: _Optional[str] = ..., max_age_seconds: _Optional[int] = ...) -> None: ...

class VerifyBackupResponse(_message.Message):
    __slots__ = ("disk_name", "bytes_verified", "bytes_total", "oldest_check_at_ns", "bytes_read")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_CHECK_AT_NS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    bytes_verified: int
    bytes_total: int
    oldest_check_at_ns: int
    bytes_read: int
    def __init__(self, disk_name: _Optional[str] = ..., bytes_verified: _Optional[int] = ..., bytes_total: _Optional[int] = ..., oldest_check_at_ns: _Optional[int] = ..., bytes_read: _Optional[int] = ...) -> None: ...

class LockBackupRequest(_message.Message):
    __slots__ = ("backup_id", "until_ns")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    until_ns: int
    def __init__(self, backup_id: _Optional[str] = ..., until_ns: _Optional[int] = ...) -> None: ...

class LockBackupResponse(_message.Message):
    __slots__ = ("lock_until_ns",)
    LOCK_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    lock_until_ns: int
    def __init__(self, lock_until_ns: _Optional[int] = ...) -> None: ...

class BackupFile(_message.Message):
    __slots__ = ("path", "size_bytes", "mode", "uid", "gid", "modified_at_ns", "link_target")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    LINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
    link_target: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., modified_at_ns: _Optional[int] = ..., link_target: _Optional[str] = ...) -> None: ...

class ListFilesRequest(_message.Message):
    __slots__ = ("backup_id", "disk_name", "path", "page_size", "page_token", "volume")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    disk_name: str
    path: str
    page_size: int
    page_token: str
    volume: str
    def __init__(self, backup_id: _Optional[str] = ..., disk_name: _Optional[str] = ..., path: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., volume: _Optional[str] = ...) -> None: ...

class ListFilesResponse(_message.Message):
    __slots__ = ("files", "next_page_token", "volume")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[BackupFile]
    next_page_token: str
    volume: str
    def __init__(self, files: _Optional[_Iterable[_Union[BackupFile, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., volume: _Optional[str] = ...) -> None: ...

class GetFileRequest(_message.Message):
    __slots__ = ("backup_id", "disk_name", "path", "volume")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    disk_name: str
    path: str
    volume: str
    def __init__(self, backup_id: _Optional[str] = ..., disk_name: _Optional[str] = ..., path: _Optional[str] = ..., volume: _Optional[str] = ...) -> None: ...

class GetFileResponse(_message.Message):
    __slots__ = ("file", "data", "volume")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    file: BackupFile
    data: bytes
    volume: str
    def __init__(self, file: _Optional[_Union[BackupFile, _Mapping]] = ..., data: _Optional[bytes] = ..., volume: _Optional[str] = ...) -> None: ...

class RegisteredPeer(_message.Message):
    __slots__ = ("kind", "name", "address", "reachable", "problem")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    kind: PeerKind
    name: str
    address: str
    reachable: bool
    problem: str
    def __init__(self, kind: _Optional[_Union[PeerKind, str]] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., reachable: _Optional[bool] = ..., problem: _Optional[str] = ...) -> None: ...

class AddPeerRequest(_message.Message):
    __slots__ = ("kind", "name", "address")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    kind: PeerKind
    name: str
    address: str
    def __init__(self, kind: _Optional[_Union[PeerKind, str]] = ..., name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class AddPeerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPeersRequest(_message.Message):
    __slots__ = ("kind", "probe")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    kind: PeerKind
    probe: bool
    def __init__(self, kind: _Optional[_Union[PeerKind, str]] = ..., probe: _Optional[bool] = ...) -> None: ...

class ListPeersResponse(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[RegisteredPeer]
    def __init__(self, peers: _Optional[_Iterable[_Union[RegisteredPeer, _Mapping]]] = ...) -> None: ...

class RemovePeerRequest(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: PeerKind
    name: str
    def __init__(self, kind: _Optional[_Union[PeerKind, str]] = ..., name: _Optional[str] = ...) -> None: ...

class RemovePeerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
