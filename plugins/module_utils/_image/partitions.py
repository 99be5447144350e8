# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Where partitions and ext file systems lie in a raw disk image. Nothing is mounted for it."""

from __future__ import annotations

import struct

from .headers import SECTOR, Image

_MOST_ENTRIES = 256
# Types of old partition tables that hold no file system: none, another table, the whole disk for GPT's sake.
_NO_FILES = (0x00, 0x05, 0x0F, 0x85, 0xEE)


def partitions(image: Image) -> list[tuple[int, int]]:
    """(first byte, length) of the partitions, in the order of the table; none where there is no table."""
    found = _gpt(image)
    if not found:
        found = _mbr(image)
    return [(start, length) for start, length in found if length > 0 and start + length <= image.size]


def _gpt(image: Image) -> list[tuple[int, int]]:
    head = image.read(SECTOR, 92)
    if len(head) < 92 or not head.startswith(b"EFI PART"):
        return []
    at, number, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096 or at * SECTOR >= image.size:
        return []
    found = []
    for index in range(min(number, _MOST_ENTRIES)):
        entry = image.read(at * SECTOR + index * size, 48)
        if len(entry) == 48 and any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            if first <= last:
                found.append((first * SECTOR, (last - first + 1) * SECTOR))
    return found


def _mbr(image: Image) -> list[tuple[int, int]]:
    boot = image.read(0, SECTOR)
    if len(boot) < SECTOR or boot[510:] != b"\x55\xaa":
        return []
    found = []
    for index in range(4):
        entry = boot[446 + 16 * index : 462 + 16 * index]
        start, length = struct.unpack_from("<II", entry, 8)
        if entry[0] in (0x00, 0x80) and entry[4] not in _NO_FILES and start:
            found.append((start * SECTOR, length * SECTOR))
    return found


def is_ext(image: Image, start: int) -> bool:
    """Whether an ext2, ext3 or ext4 file system begins there."""
    return image.read(start + 1024 + 56, 2) == b"\x53\xef"


def ext_places(image: Image) -> list[int]:
    """First bytes of all ext file systems, that of the whole disk first."""
    return [start for start in (0, *(start for start, _length in partitions(image))) if is_ext(image, start)]
