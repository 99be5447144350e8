# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Signs of life for systemd, which kills a service that gives none (``WatchdogSec``, sd_notify(3)).

For a process that was stopped as a whole (by a signal, by a debugger), or waits for something that hangs and has no
limit of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import typing as t


def begin(answers: t.Callable[[], bool]) -> None:
    """Give signs of life until the process ends, as often as systemd wants them; none where it does not ask, nor as
    long as what the process waits for does not answer."""
    # Taken out: what is started from here (runc, for one) would use it as its own.
    where, limit = os.environ.pop("NOTIFY_SOCKET", ""), os.environ.pop("WATCHDOG_USEC", "")
    if where and limit:
        threading.Thread(target=_go_on, args=(where, int(limit) / 1e6 / 4, answers), daemon=True).start()


def _go_on(where: str, pause_s: float, answers: t.Callable[[], bool]) -> None:
    address = "\0" + where[1:] if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        while True:
            if answers():
                # While systemd starts itself anew nobody listens.
                with contextlib.suppress(OSError):
                    notify.sendto(b"WATCHDOG=1", address)
            time.sleep(pause_s)
