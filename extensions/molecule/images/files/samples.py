# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a directory with images: good ones by qemu-img, hostile ones byte by byte, and where each must be refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

# Beside this file, on the host.
import images  # type: ignore[import-not-found]

CANARY = "/root/canary"


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def good(place: Path) -> None:
    """64 MiB of content, half of it empty, in all formats; and 300 MiB that take a while to compress."""
    chance = random.Random(1)
    with open(place / "content.raw", "wb") as file:
        for number in range(32):
            file.seek(number * 2 * images.MIB)
            file.write(chance.randbytes(images.MIB // 2) + b"text " * 100_000)
        file.truncate(64 * images.MIB)
    for name, driver, options in (
        ("qcow2", "qcow2", ""),
        ("vmdk", "vmdk", ""),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
        ("vdi", "vdi", ""),
        ("vhd", "vpc", "force_size=on"),
        ("fixed.vhd", "vpc", "force_size=on,subformat=fixed"),
        ("vhdx", "vhdx", ""),
        ("zstd.qcow2", "qcow2", "compression_type=zstd"),
    ):
        words = ["-o", options] if options else []
        qemu_img(
            "convert", "-f", "raw", "-O", driver, *words, str(place / "content.raw"), str(place / f"content.{name}")
        )
    with open(place / "large.raw", "wb") as file:
        file.writelines(chance.randbytes(images.MIB) for _number in range(300))


def hostile(place: Path) -> dict[str, str]:
    """Names of images with a part of the message that refuses them."""
    Path(CANARY).write_text("CANARY\n" * 10_000)
    found = {}

    def bad(name: str, words: str) -> Path:
        found[name] = words
        return place / name

    qemu_img("create", "-f", "qcow2", "-b", CANARY, "-F", "raw", str(bad("backing.qcow2", "the backing file")))
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={CANARY}.raw", str(bad("data.qcow2", "the data file")), "1M")
    bad("flat.vmdk", "the extent").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 100 FLAT "{CANARY}" 0\n'
    )
    # With no size of its own QEMU follows the descriptor in it.
    images.vmdk(0, descriptor=(place / "flat.vmdk").read_bytes()).write(bad("inside.vmdk", "descriptor only"))
    images.vmdk(descriptor=images.DESCRIPTOR + f'parentFileNameHint="{CANARY}"\n'.encode()).write(
        bad("parent.vmdk", "the backing file")
    )
    images.vhd(kind=4).write(bad("parent.vhd", "a parent"))
    images.vhdx(bits=2).write(bad("parent.vhdx", "a parent"))
    images.vdi(parent=True).write(bad("parent.vdi", "a parent"))
    images.qcow2(virtual=2**50, bits=21).write(bad("petabyte.qcow2", "virtual size"))
    images.qcow2(incompatible=2**40).write(bad("unknown.qcow2", "features that are not known"))
    images.qcow2(l1_entries=2**31).write(bad("tables.qcow2", "larger than any program"))
    images.qcow2().put(64, b"\x7f\x10\xda\xbe").write(bad("two.qcow2", "as qcow2 and as vdi"))
    bad("text.qcow2", "no qcow2 image").write_text("hello\n")
    bad("page.raw", "web page").write_text("<!DOCTYPE html>\n")
    (place / "content.qcow2").rename(place / "x")
    for kind in ("qcow2", "vmdk", "stream.vmdk", "vdi", "vhd", "fixed.vhd", "vhdx"):
        whole = (place / ("x" if kind == "qcow2" else f"content.{kind}")).read_bytes()
        bad(f"half.{kind}", "damaged, cut off or forged" if kind != "fixed.vhd" else "").write_bytes(
            whole[: len(whole) // 2]
        )
    (place / "x").rename(place / "content.qcow2")
    # Reference counts that are all nothing: good to read, and damaged.
    counts = bytearray((place / "content.qcow2").read_bytes())
    table = int.from_bytes(counts[48:56], "big")
    block = int.from_bytes(counts[table : table + 8], "big")
    counts[block + 20 : block + 60] = bytes(40)
    bad("counts.qcow2", "damaged").write_bytes(counts)
    # And counts for clusters that nothing uses: harmless.
    leaks = bytearray((place / "content.qcow2").read_bytes())
    leaks[block + 1500 * 2 : block + 1503 * 2] = b"\0\1" * 3
    (place / "leaks.qcow2").write_bytes(leaks.ljust(1503 * 65536, b"\0"))
    return found


def main(place: Path) -> None:
    place.mkdir()
    good(place)
    (place / "hostile.json").write_text(json.dumps(hostile(place)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
