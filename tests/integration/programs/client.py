# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the third host: keeps one TCP connection to the workload open, prints each answer as a line of JSON."""

from __future__ import annotations

import json
import socket
import sys
import time

with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as sock:
    sock.settimeout(None)
    answers = sock.makefile("rb")
    while True:
        begin = time.monotonic()
        try:
            sock.sendall(b"sum\n" if begin % 1 < 0.1 else b"count\n")
            line = answers.readline()
        except OSError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            break
        if not line:
            print(json.dumps({"error": "the connection was closed"}), flush=True)
            break
        now = time.monotonic()
        print(json.dumps({**json.loads(line), "clock": now, "took": now - begin}), flush=True)
        time.sleep(0.1)
