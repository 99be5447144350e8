# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of guests share: a guest, and what brings it to what it should be."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    domains,
    guest_preflight,
    guest_snapshots,
    guests,
    ownership,
    placement,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain

from .. import fake_domains
from ..fake_domains import FakeConnection
from ..killing import Killed, at_each_effect

DIGEST = "ab" * 32
WEB = {"name": "web", "memory_mib": 256, "disks": [{"size_mib": 1}], "networks": [{}]}


def bring(*items: dict[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
    return guests.bring_to(Host(run=fake_domains.run), list(items), **more)


def one(*items: dict[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", bring(*items, **more)["guests"][0])


def template(place: Path, size: int = 2**21, name: str = "debian", digest: str = DIGEST) -> None:
    disk = place / f"templates/sha256/{digest}/disk.qcow2"
    disk.parent.mkdir(parents=True, exist_ok=True)
    fake_domains.qcow2(disk, size)
    status = disk.stat()
    seen = {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    disk.with_name("template.json").write_text(json.dumps({"seen": seen}))
    names = place / "templates/names"
    names.mkdir(exist_ok=True)
    (names / name).write_text(f"{digest}\n")


def needs_of(connection: FakeConnection, name: str) -> dict[str, t.Any]:
    """What a guest of this host would need of another one."""
    known = domains.read(t.cast("t.Any", connection), [name])[name]
    definition = json.loads(Path(paths.definition_file(name)).read_text())
    return guest_preflight.needs_of(name, known, definition, Host(run=fake_domains.run), 1, False)


def foreign(connection: FakeConnection, text: str = "", top: str = "") -> None:
    connection.defineXML(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>old</name><uuid>9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11</uuid>"
        "<memory unit='MiB'>256</memory><vcpu>1</vcpu><os><type machine='pc-i440fx-9.2' arch='x86_64'>hvm</type></os>"
        "<devices><interface type='network'><mac address='52:54:00:00:00:77'/><source network='default'/>"
        f"<model type='virtio'/></interface>{text}</devices>{top}</domain>"
    )
    connection.calls.clear()


def overlay(place: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, t.Any]) -> None:
    (place / "overlay.json").write_text(
        json.dumps(
            {
                "subnet": "10.100.101.0/24",
                "gateway": "10.100.101.1",
                "bridge": "lo",
                "mtu": 1370,
                "self": {"name": "host1", "address": "10.100.101.2"},
                "peers": [{"name": "host2", "address": "10.100.101.3"}],
            }
        )
    )
    monkeypatch.setattr(placement, "ask", lambda host, overlay, **kwargs: answers)
    monkeypatch.setattr(os.path, "isdir", lambda path, real=os.path.isdir: path.endswith("/bridge") or real(path))


def cut(*args: t.Any, **words: t.Any) -> t.NoReturn:
    raise Killed


def cut_off(item: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch, step: str, **options: t.Any) -> None:
    """Bring it to what is wanted, and be killed before this step."""

    with monkeypatch.context() as patched:
        patched.setattr(ownership.Registry if step == "own" else guests.Batch, step, cut)
        patched.setattr(ownership.Registry, "give_up", cut)
        with pytest.raises(Killed):
            bring(item, **options)


class Steps:
    """A guest with a disk of each kind, and runs of it that are killed at each of their effects."""

    def __init__(self, place: Path, connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.connection, self.monkeypatch = place, connection, monkeypatch
        template(place)
        connection.pools["images"] = str(place / "pool")
        for name in ("pool", "srv"):
            (place / name).mkdir()
        self.theirs = place / "srv/theirs.qcow2"
        fake_domains.qcow2(self.theirs, 2**20)
        self.guest: dict[str, t.Any] = {
            "name": "web", "memory_mib": 256, "networks": [{}], "cloud_init": {"user_data": "#cloud-config"},
            "disks": [
                {"size_mib": 1}, {"pool": "images", "size_mib": 1}, {"template": "debian"}, self.at("b.qcow2"),
                {"path": str(self.theirs)},
            ],
        }  # fmt: skip
        self.absent = {"name": "web", "state": "absent", "delete_disks": True}

    def at(self, name: str) -> dict[str, t.Any]:
        return {"path": str(self.place / "srv" / name), "size_mib": 1}

    def files(self) -> list[str]:
        """All that lies there but templates, locks and what nobody has made."""
        found = [path for path in self.place.rglob("*") if path.is_file() and path != self.theirs]
        names = [str(path.relative_to(self.place)) for path in found]
        left_out = ("run/locks", "templates/", "host.json", "old.qcow2")
        return sorted(name for name in names if not name.startswith(left_out))

    def seen(self, name: str = "web") -> t.Any:
        """All that there is of a guest, in a form to compare."""
        each = self.connection.domains[name]
        definition = json.loads((self.place / f"workloads/{name}/definition.json").read_text())
        live = None if each.live is None else domain.parse(each.live)
        owner = json.loads((self.place / f"workloads/{name}/owner.json").read_text())
        return self.files(), definition, domain.parse(t.cast("t.Any", each.stored)), live, each.automatic, owner

    def gone(self) -> None:
        assert self.connection.domains == {}
        # What a claim was being written to says nothing, and nobody reads it.
        assert [name for name in self.files() if name != "workloads/web/owner.json.new"] == []
        assert self.theirs.exists()

    def kill(self, before: t.Callable[[], object], run: t.Callable[[], object], after: t.Callable[[], object]) -> int:
        more = [(self.connection, "calls"), (fake_domains, "run")]
        return at_each_effect(self.monkeypatch, before, run, after, more)


MORE = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"size_mib": 1}]}


def record(place: Path, **more: t.Any) -> None:
    directory = place / "workloads/web"
    directory.mkdir(exist_ok=True)
    (directory / "owner.json").write_text(
        json.dumps({"kind": "guest", "owner": "me", "owner_name": "host1", "generation": 1, **more})
    )


def snap(name: str, state: str = "present", guest: str = "web", **more: t.Any) -> dict[str, t.Any]:
    host = Host(run=fake_domains.run)
    return t.cast("dict[str, t.Any]", guest_snapshots.bring_to(host, [guest], name, state, **more)["guests"][0])


def top(connection: FakeConnection) -> str:
    return str(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]["path"])


def meanwhile(monkeypatch: pytest.MonkeyPatch, owner: t.Any, name: str, does: t.Callable[[], object]) -> None:
    """Somebody else ``does`` something once, while ``owner.name`` is at work."""
    real, todo = getattr(owner, name), [does]

    def slow(*args: t.Any, **words: t.Any) -> t.Any:
        result = real(*args, **words)
        while todo:
            todo.pop()()
        return result

    monkeypatch.setattr(owner, name, slow)


def full() -> t.NoReturn:
    raise HostError("There is no room left.")
