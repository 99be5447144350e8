# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is answered to those who follow a move, and what is said of one that fails."""

from __future__ import annotations

import contextlib
import io
import json
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    files,
    freezer,
    kinds,
    movedir,
    mover,
    peers,
    preflight,
    recover,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan, records

MOVE = "0123456789ab"
REQUEST = {"kind": "guest", "name": "web", "target": "host2", "timeout_s": 60}


def status(phase: str, **more: t.Any) -> dict[str, t.Any]:
    return {"phase": phase, "frozen": False, "elapsed_ms": 1.0, "bytes": {}, **more}


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ({}, ""),
        ({"anew": True}, "web had ended on host2"),
        ({"gone": True}, "libvirt on host2 does not know web any more"),
    ],
)
def test_a_copy_that_had_ended_when_the_move_did_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any], lost: str
) -> None:
    """What it had in its memory is lost, although the move has succeeded."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    move = mover.Move(Host(run=t.cast("t.Any", None)), REQUEST, MOVE, lambda status: None)
    move.journal = {"running": False}
    move.result["libvirt"] = {"downtime_ms": 48}
    numbers = {"libvirt": {"memory_bytes": 4096}}
    said: dict[str, t.Any] = {
        "steps": types.SimpleNamespace(statistics=dict, leave=lambda: None),
        "channel": types.SimpleNamespace(peer="host2", call=lambda word, **args: {**numbers, **answer}),
        "_source": types.SimpleNamespace(let_go=lambda host, journal: [], secure=lambda channel, journal: None),
    }
    for key, value in said.items():
        setattr(move, key, value)
    move._end_well()
    assert move.result["outcome"] == "target"
    assert move.result["libvirt"] == {"downtime_ms": 48, "memory_bytes": 4096}
    assert move.result.get("lost", "").startswith(lost)
    assert bool(move.result.get("lost")) is bool(lost)
    assert not {"anew", "gone"} & set(move.result)


@pytest.mark.parametrize(
    ("error", "told"), [(HostError("web cannot be started: no space."), True), (PeerError("Lost."), False)]
)
def test_a_target_that_cannot_end_the_move_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: CnvmError, told: bool
) -> None:
    """Who is not heard any more ends it by itself."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    move = mover.Move(Host(run=t.cast("t.Any", None)), REQUEST, MOVE, lambda status: None)
    move.journal = {"running": False}

    def call(word: str, **args: t.Any) -> dict[str, t.Any]:
        raise error

    said: dict[str, t.Any] = {
        "steps": types.SimpleNamespace(statistics=dict, leave=lambda: None),
        "channel": types.SimpleNamespace(peer="host2", call=call),
        "_source": types.SimpleNamespace(let_go=lambda host, journal: [], secure=lambda channel, journal: None),
    }
    for key, value in said.items():
        setattr(move, key, value)
    move._end_well()
    assert move.result["outcome"] == "target"
    assert ("web cannot be started" in move.result.get("left_behind", "")) is told


@pytest.mark.parametrize("kept", [[], ["/kept/vdb.raw"]])
def test_what_is_kept_on_the_source_is_told(move: mover.Move, monkeypatch: pytest.MonkeyPatch, kept: list[str]) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Source, "let_go", lambda self, host, journal: kept, raising=False)
    assert move.run().get("kept_disks", []) == kept


@pytest.mark.parametrize("runs", [True, False])
def test_only_what_runs_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    told: list[bool] = []
    move = mover.Move(Host(run=t.cast("t.Any", None)), REQUEST, MOVE, lambda status: told.append(status["frozen"]))
    move._runs = runs
    move.freeze("disks")
    move._stood_still()
    assert ("frozen_ms" in move.result) is runs
    assert told == [runs]


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., dict[str, t.Any]]:
    """Asks for something new while one status after the other is written, a second apart."""
    monkeypatch.setattr(paths, "LOGS", str(tmp_path))
    monkeypatch.setattr(freezer, "populated", lambda cgroup: True)
    directory = Path(paths.move_log_dir(MOVE))
    directory.mkdir(parents=True)
    (directory / "request.json").write_text('{"name": "web"}')

    def asked(*statuses: dict[str, t.Any], seconds: float = 60) -> dict[str, t.Any]:
        now, coming = [100.0], list(statuses)
        (directory / "status.json").write_text(json.dumps(coming.pop(0)))

        def sleep(_seconds: float) -> None:
            now[0] += 1
            if coming:
                (directory / "status.json").write_text(json.dumps(coming.pop(0)))

        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time, "sleep", sleep)
        out = io.BytesIO()
        assert mover.move(["status", MOVE, str(seconds)], Host(run=t.cast("t.Any", None), stdout=out)) == 0
        return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))

    return asked


