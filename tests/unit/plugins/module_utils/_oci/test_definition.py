# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Items of ``containers`` in their normal form, and what is refused."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._oci.definition import (
    DEFAULTS,
    IN_PLACE,
    changed_keys,
    check_normal,
    definition_of,
    normalise,
    normalise_all,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0123456789abcdefghijklmnopqrstuvwxyz0123456 me@here"


def each(key: str, *values: t.Any) -> list[tuple[str, t.Any]]:
    """Cases with the same key."""
    return [(key, value) for value in values]


def each_listed(key: str, *values: t.Any) -> list[tuple[str, t.Any]]:
    """Cases with the same key and lists of one value."""
    return [(key, [value]) for value in values]


def item(**values: t.Any) -> dict[str, t.Any]:
    return {"name": "web", "image": "cnvm", **values}


def test_nothing_said_is_the_default() -> None:
    normal = normalise(item())
    assert {key: normal[key] for key in DEFAULTS} == {**DEFAULTS, "hostname": "web"}
    assert (normal["state"], normal["wait_for"]) == ("running", None)


def test_nulls_and_empty_answers_are_the_default_too() -> None:
    empty = dict.fromkeys(DEFAULTS)
    assert normalise(item(**empty)) == normalise(item())
    assert normalise(item(ports=[""], env="", dns="", command=[""], address="")) == normalise(item())


def test_normal_form_is_stable() -> None:
    once = normalise(item(ports=["80:80", "22:22"], address="10.0.0.1", mounts=[{"destination": "/b", "source": "/x"}]))
    assert normalise({key: value for key, value in once.items() if value is not None}) == once


@pytest.mark.parametrize(
    ("key", "given", "normal"),
    [
        ("dns", ["10.1.1.1", "", None], ["10.1.1.1"]),
        ("memory_mib", "512", 512),
        ("memory_mib", 512, 512),
        ("pids_limit", "64", 64),
        ("cpus", "0.5", 0.5),
        ("cpus", 2, 2.0),
        ("stop_timeout_s", "0", 0),
        ("no_new_privileges", "no", False),
        ("env", {"A": 1, "B": "x y"}, {"A": "1", "B": "x y"}),
        ("labels", {"tier": "front"}, {"tier": "front"}),
        ("command", ["sleep", 10], ["sleep", "10"]),
        ("user", 1000, "1000"),
        ("user", "www-data:www-data", "www-data:www-data"),
        ("cwd", "/srv//data/", "/srv/data"),
        ("capabilities_add", ["net_admin"], ["CAP_NET_ADMIN"]),
        ("capabilities_drop", ["CAP_NET_RAW", "net_raw"], ["CAP_NET_RAW"]),
        ("authorized_keys", [KEY, "", "# a comment"], [KEY]),
        ("hostname", "web.example.org", "web.example.org"),
        (
            "mounts",
            [{"type": "tmpfs", "destination": "/x", "size_mib": "8"}],
            [{"type": "tmpfs", "destination": "/x", "read_only": False, "size_mib": 8}],
        ),
    ],
)
def test_what_is_meant_is_taken(key: str, given: object, normal: object) -> None:
    assert normalise(item(**{key: given}))[key] == normal


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("name", name)
            for name in (
                "",
                None,
                7,
                True,
                "a/b",
                "..",
                ".",
                "-rf",
                "a b",
                "é",
                "a\n",
                "x" * 300,
                "$(x)",
                "lost+found",
                "tmp",
                "web.lock",
                "web.new",
                "a;b",
                "a\u202eb",
            )
        ),
        *each("memory_mib", True, "1_000", "1e3", "٣", 2**70, -1, 0, "", 7, "8.5", []),
        *each("cpus", True, "x", 0, -1, "1e3", ""),
        *each("pids_limit", True, 1, "x", ""),
        *each("state", "started", "paused", 1),
        *each("runtime", "docker", "/bin/sh", 1),
        *each("restart", "no", True, "on-failure"),
        *each("address", "10.0.0", "10.0.0.1/24", "::1", 167772161, "host", "010.0.0.1"),
        *each("ports", ["80"], ["80:80/sctp"], [4880], ["0:80"], ["80:65536"], "80:80", [{"host": 1}]),
        *each("env", ["A=1"], {"A=B": "1"}, {"A": True}, {"": "1"}, {"A": "x\0"}, {"1A": "x"}),
        *each_listed(
            "mounts",
            {"destination": "/x"},
            {"destination": "x", "source": "/a"},
            {"destination": "/x", "source": "a"},
            {"destination": "/proc/x", "source": "/a"},
            {"destination": "/", "source": "/a"},
            {"destination": "/a/../x", "source": "/a"},
            {"destination": "/x", "source": "/a", "type": "nfs"},
            {"destination": "/x", "source": "/a", "size_mib": 5},
            {"destination": "/x", "type": "tmpfs", "source": "/a"},
            {"destination": "/x", "source": "/a", "options": "rw"},
            "/a:/x",
        ),
        *each("user", "a b", "-1", "root:", "../x", True),
        *each("cwd", "x", "/a/../b"),
        *each("hostname", "a_b", "-a", "a b", "x" * 65, "a..b", 5),
        *each_listed("capabilities_add", "SYS_ADMIN", "CAP_SYS_MODULE", "ROOT", 1),
        *each_listed("authorized_keys", "ssh-rsa", 'command="x" ' + KEY, KEY + "\n" + KEY, "ssh-dss " + "A" * 60),
        *each("stop_signal", "9", "SIGTERM", "term; reboot"),
        *each("seccomp", "none", "/etc/profile.json"),
        *each("wait_for", 80, {"port": 0}, {"port": 80, "timeout_s": 0}, {"path": "/"}),
        ("volumes", []),
        ("image", "../x"),
        ("image", "x" * 300),
        ("image", 5),
        ("image", None),
        ("dns", ["resolver"]),
        ("labels", ["a"]),
    ],
)
def test_what_is_not_clear_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        normalise_all([item(**{key: value})])
    assert key in caught.value.message
    assert caught.value.hint


