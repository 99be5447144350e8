# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The guests of a host: brought to what is wanted one by one, started and stopped together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._core import paths
from .._core.errors import CnvmError, Refused
from .._libvirt import addresses, changes, domain, errors, guest_plan, xml
from .._libvirt import guest_definition as definitions
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Wanted
from .._libvirt.xml import Element
from . import (
    disks,
    files,
    guest_disks,
    guest_jobs,
    guest_live,
    guest_power,
    guest_report,
    guest_restarts,
    guest_seeds,
    guest_watch,
    libvirt,
    movedir,
    ownership,
    seeds,
    templates,
)
from .domains import Known, forget_variables, not_taken, read
from .guest_jobs import Job
from .guest_planning import Planner
from .ownership import Registry
from .system import Host


class Batch:
    """Does what was decided for the guests of one call."""

    def __init__(
        self, host: Host, connection: libvirt.Connection, registry: Registry, *, restart_on_change: bool = False
    ) -> None:
        self.host = host
        self.connection = connection
        self.registry = registry
        self.restart_on_change = restart_on_change
        # Leases that guests had before they were started here: none of these says that they are up.
        self.old_leases: addresses.Leases = frozenset()
        # Guests that were stopped for a change and could not be started again, and why.
        self.down: dict[str, CnvmError] = {}
        # Guests whose change failed where libvirt does not say what it has of it.
        self.unknown: list[str] = []

    def apply(self, jobs: t.Sequence[Job]) -> None:
        """Do what was decided. Each guest is locked while it is changed; a move of it is refused meanwhile.

        One that does not stop or start keeps no other one from what is wanted of it.
        """
        # Removed first: another one may get what it has.
        todo = [job for job in jobs if job.plan.changed or guest_restarts.is_noted(job.name)]
        todo = sorted((job for job in todo if not job.plan.elsewhere), key=lambda job: not job.plan.remove)
        with contextlib.ExitStack() as held:
            for name in sorted(job.name for job in todo):
                held.enter_context(files.lock(paths.lock_file(name), f"changing guest {name!r}"))
            # However this ends.
            held.callback(self._forget_running, todo)
            self.see_again(todo)
            for job in todo:
                # It runs, or is to be off.
                if guest_restarts.is_noted(job.name) and not job.plan.start:
                    guest_restarts.forget(job.name)
            fresh = [job for job in todo if job.plan.create or job.plan.adopt]
            fresh = [job for job in fresh if not (job.seen.managed and job.seen.owner)]
            self.registry.claim({job.name: guest_jobs.claim(job) for job in fresh})
            try:
                failed = self._stop([job for job in todo if job.plan.stop])
                waits = [job for job in todo if job.name not in failed and job.follows & set(failed)]
                failed.update({job.name: failed[min(job.follows & set(failed))] for job in waits})
                self._start([job for job in waits if job.plan.restart])
                todo = [job for job in todo if job.name not in failed]
                for job in todo:
                    with templates.used(guest_jobs.templates(job), f"making disks of guest {job.name!r}"):
                        if job.plan.remove:
                            self.remove(job)
                        elif job.plan.create:
                            self.create(job, fresh=job in fresh)
                        elif job.plan.wanted is not None:
                            self.change(job, fresh=job in fresh)
                    if job.plan.autostart is not None:
                        self.autostart(job)
            except BaseException as error:
                # What was stopped for its change alone runs on as it is.
                self._start([job for job in todo if job.plan.restart])
                self.unknown += self.registry.give_up(lambda name: self.undo(_named(fresh, name)))
                if isinstance(error, CnvmError):
                    self._tell_left(error)
                raise
            # An adoption that was not begun.
            self.registry.give_up()
            failed.update(self._stop(self._to_restart(todo)))
            todo = [job for job in todo if job.name not in failed]
            starting = [job for job in todo if job.plan.start]
            waited = [job for job in starting if job.item["wait_for"]]
            models, given = [_model(job) for job in waited], {_address(job) for job in waited} - {""}
            self.old_leases = guest_watch.forget(self.connection, models, given)
            failed.update(self._start(starting))
            for job in todo:
                if job.plan.resume or (job.plan.pause and not job.plan.start):
                    guest_power.pause_or_resume(job)
        if failed:
            first = next(iter(failed.values()))
            first.details["guests"] = list(failed)
            self._tell_left(first)
            raise first
        self.wait(jobs)

    def _stop(self, jobs: t.Sequence[Job]) -> dict[str, CnvmError]:
        """Those that have not stopped, and why. What is to be started again is on record before."""
        for job in jobs:
            if job.plan.restart and job.seen.active:
                _note_restart(job)
        return guest_power.stop(jobs, self.registry.warnings.append)

    def _start(self, jobs: t.Sequence[Job]) -> dict[str, CnvmError]:
        """Those that could not be started, and why."""
        failed = guest_power.start(self.connection, jobs)
        for job in jobs:
            if not guest_restarts.is_noted(job.name):
                continue
            why = failed.get(job.name)
            if why is None:
                guest_restarts.forget(job.name)
            elif why.details.get("code") != errors.OPERATION_INVALID:
                self.down[job.name] = why
                # That QEMU was started in vain is in its log by now. Without room the note stays as it was.
                with contextlib.suppress(OSError):
                    _note_restart(job)
            # Else it runs: what has failed came before its stop.
        return failed

    def _forget_running(self, jobs: t.Sequence[Job]) -> None:
        """What runs is not to be started by a later run: it has not stopped, say, and its owner turns it off."""
        noted = [job.name for job in jobs if guest_restarts.is_noted(job.name)]
        # Where libvirt does not answer nobody knows, and what has gone wrong before is what is to be told.
        with contextlib.suppress(CnvmError):
            for name, known in (read(self.connection, noted) if noted else {}).items():
                if known.live is not None:
                    guest_restarts.forget(name)

    def _tell_left(self, error: CnvmError) -> None:
        """Say beside what has failed how guests are left."""
        said = [error.hint]
        down = {name: why for name, why in self.down.items() if why is not error}
        if down:
            why = next(iter(down.values()))
            said.append(
                f"Stopped for their change and not started again: {', '.join(sorted(down))}. {why.message} The next "
                "run starts them."
            )
            error.details["not_started"] = sorted(down)
        if self.unknown:
            said.append(
                f"What was made for {', '.join(sorted(set(self.unknown)))} stays, as libvirt cannot say whether it has "
                "it, or does not let go of it. Once it answers run this again: the next run goes on from there."
            )
        error.hint = " ".join(filter(None, said))

    def _to_restart(self, jobs: t.Sequence[Job]) -> list[Job]:
        """Those that run, and of which trying has shown that they must be restarted for a change, where they may."""
        found = []
        for job in jobs:
            if not (self.restart_on_change and job.reasons and job.seen.state == guest_plan.RUNNING):
                continue
            job.plan = dataclasses.replace(job.plan, stop=True, start=True)
            job.reasons.clear()
            found.append(job)
        return found

    def see_again(self, jobs: t.Sequence[Job]) -> None:
        """Refused when somebody has changed a guest since it was decided what to do: that decision is worth nothing."""
        now = read(self.connection, [job.name for job in jobs]) if jobs else {}
        host_id = str(self.registry.identity["host_id"])
        for job in jobs:
            known = now.get(job.name)
            seen = guest_report.see(job.name, host_id, known)
            texts = [
                None if each is None or each.stored is None else xml.document(each.stored)
                for each in (job.known, known if seen.defined else None)
            ]
            same = texts[0] == texts[1] and seen.definition == job.seen.definition and seen.managed == job.seen.managed
            # One that is to stop may have done so by itself.
            same = same and (seen.active == job.seen.active or (job.plan.stop and not seen.active))
            if not same or seen.moving:
                raise Refused(
                    f"Guest {job.name!r} was changed by somebody else a moment ago; nothing is changed.",
                    hint="Run it again.",
                )

    def undo(self, job: Job) -> None:
        """Remove what of a creation that failed is there, but for its records. Nothing is removed where libvirt cannot
        say what it has: it may have taken the guest before it failed."""
        if not job.plan.adopt:
            each = libvirt.domain(self.connection, job.name)
            if each is not None:
                self._undefine(each, job.name)
        self._remove_made(job)

    def _take_back(self, job: Job, before: t.Collection[str]) -> None:
        """Remove the files that were made for a change that failed: the next run would take them for somebody's. They
        stay, on record, where libvirt cannot say whether the guest has them."""
        if not guest_disks.making(job.name):
            return
        try:
            self._remove_made(job, before)
        except CnvmError:
            self.unknown.append(job.name)

    def _remove_made(self, job: Job, before: t.Collection[str] = ()) -> None:
        """Remove the files that were being made, but for those from ``before`` and what the guest has by now."""
        known = read(self.connection, [job.name]).get(job.name)
        models = [] if known is None else known.models
        wanted = guest_jobs.given(t.cast(Wanted, job.plan.wanted).model, job.works)
        kept = wanted.union(before, *map(guest_jobs.given, models))
        making = guest_disks.making(job.name)
        for path in making:
            if path not in kept:
                files.remove_file(path)
            files.remove_file(disks.temporary(path))
        guest_disks.note_making(job.name, [path for path in making if path in kept])

    def create(self, job: Job, *, fresh: bool) -> None:
        """Disks, seed, domain, records. It becomes ours with the owner record."""
        wanted = t.cast(Wanted, job.plan.wanted)
        leftover = libvirt.domain(self.connection, job.name)
        if leftover is not None:
            self._undefine(leftover, job.name)
        guest_disks.make_home(job.name)
        self._begin(job)
        for work in job.works:
            self._do(job, work)
        self._seed(job)
        self._define(job, domain.build(wanted.model))
        self._end(job, fresh=fresh)

    def change(self, job: Job, *, fresh: bool) -> None:
        """Take over a new definition: in the stored XML, and in the running guest what it can take over."""
        wanted = t.cast(Wanted, job.plan.wanted)
        known = t.cast(Known, job.known)
        guest_disks.make_home(job.name)
        running = job.seen.active and not job.plan.stop
        before = self._begin(job)
        still = guest_jobs.given(wanted.model)
        guest_disks.leave({path: kind for path, kind in guest_jobs.had(job).items() if path not in still})
        try:
            for work in job.works:
                if work.kind == "grow" and running:
                    guest_live.grow(self.host, job, work)
                else:
                    self._do(job, work)
            self._seed(job)
            if job.plan.define:
                self._define(job, domain.patch(known.xml, wanted.model))
        except BaseException:
            self._take_back(job, before)
            raise
        self._end(job, fresh=fresh)
        if running:
            guest_live.change(job, known, wanted.changes.steps)
            kept = changes.kept_memory(wanted.model, t.cast(Model, known.live_model))
            if kept and job.reasons.pop("memory_mib", ""):
                self.registry.warnings.append(f"Guest {job.name} {kept}")

    def _begin(self, job: Job) -> list[str]:
        """Put on record which files are made now. What an earlier run has left that was cut off, which is returned,
        stays there until a disk has it for good, or the guest is removed."""
        made, left = guest_jobs.made(job.works), guest_disks.left(job.name)
        for path in made.difference(left):
            if os.path.lexists(path):
                raise disks.Taken(path)
        if made:
            guest_disks.note_making(job.name, {*made, *left})
        return left

    def _do(self, job: Job, work: guest_disks.Work) -> None:
        try:
            guest_disks.do(self.host, work)
        except disks.Taken:
            # Whoever clears away goes by that record.
            making = guest_disks.making(job.name)
            guest_disks.note_making(job.name, [path for path in making if path != work.path])
            raise

    def _end(self, job: Job, *, fresh: bool) -> None:
        """libvirt has it as it is wanted: write that down, and last that nothing is being made any more."""
        wanted = t.cast(Wanted, job.plan.wanted)
        self._drop_seed(job)
        # What the running guest refuses is tried by each run.
        if wanted.definition != job.seen.definition:
            files.write_json(paths.definition_file(job.name), wanted.definition)
        if fresh:
            self.registry.own(job.name, wanted.definition["uuid"])
        for path in guest_disks.making(job.name):
            # A run may have been cut off between the two names of a file.
            files.remove_file(disks.temporary(path))
        needed = {*guest_jobs.made(job.works), *guest_jobs.given(wanted.model)}
        guest_disks.note_making(job.name, guest_disks.left(job.name, needed))

    def _define(self, job: Job, root: Element) -> None:
        with libvirt.doing(f"define the guest {job.name!r}"):
            each = self.connection.defineXML(xml.document(root))
        left_out = not_taken(each, t.cast(Wanted, job.plan.wanted).model)
        if left_out:
            self.registry.warnings.append(
                f"Guest {job.name}: libvirt has not taken over {', '.join(left_out)}, and has said nothing. See 'virsh "
                f"dumpxml --inactive {job.name}' for what is in the way."
            )
        if job.known is None:
            job.known = Known(each, guest_plan.STOPPED, "", True, False)

    def _seed(self, job: Job) -> None:
        words = t.cast(Wanted, job.plan.wanted).files
        if job.seed and "write seed" in words:
            guest_seeds.write(self.host, job.name, job.seed)

    def _drop_seed(self, job: Job) -> None:
        """Remove a seed that is not wanted, once neither the guest nor its stored XML has it."""
        words = t.cast(Wanted, job.plan.wanted).files
        if not job.seed and (job.plan.stop or "remove seed" in words):
            files.remove_file(paths.guest_seed(job.name))

    def autostart(self, job: Job) -> None:
        """Let it start with the host, or not."""
        each = t.cast(Known, job.known).domain
        with libvirt.doing(f"set whether the guest {job.name!r} starts with the host"):
            each.setAutostart(int(bool(job.plan.autostart)))

    def wait(self, jobs: t.Sequence[Job]) -> None:
        """Wait for what the items ask to be waited for."""
        wanted = {job.name: job.item["wait_for"] for job in jobs if job.item["wait_for"] and not job.plan.elsewhere}
        if not wanted:
            return
        # An item that names only a state has no networks.
        described = {job.name: job.item if job.item["described"] else job.seen.definition or job.item for job in jobs}

        def look(names: t.Sequence[str]) -> dict[str, guest_watch.Subject]:
            return {
                name: guest_watch.Subject(name, one.domain, one.live, definitions.address_of(described[name]))
                for name, one in read(self.connection, names).items()
                if one.live is not None
            }

        guest_watch.wait(self.connection, wanted, look, self.registry.warnings.append, self.old_leases)

    def remove(self, job: Job) -> None:
        """Remove a guest that is stopped, with all that belongs to it but its disks, unless they are to go, too."""
        home = paths.guest_disks_dir(job.name)
        outside = [path for path in job.made_disks if not path.startswith(f"{home}/")]
        stay = [path for path in outside if path not in job.gone_disks]
        # Before libvirt forgets it: nobody else knows of them.
        images = {**dict.fromkeys(stay, ""), **guest_jobs.had(job)}
        guest_disks.leave({path: kind for path, kind in images.items() if path not in job.gone_disks})
        each = libvirt.domain(self.connection, job.name)
        if each is not None:
            self._undefine(each, job.name)
        forget_variables(self.connection, job.name)
        for path in (*outside, *guest_disks.making(job.name)):
            # What a run has left that was cut off as it made them.
            files.remove_file(disks.temporary(path))
        guest_disks.delete(job.gone_disks)
        job.kept_disks = [*stay, *guest_disks.keep(self.host, job.name)]
        for path in movedir.console_logs(job.name):
            files.remove_file(path)
        seeds.remove_unfinished(paths.guest_seed(job.name))
        ownership.forget(job.name)

    def _undefine(self, each: libvirt.Domain, name: str) -> None:
        with guest_power.gone_is_good(), libvirt.doing(f"remove the guest {name!r}"):
            if each.isActive():
                raise Refused(
                    f"Guest {name!r} was started by somebody else a moment ago; it is not removed.",
                    hint="Run it again.",
                )
            libvirt.undefine(each)


