# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listens on a link: ``listen.py LINK SECONDS MARK``; prints what it saw as JSON: kinds of packets, and the mark."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time


def kind_of(frame: bytes) -> str:
    """``udp 51820``, ``tcp``, ``arp`` and so on, as far as it matters."""
    ethertype = struct.unpack("!H", frame[12:14])[0]
    if ethertype != 0x0800:
        return "arp" if ethertype == 0x0806 else f"ethertype {ethertype:04x}"
    protocol, start = frame[23], 14 + (frame[14] & 15) * 4
    if protocol == 17:
        source, target = struct.unpack("!HH", frame[start : start + 4])
        return f"udp {source if source == target else (source, target)}"
    return {1: "icmp", 6: "tcp"}.get(protocol, f"protocol {protocol}")


def main() -> None:
    link, seconds, mark = sys.argv[1], float(sys.argv[2]), sys.argv[3].encode()
    seen: dict[str, int] = {}
    marked = 0
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ears:
        ears.bind((link, 0))
        while time.monotonic() < end:
            ears.settimeout(max(0.01, end - time.monotonic()))
            try:
                frame = ears.recv(65536)
            except socket.timeout:
                break
            kind = kind_of(frame)
            seen[kind] = seen.get(kind, 0) + 1
            marked += mark in frame
    print(json.dumps({"kinds": seen, "marked": marked}))


main()
