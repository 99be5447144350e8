# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, xml
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.domain import Model, build, parse, patch

from . import guest_models


def written(root: xml.Element) -> xml.Element:
    """What a reader makes of it."""
    return xml.parse(xml.document(root), root="domain")


def test_every_option_is_read_back() -> None:
    wanted = guest_models.model(guest_models.item(**guest_models.FULL), seed="/var/lib/seed.iso")
    assert parse(written(build(wanted))) == wanted


def test_what_is_written_is_escaped() -> None:
    wanted = guest_models.model(guest_models.item(**guest_models.FULL))
    text = xml.document(build(wanted))
    assert "<b>" not in text
    assert parse(xml.parse(text))["description"] == guest_models.FULL["description"]


@settings(max_examples=40)
@given(guest_models.models())
def test_parse_is_the_inverse_of_build(model: Model) -> None:
    assert parse(written(build(model))) == model


@settings(max_examples=40)
@given(guest_models.models(), guest_models.models())
def test_patch_makes_any_domain_any_other(before: Model, after: Model) -> None:
    stored = written(build(before))
    kept = copy.deepcopy(stored)
    patched = written(patch(stored, after))
    expected = after
    if domain.same_machine(after["machine"], before["machine"]):
        expected = {**after, "machine": before["machine"]}
    assert parse(patched) == expected
    assert xml.document(stored) == xml.document(kept), "the stored XML itself is not touched"


@settings(max_examples=40)
@given(guest_models.models())
def test_patch_without_a_difference_changes_nothing(model: Model) -> None:
    stored = written(build(model))
    assert xml.document(patch(stored, model)) == xml.document(stored)


# What libvirt 11.3 keeps of a guest that was defined by us, shortened: addresses, controllers, the machine's version.
STORED = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>8f1c1d0e-0000-5000-8000-000000000001</uuid>
  <metadata><other:thing xmlns:other='urn:other'/></metadata>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>524288</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <resource><partition>/machine</partition></resource>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><boot dev='hd'/><boot dev='cdrom'/></os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'/>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/d/vda.qcow2'/><backingStore/><target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/d/vdb.qcow2'/><backingStore/><target dev='vdb' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <hostdev mode='subsystem' type='pci' managed='yes'><source/></hostdev>
    <tpm model='tpm-crb'/>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>
</domain>
"""


def test_patch_keeps_what_the_model_does_not_know() -> None:
    stored = xml.parse(STORED)
    wanted = parse(stored)
    wanted["disks"]["vdb"] = {**wanted["disks"]["vdb"], "cache": "writeback"}
    wanted["networks"] = {"52:54:00:00:00:01": {**wanted["networks"]["52:54:00:00:00:01"], "source": "lan"}}
    wanted["memory_mib"] = wanted["max_memory_mib"] = 1024
    wanted["machine"] = "q35"
    text = xml.document(patch(stored, wanted))
    kept = [
        "pc-q35-10.0", "bus=\"0x04\"", "bus=\"0x03\"", "bus=\"0x01\"", "<hostdev", "vmport", "commandline", "urn:other",
        "/machine", "writeback", "network=\"lan\"", ">1048576<",
    ]  # fmt: skip
    assert [word for word in kept if word not in text] == []
    assert text.count("<address") == 3
    assert text.count("<disk") == 2


def test_patch_gives_a_card_of_another_model_a_new_address() -> None:
    stored = xml.parse(STORED)
    wanted = parse(stored)
    wanted["networks"] = {"52:54:00:00:00:01": {**wanted["networks"]["52:54:00:00:00:01"], "model": "e1000"}}
    assert xml.document(patch(stored, wanted)).count("<address") == 2


CARD = """
<domain type='kvm'><devices>
  <interface type='bridge' trustGuestRxFilters='yes'>
    <mac address='52:54:00:00:00:01'/><source bridge='ovs0'/><virtualport type='openvswitch'/>
    <bandwidth><inbound average='1000'/></bandwidth><target dev='lan0'/><model type='virtio'/>
    <driver name='vhost' queues='4'><host tso4='off'/></driver><filterref filter='clean-traffic'/>
  </interface>
