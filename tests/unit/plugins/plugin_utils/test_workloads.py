# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts say becomes an inventory, whatever they say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.plugin_utils import _workloads
from ansible_collections.cnvm.platform.plugins.plugin_utils._workloads import Entry, Place, Settings

SSH = ("ssh", "-o", "UserKnownHostsFile=/a b/100%", "-i", "/key")
CONTAINER = {
    "name": "web", "uuid": "u1", "state": "running", "placement": "host1", "generation": 3,
    "address": "10.100.101.20", "image": "cnvm", "labels": {"group": "front", "rack": "r-1"},
    "definition": {"environment": {"PASSWORD": "x"}},
}  # fmt: skip
GUEST = {
    "name": "db", "uuid": "u2", "managed": True, "state": "running", "placement": "host1", "generation": 1,
    "address": "192.168.122.50", "address_source": "lease", "overlay_address": None,
    "tags": {"group": "back", "type": "sql", "template": "debian-13"},
}  # fmt: skip


def place(name: str = "host1", *, stale: bool = False, guests: t.Any = (), containers: t.Any = ()) -> Place:
    answer = {"schema": 1, "guests": list(guests), "containers": list(containers)}
    return Place(name, f"{name}.example.net", SSH, answer, stale)


def listed(*places: Place, **settings: t.Any) -> dict[str, Entry]:
    found, warnings = _workloads.entries(places, Settings(**settings))
    assert warnings == []
    return {entry.name: entry for entry in found}


def options(entry: Entry) -> dict[str, str]:
    """What SSH is given, as Ansible splits it."""
    words = shlex.split(entry.variables["ansible_ssh_common_args"])
    assert words[::2] == ["-o"] * (len(words) // 2)
    return dict(word.split("=", 1) for word in words[1::2])


def test_each_of_many_workloads_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once for each of the others."""
    pattern, asked = _workloads._NOT_IN_NAMES, []

    class Counted:
        def sub(self, replacement: str, text: str) -> str:
            asked.append(text)
            return pattern.sub(replacement, text)

    monkeypatch.setattr(_workloads, "_NOT_IN_NAMES", Counted())
    times = []
    for number in (1, 20):
        asked.clear()
        listed(place(containers=[{**CONTAINER, "name": f"web{each}", "uuid": each} for each in range(number)]))
        times.append(asked.count("web0"))
    assert times[0] == times[1] > 0


def test_a_container_is_reached_through_its_host() -> None:
    entry = listed(place(containers=[CONTAINER]))["web"]
    assert entry.variables["ansible_host"] == "10.100.101.20"
    assert entry.variables["cnvm_jump_host"] == "host1"
    assert set(options(entry)) == {"ProxyCommand"}
    assert entry.groups == (
        "cnvm_containers", "cnvm_state_running", "cnvm_host_host1", "cnvm_group_front", "cnvm_tag_rack_r_1",
        "cnvm_image_cnvm", "cnvm_reachable",
    )  # fmt: skip
    assert "PASSWORD" not in str(entry.variables)


def test_the_proxy_command_is_what_the_shell_makes_of_it() -> None:
    """SSH puts in the address first, then a shell runs it; % in our words is no place to put something in."""
    text = options(listed(place(containers=[CONTAINER]))["web"])["ProxyCommand"]
    text = re.sub("%(.)", lambda found: {"%": "%", "h": "fd00::1", "p": "22"}[found[1]], text)
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [*SSH, "-W", "[fd00::1]:22", "host1.example.net"]


def test_groups_of_a_guest() -> None:
    entry = listed(place(guests=[GUEST]), prefix="")["db"]
    assert entry.groups == (
        "guests", "state_running", "host_host1", "group_back", "type_sql", "template_debian_13", "reachable",
    )  # fmt: skip
    assert (entry.variables["cnvm_group"], entry.variables["cnvm_type"]) == ("back", "sql")


def test_a_guest_that_was_cloned_by_nobody_is_in_the_group_of_its_disks_template() -> None:
    entry = listed(place(guests=[{**GUEST, "tags": {}, "template": "debian-12"}]), prefix="")["db"]
    assert "template_debian_12" in entry.groups
    assert entry.variables["cnvm_template"] == "debian-12"


def test_addresses_that_others_may_have_too() -> None:
    """Two guests at the same address of two hosts: neither key nor connection of one is taken for the other's."""
    other = {**GUEST, "name": "db2", "uuid": "u3"}
    found = listed(place(guests=[GUEST]), place("host2", guests=[other]))
    assert options(found["db"])["HostKeyAlias"] == "db.host1"
    assert options(found["db2"])["HostKeyAlias"] == "db2.host2"
    paths = {entry.variables["ansible_control_path"] for entry in found.values()}
    assert len(paths) == 2
    assert all(re.fullmatch(r"/cp/[0-9a-f]{10}-%p-%r", path % {"directory": "/cp"}) for path in paths)


def test_names_that_are_one_for_ssh() -> None:
    """Its known_hosts makes no difference between capitals and small letters."""
    other = {**GUEST, "name": "DB", "uuid": "u3", "address": "192.168.122.51"}
    found, (warning,) = _workloads.entries([place(guests=[GUEST, other])], Settings())
    assert [entry.name for entry in found] == ["DB", "db"]
    assert "'db' and 'DB' of host1 for one" in warning
    listed(place(guests=[GUEST]), place("host2", guests=[other]))
    listed(place(guests=[GUEST, {**other, "overlay_address": other["address"]}]))


def test_a_guest_on_the_overlay_is_known_by_its_address() -> None:
    guest = {**GUEST, "address": "10.100.101.30", "overlay_address": "10.100.101.30"}
    assert "HostKeyAlias" not in options(listed(place(guests=[guest]))["db"])


def test_no_jump_where_none_is_needed() -> None:
    direct = _workloads.networks(["192.168.122.0/24"])
    entry = listed(place(guests=[GUEST]), direct=direct)["db"]
    assert "ProxyCommand" not in options(entry)
    assert entry.variables["cnvm_jump_host"] is None
    here = Place("host1", answer={"guests": [], "containers": [CONTAINER]})
    assert listed(here)["web"].variables["ansible_ssh_common_args"] == ""


def test_new_keys_only_when_asked_for() -> None:
    assert "StrictHostKeyChecking" not in str(listed(place(containers=[CONTAINER]))["web"])
    entry = listed(place(containers=[CONTAINER]), accept_new=True)["web"]
    assert options(entry)["StrictHostKeyChecking"] == "accept-new"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": "stopped"}, "The guest db is stopped."),
        ({"state": "crashed; rm"}, "The guest db is unknown."),
        ({"address": None}, "The guest db has no address that was seen."),
        ({"address": "-oProxyCommand=id"}, "The guest db has no address that was seen."),
        ({"address": "2001:db8::1%';id;'"}, "The guest db has no address that was seen."),
    ],
)
def test_why_it_is_not_reachable(change: dict[str, t.Any], reason: str) -> None:
    """Connecting to it leads nowhere: its name is not looked up, and the reason is said."""
    entry = listed(place(guests=[{**GUEST, **change}]))["db"]
    assert "ansible_host" not in entry.variables
    assert entry.variables["cnvm_unreachable_reason"] == reason
    assert "cnvm_reachable" not in entry.groups
    command = options(entry)["ProxyCommand"]
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stderr
    assert said == f"{reason}\n"


