# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The steps of a migration on the host that takes the guest (see ``kinds``).

The order of what is written: the journal, with what was announced, before anything of the guest is here; ``prepared``
before it can be whole here (libvirt knows whether it is: see ``has_arrived``); the owner record (generation + 1) before
it may run.
"""

from __future__ import annotations

import os
import time
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, PeerError, Refused
from .._core.names import is_digest
from .._image.commands import Making
from .._libvirt import errors, guest_definition, guest_plan, migration
from .._migrate import plan, records
from . import (
    arriving,
    building,
    disks,
    domains,
    files,
    freezer,
    guest_disks,
    guest_preflight,
    guest_source,
    handover,
    libvirt,
    movedir,
    ownership,
    sparse,
    template_making,
    templates,
)
from .disks import Attributes
from .kinds import Call
from .system import Host, host_error

Record = t.Mapping[str, t.Any]
# libvirt's daemon may be starting; a QEMU that does not start will not the next time either.
_START_S = 10.0


def facts(host: Host) -> dict[str, t.Any]:
    """What this host is."""
    return {"name": ownership.host_identity()["name"], "architecture": os.uname().machine}


def check_definition(definition: Record) -> None:
    """PeerError or InputError when it is none that the module guest would write here."""
    if definition.get("kind") != "guest":
        raise PeerError(f"The definition of {definition['name']} is not that of a guest.")
    guest_definition.check_normal(definition)


def check(host: Host, definition: Record, owner: Record, needs: Record) -> dict[str, t.Any]:
    """Why this host cannot take the guest now, which templates it lacks, why it could do no ``post_copy``, and what it
    would take of the ``space`` here."""
    name = definition["name"]
    earlier = files.read_json(paths.journal_file(name)) or {}
    # What an earlier move has left goes as this one begins, be it that what answered then hangs.
    goes = records.superseded(earlier, owner)
    seen = guest_preflight.look(host, definition, needs, _left_by(name, earlier) if goes else ())
    if goes:
        seen["name_taken"] = False
    problems = migration.problems(name, ownership.host_identity()["name"], needs, seen)
    return {"problems": problems, "templates": seen["lacks"], "post_copy": seen["post_copy"], "space": seen["space"]}


def _left_by(name: str, journal: Record) -> list[str]:
    """The files that go when a move to this host is given up."""
    made = [path for path in journal.get("own", ()) if arriving.is_of(journal["move_id"], path)]
    return [*made, *(paths.guest_nvram(name) if journal.get("mode") != migration.OFFLINE else ())]


def begin(host: Host, definition: Record, journal: dict[str, t.Any], needs: Record) -> None:
    """Note what was announced; what records an earlier stay has left are older than what comes."""
    name = definition["name"]
    journal["needs"] = dict(needs)
    arriving.claim(journal, [*(disk["path"] for disk in _moved(needs)), *needs["brought"]])
    guest_source.remove_records(name)
    _clear_home(name)
    guest_disks.make_home(name)
    files.write_json(paths.definition_file(name), _as_it_comes(definition, needs))
    if needs["log"]:
        os.makedirs(os.path.dirname(paths.guest_log(name)), mode=0o750, exist_ok=True)


def _clear_home(name: str) -> None:
    """Remove the directory of the guest's own disks, with what was not finished there; unless somebody has a file in
    it."""
    if not guest_disks.at_home(name):
        files.remove_tree(paths.guest_disks_dir(name))


def _moved(needs: Record) -> list[dict[str, t.Any]]:
    """The disks that are copied."""
    return [disk for disk in needs["disks"] if not disk["shared"]]


def _as_it_comes(definition: Record, needs: Record) -> dict[str, t.Any]:
    """The definition as it holds here: what was ``made`` for the guest, and may be deleted with it, is only what comes
    along or what both hosts have. Its source may say so of any file."""
    come = {disk["name"]: disk for disk in (*needs["disks"], *needs["fixed"])}
    kept = {*(disk["path"] for disk in needs["disks"]), *needs["brought"]}

    def is_made(disk: Record) -> bool:
        one = come.get(disk["name"])
        if not disk["made"] or one is None or one["path"] not in kept or one["pool"] != disk["pool"]:
            return False
        return guest_disks.placed(definition["name"], disk, os.path.dirname(one["path"])) == one["path"]

    return {**definition, "disks": [{**disk, "made": is_made(disk)} for disk in definition.get("disks", ())]}


def activate(host: Host, name: str, journal: Record, timeout_s: float) -> dict[str, t.Any]:
    """The source has committed: write that it is ours, let it run, and see that it runs.

    HostError when it does not; the caller decides (``give_back``). ``running_ms``: from the owner record on the disk to
    the guest running.
    """
    handover.check_not_given_back(name, journal)
    start = time.monotonic()
    check_held(name, journal)
    if journal["mode"] == migration.OFFLINE:
        # It is not started by that: its owner record names another host.
        _define(name, journal, timeout_s)
    handover.own(name, journal)
    if journal["needs"].get("post_copy"):
        _see_it_run(name, journal, timeout_s)
    elif journal["mode"] != migration.OFFLINE:
        _resume(name, journal, timeout_s)
    running_ms = round((time.monotonic() - start) * 1000, 1)
    files.write_json(paths.journal_file(name), {**journal, "state": records.TARGET_ACTIVE})
    return {"running_ms": running_ms, "generation": journal["generation"] + 1}


def _resume(name: str, journal: Record, timeout_s: float) -> None:
    def work(connection: libvirt.Connection) -> None:
        each = _copy(connection, name, journal)
        if each is None:
            raise HostError(f"The copy of {name} that was held here is gone.", hint="It is not started anew.")
        with libvirt.doing(f"let the guest {name!r} run"):
            if _state(each) == guest_plan.PAUSED:
                each.resume()
        if _state(each) != guest_plan.RUNNING:
            raise HostError(f"{name} did not come alive: it is {_state(each)}.", hint=f"See {paths.qemu_log(name)}.")

    guest_source.patiently(work, timeout_s)


def _see_it_run(name: str, journal: Record, timeout_s: float) -> None:
    """libvirt lets it run, when the source has it do so (post-copy)."""
    end = time.monotonic() + timeout_s

    def look(connection: libvirt.Connection) -> str:
        each = _copy(connection, name, journal)
        return "" if each is None else _state(each)

    while (state := guest_source.patiently(look)) != guest_plan.RUNNING:
        if state != guest_plan.PAUSED or time.monotonic() > end:
            raise HostError(f"{name} did not come alive: it is {state or 'gone'}.", hint=f"See {paths.qemu_log(name)}.")
        time.sleep(0.01)


def _define(name: str, journal: Record, timeout_s: float) -> None:
    def work(connection: libvirt.Connection) -> None:
        with libvirt.doing(f"define the guest {name!r}"):
            connection.defineXML(journal["needs"]["definition"])

    guest_source.patiently(work, timeout_s)


def _state(each: libvirt.Domain) -> str:
    state = libvirt.state_of(each)
    return "" if state is None else guest_plan.state_of(state[0])


def check_held(name: str, journal: Record) -> None:
    """HostError when the copy that came with this move is gone."""
    if not is_alive(name, journal):
        raise HostError(f"The copy of {name} that was held here is gone.", hint="It is not started anew.")


def _copy(connection: libvirt.Connection, name: str, journal: Record) -> t.Optional[libvirt.Domain]:
    """What came with this move. Not what somebody else has made with that name meanwhile."""
    each = libvirt.domain(connection, name)
    if each is None:
        return None
    with libvirt.doing(f"look at the guest {name!r}"):
        return each if each.UUIDString() == journal["uuid"] else None


def is_alive(name: str, journal: Record) -> bool:
    """Whether the copy that came with this move (not one of an earlier boot) is still there."""
    if journal["mode"] == migration.OFFLINE:
        return True
    if journal["boot_id"] != movedir.boot_id():
        return False

    def look(connection: libvirt.Connection) -> bool:
        each = _copy(connection, name, journal)
        return each is not None and _state(each) in (guest_plan.RUNNING, guest_plan.PAUSED)

    return guest_source.patiently(look)


def has_arrived(name: str, journal: Record) -> bool:
    """Whether what is held here is whole. libvirt keeps a guest's definition only once it has all of the guest."""
    if journal["mode"] == migration.OFFLINE or ownership.owned_here(name):
        return True
    kept, _runs = _kept_here(name, journal)
    return kept


