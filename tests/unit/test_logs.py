"""Lines: their form, their time, what is bound, what libraries say."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from arraylift import errors, logs


class Noon:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    logs.configure()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_event_level_time_component_and_fields() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream, clock=Noon())
    logs.get_logger("pool").info("container_sealed", segments=7, path=io)
    (line,) = lines(stream)
    assert line.pop("path").startswith("<module")
    assert line == {
        "event": "container_sealed",
        "level": "info",
        "time": "2023-11-14T22:13:20.123456Z",
        "component": "pool",
        "segments": 7,
    }


def test_a_logger_made_before_configure_follows_it() -> None:
    logger = logs.get_logger("early")
    stream = io.StringIO()
    logs.configure("warning", "json", stream)
    logger.info("unseen")
    logger.warning("seen")
    assert [line["event"] for line in lines(stream)] == ["seen"]


def test_bound_context_is_on_every_line() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    structlog.contextvars.bind_contextvars(rpc="/S/M", peer="array/a1")
    logs.get_logger("x").info("it_happened")
    assert {"rpc": "/S/M", "peer": "array/a1"}.items() <= lines(stream)[0].items()


def test_a_traceback_stays_on_one_json_line() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    try:
        raise KeyError("k")
    except KeyError as error:
        logs.get_logger("x").error("it_failed", exc_info=error)
    assert "KeyError" in lines(stream)[0]["exception"]


def test_libraries_come_out_in_the_same_form_once() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", io.StringIO())
    logs.configure("info", "json", stream)
    logging.getLogger("grpc._server").warning("the %s broke", "wire")
    logging.getLogger("grpc._server").info("chatter")
    (line,) = lines(stream)
    assert (line["event"], line["text"], line["component"], line["level"]) == (
        "library_message",
        "the wire broke",
        "grpc._server",
        "warning",
    )


def test_the_console_form_is_plain_where_it_is_no_terminal() -> None:
    stream = io.StringIO()
    logs.configure("info", "console", stream, clock=Noon())
    logs.get_logger("x").info("it_happened", count=3)
    text = stream.getvalue()
    assert text.startswith("2023-11-14T22:13:20.123456Z [info")
    assert "count=3" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("level", "form"), [("loud", "json"), ("info", "xml")])
def test_unknown_levels_and_formats_are_refused(level: str, form: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        logs.configure(level, form)
    assert "use one of" in caught.value.next_step