</devices></domain>
"""


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ({"mtu": 9000}, []),
        ({"source": "br0"}, ["virtualport"]),
        ({"model": "e1000"}, ["trustGuestRxFilters", "vhost", "queues", "tso4"]),
    ],
)
def test_patch_keeps_of_a_card_what_still_fits(part: dict[str, object], gone: list[str]) -> None:
    stored = xml.parse(CARD)
    wanted = parse(stored)
    wanted["networks"] = {mac: {**card, **part} for mac, card in wanted["networks"].items()}
    text = xml.document(patch(stored, wanted))
    kept = ["trustGuestRxFilters", "virtualport", "inbound", "lan0", "vhost", "queues", "tso4", "clean-traffic"]
    assert [word for word in kept if word not in text and word not in gone] == []
    assert [word for word in gone if word in text] == []
    assert parse(xml.parse(text)) == wanted


# What others have written into the devices of a guest that is taken over, and no option says.
TAKEN_OVER = """
<domain type='kvm'><devices>
  <disk type='file' device='disk' snapshot='no'>
    <driver name='qemu' type='qcow2' cache='writeback' discard='ignore' detect_zeroes='on' iothread='1'/>
    <source file='/d/crypt.qcow2' startupPolicy='mandatory'>
      <encryption format='luks' engine='qemu'><secret type='passphrase' uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/>
      </encryption>
      <seclabel model='dac' relabel='no'/>
    </source>
    <backingStore type='file'><format type='qcow2'/>
      <source file='/d/base.qcow2'>
        <encryption format='luks'><secret type='passphrase' uuid='11111111-8403-7b23-c8d6-21ccc2f80d6f'/></encryption>
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore/>
    </backingStore>
    <target dev='vda' bus='virtio' rotation_rate='1'/><iotune><total_iops_sec>500</total_iops_sec></iotune>
  </disk>
  <disk type='block' device='lun' sgio='unfiltered' rawio='yes'>
    <driver name='qemu' type='raw' cache='none'/>
    <source dev='/dev/mapper/san'><reservations managed='yes'/></source><target dev='sdc' bus='scsi'/>
  </disk>
  <disk type='block' device='disk'>
    <driver name='qemu' type='raw' cache='none'/>
    <source dev='/dev/vg/data'><seclabel model='selinux' relabel='no'/></source><target dev='vdb' bus='virtio'/>
  </disk>
  <disk type='file' device='cdrom'>
    <driver name='qemu' type='raw'/><source file='/d/cd.iso' startupPolicy='optional'/>
    <target dev='sda' bus='sata' tray='open'/><readonly/>
  </disk>
  <interface type='network'>
    <mac address='52:54:00:aa:bb:cc'/><source network='lan' portgroup='dmz'/><vlan><tag id='42'/></vlan>
    <model type='e1000'/><mtu size='9000'/>
  </interface>
  <interface type='direct'>
    <mac address='52:54:00:aa:bb:cd'/><source dev='eth0' mode='bridge'/><model type='virtio'/>
  </interface>
