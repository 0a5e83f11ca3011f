"""The registry of the backup server: which arrays, targets, hosts and virtual centers it knows.

``arraylift array|target|host add|ls|rm`` are made of the same three functions.
Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from arraylift.cli.command import command
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import plain, row, table
from arraylift.errors import NotFound
from arraylift.rpc.address import split_address
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.v1 import backup_pb2

KINDS: dict[str, backup_pb2.PeerKind] = {
    "array": backup_pb2.PEER_KIND_ARRAY,
    "target": backup_pb2.PEER_KIND_TARGET,
    "host": backup_pb2.PEER_KIND_HOST,
    "vcenter": backup_pb2.PEER_KIND_VCENTER,
}
"""What daemons are called here, to what the protocol calls them."""


def register(noun_app: typer.Typer, noun: str, *, verbs: Sequence[str] = ("add", "ls", "rm")) -> None:
    """Add the registry's verbs to a noun of the command line."""
    makers = {"add": _add, "ls": _ls, "rm": _rm}
    for verb in verbs:
        makers[verb](noun_app, noun)


def add_peer(server: Connection, noun: str, name: str, address: str) -> None:
    """Tell the backup server of a daemon. Idempotent; raises InvalidRequest (address)."""
    split_address(address)
    request = backup_pb2.AddPeerRequest(kind=KINDS[noun], name=name, address=address)
    server.call(server.backups.AddPeer, request)


def find_peer(server: Connection, noun: str, name: str) -> backup_pb2.RegisteredPeer:
    """Return the registered daemon of that name. Raises NotFound."""
    request = backup_pb2.ListPeersRequest(kind=KINDS[noun])
    answer: backup_pb2.ListPeersResponse = server.call(server.backups.ListPeers, request)
    for peer in answer.peers:
        if peer.name == name:
            return peer
    raise NotFound(
        f"{server.label} knows no {noun} {name}",
        subject=f"{noun} {name}",
        next_step=f"add it: `arraylift {noun} add {name} ADDRESS`",
    )


def _add(noun_app: typer.Typer, noun: str) -> None:
    def add(
        session: Session,
        name: Annotated[str, typer.Argument(metavar="NAME", help="As in its certificate.")],
        address: Annotated[str, typer.Argument(metavar="ADDRESS", help="host:port to call it at.")],
    ) -> None:
        add_peer(session.server, noun, name, address)
        session.emit({"added": name, "kind": noun, "address": address}, f"{noun} {name} at {address}")

    add.__doc__ = f"Tell the backup server of {_an(noun)}; again, to change its address."
    command(noun_app, "add", examples=f"arraylift {noun} add {noun}2 {noun}2.example.org:7400")(add)


def _ls(noun_app: typer.Typer, noun: str) -> None:
    def ls(
        session: Session,
        probe: Annotated[bool, typer.Option("--probe", help="Ask each whether it serves.")] = False,
    ) -> None:
        server = session.server
        request = backup_pb2.ListPeersRequest(kind=KINDS[noun], probe=probe)
        found = server.call(server.backups.ListPeers, request, timeout_seconds=LONG_CALL_SECONDS).peers
        shown = table(noun, "address", *(["state"] if probe else []))
        for peer in found:
            state = "serving" if peer.reachable else peer.problem or "away"
            row(shown, peer.name, peer.address, *([state] if probe else []))
        session.emit([plain(peer) for peer in found], shown)

    ls.__doc__ = f"List the {noun}s that the backup server knows."
    command(noun_app, "ls", examples=f"arraylift {noun} ls --probe")(ls)


def _rm(noun_app: typer.Typer, noun: str) -> None:
    def rm(
        session: Session,
        name: Annotated[str, typer.Argument(metavar="NAME", help="As it was added.")],
    ) -> None:
        server = session.server
        server.call(server.backups.RemovePeer, backup_pb2.RemovePeerRequest(kind=KINDS[noun], name=name))
        session.emit({"removed": name, "kind": noun}, f"removed {noun} {name}; it was only forgotten")

    rm.__doc__ = f"Have the backup server forget {_an(noun)}; no backup and no job may need it."
    command(noun_app, "rm", examples=f"arraylift {noun} rm {noun}2")(rm)


def _an(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
