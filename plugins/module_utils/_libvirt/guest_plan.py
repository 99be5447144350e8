# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What has to be done to a guest so that it is as the user wants it. Decided before anything is touched."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import InputError, Refused
from .changes import Changes
from .domain import Model

RUNNING, PAUSED, STOPPED, STOPPING, CRASHED, SUSPENDED = (
    "running", "paused", "stopped", "stopping", "crashed", "suspended",
)  # fmt: skip
# virDomainState, of which these numbers never change.
_STATES = {0: STOPPED, 1: RUNNING, 2: RUNNING, 3: PAUSED, 4: STOPPING, 5: STOPPED, 6: CRASHED, 7: SUSPENDED}
# virDomainPausedReason: what a person has paused, and what has paused by itself.
_PAUSED = {
    1: "user", 2: "migration", 3: "save", 4: "dump", 5: "io_error", 6: "watchdog", 7: "from_snapshot",
    8: "shutting_down", 9: "snapshot", 10: "crashed", 11: "starting", 12: "post_copy", 13: "post_copy_failed",
}  # fmt: skip
_NOT_OURS_TO_RESUME = ("migration", "save", "dump", "snapshot", "starting", "post_copy", "post_copy_failed")


def state_of(number: int) -> str:
    """libvirt's number of a domain's state as a word."""
    return _STATES.get(number, STOPPED)


def paused_reason(number: int) -> str:
    """Why a domain is paused, as a word."""
    return _PAUSED.get(number, "unknown")


def unsave(name: str) -> str:
    """What to do with memory that libvirt keeps of a guest, where it is in the way."""
    return f"Start it first, or give that up ('virsh managedsave-remove {name}')."


