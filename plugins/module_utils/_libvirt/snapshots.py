# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Snapshots of a guest's disks, as a tree of files that rest on one another.

A snapshot is a file that nobody writes to any more; the guest goes on in an overlay above it. The record
(snapshots.json) says which file is which:

``tops``
    {disk: the file that the guest writes to}
``files``
    {path: ``disk``, ``format``, ``backing`` (path or ''), ``read_only`` (a template's)} of all of them, bases included
``snapshots``
    in the order in which they were made: ``name``, ``parent``, ``disks`` ({disk: file}), ``created`` and more;
    ``removing`` once it is being merged away, as its files are then no longer what they were
``current``
    the snapshot above which the guest is now; ``serial``: number of the last overlay
``pending``
    what is being done: the record as it will be, and a disk with the file by which it is known to have been done
``gone``
    files that nothing needs any more, as long as they are not removed; ``was``: what the guest was before it was turned
    off to go back to a snapshot, until it is that again

libvirt's own records of snapshots are not used: they forbid migration, and its versions differ in what they can undo.
"""

from __future__ import annotations

import copy
import dataclasses
import typing as t

from .._core.errors import Refused
from .domain import Model
from .xml import Node

SCHEMA = 1
Record = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Merge:
    """One step of a removal: the content of ``source`` goes down into ``into``, which takes its place.

    ``active``: the guest writes to ``source``. ``above``: files that rest on ``source`` and on ``into`` afterwards.
    With an empty ``source`` nothing rests on ``into``: it is removed.
    """

    disk: str
    into: str
    source: str = ""
    active: bool = False
    above: tuple[str, ...] = ()


def empty(model: Model) -> Record:
    """The record of a guest without snapshots: its disks as they are."""
    record: Record = {
        "schema": SCHEMA,
        "serial": 0,
        "current": "",
        "tops": {},
        "files": {},
        "snapshots": [],
        "pending": None,
    }
    for name, disk in model["disks"].items():
        if disk["read_only"] or not disk["path"].startswith("/"):
            continue
        record["tops"][name] = disk["path"]
        chain = [{"path": disk["path"], "format": disk["format"], "read_only": False}, *disk["backing"]]
        for at, one in enumerate(chain):
            below = chain[at + 1]["path"] if at + 1 < len(chain) else ""
            record["files"][one["path"]] = {
                "disk": name,
                "format": one["format"],
                "backing": below,
                "read_only": one["read_only"],
            }
    return record


def joined(record: Record, model: Model) -> Record:
    """The record with the disks that the guest got after its first snapshot, and without those that it lost; of one
    that is in no snapshot, with the file that it has now."""
    now = empty(model)
    free = record["tops"].keys() - _kept(record)
    lost = [disk for disk in record["tops"] if disk in free and now["tops"].get(disk) != record["tops"][disk]]
    new = [disk for disk in now["tops"] if disk not in record["tops"] or disk in lost]
    if not new and not lost:
        return record
    after = copy.deepcopy(record)
    for disk in lost:
        del after["tops"][disk]
    _unused(after)
    for disk in new:
        path = after["tops"][disk] = now["tops"][disk]
        while path:
            after["files"].setdefault(path, now["files"][path])
            path = now["files"][path]["backing"]
    return after


def strayed(model: Model, *records: Record) -> dict[str, tuple[str, str]]:
    """{disk: (where the guest has it, where it should)} of those that it has in another file than each of the records
    says. One that it has lost is nowhere."""
    found = {}
    for disk, top in records[0]["tops"].items():
        path = model["disks"].get(disk, {"path": top})["path"]
        if path not in {record["tops"].get(disk) for record in records}:
            found[disk] = (path, top)
    return found


def names(record: t.Optional[Record]) -> list[str]:
    """The snapshots in the order in which they were made."""
    return [one["name"] for one in (record or {}).get("snapshots", ())]


def find(record: t.Optional[Record], name: str) -> t.Optional[dict[str, t.Any]]:
    """One snapshot."""
    return next((one for one in (record or {}).get("snapshots", ()) if one["name"] == name), None)


def lacking(snapshot: t.Mapping[str, t.Any], description: str, *, quiesce: bool, memory: bool) -> list[str]:
    """What is asked for of a snapshot that was made without it."""
    found = []
    if memory and not snapshot.get("memory"):
        found.append("memory: it has none, and going back to it boots the guest afresh")
    if quiesce and not snapshot.get("quiesced"):
        found.append("quiesce: the guest's file systems were not at rest")
    if description and description != snapshot.get("description"):
        found.append(f"description: it has {snapshot.get('description') or ''!r}")
    return found


def below(record: Record, path: str) -> list[dict[str, t.Any]]:
    """What a file rests on, nearest first, as a model's disk has it."""
    found = []
    path = record["files"][path]["backing"]
    while path:
        one = record["files"][path]
        found.append({"path": path, "format": one["format"], "read_only": one["read_only"]})
        path = one["backing"]
    return found


def all_files(record: Record) -> set[str]:
    """The files of the disks, and those with the memory of snapshots."""
    return {*record["files"], *(one["memory"] for one in record["snapshots"] if one.get("memory"))}


def above(record: Record, path: str) -> list[str]:
    """The files that rest directly on one."""
    return sorted(other for other, one in record["files"].items() if one["backing"] == path)


def tops(record: t.Optional[Record]) -> dict[str, tuple[str, list[dict[str, t.Any]]]]:
    """{disk: (the file that the guest writes to, what is below it)} of those that are in a snapshot."""
    if not record or not record["snapshots"]:
        return {}
    kept = _kept(record)
    return {disk: (path, below(record, path)) for disk, path in record["tops"].items() if disk in kept}


def _kept(record: Record) -> set[str]:
    """The disks that are in a snapshot."""
    return {disk for one in record["snapshots"] for disk in one["disks"]}


def with_tops(model: Model, record: Record) -> Model:
    """The model of the guest as the record says that its disks are."""
    disks = dict(model["disks"])
    for name, path in record["tops"].items():
        if name in disks:
            found = {"path": path, "backing": below(record, path), "format": record["files"][path]["format"]}
            disks[name] = {**disks[name], **found}
    return {**model, "disks": disks}


def overlays(record: Record, directory: str, disks: t.Optional[t.Iterable[str]] = None) -> dict[str, str]:
    """Names for the next overlay of each disk (or of ``disks``)."""
    chosen = record["tops"] if disks is None else disks
    return {disk: f"{directory}/{disk}-{record['serial'] + 1}.qcow2" for disk in chosen}


def memory_file(record: Record, directory: str) -> str:
    """A name for the memory of the next snapshot."""
    return f"{directory}/memory-{record['serial'] + 1}.save"


def with_free_names(
    record: Record, directory: str, taken: t.Callable[[str], bool], disks: t.Optional[t.Iterable[str]] = None
) -> Record:
    """The record as it is to be for the next overlays (and memory) to have names that are not ``taken``: a disk of the
    user, of this guest or of another one, may be called as one of ours would be."""
    chosen = list(record["tops"] if disks is None else disks)
    while any(map(taken, [*overlays(record, directory, chosen).values(), memory_file(record, directory)])):
        record = {**record, "serial": record["serial"] + 1}
    return record


def _grown(record: Record, made: t.Mapping[str, str], on: t.Mapping[str, str]) -> Record:
    """With new overlays ``made`` above ``on`` as what the guest writes to."""
    record = copy.deepcopy(record)
    record["serial"] += 1
    for disk, path in made.items():
        record["files"][path] = {"disk": disk, "format": "qcow2", "backing": on[disk], "read_only": False}
        record["tops"][disk] = path
    return record


def created(record: Record, made: t.Mapping[str, str], snapshot: t.Mapping[str, t.Any]) -> Record:
    """The record with one more snapshot; ``snapshot``: its name and what else is to be kept of it."""
    frozen = {disk: record["tops"][disk] for disk in made}
    after = _grown(record, made, frozen)
    after["snapshots"].append({**snapshot, "parent": record["current"], "disks": frozen})
    after["current"] = snapshot["name"]
    return after


def reverted(record: Record, name: str, made: t.Mapping[str, str]) -> tuple[Record, list[str]]:
    """The record with the guest above another snapshot again, and the files that nothing needs any more. ``made``: of
    the disks that are in the snapshot; one that the guest got later stays as it is."""
    snapshot = t.cast("dict[str, t.Any]", find(record, name))
    after = _grown(record, made, snapshot["disks"])
    after["current"] = name
    return after, _unused(after)


def _unused(record: Record) -> list[str]:
    """Forget overlays that neither the guest nor a snapshot needs; which they are."""
    gone: list[str] = []
    kept = {*record["tops"].values(), *(path for one in record["snapshots"] for path in one["disks"].values())}
    while True:
        free = [path for path in record["files"] if path not in kept and not above(record, path)]
        free = [path for path in free if not record["files"][path]["read_only"]]
        if not free:
            return gone
        for path in free:
            del record["files"][path]
            gone.append(path)


def removal(record: Record, name: str) -> list[Merge]:
    """How a snapshot's files are merged into what is above them. Refused where two things rest on one of them."""
    snapshot = t.cast("dict[str, t.Any]", find(record, name))
    steps = []
    for disk, path in snapshot["disks"].items():
        users = [one["name"] for one in record["snapshots"] if one is not snapshot and one["disks"].get(disk) == path]
        if users:
            continue
        resting = above(record, path)
        if len(resting) > 1:
            others = [one["name"] for one in record["snapshots"] if one["parent"] == name]
            raise Refused(
                f"Snapshot {name!r} is where {len(resting)} lines of the disk {disk} part; it cannot be merged.",
                hint=f"Remove the snapshots above it first: {', '.join(others)}.",
            )
        source = resting[0] if resting else ""
        steps.append(
            Merge(
                disk, path, source, source == record["tops"].get(disk), tuple(above(record, source)) if source else ()
            )
        )
    return steps


def removing(record: Record, name: str) -> Record:
    """The record with a snapshot that is being merged away: none can go back to it any more."""
    after = copy.deepcopy(record)
    t.cast("dict[str, t.Any]", find(after, name))["removing"] = True
    return after


def merged(record: Record, step: Merge, name: str) -> Record:
    """The record after one step of the removal of the snapshot ``name``."""
    after = copy.deepcopy(record)
    snapshot = t.cast("dict[str, t.Any]", find(after, name))
    del snapshot["disks"][step.disk]
    if not step.source:
        del after["files"][step.into]
    else:
        del after["files"][step.source]
        for one in after["files"].values():
            if one["backing"] == step.source:
                one["backing"] = step.into
        for other in after["snapshots"]:
            if other["disks"].get(step.disk) == step.source:
                other["disks"][step.disk] = step.into
        if after["tops"][step.disk] == step.source:
            after["tops"][step.disk] = step.into
    return after


def removed(record: Record, name: str) -> Record:
    """The record without a snapshot whose files were merged."""
    after = copy.deepcopy(record)
    gone = t.cast("dict[str, t.Any]", find(after, name))
    after["snapshots"] = [one for one in after["snapshots"] if one is not gone]
    for one in after["snapshots"]:
        if one["parent"] == name:
            one["parent"] = gone["parent"]
    if after["current"] == name:
        after["current"] = gone["parent"]
    return after


# --------------------------------------------------------------------------------------------------------------------
# What was cut off
# --------------------------------------------------------------------------------------------------------------------
def announce(before: Record, after: Record, gone: t.Sequence[str] = ()) -> Record:
    """The record as it is written before something is done to the guest's XML. ``gone``: files that nothing needs
    once it is done."""
    return {**before, "pending": {**after, **({"gone": list(gone)} if gone else {}), "pending": None}}


def settle(record: Record, model: Model) -> Record:
    """The record of a guest of which something was being done, by what its stored XML says: done, or not begun."""
    pending = record["pending"]
    if not pending:
        return record
    moved = [disk for disk, path in pending["tops"].items() if record["tops"].get(disk) != path]
    done = bool(moved) and all(model["disks"].get(disk, {}).get("path") == pending["tops"][disk] for disk in moved)
    return t.cast(Record, pending) if done else {**record, "pending": None}


# --------------------------------------------------------------------------------------------------------------------
# XML
# --------------------------------------------------------------------------------------------------------------------
def node(name: str, made: t.Mapping[str, str], model: Model, memory: str = "") -> Node:
    """The <domainsnapshot> that lets a running guest go on in the overlays ``made``; ``memory``: a file for that."""
    others = [*(disk for disk in model["disks"] if disk not in made), *model["cdroms"]]
    return (
        "domainsnapshot",
        ("name", name),
        ("memory", {"snapshot": "external", "file": memory} if memory else {"snapshot": "no"}),
        (
            "disks",
            [
                (
                    "disk",
                    {"name": disk, "snapshot": "external", "type": "file"},
                    ("driver", {"type": "qcow2"}),
                    ("source", {"file": path}),
                )
                for disk, path in made.items()
            ],
            [("disk", {"name": disk, "snapshot": "no"}) for disk in others],
        ),
    )
