# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host move``: the source's side of a move, from the plan to the end, on its own once started.

``start`` begins a unit that nobody's SSH session can end; ``status`` tells how far it is; ``plan`` changes nothing.
The steps depend on what is moved (see ``kinds``); this file has their order, and what is undone when one fails. After
the commit nothing is undone without the target's word.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, PeerError, Refused
from .._core.names import check_name
from .._migrate import plan, records
from .._migrate.options import parse_request
from .._migrate.timeline import Timeline
from . import cli, files, freezer, handover, kinds, movedir, ownership, peers, preflight, recover, watchdog
from .system import Host

_FROZEN_LIMIT_S = 30.0
# One that was stopped as a whole, or waits for what hangs, is killed, and what it has begun is recovered.
_WATCHDOG_S = 60
# It comes alive with nothing in the processor's caches. What is tidied up is work for both hosts, and can wait so long.
_SETTLE_S = 0.15
# So much longer who follows a move waits for an answer while the workload stands still.
_LONGER_S = 2.0
# How long the unit of a move may take to go once the move has ended: it looks whether anything is to be recovered.
_ENDING_S = 10.0
_ENDS_IT = "The playbook cnvm.platform.recover ends it."


class Move:
    """One move, on the source. ``report`` is called with the status whenever it changes."""

    def __init__(
        self, host: Host, request: t.Mapping[str, t.Any], move_id: str, report: t.Callable[[dict[str, t.Any]], None]
    ) -> None:
        self.host = host
        self.request = request
        self.move_id = move_id
        self.kind = str(request["kind"])
        self.name = str(request["name"])
        self.time = Timeline(time.monotonic)
        self.result: dict[str, t.Any] = {"move_id": move_id, self.kind: self.name, "target": request["target"]}
        self.journal: dict[str, t.Any] = {}
        self._source = kinds.source(self.kind)
        self._report = report
        self._runs = True
        self._frozen = False
        self._settles_at = 0.0
        self._end = time.monotonic() + request["timeout_s"]

    # --- for the steps ---

    def left(self, most: float = 3600.0) -> float:
        """Seconds that the user's limit leaves; HostError when none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise HostError(
                f"The move took longer than timeout_s={self.request['timeout_s']}.", hint="Raise timeout_s."
            )
        return min(left, most)

    def frozen_left(self) -> float:
        """Seconds that a step may take while it stands still: a hung one must not keep it so."""
        return self.left(_FROZEN_LIMIT_S + 4 * float(self.result["plan"]["expected_frozen_ms"]) / 1000)

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self.time.begin(name)
        self.tell()

    def tell(self) -> None:
        """Say how far it is."""
        self._report(
            {
                "phase": self.time.phase(),
                # What does not run is in no hurry.
                "frozen": self._frozen and self._runs,
                "settles_at": self._settles_at,
                "elapsed_ms": self.time.elapsed_ms(),
                "bytes": dict(self.time.bytes),
            }
        )

    def progress(self, kind: str) -> t.Callable[[int], None]:
        """To be called with the number of bytes of that kind that were just sent."""
        last = [time.monotonic()]

        def tell(count: int) -> None:
            self.time.add_bytes(kind, count)
            if time.monotonic() - last[0] > 0.2:
                last[0] = time.monotonic()
                self.tell()

        return tell

    def freeze(self, phase: str) -> None:
        """Begin the phase in which it comes to stand still."""
        self._save(records.SOURCE_FROZEN)
        self._frozen_at = self.time.elapsed_ms()
        self._frozen = True
        self.phase(phase)

    def _stood_still(self) -> None:
        """Note for how long; of one that does not run there is nothing to say."""
        if self._runs:
            self._settles_at = time.monotonic() + _SETTLE_S
            self.result.setdefault("frozen_ms", round(self.time.elapsed_ms() - self._frozen_at, 1))

    def _save(self, state: str) -> None:
        self.journal = {**self.journal, "state": state}
        files.write_json(paths.journal_file(self.name), self.journal)

    # --- the order of things ---

    def run(self) -> dict[str, t.Any]:
        """Do it; the result (``outcome``: target, source, waiting), with ``error`` where it failed."""
        with files.lock(paths.lock_file(self.name), f"a move of {self.name}"):
            self.definition, self.owner = preflight.movable(self.name, self.kind)
            with peers.connected(self.host, self.request["target"]) as channel:
                self.channel = channel
                self._plan_and_move()
        return self.result

    def _plan_and_move(self) -> None:
        self.phase("preflight")
        seen = self._source.survey(self.host, self.channel, self.definition, self.owner, self.request)
        self.mode, self.there, self._runs = seen.plan.mode, seen.identity, seen.running
        self.result.update(plan=seen.plan.as_result(), mode=self.mode)
        if seen.plan.blockers:
            said = " ".join(seen.plan.blockers)
            self.result.update(outcome="source", error=said, failed_phase="preflight", frozen_ms=0.0)
            return
        enabled = self._source.is_enabled(self.name)
        self.journal = {
            **records.journal(
                "source", records.SOURCE_BEGUN, self.move_id, self.owner, self.channel.peer, self.there["host_id"],
                self.mode, movedir.boot_id(),
            ),
            "running": seen.running, "enabled": enabled,
        }  # fmt: skip
        self.steps = self._source.leaving(self, seen)
        files.write_json(paths.journal_file(self.name), self.journal)
        try:
            self.steps.begin()
            self.channel.call(
                "begin", timeout_s=self.left(60), definition=self.definition, owner=self.owner, move_id=self.move_id,
                source=ownership.host_identity(), mode=self.mode, needs=seen.needs, running=seen.running,
                enabled=enabled,
            )  # fmt: skip
            self.steps.bring()
            self.steps.hold()
            self._hand_over()
            if self.mode == plan.POST_COPY:
                self.phase("drain")
                self.steps.drain()
            self._end_well()
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave it frozen
            self._failed(_known(error))
        self.result.update(timeline=self.time.as_result())

    def _hand_over(self) -> None:
        """The decision, and the target's first step after it. Nobody hears how far it is while it stands still."""
        self.time.begin("commit")
        self.steps.check_still()
        handover.commit(self.name, self.owner, self.there["host_id"], self.channel.peer)
        self.time.begin("activate")
        self.steps.let_run()
        limit = self.steps.activate_limit_s
        self.result.update(self.channel.call("activate", timeout_s=limit + 10, limit_s=limit))
        self._stood_still()
        self._frozen = False
        freezer.hurry(False)

    def _end_well(self) -> None:
        self.phase("finish")
        # At once: until this is done a target that loses power has nothing that could be relied on.
        self._source.secure(self.channel, self.journal)
        time.sleep(max(0.0, self._settles_at - time.monotonic()))
        self.result.update(self.steps.statistics())
        # From here on nothing may bring it back: what is here goes piece by piece.
        self._save(records.SOURCE_LEAVING)
        self.steps.leave()
        kept = self._source.let_go(self.host, self.journal)
        self.result.update(outcome="target", **({"kept_disks": kept} if kept else {}))
        # What follows is tidying; whatever goes wrong costs nothing (recover on the target does the same).
        with contextlib.suppress(CnvmError):
            if self.journal["running"]:
                self.channel.call("announce", timeout_s=10)
        try:
            answer = self.channel.call("finish", timeout_s=120)
        except PeerError:
            return  # as soon as the target hears that the line is dead, it ends the move by itself
        except CnvmError as error:
            ends_it = error.hint if error.details.get("over") else _ENDS_IT
            self.result["left_behind"] = f"On {self.channel.peer}: {error.message} {ends_it}"
            return
        if answer.pop("anew", False):
            said = f"{self.name} had ended on {self.channel.peer} by then; it was started anew there with its files."
            self.result.setdefault("lost", said)
        if answer.pop("gone", False):
            self.result["lost"] = kinds.is_gone(self.name, self.channel.peer)
        for key, value in answer.items():
            self.result[key] = {**self.result.get(key, {}), **value}

    # --- when something fails ---

    def _failed(self, error: CnvmError) -> None:
        """Undo what may be undone, and say what was."""
        phase = self.time.phase()
        logs = paths.move_log_dir(self.move_id)
        said: dict[str, t.Any] = {
            "error": error.message, "hint": error.hint, "failed_phase": phase,
            **self.steps.said(error),
            "logs": {"source": logs, "target": logs},
        }  # fmt: skip
        undone: list[str] = []
        owner = files.read_json(paths.owner_file(self.name)) or {}
        committed = owner.get("generation") != self.owner["generation"]
        if self.journal["state"] == records.SOURCE_LEAVING:
            self.result.update(outcome="target", left_behind=f"{error.message} {_ENDS_IT}")
            return
        if committed:
            outcome = self._fail_committed(error, undone)
        else:
            frozen = self._frozen
            outcome = self._roll_back(undone, " as it was when it was frozen" if frozen else "")
            if frozen:
                self._stood_still()
            # Who has not answered so far is not waited for much longer: it asks here what became of the move.
            with contextlib.suppress(CnvmError):
                self.channel.call("give_up", timeout_s=10 if self.channel.is_late else 90)
                undone.append(f"nothing of it is left on {self.channel.peer}")
        self.result.update(said, outcome=outcome, rolled_back=undone)

    def _fail_committed(self, error: CnvmError, undone: list[str]) -> str:
        """The target has the word. It gives the workload back, or nothing is done until it can be asked."""
        try:
            if isinstance(error, PeerError):
                raise error
            back = self.channel.call("give_back", timeout_s=90)
        except Refused as refused:
            undone.append(f"nothing: the move is not ended ({refused.message}) Run the playbook cnvm.platform.recover.")
            return "waiting"
        except CnvmError as lost:
            undone.append(
                f"nothing: {self.name} stands still here until {self.channel.peer} can be asked ({lost.message}) "
                "Run the playbook cnvm.platform.recover."
            )
            return "waiting"
        undone.append(f"the copy on {self.channel.peer} is gone for good")
        outcome = self._roll_back(undone, " as it was when it was frozen; what it did since then is lost", back)
        self._stood_still()
        return outcome

    def _roll_back(self, undone: list[str], how: str, back: t.Optional[dict[str, t.Any]] = None) -> str:
        """Let the workload go on here; the outcome. One that had died has lost what it had in its memory.

        ``back``: what the target has said when it gave it back.
        """
        try:
            if back is not None:
                self.journal = handover.reclaim(self.journal, int(back["generation"]), ran=bool(back["ran"]))
            self.steps.abandon()
            anew = self._source.roll_back(self.host, self.journal)
        except Exception as error:  # noqa: BLE001 - what went wrong first is still to be told
            undone.append(
                f"nothing here: {self.name} may stand still ({_known(error).message}) Run the playbook"
                " cnvm.platform.recover."
            )
            return "waiting"
        if anew:
            self.result["lost"] = f"The memory of {self.name} is lost; it was started anew here with its files."
        undone.append(kinds.going_on(self.name, anew, how))
        return "source"


