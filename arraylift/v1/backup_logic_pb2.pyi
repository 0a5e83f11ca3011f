from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_SOURCE_UNSPECIFIED: _ClassVar[ChangeSource]
    CHANGE_SOURCE_BIRTHS: _ClassVar[ChangeSource]
    CHANGE_SOURCE_FULL_READ: _ClassVar[ChangeSource]
    CHANGE_SOURCE_DIFF: _ClassVar[ChangeSource]
    CHANGE_SOURCE_SUPPLIED: _ClassVar[ChangeSource]
    CHANGE_SOURCE_BITMAP: _ClassVar[ChangeSource]
CHANGE_SOURCE_UNSPECIFIED: ChangeSource
CHANGE_SOURCE_BIRTHS: ChangeSource
CHANGE_SOURCE_FULL_READ: ChangeSource
CHANGE_SOURCE_DIFF: ChangeSource
CHANGE_SOURCE_SUPPLIED: ChangeSource
CHANGE_SOURCE_BITMAP: ChangeSource

class SendSnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id", "target_address", "transfer_id", "grant", "change_source", "patience_seconds", "diff_base_snapshot_id", "supplied", "bytes_per_second_max")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DIFF_BASE_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SUPPLIED_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    target_address: str
    transfer_id: str
    grant: bytes
    change_source: ChangeSource
    patience_seconds: int
    diff_base_snapshot_id: str
    supplied: SuppliedChanges
    bytes_per_second_max: int
    def __init__(self, snapshot_id: _Optional[str] = ..., target_address: _Optional[str] = ..., transfer_id: _Optional[str] = ..., grant: _Optional[bytes] = ..., change_source: _Optional[_Union[ChangeSource, str]] = ..., patience_seconds: _Optional[int] = ..., diff_base_snapshot_id: _Optional[str] = ..., supplied: _Optional[_Union[SuppliedChanges, _Mapping]] = ..., bytes_per_second_max: _Optional[int] = ...) -> None: ...

class SuppliedChanges(_message.Message):
    __slots__ = ("since", "offsets", "lengths")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    since: _common_pb2.SourceState
    offsets: bytes
    lengths: bytes
    def __init__(self, since: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., offsets: _Optional[bytes] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class SendSnapshotResponse(_message.Message):
    __slots__ = ("spans_done", "figures", "receipt_id", "root", "change_source")
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    spans_done: int
    figures: _common_pb2.TransferFigures
    receipt_id: str
    root: bytes
    change_source: ChangeSource
    def __init__(self, spans_done: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., receipt_id: _Optional[str] = ..., root: _Optional[bytes] = ..., change_source: _Optional[_Union[ChangeSource, str]] = ...) -> None: ...

class SendForeignDiskRequest(_message.Message):
    __slots__ = ("uri", "target_address", "transfer_id", "grant", "state", "bitmap", "patience_seconds", "bytes_per_second_max", "credentials")
    URI_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BITMAP_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    target_address: str
    transfer_id: str
    grant: bytes
    state: _common_pb2.SourceState
    bitmap: DirtyBitmap
    patience_seconds: int
    bytes_per_second_max: int
    credentials: NbdCredentials
    def __init__(self, uri: _Optional[str] = ..., target_address: _Optional[str] = ..., transfer_id: _Optional[str] = ..., grant: _Optional[bytes] = ..., state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., bitmap: _Optional[_Union[DirtyBitmap, _Mapping]] = ..., patience_seconds: _Optional[int] = ..., bytes_per_second_max: _Optional[int] = ..., credentials: _Optional[_Union[NbdCredentials, _Mapping]] = ...) -> None: ...

class DirtyBitmap(_message.Message):
    __slots__ = ("name", "since")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    since: _common_pb2.SourceState
    def __init__(self, name: _Optional[str] = ..., since: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ...) -> None: ...

class NbdCredentials(_message.Message):
    __slots__ = ("ca_pem", "certificate_pem", "key_pem")
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    KEY_PEM_FIELD_NUMBER: _ClassVar[int]
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    def __init__(self, ca_pem: _Optional[bytes] = ..., certificate_pem: _Optional[bytes] = ..., key_pem: _Optional[bytes] = ...) -> None: ...

class SendForeignDiskResponse(_message.Message):
    __slots__ = ("spans_done", "figures", "receipt_id", "root", "change_source")
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    spans_done: int
    figures: _common_pb2.TransferFigures
    receipt_id: str
    root: bytes
    change_source: ChangeSource
    def __init__(self, spans_done: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., receipt_id: _Optional[str] = ..., root: _Optional[bytes] = ..., change_source: _Optional[_Union[ChangeSource, str]] = ...) -> None: ...

class DiffSnapshotsRequest(_message.Message):
    __slots__ = ("snapshot_id", "base_snapshot_id")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    base_snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ..., base_snapshot_id: _Optional[str] = ...) -> None: ...

class DiffSnapshotsResponse(_message.Message):
    __slots__ = ("offsets", "lengths")
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    offsets: bytes
    lengths: bytes
    def __init__(self, offsets: _Optional[bytes] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class CancelTransferRequest(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class CancelTransferResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTransfersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTransfersResponse(_message.Message):
    __slots__ = ("transfers",)
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    def __init__(self, transfers: _Optional[_Iterable[_Union[Transfer, _Mapping]]] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("transfer_id", "source", "target_address", "spans_done", "figures", "bytes_per_second_max")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    source: str
    target_address: str
    spans_done: int
    figures: _common_pb2.TransferFigures
    bytes_per_second_max: int
    def __init__(self, transfer_id: _Optional[str] = ..., source: _Optional[str] = ..., target_address: _Optional[str] = ..., spans_done: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., bytes_per_second_max: _Optional[int] = ...) -> None: ...

class SetTransferRateRequest(_message.Message):
    __slots__ = ("transfer_id", "bytes_per_second_max")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_MAX_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    bytes_per_second_max: int
    def __init__(self, transfer_id: _Optional[str] = ..., bytes_per_second_max: _Optional[int] = ...) -> None: ...

class SetTransferRateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