@dataclasses.dataclass(frozen=True)
class Seen:
    """A guest as a host has it. ``definition`` and ``owner`` are None where there is none.

    ``elsewhere``: the host that has it, by the record or by the peers. ``moving``: a move of it is not finished.
    ``defined``: libvirt knows a domain of this name; ``managed``: it is ours (its record, or its XML, says so).
    ``begun``: making it here was cut off. ``was``: running or paused, of one that is off since a run that was to start
    it again, after a change, was cut off.
    """

    definition: t.Optional[dict[str, t.Any]] = None
    owner: t.Optional[dict[str, t.Any]] = None
    elsewhere: str = ""
    moving: bool = False
    defined: bool = False
    managed: bool = False
    begun: bool = False
    was: str = ""
    persistent: bool = True
    state: str = STOPPED
    why: str = ""
    autostart: bool = False

    @property
    def active(self) -> bool:
        """Whether a QEMU runs for it."""
        return self.defined and self.state in (RUNNING, PAUSED, STOPPING, SUSPENDED, CRASHED)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user wants of a guest, worked out for this host; None for what follows from its state alone.

    ``files``: what has to be done to its files, in words (``create vda``, ``grow vda``, ``write seed``).
    """

    definition: dict[str, t.Any]
    model: Model
    changes: Changes = dataclasses.field(default_factory=Changes)
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps for one guest, in this order: stop, remove or create or change, autostart, start, pause or resume."""

    name: str
    elsewhere: str = ""
    create: bool = False
    adopt: bool = False
    remove: bool = False
    stop: bool = False
    start: bool = False
    pause: bool = False
    resume: bool = False
    autostart: t.Optional[bool] = None
    wanted: t.Optional[Wanted] = None
    reasons: t.Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the running guest itself is changed."""
        return bool(self.wanted and self.wanted.changes.steps and not self.stop)

    @property
    def define(self) -> bool:
        """Whether its stored XML is written again."""
        return bool(self.wanted and (self.create or self.adopt or self.wanted.changes.stored))

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return self.live or self.changed_off

    @property
    def changed_off(self) -> bool:
        """Whether there is anything but what is changed in the running guest itself."""
        return bool(
            self.create or self.adopt or self.remove or self.stop or self.start or self.pause or self.resume
            or self.autostart is not None or self.define or (self.wanted and self.wanted.files)
        )  # fmt: skip

    @property
    def restart(self) -> bool:
        """Whether a running guest is stopped and started again."""
        return self.stop and self.start

    @property
    def actions(self) -> list[str]:
        """The steps as words."""
        words = []
        if self.stop:
            words.append("stop")
        if self.remove:
            words.append("remove")
        if self.adopt:
            words.append("adopt")
        if self.create:
            words.append("create")
        elif self.wanted:
            changes = [*self.wanted.files, *(f"change {key}" for key in self.wanted.changes.keys if key != "marks")]
            # Said in other words, or of what is not the domain's: its definition alone is written anew.
            words += changes or (["define"] if self.define and not self.adopt else [])
        if self.autostart is not None:
            words.append("start with the host" if self.autostart else "do not start with the host")
        if self.start:
            words.append("start")
        if self.resume:
            words.append("resume")
        if self.pause:
            words.append("pause")
        return words


def plan(
    item: t.Mapping[str, t.Any],
    seen: Seen,
    wanted: t.Optional[Wanted] = None,
    *,
    adopt: bool = False,
    restart_on_change: bool = False,
) -> Plan:
    """The steps that bring the guest of ``item`` (normal form) from ``seen`` to what is wanted.

    ``wanted`` is None for an item that names only a state. Refused where it must not be done.
    """
    name, state = item["name"], item["state"]
    if seen.elsewhere:
        return Plan(name=name, elsewhere=seen.elsewhere)
    if seen.moving:
        raise Refused(
            f"Guest {name!r} is in a move that is not finished; nothing is changed.",
            hint="Wait for it, or run the playbook cnvm.platform.recover.",
        )
    foreign = seen.defined and not seen.managed
    if foreign and not adopt:
        raise Refused(
            f"This host has a domain {name!r} that was not made by cnvm.platform.guest; nothing is changed.",
            hint="Choose another name, or set adopt: true to take it over as it is described.",
        )
    if seen.defined and not seen.persistent and state != "absent":
        raise Refused(
            f"Guest {name!r} is transient: it would be gone when it ends, and cannot be changed for its next start.",
            hint=f"Keep it with 'virsh dumpxml {name}' and 'virsh define', or remove it with state: absent.",
        )
    if state == "absent":
        there = seen.defined or seen.definition is not None or seen.owner is not None or seen.begun
        return Plan(name=name, remove=there, stop=seen.active)
    if wanted is None and not (seen.defined and seen.managed):
        raise InputError(
            f"guests: {name}: this host has no such guest, and memory_mib is missing.",
            hint="Describe it, and it is made; or name one that is there.",
        )
    return _reach(item, seen, wanted, foreign=foreign, restart_on_change=restart_on_change)


def _reach(
    item: t.Mapping[str, t.Any], seen: Seen, wanted: t.Optional[Wanted], *, foreign: bool, restart_on_change: bool
) -> Plan:
    name, state = item["name"], item["state"]
    reasons = dict(wanted.changes.reasons) if wanted and seen.active else {}
    up = state in ("present", "running", "paused")
    restart = bool(reasons) and up and restart_on_change and seen.state in (RUNNING, PAUSED, SUSPENDED)
    # One that is going down, or has crashed and was kept for its dump, has to end before it is started again.
    ending = seen.state in (CRASHED, STOPPING) and state in ("running", "paused")
    stop = seen.active and (state == "stopped" or restart or ending)
    off = stop or not seen.active
    goes_on = state == "present" and bool(seen.was)
    start = off and (state in ("running", "paused") or restart or goes_on)
    pause = (state == "paused" and (off or seen.state != PAUSED)) or (
        (restart or goes_on) and state == "present" and PAUSED in (seen.state, seen.was)
    )
    resume = not off and state == "running" and seen.state in (PAUSED, SUSPENDED)
    if resume and seen.state == PAUSED and seen.why in _NOT_OURS_TO_RESUME:
        raise Refused(
            f"Guest {name!r} is paused by something that goes on ({seen.why.replace('_', ' ')}); it is not resumed.",
            hint="Wait for it, or run the playbook cnvm.platform.recover.",
        )
    return Plan(
        name=name,
        create=wanted is not None and not seen.defined,
        adopt=foreign and wanted is not None,
        stop=stop,
        start=start,
        pause=pause,
        resume=resume,
        autostart=_autostart(item, seen),
        wanted=wanted,
        reasons={} if off else reasons,
    )


def _autostart(item: t.Mapping[str, t.Any], seen: Seen) -> t.Optional[bool]:
    """Whether it is to start with the host from now on; None where that is as it is."""
    wanted = item["autostart"]
    if wanted is None and not item["described"]:
        # A call that names only a state keeps what an earlier one has said.
        wanted = (seen.definition or {}).get("autostart")
    if wanted is None:
        wanted = {"running": True, "stopped": False}.get(item["state"])
    before = seen.defined and seen.autostart
    return None if wanted is None or wanted == before else wanted
