from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("image_id", "name", "tenant", "root", "image_bytes", "segmentation", "key_id", "source_state", "committed_at_ns", "figures", "base_image_id")
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
    def __init__(self, image_id: _Optional[str] = ..., name: _Optional[str] = ..., tenant: _Optional[str] = ..., root: _Optional[bytes] = ..., image_bytes: _Optional[int] = ..., segmentation: _Optional[_Union[_common_pb2.Segmentation, _Mapping]] = ..., key_id: _Optional[bytes] = ..., source_state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., committed_at_ns: _Optional[int] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ..., base_image_id: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("image_id", "receiver_address", "transfer_id", "grant")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    receiver_address: str
    transfer_id: str
    grant: bytes
    def __init__(self, image_id: _Optional[str] = ..., receiver_address: _Optional[str] = ..., transfer_id: _Optional[str] = ..., grant: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("backup_id", "tenant", "vm_id", "vm_name", "snapshot_at_ns", "images", "attributes")
    BACKUP_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AT_NS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    backup_id: str
    tenant: str
    vm_id: str
    vm_name: str
    snapshot_at_ns: int
    images: _containers.RepeatedCompositeFieldContainer[BackupImage]
    attributes: bytes
    def __init__(self, backup_id: _Optional[str] = ..., tenant: _Optional[str] = ..., vm_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., snapshot_at_ns: _Optional[int] = ..., images: _Optional[_Iterable[_Union[BackupImage, _Mapping]]] = ..., attributes: _Optional[bytes] = ...) -> None: ...

class PublishBackupRequest(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: BackupManifest
    def __init__(self, manifest: _Optional[_Union[BackupManifest, _Mapping]] = ...) -> None: ...

class PublishBackupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

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
