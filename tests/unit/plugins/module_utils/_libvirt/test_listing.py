# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests of many hosts in one list: who is meant, how it reads, and the commands that lead to one."""

from __future__ import annotations

import shlex
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.listing import (
    choose,
    commands,
    names_in,
    rows_of,
    table,
)


def guest(name: str, state: str = "running", **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "managed": True, "state": state, "tags": {}, **more}


def moved(name: str, to: str) -> dict[str, t.Any]:
    return {"name": name, "managed": False, "state": "moved", "placement": to}


def answer(*guests: dict[str, t.Any]) -> dict[str, t.Any]:
    return {"changed": False, "guests": list(guests)}


WEB = {"group": "front", "type": "web", "template": "debian"}
SQL = {"group": "front", "type": "sql", "template": "debian"}
FOUND = {
    "h1": answer(guest("web-1", tags=WEB, address="192.0.2.5"), guest("db", tags=SQL), moved("web-2", "h2")),
    "h2": answer(guest("web-2", "stopped", tags=WEB), {"name": "other", "managed": False, "state": "running"}),
}


def names(rows: list[dict[str, t.Any]]) -> list[str]:
    return [row["name"] for row in rows]


# -- The list


def test_each_guest_is_there_once_with_its_host() -> None:
    rows = rows_of(FOUND)
    assert [(row["name"], row["host"], row["state"]) for row in rows] == [
        ("db", "h1", "running"),
        ("other", "h2", "running"),
        ("web-1", "h1", "running"),
        ("web-2", "h2", "stopped"),
    ]
    assert (rows[0]["type"], rows[0]["group"], rows[0]["template"]) == ("sql", "front", "debian")
    assert rows[1]["group"] == ""


def test_one_that_went_to_a_host_that_was_not_asked() -> None:
    rows = rows_of({"h1": answer(moved("a", "h9")), "h2": answer(moved("a", "h9"))})
    assert [(row["name"], row["host"], row["state"]) for row in rows] == [("a", "h9", "moved")]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"managed": True, "generation": 3}, {"managed": False, "generation": None}),
        ({"managed": False, "generation": 4}, {"managed": False, "generation": None}),
        ({"managed": True, "generation": 4}, {"managed": False, "generation": 4}),
    ],
)
def test_one_that_is_on_its_way_is_there_once(here: dict[str, t.Any], there: dict[str, t.Any]) -> None:
    """The copy that arrives, waits, or is left behind, is not another guest."""
    here, arriving = (guest("web", moving=True, state="paused", **one) for one in (here, there))
    rows = rows_of({"h1": answer(here), "h2": answer(arriving), "h3": answer(guest("web", managed=False))})
    assert [(row["host"], row["state"]) for row in rows] == [("h1", "paused"), ("h3", "running")]


def test_a_domain_of_somebody_else_is_told_at_each_host() -> None:
    other = {"name": "a", "managed": False, "state": "running"}
    assert [row["host"] for row in rows_of({"h1": answer(other), "h2": answer(other)})] == ["h1", "h2"]


def test_what_is_secret_is_in_no_row() -> None:
    (row,) = rows_of({"h1": answer(guest("a", definition={"x": 1}, disks=[]))})
    assert set(row) == {
        "name", "host", "state", "address", "address_source", "template", "group", "type", "memory_mib", "vcpus",
        "console_command", "vnc", "managed",
    }  # fmt: skip


def test_hosts_that_did_not_answer_have_no_rows() -> None:
    assert rows_of({"h1": {"unreachable": True}, "h2": {}, "h3": answer()}) == []
    with pytest.raises(InputError, match="by host"):
        rows_of([1])


# -- Who is meant


def test_words_are_put_together() -> None:
    assert names(choose(FOUND, group="front")) == ["db", "web-1", "web-2"]
    assert names(choose(FOUND, group="front", kind="web")) == ["web-1", "web-2"]
    assert names(choose(FOUND, names="web-1, db")) == ["db", "web-1"]
    assert names(choose(FOUND, names=["web-1", "db"], kind="sql")) == ["db"]
    assert names(choose(FOUND, template="debian", kind="sql")) == ["db"]


