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

_DOMAIN_XML = b"destination_xml"
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


def brought_xml(frame: Frame) -> t.Optional[str]:
    """The domain's XML in a request to let a guest in, None in other frames. PeerError where it has none, or two."""
    if frame.program != REMOTE or frame.procedure != PREPARE:
        return None
    name = _text(_DOMAIN_XML) + _STRING.to_bytes(4, "big")
    if frame.data.count(name) != 1:
        raise PeerError("The guest that was to be brought has no definition, or two.")
    at = frame.data.index(name) + len(name)
    size = int.from_bytes(frame.data[at : at + 4], "big")
    text = frame.data[at + 4 : at + 4 + size]
    if len(text) != size:
        raise PeerError("The definition of the guest that was to be brought is cut off.")
    return text.decode("utf-8", "replace")


def _text(value: bytes) -> bytes:
    """As XDR has it: its length, itself, zeros up to a multiple of four."""
    return len(value).to_bytes(4, "big") + value + bytes(-len(value) % 4)
