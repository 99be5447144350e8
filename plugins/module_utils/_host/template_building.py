# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Building a bootable disk of packages, as a raw image, with nothing but plain files."""

from __future__ import annotations

import os
import shutil
import stat
import typing as t
import uuid

from .._core.errors import HostError, Refused
from .._core.mmdebstrap import Recipe
from .._image import bootable
from . import archive, containers, debian, files
from .system import Host

_OPTION = "build"
_MACHINE = "x86_64"


def check() -> None:
    """HostError or Refused where this host cannot build."""
    if os.uname().machine != _MACHINE:
        raise Refused(
            f"build: this host is {os.uname().machine}, and what is built boots on {_MACHINE}.",
            hint="Build it on a host of that kind, or take an image that its vendor publishes.",
        )
    debian.check()
    if shutil.which(bootable.PROGRAM) is None:
        raise HostError("The program mke2fs is missing on this host.", hint="Install the package e2fsprogs.")


def build(host: Host, recipe: Recipe, size: t.Optional[int], place: str) -> str:
    """Build a disk in the directory ``place``; the path of its raw image. Its identity is not reset yet."""
    check()
    root, path, mark = f"{place}/root", f"{place}/built", uuid.uuid4()
    debian.unpack(host, bootable.whole(recipe), root, _OPTION)
    _write_files(root, bootable.written(str(mark)))
    debian.run_inside(host, root, recipe.customize, f"{_OPTION}.customize")
    for booted in bootable.BOOTED:
        if not os.path.exists(f"{root}{booted}"):
            raise HostError(
                f"{_OPTION}.packages: the kernel among them has brought no {booted}.",
                hint=f"Name none, to have {bootable.KERNEL}.",
            )
    debian.run_inside(host, root, bootable.FINISH, _OPTION)
    virtual_bytes = bootable.disk_bytes(_content(root), size)
    boot, core = _read(root, f"{bootable.GRUB}/boot.img"), _read(root, f"{bootable.GRUB}/core.img")
    with open(path, "xb") as file:
        file.write(bootable.start_of_disk(boot, core, virtual_bytes, mark.fields[0]))
        file.truncate(virtual_bytes)
    result = host.run(bootable.file_system(root, path, virtual_bytes, str(mark)), check=False)
    if result.rc:
        raise bootable.failure(result)
    files.remove_tree(root)
    return path


def _write_files(root: str, wanted: t.Mapping[str, str]) -> None:
    above = {f"{path.rpartition('/')[0]}/" for path in wanted}
    directories = [(path, "", 0o755, 0, 0) for path in sorted(above)]
    texts = [(path, text, 0o644, 0, 0) for path, text in wanted.items()]
    containers.write_inside(root, [*directories, *texts], "Writing the template's files")


def _read(root: str, path: str) -> bytes:
    try:
        with open(f"{root}{path}", "rb") as file:
            return file.read(bootable.START)
    except OSError as error:
        raise HostError(f"build: {path} of the image cannot be read: {error.strerror}.") from error


def _content(root: str) -> int:
    """Bytes that the files need, in whole blocks."""
    total = 0
    for _path, status in archive.walk(root):
        large = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        total += -(-status.st_size // bootable.BLOCK) * bootable.BLOCK if large else 0
    return total
