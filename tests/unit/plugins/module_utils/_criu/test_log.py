# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first line of a CRIU log that says what went wrong; the logs are CRIU 4.2.1's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._criu import log

IN_FLIGHT = """\
(00.000700) ========================================
(00.000701) Dumping processes (pid: 6291 comm: python3)
(00.000702) ========================================
(00.000711) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.047780) 6291 fdinfo 5: pos:                0 flags:                2/0x1
(00.047782) sockets: Searching for socket 0x7c3255 family 2
(00.047783) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 7c3255
(00.047784) Error (criu/sk-inet.c:186): inet: In-flight connections can be ignored with the --skip-in-flight option.
(00.047789) Error (criu/cr-dump.c:1545): Dump files (pid: 6291) failed with -1
(00.059462) Error (criu/cr-dump.c:1975): Dumping FAILED.
"""
TERMINAL = """\
(00.000711) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.035543) unix: Dumping external sockets
(00.035547) Error (criu/tty.c:410): tty: Found slave peer index 0 without correspond master peer
(00.056885) Error (criu/cr-dump.c:1975): Dumping FAILED.
"""
NOTHING_THERE = """\
(00.004045) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.004060) Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)
"""
WELL = """\
(00.000751) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.013847) Warn  (criu/cr-restore.c:1050): Set CLONE_PARENT | CLONE_NEWPID but it might cause restore problem
(00.210551) Restore finished successfully. Tasks resumed.
"""
DELETED = """\
(00.184541) Error (criu/files-reg.c:1165): trim failed: @link_remap.17@
(00.184543) Unable to link-remap /usr/bin/perl on overlayFS, fall back to dump_ghost_remap
(00.184544) Dumping ghost file for fd 24 id 0x10
(00.184548) Error (criu/files-reg.c:1031): Can't dump ghost file /usr/bin/perl of 536870912 size, increase limit
"""
LINKED = "(00.17)      1: Error (criu/files-reg.c:2258): Can't link link_remap.15 -> a: No such file or directory\n"
WATCHED = "(00.20) Error (criu/fsnotify.c:286): fsnotify: \tCan't dump that handle\n"
IN_A_PROCESS = "(00.123456)      1: Error (criu/files-reg.c:2216): File usr/bin/x has bad size 4 (expect 5)\n"


@pytest.mark.parametrize(
    ("text", "error", "advice"),
    [
        (IN_FLIGHT, "inet: In-flight connection (l) for 7c3255 (criu/sk-inet.c:185)", "try again"),
        (
            TERMINAL,
            "tty: Found slave peer index 0 without correspond master peer (criu/tty.c:410)",
            "A terminal from outside",
        ),
        (
            "(00.026522) Error (criu/sk-inet.c:130): inet: Unsupported proto 262 for socket 2f9bc5\n",
            "inet: Unsupported proto 262 for socket 2f9bc5 (criu/sk-inet.c:130)",
            "MPTCP",
        ),
        (
            DELETED,
            "Can't dump ghost file /usr/bin/perl of 536870912 size, increase limit (criu/files-reg.c:1031)",
            "larger than CRIU copies",
        ),
        (LINKED, "Can't link link_remap.15 -> a: No such file or directory (criu/files-reg.c:2258)", "try again"),
        (WATCHED, "fsnotify: \tCan't dump that handle (criu/fsnotify.c:286)", "try again"),
        (NOTHING_THERE, "Unexpected EOF on (empty-image) (criu/protobuf.c:72)", ""),
        (IN_A_PROCESS, "File usr/bin/x has bad size 4 (expect 5) (criu/files-reg.c:2216)", "differs from the source"),
        (WELL, "", ""),
        ("", "", ""),
    ],
)
def test_first_error_and_what_to_do(text: str, error: str, advice: str) -> None:
    assert log.first_error(text) == error
    found = log.advice(error)
    assert advice in found
    assert bool(advice) == bool(found)


def test_without_the_place() -> None:
    assert log.first_error(IN_FLIGHT, place=False) == "inet: In-flight connection (l) for 7c3255"


def test_without_a_time() -> None:
    said = "Error (criu/cr-check.c:1): exited, status=1\nError (criu/cr-check.c:2): no kcmp\n"
    assert log.first_error(said, place=False) == "no kcmp"


@pytest.mark.parametrize("line", ["Error 5", "an Error (x.c:1): y", "(00.1) Warn (x.c:1): Error", "error (x.c:1): y"])
def test_what_is_no_error_line(line: str) -> None:
    assert log.first_error(line) == ""


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert isinstance(log.advice(log.first_error(text)), str)
