"""The protos keep their rules, the stubs are those of the protos, and every method is authorized."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from arraylift.rpc.authz import ALLOWED, check_allowed, check_complete
from arraylift.rpc.identity import ROLES, Peer
from arraylift.rpc.server import Service, service_of

ROOT = Path(__file__).resolve().parents[2]
PROTO_DIR = ROOT / "protos"
PROTOS = sorted(path.relative_to(PROTO_DIR).as_posix() for path in PROTO_DIR.rglob("*.proto"))
PACKAGE = "arraylift.v1"
_RPC, _SERVICE = 2, 6  # field numbers of ServiceDescriptorProto.method, FileDescriptorProto.service


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """What protoc makes of the protos, comments included."""
    out = tmp_path_factory.mktemp("protos") / "set"
    arguments = ["protoc", f"-I{PROTO_DIR}", "--include_source_info", f"--descriptor_set_out={out}", *PROTOS]
    assert protoc.main(arguments) == 0
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in compiled.file}


def stub_module(proto: str, suffix: str) -> Any:
    return importlib.import_module(proto.removesuffix(".proto").replace("/", ".") + suffix)


def stripped(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Without what the generator leaves out: comments, and JSON names that follow from the names."""
    bare = descriptor_pb2.FileDescriptorProto()
    bare.CopyFrom(file)
    bare.ClearField("source_code_info")
    pending = list(bare.message_type)
    while pending:
        message = pending.pop()
        pending += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    return bare


@cache
def generated_services() -> list[Service]:
    found = []
    for proto in PROTOS:
        module = stub_module(proto, "_pb2_grpc")
        for name, add in vars(module).items():
            if match := re.fullmatch(r"add_(\w+)Servicer_to_server", name):
                found.append(service_of(add, getattr(module, f"{match[1]}Servicer")()))
    return found


def test_there_are_protos() -> None:
    assert len(PROTOS) >= 6


@pytest.mark.parametrize("proto", PROTOS)
def test_the_committed_messages_are_the_protos(
    files: dict[str, descriptor_pb2.FileDescriptorProto], proto: str
) -> None:
    committed = descriptor_pb2.FileDescriptorProto()
    stub_module(proto, "_pb2").DESCRIPTOR.CopyToProto(committed)
    assert stripped(committed) == stripped(files[proto]), "run `make proto`"


@pytest.mark.parametrize("proto", PROTOS)
def test_the_committed_types_name_every_field(
    files: dict[str, descriptor_pb2.FileDescriptorProto], proto: str
) -> None:
    text = (ROOT / proto.replace(".proto", "_pb2.pyi")).read_text(encoding="utf-8")
    for message in files[proto].message_type:
        body = re.search(
            rf"^class {message.name}\(_message\.Message\):\n((?:    .*\n|\n)*)", text, re.MULTILINE
        )
        assert body, f"{message.name} is missing from the .pyi; run `make proto`"
        slots = re.search(r"__slots__ = \((.*)\)", body[1])
        assert slots, f"{message.name} has no slots in the .pyi"
        assert re.findall(r'"(\w+)"', slots[1]) == [field.name for field in message.field], "run `make proto`"


def test_the_committed_services_are_the_protos(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    wanted = {
        f"{PACKAGE}.{service.name}": {
            method.name: (method.client_streaming, method.server_streaming) for method in service.method
        }
        for file in files.values()
        for service in file.service
    }
    committed = {
        service.name: {
            name: (handler.request_streaming, handler.response_streaming)
            for name, handler in service.handlers.items()
        }
        for service in generated_services()
    }
    assert committed == wanted, "run `make proto`"


def test_the_committed_services_carry_the_comments(
    files: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    for proto, file in files.items():
        text = _words((ROOT / proto.replace(".proto", "_pb2_grpc.py")).read_text(encoding="utf-8"))
        for at in file.source_code_info.location:
            if len(at.path) == 4 and (at.path[0], at.path[2]) == (_SERVICE, _RPC):
                assert _words(at.leading_comments) in text, "run `make proto`"


def _words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("proto", PROTOS)
def test_a_file_has_one_package_and_at_most_one_service(
    files: dict[str, descriptor_pb2.FileDescriptorProto], proto: str
) -> None:
    assert files[proto].package == PACKAGE
    assert len(files[proto].service) <= 1


def test_every_rpc_has_a_comment(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    silent = []
    for file in files.values():
        commented = {tuple(at.path) for at in file.source_code_info.location if at.leading_comments.strip()}
        for service_index, service in enumerate(file.service):
            for method_index, method in enumerate(service.method):
                if (_SERVICE, service_index, _RPC, method_index) not in commented:
                    silent.append(f"{service.name}.{method.name}")
    assert not silent


def test_every_rpc_has_its_own_request_and_response(
    files: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    users: dict[str, str] = {}
    for file in files.values():
        for service in file.service:
            for method in service.method:
                answers = ("Response", "Reply") if method.name == "Exchange" else ("Response",)
                assert method.input_type == f".{PACKAGE}.{method.name}Request"
                assert method.output_type in {f".{PACKAGE}.{method.name}{answer}" for answer in answers}
                for kind in (method.input_type, method.output_type):
                    assert kind not in users, f"{kind} serves {users.get(kind)} and {method.name}"
                    users[kind] = method.name


def test_every_enum_begins_with_unspecified(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    enums = [enum for file in files.values() for enum in file.enum_type]
    enums += [enum for file in files.values() for message in file.message_type for enum in message.enum_type]
    assert enums
    for enum in enums:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert (enum.value[0].number, enum.value[0].name) == (0, f"{prefix}_UNSPECIFIED")
        assert all(value.name.startswith(prefix) for value in enum.value)


def test_the_authorization_table_is_exactly_the_methods() -> None:
    served = {method for service in generated_services() for method in service.methods()}
    check_complete(served)
    assert {method for method in ALLOWED if not method.startswith("/grpc.health.")} == served
    assert all(roles and roles <= set(ROLES) for roles in ALLOWED.values())


def test_the_table_decides_alone() -> None:
    for method, roles in ALLOWED.items():
        for role in ROLES:
            peer = Peer(role, "x")
            if role in roles:
                check_allowed(peer, method)
            else:
                with pytest.raises(Exception, match="may not call") as caught:
                    check_allowed(peer, method)
                assert type(caught.value).__name__ == "NotPermitted"
