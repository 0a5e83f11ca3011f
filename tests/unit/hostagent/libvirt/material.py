"""Domains that the tests of the libvirt driver share."""

from __future__ import annotations

UUID = "01234567-89ab-4def-8123-456789abcdef"


def domain(name: str = "web", uuid: str = UUID, *, disks: str = "", more: str = "", head: str = "") -> str:
    """A domain as libvirt prints it, with two qcow2 disks and a raw one unless told otherwise."""
    disks = disks or (disk("vda") + disk("vdb") + disk("vdc", kind="raw"))
    return (
        f"<domain type='kvm' id='1'><name>{name}</name><uuid>{uuid}</uuid>{head}"
        "<memory unit='KiB'>262144</memory><vcpu placement='static'>2</vcpu>"
        "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
        f"<devices>{disks}{more}</devices></domain>"
    )


def disk(target: str, *, kind: str = "qcow2", device: str = "disk", source: str = "", more: str = "") -> str:
    source = source or f"<source file='/vms/{target}.{kind}'/>"
    return (
        f"<disk type='file' device='{device}'><driver name='qemu' type='{kind}'/>{source}"
        f"<target dev='{target}' bus='virtio'/>{more}</disk>"
    )