</devices></domain>
"""
OF_CRYPT = ["0a81f5b2", 'startupPolicy="mandatory"', "11111111", "total_iops_sec"]


@pytest.mark.parametrize(
    ("kind", "name", "part", "kept", "gone"),
    [
        (
            "disks",
            "vda",
            {"cache": "none"},
            [*OF_CRYPT, 'discard="ignore"', "detect_zeroes", "iothread", 'snapshot="no"', "rotation_rate"],
            [],
        ),
        ("disks", "vda", {"bus": "scsi"}, [*OF_CRYPT, 'discard="ignore"', "detect_zeroes"], ["iothread", "rotation"]),
        ("disks", "vda", {"path": "/d/new.qcow2"}, ["total_iops_sec", 'discard="ignore"'], OF_CRYPT[:3]),
        ("disks", "vda", {"backing": []}, [OF_CRYPT[0]], [OF_CRYPT[2], "/d/base.qcow2"]),
        ("disks", "sdc", {"cache": "directsync"}, ["reservations", "lun", "sgio", "rawio"], []),
        ("disks", "sdc", {"path": "/d/x.raw"}, [], ["reservations", "lun", "sgio", "rawio"]),
        ("disks", "vdb", {"serial": "x"}, ["selinux", 'type="block"'], ["discard"]),
        ("cdroms", "sda", {"bus": "scsi"}, ["optional"], ["tray"]),
        ("networks", "52:54:00:aa:bb:cc", {"model": "virtio"}, ["dmz", "vlan", "42", "9000"], []),
        ("networks", "52:54:00:aa:bb:cc", {"mtu": 1400}, ["dmz", "vlan", "42", "1400"], ["9000"]),
        ("networks", "52:54:00:aa:bb:cc", {"source": "wan"}, ["9000"], ["dmz", "vlan"]),
        ("networks", "52:54:00:aa:bb:cd", {"mtu": 1400}, ['<source dev="eth0" mode="bridge"/>'], []),
    ],
)
def test_patch_keeps_what_belongs_to_a_source_that_stays(
    kind: str, name: str, part: dict[str, object], kept: list[str], gone: list[str]
) -> None:
    stored = xml.parse(TAKEN_OVER)
    wanted = parse(stored)
    wanted[kind][name] = {**wanted[kind][name], **part}
    patched = patch(stored, wanted)
    assert parse(written(patched)) == wanted
    key = "mac[@address" if kind == "networks" else "target[@dev"
    device = next(each for each in patched.findall("devices/*") if each.find(f"{key}='{name}']") is not None)
    text = xml.document(device)
    assert [word for word in kept if word not in text] == []
    assert [word for word in gone if word in text] == []


def limited(name: str, path: str, limit: int, unit: int, controller: int = 0) -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>"
        f"<source file='{path}'/><target dev='{name}' bus='scsi' rotation_rate='1'/>"
        f"<iotune><total_iops_sec>{limit}</total_iops_sec></iotune><shareable/>"
        f"<address type='drive' controller='{controller}' bus='0' target='0' unit='{unit}'/></disk>"
    )


def test_patch_lets_a_disk_that_is_renamed_keep_what_it_has() -> None:
    """sda and sdb are our CD drives: those of a guest that is taken over move on, and push others."""
    drives = [
        limited("sda", "/a", 1, 0),
        limited("sdb", "/b", 2, 1),
        limited("sdc", "/c", 3, 2),
        limited("sdd", "/d", 4, 0, 1),
    ]
    stored = xml.parse(f"<domain type='kvm'><devices>{''.join(drives)}<rng/></devices></domain>")
    found = parse(stored)
    sda, sdb, sdc, sdd = (found["disks"][name] for name in ("sda", "sdb", "sdc", "sdd"))
    disks = {"sdc": sda, "sdd": {**sdb, "serial": "x"}, "sde": sdc, "sdf": sdd, "sdg": {**sda, "path": "/new"}}
    wanted = {**found, "disks": disks, "cdroms": {"sda": {"path": "", "bus": "sata"}}}
    patched = patch(stored, wanted)
    assert parse(written(patched)) == wanted
    limits = {
        xml.attribute(each, "target", "dev"): (xml.text_of(each, "iotune/total_iops_sec"), domain.path_of(each))
        for each in patched.findall("devices/disk[@device='disk']")
    }
    assert limits == {
        "sdc": ("1", "/a"),
        "sdd": ("2", "/b"),
        "sde": ("3", "/c"),
        "sdf": ("4", "/d"),
        "sdg": ("", "/new"),
    }
    text = xml.document(patched)
    assert [text.count(word) for word in ("rotation_rate", "<shareable", 'io="native"')] == [4, 4, 4]
    addresses = [each.get("controller") for each in patched.findall("devices/disk/address")]
    assert addresses == ["1"], "places on the first controller go by the names"


def test_patch_lets_limits_stay_with_a_name_that_gets_new_data() -> None:
    stored = xml.parse(f"<domain type='kvm'><devices>{limited('sdc', '/a', 1, 2)}</devices></domain>")
    found = parse(stored)
    for name, path, bus in (("sdc", "/new", "scsi"), ("sdd", "/new", "scsi"), ("vda", "/a", "virtio")):
        disks = {name: {**found["disks"]["sdc"], "path": path, "bus": bus}}
        assert ("iotune" in xml.document(patch(stored, {**found, "disks": disks}))) is (name == "sdc")


@pytest.mark.parametrize(("path", "kind", "place"), [("/p/v", "file", "file"), ("/dev/vg/v", "block", "dev")])
def test_patch_makes_a_plain_disk_of_a_volume_whose_place_is_known(path: str, kind: str, place: str) -> None:
    stored = xml.parse(
        """<domain><devices><disk type='volume'><driver name='qemu' type='qcow2'/>
        <source pool='p' volume='v' mode='host' startupPolicy='optional'><encryption format='luks'/></source>
        <backingStore type='volume'><format type='raw'/><source pool='q' volume='b'/><backingStore/></backingStore>
        <target dev='vda' bus='virtio'/></disk></devices></domain>"""
    )
    for source, pool, volume in domain.volumes(stored):
        assert (pool, volume) in (("p", "v"), ("q", "b"))
        source.set("file", path if pool == "p" else "/q/b")
    wanted = parse(stored)
    assert wanted["disks"]["vda"].pop("volume") == "the volume v of the pool p"
    assert wanted["disks"]["vda"]["path"] == path
    assert [each["path"] for each in wanted["disks"]["vda"]["backing"]] == ["/q/b"]
    for cache in ("default", "none"):
        wanted["disks"]["vda"]["cache"] = cache
        patched = patch(stored, wanted)
        assert parse(written(patched)) == wanted
        assert domain.volumes(patched) == []
        disk = patched.find("devices/disk")
        assert disk is not None
        kept = disk.find("source")
        assert kept is not None
        assert (disk.get("type"), kept.attrib) == (kind, {"startupPolicy": "optional", place: path})
        assert kept.find("encryption") is not None
        assert xml.attribute(disk, "backingStore", "type") == "file"


OF_QCOW2 = "<driver type='qcow2'/><source file='/d/a'/>"
ON_IMAGE = "<backingStore type='file'><format type='{}'/><source file='/d/b'/></backingStore>"


@pytest.mark.parametrize(
    ("drive", "is_open"),
    [
        (OF_QCOW2, True),
        (f"{OF_QCOW2}<readonly/>", True),
        (f"{OF_QCOW2}{ON_IMAGE.format('qcow2')}", True),
        (f"{OF_QCOW2}{ON_IMAGE.format('raw')}", False),
        (f"{OF_QCOW2}<backingStore/>", False),
        ("<driver type='raw'/><source file='/d/a'/>", False),
        ("<source file='/d/a'/>", False),
        ("<driver type='raw'/><source dev='/dev/vg/a'/>", False),
        # Nobody has looked what that rests on.
        ("<driver type='qcow2'/><source dev='/dev/vg/a'/>", False),
    ],
)
def test_what_a_disk_rests_on_is_said_in_full_once_it_is_wanted(drive: str, is_open: bool) -> None:
    target = "<target dev='vda' bus='virtio'/>"
    stored = xml.parse(f"<domain><devices><disk device='disk'>{drive}{target}</disk></devices></domain>")
    found = parse(stored)
    assert ("open" in found["disks"]["vda"]) == is_open
    found["disks"]["vda"].pop("open", None)
    patched = patch(stored, found)
    assert parse(written(patched)) == found
    (before,), (after,) = (root.findall("devices/disk") for root in (stored, patched))
    assert domain.is_closed(after) or "/dev/" in drive
    assert (xml.document(before) == xml.document(after)) != is_open


def test_a_cd_rests_on_nothing() -> None:
    stored = xml.parse(
        "<domain><devices><disk device='cdrom'><source file='/a'/><target dev='sda'/></disk></devices></domain>"
    )
    assert parse(stored)["cdroms"] == {"sda": {"path": "/a", "bus": ""}}


def test_patch_leaves_a_volume_whose_place_is_not_known() -> None:
    stored = xml.parse(
        """<domain><devices>
        <disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk></devices></domain>"""
    )
    patched = patch(stored, {**parse(stored), "memory_mib": 64})
    assert [(pool, volume) for _source, pool, volume in domain.volumes(patched)] == [("p", "v")]
    assert xml.attribute(patched, "devices/disk", "type") == "volume"


def test_patch_tells_who_may_write_below_a_disk_that_stays() -> None:
    stored = xml.parse(TAKEN_OVER)
    wanted = parse(stored)
    wanted["disks"]["vda"]["backing"][0]["read_only"] = False
    patched = patch(stored, wanted)
    assert parse(written(patched)) == wanted
    below = patched.find("devices/disk/backingStore/source")
    assert below is not None
    assert [each.tag for each in below] == ["encryption"]
    label = patched.find("devices/disk/source/seclabel")
    assert label is not None, "that of the disk itself is told by no option"


@pytest.mark.parametrize(("cache", "io"), [("none", True), ("writeback", False)])
def test_patch_keeps_native_io_only_with_its_cache(cache: str, io: bool) -> None:
    stored = xml.parse(STORED.replace("cache='none'", "cache='none' io='native'", 1))
    wanted = parse(stored)
    wanted["disks"]["vda"] = {**wanted["disks"]["vda"], "cache": cache, "serial": "x"}
    assert ('io="native"' in xml.document(patch(stored, wanted))) is io


@pytest.mark.parametrize(("vcpus", "kept"), [(4, True), (2, False)])
def test_patch_drops_a_topology_that_contradicts(vcpus: int, kept: bool) -> None:
    """libvirt would refuse it: 2 sockets of 2 cores are 4."""
    layout = "<topology sockets='2' cores='2' threads='1'/><numa><cell id='0' cpus='0-1' memory='524288'/></numa>"
    stored = xml.parse(STORED.replace("</cpu>", f"{layout}</cpu>").replace("'static'>1<", "'static' cpuset='0-7'>4<"))
    wanted = {**parse(stored), "vcpus": 1, "max_vcpus": vcpus, "cpu": {"model": "EPYC", "features": {}}}
    text = xml.document(patch(stored, wanted))
    assert ("<topology" in text) is kept
    assert "<numa>" in text
    assert f'<vcpu placement="static" cpuset="0-7" current="1">{vcpus}<' in text


def test_patch_keeps_the_cells_of_a_guest_that_gets_the_default_cpu() -> None:
    stored = xml.parse(STORED.replace("</cpu>", "<numa><cell id='0' cpus='0' memory='512' unit='MiB'/></numa></cpu>"))
    wanted = {**parse(stored), "cpu": {"model": "", "features": {}}}
    patched = patch(stored, wanted)
    assert parse(written(patched)) == wanted
    assert domain.memory_cells(patched) == [512]


OF_CPU = "<topology sockets='1' cores='1' threads='1'/><cache mode='passthrough'/><maxphysaddr mode='passthrough'/>"
PASSED = (
    f"<cpu mode='host-passthrough' check='none' migratable='off'>{OF_CPU}<feature policy='require' name='x'/></cpu>"
)
NAMED = f"<cpu mode='custom' match='minimum' check='partial'><model fallback='allow'>EPYC</model>{OF_CPU}</cpu>"


@pytest.mark.parametrize(
    ("cpu", "model", "kept"),
    [
        (PASSED, "host-passthrough", ["topology", "cache", "maxphysaddr", 'migratable="off"']),
        (PASSED, "EPYC", ["topology"]),
        (NAMED, "EPYC", ["topology", "cache", "maxphysaddr", 'match="minimum"', '<model fallback="allow">EPYC<']),
        (NAMED, "host-passthrough", ["topology"]),
    ],
)
def test_patch_keeps_what_a_cpu_of_the_same_model_has_beside(cpu: str, model: str, kept: list[str]) -> None:
    stored = xml.parse(f"<domain type='qemu'>{cpu}</domain>")
    wanted = {**parse(stored), "cpu": {"model": model, "features": {"svm": "disable"}}}
    patched = patch(stored, wanted)
    assert parse(written(patched)) == wanted
    text = xml.document(patched)
    known = ["topology", "cache", "maxphysaddr", "migratable=", 'match="minimum"', 'fallback="allow"']
    assert [word for word in kept if word not in text] == []
    assert [word for word in known if word in text and not any(word in one for one in kept)] == []
    assert xml.attribute(patched, "cpu", "check") == "none", "an emulated CPU is not checked"


def test_the_agent_has_few_queues() -> None:
    """libvirt's own controller has 64. One that a domain has already stays as it is: the guest knows it."""
    model = {**parse(xml.parse(STORED)), "agent": True}
    (made,) = [each for each in build(model).iter("controller") if each.get("type") == "virtio-serial"]
    assert made.get("ports") == "4"
    assert "virtio-serial" not in xml.document(build({**model, "agent": False}))
    made.attrib.pop("ports")
    stored = build({**model, "agent": False})
    xml.all_at(stored, "devices")[0].append(made)
    again = patch(stored, model)
    assert parse(again)["agent"]
    kept = [each.attrib for each in again.iter("controller") if each.get("type") == "virtio-serial"]
    assert kept == [{"type": "virtio-serial", "index": "0"}]


