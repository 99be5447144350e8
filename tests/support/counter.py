# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server that counts requests and holds memory that cannot be compressed; runs in the container.

usage: counter.py PORT MIB
"""

from __future__ import annotations

import http.server
import os
import sys
import time

MEMORY = [os.urandom(1 << 20) for dummy in range(int(sys.argv[2]))]
count = 0


class Counter(http.server.BaseHTTPRequestHandler):
    """Answers "COUNT PID"; the connection stays open. /ticks answers with a number every 5 ms, without an end."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        global count
        if self.path == "/ticks":
            self.ticks()
            return
        count += 1
        body = f"{count} {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def ticks(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        number = 0
        while True:
            number += 1
            self.wfile.write(f"{number}\n".encode())
            self.wfile.flush()
            time.sleep(0.005)

    def log_message(self, *dummy: object) -> None:
        """Nothing: there are hundreds a second."""


http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Counter).serve_forever()
