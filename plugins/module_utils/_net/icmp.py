# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Echo requests, byte by byte: many peers are asked at once, with packets as large as the tunnel must carry."""

from __future__ import annotations

import struct
import typing as t

_REQUEST, _REPLY = 8, 0
_HEADERS = 28  # of IPv4 and ICMP


def _checksum(data: bytes) -> int:
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(identifier: int, sequence: int, packet_bytes: int) -> bytes:
    """An echo request that makes an IPv4 packet of ``packet_bytes``."""
    payload = bytes(max(0, packet_bytes - _HEADERS) // 2 * 2)
    unsummed = struct.pack("!BBHHH", _REQUEST, 0, 0, identifier, sequence) + payload
    return unsummed[:2] + struct.pack("!H", _checksum(unsummed)) + unsummed[4:]


def reply_of(packet: bytes) -> t.Optional[tuple[int, int]]:
    """Identifier and sequence of the echo reply in an IPv4 packet, None when it is something else."""
    start = (packet[0] & 15) * 4 if packet else 0
    if len(packet) < start + 8 or packet[start] != _REPLY:
        return None
    return struct.unpack("!HH", packet[start + 4 : start + 8])
