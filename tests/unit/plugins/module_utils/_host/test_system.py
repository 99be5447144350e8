# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel refuses, as it is told."""

from __future__ import annotations

import errno
import os

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import system


def told(number: int, *names: object) -> str:
    return str(system.host_error(OSError(number, os.strerror(number), *(names[:1] or (None,)), None, *names[1:])))


@pytest.mark.parametrize(
    ("number", "names", "message"),
    [
        (errno.ENOENT, ("/srv/a",), "/srv/a cannot be used: No such file or directory."),
        (errno.ENOTDIR, (b"/etc/passwd/a",), "/etc/passwd/a cannot be used: Not a directory. A file stands where "),
        (errno.EXDEV, ("/srv/a", "/mnt/a"), "/srv/a to /mnt/a cannot be used: Invalid cross-device link."),
        (errno.ENAMETOOLONG, ("/a",), "/a cannot be used: File name too long. Choose a shorter name."),
        (errno.EROFS, ("/a",), "/a cannot be used: Read-only file system. Its file system can only be read."),
        (errno.ENOSPC, (), "No space left on device. Make room "),
        (errno.EDQUOT, ("/a",), "/a cannot be used: Disk quota exceeded. Make room "),
    ],
)
def test_it_names_the_path_and_what_to_do(number: int, names: tuple[object, ...], message: str) -> None:
    assert told(number, *names).startswith(message)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_without_root_it_says_so(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert told(number, "/run/cnvm").endswith(" This needs root (become: true).")
    assert told(number).endswith(" This needs root (become: true).")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert told(number, "/run/cnvm") == f"/run/cnvm cannot be used: {os.strerror(number)}."


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "x"), OSError(errno.EBADF, "x", 7), OSError()])
def test_what_says_nothing_to_a_user_is_a_defect(error: OSError) -> None:
    with pytest.raises(OSError) as caught:
        system.host_error(error)
    assert caught.value is error
