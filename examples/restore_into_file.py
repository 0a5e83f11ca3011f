"""Write one disk of a VM's newest backup into a sparse file, straight from the target.

    python examples/restore_into_file.py localhost:7405 localhost:7404 ~/.local/state/arraylift/pki \\
        web disk0 web.img
"""
# ruff: noqa: INP001, T201  # a program for a terminal, in no package

import sys
from pathlib import Path

import grpc

from arraylift.v1 import backup_pb2, backup_pb2_grpc, image_pb2, image_pb2_grpc


def connect(address: str, pki: Path) -> grpc.Channel:
    """Open a channel with mutual TLS; pieces of an image may have 1 MiB and a little."""
    credentials = grpc.ssl_channel_credentials(
        (pki / "ca.pem").read_bytes(),
        (pki / "operator-admin.key").read_bytes(),
        (pki / "operator-admin.pem").read_bytes(),
    )
    return grpc.secure_channel(address, credentials)


def main(
    server_address: str, target_address: str, pki_directory: str, vm: str, disk_name: str, to: str
) -> None:
    """Find the disk's image, then read it whole; each byte was verified at the target."""
    pki = Path(pki_directory).expanduser()
    with connect(server_address, pki) as channel:
        server = backup_pb2_grpc.BackupServiceStub(channel)
        backups = server.ListBackups(backup_pb2.ListBackupsRequest(vm=vm), timeout=30).backups
    disks = [disk for backup in backups[:1] for disk in backup.disks if disk.disk_name == disk_name]
    if not disks:
        sys.exit(f"there is no backup of {disk_name} of {vm}")
    end = 0
    with connect(target_address, pki) as channel, open(to, "xb") as file:
        target = image_pb2_grpc.ImageServiceStub(channel)
        request = image_pb2.ReadRangeRequest(image_id=disks[0].image_id)
        for piece in target.ReadRange(request, timeout=24 * 3600):
            if piece.offset != end:
                sys.exit(f"byte {piece.offset} came where {end} was next")
            if piece.data:
                file.seek(piece.offset)
                file.write(piece.data)
            end = piece.offset + (len(piece.data) or piece.zero_bytes)
        file.truncate(disks[0].size_bytes)
    if end != disks[0].size_bytes:
        sys.exit(f"only {end} of {disks[0].size_bytes} bytes came")
    print(f"{to}: {end} bytes of {vm} {disk_name}")


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    main(*sys.argv[1:])
