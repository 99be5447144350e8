# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRIU cannot dump, seen before anything is frozen."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._criu.obstacles import (
    GHOST_LIMIT,
    OpenFile,
    Process,
    mptcp_sockets,
    obstacles,
)


def of(*files: OpenFile, **more: bool) -> tuple[str, ...]:
    return obstacles("web", [Process(7, "app", files=files, **more)], 0, 0, 0)


@pytest.mark.parametrize(
    "file",
    [
        OpenFile("/dev/null", "char"),
        OpenFile("/dev/pts/0", "char"),
        OpenFile("/var/log/x", "file", GHOST_LIMIT * 9),
        OpenFile("/tmp/x (deleted)", "file", GHOST_LIMIT),
        OpenFile("socket:[5]", "other"),
        OpenFile("anon_inode:[eventpoll]", "other"),
    ],
)
def test_what_is_fine(file: OpenFile) -> None:
    assert of(file) == ()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (OpenFile("/dev/fuse", "char"), "web: process 7 (app) has the device /dev/fuse open."),
        (OpenFile("/dev/sda", "block"), "web: process 7 (app) has the device /dev/sda open."),
        (OpenFile("anon_inode:[io_uring]", "other"), "web: process 7 (app) uses io_uring, which CRIU cannot dump."),
        (
            OpenFile("/tmp/x (deleted)", "file", GHOST_LIMIT + 1),
            "web: process 7 (app) holds the deleted file /tmp/x of 1048577 bytes open; CRIU takes 1048576.",
        ),
    ],
)
def test_files(file: OpenFile, said: str) -> None:
    assert of(file, file) == (said,)


def test_processes() -> None:
    assert "being traced" in of(traced=True)[0]
    assert "nested container" in of(foreign_pid_namespace=True)[0]
    assert "CAP_SYS_RESOURCE" in of(out_of_reach=True)[0]
    assert obstacles("web", [Process(1, "systemd")], 0, 0, 0) == ()
    assert "small init" in obstacles("web", [Process(1, "systemd", is_init=True)], 0, 0, 0)[0]


def test_sockets_and_everything_at_once() -> None:
    found = obstacles("web", [Process(1, "systemd", is_init=True, traced=True)], 2, 1, 3)
    assert len(found) == 5
    assert found[2] == "web has 2 raw socket(s) open, which CRIU cannot dump."
    assert found[3] == "web has 1 packet socket(s) open, which CRIU cannot dump."
    assert found[4].startswith("web has 3 MPTCP socket(s) open, which CRIU cannot dump.")


def test_mptcp_is_counted_by_the_kernel() -> None:
    text = (
        "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh\n"
        "PACKET    1600      2      -1   NI       0   no   kernel      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n\n"
        "MPTCPv6   2064      1     229   no       0   yes  kernel      y  y  y  n  y  y  y  y  y  y  y  y  n  n  y  y\n"
        "MPTCP     1936      2     229   no       0   yes  kernel      y  y  y  n  y  y  y  y  y  y  y  y  n  n  y  y\n"
        "TCP       2560      9     229   no     320   yes  kernel      y  y  y  y  y  y  y  y  y  y  y  y  y  n  y  y\n"
    )
    assert mptcp_sockets(text) == 3
    assert mptcp_sockets("") == 0
