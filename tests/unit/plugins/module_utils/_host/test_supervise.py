# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is answered when it starts a container: it has one place, and in a move no other starts it by chance."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import container_parts, files, supervise
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

UNIT = Path(__file__).parents[5] / "roles/host_bootstrap/files/cnvm-container@.service"


class Started(Exception):
    """It got as far as that."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that owns ``web``."""

    def started(name: str) -> None:
        raise Started(name)

    for name in ("WORKLOADS", "RUN", "HOST_FILE"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
    monkeypatch.setattr(supervise, "enter_cgroups", started)
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    own("S", "host1")
    return Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0), stdout=io.BytesIO(), stderr=io.BytesIO())


def own(owner: str, name: str) -> None:
    """Who has it."""
    files.write_json(paths.owner_file("web"), records.owner_record("web", "u", owner, name, 3))


def start(host: Host) -> int:
    """What systemd does."""
    return supervise.commands()["container"](["run", "web"], host)


def end_of_start(host: Host) -> int:
    """How the process ends by which systemd starts it, as ``os.waitpid`` says it."""
    child = os.fork()
    if child == 0:
        try:
            start(host)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def kept_back(host: Host) -> bool:
    """Whether systemd leaves it alone from now on."""
    status = end_of_start(host)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == supervise.NOT_HERE


def test_it_is_started_where_it_is(host: Host, tmp_path: Path) -> None:
    with pytest.raises(Started):
        start(host)
    own("T", "host2")
    with (tmp_path / "stderr").open("wb") as stderr:
        assert kept_back(host._replace(stderr=stderr))
    assert "it is at host2" in (tmp_path / "stderr").read_text(encoding="utf-8")


def test_no_exit_code_of_a_container_keeps_it_back() -> None:
    """The runtime ends with the code of the container's first process, any of 0 to 255."""
    unit = dict(line.partition("=")[::2] for line in UNIT.read_text(encoding="utf-8").splitlines())
    assert unit["RestartPreventExitStatus"] == signal.Signals(supervise.NOT_HERE).name
    # 143: the runtime was asked to end.
    assert unit["SuccessExitStatus"].split() == [unit["RestartPreventExitStatus"], "143"]


@pytest.mark.parametrize(
    ("role", "state", "mode", "may"),
    [
        ("source", records.SOURCE_BEGUN, "stop_copy", True),
        # Nobody is at work on it: this host has lost power, and the other one may have been told to go on meanwhile.
        ("source", records.SOURCE_FROZEN, "stop_copy", False),
        ("source", records.SOURCE_LEAVING, "stop_copy", False),
        ("source", records.SOURCE_FROZEN, records.CHECKPOINT, True),
        ("target", records.TARGET_ACTIVE, "stop_copy", False),
        ("target", records.TARGET_ACTIVE, "cold", True),
    ],
)
def test_what_stood_still_in_a_move_is_started_by_its_recovery(
    host: Host, role: str, state: str, mode: str, may: bool
) -> None:
    owner = files.read_json(paths.owner_file("web"))
    assert owner
    files.write_json(paths.journal_file("web"), records.journal(role, state, "m1", owner, "host2", "T", mode, "old"))
    if may:
        with pytest.raises(Started):
            start(host)
    else:
        assert kept_back(host)
    # So its end knows that systemd wanted to have it run.
    assert (files.read_json(paths.turned_away_file("web")) or {}).get("move_id") == (None if may else "m1")


@pytest.mark.parametrize(
    ("word", "number"), [("TERM", signal.SIGTERM), ("PWR", signal.SIGPWR), ("RTMIN+3", signal.SIGRTMIN + 3)]
)
def test_the_signal_that_asks_it_to_end(word: str, number: int, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signal: sent.append((pid, signal)))
    monkeypatch.setattr(container_parts, "init_pid", lambda definition: 0 if sent else 7)
    monkeypatch.setattr(container_parts, "frozen", lambda name: False)
    files.write_json(paths.definition_file("web"), {"name": "web", "stop_signal": word})
    assert supervise.commands()["container"](["stop", "web"], host) == 0
    assert sent == [(7, number)]
