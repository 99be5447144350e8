# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Why a guest cannot be had as it is wanted: what libvirt would find out halfway, or not at all."""

from __future__ import annotations

import functools
import os
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Missing, Refused
from .._libvirt import domain, errors, xml
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Wanted, unsave
from .._libvirt.xml import Element
from .._net.endpoint import check_address
from . import disk_guests, disks, files, guest_disks, guest_jobs, libvirt, mounts
from .domains import Known, read
from .guest_jobs import Job
from .ownership import Newcomer, Registry


class _Has(t.NamedTuple):
    """What a domain has, as it is stored and as it runs: ``places`` are the real paths of its disks, and of what lies
    below them (a snapshot, say), which is as much a part of it. ``silent``: those on storage that does not answer, so
    that nobody can say what is below them."""

    uuids: set[str]
    macs: set[str]
    places: set[str]
    silent: list[str]


class Checks:
    """Of one call. ``going``: the items of the guests that it removes, by name."""

    def __init__(
        self, connection: libvirt.Connection, registry: Registry, going: t.Mapping[str, t.Mapping[str, t.Any]]
    ) -> None:
        self.connection = connection
        self.registry = registry
        self.going = going
        # Of guests that are removed: see ``_goes``.
        self._going: dict[str, tuple[str, set[str]]] = {}
        # What libvirt was asked about a machine and its CPU, and has no objection to.
        self._machines: set[tuple[str, ...]] = set()

    def check(self, job: Job) -> None:
        """What libvirt would find out halfway, or not at all; only of what is new."""
        wanted = t.cast(Wanted, job.plan.wanted)
        model, where = wanted.model, f"guests: {job.name}"
        stored = job.known.model if job.known is not None else domain.EMPTY
        before = job.seen.definition or {}
        for key in ("kernel", "initrd"):
            if model[key] and model[key] != stored[key] and not os.path.isfile(model[key]):
                raise Missing(f"{where}: {key}: there is no file {model[key]} on this host.", hint="Copy it there.")
        cdrom = job.item["cdrom"]
        if cdrom and cdrom != before.get("cdrom"):
            _check_cd(cdrom, f"{where}: cdrom")
        if job.plan.start:
            check_cds_there(job, model)
        for tag, folder in model["shared_folders"].items():
            if stored["shared_folders"].get(tag) != folder and not os.path.isdir(folder["source"]):
                raise Missing(
                    f"{where}: shared_folders: there is no directory {folder['source']} on this host.",
                    hint="Create it first.",
                )
        _check_saved(job, stored)
        _check_cells(job, model, stored)
        self._check_machine(job, model, stored)
        self._check_variables(job, model, stored)
        address = wanted.definition["address"]
        if address and address != before.get("address"):
            if self.registry.overlay is None:
                raise Missing(f"{where}: this host has no overlay network.", hint="Run the role overlay.")
            check_address(address, self.registry.overlay, f"{where}: networks: address")
            for name in self.registry.leaving:
                if (files.read_json(paths.definition_file(name)) or {}).get("address") == address:
                    job.follows.add(name)
            if job.seen.managed:
                self.registry.check_address(job.name, address)
        self._check_unique(job, model, stored)
        if job.plan.start or model["networks"] != stored["networks"]:
            self.check_networks(job, model)

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

    def check_networks(self, job: Job, model: Model) -> None:
        ports = domain.switch_ports(job.known.xml) if job.known is not None else {}
        for mac, card in model["networks"].items():
            where, source = f"guests: {job.name}: networks", card["source"]
            # An Open vSwitch bridge is none of the kernel's, and has a device of its name. Cards on one are taken over.
            kind, seen = ("", "") if ports.get(mac) == source else ("/bridge", " type bridge")
            if card["type"] == "bridge" and not os.path.isdir(f"/sys/class/net/{source}{kind}"):
                raise Missing(f"{where}: this host has no bridge {source!r}.", hint=f"See 'ip link show{seen}'.")
            if card["type"] == "network":
                network = libvirt.network(self.connection, source)
                if network is None:
                    known = ", ".join(libvirt.networks(self.connection)) or "none"
                    raise Missing(
                        f"{where}: this host has no network {source!r}.",
                        hint=f"It has: {known}. Make it with cnvm.platform.network.",
                    )
                with libvirt.doing(f"look at the network {source!r}"):
                    active = bool(network.isActive())
                if not active and (job.plan.start or job.seen.active):
                    raise Missing(
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
        real = {path: os.path.realpath(path) for path in new_paths}
        definition = t.cast(Wanted, job.plan.wanted).definition
        # What this module makes, or has made, is nobody else's.
        given = new_paths & {model["disks"][disk["name"]]["path"] for disk in definition["disks"] if not disk["made"]}
        for name, theirs in self._others.items():
            if name == job.name:
                continue
            taken = new_macs & theirs.macs
            paths_taken = {path for path, place in real.items() if place in theirs.places}
            if name in self.going:
                self._check_stays(job, real, name)
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
            if given and theirs.silent:
                raise HostError(
                    f"guests: {job.name}: disks: whether {min(given)} is below a disk of {name!r} nobody can say: "
                    f"{theirs.silent[0]} is on storage that does not answer.",
                    hint=mounts.BRING_IT_BACK,
                )
            if job.known is None and model["uuid"] in theirs.uuids:
                raise Refused(
                    f"The UUID {model['uuid']} of guest {job.name!r} is that of {name!r}.", hint="Remove that one."
                )

    @functools.cached_property
    def _domains(self) -> dict[str, Known]:
        return read(self.connection)

    @functools.cached_property
    def _others(self) -> dict[str, _Has]:
        """What each domain has. Worked out once: many guests are compared with many."""
        found = {}
        away = mounts.silent()
        for name, known in self._domains.items():
            models = known.models
            used = [disk for model in models for disk in model["disks"].values()]
            silent: list[str] = []
            images = {path for disk in used for path in (disk["path"], *guest_disks.all_below(disk, silent))}
            found[name] = _Has(
                {model["uuid"] for model in models},
                {mac for model in models for mac in model["networks"]},
                set(map(away.real, images)),
                silent,
            )
        return found

    def check_screens(self, jobs: t.Sequence[Job]) -> None:
        """Refused where a guest that is to be started would show its screen at a port at which another one does, or is
        to. One that is off is in nobody's way."""
        starting = {job.name: _screen_of(job) for job in jobs if job.plan.start}
        if not any(starting.values()):
            return
        ending = {job.name for job in jobs if job.plan.stop or job.plan.remove}
        running = {
            name: _screen_that_runs(known)
            for name, known in self._domains.items()
            if known.live is not None and name not in {*ending, *starting}
        }
        for name, screen in starting.items():
            for other, theirs in {**running, **starting}.items():
                if screen and theirs and other != name and _meet(screen, theirs):
                    verb = "runs" if other in running else "is to be started, too"
                    raise Refused(
                        f"The port {screen[1]} of the screen of guest {name!r} is that of {other!r}, which {verb}.",
                        hint="Choose another one, or leave graphics.port out: libvirt takes one that is free.",
                    )

    def check_new_cards(self, jobs: t.Sequence[Job]) -> None:
        """Refused where a card that a guest of this host is to get has the MAC of a guest of another host."""
        found = {}
        for job in jobs:
            if job.seen.managed and job.plan.wanted is not None:
                had = [card["mac"] for card in (job.seen.definition or {}).get("networks", ())]
                new = [mac for mac in job.plan.wanted.model["networks"] if mac not in had]
                if new:
                    found[job.name] = Newcomer(macs=tuple(new))
        self.registry.check_identities(found)

    def _check_stays(self, job: Job, real: t.Mapping[str, str], name: str) -> None:
        """Refused where a disk (``real``: {path: its real path}) is that of a guest which is removed in the same call,
        and does not stay where it is."""
        home, deleted = self._goes(name)
        for path, place in sorted(real.items()):
            if place in deleted or place.startswith(home):
                raise Refused(
                    f"The disk {path} of guest {job.name!r} is that of {name!r}, and goes with it.",
                    hint="Remove that guest in a run of its own; it says where its disks are kept.",
                )

    def _goes(self, name: str) -> tuple[str, set[str]]:
        """What goes with a guest that is removed: the directory of its own disks, and those that are deleted."""
        if name not in self._going:
            definition = files.read_json(paths.definition_file(name)) or {}
            model, where = self._domains[name].model, f"guests: {name}: disks"
            made = [disk for disk in definition.get("disks", ()) if self.going[name]["delete_disks"] and disk["made"]]
            deleted = [guest_disks.place_now(self.connection, name, disk, model, where) for disk in made]
            home = f"{os.path.realpath(paths.guest_disks_dir(name))}/"
            self._going[name] = home, set(map(mounts.silent().real, deleted))
        return self._going[name]


# Where a guest's screen is to be seen: address and port.
_Screen = tuple[str, int]


def _screen_of(job: Job) -> t.Optional[_Screen]:
    """Of one that is to be started; None where libvirt chooses the port, or there is no screen."""
    model = job.known.model if job.known is not None else domain.EMPTY
    if job.plan.wanted is not None:
        # In check mode it may not be known what it comes to.
        model = {**domain.EMPTY, **job.plan.wanted.model}
    screen = model["graphics"]
    return (screen.get("listen") or "127.0.0.1", screen["port"]) if screen.get("port") else None


def _screen_that_runs(known: Known) -> t.Optional[_Screen]:
    """The same, be the port libvirt's choice."""
    screens = domain.screens(t.cast(Element, known.live).find("devices"))
    port = xml.number(screens[0].get("port", ""), -1) if screens else -1
    listen = t.cast(Model, known.live_model)["graphics"].get("listen") or "127.0.0.1"
    return (listen, port) if port > 0 else None


def _meet(one: _Screen, other: _Screen) -> bool:
    return one[1] == other[1] and (one[0] == other[0] or bool({"0.0.0.0", "::"} & {one[0], other[0]}))


def check_leaving(jobs: t.Sequence[Job]) -> None:
    """Refused where a guest that is removed takes along what others need: what lies in its directory is brought to
    another place with it, or deleted."""
    for name, users in disk_guests.needed({job.name: job.gone_disks for job in jobs}).items():
        raise Refused(
            f"Guest {name!r} is not removed: others need files that go with it: {disk_guests.words_of(users)}.",
            hint=disk_guests.FREE_THEM,
            dependants=sorted({user for each in users.values() for user in each}),
        )


def check_below(jobs: t.Sequence[Job]) -> None:
    """Refused where a disk would rest on a file to which another guest writes: what lies above it is lost then."""
    new: dict[str, list[str]] = {}
    writers: dict[str, str] = {}
    for job in jobs:
        # In check mode it may not be known what it comes to.
        model = {**domain.EMPTY, **(job.plan.wanted.model if job.plan.wanted is not None else {})}
        had = guest_jobs.given(domain.EMPTY if job.known is None else job.known.model)
        below = {one["path"] for disk in model["disks"].values() for one in disk["backing"]} - had
        # To templates nobody writes.
        new[job.name] = sorted(path for path in below if not path.startswith(f"{paths.TEMPLATES}/"))
        writes = [disk["path"] for disk in model["disks"].values() if not disk["read_only"]]
        writers.update({os.path.realpath(path): job.name for path in writes})
    asked = {path for places in new.values() for path in places}
    found = disk_guests.of(asked, written=True) if asked else {}
    for name, places in new.items():
        for path in places:
            others = {*found[path], writers.get(os.path.realpath(path), name)} - {name}
            if others:
                raise Refused(
                    f"A disk of guest {name!r} rests on {path}, to which guest {min(others)!r} writes.",
                    hint="What lies above a file is lost when that changes. Flatten the disk first "
                    "(cnvm.platform.disk_image, flatten: true), while that guest is stopped.",
                )


def _check_saved(job: Job, stored: Model) -> None:
    """Refused where a disk would grow below memory that libvirt keeps, with which the guest goes on."""
    had = guest_jobs.given(stored)
    grown = [work.name for work in job.works if work.kind == "grow" and work.path in had]
    if grown and t.cast(Known, job.known).saved:
        raise Refused(
            f"guests: {job.name}: disks: {grown[0]} cannot grow: the guest was saved with its memory, which fits its "
            "disks as they are.",
            hint=unsave(job.name),
        )


def _check_cells(job: Job, model: Model, stored: Model) -> None:
    """Refused where libvirt would take the change of a guest's memory, and not make it."""
    cells = domain.memory_cells(job.known.xml) if job.known is not None else []
    if not cells or model["max_memory_mib"] == stored["max_memory_mib"]:
        return
    option = "memory_mib" if model["max_memory_mib"] == model["memory_mib"] else "max_memory_mib"
    raise Refused(
        f"guests: {job.name}: {option}: the guest's memory is divided into NUMA cells of {' + '.join(map(str, cells))} "
        f"MiB, which make {stored['max_memory_mib']} and not {model[option]}.",
        hint=f"Say {option}: {stored['max_memory_mib']}, or change the cells first ('virsh edit {job.name}', "
        "cpu: numa: cell: memory).",
    )


def _check_cd(path: str, option: str) -> None:
    """A guest boots from nothing, or halfway, from what is none. What is in a drive of the host nobody can say."""
    if not os.path.exists(path):
        raise Missing(f"{option}: there is no file {path} on this host.", hint="Copy it there first.")
    if not path.startswith("/dev/"):
        try:
            disks.check_cd(path)
        except (InputError, Refused) as error:
            raise InputError(f"{option}: {error.message}", hint=error.hint) from None


def check_cds_there(job: Job, model: Model) -> None:
    """Missing when a guest that is to be started has a CD whose file has gone: libvirt would not start it, unless it
    was told to go on without. The seed is made before."""
    sources = [] if job.known is None else job.known.xml.iter("source")
    optional = {source.get("file") for source in sources if source.get("startupPolicy") == "optional"}
    for drive, cd in model["cdroms"].items():
        path = cd["path"]
        if drive != domain.SEED and path.startswith("/") and path not in optional and not os.path.exists(path):
            raise Missing(
                f"guests: {job.name}: cdrom: there is no file {path} on this host, and it is in the guest's drive.",
                hint="Copy it there again; or run the guest with its description (memory_mib and all) and no cdrom.",
            )


def check_disks(name: str, model: Model, snapshots: t.Collection[str]) -> None:
    """HostError when a disk of a guest that is started as libvirt has it was flattened or rebased meanwhile.
    ``snapshots``: the disks that have some."""
    for target, disk in model["disks"].items():
        where = f"guests: {name}: disks: {target}"
        told = disk["backing"]
        if not told:
            continue
        if target in snapshots:
            guest_disks.check_top(disk["path"], told, where)
        elif guest_disks.below_now(disk["path"], disk["format"], told, where) is not None:
            raise HostError(
                f"{where}: {disk['path']} was flattened or rebased, and libvirt does not know.",
                hint="Run it with its description (memory_mib and all), not with its state alone.",
            )
