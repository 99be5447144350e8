# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What the guests of a call need, by what is wanted and what there is. Nothing is changed here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Missing, Refused
from .._libvirt import changes, domain
from .._libvirt import guest_definition as definitions
from .._libvirt.changes import Changes
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Plan, Seen, Wanted, plan
from . import (
    guest_checks,
    guest_disks,
    guest_jobs,
    guest_report,
    guest_seeds,
    kvm,
    libvirt,
    mounts,
    ownership,
    snapshot_records,
    templates,
)
from .domains import Known, read
from .guest_jobs import Job
from .ownership import Registry
from .system import Host


class Planner:
    """One call of the module: all of the host's guests that it names."""

    def __init__(
        self,
        host: Host,
        connection: libvirt.Connection,
        items: t.Sequence[dict[str, t.Any]],
        registry: Registry,
        *,
        adopt: bool = False,
        restart_on_change: bool = False,
        check_mode: bool = False,
    ) -> None:
        self.host = host
        self.connection = connection
        self.items = items
        self.registry = registry
        going = {item["name"]: item for item in items if item["state"] == "absent"}
        registry.leaving = set(going)
        self.adopt = adopt
        self.restart_on_change = restart_on_change
        self.check_mode = check_mode
        self.warnings = registry.warnings
        self.arch = platform.machine()
        self._kvm: t.Optional[dict[str, t.Any]] = None
        self._checks = guest_checks.Checks(connection, registry, going)
        self._away = mounts.silent()

    def decide(self) -> list[Job]:
        """What each guest needs. Raises before anything is changed when one of them cannot be had."""
        names = [item["name"] for item in self.items]
        known = read(self.connection, names)
        host_id = str(self.registry.identity["host_id"])
        seen = {name: guest_report.see(name, host_id, known.get(name)) for name in names}
        gone_away = {name: one.elsewhere for name, one in seen.items() if one.elsewhere}
        wanted = {
            item["name"]: guest_jobs.newcomer(item)
            for item in self.items
            if item["state"] != "absent" and not seen[item["name"]].managed and item["described"]
        }
        for name, holder in self.registry.locate(gone_away, wanted).items():
            history = None if name in wanted and not holder else seen[name].owner
            seen[name] = dataclasses.replace(seen[name], elsewhere=holder, owner=history)
        jobs = [self._job(item, seen[item["name"]], known.get(item["name"])) for item in self.items]
        self._checks.check_new_cards(jobs)
        self._checks.check_screens(jobs)
        guest_checks.check_below(jobs)
        guest_checks.check_leaving([job for job in jobs if job.plan.remove])
        return jobs

    def _job(self, item: dict[str, t.Any], seen: Seen, known: t.Optional[Known]) -> Job:
        job = Job(item, seen, Plan(item["name"]), known if seen.defined else None)
        options = {"adopt": self.adopt, "restart_on_change": self.restart_on_change}
        # Refusals that need no more than what is known by now come first.
        probe = plan(item, seen, Wanted({}, {}) if item["described"] else None, **options)
        if seen.elsewhere:
            if item["state"] == "absent":
                self.warnings.append(f"Guest {job.name} is at {seen.elsewhere}; it was not removed.")
            job.plan = probe
            return job
        wanted = None
        if item["described"] or probe.start or probe.remove:
            self._check_storage(job)
        if item["state"] != "absent" and item["described"]:
            with self._made_by_then(job, there=seen.defined or seen.managed):
                wanted = self._wanted(job)
            if wanted is None:
                # What it comes to is not known in detail.
                job.plan = probe
                return job
        job.plan = plan(item, seen, wanted, **options)
        if job.plan.remove:
            self._leave(job)
        if wanted is not None:
            with self._made_by_then(job):
                self._checks.check(job)
            self._warn(job)
        elif job.plan.start and job.known is not None:
            model = job.known.model
            with self._made_by_then(job):
                self._checks.check_networks(job, model)
                guest_checks.check_cds_there(job, model)
            guest_checks.check_disks(
                job.name, model, snapshot_records.tops(job.name, model, f"guests: {job.name}: disks")
            )
            self._check_kind(job, model)
            self._warn_screen(job, model)
        if job.plan.start:
            for digest in sorted(templates.below(seen.definition or {})):
                templates.check(digest, remember=not self.check_mode)
        return job

    def _check_storage(self, job: Job) -> None:
        """HostError where what the guest has, or is to have, lies on storage that does not answer. One that is only
        stopped is not looked at."""
        item, had = job.item, [] if job.known is None else job.known.files
        had += [disk["path"] for disk in (job.seen.definition or {}).get("disks", ())] + guest_disks.making(job.name)
        wanted = [item["cdrom"], item["kernel"], item["initrd"]]
        wanted += [disk["path"] for disk in item["disks"]] + [one["source"] for one in item["shared_folders"]]
        self._away.check([*had, *wanted], f"guests: {job.name}")

    def _leave(self, job: Job) -> None:
        """What goes with a guest that is removed, and what stays."""
        model = None if job.known is None else job.known.model
        made = [
            guest_disks.place_now(self.connection, job.name, disk, model, f"guests: {job.name}: disks")
            for disk in (job.seen.definition or {}).get("disks", ())
            if disk["made"]
        ]
        # One in a pool, of a guest that libvirt does not know any more, say.
        self._away.check(made, f"guests: {job.name}")
        begun = [path for path in guest_disks.making(job.name) if path not in made and os.path.lexists(path)]
        job.made_disks = [*made, *begun, *snapshot_records.made(job.name, made)]
        # Without a definition it is known only of those that were being made.
        if job.item["delete_disks"]:
            job.gone_disks = job.made_disks if job.seen.definition is not None else begun
        stay = guest_disks.staying(job.name, job.gone_disks)
        if not stay:
            return
        guest_disks.check_keep(job.name)
        if job.item["delete_disks"]:
            self.warnings.append(
                f"Guest {job.name} leaves files in its directory of which it is not known that they were made for it; "
                f"they are kept below {paths.KEPT_DISKS}: {', '.join(map(os.path.basename, stay))}."
            )

    @contextlib.contextmanager
    def _made_by_then(self, job: Job, *, there: bool = False) -> t.Iterator[None]:
        """In check mode a guest may lack what the tasks before would have made. Of one that is ``there`` that is an
        error: without it nobody can say what changes."""
        try:
            yield
        except Missing as error:
            if there or not self.check_mode:
                raise
            what = error.message.removeprefix(f"guests: {job.name}: ")
            self.warnings.append(f"Guest {job.name} would be refused, unless a task before makes what it lacks: {what}")

    def _wanted(self, job: Job) -> Wanted:
        """What the item means on this host, and what of it is not so yet."""
        item, seen, where = job.item, job.seen, f"guests: {job.name}"
        before = seen.definition or {}
        if job.known is not None:
            _keep_identity(item, before, job.known.model, where)
        templates = self._templates(item, before, where)
        job.seed = guest_seeds.wanted(self.host, item, self.registry.overlay)
        if job.seed:
            self.warnings.extend(f"Guest {job.name}: {warning}" for warning in job.seed.warnings)
        definition = definitions.definition_of(item, templates=templates, seeded=job.seed.record if job.seed else None)
        stored = None if job.known is None else job.known.model
        models = [] if job.known is None else job.known.models
        known_disks = {} if seen.definition is None else {one["name"]: one for one in before.get("disks", ())}
        tops = snapshot_records.tops(job.name, stored, f"{where}: disks") if seen.managed else {}
        disks: dict[str, dict[str, t.Any]] = {}
        works = []
        again, making = ownership.begun(job.name, ownership.GUEST), guest_disks.making(job.name)
        for disk in definition["disks"]:
            name, at = disk["name"], f"{where}: disks: {disk['name']}"
            path = guest_disks.place_of(self.connection, job.name, disk, at)
            old = known_disks.get(name)
            was = guest_disks.place_now(self.connection, job.name, old, stored, at) if old else path
            # That of its pool, say.
            self._away.check([path, was], at)
            elsewhere = was != path
            if elsewhere and name in tops:
                raise Refused(f"{at}: the disk is {was}, and has snapshots.", hint="Delete them first.")
            if elsewhere and not os.path.lexists(path):
                raise InputError(
                    f"{at}: the disk is {was}, and there is no file {path}.", hint="Move it there first, guest stopped."
                )
            # One that was moved is ours still; not one that was there before.
            moved = elsewhere and not os.path.lexists(was)
            new = old is None or (elsewhere and not moved)
            had = old["format"] if old and not new else guest_disks.format_of(path, models)
            if had not in ("", disk["format"]):
                guest_disks.check_format(path, disk["format"], at)
            if new and disk["pool"]:
                guest_disks.check_pool(self.connection, disk["pool"], at)
            top, below = (path, None) if new else tops.get(name, (path, None))
            if old and stored is not None and seen.managed:
                there = stored["disks"].get(name, {"path": top})["path"]
                if there not in (path, was, top) and os.path.lexists(there):
                    raise snapshot_records.elsewhere(job.name, name, there, top)
            above = "" if old is not None or disk["read_only"] else guest_disks.above(path, models)
            if above:
                # A snapshot that its owner has made by other means, say.
                raise snapshot_records.elsewhere(job.name, name, above, path)
            digest = templates.get(name, "") if old is None else ""
            if stored is not None and old is None and name in stored["disks"] and (seen.managed or again):
                # Its definition was lost, or taking it over was cut off, and it is there: it is what it is.
                new = stored["disks"][name]["path"] != path
            ours = path in making and path not in guest_jobs.given(stored or domain.EMPTY)
            kind = "qcow2" if top != path else disk["format"]
            # What it reads already it may go on reading.
            told = guest_disks.told(top, kind, models, adopted=not seen.managed)
            options = {"new": new, "ours": ours, "remember": not self.check_mode}
            work, looked = guest_disks.look(disk, path, top, digest, at, known=told, **options)
            if looked is None:
                same = stored is not None and name in stored["disks"] and stored["disks"][name]["path"] == top
                # Of what libvirt was not told its file tells: it goes by that, too, until it is written down.
                same = same and stored is not None and "open" not in stored["disks"][name]
                looked = stored["disks"][name]["backing"] if stored is not None and same else below
                if looked is not None and same and top == path and not seen.active:
                    rebased = guest_disks.below_now(path, disk["format"], looked, at)
                    looked = looked if rebased is None else rebased
            if top != path and looked and not seen.active:
                guest_disks.check_top(top, looked, at)
            if looked is None:
                looked = guest_disks.backing_of(top, kind, at, told)
            disk["made"] = bool(old["made"]) and not new if old else work is not None and work.kind != "grow"
            if old is None and path in making:
                # By a run that was cut off before it could write down more.
                disk["made"] = True
            if old and disk["template_digest"]:
                base = paths.template_disk(disk["template_digest"])
                asked, disk["linked"] = disk["linked"], any(one["path"] == base for one in looked)
                if disk["linked"] and not asked:
                    self.warnings.append(
                        f"Guest {job.name} has a disk {name} that rests on its template still: linked says how a new "
                        "one is made. To make it a full copy, stop the guest and flatten it (cnvm.platform.disk_image)."
                    )
            disks[name] = {"path": top, "backing": looked, "format": kind}
            if work is not None:
                works.append(work)
        gone = {}
        for name, old in known_disks.items():
            if name not in disks:
                if name in tops:
                    raise Refused(f"{where}: the disk {name} has snapshots.", hint="Delete them first.")
                gone[name] = guest_disks.place_now(self.connection, job.name, old, stored, where)
                self.warnings.append(f"Guest {job.name} loses the disk {name}; its file {gone[name]} is kept.")
        used = {each["path"] for disk in disks.values() for each in (disk, *disk["backing"])}
        for name, disk in (stored or domain.EMPTY)["disks"].items():
            # Of one that is taken over, or that somebody has added by other means.
            if name in known_disks or not disk["path"] or disk["path"] in used:
                continue
            if not disk["path"].startswith("/"):
                self.warnings.append(
                    f"Guest {job.name} loses the disk {name} ({disk['path']}): no option describes one that is no file."
                )
            elif os.path.lexists(disk["path"]):
                self.warnings.append(f"Guest {job.name} loses the disk {name}; its file {disk['path']} is kept.")
        added = {name: disk["path"] for name, disk in disks.items() if known_disks and name not in known_disks}
        guest_disks.check_buses(gone, added, where, active=seen.active)
        model = definitions.model_of(
            definition,
            kind=self._kind(job, stored),
            arch=self.arch,
            disks=disks,
            overlay=self.registry.overlay,
            log=paths.guest_log(job.name),
            seed_path=paths.guest_seed(job.name) if job.seed else "",
            password=item["graphics"].get("password", ""),
        )
        job.works = tuple(works)
        found = (
            Changes() if stored is None else changes.compare(model, stored, job.known.live_model if job.known else None)
        )
        written = [work.words for work in works]
        stale = used.intersection(making) or definitions.digest_of(definition) != definitions.digest_of(before)
        if stale and seen.managed and not works and not found.stored:
            # A change that was cut off before it could write down what is so by now.
            written.append("define")
        there = os.path.lexists(paths.guest_seed(job.name))
        if job.seed and job.seed.changed:
            written.append("write seed")
        elif there and not job.seed and not seen.active and not (job.known is not None and job.known.saved):
            written.append("remove seed")
        return Wanted(definition, model, found, tuple(written))

    def _templates(self, item: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any], where: str) -> dict[str, str]:
        """The digests of the templates of its disks. One that was made of a template stays with it."""
        known = {disk["name"]: disk for disk in before.get("disks", ())}
        found = {}
        for disk in item["disks"]:
            name, word = disk["name"], disk["template"]
            old = known.get(name)
            if old is not None and old.get("template_digest"):
                digest = templates.resolve(word) if word else ""
                if word not in ("", old["template"], old["template_digest"]) and digest != old["template_digest"]:
                    raise Refused(
                        f"{where}: disks: {name} was made of the template {old['template']}, not of {word}.",
                        hint="Remove the guest with its disks first, or give it another name.",
                    )
                if digest and digest != old["template_digest"]:
                    self.warnings.append(
                        f"Guest {item['name']} stays with the template that its disk {name} was made of; "
                        f"{word} is another one now."
                    )
                found[name] = str(old["template_digest"])
            elif word and old is not None:
                raise Refused(
                    f"{where}: disks: {name} was not made of a template, so not of {word}.",
                    hint="Leave template out, or give the new disk another name.",
                )
            elif word:
                found[name] = templates.require(word, f"{where}: disks: {name}")
        return found

    def _kind(self, job: Job, stored: t.Optional[Model]) -> str:
        """How the guest is run: the domain's type. Of one that is there it is looked at again when it is started."""
        wanted = job.item["accelerator"]
        if wanted == "tcg":
            return "qemu"
        starts = not job.seen.active and job.item["state"] in ("running", "paused")
        if stored is not None and not starts and stored["type"] in ("kvm", "qemu") and wanted == "auto":
            return str(stored["type"])
        found = self._probe()
        if found["usable"]:
            return "kvm"
        if wanted == "kvm":
            if not starts and stored is not None and stored["type"] == "kvm":
                return "kvm"
            raise HostError(
                f"Guest {job.name!r} is to run with KVM, which this host cannot: {found['reason']}.",
                hint="Set accelerator: auto to let it be emulated, which is slow.",
            )
        return "qemu"

    def _check_kind(self, job: Job, stored: Model) -> None:
        """Of one that is started as libvirt has it."""
        wanted = (job.seen.definition or {}).get("accelerator", "auto")
        if wanted == "tcg" or stored["type"] not in ("kvm", "qemu"):
            return
        found = self._probe()
        if found["usable"]:
            return
        if stored["type"] == "kvm":
            raise HostError(
                f"Guest {job.name!r} would run with KVM, which this host cannot: {found['reason']}.",
                hint="Run it with its description (memory_mib and all), not with its state alone. With "
                "accelerator: auto it is emulated then, which is slow.",
            )
        self._warn_emulated(job, found)

    def _probe(self) -> dict[str, t.Any]:
        if self._kvm is None:
            self._kvm = kvm.probe()
        return self._kvm

    def _warn_emulated(self, job: Job, found: t.Mapping[str, t.Any]) -> None:
        why = f": {found['reason']}" if found["reason"] else ""
        self.warnings.append(f"Guest {job.name} is emulated, which is slow; KVM cannot be used{why}.")

    def _warn(self, job: Job) -> None:
        wanted = t.cast(Wanted, job.plan.wanted)
        model, item = wanted.model, job.item
        emulated = model["type"] == "qemu" and item["accelerator"] == "auto"
        # None for one that is restarted for a change: it stays as it was.
        found = self._kvm
        if emulated and found is not None and not found["usable"] and (job.plan.create or job.plan.start):
            self._warn_emulated(job, found)
        live = job.known.live_model if job.known is not None and not job.plan.stop else None
        asked = {*wanted.changes.reasons, *(step.key for step in wanted.changes.steps)}
        kept = changes.kept_memory(model, live) if live is not None and "memory_mib" not in asked else ""
        if kept:
            self.warnings.append(f"Guest {job.name} {kept}")
        if job.plan.adopt and job.known is not None:
            self.warnings.extend(
                f"Guest {job.name} has {part}, which goes past libvirt: it is kept as it is, and nobody looks at it."
                for part in domain.passed_through(job.known.xml)
            )
            self._warn_adopted(job.name, model, job.known.model)
        self._warn_screen(job, model)

    def _warn_adopted(self, name: str, wanted: Model, had: Model) -> None:
        """Of what is not described there are defaults, with which a guest that is taken over may be lost."""
        for key, then in (("machine", "its disks and cards may have other names"), ("firmware", "it may not boot")):
            if not domain.alike(key, wanted[key], had[key]):
                self.warnings.append(
                    f"Guest {name} has the {key} {had[key]}, and gets {wanted[key]} when it is started anew: {then} "
                    f"then. Say {key}: {had[key]} to keep it."
                )

    def _warn_screen(self, job: Job, model: Model) -> None:
        listen = model["graphics"].get("listen")
        if listen in ("0.0.0.0", "::"):
            self.warnings.append(f"Guest {job.name}: everybody who reaches this host reaches its screen ({listen}).")
        if listen and listen not in ("127.0.0.1", "::1") and not model["graphics"]["password"]:
            self.warnings.append(f"Guest {job.name}: its screen on {listen} has no password.")
        more = model["graphics"].get("more")
        if more:
            self.warnings.append(
                f"Guest {job.name} has more screens than the one of its description: {more}. Run it with its "
                "description (graphics), and they go."
            )


