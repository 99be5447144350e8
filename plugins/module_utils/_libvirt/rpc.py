# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The frames of libvirt's own protocol: so much of it as a host needs that lets another one bring it a guest.

A frame is a length in 4 bytes (big endian, with itself in it), six numbers (program, version, procedure, type, serial,
status) and what they are about. The numbers are libvirt's stable interface between its versions.
"""

from __future__ import annotations

import struct
import typing as t

from .._core.errors import PeerError

REMOTE, KEEPALIVE = 0x20008086, 0x6B656570
CALL, REPLY = 0, 1
OK = 0
MAX_FRAME = 33 * 2**20
_HEAD = struct.Struct(">7I")

# Procedures of the remote program.
OPEN, CLOSE, SUPPORTS_FEATURE, AUTH_LIST = 1, 2, 60, 66
PREPARE, FINISH = 303, 306  # DOMAIN_MIGRATE_PREPARE3_PARAMS, DOMAIN_MIGRATE_FINISH3_PARAMS
ALLOWED = (OPEN, CLOSE, SUPPORTS_FEATURE, AUTH_LIST, PREPARE, FINISH)

# What the values of named parameters take: by libvirt's numbers of their types, bytes; texts have their length.
_SIZES = {1: 4, 2: 4, 3: 8, 4: 8, 5: 8, 6: 4}
_STRING = 7


class Frame(t.NamedTuple):
    """One frame; ``data`` is all of it."""

    program: int
    procedure: int
    kind: int
    status: int
    data: bytes


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole with these bytes; PeerError when it is another protocol."""
        self._rest += data
        found = []
        while len(self._rest) >= 4:
            size = int.from_bytes(self._rest[:4], "big")
            if not _HEAD.size <= size <= MAX_FRAME:
                raise PeerError("What came is not libvirt's protocol.")
            if len(self._rest) < size:
                break
            whole = bytes(self._rest[:size])
            del self._rest[:size]
            _size, program, _version, procedure, kind, _serial, status = _HEAD.unpack_from(whole)
            found.append(Frame(program, procedure, kind, status, whole))
        return found


def is_allowed(frame: Frame) -> bool:
    """Whether a host that brings a guest may send this: no more than what opens a connection and brings it."""
    if frame.program == KEEPALIVE:
        return True
    return frame.program == REMOTE and frame.kind == CALL and frame.procedure in ALLOWED


def is_arrival(frame: Frame) -> bool:
    """Whether this says that a guest has arrived whole."""
    return (frame.program, frame.procedure, frame.kind, frame.status) == (REMOTE, FINISH, REPLY, OK)


def is_departure(frame: Frame) -> bool:
    """Whether this asks for a guest to go on where it was brought. (The last number says whether it is given up.)"""
    return (frame.program, frame.procedure, frame.kind) == (REMOTE, FINISH, CALL) and frame.data[-4:] == bytes(4)


def is_answer(frame: Frame) -> bool:
    """Whether this says how that went."""
    return (frame.program, frame.procedure, frame.kind) == (REMOTE, FINISH, REPLY)


# Texts that decide what comes; of them libvirt must read what we have read.
LOOKED_AT = ("destination_name", "destination_xml")


class Arguments(t.NamedTuple):
    """What a request to let a guest in, or to have it go on, says: named texts, and a document of QEMU's driver. Of one
    that came several times (never one of ``LOOKED_AT``) the last."""

    texts: dict[str, str]
    cookie: bytes


def arguments(frame: Frame) -> t.Optional[Arguments]:
    """Those of ``PREPARE`` and ``FINISH``, None of other frames. PeerError where libvirt would not write such."""
    if frame.program != REMOTE or frame.kind != CALL or frame.procedure not in (PREPARE, FINISH):
        return None
    body = _Body(frame.data[_HEAD.size :])
    texts: dict[str, str] = {}
    for _each in range(body.number()):
        name, kind = body.word(), body.number()
        if kind == _STRING:
            # Some come for each disk of several.
            if name in texts and name in LOOKED_AT:
                raise PeerError(f"libvirt's parameter {name!r} came twice.")
            texts[name] = body.word()
        elif kind in _SIZES:
            body.take(_SIZES[kind])
        else:
            raise PeerError(f"libvirt's parameter {name!r} is of a type {kind} that nobody knows.")
    # libvirt counts the zero at its end.
    return Arguments(texts, body.text().rstrip(b"\0"))


class _Body:
    """Reads a frame's body from its beginning, as XDR has it."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise PeerError("A request of libvirt's protocol is cut off.")
        self._at += size
        return found

    def number(self) -> int:
        """An unsigned one."""
        return int.from_bytes(self.take(4), "big")

    def word(self) -> str:
        """A text in which C sees no end where there is none."""
        found = self.text()
        if b"\0" in found:
            raise PeerError("A text of libvirt's protocol holds a zero byte.")
        return found.decode("utf-8", "replace")

    def text(self) -> bytes:
        """Its length, itself, and zeros up to a multiple of four."""
        found = self.take(self.number())
        self.take(-len(found) % 4)
        return found
