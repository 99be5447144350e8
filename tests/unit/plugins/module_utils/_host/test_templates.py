# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates of a host: made, looked at, given away and taken over, kept while something rests on them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CnvmError,
    HostError,
    InputError,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    archive,
    disk_images,
    disk_records,
    disks,
    domains,
    files,
    identity,
    libvirt,
    template_making,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import MIB

from . import fake_domains
from .fake_clock import Clock
from .fake_domains import FakeConnection
from .fake_qemu import Qemu
from .killing import at_each_effect


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of its own below a directory."""
    for name in ("WORKLOADS", "KEPT_DISKS", "RUN", "TEMPLATES"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    monkeypatch.setattr(libvirt, "available", lambda: False)
    peer = {"name": "host1", "tunnel": "192.0.2.1"}
    (tmp_path / "overlay.json").write_text(json.dumps({"self": {"name": "host2"}, "peers": [peer]}))
    return tmp_path


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


def sha(path: t.Union[str, Path]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def source(place: Path, name: str = "disk.qcow2", size: int = 4 * MIB, clusters: t.Sequence[int] = (5,)) -> Path:
    return images.qcow2(size, clusters=clusters).write(place / name)


def bring(qemu: Qemu, **values: t.Any) -> dict[str, t.Any]:
    check_mode = bool(values.pop("check_mode", False))
    return template_making.bring_to(Host(run=qemu), values, check_mode=check_mode)


def register(qemu: Qemu, place: Path, name: str = "debian", size: int = 4 * MIB) -> dict[str, t.Any]:
    file = source(place, f"{name}.qcow2", size)
    made = bring(qemu, name=name, source=str(file), checksum=f"sha256:{sha(file)}")
    return t.cast("dict[str, t.Any]", made["template"])


def clone(digest: str, name: str = "web01", *, linked: bool = True, path: str = "") -> None:
    """A guest of this host with a disk on a template, by its definition and, unless ``path``, in its own directory."""
    home = Path(paths.WORKLOADS) / name
    (home / "disks").mkdir(parents=True)
    disk = {
        "name": "vda", "template": "debian", "template_digest": digest, "linked": linked, "path": path, "pool": "",
        "format": "qcow2",
    }  # fmt: skip
    (home / "definition.json").write_text(json.dumps({"kind": "guest", "name": name, "disks": [disk]}))
    if linked:
        backing = paths.template_disk(digest).encode()
        images.qcow2(4 * MIB, backing=backing, backing_format=b"qcow2").write(Path(path or home / "disks/vda.qcow2"))


# -- Made of a file


def test_a_file_becomes_a_template_once(qemu: Qemu, place: Path) -> None:
    file = source(place)
    wanted = {"name": "debian", "source": str(file), "checksum": f"sha256:{sha(file)}"}
    would = bring(qemu, **wanted, check_mode=True)
    assert (would["changed"], would["actions"], would["template"]) == (True, ["make", "name"], None)
    assert not os.path.exists(paths.TEMPLATES)
    done = bring(qemu, **wanted)
    assert (done["changed"], done["actions"]) == (True, ["make", "name"])
    found = done["template"]
    assert found["digest"] == sha(found["path"])
    assert found["path"] == paths.template_disk(found["digest"])
    assert (found["virtual_bytes"], found["origin"]) == (4 * MIB, f"file {file}")
    assert os.stat(found["path"]).st_mode & 0o777 == 0o444
    for above in (paths.TEMPLATES, f"{paths.TEMPLATES}/sha256", paths.template_dir(found["digest"])):
        # QEMU's user gets through.
        assert os.stat(above).st_mode & 0o777 == 0o755
    assert os.listdir(f"{paths.TEMPLATES}/building") == []
    calls = len(qemu.calls)
    file.unlink()
    again = bring(qemu, **wanted)
    assert (again["changed"], again["actions"], again["template"]) == (False, [], found)
    assert len(qemu.calls) == calls
    assert again["diff"]["before"] == again["diff"]["after"]


def test_a_hostile_file_is_read_under_limits_and_leaves_nothing(qemu: Qemu, place: Path) -> None:
    bad = {
        "backing": images.qcow2(4 * MIB, backing=b"/etc/shadow", backing_format=b"raw"),
        "data": images.qcow2(4 * MIB, data_file=b"/etc/shadow", incompatible=4),
        "large": images.qcow2(2**50),
        "cut": images.qcow2(4 * MIB, clusters=(5, 6)).cut(5 * 65536),
        "other": images.vdi(4 * MIB),
    }
    for name, image in bad.items():
        path = image.write(place / f"{name}.qcow2")
        with pytest.raises(Refused, match=str(path)):
            bring(
                qemu, name=name, source=str(path), checksum=f"sha256:{sha(path)}" if name != "large" else "unverified"
            )
    assert [words for words in qemu.calls if "convert" in words] == []
    file = source(place)
    bring(qemu, name="good", source=str(file), checksum="unverified")
    assert all(words[0] == "prlimit" for words in qemu.calls if "convert" in words)
    assert list(templates.names()) == ["good"]
    assert os.listdir(f"{paths.TEMPLATES}/building") == []


def test_another_checksum_is_refused(qemu: Qemu, place: Path) -> None:
    file = source(place)
    for name in ("a.qcow2", "a.qcow2.gz"):
        path = shutil.copy(file, place / name)
        if name.endswith(".gz"):
            subprocess.run(["gzip", "-nf", str(place / "a.qcow2")], check=True)
        with pytest.raises(Refused, match="not " + "b" * 64):
            bring(qemu, name="debian", source=str(path), checksum=f"sha256:{'b' * 64}")
    assert templates.digests() == []


@pytest.mark.parametrize(("program", "suffix"), [("gzip", "gz"), ("xz", "xz"), ("bzip2", "bz2"), ("zstd", "zst")])
def test_a_compressed_file_is_unpacked(qemu: Qemu, place: Path, program: str, suffix: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    file = source(place)
    subprocess.run([program, "-q", str(file)], check=True)
    packed = place / f"disk.qcow2.{suffix}"
    found = bring(qemu, name="debian", source=str(packed), checksum=f"sha256:{sha(packed)}")["template"]
    assert found["virtual_bytes"] == 4 * MIB


def test_what_is_unpacked_has_the_checksum(qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a directory above it is swapped once it was read."""
    for number, name in enumerate(("mine", "theirs"), start=1):
        (place / name).mkdir()
        subprocess.run(["gzip", str(source(place, f"{name}/disk.qcow2", number * MIB))], check=True)
    packed = place / "mine/disk.qcow2.gz"
    digest = disks.File.digest

    def swapped(image: disks.File, *algorithm: str) -> str:
        found = digest(image, *algorithm)
        for old, new in (("mine", "third"), ("theirs", "mine"), ("third", "theirs")):
            (place / old).rename(place / new)
        return found

    wanted = {"name": "debian", "source": str(packed), "checksum": f"sha256:{sha(packed)}"}
    monkeypatch.setattr(disks.File, "digest", swapped)
    assert bring(qemu, **wanted)["template"]["virtual_bytes"] == MIB


