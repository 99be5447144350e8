# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images made byte by byte: what no program would make, but an attacker would."""

from __future__ import annotations

import struct
import typing as t
import uuid
from pathlib import Path

SECTOR = 512
MIB = 2**20


class Bytes:
    """A sparse file in memory, as the readers of headers take it. Counts what is read of it."""

    def __init__(self, size: int = 0, parts: t.Optional[t.Mapping[int, bytes]] = None) -> None:
        self.parts = dict(parts or {})
        self.size = max([size, *(at + len(part) for at, part in self.parts.items())])
        self.bytes_read = 0

    def put(self, at: int, part: bytes) -> Bytes:
        self.parts[at] = part
        self.size = max(self.size, at + len(part))
        return self

    def cut(self, size: int) -> Bytes:
        """The same, cut off: as a download that broke."""
        kept = {at: part[: size - at] for at, part in self.parts.items() if at < size}
        return Bytes(size, kept)

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        self.bytes_read += end - offset
        found = bytearray(end - offset)
        for at, part in self.parts.items():
            first, last = max(at, offset), min(at + len(part), end)
            if first < last:
                found[first - offset : last - offset] = part[first - at : last - at]
        return bytes(found)

    def write(self, path: Path) -> Path:
        with open(path, "wb") as file:
            for at, part in self.parts.items():
                file.seek(at)
                file.write(part)
            file.truncate(self.size)
        return path


