"""A caller speaks only to the daemon that it called: its role, its name, or its host for that role."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift import errors, pki
from arraylift.clock import SYSTEM_CLOCK
from arraylift.rpc.channel import call, connect
from arraylift.rpc.identity import NAMES_DOMAIN, ROLES, demanded_name
from arraylift.rpc.server import RpcServer
from tests.wire.stage import House

DAEMONS = [role for role in ROLES if role != "operator"]
NAME = "Rack_3.t1"

Serve = Callable[..., RpcServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[RpcServer] = []

    def start(identity: pki.TlsMaterial, listen: str = "127.0.0.1:0") -> RpcServer:
        running.append(RpcServer(listen, identity, []))
        running[-1].start()
        return running[-1]

    yield start
    for server in running:
        server.stop(0)


def check(house: House, address: str, role: str, name: str = "") -> None:
    with connect(address, house.identity("operator"), role, name) as channel:
        _check(channel)


def _check(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    call(stub.Check, health_pb2.HealthCheckRequest(), peer="the daemon", timeout_seconds=10)


@pytest.mark.parametrize("shown", DAEMONS)
def test_a_certificate_passes_for_its_own_role_only(house: House, serve: Serve, shown: str) -> None:
    """Also where the names are the same, and on the machine whose name every certificate has."""
    address = serve(house.identity(shown, NAME)).address
    for called, name in itertools.product(DAEMONS, ("", NAME)):
        if called == shown:
            check(house, address, called, name)
        else:
            with pytest.raises(errors.PeerUnavailable, match="whoever answers is not the daemon") as caught:
                check(house, address, called, name)
            assert "role" in caught.value.next_step


def test_an_operator_passes_for_no_daemon(house: House, serve: Serve) -> None:
    address = serve(house.identity("operator", NAME)).address
    for role in DAEMONS:
        with pytest.raises(errors.PeerUnavailable, match="is not the daemon"):
            check(house, address, role)


@pytest.mark.parametrize("other", ["t2", NAME.lower(), NAME.upper(), NAME + "x", "t1", "*", NAME[:-1]])
def test_a_name_that_is_known_is_demanded(house: House, serve: Serve, other: str) -> None:
    address = serve(house.identity("target", NAME)).address
    with pytest.raises(errors.PeerUnavailable, match="is not the daemon"):
        check(house, address, "target", other)


def test_a_host_that_the_certificate_does_not_name_is_refused_unless_the_name_is_known(
    house: House, serve: Serve
) -> None:
    address = serve(house.identity("target", NAME), "127.0.0.2:0").address
    with pytest.raises(errors.PeerUnavailable, match="is not the daemon"):
        check(house, address, "target")
    check(house, address, "target", NAME)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_every_way_to_write_this_machine(house: House, serve: Serve, host: str) -> None:
    port = serve(house.identity("array", NAME)).address.rpartition(":")[2]
    check(house, f"{host}:{port}", "array")


# -- certificates -------------------------------------------------------------------------------


def older(monkeypatch: pytest.MonkeyPatch, house: House, role: str) -> None:
    """Issue one as a release did that knew nothing of demanded names."""
    with monkeypatch.context() as patched:
        patched.setattr(
            pki,
            "_general_names",
            lambda peer, hosts: [x509.UniformResourceIdentifier(peer.uri), *map(pki._host_name, hosts)],
        )
        pki.issue(house.directory, role, "old", ["old.example.org"])


def test_an_older_certificate_says_so_where_it_is_used(
    house: House, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(monkeypatch, house, "target")
    assert not pki.show(f"{house.directory}/target-old.pem").names_role
    with pytest.raises(errors.WrongState, match="older release") as caught:
        pki.load(house.directory, "target", "old")
    assert "`arraylift pki issue target old`" in caught.value.next_step
    # The daemon of an older release still runs with it.
    with monkeypatch.context() as patched:
        patched.setattr(pki, "_names_role", lambda _peer, _names: True)
        identity = pki.load(house.directory, "target", "old")
    with pytest.raises(errors.PeerUnavailable, match="is not the daemon") as refused:
        check(house, serve(identity).address, "target")
    assert "older release" in refused.value.next_step


def test_an_older_operator_calls_as_before(
    house: House, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(monkeypatch, house, "operator")
    address = serve(house.identity("target", NAME)).address
    with connect(address, pki.load(house.directory, "operator", "old"), "target") as channel:
        _check(channel)


def test_no_host_may_be_named_like_an_identity(house: House) -> None:
    for host in (demanded_name("target", name="t1"), NAMES_DOMAIN, f"A.{NAMES_DOMAIN}".upper()):
        with pytest.raises(errors.InvalidRequest, match="say roles"):
            pki.issue(house.directory, "host", "h1", [host])


def test_the_names_of_identities_are_no_hosts(house: House) -> None:
    facts = pki.issue(house.directory, "array", "a1", ["array.example.org", "fd00::7"])
    assert facts.names_role
    assert facts.hosts == ("localhost", "127.0.0.1", "::1", "array.example.org", "fd00::7")
    names = x509.load_pem_x509_certificate(Path(house.directory, "array-a1.pem").read_bytes()).extensions
    dns = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert [name for name in dns if name.endswith(NAMES_DOMAIN)] == [
        "a1.named.array.arraylift.internal",
        "localhost.at.array.arraylift.internal",
        "127-0-0-1.ip.array.arraylift.internal",
        "0000-0000-0000-0000-0000-0000-0000-0001.ip.array.arraylift.internal",
        "array.example.org.at.array.arraylift.internal",
        "fd00-0000-0000-0000-0000-0000-0000-0007.ip.array.arraylift.internal",
    ]


def test_what_is_demanded_is_never_two_things() -> None:
    """Names, hosts and roles that differ are demanded by names that differ, whatever their case."""
    texts = [
        "a1",
        "A1",
        "a_1",
        "a-1",
        "1-1-1-1",
        "a1.named",
        "a1.named.target",
        "x" * 63,
        "x" * 200,
        "x" * 201,
    ]
    hosts = [*texts, "127.0.0.1", "127-0-0-1", "::1", "::127", "1.1.1.1"]
    made = [demanded_name(role, name=name) for role in DAEMONS for name in texts]
    made += [demanded_name(role, host=host) for role in DAEMONS for host in hosts if host == host.lower()]
    assert len({name.lower() for name in made}) == len(made)
    assert max(map(len, made)) <= 253
    assert demanded_name("target", host="A1.Example.ORG") == demanded_name("target", host="a1.example.org")
    assert demanded_name("target", host="::1") == demanded_name("target", host="0:0:0:0:0:0:0:1")


def test_certificates_of_an_older_state_directory_are_renewed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``arraylift up`` after an upgrade: nobody would take its daemons for what they are."""
    from arraylift.cli import house as houses
    from arraylift.cli.settings import TARGET
    from dedup_target.config import TargetSettings

    older(monkeypatch, house, "target")
    settings = TargetSettings(name="old", pki=Path(house.directory))
    houses.issue_missing(Path(house.directory), {TARGET: settings})
    facts = pki.show(f"{house.directory}/target-old.pem")
    assert facts.names_role
    assert "old.example.org" in facts.hosts
    houses.issue_missing(Path(house.directory), {TARGET: settings})
    assert pki.show(f"{house.directory}/target-old.pem") == facts, "once"
    assert facts.not_after.timestamp() > SYSTEM_CLOCK.wall_ns() / 1e9
