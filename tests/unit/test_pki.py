"""Certificates: what is made, what is refused, and what is said."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from arraylift import errors, pki
from arraylift.clock import SYSTEM_CLOCK
from arraylift.rpc.identity import ROLES, Peer, checked_peer, peer_of_names

DAY_NS = 86_400 * 10**9


class Shifted:
    """A clock that is ``days`` ahead."""

    def __init__(self, days: float) -> None:
        self.days = days

    def monotonic(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return SYSTEM_CLOCK.wall_ns() + int(self.days * DAY_NS)


@pytest.fixture
def house(tmp_path: Path) -> str:
    directory = str(tmp_path / "pki")
    pki.init_ca(directory)
    return directory


def test_an_identity_is_issued_shown_and_loaded(house: str) -> None:
    issued = pki.issue(house, "array", "a1", ["10.0.0.7", "fd00::7", "a1.example.net", "A1.example.net"])
    shown = pki.show(f"{house}/array-a1.pem")
    assert shown == issued
    assert shown.peer == Peer("array", "a1")
    assert shown.hosts == ("localhost", "127.0.0.1", "::1", "10.0.0.7", "fd00::7", "a1.example.net")
    assert (shown.not_after - shown.not_before).days == pki.CERTIFICATE_DAYS
    material = pki.load(house, "array", "a1")
    assert material.peer == Peer("array", "a1")
    assert "PRIVATE" not in repr(material)


def test_the_extensions_say_what_each_may_do(house: str) -> None:
    pki.issue(house, "target", "t1")
    ca, own = (
        x509.load_pem_x509_certificate(Path(house, name).read_bytes()) for name in ("ca.pem", "target-t1.pem")
    )
    ca_limits = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (ca_limits.critical, ca_limits.value.ca, ca_limits.value.path_length) == (True, True, 0)
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = own.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    purposes = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {purpose._name for purpose in purposes} == {"serverAuth", "clientAuth"}
    own.verify_directly_issued_by(ca)


def test_keys_are_their_owners_alone(house: str) -> None:
    pki.issue(house, "server", "s1")
    for name in ("ca.key", "server-s1.key"):
        assert stat.S_IMODE(os.stat(f"{house}/{name}").st_mode) == 0o600


def test_a_ca_is_never_overwritten(house: str) -> None:
    before = Path(house, "ca.key").read_bytes()
    with pytest.raises(errors.AlreadyExists, match="has a CA already"):
        pki.init_ca(house)
    assert Path(house, "ca.key").read_bytes() == before


def test_a_ca_that_a_crash_left_half_made_is_made_anew(tmp_path: Path) -> None:
    tmp_path.joinpath("ca.key").write_bytes(b"half")
    pki.init_ca(str(tmp_path))
    pki.issue(str(tmp_path), "array", "a1")


def test_renewal_takes_a_fresh_key_and_serial(house: str) -> None:
    first, first_key = pki.issue(house, "array", "a1"), Path(house, "array-a1.key").read_bytes()
    second = pki.issue(house, "array", "a1")
    assert second.serial != first.serial
    assert Path(house, "array-a1.key").read_bytes() != first_key
    assert pki.load(house, "array", "a1").peer == Peer("array", "a1")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a b", "a\0", "ä", "x" * 64, "a\n"])
def test_a_name_that_could_be_a_path_is_refused(house: str, name: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="cannot name a certificate"):
        pki.issue(house, "array", name)
    assert sorted(os.listdir(house)) == ["ca.key", "ca.pem"]


@pytest.mark.parametrize("host", ["a:80", "", "ä.net", "a..b", "x" * 64, "*.net", "http://a"])
def test_a_bad_host_is_refused(house: str, host: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="neither an IP address nor a DNS name"):
        pki.issue(house, "array", "a1", [host])


def test_unknown_roles_days_and_too_many_hosts_are_refused(house: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="not a role") as caught:
        pki.issue(house, "root", "r1")
    assert all(role in caught.value.next_step for role in ROLES)
    for days in (0, pki.CERTIFICATE_DAYS_MAX + 1):
        with pytest.raises(errors.InvalidRequest, match="days"):
            pki.issue(house, "array", "a1", days=days)
    with pytest.raises(errors.InvalidRequest, match="at most"):
        pki.issue(house, "array", "a1", [f"10.0.0.{number}" for number in range(pki.HOSTS_MAX)])


def test_missing_files_are_named_with_the_next_step(house: str, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match=r"array-a1\.pem") as caught:
        pki.load(house, "array", "a1")
    assert "pki issue" in caught.value.next_step
    with pytest.raises(errors.NotFound, match=r"ca\.pem"):
        pki.issue(str(tmp_path / "empty"), "array", "a1")


def test_expired_and_future_certificates_are_refused(house: str) -> None:
    pki.issue(house, "array", "a1", days=10)
    with pytest.raises(errors.WrongState, match="expired at"):
        pki.load(house, "array", "a1", clock=Shifted(11))
    with pytest.raises(errors.WrongState, match="valid only from"):
        pki.load(house, "array", "a1", clock=Shifted(-1))
    with pytest.raises(errors.WrongState, match=r"ca\.pem expired"):
        pki.issue(house, "array", "a2", clock=Shifted(pki.CA_DAYS + 1))


def test_a_certificate_of_another_ca_is_refused(house: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    pki.init_ca(other)
    pki.issue(other, "array", "a1")
    with pytest.raises(errors.WrongState, match="was not issued by the CA"):
        pki.load_files(ca=f"{house}/ca.pem", certificate=f"{other}/array-a1.pem", key=f"{other}/array-a1.key")


def test_a_key_of_another_certificate_is_refused(house: str) -> None:
    pki.issue(house, "array", "a1")
    pki.issue(house, "array", "a2")
    with pytest.raises(errors.WrongState, match="is not the key of"):
        pki.load_files(ca=f"{house}/ca.pem", certificate=f"{house}/array-a1.pem", key=f"{house}/array-a2.key")
    os.replace(f"{house}/array-a2.pem", f"{house}/array-a1.pem")
    os.replace(f"{house}/array-a2.key", f"{house}/array-a1.key")
    with pytest.raises(errors.WrongState, match="is the certificate of array/a2"):
        pki.load(house, "array", "a1")


def test_a_ca_certificate_is_no_identity(house: str) -> None:
    with pytest.raises(errors.NotPermitted, match="no Arraylift identity"):
        pki.load_files(ca=f"{house}/ca.pem", certificate=f"{house}/ca.pem", key=f"{house}/ca.key")


def test_a_key_that_everybody_may_read_is_refused(house: str) -> None:
    pki.issue(house, "array", "a1")
    os.chmod(f"{house}/array-a1.key", 0o644)
    with pytest.raises(errors.NotPermitted, match="everybody may read") as caught:
        pki.load(house, "array", "a1")
    assert "chmod 600" in caught.value.next_step


@pytest.mark.parametrize("name", ["ca.pem", "array-a1.pem", "array-a1.key"])
def test_what_is_not_pem_is_named(house: str, name: str) -> None:
    pki.issue(house, "array", "a1")
    path = Path(house, name)
    mode = path.stat().st_mode
    path.write_bytes(b"garbage")
    path.chmod(mode)
    with pytest.raises(errors.InvalidRequest, match=name):
        pki.load(house, "array", "a1")


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["localhost"],
        ["arraylift://array/a1", "arraylift://target/t1"],
        ["arraylift://king/a1"],
        ["arraylift://array"],
        ["arraylift://array/"],
        ["arraylift://array/a/b"],
        ["https://array/a1"],
    ],
)
def test_anything_but_one_well_formed_uri_is_no_identity(names: list[str]) -> None:
    with pytest.raises(errors.NotPermitted, match="no Arraylift identity"):
        peer_of_names(names)


@pytest.mark.parametrize("role", ROLES)
def test_an_identity_survives_its_uri(role: str) -> None:
    peer = checked_peer(role, "Rack-3.unit_7")
    assert peer_of_names(["localhost", peer.uri]) == peer
