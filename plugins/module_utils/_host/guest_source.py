# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The steps of a migration on the host that gives the guest away (see ``kinds``). ``recover`` uses them too.

libvirt copies memory and disks while the guest runs, and stops it for the rest. The copy arrives paused, and libvirt is
kept from ending the one here until that copy has proven itself (see ``libvirt_tunnel``): it stands still here, and goes
on where it stood when the target cannot have it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import threading
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, PeerError
from .._libvirt import errors, guest_plan, migration
from .._migrate import plan, records
from . import (
    connections,
    disks,
    domains,
    files,
    freezer,
    guest_disks,
    guest_preflight,
    kinds,
    libvirt,
    movedir,
    netns,
    peers,
    sparse,
)
from .libvirt_tunnel import Tunnel
from .system import Host

if t.TYPE_CHECKING:
    from .mover import Move

_T = t.TypeVar("_T")

survey = guest_preflight.survey
answers = libvirt.answers

# libvirt's daemon may have died and be started again by its socket.
_PATIENCE_S = 60.0
_PASSING = (
    errors.SYSTEM_ERROR,
    errors.RPC,
    errors.NO_CONNECT,
    errors.NO_DOMAIN,
    errors.INTERNAL_ERROR,
    errors.OPERATION_TIMEOUT,
    errors.OPERATION_INVALID,
    errors.OPERATION_FAILED,
)
# How long QEMU may take to cancel by itself.
_CANCEL_S = 1.0
_POLL_S = 0.01
_FROZEN_POLL_S = 0.1
_LOOK_S = 0.5
_ASK_S = 3.0
_ANSWER_S = 10.0
_ARRIVAL_LIMIT_S = 30.0
# How long what QEMU has sent here may take until it has arrived, and how often the target must say that it has failed.
_LAST_S = 20.0
_LAST_LOOK_S = 1.0
_FAILED_LOOKS = 3
# What still waits in the kernel when the guest stops is sent while it stands still. QEMU fills this up in time.
_UNSENT_BYTES = 128 << 10
# Of QEMU, where libvirt has it.
_PID_FILE = "/run/libvirt/qemu/{}.pid"


def is_enabled(name: str) -> bool:
    """Whether it starts with the host."""
    with libvirt.connect() as connection:
        each = libvirt.domain(connection, name)
        with libvirt.doing(f"look at the guest {name!r}"):
            return each is not None and bool(each.autostart())


