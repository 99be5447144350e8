# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains that somebody else has made, and what guests may not share."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disk_images,
    domains,
    guest_disks,
    guest_preflight,
    guest_report,
    kvm,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors, migration, xml

from .. import fake_domains
from ..fake_domains import FakeConnection, FakeError
from .bring import DIGEST, WEB, bring, foreign, needs_of, one, snap, template


def test_a_foreign_domain_is_shown_and_not_touched(connection: FakeConnection) -> None:
    foreign(connection)
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert (shown["name"], shown["managed"], shown["placement"], shown["state"]) == ("old", False, None, "stopped")
    for state in ("running", "stopped", "absent"):
        with pytest.raises(Refused, match="not made by"):
            bring({"name": "old", "memory_mib": 64, "state": state})
    assert connection.calls == []


def test_a_disk_is_not_taken_over_as_what_it_is_not(connection: FakeConnection, place: Path) -> None:
    """As raw the guest would find a header for its first bytes. What libvirt reads as raw may begin with anything."""
    disk = place / "own"
    fake_domains.qcow2(disk, 2**20)
    wanted = {"name": "old", "memory_mib": 256, "disks": [{"path": str(disk), "format": "raw"}], "state": "stopped"}

    def define(kind: str) -> None:
        source = f"<source file='{disk}'/><target dev='vda' bus='virtio'/>"
        foreign(connection, f"<disk type='file'><driver name='qemu' type='{kind}'/>{source}</disk>")

    define("qcow2")
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"format: {disk} is qcow2, not raw"):
            bring(wanted, adopt=True, check_mode=check_mode)
    assert connection.calls == []
    (place / "link").symlink_to(disk)
    with pytest.raises(Refused, match="link is qcow2, not raw"):
        bring({**wanted, "disks": [{"path": str(place / "link"), "format": "raw"}]}, adopt=True)
    define("raw")
    assert one(wanted, adopt=True)["actions"][0] == "adopt"


@pytest.mark.parametrize("told", [True, False])
def test_what_lies_below_a_snapshot_is_not_taken_over_for_the_disk(
    connection: FakeConnection, place: Path, told: bool
) -> None:
    """It was made by other means, and the guest has written above it since."""
    base, top = place / "own.qcow2", place / "own.snap"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(top, 2**20, str(base), "qcow2")
    named = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    foreign(
        connection,
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{top}'/>{named if told else ''}"
        "<target dev='vda' bus='virtio'/></disk>",
    )
    wanted = {"name": "old", "memory_mib": 256, "state": "stopped"}
    with pytest.raises(Refused, match=f"libvirt has {top} for it, and not {base}") as refused:
        bring({**wanted, "disks": [{"path": str(base)}]}, adopt=True)
    assert f"virsh blockcommit old vda --base {base}" in refused.value.hint
    assert connection.calls == []
    assert one({**wanted, "disks": [{"path": str(top)}]}, adopt=True)["actions"][0] == "adopt"


def test_nor_is_what_lies_below_one_of_a_disk_that_somebody_has_given_to_a_guest(
    connection: FakeConnection, place: Path
) -> None:
    base, top = place / "own.qcow2", place / "own.snap"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(top, 2**20, str(base), "qcow2")
    bring({**WEB, "state": "stopped"})
    disk = (
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{top}'/><backingStore type='file'>"
        f"<format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
        "<target dev='vdb' bus='virtio'/></disk>"
    )
    t.cast("t.Any", connection.domains["web"].stored).find("devices").append(xml.parse(disk))
    wanted = {**WEB, "state": "stopped"}
    with pytest.raises(Refused, match=f"libvirt has {top} for it, and not {base}"):
        bring({**wanted, "disks": [{"size_mib": 1}, {"path": str(base)}]})
    assert bring({**wanted, "disks": [{"size_mib": 1}, {"path": str(top)}]})["changed"]


def test_no_guest_writes_to_what_a_foreign_one_rests_on_without_a_word(connection: FakeConnection, place: Path) -> None:
    """The XML of a linked clone that does not run names the clone alone."""
    base, clone = place / "base.qcow2", place / "clone.qcow2"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(clone, 2**20, str(base), "qcow2")
    source = f"<driver name='qemu' type='qcow2'/><source file='{clone}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'>{source}</disk>")
    with pytest.raises(Refused, match=f"The disk {base} of guest 'web' is that of 'old'"):
        bring({**WEB, "disks": [{"path": str(base)}]})
    assert bring({**WEB, "disks": [{"path": str(base), "read_only": True}]})["changed"]


