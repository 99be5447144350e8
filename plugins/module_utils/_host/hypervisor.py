# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a host can do for guests, asked of the kernel, of the programs that are there, and of libvirt."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import typing as t

from .._core.errors import CnvmError
from .._libvirt import capabilities, network
from . import kvm, libvirt

# The last ones are where distributions put what is not for people.
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "qemu-img": ("qemu-img",),
    "dnsmasq": ("dnsmasq", "/usr/sbin/dnsmasq"),
    "virtiofsd": ("virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"),
    "xorriso": ("xorriso",),
}
_DAEMONS = ("libvirtd", "virtqemud", "/usr/sbin/libvirtd", "/usr/sbin/virtqemud")

# What is told of a host where libvirt is not there, or does not answer.
_SILENT: dict[str, t.Any] = {
    "reachable": False,
    "type": "",
    "host_uuid": "",
    "cpu_model": "",
    "security": [],
    "machines": {},
    "machine_types": [],
    "max_vcpus": 0,
    "firmware": [],
    "host_model": "",
    "usable_models": [],
    "disk_buses": [],
    "graphics": [],
    "filesystems": [],
    "default_network": {"state": "absent", "autostart": False, "subnet": ""},
}


def look(
    virtualization: t.Mapping[str, t.Any], architecture: str, *, libvirt_version: str = "", qemu_version: str = ""
) -> dict[str, t.Any]:
    """Everything about guests. ``virtualization``: what is known of processor and KVM.

    libvirt is asked only where its daemon is installed; where it has to be started for that, it is.
    """
    facts = {
        "libvirt": libvirt_version,
        "qemu": qemu_version,
        "device": _device(kvm.DEVICE),
        "modules": [name for name in ("kvm", "kvm_intel", "kvm_amd") if os.path.isdir(f"/sys/module/{name}")],
        "nested": _nested(),
        "programs": {name: _first(places) for name, places in _PROGRAMS.items()},
        "reason": "",
        **_SILENT,
    }
    if not _first(_DAEMONS):
        facts["reason"] = "libvirt is not installed."
    else:
        try:
            facts.update(_ask(architecture, "kvm" if virtualization["kvm"]["usable"] else "qemu"))
        except CnvmError as error:
            facts["reason"] = str(error)
    checks = capabilities.report(virtualization, facts)
    return {**facts, "report": checks, "report_lines": capabilities.report_lines(checks)}


def _ask(architecture: str, kind: str) -> dict[str, t.Any]:
    # Not read-only: that one may be started by people who may not start guests.
    with libvirt.connect() as connection:
        with libvirt.doing("tell what this host can do"):
            said = str(connection.getCapabilities())
            machine = "q35" if architecture == "x86_64" else None
            domain = str(connection.getDomainCapabilities(None, architecture, machine, kind, 0))
        found = libvirt.network(connection, "default")
        with libvirt.doing("read the network 'default'"):
            default = {"state": "absent", "autostart": False, "type": "", "subnet": ""}
            if found is not None:
                seen = network.parse(str(found.XMLDesc(0)))
                default = {
                    "state": "active" if found.isActive() else "inactive",
                    "autostart": bool(found.isPersistent() and found.autostart()),
                    **{key: seen[key] for key in ("type", "subnet")},
                }
    parsed = capabilities.parse_domain_capabilities(domain)
    parsed.pop("machine")
    return {
        **capabilities.parse_capabilities(said, architecture),
        **parsed,
        "reachable": True,
        "default_network": default,
    }


def _first(places: t.Iterable[str]) -> str:
    return next((found for found in map(shutil.which, places) if found), "")


def _device(path: str) -> t.Optional[dict[str, str]]:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return {
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": _name(pwd.getpwuid, found.st_uid),
        "group": _name(grp.getgrgid, found.st_gid),
    }


def _name(look_up: t.Callable[[int], t.Any], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _nested() -> t.Optional[bool]:
    """Whether guests may have guests of their own; None where KVM is not there to ask."""
    for module in ("kvm_intel", "kvm_amd"):
        try:
            with open(f"/sys/module/{module}/parameters/nested", encoding="ascii") as file:
                return file.read().strip() in ("Y", "1")
        except OSError:
            continue
    return None
