# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""One guest of a call of the module guest: what is wanted of it, what there is, what is to be done."""

from __future__ import annotations

import dataclasses
import typing as t

from .._libvirt import domain
from .._libvirt import guest_definition as definitions
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Plan, Seen, Wanted
from .domains import Known
from .guest_disks import Work
from .guest_seeds import Seed
from .ownership import Newcomer


@dataclasses.dataclass
class Job:
    """One guest of a call: what is wanted, what there is, what is to be done."""

    item: dict[str, t.Any]
    seen: Seen
    plan: Plan
    known: t.Optional[Known] = None
    works: tuple[Work, ...] = ()
    seed: t.Optional[Seed] = None
    # What could not be done while it runs, found out by trying; and whether any of it could.
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    taken_over: bool = False
    # Guests that are removed in the same call, and of which it gets the address, a MAC or a disk.
    follows: set[str] = dataclasses.field(default_factory=set)
    # Of one that is removed: the files of the disks that were made for it, those that are deleted, and what is kept.
    made_disks: list[str] = dataclasses.field(default_factory=list)
    gone_disks: list[str] = dataclasses.field(default_factory=list)
    kept_disks: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.item["name"])

    @property
    def changed(self) -> bool:
        """Whether anything was done, or would be: not where all that there was to do was refused by what runs."""
        return self.plan.changed_off or (self.plan.live and (self.taken_over or not self.reasons))


def newcomer(guest: t.Mapping[str, t.Any]) -> Newcomer:
    """Of an item or a definition."""
    macs = tuple(card["mac"] for card in guest["networks"])
    return Newcomer(guest["uuid"], definitions.address_of(guest), macs)


def claim(job: Job) -> Newcomer:
    """Of one that is to be made here, or taken over."""
    wanted = t.cast(Wanted, job.plan.wanted)
    return newcomer(wanted.definition)._replace(given=given(wanted.model, job.works), adopted=job.plan.adopt)


def given(model: Model, works: t.Sequence[Work] = ()) -> set[str]:
    """The files of a guest's disks, and those below them, that are not to be made."""
    return set(_images(model)) - made(works)


def _images(model: Model) -> dict[str, str]:
    """{file: format} of a guest's disks, and of those below them."""
    return {each["path"]: each["format"] for disk in model["disks"].values() for each in (disk, *disk["backing"])}


def had(job: Job) -> dict[str, str]:
    """The same of what it has so far: by its definition, by what runs, and by what libvirt has stored."""
    disks = (job.seen.definition or {}).get("disks", ())
    found = {str(disk["path"]): str(disk["format"]) for disk in disks if disk["path"]}
    if job.known is not None:
        found.update(_images(job.known.live_model or domain.EMPTY))
        found.update(_images(job.known.model))
    return found


def templates(job: Job) -> set[str]:
    """The digests of the templates on which disks are to be made."""
    names = {work.name for work in job.works if work.template}
    disks = job.plan.wanted.definition["disks"] if job.plan.wanted is not None else ()
    return {str(disk["template_digest"]) for disk in disks if disk["name"] in names}


def made(works: t.Sequence[Work]) -> set[str]:
    """The files of disks that are to be made."""
    return {work.path for work in works if work.kind != "grow"}
