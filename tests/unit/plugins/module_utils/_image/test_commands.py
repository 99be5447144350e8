# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines of qemu-img: formats are named everywhere, and what it says is understood."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._image import commands
from ansible_collections.cnvm.platform.plugins.module_utils._image.commands import Condition, Making
from ansible_collections.cnvm.platform.plugins.module_utils._image.formats import FORMATS


def line(argv: list[str]) -> str:
    return " ".join(argv)


def test_create() -> None:
    assert line(commands.create("/d", Making("raw"), 512)) == "qemu-img create -q -f raw /d 512"
    assert line(commands.create("/d", Making("qcow2", cluster_bytes=4096, preallocation="full"), 512)) == (
        "qemu-img create -q -f qcow2 -o preallocation=full,cluster_size=4096 /d 512"
    )
    assert line(commands.create("/d", Making("vhd", "fixed"), 512)) == (
        "qemu-img create -q -f vpc -o subformat=fixed,force_size=on /d 512"
    )
    assert line(commands.create("/d", Making("vdi", "fixed"), 512)) == "qemu-img create -q -f vdi -o static=on /d 512"
    assert line(commands.create("/d", Making("qcow2"), 512, "/b", "vhd")) == (
        "qemu-img create -q -f qcow2 -b /b -F vpc /d 512"
    )


def test_convert() -> None:
    assert line(commands.convert("/s", "vmdk", "/d", Making("qcow2", compression="zstd"))) == (
        "qemu-img convert -q -f vmdk -O qcow2 -c -o compression_type=zstd /s /d"
    )
    assert line(commands.convert("/s", "qcow2", "/d", Making("vdi", "fixed"), into=True)) == (
        "qemu-img convert -q -f qcow2 -O vdi -n /s /d"
    )


def test_the_others() -> None:
    assert line(commands.resize("/d", "raw", 5, "falloc")) == "qemu-img resize -q -f raw --preallocation=falloc /d 5"
    assert (
        line(commands.rebase("/d", "qcow2", "/b", "raw", unsafe=True))
        == "qemu-img rebase -q -f qcow2 -u -F raw -b /b /d"
    )
    assert line(commands.rebase("/d", "qcow2", "", "", unsafe=False)) == "qemu-img rebase -q -f qcow2 -b  /d"
    assert line(commands.check("/d", "vdi")) == "qemu-img check -f vdi --output=json /d"
    assert line(commands.check("/d", "qcow2", "all")) == "qemu-img check -f qcow2 --output=json -r all /d"
    assert line(commands.measure("/s", "raw", "qcow2")) == "qemu-img measure --output=json -f raw -O qcow2 /s"
    assert line(commands.limited(["qemu-img", "x"], file_bytes=7, cpu_s=5)) == (
        f"prlimit --as={2**32} --fsize=7 --cpu=5 -- qemu-img x"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_image_has_its_format(kind: str) -> None:
    driver = FORMATS[kind].driver
    for argv in (
        commands.create("/d", Making(kind), 512),
        commands.convert("/s", kind, "/d", Making(kind)),
        commands.resize("/d", kind, 1),
        commands.rebase("/d", kind, "/b", kind, unsafe=False),
        commands.check("/d", kind),
    ):
        assert argv[argv.index("-f") + 1] == driver
        assert argv[-1] in ("/d", "512", "1")


# As QEMU 7.2 and 10.0 say it.
DAMAGED = """{
    "image-end-offset": 589824,
    "total-clusters": 1024,
    "check-errors": 0,
    "corruptions": 1,
    "leaks": 2,
    "allocated-clusters": 4,
    "filename": "/d",
    "format": "qcow2"
}
"""
GOOD = '{"image-end-offset": 262144, "total-clusters": 160, "check-errors": 0, "filename": "/d", "format": "qcow2"}'


def test_what_a_check_says() -> None:
    assert commands.read_check(CommandResult((), 0, GOOD), "/d") == Condition()
    assert commands.read_check(CommandResult((), 2, DAMAGED), "/d") == Condition(corruptions=1, leaks=2)
    assert commands.read_check(CommandResult((), 63, "", "does not support checks"), "/d") is None
    with pytest.raises(HostError):
        commands.read_check(CommandResult(("qemu-img", "check", "/d"), 1, "", "qemu-img: Could not open '/d'"), "/d")
    with pytest.raises(HostError):
        commands.read_check(CommandResult(("qemu-img", "check", "/d"), 0, "not JSON"), "/d")


def test_what_measure_says() -> None:
    assert commands.read_measure(CommandResult((), 0, '{"required": 335872, "fully-allocated": 1073741824}')) == 335872
    assert commands.read_measure(CommandResult((), 1, "")) == 0
    assert commands.read_measure(CommandResult((), 0, "[]")) == 0


LOCKED = """qemu-img: Could not open '/d': Failed to get "write" lock
Is another process using the image [/d]?
"""


@pytest.mark.parametrize(
    ("rc", "said", "error", "words"),
    [
        (1, LOCKED, Refused, "in use"),
        (1, "qemu-img: Could not open '/d': Failed to get shared \"write\" lock", Refused, "in use"),
        (1, "qemu-img: error while writing at byte 3145728: No space left on device", HostError, "no room"),
        (127, "", HostError, "Install qemu-utils"),
        (153, "", Refused, "/d: the result would be larger than its source says"),
        (1, "qemu-img: something else\nmore", HostError, "something else"),
    ],
)
def test_failures_say_what_to_do(rc: int, said: str, error: type[Exception], words: str) -> None:
    found = commands.failure(CommandResult(("qemu-img", "resize", "/.cnvm-0.new", "1024"), rc, "", said), "/d")
    assert isinstance(found, error)
    assert words in str(found)


def test_failures_name_what_the_user_knows() -> None:
    """Neither a size nor the copy in which the work is done. Which one of several is locked, qemu-img says."""
    made = CommandResult(("qemu-img", "create", "/.cnvm-0.new", "1024"), 1, "", "No space left on device")
    assert "no room left for /d" in str(commands.failure(made, "/d"))
    read = CommandResult(("qemu-img", "convert", "/source", "/.cnvm-0.new"), 1, "", LOCKED.replace("/d", "/source"))
    assert str(commands.failure(read, "/d")).startswith("/source: the image is in use")
    unnamed = CommandResult(read.argv, 1, "", 'Failed to get "write" lock')
    assert str(commands.failure(unnamed, "/d")).startswith("/d: the image is in use")
