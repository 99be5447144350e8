# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in the container: counts each connection's requests, keeps random memory, notes every moment in which it runs.

A line of /ticks is ``NUMBER CLOCK NAMESPACE NONCE``. The network namespace tells on which host the line was written,
the clock (the same on all local hosts) when; nothing in the process is told that it was moved.

It also holds what a move must be told of: a library of the image that an upgrade has replaced, shared memory, a
semaphore with a name, a directory that it watches.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
import time

MEMORY = os.urandom(int(sys.argv[1]) << 20)
NONCE = os.urandom(4).hex()
state = {"tick": 0}
LIBC = ctypes.CDLL(None)


def replaced(path: str) -> mmap.mmap:
    """A file that is in use, and another in its place."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with open(f"{path}.new", "wb") as new:
        new.write(mapped)
    os.chmod(f"{path}.new", 0o755)
    os.replace(f"{path}.new", path)
    return mapped


LIBRARY = replaced("/bin/bash")
SHARED = mmap.mmap(-1, 1 << 20)
SHARED.write(os.urandom(1 << 20))
LIBC.sem_open(b"/workload", os.O_CREAT, 0o600, 1)
os.makedirs("/srv/watched", exist_ok=True)
WATCH = LIBC.inotify_init1(os.O_NONBLOCK)
LIBC.inotify_add_watch(WATCH, b"/srv/watched", 0x100)  # IN_CREATE
watching = threading.Lock()


def watch() -> bool:
    """Whether it is told of a new file."""
    with watching:
        with open("/srv/watched/file", "w", encoding="utf-8"):
            pass
        os.remove("/srv/watched/file")
        try:
            return b"file" in os.read(WATCH, 4096)
        except BlockingIOError:
            return False


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
                answer["sum"] = hashlib.sha256(MEMORY + LIBRARY[:] + SHARED[:]).hexdigest()
                answer["watch"] = watch()
            file.write(json.dumps(answer).encode() + b"\n")
            file.flush()


# As process 1 it would not be ended by a signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *dummy: os._exit(0))
threading.Thread(target=tick, daemon=True).start()
server = socket.create_server(("", 80))
while True:
    threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()
