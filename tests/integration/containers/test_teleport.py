# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container moves between hosts and its clients stay connected."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.tests.integration.hosts import (
    HERE,
    MEMORY_MIB,
    App,
    Client,
    Fleet,
    eventually,
    playbook,
)

PHASES = {
    "stop_copy": "preflight layer prepare freeze dump layer_rest restore commit activate finish",
    "post_copy": "preflight layer prepare freeze dump layer_rest restore commit activate drain finish",
    "cold": "preflight layer stop layer_rest commit activate finish",
}


def tells(result: dict, mode: str) -> None:
    """A move that succeeded says what was done when, and what went over the link."""
    assert (result["outcome"], result["mode"], result["plan"]["mode"]) == ("target", mode, mode), result
    assert result["generation"] > 1
    timeline = result["timeline"]
    phases = [one["phase"] for one in timeline["phases"] if one["phase"] != "image"]
    assert phases == PHASES[mode].split()
    assert all(one["ms"] >= 0 for one in timeline["phases"])
    starts = [one["start_ms"] for one in timeline["phases"]]
    assert starts == sorted(starts)
    assert 0 < result["frozen_ms"] < timeline["total_ms"]
    sent, memory = timeline["bytes"], MEMORY_MIB << 20
    assert sent["layer"] > 0
    if mode == "stop_copy":
        assert sent["checkpoint"] > memory
        assert result["criu"]["pages_written"] > 0
        assert result["criu"]["frozen_time"] > 0
    elif mode == "post_copy":
        assert 0 < sent["checkpoint"] < memory
    # Memory that the target fetches once it runs.
    assert (sent.get("pages", 0) > 0) == (mode == "post_copy")


@pytest.mark.parametrize("mode", ["stop_copy", "post_copy"])
def test_there_and_back(app: App, mode: str) -> None:
    """The first way also brings the image."""
    home = app.source()
    move = app.start(mode)
    tells(move.result(), mode)
    app.check(move.target, moves=1)
    assert app.move(mode) is home
    app.check(home, moves=2)


def test_there_and_back_with_crun(fleet: Fleet) -> None:
    """The other runtime, which has no post-copy."""
    app = App(fleet, "crun-app", "10.100.101.112")
    app.deploy(app_runtime="crun", app_ports=[])
    app.watch()
    try:
        assert "crun has no lazy pages" in app.start("post_copy").result()["error"]
        test_there_and_back(app, "stop_copy")
    finally:
        app.dismiss()
        playbook(str(HERE / "playbooks/remove.yml"), "-e", f"container={app.name}")


def test_cold(app: App) -> None:
    """It is stopped and started: its files come along, its connections end."""
    move = app.start("cold")
    tells(move.result(), "cold")
    app.check(move.target, moves=1, client=False)


def test_stopped(app: App) -> None:
    """It does not run there either, and starts there when it is told to."""
    home = app.source()
    away, unit = app.fleet.other(home), f"cnvm-container@{app.name}.service"
    home.run("systemctl", "stop", unit)
    assert app.start("cold", home).result()["outcome"] == "target"

    def ended() -> bool:
        return not any(seen["journal"] or seen["units"] for seen in (host.look(app.name) for host in app.movers))

    eventually("the move has ended on both hosts", ended)
    assert not away.look(app.name)["alive"]
    away.run("systemctl", "start", unit)
    app.settle(away)


def test_forwarded_port(app: App) -> None:
    """Who came through a port of the first host stays connected through it; who comes now is let in by the second."""
    source = app.source()
    before = Client(app.fleet["host3"], source.address, 8080)
    try:
        before.check()
        target = app.move()
        before.check()
        after = Client(app.fleet["host3"], target.address, 8080)
        try:
            after.check()
        finally:
            after.stop()
    finally:
        before.stop()
    app.check(target, moves=1)


def test_by_playbook(app: App) -> None:
    """What a user calls; again it changes nothing, and the play that deployed the container leaves it where it went."""
    target = app.fleet.other(app.source())
    command = ("cnvm.platform.teleport", "-e", f"container={app.name}", "-e", f"target={target.name}")
    first = playbook(*command)
    assert "changed=1" in first.stdout
    app.check(target, moves=1)
    assert "changed=1" not in playbook(*command).stdout
    app.check(target, moves=1)


def test_check_mode_changes_nothing(app: App) -> None:
    """It says what it would do, which depends on the hosts' kernels."""
    source = app.source()
    target = app.fleet.other(source)
    done = playbook("cnvm.platform.teleport", "-e", f"container={app.name}", "-e", f"target={target.name}", "--check")
    tracked = all(host.helper("info")["criu"]["features"]["mem_dirty_track"] for host in app.movers)
    mode = "pre_copy" if tracked else "stop_copy"
    assert f"{mode}: " in done.stdout, done.stdout
    app.check(source, moves=0)


def test_recover_has_nothing_to_do(app: App) -> None:
    """With no move under way."""
    source = app.source()
    assert "changed=1" not in playbook("cnvm.platform.recover").stdout
    app.check(source, moves=0)
