# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in the container: counts each connection's requests, keeps random memory, notes every moment in which it runs.
It has a child that is stopped, as by Ctrl-Z.

A line of /ticks is ``NUMBER CLOCK NAMESPACE NONCE``. The network namespace tells on which host the line was written,
the clock (the same on all local hosts) when; nothing in the process is told that it was moved.

It also holds what a move must be told of: a file of the image that an upgrade has replaced, shared memory, a
semaphore with a name, a directory that is watched.
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

CHILD = os.fork()
if CHILD == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
MEMORY = os.urandom(int(sys.argv[1]) << 20)
NONCE = os.urandom(4).hex()
state = {"tick": 0}


def replaced(path: str) -> int:
    """A file that is in use, and another in its place."""
    fd = os.open(path, os.O_RDONLY)
    with open(f"{path}.new", "wb") as new:
        new.write(os.pread(fd, os.stat(fd).st_size, 0))
    os.chmod(f"{path}.new", 0o755)
    os.replace(f"{path}.new", path)
    return fd


def buffer() -> int:
    """Memory that has no file."""
    fd = os.memfd_create("workload")
    os.write(fd, os.urandom(2 << 20))
    return fd


def semaphore() -> int:
    """As sem_open(3) makes one: it is opened by a name that it loses, and has another."""
    path = f"/dev/shm/{NONCE}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, NONCE.encode())
    os.link(path, f"{path}.sem")
    os.unlink(path)
    return fd


def watcher() -> int:
    """A process that says when there is a new file in /srv/watched. This Python cannot ask the kernel for that."""
    init, add = {"x86_64": (294, 254), "aarch64": (26, 27)}[os.uname().machine]
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1)
        program = """
            $path = "/srv/watched"; $fd = syscall($ARGV[0] + 0, 0); syscall($ARGV[1] + 0, $fd, $path, 0x100);
            open(EVENTS, "<&=", $fd); syswrite(STDOUT, "x") while sysread(EVENTS, $event, 4096);
        """
        os.execv("/usr/bin/perl", ["perl", "-e", program, str(init), str(add)])
    return read


os.makedirs("/srv/watched", exist_ok=True)
HELD = (replaced("/bin/bash"), buffer(), semaphore())
WATCHER = watcher()
watching = threading.Lock()


def watch() -> bool:
    """Whether it is told of a new file."""
    with watching:
        with open("/srv/watched/file", "w", encoding="ascii"):
            pass
        os.remove("/srv/watched/file")
        return os.read(WATCHER, 1) == b"x"


def held() -> bytes:
    """All that it has open."""
    return b"".join(os.pread(fd, os.stat(fd).st_size, 0) for fd in HELD)


def tick() -> None:
    fd = os.open("/ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    while True:
        state["tick"] += 1
        space = os.readlink("/proc/self/ns/net")[5:-1]
        os.write(fd, f"{state['tick']} {time.time():.3f} {space} {NONCE}\n".encode())
        time.sleep(0.02)


def talk(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as file:
        for count, line in enumerate(file, 1):
            with open(f"/proc/{CHILD}/stat", encoding="ascii") as status:
                child = status.read().split()[2]
            answer = {**state, "count": count, "nonce": NONCE, "child": child}
            if line.strip() == b"sum":
                answer["sum"] = hashlib.sha256(MEMORY + held()).hexdigest()
                answer["watch"] = watch()
            file.write(json.dumps(answer).encode() + b"\n")
            file.flush()


# As process 1 it would not be ended by a signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *dummy: os._exit(0))
threading.Thread(target=tick, daemon=True).start()
server = socket.create_server(("", 80))
while True:
    threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()
