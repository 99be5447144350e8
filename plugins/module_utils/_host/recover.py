# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host recover``: end what a move has left when its mover died, its link broke or a host lost power.

Reads the journals of this host, asks the other host of each, and finishes or rolls back; may be run at any time, any
number of times. With the other host out of reach a workload that may run there stays frozen: nobody starts it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, CommandError, HostError, InputError, PeerError, Refused
from .._core.names import check_name
from .._migrate import plan, records
from . import cli, files, handover, kinds, movedir, ownership, peers
from .system import Host

RECOVERING = "recovering"
_RESOLVE_FOR_S = 600
_OTHERS_S = 60
# How a copy that does not come alive says so: by itself, or by a command that failed (of the network, of systemd).
_NOT_ALIVE = (HostError, CommandError)


def names_in_a_move() -> list[str]:
    """The workloads of this host that have a journal."""
    try:
        names = sorted(os.listdir(paths.WORKLOADS))
    except FileNotFoundError:
        return []
    return [name for name in names if ownership.is_moving(name)]


def _outcome(name: str, outcome: str, text: str, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "outcome": outcome, "message": text, **more}


def recover_one(host: Host, name: str, fenced: str = "") -> dict[str, t.Any]:
    """End the move of ``name``: ``name``, ``outcome`` (none, source, target, waiting), ``message``.

    ``fenced``: the name of a host that the user says is switched off and will not come back with what it has.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.lock(paths.lock_file(name), f"{RECOVERING} {name}"))
        except Refused as error:
            # A host that is dead does not hang up, nor does a link: what was begun here would wait until TCP gives up.
            holder = files.lock_holder(paths.lock_file(name))
            gone, why = _is_gone(host, files.read_json(paths.journal_file(name)) or {}, fenced)
            if not gone or not end_conversation(paths.lock_file(name), holder):
                raise Refused(f"{error.message}{why}", hint=error.hint, **error.details) from None
            held.enter_context(files.lock(paths.lock_file(name), f"{RECOVERING} {name}"))
        journal = files.read_json(paths.journal_file(name))
        if journal is None:
            return _outcome(name, "none", f"{name} is in no move.")
        if journal["role"] == "restore":
            from . import checkpoint  # only for this, and it loads much

            return _outcome(name, "source", checkpoint.recover(host, journal))
        try:
            if journal["role"] == "source":
                return _recover_source(host, journal, fenced)
            return _recover_target(host, journal, fenced)
        except HostError as error:
            # What ended where it is now, and cannot be started anew, is in no move any more: ``finish`` says so.
            if not error.details.get("over"):
                raise
            return _outcome(name, "target", f"The move of {name} is over, but it does not run. {error}")


def _is_gone(host: Host, journal: dict[str, t.Any], fenced: str) -> tuple[bool, str]:
    """Whether the source of a move to this host is dead by the user's word, or says itself that it is at it no more.

    And why it does not say, as the end of a message.
    """
    if fenced and journal.get("peer") == fenced:
        return True, ""
    if journal.get("role") != "target":
        return False, ""
    try:
        return bool(ask_decision(host, journal)["ended"]), ""
    except CnvmError as error:
        return False, f" Whether {journal['peer']} is still at it, it cannot be asked: {error.message}"


def end_conversation(lock: str, pid: int) -> bool:
    """End the ``serve`` (``pid``) that holds a lock, left by a link that died; whether it was one and the lock is free.

    A source has one mover for a container and one conversation with its target: a new one says that the old is dead.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    if pid == os.getpid() or paths.HELPER.encode() not in words or b"serve" not in words:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while files.lock_holder(lock) == pid and time.monotonic() < end:
        time.sleep(0.01)
    return files.lock_holder(lock) != pid


