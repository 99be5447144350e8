# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What of a module's options may be shown. A specification is Ansible's: ``no_log`` marks the secrets."""

from __future__ import annotations

import typing as t

HIDDEN = "NOT_SHOWN_BECAUSE_OF_NO_LOG"


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
    """``values`` of options as they may be shown; what is at no known place, or of no known shape, is not. Secrets that
    are one text each are added to ``plain``: those Ansible blots out."""
    shown: dict[str, t.Any] = {}
    for name, value in values.items():
        option = spec.get(name, {"no_log": True})
        below = option.get("options")
        if value is None:
            shown[name] = None
        elif below and isinstance(value, list):
            shown[name] = [without_secrets(below, one, plain) if isinstance(one, dict) else HIDDEN for one in value]
        elif below:
            shown[name] = without_secrets(below, value, plain) if isinstance(value, dict) else HIDDEN
        elif option.get("no_log"):
            if isinstance(value, str) and value and name in spec and not _is_data(option):
                plain.add(value)
            shown[name] = HIDDEN
        else:
            shown[name] = value
    return shown