def test_patch_to_another_kind_of_machine_forgets_the_slots() -> None:
    stored = xml.parse(STORED)
    text = xml.document(patch(stored, {**parse(stored), "machine": "pc"}))
    assert "<address" not in text
    assert 'machine="pc"' in text
    back = xml.document(patch(xml.parse(text), {**parse(stored), "machine": "q35"}))
    assert back.count("pcie-root-port") == 12
    newer = patch(stored, {**parse(stored), "machine": "pc-q35-10.1"})
    assert xml.document(newer).count("<address") == 3, "a version of the same kind has the same slots"


@pytest.mark.parametrize(("bus", "kept"), [("scsi", ["product", "vendor", "wwn"]), ("sata", [])])
def test_patch_forgets_what_a_disk_on_another_bus_cannot_have(bus: str, kept: list[str]) -> None:
    """libvirt: 'Only ide and scsi disk support wwn', and 'Only scsi disk supports vendor and product'."""
    stored = xml.parse(
        "<domain><devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/a.raw'/>"
        "<target dev='sdc' bus='scsi'/><wwn>05abcd1234567890</wwn><vendor>ACME</vendor><product>disk</product>"
        "</disk></devices></domain>"
    )
    model = parse(stored)
    patched = patch(stored, {**model, "disks": {"sdc": {**model["disks"]["sdc"], "bus": bus, "cache": "none"}}})
    tags = {each.tag for each in xml.all_at(patched, "devices/disk/*")}
    assert sorted(tags & {"product", "vendor", "wwn"}) == kept


