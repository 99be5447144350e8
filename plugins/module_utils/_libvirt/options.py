# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The options of the modules guest, guest_clone and guest_info, for the modules and their action plugins alike.

What is 'raw' is decoded by us: Ansible would take true, 1_000 and 1e3 for numbers, and 7 for the name 007. So is all of
an item of ``guests``. The options in it say what there is, and what of it is secret.
"""

from __future__ import annotations

import typing as t

from .._migrate.options import PEERS

Spec = dict[str, dict[str, t.Any]]

_DEVICES: Spec = {
    "disks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str"},
            "path": {"type": "str"},
            "pool": {"type": "raw"},
            "template": {"type": "raw"},
            "linked": {"type": "bool", "default": True},
            "size_mib": {"type": "raw"},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "bus": {"type": "str", "choices": ["virtio", "scsi", "sata"], "default": "virtio"},
            "cache": {
                "type": "str",
                "choices": ["none", "writeback", "writethrough", "directsync", "unsafe"],
                "default": "none",
            },
            "read_only": {"type": "bool", "default": False},
            "serial": {"type": "str"},
        },
    },
    "cdrom": {"type": "str"},
    "networks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "type": {"type": "str", "choices": ["network", "bridge", "overlay"], "default": "network"},
            "source": {"type": "raw"},
            "mac": {"type": "raw"},
            "model": {
                "type": "str",
                "choices": ["virtio", "e1000", "e1000e", "rtl8139", "igb"],
                "default": "virtio",
            },
            "address": {"type": "str"},
        },
    },
    "graphics": {
        "type": "dict",
        "options": {
            "type": {"type": "str", "choices": ["none", "vnc"], "default": "none"},
            "listen": {"type": "str"},
            "port": {"type": "raw"},
            "password": {"type": "str", "no_log": True},
        },
    },
    "serial": {"type": "str", "choices": ["console", "log", "none"]},
    "shared_folders": {
        "type": "list",
        "elements": "dict",
        "options": {
            "source": {"type": "str", "required": True},
            "tag": {"type": "str", "required": True},
            "driver": {"type": "str", "choices": ["virtiofs", "9p"], "default": "virtiofs"},
            "read_only": {"type": "bool", "default": False},
        },
    },
    "agent": {"type": "bool"},
}
_GUEST: Spec = {
    "name": {"type": "raw", "required": True},
    "state": {
        "type": "str",
        "choices": ["present", "running", "stopped", "paused", "absent"],
        "default": "running",
    },
    "uuid": {"type": "str"},
    "description": {"type": "str"},
    "tags": {"type": "dict"},
    "memory_mib": {"type": "raw"},
    "max_memory_mib": {"type": "raw"},
    "vcpus": {"type": "raw"},
    "max_vcpus": {"type": "raw"},
    "cpu": {
        "type": "dict",
        "options": {
            "model": {"type": "str", "default": "auto"},
            "features": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "policy": {
                        "type": "str",
                        "choices": ["require", "optional", "disable", "force", "forbid"],
                        "default": "require",
                    },
                },
            },
        },
    },
    "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"]},
    "machine": {"type": "str"},
    "firmware": {"type": "str", "choices": ["bios", "uefi"]},
    "secure_boot": {"type": "bool"},
    "kernel": {"type": "str"},
    "initrd": {"type": "str"},
    "cmdline": {"type": "str"},
    "boot": {"type": "list", "elements": "str", "choices": ["disk", "cdrom", "network"]},
    **_DEVICES,
    "cloud_init": {
        "type": "dict",
        "options": {
            "type": {"type": "str", "choices": ["nocloud", "configdrive"], "default": "nocloud"},
            "user_data": {"type": "raw", "no_log": True},
            "meta_data": {"type": "raw", "no_log": True},
            "network_config": {"type": "raw", "no_log": True},
            "vendor_data": {"type": "raw", "no_log": True},
            "check_user_data": {"type": "bool", "default": True},
            "policy": {"type": "str", "choices": ["new_instance", "keep"], "default": "new_instance"},
        },
    },
    "autostart": {"type": "bool"},
    "stop_timeout_s": {"type": "raw", "default": 90},
    "force_stop": {"type": "bool", "default": False},
    "delete_disks": {"type": "bool", "default": False},
    "wait_for": {
        "type": "dict",
        "options": {
            "address": {"type": "bool", "default": False},
            "ssh": {"type": "bool", "default": False},
            "cloud_init": {"type": "bool", "default": False},
            "port": {"type": "raw"},
            "timeout_s": {"type": "raw", "default": 300},
        },
    },
}
GUEST: Spec = {
    # Secret as a whole, too: the journal of the host would have all of it otherwise.
    "guests": {
        "type": "list",
        "elements": "raw",
        "required": True,
        "no_log": True,
        "options": _GUEST,
    },
    "adopt": {"type": "bool", "default": False},
    "restart_on_change": {"type": "bool", "default": False},
    **PEERS,
}
CLONE: Spec = {
    "template": {"type": "raw"},
    "pattern": {"type": "str"},
    "count": {"type": "raw"},
    "names": {"type": "list", "elements": "raw"},
    "numbers": {"type": "list", "elements": "raw"},
    "linked": {"type": "bool", "default": True},
    "disk": {
        "type": "dict",
        "options": {
            "name": {"type": "str"},
            "size_mib": {"type": "raw"},
            "pool": {"type": "raw"},
            "format": {"type": "str", "choices": ["qcow2", "raw"]},
            "bus": {"type": "str", "choices": ["virtio", "scsi", "sata"]},
            "cache": {"type": "str", "choices": ["none", "writeback", "writethrough", "directsync", "unsafe"]},
            "serial": {"type": "raw"},
        },
    },
    "state": {
        "type": "str",
        "choices": ["present", "running", "stopped", "paused", "absent"],
        "default": "running",
    },
    # User-data and passwords are in it: the journal of the host would have all of it otherwise.
    "guest": {"type": "dict", "default": {}, "no_log": True},
    "restart_on_change": {"type": "bool", "default": False},
    **PEERS,
}
INFO: Spec = {"names": {"type": "list", "elements": "str"}, "addresses": {"type": "bool", "default": True}}
