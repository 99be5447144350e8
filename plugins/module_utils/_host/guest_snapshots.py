# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Snapshots of guests: made while they run or stand still, gone back to, merged away.

Before the guest's XML changes the record says what will be; what a killed run has left is settled by what the XML says.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, Refused
from .._core.names import check_name
from .._core.values import integer
from .._image.commands import PROGRAM, rebase
from .._libvirt import domain, guest_plan, snapshots, xml
from .._libvirt.snapshots import Merge, Record
from . import disks, files, guest_disks, guest_jobs, guest_power, libvirt, ownership, snapshot_records
from .disks import Attributes
from .domains import Known, read
from .system import Host

STATES = ("present", "absent", "reverted")
_POLL_S = 0.1


def listing(record: Record) -> list[dict[str, t.Any]]:
    """What is to be said of a guest's snapshots."""
    found = []
    for one in record["snapshots"]:
        memory = one.get("memory") or ""
        found.append(
            {
                **{key: one.get(key) for key in ("name", "description", "created", "parent", "quiesced", "state")},
                "parent": one["parent"] or None,
                "memory": bool(memory),
                "current": one["name"] == record["current"],
                "disks": [{"name": disk, "path": path} for disk, path in sorted(one["disks"].items())],
                "allocated_bytes": sum(_allocated(path) for path in [*one["disks"].values(), memory]),
            }
        )
    return found


