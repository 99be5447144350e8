# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Files that must survive a power cut, and locks that must not survive their holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import typing as t

from .._core.errors import HostError, Refused

_TRIES = 5
_TRY_AGAIN_S = 0.2


def read_json(path: str) -> t.Optional[dict[str, t.Any]]:
    """The object in ``path``, or None where there is no such file. A damaged file is an error, never 'absent'."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HostError(f"{path} cannot be read: {error}.", hint="Restore it or remove it.", path=path) from error
    if not isinstance(value, dict):
        raise HostError(f"{path} holds no JSON object.", hint="Restore it or remove it.", path=path)
    return value


def sync_dir(path: str) -> None:
    """Make the entries of a directory (a rename, a removal) survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: str) -> None:
    """Make a directory, with those above it, that survives a power cut."""
    if not os.path.isdir(path):
        above = os.path.dirname(path)
        if above != path:
            make_dirs(above)
        os.makedirs(path, exist_ok=True)
        sync_dir(above)


def _unfinished(path: str) -> str:
    """What ``path`` is written to before it is whole."""
    return f"{path}.new"


def remove_unfinished(path: str) -> None:
    """Remove what a write of ``path`` has left that was cut off. Nobody may be writing it."""
    remove_file(_unfinished(path))


def write_all(fd: int, data: bytes) -> None:
    """Write ``data``, however little of it is taken at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_text(path: str, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` atomically; ``durable``: it is on the disk when this returns."""
    directory = os.path.dirname(path)
    if durable:
        make_dirs(directory)
    else:
        os.makedirs(directory, exist_ok=True)
    temporary = _unfinished(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        # A full disk is told without a name.
        error.filename = path
        raise
    os.replace(temporary, path)
    if durable:
        sync_dir(directory)


def write_json(path: str, value: t.Mapping[str, t.Any], *, mode: int = 0o600, durable: bool = True) -> None:
    """``write_text`` of ``value`` as JSON. By default for root alone: a record may hold the password of a screen."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n", mode=mode, durable=durable)


def text_of(path: str) -> str:
    """A file's text, such as one of /proc or a log; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def remove_file(path: str, *, durable: bool = False) -> bool:
    """Remove ``path``; whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    if durable:
        sync_dir(os.path.dirname(path))
    return True


def read_mounts() -> str:
    """The mounts of this mount namespace, as proc(5) has them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def mount_points(mountinfo: t.Optional[str] = None) -> list[str]:
    """All mount points of this mount namespace (/proc/self/mountinfo), in the order they were mounted."""
    mountinfo = read_mounts() if mountinfo is None else mountinfo
    # Field 5; blanks in paths are escaped as octal (proc(5)).
    return [
        line.split(" ")[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        for line in mountinfo.splitlines()
    ]


def remove_tree(path: str, *, last: str = "") -> None:
    """Remove a directory of ours. Refuses while anything is mounted in it: it would erase what is mounted. ``last``:
    the name of what goes when nothing else is left in it."""
    if not os.path.lexists(path):
        return
    below = [point for point in mount_points() if point == path or point.startswith(path + "/")]
    if below:
        raise HostError(f"{path} cannot be removed: {below[0]} is still mounted.", hint=f"Run 'umount {below[0]}'.")
    for entry in list(os.scandir(path)) if last else ():
        if entry.name == last:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            remove_file(entry.path)
    shutil.rmtree(path)


def places(path: str) -> set[str]:
    """Where a file lies, and where it leads if it is a link; without links on the way."""
    return {f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}", os.path.realpath(path)}


def lock_holder(path: str) -> int:
    """The process that holds ``path`` (see ``lock``), 0 when nobody does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        words = os.pread(fd, 200, 0).decode("utf-8", "replace").split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
    finally:
        os.close(fd)
    return 0


@contextlib.contextmanager
def lock(
    path: str, what: str, *, waits: t.Callable[[], bool] = lambda: False, shared: bool = False
) -> t.Iterator[None]:
    """Hold ``path`` with flock; Refused at once when another process has it. The kernel lets go when we die.
    ``shared``: with others who share it.

    At once, but for the moment in which somebody only looks who has it (``lock_holder``), and for as long as it
    ``waits``.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        left = _TRIES
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                left -= 1
            if left > 0:
                time.sleep(0.01)
                continue
            if waits():
                time.sleep(_TRY_AGAIN_S)
                continue
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
            raise Refused(
                f"{what} is refused: {holder or 'another process'} is at work on it.",
                hint="Try again when it has ended.",
                holder=holder,
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} ({what})\n".encode(), 0)
        yield
    finally:
        os.close(fd)
