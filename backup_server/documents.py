"""Frozen values to and from JSON: how jobs and backups lie in the database.

Invariants:
  J1 ``load(type, dump(value)) == value`` for values of ``model`` and ``job_rules``.
  J2 a document that lacks a field, has one too many or one of another type raises Corruption.
A field's type is str, int, bool, bytes, an enum, another dataclass, Figures, tuple[X, ...],
dict[str, str], or one of these ``| None``. Bytes are hex; enums are their numbers or strings.
Callers: any thread. Format: docs/formats/server-db-v1.md
"""

from __future__ import annotations

import dataclasses
import enum
import json
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from arraylift.errors import Corruption

T = TypeVar("T")


def dump(value: object) -> str:
    """Return the value as JSON."""
    return json.dumps(_to_plain(value), separators=(",", ":"), ensure_ascii=False)


def load(kind: type[T], text: str, *, what: str) -> T:
    """Return the value again. Raises Corruption naming ``what`` (J2)."""
    try:
        value: T = _from_plain(kind, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corruption(
            f"{what} in the database makes no sense: {error}",
            subject=what,
            next_step="restore the database from a copy; backups are read again from their targets",
        ) from error
    return value


def _to_plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _to_plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _to_plain(item) for name, item in value.items()}
    assert value is None or isinstance(value, str | int | bool), f"{type(value)} is no part of a document"
    return value


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _from_plain(kind: Any, plain: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {UnionType, Union}:
        if plain is None and NoneType in arguments:
            return None
        (kind,) = (one for one in arguments if one is not NoneType)
        return _from_plain(kind, plain)
    if origin is tuple:
        return tuple(_from_plain(arguments[0], item) for item in _of(list, plain))
    if origin is dict:
        return {name: _from_plain(arguments[1], item) for name, item in _of(dict, plain).items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        make: Any = kind
        hints = _hints(kind)
        if _of(dict, plain).keys() != hints.keys():
            raise ValueError(f"{kind} has the fields {sorted(hints)}, not {sorted(plain)}")
        return make(**{name: _from_plain(hints[name], plain[name]) for name in hints})
    if kind is bytes:
        return bytes.fromhex(_of(str, plain))
    if issubclass(kind, enum.Enum):
        return kind(plain)
    return _of(kind, plain)


def _of(kind: type[T], plain: Any) -> T:
    # bool is an int in Python, and never in a document.
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise TypeError(f"{kind.__name__} expected, {plain!r:.80} found")
    return plain
