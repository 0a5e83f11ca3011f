from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("image_id", "name", "tenant", "root", "image_bytes", "segmentation", "key_id", "source_state", "committed_at_ns", "figures", "base_image_id", "lock_until_ns", "unit", "unit_absent")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_STATE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BASE_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LOCK_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    UNIT_ABSENT_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    name: str
    tenant: str
    root: bytes
    image_bytes: int
    segmentation: _common_pb2.Segmentation
    key_id: bytes
    source_state: _common_pb2.SourceState
    committed_at_ns: int
    figures: _common_pb2.TransferFigures
    base_image_id: str
    lock_until_ns: int
    unit: str
    unit_absent: bool
    def __init__(self, image_id: _Optional[str] = ..., name: _Optional[str] = ..., tenant: _Optional[str] = ..., root: _Optional[bytes] = ..., image_bytes: _Optional[int] = ..., segmentation: _Optional[_Union[_common_pb2.Segmentation, _Mapping]] = ..., key_id: _Optional[bytes] = ..., source_state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., committed_at_ns: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., base_image_id: _Optional[str] = ..., lock_until_ns: _Optional[int] = ..., unit: _Optional[str] = ..., unit_absent: _Optional[bool] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ("name", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "next_page_token")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    next_page_token: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class ReadRangeRequest(_message.Message):
    __slots__ = ("image_id", "offset", "length")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    offset: int
    length: int
    def __init__(self, image_id: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ReadRangeResponse(_message.Message):
    __slots__ = ("offset", "data", "zero_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ZERO_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    zero_bytes: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., zero_bytes: _Optional[int] = ...) -> None: ...

class SendImageRequest(_message.Message):
    __slots__ = ("image_id", "receiver_address", "transfer_id", "grant", "patience_seconds")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    receiver_address: str
    transfer_id: str
    grant: bytes
    patience_seconds: int
    def __init__(self, image_id: _Optional[str] = ..., receiver_address: _Optional[str] = ..., transfer_id: _Optional[str] = ..., grant: _Optional[bytes] = ..., patience_seconds: _Optional[int] = ...) -> None: ...

class SendImageResponse(_message.Message):
    __slots__ = ("spans_done", "figures", "receipt_id", "root")
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    spans_done: int
    figures: _common_pb2.TransferFigures
    receipt_id: str
    root: bytes
    def __init__(self, spans_done: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., receipt_id: _Optional[str] = ..., root: _Optional[bytes] = ...) -> None: ...

class DeleteImageRequest(_message.Message):
    __slots__ = ("image_id", "missing_ok")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    missing_ok: bool
    def __init__(self, image_id: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupImage(_message.Message):
    __slots__ = ("disk_name", "image_id")
    DISK_NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    disk_name: str
    image_id: str
    def __init__(self, disk_name: _Optional[str] = ..., image_id: _Optional[str] = ...) -> None: ...

class BackupManifest(_message.Message):
    __slots__ = ("backup_id", "tenant", "vm_id", "vm_name", "snapshot_at_ns", "images", "attributes", "lock_until_ns")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AT_NS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LOCK_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    tenant: str
    vm_id: str
    vm_name: str
    snapshot_at_ns: int
    images: _containers.RepeatedCompositeFieldContainer[BackupImage]
    attributes: bytes
    lock_until_ns: int
    def __init__(self, backup_id: _Optional[str] = ..., tenant: _Optional[str] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., snapshot_at_ns: _Optional[int] = ..., images: _Optional[_Iterable[_Union[BackupImage, _Mapping]]] = ..., attributes: _Optional[bytes] = ..., lock_until_ns: _Optional[int] = ...) -> None: ...

class PublishBackupRequest(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: BackupManifest
    def __init__(self, manifest: _Optional[_Union[BackupManifest, _Mapping]] = ...) -> None: ...

class PublishBackupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetBackupManifestRequest(_message.Message):
    __slots__ = ("backup_id",)
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    def __init__(self, backup_id: _Optional[str] = ...) -> None: ...

class GetBackupManifestResponse(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: BackupManifest
    def __init__(self, manifest: _Optional[_Union[BackupManifest, _Mapping]] = ...) -> None: ...

class ListBackupManifestsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBackupManifestsResponse(_message.Message):
    __slots__ = ("manifests", "next_page_token")
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedCompositeFieldContainer[BackupManifest]
    next_page_token: str
    def __init__(self, manifests: _Optional[_Iterable[_Union[BackupManifest, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteBackupManifestRequest(_message.Message):
    __slots__ = ("backup_id", "missing_ok")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_OK_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    missing_ok: bool
    def __init__(self, backup_id: _Optional[str] = ..., missing_ok: _Optional[bool] = ...) -> None: ...

class DeleteBackupManifestResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNamesRequest(_message.Message):
    __slots__ = ("tenant", "folder", "page_size", "page_token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    folder: str
    page_size: int
    page_token: str
    def __init__(self, tenant: _Optional[str] = ..., folder: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Name(_message.Message):
    __slots__ = ("name", "is_folder", "image_id", "size_bytes", "committed_at_ns", "version_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_FOLDER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_folder: bool
    image_id: str
    size_bytes: int
    committed_at_ns: int
    version_count: int
    def __init__(self, name: _Optional[str] = ..., is_folder: _Optional[bool] = ..., image_id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., committed_at_ns: _Optional[int] = ..., version_count: _Optional[int] = ...) -> None: ...

class ListNamesResponse(_message.Message):
    __slots__ = ("names", "next_page_token")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedCompositeFieldContainer[Name]
    next_page_token: str
    def __init__(self, names: _Optional[_Iterable[_Union[Name, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FileHeader(_message.Message):
    __slots__ = ("transfer_id", "tenant", "name", "size_bytes", "segmentation")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    tenant: str
    name: str
    size_bytes: int
    segmentation: _common_pb2.Segmentation
    def __init__(self, transfer_id: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., segmentation: _Optional[_Union[_common_pb2.Segmentation, _Mapping]] = ...) -> None: ...

class FileEnd(_message.Message):
    __slots__ = ("extent_count", "bytes_written")
    EXTENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    extent_count: int
    bytes_written: int
    def __init__(self, extent_count: _Optional[int] = ..., bytes_written: _Optional[int] = ...) -> None: ...

class WriteFileRequest(_message.Message):
    __slots__ = ("header", "piece", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: FileHeader
    piece: FilePiece
    end: FileEnd
    def __init__(self, header: _Optional[_Union[FileHeader, _Mapping]] = ..., piece: _Optional[_Union[FilePiece, _Mapping]] = ..., end: _Optional[_Union[FileEnd, _Mapping]] = ...) -> None: ...

class FilePiece(_message.Message):
    __slots__ = ("offset", "data", "zero_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ZERO_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    zero_bytes: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., zero_bytes: _Optional[int] = ...) -> None: ...

class WriteFileResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class SynthesizeRequest(_message.Message):
    __slots__ = ("header", "piece", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: SynthesizeHeader
    piece: FilePiece
    end: FileEnd
    def __init__(self, header: _Optional[_Union[SynthesizeHeader, _Mapping]] = ..., piece: _Optional[_Union[FilePiece, _Mapping]] = ..., end: _Optional[_Union[FileEnd, _Mapping]] = ...) -> None: ...

class SynthesizeHeader(_message.Message):
    __slots__ = ("file", "base_image_id", "source_state")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BASE_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_STATE_FIELD_NUMBER: _ClassVar[int]
    file: FileHeader
    base_image_id: str
    source_state: _common_pb2.SourceState
    def __init__(self, file: _Optional[_Union[FileHeader, _Mapping]] = ..., base_image_id: _Optional[str] = ..., source_state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ...) -> None: ...

class SynthesizeResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class ComposeImageRequest(_message.Message):
    __slots__ = ("header", "extents", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: FileHeader
    extents: ComposeExtents
    end: FileEnd
    def __init__(self, header: _Optional[_Union[FileHeader, _Mapping]] = ..., extents: _Optional[_Union[ComposeExtents, _Mapping]] = ..., end: _Optional[_Union[FileEnd, _Mapping]] = ...) -> None: ...

class ComposeExtents(_message.Message):
    __slots__ = ("extents",)
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    extents: _containers.RepeatedCompositeFieldContainer[ComposeExtent]
    def __init__(self, extents: _Optional[_Iterable[_Union[ComposeExtent, _Mapping]]] = ...) -> None: ...

class ComposeExtent(_message.Message):
    __slots__ = ("offset", "length", "image_id", "image_offset", "literal")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LITERAL_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    image_id: str
    image_offset: int
    literal: bytes
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., image_id: _Optional[str] = ..., image_offset: _Optional[int] = ..., literal: _Optional[bytes] = ...) -> None: ...

class ComposeImageResponse(_message.Message):
    __slots__ = ("spans_done", "spans_total", "image")
    SPANS_DONE_FIELD_NUMBER: _ClassVar[int]
    SPANS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    spans_done: int
    spans_total: int
    image: Image
    def __init__(self, spans_done: _Optional[int] = ..., spans_total: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class DiffImagesRequest(_message.Message):
    __slots__ = ("from_image_id", "to_image_id")
    FROM_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TO_IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    from_image_id: str
    to_image_id: str
    def __init__(self, from_image_id: _Optional[str] = ..., to_image_id: _Optional[str] = ...) -> None: ...

class DiffImagesResponse(_message.Message):
    __slots__ = ("offsets", "lengths")
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    offsets: bytes
    lengths: bytes
    def __init__(self, offsets: _Optional[bytes] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class LockImageRequest(_message.Message):
    __slots__ = ("image_id", "backup_id", "until_ns")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    backup_id: str
    until_ns: int
    def __init__(self, image_id: _Optional[str] = ..., backup_id: _Optional[str] = ..., until_ns: _Optional[int] = ...) -> None: ...

class LockImageResponse(_message.Message):
    __slots__ = ("lock_until_ns",)
    LOCK_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    lock_until_ns: int
    def __init__(self, lock_until_ns: _Optional[int] = ...) -> None: ...

class VerifyImageRequest(_message.Message):
    __slots__ = ("image_id", "max_age_seconds")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    max_age_seconds: int
    def __init__(self, image_id: _Optional[str] = ..., max_age_seconds: _Optional[int] = ...) -> None: ...

class VerifyImageResponse(_message.Message):
    __slots__ = ("containers_done", "containers_total", "done", "whole", "damaged_span_count", "damaged_spans", "oldest_check_at_ns", "bytes_read")
    CONTAINERS_DONE_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_SPAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_SPANS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_CHECK_AT_NS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    containers_done: int
    containers_total: int
    done: bool
    whole: bool
    damaged_span_count: int
    damaged_spans: _containers.RepeatedScalarFieldContainer[int]
    oldest_check_at_ns: int
    bytes_read: int
    def __init__(self, containers_done: _Optional[int] = ..., containers_total: _Optional[int] = ..., done: _Optional[bool] = ..., whole: _Optional[bool] = ..., damaged_span_count: _Optional[int] = ..., damaged_spans: _Optional[_Iterable[int]] = ..., oldest_check_at_ns: _Optional[int] = ..., bytes_read: _Optional[int] = ...) -> None: ...

class PreviewDeleteRequest(_message.Message):
    __slots__ = ("image_ids", "tenant", "vm_id")
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    tenant: str
    vm_id: str
    def __init__(self, image_ids: _Optional[_Iterable[str]] = ..., tenant: _Optional[str] = ..., vm_id: _Optional[str] = ...) -> None: ...

class PreviewDeleteResponse(_message.Message):
    __slots__ = ("image_count", "unique_plain_bytes", "unique_stored_bytes")
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    image_count: int
    unique_plain_bytes: int
    unique_stored_bytes: int
    def __init__(self, image_count: _Optional[int] = ..., unique_plain_bytes: _Optional[int] = ..., unique_stored_bytes: _Optional[int] = ...) -> None: ...