def test_patch_from_pc_to_q35_takes_the_ide_controller_away() -> None:
    """libvirt: 'IDE controllers are unsupported for this QEMU binary or machine type'."""
    stored = xml.parse(
        "<domain type='kvm'><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><devices>"
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>"
        "<controller type='ide' index='0'/><controller type='virtio-serial' index='0'/></devices></domain>"
    )
    wanted = {**parse(stored), "cdroms": {}}
    patched = patch(stored, {**wanted, "machine": "q35"})
    kinds = [each.get("type") for each in xml.all_at(patched, "devices/controller")]
    assert "ide" not in kinds
    assert "virtio-serial" in kinds
    assert 'type="ide"' in xml.document(patch(stored, wanted)), "on the same kind of machine it stays"


SCREENS = """
<domain type='kvm'><devices>
  <graphics type='egl-headless'/>
  <graphics type='vnc' port='-1' autoport='yes' keymap='de'><listen type='address' address='127.0.0.1'/></graphics>
  <graphics type='vnc' port='5999' listen='0.0.0.0' passwd='secret'/>
  <graphics type='spice'/><video><model type='virtio'/></video>
</devices></domain>
"""


def test_patch_leaves_one_screen() -> None:
    stored = xml.parse(SCREENS)
    found = parse(stored)
    assert (found["graphics"]["listen"], found["graphics"]["more"]) == ("127.0.0.1", "vnc on 0.0.0.0, spice")
    alone = {**found, "graphics": {key: value for key, value in found["graphics"].items() if key != "more"}}
    patched = patch(stored, alone)
    assert parse(written(patched)) == alone
    assert [each.get("type") for each in patched.findall("devices/graphics")] == ["egl-headless", "vnc"]
    assert xml.attribute(patched, "devices/graphics[@type='vnc']", "keymap") == "de"
    nothing = patch(stored, {**found, "graphics": {"type": "none"}})
    assert nothing.findall("devices/graphics") == []


