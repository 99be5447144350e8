# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes hold, as the kernel of this machine shows it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._criu.holdings import OpenFile, shared_bytes
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    container_parts,
    container_processes,
    freezer,
)

MIB = 2**20


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is the root of the container, whose only process is this one."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def look(disk: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[], container_processes.Seen]:
    monkeypatch.setattr(freezer, "processes", lambda cgroup: [os.getpid()])
    monkeypatch.setattr(container_parts, "init_pid", lambda definition: os.getpid())
    monkeypatch.setattr(container_parts, "rootfs", lambda name: str(disk))
    monkeypatch.setattr(paths, "payload_cgroup", lambda name: "/")
    # What this machine's network has is another matter.
    monkeypatch.setattr(container_processes, "groups", lambda *files: ())
    monkeypatch.setattr(container_processes, "_sockets", lambda path: 0)
    return lambda: container_processes.look({"name": "web"})


Look = t.Callable[[], container_processes.Seen]


def held(seen: container_processes.Seen, text: str) -> list[OpenFile]:
    (process,) = seen.processes
    return [file for file in process.files if text in file.target]


def test_shared_memory_counts_as_it_is_used_and_once(look: Look) -> None:
    before = shared_bytes(look().processes)
    fd = os.memfd_create("pool")
    os.truncate(fd, 64 * MIB)
    os.pwrite(fd, b"x" * 2 * MIB, 0)
    with mmap.mmap(-1, 64 * MIB) as buffers, mmap.mmap(fd, 64 * MIB), os.fdopen(fd, "rb+"):
        buffers.write(b"x" * 3 * MIB)
        seen = look()
    assert {file.kind for file in held(seen, "/memfd:pool") + held(seen, "/dev/zero")} == {"memory"}
    assert shared_bytes(seen.processes) - before == pytest.approx(5 * MIB, abs=MIB // 2)


def test_a_deleted_file_that_is_mapped_is_seen(look: Look, disk: Path) -> None:
    library = disk / "lib.so"
    library.write_bytes(b"x" * 3 * MIB)
    with open(library, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        assert not any(file.deleted for file in held(look(), "lib.so"))
        before = shared_bytes(look().processes)
        library.unlink()
        seen = look()
    found = held(seen, "lib.so")
    assert len(found) == 2  # mapped, and Python keeps it open
    assert {(file.deleted, file.kind, file.links) for file in found} == {(str(library), "file", 0)}
    assert shared_bytes(seen.processes) - before == pytest.approx(3 * MIB, abs=MIB // 2)


def test_a_deleted_file_that_has_another_name(look: Look, disk: Path) -> None:
    (disk / "var").mkdir()
    (disk / "a").write_text("x")
    (disk / "var/b").hardlink_to(disk / "a")
    with open(disk / "a"):
        (disk / "a").unlink()
        seen = look()
    assert list(seen.names.values()) == [["/var/b"]]
    (said,) = container_processes.in_the_way({"name": "web"}, seen)
    assert f"uses {disk}/a, which was deleted but is still there as /var/b" in said


def test_what_is_watched_is_found_by_name(look: Look, disk: Path) -> None:
    (disk / "srv/app").mkdir(parents=True)
    (disk / "srv/app/conf").write_text("x")
    (disk / "gone").mkdir()
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init()
    try:
        for path in ("srv/app", "srv/app/conf", "gone"):
            assert libc.inotify_add_watch(fd, os.fsencode(disk / path), 2) > 0
        assert container_processes.criu_lines({"name": "web"}) == (
            'irmap-scan-path "/srv/app/conf"',
            'irmap-scan-path "/srv/app"',
            'irmap-scan-path "/gone"',
        )
        (disk / "gone").rename(disk.parent / "gone")
        with pytest.raises(
            HostError, match=r"watches 1 file\(s\) or directories \(inotify\) that CRIU cannot find by name"
        ):
            container_processes.criu_lines({"name": "web"})
    finally:
        os.close(fd)


def test_files_in_a_tmpfs_count(tmp_path: Path) -> None:
    script = (
        f"cd {tmp_path} && mount -t tmpfs -o size=64m none . && cd {tmp_path} && mkdir again && mount --bind . again"
        " && head -c 5M /dev/zero >file && mkdir other && mount -t tmpfs -o size=64m none other"
        # Of another one only a directory is here: it is not the container's own.
        " && mkdir other/part && head -c 9M /dev/zero >other/file && mount --bind other/part again && umount -l other"
        " && echo ready && exec sleep 60"
    )
    before = container_processes.tmpfs_bytes(os.getpid())
    other = subprocess.Popen(["unshare", "-m", "/bin/sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert container_processes.tmpfs_bytes(other.pid) - before == pytest.approx(5 * MIB, abs=MIB)
    finally:
        other.kill()
        other.wait()