def keep(host: Host, name: str, journal: Record) -> None:
    """Have the variables of its firmware on the disk: QEMU writes them as the guest goes on, and leaves it at that.
    What came as a file was there before its sender heard so, and what came of disks before it went on."""
    for path in filter(os.path.exists, paths.guest_nvram(name)):
        try:
            disks.sync(path)
            files.sync_dir(os.path.dirname(path))
        except OSError as error:
            error.filename = path
            raise host_error(error) from error


def has_run(name: str, journal: Record) -> bool:
    """Whether it may have. With post-copy libvirt lets it run, and not before it keeps its definition."""
    if journal["state"] == records.TARGET_ACTIVE or journal.get("anew"):
        return True
    if not ownership.owned_here(name) or journal["mode"] == migration.OFFLINE:
        return False
    kept, runs = _kept_here(name, journal)
    return runs or (kept and bool(journal["needs"].get("post_copy")))


def _kept_here(name: str, journal: Record) -> tuple[bool, bool]:
    """Whether libvirt would know the guest that came with this move when it had ended, and whether it runs."""

    def look(connection: libvirt.Connection) -> tuple[bool, bool]:
        each = _copy(connection, name, journal)
        if each is None:
            return False, False
        with libvirt.doing(f"tell whether the guest {name!r} has arrived"):
            return bool(each.isPersistent()), _state(each) == guest_plan.RUNNING

    return guest_source.patiently(look)


