# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The guests of a host: brought to what is wanted one by one, started and stopped together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, Refused
from .._libvirt import changes, domain, errors, guest_plan, xml
from .._libvirt import guest_definition as definitions
from .._libvirt.changes import Changes, Step
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Plan, Seen, Wanted, plan
from .._libvirt.xml import Element
from .._net.endpoint import check_address
from . import (
    files,
    guest_disks,
    guest_report,
    guest_seeds,
    guest_watch,
    kvm,
    libvirt,
    ownership,
    snapshot_records,
    templates,
)
from .domains import Known, read, xml_of
from .guest_disks import Work
from .ownership import Newcomer, Registry
from .system import Host

# How many guests are started at a time: each costs libvirt a process, and QEMU a moment of a CPU.
_STARTS_AT_ONCE = 4
_POLL_S = 0.1
# A guest that has just begun to boot does not hear the power button.
_PRESS_AGAIN_S = 10
# What a guest's kernel may take to let go of a device, or to give memory back: long for an emulated one on a busy host.
_UNPLUG_S = 20.0
_BALLOON_S = 20.0
# Refusals of libvirt that mean: not while it runs.
_NOT_LIVE = (
    errors.CONFIG_UNSUPPORTED,
    errors.OPERATION_UNSUPPORTED,
    errors.OPERATION_INVALID,
    errors.OPERATION_FAILED,
    errors.INTERNAL_ERROR,
    errors.OPERATION_TIMEOUT,
    errors.AGENT_UNRESPONSIVE,
)


# --------------------------------------------------------------------------------------------------------------------
# Bringing them to what is wanted
# --------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Job:
    """One guest of a call: what is wanted, what there is, what is to be done."""

    item: dict[str, t.Any]
    seen: Seen
    plan: Plan
    known: t.Optional[Known] = None
    works: tuple[Work, ...] = ()
    seed: t.Optional[guest_seeds.Seed] = None
    # What could not be done while it runs, found out by trying.
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    # Guests that are removed in the same call, and of which it gets the address, a MAC or a disk.
    follows: set[str] = dataclasses.field(default_factory=set)
    # Of one that is removed: the files of the disks that were made for it, and what is kept.
    made_disks: list[str] = dataclasses.field(default_factory=list)
    kept_disks: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.item["name"])


