# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""An empty qcow2 overlay, byte by byte: what qemu-img would make, without the time that it takes to start.

Starting qemu-img takes most of the time that a linked clone needs to be there. What it writes is one header, one table
of reference counts and an empty first-level table (QEMU's docs/interop/qcow2.rst, version 3).
"""

from __future__ import annotations

import struct

from .._core.errors import InputError
from .formats import FORMATS

CLUSTER = 65536
_BITS = 16
_HEADER_BYTES = 104
_BACKING_FORMAT = 0xE2792ACA
_MOST_NAME = 1023


def overlay(virtual_bytes: int, backing: str, backing_format: str) -> tuple[dict[int, bytes], int]:
    """({offset: bytes}, length of the file) of an overlay of ``virtual_bytes`` on ``backing``; the rest are zeros."""
    name, driver = backing.encode("utf-8", "surrogateescape"), FORMATS[backing_format].driver.encode()
    if len(name) > _MOST_NAME:
        raise InputError(f"backing: {backing[:80]!r}… is too long.", hint=f"Allowed: {_MOST_NAME} bytes.")
    entries = -(-virtual_bytes // (CLUSTER * CLUSTER // 8))
    # Header, table of reference counts, one block of them, first-level table.
    clusters = 3 + -(-entries * 8 // CLUSTER)
    extensions = struct.pack(">II", _BACKING_FORMAT, len(driver)) + driver.ljust(-(-len(driver) // 8) * 8, b"\0")
    extensions += struct.pack(">II", 0, 0)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        _HEADER_BYTES + len(extensions),
        len(name),
        _BITS,
        virtual_bytes,
        0,
        entries,
        3 * CLUSTER,
        CLUSTER,
        1,
        0,
        0,
        0,
        0,
        0,
        4,
        _HEADER_BYTES,
    )
    parts = {
        0: header + extensions + name,
        CLUSTER: struct.pack(">Q", 2 * CLUSTER),
        2 * CLUSTER: struct.pack(">H", 1) * clusters,
    }
    return parts, clusters * CLUSTER
