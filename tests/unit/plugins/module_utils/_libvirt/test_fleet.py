# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones spread over hosts: descriptions, and plans that put each clone in one place and leave those that are there."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import clones
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.fleet import (
    KEYS,
    default_pattern,
    is_yaml,
    memory_mib,
    plan,
    read_lines,
    sets_of,
    why_silent,
)

SMALL = {"guest": {"memory_mib": 100}}
# The file that the description of cloudMe shows.
CLOUDME = "archlinux:2:pf1:web\narchlinux:1:pf1:sql\n"


def guest(name: str, memory: int = 100, state: str = "running", **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "managed": True, "state": state, "memory_mib": memory, **more}


def hosts(*guests: list[dict[str, t.Any]], memory: int = 1000) -> dict[str, t.Any]:
    return {f"h{number}": {"memory_mib": memory, "guests": list(here)} for number, here in enumerate(guests, 1)}


def spread(description: t.Any, places: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
    return plan(description, places, **{"defaults": SMALL, "reserve_mib": 0, **options})


# -- Descriptions


def test_cloudme_s_file_works_as_it_is() -> None:
    assert read_lines(CLOUDME) == [
        {"template": "archlinux", "count": 2, "group": "pf1", "type": "web"},
        {"template": "archlinux", "count": 1, "group": "pf1", "type": "sql"},
    ]
    found = spread(CLOUDME, hosts([]))
    assert list(found["placement"]) == ["archlinux-pf1-sql-1", "archlinux-pf1-web-1", "archlinux-pf1-web-2"]
    web, sql = found["calls"]["h1"]
    assert web == {
        "template": "archlinux",
        "state": "running",
        "count": 2,
        "pattern": "archlinux-pf1-web-%d",
        "guest": {"memory_mib": 100, "tags": {"group": "pf1", "type": "web"}},
        "numbers": [1, 2],
    }
    assert sql["guest"]["tags"] == {"group": "pf1", "type": "sql"}


def test_lines_that_say_the_same_add_up() -> None:
    text = "# mine\n\n a : 2 : g : x \na:1\r\na:3:g:x # again\na:1::\n"
    assert [(item["count"], item["group"]) for item in read_lines(text)] == [(5, "g"), (2, "")]


@pytest.mark.parametrize(
    "line",
    ["a", "a:b", "a:0:g:t", "a:-1", "a:1:g:t:x", ":1:g:t", "a:1e3", "a:1001", "a: :g", "::::"],
)
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(InputError, match="line 3"):
        read_lines(f"a:1\n\n{line}\n")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        sets = sets_of(text, SMALL)
    except InputError:
        return
    assert all(one.clones for one in sets)


def test_a_list_is_told_from_lines() -> None:
    assert is_yaml("# mine\n\n- template: a\n  count: 2\n")
    assert is_yaml("---\n- {template: a}")
    assert is_yaml("[]")
    assert not is_yaml(CLOUDME)
    assert not is_yaml("# - a\na:1\n- b\n")
    assert not is_yaml("")


def test_names_follow_from_the_line_and_from_nothing_else() -> None:
    assert default_pattern("arch", "pf1", "web") == "arch-pf1-web-%d"
    assert default_pattern("arch", "", "") == "arch-%d"
    assert default_pattern("a" * 64, "g", "") == "a" * 12 + "-g-%d"
    one = sets_of("a:2:g:x\nb:2:g:x", SMALL)
    other = sets_of("b:2:g:x\na:5:g:x", SMALL)
    assert {clone.name for each in one for clone in each.clones} <= {
        clone.name for each in other for clone in each.clones
    }


def test_what_a_set_says_goes_over_what_all_have() -> None:
    defaults = {
        "guest": {"memory_mib": 100, "vcpus": 1, "tags": {"team": "x", "group": "none"}},
        "disk": {"size_mib": 1000},
        "linked": True,
        "state": "stopped",
    }
    item = {
        "template": "sha256:" + "a" * 64,
        "names": ["ada", "bob"],
        "group": "front",
        "type": "db",
        "guest": {"memory_mib": "200", "tags": {"type": "sql"}},
        "linked": False,
        "state": "running",
        "max_per_host": 1,
        "hosts": ["h2", "h1"],
    }
    (one,) = sets_of([item], defaults)
    assert one.call == {
        "template": "a" * 64,
        "state": "running",
        "names": ["ada", "bob"],
        "linked": False,
        "disk": {"size_mib": 1000},
        "guest": {"memory_mib": "200", "vcpus": 1, "tags": {"team": "x", "group": "front", "type": "sql"}},
    }
    assert (one.memory_mib, one.max_per_host, one.hosts, one.group) == (200, 1, ("h2", "h1"), "front")
    assert clones.normalise(one.call).clones == one.clones


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ("x", "mapping"),
        ({}, "template is missing"),
        ({"template": "a"}, "count is missing"),
        ({"template": "a/b", "count": 1}, "template"),
        ({"template": "a", "count": 0}, "count"),
        ({"template": "a", "count": 1, "pattern": "x"}, "pattern"),
        ({"template": "a", "names": ["x"], "count": 1}, "names and pattern"),
        ({"template": "a", "count": 1, "group": "a b"}, "group"),
        ({"template": "a", "count": 1, "type": 7}, "type"),
        ({"template": "a", "count": 1, "state": "up"}, "state"),
        ({"template": "a", "count": 1, "state": False}, "state"),
        ({"template": "a", "count": 1, "guest": 5}, "guest"),
        ({"template": "a", "count": 1, "guest": {"tags": 5}}, "tags"),
        ({"template": "a", "count": 1, "guest": {"memory_mib": "much"}}, "memory_mib"),
        ({"template": "a", "count": 1, "max_per_host": -1}, "max_per_host"),
        ({"template": "a", "count": 1, "hosts": "h1"}, "hosts"),
        ({"template": "a", "count": 1, "host": "h1"}, "host"),
    ],
)
def test_a_set_that_is_refused(item: t.Any, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        sets_of([{"template": "b", "count": 1}, item], SMALL)
    assert "clones[1]" in caught.value.message


def test_a_name_stands_for_one_clone() -> None:
    with pytest.raises(InputError, match="'a-1' is a clone of"):
        sets_of([{"template": "a", "count": 1}, {"template": "b", "names": ["a-1"]}], SMALL)
    with pytest.raises(InputError, match="not a list"):
        sets_of(5, SMALL)
    with pytest.raises(InputError, match="more than"):
        sets_of([{"template": "a", "count": 1000, "group": f"g{number}"} for number in range(11)], SMALL)
    assert sets_of(None, SMALL) == []


# -- Plans


def test_they_are_spread() -> None:
    found = spread("a:5:g:x", hosts([], [], []))
    assert found["placement"] == {"a-g-x-1": "h1", "a-g-x-2": "h2", "a-g-x-3": "h3", "a-g-x-4": "h1", "a-g-x-5": "h2"}
    assert found["calls"]["h2"][0]["numbers"] == [2, 5]
    assert found["templates"] == {"a": ["h1", "h2", "h3"]}
    assert found["new"] == [f"a-g-x-{number}" for number in range(1, 6)]


def test_one_that_is_there_stays() -> None:
    found = spread("a:3", hosts([guest("a-1"), guest("a-2"), guest("a-3")], []))
    assert set(found["placement"].values()) == {"h1"}
    assert (found["new"], found["templates"], found["calls"]["h2"]) == ([], {}, [])
    # The next one goes where there is none.
    assert spread("a:4", hosts([guest("a-1"), guest("a-2"), guest("a-3")], []))["placement"]["a-4"] == "h2"


def test_one_that_went_away_is_where_it_is() -> None:
    moved = {"name": "a-1", "managed": False, "state": "moved", "placement": "h2"}
    found = spread("a:2", hosts([moved, guest("a-2")], [guest("a-1")]))
    assert (found["placement"], found["elsewhere"]) == ({"a-1": "h2", "a-2": "h1"}, {})
    # Its host is not in this play: nothing is made here.
    found = spread("a:2", hosts([{**moved, "placement": "h9"}, guest("a-2")]))
    assert (found["elsewhere"], found["new"]) == ({"a-1": "h9"}, [])
    assert found["calls"]["h1"][0]["numbers"] == [2]


def test_one_whose_making_was_cut_off_is_made_where_it_was_begun() -> None:
    begun = {"name": "a-1", "managed": False, "state": "missing", "placement": "h2", "begun": True}
    found = spread("a:2", hosts([], [begun]))
    assert (found["placement"]["a-1"], found["new"]) == ("h2", ["a-2"])


def test_one_that_was_moved_and_removed_is_made_again() -> None:
    moved = {"name": "a-1", "managed": False, "state": "moved", "placement": "h2"}
    assert spread("a:1", hosts([moved], []))["new"] == ["a-1"]
    assert spread("a:1", hosts([moved]), others={"h2": {"guests": []}})["new"] == ["a-1"]
    # Not while it is on its way, nor when the host was not asked or did not answer.
    assert spread("a:1", hosts([moved]), gone=["h2"])["new"] == ["a-1"]
    assert spread("a:1", hosts([{**moved, "moving": True}], []))["elsewhere"] == {"a-1": "h2"}
    assert spread("a:1", hosts([moved]))["elsewhere"] == {"a-1": "h2"}
    assert spread("a:1", hosts([moved]), others={"h2": {"unreachable": True}})["elsewhere"] == {"a-1": "h2"}


def test_one_on_a_host_that_is_left_out_is_not_made_again() -> None:
    """As with --limit."""
    others = {"h8": {"guests": [guest("a-2"), {"name": "a-1", "managed": False, "state": "running"}]}}
    found = spread("a:3", hosts([]), others=others)
    assert found["elsewhere"] == {"a-2": "h8"}
    assert found["new"] == ["a-1", "a-3"]
    assert found["calls"]["h1"][0]["numbers"] == [1, 3]
    with pytest.raises(Refused, match="Both h1 and h8"):
        spread("a:3", hosts([guest("a-2")]), others=others)


SILENT = {
    "h7": {"unreachable": True, "msg": "Failed to connect:\n no route "},
    "h8": {"failed": True, "msg": "libvirt is not there."},
    "h9": {},
}


def test_nothing_is_made_that_a_silent_host_may_have() -> None:
    with pytest.raises(Refused) as caught:
        spread("a:7", hosts([guest("a-1")]), others=SILENT)
    assert "Whether a-2, a-3, a-4, a-5, a-6 and 1 more are there already is not known: " in caught.value.message
    assert "h7 did not answer (Failed to connect: no route); h8 could not tell (libvirt is not there); " in (
        caught.value.message
    )
    assert "h9 was not asked" in caught.value.message
    assert "guest_fleet_gone_hosts" in caught.value.hint
    with pytest.raises(Refused, match="Whether a-2 is there already is not known: h9"):
        spread("a:2", hosts([guest("a-1")]), others=SILENT, gone=["h7", "h8"])


def test_a_host_that_is_named_as_gone_need_not_answer() -> None:
    for gone in (["h7", "h8", "h9"], "h7, h8,h9"):
        assert spread("a:2", hosts([guest("a-1")]), others=SILENT, gone=gone)["new"] == ["a-2"]
    with pytest.raises(Refused, match="not known: h7 "):
        spread("a:2", hosts([guest("a-1")]), others=SILENT, gone="h70,h8,h9")
    # One that answers all the same is believed.
    others = {"h7": {"guests": [guest("a-2")]}}
    assert spread("a:2", hosts([guest("a-1")]), others=others, gone=["h7"])["elsewhere"] == {"a-2": "h7"}


def test_a_silent_host_is_told_when_nothing_is_new() -> None:
    found = spread("a:2", hosts([guest("a-1"), guest("a-2")]), others={**SILENT, "h1": {}})
    assert (found["new"], set(found["silent"])) == ([], {"h7", "h8", "h9"})
    with pytest.raises(InputError, match="others"):
        spread("a:2", hosts([]), others=[1])


def test_what_a_silent_host_keeps_is_told() -> None:
    """It cannot be removed there. Of those that others have nothing is to be said."""
    away = {"state": "absent"}
    (told,) = spread("a:3", hosts([guest("a-1")]), defaults=away, others={"h9": {}})["warnings"]
    assert told.startswith("Whether a-2, a-3 are gone is not known: h9 was not asked")
    elsewhere = {"h8": {"guests": [guest("a-2")]}, "h9": {}}
    for description, others, gone in (("a:2", elsewhere, []), ("a:3", {"h9": {}}, ["h9"])):
        assert spread(description, hosts([guest("a-1")]), defaults=away, others=others, gone=gone)["warnings"] == []


HAS_LEFT = {"libvirt": True, "guests": None}


def test_a_host_that_has_left_since_is_not_gone() -> None:
    """It has told, and failed later: it is there, and has what it has."""
    with pytest.raises(Refused, match=r"h8 has left the play since \(see its error above\)\.") as caught:
        spread("a:1", hosts([]), others={"h8": HAS_LEFT})
    assert caught.value.hint == "Mend what has stopped h8, and run it again."
    with pytest.raises(Refused) as caught:
        spread("a:1", hosts([]), others={"h8": HAS_LEFT, "h9": {"unreachable": True}})
    assert "stopped h8, and run it again. Bring h9 back or, if they are gone for good" in caught.value.hint
    assert why_silent({**HAS_LEFT, "unreachable": True}) == "did not answer"


@given(st.dictionaries(st.sampled_from(["msg", "unreachable", "failed"]), st.none() | st.booleans() | st.text()))
def test_why_is_one_line(answer: dict[str, t.Any]) -> None:
    assert len(why_silent(answer).splitlines()) == 1


def template(name: str, digest: str = "1" * 64, problem: t.Optional[str] = None) -> dict[str, t.Any]:
    return {"names": [name], "digest": digest, "problem": problem}


def with_templates(*found: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    return {
        name: {**place, "templates": one} for (name, place), one in zip(hosts(*([] for dummy in found)).items(), found)
    }


def test_templates_are_looked_for_before_anything_is_made() -> None:
    with pytest.raises(Refused) as caught:
        spread("a:3\nb:2", with_templates([template("a")], [], []))
    assert "h2, h3 have no template 'a' (h1 has it); h1, h2 have no template 'b' (no host has it)" in (
        caught.value.message
    )
    assert "cnvm.platform.guest_template" in caught.value.hint
    assert "cnvm.platform.vm_create" in caught.value.hint
    # A host that gets none needs none.
    assert spread("a:1", with_templates([template("a")], []))["new"] == ["a-1"]
    # By digest, too.
    assert spread("1" * 64 + ":1", with_templates([template("a")]))["new"]


def test_templates_that_are_not_what_they_should_be() -> None:
    with pytest.raises(Refused, match="'a' of h2: it was written to"):
        spread("a:2", with_templates([template("a")], [template("a", problem="it was written to")]))
    with pytest.raises(Refused, match="is not the same on all hosts: h1 111111111111, h2 222222222222"):
        spread("a:2", with_templates([template("a")], [template("a", "2" * 64)]))
    # Those that are there are left alone.
    places = with_templates([template("a")], [template("a", "2" * 64)])
    places["h2"]["guests"] = [guest("a-2")]
    assert spread("a:2", places)["new"] == ["a-1"]


def test_two_hosts_that_say_that_they_have_one() -> None:
    with pytest.raises(Refused, match="Both h1 and h2"):
        spread("a:1", hosts([guest("a-1")], [guest("a-1")]))


def test_a_domain_of_somebody_else() -> None:
    with pytest.raises(Refused, match="not made by this collection"):
        spread("a:1", hosts([{"name": "a-1", "managed": False, "state": "running", "memory_mib": 5}]))


def test_one_whose_records_are_damaged_may_be_there() -> None:
    """On a host that gets no clone, too: nobody knows whether it is its own."""
    bad = {"name": "a-1", "managed": False, "state": "failed", "problem": "owner.json holds no JSON object."}
    for found, others in ((hosts([bad]), {}), (hosts([]), {"h8": {"guests": [bad]}})):
        with pytest.raises(Refused, match=r"has the guest 'a-1' is not known: owner\.json holds"):
            spread("a:1", found, others=others)
        assert spread("b:1", found, others=others)["new"] == ["b-1"]


def test_memory_that_is_taken_is_taken() -> None:
    busy = guest("x", 850)
    assert set(spread("a:3", hosts([busy], []))["placement"].values()) == {"h1", "h2"}
    assert list(spread("a:9", hosts([busy], []))["placement"].values()).count("h1") == 1
    # One that is off takes none, one of the fleet that is to be started does.
    assert list(spread("a:18", hosts([{**busy, "state": "stopped"}], []))["placement"].values()).count("h1") == 9
    off = [guest("a-1", 950, "stopped")]
    assert list(spread("a:9", hosts(off, []))["placement"].values()).count("h1") == 1
    assert spread([{"template": "a", "count": 9, "state": "stopped"}], hosts(off, []))["placement"]["a-3"] == "h1"


@pytest.mark.parametrize("state", ["present", "stopped"])
def test_what_is_not_started_takes_none(state: str) -> None:
    """All the same, it is spread."""
    found = spread("a:30", hosts([guest("x", 1100)], []), defaults={**SMALL, "state": state})
    assert list(found["placement"].values()).count("h1") == 15
    one_each = "\n".join(f"{word}:1" for word in "abcdef")
    found = spread(one_each, hosts([], []), defaults={**SMALL, "state": state})
    assert list(found["placement"].values()).count("h1") == 3


def test_what_goes_makes_room() -> None:
    """One set in the place of another, in one run: the old one is removed first."""
    old = {"template": "a", "count": 5, "state": "absent"}
    new = {"template": "b", "count": 5, "guest": {"memory_mib": 200}}
    there = [guest(f"a-{number}", 200) for number in range(1, 6)]
    for sets in ([old, new], [new, old]):
        found = spread(sets, hosts(there), max_per_host=5)
        assert found["new"] == [f"b-{number}" for number in range(1, 6)]
        assert [call["state"] for call in found["calls"]["h1"]] == ["absent", "running"]
    # What is off gives none back.
    with pytest.raises(InputError, match="no room for 1 clones"):
        spread([old, {**new, "count": 6}], hosts([guest("a-1", 200, "stopped")]))


def test_a_larger_host_gets_more() -> None:
    places = {"h1": {"memory_mib": 400}, "h2": {"memory_mib": 4000, "guests": []}}
    placed = list(spread("a:20", places)["placement"].values())
    assert placed.count("h1") == 4
    assert placed.count("h2") == 16


def test_a_reserve_and_an_overcommitment() -> None:
    with pytest.raises(InputError, match="no room"):
        spread("a:6", hosts([]), reserve_mib="500")
    assert len(spread("a:5", hosts([]), reserve_mib=500)["new"]) == 5
    assert len(spread("a:15", hosts([]), reserve_mib=500, overcommit="2")["new"]) == 15


def test_a_most_for_each_host() -> None:
    with pytest.raises(InputError, match="no room") as caught:
        spread("a:5", hosts([], []), max_per_host=2)
    assert "1 clones: a-5" in caught.value.message
    assert "h1 has 800 MiB left and 2 of these clones" in caught.value.message
    both = [{"template": "a", "count": 2, "max_per_host": 1}, {"template": "b", "count": 4}]
    placed = spread(both, hosts([], []))["placement"]
    assert placed["a-1"] != placed["a-2"]
    with pytest.raises(InputError, match="no room"):
        spread([{"template": "a", "count": 3, "max_per_host": 1}], hosts([], []))
    # Those that are there count.
    with pytest.raises(InputError, match="no room"):
        spread("a:3", hosts([guest("a-1"), guest("a-2")]), max_per_host=2)


def test_chosen_hosts() -> None:
    found = spread([{"template": "a", "count": 3, "hosts": ["h2"]}], hosts([], []))
    assert set(found["placement"].values()) == {"h2"}
    with pytest.raises(InputError, match="'h9' is not in this play"):
        spread([{"template": "a", "count": 3, "hosts": ["h9"]}], hosts([], []))


@pytest.mark.parametrize("away", [{"unreachable": True}, {"guests": []}])
@pytest.mark.parametrize("state", ["running", "absent"])
def test_a_chosen_host_that_is_away_stops_nothing(away: dict[str, t.Any], state: str) -> None:
    """It is down, or left out. What is there is seen to, and others may have what is new."""
    chosen = {"template": "a", "hosts": ["h1", "h9"], "state": state}
    found = spread([{**chosen, "count": 1}], hosts([guest("a-1")]), others={"h9": away})
    assert (found["placement"], found["new"]) == ({"a-1": "h1"}, [])
    for others, gone in (({"h9": {"guests": []}}, []), ({"h9": {}}, ["h9"])):
        new = spread([{**chosen, "count": 2, "state": "running"}], hosts([]), others=others, gone=gone)["new"]
        assert new == ["a-1", "a-2"]


def test_when_all_chosen_hosts_are_away_it_is_said() -> None:
    chosen = [{"template": "a", "count": 1, "hosts": ["h9"]}]
    with pytest.raises(InputError, match=r"hosts: there is none for 'a-1' \(not in this play: h9\)"):
        spread(chosen, hosts([]), others={"h9": {"guests": []}})
    with pytest.raises(Refused, match="Whether a-1 is there already is not known: h9 did not answer"):
        spread(chosen, hosts([]), others={"h9": {"unreachable": True}})


@pytest.mark.parametrize("chosen", [{}, {"hosts": None}, {"hosts": ""}])
def test_no_choice_of_hosts_is_any(chosen: dict[str, t.Any]) -> None:
    assert spread([{"template": "a", "count": 1, **chosen}], hosts([]))["new"] == ["a-1"]


def test_an_empty_list_of_hosts_is_none() -> None:
    """As of a group without hosts. Clones that are there stay."""
    sets: list[dict[str, t.Any]] = [{"template": "a", "count": 1, "hosts": []}]
    assert spread(sets, hosts([guest("a-1")]))["placement"] == {"a-1": "h1"}
    with pytest.raises(InputError, match=r"clones\[0\]: hosts: there is none for 'a-1'"):
        spread(sets, hosts([]))


def test_a_host_for_containers_only_gets_none() -> None:
    """It has no guests, so nothing is unknown."""
    places = {**hosts([]), "h2": {"memory_mib": 9000, "guests": [], "libvirt": False}}
    found = spread("debian:2", places)
    assert set(found["placement"].values()) == {"h1"}
    assert found["calls"]["h2"] == []
    with pytest.raises(InputError, match="h2 has no libvirt"):
        spread([{"template": "debian", "count": 1, "hosts": ["h2"]}], places)


def test_in_check_mode_what_a_task_before_may_make_is_told() -> None:
    bare = {"h1": {"memory_mib": 9000, "guests": [], "libvirt": False, "templates": []}}
    found = spread("a:2", bare, check_mode=True)
    assert (found["calls"], found["placement"], found["new"]) == ({"h1": []}, {}, [])
    assert [warning.partition(":")[0] for warning in found["warnings"]] == ["There is no room for 2 clones"]
    assert "h1 has no libvirt" in found["warnings"][0]
    found = spread("a:2", with_templates([]), check_mode=True)
    assert found["placement"] == {"a-1": "h1", "a-2": "h1"}
    assert [warning.partition(" (")[0] for warning in found["warnings"]] == ["h1 has no template 'a'"]
    assert spread("a:2", with_templates([template("a")]), check_mode=True)["warnings"] == []
    # Who may have them is asked in check mode, too.
    with pytest.raises(Refused, match="did not answer"):
        spread("a:2", hosts([]), others={"h9": {"unreachable": True}}, check_mode=True)


def test_groups_are_spread_too() -> None:
    found = spread("a:1:g:x\nb:1:g:y\nc:1:g:z", hosts([], [], []))
    assert len(set(found["placement"].values())) == 3


def test_what_is_to_go_is_made_nowhere() -> None:
    gone = [{"template": "a", "count": 3, "state": "absent"}]
    found = spread(gone, hosts([guest("a-2")], []))
    assert (found["placement"], found["new"], found["templates"]) == ({"a-2": "h1"}, [], {})
    assert found["calls"] == {"h1": [{**found["calls"]["h1"][0], "state": "absent", "numbers": [2]}], "h2": []}


def test_a_new_one_needs_a_description() -> None:
    with pytest.raises(InputError, match="memory_mib is missing"):
        plan("a:1", hosts([]))
    assert plan("a:1", hosts([guest("a-1")]))["placement"] == {"a-1": "h1"}


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ({}, "there is none"),
        (None, "there is none"),
        ({"h1": {"memory_mib": 0}}, "h1"),
        ({"h1": {"guests": []}}, "memory_mib"),
        ({"h1": {"memory_mib": 5, "x": 1}}, "x"),
        ({"h1": {"meminfo": "nothing"}}, "MemTotal"),
    ],
)
def test_hosts_that_say_too_little(places: t.Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        spread("a:1", places)


def test_what_a_guest_starts_with_is_taken() -> None:
    """It gives back what is above memory_mib later, perhaps."""
    greedy = {"guest": {"memory_mib": 100, "max_memory_mib": "600"}}
    with pytest.raises(InputError, match=r"no room for 1 clones: a-2 \(600 MiB\)"):
        spread("a:2", hosts([]), defaults=greedy)
    assert len(spread("a:2", hosts([], []), defaults=greedy)["new"]) == 2
    there = guest("db", max_memory_mib=950)
    with pytest.raises(InputError, match="no room"):
        spread("a:1", hosts([there]))
    # One that is off takes it when it is started.
    off = guest("a-1", state="stopped", max_memory_mib=950)
    with pytest.raises(InputError, match="no room"):
        spread("a:2", hosts([off]))
    assert spread("a:2", hosts([off]), defaults={**SMALL, "state": "stopped"})["new"] == ["a-2"]
    with pytest.raises(InputError, match="memory_mib is missing"):
        spread("a:1", hosts([]), defaults={"guest": {"max_memory_mib": 100}})
    with pytest.raises(InputError, match="guest: max_memory_mib"):
        spread("a:1", hosts([]), defaults={"guest": {"memory_mib": 100, "max_memory_mib": "much"}})


def test_memory_as_the_kernel_tells_it() -> None:
    meminfo = "MemTotal:       16314432 kB\nMemFree:         1234567 kB\n"
    assert memory_mib(meminfo) == 15932
    assert spread("a:1", {"h1": {"meminfo": meminfo}})["placement"] == {"a-1": "h1"}


SETS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from(["", "g", "h"])),
    max_size=4,
    unique_by=lambda s: s[::2],
)


