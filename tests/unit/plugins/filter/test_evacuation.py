# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who goes where, what is in the way, and the way back."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.filter.evacuation import FilterModule

evacuation = FilterModule().filters()["evacuation"]


def guest(name: str, memory: int = 100, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "uuid": f"u-{name}", "managed": True, "state": "running", "memory_mib": memory, **more}


def container(name: str, memory: int = 100, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "uuid": f"u-{name}", "state": "running", "memory_bytes": memory << 20, **more}


def host(available: int = 1000, total: int = 4000, **more: t.Any) -> dict[str, t.Any]:
    meminfo = f"MemTotal: {total * 1024} kB\nMemAvailable: {available * 1024} kB\n"
    return {"meminfo": meminfo, "guests": [], "containers": [], **more}


def way(found: t.Mapping[str, t.Any]) -> list[tuple[str, str]]:
    return [(move["name"], move["target"]) for move in found["moves"]]


def done(move: t.Mapping[str, t.Any], **result: t.Any) -> dict[str, t.Any]:
    return {"item": move, "outcome": "target", "frozen_ms": 41.2, "timeline": {"total_ms": 1500}, **result}


def test_spread_by_free_memory() -> None:
    hosts = {
        "a": host(guests=[guest("g1", 300), guest("g2", 300), guest("g3", 300)], containers=[container("c1", 10)]),
        "b": host(1200),
        "c": host(1300),
    }
    assert way(evacuation(hosts, "a")) == [("c1", "c"), ("g1", "c"), ("g2", "b"), ("g3", "c")]


def test_memory_that_is_promised_is_not_free() -> None:
    """A guest may not have touched its memory yet."""
    hosts = {"a": host(guests=[guest("g")]), "b": host(3000, 4000, guests=[guest("big", 3500)]), "c": host(700)}
    assert way(evacuation(hosts, "a")) == [("g", "c")]


def test_what_a_move_demands_must_be_free() -> None:
    """All that a guest can have, and QEMU's own, as it comes; what it has given back is there for the next one."""
    hosts = {"a": host(guests=[guest("g1", max_memory_mib=800), guest("g2", max_memory_mib=572)]), "b": host(1183)}
    found = evacuation(hosts, "a")
    assert [(one["name"], one["reason"]) for one in found["blockers"]] == [("g1", "no room for 928 MiB: b has 927 MiB")]
    assert way(evacuation({**hosts, "b": host(1184)}, "a")) == [("g1", "b"), ("g2", "b")]
    record = [{"kind": "guest", "name": "g1", "uuid": "u-g1", "target": "a"}]
    back = evacuation({**hosts, "b": host(1183)}, "b", back=True, record=record)
    assert [(one["name"], one["reason"]) for one in back["blockers"]] == [("g1", "no room for 928 MiB: b has 927 MiB")]


def test_many_small_guests_take_more_than_their_memory() -> None:
    hosts = {"a": host(guests=[guest(f"g{number}", 32) for number in range(10)]), "b": host(256 + 4 * 160)}
    found = evacuation(hosts, "a")
    assert [move["name"] for move in found["moves"]] == ["g0", "g1", "g2", "g3"]
    assert found["blockers"][0]["reason"] == "no room for 160 MiB: b has 0 MiB"
    there = host(3000, 256 + 10 * 160 + 159, guests=hosts["a"]["guests"])
    assert evacuation({"a": host(guests=[guest("g", 32)]), "b": there}, "a")["moves"] == []


def test_orders() -> None:
    hosts = {"a": host(guests=[guest("b", 200), guest("c", 100), guest("a", 300)]), "b": host(4000)}
    names = {
        order: [name for name, _target in way(evacuation(hosts, "a", order=order))]
        for order in ("name", "smallest", "largest")
    }
    assert names == {"name": ["a", "b", "c"], "smallest": ["c", "b", "a"], "largest": ["a", "b", "c"]}
    assert [name for name, _target in way(evacuation(hosts, "a", first=["c"]))] == ["c", "a", "b"]
    assert [name for name, _target in way(evacuation(hosts, "a", first="c,b"))] == ["c", "b", "a"]


