# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host serve``: the only command that another host's key may run here.

It answers one question (``placement``), gives a template away (``template send``), lets a guest in (``libvirt``; see
``libvirt_tunnel``), or holds a conversation (``_migrate.wire``) in which this host is the target of a move, or says
what it decided as the source of one. Names that come over the wire are checked like a user's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, PeerError, Refused
from .._core.names import check_name
from .._migrate import records, wire
from . import files, freezer, handover, helper, kinds, movedir, ownership, recover
from .system import Host

_SIGN_OF_LIFE_S = 5
# In a move that goes on the source is seldom silent for so long: while it stops a container by itself, or syncs much.
_SILENCE_S = 30
_RECOVERY_S = 10.0


class Conversation:
    """One peer's requests, one after the other. ``lock`` is held from ``begin`` until the conversation ends."""

    def __init__(self, host: Host, read: t.BinaryIO, write: t.BinaryIO) -> None:
        self.host = host
        self._read = read
        self._write = write
        self._came = bytearray()
        self._held = contextlib.ExitStack()
        self.name = ""
        self.journal: dict[str, t.Any] = {}

    def _more(self) -> bool:
        """Read what has come; False when the peer has gone. Only who sends learns that a link is dead, so while nothing
        comes, be it a request or the rest of a stream, an empty line goes out now and then. TCP may take as long to
        notice as the link was cut, and longer: somebody else asks the source, over a new connection."""
        poll = select.poll()
        poll.register(self._read.fileno(), select.POLLIN)
        silent_s = 0
        while not poll.poll(_SIGN_OF_LIFE_S * 1000):
            self._write.write(b"\n")
            self._write.flush()
            silent_s += _SIGN_OF_LIFE_S
            if silent_s % _SILENCE_S == 0 and self.name:
                recover.resolve_in_background(self.host, self.name)
        data = os.read(self._read.fileno(), wire.CHUNK)
        self._came += data
        return bool(data)

    def _exactly(self, size: int) -> bytes:
        while len(self._came) < size:
            if not self._more():
                self._came.clear()  # a part of a chunk, which must not be taken for anything else
                raise PeerError("The other host ended the connection in the middle of a stream.")
        data = bytes(memoryview(self._came)[:size])
        del self._came[:size]
        return data

    def _line(self) -> bytes:
        """The next line; b'' when the peer has gone, or when it sends what is no line."""
        while b"\n" not in self._came:
            if len(self._came) > wire.MAX_LINE or not self._more():
                return b""
        return self._exactly(self._came.index(b"\n") + 1)

    def _gone(self) -> bool:
        """Whether the peer has hung up."""
        poll = select.poll()
        poll.register(self._read.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _fd, event in poll.poll(0))

    def _tell(self, count: int) -> None:
        """Say that so many more bytes have come. Who has hung up wants no more of them (BrokenPipeError)."""
        self._write.write(wire.line({"progress": count}))
        self._write.flush()

    def _take(self, name: str, what: str, *, again: bool) -> None:
        """Take the lock of a workload. ``again``: the same source asks about what it has begun here, so a conversation
        that holds the lock is one that it has given up. A recovery of this host is asking that source just now: if it
        refused it, both would go on asking at the same moments, and refuse each other again and again."""
        path = paths.lock_file(name)
        end = time.monotonic() + _RECOVERY_S
        while True:
            try:
                self._held.enter_context(files.lock(path, what))
                return
            except Refused as error:
                if again and recover.end_conversation(path, files.lock_holder(path)):
                    continue
                if recover.RECOVERING not in str(error.details.get("holder")) or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def run(self) -> None:
        """Answer until the peer ends the conversation."""
        while True:
            request = self._line()
            if not request:
                return
            stream: t.Optional[wire.ChunkReader] = None
            try:
                said = wire.parse(request)
                if said.get("stream"):
                    stream = wire.ChunkReader(self._exactly, self._line)
                answer = wire.line({"result": self._do(str(said.get("op")), dict(said.get("args") or {}), stream)})
            except Exception as error:  # noqa: BLE001 - whatever it is, the peer must hear of it
                answer = wire.error_line(error)
            self._write.write(answer)
            self._write.flush()
            # What comes of a stream until its sender has heard that it is not wanted must not be taken for a request.
            if stream is not None:
                stream.finish()

    def close(self) -> None:
        """Let the lock go; a move that did not end goes to the resolver, which outlives this session."""
        unfinished = bool(self.name) and files.read_json(paths.journal_file(self.name)) is not None
        self._held.close()
        if unfinished:
            recover.resolve_in_background(self.host, self.name)

    def _do(self, word: str, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """One operation: of every move, or of the kind that is moved here."""
        operation = _OPERATIONS.get(word)
        if operation is not None:
            return operation(self, args, stream)
        own = self._target().OPERATIONS.get(word) if self.journal else None
        if own is None:
            raise PeerError(f"This host knows no operation {word!r}.", hint="Run host_bootstrap again.")
        call = kinds.Call(
            self.host,
            self.journal,
            args,
            stream is not None,
            lambda work: _pumped(stream, work),
            self._gone,
            self._tell,
        )
        result = own(call)
        self.journal = files.read_json(paths.journal_file(self.name)) or {}
        return result

    def _target(self) -> kinds.Target:
        return kinds.target_of(self.journal)

    # --- operations: (arguments, stream) -> result ---

    def facts(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """What this host is and can do."""
        return {
            **kinds.target(str(args["kind"])).facts(self.host),
            "helper": helper.installed(paths.HELPER_LIBRARY),
            "identity": ownership.host_identity(),
        }

    def check(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """Why this host cannot take a workload now, and what else its kind wants to know."""
        return _checked(self.host, _definition(args), args["owner"], args["needs"])

    def begin(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """Take the lock and note the move."""
        definition, owner = _definition(args), args["owner"]
        name = definition["name"]
        earlier = files.read_json(paths.journal_file(name))
        given_up = earlier is not None and records.superseded(earlier, owner)
        if given_up:
            self._take(name, f"a move of {name} to this host", again=True)
            # Its source has begun anew, so it has forgotten that one. It need not be asked again.
            before = t.cast("dict[str, t.Any]", earlier)
            kinds.target_of(before).give_up(self.host, name, before)
        else:
            self._held.enter_context(files.lock(paths.lock_file(name), f"a move of {name} to this host"))
        if files.read_json(paths.journal_file(name)) is not None:
            raise Refused(
                f"This host has a move of {name} that has not ended.", hint="Run the playbook cnvm.platform.recover."
            )
        problems = _checked(self.host, definition, owner, args["needs"])["problems"]
        if problems:
            raise Refused(" ".join(problems))
        self.name = name
        _forget_other(name, owner)
        source = args["source"]
        self.journal = {
            **records.journal(
                "target", records.TARGET_RECEIVING, check_name(args["move_id"], "move_id"), owner, source["name"],
                source["host_id"], args["mode"], movedir.boot_id(),
            ),
            "running": bool(args["running"]), "enabled": bool(args["enabled"]),
        }  # fmt: skip
        # Who may get through is for its kind to say, which begins next. All that is in it now is for root alone.
        files.make_dirs(paths.workload_dir(name))
        files.write_json(paths.journal_file(name), self.journal)
        self._target().begin(self.host, definition, self.journal, args["needs"])
        return {}

    def probe(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """Take bytes and forget them: how fast is the link?"""
        t.cast("wire.ChunkReader", stream).finish()
        return {}

    def activate(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """The source has committed: run."""
        try:
            result = self._target().activate(self.host, self.name, self.journal, float(args["limit_s"]))
        finally:
            freezer.hurry(False)
            # What follows writes the journal on: one that would say again that it was never active.
            self.journal = files.read_json(paths.journal_file(self.name)) or {}
        return result

    def announce(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """Repeat where the address is."""
        self._target().announce(self.host, self.name)
        return {}

    def drained(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """Whether all pages have come."""
        return self._target().drained(self.journal, float(args["limit_s"]))

    def finish(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """The source has let go."""
        statistics = self._target().statistics(self.journal)
        started = self._target().finish(self.host, self.name, self.journal)
        said = {"anew": kinds.was_anew(self.journal, started), "gone": started is None}
        return {**statistics, **{key: True for key, so in said.items() if so}}

    def anew(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """What ran here is not whole, or has ended, and is newer than what the source has: ``finish`` starts it anew.

        ``anew``: whether it will; what was turned off stays off.
        """
        self._target().end_copy(self.host, self.name, self.journal)
        # Its source lets go now. Should nobody say so, who comes later finds that this is to be ended here.
        noted = files.read_json(paths.journal_file(self.name)) or self.journal
        self.journal = {**noted, "state": records.TARGET_ACTIVE}
        files.write_json(paths.journal_file(self.name), self.journal)
        return {"anew": bool(self.journal.get("anew"))}

    def give_up(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """The source has decided against the move."""
        self._target().give_up(self.host, self.name, self.journal)
        return {}

    def give_back(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """After the commit: kill this copy for good. Refused once it has run, unless what it did may be lost."""
        promised = records.given_back(files.read_json(paths.owner_file(self.name)), self.journal["generation"])
        keeps = kinds.source_of(self.journal).keeps(self.journal)
        if not promised and not keeps and self._target().has_run(self.name, self.journal):
            me = ownership.host_identity()["name"]
            raise Refused(f"{self.name} has run on {me}, which does not give it back.")
        return handover.give_back(self.host, self.name, self.journal)

    def resume(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """The source asks about a move of an earlier conversation: take it up, and say how it stands here."""
        name = check_name(args["name"], "name")
        known = files.read_json(paths.journal_file(name)) or {}
        self._take(name, f"{recover.RECOVERING} {name}", again=known.get("move_id") == args["move_id"])
        self.name = name
        self.journal = files.read_json(paths.journal_file(self.name)) or {}
        owner = files.read_json(paths.owner_file(self.name))
        if self.journal.get("move_id") != args["move_id"]:
            self.journal = {}
        return {
            "journal": self.journal or None, "owner": owner, "identity": ownership.host_identity(),
            "alive": bool(self.journal) and self._target().is_alive(self.name, self.journal),
            "ran": bool(self.journal) and self._target().has_run(self.name, self.journal),
        }  # fmt: skip

    def wake(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """The target has done what it can about a move: look at it again."""
        recover.resolve_in_background(self.host, check_name(args["name"], "name"))
        return {}

    def decision(self, args: dict[str, t.Any], stream: t.Optional[wire.ChunkReader]) -> dict[str, t.Any]:
        """What this host, as the source, has decided about a move."""
        name = check_name(args["name"], "name")
        busy = bool(files.lock_holder(paths.lock_file(name)))
        current = files.read_json(paths.journal_file(name))
        me, owner = ownership.host_identity()["host_id"], files.read_json(paths.owner_file(name))
        return {
            "decision": records.decision(
                args["move_id"], int(args["generation"]), me, str(args["asker"]), owner, current, busy
            ),
            "ended": not busy and (current or {}).get("move_id") != args["move_id"],
            "host_id": me,
        }


def _pumped(stream: t.Optional[wire.ChunkReader], work: t.Callable[[t.BinaryIO], t.Any]) -> t.Any:
    """What ``work`` makes of the bytes of ``stream`` (JSON-able), which are proven whole before it is believed.

    ``work`` runs in a child (unpacking changes the root of its process); the conversation is read here alone.
    """
    if stream is None:
        raise PeerError("The request has no stream.")
    feed, into = os.pipe()
    answer, back = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(into)
            os.close(answer)
            try:
                with os.fdopen(feed, "rb", buffering=0) as file:
                    said = wire.line({"result": {"value": work(t.cast("t.BinaryIO", file))}})
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
                said = wire.error_line(error)
            with os.fdopen(back, "wb") as out:
                out.write(said)
        finally:
            os._exit(0)
    os.close(feed)
    os.close(back)
    with contextlib.suppress(OSError):
        fcntl.fcntl(into, 1031, 1 << 20)  # F_SETPIPE_SZ
    try:
        while data := stream.read(wire.CHUNK):
            try:
                files.write_all(into, data)
            except BrokenPipeError:
                break  # it has seen enough, and says why
    finally:
        os.close(into)
        with os.fdopen(answer, "rb") as file:
            said = file.read()
        os.waitpid(child, 0)
    result = wire.result_of(wire.parse(said), "")
    stream.finish()
    return result["value"]


_Operation = t.Callable[[Conversation, "dict[str, t.Any]", t.Optional[wire.ChunkReader]], "dict[str, t.Any]"]
_OPERATIONS: dict[str, _Operation] = {
    name: getattr(Conversation, name)
    for name in (
        "facts", "probe", "check", "begin", "activate", "announce", "drained", "finish", "anew", "give_up", "give_back",
        "resume", "wake", "decision",
    )
}  # fmt: skip


def _definition(args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    definition = dict(args["definition"])
    name = check_name(definition.get("name"), "name")
    # The journal has its name from there, and with it all places that are written to.
    if args["owner"].get("name") != name:
        raise PeerError(f"The owner record of {name} is that of {args['owner'].get('name')!r}.")
    kinds.target_of(args["owner"]).check_definition(definition)
    return definition


def _checked(
    host: Host, definition: t.Mapping[str, t.Any], owner: t.Mapping[str, t.Any], needs: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Why this host cannot take the workload now (``problems``, a sentence each), and what else its kind tells."""
    name, me, kind, found = definition["name"], ownership.host_identity(), kinds.kind_of(owner), []
    mine = files.read_json(paths.owner_file(name))
    if mine is not None and mine.get("uuid") != owner["uuid"]:
        # A record that names another host is what an earlier workload of this name left when it moved away.
        if mine.get("owner") == me["host_id"]:
            found.append(f"name: {me['name']} has another {kinds.kind_of(mine)} called {name}.")
    elif mine is not None and not records.newer(owner, mine) and mine.get("owner") == me["host_id"]:
        found.append(f"name: {me['name']} says that {name} is its own already (generation {mine['generation']}).")
    elif mine is not None and records.given_back(mine, owner["generation"]) and mine.get("owner") != owner["owner"]:
        # The copy that comes would be taken for one that this host has promised never to run.
        found.append(
            f"name: {me['name']} says that {name} is at {mine.get('owner_name')} (generation {mine['generation']}), and"
            f" {owner.get('owner_name')} has an older record of it (generation {owner['generation']})."
        )
    journal = files.read_json(paths.journal_file(name))
    if journal is not None and not records.superseded(journal, owner):
        found.append(f"{me['name']} has a move of {name} that has not ended. Run the playbook cnvm.platform.recover.")
    seen = kinds.target(kind).check(host, definition, owner, needs)
    return {**seen, "problems": [*found, *seen["problems"]]}


def _forget_other(name: str, owner: t.Mapping[str, t.Any]) -> None:
    """Remove the record of an earlier workload of this name. Its generation says nothing about the one that comes, and
    must not be taken for a promise of this host. A guest that was made anew has the UUID of the one before: what is
    newer here than its source's record, and says that it is the source's, is of that one."""
    mine = files.read_json(paths.owner_file(name))
    if mine is None:
        return
    older = records.newer(mine, owner) and mine.get("owner") == owner.get("owner")
    if mine.get("uuid") == owner["uuid"] and not older:
        return
    if mine.get("owner") == ownership.host_identity()["host_id"]:
        raise Refused(f"This host has another {kinds.kind_of(mine)} called {name}.")
    files.remove_file(paths.owner_file(name), durable=True)


def serve(args: t.Sequence[str], host: Host) -> int:
    """What a peer may ask for is in SSH_ORIGINAL_COMMAND; the words behind ``serve`` are ours (authorized_keys)."""
    words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", "serve"))
    if words[:1] == ["placement"]:
        from . import placement

        return placement.placement(words[1:], host)
    if words[:1] == ["template"]:
        from . import template_making

        return template_making.answer(words[1:], host)
    if words[:1] == ["libvirt"]:
        from . import libvirt_tunnel

        return libvirt_tunnel.answer(words[1:], host)
    if words[:1] != ["serve"] or host.stdin is None or host.stdout is None:
        raise CnvmError("This key may only talk to cnvm-host.", hint="Log in with your own key.")
    conversation = Conversation(host, host.stdin, host.stdout)
    try:
        conversation.run()
    except (BrokenPipeError, PeerError):
        pass  # the peer has gone; close() sees to what it left
    finally:
        conversation.close()
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"serve": serve}
