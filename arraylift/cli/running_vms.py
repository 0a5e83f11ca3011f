"""VMs that outlive their host agent and the array: they run in processes of their own, on disks of the array.

Guests that a host has adopted, with disks of its own only, are nobody's here.

Callers: up, demo; main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from arraylift.cli import processes
from arraylift.cli.connection import Connection
from arraylift.cli.settings import DRIVERS, HOST, HostSettings, Layout, absolute, callable_address
from arraylift.errors import ArrayliftError
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.v1 import vm_pb2

_WITHOUT_PROCESSES = DRIVERS[0]


def running(layout: Layout) -> list[str]:
    """Return the names of VMs that run on when the daemons have ended; none if the host cannot be asked."""
    with contextlib.suppress(ArrayliftError), _host(layout) as host:
        return sorted(vm.config.name for vm in _running(host)) if host else []
    return []


def end_all(layout: Layout, *, force: bool) -> list[str]:
    """Switch all of them off and return their names; ``force`` does not ask the guests.

    Raises what the calls raise; no effect where no host runs.
    """
    ended = []
    with _host(layout) as host:
        for vm in _running(host) if host else []:
            assert host is not None
            request = vm_pb2.PowerOffRequest(vm_id=vm.vm_id, force=force)
            host.call(host.vms.PowerOff, request, timeout_seconds=LONG_CALL_SECONDS)
            ended.append(vm.config.name)
    return sorted(ended)


def _running(host: Connection) -> list[vm_pb2.Vm]:
    listed = host.call(host.vms.ListVms, vm_pb2.ListVmsRequest()).vms
    on = [vm for vm in listed if vm.power == vm_pb2.POWER_STATE_ON]
    return [vm for vm in on if any(disk.array for disk in vm.config.disks)]


@contextlib.contextmanager
def _host(layout: Layout) -> Iterator[Connection | None]:
    """The host agent, where it runs and has such VMs."""
    settings = layout.load(HOST) if layout.config(HOST).exists() else None
    runs = processes.read_record(layout.pid(HOST)) is not None
    if not runs or not isinstance(settings, HostSettings) or settings.driver == _WITHOUT_PROCESSES:
        yield None
        return
    address = callable_address(settings.listen)
    with contextlib.closing(Connection(HOST.noun, address, absolute(settings.pki))) as host:
        yield host
