# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What libvirt says that a host can do for guests; and the report on whether a host is fit for them."""

from __future__ import annotations

import re
import typing as t

from . import xml

# A name such as EPYC-v2 is one of several states of EPYC; the plain name is what people write.
_VERSIONED = re.compile(r"-v[0-9]+\Z")


def parse_capabilities(text: str, architecture: str) -> dict[str, t.Any]:
    """From virConnectGetCapabilities: ``host_uuid``, ``cpu_model``, ``security``, ``machines`` (alias to the machine
    type that it stands for) and ``machine_types``, for guests of ``architecture``."""
    root = xml.parse(text, "libvirt's capabilities", "capabilities")
    machines: dict[str, str] = {}
    types = set()
    for machine in xml.all_at(root, f"guest/arch[@name='{architecture}']/machine"):
        name = xml.text_of(machine)
        types.add(machine.get("canonical") or name)
        if machine.get("canonical"):
            machines[name] = machine.get("canonical", "")
    security = [xml.text_of(each) for each in xml.all_at(root, "host/secmodel/model")]
    return {
        "host_uuid": xml.text_of(root, "host/uuid"),
        "cpu_model": xml.text_of(root, "host/cpu/model"),
        "security": sorted(name for name in security if name not in ("none", "dac")),
        "machines": dict(sorted(machines.items())),
        "machine_types": sorted(types),
    }


def parse_domain_capabilities(text: str) -> dict[str, t.Any]:
    """From virConnectGetDomainCapabilities, for one type of guest."""
    root = xml.parse(text, "libvirt's domain capabilities", "domainCapabilities")

    def values(path: str) -> list[str]:
        return sorted(xml.text_of(value) for value in xml.all_at(root, f"{path}/value"))

    models = [
        xml.text_of(model)
        for model in xml.all_at(root, "cpu/mode[@name='custom']/model")
        if model.get("usable") == "yes"
    ]
    devices = {
        kind: values(f"devices/{kind}[@supported='yes']/enum[@name='{enum}']")
        for kind, enum in (("disk", "bus"), ("graphics", "type"), ("filesystem", "driverType"))
    }
    return {
        "type": xml.text_of(root, "domain"),
        "machine": xml.text_of(root, "machine"),
        "max_vcpus": xml.number(xml.attribute(root, "vcpu", "max")),
        "firmware": values("os/enum[@name='firmware']"),
        "host_model": xml.text_of(root, "cpu/mode[@name='host-model']/model"),
        "usable_models": sorted(name for name in models if not _VERSIONED.search(name)),
        "disk_buses": devices["disk"],
        "graphics": devices["graphics"],
        "filesystems": devices["filesystem"],
    }


def _check(name: str, ok: bool, found: str, hint: str = "", *, needed: bool = False) -> dict[str, t.Any]:
    return {"check": name, "ok": ok, "needed": needed, "found": found, "hint": "" if ok else hint}


def report(virtualization: t.Mapping[str, t.Any], guests: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """What a host needs for guests, one check after the other: what was found, and what to do where it is not right.

    ``needed``: without it there are no guests at all; without the rest they are slow, or lack something.
    """
    kvm, device = virtualization["kvm"], guests["device"]
    programs = guests["programs"]
    network = guests["default_network"]
    checks = [
        _check(
            "processor",
            bool(virtualization["cpu_extension"]),
            virtualization["cpu_extension"] or "neither vmx nor svm",
            "Turn virtualization on in the firmware; in a virtual machine, let its host nest.",
        ),
        _check(
            "kernel modules",
            any(name.startswith("kvm_") for name in guests["modules"]),
            ", ".join(guests["modules"]) or "neither kvm_intel nor kvm_amd",
            "Load one: 'modprobe kvm_intel' or 'modprobe kvm_amd'; what is wrong is in 'dmesg'.",
        ),
        _device_check(device),
        _check(
            "KVM",
            kvm["usable"],
            "a guest ran" if kvm["usable"] else kvm["reason"],
            "Guests are emulated, about ten times slower.",
        ),
        _check(
            "libvirt",
            guests["reachable"],
            f"version {guests['libvirt']}" if guests["reachable"] else guests["reason"],
            "Run the role cnvm.platform.host_bootstrap with host_bootstrap_guests: true.",
            needed=True,
        ),
        _check(
            "QEMU",
            bool(guests["qemu"]),
            f"version {guests['qemu']}" if guests["qemu"] else "not installed",
            "Run the role cnvm.platform.host_bootstrap with host_bootstrap_guests: true.",
            needed=True,
        ),
        *(
            _check(
                name,
                bool(programs[name]),
                programs[name] or "not installed",
                f"Install it: {what}.",
                needed=name == "qemu-img",
            )
            for name, what in _PROGRAMS.items()
        ),
    ]
    if guests["reachable"]:
        uefi = "efi" in guests["firmware"]
        checks += [
            _check(
                "UEFI",
                uefi,
                "firmware is there" if uefi else "no firmware",
                "Install it (ovmf on Debian, edk2-ovmf on EL).",
            ),
            _check(
                "confinement",
                bool(guests["security"]),
                ", ".join(guests["security"]) or "neither AppArmor nor SELinux",
                "A guest that breaks out of QEMU has QEMU's user to itself. Boot with AppArmor or SELinux.",
            ),
            _check(
                "network default",
                network["state"] == "active" and network["autostart"] and network["type"] == "nat",
                _network_words(network),
                "Only for guests that name it. The module cnvm.platform.network makes networks.",
            ),
        ]
    return checks


_PROGRAMS = {
    "qemu-img": "disks cannot be made without it",
    "dnsmasq": "networks of libvirt give addresses with it",
    "virtiofsd": "shared folders need it",
    "xorriso": "guests get their first settings on a disc that it makes",
}


def _device_check(device: t.Optional[t.Mapping[str, str]]) -> dict[str, t.Any]:
    if device is None:
        return _check("/dev/kvm", False, "not there", "It comes with the kernel module.")
    open_enough = int(device["mode"], 8) & 0o660 == 0o660
    ok = open_enough and device["owner"] == "root" and device["group"] == "kvm"
    found = f"mode {device['mode']}, owner {device['owner']}:{device['group']}"
    return _check("/dev/kvm", ok, found, "It is to be 0660 or more open and root:kvm, or QEMU's user may not open it.")


def _network_words(network: t.Mapping[str, t.Any]) -> str:
    if network["state"] == "absent":
        return "not defined"
    start = "starts with the host" if network["autostart"] else "does not start with the host"
    return f"{network['state']}, {network['type']}, {network['subnet'] or 'no subnet'}, {start}"


def report_lines(checks: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """The report for people: one line for each check."""
    lines = []
    for check in checks:
        word = "ok" if check["ok"] else "MISSING" if check["needed"] else "no"
        lines.append(f"{check['check']}: {word} ({check['found']}) {check['hint']}".strip())
    return lines
