"""Frozen values to and from JSON: how jobs and backups lie in the database.

Invariants:
  J1 ``load(type, dump(value)) == value`` for values of ``model`` and ``job_rules``.
  J2 a document that lacks a field, has one too many or one of another type raises Corruption; one
     that lacks a field with a default was written before there was that field. A field with LATER
     is left out at its default: it came after version 1.
A field's type is str, int, bool, bytes, an enum, another dataclass, Figures, tuple[X, ...],
dict[str, str], Tags, or one of these ``| None``. Bytes are hex; enums are their numbers or strings;
tags are an object.
Callers: any thread. Format: docs/formats/server-db-v3.md
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Any, NewType, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from arraylift.errors import Corruption
from arraylift.vm.types import LATER, Tags

T = TypeVar("T")


def dump(value: object) -> str:
    """Return the value as JSON."""
    return json.dumps(_to_plain(type(value), value), separators=(",", ":"), ensure_ascii=False)


def load(kind: type[T], text: str, *, what: str) -> T:
    """Return the value again. Raises Corruption naming ``what`` (J2)."""
    try:
        value: T = _reader(cast("Any", kind))(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corruption(
            f"{what} in the database makes no sense: {error}",
            subject=what,
            next_step="restore the database from a copy; backups are read again from their targets",
        ) from error
    return value


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _bare(kind: Any) -> Any:
    """The type without ``| None`` and without the names that ids have."""
    if get_origin(kind) in {UnionType, Union}:
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    return kind.__supertype__ if isinstance(kind, NewType) else kind


def _to_plain(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    kind = _bare(kind)
    if kind == Tags:
        return dict(value)
    if get_origin(kind) is tuple:
        return [_to_plain(get_args(kind)[0], item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        hints = _hints(kind)
        return {
            one.name: _to_plain(hints[one.name], getattr(value, one.name))
            for one in dataclasses.fields(value)
            if not (one.metadata.get(LATER) and getattr(value, one.name) == one.default)
        }
    assert isinstance(value, str | int | bool | dict), f"{type(value)} is no part of a document"
    return value


Reader = Callable[[Any], Any]


@cache
def _reader(kind: Any) -> Reader:
    """What makes a value of that type out of JSON: found once, for documents come by thousands."""
    if NoneType in get_args(kind):
        inner = _reader(_bare(kind))
        return lambda plain: None if plain is None else inner(plain)
    kind = _bare(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind == Tags:
        return lambda plain: tuple(
            sorted((_of(str, key), _of(str, tag)) for key, tag in _of(dict, plain).items())
        )
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda plain: tuple([item(one) for one in _of(list, plain)])
    if origin is dict:
        value = _reader(arguments[1])
        return lambda plain: {name: value(one) for name, one in _of(dict, plain).items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _object_reader(kind)
    if kind is bytes:
        return lambda plain: bytes.fromhex(_of(str, plain))
    if issubclass(kind, enum.Enum):
        return cast("Reader", kind)
    return lambda plain: plain if type(plain) is kind else _of(kind, plain)


def _object_reader(kind: Any) -> Reader:
    hints = _hints(kind)
    readers = {one.name: _reader(hints[one.name]) for one in dataclasses.fields(kind)}
    needed = {one.name for one in dataclasses.fields(kind) if not _has_default(one)}

    def read(plain: Any) -> Any:
        if not needed <= _of(dict, plain).keys() <= readers.keys():  # J2
            raise ValueError(f"{kind} has the fields {sorted(readers)}, not {sorted(plain)}")
        return kind(**{name: readers[name](value) for name, value in plain.items()})

    return read


def _has_default(one: dataclasses.Field[Any]) -> bool:
    return one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING


def _of(kind: type[T], plain: Any) -> T:
    # bool is an int in Python, and never in a document.
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise TypeError(f"{kind.__name__} expected, {plain!r:.80} found")
    return plain
