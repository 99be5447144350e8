# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and writing the files of a cgroup, and of /proc."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import freezer


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a cgroup."""
    monkeypatch.setattr(freezer, "_ROOT", str(tmp_path))
    directory = tmp_path / "x"
    directory.mkdir()
    (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return directory


def test_events(group: Path) -> None:
    assert freezer.populated("/x")
    assert not freezer.is_frozen("/x")
    (group / "cgroup.events").write_text("populated 0\nfrozen 1\n")
    assert not freezer.populated("/x")
    assert freezer.is_frozen("/x")


def test_a_cgroup_that_is_not_there(group: Path) -> None:
    assert not freezer.populated("/none")
    assert freezer.processes("/none") == []
    assert freezer.kill("/none")
    freezer.thaw("/none")
    assert not freezer.all_run("/none")


def test_freeze_waits_until_all_stand_still(group: Path) -> None:
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    freezer.freeze("/x", 5)
    assert (group / "cgroup.freeze").read_text() == "1"


def test_freeze_that_does_not_succeed_is_undone(group: Path) -> None:
    start = time.monotonic()
    with pytest.raises(HostError, match=r"did not stand still within 0.05 s"):
        freezer.freeze("/x", 0.05)
    assert time.monotonic() - start < 5
    assert (group / "cgroup.freeze").read_text() == "0"


def test_kill_says_when_something_lives_on(group: Path) -> None:
    assert freezer.kill("/x", 0.05) is False
    assert (group / "cgroup.kill").read_text() == "1"
    (group / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert freezer.kill("/x", 0.05) is True


def test_processes_below_count(group: Path) -> None:
    (group / "payload").mkdir()
    (group / "payload/cgroup.procs").write_text("1\n2\n")
    assert sorted(freezer.processes("/x")) == sorted([os.getpid(), 1, 2])


def test_status_field() -> None:
    assert freezer.status_field(os.getpid(), "Pid") == str(os.getpid())
    assert freezer.status_field(os.getpid(), "No") == ""
    assert freezer.status_field(2**22 + 5, "Pid") == ""


def test_private_memory_is_what_each_process_has_for_itself(group: Path) -> None:
    before = freezer.private_bytes("/x")
    block = bytearray(os.urandom(64 << 20))
    with mmap.mmap(-1, 64 << 20) as shared:
        shared.write(block)
        assert 48 << 20 < freezer.private_bytes("/x") - before < 100 << 20


def test_swapped_memory_counts(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"RssAnon": "    8 kB", "RssShmem": "  100 kB", "VmSwap": "    3 kB"}
    monkeypatch.setattr(freezer, "status_field", lambda pid, field: fields.get(field, ""))
    assert freezer.private_bytes("/x") == 11 * 1024


def test_all_run(group: Path) -> None:
    assert freezer.all_run("/x")
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert not freezer.all_run("/x")


@pytest.mark.parametrize(("traced", "letter"), [(False, "T"), (True, "t")], ids=["stopped", "traced"])
def test_what_a_workload_has_stopped_itself_runs_but_not_what_is_traced(group: Path, traced: bool, letter: str) -> None:
    libc = ctypes.CDLL(None)
    child = os.fork()
    if child == 0:
        if traced:
            libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        (group / "cgroup.procs").write_text(f"{child}\n")
        assert freezer.status_field(child, "State")[:1] == letter
        assert freezer.all_run("/x") is not traced
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