def test_patch_of_the_serial_console_takes_its_double_along() -> None:
    stored = xml.parse(STORED)
    wanted = {**parse(stored), "serial": {"type": "none", "log": ""}}
    text = xml.document(patch(stored, wanted))
    assert "<serial" not in text
    assert "<console" not in text


PORTS = """
<domain type='kvm'><devices>
  <console type='pty'><target type='serial' port='0'/></console>
  <serial type='pty'><target port='0'/></serial>
  <serial type='tcp'><source mode='bind' host='127.0.0.1' service='5555'/><target port='1'/></serial>
  <console type='pty'><target type='virtio' port='1'/></console>
</devices></domain>
"""


def test_patch_leaves_other_serial_ports() -> None:
    stored = xml.parse(PORTS)
    for wanted, types in (({"type": "pty", "log": "/v/l"}, ["pty", "tcp"]), ({"type": "none", "log": ""}, ["tcp"])):
        patched = patch(stored, {**parse(stored), "serial": wanted})
        assert parse(written(patched))["serial"] == wanted
        assert [each.get("type") for each in patched.findall("devices/serial")] == types
        assert xml.attribute(patched, "devices/serial[@type='tcp']/source", "service") == "5555"
        assert [xml.attribute(each, "target", "type") for each in patched.findall("devices/console")] == ["virtio"]
    back = patch(patched, parse(stored))
    assert [each.get("type") for each in back.findall("devices/serial")] == ["pty", "tcp"]


