# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import pool
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.pool import Plan, Seen, plan

# -- What libvirt says of pools (recorded)

DIR_LIVE = """<pool type='dir'>
  <name>images</name>
  <uuid>1f1b7a2e-7d5e-4ad9-9a10-6d8f3d0b8c1e</uuid>
  <capacity unit='bytes'>105089261568</capacity>
  <allocation unit='bytes'>22008889344</allocation>
  <available unit='bytes'>83080372224</available>
  <source>
  </source>
  <target>
    <path>/srv/images/</path>
    <permissions>
      <mode>0711</mode>
      <owner>0</owner>
      <group>64055</group>
      <label>system_u:object_r:virt_image_t:s0</label>
    </permissions>
  </target>
</pool>
"""

LOGICAL = """<pool type='logical'>
  <name>vg0</name>
  <uuid>2f1b7a2e-7d5e-4ad9-9a10-6d8f3d0b8c1e</uuid>
  <capacity unit='bytes'>0</capacity>
  <allocation unit='bytes'>0</allocation>
  <available unit='bytes'>0</available>
  <source>
    <device path='/dev/sdb'/>
    <device path='/dev/sdc'/>
    <name>vg0</name>
    <format type='lvm2'/>
  </source>
  <target>
    <path>/dev/vg0</path>
  </target>
</pool>
"""

STRANGE = """<pool type='netfs'>
  <name>iso</name>
  <features><cow state='no'/></features>
  <source>
    <host name='nas.example' port='2049'/>
    <dir path='/export/iso'/>
    <format type='nfs'/>
    <protocol ver='4.2'/>
    <vendor name='x'/>
  </source>
  <target><path>/srv/iso</path><encryption format='luks'/></target>
</pool>
"""


def description(item: dict[str, t.Any]) -> dict[str, t.Any]:
    """The normal form alone, as parse() returns it."""
    return {key: item[key] for key in pool.DEFAULTS}


def test_parse_of_what_libvirt_says() -> None:
    wanted = {"name": "images", "path": "/srv/images", "mode": "711", "owner": 0, "group": "64055"}
    assert pool.parse(DIR_LIVE) == description(pool.normalise(wanted))
    assert pool.uuid_of(DIR_LIVE) == "1f1b7a2e-7d5e-4ad9-9a10-6d8f3d0b8c1e"
    logical = {"name": "vg0", "type": "logical", "volume_group": "vg0", "devices": ["/dev/sdb", "/dev/sdc"]}
    assert pool.parse(LOGICAL) == description(pool.normalise(logical))
    assert pool.normalise({**logical, "devices": [""]})["devices"] == [], "what Ansible makes of an empty text"


def test_parse_puts_the_rest_into_words() -> None:
    found = pool.parse(STRANGE)
    assert (found["host"], found["export"], found["path"]) == ("nas.example", "/export/iso", "/srv/iso")
    assert found["other"] == [
        "features (cow state=no)",
        "source protocol ver=4.2",
        "source vendor name=x",
        "target encryption format=luks",
        "source/host port=2049",
    ]


PATHS = st.lists(st.text("abc<>&\"' .-", min_size=1, max_size=5), min_size=1, max_size=3).map(
    lambda parts: "/srv/" + "/".join(part.replace(".", "_").strip() or "x" for part in parts)
)


@st.composite
def items(draw: t.Any) -> dict[str, t.Any]:
    """What a user may write; paths may have what XML has to escape."""
    kind = draw(st.sampled_from(pool.TYPES))
    item: dict[str, t.Any] = {"name": "p", "type": kind}
    if kind == "logical":
        return {**item, "volume_group": "vg0", "devices": draw(st.lists(PATHS, unique=True, max_size=3))}
    item["path"] = draw(PATHS)
    if kind == "fs":
        item.update(device=draw(PATHS), format=draw(st.sampled_from(["auto", "xfs"])))
    if kind == "netfs":
        item.update(host="nas.example", export=draw(PATHS), format=draw(st.sampled_from([None, "nfs"])))
    for key, values in (("mode", ["0711", "700"]), ("owner", [0, "64055"]), ("group", ["0"])):
        if draw(st.booleans()):
            item[key] = draw(st.sampled_from(values))
    return item


@given(items())
def test_what_was_built_is_read_again(item: dict[str, t.Any]) -> None:
    normal = pool.normalise(item)
    assert pool.parse(pool.build(normal, normal["name"])) == description(normal)
    assert pool.uuid_of(pool.build(normal, "p", "1-2")) == "1-2"


# -- What a user may write

