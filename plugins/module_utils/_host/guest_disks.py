# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The files of a guest's disks: where they lie, what is below them, and what has to be done so that they are as wanted.

A disk that is not touched costs no command: its header is read at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import os
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Missing, Refused
from .._image import commands
from .._image.chain import Node
from .._image.commands import Making
from .._libvirt import xml
from .._libvirt.domain import Model
from .._libvirt.pool import WITH_FILES
from . import disk_records, disks, files, libvirt, mounts, templates
from .disks import Attributes
from .system import Host

_MIB = 2**20
# Where images lie that a disk may rest on: nobody but this collection writes there.
_OURS = (paths.TEMPLATES, paths.WORKLOADS, paths.KEPT_DISKS)


# --------------------------------------------------------------------------------------------------------------------
# Places
# --------------------------------------------------------------------------------------------------------------------
def pool_directory(connection: libvirt.Connection, name: str, where: str) -> str:
    """The directory of a pool."""
    pool = libvirt.pool(connection, name)
    if pool is None:
        known = ", ".join(libvirt.pools(connection)) or "none"
        raise Missing(f"{where}: this host has no pool {name!r}.", hint=f"It has: {known}. See cnvm.platform.pool.")
    with libvirt.doing(f"read the pool {name!r}"):
        root = xml.parse(pool.XMLDesc(0), f"the pool {name}", "pool")
    if root.get("type") not in WITH_FILES:
        raise InputError(
            f"{where}: the pool {name!r} has no directory.",
            hint="Give the path of a volume of it (path: /dev/GROUP/VOLUME, format: raw).",
        )
    return xml.text_of(root, "target/path")


def check_pool(connection: libvirt.Connection, name: str, where: str) -> None:
    """Missing when a pool is not active: where its file system is to be mounted there is another directory then."""
    pool = libvirt.pool(connection, name)
    with libvirt.doing(f"look at the pool {name!r}"):
        if pool is None or pool.isActive():
            return
    raise Missing(
        f"{where}: the pool {name!r} is not active.", hint="Start it with cnvm.platform.pool (state: active)."
    )


def place_of(connection: libvirt.Connection, guest: str, disk: t.Mapping[str, t.Any], where: str) -> str:
    """Where a disk's own file lies (below its snapshots, if it has some)."""
    pooled = disk["pool"] and not disk["path"]
    return placed(guest, disk, pool_directory(connection, disk["pool"], where) if pooled else "")


def placed(guest: str, disk: t.Mapping[str, t.Any], directory: str) -> str:
    """The same. ``directory``: that of its pool, where it is in one."""
    if disk["path"]:
        return str(disk["path"])
    if disk["pool"]:
        return f"{directory}/{paths.pooled_disk(guest, disk['name'], disk['format'])}"
    return f"{paths.guest_disks_dir(guest)}/{disk['name']}.{disk['format']}"


def place_now(
    connection: libvirt.Connection, guest: str, disk: t.Mapping[str, t.Any], model: t.Optional[Model], where: str
) -> str:
    """Where the file of a disk that the guest has lies. Its pool may be gone, or be in another directory by now: the
    domain (``model``) knows it."""
    known = model["disks"].get(disk["name"]) if model is not None and disk["pool"] else None
    for path in [known["path"], *(one["path"] for one in known["backing"])] if known else ():
        if os.path.basename(path) == paths.pooled_disk(guest, disk["name"], disk["format"]):
            return str(path)
    return place_of(connection, guest, disk, where)


def check_buses(gone: t.Mapping[str, str], added: t.Mapping[str, str], where: str, *, active: bool) -> None:
    """Refused where a disk seems to be meant for another bus. ``gone``, ``added``: {name: path}.

    A disk is known by its name, which says its bus: it would be made anew, and the old one taken away.
    """
    for name, path in gone.items():
        other = next((each for each in added if each[:2] != name[:2]), "")
        if other and (active or path not in added.values()):
            raise Refused(
                f"{where}: disks: {name} would be taken away, and {other} be added on another bus.",
                hint="Disks are known by their names; those without one are counted on each bus. To give a disk "
                f"another bus, stop the guest, then describe it with its file as path (that of {name} is {path}) and "
                "without template, the others with name. To have another disk, take the old one away first, in a run "
                "of its own.",
            )


