from arraylift.v1 import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExchangeRequest(_message.Message):
    __slots__ = ("open", "offer", "segments", "commit")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    open: Open
    offer: Offer
    segments: Segments
    commit: Commit
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., segments: _Optional[_Union[Segments, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class ExchangeReply(_message.Message):
    __slots__ = ("opened", "missing", "durable", "committed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    missing: Missing
    durable: Durable
    committed: Committed
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "transfer_id", "grant", "attempt", "lane", "image_bytes", "segmentation", "source_state", "key", "root")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_STATE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    transfer_id: str
    grant: bytes
    attempt: int
    lane: int
    image_bytes: int
    segmentation: _common_pb2.Segmentation
    source_state: _common_pb2.SourceState
    key: bytes
    root: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., transfer_id: _Optional[str] = ..., grant: _Optional[bytes] = ..., attempt: _Optional[int] = ..., lane: _Optional[int] = ..., image_bytes: _Optional[int] = ..., segmentation: _Optional[_Union[_common_pb2.Segmentation, _Mapping]] = ..., source_state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., key: _Optional[bytes] = ..., root: _Optional[bytes] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("window_batches", "spans_per_offer_max", "undurable_bytes_max", "lanes_max")
    WINDOW_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SPANS_PER_OFFER_MAX_FIELD_NUMBER: _ClassVar[int]
    UNDURABLE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    LANES_MAX_FIELD_NUMBER: _ClassVar[int]
    window_batches: int
    spans_per_offer_max: int
    undurable_bytes_max: int
    lanes_max: int
    def __init__(self, window_batches: _Optional[int] = ..., spans_per_offer_max: _Optional[int] = ..., undurable_bytes_max: _Optional[int] = ..., lanes_max: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("attempt", "limits", "tenant", "key", "key_id", "lease_seconds", "base_root", "base_image_bytes", "base_segmentation", "base_state", "durable_spans", "committed")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BASE_ROOT_FIELD_NUMBER: _ClassVar[int]
    BASE_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    BASE_STATE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_SPANS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    limits: Limits
    tenant: str
    key: bytes
    key_id: bytes
    lease_seconds: int
    base_root: bytes
    base_image_bytes: int
    base_segmentation: _common_pb2.Segmentation
    base_state: _common_pb2.SourceState
    durable_spans: bytes
    committed: Committed
    def __init__(self, attempt: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., tenant: _Optional[str] = ..., key: _Optional[bytes] = ..., key_id: _Optional[bytes] = ..., lease_seconds: _Optional[int] = ..., base_root: _Optional[bytes] = ..., base_image_bytes: _Optional[int] = ..., base_segmentation: _Optional[_Union[_common_pb2.Segmentation, _Mapping]] = ..., base_state: _Optional[_Union[_common_pb2.SourceState, _Mapping]] = ..., durable_spans: _Optional[bytes] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("batch", "sample", "spans", "segment_counts", "fingerprints", "lengths", "hole_runs")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    HOLE_RUNS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    sample: bool
    spans: bytes
    segment_counts: bytes
    fingerprints: bytes
    lengths: bytes
    hole_runs: bytes
    def __init__(self, batch: _Optional[int] = ..., sample: _Optional[bool] = ..., spans: _Optional[bytes] = ..., segment_counts: _Optional[bytes] = ..., fingerprints: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., hole_runs: _Optional[bytes] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("batch", "bitmap", "mismatched_spans")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    BITMAP_FIELD_NUMBER: _ClassVar[int]
    MISMATCHED_SPANS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    bitmap: bytes
    mismatched_spans: bytes
    def __init__(self, batch: _Optional[int] = ..., bitmap: _Optional[bytes] = ..., mismatched_spans: _Optional[bytes] = ...) -> None: ...

class Segments(_message.Message):
    __slots__ = ("batch", "codecs", "stored_lengths", "payload")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    STORED_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    batch: int
    codecs: bytes
    stored_lengths: bytes
    payload: bytes
    def __init__(self, batch: _Optional[int] = ..., codecs: _Optional[bytes] = ..., stored_lengths: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("batch", "bytes_stored")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    BYTES_STORED_FIELD_NUMBER: _ClassVar[int]
    batch: int
    bytes_stored: int
    def __init__(self, batch: _Optional[int] = ..., bytes_stored: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("inherit_base", "figures")
    INHERIT_BASE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    inherit_base: bool
    figures: _common_pb2.TransferFigures
    def __init__(self, inherit_base: _Optional[bool] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("root", "image_id", "figures")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    image_id: str
    figures: _common_pb2.TransferFigures
    def __init__(self, root: _Optional[bytes] = ..., image_id: _Optional[str] = ..., figures: _Optional[_Union[_common_pb2.TransferFigures, _Mapping]] = ...) -> None: ...
