# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that was taken over says what it likes. Nothing that it announces or brings may reach the files of another."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import admission, xml

DISK = "/var/lib/cnvm/workloads/web/disks/vda.qcow2"
TEMPLATES = "/var/lib/cnvm/templates/sha256"
BASE = f"{TEMPLATES}/{'a' * 64}/disk.qcow2"
NVRAM = "/var/lib/libvirt/qemu/nvram/web_VARS.fd"
LOG = "/var/log/cnvm/guests/web.log"
# Of a device of the host.
ADDRESS = "<address type='pci' domain='0' bus='1' slot='0' function='0'/>"


def disk(
    path: str = DISK, below: str = BASE, template: str = "a" * 64, shared: bool = False, pool: str = "",
    kind: str = "qcow2",
) -> dict[str, t.Any]:  # fmt: skip
    return {
        "name": "vda", "path": path, "format": kind, "below": below, "template": template, "shared": shared,
        "pool": pool,
    }  # fmt: skip


NEEDS: dict[str, t.Any] = {
    "uuid": "0705aea1-1ea0-540a-967e-c710e0d8de07", "log": LOG, "firmware": {}, "next_start": {},
    "disks": [disk(), disk("/mnt/nfs/x.qcow2", shared=True)], "fixed": [disk("/srv/data.raw", "", "", kind="raw")],
    "files": {"/boot/vmlinuz": {"size": 1, "sha256": "x"}, "/srv/data.raw": {}},
    "brought": ["/var/lib/cnvm/workloads/web/seed.iso", NVRAM],
}  # fmt: skip


def refused(**changed: t.Any) -> list[str]:
    return admission.refusals("web", "host2", {**NEEDS, **changed}, {"srv": "/srv/pool"})


def test_a_guests_own_is_taken() -> None:
    assert refused() == []
    assert refused(disks=[disk("/srv/pool/x.raw", "", ""), disk("/var/lib/libvirt/images/x.raw", "", "")]) == []
    assert refused(disks=[disk("/mnt/nfs/x.raw", "", "", shared=True)]) == []
    assert refused(brought=[], files={}, log="") == []
    assert refused(disks=[disk("/srv/pool/web-vda.qcow2", pool="srv")]) == []


def test_a_disk_that_it_only_reads_is_brought_when_it_is_its_own() -> None:
    own = "/var/lib/cnvm/workloads/web/disks/vdb.qcow2"
    assert refused(fixed=[disk(own)], brought=[own]) == []
    assert refused(fixed=[disk("/srv/iso/data.raw", "", "")], files={"/srv/iso/data.raw": {}}) == []
    (found,) = refused(fixed=[], brought=[own])
    assert f"takes no {own}" in found
    (found,) = refused(fixed=[disk("/etc/cron.d/x", "", "")], brought=["/etc/cron.d/x"])
    assert "takes no /etc/cron.d/x" in found


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"brought": ["/etc/cron.d/x"]}, "takes no /etc/cron.d/x"),
        ({"brought": ["/var/lib/cnvm/workloads/other/seed.iso"]}, "takes no"),
        ({"disks": [disk("/etc/cron.d/x", "", "")]}, "takes no disk from another host into /etc/cron.d. Make it the"),
        ({"disks": [disk("/var/lib/cnvm/workloads/other/disks/vda.qcow2")]}, "takes no disk"),
        ({"disks": [disk("/var/lib/cnvm/workloads/web/disks/../../../../../../etc/cron.d/x")]}, "no plain path"),
        ({"disks": [disk("etc/cron.d/x")]}, "no plain path"),
        ({"disks": [disk(shared=True)]}, "/var/lib/cnvm must be each host's own"),
        ({"disks": [disk("/srv/pool/x.raw", pool="default")]}, "host2 has no pool default in /srv/pool"),
        ({"disks": [disk("/var/lib/libvirt/images/x.raw", pool="srv")]}, "no pool srv in /var/lib/libvirt/images"),
        ({"fixed": [disk(below="/etc/shadow")]}, "/etc/shadow is none"),
        ({"disks": [disk(below="/etc/shadow", template="")]}, "/etc/shadow is none"),
        ({"disks": [disk(below="/etc/shadow")]}, "/etc/shadow is none"),
        # Where is the template of this digest?
        (
            {
                "disks": [
                    disk(below=f"{TEMPLATES}/../../workloads/x/disks/disk.qcow2", template="../../workloads/x/disks")
                ]
            },
            "no digest of a template",
        ),
        ({"fixed": [disk(below="", template="../names")]}, "no digest of a template"),
        ({"files": {"boot/vmlinuz": {}}}, "no plain path"),
        ({"firmware": {"/usr/../etc/shadow": 1}}, "no plain path"),
        ({"next_start": {"firmware": {"/usr/../etc/shadow": 1}}}, "no plain path"),
        ({"log": "/etc/cron.d/x"}, "write to /etc/cron.d/x"),
    ],
)
def test_what_is_not_its_own_is_refused(changed: dict[str, t.Any], word: str) -> None:
    (found,) = refused(**changed)
    assert word in found


