# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What CRIU cannot dump, seen before anything is frozen."""

from __future__ import annotations

import dataclasses
import typing as t

GHOST_LIMIT = 2**20  # CRIU's default: a deleted file that is still open is dumped up to this size
_PLAIN_DEVICES = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")
)


@dataclasses.dataclass(frozen=True)
class OpenFile:
    """A file descriptor: ``target`` as /proc shows it, ``kind`` of the file (char, block, file, other), its size."""

    target: str
    kind: str
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Process:
    """What matters of a process of the container. ``out_of_reach``: its limits may not be read (prlimit(2))."""

    pid: int
    command: str
    is_init: bool = False
    traced: bool = False
    foreign_pid_namespace: bool = False
    out_of_reach: bool = False
    files: tuple[OpenFile, ...] = ()


def mptcp_sockets(text: str) -> int:
    """How many MPTCP sockets are in use, by /proc/net/protocols. Kernels before 6.2 do not count them there."""
    lines = [line.split() for line in text.splitlines()]
    return sum(int(words[2]) for words in lines if words[:1] in (["MPTCP"], ["MPTCPv6"]))


def obstacles(
    name: str, processes: t.Sequence[Process], raw_sockets: int, packet_sockets: int, mptcp: int
) -> tuple[str, ...]:
    """Why the container cannot be dumped, one sentence each. Sockets are counted in its network namespace."""
    found: list[str] = []
    for process in processes:
        who = f"{name}: process {process.pid} ({process.command})"
        if process.is_init and process.command == "systemd":
            found.append(f"{who} is systemd as init, which CRIU cannot dump. Use a small init.")
        if process.traced:
            found.append(f"{who} is being traced (a debugger, strace). End that first.")
        if process.foreign_pid_namespace:
            found.append(f"{who} is in a process namespace of its own (a nested container).")
        if process.out_of_reach:
            found.append(
                f"{who} is not root's, and root lacks CAP_SYS_RESOURCE on this host, without which CRIU cannot read "
                "its limits."
            )
        for file in process.files:
            if file.target.startswith("anon_inode:[io_uring"):
                found.append(f"{who} uses io_uring, which CRIU cannot dump.")
            elif file.kind in ("char", "block") and not (
                file.target in _PLAIN_DEVICES or file.target.startswith("/dev/pts/")
            ):
                found.append(f"{who} has the device {file.target} open.")
            elif file.kind == "file" and file.target.endswith(" (deleted)") and file.size > GHOST_LIMIT:
                found.append(
                    f"{who} holds the deleted file {file.target[:-10]} of {file.size} bytes open;"
                    f" CRIU takes {GHOST_LIMIT}."
                )
    if raw_sockets:
        found.append(f"{name} has {raw_sockets} raw socket(s) open, which CRIU cannot dump.")
    if packet_sockets:
        found.append(f"{name} has {packet_sockets} packet socket(s) open, which CRIU cannot dump.")
    if mptcp:
        found.append(
            f"{name} has {mptcp} MPTCP socket(s) open, which CRIU cannot dump. Stop and start it: it gets TCP instead."
        )
    return tuple(dict.fromkeys(found))
