# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import capabilities

# Cut down from what libvirt 11.3 says of QEMU 10.0.
CAPABILITIES = """<capabilities>
  <host>
    <uuid>8d5e6f8a-6f0e-4b8e-9c69-2f9f0d6f3c11</uuid>
    <cpu>
      <arch>x86_64</arch>
      <model>EPYC-Rome</model>
      <vendor>AMD</vendor>
    </cpu>
    <secmodel><model>none</model><doi>0</doi></secmodel>
    <secmodel><model>apparmor</model><doi>0</doi></secmodel>
    <secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+994</baselabel></secmodel>
  </host>
  <guest>
    <os_type>hvm</os_type>
    <arch name='i686'>
      <wordsize>32</wordsize>
      <machine maxCpus='1'>isapc</machine>
      <domain type='qemu'/>
    </arch>
  </guest>
  <guest>
    <os_type>hvm</os_type>
    <arch name='x86_64'>
      <wordsize>64</wordsize>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <machine maxCpus='255'>pc-i440fx-10.0</machine>
      <machine canonical='pc-i440fx-10.0' maxCpus='255'>pc</machine>
      <machine maxCpus='4096'>pc-q35-10.0</machine>
      <machine canonical='pc-q35-10.0' maxCpus='4096'>q35</machine>
      <machine maxCpus='1024' deprecated='yes'>pc-q35-5.2</machine>
      <domain type='qemu'/>
      <domain type='kvm'/>
    </arch>
  </guest>
</capabilities>
"""

DOMAIN = """<domainCapabilities>
  <path>/usr/bin/qemu-system-x86_64</path>
  <domain>qemu</domain>
  <machine>pc-q35-10.0</machine>
  <arch>x86_64</arch>
  <vcpu max='4096'/>
  <os supported='yes'>
    <enum name='firmware'><value>efi</value></enum>
    <loader supported='yes'><enum name='type'><value>rom</value></enum></loader>
  </os>
  <cpu>
    <mode name='host-passthrough' supported='no'/>
    <mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor></mode>
    <mode name='custom' supported='yes'>
      <model usable='yes' vendor='unknown' canonical='qemu64-v1'>qemu64</model>
      <model usable='yes' vendor='unknown'>qemu64-v1</model>
      <model usable='no' vendor='Intel' canonical='Broadwell-v1'>Broadwell</model>
      <blockers model='Broadwell'><feature name='hle'/></blockers>
      <model usable='yes' vendor='Intel' canonical='Conroe-v1'>Conroe</model>
    </mode>
  </cpu>
  <devices>
    <disk supported='yes'>
      <enum name='diskDevice'><value>disk</value></enum>
      <enum name='bus'><value>virtio</value><value>sata</value></enum>
    </disk>
    <graphics supported='yes'><enum name='type'><value>vnc</value></enum></graphics>
    <filesystem supported='yes'><enum name='driverType'><value>path</value><value>virtiofs</value></enum></filesystem>
  </devices>
</domainCapabilities>
"""


def test_capabilities() -> None:
    assert capabilities.parse_capabilities(CAPABILITIES, "x86_64") == {
        "host_uuid": "8d5e6f8a-6f0e-4b8e-9c69-2f9f0d6f3c11",
        "cpu_model": "EPYC-Rome",
        "security": ["apparmor"],
        "machines": {"pc": "pc-i440fx-10.0", "q35": "pc-q35-10.0"},
        "machine_types": ["pc-i440fx-10.0", "pc-q35-10.0", "pc-q35-5.2"],
    }
    assert capabilities.parse_capabilities(CAPABILITIES, "aarch64")["machine_types"] == []


def test_domain_capabilities() -> None:
    assert capabilities.parse_domain_capabilities(DOMAIN) == {
        "type": "qemu",
        "machine": "pc-q35-10.0",
        "max_vcpus": 4096,
        "firmware": ["efi"],
        "host_model": "EPYC",
        "usable_models": ["Conroe", "qemu64"],
        "disk_buses": ["sata", "virtio"],
        "graphics": ["vnc"],
        "filesystems": ["path", "virtiofs"],
    }
    nothing = capabilities.parse_domain_capabilities("<domainCapabilities/>")
    assert (nothing["type"], nothing["usable_models"], nothing["max_vcpus"]) == ("", [], 0)