def _note_restart(job: Job) -> None:
    guest_restarts.note(job.name, guest_plan.PAUSED if job.plan.pause else guest_plan.RUNNING)


def _named(jobs: t.Sequence[Job], name: str) -> Job:
    return next(job for job in jobs if job.name == name)


def _address(job: Job) -> str:
    """The address on the overlay that it is given; '' for none."""
    definition = job.seen.definition if job.plan.wanted is None else job.plan.wanted.definition
    return str((definition or {}).get("address") or "")


def _model(job: Job) -> Model:
    """What it is started with."""
    return t.cast(Known, job.known).model if job.plan.wanted is None else job.plan.wanted.model


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The work of the module guest: bring the guests to what is wanted."""
    return bring_to(
        host,
        params["guests"],
        adopt=params["adopt"],
        restart_on_change=params["restart_on_change"],
        check_mode=check_mode,
        **ownership.asking(params),
    )


def bring_to(
    host: Host,
    items: object,
    *,
    adopt: bool = False,
    restart_on_change: bool = False,
    ignore_unreachable: bool = False,
    ask_timeout_s: float = 10,
    check_mode: bool = False,
    uri: str = libvirt.URI,
) -> dict[str, t.Any]:
    """Bring the guests of ``items`` (as users write them) to what is wanted; the module's result."""
    wanted = definitions.normalise_all(items)
    if check_mode and not guest_report.has_libvirt():
        return libvirt.not_yet("guests", wanted)
    registry = Registry(host, ownership.GUEST, ignore_unreachable=ignore_unreachable, ask_timeout_s=ask_timeout_s)
    with libvirt.connect(uri) as connection:
        options = {"adopt": adopt, "restart_on_change": restart_on_change, "check_mode": check_mode}
        jobs = Planner(host, connection, wanted, registry, **options).decide()
        batch = Batch(host, connection, registry, restart_on_change=restart_on_change)
        if not check_mode:
            batch.apply(jobs)
        found = guest_report.report(connection, [job.name for job in jobs], old_leases=batch.old_leases)
        reports = {one["name"]: one for one in found}
    results, before, after = [], {}, {}
    for job in jobs:
        results.append(_result(job, reports.get(job.name), registry, check_mode=check_mode))
        if job.changed:
            before[job.name], after[job.name] = _shown(job)
    return {
        "changed": any(job.changed for job in jobs),
        "guests": results,
        "diff": {"before": before, "after": after},
        "warnings": registry.warnings,
    }


