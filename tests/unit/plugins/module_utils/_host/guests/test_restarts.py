# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that is off for a change is started again."""

from __future__ import annotations

import errno
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_power, guest_restarts, movedir
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors

from ..fake_domains import FakeConnection, FakeError
from ..killing import Killed
from .bring import WEB, bring, cut, foreign, one

CHANGE = {**WEB, "state": "present", "machine": "pc"}


def stopped_and_killed(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, step: str, item: dict[str, t.Any], **options: t.Any
) -> None:
    """A run that is to change it with a restart, and is killed before this step."""
    with monkeypatch.context() as patch:
        if step == "define":
            patch.setattr(connection, "defineXML", cut)
        patch.setattr(connection.domains[item["name"]], "createWithFlags", cut)
        with pytest.raises(Killed):
            bring(item, restart_on_change=True, **options)
    assert connection.domains[item["name"]].live is None


@pytest.mark.parametrize("step", ["define", "start"])
@pytest.mark.parametrize("state", ["running", "paused"])
@pytest.mark.parametrize("again", ["the same", "its state alone", "without a restart"])
def test_one_that_was_stopped_for_a_change_is_started_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, step: str, state: str, again: str
) -> None:
    bring({**WEB, "state": state})
    stopped_and_killed(connection, monkeypatch, step, CHANGE)
    item = {"name": "web", "state": "present"} if again == "its state alone" else CHANGE
    planned = one(item, check_mode=True)["actions"]
    result = one(item, restart_on_change=again == "the same")
    assert (result["state"], result["actions"]) == (state, planned)
    assert not (place / "workloads/web/restart.json").exists()
    # That is over: whoever shuts it down now wants it off.
    connection.domains["web"].destroy()
    assert one(CHANGE, restart_on_change=True)["state"] == "stopped"


def test_so_is_one_that_was_taken_over(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(connection)
    connection.domains["old"].createWithFlags(0)
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "machine": "q35", "state": "present"}
    stopped_and_killed(connection, monkeypatch, "define", wanted, adopt=True)
    assert one(wanted, adopt=True)["state"] == "running"


@pytest.mark.parametrize(
    "since", ["it was stopped by name", "it was started and shut down", "it was seen to run", "the host was booted"]
)
def test_one_that_is_off_for_another_reason_by_now_stays_off(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    bring(WEB)
    log = place / "qemu_logs/web.log"
    log.parent.mkdir()
    first = "2026-01-01 10:00:00.000+0000: starting up libvirt version: 10.0.0\nchar device redirected\n"
    log.write_text(first)
    stopped_and_killed(connection, monkeypatch, "start", CHANGE)
    each = connection.domains["web"]
    if since == "it was stopped by name":
        assert not bring({"name": "web", "state": "stopped", "autostart": True})["changed"]
    elif since == "it was started and shut down":
        log.write_text(f"{first}{first.replace('10:00', '11:00')}2026-01-01 11:01:00.000+0000: shutting down\n")
    elif since == "it was seen to run":
        each.createWithFlags(0)
        assert not bring(CHANGE)["changed"]
        each.shutdown()
    else:
        monkeypatch.setattr(movedir, "boot_id", lambda: "another one")
    result = bring(CHANGE, restart_on_change=True)
    assert (result["changed"], each.live) == (False, None)
    assert not (place / "workloads/web/restart.json").exists()


@pytest.mark.parametrize("room", [True, False])
def test_one_that_could_not_be_started_again_is_told_and_started_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    bring(WEB, {**WEB, "name": "db"})
    log = place / "qemu_logs/db.log"
    log.parent.mkdir()

    def full(*args: t.Any) -> t.NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    def start(flags: int) -> t.NoReturn:
        if room:
            # It got so far that libvirt has written it down.
            log.write_text("2026-01-01 11:00:00.000+0000: starting up libvirt version: 10.0.0\n")
        else:
            patch.setattr(guest_restarts, "note", full)
        raise FakeError(errors.INTERNAL_ERROR, "no memory")

    with monkeypatch.context() as patch:
        patch.setattr(connection.domains["db"], "createWithFlags", start)
        patch.setitem(connection.fails, "web", FakeError(errors.XML_ERROR, "no"))
        with pytest.raises(HostError, match=r"define the guest 'web'.* not started again: db\. .*no memory") as caught:
            bring(CHANGE, {**CHANGE, "name": "db"}, restart_on_change=True)
    assert caught.value.details["not_started"] == ["db"]
    assert (connection.domains["web"].live is None, connection.domains["db"].live is None) == (False, True)
    assert one({"name": "db", "state": "present"})["state"] == "running"


def test_nothing_is_told_of_one_that_has_not_stopped(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)

    def fail(*args: t.Any) -> t.NoReturn:
        raise HostError("There is no room left.")

    def running(flags: int) -> t.NoReturn:
        raise FakeError(errors.OPERATION_INVALID, "domain is already running")

    monkeypatch.setattr(guest_power, "stop", fail)
    monkeypatch.setattr(connection.domains["web"], "createWithFlags", running)
    with pytest.raises(HostError) as caught:
        bring(CHANGE, restart_on_change=True)
    assert str(caught.value) == "There is no room left."


@pytest.mark.parametrize("before", ["its turn", "it was stopped"])
def test_one_that_has_not_stopped_for_its_change_is_not_started_later(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Its owner turns it off: the next run leaves it so."""
    bring(WEB)
    each = connection.domains["web"]
    each.obeys = False
    item = {**CHANGE, "stop_timeout_s": 0}

    def fail(*args: t.Any) -> t.NoReturn:
        raise HostError("There is no room left.")

    with monkeypatch.context() as patch:
        if before == "it was stopped":
            patch.setattr(guest_power, "stop", fail)
        with pytest.raises(HostError, match="did not stop" if before == "its turn" else "no room"):
            bring(item, restart_on_change=True)
    assert each.live is not None
    assert not (place / "workloads/web/restart.json").exists()
    each.destroy()
    assert one(item, restart_on_change=True)["state"] == "stopped"
