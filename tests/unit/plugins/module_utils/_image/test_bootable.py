# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is built: which packages, which files, and where on the disk things lie."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.mmdebstrap import Recipe
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._image import bootable
from ansible_collections.cnvm.platform.plugins.module_utils._image.headers import SECTOR
from ansible_collections.cnvm.platform.plugins.module_utils._image.partitions import partitions
from ansible_collections.cnvm.platform.tests.support.images import MIB, Bytes

UUID = "01234567-89ab-4def-8123-456789abcdef"
BOOT = b"\xeb\x63" + bytes(SECTOR - 4) + b"\x55\xaa"


def test_what_every_guest_needs_is_added() -> None:
    made = bootable.whole(Recipe("trixie", ("nginx", "sudo"), mirror="http://m/debian"))
    assert {"nginx", "cloud-init", "qemu-guest-agent", "openssh-server", bootable.KERNEL} <= set(made.packages)
    assert list(made.packages) == sorted(set(made.packages))
    assert made.mirror == "http://m/debian"


@pytest.mark.parametrize("kernel", ["linux-image-amd64", "linux-image-rt-amd64", "linux-image-amd64=6.12.1-1"])
def test_a_kernel_of_the_user_takes_the_place_of_ours(kernel: str) -> None:
    made = bootable.whole(Recipe("trixie", (kernel,)))
    assert [name for name in made.packages if name.startswith("linux-image-")] == [kernel]


def test_the_file_system_is_found_by_what_it_is_called() -> None:
    texts = bootable.written(UUID)
    assert texts["/boot/grub/grub.cfg"].count(f"root=UUID={UUID} ro") == 2
    assert texts["/etc/fstab"].startswith(f"UUID={UUID} / ext4 ")
    for text in (texts["/boot/grub/grub.cfg"], texts["/etc/default/grub.d/cnvm.cfg"]):
        assert "console=ttyS0" in text
    assert all(path.startswith("/") and text.endswith("\n") for path, text in texts.items())


@given(st.integers(0, 2**40))
def test_there_is_always_room(content: int) -> None:
    size = bootable.disk_bytes(content, None)
    assert size >= bootable.DEFAULT_BYTES
    assert size > content
    assert size % MIB == 0


def test_a_disk_that_is_too_small_is_refused_with_the_size_that_will_do() -> None:
    with pytest.raises(InputError, match=r"size: .* too few") as caught:
        bootable.disk_bytes(900 * MIB, 1000 * MIB)
    assert caught.value.hint == "Allowed: 1205M and more, or leave it out."
    assert bootable.disk_bytes(900 * MIB, 1205 * MIB) == 1205 * MIB


def test_the_partition_ends_where_its_file_system_does() -> None:
    for size in (512 * MIB, 3 * 2**30, 3 * 2**30 + SECTOR, bootable.MOST_BYTES - SECTOR):
        argv = bootable.file_system("/x/root", "/x/built", size, UUID)
        image = Bytes(size)
        image.put(0, bootable.start_of_disk(BOOT, b"c" * 30_000, size, 1))
        assert partitions(image) == [(bootable.START, int(argv[-1]) * bootable.BLOCK)]
        assert bootable.START + int(argv[-1]) * bootable.BLOCK <= size
        assert argv[-2] == "/x/built"
        assert f"offset={bootable.START}," in argv[argv.index("-E") + 1]


def test_grub_lies_before_the_partition() -> None:
    core = bytes(range(256)) * 200
    made = bootable.start_of_disk(BOOT, core, 3 * 2**30, 0x12345678)
    assert made[:440] == BOOT[:440]
    assert made[440:444] == b"\x78\x56\x34\x12"
    # The first of four entries, which is the one to boot.
    assert made[446] == 0x80
    assert made[462:510] == bytes(48)
    assert made[510:512] == b"\x55\xaa"
    assert made[SECTOR:] == core


@pytest.mark.parametrize(
    ("boot", "core"),
    [
        (BOOT[:-1], b"c" * 30_000),
        (bytes(SECTOR), b"c" * 30_000),
        (BOOT, b""),
        (BOOT, b"c" * SECTOR),
        (BOOT, b"c" * bootable.START),
    ],
)
def test_what_is_not_grub_is_not_written(boot: bytes, core: bytes) -> None:
    with pytest.raises(HostError, match="GRUB"):
        bootable.start_of_disk(boot, core, 3 * 2**30, 1)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("mke2fs: Could not allocate block in ext2 filesystem while populating file system", Refused, "size"),
        ("mke2fs: No space left on device while setting up superblock", HostError, "No space left"),
        ("", HostError, "no output"),
    ],
)
def test_a_file_system_that_cannot_be_made(said: str, kind: t.Any, words: str) -> None:
    error = bootable.failure(CommandResult(("mke2fs",), 1, stderr=said))
    assert isinstance(error, kind)
    assert words in error.message
    assert error.hint
