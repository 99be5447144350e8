# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Whether all of an image is there: its tables are read, and everything that they point at lies within the file.

A download that was cut off still has a good header. So has an image that was made to keep a program busy: what a table
points at is read at most once, and the number of entries that are looked at is limited.
"""

from __future__ import annotations

import array
import struct
import typing as t

from .._core.errors import Refused
from .headers import SECTOR, Header, Image, bad

# 4 TiB of data in clusters of 64 KiB; some seconds of work.
MOST_ENTRIES = 2**26
_PIECE = 2**20
_BIG_ENDIAN_HERE = array.array("H", b"\0\1")[0] == 1
# What old partitioning programs round up to.
_SLACK = 16065 * SECTOR


def check(image: Image, header: Header) -> None:
    """Refused when something that the image needs lies beyond its end, or is needed by two."""
    _CHECKS[header.format](image, header)


class _Budget:
    """Counts entries."""

    def __init__(self) -> None:
        self.left = MOST_ENTRIES

    def take(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise Refused(
                f"The image has more than {MOST_ENTRIES} entries in its tables, too many to be looked through.",
                hint="Convert it where you trust it, with larger clusters.",
            )


def _numbers(image: Image, at: int, count: int, width: int, big: bool) -> t.Iterator[array.array[int]]:
    """A table of unsigned numbers of ``width`` bytes, in pieces."""
    # Which letter has which width is the platform's.
    (code, *_others) = [code for code in "ILQ" if array.array(code).itemsize == width]
    done = 0
    while done < count:
        number = min(count - done, _PIECE // width)
        raw = image.read(at + done * width, number * width)
        if len(raw) < number * width:
            raise bad("a table lies beyond its end")
        piece = array.array(code, raw)
        if big != _BIG_ENDIAN_HERE:
            piece.byteswap()
        yield piece
        done += number


def _qcow2(image: Image, header: Header) -> None:
    budget = _Budget()
    tables, cluster, size = header.tables, header.cluster_bytes, image.size
    bits = cluster.bit_length() - 1
    # Of a compressed cluster: the bits of its place, in bytes; those above count sectors.
    compressed_mask = (1 << (62 - (bits - 8))) - 1
    mask = 0x00FFFFFFFFFFFE00
    step = 2 if tables["extended"] else 1
    seen: set[int] = set()
    for first in _numbers(image, tables["l1"], tables["entries"], 8, big=True):
        budget.take(len(first))
        for entry in first:
            at = entry & mask
            if not at:
                continue
            if at % cluster or at + cluster > size:
                raise bad("a table lies beyond its end")
            if at in seen:
                raise bad("a table is used twice")
            seen.add(at)
            for second in _numbers(image, at, cluster // 8, 8, big=True):
                budget.take(len(second))
                for one in second[::step]:
                    if not one:
                        continue
                    place = one & compressed_mask if one & 1 << 62 else one & mask
                    # The last cluster need not be written to its end, but it begins before the end of the file.
                    if place >= size:
                        raise bad("its data go on beyond its end")


def _vmdk(image: Image, header: Header) -> None:
    if not header.tables:
        return
    budget = _Budget()
    tables, size = header.tables, image.size
    seen: set[int] = set()
    for first in _numbers(image, tables["directory"], tables["entries"], 4, big=False):
        budget.take(len(first))
        for sector in first:
            if not sector:
                continue
            if sector in seen:
                raise bad("a table is used twice")
            seen.add(sector)
            for second in _numbers(image, sector * SECTOR, tables["per_table"], 4, big=False):
                budget.take(len(second))
                for grain in second:
                    # 1 stands for zeros.
                    if grain * SECTOR >= size and grain > 1:
                        raise bad("its data go on beyond its end")


def _vdi(image: Image, header: Header) -> None:
    budget = _Budget()
    tables, block = header.tables, header.cluster_bytes
    for piece in _numbers(image, tables["map"], tables["entries"], 4, big=False):
        budget.take(len(piece))
        # The last two numbers stand for blocks that are not there.
        last = max((one for one in piece if one < 0xFFFFFFFE), default=-1)
        if last >= 0 and tables["data"] + last * block + block > image.size:
            raise bad("its data go on beyond its end")


def _vhd(image: Image, header: Header) -> None:
    if header.subformat == "fixed":
        return
    budget = _Budget()
    block = header.cluster_bytes
    bitmap = -(-(block // SECTOR // 8) // SECTOR) * SECTOR
    for piece in _numbers(image, header.tables["map"], header.tables["entries"], 4, big=True):
        budget.take(len(piece))
        last = max((one for one in piece if one != 0xFFFFFFFF), default=-1)
        if last >= 0 and last * SECTOR + bitmap + block > image.size:
            raise bad("its data go on beyond its end")


def _vhdx(image: Image, header: Header) -> None:
    budget = _Budget()
    block, chunk, number = header.cluster_bytes, header.tables["chunk"], 0
    for piece in _numbers(image, header.tables["map"], header.tables["entries"], 8, big=False):
        budget.take(len(piece))
        for entry in piece:
            number += 1
            # After so many blocks comes the place of a bitmap, which only differences have.
            if number % (chunk + 1) and entry & 7 in (6, 7) and (entry & ~0xFFFFF) + block > image.size:
                raise bad("its data go on beyond its end")


def _raw(image: Image, _header: Header) -> None:
    """Raw data say nothing about their length; what they hold may."""
    if not image.size:
        raise bad("it is empty")
    if image.read(32769, 5) == b"CD001":
        (sectors,) = struct.unpack("<I", image.read(32768 + 80, 4).ljust(4, b"\0"))
        (sector,) = struct.unpack("<H", image.read(32768 + 128, 2).ljust(2, b"\0"))
        if sectors * sector > image.size:
            raise bad("its ISO file system goes on beyond its end")
        return
    for sector in (SECTOR, 4096):
        table = image.read(sector, 92)
        if table.startswith(b"EFI PART") and len(table) == 92:
            (backup,) = struct.unpack_from("<Q", table, 32)
            if (backup + 1) * sector > image.size:
                raise bad("its partition table (GPT) is of a larger disk")
            return
    boot = image.read(0, SECTOR)
    if boot[510:] == b"\x55\xaa":
        for number in range(4):
            kind = boot[446 + 16 * number + 4]
            start, length = struct.unpack_from("<II", boot, 446 + 16 * number + 8)
            # Boot sectors of file systems end alike; what stands there then is no partition.
            if boot[446 + 16 * number] not in (0, 0x80):
                return
            if kind and length and (start + length) * SECTOR > image.size + _SLACK:
                raise bad("a partition goes on beyond its end")


_CHECKS: dict[str, t.Callable[[Image, Header], None]] = {
    "raw": _raw,
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
}
