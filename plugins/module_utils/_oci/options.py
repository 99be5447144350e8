# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The options of the modules container and container_info, for the modules and their action plugins alike.

What is 'raw' is decoded by us: Ansible would take true, 1_000 and 1e3 for numbers, and 7 for the name 007.
"""

from __future__ import annotations

import typing as t

from .._migrate.options import PEERS

Spec = dict[str, dict[str, t.Any]]

_CONTAINER: Spec = {
    "name": {"type": "raw", "required": True},
    "state": {"type": "str", "choices": ["present", "running", "stopped", "absent"], "default": "running"},
    "image": {"type": "str"},
    "runtime": {"type": "str", "choices": ["runc", "crun"], "default": "runc"},
    "address": {"type": "str"},
    "ports": {"type": "list", "elements": "raw"},
    "memory_mib": {"type": "raw"},
    "cpus": {"type": "raw"},
    "pids_limit": {"type": "raw"},
    "env": {"type": "dict"},
    "mounts": {
        "type": "list",
        "elements": "dict",
        "options": {
            "type": {"type": "str", "choices": ["bind", "tmpfs"], "default": "bind"},
            "source": {"type": "str"},
            "destination": {"type": "str", "required": True},
            "read_only": {"type": "bool", "default": False},
            "size_mib": {"type": "raw"},
        },
    },
    "command": {"type": "list", "elements": "str"},
    "user": {"type": "str"},
    "cwd": {"type": "str"},
    "hostname": {"type": "str"},
    "dns": {"type": "list", "elements": "str"},
    "capabilities_add": {"type": "list", "elements": "str"},
    "capabilities_drop": {"type": "list", "elements": "str"},
    "no_new_privileges": {"type": "bool", "default": True},
    "seccomp": {"type": "str", "choices": ["default", "unconfined"], "default": "default"},
    "restart": {"type": "str", "choices": ["always", "on_failure", "never"], "default": "always"},
    "stop_timeout_s": {"type": "raw", "default": 10},
    "stop_signal": {"type": "str", "default": "TERM"},
    "authorized_keys": {"type": "list", "elements": "str", "no_log": False},
    "login_user": {"type": "str"},
    "labels": {"type": "dict"},
    "wait_for": {
        "type": "dict",
        "options": {
            "port": {"type": "raw", "required": True},
            "timeout_s": {"type": "raw", "default": 60},
        },
    },
}
CONTAINER: Spec = {
    "containers": {"type": "list", "elements": "raw", "required": True, "options": _CONTAINER},
    "restart_on_change": {"type": "bool", "default": True},
    "image_change": {"type": "bool", "default": False},
    **PEERS,
}
INFO: Spec = {"names": {"type": "list", "elements": "str"}}
