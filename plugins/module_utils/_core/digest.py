# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""One digest over a set of files, computed alike on the controller and on a host."""

from __future__ import annotations

import hashlib
import typing as t


def files_digest(files: t.Mapping[str, str]) -> str:
    """A sha256 over names and contents: equal digests mean equal files."""
    total = hashlib.sha256()
    for path, text in sorted(files.items()):
        total.update(f"{path}\0{hashlib.sha256(text.encode()).hexdigest()}\n".encode())
    return total.hexdigest()
