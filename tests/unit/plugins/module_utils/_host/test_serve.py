# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conversation as the peer's key can hold it, with streams in memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, kinds, recover, serve
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records, wire

OWNER = records.owner_record("web", "u", "S", "host1", 3)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of a host's files in a directory of the test."""
    monkeypatch.setattr(paths, "WORKLOADS", f"{tmp_path}/containers")
    monkeypatch.setattr(paths, "RUN", f"{tmp_path}/run")
    monkeypatch.setattr(paths, "HOST_FILE", f"{tmp_path}/host.json")
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})
    return tmp_path


def host(**more: t.Any) -> Host:
    return Host(run=t.cast("t.Any", lambda *args, **kwargs: pytest.fail(f"ran {args}")), **more)


def stream(data: bytes) -> bytes:
    out = io.BytesIO()
    writer = wire.ChunkWriter(lambda part: out.writelines([part]))
    writer.write(data)
    writer.close()
    return out.getvalue()


def incoming(data: bytes) -> t.BinaryIO:
    """What a peer has sent, as a file that can be polled."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return t.cast("t.BinaryIO", file)


def ask(*requests: bytes) -> list[dict[str, t.Any]]:
    """The answers to what a peer sends before it hangs up."""
    out = io.BytesIO()
    conversation = serve.Conversation(host(), incoming(b"".join(requests)), out)
    conversation.run()
    conversation.close()
    return [wire.parse(one) for one in out.getvalue().splitlines()]


def request(op: str, streams: bool = False, **args: t.Any) -> bytes:
    return wire.line({"op": op, "args": args, "stream": streams})


@pytest.mark.parametrize("op", ["run", "__init__", "close", "_exactly", "", "facts ", None])
def test_only_what_is_in_the_table(op: t.Any) -> None:
    (answer,) = ask(request(op))
    assert "knows no operation" in answer["error"]["message"]


def test_garbage_gets_an_answer_and_the_conversation_goes_on() -> None:
    answers = ask(b"rm -rf /\n", b"[]\n", request("nothing"))
    assert [one["error"]["kind"] for one in answers] == ["PeerError"] * 3


def test_an_unwanted_stream_is_not_taken_for_requests() -> None:
    hostile = request("decision", name="web") * 3
    answers = ask(request("nothing", True), stream(hostile), request("nothing"))
    assert len(answers) == 2


def test_probe_takes_all() -> None:
    assert ask(request("probe", True), stream(b"x" * 3_000_000)) == [{"result": {}}]


def test_a_stream_that_ends_early_ends_the_conversation() -> None:
    with pytest.raises(PeerError, match="in the middle of a stream"):
        ask(request("probe", True), stream(b"x" * 5000)[:2000])


def test_a_chunk_that_is_none_is_told_and_ends_the_conversation() -> None:
    """Nobody knows where the next request begins."""
    out = io.BytesIO()
    conversation = serve.Conversation(host(), incoming(request("probe", True) + b"\xff" * 4 + request("probe")), out)
    with pytest.raises(PeerError):
        conversation.run()
    assert "sent a chunk of 4294967295 bytes" in wire.parse(out.getvalue())["error"]["message"]


@pytest.mark.parametrize("name", ["../etc", "-x", "a b", "", 5, None])
def test_names_are_checked_like_a_users(name: t.Any) -> None:
    answers = ask(
        request("decision", name=name, move_id="m1", generation=3, asker="T"),
        request("resume", name=name, move_id="m1"),
        request("wake", name=name), request("begin", definition={"name": name, "image": "a" * 64}),
    )  # fmt: skip
    assert [one["error"]["kind"] for one in answers] == ["InputError"] * 4


def test_an_owner_record_is_of_the_same_name() -> None:
    """The journal has its name from there."""
    definition = {"name": "web", "image": "a" * 64}
    for name in ("db", "../../../../etc", None):
        for op in ("check", "begin"):
            (answer,) = ask(request(op, definition=definition, owner={**OWNER, "name": name}, needs={}))
            assert answer["error"]["message"] == f"The owner record of web is that of {name!r}."


def test_a_definition_must_name_its_image() -> None:
    (answer,) = ask(request("check", definition={"name": "web", "image": "../../x"}, owner=OWNER, sizes={}))
    assert "names no image" in answer["error"]["message"]


def decided(**more: t.Any) -> dict[str, t.Any]:
    (answer,) = ask(request("decision", **{"name": "web", "move_id": "m1", "generation": 3, "asker": "T", **more}))
    return t.cast("dict[str, t.Any]", answer["result"])


def test_decision_of_a_source_whose_mover_lives() -> None:
    files.write_json(paths.owner_file("web"), OWNER)
    files.write_json(
        paths.journal_file("web"),
        records.journal("source", records.SOURCE_FROZEN, "m1", OWNER, "host2", "T", "stop_copy", "b"),
    )
    with files.lock(paths.lock_file("web"), "a move"):
        assert decided() == {"decision": records.UNDECIDED, "ended": False, "host_id": "S"}
    assert decided() == {"decision": records.DECIDED_ABORT, "ended": False, "host_id": "S"}
    files.write_json(paths.owner_file("web"), records.handed_over(OWNER, "T", "host2"))
    assert decided() == {"decision": records.DECIDED_COMMIT, "ended": False, "host_id": "S"}
    files.remove_file(paths.journal_file("web"))
    assert decided() == {"decision": records.DECIDED_COMMIT, "ended": True, "host_id": "S"}


def test_resume_tells_what_is_here_and_keeps_the_lock() -> None:
    files.write_json(paths.owner_file("web"), OWNER)
    conversation = serve.Conversation(host(), incoming(request("resume", name="web", move_id="m1")), io.BytesIO())
    conversation.run()
    with pytest.raises(Refused), files.lock(paths.lock_file("web"), "another"):
        pass
    conversation.close()
    with files.lock(paths.lock_file("web"), "another"):
        pass


def test_resume_waits_for_a_recovery_that_asks_its_source_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusing it would make both hosts refuse each other, at the same moments, for ever."""
    held = contextlib.ExitStack()
    held.enter_context(files.lock(paths.lock_file("web"), f"{recover.RECOVERING} web"))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            held.close()

    monkeypatch.setattr(time, "sleep", sleep)
    (answer,) = ask(request("resume", name="web", move_id="m1"))
    assert answer["result"]["journal"] is None
    assert len(pauses) >= 20


