# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a guest was before it was stopped for a change: where that run is cut off, the next one starts it again.

Not once somebody else has started it, and shut it down again: QEMU's log tells that.
"""

from __future__ import annotations

import os

from .._core import paths
from . import files, movedir


def note(name: str, state: str) -> None:
    """Write down what it is, before it is stopped to be started again."""
    known = {"state": state, "boot_id": movedir.boot_id(), "started": _last_start(name)}
    files.write_json(paths.guest_restart_file(name), known)


def was(name: str) -> str:
    """What a guest that is off was when it was stopped for a change, and is to be again; '' for any other one."""
    known = files.read_json(paths.guest_restart_file(name))
    # After a boot those are up that start with the host, as after any other end of it.
    if known is None or known["boot_id"] != movedir.boot_id() or known["started"] != _last_start(name):
        return ""
    return str(known["state"])


def is_noted(name: str) -> bool:
    """Whether there is anything to forget."""
    return os.path.lexists(paths.guest_restart_file(name))


def forget(name: str) -> None:
    """It is what it is to be."""
    files.remove_file(paths.guest_restart_file(name), durable=True)


def _last_start(name: str) -> str:
    """When it was started the last time, as libvirt has put it; '' where nobody knows."""
    lines = files.text_of(paths.qemu_log(name)).splitlines()
    return next((line.partition(": ")[0] for line in reversed(lines) if ": starting up libvirt version" in line), "")
