# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""A host as our code sees it: every effect that is not a plain file operation goes through a ``Host``."""

from __future__ import annotations

import errno
import os
import typing as t

from .._core.errors import CnvmError, HostError
from .._core.runner import Runner


def _no_popen(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
    raise RuntimeError("This Host cannot start long-running programs; only the helper's launcher can.")


class Host(t.NamedTuple):
    """``run``: one command to its end. ``popen``: a long-running child with pipes (signature of subprocess.Popen).

    A module gives ``run`` only; the helper's launcher gives all of it.
    """

    run: Runner
    popen: t.Callable[..., t.Any] = _no_popen
    stdin: t.Optional[t.BinaryIO] = None
    stdout: t.Optional[t.BinaryIO] = None
    stderr: t.Optional[t.BinaryIO] = None

    @property
    def is_helper(self) -> bool:
        """Whether this is the helper's: its ``run`` bears threads, too."""
        return self.popen is not _no_popen


# (host, the module's options, check mode) → the module's result: ``changed``, ``diff``, ``warnings`` …
Work = t.Callable[[Host, t.Mapping[str, t.Any], bool], dict[str, t.Any]]


_FULL = "Make room on its file system."
_ROOT = "This needs root (become: true)."
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "Its file system can only be read. Mount it for writing, or choose another directory.",
    errno.ENOTDIR: "A file stands where a directory has to be.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def host_error(error: OSError) -> HostError:
    """What the kernel refused, as it is told. What names no file and has no hint here is a defect, and is raised."""
    denied = error.errno in (errno.EACCES, errno.EPERM)
    hint = _HINTS.get(error.errno or 0, _ROOT if denied and os.geteuid() != 0 else "")
    if not isinstance(error.filename, (str, bytes)) and not hint:
        raise error
    # With a second name it was a rename or a link.
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    what = f"{' to '.join(names)} cannot be used: " if names else ""
    said = HostError(f"{what}{error.strerror}.", hint=hint)
    said.__cause__ = error
    return said


def failure(error: t.Union[CnvmError, OSError]) -> dict[str, t.Any]:
    """What a module that fails returns."""
    import traceback  # only for this, and the helper's start is in a hot path

    if isinstance(error, OSError):
        error = host_error(error)
    return {
        "failed": True,
        "msg": str(error),
        "hint": error.hint,
        "details": error.details,
        "error": type(error).__name__,
        "exception": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }
