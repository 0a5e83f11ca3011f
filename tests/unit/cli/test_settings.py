"""Where daemons are found: options before environment before the state directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.cli import house
from arraylift.cli.settings import (
    ARRAY,
    KINDS,
    TARGET,
    CliSettings,
    Layout,
    Overrides,
    callable_address,
    places,
)
from arraylift.errors import InvalidRequest, NotFound


def test_options_win_over_the_environment(tmp_path: Path) -> None:
    environment = CliSettings(state=tmp_path / "env", array="env:1", target="env:2")
    found = places(Overrides(state=tmp_path / "opt", array="opt:1"), environment)
    assert found.layout.root == tmp_path / "opt"
    assert (found.address(ARRAY), found.address(TARGET)) == ("opt:1", "env:2")


def test_a_later_option_wins_over_an_earlier_one() -> None:
    assert Overrides(array="late").over(Overrides(json=True, array="early")) == Overrides(
        json=True, array="late"
    )


def test_the_state_directory_answers_what_nobody_said(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    house.configure(layout, ARRAY, 9401, tmp_path / "elsewhere")
    found = places(Overrides(), CliSettings(state=tmp_path))
    assert found.address(ARRAY) == "127.0.0.1:9403"
    assert found.pki_directory() == tmp_path / "elsewhere"
    with pytest.raises(NotFound, match="no target in"):
        found.address(TARGET)


def test_a_daemon_s_file_is_read_without_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    made = house.configure(layout, TARGET, None, None)
    monkeypatch.setenv("ARRAYLIFT_STATE", "/somewhere/else")
    monkeypatch.setenv("ARRAYLIFT_LISTEN", "1.2.3.4:5")
    assert layout.load(TARGET) == made
    assert (made.state, made.listen) == (tmp_path / "target1", "127.0.0.1:7404")


def test_ports_move_together_and_other_settings_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for kind in KINDS:
        house.configure(layout, kind, None, None)
    text = layout.config(ARRAY).read_text().replace("send_workers = 2", "send_workers = 5")
    layout.config(ARRAY).write_text(text)
    moved = {kind: house.configure(layout, kind, 9401, None) for kind in KINDS}
    ports = {kind.noun: moved[kind].listen.rpartition(":")[2] for kind in KINDS}
    wanted = {"vcenter": "9401", "host": "9402", "array": "9403", "target": "9404", "server": "9405"}
    assert ports == {noun: port for noun, port in wanted.items() if noun in ports}
    assert "send_workers = 5" in layout.config(ARRAY).read_text()
    assert 'nbd_listen = "127.0.0.1:9406"' in layout.config(ARRAY).read_text()
    with pytest.raises(InvalidRequest, match="--base-port"):
        house.configure(layout, ARRAY, 65_533, None)


@pytest.mark.parametrize(
    ("listen", "called"),
    [
        ("0.0.0.0:7403", "127.0.0.1:7403"),
        ("[::]:7403", "[::1]:7403"),
        ("[fe80::1]:7", "[fe80::1]:7"),
        ("host:1", "host:1"),
    ],
)
def test_an_address_to_listen_at_becomes_one_to_call(listen: str, called: str) -> None:
    assert callable_address(listen) == called
