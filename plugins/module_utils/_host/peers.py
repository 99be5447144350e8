# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Talking to another host: one SSH connection to its helper, kept open for all that a move needs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, PeerError
from .._migrate import wire
from . import files
from .limit import Limit
from .system import Host

# Who tells how far it is may tell nothing for so long: it reads what has come once more, and sees it onto its disk. And
# so long may who takes a stream take nothing of it. When all has gone out it may take its time to see it onto its disk.
_NO_PROGRESS_S = 600.0
_LATE = "did not answer in time"


def overlay() -> dict[str, t.Any]:
    """overlay.json of this host."""
    found = files.read_json(paths.OVERLAY_FILE)
    if found is None:
        raise HostError("This host has no overlay.", hint="Run the role overlay on it.")
    return found


def find(name: str, option: str = "target") -> dict[str, t.Any]:
    """The peer ``name`` of this host's overlay. ``option`` names it in messages."""
    known = overlay()
    for peer in known.get("peers", ()):
        if peer["name"] == name:
            return t.cast("dict[str, t.Any]", peer)
    if name == known["self"]["name"]:
        raise InputError(f"{option}: {name!r} is this host itself.", hint="Name another one.")
    names = ", ".join(sorted(peer["name"] for peer in known.get("peers", ()))) or "none"
    raise InputError(f"{option}: {name!r} is not in the overlay of this host.", hint=f"Hosts in it: {names}.")


def ssh_argv(peer: t.Mapping[str, t.Any], *words: str) -> list[str]:
    """SSH to a peer through the tunnel, with the keys and host keys that host_bootstrap exchanged."""
    return ["ssh", "-F", paths.SSH_CONFIG, "-o", f"HostName={peer['tunnel']}", peer["name"], *words]


