"""The house's rules that no linter knows, checked against the source itself.

Each rule is tried on an offender first, so that none can go blind.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("arraylift", "vcenter", "hostagent", "primary_array", "dedup_target", "backup_server")
GENERATED = "arraylift/v1/"

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# rule -> where it does not hold, as path prefixes, each with its reason in the comment
HOMES: dict[str, tuple[str, ...]] = {
    "print": ("arraylift/cli/",),
    "wall clock": ("arraylift/clock.py",),
    "environment": ("arraylift/config.py",),
    # One seam, in several modules; the operator's own files, which belong to no store; and a guest for
    # trials, which is built again if it is lost.
    "disk": (
        "arraylift/durable.py",
        "arraylift/disk/",
        "arraylift/cli/local_files.py",
        "arraylift/cli/restored_tree.py",
        "arraylift/guest/",
    ),
}

_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
_ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
_DISK = {
    f"os.{name}"
    for name in (
        *("fsync", "fdatasync", "sync", "rename", "renames", "replace", "link", "unlink", "remove"),
        *("truncate", "ftruncate", "pwrite", "pwritev", "posix_fallocate"),
    )
}
_DISK_METHODS = {"write_text", "write_bytes"}
_LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
_LOGGERS = {"_log", "log", "_logger", "logger"}
_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")


def violations(source: str, path: str) -> Iterator[str]:
    """Yield what is wrong with a product module."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield f"{path}: no module docstring"
    if not path.endswith("__init__.py") and "from __future__ import annotations" not in source:
        yield f"{path}: no `from __future__ import annotations`"
    for node in ast.walk(tree):
        for rule, what in _breaches(node):
            if not path.startswith(HOMES.get(rule, ("\0",))):
                yield f"{path}:{getattr(node, 'lineno', 0)}: {rule}: {what}"


def sizes(source: str, path: str) -> Iterator[str]:
    """Yield what is too long in any module."""
    count = source.count("\n")
    if count > MODULE_LINES_MAX:
        yield f"{path}: {count} lines, at most {MODULE_LINES_MAX}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}"


def _breaches(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ImportFrom):
        for name in node.names:
            if name.name == "*":
                yield "star import", node.module or ""
            yield from _dotted(f"{node.module}.{name.name}")
    elif isinstance(node, ast.ExceptHandler) and node.type is None:
        yield "bare except", ""
    elif isinstance(node, ast.Attribute):
        yield from _dotted(ast.unparse(node))
    elif isinstance(node, ast.Call):
        yield from _call(node)


def _dotted(name: str) -> Iterator[tuple[str, str]]:
    tail = ".".join(name.split(".")[-2:])
    if tail in _CLOCK:
        yield "wall clock", name
    if tail in _ENVIRONMENT:
        yield "environment", name
    if tail in _DISK:
        yield "disk", name


def _call(node: ast.Call) -> Iterator[tuple[str, str]]:
    target = node.func
    if isinstance(target, ast.Name) and target.id == "print":
        yield "print", ""
    opens = isinstance(target, ast.Name) and target.id == "open"
    of_object = isinstance(target, ast.Attribute) and target.attr == "open"
    opens_path = of_object and ast.unparse(target) != "os.open"
    if opens or opens_path:
        named = [word.value for word in node.keywords if word.arg == "mode"]
        modes = [*(node.args[1:2] if opens else node.args[:1]), *named]
        for mode in modes:
            text = mode.value if isinstance(mode, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"[rbt]*[wax+][bt+]*", text):
                yield "disk", f"open(..., {text!r})"
    if isinstance(target, ast.Attribute):
        if target.attr in _DISK_METHODS:
            yield "disk", target.attr
        if target.attr == "open" and "O_CREAT" in ast.unparse(node):
            yield "disk", "os.open(..., O_CREAT)"
        if target.attr in _LOG_METHODS and ast.unparse(target.value).rpartition(".")[2] in _LOGGERS:
            event = node.args[0] if node.args else None
            text = event.value if isinstance(event, ast.Constant) else None
            if not isinstance(text, str) or not _EVENT.fullmatch(text):
                yield "event name", "must be a constant snake_case fact of two words or more"


