"""XML from outside, parsed within limits. Pure.

Invariants:
  L1 no document type and so no entity: nothing expands, and nothing is fetched.
  L2 bytes, depth and elements are bounded before a tree stands.
Limits: XML_BYTES_MAX, DEPTH_MAX, ELEMENTS_MAX. Raises Corruption.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from xml.parsers import expat

from arraylift.errors import Corruption

XML_BYTES_MAX = 1 << 20
DEPTH_MAX = 32
ELEMENTS_MAX = 20_000


class _Limit(Exception):  # noqa: N818 - never leaves this module
    pass


def parse(text: str, *, what: str) -> ET.Element:
    """Return the root. ``what`` names the document in errors."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > XML_BYTES_MAX:
        raise _bad(what, f"it has more than {XML_BYTES_MAX} bytes")
    builder = ET.TreeBuilder()
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > DEPTH_MAX or elements > ELEMENTS_MAX:
            raise _Limit("it is too deep, or has too many elements")  # L2
        builder.start(_braced(tag), attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_braced(tag))

    def refuse(*_: object) -> None:
        raise _Limit("it declares a document type")  # L1

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, _Limit, ValueError, AssertionError) as error:
        raise _bad(what, str(error)) from error


def _braced(tag: str) -> str:
    return f"{{{tag}" if "}" in tag else tag


def text_of(root: ET.Element, path: str) -> str:
    """The text below ``path``, or ""."""
    return (root.findtext(path) or "").strip()


def attribute(root: ET.Element, path: str, name: str) -> str:
    """An attribute of the element at ``path``, or ""."""
    found = root.find(path)
    return "" if found is None else found.get(name, "")


def _bad(what: str, why: str) -> Corruption:
    return Corruption(f"{what} cannot be read: {why}", subject=what, next_step="look at it with virsh")
