# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The only place that knows AnsibleModule: running commands through it, and the one way out of a module."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._core.errors import CnvmError
from ._core.runner import CommandResult, checked
from ._core.secrets import secret_data, without_secrets
from ._host.system import Host, Work, failure


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


def run_module(work: Work, argument_spec: dict[str, t.Any], **kwargs: t.Any) -> None:
    """Make the module, do ``work`` and leave: its result with exit_json, a CnvmError or the kernel's refusal with
    fail_json. Anything else is a defect, and is not caught.

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
        result = work(module_host(module), module.params, module.check_mode)
    except (CnvmError, OSError) as error:
        module.fail_json(**extra, **failure(error))
    # As a part of the result they would be deprecated.
    for text in result.pop("warnings", ()):
        module.warn(text)
    module.exit_json(**extra, **result)


def diff_of(before: t.Any, after: t.Any, header: str = "") -> dict[str, t.Any]:
    """Ansible's diff of two JSON-able values."""
    labels = {"before_header": header, "after_header": header} if header else {}
    return {"before": before, "after": after, **labels}
