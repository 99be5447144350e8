# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees through tar streams and back, and archives that try to escape."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import socket
import stat
import struct
import tarfile
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import archive
from ansible_collections.cnvm.platform.plugins.module_utils._oci.members import Policy, difference, layer_policy

# Changing the root of a process and making device nodes are root's.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Members = t.Sequence["tuple[tarfile.TarInfo, bytes]"]

PLAIN = Policy()


def member(name: str, content: bytes = b"", **fields: t.Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member with anything in its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, **fields: t.Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def tar(members: Members, kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content) if content else None)
    return out.getvalue()


def extract(data: bytes, dest: Path, policy: Policy = PLAIN, removals: t.Sequence[str] = ()) -> archive.Tally:
    return archive.extract(io.BytesIO(data), str(dest), policy, removals=removals)


def packed(root: Path, **options: t.Any) -> bytes:
    out = io.BytesIO()
    archive.pack(str(root), out, **options)
    return out.getvalue()


def tree(root: Path) -> dict[str, t.Any]:
    """All that must survive: type, mode, owner, time, links, devices, attributes, content."""
    found: dict[str, t.Any] = {}
    first: dict[int, str] = {}
    for path, status in archive.walk(str(root)):
        full = root / path
        content: t.Any = None
        if stat.S_ISREG(status.st_mode):
            content = full.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(full)
        same = first.setdefault(status.st_ino, path)
        names = sorted(
            name for name in os.listxattr(full, follow_symlinks=False) if not name.startswith("security.sel")
        )
        found[path] = (
            oct(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            status.st_rdev,
            same,
            content,
            {name: os.getxattr(full, name, follow_symlinks=False) for name in names},
        )
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A layer with everything in it."""
    root = tmp_path / "source"
    (root / "etc/deep/er").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    os.chown(root / "etc/passwd", 12345, 4_000_000_000)
    os.utime(root / "etc/passwd", ns=(5, 1_600_000_000_123_456_789))
    os.utime(root / "etc", ns=(5, -1_500_000_000))
    (root / "set").write_bytes(b"x" * 3000)
    os.chmod(root / "set", 0o6755)
    os.link(root / "set", root / "etc/same")
    (root / "link").symlink_to("../../etc/passwd")
    (root / ("long" * 60)).symlink_to("target" * 40)
    (root / "tätigkeit").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"not UTF-8")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (root / "empty").mkdir(mode=0o700)
    os.chmod(root / "etc/deep", 0o2775)
    os.setxattr(root / "set", "user.bytes", b"\x00\xff=\n1")
    with open(root / "sparse", "wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(b"in the middle")
    return root


def layer_attributes(root: Path) -> None:
    """Attributes that not every file system of a test machine takes."""
    try:
        os.setxattr(root / "empty", "trusted.overlay.opaque", b"y")
        os.setxattr(root / "empty", "trusted.overlay.origin", b"\x00")
    except OSError:
        pytest.skip("this file system has no trusted attributes")


def test_a_tree_comes_out_as_it_went_in(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    tally = extract(packed(source, layer=True), tmp_path / "out", layer_policy())
    assert tree(tmp_path / "out") == tree(source)
    assert tally.entries == len(tree(source)) + 1


def test_gnu_tar_reads_what_was_packed(source: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(source, layer=True))) as file:
        names = {info.name.rstrip("/") for info in file.getmembers()}
        assert {"etc/passwd", "link", "whiteout", "tätigkeit", "etc/same"} <= names
        info = file.getmember("etc/passwd")
        assert (info.uid, info.gid) == (12345, 4_000_000_000)
        assert info.mtime == pytest.approx(1_600_000_000.123456)
        middle = file.extractfile("sparse")
        assert middle is not None
        assert middle.read().strip(b"\0") == b"in the middle"


def test_holes_are_neither_sent_nor_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    data = packed(source)
    assert len(data) < 5 << 20
    extract(data, tmp_path / "out", layer_policy())
    assert os.stat(tmp_path / "out/sparse").st_size == 50 << 20
    assert os.stat(tmp_path / "out/sparse").st_blocks * 512 < 5 << 20


@pytest.mark.parametrize("paths", [None, ["etc/same", "set", "sparse", "etc", "link", "gone"], ["etc/same"], []])
def test_the_bytes_of_a_tree_are_those_that_are_sent(source: Path, paths: t.Optional[list[str]]) -> None:
    sent = archive.pack(str(source), io.BytesIO(), paths=paths, layer=True).bytes
    assert archive.content_bytes(str(source), paths) == sent < 5 << 20


def test_attributes_of_overlayfs_only_with_a_layer(source: Path, tmp_path: Path) -> None:
    layer_attributes(source)
    for name, layer, wanted in (("layer", True, ["trusted.overlay.opaque"]), ("image", False, [])):
        (tmp_path / name).mkdir()
        extract(packed(source, layer=layer), tmp_path / name, layer_policy())
        assert [one for one in os.listxattr(tmp_path / name / "empty") if one.startswith("trusted")] == wanted


def test_whiteouts_only_with_a_layer(source: Path) -> None:
    out = io.BytesIO()
    assert archive.pack(str(source), out).skipped == ["whiteout"]


def test_sockets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "in/socket"))
        out = io.BytesIO()
        assert archive.pack(str(tmp_path / "in"), out).skipped == ["socket"]


def test_prefix_and_extra_files(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    data = packed(source, prefix="rootfs", extra=[("config.json", b"{}")])
    extract(data, tmp_path / "out", layer_policy())
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "rootfs"]
    assert (tmp_path / "out/config.json").read_bytes() == b"{}"


def test_only_some_paths(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    extract(packed(source, paths=["etc/passwd", "gone", "link"]), tmp_path / "out")
    assert sorted(tree(tmp_path / "out")) == ["etc", "etc/passwd", "link"]


def test_a_stream_may_go_on_after_the_archive(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    receive, send = os.pipe()
    if os.fork() == 0:
        os.close(receive)
        with os.fdopen(send, "wb") as out:
            archive.pack(str(source), out)
            out.write(b"and then this")
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb", buffering=0) as stream:
        archive.extract(t.cast("t.BinaryIO", stream), str(tmp_path / "out"), layer_policy())
        assert stream.read(100) == b"and then this"
    os.wait()


@pytest.mark.parametrize("question", [os.SEEK_DATA, os.SEEK_HOLE])
@pytest.mark.parametrize(("number", "fails"), [(errno.EIO, True), (errno.ENXIO, False)])
def test_a_disk_that_fails_has_no_holes(
    number: int, fails: bool, question: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a writer end the copy who cuts a file off in the middle of the questions."""
    seek = os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how == question:
            raise OSError(number, os.strerror(number))
        return seek(fd, at, how)

    size = (source / "sparse").stat().st_size
    assert archive.content_bytes(str(source), ["sparse"]) < size
    monkeypatch.setattr(os, "lseek", lseek)
    with pytest.raises(OSError, match="Input") if fails else contextlib.nullcontext():
        archive.pack(str(source), io.BytesIO(), paths=["sparse"])
    # That is only how much it may be.
    assert archive.content_bytes(str(source), ["sparse"]) == (size if fails else 0)


@pytest.mark.parametrize("becomes", ["nothing", "a link", "a directory", "a pipe"])
def test_what_goes_while_it_is_packed_is_left_out(
    becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container goes on writing while its layer is copied."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("a", "gone", "z"):
        (source / name).write_text(name)
    os.link(source / "gone", source / "kept")
    (source / "link").symlink_to("a")
    walked = archive.walk
    make: dict[str, t.Callable[[Path], None]] = {
        "a link": lambda place: place.symlink_to("z"), "a directory": Path.mkdir, "a pipe": os.mkfifo,
    }  # fmt: skip

    def walk(root: str) -> t.Iterator[tuple[str, os.stat_result]]:
        for path, status in walked(root):
            if path in ("gone", "link"):
                (source / path).unlink()
                if path == "gone" and becomes in make:
                    make[becomes](source / path)
            yield path, status

    monkeypatch.setattr(archive, "walk", walk)
    data = packed(source, layer=True)
    monkeypatch.undo()
    extract(data, target, layer_policy())
    assert sorted(os.listdir(target)) == ["a", "kept", "z"]
    assert (target / "kept").read_text() == "gone"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODATA])