# --------------------------------------------------------------------------------------------------------------------
# Work
# --------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Work:
    """Something that is to be done for one disk: ``create``, ``link``, ``copy`` or ``grow``, from ``before_bytes``.

    ``again``: it takes the place of what a run has left there that was cut off. Else nothing may be there.
    """

    kind: str
    name: str
    path: str
    format: str
    virtual_bytes: t.Optional[int] = None
    template: str = ""
    before_bytes: t.Optional[int] = None
    again: bool = False

    @property
    def words(self) -> str:
        """For the list of actions."""
        return f"{'grow' if self.kind == 'grow' else 'create'} disk {self.name}"


def backing_of(path: str, kind: str, where: str, known: t.Collection[str] = ()) -> list[dict[str, t.Any]]:
    """What lies below an image that was there before: it must rest on nothing but images of ours and those that are
    ``known``."""
    nodes = disks.chain(path, kind)
    trusted = {os.path.realpath(one) for one in known}
    for node in nodes[1:]:
        real = os.path.realpath(node.path)
        if real not in trusted and not real.startswith(tuple(f"{place}/" for place in _OURS)):
            raise Refused(
                f"{where}: {path} rests on {node.path}.",
                hint="An image from elsewhere could name any file of this host. Flatten it (cnvm.platform.disk_image).",
            )
    return [
        {"path": node.path, "format": node.header.format, "read_only": node.path.startswith(f"{paths.TEMPLATES}/")}
        for node in nodes[1:]
    ]


def told(path: str, kind: str, models: t.Iterable[Model], *, adopted: bool) -> set[str]:
    """The files below a disk that a domain (``models``: as stored, and as it runs) has already as this ``kind``: what
    its XML names.

    Where its XML leaves that open libvirt goes by the file, and so do we for one that is ``adopted``: it reads no more
    than it did. Not below an image without a word on the format of the next one: libvirt does not start that.
    """
    found: set[str] = set()
    for disk in (each for model in models for each in model["disks"].values()):
        if (disk["path"], disk["format"]) != (path, kind):
            continue
        named = [one["path"] for one in disk["backing"]]
        found.update(named)
        if adopted and "open" in disk and os.path.lexists(path):
            nodes = disks.chain(path, kind)
            rests_on = [node.path for node in nodes[1:]]
            if rests_on[: len(named)] == named and all(node.header.backing_format for node in nodes[:-1]):
                found.update(rests_on)
    return found


def _inspect(path: str, kind: str, where: str) -> Node:
    """What a disk that the guest has says about itself; HostError where it is gone."""
    try:
        return disks.inspect(path, kind)
    except InputError as error:
        raise HostError(f"{where}: {error.message}", hint="Restore it, or remove the guest.") from None


def all_below(disk: t.Mapping[str, t.Any], silent: t.Optional[list[str]] = None) -> list[str]:
    """The files below a disk of a domain: those that its XML names, and what its file says where that is left open.
    ``silent`` is told the first one that is on storage which does not answer: what is below that nobody can say."""
    found = [str(one["path"]) for one in disk["backing"]]
    if "open" in disk:
        # What is damaged, not there, or of a format that we do not read rests on nothing that we could name.
        with contextlib.suppress(OSError, HostError, InputError, Refused):
            try:
                found += [node.path for node in disks.chain(disk["path"], disk["format"])[1:]]
            except mounts.SilentStorage as error:
                if silent is not None:
                    silent.append(str(error.details["path"]))
    return found


def above(path: str, models: t.Iterable[Model]) -> str:
    """The file of a disk that a domain (``models``: as stored, and as it runs) has above the one at ``path``; '' where
    it has none."""
    real = os.path.realpath(path)
    found = (disk for model in models for disk in model["disks"].values())
    return next((str(disk["path"]) for disk in found if real in map(os.path.realpath, all_below(disk))), "")