def _recover_source(host: Host, journal: dict[str, t.Any], fenced: str) -> dict[str, t.Any]:
    name, peer = journal["name"], journal["peer"]
    me = ownership.host_identity()
    owner = files.read_json(paths.owner_file(name)) or {}
    following = records.source_next(journal["state"], owner.get("owner") == me["host_id"])
    if following == "roll_back" and fenced != peer and _may_be_taken_over(journal):
        try:
            if _taken_over(host, journal, fenced):
                return _leave(host, journal)
        except CnvmError as error:
            return _cannot_ask(journal, error)
    if following == "roll_back":
        anew = kinds.source_of(journal).roll_back(host, journal)
        said = f"The move was not committed; {kinds.going_on(name, anew)}."
        return _outcome(name, "source", said, target=peer)
    if following == "let_go":
        return _leave(host, journal)
    if fenced == peer:
        here = _take_back(host, journal, journal["generation"] + 2, " as it was when it was frozen")
        lost = f"What it may have done on {peer} since then is lost."
        return _outcome(name, "source", f"{peer} was declared dead; {here}. {lost}")
    try:
        with peers.connected(host, peer) as channel:
            there = channel.call("resume", timeout_s=20, name=name, move_id=journal["move_id"])
            check_same(journal, there["identity"]["host_id"])
            return _settle(host, journal, channel, there, fenced)
    except PeerError as error:
        return _cannot_ask(journal, error)


def _cannot_ask(journal: dict[str, t.Any], error: CnvmError) -> dict[str, t.Any]:
    name, peer = journal["name"], str(error.details.get("peer") or journal["peer"])
    return _outcome(
        name,
        "waiting",
        f"{name} stands still here; {peer} may run it and cannot be asked ({error.message}). Bring {peer} back and "
        f"recover again, or, if it is switched off for good, run the playbook with -e fenced={peer}.",
    )


def _may_be_taken_over(journal: dict[str, t.Any]) -> bool:
    """Whether this host may have been declared dead since it began a move that it has not committed.

    Only after a boot: until then the workload's processes are here. And only when the target may have had it all.
    """
    if journal["mode"] == records.CHECKPOINT or journal["state"] == records.SOURCE_BEGUN:
        return False
    return bool(journal["boot_id"] != movedir.boot_id())


def _taken_over(host: Host, journal: dict[str, t.Any], fenced: str) -> bool:
    """Whether the target went on with what it had been sent, since this host was declared dead while it was off."""
    with peers.connected(host, journal["peer"]) as channel:
        there = channel.call("resume", timeout_s=20, name=journal["name"], move_id=journal["move_id"])
        record = _record_elsewhere(host, journal, there, fenced)
        if record is None:
            return False
        taken = bool(record["owner"] != ownership.host_identity()["host_id"])
        if taken and there.get("journal") is not None:
            # It was cut off before its end.
            try:
                kinds.source_of(journal).secure(channel, journal)
            except _NOT_ALIVE:
                # It started anew before all files were on its disk: they are whole here alone.
                back = channel.call("give_back", timeout_s=90)
                journal.update(handover.reclaim(journal, int(back["generation"]), ran=bool(back["ran"])))
                return False
    files.write_json(paths.owner_file(journal["name"]), record)
    return taken


def _record_elsewhere(
    host: Host, journal: dict[str, t.Any], there: t.Mapping[str, t.Any], fenced: str
) -> t.Optional[dict[str, t.Any]]:
    """The owner record of the workload where it is another host's since the move began: the target's (``there``: its
    answer), or one's that it was moved to from there. None when the target never had it.

    Where that one is ``fenced``, or has it no more: one by which it is this host's, newer than all that were found. By
    an older one it could never be moved to a host that knows of them.
    """
    me, since = ownership.host_identity(), int(journal["generation"])
    mine: t.Optional[dict[str, t.Any]] = None
    while True:
        record = there.get("owner") or {}
        generation = int(record.get("generation", -1))
        if record.get("uuid") != journal["uuid"] or record.get("owner") == me["host_id"] or generation < since:
            return mine
        if record.get("owner") == there["identity"]["host_id"]:
            return dict(record) if generation > int(journal["generation"]) else None
        # It knows where it has gone. A host that has it says so by the same generation, or has given it on by a later.
        if generation == since:
            return mine
        mine = records.handed_over(record, me["host_id"], me["name"])
        if record.get("owner_name") == fenced:
            return mine
        since, holder = generation, str(record.get("owner_name"))
        try:
            with peers.connected(host, holder) as channel:
                there = channel.call("resume", timeout_s=20, name=journal["name"], move_id=journal["move_id"])
        except InputError as error:
            raise PeerError(f"No other host of the overlay is called {holder}.", peer=holder) from error


