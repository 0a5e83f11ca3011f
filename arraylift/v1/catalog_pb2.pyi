from arraylift.v1 import backup_pb2 as _backup_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CatalogState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CATALOG_STATE_UNSPECIFIED: _ClassVar[CatalogState]
    CATALOG_STATE_WAITING: _ClassVar[CatalogState]
    CATALOG_STATE_DONE: _ClassVar[CatalogState]
    CATALOG_STATE_FAILED: _ClassVar[CatalogState]
    CATALOG_STATE_OFF: _ClassVar[CatalogState]

class FileChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_CHANGE_UNSPECIFIED: _ClassVar[FileChange]
    FILE_CHANGE_ADDED: _ClassVar[FileChange]
    FILE_CHANGE_REMOVED: _ClassVar[FileChange]
    FILE_CHANGE_CONTENT: _ClassVar[FileChange]
    FILE_CHANGE_ATTRIBUTES: _ClassVar[FileChange]

class FileDestination(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_DESTINATION_UNSPECIFIED: _ClassVar[FileDestination]
    FILE_DESTINATION_GUEST: _ClassVar[FileDestination]
    FILE_DESTINATION_RESTORE_DISK: _ClassVar[FileDestination]
CATALOG_STATE_UNSPECIFIED: CatalogState
CATALOG_STATE_WAITING: CatalogState
CATALOG_STATE_DONE: CatalogState
CATALOG_STATE_FAILED: CatalogState
CATALOG_STATE_OFF: CatalogState
FILE_CHANGE_UNSPECIFIED: FileChange
FILE_CHANGE_ADDED: FileChange
FILE_CHANGE_REMOVED: FileChange
FILE_CHANGE_CONTENT: FileChange
FILE_CHANGE_ATTRIBUTES: FileChange
FILE_DESTINATION_UNSPECIFIED: FileDestination
FILE_DESTINATION_GUEST: FileDestination
FILE_DESTINATION_RESTORE_DISK: FileDestination

class ListFileVolumesRequest(_message.Message):
    __slots__ = ("backup_id",)
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    def __init__(self, backup_id: _Optional[str] = ...) -> None: ...

class ListFileVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[FileVolume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[FileVolume, _Mapping]]] = ...) -> None: ...

