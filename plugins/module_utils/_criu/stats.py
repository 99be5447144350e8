# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""CRIU's statistics (stats-dump, stats-restore): a small image file in protocol buffers, numbers only."""

from __future__ import annotations

import struct
import typing as t

# images/stats.proto of CRIU; times in microseconds, the rest counts.
_DUMP = {
    1: "freezing_time", 2: "frozen_time", 3: "memdump_time", 4: "memwrite_time", 5: "pages_scanned",
    6: "pages_skipped_parent", 7: "pages_written", 8: "irmap_resolve", 9: "pages_lazy", 10: "page_pipes",
    11: "page_pipe_bufs", 12: "shpages_scanned", 13: "shpages_skipped_parent", 14: "shpages_written",
}  # fmt: skip
_RESTORE = {1: "pages_compared", 2: "pages_skipped_cow", 3: "forking_time", 4: "restore_time", 5: "pages_restored"}
_PE_LAZY = 2
_MAGIC = struct.pack("<II", 0x55105940, 0x57093306)  # IMG_SERVICE_MAGIC, STATS_MAGIC
_PAGEMAP_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # IMG_COMMON_MAGIC, PAGEMAP_MAGIC


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(data: bytes) -> t.Iterator[tuple[int, int, bytes]]:
    """(number, value, bytes) of each field; of a nested message the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value, b""
        elif key & 7 == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a message is cut off")
            yield key >> 3, 0, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {key & 7} is not expected")


def parse(data: bytes) -> dict[str, int]:
    """The numbers of one statistics file by name; {} for anything that is no such file."""
    if data[:8] != _MAGIC or len(data) < 12:
        return {}
    (size,) = struct.unpack("<I", data[8:12])
    numbers: dict[str, int] = {}
    try:
        for number, _value, message in _fields(data[12 : 12 + size]):
            names = {1: _DUMP, 2: _RESTORE}.get(number, {})
            numbers.update({names[n]: v for n, v, _m in _fields(message) if n in names})
    except (IndexError, ValueError):
        return {}
    return numbers


def lazy_pages(data: bytes) -> int:
    """How many pages a pagemap image has left behind, to be fetched later (post-copy); 0 for what is no such file.

    CRIU's own count of them is in a process that has no part in writing the statistics.
    """
    if data[:8] != _PAGEMAP_MAGIC:
        return 0
    pages, at = 0, 8
    try:
        while at + 4 <= len(data):
            (size,) = struct.unpack("<I", data[at : at + 4])
            entry = {number: value for number, value, _bytes in _fields(data[at + 4 : at + 4 + size])}
            if entry.get(4, 0) & _PE_LAZY:
                # The count has moved to a field of 64 bits in newer versions.
                pages += entry.get(5) or entry.get(2, 0)
            at += 4 + size
    except (IndexError, ValueError):
        return 0
    return pages
