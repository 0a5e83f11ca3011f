"""An array's NBD judged by outside programs, over TCP, a Unix socket and TLS."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift import pki
from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, WrongState
from arraylift.rpc.channel import call, connect
from arraylift.sizes import MIB
from arraylift.v1 import volume_pb2 as pb
from arraylift.v1 import volume_pb2_grpc
from tests.e2e.daemon import Daemon
from tests.fakes.nbd import Client
from tests.programs import need

CONFORM = Path(__file__).with_name("nbd_conform.sh")
SIZE = 64 * MIB


class Array:
    """One daemon that offers TLS and takes plain clients too, with the calls that tests make."""

    def __init__(self, home: Path) -> None:
        self.pki = home / "pki"
        pki.init_ca(str(self.pki))
        for role, name in (
            ("array", "a1"),
            ("operator", "admin"),
            ("host", "h1"),
            ("target", "t1"),
            ("server", "s1"),
        ):
            pki.issue(str(self.pki), role, name)
        self.socket = str(home / "nbd.sock")
        settings = {"nbd_tls": "offered", "nbd_socket": self.socket}
        self.daemon = Daemon("primary_array", "a1", home=home, pki=self.pki, settings=settings)
        self._channel = connect(self.daemon.address, pki.load(str(self.pki), "operator", "admin"), "array")
        self._stub = volume_pb2_grpc.VolumeServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()
        self.daemon.close()

    def ask(self, method: str, request: Any) -> Any:
        return call(getattr(self._stub, method), request, peer="array a1")

    def volume(self, name: str, size_bytes: int = SIZE) -> None:
        self.ask("CreateVolume", pb.CreateVolumeRequest(name=name, size_bytes=size_bytes))

    def export(self, name: str, **what: Any) -> Any:
        return self.ask("CreateExport", pb.CreateExportRequest(name=name, **what)).export

    def exports(self) -> dict[str, Any]:
        return {each.name: each for each in self.ask("ListExports", pb.ListExportsRequest()).exports}

    def snapshot(self, volume: str, name: str) -> str:
        request = pb.CreateSnapshotsRequest(volume_names=[volume], name=name)
        found: str = self.ask("CreateSnapshots", request).snapshots[0].snapshot_id
        return found

    def port(self) -> int:
        any_uri: str = next(iter(self.exports().values())).uri
        return int(any_uri.rpartition(":")[2].partition("/")[0])

    def credentials(self, folder: Path, role: str, name: str) -> Path:
        """A folder as QEMU and libnbd want it."""
        folder.mkdir()
        shutil.copy(self.pki / "ca.pem", folder / "ca-cert.pem")
        shutil.copy(self.pki / f"{role}-{name}.pem", folder / "client-cert.pem")
        shutil.copy(self.pki / f"{role}-{name}.key", folder / "client-key.pem")
        return folder


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Array]:
    made = Array(tmp_path_factory.mktemp("nbd"))
    try:
        made.daemon.start()
        yield made
    finally:
        made.close()


def run(*command: object, ok: bool = True) -> str:
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode == 0) == ok, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout if ok else ended.stdout + ended.stderr


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_outside_programs_agree_with_the_server(array: Array, way: str) -> None:
    need("nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio")
    array.volume(f"judged-{way}")
    array.export(f"judged-{way}", volume_name=f"judged-{way}")
    tcp = f"nbd://127.0.0.1:{array.port()}/judged-{way}"
    unix = f"nbd+unix:///judged-{way}?socket={array.socket}"
    ended = subprocess.run(
        [str(CONFORM), tcp if way == "tcp" else unix],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout.splitlines()[-1]


def test_a_snapshot_is_served_read_only_with_its_changes(array: Array) -> None:
    need("nbdinfo")
    array.volume("tracked", 4 * MIB)
    array.export("tracked", volume_name="tracked")
    client = Client.connect(array.socket, "tracked")
    client.write(0, b"a" * MIB)
    older = array.snapshot("tracked", "older")
    client.write(2 * MIB, b"b" * 70_000)
    newer = array.snapshot("tracked", "newer")
    client.write(0, b"c" * MIB)
    client.close()
    array.export("tracked-newer", snapshot_id=newer)
    context = f"arraylift:changed:{older}"
    uri = f"nbd+unix:///tracked-newer?socket={array.socket}"
    said = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
    assert said["is_read_only"]
    assert said["contexts"] == ["base:allocation", context]
    extents = json.loads(run("nbdinfo", "--json", f"--map={context}", uri))
    changed = [(each["offset"], each["length"]) for each in extents if each["type"]]
    assert changed == [(2 * MIB, 2 << 16)]
    reader = Client.connect(array.socket, "tracked-newer")
    assert reader.read(0, MIB) == b"a" * MIB
    assert reader.read(2 * MIB, 70_000) == b"b" * 70_000
    reader.close()


def test_an_export_is_made_once_survives_restarts_and_guards_what_it_serves(array: Array) -> None:
    array.volume("kept", 4 * MIB)
    frozen = array.snapshot("kept", "frozen")
    made = array.export("kept", volume_name="kept")
    assert array.export("kept", volume_name="kept") == made
    assert made.uri == f"nbds://127.0.0.1:{array.port()}/kept"
    array.export("kept@frozen", snapshot_id=frozen)
    with pytest.raises(AlreadyExists):
        array.export("kept", volume_name="kept", read_only=True)
    with pytest.raises(NotFound):
        array.export("nothing", volume_name="nothing")
    with pytest.raises(InvalidRequest):
        array.export("a/b", volume_name="kept")
    with pytest.raises(WrongState, match="exported"):
        array.ask("DeleteVolume", pb.DeleteVolumeRequest(name="kept", cascade=True))
    with pytest.raises(WrongState):
        array.ask("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=frozen))
    array.daemon.stop()
    array.daemon.start()
    assert array.exports()["kept@frozen"].read_only
    with pytest.raises(WrongState):
        array.ask("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=frozen))
    for name in ("kept", "kept@frozen"):
        array.ask("DeleteExport", pb.DeleteExportRequest(name=name))
    with pytest.raises(NotFound):
        array.ask("DeleteExport", pb.DeleteExportRequest(name="kept"))
    array.ask("DeleteExport", pb.DeleteExportRequest(name="kept", missing_ok=True))
    array.ask("DeleteVolume", pb.DeleteVolumeRequest(name="kept", cascade=True))


def test_removing_an_export_ends_its_clients_and_no_others(array: Array) -> None:
    array.volume("busy", 4 * MIB)
    array.export("busy", volume_name="busy")
    array.export("calm", volume_name="busy")
    busy, calm = (Client.connect(array.socket, name) for name in ("busy", "calm"))
    assert array.exports()["busy"].connection_count == 1
    array.ask("DeleteExport", pb.DeleteExportRequest(name="busy"))
    with pytest.raises((EOFError, OSError)):
        busy.read(0, 512)
    assert calm.read(0, 512) == bytes(512)
    with pytest.raises(ConnectionRefusedError):
        Client.connect(array.socket, "busy")
    busy.close()
    calm.close()


# -- TLS ----------------------------------------------------------------------------------------


def _image_options(array: Array, name: str, folder: Path) -> list[str]:
    return [
        "--object",
        f"tls-creds-x509,id=tls,endpoint=client,dir={folder}",
        "--image-opts",
        f"driver=nbd,host=127.0.0.1,port={array.port()},export={name},tls-creds=tls",
    ]


def test_qemu_img_works_through_tls(array: Array, tmp_path: Path) -> None:
    need("qemu-img")
    array.volume("secret", SIZE)
    array.export("secret", volume_name="secret")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(range(256)) * (4 * MIB // 256))
    run("truncate", "-s", SIZE, disk)
    ours = _image_options(array, "secret", array.credentials(tmp_path / "host", "host", "h1"))
    run("qemu-img", "convert", "-n", "-f", "raw", *ours[:2], "--target-image-opts", disk, ours[3])
    run("qemu-img", "compare", *ours[:3], f"driver=raw,file.filename={disk}", ours[3])
    extents = json.loads(run("qemu-img", "map", "--output=json", *ours))
    assert sum(extent["length"] for extent in extents if extent["data"]) == 4 * MIB
    out = tmp_path / "out"
    run("qemu-img", "convert", *ours, "-O", "raw", out)
    assert out.read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("role", "name", "access"), [("host", "h1", "write"), ("target", "t1", "read"), ("server", "s1", "")]
)
def test_the_certificate_decides(array: Array, tmp_path: Path, role: str, name: str, access: str) -> None:
    need("nbdinfo")
    if "guarded" not in array.exports():
        array.volume("guarded", 4 * MIB)
        array.export("guarded", volume_name="guarded")
    folder = array.credentials(tmp_path / "creds", role, name)
    uri = f"nbds://127.0.0.1:{array.port()}/guarded?tls-certificates={folder}"
    said = run("nbdinfo", "--json", uri, ok=bool(access))
    if access:
        assert json.loads(said)["exports"][0]["is_read_only"] == (access == "read")
    else:
        assert "server replied with error" in said