@pytest.mark.parametrize("below", [True, False])
def test_a_foreign_disk_of_a_format_that_is_not_read_keeps_nobody(
    connection: FakeConnection, place: Path, below: bool
) -> None:
    old, clone = place / "old.qed", place / "clone.qcow2"
    old.write_bytes(b"QED")
    fake_domains.qcow2(clone, 2**20, str(old), "qed")
    path, kind = (clone, "qcow2") if below else (old, "qed")
    source = f"<driver name='qemu' type='{kind}'/><source file='{path}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'>{source}</disk>")
    assert bring(WEB)["changed"]


def test_adopted_it_keeps_its_identity(connection: FakeConnection) -> None:
    foreign(connection)
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    assert one(wanted, adopt=True)["actions"][0] == "adopt"
    found = domain.parse(t.cast("t.Any", connection.domains["old"].stored))
    assert found["uuid"] == "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"
    assert list(found["networks"]) == ["52:54:00:00:00:77"]
    assert found["machine"] == "pc-i440fx-9.2"
    again = bring(wanted)
    assert not again["changed"]
    assert again["guests"][0]["managed"]


def test_a_disk_that_another_one_has_as_a_volume_is_refused(connection: FakeConnection, place: Path) -> None:
    disk = place / "tf.qcow2"
    fake_domains.qcow2(disk, 2**20)
    connection.pools["p"] = str(place)
    connection.volumes["p", "tf.qcow2"] = str(disk)
    volume = "<source pool='p' volume='tf.qcow2'><encryption format='luks'/></source><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='volume'><driver name='qemu' type='qcow2'/>{volume}</disk>")
    given = {"memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}], "state": "stopped"}
    with pytest.raises(Refused, match=f"The disk {disk} of guest 'web' is that of 'old'"):
        bring({**given, "name": "web"})
    # Taken over it is a plain disk.
    taken = bring({**given, "name": "old"}, adopt=True)
    after = taken["diff"]["after"]["old"]
    assert [key for key in after if key.startswith("disks")] == [
        "disks.vda.cache",
        "disks.vda.path",
        "disks.vda.backing",
    ]
    text = connection.domains["old"].XMLDesc(2)
    assert f'<source file="{disk}">' in text
    assert "luks" in text
    assert not bring({**given, "name": "old"})["changed"]


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("said", [True, False])
def test_adopted_its_disk_rests_on_what_it_did(
    connection: FakeConnection, place: Path, disk_records: Path, state: str, said: bool
) -> None:
    """As Terraform (base_volume_id) and clones of cloud images have it."""
    for name in ("base", "pool"):
        (place / name).mkdir()
    base, disk = place / "base/cloud.qcow2", place / "pool/tf.qcow2"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(disk, 2**20, str(base), "qcow2")
    connection.pools["p"] = str(place / "pool")
    connection.volumes["p", "tf.qcow2"] = str(disk)
    below = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    foreign(
        connection,
        "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='p' volume='tf.qcow2'/>"
        f"{below if said else ''}<target dev='vda' bus='virtio'/></disk>",
    )
    if state == "running":
        connection.domains["old"].createWithFlags(0)
        connection.calls.clear()
        if not said:
            # What runs libvirt has looked at.
            t.cast("t.Any", connection.domains["old"].live).find("devices/disk").append(xml.parse(below))
    content = disk.read_bytes()
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}]}
    wanted["state"] = state
    # No other guest gains by it.
    with pytest.raises(Refused, match=f"{disk} rests on {base}"):
        bring({**wanted, "name": "new"}, adopt=True)
    assert connection.calls == []
    assert one(wanted, adopt=True)["actions"][0] == "adopt"
    found = domain.parse(t.cast("t.Any", connection.domains["old"].stored))["disks"]["vda"]
    assert found["backing"] == [{"path": str(base), "format": "qcow2", "read_only": False}]
    assert "open" not in found
    assert disk.read_bytes() == content
    assert not bring(wanted)["changed"]
    assert any("Flatten it while" in each for each in blockers(connection, "old"))
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"{disk} rests on it"):
            disk_images.bring_to(
                Host(run=fake_domains.run), [{"path": str(base), "state": "absent"}], check_mode=check_mode
            )
    # Where somebody lets it rest on another file later, that one libvirt has not named.
    fake_domains.qcow2(place / "secret", 2**20)
    fake_domains.qcow2(disk, 2**20, str(place / "secret"), "qcow2")
    connection.domains["old"].live = None
    connection.domains["old"].number = fake_domains.SHUTOFF
    with pytest.raises(Refused, match=f"{disk} rests on {place}/secret"):
        bring({**wanted, "state": "stopped"})


