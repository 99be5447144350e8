# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What is written down of the snapshots of a guest."""

from __future__ import annotations

import os
import typing as t

from .._core import paths
from .._core.errors import Refused
from .._libvirt import snapshots
from .._libvirt.domain import EMPTY, Model
from .._libvirt.snapshots import Record
from . import files


def load(name: str) -> t.Optional[Record]:
    """The record of a guest's snapshots; None when it has none."""
    return files.read_json(paths.guest_snapshots_file(name))


def save(name: str, record: Record) -> None:
    """Write the record down; one that says nothing is removed."""
    if record["snapshots"] or record["pending"] or record.get("gone"):
        files.write_json(paths.guest_snapshots_file(name), record)
    else:
        files.remove_file(paths.guest_snapshots_file(name), durable=True)


def settled(record: t.Optional[Record], model: Model) -> Record:
    """The record as it is by what the guest's stored XML says, with all of its disks."""
    return snapshots.joined(snapshots.settle(record, model), model) if record else snapshots.empty(model)


def names(name: str, model: Model) -> list[str]:
    """The snapshots that a guest has, oldest first; ``model``: of its stored XML."""
    record = load(name)
    return snapshots.names(snapshots.settle(record, model)) if record else []


def tops(name: str, model: t.Optional[Model], option: str) -> dict[str, tuple[str, list[dict[str, t.Any]]]]:
    """{disk: (the file that the guest writes to, what is below it)}; empty for a guest without snapshots.

    ``model``: of its stored XML, by which it is known what a run that was cut off has done; None when libvirt does not
    know it any more. Refused when it is not known then.
    """
    record = load(name)
    if record is None:
        return {}
    if model is None and record["pending"]:
        raise Refused(
            f"{option}: work on a snapshot was cut off, and libvirt does not know {name} any more: in which file its "
            "newest state is nobody knows.",
            hint="Define the domain as it was (virsh define), with the file that was written last.",
        )
    return snapshots.tops(snapshots.settle(record, model or EMPTY))


def elsewhere(name: str, disk: str, path: str, top: str) -> Refused:
    """What to say where libvirt has another file for a disk than it should: somebody has made a snapshot by other
    means, or brought it elsewhere. What the guest has written since is there."""
    return Refused(
        f"guests: {name}: disks: {disk}: libvirt has {path} for it, and not {top}.",
        # Without a base all would be merged into the lowest file, and what our snapshots froze would be gone.
        hint=f"If that is a snapshot, merge it (virsh blockcommit {name} {disk} --base {top} --active --pivot, while "
        "the guest runs). Or, where the disk has no other snapshots, give that file as its path.",
    )


def guest_of(path: str) -> str:
    """The guest whose snapshots have ``path`` as one of their files; '' for none."""
    real = os.path.realpath(path)
    try:
        listing = sorted(os.listdir(paths.WORKLOADS))
    except FileNotFoundError:
        return ""
    for name in listing:
        record = load(name) or {"files": {}, "pending": None}
        known = {**record["files"], **(record["pending"] or {}).get("files", {})}
        if any(os.path.realpath(one) == real for one, about in known.items() if not about["read_only"]):
            return name
    return ""


def made(name: str, bases: t.Collection[str]) -> list[str]:
    """The files that snapshots have made for a guest whose own disks are ``bases``: what was written above these, and
    memory. Not what was written above other disks."""
    record = load(name)
    if record is None:
        return []
    records = [one for one in (record, record["pending"]) if one]
    rests_on = {path: about["backing"] for one in records for path, about in one["files"].items()}
    found: set[str] = set()
    while more := {path for path, below in rests_on.items() if below in {*bases, *found}} - found:
        found |= more
    memory = {path for one in records for path in snapshots.all_files(one) if path not in rests_on}
    home = f"{paths.guest_disks_dir(name)}/"
    return sorted(path for path in {*found, *memory, *record.get("gone", ())} if path.startswith(home))