@given(SETS, st.integers(1, 4), st.integers(200, 2000), st.integers(0, 5), st.data())
def test_every_plan_keeps_its_promises(
    sets: list[tuple[str, int, str]], number: int, memory: int, most: int, data: st.DataObject
) -> None:
    description = [{"template": word, "count": count, "group": group} for word, count, group in sets]
    names = [clone.name for one in sets_of(description, SMALL) for clone in one.clones]
    there = {name: data.draw(st.integers(0, number)) for name in names}
    places = hosts(
        *[[guest(name) for name in names if there[name] == at] for at in range(1, number + 1)], memory=memory
    )
    try:
        found = spread(description, places, max_per_host=most)
    except InputError:
        # With room for all it never says no.
        free = sum(max(0, memory - 100 * len(place["guests"])) // 100 for place in places.values())
        assert most or free < sum(not at for at in there.values())
        return
    assert found == spread(description, dict(reversed(list(places.items()))), max_per_host=most)
    assert set(found["placement"]) == set(names)
    for name, at in there.items():
        assert not at or found["placement"][name] == f"h{at}"
        assert (name in found["new"]) == (not at)
    for host, place in places.items():
        new = [name for name in found["new"] if found["placement"][name] == host]
        assert not new or 100 * (len(new) + len(place["guests"])) <= memory
        assert not new or not most or len(new) + len(place["guests"]) <= most
        named = [clone.name for call in found["calls"][host] for clone in clones.normalise(call).clones]
        assert sorted(named) == sorted(name for name, at in found["placement"].items() if at == host)
    again = hosts(
        *[[guest(name) for name in names if found["placement"][name] == host] for host in places], memory=memory
    )
    assert spread(description, again, max_per_host=most)["placement"] == found["placement"]


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=3))
def test_whatever_is_described_it_is_planned_or_refused(description: list[t.Any]) -> None:
    try:
        found = spread(description, hosts([], []))
    except (InputError, Refused):
        return
    assert set(found["calls"]) == {"h1", "h2"}