def _settle(
    host: Host, journal: dict[str, t.Any], channel: peers.Channel, there: t.Mapping[str, t.Any], fenced: str
) -> dict[str, t.Any]:
    """The move is committed and the target answers: finish there if it can, else take the container back."""
    name, peer = journal["name"], journal["peer"]
    theirs, record = there.get("journal"), there.get("owner") or {}
    generation = int(record.get("generation", 0))
    # The promise alone is not enough: a target that was interrupted may still have a copy that runs.
    given_back = records.given_back(record, journal["generation"])
    # One that is not this host's promises nothing: the target had it, and has given it to a third host since.
    elsewhere = _record_elsewhere(host, journal, there, fenced) if theirs is None else None
    if elsewhere is not None and elsewhere["owner"] == ownership.host_identity()["host_id"]:
        here = _take_back(host, journal, int(elsewhere["generation"]))
        return _outcome(name, "source", f"No other host has {name} any more; {here}.")
    if elsewhere is not None:
        files.write_json(paths.owner_file(name), elsewhere)
        return _leave(host, journal)
    if theirs is None and given_back:
        here = _take_back(host, journal, generation, ran=bool(record.get("ran", True)))
        return _outcome(name, "source", f"{peer} had given {name} back; {here}.")
    if theirs is None and record.get("owner") == there["identity"]["host_id"]:
        return _leave(host, journal)
    if theirs is None:
        here = _take_back(host, journal, journal["generation"] + 2)
        return _outcome(name, "source", f"{peer} has nothing of {name}; {here}.")
    problem = "its copy has ended"
    alive = bool(there.get("alive")) and not given_back
    noted = theirs["state"] == records.TARGET_ACTIVE
    ran = bool(there.get("ran", noted))
    if noted and not ran:
        problem = f"{peer} started anew before all its files were on the disk there"
    if theirs["state"] != records.TARGET_ACTIVE and not given_back:
        try:
            channel.call("activate", timeout_s=60, limit_s=30)
            alive = ran = True
        except _NOT_ALIVE as error:
            # What is held there stands still.
            alive, problem = False, error.message
    if alive and journal["mode"] == plan.POST_COPY and not _drain(channel, journal):
        alive, problem = False, "its memory has not all arrived"
    lost = ""
    if not alive and ran and not given_back and not kinds.source_of(journal).keeps(journal):
        # What is there is newer than what is here, though its memory is lost.
        anew, alive = channel.call("anew", timeout_s=90).get("anew"), True
        lost = kinds.memory_lost(name) if anew and journal["mode"] == plan.POST_COPY else ""
    if not alive:
        try:
            back = channel.call("give_back", timeout_s=90)
        except Refused as error:
            # It has run by now: the next who asks hears of it.
            return _outcome(name, "waiting", f"{name} is at {peer}, and the move is not ended: {error}")
        here = _take_back(host, journal, int(back["generation"]), ran=bool(back["ran"]))
        return _outcome(name, "source", f"{name} is not whole on {peer} ({problem}); {here}.")
    kinds.source_of(journal).secure(channel, journal)
    kept = _let_go(host, journal)
    try:
        end = channel.call("finish", timeout_s=120)
    except PeerError as error:
        # As soon as that one hears that the line is dead it ends the move by itself.
        said = f"{name} is on {peer}, which ends the move ({error.message})."
        return _outcome(name, "target", f"{said} {kept}".rstrip())
    if end.get("gone"):
        said = f"{name} went to {peer}; the move is over, but {kinds.is_gone(name, peer)}"
        return _outcome(name, "target", f"{said} {kept}".rstrip())
    if end.get("anew"):
        lost = lost or "It had ended there, and was started anew with its files."
    said = " ".join(one for one in (f"{name} is on {peer}; the move is finished.", lost, kept) if one)
    return _outcome(name, "target", said)


