"""The command as people and scripts meet it: results, errors, exit codes, options in any place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arraylift import __version__, errors
from arraylift.exit_codes import MEANINGS
from arraylift.sizes import MIB
from arraylift.v1 import image_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id

COMMON = ("--json", "--state", "--pki", "--array", "--target", "--vcenter", "--server")
NOUNS = ["vm", "backups", "files", "job", "host", "array", "target", "pki"]
LEAVES = [
    ["up"],
    ["down"],
    ["status"],
    ["demo"],
    ["daemon"],
    *(["pki", verb] for verb in ("init", "issue", "show")),
    *(["array", "volumes", verb] for verb in ("ls", "create", "rm", "import", "export", "write")),
    *([noun, verb] for noun in ("array", "target") for verb in ("add", "ls", "rm")),
    *(["host", verb] for verb in ("ls", "add", "rm")),
    *(["vm", verb] for verb in ("create", "ls", "show", "start", "stop", "rm")),
    *(["vm", "files", verb] for verb in ("put", "get", "ls", "rm")),
    ["backup"],
    ["restore"],
    *(["backups", verb] for verb in ("ls", "show", "verify", "lock", "rm")),
    *(["files", verb] for verb in ("ls", "get")),
    *(["job", verb] for verb in ("ls", "show", "watch", "cancel")),
    ["array", "export"],
    *(["array", "exports", verb] for verb in ("ls", "rm")),
    *(["array", "snapshots", verb] for verb in ("ls", "create", "rm", "send")),
    ["array", "gateway", "send"],
    *(["array", "transfers", verb] for verb in ("ls", "rate", "cancel")),
    *(["target", verb] for verb in ("stats", "gc", "space", "scrub", "heal")),
    *(["target", "tenants", verb] for verb in ("ls", "quota")),
    *(["target", "images", verb] for verb in ("ls", "show", "restore", "read", "verify", "lock")),
]


@pytest.mark.parametrize("leaf", LEAVES, ids=" ".join)
def test_every_command_has_help_with_an_example_and_the_common_options(
    bare: Arraylift, leaf: list[str]
) -> None:
    ended = bare(*leaf, "--help")
    assert ended.code == 0
    assert f"arraylift {' '.join(leaf)}" in ended.out.partition("Examples:")[2]
    assert all(option in ended.out for option in COMMON)


def test_help_documents_every_exit_code(bare: Arraylift) -> None:
    told = bare("--help").out
    assert all(f"{code:<4} {meaning}" in told for code, meaning in MEANINGS.items())


def test_version(bare: Arraylift) -> None:
    assert bare("--version").out == f"arraylift {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'; see `arraylift --help`"),
        (["array", "volumes", "import"], "see `arraylift array volumes import --help`"),
        (["up", "--base-port", "many"], "--base-port"),
        (["up", "--base-port", "70000"], "--base-port must be 1 to 65530"),
        (["daemon", "fridge"], "there is no daemon 'fridge'; use one of target, array, vcenter, host"),
        (["pki", "issue", "fridge", "f1"], "'fridge' is not a role"),
        (["array", "volumes", "ls", "--array", "nowhere"], "'nowhere' is not an address"),
        (["array", "volumes", "create", "v", "many"], "'many' is not a size"),
        (["array", "volumes", "create", "v", "-5K"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_2(bare: Arraylift, arguments: list[str], says: str) -> None:
    ended = bare(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("arraylift: error: ")
    assert ended.err.count("\n") == 1
    assert says in ended.err


def test_a_noun_alone_shows_its_verbs(bare: Arraylift) -> None:
    ended = bare("array", "volumes")
    assert ended.code == 2
    assert "import" in ended.err + ended.out


def test_without_daemons_the_line_says_how_to_get_them(bare: Arraylift, tmp_path: Path) -> None:
    ended = bare("target", "stats")
    assert ended.code == 3
    assert ended.err == (
        f"arraylift: error: there is no target in {tmp_path}/state; start one with "
        "`arraylift up`, or give --target ADDRESS\n"
    )
    elsewhere = bare("target", "stats", "--state", f"{tmp_path}/other")
    assert f"`arraylift up --state {tmp_path}/other`" in elsewhere.err, "as it must be typed"


@pytest.mark.parametrize("noun", [[], *([each] for each in NOUNS)], ids=" ".join)
def test_no_list_of_commands_breaks_off(bare: Arraylift, noun: list[str]) -> None:
    told = bare(*noun, "--help").out
    lines = told.partition("Commands:")[2].partition("Examples:")[0].strip().splitlines()
    assert lines
    assert [line for line in lines if not line.rstrip().endswith(".")] == []
    assert "..." not in told.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("gone"), 3),
        (errors.WrongState("busy"), 5),
        (errors.Overloaded("too much"), 7),
        (errors.Corruption("bits"), 10),
        (errors.StoreFailed("fsync"), 11),
    ],
)
def test_a_daemon_s_error_becomes_its_exit_code(
    arraylift: Arraylift, daemons: Daemons, error: errors.ArrayliftError, code: int
) -> None:
    daemons.volumes.fail_with = error
    ended = arraylift("array", "volumes", "ls")
    assert (ended.code, ended.out, ended.err) == (code, "", f"arraylift: error: {error.message}\n")


def test_with_json_an_error_is_the_document(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.volumes.fail_with = errors.WrongState("busy", subject="volume v", next_step="wait", pid=7)
    ended = arraylift("array", "volumes", "ls", "--json")
    assert ended.code == 5
    assert ended.document == {
        "error": {
            "reason": "wrong_state",
            "message": "busy",
            "subject": "volume v",
            "next_step": "wait",
            "fields": {"pid": "7"},
            "exit_code": 5,
        }
    }


def test_a_fault_of_ours_shows_its_traceback_only_with_debug(
    arraylift: Arraylift, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr("arraylift.cli.volumes.plain", broken)
    monkeypatch.setattr("arraylift.cli.volumes._table", broken)
    ended = arraylift("array", "volumes", "ls")
    assert ended.code == 1
    assert ended.err.startswith("arraylift: error: a fault of arraylift itself: ZeroDivisionError: by 0")
    assert "Traceback" not in ended.err
    assert "Traceback" in arraylift("array", "volumes", "ls", "--debug").err


def test_an_interrupt_is_130(arraylift: Arraylift, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("arraylift.cli.volumes._table", interrupted)
    ended = arraylift("array", "volumes", "ls")
    assert (ended.code, ended.err.strip()) == (130, "arraylift: error: interrupted")


def test_common_options_may_stand_before_the_command(bare: Arraylift, daemons: Daemons) -> None:
    ended = bare("--json", *daemons.options(), "target", "stats")
    assert ended.document["image_count"] == 3
    assert ended.document["container_bytes"] == 100


def test_the_environment_leads_to_the_daemons(
    bare: Arraylift, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARRAYLIFT_PKI", str(daemons.pki))
    monkeypatch.setenv("ARRAYLIFT_TARGET", daemons.target_address)
    assert bare("target", "stats", "--json").document["logical_bytes"] == 300


def test_nothing_listens_there(bare: Arraylift, daemons: Daemons) -> None:
    ended = bare("array", "volumes", "ls", "--pki", daemons.pki, "--array", "127.0.0.1:1")
    assert ended.code == 8
    assert "array 127.0.0.1:1 does not answer" in ended.err


def test_volumes_and_snapshots(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"abcd" * MIB)
    imported = arraylift("array", "volumes", "import", "web1", disk, "--json")
    assert imported.document["bytes_written"] == 4 * MIB
    assert "web1" in arraylift("array", "volumes", "ls").out
    taken = arraylift("array", "snapshots", "create", "web1", "--name", "mon", "--json").document
    assert [snapshot["name"] for snapshot in taken] == ["mon"]
    disk.write_bytes(b"abcd" * (MIB - 1) + b"abce")
    written = arraylift("array", "volumes", "write", "web1", disk, "--json").document
    assert (written["bytes_differing"], written["range_count"]) == (65536, 1)
    for reference, last in (("web1", b"e"), ("web1@mon", b"d"), (taken[0]["snapshot_id"], b"d")):
        out = tmp_path / f"out-{last!r}"
        assert arraylift("array", "volumes", "export", reference, out, "--force").code == 0
        assert out.read_bytes()[-1:] == last
    assert arraylift("array", "volumes", "export", "nobody", tmp_path / "x").code == 3
    assert arraylift("array", "snapshots", "rm", "web1@mon").code == 0
    assert arraylift("array", "snapshots", "rm", "web1@mon").code == 3
    assert arraylift("array", "snapshots", "rm", "web1@mon", "--missing-ok").code == 0


def test_exports(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.volumes.volumes["web1"] = bytearray(512)
    assert arraylift("array", "snapshots", "create", "web1", "--name", "mon").code == 0
    assert "nbds://127.0.0.1:10809/web1" in arraylift("array", "export", "web1").out
    frozen = arraylift("array", "export", "web1@mon", "--name", "monday", "--json").document
    assert (frozen["snapshot_id"], frozen["volume_name"], frozen["read_only"]) == (hex_id(1), "", True)
    assert arraylift("array", "export", "nobody").code == 3
    assert [each["name"] for each in arraylift("array", "exports", "ls", "--json").document] == [
        "web1",
        "monday",
    ]
    assert arraylift("array", "exports", "rm", "web1").code == 0
    assert arraylift("array", "exports", "rm", "web1").code == 3
    assert arraylift("array", "exports", "rm", "web1", "--missing-ok").code == 0


def test_a_send_prints_its_receipt(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.volumes.volumes["web1"] = bytearray(512)
    assert arraylift("array", "snapshots", "create", "web1", "--name", "mon").code == 0
    shown = arraylift("array", "snapshots", "send", "web1@mon").out
    assert hex_id(77) in shown
    assert (b"r" * 32).hex() in shown
    document = arraylift("array", "snapshots", "send", "web1@mon", "--name", "x/y", "--json").document
    assert (document["image_id"], document["image_name"]) == (hex_id(77), "x/y")
    assert document["figures"]["bytes_read"] == 1 << 20


def test_images(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    daemons.images.content = bytes(300_000) + b"x" * 300_000
    daemons.images.images = [
        image_pb2.Image(image_id=hex_id(4), name="web1", image_bytes=600_000, root=b"r" * 32)
    ]
    assert arraylift("target", "images", "ls", "--json").document[0]["root"] == (b"r" * 32).hex()
    assert hex_id(4) in arraylift("target", "images", "show", "web1").out
    restored = arraylift("target", "images", "restore", "web1", "--as", "back", "--json").document
    assert (restored["volume"], restored["image_id"]) == ("back", hex_id(4))
    out = tmp_path / "part"
    arguments = ("target", "images", "read", "web1", "--offset", "299999", "--length", "3", "--to", out)
    assert arraylift(*arguments).code == 0
    assert out.read_bytes() == b"\0xx"
    assert arraylift(*arguments).code == 4
    assert arraylift("target", "images", "read", "web1", "--offset", "1M", "--to", tmp_path / "y").code == 2
    daemons.images.cut_reads_at = 200_000
    ended = arraylift("target", "images", "read", "web1", "--to", tmp_path / "z")
    assert ended.code == 10
    assert not (tmp_path / "z").exists()


def test_certificates(bare: Arraylift, tmp_path: Path) -> None:
    made = tmp_path / "certificates"
    assert bare("pki", "init", "--pki", made).code == 0
    assert bare("pki", "init", "--pki", made).code == 4
    issued = bare("pki", "issue", "array", "a1", "--host", "a1.example.org", "--pki", made, "--json").document
    assert (issued["role"], issued["name"]) == ("array", "a1")
    assert "a1.example.org" in issued["hosts"]
    assert "array/a1" in bare("pki", "show", made / "array-a1.pem").out
    assert bare("pki", "show", made / "nobody.pem").code == 3


def test_names_from_elsewhere_do_not_steer_the_terminal(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.volumes.volumes["[red]evil\x1b[2J[/red]"] = bytearray(512)
    shown = arraylift("array", "volumes", "ls").out
    assert "\x1b" not in shown
    assert "[red]evil" in shown
    assert "\\u001b" in json.dumps(arraylift("array", "volumes", "ls", "--json").document)
