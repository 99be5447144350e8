# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe of KVM does not hang and does not believe in a device file."""

from __future__ import annotations

import time
from pathlib import Path

from ansible_collections.cnvm.platform.plugins.module_utils._host import kvm


def test_no_device(tmp_path: Path) -> None:
    found = kvm.probe(str(tmp_path / "kvm"))
    assert (found["device"], found["usable"]) == (False, False)


def test_a_file_that_is_no_kvm(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")
    found = kvm.probe(str(tmp_path / "kvm"))
    assert (found["device"], found["usable"]) == (True, False)
    assert "ENOTTY" in found["reason"]


def test_a_guest_that_runs(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")
    assert kvm.probe(str(tmp_path / "kvm"), attempt=lambda device: "") == {"device": True, "usable": True, "reason": ""}


def test_a_guest_that_hangs_is_killed(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")

    def hang(device: str) -> str:
        time.sleep(60)
        return ""

    found = kvm.probe(str(tmp_path / "kvm"), timeout_s=0.2, attempt=hang)
    assert found["usable"] is False
    assert "hung" in found["reason"]


def test_an_attempt_that_crashes(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")

    def crash(device: str) -> str:
        raise RuntimeError(device)

    assert kvm.probe(str(tmp_path / "kvm"), attempt=crash)["usable"] is False
