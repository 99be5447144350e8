# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook of the README, as a user has it, against the inventory that the role local_hosts writes."""

from __future__ import annotations

import json
import re
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.tests.integration.hosts import ACCESS, Fleet, environment, playbook, run

ROOT = Path(__file__).resolve().parents[3]
SITE = ROOT / "inventories/example/site.yml"


def play(*args: str) -> dict[str, dict[str, int]]:
    """Run a playbook with the user's key; what the recap says of each host."""
    key = (ACCESS / "id_ed25519.pub").read_text(encoding="utf-8").strip()
    output = playbook(*args, "-e", json.dumps({"my_keys": [key]})).stdout
    recap = output.rpartition("PLAY RECAP")[2]
    return {
        host: {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in re.findall(r"^(\S+)\s+: (.*)$", recap, re.MULTILINE)
    }


def logged_in(name: str, folder: Path, **options: t.Any) -> str:
    """What ``hostname`` says in a workload, by way of the inventory plugin."""
    path = folder / "workloads.yml"
    made = {
        "plugin": "cnvm.platform.workloads",
        "inventory": [str(ACCESS / "inventory.yml")],
        "accept_new_host_keys": True,
        "compose": {
            "ansible_user": "'cnvm'",
            "ansible_ssh_private_key_file": f"'{ACCESS}/id_ed25519'",
            "ansible_ssh_extra_args": f"'-o UserKnownHostsFile={folder}/known_hosts'",
        },
        **options,
    }
    path.write_text(json.dumps(made), encoding="utf-8")
    program = str(Path(sys.executable).parent / "ansible")
    argv = [program, "-i", str(path), name, "-m", "ansible.builtin.raw", "-a", "hostname"]
    return run(argv, check=False, env=environment()).stdout


def runs_on(fleet: Fleet) -> list[str]:
    """The hosts that have processes of the container."""
    return [name for name, host in fleet.hosts.items() if host.look("web")["alive"]]


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> t.Iterator[Fleet]:
    """The playbook has run once. Ansible is as a user has it who has set nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANSIBLE_PIPELINING", raising=False)
        play(str(SITE))
        yield fleet
        play(str(ROOT / "tests/integration/playbooks/remove.yml"), "-e", "container=web")


def test_readme_has_this_playbook() -> None:
    text = SITE.read_text(encoding="utf-8")
    body = text[text.index("- name") :]
    assert body in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len([line for line in body.splitlines() if line]) == 10


def test_deployed_where_it_says(site: Fleet) -> None:
    assert runs_on(site) == ["host1"]


def test_second_run_changes_nothing(site: Fleet) -> None:
    assert {host: recap["changed"] for host, recap in play(str(SITE)).items()} == dict.fromkeys(site.hosts, 0)


def test_inventory_leads_to_it_through_its_host(site: Fleet, tmp_path: Path) -> None:
    """The controller has no way to the overlay. A key that nobody has vouched for is refused."""
    assert "Host key verification failed" in logged_in("web", tmp_path, accept_new_host_keys=False)
    assert "web" in logged_in("web", tmp_path).split()
    assert runs_on(site) == ["host1"]


def test_after_a_teleport_it_stays_where_it_went(site: Fleet, tmp_path: Path) -> None:
    play("cnvm.platform.teleport", "-e", "container=web", "-e", "target=host2")
    assert runs_on(site) == ["host2"]
    assert all(recap["changed"] == 0 for recap in play(str(SITE)).values())
    assert runs_on(site) == ["host2"]
    assert "web" in logged_in("web", tmp_path).split()
    again = play("cnvm.platform.teleport", "-e", "container=web", "-e", "target=host2")
    assert all(recap["changed"] == 0 for recap in again.values())