class Leaving(kinds.Leaving):
    """One move of a guest."""

    def __init__(self, move: Move, survey: kinds.Survey) -> None:
        super().__init__(move, survey)
        self.live = move.mode == migration.LIVE
        self._post_copy = bool(survey.needs["post_copy"])
        self._moved = [disk for disk in survey.needs["disks"] if not disk["shared"]]
        self._tunnel: t.Optional[Tunnel] = None
        self._thread: t.Optional[threading.Thread] = None
        self._error: t.Optional[CnvmError] = None
        self._stats: dict[str, t.Any] = {}
        self._slowed: dict[str, t.Any] = {}
        self._asked: t.Optional[netns.AddressQuestion] = None
        # Of one that does not run: what its disks are as they are copied, and that nobody of ours works on them.
        self._copied: dict[str, tuple[int, ...]] = {}
        self._locks = contextlib.ExitStack()
        # For ``let_go``: they go with it. And for ``roll_back``.
        move.journal["moved"] = guest_preflight.going(move.name, survey.needs)
        move.journal["cut_first"] = move.request["connections"] == 1
        shared = [disk["path"] for disk in survey.needs["disks"] if disk["shared"]]
        mark = survey.needs["mark"] = f".cnvm-{move.move_id}"
        marks = sorted({guest_preflight.mark_of(path, mark) for path in shared})
        move.journal.update(shared=bool(shared), marks=marks)
        # For ``secure``. Those of one that is off come as a file.
        move.journal["variables"] = self.live and bool(survey.needs["firmware"] or survey.needs["uefi"])

    def begin(self) -> None:
        """Show the target which storage it is that has the shared disks (see ``guest_preflight.mark_of``)."""
        try:
            for path in self.move.journal["marks"]:
                with open(path, "xb"):
                    pass
        except OSError as error:
            raise HostError(
                f"{error.filename} cannot be made: {error.strerror}.",
                hint="By it the target sees that the disks there are on the storage that it has.",
            ) from error

    def bring(self) -> None:
        """Templates that the target lacks, then empty disks that rest on them, and files that belong to the guest."""
        move = self.move
        _unmark(move.journal)
        for digest in self.survey.learnt["templates"]:
            move.phase("template")
            move.channel.call(
                "template", timeout_s=move.left(86_400), digest=digest, bandwidth_mib_s=move.request["bandwidth_mib_s"],
                progress=move.progress("template"),
            )  # fmt: skip
        move.phase("prepare")
        move.channel.call("prepare", timeout_s=move.left(120))
        for path in self.survey.needs["brought"]:
            self._send(path)

    def _send(self, path: str, kind: str = "files") -> None:
        self.move.channel.call(
            "file", timeout_s=self.move.left(86_400), path=path, size=os.path.getsize(path),
            stream=lambda out: sparse.send(path, out, self.move.progress(kind)),
            mib_s=self.move.request["bandwidth_mib_s"],
        )  # fmt: skip

    def hold(self) -> None:
        """Copy, and stop; or, when it does not run, see that it does not, and copy."""
        if self.live:
            self._hold_live()
        else:
            self._hold_stopped()

    def _hold_stopped(self) -> None:
        copied = [str(disk["path"]) for disk in self._moved]
        for path in copied:
            self._locks.enter_context(disks.at_work_on(path))
        # From here on it is not started here (see ``guest_start``).
        self.move.freeze("disks")
        if state_here(self.name) != guest_plan.STOPPED:
            raise HostError(f"{self.name} was started meanwhile.", hint="Run it again.")
        self._copied = {path: disks.state_of(path) for path in copied}
        self._check_untouched()
        for path in copied:
            self._send(path, "disks")
        self._have_it_held(self.move.left(60))

    def _check_untouched(self) -> None:
        """HostError when somebody has written to a disk since it is being copied, or may do so at any time. (libvirt's
        daemon keeps the guest from it, and our locks keep our modules from it.)"""
        for path, before in self._copied.items():
            if disks.in_use(path) or disks.state_of(path) != before:
                raise HostError(
                    f"{path} is in use, or was changed while it was copied, such as by qemu-img or virt-customize.",
                    hint=f"{self.name} is kept here. Let nobody work on its disks, and run it again.",
                )

    # --- live ---

    def _hold_live(self) -> None:
        move = self.move
        self._tunnel = Tunnel(self.host, move.channel.peer, self.name, move.move_id, post_copy=self._post_copy)
        move.phase("memory")
        # Since the plan nobody has asked libvirt's daemon, which may have been started anew.
        patiently(lambda connection: guest_preflight.known(connection, self.name))
        with libvirt.connect() as connection:
            domain = guest_preflight.known(connection, self.name).domain
            self._thread = threading.Thread(target=self._migrate, daemon=True)
            self._thread.start()
            try:
                self._watch(domain)
            except PeerError:
                move.journal["cut_first"] = True
                raise

    def _migrate(self) -> None:
        """libvirt's client: returns when the source's copy is ended, or goes on."""
        library, request, tunnel = libvirt.library(), self.move.request, t.cast("Tunnel", self._tunnel)
        names = migration.flags(
            parallel=request["connections"] > 1, auto_converge=request["auto_converge"], disks=bool(self._moved),
            post_copy=self._post_copy,
        )  # fmt: skip
        flags = functools.reduce(lambda total, name: total | int(getattr(library, f"VIR_MIGRATE_{name}")), names, 0)
        address = peers.find(self.move.channel.peer)["tunnel"]
        # Nothing of it goes beside the tunnel between the hosts.
        params: dict[str, t.Any] = {
            library.VIR_MIGRATE_PARAM_URI: f"tcp://{address}",
            library.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: address,
        }
        if self._moved:
            params[library.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [disk["name"] for disk in self._moved]
        if request["bandwidth_mib_s"]:
            params[library.VIR_MIGRATE_PARAM_BANDWIDTH] = request["bandwidth_mib_s"]
            if self._post_copy:
                params[library.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = request["bandwidth_mib_s"]
        if "PARALLEL" in names:
            params[library.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = request["connections"]
        try:
            with libvirt.connect() as here, libvirt.connect(tunnel.uri) as there:
                domain = guest_preflight.known(here, self.name).domain
                with libvirt.doing(f"move the guest {self.name!r}"):
                    domain.migrate3(there, params, flags)
                with contextlib.suppress(CnvmError), libvirt.doing("tell how it went"):
                    self._stats = domain.jobStats(library.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except CnvmError as error:
            self._error = error

    def _watch(self, domain: libvirt.Domain) -> None:
        """Until it has arrived: shows how far it is, lets it stand still for longer if it must, looks at the clock."""
        move, tunnel, library = self.move, t.cast("Tunnel", self._tunnel), libvirt.library()
        thread = t.cast("threading.Thread", self._thread)
        pace, looked, asked = migration.Pace(int(move.request["max_downtime_ms"])), 0.0, time.monotonic()
        frozen, until, owed = False, 0.0, False
        # While it stands still, each question to libvirt takes of the computing that it waits for.
        while not tunnel.arrived.wait(_FROZEN_POLL_S if frozen else _POLL_S):
            if not thread.is_alive() or tunnel.lost.is_set():
                raise self._why(tunnel)
            now = time.monotonic()
            if frozen:
                if move.mode != plan.POST_COPY and now > until:
                    raise HostError(f"{self.name} stood still, and did not arrive in time.", hint="It goes on here.")
                move.left()
                continue
            state = libvirt.state_of(domain)
            if state is not None and guest_plan.state_of(state[0]) == guest_plan.PAUSED:
                frozen, until = True, now + move.frozen_left() + 2 * pace.limit_ms / 1000
                self._freeze()
                continue
            # A link that is cut says nothing, and what waits for it here would wait for minutes. An answer may be on
            # its way behind the memory for a while, and the guest come to stand still meanwhile.
            if owed and move.channel.heard():
                owed, asked = False, now
            elif not owed and now - asked > _ASK_S:
                move.channel.ask("drained", timeout_s=_ANSWER_S, limit_s=0)
                owed = True
            if now - looked < _LOOK_S:
                continue
            looked = now
            move.left()
            with contextlib.suppress(library.libvirtError):
                self._help(domain, domain.jobStats(), pace)
            if self._post_copy and pace.hopeless():
                frozen = True
                self._switch(domain, pace)
        if not frozen:
            self._freeze()

    def _freeze(self) -> None:
        """It comes to stand still. The target has that on its disk while libvirt sends the rest: that need not wait."""
        freezer.hurry()
        self.move.freeze("switch")
        if self.move.mode != plan.POST_COPY:
            self._ask_for_address()
        self._have_it_held(self.move.frozen_left())

    def _ask_for_address(self) -> None:
        """Since the plan somebody may have taken it. While the guest stands still nobody waits for an answer."""
        if self.survey.needs["address"]:
            with contextlib.suppress(CnvmError, OSError):
                spec = guest_preflight.on_overlay(self.name, self.survey.needs)
                self._asked = netns.AddressQuestion(spec, self.survey.needs["macs"])

    def _check_address(self, timeout_s: float = 0.0) -> None:
        """HostError when somebody else has answered, or does within ``timeout_s``. The question's socket is open until
        this process ends: to close it takes the kernel 10 ms, in which the guest would stand still."""
        holder = None
        if self._asked is not None:
            with contextlib.suppress(OSError):
                holder = self._asked.holder(timeout_s)
        if holder:
            raise HostError(
                f"address: {self.survey.needs['address']} was taken meanwhile: {holder} answers for it.",
                hint=f"{self.name} is kept here. Give one of them another address.",
            )

    def _have_it_held(self, timeout_s: float) -> None:
        """From now on the target does not give up by itself what it has of the guest."""
        self.move.channel.call("hold", timeout_s=timeout_s)

    def _why(self, tunnel: Tunnel) -> CnvmError:
        """What ended it: the tunnel (the target says why, or SSH does), or libvirt."""
        if tunnel.lost.is_set():
            peer, said = self.move.channel.peer, tunnel.last_words()
            return PeerError(
                f"The connection to libvirt on {peer} was lost" + (f": {said}" if said else "."), peer=peer
            )
        return self._error or HostError(f"libvirt ended the move of {self.name} without a word.")

    def _help(self, domain: libvirt.Domain, stats: dict[str, t.Any], pace: migration.Pace) -> None:
        """Tell how far it is; one that dirties its memory as fast as it is copied may stand still for longer."""
        self.move.time.bytes.update(migration.sent_bytes(stats))
        self.move.tell()
        _to_target(domain, self.move.channel.peer, lambda pid, there: connections.keep_short(pid, there, _UNSENT_BYTES))
        self._slowed = migration.slowed(stats) or self._slowed
        if pace.look(stats):
            domain.migrateSetMaxDowntime(pace.limit_ms)

    def _switch(self, domain: libvirt.Domain, pace: migration.Pace) -> None:
        """Let it go on at the target, from where it fetches the rest of its memory."""
        move = self.move
        # Later QEMU lets the guest go on nowhere but there.
        self._ask_for_address()
        self._check_address(netns.ANSWER_S)
        move.mode = plan.POST_COPY
        move.journal["mode"] = plan.POST_COPY
        reason = f"{pace.vain} rounds over its memory, with {pace.limit_ms} ms to stand still, left no less to copy"
        move.result.update(mode=plan.POST_COPY, reason=reason)
        self._freeze()
        with libvirt.doing(f"have the guest {self.name!r} fetch the rest of its memory"):
            domain.migrateStartPostCopy(0)

    def check_still(self) -> None:
        """It is paused here, and libvirt's client waits for the answer."""
        if not self.live:
            if state_here(self.name) != guest_plan.STOPPED:
                raise HostError(f"{self.name} was started meanwhile.", hint="It is kept here.")
            self._check_untouched()
            return
        thread, state = t.cast("threading.Thread", self._thread), state_here(self.name)
        if not thread.is_alive() or state != guest_plan.PAUSED:
            raise HostError(f"{self.name} does not stand still at the moment of the handover.", hint="It is kept here.")
        if self.move.mode != plan.POST_COPY:
            self._check_address()

    def let_run(self) -> None:
        """With post-copy libvirt lets it run, once the target has written that it may."""
        if self._tunnel is not None and self._post_copy:
            self.move.channel.call("own", timeout_s=20, mode=self.move.mode)
            self._tunnel.let_run()

    def drain(self) -> None:
        """Until the target has all memory. From now on what is here is old: nobody goes on with it in any case."""
        move = self.move
        with _exit_of(self.name) as dead:
            while not (answer := self._ask_drained(_LOOK_S))["ended"]:
                if not serves(move.journal):
                    answer = self._last_answer(dead)
                    break
                with contextlib.suppress(CnvmError, libvirt.library().libvirtError), libvirt.connect() as connection:
                    stats = guest_preflight.known(connection, self.name).domain.jobStats()
                    move.time.bytes.update(migration.sent_bytes(stats))
                move.tell()
        if not answer["drained"] and move.channel.call("anew", timeout_s=90).get("anew"):
            move.result["lost"] = kinds.memory_lost(self.name)

    def _last_answer(self, dead: t.Callable[[], bool]) -> dict[str, t.Any]:
        """What has become of it at the target, now that QEMU here sends no more. It may have come to its end a moment
        ago, or do so by what is still under way.

        It never will when its source is ``dead``, and libvirt there says again and again that fetching has failed.
        Neither is enough alone: a daemon that was started anew says so of one that goes on, too, and a source that was
        just killed may have sent all.
        """
        end, failed = time.monotonic() + _LAST_S, 0
        while True:
            answer = self._ask_drained(_LAST_LOOK_S)
            failed = failed + 1 if dead() and answer.get("failed") else 0
            if answer["ended"] or failed >= _FAILED_LOOKS or time.monotonic() > end:
                return answer

    def _ask_drained(self, limit_s: float) -> dict[str, t.Any]:
        return self.move.channel.call("drained", timeout_s=limit_s + _PATIENCE_S + 20, limit_s=limit_s)

    def abandon(self) -> None:
        """End libvirt's job, if it has one still: it lets the guest go on here."""
        self._locks.close()
        if _is_stale(self.move.journal):
            patiently(lambda connection: _end_stale(connection, self.move.journal))
        if self._tunnel is not None:
            self._tunnel.close()
        if self._thread is None:
            return
        end = time.monotonic() + _ARRIVAL_LIMIT_S
        while self._thread.is_alive() and time.monotonic() < end:
            with contextlib.suppress(CnvmError), libvirt.connect() as connection:
                each = libvirt.domain(connection, self.name)
                if each is not None:
                    with libvirt.doing("end the job"):
                        end_job(each, self.move.channel.peer, cut_first=self.move.journal["cut_first"])
            self._thread.join(0.2)

    def leave(self) -> None:
        """Let libvirt end the copy here."""
        self._locks.close()
        if self._tunnel is None or self._thread is None:
            return
        if self._tunnel.lost.is_set() or not self._tunnel.answered.wait(_ARRIVAL_LIMIT_S):
            # The client will hear no answer, and takes that for a guest that has not arrived: it would let it go on.
            patiently(self._end_before)
        self._tunnel.release()
        self._thread.join(60)
        self._tunnel.close()
        stats = migration.statistics({**self._slowed, **self._stats})
        if self._stats:
            self.move.time.bytes.update(migration.sent_bytes(self._stats))
        if stats:
            self.move.result["libvirt"] = stats
        # It may have stood still for a while when that was seen.
        if "frozen_ms" in self.move.result:
            seen = float(self.move.result["frozen_ms"])
            self.move.result["frozen_ms"] = max(seen, float(stats.get("downtime_ms", 0)))

    def _end_before(self, connection: libvirt.Connection) -> None:
        each = libvirt.domain(connection, self.name)
        if each is not None and each.isActive():
            with libvirt.doing(f"end the guest {self.name!r}"):
                _destroy(each)

    def said(self, error: CnvmError) -> dict[str, t.Any]:
        """libvirt's own words, where they are not the error."""
        known = self._error
        return {"libvirt_error": "" if known is None or known is error else known.message}


leaving = Leaving


# --------------------------------------------------------------------------------------------------------------------
# The end
# --------------------------------------------------------------------------------------------------------------------
def state_here(name: str) -> str:
    """What the guest does on this host now, in our words; '' when libvirt does not know it."""

    def look(connection: libvirt.Connection) -> str:
        each = libvirt.domain(connection, name)
        state = None if each is None else libvirt.state_of(each)
        return "" if state is None else guest_plan.state_of(state[0])

    return patiently(look)


def patiently(work: t.Callable[[libvirt.Connection], _T], limit_s: float = _PATIENCE_S) -> _T:
    """What ``work`` returns; done again when libvirt's daemon was not there, or busy with the guest, a moment ago."""
    end = time.monotonic() + limit_s
    while True:
        try:
            with libvirt.connect() as connection:
                return work(connection)
        except libvirt.LibvirtError as error:
            if error.code not in _PASSING or time.monotonic() > end:
                raise
        time.sleep(0.2)


def end_job(each: libvirt.Domain, peer: str, *, cut_first: bool) -> None:
    """End a move to ``peer`` that libvirt may still be at, and wait for that.

    Told to cancel, QEMU stands still until its connections end; where nobody answers, until the kernel gives them up.
    So they are cut first. But of several that are cut, QEMU 10.0 may die: then it is given a while to cancel.
    """
    library = libvirt.library()
    start = time.monotonic()
    while True:
        if cut_first or time.monotonic() - start > _CANCEL_S:
            cut_loose(each, peer)
        if not int(each.jobInfo()[0]) or fetched_from(each) or time.monotonic() - start >= _PATIENCE_S:
            return
        with contextlib.suppress(library.libvirtError):
            each.abortJob()
        time.sleep(0.05)


def roll_back(host: Host, journal: t.Mapping[str, t.Any]) -> t.Optional[bool]:
    """End a move on the source with the guest going on here; whether QEMU had died, and it was started anew, None when
    it does not run: it was turned off, or did not run before."""
    name = journal["name"]
    anew: list[str] = []
    runs: list[str] = []
    _unmark(journal)

    def work(connection: libvirt.Connection) -> None:
        if _is_stale(journal):
            _end_stale(connection, journal)
        with libvirt.doing(f"let the guest {name!r} go on"):
            # First: before that libvirt may answer nothing of what follows.
            each = _domain(connection, name)
            if each.isActive():
                end_job(each, journal["peer"], cut_first=journal.get("cut_first", True))
            if each.isActive() and fetched_from(each):
                _end(each, journal)
        noted = files.read_json(paths.journal_file(name)) or dict(journal)
        number, reason = libvirt.state_of(each) or (0, 0)
        state = guest_plan.state_of(number)
        with libvirt.doing(f"let the guest {name!r} go on"):
            if journal.get("running") and state == guest_plan.PAUSED:
                each.resume()
                announce(each)
            if journal.get("running") and not each.isActive() and (noted.get("anew") or not ended_by_itself(reason)):
                # It is not started here while a move has it standing still (see ``guest_start``).
                files.write_json(paths.journal_file(name), {**noted, "state": records.SOURCE_BEGUN})
                each.create()
                anew.append(name)
            runs[:] = [name] if each.isActive() else []

    patiently(work)
    files.remove_tree(paths.move_dir(journal["move_id"]))
    movedir.end_journal(name)
    return bool(anew) if runs else None


def _domain(connection: libvirt.Connection, name: str) -> libvirt.Domain:
    """The guest as libvirt has it here, be it that somebody has undefined it while it stands still."""
    each = libvirt.domain(connection, name)
    if each is None:
        raise HostError(f"libvirt does not know the guest {name!r} any more.", hint="See cnvm.platform.guest_info.")
    return each


def _unmark(journal: t.Mapping[str, t.Any]) -> None:
    for path in journal.get("marks", ()):
        # Storage that fails must not keep the guest standing still.
        with contextlib.suppress(OSError):
            files.remove_file(path)


def _is_stale(journal: t.Mapping[str, t.Any]) -> bool:
    """Whether what stands still here cannot go on, since the target's copy may have run. With post-copy QEMU lets
    nothing go on that has stopped for it; and what it knows of disks that both hosts have is old."""
    return bool(journal.get("ran")) and bool(journal["mode"] == plan.POST_COPY or journal.get("shared"))


def _end_stale(connection: libvirt.Connection, journal: t.Mapping[str, t.Any]) -> None:
    """End what stands still here, before anybody lets it go on: libvirt does as soon as its job ends."""
    each = _domain(connection, journal["name"])
    state, _reason = libvirt.state_of(each) or (0, 0)
    if guest_plan.state_of(state) == guest_plan.PAUSED:
        with libvirt.doing(f"end the guest {journal['name']!r}"):
            _end(each, journal)


def _end(each: libvirt.Domain, journal: t.Mapping[str, t.Any]) -> None:
    """End a guest that is to be started anew. Noted first: one that is found turned off stays off."""
    files.write_json(paths.journal_file(journal["name"]), {**journal, "anew": True})
    each.destroy()


def fetched_from(each: libvirt.Domain) -> bool:
    """Whether post-copy has begun with it, and not come to its end. QEMU lets nothing go on that has stopped for it."""
    library = libvirt.library()
    state, reason = libvirt.state_of(each) or (0, 0)
    reasons = (library.VIR_DOMAIN_PAUSED_POSTCOPY, library.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    return guest_plan.state_of(state) == guest_plan.PAUSED and reason in reasons


def ended_by_itself(reason: int) -> bool:
    """Whether a guest that is off was turned off, from within or by somebody: that is what is wanted, then."""
    library = libvirt.library()
    return reason in (library.VIR_DOMAIN_SHUTOFF_SHUTDOWN, library.VIR_DOMAIN_SHUTOFF_DESTROYED)


def announce(each: libvirt.Domain) -> None:
    """Have QEMU say where the guest's cards are: those who heard the target's copy believe that they are there."""
    _ask_qemu(each, "announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})


def cut_loose(each: libvirt.Domain, peer: str) -> None:
    """End QEMU's connections to the target, but for those by which that fetches its memory. From outside: while QEMU
    waits for who does not answer, it may hear nothing itself, nor does libvirt, which waits for QEMU."""
    with contextlib.suppress(CnvmError):
        if not fetched_from(each):
            _to_target(each, peer, connections.cut)


def _to_target(each: libvirt.Domain, peer: str, work: t.Callable[[int, str], object]) -> None:
    """Do something with QEMU's connections to the target, unless it is gone: ``work`` has QEMU's PID, and where they
    lead to."""
    with contextlib.suppress(CnvmError, ValueError):
        work(int(files.text_of(_PID_FILE.format(each.name()))), peers.find(peer)["tunnel"])


def _ask_qemu(each: libvirt.Domain, word: str, arguments: t.Mapping[str, t.Any]) -> t.Any:
    """What QEMU itself answers; None where it cannot be asked."""
    libvirt.library()
    try:
        import libvirt_qemu
    except ImportError:
        return None
    with contextlib.suppress(libvirt.library().libvirtError, ValueError):
        asked = {"execute": word, **({"arguments": dict(arguments)} if arguments else {})}
        return json.loads(libvirt_qemu.qemuMonitorCommand(each, json.dumps(asked), 0)).get("return")
    return None


def let_go(host: Host, journal: t.Mapping[str, t.Any]) -> list[str]:
    """End a move on the source with the guest at the target: nothing stays but the owner record, and logs.

    Other files in its own directory are kept, and returned.
    """
    name = journal["name"]

    def work(connection: libvirt.Connection) -> None:
        each = libvirt.domain(connection, name)
        if each is not None:
            remove_domain(each)
        domains.forget_variables(connection, name)

    patiently(work)
    guest_disks.delete(journal.get("moved", ()))
    kept = guest_disks.keep(host, name)
    files.remove_tree(paths.guest_disks_dir(name))
    remove_records(name)
    # By it a run after one that was cut off has found what is kept.
    files.remove_file(paths.guest_keeping_file(name))
    movedir.keep_console(name, journal["move_id"])
    files.remove_tree(paths.move_dir(journal["move_id"]))
    movedir.end_journal(name)
    return kept


def remove_domain(each: libvirt.Domain) -> None:
    """End what runs of it, and let libvirt forget it."""
    with libvirt.doing(f"remove the guest {each.name()!r}"):
        if each.isActive():
            _destroy(each)
        if each.isPersistent():
            libvirt.undefine(each)


def _destroy(each: libvirt.Domain) -> None:
    owners = _shared_owners(each)
    each.destroy()
    # libvirt has given the disks back to root. The other host may have them in use, or take them up next.
    for path, owner in owners.items():
        os.chown(path, *owner)


def _shared_owners(each: libvirt.Domain) -> dict[str, tuple[int, int]]:
    """Who the disks of a guest belong to that are on shared storage: {path: (user, group)}."""
    found = {}
    for disk in domains.model_of(each)["disks"].values():
        with contextlib.suppress(OSError):
            if not disk["read_only"] and guest_preflight.on_shared_storage(disk["path"]):
                status = os.stat(disk["path"])
                found[disk["path"]] = (status.st_uid, status.st_gid)
    return found


def remove_records(name: str) -> None:
    """What a host has written of the guest, but for its owner record and its journal; and its seed."""
    records = (paths.guest_snapshots_file, paths.guest_making_file, paths.guest_restart_file, paths.definition_file)
    for place in (paths.guest_seed, *records):
        files.remove_file(place(name))


@contextlib.contextmanager
def _exit_of(name: str) -> t.Iterator[t.Callable[[], bool]]:
    """Whether the guest's QEMU, which runs as this is entered, has ended since. The kernel says so, since libvirt's
    daemon knows no guests for a moment when it is started anew. False where that cannot be known."""
    poll = select.poll()
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, ValueError):
            fd = os.pidfd_open(int(files.text_of(_PID_FILE.format(name))))
            held.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        yield lambda: bool(poll.poll(0))


def secure(channel: peers.Channel, journal: t.Mapping[str, t.Any]) -> None:
    """Until the target has on its disk what QEMU has written there of the firmware. All else is: a link that dies now
    is no reason to keep what is here."""
    if journal.get("variables"):
        channel.call("keep", timeout_s=kinds.KEEP_S)


def serves(journal: t.Mapping[str, t.Any]) -> bool:
    """Whether QEMU still sends what the target fetches (post-copy). One that does not answer is not given up."""
    status = ""

    def work(connection: libvirt.Connection) -> None:
        nonlocal status
        each = libvirt.domain(connection, journal["name"])
        fetched = each is not None and fetched_from(each)
        status = (_ask_qemu(each, "query-migrate", {}) or {}).get("status", "") if fetched else "failed"

    patiently(work)
    return status not in ("postcopy-paused", "failed", "cancelled")


def keeps(journal: t.Mapping[str, t.Any]) -> bool:
    """Never: what it has written to its disks since then is on the target alone."""
    return False