@pytest.mark.parametrize(
    ("xml_says", "format_said", "known"),
    [
        # What libvirt would read: all by the header, or what is below the part that the XML names.
        ("", True, ["base", "deep"]),
        ("<backingStore><format type='qcow2'/><source file='{place}/base'/></backingStore>", True, ["base", "deep"]),
        # The XML knows of nothing, or of another file.
        ("<backingStore/>", True, []),
        ("<backingStore><format type='qcow2'/><source file='{place}/x'/></backingStore>", True, ["x"]),
        # libvirt does not start it.
        ("", False, []),
    ],
)
def test_what_a_domain_reads_already(place: Path, xml_says: str, format_said: bool, known: list[str]) -> None:
    fake_domains.qcow2(place / "deep", 2**20)
    fake_domains.qcow2(place / "base", 2**20, str(place / "deep"), "qcow2")
    fake_domains.qcow2(place / "top", 2**20, str(place / "base"), "qcow2")
    if not format_said:
        header = (place / "top").read_bytes()
        (place / "top").write_bytes(header[:104] + bytes(8) + header[112:])
    text = xml_says.format(place=place)
    model = domain.parse(
        xml.parse(
            f"<domain><devices><disk><driver type='qcow2'/><source file='{place}/top'/>{text}<target dev='vda'/></disk>"
            "</devices></domain>"
        )
    )
    top = str(place / "top")
    found = guest_disks.told(top, "qcow2", [domain.EMPTY, model], adopted=True)
    assert found == {str(place / name) for name in known}
    # Of one of ours the header says nothing. What is raw for libvirt the guest has written.
    named = {one["path"] for one in model["disks"]["vda"]["backing"]}
    assert guest_disks.told(top, "qcow2", [model], adopted=False) == named
    assert guest_disks.told(top, "raw", [model], adopted=True) == set()
    model["disks"]["vda"]["format"] = "raw"
    assert guest_disks.told(top, "qcow2", [model], adopted=True) == set()


def unsaid(root: t.Any) -> None:
    """Let a domain be as virt-install would have written it."""
    for disk in root.findall("devices/disk"):
        for part in disk.findall("backingStore"):
            disk.remove(part)


def blockers(connection: FakeConnection, name: str) -> list[str]:
    """Why a guest itself could not leave its host."""
    known = domains.read(t.cast("t.Any", connection), [name])[name]
    return migration.refused(name, known.live, known.xml, known.state, [], needs_of(connection, name))


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_a_guest_of_virt_install_moves_from_shared_storage_once_it_is_described(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: True)
    disk = place / "nfs.qcow2"
    fake_domains.qcow2(disk, 2**20)
    source = f"<driver name='qemu' type='qcow2' cache='none'/><source file='{disk}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'>{source}</disk>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}]}
    wanted["state"] = state
    bring(wanted, adopt=True)
    assert (bring(wanted, adopt=True)["changed"], blockers(connection, "old")) == (False, [])
    # As it is where it was taken over before that was looked at, or where somebody has defined it anew.
    unsaid(connection.domains["old"].stored)
    (said,) = blockers(connection, "old")
    assert "vda without a word on what it rests on" in said
    assert "Run it once with its description (cnvm.platform.guest)" in said
    for check_mode in (True, False):
        result = bring(wanted, check_mode=check_mode)
        (found,) = result["guests"]
        assert found["actions"] == ["change disks.vda.backing"]
        assert result["diff"]["before"]["old"]["disks.vda.backing"] == "left to its file"
        assert result["diff"]["after"]["old"]["disks.vda.backing"] == "written down"
        assert (found["restart_required"], result["warnings"]) == (False, [])
    assert blockers(connection, "old") == []
    assert not bring(wanted)["changed"]


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_of_a_disk_of_which_nothing_was_said_its_file_tells_what_it_rests_on(
    connection: FakeConnection, place: Path, state: str
) -> None:
    """Without its template it would be lost at the next start."""
    template(place)
    wanted = {**WEB, "state": state, "disks": [{"template": "debian"}]}
    bring(wanted)
    below = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]["backing"]
    unsaid(connection.domains["web"].stored)
    assert one(wanted)["actions"] == ["change disks.vda.backing"]
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]
    assert [found["backing"], "open" in found] == [below, False]
    assert [each["path"] for each in below] == [paths.template_disk(DIGEST)]
    assert not bring(wanted)["changed"]