def test_other_devices_are_named() -> None:
    assert domain.other_devices(xml.parse(STORED)) == ["hostdev", "tpm"]


def test_what_goes_past_libvirt_is_named() -> None:
    assert domain.passed_through(xml.parse(STORED)) == ["qemu:commandline"]
    other = "<domain xmlns:x='urn:x'><x:y/><x:y/><metadata><x:z/></metadata></domain>"
    assert domain.passed_through(xml.parse(other)) == ["{urn:x}y"]


# The example of CernVM's page: no UUID, no cards' addresses, IDE, memory without a unit.
CERNVM = """
<domain type='kvm'>
  <name>CernVM</name>
  <memory>2097152</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type><boot dev='cdrom' /></os>
  <features><acpi /><apic /><pae /></features>
  <devices>
    <disk type='file' device='cdrom'>
      <source file='/data/test/cernvm4-micro-2020.04-1.iso' /><target dev="hdc" bus="ide" /><readonly />
    </disk>
    <disk type='file' device='disk'>
      <source file='/home/user/cernvm-hd.img' /><target dev='vda' bus="virtio" />
    </disk>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <graphics type='vnc' listen='0.0.0.0' port='6019'/>
  </devices>
</domain>
"""


def test_a_foreign_domain_is_read() -> None:
    found = parse(xml.parse(CERNVM))
    assert (found["memory_mib"], found["max_memory_mib"], found["vcpus"]) == (2048, 2048, 1)
    assert found["boot"] == ["cdrom"]
    assert found["cdroms"] == {"hdc": {"path": "/data/test/cernvm4-micro-2020.04-1.iso", "bus": "ide"}}
    assert found["disks"]["vda"]["format"] == "raw"
    assert found["graphics"] == {"type": "vnc", "listen": "0.0.0.0", "port": 6019, "password": ""}
    assert found["marks"] == {}


@pytest.mark.parametrize(
    ("disks", "target"),
    [
        ("", ""),
        ("<disk device='cdrom'><target dev='sda'/></disk>", ""),
        # As a guest of ours has them: the one that is given first, whatever its name.
        ("<disk device='disk'><target dev='vda'/></disk><disk device='disk'><target dev='sdc'/></disk>", "vda"),
        ("<disk><target dev='vda'/><boot order='10'/></disk><disk><target dev='sdc'/><boot order='9'/></disk>", "sdc"),
        ("<disk><target dev='vda'/></disk><disk><target dev='vdb'/><boot order='2'/></disk>", "vdb"),
    ],
)
def test_the_disk_that_it_boots_from(disks: str, target: str) -> None:
    assert domain.boot_disk(xml.parse(f"<domain><devices>{disks}</devices></domain>")) == target


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("<disk type='block'><source dev='/dev/vg/lv'/><target dev='vda'/></disk>", "/dev/vg/lv"),
        ("<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>", "volume:p/v"),
        ("<disk type='volume'><source pool='p' volume='v' file='/p/v'/><target dev='vda'/></disk>", "/p/v"),
        ("<disk type='network'><source protocol='rbd' name='a/b'/><target dev='vda'/></disk>", "network:rbd/a/b"),
        (
            "<disk type='network'><source protocol='rbd' name='a/b' file='/a'/><target dev='vda'/></disk>",
            "network:rbd/a/b",
        ),
        ("<disk type='file'><target dev='vda'/></disk>", ""),
    ],
)
def test_path_of_any_disk(source: str, path: str) -> None:
    assert parse(xml.parse(f"<domain><devices>{source}</devices></domain>"))["disks"]["vda"]["path"] == path


