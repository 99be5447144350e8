# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file as a stream of parts: what comes out is what went in, holes too; what is cut off or too long is refused."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError
from ansible_collections.cnvm.platform.plugins.module_utils._host import sparse

MIB = 2**20


def sent(path: Path) -> bytes:
    out = io.BytesIO()
    sparse.send(str(path), out, lambda count: None)
    return out.getvalue()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=4), st.integers(0, 3 * MIB))
def test_there_and_back(tmp_path: Path, written: list[tuple[int, int]], tail: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        for at, length in written:
            file.seek(at * MIB)
            file.write(os.urandom(length * MIB // 2))
        file.truncate(file.tell() + tail)
    size = source.stat().st_size
    sparse.receive(str(target), io.BytesIO(sent(source)), size)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("damage", ["cut", "longer", "shorter", "huge part"])
def test_what_is_not_whole_leaves_the_old_file(tmp_path: Path, damage: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 5000)
    target.write_bytes(b"old")
    stream, size = sent(source), 5000
    if damage == "cut":
        stream = stream[:-8]
    elif damage == "longer":
        size = 4999
    elif damage == "shorter":
        size = 5001
    else:
        stream = struct.pack(">QQ", 0, MIB + 1) + bytes(MIB + 1)
        size = 2 * MIB
    with pytest.raises(PeerError):
        sparse.receive(str(target), io.BytesIO(stream), size)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_what_has_come_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the name of it: the source deletes what it has."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 5000)
    stream, done, sync, replace = sent(source), [], os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    def renamed(old: str, new: str) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    sparse.receive(str(target), io.BytesIO(stream), 5000)
    assert done == [f"{target}.new", "rename", str(tmp_path)]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    stream = sent(source)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HostError, match="no room"):
        sparse.receive(str(tmp_path / "target"), io.BytesIO(stream), 5000)
    assert not (tmp_path / "target.new").exists()
