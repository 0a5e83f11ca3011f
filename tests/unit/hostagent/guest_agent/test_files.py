"""Guest files through a real qemu-ga, on a Unix socket; its freeze is blocked: it would be this machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import NotFound, PeerUnavailable, WrongState
from arraylift.ids import VmId
from arraylift.vm.types import Disk
from hostagent.guest_agent.agent import PIECE_BYTES, FileSystem, GuestAgent, Ran
from hostagent.guest_agent.channel import AgentRefused
from hostagent.guest_agent.files import AgentFiles
from hostagent.guest_agent.operations import GuestOperations
from hostagent.guest_agent.socket_channel import SocketChannel
from hostagent.vm_types import GuestFile
from tests.fakes.guest_agent import FakeAgent
from tests.programs import need
from tests.unit.hostagent.material import VM as RECORD

VM = VmId("a" * 32)
BLOCKED = (
    "guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-fstrim,guest-shutdown,"
    "guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-set-time,guest-set-user-password,guest-set-vcpus"
)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[GuestAgent]:
    need("qemu-ga")
    program = shutil.which("qemu-ga") or "/usr/sbin/qemu-ga"
    path = tmp_path / "qga.sock"
    process = subprocess.Popen(
        [program, "-m", "unix-listen", "-p", path, "-t", tmp_path, "-f", tmp_path / "pid", "-b", BLOCKED],
        stdout=subprocess.DEVNULL,
    )
    channel = SocketChannel(str(path), subject="VM web1")
    try:
        end = time.monotonic() + 10
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        yield GuestAgent(channel, "VM web1")
    finally:
        channel.close()
        process.kill()
        process.wait(10)


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The folder that stands for a disk's file system."""
    folder = tmp_path / "guest disk"
    folder.mkdir()
    return folder


@pytest.fixture
def files(agent: GuestAgent, guest: Path, monkeypatch: pytest.MonkeyPatch) -> AgentFiles:
    made = AgentFiles(agent, RealFiles(), serial="data0", subject="VM web1")
    monkeypatch.setattr(made, "_mount_point", lambda: str(guest))
    return made


def put(files: AgentFiles, tmp_path: Path, path: str, data: bytes, mode: int = 0o640) -> GuestFile:
    source = tmp_path / "source"
    source.write_bytes(data)
    return files.put(path, source=str(source), mode=mode)


