# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that does not answer, as of a file server that is gone: whoever looks there would wait for good."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import disk_images, mounts, templates
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml

from .. import fake_domains
from ..dead_storage import Dead
from ..fake_domains import FakeConnection
from .bring import DIGEST, WEB, bring, cut_off, foreign, one, template


class Share:
    """A directory that is a mount point, until its server goes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.mkdir()
        self.path, self._monkeypatch = path, monkeypatch

    def goes(self) -> None:
        """From now on every look there fails the test, where it would hang."""
        Dead(self.path, self._monkeypatch)
        self._monkeypatch.setattr(mounts, "_answers", lambda point: False)


@pytest.fixture
def share(place: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    return Share(place / "nfs", monkeypatch)


def image(share: Share, name: str = "theirs.qcow2", *below: str) -> dict[str, t.Any]:
    fake_domains.qcow2(share.path / name, 2**20, *below)
    return {"path": str(share.path / name)}


def foreign_disk(connection: FakeConnection, path: Path) -> None:
    """Somebody else's guest, with a disk of which libvirt has not told what lies below it."""
    source = f"<source file='{path}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'><driver name='qemu' type='qcow2'/>{source}</disk>")


def test_a_guest_is_made_and_changed_beside_one_whose_storage_is_gone(
    connection: FakeConnection, place: Path, share: Share
) -> None:
    """Be it that libvirt has not told what lies below its disk."""
    template(place)
    theirs = image(share)
    bring({"name": "theirs", "memory_mib": 64, "disks": [theirs]})
    image(share, "base.qcow2")
    fake_domains.qcow2(place / "top.qcow2", 2**20, str(share.path / "base.qcow2"), "qcow2")
    foreign_disk(connection, place / "top.qcow2")
    share.goes()
    assert one(WEB)["changed"]
    assert one({**WEB, "disks": [{"size_mib": 1}, {"template": "debian"}]})["changed"]


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"disks": [{"size_mib": 1}, {"path": "nfs/new.qcow2", "size_mib": 1}]}, "nfs/new.qcow2"),
        ({"disks": [{"size_mib": 1}, {"pool": "images", "size_mib": 1}]}, "nfs/web-vdb.qcow2"),
        ({"cdrom": "nfs/a.iso"}, "nfs/a.iso"),
        ({"kernel": "nfs/vmlinuz"}, "nfs/vmlinuz"),
        ({"shared_folders": [{"source": "nfs/folder", "tag": "a"}]}, "nfs/folder"),
    ],
)
def test_what_a_guest_is_to_have_there(
    connection: FakeConnection, place: Path, share: Share, more: t.Any, names: str
) -> None:
    """For a guest that is new, and for one that is there."""
    connection.pools["images"] = str(share.path)

    def at(value: t.Any) -> t.Any:
        if isinstance(value, dict):
            return {key: at(each) for key, each in value.items()}
        if isinstance(value, list):
            return [at(each) for each in value]
        return f"{place}/{value}" if isinstance(value, str) and value.startswith("nfs") else value

    bring({**WEB, "name": "db"})
    share.goes()
    before = list(connection.calls)
    for name in ("web", "db"):
        with pytest.raises(HostError, match=r"is on storage that does not answer.* Bring its server back") as raised:
            bring({**WEB, "name": name, **at(more)})
        assert str(raised.value).startswith(f"guests: {name}")
        assert f"{place}/{names}".replace("web-", f"{name}-") in str(raised.value)
    assert connection.calls == before


