# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's error codes as people should read them: what a code is called and what can be done about it."""

from __future__ import annotations

# Of virErrorNumber (libvirt's include/libvirt/virterror.h); these numbers never change.
INTERNAL_ERROR = 1
NO_SUPPORT = 3
NO_CONNECT = 5
INVALID_ARG = 8
OPERATION_FAILED = 9
XML_ERROR = 27
DOM_EXIST = 28
NETWORK_EXIST = 37
SYSTEM_ERROR = 38
RPC = 39
NO_DOMAIN = 42
NO_NETWORK = 43
AUTH_FAILED = 45
NO_STORAGE_POOL = 49
NO_STORAGE_VOL = 50
OPERATION_INVALID = 55
CONFIG_UNSUPPORTED = 67
OPERATION_TIMEOUT = 68
HOOK_SCRIPT_FAILED = 70
NO_DOMAIN_SNAPSHOT = 72
AUTH_CANCELLED = 79
NO_DOMAIN_METADATA = 80
MIGRATE_UNSAFE = 81
OPERATION_UNSUPPORTED = 84
AGENT_UNRESPONSIVE = 86
RESOURCE_BUSY = 87
ACCESS_DENIED = 88
AUTH_UNAVAILABLE = 94

START = "Start it: 'systemctl start libvirtd' (or virtqemud and virtnetworkd where libvirt has a daemon for each)."
_ROOT = "Run it as root, or let the user into the group libvirt."
_DNSMASQ = "Install dnsmasq (dnsmasq-base on Debian): the role cnvm.platform.host_bootstrap does it."
_DENIED = (
    "QEMU's user must be able to read it and to pass every directory above it, and AppArmor or SELinux (its label) "
    "must let it; 'journalctl -k | grep -e DENIED -e avc' shows what they have denied."
)
_HINTS = {
    NO_CONNECT: START,
    RPC: f"libvirt's daemon ended while it was talked to; see 'journalctl -u libvirtd'. {START}",
    AUTH_FAILED: _ROOT,
    AUTH_CANCELLED: _ROOT,
    AUTH_UNAVAILABLE: _ROOT,
    ACCESS_DENIED: _ROOT,
    OPERATION_TIMEOUT: "Another operation on the same object goes on; wait for it, and try again.",
    RESOURCE_BUSY: "Something else uses it; see 'journalctl -u libvirtd'.",
    CONFIG_UNSUPPORTED: "This version of libvirt or QEMU cannot do it; cnvm.platform.host_info says which one it is.",
}
# What the daemon says when it is not there is a system error like any other.
_TEXTS = (
    ("Failed to connect socket", START),
    ("Cannot recv data", START),
    ("End of file while reading data", START),
    ("authentication unavailable", _ROOT),
    ("polkit", _ROOT),
    ("No space left on device", "Make room there."),
    ("Permission denied", _DENIED),
    ("is already in use by interface", "The subnet is in use on this host; choose another one."),
    ("Address already in use", "Another program has that port; 'ss -lntup' shows which one."),
    ("missing backend for pool type", "Install that part of libvirt (libvirt-daemon-driver-storage-…) and restart it."),
    ("Could not find 'dnsmasq'", _DNSMASQ),
    ("Cannot find 'dnsmasq'", _DNSMASQ),
)


def hint_for(code: int, message: str) -> str:
    """What the reader can do about it; empty where nothing better is known than the message itself."""
    if "connect socket" in message and "Permission denied" in message:
        return _ROOT
    for part, hint in _TEXTS:
        if part in message:
            return hint
    return _HINTS.get(code, "")
