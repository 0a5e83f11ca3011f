"""Documents cite only what exists, and leave out nothing that they promise to list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.rpc.authz import ALLOWED, EVERYBODY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GOLDEN = ROOT / "tests" / "golden"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
FORMATS = sorted((DOCS / "formats").glob("*.md"))
SOURCE_ROOTS = (
    "arraylift",
    "primary_array",
    "dedup_target",
    "vcenter",
    "hostagent",
    "backup_server",
    "protos",
)

LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
SOURCE_FILE = re.compile(r"[\w./-]+\.(?:py|proto)")
INVARIANTS = re.compile(r"`([\w/]+\.py)` ([A-Z]\d+(?:, [A-Z]\d+)*)")
LIMIT = re.compile(r"`(\w+)` in `([\w/]+\.py)`")

PLAIN_WORDS = frozenset(
    # Words of the trade, used as everybody uses them.
    ["convert", "edge", "grpc", "run", "serve", "stream", "verify"]
)
MARKS = ("shown", "part", "planned", "open", "text")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _prose(path: Path) -> str:
    """A page without its fenced blocks, which quote and draw."""
    return re.sub(r"^ *```.*?^ *```", "", _text(path), flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", _prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _sources() -> list[str]:
    folders = (*SOURCE_ROOTS, "tests", "benchmarks")
    return [_name(path) for folder in folders for path in (ROOT / folder).rglob("*.*")]


def _rows(page: str, heading: str) -> Iterator[list[str]]:
    """Cells of the first table below a heading, without its head."""
    part = _text(DOCS / page).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    assert len(table) > 2, f"{page} has no table below {heading}"
    for line in table[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.exists() or (anchor and anchor not in _anchors(goal)):
            broken.append(link)
    assert not broken, f"{_name(page)} links to {broken}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_cited_source_file_exists(page: Path) -> None:
    sources = _sources()
    missing = [
        file
        for code in CODE.findall(_prose(page))
        for file in SOURCE_FILE.findall(code)
        # A path from the root, or its tail where the page says of which package it speaks.
        if not (ROOT / file).exists() and not any(source.endswith(f"/{file}") for source in sources)
    ]
    assert not missing, f"{_name(page)} cites {missing}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_cited_invariant_is_stated(page: Path) -> None:
    missing = []
    for file, numbers in INVARIANTS.findall(_prose(page)):
        stated = ast.get_docstring(ast.parse(_text(ROOT / file))) or ""
        missing += [f"{file} {one}" for one in numbers.split(", ") if not re.search(rf"\b{one}\b", stated)]
    assert not missing, f"{_name(page)} cites {missing}"


def test_every_document_that_the_source_cites_exists() -> None:
    cited = {
        (page, _name(path))
        for root in SOURCE_ROOTS
        for path in sorted((ROOT / root).rglob("*"))
        if path.suffix in {".py", ".proto"}
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", _text(path))
    }
    assert cited
    missing = sorted(f"{path} cites {page}" for page, path in cited if not (ROOT / page).exists())
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", FORMATS, ids=_name)
def test_every_format_page_has_a_golden_file(page: Path) -> None:
    named = [Path(file).name for file in re.findall(r"tests/golden/[\w.-]+\w", _text(page))]
    assert named, f"{_name(page)} names no golden file"
    missing = [file for file in named if not (GOLDEN / file).exists()]
    assert not missing, f"{_name(page)} names {missing}"


def test_every_golden_file_has_a_format_page() -> None:
    pages = "".join(map(_text, FORMATS))
    files = [path.name for path in sorted(GOLDEN.iterdir()) if path.suffix.startswith(".al")]
    assert files
    assert [file for file in files if file not in pages] == []


def test_every_decision_is_in_the_index() -> None:
    index = set(LINK.findall(_text(DOCS / "decisions" / "README.md")))
    records = {path.name for path in (DOCS / "decisions").glob("[0-9]*.md")}
    assert records
    assert records == {link for link in index if link[0].isdigit()}
    assert len({name[:4] for name in records}) == len(records), "a number is used twice"


# -- glossary -----------------------------------------------------------------------------------


def _words_of_the_exchange() -> Iterator[str]:
    """Words that name the modules and public classes of the exchange."""
    for path in sorted((ROOT / "arraylift" / "exchange").glob("[!_]*.py")):
        yield from path.stem.split("_")
        for node in ast.parse(_text(path)).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from map(str.lower, re.findall(r"[A-Z][a-z]+", node.name))


def _defined_words() -> set[str]:
    terms = re.findall(r"(?<!\*)\*{1,2}([^*|\n]+)\*{1,2}(?!\*)", _text(DOCS / "glossary.md"))
    return {word.lower() for term in terms for word in re.findall(r"\w+", term)}


def test_the_words_of_the_exchange_are_in_the_glossary() -> None:
    words = set(_words_of_the_exchange())
    assert {"offer", "missing", "durable"} <= words
    defined = _defined_words() | PLAIN_WORDS
    assert sorted(word for word in words if not {word, word.removesuffix("s")} & defined) == []


def test_the_glossary_defines_a_word_once() -> None:
    lines = [line for line in _text(DOCS / "glossary.md").splitlines() if line.startswith("| ")]
    terms = [term.lower() for line in lines for term in re.findall(r"\*\*([^*]+)\*\*", line)]
    assert len(terms) > 50
    assert sorted({term for term in terms if terms.count(term) > 1}) == []


# -- architecture -------------------------------------------------------------------------------


def test_every_limit_is_where_the_table_says() -> None:
    rows = list(_rows("ARCHITECTURE.md", "Limits"))
    for row in rows:
        found = LIMIT.fullmatch(row[2])
        assert found, f"no name and module in {row}"
        name, file = found.groups()
        named = re.search(rf"^(?:class )?{name}\b", _text(ROOT / file), flags=re.MULTILINE)
        in_tuple = re.search(rf"^\w+, {name} =", _text(ROOT / file), flags=re.MULTILINE)
        assert named or in_tuple, f"{name} is not in {file}"


def test_every_package_is_on_the_map() -> None:
    page = _text(DOCS / "ARCHITECTURE.md")
    packages = [path.parent for root in SOURCE_ROOTS for path in (ROOT / root).glob("__init__.py")]
    assert len(packages) == len(SOURCE_ROOTS) - 1
    shared = [path.parent for path in (ROOT / "arraylift").glob("*/__init__.py")]
    assert [_name(path) for path in (*packages, *shared) if f"`{_name(path)}" not in page] == []


# -- security -----------------------------------------------------------------------------------


def test_the_documented_authorization_is_the_real_one() -> None:
    documented: dict[str, frozenset[str]] = {}
    for service, methods, roles in _rows("security.md", "Identity and authorization"):
        name = service.strip("`")
        full = name if "." in name else f"arraylift.v1.{name}"
        served = [method for method in ALLOWED if method.startswith(f"/{full}/")]
        assert served, f"there is no service {full}"
        allowed = EVERYBODY if roles == "all" else frozenset(roles.split(", "))
        if methods.startswith("all"):
            left_out = methods.removeprefix("all").removeprefix(" but ").split(", ")
            chosen = [method for method in served if method.rpartition("/")[2] not in left_out]
        else:
            chosen = [f"/{full}/{method}" for method in methods.split(", ")]
        assert not documented.keys() & set(chosen), f"{service} {methods} is decided twice"
        documented |= dict.fromkeys(chosen, allowed)
    assert documented == dict(ALLOWED)


# -- patent map ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "first", "last"), [("Figures", 1, 10), ("Paragraphs", 21, 56), ("Claims", 1, 27)]
)
def test_the_patent_is_mapped_whole(heading: str, first: int, last: int) -> None:
    mapped = []
    for row in _rows("patent-map.md", heading):
        assert len(row) == 5, row
        numbers, _, state, code, shown = row
        mapped += [int(number) for number in numbers.split(", ")]
        mark = re.split(r"[^a-z]", state)[0]
        assert mark in MARKS, f"{numbers}: {state}"
        if mark in {"shown", "part"}:
            assert SOURCE_FILE.search(code), f"{numbers} names no code"
            assert "tests/" in shown, f"{numbers} names no test"
        files = [file for cell in (code, shown) for file in SOURCE_FILE.findall(cell)]
        assert [file for file in files if not (ROOT / file).is_file()] == [], f"{numbers} cites too much"
    assert sorted(mapped) == list(range(first, last + 1))
