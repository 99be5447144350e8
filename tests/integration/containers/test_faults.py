# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens when something breaks in the middle of a teleport.

After each fault exactly one copy runs (the ticks that it writes prove it), the client's connection lives on where that
is promised, nothing is left behind on either host, and the container can be moved again (the next test does).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

import pytest

from ansible_collections.cnvm.platform.tests.integration.hosts import (
    ADDRESS,
    CONT,
    KILL,
    MOVER,
    SERVE,
    SSH,
    STOP,
    App,
    Host,
    Move,
    Trap,
    environment,
    eventually,
    kill,
    pattern,
    playbook,
    playbook_argv,
)

# What CRIU calls itself once a runtime has told it what to do.
DUMP, RESTORE = "criu: dump", "criu: restore"
WORDS = {"dump": DUMP, "restore": RESTORE}
LAYER = "/var/lib/cnvm/workloads/{}/upper/big"


def stays_at(app: App, source: Host, result: dict) -> None:
    """The move failed, the container goes on at its source with its client. The next test moves it again: nothing is in
    the way."""
    assert result["outcome"] == "source", result
    assert result["error"]
    if result["failed_phase"] != "preflight":
        assert any(line.startswith(f"{app.name} goes on here") for line in result["rolled_back"]), result
        source.run("test", "-d", result["logs"]["source"])
        assert set(result["logs"]) == {"source", "target"}
    app.check(source, moves=0)


def thicken(app: App, host: Host, mebibytes: int) -> None:
    """Make the writable layer so large that copying it takes a while."""
    host.run("dd", "if=/dev/urandom", f"of={LAYER.format(app.name)}", "bs=1M", f"count={mebibytes}", "status=none")


def slim(app: App) -> None:
    """Undo ``thicken``, wherever the container is."""
    for host in app.movers:
        host.run("rm", "-f", LAYER.format(app.name))


def held(app: App) -> Move:
    """A move whose copy is restored and held on the target, while its source has not been told so."""
    source = app.source()
    trap = Trap(app.fleet.other(source), program="criu", word=RESTORE, signal=STOP, victim=SERVE)
    move = app.start(source=source)
    trap.sprung()
    prepared = f"/run/cnvm/moves/{move.id}/prepared"
    move.target.sh(f"for i in $(seq 3000); do [ -e {prepared} ] && exit 0; sleep 0.02; done; exit 1")
    return move


def active(app: App) -> Move:
    """A move whose copy runs on the target, while its source has not been told so."""
    source = app.source()
    noted = {"file": f"/var/lib/cnvm/workloads/{app.name}/move.json", "text": '"active"'}
    trap = Trap(app.fleet.other(source), **noted, signal=STOP, victim=SERVE)
    move = app.start(source=source)
    trap.sprung()
    eventually("the target's copy runs", lambda: len(app.stays()) == 2, pause=0.02)
    return move


def criu_stopped(app: App, phase: str) -> tuple[Move, Host]:
    """A move whose CRIU stands still as it dumps, or restores; and the host on which it does."""
    source = app.source()
    host = source if phase == "dump" else app.fleet.other(source)
    trap = Trap(host, program="criu", word=WORDS[phase], signal=STOP)
    move = app.start(source=source)
    trap.sprung()
    return move, host


def draining(app: App, source: Host) -> Move:
    """A post-copy move that is past its commit: it runs on the target, and most of its memory is at the source."""
    move = app.start("post_copy", source=source)
    move.wait_phase("drain")
    eventually("the target's copy runs", lambda: len(app.stays()) == 2, pause=0.02)
    return move


def under_way(app: App, source: Host, phase: str) -> Move:
    """A move that is in the phase layer, or drain."""
    if phase == "drain":
        return draining(app, source)
    move = app.start("stop_copy", source=source)
    move.wait_phase(phase)
    return move


def cut_as_begins(app: App, source: Host, phase: str, mode: str) -> Move:
    """A move whose hosts' connection is cut at the moment at which a phase begins."""
    source.sh("rm -rf /var/log/cnvm/moves")
    status = "/var/log/cnvm/moves/*/status.json"
    trap = Trap(source, file=status, text=f'"phase": "{phase}"', signal=STOP, victim=MOVER)
    move = app.start(mode, source=source)
    trap.sprung()
    kill(source, SSH)
    kill(source, MOVER, CONT)
    return move