def test_resume_does_not_wait_for_a_move() -> None:
    with files.lock(paths.lock_file("web"), "a move of web"):
        (answer,) = ask(request("resume", name="web", move_id="m1"))
    assert answer["error"]["kind"] == "Refused"


def test_what_comes_is_told_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(call: kinds.Call) -> dict[str, t.Any]:
        call.tell(5)
        call.tell(0)
        return {"a": 1}

    target = types.SimpleNamespace(
        OPERATIONS={"template": fetch}, is_alive=lambda name, journal: True, has_run=lambda name, journal: False
    )
    journal = records.journal("target", records.TARGET_RECEIVING, "m1", OWNER, "host1", "S", "live", "b")
    files.write_json(paths.journal_file("web"), journal)
    monkeypatch.setattr(kinds, "target_of", lambda journal: target)
    monkeypatch.setattr(recover, "resolve_in_background", lambda host, name: None)
    answers = ask(request("resume", name="web", move_id="m1"), request("template"))
    assert answers[1:] == [{"progress": 5}, {"progress": 0}, {"result": {"a": 1}}]


def test_what_follows_knows_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """``anew`` writes the journal on. Of a copy that had never been active a recovery leaves nothing."""
    journal = records.journal("target", records.TARGET_PREPARED, "m1", OWNER, "host1", "S", "post_copy", "b")
    files.write_json(paths.journal_file("web"), journal)

    class Copy:
        def end_copy(self, host: Host, name: str, journal: dict[str, t.Any]) -> None:
            files.write_json(paths.journal_file(name), {**journal, "anew": journal["state"] == records.TARGET_ACTIVE})

        def is_alive(self, name: str, journal: dict[str, t.Any]) -> bool:
            return True

        def has_run(self, name: str, journal: dict[str, t.Any]) -> bool:
            return bool(journal["state"] == records.TARGET_ACTIVE)

        def activate(self, host: Host, name: str, journal: dict[str, t.Any], limit_s: float) -> dict[str, t.Any]:
            files.write_json(paths.journal_file(name), {**journal, "state": records.TARGET_ACTIVE})
            return {}

    monkeypatch.setattr(kinds, "target_of", lambda journal: Copy())
    monkeypatch.setattr(recover, "resolve_in_background", lambda host, name: None)
    answers = ask(request("resume", name="web", move_id="m1"), request("activate", limit_s=1), request("anew"))
    assert answers[2] == {"result": {"anew": True}}
    # Nor is it given back, whoever asks for that.
    monkeypatch.setattr(kinds, "source_of", lambda journal: types.SimpleNamespace(keeps=lambda journal: False))
    answers = ask(request("resume", name="web", move_id="m1"), request("give_back"))
    assert (answers[0]["result"]["ran"], answers[1]["error"]["kind"]) == (True, "Refused")
    assert (files.read_json(paths.journal_file("web")) or {})["state"] == records.TARGET_ACTIVE


