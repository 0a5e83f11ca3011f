from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("image_count", "logical_bytes", "segment_count", "container_count", "container_bytes", "plain_bytes", "free_bytes", "open_transfer_count", "quarantined_count")
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_TRANSFER_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    image_count: int
    logical_bytes: int
    segment_count: int
    container_count: int
    container_bytes: int
    plain_bytes: int
    free_bytes: int
    open_transfer_count: int
    quarantined_count: int
    def __init__(self, image_count: _Optional[int] = ..., logical_bytes: _Optional[int] = ..., segment_count: _Optional[int] = ..., container_count: _Optional[int] = ..., container_bytes: _Optional[int] = ..., plain_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., open_transfer_count: _Optional[int] = ..., quarantined_count: _Optional[int] = ...) -> None: ...
