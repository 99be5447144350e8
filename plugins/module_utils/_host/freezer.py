# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Freezing, counting and killing the processes of a cgroup (version 2)."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._core.errors import HostError

_ROOT = "/sys/fs/cgroup"


def _events(cgroup: str) -> dict[str, str]:
    try:
        with open(f"{_ROOT}{cgroup}/cgroup.events", encoding="ascii") as file:
            return dict(t.cast("tuple[str, str]", tuple(line.split())) for line in file)
    except FileNotFoundError:
        return {}


def populated(cgroup: str) -> bool:
    """Whether a process lives in the cgroup or below it."""
    return _events(cgroup).get("populated") == "1"


def is_frozen(cgroup: str) -> bool:
    """Whether everything in it stands still."""
    return _events(cgroup).get("frozen") == "1"


def _wait(condition: t.Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def freeze(cgroup: str, timeout_s: float = 5.0) -> None:
    """Freeze and wait until all stand still. HostError after ``timeout_s``; it is thawed again then."""
    write(cgroup, "cgroup.freeze", "1")
    if not _wait(lambda: is_frozen(cgroup), timeout_s):
        write(cgroup, "cgroup.freeze", "0")
        raise HostError(
            f"The processes in the cgroup {cgroup} did not stand still within {timeout_s:g} s.",
            hint="A process hangs in the kernel (often a dead network file system).",
        )


def thaw(cgroup: str) -> None:
    """Let it go on; nothing to do where it has gone."""
    if os.path.isdir(f"{_ROOT}{cgroup}"):
        write(cgroup, "cgroup.freeze", "0")


def kill(cgroup: str, timeout_s: float = 10.0) -> bool:
    """Kill all in it, frozen or not, and wait; whether it is empty for sure."""
    if not os.path.isdir(f"{_ROOT}{cgroup}"):
        return True
    write(cgroup, "cgroup.kill", "1")
    return _wait(lambda: not populated(cgroup), timeout_s)


def write(cgroup: str, file: str, value: str) -> None:
    """Write one file of the cgroup."""
    with open(f"{_ROOT}{cgroup}/{file}", "w", encoding="ascii") as out:
        out.write(value)


def processes(cgroup: str) -> list[int]:
    """The processes in the cgroup and below it."""
    found: list[int] = []
    for directory, _names, _files in os.walk(f"{_ROOT}{cgroup}"):
        try:
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                found += [int(line) for line in file]
        except OSError:
            continue
    return found


def status_field(pid: int, field: str) -> str:
    """One field of /proc/PID/status, '' where the process has gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _colon, value = line.partition(":")
                if name == field:
                    return value.strip()
    except OSError:
        pass
    return ""


def private_bytes(cgroup: str) -> int:
    """The memory that processes have for themselves, in swap too. A dump writes it for each of them."""
    total = 0
    for pid in processes(cgroup):
        for field in ("RssAnon", "VmSwap"):
            words = status_field(pid, field).split()
            total += int(words[0]) * 1024 if words else 0
    return total


def hurry(on: bool = True) -> None:
    """Come before other programs of this host, with all that is started from now on, or no longer.

    For the time in which a container stands still: it is often moved because its host has too much to do.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10 if on else 0)


def all_run(cgroup: str) -> bool:
    """Whether there are processes and none of them is frozen, or held by a tracer (CRIU, until it lets them run).

    One that the workload itself has stopped (Ctrl-Z in a shell, SIGSTOP) was so before, and CRIU restores it so.
    """
    pids = processes(cgroup)
    return bool(pids) and not is_frozen(cgroup) and not any(status_field(pid, "State")[:1] == "t" for pid in pids)
