# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The only place that knows AnsibleModule: running commands through it, and the one way out of a module."""

from __future__ import annotations

import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._core.errors import CnvmError
from ._core.runner import CommandResult, checked
from ._host.system import Host

HIDDEN = "NOT_SHOWN_BECAUSE_OF_NO_LOG"


def module_host(module: AnsibleModule) -> Host:
    """The managed host, with commands run by ``AnsibleModule.run_command``."""

    def run(
        argv: t.Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float | None = None,
    ) -> CommandResult:
        # In a session of its own: ``timeout`` would put the command into the background of a terminal, where it stops.
        limit = [] if timeout_s is None else ["setsid", "--wait", "timeout", "-k", "5", str(timeout_s)]
        rc, out, err = module.run_command(
            [*limit, *argv],
            data=stdin,
            binary_data=True,
            errors="surrogateescape",
            expand_user_and_vars=False,
            handle_exceptions=False,
        )
        if limit and rc == 137:
            rc = 124  # it did not heed the first signal
        result = CommandResult(argv=tuple(argv), rc=rc, stdout=out, stderr=err)
        return checked(result) if check else result

    def run_or_missing(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        try:
            return run(argv, **kwargs)
        except (OSError, ValueError) as error:
            missing = CommandResult(argv=tuple(argv), rc=127, stderr=f"{argv[0]}: {error}")
            return checked(missing) if kwargs.get("check", True) else missing

    return Host(run=run_or_missing)


def run_module(
    work: t.Callable[[AnsibleModule, Host], dict[str, t.Any]],
    argument_spec: dict[str, t.Any],
    **kwargs: t.Any,
) -> None:
    """Make the module, do ``work`` and leave: its result with exit_json, a CnvmError with fail_json.

    ``work`` returns the module's result (``changed``, ``diff``, …); it honours ``module.check_mode`` itself.
    A failure returns ``msg``, ``hint`` and the error's details under ``details``.
    """
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **kwargs)
    module.run_command_environ_update = {"LC_ALL": "C", "LANGUAGE": ""}
    extra: dict[str, t.Any] = {}
    plain: set[str] = set()
    if secret_data(argument_spec):
        extra["invocation"] = {"module_args": without_secrets(argument_spec, module.params, plain)}
        module.no_log_values.clear()
        module.no_log_values.update(plain)
    try:
        result = work(module, module_host(module))
    except CnvmError as error:
        module.fail_json(
            **extra,
            msg=str(error),
            hint=error.hint,
            details=error.details,
            error=type(error).__name__,
            exception="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )
    module.exit_json(**extra, **result)


def secret_data(spec: t.Mapping[str, t.Any]) -> bool:
    """Whether an option with ``no_log`` takes mappings or lists, itself or below it.

    Ansible blots out each word and number in such an option wherever it stands in a result: user data with the word
    ``root`` would make ``/********/seed.iso`` of a path. Those are left out of what is returned by place instead.
    """
    return any(
        secret_data(option["options"]) if option.get("options") else _is_data(option) for option in spec.values()
    )


def _is_data(option: t.Mapping[str, t.Any]) -> bool:
    return bool(option.get("no_log")) and option.get("type", "str") in ("raw", "dict", "list")


def without_secrets(spec: t.Mapping[str, t.Any], values: t.Mapping[str, t.Any], plain: set[str]) -> dict[str, t.Any]:
    """``values`` of options as they may be shown. Secrets that are one text each are added to ``plain``: those Ansible
    blots out."""
    shown: dict[str, t.Any] = {}
    for name, value in values.items():
        option = spec.get(name) or {}
        below = option.get("options")
        if value is None:
            shown[name] = None
        elif below and isinstance(value, list):
            shown[name] = [without_secrets(below, one, plain) if isinstance(one, dict) else HIDDEN for one in value]
        elif below:
            shown[name] = without_secrets(below, value, plain) if isinstance(value, dict) else HIDDEN
        elif _is_data(option):
            shown[name] = HIDDEN
        else:
            if option.get("no_log") and value != "":
                plain.add(str(value))
            shown[name] = value
    return shown


def diff_of(before: t.Any, after: t.Any, header: str = "") -> dict[str, t.Any]:
    """Ansible's diff of two JSON-able values."""
    labels = {"before_header": header, "after_header": header} if header else {}
    return {"before": before, "after": after, **labels}
