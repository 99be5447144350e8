# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is said to be switched off must not answer, and what waits is not passed over."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import NAME_RULE
from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


def result(outcome: str, message: str = "") -> dict[str, t.Any]:
    return {
        "changed": False,
        "results": [{"name": "web", "outcome": outcome, "message": message or f"It is {outcome}."}],
    }


@pytest.fixture
def hosts(stage: Stage) -> Stage:
    for name, answers in stage.answers.items():
        answers["container_recover"] = {"results": []}
        answers["overlay_info"] = {"overlay": {"configured": True, "self": {"name": name}}}
    return stage


@pytest.mark.parametrize("known_as", ["host2", "other.name"])
def test_fenced_answers(hosts: Stage, known_as: str) -> None:
    """By its name in the inventory, or by the one that the hosts know."""
    hosts.answers["host2"]["overlay_info"]["overlay"]["self"]["name"] = known_as
    said = hosts.playbook("recover", fenced=known_as, check=False)
    assert f"recover_fenced: {known_as} answers, so it is not switched off" in said
    assert hosts.asked("container_recover") == []


@pytest.mark.parametrize("mode", [[], ["--check"]])
def test_fenced_answers_though_it_has_no_part(hosts: Stage, mode: list[str]) -> None:
    said = hosts.playbook("recover", "--limit", "host1", *mode, fenced="host2", check=False)
    assert "recover_fenced: host2 answers" in said
    assert hosts.asked("container_recover", check=bool(mode)) == []


@pytest.mark.parametrize("limit", [[], ["--limit", "host1,host3"]])
def test_fenced_answers_but_nobody_becomes_root_there(hosts: Stage, limit: list[str]) -> None:
    """It leaves the play, or the host that asks it does. The others do not go on as if it were off."""
    hosts.answers["host3"] = hosts.answers["host1"]
    (hosts.path / "host_vars").mkdir()
    text = "{ansible_become: true, ansible_become_method: nonesuch}"
    (hosts.path / "host_vars/host2.yml").write_text(text, encoding="utf-8")
    said = hosts.playbook("recover", *limit, fenced="host2", check=False)
    assert "recover_fenced: host2 answers" in said
    assert hosts.asked("container_recover") == []


@pytest.mark.parametrize("limit", [[], ["--limit", "host1"]])
def test_fenced_lets_nobody_in(hosts: Stage, limit: list[str]) -> None:
    """Ansible calls it unreachable, but its SSH server has spoken."""
    hosts.off.add("host2")
    ssh = hosts.path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'root@host2: Permission denied (publickey).' >&2\nexit 255\n", encoding="utf-8")
    ssh.chmod(0o755)
    (hosts.path / "host_vars").mkdir()
    (hosts.path / "host_vars/host2.yml").write_text(f"ansible_ssh_executable: {ssh}", encoding="utf-8")
    said = hosts.playbook("recover", *limit, fenced="host2", check=False)
    assert "recover_fenced: host2 answers" in said
    assert hosts.asked("container_recover") == []


def test_fenced_answers_with_an_error(hosts: Stage) -> None:
    hosts.answers["host2"]["overlay_info"] = {"failed": True, "msg": "overlay.json is broken."}
    assert "recover_fenced: host2 answers" in hosts.playbook("recover", fenced="host2", check=False)


@pytest.mark.parametrize("limit", [[], ["--limit", "host1"]])
def test_fenced_is_off(hosts: Stage, limit: list[str]) -> None:
    hosts.off.add("host2")
    said = hosts.playbook("recover", *limit, fenced="host2", check=bool(limit))
    assert hosts.asked("container_recover") == [("host1", {"fenced": "host2"})]
    assert limit or "unreachable=1" in said


def test_fenced_is_known_to_the_hosts_only(hosts: Stage) -> None:
    """Who has left the inventory for good can still be what a move waits for."""
    hosts.playbook("recover", fenced="host9")
    assert [options["fenced"] for _host, options in hosts.asked("container_recover")] == ["host9", "host9"]


def test_what_still_waits_is_no_success(hosts: Stage) -> None:
    hosts.answers["host1"]["container_recover"] = result("waiting", "web stands still here; host2 cannot be asked.")
    said = hosts.playbook("recover", check=False)
    assert "web stands still here; host2 cannot be asked." in said
    assert "failed=1" in said
    hosts.playbook("recover", "--check")


@pytest.mark.parametrize("then", ["source", "busy"])
def test_what_waited_goes_on(hosts: Stage, then: str) -> None:
    hosts.answers["host1"]["container_recover"] = [result("waiting"), result(then)]
    assert f"It is {then}." in hosts.playbook("recover")


def test_a_name_that_is_none(hosts: Stage) -> None:
    said = hosts.playbook("recover", check=False, container="a b")
    assert f"recover_container: 'a b' is not allowed. Allowed: {NAME_RULE}." in said
    assert hosts.asked("container_recover") == []


def test_one_of_them(hosts: Stage) -> None:
    """A survey that asks for both sends an empty word for one."""
    hosts.playbook("recover", container="", guest="web")
    assert [options["names"] for _host, options in hosts.asked("container_recover")] == [["web"], ["web"]]


def test_one_name_at_a_time(hosts: Stage) -> None:
    said = hosts.playbook("recover", container="a", guest="b", check=False)
    assert "container, guest: both are given, but only one can be looked after at a time." in said
    assert hosts.asked("container_recover") == []
    hosts.playbook("recover", container="", guest="b")
    assert {tuple(options["names"]) for dummy, options in hosts.asked("container_recover")} == {("b",)}