def test_what_is_off_needs_no_memory() -> None:
    off = [guest("g", 9000, state="stopped"), guest("gone", state="moved")]
    assert way(evacuation({"a": host(guests=off), "b": host(300)}, "a")) == [("g", "b")]


def test_one_target() -> None:
    hosts = {"a": host(guests=[guest("g")]), "b": host(500), "c": host(900)}
    assert way(evacuation(hosts, "a", target="b")) == [("g", "b")]


@pytest.mark.parametrize("none", [None, ""])
def test_blockers(none: object) -> None:
    """A host without libvirt gets no guest; with older ansible-core its None comes as ''."""
    hosts = {
        "a": host(guests=[guest("big", 2000), guest("theirs", managed=False), guest("ok", 10)]),
        "b": host(guests=none),
        "c": host(),
    }
    found = evacuation(hosts, "a")
    assert way(found) == [("ok", "c")]
    assert [(one["name"], one["reason"].split(";")[0].split(":")[0]) for one in found["blockers"]] == [
        ("big", "no room for 2128 MiB"), ("theirs", "not made by this collection"),
    ]  # fmt: skip
    assert found["failed"] == ["big", "theirs"]
    assert evacuation({"a": hosts["a"], "b": hosts["b"]}, "a")["moves"] == []


def test_objections_of_the_modules() -> None:
    hosts = {"a": host(guests=[guest("g1"), guest("g2"), guest("g3")]), "b": host()}
    moves = evacuation(hosts, "a")["moves"]
    tried = [
        {"item": moves[0], "changed": True, "plan": {"blockers": []}},
        {"item": moves[1], "plan": {"blockers": ["web is paused.", "No bridge."]}},
        {"item": moves[2], "msg": "This host has no cnvm-host."},
    ]
    found = evacuation(hosts, "a", tried=tried)
    assert [move["name"] for move in found["moves"]] == ["g1"]
    assert found["failed"] == ["g2", "g3"]
    assert found["table"][1].split() == ["g1", "guest", "running", "a", "b", "planned", "-", "-"]
    assert found["table"][-2:] == ["g2: web is paused. No bridge.", "g3: This host has no cnvm-host."]


def test_what_goes_there_before_takes_of_the_disks_too() -> None:
    """Each one alone has room; a template that two of them bring comes once."""

    def tried(move: dict[str, t.Any], needed: int, device: int = 1, **once: int) -> dict[str, t.Any]:
        space = {"device": device, "path": "/var/lib/cnvm", "free_bytes": 1200, "needed_bytes": needed, "once": once}
        return {"item": move, "changed": True, "plan": {"blockers": [], "space": [space]}}

    hosts = {"a": host(guests=[guest(name) for name in ("g1", "g2", "g3", "g4", "g5")]), "b": host(2000)}
    moves = evacuation(hosts, "a")["moves"]
    found = evacuation(hosts, "a", tried=[
        tried(moves[0], 800, template=400), tried(moves[1], 500, template=400), tried(moves[2], 101),
        tried(moves[3], 100), tried(moves[4], 900, device=2),
    ])  # fmt: skip
    assert [move["name"] for move in found["moves"]] == ["g1", "g2", "g4", "g5"]
    (blocker,) = found["blockers"]
    assert blocker["name"] == "g3"
    assert blocker["reason"].startswith("space: b has 1.2 KiB free in /var/lib/cnvm, 1001 B and a fifth more are")


