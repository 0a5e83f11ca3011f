"""Walks for the catalog's store, made of trees: path to version."""

from __future__ import annotations

import zlib

import numpy as np

from backup_server.catalog import batch_format as form
from backup_server.catalog.batch import PIECES, RECORDS, Batch

Tree = dict[str, int]


def paths_of(tree: Tree) -> list[str]:
    """All entries of a walk: the root, the directories, then the files, each after its directory."""
    directories = {path.rpartition("/")[0] for path in tree}
    above = {
        "/".join(one.split("/")[:depth]) for one in directories for depth in range(2, one.count("/") + 2)
    }
    return ["/", *sorted(above - {""}, key=lambda path: (path.count("/"), path)), *sorted(tree)]


def batch_of(tree: Tree) -> Batch:
    """A whole walk in one batch; a file's version is its time, and its place in 4 KiB of disk 0."""
    paths = paths_of(tree)
    records = np.zeros(len(paths), RECORDS)
    numbers: dict[str, int] = {}
    pieces, names = [], []
    for index, path in enumerate(paths):
        parent, _, name = path.rpartition("/")
        row = records[index]
        row["parent"] = numbers[parent or "/"] if path != "/" else form.NO_DIRECTORY
        row["directory"], row["links"], row["inode"] = form.NO_DIRECTORY, 1, zlib.crc32(path.encode())
        names.append(name.encode("utf-8", "surrogateescape"))
        row["name_bytes"] = len(names[-1])
        if path in tree:
            row["mode"], row["size"], row["pieces"], row["modified"] = 0o100644, 4096, 1, tree[path]
            pieces.append((1, 0, 0, 4096 * tree[path], 4096))
        else:
            numbers[path] = row["directory"] = len(numbers)
            row["mode"] = 0o040755
    heaps = dict.fromkeys(form.HEAPS, b"") | {"name": b"".join(names)}
    return Batch(records, np.array(pieces, PIECES), heaps)