def test_a_volume_that_somebody_made_of_a_disk_is_a_plain_disk_again(connection: FakeConnection, place: Path) -> None:
    connection.pools["p"] = str(place)
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1, "pool": "p"}]}
    bring(wanted)
    (path,) = (disk["path"] for disk in domain.parse(connection.domains["web"].stored)["disks"].values())  # type: ignore[arg-type]
    connection.volumes["p", os.path.basename(path)] = path
    drive = t.cast("t.Any", connection.domains["web"].stored).find("devices/disk")
    drive.set("type", "volume")
    drive.find("source").attrib = {"pool": "p", "volume": os.path.basename(path)}
    (said,) = blockers(connection, "web")
    assert "Run it with its description (cnvm.platform.guest), which makes a plain disk of that." in said
    assert one(wanted)["actions"] == ["change disks.vda.path"]
    assert blockers(connection, "web") == []
    assert not bring(wanted)["changed"]


def test_where_a_volume_is_libvirt_is_asked_once(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is stored and what runs, and of all guests that read it."""
    connection.volumes["p", "v"] = str(place / "v")
    connection.pools["p"] = str(place)
    volume = "<disk type='volume' device='cdrom'><source pool='p' volume='v'/><target dev='sda'/></disk>"
    for name in ("one", "two"):
        connection.defineXML(f"<domain><name>{name}</name><memory>1024</memory><devices>{volume}</devices></domain>")
        connection.domains[name].createWithFlags(0)
    asked: list[str] = []
    look = FakeConnection.storagePoolLookupByName

    def count(self: FakeConnection, name: str) -> t.Any:
        asked.append(name)
        return look(self, name)

    monkeypatch.setattr(FakeConnection, "storagePoolLookupByName", count)
    known = domains.read(t.cast("t.Any", connection))
    assert asked == ["p"]
    models = [model for one in known.values() for model in (one.model, one.live_model)]
    assert [model["cdroms"]["sda"]["path"] for model in models if model] == [str(place / "v")] * 4


def test_memory_that_is_divided_into_cells_is_not_changed_without_them(connection: FakeConnection) -> None:
    cells = "<cell id='0' cpus='0' memory='131072'/><cell id='1' cpus='1' memory='128' unit='MiB'/>"
    foreign(connection, top=f"<cpu mode='host-model'><numa>{cells}</numa></cpu>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    for more, option in (({"memory_mib": 512}, "memory_mib"), ({"max_memory_mib": 512}, "max_memory_mib")):
        for check_mode in (True, False):
            with pytest.raises(
                Refused, match=f"old: {option}: .* cells of 128 \\+ 128 MiB, which make 256 and not 512"
            ):
                bring({**wanted, **more}, adopt=True, check_mode=check_mode)
    assert connection.calls == []
    bring({**wanted, "memory_mib": 128, "max_memory_mib": 256}, adopt=True)
    found = t.cast("t.Any", connection.domains["old"].stored)
    assert (domain.parse(found)["memory_mib"], domain.memory_cells(found)) == (128, [128, 128])


def test_what_libvirt_leaves_out_is_said(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    define = connection.defineXML
    monkeypatch.setattr(connection, "defineXML", lambda text: define(text.replace(">524288<", ">262144<")))
    (warning,) = [each for each in bring({**WEB, "memory_mib": 512})["warnings"] if "has not taken" in each]
    assert "Guest web: libvirt has not taken over max_memory_mib, memory_mib" in warning
    assert not [each for each in bring({**WEB, "name": "db"})["warnings"] if "has not taken" in each]


def test_what_goes_past_libvirt_is_said_when_it_is_adopted(connection: FakeConnection) -> None:
    foreign(connection, "<hostdev/>", "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>")
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert shown["other_devices"] == ["hostdev", "qemu:commandline"]
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    for check_mode in (True, False):
        (warning,) = bring(wanted, adopt=True, check_mode=check_mode)["warnings"]
        assert "qemu:commandline, which goes past libvirt" in warning
    assert "-snapshot" in connection.domains["old"].XMLDesc(2)
    assert bring(wanted)["warnings"] == []


def test_adopted_it_gets_no_other_machine_or_firmware_without_a_word(connection: FakeConnection) -> None:
    """They have defaults for guests that are made here."""
    foreign(connection)
    root = t.cast("t.Any", connection.domains["old"].stored)
    root.find("os").set("firmware", "efi")
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "state": "stopped"}
    for check_mode in (True, False):
        machine, firmware = bring(wanted, adopt=True, check_mode=check_mode)["warnings"]
        assert "has the machine pc-i440fx-9.2, and gets q35 when it is started anew" in machine
        assert firmware.endswith("it may not boot then. Say firmware: uefi to keep it.")
    assert bring(wanted, adopt=True)["warnings"] == []


def test_adopted_it_loses_no_disk_without_a_word(connection: FakeConnection, place: Path) -> None:
    """A size alone is another disk, which is made anew."""
    path = place / "old.qcow2"
    fake_domains.qcow2(path, 2**20)
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )
    foreign(connection, disk)
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    lost = f"Guest old loses the disk vda; its file {path} is kept."
    for now in ([{"size_mib": 1}], []):
        assert lost in bring({**wanted, "disks": now}, adopt=True, check_mode=True)["warnings"]
    wanted["disks"] = [{"path": str(path)}]
    assert bring(wanted, adopt=True)["warnings"] == []
    assert bring(wanted)["warnings"] == []


def test_nor_one_that_is_not_a_file(connection: FakeConnection) -> None:
    """One behind the network, which no option describes."""
    source = "<source protocol='rbd' name='pool/data'><host name='ceph1'/></source>"
    foreign(connection, f"<disk type='network' device='disk'>{source}<target dev='vdb' bus='virtio'/></disk>")
    done = bring({"name": "old", "memory_mib": 256, "disks": [], "networks": [{}]}, adopt=True)
    assert [line for line in done["warnings"] if "loses the disk vdb (network:rbd/pool/data)" in line], done["warnings"]


# As virt-install 5 and libvirt 11 make one with a SPICE screen, and its user then limits and pins it; shortened.
VIRT_INSTALL = """
<domain type='kvm'>
  <name>desk</name>
  <uuid>5c0c1d6e-2f0b-4f55-9a52-1d2c3b4a5f60</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://debian.org/debian/13'/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <iothreads>1</iothreads>
  <cputune><vcpupin vcpu='0' cpuset='0'/></cputune>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <firmware><feature enabled='no' name='enrolled-keys'/><feature enabled='no' name='secure-boot'/></firmware>
    <loader readonly='yes' type='pflash' format='raw'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' format='raw'>/var/lib/libvirt/qemu/nvram/desk_VARS.fd</nvram>
  </os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'>
    <topology sockets='1' dies='1' clusters='1' cores='2' threads='2'/>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap' iothread='1' queues='2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
      <iotune><total_iops_sec>500</total_iops_sec></iotune>
      <boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'/>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='virtio-serial' index='0'/>
    <interface type='network'>
      <mac address='52:54:00:f4:bf:15'/>
      <source network='default'/>
      <bandwidth><inbound average='1000'/></bandwidth>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='spiceport'>
      <source channel='org.spice-space.webdav.0'/><target type='virtio' name='org.spice-space.webdav.0'/>
    </channel>
    <input type='tablet' bus='usb'/>
    <input type='keyboard' bus='ps2'/>
    <smartcard mode='passthrough' type='spicevmc'/>
    <graphics type='spice' autoport='yes'>
      <listen type='none'/><image compression='off'/><gl enable='yes'/>
    </graphics>
    <sound model='ich9'><audio id='1'/></sound>
    <audio id='1' type='spice'/>
    <video><model type='virtio' heads='1' primary='yes'><acceleration accel3d='yes'/></model></video>
    <redirdev bus='usb' type='spicevmc'/>
    <redirdev bus='usb' type='spicevmc'/>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


@pytest.mark.parametrize("screen", ["none", "vnc"])
def test_what_virt_install_has_made_is_taken_over_once(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, screen: str
) -> None:
    """It keeps what has no option, loses what only a SPICE screen serves, and says until its restart what waits."""
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    fake_domains.qcow2(place / "desk.qcow2", 2**20)
    each = connection.defineXML(VIRT_INSTALL.replace("{disk}", str(place / "desk.qcow2")))
    each.createWithFlags(0)
    wanted = {
        "name": "desk", "memory_mib": 2048, "vcpus": 4, "firmware": "uefi", "graphics": {"type": screen},
        "disks": [{"path": str(place / "desk.qcow2"), "cache": "none"}], "networks": [{}],
    }  # fmt: skip
    taken = one(wanted, adopt=True)
    waits = ["boot", "cdrom", "cpu", "disks.vda.cache", "graphics"]
    assert [reason["option"] for reason in taken["restart_reasons"]] == waits
    stored = xml.document(t.cast("t.Any", each.stored))
    gone = ["spice", "redirdev", "smartcard", "accel3d"]
    kept = [
        "<total_iops_sec>500<", 'iothread="1"', 'queues="2"', 'bus="0x04"', 'cache="none"', "<inbound", 'queues="4"',
        'cores="2"', 'cpuset="0-3"', "debian/13", "<sound", 'id="1" type="none"', "guest_agent.0", "desk_VARS.fd",
        'host-model"',
    ]  # fmt: skip
    assert [word for word in gone if word in stored] == []
    assert [word for word in kept if word not in stored] == []
    again = bring(wanted)
    assert not again["changed"]
    assert again["guests"][0]["restart_reasons"] == taken["restart_reasons"]
    assert one(wanted, restart_on_change=True)["restarted"]
    last = bring(wanted)
    assert not last["changed"]
    assert not last["guests"][0]["restart_required"]


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("", {"networks": [{"mac": "52:54:00:00:00:77"}]}, "MAC"),
        ("", {"uuid": "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"}, "UUID"),
        ("<disk type='file'><source file='{place}/d.qcow2'/><target dev='vda'/></disk>", {}, "disk"),
    ],
)
def test_what_another_domain_has_is_refused(
    connection: FakeConnection, place: Path, text: str, given: dict[str, t.Any], said: str
) -> None:
    fake_domains.qcow2(place / "d.qcow2", 2**20)
    foreign(connection, text.format(place=place))
    with pytest.raises(Refused, match=said):
        bring({**WEB, "disks": [{"path": str(place / "d.qcow2")}] if text else [], **given})
    assert connection.calls == []


