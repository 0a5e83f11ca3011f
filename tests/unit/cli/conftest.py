"""Fake daemons of all five kinds behind real TLS, and the command run against them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from arraylift import pki
from arraylift.cli.app import run
from arraylift.cli.connection import Connection
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import (
    backup_logic_pb2_grpc,
    backup_pb2_grpc,
    catalog_pb2_grpc,
    image_pb2_grpc,
    target_admin_pb2_grpc,
    virtual_center_pb2,
    virtual_center_pb2_grpc,
    vm_pb2_grpc,
    volume_pb2_grpc,
)
from tests.unit.cli.fakes import FakeAdmin, FakeBackupLogic, FakeImages, FakeVolumes
from tests.unit.cli.vm_fakes import FakeCatalog, FakeCenter, FakeHost, FakeServer


@dataclass
class Daemons:
    """The fakes, listening."""

    pki: Path
    array_address: str = ""
    target_address: str = ""
    vcenter_address: str = ""
    server_address: str = ""
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    backup_logic: FakeBackupLogic = field(default_factory=FakeBackupLogic)
    admin: FakeAdmin = field(default_factory=FakeAdmin)
    images: FakeImages = field(default_factory=FakeImages)
    center: FakeCenter = field(default_factory=FakeCenter)
    host: FakeHost = field(default_factory=FakeHost)
    server: FakeServer = field(default_factory=FakeServer)
    catalog: FakeCatalog = field(default_factory=FakeCatalog)

    def options(self) -> list[str]:
        """What leads the command to them."""
        addresses = {
            "array": self.array_address,
            "target": self.target_address,
            "vcenter": self.vcenter_address,
            "server": self.server_address,
        }
        words = [word for noun, address in addresses.items() for word in (f"--{noun}", address)]
        return ["--pki", str(self.pki), *words]


@dataclass
class Ended:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Arraylift = Callable[..., Ended]

NAMES = {"array": "a7", "target": "t7", "vcenter": "v7", "host": "h7", "server": "s7"}


@pytest.fixture(scope="session")
def pki_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    pki.init_ca(str(directory))
    for role, name in (("operator", "admin"), *NAMES.items()):
        pki.issue(str(directory), role, name)
    return directory


@pytest.fixture
def daemons(pki_directory: Path) -> Iterator[Daemons]:
    made = Daemons(pki_directory)
    # In a process of their own their logs would be on its standard error.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    services = {
        "array": [
            service_of(volume_pb2_grpc.add_VolumeServiceServicer_to_server, made.volumes),
            service_of(backup_logic_pb2_grpc.add_BackupLogicServiceServicer_to_server, made.backup_logic),
        ],
        "target": [
            service_of(image_pb2_grpc.add_ImageServiceServicer_to_server, made.images),
            service_of(target_admin_pb2_grpc.add_TargetAdminServiceServicer_to_server, made.admin),
        ],
        "vcenter": [
            service_of(virtual_center_pb2_grpc.add_VirtualCenterServiceServicer_to_server, made.center)
        ],
        "host": [service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, made.host)],
        "server": [
            service_of(backup_pb2_grpc.add_BackupServiceServicer_to_server, made.server),
            service_of(catalog_pb2_grpc.add_CatalogServiceServicer_to_server, made.catalog),
        ],
    }
    running = {
        noun: RpcServer("127.0.0.1:0", pki.load(str(pki_directory), noun, NAMES[noun]), served)
        for noun, served in services.items()
    }
    for server in running.values():
        server.start()
    made.array_address, made.target_address = running["array"].address, running["target"].address
    made.vcenter_address, made.server_address = running["vcenter"].address, running["server"].address
    made.center.host = virtual_center_pb2.Host(name="h7", address=running["host"].address)
    yield made
    for server in running.values():
        server.stop(0)
    structlog.reset_defaults()


@pytest.fixture
def array(daemons: Daemons) -> Iterator[Connection]:
    connection = Connection("array", daemons.array_address, daemons.pki)
    yield connection
    connection.close()


@pytest.fixture
def target(daemons: Daemons) -> Iterator[Connection]:
    connection = Connection("target", daemons.target_address, daemons.pki)
    yield connection
    connection.close()


@pytest.fixture
def bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Arraylift]:
    """The command, in this process, with an empty state directory."""
    for name in ("STATE", "PKI", "ARRAY", "TARGET", "VCENTER", "SERVER"):
        monkeypatch.delenv(f"ARRAYLIFT_{name}", raising=False)
    monkeypatch.setenv("ARRAYLIFT_STATE", str(tmp_path / "state"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def arraylift(*arguments: object) -> Ended:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    yield arraylift
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def arraylift(bare: Arraylift, daemons: Daemons) -> Arraylift:
    """The command, talking to the fakes."""

    def talking(*arguments: object) -> Ended:
        return bare(*daemons.options(), *arguments)  # a command's own --array comes later, and wins

    return talking
