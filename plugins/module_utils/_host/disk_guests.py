# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The guests whose disks images are: by their definitions here, and by what libvirt has of any domain."""

from __future__ import annotations

import os
import typing as t

from .._core import paths
from . import disks, domains, files, guest_disks, mounts, ownership, snapshot_records


def of(images: t.Iterable[str], *, written: bool = False) -> dict[str, dict[str, bool]]:
    """{image: {guest: whether libvirt keeps its memory, which fits its disks as they are}}.

    ``written``: only guests that write to it, be it when a snapshot is merged; not those that only read it.
    """
    with domains.everything() as (known, pools):
        return _of(images, known, pools, written, mounts.silent())


def needed(
    going: t.Mapping[str, t.Collection[str]],
    away: t.Optional[mounts.Away] = None,
    unseen: t.Optional[list[str]] = None,
) -> dict[str, dict[str, list[str]]]:
    """What guests that leave this host take along, and others need: {guest: {file: who needs it}}.

    What lies in the directory of one is brought to another place, all of it together; ``going``: {guest: what is
    deleted with it, be it there or elsewhere}. ``away`` and ``unseen``: as of ``disks.overlays_around``.
    """
    places = {name: {*guest_disks.at_home(name), *gone} for name, gone in going.items()}
    images = sorted(set().union(*places.values()))
    if not images:
        return {}
    away = mounts.silent() if away is None else away
    with domains.everything() as (known, pools):
        guests = _of(images, known, pools, False, away)
    overlays = disks.overlays_around(images, known=(known, pools), away=away, unseen=unseen)
    found: dict[str, dict[str, list[str]]] = {}
    for name, files_of in places.items():
        home = f"{os.path.realpath(paths.guest_disks_dir(name))}/"
        gone = {os.path.realpath(path) for path in going[name]}
        for path in sorted(files_of):
            users = [f"guest {each}" for each in guests[path] if each != name]
            for overlay in disks.resting_on(path, overlays):
                real = os.path.realpath(overlay)
                together = real.startswith(home) and os.path.realpath(path) not in gone
                users += [] if real in gone or together else [overlay]
            if users:
                found.setdefault(name, {})[path] = users
    return found


def words_of(needed_by: t.Mapping[str, t.Sequence[str]]) -> str:
    """The files of one guest that others need, for a message: the first of them."""
    return "; ".join(f"{path} ({', '.join(users[:5])})" for path, users in list(needed_by.items())[:5])


FREE_THEM = (
    "Remove these guests or take the disk away from them, and flatten, rebase or remove these overlays. Or move the"
    " file to another place, and tell them (path, backing)."
)


def _of(
    images: t.Iterable[str],
    known: t.Mapping[str, domains.Known],
    pools: t.Mapping[str, str],
    written: bool,
    away: mounts.Away,
) -> dict[str, dict[str, bool]]:
    used: dict[str, set[str]] = {}
    for name, one in known.items():
        used[name] = {disk["path"] for disk in one.disks if not (written and disk["read_only"])}
    for name in ownership.names(ownership.GUEST):
        definition = files.read_json(paths.definition_file(name)) or {}
        # Of one in a pool that is gone only libvirt may know where it was.
        places = {
            guest_disks.placed(name, disk, pools.get(disk["pool"], ""))
            for disk in definition.get("disks") or ()
            if (disk["path"] or not disk["pool"] or disk["pool"] in pools) and not (written and disk["read_only"])
        }
        if written:
            places.update(snapshot_records.made(name, places))
        used[name] = places | used.get(name, set())
    # What lies behind a network has no path here.
    real = {name: {away.real(path) for path in found if path.startswith("/")} for name, found in used.items()}
    wanted = {image: os.path.realpath(image) for image in images}
    return {
        image: {name: name in known and known[name].saved for name, found in sorted(real.items()) if place in found}
        for image, place in wanted.items()
    }
