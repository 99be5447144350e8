# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin against real hosts: what is listed, and what becomes of it when a host is silent."""

from __future__ import annotations

import json
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.tests.integration.guest import Guest
from ansible_collections.cnvm.platform.tests.integration.hosts import ACCESS, App, environment, run

SILENT = "does not say which workloads it has"


class Inventory:
    """A workloads file of the hosts of the fleet, whose ways to them can be made wrong."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "workloads.yml"
        self.options = {
            "plugin": "cnvm.platform.workloads",
            "inventory": ["hosts.yml"],
            "cache": True,
            "cache_plugin": "ansible.builtin.jsonfile",
            "cache_connection": str(folder / "cache"),
        }
        self.write()

    def write(self, silent: str = "", **options: t.Any) -> None:
        """Write it anew; nobody listens at the port of ``silent``."""
        hosts = yaml.safe_load((ACCESS / "inventory.yml").read_text(encoding="utf-8"))
        if silent:
            hosts["cnvm_hosts"]["hosts"][silent]["ansible_port"] = 1
        self.path.with_name("hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
        self.path.write_text(yaml.safe_dump({**self.options, **options}), encoding="utf-8")

    def read(self, *args: str) -> tuple[dict[str, t.Any], str]:
        """(the inventory, what was said beside it)."""
        program = str(Path(sys.executable).parent / "ansible-inventory")
        done = run([program, "-i", str(self.path), "--list", *args], env=environment())
        return json.loads(done.stdout), " ".join(done.stderr.split())


@pytest.fixture
def inventory(tmp_path: Path, deployed: App, deployed_guest: Guest) -> Inventory:
    """With a container and a guest to be found."""
    assert deployed.source()
    assert deployed_guest.source()
    return Inventory(tmp_path)


def members(found: t.Mapping[str, t.Any], group: str) -> list[str]:
    return t.cast("list[str]", found.get(group, {}).get("hosts", []))


def test_what_there_is(inventory: Inventory, deployed: App, deployed_guest: Guest) -> None:
    # Who had the address before is what its host believes.
    address = deployed_guest.address
    deployed_guest.source().sh(f"ip neigh replace {address} lladdr 02:00:00:00:00:01 dev cnvm0 nud stale")
    found, said = inventory.read()
    assert SILENT not in said
    places = {deployed.name: deployed.source().name, deployed_guest.name: deployed_guest.source().name}
    for name, host in places.items():
        variables = found["_meta"]["hostvars"][name]
        assert variables["cnvm_host"] == host
        assert variables.get("ansible_host") == variables["cnvm_workload"]["address"], variables
        assert name in members(found, f"cnvm_host_{host}")
        assert name in members(found, "cnvm_reachable")
    # It has no agent, and the overlay no DHCP: it was seen by its host.
    assert found["_meta"]["hostvars"][deployed_guest.name]["cnvm_workload"]["address_source"] == "arp"
    assert members(found, "cnvm_guests") == [deployed_guest.name]
    assert deployed.name in members(found, "cnvm_containers")


def test_one_that_is_off_does_no_harm(inventory: Inventory, deployed: App, deployed_guest: Guest) -> None:
    name, home = deployed_guest.name, deployed_guest.source()
    home.run("virsh", "destroy", name)
    try:
        found, _said = inventory.read()
    finally:
        home.run("virsh", "start", name)
    variables = found["_meta"]["hostvars"][name]
    assert "ansible_host" not in variables
    assert "stopped" in variables["cnvm_unreachable_reason"], variables
    assert members(found, "cnvm_state_stopped") == [name]
    assert members(found, "cnvm_reachable") == [deployed.name]


def test_a_silent_host_empties_nothing(inventory: Inventory, deployed: App, deployed_guest: Guest) -> None:
    silent = deployed.source().name
    inventory.write(silent, cache=False)
    found, said = inventory.read()
    assert f"The host {silent} {SILENT}" in said
    assert deployed.name not in members(found, "cnvm_containers")
    assert bool(members(found, "cnvm_guests")) == (deployed_guest.source().name != silent)


def test_what_it_said_before_is_taken(inventory: Inventory, deployed: App) -> None:
    inventory.read()
    silent = deployed.source().name
    inventory.write(silent)
    assert SILENT not in inventory.read()[1]  # the cache is fresh: nobody was asked
    found, said = inventory.read("--flush-cache")
    assert f"The host {silent} {SILENT}" in said
    assert found["_meta"]["hostvars"][deployed.name]["cnvm_stale"]
    assert deployed.name in members(found, "cnvm_stale")
    assert deployed.name not in members(found, "cnvm_reachable")