GOOD_CPU: dict[str, t.Any] = {"cpu_extension": "svm", "kvm": {"device": True, "usable": True, "reason": ""}}
GOOD: dict[str, t.Any] = {
    "libvirt": "11.3.0",
    "qemu": "10.0.2",
    "device": {"mode": "0660", "owner": "root", "group": "kvm"},
    "modules": ["kvm", "kvm_amd"],
    "programs": {"qemu-img": "/usr/bin/qemu-img", "dnsmasq": "/d", "virtiofsd": "/v", "xorriso": "/x"},
    "reachable": True,
    "reason": "",
    "firmware": ["bios", "efi"],
    "security": ["apparmor"],
    "default_network": {"state": "active", "autostart": True, "type": "nat", "subnet": "192.168.122.0/24"},
}


def test_report_of_a_host_that_has_everything() -> None:
    checks = capabilities.report(GOOD_CPU, GOOD)
    assert [check["check"] for check in checks if not check["ok"]] == []
    assert all(check["hint"] == "" for check in checks)
    assert {"processor", "kernel modules", "/dev/kvm", "KVM", "libvirt", "QEMU", "network default"} <= {
        check["check"] for check in checks
    }
    lines = capabilities.report_lines(checks)
    assert "/dev/kvm: ok (mode 0660, owner root:kvm)" in lines
    assert "network default: ok (active, nat, 192.168.122.0/24, starts with the host)" in lines


@pytest.mark.parametrize(
    ("path", "value", "name", "needed", "words"),
    [
        (("cpu_extension",), "", "processor", False, "neither vmx nor svm"),
        (("modules",), ["kvm"], "kernel modules", False, "modprobe"),
        (("device",), None, "/dev/kvm", False, "not there"),
        (("device", "mode"), "0600", "/dev/kvm", False, "mode 0600, owner root:kvm"),
        (("device", "group"), "root", "/dev/kvm", False, "owner root:root"),
        (("kvm",), {"usable": False, "reason": "a virtual CPU hung"}, "KVM", False, "a virtual CPU hung"),
        (("reachable",), False, "libvirt", True, "host_bootstrap_guests"),
        (("qemu",), "", "QEMU", True, "not installed"),
        (("programs", "qemu-img"), "", "qemu-img", True, "not installed"),
        (("programs", "virtiofsd"), "", "virtiofsd", False, "shared folders"),
        (("firmware",), ["bios"], "UEFI", False, "ovmf"),
        (("security",), [], "confinement", False, "neither AppArmor nor SELinux"),
        (("default_network", "state"), "absent", "network default", False, "not defined"),
        (("default_network", "type"), "isolated", "network default", False, "active, isolated"),
        (("default_network", "autostart"), False, "network default", False, "does not start with the host"),
    ],
)
def test_report_names_what_is_not_right(
    path: tuple[str, ...], value: t.Any, name: str, needed: bool, words: str
) -> None:
    cpu, guests = copy.deepcopy(GOOD_CPU), copy.deepcopy(GOOD)
    place: t.Any = cpu if path[0] in cpu else guests
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    checks = capabilities.report(cpu, guests)
    (wrong,) = [check for check in checks if not check["ok"]]
    assert (wrong["check"], wrong["needed"]) == (name, needed)
    assert wrong["hint"]
    (line,) = [line for line in capabilities.report_lines(checks) if line.startswith(f"{name}: ")]
    assert words in line
    assert f": {'MISSING' if needed else 'no'} (" in line


def test_mode_may_be_more_open() -> None:
    guests = {**GOOD, "device": {"mode": "0666", "owner": "root", "group": "kvm"}}
    assert all(check["ok"] for check in capabilities.report(GOOD_CPU, guests))
