# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Headers of disk images, read by our own code under limits, before any program may open the image.

``qemu-img`` follows what a header names: a backing file, an external data file, extents. In an image from outside that
can be any file of the host (CVE-2015-5163, CVE-2024-32498). So these functions look where QEMU would look, also where
a format's specification says something else, and take nothing for granted: every offset and length is compared first.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import typing as t
import uuid

from .._core.errors import Refused
from .formats import of_driver

SECTOR = 512
# Limits of QEMU's own drivers; what is larger was not made by a program that means well.
QCOW2_MOST_L1_BYTES = 32 * 2**20
QCOW2_MOST_REFTABLE_BYTES = 8 * 2**20
MOST_NAME_BYTES = 1023
VMDK_DESCRIPTOR_BYTES = 20 * SECTOR
VMDK_MOST_DESCRIPTOR_BYTES = 2**20
VMDK_END = 2**64 - 1


class Image(t.Protocol):
    """The bytes of a file. ``read`` returns fewer than asked for only at the end."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image says about itself.

    ``virtual_bytes``: the size that a guest sees. ``most_virtual_bytes``: the same under the least friendly reading,
    where programs differ. ``backing``: name of the file below, as it is written in the image. ``parent``: it is a
    difference to another image, whose name is of no use. ``data_file`` and ``extents``: other files that hold its
    content. ``version``: of the format. ``dirty``: it was not closed. ``corrupt``: marked as damaged.
    """

    format: str
    virtual_bytes: int
    most_virtual_bytes: int = 0
    version: int = 0
    subformat: str = ""
    cluster_bytes: int = 0
    backing: str = ""
    backing_format: str = ""
    parent: bool = False
    data_file: str = ""
    extents: tuple[str, ...] = ()
    encrypted: str = ""
    compression: str = ""
    snapshots: int = 0
    dirty: bool = False
    corrupt: bool = False
    # Where the tables are, for layout.py.
    tables: t.Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def external(self) -> tuple[str, ...]:
        """Everything that the content depends on beside the file itself, in words."""
        found = []
        if self.backing:
            found.append(f"the backing file {self.backing!r}")
        if self.parent:
            found.append("a parent image")
        if self.data_file:
            found.append(f"the data file {self.data_file!r}")
        found += [f"the extent {name!r}" for name in self.extents]
        return tuple(found)


def bad(what: str) -> Refused:
    """The image is not what its format demands."""
    return Refused(f"The image is damaged, cut off or forged: {what}.", hint="Get it again and compare its checksum.")


def _exactly(image: Image, offset: int, length: int, what: str) -> bytes:
    if offset + length > image.size:
        raise bad(f"{what} would lie beyond its end")
    found = image.read(offset, length)
    if len(found) != length:
        raise bad(f"{what} cannot be read")
    return found


