# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action plugin with a task and nothing behind its connection."""

from __future__ import annotations

import typing as t
from unittest import mock

from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.template import Templar


def action(
    plugin: type[ActionBase], name: str, args: t.Mapping[str, t.Any], *, check_mode: bool = False, **keywords: t.Any
) -> t.Any:
    """``plugin`` for a task of the module ``name``, with the other ``keywords`` of a task; it becomes nobody else."""
    task = Task.load({"action": f"cnvm.platform.{name}", "args": dict(args), **keywords})
    task.check_mode = check_mode
    connection = mock.MagicMock(become=None, has_native_async=False)
    connection._shell.env_prefix = lambda **variables: " ".join(f"{key}={value}" for key, value in variables.items())
    loader = DataLoader()
    return plugin(
        task=task, connection=connection, play_context=mock.MagicMock(), loader=loader, templar=Templar(loader),
        shared_loader_obj=None,
    )  # fmt: skip