def test_what_moved_is_where_it_went() -> None:
    gone = {"name": "web", "uuid": "u1", "state": "moved", "placement": "host2", "generation": 4}
    there = {**CONTAINER, "placement": "host2", "generation": 4}
    assert listed(place(containers=[gone]), place("host2", containers=[there]))["web"].variables["cnvm_host"] == "host2"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"managed": True, "generation": 3}, {"managed": False, "generation": None}),
        # It is decided; the target does not know yet.
        ({"managed": False, "generation": 4}, {"managed": False, "generation": None}),
        # It runs there, and fetches its memory.
        ({"managed": True, "generation": 4}, {"managed": False, "generation": 4}),
    ],
)
def test_what_is_on_its_way_is_there_once(here: dict[str, t.Any], there: dict[str, t.Any]) -> None:
    """The copy that arrives, waits, or is left behind, is no other guest."""
    here, arriving = ({**GUEST, "moving": True, "state": "paused", **one} for one in (here, there))
    for order in (("host1", "host2"), ("host2", "host1")):
        found = listed(*(place(name, guests=[one]) for name, one in zip(order, (here, arriving), strict=True)))
        assert {name: entry.variables["cnvm_host"] for name, entry in found.items()} == {GUEST["name"]: order[0]}


def test_an_old_answer_does_not_win() -> None:
    """A host that is off had it; it was brought back elsewhere since."""
    there = {**CONTAINER, "generation": 4}
    found = listed(place(stale=True, containers=[CONTAINER]), place("host2", containers=[there]))
    assert found["web"].variables["cnvm_host"] == "host2"
    assert not found["web"].variables["cnvm_stale"]


def test_an_old_answer_is_marked() -> None:
    entry = listed(place(stale=True, containers=[CONTAINER]))["web"]
    assert entry.variables["cnvm_stale"]
    assert entry.variables["ansible_host"] == "10.100.101.20"
    assert "cnvm_stale" in entry.groups
    assert "cnvm_reachable" not in entry.groups


