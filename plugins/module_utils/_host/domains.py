# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The domains of this host as they are now, read in few questions for many of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._core import paths
from .._libvirt import changes, domain, errors, guest_plan, xml
from .._libvirt.domain import Model
from .._libvirt.xml import Element
from . import files, libvirt

# Where volumes of pools are: {(pool, volume): path}. libvirt is asked up to three times for each.
Places = dict[tuple[str, str], str]


@dataclasses.dataclass
class Known:
    """A domain as libvirt has it. ``stored`` and ``live`` are its XML, None where there is none."""

    domain: libvirt.Domain
    state: str
    why: str
    persistent: bool
    autostart: bool
    stored: t.Optional[Element] = None
    live: t.Optional[Element] = None

    @property
    def xml(self) -> Element:
        """What it will be at its next start, or what it is when that is all that there is."""
        return t.cast(Element, self.stored if self.stored is not None else self.live)

    @property
    def model(self) -> Model:
        """The same as plain data."""
        return domain.parse(self.xml)

    @property
    def saved(self) -> bool:
        """Whether libvirt keeps its memory (managedsave), with which it goes on at its next start: on disks as they
        are now, and on no others."""
        with libvirt.doing(f"tell whether the guest {self.domain.name()!r} was saved"):
            return bool(self.domain.hasManagedSaveImage())

    @property
    def live_model(self) -> t.Optional[Model]:
        """What runs, as plain data."""
        return None if self.live is None else domain.parse(self.live)

    @property
    def models(self) -> list[Model]:
        """``model``, and what runs, where it does."""
        live = self.live_model
        return [self.model] if live is None else [self.model, live]

    @property
    def disks(self) -> list[dict[str, t.Any]]:
        """The disks of both."""
        return [disk for model in self.models for disk in model["disks"].values()]

    @property
    def files(self) -> list[str]:
        """The files that are opened for both when they are started, by their XML."""
        drives = [drive for model in self.models for key in ("disks", "cdroms") for drive in model[key].values()]
        below = [one["path"] for drive in drives for one in drive.get("backing", ())]
        booted = [model[key] for model in self.models for key in ("kernel", "initrd")]
        roots = [root for root in (self.stored, self.live) if root is not None]
        booted += [xml.text_of(root, f"os/{part}") for root in roots for part in ("loader", "nvram")]
        booted += [xml.attribute(root, "os/nvram/source", "file") for root in roots]
        folders = [folder["source"] for model in self.models for folder in model["shared_folders"].values()]
        return [*booted, *(drive["path"] for drive in drives), *below, *folders]


def read(connection: libvirt.Connection, names: t.Optional[t.Collection[str]] = None) -> dict[str, Known]:
    """All domains, or those of ``names`` that there are: few questions for the list, one or two for each."""
    library = libvirt.library()
    domains = libvirt.domains(connection)
    states = libvirt.domain_states(connection)
    with libvirt.doing("list the guests"):
        transient = {each.name() for each in connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)}
        automatic = {each.name() for each in connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)}
    found = {}
    places: Places = {}
    for name, each in domains.items():
        if names is not None and name not in names:
            continue
        number, reason = states.get(name, (0, 0))
        state = guest_plan.state_of(number)
        why = guest_plan.paused_reason(reason) if state == guest_plan.PAUSED else ""
        known = Known(each, state, why, name not in transient, name in automatic)
        try:
            with libvirt.doing(f"read the guest {name!r}"):
                if known.persistent:
                    known.stored = xml_of(each, library.VIR_DOMAIN_XML_INACTIVE, places)
                if each.isActive():
                    known.live = xml_of(each, 0, places)
        except libvirt.LibvirtError as error:
            if error.code == errors.NO_DOMAIN:
                continue  # it has ended, or was removed, a moment ago
            raise
        if known.stored is not None or known.live is not None:
            found[name] = known
    return found


