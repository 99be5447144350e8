# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of disk images: what is read of them, and that nothing but a refusal comes of what an attacker writes."""

from __future__ import annotations

import random
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._image import headers, layout
from ansible_collections.cnvm.platform.plugins.module_utils._image.formats import FORMATS
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import GOOD, MIB, Bytes


@pytest.mark.parametrize("name", GOOD)
def test_good_images_are_read(name: str) -> None:
    kind = name.split()[0]
    image = GOOD[name]()
    assert headers.identify(image) == {"raw": (), "raw iso": ("iso",)}.get(name, () if kind == "raw" else (kind,))
    header = headers.parse(image, kind)
    assert header.format == kind
    assert header.external == ()
    expected = {"raw iso": 40 * 2048, "vdi fixed": 2 * MIB, "vhd fixed": MIB, "vhdx fixed": 8 * MIB}
    assert header.virtual_bytes == header.most_virtual_bytes or kind == "vhd"
    assert header.virtual_bytes == expected.get(name, 64 * MIB)
    layout.check(image, header)


def test_what_a_qcow2_says() -> None:
    image = images.qcow2(
        virtual=3 * MIB, bits=12, backing=b"/base.raw", backing_format=b"raw", incompatible=1, snapshots=2
    )
    header = headers.parse(image, "qcow2")
    assert (header.virtual_bytes, header.cluster_bytes, header.version) == (3 * MIB, 4096, 3)
    assert (header.backing, header.backing_format) == ("/base.raw", "raw")
    assert (header.dirty, header.corrupt, header.snapshots, header.encrypted) == (True, False, 2, "")
    assert header.external == ("the backing file '/base.raw'",)
    assert headers.parse(images.qcow2(incompatible=2), "qcow2").corrupt
    assert headers.parse(images.qcow2(crypt=2), "qcow2").encrypted == "luks"
    assert headers.parse(images.qcow2(incompatible=8), "qcow2").compression == "zstd"


def test_qemus_word_for_a_backing_format_becomes_ours() -> None:
    header = headers.parse(images.qcow2(backing=b"b.vhd", backing_format=b"vpc"), "qcow2")
    assert header.backing_format == "vhd"


@pytest.mark.parametrize("words", [{"incompatible": 4, "data_file": b"/etc/shadow"}, {"data_file": b"/etc/shadow"}])
def test_a_data_file_is_seen(words: dict) -> None:
    assert headers.parse(images.qcow2(**words), "qcow2").data_file == "/etc/shadow"


def test_a_data_file_without_a_name_is_seen() -> None:
    assert headers.parse(images.qcow2(incompatible=4), "qcow2").external == ("the data file '(without a name)'",)


BAD_QCOW2: dict[str, t.Any] = {
    "version 1": {"version": 1},
    "version 99": {"version": 99},
    "unknown feature": {"incompatible": 32},
    "tiny clusters": {"bits": 8},
    "huge clusters": {"bits": 22},
    "an L1 table of 2^31 entries": {"l1_entries": 2**31},
    "an L1 table that is too small": {"l1_entries": 0},
    "reference counts of 128 bits": {"refcount_order": 7},
    "a name with a NUL": {"backing": b"/etc/passwd\0.raw"},
    "a name with a line end": {"backing": b"/etc/pass\nwd"},
    "a name that is no text": {"backing": b"\xff\xfe"},
    "a name as long as 2000": {"backing": b"a" * 2000},
    "a pebibyte in small clusters": {"virtual": 2**50, "bits": 12},
    "extended tables in small clusters": {"bits": 12, "incompatible": 16},
}


@pytest.mark.parametrize("name", BAD_QCOW2)
def test_a_qcow2_that_nobody_makes(name: str) -> None:
    with pytest.raises(Refused, match="damaged, cut off or forged"):
        headers.parse(images.qcow2(**BAD_QCOW2[name]), "qcow2")


def test_an_extension_longer_than_the_header() -> None:
    image = images.qcow2()
    image.parts[0] = image.parts[0][:104] + b"\xe2\x79\x2a\xca\xff\xff\xff\xf0" + bytes(8)
    with pytest.raises(Refused, match="longer than the header"):
        headers.parse(image, "qcow2")


