"""What a client hears until it has its disk, and what it never hears."""

from __future__ import annotations

import pytest

from arraylift.errors import InvalidRequest
from arraylift.nbd import wire
from arraylift.nbd.access import Caller
from arraylift.nbd.negotiation import (
    CONTEXTS_MAX,
    LISTINGS_MAX,
    OPTION_BYTES_MAX,
    OPTIONS_MAX,
    Ended,
    Negotiation,
    Ready,
    StartTls,
    Tls,
)
from arraylift.nbd.options import NAME_BYTES_MAX, QUERIES_MAX
from arraylift.rpc.identity import Peer
from tests.fakes.nbd import MemoryDevice, MemoryExports, OptionReply, named, option, option_replies, queries

FLAGS = wire.U32.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
HOST = Peer("host", "h1")


class Stage:
    """One negotiation and the exports behind it."""

    def __init__(self, tls: Tls = Tls.NONE, caller: Caller = None) -> None:
        self.device = MemoryDevice(1 << 20)
        self.exports = MemoryExports({"disk": self.device, "other": MemoryDevice(512, read_only=True)})
        self.machine = Negotiation(self.exports, tls=tls, caller=caller, hang_up=lambda: None)

    def say(self, data: bytes) -> list[OptionReply]:
        return option_replies(b"".join(self.machine.received(data)))

    def ask(self, number: int, data: bytes = b"") -> list[OptionReply]:
        return self.say(option(number, data))

    def kinds(self, number: int, data: bytes = b"") -> list[int]:
        return [reply.kind for reply in self.ask(number, data)]


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    assert made.machine.greeting == b"NBDMAGICIHAVEOPT\x00\x03"
    assert made.say(FLAGS) == []
    return made


def test_go_gives_the_disk_and_what_is_behind_it_in_the_stream(stage: Stage) -> None:
    asked = named("disk", wire.INFO_NAME, wire.INFO_DESCRIPTION, wire.INFO_BLOCK_SIZE)
    replies = stage.say(option(wire.OPT_GO, asked) + b"a request")
    infos = {wire.U16.unpack_from(reply.data)[0]: reply.data[2:] for reply in replies[:-1]}
    size, flags = wire.EXPORT.unpack(infos[wire.INFO_EXPORT])
    assert (size, flags & wire.READ_ONLY, flags & wire.SEND_TRIM) == (1 << 20, 0, wire.SEND_TRIM)
    assert wire.BLOCK_SIZES.unpack(infos[wire.INFO_BLOCK_SIZE]) == (1, 4096, 32 << 20)
    assert infos[wire.INFO_NAME] == b"disk"
    assert infos[wire.INFO_DESCRIPTION] == b"memory"
    assert replies[-1] == OptionReply(wire.OPT_GO, wire.REP_ACK, b"")
    outcome = stage.machine.outcome
    assert isinstance(outcome, Ready)
    assert (outcome.name, outcome.rest, outcome.structured, outcome.contexts) == (
        "disk",
        b"a request",
        False,
        (),
    )
    assert outcome.device is stage.device
    assert stage.device.closed == 0


def test_info_tells_the_same_and_keeps_nothing_open(stage: Stage) -> None:
    assert stage.kinds(wire.OPT_INFO, named("disk"))[-1] == wire.REP_ACK
    assert stage.machine.outcome is None
    assert stage.device.closed == 1


def test_a_read_only_disk_says_so_and_offers_no_change(stage: Stage) -> None:
    info = stage.ask(wire.OPT_INFO, named("other"))[0].data
    flags = wire.EXPORT.unpack_from(info, 2)[1]
    assert flags & wire.READ_ONLY
    assert not flags & (wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO)


@pytest.mark.parametrize("client_flags", [0, wire.FLAG_FIXED_NEWSTYLE, 3])
def test_the_old_style_gets_size_flags_and_padding(client_flags: int) -> None:
    stage = Stage()
    data = b"".join(
        stage.machine.received(wire.U32.pack(client_flags) + option(wire.OPT_EXPORT_NAME, b"disk"))
    )
    assert wire.EXPORT.unpack_from(data)[0] == 1 << 20
    assert len(data) == wire.EXPORT.size + (0 if client_flags & wire.FLAG_NO_ZEROES else 124)
    assert isinstance(stage.machine.outcome, Ready)


