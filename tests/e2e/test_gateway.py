"""Disks on foreign storage, backed up through their NBD exports: QEMU's, qemu-nbd's, another array's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import (
    ArrayliftError,
    Corruption,
    NotFound,
    NotPermitted,
    PeerUnavailable,
    TrackerMismatch,
    WrongState,
)
from arraylift.ids import random_id
from arraylift.rpc.channel import call
from arraylift.sizes import KIB, MIB
from arraylift.v1 import backup_logic_pb2 as pb
from arraylift.v1 import common_pb2, volume_pb2
from tests.e2e.cluster import FULL_READ, Cluster, Running, Sent, in_thread, last_of
from tests.e2e.daemon import free_port, wait_until
from tests.e2e.disks import differing_spans, make_disk, random_disk
from tests.e2e.qemu import Qemu, run
from tests.programs import need

BITMAP = pb.CHANGE_SOURCE_BITMAP
SIZE = 48 * MIB
SAMPLE_SPANS = 4


def fresh_state() -> common_pb2.SourceState:
    return common_pb2.SourceState(pool_id=random_id(), lineage_id=random_id(), birth=1)


def messages(
    cluster: Cluster,
    uri: str,
    transfer: tuple[str, bytes],
    state: common_pb2.SourceState,
    *,
    bitmap: str = "",
    since: common_pb2.SourceState | None = None,
    **more: Any,
) -> Iterator[Any]:
    request = pb.SendForeignDiskRequest(
        uri=uri,
        target_address=cluster.target.address,
        transfer_id=transfer[0],
        grant=transfer[1],
        state=state,
        **more,
    )
    if bitmap:
        request.bitmap.name = bitmap
        request.bitmap.since.CopyFrom(since or fresh_state())
    return cluster.messages(cluster.backup_logic.SendForeignDisk, request)


def send(
    cluster: Cluster, uri: str, image: str, state: common_pb2.SourceState | None = None, **more: Any
) -> Sent:
    return last_of(list(messages(cluster, uri, cluster.grant(image), state or fresh_state(), **more)))


def arraylift(cluster: Cluster, *words: object) -> Any:
    """Run the command against these daemons; returns its document."""
    where = ["--pki", cluster.pki, "--array", cluster.array.address, "--target", cluster.target.address]
    return json.loads(run(sys.executable, "-m", "arraylift.cli", *words, *where, "--json") or "null")


def restored(cluster: Cluster, image_id: str, volume: str) -> bytearray:
    cluster.restore(image_id, volume)
    return cluster.volume_bytes(volume)


# -- a running QEMU -----------------------------------------------------------------------------


@pytest.fixture
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    need("qemu-system-x86_64", "qemu-img")
    made = Qemu(tmp_path_factory.mktemp("q"), SIZE)  # a short name: sockets lie in it
    try:
        yield made
    finally:
        made.close()


def converted(uri: str, folder: Path) -> bytes:
    """What qemu-img makes of the same export."""
    raw = folder / "reference.raw"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, raw)
    return raw.read_bytes()


def test_a_running_qemu_is_backed_up_in_full_and_by_its_bitmap(
    shared: Cluster, qemu: Qemu, tmp_path: Path
) -> None:
    disk = bytearray(SIZE)
    for number, span in enumerate((0, 1, 2, 7, 20, 21, 22, 40, 47)):
        qemu.write(span * MIB + 37 * KIB, random_disk(512 * KIB, seed=number), disk)
    uri, first = qemu.freeze(begin_bitmap="since-1"), fresh_state()
    frozen = bytes(disk)
    qemu.write(7 * MIB, random_disk(MIB, seed=50), disk)  # while it is being backed up: not in it
    qemu.discard(20 * MIB, MIB, disk)
    assert converted(uri, tmp_path) == frozen
    full = send(shared, uri, "vm/full", first)
    qemu.release(uri)
    assert full.change_source == FULL_READ
    assert full.figures.spans_hole >= SIZE // MIB - 10, "what reads as zeros is not read"
    assert full.figures.bytes_read < 10 * MIB
    assert differing_spans(restored(shared, full.image_id, "qemu-1"), frozen) == []

    uri, second = qemu.freeze(begin_bitmap="since-2", end_bitmap="since-1"), fresh_state()
    frozen = bytes(disk)
    qemu.write(0, random_disk(4 * MIB, seed=51), disk)
    assert converted(uri, tmp_path) == frozen
    incremental = send(shared, uri, "vm/full", second, bitmap="since-1", since=first)
    qemu.release(uri)
    assert incremental.change_source == BITMAP
    assert incremental.figures.spans_read + incremental.figures.spans_hole == 2
    assert 0 < incremental.figures.spans_sampled <= SAMPLE_SPANS
    assert differing_spans(restored(shared, incremental.image_id, "qemu-2"), frozen) == []
    image = shared.image_list("vm/full")[0]
    assert (image.image_id, image.source_state) == (incremental.image_id, second)

    # And as an operator does it: the command takes the newest image's state for that of the bitmap.
    uri, frozen = qemu.freeze(begin_bitmap="since-3", end_bitmap="since-2"), bytes(disk)
    sent = arraylift(shared, "array", "gateway", "send", uri, "--image", "vm/full", "--bitmap", "since-2")
    qemu.release(uri)
    assert (sent["change_source"], sent["base_image_id"]) == ("bitmap", incremental.image_id)
    raw = tmp_path / "restored.raw"
    arraylift(shared, "target", "images", "read", "vm/full", "--to", raw)
    assert raw.read_bytes() == frozen


def test_a_bitmap_that_cannot_vouch_makes_everything_be_read(shared: Cluster, qemu: Qemu) -> None:
    disk = bytearray(SIZE)
    for span in range(8):
        qemu.write(span * MIB, random_disk(MIB, seed=span), disk)
    uri, first = qemu.freeze(begin_bitmap="b1"), fresh_state()
    send(shared, uri, "vm/doubt", first)
    qemu.release(uri)
    qemu.write(3 * MIB, random_disk(64 * KIB, seed=60), disk)
    uri = qemu.freeze(begin_bitmap="b2", end_bitmap="b1")
    for name, since in (("b1", fresh_state()), ("nobody", first)):  # another state; no such bitmap
        sent = send(shared, uri, "vm/doubt-2", bitmap=name, since=since)
        assert (sent.change_source, sent.figures.spans_read) == (FULL_READ, 8)
        assert differing_spans(shared.image_bytes(sent.image_id), disk) == []
    qemu.kill_and_restart()  # the bitmaps were in memory, and are gone with QEMU
    uri = qemu.freeze(begin_bitmap="b3")
    sent = send(shared, uri, "vm/doubt", bitmap="b2", since=first)
    assert sent.change_source == FULL_READ
    assert differing_spans(shared.image_bytes(sent.image_id), disk) == []


def test_a_bitmap_that_lies_is_caught_and_no_longer_believed(cluster: Cluster, qemu: Qemu) -> None:
    disk = bytearray(SIZE)
    for span in range(SAMPLE_SPANS):  # all of it is in the sample
        qemu.write(span * MIB, random_disk(MIB, seed=span), disk)
    uri, first = qemu.freeze(begin_bitmap="b1"), fresh_state()
    send(cluster, uri, "vm/lie", first)
    qemu.release(uri)
    qemu.write(2 * MIB, b"unseen", disk)
    qemu.ask("block-dirty-bitmap-clear", node="disk", name="b1")  # at another instant than the backup's
    uri = qemu.freeze(begin_bitmap="b2", end_bitmap="b1")
    with pytest.raises(TrackerMismatch, match="b1"):
        send(cluster, uri, "vm/lie", bitmap="b1", since=first)
    assert len(cluster.image_list("vm/lie")) == 1
    cluster.array.kill()
    cluster.array.start()  # the doubt is durable
    healed = send(cluster, uri, "vm/lie", bitmap="b1", since=first)
    assert healed.change_source == FULL_READ
    assert differing_spans(cluster.image_bytes(healed.image_id), disk) == []


# -- qemu-nbd -----------------------------------------------------------------------------------


class QemuNbd:
    """One qemu-nbd over a raw file on a port of its own."""

    def __init__(self, home: Path, disk: bytes | bytearray, *options: str) -> None:
        need("qemu-nbd")
        self._home = home
        self.path = home / "foreign.raw"
        self.path.write_bytes(disk)
        self._options = options
        self.port = free_port()
        self.uri = f"nbd://127.0.0.1:{self.port}/disk"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, image: Path | None = None) -> None:
        command = ["qemu-nbd", "--read-only", "--persistent", "--shared=8", "--export-name=disk"]
        command += [f"--port={self.port}", "--bind=127.0.0.1", *self._options]
        self._process = subprocess.Popen(
            [*command, "--format=raw", str(image or self.path)], stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "qemu-nbd listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        with open("/proc/net/tcp") as table:
            return any(f":{self.port:04X} 00000000:0000 0A" in line for line in table)

    def kill(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def test_every_byte_of_an_odd_disk_comes_through(shared: Cluster, tmp_path: Path) -> None:
    disk = make_disk(11 * MIB + 3 * 512, seed=70)
    server = QemuNbd(tmp_path, disk)
    server.start()
    try:
        sent = send(shared, server.uri, "odd")
        assert differing_spans(restored(shared, sent.image_id, "odd-back"), disk) == []
        shared.import_disk("odd-native", disk)
        assert shared.back_up("odd-native", "odd-native").root == sent.root, (
            "the same bytes are the same image"
        )
        again = send(shared, server.uri, "odd")
        assert (again.change_source, again.figures.segments_sent, again.root) == (FULL_READ, 0, sent.root)
    finally:
        server.close()


def test_qemu_nbd_is_read_through_tls(shared: Cluster, tmp_path: Path) -> None:
    disk = random_disk(5 * MIB, seed=77)
    shared.tls("host", "h1")
    folder = tmp_path / "credentials"
    folder.mkdir()
    copies = {"ca-cert.pem": "ca.pem", "server-cert.pem": "host-h1.pem", "server-key.pem": "host-h1.key"}
    for name, ours in copies.items():
        shutil.copy(shared.pki / ours, folder / name)
    secret = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={folder}"
    server = QemuNbd(tmp_path, disk, "--object", secret, "--tls-creds", "tls")
    server.start()
    uri = server.uri.replace("nbd:", "nbds:")
    try:
        sent = send(shared, uri, "through-tls")  # as the array that it is
        assert differing_spans(shared.image_bytes(sent.image_id), disk) == []
        operator = shared.tls("operator", "admin")
        given = pb.NbdCredentials(
            ca_pem=operator.ca_pem, certificate_pem=operator.certificate_pem, key_pem=operator.key_pem
        )
        assert send(shared, uri, "through-tls", credentials=given).root == sent.root
        given.ClearField("certificate_pem")
        given.ClearField("key_pem")
        with pytest.raises(ArrayliftError):  # it demands one
            send(shared, uri, "through-tls", credentials=given, patience_seconds=1)
        with pytest.raises(NotPermitted, match="demands TLS"):
            send(shared, server.uri, "through-tls")
    finally:
        server.close()


def test_a_server_that_dies_is_retried_and_the_transfer_resumes(shared: Cluster, tmp_path: Path) -> None:
    disk = random_disk(64 * MIB, seed=71)
    server = QemuNbd(tmp_path, disk)
    server.start()
    try:
        transfer, state = shared.grant("dies"), fresh_state()
        # So slow that half of it takes longer than the target waits with what is not durable.
        slow: dict[str, Any] = {"bytes_per_second_max": 8 * MIB}
        running = in_thread(lambda: messages(shared, server.uri, transfer, state, patience_seconds=1, **slow))
        wait_until(lambda: _read(running) >= 32 * MIB, "half of it is read")
        server.kill()
        with pytest.raises(PeerUnavailable, match="NBD server"):
            running.wait()
        assert shared.image_list("dies") == [], "nothing half is an image"
        server.start()
        sent = last_of(list(messages(shared, server.uri, transfer, state)))
        # Spans that were logged are not read again, segments that were durable do not travel again.
        assert sent.figures.bytes_sent < len(disk)
        assert differing_spans(shared.image_bytes(sent.image_id), disk) == []

        # Back within the patience of the call: nobody notices but the figures.
        transfer = shared.grant("dies-2")
        running = in_thread(
            lambda: messages(shared, server.uri, transfer, state, patience_seconds=60, **slow)
        )
        wait_until(lambda: _read(running) >= 16 * MIB, "some of it is read")
        server.kill()
        server.start()
        sent = last_of(running.wait())
        assert sent.figures.attempts > 1
        assert differing_spans(shared.image_bytes(sent.image_id), disk) == []
    finally:
        server.close()


def _read(running: Running) -> int:
    return int(running.news[-1].figures.bytes_read) if running.news else 0


def test_another_disk_behind_the_same_name_is_not_mixed_in(shared: Cluster, tmp_path: Path) -> None:
    server = QemuNbd(tmp_path, random_disk(64 * MIB, seed=72))
    server.start()
    other = tmp_path / "other.raw"
    other.write_bytes(random_disk(65 * MIB, seed=73))
    try:
        transfer = shared.grant("mixed")
        running = in_thread(
            lambda: messages(shared, server.uri, transfer, fresh_state(), bytes_per_second_max=8 * MIB)
        )
        wait_until(lambda: _read(running) >= 8 * MIB, "some of it is read")
        server.kill()
        server.start(image=other)
        with pytest.raises(WrongState, match="another disk"):
            running.wait()
    finally:
        server.close()


def test_a_read_error_ends_the_transfer_and_no_zeros_stand_in(shared: Cluster, tmp_path: Path) -> None:
    disk = random_disk(8 * MIB, seed=74)
    server = QemuNbd(tmp_path, disk)
    rules = tmp_path / "blkdebug.conf"
    rules.write_text(f'[inject-error]\nevent = "read_aio"\nsector = "{5 * MIB // 512}"\nerrno = "5"\n')
    image = f"driver=raw,file.driver=blkdebug,file.config={rules}"
    image += f",file.image.driver=file,file.image.filename={server.path}"
    command = ["qemu-nbd", "-r", "-t", "-e", "8", "-x", "disk", "-p", str(server.port), "-b", "127.0.0.1"]
    process = subprocess.Popen([*command, "--image-opts", image], stderr=subprocess.DEVNULL)
    server._process = process
    try:
        wait_until(server._listens, "qemu-nbd listens")
        with pytest.raises(Corruption, match="cannot read"):
            send(shared, server.uri, "error")
        assert shared.image_list("error") == []
    finally:
        server.close()


def test_what_is_not_there_is_said_at_once(shared: Cluster, tmp_path: Path) -> None:
    server = QemuNbd(tmp_path, random_disk(MIB, seed=75))
    with pytest.raises(PeerUnavailable, match="does not answer"):
        send(shared, server.uri, "absent")
    server.start()
    try:
        with pytest.raises(NotFound, match="nothing"):
            send(shared, f"nbd://127.0.0.1:{server.port}/nothing", "absent")
        with pytest.raises(NotPermitted, match="no TLS"):
            send(shared, server.uri.replace("nbd:", "nbds:"), "absent")
    finally:
        server.close()


# -- an array's own exports ---------------------------------------------------------------------


def test_an_arrays_export_is_read_through_tls(shared: Cluster) -> None:
    disk = make_disk(9 * MIB, seed=76)
    shared.import_disk("exported", disk)
    snapshot = shared.snapshot("exported")
    request = volume_pb2.CreateExportRequest(name="exported", snapshot_id=snapshot)
    uri: str = call(shared.volumes.CreateExport, request, peer="array1").export.uri
    assert uri.startswith("nbds://")
    sent = send(shared, uri, "exported")
    assert differing_spans(shared.image_bytes(sent.image_id), disk) == []
    assert sent.figures.bytes_read <= sum(any(disk[at : at + MIB]) for at in range(0, len(disk), MIB)) * MIB
    with pytest.raises(ArrayliftError, match="demands TLS"):
        send(shared, uri.replace("nbds:", "nbd:"), "exported")
    foreign = pb.NbdCredentials(ca_pem=(shared.pki / "array-array1.pem").read_bytes())
    with pytest.raises(NotPermitted, match="no TLS"):
        send(shared, uri, "exported", credentials=foreign)
