# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The disk image formats by the names that the options have, and what each can do."""

from __future__ import annotations

import dataclasses
import posixpath


@dataclasses.dataclass(frozen=True)
class Format:
    """``driver``: qemu-img's name. ``subformats``: the first is what qemu-img makes unless told otherwise.

    ``grows``: qemu-img can resize it; the others are made anew with another size. ``repairs``: so does its check.
    """

    name: str
    driver: str
    subformats: tuple[str, ...] = ()
    preallocations: tuple[str, ...] = ("off",)
    backing: bool = False
    grows: bool = False
    checks: bool = False
    repairs: bool = False


FORMATS = {
    one.name: one
    for one in (
        Format("raw", "raw", preallocations=("off", "falloc", "full"), grows=True),
        Format(
            "qcow2",
            "qcow2",
            preallocations=("off", "metadata", "falloc", "full"),
            backing=True,
            grows=True,
            checks=True,
            repairs=True,
        ),
        Format("vmdk", "vmdk", subformats=("monolithicSparse", "streamOptimized"), checks=True),
        Format("vdi", "vdi", subformats=("dynamic", "fixed"), checks=True),
        Format("vhd", "vpc", subformats=("dynamic", "fixed")),
        Format("vhdx", "vhdx", subformats=("dynamic", "fixed"), checks=True),
    )
}
NAMES = tuple(FORMATS)
# qemu-img's word for vhd is taken, too.
ALIASES = {"vpc": "vhd"}

_SUFFIXES = {
    **{f".{name}": name for name in NAMES},
    ".vpc": "vhd",
    ".iso": "raw",
}


def of_name(path: str) -> str:
    """The format that a file's name stands for; empty where it says nothing (``.img`` is both raw and qcow2)."""
    return _SUFFIXES.get(posixpath.splitext(path)[1].lower(), "")


def of_driver(driver: str) -> str:
    """Our name for what qemu-img and image headers call a format; their own word where we do not know it."""
    return ALIASES.get(driver, driver)