def format_of(path: str, models: t.Iterable[Model]) -> str:
    """As what a domain (``models``: as stored, and as it runs) reads the disk at ``path``; '' where it has none."""
    real = os.path.realpath(path)
    found = (disk for model in models for disk in model["disks"].values())
    return next((str(disk["format"]) for disk in found if os.path.realpath(disk["path"]) == real), "")


def check_format(path: str, wanted: str, where: str) -> None:
    """Refused where a disk that the guest has is to be read as another format than it is in: as raw the guest would see
    its header for its first bytes, and overwrite it."""
    with disks.File(path) as image:
        found = disks.format_by_content(image, path)
    if found != wanted:
        raise Refused(
            f"{where}: format: {path} is {found}, not {wanted}.",
            hint="Leave it as it was; or stop the guest and convert the disk first (cnvm.platform.disk_image).",
        )


def below_now(
    path: str, kind: str, known: t.Sequence[t.Mapping[str, t.Any]], where: str
) -> t.Optional[list[dict[str, t.Any]]]:
    """What lies below a disk of a guest that is off, where it is not ``known`` (what libvirt was told) any more: it was
    flattened, or rebased. None where it is.

    libvirt and QEMU go by what they were told: the guest would read from what its disk rests on no longer.
    """
    if kind != "qcow2" or path.startswith("/dev/"):
        return None
    rests_on = disks.backing_path(_inspect(path, kind, where))
    if rests_on == (known[0]["path"] if known else ""):
        return None
    return backing_of(path, kind, where)


def check_top(path: str, known: t.Sequence[t.Mapping[str, t.Any]], where: str) -> None:
    """HostError when the overlay above snapshots of a guest that is off rests on another file than those that are
    ``known`` below it. (A merge that was cut off has left out some of them.)"""
    if disks.backing_path(_inspect(path, "qcow2", where)) not in [each["path"] for each in known]:
        below, kind = known[0]["path"], known[0]["format"]
        raise HostError(
            f"{where}: {path} was flattened or rebased, and the guest has snapshots.",
            hint=f"Let it rest on {below} again, which keeps its content: "
            f"'qemu-img rebase -f qcow2 -b {below} -F {kind} {path}'.",
        )


def look(
    disk: t.Mapping[str, t.Any],
    path: str,
    top: str,
    digest: str,
    where: str,
    *,
    new: bool,
    ours: bool = False,
    remember: bool = False,
    known: t.Collection[str] = (),
) -> tuple[t.Optional[Work], t.Optional[list[dict[str, t.Any]]]]:
    """(what is to be done, what lies below the file at ``path``) for one disk; None below: as it was.

    ``top``: the file that the guest writes to now (an overlay when there are snapshots). ``digest``: of its template.
    ``new``: the guest did not have it so far. ``ours``: what lies there is of a run that was cut off, and is made
    again. ``remember``: as of ``templates.check``. ``known``: as of ``backing_of``. InputError or Refused where it
    cannot be had.
    """
    kind = disk["format"]
    wanted = None if disk["size_mib"] is None else disk["size_mib"] * _MIB
    if path.startswith("/dev/"):
        if not os.path.exists(path):
            raise InputError(f"{where}: this host has no device {path}.", hint="See 'lsblk -p'.")
        return None, []
    if new:
        there = os.path.lexists(path) and not (ours and (digest or not disk["path"]))
        if digest and not there:
            templates.check(digest, remember=remember)
        work, below = _look_new(disk, path, digest, wanted, where, there=there, known=known)
        again = work is not None and work.kind != "grow" and os.path.lexists(path)
        return (dataclasses.replace(work, again=True) if work is not None and again else work), below
    if wanted is None:
        return None, None
    header = _inspect(top, "qcow2" if top != path else kind, where).header
    if wanted < header.virtual_bytes:
        raise Refused(
            f"{where}: size_mib: the disk has {header.virtual_bytes // _MIB} MiB, more than {disk['size_mib']}.",
            hint="Disks only grow: what is beyond the new end would be lost.",
        )
    if wanted > header.virtual_bytes:
        kind = "qcow2" if top != path else kind
        return Work("grow", disk["name"], top, kind, wanted, before_bytes=header.virtual_bytes), None
    return None, None