def test_an_attribute_that_goes_while_it_is_packed_is_left_out(
    number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its file, for which another one may stand there by now, or alone."""

    def getxattr(path: t.Any, name: str, **options: t.Any) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "listxattr", lambda path, **options: ["user.x"])
    monkeypatch.setattr(os, "getxattr", getxattr)
    assert archive.attributes_of(str(source), layer_policy()) == []


def test_a_default_acl_is_not_handed_down(tmp_path: Path) -> None:
    """What is made in such a directory while it is unpacked may be older than the ACL, and has none."""
    everything = ((0x01, 7, 2**32 - 1), (0x02, 6, 5), (0x04, 5, 2**32 - 1), (0x10, 7, 2**32 - 1), (0x20, 5, 2**32 - 1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in everything)
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "shared/below").mkdir(parents=True)
    target.mkdir()
    (source / "shared/file").write_text("x")
    os.mkfifo(source / "shared/fifo")
    for path in (source / "shared/file", source / "shared/fifo"):
        os.chmod(path, 0o660)
    try:
        os.setxattr(source / "shared", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this file system has no ACLs")
    (source / "shared/heir").write_text("x")
    before = settle(source)
    extract(packed(source, layer=True), target, layer_policy())
    assert tree(target) == tree(source)
    (source / "shared/late").write_text("x")
    os.removexattr(source / "shared/late", "system.posix_acl_access")
    changed, removed = difference(before, archive.snapshot(str(source)))
    extract(packed(source, layer=True, paths=changed), target, layer_policy(), removals=removed)
    assert tree(target) == tree(source)


# -- The second round of a synchronisation ----------------------------------------------------------------------------
def settle(root: Path) -> dict[str, tuple[int, ...]]:
    time.sleep(0.06)
    return archive.snapshot(str(root), now_ns=time.time_ns())


def test_a_second_round_makes_both_sides_equal(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    before = settle(source)
    extract(packed(source, layer=True), target, layer_policy())
    (source / "etc/passwd").write_text("changed")
    os.unlink(source / "link")
    (source / "link").mkdir()
    (source / "link/now a directory").write_text("x")
    shutil.rmtree(source / "etc/deep")
    (source / "etc/deep").symlink_to("/")
    os.unlink(source / "fifo")
    os.chmod(source / "empty", 0o711)
    (source / "new").mkdir()
    os.link(source / "set", source / "new/third")
    changed, removed = difference(before, archive.snapshot(str(source)))
    assert "sparse" not in changed
    assert removed == ["etc/deep/er", "fifo"]
    extract(packed(source, layer=True, paths=changed), target, layer_policy(), removals=removed)
    assert tree(target) == tree(source)


def test_what_changed_just_before_the_snapshot_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    time.sleep(0.06)
    (tmp_path / "fresh").write_text("x")
    before = archive.snapshot(str(tmp_path), now_ns=time.time_ns())
    changed, removed = difference(before, archive.snapshot(str(tmp_path)))
    assert (changed, removed) == (["fresh"], [])


def test_random_changes_arrive(tmp_path: Path) -> None:
    """Whatever is done to a layer, the second round brings it over."""
    chance = random.Random(4711)
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()

    def shake(rounds: int) -> None:
        for _turn in range(rounds):
            places = [source, *(path for path in source.rglob("*") if path.is_dir() and not path.is_symlink())]
            place = chance.choice(places) / f"n{chance.randrange(12)}"
            if place.is_symlink() or place.is_file():
                place.unlink()
            elif place.is_dir() and chance.random() < 0.3:
                shutil.rmtree(place)
            elif not place.exists():
                what = chance.random()
                if what < 0.5:
                    place.write_bytes(os.urandom(chance.randrange(3000)))
                elif what < 0.8:
                    place.mkdir()
                else:
                    place.symlink_to(chance.choice(["/etc", "..", "n1", "/"]))

    for _round in range(5):
        shake(40)
        before = settle(source)
        shutil.rmtree(target)
        target.mkdir()
        extract(packed(source, layer=True), target, layer_policy())
        shake(25)
        changed, removed = difference(before, archive.snapshot(str(source)))
        extract(packed(source, layer=True, paths=changed), target, layer_policy(), removals=removed)
        assert tree(target) == tree(source)


def test_removals_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("alive")
    (tmp_path / "out/real").mkdir(parents=True)
    (tmp_path / "out/real/kept").write_text("alive")
    (tmp_path / "out/link").symlink_to("real")
    (tmp_path / "out/far").symlink_to("..")
    for path in ("../canary", "/../canary", "link/kept"):
        with pytest.raises(InputError):
            extract(tar([]), tmp_path / "out", layer_policy(), removals=[path])
    extract(tar([]), tmp_path / "out", layer_policy(), removals=["far/canary", "far"])
    assert (tmp_path / "canary").read_text() == "alive"
    assert (tmp_path / "out/real/kept").read_text() == "alive"
    assert sorted(os.listdir(tmp_path / "out")) == ["link", "real"]


# -- Hostile archives -------------------------------------------------------------------------------------------------
HOSTILE: dict[str, tuple[Members, str]] = {
    "absolute": ([member("/tmp/x", b"x")], "absolute"),
    "dots": ([member("../x", b"x")], r"\.\."),
    "dots inside": ([directory("a"), member("a/../../x", b"x")], r"\.\."),
    "file through a link": ([link("a", "/"), member("a/x", b"x")], "no directory"),
    "file through a relative link": ([link("a", ".."), member("a/x", b"x")], "no directory"),
    "directory through a link": ([link("a", "/"), directory("a/x")], "no directory"),
    "link through a link": ([link("a", "/"), link("a/x", "y")], "no directory"),
    "hard link outside": ([link("a", "../../etc/passwd", tarfile.LNKTYPE)], r"\.\."),
    "absolute hard link": ([link("a", "/etc/passwd", tarfile.LNKTYPE)], "absolute"),
    "hard link through a link": ([link("a", "/"), link("b", "a/etc/passwd", tarfile.LNKTYPE)], "no directory"),
    "hard link to nothing": ([link("a", "b", tarfile.LNKTYPE)], "does not hold"),
    "hard link to a directory": ([directory("b"), link("a", "b", tarfile.LNKTYPE)], "does not hold"),
    "character device": ([member("a", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "device"),
    "block device": ([member("a", type=tarfile.BLKTYPE, devmajor=8, devminor=0)], "device"),
    "whiteout": ([member("a", type=tarfile.CHRTYPE, devmajor=0, devminor=0)], "device"),
    "set-user-id": ([member("a", b"x", mode=0o4755)], "set-user-id"),
    "set-group-id": ([member("a", b"x", mode=0o2755)], "set-user-id"),
    "capabilities": ([member("a", b"x", pax_headers={"SCHILY.xattr.security.capability": "x"})], "capabilities"),
    "huge owner": ([member("a", b"x", uid=2**32 - 1)], "owner"),
    "path by pax": ([member("a", b"x", pax_headers={"path": "../x"})], r"\.\."),
    "target by pax": ([member("a", type=tarfile.LNKTYPE, linkname="b", pax_headers={"linkpath": "/b"})], "absolute"),
    "time by pax": ([member("a", b"x", pax_headers={"mtime": "nan"})], "time"),
    "target with a NUL": ([member("a", type=tarfile.SYMTYPE, pax_headers={"linkpath": "x\0y"})], "cannot be unpacked"),
    "unknown type": ([member("a", b"x", type=b"Q")], "unknown type"),
    "root that is a file": ([member(".", b"x")], "root"),
    "file over a full directory": ([directory("a"), member("a/b", b"x"), member("a", b"x")], "replaces the directory"),
    "link over a full directory": ([directory("a"), member("a/b", b"x"), link("a", "/")], "replaces the directory"),
}


@pytest.fixture
def arena(tmp_path: Path) -> t.Iterator[Path]:
    """A destination whose surroundings must not change."""
    (tmp_path / "around").mkdir()
    (tmp_path / "around/canary").write_text("alive")
    dest = tmp_path / "around/dest"
    dest.mkdir()
    etc = archive.snapshot("/etc")
    yield dest
    assert sorted(os.listdir(tmp_path / "around")) == ["canary", "dest"]
    assert (tmp_path / "around/canary").read_text() == "alive"
    assert os.stat(tmp_path / "around/canary").st_nlink == 1
    assert archive.snapshot("/etc") == etc
    assert not os.path.exists("/x")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_member_is_refused(case: str, arena: Path) -> None:
    members, reason = HOSTILE[case]
    with pytest.raises(InputError, match=reason):
        extract(tar(members), arena)


@pytest.mark.parametrize("case", ["dots", "absolute", "file through a link", "hard link through a link"])
def test_no_policy_lets_anything_escape(case: str, arena: Path) -> None:
    """What is allowed for layers of our own is what is in a file, never where it goes."""
    with pytest.raises(InputError):
        extract(tar(HOSTILE[case][0]), arena, layer_policy())


def test_link_is_replaced_and_not_followed(arena: Path) -> None:
    extract(tar([link("a", "../canary"), member("a", b"mine")]), arena)
    assert not (arena / "a").is_symlink()
    assert (arena / "a").read_bytes() == b"mine"


def test_the_last_one_of_twins_wins(arena: Path) -> None:
    extract(tar([member("a", b"one"), member("a", b"two")]), arena)
    assert (arena / "a").read_bytes() == b"two"


def test_directories_that_are_not_named_are_made(arena: Path) -> None:
    extract(tar([member("a/b/c", b"x", mode=0o600)]), arena)
    assert stat.S_IMODE(os.stat(arena / "a/b").st_mode) == 0o755


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_both_dialects(arena: Path, kind: int) -> None:
    name = "/".join(["d" * 90] * 4)
    extract(tar([member(name, b"x"), link("l", "t" * 300)], kind), arena)
    assert (arena / name).read_bytes() == b"x"
    assert os.readlink(arena / "l") == "t" * 300


def test_limits(arena: Path) -> None:
    with pytest.raises(InputError, match="more than 2 entries"):
        extract(tar([member(f"f{count}") for count in range(3)]), arena, Policy(max_entries=2))
    with pytest.raises(InputError, match="more than 1000 bytes"):
        extract(tar([member("a", b"x" * 1001)]), arena, Policy(max_bytes=1000))


def test_a_sparse_giant_counts_as_what_it_claims_to_be(arena: Path) -> None:
    fields = {"GNU.sparse.map": f"0,1,{2**40},0", "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "2"}
    with pytest.raises(InputError, match="unpacks to more"):
        extract(tar([member("a", b"x", pax_headers=fields)]), arena, Policy(max_bytes=2**30))
    assert not (arena / "a").exists()


@pytest.mark.parametrize("holes", ["0,1,5,10", "0,-1", "9,9", "0,1,x"])
def test_wrong_map_of_holes(arena: Path, holes: str) -> None:
    fields = {"GNU.sparse.map": holes, "GNU.sparse.size": "10", "GNU.sparse.numblocks": "1"}
    with pytest.raises(InputError):
        extract(tar([member("a", b"x", pax_headers=fields)]), arena)


def test_a_bomb_is_stopped_by_its_ratio(arena: Path) -> None:
    path = arena.parent / "canary.gz"
    path.write_bytes(gzip.compress(tar([member("a", bytes(80 << 20))])))
    try:
        with pytest.raises(InputError, match="unpacks to more"):
            archive.extract_file(str(path), str(arena), Policy(max_ratio=10))
    finally:
        path.unlink()


def test_a_giant_header_is_not_read(arena: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    with pytest.raises(InputError):
        extract(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240), arena)


DATA = tar([member("a", b"x" * 1000), member("b", b"y" * 1000)])


def test_a_giant_map_of_holes_is_not_read(arena: Path) -> None:
    """Each of its numbers takes more of our memory than of the archive."""
    numbers = b"99999999\n" + b"00000000000000000000\n" * 300_000
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "9"}
    with pytest.raises(InputError, match="header of"):
        extract(tar([member("a", numbers, pax_headers=headers)]), arena)


def test_a_chain_of_headers_is_not_followed(arena: Path) -> None:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:512])
    block[156:157] = b"L"
    block[124:136] = b"00000000001\0"
    block[148:156] = b"%06o\0 " % sum(bytes(block[:148]) + b" " * 8 + bytes(block[156:]))
    with pytest.raises(InputError, match="damaged"):
        extract((bytes(block) + b"y".ljust(512, b"\0")) * 3000, arena)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 700, 1535, 1536, 2048, 2100])
def test_cut_off(arena: Path, length: int) -> None:
    with pytest.raises(InputError, match=r"cut off|damaged"):
        extract(DATA[:length], arena)


def test_garbage(arena: Path) -> None:
    for data in (b"\xff" * 2048, b"<html>" * 400, DATA[:100] + b"\x01" + DATA[101:]):
        with pytest.raises(InputError):
            extract(data, arena)


def test_nothing_may_follow_where_nothing_should(arena: Path) -> None:
    extract(DATA, arena, Policy(to_the_end=True))
    for tail in (b"x", DATA):
        with pytest.raises(InputError, match="follows the end"):
            extract(DATA + tail, arena, Policy(to_the_end=True))


def test_only_what_belongs_at_the_top(arena: Path) -> None:
    policy = Policy(top=("rootfs", "config.json"))
    extract(tar([directory("./rootfs"), member("rootfs/x", b"x"), member("./config.json", b"{}")]), arena, policy)
    with pytest.raises(InputError, match="at its top"):
        extract(tar([member("other", b"x")]), arena, policy)


def test_fifos_where_they_are_not_wanted(arena: Path) -> None:
    tally = extract(tar([member("pipe", type=tarfile.FIFOTYPE)]), arena, Policy(allow_fifos=False))
    assert tally.skipped == ["pipe"]
    assert os.listdir(arena) == []


def test_foreign_attributes_are_dropped(arena: Path) -> None:
    headers = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "z"}
    extract(tar([member("a", b"x", pax_headers=headers)]), arena)
    assert [name for name in os.listxattr(arena / "a") if name != "security.selinux"] == []


# -- Compressed files -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pack_with", [bytes, gzip.compress, lzma.compress])
def test_the_content_tells_how_it_is_compressed(arena: Path, pack_with: t.Callable[[bytes], bytes]) -> None:
    path = arena.parent / "canary.txz"
    path.write_bytes(pack_with(DATA))
    try:
        archive.extract_file(str(path), str(arena), Policy(to_the_end=True))
    finally:
        path.unlink()
    assert sorted(os.listdir(arena)) == ["a", "b"]


@pytest.mark.parametrize("compression", archive.COMPRESSIONS)
def test_pack_file_and_back(source: Path, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "archive"
    archive.pack_file(str(source), str(path), compression=compression, layer=True)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    (tmp_path / "out").mkdir()
    archive.extract_file(str(path), str(tmp_path / "out"), layer_policy())
    assert tree(tmp_path / "out") == tree(source)


def test_cut_off_compressed_file(arena: Path) -> None:
    path = arena.parent / "canary.gz"
    path.write_bytes(gzip.compress(DATA + os.urandom(100_000))[:-50_000])
    try:
        with pytest.raises((InputError, HostError)):
            archive.extract_file(str(path), str(arena), Policy(to_the_end=True))
    finally:
        path.unlink()


def test_missing_program_is_named(arena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arena.parent / "canary.gz"
    path.write_bytes(gzip.compress(DATA))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    try:
        with pytest.raises(HostError, match="gzip"):
            archive.extract_file(str(path), str(arena), Policy())
    finally:
        path.unlink()


# -- Work in a changed root -------------------------------------------------------------------------------------------
def test_inside_sees_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    assert archive.inside(str(tmp_path), lambda: os.listdir("/"), "Looking") == ["here"]


def test_inside_hands_errors_back(tmp_path: Path) -> None:
    def fail() -> None:
        raise InputError("wrong", hint="do this")

    with pytest.raises(InputError, match="wrong do this"):
        archive.inside(str(tmp_path), fail, "Failing")
    with pytest.raises(HostError, match=r"Reading: .*No such file"):
        archive.inside(str(tmp_path), lambda: os.listdir("/none"), "Reading")
    with pytest.raises(HostError, match="died"):
        archive.inside(str(tmp_path), lambda: os._exit(3), "Dying")
