# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may recover while somebody else is at work on the container, and for how long one waits for whom."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CommandError,
    HostError,
    InputError,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, handover, kinds, movedir, peers, recover
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.pwrite(fd, f"process {os.getpid()} (a move of web)".encode(), 0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host to which ``host1`` was moving ``web``."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    (tmp_path / "run/locks").mkdir(parents=True)
    files.write_json(paths.journal_file("web"), {"role": "target", "peer": "host1", "name": "web"})
    return Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0), stdout=io.BytesIO(), stderr=io.BytesIO())


@contextlib.contextmanager
def lock_held(*words: str) -> t.Iterator[subprocess.Popen[str]]:
    """The container's lock, held by a process with these words in its command line."""
    argv = [sys.executable, "-c", HOLDER, paths.lock_file("web"), *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert t.cast("t.IO[str]", process.stdout).readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def without_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done about a dead source is another matter."""
    monkeypatch.setattr(recover, "_without_source", lambda host, journal: {"outcome": "target", "message": "done"})


@pytest.mark.usefixtures("without_source")
def test_a_dead_host_does_not_hang_up_and_is_not_waited_for(host: Host) -> None:
    with lock_held(paths.HELPER, "serve") as process:
        assert recover.recover_one(host, "web", "host1")["outcome"] == "target"
        assert process.wait(5) == -9


@pytest.mark.usefixtures("without_source")
@pytest.mark.parametrize(
    ("words", "fenced"),
    [((paths.HELPER, "serve"), ""), ((paths.HELPER, "serve"), "host3"), ((paths.HELPER, "move", "run"), "host1")],
)
def test_nobody_else_is_ended(host: Host, words: tuple[str, ...], fenced: str) -> None:
    with lock_held(*words) as process:
        with pytest.raises(Refused, match="at work on it"):
            recover.recover_one(host, "web", fenced)
        assert process.poll() is None


def peer_says(monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any]) -> None:
    """Whoever is asked over the wire answers this."""

    class Said:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            return answer

    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(Said()))


JOURNAL = {"name": "web", "peer": "host1", "peer_id": "S", "move_id": "m1", "generation": 3, "uuid": "u"}


def test_a_machine_that_was_installed_anew_decides_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    peer_says(monkeypatch, {"decision": "abort", "ended": True, "host_id": "S"})
    assert recover.ask_decision(host, JOURNAL)["decision"] == "abort"
    peer_says(monkeypatch, {"decision": "abort", "ended": True, "host_id": "new"})
    with pytest.raises(PeerError, match="installed anew"):
        recover.ask_decision(host, JOURNAL)


@pytest.mark.parametrize("ended", [True, False])
def test_a_link_that_died_is_not_waited_for_when_the_source_is_at_it_no_more(
    host: Host, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    files.write_json(paths.journal_file("web"), {**JOURNAL, "role": "target"})
    peer_says(monkeypatch, {"decision": "commit", "ended": ended, "host_id": "S"})
    monkeypatch.setattr(recover, "_recover_target", lambda host, journal, fenced: {"outcome": "target"})
    with lock_held(paths.HELPER, "serve") as process:
        if ended:
            assert recover.recover_one(host, "web") == {"outcome": "target"}
            assert process.wait(5) == -9
        else:
            with pytest.raises(Refused, match="at work on it"):
                recover.recover_one(host, "web")
            assert process.poll() is None


def test_a_source_that_cannot_be_asked_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    files.write_json(paths.journal_file("web"), {**JOURNAL, "role": "target"})
    peer_says(monkeypatch, {"decision": "commit", "ended": True, "host_id": "new"})
    with lock_held(paths.HELPER, "serve") as process:
        with pytest.raises(Refused, match=r"at work on it.*still at it, it cannot be asked: host1 is another machine"):
            recover.recover_one(host, "web")
        assert process.poll() is None


class Kind:
    """What a host does with a workload that it had begun to give away: it notes it."""

    def __init__(self) -> None:
        self.did: list[str] = []

    anew: bool | None = False

    def roll_back(self, host: Host, journal: dict[str, t.Any]) -> bool | None:
        self.did.append("roll back")
        self.ran = journal.get("ran")
        return self.anew

    kept: list[str] = []

    def let_go(self, host: Host, journal: dict[str, t.Any]) -> list[str]:
        self.did.append("let go")
        return self.kept

    def secure(self, channel: t.Any, journal: t.Any) -> None:
        channel.call("keep", timeout_s=60)

    def keeps(self, journal: dict[str, t.Any]) -> bool:
        return False


@pytest.fixture
def booted(host: Host, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """The host was giving ``web`` away to host2, uncommitted, and has lost power meanwhile."""
    kind = Kind()
    monkeypatch.setattr(kinds, "source_of", lambda journal: kind)
    monkeypatch.setattr(movedir, "boot_id", lambda: "now")
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    files.write_json(paths.owner_file("web"), {"owner": "S", "owner_name": "host1", "generation": 3, "uuid": "u"})
    begun("old", records.SOURCE_FROZEN)
    return kind


def begun(boot_id: str, state: str, mode: str = "stop_copy") -> None:
    """Its journal."""
    more = {"role": "source", "peer": "host2", "peer_id": "T", "boot_id": boot_id, "state": state, "mode": mode}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more})


@pytest.mark.parametrize(
    ("generation", "uuid", "outcome", "did"),
    [(4, "u", "target", "let go"), (3, "u", "source", "roll back"), (4, "another", "source", "roll back")],
)
def test_what_went_on_elsewhere_while_this_host_was_off_is_left_there(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, generation: int, uuid: str, outcome: str, did: str
) -> None:
    record = {"owner": "T", "owner_name": "host2", "generation": generation, "uuid": uuid}
    peer_says(monkeypatch, {"owner": record, "identity": {"host_id": "T"}, "journal": None})
    assert recover.recover_one(host, "web")["outcome"] == outcome
    assert booted.did == [did]
    assert (files.read_json(paths.owner_file("web")) == record) is (outcome == "target")


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    ("third", "outcome", "did"),
    [
        ({"owner": "U", "owner_name": "host3", "generation": 5, "uuid": "u"}, "target", "let go"),
        # It has it no more, nor says who has.
        (None, "source", "roll back"),
        ({"owner": "T", "owner_name": "host2", "generation": 5, "uuid": "u"}, "source", "roll back"),
        ("off", "source", "roll back"),
        ("not in the overlay", "source", "roll back"),
    ],
)
def test_what_was_moved_on_while_this_host_was_off_is_left_there(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, committed: bool, third: t.Any, outcome: str, did: str
) -> None:
    """By a target that went on without this host. Its record is as new as a promise to give it back would be."""
    moved = {"owner": "U", "owner_name": "host3", "generation": 5, "uuid": "u"}
    says = {"host2": ("T", moved), "host3": ("U", third)}

    class Peer:
        def __init__(self, name: str) -> None:
            host_id, owner = says[name]
            self.answer = {"owner": owner, "identity": {"host_id": host_id}, "journal": None}

        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            return self.answer

    def connected(host: Host, name: str) -> t.Any:
        if third == "off" and name == "host3":
            raise PeerError(f"The connection to {name} did not answer in time.", peer=name)
        if third == "not in the overlay" and name == "host3":
            raise InputError(f"target: {name!r} is not in the overlay of this host.")
        return contextlib.nullcontext(Peer(name))

    monkeypatch.setattr(peers, "connected", connected)
    if committed:
        files.write_json(paths.owner_file("web"), {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"})
        files.write_json(
            paths.journal_file("web"), {**(files.read_json(paths.journal_file("web")) or {}), "kind": "guest"}
        )
    gone = isinstance(third, str)
    if gone:
        result = recover.recover_one(host, "web")
        assert (result["outcome"], booted.did) == ("waiting", [])
        assert "host3 may run it" in result["message"]
        assert "-e fenced=host3" in result["message"]
    assert recover.recover_one(host, "web", "host3" if gone else "")["outcome"] == outcome
    assert booted.did == [did]
    owner = files.read_json(paths.owner_file("web")) or {}
    assert (owner == moved) is (outcome == "target")
    if outcome == "source":
        # An older record would be refused by host2, to which it may be moved again.
        assert (owner["owner"], owner["owner_name"], owner["generation"]) == ("S", "host1", 6)


def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other host can be asked."""

    def lost(host: Host, name: str) -> t.Any:
        raise PeerError(f"The connection to {name} did not answer in time")

    monkeypatch.setattr(peers, "connected", lost)


def test_nothing_is_started_at_boot_while_it_may_go_on_elsewhere(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody_answers(monkeypatch)
    result = recover.recover_one(host, "web")
    assert (result["outcome"], booted.did) == ("waiting", [])
    assert "-e fenced=host2" in result["message"]
    assert recover.recover_one(host, "web", "host2")["outcome"] == "source"
    assert booted.did == ["roll back"]


@pytest.mark.parametrize(
    "journal",
    [("now", records.SOURCE_FROZEN), ("old", records.SOURCE_BEGUN), ("old", records.SOURCE_FROZEN, records.CHECKPOINT)],
)
def test_nobody_is_asked_who_can_have_nothing(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, journal: tuple[str, ...]
) -> None:
    begun(*journal)
    nobody_answers(monkeypatch)
    assert recover.recover_one(host, "web")["outcome"] == "source"
    assert booted.did == ["roll back"]


@pytest.mark.parametrize(
    ("anew", "said"), [(False, "goes on here"), (True, "was started anew here"), (None, "stays here and does not run")]
)
def test_what_became_of_it_is_said(host: Host, booted: Kind, anew: bool | None, said: str) -> None:
    begun("now", records.SOURCE_FROZEN)
    booted.anew = anew
    assert recover.recover_one(host, "web")["message"] == f"The move was not committed; web {said}."


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"journal": None, "owner": {"owner": "T", "generation": 4, "uuid": "u"}}, "web had arrived at host2; "),
        ({"journal": {"state": records.TARGET_ACTIVE}, "alive": True}, "web is on host2; the move is finished."),
        ({"journal": {"state": records.TARGET_ACTIVE}, "alive": True, "gone": True}, "web went to host2; "),
    ],
)
def test_what_is_kept_of_it_here_is_said(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any], said: str
) -> None:
    booted.kept = ["/kept/vdb.raw"]
    files.write_json(paths.owner_file("web"), {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"})
    peer_says(monkeypatch, {"identity": {"host_id": "T"}, **answer})
    message = recover.recover_one(host, "web")["message"]
    assert message.startswith(said)
    assert message.endswith(" What was no disk of it is kept here: /kept/vdb.raw.")


class Copy:
    """What a host does with a workload that was coming to it. ``whole``: it has it all; ``started``: by its end."""

    def __init__(self, whole: bool, started: bool | None) -> None:
        self.did: list[str] = []
        self.started = started
        self.is_alive = lambda name, journal: True
        self.has_arrived = lambda name, journal: True
        self.drained = lambda journal, timeout_s: {"ended": True, "drained": whole}
        self.activate = lambda host, name, journal, timeout_s: self.did.append("activate")
        self.end_copy = lambda host, name, journal: self.did.append("end")
        self.give_up = lambda host, name, journal: self.did.append("give up")
        self.keep = lambda host, name, journal: self.did.append("keep")
        self.has_run = lambda name, journal: True

    def finish(self, host: Host, name: str, journal: dict[str, t.Any]) -> bool | None:
        self.did.append("finish")
        return self.started


@pytest.mark.parametrize(
    ("running", "whole", "started", "said"),
    [
        (True, True, False, "goes on here."),
        # Cold: it is started when the move ends.
        (True, True, True, "goes on here."),
        (False, True, False, "stays here and does not run."),
        (True, False, True, "was started anew here. The memory that only host1 had is lost."),
        # It had ended by itself.
        (True, False, False, "stays here and does not run. The memory that only host1 had is lost."),
    ],
)
def test_what_became_of_it_without_its_source_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch, running: bool, whole: bool, started: bool, said: str
) -> None:
    copy = Copy(whole, started)
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": records.TARGET_PREPARED, "mode": "post_copy", "running": running, "uuid": "u"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, "kind": "guest", **more})
    result = recover.recover_one(host, "web", "host1")
    assert (result["outcome"], result["message"]) == ("target", f"host1 was declared dead; web {said}")
    assert copy.did == (["activate", "finish"] if whole else ["end", "finish"])


def test_what_had_not_arrived_does_not_go_on_without_its_source(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it was prepared for that: its memory and its disks may be of different times."""
    copy = Copy(True, True)
    copy.has_arrived = lambda name, journal: False
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    more = {"role": "target", "state": records.TARGET_PREPARED, "mode": "live", "running": True, "kind": "guest"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more})
    result = recover.recover_one(host, "web", "host1")
    assert result["message"] == "web had not arrived when host1 died; nothing of it is left here."
    assert copy.did == ["give up"]


@pytest.mark.parametrize(
    ("mode", "started", "said"),
    [
        ("live", False, ""),
        ("live", True, " It had ended, and was started anew with its files."),
        # It is started when the move ends.
        ("cold", True, ""),
    ],
)
def test_a_copy_that_had_ended_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch, mode: str, started: bool, said: str
) -> None:
    copy = Copy(True, started)
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    answer = {"decision": records.DECIDED_COMMIT, "ended": True}
    monkeypatch.setattr(recover, "ask_decision", lambda host, journal: answer)
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": records.TARGET_ACTIVE, "mode": mode, "running": True, "uuid": "u"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, "kind": "guest", **more})
    result = recover.recover_one(host, "web")
    assert (result["outcome"], result["message"]) == ("target", f"web is here; host1 had let it go.{said}")


@pytest.mark.parametrize("fenced", ["", "host1"])
def test_one_that_was_undefined_by_hand_is_said(host: Host, monkeypatch: pytest.MonkeyPatch, fenced: str) -> None:
    copy = Copy(True, None)
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    answer = {"decision": records.DECIDED_COMMIT, "ended": True}
    monkeypatch.setattr(recover, "ask_decision", lambda host, journal: answer)
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": records.TARGET_ACTIVE, "mode": "live", "running": True, "uuid": "u"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, "kind": "guest", **more})
    result = recover.recover_one(host, "web", fenced)
    assert result["outcome"] == "target"
    assert "libvirt on host2 does not know web any more" in result["message"]


NOT_ALIVE = [HostError("CRIU was killed that held it."), CommandError("'ip link set cvweb master br0' failed.")]


@pytest.mark.parametrize("problem", NOT_ALIVE)
def test_what_does_not_come_alive_without_its_source_is_started_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    copy = Copy(True, True)

    def activate(*args: t.Any) -> None:
        raise problem

    copy.activate = activate
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": records.TARGET_PREPARED, "mode": "stop_copy", "running": True, "kind": "guest"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more})
    result = recover.recover_one(host, "web", "host1")
    assert result["message"].startswith("host1 was declared dead; web was started anew here. The memory")
    assert copy.did == ["end", "finish"]


@pytest.mark.parametrize("state", [records.TARGET_PREPARED, records.TARGET_ACTIVE])
@pytest.mark.parametrize("whole", [True, False])
def test_what_was_given_back_never_runs_here_though_its_source_is_dead(
    host: Host, monkeypatch: pytest.MonkeyPatch, state: str, whole: bool
) -> None:
    """The promise was on the disk, and this host was cut off before the copy was gone."""
    copy = Copy(whole, True)
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": state, "mode": "post_copy", "running": True, "kind": "guest"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more})
    promise = {"owner": "S", "owner_name": "host1", "generation": 5, "uuid": "u", "ran": True}
    files.write_json(paths.owner_file("web"), promise)
    result = recover.recover_one(host, "web", "host1")
    assert (result["outcome"], copy.did) == ("source", ["give up"])
    assert result["message"].startswith("web had been given back to host1 before host1 was declared dead")
    assert files.read_json(paths.owner_file("web")) == promise


@pytest.mark.parametrize(
    ("state", "kept", "decision", "here", "why"),
    [
        (records.TARGET_ACTIVE, True, records.DECIDED_COMMIT, "is here", "it has not ended its side"),
        (
            records.TARGET_ACTIVE,
            False,
            records.DECIDED_COMMIT,
            "lacks files here (this host started anew before all were on its disk)",
            "it has not ended its side",
        ),
        (records.TARGET_PREPARED, False, records.UNDECIDED, "stands still here", "it has not decided yet"),
        (records.TARGET_RECEIVING, False, records.UNDECIDED, "has not all arrived here", "it has not decided yet"),
    ],
)
def test_what_a_target_waits_for_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch, state: str, kept: bool, decision: str, here: str, why: str
) -> None:
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    journal = {**JOURNAL, "role": "target", "state": state, "boot_id": "b", "kept": kept}
    files.write_json(paths.journal_file("web"), journal)
    peer_says(monkeypatch, {"decision": decision, "ended": False, "host_id": "S"})
    result = recover.recover_one(host, "web")
    assert result["outcome"] == "waiting"
    assert result["message"].startswith(f"web {here}; host1 must ")
    assert result["message"].endswith(f" ({why}).")


@pytest.mark.parametrize("problem", NOT_ALIVE)
def test_what_does_not_come_alive_is_given_back(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    """By either side: the one that is told that the other has committed, and the one that finds it not done there."""
    calls: list[str] = []

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            calls.append(op)
            if op == "resume":
                theirs = {**JOURNAL, "state": records.TARGET_PREPARED}
                return {"journal": theirs, "owner": None, "identity": {"host_id": "T"}, "alive": True}
            if op == "activate":
                raise problem
            return {"generation": 5, "ran": False, "decision": records.DECIDED_COMMIT, "ended": False, "host_id": "S"}

    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(Peer()))
    files.write_json(paths.owner_file("web"), {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"})
    begun("now", records.SOURCE_FROZEN)
    files.write_json(
        paths.journal_file("web"), {**(files.read_json(paths.journal_file("web")) or {}), "kind": "container"}
    )
    assert recover.recover_one(host, "web")["outcome"] == "source"
    assert (calls, booted.did) == (["resume", "activate", "give_back"], ["roll back"])

    def activate(*args: t.Any) -> None:
        raise problem

    ran: list[bool] = []
    target = types.SimpleNamespace(activate=activate, has_run=lambda name, journal: bool(ran))
    monkeypatch.setattr(kinds, "target_of", lambda journal: target)
    monkeypatch.setattr(handover, "give_back", lambda host, name, journal: calls.append("given back"))
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    more = {"role": "target", "state": records.TARGET_PREPARED, "kind": "container"}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more})
    files.remove_file(paths.owner_file("web"))
    assert recover.recover_one(host, "web")["message"].startswith("web was given back to host1: ")
    assert "given back" in calls
    # What has run here is not.
    calls.clear()
    ran.append(True)
    said = recover.recover_one(host, "web")
    assert (said["outcome"], "given back" in calls) == ("waiting", False)
    assert "host1 has it started anew, or left off" in said["message"]


class Lazy(Kind):
    """The same, of a move that has run on its target and fetches the rest of its memory."""

    def __init__(self, keeps: bool, serves: list[bool]) -> None:
        super().__init__()
        self._keeps = keeps
        self._serves = serves

    def keeps(self, journal: dict[str, t.Any]) -> bool:
        return self._keeps

    def serves(self, journal: dict[str, t.Any]) -> bool:
        return self._serves.pop(0)


def committed(monkeypatch: pytest.MonkeyPatch, kind: Lazy, peer: object, mode: str) -> None:
    """This host is the source of a guest that it has committed to ``peer``, and its mover is gone."""
    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(peer))
    monkeypatch.setattr(kinds, "source_of", lambda journal: kind)
    monkeypatch.setattr(movedir, "boot_id", lambda: "now")
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    files.write_json(paths.owner_file("web"), {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"})
    more = {"role": "source", "peer": "host2", "peer_id": "T", "boot_id": "now", "state": records.SOURCE_FROZEN}
    files.write_json(paths.journal_file("web"), {**JOURNAL, **more, "kind": "guest", "mode": mode})


def active(alive: bool) -> dict[str, t.Any]:
    """What a target answers where the guest runs, or has."""
    theirs = {**JOURNAL, "state": records.TARGET_ACTIVE}
    record = {"owner": "T", "generation": 4, "uuid": "u"}
    return {"journal": theirs, "owner": record, "identity": {"host_id": "T"}, "alive": alive}


@pytest.mark.parametrize(
    ("keeps", "alive", "serves", "drained", "asked", "did"),
    [
        (False, True, [True, True], [None, True], ["drained", "drained", "keep", "finish"], "let go"),
        # It came to its end between the two questions.
        (False, True, [False], [True], ["drained", "keep", "finish"], "let go"),
        (False, True, [True, False], [None, None], ["drained", "drained", "anew", "keep", "finish"], "let go"),
        (False, False, [], [], ["anew", "keep", "finish"], "let go"),
        (True, True, [True], [False], ["drained", "give_back"], "roll back"),
        (True, False, [], [], ["give_back"], "roll back"),
    ],
)
def test_what_was_not_fetched(
    host: Host, monkeypatch: pytest.MonkeyPatch, keeps: bool, alive: bool, serves: list[bool],
    drained: list[bool | None], asked: list[str], did: str,
) -> None:  # fmt: skip
    """It goes on here where that can be done; else it is started anew there, with the disks that are newer."""
    kind, calls = Lazy(keeps, list(serves)), []
    given = iter(drained)

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            if op == "resume":
                return active(alive)
            calls.append(op)
            if op == "drained":
                value = next(given)
                return {"ended": value is not None, "drained": bool(value)}
            return {"generation": 5, "ran": True} if op == "give_back" else {"anew": "anew" in calls}

    committed(monkeypatch, kind, Peer(), "post_copy")
    result = recover.recover_one(host, "web")
    assert (calls, kind.did) == (asked, [did])
    assert result["outcome"] == ("target" if did == "let go" else "source")
    assert ("started anew" in result["message"]) is ("anew" in asked)


@pytest.mark.parametrize(
    "theirs",
    [
        {"state": records.TARGET_ACTIVE},
        # It had run before that could be noted.
        {"state": records.TARGET_PREPARED, "ran": True},
    ],
)
@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize(("kind", "mode"), [("container", "stop_copy"), ("guest", "live"), ("guest", "post_copy")])
def test_what_ended_after_it_had_run_there_is_never_brought_back_as_it_was(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, anew: bool, theirs: dict[str, t.Any]
) -> None:
    """What stands still here is old: it is the target's, be it that it was turned off there."""
    lazy, calls = Lazy(False, []), []
    monkeypatch.setattr(lazy, "keeps", kinds.source(kind).keeps)

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            calls.append(op)
            if op == "activate":
                raise HostError("It is gone.")
            answer = active(alive=False)
            answer["journal"]["state"] = theirs["state"]
            return {**answer, **theirs} if op == "resume" else {"anew": anew}

    committed(monkeypatch, lazy, Peer(), mode)
    result = recover.recover_one(host, "web")
    assert ([op for op in calls if op != "activate"], lazy.did) == (["resume", "anew", "keep", "finish"], ["let go"])
    assert ("started anew" in result["message"]) is anew


def test_what_came_alive_only_now_and_cannot_be_whole_is_started_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its memory can never come."""
    lazy, calls = Lazy(False, [False]), []

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            calls.append(op)
            answer = active(alive=True)
            answer["journal"]["state"] = records.TARGET_PREPARED
            said = {"resume": {**answer, "ran": False}, "drained": {"ended": True, "drained": False}}
            return said.get(op, {"anew": True})

    committed(monkeypatch, lazy, Peer(), "post_copy")
    assert recover.recover_one(host, "web")["outcome"] == "target"
    assert (calls, lazy.did) == (
        ["resume", "activate", "drained", "anew", "keep", "finish"], ["let go"],
    )  # fmt: skip


class Ended:
    """A target where it has run. ``finish``: what comes of that."""

    def __init__(self, finish: dict[str, t.Any] | Exception, *, alive: bool) -> None:
        self.finish, self.alive = finish, alive

    def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
        if op == "finish":
            if isinstance(self.finish, Exception):
                raise self.finish
            return self.finish
        return active(self.alive) if op == "resume" else {"anew": True}


def test_a_target_that_is_not_heard_when_all_is_done_here_ends_it_by_itself(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = Lazy(False, [])

    lost = PeerError("The connection was lost.", peer="host2")
    committed(monkeypatch, lazy, Ended(lost, alive=True), "live")
    result = recover.recover_one(host, "web")
    assert (result["outcome"], lazy.did) == ("target", ["let go"])
    assert "web is on host2, which ends the move (The connection was lost.)" in result["message"]


@pytest.mark.parametrize("over", [True, False])
def test_one_that_cannot_be_started_anew_where_it_is_now_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """The move is over, and who asks again would hear nothing of it; unless the target could not even be asked."""
    lazy = Lazy(False, [])

    error = HostError("web had ended here, and cannot be started anew: no memory.", over=over)
    committed(monkeypatch, lazy, Ended(error, alive=False), "live")
    if not over:
        with pytest.raises(HostError):
            recover.recover_one(host, "web")
        return
    result = recover.recover_one(host, "web")
    assert result["outcome"] == "target"
    assert "cannot be started anew: no memory" in result["message"]


class Keeper:
    """A target that has the files of what runs there on its disk, or ``fails``. ``did``: with the source's."""

    def __init__(self, did: list[str], answer: dict[str, t.Any], *, fails: bool = False) -> None:
        self.did, self.answer, self.fails = did, answer, fails

    def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
        self.did.append(op)
        if op == "keep" and self.fails:
            raise HostError("'sync -f /var/lib/cnvm/workloads/web' failed.")
        said = {"resume": self.answer, "give_back": {"generation": 5, "ran": True}}
        return said.get(op, {})


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("alive", [True, False])
def test_the_source_removes_nothing_before_the_target_has_it_on_its_disk(
    host: Host, monkeypatch: pytest.MonkeyPatch, alive: bool, fails: bool
) -> None:
    """Nor does it note that it leaves: who finds that asks nobody any more."""
    kind = Lazy(False, [])
    committed(monkeypatch, kind, Keeper(kind.did, active(alive), fails=fails), "stop_copy")
    anew = [] if alive else ["anew"]
    if fails:
        with pytest.raises(HostError, match="'sync -f"):
            recover.recover_one(host, "web")
        assert kind.did == ["resume", *anew, "keep"]
        assert (files.read_json(paths.journal_file("web")) or {})["state"] == records.SOURCE_FROZEN
        return
    assert recover.recover_one(host, "web")["outcome"] == "target"
    assert kind.did == ["resume", *anew, "keep", "let go", "finish"]


def test_a_target_that_lost_power_before_it_was_on_its_disk_gives_it_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had run there, and a part of its files may be gone. All of them are here."""
    kind = Lazy(False, [])
    committed(monkeypatch, kind, Keeper(kind.did, {**active(alive=False), "ran": False}), "stop_copy")
    result = recover.recover_one(host, "web")
    assert (result["outcome"], kind.did) == ("source", ["resume", "give_back", "roll back"])
    assert "(host2 started anew before all its files were on the disk there)" in result["message"]


@pytest.mark.parametrize("ended", [True, False])
def test_what_went_on_elsewhere_is_on_the_disk_there_before_it_is_removed_here(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """A target that has ended the move has seen to that."""
    record = {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"}
    answer = {"owner": record, "identity": {"host_id": "T"}, "journal": None if ended else {**JOURNAL}}
    peer = Keeper(booted.did, answer)
    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(peer))
    assert recover.recover_one(host, "web")["outcome"] == "target"
    assert booted.did == ["resume", *([] if ended else ["keep"]), "let go"]


def test_what_a_target_never_had_on_its_disk_goes_on_here(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took over, lost power before all files were there, and the source that was called dead is back."""

    class Torn(Keeper):
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            if op == "keep":
                self.did.append(op)
                raise HostError("web lacks files here.")
            return {**super().call(op, **args), "generation": 5, "ran": False}

    record = {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"}
    files.write_json(
        paths.journal_file("web"), {**(files.read_json(paths.journal_file("web")) or {}), "kind": "container"}
    )
    peer = Torn(booted.did, {"owner": record, "identity": {"host_id": "T"}, "journal": {**JOURNAL}})
    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(peer))
    assert recover.recover_one(host, "web")["outcome"] == "source"
    assert booted.did == ["resume", "keep", "give_back", "roll back"]
    assert (files.read_json(paths.owner_file("web")) or {})["generation"] == 5


@pytest.mark.parametrize("fails", [False, True])
def test_a_target_has_it_on_its_disk_though_its_source_is_not_heard_of(
    host: Host, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A boot of it later would make what is here doubtful."""
    copy = Copy(True, False)

    def keep(host: Host, name: str, journal: dict[str, t.Any]) -> None:
        copy.did.append("keep")
        if fails:
            raise HostError("'sync -f /var/lib/cnvm/workloads/web' failed.")

    copy.keep = keep
    monkeypatch.setattr(kinds, "target_of", lambda journal: copy)
    nobody_answers(monkeypatch)
    files.write_json(paths.journal_file("web"), {**JOURNAL, "role": "target", "state": records.TARGET_ACTIVE})
    assert recover.recover_one(host, "web")["message"].startswith("web is here; host1 must end the move")
    assert copy.did == ["keep"]


def test_a_container_that_fetched_its_memory_goes_on_from_the_freeze(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the task has allowed."""
    lazy, calls = Lazy(False, []), []
    monkeypatch.setattr(lazy, "keeps", kinds.source("container").keeps)

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            calls.append(op)
            return active(alive=False) if op == "resume" else {"generation": 5, "ran": True}

    committed(monkeypatch, lazy, Peer(), "post_copy")
    assert recover.recover_one(host, "web")["outcome"] == "source"
    assert (calls, lazy.did) == (["resume", "give_back"], ["roll back"])


def test_the_source_says_that_what_it_gave_away_was_undefined_by_hand(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Lazy(False, [])

    committed(monkeypatch, kind, Ended({"gone": True}, alive=False), "live")
    result = recover.recover_one(host, "web")
    assert (result["outcome"], kind.did) == ("target", ["let go"])
    assert "libvirt on host2 does not know web any more" in result["message"]


@pytest.mark.parametrize(
    ("journal", "record", "fenced", "ran"),
    [
        # It is given back now, by a target that knows whether its copy has run.
        ({**JOURNAL, "state": records.TARGET_PREPARED}, {"generation": 3}, "", False),
        # It was before, by a target that had noted it, or has not.
        (None, {"generation": 5, "ran": False}, "", False),
        (None, {"generation": 5}, "", True),
        # The target has forgotten it, or is declared dead.
        (None, None, "", True),
        (None, None, "host2", True),
    ],
)
def test_what_is_taken_back_may_be_old(
    host: Host, booted: Kind, monkeypatch: pytest.MonkeyPatch, journal: t.Any, record: t.Any, fenced: str, ran: bool
) -> None:
    """Whether the copy on the target may have run is in the journal before anything goes on here."""

    class Peer:
        def call(self, op: str, **args: t.Any) -> dict[str, t.Any]:
            if op == "resume":
                return {"journal": journal, "owner": record, "identity": {"host_id": "T"}, "alive": False}
            if op == "activate":
                raise HostError("It is gone.")
            return {"generation": 5, "ran": False}

    monkeypatch.setattr(peers, "connected", lambda host, name: contextlib.nullcontext(Peer()))
    files.write_json(paths.owner_file("web"), {"owner": "T", "owner_name": "host2", "generation": 4, "uuid": "u"})
    begun("now", records.SOURCE_FROZEN)
    more = {"kind": "guest", **(files.read_json(paths.journal_file("web")) or {})}
    files.write_json(paths.journal_file("web"), more)
    assert recover.recover_one(host, "web", fenced)["outcome"] == "source"
    assert (booted.did, booted.ran) == (["roll back"], ran)
    assert (files.read_json(paths.journal_file("web")) or {})["ran"] is ran


def answers(monkeypatch: pytest.MonkeyPatch, *given: t.Any) -> list[float]:
    """``recover_one`` gives these one after the other; the list gets the pauses between them."""
    left, pauses, clock = list(given), [], [0.0]

    def one(host: Host, name: str, fenced: str) -> dict[str, t.Any]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return {"name": name, "outcome": answer, "message": answer}

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(recover, "recover_one", one)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return pauses


def outcome(host: Host, *args: str) -> str:
    assert recover.recover(args, host) == 0
    (result,) = json.loads(t.cast("io.BytesIO", host.stdout).getvalue().splitlines()[-1])["results"]
    return str(result["outcome"])


def busy(holder: str) -> Refused:
    return Refused("it is refused", holder=f"process 12 ({holder})")


def test_a_host_that_cannot_be_asked_is_asked_again_only_with_patience(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(monkeypatch, "waiting", "target") == []
    assert outcome(host, "web") == "waiting"
    pauses = answers(monkeypatch, "waiting", "waiting", "target")
    assert outcome(host, "--patient", "web") == "target"
    assert len(pauses) == 2
    # What it waits for is said once.
    assert t.cast("io.BytesIO", host.stderr).getvalue() == b"waiting\n"


def test_patience_has_an_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = answers(monkeypatch, "waiting")
    assert outcome(host, "--patient", "web") == "waiting"
    assert 590 < sum(pauses) < 610


def test_the_moment_to_ask_again_may_come_while_it_is_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left until then is never less than nothing, however the clock goes on between two looks."""
    pauses = answers(monkeypatch, "waiting", "target")
    ticks = itertools.count(step=1.5)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    assert outcome(host, "--patient", "web") == "target"
    assert all(pause > 0 for pause in pauses)


def test_one_that_cannot_be_ended_keeps_none_of_the_others(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    asked: list[str] = []

    def one(host: Host, name: str, fenced: str) -> dict[str, t.Any]:
        asked.append(name)
        if name == "full":
            raise OSError(28, "No space left on device")
        return {"name": name, "outcome": "target" if asked.count(name) > name.count(".") else "waiting", "message": "m"}

    monkeypatch.setattr(recover, "recover_one", one)
    assert recover.recover(["--patient", "dead...", "full", "web", "db."], host) == 0
    assert asked[:6] == ["dead...", "full", "web", "db.", "dead...", "full"]
    results = json.loads(t.cast("io.BytesIO", host.stdout).getvalue())["results"]
    assert [one["outcome"] for one in results] == ["target", "waiting", "target", "target"]
    assert results[1]["message"] == "full: OSError: [Errno 28] No space left on device"


def test_another_recovery_is_waited_for_but_not_a_move(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, busy("recovering web"), busy("recovering web"), "none")
    assert outcome(host, "web") == "none"
    pauses = answers(monkeypatch, busy("a move of web"))
    assert outcome(host, "web") == "busy"
    assert pauses == []
