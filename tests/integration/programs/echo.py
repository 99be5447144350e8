# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the third host: keeps one TCP connection to an echo server open, prints each answer as a line of JSON."""

from __future__ import annotations

import json
import socket
import sys
import time


def connect(address: str, port: int, seconds: float = 60) -> socket.socket:
    """A connection; the guest may be starting yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((address, port), 5)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


with connect(sys.argv[1], int(sys.argv[2])) as sock:
    sock.settimeout(None)
    answers, count = sock.makefile("rb"), 0
    while True:
        count += 1
        begin = time.monotonic()
        try:
            sock.sendall(b"%d\n" % count)
            line = answers.readline()
        except OSError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            break
        if line != b"%d\n" % count:
            print(json.dumps({"error": f"{line!r} instead of {count}"}), flush=True)
            break
        now = time.monotonic()
        print(json.dumps({"count": count, "clock": now, "took": now - begin}), flush=True)
        time.sleep(0.1)
