# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What CRIU cannot dump, seen before anything is frozen."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .commands import GHOST_LIMIT
from .holdings import Names, Process, linked, watched

_PLAIN_DEVICES = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")
)
# Groups that the kernel is in by itself, and those that it joins for each of its addresses.
_OWN_GROUPS = frozenset(
    ipaddress.ip_address(text)
    for text in ("224.0.0.1", "224.0.0.106", "ff01::1", "ff01::2", "ff02::1", "ff02::2", "ff02::6a", "ff05::2")
)
_SOLICITED = ipaddress.IPv6Network("ff02::1:ff00:0/104")


def groups(igmp: str, igmp6: str, byteorder: t.Literal["little", "big"]) -> tuple[str, ...]:
    """The multicast groups that programs have joined, from /proc/PID/net/igmp (in the machine's order) and igmp6."""
    found = {
        ipaddress.ip_address(int(words[0], 16).to_bytes(4, byteorder))
        for words in map(str.split, igmp.splitlines())
        if len(words) == 4 and re.fullmatch("[0-9A-F]{8}", words[0])
    } | {
        ipaddress.ip_address(bytes.fromhex(words[2])) for words in map(str.split, igmp6.splitlines()) if len(words) > 2
    }
    mine = (group for group in found - _OWN_GROUPS if group not in _SOLICITED)
    return tuple(str(group) for group in sorted(mine, key=lambda group: (group.version, group)))


def mptcp_sockets(text: str) -> int:
    """How many MPTCP sockets are in use, by /proc/net/protocols. Kernels before 6.2 do not count them there."""
    lines = [line.split() for line in text.splitlines()]
    return sum(int(words[2]) for words in lines if words[:1] in (["MPTCP"], ["MPTCPv6"]))


def obstacles(
    name: str, processes: t.Sequence[Process], *, raw: int = 0, packet: int = 0, mptcp: int = 0,
    joined: t.Sequence[str] = (), device: int = 0, names: t.Optional[Names] = None,
) -> tuple[str, ...]:  # fmt: skip
    """Why the container cannot be dumped, one sentence each.

    ``raw``, ``packet``, ``mptcp``: such sockets in its network namespace; ``joined``: multicast groups there.
    ``names``: those of what is ``nameless`` in its root, ``device``.
    """
    found: list[str] = []
    known = names or {}
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
            lost = [inode for inode in file.watches if inode[0] == device and not watched(inode, known)]
            if file.target.startswith("anon_inode:[io_uring"):
                found.append(f"{who} uses io_uring, which CRIU cannot dump.")
            elif file.kind in ("char", "block") and not (
                file.target in _PLAIN_DEVICES or file.target.startswith("/dev/pts/")
            ):
                found.append(f"{who} has the device {file.target} open.")
            elif file.deleted and file.size > GHOST_LIMIT:
                found.append(
                    f"{who} uses the deleted file {file.deleted} of {file.size >> 20} MiB; {GHOST_LIMIT >> 20} MiB are"
                    " the most. Restart it."
                )
            elif linked(file, known):
                found.append(
                    f"{who} uses {file.deleted}, which was deleted but is still there as {linked(file, known)}; CRIU"
                    " cannot restore that. Restart it."
                )
            elif lost:
                found.append(
                    f"{who} watches {len(lost)} file(s) or directories (inotify) that CRIU cannot find by name: they"
                    " were deleted, or have unusual characters. Restart it."
                )
    if raw:
        found.append(f"{name} has {raw} raw socket(s) open, which CRIU cannot dump.")
    if packet:
        found.append(f"{name} has {packet} packet socket(s) open, which CRIU cannot dump.")
    if joined:
        found.append(
            f"{name} is in the multicast group {', '.join(joined)}, and CRIU does not restore that: its programs would"
            " hear nothing more. End what has joined."
        )
    if mptcp:
        found.append(
            f"{name} has {mptcp} MPTCP socket(s) open, which CRIU cannot dump. Stop and start it: it gets TCP instead."
        )
    return tuple(dict.fromkeys(found))
