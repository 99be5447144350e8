# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends the helper's library to a host, but only when the host has another one."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.cnvm.platform.plugins.module_utils._core.digest import files_digest
from ansible_collections.cnvm.platform.plugins.plugin_utils._helper import (
    collection_root,
    collection_version,
    helper_files,
)


class ActionModule(ActionBase):
    """Asks with the digest first; the files follow when they differ."""

    _VALID_ARGS = frozenset(("library",))

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        dummy, options = self.validate_argument_spec(argument_spec={"library": {"type": "path"}})
        root = collection_root()
        files = helper_files(root)
        args = {key: value for key, value in options.items() if value is not None}
        args.update(version=collection_version(root), digest=files_digest(files))
        result.update(self._execute_module("cnvm.platform.host_helper", args, task_vars=task_vars))
        if result.get("changed") and not result.get("failed") and not self._task.check_mode:
            sent = self._execute_module("cnvm.platform.host_helper", {**args, "files": files}, task_vars=task_vars)
            result = {**result, **sent}
        result.pop("invocation", None)
        return result
