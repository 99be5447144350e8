# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What processes hold that CRIU dumps besides their private memory, and what it must be told of it."""

from __future__ import annotations

import dataclasses
import re
import typing as t

_DELETED = " (deleted)"
# What a line of CRIU's configuration cannot hold.
# Names that are not UTF-8 come as surrogates.
_UNSAYABLE = re.compile(r"[^\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]|[\"\\#]")

Inode = tuple[int, int]
# What the files of the container's root are called in it. Several names are links.
Names = t.Mapping[Inode, t.Sequence[str]]


@dataclasses.dataclass(frozen=True)
class OpenFile:
    """A file that a process has open or mapped.

    ``target`` as /proc shows it; ``kind``: char, block, file, memory (shared memory, a memfd) or other; ``size``: the
    bytes that it takes; how many names its file system knows of; what an inotify watches.
    """

    target: str
    kind: str
    size: int = 0
    inode: Inode = (0, 0)
    links: int = 1
    watches: tuple[Inode, ...] = ()

    @property
    def deleted(self) -> str:
        """The name that it had, '' where it has it still."""
        gone = self.kind == "file" and self.target.endswith(_DELETED)
        return self.target[: -len(_DELETED)] if gone else ""


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


def nameless(processes: t.Iterable[Process], device: int) -> frozenset[Inode]:
    """Of what must the names be known in the file system ``device`` (the container's root)?

    Of what is watched: CRIU asks the kernel for it by its handle, which overlayfs does not know, and then for the names
    that it is told. And of deleted files that may have another name.
    """
    return frozenset(
        inode
        for process in processes
        for file in process.files
        for inode in (*file.watches, *((file.inode,) if file.deleted and file.links else ()))
        if inode[0] == device
    )


def linked(file: OpenFile, names: Names) -> str:
    """A name that a deleted file still has, '' where it has none. (A link that CRIU makes does not outlive its dump.)

    Overlayfs counts the deleted names of a file of the image among its links.
    """
    found = names.get(file.inode, ())
    return found[0] if file.deleted and 0 < file.links <= len(found) else ""


def watched(inode: Inode, names: Names) -> str:
    """By what name CRIU can be told of it, '' where there is none."""
    return next((name for name in names.get(inode, ()) if not _UNSAYABLE.search(name)), "")


def scan_lines(processes: t.Iterable[Process], names: Names) -> tuple[str, ...]:
    """CRIU's options that name what is watched. The deepest first: it looks through all that is below one.

    Not the root, which it looks at by itself.
    """
    found = {watched(inode, names) for process in processes for file in process.files for inode in file.watches}
    deepest = sorted(found - {"", "/"}, key=lambda name: (-name.count("/"), name))
    return tuple(f'irmap-scan-path "{name}"' for name in deepest)


def shared_bytes(processes: t.Iterable[Process]) -> int:
    """Shared memory and deleted files, each once; all of it is dumped while the container stands still."""
    sizes = {
        file.inode: file.size
        for process in processes
        for file in process.files
        if file.kind == "memory" or file.deleted
    }
    return sum(sizes.values())
