# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the helper is asked, what it is told, and when the module is sent instead."""

from __future__ import annotations

import datetime
import json
import shlex
import typing as t
from unittest import mock

import pytest

from ansible_collections.cnvm.platform.plugins.action import guest
from ansible_collections.cnvm.platform.plugins.plugin_utils._helper import helper_digest
from ansible_collections.cnvm.platform.tests.support.actions import action

WEB: dict[str, t.Any] = {"name": "web", "memory_mib": "512"}
DONE = {"changed": True, "guests": [{"name": "web"}]}
SENT = {"changed": False, "sent": True}


class Task:
    """One task, and what became of it."""

    def __init__(self, said: t.Any = None, rc: int = 0, stderr: str = "", **options: t.Any) -> None:
        text = f"Welcome!\n\n{json.dumps(said)}\n" if said is not None else ""
        self.answer = {"rc": rc, "stdout": text, "stderr": stderr}
        self.asked: list[tuple[list[str], dict[str, t.Any]]] = []
        self.sent: list[dict[str, t.Any]] = []
        args = options.pop("args", {"guests": [WEB]})
        self.pipelining = options.pop("pipelining", True)
        self.plugin = action(guest.ActionModule, "guest", args, **options)

    def _ask(self, command: str, sudoable: bool = True, in_data: bytes | None = None) -> dict[str, t.Any]:
        self.asked.append((shlex.split(command), json.loads(in_data or b"null")))
        return self.answer

    def _send(self, **how: t.Any) -> dict[str, t.Any]:
        self.sent.append(how)
        return dict(SENT)

    def run(self) -> dict[str, t.Any]:
        plugin = self.plugin
        with (
            mock.patch.object(plugin, "_low_level_execute_command", self._ask),
            mock.patch.object(plugin, "_execute_module", self._send),
            mock.patch.object(plugin, "_is_pipelining_enabled", return_value=self.pipelining),
            mock.patch.object(plugin, "_remove_tmp_path"),
        ):
            return t.cast("dict[str, t.Any]", plugin.run(None, {}))


@pytest.mark.parametrize("check_mode", [False, True])
def test_the_helper_does_it(check_mode: bool) -> None:
    task = Task(DONE, check_mode=check_mode)
    result = task.run()
    assert (result["changed"], result["guests"]) == (True, [{"name": "web"}])
    assert task.sent == []
    [(words, request)] = task.asked
    assert words == ["/usr/local/sbin/cnvm-host", "work", "guest"]
    assert (request["digest"], request["check_mode"]) == (helper_digest(), check_mode)
    # Checked and with its defaults, as a module gets them.
    assert request["params"]["guests"] == [WEB]
    assert request["params"]["unreachable_peers"] == "refuse"


def test_its_refusal_is_the_tasks() -> None:
    result = Task({"failed": True, "msg": "web runs on host2."}).run()
    assert (result["failed"], result["msg"]) == (True, "web runs on host2.")


def test_its_warnings_are_the_tasks() -> None:
    assert Task({**DONE, "warnings": ["It runs without KVM."]}).run()["warnings"] == ["It runs without KVM."]


@pytest.mark.parametrize(
    "task",
    [
        Task(rc=127, stderr="cnvm-host: not found"),
        Task({"other_version": "0.0.9"}),
        Task(DONE, args={"guests": [WEB], "adobt": True}),
        Task(DONE, args={"guests": [{**WEB, "tags": {"since": datetime.date(2026, 1, 2)}}]}),
        Task(DONE, pipelining=False),
        Task(rc=126, stderr="cnvm-host: Permission denied"),
        Task(rc=1, stderr="cnvm-host: 'work' is no command. There are: version, …"),
    ],
    ids=[
        "no helper",
        "another version",
        "wrong options",
        "no JSON",
        "no pipelining",
        "not to be run",
        "an older helper",
    ],
)
def test_otherwise_the_module_is_sent(task: Task) -> None:
    assert task.run()["sent"]
    assert task.sent == [{"task_vars": {}, "wrap_async": False}]


def test_an_asynchronous_task_is_a_module() -> None:
    keywords: dict[str, t.Any] = {"async": 60}
    task = Task(DONE, **keywords)
    assert task.run()["sent"]
    assert task.asked == []
    assert task.sent == [{"task_vars": {}, "wrap_async": True}]


def test_a_helper_that_breaks_is_no_reason_to_try_again() -> None:
    said = "Traceback (most recent call last):\n  …\nKeyError: 'x'"
    task = Task(rc=1, stderr=said)
    result = task.run()
    assert (result["failed"], result["msg"], result["module_stderr"]) == (True, "KeyError: 'x'", said)
    assert task.sent == []


def test_a_host_does_not_tell_the_controller_what_to_do() -> None:
    result = Task({**DONE, "add_host": {"host_name": "evil"}, "_ansible_delegated_vars": {}}).run()
    assert not {"add_host", "_ansible_delegated_vars"} & set(result)


def test_the_environment_of_the_task_is_the_helpers() -> None:
    task = Task(DONE, environment={"LIBVIRT_DEBUG": "1"})
    task.run()
    assert task.asked[0][0] == ["LIBVIRT_DEBUG=1", "/usr/local/sbin/cnvm-host", "work", "guest"]


def test_secrets_are_not_returned() -> None:
    item = {
        **WEB,
        "graphics": {"type": "vnc", "password": "horse1"},
        "cloud_init": {"user_data": {"users": [{"name": "root", "passwd": "battery"}]}},
    }
    said = {"changed": True, "path": "/root/seed.iso", "msg": "the password is horse1"}
    result = Task(said, args={"guests": [item]}).run()
    assert "horse1" not in str(result)
    assert "battery" not in str(result)
    assert result["path"] == "/root/seed.iso"
    assert result["invocation"]["module_args"]["guests"][0]["memory_mib"] == "512"