def test_there_and_back() -> None:
    hosts = {"a": host(guests=[guest("g")], containers=[container("c")]), "b": host()}
    moves = evacuation(hosts, "a")["moves"]
    half = evacuation(hosts, "a", done=[done(moves[0])])
    assert [one["name"] for one in half["record"]] == ["c"]
    assert half["left"] == ["g"]
    there = evacuation(hosts, "a", done=[done(move) for move in moves])
    assert there["left"] == []
    assert there["table"][1].split() == ["c", "container", "running", "a", "b", "moved", "41", "ms", "1.5", "s"]

    hosts = {"a": host(), "b": host(guests=[guest("g")], containers=[container("c")])}
    back = evacuation(hosts, "a", back=True, record=there["record"])
    assert way(back) == [("g", "a"), ("c", "a")]
    assert {move["source"] for move in back["moves"]} == {"b"}
    end = evacuation(hosts, "a", back=True, record=there["record"], done=[done(move) for move in back["moves"]])
    assert end["record"] == []


def test_a_move_that_was_rolled_back_is_not_on_record() -> None:
    hosts = {"a": host(guests=[guest("g")]), "b": host()}
    move = evacuation(hosts, "a")["moves"][0]
    failed = {"item": move, "failed": True, "outcome": "source", "msg": "memory: The link was cut."}
    found = evacuation(hosts, "a", done=[{"item": move}, failed])
    assert (found["record"], found["failed"]) == ([], ["g"])
    assert found["table"][-1] == "g: memory: The link was cut."


@pytest.mark.parametrize("more", [{}, {"unreachable": True}, {"failed": True, "outcome": "waiting"}])
def test_what_may_have_gone_is_on_record(more: dict[str, t.Any]) -> None:
    """As it is about to begin, when nothing was heard of it since, and when it waits: recovery may end it there."""
    home = host(guests=[guest("g")])
    move = evacuation({"a": home, "b": host()}, "a")["moves"][0]
    found = evacuation({"a": home, "b": host()}, "a", done=[{"item": move}, {"item": move, **more}])
    assert [one["name"] for one in found["record"]] == ["g"]

    there = {"a": host(), "b": home}
    assert way(evacuation(there, "a", back=True, record=found["record"])) == [("g", "a")]
    never_left = evacuation({"a": home, "b": host()}, "a", back=True, record=found["record"])
    assert (never_left["moves"], never_left["blockers"], never_left["record"]) == ([], [], [])


def test_what_cannot_come_back_stays_on_record() -> None:
    record = [{"kind": "guest", "name": "g", "uuid": "u-g", "target": "b"}]
    hosts = {"a": host(), "b": host(guests=[guest("g")])}
    move = evacuation(hosts, "a", back=True, record=record)["moves"][0]
    for result in ({}, {"failed": True, "outcome": "source"}):
        assert evacuation(hosts, "a", back=True, record=record, done=[{"item": move, **result}])["record"] == record


def test_first() -> None:
    hosts = {"a": host(guests=[guest("b"), guest("c")]), "b": host(4000, guests=[guest("gone")])}
    assert [name for name, _target in way(evacuation(hosts, "a", first=" gone, c,"))] == ["c", "b"]
    with pytest.raises(AnsibleFilterError, match=r"first: no host of this play has 'cc'. There are: b, c, gone."):
        evacuation(hosts, "a", first=["cc"])


def test_the_way_back_of_others() -> None:
    """What is back already is left alone; one that was made anew under the name is another one."""
    record = [{"kind": "guest", "name": name, "uuid": f"u-{name}", "target": "b"} for name in ("home", "new", "lost")]
    hosts = {"a": host(guests=[guest("home")]), "b": host(guests=[guest("new", uuid="x")])}
    found = evacuation(hosts, "a", back=True, record=record)
    assert found["moves"] == []
    assert [(one["name"], one["reason"]) for one in found["blockers"]] == [
        (
            "lost",
            "no host of this play has it; it went to b. If it was removed, take it out of the record (record_file)",
        ),
        ("new", "the one of this name on b is another one"),
    ]