def _leave(host: Host, journal: dict[str, t.Any]) -> dict[str, t.Any]:
    """The target has it, for good: on its disk, or its side of the move would not have ended, nor this one be noted as
    leaving. Remove what is left here. Noted first, as it goes piece by piece."""
    name, peer = journal["name"], journal["peer"]
    kept = _let_go(host, journal)
    return _outcome(name, "target", f"{name} had arrived at {peer}; what was left here is removed. {kept}".rstrip())


def _let_go(host: Host, journal: dict[str, t.Any]) -> str:
    """The same; words for what is kept."""
    leaving = {**journal, "state": records.SOURCE_LEAVING}
    files.write_json(paths.journal_file(journal["name"]), leaving)
    kept = kinds.source_of(journal).let_go(host, leaving)
    return f"What was no disk of it is kept here: {', '.join(kept)}." if kept else ""


def _take_back(host: Host, journal: t.Mapping[str, t.Any], generation: int, how: str = "", *, ran: bool = True) -> str:
    """The target has given it back, or never will run it: it is this host's again, and goes on as it stood still.
    Words for that. ``ran``: whether the target's copy may have run."""
    noted = handover.reclaim(journal, generation, ran=ran)
    return kinds.going_on(journal["name"], kinds.source_of(journal).roll_back(host, noted), how)


def _drain(channel: peers.Channel, journal: t.Mapping[str, t.Any]) -> bool:
    """Whether the target has all memory; waits for as long as this host still serves it."""
    while True:
        # Asked before: it may come to its end between the two.
        serves = kinds.source_of(journal).serves(journal)
        answer = channel.call("drained", timeout_s=60, limit_s=1 if serves else 20)
        if answer["ended"] or not serves:
            return bool(answer["drained"])


def _recover_target(host: Host, journal: dict[str, t.Any], fenced: str) -> dict[str, t.Any]:
    name, peer = journal["name"], journal["peer"]
    if fenced == peer:
        return _without_source(host, journal)
    if journal["state"] == records.TARGET_ACTIVE:
        # Nobody may ever say so. What is lost already is told when the source asks.
        with contextlib.suppress(CnvmError):
            kinds.target_of(journal).keep(host, name, journal)
    decided: t.Optional[str] = None
    ended = False
    why = "it has not decided yet"
    try:
        answer = ask_decision(host, journal)
        decided, ended = str(answer["decision"]), bool(answer["ended"])
        if decided != records.UNDECIDED:
            why = "it has not ended its side"
    except CnvmError as error:
        why = error.message
    promised = records.given_back(files.read_json(paths.owner_file(name)), journal["generation"])
    following = records.target_next(journal["state"], decided, promised)
    if following == "give_back":
        handover.give_back(host, name, journal)
        return _outcome(name, "source", f"{name} was given back to {peer}; nothing of it is left here.")
    if following == "give_up":
        kinds.target_of(journal).give_up(host, name, journal)
        _wake(host, journal)
        return _outcome(
            name, "source", f"The move of {name} from {peer} was not committed; nothing of it is left here."
        )
    if following == "activate":
        return _go(host, journal)
    if following == "done" and decided == records.DECIDED_COMMIT and ended:
        started = kinds.target_of(journal).finish(host, name, journal)
        if started is None:
            return _outcome(name, "target", f"{peer} had let {name} go, but {_is_gone_here(name)}")
        anew = " It had ended, and was started anew with its files." if kinds.was_anew(journal, started) else ""
        return _outcome(name, "target", f"{name} is here; {peer} had let it go.{anew}")
    if following == "done":
        whole = kinds.target_of(journal).has_run(name, journal)
        here = "is here" if whole else "lacks files here (this host started anew before all were on its disk)"
        return _outcome(name, "waiting", f"{name} {here}; {peer} must end the move. Recover on {peer} ({why}).")
    here = "stands still here" if journal["state"] == records.TARGET_PREPARED else "has not all arrived here"
    return _outcome(name, "waiting", f"{name} {here}; {peer} must decide ({why}).")


