# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What goes over the channel between two hosts: requests and answers as lines of JSON, and byte streams in chunks.

A request is ``{"op": …, "args": {…}, "stream": bool}``. With ``stream`` chunks follow: a length in 4 bytes (big endian)
and so many bytes, the last with length 0; then a line ``{"sha256": …, "bytes": …}``. The answer is a line
``{"result": {…}}`` or ``{"error": {"kind", "message", "hint", "details"}}``. Lines ``{"progress": …}`` may come before
it: so many more bytes have come to who answers.

An error may come before the stream has ended. Who sends it hears of that before the next chunk, and ends the stream
there; who has answered reads on until then, so that both can go on with the next request.
"""

from __future__ import annotations

import hashlib
import json
import struct
import typing as t

from .._core import errors

MAX_LINE = 4 * 2**20
CHUNK = 2**20
# The highest limit that there is: more than any link carries.
MOST_MIB_S = 1_000_000
_LENGTH = struct.Struct(">I")


def line(value: t.Mapping[str, t.Any]) -> bytes:
    """``value`` as one line."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> dict[str, t.Any]:
    """The object in a line; PeerError when it is none (a login banner, an error of a shell)."""
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        said = data[:200].decode("utf-8", "replace").strip()
        raise errors.PeerError(f"The other host answered {said!r}, which is not our protocol.")
    return value


def error_line(error: Exception) -> bytes:
    """The answer for an operation that failed."""
    if not isinstance(error, errors.CnvmError):
        error = errors.HostError(f"{type(error).__name__}: {error}")
    return line(
        {
            "error": {
                "kind": type(error).__name__, "message": error.message, "hint": error.hint, "details": error.details,
            }
        }
    )  # fmt: skip


def result_of(answer: t.Mapping[str, t.Any], peer: str) -> dict[str, t.Any]:
    """The result in an answer; its error is raised here as it was there."""
    if "error" in answer:
        said = answer["error"]
        kind = getattr(errors, str(said.get("kind")), errors.HostError)
        if not (isinstance(kind, type) and issubclass(kind, errors.CnvmError)):
            kind = errors.HostError
        details = {key: value for key, value in (said.get("details") or {}).items() if key not in ("hint", "peer")}
        raise kind(str(said.get("message")), hint=str(said.get("hint") or ""), peer=peer, **details)
    return dict(answer.get("result") or {})


class ChunkWriter:
    """A file to write to; what is written goes out in chunks, and ``close`` says how much it was and its digest."""

    def __init__(self, write: t.Callable[[bytes], None]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self.count = 0

    def write(self, data: t.Any) -> int:
        """Take ``data``; it goes out when a chunk is full."""
        view = bytes(data)
        self._buffer.append(view)
        self._buffered += len(view)
        if self._buffered >= CHUNK:
            self.flush()
        return len(view)

    def flush(self) -> None:
        """Send what is kept back."""
        if not self._buffered:
            return
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            self._write(_LENGTH.pack(len(part)) + part)
            self._digest.update(part)
            self.count += len(part)

    def close(self) -> None:
        """End the stream."""
        self.flush()
        self.end()

    def end(self) -> None:
        """End the stream with what has gone out, as after a ``write`` that failed because nobody wants the rest."""
        self._write(_LENGTH.pack(0) + line({"sha256": self._digest.hexdigest(), "bytes": self.count}))


class ChunkReader:
    """A file to read from; it ends where the stream ends. ``finish`` must be called before its content is believed."""

    def __init__(self, read_exactly: t.Callable[[int], bytes], read_line: t.Callable[[], bytes]) -> None:
        self._read_exactly = read_exactly
        self._read_line = read_line
        self._digest = hashlib.sha256()
        self._rest = b""
        self._at = 0
        self._bad = 0
        self._ended = self._finished = False
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes (all that is left when negative); b'' at the end."""
        if size < 0:
            parts: list[bytes] = []
            while True:
                part = self.read(CHUNK)
                if not part:
                    return b"".join(parts)
                parts.append(part)
        if self._at >= len(self._rest) and not self._ended:
            (length,) = (self._bad,) if self._bad else _LENGTH.unpack(self._read_exactly(_LENGTH.size))
            if length > 4 * CHUNK:
                # Where the next one begins is not known: there is no way on from here.
                self._bad = length
                raise errors.PeerError(f"The other host sent a chunk of {length} bytes, which is not our protocol.")
            self._ended = length == 0
            self._rest, self._at = self._read_exactly(length) if length else b"", 0
            self._digest.update(self._rest)
            self.count += length
        part = self._rest[self._at : self._at + size]
        self._at += len(part)
        return part

    def finish(self) -> None:
        """Read to the end and compare; PeerError when bytes were lost or changed on the way."""
        if self._finished:
            return
        while self.read(CHUNK):
            pass
        self._finished = True
        said = parse(self._read_line())
        if said.get("bytes") != self.count or said.get("sha256") != self._digest.hexdigest():
            raise errors.PeerError("What arrived is not what was sent: the checksums differ.", hint="Try again.")
