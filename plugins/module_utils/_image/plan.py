# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What has to be done to a disk image so that it is as the user wants it. Decided before anything is touched."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import HostError, InputError, Refused
from .._core.values import human_bytes
from .._libvirt.guest_plan import unsave
from .commands import Condition
from .definition import Wanted
from .formats import FORMATS
from .headers import Header


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image as the host has it, and what it is to be made of.

    ``exists``: there is a file. ``header``: None where it is not of the format that is wanted, which ``strange`` says.
    ``backing``: its backing file as an absolute path. ``same_backing``: that is the file that is wanted.
    ``up_to_date``: it was made of the source as it is now, in the way that is wanted now. ``swapped``: so was one that
    lay there; this is another file.
    ``source_bytes``, ``backing_bytes``: virtual sizes of what it is to be made of. ``written_below``: files on which it
    would rest, and the guests that write to them.
    ``attributes``: those of owner, group and mode that are not as wanted.
    ``snapshots_of``: the guest whose snapshots it is a part of. ``template``: the one whose image it is. ``guests``:
    those whose disk it is; ``saved``: one of them that is saved with its memory.
    """

    exists: bool = False
    header: t.Optional[Header] = None
    strange: str = ""
    backing: str = ""
    same_backing: bool = False
    up_to_date: bool = False
    swapped: bool = False
    source_bytes: int = 0
    backing_bytes: int = 0
    written_below: t.Mapping[str, t.Collection[str]] = dataclasses.field(default_factory=dict)
    condition: t.Optional[Condition] = None
    attributes: tuple[str, ...] = ()
    in_use: bool = False
    dependants: tuple[str, ...] = ()
    snapshots_of: str = ""
    template: str = ""
    guests: tuple[str, ...] = ()
    saved: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps for one image. ``make``: ``create`` or ``convert``, anew, with ``virtual_bytes``.

    Of one that is there, in this order: ``repair``, ``flatten``, ``rebase`` (``safe``, ``unsafe`` or ``format``: only
    the format of the backing file is put right), ``grow`` to ``virtual_bytes``, ``attributes``.
    """

    path: str
    remove: bool = False
    make: str = ""
    replaces: bool = False
    virtual_bytes: int = 0
    repair: str = ""
    flatten: bool = False
    rebase: str = ""
    grow: bool = False
    attributes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def touches(self) -> bool:
        """Whether the content of the file, or the file itself, becomes another one."""
        return bool(self.remove or self.make or self.repair or self.flatten or self.rebase or self.grow)

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return self.touches or bool(self.attributes)

    @property
    def actions(self) -> list[str]:
        """The steps as words."""
        words = []
        if self.remove:
            words.append("remove")
        if self.make:
            words.append("replace" if self.replaces else self.make)
        if self.repair:
            words.append("repair")
        if self.flatten:
            words.append("flatten")
        if self.rebase:
            words.append("name the backing format" if self.rebase == "format" else "rebase")
        if self.grow:
            words.append("resize")
        return words + [f"change {name}" for name in self.attributes]


def plan(wanted: Wanted, seen: Seen) -> Plan:
    """The steps that bring the image from ``seen`` to what is wanted. InputError or Refused where it must not be."""
    if wanted.state == "absent":
        made = Plan(wanted.path, remove=seen.exists)
    elif seen.swapped:
        # A backup that was brought back, with what a guest has written; its source is what it was.
        raise Refused(
            f"{wanted.path} is not the file that was made here; it was put there, or a run was cut off as it made it.",
            hint="Leave replace out to keep it, or remove it to have it made anew.",
        )
    elif not seen.exists or (wanted.source and wanted.replace and not seen.up_to_date):
        made = _make(wanted, seen)
    elif seen.header is None:
        raise Refused(
            f"{wanted.path} is {seen.strange or 'no image'}, not {wanted.format}.",
            hint="Nothing is overwritten. Give its right format, or another path, or a source with replace: true.",
        )
    else:
        made = _change(wanted, seen, seen.header)
    if made.changed and seen.template:
        raise Refused(
            f"{wanted.path} is the image of the template {seen.template}, to which nothing is done here.",
            hint="Its digest says what it is, on all hosts. Remove it with cnvm.platform.template (state: absent), or "
            "make another one with the role cnvm.platform.guest_template.",
        )
    if made.make or made.rebase:
        for path, guests in seen.written_below.items():
            raise Refused(
                f"{wanted.path} must not rest on {path}, to which guest {', '.join(map(repr, guests))} writes.",
                hint="An overlay is lost when the image below it changes. Make a template of the guest "
                "(cnvm.platform.template), give a copy as backing, or take the disk away from the guest first.",
            )
    if made.touches and seen.exists:
        _may_touch(wanted.path, seen)
        if seen.snapshots_of and (made.remove or made.make or made.flatten or made.rebase):
            raise Refused(
                f"{wanted.path} is a disk of guest {seen.snapshots_of!r}, which has snapshots.",
                hint="Merge them first (cnvm.platform.guest_snapshot, state: absent): its files rest on one another.",
            )
        _of_guests(made, seen)
    return made


