# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes frames of libvirt's protocol."""

from __future__ import annotations

import struct

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import rpc


def frame(
    procedure: int, kind: int = rpc.CALL, status: int = rpc.OK, body: bytes = b"", program: int = rpc.REMOTE
) -> bytes:
    return struct.pack(">7I", 28 + len(body), program, 1, procedure, kind, 7, status) + body


def text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value + bytes(-len(value) % 4)


def parameter(name: bytes, value: bytes) -> bytes:
    return text(name) + (7).to_bytes(4, "big") + text(value)


def request(*parameters: bytes, cookie: bytes = b"", rest: bytes = bytes(8)) -> bytes:
    return len(parameters).to_bytes(4, "big") + b"".join(parameters) + text(cookie) + rest