def test_no_disk_rests_on_what_another_guest_writes_to(connection: FakeConnection, place: Path) -> None:
    shared, over = place / "workloads/shared.qcow2", place / "over.qcow2"
    web = {**WEB, "state": "stopped"}
    bring(web)
    db = {**WEB, "name": "db", "disks": [{"path": str(over)}]}
    for below in ("vda", "vda-1"):
        fake_domains.qcow2(over, 2**20, f"{place}/workloads/web/disks/{below}.qcow2", "qcow2")
        for check_mode in (True, False):
            with pytest.raises(Refused, match=f"rests on .*/{below}.qcow2, to which guest 'web' writes") as refused:
                bring(db, check_mode=check_mode)
            assert "flatten: true" in refused.value.hint
        # A file that is frozen as part of a snapshot is written to when that is merged.
        snap(f"above {below}".replace(" ", "-"))
    # One that comes in the same call.
    fake_domains.qcow2(shared, 2**20)
    fake_domains.qcow2(over, 2**20, str(shared), "qcow2")
    with pytest.raises(Refused, match="to which guest 'new' writes"):
        bring({**web, "name": "new", "disks": [{"path": str(shared)}]}, db)
    # On what nobody writes to many rest.
    other = place / "other.qcow2"
    fake_domains.qcow2(other, 2**20, str(shared), "qcow2")
    bring(db, {**db, "name": "new", "disks": [{"path": str(other)}]})
    assert not bring(db)["changed"]


