# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: prints the status of a move as soon as it is in one of the phases that are named, or done.

Arguments: the file with the status, seconds to wait at most, phases.
"""

from __future__ import annotations

import json
import sys
import time

path, seconds, *phases = sys.argv[1:]
end = time.monotonic() + float(seconds)
while True:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if json.loads(text)["phase"] in (*phases, "done") or time.monotonic() > end:
        break
    time.sleep(0.005)
print(text)
