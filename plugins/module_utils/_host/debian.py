# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Making root file systems of Debian's packages, for images of containers and for templates of guests."""

from __future__ import annotations

import os
import shutil
import time
import typing as t

from .._core import mmdebstrap
from .._core.errors import CommandError, HostError
from .._core.mmdebstrap import Recipe
from .._core.runner import CommandResult, reason
from . import files
from .system import Host

_PAUSES_S = (5, 20)


def check() -> None:
    """HostError where root file systems cannot be made of packages."""
    if shutil.which(mmdebstrap.PROGRAM) is None:
        raise HostError("The program mmdebstrap is missing on this host.", hint="Install the package mmdebstrap.")


def patiently(host: Host, argv: t.Sequence[str], root: str) -> CommandResult:
    """Run mmdebstrap, which makes ``root``; anew where a mirror was to blame that may be better a moment later."""
    for pause in (*_PAUSES_S, 0):
        result = host.run(argv, check=False)
        if not result.rc or not pause or not mmdebstrap.may_pass(result.stderr):
            break
        files.remove_tree(root)
        time.sleep(pause)
    return result


def unpack(host: Host, recipe: Recipe, root: str, option: str, more: t.Sequence[str] = ()) -> None:
    """Make ``root``, which is not there yet, without the recipe's own commands. ``option``: where the recipe stands."""
    check()
    # It makes all mounts that it sees private, for good: namespaces and mounts of containers would be left over.
    own = ["unshare", "--mount", "--propagation", "private", "--"]
    result = patiently(host, [*own, *mmdebstrap.argv(recipe, root, more)], root)
    if result.rc:
        raise mmdebstrap.failure(result.stderr, recipe, option)
    # Whoever starts it makes /dev; nodes in it would only be refused elsewhere.
    for entry in os.listdir(f"{root}/dev"):
        path = f"{root}/dev/{entry}"
        if os.path.isdir(path) and not os.path.islink(path):
            files.remove_tree(path)
        else:
            os.unlink(path)


def run_inside(host: Host, root: str, commands: t.Iterable[str], option: str) -> None:
    """Shell commands in a root file system, in order. ``option``: where they stand."""
    for command in commands:
        result = host.run(["chroot", root, "/bin/sh", "-ec", command], check=False)
        if result.rc:
            raise CommandError(
                f"{option}: {command!r} ended with code {result.rc}: {reason(result)}",
                argv=list(result.argv),
                rc=result.rc,
                stdout=result.stdout[-6000:],
                stderr=result.stderr[-6000:],
            )
