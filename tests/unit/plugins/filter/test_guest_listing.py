# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters hand their words on, and refusals to Ansible."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.cnvm.platform.plugins.filter import guest_commands, guest_rows, guest_table

FOUND = {"host1": {"guests": [{"name": "web", "managed": True, "state": "running", "tags": {"group": "front"}}]}}
rows = guest_rows.FilterModule().filters()["guest_rows"]
table = guest_table.FilterModule().filters()["guest_table"]
commands = guest_commands.FilterModule().filters()["guest_commands"]


def test_rows_and_their_table() -> None:
    assert table(rows(FOUND)) == [
        "NAME  HOST   STATE    ADDRESS  TEMPLATE  GROUP  TYPE",
        "web   host1  running  -        -         front  -",
    ]
    with pytest.raises(AnsibleFilterError, match="guest_rows"):
        rows(5)
    with pytest.raises(AnsibleFilterError, match="guest_table"):
        table(5)


def test_what_is_chosen_and_why_nothing_is() -> None:
    found = rows(FOUND, {"group": "front"})
    assert ([one["name"] for one in found["guests"]], found["refused"]) == (["web"], "")
    found = rows({}, {"names": "web"}, FOUND)
    assert found == {"guests": [], "refused": found["refused"]}
    assert "is at host1" in found["refused"]
    assert "x" in rows(FOUND, {"x": 1})["refused"]


def test_commands() -> None:
    way = {"inventory_hostname": "host1"}
    assert commands({"address": "192.0.2.5"}, way, user="me")["ssh"] == "ssh -J host1 me@192.0.2.5"
    with pytest.raises(AnsibleFilterError, match="ansible_become"):
        commands({"console_command": "virsh console a"}, {**way, "ansible_become": "perhaps"})


def test_the_way_that_only_the_settings_of_ansible_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_REMOTE_USER", "root")
    monkeypatch.setenv("ANSIBLE_PRIVATE_KEY_FILE", "/key")
    guest = {"console_command": "virsh console a"}
    assert commands(guest, {"inventory_hostname": "host1"})["console"] == "ssh -i /key -t root@host1 'virsh console a'"
    way = {"inventory_hostname": "host1", "ansible_ssh_user": "me", "ansible_ssh_private_key_file": "/mine"}
    assert commands(guest, way)["console"] == "ssh -i /mine -t me@host1 'virsh console a'"
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", "-J bastion")
    way["ansible_ssh_extra_args"] = "-v"
    assert commands(guest, way)["console"] == "ssh -i /mine -J bastion -v -t me@host1 'virsh console a'"
