"""TLS of an NBD server: the house's certificates, mutual, as for gRPC.

Invariants:
  S1 a client without a certificate of the site's CA does not get past the handshake.
  S2 no session is resumed: every connection shows its certificate.
Callers: server and connection, any thread.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, cast

from arraylift.errors import NotPermitted
from arraylift.pki import TlsMaterial
from arraylift.rpc.identity import Peer, peer_of_names


def server_context(material: TlsMaterial) -> ssl.SSLContext:
    """Return the context for all connections of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # S2
    context.verify_mode = ssl.CERT_REQUIRED  # S1
    context.load_verify_locations(cadata=material.ca_pem.decode())
    # The module reads keys from files only: one that is never on a disk.
    descriptor = os.memfd_create("tls")
    try:
        os.write(descriptor, material.certificate_pem + material.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def accept(context: ssl.SSLContext, connection: socket.socket) -> tuple[ssl.SSLSocket, Peer]:
    """Shake hands within the socket's timeout; return the secured socket and who is there.

    Raises NotPermitted (no identity, no TLS, another CA), TimeoutError.
    """
    try:
        secured = context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=True)
    except TimeoutError:
        raise
    except (ssl.SSLError, OSError) as error:
        raise NotPermitted(f"no TLS came about: {error}") from None
    try:
        return secured, peer_of_certificate(secured)
    except BaseException:
        secured.close()
        raise


def peer_of_certificate(secured: ssl.SSLSocket) -> Peer:
    """Return who the verified certificate names. Raises NotPermitted."""
    certificate = cast("dict[str, Any]", secured.getpeercert() or {})
    names = certificate.get("subjectAltName", ())
    return peer_of_names(value for kind, value in names if kind == "URI")