def qcow2(
    virtual: int = 64 * MIB,
    *,
    version: int = 3,
    bits: int = 16,
    backing: bytes = b"",
    backing_format: bytes = b"",
    data_file: bytes = b"",
    incompatible: int = 0,
    crypt: int = 0,
    snapshots: int = 0,
    l1_entries: int = -1,
    refcount_order: int = 4,
    clusters: t.Sequence[int] = (),
    compressed: t.Sequence[int] = (),
) -> Bytes:
    """Header, one cluster each for the reference counts and their table, L1, one L2 table with ``clusters`` (numbers of
    host clusters) and ``compressed`` (their places in bytes), and the clusters themselves."""
    size = 1 << bits
    per_table = size // (16 if incompatible & 16 else 8)
    needed = -(-virtual // (size * per_table))
    texts = b""
    for kind, text in ((0xE2792ACA, backing_format), (0x44415441, data_file)):
        if text:
            texts += struct.pack(">II", kind, len(text)) + text.ljust(-(-len(text) // 8) * 8, b"\0")
    length = 72 if version == 2 else 112 if incompatible & 8 else 104
    at = length + len(texts) + 8 if backing else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        at,
        len(backing),
        bits,
        virtual,
        crypt,
        min(needed, 2**32 - 1) if l1_entries < 0 else l1_entries,
        3 * size,
        size,
        1,
        snapshots,
        0,
    )
    if version == 3:
        head += struct.pack(">QQQII", incompatible, 0, 0, refcount_order, length)
        head = (head + (b"\1" if incompatible & 8 else b"")).ljust(length, b"\0")
    image = Bytes(
        3 * size + max(min(needed, 2**20) * 8, 8),
        {0: head + texts + bytes(8) + backing, size: struct.pack(">Q", 2 * size)},
    )
    if clusters or compressed:
        table = 4 * size
        step = 2 if incompatible & 16 else 1
        image.put(3 * size, struct.pack(">Q", table | 1 << 63))
        entries = [number * size | 1 << 63 for number in clusters] + [place | 1 << 62 for place in compressed]
        image.put(table, bytes(size))
        for number, entry in enumerate(entries):
            image.put(table + number * 8 * step, struct.pack(">Q", entry))
        for number in clusters:
            image.put(number * size, b"data".ljust(size, b"\1"))
    return image


DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=7d0c3b1a
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 131072 SPARSE "disk.vmdk"
"""


def vmdk(
    sectors: int = 131072,
    *,
    descriptor: bytes = DESCRIPTOR,
    descriptor_at: int = 1,
    footer: bool = False,
    version: int = 1,
    grains: t.Sequence[int] = (),
    footer_sectors: int = 0,
    compressed: bool = False,
) -> Bytes:
    """A sparse VMware image with grains of 64 KiB; ``footer``: the header is at the end, as in a stream."""

    def head(capacity: int, directory: int) -> bytes:
        return struct.pack(
            "<4sIIQQQQIQQQB4sH",
            b"KDMV",
            version,
            0x30001 if footer else 1,
            capacity,
            128,
            descriptor_at,
            20,
            512,
            0,
            directory,
            128,
            0,
            b"\n \r\n",
            int(compressed),
        ).ljust(SECTOR, b"\0")

    image = Bytes(128 * SECTOR, {0: head(sectors, 2**64 - 1 if footer else 26), descriptor_at * SECTOR: descriptor})
    tables = -(-sectors // (128 * 512))
    image.put(26 * SECTOR, bytes(4 * tables))
    if grains:
        image.put(26 * SECTOR, struct.pack("<I", 32))
        image.put(32 * SECTOR, struct.pack(f"<{len(grains)}I", *grains).ljust(2048, b"\0"))
        for grain in grains:
            if grain > 1:
                image.put(grain * SECTOR, b"\1" * 65536)
    if footer:
        end = -(-image.size // SECTOR) * SECTOR
        image.put(end, struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0"))
        image.put(end + SECTOR, head(footer_sectors or sectors, 26))
        image.put(end + 2 * SECTOR, bytes(SECTOR))
    return image


def vdi(
    virtual: int = 64 * MIB,
    *,
    kind: int = 1,
    blocks: t.Sequence[int] = (),
    parent: bool = False,
    entries: int = -1,
    block: int = MIB,
) -> Bytes:
    """A VirtualBox image; ``blocks``: places of the first blocks."""
    count = -(-virtual // block) if entries < 0 else entries
    head = bytearray(SECTOR)
    head[:20] = b"<<< a disk image >>>"
    struct.pack_into("<IIII", head, 64, 0xBEDA107F, 0x00010001, 0x190, kind)
    struct.pack_into("<II", head, 340, 512, 4096)
    struct.pack_into("<I", head, 360, 512)
    struct.pack_into("<QIIII", head, 368, virtual, block, 0, count, len(blocks))
    if parent:
        head[440:456] = b"\7" * 16
    table = struct.pack(f"<{len(blocks)}I", *blocks) + b"\xff" * 4 * max(0, min(count, 10**6) - len(blocks))
    image = Bytes(4096, {0: bytes(head), 512: table})
    for one in blocks:
        image.put(4096 + one * block, b"\1" * block)
    return image


def vhd_footer(
    virtual: int,
    kind: int,
    place: int = 2**64 - 1,
    creator: bytes = b"qem2",
    geometry: tuple[int, int, int] = (4, 4, 17),
) -> bytes:
    head = bytearray(SECTOR)
    struct.pack_into(">8sIIQI4sI4sQQHBBI", head, 0, b"conectix", 2, 0x10000, place, 0, creator, 0x50003, b"Wi2k",
                     virtual, virtual, *geometry, kind)  # fmt: skip
    struct.pack_into(">I", head, 64, ~sum(head) & 0xFFFFFFFF)
    return bytes(head)


def vhd_fixed(virtual: int = MIB, **words: t.Any) -> Bytes:
    return Bytes(virtual).put(virtual, vhd_footer(virtual, 2, **words))


def vhd(virtual: int = 64 * MIB, *, kind: int = 3, blocks: t.Sequence[int] = (), **words: t.Any) -> Bytes:
    """A dynamic one with blocks of 2 MiB; ``blocks``: places of the first ones, in sectors."""
    footer = vhd_footer(virtual, kind, 512, **words)
    second = bytearray(1024)
    count = -(-virtual // (2 * MIB))
    struct.pack_into(">8sQQIII", second, 0, b"cxsparse", 2**64 - 1, 1536, 0x10000, count, 2 * MIB)
    table = struct.pack(f">{len(blocks)}I", *blocks) + b"\xff" * 4 * (count - len(blocks))
    image = Bytes(0, {0: footer, 512: bytes(second), 1536: table})
    for one in blocks:
        image.put(one * SECTOR, b"\xff" * 512 + b"\1" * 2 * MIB)
    return image.put(-(-image.size // SECTOR) * SECTOR, footer)


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def vhdx(
    virtual: int = 64 * MIB,
    *,
    block: int = 8 * MIB,
    bits: int = 0,
    log: bool = False,
    locator: bool = False,
    bat: t.Sequence[int] = (),
    sector: int = 512,
) -> Bytes:
    """A Hyper-V image; ``bat``: entries of its table, as they stand there."""
    head = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, 1, b"f" * 16, b"d" * 16, b"l" * 16 if log else bytes(16), 0, 1,
                       MIB, MIB)  # fmt: skip
    regions = struct.pack("<4sIII", b"regi", 0, 2, 0)
    regions += _guid("2dc27766-f623-4200-9d64-115e9bfd4a08") + struct.pack("<QII", 3 * MIB, MIB, 1)
    regions += _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e") + struct.pack("<QII", 2 * MIB, MIB, 1)
    items = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", block, bits)),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", virtual)),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", sector)),
    ]
    if locator:
        items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", b"parent"))
    table, values = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for name, value in items:
        table += _guid(name) + struct.pack("<IIII", 65536 + len(values), len(value), 6, 0)
        values += value
    image = Bytes(4 * MIB, {0: b"vhdxfile", 65536: head, 131072: head, 196608: regions, 2 * MIB: table})
    image.put(2 * MIB + 65536, values)
    if bat:
        image.put(3 * MIB, struct.pack(f"<{len(bat)}Q", *bat))
    for entry in bat:
        if entry & 7 == 6:
            image.size = max(image.size, (entry & ~0xFFFFF) + block)
    return image


def iso(sectors: int = 40) -> Bytes:
    descriptor = bytearray(2048)
    descriptor[:7] = b"\1CD001\1"
    struct.pack_into("<I", descriptor, 80, sectors)
    struct.pack_into("<H", descriptor, 128, 2048)
    return Bytes(sectors * 2048, {32768: bytes(descriptor)})


def gpt(size: int = 64 * MIB) -> Bytes:
    """A raw disk with a partition table."""
    table = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, size // SECTOR - 1, 34, size // SECTOR - 34)
    return Bytes(size, {510: b"\x55\xaa", SECTOR: table.ljust(92, b"\0")})


def mbr(size: int = 64 * MIB, end: int = 0) -> Bytes:
    """A raw disk with an old partition table, whose partition ends at ``end`` bytes (default: with the disk)."""
    entry = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, (end or size) // SECTOR - 2048)
    return Bytes(size, {446: entry, 510: b"\x55\xaa"})


GOOD: dict[str, t.Callable[[], Bytes]] = {
    "raw": lambda: Bytes(64 * MIB, {0: b"some boot code"}),
    "raw gpt": gpt,
    "raw mbr": mbr,
    "raw iso": iso,
    "qcow2": lambda: qcow2(clusters=(5, 6)),
    "qcow2 of version 2": lambda: qcow2(version=2, clusters=(5,)),
    "qcow2 compressed": lambda: qcow2(clusters=(5,), compressed=(5 * 65536 + 1,)),
    "qcow2 zstd": lambda: qcow2(incompatible=8, clusters=(5,)),
    "qcow2 with extended tables": lambda: qcow2(incompatible=16, clusters=(5, 6)),
    "qcow2 empty": qcow2,
    "vmdk": lambda: vmdk(grains=(128, 1, 0)),
    "vmdk stream": lambda: vmdk(footer=True, grains=(128,), compressed=True),
    "vdi": lambda: vdi(blocks=(1, 0)),
    "vdi fixed": lambda: vdi(2 * MIB, kind=2, blocks=(0, 1)),
    "vhd": lambda: vhd(blocks=(8,)),
    "vhd fixed": vhd_fixed,
    "vhdx": lambda: vhdx(bat=(4 * MIB | 6, 0, 12 * MIB | 6)),
    "vhdx fixed": lambda: vhdx(8 * MIB, bits=1, bat=(4 * MIB | 6,)),
}
