# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images from outside: what is refused, and that the message says why."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._image.trust import check_cd, check_untrusted
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import GOOD, MIB, Bytes

FLAT = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "/etc/shadow" 0\n'


@pytest.mark.parametrize("name", GOOD)
def test_good_images_are_let_through(name: str) -> None:
    assert check_untrusted(GOOD[name](), "/tmp/image", name.split()[0], 64 * MIB).virtual_bytes <= 64 * MIB


HOSTILE = {
    "a backing file": (images.qcow2(backing=b"/etc/shadow"), "qcow2", "backing file '/etc/shadow'"),
    "a backing file over the network": (images.qcow2(backing=b"nbd://192.0.2.1/x"), "qcow2", "backing file 'nbd:"),
    "a backing file as options": (images.qcow2(backing=b'json:{"file":"x"}'), "qcow2", "backing file"),
    "a data file": (images.qcow2(incompatible=4, data_file=b"/etc/shadow"), "qcow2", "data file '/etc/shadow'"),
    "a data file without the bit": (images.qcow2(data_file=b"/etc/shadow"), "qcow2", "data file"),
    "a descriptor": (Bytes(0, {0: FLAT}), "vmdk", "extent '/etc/shadow'"),
    "a parent of a vmdk": (
        images.vmdk(descriptor=images.DESCRIPTOR + b'parentFileNameHint="/x"\n'),
        "vmdk",
        "backing file '/x'",
    ),
    "a parent of a vdi": (images.vdi(parent=True), "vdi", "parent"),
    "a parent of a vhd": (images.vhd(kind=4), "vhd", "parent"),
    "a parent of a vhdx": (images.vhdx(bits=2), "vhdx", "parent"),
    "a petabyte": (images.qcow2(virtual=2**50, bits=21), "qcow2", "virtual size of 1048576 GiB"),
    "an encrypted one": (images.qcow2(crypt=2), "qcow2", "encrypted"),
    "one that is marked as damaged": (images.qcow2(incompatible=2), "qcow2", "marked as damaged"),
    "one that was not closed": (images.qcow2(incompatible=1), "qcow2", "not closed"),
    "a vhdx with a log": (images.vhdx(log=True), "vhdx", "not closed"),
    "another format than said": (images.qcow2(), "vmdk", "is qcow2, not vmdk"),
    "qcow2 as raw": (images.qcow2(), "raw", "is qcow2, not raw"),
    "a vhd as raw": (images.vhd_fixed(), "raw", "is vhd, not raw"),
    "raw as qcow2": (GOOD["raw"](), "qcow2", "is no qcow2 image"),
    "a web page": (Bytes(0, {0: b"<!DOCTYPE html><title>404"}), "raw", "web page"),
    "a compressed one": (Bytes(4096, {0: b"\xfd7zXZ\0"}), "qcow2", "compressed with xz"),
    "an OVA": (Bytes(4096, {257: b"ustar"}), "vmdk", "tar archive"),
    "two formats at once": (images.qcow2().put(64, b"\x7f\x10\xda\xbe"), "qcow2", "as qcow2 and as vdi"),
    "a qcow2 that is a CD": (images.qcow2().put(32768, b"\1CD001"), "qcow2", "as qcow2 and as iso"),
    "a qcow2 that ends as a vhd": (
        images.qcow2().put(4 * 65536, images.vhd_footer(MIB, 2)),
        "qcow2",
        "as qcow2 and as vhd",
    ),
    "an old qcow": (Bytes(4096, {0: b"QFI\xfb\0\0\0\1"}), "qcow2", "is qcow, not qcow2"),
    "luks": (Bytes(4096, {0: b"LUKS\xba\xbe"}), "raw", "is luks, not raw"),
    "an empty file": (Bytes(0), "raw", "empty"),
    "half a stream": (images.vmdk(footer=True, grains=(128,)).cut(80_000), "vmdk", "cut off"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused(name: str) -> None:
    image, kind, words = HOSTILE[name]
    with pytest.raises(Refused) as caught:
        check_untrusted(image, "/tmp/image", kind, 2**40)
    assert caught.value.message.startswith("/tmp/image: ")
    assert words in caught.value.message
    assert caught.value.hint
    assert caught.value.details == {"path": "/tmp/image", "format": kind}


def test_the_largest_reading_of_the_size_counts() -> None:
    image = images.vhd(64 * MIB, creator=b"qemu", geometry=(3, 4, 17))
    assert check_untrusted(image, "x", "vhd", 64 * MIB).virtual_bytes == 3 * 4 * 17 * 512
    with pytest.raises(Refused, match="max_virtual_size"):
        check_untrusted(image, "x", "vhd", 64 * MIB - 1)


def test_a_cd_has_a_file_system_of_one() -> None:
    udf = images.Bytes(2**20, {32769: b"BEA01", 34817: b"NSR03", 36865: b"TEA01"})
    for good in (images.iso(), udf):
        check_cd(good, "/c.iso")
    for bad in (images.Bytes(2**20, {32769: b"BEA01"}), images.qcow2(), images.mbr(), images.Bytes(0)):
        with pytest.raises(Refused, match=r"/c\.iso: The file has no file system of a CD or DVD"):
            check_cd(bad, "/c.iso")
    with pytest.raises(Refused, match="xz: it is no ISO image"):
        check_cd(images.Bytes(2**20, {0: b"\xfd7zXZ\0"}), "/c.iso")
    with pytest.raises(Refused, match=r"/c\.iso: .*beyond its end"):
        check_cd(images.iso().cut(39 * 2048), "/c.iso")