def _look_new(
    disk: t.Mapping[str, t.Any],
    path: str,
    digest: str,
    wanted: t.Optional[int],
    where: str,
    *,
    there: bool,
    known: t.Collection[str],
) -> tuple[t.Optional[Work], t.Optional[list[dict[str, t.Any]]]]:
    name, kind = disk["name"], disk["format"]
    if there:
        if digest or not disk["path"]:
            raise Refused(
                f"{where}: {path} is there already; it is not overwritten.",
                hint="To use what is in it give it as path, without template. Or remove it first.",
            )
        below = backing_of(path, kind, where, known)
        disks.check_sound(disks.inspect(path, kind))
        work, _dummy = look(disk, path, path, "", where, new=False)
        return work, below
    if digest:
        base = paths.template_disk(digest)
        have = disks.inspect(base, "qcow2").header.virtual_bytes
        if wanted is not None and wanted < have:
            raise Refused(
                f"{where}: size_mib: the template has {have // _MIB} MiB, more than {disk['size_mib']}.",
                hint="Disks only grow.",
            )
        if disk["linked"]:
            below = [{"path": base, "format": "qcow2", "read_only": True}]
            return Work("link", name, path, "qcow2", wanted, base), below
        return Work("copy", name, path, kind, wanted, base), []
    if wanted is None:
        raise Missing(f"{where}: there is no file {path} on this host.", hint="Bring it there, or give size_mib.")
    return Work("create", name, path, kind, wanted), []


def making(name: str) -> list[str]:
    """The files that were being made for a guest when that was cut off: nothing was there."""
    note = files.read_json(paths.guest_making_file(name)) or {}
    return list(note.get("paths", ()))


def left(name: str, needed: t.Collection[str] = ()) -> list[str]:
    """Those of them that are there still, but for ``needed``."""
    return [path for path in making(name) if path not in needed and os.path.lexists(path)]


def note_making(name: str, made: t.Collection[str]) -> None:
    """Write down which files are being made for a guest. Before the first of them is: what is on record only later is
    somebody's, for the next run, when this one is cut off."""
    if made:
        files.write_json(paths.guest_making_file(name), {"paths": sorted(made)})
    else:
        files.remove_file(paths.guest_making_file(name))


def do(host: Host, work: Work) -> None:
    """Make a disk, or let it grow (of a guest that does not run)."""
    # libvirt gives it to QEMU's user when the guest starts.
    attributes = Attributes(uid=0, gid=0, mode=0o600, new=not work.again)
    if work.kind == "grow":
        disks.resize(host, work.path, work.format, t.cast(int, work.virtual_bytes))
    elif work.kind == "link":
        disks.create_overlay(host, work.template, "qcow2", work.path, work.virtual_bytes, attributes=attributes)
    elif work.kind == "copy":
        making = Making(work.format)
        disks.convert(
            host,
            work.template,
            "qcow2",
            work.path,
            making,
            work.virtual_bytes,
            trusted=True,
            attributes=attributes,
        )
    else:
        disks.create(host, work.path, Making(work.format), t.cast(int, work.virtual_bytes), attributes=attributes)


def make_home(name: str) -> None:
    """The directory of a guest's own disks. QEMU's user must be able to get through, and need not see what is there."""
    for directory in (paths.workload_dir(name), paths.guest_disks_dir(name)):
        os.makedirs(directory, exist_ok=True)
        os.chmod(directory, 0o711)


# --------------------------------------------------------------------------------------------------------------------
# The end
# --------------------------------------------------------------------------------------------------------------------
def delete(places: t.Iterable[str]) -> None:
    """Remove disks for good."""
    for path in places:
        files.remove_file(path, durable=True)
        # A link's target stays, and what is known of it.
        for known in {path, *files.places(path)}:
            disk_records.forget(known)