def test_what_goes_with_another_guest_is_refused(connection: FakeConnection, place: Path) -> None:
    fixed, made, link = (place / f"{name}.qcow2" for name in ("fixed", "made", "link"))
    fake_domains.qcow2(fixed, 2**20)
    link.symlink_to(place / "workloads/old/disks/vdb.qcow2")
    disks: list[dict[str, t.Any]] = [{"path": str(fixed)}, {"size_mib": 1}, {"path": str(made), "size_mib": 1}]
    bring({**WEB, "name": "old", "state": "stopped", "disks": disks})
    leaves = {"name": "old", "state": "absent"}
    for path, more in ((link.readlink(), {}), (link, {}), (made, {"delete_disks": True})):
        with pytest.raises(Refused, match="and goes with it"):
            bring({**leaves, **more}, {**WEB, "disks": [{"path": str(path)}]})
    # The one is kept where it is, the other was there before.
    bring(leaves, {**WEB, "disks": [{"path": str(made)}]}, check_mode=True)
    bring({**leaves, "delete_disks": True}, {**WEB, "disks": [{"path": str(fixed)}]})
    assert sorted(connection.domains) == ["web"]
    assert (fixed.exists(), made.exists()) == (True, False)


@pytest.mark.parametrize("gets", ["disk", "mac"])
@pytest.mark.parametrize("new", [True, False])
def test_what_another_guest_has_is_not_given_away_before_that_has_ended(
    connection: FakeConnection, place: Path, gets: str, new: bool
) -> None:
    fixed, mac = place / "fixed.qcow2", "52:54:00:00:00:77"
    fake_domains.qcow2(fixed, 2**20)
    bring({**WEB, "name": "old", "disks": [{"path": str(fixed)}], "networks": [{"mac": mac}]})
    connection.domains["old"].obeys = False
    leaves = {"name": "old", "state": "absent", "stop_timeout_s": 0}
    wanted = {**WEB, **({"disks": [{"path": str(fixed)}]} if gets == "disk" else {"networks": [{"mac": mac}]})}
    there = ["db", "old"] if new else ["db", "old", "web"]
    if not new:
        # One that was stopped for that runs on.
        bring({**WEB, "disks": [], "machine": "pc"})
    with pytest.raises(HostError, match="'old' did not stop") as caught:
        bring(wanted, leaves, {**WEB, "name": "db"}, restart_on_change=True)
    assert caught.value.details["guests"] == ["old", "web"]
    assert (sorted(connection.domains), sorted(os.listdir(place / "workloads"))) == (there, there)
    assert all(each.live is not None for each in connection.domains.values())
    bring(wanted, {**leaves, "force_stop": True}, restart_on_change=True)
    assert sorted(connection.domains) == ["db", "web"]
    assert not bring(wanted, leaves)["changed"]


