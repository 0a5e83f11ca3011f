"""The house's certificates: make a CA, issue an identity, load what TLS needs.

Owns: the files ``ca.pem``, ``ca.key`` and ``<role>-<name>.pem``/``.key`` of a PKI directory.
Invariants:
  P1 a key is written readable by its owner only; one that everybody may read is refused.
  P2 an existing CA is never overwritten; ``ca.pem``, written last, is what makes one exist.
  P3 what ``load`` returns will be accepted: issued by that CA, in force, its key at hand, one
     identity, and of a daemon the names by which its callers demand it.
Callers: any thread; nothing is cached, so a renewed certificate counts from the next start.
Decisions: docs/decisions/0002-identity-in-certificates.md, 0083-callers-demand-a-role.md
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Files, RealFiles
from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, NotPermitted, WrongState
from arraylift.rpc.identity import NAMES_DOMAIN, URI_SCHEME, Peer, checked_peer, demanded_name, peer_of_names

CA_DAYS = 3650
CERTIFICATE_DAYS = 825
CERTIFICATE_DAYS_MAX = 825
HOSTS_MAX = 64

ALWAYS_HOSTS = ("localhost", "127.0.0.1", "::1")
OPERATOR = "operator"
"""The one role that nobody calls."""

_BACKDATE = timedelta(minutes=5)  # two machines' clocks differ
_LABEL = "pki"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What one end of a mutual TLS connection needs; PEM."""

    peer: Peer
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a person wants to know of a certificate."""

    peer: Peer | None  # None for a CA
    is_ca: bool
    hosts: tuple[str, ...]
    names_role: bool
    """It has the DNS name by which callers demand it; one of a release before 0083 has not."""
    not_before: datetime
    not_after: datetime
    serial: str
    issuer: str
    sha256: str


def init_ca(directory: str, *, files: Files | None = None, clock: Clock = SYSTEM_CLOCK) -> CertificateFacts:
    """Make a CA in ``directory``. Raises AlreadyExists (P2)."""
    files = files or RealFiles()
    if files.exists(_path(directory, "ca.pem")):
        raise AlreadyExists(
            f"{directory} has a CA already",
            subject=directory,
            next_step="use it, or give another directory; replacing a CA voids all its certificates",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    now = _now(clock)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Arraylift CA {now:%Y-%m-%d}")])
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    files.make_dirs(directory)
    files.publish(_path(directory, "ca.key"), [_key_pem(key)], label=_LABEL)
    files.publish(_path(directory, "ca.pem"), [_pem(certificate)], label=_LABEL)
    return _facts(certificate)


def issue(
    directory: str,
    role: str,
    name: str,
    hosts: Iterable[str] = (),
    days: int = CERTIFICATE_DAYS,
    *,
    files: Files | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> CertificateFacts:
    """Issue, or renew with a fresh key, the certificate of ``role``/``name``.

    ``hosts`` are the DNS names and IP addresses that the daemon is reached by, besides
    ALWAYS_HOSTS. Raises InvalidRequest, NotFound (no CA here), WrongState (the CA expired).
    """
    files = files or RealFiles()
    peer = checked_peer(role, name)
    if not 1 <= days <= CERTIFICATE_DAYS_MAX:
        raise InvalidRequest(f"a certificate is valid for 1 to {CERTIFICATE_DAYS_MAX} days, not {days}")
    names = _general_names(peer, [*ALWAYS_HOSTS, *hosts])
    ca = _certificate(_read(files, _path(directory, "ca.pem")), "ca.pem")
    ca_key = _private_key(_read(files, _path(directory, "ca.key")), "ca.key")
    if ca_key.public_key() != ca.public_key():
        raise WrongState(f"ca.key and ca.pem in {directory} do not belong together", subject=directory)
    now = _now(clock)
    _check_in_force(ca, _path(directory, "ca.pem"), now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(peer)[:64])])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    # A crash between the two leaves a pair that does not match: `load` says so, issue again.
    files.publish(_path(directory, f"{role}-{name}.key"), [_key_pem(key)], label=_LABEL)
    files.publish(_path(directory, f"{role}-{name}.pem"), [_pem(certificate)], label=_LABEL)
    return _facts(certificate)


def show(path: str, *, files: Files | None = None) -> CertificateFacts:
    """Return the facts of a PEM certificate. Raises NotFound, InvalidRequest."""
    return _facts(_certificate(_read(files or RealFiles(), path), path))


def load(
    directory: str, role: str, name: str, *, files: Files | None = None, clock: Clock = SYSTEM_CLOCK
) -> TlsMaterial:
    """Load the identity ``role``/``name`` from a PKI directory (P3); errors of ``load_files``."""
    peer = checked_peer(role, name)
    stem = _path(directory, f"{role}-{name}")
    material = load_files(
        ca=_path(directory, "ca.pem"), certificate=f"{stem}.pem", key=f"{stem}.key", files=files, clock=clock
    )
    if material.peer != peer:
        raise WrongState(f"{stem}.pem is the certificate of {material.peer}", subject=f"{stem}.pem")
    return material


def load_files(
    *, ca: str, certificate: str, key: str, files: Files | None = None, clock: Clock = SYSTEM_CLOCK
) -> TlsMaterial:
    """Load an identity from three PEM files (P3).

    Raises NotFound, InvalidRequest (not PEM), NotPermitted (unreadable, or a key that others may
    read), WrongState (expired, not yet valid, other CA, key of another certificate).
    """
    files = files or RealFiles()
    ca_pem, certificate_pem, key_pem = (_read(files, path) for path in (ca, certificate, key))
    issuer, own = _certificate(ca_pem, ca), _certificate(certificate_pem, certificate)
    now = _now(clock)
    _check_in_force(issuer, ca, now)
    _check_in_force(own, certificate, now)
    try:
        own.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise WrongState(
            f"{certificate} was not issued by the CA in {ca}",
            subject=certificate,
            next_step="use the ca.pem that it was issued with, or issue it again",
        ) from None
    if _private_key(key_pem, key).public_key() != own.public_key():
        raise WrongState(
            f"{key} is not the key of {certificate}",
            subject=key,
            next_step="issue the certificate again with `arraylift pki issue`",
        )
    peer = peer_of_names(_alternative_names(own))
    if peer.role != OPERATOR and not _names_role(peer, _alternative_names(own)):
        raise WrongState(
            f"{certificate} was issued by an older release, and no caller takes its holder for {peer}",
            subject=certificate,
            next_step=f"issue it again: `arraylift pki issue {peer.role} {peer.name}`, with its --host names",
        )
    return TlsMaterial(peer=peer, ca_pem=ca_pem, certificate_pem=certificate_pem, key_pem=key_pem)


# -- reading ------------------------------------------------------------------------------------


def _path(directory: str, name: str) -> str:
    return os.path.join(os.path.abspath(directory), name)


def _read(files: Files, path: str) -> bytes:
    try:
        if path.endswith(".key") and os.path.exists(path) and os.stat(path).st_mode & 0o007:
            raise NotPermitted(
                f"everybody may read the key {path}", subject=path, next_step=f"chmod 600 {path}"
            )
        return files.read(path)
    except NotFound:
        raise NotFound(
            f"there is no {path}",
            subject=path,
            next_step="make it with `arraylift pki init` and `arraylift pki issue`, or copy it there",
        ) from None
    except PermissionError:
        raise NotPermitted(
            f"this process may not read {path}", subject=path, next_step="run it as the file's owner"
        ) from None


def _certificate(pem: bytes, path: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise InvalidRequest(f"{path} is not a PEM certificate", subject=path) from None


def _private_key(pem: bytes, path: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidRequest(f"{path} is not an unencrypted elliptic-curve key in PEM", subject=path)
    return key


def _check_in_force(certificate: x509.Certificate, path: str, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise WrongState(
            f"{path} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            subject=path,
            next_step="issue it again with `arraylift pki issue`, then restart the daemon",
        )
    if now < certificate.not_valid_before_utc:
        raise WrongState(
            f"{path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            subject=path,
            next_step="set this machine's clock right",
        )


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    names = _alternative_names(certificate)
    peer = None if is_ca else peer_of_names(names)
    return CertificateFacts(
        peer=peer,
        is_ca=is_ca,
        hosts=tuple(name for name in names if peer is None or not _is_ours(name)),
        names_role=peer is not None and _names_role(peer, names),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=f"{certificate.serial_number:x}",
        issuer=certificate.issuer.rfc4514_string(),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _is_ours(name: str) -> bool:
    """A name by which identities are spelled, and no host."""
    return name.startswith(URI_SCHEME) or name.endswith(f".{NAMES_DOMAIN}")


def _names_role(peer: Peer, names: Sequence[str]) -> bool:
    return demanded_name(peer.role, name=peer.name) in names


# -- making -------------------------------------------------------------------------------------


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.wall_ns() // 1_000_000_000, UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(peer: Peer, hosts: Sequence[str]) -> list[x509.GeneralName]:
    unique = list(dict.fromkeys(host.strip().lower() for host in hosts))
    if len(unique) > HOSTS_MAX:
        raise InvalidRequest(f"a certificate names at most {HOSTS_MAX} hosts, not {len(unique)}")
    demanded = [demanded_name(peer.role, name=peer.name)]
    demanded += [demanded_name(peer.role, host=host) for host in unique]
    return [
        x509.UniformResourceIdentifier(peer.uri),
        *(_host_name(host) for host in unique),
        *(x509.DNSName(name) for name in demanded),
    ]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
        well_formed = all(
            label and len(label) <= 63 and label.replace("-", "a").isalnum() and label.isascii()
            for label in labels
        )
        if not well_formed or len(host) > 253:
            raise InvalidRequest(
                f"{host[:80]!r} is neither an IP address nor a DNS name", next_step="give it without a port"
            ) from None
        if _is_ours(host) or host == NAMES_DOMAIN:
            raise InvalidRequest(
                f"{host[:80]!r} is no host: names below {NAMES_DOMAIN} say roles", next_step="give another"
            ) from None
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