NFS = {"name": "iso", "type": "netfs", "path": "/srv/iso", "host": "nas", "export": "/export/iso"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"name": "a"}, "path is missing"),
        ({"name": 7, "path": "/srv/a"}, "not text"),
        ({"name": "a<b", "path": "/srv/a"}, "not allowed"),
        ({"name": "../a", "path": "/srv/a"}, "not allowed"),
        ({"name": "a", "path": "srv/a"}, "absolute path"),
        ({"name": "a", "path": "/srv/../etc/a"}, "absolute path"),
        ({"name": "a", "path": "/srv/a\nb"}, "absolute path"),
        ({"name": "a", "path": 5}, "not text"),
        ({"name": "a", "path": "/"}, "directory of the system"),
        ({"name": "a", "path": "//etc//"}, "directory of the system"),
        ({"name": "a", "path": "/etc/cnvm"}, "directory of the system"),
        ({"name": "a", "path": "/var/lib/cnvm/"}, "directory of the system"),
        ({"name": "a", "path": "/srv/a", "mode": 457}, "in quotes"),
        ({"name": "a", "path": "/srv/a", "mode": "0999"}, "in quotes"),
        ({"name": "a", "path": "/srv/a", "mode": "4755"}, "in quotes"),
        ({"name": "a", "path": "/srv/a", "owner": "a b"}, "a name or a number"),
        ({"name": "a", "path": "/srv/a", "owner": True}, "not text"),
        ({"name": "a", "path": "/srv/a", "device": "/dev/sdb"}, "type dir has no device"),
        ({"name": "a", "path": "/srv/a", "type": "iscsi"}, "type"),
        ({"name": "a", "path": "/srv/a", "state": "running"}, "state"),
        ({"name": "a", "path": "/srv/a", "state": False}, "state: False is not allowed"),
        ({"name": "a", "path": "/srv/a", "size": 5}, "unknown key"),
        ({"name": "a", "path": "/srv/a", "type": "fs"}, "device is missing"),
        ({"name": "a", "path": "/srv/a", "type": "fs", "device": "sdb"}, "absolute path"),
        ({"name": "a", "path": "/srv/a", "type": "fs", "device": "/dev/sdb", "format": "btrfs"}, "format"),
        ({**NFS, "host": "a b"}, "a name or an address"),
        ({**NFS, "host": None}, "host is missing"),
        ({**NFS, "devices": ["/dev/sdb"]}, "no devices"),
        ({"name": "a", "type": "logical", "volume_group": "../x"}, "lvm"),
        ({"name": "a", "type": "logical", "volume_group": ".."}, "lvm"),
        ({"name": "a", "type": "logical", "volume_group": "vg0", "path": "/dev/vg0"}, "no path"),
        ({"name": "a", "type": "logical", "volume_group": "vg0", "mode": "0700"}, "no permissions"),
        ({"name": "a", "type": "logical", "volume_group": "vg0", "devices": {"a": 1}}, "not a list"),
        ({"name": "a", "type": "logical", "volume_group": "vg0", "devices": ["/dev/sdb"] * 2}, "given twice"),
    ],
)
def test_bad_input_is_refused(item: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        pool.normalise(item)
    assert words in str(error.value)


def test_list_has_nothing_twice() -> None:
    one = {"name": "a", "path": "/srv/a"}
    with pytest.raises(InputError, match="given twice"):
        pool.normalise_all([one, {"name": "a", "state": "absent"}])
    with pytest.raises(InputError, match="same path"):
        pool.normalise_all([one, {"name": "b", "path": "/srv//a/"}])
    with pytest.raises(InputError, match="not a list"):
        pool.normalise_all(one)
    assert len(pool.normalise_all([one, {"name": "b", "path": "/srv/a", "state": "absent"}])) == 2


# -- The steps


def item(**changes: t.Any) -> dict[str, t.Any]:
    return pool.normalise({"name": "images", "path": "/srv/images", **changes})


def has(**changes: t.Any) -> dict[str, t.Any]:
    normal = item(**changes)
    return pool.parse(pool.build(normal, "images"))


def seen(*, active: bool = True, autostart: bool = True, guests: tuple[str, ...] = (), **changes: t.Any) -> Seen:
    directory = {"mode": "0755", "owner": "0", "group": "0"}
    return Seen(has(**changes), has(**changes) if active else None, autostart, directory, guests)


def test_new_pool() -> None:
    assert plan(item(), Seen()).actions == ["define", "start", "enable"]
    assert plan(item(state="present"), Seen()).actions == ["define"]
    done = plan(item(mode="0711"), Seen())
    assert done.permissions
    assert done.actions == ["define", "start", "enable"]


def test_nothing_to_do() -> None:
    assert not plan(item(), seen()).changed
    assert not plan(item(state="absent"), Seen()).changed
    assert not plan(item(state="inactive"), seen(active=False, autostart=False)).changed
    assert not plan(item(state="present"), seen(active=False)).changed
    # libvirt notes what it found; nobody asked for it.
    live = {**has(), "mode": "0755", "owner": "0", "group": "0"}
    assert not plan(item(), Seen(live, live, True)).changed


def test_permissions_are_changed_in_place() -> None:
    done = plan(item(mode="0711"), seen())
    assert done.actions == ["change mode"]
    assert (done.define, done.permissions, done.stop) == (True, True, False)
    # Somebody changed the directory itself.
    done = plan(item(mode="0711"), seen(mode="0711"))
    assert done.actions == ["change mode"]
    assert (done.define, done.permissions) == (False, True)
    assert not plan(item(mode="0755"), seen(mode="0755")).changed


def test_another_path_needs_a_restart() -> None:
    done = plan(item(path="/srv/other"), seen(guests=("web",)))
    assert done.actions == ["change path", "restart"]
    assert not plan(item(path="/srv/other"), seen(active=False, autostart=False)).restart
    # Stored already, but not in force.
    assert plan(item(), Seen(has(), has(path="/srv/other"), True)).actions == ["change path", "restart"]


def test_mounted_pool_is_not_stopped_under_guests() -> None:
    nfs: dict[str, t.Any] = {"type": "netfs", "host": "nas", "export": "/export"}
    for change in (item(state="inactive"), item(state="absent"), item(**{**nfs, "host": "other"})):
        with pytest.raises(Refused, match="db, web"):
            plan(change, seen(guests=("db", "web"), **nfs))
    assert plan(item(state="absent"), seen(guests=("web",))).actions == ["stop", "undefine"]


def test_what_is_not_described_goes_with_a_word() -> None:
    strange = {**has(), "other": ["features (cow state=no)"]}
    done = plan(item(), Seen(strange, strange, True))
    assert done.lost == ("features (cow state=no)",)
    assert done.actions == ["change other", "restart"]


@given(items(), items(), st.booleans(), st.sampled_from(pool.STATES), st.sampled_from([None, True, False]))
def test_any_plan_leads_to_what_is_wanted_and_then_to_nothing(
    one: dict[str, t.Any], other: dict[str, t.Any], active: bool, state: str, autostart: t.Optional[bool]
) -> None:
    stored = pool.parse(pool.build(pool.normalise(one), "p"))
    want = pool.normalise({**other, "state": state, "autostart": autostart})
    before = Seen(stored, stored if active else None, True, {"mode": "0755", "owner": "7", "group": "7"})
    done = plan(want, before)
    after = _apply(done, before)
    assert not plan(want, after).changed
    assert (state == "absent") == (not after.there)


def _apply(done: Plan, before: Seen) -> Seen:
    live = None if done.stop else before.live
    config = None if done.undefine else before.config
    directory = dict(before.directory or {})
    if done.define:
        assert done.description is not None
        config = pool.parse(pool.build(done.description, done.name))
    if done.start:
        live = config
    if done.permissions and done.description:
        directory.update({key: done.description[key] for key in pool.PERMISSIONS if done.description[key] is not None})
    autostart = before.autostart if done.autostart is None else done.autostart
    return Seen(config, live, autostart and config is not None, directory)


# -- Who uses files of it

DOMAIN = """<domain type='qemu' id='3'>
  <name>web</name>
  <devices>
    <disk type='file' device='disk'>
      <source file='/srv/images/web.qcow2' index='1'/>
      <backingStore type='file'><source file='/srv/templates/base.qcow2'/></backingStore>
    </disk>
    <disk type='block'><source dev='/dev/vg0/data'/></disk>
    <filesystem type='mount'><source dir='/srv/images'/></filesystem>
    <interface type='network'><source network='lan'/></interface>
  </devices>
</domain>
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/srv/images", ["/srv/images", "/srv/images/web.qcow2"]),
        ("/srv/templates", ["/srv/templates/base.qcow2"]),
        ("/dev/vg0", ["/dev/vg0/data"]),
        ("/srv/image", []),
        ("/srv", ["/srv/images", "/srv/images/web.qcow2", "/srv/templates/base.qcow2"]),
    ],
)
def test_disks_below(path: str, found: list[str]) -> None:
    assert pool.disks_below(DOMAIN, path) == found
