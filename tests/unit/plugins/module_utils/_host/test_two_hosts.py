# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is at exactly one host, with all that it has written, whatever ends a move half-way: each effect in turn.

Where it is then is what the tables in docs/migrating-guests.md and docs/how-it-works.md say.
"""

from __future__ import annotations

import os
import tempfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

from .killing import Effects
from .two_hosts import Guest, Host, World, two_hosts

OWN, POOL, SHARED = Guest(True, "own"), Guest(True, "pool"), Guest(True, "shared")
UEFI = Guest(True, "own", uefi=True)
OFF, OFF_POOL, OFF_SHARED = Guest(False, "own"), Guest(False, "pool"), Guest(False, "shared")
ALL = (OWN, POOL, SHARED, UEFI, OFF, OFF_POOL, OFF_SHARED)
# More than any move has.
MOST = 300


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[World]:
    # In memory: a file system on a disk waits for it whenever a file is written over, and here are many.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as directory, two_hosts(Path(directory), monkeypatch) as made:
        yield made


def side(world: World, name: str) -> Host:
    return world.first if name == "source" else world.second


def at_each_effect(world: World, guest: Guest, name: str, then: t.Callable[[Host], None]) -> int:
    """A move in which one host stops at its first effect, then at its second, and so on; ``then`` is done each time.
    How often it stopped."""
    for last in range(MOST):
        world.begin(guest)
        host = side(world, name)
        host.effects = effects = Effects(last)
        world.move()
        if not effects.killed:
            assert world.wrong == []
            return last
        try:
            then(host)
        except AssertionError as error:
            raise AssertionError(f"The {name} stopped at effect {last + 1} ({effects.what}): {error}") from error
    raise AssertionError("The move came to no end.")


def at_each_message(world: World, guest: Guest, how: str, then: t.Callable[[], None]) -> int:
    """The same with the first message that is lost, the second, and so on."""
    for number in range(MOST):
        world.begin(guest)
        world.cut = (number, how)
        world.move()
        if not world.last_message:
            return number
        world.cut = (-1, "")
        try:
            then()
        except AssertionError as error:
            said = f"Message {number + 1} ({world.last_message}) was lost {how} it was done"
            raise AssertionError(f"{said}: {error}") from error
    raise AssertionError("The move came to no end.")


def committed(world: World) -> bool:
    """Whether the source has made the one decision."""
    return not world.first.owns


def came_alive(world: World) -> bool:
    """Whether the target has noted that it runs there."""
    return world.second.owns and world.second.journal.get("state") in (None, records.TARGET_ACTIVE)


def after_power_cut(world: World, host: Host) -> Host:
    """Where it ends. What stood still at a target that was off is gone, so it goes on at the source where it stood."""
    if host is world.second and world.guest.runs and not came_alive(world):
        return world.first
    return world.second if committed(world) else world.first


@pytest.mark.parametrize("guest", ALL, ids=str)
def test_a_move_that_nothing_ends(world: World, guest: Guest) -> None:
    world.begin(guest)
    assert world.move()["outcome"] == "target"
    world.check(world.second)


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("guest", ALL, ids=str)
def test_our_code_is_killed_at_any_effect(world: World, guest: Guest, name: str) -> None:
    def then(host: Host) -> None:
        where = world.second if committed(world) else world.first
        world.killed_comes_back(host)
        world.settle()
        world.check(where)

    assert at_each_effect(world, guest, name, then) > 20


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("guest", ALL, ids=str)
def test_the_power_is_cut_at_any_effect(world: World, guest: Guest, name: str) -> None:
    def then(host: Host) -> None:
        where = after_power_cut(world, host)
        world.power_cut(host)
        world.boots(host)
        world.settle()
        world.check(where)

    assert at_each_effect(world, guest, name, then) > 20


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("guest", ALL, ids=str)
def test_any_message_is_lost(world: World, guest: Guest, how: str) -> None:
    def then() -> None:
        where = world.second if committed(world) else world.first
        world.settle()
        world.check(where)

    assert at_each_message(world, guest, how, then) > 5


def whole_without(world: World, dead: Host) -> Host:
    """Where it ends when a host is dead for good, and comes back all the same later."""
    if dead is world.second:
        leaving = world.first.journal.get("state") in (None, records.SOURCE_LEAVING)
        return world.second if committed(world) and leaving else world.first
    state, there = world.second.journal.get("state"), world.second.domain
    if state == records.TARGET_PREPARED:
        # libvirt knows whether all of its memory has come.
        has_come = not world.guest.runs or (there is not None and there.stored is not None)
        return world.second if has_come else world.first
    return world.second if world.second.owns else world.first


@pytest.mark.parametrize("gone", ["source", "target"])
@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("guest", [OWN, SHARED, OFF_POOL], ids=str)
def test_after_any_effect_a_host_is_declared_dead_and_comes_back(
    world: World, guest: Guest, name: str, gone: str
) -> None:
    """That at which something stopped, or the other one. What was done there is lost, if the other one has it then."""

    def then(host: Host) -> None:
        dead = side(world, gone)
        where, other = whole_without(world, dead), world.other(dead)
        world.killed_comes_back(host)
        world.power_cut(dead)
        world.recover(other)
        if where is other:
            world.loses(dead)
        for _again in range(2):
            world.recover(other, fenced=dead.name)
        world.boots(dead)
        world.settle()
        world.check(where)

    assert at_each_effect(world, guest, name, then) > 20


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power"])
@pytest.mark.parametrize("guest", [POOL, OFF], ids=str)
def test_after_any_effect_the_same_move_is_started_again(world: World, guest: Guest, name: str, power: bool) -> None:
    def then(host: Host) -> None:
        if power:
            world.power_cut(host)
            world.boots(host)
        else:
            world.killed_comes_back(host)
        again(world)

    assert at_each_effect(world, guest, name, then) > 20


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("guest", [POOL, OFF], ids=str)
def test_after_any_lost_message_the_same_move_is_started_again(world: World, guest: Guest, how: str) -> None:
    def then() -> None:
        again(world)

    assert at_each_message(world, guest, how, then) > 5


def again(world: World) -> None:
    """It gets there, if it is not there already."""
    is_over = committed(world) and not world.first.journal
    said = world.start_again().split(".")[0]
    assert said in (["refused: web is not on host1: it runs on host2"] if is_over else ["already", "target"])
    world.settle()
    world.check(world.second)


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("guest", [OWN, SHARED], ids=str)
def test_both_hosts_lose_power_at_any_effect(world: World, guest: Guest, name: str) -> None:
    def then(dummy: Host) -> None:
        where = after_power_cut(world, world.second)
        for host in (world.first, world.second):
            world.power_cut(host)
        for host in (world.first, world.second):
            world.boots(host)
        world.settle()
        world.check(where)

    assert at_each_effect(world, guest, name, then) > 20


@pytest.mark.parametrize("name", ["source", "target"])
@pytest.mark.parametrize("second", [2, 6])
def test_recovery_is_killed_too(world: World, name: str, second: int) -> None:
    """At this effect of the first one after the fault."""

    def then(host: Host) -> None:
        where = world.second if committed(world) else world.first
        host.effects = Effects(second - 1)
        world.recover(host)
        world.killed_comes_back(host)
        world.settle()
        world.check(where)

    assert at_each_effect(world, OWN, name, then) > 20