def test_where_what_comes_is_put_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory, in that of all: the source deletes its own later."""
    synced: list[str] = []
    begun: list[bool] = []
    target = types.SimpleNamespace(
        check=lambda *args: {"problems": []}, check_definition=lambda definition: None,
        begin=lambda *args: begun.append(paths.WORKLOADS in synced),
    )  # fmt: skip
    monkeypatch.setattr(kinds, "target", lambda kind: target)
    monkeypatch.setattr(files, "sync_dir", synced.append)
    monkeypatch.setattr(recover, "resolve_in_background", lambda host, name: None)
    (answer,) = ask(
        request(
            "begin", definition={"name": "web"}, owner=OWNER, needs={}, move_id="m1", mode="cold", running=True,
            enabled=True, source={"name": "host1", "host_id": "S"},
        )
    )  # fmt: skip
    assert (answer, begun) == ({"result": {}}, [True])


def test_what_did_not_end_goes_to_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    monkeypatch.setattr(recover, "resolve_in_background", lambda _host, name: resolved.append(name))
    ask(request("resume", name="web", move_id="m1"))
    assert resolved == []
    files.write_json(
        paths.journal_file("web"),
        records.journal("target", records.TARGET_RECEIVING, "m1", OWNER, "host1", "S", "stop_copy", "b"),
    )
    ask(request("resume", name="web", move_id="m1"))
    assert resolved == ["web"]


def test_a_source_that_is_silent_for_long_is_asked_by_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again when it still is; and nobody is asked about nothing."""
    resolved: list[str] = []
    monkeypatch.setattr(recover, "resolve_in_background", lambda _host, name: resolved.append(name))
    monkeypatch.setattr(serve, "_SIGN_OF_LIFE_S", 1 / 64)
    monkeypatch.setattr(serve, "_SILENCE_S", 3 / 64)

    class Signs(io.BytesIO):
        """Hangs up after so many signs of life."""

        def write(self, data: t.Any) -> int:
            super().write(data)
            if self.getvalue() == b"\n" * 7:
                os.close(into)
            return len(data)

    for name in ("", "web"):
        read, into = os.pipe()
        with os.fdopen(read, "rb", buffering=0) as file:
            conversation = serve.Conversation(host(), t.cast("t.BinaryIO", file), Signs())
            conversation.name = name
            conversation.run()
        assert resolved == ([name, name] if name else [])


# --- the pump ---


def reader(data: bytes) -> wire.ChunkReader:
    source = io.BytesIO(data)

    def exactly(size: int) -> bytes:
        found = source.read(size)
        if len(found) < size:
            raise PeerError("cut")
        return found

    return wire.ChunkReader(exactly, source.readline)


def read_all(file: t.BinaryIO) -> int:
    return sum(len(part) for part in iter(lambda: file.read(65536), b""))


def test_pumped_gives_what_the_work_gives() -> None:
    assert serve._pumped(reader(stream(b"x" * 5_000_000)), read_all) == 5_000_000


def test_pumped_in_a_process_of_its_own() -> None:
    assert serve._pumped(reader(stream(b"x")), lambda file: os.getpid()) != os.getpid()


def test_pumped_work_that_fails_is_told_before_the_stream_is_read() -> None:
    def refuse(file: t.BinaryIO) -> None:
        file.read(10)
        raise HostError("No space.", hint="Make some.")

    one = reader(stream(b"x" * 9_000_000))
    with pytest.raises(HostError, match="No space"):
        serve._pumped(one, refuse)
    assert one.count < 9_000_000
    one.finish()


def test_pumped_work_that_dies() -> None:
    with pytest.raises(CnvmError):
        serve._pumped(reader(stream(b"x")), lambda file: os._exit(3))


