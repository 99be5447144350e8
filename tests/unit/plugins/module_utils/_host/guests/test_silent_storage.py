# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that does not answer, as of a file server that is gone: whoever looks there would wait for good."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import disk_images, files, mounts, templates
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

from .. import fake_domains
from ..fake_domains import FakeConnection
from .bring import DIGEST, WEB, bring, foreign, one, template

LOOKS = ("stat", "lstat", "open", "readlink", "scandir", "listdir", "access", "statvfs")


class Share:
    """A directory that is a mount point, until its server goes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.mkdir()
        self.path, self._monkeypatch = path, monkeypatch

    def goes(self) -> None:
        """From now on every look there fails the test, where it would hang."""
        # Those before it see an empty directory as any other one.
        mountinfo = f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:35 / {self.path} rw - nfs4 192.0.2.1:/ rw\n"
        self._monkeypatch.setattr(files, "read_mounts", lambda: mountinfo)
        self._monkeypatch.setattr(mounts, "_answers", lambda point: False)
        for name in LOOKS:
            self._monkeypatch.setattr(os, name, self._hanging(getattr(os, name)))

    def _hanging(self, real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def look(path: t.Any, *args: t.Any, **words: t.Any) -> t.Any:
            if isinstance(path, (str, os.PathLike)):
                there = f"{os.path.abspath(path)}/".startswith(f"{self.path}/")
                assert not there, f"{real.__name__} of {path} hangs"
            return real(path, *args, **words)

        return look


@pytest.fixture
def share(place: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    return Share(place / "nfs", monkeypatch)


def image(share: Share, name: str = "theirs.qcow2", *below: str) -> dict[str, t.Any]:
    fake_domains.qcow2(share.path / name, 2**20, *below)
    return {"path": str(share.path / name)}


def test_a_guest_is_made_and_changed_beside_one_whose_storage_is_gone(
    connection: FakeConnection, place: Path, share: Share
) -> None:
    """Be it that libvirt has not told what lies below its disk."""
    template(place)
    theirs = image(share)
    bring({"name": "theirs", "memory_mib": 64, "disks": [theirs]})
    image(share, "base.qcow2")
    fake_domains.qcow2(place / "top.qcow2", 2**20, str(share.path / "base.qcow2"), "qcow2")
    foreign(
        connection,
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{place}/top.qcow2'/>"
        "<target dev='vda' bus='virtio'/></disk>",
    )
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
        with pytest.raises(HostError, match=r"does not answer.* Bring its server back") as raised:
            bring({**WEB, "name": name, **at(more)})
        assert str(raised.value).startswith(f"guests: {name}")
        assert f"{place}/{names}".replace("web-", f"{name}-") in str(raised.value)
    assert connection.calls == before


def test_one_that_has_its_disk_there_can_be_stopped_and_nothing_else(connection: FakeConnection, share: Share) -> None:
    disks = {"disks": [image(share)]}
    bring({**WEB, **disks})
    share.goes()
    for item in ({**WEB, **disks}, {"name": "web", "state": "absent"}, {**WEB, **disks, "state": "stopped"}):
        with pytest.raises(HostError, match=r"guests: web has .*nfs/theirs\.qcow2, and the storage there"):
            bring(item)
    assert connection.domains["web"].live is not None
    assert one({"name": "web", "state": "stopped"})["actions"][0] == "stop"
    with pytest.raises(HostError, match=r"guests: web has .*nfs/theirs\.qcow2, and the storage there"):
        bring({"name": "web", "state": "running"})


def test_nothing_is_removed_while_nobody_knows_what_rests_on_it(
    connection: FakeConnection, place: Path, share: Share
) -> None:
    """Something there might."""
    bring({**WEB, "disks": [{"path": str(place / "own.qcow2"), "size_mib": 1}]}, {**WEB, "name": "db"})
    image(share, "theirs.qcow2", str(place / "own.qcow2"), "qcow2")
    foreign(
        connection,
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{share.path}/theirs.qcow2'/>"
        "<target dev='vda' bus='virtio'/></disk>",
    )
    share.goes()
    with pytest.raises(HostError, match=rf"The storage at {share.path} does not answer.* unmount it"):
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
