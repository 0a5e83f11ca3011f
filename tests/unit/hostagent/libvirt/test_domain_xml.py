"""Domains of libvirt as VMs, and VMs of ours as domains."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arraylift.errors import Corruption
from arraylift.ids import VmId, check_name
from arraylift.nbd.uri import parse_uri
from arraylift.vm.types import NetworkInterface, VmConfig
from hostagent.libvirt.domain_build import ServedDisk, domain_xml, target_name
from hostagent.libvirt.domain_xml import facts, plain_name
from hostagent.libvirt.limited_xml import DEPTH_MAX, ELEMENTS_MAX, XML_BYTES_MAX, parse
from tests.unit.hostagent.libvirt.material import UUID, disk, domain


def test_a_domain_is_read_as_it_is() -> None:
    networks = (
        "<interface type='network'><mac address='52:54:00:AA:00:01'/><source network='default'/></interface>"
        "<interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='br0'/></interface>"
        "<interface type='user'><mac address='52:54:00:aa:00:03'/></interface>"
    )
    read = facts(domain("a &amp; b", more=networks), what="it")
    assert (read.name, read.uuid, read.cpus, read.memory_bytes) == ("a & b", UUID, 2, 256 << 20)
    assert (read.firmware, read.machine, read.made_as) == ("bios", "pc-q35-7.2", "")
    assert [(one.target, one.format, one.where) for one in read.disks] == [
        ("vda", "qcow2", "/vms/vda.qcow2"),
        ("vdb", "qcow2", "/vms/vdb.qcow2"),
        ("vdc", "raw", "/vms/vdc.raw"),
    ]
    assert read.networks == (
        NetworkInterface("52:54:00:aa:00:01", "default"),
        NetworkInterface("52:54:00:aa:00:02", "bridge:br0"),
        NetworkInterface("52:54:00:aa:00:03", "user"),
    )


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (disk("hda", device="cdrom"), "hda: cdrom"),
        (disk("fda", device="floppy"), "fda: floppy"),
        (disk("sda", device="lun"), "sda: passed through"),
        (disk("vdx", more="<readonly/>"), "vdx: read-only"),
        (disk("vdx", more="<shareable/>"), "vdx: shared with other guests"),
        (disk("vdx", more="<transient/>"), "vdx: transient"),
        (disk("vdx", source="<source/>"), "vdx: empty drive"),
        (disk("vdx", kind="vmdk"), "vdx: format vmdk"),
        (disk("vdx").replace(" type='qcow2'", ""), "vdx: format not named"),
        (disk("v/x"), "v_x: odd target"),
    ],
)
def test_what_no_backup_has_is_told(xml: str, why: str) -> None:
    read = facts(domain(disks=disk("vda") + xml), what="it")
    assert [one.target for one in read.disks] == ["vda"]
    assert read.left_out == (why,)
    assert dict(read.config("web", ()).tags)["left-out"] == why


def test_disks_elsewhere_are_told_where() -> None:
    network = (
        "<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='pool/image'>"
        "<host name='ceph' port='6789'/></source><target dev='vda'/></disk>"
    )
    block = "<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/lv'/>"
    block += "<target dev='vdb'/></disk>"
    read = facts(domain(disks=network + block), what="it")
    assert [(one.where, one.path) for one in read.disks] == [
        ("rbd://ceph:6789/pool/image", ""),
        ("/dev/vg/lv", "/dev/vg/lv"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE d [<!ENTITY a 'b'>]><d>&a;</d>",
        "<a>" * (DEPTH_MAX + 1) + "</a>" * (DEPTH_MAX + 1),
        "<a>" + "<b/>" * ELEMENTS_MAX + "</a>",
        "<a>" + "x" * XML_BYTES_MAX + "</a>",
        "<a>",
        "",
        "<a>\x00</a>",
        "\ud800",
    ],
)
def test_xml_beyond_its_limits_is_refused(text: str) -> None:
    with pytest.raises(Corruption):
        parse(text, what="it")


@given(st.text(max_size=400))
@example(".")
@example("..")
@example("x" * 254 + " y")
def test_any_name_becomes_one_that_the_contract_allows(text: str) -> None:
    name = plain_name(text)
    if name:
        check_name(name, "a name")


@given(st.text(max_size=200))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    with contextlib.suppress(Corruption):
        facts(f"<domain><name>{text}</name><memory>{text}</memory><vcpu>{text}</vcpu></domain>", what="it")


def test_a_domain_of_ours_is_known_by_its_mark() -> None:
    config = VmConfig(
        "a <b> & 'c'",
        UUID,
        3,
        (100 << 20) + 1,
        networks=(
            NetworkInterface("52:54:00:00:00:01", "bridge:br0"),
            NetworkInterface("52:54:00:00:00:02", "lan"),
            NetworkInterface("", "user"),
        ),
        tags=(("machine", "pc-i440fx-7.2"),),
        firmware="uefi",
    )
    tls = ServedDisk("vda", "serial-1", parse_uri("nbds://array:10809/e1"), "array.name")
    plain = ServedDisk("vdb", "serial-2", parse_uri("nbd+unix:///e2?socket=/run/nbd.sock"))
    made = domain_xml(VmId("ab" * 16), config, [tls, plain], kind="qemu", nvram="/vms/x.nvram")
    read = facts(made, what="it")
    assert read.made_as == "ab" * 16
    assert (read.name, read.cpus, read.memory_bytes) == (config.name, 3, (100 << 20) + 1024)
    assert (read.firmware, read.machine, read.nvram) == ("uefi", "pc-i440fx-7.2", "/vms/x.nvram")
    assert [(one.target, one.export, one.serial) for one in read.disks] == [
        ("vda", "e1", "serial-1"),
        ("vdb", "e2", "serial-2"),
    ]
    assert [one.network for one in read.networks] == ["bridge:br0", "lan", "user"]
    assert 'tlsHostname="array.name"' in made
    assert 'socket="/run/nbd.sock"' in made


def test_disks_have_names_without_end() -> None:
    assert [target_name(place) for place in (0, 25, 26, 63)] == ["vda", "vdz", "vdaa", "vdbl"]
