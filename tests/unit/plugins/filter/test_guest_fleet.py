# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter hands its words to the planner, and its refusals to Ansible."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var

from ansible_collections.cnvm.platform.plugins.filter.guest_fleet import FilterModule

HOSTS = {"host1": {"memory_mib": 2048, "guests": []}, "host2": {"memory_mib": 2048, "guests": []}}
plan = FilterModule().filters()["guest_fleet"]


def test_a_plan() -> None:
    found = plan("debian:4:front:web", HOSTS, defaults={"guest": {"memory_mib": 512}}, max_per_host="2")
    assert sorted(found["placement"].values()) == ["host1", "host1", "host2", "host2"]


def test_a_plan_is_followed_and_not_made_again() -> None:
    defaults = {"guest": {"memory_mib": 512}}
    made = plan("debian:4:front:web", HOSTS, defaults=defaults)
    for name in HOSTS:
        part = plan("debian:4:front:web", {name: {}}, defaults=defaults, placement=made["placement"])
        assert part == {"calls": {name: made["calls"][name]}}


def test_words_that_are_named() -> None:
    defaults = {"guest": {"memory_mib": 512}}
    assert plan("debian:3", HOSTS, defaults, 0, 0, 0.5)["new"]
    with pytest.raises(AnsibleFilterError, match="no room"):
        plan("debian:3", HOSTS, defaults=defaults, memory_reserve_mib=1024, memory_overcommit=0.5)


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(AnsibleFilterError, match=r"guest_fleet: .*line 1.*Allowed: template:count:group:type"):
        plan("debian", HOSTS)


def test_a_refusal_can_be_told() -> None:
    found = plan("debian", HOSTS, tell=True)
    assert list(found) == ["refused"]
    assert "line 1" in found["refused"]


def test_in_check_mode_it_is_told_without_a_refusal() -> None:
    bare = {"host1": {"memory_mib": 2048, "guests": [], "libvirt": False}}
    found = plan("debian:1", bare, defaults={"guest": {"memory_mib": 512}}, check_mode=True, tell=True)
    assert "host1 has no libvirt" in found["warnings"][0]


def test_hosts_that_are_not_in_the_play() -> None:
    defaults = {"guest": {"memory_mib": 512}}
    with pytest.raises(AnsibleFilterError, match="host3 did not answer"):
        plan("debian:1", HOSTS, defaults=defaults, others={"host3": {"unreachable": True}})
    assert plan("debian:1", HOSTS, defaults=defaults, others={"host3": {"unreachable": True}}, gone=["host3"])["new"]


@pytest.mark.parametrize("kind", [str, wrap_var])
def test_yaml_is_read(kind: t.Callable[[str], str]) -> None:
    """Of a file, which is text that is no template, too."""
    text = "# mine\n- {template: debian, count: 2, group: front, guest: {memory_mib: 512}}\n"
    assert plan(kind(text), HOSTS)["new"] == ["debian-front-1", "debian-front-2"]


def test_yaml_that_is_none_is_not_shown() -> None:
    with pytest.raises(AnsibleFilterError, match="not YAML, line 3") as caught:
        plan("- template: debian\n  password: [secretword", HOSTS)
    assert "secretword" not in str(caught.value)
