# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listens on a link: ``listen.py LINK SECONDS MARK FILE``; prints what it saw as JSON: kinds of packets, and the mark.

It makes FILE once it listens, and ends when somebody has removed that, or after so many seconds.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from pathlib import Path


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
    link, seconds, mark, file = sys.argv[1], float(sys.argv[2]), sys.argv[3].encode(), Path(sys.argv[4])
    seen: dict[str, int] = {}
    marked = 0
    end = time.monotonic() + seconds
    # Without a protocol it hears nothing until it is bound: what passes on other links does not count.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as ears:
        # As much as anybody may have: on a busy machine all packets of a test wait there at once.
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ears.bind((link, 3))
        ears.settimeout(0.1)
        file.touch()
        while time.monotonic() < end:
            # Looked at before: what came in until then is read still.
            over = not file.exists()
            try:
                frame = ears.recv(65536)
            except socket.timeout:
                if over:
                    break
                continue
            kind = kind_of(frame)
            seen[kind] = seen.get(kind, 0) + 1
            marked += mark in frame
    print(json.dumps({"kinds": seen, "marked": marked}))


main()
