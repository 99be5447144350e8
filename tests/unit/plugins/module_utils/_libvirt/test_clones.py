# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One description of many guests: their names, and what becomes of it for each."""

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_definition, options
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.clones import (
    KEYS,
    Clone,
    clones_of,
    fill,
    name_of,
    normalise,
    together,
)

TEN = {"template": "debian", "pattern": "web%02d", "count": 10, "guest": {"memory_mib": 512}}
WEB7 = Clone("web07", 7)


# -- Names


def names(values: dict[str, t.Any]) -> list[str]:
    return [clone.name for clone in clones_of(values)]


def test_a_pattern_and_a_count() -> None:
    assert names({"pattern": "web%02d", "count": "3"}) == ["web01", "web02", "web03"]
    assert names({"pattern": "%03d-db", "count": 1}) == ["001-db"]
    assert names({"pattern": "w%d.example", "count": 11})[-1] == "w11.example"


def test_names() -> None:
    assert clones_of({"names": ["ada", "bob"]}) == (Clone("ada", 1), Clone("bob", 2))
    # What Ansible makes of "ada, bob".
    assert clones_of({"names": ["ada", " bob"]}) == (Clone("ada", 1), Clone("bob", 2))


def test_some_of_them_keep_their_numbers() -> None:
    assert clones_of({"pattern": "w%d", "count": 9, "numbers": ["7", 2]}) == (Clone("w7", 7), Clone("w2", 2))
    assert clones_of({"names": ["ada", "bob"], "numbers": [2]}) == (Clone("bob", 2),)
    assert clones_of({"pattern": "w%d", "numbers": [30]}) == (Clone("w30", 30),)


@pytest.mark.parametrize(("numbers", "found"), [(None, 3), ("", 3), ([], 0), ([""], 0)])
def test_an_empty_list_of_numbers_is_none_of_them(numbers: object, found: int) -> None:
    """With all of them, a host that has none would lose or make the clones of others. Ansible makes [""] of ""."""
    assert len(names({"pattern": "w%d", "count": 3, "numbers": numbers})) == found
    assert len(names({"names": ["a", "b", "c"], "numbers": numbers})) == found


