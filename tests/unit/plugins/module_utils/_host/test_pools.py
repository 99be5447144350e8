# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt, pools
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors
from ansible_collections.cnvm.platform.tests.unit.plugins.module_utils._host.fake_libvirt import (
    Driver,
    FakeError,
    Guest,
    Thing,
    module,
)


class World:
    """A host with libvirt and a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.driver = Driver()
        self.groups = ""

    def run(self, argv: t.Sequence[str], **dummy: t.Any) -> CommandResult:
        return CommandResult(tuple(argv), 0 if argv[-1] in self.groups.split() else 5, stdout=self.groups)

    def call(self, *items: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        return pools.bring_to(Host(run=self.run), list(items), **options)

    def pool(self, name: str = "images") -> Thing:
        return self.driver._look(self.driver.pools, name, 0)

    def dir(self, name: str = "images") -> str:
        path = self.root / name
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    binding = module(made.driver)
    monkeypatch.setattr(libvirt, "library", lambda: binding)
    monkeypatch.setattr(libvirt, "_code_names", dict)
    monkeypatch.setattr(pools, "LOCK_FILE", str(tmp_path / "lock"))
    return made


def test_new_pool_and_again(world: World) -> None:
    item = {"name": "images", "path": world.dir()}
    done = world.call(item)
    assert done["pools"] == [
        {
            "name": "images",
            "state": "active",
            "changed": True,
            "actions": ["define", "start", "enable"],
            "restarted": False,
            "path": item["path"],
            "capacity_bytes": 100,
            "allocation_bytes": 40,
            "available_bytes": 60,
        }
    ]
    assert not world.call(item)["changed"]


def test_only_what_is_not_there_is_made(world: World) -> None:
    world.call({"name": "there", "path": world.dir("there")}, {"name": "new", "path": f"{world.root}/new"})
    assert world.pool("there").calls == ["define", "create", "autostart 1"]
    assert world.pool("new").calls == ["define", "build 0", "create", "autostart 1"]


def test_check_mode_touches_nothing(world: World) -> None:
    item = {"name": "images", "path": world.dir(), "mode": "0700"}
    assert world.call(item, check_mode=True)["changed"]
    assert world.driver.pools == []
    assert os.stat(item["path"]).st_mode & 0o777 == 0o755


def test_check_mode_where_libvirt_is_still_to_be_installed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "available", lambda: False)
    item = {"name": "images", "path": world.dir(), "owner": "of-libvirt", "group": "of-libvirt"}
    found = world.call(item, check_mode=True)
    assert (found["changed"], found["pools"]) == (True, [])
    assert "This host has no libvirt." in found["warnings"][0]


def test_permissions_are_those_of_the_directory(world: World) -> None:
    item: dict[str, t.Any] = {"name": "images", "path": world.dir(), "mode": "0711", "owner": os.getuid()}
    world.call(item)
    assert os.stat(item["path"]).st_mode & 0o777 == 0o711
    os.chmod(item["path"], 0o777)
    done = world.call(item)
    assert done["pools"][0]["actions"] == ["change mode"]
    assert (done["diff"]["before"]["images"]["mode"], done["diff"]["after"]["images"]["mode"]) == ("0777", "0711")
    assert not world.call(item)["changed"]


def test_users_and_groups_are_known(world: World) -> None:
    world.call({"name": "images", "path": world.dir(), "owner": "root", "group": "0"}, check_mode=True)
    for wrong in ({"owner": "nobody-at-all"}, {"group": "nobody-at-all"}):
        with pytest.raises(HostError, match="nobody-at-all"):
            world.call({"name": "images", "path": world.dir(), **wrong})


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"path": "FILE"}, "is no directory"),
        ({"path": "TAKEN"}, "is that of the pool 'images'"),
        ({"path": "FREE", "type": "fs", "device": "/dev/nothing"}, "has no device"),
        ({"type": "logical", "volume_group": "vg9"}, "no volume group"),
    ],
)
def test_what_cannot_be_is_refused_before(world: World, item: dict[str, t.Any], words: str) -> None:
    world.call({"name": "images", "path": world.dir("TAKEN")})
    (world.root / "FILE").touch()
    if "path" in item:
        item = {**item, "path": f"{world.root}/{item['path']}"}
    with pytest.raises((HostError, Refused), match=words):
        world.call({"name": "new", **item})
    assert [each.name() for each in world.driver.listAllStoragePools(0)] == ["images"]


def test_a_path_is_free_once_its_pool_is_gone_or_elsewhere(world: World) -> None:
    a, b, c = ({"name": name, "path": world.dir(name)} for name in "abc")
    world.call(a, b)
    # What is moved is moved in turn.
    for other in (a, c):
        for check_mode in (True, False):
            with pytest.raises(Refused, match=r"'a': the path .*/b is that of the pool 'b', which is moved after it"):
                world.call({**a, "path": b["path"]}, {**b, "path": other["path"]}, check_mode=check_mode)
    assert not world.call(a, b)["changed"]
    assert world.call({**b, "path": c["path"]}, {**a, "path": b["path"]})["changed"]
    assert world.call({**a, "path": c["path"]}, {"name": "b", "state": "absent"})["changed"]


def test_volume_group_is_made_only_of_named_devices(world: World) -> None:
    item = {"name": "fast", "type": "logical", "volume_group": "vg0"}
    world.groups = "  vg0\n"
    world.call(item)
    assert world.pool("fast").calls == ["define", "create", "autostart 1"]
    world.groups = ""
    world.call({**item, "name": "new", "volume_group": "vg1", "devices": ["/dev/null"]})
    # 4: a device that holds something is refused by libvirt.
    assert world.pool("new").calls == ["define", "build 4", "create", "autostart 1"]


def test_new_pool_that_does_not_start_is_not_left_behind(world: World) -> None:
    thing = world.driver.storagePoolDefineXML("<pool type='dir'><name>images</name></pool>", 0)
    thing.stored = ""
    thing.trouble = ["mount: no"]
    world.driver._look = lambda things, name, code: thing  # type: ignore[method-assign]
    with pytest.raises(HostError, match="start the pool 'images': mount: no"):
        world.call({"name": "images", "path": world.dir()})
    assert thing.calls[-1] == "undefine"
    assert not thing.stored


def test_changed_pool_that_does_not_start_goes_back(world: World) -> None:
    item = {"name": "images", "path": world.dir()}
    world.call(item)
    before = world.pool().stored
    world.pool().trouble = ["no"]
    with pytest.raises(HostError, match="is active again as it was before"):
        world.call({**item, "path": world.dir("other")})
    assert (world.pool().stored, world.pool().live) == (before, before)


def test_pool_whose_stored_description_does_not_start_goes_back_to_what_was_active(world: World) -> None:
    item = {"name": "images", "path": world.dir()}
    world.call(item)
    was = world.pool().live
    stored = world.pool().stored = was.replace("images</path>", "gone</path>")

    def starts(thing: Thing) -> None:
        if thing.live != was:
            thing.live = ""
            raise FakeError(errors.OPERATION_FAILED, "no")

    world.driver.started = starts
    with pytest.raises(HostError, match="is active again as it was before"):
        world.call({**item, "path": world.dir("other")})
    assert (world.pool().live, world.pool().stored) == (was, stored)


def test_mounted_pool_that_guests_use(world: World) -> None:
    world.groups = "vg0"
    world.call({"name": "images", "type": "logical", "volume_group": "vg0"})
    world.driver.guests += [
        Guest("<domain><name>web</name><devices><disk><source dev='/dev/vg0/a'/></disk></devices></domain>"),
        Guest("<domain><name>db</name><devices><disk><source dev='/dev/vg1/a'/></disk></devices></domain>"),
    ]
    with pytest.raises(Refused) as error:
        world.call({"name": "images", "state": "absent"})
    assert error.value.details == {"guests": ["web"]}
    world.driver.guests.clear()
    assert world.call({"name": "images", "state": "absent"})["pools"][0]["actions"] == ["stop", "undefine"]


def test_one_pool_takes_the_place_of_another(world: World) -> None:
    world.call({"name": "images", "path": world.dir()})
    done = world.call({"name": "new", "path": world.dir()}, {"name": "images", "state": "absent"})
    assert [each["state"] for each in done["pools"]] == ["active", "absent"]


def test_report(world: World) -> None:
    world.call(
        {"name": "images", "path": world.dir()}, {"name": "later", "path": f"{world.root}/x", "state": "present"}
    )
    images, later = pools.report()
    assert (images["state"], images["mode"], images["capacity_bytes"]) == ("active", "0755", 100)
    assert (later["state"], later["mode"], "capacity_bytes" in later) == ("inactive", None, False)
    assert pools.report(["later", "nothing"]) == [later]
