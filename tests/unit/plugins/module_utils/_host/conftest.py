# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt, limit

from .fake_clock import Clock


@pytest.fixture(autouse=True)
def no_connection_to_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left by another test."""
    monkeypatch.setattr(libvirt, "_mine", libvirt._Mine())


@pytest.fixture(autouse=True)
def disk_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is written down of disk images."""
    monkeypatch.setattr(paths, "DISK_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that limits of what is sent go by."""
    made = Clock()
    monkeypatch.setattr(limit, "time", made)
    return made
