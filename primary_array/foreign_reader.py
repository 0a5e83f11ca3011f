"""Read granules of a foreign disk through its NBD export, in a worker process ([0044]).

Invariants:
  F1 what the server cannot give is an error; nothing is ever filled in for it.
Callers: span_source, the worker's main thread. A place is a granule's number plus one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from arraylift.errors import WrongState
from arraylift.nbd.client import NbdClient
from arraylift.nbd.client_tls import ClientCredentials
from arraylift.nbd.uri import NbdUri
from arraylift.sizes import GRANULE_BYTES
from primary_array.send_plan import Slots, place_runs


@dataclass(frozen=True, slots=True)
class NbdExport:
    """A DiskReader."""

    uri: NbdUri
    credentials: ClientCredentials | None = field(repr=False)
    size_bytes: int

    def open(self, cancelled: threading.Event) -> ForeignReader:
        """Connect. Raises what NbdClient raises, and WrongState (another size)."""
        client = NbdClient(self.uri, self.credentials, cancelled=cancelled)
        if client.size_bytes != self.size_bytes:
            client.close()
            raise other_disk(self.uri, self.size_bytes, client.size_bytes)
        return ForeignReader(client)


class ForeignReader:
    """A GranuleReader; owns the connection."""

    def __init__(self, client: NbdClient) -> None:
        self._client = client

    def read_ahead(self, places: Slots) -> None:
        """Requests of one offer are on their way together; more would take the server's memory."""

    def read(self, places: Slots, buffer: memoryview) -> int:
        pieces, bytes_read = [], 0
        for index, place, count in place_runs(places):
            offset = (place - 1) * GRANULE_BYTES
            length = min(count * GRANULE_BYTES, self._client.size_bytes - offset)
            pieces.append((offset, buffer[index * GRANULE_BYTES : index * GRANULE_BYTES + length]))
            bytes_read += length
        self._client.read(pieces)
        return bytes_read

    def close(self) -> None:
        self._client.close()


def other_disk(uri: NbdUri, expected: int, found: int) -> WrongState:
    return WrongState(
        f"{uri} has {found:,} bytes where it had {expected:,}: another disk, or another state of it",
        subject=str(uri),
        next_step="begin anew, and export one state of the disk until its backup has ended",
    )