# --- processes die ---


@pytest.mark.parametrize("program", ["criu", "runc"])
def test_killed_while_dumping(app: App, program: str) -> None:
    """CRIU or the runtime on the source."""
    source = app.source()
    trap = Trap(source, program=program, word={"criu": DUMP, "runc": "checkpoint"}[program], signal=KILL)
    move = app.start(source=source)
    trap.sprung()
    result = move.result()
    assert result["failed_phase"] == "dump", result
    stays_at(app, source, result)


def test_criu_killed_while_restoring(app: App) -> None:
    """On the target, before the copy is held."""
    source = app.source()
    trap = Trap(app.fleet.other(source), program="criu", word=RESTORE, signal=KILL)
    move = app.start(source=source)
    trap.sprung()
    result = move.result()
    assert result["failed_phase"] == "restore", result
    stays_at(app, source, result)


@pytest.mark.parametrize("phase", ["dump", "restore"])
def test_criu_hangs(app: App, phase: str) -> None:
    """On either side. Nobody waits for it for ever: what hangs is killed, and the container goes on."""
    move, _host = criu_stopped(app, phase)
    result = move.result()
    assert result["failed_phase"] == phase, result
    stays_at(app, move.source, result)


def test_criu_killed_while_held(app: App) -> None:
    """On the target, with the restored copy standing still in the hook: an orphan that never ran."""
    move = held(app)
    kill(move.target, RESTORE)
    asked = ("pgrep", "-f", pattern(RESTORE))
    eventually("CRIU is gone", lambda: move.target.run(*asked, check=False).returncode == 1)
    kill(move.target, SERVE, CONT)
    result = move.result()
    assert result["frozen_ms"] < 30_000, result
    stays_at(app, move.source, result)


@pytest.mark.parametrize("phase", ["layer", "dump", "drain"])
def test_mover_killed(app: App, phase: str) -> None:
    """The process on the source that leads the move. What follows is decided by what is on the disk."""
    source = app.source()
    if phase == "layer":
        thicken(app, source, 16)
    with app.fleet.slow(app.fleet.other(source)):
        if phase == "dump":
            move, _host = criu_stopped(app, phase)
        else:
            move = app.start("post_copy" if phase == "drain" else "stop_copy", source=source)
            move.wait_phase(phase)
        kill(source, MOVER)
    if phase == "drain":
        app.check(move.target, moves=1)
    else:
        app.check(source, moves=0)
    slim(app)
    assert move.status().get("died")


def test_lazy_pages_killed_while_draining(app: App) -> None:
    """The target's copy can never be whole: it is killed, and the source goes on as it was when it was frozen."""
    source = app.source()
    with app.fleet.slow(app.fleet.other(source)):
        move = draining(app, source)
        kill(move.target, "criu lazy-pages")
        result = move.result()
    assert result["outcome"] == "source", result
    app.check(source, moves=2, client=False)


def test_page_server_killed_while_draining(app: App) -> None:
    """The same, from the other side."""
    source = app.source()
    with app.fleet.slow(app.fleet.other(source)):
        move = draining(app, source)
        kill(source, DUMP)
        result = move.result()
    assert result["outcome"] == "source", result
    app.check(source, moves=2, client=False)


# --- the connection between the hosts ---


@pytest.mark.parametrize("phase", ["preflight", "prepare", "freeze", "layer_rest", "finish"])
def test_ssh_killed_as_a_phase_begins(app: App, phase: str) -> None:
    """The hosts' own connection. Before the commit that is the end of the move; after it the hosts find each other, be
    it once the move has ended: what is here stays until the target has it on its disk."""
    source = app.source()
    move = cut_as_begins(app, source, phase, "stop_copy")
    result = move.result()
    if phase == "finish":
        assert result["outcome"] in ("waiting", "target"), result
        app.check(move.target, moves=1)
    else:
        stays_at(app, source, result)


def test_ssh_killed_as_it_is_stopped(app: App) -> None:
    """By a cold move: it is started where it was."""
    source = app.source()
    result = cut_as_begins(app, source, "stop", "cold").result()
    assert result["failed_phase"] == "layer_rest", result
    assert (result["outcome"], result["rolled_back"][0]) == ("source", f"{app.name} was started anew here"), result
    app.check(source, moves=1, client=False)


