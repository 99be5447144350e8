# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The files of a guest that is moved to this host, in places where others have files, too.

Each is made under a name beside its place that is this move's alone, and gets its own name only where nothing is
(link(2) replaces nothing). It has both until the move is over. What lies at a path is of the move as long as it is the
file of that other name, so whenever the host stops, nothing stays that it has made, and nothing goes that it has not.
"""

from __future__ import annotations

import contextlib
import glob
import os
import time
import typing as t

from .._core import paths
from .._core.errors import PeerError, Refused
from . import disks, files
from .system import host_error

# Who claims paths is done in a moment.
_CLAIM_S = 10.0


def claim(journal: dict[str, t.Any], coming: t.Sequence[str]) -> None:
    """Note in the journal of a move which files it is to make (``own``). Refused when another move to this host is to
    make one of them: both have looked, and nothing was there."""
    name, end = journal["name"], time.monotonic() + _CLAIM_S
    with files.lock(
        f"{paths.RUN}/arriving.lock", f"a move of {name} to this host", waits=lambda: time.monotonic() < end
    ):
        for other in _moves_here(name):
            taken = {place for path in other.get("own", ()) for place in files.places(path)}
            for path in coming:
                if taken & files.places(path):
                    raise Refused(
                        f"disks: {path} is to be a file of {other['name']}, which is being moved to this host, too.",
                        hint="Give one of them another path.",
                    )
        journal["own"] = list(coming)
        files.write_json(paths.journal_file(name), journal)


def _moves_here(but: str) -> list[dict[str, t.Any]]:
    """The journals of the moves to this host, but for that of one workload."""
    found = []
    for path in sorted(glob.glob(f"{glob.escape(paths.WORKLOADS)}/*/move.json")):
        if path != paths.journal_file(but):
            journal = files.read_json(path) or {}
            found += [journal] if journal.get("role") == "target" else []
    return found


def beside(move_id: str, path: str) -> str:
    """The name under which a move makes what is to be at ``path``."""
    return disks.temporary(f"{os.path.dirname(path)}/{move_id}-{os.path.basename(path)}")


def is_of(move_id: str, path: str) -> bool:
    """Whether what lies at ``path`` was made by a move that is not over."""
    try:
        return os.path.samestat(os.lstat(path), os.lstat(beside(move_id, path)))
    except FileNotFoundError:
        return False


def check_new(move_id: str, path: str) -> None:
    """PeerError when it has come already: what was made cannot be made anew."""
    if is_of(move_id, path):
        raise PeerError(f"{path} has come already.")


def publish(move_id: str, path: str) -> None:
    """Give a file that is whole its own name, and make that last. Refused where something is by now."""
    _link(beside(move_id, path), path)
    files.sync_dir(os.path.dirname(path))


def check_publish(move_id: str, path: str) -> None:
    """HostError where a file that lies beside its place could not get its own name: it is known before all of it is
    sent."""
    made = beside(move_id, path)
    files.remove_unfinished(made)
    # Who ends a move that was cut off here removes this one, too.
    _link(made, f"{made}.new")
    files.remove_unfinished(made)


def _link(made: str, path: str) -> None:
    try:
        disks.link_new(made, path)
    except OSError as error:
        raise host_error(error) from error


def remove(move_id: str, path: str) -> None:
    """Remove what a move has made at ``path``, and beside it."""
    if is_of(move_id, path):
        # First and for good: without the other name nobody could tell whose it is.
        files.remove_file(path, durable=True)
    made = beside(move_id, path)
    files.remove_unfinished(made)
    files.remove_file(disks.temporary(made))
    # For good, too: once the move is over nobody looks for it.
    files.remove_file(made, durable=True)


def keep(move_id: str, path: str) -> None:
    """The move is over: it has its own name alone, also after a power cut. With another one its space would stay in use
    when it is removed."""
    # Storage that fails must keep no move from its end.
    with contextlib.suppress(OSError):
        files.remove_file(beside(move_id, path), durable=True)