def _result(job: Job, found: t.Optional[dict[str, t.Any]], registry: Registry, *, check_mode: bool) -> dict[str, t.Any]:
    shown = {key: value for key, value in (found or {}).items() if key != "definition"}
    # In check mode there is only the plan to tell of. Else it is seen what there is, and was found out by trying why.
    reasons = dict(job.plan.reasons)
    if not check_mode or job.plan.wanted is None:
        reasons = {one["option"]: one["reason"] for one in shown.get("restart_reasons") or []}
        reasons.update(job.reasons)
    gone = job.plan.remove or (not shown and not job.plan.elsewhere)
    here = (job.seen.managed or job.plan.create or job.plan.adopt) and not job.plan.remove
    return {
        "address": None,
        "address_source": None,
        **shown,
        "name": job.name,
        "changed": job.changed,
        "actions": job.plan.actions if job.changed else [],
        "restarted": job.plan.restart,
        "restart_required": bool(reasons),
        "restart_reasons": guest_report.listed_reasons(reasons),
        "placement": registry.identity["name"] if here else job.plan.elsewhere or None,
        "kept_disks": job.kept_disks,
        **({"state": "absent"} if gone else {}),
        **({"state": "moved"} if job.plan.elsewhere else {}),
    }


def _shown(job: Job) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """A guest before and after in a diff: what differs, and whether it runs."""
    made, seen = job.plan, job.seen
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    if seen.defined:
        before.update(state=seen.state, starts_at_boot=seen.autostart)
    if not made.remove:
        state = seen.state if seen.defined else guest_plan.STOPPED
        if made.stop:
            state = guest_plan.STOPPED
        if made.start or made.resume:
            state = guest_plan.RUNNING
        if made.pause:
            state = guest_plan.PAUSED
        after.update(state=state, starts_at_boot=seen.autostart if made.autostart is None else made.autostart)
    if made.wanted is not None and made.create:
        kept = made.wanted.definition
        defaults = definitions.DEFAULTS
        after.update(
            {key: value for key, value in kept.items() if key not in ("schema", "kind") and defaults.get(key) != value}
        )
    elif made.wanted is not None:
        for one in made.wanted.changes.stored:
            if one.key != "marks":
                before[one.key], after[one.key] = one.before, one.after
        if "define" in made.actions:
            then, now = seen.definition or {}, made.wanted.definition
            for key in definitions.changed_keys(then, now):
                before[key], after[key] = then.get(key), now.get(key)
        for work in job.works:
            before[f"disks.{work.name}.virtual_bytes"] = work.before_bytes
            after[f"disks.{work.name}.virtual_bytes"] = work.virtual_bytes
    return before, after