def test_a_new_phase_is_told_at_once(follow: t.Callable[..., dict[str, t.Any]]) -> None:
    assert follow(status("preflight"), status("memory"), status("finish"))["phase"] == "memory"


def test_nobody_is_answered_while_it_stands_still(follow: t.Callable[..., dict[str, t.Any]]) -> None:
    still = [status(phase, frozen=True) for phase in ("switch", "commit", "activate")]
    assert follow(status("memory"), *still, status("finish"))["phase"] == "finish"
    assert follow(*still, {"phase": "done", "result": {}})["phase"] == "done"
    # Also when the time for an answer has just come.
    assert follow(status("memory"), *still[1:], status("finish"), seconds=1)["phase"] == "finish"


def test_nobody_is_answered_before_it_has_settled(follow: t.Callable[..., dict[str, t.Any]]) -> None:
    settling = [status("finish", settles_at=102.5, elapsed_ms=float(at)) for at in range(4)]
    assert follow(status("memory"), *settling)["elapsed_ms"] == 2.0


def test_when_nothing_is_new_it_is_told_how_far_it_is(follow: t.Callable[..., dict[str, t.Any]]) -> None:
    counts = [status("memory", bytes={"memory": count}) for count in range(9)]
    assert follow(*counts, seconds=3)["bytes"] == {"memory": 4}
    still = [status("switch", frozen=True, elapsed_ms=float(at)) for at in range(9)]
    assert follow(status("memory"), *still, seconds=3)["phase"] == "switch"


@pytest.mark.parametrize(
    ("role", "owner", "outcome", "already"),
    [
        ("source", "host2", "target", True),
        # It is there now, and was to go elsewhere; or was moved on since.
        ("source", "host3", "target", False),
        # It has arrived here, and is to go on from here.
        ("target", "host1", "target", False),
        ("source", "host1", "source", False),
        # Somebody else has ended it since.
        ("source", "host2", "none", False),
    ],
)
def test_a_move_that_is_over_is_this_one_only_to_the_same_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, owner: str, outcome: str, already: bool
) -> None:
    class Asked(Exception):
        pass

    def movable(name: str, kind: str) -> t.Any:
        raise Asked

    def recovered(host: Host, name: str) -> dict[str, t.Any]:
        files.write_json(paths.owner_file(name), {"owner_name": owner})
        return {"outcome": outcome, "message": "It is over."}

    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    monkeypatch.setattr(peers, "find", lambda name: {})
    monkeypatch.setattr(recover, "recover_one", recovered)
    monkeypatch.setattr(preflight, "movable", movable)
    files.write_json(paths.journal_file("web"), {"role": role, "peer": "host2"})
    out = io.BytesIO()
    words = ["start", json.dumps({"container": "web", "target": "host2"})]
    with contextlib.nullcontext() if already else pytest.raises(Asked):
        assert mover.move(words, Host(run=t.cast("t.Any", None), stdout=out)) == 0
    assert (json.loads(out.getvalue() or "{}").get("already") is True) is already


@pytest.mark.parametrize(("runs", "waited"), [(True, [0.15]), (False, [])])
def test_what_has_just_come_alive_is_left_alone_for_a_moment(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, runs: bool, waited: list[float]
) -> None:
    """Tidying up is work for both hosts."""
    done: list[t.Any] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: done.append(round(seconds, 3)))
    monkeypatch.setattr(Steps, "leave", lambda self: done.append("leave"))
    monkeypatch.setattr(Source, "let_go", lambda self, host, journal: done.append("let go"), raising=False)
    monkeypatch.setattr(Source, "runs", runs)
    assert move.run()["outcome"] == "target"
    assert [one for one in done if one != 0] == [*waited, "leave", "let go"]


