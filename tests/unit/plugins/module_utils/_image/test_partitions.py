# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables, also those that nobody would make."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._image.partitions import ext_places, is_ext, partitions
from ansible_collections.cnvm.platform.tests.support.images import MIB, SECTOR, Bytes, mbr

EXT = b"\x53\xef"


def gpt(entries: list[tuple[int, int]], *, size: int = 64 * MIB, entry_bytes: int = 128, count: int = 128) -> Bytes:
    """A disk with partitions of (first sector, last sector)."""
    head = struct.pack("<8sIIIIQQQQ16sQII", b"EFI PART", 0x10000, 92, 0, 0, 1, size // SECTOR - 1, 34, 0, b"", 2, count,
                       entry_bytes)  # fmt: skip
    image = Bytes(size, {510: b"\x55\xaa", 450: b"\xee", SECTOR: head.ljust(SECTOR, b"\0")})
    for index, (first, last) in enumerate(entries):
        entry = b"\1" * 32 + struct.pack("<QQ", first, last)
        image.put(2 * SECTOR + index * entry_bytes, entry.ljust(entry_bytes, b"\0"))
    return image


def test_a_disk_without_a_table() -> None:
    assert partitions(Bytes(MIB)) == []
    assert partitions(Bytes(0)) == []
    assert ext_places(Bytes(MIB, {1080: EXT})) == [0]


def test_an_old_table() -> None:
    image = mbr()
    assert partitions(image) == [(MIB, 63 * MIB)]
    assert ext_places(image) == []
    assert ext_places(image.put(MIB + 1080, EXT)) == [MIB]


def test_a_new_table() -> None:
    image = gpt([(2048, 4095), (4096, 8191), (8192, 131071 - 34)])
    assert partitions(image) == [(MIB, MIB), (2 * MIB, 2 * MIB), (4 * MIB, (131072 - 34 - 8192) * SECTOR)]
    assert ext_places(image.put(4 * MIB + 1080, EXT)) == [4 * MIB]


def test_what_lies_beyond_the_end_is_no_partition() -> None:
    assert partitions(mbr(end=128 * MIB)) == []
    assert partitions(gpt([(2048, 2**60), (5, 4)])) == []


def test_a_table_that_means_to_keep_us_busy() -> None:
    image = gpt([(2048, 4095)], count=2**31)
    assert partitions(image) == [(MIB, MIB)]
    assert image.bytes_read < 100_000
    assert partitions(gpt([(2048, 4095)], entry_bytes=2**20)) == []


@given(st.binary(max_size=512), st.binary(max_size=512), st.binary(max_size=1024))
def test_any_bytes_are_read_to_an_end(first: bytes, second: bytes, third: bytes) -> None:
    image = Bytes(4 * MIB, {0: first, SECTOR: second, 2 * SECTOR: third})
    assert all(0 <= start < start + length <= image.size for start, length in partitions(image))
    assert all(is_ext(image, start) for start in ext_places(image))
