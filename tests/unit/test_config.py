"""Settings: where values come from, what is refused, what is printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift import config, errors
from arraylift.sizes import GIB, MIB


@dataclass(frozen=True, slots=True)
class ArraySettings:
    """Of a daemon that might exist."""

    listen: str = field(default="127.0.0.1:7403", metadata={"doc": "Where it listens.\nhost:port"})
    pool: Path = field(default=Path("/var/lib/pool"), metadata={"doc": "Where the volumes are."})
    cache_bytes: int = field(default=64 * MIB, metadata={"doc": "Memory for maps."})
    workers: int = 2
    patience_seconds: float = 60.0
    tracking: bool = True
    hosts: tuple[str, ...] = ()
    ca: Path | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Demanding:
    name: str
    count: int = 1


def load(text: str | None, tmp_path: Path, section: str | None = None, **environment: str) -> ArraySettings:
    file = None
    if text is not None:
        file = tmp_path / "array.toml"
        file.write_text(text, encoding="utf-8")
    return config.load(ArraySettings, file, section, environment=environment)


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load(None, tmp_path) == ArraySettings()


def test_the_file_overrides_defaults_and_the_environment_the_file(tmp_path: Path) -> None:
    text = 'listen = "0.0.0.0:1"\nworkers = 3\npool = "/pool"\ncache_bytes = "1GiB"\npatience_seconds = 5\n'
    settings = load(
        text, tmp_path, ARRAYLIFT_WORKERS="4", ARRAYLIFT_TRACKING="off", ARRAYLIFT_CACHE_BYTES="2G"
    )
    assert settings == ArraySettings(
        listen="0.0.0.0:1",
        pool=Path("/pool"),
        cache_bytes=2 * GIB,
        workers=4,
        patience_seconds=5.0,
        tracking=False,
    )


def test_a_section_is_read_alone(tmp_path: Path) -> None:
    text = "[array]\nworkers = 3\n[target]\nanything = 1\n"
    assert load(text, tmp_path, "array").workers == 3
    assert load("[target]\nanything = 1\n", tmp_path, "array") == ArraySettings()


def test_lists_and_none(tmp_path: Path) -> None:
    assert load('hosts = ["a", "b"]\nca = "/ca"', tmp_path).hosts == ("a", "b")
    settings = load('hosts = ["a"]\nca = "/ca"', tmp_path, ARRAYLIFT_HOSTS="c, d,", ARRAYLIFT_CA="")
    assert (settings.hosts, settings.ca) == (("c", "d"), None)


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    settings = load('pool = "~/pool"\nlabel = "~/x"', tmp_path, ARRAYLIFT_CA="~")
    assert (settings.pool, settings.ca) == (Path("/somewhere/pool"), Path("/somewhere"))
    assert settings.label == "~/x"
    assert load('pool = "/a/~/b"', tmp_path).pool == Path("/a/~/b")


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        errors.InvalidRequest, match=r"array\.toml sets worker, which is no setting"
    ) as caught:
        load("worker = 3", tmp_path)
    assert caught.value.next_step == "did you mean workers?"
    with pytest.raises(errors.InvalidRequest) as caught:
        load("zzzzzz = 3", tmp_path)
    assert "patience_seconds" in caught.value.next_step


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('workers = "3"', "a whole number"),
        ("workers = true", "a whole number"),
        ("workers = 3.5", "a whole number"),
        ("tracking = 1", "true or false"),
        ("patience_seconds = true", "a number"),
        ("patience_seconds = nan", "a number"),
        ("patience_seconds = inf", "a number"),
        ("listen = 7403", "a string"),
        ("pool = 1", "a path"),
        ('pool = ""', "a path"),
        ('cache_bytes = "much"', "a size"),
        ('cache_bytes = "-1K"', "a size"),
        ("cache_bytes = 1.5", "a size"),
        ('hosts = "a"', "a list of strings"),
        ("hosts = [1]", "a list of strings"),
        ("[listen]\nx = 1", "a string"),
    ],
)
def test_a_wrong_type_says_file_key_and_expectation(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=expected) as caught:
        load(line, tmp_path)
    assert "array.toml" in caught.value.message
    assert caught.value.subject in line
    assert caught.value.subject in caught.value.message


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("WORKERS", "many"),
        ("WORKERS", ""),
        ("TRACKING", "perhaps"),
        ("PATIENCE_SECONDS", "inf"),
        ("CACHE_BYTES", "x"),
        ("CACHE_BYTES", "infK"),
        ("POOL", ""),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, text: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=f"ARRAYLIFT_{variable} must be"):
        load(None, tmp_path, **{f"ARRAYLIFT_{variable}": text})


def test_a_missing_value_says_how_to_set_it() -> None:
    with pytest.raises(errors.InvalidRequest, match="no value for name") as caught:
        config.load(Demanding, environment={})
    assert "ARRAYLIFT_NAME" in caught.value.next_step
    assert config.load(Demanding, environment={"ARRAYLIFT_NAME": "n"}) == Demanding("n")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="there is no file"):
        config.load(ArraySettings, tmp_path / "none.toml", environment={})
    with pytest.raises(errors.InvalidRequest, match="not valid TOML"):
        load("a = = 1", tmp_path)
    with pytest.raises(errors.InvalidRequest, match="must be a table"):
        load("array = 1", tmp_path, "array")
    (tmp_path / "latin.toml").write_bytes(b'listen = "\xe4"')
    with pytest.raises(errors.InvalidRequest, match="not valid TOML"):
        config.load(ArraySettings, tmp_path / "latin.toml", environment={})
    with pytest.raises(errors.NotPermitted, match="cannot read"):
        config.load(ArraySettings, tmp_path, environment={})


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PATHS = TEXTS.filter(lambda text: "\0" not in text and text).map(lambda text: Path("/", text))
SETTINGS: st.SearchStrategy[Any] = st.builds(
    ArraySettings,
    listen=TEXTS,
    pool=PATHS,
    cache_bytes=st.integers(0, 2**63 - 1),
    workers=st.integers(-(2**63), 2**63 - 1),
    patience_seconds=st.floats(allow_nan=False, allow_infinity=False),
    tracking=st.booleans(),
    hosts=st.lists(TEXTS, max_size=3).map(tuple),
    ca=st.none() | PATHS,
    label=st.none() | TEXTS,
)


@given(settings=SETTINGS, section=st.none() | st.just("array"))
def test_what_is_printed_loads_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, settings: ArraySettings, section: str | None
) -> None:
    file = tmp_path_factory.getbasetemp() / "rendered.toml"
    file.write_bytes(config.render(settings, section).encode())
    assert config.load(ArraySettings, file, section, environment={}) == settings


def test_docs_stand_above_their_keys() -> None:
    text = config.render(ArraySettings(), "array")
    assert text.startswith('[array]\n\n# Where it listens.\n# host:port\nlisten = "127.0.0.1:7403"\n')
    assert "\n# ca =\n" in text


def test_failpoints_come_from_the_environment() -> None:
    assert config.failpoint_spec({"ARRAYLIFT_FAILPOINTS": "a=kill"}) == "a=kill"
    assert config.failpoint_spec({}) == ""


def test_a_childs_environment_is_ours_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARRAYLIFT_X", "1")
    child = config.child_environment(ARRAYLIFT_Y="2")
    assert (child["ARRAYLIFT_X"], child["ARRAYLIFT_Y"]) == ("1", "2")