def _keep_identity(item: dict[str, t.Any], before: t.Mapping[str, t.Any], model: Model, where: str) -> None:
    """Let a guest that is there keep its UUID and its cards their MACs, where the user has named none.

    One that was taken over has others than its name stands for.
    """
    name = item["name"]
    if item["uuid"] != model["uuid"]:
        if item["uuid"] != definitions.uuid_of(name):
            raise Refused(
                f"{where}: uuid: the guest has {model['uuid']}.", hint="A guest keeps its UUID. Remove it first."
            )
        item["uuid"] = model["uuid"]
    macs = [card["mac"] for card in before["networks"]] if before else list(model["networks"])
    free = [at for at, card in enumerate(item["networks"]) if card["mac"] == definitions.mac_of(name, at)]
    taken = {card["mac"] for at, card in enumerate(item["networks"]) if at not in free}
    kept = {at: macs[at] for at in free if at < len(macs) and macs[at] not in taken}
    taken.update(kept.values())
    number = len(item["networks"])
    for at in free:
        mac = kept.get(at, definitions.mac_of(name, at))
        # That of its place may be the one that another card has kept.
        while at not in kept and mac in taken:
            mac, number = definitions.mac_of(name, number), number + 1
        item["networks"][at]["mac"] = mac
        taken.add(mac)
