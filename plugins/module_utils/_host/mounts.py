# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Storage that may hang whoever touches it. That is told by its mount points alone, without a look at it."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import typing as t

from .._core.errors import HostError
from . import files

# File systems that several hosts have at once; those that libvirt and QEMU can rely on.
SHARED = ("nfs", "nfs4", "ceph", "fuse.glusterfs", "gfs2", "ocfs2")
# Once their server is gone these may keep a process for good, which nobody can kill then.
_MAY_HANG = (*SHARED, "cifs", "smb3", "fuse.sshfs")
_MOST_LINKS = 40
BRING_IT_BACK = "Bring its server back, or the network to it. If it is gone for good, unmount it (umount --lazy)."
# A server that has more to do than this is none whose answers anybody waits for.
_ANSWER_S = 5.0


class SilentStorage(HostError):
    """A file (``path`` of ``details``) is on storage that does not answer."""


class Away:
    """Places that nobody is to touch: all below ``points``."""

    def __init__(self, points: t.Collection[str] = frozenset()) -> None:
        self._points = points

    def begins_at(self, path: str) -> bool:
        """Whether such a place is mounted at ``path``, to which no link leads."""
        return path in self._points

    def not_answering(self) -> list[str]:
        """Where a way has led by now to storage that was asked, and did not answer."""
        return []

    def check(self, places: t.Iterable[str], where: str = "") -> None:
        """SilentStorage where one of these files lies there: whoever looks at it would wait with its storage.
        ``where``: what has it."""
        for path in places:
            # What lies behind a network has no path here.
            if path.startswith("/") and not self.real(path):
                said = f"{where}: {path}" if where else path
                raise SilentStorage(f"{said} is on storage that does not answer.", hint=BRING_IT_BACK, path=path)

    def real(self, path: str) -> str:
        """As ``os.path.realpath``; '' where the way leads there."""
        if not self._points:
            return os.path.realpath(path)
        made, todo, links = "/", path.split("/")[::-1], 0
        while todo:
            name = todo.pop()
            if name in ("", ".", ".."):
                made = os.path.dirname(made) if name == ".." else made
                continue
            there = os.path.join(made, name)
            if self.begins_at(there):
                return ""
            try:
                target = os.readlink(there)
            except OSError:
                # No link, or not there.
                made = there
                continue
            links += 1
            if links > _MOST_LINKS:
                # Nobody comes to its end.
                return os.path.normpath(path)
            made = "/" if target.startswith("/") else made
            todo += target.split("/")[::-1]
        return made


# Everything may be looked at.
NOTHING = Away()


def away_from(own: t.Iterable[str]) -> Away:
    """What may hang and has none of the paths ``own``."""
    kinds = kinds_at(files.read_mounts())
    used = {place for path in own for place in (path, os.path.realpath(path))}
    # The way to what this host alone has leads through it.
    used.update(point for point, kind in kinds.items() if kind not in _MAY_HANG)
    return Away(
        frozenset(
            point
            for point, kind in kinds.items()
            if kind in _MAY_HANG and not any(path.startswith(f"{point.rstrip('/')}/") for path in used)
        )
    )


class _Silent(Away):
    """Those of ``points`` whose storage does not answer. Each is asked when the way leads there. Whoever has not
    answered is not asked again; an answer is good for some seconds."""

    def __init__(self, points: t.Collection[str]) -> None:
        super().__init__(points)
        self._silent: set[str] = set()
        self._heard: dict[str, float] = {}

    def begins_at(self, path: str) -> bool:
        if path in self._points and path not in self._silent:
            now = time.monotonic()
            if now - self._heard.get(path, now - _ANSWER_S) >= _ANSWER_S:
                if _answers(path):
                    self._heard[path] = time.monotonic()
                else:
                    self._silent.add(path)
        return path in self._silent

    def not_answering(self) -> list[str]:
        return sorted(self._silent)


def silent() -> Away:
    """What hangs now, for who has to look wherever a way leads. Be it what is mounted when somebody goes there."""
    kinds = kinds_at(files.read_mounts())
    points = tuple(point for point, kind in kinds.items() if kind in (*_MAY_HANG, "autofs"))
    return _silent(points) if points else NOTHING


@functools.lru_cache(maxsize=1)
def _silent(points: tuple[str, ...]) -> Away:
    """One for each process: who has waited for storage once does not wait again."""
    return _Silent(points)


def _answers(point: str) -> bool:
    """Whether the storage that is mounted there says how large it is, which no host remembers, or that it cannot."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            os.statvfs(point)

    # One that hangs ends with this process.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    return not asking.is_alive()


def kinds_at(mountinfo: str) -> dict[str, str]:
    """The types of file systems by their mount points: of several at one point that which is seen."""
    kinds = [line.partition(" - ")[2].partition(" ")[0] for line in mountinfo.splitlines()]
    return dict(zip(files.mount_points(mountinfo), kinds))
