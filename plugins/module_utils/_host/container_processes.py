# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What the processes of a running container hold: files, shared memory, watches, sockets, as CRIU will find them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import sys
import typing as t

from .._core import paths
from .._core.errors import HostError
from .._criu.holdings import Inode, Names, OpenFile, Process, nameless, scan_lines
from .._criu.obstacles import groups, mptcp_sockets, obstacles
from . import archive, container_parts, files, freezer

_CAP_SYS_RESOURCE = 24
_WATCH = re.compile(r"^inotify wd:\S+ ino:([0-9a-f]+) sdev:([0-9a-f]+) ", re.MULTILINE)
# A line of /proc/PID/maps with a file that has no name (any more): shared memory, or a deleted one.
_UNNAMED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+ \d+) +(.* \(deleted\))$", re.MULTILINE)


class Seen(t.NamedTuple):
    """The processes of a container, and the names of what CRIU must know by name in its root (``device``)."""

    processes: tuple[Process, ...] = ()
    device: int = 0
    names: Names = {}


def _memory_device() -> int:
    """The file system of the kernel in which shared memory lies."""
    fd = os.memfd_create("cnvm")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _kind(status: os.stat_result, memory: int) -> str:
    if stat.S_ISREG(status.st_mode):
        return "memory" if status.st_dev == memory else "file"
    return "char" if stat.S_ISCHR(status.st_mode) else "block" if stat.S_ISBLK(status.st_mode) else "other"


def watches(fdinfo: str) -> tuple[Inode, ...]:
    """What an inotify watches, from its fdinfo (which has the kernel's form of device numbers)."""
    return tuple(
        (os.makedev(int(device, 16) >> 20, int(device, 16) & 0xFFFFF), int(inode, 16))
        for inode, device in _WATCH.findall(fdinfo)
    )


def _open_files(pid: int, memory: int) -> t.Iterator[OpenFile]:
    def file(link: str, target: str, watched: tuple[Inode, ...] = ()) -> OpenFile:
        status = os.stat(link)
        return OpenFile(
            target,
            _kind(status, memory),
            status.st_blocks * 512,
            (status.st_dev, status.st_ino),
            status.st_nlink,
            watched,
        )

    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                info = files.text_of(f"/proc/{pid}/fdinfo/{entry.name}") if target == "anon_inode:inotify" else ""
                yield file(entry.path, target, watches(info))
    seen = set()
    for start, end, inode, target in _UNNAMED.findall(files.text_of(f"/proc/{pid}/maps")):
        if inode not in seen:
            seen.add(inode)
            with contextlib.suppress(OSError):
                yield file(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}", target)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _names(root: str, wanted: t.Collection[Inode]) -> Names:
    """The names of inodes in the tree ``root``, as they are from within."""
    found: dict[Inode, list[str]] = {}
    for path, status in itertools.chain([("", os.lstat(root))], archive.walk(root)) if wanted else ():
        key = (status.st_dev, status.st_ino)
        if key in wanted:
            found.setdefault(key, []).append(f"/{path}")
    return found


def look(definition: t.Mapping[str, t.Any]) -> Seen:
    """The processes of a running container, and what they hold."""
    name = definition["name"]
    init = container_parts.init_pid(definition)
    home = _namespace(init)
    mighty = bool(int(freezer.status_field(os.getpid(), "CapEff") or "0", 16) >> _CAP_SYS_RESOURCE & 1)
    memory = _memory_device()
    processes = tuple(
        Process(
            pid=pid,
            command=freezer.status_field(pid, "Name"),
            is_init=pid == init,
            traced=freezer.status_field(pid, "TracerPid") not in ("0", ""),
            out_of_reach=not mighty and freezer.status_field(pid, "Uid").split()[:1] not in ([], ["0"]),
            foreign_pid_namespace=_namespace(pid) not in (home, ""),
            files=tuple(_open_files(pid, memory)),
        )
        for pid in freezer.processes(paths.payload_cgroup(name))
    )
    root = container_parts.rootfs(name)
    device = os.lstat(root).st_dev
    return Seen(processes, device, _names(root, nameless(processes, device)))


def in_the_way(definition: t.Mapping[str, t.Any], seen: Seen) -> tuple[str, ...]:
    """What CRIU could not dump of it."""
    net = f"/proc/{container_parts.init_pid(definition)}/net"
    sockets = {kind: _sockets(f"{net}/{kind}") for kind in ("raw", "raw6", "packet")}
    return obstacles(
        definition["name"], seen.processes, raw=sockets["raw"] + sockets["raw6"], packet=sockets["packet"],
        mptcp=mptcp_sockets(files.text_of(f"{net}/protocols")),
        joined=groups(files.text_of(f"{net}/igmp"), files.text_of(f"{net}/igmp6"), sys.byteorder),
        device=seen.device, names=seen.names,
    )  # fmt: skip


def _sockets(path: str) -> int:
    """How many are in a table of /proc, whose first line is a heading."""
    return max(0, len(files.text_of(path).splitlines()) - 1)


def criu_lines(definition: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """What CRIU must be told to dump it now; HostError when something has come into the way."""
    seen = look(definition)
    found = in_the_way(definition, seen)
    if found:
        raise HostError(" ".join(found))
    return scan_lines(seen.processes, seen.names)


def tmpfs_bytes(pid: int) -> int:
    """What is in the file systems in memory that a process has mounted as a whole."""
    sizes: dict[int, int] = {}
    for line in files.text_of(f"/proc/{pid}/mountinfo").splitlines():
        words = line.split()
        if words[words.index("-") + 1] != "tmpfs" or words[3] != "/":
            continue
        point = f"/proc/{pid}/root{words[4]}"
        with contextlib.suppress(OSError):
            major, minor = map(int, words[2].split(":"))
            if os.stat(point).st_dev == os.makedev(major, minor):
                space = os.statvfs(point)
                sizes[os.makedev(major, minor)] = (space.f_blocks - space.f_bfree) * space.f_frsize
    return sum(sizes.values())
