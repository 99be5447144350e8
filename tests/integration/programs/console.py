# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on each host: prints, with the clock, each number that a guest counts to on its console there."""

from __future__ import annotations

import re
import sys
import time

PATH = f"/var/log/cnvm/guests/{sys.argv[1]}.log"
place, rest = -1, b""
while True:
    try:
        with open(PATH, "rb") as file:
            size = file.seek(0, 2)
            if place < 0 or size < place:
                # What was counted before is no sign of life.
                place, rest = (size if place < 0 else 0), b""
            file.seek(place)
            rest += file.read()
            place = file.tell()
    except OSError:
        place, rest = 0, b""
    *lines, rest = rest.split(b"\n")
    for line in lines:
        found = re.match(rb"tick (\d+)\s*$", line)
        if found:
            print(f"{time.time():.3f} {int(found[1])}", flush=True)
    time.sleep(0.03)
