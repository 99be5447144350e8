# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""teleport and migrate find what they are to move by what each host says of itself."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import NAME_RULE
from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage, unsaid

KINDS = {
    "teleport": ("container_info", "containers", "container_migrate", "container"),
    "migrate": ("guest_info", "guests", "guest_migrate", "guest"),
}


def item(state: str = "running", **more: t.Any) -> dict[str, t.Any]:
    """The owner records have other names than the inventory."""
    ours = state != "moved"
    return {"name": "web", "managed": ours, "state": state, "placement": "host1.example", "moving": False, **more}


@pytest.fixture(params=KINDS)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def say(stage: Stage, role: str, *answers: list[dict[str, t.Any]]) -> None:
    info, key, _module, _word = KINDS[role]
    for host, found in zip(stage.answers.values(), answers):
        host[info] = {"libvirt": True, key: found}
        plan = {"reasons": ["no pre-copy", "no post-copy"], "expected_frozen_ms": 3}
        host[KINDS[role][2]] = {"mode": "live", "frozen_ms": 1, "timeline": {"total_ms": 2}, "plan": plan}


def move(stage: Stage, role: str, check: bool = True, **more: t.Any) -> str:
    return stage.playbook(role, "-e", f"{KINDS[role][3]}=web", check=check, target="host2", **more)


def test_the_records_have_other_names(stage: Stage, role: str) -> None:
    say(stage, role, [item()], [item("moved")])
    said = move(stage, role)
    assert [host for host, _options in stage.asked(KINDS[role][2])] == ["host1"]
    assert "web: host1 to host2" in said
    expected = {
        "teleport": "by live (no pre-copy; no post-copy), stood still for 1 ms (expected: 3 ms), 2 ms in all",
        "migrate": "live, stood still for 1 ms, 2 ms in all",
    }
    assert expected[role] in said


def test_one_that_was_off_did_not_stand_still(stage: Stage, role: str) -> None:
    say(stage, role, [item("stopped")], [])
    for host in stage.answers.values():
        host[KINDS[role][2]] = {"mode": "offline", "timeline": {"total_ms": 2}, "plan": {"reasons": ["it is off"]}}
    said = move(stage, role)
    assert "2 ms in all" in said
    assert "stood still" not in said


def test_a_word_that_is_empty_is_not_said(stage: Stage, role: str) -> None:
    """A survey sends all of its words."""
    say(stage, role, [item()], [])
    words = (
        "mode", "allow_post_copy", "max_downtime_ms", "cpu_check", "bandwidth_mib_s", "connections", "auto_converge",
        "timeout_s",
    )  # fmt: skip
    move(stage, role)
    plain = stage.asked(KINDS[role][2])
    move(stage, role, **unsaid(words))
    assert stage.asked(KINDS[role][2]) == plain != []


def test_it_is_there_already(stage: Stage, role: str) -> None:
    say(stage, role, [item("moved")], [item()])
    assert "web: it is on host2 already" in move(stage, role)
    assert stage.asked(KINDS[role][2]) == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([[item("moved")], []], "no host of this play has web"),
        ([[item()], [item()]], "more than one host says that it has web: host1, host2"),
    ],
)
def test_not_one_has_it(stage: Stage, role: str, answers: list[list[dict[str, t.Any]]], said: str) -> None:
    say(stage, role, *answers)
    assert said in move(stage, role, check=False)


def interrupted(stage: Stage, role: str, *ends: tuple[str, str], moving: bool = False) -> None:
    """A move to host2 that somebody has to end; what host1 and then host2 says to that, time after time."""
    info, key, _module, _word = KINDS[role]
    say(stage, role)
    for host, state in zip(stage.answers.values(), ("running", "moved")):
        seen = [{"libvirt": True, key: [item(state, moving=now)]} for now in (True, moving)]
        results = [{"results": [{"name": "web", "outcome": outcome, "message": said}]} for outcome, said in ends]
        host |= {info: seen, "container_recover": results}
        host[KINDS[role][2]] = {"msg": "web is on host2 now."}


def test_a_move_that_was_interrupted_is_ended_first(stage: Stage, role: str) -> None:
    """Whoever had to wait for the other host is asked again."""
    interrupted(stage, role, ("waiting", "host1 is asked first."), ("source", "web goes on here."))
    said = move(stage, role)
    asked = stage.asked("container_recover")
    assert sorted(host for host, _options in asked) == ["host1", "host1", "host2", "host2"]
    assert all(options == {"names": ["web"]} for _host, options in asked)
    assert "web goes on here." in said
    assert [host for host, _options in stage.asked(KINDS[role][2])] == ["host1"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (("waiting", "host2 may run it and cannot be asked."), "host2 may run it and cannot be asked."),
        (("busy", "web is being moved."), "A move of web is under way on host1. Do this again when it has ended."),
    ],
)
def test_a_move_that_does_not_end_is_in_the_way(stage: Stage, role: str, end: tuple[str, str], told: str) -> None:
    """Also of the next one to the same host, where it may or may not arrive."""
    interrupted(stage, role, end, moving=True)
    assert told in move(stage, role, check=False)
    assert stage.asked(KINDS[role][2]) == []


def test_in_check_mode_no_move_is_ended(stage: Stage, role: str) -> None:
    interrupted(stage, role, ("source", "The move was not committed."), moving=True)
    stage.playbook(role, "-e", f"{KINDS[role][3]}=web", "--check", target="host2")
    assert len(stage.asked("container_recover", check=True)) == 2
    assert stage.asked("container_recover") == []
    assert [host for host, _options in stage.asked(KINDS[role][2], check=True)] == ["host1"]


def test_its_records_are_damaged(stage: Stage, role: str) -> None:
    """Where it is to go, and would be taken for one that has arrived."""
    say(stage, role, [], [item("failed", managed=False, problem="owner.json holds no JSON object.")])
    assert "owner.json holds no JSON object." in move(stage, role, check=False)
    assert stage.asked(KINDS[role][2]) == []


@pytest.mark.parametrize("name", ["", "a b"])
def test_a_name_that_is_none(stage: Stage, role: str, name: str) -> None:
    info, _key, module, word = KINDS[role]
    said = stage.playbook(role, check=False, target="host2", **{word: name})
    assert f"{role}_{word}: '{name}' is not allowed. Allowed: {NAME_RULE}." in said
    assert stage.asked(info) == stage.asked(module) == []
