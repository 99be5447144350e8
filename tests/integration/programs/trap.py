# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: waits for a process or a file, sends a signal at once, and says to whom.

Arguments: a JSON object with ``program`` (its comm), ``word`` (of its command line), ``file`` (a glob; instead of a
process), ``text`` (in that file), ``signal``, ``victim`` (a word of the command line of who gets it; else the process).
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import select
import sys
import time
import typing as t

ASKED = json.loads(sys.argv[1])


# When each process was first seen.
born: dict[int, float] = {}


def everybody() -> set[int]:
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - {os.getpid(), os.getppid()}


def young() -> list[int]:
    """What is waited for begins meanwhile; only at first is it the program that has started it. To read what all
    processes are again and again would take a processor of its own."""
    now, there = time.monotonic(), everybody()
    for pid in born.keys() - there:
        del born[pid]
    return [pid for pid in there if now - born.setdefault(pid, now) < 2]


def processes(pids: t.Iterable[int]) -> t.Iterator[tuple[int, str, str]]:
    for pid in pids:
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                comm = file.read().strip()
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                yield pid, comm, file.read().replace("\0", " ")
        except OSError:
            continue


def found() -> list[int]:
    if "file" in ASKED:
        for path in glob.glob(ASKED["file"]):
            try:
                with open(path, encoding="utf-8") as file:
                    if ASKED.get("text", "") in file.read():
                        return [0]
            except OSError:
                continue
        return []
    return [pid for pid, comm, line in processes(young()) if comm == ASKED["program"] and ASKED.get("word", "") in line]


def victims() -> list[int]:
    """Who gets the signal besides what is waited for."""
    return [pid for pid, _comm, line in processes(everybody()) if ASKED["victim"] in line] if "victim" in ASKED else []


libc = ctypes.CDLL(None)
CREATE, MOVED_TO, CLOSE_WRITE = 0x100, 0x80, 0x8


def watch(fd: int) -> bool:
    """Have ``fd`` tell when a file there is written or replaced (inotify(7)), also in directories that have come since;
    whether there are any."""
    where, mask = os.path.dirname(ASKED["file"]), CREATE | MOVED_TO | CLOSE_WRITE
    places = (where.partition("/*")[0], *glob.glob(where))
    return sum(libc.inotify_add_watch(fd, place.encode(), mask) >= 0 for place in places) > 0


# What is watched goes on for some ms only after what is waited for: this program must not wait for a processor then.
with contextlib.suppress(OSError):
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print("ready", flush=True)
changes = [libc.inotify_init1(os.O_NONBLOCK)] if "file" in ASKED else []
end = time.monotonic() + 90
looked = 0.0
known: list[int] = []
while True:
    told = bool(changes) and watch(changes[0])
    if (pids := found()) or time.monotonic() > end:
        break
    gone = not known or not all(os.path.exists(f"/proc/{pid}") for pid in known)
    if gone and time.monotonic() - looked > 0.1:
        known, looked = victims(), time.monotonic()
    for fd in select.select(changes, (), (), 0.05 if told else 0.001)[0]:
        os.read(fd, 4096)
if pids and "victim" in ASKED:
    # One that was seen may be another program by now: what had just been forked was not yet what it was to be.
    still = [pid for pid, _comm, line in processes(known) if ASKED["victim"] in line]
    pids = (still if "file" in ASKED else []) or victims()
if pids and "signal" in ASKED:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, ASKED["signal"])
print(json.dumps(pids), flush=True)
