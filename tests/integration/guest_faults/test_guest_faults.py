# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens when something breaks in the middle of a migration.

After each fault exactly one copy counts (its console proves it), the client's connection lives on where that is
promised, nothing is left behind on either host, and the guest can be moved again (the next test does).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.guest import (
    LAZY,
    SLOW,
    Guest,
    userfaultfd,
)
from ansible_collections.cnvm.platform.tests.integration.hosts import (
    CONT,
    KILL,
    MOVER,
    PATIENCE_S,
    SERVE,
    SSH,
    STOP,
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


def kill_libvirt(move: Move, side: str) -> None:
    """libvirt's daemon on one side. It is started again when somebody asks, however often: systemd would give it up."""
    host = move.source if side == "source" else move.target
    host.sh(
        """
        virsh list >/dev/null
        systemctl kill --kill-whom=main -s KILL libvirtd.service
        systemctl reset-failed libvirtd.service
        """
    )


@contextlib.contextmanager
def libvirt_hanging(host: Host) -> t.Iterator[None]:
    """libvirt's daemon on a host says nothing, for a while; then it is started anew."""
    host.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", "libvirtd.service")
    try:
        yield
    finally:
        host.run("systemctl", "restart", "libvirtd.service", seconds=PATIENCE_S)


@contextlib.contextmanager
def impatient(host: Host) -> t.Iterator[None]:
    """systemd on a host waits but for seconds for a sign of life of what leads a move."""
    place = "/run/systemd/system/cnvm-move-.service.d"
    host.sh(f"mkdir -p {place}; printf '[Service]\nWatchdogSec=8\n' >{place}/impatient.conf; systemctl daemon-reload")
    try:
        yield
    finally:
        host.sh(f"rm -r {place}; systemctl daemon-reload")


@contextlib.contextmanager
def little_room(host: Host, limit: str = "size=80m", place: str = "workloads") -> t.Iterator[None]:
    """A host has a small disk of its own for what is at ``place``, for a while. ``limit``: see tmpfs(5)."""
    directory = f"/var/lib/cnvm/{place}"
    host.sh(f"mkdir -p {directory}; mount -t tmpfs -o {limit} tmpfs {directory}")
    try:
        yield
    finally:
        host.run("umount", "-l", directory)


FILLING = "/var/lib/cnvm/workloads/full"


def fill_up(host: Host) -> None:
    """No byte more goes where workloads are."""
    done = host.run("dd", "if=/dev/zero", f"of={FILLING}", "bs=1M", "status=none", check=False)
    assert "No space left" in done.stderr, done


def under_way(guest: Guest, at: str) -> Move:
    """A move that copies memory, and does not come to its end; or one that stands still."""
    return guest.slowly() if at == "memory" else guest.stopped(at)


def go_on(move: Move, at: str = "") -> None:
    """What stands still since then (and has not ended meanwhile); see ``Guest.trap``."""
    kill(move.source, MOVER, CONT, check=False)
    if at in ("prepared", "active"):
        kill(move.target, SERVE, CONT, check=False)


def at_each(guest: Guest, *steps: str) -> t.Iterator[Move]:
    """A move that stands still at each of these steps, one after the other, and goes on each time."""
    source = guest.source()
    trap = guest.trap(source, steps[0])
    move = guest.start(source)
    for at, then in zip(steps, (*steps[1:], "")):
        trap.sprung()
        yield move
        if then:
            trap = guest.trap(source, then)
        go_on(move, at)


# --- before anything of the guest is copied ---


@pytest.fixture
def bare(guest: Guest) -> Guest:
    """The guest, and where it would go there is no template for it yet."""
    guest.fleet.other(guest.source()).sh("rm -rf /var/lib/cnvm/templates")
    return guest


@pytest.mark.parametrize("phase", ["preflight", "begun", "template", "prepare"])
def test_mover_killed_early(bare: Guest, phase: str) -> None:
    """Before anything is noted, before the target has, while that fetches the template, or makes empty disks."""
    move = bare.stopped(phase)
    kill(move.source, MOVER)
    bare.check(move.source, [move.source])
    bare.check(bare.move(), [move.source, move.target])


@pytest.mark.parametrize("phase", ["preflight", "begun", "template", "prepare"])
def test_link_cut_early(bare: Guest, phase: str) -> None:
    """The move is given up before the link is back."""
    move = bare.stopped(phase)
    with bare.fleet.cut(move.target):
        go_on(move)
        result = move.result()
    bare.moves_again(move.source, result)


def test_without_libvirt_as_the_target_is_asked(bare: Guest) -> None:
    """Its daemon is gone before it has said that it takes the guest: it is not begun."""
    move = bare.stopped("begun")
    move.target.sh("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service")
    try:
        go_on(move)
        result = move.result()
    finally:
        move.target.sh("systemctl start libvirtd.socket")
    assert f"{move.target.name} has no libvirt that answers" in result["error"], result
    bare.moves_again(move.source, result)


@pytest.mark.parametrize("at", ["template", "memory"])
def test_ssh_killed_early(bare: Guest, at: str) -> None:
    """The hosts' connections: the move is given up."""
    move = under_way(bare, at)
    kill(move.source, SSH)
    go_on(move)
    bare.moves_again(move.source, move.result())


def test_target_killed_as_it_fetches_the_template(bare: Guest) -> None:
    """A part of it stays. It goes when the move is recovered, and so does the program that was fetching it."""
    source = bare.source()
    target = bare.fleet.other(source)
    with bare.fleet.slow(target, "8mbit"):
        move = bare.start(source)
        eventually("a part of it is there", lambda: bare.look(target)["templates"])
        eventually("the source is told", lambda: move.status().get("bytes", {}).get("template"))
        kill(target, SERVE)
        result = move.result()
    assert (result["outcome"], result["failed_phase"]) == ("source", "template"), result
    assert bare.look(target)["templates"]
    playbook("cnvm.platform.recover", "-e", f"guest={bare.name}")
    bare.moves_again(source, result)


@pytest.mark.parametrize("side", ["source", "target"])
def test_libvirt_killed_where_nobody_needs_it(bare: Guest, side: str) -> None:
    """The daemon, again and again: before memory is copied, and after the decision, with the guest paused on both
    sides, or on the source. It is started again when somebody asks, and lets none go on by itself."""
    # As it is begun the target asks its own (see ``test_without_libvirt_as_the_target_is_asked``).
    early = ("preflight", "begun", "template", "prepare") if side == "source" else ("preflight", "template", "prepare")
    for move in at_each(bare, *early, "committed", "active", "leaving"):
        kill_libvirt(move, side)
    bare.arrives(move)


# --- processes die before the decision ---


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("at", ["memory", "frozen"])
def test_libvirt_killed(guest: Guest, side: str, at: str) -> None:
    """The daemon, on either side: the guest goes on, and the client notices nothing."""
    if (at, side) == ("frozen", "source"):
        # At once: some ms later it has said that all is sent, which the mover would hear all the same.
        source = guest.source()
        trap = guest.trap(source, at, "sbin/libvirtd", KILL)
        move = guest.start(source)
        trap.sprung()
    else:
        move = under_way(guest, at)
        kill_libvirt(move, side)
        go_on(move)
    guest.stays_at(move.source, move.result())


def test_libvirt_hangs(guest: Guest) -> None:
    """The daemon on the source: nobody waits for it for ever, and when it is started anew the guest goes on there."""
    move = guest.slowly()
    with libvirt_hanging(move.source):
        eventually(
            "the mover is killed",
            lambda: move.source.run("pgrep", "-f", pattern(MOVER), check=False).returncode == 1,
            2 * PATIENCE_S,
        )
    guest.check(move.source, [move.source])
    assert move.status().get("died")
    guest.check(guest.move(), [move.source, move.target])


def test_libvirt_hangs_on_the_target(guest: Guest) -> None:
    """The daemon that is to take the guest: it goes on at the source before that one is started anew."""
    move = guest.stopped("frozen")
    with libvirt_hanging(move.target):
        go_on(move)
        result = move.result()
        guest.counts_on(move.source)
    guest.stays_at(move.source, result)


@pytest.mark.parametrize("at", ["memory", "frozen"])
def test_copy_killed(guest: Guest, at: str) -> None:
    """The QEMU on the target."""
    move = under_way(guest, at)
    kill(move.target, guest.emulator)
    go_on(move)
    guest.stays_at(move.source, move.result())


@pytest.mark.parametrize("at", ["begun", "template", "prepare", "memory", "frozen"])
def test_guest_killed(bare: Guest, at: str) -> None:
    """The QEMU on the source: the guest has died where it was, and is started again there, with its disk."""
    move = under_way(bare, at)
    kill(move.source, bare.emulator)
    go_on(move)
    result = move.result()
    assert result["outcome"] == "source", result
    assert f"The memory of {bare.name} is lost" in result["lost"], result
    bare.begins_anew(move.source, [move.source])


def test_mover_killed(guest: Guest) -> None:
    """What leads the move, while memory is copied: it is cleaned up after at once."""
    move = guest.slowly()
    kill(move.source, MOVER)
    guest.check(move.source, [move.source])
    assert move.status().get("died")


@pytest.mark.parametrize("state", ["frozen", "committed", "active", "leaving"])
def test_mover_killed_at_the_handover(guest: Guest, state: str) -> None:
    """The decision is on the disk: before it the guest goes on at the source, after it at the target."""
    move = under_way(guest, state)
    kill(move.source, MOVER)
    go_on(move, state)
    if state == "frozen":
        guest.check(move.source, [move.source])
    else:
        guest.check(move.target, [move.source, move.target])


@pytest.mark.parametrize("at", ["preflight", "prepare", "memory", "frozen", "committed", "leaving"])
def test_mover_hangs(guest: Guest, at: str) -> None:
    """systemd kills what gives no sign of life, and that is cleaned up after as if it had died."""
    with impatient(guest.source()):
        move = under_way(guest, at)
        if at == "memory":
            kill(move.source, MOVER, STOP)
        # Before systemd would have lost its patience without that.
        eventually("the mover is killed", lambda: move.status().get("died"), 40)
    if at in ("committed", "leaving"):
        guest.check(move.target, [move.source, move.target])
    else:
        guest.check(move.source, [move.source])


def test_target_hangs(guest: Guest) -> None:
    """What answers there: it goes on at the source. Tried again, what hangs is ended, and what came of it goes."""
    move = guest.stopped("prepared")
    result = move.result()
    assert result["outcome"] == "source", result
    guest.counts_on(move.source)
    again = guest.start().result()
    assert again["outcome"] == "target", again
    # Of the first move's way to libvirt, that was stopped, too: with its peer gone it has nothing to do.
    kill(move.target, SERVE, check=False)
    guest.check(move.target, [move.source, move.target])


def test_target_hangs_at_the_handover(guest: Guest) -> None:
    """After the decision nobody goes on at the source: when it can be asked again, it is the target's."""
    move = guest.stopped("active")
    result = move.result()
    assert result["outcome"] == "waiting", result
    guest.recover()
    guest.check(move.target, [move.source, move.target])


@pytest.mark.parametrize("state", ["prepared", "committed"])
def test_copy_killed_at_the_handover(guest: Guest, state: str) -> None:
    """It never ran, so the guest goes on where it stands still, with its memory."""
    move = guest.stopped(state)
    kill(move.target, guest.emulator)
    go_on(move, state)
    guest.stays_at(move.source, move.result())


@pytest.mark.parametrize("state", ["active", "leaving"])
def test_copy_killed_when_it_has_run(guest: Guest, state: str) -> None:
    """The guest has died where it is now. It is started anew there, with its disk, and that is said."""
    move = under_way(guest, state)
    kill(move.target, guest.emulator)
    go_on(move, state)
    result = move.result()
    assert result["outcome"] == "target", result
    assert f"{guest.name} had ended on {move.target.name}" in result["lost"], result
    guest.begins_anew(move.target, [move.source, move.target])


@pytest.mark.parametrize("state", ["committed", "active", "leaving"])
def test_guest_killed_at_the_handover(guest: Guest, state: str) -> None:
    """What stands still on the source is nobody's any more."""
    move = under_way(guest, state)
    kill(move.source, guest.emulator)
    go_on(move, state)
    guest.arrives(move)


def test_ssh_killed_at_the_handover(guest: Guest) -> None:
    """The hosts' connections, after the decision: it goes on at the target, nowhere else."""
    move = guest.stopped("committed")
    kill(move.source, SSH)
    go_on(move)
    result = move.result()
    assert result["outcome"] in ("waiting", "target"), result
    guest.recover()
    guest.check(move.target, [move.source, move.target])


# --- while the rest of the memory is fetched ---


@pytest.fixture
def lazy(guest: Guest) -> t.Iterator[Guest]:
    """The guest on hosts whose QEMU may do post-copy."""
    with userfaultfd(guest, "1"):
        yield guest


def test_mover_killed_in_the_drain(lazy: Guest) -> None:
    """QEMU needs nobody to send what is left."""
    move = lazy.lazily()
    kill(move.source, MOVER)
    kill(move.source, lazy.emulator, CONT)
    lazy.check(move.target, [move.source, move.target])


def test_link_cut_in_the_drain(lazy: Guest) -> None:
    """The guest waits for what it needs, and loses nothing. When the link is mended it comes to its end by itself."""
    move = lazy.lazily()
    with lazy.fleet.cut(move.target):
        kill(move.source, lazy.emulator, CONT)
        result = move.result()
        assert result["outcome"] == "waiting", result
        assert lazy.look(move.source)["state"] == "paused"
    lazy.check(move.target, [move.source, move.target])


def test_ssh_killed_in_the_drain(lazy: Guest) -> None:
    """The hosts' connections: QEMU has its own, and the hosts find each other again."""
    move = lazy.lazily()
    kill(move.source, SSH)
    kill(move.source, lazy.emulator, CONT)
    result = move.result()
    assert result["outcome"] in ("waiting", "target"), result
    lazy.check(move.target, [move.source, move.target])


def test_controller_killed_in_the_drain(lazy: Guest) -> None:
    """Nothing is decided by it."""
    source = lazy.source()
    target = lazy.fleet.other(source)
    kill_controller(lazy, source, lazy.trap(source, "drain", lazy.emulator), **LAZY)
    kill(source, lazy.emulator, CONT)
    lazy.check(target, [source, target])


def test_target_fills_up_in_the_drain(lazy: Guest) -> None:
    """It is the target's, and what is fetched needs no room."""
    source = lazy.source()
    target = lazy.fleet.other(source)
    with little_room(target):
        move = lazy.lazily()
        fill_up(target)
        kill(source, lazy.emulator, CONT)
        lazy.arrives(move)
        target.run("rm", FILLING)
        lazy.check(lazy.move(), [source, target, source])


@pytest.mark.parametrize("side", ["source", "target"])
def test_libvirt_killed_in_the_drain(lazy: Guest, side: str) -> None:
    """The daemon, on either side: QEMU goes on without it, and the guest loses nothing."""
    move = lazy.lazily()
    kill_libvirt(move, side)
    kill(move.source, lazy.emulator, CONT)
    lazy.arrives(move)


@pytest.mark.parametrize("side", ["source", "target"])
def test_emulator_killed_in_the_drain(lazy: Guest, side: str) -> None:
    """On either side: what was in its memory is lost, and it is started anew where its disk is the newest."""
    move = lazy.lazily()
    kill(move.source if side == "source" else move.target, lazy.emulator)
    if side == "target":
        kill(move.source, lazy.emulator, CONT)
    result = move.result()
    assert result["outcome"] == "target", result
    assert "anew" in result["lost"], result
    lazy.begins_anew(move.target, [move.source, move.target])


@pytest.mark.parametrize("state", ["frozen", "committed"])
def test_mover_killed_at_the_switch(lazy: Guest, state: str) -> None:
    """Nobody can let the target's copy run. Once QEMU has been told, it does not let the source's go on either: that is
    started anew there."""
    starts = len(lazy.sums())
    move = lazy.stopped(state, **LAZY)
    kill(move.source, MOVER)
    lazy.settle(move.source)
    lazy.counts_on(move.source)
    if state == "frozen" and len(lazy.sums()) == starts:
        # It had not been told yet.
        lazy.check(move.source, [move.source])
    else:
        lazy.begins_anew(move.source, [move.source])


@pytest.mark.parametrize("side", ["source", "target"])
def test_emulator_killed_at_the_switch(lazy: Guest, side: str) -> None:
    """After the decision, before it runs at the target: what is not there yet of its memory is lost with the source's,
    and what has come with the target's. It never ran there, and is started anew at the source, with its disk."""
    move = lazy.stopped("committed", **LAZY)
    kill(move.source if side == "source" else move.target, lazy.emulator)
    go_on(move)
    result = move.result()
    assert result["outcome"] == "source", result
    assert "anew" in result["lost"], result
    lazy.begins_anew(move.source, [move.source])


@pytest.mark.parametrize("side", ["source", "target"])
def test_host_loses_power_at_the_switch(lazy: Guest, side: str) -> None:
    """The same with all that ran on the host."""
    move = lazy.stopped("committed", **LAZY)
    if side == "source":
        lazy.fleet.power_cut(move.source)
        lazy.boots(move.source)
    else:
        lose_power(lazy, move)
        result = move.result()
        assert result["outcome"] == "waiting", result
        lazy.boots(move.target)
    lazy.recover()
    home = lazy.source()
    lazy.begins_anew(home, [move.source, move.target] if home is move.target else [move.source])


def test_link_cut_at_the_switch(lazy: Guest) -> None:
    """QEMU has not been told yet: the guest goes on where it is, with its memory."""
    move = lazy.stopped("frozen", **LAZY)
    with lazy.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        lazy.counts_on(move.source)
    lazy.stays_at(move.source, result)


# --- the link and the disk ---


@pytest.mark.parametrize("at", ["memory", "frozen"])
def test_link_cut(guest: Guest, at: str) -> None:
    """Packets vanish, and nobody is told. The guest goes on at the source before the link is back."""
    move = under_way(guest, at)
    with guest.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        assert result["outcome"] == "source", result
        guest.counts_on(move.source)
    guest.stays_at(move.source, result)


def test_link_cut_and_mover_killed(guest: Guest) -> None:
    """Nobody leads the move any more, and nobody answers. The guest goes on before the link is back all the same."""
    move = guest.slowly()
    with guest.fleet.cut(move.target):
        kill(move.source, MOVER)
        eventually("the move has ended", lambda: not guest.look(move.source)["journal"])
        guest.counts_on(move.source)
    guest.check(move.source, [move.source])
    guest.check(guest.move(), [move.source, move.target])


def test_link_cut_at_the_handover(guest: Guest) -> None:
    """After the decision nobody lets the source go on. When the link is mended it goes on at the target."""
    move = guest.stopped("committed")
    with guest.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        assert result["outcome"] == "waiting", result
        assert guest.look(move.source)["state"] == "paused"
    playbook("cnvm.platform.recover", "-e", f"guest={guest.name}")
    guest.check(move.target, [move.source, move.target])


def test_link_cut_before_its_source_hears_of_it(guest: Guest) -> None:
    """It runs at the target, and on the source nobody knows. When the hosts can speak again it is the target's."""
    move = guest.stopped("active")
    with guest.fleet.apart(move.source, move.target):
        go_on(move, "active")
        result = move.result()
        assert result["outcome"] == "waiting", result
        assert [guest.look(host)["state"] for host in (move.source, move.target)] == ["paused", "running"]
    guest.recover()
    guest.check(move.target, [move.source, move.target])


@pytest.mark.parametrize("ended", ["died", "turned off"])
def test_it_ends_before_its_source_hears_of_it(guest: Guest, ended: str) -> None:
    """What stands still on the source is older than what it has done on the target: it never goes on there."""
    move = guest.stopped("active")
    with guest.fleet.apart(move.source, move.target):
        go_on(move, "active")
        result = move.result()
        assert result["outcome"] == "waiting", result
        if ended == "died":
            kill(move.target, guest.emulator)
        else:
            move.target.run("virsh", "destroy", guest.name)
        eventually("it has ended", lambda: guest.look(move.target)["state"] == "shut off")
    guest.recover()
    if ended == "turned off":
        guest.settle(move.target, running=False)
        move.target.run("virsh", "start", guest.name)
    guest.begins_anew(move.target, [move.source, move.target])


def test_link_cut_when_it_has_arrived(guest: Guest) -> None:
    """It runs at the target, where the rest of the move goes when the link is back. Nobody has to be told to do so."""
    move = guest.stopped("leaving")
    with guest.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        assert result["outcome"] == "target", result
    guest.check(move.target, [move.source, move.target])


@pytest.mark.parametrize(
    ("phase", "place", "limit"),
    [
        # Room for another byte, but not for another file: that no plan sees.
        ("preflight", "workloads", "nr_inodes=2"),
        ("template", "templates", "nr_inodes=3"),
        ("prepare", "workloads", "nr_inodes=5"),
        ("memory", "workloads", "size=40m"),
        ("switch", "workloads", "size=40m"),
    ],
)
def test_target_fills_up(bare: Guest, phase: str, place: str, limit: str) -> None:
    """Where the template goes, and the disk, when it is made, while it is copied, and when the guest stands still."""
    source = bare.source()
    target = bare.fleet.other(source)
    with little_room(target, limit, place):
        if phase == "switch":
            move = bare.stopped("frozen")
        else:
            move = bare.start(source, **{**SLOW, "bandwidth_mib_s": 1})
        if phase == "memory":
            move.wait_phase(phase)
        if phase in ("memory", "switch"):
            fill_up(target)
        go_on(move)
        result = move.result()
        assert result["outcome"] == "source", result
        assert result["failed_phase"] == phase, result
        bare.counts_on(source)
        bare.settle(source)
    bare.moves_again(source, result)


def test_target_fills_up_at_the_handover(guest: Guest) -> None:
    """It cannot write that the guest is its own, nor that it is not: nobody goes on until there is room."""
    source = guest.source()
    target = guest.fleet.other(source)
    with little_room(target):
        move = guest.stopped("committed")
        fill_up(target)
        go_on(move)
        result = move.result()
        assert (result["outcome"], result["failed_phase"]) == ("waiting", "activate"), result
        assert "No space left" in result["error"], result
        assert [guest.look(host)["state"] for host in (source, target)] == ["paused", "paused"]
        assert guest.look(target)["owner"] == {}
        target.run("rm", FILLING)
        guest.recover()
        guest.check(target, [source, target])
        guest.check(guest.move(), [source, target, source])


@pytest.mark.parametrize("state", ["active", "leaving"])
def test_target_fills_up_when_it_has_arrived(guest: Guest, state: str) -> None:
    """It is the target's, and the move needs no room to come to its end."""
    source = guest.source()
    target = guest.fleet.other(source)
    with little_room(target):
        move = guest.stopped(state)
        fill_up(target)
        go_on(move, state)
        guest.arrives(move)
        target.run("rm", FILLING)
        guest.check(guest.move(), [source, target, source])


def test_target_has_no_memory(guest: Guest) -> None:
    """QEMU cannot have there what the guest needs. (Of one that is killed for it later, see ``test_copy_killed``.)"""
    source = guest.source()
    target = guest.fleet.other(source)
    # What libvirt's daemon starts has its limits. It needs less itself.
    target.sh(
        """
        virsh list >/dev/null; pid=$(pidof libvirtd)
        kib=$(awk '/^VmSize:/ {print $2}' /proc/$pid/status)
        prlimit --pid "$pid" --as=$((kib * 1024 + 200 * 1024 * 1024)):
        """
    )
    try:
        result = guest.start(source).result()
    finally:
        target.sh('prlimit --pid "$(pidof libvirtd)" --as=unlimited:')
    assert result["failed_phase"] == "memory", result
    guest.stays_at(source, result)


# --- one that does not run ---


@pytest.fixture
def off(guest: Guest) -> t.Iterator[Guest]:
    """The guest, turned off; it is started again where it is then, and has what it had on its disk."""
    home = guest.source()
    home.run("virsh", "destroy", guest.name)
    content = guest.content(home)
    yield guest
    guest.settle(guest.source(), running=False)
    assert guest.content(guest.source()) == content
    guest.source().run("virsh", "start", guest.name)


def test_mover_killed_while_disks_are_copied(off: Guest) -> None:
    """It stays where it is, and a second try brings it there."""
    move = off.stopped("disks")
    kill(move.source, MOVER)
    off.settle(move.source, running=False)
    assert off.start().result()["outcome"] == "target"


def test_link_cut_while_disks_are_copied(off: Guest) -> None:
    """The move is given up before the link is back."""
    move = off.stopped("disks")
    with off.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        assert result["outcome"] == "source", result
    off.settle(move.source, running=False)


@pytest.mark.parametrize("at", ["disks", "committed"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_libvirt_killed_while_one_moves_that_is_off(off: Guest, side: str, at: str) -> None:
    """The daemon, on either side: it is started again when it is needed."""
    move = off.stopped(at)
    kill_libvirt(move, side)
    go_on(move)
    result = move.result()
    assert result["outcome"] == "target", result
    off.settle(move.target, running=False)


def test_target_fills_up_while_disks_are_copied(off: Guest) -> None:
    """It stays where it is, and nothing of it there."""
    source = off.source()
    target = off.fleet.other(source)
    with little_room(target, "size=40m"):
        move = off.stopped("disks")
        fill_up(target)
        go_on(move)
        result = move.result()
        assert (result["outcome"], result["failed_phase"]) == ("source", "disks"), result
        off.settle(source, running=False)


@pytest.mark.parametrize("at", ["disks", "committed"])
def test_controller_killed_while_one_moves_that_is_off(off: Guest, at: str) -> None:
    """The move goes on."""
    source = off.source()
    kill_controller(off, source, off.trap(source, at))
    kill(source, MOVER, CONT)
    off.settle(off.fleet.other(source), running=False)


def test_mover_killed_at_the_handover_of_one_that_is_off(off: Guest) -> None:
    """After the decision it is the target's."""
    move = off.stopped("committed")
    kill(move.source, MOVER)
    off.settle(move.target, running=False)


def test_target_fills_up_at_the_handover_of_one_that_is_off(off: Guest) -> None:
    """It cannot write that the guest is its own: that waits until there is room."""
    source = off.source()
    target = off.fleet.other(source)
    with little_room(target):
        move = off.stopped("committed")
        fill_up(target)
        go_on(move)
        result = move.result()
        assert (result["outcome"], result["failed_phase"]) == ("waiting", "activate"), result
        target.run("rm", FILLING)
        off.recover()
        off.settle(target, running=False)
        assert off.start().result()["outcome"] == "target"
        off.settle(source, running=False)


def test_link_cut_at_the_handover_of_one_that_is_off(off: Guest) -> None:
    """After the decision nobody takes it back. When the link is mended it is the target's."""
    move = off.stopped("committed")
    with off.fleet.cut(move.target):
        go_on(move)
        result = move.result()
        assert result["outcome"] == "waiting", result
    off.recover()
    off.settle(move.target, running=False)


# --- hosts lose power ---


def lose_power(guest: Guest, move: Move) -> None:
    """The target is off. The mover does not stand still until that has been seen to: then it would be killed."""
    guest.fleet.unplug(move.target)
    go_on(move)
    guest.fleet.power_cut(move.target)


@pytest.mark.parametrize("at", ["preflight", "begun", "template", "prepare", "memory", "frozen", "committed", "active"])
def test_target_loses_power(bare: Guest, at: str) -> None:
    """Before the decision the source goes on by itself; after it nobody does until the target can be asked."""
    guest, move = bare, under_way(bare, at)
    decided = at in ("committed", "active")
    lose_power(guest, move)
    result = move.result()
    assert result["outcome"] == ("waiting" if decided else "source"), result
    if decided:
        assert guest.look(move.source)["state"] == "paused"
    else:
        guest.counts_on(move.source)
    guest.boots(move.target)
    if decided:
        guest.recover()
    if at == "active":
        guest.begins_anew(move.target, [move.source, move.target])
    else:
        # The copy never ran, so nothing is lost: it goes on where it stood.
        guest.check(move.source, [move.source])


def test_target_loses_power_when_it_has_run(guest: Guest) -> None:
    """It was there, and so it is started anew there when the host is back, with its disk."""
    move = guest.stopped("leaving")
    lose_power(guest, move)
    result = move.result()
    assert result["outcome"] == "target", result
    guest.boots(move.target)
    guest.begins_anew(move.target, [move.source, move.target])


@pytest.mark.parametrize(
    "at", ["preflight", "begun", "template", "prepare", "memory", "frozen", "arrived", "committed", "active", "leaving"]
)
def test_source_loses_power(bare: Guest, at: str) -> None:
    """Before the decision it is started at the source when that is back; after it, it goes on at the target."""
    guest = bare
    move = guest.arrived() if at == "arrived" else under_way(guest, at)
    decided = at in ("committed", "active", "leaving")
    guest.fleet.power_cut(move.source)
    if at == "active":
        kill(move.target, SERVE, CONT)
    if not decided:
        assert guest.stays() == [move.source.name]
    guest.boots(move.source)
    guest.recover()
    if decided:
        guest.check(move.target, [move.source, move.target])
    else:
        guest.begins_anew(move.source, [move.source])


@pytest.mark.parametrize("side", ["source", "target"])
def test_host_loses_power_while_disks_are_copied(off: Guest, side: str) -> None:
    """It stays where it is, and does not run there; what has come of its disks does not stay."""
    move = off.stopped("disks")
    assert set(off.look(move.target)["files"]) - {"owner.json"}
    if side == "source":
        off.fleet.power_cut(move.source)
        gone = move.source
    else:
        lose_power(off, move)
        gone = move.target
        result = move.result()
        assert result["outcome"] == "source", result
    off.boots(gone)
    off.settle(move.source, running=False)


@pytest.mark.parametrize("side", ["source", "target"])
def test_host_loses_power_at_the_handover_of_one_that_is_off(off: Guest, side: str) -> None:
    """After the decision; nobody had started it yet. It is in one place, with its disks."""
    move = off.stopped("committed")
    if side == "source":
        off.fleet.power_cut(move.source)
        off.boots(move.source)
    else:
        lose_power(off, move)
        result = move.result()
        assert result["outcome"] == "waiting", result
        off.boots(move.target)
    off.recover()
    off.settle(off.source(), running=False)


def test_it_starts_with_its_host(guest: Guest) -> None:
    """Nobody was moving it. What it is plugged into comes up later than libvirt could."""
    home = guest.source()
    slow = "/etc/systemd/system/cnvm-overlay.service.d"
    home.sh(f"mkdir -p {slow}; printf '[Service]\nExecStartPre=sleep 5\n' >{slow}/slow.conf")
    try:
        guest.fleet.power_cut(home)
        guest.fleet.change(**{home.name: {"state": "present"}})
    finally:
        home.sh(f"rm -r {slow}; systemctl daemon-reload")
    guest.listen(home)
    guest.begins_anew(home, [home])


@pytest.mark.parametrize("side", ["source", "target"])
def test_host_loses_power_in_the_drain(lazy: Guest, side: str) -> None:
    """With the rest of its memory on one host, and what it did since on the other: it is started anew at the target."""
    move = lazy.lazily()
    gone = move.source if side == "source" else move.target
    lazy.fleet.power_cut(gone)
    if side == "target":
        result = move.result()
        assert result["outcome"] == "waiting", result
    lazy.boots(gone)
    lazy.recover()
    lazy.begins_anew(move.target, [move.source, move.target])


@pytest.mark.parametrize("at", ["arrived", "committed"])
def test_source_is_dead_for_good(guest: Guest, at: str) -> None:
    """By the user's word: the copy that stands still goes on, with its memory, whatever the source had decided. The
    dead may come back, and asks before it starts anything."""
    move = guest.arrived() if at == "arrived" else guest.stopped(at)
    guest.fleet.power_cut(move.source)
    (result,) = move.target.helper("recover", "--fenced", move.source.name, guest.name)["results"]
    assert result["outcome"] == "target", result
    guest.counts_on(move.target)
    guest.boots(move.source)
    guest.check(move.target, [move.source, move.target])


def test_source_is_dead_for_good_before_all_has_come(guest: Guest) -> None:
    """What is not whole never runs. There is only what lies on the dead, which may come back."""
    move = guest.stopped("frozen")
    guest.fleet.power_cut(move.source)
    (result,) = move.target.helper("recover", "--fenced", move.source.name, guest.name)["results"]
    assert result["outcome"] == "none", result
    assert guest.look(move.target)["state"] == ""
    guest.boots(move.source)
    guest.begins_anew(move.source, [move.source])


def test_target_is_dead_for_good(guest: Guest) -> None:
    """By the user's word: the guest goes on where it stands still. The dead may come back."""
    move = guest.stopped("committed")
    lose_power(guest, move)
    result = move.result()
    assert result["outcome"] == "waiting", result
    (result,) = move.source.helper("recover", "--fenced", move.target.name, guest.name)["results"]
    assert result["outcome"] == "source", result
    guest.counts_on(move.source)
    guest.boots(move.target)
    guest.check(move.source, [move.source])


# --- the controller, and moves that meet ---


def kill_controller(guest: Guest, source: Host, trap: Trap, **more: t.Any) -> tuple[str, ...]:
    """A playbook moves the guest, and is killed when the trap has sprung; the command. ``more``: options of the
    move."""
    target = guest.fleet.other(source)
    command = ("cnvm.platform.migrate", "-e", json.dumps({"guest": guest.name, "target": target.name, **more}))
    controller = subprocess.Popen(
        playbook_argv(*command), env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        trap.sprung()
    finally:
        os.killpg(controller.pid, KILL)
        controller.wait()
    return command


@pytest.mark.parametrize(
    "at", ["preflight", "begun", "template", "prepare", "memory", "frozen", "committed", "active", "leaving"]
)
def test_controller_killed(bare: Guest, at: str) -> None:
    """Nothing is decided by it: the move goes on. The same task again says that it is there."""
    source = bare.source()
    target = bare.fleet.other(source)
    command = kill_controller(bare, source, bare.trap(source, at))
    kill(target if at == "active" else source, SERVE if at == "active" else MOVER, CONT)
    bare.check(target, [source, target])
    assert "changed=1" not in playbook(*command).stdout


def refused_meanwhile(guest: Guest, move: Move) -> None:
    """Another move of it is refused at once, and so is one in the opposite direction."""
    for host in (move.source, move.target):
        request = json.dumps({"guest": guest.name, "target": guest.fleet.other(host).name})
        assert "failed" in host.helper("move", "start", request, check=False)


def test_started_twice(bare: Guest) -> None:
    """The first does not notice, wherever it is."""
    for move in at_each(bare, "begun", "template", "prepare", "frozen", "committed", "active", "leaving"):
        refused_meanwhile(bare, move)
    bare.arrives(move)


def test_started_twice_while_memory_is_copied(guest: Guest) -> None:
    """The first goes on with it, and is cleaned up after like any other."""
    move = guest.slowly()
    refused_meanwhile(guest, move)
    assert move.status()["phase"] == "memory"
    kill(move.source, MOVER)
    guest.check(move.source, [move.source])


def test_recover_killed_on_the_target(guest: Guest) -> None:
    """With the source dead for good: the copy is the target's by then, and the same again lets it go on."""
    move = guest.arrived()
    guest.fleet.power_cut(move.source)
    asked = ("cnvm-host", "recover", "--fenced", move.source.name, guest.name)
    owned = {"file": f"{guest.home}/owner.json", "text": f'"{move.target.name}"'}
    trap = Trap(move.target, **owned, signal=STOP, victim="cnvm-host recover")
    first = subprocess.Popen(move.target.argv(*asked, own_connection=True), stdout=subprocess.DEVNULL)
    try:
        trap.sprung()
    finally:
        kill(move.target, "cnvm-host recover", check=False)
        first.wait()
    (result,) = move.target.helper(*asked[1:])["results"]
    assert result["outcome"] == "target", result
    guest.counts_on(move.target)
    guest.boots(move.source)
    guest.check(move.target, [move.source, move.target])


def test_recover_killed(guest: Guest) -> None:
    """In the middle of it: the next one ends what it has left."""
    move = guest.stopped("committed")
    trap = guest.trap(move.source, "leaving", "cnvm-host recover")
    kill(move.source, MOVER)
    trap.sprung()
    kill(move.source, "cnvm-host recover")
    assert guest.look(move.source)["journal"]
    playbook("cnvm.platform.recover", "-e", f"guest={guest.name}")
    guest.check(move.target, [move.source, move.target])