class FileVolume(_message.Message):
    __slots__ = ("name", "file_system", "label", "uuid", "size_bytes", "readable", "problem", "file_count", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILE_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    READABLE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    file_system: str
    label: str
    uuid: str
    size_bytes: int
    readable: bool
    problem: str
    file_count: int
    state: CatalogState
    def __init__(self, name: _Optional[str] = ..., file_system: _Optional[str] = ..., label: _Optional[str] = ..., uuid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., readable: _Optional[bool] = ..., problem: _Optional[str] = ..., file_count: _Optional[int] = ..., state: _Optional[_Union[CatalogState, str]] = ...) -> None: ...

class CatalogFile(_message.Message):
    __slots__ = ("file", "vm_id", "vm_name", "volume", "newest_backup_id", "newest_at_ns", "backup_count")
    FILE_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    NEWEST_BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    NEWEST_AT_NS_FIELD_NUMBER: _ClassVar[int]
    BACKUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    file: _backup_pb2.BackupFile
    vm_id: str
    vm_name: str
    volume: str
    newest_backup_id: str
    newest_at_ns: int
    backup_count: int
    def __init__(self, file: _Optional[_Union[_backup_pb2.BackupFile, _Mapping]] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., volume: _Optional[str] = ..., newest_backup_id: _Optional[str] = ..., newest_at_ns: _Optional[int] = ..., backup_count: _Optional[int] = ...) -> None: ...

class FindFilesRequest(_message.Message):
    __slots__ = ("pattern", "vm", "backup_id", "case_sensitive", "page_size", "page_token")
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    CASE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    vm: str
    backup_id: str
    case_sensitive: bool
    page_size: int
    page_token: str
    def __init__(self, pattern: _Optional[str] = ..., vm: _Optional[str] = ..., backup_id: _Optional[str] = ..., case_sensitive: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class FindFilesResponse(_message.Message):
    __slots__ = ("files", "next_page_token")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CatalogFile]
    next_page_token: str
    def __init__(self, files: _Optional[_Iterable[_Union[CatalogFile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListFileVersionsRequest(_message.Message):
    __slots__ = ("vm", "volume", "path")
    VM_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    vm: str
    volume: str
    path: str
    def __init__(self, vm: _Optional[str] = ..., volume: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class ListFileVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[FileVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[FileVersion, _Mapping]]] = ...) -> None: ...

class FileVersion(_message.Message):
    __slots__ = ("file", "backup_ids", "first_at_ns", "last_at_ns", "absent")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BACKUP_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_AT_NS_FIELD_NUMBER: _ClassVar[int]
    LAST_AT_NS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    file: _backup_pb2.BackupFile
    backup_ids: _containers.RepeatedScalarFieldContainer[str]
    first_at_ns: int
    last_at_ns: int
    absent: bool
    def __init__(self, file: _Optional[_Union[_backup_pb2.BackupFile, _Mapping]] = ..., backup_ids: _Optional[_Iterable[str]] = ..., first_at_ns: _Optional[int] = ..., last_at_ns: _Optional[int] = ..., absent: _Optional[bool] = ...) -> None: ...

class DiffBackupsRequest(_message.Message):
    __slots__ = ("older_backup_id", "newer_backup_id", "volume", "path")
    OLDER_BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    NEWER_BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    older_backup_id: str
    newer_backup_id: str
    volume: str
    path: str
    def __init__(self, older_backup_id: _Optional[str] = ..., newer_backup_id: _Optional[str] = ..., volume: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class DiffBackupsResponse(_message.Message):
    __slots__ = ("differences",)
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.RepeatedCompositeFieldContainer[FileDifference]
    def __init__(self, differences: _Optional[_Iterable[_Union[FileDifference, _Mapping]]] = ...) -> None: ...

class FileDifference(_message.Message):
    __slots__ = ("volume", "change", "older", "newer", "bytes_changed", "special")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    OLDER_FIELD_NUMBER: _ClassVar[int]
    NEWER_FIELD_NUMBER: _ClassVar[int]
    BYTES_CHANGED_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    volume: str
    change: FileChange
    older: _backup_pb2.BackupFile
    newer: _backup_pb2.BackupFile
    bytes_changed: int
    special: str
    def __init__(self, volume: _Optional[str] = ..., change: _Optional[_Union[FileChange, str]] = ..., older: _Optional[_Union[_backup_pb2.BackupFile, _Mapping]] = ..., newer: _Optional[_Union[_backup_pb2.BackupFile, _Mapping]] = ..., bytes_changed: _Optional[int] = ..., special: _Optional[str] = ...) -> None: ...

class ExplainBackupRequest(_message.Message):
    __slots__ = ("backup_id", "depth", "count_max")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    COUNT_MAX_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    depth: int
    count_max: int
    def __init__(self, backup_id: _Optional[str] = ..., depth: _Optional[int] = ..., count_max: _Optional[int] = ...) -> None: ...

class ExplainBackupResponse(_message.Message):
    __slots__ = ("sent", "bytes_sent_total")
    SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    sent: _containers.RepeatedCompositeFieldContainer[SentBytes]
    bytes_sent_total: int
    def __init__(self, sent: _Optional[_Iterable[_Union[SentBytes, _Mapping]]] = ..., bytes_sent_total: _Optional[int] = ...) -> None: ...

class SentBytes(_message.Message):
    __slots__ = ("volume", "path", "special", "bytes_changed", "bytes_sent", "file_count")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_CHANGED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    volume: str
    path: str
    special: str
    bytes_changed: int
    bytes_sent: int
    file_count: int
    def __init__(self, volume: _Optional[str] = ..., path: _Optional[str] = ..., special: _Optional[str] = ..., bytes_changed: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., file_count: _Optional[int] = ...) -> None: ...

class CatalogBackupRequest(_message.Message):
    __slots__ = ("backup_id",)
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    def __init__(self, backup_id: _Optional[str] = ...) -> None: ...

class CatalogBackupResponse(_message.Message):
    __slots__ = ("volume", "files_done", "done")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    FILES_DONE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    volume: str
    files_done: int
    done: bool
    def __init__(self, volume: _Optional[str] = ..., files_done: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class RebuildCatalogRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class RebuildCatalogResponse(_message.Message):
    __slots__ = ("backups_done", "backups_total", "files_done", "vm_name", "done", "problems")
    BACKUPS_DONE_FIELD_NUMBER: _ClassVar[int]
    BACKUPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FILES_DONE_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    backups_done: int
    backups_total: int
    files_done: int
    vm_name: str
    done: bool
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, backups_done: _Optional[int] = ..., backups_total: _Optional[int] = ..., files_done: _Optional[int] = ..., vm_name: _Optional[str] = ..., done: _Optional[bool] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ReadFilesRequest(_message.Message):
    __slots__ = ("backup_id", "volume", "paths", "recursive")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    volume: str
    paths: _containers.RepeatedScalarFieldContainer[str]
    recursive: bool
    def __init__(self, backup_id: _Optional[str] = ..., volume: _Optional[str] = ..., paths: _Optional[_Iterable[str]] = ..., recursive: _Optional[bool] = ...) -> None: ...

class ReadFilesResponse(_message.Message):
    __slots__ = ("start", "data", "done")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    start: FileStart
    data: FileData
    done: FilesDone
    def __init__(self, start: _Optional[_Union[FileStart, _Mapping]] = ..., data: _Optional[_Union[FileData, _Mapping]] = ..., done: _Optional[_Union[FilesDone, _Mapping]] = ...) -> None: ...

class FileStart(_message.Message):
    __slots__ = ("file", "path", "link_target", "xattrs", "hard_link_to", "device_major", "device_minor", "problem")
    class XattrsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    FILE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    HARD_LINK_TO_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MAJOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MINOR_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    file: _backup_pb2.BackupFile
    path: bytes
    link_target: bytes
    xattrs: _containers.ScalarMap[str, bytes]
    hard_link_to: bytes
    device_major: int
    device_minor: int
    problem: str
    def __init__(self, file: _Optional[_Union[_backup_pb2.BackupFile, _Mapping]] = ..., path: _Optional[bytes] = ..., link_target: _Optional[bytes] = ..., xattrs: _Optional[_Mapping[str, bytes]] = ..., hard_link_to: _Optional[bytes] = ..., device_major: _Optional[int] = ..., device_minor: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class FileData(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class FilesDone(_message.Message):
    __slots__ = ("file_count", "bytes_read", "problem_count")
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    file_count: int
    bytes_read: int
    problem_count: int
    def __init__(self, file_count: _Optional[int] = ..., bytes_read: _Optional[int] = ..., problem_count: _Optional[int] = ...) -> None: ...

class StartFileRestoreRequest(_message.Message):
    __slots__ = ("backup_id", "volume", "paths", "destination", "vm", "directory", "overwrite", "direct")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    volume: str
    paths: _containers.RepeatedScalarFieldContainer[str]
    destination: FileDestination
    vm: str
    directory: str
    overwrite: bool
    direct: bool
    def __init__(self, backup_id: _Optional[str] = ..., volume: _Optional[str] = ..., paths: _Optional[_Iterable[str]] = ..., destination: _Optional[_Union[FileDestination, str]] = ..., vm: _Optional[str] = ..., directory: _Optional[str] = ..., overwrite: _Optional[bool] = ..., direct: _Optional[bool] = ...) -> None: ...

class StartFileRestoreResponse(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...
