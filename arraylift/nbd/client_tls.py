"""TLS of an NBD client: the house's certificates, or those that a server elsewhere wants.

Invariants:
  S1 a server without a certificate of the given CA, for the name that was called, is not spoken to.
Callers: client, any thread.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field

from arraylift.errors import InvalidRequest, NotPermitted
from arraylift.pki import TlsMaterial


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """PEM; certificate and key are empty where the server asks for none."""

    ca_pem: bytes
    certificate_pem: bytes = b""
    key_pem: bytes = field(default=b"", repr=False)


def house_credentials(material: TlsMaterial) -> ClientCredentials:
    """For servers of this site."""
    return ClientCredentials(material.ca_pem, material.certificate_pem, material.key_pem)


def secure(connection: socket.socket, credentials: ClientCredentials, name: str) -> ssl.SSLSocket:
    """Shake hands within the socket's timeout. Raises NotPermitted, InvalidRequest, TimeoutError."""
    context = _context(credentials)
    try:
        return context.wrap_socket(connection, server_hostname=name, suppress_ragged_eofs=False)
    except TimeoutError:
        raise
    except (ssl.SSLError, ssl.CertificateError, OSError, ValueError) as error:
        raise NotPermitted(
            f"no TLS with the NBD server came about: {error}",
            subject=name,
            next_step="its certificate must name that host and be of the CA given, ours of one it trusts",
        ) from None


def _context(credentials: ClientCredentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # demands a certificate, and the name in it
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=credentials.ca_pem.decode("ascii"))
        if credentials.certificate_pem:
            _load_chain(context, credentials.certificate_pem + b"\n" + credentials.key_pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest(f"the certificates for the NBD server cannot be used: {error}") from None
    return context


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    # The module reads keys from files only: one that is never on a disk.
    descriptor = os.memfd_create("tls")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    finally:
        os.close(descriptor)
