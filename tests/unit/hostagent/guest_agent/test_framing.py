"""The machine of an agent's connection: in step or not, whatever comes and in whatever pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import PeerUnavailable
from hostagent.guest_agent.channel import ANSWER_BYTES_MAX, AgentRefused
from hostagent.guest_agent.framing import SYNC_BYTES_MAX, AgentMachine, request

rubbish = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"\xff",
            b"\xff\xff",
            b'{"return": 7}\n',
            b'\xff{"return": 7}\n',
            b'\xff{"return": 41}\n{"return": "late"}\n',
            b'{"return": 4',
            b'\xff{"return": 4',
            b"\n\n",
            b"[" * 3000 + b"\n",
            b"9" * 5000 + b"\n",
            b'\xff{"return": true}\n',
            b'\xff{"return": 42.0}\n',
            b'\xff{"return": NaN}\n',
            b"\xff" + b"x" * (SYNC_BYTES_MAX + 50),
            b'{"error": "text"}\n',
        ]
    ),
)


def fed(machine: AgentMachine, data: bytes, cuts: list[int]) -> None:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        machine.receive(data[start:end])


@given(before=st.lists(rubbish, max_size=6), cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_rubbish_and_late_answers_are_forgotten_at_a_sync(before: list[bytes], cuts: list[int]) -> None:
    machine = AgentMachine("VM web1")
    assert machine.sync(42).startswith(b'\xff{"execute":"guest-sync-delimited"')
    noise = b"".join(before).replace(b'"return": 42', b'"return": 43')
    fed(machine, noise + b'\xff{"return": 42}\n{"return": {"mine": 1}}\n', cuts)
    assert machine.in_step
    assert machine.answer("guest-info") == ({"mine": 1},)
    assert machine.idle


@given(st.lists(rubbish, max_size=8), st.integers(1, 64))
def test_no_noise_brings_it_in_step_and_none_fills_memory(noise: list[bytes], piece: int) -> None:
    machine = AgentMachine("VM web1")
    machine.sync(41_999)
    data = b"".join(noise)
    for start in range(0, len(data), piece):
        machine.receive(data[start : start + piece])
        assert len(machine._buffer) <= SYNC_BYTES_MAX + piece
    assert not machine.in_step


def test_an_answer_is_whole_or_not_there() -> None:
    machine = in_step()
    whole = b'{"return": "ab"}\n'
    for end in range(len(whole)):
        machine.receive(whole[end : end + 1])
        found = machine.answer("guest-ping")
        assert found == (("ab",) if end == len(whole) - 1 else None)


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[1]\n",
        b"{}\n",
        b'{"returns": 1}\n',
        b"[" * 100_000 + b"\n",
        b'{"return": ' + b"9" * 5000 + b"}\n",
        b"\x80\n",
    ],
)
def test_an_answer_that_is_none_ends_the_step(line: bytes) -> None:
    machine = in_step()
    machine.receive(line)
    with pytest.raises(PeerUnavailable, match="web1"):
        machine.answer("guest-ping")
    assert not machine.in_step


def test_an_endless_answer_is_cut_off() -> None:
    machine = in_step()

    def pour() -> None:
        for _ in range(ANSWER_BYTES_MAX // 65536 + 2):
            machine.receive(b"x" * 65536)
            assert len(machine._buffer) <= ANSWER_BYTES_MAX + 65536

    with pytest.raises(PeerUnavailable, match="without end"):
        pour()
    assert not machine.in_step
    assert not machine._buffer


def test_a_refusal_is_told_in_printable_words() -> None:
    machine = in_step()
    machine.receive(
        json.dumps({"error": {"class": "X", "desc": "no\x1b[31m\n" + "y" * 5000}}).encode() + b"\n"
    )
    with pytest.raises(AgentRefused, match=r"no\?\[31m\?y") as caught:
        machine.answer("guest-exec")
    assert len(caught.value.message) < 500
    assert machine.in_step
    for odd in (b'{"error": null}\n', b'{"error": {"desc": 7}}\n'):
        machine.receive(odd)
        with pytest.raises(AgentRefused):
            machine.answer("guest-exec")


def test_a_request_is_one_line() -> None:
    assert request("guest-ping") == b'{"execute":"guest-ping"}\n'
    assert request("x", {"path": "a\nb\xff"}).count(b"\n") == 1
    assert b"\xff" not in request("x", {"path": "a\nb\xff"})


def in_step() -> AgentMachine:
    machine = AgentMachine("VM web1")
    machine.sync(5)
    machine.receive(b'\xff{"return": 5}\n')
    assert machine.idle
    return machine
