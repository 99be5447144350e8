# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action plugin with a task, and nothing behind its connection but the answers of the host's helper."""

from __future__ import annotations

import json
import shlex
import typing as t
from unittest import mock

from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from ansible_collections.cnvm.platform.plugins.plugin_utils._helper import helper_digest


def action(
    plugin: type[ActionBase], name: str, args: t.Mapping[str, t.Any], *, check_mode: bool = False, **keywords: t.Any
) -> t.Any:
    """``plugin`` for a task of the module ``name``, with the other ``keywords`` of a task; it becomes nobody else."""
    task = Task.load({"action": f"cnvm.platform.{name}", "args": dict(args), **keywords})
    task.check_mode = check_mode
    connection = mock.MagicMock(become=None, has_native_async=False)
    connection._shell.env_prefix = lambda **variables: " ".join(f"{key}={value}" for key, value in variables.items())
    loader = DataLoader()
    made: t.Any = plugin(
        task=task, connection=connection, play_context=mock.MagicMock(), loader=loader, templar=Templar(loader),
        shared_loader_obj=None,
    )  # fmt: skip
    # As Ansible's loader does. Before 2.19 there is none otherwise.
    made._load_name = f"cnvm.platform.{name}"
    return made


class Host:
    """``cnvm-host`` as the plugin sees it; ``answers`` by the word after it, the last one stays."""

    def __init__(self, **answers: t.Any) -> None:
        self.answers = {"version": [{"digest": helper_digest(), "version": "0.1.0"}], **answers}
        self.asked: list[list[str]] = []

    def __call__(self, command: str, sudoable: bool = True, **kwargs: t.Any) -> dict[str, t.Any]:
        words = shlex.split(command)[1:]
        self.asked.append(words)
        waiting = self.answers[words[0] if words[0] == "version" else words[1]]
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, dict) and "rc" in answer:
            return answer
        return {"rc": 0, "stdout": "a login banner\n" + json.dumps(answer) + "\n", "stderr": ""}
