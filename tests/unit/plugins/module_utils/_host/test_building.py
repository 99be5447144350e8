# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made beside its place, and what is left of it by who was killed."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import building


def left_by_the_dead(above: Path, label: str) -> Path:
    """As a process leaves it that is killed while it makes one."""
    child = os.fork()
    if child == 0:
        with building.directory(str(above), label) as place:
            Path(place, "disk.qcow2").write_text("a part")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = above / "building" / label
    assert (left / "disk.qcow2").exists()
    return left


def test_it_is_fresh_and_goes_at_the_end(tmp_path: Path) -> None:
    with building.directory(str(tmp_path), "web") as place:
        assert (place, os.listdir(place)) == (f"{tmp_path}/building/web", [])
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
        Path(place, "disk.qcow2").write_text("x")
    assert os.listdir(tmp_path / "building") == []


def test_what_was_renamed_stays(tmp_path: Path) -> None:
    with building.directory(str(tmp_path), "web") as place:
        os.rename(place, tmp_path / "made")
    assert sorted(os.listdir(tmp_path)) == ["building", "made"]


def test_what_another_one_makes_in_its_place_stays(tmp_path: Path) -> None:
    with building.directory(str(tmp_path), "web") as place:
        os.rename(place, tmp_path / "made")
        os.mkdir(place)
    assert os.path.isdir(place)


@pytest.mark.parametrize("label", ["web", "other"])
def test_what_the_dead_have_left_goes_with_the_next_one(tmp_path: Path, label: str) -> None:
    """Whatever that is called."""
    left = left_by_the_dead(tmp_path, "web")
    with building.directory(str(tmp_path), label) as place:
        assert os.listdir(place) == []
        assert os.listdir(left.parent) == [label]


def test_what_the_dead_have_left_is_removed(tmp_path: Path) -> None:
    left = left_by_the_dead(tmp_path, "web")
    building.remove_unfinished(str(tmp_path))
    assert not left.exists()


def test_what_is_being_made_is_let_be(tmp_path: Path) -> None:
    with building.directory(str(tmp_path), "web") as place:
        building.remove_unfinished(str(tmp_path))
        with building.directory(str(tmp_path), "other"):
            assert os.path.isdir(place)
        with pytest.raises(Refused, match="in use"), building.directory(str(tmp_path), "web"):
            pytest.fail("two are at one")
        assert os.path.isdir(place)


def test_where_nothing_was_ever_made(tmp_path: Path) -> None:
    building.remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_discarding(tmp_path: Path) -> None:
    """It also ends what was cut off before."""
    (tmp_path / "sha256/x").mkdir(parents=True)
    (tmp_path / "building/removed-x").mkdir(parents=True)
    building.discard(str(tmp_path), str(tmp_path / "sha256/x"))
    assert (os.listdir(tmp_path / "sha256"), os.listdir(tmp_path / "building")) == ([], [])
