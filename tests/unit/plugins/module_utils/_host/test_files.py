# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that survive a power cut, locks that do not survive their holder; on a real file system."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import files


def test_read_json_of_no_file(tmp_path: Path) -> None:
    assert files.read_json(str(tmp_path / "none.json")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff{}", b'"text"'])
def test_damaged_file_is_an_error_and_never_absent(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "owner.json"
    path.write_bytes(content)
    with pytest.raises(HostError, match="Restore it or remove it") as caught:
        files.read_json(str(path))
    assert str(path) in caught.value.message
    assert caught.value.details == {"path": str(path)}


def test_read_json_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        files.read_json(str(tmp_path))


@pytest.mark.parametrize("durable", [True, False])
def test_write_json_and_read_it_back(tmp_path: Path, durable: bool) -> None:
    path = str(tmp_path / "deep/er/x.json")
    files.write_json(path, {"b": [1, None], "a": "ü"}, durable=durable)
    assert files.read_json(path) == {"a": "ü", "b": [1, None]}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["x.json"]


def test_mode_does_not_depend_on_umask_or_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o600)
    before = os.umask(0o077)
    try:
        files.write_text(str(path), "new", mode=0o644)
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def power_cut(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(str(path), "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    # What the cut left behind is no obstacle.
    files.write_text(str(path), "newer")
    assert path.read_text() == "newer"
    assert os.listdir(tmp_path) == ["x"]


def test_durable_means_file_then_rename_then_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def note_replace(source: str, target: str) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    files.write_text(str(tmp_path / "x"), "text")
    assert done == ["file", "rename", "directory"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "x.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        files.write_text(str(tmp_path / "x"), "text")
    assert victim.read_text() == "precious"


def test_remove_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    assert files.remove_file(str(path), durable=True)
    assert not files.remove_file(str(path), durable=True)
    assert not path.exists()


MOUNTINFO = (
    "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
    "40 1 8:1 /a /var/lib/x\\040y rw - ext4 /dev/sda1 rw\n"
    "41 40 0:50 / /var/lib/back\\134slash rw - tmpfs tmpfs rw\n"
)


def test_mount_points() -> None:
    assert files.mount_points(MOUNTINFO) == ["/proc", "/var/lib/x y", "/var/lib/back\\slash"]
    assert "/proc" in files.mount_points()


def test_remove_tree(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("")
    files.remove_tree(str(tmp_path / "a"))
    files.remove_tree(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("point", ["a", "a/b"])
def test_remove_tree_refuses_what_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.setattr(files, "mount_points", lambda: ["/", str(tmp_path / point)])
    with pytest.raises(HostError, match="umount"):
        files.remove_tree(str(tmp_path / "a"))
    assert (tmp_path / "a/b").is_dir()


def test_remove_tree_does_not_mind_a_neighbour_with_a_longer_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(files, "mount_points", lambda: [str(tmp_path / "ab")])
    files.remove_tree(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


HOLDER = """\
import sys
from ansible_collections.cnvm.platform.plugins.module_utils._host import files
with files.lock(sys.argv[1], "A teleport of web"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "locks/web.lock")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=rf"process {other.pid} \(A teleport of web\)"), files.lock(path, "A removal"):
            raise AssertionError("two had the lock")
        other.kill()
        other.wait()
        with files.lock(path, "A removal"):
            assert f"process {os.getpid()} (A removal)" in Path(path).read_text()


def test_lock_waits_for_as_long_as_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_TRY_AGAIN_S", 0.001)
    path, asked = str(tmp_path / "x.lock"), []
    with contextlib.ExitStack() as other:
        other.enter_context(files.lock(path, "One"))

        def waits() -> bool:
            asked.append(True)
            return len(asked) < 3

        with pytest.raises(Refused, match="Two is refused"), files.lock(path, "Two", waits=waits):
            raise AssertionError("two had the lock")
        assert len(asked) == 3

        def ends() -> bool:
            other.close()
            return True

        with files.lock(path, "Two", waits=ends):
            assert "(Two)" in Path(path).read_text()


def test_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "x.lock")
    with pytest.raises(ValueError, match="inside"), files.lock(path, "One"):
        raise ValueError("inside")
    with files.lock(path, "Two"):
        pass


def test_an_unfinished_write_is_removed_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    files.write_json(str(path), {"generation": 1})
    # A file cannot be renamed to a directory: the write is cut off when it is whole beside its place.
    (tmp_path / "full.json/x").mkdir(parents=True)
    with pytest.raises(OSError):
        files.write_json(str(tmp_path / "full.json"), {"generation": 2})
    assert sorted(os.listdir(tmp_path)) == ["full.json", "full.json.new", "owner.json"]
    files.remove_unfinished(str(tmp_path / "full.json"))
    files.remove_unfinished(str(path))
    assert sorted(os.listdir(tmp_path)) == ["full.json", "owner.json"]


def test_a_full_disk_is_told_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_json(str(tmp_path / "definition.json"), {"name": "web"})
    assert caught.value.filename == str(tmp_path / "definition.json")


def test_a_record_lasts_with_the_directories_that_were_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_dir", synced.append)
    files.write_text(f"{tmp_path}/a/b/c", "x")
    assert synced == [str(tmp_path), f"{tmp_path}/a", f"{tmp_path}/a/b"]
    files.write_text(f"{tmp_path}/d/e", "x", durable=False)
    assert len(synced) == 3
    with pytest.raises(FileNotFoundError):
        files.make_dirs("")
