"""A storage unit in an S3-compatible object store; the only module that knows obstore.

Owns: every key below the prefix. Invariants of UnitBackend are kept so:
  B1 an object is put by one request, never in parts: a cut upload leaves nothing, and what a store has
     answered is durable and seen by everybody (S3 has been consistent since 2020; so are its kin).
  B2 a request that failed is repeated by the library within its bounds; all are idempotent. An answer
     that stays lost is PeerUnavailable: the object is as it was, or all new.
  B3 bytes are checked on the way in by SHA-256, which the store compares; on the way out by what
     the unit knows of its own objects.
Credentials come from the daemon's environment, are read by the library, and are kept nowhere.
Why this library: docs/decisions/0041-object-stores-through-obstore.md. Callers: any thread; it
does not hold the interpreter while bytes move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from arraylift.durable import Buffer
from arraylift.errors import Corruption, InvalidRequest, NotFound, PeerUnavailable

SCHEME = "s3://"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store may take. A request is given up after all its tries."""

    connect_seconds: int = 5
    request_seconds: int = 300
    """A container of 64 MiB in this time is 2 Mbit/s."""
    retries_max: int = 4
    retry_seconds: int = 60


def parse_location(location: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``. Raises InvalidRequest."""
    bucket, _, prefix = location.removeprefix(SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    if (
        not location.startswith(SCHEME)
        or not bucket
        or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix)
    ):
        raise InvalidRequest(
            f"{location!r} is no place in an object store",
            next_step="give it as s3://bucket/prefix, or s3://bucket",
        )
    return bucket, prefix


class S3Backend:
    """UnitBackend below one prefix of one bucket."""

    def __init__(self, location: str, *, endpoint: str = "", patience: Patience | None = None) -> None:
        """Reaches nothing yet. ``endpoint``: http(s)://host:port, unless it is the default one.
        Raises InvalidRequest."""
        bucket, prefix = parse_location(location)
        self._location = location
        patience = patience or Patience()
        options = {
            "timeout": f"{patience.request_seconds}s",
            "connect_timeout": f"{patience.connect_seconds}s",
            "allow_http": endpoint.startswith("http://"),
        }
        retries = {
            "max_retries": patience.retries_max,
            "retry_timeout": timedelta(seconds=patience.retry_seconds),
        }
        where = {"endpoint": endpoint} if endpoint else {}
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                checksum_algorithm="SHA256",
                client_options=options,  # type: ignore[arg-type]
                retry_config=retries,  # type: ignore[arg-type]
                **where,  # type: ignore[arg-type]
            )
        except (BaseError, ValueError) as error:
            raise InvalidRequest(
                f"{location} cannot be used: {_first_line(error)}", subject=location
            ) from error

    @property
    def location(self) -> str:
        return self._location

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:  # noqa: ARG002 - for failpoints
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._ask(lambda: obstore.put(self._store, name, data, use_multipart=False), name)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None and not offset:
            return self._ask(lambda: bytes(obstore.get(self._store, name).bytes()), name)
        size = self.size(name)
        wanted = size - offset if length is None else length
        if offset + wanted > size or wanted < 0:
            raise Corruption(
                f"{name} of {self._location} has {size} bytes, too few for {wanted} at {offset}", subject=name
            )
        if not wanted:
            return b""
        data = self._ask(
            lambda: bytes(obstore.get_range(self._store, name, start=offset, length=wanted)), name
        )
        if len(data) != wanted:
            raise Corruption(f"{self._location} gave {len(data)} of {wanted} bytes of {name}", subject=name)
        return data

    def size(self, name: str) -> int:
        return self._ask(lambda: obstore.head(self._store, name)["size"], name)

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except NotFound:
            return False
        return True

    def list(self, folder: str) -> list[str]:
        found = self._ask(lambda: obstore.list_with_delimiter(self._store, folder or None), folder)
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:  # noqa: ARG002
        if not missing_ok and not self.exists(name):
            raise self._not_found(name)
        try:
            self._ask(lambda: obstore.delete(self._store, name), name)
        except NotFound:  # some stores say so
            if not missing_ok:
                raise

    def sweep(self, folder: str) -> int:  # noqa: ARG002 - B1: nothing is ever left
        return 0

    def free_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        pass

    def _ask(self, request: Callable[[], T], name: str) -> T:
        try:
            return request()
        except FileNotFoundError:
            raise self._not_found(name) from None
        except (BaseError, OSError) as error:
            raise PeerUnavailable(
                f"{self._location} does not serve {name or 'its listing'}: {_first_line(error)}",
                subject=f"unit at {self._location}",
                next_step="see that it is reachable and the daemon's credentials are valid, then repeat",
            ) from error

    def _not_found(self, name: str) -> NotFound:
        return NotFound(f"there is no {name} at {self._location}", subject=name)


def _first_line(error: Exception) -> str:
    """The library's own text goes on with a dump of its insides, and with the store's XML."""
    return str(error).partition("\n")[0][:300]
