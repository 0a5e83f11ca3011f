"""From a file system to batches: a whole walk, one directory, one file.

Invariants: T1 no directory is entered twice, nor one whose path would pass PATH_BYTES_MAX. T2 what cannot
be read of one file or directory is said of it, and the walk goes on.
Used in the parser's process only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from itertools import islice

from arraylift.errors import InvalidRequest, NotFound, WrongState
from backup_server.catalog import frames
from backup_server.catalog.batch_format import NO_DIRECTORY
from backup_server.catalog.frames import NAME_BYTES_MAX, PATH_BYTES_MAX
from backup_server.catalog.parse.batch_writer import BatchWriter, is_node_sound
from backup_server.catalog.parse.filesystem import FAULTS, FileSystem, Node
from backup_server.catalog.pieces import LITERALS_OF_FILE_BYTES_MAX, Piece, literal_pieces, pieces_of

ENTRIES_MAX = 100_000
"""Names of a directory that is listed (sandbox has the same maximum)."""

CHUNK = 1 << 15
"""Names that are looked at in the order of their nodes, which lie near each other."""


def walk(system: FileSystem, path: bytes, send: Callable[[bytes], None]) -> None:
    """Send every entry of a file system, or of a directory of it, and which directories could not be read.

    NotFound, InvalidRequest: there is no such directory.
    """
    writer = BatchWriter(send)
    root = _find(system, path)
    if not stat.S_ISDIR(root.mode) or not is_node_sound(root):
        raise InvalidRequest(_not_directory(path, root)) if path else WrongState("its root is no directory")
    writer.add(parent=NO_DIRECTORY, name=b"", node=root, directory=0)
    entered = {system.root, root.number}
    count = 1
    todo = [(0, root.number, len(path))]
    while todo:
        number, inode, path_bytes = todo.pop()
        try:
            for name, child in _by_node(system, inode):
                node = _node(system, child)
                own, pieces = NO_DIRECTORY, list[Piece]()
                if stat.S_ISDIR(node.mode):
                    below = path_bytes + 1 + len(name)
                    if node.number in entered:
                        node.flaw = node.flaw or "a directory that is in another place, too"
                    elif below > PATH_BYTES_MAX:
                        node.flaw = node.flaw or "its path is too long to be followed"
                    else:
                        entered.add(node.number)
                        own, count = count, count + 1
                        todo.append((own, node.number, below))
                elif stat.S_ISREG(node.mode):
                    pieces = pieces_or_flaw(system, node)
                writer.add(parent=number, name=name, node=node, pieces=pieces, directory=own)
        except FAULTS as error:
            writer.flush()
            send(frames.encode_unread(number, reason(error)))
    writer.flush()


def list_directory(system: FileSystem, path: bytes, send: Callable[[bytes], None]) -> None:
    """Send the entries of one directory, without pieces. NotFound, InvalidRequest: no directory."""
    inode = _find(system, path)
    if not stat.S_ISDIR(inode.mode):
        raise InvalidRequest(_not_directory(path, inode))
    writer = BatchWriter(send)
    for count, (name, child) in enumerate(_by_node(system, inode.number)):
        if count >= ENTRIES_MAX:
            raise WrongState(f"{shown(path)} has more than {ENTRIES_MAX} names")
        node = _node(system, child)
        writer.add(parent=0, name=name, node=node)
    writer.flush()


def find(system: FileSystem, path: bytes, send: Callable[[bytes], None]) -> None:
    """Send one entry with its pieces. NotFound: no such path."""
    node = _find(system, path)
    pieces = pieces_or_flaw(system, node) if stat.S_ISREG(node.mode) else []
    writer = BatchWriter(send)
    writer.add(parent=0, name=path.rpartition(b"/")[2], node=node, pieces=pieces)
    writer.flush()


def pieces_or_flaw(system: FileSystem, node: Node) -> list[Piece]:
    """Return a regular file's pieces; none, and a flaw, if they cannot all be told."""
    if node.size_bytes == 0:
        return []
    try:
        content = system.content(node)
        if isinstance(content, bytes):
            if len(content) != node.size_bytes or len(content) > LITERALS_OF_FILE_BYTES_MAX:
                raise WrongState(f"{len(content)} of {node.size_bytes} bytes of inline data are there")
            return literal_pieces(content)
        return pieces_of(content, size_bytes=node.size_bytes, locate=system.space.locate)
    except FAULTS as error:
        node.flaw = reason(error)
        return []


def reason(error: Exception) -> str:
    """Say in a few words what is wrong; of a fault that is no refusal of ours, that it is damaged."""
    if isinstance(error, WrongState):
        return error.message
    return f"it is damaged ({type(error).__name__}: {str(error)[:100]})"


def shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _by_node(system: FileSystem, directory: int) -> Iterator[tuple[bytes, int]]:
    names = iter(system.names(directory))
    while chunk := list(islice(names, CHUNK)):
        chunk.sort(key=lambda entry: entry[1])
        for name, child in chunk:
            if not 0 < len(name) <= NAME_BYTES_MAX or name in {b".", b".."} or b"/" in name or b"\0" in name:
                raise WrongState(f"it has a name that none can have: {name[:50]!r}")
            yield name, child


def _node(system: FileSystem, number: int) -> Node:
    """Return a node; a name whose node cannot be read is shown as an empty file with a flaw (T2)."""
    try:
        node = system.node(number)
        if is_node_sound(node):
            return node
        why = "its inode claims what cannot be"
    except FAULTS as error:
        why = reason(error)
    return Node(number, stat.S_IFREG, 0, links=0, flaw=f"its inode cannot be read: {why}")


def _find(system: FileSystem, path: bytes) -> Node:
    node = system.node(system.root)
    walked = b""
    for part in path.split(b"/"):
        if not part:
            continue
        if not stat.S_ISDIR(node.mode):
            raise InvalidRequest(_not_directory(walked, node))
        found = next((child for name, child in system.names(node.number) if name == part), None)
        walked += b"/" + part
        if found is None:
            raise NotFound(f"the volume has no {shown(walked)}")
        node = _node(system, found)
    return node


def _not_directory(path: bytes, node: Node) -> str:
    """Say why a path cannot be walked through."""
    if node.target:
        return f"{shown(path)} is a symbolic link to {shown(node.target)}, and links are not followed"
    return f"{shown(path)} is not a directory"
