# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was done when."""

from __future__ import annotations

from ansible_collections.cnvm.platform.plugins.module_utils._migrate.timeline import Timeline


def test_phases_and_bytes() -> None:
    now = [100.0]
    time = Timeline(lambda: now[0])
    assert time.phase() == ""
    time.begin("freeze")
    now[0] += 0.5
    time.begin("dump")
    time.add_bytes("pages", 3)
    time.add_bytes("pages", 4)
    now[0] += 0.25
    time.end()
    now[0] += 1
    time.end()
    assert time.phase() == "dump"
    assert time.between_ms("freeze", "dump") == 750.0
    assert time.between_ms("freeze", "none") == 0.0
    assert time.as_result() == {
        "phases": [
            {"phase": "freeze", "start_ms": 0.0, "ms": 500.0},
            {"phase": "dump", "start_ms": 500.0, "ms": 250.0},
        ],
        "total_ms": 1750.0,
        "bytes": {"pages": 7},
    }


def test_the_running_phase_is_ended_by_the_result() -> None:
    now = [0.0]
    time = Timeline(lambda: now[0])
    time.begin("dump")
    now[0] = 2.0
    assert time.as_result()["phases"] == [{"phase": "dump", "start_ms": 0.0, "ms": 2000.0}]
