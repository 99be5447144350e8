# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""Lets the helper on a host do the work of a module: the same code, which is there already.

Packing a module, sending and loading it takes longer than most of its work. The helper gets its request through a
pipe, so this needs Ansible's pipelining. Without it, where the host has no helper or one of another version of the
collection, and where the task is asynchronous, the module is sent as any other is.
"""

from __future__ import annotations

import json
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.parameters import remove_values

from ansible_collections.cnvm.platform.plugins.module_utils._core.secrets import without_secrets
from ansible_collections.cnvm.platform.plugins.plugin_utils._asking import NO_HELPER, Asking
from ansible_collections.cnvm.platform.plugins.plugin_utils._helper import helper_digest


class Worker(Asking):
    """``SPEC``: the module's options, none of type path (it would be expanded here); ``MODULE``: its short name."""

    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]]
    MODULE: t.ClassVar[str]
    _supports_async = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        del tmp
        later = bool(self._task.async_val) and not self._connection.has_native_async
        answer = None if later else self._from_helper()
        if answer is None:
            answer = self._execute_module(task_vars=task_vars, wrap_async=later)
            if not later:
                self._remove_tmp_path(self._connection._shell.tmpdir)
        result.update(answer)
        return result

    def _from_helper(self) -> dict[str, t.Any] | None:
        """The module's result; None when the helper cannot give it and has done nothing."""
        if not self._is_pipelining_enabled("new"):
            return None
        try:
            dummy, options = self.validate_argument_spec(argument_spec=self.SPEC)
            request = json.dumps({"digest": helper_digest(), "params": options, "check_mode": self._task.check_mode})
        except (AnsibleActionFail, TypeError, ValueError):
            return None  # the module says what is wrong with them, or takes what is no JSON
        said = self._helper("work", self.MODULE, request=request)
        if said.get("rc") in NO_HELPER or "is no command" in said.get("stderr", ""):
            return None
        try:
            answer = self._answer(said)
        except AnsibleActionFail as error:
            # Returned, not raised, so that no_log covers it. All of it: a defect's traceback is more than a line.
            return {"failed": True, "msg": error.message, "module_stderr": said.get("stderr", "")}
        if "other_version" in answer:
            return None
        secrets: set[str] = set()
        answer["invocation"] = {"module_args": without_secrets(self.SPEC, options, secrets)}
        return t.cast("dict[str, t.Any]", remove_values(answer, secrets))
