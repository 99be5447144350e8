# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones where some hosts are for containers only."""

from __future__ import annotations

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


def test_a_host_for_containers_only_gets_no_clone(stage: Stage) -> None:
    """It is no host that did not answer, either."""
    for name, answers in stage.answers.items():
        answers["guest_info"] = {"libvirt": name == "host1", "guests": []}
        answers["template_info"] = {"peers": [], "templates": [{"digest": "1" * 64, "names": ["debian"]}]}
        answers["guest_clone"] = {"clones": []}
    stage.playbook("vm_instantiate", template="debian", count=2, memory_mib=8)
    ((host, options),) = stage.asked("guest_clone")
    assert (host, options["numbers"]) == ("host1", [1, 2])