def _is_gone_here(name: str) -> str:
    return kinds.is_gone(name, str(ownership.host_identity()["name"]))


def _go(host: Host, journal: dict[str, t.Any]) -> dict[str, t.Any]:
    """The source had committed: let the held copy run, or give the container back when that is gone."""
    name, peer = journal["name"], journal["peer"]
    target = kinds.target_of(journal)
    try:
        target.activate(host, name, journal, 30)
        text = f"{name} runs here; {peer} still has its frozen copy and ends the move."
    except _NOT_ALIVE as error:
        now = files.read_json(paths.journal_file(name)) or journal
        if kinds.source_of(journal).keeps(journal) or not target.has_run(name, now):
            handover.give_back(host, name, journal)
            text = f"{name} was given back to {peer}: {error.message}"
        else:
            text = f"{name} does not come alive here ({error.message}). {peer} has it started anew, or left off."
    _wake(host, journal)
    return _outcome(name, "waiting", text)


def _wake(host: Host, journal: dict[str, t.Any]) -> None:
    """Have the source look at the move again: it may have stopped asking."""
    with contextlib.suppress(CnvmError), peers.connected(host, journal["peer"]) as channel:
        channel.call("wake", timeout_s=20, name=journal["name"])


def _without_source(host: Host, journal: dict[str, t.Any]) -> dict[str, t.Any]:
    """The user says that the source is dead for good: what is whole here goes on, unless it was given back."""
    name, peer, target = journal["name"], journal["peer"], kinds.target_of(journal)
    if records.given_back(files.read_json(paths.owner_file(name)), journal["generation"]):
        # The source may have gone on by that promise, and have moved it to a third host before it died.
        handover.give_back(host, name, journal)
        return _outcome(
            name,
            "source",
            f"{name} had been given back to {peer} before {peer} was declared dead: the copy here never runs and is"
            f" gone. If no other host has got {name} from {peer} since, there is only what lies on {peer}.",
        )
    prepared = journal["state"] == records.TARGET_PREPARED
    if journal["state"] == records.TARGET_RECEIVING or (prepared and not target.has_arrived(name, journal)):
        target.give_up(host, name, journal)
        return _outcome(name, "none", f"{name} had not arrived when {peer} died; nothing of it is left here.")
    whole = target.is_alive(name, journal) and (
        journal["mode"] != plan.POST_COPY or target.drained(journal, 0)["drained"]
    )
    if whole and prepared:
        try:
            target.activate(host, name, journal, 30)
        except _NOT_ALIVE:
            # It would not the next time either (CRIU was killed that held it, say), and nobody else has it.
            whole = False
    if not whole:
        target.end_copy(host, name, journal)
        handover.own(name, journal)
    started = target.finish(host, name, journal)
    if started is None:
        return _outcome(name, "target", f"{peer} was declared dead, and {_is_gone_here(name)}")
    runs = started or (whole and bool(journal.get("running")))
    lost = "" if whole else f" The memory that only {peer} had is lost."
    if lost and journal["mode"] == plan.COLD:
        lost = f" What was not on the disk here by then may be lost: only {peer} had all of it."
    here = kinds.going_on(name, (started and not whole) if runs else None)
    return _outcome(name, "target", f"{peer} was declared dead; {here}.{lost}")