@pytest.mark.parametrize(
    ("memory", "mebibytes"),
    [
        ("<memory unit='GiB'>2</memory>", 2048),
        ("<memory unit='b'>1048576</memory>", 1),
        ("<memory>1024</memory>", 1),
        ("<memory unit='MB'>100</memory>", 96),
    ],
)
def test_memory_has_units(memory: str, mebibytes: int) -> None:
    assert parse(xml.parse(f"<domain>{memory}</domain>"))["max_memory_mib"] == mebibytes


# 97.66 MiB. libvirt starts the guest with 98.
UNEVEN = "<domain><memory unit='KiB'>100000</memory><currentMemory unit='KiB'>100000</currentMemory></domain>"


def test_memory_that_is_no_whole_number_is_written_as_one() -> None:
    stored = xml.parse(UNEVEN)
    found = parse(stored)
    assert (found["memory_mib"], found["max_memory_mib"]) == (97, 98)
    for size in (97, 98):
        patched = patch(stored, {**found, "memory_mib": size, "max_memory_mib": size})
        assert [xml.text_of(patched, tag) for tag in ("memory", "currentMemory")] == [str(size * 1024)] * 2


def test_memory_cells_are_those_that_libvirt_makes_of_them() -> None:
    cell = "<cpu><numa><cell id='0' cpus='0' memory='100000' unit='KiB'/></numa></cpu>"
    assert domain.memory_cells(xml.parse(f"<domain>{cell}</domain>")) == [98]


def test_backing_chain_is_read_in_order_with_its_end() -> None:
    root = xml.parse(
        """<domain><devices><disk type='file'><source file='/top'/><target dev='vda'/>
        <backingStore type='file' index='2'><format type='qcow2'/><source file='/mid'/>
        <backingStore type='file'><format type='raw'/><source file='/base'><seclabel model='dac' relabel='no'/></source>
        <backingStore/></backingStore></backingStore></disk></devices></domain>"""
    )
    assert parse(root)["disks"]["vda"]["backing"] == [
        {"path": "/mid", "format": "qcow2", "read_only": False},
        {"path": "/base", "format": "raw", "read_only": True},
    ]


@pytest.mark.parametrize(
    ("wanted", "actual", "same"),
    [
        ("q35", "pc-q35-10.0", True),
        ("q35", "pc-q35-rhel9.4.0", True),
        ("pc", "pc-i440fx-9.2", True),
        ("pc", "pc-q35-9.2", False),
        ("q35", "pc-i440fx-9.2", False),
        ("pc-q35-9.2", "pc-q35-10.0", False),
        ("virt", "virt-9.2", True),
        ("", "anything", True),
    ],
)
def test_a_machine_stands_for_its_versions(wanted: str, actual: str, same: bool) -> None:
    assert domain.same_machine(wanted, actual) is same


def test_what_a_running_domain_shows() -> None:
    root = xml.parse(
        """<domain><devices><graphics type='vnc' port='5901' autoport='yes'/>
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='vnet3'/></interface>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
        </devices></domain>"""
    )
    assert domain.vnc_port(root) == 5901
    assert parse(root)["graphics"]["port"] is None
    assert domain.agent_connected(root)
    assert domain.interface_names(root) == {"52:54:00:00:00:01": "vnet3"}
    assert not domain.agent_connected(xml.parse(STORED))
    assert domain.vnc_port(xml.parse(STORED)) is None


@pytest.mark.parametrize(
    ("kind", "source", "named"),
    [
        ("bridge", "network='office' portid='8f1c1d0e' bridge='br7'", ("network", "office")),
        ("direct", "network='office' portid='8f1c1d0e' dev='eth0' mode='bridge'", ("network", "office")),
        ("network", "network='office' portid='8f1c1d0e' bridge='virbr0'", ("network", "office")),
        ("bridge", "bridge='br7'", ("bridge", "br7")),
        ("direct", "dev='eth0' mode='bridge'", ("direct", "eth0")),
    ],
)
def test_a_running_card_is_on_the_network_that_it_was_given(kind: str, source: str, named: tuple[str, str]) -> None:
    """libvirt shows the bridge of the host that the network stands for, and the network beside it."""
    card = f"<interface type='{kind}'><mac address='52:54:00:00:00:01'/><source {source}/></interface>"
    found = parse(xml.parse(f"<domain><devices>{card}</devices></domain>"))["networks"]["52:54:00:00:00:01"]
    assert (found["type"], found["source"]) == named
