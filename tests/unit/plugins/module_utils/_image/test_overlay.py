# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An overlay byte by byte, as our own readers and, where it is there, qemu-img see it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._image import headers, layout
from ansible_collections.cnvm.platform.plugins.module_utils._image.formats import FORMATS, NAMES
from ansible_collections.cnvm.platform.plugins.module_utils._image.overlay import CLUSTER, overlay
from ansible_collections.cnvm.platform.tests.support.images import MIB, Bytes

PATHS = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1)


def image(virtual: int, backing: str = "/x/base.qcow2", backing_format: str = "qcow2") -> Bytes:
    parts, length = overlay(virtual, backing, backing_format)
    made = Bytes(length, parts)
    # Nothing reaches into the next part.
    ends = [at + len(part) for at, part in sorted(parts.items())]
    assert all(end <= at for end, at in zip(ends, sorted(parts)[1:]))
    assert made.size == length
    return made


@given(st.integers(1, 2**42).map(lambda number: number * 512), PATHS, st.sampled_from(NAMES))
def test_it_is_read_as_what_it_is(virtual: int, backing: str, backing_format: str) -> None:
    if len(backing.encode()) > 1023:
        return
    made = image(virtual, backing, backing_format)
    found = headers.parse(made, "qcow2")
    assert (found.virtual_bytes, found.backing, found.cluster_bytes) == (virtual, backing, CLUSTER)
    assert (found.backing_format, found.version, found.dirty) == (backing_format, 3, False)
    if found.tables["entries"] < 10_000:
        layout.check(made, found)


@given(st.integers(1, 2**42).map(lambda number: number * 512))
def test_every_cluster_of_it_is_counted_once(virtual: int) -> None:
    parts, length = overlay(virtual, "/x", "raw")
    counts = parts[2 * CLUSTER]
    assert struct.unpack(f">{len(counts) // 2}H", counts) == (1,) * (length // CLUSTER)
    assert len(counts) <= CLUSTER
    tables = headers.parse(Bytes(length, parts), "qcow2").tables
    assert tables["entries"] * CLUSTER * CLUSTER // 8 >= virtual
    assert tables["l1"] + tables["entries"] * 8 <= length


def test_a_name_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="too long"):
        overlay(MIB, "/" + "x" * 1023, "raw")


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img here")
@pytest.mark.parametrize("virtual", [MIB, 2**31, 5 * 2**40])
def test_qemu_img_is_content(tmp_path: Path, virtual: int) -> None:
    base = Bytes(MIB).write(tmp_path / "base.raw")
    path = image(virtual, str(base), FORMATS["raw"].name).write(tmp_path / "o.qcow2")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)
    said = json.loads(subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, stdout=-1).stdout)
    assert (said["virtual-size"], said["backing-filename-format"]) == (virtual, "raw")
