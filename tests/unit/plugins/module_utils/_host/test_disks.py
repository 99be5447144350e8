# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images of a host, with real files and a stand-in for qemu-img that can be cut off at any place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CnvmError,
    HostError,
    InputError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disk_images,
    disk_records,
    disks,
    files,
    libvirt,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._image.chain import MOST_DEPTH
from ansible_collections.cnvm.platform.plugins.module_utils._image.commands import Making
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import MIB

from . import fake_domains
from .fake_domains import FakeConnection
from .fake_qemu import Qemu
from .killing import Killed

Items = list[dict[str, t.Any]]


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for images; everything else that the code writes is in another one."""
    for name, value in (("RUN", "run"), ("WORKLOADS", "workloads"), ("TEMPLATES", "templates"), ("KEPT_DISKS", "kept")):
        monkeypatch.setattr(paths, name, str(tmp_path / value))
    monkeypatch.setattr(libvirt, "available", lambda: False)
    (tmp_path / "d").mkdir()
    return tmp_path / "d"


def bring(qemu: Qemu, items: Items, **words: t.Any) -> dict[str, t.Any]:
    return disk_images.bring_to(Host(run=qemu), items, **words)


def twice(qemu: Qemu, items: Items, actions: list[list[str]], **words: t.Any) -> list[dict[str, t.Any]]:
    """In check mode, for real, and again: what is said is done, and done once."""
    before = snapshot(items)
    would = bring(qemu, items, check_mode=True, **words)
    assert snapshot(items) == before
    assert [one["actions"] for one in would["images"]] == actions
    done = bring(qemu, items, **words)
    assert [one["actions"] for one in done["images"]] == actions
    assert done["changed"] == any(actions)
    assert would["diff"] == done["diff"]
    calls = len(qemu.calls)
    again = bring(qemu, items, **words)
    assert not again["changed"]
    assert [one["actions"] for one in again["images"]] == [[] for _one in items]
    assert again["diff"]["before"] == again["diff"]["after"]
    assert set(qemu.verbs[calls:]) <= {"check"}
    return t.cast("list[dict[str, t.Any]]", done["images"])


def snapshot(items: Items) -> dict[str, tuple[t.Any, ...]]:
    found = {}
    for directory in {os.path.dirname(item["path"]) for item in items}:
        for name in os.listdir(directory):
            status = os.lstat(os.path.join(directory, name))
            found[name] = (status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns)
    return found


# -- Making


def test_empty_images_of_all_formats(place: Path, qemu: Qemu) -> None:
    items: Items = [
        {"path": f"{place}/a.{kind}", "size": "64M"} for kind in ("raw", "qcow2", "vdi", "vhd", "vmdk", "vhdx")
    ]
    made = twice(qemu, items, [["create"]] * len(items))
    assert {one["virtual_bytes"] for one in made} == {64 * MIB}
    assert [one["format"] for one in made] == ["raw", "qcow2", "vdi", "vhd", "vmdk", "vhdx"]
    assert {one["mode"] for one in made} == {"0600"}
    assert sorted(os.listdir(place)) == sorted(f"a.{one['format']}" for one in made)


def test_a_base_and_an_overlay_in_one_call(place: Path, qemu: Qemu) -> None:
    items: Items = [
        {"path": f"{place}/base.qcow2", "size": "64M", "mode": "0444"},
        {"path": f"{place}/one", "backing": f"{place}/base.qcow2"},
        {"path": f"{place}/two", "backing": f"{place}/base.qcow2", "size": "128M"},
    ]
    made = twice(qemu, items, [["create"]] * 3)
    assert [one["virtual_bytes"] // MIB for one in made] == [64, 64, 128]
    assert made[1]["backing"] == f"{place}/base.qcow2"
    assert made[1]["backing_format"] == "qcow2"
    assert stat.S_IMODE(os.stat(place / "base.qcow2").st_mode) == 0o444
    assert disks.dependants(str(place), f"{place}/base.qcow2") == [f"{place}/one", f"{place}/two"]


def test_a_source_is_converted_under_limits(place: Path, qemu: Qemu) -> None:
    source = images.vmdk(grains=(128,)).write(place / "source.vmdk")
    checksum = "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    item = {"path": f"{place}/a", "source": {"path": str(source), "checksum": checksum}, "size": "100M"}
    made = twice(qemu, [item], [["convert"]])
    assert (made[0]["format"], made[0]["virtual_bytes"]) == ("qcow2", 100 * MIB)
    convert = next(words for words in qemu.calls if "convert" in words)
    assert convert[0] == "prlimit"
    assert convert[convert.index("-f") + 1] == "vmdk"
    assert any(word.startswith("--fsize=") for word in convert)


def test_a_larger_copy_in_a_format_that_cannot_grow(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "s.qcow2")
    twice(qemu, [{"path": f"{place}/a.vdi", "source": {"path": f"{place}/s.qcow2"}, "size": "100M"}], [["convert"]])
    assert [verb for verb in qemu.verbs if verb in ("create", "convert", "resize")] == ["create", "convert"]


def test_the_source_may_be_gone_once_the_image_is_made(place: Path, qemu: Qemu) -> None:
    source = images.qcow2().write(place / "s.qcow2")
    item = {"path": f"{place}/a", "source": {"path": str(source)}}
    bring(qemu, [item])
    source.unlink()
    assert not bring(qemu, [item])["changed"]


@pytest.mark.parametrize("with_checksum", [False, True])
def test_replace_follows_the_source(place: Path, qemu: Qemu, with_checksum: bool) -> None:
    source = images.qcow2().write(place / "s.qcow2")

    def item(**more: t.Any) -> Items:
        given: dict[str, t.Any] = {"path": str(source)}
        if with_checksum:
            given["checksum"] = "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
        return [{"path": f"{place}/a", "source": given, "replace": True, "mode": "0640", **more}]

    twice(qemu, item(), [["convert"]])
    images.qcow2(128 * MIB).write(source)
    made = twice(qemu, item(), [["replace"]])
    assert (made[0]["virtual_bytes"], made[0]["mode"]) == (128 * MIB, "0640")
    twice(qemu, item(compression="zstd"), [["replace"]])
    # Another file in its place is a backup, perhaps, that was brought back.
    images.qcow2(128 * MIB).write(place / "other")
    os.replace(place / "other", place / "a")
    before = snapshot(item())
    for check_mode in (True, False):
        with pytest.raises(Refused, match="is not the file that was made here"):
            bring(qemu, item(compression="zstd"), check_mode=check_mode)
    assert snapshot(item()) == before
    assert bring(qemu, item(compression="zstd", replace=False))["images"][0]["actions"] == ["change mode"]
    # As soon as its source is another one, it is what was asked for.
    images.qcow2(256 * MIB).write(source)
    twice(qemu, item(compression="zstd"), [["replace"]])


def test_without_replace_an_image_is_never_made_anew(place: Path, qemu: Qemu) -> None:
    source = images.qcow2().write(place / "s.qcow2")
    item = {"path": f"{place}/a", "source": {"path": str(source)}}
    bring(qemu, [item])
    images.qcow2(128 * MIB).write(source)
    assert not bring(qemu, [item])["changed"]


# -- Changing


def test_growing_in_place_and_on_a_copy(place: Path, qemu: Qemu) -> None:
    items: Items = [{"path": f"{place}/a.{kind}", "size": "64M", "mode": "0644"} for kind in ("raw", "qcow2", "vdi")]
    bring(qemu, items)
    inodes = [os.stat(item["path"]).st_ino for item in items]
    larger = [{**item, "size": "128M"} for item in items]
    twice(qemu, larger, [["resize"]] * 3)
    now = [os.stat(item["path"]) for item in items]
    assert [one.st_ino == before for one, before in zip(now, inodes)] == [True, True, False]
    assert {stat.S_IMODE(one.st_mode) for one in now} == {0o644}
    with pytest.raises(Refused, match="only grow"):
        bring(qemu, items)


def test_flatten_and_rebase(place: Path, qemu: Qemu) -> None:
    base: Items = [{"path": f"{place}/{name}.qcow2", "size": "64M"} for name in ("b1", "b2")]
    bring(qemu, [*base, {"path": f"{place}/o", "backing": f"{place}/b1.qcow2"}])
    twice(qemu, [{"path": f"{place}/o", "backing": f"{place}/b2.qcow2"}], [["rebase"]])
    rebase = next(words for words in qemu.calls if "rebase" in words)
    assert "-u" not in rebase
    assert rebase[-1] == disks.temporary(f"{place}/o")
    qemu.calls.clear()
    twice(qemu, [{"path": f"{place}/o", "flatten": True}], [["flatten"]])
    # A conversion would forget what is said to be zero: read from below by who is told the old chain.
    assert qemu.verbs == ["measure", "cp", "rebase"]
    assert "-u" not in qemu.calls[-1]
    assert disks.inspect(f"{place}/o").header.backing == ""


@pytest.mark.parametrize("pending", [False, True])
def test_what_a_guests_snapshots_are_made_of(place: Path, qemu: Qemu, pending: bool) -> None:
    images: Items = [{"path": f"{place}/{name}.qcow2", "size": "64M"} for name in "bc"]
    top = f"{place}/top.qcow2"
    bring(qemu, [*images, {"path": top, "backing": f"{place}/b.qcow2"}])
    about = {"files": {top: {"disk": "vda", "read_only": False}, f"{place}/b.qcow2": {"read_only": True}}}
    record = {"files": {}, "pending": about} if pending else {**about, "pending": None}
    (place.parent / "workloads/other").mkdir(parents=True)
    (place.parent / "workloads/web").mkdir()
    (place.parent / "workloads/web/snapshots.json").write_text(json.dumps(record))
    for change in ({"flatten": True}, {"state": "absent"}, {"backing": f"{place}/c.qcow2", "rebase": "unsafe"}):
        for check_mode in (True, False):
            with pytest.raises(Refused, match="is a disk of guest 'web', which has snapshots"):
                bring(qemu, [{"path": top, **change}], check_mode=check_mode)
    twice(qemu, [{"path": top, "size": "128M"}], [["resize"]])


def test_a_base_that_was_moved(place: Path, qemu: Qemu) -> None:
    bring(qemu, [{"path": f"{place}/b.qcow2", "size": "64M"}, {"path": f"{place}/o", "backing": f"{place}/b.qcow2"}])
    os.rename(place / "b.qcow2", place / "c.qcow2")
    item = {"path": f"{place}/o", "backing": f"{place}/c.qcow2", "rebase": "unsafe"}
    with pytest.raises(InputError, match=r"b\.qcow2"):
        bring(qemu, [{**item, "rebase": "safe"}])
    twice(qemu, [item], [["rebase"]])
    assert "-u" in next(words for words in qemu.calls if "rebase" in words)


def test_a_backing_format_that_was_not_written(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "b.qcow2")
    images.qcow2(backing=b"b.qcow2").write(place / "o")
    twice(qemu, [{"path": f"{place}/o", "backing": f"{place}/b.qcow2"}], [["name the backing format"]])


def test_repair(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "a")
    item: dict[str, t.Any] = {"path": f"{place}/a", "check": True}
    leaks = (3, '{"check-errors": 0, "leaks": 2}')
    damage = (2, '{"check-errors": 0, "corruptions": 1}')
    qemu.checks = [leaks]
    result = bring(qemu, [item])
    assert not result["changed"]
    assert "2 clusters" in result["warnings"][0]
    qemu.checks = [leaks, (0, '{"check-errors": 0, "leaks-fixed": 2}')]
    result = bring(qemu, [{**item, "repair": "leaks"}])
    assert result["images"][0]["actions"] == ["repair"]
    assert result["images"][0]["check"]["leaks_fixed"] == 2
    qemu.checks = [damage]
    with pytest.raises(HostError, match="damaged"):
        bring(qemu, [{**item, "repair": "leaks"}])
    # What cannot be repaired is left as it was.
    before = snapshot([item])
    qemu.checks = [damage, damage]
    with pytest.raises(HostError, match="could not be repaired"):
        bring(qemu, [{**item, "repair": "all"}])
    assert snapshot([item]) == before


@pytest.mark.parametrize("second_names", [True, False])
def test_a_new_one_takes_the_place_of_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, second_names: bool
) -> None:
    path = place / "new.qcow2"

    def link(*args: t.Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def make(*, meanwhile: bool) -> None:
        with disks.appearing(str(path), disks.Attributes(new=True)) as made:
            Path(made).write_text("ours")
            if meanwhile:
                path.write_text("theirs")

    if not second_names:
        monkeypatch.setattr(os, "link", link)
    make(meanwhile=False)
    assert (path.read_text(), path.stat().st_nlink) == ("ours", 1)
    path.unlink()
    with pytest.raises(disks.Taken):
        make(meanwhile=True)
    with pytest.raises(disks.Taken):
        make(meanwhile=False)
    assert path.read_text() == "theirs"
    assert os.listdir(place) == ["new.qcow2"]


def test_owner_and_mode(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.raw", "size": "1M"}
    bring(qemu, [item])
    twice(qemu, [{**item, "mode": "0440"}], [["change mode"]])
    if os.geteuid() == 0:
        twice(qemu, [{**item, "owner": 12345, "group": "daemon"}], [["change owner", "change group"]])
        bring(qemu, [{**item, "size": "2M"}])
        assert os.stat(item["path"]).st_uid == 12345
    with pytest.raises(InputError, match="there is no 'nobody-of-that-name'"):
        bring(qemu, [{**item, "owner": "nobody-of-that-name"}])


@pytest.mark.parametrize("before", [None, "0644"])
def test_nobody_else_reads_what_is_being_made(place: Path, qemu: Qemu, before: t.Optional[str]) -> None:
    """The name under which it is made can be guessed, and who has it open goes on reading it."""
    images.qcow2().write(place / "s.qcow2")
    items: Items = [
        {"path": f"{place}/made.qcow2", "size": "1M"},
        {"path": f"{place}/grown.vdi", "size": "1M"},
        {"path": f"{place}/flat.qcow2", "backing": f"{place}/s.qcow2"},
        {"path": f"{place}/copy", "source": {"path": f"{place}/s.qcow2"}},
    ]
    seen: list[str] = []

    def run(argv: t.Sequence[str], **words: t.Any) -> CommandResult:
        result = qemu(argv, **words)
        seen.extend(oct(path.stat().st_mode & 0o777) for path in place.glob(disks.TEMPORARY))
        return t.cast(CommandResult, result)

    host = Host(run=run)
    disk_images.bring_to(host, [{**item, "mode": before} for item in items])
    disk_images.bring_to(host, [{**items[1], "size": "2M"}, {**items[2], "backing": None, "flatten": True}])
    (done,) = disk_images.bring_to(host, [{**items[3], "replace": True, "size": "100M"}])["images"]
    assert len(seen) > 6
    assert set(seen) == {"0o600"}
    assert done["mode"] == (before or "0600")
    assert {oct(Path(item["path"]).stat().st_mode & 0o777)[-3:] for item in items} == {(before or "0600")[-3:]}


def test_absent(place: Path, qemu: Qemu) -> None:
    items: Items = [{"path": f"{place}/b.qcow2", "size": "64M"}, {"path": f"{place}/o", "backing": f"{place}/b.qcow2"}]
    bring(qemu, items)
    gone = [{"path": item["path"], "state": "absent"} for item in items]
    with pytest.raises(Refused, match="/o rests on it"):
        bring(qemu, gone)
    larger = {"path": items[0]["path"], "size": "128M"}
    with pytest.raises(Refused, match="/o rests on it"):
        bring(qemu, [{"path": f"{place}/o", "check": True}, larger], check_mode=True)
    twice(qemu, [{"path": f"{place}/o", "flatten": True}, larger], [["flatten"], ["resize"]])
    bring(qemu, [{"path": f"{place}/p", "backing": items[0]["path"]}])
    twice(qemu, [{"path": f"{place}/p", "state": "absent"}, *gone[::-1]], [["remove"]] * 3)
    assert os.listdir(place) == []
    assert os.listdir(paths.DISK_RECORDS) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_note_that_an_image_lies_there_says_nothing_of_what_it_was_made_of(
    place: Path, qemu: Qemu, first: bool
) -> None:
    images.qcow2(clusters=(5,)).write(place / "source.qcow2")
    item: dict[str, t.Any] = {"path": f"{place}/a", "source": {"path": f"{place}/source.qcow2"}, "replace": True}
    if first:
        disk_records.note(item["path"])
    bring(qemu, [item])
    disk_records.note(item["path"])
    assert not bring(qemu, [item])["changed"]


# -- What is not touched


def test_a_base_of_others_is_not_changed(place: Path, qemu: Qemu, tmp_path: Path) -> None:
    base = {"path": f"{place}/b.qcow2", "size": "64M"}
    bring(qemu, [base])
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    images.qcow2(backing=base["path"].encode()).write(tmp_path / "elsewhere/deep/o")
    larger = [{**base, "size": "128M"}]
    with pytest.raises(Refused, match="elsewhere/deep/o rests on it"):
        bring(qemu, larger, places=[str(tmp_path / "elsewhere")])
    (tmp_path / "workloads/web").mkdir(parents=True)
    os.rename(tmp_path / "elsewhere/deep", tmp_path / "workloads/web/disks")
    with pytest.raises(Refused, match="workloads/web/disks/o rests on it"):
        bring(qemu, larger)


@pytest.mark.parametrize(
    "name",
    [
        "file:{}",
        'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}',
        "json:{{'driver':'qcow2','file.filename':'{}'}}",
    ],
)
def test_nor_is_one_that_another_names_in_a_way_of_qemu(place: Path, qemu: Qemu, name: str) -> None:
    bring(qemu, [{"path": f"{place}/b.qcow2", "size": "64M"}, {"path": f"{place}/c.qcow2", "size": "64M"}])
    images.qcow2(backing=name.format(f"{place}/b.qcow2").encode(), backing_format=b"qcow2").write(place / "o")
    with pytest.raises(Refused, match="/o rests on it"):
        bring(qemu, [{"path": f"{place}/b.qcow2", "state": "absent"}])
    bring(qemu, [{"path": f"{place}/c.qcow2", "state": "absent"}])


def test_what_a_container_writes_is_no_image_that_rests_on_another(
    place: Path, qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it a header that names the image, or more files than anybody wants to look through."""
    base = {"path": f"{place}/b.qcow2", "size": "64M"}
    bring(qemu, [base])
    upper = tmp_path / "workloads/web/upper/tmp"
    upper.mkdir(parents=True)
    images.qcow2(backing=base["path"].encode()).write(upper / "o")
    monkeypatch.setattr(disks, "MOST_FILES", 3)
    for number in range(4):
        (upper / str(number)).touch()
    assert bring(qemu, [{**base, "size": "128M"}])["changed"]