class Batch:
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
    ) -> None:
        self.host = host
        self.connection = connection
        self.items = items
        self.registry = registry
        registry.leaving = {item["name"] for item in items if item["state"] == "absent"}
        self.adopt = adopt
        self.restart_on_change = restart_on_change
        self.warnings = registry.warnings
        self.arch = platform.machine()
        self._kvm: t.Optional[dict[str, t.Any]] = None
        self._all: t.Optional[dict[str, Known]] = None
        # What libvirt was asked about a machine and its CPU, and has no objection to.
        self._machines: set[tuple[str, ...]] = set()

    # -- deciding ---------------------------------------------------------------------------------------------------
    def decide(self) -> list[Job]:
        """What each guest needs. Raises before anything is changed when one of them cannot be had."""
        names = [item["name"] for item in self.items]
        known = read(self.connection, names)
        host_id = str(self.registry.identity["host_id"])
        seen = {name: guest_report.see(name, host_id, known.get(name)) for name in names}
        gone_away = {name: one.elsewhere for name, one in seen.items() if one.elsewhere}
        wanted = {
            item["name"]: _newcomer(item)
            for item in self.items
            if item["state"] != "absent" and not seen[item["name"]].managed and item["described"]
        }
        for name, holder in self.registry.locate(gone_away, wanted).items():
            history = None if name in wanted and not holder else seen[name].owner
            seen[name] = dataclasses.replace(seen[name], elsewhere=holder, owner=history)
        jobs = [self._job(item, seen[item["name"]], known.get(item["name"])) for item in self.items]
        self._check_new_cards(jobs)
        return jobs

    def _job(self, item: dict[str, t.Any], seen: Seen, known: t.Optional[Known]) -> Job:
        job = Job(item, seen, Plan(item["name"]), known if seen.defined else None)
        if known is not None and not seen.defined:
            job.known = None
        options = {"adopt": self.adopt, "restart_on_change": self.restart_on_change}
        # Refusals that need no more than what is known by now come first.
        probe = plan(item, seen, Wanted({}, {}) if item["described"] else None, **options)
        if seen.elsewhere:
            if item["state"] == "absent":
                self.warnings.append(f"Guest {job.name} is at {seen.elsewhere}; it was not removed.")
            job.plan = probe
            return job
        wanted = None
        if item["state"] != "absent" and item["described"]:
            wanted = self._wanted(job)
        job.plan = plan(item, seen, wanted, **options)
        if job.plan.remove:
            if not item["delete_disks"]:
                guest_disks.check_keep(job.name)
            model = None if job.known is None else job.known.model
            job.made_disks = [
                guest_disks.place_now(self.connection, job.name, disk, model, f"guests: {job.name}: disks")
                for disk in (seen.definition or {}).get("disks", ())
                if disk["made"]
            ]
            job.made_disks += filter(os.path.lexists, ownership.making(job.name, ownership.GUEST))
        if wanted is not None:
            self._check(job)
            self._warn(job)
        elif job.plan.start and job.known is not None:
            self._check_networks(job, job.known.model)
            _check_disks(job.name, job.known.model, snapshot_records.names(job.name))
        return job

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
        known_disks = {} if seen.definition is None else {one["name"]: one for one in before.get("disks", ())}
        tops = snapshot_records.tops(job.name, stored) if seen.managed and stored is not None else {}
        disks: dict[str, dict[str, t.Any]] = {}
        works = []
        again, making = ownership.begun(job.name, ownership.GUEST), ownership.making(job.name, ownership.GUEST)
        for disk in definition["disks"]:
            name, at = disk["name"], f"{where}: disks: {disk['name']}"
            path = guest_disks.place_of(self.connection, job.name, disk, at)
            old = known_disks.get(name)
            was = guest_disks.place_now(self.connection, job.name, old, stored, at) if old else path
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
            if old and not new and old["format"] != disk["format"]:
                guest_disks.check_format(path, disk["format"], at)
            top, below = (path, None) if new else tops.get(name, (path, None))
            digest = templates.get(name, "") if old is None else ""
            if stored is not None and old is None and name in stored["disks"] and (seen.managed or again):
                # Its definition was lost, or taking it over was cut off, and it is there: it is what it is.
                new = stored["disks"][name]["path"] != path
            own = not disk["path"] and path.startswith(f"{paths.WORKLOADS}/")
            ours = again and (own or path in making) and path not in _given(stored or domain.EMPTY)
            work, looked = guest_disks.look(disk, path, top, digest, at, new=new, ours=ours)
            if looked is None:
                same = stored is not None and name in stored["disks"] and stored["disks"][name]["path"] == top
                looked = stored["disks"][name]["backing"] if stored is not None and same else below
                if looked is not None and same and top == path and not seen.active:
                    rebased = guest_disks.below_now(path, disk["format"], looked, at)
                    looked = looked if rebased is None else rebased
            if looked is None:
                looked = guest_disks.backing_of(top, "qcow2" if top != path else disk["format"], at)
            disk["made"] = bool(old["made"]) and not new if old else work is not None and work.kind != "grow"
            if old and disk["template_digest"]:
                base = paths.template_disk(disk["template_digest"])
                asked, disk["linked"] = disk["linked"], any(one["path"] == base for one in looked)
                if disk["linked"] and not asked:
                    self.warnings.append(
                        f"Guest {job.name} has a disk {name} that rests on its template still: linked says how a new "
                        "one is made. To make it a full copy, stop the guest and flatten it (cnvm.platform.disk_image)."
                    )
            disks[name] = {"path": top, "backing": looked, "format": "qcow2" if top != path else disk["format"]}
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
            if name not in known_disks and disk["path"] not in used and os.path.lexists(disk["path"]):
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
        if self._kvm is None:
            self._kvm = kvm.probe()
        if self._kvm["usable"]:
            return "kvm"
        if wanted == "kvm":
            if not starts and stored is not None and stored["type"] == "kvm":
                return "kvm"
            raise HostError(
                f"Guest {job.name!r} is to run with KVM, which this host cannot: {self._kvm['reason']}.",
                hint="Set accelerator: auto to let it be emulated, which is slow.",
            )
        return "qemu"

    def _warn(self, job: Job) -> None:
        wanted = t.cast(Wanted, job.plan.wanted)
        model, item = wanted.model, job.item
        emulated = model["type"] == "qemu" and item["accelerator"] == "auto"
        # None for one that is restarted for a change: it stays as it was.
        found = self._kvm
        if emulated and found is not None and not found["usable"] and (job.plan.create or job.plan.start):
            why = f": {found['reason']}" if found["reason"] else ""
            self.warnings.append(f"Guest {job.name} is emulated, which is slow; KVM cannot be used{why}.")
        listen = model["graphics"].get("listen")
        if listen in ("0.0.0.0", "::"):
            self.warnings.append(f"Guest {job.name}: everybody who reaches this host reaches its screen ({listen}).")
        if listen and listen not in ("127.0.0.1", "::1") and not model["graphics"]["password"]:
            self.warnings.append(f"Guest {job.name}: its screen on {listen} has no password.")

    # -- checking ---------------------------------------------------------------------------------------------------
    def _check(self, job: Job) -> None:
        """What libvirt would find out halfway, or not at all; only of what is new."""
        wanted = t.cast(Wanted, job.plan.wanted)
        model, where = wanted.model, f"guests: {job.name}"
        stored = job.known.model if job.known is not None else domain.EMPTY
        before = job.seen.definition or {}
        for key in ("kernel", "initrd"):
            if model[key] and model[key] != stored[key] and not os.path.isfile(model[key]):
                raise InputError(f"{where}: {key}: there is no file {model[key]} on this host.", hint="Copy it there.")
        cdrom = job.item["cdrom"]
        if cdrom and cdrom != before.get("cdrom") and not os.path.exists(cdrom):
            raise InputError(f"{where}: cdrom: there is no file {cdrom} on this host.", hint="Copy it there first.")
        for tag, folder in model["shared_folders"].items():
            if stored["shared_folders"].get(tag) != folder and not os.path.isdir(folder["source"]):
                raise InputError(
                    f"{where}: shared_folders: there is no directory {folder['source']} on this host.",
                    hint="Create it first.",
                )
        self._check_machine(job, model, stored)
        self._check_variables(job, model, stored)
        address = wanted.definition["address"]
        if address and address != before.get("address"):
            if self.registry.overlay is None:
                raise InputError(f"{where}: this host has no overlay network.", hint="Run the role overlay.")
            check_address(address, self.registry.overlay, f"{where}: networks: address")
            for name in self.registry.leaving:
                if (files.read_json(paths.definition_file(name)) or {}).get("address") == address:
                    job.follows.add(name)
            if job.seen.managed:
                self.registry.check_address(job.name, address)
        if job.plan.start or model["networks"] != stored["networks"]:
            self._check_networks(job, model)
        self._check_unique(job, model, stored)

    def _check_machine(self, job: Job, model: Model, stored: Model) -> None:
        """A machine or a CPU that there is not is said by libvirt only when the guest is started."""
        if all(domain.alike(key, model[key], stored[key]) for key in ("type", "arch", "machine", "cpu")):
            return
        where, cpu = f"guests: {job.name}", model["cpu"]
        text = xml.document(t.cast(Element, domain.build(model).find("cpu")))
        asked = (model["type"], model["arch"], model["machine"], text)
        if asked in self._machines:
            return
        try:
            with libvirt.doing("make a guest of that kind"):
                known = self.connection.getCPUModelNames(model["arch"])
                if known and cpu["model"] not in (*domain.MODES, *known):
                    raise InputError(
                        f"{where}: cpu: model: libvirt knows no CPU model {cpu['model']!r}.",
                        hint=f"Leave it out, or see 'virsh cpu-models {model['arch']}'.",
                    )
                self.connection.compareHypervisorCPU(None, model["arch"], model["machine"] or None, model["type"], text)
        except libvirt.LibvirtError as error:
            # Any other refusal says nothing of the guest: libvirt does not know the CPUs of all architectures.
            machine = error.code == errors.INVALID_ARG and model["machine"] in error.message
            if machine or error.code == errors.INTERNAL_ERROR:
                option = "machine" if machine else "cpu"
                raise InputError(f"{where}: {option}: {error.message}", hint="Leave it out, or correct it.") from None
        self._machines.add(asked)

    def _check_variables(self, job: Job, model: Model, stored: Model) -> None:
        """Refused where UEFI would go on with variables that say otherwise: libvirt makes them once, with the keys of
        secure boot or without, and what the guest has added since (what it boots) is not ours to throw away."""
        before = stored if job.known is not None else job.seen.definition or stored
        if model["firmware"] != "uefi" or model["secure_boot"] == before["secure_boot"]:
            return
        own = xml.text_of(job.known.xml, "os/nvram") if job.known is not None else ""
        for path in (own, *paths.guest_nvram(job.name)):
            if path and os.path.exists(path):
                raise Refused(
                    f"guests: {job.name}: secure_boot: {path} has the guest's UEFI variables from before.",
                    hint="Stop the guest, move that file away (its boot entries are in it), and run it again: libvirt "
                    "makes a new one.",
                )

    def _check_networks(self, job: Job, model: Model) -> None:
        for card in model["networks"].values():
            where, source = f"guests: {job.name}: networks", card["source"]
            if card["type"] == "bridge" and not os.path.isdir(f"/sys/class/net/{source}/bridge"):
                raise InputError(
                    f"{where}: this host has no bridge {source!r}.", hint="See 'ip link show type bridge'."
                )
            if card["type"] == "network":
                network = libvirt.network(self.connection, source)
                if network is None:
                    known = ", ".join(libvirt.networks(self.connection)) or "none"
                    raise InputError(
                        f"{where}: this host has no network {source!r}.",
                        hint=f"It has: {known}. Make it with cnvm.platform.network.",
                    )
                with libvirt.doing(f"look at the network {source!r}"):
                    active = bool(network.isActive())
                if not active and (job.plan.start or job.seen.active):
                    raise HostError(
                        f"{where}: the network {source!r} is not active.",
                        hint="Start it with cnvm.platform.network (state: active).",
                    )

    def _check_unique(self, job: Job, model: Model, stored: Model) -> None:
        """Refused where another domain of this host has its UUID, a MAC or a disk."""
        new_macs = set(model["networks"]) - set(stored["networks"])
        writes = {disk["path"] for disk in model["disks"].values() if not disk["read_only"]}
        new_paths = writes - {disk["path"] for disk in stored["disks"].values() if not disk["read_only"]}
        if not new_macs and not new_paths and job.known is not None:
            return
        for path in sorted(new_paths):
            if os.path.realpath(path).startswith(f"{os.path.realpath(paths.TEMPLATES)}/"):
                raise Refused(
                    f"The disk {path} of guest {job.name!r} is a template's, which others rest on.",
                    hint="Give the template's name as template, and no path of its own.",
                )
        if self._all is None:
            self._all = read(self.connection)
        going = {item["name"]: item for item in self.items if item["state"] == "absent"}
        for name, other in self._all.items():
            if name == job.name:
                continue
            if name in going:
                self._check_stays(job, new_paths, other.model, going[name])
            for theirs in (other.model, other.live_model or domain.EMPTY):
                taken = new_macs & set(theirs["networks"])
                # What lies below a disk (a snapshot, say) is as much a part of it.
                theirs_paths = {os.path.realpath(path) for path in _given(theirs)}
                paths_taken = {path for path in new_paths if os.path.realpath(path) in theirs_paths}
                if name in going:
                    job.follows.update([name] if taken or paths_taken else [])
                    continue
                if taken:
                    raise Refused(
                        f"The MAC {min(taken)} of guest {job.name!r} is that of {name!r}.", hint="Choose another one."
                    )
                if paths_taken:
                    raise Refused(
                        f"The disk {min(paths_taken)} of guest {job.name!r} is that of {name!r}.",
                        hint="Two guests that write to one disk destroy it.",
                    )
                if job.known is None and theirs["uuid"] == model["uuid"]:
                    raise Refused(
                        f"The UUID {model['uuid']} of guest {job.name!r} is that of {name!r}.", hint="Remove that one."
                    )

    def _check_new_cards(self, jobs: t.Sequence[Job]) -> None:
        """Refused where a card that a guest of this host is to get has the MAC of a guest of another host."""
        found = {}
        for job in jobs:
            if job.seen.managed and job.plan.wanted is not None:
                had = [card["mac"] for card in (job.seen.definition or {}).get("networks", ())]
                new = [mac for mac in job.plan.wanted.model["networks"] if mac not in had]
                if new:
                    found[job.name] = Newcomer(macs=tuple(new))
        self.registry.check_identities(found)

    def _check_stays(self, job: Job, new_paths: set[str], theirs: Model, going: t.Mapping[str, t.Any]) -> None:
        """Refused where a disk is that of a guest which is removed in the same call, and does not stay where it is."""
        name = going["name"]
        home = f"{os.path.realpath(paths.guest_disks_dir(name))}/"
        definition = files.read_json(paths.definition_file(name)) or {}
        deleted = {
            os.path.realpath(guest_disks.place_now(self.connection, name, disk, theirs, f"guests: {name}: disks"))
            for disk in definition.get("disks", ())
            if going["delete_disks"] and disk["made"]
        }
        for path in sorted(new_paths):
            real = os.path.realpath(path)
            if real in deleted or real.startswith(home):
                raise Refused(
                    f"The disk {path} of guest {job.name!r} is that of {name!r}, and goes with it.",
                    hint="Remove that guest in a run of its own; it says where its disks are kept.",
                )

    # -- doing ------------------------------------------------------------------------------------------------------
    def apply(self, jobs: t.Sequence[Job]) -> None:
        """Do what was decided. Each guest is locked while it is changed; a move of it is refused meanwhile.

        One that does not stop or start keeps no other one from what is wanted of it.
        """
        # Removed first: another one may get what it has.
        todo = sorted((job for job in jobs if job.plan.changed), key=lambda job: not job.plan.remove)
        with contextlib.ExitStack() as held:
            for name in sorted(job.name for job in todo):
                held.enter_context(files.lock(paths.lock_file(name), f"changing guest {name!r}"))
            self.see_again(todo)
            fresh = [job for job in todo if job.plan.create or job.plan.adopt]
            fresh = [job for job in fresh if not (job.seen.managed and job.seen.owner)]
            claimed = {job.name: t.cast(Wanted, job.plan.wanted) for job in fresh}
            self.registry.claim(
                {
                    job.name: _newcomer(claimed[job.name].definition)._replace(
                        given=_given(claimed[job.name].model, job.works),
                        making=[path for path in _made(job.works) if not path.startswith(f"{paths.WORKLOADS}/")],
                    )
                    for job in fresh
                }
            )
            try:
                failed = self.stop([job for job in todo if job.plan.stop])
                waits = [job for job in todo if job.name not in failed and job.follows & set(failed)]
                failed.update({job.name: failed[min(job.follows & set(failed))] for job in waits})
                self.start([job for job in waits if job.plan.restart])
                todo = [job for job in todo if job.name not in failed]
                for job in todo:
                    if job.plan.remove:
                        self.remove(job)
                    elif job.plan.create:
                        self.create(job, fresh=job in fresh)
                    elif job.plan.wanted is not None:
                        self.change(job, fresh=job in fresh)
                    if job.plan.autostart is not None:
                        self.autostart(job)
            except BaseException:
                self.registry.give_up(lambda name: self.undo(next(job for job in fresh if job.name == name)))
                # What was stopped for its change alone runs on as it is.
                self.start([job for job in todo if job.plan.restart])
                raise
            # An adoption that was not begun.
            self.registry.give_up()
            failed.update(self.stop(self._to_restart(todo)))
            todo = [job for job in todo if job.name not in failed]
            failed.update(self.start([job for job in todo if job.plan.start]))
            for job in todo:
                if job.plan.resume or (job.plan.pause and not job.plan.start):
                    self.pause_or_resume(job)
        if failed:
            error = next(iter(failed.values()))
            error.details["guests"] = list(failed)
            raise error
        self.wait(jobs)

    def _to_restart(self, jobs: t.Sequence[Job]) -> list[Job]:
        """Those that run, and of which trying has shown that they must be restarted for a change, where they may."""
        found = []
        for job in jobs:
            if not (self.restart_on_change and job.reasons and job.seen.state == guest_plan.RUNNING):
                continue
            model = t.cast(Wanted, job.plan.wanted).model
            # With more memory than it is to have it is started, too, and has to give it back.
            in_vain = {"memory_mib"} if model["max_memory_mib"] > model["memory_mib"] else set()
            if set(job.reasons) - in_vain:
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
            if not same or seen.moving:
                raise Refused(
                    f"Guest {job.name!r} was changed by somebody else a moment ago; nothing is changed.",
                    hint="Run it again.",
                )

    def undo(self, job: Job) -> None:
        """End what of a creation that failed outlives its directory."""
        if job.plan.adopt:
            return
        with contextlib.suppress(CnvmError):
            each = libvirt.domain(self.connection, job.name)
            if each is not None:
                self._undefine(each, job.name)
        home = f"{paths.workload_dir(job.name)}/"
        for work in job.works:
            if work.kind != "grow" and not work.path.startswith(home):
                files.remove_file(work.path)

    def create(self, job: Job, *, fresh: bool) -> None:
        """Disks, seed, domain, records. It becomes ours with the owner record, last."""
        wanted = t.cast(Wanted, job.plan.wanted)
        leftover = libvirt.domain(self.connection, job.name)
        if leftover is not None:
            self._undefine(leftover, job.name)
        guest_disks.make_home(job.name)
        for work in job.works:
            guest_disks.do(self.host, work)
        self._seed(job)
        self._define(job, domain.build(wanted.model))
        self._drop_seed(job)
        files.write_json(paths.definition_file(job.name), wanted.definition)
        if fresh:
            self.registry.own(job.name, wanted.definition["uuid"])

    def change(self, job: Job, *, fresh: bool) -> None:
        """Take over a new definition: in the stored XML, and in the running guest what it can take over."""
        wanted = t.cast(Wanted, job.plan.wanted)
        known = t.cast(Known, job.known)
        guest_disks.make_home(job.name)
        running = job.seen.active and not job.plan.stop
        made = []
        try:
            for work in job.works:
                if work.kind == "grow" and running:
                    self._grow_live(job, work)
                else:
                    guest_disks.do(self.host, work)
                    made += [work.path] if work.kind != "grow" else []
            self._seed(job)
            if job.plan.define:
                self._define(job, domain.patch(known.xml, wanted.model))
        except BaseException:
            # No guest has them, and the next run would take them for somebody's.
            for path in made:
                files.remove_file(path)
            raise
        self._drop_seed(job)
        files.write_json(paths.definition_file(job.name), wanted.definition)
        if running:
            for step in wanted.changes.steps:
                self._step(job, known, step)
        if fresh:
            self.registry.own(job.name, wanted.definition["uuid"])

    def _define(self, job: Job, root: Element) -> None:
        with libvirt.doing(f"define the guest {job.name!r}"):
            each = self.connection.defineXML(xml.document(root))
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

    # -- the running guest ------------------------------------------------------------------------------------------
    def _grow_live(self, job: Job, work: Work) -> None:
        library = libvirt.library()
        live = t.cast(Known, job.known).live_model or domain.EMPTY
        if live["disks"].get(work.name, {}).get("path") != work.path:
            # It has that file only when it is started again.
            guest_disks.do(self.host, work)
            return
        with libvirt.doing(f"let the disk {work.name} of the guest {job.name!r} grow"):
            t.cast(Known, job.known).domain.blockResize(
                work.name, work.virtual_bytes, library.VIR_DOMAIN_BLOCK_RESIZE_BYTES
            )

    def _step(self, job: Job, known: Known, step: Step) -> None:
        """One change of a running guest. What cannot be done becomes a reason to restart it."""
        try:
            with libvirt.doing(f"change {step.key} of the running guest {job.name!r}"):
                refused = self._do_step(known, step)
        except libvirt.LibvirtError as error:
            if error.code not in _NOT_LIVE:
                raise
            refused = error.message
        if refused:
            job.reasons[step.key] = refused

    def _do_step(self, known: Known, step: Step) -> str:
        library, each = libvirt.library(), known.domain
        live = library.VIR_DOMAIN_AFFECT_LIVE
        root = t.cast(Element, known.live)
        if step.kind == "memory":
            each.setMemoryFlags(step.value * 1024, live)
            return _until(
                lambda: abs(int(each.info()[2]) // 1024 - step.value) <= 1,
                _BALLOON_S,
                "the guest's memory balloon does not answer",
            )
        if step.kind == "vcpus":
            each.setVcpusFlags(step.value, live)
            return _until(
                lambda: each.vcpusFlags(live) == step.value, _UNPLUG_S, "the guest does not let go of a virtual CPU"
            )
        if step.kind == "description":
            each.setMetadata(library.VIR_DOMAIN_METADATA_DESCRIPTION, step.value or None, None, None, live)
        elif step.kind == "marks":
            text = xml.document(domain.marks_node(step.value, ""))
            each.setMetadata(library.VIR_DOMAIN_METADATA_ELEMENT, text, "cnvm", xml.GUEST_NAMESPACE, live)
        elif step.kind == "password":
            each.updateDeviceFlags(_device(root, "graphics", step.value), live)
        elif step.kind == "media":
            each.updateDeviceFlags(xml.document(domain.cdrom_node(step.name, step.value)), live)
        elif step.kind == "update_network":
            each.updateDeviceFlags(_device(root, "interface", step.value, step.name), live)
        elif step.kind == "attach_disk":
            # Looked at again: a disk before this one may have brought it.
            if step.value["bus"] == "scsi" and not domain.has_scsi(xml_of(each)):
                each.attachDeviceFlags(xml.document(domain.SCSI_CONTROLLER), live)
            each.attachDeviceFlags(xml.document(domain.disk_node(step.name, step.value)), live)
        elif step.kind == "attach_network":
            each.attachDeviceFlags(xml.document(domain.network_node(step.name, step.value)), live)
        elif step.kind in ("detach_disk", "detach_network"):
            kind = "disk" if step.kind == "detach_disk" else "interface"
            each.detachDeviceFlags(_device(root, kind, None, step.name), live)
            what = {"disk": "disks", "interface": "networks"}[kind]
            return _until(
                lambda: step.name not in domain.parse(xml_of(each))[what],
                _UNPLUG_S,
                f"the guest does not let go of {step.name}; it is gone after a restart",
            )
        else:
            raise ValueError(step.kind)
        return ""

    # -- up and down ------------------------------------------------------------------------------------------------
    def stop(self, jobs: t.Sequence[Job]) -> dict[str, CnvmError]:
        """Stop guests, all at once, and see that they have stopped: each in its own time, by force where allowed. Those
        that have not, and why."""
        began = time.monotonic()
        waiting = {job.name: job for job in jobs}
        pressed: dict[str, float] = {}
        failed: dict[str, CnvmError] = {}
        while waiting:
            for name, job in list(waiting.items()):
                try:
                    stopped = self._stop(job, began, pressed)
                except CnvmError as error:
                    failed[name] = error
                if name in failed or stopped:
                    del waiting[name]
            if waiting:
                time.sleep(_POLL_S)
        return failed

    def _stop(self, job: Job, began: float, pressed: dict[str, float]) -> bool:
        """Whether a guest that is to stop has stopped; else what is to be done for it now."""
        name, each = job.name, t.cast(Known, job.known).domain
        state = libvirt.state_of(each)
        if state is None or not _is_up(each):
            return True
        now = time.monotonic()
        at_once = job.plan.remove and job.item["delete_disks"]
        word = guest_plan.state_of(state[0])
        if at_once or word == guest_plan.CRASHED:
            _turn_off(each, name)
        elif now - began >= job.item["stop_timeout_s"]:
            late = f"did not stop within {job.item['stop_timeout_s']} s"
            if not job.item["force_stop"]:
                raise HostError(
                    f"Guest {name!r} {late}.",
                    hint="It may ignore the power button. Raise stop_timeout_s, or allow force_stop: true.",
                )
            self.warnings.append(f"Guest {name} {late} and was turned off.")
            _turn_off(each, name)
        elif now - pressed.get(name, 0.0) >= _PRESS_AGAIN_S:
            pressed[name] = now
            with _gone_is_good(), libvirt.doing(f"stop the guest {name!r}"):
                # One that is paused or asleep hears nothing.
                if word == guest_plan.PAUSED:
                    each.resume()
                elif word == guest_plan.SUSPENDED:
                    each.pMWakeup(0)
                self._press(each)
        return False

    def _press(self, each: libvirt.Domain) -> None:
        """Ask a guest to shut down: by its agent where that answers, else by the power button."""
        library = libvirt.library()
        try:
            each.shutdown()
        except library.libvirtError as error:
            if error.get_error_code() not in (errors.AGENT_UNRESPONSIVE, errors.OPERATION_TIMEOUT):
                raise
            each.shutdownFlags(library.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def start(self, jobs: t.Sequence[Job]) -> dict[str, CnvmError]:
        """Start guests, several at once. Those that could not be, and why."""
        failed: dict[str, CnvmError] = {}
        if not jobs:
            return failed
        library = libvirt.library()

        def one(job: Job) -> None:
            flags = library.VIR_DOMAIN_START_PAUSED if job.plan.pause else 0
            if paths.guest_log(job.name):
                os.makedirs(os.path.dirname(paths.guest_log(job.name)), mode=0o750, exist_ok=True)
            guest_watch.mark_log(job.name)
            each = libvirt.domain(self.connection, job.name)
            if each is None:
                raise HostError(f"Guest {job.name!r} was removed while it was to be started.")
            with libvirt.doing(f"start the guest {job.name!r}"):
                each.createWithFlags(flags)

        with ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE) as pool:
            for name, future in {job.name: pool.submit(one, job) for job in jobs}.items():
                try:
                    future.result()
                except CnvmError as error:
                    failed[name] = error
        return failed

    def pause_or_resume(self, job: Job) -> None:
        """Let a running guest stand still, or go on."""
        each = t.cast(Known, job.known).domain
        with libvirt.doing(f"{'resume' if job.plan.resume else 'pause'} the guest {job.name!r}"):
            if job.plan.pause:
                each.suspend()
            elif job.seen.state == guest_plan.SUSPENDED:
                each.pMWakeup(0)
            else:
                each.resume()

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

        guest_watch.wait(self.connection, wanted, look, self.warnings.append)

    # -- the end ----------------------------------------------------------------------------------------------------
    def remove(self, job: Job) -> None:
        """Remove a guest that is stopped, with all that belongs to it but its disks, unless they are to go, too."""
        definition = job.seen.definition or {}
        each = libvirt.domain(self.connection, job.name)
        if each is not None:
            self._undefine(each, job.name)
        home = paths.guest_disks_dir(job.name)
        outside = [path for path in job.made_disks if not path.startswith(f"{home}/")]
        # Without a definition it is not known which of them were made.
        if job.item["delete_disks"] and job.seen.definition is not None:
            made = [disk["name"] for disk in definition.get("disks", ()) if disk.get("made")]
            model = domain.EMPTY if job.known is None else job.known.model
            others = {name: disk for name, disk in model["disks"].items() if name not in made}
            given = {disk["path"] for disk in definition.get("disks", ()) if not disk.get("made")}
            given |= _given({"disks": others})
            guest_disks.delete(outside)
            job.kept_disks = guest_disks.keep(self.host, job.name, {*snapshot_records.overlays(job.name, made), *given})
        else:
            job.kept_disks = [*outside, *guest_disks.keep(self.host, job.name)]
        files.remove_file(paths.guest_log(job.name))
        files.remove_tree(paths.workload_dir(job.name))

    def _undefine(self, each: libvirt.Domain, name: str) -> None:
        library = libvirt.library()
        flags = (
            library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | library.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with _gone_is_good(), libvirt.doing(f"remove the guest {name!r}"):
            each.undefineFlags(flags)


def _newcomer(guest: t.Mapping[str, t.Any]) -> Newcomer:
    """Of an item or a definition."""
    macs = tuple(card["mac"] for card in guest["networks"])
    return Newcomer(guest["uuid"], definitions.address_of(guest), macs)


@contextlib.contextmanager
def _gone_is_good() -> t.Iterator[None]:
    """What is to end may have ended by itself a moment ago."""
    try:
        yield
    except libvirt.LibvirtError as error:
        if error.code not in (errors.NO_DOMAIN, errors.OPERATION_INVALID):
            raise


def _given(model: Model, works: t.Sequence[Work] = ()) -> set[str]:
    """The files of a guest's disks, and those below them, that are not to be made."""
    return {each["path"] for disk in model["disks"].values() for each in (disk, *disk["backing"])} - _made(works)


def _made(works: t.Sequence[Work]) -> set[str]:
    """The files of disks that are to be made."""
    return {work.path for work in works if work.kind != "grow"}


def _turn_off(each: libvirt.Domain, name: str) -> None:
    with _gone_is_good(), libvirt.doing(f"turn the guest {name!r} off"):
        each.destroy()


def _is_up(each: libvirt.Domain) -> bool:
    library = libvirt.library()
    try:
        return bool(each.isActive())
    except library.libvirtError as error:
        if error.get_error_code() == errors.NO_DOMAIN:
            return False
        raise libvirt.translate(error, f"look at the guest {each.name()!r}") from error


def _until(good: t.Callable[[], bool], timeout_s: float, otherwise: str) -> str:
    """Wait until it is good; what there is to say when it is not in time."""
    end = time.monotonic() + timeout_s
    while not good():
        if time.monotonic() > end:
            return otherwise
        time.sleep(_POLL_S)
    return ""


def _device(root: Element, tag: str, value: t.Any, name: str = "") -> str:
    """A device of a running domain as XML, with its address, as libvirt wants it to know which one is meant."""
    devices = t.cast(Element, root.find("devices"))
    if tag == "graphics":
        found = t.cast(Element, devices.find("graphics"))
        found = xml.parse(xml.document(found))
        found.set("passwd", value["password"])
        return xml.document(found)
    keys = {"disk": "target/@dev", "interface": "mac/@address"}[tag].split("/@")
    for each in devices.findall(tag):
        if xml.attribute(each, keys[0], keys[1]).lower() == name.lower():
            if value is not None:
                kind = value["type"]
                each = xml.parse(xml.document(each))
                each.set("type", kind)
                for source in each.findall("source"):
                    each.remove(source)
                each.append(xml.build(("source", {kind: value["source"]})))
            return xml.document(each)
    raise HostError(f"The running guest has no {tag} {name!r} any more.")


def _check_disks(name: str, model: Model, snapshots: t.Sequence[str]) -> None:
    """HostError when a disk of a guest that is started as libvirt has it was flattened or rebased meanwhile."""
    for target, disk in model["disks"].items() if not snapshots else ():
        where = f"guests: {name}: disks: {target}"
        told = disk["backing"]
        if told and guest_disks.below_now(disk["path"], disk["format"], told, where) is not None:
            raise HostError(
                f"{where}: {disk['path']} was flattened or rebased, and libvirt does not know.",
                hint="Run it with its description (memory_mib and all), not with its state alone.",
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
    registry = Registry(host, ownership.GUEST, ignore_unreachable=ignore_unreachable, ask_timeout_s=ask_timeout_s)
    with libvirt.connect(uri) as connection:
        batch = Batch(host, connection, wanted, registry, adopt=adopt, restart_on_change=restart_on_change)
        jobs = batch.decide()
        if not check_mode:
            batch.apply(jobs)
        reports = {one["name"]: one for one in guest_report.report(connection, [job.name for job in jobs])}
    results, before, after = [], {}, {}
    for job in jobs:
        results.append(_result(job, reports.get(job.name), registry, check_mode=check_mode))
        if job.plan.changed:
            before[job.name], after[job.name] = _shown(job)
    return {
        "changed": any(job.plan.changed for job in jobs),
        "guests": results,
        "diff": {"before": before, "after": after},
        "warnings": batch.warnings,
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
        "changed": job.plan.changed,
        "actions": job.plan.actions,
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