def _known(error: Exception) -> CnvmError:
    """As an error that has a message."""
    return error if isinstance(error, CnvmError) else HostError(f"{type(error).__name__}: {error}")


# --- the command ---


def _status_file(move_id: str) -> str:
    return f"{paths.move_log_dir(move_id)}/status.json"


def _write_status(move_id: str, status: t.Mapping[str, t.Any]) -> None:
    files.write_json(_status_file(move_id), status, durable=False)


def _plan(args: t.Sequence[str], host: Host) -> int:
    request = parse_request(args[0])
    kind = request["kind"]
    definition, owner = preflight.movable(request["name"], kind)
    with peers.connected(host, request["target"]) as channel:
        seen = kinds.source(kind).survey(host, channel, definition, owner, request)
    cli.write_line(host, {"plan": seen.plan.as_result()})
    return 0


def _start(args: t.Sequence[str], host: Host) -> int:
    request = parse_request(args[0])
    name = request["name"]
    peers.find(request["target"])
    if files.read_json(paths.journal_file(name)) is not None:
        ended = recover.recover_one(host, name)
        # One to another host has left it there, or it was moved on since; and one to this host has brought it.
        owner = files.read_json(paths.owner_file(name)) or {}
        if ended["outcome"] == "target" and owner.get("owner_name") == request["target"]:
            cli.write_line(host, {"already": True, "message": ended["message"]})
            return 0
        if ended["outcome"] not in ("source", "target", "none"):
            raise HostError(ended["message"])
    preflight.movable(name, request["kind"])
    with files.lock(paths.lock_file(name), f"a move of {name}"):
        pass  # refused here and now when somebody is at work on it
    move_id = os.urandom(6).hex()
    os.makedirs(paths.move_log_dir(move_id), mode=0o700, exist_ok=True)
    files.write_json(f"{paths.move_log_dir(move_id)}/request.json", request)
    _write_status(move_id, {"phase": "start"})
    end = time.monotonic() + _ENDING_S
    while True:
        # Not ended with whoever started it. What CRIU serves to the target must outlive a mover that dies.
        started = host.run(
            [
                "systemd-run", "--quiet", "--collect", f"--unit=cnvm-move-{name}.service", "-p", "KillMode=process",
                "-p", f"ExecStopPost={paths.HELPER} recover --patient {name}", "-p", "TimeoutStopSec=700",
                "-p", f"WatchdogSec={_WATCHDOG_S}", "-p", "WatchdogSignal=SIGKILL", "-p", "NotifyAccess=main",
                paths.HELPER, "move", "run", move_id,
            ],
            check=False, timeout_s=20,
        )  # fmt: skip
        # "already" loaded, or there: the one before has told its end, and its unit is about to go.
        if not started.rc or "already" not in started.stderr or time.monotonic() > end:
            break
        time.sleep(0.2)
        with files.lock(paths.lock_file(name), f"a move of {name}"):
            pass
    if started.rc:
        raise HostError(f"The move cannot be started: {started.stderr.strip()}", hint="Is another one under way?")
    cli.write_line(host, {"move_id": move_id})
    return 0