@pytest.mark.parametrize("phase", ["image", "layer", "drain"])
def test_ssh_killed_while_much_is_sent(app: App, phase: str) -> None:
    """In the drain it costs nothing: the pages have a connection of their own."""
    source = app.source()
    target = app.fleet.other(source)
    image = json.loads(source.sh(f"cat /var/lib/cnvm/workloads/{app.name}/definition.json"))["image"]
    place, aside = f"/var/lib/cnvm/images/sha256/{image}", "/var/lib/cnvm/aside"
    if phase == "image":
        target.sh(f"if [ -e {place} ]; then mv {place} {aside}; fi")
    if phase == "layer":
        thicken(app, source, 16)
    try:
        with app.fleet.slow(target):
            move = app.start("post_copy" if phase == "drain" else "stop_copy", source=source)
            move.wait_phase(phase)
            kill(source, SSH)
            result = move.result()
        if phase == "drain":
            assert result["outcome"] in ("waiting", "target"), result
            app.check(target, moves=1)
        else:
            assert result["failed_phase"] == phase, result
            stays_at(app, source, result)
    finally:
        # What comes next may want to start it there of this image.
        target.sh(f"if [ -e {aside} ] && [ ! -e {place} ]; then mv {aside} {place}; fi; rm -rf {aside}")
        slim(app)


@pytest.mark.parametrize("phase", ["dump", "restore"])
def test_ssh_killed_while_criu_works(app: App, phase: str) -> None:
    """On either side."""
    move, host = criu_stopped(app, phase)
    kill(move.source, SSH)
    # The target may have killed its own by then.
    kill(host, WORDS[phase], CONT, check=phase == "dump")
    result = move.result()
    # The source has no word for the target before its own CRIU has ended.
    assert result["failed_phase"] in (("layer_rest", "restore") if phase == "dump" else ("restore",)), result
    stays_at(app, move.source, result)


def test_ssh_killed_while_held(app: App) -> None:
    """The copy is whole, and its source has not heard of that."""
    move = held(app)
    kill(move.source, SSH)
    kill(move.target, SERVE, CONT)
    result = move.result()
    assert result["failed_phase"] == "restore", result
    stays_at(app, move.source, result)


@pytest.mark.parametrize("phase", ["commit", "activate"])
def test_ssh_killed_at_the_handover(app: App, phase: str) -> None:
    """When the source's record names the target, whether it could say so or not, and when the target's own does."""
    move, target = criu_stopped(app, "restore")
    source = move.source
    owner = {"file": f"/var/lib/cnvm/workloads/{app.name}/owner.json", "text": f'"{target.name}"'}
    if phase == "commit":
        trap = Trap(source, **owner, signal=KILL, victim=SSH)
    else:
        trap = Trap(target, **owner, signal=STOP, victim=SERVE)
    kill(target, RESTORE, CONT)
    trap.sprung()
    if phase == "activate":
        kill(source, SSH)
        # The source may ask by a new connection, which ends this one.
        kill(target, SERVE, CONT, check=False)
    result = move.result()
    assert result["outcome"] in ("waiting", "target"), result
    app.check(target, moves=1)


def test_link_cut_while_held(app: App) -> None:
    """Packets vanish, and nobody is told. The source goes on without the target's word: it had not committed."""
    source = app.source()
    move = held(app)
    with app.fleet.cut(move.target):
        result = move.result()
        assert result["outcome"] == "source", result
        assert app.client
        app.client.check()
    kill(move.target, SERVE, CONT)
    stays_at(app, source, result)


def test_link_cut_while_draining(app: App) -> None:
    """After the commit nobody may start the copy of the source. When the link is mended the move ends by itself."""
    source = app.source()
    target = app.fleet.other(source)
    with app.fleet.slow(target):
        move = draining(app, source)
        with app.fleet.cut(target):
            result = move.result()
            assert result["outcome"] == "waiting", result
            seen = source.look(app.name)
            assert seen["frozen"], seen
        app.check(target, moves=1)


# --- hosts lose power ---