def test_another_network_is_not_there(connection: FakeConnection) -> None:
    with pytest.raises(InputError, match="no network 'lan'"):
        bring({**WEB, "networks": [{"source": "lan"}]})
    with pytest.raises(InputError, match="no bridge 'br9'"):
        bring({**WEB, "networks": [{"type": "bridge", "source": "br9"}]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"machine": "pc-q35-99.0"}, "web: machine: .*pc-q35-99.0"),
        ({"cpu": {"model": "max"}}, "web: cpu: model: .*'max'"),
        ({"cpu": {"features": {"nonsense": "require"}}}, "web: cpu: .*nonsense"),
    ],
)
def test_what_libvirt_would_say_at_the_start_is_said_before_anything(
    connection: FakeConnection, given: dict[str, t.Any], said: str
) -> None:
    for _time in ("new", "there"):
        connection.calls.clear()
        with pytest.raises(InputError, match=said):
            bring({**WEB, **given}, restart_on_change=True)
        assert connection.calls == []
        bring(WEB)
    assert bring({**WEB, "cpu": {"features": {"unheard": "require"}}})["changed"], "where libvirt cannot tell"


def test_a_change_that_libvirt_refuses_leaves_no_disk(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    connection.fails["web"] = FakeError(errors.OPERATION_FAILED, "no firmware")
    more = {**WEB, "state": "stopped", "firmware": "uefi", "disks": [{"size_mib": 1}, {"size_mib": 1}]}
    with pytest.raises(HostError):
        bring(more)
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]
    del connection.fails["web"]
    assert "create disk vdb" in one(more)["actions"]