def test_all_are_those_of_this_collection() -> None:
    assert names(choose(FOUND, everything="true")) == ["db", "web-1", "web-2"]
    assert choose({"h1": answer()}, everything=True) == []


@pytest.mark.parametrize("nothing", [{}, {"names": []}, {"names": "", "group": ""}, {"everything": "false"}])
def test_nothing_said_is_not_all(nothing: dict[str, t.Any]) -> None:
    with pytest.raises(InputError, match="not said"):
        choose(FOUND, **nothing)


def test_what_nobody_has_is_refused_and_who_was_asked_is_told() -> None:
    found = {**FOUND, "h3": {"unreachable": True}}
    with pytest.raises(
        Refused, match=r"No host that was asked has a guest 'web-9'\. Asked: h1, h2\. No answer came from h3\."
    ):
        choose(found, names="web-1,web-9")
    with pytest.raises(Refused, match=r"No guest has group 'front' and type 'x'\. Asked: h1, h2\. No answer"):
        choose(found, group="front", kind="x")
    with pytest.raises(Refused, match="No guest has type 'web' and name db"):
        choose(FOUND, names="db", kind="web")


def test_a_domain_of_somebody_else_is_not_touched() -> None:
    with pytest.raises(Refused, match="h2 has a domain 'other' that was not made"):
        choose(FOUND, names="other")


def test_one_that_is_not_in_the_play() -> None:
    play, others = {"h1": FOUND["h1"]}, {"h2": FOUND["h2"]}
    with pytest.raises(Refused, match="'web-2' is at h2"):
        choose(play, others, names="web-1,web-2")
    with pytest.raises(Refused, match="'web-2' is at h2"):
        choose(play, names="web-2")
    # A group is as much of it as is in the play.
    assert names(choose(play, others, group="front")) == ["db", "web-1"]
    with pytest.raises(Refused, match=r"On hosts that are not in this play: web-2 \(h2\)"):
        choose({"h3": answer()}, others, group="front")


def test_two_hosts_that_say_that_they_have_one() -> None:
    with pytest.raises(Refused, match="Both h1 and h2"):
        choose({"h1": answer(guest("a")), "h2": answer(guest("a"))}, names="a")


def test_names_in_a_text_or_a_list() -> None:
    assert names_in("a, b,,", "names") == ["a", "b"]
    assert names_in(None, "names") == []
    with pytest.raises(InputError, match="names"):
        names_in({"a": 1}, "names")
    with pytest.raises(InputError):
        names_in("a/b", "names")


# -- The table


def test_a_table() -> None:
    assert table(rows_of(FOUND), ["name", "host", "address"]) == [
        "NAME   HOST  ADDRESS",
        "db     h1    -",
        "other  h2    -",
        "web-1  h1    192.0.2.5",
        "web-2  h2    -",
    ]
    assert table([{"a": ["x", "y"], "b": 0}], ["a", "b"]) == ["A     B", "x, y  0"]
    assert table([], ["name"]) == ["NAME"]
    with pytest.raises(InputError, match="rows"):
        table("x")


# -- The way to one

SEEN = {"name": "web", "address": "192.0.2.50", "console_command": "virsh console web"}
PLAIN = {"inventory_hostname": "h1", "ansible_host": "203.0.113.1", "ansible_user": "root"}


def test_through_its_host() -> None:
    assert commands(SEEN, PLAIN, "debian") == {
        "ssh": "ssh -J root@203.0.113.1 debian@192.0.2.50",
        "console": "ssh -t root@203.0.113.1 'virsh console web'",
        "vnc": "",
    }
    assert commands(SEEN, {"inventory_hostname": "h1", "ansible_port": 2222}) == {
        "ssh": "ssh -J h1:2222 192.0.2.50",
        "console": "ssh -p 2222 -t h1 'virsh console web'",
        "vnc": "",
    }