def test_a_file_that_unpacks_without_end_is_cut_off(qemu: Qemu, place: Path) -> None:
    big = place / "bomb.raw"
    with open(big, "wb") as file:
        file.truncate(140 * MIB)
    subprocess.run(["gzip", "-1", str(big)], check=True)
    with pytest.raises(Refused, match="More than"):
        bring(qemu, name="bomb", source=f"{big}.gz", checksum="unverified", max_virtual_size="64M")
    assert os.listdir(f"{paths.TEMPLATES}/building") == []


def test_a_digest_that_is_asked_for_must_come_out(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    file = source(place, "other.qcow2", clusters=())
    with pytest.raises(Refused, match="not " + "c" * 64):
        bring(qemu, name="other", source=str(file), checksum="unverified", digest="c" * 64)
    assert list(templates.names()) == ["debian"]
    # One that is here under another name need not be made again.
    done = bring(qemu, name="second", digest=found["digest"])
    assert (done["actions"], done["template"]["digest"]) == (["name"], found["digest"])
    with pytest.raises(Refused, match="Say where to take the other one|is " + found["digest"]):
        bring(qemu, name="second", digest="c" * 64)


def test_the_image_of_a_template_is_copied_as_it_is(qemu: Qemu, place: Path) -> None:
    file = source(place, clusters=(5, 6))
    digest = sha(file)
    wanted = {"name": "debian", "source": str(file), "checksum": f"sha256:{digest}", "digest": digest}
    with pytest.raises(InputError, match="not to be changed"):
        bring(qemu, **wanted, size="8M")
    done = bring(qemu, **wanted)
    assert (done["template"]["digest"], qemu.calls) == (digest, [])
    assert not bring(qemu, **wanted)["changed"]
    bad = images.qcow2(4 * MIB, backing=b"/etc/shadow", backing_format=b"raw").write(place / "bad.qcow2")
    with pytest.raises(Refused, match="not complete in itself"):
        bring(qemu, name="bad", source=str(bad), checksum=f"sha256:{sha(bad)}", digest=sha(bad))
    old = images.qcow2(4 * MIB, clusters=(5, 6), snapshots=2).write(place / "old.qcow2")
    with pytest.raises(Refused, match="2 internal snapshots"):
        bring(qemu, name="old", source=str(old), checksum=f"sha256:{sha(old)}", digest=sha(old))


def test_a_name_gets_another_content_and_the_old_one_stays(qemu: Qemu, place: Path) -> None:
    old = register(qemu, place)
    file = source(place, "new.qcow2", 8 * MIB)
    done = bring(qemu, name="debian", source=str(file), checksum=f"sha256:{sha(file)}")
    assert done["diff"]["before"]["digest"] == old["digest"]
    assert done["template"]["digest"] != old["digest"]
    assert [one["names"] for one in templates.report()["templates"]] == [["debian"], []]
    assert bring(qemu, name=old["digest"], state="absent")["actions"] == [f"remove template {old['digest']}"]


def test_one_that_is_not_here(qemu: Qemu, place: Path) -> None:
    with pytest.raises(InputError, match="no template 'debian'"):
        bring(qemu, name="debian")
    with pytest.raises(InputError, match="no file"):
        bring(qemu, name="debian", source=str(place / "x.qcow2"), checksum="unverified")
    assert bring(qemu, name="debian", source="/x/y.qcow2", checksum="unverified", check_mode=True)["changed"]
    register(qemu, place)
    assert not bring(qemu, name="debian")["changed"]


def test_a_run_that_is_cut_off_leaves_the_old_one(qemu: Qemu, place: Path) -> None:
    old = register(qemu, place)
    file = source(place, "new.qcow2", 8 * MIB)
    qemu.fail["convert"] = lambda path: CommandResult(("qemu-img", path), 1, "", "No space left on device")
    with pytest.raises(HostError, match="no room"):
        bring(qemu, name="debian", source=str(file), checksum="unverified")
    assert templates.resolve("debian") == old["digest"]
    assert os.listdir(f"{paths.TEMPLATES}/building") == []


# -- Whether it is what it was


def test_one_that_was_written_to_is_seen_and_refused(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    clone(found["digest"])
    templates.check(found["digest"])
    with open(found["path"], "r+b") as file:
        file.seek(5 * 65536)
        file.write(b"other")
    with pytest.raises(Refused, match="damaged") as caught:
        templates.check(found["digest"])
    assert caught.value.details["dependants"] == ["guest web01"]
    with pytest.raises(Refused, match="damaged"):
        bring(qemu, name="debian")
    assert "was changed" in templates.report()["templates"][0]["problem"]


def test_bytes_that_changed_behind_its_back_are_seen_when_all_are_read(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    before = os.stat(found["path"])
    with open(found["path"], "r+b") as file:
        file.seek(4096)
        file.write(b"other")
    os.utime(found["path"], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert templates.problem(found["digest"]) == ""
    assert not bring(qemu, name="debian")["changed"]
    assert "was changed" in templates.problem(found["digest"], full=True)
    with pytest.raises(Refused, match="damaged"):
        bring(qemu, name="debian", verify=True)
    assert templates.report(full=True)["templates"][0]["problem"]


def test_one_that_was_only_touched_is_known_again(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    about = Path(paths.template_dir(found["digest"])) / "template.json"

    def known() -> bool:
        return (templates.record(found["digest"]) or {})["seen"]["mtime_ns"] == os.stat(found["path"]).st_mtime_ns

    bring(qemu, name="debian")
    os.utime(found["path"])
    before = about.stat()
    # Who only looks writes nothing.
    templates.check(found["digest"])
    assert templates.report(full=True)["templates"][0]["problem"] is None
    assert not bring(qemu, name="debian", check_mode=True)["changed"]
    assert bring(qemu, name="other", digest=found["digest"], check_mode=True)["actions"] == ["name"]
    assert (about.stat().st_ino, about.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not known()
    assert not bring(qemu, name="debian")["changed"]
    assert known()
    os.utime(found["path"])
    bring(qemu, name="other", digest=found["digest"])
    assert known()


def test_what_libvirt_does_to_an_image_is_no_change(qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = register(qemu, place)
    os.chmod(found["path"], 0o400)  # its inode's time changes, as when it is given to QEMU's user
    os.chmod(found["path"], 0o444)
    monkeypatch.setattr(disks, "digest", lambda path: pytest.fail("it was read"))
    assert templates.problem(found["digest"]) == ""


def test_a_damaged_one_is_mended_by_what_it_was_made_of(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    clone(found["digest"])
    wanted = {
        "name": "debian",
        "source": str(place / "debian.qcow2"),
        "checksum": f"sha256:{sha(place / 'debian.qcow2')}",
    }
    with open(found["path"], "r+b") as file:
        file.write(b"XXXX")
    assert bring(qemu, **wanted, check_mode=True)["changed"]
    assert bring(qemu, **wanted)["actions"] == ["mend"]
    assert templates.problem(found["digest"], full=True) == ""
    assert not bring(qemu, **wanted)["changed"]
    os.unlink(found["path"])
    assert "is gone" in templates.problem(found["digest"])


def test_one_that_somebody_may_write_to_is_made_read_only(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    os.chmod(found["path"], 0o644)
    assert bring(qemu, name="debian", check_mode=True)["actions"] == ["make read-only"]
    assert bring(qemu, name="debian")["actions"] == ["make read-only"]
    assert os.stat(found["path"]).st_mode & 0o777 == 0o444
    assert not bring(qemu, name="debian")["changed"]


# -- What rests on it


def test_one_that_is_in_use_stays(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    clone(found["digest"], "web01")
    clone(found["digest"], "pooled", path=str(place / "elsewhere.qcow2"))
    clone(found["digest"], "full", linked=False)
    kept = Path(paths.KEPT_DISKS) / "old"
    kept.mkdir(parents=True)
    backing = found["path"].encode()
    images.qcow2(4 * MIB, backing=backing, backing_format=b"qcow2").write(kept / "vda.qcow2")
    users = ["guest pooled", "guest web01", f"{kept}/vda.qcow2"]
    assert templates.dependants(found["digest"]) == users
    assert templates.report()["templates"][0]["dependants"] == users
    for check_mode in (True, False):
        with pytest.raises(Refused, match="in use by guest pooled, guest web01") as caught:
            bring(qemu, name="debian", state="absent", check_mode=check_mode)
        assert caught.value.details["dependants"] == users
    templates.point("second", found["digest"])
    assert bring(qemu, name="second", state="absent")["actions"] == ["remove name second"]
    shutil.rmtree(paths.WORKLOADS)
    shutil.rmtree(kept)
    would = bring(qemu, name="debian", state="absent", check_mode=True)
    assert would["actions"] == ["remove name debian", f"remove template {found['digest']}"]
    assert os.path.exists(found["path"])
    assert bring(qemu, name="debian", state="absent")["actions"] == would["actions"]
    assert (templates.names(), templates.digests()) == ({}, [])
    assert not bring(qemu, name="debian", state="absent")["changed"]


def test_nothing_is_done_to_it_as_a_disk_image(qemu: Qemu, place: Path) -> None:
    """Not even where nothing rests on it yet."""
    found = register(qemu, place)
    (place / "link").symlink_to(paths.template_dir(found["digest"]))
    other = str(source(place, "other.qcow2"))
    leaks = (3, '{"check-errors": 0, "leaks": 2}')
    changes: list[dict[str, t.Any]] = [
        {"size": "8M"},
        {"mode": "0644"},
        {"state": "absent"},
        {"source": {"path": other}, "replace": True},
        {"repair": "leaks"},
        {"backing": other},
    ]
    for path in (found["path"], str(place / "link/disk.qcow2")):
        for change in changes:
            for check_mode in (True, False):
                qemu.checks = [leaks] if "repair" in change else []
                with pytest.raises(Refused, match="image of the template debian"):
                    disk_images.bring_to(Host(run=qemu), [{"path": path, **change}], check_mode=check_mode)
        assert not disk_images.bring_to(Host(run=qemu), [{"path": path, "mode": "0444", "check": True}])["changed"]
    assert templates.problem(found["digest"], full=True) == ""
    templates.remove("debian")
    with pytest.raises(Refused, match=f"image of the template {found['digest']}"):
        disk_images.bring_to(Host(run=qemu), [{"path": found["path"], "size": "1M"}])


def test_a_template_is_not_removed_while_an_image_is_made_on_it(
    qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever leads there: what is being made is not seen by who looks for what rests on it."""
    link = place / "base.qcow2"
    link.symlink_to(register(qemu, place)["path"])
    make = disks.create_overlay
    refused = []

    def meanwhile(*args: t.Any, **more: t.Any) -> None:
        with pytest.raises(Refused) as caught:
            templates.remove("debian")
        refused.append(caught.value.message)
        make(*args, **more)

    monkeypatch.setattr(disks, "create_overlay", meanwhile)
    disk_images.bring_to(Host(run=qemu), [{"path": str(place / "o"), "backing": str(link)}])
    assert f"making {place / 'o'}" in refused[0]


def test_one_that_a_disk_in_a_pool_or_of_a_foreign_domain_rests_on_stays(
    qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk in a pool outlives its guest; with it there it is told once."""
    found = register(qemu, place)
    backing = found["path"].encode()
    kept, foreign = place / "pool/web-vda.qcow2", place / "srv/old.qcow2"
    for path in (kept, foreign):
        path.parent.mkdir()
        images.qcow2(4 * MIB, backing=backing, backing_format=b"qcow2").write(path)
    clone(found["digest"], "db", path=str(place / "pool/db.qcow2"))
    connection = FakeConnection()
    connection.pools["disks"] = str(place / "pool")
    connection.defineXML(
        "<domain type='qemu'><name>old</name><memory unit='MiB'>9</memory><os><type arch='x86_64'>hvm</type></os>"
        f"<devices><disk type='file'><driver type='qcow2'/><source file='{foreign}'/><target dev='vda'/></disk>"
        "</devices></domain>"
    )
    library = fake_domains.library()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(libvirt, "available", lambda: True)
    monkeypatch.setattr(libvirt, "connect", lambda: contextlib.nullcontext(connection))
    users = ["guest db", str(kept), str(foreign)]
    assert templates.report()["templates"][0]["dependants"] == users
    with pytest.raises(Refused) as caught:
        bring(qemu, name="debian", state="absent")
    assert caught.value.details["dependants"] == users

    def hangs() -> t.Any:
        raise HostError("libvirt does not answer.")

    monkeypatch.setattr(libvirt, "connect", hangs)
    told = templates.report()
    assert (told["templates"][0]["problem"], told["templates"][0]["dependants"]) == (None, None)
    assert told["warnings"] == ["What rests on the images here is not known: libvirt does not answer."]
    with pytest.raises(HostError, match="does not answer"):
        bring(qemu, name="debian", state="absent")


@pytest.mark.parametrize("rebased", [False, True])
def test_one_that_an_image_somewhere_else_rests_on_stays(qemu: Qemu, place: Path, rebased: bool) -> None:
    """One that was made here, in a directory where nobody else has images."""
    found = register(qemu, place)
    (place / "srv").mkdir()
    path = place / "srv/o.qcow2"
    if rebased:
        images.qcow2(4 * MIB, backing=str(source(place)).encode(), backing_format=b"qcow2").write(path)
    item = {"path": str(path), "backing": found["path"]}
    disk_images.bring_to(Host(run=qemu), [item], check_mode=True)
    assert not os.path.exists(paths.DISK_RECORDS)
    assert disk_images.bring_to(Host(run=qemu), [item])["images"][0]["actions"] == ["rebase" if rebased else "create"]
    assert templates.report()["templates"][0]["dependants"] == [str(path)]
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"in use by {path}"):
            bring(qemu, name="debian", state="absent", check_mode=check_mode)
    (told,) = disk_images.report([found["path"]])["images"]
    assert told["dependants"] == [str(path)]
    path.rename(place / "srv/away")
    assert bring(qemu, name="debian", state="absent", check_mode=True)["changed"]
    images.qcow2(4 * MIB).write(path)
    assert bring(qemu, name="debian", state="absent", check_mode=True)["changed"]
    os.replace(place / "srv/away", path)
    with pytest.raises(Refused, match=f"in use by {path}"):
        bring(qemu, name="debian", state="absent")
    path.unlink()
    disk_images.bring_to(Host(run=qemu), [{"path": str(path), "state": "absent"}])
    assert os.listdir(paths.DISK_RECORDS) == []
    assert bring(qemu, name="debian", state="absent")["changed"]


def test_an_image_to_which_two_ways_lead_is_told_once(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    (place / "srv").mkdir()
    (place / "link").symlink_to(place / "srv")
    clone(found["digest"], "db", path=str(place / "link/db.qcow2"))
    for way in ("srv", "link"):
        disk_records.note(str(place / way / "db.qcow2"))
    assert templates.dependants(found["digest"]) == ["guest db"]
    shutil.rmtree(paths.WORKLOADS)
    assert len(templates.dependants(found["digest"])) == 1
    assert list(disks.overlays_around([str(place / "srv/base.qcow2")])) == [str(place / "srv/db.qcow2")]


def test_none_is_removed_while_disks_are_made_on_it(qemu: Qemu, place: Path) -> None:
    """What is made on it is not seen yet."""
    digest = register(qemu, place)["digest"]
    with templates.used([digest], "making disks of guest 'a'"), templates.used({digest}, "making disks of guest 'b'"):
        assert bring(qemu, name="debian", state="absent", check_mode=True)["changed"]
        with pytest.raises(Refused, match=r"removing the template debian is refused: .*guest 'b'"):
            bring(qemu, name="debian", state="absent")
    files_there = disks.overlays_around

    def look(*args: t.Any, **words: t.Any) -> t.Any:
        with pytest.raises(Refused, match="making disks"), templates.used([digest], "making disks"):
            raise AssertionError("it is being removed")
        return files_there(*args, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disks, "overlays_around", look)
        assert bring(qemu, name="debian", state="absent")["changed"]


def test_by_its_digest_only_one_without_a_name_is_removed(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    with pytest.raises(Refused, match="has the name debian"):
        bring(qemu, name=found["digest"], state="absent")
    assert not bring(qemu, name="d" * 64, state="absent")["changed"]


@pytest.mark.parametrize("again", ["absent", "present"])
@pytest.mark.parametrize("named", [True, False])
def test_removing_one_is_killed_at_each_step(
    qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch, named: bool, again: str
) -> None:
    """The next run removes what is left of it, or makes it anew."""
    file = source(place)
    wanted = {"name": "debian", "source": str(file), "checksum": f"sha256:{sha(file)}"}
    found: dict[str, t.Any] = {}

    def make() -> None:
        found.update(bring(qemu, **wanted)["template"])
        if not named:
            os.unlink(paths.template_name_file("debian"))

    def remove() -> None:
        bring(qemu, name="debian" if named else found["digest"], state="absent")

    def look() -> None:
        # Who looks meanwhile sees the whole of it, or nothing.
        assert [one["problem"] for one in templates.report()["templates"]] in ([], [None])
        if again == "present":
            assert bring(qemu, **wanted)["template"]["digest"] == found["digest"]
            assert templates.problem(templates.resolve("debian"), full=True) == ""
            assert not bring(qemu, **wanted)["changed"]
        else:
            remove()
            assert (templates.names(), templates.digests()) == ({}, [])
        assert os.listdir(f"{paths.TEMPLATES}/building") == []

    assert at_each_effect(monkeypatch, make, remove, look) > 4


def test_a_report_of_some_and_of_none(qemu: Qemu, place: Path) -> None:
    assert templates.report()["templates"] == []
    one, other = register(qemu, place, "b"), register(qemu, place, "a", 8 * MIB)
    assert [found["names"] for found in templates.report()["templates"]] == [["a"], ["b"]]
    assert [found["digest"] for found in templates.report(["b", "none"])["templates"]] == [one["digest"]]
    assert [found["digest"] for found in templates.report([other["digest"]])["templates"]] == [other["digest"]]
    assert "dependants" not in templates.report(with_dependants=False)["templates"][0]


# -- Of a guest


class _Model:
    def __init__(
        self, state: str, disk: str, live: bool = False, below: t.Sequence[str] = (), saved: bool = False
    ) -> None:
        self.state, self.live, self.saved = state, object() if live else None, saved
        backing = [{"path": path, "format": "qcow2", "read_only": False} for path in below]
        booted = {"path": disk, "format": "qcow2", "backing": backing}
        # By its name the other one comes first.
        self.model = {"disks": {"sdc": {**booted, "path": "/nowhere"}, "vda": booted} if disk else {}}
        disks = "<disk><target dev='vda'/></disk><disk><target dev='sdc'/></disk>" if disk else ""
        self.xml = xml.parse(f"<domain><devices>{disks}</devices></domain>")


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    known: dict[str, t.Any] = {}
    monkeypatch.setattr(libvirt, "connect", lambda uri: contextlib.nullcontext())
    monkeypatch.setattr(
        domains, "read", lambda connection, names: {name: known[name] for name in names if name in known}
    )
    return known


def test_the_disk_of_a_stopped_guest_becomes_a_template(
    qemu: Qemu, place: Path, guest: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "reset", lambda host, path, building: ["/etc/machine-id"])
    home = Path(paths.WORKLOADS) / "arch/disks"
    home.mkdir(parents=True)
    guest["arch"] = _Model("stopped", str(images.qcow2(4 * MIB).write(home / "vda.qcow2")))
    done = bring(qemu, name="arch", guest="arch")
    assert done["reset"] == ["/etc/machine-id"]
    assert (done["template"]["origin"], done["template"]["reset_identity"]) == ("guest arch", True)
    # It was made of that guest; whether that has been started since does not matter.
    assert not bring(qemu, name="arch", guest="arch")["changed"]
    images.qcow2(8 * MIB).write(home / "vda.qcow2")
    assert bring(qemu, name="arch", guest="arch", refresh=True)["actions"] == ["make", "name"]


def test_a_guest_with_a_snapshot_of_a_disk_that_lies_elsewhere(
    qemu: Qemu, place: Path, guest: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pool. libvirt was told of it, and of no other."""
    monkeypatch.setattr(identity, "reset", lambda host, path, building: [])
    (place / "pool").mkdir()
    base = images.qcow2(4 * MIB).write(place / "pool/arch.qcow2")
    home = Path(paths.WORKLOADS) / "arch/disks"
    home.mkdir(parents=True)
    top = images.qcow2(4 * MIB, backing=os.fsencode(base), backing_format=b"qcow2").write(home / "vda-1.qcow2")
    guest["arch"] = _Model("stopped", str(top), below=[f"{place}/pool/other.qcow2"])
    with pytest.raises(Refused, match=f"rests on {base}"):
        bring(qemu, name="arch", guest="arch")
    guest["arch"] = _Model("stopped", str(top), below=[str(base)])
    assert bring(qemu, name="arch", guest="arch")["changed"]


def test_a_guest_that_cannot_become_one(qemu: Qemu, place: Path, guest: dict[str, t.Any]) -> None:
    with pytest.raises(InputError, match="no guest 'arch'"):
        bring(qemu, name="arch", guest="arch")
    guest["arch"] = _Model("running", "/x", live=True)
    with pytest.raises(Refused, match="is running"):
        bring(qemu, name="arch", guest="arch")
    guest["arch"] = _Model("stopped", "/x", saved=True)
    with pytest.raises(Refused, match="saved with its memory") as refused:
        bring(qemu, name="arch", guest="arch")
    assert "virsh managedsave-remove arch" in refused.value.hint
    guest["arch"] = _Model("stopped", "")
    with pytest.raises(InputError, match="no disk"):
        bring(qemu, name="arch", guest="arch")
    foreign = images.qcow2(4 * MIB, backing=b"/etc/hostname", backing_format=b"raw").write(place / "x.qcow2")
    guest["arch"] = _Model("stopped", str(foreign))
    with pytest.raises(Refused, match="rests on /etc/hostname"):
        bring(qemu, name="arch", guest="arch")


# -- Of another host


def sent(*words: str) -> bytes:
    """What a host answers to ``template send``."""
    with open(os.path.join(paths.TEMPLATES, "sent"), "w+b") as file:
        assert template_making.answer(["send", *words], Host(run=Qemu(), stdout=t.cast("t.BinaryIO", file))) == 0
        file.seek(0)
        return file.read()


def ask(place: Path, answer: bytes, *, said: bytes = b"", limits: t.Optional[list[str]] = None) -> Host:
    """A host whose ssh gets this answer. ``limits``: how much of it in a second was asked for."""
    (place / "answer").write_bytes(answer)
    (place / "said").write_bytes(said)
    asked = [] if limits is None else limits

    def popen(argv: list[str], **options: t.Any) -> t.Any:
        assert argv[:3] == ["ssh", "-F", paths.SSH_CONFIG]
        at = argv.index("template")
        assert argv[at + 1] == "send"
        asked.extend(argv[at + 3 :])
        script = f"cat {place}/answer; cat {place}/said >&2"
        return subprocess.Popen(["sh", "-c", script], **options)

    return Host(run=Qemu(), popen=popen)


@pytest.fixture
def there(qemu: Qemu, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, t.Any], bytes]:
    """A template of another host, and what that sends."""
    found = register(qemu, place)
    answer = sent("debian")
    monkeypatch.setattr(paths, "TEMPLATES", str(place / "here"))
    return found, answer


def test_a_template_is_taken_over(place: Path, there: tuple[dict[str, t.Any], bytes]) -> None:
    found, answer = there
    limits: list[str] = []
    assert template_making.fetch(ask(place, answer, limits=limits), "host1", "debian") == (found["digest"], True)
    assert limits == []  # an older helper knows none
    assert sha(paths.template_disk(found["digest"])) == found["digest"]
    record = templates.record(found["digest"]) or {}
    assert (record["made_of"], record["origin"]) == (found["made_of"], found["origin"])
    assert templates.names() == {}
    # What is here is not read again.
    head = answer[: answer.index(b"\n") + 1]
    assert template_making.fetch(ask(place, head), "host1", "debian") == (found["digest"], False)


def test_no_more_of_it_is_sent_than_was_asked_for(qemu: Qemu, place: Path, clock: Clock) -> None:
    size = register(qemu, place)["file_bytes"]
    whole = sent("debian")
    assert clock.slept == []
    assert sent("debian", "1") == whole
    assert sum(clock.slept) == pytest.approx(size / MIB)
    assert max(clock.slept) < 0.1


@pytest.mark.parametrize("often", [True, False])
def test_it_is_told_how_much_of_it_has_come(
    place: Path, there: tuple[dict[str, t.Any], bytes], monkeypatch: pytest.MonkeyPatch, often: bool
) -> None:
    """In parts while they come, or all of it at its end."""
    found, answer = there
    told: list[int] = []
    limits: list[str] = []
    monkeypatch.setattr(template_making, "_TELL_S", -1.0 if often else 3600.0)
    host = ask(place, answer, limits=limits)
    template_making.fetch(host, "host1", "debian", mib_s=7, progress=told.append)
    assert (sum(told), limits) == (found["file_bytes"], ["7"])
    assert (len(told) > 1) is often


def test_one_that_is_just_being_fetched_is_waited_for(place: Path, there: tuple[dict[str, t.Any], bytes]) -> None:
    """By another guest that comes to the same host."""
    found, answer = there
    head = answer[: answer.index(b"\n") + 1]
    with contextlib.ExitStack() as other:
        path = f"{paths.RUN}/locks/template-{found['digest']}.lock"
        other.enter_context(files.lock(path, "fetching template 'debian'"))
        with pytest.raises(Refused, match="is at work on it"):
            template_making.fetch(ask(place, head), "host1", "debian")

        def waits() -> bool:
            other.close()
            assert template_making.fetch(ask(place, answer), "host1", "debian") == (found["digest"], True)
            return True

        assert template_making.fetch(ask(place, head), "host1", "debian", waits=waits) == (found["digest"], False)


def test_what_does_not_arrive_whole_is_nothing(place: Path, there: tuple[dict[str, t.Any], bytes]) -> None:
    _found, answer = there
    changed = answer[:-5] + b"wrong"
    about = json.loads(answer.split(b"\n", 1)[0])
    forged = json.dumps({"template": {**about["template"], "digest": "../../x"}}).encode() + b"\n"
    for bad, words in (
        (answer[:-70_000], "before the end"),
        (changed, "is not the template"),
        (b"", "sent no record"),
        (b'{"template": 5}\n', "sent no record"),
        (forged, "sent no record"),
        (b"Welcome to host1\n", "not our protocol"),
    ):
        with pytest.raises(PeerError, match=words):
            template_making.fetch(ask(place, bad), "host1", "debian")
    with pytest.raises(PeerError, match="this host has no template"):
        template_making.fetch(ask(place, b"", said=b"this host has no template\n"), "host1", "debian")
    with pytest.raises(Refused, match="another template"):
        template_making.fetch(ask(place, answer), "host1", "debian", digest="c" * 64)
    with pytest.raises(InputError, match="peer: 'host9'"):
        template_making.fetch(ask(place, answer), "host9", "debian")
    assert templates.digests() == []
    building = Path(paths.TEMPLATES) / "building"
    assert not building.exists() or list(building.iterdir()) == []


def test_a_peer_that_falls_silent(
    place: Path, there: tuple[dict[str, t.Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_making, "_SILENCE_S", 0.05)
    host = Host(run=Qemu(), popen=lambda argv, **options: subprocess.Popen(["sleep", "60"], **options))
    with pytest.raises(PeerError, match="does not answer"):
        template_making.fetch(host, "host1", "debian")


def test_a_damaged_template_is_not_given_away(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    os.chmod(found["path"], 0o644)
    with open(found["path"], "r+b") as file:
        file.write(b"XXXX")
    with pytest.raises(Refused, match="damaged"):
        sent("debian")


def test_the_module_lets_the_helper_do_it(qemu: Qemu, place: Path) -> None:
    found = register(qemu, place)
    said: list[CommandResult] = []

    def run(argv: t.Sequence[str], **options: t.Any) -> CommandResult:
        assert argv == [paths.HELPER, "template", "fetch", "host1", "web"]
        return said[-1]

    host = Host(run=run)
    said.append(CommandResult((), 0, json.dumps({"digest": found["digest"], "new": True})))
    done = template_making.bring_to(host, {"name": "web", "peer": "host1"})
    assert (done["actions"], done["template"]["digest"]) == (["fetch", "name"], found["digest"])
    # It is here now, under this name; nobody is asked.
    assert not template_making.bring_to(host, {"name": "web", "peer": "host1"})["changed"]
    said.append(CommandResult((), 1, "", "What host1 sent is not the template.\n"))
    with pytest.raises(PeerError, match="is not the template"):
        template_making.bring_to(host, {"name": "web", "peer": "host1", "refresh": True})
    said.append(CommandResult((), 0, "[]"))
    with pytest.raises(HostError, match="no answer"):
        template_making.bring_to(host, {"name": "web", "peer": "host1", "refresh": True})


def test_the_helper_s_words(qemu: Qemu, place: Path, there: tuple[dict[str, t.Any], bytes]) -> None:
    found, answer = there
    out = io.BytesIO()
    host = ask(place, answer)
    host = Host(run=host.run, popen=host.popen, stdout=out)
    assert template_making.commands()["template"](["fetch", "host1", "debian"], host) == 0
    assert json.loads(out.getvalue()) == {"digest": found["digest"], "new": True}
    for bad in (["fetch", "host1"], ["fetch", "host1", "../x"], ["send"], ["x", "y"]):
        with pytest.raises(CnvmError):
            template_making.commands()["template"](bad, host)
    # A peer may ask for one, and for nothing else.
    for bad in (["fetch", "host1", "debian"], [], ["send", "../../etc/passwd"], ["send", "debian", "-1"],
                ["send", "debian", "1", "2"]):  # fmt: skip
        with pytest.raises(CnvmError):
            template_making.answer(bad, host)


# -- Identity, with the real debugfs


@pytest.mark.skipif(not all(map(shutil.which, ("mke2fs", "debugfs", "e2fsck"))), reason="e2fsprogs are not here")
@pytest.mark.parametrize("start", [0, MIB])
def test_a_file_system_loses_its_identity(tmp_path: Path, start: int) -> None:
    root = tmp_path / "root"
    for directory in ("etc/ssh", "etc/systemd/system", "lib/systemd/system", "var/lib/cloud/instances/i-1/sem"):
        (root / directory).mkdir(parents=True)
    texts = {
        "etc/fstab": "UUID=1 / ext4 defaults 0 1\n",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/passwd": "root:x:0:0::/:/bin/sh\n",
        "etc/ssh/ssh_host_rsa_key": "secret",
        "etc/ssh/sshd_config": "Port 22\n",
        "lib/systemd/system/ssh.service": "",
        "var/lib/cloud/instances/i-1/sem/config a": "x",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "var/lib/cloud/instance").symlink_to("instances/i-1")
    disk = tmp_path / "disk.raw"
    images.mbr(64 * MIB).write(disk) if start else images.Bytes(64 * MIB).write(disk)
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-E", f"offset={start}", str(disk), "63M"]
    subprocess.run(make, check=True)
    host = Host(run=_run)
    done = identity.reset(host, str(disk), str(tmp_path))
    assert "/etc/ssh/ssh_host_rsa_key" in done
    assert identity.reset(host, str(disk), str(tmp_path)) == []
    target = f"{disk}?offset={start}"
    assert _ask(target, "cat /etc/machine-id") == ""
    assert _ask(target, "cat /etc/ssh/sshd_config") == "Port 22\n"
    assert "ssh-keygen -A" in _ask(target, "cat /etc/systemd/system/ssh.service.d/cnvm-host-keys.conf")
    assert "instances" not in _ask(target, "ls -p /var/lib/cloud")
    assert _run(["e2fsck", "-fn", target], check=False).rc == 0
    (tmp_path / "fstab").write_text("UUID=1 / ext4 defaults 0 1\nUUID=2 /var ext4 defaults 0 2\n")
    for request in ("rm /etc/fstab", f"write {tmp_path}/fstab /etc/fstab"):
        _run(["debugfs", "-w", "-R", request, target])
    with pytest.raises(Refused, match="has /var in a file system of its own"):
        identity.reset(host, str(disk), str(tmp_path))


@pytest.mark.skipif(not all(map(shutil.which, ("debugfs", "e2fsck"))), reason="e2fsprogs are not here")
def test_a_disk_without_such_a_file_system_is_refused(tmp_path: Path) -> None:
    disk = images.mbr(4 * MIB).write(tmp_path / "disk.raw")
    with pytest.raises(Refused, match="no ext4"):
        identity.reset(Host(run=_run), str(disk), str(tmp_path))


def test_a_host_without_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HostError, match="debugfs"):
        identity.reset(Host(run=_run), str(tmp_path / "x"), str(tmp_path))
    with pytest.raises(HostError, match="xz"):
        archive.unpack_file(0, "xz", 1, 10)


def _run(argv: t.Sequence[str], *, check: bool = True, **options: t.Any) -> CommandResult:
    done = subprocess.run(list(argv), capture_output=True, text=True, check=check)
    return CommandResult(tuple(argv), done.returncode, done.stdout, done.stderr)


def _ask(target: str, request: str) -> str:
    return _run(["debugfs", "-R", request, target]).stdout