@given(st.integers(1, 1000), st.sampled_from(["%d", "%02d", "%04d"]))
def test_all_names_of_a_pattern_differ_and_are_allowed(count: int, place: str) -> None:
    found = names({"pattern": f"web{place}", "count": count})
    assert len(set(found)) == count
    assert all(guest_definition.check_guest_name(name, "x") == name for name in found)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "pattern is missing"),
        ({"count": 3}, "pattern is missing"),
        ({"pattern": "web%d"}, "count is missing"),
        ({"names": []}, "pattern is missing"),
        ({"names": ["a"], "count": 1}, "names and pattern"),
        ({"names": {"a": 1}}, "not a list"),
        ({"names": ["a", "a"]}, "given twice"),
        ({"names": [7]}, r"names\[0\]"),
        ({"names": ["a/b"]}, r"names\[0\]"),
        ({"pattern": "web", "count": 2}, "pattern"),
        ({"pattern": "web%s", "count": 2}, "pattern"),
        ({"pattern": "w%d%d", "count": 2}, "pattern"),
        ({"pattern": "w%%d", "count": 2}, "pattern"),
        ({"pattern": "%d", "count": 2}, "all digits"),
        ({"pattern": "a b%d", "count": 2}, "pattern"),
        ({"pattern": 5, "count": 2}, "pattern"),
        ({"pattern": "x" * 62 + "%02d", "count": 2}, "pattern"),
        ({"pattern": "w%d", "count": 0}, "count"),
        ({"pattern": "w%d", "count": 1001}, "count"),
        ({"pattern": "w%d", "count": "1_0"}, "count"),
        ({"pattern": "w%d", "count": True}, "count"),
        ({"pattern": "w%d", "count": 3, "numbers": [4]}, r"numbers\[0\]"),
        ({"pattern": "w%d", "count": 3, "numbers": [1, 1]}, "given twice"),
        ({"pattern": "w%d", "count": 3, "numbers": 1}, "not a list"),
        ({"names": ["a"], "numbers": [2]}, r"numbers\[0\]"),
    ],
)
def test_what_is_refused(values: dict[str, t.Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        clones_of(values)


def test_the_width_is_a_least() -> None:
    assert name_of("w%02d", 100) == "w100"


# -- Descriptions


def test_name_and_number_stand_in_all_texts() -> None:
    value = {"fqdn": "{name}.example.org", "n": ["{index}", 5, None, {"x": "{name}{index}"}], "{name}": "{other}"}
    assert fill(value, WEB7) == {
        "fqdn": "web07.example.org",
        "n": ["7", 5, None, {"x": "web077"}],
        "{name}": "{other}",
    }


@pytest.mark.parametrize("text", ["echo ${name}", "${index}", "{{name}}", "{{ name }}", "{{index}}", "{name", "name}"])
def test_variables_of_others_stay_what_they_are(text: str) -> None:
    assert fill(text, WEB7) == text


def test_each_clone_is_a_guest_with_a_disk_of_the_template() -> None:
    wanted = normalise(TEN)
    assert len(wanted.items) == 10
    assert wanted.items[6] == {
        "name": "web07",
        "state": "running",
        "memory_mib": 512,
        "tags": {"template": "debian"},
        "disks": [{"template": "debian", "linked": True}],
    }
    found = guest_definition.normalise_all(list(wanted.items))
    assert [item["disks"][0]["name"] for item in found] == ["vda"] * 10
    assert len({item["uuid"] for item in found}) == 10


def test_all_options() -> None:
    wanted = normalise(
        {
            "template": "sha256:" + "a" * 64,
            "names": ["ada", "bob"],
            "linked": "no",
            "disk": {"size_mib": "20480", "bus": "scsi", "pool": "", "name": None},
            "state": "stopped",
            "guest": {
                "memory_mib": 2048,
                "description": "{name}",
                "tags": {"group": "front", "template": "mine", "number": "{index}"},
                "disks": [{"size_mib": 1024}],
                "networks": [{"type": "overlay", "address": "10.100.101.255"}, {"source": "default"}],
                "graphics": {"type": "vnc", "port": "5901"},
                "stop_timeout_s": 5,
            },
        }
    )
    ada, bob = guest_definition.normalise_all(list(wanted.items))
    assert [disk["name"] for disk in ada["disks"]] == ["sdc", "vda"]
    assert ada["disks"][0] == {
        **ada["disks"][0],
        "template": "a" * 64,
        "linked": False,
        "size_mib": 20480,
        "bus": "scsi",
    }
    assert (ada["description"], bob["tags"]) == ("ada", {"group": "front", "template": "mine", "number": "2"})
    assert [item["networks"][0]["address"] for item in (ada, bob)] == ["10.100.101.255", "10.100.102.0"]
    assert [item["graphics"]["port"] for item in (ada, bob)] == [5901, 5902]
    assert (ada["state"], ada["stop_timeout_s"]) == ("stopped", 5)


def test_without_a_description_only_the_state_is_changed() -> None:
    wanted = normalise({"pattern": "w%d", "count": 2, "state": "stopped", "guest": {"force_stop": True}})
    assert wanted.items[1] == {"name": "w2", "state": "stopped", "force_stop": True}
    assert not guest_definition.normalise(wanted.items[1])["described"]
    assert normalise({"pattern": "w%d", "count": 1, "template": "debian"}).items[0] == {
        "name": "w1",
        "state": "running",
    }


@pytest.mark.parametrize("state", ["running", "present", "stopped", "paused", "absent"])
def test_a_description_that_waits_for_its_clones_is_one_for_all_states(state: str) -> None:
    for guest in ({"memory_mib": 512, "wait_for": {"ssh": True}}, {"wait_for": "ssh"}):
        item = guest_definition.normalise(normalise({**TEN, "state": state, "guest": guest}).items[0])
        assert bool(item["wait_for"]) == (state == "running")


@pytest.mark.parametrize("guest", [None, {}, {"force_stop": True}, {"memory_mib": None}])
def test_a_disk_that_would_be_ignored_is_refused(guest: t.Any) -> None:
    wanted = {"pattern": "w%d", "count": 2, "template": "debian", "guest": guest}
    with pytest.raises(InputError, match="disk is given, and guest does not"):
        normalise({**wanted, "disk": {"size_mib": 20480}})
    assert normalise({**wanted, "disk": {"size_mib": None, "pool": ""}}).items[0]["name"] == "w1"
    assert normalise({**wanted, "disk": {"size_mib": 20480}, "state": "absent"}).state == "absent"


def test_of_one_that_is_to_go_nothing_else_counts() -> None:
    gone = normalise({**TEN, "state": "absent", "guest": {"memory_mib": 512, "delete_disks": True}})
    assert gone.items[0] == {"name": "web01", "state": "absent", "delete_disks": True}
    assert normalise({"names": ["a"], "state": "absent"}).items == ({"name": "a", "state": "absent"},)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"template": None}, "template is missing"),
        ({"template": "../x"}, "template"),
        ({"template": 7}, "template"),
        ({"state": "there"}, "state"),
        ({"linked": "perhaps"}, "linked"),
        ({"disk": {"path": "/dev/sda"}}, "path"),
        ({"disk": [1]}, "disk"),
        ({"guest": {"name": "x"}}, "name"),
        ({"guest": {"uuid": "x"}}, "uuid"),
        ({"guest": {"state": "running"}}, "state"),
        ({"guest": {"memory": 5}}, "memory"),
        ({"guest": [1]}, "guest"),
        ({"guest": {"memory_mib": 5, "disks": "vdb"}}, "disks"),
        ({"guest": {"memory_mib": 5, "graphics": {"type": "vnc", "port": 80}}}, "port"),
        ({"gest": {}}, "gest"),
    ],
)
def test_a_description_that_is_refused(more: dict[str, t.Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        normalise({**TEN, **more})


@pytest.mark.parametrize("key", ["pool", "serial"])
def test_text_that_yaml_made_a_number_of_is_refused(key: str) -> None:
    validated = ArgumentSpecValidator(options.CLONE).validate({**TEN, "disk": {key: 7}})
    assert validated.error_messages == []
    first = normalise({key: validated.validated_parameters[key] for key in KEYS})
    with pytest.raises(InputError, match=rf"{key}: 7 is not text\. Put it in quotes"):
        guest_definition.normalise(first.items[0])


def test_what_is_wrong_in_a_guest_is_said_by_the_guest() -> None:
    for guest in (
        {"memory_mib": "x"},
        {"memory_mib": 5, "tags": "a"},
        {"memory_mib": 64, "networks": [{"address": "x"}]},
    ):
        with pytest.raises(InputError):
            guest_definition.normalise_all(list(normalise({**TEN, "guest": guest}).items))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=6), below, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_whatever_is_given_it_is_understood_or_refused(values: dict[str, t.Any]) -> None:
    try:
        wanted = normalise(values)
    except InputError:
        return
    assert len(wanted.items) == len(wanted.clones) == len({item["name"] for item in wanted.items})


# -- Warnings


def test_what_is_said_of_many_is_said_once() -> None:
    said = ["Guest a is slow.", "Guest b is slow.", "Guest ab is old.", "The link is down.", "Guest c is slow."]
    assert together(said, {"a", "b", "ab", "c"}) == [
        "Guest a is slow. So it is with b, c.",
        "Guest ab is old.",
        "The link is down.",
    ]
    assert together([], {"a"}) == []
