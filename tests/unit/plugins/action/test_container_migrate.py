# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of a teleport, against a host that answers from a list."""

from __future__ import annotations

import json
import typing as t
from unittest import mock

import pytest
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError

from ansible_collections.cnvm.platform.plugins.action import container_migrate
from ansible_collections.cnvm.platform.plugins.plugin_utils import _move
from ansible_collections.cnvm.platform.tests.support.actions import Host, action

PLAN = {"mode": "stop_copy", "reasons": ["asked"], "blockers": [], "warnings": [], "expected_frozen_ms": 300}
Answers = t.Mapping[str, t.Any]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(_move.display, "display", lambda text, *args, **kwargs: lines.append(text))
    return lines


def run(host: Host, *, check_mode: bool = False, **args: t.Any) -> dict[str, t.Any]:
    plugin = action(
        container_migrate.ActionModule,
        "container_migrate",
        {"container": "web", "target": "host2", **args},
        check_mode=check_mode,
    )
    with mock.patch.object(plugin, "_low_level_execute_command", host):
        return t.cast("dict[str, t.Any]", plugin.run(None, {}))


def test_what_was_lost_on_the_way_is_a_warning(shown: list[str]) -> None:
    moved = {"outcome": "target", "container": "web", "target": "host2", "lost": "It was started anew."}
    host = Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": moved}])
    assert run(host)["warnings"] == ["It was started anew."]


def test_what_was_left_at_the_source_is_a_warning(shown: list[str]) -> None:
    moved = {"outcome": "target", "container": "web", "target": "host2", "left_behind": "It stays. Recover."}
    host = Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": moved}])
    assert run(host)["warnings"] == ["It stays. Recover."]


