# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of its own for each test of guests, with a stand-in for libvirt (the scenario guests has the real one)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    guest_disks,
    guest_live,
    guest_power,
    kvm,
    libvirt,
    seeds,
)

from .. import fake_domains
from ..fake_domains import FakeConnection
from .bring import Steps


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of its own below a directory."""
    for name in ("WORKLOADS", "KEPT_DISKS", "LOGS", "RUN", "TEMPLATES", "NVRAM", "QEMU_LOGS"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(guest_disks, "_OURS", (str(tmp_path / "templates"), str(tmp_path / "workloads")))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    (tmp_path / "host.json").write_text(json.dumps({"host_id": "me", "name": "host1"}))
    (tmp_path / "workloads").mkdir()
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": False, "reason": "there is no /dev/kvm"})
    monkeypatch.setattr(os, "fchown", lambda *args: None)
    for module in (guest_live, guest_power):
        monkeypatch.setattr(module, "_POLL_S", 0.001)
    monkeypatch.setattr(guest_live, "_UNPLUG_S", 0.01)
    monkeypatch.setattr(guest_live, "_BALLOON_S", 0.01)
    monkeypatch.setattr(seeds, "PROGRAMS", (("xorriso", "-as", "mkisofs"),))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    made = FakeConnection()
    library = fake_domains.library()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(libvirt, "_code_names", dict)

    @contextlib.contextmanager
    def connect(uri: str = "", **kwargs: t.Any) -> t.Iterator[FakeConnection]:
        yield made

    monkeypatch.setattr(libvirt, "connect", connect)
    return made


@pytest.fixture
def steps(place: Path, connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> Steps:
    # No power is cut, and waiting for disks takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Steps(place, connection, monkeypatch)