def ask_decision(host: Host, journal: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the source of a move has decided (``decision``), and whether it has ended its side (``ended``)."""
    with peers.connected(host, journal["peer"]) as channel:
        answer = channel.call(
            "decision", timeout_s=10, name=journal["name"], move_id=journal["move_id"],
            generation=journal["generation"], asker=ownership.host_identity()["host_id"],
        )  # fmt: skip
    check_same(journal, str(answer["host_id"]))
    return answer


def check_same(journal: t.Mapping[str, t.Any], host_id: str) -> None:
    """PeerError when another machine answers by the name of the one with which a move began: it knows nothing of it."""
    if host_id != journal["peer_id"]:
        raise PeerError(
            f"{journal['peer']} is another machine, or was installed anew, since the move of {journal['name']} began.",
            hint=f"If the old one is gone for good, recover with fenced={journal['peer']}.",
        )


def resolve_in_background(host: Host, name: str) -> None:
    """Start ``recover NAME --patient`` as a unit of its own: it must outlive the SSH session that we are in."""
    host.run(
        [
            "systemd-run", "--quiet", "--collect", f"--unit=cnvm-resolve-{name}.service", paths.HELPER, "recover",
            "--patient", name,
        ],
        check=False,
        timeout_s=20,
    )  # fmt: skip


def recover(args: t.Sequence[str], host: Host) -> int:
    """``cnvm-host recover [--patient] [--fenced HOST] [NAME…]``: all containers in a move when none is named.

    ``--patient``: while the other host decides or cannot be asked, ask again for ten minutes.
    """
    words = list(args)
    patient = "--patient" in words
    fenced = ""
    if "--fenced" in words:
        at = words.index("--fenced")
        if at + 1 >= len(words):
            raise InputError("--fenced needs the name of a host.")
        fenced = check_name(words[at + 1], "--fenced")
        del words[at : at + 2]
    names = [check_name(word, "NAME") for word in words if word != "--patient"] or names_in_a_move()
    results = _recover_patiently(host, names, fenced, _RESOLVE_FOR_S if patient else 0)
    cli.write_line(host, {"results": results})
    return 0


def _recover_patiently(host: Host, names: t.Sequence[str], fenced: str, patience_s: float) -> list[dict[str, t.Any]]:
    """``recover_one`` of each, again and again for ``patience_s`` while its other host decides or cannot be asked; what
    one waits for keeps none of the others.

    Somebody else who recovers one is done soon, so that is waited for in any case.
    """
    start = time.monotonic()
    results: dict[str, dict[str, t.Any]] = {}
    due = dict.fromkeys(names, start)
    while due:
        name = min(due, key=lambda each: due[each])
        left = due[name] - time.monotonic()
        if left > 0:
            time.sleep(left)
        limit, pause = patience_s, 2
        try:
            result = recover_one(host, name, fenced)
        except Refused as error:
            result = _outcome(name, "busy", str(error))
            if RECOVERING in str(error.details.get("holder")):
                limit = max(limit, _OTHERS_S)
            else:
                # A move that goes on, most likely: each question takes of the computing that it waits for.
                pause = 10
        except CnvmError as error:
            result = _outcome(name, "waiting", f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - a full disk or a bug of ours: the others are to be ended
            result = _outcome(name, "waiting", f"{name}: {type(error).__name__}: {error}")
        new = result["message"] != results.get(name, {}).get("message")
        results[name] = result
        if result["outcome"] not in ("waiting", "busy") or time.monotonic() - start >= limit:
            del due[name]
            continue
        if host.stderr is not None and new:
            host.stderr.write(f"{result['message']}\n".encode())
            host.stderr.flush()
        due[name] = time.monotonic() + pause
    return [results[name] for name in names]


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"recover": recover}