@pytest.mark.parametrize("outcome", ["target", "source"])
def test_a_host_does_not_tell_the_controller_what_to_do(shown: list[str], outcome: str) -> None:
    """Neither beside the result nor in it, which becomes the task's: by add_host any host would be another one."""
    told = {"add_host": {"host_name": "host2"}, "add_group": "x", "_ansible_delegated_vars": {}}
    moved = {"outcome": outcome, "container": "web", "target": "host2", **told}
    result = run(Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": moved, **told}]))
    assert result["outcome"] == outcome
    assert not set(told) & set(result)


def test_what_the_plan_warns_of_is_a_warning(shown: list[str]) -> None:
    plan: dict[str, t.Any] = {**PLAN, "warnings": ["The CPU of host2 lacks avx."]}
    assert run(Host(plan=[{"plan": plan}]), check_mode=True)["warnings"] == plan["warnings"]
    assert run(Host(plan=[{"plan": {**plan, "blockers": ["No."]}}]), check_mode=True)["warnings"] == plan["warnings"]
    moved = {"outcome": "target", "container": "web", "target": "host2", "lost": "Lost.", "plan": plan}
    host = Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": moved}])
    assert run(host)["warnings"] == [*plan["warnings"], "Lost."]
    failed = {"outcome": "source", "container": "web", "failed_phase": "restore", "error": "Sorry.", "plan": plan}
    host = Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": failed}])
    assert run(host)["warnings"] == plan["warnings"]


def test_a_move_that_succeeds(shown: list[str]) -> None:
    moved = {"outcome": "target", "container": "web", "target": "host2", "frozen_ms": 5.0}
    host = Host(
        start=[{"move_id": "m1"}],
        status=[
            {"phase": "layer", "elapsed_ms": 100, "bytes": {"layer": 2 << 20}},
            {"phase": "dump", "elapsed_ms": 200, "bytes": {"layer": 2 << 20}},
            {"phase": "done", "result": moved},
        ],
    )  # fmt: skip
    result = run(host, mode="stop_copy", timeout_s="60")
    assert (result["changed"], result.get("failed", False)) == (True, False)
    # One that was off does not run there either.
    assert result["msg"] == "web is on host2 now."
    assert result["frozen_ms"] == 5.0
    request = json.loads(host.asked[1][2])
    assert request == {
        "container": "web", "target": "host2", "mode": "stop_copy", "allow_post_copy": False, "max_downtime_ms": 0,
        "cpu_check": "flags", "timeout_s": "60",
    }  # fmt: skip
    assert shown[0].startswith("  web: layer, 2.0 MiB sent, ")
    assert shown[1] == "  web: dump"


def test_programs_that_read_the_output_are_not_disturbed(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants.config, "get_config_value", lambda name: "awx_display")
    moved = {"outcome": "target", "container": "web", "target": "host2"}
    run(Host(start=[{"move_id": "m1"}], status=[{"phase": "layer"}, {"phase": "done", "result": moved}]))
    assert shown == []


def test_check_mode_plans_and_starts_nothing() -> None:
    host = Host(plan=[{"plan": PLAN}])
    result = run(host, check_mode=True)
    assert result["changed"]
    assert result["msg"] == "stop_copy: asked; it will stand still for about 300 ms"
    assert [words[:2] for words in host.asked] == [["version"], ["move", "plan"]]


def test_check_mode_does_not_say_that_one_that_is_off_stands_still() -> None:
    plan = {**PLAN, "mode": "cold", "reasons": ["web does not run"], "expected_frozen_ms": 0}
    assert run(Host(plan=[{"plan": plan}]), check_mode=True)["msg"] == "cold: web does not run"


def test_check_mode_says_every_blocker() -> None:
    result = run(Host(plan=[{"plan": {**PLAN, "blockers": ["No space.", "Name taken."]}}]), check_mode=True)
    assert result["failed"]
    assert not result["changed"]
    assert result["msg"] == "No space.\nName taken."


def test_a_move_that_was_rolled_back() -> None:
    failed = {
        "outcome": "source", "container": "web", "failed_phase": "restore", "error": "It failed.",
        "hint": "See the log.",
        "rolled_back": ["web goes on here"],
    }  # fmt: skip
    result = run(Host(start=[{"move_id": "m1"}], status=[{"phase": "done", "result": failed}]))
    assert (result["failed"], result["changed"]) == (True, False)
    assert result["msg"] == "restore: It failed. See the log. Rolled back: web goes on here."


def test_a_mover_that_died() -> None:
    result = run(Host(start=[{"move_id": "m1"}], status=[{"phase": "dump", "died": True}]))
    assert (result["failed"], result["changed"], result["outcome"]) == (True, True, "waiting")
    assert "cnvm.platform.recover" in result["msg"]


def test_a_move_that_had_ended_already() -> None:
    result = run(Host(start=[{"already": True, "message": "web runs on host2; the move is finished."}]))
    assert (result["changed"], result["outcome"]) == (True, "target")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"rc": 127, "stdout": "", "stderr": "sh: not found"}, "Run the role cnvm.platform.host_bootstrap on it"),
        (
            {"rc": 1, "stdout": "", "stderr": "noise\ncontainer: this host has no container 'web'."},
            "no container 'web'",
        ),
        ({"rc": 5, "stdout": "", "stderr": ""}, "ended with code 5"),
        ({"rc": 0, "stdout": "nothing", "stderr": ""}, "nothing"),
    ],
)
def test_answers_that_are_none(answer: Answers, said: str) -> None:
    with pytest.raises(AnsibleActionFail, match=said):
        run(Host(start=[answer]) if answer["rc"] != 127 else Host(version=[answer]))


def test_a_helper_of_another_version() -> None:
    with pytest.raises(AnsibleActionFail, match=r"another version of the collection \(0\.0\.9\)"):
        run(Host(version=[{"digest": "x", "version": "0.0.9"}]))


@pytest.mark.parametrize("args", [{"mode": "fast"}, {"tarnished": 1}, {"allow_post_copy": "maybe"}])
def test_bad_options_are_refused_before_anything_is_asked(args: dict[str, t.Any]) -> None:
    host = Host()
    with pytest.raises(AnsibleError):
        run(host, **args)
    assert host.asked == []
