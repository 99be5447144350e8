# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What CRIU leaves behind when it is killed, and how to read what it says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import time
import typing as t

from .._core import paths
from .._criu import log, stats
from . import files, freezer
from .system import Host

_TCP_REPAIR = 19
_PIDFD_GETFD = 438  # the same on all architectures (Linux 5.6)
_TABLE = re.compile(r"^table (\w+) (CRIU-\S+)$", re.MULTILINE)


def read_end(path: str, size: int = 8192) -> str:
    """The end of a log, '' where there is none. Asked for every millisecond while a container stands still."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def failure(path: str) -> dict[str, str]:
    """``error`` and ``advice`` of a CRIU log, and the ``log`` itself."""
    error = log.first_error(files.text_of(path))
    return {"error": error, "advice": log.advice(error), "log": path}


def statistics(directory: str) -> dict[str, int]:
    """The numbers of stats-dump and stats-restore in a work directory."""
    found: dict[str, int] = {}
    for name in ("stats-dump", "stats-restore"):
        with contextlib.suppress(OSError), open(f"{directory}/{name}", "rb") as file:
            found.update(stats.parse(file.read()))
    return found


def lazy_pages(directory: str) -> int:
    """How many pages the images of a dump have left behind."""
    found = 0
    for name in os.listdir(directory):
        if name.startswith("pagemap-"):
            with open(f"{directory}/{name}", "rb") as file:
                found += stats.lazy_pages(file.read())
    return found


def kill_for(move_id: str, timeout_s: float = 5.0) -> int:
    """Kill every criu and runtime that works for a move (it stands in their command line or they are its orphans)."""
    marker = paths.move_dir(move_id).encode()
    killed = 0
    end = time.monotonic() + timeout_s
    while True:
        found = [pid for pid in _pids() if pid != os.getpid() and _works_for(pid, marker)]
        if not found or time.monotonic() > end:
            return killed
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.01)


def serves(move_id: str) -> bool:
    """Whether a criu of the move still lives on this host."""
    marker = paths.move_dir(move_id).encode()
    return any(_works_for(pid, marker) for pid in _pids())


def restoring(move_id: str) -> bool:
    """Whether the criu that restores for a move still lives on this host. (It says in its title what it does.)"""
    marker = paths.move_dir(move_id).encode()
    return any(
        files.text_of(f"/proc/{pid}/comm").strip() == "criu"
        and "restore" in files.text_of(f"/proc/{pid}/cmdline")
        and _works_for(pid, marker)
        for pid in _pids()
    )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _works_for(pid: int, marker: bytes) -> bool:
    """By command line, or (criu started by a runtime has none) by an open directory or file of the move."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            program = file.read().strip()
        if program not in (b"criu", b"runc", b"crun"):
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if marker in file.read():
                return True
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").encode().startswith(marker):
                    return True
    except OSError:
        pass
    return False


def unlock_network(host: Host, name: str) -> bool:
    """Remove the packet-drop tables that CRIU left in the container's namespace (criu#2180). Whether there were any."""
    if not os.path.exists(paths.netns_path(name)):
        return False
    inside = ["ip", "netns", "exec", paths.netns_name(name)]
    tables = _TABLE.findall(host.run([*inside, "nft", "list", "tables"], check=False).stdout)
    if tables:
        lines = "".join(f"delete table {family} {table}\n" for family, table in tables)
        host.run([*inside, "nft", "-f", "-"], stdin=lines)
    return bool(tables)


def leave_repair(cgroup: str) -> int:
    """Take TCP sockets out of repair mode, in which a killed CRIU leaves them: mute, sends fail. How many there were.

    The processes may be frozen. Leaving repair mode sends a window probe, so the network must be as it should by then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    count = 0
    for pid in freezer.processes(cgroup):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            for fd in _socket_fds(pid):
                copy = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
                if copy >= 0:
                    count += _end_repair(copy)
        finally:
            os.close(pidfd)
    return count


def _socket_fds(pid: int) -> t.Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith("socket:"):
                    yield int(entry.name)


def _end_repair(fd: int) -> int:
    """Close ``fd`` after ending its repair mode if it is a TCP socket in it; 1 if it was, else 0."""
    with socket.socket(fileno=fd) as sock:
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        try:
            if not sock.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
                return 0
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
        except OSError:
            return 0
        return 1
