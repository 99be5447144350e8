# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Disk images brought to what is wanted, and what is to be said of them (modules disk_image and disk_image_info)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import typing as t

from .._core.errors import HostError, InputError, Refused
from .._image import commands, headers, trust
from .._image.chain import Node
from .._image.commands import Condition, Making
from .._image.definition import Source, Wanted, normalise_all, path_of
from .._image.formats import FORMATS
from .._image.plan import Plan, Seen, in_place, plan
from . import disk_guests, disk_records, disks, files, snapshot_records, templates
from .disks import Attributes
from .system import Host

# In check mode, the size of an image that nobody has made yet: larger than nothing, so that every size will do.
_NOT_KNOWN = headers.SECTOR
# Said in check mode, where the tasks before have changed nothing.
_AS_IT_IS = "Check mode sees the host as it is now: where a task before changes what is in the way, run that one first."
# What a raw disk begins with though it is one: a CD's file system, and a disk that its guest has encrypted.
_IN_RAW = ("iso", "luks")


# -- What they are made of


def _made_of(wanted: Wanted) -> str:
    """What the image is made of, and how; a checksum says all about a source, wherever it lies."""
    source = t.cast(Source, wanted.source)
    if source.checksum:
        content: t.Any = list(source.checksum)
    else:
        with disks.File(source.path) as image:
            content = [source.path, *image.fingerprint()[1:4]]
    making = dataclasses.astuple(wanted.making)
    return hashlib.sha256(json.dumps([content, source.format, making]).encode()).hexdigest()


def _template_at(path: str) -> str:
    """The template whose image this is, by a name of it; '' for none."""
    return next((word for digest in templates.at(path) for word in (*templates.names_of(digest), digest)), "")


# -- Bringing images to what is wanted


def _attributes(wanted: Wanted) -> Attributes:
    return disks.attributes_of(wanted.path, wanted.owner, wanted.group, wanted.mode)


