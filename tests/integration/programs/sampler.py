# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on each host: prints each line of a container's /ticks that appears there, also of a copy that is soon gone."""

from __future__ import annotations

import os
import sys
import time

PATH = f"/var/lib/cnvm/workloads/{sys.argv[1]}/upper/ticks"
seen: dict[str, None] = {}
while True:
    try:
        with open(PATH, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode().rpartition("\n")[0].split("\n")[1:]
    except OSError:
        lines = []
    new = [line for line in lines if line not in seen]
    if new:
        print("\n".join(new), flush=True)
        seen = dict.fromkeys(lines)
    time.sleep(0.1)
