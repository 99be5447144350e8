# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""No more than so many MiB per second of what is sent: kept by who writes, so that others have the rest of the link."""

from __future__ import annotations

import time

from .._migrate import wire

# What was not sent in time is not made up for, but for so much: it evens out that a sleep lasts longer than was asked.
_SLACK_S = 0.1
# So little goes out at once where there is a limit; with the least one, 16 times in a second.
_PIECE = 1 << 16


class Limit:
    """For one stream; ``mib_s`` 0 is none. Not more than ``piece`` bytes are to be written at once."""

    def __init__(self, mib_s: int) -> None:
        self._rate = mib_s * 2**20
        self._due = time.monotonic()
        self.piece = _PIECE if mib_s else wire.CHUNK

    def sent(self, count: int) -> None:
        """So many bytes have gone out: returns when the next ones may."""
        if not self._rate:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _SLACK_S) + count / self._rate
        if self._due > now:
            time.sleep(self._due - now)
