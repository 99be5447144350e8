# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors


@pytest.mark.parametrize(
    ("code", "message", "word"),
    [
        (
            errors.SYSTEM_ERROR,
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
            "systemctl start libvirtd",
        ),
        (
            errors.SYSTEM_ERROR,
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
            "group libvirt",
        ),
        (errors.SYSTEM_ERROR, "Could not open '/srv/web.qcow2': Permission denied", "directory above it"),
        (errors.SYSTEM_ERROR, "Could not open '/srv/web.qcow2': Permission denied", "AppArmor or SELinux"),
        (errors.RPC, "internal error: client socket is closed", "journalctl"),
        (errors.AUTH_UNAVAILABLE, "no polkit agent available to authenticate action 'org.libvirt.unix.manage'", "root"),
        (1, "internal error: missing backend for pool type 3 (logical)", "libvirt-daemon-driver-storage-"),
        (
            errors.OPERATION_FAILED,
            "internal error: Network is already in use by interface eth0",
            "choose another one",
        ),
        (
            errors.SYSTEM_ERROR,
            "Cannot check dnsmasq binary /usr/sbin/dnsmasq: Cannot find 'dnsmasq' in path: No such file or directory",
            "dnsmasq-base",
        ),
    ],
)
def test_hint_says_what_to_do(code: int, message: str, word: str) -> None:
    assert word in errors.hint_for(code, message)


def test_no_hint_is_better_than_a_wrong_one() -> None:
    assert errors.hint_for(errors.NO_NETWORK, "Network not found: no network with matching name 'x'") == ""
