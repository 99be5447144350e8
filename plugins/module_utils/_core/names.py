# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Names of workloads, images and hosts: one rule, narrow enough for file names, units, cgroups and runtimes."""

from __future__ import annotations

import re
import typing as t

from .errors import InputError
from .values import plain_text

NAME_RULE = "1 to 63 letters, digits, '_', '.' or '-', the first one a letter or a digit (ASCII only)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def check_name(value: object, option: str) -> str:
    """``value`` when it is a good name, else InputError naming ``option``."""
    if value is None:
        raise InputError(f"{option} is missing.", hint=f"Give {NAME_RULE}.")
    name = plain_text(value, option)
    if not _NAME.match(name):
        shown = name if len(name) <= 70 else name[:67] + "..."
        raise InputError(f"{option}: {shown!r} is not allowed.", hint=f"Allowed: {NAME_RULE}.")
    return name


def check_own_name(value: object, option: str) -> str:
    """``check_name``, for the name of something that is kept under it, and is written beside it until it is whole."""
    return _unreserved(check_name(value, option), option, (), (".new",))


def check_workload_name(value: object, option: str) -> str:
    """``check_name``, for the name of a container or a guest: none that would stand for something else where names
    become paths, units, runtime ids or libvirt's objects."""
    return _unreserved(check_name(value, option), option, ("lost+found", "tmp"), (".lock", ".new"))


def _unreserved(name: str, option: str, names: tuple[str, ...], endings: tuple[str, ...]) -> str:
    if name in names or name.endswith(endings):
        raise InputError(f"{option}: {name!r} is reserved.", hint="Choose another name.")
    return name


def chosen(names: t.Optional[t.Iterable[str]]) -> t.Optional[list[str]]:
    """Who an option ``names`` means, sorted; None is all. Ansible splits a text at its commas, and leaves the blanks
    behind them."""
    return None if names is None else sorted({name.strip() for name in names} - {""})


def is_digest(value: str) -> bool:
    """Whether ``value`` is a sha256 in 64 lower-case hexadecimal digits."""
    return bool(_DIGEST.match(value))
