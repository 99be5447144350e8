# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRIU cannot dump, seen before anything is frozen."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._criu.commands import GHOST_LIMIT
from ansible_collections.cnvm.platform.plugins.module_utils._criu.holdings import (
    OpenFile,
    Process,
    nameless,
    scan_lines,
    shared_bytes,
)
from ansible_collections.cnvm.platform.plugins.module_utils._criu.obstacles import groups, mptcp_sockets, obstacles

ROOT = 40
APP, CONF, ODD, DEEP, TOP, ELSEWHERE = [(ROOT, number) for number in range(1, 6)] + [(7, 1)]
NAMES = {
    APP: ["/srv/my app"],
    CONF: ["/srv/my\tapp/conf", "/srv/my app/conf"],
    ODD: ["/srv/#1", "/srv/\udcff"],
    DEEP: ["/a/b/c"],
    TOP: ["/"],
}


def of(*files: OpenFile, **more: bool) -> tuple[str, ...]:
    return obstacles("web", [Process(7, "app", files=files, **more)], device=ROOT, names=NAMES)


def watching(*inodes: tuple[int, int]) -> OpenFile:
    return OpenFile("anon_inode:inotify", "other", watches=inodes)


@pytest.mark.parametrize(
    "file",
    [
        OpenFile("/dev/null", "char"),
        OpenFile("/dev/pts/0", "char"),
        OpenFile("/var/log/x", "file", GHOST_LIMIT * 9),
        OpenFile("/tmp/x (deleted)", "file", GHOST_LIMIT),
        OpenFile("socket:[5]", "other"),
        OpenFile("anon_inode:[eventpoll]", "other"),
        OpenFile("/memfd:buffer (deleted)", "memory", GHOST_LIMIT * 9),
        OpenFile("/usr/lib/libc.so.6 (deleted)", "file", 2 << 20, (ROOT, 99)),
        OpenFile("/srv/x", "file", inode=APP),
        OpenFile("/image/had/three (deleted)", "file", 5, CONF, links=3),
        watching(APP, CONF, DEEP, TOP, ELSEWHERE),
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
            "web: process 7 (app) uses the deleted file /tmp/x of 256 MiB; 256 MiB are the most. Restart it.",
        ),
        (
            OpenFile("/tmp/x (deleted)", "file", 5, DEEP),
            (
                "web: process 7 (app) uses /tmp/x, which was deleted but is still there as /a/b/c; CRIU"
                " cannot restore that. Restart it."
            ),
        ),
        (
            watching(APP, ODD, (ROOT, 99)),
            (
                "web: process 7 (app) watches 2 file(s) or directories (inotify) that CRIU cannot find by name: they"
                " were deleted, or have unusual characters. Restart it."
            ),
        ),
    ],
)
def test_files(file: OpenFile, said: str) -> None:
    assert of(file, file) == (said,)


def test_processes() -> None:
    assert "being traced" in of(traced=True)[0]
    assert "nested container" in of(foreign_pid_namespace=True)[0]
    assert "CAP_SYS_RESOURCE" in of(out_of_reach=True)[0]
    assert obstacles("web", [Process(1, "systemd")]) == ()
    assert "small init" in obstacles("web", [Process(1, "systemd", is_init=True)])[0]


def test_sockets_and_everything_at_once() -> None:
    init = Process(1, "systemd", is_init=True, traced=True)
    found = obstacles("web", [init], raw=2, packet=1, joined=("239.1.2.3", "ff02::fb"), mptcp=3)
    assert len(found) == 6
    assert found[2] == "web has 2 raw socket(s) open, which CRIU cannot dump."
    assert found[3] == "web has 1 packet socket(s) open, which CRIU cannot dump."
    assert found[4].startswith("web is in the multicast group 239.1.2.3, ff02::fb, and CRIU does not restore that")
    assert found[5].startswith("web has 3 MPTCP socket(s) open, which CRIU cannot dump.")


IGMP = """Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
2\teth0      :     2      V3
\t\t\t\t030201EF     1 0:00000000\t\t1
\t\t\t\t6A0000E0     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0
"""
IGMP6 = """1    lo              ff020000000000000000000000000001     1 0000000C 0
2    eth0            ff0200000000000000000001ff000005     1 00000004 0
2    eth0            ff0200000000000000000000000000fb     1 00000004 0
2    eth0            ff010000000000000000000000000001     1 00000008 0
"""


def test_groups_that_programs_have_joined() -> None:
    assert groups(IGMP, IGMP6, "little") == ("239.1.2.3", "ff02::fb")
    assert groups("E0000001 1 0:00000000 0\nEF010203 1 0:00000000 1", "", "big") == ("239.1.2.3",)
    assert groups("", "", "little") == ()


def test_names_that_must_be_known() -> None:
    gone = [OpenFile("/x (deleted)", "file", inode=CONF), OpenFile("/y (deleted)", "file", inode=DEEP, links=0)]
    assert nameless([Process(7, "app", files=(watching(APP, ELSEWHERE), *gone))], ROOT) == {APP, CONF}


def test_what_is_watched_is_named_to_criu_the_deepest_first() -> None:
    one = Process(7, "app", files=(watching(APP, TOP, ODD), watching(CONF, ELSEWHERE)))
    assert scan_lines([one, Process(8, "b", files=(watching(APP, DEEP),))], NAMES) == (
        'irmap-scan-path "/a/b/c"',
        'irmap-scan-path "/srv/my app/conf"',
        'irmap-scan-path "/srv/my app"',
    )


def test_shared_memory_and_deleted_files_count_once() -> None:
    buffers = OpenFile("/dev/zero (deleted)", "memory", 100, (1, 5))
    library = OpenFile("/lib/x (deleted)", "file", 10, (ROOT, 5))
    plain = OpenFile("/lib/y", "file", 1000, (ROOT, 6))
    workers = [Process(pid, "postgres", files=(buffers, library, plain)) for pid in range(20)]
    assert (
        shared_bytes([*workers, Process(99, "app", files=(OpenFile("/memfd:a (deleted)", "memory", 1, (1, 6)),))])
        == 111
    )


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
