"""This host's certificate, as QEMU wants it: a folder of files, readable by whom QEMU runs as.

Owns: ``<state>/qemu-tls``. Written at each start, so a renewed certificate counts for guests that are started
afterwards; QEMU reads the files once, when it starts or is told to.
Callers: the composition root.
"""

from __future__ import annotations

import os

from arraylift.durable import Files
from arraylift.pki import TlsMaterial
from hostagent.qemu.processes import Account

LABEL = "qemu-tls"


def write_tls_files(files: Files, folder: str, tls: TlsMaterial, account: Account | None) -> None:
    """Raises OutOfSpace."""
    files.make_dirs(folder)
    files.sweep(folder)
    parts = {"ca-cert.pem": tls.ca_pem}
    for end in ("client", "server"):
        parts |= {f"{end}-cert.pem": tls.certificate_pem, f"{end}-key.pem": tls.key_pem}
    for name, data in parts.items():
        files.publish(f"{folder}/{name}", [data], label=LABEL)
    if account is not None:
        for path in (folder, *(f"{folder}/{name}" for name in parts)):
            os.chown(path, 0, account.gid)
            os.chmod(path, 0o750 if path == folder else 0o640)