def test_tables_beyond_the_end() -> None:
    with pytest.raises(Refused, match="beyond its end"):
        headers.parse(images.qcow2().cut(100_000), "qcow2")


# -- VMware


def text_vmdk(lines: str) -> Bytes:
    return Bytes(0, {0: f'# Disk DescriptorFile\nversion=1\nCID=1\n{lines}\ncreateType="monolithicFlat"\n'.encode()})


def test_a_descriptor_names_its_extents() -> None:
    header = headers.parse(text_vmdk('RW 2048 FLAT "/etc/shadow" 0\nRW 10 FLAT "b" 0'), "vmdk")
    assert header.extents == ("/etc/shadow", "b")
    assert header.virtual_bytes == 2058 * 512


def test_a_descriptor_without_extents_is_no_image_either() -> None:
    assert headers.parse(text_vmdk(""), "vmdk").external


@pytest.mark.parametrize(
    "head",
    [
        b"# Disk DescriptorFile\nversion=1\n",
        b"#x\n   \n#y\nversion=3\r\n",
        b"version=2\n",
    ],
)
def test_descriptors_are_recognised_as_qemu_does(head: bytes) -> None:
    assert headers.identify(Bytes(0, {0: head + b'createType="vmfs"\n'})) == ("vmdk",)


def test_a_sparse_image_without_a_size_would_have_its_descriptor_followed() -> None:
    with pytest.raises(Refused, match="descriptor only"):
        headers.parse(images.vmdk(0, descriptor=b'createType="monolithicFlat"\nRW 1 FLAT "/etc/shadow" 0\n'), "vmdk")


PARENT = images.DESCRIPTOR + b'parentFileNameHint="/etc/shadow"\n'


@pytest.mark.parametrize("place", [1, 60])
def test_a_parent_is_seen_wherever_its_name_stands(place: int) -> None:
    image = images.vmdk(descriptor=PARENT, descriptor_at=place)
    if place != 1:
        image.put(512, images.DESCRIPTOR)
    assert headers.parse(image, "vmdk").backing == "/etc/shadow"


def test_a_parent_where_qemu_looks_and_the_header_does_not() -> None:
    image = images.vmdk(descriptor_at=60)
    image.put(512, PARENT)
    assert headers.parse(image, "vmdk").backing == "/etc/shadow"


def test_a_parent_by_its_number_only() -> None:
    changed = images.DESCRIPTOR.replace(b"parentCID=ffffffff", b"parentCID=12345678")
    assert headers.parse(images.vmdk(descriptor=changed), "vmdk").backing


def test_the_footer_of_a_stream_decides() -> None:
    header = headers.parse(images.vmdk(2048, footer=True, footer_sectors=131072), "vmdk")
    assert header.virtual_bytes == 64 * MIB
    assert (header.subformat, headers.parse(images.vmdk(compressed=True), "vmdk").subformat) == (
        "monolithicSparse",
        "streamOptimized",
    )


def test_a_stream_without_its_end() -> None:
    image = images.vmdk(footer=True)
    with pytest.raises(Refused, match="footer"):
        headers.parse(image.cut(image.size - 512), "vmdk")


def test_parts_of_images_are_refused() -> None:
    with pytest.raises(Refused, match="one part"):
        headers.parse(images.vmdk(descriptor=b"nothing"), "vmdk")
    with pytest.raises(Refused, match="one part"):
        headers.parse(Bytes(2048, {0: b"COWD"}), "vmdk")