def drained(journal: Record, timeout_s: float) -> dict[str, bool]:
    """Waits until nothing is fetched any more (post-copy): it has ended when QEMU has, or has it all. ``failed``: it
    has not, and libvirt has given it up. QEMU may fetch the rest all the same, while its source is there."""
    if journal["mode"] != plan.POST_COPY:
        return {"ended": True, "drained": True, "failed": False}
    alive = arriving = failed = False

    def work(connection: libvirt.Connection) -> None:
        nonlocal alive, arriving, failed
        each = _copy(connection, journal["name"], journal)
        alive = each is not None and _state(each) in (guest_plan.RUNNING, guest_plan.PAUSED)
        failed = alive and _has_failed(t.cast("libvirt.Domain", each))
        arriving = alive and _is_arriving(t.cast("libvirt.Domain", each))

    end = time.monotonic() + timeout_s
    while True:
        guest_source.patiently(work)
        if not arriving or time.monotonic() > end:
            return {"ended": not arriving, "drained": alive and not arriving, "failed": arriving and failed}
        time.sleep(0.05)


def _has_failed(each: libvirt.Domain) -> bool:
    """Whether libvirt says that fetching its memory has failed. Before 8.5 it lets the guest stand still then."""
    library = libvirt.library()
    running = getattr(library, "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED", None)
    now, reason = libvirt.state_of(each) or (0, 0)
    known = {guest_plan.RUNNING: running, guest_plan.PAUSED: library.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED}
    return known.get(guest_plan.state_of(now)) == reason


def _is_arriving(each: libvirt.Domain) -> bool:
    """Whether libvirt is still at bringing it here: of that job it tells nothing, of others (or of none) it does."""
    library = libvirt.library()
    try:
        each.jobInfo()
    except library.libvirtError as error:
        if error.get_error_code() in (errors.OPERATION_UNSUPPORTED, errors.OPERATION_INVALID):
            return True
        raise libvirt.translate(error, f"tell whether the guest {each.name()!r} has arrived") from error
    return False


def announce(host: Host, name: str) -> None:
    """QEMU does it by itself, again and again for a second."""


def statistics(journal: Record) -> dict[str, t.Any]:
    """libvirt gives them to the source."""
    return {}