def _allocated(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_blocks * 512
    return 0


# --------------------------------------------------------------------------------------------------------------------
# One guest
# --------------------------------------------------------------------------------------------------------------------
class Work:
    """What is done to the snapshots of one guest."""

    def __init__(
        self, host: Host, connection: libvirt.Connection, name: str, known: Known, *, timeout_s: float = 3600
    ) -> None:
        self.host = host
        self.connection = connection
        self.name = name
        self.known = known
        self.timeout_s = timeout_s
        self.model = known.model
        record = snapshot_records.load(name)
        self.record = snapshot_records.settled(record, self.model)
        self.home = paths.guest_disks_dir(name)
        # What a run that was cut off was about to make, and nothing has: nobody else may be asked whose it is. Not what
        # it was to rest on: a disk may have been taken away from the guest since, and its file is kept.
        pending = record and record["pending"]
        self.left = (
            snapshots.all_files(pending) - snapshots.all_files(record) - self._used() if record and pending else set()
        )

    @property
    def live(self) -> bool:
        """Whether a QEMU has the disks open."""
        return self.known.live is not None

    # -- making -----------------------------------------------------------------------------------------------------
    def create(self, snapshot: str, description: str, *, quiesce: bool, memory: bool) -> None:
        """Freeze the disks (and the memory) as they are now; the guest goes on above them."""
        guest_disks.make_home(self.name)
        self.finish_pending()
        self.record.pop("was", None)
        made = self._new_names()
        image = snapshots.memory_file(self.record, self.home) if memory else ""
        kept = {
            "name": snapshot,
            "description": description,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quiesced": quiesce,
            "memory": image,
            "state": self.known.state,
        }
        after = snapshots.created(self.record, made, kept)
        snapshot_records.save(self.name, snapshots.announce(self.record, after))
        try:
            if self.live:
                self._create_live(snapshot, made, quiesce=quiesce, image=image)
            else:
                for disk, path in made.items():
                    self._overlay(self.record["tops"][disk], path)
            self._define(after)
        except BaseException:
            self._back(made, image)
            raise
        self._keep(after)

    def _used(self) -> set[str]:
        """The files of the guest's snapshots, and those that it has for disks and CDs, or has at its next start."""
        models = [self.model, self.known.live_model or domain.EMPTY]
        inserted = {one["path"] for model in models for one in model["cdroms"].values()}
        return inserted.union(snapshots.all_files(self.record), *map(guest_jobs.given, models))

    def _new_names(self, of: t.Optional[t.Collection[str]] = None) -> dict[str, str]:
        """Names for the next overlays (of these disks), where nothing is: what lies in the guest's directory somebody
        has brought there."""
        used = self._used()

        def taken(path: str) -> bool:
            return path in used or os.path.lexists(path)

        self.record = snapshots.with_free_names(self.record, self.home, taken, of)
        return snapshots.overlays(self.record, self.home, of)

    def _create_live(self, snapshot: str, made: t.Mapping[str, str], *, quiesce: bool, image: str) -> None:
        library = libvirt.library()
        flags = library.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | library.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        if image:
            flags |= library.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        else:
            flags |= library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        if quiesce:
            flags |= library.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
        text = xml.document(snapshots.node(snapshot, made, self.model, image))
        with libvirt.doing(f"make a snapshot of the guest {self.name!r}"):
            self.known.domain.snapshotCreateXML(text, flags)

    def _overlay(self, below: str, path: str) -> None:
        attributes = Attributes(uid=0, gid=0, mode=0o600)
        kind = self.record["files"][below]["format"]
        disks.create_overlay(self.host, below, kind, path, attributes=attributes)

    def _back(self, made: t.Mapping[str, str], image: str) -> None:
        """After a failure: what the guest writes to now decides what is kept."""
        with contextlib.suppress(CnvmError):
            self._reread()
            self.record = snapshots.settle(t.cast(Record, snapshot_records.load(self.name)), self.model)
            if self.record["tops"] != {**self.record["tops"], **made}:
                for path in [*made.values(), *([image] if image else [])]:
                    files.remove_file(path)
            snapshot_records.save(self.name, self.record)

    # -- going back -------------------------------------------------------------------------------------------------
    def revert(self, snapshot: str) -> None:
        """Throw away what was written since, and go on above the snapshot. A running guest is turned off for it, and
        is afterwards what it was: as the snapshot's memory says, or freshly booted."""
        self.finish_pending()
        kept = t.cast("dict[str, t.Any]", snapshots.find(self.record, snapshot))
        was = self._was()
        made = self._new_names(kept["disks"])
        after, gone = snapshots.reverted(self.record, snapshot, made)
        after["was"] = was
        snapshot_records.save(self.name, snapshots.announce({**self.record, "was": was}, after, gone))
        try:
            # What they rest on nobody writes to: the guest may run on until nothing can fail for lack of room.
            for disk, path in made.items():
                self._overlay(kept["disks"][disk], path)
            self._check_power(self.live)
        except BaseException:
            for path in made.values():
                files.remove_file(path)
            snapshot_records.save(self.name, self.record)
            raise
        if self.live:
            with guest_power.gone_is_good(), libvirt.doing(f"turn the guest {self.name!r} off"):
                self.known.domain.destroy()
            self.known.live = None
        if self.known.saved:
            # It is of what was written since.
            with libvirt.doing(f"give up the saved memory of the guest {self.name!r}"):
                self.known.domain.managedSaveRemove(0)
        self._define(after)
        self._keep(after, gone)
        if kept.get("memory"):
            self._restore(kept)
        elif was in (guest_plan.RUNNING, guest_plan.PAUSED):
            flags = libvirt.library().VIR_DOMAIN_START_PAUSED if was == guest_plan.PAUSED else 0
            with libvirt.doing(f"start the guest {self.name!r}"):
                t.cast(libvirt.Domain, libvirt.domain(self.connection, self.name)).createWithFlags(flags)
        self._keep({key: value for key, value in after.items() if key != "was"})

    def _was(self) -> str:
        """What it is, or was before a run that was cut off has turned it off."""
        _state, reason = libvirt.state_of(self.known.domain) or (0, 0)
        ours = not self.live and reason == libvirt.library().VIR_DOMAIN_SHUTOFF_DESTROYED
        return str(self.record.get("was", self.known.state)) if ours else self.known.state

    def _restore(self, kept: t.Mapping[str, t.Any]) -> None:
        library = libvirt.library()
        paused = kept.get("state") == guest_plan.PAUSED
        flags = library.VIR_DOMAIN_SAVE_PAUSED if paused else library.VIR_DOMAIN_SAVE_RUNNING
        with libvirt.doing(f"bring the memory of the guest {self.name!r} back"):
            text = self.connection.saveImageGetXMLDesc(kept["memory"], library.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
            saved = xml.parse(text, "the saved memory")
            then = domain.parse(saved)
            now = snapshots.with_tops(then, self.record)
            # Only where its disks are is another place: the rest must be what it was.
            wanted = domain.patch(saved, {**then, "disks": now["disks"]})
            self.connection.restoreFlags(kept["memory"], xml.document(wanted), flags)

    # -- merging ----------------------------------------------------------------------------------------------------
    def remove(self, snapshot: str) -> None:
        """Merge its files into what is above them. What was done of it stays done when it is cut off."""
        self.finish_pending()
        self.record.pop("was", None)
        # A merge that is given up half-way has already written to the files that the snapshot is made of.
        self._keep(snapshots.removing(self.record, snapshot))
        kept = t.cast("dict[str, t.Any]", snapshots.find(self.record, snapshot))
        for step in snapshots.removal(self.record, snapshot):
            after = snapshots.merged(self.record, step, snapshot)
            if step.source:
                self._merge(step, after)
            self._keep(after, [step.source or step.into])
        if kept.get("memory"):
            files.remove_file(kept["memory"])
        self._keep(snapshots.removed(self.record, snapshot))

    def _merge(self, step: Merge, after: Record) -> None:
        if step.active:
            snapshot_records.save(self.name, snapshots.announce(self.record, after, [step.source]))
        opened = self._live_files(step.disk)
        if step.source in opened:
            self._commit_live(step)
        elif step.into not in opened:
            argv = [PROGRAM, "commit", "-q", "-f", "qcow2", "-b", step.into, step.source]
            disks.run(self.host, argv, step.into)
            kind = self.record["files"][step.into]["format"]
            for path in step.above:
                disks.run(self.host, rebase(path, "qcow2", step.into, kind, unsafe=True), path)
        # Else it was merged by a run that was cut off before it could write that down.
        self._define(after)

    def _live_files(self, disk: str) -> set[str]:
        """The files of a disk that the running guest has open."""
        found = (self.known.live_model or domain.EMPTY)["disks"].get(disk)
        return {found["path"], *(one["path"] for one in found["backing"])} if found else set()

    def _commit_live(self, step: Merge) -> None:
        """Let QEMU merge two files of a running guest; of the one that it writes to it lets go at the end."""
        library = libvirt.library()
        each = self.known.domain
        flags = library.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if step.active else 0
        pivot = library.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT | library.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC
        ends = time.monotonic() + self.timeout_s
        with libvirt.doing(f"merge the snapshot of the disk {step.disk} of the guest {self.name!r}"):
            if not each.blockJobInfo(step.disk, 0):
                each.blockCommit(step.disk, step.into, step.source, 0, flags)
            # A merge below the active file ends by itself.
            while each.blockJobInfo(step.disk, 0):
                mirror = self._mirror(step.disk) if step.active else ""
                if mirror == "yes":
                    each.blockJobAbort(step.disk, pivot)
                elif time.monotonic() >= ends:
                    self._give_up(step.disk, mirror)
                time.sleep(_POLL_S)
        self._reread()
        if step.source in self._live_files(step.disk):
            raise HostError(
                f"The snapshot of the disk {step.disk} of guest {self.name!r} could not be merged.",
                hint=f"See /var/log/libvirt/qemu/{self.name}.log. The guest goes on as before; try again.",
            )

    def _give_up(self, disk: str, mirror: str) -> None:
        """End a merge that takes too long."""
        # One that QEMU was told to finish cannot be ended any more.
        if mirror != "pivot":
            self.known.domain.blockJobAbort(disk, 0)
        raise HostError(
            f"The snapshot of the disk {disk} of guest {self.name!r} was not merged within {self.timeout_s} s.",
            hint="It goes on as before. It may write faster than is merged: try again when it writes less or is "
            "stopped, or raise timeout_s.",
        )

    def _mirror(self, disk: str) -> str:
        """What libvirt says of a running merge: ``yes`` once it has caught up (the numbers of the job need not be equal
        then, as the guest goes on writing), ``pivot`` when it is being finished."""
        root = xml.parse(self.known.domain.XMLDesc(0), root="domain")
        for each in xml.all_at(root, "devices/disk"):
            if xml.attribute(each, "target", "dev") == disk:
                return xml.attribute(each, "mirror", "ready")
        return ""

    # -- common -----------------------------------------------------------------------------------------------------
    def _define(self, after: Record) -> None:
        """Write where the disks are into the stored XML, with all that is below them."""
        running = self.live
        self._reread()
        _check_places(self.name, self.model, self.record, after)
        text = xml.document(domain.patch(self.known.xml, snapshots.with_tops(self.model, after)))
        self._check_power(running)
        with libvirt.doing(f"define the guest {self.name!r}"):
            self.connection.defineXML(text)

    def _check_power(self, running: bool) -> None:
        """Refused when it was started since it was looked at: a QEMU has the files open that nobody was to write to."""
        with libvirt.doing(f"look at the guest {self.name!r}"):
            started = self.known.domain.isActive() and not running
        if started:
            raise Refused(
                f"Guest {self.name!r} was started by somebody else while its snapshots were worked on.",
                hint="Run it again.",
            )

    def _reread(self) -> None:
        known = read(self.connection, [self.name]).get(self.name)
        if known is None:
            raise HostError(f"Guest {self.name!r} was removed while its snapshots were worked on.")
        self.known = known
        self.model = known.model

    def _keep(self, after: Record, gone: t.Sequence[str] = ()) -> None:
        """Write the record down, and remove what nothing needs any more. It is named until it is removed."""
        if gone:
            snapshot_records.save(self.name, {**after, "gone": list(gone)})
        for path in gone:
            files.remove_file(path)
        self.record = {key: value for key, value in after.items() if key != "gone"}
        snapshot_records.save(self.name, self.record)

    def finish_pending(self) -> None:
        """Write down what ``settle`` has found out of a run that was cut off, and remove what that has left."""
        known = snapshot_records.load(self.name)
        if known is None or not (known["pending"] or known.get("gone")):
            return
        # What was to be made was not used, and nobody is at work on it any more.
        self._keep(self.record, sorted(self.left.union(self.record.get("gone", ()))))


# --------------------------------------------------------------------------------------------------------------------
# The module's work
# --------------------------------------------------------------------------------------------------------------------
def _check_idle(connection: libvirt.Connection, name: str) -> None:
    """Refused while libvirt is at work on what a run that was cut off has begun: it is not known yet what will be."""
    if not (snapshot_records.load(name) or {}).get("pending"):
        return
    each = libvirt.domain(connection, name)
    with libvirt.doing(f"look at what the guest {name!r} does"):
        busy = each is not None and each.isActive() and int(each.jobInfo()[0])
    if busy:
        raise Refused(
            f"libvirt is still at work on a snapshot of guest {name!r} that was begun.",
            hint="Try again when it has ended (virsh domjobinfo).",
        )


def _check_places(name: str, model: domain.Model, *records: Record) -> None:
    """Refused where the guest has a disk in another file than each of ``records`` says: what it has written since is in
    none of the files that a snapshot would be made of, or that one would be merged into."""
    for disk, (path, top) in snapshots.strayed(model, *records).items():
        raise snapshot_records.elsewhere(name, disk, path, top)


def _check(
    name: str, known: t.Optional[Known], host_id: str, state: str, snapshot: str, *, quiesce: bool, memory: bool
) -> str:
    """What has to be done for one guest: '' for nothing. InputError or Refused where it must not be."""
    owner = ownership.record(name, host_id) or {}
    if owner and owner.get("owner") != host_id:
        raise Refused(f"Guest {name!r} is at {owner.get('owner_name') or 'another host'}.", hint="Run it on that host.")
    if known is None or owner.get("kind") != ownership.GUEST:
        raise InputError(f"guests: this host has no guest {name!r}.", hint="See cnvm.platform.guest_info.")
    if ownership.is_moving(name):
        raise Refused(f"Guest {name!r} is in a move that is not finished.", hint="Wait for it, or run recover.")
    record = snapshot_records.settled(snapshot_records.load(name), known.model)
    _check_places(name, known.model, record)
    there = snapshots.find(record, snapshot)
    if there and there.get("removing") and state != "absent":
        raise Refused(
            f"name: the snapshot {snapshot!r} of guest {name!r} is being merged away.",
            hint="Finish that with state: absent.",
        )
    if state == "reverted":
        if not there:
            known_names = ", ".join(snapshots.names(record)) or "none"
            raise InputError(f"name: guest {name!r} has no snapshot {snapshot!r}.", hint=f"It has: {known_names}.")
        return "revert"
    if bool(there) == (state == "present"):
        return ""
    if known.saved:
        what = f"Guest {name!r} was saved with its memory, which fits its disks as they are."
        raise Refused(what, hint=guest_plan.unsave(name))
    if state == "absent":
        # Refused, where it cannot be, before it is done for another guest.
        snapshots.removal(record, snapshot)
        return "remove"
    if not snapshots.empty(known.model)["tops"]:
        raise InputError(f"guests: {name!r} has no disk that it writes to.", hint="There is nothing to snapshot.")
    running = known.live_model
    if running is not None:
        then, now = (snapshots.empty(model)["tops"] for model in (known.model, running))
        waiting = sorted(disk for disk in {**then, **now} if then.get(disk) != now.get(disk))
        if waiting:
            raise Refused(
                f"Guest {name!r} runs with other disks than it is to have ({', '.join(waiting)}).",
                hint="Restart it first (cnvm.platform.guest, restart_on_change: true).",
            )
    if known.live is None and (quiesce or memory):
        raise InputError(
            f"{'quiesce' if quiesce else 'memory'}: guest {name!r} does not run.", hint="Leave it out, or start it."
        )
    if quiesce and memory:
        # libvirt refuses it when all is prepared, in words that name its flags.
        raise InputError(
            f"quiesce: the snapshot {snapshot!r} of guest {name!r} is to have its memory, too.",
            hint="Leave one of them out: with its memory a guest goes on where it was, and nothing needs to rest.",
        )
    if quiesce and not domain.agent_connected(t.cast(xml.Element, known.live)):
        raise HostError(
            f"quiesce: nobody answers at the agent's channel of guest {name!r}.",
            hint="Install and start qemu-guest-agent in it, or leave quiesce out.",
        )
    return "create"


def bring_to(
    host: Host,
    guests: t.Sequence[object],
    snapshot: object,
    state: str,
    *,
    description: str = "",
    quiesce: bool = False,
    memory: bool = False,
    timeout_s: object = 3600,
    check_mode: bool = False,
    uri: str = libvirt.URI,
) -> dict[str, t.Any]:
    """Make, go back to, or merge away one snapshot of each of ``guests``; the module's result."""
    wanted = [check_name(name, f"guests[{index}]") for index, name in enumerate(guests)]
    word = check_name(snapshot, "name")
    limit = integer(timeout_s, "timeout_s", least=1, most=604_800)
    if len(set(wanted)) != len(wanted):
        raise InputError("guests: one is given twice.", hint="Each once.")
    host_id = str((files.read_json(paths.HOST_FILE) or {}).get("host_id"))
    results = []
    before: dict[str, list[str]] = {}
    warnings: list[str] = []
    with libvirt.connect(uri) as connection, contextlib.ExitStack() as held:
        if not check_mode:
            for name in sorted(wanted):
                held.enter_context(files.lock(paths.lock_file(name), f"working on snapshots of guest {name!r}"))
        # Asked first: what has ended by then is in the XML that is read.
        for name in wanted:
            _check_idle(connection, name)
        known = read(connection, wanted)

        def decide(name: str) -> str:
            return _check(name, known.get(name), host_id, state, word, quiesce=quiesce, memory=memory)

        todo = {name: decide(name) for name in wanted}
        for name in wanted:
            if todo[name] and not check_mode:
                # Those before it may have taken their time, and others may have started it, or stopped it, meanwhile.
                known.pop(name)
                known.update(read(connection, [name]))
                todo[name] = decide(name)
            work = Work(host, connection, name, known[name], timeout_s=limit)
            before[name] = snapshots.names(work.record)
            if state == "present" and not todo[name]:
                there = t.cast("dict[str, t.Any]", snapshots.find(work.record, word))
                lacking = snapshots.lacking(there, description, quiesce=quiesce, memory=memory)
                if lacking:
                    warnings.append(
                        f"guests: {name}: the snapshot {word!r} is there already and stays as it was made "
                        f"({'; '.join(lacking)}). Merge it away first, or make one of another name."
                    )
            if not check_mode:
                if todo[name] == "create":
                    work.create(word, description, quiesce=quiesce, memory=memory)
                elif todo[name] == "revert":
                    work.revert(word)
                elif todo[name] == "remove":
                    work.remove(word)
                else:
                    work.finish_pending()
            results.append(
                {
                    "name": name,
                    "changed": bool(todo[name]),
                    "actions": [f"{todo[name]} {word}"] if todo[name] else [],
                    "snapshots": listing(work.record),
                }
            )
    return {
        "changed": any(one["changed"] for one in results),
        "guests": results,
        "warnings": warnings,
        "diff": {
            "before": {name: before[name] for name in wanted if todo[name]},
            "after": {name: _after(before[name], todo[name], word) for name in wanted if todo[name]},
        },
    }


def _after(before: t.Sequence[str], action: str, word: str) -> list[str]:
    if action == "create":
        return [*before, word]
    return [name for name in before if name != word] if action == "remove" else list(before)