def guest(extra: str = "", top: str = "", system: str = "", name: str = "web") -> xml.Element:
    return xml.parse(f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>{name}</name><uuid>{NEEDS["uuid"]}</uuid><title>/etc/shadow</title><memory unit='MiB'>96</memory>
      <resource><partition>/machine</partition></resource>
      <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><kernel>/boot/vmlinuz</kernel>
        <cmdline>/a console=ttyS0</cmdline>{system}</os>{top}
      <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{DISK}'/>
        <backingStore type='file'><format type='qcow2'/><source file='{BASE}'/><backingStore/></backingStore>
        <target dev='vda' bus='virtio'/></disk>
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='cnvm0'/></interface>
        <serial type='pty'><source path='/dev/pts/3'/><log file='{LOG}' append='on'/></serial>
        <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/org.qemu.guest_agent.0'/>
        </channel><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>{extra}</devices></domain>""")


def test_what_is_brought_is_what_was_announced() -> None:
    assert admission.strangers("web", guest(), NEEDS) == []
    loader = "<loader type='pflash' readonly='yes'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    nvram = f"<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{NVRAM}</nvram>"
    assert admission.strangers("web", guest(system=loader + nvram), {**NEEDS, "brought": []}) == []
    assert admission.strangers("web", guest("<graphics type='vnc' passwd='/secret'/>"), NEEDS) == []
    reads = """<disk type='file'><driver type='raw'/><source file='/srv/data.raw'/><target dev='vdb'/><readonly/></disk>
      <disk type='file' device='cdrom'><source file='/boot/vmlinuz'/><target dev='sda'/></disk>"""
    assert admission.strangers("web", guest(reads), NEEDS) == []
    shared = "<disk type='file'><driver type='qcow2'/><source file='/mnt/nfs/x.qcow2'/>{}<target dev='vdb'/></disk>"
    assert admission.strangers("web", guest(shared.format("<backingStore/>")), NEEDS) == []
    # What came with this move was looked at.
    root = guest()
    for drive in root.findall("devices/disk"):
        for part in drive.findall("backingStore"):
            drive.remove(part)
    assert admission.strangers("web", root, NEEDS) == []


@pytest.mark.parametrize(
    "root",
    [
        guest(name="other"),
        # What it is given to read it does not write.
        guest("<serial type='pty'><log file='/boot/vmlinuz'/></serial>"),
        guest("<disk type='file'><source file='/boot/vmlinuz'/><target dev='vdb'/></disk>"),
        guest(f"<disk type='file'><source file='{BASE}'/><target dev='vdb'/></disk>"),
        guest("<disk type='file'><source file='/srv/data.raw'/><target dev='vdb'/></disk>"),
        guest(system="<nvram>/boot/vmlinuz</nvram>"),
        # libvirt would look into what its guest has written, or what another host has.
        guest(
            "<disk type='file'><driver type='qcow2'/><source file='/srv/data.raw'/><backingStore/>"
            "<target dev='vdb'/><readonly/></disk>"
        ),
        guest(
            "<disk type='file' device='cdrom'><driver type='qcow2'/><source file='/boot/vmlinuz'/><backingStore/>"
            "<target dev='sda'/></disk>"
        ),
        guest("<disk type='file'><driver type='qcow2'/><source file='/mnt/nfs/x.qcow2'/><target dev='vdb'/></disk>"),
        guest(
            "<disk type='file'><driver type='qcow2'/><source file='/mnt/nfs/x.qcow2'/><backingStore type='file'>"
            f"<format type='qcow2'/><source file='{BASE}'/></backingStore><target dev='vdb'/></disk>"
        ),
        # libvirt takes what is in each of them.
        guest(top="<devices><rng model='virtio'/></devices>"),
        guest("<hostdev mode='subsystem'/>"),
        guest("<filesystem><source dir='/'/><target dir='root'/></filesystem>"),
        guest("<serial type='pty'><log file='/etc/shadow'/></serial>"),
        guest("<channel type='file'><source path='/etc/cron.d/x'/></channel>"),
        guest("<channel type='file'><source path='etc/cron.d/x'/></channel>"),
        guest("<channel type='unix'><source path='/run/libvirt/qemu/channel/../../../docker.sock'/></channel>"),
        guest("<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sda'/></disk>"),
        guest("<disk type='file'><source file='/etc/shadow'/><target dev='vdb'/></disk>"),
        guest("<disk type='file'><source file='/usr/lib/x'/><target dev='vdb'/></disk>"),
        guest("<disk type='block'><source dev='/dev/sda'/><target dev='vdb'/></disk>"),
        guest("<disk type='volume'><source pool='default' volume='x'/><target dev='vdb'/></disk>"),
        guest(f"<disk type='volume'><source pool='p' volume='x' file='{DISK}'/><target dev='vdb'/></disk>"),
        guest(f"<disk type='network'><source protocol='rbd' name='x' file='{DISK}'/><target dev='vdb'/></disk>"),
        guest(f"<disk type='nvme'><source type='pci' managed='yes'>{ADDRESS}</source><target dev='vdb'/></disk>"),
        guest(f"<disk type='nvme'><source type='pci' file='{DISK}'>{ADDRESS}</source><target dev='vdb'/></disk>"),
        guest(
            f"<disk type='file'><driver type='qcow2'/><source file='{DISK}'/><backingStore type='nvme'>"
            f"<format type='raw'/><source type='pci'>{ADDRESS}</source></backingStore><target dev='vdb'/></disk>"
        ),
        guest("<interface type='hostdev'><mac address='52:54:00:00:00:02'/></interface>"),
        guest(
            "<interface type='hostdev'><mac address='52:54:00:00:00:02'/><source network='default'>"
            f"{ADDRESS}</source></interface>"
        ),
        guest("<interface type='ethernet'><source network='default'/><mac address='52:54:00:00:00:02'/></interface>"),
        guest("<interface type='ethernet'><mac address='52:54:00:00:00:02'/><script path='x'/></interface>"),
        guest(system="<nvram>/etc/passwd</nvram>"),
        guest(system="<loader>/usr/../etc/passwd</loader>"),
        guest(system="<loader>/srv/loader</loader>"),
        guest(top="<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>"),
        guest(top="<qemu:commandline><qemu:arg value='-drive'/></qemu:commandline>"),
    ],
)
def test_what_was_not_announced_is_not_let_in(root: xml.Element) -> None:
    assert admission.strangers("web", root, NEEDS)