def test_unknown_key_is_named() -> None:
    with pytest.raises(InputError, match="unknown key 'memory'"):
        normalise_all([item(memory=5)])


def test_absent_needs_no_image() -> None:
    assert normalise({"name": "web", "state": "absent"})["image"] == ""


def test_an_image_may_be_named_by_its_digest() -> None:
    assert normalise(item(image="sha256:" + "a" * 64))["image"] == "a" * 64


def test_ports_without_an_address() -> None:
    with pytest.raises(InputError, match="ports need an address"):
        normalise(item(ports=["80:80"]))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"name": "web"}, "'web' is given twice"),
        ({"name": "b", "address": "10.0.0.1"}, "same address"),
        ({"name": "b", "address": "10.0.0.2", "ports": ["80:8080"]}, "host's port 80/tcp"),
    ],
)
def test_two_containers_want_the_same(second: dict[str, t.Any], reason: str) -> None:
    first = item(address="10.0.0.1", ports=["80:80"])
    with pytest.raises(InputError, match=reason):
        normalise_all([first, {"image": "cnvm", **second}])


def test_what_is_removed_is_in_nobodys_way() -> None:
    first = item(address="10.0.0.1", ports=["80:80"])
    assert len(normalise_all([first, {**first, "name": "old", "state": "absent"}])) == 2


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mounts": [{"source": "/srv/x", "destination": "/x"}, {"type": "tmpfs", "destination": "/y", "size_mib": 2}]},
        {"address": "10.100.101.5", "ports": ["8080:80"], "cpus": "1.5", "memory_mib": "64", "env": {"A": 1}},
        {"capabilities_add": ["net_admin"], "dns": ["10.1.1.1"], "command": ["a", "b"], "labels": {"a": "b"}},
    ],
)
def test_what_a_host_wrote_another_one_takes(given: dict[str, t.Any]) -> None:
    made = json.loads(json.dumps(definition_of(normalise(item(**given)), "u", "a" * 64, "cnvm")))
    check_normal(made)
    # As an older version wrote it.
    check_normal({key: value for key, value in made.items() if key != "labels"})


@pytest.mark.parametrize(
    "changed",
    [
        {"capabilities_add": ["CAP_SYS_ADMIN"]},
        {"capabilities_add": ["net_admin"]},
        {"mounts": [{"type": "bind", "source": "/srv/../etc", "destination": "/x", "read_only": False}]},
        {"mounts": [{"type": "bind", "source": "/srv", "destination": "/proc", "read_only": False}]},
        {"hooks": {}},
        {"name": "../x"},
        {"runtime": "/tmp/runc"},
        {"cpus": "1.5"},
    ],
)
def test_what_no_host_writes_is_refused(changed: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        check_normal({**definition_of(normalise(item()), "u", "a" * 64, "cnvm"), **changed})


def test_changed_keys() -> None:
    before = definition_of(normalise(item()), "u", "d", "cnvm")
    after = definition_of(normalise(item(env={"A": "1"}, restart="never")), "other", "d", "cnvm")
    assert changed_keys(before, after) == ["env", "restart"]
    assert changed_keys(before, before) == []


def test_a_definition_of_an_older_version_has_the_defaults() -> None:
    after = definition_of(normalise(item()), "u", "d", "cnvm")
    before = {key: value for key, value in after.items() if key not in ("dns", "seccomp", "labels")}
    assert changed_keys(before, after) == []


def test_keys_that_are_taken_over_in_place_exist() -> None:
    assert set(DEFAULTS) | {"image_name"} > IN_PLACE


@pytest.mark.parametrize(
    ("key", "allowed"), [("address", "a plain IPv4 address of the overlay"), ("dns", "IPv4 addresses")]
)
def test_what_is_allowed_is_said_as_it_is(key: str, allowed: str) -> None:
    """A name server need not be on the overlay."""
    with pytest.raises(InputError, match=rf"{key}: 'x' is not allowed\. Allowed: {allowed}\."):
        normalise(item(**{key: ["x"] if key == "dns" else "x"}))
