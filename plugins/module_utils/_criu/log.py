# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""CRIU's logs: the first line that says what went wrong (a runtime only says 'type NOTIFY errno 0')."""

from __future__ import annotations

import re

# A log has the time before it, and the process where one is at work; what a check prints has neither.
_ERROR = re.compile(r"^(?:\([0-9.]+\)\s*)?(?:\d+: )?Error \(([^)]*)\):\s*(.*)$")
# The first is printed where root lacks CAP_SYS_RESOURCE, and CRIU goes on; the second says that a helper process ended
# badly, and what it said comes after; after the third, CRIU copies a deleted file that it cannot link.
_HARMLESS = ("rlimit: Can't setup RLIMIT_NOFILE", "exited, status=", "trim failed: ")

# What users can do about the errors they meet most.
_ADVICE = (
    ("Can't lookup mount=", "A file from outside the container is open in it (its output or a socket?)."),
    ("Can't dump half of stream unix connection", "A process holds a UNIX socket whose other end is outside."),
    ("tty:", "A terminal from outside is open in the container; close sessions made with 'runc exec -t'."),
    ("Can't find tty", "A terminal from outside is open in the container; close sessions made with 'runc exec -t'."),
    ("in-flight connection", "A TCP connection was just being opened; try again."),
    ("io_uring", "A process uses io_uring, which CRIU cannot dump."),
    ("Unsupported proto 262", "A process has an MPTCP socket. Stop and start the container: it gets TCP instead."),
    (
        "Can't link link_remap",
        "A deleted file that is still open has another name; restart what uses it, or try again.",
    ),
    ("Can't dump that handle", "A file or directory is watched (inotify) whose name CRIU did not find; try again."),
    ("Unsupported", "The container uses something that CRIU cannot dump."),
    ("is ghost", "A deleted file that is still open is larger than CRIU copies."),
    ("Can't dump ghost file", "A deleted file that is still open is larger than CRIU copies."),
    ("File .* has bad size", "The root file system on the target differs from the source's."),
    ("bad build-id", "The root file system on the target differs from the source's."),
    ("Can't bind inet socket", "The container's address is missing in the target's network namespace."),
    ("Can't get 1:16 opt", "This CRIU is too old for the kernel; install 4.2 or newer."),
    ("No space left on device", "There is no space for the checkpoint."),
)


def first_error(text: str, *, place: bool = True) -> str:
    """The message of the first real ``Error`` line, '' where there is none; ``place``: with where in CRIU's source."""
    for line in text.splitlines():
        found = _ERROR.match(line)
        if found and not found.group(2).startswith(_HARMLESS):
            return found.group(2).strip() + (f" ({found.group(1)})" if place else "")
    return ""


def advice(error: str) -> str:
    """What to do about an error of CRIU, '' where nothing is known."""
    return next((text for pattern, text in _ADVICE if re.search(pattern, error, re.IGNORECASE)), "")