def test_a_host_without_an_answer_empties_nothing() -> None:
    assert set(listed(Place("host2", "a", SSH, None, True), place(containers=[CONTAINER]))) == {"web"}


def test_two_that_say_they_have_it() -> None:
    found, warnings = _workloads.entries(
        [place(containers=[CONTAINER]), place("host2", containers=[CONTAINER])], Settings()
    )
    assert [entry.name for entry in found] == ["web"]
    assert "Both host1 and host2" in warnings[0]


def test_others_of_the_same_name() -> None:
    foreign = {**GUEST, "managed": False, "uuid": "u9"}
    found, warnings = _workloads.entries(
        [place(guests=[GUEST]), place("host2", guests=[foreign]), place("host3", guests=[{**foreign, "uuid": "u8"}])],
        Settings(),
    )
    assert [entry.name for entry in found] == ["db", "db.host2", "db.host3"]
    assert len(warnings) == 2


def test_a_name_that_was_made_is_nobody_elses() -> None:
    theirs = {"name": "web", "uuid": "u9", "managed": False, "state": "running"}
    dotted = {**CONTAINER, "name": "web.host1", "uuid": "u8"}
    found, _warnings = _workloads.entries(
        [place("host1", guests=[theirs]), place("host2", guests=[theirs], containers=[dotted])], Settings()
    )
    assert [(entry.name, entry.variables["cnvm_kind"]) for entry in found] == [
        ("web.host1", "container"),
        ("web.host1.guest", "guest"),
        ("web.host2", "guest"),
    ]


@pytest.mark.parametrize("name", ["host1", "host2", "localhost", "127.0.0.1"])
def test_no_workload_becomes_a_host(name: str) -> None:
    found, _warnings = _workloads.entries([place(guests=[{**GUEST, "name": name}]), place("host2")], Settings())
    assert [entry.name for entry in found] == [f"{name}.host1"]


def test_no_workload_becomes_another_host_of_the_inventory() -> None:
    known = {"db": {"ansible_host": "192.0.2.7"}, "db.host1": {}, "db.host1.guest": {}}
    found, (warning,) = _workloads.entries([place(guests=[GUEST])], Settings(), ({}, known))
    assert [entry.name for entry in found] == ["db.host1.guest.guest"]
    assert "The inventory has a host 'db'" in warning


def test_no_workload_becomes_a_group() -> None:
    groups = {"db", "db.host1", "web"}
    found, (warning,) = _workloads.entries([place(guests=[GUEST])], Settings(), groups=groups)
    assert [entry.name for entry in found] == ["db.host1.guest"]
    assert warning == "The inventory has a group 'db': the guest of host1 is 'db.host1.guest' here."


def test_a_workload_that_was_read_before_is_itself() -> None:
    known = {"db": listed(place(guests=[GUEST]))["db"].variables}
    assert _workloads.entries([place(guests=[GUEST])], Settings(), (known,))[0][0].name == "db"
    found, _warnings = _workloads.entries([place("host2", guests=[GUEST])], Settings(), (known,))
    assert [entry.name for entry in found] == ["db.host2"]
    found, _warnings = _workloads.entries([place(guests=[GUEST])], Settings(), (known, {"db": {}}))
    assert [entry.name for entry in found] == ["db.host1"]


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"schema": 2, "guests": [], "containers": []}, {"schema": 1, "guests": [{}]}]
)
def test_answers_that_are_none(answer: t.Any) -> None:
    assert _workloads.check_answer(answer)


@pytest.mark.parametrize("bad", ["a\ud800", {"\udfff": 1}, [["\ud800"]], json.loads("[" * 40 + "]" * 40)])
def test_answers_that_nothing_can_take(bad: t.Any) -> None:
    answer = place(guests=[{**GUEST, "tags": {"a": bad}}]).answer
    assert _workloads.check_answer(answer) == "its answer has lone surrogates, or is nested too deep"


def test_an_answer() -> None:
    assert _workloads.check_answer(place(guests=[GUEST], containers=[CONTAINER]).answer) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from([*GUEST, *CONTAINER])


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=6), max_size=4), st.text(max_size=8))
def test_nothing_that_a_host_says_does_harm(items: list[dict[str, t.Any]], name: str) -> None:
    items = [{**item, "name": name} for item in items]
    answer = place(guests=items, containers=items)
    assert _workloads.check_answer(answer.answer) == ""
    for entry in _workloads.entries([answer], Settings())[0]:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", entry.name)
        assert all(re.fullmatch(r"[A-Za-z0-9_]+", group) for group in entry.groups)
        assert set(options(entry)) <= {"ProxyCommand", "HostKeyAlias", "ControlPath"}