def _run(args: t.Sequence[str], host: Host) -> int:
    move_id = check_name(args[0], "ID")
    request = files.read_json(f"{paths.move_log_dir(move_id)}/request.json")
    if request is None:
        raise InputError(f"There is no move {move_id} on this host.")

    def report(status: dict[str, t.Any]) -> None:
        # On a disk that is full nobody sees how far it is; that is no reason to end it.
        with contextlib.suppress(OSError):
            _write_status(move_id, status)

    move = Move(host, request, move_id, report)
    watchdog.begin(kinds.source(move.kind).answers)
    try:
        result = move.run()
    except Exception as error:  # noqa: BLE001 - who follows the move must hear of it, whatever it is
        known = _known(error)
        # What it has begun, and could not undo, is recovered when this process has ended.
        begun = bool(move.journal) and os.path.exists(paths.journal_file(move.name))
        result = {
            **move.result, "outcome": "waiting" if begun else "source", "error": known.message, "hint": known.hint,
            "failed_phase": move.time.phase() or "start", "rolled_back": [], **({} if begun else {"frozen_ms": 0.0}),
        }  # fmt: skip
    _write_status(move_id, {"phase": "done", "result": result})
    return 0 if result["outcome"] == "target" else 1


def _status(args: t.Sequence[str], host: Host) -> int:
    """``status ID [SECONDS]``: wait that long for a new phase.

    While the workload stands still, and until it has settled, the answer waits, too, for ``_LONGER_S`` at most: who
    follows the move would ask again at once, and that takes of the computing that the workload waits for.
    """
    move_id = check_name(args[0], "ID")
    end = time.monotonic() + (float(args[1]) if len(args) > 1 else 0)
    first = files.read_json(_status_file(move_id))
    while True:
        status = files.read_json(_status_file(move_id))
        if status is None:
            raise InputError(f"There is no move {move_id} on this host.")
        new = first is None or status["phase"] != first["phase"]
        # The mover's clock, which is that of all processes of this host.
        still = bool(status.get("frozen")) or time.monotonic() < status.get("settles_at", 0.0)
        if (new and not still) or status["phase"] == "done" or time.monotonic() > end + still * _LONGER_S:
            break
        time.sleep(0.02)
    name = (files.read_json(f"{paths.move_log_dir(move_id)}/request.json") or {}).get("name", "")
    if status.get("phase") != "done" and not freezer.populated(f"/system.slice/cnvm-move-{name}.service"):
        again = files.read_json(_status_file(move_id)) or status
        status = again if again.get("phase") == "done" else {**again, "died": True}
    cli.write_line(host, status)
    return 0


_WORDS: dict[str, t.Callable[[t.Sequence[str], Host], int]] = {
    "plan": _plan,
    "start": _start,
    "run": _run,
    "status": _status,
}


def move(args: t.Sequence[str], host: Host) -> int:
    """``cnvm-host move plan|start REQUEST``, ``run ID``, ``status ID [SECONDS]``; REQUEST is JSON."""
    if len(args) < 2 or args[0] not in _WORDS:
        raise InputError("Usage: cnvm-host move WORD ARGUMENT.", hint=f"WORD is one of: {', '.join(_WORDS)}.")
    return _WORDS[args[0]](args[1:], host)


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"move": move}