class _Work:
    """One call of the module: what it is told, and in check mode what there would be by now.

    ``would_be``: virtual sizes of images that would have been made. ``would_rest``: on what the images would rest.
    ``written``: of the bases that were asked for, the files in their chains to which guests write.
    """

    def __init__(self, host: Host, max_virtual_bytes: int, places: t.Sequence[str], check_mode: bool) -> None:
        self.host = host
        self.max_virtual_bytes = max_virtual_bytes
        self.places = places
        self.check_mode = check_mode
        self.would_be: dict[str, int] = {}
        self.would_rest: dict[str, str] = {}
        self.written: dict[str, t.Mapping[str, t.Collection[str]]] = {}

    def _virtual(self, path: str, kind: str, what: str, *, untrusted: bool = False) -> int:
        """Virtual size of an image that another one is made of. In check mode it may be one that is not made yet."""
        if self.check_mode and path in self.would_be:
            return self.would_be[path]
        try:
            if untrusted:
                return disks.in_sectors(disks.check_untrusted(path, kind, self.max_virtual_bytes).virtual_bytes)
            return disks.in_sectors(disks.chain(path, kind)[0].header.virtual_bytes)
        except InputError as error:
            if self.check_mode and not os.path.lexists(path):
                return _NOT_KNOWN
            raise InputError(f"{what}: {error.message}", hint=error.hint) from None

    def _made_of(self, wanted: Wanted, source: Source) -> str:
        """What it would be made of; '' where the source is not there yet, which is allowed in check mode."""
        try:
            return _made_of(wanted)
        except InputError:
            if self.check_mode and not os.path.lexists(source.path):
                return ""
            raise

    def look(self, wanted: Wanted) -> Seen:
        """The image as it is now."""
        seen = Seen(template=_template_at(wanted.path))
        try:
            status = os.lstat(wanted.path)
        except FileNotFoundError:
            return self._look_below(wanted, seen)
        if not stat.S_ISREG(status.st_mode):
            what = "link" if stat.S_ISLNK(status.st_mode) else "directory or a device"
            raise Refused(f"{wanted.path} is a {what}, no plain file.", hint="Give the path of the file itself.")
        seen = dataclasses.replace(seen, exists=True, attributes=disks.differing(wanted.path, _attributes(wanted)))
        if wanted.state == "absent":
            return self._look_around(wanted, seen)
        with disks.File(wanted.path) as image:
            marks = headers.identify(image)
        other = [mark for mark in marks if mark not in _IN_RAW]
        if wanted.format == "raw" and other:
            # Perhaps a guest wrote that into its disk. As long as nothing is to be done to it, it does not matter.
            seen = dataclasses.replace(seen, strange=f"by its content {other[0]}")
            if wanted.size in (None, status.st_size):
                seen = dataclasses.replace(seen, header=disks.inspect(wanted.path, "raw").header)
        elif wanted.format != "raw" and wanted.format not in marks:
            seen = dataclasses.replace(seen, strange=marks[0] if marks else "")
        else:
            if wanted.backing and wanted.rebase == "unsafe":
                # What is below it may be gone: that is what the word is for.
                node = disks.inspect(wanted.path, wanted.format)
            else:
                node = disks.chain(wanted.path, wanted.format)[0]
            below = disks.backing_path(node)
            same = bool(below and wanted.backing) and os.path.realpath(below) == os.path.realpath(wanted.backing)
            seen = dataclasses.replace(seen, header=node.header, backing=below, same_backing=same)
            if (wanted.check or wanted.repair != "none") and FORMATS[wanted.format].checks:
                seen = dataclasses.replace(seen, condition=disks.check(self.host, wanted.path, wanted.format))
        if wanted.source and wanted.replace:
            last, now = disk_records.last(wanted.path), self._made_of(wanted, wanted.source)
            same, ours = bool(now) and last.get("made_of") == now, last.get("inode") == status.st_ino
            up_to_date = same and ours and seen.header is not None
            seen = dataclasses.replace(seen, up_to_date=up_to_date, swapped=same and not ours)
        return self._look_around(wanted, self._look_below(wanted, seen))

    def _look_below(self, wanted: Wanted, seen: Seen) -> Seen:
        """What it is to be made of, where it is to be made."""
        if wanted.state == "absent":
            return seen
        if wanted.source and (not seen.exists or (wanted.replace and not seen.up_to_date)):
            source = wanted.source
            size = self._virtual(source.path, source.format, f"{wanted.path}: source", untrusted=not source.trusted)
            return dataclasses.replace(seen, source_bytes=size)
        if wanted.backing and not seen.same_backing:
            size = self._virtual(wanted.backing, wanted.backing_format, f"{wanted.path}: backing")
            written = self._written(wanted.backing, wanted.backing_format)
            return dataclasses.replace(seen, backing_bytes=size, written_below=written)
        return seen

    def _written(self, path: str, kind: str) -> t.Mapping[str, t.Collection[str]]:
        """The files of a chain to which guests write, and which ones. Many images may rest on one: it is asked once."""
        if path not in self.written:
            # In check mode it may be one that is not made yet.
            there = os.path.lexists(path) and path not in self.would_be
            chain = [node.path for node in disks.chain(path, kind)] if there else []
            found = disk_guests.of(chain, written=True)
            self.written[path] = {each: guests for each, guests in found.items() if guests}
        return self.written[path]

    def _look_around(self, wanted: Wanted, seen: Seen) -> Seen:
        """Who else needs it. Looked for only where something is to be done to one that is there."""
        if not seen.exists or not plan(wanted, seen).touches:
            return seen
        around = {**disks.overlays_around([wanted.path], self.places), **self.would_rest}
        found = disks.resting_on(wanted.path, around)
        guests = disk_guests.of([wanted.path])[wanted.path]
        return dataclasses.replace(
            seen,
            in_use=disks.in_use(wanted.path),
            dependants=tuple(found),
            snapshots_of=snapshot_records.guest_of(wanted.path),
            guests=tuple(guests),
            saved=next((name for name, saved in guests.items() if saved), ""),
        )

    def _decide(self, wanted: Wanted) -> tuple[Seen, Plan]:
        """What there is, and what is to be done. A refusal holds in check mode too, for what is there now."""
        try:
            seen = self.look(wanted)
            return seen, plan(wanted, seen)
        except Refused as error:
            if not self.check_mode:
                raise
            raise Refused(error.message, hint=f"{error.hint} {_AS_IT_IS}".strip(), **error.details) from None

    def bring(self, wanted: Wanted) -> dict[str, t.Any]:
        """One image to what is wanted; its result."""
        with disks.at_work_on(wanted.path, check_mode=self.check_mode):
            seen, made = self._decide(wanted)
            before = self._shown(wanted, seen)
            condition = seen.condition
            if self.check_mode:
                after = _predicted(wanted, made, before)
                if made.make:
                    self.would_be[wanted.path] = made.virtual_bytes
                if made.touches:
                    self.would_rest[wanted.path] = os.path.realpath(after["backing"]) if after.get("backing") else ""
            else:
                if made.changed:
                    below = templates.at(wanted.backing) if wanted.backing else []
                    with templates.used(below, f"making {wanted.path}"):
                        condition = self._do(wanted, seen, made) or condition
                elif wanted.state == "absent":
                    # Somebody else has removed it.
                    disk_records.forget(wanted.path)
                after = self._shown(wanted, self._seen_again(wanted)) if made.changed else before
        status = os.lstat(wanted.path) if after and os.path.lexists(wanted.path) else None
        return {
            "path": wanted.path,
            "changed": made.changed,
            "actions": made.actions,
            "state": "present" if after else "absent",
            **(after or {}),
            "file_bytes": status.st_size if status else None,
            "allocated_bytes": status.st_blocks * 512 if status else None,
            "check": condition.as_dict() if condition else None,
            "warnings": self._warnings(made, condition),
            "before": before,
        }

    def _warnings(self, made: Plan, condition: t.Optional[Condition]) -> list[str]:
        words = list(made.warnings)
        if condition is not None and condition.leaks and not made.repair:
            words.append(f"{made.path}: {condition.leaks} clusters are not used by anything; repair: leaks frees them.")
        return words

    def _seen_again(self, wanted: Wanted) -> Seen:
        if wanted.state == "absent":
            return Seen()
        node = disks.inspect(wanted.path, wanted.format)
        return Seen(exists=True, header=node.header, backing=disks.backing_path(node))

    def _shown(self, wanted: Wanted, seen: Seen) -> dict[str, t.Any]:
        """What the module says about an image; the same keys in its diff."""
        if not seen.exists:
            return {}
        header = seen.header
        return {
            "format": header.format if header else None,
            "virtual_bytes": header.virtual_bytes if header else None,
            "backing": seen.backing or None,
            "backing_format": (header.backing_format if header else "") or None,
            **disks.shown_attributes(wanted.path),
        }

    def _do(self, wanted: Wanted, seen: Seen, made: Plan) -> t.Optional[Condition]:
        """Carry the plan out; the condition of a repaired image."""
        host, path, kind = self.host, wanted.path, wanted.format
        attributes = _attributes(wanted)
        condition = None
        if made.remove:
            files.remove_file(path, durable=True)
            disk_records.forget(path)
            return None
        if wanted.backing:
            # First: it may lie where nobody else looks who removes what it rests on.
            disk_records.note(path)
        made_of = disk_records.of(path).get("made_of", "")
        if made.make == "convert":
            source = t.cast(Source, wanted.source)
            made_of = _made_of(wanted)
            disks.convert(
                host,
                source.path,
                source.format,
                path,
                wanted.making,
                made.virtual_bytes,
                trusted=source.trusted,
                checksum=source.checksum,
                max_virtual_bytes=self.max_virtual_bytes,
                attributes=attributes,
            )
        elif made.make and wanted.backing:
            disks.create_overlay(
                host,
                wanted.backing,
                wanted.backing_format,
                path,
                made.virtual_bytes,
                cluster_bytes=wanted.cluster_bytes,
                attributes=attributes,
            )
        elif made.make:
            disks.create(host, path, wanted.making, made.virtual_bytes, attributes=attributes)
        elif in_place(made, kind):
            self._in_place(wanted, made)
        else:
            condition = self._in_a_copy(wanted, made)
        if made.make or (made_of and made.touches):
            disk_records.write(path, kind, made_of)
        disks.set_attributes(path, attributes)
        return condition

    def _in_place(self, wanted: Wanted, made: Plan) -> None:
        path, kind = wanted.path, wanted.format
        if made.rebase:
            disks.check_may_rest(path, disks.chain(wanted.backing, wanted.backing_format))
            disks.run(self.host, commands.rebase(path, kind, wanted.backing, wanted.backing_format, unsafe=True), path)
            disks.sync(path)
        if made.grow:
            disks.resize(self.host, path, kind, made.virtual_bytes, preallocation=wanted.preallocation)

    def _in_a_copy(self, wanted: Wanted, made: Plan) -> t.Optional[Condition]:
        host, path, kind = self.host, wanted.path, wanted.format
        condition = None
        if not FORMATS[kind].repairs:
            # All that there is to do to it is to let it grow.
            disks.resize(host, path, kind, made.virtual_bytes)
            return None
        if made.rebase:
            disks.check_may_rest(path, disks.chain(wanted.backing, wanted.backing_format))
        with disks.replacing(path) as copy:
            if made.flatten:
                disks.check_room(host, path, kind, path, Making(kind), list)
            # The backing file's name in it may be a relative one: the copy lies in the same directory.
            host.run(["cp", "--reflink=auto", "--sparse=always", "--", path, copy])
            if made.repair:
                condition = disks.check(host, copy, kind, repair=made.repair, copy_of=path)
                if condition is None or not condition.good:
                    raise HostError(f"{path} could not be repaired.", hint="Restore it. It is as it was before.")
            if made.flatten:
                # Not converted: what is zero in it stays said to be so. libvirt lets a guest that is started before
                # its play has run read what is not from the file that was below it.
                disks.run(host, commands.rebase(copy, kind, "", "", unsafe=False), path)
            if made.rebase:
                unsafe = made.rebase != "safe"
                disks.run(host, commands.rebase(copy, kind, wanted.backing, wanted.backing_format, unsafe=unsafe), path)
            if made.grow:
                disks.run(host, commands.resize(copy, kind, made.virtual_bytes, wanted.preallocation), path)
        return condition