@pytest.mark.parametrize("phase", ["layer", "held", "active", "drain"])
def test_target_loses_power(app: App, phase: str) -> None:
    """Before the commit the source goes on by itself, after it nobody does until the target can be asked."""
    source = app.source()
    target = app.fleet.other(source)
    still = {"held": held, "active": active}.get(phase)
    thicken(app, source, 16)
    with app.fleet.slow(target) if still is None else contextlib.nullcontext():
        move = under_way(app, source, phase) if still is None else still(app)
        app.fleet.power_cut(target)
    result = move.result()
    if phase in ("active", "drain"):
        assert result["outcome"] == "waiting", result
        assert source.look(app.name)["frozen"]
    else:
        assert result["outcome"] == "source", result
    app.fleet.change(**{target.name: {"state": "present"}})
    app.witness(target)
    # The client saw what the target did, and the source goes on as it was before that: it has not all of the memory
    # there (in the drain), or may not have all of the files (the target had not said that they were on its disk).
    app.check(source, moves=2 if phase in ("active", "drain") else 0, client=phase not in ("active", "drain"))
    slim(app)


@pytest.mark.parametrize("phase", ["layer", "drain"])
def test_source_loses_power(app: App, phase: str) -> None:
    """What it had in memory is lost. It runs again on the source once that is back, and nowhere else before."""
    source = app.source()
    target = app.fleet.other(source)
    thicken(app, source, 16)
    with app.fleet.slow(target):
        under_way(app, source, phase)
        app.fleet.power_cut(source)
    app.fleet.change(**{source.name: {"state": "present"}})
    app.witness(source)
    app.settle(source)
    assert app.running_on() is source
    slim(app)


def test_source_is_dead_for_good(app: App) -> None:
    """By the user's word: the held copy goes on, with its memory and its client. The dead may come back."""
    source = app.source()
    move = held(app)
    # It must not give up before its power is cut.
    kill(source, MOVER, STOP)
    app.fleet.power_cut(source)
    kill(move.target, SERVE, CONT)
    recovered = playbook("cnvm.platform.recover", "-e", f"fenced={source.name}", "--limit", f"!{source.name}")
    assert "changed=1" in recovered.stdout
    eventually("the target's copy runs", lambda: len(app.stays()) == 2)
    assert app.client
    # Its own TCP tries again up to two minutes later when nobody has answered for long.
    app.client.check(300)
    app.fleet.change(**{source.name: {"state": "present"}})
    app.witness(source)
    app.check(move.target, moves=1)


# --- the target is full, or has something else in its place ---


def test_target_is_full(app: App) -> None:
    """Seen before anything is frozen."""
    source = app.source()
    target = app.fleet.other(source)
    target.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/var/lib/cnvm")
    try:
        result = app.start(source=source).result()
    finally:
        target.run("umount", "/var/lib/cnvm")
    assert result["failed_phase"] == "preflight", result
    assert "space:" in result["error"]
    stays_at(app, source, result)


def test_target_fills_up(app: App) -> None:
    """While the layer is on its way."""
    source = app.source()
    target = app.fleet.other(source)
    thicken(app, source, 24)
    target.run("mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", "/var/lib/cnvm/workloads")
    try:
        with app.fleet.slow(target):
            move = app.start(source=source)
            move.wait_phase("layer")
            target.run("dd", "if=/dev/zero", "of=/var/lib/cnvm/workloads/full", "bs=1M", "status=none", check=False)
            result = move.result()
        assert "No space left" in result["error"], result
        app.settle(source)
    finally:
        target.run("umount", "-l", "/var/lib/cnvm/workloads")
    slim(app)
    stays_at(app, source, result)


def test_name_is_taken(app: App) -> None:
    """By another container of the target."""
    source = app.source()
    target = app.fleet.other(source)
    home = f"/var/lib/cnvm/workloads/{app.name}"
    mine = target.sh(f"cat {home}/owner.json 2>/dev/null || true")
    me = json.loads(target.sh("cat /etc/cnvm/host.json"))
    other = {"schema": 1, "name": app.name, "uuid": "another", "generation": 1}
    other |= {"owner": me["host_id"], "owner_name": target.name}
    target.sh(f"mkdir -p {home}; echo '{json.dumps(other)}' >{home}/owner.json")
    try:
        result = app.start(source=source).result()
    finally:
        target.sh(f"rm -r {home}" if not mine else f"echo '{mine}' >{home}/owner.json")
    assert result["failed_phase"] == "preflight", result
    assert "name:" in result["error"]
    stays_at(app, source, result)