@pytest.mark.parametrize("known", ["new", "managed", "adopted", "adopted, and nobody has told libvirt"])
def test_what_a_disk_rests_on_is_there(connection: FakeConnection, place: Path, share: Share, known: str) -> None:
    """The disk itself is not. It is told when it is looked at."""
    image(share, "base.qcow2")
    top = place / "workloads/web/disks/own.qcow2"
    top.parent.mkdir(parents=True)
    base = f"<backingStore type='file'><format type='qcow2'/><source file='{share.path}/base.qcow2'/></backingStore>"
    wanted = {"name": "web", "memory_mib": 256, "disks": [{"path": str(top)}]}
    if known == "managed":
        fake_domains.qcow2(top, 2**20)
        bring({**wanted, "state": "stopped"})
    fake_domains.qcow2(top, 2**20, str(share.path / "base.qcow2"), "qcow2")
    if known.startswith("adopted"):
        wanted["name"] = "old"
        foreign(
            connection,
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{top}'/>"
            f"{'' if 'nobody' in known else base}<target dev='vda' bus='virtio'/></disk>",
        )
    share.goes()
    with pytest.raises(HostError, match=rf"{share.path}/base\.qcow2 is on storage that does not answer"):
        bring(wanted, adopt=True)


def test_what_a_run_that_was_cut_off_was_making_there(
    connection: FakeConnection, place: Path, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what libvirt does not know any more."""
    connection.pools["images"] = str(share.path)
    cut_off({**WEB, "disks": [{"path": str(share.path / "new.qcow2"), "size_mib": 1}]}, monkeypatch, "_seed")
    bring({**WEB, "name": "db", "disks": [{"pool": "images", "size_mib": 1}]})
    connection.domains.pop("db")
    share.goes()
    for name, file in (("web", "new.qcow2"), ("db", "db-vda.qcow2")):
        for item in ({"name": name, "state": "absent"}, {"name": name, "state": "absent", "delete_disks": True}):
            with pytest.raises(HostError, match=rf"guests: {name}: .*nfs/{file} is on storage that does not answer"):
                bring(item)


def test_what_may_be_the_base_of_a_disk_there_is_nobodys(connection: FakeConnection, place: Path, share: Share) -> None:
    """Only the file there says what it rests on."""
    fake_domains.qcow2(place / "base.qcow2", 2**20)
    image(share, "theirs.qcow2", str(place / "base.qcow2"), "qcow2")
    foreign_disk(connection, share.path / "theirs.qcow2")
    share.goes()
    with pytest.raises(HostError, match=r"is below a disk of 'old' nobody can say: .*theirs\.qcow2 is on storage"):
        bring({**WEB, "disks": [{"path": str(place / "base.qcow2")}]})
    assert one(WEB)["changed"]


def test_what_may_be_the_base_of_the_base_there(connection: FakeConnection, place: Path, share: Share) -> None:
    """The disk itself is read."""
    fake_domains.qcow2(place / "base.qcow2", 2**20)
    image(share, "middle.qcow2", str(place / "base.qcow2"), "qcow2")
    fake_domains.qcow2(place / "top.qcow2", 2**20, str(share.path / "middle.qcow2"), "qcow2")
    foreign_disk(connection, place / "top.qcow2")
    share.goes()
    with pytest.raises(
        HostError, match=rf"whether {place}/base.qcow2 is below a disk of 'old' nobody can say: .*middle"
    ):
        bring({**WEB, "disks": [{"path": str(place / "base.qcow2")}]})


def test_what_it_has_made_itself_is_below_nothing_there(
    connection: FakeConnection, place: Path, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was cut off goes on, and a domain that is lost is made anew."""
    foreign_disk(connection, share.path / "theirs.qcow2")
    cut_off(WEB, monkeypatch, "_seed")
    bring({**WEB, "name": "db", "disks": [{"path": str(place / "own.qcow2"), "size_mib": 1}]})
    connection.domains.pop("db")
    share.goes()
    assert one(WEB)["changed"]
    assert one({**WEB, "name": "db", "disks": [{"path": str(place / "own.qcow2"), "size_mib": 1}]})["changed"]


def test_what_nobody_looks_into_holds_up_nobody(connection: FakeConnection, place: Path, share: Share) -> None:
    """The share is a directory beside a disk."""
    bring({**WEB, "disks": [{"path": str(place / "own.qcow2"), "size_mib": 1}]})
    share.goes()
    assert one({"name": "web", "state": "absent", "delete_disks": True})["changed"]
    assert not (place / "own.qcow2").exists()


@pytest.mark.parametrize(
    "text",
    [
        "<os><loader>{}</loader></os>", "<os><nvram>{}</nvram></os>", "<os><kernel>{}</kernel></os>",
        "<os><nvram type='file'><source file='{}'/></nvram></os>", "<os><initrd>{}</initrd></os>",
        "<devices><disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/></disk></devices>",
        "<devices><filesystem type='mount'><source dir='{}'/><target dir='tag'/></filesystem></devices>",
    ],
)  # fmt: skip
def test_all_that_is_opened_counts(connection: FakeConnection, share: Share, text: str) -> None:
    bring(WEB)
    stored = t.cast("t.Any", connection.domains["web"].stored)
    for part in xml.parse(f"<domain>{text.format(share.path / 'a')}</domain>", "it"):
        there = stored.find(part.tag)
        there.extend(list(part))
    share.goes()
    with pytest.raises(HostError, match=r"guests: web: .*nfs/a is on storage"):
        bring({"name": "web", "state": "absent"})


def test_two_of_one_call(connection: FakeConnection, place: Path, share: Share) -> None:
    """One takes a disk, and the other, whose disk is there, goes."""
    fake_domains.qcow2(place / "own.qcow2", 2**20)
    bring({**WEB, "name": "db", "disks": [{"path": str(share.path / "new.qcow2"), "size_mib": 1}]})
    share.goes()
    gone = {"name": "db", "state": "absent", "delete_disks": True}
    with pytest.raises(HostError, match=r"guests: db: .*new\.qcow2 is on storage"):
        bring({**WEB, "disks": [{"path": str(place / "own.qcow2")}]}, gone)


def test_a_damaged_template_is_told_all_the_same(connection: FakeConnection, place: Path, share: Share) -> None:
    """Who rests on it is known of guests only."""
    template(place)
    made = {"template": "debian", "path": str(share.path / "clone.qcow2")}
    bring({**WEB, "disks": [made]})
    share.goes()
    disk = place / f"templates/sha256/{DIGEST}/disk.qcow2"
    disk.write_bytes(disk.read_bytes() + b"more")
    with pytest.raises(Refused, match=r"is damaged: .* wrong data: guest web\. What rests on .*nfs does not answer"):
        bring({**WEB, "name": "db", "disks": [{"template": "debian"}]})


def test_one_that_has_its_disk_there_can_be_stopped_and_nothing_else(connection: FakeConnection, share: Share) -> None:
    disks = {"disks": [image(share)]}
    bring({**WEB, **disks})
    share.goes()
    for item in ({**WEB, **disks}, {"name": "web", "state": "absent"}, {**WEB, **disks, "state": "stopped"}):
        with pytest.raises(HostError, match=r"guests: web: .*nfs/theirs\.qcow2 is on storage"):
            bring(item)
    assert connection.domains["web"].live is not None
    assert one({"name": "web", "state": "stopped"})["actions"][0] == "stop"
    with pytest.raises(HostError, match=r"guests: web: .*nfs/theirs\.qcow2 is on storage"):
        bring({"name": "web", "state": "running"})


def test_nothing_is_removed_while_nobody_knows_what_rests_on_it(
    connection: FakeConnection, place: Path, share: Share
) -> None:
    """Something there might."""
    bring({**WEB, "disks": [{"path": str(place / "own.qcow2"), "size_mib": 1}]}, {**WEB, "name": "db"})
    image(share, "theirs.qcow2", str(place / "own.qcow2"), "qcow2")
    connection.pools["shared"] = str(share.path)
    foreign_disk(connection, share.path / "theirs.qcow2")
    share.goes()
    with pytest.raises(HostError, match=rf"nobody can say: the storage at {share.path} does not answer.* unmount it"):
        bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (place / "own.qcow2").exists()
    with pytest.raises(HostError, match="does not answer"):
        bring({"name": "db", "state": "absent"})
    assert {"web", "db"} <= set(connection.domains)
    with pytest.raises(HostError, match="does not answer"):
        disk_images.bring_to(Host(run=fake_domains.run), [{"path": str(place / "own.qcow2"), "state": "absent"}])
    template(place)
    with pytest.raises(HostError, match="does not answer"):
        templates.dependants(DIGEST)
