# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""Runs a move: starts it on the source, shows how far it is, and returns what happened.

The hosts do the work among themselves. The plugins only ask, so nothing is decided by their end: a task that is killed
leaves a move that ends by itself.
"""

from __future__ import annotations

import json
import typing as t

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display

from ansible_collections.cnvm.platform.plugins.module_utils._core.values import human_bytes
from ansible_collections.cnvm.platform.plugins.plugin_utils._asking import Asking, without_orders
from ansible_collections.cnvm.platform.plugins.plugin_utils._helper import helper_digest

display = Display()
# Callbacks whose output is read by programs: progress would only disturb them.
_SILENT = ("awx", "json", "null")
_POLL_S = 1


class Mover(Asking):
    """One task, one move. ``SPEC``: the options; ``KIND``: what is moved, and the option that names it."""

    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]]
    KIND: t.ClassVar[str]

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        del tmp
        dummy, options = self.validate_argument_spec(argument_spec=self.SPEC)
        request = json.dumps({key: value for key, value in options.items() if value is not None})
        self._check_helper()
        if self._task.check_mode:
            result.update(self._planned(self._ask("move", "plan", request)))
            return result
        started = self._ask("move", "start", request)
        if started.get("already"):
            result.update(changed=True, msg=started["message"], outcome="target")
            return result
        result.update(self._done(self._follow(str(started["move_id"]), options)))
        return result

    def _ask(self, *words: str) -> dict[str, t.Any]:
        """What ``cnvm-host`` answers on the host."""
        return self._answer(self._helper(*words))

    def _check_helper(self) -> None:
        there = self._ask("version")
        if there.get("digest") != helper_digest():
            raise AnsibleActionFail(
                f"The helper on this host is from another version of the collection ({there.get('version')}). "
                "Run the role cnvm.platform.host_bootstrap again."
            )

    def _planned(self, answer: dict[str, t.Any]) -> dict[str, t.Any]:
        made = answer["plan"]
        result = {"plan": made, "warnings": made["warnings"]}
        if made["blockers"]:
            return {"failed": True, "changed": False, "msg": "\n".join(made["blockers"]), **result}
        text = f"{made['mode']}: {'; '.join(made['reasons'])}"
        # One that is off does not.
        if made["expected_frozen_ms"]:
            text += f"; it will stand still for about {made['expected_frozen_ms']} ms"
        return {"changed": True, "msg": text, **result}

    def _follow(self, move_id: str, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Until the move has ended; shows each phase."""
        shows = not any(word in str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")) for word in _SILENT)
        shown = ""
        bytes_before, elapsed_before = 0, 0.0
        while True:
            status = self._ask("move", "status", move_id, str(_POLL_S))
            if status.get("phase") == "done":
                return without_orders(status["result"])
            if status.get("died"):
                return {
                    "outcome": "waiting", "failed_phase": status.get("phase"), "move_id": move_id,
                    "error": "The mover on the source ended unexpectedly; the host is cleaning up after it.",
                    "hint": "Run the same task again, or the playbook cnvm.platform.recover.",
                }  # fmt: skip
            count, elapsed = sum(status.get("bytes", {}).values()), float(status.get("elapsed_ms", 0))
            rate = (count - bytes_before) / max(elapsed - elapsed_before, 1.0) * 1000
            line = f"{options[self.KIND]}: {status.get('phase')}"
            if count > bytes_before:
                line += f", {human_bytes(count)} sent, {human_bytes(rate)}/s"
            bytes_before, elapsed_before = count, elapsed
            if shows and line != shown:
                display.display(f"  {line}")
            shown = line

    def _done(self, move: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result from the mover's."""
        warnings = list((move.get("plan") or {}).get("warnings") or ())
        if move.get("outcome") == "target":
            warnings += [move[key] for key in ("lost", "left_behind") if move.get(key)]
            text = f"{move[self.KIND]} is on {move['target']} now."
            return {"changed": True, "msg": text, "warnings": warnings, **move}
        text = f"{move.get('failed_phase')}: {move.get('error')}"
        for more in (move.get("hint"), *[f"Rolled back: {line}." for line in move.get("rolled_back", ())]):
            text += f" {more}" if more else ""
        changed = move.get("outcome") == "waiting"
        return {"failed": True, "changed": changed, "msg": text, "warnings": warnings, **move}
