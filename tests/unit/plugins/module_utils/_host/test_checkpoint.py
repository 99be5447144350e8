# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of checkpoints: what is verified before anything is touched, and what comes back when a restore fails."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    archive,
    checkpoint,
    container_preflight,
    container_target,
    files,
    images,
    info,
    movedir,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import checkpoint as manifests
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan, records

SIDE = plan.Side(
    "host1", "x86_64", frozenset({"sse"}), "6.12.1", "4.2.1", frozenset(),
    {"runc": {"version": "1.3.6", "checkpoint": True}}, 2, frozenset(),
)  # fmt: skip
DEFINITION: dict[str, t.Any] = {"name": "web", "uuid": "u", "image": "a" * 64, "runtime": "runc", "address": ""}
OWNER = records.owner_record("web", "u", "S", "host1", 4)
CONTENT = {"images/core-1.img": b"core", "images/pages-1.img": b"p" * 5000, "layer.tar": b"\0" * 1024}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes the root of a process")


def no_commands(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
    pytest.fail(f"ran {args}")


HOST = Host(run=t.cast("t.Any", no_commands))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WORKLOADS", f"{tmp_path}/containers")
    monkeypatch.setattr(paths, "RUN", f"{tmp_path}/run")
    monkeypatch.setattr(paths, "LOGS", f"{tmp_path}/log")
    monkeypatch.setattr(paths, "HOST_FILE", f"{tmp_path}/host.json")
    monkeypatch.setattr(paths, "OVERLAY_FILE", f"{tmp_path}/none")
    files.write_json(paths.HOST_FILE, {"host_id": "S", "name": "host1"})

    def make(host: Host, move_id: str, expected: int) -> str:
        for name in ("images", "work"):
            os.makedirs(f"{paths.move_dir(move_id)}/{name}", mode=0o700, exist_ok=True)
        return paths.move_dir(move_id)

    monkeypatch.setattr(movedir, "make", make)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A checkpoint, written by the code that writes them."""
    directory = tmp_path / "made"
    (directory / "images").mkdir(parents=True)
    (directory / "work").mkdir()
    (directory / "work/dump.log").write_text("not part of it")
    for name, data in CONTENT.items():
        (directory / name).write_bytes(data)
    path = tmp_path / "web.tar.zst"
    checkpoint._pack(dict(DEFINITION), OWNER, SIDE, str(directory), str(path))
    return path


def plain(path: Path) -> bytes:
    return subprocess.run(["zstd", "-dc", "-q", str(path)], capture_output=True, check=True).stdout


def repack(path: Path, change: t.Callable[[dict[str, t.Any]], None]) -> None:
    """The same archive with other members: {name: bytes, or a TarInfo without content}."""
    with tarfile.open(fileobj=io.BytesIO(plain(path))) as old:
        members: dict[str, t.Any] = {
            one.name: t.cast("t.Any", old.extractfile(one)).read() if one.isfile() else one for one in old
        }
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as new:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                new.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    path.write_bytes(subprocess.run(["zstd", "-q", "-c"], input=out.getvalue(), capture_output=True, check=True).stdout)


def verify(path: Path) -> None:
    checkpoint._verified(HOST, str(path), checkpoint.read_manifest(str(path)), dict(DEFINITION), "m1", "flags")


def test_it_is_for_root_only_and_says_what_it_is(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o600
    manifest = checkpoint.read_manifest(str(made))
    assert (manifest["name"], manifest["generation"]) == ("web", 4)
    assert sorted(manifest["files"]) == sorted([*CONTENT, "definition.json"])


def test_a_whole_one_is_taken(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "gather", lambda host: {})
    monkeypatch.setattr(container_preflight, "side", lambda name, facts: SIDE)
    monkeypatch.setattr(images, "record", lambda digest: {})
    monkeypatch.setattr(container_target, "network_problems", lambda definition: [])
    verify(made)
    for name, data in CONTENT.items():
        assert Path(f"{paths.move_dir('m1')}/{name}").read_bytes() == data
    monkeypatch.setattr(images, "record", lambda digest: None)
    files.remove_tree(paths.move_dir("m1"))
    with pytest.raises(Refused, match="is not on this host"):
        verify(made)


def flip(members: dict[str, t.Any]) -> None:
    members["images/pages-1.img"] = b"q" + members["images/pages-1.img"][1:]


def link(members: dict[str, t.Any]) -> None:
    info = tarfile.TarInfo("images/core-1.img")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/shadow"
    members["images/core-1.img"] = info


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, "images/pages-1.img was changed"),
        (lambda m: m.update({"layer.tar": m["layer.tar"][:-1]}), "layer.tar has 1023 bytes, not 1024"),
        (lambda m: m.pop("images/core-1.img"), "images/core-1.img is missing"),
        (lambda m: m.update({"images/more.img": b"x"}), "images/more.img does not belong to it"),
        (link, "images/core-1.img is no plain file"),
        (lambda m: m.update({"work/x": b"x"}), "work"),
        (lambda m: m.update({"verdict": b"go"}), "verdict"),
        (lambda m: m.update({"../../escape": b"x"}), "escape"),
        (lambda m: m.update({"images/bomb": b"\0" * (8 << 20)}), ""),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(made: Path, change: t.Any, said: str) -> None:
    repack(made, change)
    with pytest.raises(InputError) as caught:
        verify(made)
    assert said in str(caught.value)


@pytest.mark.parametrize("keep", [0, 3, 20, 0.5, -1])
def test_one_that_was_cut_off_is_refused(made: Path, keep: float) -> None:
    data = made.read_bytes()
    made.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises((InputError, HostError)):
        verify(made)


def test_every_flipped_byte_of_the_file_is_refused(made: Path) -> None:
    data, content = made.read_bytes(), plain(made)
    for at in range(0, len(data), max(1, len(data) // 25)):
        made.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        shown = subprocess.run(["zstd", "-dcq", str(made)], capture_output=True, check=False)
        if shown.returncode == 0 and shown.stdout == content:
            continue  # a byte of the frame that means nothing for what is in it
        with pytest.raises((InputError, HostError)):
            verify(made)
        files.remove_tree(paths.move_dir("m1"))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x28\xb5\x2f\xfd" + b"x" * 90])
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.read_manifest(str(path))


@pytest.mark.parametrize("path", ["x", "../x", "/a/../b", "/a/.", "", "/dev/null", "/proc"])
def test_paths_that_are_not_allowed(path: str) -> None:
    with pytest.raises(InputError, match="path"):
        checkpoint.check_path(path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="no plain file"):
        checkpoint.check_path(f"{tmp_path}/link")


def test_an_existing_checkpoint_is_left_alone(made: Path) -> None:
    before = made.read_bytes()
    options: dict[str, t.Any] = {"leave_running": True, "force": False, "timeout_s": 5, "check_mode": False}
    result = checkpoint.make(HOST, "web", str(made), **options)
    assert (result["changed"], result["checkpoint"]["name"]) == (False, "web")
    with pytest.raises(InputError, match="is a checkpoint of web"):
        checkpoint.make(HOST, "db", str(made), **options)
    # Removed and made anew, it has nothing in common with that one.
    files.write_json(paths.definition_file("web"), {**DEFINITION, "uuid": "another"})
    with pytest.raises(InputError, match="another container that was called web"):
        checkpoint.make(HOST, "web", str(made), **options)
    assert made.read_bytes() == before


@pytest.mark.parametrize("restart", ["on_failure", "never"])
def test_a_restore_that_fails_puts_the_layer_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str
) -> None:
    upper = Path(paths.upper_dir("web"))
    upper.mkdir(parents=True)
    (upper / "mine").write_text("kept")
    move = Path(paths.move_dir("m1"))
    move.mkdir(parents=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "theirs").write_text("from the checkpoint")
    with (move / manifests.LAYER).open("wb") as out:
        archive.pack(str(theirs), out, layer=True)

    def prepare(*args: t.Any) -> None:
        assert os.listdir(upper) == ["theirs"]
        assert (files.read_json(paths.journal_file("web")) or {})["enabled"] is (restart != "never")
        raise HostError("no")

    monkeypatch.setattr(container_target, "prepare", prepare)
    monkeypatch.setattr(container_target, "end_copy", lambda *args: None)
    with pytest.raises(HostError, match="no"):
        checkpoint._restore(HOST, "/x", {}, {**DEFINITION, "restart": restart}, OWNER, "m1", [], 5)
    assert (upper / "mine").read_text() == "kept"
    assert os.listdir(paths.workload_dir("web")) == ["upper"]


@pytest.mark.parametrize("swapped", [0, 1, 2])
def test_recover_after_an_interrupted_restore(swapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_target, "end_copy", lambda *args: None)
    upper = Path(paths.upper_dir("web"))
    upper.mkdir(parents=True)
    (upper / "mine").write_text("kept")
    if swapped:
        upper.rename(checkpoint._before("web"))
    if swapped == 2:
        upper.mkdir()
        (upper / "half").write_text("")
    journal = records.journal("restore", records.TARGET_RECEIVING, "m1", OWNER, "host1", "S", "restore", "b")
    files.write_json(paths.journal_file("web"), journal)
    assert "stopped, as it was before" in checkpoint.recover(HOST, journal)
    assert os.listdir(upper) == ["mine"]
    assert os.listdir(paths.workload_dir("web")) == ["upper"]