@pytest.mark.parametrize("fails", ["", "keep"])
def test_the_source_removes_nothing_before_the_target_has_it_on_its_disk(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Nor does it note that it leaves: who finds that asks nobody any more."""
    done: list[str] = []

    def noted() -> str:
        return str((files.read_json(paths.journal_file("web")) or {}).get("state"))

    def call(self: Peer, op: str, **args: t.Any) -> dict[str, t.Any]:
        done.append(f"{op} while {noted()}")
        if op == fails:
            raise PeerError("The connection was lost.", peer="host2")
        return {}

    monkeypatch.setattr(Peer, "call", call)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        Source, "let_go", lambda self, host, journal: done.append(f"let go while {noted()}"), raising=False
    )
    result = move.run()
    end = done[done.index("activate while frozen") + 1 :]
    if fails:
        assert (result["outcome"], end) == ("waiting", ["keep while frozen"])
    else:
        assert result["outcome"] == "target"
        assert end[:2] == ["keep while frozen", "let go while leaving"]
        assert end[-1] == "finish while leaving"


def test_a_name_that_ends_like_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd would take the end for the kind of the unit, and who looks for a service would find none."""
    for place in ("WORKLOADS", "RUN", "LOGS"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    monkeypatch.setattr(peers, "find", lambda name: {})
    monkeypatch.setattr(preflight, "movable", lambda name, kind: ({}, {}))
    ran: list[str] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        ran.extend(argv)
        return CommandResult(tuple(argv), 0)

    words = ["start", json.dumps({"container": "app.service", "target": "host2"})]
    assert mover.move(words, Host(run=run, stdout=io.BytesIO())) == 0
    assert "--unit=cnvm-move-app.service.service" in ran
    recover.resolve_in_background(Host(run=run), "web.socket")
    assert "--unit=cnvm-resolve-web.socket.service" in ran


@pytest.mark.parametrize(
    ("said", "tries", "starts"),
    [
        (["Unit cnvm-move-web.service was already loaded or has a fragment file."], 2, True),
        (["Unit cnvm-move-web.service already exists."] * 99, 51, False),
        (["Access denied"], 1, False),
    ],
)
def test_the_one_before_may_still_be_about_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], tries: int, starts: bool
) -> None:
    """A task that is tried again at once comes before its unit has gone."""
    for place in ("WORKLOADS", "RUN", "LOGS"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    monkeypatch.setattr(peers, "find", lambda name: {})
    monkeypatch.setattr(preflight, "movable", lambda name, kind: ({}, {}))
    now, ran = [0.0], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        ran[0] += 1
        return CommandResult(tuple(argv), 1 if said else 0, stderr=said.pop(0) if said else "")

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    words = ["start", json.dumps({"container": "web", "target": "host2"})]
    with contextlib.nullcontext() if starts else pytest.raises(HostError, match="cannot be started"):
        mover.move(words, Host(run=run, stdout=io.BytesIO()))
    assert ran[0] == pytest.approx(tries, abs=1 if tries > 2 else 0)


class Peer:
    """The target, which does all that it is asked to but ``fails``."""

    peer = "host2"
    fails = ""
    is_late = False

    def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
        if op == self.fails:
            raise HostError(f"{op} does not work.")
        return {"generation": 5, "ran": True} if op == "give_back" else {}


class Steps(kinds.Leaving):
    """Nothing takes any time."""

    def bring(self) -> None:
        pass

    def hold(self) -> None:
        self.move.freeze("switch")

    def check_still(self) -> None:
        pass


class Source:
    """A kind, as ``kinds.source`` gives it. ``wrong``: what its ``roll_back`` raises."""

    leaving = Steps
    wrong: Exception | None = None
    runs = True

    def survey(self, *args: t.Any) -> kinds.Survey:
        made = plan.Plan("live", (), (), (), 1)
        return kinds.Survey(made, self.runs, {"host_id": "T", "name": "host2"}, {}, {})

    def is_enabled(self, name: str) -> bool:
        return True

    def secure(self, channel: Peer, journal: t.Any) -> None:
        channel.call("keep", timeout_s=60)

    def keeps(self, journal: t.Any) -> bool:
        return True

    def roll_back(self, host: Host, journal: t.Any) -> bool:
        if self.wrong is not None:
            raise self.wrong
        movedir.end_journal("web")
        return False


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mover.Move:
    """One of ``web`` from host1 to host2."""
    for place in ("WORKLOADS", "RUN", "LOGS", "HOST_FILE"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    monkeypatch.setattr(kinds, "source", lambda kind: Source())
    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(Peer()))
    monkeypatch.setattr(freezer, "hurry", lambda on=True: None)
    monkeypatch.setattr(Peer, "fails", "")
    monkeypatch.setattr(Source, "wrong", None)
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    files.write_json(paths.owner_file("web"), records.owner_record("web", "u", "S", "host1", 3))
    files.write_json(paths.definition_file("web"), {"name": "web"})
    request = {"kind": "container", "name": "web", "target": "host2", "timeout_s": 60}
    return mover.Move(Host(run=t.cast("t.Any", None)), request, MOVE, lambda status: None)


def test_how_long_it_settles_is_told(move: mover.Move, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}
    move._report = lambda status: told.update({status["phase"]: status["settles_at"]})
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(Source, "let_go", lambda *args: [], raising=False)
    assert move.run()["outcome"] == "target"
    assert (told["switch"], told["finish"]) == (0.0, 7.0 + mover._SETTLE_S)


@pytest.mark.parametrize("wrong", [HostError("libvirt hangs."), OSError(28, "No space left on device")])
@pytest.mark.parametrize(("fails", "undone"), [("begin", 2), ("activate", 2)])
def test_what_failed_first_is_told_also_when_the_rest_fails(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, fails: str, undone: int, wrong: Exception
) -> None:
    monkeypatch.setattr(Peer, "fails", fails)
    monkeypatch.setattr(Source, "wrong", wrong)
    result = move.run()
    assert (result["outcome"], result["error"]) == ("waiting", f"{fails} does not work.")
    assert len(result["rolled_back"]) == undone
    (said,) = (line for line in result["rolled_back"] if "may stand still" in line)
    assert str(wrong) in said
    assert "cnvm.platform.recover" in said
    # ``recover`` has all that it needs.
    assert files.read_json(paths.journal_file("web")) is not None


@pytest.mark.parametrize("late", [False, True])
def test_who_has_not_answered_is_not_waited_for_much_longer(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """What failed goes on here by then. The target asks what became of it."""
    call = Peer.call
    waits: dict[str, float] = {}

    def answer(self: Peer, op: str, **args: t.Any) -> dict[str, t.Any]:
        waits[op] = args["timeout_s"]
        return call(self, op, **args)

    monkeypatch.setattr(Peer, "call", answer)
    monkeypatch.setattr(Peer, "is_late", late)
    monkeypatch.setattr(Peer, "fails", "begin")
    assert move.run()["outcome"] == "source"
    assert (waits["give_up"] < 20) is late


@pytest.mark.parametrize(("refused", "outcome"), [(False, "source"), (True, "waiting")])
def test_what_has_run_there_is_not_given_back(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, refused: bool, outcome: str
) -> None:
    """The target knows whether it has. Who comes later has it started anew there."""
    call = Peer.call

    def answer(self: Peer, op: str, **args: t.Any) -> dict[str, t.Any]:
        if refused and op == "give_back":
            raise Refused("web has run on host2, which does not give it back.")
        return call(self, op, **args)

    monkeypatch.setattr(Peer, "call", answer)
    monkeypatch.setattr(Peer, "fails", "activate")
    result = move.run()
    assert result["outcome"] == outcome
    assert ("has run on host2" in result["rolled_back"][-1]) is refused


@pytest.mark.parametrize("file", ["move.json", "status"])
def test_no_room_at_the_moment_at_which_it_is_to_stand_still(
    move: mover.Move, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    write = files.write_json

    def full(path: str, value: t.Any, **more: t.Any) -> None:
        if value.get("state") == records.SOURCE_FROZEN and file == "move.json":
            raise OSError(28, "No space left on device")
        write(path, value, **more)

    def report(status: dict[str, t.Any]) -> None:
        if status["phase"] == "switch":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    if file == "status":
        move._report = report
    result = move.run()
    assert (result["outcome"], result["rolled_back"][-1]) == ("source", "nothing of it is left on host2")
    assert "No space left on device" in result["error"]
    assert ("frozen_ms" in result) is (file == "status")


@pytest.mark.parametrize("begun", [False, True])
def test_whatever_ends_a_mover_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move: mover.Move, begun: bool
) -> None:
    """A container that ends while it is looked at, say. One that has begun is recovered by who comes after it."""

    def broken(*args: t.Any) -> t.NoReturn:
        raise FileNotFoundError(2, "No such file or directory", "/proc/12/status")

    monkeypatch.setattr(mover.Move, "_failed" if begun else "_plan_and_move", broken)
    monkeypatch.setattr(mover, "Move", lambda *args: move)
    monkeypatch.setattr(Source, "answers", lambda self: True, raising=False)
    monkeypatch.setattr(Peer, "fails", "begin")
    files.write_json(f"{paths.move_log_dir(MOVE)}/request.json", move.request)
    assert mover.move(["run", MOVE], Host(run=t.cast("t.Any", None))) == 1
    status = files.read_json(f"{paths.move_log_dir(MOVE)}/status.json") or {}
    assert (status["phase"], status["result"]["outcome"]) == ("done", "waiting" if begun else "source")
    assert "FileNotFoundError: [Errno 2] No such file" in status["result"]["error"]
