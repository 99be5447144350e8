# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers are started at the end of a move: those that it has ended, and those that would run without it."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import container_units, files, freezer, movedir
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

JOURNAL = {"name": "web", "move_id": "m1", "boot_id": "now", "running": True}
INACTIVE, FAILED, ACTIVE = "inactive dead", "failed failed", "active running"
AGAIN, ENDING = "activating auto-restart", "deactivating stop-post"


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., bool]:
    """Ends a move while the unit shows one state after the other; whether the container was started."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(container_units, "_WANTS", str(tmp_path / "wants"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "now")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def made(*states: str, populated: bool = False, **journal: t.Any) -> bool:
        monkeypatch.setattr(freezer, "populated", lambda cgroup: populated)
        coming, started = list(states), []

        def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
            text = ""
            if argv[1] == "show":
                active, sub = coming.pop(0).split()
                text = f"Id={paths.unit_name('web')}\nActiveState={active}\nSubState={sub}\n"
            else:
                assert list(argv) == ["systemctl", "start", paths.unit_name("web")]
                started.append(argv)
            return CommandResult(tuple(argv), 0, text)

        done = container_units.start_again(Host(run=run), {**JOURNAL, **journal})
        assert not coming
        assert bool(started) is done
        return done

    return made


Ends = t.Callable[..., bool]


@pytest.mark.parametrize(
    ("states", "started"),
    [
        ([INACTIVE], False),
        ([FAILED], False),
        ([AGAIN], True),
        ([ACTIVE, ENDING, INACTIVE], False),
        ([ENDING, AGAIN], True),
    ],
)
def test_what_ended_by_itself_is_left_to_its_restart_policy(ends: Ends, states: list[str], started: bool) -> None:
    assert ends(*states) is started


@pytest.mark.parametrize(("move_id", "started"), [("m1", True), ("m0", False)], ids=["of this move", "of another one"])
def test_what_was_turned_away_during_the_move_is_started(ends: Ends, move_id: str, started: bool) -> None:
    files.write_json(paths.turned_away_file("web"), {"move_id": move_id})
    assert ends(INACTIVE) is started


def test_what_the_move_has_ended_is_started(ends: Ends) -> None:
    assert ends(INACTIVE, anew=True)
    assert ends(ACTIVE, INACTIVE, anew=True, boot_id="before")


@pytest.mark.parametrize("enabled", [True, False])
def test_after_a_boot_what_starts_with_the_host_is_started(ends: Ends, enabled: bool) -> None:
    container_units.enable("web", enabled)
    assert ends(INACTIVE, boot_id="before") is enabled


def test_nothing_is_started_that_did_not_run_or_runs(ends: Ends) -> None:
    assert not ends(running=False, anew=True)
    assert not ends(populated=True, anew=True)
