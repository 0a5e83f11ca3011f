"""Settings of a process: defaults, then a TOML file, then the environment.

Owns: the only access to the environment.
Invariants:
  C1 a setting is a field of a frozen dataclass; what no field names is refused, with the
     nearest name that exists.
  C2 a value of the wrong type never gets in: the error says where it stands, its key, and what
     was expected.
  C3 ``load(render(settings)) == settings``, so ``--print-config`` writes a valid file.
A field's type is str, int, float, bool, Path, tuple[str, ...], or one of these ``| None`` (None:
not set; in the environment, the empty string). Fields that end in ``_bytes`` also take sizes:
``"64K"``, ``"10GiB"``. A Path that begins with ``~/`` is below the home directory.
``metadata={"doc": "..."}`` becomes the comment above the key.
Callers: composition roots, once, before any thread.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from arraylift.errors import InvalidRequest, NotFound, NotPermitted
from arraylift.sizes import parse_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENVIRONMENT_PREFIX = "ARRAYLIFT_"
FAILPOINTS_VARIABLE = "ARRAYLIFT_FAILPOINTS"

_TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    tuple: "a list of strings",
}
_BOOLS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}

Settings = TypeVar("Settings", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """What one setting takes."""

    name: str
    kind: type
    optional: bool
    doc: str

    @property
    def is_size(self) -> bool:
        return self.kind is int and self.name.endswith("_bytes")

    def expected(self) -> str:
        return "a size, e.g. 64K or 10GiB" if self.is_size else _TYPE_NAMES[self.kind]


def load(
    cls: type[Settings],
    file: Path | None = None,
    section: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings of ``cls``; ``section`` names a table of the file, e.g. ``"array"``.

    ``environment`` stands in for the process's own in tests. Raises InvalidRequest (C1, C2),
    NotFound, NotPermitted (the file).
    """
    fields = _fields_of(cls)
    values: dict[str, Any] = {}
    if file is not None:
        table = _table(file, section)
        _refuse_unknown(table, fields, _where(file, section))
        for name, value in table.items():
            values[name] = _from_toml(fields[name], value, _where(file, section))
    env = os.environ if environment is None else environment
    for name, field in fields.items():
        text = env.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(field, text)
    required = {field.name for field in dataclasses.fields(cls) if not _has_default(field)}
    missing = sorted(required - values.keys())
    if missing:
        raise InvalidRequest(
            f"no value for {', '.join(missing)}",
            subject=missing[0],
            next_step=f"set it in the file, or as {ENVIRONMENT_PREFIX}{missing[0].upper()}",
        )
    settings = cls(**values)
    homes = {
        name: Path(os.path.expanduser(path))
        for name, field in fields.items()
        if field.kind is Path and (path := getattr(settings, name)) is not None and path.parts[:1] == ("~",)
    }
    return dataclasses.replace(settings, **homes) if homes else settings


def render(settings: DataclassInstance, section: str | None = None) -> str:
    """Return a TOML file that loads to equal settings (C3), with each field's doc above it."""
    lines = [f"[{section}]", ""] if section else []
    for field in _fields_of(type(settings)).values():
        lines += [f"# {line}" for line in field.doc.splitlines()]
        value = getattr(settings, field.name)
        lines += [f"# {field.name} =" if value is None else f"{field.name} = {_to_toml(value)}", ""]
    return "\n".join(lines)


def failpoint_spec(environment: Mapping[str, str] | None = None) -> str:
    """Return the failpoints that a test asks for; empty in production."""
    return (os.environ if environment is None else environment).get(FAILPOINTS_VARIABLE, "")


def quiet_grpc() -> None:
    """Keep gRPC's own lines off stderr: they are not ours to format, and every one that matters
    comes back as an error. Before the first ``import grpc``; GRPC_VERBOSITY still wins."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a process that we start: ours, with ``changes``."""
    return {**os.environ, **changes}


# -- fields -------------------------------------------------------------------------------------


def _fields_of(cls: type[DataclassInstance]) -> dict[str, _Field]:
    hints = get_type_hints(cls)
    return {field.name: _field(field, hints[field.name]) for field in dataclasses.fields(cls)}


def _field(field: dataclasses.Field[Any], hint: Any) -> _Field:
    optional = False
    if get_origin(hint) in {UnionType, Union}:
        others = [choice for choice in get_args(hint) if choice is not NoneType]
        optional = len(others) < len(get_args(hint))
        assert len(others) == 1, f"{field.name}: a setting has one type, or that type and None"
        hint = others[0]
    kind = tuple if get_origin(hint) is tuple else hint
    assert kind in _TYPE_NAMES, f"{field.name}: {hint} is no type for a setting"
    assert kind is not tuple or get_args(hint) == (str, ...), f"{field.name}: lists are tuple[str, ...]"
    return _Field(field.name, kind, optional, str(field.metadata.get("doc", "")))


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


# -- the file -----------------------------------------------------------------------------------


def _where(file: Path, section: str | None) -> str:
    return f"{file} [{section}]" if section else str(file)


def _table(file: Path, section: str | None) -> dict[str, Any]:
    try:
        whole = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"there is no file {file}",
            subject=str(file),
            next_step="leave it out to run with the defaults, or write one with --print-config",
        ) from None
    except OSError as error:
        raise NotPermitted(f"cannot read {file}: {error.strerror}", subject=str(file)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} is not valid TOML: {error}", subject=str(file)) from None
    table = whole if section is None else whole.get(section, {})
    if not isinstance(table, dict):
        raise InvalidRequest(f"{section} in {file} must be a table", subject=str(file))
    return table


def _refuse_unknown(table: Mapping[str, Any], fields: Mapping[str, _Field], where: str) -> None:
    for name in table:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            raise InvalidRequest(
                f"{where} sets {name}, which is no setting",
                subject=name,
                next_step=f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(fields))}",
            )


def _from_toml(field: _Field, value: Any, where: str) -> Any:
    """C2: exactly the type, but for an int where a float is expected and a size as text."""
    if field.is_size and isinstance(value, str):
        return _size(field, value, f"{where}: {field.name}")
    # bool is an int in Python, and never in a configuration.
    if field.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif (field.kind is int and isinstance(value, int) and not isinstance(value, bool)) or (
        field.kind in {bool, str} and isinstance(value, field.kind)
    ):
        return value
    elif field.kind is Path and isinstance(value, str) and value:
        return Path(value)
    elif field.kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(field, f"{where}: {field.name}", value)


# -- the environment ----------------------------------------------------------------------------


def _from_text(field: _Field, text: str) -> Any:
    where = ENVIRONMENT_PREFIX + field.name.upper()
    if field.optional and not text:
        return None
    if field.is_size:
        return _size(field, text, where)
    try:
        if field.kind is bool:
            return _BOOLS[text.strip().lower()]
        if field.kind is int:
            return int(text)
        if field.kind is float and math.isfinite(float(text)):
            return float(text)
    except (ValueError, KeyError):
        raise _wrong(field, where, text) from None
    if field.kind is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if field.kind is str or (field.kind is Path and text):
        return field.kind(text)
    raise _wrong(field, where, text)


def _size(field: _Field, text: str, where: str) -> int:
    try:
        size = parse_size(text)
    except (ValueError, OverflowError):
        raise _wrong(field, where, text) from None
    if size < 0:
        raise _wrong(field, where, text)
    return size


def _wrong(field: _Field, where: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"{where} must be {field.expected()}, not {str(value)[:100]!r}",
        subject=field.name,
        next_step="correct it, then start again",
    )


def _to_toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_to_toml(item) for item in cast("tuple[str, ...]", value)) + "]"
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