def modules(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if not _name(path).startswith(GENERATED)]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_product_modules_keep_the_rules() -> None:
    found = [
        violation
        for path in modules(*PRODUCT)
        for violation in violations(path.read_text(encoding="utf-8"), _name(path))
    ]
    assert not found, "\n".join(found)


def test_nothing_grows_too_long() -> None:
    paths = modules(*PRODUCT, "tests", "benchmarks")
    assert len(paths) > 40
    found = [line for path in paths for line in sizes(path.read_text(encoding="utf-8"), _name(path))]
    assert not found, "\n".join(found)


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, check=False
    ).stdout.split(b"\0")
    names = [name.decode() for name in listed if name]
    if not names:
        pytest.skip("not a git checkout")
    # Spelled in pieces, or this file would be the first offender.
    machine = re.compile(rb"/(?:wor" + rb"k|roo" + rb"t|hom" + rb"e/[a-z]+)/")
    paths = [path for path in map(ROOT.joinpath, names) if path.is_file() and path.suffix != ".bin"]
    found = [_name(path) for path in paths if machine.search(path.read_bytes())]
    assert not found, f"paths of one machine in {found}"


HEAD = '"""Doc."""\nfrom __future__ import annotations\n'


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("from os.path import *", "star import"),
        ("try:\n    pass\nexcept:\n    pass", "bare except"),
        ("print(1)", "print"),
        ("now = time.time()", "wall clock"),
        ("from time import time_ns", "wall clock"),
        ("now = datetime.datetime.now()", "wall clock"),
        ("x = os.environ['A']", "environment"),
        ("from os import getenv", "environment"),
        ("f = open('a', 'w')", "disk"),
        ("f = open('a', mode='ab')", "disk"),
        ("f = path.open('r+b')", "disk"),
        ("path.write_text('a')", "disk"),
        ("os.fsync(1)", "disk"),
        ("os.rename('a', 'b')", "disk"),
        ("os.open('a', os.O_WRONLY | os.O_CREAT)", "disk"),
        ("_log.info('Container sealed')", "event name"),
        ("_log.info(f'sealed_{name}')", "event name"),
        ("self._log.error('failed')", "event name"),
    ],
)
def test_each_rule_sees_its_offender(line: str, rule: str) -> None:
    found = list(violations(HEAD + line, "primary_array/pool.py"))
    assert len(found) == 1
    assert f": {rule}: " in found[0]


@pytest.mark.parametrize(
    "line",
    [
        "f = open('a', 'rb')",
        "f = open('wax')",
        "lane.open(message)",
        "now = clock.monotonic()",
        "os.pread(1, 2, 3)",
        "text.replace('a', 'b')",
        "_log.info('container_sealed', segments=1)",
        "math.log(2)",
    ],
)
def test_the_rules_leave_innocents_alone(line: str) -> None:
    assert list(violations(HEAD + line, "primary_array/pool.py")) == []


def test_a_home_may_do_what_is_its_own_alone() -> None:
    assert list(violations(HEAD + "os.fsync(1)", "arraylift/durable.py")) == []
    assert list(violations(HEAD + "time.time()", "arraylift/durable.py")) != []


def test_missing_heads_and_long_things_are_seen() -> None:
    assert len(list(violations("x = 1\n", "primary_array/pool.py"))) == 2
    assert list(sizes("x = 1\n" * MODULE_LINES_MAX, "a.py")) == []
    assert len(list(sizes("x = 1\n" * (MODULE_LINES_MAX + 1), "a.py"))) == 1
    assert list(sizes("def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1), "a.py")) == []
    assert len(list(sizes("def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, "a.py"))) == 1