def _predicted(wanted: Wanted, made: Plan, before: dict[str, t.Any]) -> dict[str, t.Any]:
    """What the image will be."""
    if made.remove or (wanted.state == "absent"):
        return {}
    after = dict(before)
    if made.make:
        after.update(format=wanted.format, backing=wanted.backing or None, backing_format=wanted.backing_format or None)
    if made.make or made.grow:
        after["virtual_bytes"] = None if made.virtual_bytes == _NOT_KNOWN else made.virtual_bytes
    if made.flatten:
        after.update(backing=None, backing_format=None)
    if made.rebase:
        after.update(backing=wanted.backing, backing_format=wanted.backing_format)
    after.update(disks.shown_attributes(wanted.path, _attributes(wanted)))
    return after


def bring_to(
    host: Host,
    items: object,
    *,
    max_virtual_bytes: int = trust.DEFAULT_MOST_VIRTUAL_BYTES,
    places: t.Sequence[str] = (),
    check_mode: bool = False,
) -> dict[str, t.Any]:
    """Bring images to what is wanted, in the order in which they are given; the module's result."""
    wanted = normalise_all(items)
    for place in places:
        path_of(place, "dependants_in", ours=False)
    work = _Work(host, max_virtual_bytes, places, check_mode)
    results = [work.bring(one) for one in wanted]
    before = {one["path"]: one.pop("before") for one in results}
    keys = ("format", "virtual_bytes", "backing", "backing_format", "owner", "group", "mode")
    after = {one["path"]: {key: one[key] for key in keys if key in one} for one in results}
    return {
        "changed": any(one["changed"] for one in results),
        "images": results,
        "warnings": [words for one in results for words in one.pop("warnings")],
        "diff": {"before": before, "after": after},
    }