def test_the_old_style_has_no_way_to_refuse(stage: Stage) -> None:
    with pytest.raises(InvalidRequest, match="was refused"):
        stage.ask(wire.OPT_EXPORT_NAME, b"nothing")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nothing", wire.REP_ERR_UNKNOWN), ("forbidden", wire.REP_ERR_POLICY), ("", wire.REP_ERR_UNKNOWN)],
)
def test_a_refusal_leaves_the_negotiation_open(stage: Stage, name: str, kind: int) -> None:
    assert stage.kinds(wire.OPT_GO, named(name)) == [kind]
    assert stage.kinds(wire.OPT_GO, named("disk"))[-1] == wire.REP_ACK


def test_listing_names_every_export(stage: Stage) -> None:
    replies = stage.ask(wire.OPT_LIST)
    assert [reply.kind for reply in replies] == [wire.REP_SERVER, wire.REP_SERVER, wire.REP_ACK]
    assert replies[0].data == b"\0\0\0\4diskmemory"


def test_abort_ends_it(stage: Stage) -> None:
    assert stage.kinds(wire.OPT_ABORT) == [wire.REP_ACK]
    assert isinstance(stage.machine.outcome, Ended)


@pytest.mark.parametrize("number", [0, 4, 11, 12, 0xFFFF])
def test_unknown_options_are_told_so(stage: Stage, number: int) -> None:
    assert stage.kinds(number, b"whatever") == [wire.REP_ERR_UNSUP]


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (wire.OPT_LIST, b"x"),
        (wire.OPT_STRUCTURED_REPLY, b"x"),
        (wire.OPT_ABORT, b"x"),
        (wire.OPT_GO, b""),
        (wire.OPT_GO, named("disk") + b"x"),
        (wire.OPT_GO, named("disk")[:-1]),
        (wire.OPT_GO, wire.U32.pack(0xFFFFFFFF) + b"disk\0\0"),
        (wire.OPT_GO, wire.U32.pack(4) + b"disk" + wire.U16.pack(9)),
        (wire.OPT_GO, wire.U32.pack(2) + b"\xff\xfe\0\0"),
        (wire.OPT_GO, named("x" * (NAME_BYTES_MAX + 1))),
        (wire.OPT_SET_META_CONTEXT, queries("disk", "base:allocation")),  # before structured replies
        (wire.OPT_LIST_META_CONTEXT, wire.U32.pack(0) + wire.U32.pack(QUERIES_MAX + 1)),
    ],
)
def test_malformed_options_are_refused_and_forgotten(stage: Stage, number: int, data: bytes) -> None:
    assert stage.kinds(number, data) == [wire.REP_ERR_INVALID]
    assert stage.kinds(wire.OPT_GO, named("disk"))[-1] == wire.REP_ACK


@pytest.mark.parametrize(
    "data",
    [
        wire.U32.pack(4),  # a client flag that nobody knows
        FLAGS + b"X" * 16,
        FLAGS + option(wire.OPT_GO, b"", length=OPTION_BYTES_MAX + 1),
        FLAGS + option(wire.OPT_STRUCTURED_REPLY) * (OPTIONS_MAX + 1),
    ],
)
def test_what_only_hanging_up_answers(data: bytes) -> None:
    stage = Stage()
    with pytest.raises(InvalidRequest):
        stage.say(data)


def test_what_is_held_is_bounded() -> None:
    stage = Stage()
    stage.say(FLAGS + option(wire.OPT_GO, b"", length=OPTION_BYTES_MAX) + bytes(OPTION_BYTES_MAX - 1))
    assert len(stage.machine._held) <= OPTION_BYTES_MAX + wire.OPTION.size


def test_listings_are_counted(stage: Stage) -> None:
    for _ in range(LISTINGS_MAX):
        assert stage.kinds(wire.OPT_LIST)[-1] == wire.REP_ACK
    assert stage.kinds(wire.OPT_LIST) == [wire.REP_ERR_TOO_BIG]


# -- contexts -----------------------------------------------------------------------------------


@pytest.fixture
def structured(stage: Stage) -> Stage:
    assert stage.kinds(wire.OPT_STRUCTURED_REPLY) == [wire.REP_ACK]
    return stage


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ((), ["base:allocation", "test:odd"]),
        (("base:",), ["base:allocation"]),
        (("test:odd",), ["test:odd"]),
        (("test",), []),
        (("qemu:", "base:alloc"), []),
    ],
)
def test_contexts_are_listed_by_name_or_namespace(
    structured: Stage, asked: tuple[str, ...], shown: list[str]
) -> None:
    replies = structured.ask(wire.OPT_LIST_META_CONTEXT, queries("disk", *asked))
    assert [reply.data[4:].decode() for reply in replies[:-1]] == shown
    assert structured.device.closed == 1