def finish(host: Host, name: str, journal: Record) -> t.Optional[bool]:
    """The source has let go: start with the host from now on if it did there. One that ran and died is started;
    whether that was done. None when libvirt does not know it any more.

    Its source is gone, so the move is over in each case. HostError when it cannot be started.
    """
    noted = files.read_json(paths.journal_file(name)) or {}

    def look(connection: libvirt.Connection) -> tuple[bool, bool]:
        each = _copy(connection, name, journal)
        if each is None:
            return False, False
        with libvirt.doing(f"set whether the guest {name!r} starts with the host"):
            # One that somebody has undefined while it runs is gone when it ends.
            if each.isPersistent():
                each.setAutostart(int(bool(journal.get("enabled"))))
        return True, not each.isActive() and (bool(noted.get("anew")) or _has_died(each, journal))

    known, dead = guest_source.patiently(look)
    if dead:
        # It is not started here while a move has it (see ``guest_start``), but for this.
        files.write_json(paths.journal_file(name), {**noted, "anew": True})
    try:
        if dead:
            guest_source.patiently(lambda connection: _start(connection, name, journal), _START_S)
    except HostError as error:
        raise HostError(
            f"{name} had ended here, and cannot be started anew: {error.message}",
            hint="Its disks are whole. Start it when that is mended (cnvm.platform.guest, state: running).",
            over=True,
        ) from error
    finally:
        for path in noted.get("own", ()):
            arriving.keep(journal["move_id"], path)
        movedir.end_journal(name)
    return dead if known else None


def _start(connection: libvirt.Connection, name: str, journal: Record) -> None:
    each = _copy(connection, name, journal)
    if each is not None and not each.isActive():
        with libvirt.doing(f"start the guest {name!r}"):
            each.create()


def _has_died(each: libvirt.Domain, journal: Record) -> bool:
    """Whether it would run if nothing had gone wrong. One that was turned off stays off; one that its host's boot has
    ended starts with the host, or does not, as without a move."""
    _number, reason = libvirt.state_of(each) or (0, 0)
    ended = not journal.get("running") or guest_source.ended_by_itself(reason)
    return not ended and bool(journal["boot_id"] == movedir.boot_id() or journal.get("enabled"))


def end_copy(host: Host, name: str, journal: Record) -> None:
    """End a copy that can never be whole. Its disks stay: ``finish`` starts it anew, if it was not turned off."""

    def work(connection: libvirt.Connection) -> None:
        each = _copy(connection, name, journal)
        if each is None:
            return
        with libvirt.doing(f"turn the guest {name!r} off"):
            if journal.get("running") and (each.isActive() or _has_died(each, journal)):
                # Noted first: one that is found turned off stays off.
                files.write_json(paths.journal_file(name), {**journal, "anew": True})
            if each.isActive():
                each.destroy()

    guest_source.patiently(work)


def give_up(host: Host, name: str, journal: Record) -> None:
    """Nothing of the guest stays here. Only before its owner record names this host."""
    owner = handover.check_not_owned(name)

    def work(connection: libvirt.Connection) -> None:
        each = _copy(connection, name, journal)
        if each is not None:
            guest_source.remove_domain(each)
        if journal["mode"] != migration.OFFLINE:
            # libvirt makes them as it begins to receive it, and leaves them when it does not come.
            domains.forget_variables(connection, name)

    guest_source.patiently(work)
    for path in journal.get("own", ()):
        arriving.remove(journal["move_id"], path)
    guest_source.remove_records(name)
    _clear_home(name)
    movedir.keep_console(name, journal["move_id"])
    building.remove_unfinished(paths.TEMPLATES)
    movedir.end_journal(name)
    if owner is None and not os.listdir(paths.workload_dir(name)):
        os.rmdir(paths.workload_dir(name))


# --------------------------------------------------------------------------------------------------------------------
# On the wire
# --------------------------------------------------------------------------------------------------------------------
def _op_template(call: Call) -> dict[str, t.Any]:
    """Take a template over from the source."""
    digest = str(call.args["digest"])
    if not is_digest(digest):
        raise PeerError(f"{digest!r} is no digest.")
    fetched = -1

    def waits() -> bool:
        """Another guest may be bringing it just now: the source hears that more of it comes."""
        nonlocal fetched
        before, fetched = fetched, template_making.fetched_bytes(digest)
        if fetched != before:
            call.tell(0)
        return not call.gone()

    template_making.fetch(
        call.host, call.journal["peer"], digest, digest=digest, mib_s=int(call.args["bandwidth_mib_s"]), waits=waits,
        progress=call.tell,
    )  # fmt: skip
    return {}