def leave(images: t.Mapping[str, str]) -> None:
    """Write down where images ({path: format}) stay that the guest has no longer: who removes what they rest on looks
    there. Not of those that lie where everybody looks, nor of raw ones: what these begin with the guest has written."""
    away = mounts.silent()
    for path, kind in sorted(images.items()):
        # What lies behind a network has no path here, and its storage may have gone by now.
        real = away.real(path) if path.startswith("/") else ""
        there = real and not real.startswith(tuple(f"{place}/" for place in _OURS))
        if there and kind != "raw" and disks.rests_on(real, away):
            disk_records.note(real)


def at_home(name: str) -> list[str]:
    """The files in the directory of a guest's own disks, whoever has brought them there."""
    directory = paths.guest_disks_dir(name)
    found = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return [f"{directory}/{one}" for one in found if not fnmatch.fnmatch(one, disks.TEMPORARY)]


def staying(name: str, going: t.Iterable[str]) -> list[str]:
    """Those of them that do not go with the guest: it leaves, and ``going`` are deleted."""
    gone = {place for path in going for place in files.places(path)}
    return [path for path in at_home(name) if not gone & files.places(path)]


def check_keep(name: str) -> None:
    """Refused where a guest's own disks cannot be brought to where they can stay."""
    problem = cannot_keep(name)
    if problem:
        raise Refused(
            f"guests: {name}: {problem}.",
            hint=f"Let {paths.STATE} be on one; or move away what you want to keep, and set delete_disks: true.",
        )


def cannot_keep(name: str) -> str:
    """Why what is in a guest's own directory cannot be brought to where it can stay: it is moved, not copied."""
    source, target = paths.guest_disks_dir(name), paths.KEPT_DISKS
    place = target
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.stat(source).st_dev == os.stat(place).st_dev:
        return ""
    return f"its disks cannot be kept: {source} and {target} are on two file systems"


def keep(host: Host, name: str) -> list[str]:
    """Bring what is in the directory of a guest that leaves to where it can stay, and return where that is.

    Images that rest on one another name each other by path: they are told the new one. Where they go is written down
    first: a run that was cut off is finished by the next one.
    """
    source, note = paths.guest_disks_dir(name), paths.guest_keeping_file(name)
    if not os.path.isdir(source):
        begun = files.read_json(note)
        return [] if begun is None else _tell_new_place(host, source, begun["target"], begun["names"])
    delete(glob.glob(f"{glob.escape(source)}/{disks.TEMPORARY}"))
    names = sorted(os.listdir(source))
    if not names:
        return []
    target = paths.kept_disks_dir(name)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{paths.kept_disks_dir(name)}-{number}"
    os.makedirs(os.path.dirname(target), mode=0o711, exist_ok=True)
    files.write_json(note, {"target": target, "names": names})
    try:
        os.rename(source, target)
    except OSError as error:
        raise HostError(
            f"{source} cannot be brought to {target}: {error.strerror}.",
            hint="Move away what is in it and is to be kept, and remove the rest.",
        ) from error
    files.sync_dir(os.path.dirname(target))
    return _tell_new_place(host, source, target, names)


def _tell_new_place(host: Host, source: str, target: str, names: t.Sequence[str]) -> list[str]:
    """Let the images ``names``, which were brought from ``source`` to ``target``, name each other there."""
    for one in names:
        path = f"{target}/{one}"
        if not one.endswith(".qcow2"):
            # What is in a raw disk only its guest has written.
            continue
        try:
            header = disks.inspect(path, "qcow2").header
        except (InputError, Refused):
            # Damaged, or taken away meanwhile: what it rests on nobody can say.
            continue
        if header.backing.startswith(f"{source}/"):
            backing = target + header.backing[len(source) :]
            argv = commands.rebase(path, header.format, backing, header.backing_format or "raw", unsafe=True)
            disks.run(host, argv, path)
    return [f"{target}/{one}" for one in names]
