# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What is written down of disk images wherever they lie: of what one was made, and where one may rest on another.

A record is believed only as far as the file that lies there now bears it out: users replace, move and remove images.
"""

from __future__ import annotations

import hashlib
import os
import typing as t

from .._core import paths
from . import files, mounts

SCHEMA = 1


def _file(path: str) -> str:
    return f"{paths.DISK_RECORDS}/{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def last(path: str) -> dict[str, t.Any]:
    """What the image was made of that was made here last; another file may lie there now."""
    return files.read_json(_file(path)) or {}


def _borne_out(known: dict[str, t.Any], path: str) -> dict[str, t.Any]:
    try:
        return known if known.get("inode") == os.lstat(path).st_ino else {}
    except OSError:
        return {}


def of(path: str) -> dict[str, t.Any]:
    """What an image was made of; empty when that is not known of the file that lies there now."""
    return _borne_out(last(path), path)


def write(path: str, kind: str, made_of: str) -> None:
    """Write down what the image that lies there now was made of."""
    value = {"path": path, "format": kind, "inode": os.lstat(path).st_ino, "made_of": made_of}
    files.write_json(_file(path), {"schema": SCHEMA, **value})


def note(path: str) -> None:
    """Write down that an image lies there. It says nothing of what that was made of, nor takes the place of what
    does."""
    if not last(path):
        files.write_json(_file(path), {"schema": SCHEMA, "path": path})


def forget(path: str) -> None:
    """Of an image that is removed nothing stays."""
    files.remove_file(_file(path))


def layered(away: mounts.Away = mounts.NOTHING) -> list[str]:
    """Where images may lie that rest on others. Not those that were made raw: what they begin with their guests have
    written. A file that is gone stays among them, since its file system may come back. Nor those that are ``away``."""
    found = []
    try:
        listing = os.listdir(paths.DISK_RECORDS)
    except FileNotFoundError:
        return []
    for name in listing:
        known = (files.read_json(f"{paths.DISK_RECORDS}/{name}") if name.endswith(".json") else None) or {}
        path = str(known.get("path") or "")
        if path and away.real(path) and _borne_out(known, path).get("format") != "raw":
            found.append(path)
    return sorted(found)
