# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest needs of its target, and what a target finds of it."""

from __future__ import annotations

import os
import socket
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import domains, guest_preflight
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml


def guest(kernel: str, disk: str) -> xml.Element:
    return xml.parse(f"""<domain type='qemu'><name>web</name><uuid>0705aea1-1ea0-540a-967e-c710e0d8de07</uuid>
      <memory unit='MiB'>96</memory>
      <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><kernel>{kernel}</kernel></os>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
        <target dev='vda' bus='virtio'/><readonly/></disk>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
      <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='cnvm0'/></interface>
      </devices></domain>""")


def test_what_it_starts_with_the_next_time_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that it only reads comes along where it is its own; its address is that of one card of several."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    own = f"{paths.guest_disks_dir('web')}/vda.qcow2"
    os.makedirs(os.path.dirname(own))
    Path(own).write_bytes(b"x")
    definition: dict[str, t.Any] = {
        "disks": [{"name": "vda", "pool": ""}],
        "networks": [
            {"mac": "52:54:00:00:00:01", "address": ""}, {"mac": "52:54:00:00:00:02", "address": "10.100.101.9"},
        ],
        "address": "10.100.101.9",
    }  # fmt: skip
    known = domains.Known(
        None, "running", "", True, False, stored=guest("/boot/new", own), live=guest("/boot/old", own)
    )
    host = t.cast("t.Any", None)
    needs = guest_preflight.needs_of("web", known, definition, host, 10_000_000, False)
    assert sorted(needs["files"]) == ["/boot/new", "/boot/old"]
    assert (needs["disks"], needs["brought"]) == ([], [own])
    assert [one["path"] for one in needs["fixed"]] == [own]
    assert needs["address_mac"] == "52:54:00:00:00:02"


def test_a_screen_needs_its_address_and_a_port_of_its_own() -> None:
    """One that does not run shows nothing yet, but must be able to."""
    assert guest_preflight._screen({"graphics": {"type": "none"}}, live=True) == []
    chosen = {"graphics": {"type": "vnc", "listen": "192.0.2.1", "port": None}}
    assert guest_preflight._screen(chosen, live=True) == ["192.0.2.1", 0]
    own = {"graphics": {"type": "vnc", "listen": "", "port": 5901}}
    assert guest_preflight._screen(own, live=True) == ["127.0.0.1", 5901]
    assert guest_preflight._screen(own, live=False) == ["127.0.0.1", 0]


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"at 127.0.0.1 port {port}: Address already in use" in guest_preflight._lacks_screen("127.0.0.1", port)
    assert guest_preflight._lacks_screen("127.0.0.1", port) == ""
    assert "Cannot assign" in guest_preflight._lacks_screen("192.0.2.1", 5901)