def test_chosen_contexts_hold_for_their_export_only(structured: Stage) -> None:
    replies = structured.ask(
        wire.OPT_SET_META_CONTEXT, queries("disk", "base:", "test:odd", "base:allocation")
    )
    assert [(reply.data[:4], reply.data[4:]) for reply in replies[:-1]] == [
        (b"\0\0\0\1", b"base:allocation"),
        (b"\0\0\0\2", b"test:odd"),
    ]
    structured.ask(wire.OPT_GO, named("disk"))
    assert isinstance(structured.machine.outcome, Ready)
    assert structured.machine.outcome.contexts == ((1, "base:allocation"), (2, "test:odd"))


def test_contexts_of_another_export_or_of_a_failed_choice_are_gone(structured: Stage) -> None:
    structured.ask(wire.OPT_SET_META_CONTEXT, queries("disk", "base:allocation"))
    assert structured.kinds(wire.OPT_SET_META_CONTEXT, queries("nothing", "base:allocation")) == [
        wire.REP_ERR_UNKNOWN
    ]
    structured.ask(wire.OPT_GO, named("disk"))
    assert isinstance(structured.machine.outcome, Ready)
    assert structured.machine.outcome.contexts == ()


def test_too_many_contexts_are_refused(structured: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"test:{number}" for number in range(CONTEXTS_MAX + 1)]
    monkeypatch.setattr(MemoryDevice, "contexts", lambda _self: many)
    assert structured.kinds(wire.OPT_SET_META_CONTEXT, queries("disk", *many)) == [wire.REP_ERR_TOO_BIG]


# -- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (wire.OPT_LIST, b""),
        (wire.OPT_GO, named("disk")),
        (wire.OPT_INFO, named("nothing")),
        (wire.OPT_STRUCTURED_REPLY, b""),
        (wire.OPT_SET_META_CONTEXT, queries("disk", "base:allocation")),
        (99, b""),
    ],
)
def test_nothing_is_told_in_the_clear_where_tls_is_demanded(number: int, data: bytes) -> None:
    stage = Stage(Tls.DEMANDED)
    stage.say(FLAGS)
    assert stage.kinds(number, data) == [wire.REP_ERR_TLS_REQD]
    assert stage.exports.callers == []


def test_the_old_style_in_the_clear_is_cut_where_tls_is_demanded() -> None:
    stage = Stage(Tls.DEMANDED)
    with pytest.raises(InvalidRequest, match="in the clear"):
        stage.say(FLAGS + option(wire.OPT_EXPORT_NAME, b"disk"))


def test_after_tls_everything_begins_anew_with_the_certificates_identity() -> None:
    stage = Stage(Tls.OFFERED)
    stage.say(FLAGS)
    stage.ask(wire.OPT_STRUCTURED_REPLY)
    stage.ask(wire.OPT_SET_META_CONTEXT, queries("disk", "base:allocation"))
    assert stage.kinds(wire.OPT_STARTTLS) == [wire.REP_ACK]
    assert isinstance(stage.machine.outcome, StartTls)
    stage.machine.secured(HOST)
    assert stage.kinds(wire.OPT_STARTTLS) == [wire.REP_ERR_INVALID]
    stage.ask(wire.OPT_GO, named("disk"))
    outcome = stage.machine.outcome
    assert isinstance(outcome, Ready)
    assert (outcome.structured, outcome.contexts) == (False, ())
    assert stage.exports.callers == [None, HOST]


def test_bytes_smuggled_in_behind_starttls_are_an_error() -> None:
    stage = Stage(Tls.DEMANDED)
    with pytest.raises(InvalidRequest, match="after STARTTLS"):
        stage.say(FLAGS + option(wire.OPT_STARTTLS) + option(wire.OPT_LIST))


def test_no_tls_where_none_is_offered(stage: Stage) -> None:
    assert stage.kinds(wire.OPT_STARTTLS) == [wire.REP_ERR_POLICY]


@pytest.mark.parametrize("role", ["server", "vcenter"])
def test_roles_without_access_learn_nothing(role: str) -> None:
    stage = Stage(Tls.DEMANDED)
    stage.say(FLAGS)
    stage.ask(wire.OPT_STARTTLS)
    stage.machine.secured(Peer(role, "x"))
    assert stage.kinds(wire.OPT_LIST) == [wire.REP_ERR_POLICY]
    assert stage.kinds(wire.OPT_GO, named("disk")) == [wire.REP_ERR_POLICY]
    assert stage.kinds(wire.OPT_GO, named("nothing")) == [wire.REP_ERR_POLICY]