def get(files: AgentFiles, tmp_path: Path, path: str) -> bytes:
    into = tmp_path / "into"
    into.write_bytes(b"")
    found = files.get(path, into=str(into))
    data = into.read_bytes()
    assert found.size_bytes == len(data)
    return data


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 77])
def test_files_come_back_as_they_were_put(files: AgentFiles, guest: Path, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    made = put(files, tmp_path, "/file", data)
    assert (made.path, made.size_bytes, made.mode) == ("/file", size, 0o100640)
    assert (guest / "file").read_bytes() == data
    assert get(files, tmp_path, "/file") == data
    assert [one.name for one in guest.iterdir()] == ["file"], "nothing is left beside it"


NAMES = ["with space", "$(touch pwned)", "`id`;x", "-rf", "quote'", "*", "ünïcode", "a\\nb", "--", "%n %s"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_a_command(files: AgentFiles, guest: Path, tmp_path: Path, name: str) -> None:
    put(files, tmp_path, f"/{name}", b"x")
    assert [one.name for one in guest.iterdir()] == [name]
    assert [one.path for one in files.listed("/")] == [f"/{name}"]
    assert get(files, tmp_path, f"/{name}") == b"x"
    files.remove(f"/{name}")
    assert not list(guest.iterdir())


def test_a_replaced_file_keeps_mode_and_owner_unless_told(
    files: AgentFiles, guest: Path, tmp_path: Path
) -> None:
    (guest / "old").write_bytes(b"old")
    (guest / "old").chmod(0o604)
    os.chown(guest / "old", 1234, 4321)
    assert put(files, tmp_path, "/old", b"new", mode=0).mode == 0o100604
    assert put(files, tmp_path, "/old", b"newer", mode=0o4755).mode == 0o104755
    state = (guest / "old").stat()
    assert (state.st_uid, state.st_gid) == (1234, 4321)
    assert put(files, tmp_path, "/fresh", b"", mode=0).mode == 0o100644


def test_what_is_no_file_is_said(files: AgentFiles, guest: Path, tmp_path: Path) -> None:
    (guest / "dir").mkdir()
    (guest / "link").symlink_to("dir")
    os.mkfifo(guest / "pipe")
    for path in ("/dir", "/link", "/pipe", "/"):
        with pytest.raises(WrongState, match="no regular file"):
            put(files, tmp_path, path, b"x")
        with pytest.raises(WrongState, match="no regular file"):
            get(files, tmp_path, path)
    with pytest.raises(WrongState, match="no directory"):
        files.listed("/pipe")
    with pytest.raises(NotFound):
        put(files, tmp_path, "/none/file", b"x")
    for missing in (
        lambda: get(files, tmp_path, "/none"),
        lambda: files.remove("/none"),
        lambda: files.listed("/none"),
    ):
        with pytest.raises(NotFound):
            missing()
    for path in ("/dir", "/pipe"):
        with pytest.raises(WrongState):
            files.remove(path)
    files.remove("/link")
    assert sorted(one.name for one in guest.iterdir()) == ["dir", "pipe"]


def test_a_directory_is_listed_by_name_with_what_stat_says(files: AgentFiles, guest: Path) -> None:
    (guest / "b").write_bytes(b"12345")
    (guest / "a").mkdir()
    (guest / ".hidden").symlink_to("b")
    (guest / "odd\n81a4 1 0 0 0 ").mkdir()
    (guest / "odd\n81a4 1 0 0 0 " / "forged").write_bytes(b"")
    os.utime(guest / "b", (1_600_000_000, 1_600_000_000))
    found = files.listed("/")
    assert [one.path for one in found] == ["/.hidden", "/a", "/b"]
    assert found[2] == GuestFile("/b", 5, found[2].mode, os.getuid(), os.getgid(), 1_600_000_000 * 10**9)
    assert oct(found[0].mode)[:5] == "0o120"
    assert files.listed("/a") == []


def test_a_put_that_fails_leaves_the_old_file(
    files: AgentFiles, agent: GuestAgent, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, tmp_path, "/file", b"old")
    writes = agent.write

    def break_off(handle: int, data: bytes) -> None:
        writes(handle, data)
        raise PeerUnavailable("gone")

    monkeypatch.setattr(agent, "write", break_off)
    with pytest.raises(PeerUnavailable):
        put(files, tmp_path, "/file", b"new")
    assert (guest / "file").read_bytes() == b"old"
    assert [one.name for one in guest.iterdir()] == ["file"]


def test_the_disk_is_found_by_its_serial(agent: GuestAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        FileSystem("/boot/efi", "vda15", "vfat", ("/dev/vda15",), ("os",)),
        FileSystem("/", "vda1", "ext4", ("/dev/vda1",), ("os",)),
        FileSystem("/srv", "vdb", "xfs", ("/dev/vdb",), ()),
        FileSystem("/mnt/lvm", "dm-0", "ext4", ("/dev/vdc1", "/dev/../evil"), ()),
    ]
    sysfs = {"/sys/class/block/vdb/serial": b"data0\n", "/sys/class/block/vdc1/../serial": b"data1\n"}

    def read_small(path: str) -> bytes:
        if path not in sysfs:
            raise AgentRefused("no such file")
        return sysfs[path]

    monkeypatch.setattr(agent, "file_systems", lambda: mounts)
    monkeypatch.setattr(agent, "read_small", read_small)
    for serial, place in (("os", "/x"), ("data0", "/srv/x"), ("data1", "/mnt/lvm/x"), ("", "/x")):
        assert AgentFiles(agent, RealFiles(), serial=serial, subject="VM web1")._place("/x") == place
    with pytest.raises(WrongState, match="mounted"):
        AgentFiles(agent, RealFiles(), serial="none", subject="VM web1")._place("/x")


def test_programs_run_and_tell(agent: GuestAgent) -> None:
    assert agent.run(("sh", "-c", "printf 'a\\0b'; exit 3")) == Ran(3, b"a\0b")
    assert agent.run(("sh", "-c", "kill -9 $$")).code == -1
    with pytest.raises(AgentRefused):
        agent.run(("/no/such/program",))
    with pytest.raises(PeerUnavailable, match="no sense"):
        agent.run(("sh", "-c", "head -c 100000 /dev/zero"))
    assert agent.file_systems() is not None


def test_an_agent_that_lies_is_caught(tmp_path: Path) -> None:
    fake = FakeAgent(tmp_path / "fake")
    channel = SocketChannel(fake.path, subject="VM web1")
    guest = GuestAgent(channel, "VM web1")
    lies: dict[str, list[object]] = {
        "guest-exec": [1, {}, {"pid": "7"}, {"pid": -1}, {"pid": 2**70}, {"pid": True}],
        "guest-file-open": ["7", None, 2**63, 1.5, {}],
        "guest-get-fsinfo": [{}, [1], [{"disk": 1}], [{"mountpoint": 7}], [{}] * 2000],
        "guest-fsfreeze-freeze": ["2", -1, None, 2**64, True],
        "guest-file-read": [1, {"eof": True, "buf-b64": "!!"}, {"eof": 1}, {"eof": True, "buf-b64": 7}],
    }
    calls = {
        "guest-exec": lambda: guest.run(("x",)),
        "guest-file-open": lambda: guest.open("/x", "r"),
        "guest-get-fsinfo": guest.file_systems,
        "guest-fsfreeze-freeze": lambda: guest.freeze(timeout_seconds=5),
        "guest-file-read": lambda: guest.read(1),
    }
    try:
        for command, answers in lies.items():
            for answer in answers:
                line = fake._line({"return": answer})
                fake.tamper = lambda said, honest, line=line: [honest if "sync" in said else line]  # type: ignore[misc]
                with pytest.raises(PeerUnavailable, match="makes no sense"):
                    calls[command]()
    finally:
        channel.close()
        fake.close()


def test_files_wait_while_the_guest_is_frozen(tmp_path: Path) -> None:
    fake = FakeAgent(tmp_path / "fake")
    channel = SocketChannel(fake.path, subject=RECORD.subject)
    operations = GuestOperations(lambda vm_id: channel, serial_of=lambda vm, disk: "", files=RealFiles())
    fake.files["/x"] = b"content"
    try:
        operations.freeze(RECORD, timeout_seconds=5)
        disk: Disk = RECORD.config.disks[0]
        found: list[bytes] = []
        reading = threading.Thread(
            target=lambda: found.append(operations._of(RECORD, disk)._agent.read_small("/x"))
        )
        reading.start()
        reading.join(0.3)
        assert reading.is_alive()
        operations.thaw(RECORD.vm_id)
        reading.join(5)
        assert found == [b"content"]
    finally:
        operations.stopped(RECORD.vm_id)
        channel.close()
        fake.close()


def test_a_real_agent_keeps_the_channels_contract(agent: GuestAgent) -> None:
    assert agent.channel.execute("guest-ping", timeout_seconds=5) == {}
    with pytest.raises(AgentRefused):
        agent.freeze(timeout_seconds=5)
    with pytest.raises(AgentRefused):
        agent.thaw(timeout_seconds=5)
    agent.channel._machine.lose_step()  # type: ignore[attr-defined]
    agent.channel._socket.sendall(b'{"execute": "guest-pi')  # type: ignore[attr-defined]
    assert agent.channel.execute("guest-ping", timeout_seconds=5) == {}
