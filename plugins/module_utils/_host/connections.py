# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The connections of another process, which may be in no state to be asked to end them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import typing as t

# pidfd_getfd(2), since Linux 5.6. The C library need not know it; the number is that of all architectures (but Alpha).
_PIDFD_GETFD = 438


def cut(pid: int, address: str) -> int:
    """End the TCP connections of a process to ``address``, as if who is there had hung up; how many there were."""
    count = 0
    for one in _to(pid, address):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def keep_short(pid: int, address: str, unsent_bytes: int) -> None:
    """Have no more than so much wait in the kernel to be sent over the TCP connections of a process to ``address``."""
    for one in _to(pid, address):
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)


def _to(pid: int, address: str) -> t.Iterator[socket.socket]:
    """The TCP connections of a process to ``address``."""
    for one in _sockets(pid):
        with contextlib.suppress(OSError):
            if one.type == socket.SOCK_STREAM and one.family == socket.AF_INET and one.getpeername()[0] == address:
                yield one


def _sockets(pid: int) -> t.Iterator[socket.socket]:
    """The sockets of a process, each as one of ours for as long as it is looked at. None of a process that is gone."""
    library = ctypes.CDLL(None)
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError), _handle(pid) as process:
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.readlink(f"{directory}/{name}").startswith("socket:"):
                    fd = library.syscall(_PIDFD_GETFD, process, int(name), 0)
                    if fd >= 0:
                        with socket.socket(fileno=fd) as one:
                            yield one


@contextlib.contextmanager
def _handle(pid: int) -> t.Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)
