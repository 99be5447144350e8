# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a play the overlay joins."""

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml
from ansible.plugins.filter import core, mathstuff
from jinja2.nativetypes import NativeEnvironment

ROLE = Path(__file__).resolve().parents[3] / "roles/overlay"
VARS = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))


def told(variable: str, hosts: dict[str, t.Any], play: t.Iterable[str], **variables: t.Any) -> t.Any:
    """What the role's ``variable`` says when the hosts of ``play`` have not failed so far."""
    environment = NativeEnvironment()
    environment.filters.update({**core.FilterModule().filters(), **mathstuff.FilterModule().filters()})
    return environment.from_string(VARS[variable]).render(hostvars=hosts, ansible_play_hosts=list(play), **variables)


HOSTS = {
    "host1": {"__overlay_prepared": {"changed": True, "member": {"name": "host1"}}},
    "host2": {"__overlay_prepared": {"skipped": True, "changed": False}},
    "host3": {"__overlay_prepared": {"changed": False, "member": {"name": "host3"}}},
}


def test_a_host_that_passes_it_over_is_no_member() -> None:
    assert told("__overlay_late", HOSTS, HOSTS) == []
    assert told("__overlay_members", HOSTS, HOSTS, __overlay_hosts=list(HOSTS)) == [
        {"name": "host1"},
        {"name": "host3"},
    ]


def test_hosts_that_come_later_are_named() -> None:
    hosts = {**HOSTS, "host4": {}, "host5": {}}
    assert told("__overlay_late", hosts, hosts) == ["host4", "host5"]


def test_a_host_that_fails_while_others_wait_is_a_member_for_all() -> None:
    assert told("__overlay_members", HOSTS, ["host3"], __overlay_hosts=list(HOSTS)) == [
        {"name": "host1"},
        {"name": "host3"},
    ]


def test_settings_are_looked_at_before_anything_is_there() -> None:
    main, prepare, join = (
        yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text(encoding="utf-8")) for name in ("main", "prepare", "join")
    )
    order = [task["ansible.builtin.import_tasks"] for task in main[1]["block"]]
    assert order == ["prepare.yml", "units.yml", "join.yml", "service.yml", "verify.yml"]
    asked = prepare[0]["cnvm.platform.overlay"]
    wanted = join[-1]["cnvm.platform.overlay"]
    assert wanted.items() - asked.items() == {key: wanted[key] for key in ("members", "removed")}.items()
