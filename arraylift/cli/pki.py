"""``arraylift pki``: the house's certificates.

Callers: the command line, main thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from arraylift import pki
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import pairs
from arraylift.pki import CERTIFICATE_DAYS, CertificateFacts
from arraylift.rpc.identity import ROLES

_OLD = "those of an older release: issue it again before a daemon uses it"


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Make a CA, issue certificates, look at them.")
    command(noun, "init", examples="arraylift pki init --pki /etc/arraylift/pki")(init)
    command(noun, "issue", examples="arraylift pki issue array array1 --host array1.example.org")(issue)
    command(noun, "show", examples="arraylift pki show ~/.local/state/arraylift/pki/ca.pem")(show)
    app.add_typer(noun, name="pki")


def init(session: Session) -> None:
    """Make a CA in the certificate directory; never replaces one."""
    directory = session.places.pki_directory()
    _emit(session, directory / "ca.pem", pki.init_ca(str(directory)))


def issue(
    session: Session,
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    name: Annotated[str, typer.Argument(help="Its name, e.g. array1.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address that it is reached by; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = CERTIFICATE_DAYS,
) -> None:
    """Issue a certificate, or renew one with a fresh key."""
    directory = session.places.pki_directory()
    facts = pki.issue(str(directory), role, name, host or [], days)
    _emit(session, directory / f"{role}-{name}.pem", facts)


def show(
    session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="A PEM certificate.")]
) -> None:
    """Show what a certificate says."""
    _emit(session, file, pki.show(str(file)))


def _emit(session: Session, path: Path, facts: CertificateFacts) -> None:
    document = {
        "path": str(path),
        "is_ca": facts.is_ca,
        "role": facts.peer.role if facts.peer else None,
        "name": facts.peer.name if facts.peer else None,
        "hosts": list(facts.hosts),
        "names_role": facts.names_role,
        "not_before": facts.not_before.isoformat(),
        "not_after": facts.not_after.isoformat(),
        "serial": facts.serial,
        "issuer": facts.issuer,
        "sha256": facts.sha256,
    }
    shown: RenderableType = pairs(
        [
            ("certificate", path),
            ("identity", "a CA" if facts.is_ca else facts.peer),
            ("hosts", ", ".join(facts.hosts) or "-"),
            *([] if facts.names_role or facts.is_ca else [("names", _OLD)]),
            ("valid from", f"{facts.not_before:%Y-%m-%d %H:%M} UTC"),
            ("valid until", f"{facts.not_after:%Y-%m-%d %H:%M} UTC"),
            ("issuer", facts.issuer),
            ("serial", facts.serial),
            ("SHA-256", facts.sha256),
        ]
    )
    session.emit(document, shown)
