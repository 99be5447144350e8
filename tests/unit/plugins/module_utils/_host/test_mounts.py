# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may hang is told by mount points."""

from __future__ import annotations

import os
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import files, mounts

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /srv/nfs rw shared:2 - autofs systemd-1 rw,fd=60
55 40 0:42 / /srv/nfs rw shared:3 master:7 - nfs4 192.0.2.1:/srv rw
56 22 0:43 / /mnt/two\\040words rw - cifs //192.0.2.1/a rw
57 22 0:44 / /mnt/local rw - nfs 192.0.2.1:/b rw
58 57 8:2 / /mnt/local rw - ext4 /dev/sdb1 rw
59 22 0:45 / /mnt/own rw - nfs 192.0.2.1:/c rw
"""


def test_of_several_mounts_at_one_point_the_last_is_seen() -> None:
    assert mounts.kinds_at(MOUNTINFO) == {
        "/": "ext4", "/srv/nfs": "nfs4", "/mnt/two words": "cifs", "/mnt/local": "ext4", "/mnt/own": "nfs",
    }  # fmt: skip


def test_what_one_has_there_is_not_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By whichever way."""
    monkeypatch.setattr(files, "read_mounts", lambda: MOUNTINFO)
    points = ("/", "/srv/nfs", "/mnt/two words", "/mnt/local", "/mnt/own")

    def left_out(*own: str) -> list[str]:
        away = mounts.away_from(own)
        return [point for point in points if away.begins_at(point)]

    assert left_out("/mnt/own/a") == ["/srv/nfs", "/mnt/two words"]
    assert left_out("/mnt/owner/a") == ["/srv/nfs", "/mnt/two words", "/mnt/own"]
    (tmp_path / "link").symlink_to("/srv/nfs/a/b")
    assert left_out(str(tmp_path / "link")) == ["/mnt/two words", "/mnt/own"]
    # With its root from a server it has nothing that is elsewhere.
    monkeypatch.setattr(files, "read_mounts", lambda: "22 1 0:42 / / rw - nfs 192.0.2.1:/ rw\n")
    assert left_out("/a") == []


def test_what_leads_to_a_disk_of_this_host_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there may rest on what goes."""
    nested = f"{MOUNTINFO}60 59 8:3 / /mnt/own/data rw - ext4 /dev/sdc1 rw\n"
    monkeypatch.setattr(files, "read_mounts", lambda: nested)
    away = mounts.away_from([])
    assert [away.begins_at(point) for point in ("/mnt/own", "/mnt/own/data", "/srv/nfs")] == [False, False, True]


def test_where_a_path_leads_is_told_as_ever_but_for_what_is_away(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "far").symlink_to(real)
    (tmp_path / "gone").symlink_to(tmp_path / "away/x")
    (tmp_path / "round").symlink_to("round")
    away = mounts.Away({f"{tmp_path}/away"})
    for path in ("link/../x", "far/deep/./y", "none/../far", "far//deep/", "link", "awaymore/z", "..", "far/.."):
        assert away.real(f"{tmp_path}/{path}") == os.path.realpath(f"{tmp_path}/{path}")
    assert [away.real(f"{tmp_path}/{path}") for path in ("away", "away/x", "link/../../away", "gone")] == [""] * 4
    assert away.real(f"{tmp_path}/round/a") == f"{tmp_path}/round/a", "whoever opens that is told why he cannot"
    assert mounts.NOTHING.real(f"{tmp_path}/gone") == f"{tmp_path}/away/x"
    assert away.real("/") == "/"


def test_storage_that_does_not_answer_is_told_once_the_way_leads_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is asked once. That it cannot say is an answer, too."""
    monkeypatch.setattr(files, "read_mounts", lambda: MOUNTINFO)
    asked, end = [], threading.Event()

    def statvfs(point: str) -> t.Any:
        asked.append(point)
        if point == "/srv/nfs":
            end.wait(20)
        raise OSError

    monkeypatch.setattr(os, "statvfs", statvfs)
    (tmp_path / "link").symlink_to("/srv/nfs/a")
    away = mounts.silent()
    assert away.real(str(tmp_path)) == str(tmp_path)
    assert asked == []
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "_ANSWER_S", 0.05)
        assert [away.real(path) for path in ("/srv/nfs/b", f"{tmp_path}/link")] == ["", ""]
    assert [away.real(path) for path in ("/mnt/own/c", "/mnt/own/d")] == ["/mnt/own/c", "/mnt/own/d"]
    assert asked == ["/srv/nfs", "/mnt/own"]
    end.set()
    monkeypatch.setattr(files, "read_mounts", lambda: "40 22 0:35 / /srv/later rw - autofs systemd-1 rw\n")
    mounts.silent().real("/srv/later/a")
    assert asked[2:] == ["/srv/later"]
    monkeypatch.setattr(files, "read_mounts", lambda: "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert mounts.silent() is mounts.NOTHING
