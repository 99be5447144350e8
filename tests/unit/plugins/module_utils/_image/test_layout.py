# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether all of an image is there."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._image import headers, layout
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import GOOD, MIB, Bytes

# Those that have data at their end.
WITH_DATA = [name for name in GOOD if name not in ("raw", "raw mbr", "raw iso", "qcow2 empty", "qcow2 compressed")]


def check(image: Bytes, kind: str) -> None:
    layout.check(image, headers.parse(image, kind))


@pytest.mark.parametrize("name", WITH_DATA)
def test_an_image_that_was_cut_off(name: str) -> None:
    image = GOOD[name]()
    # The last cluster of some need not be complete; what is cut off within it only a checksum tells.
    for size in (image.size - (70_000 if image.size > 131_000 else 2048), image.size // 3):
        with pytest.raises(Refused):
            check(image.cut(size), name.split()[0])


def test_the_last_cluster_need_not_be_written_to_its_end() -> None:
    image = images.qcow2(clusters=(5,))
    check(image.cut(image.size - 65000), "qcow2")
    with pytest.raises(Refused):
        check(image.cut(5 * 65536), "qcow2")


def test_compressed_clusters_beyond_the_end() -> None:
    check(images.qcow2(clusters=(5,), compressed=(6 * 65536 - 10,)), "qcow2")
    with pytest.raises(Refused, match="beyond its end"):
        check(images.qcow2(clusters=(5,), compressed=(6 * 65536 + 10,)), "qcow2")


def test_a_table_that_is_used_twice() -> None:
    image = images.qcow2(virtual=2 * 512 * MIB, clusters=(5,))
    image.put(3 * 65536, struct.pack(">QQ", 4 * 65536, 4 * 65536))
    with pytest.raises(Refused, match="used twice"):
        check(image, "qcow2")


def test_a_table_in_the_middle_of_a_cluster() -> None:
    image = images.qcow2(clusters=(5,))
    image.put(3 * 65536, struct.pack(">Q", 4 * 65536 + 512))
    with pytest.raises(Refused):
        check(image, "qcow2")


def test_a_grain_table_that_is_used_twice() -> None:
    image = images.vmdk(sectors=2 * 65536, grains=(128,))
    image.put(26 * 512, struct.pack("<II", 32, 32))
    with pytest.raises(Refused, match="used twice"):
        check(image, "vmdk")


def test_an_endless_number_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_ENTRIES", 8000)
    with pytest.raises(Refused, match="more than 8000 entries"):
        check(images.qcow2(clusters=(5,)), "qcow2")
    check(images.vdi(blocks=(0,)), "vdi")


def test_a_large_table_is_read_in_pieces() -> None:
    blocks = 2**19
    image = images.vdi(blocks * MIB, entries=blocks)
    image.put(512, b"\xff" * 4 * blocks)
    check(image, "vdi")
    image.put(512 + 4 * (blocks - 1), struct.pack("<I", 5))
    with pytest.raises(Refused, match="beyond its end"):
        check(image, "vdi")


def test_bitmaps_of_a_vhdx_are_no_blocks() -> None:
    # With blocks of 256 MiB every 17th entry is the place of a bitmap.
    virtual = 17 * 256 * MIB
    entries = [0] * 18
    entries[16] = 2**40 | 6
    image = images.vhdx(virtual, block=256 * MIB)
    image.put(3 * MIB, struct.pack("<18Q", *entries))
    check(image, "vhdx")
    entries[17] = 2**40 | 6
    image.put(3 * MIB, struct.pack("<18Q", *entries))
    with pytest.raises(Refused):
        check(image, "vhdx")


def test_half_a_cd() -> None:
    check(images.iso(), "raw")
    with pytest.raises(Refused, match="ISO file system"):
        check(images.iso().cut(39 * 2048), "raw")


def test_raw_disks_say_little() -> None:
    check(Bytes(1000), "raw")
    check(images.mbr(end=64 * MIB + 2 * MIB), "raw")
    with pytest.raises(Refused, match="partition"):
        check(images.mbr(end=80 * MIB), "raw")
    with pytest.raises(Refused, match="empty"):
        check(Bytes(0), "raw")


def test_a_boot_sector_of_a_file_system_is_no_partition_table() -> None:
    check(Bytes(MIB, {446: b"random boot code " * 3, 510: b"\x55\xaa"}), "raw")
