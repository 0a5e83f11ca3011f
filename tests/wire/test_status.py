"""The whole status table, over a real connection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arraylift import errors
from arraylift.errors import ArrayliftError
from arraylift.rpc import status
from arraylift.rpc.channel import call, stream
from arraylift.v1 import image_pb2, image_pb2_grpc
from tests.wire.stage import PEER, Script, raiser


def error_classes() -> list[type[ArrayliftError]]:
    return [ArrayliftError, *(found for found in vars(errors).values() if _is_error_class(found))]


def _is_error_class(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, ArrayliftError) and found is not ArrayliftError


def text(bytes_max: int) -> st.SearchStrategy[str]:
    usable = st.text(st.characters(exclude_categories=["Cs"]), max_size=bytes_max)
    return usable.filter(lambda value: len(value.encode()) <= bytes_max)


def _made(
    error_class: type[ArrayliftError], message: str, subject: str, next_step: str, fields: dict[str, str]
) -> ArrayliftError:
    error = error_class(message, subject=subject, next_step=next_step)
    error.fields = fields
    return error


ERRORS = st.builds(
    _made,
    st.sampled_from(error_classes()),
    text(status.MESSAGE_BYTES_MAX),
    text(status.TEXT_BYTES_MAX),
    text(status.TEXT_BYTES_MAX),
    st.dictionaries(
        text(status.FIELD_NAME_BYTES_MAX), text(status.FIELD_BYTES_MAX), max_size=status.FIELD_COUNT_MAX
    ),
)


def failed_call(channel: grpc.Channel) -> ArrayliftError:
    stub = image_pb2_grpc.ImageServiceStub(channel)
    with pytest.raises(ArrayliftError) as caught:
        call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER)
    return caught.value


def test_every_error_class_has_a_row_of_its_own() -> None:
    rows = list(status.walk_reasons())
    assert {row[1] for row in rows} == set(error_classes())
    assert len({row[0] for row in rows}) == len(rows)


def test_the_documented_table_is_the_real_one() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/protocols/errors.md"
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    real = {(reason, error_class.__name__, code.name) for reason, error_class, code in status.walk_reasons()}
    assert set(rows) == real


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(error=ERRORS)
def test_an_error_survives_the_wire(operator: grpc.Channel, script: Script, error: ArrayliftError) -> None:
    script.behaviors["GetImage"] = raiser(error)
    rebuilt = failed_call(operator)
    assert type(rebuilt) is type(error)
    assert (rebuilt.message, rebuilt.subject, rebuilt.next_step) == (
        error.message,
        error.subject,
        error.next_step,
    )
    assert rebuilt.fields == error.fields


@pytest.mark.parametrize("error_class", error_classes())
def test_the_code_is_the_tables(
    operator: grpc.Channel, script: Script, error_class: type[ArrayliftError]
) -> None:
    script.behaviors["GetImage"] = raiser(error_class("no"))
    stub = image_pb2_grpc.ImageServiceStub(operator)
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetImage(image_pb2.GetImageRequest(), timeout=10)
    assert caught.value.code() is status.code_of(error_class("no"))


def test_a_huge_error_is_cut_and_keeps_its_class(operator: grpc.Channel, script: Script) -> None:
    fields = {f"field{number}" + "ü" * 100: "€" * 5000 for number in range(50)}
    error = errors.Corruption("€" * 9000, subject="ü" * 9000, next_step="x" * 9000, **fields)
    script.behaviors["GetImage"] = raiser(error)
    rebuilt = failed_call(operator)
    assert type(rebuilt) is errors.Corruption
    assert error.message.startswith(rebuilt.message)
    assert rebuilt.message
    assert len(rebuilt.fields) == status.FIELD_COUNT_MAX


def test_lone_surrogates_do_not_break_an_error(operator: grpc.Channel, script: Script) -> None:
    script.behaviors["GetImage"] = raiser(errors.NotFound("no file \udcff", subject="\udcff", name="\ud800"))
    rebuilt = failed_call(operator)
    assert type(rebuilt) is errors.NotFound
    assert rebuilt.subject == "\\udcff"


def test_a_crash_says_nothing_of_itself(operator: grpc.Channel, script: Script) -> None:
    script.behaviors["GetImage"] = raiser(KeyError("the secret"))
    rebuilt = failed_call(operator)
    assert type(rebuilt) is ArrayliftError
    assert "secret" not in str(rebuilt)
    assert "KeyError" not in str(rebuilt)


def test_an_error_in_mid_stream_comes_after_what_was_sent(operator: grpc.Channel, script: Script) -> None:
    def behavior(_request: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
        yield image_pb2.ReadRangeResponse(offset=1)
        yield image_pb2.ReadRangeResponse(offset=2)
        raise errors.Corruption("segment 3 is damaged", subject="image i", segment=3)

    script.behaviors["ReadRange"] = behavior
    stub = image_pb2_grpc.ImageServiceStub(operator)
    responses = stream(stub.ReadRange, image_pb2.ReadRangeRequest(), peer=PEER, timeout_seconds=10)
    assert [next(responses).offset, next(responses).offset] == [1, 2]
    with pytest.raises(errors.Corruption) as caught:
        next(responses)
    assert caught.value.fields == {"segment": "3"}


def test_a_reason_of_the_future_falls_back_on_the_code(operator: grpc.Channel, script: Script) -> None:
    class Novel(errors.NotFound):
        reason = "novel"

    script.behaviors["GetImage"] = raiser(Novel("no", subject="it", hint="h"))
    rebuilt = failed_call(operator)
    assert type(rebuilt) is errors.NotFound
    assert (rebuilt.subject, rebuilt.fields) == ("it", {"hint": "h"})


class FailedByTransport(grpc.RpcError, grpc.Call):
    """A call that ended without reaching a handler of ours."""

    def __init__(self, code: grpc.StatusCode, trailer: tuple[tuple[str, bytes], ...]) -> None:
        self._code = code
        self._trailer = trailer

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "as it was"

    def trailing_metadata(self) -> Any:
        return self._trailer

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.PeerUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.WrongState),
        (grpc.StatusCode.UNAUTHENTICATED, errors.NotPermitted),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.INTERNAL, ArrayliftError),
        (grpc.StatusCode.UNKNOWN, ArrayliftError),
    ],
)
@pytest.mark.parametrize("trailer", [(), ((status.DETAIL_KEY, b"\xff\xff"),)])
def test_without_a_readable_detail_the_code_speaks(
    code: grpc.StatusCode, error_class: type[ArrayliftError], trailer: tuple[tuple[str, bytes], ...]
) -> None:
    error = status.from_rpc_error(FailedByTransport(code, trailer), "array 10.0.0.1:7403")
    assert type(error) is error_class
    assert "array 10.0.0.1:7403" in error.message
    assert "as it was" in error.message
