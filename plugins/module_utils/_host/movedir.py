# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a move has on a host while it goes on: its checkpoint (in memory, for root only) and its journal."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import typing as t

from .._core import paths
from . import files
from .system import Host


def boot_id() -> str:
    """Another one after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def space(path: str) -> dict[str, t.Any]:
    """The file system of ``path``, which need not be there yet, of which nothing is needed so far (see
    ``plan.space_problems``)."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    stats = os.statvfs(there)
    return {
        "device": os.stat(there).st_dev, "path": path, "free_bytes": stats.f_bavail * stats.f_frsize, "needed_bytes": 0,
        "once": {},
    }  # fmt: skip


def available_memory() -> int:
    """What programs can still take (MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def make(host: Host, move_id: str, expected: int) -> str:
    """A directory in memory for the checkpoint, mode 0700 (it holds all secrets of the container)."""
    directory = paths.move_dir(move_id)
    os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if directory not in files.mount_points():
        size = expected + expected // 8 + 256 * 2**20
        host.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,size={size}", "cnvm-move", directory])
    for name in ("images", "work"):
        os.makedirs(f"{directory}/{name}", mode=0o700, exist_ok=True)
    return directory


def keep_logs(move_id: str) -> str:
    """Copy CRIU's logs out of the move's directory, which is about to go; where they are then.

    On a disk that is full they are lost: what follows makes room on it.
    """
    source, kept = paths.move_dir(move_id), paths.move_log_dir(move_id)
    with contextlib.suppress(OSError):
        for directory, _names, found in os.walk(source):
            for name in found:
                if name.endswith(".log"):
                    os.makedirs(kept, mode=0o700, exist_ok=True)
                    shutil.copyfile(f"{directory}/{name}", f"{kept}/{name}")
    return kept


def console_logs(name: str) -> list[str]:
    """What a guest has written on its console here, with what libvirt has put aside of it (NAME.log.0) as it grew."""
    log = paths.guest_log(name)
    return [path for path in glob.glob(f"{glob.escape(log)}*") if re.fullmatch(r"(\.[0-9]+)?", path[len(log) :])]


def keep_console(name: str, move_id: str) -> None:
    """Put that to the logs of the move with which the guest has gone. They are removed some day (see the role
    host_bootstrap); where that fails it stays."""
    kept = paths.move_log_dir(move_id)
    with contextlib.suppress(OSError):
        os.makedirs(kept, mode=0o700, exist_ok=True)
        for path in console_logs(name):
            os.replace(path, f"{kept}/{os.path.basename(path)}")


def remove(host: Host, move_id: str) -> None:
    """Remove the checkpoint; its logs are kept."""
    directory = paths.move_dir(move_id)
    if not os.path.isdir(directory):
        return
    keep_logs(move_id)
    if directory in files.mount_points():
        host.run(["umount", "-l", directory])
    files.remove_tree(directory)


def end_journal(name: str) -> None:
    """The move is over on this host. What a write of a record left that was cut off goes, too."""
    for record in (paths.journal_file(name), paths.owner_file(name), paths.definition_file(name)):
        files.remove_unfinished(record)
    files.remove_file(paths.journal_file(name), durable=True)
