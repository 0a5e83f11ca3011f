"""Back up every VM and wait: only the generated stubs, grpc and an operator's certificate.

python examples/backup_every_vm.py localhost:7405 ~/.local/state/arraylift/pki
"""
# ruff: noqa: INP001, T201  # a program for a terminal, in no package

import sys
import time
from pathlib import Path

import grpc

from arraylift.v1 import backup_pb2, backup_pb2_grpc

ENDED = {backup_pb2.JOB_STATE_SUCCEEDED, backup_pb2.JOB_STATE_FAILED, backup_pb2.JOB_STATE_CANCELLED}


def connect(address: str, pki: Path) -> grpc.Channel:
    """Open a channel with mutual TLS."""
    credentials = grpc.ssl_channel_credentials(
        (pki / "ca.pem").read_bytes(),
        (pki / "operator-admin.key").read_bytes(),
        (pki / "operator-admin.pem").read_bytes(),
    )
    return grpc.secure_channel(address, credentials)


def main(address: str, pki: str) -> int:
    """Return how many backups did not succeed."""
    with connect(address, Path(pki).expanduser()) as channel:
        server = backup_pb2_grpc.BackupServiceStub(channel)
        started = server.StartBackup(backup_pb2.StartBackupRequest(all=True), timeout=60)
        waiting, failed = list(started.job_ids), 0
        while waiting:
            time.sleep(0.5)
            for job_id in list(waiting):
                job = server.GetJob(backup_pb2.GetJobRequest(job_id=job_id), timeout=30).job
                if job.state in ENDED:
                    waiting.remove(job_id)
                    failed += job.state != backup_pb2.JOB_STATE_SUCCEEDED
                    state = backup_pb2.JobState.Name(job.state)
                    print(job.vm_name, state, job.backup_id, job.figures.bytes_stored, job.error_text)
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(min(main(sys.argv[1], sys.argv[2]), 100))
