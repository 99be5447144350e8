# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Where templates and images are made: each in a directory beside its place, from where it is renamed into that.

Who makes one holds its directory, and the kernel lets go of it when they die. So what nobody holds was cut off. It goes
when the next one is made, and when a move is given up: whoever was killed in the middle could not remove it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import typing as t

from .._core.errors import HostError, Refused
from . import files

_DOOMED = "removed-"


def _home(above: str) -> str:
    return f"{above}/building"


def place(above: str, label: str) -> str:
    """Where ``directory`` makes one."""
    return f"{_home(above)}/{label}"


@contextlib.contextmanager
def directory(above: str, label: str) -> t.Iterator[str]:
    """A fresh directory on the file system of ``above``, root's alone: an image may have files that are set-user-id.
    What has not been renamed goes at the end."""
    path = place(above, label)
    with contextlib.ExitStack() as held:
        with _alone(above):
            doomed = _put_aside(above, held)
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                raise Refused(f"{path} is in use by another process.", hint="Try again when it has ended.") from None
            made = os.fstat(held.enter_context(_held(path)))
        _remove(doomed)
        try:
            yield path
        finally:
            # Once it is renamed, what is there is another one's.
            if os.path.isdir(path) and os.path.samestat(os.stat(path), made):
                files.remove_tree(path)


def remove_unfinished(above: str) -> None:
    """Remove what was cut off."""
    if not os.path.isdir(_home(above)):
        return
    with contextlib.ExitStack() as held:
        with _alone(above):
            doomed = _put_aside(above, held)
        _remove(doomed)


def discard(above: str, path: str) -> None:
    """Remove a directory so that nobody finds a part of it in its place."""
    with contextlib.ExitStack() as held:
        with _alone(above):
            doomed = _put_aside(above, held)
            held.enter_context(_held(path))
            gone = _rename(above, path)
        files.remove_tree(gone)
        _remove(doomed)


@contextlib.contextmanager
def _held(path: str, how: int = fcntl.LOCK_EX) -> t.Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(above: str) -> t.Iterator[None]:
    """While one is begun nobody else looks for those that are not held. Not for long: others wait."""
    os.makedirs(_home(above), mode=0o700, exist_ok=True)
    with _held(_home(above)):
        yield


def _rename(above: str, path: str) -> str:
    doomed = f"{_home(above)}/{_DOOMED}{os.urandom(8).hex()}"
    os.rename(path, doomed)
    return doomed


def _put_aside(above: str, held: contextlib.ExitStack) -> list[str]:
    """Rename those that nobody holds, so that their places are free, and hold them until they are removed."""
    found = []
    for name in os.listdir(_home(above)):
        path = f"{_home(above)}/{name}"
        with contextlib.suppress(OSError):
            held.enter_context(_held(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            found.append(path if name.startswith(_DOOMED) else _rename(above, path))
    return found


def _remove(doomed: t.Sequence[str]) -> None:
    for path in doomed:
        # One that has something mounted in it stays until somebody looks again.
        with contextlib.suppress(OSError, HostError):
            files.remove_tree(path)
