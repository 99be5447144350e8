# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: waits for a process or a file, sends a signal at once, and says to whom.

Arguments: a JSON object with ``program`` (its comm), ``word`` (of its command line), ``file`` (a glob; instead of a
process), ``text`` (in that file), ``signal``, ``victim`` (a word of the command line of who gets it; else the process).
"""

from __future__ import annotations

import glob
import json
import os
import sys
import time
import typing as t

ASKED = json.loads(sys.argv[1])


def processes() -> t.Iterator[tuple[int, str, str]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in (os.getpid(), os.getppid()):
            try:
                with open(f"/proc/{entry}/comm", encoding="utf-8") as file:
                    comm = file.read().strip()
                with open(f"/proc/{entry}/cmdline", encoding="utf-8") as file:
                    yield int(entry), comm, file.read().replace("\0", " ")
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
    return [pid for pid, comm, line in processes() if comm == ASKED["program"] and ASKED.get("word", "") in line]


print("ready", flush=True)
end = time.monotonic() + 90
pids = found()
while not pids and time.monotonic() < end:
    time.sleep(0.001)
    pids = found()
if pids and "victim" in ASKED:
    pids = [pid for pid, dummy, line in processes() if ASKED["victim"] in line]
if pids and "signal" in ASKED:
    for pid in pids:
        try:
            os.kill(pid, ASKED["signal"])
        except ProcessLookupError:
            pass
print(json.dumps(pids), flush=True)
