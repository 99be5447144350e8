# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clocks of two hosts may differ by hours, and be set back while a workload moves. Nothing that decides where one
runs asks what time it is: it counts generations, and how long it has waited itself. Read from the syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
# What asks all the same, and in how many lines: to tell it, or to compare it with what the same host has said.
ASK = {
    "inventory/workloads.py": 2,  # the age of its cache
    "module_utils/_host/checkpoint.py": 1,  # when it was made
    "module_utils/_host/container_report.py": 1,  # since when it runs
    # Files that may have changed since they were looked at. One that is younger than the clock counts as changed.
    "module_utils/_host/container_source.py": 2,
    "module_utils/_host/guest_snapshots.py": 1,  # when it was made
    "module_utils/_host/guest_watch.py": 1,  # leases that are over
    "module_utils/_host/info.py": 1,  # how far the host's clock is from the controller's, which is told
    "module_utils/_host/overlay.py": 3,  # when the kernel last heard of a peer
}
CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime", "strftime"}


def asks(source: str) -> set[int]:
    """The lines that ask for the time of day, or set a file's age against another's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            module = ast.unparse(node.value).rpartition(".")[2]
            here = module in ("time", "datetime", "date") and node.attr in CLOCKS
            found += [node.lineno] if here or node.attr == "CLOCK_REALTIME" else []
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            found.append(node.lineno)
        elif isinstance(node, ast.Compare) and any(
            "mtime" in ast.dump(each) for each in (node.left, *node.comparators)
        ):
            ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
            found += [node.lineno] if any(isinstance(each, ordered) for each in node.ops) else []
    return set(found)


def test_nothing_that_moves_asks_what_time_it_is() -> None:
    found = {str(path.relative_to(PLUGINS)): len(asks(path.read_text("utf-8"))) for path in PLUGINS.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == ASK


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("time.monotonic()", False),
        ("time.sleep(1)", False),
        ("time.time()", True),
        ("clock = time.time", True),
        ("from time import time", True),
        ("datetime.datetime.now()", True),
        ("datetime.now()", True),
        ("from datetime import datetime", True),
        ("time.clock_gettime(time.CLOCK_REALTIME)", True),
        ("one.st_mtime_ns == other.st_mtime_ns", False),
        ("one.st_mtime_ns < other.st_mtime_ns", True),
    ],
)
def test_what_counts_as_asking(source: str, found: bool) -> None:
    assert bool(asks(source)) is found