def _name(raw: bytes, what: str) -> str:
    """A file name that a header holds. One with a NUL byte is two names: one for us and one for C."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text or any(character < " " or character == "\x7f" for character in text):
        raise bad(f"{what} is no name of a file")
    return text


def _power(number: int, least: int, most: int, what: str) -> int:
    if not least <= number <= most or number & (number - 1):
        raise bad(f"{what} is {number}")
    return number


# -- Which format it is


def _is_vmdk_text(head: bytes) -> bool:
    """Whether QEMU would take it for a VMDK descriptor: comments and empty lines, then ``version=``."""
    for line in head.split(b"\n"):
        if line.startswith(b"#") or not line.strip(b" \r"):
            continue
        return bool(re.match(rb"version=[123]\r?\Z", line))
    return False


def identify(image: Image) -> tuple[str, ...]:
    """All formats whose marks the file bears, in the words of the options where there is one; none for raw data.

    More than one is a file that shows each program another face.
    """
    head = image.read(0, 4096)
    tail = image.read(max(0, image.size - SECTOR), SECTOR)
    found = []
    for magic, name in (
        (b"QFI\xfb\x00\x00\x00\x01", "qcow"),
        (b"QFI\xfb", "qcow2"),
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"conectix", "vhd"),
        (b"vhdxfile", "vhdx"),
        (b"LUKS\xba\xbe", "luks"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
        (b"Bochs Virtual HD Image", "bochs"),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    ):
        if head.startswith(magic):
            found.append(name)
            break
    if b"# Disk DescriptorFile" in head[:SECTOR] or _is_vmdk_text(head):
        found.append("vmdk")
    if head[64:68] == b"\x7f\x10\xda\xbe":
        found.append("vdi")
    if tail.startswith(b"conectix") and image.size >= SECTOR:
        found.append("vhd")
    if tail.startswith(b"koly"):
        found.append("dmg")
    if image.read(32769, 5) == b"CD001":
        found.append("iso")
    return tuple(dict.fromkeys(found))


# Files that people take for images, or that a server sends instead of one.
_OTHER_FILES = (
    (b"\x1f\x8b", "is compressed with gzip"),
    (b"BZh", "is compressed with bzip2"),
    (b"\xfd7zXZ\0", "is compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
    (b"PK\x03\x04", "is a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
)


def other_file(image: Image) -> str:
    """What a file is that is no disk image at all; empty when nothing of that kind is known."""
    head = image.read(0, SECTOR)
    for magic, words in _OTHER_FILES:
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return "is a tar archive (an OVA is one)"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page or XML"
    return ""


# -- One format each


def parse(image: Image, kind: str) -> Header:
    """The header of an image of the format ``kind``. Refused when it is not one, or not a sound one."""
    if kind not in _PARSERS:
        # The word of an overlay, or of a domain's XML.
        raise Refused(f"Images of the format {kind!r} are not supported.", hint=f"Supported are {', '.join(_PARSERS)}.")
    header = _PARSERS[kind](image)
    most = max(header.virtual_bytes, header.most_virtual_bytes)
    if most > 2**62:
        raise bad(f"its virtual size is {most}")
    return dataclasses.replace(header, most_virtual_bytes=most)


def _raw(image: Image) -> Header:
    return Header("raw", image.size)


def _qcow2(image: Image) -> Header:
    fixed = _exactly(image, 0, 72, "the header")
    magic, version, backing_at, backing_size, cluster_bits = struct.unpack_from(">4sIQII", fixed)
    virtual, crypt, l1_entries, l1_at, table_at, table_clusters, snapshots = struct.unpack_from(">QIIQQII", fixed, 24)
    if magic != b"QFI\xfb":
        raise bad("it is no qcow2 image")
    if version not in (2, 3):
        raise bad(f"its version is {version}")
    if not 9 <= cluster_bits <= 21:
        raise bad(f"its clusters have 2^{cluster_bits} bytes")
    cluster = 1 << cluster_bits
    incompatible, refcount_order, length, compression = 0, 4, 72, 0
    if version == 3:
        more = _exactly(image, 72, 32, "the header")
        incompatible, _compatible, _autoclear, refcount_order, length = struct.unpack(">QQQII", more)
        if length < 104 or length % 8 or length > cluster:
            raise bad(f"its header has {length} bytes")
        if length > 104:
            compression = _exactly(image, 104, 1, "the header")[0]
    if incompatible & ~0b11111:
        raise bad(f"it needs features that are not known ({incompatible:#x})")
    if refcount_order > 6 or compression > 1 or bool(compression) != bool(incompatible & 0b1000):
        raise bad("its header contradicts itself")
    extended = bool(incompatible & 0b10000)
    if extended and cluster_bits < 14:
        raise bad("its header contradicts itself")
    if l1_entries * 8 > QCOW2_MOST_L1_BYTES or table_clusters * cluster > QCOW2_MOST_REFTABLE_BYTES:
        raise bad("its tables are larger than any program makes them")
    per_table = cluster // (16 if extended else 8)
    needed = -(-virtual // (cluster * per_table))
    if l1_entries < needed:
        raise bad("its first table does not cover its size")
    for at, size, what in (
        (l1_at, needed * 8, "its first table"),
        (table_at, table_clusters * cluster, "its table of reference counts"),
    ):
        if size and (at % cluster or not at or at + size > image.size):
            raise bad(f"{what} lies beyond its end or nowhere")
    backing = ""
    if backing_at and backing_size:
        if backing_size > MOST_NAME_BYTES or backing_at + backing_size > cluster:
            raise bad("the name of its backing file lies outside of its header")
        backing = _name(_exactly(image, backing_at, backing_size, "the name of its backing file"), "its backing file")
    texts = _qcow2_extensions(image, length, min(cluster, backing_at or cluster))
    data_file = texts.get(0x44415441, "")
    if incompatible & 0b100:
        data_file = data_file or "(without a name)"
    return Header(
        "qcow2",
        virtual,
        version=version,
        cluster_bytes=cluster,
        backing=backing,
        backing_format=of_driver(texts.get(0xE2792ACA, "")) if backing else "",
        data_file=data_file,
        encrypted={0: "", 1: "aes", 2: "luks"}.get(crypt, f"method {crypt}"),
        compression="zstd" if compression else "zlib",
        snapshots=snapshots,
        dirty=bool(incompatible & 0b1),
        corrupt=bool(incompatible & 0b10),
        tables={"l1": l1_at, "entries": needed, "per_table": per_table, "extended": int(extended)},
    )


def _qcow2_extensions(image: Image, start: int, end: int) -> dict[int, str]:
    """The extensions that hold text: format of the backing file, name of the data file."""
    texts: dict[int, str] = {}
    at = start
    while at + 8 <= end and at + 8 <= image.size:
        kind, length = struct.unpack(">II", _exactly(image, at, 8, "a header extension"))
        if not kind:
            break
        if length > end - at - 8:
            raise bad("a header extension is longer than the header")
        if kind in (0xE2792ACA, 0x44415441):
            if kind in texts or length > MOST_NAME_BYTES:
                raise bad("a header extension is there twice or too long")
            texts[kind] = _name(_exactly(image, at + 8, length, "a header extension"), "a name in its header")
        at += 8 + (length + 7) // 8 * 8
    return texts


_EXTENT = re.compile(rb"\s*(RW|RDONLY|NOACCESS)\s+\d+\s+\w+\s+\"([^\n\r\"]*)\"", re.IGNORECASE)


def _vmdk(image: Image) -> Header:
    head = image.read(0, SECTOR)
    if head.startswith(b"COWD"):
        raise bad("it is one part of a VMware image, in an old format")
    if not head.startswith(b"KDMV"):
        return _vmdk_text(image)
    values = struct.unpack_from("<IIQQQQIQQQ", _exactly(image, 4, SECTOR - 4, "the header"))
    capacity, descriptor_at, directory_at = values[2], values[4], values[8]
    if not capacity:
        # Then QEMU reads the descriptor for extents, and opens whatever they name.
        raise bad("it has a descriptor only, and no size of its own")
    at_end = directory_at == VMDK_END
    if at_end:
        # QEMU takes the copy of the header at the end, whatever the first one says.
        end = image.size // SECTOR * SECTOR if image.size % SECTOR == 0 else (image.size // SECTOR + 1) * SECTOR
        footer = _exactly(image, max(0, end - 3 * SECTOR), 3 * SECTOR, "its footer")
        marker, last = footer[:SECTOR], footer[2 * SECTOR :]
        if (
            struct.unpack_from("<II", marker, 8) != (0, 3)
            or footer[SECTOR : SECTOR + 4] != b"KDMV"
            or struct.unpack_from("<QII", last) != (0, 0, 0)
        ):
            raise bad("its footer is missing")
        head = footer[SECTOR : 2 * SECTOR]
        values = struct.unpack_from("<IIQQQQIQQQ", head, 4)
    version, flags, capacity, grain, _at, _size, per_table, backup_at, directory_at, data_at = values
    (algorithm,) = struct.unpack_from("<H", head, 77)
    if version > 3 or not capacity or capacity > 2**53 or directory_at == VMDK_END:
        raise bad("its header makes no sense")
    _power(grain, 1, 0x200000, "its grain")
    if not 1 <= per_table <= 512:
        raise bad(f"its tables have {per_table} entries")
    entries = -(-capacity // (grain * per_table))
    if entries * 4 > QCOW2_MOST_L1_BYTES:
        raise bad("its tables are larger than any program makes them")
    for at, size, what in (
        (directory_at * SECTOR, entries * 4, "its directory"),
        (backup_at * SECTOR if flags & 2 else 0, entries * 4, "its second directory"),
        (data_at * SECTOR, 0, "its content"),
    ):
        if at + size > image.size:
            raise bad(f"{what} lies beyond its end")
    # Where the header puts the descriptor, and where QEMU looks for it.
    texts = [image.read(SECTOR, VMDK_DESCRIPTOR_BYTES)]
    if descriptor_at * SECTOR < image.size:
        texts.append(image.read(descriptor_at * SECTOR, VMDK_MOST_DESCRIPTOR_BYTES))
    texts = [text.split(b"\0")[0] for text in texts]
    if b"parentCID" not in texts[0]:
        raise bad("it has no descriptor: it is one part of a VMware image")
    parent, extents = _vmdk_names(texts)
    compressed = algorithm == 1
    return Header(
        "vmdk",
        capacity * SECTOR,
        version=version,
        subformat="streamOptimized" if compressed else "monolithicSparse",
        cluster_bytes=grain * SECTOR,
        backing=parent,
        backing_format="vmdk" if parent else "",
        # The one extent of a sparse image is the file itself, under the name that it had when it was made.
        extents=extents if len(extents) > 1 else (),
        compression="deflate" if compressed else "",
        tables={
            "directory": directory_at * SECTOR,
            "entries": entries,
            "per_table": per_table,
            "zeroed": int(bool(flags & 4)),
        },
    )


def _vmdk_text(image: Image) -> Header:
    """A descriptor in a file of its own: the content lies in the files that it names."""
    text = image.read(0, VMDK_MOST_DESCRIPTOR_BYTES)
    if b"createType" not in text or (b"version=" not in text and b"# Disk DescriptorFile" not in text):
        raise bad("it is no VMware image")
    parent, extents = _vmdk_names([text])
    sectors = sum(int(found) for found in re.findall(rb"(?m)^\s*RW\s+(\d{1,18})\s", text))
    kind = re.search(rb"createType\s*=\s*\"(\w+)\"", text)
    return Header(
        "vmdk",
        sectors * SECTOR,
        subformat=kind.group(1).decode() if kind else "",
        backing=parent,
        backing_format="vmdk" if parent else "",
        extents=extents or ("(none that can be read)",),
    )


def _vmdk_names(texts: t.Iterable[bytes]) -> tuple[str, tuple[str, ...]]:
    """(parent, extents) of descriptors."""
    parent, extents = "", []
    for text in texts:
        # QEMU takes the word wherever it stands.
        found = re.search(rb"parentFileNameHint..([^\"]*)", text, re.DOTALL)
        if found:
            parent = found.group(1)[:MOST_NAME_BYTES].decode("utf-8", "backslashreplace") or "(without a name)"
        else:
            identity = re.search(rb"parentCID\s*=\s*([0-9a-fA-F]+)", text)
            if identity and int(identity.group(1)[:16], 16) != 0xFFFFFFFF:
                parent = "(without a name)"
        for line in text.split(b"\n"):
            named = _EXTENT.match(line)
            if named and named.group(2).decode("utf-8", "backslashreplace") not in extents:
                extents.append(named.group(2).decode("utf-8", "backslashreplace"))
    return parent, tuple(extents)


def _vdi(image: Image) -> Header:
    head = _exactly(image, 0, SECTOR, "the header")
    signature, version, _size, kind = struct.unpack_from("<IIII", head, 64)
    map_at, data_at = struct.unpack_from("<II", head, 340)
    (sector,) = struct.unpack_from("<I", head, 360)
    virtual, block, extra, blocks, allocated = struct.unpack_from("<QIIII", head, 368)
    if signature != 0xBEDA107F or version != 0x00010001:
        raise bad("it is no VirtualBox image of a version that is known")
    _power(block, 2**12, 2**28, "its block")
    if sector != SECTOR or extra or kind not in (1, 2, 3, 4):
        raise bad("its header makes no sense")
    if blocks > 0x3FFFFFFF or allocated > blocks or virtual > blocks * block:
        raise bad("its table does not cover its size")
    if map_at % SECTOR or data_at % SECTOR or map_at + blocks * 4 > image.size or map_at < SECTOR:
        raise bad("its table lies beyond its end or nowhere")
    return Header(
        "vdi",
        -(-virtual // SECTOR) * SECTOR,
        version=1,
        subformat="fixed" if kind == 2 else "dynamic",
        cluster_bytes=block,
        # The identities of the image that it is linked to, and of its parent.
        parent=kind in (3, 4) or any(head[424:456]),
        tables={"map": map_at, "entries": blocks, "data": data_at},
    )


# Programs that put the size into the footer. The others mean the geometry, which cannot express every size.
_VHD_EXACT = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"wa\0\0", b"vbox")
_VHD_MOST_GEOMETRY = 65535 * 16 * 255


def _vhd_footer(raw: bytes) -> tuple[int, int, int, int, bytes]:
    """(kind, place of the dynamic header, size by the footer, size by the geometry, creator)."""
    if not raw.startswith(b"conectix"):
        raise bad("it is no Virtual PC image")
    (checksum,) = struct.unpack_from(">I", raw, 64)
    if ~(sum(raw[:64]) + sum(raw[68:])) & 0xFFFFFFFF != checksum:
        raise bad("the checksum of its footer is wrong")
    (place,) = struct.unpack_from(">Q", raw, 16)
    (size,) = struct.unpack_from(">Q", raw, 48)
    cylinders, heads, sectors, kind = struct.unpack_from(">HBBI", raw, 56)
    return kind, place, size, cylinders * heads * sectors * SECTOR, raw[28:32]


def _vhd(image: Image) -> Header:
    head = image.read(0, SECTOR)
    tail = _exactly(image, max(0, image.size - SECTOR), SECTOR, "its footer")
    dynamic = head.startswith(b"conectix")
    kind, place, size, geometry, creator = _vhd_footer(head if dynamic else tail)
    exact = creator in _VHD_EXACT or geometry == _VHD_MOST_GEOMETRY * SECTOR
    virtual = size // SECTOR * SECTOR if exact else geometry
    if virtual > 0xFF000000 * SECTOR:
        raise bad(f"its virtual size is {virtual}")
    if not dynamic:
        if kind != 2:
            raise bad("its header is missing")
        if virtual > image.size - SECTOR:
            raise bad("it is shorter than it says")
        return Header("vhd", virtual, most_virtual_bytes=max(size, geometry), subformat="fixed")
    if kind not in (3, 4):
        raise bad(f"its kind is {kind}")
    if not tail.startswith(b"conectix"):
        raise bad("its footer is missing")
    more = _exactly(image, place, 1024, "its second header")
    (table_at,) = struct.unpack_from(">Q", more, 16)
    entries, block = struct.unpack_from(">II", more, 28)
    if not more.startswith(b"cxsparse"):
        raise bad("its second header is missing")
    _power(block, SECTOR, 2**30, "its block")
    if entries * block < virtual or table_at + entries * 4 > image.size:
        raise bad("its table does not cover its size, or lies beyond its end")
    return Header(
        "vhd",
        virtual,
        most_virtual_bytes=max(size, geometry),
        subformat="dynamic",
        cluster_bytes=block,
        parent=kind == 4,
        tables={"map": table_at, "entries": entries},
    )


_VHDX_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
_VHDX_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le


def _vhdx(image: Image) -> Header:
    if image.read(0, 8) != b"vhdxfile":
        raise bad("it is no Hyper-V image")
    heads = [image.read(at, 64) for at in (2**16, 2**17)]
    good = [head for head in heads if head.startswith(b"head") and len(head) == 64]
    if not good:
        raise bad("its headers are missing")
    regions = _vhdx_entries(image, 192 * 1024, b"regi", 8, 16, 2047)
    if _VHDX_BAT not in regions or _VHDX_METADATA not in regions:
        raise bad("its tables are missing")
    bat_at, bat_length = struct.unpack("<QI", regions[_VHDX_BAT][:12])
    metadata_at, metadata_length = struct.unpack("<QI", regions[_VHDX_METADATA][:12])
    if bat_at + bat_length > image.size or metadata_at + metadata_length > image.size:
        raise bad("its tables lie beyond its end")
    items = _vhdx_entries(image, metadata_at, b"metadata", 10, 32, 2047)

    def item(key: bytes, layout: str) -> tuple[int, ...]:
        if key not in items:
            raise bad("its description is not complete")
        offset, length = struct.unpack("<II", items[key][:8])
        size = struct.calcsize(layout)
        if length < size or offset + size > metadata_length:
            raise bad("its description makes no sense")
        return struct.unpack(layout, _exactly(image, metadata_at + offset, size, "its description"))

    block, bits = item(_VHDX_PARAMETERS, "<II")
    (virtual,) = item(_VHDX_SIZE, "<Q")
    (sector,) = item(_VHDX_SECTOR, "<I")
    _power(block, 2**20, 2**28, "its block")
    _power(sector, SECTOR, 4096, "its sector")
    blocks = -(-virtual // block)
    chunk = 2**23 * sector // block
    entries = blocks + max(0, blocks - 1) // chunk
    if entries * 8 > bat_length:
        raise bad("its table does not cover its size")
    return Header(
        "vhdx",
        virtual,
        version=1,
        subformat="fixed" if bits & 1 else "dynamic",
        cluster_bytes=block,
        parent=bool(bits & 2) or _VHDX_PARENT in items,
        # A log that waits to be written into the image. It has a name as long as it is in use.
        dirty=any(any(head[48:64]) for head in good),
        tables={"map": bat_at, "entries": entries, "chunk": chunk},
    )


def _vhdx_entries(image: Image, at: int, signature: bytes, count_at: int, first: int, most: int) -> dict[bytes, bytes]:
    """The entries of one of its two kinds of tables: what follows the GUID, by the GUID."""
    head = _exactly(image, at, 2**16, "a table")
    if not head.startswith(signature):
        raise bad("one of its tables is missing")
    (count,) = struct.unpack_from("<H", head, count_at)
    if count > most or first + count * 32 > len(head):
        raise bad("one of its tables is longer than any program makes it")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        entry = head[first + number * 32 : first + number * 32 + 32]
        if entry[:16] in found:
            raise bad("one of its tables has an entry twice")
        found[entry[:16]] = entry[16:]
    return found


_PARSERS: dict[str, t.Callable[[Image], Header]] = {
    "raw": _raw,
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
}