def test_damaged_records_are_in_the_way_of_what_they_are_of() -> None:
    bad: dict[str, t.Any] = {"uuid": None, "state": "failed", "problem": "owner.json holds no JSON object."}
    there = host(guests=[guest("g"), guest("bad", managed=False, **bad)], containers=[container("c", **bad)])
    found = evacuation({"a": there, "b": host()}, "a")
    assert way(found) == [("g", "b")]
    assert {one["name"]: one["reason"] for one in found["blockers"]} == {"bad": bad["problem"], "c": bad["problem"]}
    record = [{"kind": "guest", "name": name, "uuid": f"u-{name}", "target": "b"} for name in ("bad", "g")]
    found = evacuation({"a": host(), "b": there, "c": host(guests=[guest("bad")])}, "a", back=True, record=record)
    assert way(found) == [("g", "a"), ("bad", "a")]
    found = evacuation({"a": host(), "b": there}, "a", back=True, record=record)
    assert [(one["name"], one["reason"]) for one in found["blockers"]] == [("bad", bad["problem"])]


def test_no_room_at_home() -> None:
    record = [{"kind": "guest", "name": "g", "uuid": "u-g", "target": "b"}]
    found = evacuation({"a": host(300), "b": host(guests=[guest("g")])}, "a", back=True, record=record)
    assert found["blockers"][0]["reason"] == "no room for 228 MiB: a has 44 MiB"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "x"}, "'x' is not in this play"),
        ({"host": "a", "target": "x"}, "'x' is no other host"),
        ({"host": "a", "target": "a"}, "'a' is no other host"),
        ({"host": "a", "order": "x"}, "order"),
        ({"host": "a", "memory_reserve_mib": "x"}, "memory_reserve_mib"),
        ({"host": "x", "back": True}, "'x' is not in this play"),
        ({"host": "a", "record": {}}, "record is not a list"),
        ({"host": "a", "record": ["g"]}, r"record\[0\] is not a mapping"),
        ({"host": "a", "record": [{"size": 1}]}, r"record\[0\]: unknown key 'size'"),
        ({"host": "a", "record": [{"kind": "guest"}]}, r"record\[0\]: name is missing. Each item has kind, name"),
        ({"host": "a", "record": [{"kind": "guest"}], "back": True}, r"record\[0\]: name is missing"),
    ],
)
def test_refusals(options: dict[str, t.Any], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        evacuation({"a": host(), "b": host()}, **options)


def test_nowhere_to_go() -> None:
    with pytest.raises(AnsibleFilterError, match="There is no other host"):
        evacuation({"a": host()}, "a")


@given(
    st.lists(st.tuples(st.integers(0, 500), st.sampled_from([None, 0, 300])), max_size=8),
    st.lists(st.integers(0, 1500), min_size=1, max_size=4),
)
def test_each_has_one_place_and_none_gets_too_much(found: list[tuple[int, t.Any]], rooms: list[int]) -> None:
    """Each move finds free what its preflight demands, when those before it have taken what they have."""
    items = [
        container(f"w{number}", memory) if more is None else guest(f"w{number}", memory, max_memory_mib=memory + more)
        for number, (memory, more) in enumerate(found)
    ]
    hosts = {
        "a": host(guests=[item for item in items if "managed" in item],
                  containers=[item for item in items if "managed" not in item]),
        **{f"h{number}": host(room, 9000) for number, room in enumerate(rooms)},
    }  # fmt: skip
    made = evacuation(hosts, "a", memory_reserve_mib=100)
    names = [one["name"] for one in (*made["moves"], *made["blockers"])]
    assert sorted(names) == sorted(item["name"] for item in items)
    about = {item["name"]: item for item in items}
    left = {f"h{number}": room - 100 for number, room in enumerate(rooms)}
    for move in made["moves"]:
        overhead = 128 if move["kind"] == "guest" else 0
        assert left[move["target"]] >= about[move["name"]].get("max_memory_mib", move["memory_mib"]) + overhead
        left[move["target"]] -= move["memory_mib"] + overhead