def _may_touch(path: str, seen: Seen) -> None:
    if seen.dependants:
        raise Refused(
            f"{path} must not be changed: {', '.join(seen.dependants[:5])} "
            f"{'rests' if len(seen.dependants) == 1 else 'rest'} on it"
            f"{' and others' if len(seen.dependants) > 5 else ''}.",
            hint="An overlay is lost when the image below it changes. Flatten, rebase or remove the overlays first.",
            dependants=list(seen.dependants),
        )
    if seen.in_use:
        raise Refused(
            f"{path} is in use by another process, such as a running guest.", hint="Stop the guest first.", path=path
        )


def _of_guests(made: Plan, seen: Seen) -> None:
    """Refused where a guest that is there would lose what is on its disk, or go on with memory that does not fit it."""
    if seen.guests and (made.remove or made.make):
        raise Refused(
            f"{made.path} is a disk of guest {', '.join(map(repr, seen.guests))}; it is neither removed nor replaced.",
            hint="Remove the guest first, or take the disk away from it (cnvm.platform.guest).",
            dependants=[f"guest {name}" for name in seen.guests],
        )
    if seen.saved:
        raise Refused(
            f"{made.path} is a disk of guest {seen.saved!r}, which was saved with its memory; that fits its disks as "
            "they are.",
            hint=unsave(seen.saved),
        )


def _at_least(path: str, size: int, least: int, what: str) -> None:
    if size < least:
        raise Refused(
            f"{path}: size: {human_bytes(size)} ({size} bytes) is less than {what} has "
            f"({human_bytes(least)}, {least} bytes).",
            hint="Images only grow: what is beyond the new end would be lost.",
        )


def _make(wanted: Wanted, seen: Seen) -> Plan:
    if wanted.source:
        least, what, make = seen.source_bytes, "its source", "convert"
    elif wanted.backing:
        least, what, make = seen.backing_bytes, "its backing file", "create"
    else:
        least, what, make = 0, "", "create"
    size = least if wanted.size is None else wanted.size
    if not size:
        raise InputError(
            f"{wanted.path} does not exist, and nothing says what it is to be.",
            hint="Give its size, a source or a backing file.",
        )
    _at_least(wanted.path, size, least, what)
    return Plan(wanted.path, make=make, replaces=seen.exists, virtual_bytes=size)


def _change(wanted: Wanted, seen: Seen, header: Header) -> Plan:
    rebase = ""
    if wanted.backing and not seen.same_backing:
        if wanted.rebase == "refuse":
            raise Refused(
                f"{wanted.path} rests on {seen.backing or 'no other image'}, not on {wanted.backing}.",
                hint="Set rebase: safe to keep its content, or unsafe if both files have the same content.",
            )
        rebase = wanted.rebase
    elif wanted.backing and header.backing_format != wanted.backing_format:
        rebase = "format"
    size = header.virtual_bytes if wanted.size is None else wanted.size
    _at_least(wanted.path, size, header.virtual_bytes, "the image")
    flatten = wanted.flatten and bool(header.backing)
    if header.snapshots and (flatten or rebase == "safe"):
        # qemu-img brings along what the image has now, and nothing of what its snapshots take from below.
        step = "flatten" if flatten else "rebase: safe"
        raise Refused(
            f"{wanted.path} has {header.snapshots} internal snapshots, which {step} would lose.",
            hint="Convert what you need of them to other images (qemu-img convert -l), and delete them "
            "(qemu-img snapshot -d).",
        )
    return Plan(
        wanted.path,
        virtual_bytes=size,
        repair=_repair(wanted, seen.condition),
        flatten=flatten,
        rebase=rebase,
        grow=size > header.virtual_bytes,
        attributes=seen.attributes,
        warnings=tuple(_unchanged(wanted, header)),
    )


def _repair(wanted: Wanted, condition: t.Optional[Condition]) -> str:
    if condition is None:
        return ""
    if not condition.good:
        if wanted.repair != "all":
            raise HostError(
                f"{wanted.path} is damaged: {condition.corruptions} corruptions, {condition.errors} errors.",
                hint="Restore it, or set repair: all and look at what is left of its content.",
                check=condition.as_dict(),
            )
        return "all"
    return wanted.repair if condition.leaks and wanted.repair != "none" else ""


def _unchanged(wanted: Wanted, header: Header) -> t.Iterator[str]:
    """What only the creation of an image decides, and is not as it is wanted."""
    for name, is_now, asked in (
        ("cluster_size", header.cluster_bytes, wanted.cluster_bytes),
        ("subformat", header.subformat, wanted.subformat),
    ):
        if asked and is_now != asked:
            yield (
                f"{wanted.path}: {name} is {is_now}, not {asked}; only a new image gets it. "
                "Convert it to another path, or use replace."
            )


def in_place(made: Plan, kind: str) -> bool:
    """Whether the image that is there can be changed as it lies, and is whole after each single write.

    The others are worked on in a copy that takes its place at the end.
    """
    if made.repair or made.flatten or made.rebase == "safe":
        return False
    return FORMATS[kind].grows or not made.grow
