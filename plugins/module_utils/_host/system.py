# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""A host as our code sees it: every effect that is not a plain file operation goes through a ``Host``."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.runner import Runner


def _no_popen(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
    raise RuntimeError("This Host cannot start long-running programs; only the helper's launcher can.")


@dataclasses.dataclass(frozen=True)
class Host:
    """``run``: one command to its end. ``popen``: a long-running child with pipes (signature of subprocess.Popen).

    A module gives ``run`` only; the helper's launcher gives all of it.
    """

    run: Runner
    popen: t.Callable[..., t.Any] = _no_popen
    stdin: t.Optional[t.BinaryIO] = None
    stdout: t.Optional[t.BinaryIO] = None
    stderr: t.Optional[t.BinaryIO] = None