HOLDER = """
import fcntl, struct, sys, time
file = open(sys.argv[1], "r+b")
fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
print("held", flush=True)
sys.stdin.read()
"""


def test_an_image_that_a_guest_has_open_is_not_changed(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.qcow2", "size": "64M"}
    bring(qemu, [item])
    assert not disks.in_use(item["path"])
    argv = [sys.executable, "-c", HOLDER, item["path"]]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        holder.stdout.readline()
        assert disks.in_use(item["path"])
        for change in ({"size": "128M"}, {"state": "absent"}):
            with pytest.raises(Refused, match="in use"):
                bring(qemu, [{**item, **change}])
        assert not bring(qemu, [item])["changed"]
        holder.stdin.close()
    assert not disks.in_use(item["path"])


def guest(place: Path, *disks_of: dict[str, t.Any], name: str = "web") -> None:
    """One of this host, by its definition."""
    home = place.parent / "workloads" / name
    home.mkdir(parents=True)
    empty = {"name": "vda", "path": "", "pool": "", "format": "qcow2", "read_only": False}
    about = {"kind": "guest", "name": name, "disks": [{**empty, **disk} for disk in disks_of]}
    (home / "definition.json").write_text(json.dumps(about))


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    """libvirt is there."""
    made = FakeConnection()
    library = fake_domains.library()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(libvirt, "available", lambda: True)
    monkeypatch.setattr(libvirt, "connect", lambda: contextlib.nullcontext(made))
    return made


def test_the_disk_of_a_guest_that_is_stopped_stays(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "s.qcow2")
    item: dict[str, t.Any] = {"path": f"{place}/a.qcow2", "source": {"path": f"{place}/s.qcow2"}, "replace": True}
    bring(qemu, [item, {"path": f"{place}/b.qcow2", "size": "64M"}])
    (place / "link").symlink_to(place)
    guest(place, {"path": f"{place}/link/a.qcow2"}, {"name": "vdb"})
    guest(place, {"path": f"{place}/a.qcow2"}, name="db")
    (place.parent / "workloads/web/disks").mkdir()
    own = f"{place.parent}/workloads/web/disks/vdb.qcow2"
    bring(qemu, [{"path": own, "backing": f"{place}/b.qcow2"}])
    images.qcow2(128 * MIB).write(place / "s.qcow2")
    for check_mode in (True, False):
        for change in (item, {"path": own, "state": "absent"}):
            users = "'db', 'web'" if change is item else "'web'"
            with pytest.raises(Refused, match=f"a disk of guest {users}; it is neither removed nor replaced") as caught:
                bring(qemu, [change], check_mode=check_mode)
            assert "cnvm.platform.guest" in caught.value.hint
            # A task before may be about to remove it.
            assert ("Check mode sees the host as it is now" in caught.value.hint) is check_mode
            assert caught.value.details["dependants"]
    told = disk_images.report([f"{place}/a.qcow2", own, f"{place}/b.qcow2"])
    assert [one["dependants"] for one in told["images"]] == [["guest db", "guest web"], ["guest web"], [own]]
    # What keeps its content is the way to a full copy, and to more room.
    twice(qemu, [{"path": own, "flatten": True, "size": "128M"}], [["flatten", "resize"]])
    shutil.rmtree(place.parent / "workloads/web")
    shutil.rmtree(place.parent / "workloads/db")
    twice(qemu, [item], [["replace"]])
    assert disk_images.report([f"{place}/a.qcow2"])["images"][0]["dependants"] == []


@pytest.mark.parametrize("active", [True, False])
def test_a_disk_that_a_guest_has_as_a_volume_stays(
    place: Path, qemu: Qemu, connection: FakeConnection, active: bool
) -> None:
    path = f"{place}/tf.qcow2"
    bring(qemu, [{"path": path, "size": "1M"}])
    connection.pools["p"] = str(place)
    connection.volumes["p", "tf.qcow2"] = path
    connection.inactive_pools = set() if active else {"p"}
    for name, pool in (("tf", "p"), ("lost", "gone")):
        connection.defineXML(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>9</memory>"
            f"<devices><disk type='volume'><source pool='{pool}' volume='tf.qcow2'/><target dev='a'/></disk></devices>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
    with pytest.raises(Refused, match="a disk of guest 'tf'; it is neither removed nor replaced"):
        bring(qemu, [{"path": path, "state": "absent"}])
    with pytest.raises(Refused, match="guest 'tf' writes"):
        bring(qemu, [{"path": f"{place}/new.qcow2", "backing": path}])
    # libvirt itself has gone: then nobody can say whose it is.
    connection.alive = False
    with pytest.raises(HostError, match="read the guest 'lost'"):
        bring(qemu, [{"path": path, "state": "absent"}])


def test_nothing_rests_on_what_a_guest_writes_to(place: Path, qemu: Qemu, connection: FakeConnection) -> None:
    base, web = f"{place}/b.qcow2", f"{place}/web.qcow2"
    bring(
        qemu,
        [{"path": base, "size": "64M"}, {"path": web, "backing": base}, {"path": f"{place}/ro.qcow2", "size": "1M"}],
    )
    guest(place, {"path": web}, {"name": "vdb", "path": f"{place}/ro.qcow2", "read_only": True})
    images.qcow2(backing=web.encode(), backing_format=b"qcow2").write(place / "between.qcow2")
    over = {"path": f"{place}/o.qcow2"}
    bring(qemu, [{**over, "backing": base}])
    for below in (web, f"{place}/between.qcow2"):
        for item in ({"path": f"{place}/new.qcow2"}, over, {**over, "rebase": "unsafe"}):
            for check_mode in (True, False):
                with pytest.raises(Refused, match=f"must not rest on {web}, to which guest 'web' writes") as refused:
                    bring(qemu, [{**item, "backing": below}], check_mode=check_mode)
        assert "cnvm.platform.template" in refused.value.hint
    # What it rests on itself it does not write to, nor what it only reads.
    twice(
        qemu,
        [{"path": f"{place}/n.qcow2", "backing": base}, {**over, "backing": f"{place}/ro.qcow2"}],
        [["create"], ["rebase"]],
    )
    # Nor is it any better of one of which only libvirt knows.
    connection.defineXML(
        "<domain type='qemu'><name>old</name><memory unit='MiB'>9</memory><os><type arch='x86_64'>hvm</type></os>"
        f"<devices><disk type='file'><source file='{base}'/><target dev='vda'/></disk></devices></domain>"
    )
    with pytest.raises(Refused, match="guest 'old' writes"):
        bring(qemu, [{"path": f"{place}/new.qcow2", "backing": base}])


def test_nor_is_one_changed_below_memory_that_was_saved(
    place: Path, qemu: Qemu, connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(qemu, [{"path": f"{place}/b.qcow2", "size": "64M"}, {"path": f"{place}/a", "backing": f"{place}/b.qcow2"}])
    connection.defineXML(
        "<domain type='qemu'><name>old</name><memory unit='MiB'>9</memory><os><type arch='x86_64'>hvm</type></os>"
        f"<devices><disk type='file'><source file='{place}/a'/><target dev='vda'/></disk>"
        "<disk type='network'><source protocol='nbd' name='x'/><target dev='vdb'/></disk></devices></domain>"
    )
    connection.domains["old"].saved = True
    leaks = (3, '{"check-errors": 0, "leaks": 2}')
    for change in ({"size": "128M"}, {"flatten": True}, {"repair": "leaks"}):
        qemu.checks = [leaks] if "repair" in change else []
        with pytest.raises(Refused, match="disk of guest 'old', which was saved with its memory") as caught:
            bring(qemu, [{"path": f"{place}/a", **change}])
        assert "virsh managedsave-remove old" in caught.value.hint
    twice(qemu, [{"path": f"{place}/a", "mode": "0640"}], [["change mode"]])
    connection.domains["old"].saved = False
    twice(qemu, [{"path": f"{place}/a", "flatten": True}], [["flatten"]])
    with pytest.raises(Refused, match="a disk of guest 'old'"):
        bring(qemu, [{"path": f"{place}/a", "state": "absent"}])
    # One of which libvirt knows nothing, with a disk in a pool; and one whose pool is gone.
    connection.pools["disks"] = str(place)
    guest(place, {"pool": "disks"})
    guest(place, {"pool": "none"}, name="lost")
    for name in ("web", "lost"):
        bring(qemu, [{"path": f"{place}/{name}-vda.qcow2", "size": "1M"}])
    told = disk_images.report([f"{place}/a", f"{place}/web-vda.qcow2", f"{place}/lost-vda.qcow2"])
    assert [one["dependants"] for one in told["images"]] == [["guest old"], ["guest web"], []]

    def hangs() -> t.Any:
        raise HostError("libvirt does not answer.")

    monkeypatch.setattr(libvirt, "connect", hangs)
    told = disk_images.report([f"{place}/a"])
    assert (told["images"][0]["dependants"], len(told["warnings"])) == (None, 1)


def test_what_is_no_plain_file(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "real")
    (place / "link").symlink_to("real")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    for name in ("link", "directory", "fifo"):
        with pytest.raises(Refused, match="no plain file"):
            bring(qemu, [{"path": f"{place}/{name}", "size": "1M"}])
    for name in ("directory", "fifo"):
        with pytest.raises(InputError, match="no plain file"):
            bring(qemu, [{"path": f"{place}/new", "source": {"path": f"{place}/{name}", "format": "raw"}}])
    with pytest.raises(InputError, match="no directory"):
        bring(qemu, [{"path": f"{place}/none/new", "size": "1M"}])
    with pytest.raises(InputError, match=r"source: There is no file"):
        bring(qemu, [{"path": f"{place}/new", "source": {"path": f"{place}/none.raw"}}])


@pytest.mark.parametrize("way", ["source", "backing"])
def test_what_is_made_of_a_raw_file_has_whole_sectors(place: Path, qemu: Qemu, way: str) -> None:
    """QEMU fills up the last one, and check mode says so."""
    (place / "odd").write_bytes(bytes(1000123))
    made = {"source": {"path": f"{place}/odd", "format": "raw"}, "backing": f"{place}/odd", "backing_format": "raw"}
    item = {"path": f"{place}/new", **{key: value for key, value in made.items() if key.startswith(way)}}
    (one,) = twice(qemu, [item], [["convert" if way == "source" else "create"]])
    assert one["virtual_bytes"] == 1000448
    assert "resize" not in qemu.verbs


def test_another_format_is_never_overwritten(place: Path, qemu: Qemu) -> None:
    images.vmdk().write(place / "a")
    (place / "text").write_text("not an image at all")
    before = snapshot([{"path": f"{place}/a"}])
    for name, words in (("a", "is vmdk, not qcow2"), ("text", "is no image, not qcow2")):
        with pytest.raises(Refused, match=words):
            bring(qemu, [{"path": f"{place}/{name}", "size": "64M"}])
    assert snapshot([{"path": f"{place}/a"}]) == before


def test_a_guest_that_writes_a_header_into_its_raw_disk(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.raw", "size": "64M"}
    bring(qemu, [item])
    with open(item["path"], "r+b") as file:
        file.write(images.qcow2(backing=b"/etc/shadow").read(0, 1000))
    assert not bring(qemu, [item])["changed"]
    told = disk_images.report([item["path"]])["images"][0]
    assert (told["format"], told["chain"][0]["backing"], told["problem"]) == ("raw", None, None)
    assert disks.overlays_around([]) == {}
    with pytest.raises(Refused, match="qcow2"):
        bring(qemu, [{**item, "size": "128M"}])
    assert "qcow2" not in [word for words in qemu.calls for word in words]


def test_a_raw_disk_that_its_guest_has_encrypted_grows(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.raw", "size": "64M"}
    bring(qemu, [item])
    with open(item["path"], "r+b") as file:
        file.write(b"LUKS\xba\xbe\0\2")
    twice(qemu, [{**item, "size": "128M"}], [["resize"]])


# -- Sources from outside


@pytest.mark.parametrize(
    "image",
    [
        images.qcow2(backing=b"/etc/passwd"),
        images.qcow2(incompatible=4, data_file=b"/etc/passwd"),
        images.qcow2(virtual=2 * 2**40),
        images.qcow2(clusters=(5,)).cut(200_000),
        images.vmdk(),
    ],
)
def test_a_hostile_source_is_never_opened_by_qemu(place: Path, qemu: Qemu, image: images.Bytes) -> None:
    image.write(place / "s.qcow2")
    for check_mode in (True, False):
        with pytest.raises(Refused, match=r"s\.qcow2"):
            bring(qemu, [{"path": f"{place}/a", "source": {"path": f"{place}/s.qcow2"}}], check_mode=check_mode)
    assert qemu.calls == []
    assert os.listdir(place) == ["s.qcow2"]


def test_a_damaged_source(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "s.qcow2")
    qemu.checks = [(2, '{"check-errors": 0, "corruptions": 3}')]
    with pytest.raises(Refused, match="damaged"):
        bring(qemu, [{"path": f"{place}/a", "source": {"path": f"{place}/s.qcow2"}}])
    assert qemu.verbs == ["check"]


def test_check_mode_before_anything_was_brought_to_the_host(place: Path, qemu: Qemu) -> None:
    source = {"path": f"{place}/later.vmdk"}
    items: Items = [
        {"path": f"{place}/a", "source": source},
        {"path": f"{place}/b", "source": source, "size": "10M"},
        {"path": f"{place}/c", "backing": f"{place}/later.qcow2"},
    ]
    would = bring(qemu, items, check_mode=True)
    assert [one["actions"] for one in would["images"]] == [["convert"], ["convert"], ["create"]]
    assert [one["virtual_bytes"] for one in would["images"]] == [None, 10 * MIB, None]
    with pytest.raises(InputError, match=r"later\.vmdk"):
        bring(qemu, items)


@pytest.mark.parametrize("size", [None, "10M"])
def test_check_mode_before_the_source_was_brought_anew(place: Path, qemu: Qemu, size: t.Optional[str]) -> None:
    """What is fetched then is another file, by its time at least."""
    source = images.qcow2(4 * MIB).write(place / "s.qcow2")
    item = {"path": f"{place}/a", "source": {"path": str(source)}, "replace": True, "size": size}
    bring(qemu, [item, {"path": f"{place}/empty", "size": "1M"}])
    source.unlink()
    before = snapshot([item])
    would = bring(qemu, [item, {**item, "path": f"{place}/empty"}], check_mode=True)
    assert [one["actions"] for one in would["images"]] == [["replace"], ["replace"]]
    assert would["images"][0]["virtual_bytes"] == (size and 10 * MIB)
    assert snapshot([item]) == before
    with pytest.raises(InputError, match=r"no file .*s\.qcow2"):
        bring(qemu, [item])


def test_a_wrong_checksum(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "s.qcow2")
    source = {"path": f"{place}/s.qcow2", "checksum": "sha256:" + "0" * 64}
    with pytest.raises(Refused, match="has the sha256"):
        bring(qemu, [{"path": f"{place}/a", "source": source}])
    assert qemu.calls == []


def test_a_source_that_is_swapped_while_it_is_read(place: Path, qemu: Qemu) -> None:
    source = images.qcow2().write(place / "s.qcow2")

    def swap(target: str) -> CommandResult:
        with open(source, "ab") as file:
            file.write(b"more")
        return CommandResult(("qemu-img",), 0)

    qemu.fail["convert"] = swap
    with pytest.raises(Refused, match="changed while it was read"):
        bring(qemu, [{"path": f"{place}/a", "source": {"path": str(source)}}])
    assert os.listdir(place) == ["s.qcow2"]


@pytest.mark.parametrize("more", [{}, {"path": "a.vdi", "size": "100M"}])
def test_a_source_below_a_directory_that_is_swapped_is_the_one_that_was_looked_at(
    place: Path, qemu: Qemu, more: dict[str, t.Any]
) -> None:
    """Whoever owns a directory above it can have its path lead elsewhere at any time."""
    for number, name in enumerate(("mine", "theirs"), start=1):
        (place / name).mkdir()
        images.qcow2(number * MIB).write(place / f"{name}/s.qcow2")
    source = place / "mine/s.qcow2"
    looked_at = os.stat(source).st_ino
    read: list[str] = []

    def swap() -> None:
        for old, new in (("mine", "third"), ("theirs", "mine"), ("third", "theirs")):
            (place / old).rename(place / new)

    def run(argv: t.Sequence[str], **words: t.Any) -> CommandResult:
        verb = next(word for word in argv if word in ("check", "measure", "convert", "create", "resize"))
        swap()
        if verb in ("check", "measure", "convert"):
            read.append(verb)
            assert os.stat(argv[-2 if verb == "convert" else -1]).st_ino == looked_at
        result = qemu(argv, **words)
        swap()
        return result

    item = {"path": f"{place}/{more.get('path', 'a')}", "source": {"path": str(source)}, "size": more.get("size")}
    checksum = "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    item["source"]["checksum"] = checksum  # type: ignore[index]
    (made,) = disk_images.bring_to(Host(run=run), [item])["images"]
    assert made["virtual_bytes"] == (100 if more else 1) * MIB
    assert {"check", "convert"} <= set(read)


@pytest.mark.parametrize("verb", ["check", "convert"])
def test_users_know_a_source_by_its_path(place: Path, qemu: Qemu, verb: str) -> None:
    source = images.qcow2().write(place / "s.qcow2")

    def run(argv: t.Sequence[str], **words: t.Any) -> CommandResult:
        if verb in argv:
            opened = argv[-2 if verb == "convert" else -1]
            return CommandResult(
                tuple(argv), 1, opened, f"qemu-img: Could not open '{opened}': Failed to get shared lock"
            )
        return t.cast(CommandResult, qemu(argv, **words))

    with pytest.raises(Refused) as caught:
        disk_images.bring_to(Host(run=run), [{"path": f"{place}/a", "source": {"path": str(source)}}])
    assert str(caught.value).startswith(f"{source}: the image is in use by another process")
    assert str(source) in caught.value.details["argv"]
    assert "/proc/" not in f"{caught.value} {caught.value.details}"


def test_a_trusted_source_may_rest_on_others_but_not_without_end(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "b.qcow2")
    images.qcow2(backing=b"b.qcow2").write(place / "s.qcow2")
    source = {"path": f"{place}/s.qcow2", "trusted": True}
    bring(qemu, [{"path": f"{place}/a", "source": source}])
    assert all("prlimit" not in words for words in qemu.calls)
    # The name of what is below it may be relative to its own.
    assert next(words for words in qemu.calls if "convert" in words)[-2] == f"{place}/s.qcow2"
    images.qcow2(backing=b"s.qcow2").write(place / "b.qcow2")
    calls = len(qemu.calls)
    with pytest.raises(Refused, match="comes back"):
        bring(qemu, [{"path": f"{place}/c", "source": source}])
    images.qcow2(backing=b"nbd://192.0.2.1/x").write(place / "b.qcow2")
    with pytest.raises(Refused, match="no plain file"):
        bring(qemu, [{"path": f"{place}/c", "source": source}])
    assert len(qemu.calls) == calls


# -- Runs that are cut off


def killed(path: str) -> CommandResult:
    raise Killed


def full(path: str) -> CommandResult:
    return CommandResult(("qemu-img", "convert", path), 1, "", "qemu-img: error while writing: No space left on device")


CHANGES: dict[str, tuple[str, dict[str, t.Any]]] = {
    "replace": ("convert", {"source": {"path": "s.qcow2"}, "replace": True}),
    "flatten": ("rebase", {"flatten": True}),
    "rebase": ("rebase", {"backing": "c.qcow2"}),
    "repair": ("check", {"repair": "leaks"}),
}


def changing(place: Path, qemu: Qemu, change: str) -> tuple[str, dict[str, t.Any]]:
    """(the step in which the work is done, the item) for a change to an image ``a`` that rests on another one."""
    for name in ("b.qcow2", "c.qcow2", "s.qcow2"):
        images.qcow2().write(place / name)
    bring(qemu, [{"path": f"{place}/a", "backing": f"{place}/b.qcow2"}])
    verb, words = CHANGES[change]
    words = {
        key: f"{place}/{value}"
        if key == "backing"
        else {"path": f"{place}/{value['path']}"}
        if key == "source"
        else value
        for key, value in words.items()
    }
    return verb, {"path": f"{place}/a", **words}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", [killed, full])
def test_a_run_that_is_cut_off_leaves_what_was_there(
    place: Path, qemu: Qemu, change: str, how: t.Callable[[str], CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, item = changing(place, qemu, change)
    before = (place / "a").read_bytes(), os.stat(place / "a").st_ino
    leaks = (3, '{"check-errors": 0, "leaks": 2}')
    if change == "repair":
        real, seen = qemu.check, []

        def second(given: list[str]) -> CommandResult:
            seen.append(given)
            return how(given[-1]) if len(seen) == 2 else real(given)

        qemu.checks = [leaks]
        monkeypatch.setattr(qemu, "check", second)
    else:
        qemu.fail[verb] = how
    if how is killed:
        # Nothing is cleared away then.
        monkeypatch.setattr(files, "remove_file", lambda path, durable=False: None)
    with pytest.raises((Killed, CnvmError)) as caught:
        bring(qemu, [item])
    assert how is killed or f"no room left for {place}/a." in str(caught.value)
    assert ((place / "a").read_bytes(), os.stat(place / "a").st_ino) == before
    assert os.path.exists(disks.temporary(f"{place}/a")) == (how is killed)
    monkeypatch.undo()
    monkeypatch.setattr(paths, "RUN", str(place.parent / "run"))
    monkeypatch.setattr(paths, "DISK_RECORDS", str(place.parent / "records"))
    qemu.fail.clear()
    qemu.checks = [leaks] if change == "repair" else []
    assert bring(qemu, [item])["images"][0]["actions"] == [change]
    assert not os.path.exists(disks.temporary(f"{place}/a"))


@pytest.mark.parametrize("change", [*CHANGES, "grow"])
@pytest.mark.parametrize("still", [True, False])
def test_what_a_guest_writes_while_a_copy_is_made_is_not_lost(
    place: Path, qemu: Qemu, change: str, still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started after the first look; it runs still when the copy is made, or it has written and ended."""
    item: dict[str, t.Any] = {"path": f"{place}/a.vdi", "size": "64M"}
    if change == "grow":
        bring(qemu, [item])
        item["size"] = "128M"
    else:
        item = changing(place, qemu, change)[1]
    qemu.checks = [(3, '{"check-errors": 0, "leaks": 2}')] if change == "repair" else []

    def run(argv: t.Sequence[str], **words: t.Any) -> CommandResult:
        if "cp" in argv or "convert" in argv:
            if still:
                monkeypatch.setattr(disks, "in_use", lambda path: path == item["path"])
            else:
                with open(item["path"], "ab") as file:
                    file.write(b"mail")
        return t.cast(CommandResult, qemu(argv, **words))

    with pytest.raises(Refused, match="was used while"):
        disk_images.bring_to(Host(run=run), [item])
    assert still or Path(item["path"]).read_bytes().endswith(b"mail")
    assert not os.path.exists(disks.temporary(item["path"]))


def test_what_a_killed_run_left_goes_even_when_there_is_nothing_to_do(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.raw", "size": "1M"}
    bring(qemu, [item])
    Path(disks.temporary(item["path"])).write_bytes(b"half")
    assert bring(qemu, [item], check_mode=True)["changed"] is False
    assert len(os.listdir(place)) == 2
    assert not bring(qemu, [item])["changed"]
    assert os.listdir(place) == ["a.raw"]


def test_no_room_is_said_before_it_begins(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "s.qcow2")
    qemu.required = 2**60
    with pytest.raises(HostError, match="There is no room for"):
        bring(qemu, [{"path": f"{place}/a", "source": {"path": f"{place}/s.qcow2"}}])
    assert "convert" not in qemu.verbs


@pytest.mark.parametrize(("preallocation", "measured"), [("off", "qcow2"), ("full", "raw")])
def test_a_raw_image_with_holes_needs_no_room_for_them(
    place: Path, qemu: Qemu, preallocation: str, measured: str
) -> None:
    images.qcow2().write(place / "s.qcow2")
    item = {"path": f"{place}/a.raw", "source": {"path": f"{place}/s.qcow2"}, "preallocation": preallocation}
    bring(qemu, [item])
    (asked,) = (words for words in qemu.calls if "measure" in words)
    assert asked[asked.index("-O") + 1] == measured


def test_two_at_once(place: Path, qemu: Qemu) -> None:
    item = {"path": f"{place}/a.raw", "size": "1M"}
    with disks.at_work_on(item["path"]), pytest.raises(Refused, match="is at work on it"):
        bring(qemu, [item])
    assert bring(qemu, [item])["changed"]


# -- The functions for others


def test_an_overlay_cannot_make_a_circle_or_too_long_a_chain(place: Path, qemu: Qemu) -> None:
    host = Host(run=qemu)
    images.qcow2().write(place / "0")
    for number in range(MOST_DEPTH - 1):
        disks.create_overlay(host, f"{place}/{number}", "qcow2", f"{place}/{number + 1}")
    last = MOST_DEPTH - 1
    assert len(disks.chain(f"{place}/{last}")) == MOST_DEPTH
    with pytest.raises(Refused, match="as long as it may be"):
        disks.create_overlay(host, f"{place}/{last}", "qcow2", f"{place}/x")
    with pytest.raises(Refused, match="is below"):
        disks.create_overlay(host, f"{place}/3", "qcow2", f"{place}/1")
    with pytest.raises(Refused, match="only grow"):
        disks.create_overlay(host, f"{place}/3", "qcow2", f"{place}/y", 512)
    with pytest.raises(Refused, match="no VMware"):
        disks.create_overlay(host, f"{place}/3", "vmdk", f"{place}/y")


def test_a_rebase_cannot_make_a_circle(place: Path, qemu: Qemu) -> None:
    images.qcow2().write(place / "a")
    images.qcow2(backing=b"a", backing_format=b"qcow2").write(place / "b.qcow2")
    item = {"path": f"{place}/a", "backing": f"{place}/b.qcow2"}
    for how in ("safe", "unsafe"):
        with pytest.raises(Refused):
            bring(qemu, [{**item, "rebase": how}])
    assert "rebase" not in qemu.verbs


def test_convert_keeps_the_image_where_the_size_cannot_be_had(place: Path, qemu: Qemu) -> None:
    images.qcow2(10 * MIB).write(place / "s.qcow2")
    (place / "a").write_text("before")
    qemu.fail["convert"] = lambda path: (images.qcow2(5 * MIB).write(Path(path)), CommandResult((), 0))[1]
    with pytest.raises(HostError, match="got 5242880 bytes"):
        disks.convert(Host(run=qemu), f"{place}/s.qcow2", "qcow2", f"{place}/a", Making("qcow2"))
    assert (place / "a").read_text() == "before"


def test_device_numbers_and_times_make_a_fingerprint(place: Path) -> None:
    (place / "a").write_bytes(b"12345")
    with disks.File(f"{place}/a") as file:
        before = file.fingerprint()
        assert file.digest() == hashlib.sha256(b"12345").hexdigest()
        assert (file.read(1, 3), file.read(4, 100), file.read(99, 1)) == (b"234", b"5", b"")
        os.utime(place / "a", (1, 1))
        assert file.fingerprint() != before


# -- Telling


def test_a_report_names_all_that_is_below_and_above(place: Path, qemu: Qemu) -> None:
    bring(qemu, [{"path": f"{place}/b.qcow2", "size": "64M"}, {"path": f"{place}/o", "backing": f"{place}/b.qcow2"}])
    told = disk_images.report([f"{place}/o", f"{place}/b.qcow2", f"{place}/none"], with_digest=True)
    top, base, none = told["images"]
    assert [one["path"] for one in top["chain"]] == [f"{place}/o", f"{place}/b.qcow2"]
    assert (top["backing"], top["dependants"], base["dependants"]) == (f"{place}/b.qcow2", [], [f"{place}/o"])
    assert base["digest"] == hashlib.sha256((place / "b.qcow2").read_bytes()).hexdigest()
    assert none == {"path": f"{place}/none", "exists": False, "problem": None, "chain": []}


def test_where_nobody_can_say_what_rests_on_it_the_rest_is_told(
    place: Path, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = {"path": f"{place}/b.qcow2", "size": "64M"}
    bring(qemu, [item])
    monkeypatch.setattr(disks, "MOST_FILES", 0)
    told = disk_images.report([item["path"]])
    assert (told["images"][0]["virtual_bytes"], told["images"][0]["dependants"]) == (64 * MIB, None)
    (words,) = told["warnings"]
    assert words.startswith("What rests on the images here is not known: There are more than 0 files in")
    assert disk_images.report([item["path"]], with_dependants=False)["warnings"] == []
    # What would be lost with it must be known.
    with pytest.raises(HostError, match="more than 0 files"):
        bring(qemu, [{**item, "state": "absent"}])
    assert os.path.exists(item["path"])


def test_a_report_says_what_is_wrong(place: Path) -> None:
    images.qcow2(backing=b"gone").write(place / "a")
    images.qcow2(backing=b"b").write(place / "b")
    images.qcow2(version=9).write(place / "c")
    images.vmdk(descriptor=images.DESCRIPTOR + b'RW 5 FLAT "/etc/shadow" 0\n').write(place / "d")
    images.Bytes(4096, {0: b"LUKS\xba\xbe"}).write(place / "e")
    os.mkfifo(place / "f")
    told = disk_images.report([f"{place}/{name}" for name in "abcdef"])
    problems = {one["path"][-1]: one["problem"] for one in told["images"]}
    for name, words in zip("abcdef", ("gone", "comes back", "version is 9", "/etc/shadow", "luks", "no plain file")):
        assert words in problems[name]


def test_scanning_survives_what_lies_around(place: Path) -> None:
    images.qcow2(version=9).write(place / "broken")
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    images.qcow2(backing=b"../d/./base").write(place / "o")
    (place / "base").write_bytes(b"raw")
    (place / "other").symlink_to("base")
    assert disks.dependants([str(place), "/does/not/exist"], f"{place}/other") == [f"{place}/o"]


def test_locks_of_others_do_not_hinder(place: Path) -> None:
    (place / "a").write_bytes(b"x")
    with open(place / "a", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not disks.in_use(f"{place}/a")
