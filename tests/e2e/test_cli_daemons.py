"""``arraylift up``, ``down``, ``status`` and ``daemon``, over real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.cli.processes import exited_within, read_record
from tests.e2e.command import House, a_house, command, free_base_port


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """An empty state directory; nothing runs yet."""
    with a_house(tmp_path) as made:
        yield made


NAMES = ["target1", "array1", "vcenter1", "host1", "server1"]


def pids(documents: list[dict[str, object]]) -> dict[object, object]:
    return {each["name"]: each["pid"] for each in documents}


def test_up_and_down_may_be_repeated(house: House) -> None:
    first = house.up()
    assert [each["name"] for each in first] == NAMES
    assert [each["started"] for each in first] == [True] * 5
    assert all(each["up"] and each["version"] for each in first)
    again = house.json("up")
    assert pids(again) == pids(first)
    assert [each["started"] for each in again] == [False] * 5
    assert pids(house.json("status")) == pids(first)
    assert [each["daemon"] for each in house.json("down")] == NAMES[::-1]
    assert [each["result"] for each in house.json("down")] == ["not running"] * 5
    assert house.processes() == []
    assert house.run("status", ok=False).code == 8
    after = house.json("up")
    assert [each["address"] for each in after] == [each["address"] for each in first]


def test_up_introduces_the_daemons_to_each_other(house: House) -> None:
    addresses = {each["kind"]: each["address"] for each in house.up()}
    for noun in ("array", "target"):
        (peer,) = house.json(noun, "ls", "--probe")
        assert (peer["name"], peer["address"], peer["reachable"]) == (f"{noun}1", addresses[noun], True)
    (host,) = house.json("host", "ls")
    assert (host["name"], host["address"], host["state"]) == ("host1", addresses["host"], "host_state_alive")
    house.run("down")
    moved = {each["kind"]: each["address"] for each in house.json("up", "--base-port", free_base_port())}
    assert not set(moved.values()) & set(addresses.values())
    assert house.json("array", "ls")[0]["address"] == moved["array"]
    assert [each["address"] for each in house.json("host", "ls")] == [moved["host"]]


def test_only_what_is_missing_is_started(house: House) -> None:
    first = pids(house.up())
    target = read_record(house.state / "run" / "target1.pid")
    assert target is not None
    os.kill(target.pid, signal.SIGKILL)
    assert exited_within(target, 10)
    second = house.up()
    assert pids(second)["array1"] == first["array1"]
    assert [each["name"] for each in second if each["started"]] == ["target1"]


def test_a_taken_port_is_one_line_and_leaves_nothing_running(house: House) -> None:
    with socket.create_server(("127.0.0.1", house.base_port + 3)):
        ended = house.run("up", "--base-port", house.base_port, ok=False)
    assert ended.code == 5
    assert f"port {house.base_port + 3} on 127.0.0.1 is taken" in ended.err
    assert ended.err.count("\n") == 1
    assert house.processes() == []


def test_a_state_directory_in_use_is_one_line_and_leaves_nothing_running(house: House) -> None:
    house.up()
    house.run("down")
    # The target's store is held by a daemon that this `up` knows nothing of, on another port.
    config = tomllib.loads((house.state / "target1.toml").read_text())
    other = house.state / "other.toml"
    text = (house.state / "target1.toml").read_text()
    other.write_text(text.replace(config["listen"], "127.0.0.1:0"))
    holder = subprocess.Popen(
        [sys.executable, "-m", "dedup_target", "--config", str(other)],
        env={name: value for name, value in house.environment().items() if name != "ARRAYLIFT_STATE"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stderr is not None
        for line in holder.stderr:
            if "daemon_ready" in line:
                break
        ended = house.run("up", ok=False)
    finally:
        holder.terminate()
        holder.communicate(timeout=30)
    assert ended.code == 5
    assert "target1 did not start" in ended.err
    assert "is in use by pid" in ended.err
    assert ended.err.count("\n") == 1
    assert house.processes() == []


def test_a_broken_setting_comes_out_as_the_daemon_said_it(house: House) -> None:
    house.up()
    house.run("down")
    path = house.state / "array1.toml"
    path.write_text(path.read_text().replace("send_workers = 2", "send_workers = 99"))
    ended = house.run("up", ok=False)
    assert ended.code == 2
    assert "array1 did not start: send_workers is 1 to 16, not 99" in ended.err
    assert house.processes() == []


def test_a_missing_certificate_is_named(house: House) -> None:
    house.up()
    house.run("down")
    (house.state / "pki" / "array-array1.key").unlink()
    ended = house.run("up", ok=False)
    assert ended.code == 3
    assert "array-array1.key" in ended.err
    assert house.processes() == []


def test_ports_do_not_move_under_a_running_daemon(house: House) -> None:
    house.up()
    ended = house.run("up", "--base-port", house.base_port + 10, ok=False)
    assert ended.code == 5
    assert "arraylift down" in ended.err


def test_an_unknown_driver_starts_nothing(house: House) -> None:
    ended = house.run("up", "--driver", "abacus", ok=False)
    assert ended.code == 2
    assert "'abacus' is no driver: emulated" in ended.err
    assert house.processes() == []


def test_status_and_down_without_daemons_say_how_to_get_them(house: House) -> None:
    for verb in ("status", "down"):
        ended = house.run(verb, ok=False)
        assert ended.code == 3
        assert "`arraylift up`" in ended.err
    assert not house.state.exists()


def test_the_operator_s_environment_is_not_the_daemons(house: House) -> None:
    """ARRAYLIFT_STATE, which House.environment sets, would put both stores into one directory."""
    states = [each["state"] for each in house.up()]
    assert states == [str(house.state / name) for name in NAMES]
    assert all((house.state / name / "lock").exists() for name in NAMES)


def test_foreground_ends_with_its_daemons(house: House) -> None:
    process = subprocess.Popen(
        command("up", "--foreground", "--base-port", house.base_port),
        env=house.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    assert "Ctrl-C stops" in process.stderr.readline()
    assert house.run("status").code == 0
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "arraylift: error: interrupted\n"
    assert house.processes() == []


def test_daemon_runs_in_this_process_and_prints_its_settings(house: House) -> None:
    house.up()
    house.run("down")
    config = house.state / "target1.toml"
    shown = house.run("daemon", "target", "--config", config, "--print-config", "--state", "/x")
    assert tomllib.loads(shown.out)["name"] == "target1"
    environment = {name: value for name, value in house.environment().items() if name != "ARRAYLIFT_STATE"}
    process = subprocess.Popen(
        command("daemon", "target", "--config", config), env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "daemon_ready" in line:
            break
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0, "the daemon's own exit code"
