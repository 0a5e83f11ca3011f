"""Structured logs: constant snake_case facts, the rest in fields with units.

INFO: the state changed. WARNING: it heals itself. ERROR: it needs a person.
Owns: how a line looks. Lines go to one stream, stderr unless told otherwise.
Callers: ``configure`` once, by a composition root; loggers from any thread.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import InvalidRequest

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("json", "console")


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose lines say ``component=name``; it follows later calls of ``configure``."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=name))


def configure(
    level: str = "info",
    format: str = "json",
    stream: TextIO | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Set level, format and stream for the whole process. Raises InvalidRequest.

    What libraries log by the standard module (gRPC does) comes out in the same form, from
    WARNING up.
    """
    if level not in LEVELS:
        raise InvalidRequest(f"{level!r} is not a log level", next_step=f"use one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise InvalidRequest(f"{format!r} is not a log format", next_step=f"use one of {', '.join(FORMATS)}")
    out = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _timestamper(clock),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor
    if format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    else:
        colors = out.isatty()
        renderer = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time")
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _route_libraries(shared, renderer, out)


def _timestamper(clock: Clock) -> Processor:
    def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        seconds, nanoseconds = divmod(clock.wall_ns(), 1_000_000_000)
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        event["time"] = f"{moment}.{nanoseconds // 1000:06d}Z"
        return event

    return stamp


def _route_libraries(shared: list[Processor], renderer: Processor, stream: TextIO) -> None:
    def name_it(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event["_record"]
        # The event stays constant; what the library said goes into a field.
        event["text"], event["event"] = event["event"], "library_message"
        event["component"] = record.name
        return event

    handler = logging.StreamHandler(stream)
    remove: Any = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:-1], name_it], processors=[shared[-1], remove, renderer]
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, "_arraylift", False)]:
        root.removeHandler(old)
    handler._arraylift = True  # type: ignore[attr-defined]  # marks ours among handlers of others
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
