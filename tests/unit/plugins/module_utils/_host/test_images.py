# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image store: digests of content, names, and what may be removed."""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import stat
import tarfile
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import archive, building, bundles, files, images
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._oci.members import Policy

from .fake_qemu import Qemu
from .killing import at_each_effect

PROCESS = {"args": ["/init"]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store."""
    monkeypatch.setattr(paths, "IMAGES", str(tmp_path / "images"))
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "containers"))
    return tmp_path


def fill(root: Path, order: t.Sequence[str] = ("a", "b", "c")) -> Path:
    (root / "dir").mkdir(parents=True)
    for name in order:
        (root / "dir" / name).write_text(f"content of {name}")
    os.link(root / "dir/a", root / "dir/same")
    (root / "link").symlink_to("dir/a")
    os.chmod(root, 0o755)
    return root


def digest(root: Path, process: t.Optional[t.Mapping[str, t.Any]] = None) -> str:
    return images.tree_digest(str(root), PROCESS if process is None else process)[0]


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    one, other = fill(tmp_path / "one"), fill(tmp_path / "other", ("c", "b", "a"))
    os.utime(other / "dir/a", (5, 5))
    assert digest(one) == digest(other)


def replace_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("dir/b")


def copy_instead_of_link(root: Path) -> None:
    (root / "dir/same").unlink()
    (root / "dir/same").write_text("content of a")


def fifo_instead_of_file(root: Path) -> None:
    (root / "dir/c").unlink()
    os.mkfifo(root / "dir/c")


CHANGES: dict[str, t.Callable[[Path], object]] = {
    "content": lambda root: (root / "dir/b").write_text("content of x"),
    "name": lambda root: (root / "dir/b").rename(root / "dir/d"),
    "mode": lambda root: os.chmod(root / "dir/b", 0o600),
    "mode of the root": lambda root: os.chmod(root, 0o700),
    "attribute": lambda root: os.setxattr(root / "dir/b", "user.x", b"1"),
    "one file less": lambda root: (root / "dir/c").unlink(),
    "an empty directory": lambda root: (root / "empty").mkdir(),
    "target": replace_link,
    "a copy instead of a link": copy_instead_of_link,
    "a fifo instead of a file": fifo_instead_of_file,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_has_another_digest(tmp_path: Path, change: str) -> None:
    root = fill(tmp_path / "root")
    before = digest(root)
    try:
        CHANGES[change](root)
    except OSError:
        pytest.skip("this file system has no attributes")
    assert digest(root) != before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_and_devices_count(tmp_path: Path) -> None:
    root = fill(tmp_path / "root")
    seen = {digest(root)}
    os.chown(root / "dir/b", 5, 0)
    seen.add(digest(root))
    os.mknod(root / "node", stat.S_IFCHR, os.makedev(1, 3))
    seen.add(digest(root))
    (root / "node").unlink()
    os.mknod(root / "node", stat.S_IFCHR, os.makedev(1, 5))
    seen.add(digest(root))
    assert len(seen) == 4


def test_the_process_counts(tmp_path: Path) -> None:
    root = fill(tmp_path / "root")
    assert digest(root) != digest(root, {"args": ["/other"]})


def stored(name: str = "web", text: str = "x") -> str:
    with building.directory(paths.IMAGES, f"{name}-1") as made_in:
        place = Path(made_in)
        (place / "rootfs").mkdir()
        (place / "rootfs/file").write_text(text)
        made, _new = images.store(str(place), {"name": name, "process": PROCESS, "fingerprint": "f"})
    images.point(name, made)
    return made


def test_store_and_find(store: Path) -> None:
    made = stored()
    assert images.resolve("web") == (made, "web")
    assert images.resolve(made) == (made, "")
    assert images.resolve("other") == ("", "other")
    assert images.resolve("a" * 64) == ("", "")
    record = images.record_of_name("web")
    assert record is not None
    assert (record["digest"], record["entries"], record["size_bytes"]) == (made, 1, 1)
    assert os.listdir(store / "images/building") == []
    # What is set-user-id in it is nobody's on the host.
    assert oct(os.stat(paths.image_dir(made)).st_mode)[-3:] == "700"


def test_storing_twice_keeps_one(store: Path) -> None:
    assert stored("web") == stored("copy")
    assert len(os.listdir(store / "images/sha256")) == 1
    assert sorted(images.names()) == ["copy", "web"]


def test_pointing_again_is_no_change(store: Path) -> None:
    made = stored()
    assert not images.point("web", made)
    assert images.point("web", stored("other", "y"))


def test_another_digest_than_expected_is_not_stored(store: Path) -> None:
    with building.directory(paths.IMAGES, "web-1") as place:
        os.mkdir(f"{place}/rootfs")
        with pytest.raises(InputError, match="has the digest"):
            images.store(place, {"process": PROCESS}, expected="a" * 64)
    assert not (store / "images/sha256").exists()


def test_a_name_whose_image_is_gone_is_none(store: Path) -> None:
    images.point("web", "a" * 64)
    assert images.resolve("web") == ("", "web")
    assert images.record_of_name("web") is None


def test_removing_a_name_takes_the_image_with_it_unless_it_is_needed(store: Path) -> None:
    made = stored("web")
    images.point("alias", made)
    assert images.remove("web", check_mode=True) == ["name web"]
    assert images.remove("web") == ["name web"]
    (store / "containers/box").mkdir(parents=True)
    (store / "containers/box/definition.json").write_text(f'{{"image": "{made}"}}')
    assert images.remove("alias") == ["name alias"]
    assert images.remove("alias") == []
    with pytest.raises(InputError, match="container box"):
        images.remove(made)
    (store / "containers/box/definition.json").unlink()
    assert images.remove(made) == [f"image {made}"]
    assert os.listdir(store / "images/sha256") == []


@pytest.mark.parametrize("named", [True, False])
def test_removing_one_is_killed_at_each_step(store: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """The next run removes what is left of it."""
    word = "web"

    def make() -> None:
        nonlocal word
        made = stored("web")
        if not named:
            word = made
            os.unlink(paths.image_name_file("web"))

    def remove() -> None:
        images.remove(word)

    def look() -> None:
        remove()
        assert [os.listdir(store / "images" / place) for place in ("names", "sha256", "building")] == [[], [], []]

    assert at_each_effect(monkeypatch, make, remove, look) > 3


def test_a_changed_image_is_noticed(store: Path) -> None:
    made = stored()
    images.verify(made)
    Path(paths.image_dir(made), "rootfs/file").write_text("z")
    with pytest.raises(HostError, match="was changed"):
        images.verify(made)


# -- Making them ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc"])
def test_a_root_whose_mount_points_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/tmp")
    with pytest.raises(InputError, match=f"rootfs/{name}"):
        bundles.check_root(str(tmp_path))


def test_no_root_at_all(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    for name in ("none", "link"):
        with pytest.raises(InputError, match="no directory rootfs"):
            bundles.check_root(str(tmp_path / name))


def test_check_tree(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("12345")
    bundles.check_tree(str(tmp_path), Policy())
    with pytest.raises(InputError, match="more than"):
        bundles.check_tree(str(tmp_path), Policy(max_bytes=4))
    os.chmod(tmp_path / "file", 0o4755)
    with pytest.raises(InputError, match="set-user-id"):
        bundles.check_tree(str(tmp_path), Policy())


def test_fingerprint_follows_the_source(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"1")

    def known(**values: t.Any) -> str:
        return bundles.fingerprint(bundles.Wanted(**{"name": "x", "kind": "archive", "source": str(archive), **values}))

    first = known()
    assert known() == first
    assert known(overrides={"cwd": "/x"}) != first
    assert known(kind="rootfs") != first
    archive.write_bytes(b"2")
    assert known() != first
    rootfs = known(kind="rootfs", source=str(tmp_path / "root"))
    (tmp_path / "root/new").write_text("x")
    assert known(kind="rootfs", source=str(tmp_path / "root")) != rootfs


def test_a_given_fingerprint_needs_no_source() -> None:
    wanted = bundles.Wanted(name="x", kind="archive", source="/none", fingerprint="f")
    assert bundles.fingerprint(wanted) == bundles.fingerprint(
        bundles.Wanted(name="y", kind="mmdebstrap", fingerprint="f")
    )
    with pytest.raises(InputError, match="there is no /none"):
        bundles.fingerprint(bundles.Wanted(name="x", kind="archive", source="/none"))


def test_what_a_killed_run_left_goes_with_the_next_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has another process id."""
    wanted = bundles.Wanted(name="x", kind="rootfs", source="/none")

    def cut_off(wanted: bundles.Wanted, place: str) -> t.NoReturn:
        (Path(place) / "rootfs").mkdir()
        raise HostError("Cut off.", hint="")

    monkeypatch.setattr(bundles, "_from_rootfs", cut_off)
    with monkeypatch.context() as killed:
        killed.setattr(files, "remove_tree", lambda path: None)
        killed.setattr(os, "getpid", lambda: 7)
        with pytest.raises(HostError, match="Cut off"):
            bundles.make(Host(run=Qemu()), wanted, "f")
    (left,) = (store / "images/building").iterdir()
    assert (left / "rootfs").is_dir()
    with pytest.raises(HostError, match="Cut off"):
        bundles.make(Host(run=Qemu()), wanted, "f")
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("kind", ["mmdebstrap", "rootfs"])
def test_what_no_archive_of_it_brings_is_not_in_the_image(
    kind: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the socket of an agent that a command has started: elsewhere the image would have another digest."""

    def fill_root(root: Path) -> None:
        (root / "run").mkdir(parents=True, exist_ok=True)
        (root / "file").write_text("x")
        with socket.socket(socket.AF_UNIX) as agent:
            monkeypatch.chdir(root / "run")
            agent.bind("agent")
        os.mkfifo(root / "run/pipe")

    def packages(wanted: bundles.Wanted, place: str, host: Host) -> tuple[None, list[str], list[str]]:
        fill_root(Path(place, "rootfs"))
        return None, [], []

    monkeypatch.setattr(bundles, "_from_packages", packages)
    if kind == "rootfs":
        fill_root(store / "root")
    source = {"suite": "trixie"} if kind == "mmdebstrap" else str(store / "root")
    wanted = bundles.Wanted(name="x", kind=kind, source=source, policy=Policy(allow_fifos=False))
    made, said = bundles.make(Host(run=Qemu()), wanted, "f")
    assert sorted(said["left_out"]) == ["run/agent", "run/pipe"]
    assert os.listdir(f"{paths.image_dir(made)}/rootfs/run") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_an_archive_says_of_its_own_top_is_not_what_others_may(store: Path) -> None:
    """Made with ``tar -C BUNDLE -cf FILE .`` by a user, it has him and his mode there; one from a peer has its own."""
    config = b'{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["/x"], "cwd": "/"}}'
    with tarfile.open(store / "web.tar", "w") as packed:
        for name, content in ((".", None), ("./rootfs", None), ("./config.json", config)):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.mode, member.uid, member.gid, member.size = 0o777, 1000, 1000, len(content or b"")
            packed.addfile(member, io.BytesIO(content or b""))
    made, _said = bundles.make(Host(run=Qemu()), bundles.Wanted("web", "archive", str(store / "web.tar")), "f")
    status = os.stat(paths.image_dir(made))
    assert (oct(status.st_mode)[-3:], status.st_uid, status.st_gid) == ("700", 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_one_content_with_two_names_is_made_once_of_each_source(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", str(store / "run"))
    host = Host(run=Qemu())
    both = []
    for name in ("web", "copy"):
        (store / name).mkdir()
        (store / name / "file").write_text("x")
        dest = str(store / f"{name}.tar")
        both.append(bundles.Wanted(name=name, kind="rootfs", source=str(store / name), dest=dest, compression="none"))
    made = [bundles.bring_to(host, wanted) for wanted in both]
    assert [one["changed"] for one in made] == [True, True]
    assert made[0]["image"]["digest"] == made[1]["image"]["digest"]
    monkeypatch.setattr(bundles, "make", None)
    for check_mode in (True, False):
        assert [bundles.bring_to(host, one, check_mode=check_mode)["changed"] for one in both] == [False, False]


def test_what_is_known_by_its_digest_is_known_by_its_fingerprint_the_next_time(store: Path) -> None:
    """Such as the cnvm image of another mirror, with the same packages: each run would bring its archive again."""
    made = stored("web")
    wanted = bundles.Wanted("web", "archive", "/srv/none.tar", fingerprint="another")
    host = Host(run=Qemu())
    assert bundles.bring_to(host, wanted, check_mode=True)["image"] is None
    for check_mode in (True, False):
        said = bundles.bring_to(host, dataclasses.replace(wanted, digest=made), check_mode=check_mode)
        assert (said["changed"], said["image"]["digest"]) == (False, made)
        assert bool(bundles.bring_to(host, wanted, check_mode=True)["image"]) is not check_mode
    with pytest.raises(InputError, match="there is no /srv/none"):
        bundles.bring_to(host, dataclasses.replace(wanted, fingerprint=""))
    record = images.record(made) or {}
    assert record["fingerprint"] == "f"
    assert len(record["fingerprints"]) == 2


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("source", ["archive /srv/none.tar", "rootfs /srv/none", "oci_layout /srv/none:1"])
def test_in_check_mode_a_source_may_be_copied_later(source: str, there: bool, store: Path) -> None:
    if there:
        stored("web")
    kind, path = source.split()
    wanted = bundles.Wanted(name="web", kind=kind, source=path)
    said = bundles.bring_to(Host(run=Qemu()), wanted, check_mode=True)
    assert (said["changed"], said["image"]) == (True, None)
    with pytest.raises(InputError, match="there is no /srv/none"):
        bundles.bring_to(Host(run=Qemu()), wanted)


def test_in_check_mode_a_source_that_cannot_be_one_is_refused(store: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        bundles.bring_to(
            Host(run=Qemu()), bundles.Wanted(name="web", kind="archive", source=str(store)), check_mode=True
        )


@pytest.mark.parametrize(
    ("dest", "check_mode", "said"),
    [
        ("there", False, "is a directory"),
        ("there/", True, "is a directory"),
        ("none/web.tar", False, "there is no directory"),
    ],
)
def test_an_archive_that_cannot_be_written_is_refused_before_the_image_is_made(
    dest: str, check_mode: bool, said: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "make", None)
    (store / "there").mkdir()
    wanted = bundles.Wanted(name="web", kind="rootfs", source=str(store), dest=f"{store}/{dest}")
    with pytest.raises(InputError, match=f"dest: .*{said}"):
        bundles.bring_to(Host(run=Qemu()), wanted, check_mode=check_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stored()
    (Path(paths.image_dir(made)) / "config.json").write_text("{}")
    pack = archive.pack

    def on_a_full_disk(root: str, out: t.Any, **options: t.Any) -> archive.Tally:
        with open("/dev/full", "wb") as full:
            return pack(root, full, **options)

    monkeypatch.setattr(archive, "pack", on_a_full_disk)
    record = images.record(made)
    assert record
    with pytest.raises(HostError, match=r"cannot be written: .*No space left"):
        bundles.export(record, f"{store}/web.tar", "none", check_mode=False)
    assert not list(store.glob("web.tar*"))
