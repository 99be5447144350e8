# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Taking the identity of a machine out of a raw disk image, without mounting it."""

from __future__ import annotations

import shutil

from .._core.errors import HostError, Refused
from .._image import commands, identity, partitions
from . import disks, files
from .system import Host

_LIMIT_S = 600


def reset(host: Host, path: str, place: str) -> list[str]:
    """Reset the identity in the raw image ``path``; the files that were removed or emptied.

    ``place``: a directory of ours for scripts. Refused where the image has no file system that can be worked on.
    """
    for program in (identity.PROGRAM, "e2fsck"):
        if shutil.which(program) is None:
            raise HostError(f"The program {program} is missing on this host.", hint="Install the package e2fsprogs.")
    with disks.File(path) as image:
        starts = partitions.ext_places(image)
    for start in starts:
        target = f"{path}?offset={start}"
        listings = _listings(host, target, place, identity.first_directories())
        if identity.is_root(listings):
            if identity.has_table(listings):
                identity.check_mounts(_script(host, target, place, f"cat {identity.TABLE}\n"))
            return _reset(host, target, place, listings)
    raise Refused(
        "The image has no ext4 file system that a machine boots from: its identity cannot be reset.",
        hint="Reset it in the guest (or with virt-sysprep), and set reset_identity: false.",
    )


def _script(host: Host, target: str, place: str, text: str, *, write: bool = False) -> str:
    """Run a script; what it said."""
    name = f"{place}/script"
    files.write_text(name, text, mode=0o600, durable=False)
    argv = [identity.PROGRAM, *(["-w"] if write else []), "-f", name, target]
    return host.run(commands.limited(argv, cpu_s=_LIMIT_S)).stdout


def _listings(host: Host, target: str, place: str, directories: list[str]) -> dict[str, list[identity.Entry]]:
    found = identity.read(_script(host, target, place, identity.look(directories)))
    while True:
        more = identity.deeper(found)
        if not more:
            return found
        listed = identity.read(_script(host, target, place, identity.look(more)))
        # One that cannot be listed is not looked at again and again.
        found.update({path: listed.get(path, []) for path in more})


def _reset(host: Host, target: str, place: str, listings: dict[str, list[identity.Entry]]) -> list[str]:
    # Brings in what its journal holds; written past that, the changes would be lost when a guest mounts it.
    _check(host, target, "-p")
    files.write_text(f"{place}/empty", "", mode=0o444, durable=False)
    files.write_text(f"{place}/drop-in", identity.SSH_DROP_IN_TEXT, mode=0o644, durable=False)
    listings = _listings(host, target, place, sorted(listings))
    script, done = identity.reset(listings, f"{place}/empty", f"{place}/drop-in")
    if not script:
        return []
    _script(host, target, place, "\n".join(script) + "\n", write=True)
    left, _done = identity.reset(_listings(host, target, place, sorted(listings)), "", "")
    if left:
        # debugfs ends with 0 whatever happens.
        raise HostError(f"The identity in the image could not be reset: '{left[0].strip()}' did nothing.")
    _check(host, target, "-fn")
    return done


def _check(host: Host, target: str, flag: str) -> None:
    result = host.run(commands.limited(["e2fsck", flag, target], cpu_s=_LIMIT_S), check=False)
    if result.rc not in (0, 1):
        raise Refused(
            "The image's file system is damaged.",
            hint="Repair it in the guest, or set reset_identity: false.",
            stdout=result.stdout[-2000:],
            stderr=result.stderr[-2000:],
        )
