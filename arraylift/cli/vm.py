"""``arraylift vm``: make, list, switch and remove virtual machines, through the virtual center.

Callers: the command line, main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import vm_calls, vm_files, vm_moves
from arraylift.cli.command import command, group
from arraylift.cli.disk_files import open_disk
from arraylift.cli.session import Session
from arraylift.cli.show import pairs, plain, row, short_name, size_bytes, table
from arraylift.errors import NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import virtual_center_pb2, vm_pb2

VmReference = Annotated[str, typer.Argument(metavar="VM", help="Its name or id.")]


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Virtual machines.")
    command(
        noun,
        "create",
        examples="arraylift vm create web --disk root.img --disk data.img --memory 2G --cpus 2 --start\n"
        "arraylift vm create web --disk root.img --host host1 --tag tier=gold\n"
        "arraylift vm create web --disk boot.img --firmware uefi --network lan",
    )(create)
    command(noun, "ls", examples="arraylift vm ls\narraylift vm ls --host host1")(ls)
    command(noun, "show", examples="arraylift vm show web")(show)
    command(noun, "start", examples="arraylift vm start web")(start)
    command(noun, "stop", examples="arraylift vm stop web --grace 60\narraylift vm stop web --force")(stop)
    command(noun, "rm", examples="arraylift vm rm web\narraylift vm rm web --keep-volumes")(rm)
    vm_moves.register(noun)
    vm_files.register(noun)
    app.add_typer(noun, name="vm")


def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new VM.")],
    disk: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="Raw, qcow2, VMDK or VHDX; becomes volume NAME-disk<n>. May repeat."
        ),
    ],
    memory: Annotated[str, typer.Option(help="E.g. 512M, 4G.")] = "512M",
    cpus: Annotated[int, typer.Option(min=1, help="Virtual CPUs.")] = 1,
    array: Annotated[
        str | None,
        typer.Option(metavar="ARRAY", help="Registered name or host:port. [default: the local one]"),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Its name. [default: chosen]")] = "",
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May repeat.")] = None,
    firmware: Annotated[str, typer.Option(metavar="bios|uefi", help="What the VM boots by.")] = "bios",
    network: Annotated[
        list[str] | None, typer.Option(metavar="NETWORK", help="An interface on it. May repeat.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Power it on.")] = False,
) -> None:
    """Make a VM of disk images; on failure nothing is left."""
    wanted = vm_calls.NewVm(
        name=name,
        memory_bytes=size_bytes(memory),
        cpus=cpus,
        host=host,
        tags=vm_calls.parse_tags(tag or []),
        firmware=firmware,
        networks=tuple(network or ()),
    )
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_disk(path)) for path in disk]
        on = vm_calls.array_named(session, array)
        made = vm_calls.create_vm(session, session.vcenter, on, wanted, sources).vm
    if start:
        made = vm_calls.power_vm(session.vcenter, made.vm_id, on=True)
    session.emit(plain(made), _table([made]))


def ls(
    session: Session,
    host: Annotated[str, typer.Option(metavar="HOST", help="Only of this host.")] = "",
) -> None:
    """List the VMs."""
    center = session.vcenter
    request = virtual_center_pb2.ListManagedVmsRequest(host=host)
    found = list(center.listing(center.center.ListManagedVms, request, "vms"))
    session.emit([plain(vm) for vm in found], _table(found))


def show(session: Session, vm: VmReference) -> None:
    """Show one VM, its disks and networks."""
    found = vm_calls.find_vm(session.vcenter, vm)
    config = found.vm.config
    rows: list[tuple[str, object]] = [
        ("vm", config.name),
        ("id", found.vm.vm_id),
        ("uuid", config.uuid),
        ("power", short_name(vm_pb2.PowerState, found.vm.power)),
        ("host", f"{found.host.name}, {found.host.address}"),
        ("memory", human(config.memory_bytes)),
        ("CPUs", config.cpus),
        ("firmware", config.firmware),
        ("tags", " ".join(f"{key}={value}" for key, value in sorted(config.tags.items())) or "-"),
    ]
    rows += [
        (
            disk.name,
            f"{human(disk.size_bytes)}, volume {disk.volume_name} on {disk.array} {disk.array_address}",
        )
        for disk in config.disks
    ]
    rows += [("network", f"{network.mac} on {network.network}") for network in config.networks]
    session.emit({"vm": plain(found.vm), "host": plain(found.host)}, pairs(rows))


def start(session: Session, vm: VmReference) -> None:
    """Power a VM on."""
    found = vm_calls.find_vm(session.vcenter, vm)
    now = vm_calls.power_vm(session.vcenter, found.vm.vm_id, on=True)
    session.emit(plain(now), _table([now]))


def stop(
    session: Session,
    vm: VmReference,
    grace: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="What the guest gets to shut down; 0: 30.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="As a power cut: the guest is not asked.")] = False,
) -> None:
    """Power a VM off; the guest is asked first."""
    found = vm_calls.find_vm(session.vcenter, vm)
    now = vm_calls.power_vm(session.vcenter, found.vm.vm_id, on=False, force=force, grace=grace)
    session.emit(plain(now), _table([now]))


def rm(
    session: Session,
    vm: VmReference,
    keep_volumes: Annotated[bool, typer.Option("--keep-volumes", help="Its disks stay as volumes.")] = False,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
) -> None:
    """Remove a VM that is off, with its volumes."""
    center = session.vcenter
    try:
        found = vm_calls.find_vm(center, vm)
    except NotFound:
        if not missing_ok:
            raise
        session.emit({"removed": None}, f"there was no VM {vm}")
        return
    request = virtual_center_pb2.RemoveVmRequest(
        vm_id=found.vm.vm_id, keep_volumes=keep_volumes, missing_ok=missing_ok
    )
    center.call(center.center.RemoveVm, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit({"removed": found.vm.vm_id}, f"removed VM {found.vm.config.name}")


def _table(vms: Sequence[vm_pb2.Vm]) -> Table:
    shown = table("vm", "power", "host", ">memory", ">CPUs", ">disks", ">size", "tags", "id")
    for vm in vms:
        config = vm.config
        row(
            shown,
            config.name,
            short_name(vm_pb2.PowerState, vm.power),
            vm.host,
            human(config.memory_bytes),
            config.cpus,
            len(config.disks),
            human(sum(disk.size_bytes for disk in config.disks)),
            " ".join(f"{key}={value}" for key, value in sorted(config.tags.items())),
            vm.vm_id,
        )
    return shown