# -- The others


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (images.vdi(parent=True), "vdi"),
        (images.vdi(kind=4), "vdi"),
        (images.vhd(kind=4), "vhd"),
        (images.vhdx(bits=2), "vhdx"),
        (images.vhdx(locator=True), "vhdx"),
    ],
)
def test_differences_to_a_parent_are_seen(image: Bytes, kind: str) -> None:
    assert headers.parse(image, kind).external == ("a parent image",)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (images.vdi(entries=3), "vdi"),
        (images.vdi(entries=2**31), "vdi"),
        (images.vdi(block=12345), "vdi"),
        (images.vdi(kind=9), "vdi"),
        (images.vhdx(block=12345), "vhdx"),
        (images.vhdx(virtual=2**61), "vhdx"),
        (images.vhdx(sector=100), "vhdx"),
        (images.vhd(kind=2), "vhd"),
        (images.vhd_fixed().cut(MIB), "vhd"),
        (images.vhdx().cut(2 * MIB + 100), "vhdx"),
        (Bytes(0), "qcow2"),
        (Bytes(10), "vdi"),
        (Bytes(10), "vhd"),
        (Bytes(10), "vhdx"),
        (Bytes(10), "vmdk"),
    ],
)
def test_what_makes_no_sense_is_refused(image: Bytes, kind: str) -> None:
    with pytest.raises(Refused):
        headers.parse(image, kind)


def test_a_vhd_with_a_wrong_checksum() -> None:
    image = images.vhd_fixed()
    image.put(MIB, image.parts[MIB][:48] + b"\7" + image.parts[MIB][49:])
    with pytest.raises(Refused, match="checksum"):
        headers.parse(image, "vhd")


def test_sizes_of_a_vhd_under_both_readings() -> None:
    geometry = headers.parse(images.vhd_fixed(creator=b"qemu", geometry=(3, 4, 17)), "vhd")
    assert (geometry.virtual_bytes, geometry.most_virtual_bytes) == (3 * 4 * 17 * 512, MIB)
    exact = headers.parse(images.vhd_fixed(geometry=(3, 4, 17)), "vhd")
    assert (exact.virtual_bytes, exact.most_virtual_bytes) == (MIB, MIB)


def test_a_log_that_waits_makes_a_vhdx_dirty() -> None:
    assert headers.parse(images.vhdx(log=True), "vhdx").dirty
    assert not headers.parse(images.vhdx(), "vhdx").dirty


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\xfd7zXZ\0rest", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\n <!DOCTYPE html>", "web page"),
        (b"<?xml version", "XML"),
        (bytes(257) + b"ustar", "tar"),
    ],
)
def test_what_is_no_image_at_all_has_a_name(head: bytes, words: str) -> None:
    assert words in headers.other_file(Bytes(4096, {0: head}))
    assert headers.other_file(GOOD["raw"]()) == ""


# -- Whatever an attacker writes


@settings(max_examples=60)
@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2**32), st.integers(1, 12))
def test_changed_headers_are_read_or_refused_and_never_at_length(name: str, seed: int, changes: int) -> None:
    image = GOOD[name]()
    chance = random.Random(seed)
    parts = sorted(image.parts)
    for _n in range(changes):
        at = chance.choice(parts)
        part = bytearray(image.parts[at])
        where = chance.randrange(min(len(part), 600))
        part[where] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        image.parts[at] = bytes(part)
    image.bytes_read = 0
    for kind in FORMATS:
        try:
            headers.identify(image)
            header = headers.parse(image, kind)
        except Refused:
            continue
        assert 0 <= header.virtual_bytes <= header.most_virtual_bytes <= 2**62
    # Tables are read later, under a limit of their own.
    assert image.bytes_read < 4 * MIB


def test_a_format_that_is_not_known_is_refused() -> None:
    """An overlay may name any for what is below it."""
    with pytest.raises(Refused, match="of the format 'qed' are not supported"):
        headers.parse(Bytes(MIB), "qed")


@settings(max_examples=150)
@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(kind: str, raw: bytes) -> None:
    start = {"qcow2": b"QFI\xfb\0\0\0\3", "vmdk": b"KDMV", "vhdx": b"vhdxfile", "vhd": b"conectix"}.get(kind, b"")
    for head in (start, b"# Disk DescriptorFile\nversion=1\ncreateType" if kind == "vmdk" else b""):
        image = Bytes(0, {0: head + raw})
        headers.identify(image)
        headers.other_file(image)
        try:
            header = headers.parse(image, kind)
            layout.check(image, header)
        except Refused:
            pass