def test_with_the_key_and_the_options_that_ansible_has() -> None:
    way = {
        **PLAIN,
        "ansible_port": "2222",
        "ansible_ssh_private_key_file": "/home/me/my key",
        "ansible_ssh_common_args": "-o ControlPath=/tmp/%r@%h -o 'User KnownHostsFile=/a b'",
        "ansible_become": "true",
    }
    found = commands(SEEN, way)
    program, option, jump, target = shlex.split(found["ssh"])
    assert (program, option, target) == ("ssh", "-o", "192.0.2.50")
    # What ssh makes of it: %% is a percent sign, %h and %p are the guest's.
    command = jump.removeprefix("ProxyCommand=").replace("%%", "\0").replace("%h", "GUEST").replace("%p", "22")
    to_host = ["ssh", "-i", "/home/me/my key", "-o", "ControlPath=/tmp/%r@%h", "-o", "User KnownHostsFile=/a b"]
    to_host += ["-p", "2222"]
    assert shlex.split(command.replace("\0", "%")) == [*to_host, "-W", "[GUEST]:22", "root@203.0.113.1"]
    assert shlex.split(found["console"]) == [*to_host, "-t", "root@203.0.113.1", "sudo virsh console web"]


@pytest.mark.parametrize("word", ["ansible_ssh_{}", "ansible_{}"])
def test_both_names_that_ansible_has_for_a_variable(word: str) -> None:
    way = {"host": "203.0.113.1", "user": "root", "port": 2222, "private_key_file": "/key"}
    found = commands(SEEN, {"inventory_hostname": "h1", **{word.format(key): value for key, value in way.items()}})
    assert found["console"] == "ssh -i /key -p 2222 -t root@203.0.113.1 'virsh console web'"


@pytest.mark.parametrize(
    ("way", "jump"),
    [
        ({}, "[2001:db8::1]"),
        ({"ansible_user": "root"}, "root@[2001:db8::1]"),
        ({"ansible_user": "root", "ansible_port": 2222}, "root@[2001:db8::1]:2222"),
    ],
)
def test_a_host_with_an_ipv6_address(way: dict[str, t.Any], jump: str) -> None:
    vnc = {"listen": "::1", "port": 5901}
    found = commands({**SEEN, "vnc": vnc}, {"inventory_hostname": "h1", "ansible_host": "2001:db8::1", **way})
    assert shlex.split(found["ssh"]) == ["ssh", "-J", jump, "192.0.2.50"]
    assert "5900:[::1]:5901" in shlex.split(found["vnc"])


def test_on_this_machine() -> None:
    way = {"inventory_hostname": "localhost", "ansible_connection": "local"}
    vnc = {"listen": "127.0.0.1", "port": 5901}
    assert commands({**SEEN, "vnc": vnc}, way) == {"ssh": "ssh 192.0.2.50", "console": "virsh console web", "vnc": ""}


def test_where_there_is_no_way() -> None:
    assert commands({"name": "web", "address": None, "console_command": None, "vnc": None}, PLAIN) == {
        "ssh": "",
        "console": "",
        "vnc": "",
    }


def test_its_screen() -> None:
    found = commands({**SEEN, "vnc": {"listen": "127.0.0.1", "port": 5901}}, PLAIN)
    assert found["vnc"] == "ssh -N -L 5900:127.0.0.1:5901 root@203.0.113.1"


@pytest.mark.parametrize("address", ["-oProxyCommand=id", "2001:db8::1%';id;'", "host"])
def test_of_an_address_that_is_none_there_is_no_command(address: str) -> None:
    """SSH would take it for an option, or give a shell what follows the %."""
    assert commands({**SEEN, "address": address}, PLAIN)["ssh"] == ""


@given(st.dictionaries(st.sampled_from(["ansible_host", "ansible_user", "ansible_ssh_private_key_file"]), st.text()))
def test_every_command_is_words_of_a_shell(way: dict[str, str]) -> None:
    try:
        found = commands(SEEN, {"inventory_hostname": "h", **way}, "u")
    except CnvmError:
        return
    assert all(shlex.split(line)[0] == "ssh" for line in found.values() if line)