class Channel:
    """An open connection to a peer's ``cnvm-host serve``. Each call has a deadline; a dead link ends in PeerError."""

    def __init__(self, host: Host, peer: t.Mapping[str, t.Any]) -> None:
        self.peer = str(peer["name"])
        # -1 is subprocess.PIPE; what ssh itself says is kept for the message.
        self._process = host.popen(ssh_argv(peer, "serve"), stdin=-1, stdout=-1, stderr=-1, start_new_session=True)
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        self._buffer = bytearray()
        # Of the call that is under way: until when it is to be answered, and how much of its stream goes out.
        self._end = time.monotonic()
        self._limit = Limit(0)
        # How many answers are to come: that to a call which ran out of time comes before that to the next one.
        self._awaited = 0
        for fd in (self._in, self._out):
            os.set_blocking(fd, False)

    def _lost(self, what: str) -> PeerError:
        said = last_words(self._process.stderr)
        return PeerError(
            f"The connection to {self.peer} {what}" + (f": {said}" if said else "."),
            hint=f"Check that {self.peer} is up, its tunnel works ('cnvm-host overlay status') and its disks answer.",
            peer=self.peer,
        )

    def _patience(self) -> tuple[float, str]:
        """Until when to wait for a peer to get further, and what it did not do when it has not by then."""
        stuck = f"showed no progress for {_NO_PROGRESS_S:g} s"
        return min((self._end, _LATE), (time.monotonic() + _NO_PROGRESS_S, stuck))

    @staticmethod
    def _ready(fd: int, event: int, until: float) -> bool:
        """Whether ``event`` comes before that time."""
        poll = select.poll()
        poll.register(fd, event)
        left = until - time.monotonic()
        return left > 0 and bool(poll.poll(left * 1000))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            until, late = self._patience()
            if not self._ready(self._in, select.POLLOUT, until):
                # One that waits for somebody else before it takes more says so.
                if until < self._end and self._receive():
                    continue
                raise self._lost(late)
            try:
                count = os.write(self._in, view[: self._limit.piece])
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost("was lost") from error
            view = view[count:]
            self._limit.sent(count)

    def _receive(self) -> bool:
        """Read what has come; False when that is nothing."""
        try:
            data = os.read(self._out, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            raise self._lost("was lost")
        self._buffer += data
        if len(self._buffer) - self._buffer.rfind(b"\n") > wire.MAX_LINE:
            raise self._lost("sent too long a line")
        return True

    def _line(self) -> bytes:
        """The next line of what has been read; b'' when there is none. An empty line is a sign of life."""
        while (end := self._buffer.find(b"\n")) >= 0:
            found = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if found:
                return found
        return b""

    def _answer(self, line: bytes, progress: t.Optional[t.Callable[[int], None]]) -> t.Optional[dict[str, t.Any]]:
        """What ``line`` answers to the last call; None when it does not."""
        said = wire.parse(line)
        if "progress" in said:
            if progress is not None:
                progress(int(said["progress"]))
            return None
        self._awaited -= 1
        return None if self._awaited else said

    def _chunk(self, data: bytes) -> None:
        if self.heard():
            raise self._lost("answered before it had everything")
        self._write(data)

    def _send(self, stream: t.Callable[[t.BinaryIO], t.Any]) -> None:
        """Send what ``stream`` writes, for as long as the peer wants it."""
        writer = wire.ChunkWriter(self._chunk)
        try:
            stream(t.cast("t.BinaryIO", writer))
            writer.close()
        except CnvmError:
            if not self.is_late:
                # It has answered, and waits for the end of the stream to go on.
                with contextlib.suppress(PeerError):
                    writer.end()
            raise

    @property
    def is_late(self) -> bool:
        """Whether the peer still owes an answer to a call that was given up."""
        return self._awaited > 0

    def call(
        self,
        op: str,
        *,
        timeout_s: float,
        stream: t.Optional[t.Callable[[t.BinaryIO], t.Any]] = None,
        mib_s: int = 0,
        progress: t.Optional[t.Callable[[int], None]] = None,
        **args: t.Any,
    ) -> dict[str, t.Any]:
        """Ask the peer to do ``op``; its result. ``stream`` writes the bytes that go with it, no more than ``mib_s`` of
        them in a second (0 is no limit).

        An operation that fails before it has all of its stream is sent no more of it. A peer that takes no more of it
        without a word, or gets no further with the bytes that it fetches by itself (``progress`` hears of them), is not
        waited for.
        """
        self._limit = Limit(mib_s)
        self._ask(op, args, timeout_s, streams=stream is not None)
        if stream is not None:
            self._send(stream)
        answer: t.Optional[dict[str, t.Any]] = None
        while answer is None:
            until, late = (self._end, _LATE) if progress is None else self._patience()
            while not (line := self._line()):
                if not self._ready(self._out, select.POLLIN, until):
                    raise self._lost(late)
                self._receive()
            answer = self._answer(line, progress)
        return wire.result_of(answer, self.peer)

    def ask(self, op: str, *, timeout_s: float, **args: t.Any) -> None:
        """Put a question to the peer. Nobody waits here for the answer: it is ``heard`` that there is one."""
        self._ask(op, args, timeout_s, streams=False)

    def _ask(self, op: str, args: t.Mapping[str, t.Any], timeout_s: float, *, streams: bool) -> None:
        self._end = time.monotonic() + timeout_s
        self._awaited += 1
        self._write(wire.line({"op": op, "args": args, "stream": streams}))

    def heard(self) -> bool:
        """Whether the peer has answered the last question by now. Raises the error that it answers with, and PeerError
        when it had its time."""
        self._receive()
        while line := self._line():
            answer = self._answer(line, None)
            if answer is not None:
                wire.result_of(answer, self.peer)
                return True
        if time.monotonic() > self._end:
            raise self._lost(_LATE)
        return False

    def close(self) -> None:
        """End the connection; the peer cleans up what was not finished."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=2)
        except Exception:  # noqa: BLE001 - subprocess.TimeoutExpired, which this room may not import
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def last_words(stderr: t.BinaryIO) -> str:
    """The last line that a connection has printed so far (SSH, or our helper behind it), '' when there is none."""
    os.set_blocking(stderr.fileno(), False)
    said = b""
    with contextlib.suppress(OSError):
        while more := os.read(stderr.fileno(), 1 << 16):
            said = (said + more)[-4000:]
    return next(reversed(said.decode("utf-8", "replace").strip().splitlines()), "")


@contextlib.contextmanager
def connected(host: Host, name: str) -> t.Iterator[Channel]:
    """A channel to the peer ``name`` for as long as the block lasts."""
    channel = Channel(host, find(name))
    try:
        yield channel
    finally:
        channel.close()
