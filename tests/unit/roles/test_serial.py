# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles that decide by what all hosts have refuse to look at some of them only."""

from __future__ import annotations

import typing as t

import pytest
import yaml

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


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
