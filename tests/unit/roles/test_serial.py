# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles that decide by what all hosts have refuse to look at some of them only."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage

ROLES = Path(__file__).resolve().parents[3] / "roles"


def source_of(role: str) -> str:
    """Its tasks and variables."""
    return "".join(path.read_text(encoding="utf-8") for path in (ROLES / role).glob("[tv]a*s/*.yml"))


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir() if path.is_dir()))
def test_readmes_tell_how_a_play_may_not_be(role: str) -> None:
    """A play with the strategy free has no mark by which a role could know it."""
    readme = (ROLES / role / "README.md").read_text(encoding="utf-8")
    if "serial has left some" in source_of(role):
        assert "`serial`" in readme
    if "map('extract', hostvars" in source_of(role) and role != "overlay":  # that one refuses without the others
        assert "`strategy: free`" in readme


@pytest.mark.parametrize(
    ("role", "variables"),
    [
        ("teleport", {"teleport_container": "web", "teleport_target": "host2"}),
        ("migrate", {"migrate_guest": "web", "migrate_target": "host2"}),
        ("evacuate", {"evacuate_host": "{{ inventory_hostname }}"}),
        ("guest_fleet", {"guest_fleet_clones": "debian:1"}),
        ("guest_template", {"guest_template_name": "debian", "guest_template_build": "trixie"}),
    ],
)
def test_serial(stage: Stage, role: str, variables: dict[str, t.Any]) -> None:
    play = {
        "hosts": "cnvm_hosts", "gather_facts": False, "serial": 1,
        "roles": [{"role": f"cnvm.platform.{role}", "vars": variables}],
    }  # fmt: skip
    (stage.path / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    said = stage.playbook(str(stage.path / "play.yml"), check=False)
    assert "serial has left some for later: host2. Use it in a play without serial." in said
    assert (stage.path / "asked.json").read_text(encoding="utf-8") == ""