def test_pumped_stream_that_was_changed_on_the_way() -> None:
    data = bytearray(stream(b"x" * 1000))
    data[50] ^= 1
    with pytest.raises(PeerError, match="checksums differ"):
        serve._pumped(reader(bytes(data)), read_all)


def test_pumped_stream_that_was_cut_leaves_no_process() -> None:
    with pytest.raises(PeerError):
        serve._pumped(reader(stream(b"x" * 100_000)[:5000]), read_all)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_no_stream() -> None:
    with pytest.raises(PeerError, match="has no stream"):
        serve._pumped(None, read_all)


@pytest.mark.parametrize(
    ("mode", "started", "said"),
    [("live", False, {}), ("live", True, {"anew": True}), ("cold", True, {}), ("live", None, {"gone": True})],
)
def test_the_end_of_a_move_says_what_had_ended_before(
    monkeypatch: pytest.MonkeyPatch, mode: str, started: bool | None, said: dict[str, t.Any]
) -> None:
    """The source cannot see it, and its user would not know that the memory is lost."""
    target = types.SimpleNamespace(statistics=lambda journal: {"criu": {}}, finish=lambda host, name, journal: started)
    monkeypatch.setattr(kinds, "target_of", lambda journal: target)
    conversation = serve.Conversation(host(), incoming(b""), io.BytesIO())
    conversation.name, conversation.journal = "web", {"name": "web", "mode": mode}
    assert conversation.finish({}, None) == {"criu": {}, **said}


# --- the key ---


@pytest.mark.parametrize("words", ["bash", "container stop web", "serve; id", "-c id", "placementx", "''"])
def test_the_key_may_do_nothing_else(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", words)
    with pytest.raises(CnvmError, match="may only talk to cnvm-host"):
        serve.serve([], host(stdin=io.BytesIO(), stdout=io.BytesIO()))


def test_serve_until_the_peer_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "serve")
    out = io.BytesIO()
    data = request("probe", True) + stream(b"abc") + request("probe", True) + stream(b"abc")[:3]
    assert serve.serve([], host(stdin=incoming(data), stdout=out)) == 0
    done, cut = map(wire.parse, out.getvalue().splitlines())
    assert done == {"result": {}}
    assert "in the middle of a stream" in cut["error"]["message"]


def test_what_is_remembered_of_an_earlier_guest_is_no_promise(state: Path) -> None:
    """The UUID of a guest stands for its name: one that was made anew has it again, and begins to count anew."""
    home = state / "containers/web"
    home.mkdir(parents=True, exist_ok=True)
    record = home / "owner.json"
    comes = {"kind": "guest", "uuid": "u", "owner": "source", "generation": 2}
    for mine, stays in (
        ({"uuid": "u", "owner": "source", "generation": 9}, False),
        ({"uuid": "u", "owner": "source", "generation": 2}, True),
        ({"uuid": "u", "owner": "third", "generation": 9}, True),
        ({"uuid": "other", "owner": "third", "generation": 9}, False),
    ):
        record.write_text(json.dumps(mine), encoding="utf-8")
        serve._forget_other("web", comes)
        assert record.exists() == stays, mine


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (
            {"owner": "U", "owner_name": "host3", "generation": 9},
            "T says that web is at host3 (generation 9), and host1",
        ),
        ({"owner": "U", "owner_name": "host3", "generation": 4}, ""),
        # Of an earlier one of this name, and forgotten when it comes.
        ({"owner": "S", "owner_name": "host1", "generation": 9}, ""),
        ({"owner": "U", "owner_name": "host3", "generation": 9, "uuid": "other"}, ""),
    ],
)
def test_who_knows_of_a_newer_owner_takes_no_older_copy(
    monkeypatch: pytest.MonkeyPatch, mine: dict[str, t.Any], said: str
) -> None:
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "T"})
    files.write_json(paths.owner_file("web"), {"uuid": "u", **mine})
    nothing = types.SimpleNamespace(check=lambda *args: {"problems": []}, check_definition=lambda definition: None)
    monkeypatch.setattr(kinds, "target", lambda kind: nothing)
    (answer,) = ask(request("check", definition={"name": "web"}, owner=OWNER, needs={}))
    problems = answer["result"]["problems"]
    assert len(problems) == bool(said)
    assert said in "".join(problems)
