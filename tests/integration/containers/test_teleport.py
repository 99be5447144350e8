# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container moves between hosts and its clients stay connected."""

from __future__ import annotations

import json

import pytest

from ansible_collections.cnvm.platform.tests.integration.hosts import (
    HERE,
    MEMORY_MIB,
    App,
    Client,
    Fleet,
    call,
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


def over(app: App) -> None:
    """Wait until a move has ended on both hosts, of a container that does not run."""

    def ended() -> bool:
        return not any(seen["journal"] or seen["units"] for seen in (host.look(app.name) for host in app.movers))

    eventually("the move has ended on both hosts", ended)


@pytest.mark.parametrize("mode", ["stop_copy", "post_copy"])
def test_there_and_back(app: App, mode: str) -> None:
    """The first way also brings the image. A process that was stopped still is."""
    home = app.source()
    move = app.start(mode)
    tells(move.result(), mode)
    app.check(move.target, moves=1)
    assert app.move(mode) is home
    app.check(home, moves=2)
    assert app.client
    states = [one["child"] for one in app.client.answers()]
    # CRIU lets go of one process after the other: the first may answer while it still traces the other one (t), or
    # while that waits for a processor to stop on (R). One that had gone on would have ended, and be Z from then on.
    assert set(states) <= {"T", "t", "R"}
    assert states[-1] == "T"


def test_it_is_started_anew_where_it_went(app: App) -> None:
    """Its unit went with it: when its processes are killed there it runs again, for whoever connects then."""
    target = app.move()
    target.sh(f"echo 1 >/sys/fs/cgroup/cnvm.slice/cnvm-container@{app.name}.service/hold/payload/cgroup.kill")
    assert app.client
    app.client.stop()
    app.client = None
    asked = f"import socket; socket.create_connection(({app.address!r}, 80), 1)"
    eventually("it answers again", lambda: not target.run("python3", "-c", asked, check=False).returncode)
    app.watch()
    app.settle(target)
    assert app.running_on() is target


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
    over(app)
    assert not away.look(app.name)["alive"]
    away.run("systemctl", "start", unit)
    app.settle(away)


def test_a_job_that_ends_while_it_is_moved_is_done(app: App) -> None:
    """It is run again neither where it was nor by a cold move."""
    home, job = app.source(), App(app.fleet, "job")
    away, upper = app.fleet.other(home), f"/var/lib/cnvm/workloads/{job.name}/upper"
    work = "import signal, sys; signal.signal(15, lambda *dummy: sys.exit(0)); open('/runs', 'a').write('x'); "
    definition = {
        "name": job.name,
        "image": "python",
        "restart": "on_failure",
        "command": ["python3", "-c", f"{work}signal.pause()"],
    }
    try:
        assert call(home, "container", containers=[definition])["changed"]
        home.run("dd", "if=/dev/urandom", f"of={upper}/big", "bs=1M", "count=16", "status=none")
        with app.fleet.slow(away):
            move = job.start(source=home)
            move.wait_phase("layer")
            home.run("runc", "--root", "/run/runc", "kill", job.name, "TERM")
            result = move.result()
        assert (result["outcome"], result["rolled_back"][0]) == ("source", "job stays here and does not run"), result
        over(job)
        assert job.start("cold", home).result()["outcome"] == "target"
        over(job)
        assert not away.look(job.name)["alive"]
        assert away.sh(f"cat {upper}/runs") == "x"
        assert away.run("test", "-e", f"/etc/systemd/system/multi-user.target.wants/cnvm-container@{job.name}.service")
    finally:
        for host in (home, away):
            call(host, "container_recover", names=[job.name])
            call(host, "container", containers=[{"name": job.name, "state": "absent"}])


def test_what_is_moved_goes_through_the_tunnel(app: App) -> None:
    """Memory that is sent and memory that is fetched: between the hosts' own addresses there are only its packets."""
    try:
        for one in app.movers:
            peer = app.fleet.other(one).address
            rules = f"ip saddr {peer} udp dport 51820 counter accept; ip saddr {peer} counter"
            chain = f"chain came {{ type filter hook input priority -1; {rules}; }}"
            one.sh(f"nft 'add table inet itest; delete table inet itest; table inet itest {{ {chain}; }}'")
        for mode in ("stop_copy", "post_copy"):
            target = app.move(mode)
            listed = json.loads(target.sh("nft -j list chain inet itest came"))["nftables"]
            tunnel, other = [
                part["counter"] for one in listed for part in one.get("rule", {}).get("expr", ()) if "counter" in part
            ]
            assert tunnel["bytes"] > MEMORY_MIB << 20
            assert other["packets"] == 0, other
    finally:
        for one in app.movers:
            one.sh("nft delete table inet itest", check=False)


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