# -- Telling


def report(
    wanted: t.Sequence[str],
    *,
    with_digest: bool = False,
    with_dependants: bool = True,
    places: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """What there is to say about images, with all below them: ``images``, ``warnings``.

    Never fails for an image: ``problem`` says what is wrong. ``dependants``: None where nobody can say.
    """
    for path in wanted:
        path_of(path, "paths", ours=False)
    found: t.Optional[dict[str, list[str]]] = {}
    warnings: list[str] = []
    there = [path for path in wanted if os.path.lexists(path)]
    if with_dependants and there:
        try:
            overlays, guests = disks.overlays_around(wanted, places), disk_guests.of(there)
            found = {
                path: [*(f"guest {name}" for name in guests[path]), *disks.resting_on(path, overlays)] for path in there
            }
        except HostError as error:
            found, warnings = None, [disks.not_known(error)]
    result = []
    for path in wanted:
        one: dict[str, t.Any] = {"path": path, "exists": os.path.lexists(path), "problem": None, "chain": []}
        if one["exists"]:
            try:
                one.update(_told(path, with_digest))
            except (Refused, InputError, HostError) as error:
                one["problem"] = error.message
            if with_dependants:
                one["dependants"] = None if found is None else found[path]
        result.append(one)
    return {"images": result, "warnings": warnings}


def _told(path: str, with_digest: bool) -> dict[str, t.Any]:
    top = disks.inspect(path, str(disk_records.of(path).get("format") or ""))
    one = {**_node(top), "in_use": disks.in_use(path)}
    header = top.header
    one.update(
        encrypted=header.encrypted or None,
        compression=header.compression or None,
        snapshots=header.snapshots,
        dirty=header.dirty,
        corrupt=header.corrupt,
        needs=list(header.external),
        digest=disks.digest(path) if with_digest else None,
    )
    try:
        one["chain"] = [_node(node) for node in disks.chain(path, header.format)]
    except (Refused, InputError, HostError) as error:
        one.update(chain=[_node(top)], problem=error.message)
    return one


def _node(node: Node) -> dict[str, t.Any]:
    header = node.header
    return {
        "path": node.path,
        "format": header.format,
        "subformat": header.subformat or None,
        "virtual_bytes": header.virtual_bytes,
        "file_bytes": node.file_bytes,
        "allocated_bytes": node.allocated_bytes,
        "cluster_bytes": header.cluster_bytes or None,
        "backing": disks.backing_path(node) or None,
        "backing_format": header.backing_format or None,
    }