def _op_prepare(call: Call) -> dict[str, t.Any]:
    """Empty disks, as large as those of the source, on the same templates. That of a guest which does not run is not
    there until it has come, but holds its template."""
    needs, tried = call.journal["needs"], set()
    for disk in _moved(needs):
        attributes = Attributes(uid=0, gid=0, mode=0o600)
        arriving.check_new(call.move_id, disk["path"])
        made = arriving.beside(call.move_id, disk["path"])
        if disk["template"]:
            below = paths.template_disk(disk["template"])
            with templates.used([disk["template"]], f"making disks of guest {call.name!r}"):
                templates.check(disk["template"], remember=True)
                disks.create_overlay(call.host, below, "qcow2", made, disk["virtual"], attributes=attributes)
        else:
            disks.create(call.host, made, Making(disk["format"]), disk["virtual"], attributes=attributes)
        directory = os.path.dirname(disk["path"])
        if needs["live"]:
            arriving.publish(call.move_id, disk["path"])
        elif directory not in tried:
            arriving.check_publish(call.move_id, disk["path"])
            tried.add(directory)
    return {}


def _op_file(call: Call) -> dict[str, t.Any]:
    """Receive a file that belongs to the guest, or the disk of one that does not run."""
    needs, path = call.journal["needs"], str(call.args["path"])
    copied = [] if needs["live"] else [disk["path"] for disk in _moved(needs)]
    if path not in [*needs["brought"], *copied]:
        raise PeerError(f"{path} was not announced.")
    arriving.check_new(call.move_id, path)
    made = arriving.beside(call.move_id, path)
    files.make_dirs(os.path.dirname(path))
    count = call.receive(lambda file: sparse.receive(made, file, int(call.args["size"])))
    _check_chain(made, path, needs)
    arriving.publish(call.move_id, path)
    return {"bytes": count}


def _check_chain(made: str, path: str, needs: Record) -> None:
    """PeerError when what has come (``made``) as ``path`` names another file of this host than the announced template:
    libvirt and QEMU would open it for the guest."""
    disk = next((one for one in (*needs["disks"], *needs["fixed"]) if one["path"] == path), None)
    try:
        node = disks.inspect(made, disk["format"] if disk else "")
        header, below = node.header, disk["below"] if disk else ""
        alike = disks.backing_path(node) == below and header.backing_format in ("", "qcow2")
        if alike and not (header.data_file or header.extents or header.parent):
            return
        said = f"it names {', '.join(header.external) or 'no backing file'}"
    except (InputError, Refused) as error:
        said = error.message.replace(made, path)
    files.remove_file(made)
    raise PeerError(f"What came as {path} is not what was announced: {said}.")


def _op_hold(call: Call) -> dict[str, t.Any]:
    """It stands still at the source, and is whole here soon. From now on only the source's word gives it up."""
    freezer.hurry()
    files.write_json(paths.journal_file(call.name), {**call.journal, "state": records.TARGET_PREPARED})
    return {}


def _op_keep(call: Call) -> dict[str, t.Any]:
    """It runs here, and the source is about to remove its own."""
    keep(call.host, call.name, call.journal)
    return {}


def _op_own(call: Call) -> dict[str, t.Any]:
    """The source has committed, and has libvirt let it run next (post-copy): write that it is ours, and how it came."""
    handover.check_not_given_back(call.name, call.journal)
    check_held(call.name, call.journal)
    handover.own(call.name, call.journal)
    files.write_json(paths.journal_file(call.name), {**call.journal, "mode": str(call.args["mode"])})
    return {}


OPERATIONS: t.Mapping[str, t.Callable[[Call], dict[str, t.Any]]] = {
    "template": _op_template,
    "prepare": _op_prepare,
    "file": _op_file,
    "hold": _op_hold,
    "own": _op_own,
    "keep": _op_keep,
}
