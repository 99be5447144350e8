# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""ARP frames, byte by byte: starting a program to send one would cost more than the frozen time allows."""

from __future__ import annotations

import ipaddress
import struct
import typing as t

ETHERTYPE = 0x0806
BROADCAST = b"\xff" * 6
_NOBODY = b"\0" * 6
_REQUEST, _REPLY = 1, 2


def mac_bytes(mac: str) -> bytes:
    """``02:00:…`` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def _frame(operation: int, mac: str, sender: str, target: str) -> bytes:
    source = mac_bytes(mac)
    return (
        BROADCAST
        + source
        + struct.pack("!HHHBBH", ETHERTYPE, 1, 0x0800, 6, 4, operation)
        + source
        + ipaddress.IPv4Address(sender).packed
        + (_NOBODY if operation == _REQUEST else BROADCAST)
        + ipaddress.IPv4Address(target).packed
    )


def announcement(mac: str, address: str) -> bytes:
    """A gratuitous ARP request (RFC 5227's announcement): everybody learns where ``mac`` and ``address`` are."""
    return _frame(_REQUEST, mac, address, address)


def probe(mac: str, address: str) -> bytes:
    """Asks who has ``address`` without claiming any (RFC 5227's probe)."""
    return _frame(_REQUEST, mac, "0.0.0.0", address)


def sender_of(frame: bytes) -> t.Optional[tuple[str, str]]:
    """MAC and address that an ARP frame claims for its sender; None when it is no ARP for IPv4 on Ethernet."""
    if len(frame) < 42 or frame[12:20] != struct.pack("!HHHBB", ETHERTYPE, 1, 0x0800, 6, 4):
        return None
    return ":".join(f"{byte:02x}" for byte in frame[22:28]), str(ipaddress.IPv4Address(frame[28:32]))
