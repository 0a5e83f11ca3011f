from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SegmentationPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENTATION_POLICY_UNSPECIFIED: _ClassVar[SegmentationPolicy]
    SEGMENTATION_POLICY_CONTENT_DEFINED: _ClassVar[SegmentationPolicy]
    SEGMENTATION_POLICY_FIXED: _ClassVar[SegmentationPolicy]
SEGMENTATION_POLICY_UNSPECIFIED: SegmentationPolicy
SEGMENTATION_POLICY_CONTENT_DEFINED: SegmentationPolicy
SEGMENTATION_POLICY_FIXED: SegmentationPolicy

class Segmentation(_message.Message):
    __slots__ = ("policy", "segment_bytes_min", "segment_bytes_average", "segment_bytes_max", "span_bytes")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_MIN_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    SPAN_BYTES_FIELD_NUMBER: _ClassVar[int]
    policy: SegmentationPolicy
    segment_bytes_min: int
    segment_bytes_average: int
    segment_bytes_max: int
    span_bytes: int
    def __init__(self, policy: _Optional[_Union[SegmentationPolicy, str]] = ..., segment_bytes_min: _Optional[int] = ..., segment_bytes_average: _Optional[int] = ..., segment_bytes_max: _Optional[int] = ..., span_bytes: _Optional[int] = ...) -> None: ...

class SourceState(_message.Message):
    __slots__ = ("pool_id", "lineage_id", "birth")
    POOL_ID_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_ID_FIELD_NUMBER: _ClassVar[int]
    BIRTH_FIELD_NUMBER: _ClassVar[int]
    pool_id: str
    lineage_id: str
    birth: int
    def __init__(self, pool_id: _Optional[str] = ..., lineage_id: _Optional[str] = ..., birth: _Optional[int] = ...) -> None: ...

class TransferFigures(_message.Message):
    __slots__ = ("spans_total", "spans_read", "spans_sampled", "spans_hole", "bytes_read", "segments_offered", "bytes_offered", "segments_sent", "bytes_sent", "bytes_sent_wire", "bytes_stored", "spans_resumed", "attempts", "duration_ns")
    SPANS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SPANS_READ_FIELD_NUMBER: _ClassVar[int]
    SPANS_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    SPANS_HOLE_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_OFFERED_FIELD_NUMBER: _ClassVar[int]
    BYTES_OFFERED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_WIRE_FIELD_NUMBER: _ClassVar[int]
    BYTES_STORED_FIELD_NUMBER: _ClassVar[int]
    SPANS_RESUMED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    spans_total: int
    spans_read: int
    spans_sampled: int
    spans_hole: int
    bytes_read: int
    segments_offered: int
    bytes_offered: int
    segments_sent: int
    bytes_sent: int
    bytes_sent_wire: int
    bytes_stored: int
    spans_resumed: int
    attempts: int
    duration_ns: int
    def __init__(self, spans_total: _Optional[int] = ..., spans_read: _Optional[int] = ..., spans_sampled: _Optional[int] = ..., spans_hole: _Optional[int] = ..., bytes_read: _Optional[int] = ..., segments_offered: _Optional[int] = ..., bytes_offered: _Optional[int] = ..., segments_sent: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_sent_wire: _Optional[int] = ..., bytes_stored: _Optional[int] = ..., spans_resumed: _Optional[int] = ..., attempts: _Optional[int] = ..., duration_ns: _Optional[int] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "subject", "next_step", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    subject: str
    next_step: str
    fields: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., subject: _Optional[str] = ..., next_step: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...
