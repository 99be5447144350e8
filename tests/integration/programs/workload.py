# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in the container: counts each connection's requests, keeps random memory, notes every moment in which it runs.

A line of /ticks is ``NUMBER CLOCK NAMESPACE NONCE``. The network namespace tells on which host the line was written,
the clock (the same on all local hosts) when; nothing in the process is told that it was moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time

MEMORY = os.urandom(int(sys.argv[1]) << 20)
NONCE = os.urandom(4).hex()
state = {"tick": 0}


def tick() -> None:
    fd = os.open("/ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    while True:
        state["tick"] += 1
        space = os.readlink("/proc/self/ns/net")[5:-1]
        os.write(fd, f"{state['tick']} {time.time():.3f} {space} {NONCE}\n".encode())
        time.sleep(0.01)


def talk(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as file:
        for count, line in enumerate(file, 1):
            answer = {**state, "count": count, "nonce": NONCE}
            if line.strip() == b"sum":
                answer["sum"] = hashlib.sha256(MEMORY).hexdigest()
            file.write(json.dumps(answer).encode() + b"\n")
            file.flush()


# As process 1 it would not be ended by a signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *dummy: os._exit(0))
threading.Thread(target=tick, daemon=True).start()
server = socket.create_server(("", 80))
while True:
    threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()
