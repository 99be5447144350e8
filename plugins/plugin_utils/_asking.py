# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""Actions that ask the helper on the task's host, over the task's own connection."""

from __future__ import annotations

import json
import shlex
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.vars.clean import remove_internal_keys

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths

# What a shell says of a program that is not there, and of one that it may not run.
NO_HELPER = (127, 126)


def without_orders(answer: dict[str, t.Any]) -> dict[str, t.Any]:
    """What a host says, as (a part of) a task's result: it has no say in what Ansible does on the controller (add_host,
    _ansible_…)."""
    remove_internal_keys(answer)
    return answer


class Asking(ActionBase):
    """What the actions that ask ``cnvm-host`` have in common."""

    _requires_connection = True

    def _helper(self, *words: str, request: str | None = None) -> dict[str, t.Any]:
        """``rc``, ``stdout`` and ``stderr`` of ``cnvm-host``, which is given ``request`` to read."""
        data = None if request is None else request.encode()
        command = f"{self._compute_environment_string()} {shlex.join((paths.HELPER, *words))}".strip()
        return t.cast("dict[str, t.Any]", self._low_level_execute_command(command, sudoable=True, in_data=data))

    def _answer(self, said: dict[str, t.Any]) -> dict[str, t.Any]:
        """What it answered: the last line that can be one, below banners. AnsibleActionFail when there is none."""
        lines = [line for line in said.get("stdout", "").splitlines() if line.startswith("{")]
        if said.get("rc") or not lines:
            words = (said.get("stderr") or said.get("stdout") or "").strip().splitlines()
            if said.get("rc") in NO_HELPER:
                words = ["This host has no cnvm-host. Run the role cnvm.platform.host_bootstrap on it."]
            raise AnsibleActionFail(words[-1] if words else f"cnvm-host ended with code {said.get('rc')}.")
        return without_orders(json.loads(lines[-1]))