def test_address_is_taken(app: App) -> None:
    """By somebody on the overlay who is not the container."""
    source = app.source()
    target = app.fleet.other(source)
    intruder = (
        "ip netns add intruder; ip link add intruder type veth peer name eth0 netns intruder;"
        "ip link set intruder master cnvm0 up;"
        f"ip -n intruder addr add {ADDRESS}/24 dev eth0; ip -n intruder link set eth0 up"
    )
    # Unplugged, the container itself answers nobody; the intruder does.
    target.sh(intruder)
    try:
        result = app.start(source=source).result()
    finally:
        target.sh("ip netns del intruder")
    assert result["failed_phase"] == "preflight", result
    assert "address:" in result["error"]
    app.check(source, moves=0, client=False)


def test_host_port_is_taken(app: App) -> None:
    """By a program of the target."""
    source = app.source()
    target = app.fleet.other(source)
    target.run("systemd-run", "--quiet", "--collect", "--unit=taker", "python3", "-m", "http.server", "8080")
    eventually("it listens", lambda: "8080" in target.sh("ss -Hltn sport = :8080"))
    try:
        result = app.start(source=source).result()
    finally:
        target.run("systemctl", "stop", "taker")
    assert result["failed_phase"] == "preflight", result
    assert "8080" in result["error"]
    stays_at(app, source, result)


def test_all_that_is_in_the_way_is_told_at_once(app: App) -> None:
    """In check mode, which changes nothing on either host."""
    source = app.source()
    target = app.fleet.other(source)
    listing = "find /var/lib/cnvm /run/cnvm /etc/cnvm /var/log/cnvm -path '*/upper/*' -prune -o -print | sort"
    target.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/var/lib/cnvm")
    try:
        target.run("systemd-run", "--quiet", "--collect", "--unit=taker", "python3", "-m", "http.server", "8080")
        eventually("it listens", lambda: "8080" in target.sh("ss -Hltn sport = :8080"))
        before = [host.sh(listing) for host in app.movers]
        command = ("cnvm.platform.teleport", "-e", f"container={app.name}", "-e", f"target={target.name}")
        said = playbook(*command, "--check", check=False).stdout
        assert [host.sh(listing) for host in app.movers] == before
    finally:
        target.run("systemctl", "stop", "taker", check=False)
        target.run("umount", "/var/lib/cnvm")
    assert "space:" in said, said
    assert "8080" in said
    app.check(source, moves=0)


# --- the controller, and moves that meet ---


@pytest.mark.parametrize("phase", ["layer", "drain"])
def test_controller_killed(app: App, phase: str) -> None:
    """Nothing is decided by it: the move goes on. The same task again says so, and then that it is there."""
    source = app.source()
    target = app.fleet.other(source)
    if phase == "layer":
        thicken(app, source, 16)
    command = ("cnvm.platform.teleport", "-e", f"container={app.name}", "-e", f"target={target.name}")
    more = ("-e", "mode=post_copy", "-e", "allow_post_copy=true")
    source.sh("rm -rf /var/log/cnvm/moves")  # a mover that was killed earlier stays in its phase there
    with app.fleet.slow(target, "10mbit"):
        controller = subprocess.Popen(
            playbook_argv(*command, *more), env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        script = f'grep -l \'"phase": "{phase}"\' /var/log/cnvm/moves/*/status.json || true'
        eventually(f"it is in phase {phase}", lambda: source.sh(script))
        os.killpg(controller.pid, KILL)
        controller.wait()
        # In the drain it runs there, and may yet come back.
        again = " ".join(playbook(*command, check=False).stdout.split())
        assert f"A move of {app.name} is under way" in again
        assert source.look(app.name)["units"]
    app.check(target, moves=1)
    assert "changed=1" not in playbook(*command).stdout
    slim(app)


def test_started_twice(app: App) -> None:
    """The second is refused at once, also one in the opposite direction; the first does not notice."""
    source = app.source()
    target = app.fleet.other(source)
    thicken(app, source, 16)
    with app.fleet.slow(target):
        move = app.start(source=source)
        move.wait_phase("layer")
        for host, to in ((source, target), (target, source)):
            request = {"container": app.name, "target": to.name}
            refused = host.helper("move", "start", json.dumps(request), check=False)
            assert "failed" in refused, refused
        assert move.status()["phase"] != "done"
    assert move.result()["outcome"] == "target"
    app.check(target, moves=1)
    slim(app)
