# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""How a command is run, as seen from the rooms that may not run one themselves."""

from __future__ import annotations

import typing as t

from .errors import CommandError


class CommandResult(t.NamedTuple):
    """What a command left behind. ``stdout`` and ``stderr`` are text (undecodable bytes are escaped)."""

    argv: tuple[str, ...]
    rc: int
    stdout: str = ""
    stderr: str = ""


class Runner(t.Protocol):
    """Runs one command to its end, with ``LC_ALL=C`` and no shell.

    ``check``: raise CommandError when the code is not 0. ``timeout_s``: kill it after so many seconds (code 124).
    """

    def __call__(
        self,
        argv: t.Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float | None = None,
    ) -> CommandResult: ...


def first_line(text: str) -> str:
    """The first line of ``text`` that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def reason(result: CommandResult) -> str:
    """Why a command failed, in its own words."""
    return first_line(result.stderr) or first_line(result.stdout) or "no output"


def checked(result: CommandResult) -> CommandResult:
    """``result`` itself, or CommandError when its code is not 0."""
    if result.rc:
        raise CommandError(
            f"'{' '.join(result.argv)}' ended with code {result.rc}: {reason(result)}",
            argv=list(result.argv),
            rc=result.rc,
            stdout=result.stdout,
            stderr=result.stderr,
        )
    return result
