"""The libvirt connection: the only module that imports libvirt.

Invariants:
  C1 every call ends in its time, whatever libvirtd or a guest's monitor does: it runs on a thread of its own,
     which is left behind if it hangs. At most CALLS_MAX hang or run at once.
  C2 a libvirtd that does not answer for KEEPALIVE_SECONDS * KEEPALIVE_COUNT is away: what waits for it
     fails, and the next call connects anew.
  C3 no object of libvirt's outlives the call that looked it up.
Callers: any thread. One event loop, on a thread of its own, serves every connection of the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from arraylift.errors import (
    ArrayliftError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.logs import get_logger
from hostagent.guest_agent.channel import AgentRefused
from hostagent.libvirt.hypervisor import CALL_SECONDS, START_SECONDS, Domain

CALLS_MAX = 32
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3
MESSAGE_CHARS_MAX = 400
LATE_SECONDS = 0.05
"""A backup job that begins this close to its time is ended: it may have been given up already."""

T = TypeVar("T")

_log = get_logger("libvirt")
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def load() -> Any:
    """The libvirt module, with its event loop. Raises InvalidRequest: it is not installed."""
    global _loop
    try:
        import libvirt
        import libvirt_qemu  # noqa: F401 - `agent` needs it
    except ImportError as error:
        raise InvalidRequest(
            f"the libvirt driver needs Python's libvirt module: {error}",
            next_step="install libvirt-dev, pkg-config and gcc, then: pip install 'arraylift[libvirt]'",
        ) from error
    with _loop_lock:
        if _loop is None:
            libvirt.registerErrorHandler(lambda *_: None, None)  # it prints otherwise
            libvirt.virEventRegisterDefaultImpl()
            _loop = threading.Thread(target=_turn, args=(libvirt,), name="libvirt-events", daemon=True)
            _loop.start()
    return libvirt


def _turn(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            _log.warning("libvirt_event_loop", error=str(error)[:MESSAGE_CHARS_MAX])


class LibvirtConnection:
    """Hypervisor over one libvirt URI."""

    def __init__(self, uri: str, *, call_seconds: float = CALL_SECONDS) -> None:
        """Connects with the first call. Raises InvalidRequest (no libvirt module)."""
        self._libvirt = load()
        self._uri, self._call_seconds = uri, call_seconds
        self._opening = threading.Lock()
        self._connection: Any = None
        self._room = threading.BoundedSemaphore(CALLS_MAX)
        self._changed: Callable[[], None] | None = None

    # -- looks ----------------------------------------------------------------------------------

    def domains(self) -> list[Domain]:
        def ask(connection: Any) -> list[Domain]:
            found = []
            for domain in connection.listAllDomains():
                with contextlib.suppress(NotFound), self._translated():  # gone meanwhile
                    found.append(self._domain(domain))
            return found

        return self._call(ask, "the list of guests")

    def domain(self, uuid: str) -> Domain:
        return self._on(uuid, self._domain)

    def is_active(self, uuid: str) -> bool:
        try:
            return bool(self._on(uuid, lambda domain: domain.isActive()))
        except NotFound:
            return False

    def has_kvm(self) -> bool:
        def ask(connection: Any) -> bool:
            try:
                return bool(connection.getDomainCapabilities(None, "x86_64", None, "kvm", 0))
            except self._libvirt.libvirtError as error:
                if error.get_error_code() in {
                    self._libvirt.VIR_ERR_INVALID_ARG,
                    self._libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
                }:
                    return False
                raise

        return self._call(ask, "its capabilities")

    def block_bytes(self, uuid: str, target: str) -> int:
        return int(self._on(uuid, lambda domain: domain.blockInfo(target)[0]))

    def internal_snapshots(self, uuid: str) -> int:
        flags = self._libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL
        return int(self._on(uuid, lambda domain: domain.snapshotNum(flags)))

    # -- life -----------------------------------------------------------------------------------

    def define(self, xml: str) -> None:
        self._call(lambda connection: connection.defineXML(xml), "a definition")

    def undefine(self, uuid: str) -> None:
        flags = self._libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        flags |= self._libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        with contextlib.suppress(NotFound):
            self._on(uuid, lambda domain: domain.undefineFlags(flags))

    def start(self, uuid: str) -> None:
        self._on(uuid, lambda domain: domain.isActive() or domain.create(), seconds=START_SECONDS)

    def shut_down(self, uuid: str) -> None:
        self._on(uuid, lambda domain: domain.shutdown())

    def destroy(self, uuid: str) -> None:
        with contextlib.suppress(NotFound):
            self._on(uuid, lambda domain: domain.isActive() and domain.destroy(), seconds=START_SECONDS)

    def attach(self, uuid: str, device_xml: str) -> None:
        self._on(uuid, lambda domain: domain.attachDeviceFlags(device_xml, self._affected(domain)))

    def detach(self, uuid: str, device_xml: str) -> None:
        def ask(domain: Any) -> None:
            try:
                domain.detachDeviceFlags(device_xml, self._affected(domain))
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != self._libvirt.VIR_ERR_DEVICE_MISSING:
                    raise

        self._on(uuid, ask)

    def agent(self, uuid: str, command: str, *, seconds: float) -> str:
        import libvirt_qemu

        def ask(domain: Any) -> str:
            # Whole seconds: what is left over is the caller's wait (C1).
            return str(libvirt_qemu.qemuAgentCommand(domain, command, max(1, int(seconds)), 0))

        return self._on(uuid, ask, seconds=seconds)

    # -- backup ---------------------------------------------------------------------------------

    def begin_backup(self, uuid: str, backup_xml: str, checkpoint_xml: str, *, seconds: float) -> None:
        until = time.monotonic() + seconds - LATE_SECONDS

        def ask(domain: Any) -> None:
            domain.backupBegin(backup_xml, checkpoint_xml or None, 0)
            if time.monotonic() > until:  # nobody waits any more: what came late must not stay
                domain.abortJob()
                raise DeadlineExceeded("the backup job began too late", subject=self._uri)

        self._on(uuid, ask, seconds=seconds)

    def backup(self, uuid: str) -> str | None:
        def ask(domain: Any) -> str | None:
            try:
                return str(domain.backupGetXMLDesc())
            except self._libvirt.libvirtError as error:
                none = {self._libvirt.VIR_ERR_NO_DOMAIN_BACKUP, self._libvirt.VIR_ERR_OPERATION_INVALID}
                if error.get_error_code() in none:
                    return None
                raise

        return self._on(uuid, ask)

    def end_backup(self, uuid: str) -> None:
        def ask(domain: Any) -> None:
            try:
                domain.abortJob()
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != self._libvirt.VIR_ERR_OPERATION_INVALID:
                    raise

        self._on(uuid, ask)

    def checkpoints(self, uuid: str) -> list[tuple[str, str]]:
        def ask(domain: Any) -> list[tuple[str, str]]:
            topological = self._libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
            plain = self._libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
            return [(one.getName(), one.getXMLDesc(plain)) for one in domain.listAllCheckpoints(topological)]

        return self._on(uuid, ask)

    def delete_checkpoint(self, uuid: str, name: str) -> None:
        def ask(domain: Any) -> None:
            try:
                checkpoint = domain.checkpointLookupByName(name)
                if domain.isActive():
                    checkpoint.delete()
                else:  # its bitmap stays in the image, where nobody believes it any more
                    checkpoint.delete(self._libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != self._libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                    raise

        self._on(uuid, ask)

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def close(self) -> None:
        """Let go of libvirtd; guests and exports go on."""
        with self._opening:
            if self._connection is not None:
                with contextlib.suppress(self._libvirt.libvirtError):
                    self._connection.close()
            self._connection = None

    # -- the way there --------------------------------------------------------------------------

    def _on(self, uuid: str, ask: Callable[[Any], T], *, seconds: float | None = None) -> T:
        return self._call(
            lambda connection: ask(connection.lookupByUUIDString(uuid)), f"guest {uuid}", seconds=seconds
        )

    def _call(self, ask: Callable[[Any], T], what: str, *, seconds: float | None = None) -> T:
        """C1: on a thread of its own, which holds its place in ``_room`` until it has really ended."""
        if not self._room.acquire(blocking=False):
            raise Overloaded(
                f"{CALLS_MAX} calls to libvirt are under way",
                next_step="look whether libvirtd hangs; restarting it disturbs no guest",
            )
        seconds = self._call_seconds if seconds is None else seconds
        done = threading.Event()
        answers: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with self._translated():
                    answers.append(ask(self._opened(seconds)))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
                errors.append(error)
            finally:
                self._room.release()
                done.set()

        threading.Thread(target=run, name="libvirt-call", daemon=True).start()
        if not done.wait(seconds):
            raise DeadlineExceeded(
                f"libvirt did not answer about {what} within {seconds:.1f} s", subject=self._uri
            )
        if errors:
            raise errors[0]
        return answers[0]

    def _opened(self, seconds: float) -> Any:
        if not self._opening.acquire(timeout=seconds):
            raise PeerUnavailable(f"libvirt at {self._uri} does not answer", subject=self._uri)
        try:
            if self._connection is None or not self._connection.isAlive():
                connection = self._libvirt.open(self._uri)
                connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)  # C2
                for event in self._events():
                    connection.domainEventRegisterAny(None, event, self._event, None)
                self._connection = connection
                _log.info("libvirt_connected", uri=self._uri)
            return self._connection
        finally:
            self._opening.release()

    def _events(self) -> list[int]:
        names = ("LIFECYCLE", "DEVICE_ADDED", "DEVICE_REMOVED", "METADATA_CHANGE", "AGENT_LIFECYCLE")
        return [getattr(self._libvirt, f"VIR_DOMAIN_EVENT_ID_{name}") for name in names]

    def _event(self, *_: object) -> None:
        if self._changed is not None:
            self._changed()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._libvirt.libvirtError as error:
            raise self._error(error) from error

    def _error(self, error: Any) -> Exception:
        lib, code = self._libvirt, error.get_error_code()
        text = "".join(char if char.isprintable() else " " for char in str(error))[:MESSAGE_CHARS_MAX]
        connection = self._connection
        if connection is None or not _alive(lib, connection):
            return PeerUnavailable(
                f"libvirt at {self._uri} is away: {text}", subject=self._uri, next_step="start libvirtd"
            )
        if code in {lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_NO_DOMAIN_CHECKPOINT}:
            return NotFound(text, subject=self._uri)
        if code == lib.VIR_ERR_OPERATION_TIMEOUT:
            return DeadlineExceeded(text, subject=self._uri)
        if code in {lib.VIR_ERR_AGENT_UNRESPONSIVE, lib.VIR_ERR_AGENT_UNSYNCED, lib.VIR_ERR_RPC}:
            return PeerUnavailable(text, subject=self._uri)
        if "unable to execute QEMU agent command" in text:
            return AgentRefused(text, subject=self._uri)
        return _refused(text)

    def _domain(self, domain: Any) -> Domain:
        active = bool(domain.isActive())
        xml = domain.XMLDesc(0 if active else self._libvirt.VIR_DOMAIN_XML_INACTIVE)
        return Domain(domain.UUIDString(), domain.name(), active, bool(domain.isPersistent()), xml)

    def _affected(self, domain: Any) -> int:
        flags = self._libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
        return int(flags | (self._libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0))


def _alive(libvirt: Any, connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _refused(text: str) -> ArrayliftError:
    return WrongState(f"libvirt refused: {text}", next_step="look at the guest with virsh")