def xml_of(each: libvirt.Domain, flags: int = 0, places: t.Optional[Places] = None) -> Element:
    """A domain's XML, with passwords: else they would be lost when it is written back. Disks that are volumes of a pool
    say where they are; see ``_libvirt.domain.volumes``. ``places``: of those that were asked for already."""
    places = {} if places is None else places
    text = each.XMLDesc(flags | libvirt.library().VIR_DOMAIN_XML_SECURE)
    root = xml.parse(text, f"the XML of {each.name()}", "domain")
    for source, pool, volume in domain.volumes(root):
        if source.get("mode") == "direct":
            continue  # QEMU is to reach it by itself: the host's path is only another way
        if (pool, volume) not in places:
            places[pool, volume] = libvirt.volume_path(each.connect(), pool, volume)
        if places[pool, volume]:
            source.set("file", places[pool, volume])
    return root


def portable(each: libvirt.Domain) -> Element:
    """The XML with which another host can define a domain that does not run: without the devices that this libvirt
    gives to each by itself. An older one may not know them (the q35's watchdog before libvirt 9.1)."""
    library = libvirt.library()
    with libvirt.doing(f"read the guest {each.name()!r}"):
        return xml_of(each, library.VIR_DOMAIN_XML_INACTIVE | library.VIR_DOMAIN_XML_MIGRATABLE)


def not_taken(each: libvirt.Domain, wanted: Model) -> list[str]:
    """What of ``wanted`` libvirt has not stored, as options: some changes it accepts, and leaves out."""
    try:
        with libvirt.doing(f"read the guest {each.name()!r}"):
            root = xml_of(each, libvirt.library().VIR_DOMAIN_XML_INACTIVE)
    except libvirt.LibvirtError:
        return []  # it is defined, that is what counts; the next run sees what it has
    return sorted({one.key for one in changes.differences(wanted, domain.parse(root))})


def set_marks(each: libvirt.Domain, marks: t.Mapping[str, t.Any]) -> None:
    """Change our part of the metadata of a running domain, for as long as it runs."""
    library = libvirt.library()
    text = xml.document(domain.marks_node(marks, ""))
    where = library.VIR_DOMAIN_METADATA_ELEMENT
    each.setMetadata(where, text, "cnvm", xml.GUEST_NAMESPACE, library.VIR_DOMAIN_AFFECT_LIVE)


def model_of(each: libvirt.Domain) -> Model:
    """A domain as plain data: what runs, where it does."""
    return domain.parse(xml_of(each))


def forget_variables(connection: libvirt.Connection, name: str) -> None:
    """Remove the variables of the firmware of a guest that is gone. libvirt does so only where its XML names them: not
    of one that has got a BIOS since. Another one that was renamed may have them."""
    left = [path for path in paths.guest_nvram(name) if os.path.lexists(path)]
    if left:
        roots = [root for one in read(connection).values() for root in (one.stored, one.live) if root is not None]
        named = {xml.text_of(root, "os/nvram") for root in roots}
        for path in left:
            if path not in named:
                files.remove_file(path)


# All domains by name, and the directories of the pools by theirs.
Everything = tuple[t.Mapping[str, Known], t.Mapping[str, str]]


@contextlib.contextmanager
def everything() -> t.Iterator[Everything]:
    """All domains, and the directories of the pools by their names. None where there is no libvirt."""
    if not libvirt.available():
        yield {}, {}
        return
    with libvirt.connect() as connection:
        yield read(connection), libvirt.pool_directories(connection)


def image_directories(known: t.Mapping[str, Known], pools: t.Mapping[str, str]) -> list[str]:
    """Where images lie that libvirt's guests use: the directories of its pools, and those of the disks of all
    domains."""
    used = [os.path.dirname(disk["path"]) for one in known.values() for disk in one.disks]
    return sorted({*pools.values(), *used})


def written_as_raw(known: t.Mapping[str, Known]) -> set[str]:
    """The disks that guests write to as raw, and nobody reads as anything else: what these begin with a guest decides,
    and they rest on nothing."""
    disks = [disk for one in known.values() for disk in one.disks]
    layered = {one["path"] for disk in disks for one in (disk, *disk["backing"]) if one["format"] != "raw"}
    return {disk["path"] for disk in disks if disk["format"] == "raw" and not disk["read_only"]} - layered
