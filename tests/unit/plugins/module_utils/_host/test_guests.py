# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests on a host, with a stand-in for libvirt; the scenario of the guests uses the real one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    HostError,
    InputError,
    Missing,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disk_images,
    disks,
    domains,
    files,
    guest_disks,
    guest_jobs,
    guest_live,
    guest_planning,
    guest_power,
    guest_preflight,
    guest_report,
    guest_restarts,
    guest_snapshots,
    guest_start,
    guest_watch,
    guests,
    kvm,
    libvirt,
    mounts,
    movedir,
    ownership,
    placement,
    seeds,
    snapshot_records,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import (
    domain,
    errors,
    guest_definition,
    migration,
    snapshots,
    xml,
)
from ansible_collections.cnvm.platform.tests.support import images

from . import fake_domains
from .fake_clock import Clock
from .fake_domains import FakeConnection, FakeError
from .killing import Killed, at_each_effect

DIGEST = "ab" * 32
WEB = {"name": "web", "memory_mib": 256, "disks": [{"size_mib": 1}], "networks": [{}]}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of its own below a directory."""
    for name in ("WORKLOADS", "KEPT_DISKS", "LOGS", "RUN", "TEMPLATES", "NVRAM", "QEMU_LOGS"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(guest_disks, "_OURS", (str(tmp_path / "templates"), str(tmp_path / "workloads")))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    (tmp_path / "host.json").write_text(json.dumps({"host_id": "me", "name": "host1"}))
    (tmp_path / "workloads").mkdir()
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": False, "reason": "there is no /dev/kvm"})
    monkeypatch.setattr(os, "fchown", lambda *args: None)
    for module in (guest_live, guest_power):
        monkeypatch.setattr(module, "_POLL_S", 0.001)
    monkeypatch.setattr(guest_live, "_UNPLUG_S", 0.01)
    monkeypatch.setattr(guest_live, "_BALLOON_S", 0.01)
    monkeypatch.setattr(seeds, "PROGRAMS", (("xorriso", "-as", "mkisofs"),))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    made = FakeConnection()
    library = fake_domains.library()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(libvirt, "_code_names", dict)

    @contextlib.contextmanager
    def connect(uri: str = "", **kwargs: t.Any) -> t.Iterator[FakeConnection]:
        yield made

    monkeypatch.setattr(libvirt, "connect", connect)
    return made


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


# -- A guest's life
def test_a_new_guest_runs_and_a_second_call_changes_nothing(connection: FakeConnection, place: Path) -> None:
    result = bring(WEB)
    found = result["guests"][0]
    assert result["changed"]
    assert found["actions"] == ["create", "start with the host", "start"]
    assert (found["state"], found["placement"], found["managed"]) == ("running", "host1", True)
    assert any("emulated" in warning for warning in result["warnings"])
    assert json.loads((place / "workloads/web/owner.json").read_text())["kind"] == "guest"
    assert (place / "workloads/web/disks/vda.qcow2").exists()
    assert oct((place / "workloads/web/disks").stat().st_mode)[-3:] == "711"
    connection.calls.clear()
    again = bring(WEB)
    assert (again["changed"], connection.calls, again["diff"]) == (False, [], {"before": {}, "after": {}})
    assert again["warnings"] == []


def test_no_boot_order_is_the_usual_one(connection: FakeConnection) -> None:
    """libvirt has no guest boot from nothing, and would say something else than what is wanted."""
    wanted = {**WEB, "boot": []}
    bring(wanted)
    assert domain.parse(t.cast("t.Any", connection.domains["web"].stored))["boot"] == ["disk", "cdrom"]
    for same in (wanted, WEB):
        again = bring(same)
        assert (again["changed"], again["guests"][0]["restart_required"]) == (False, False)


def test_check_mode_changes_nothing(connection: FakeConnection, place: Path) -> None:
    result = bring(WEB, check_mode=True)
    assert result["changed"]
    assert result["guests"][0]["actions"] == ["create", "start with the host", "start"]
    assert result["diff"]["after"]["web"]["memory_mib"] == 256
    assert connection.calls == []
    assert os.listdir(place / "workloads") == []


LACKS: dict[str, dict[str, t.Any]] = {
    "network": {"networks": [{"source": "lab"}]},
    "bridge": {"networks": [{"type": "bridge", "source": "br-none"}]},
    "overlay": {"networks": [{"type": "overlay", "address": "10.100.101.30"}]},
    "template": {"disks": [{"template": "debian"}]},
    "pool": {"disks": [{"pool": "fast", "size_mib": 1}]},
    "file /srv/none": {"disks": [{"path": "/srv/none.qcow2"}]},
    "kernel": {"kernel": "/srv/none"},
}


@pytest.mark.parametrize("what", LACKS)
def test_in_check_mode_a_task_before_may_make_what_it_lacks(connection: FakeConnection, what: str) -> None:
    found = bring({**WEB, **LACKS[what]}, check_mode=True)
    assert found["guests"][0]["actions"] == ["create", "start with the host", "start"]
    warnings = [
        each for each in found["warnings"] if each.startswith("Guest web would be refused, unless a task before ")
    ]
    assert len(warnings) == 1
    assert what in warnings[0]
    with pytest.raises(InputError, match=what):
        bring({**WEB, **LACKS[what]})
    assert connection.calls == []


def test_in_check_mode_one_that_is_there_may_be_started_on_a_network_to_come(connection: FakeConnection) -> None:
    bring({**WEB, "state": "stopped"})
    connection.domains["web"].stored = xml.parse(connection.domains["web"].XMLDesc(2).replace('"default"', '"lab"'))
    start = {"name": "web", "state": "running"}
    found = bring(start, check_mode=True)
    assert found["guests"][0]["actions"] == ["start with the host", "start"]
    assert any("no network 'lab'" in warning for warning in found["warnings"])
    with pytest.raises(Missing, match="no network 'lab'"):
        bring(start)
    # What would change of it cannot be said.
    with pytest.raises(Missing, match="template"):
        bring({**WEB, "disks": [{"size_mib": 1}, {"template": "debian"}]}, check_mode=True)


def test_one_that_is_not_there_has_no_address(connection: FakeConnection) -> None:
    """Plays that use it say ``guests[0].address`` in check mode, too."""
    assert one(WEB, check_mode=True)["address"] is None
    bring(WEB)
    del connection.domains["web"]
    (missing,) = guest_report.report(t.cast("t.Any", connection))
    assert (missing["state"], missing["address"], missing["addresses"]) == ("missing", None, [])
    gone = one({"name": "web", "state": "absent"})
    assert (gone["state"], gone["address"], gone["address_source"]) == ("absent", None, None)


def test_one_whose_file_server_is_gone_hides_no_other_one(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much its disk takes up there cannot be said, and nobody waits for that."""
    bring(WEB, {**WEB, "name": "far"})
    dead = f"{place}/workloads/far"
    monkeypatch.setattr(files, "read_mounts", lambda: f"55 22 0:42 / {dead} rw - nfs4 192.0.2.1:/srv rw,hard\n")
    monkeypatch.setattr(mounts, "_answers", lambda point: False)
    stat = os.stat

    def touched(path: t.Any, **options: t.Any) -> os.stat_result:
        assert not str(path).startswith(f"{dead}/disks/")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", touched)
    far, web = guest_report.report(t.cast("t.Any", connection))
    assert (far["state"], far["disks"][0]["allocated_bytes"]) == ("running", None)
    assert web["disks"][0]["allocated_bytes"] is not None


def test_one_with_damaged_records_hides_no_other_one(connection: FakeConnection, place: Path) -> None:
    def look() -> dict[str, t.Any]:
        return guest_report.work(Host(run=fake_domains.run), {"names": None, "addresses": False}, False)

    bring(WEB, {**WEB, "name": "bad"}, {**WEB, "name": "worse"})
    (place / "workloads/bad/owner.json").write_text("")
    (place / "workloads/worse/owner.json").write_text("[]")
    del connection.domains["worse"]
    (place / "workloads/web/snapshots.json").write_text("{")
    found = look()
    bad, web, worse = found["guests"]
    assert (bad["state"], bad["managed"], bad["placement"]) == ("running", False, None)
    assert "bad/owner.json cannot be read" in bad["problem"]
    assert (web["state"], web["managed"], web["snapshots"]) == ("running", True, [])
    assert "web/snapshots.json cannot be read" in web["problem"]
    assert (worse["state"], worse["managed"], worse["uuid"]) == ("failed", False, None)
    assert found["warnings"] == [f"Guest {one['name']}: {one['problem']}" for one in (bad, web, worse)]
    (place / "workloads/web/snapshots.json").unlink()
    assert "problem" not in look()["guests"][1]


def test_many_unchanged_guests_are_few_questions_and_no_command(connection: FakeConnection) -> None:
    items = [{**WEB, "name": f"web{number}"} for number in range(20)]
    bring(*items)
    connection.questions = 0
    ran: list[t.Any] = []

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> t.Any:
        ran.append(argv)
        return fake_domains.run(argv, **kwargs)

    assert not guests.bring_to(Host(run=run), items)["changed"]
    assert ran == []
    assert connection.questions <= 10


def test_states(connection: FakeConnection) -> None:
    bring(WEB)
    state = {"name": "web"}
    assert one({**state, "state": "paused"})["actions"] == ["pause"]
    assert one({**state, "state": "running"})["actions"] == ["resume"]
    assert one({**state, "state": "stopped"})["actions"] == ["stop", "do not start with the host"]
    assert not bring({**state, "state": "stopped"})["changed"]
    assert one({**state, "state": "present"})["state"] == "stopped"
    started = one({**state, "state": "paused"})
    assert (started["actions"], started["state"]) == (["start", "pause"], "paused")


def test_stop_waits_and_then_forces_only_when_it_may(connection: FakeConnection) -> None:
    bring(WEB)
    connection.domains["web"].obeys = False
    with pytest.raises(HostError, match="did not stop within 0 s"):
        bring({"name": "web", "state": "stopped", "stop_timeout_s": 0})
    assert connection.domains["web"].live is not None
    result = bring({"name": "web", "state": "stopped", "stop_timeout_s": 0, "force_stop": True})
    assert result["guests"][0]["state"] == "stopped"
    assert any("turned off" in warning for warning in result["warnings"])


def test_one_that_does_not_stop_does_not_keep_the_others_up(connection: FakeConnection) -> None:
    bring(WEB, {**WEB, "name": "db"})
    connection.domains["web"].obeys = False
    with pytest.raises(HostError, match="web"):
        bring(*[{"name": name, "state": "stopped", "stop_timeout_s": 1} for name in ("web", "db")])
    assert connection.domains["db"].live is None


def goes_down_after(each: fake_domains.FakeDomain, what: t.Callable[[], object], how: str = "shutdown") -> None:
    """libvirt answers when the guest is down, or, with an agent, when it goes down."""
    down = getattr(each, how)

    def slowly() -> None:
        what()
        down()

    setattr(each, how, slowly)


def test_guests_are_asked_to_stop_side_by_side(connection: FakeConnection) -> None:
    names = ("web", "db", "new")
    bring(*({**WEB, "name": name} for name in names))
    together = threading.Barrier(3)
    for name in names:
        goes_down_after(connection.domains[name], lambda: together.wait(60))
    found = bring(*({"name": name, "state": "stopped"} for name in names))["guests"]
    assert [each["state"] for each in found] == ["stopped"] * 3


def test_guests_that_go_with_their_disks_are_turned_off_side_by_side(connection: FakeConnection) -> None:
    names = ("web", "db", "new")
    bring(*({**WEB, "name": name} for name in names))
    together = threading.Barrier(3)
    for name in names:
        goes_down_after(connection.domains[name], lambda: together.wait(60), "destroy")
    bring(*({"name": name, "state": "absent", "delete_disks": True} for name in names))
    assert connection.domains == {}


def test_the_time_that_a_guest_has_to_stop_begins_when_it_is_asked_to(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not turned off because another one has taken its time."""
    bring(WEB, {**WEB, "name": "db"})
    clock = Clock()
    monkeypatch.setattr(clock, "sleep", lambda seconds: time.sleep(0.001))
    monkeypatch.setattr(guest_power, "time", clock)
    monkeypatch.setattr(guest_power, "_PRESSES_AT_ONCE", 1)
    goes_down_after(connection.domains["web"], lambda: Clock.sleep(clock, 60))
    stop = {"state": "stopped", "stop_timeout_s": 30, "force_stop": True}
    bring({**stop, "name": "web", "stop_timeout_s": 90}, {**stop, "name": "db"})
    assert "shutdown db" in connection.calls
    assert "destroy db" not in connection.calls


def test_one_that_does_not_stop_keeps_no_other_one_down(connection: FakeConnection) -> None:
    names = ("web", "db", "old", "new")
    bring(*({**WEB, "name": name} for name in names))
    connection.domains["web"].obeys = False
    connection.domains["old"].refuses["shutdown"] = FakeError(errors.RPC, "Cannot recv data")
    wanted = [{**WEB, "name": name, "machine": "pc", "stop_timeout_s": 1} for name in names]
    with pytest.raises(HostError, match="stop the guest 'old': Cannot recv data") as caught:
        bring(*wanted, restart_on_change=True)
    assert caught.value.details["guests"] == ["old", "web"]
    found = {name: domain.parse(t.cast("t.Any", connection.domains[name].live))["machine"] for name in names}
    assert found == {"web": "q35", "db": "pc", "old": "q35", "new": "pc"}
    assert not bring(wanted[1], wanted[3])["changed"]
    connection.domains["web"].obeys = True
    assert one(wanted[0], restart_on_change=True)["restarted"]


def test_nor_does_one_that_cannot_be_changed(connection: FakeConnection) -> None:
    bring(WEB, {**WEB, "name": "db"})
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
    with pytest.raises(HostError, match="define the guest 'web'"):
        bring(*({**WEB, "name": name, "machine": "pc"} for name in ("web", "db")), restart_on_change=True)
    assert all(each.live is not None for each in connection.domains.values())


def test_an_adoption_that_has_to_wait_is_not_half_made(connection: FakeConnection, place: Path) -> None:
    foreign(connection)
    connection.domains["old"].createWithFlags(0)
    connection.domains["old"].obeys = False
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "state": "stopped", "stop_timeout_s": 0}
    with pytest.raises(HostError, match="did not stop"):
        bring(wanted, adopt=True)
    assert os.listdir(place / "workloads") == []


def test_removal_keeps_the_disks_unless_they_are_to_go(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    found = one({"name": "web", "state": "absent"})
    assert (found["state"], found["placement"]) == ("absent", None)
    assert found["kept_disks"] == [str(place / "kept_disks/web/vda.qcow2")]
    assert (place / "kept_disks/web/vda.qcow2").exists()
    assert connection.domains == {}
    assert os.listdir(place / "workloads") == []
    assert "undefine web 23" in connection.calls
    assert not bring({"name": "web", "state": "absent"})["changed"]
    bring({**WEB, "serial": "log"})
    for log in (paths.guest_log("web"), f"{paths.guest_log('web')}.0", paths.guest_log("web2")):
        Path(log).touch()
    assert one({"name": "web", "state": "absent"})["kept_disks"] == [str(place / "kept_disks/web-2/vda.qcow2")]
    assert os.listdir(place / "logs/guests") == ["web2.log"]
    bring(WEB)
    connection.domains["web"].obeys = False
    assert one({"name": "web", "state": "absent", "delete_disks": True})["kept_disks"] == []
    assert sorted(os.listdir(place / "kept_disks")) == ["web", "web-2"]


def with_snapshot() -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")


@pytest.mark.parametrize("again", [False, True])
def test_keeping_disks_that_was_cut_off_is_finished(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    if again:
        bring(WEB)
        bring({"name": "web", "state": "absent"})
    with_snapshot()
    rename = os.rename

    def renamed(*args: t.Any) -> None:
        rename(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", renamed)
        with pytest.raises(Killed):
            bring({"name": "web", "state": "absent"})
    kept = place / ("kept_disks/web-2" if again else "kept_disks/web")
    assert one({"name": "web", "state": "absent"})["kept_disks"] == [f"{kept}/vda-1.qcow2", f"{kept}/vda.qcow2"]
    assert [node.path for node in disks.chain(f"{kept}/vda-1.qcow2")] == [f"{kept}/vda-1.qcow2", f"{kept}/vda.qcow2"]
    assert os.listdir(place / "workloads") == []
    # Made anew, it keeps other ones.
    bring(WEB)
    assert one({"name": "web", "state": "absent"})["kept_disks"] != [f"{kept}/vda.qcow2"]


def test_a_kept_disk_that_cannot_be_told_where_its_base_is_fails(place: Path) -> None:
    with_snapshot()

    def run(argv: t.Sequence[str], **words: t.Any) -> CommandResult:
        return CommandResult(tuple(argv), 1, stderr="Input/output error")

    with pytest.raises(HostError, match="Input/output error"):
        guests.bring_to(Host(run=run), [{"name": "web", "state": "absent"}])
    assert one({"name": "web", "state": "absent"})["kept_disks"] == [
        f"{place}/kept_disks/web/{name}" for name in ("vda-1.qcow2", "vda.qcow2")
    ]


def test_a_kept_disk_that_is_damaged_is_left_as_it_is(place: Path) -> None:
    with_snapshot()
    (place / "workloads/web/disks/vda-1.qcow2").write_text("x")
    assert len(one({"name": "web", "state": "absent"})["kept_disks"]) == 2


def test_what_is_half_made_goes_with_the_guest(connection: FakeConnection, place: Path) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    bring({**WEB, "disks": [{"pool": "images", "size_mib": 1}, {"size_mib": 1}]})
    for path in (place / "pool/web-vda.qcow2", place / "workloads/web/disks/vdc.qcow2"):
        Path(disks.temporary(str(path))).touch()
    bring({"name": "web", "state": "absent"})
    left = [path.relative_to(place) for path in place.rglob("*.qcow2")]
    assert sorted(map(str, left)) == ["kept_disks/web/vdb.qcow2", "pool/web-vda.qcow2"]
    assert not list(place.rglob(disks.TEMPORARY))


def test_disks_that_cannot_be_kept_are_told_before_the_guest_is_gone(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    monkeypatch.setattr(paths, "KEPT_DISKS", "/proc/cnvm/kept-disks")
    with pytest.raises(Refused, match="on two file systems"):
        bring({"name": "web", "state": "absent"})
    assert connection.domains["web"].live is not None
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert connection.domains == {}


def test_what_was_there_before_is_never_deleted(place: Path) -> None:
    mine, made = place / "mine.qcow2", place / "made.qcow2"
    fake_domains.qcow2(mine, 2**20)
    bring({**WEB, "disks": [{"path": str(mine)}, {"path": str(made), "size_mib": 1}]})
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert mine.exists()
    assert not made.exists()


@pytest.mark.parametrize("way", ["", "a linked directory", "a link"])
def test_nor_is_what_was_brought_into_its_directory(connection: FakeConnection, place: Path, way: str) -> None:
    """As one is told to use a disk that a removed guest has left."""
    mine = place / "workloads/web/disks/vda.qcow2"
    mine.parent.mkdir(parents=True)
    fake_domains.qcow2(mine, 2**20)
    given = {"": mine, "a linked directory": place / "other/web/disks/vda.qcow2", "a link": place / "link.qcow2"}[way]
    (place / "other").symlink_to(place / "workloads")
    (place / "link.qcow2").symlink_to(mine)
    wanted = {**WEB, "disks": [{"path": str(given)}, {"size_mib": 1}]}
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
    with pytest.raises(HostError, match="define"):
        bring(wanted)
    assert [one.name for one in (place / "workloads/web").rglob("*") if one.is_file()] == ["vda.qcow2"]
    # One that was cut off.
    (place / "workloads/web/owner.json").write_text(json.dumps({"kind": "guest", "owner": "me", "claim": True}))
    del connection.fails["web"]
    inode = mine.stat().st_ino
    bring(wanted)
    assert mine.stat().st_ino == inode
    result = one({"name": "web", "state": "absent", "delete_disks": True})
    assert result["kept_disks"] == [f"{place}/kept_disks/web/vda.qcow2"]
    assert os.listdir(place / "kept_disks/web") == ["vda.qcow2"]


def test_nor_is_what_was_written_to_it_since_a_snapshot(place: Path) -> None:
    mine = place / "mine.qcow2"
    fake_domains.qcow2(mine, 2**20)
    bring({**WEB, "state": "stopped", "disks": [{"path": str(mine)}, {"size_mib": 1}]})
    snap("one")
    result = one({"name": "web", "state": "absent", "delete_disks": True})
    assert result["kept_disks"] == [f"{place}/kept_disks/web/vda-1.qcow2"]
    assert os.listdir(place / "kept_disks/web") == ["vda-1.qcow2"]
    assert mine.exists()


def test_nor_is_anything_else_that_lies_beside_its_disks(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    bring(WEB)
    snap("one", memory=True)
    home = place / "workloads/web/disks"
    (home / "memory-1.save").touch()
    (home / "backup-of-vda.qcow2").write_text("mine")
    Path(disks.temporary(f"{home}/vdc.qcow2")).touch()
    for check_mode in (True, False):
        result = bring({"name": "web", "state": "absent", "delete_disks": True}, check_mode=check_mode)
        assert result["warnings"][0].endswith(f"below {place}/kept_disks: backup-of-vda.qcow2, vdb.qcow2.")
    kept = place / "kept_disks/web"
    assert result["guests"][0]["kept_disks"] == [f"{kept}/backup-of-vda.qcow2", f"{kept}/vdb.qcow2"]
    assert sorted(os.listdir(kept)) == ["backup-of-vda.qcow2", "vdb.qcow2"]
    assert os.listdir(place / "workloads") == []
    # Nothing of it is in the way of another one of that name.
    bring(WEB)
    assert not bring({"name": "web", "state": "absent", "delete_disks": True})["warnings"]


@pytest.mark.parametrize("delete", [False, True])
def test_what_another_guest_has_stays_where_it_is(connection: FakeConnection, place: Path, delete: bool) -> None:
    given = place / "workloads/web/disks/vdb.qcow2"
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    assert f"its file {given} is kept" in " ".join(bring(WEB)["warnings"])
    bring({**WEB, "name": "db", "disks": [{"path": str(given)}]})
    absent, before = {"name": "web", "state": "absent", "delete_disks": delete}, list(connection.calls)
    for check_mode in (True, False):
        with pytest.raises(Refused, match=r"need files that go with it: .*/vdb\.qcow2 \(guest db\)\.") as refused:
            bring(absent, check_mode=check_mode)
        assert refused.value.details["dependants"] == ["guest db"]
    assert (connection.calls, given.exists()) == (before, True)
    # What is removed in the same call has it until then.
    with pytest.raises(Refused, match="guest db"):
        bring(absent, {"name": "db", "state": "absent"})
    bring({"name": "db", "state": "absent", "delete_disks": True})
    assert f"{place}/kept_disks/web/vdb.qcow2" in one(absent)["kept_disks"]


def test_so_does_what_others_rest_on(place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    home, kept = place / "workloads/web/disks", place / "kept_disks/old"
    kept.mkdir(parents=True)
    absent = {"name": "web", "state": "absent"}
    fake_domains.qcow2(kept / "o.qcow2", 2**20, str(home / "vda.qcow2"), "qcow2")
    for delete in (False, True):
        with pytest.raises(Refused, match=rf"/vda\.qcow2 \({kept}/o\.qcow2\)"):
            bring({**absent, "delete_disks": delete})
    # One beside it is told where it goes, but not when it is deleted.
    os.rename(kept / "o.qcow2", home / "o.qcow2")
    with pytest.raises(Refused, match=rf"/vda\.qcow2 \({home}/o\.qcow2\)"):
        bring({**absent, "delete_disks": True})
    moved = place / "kept_disks/web"
    assert one(absent)["kept_disks"] == [f"{moved}/{name}.qcow2" for name in ("o", "vda-1", "vda")]
    assert [node.path for node in disks.chain(f"{moved}/o.qcow2")] == [f"{moved}/o.qcow2", f"{moved}/vda.qcow2"]


def test_secure_boot_needs_variables_of_its_own(connection: FakeConnection, place: Path) -> None:
    """Those that there are have no keys, or have them; and the guest's boot entries, which are not ours to lose."""
    off: dict[str, t.Any] = {**WEB, "state": "stopped", "firmware": "uefi"}
    bring(off)
    variables = place / "nvram/web_VARS.fd"
    variables.parent.mkdir()
    variables.touch()
    with pytest.raises(Refused, match=f"secure_boot: {variables}") as refused:
        bring({**off, "secure_boot": True}, check_mode=True)
    assert "move that file away" in refused.value.hint
    variables.unlink()
    bring({**off, "secure_boot": True})
    variables.touch()
    assert not bring({**off, "secure_boot": True})["changed"]
    connection.domains.clear()
    bring({**off, "secure_boot": True})
    with pytest.raises(Refused, match="from before"):
        bring(off)
    own = place / "own.fd"
    own.touch()
    variables.unlink()
    text = xml.document(t.cast("t.Any", connection.domains["web"].stored))
    connection.defineXML(text.replace("</os>", f"<nvram>{own}</nvram></os>"))
    with pytest.raises(Refused, match=f"secure_boot: {own}"):
        bring(off)
    assert bring({**off, "firmware": "bios"})["changed"]


def test_what_is_no_cd_is_put_into_no_drive(connection: FakeConnection, place: Path) -> None:
    cd = images.iso().write(place / "good.iso")
    images.iso().cut(39 * 2048).write(place / "half.iso")
    (place / "page.iso").write_text("<!DOCTYPE html><title>404")
    (place / "empty.iso").touch()
    (place / "folder.iso").mkdir()
    bring({**WEB, "name": "db"})
    bad = {
        "half": "half.iso: .* goes on beyond its end",
        "page": "page.iso: The file is a web page or XML: it is no ISO image",
        "empty": "empty.iso: The file has no file system of a CD or DVD",
        "folder": "folder.iso is no plain file",
    }
    for name, words in bad.items():
        for check_mode in (True, False):
            for guest in ("web", "db"):
                with pytest.raises(InputError, match=f"guests: {guest}: cdrom: {place}/{words}"):
                    bring({**WEB, "name": guest, "cdrom": str(place / f"{name}.iso")}, check_mode=check_mode)
    with pytest.raises(Missing, match="cdrom: there is no file"):
        bring({**WEB, "cdrom": str(place / "none.iso")})
    assert list(connection.domains) == ["db"]
    wanted = {**WEB, "cdrom": str(cd)}
    bring(wanted)
    # What it has is its own affair.
    cd.unlink()
    assert not bring(wanted)["changed"]


def test_a_cd_that_is_left_out_is_taken_out_of_a_running_guest(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "cdrom": str(images.iso().write(place / "a.iso"))})
    for changed in (True, False):
        result = bring(WEB)
        assert (result["changed"], result["guests"][0]["restart_required"]) == (changed, True)
        assert domain.parse(t.cast("t.Any", connection.domains["web"].live))["cdroms"]["sda"]["path"] == ""
    bring({**WEB, "memory_mib": 128}, restart_on_change=True)
    assert domain.parse(t.cast("t.Any", connection.domains["web"].live))["cdroms"] == {}


def test_a_guest_is_not_started_with_a_cd_that_has_gone(connection: FakeConnection, place: Path) -> None:
    cd = images.iso().write(place / "a.iso")
    wanted = {**WEB, "cdrom": str(cd)}
    bring({**wanted, "state": "stopped"})
    cd.unlink()
    connection.calls.clear()
    assert not bring({**wanted, "state": "stopped"})["changed"]
    for item in (wanted, {"name": "web", "state": "running"}):
        with pytest.raises(Missing, match=f"cdrom: there is no file {cd}"):
            bring(item)
        assert f"there is no file {cd}" in " ".join(bring(item, check_mode=True)["warnings"])
    # libvirt was told that it may be missing.
    drive = t.cast("t.Any", connection.domains["web"].stored).find("devices/disk[@device='cdrom']/source")
    drive.set("startupPolicy", "optional")
    assert "no file" not in " ".join(bring(wanted, check_mode=True)["warnings"])
    del drive.attrib["startupPolicy"]
    assert connection.calls == []
    assert one({**WEB, "state": "running"})["state"] == "running"


def test_variables_of_its_firmware_go_with_it(connection: FakeConnection, place: Path) -> None:
    """Also those that its XML does not name any more: the next guest of that name would boot with them."""
    variables = [place / f"nvram/{name}" for name in ("web_VARS.fd", "web_VARS.qcow2", "web2_VARS.fd")]
    variables[0].parent.mkdir()
    for path in variables:
        path.touch()
    bring({**WEB, "state": "stopped"})
    bring({"name": "web", "state": "absent"}, check_mode=True)
    assert all(path.exists() for path in variables)
    bring({"name": "web", "state": "absent"})
    assert [path.exists() for path in variables] == [False, False, True]
    # Of one that was called so before it was renamed.
    variables[0].touch()
    bring({**WEB, "state": "stopped"}, {**WEB, "name": "db", "state": "stopped"})
    text = xml.document(t.cast("t.Any", connection.domains["db"].stored))
    connection.defineXML(text.replace("</os>", f"<nvram>{variables[0]}</nvram></os>"))
    bring({"name": "web", "state": "absent"})
    assert variables[0].exists()


# -- Changes
def test_a_running_guest_takes_over_what_it_can(connection: FakeConnection) -> None:
    bring({**WEB, "max_memory_mib": 512, "max_vcpus": 4})
    wanted = {
        **WEB, "memory_mib": 512, "vcpus": 3, "max_vcpus": 4, "description": "x", "tags": {"a": "<b>"},
        "disks": [{"size_mib": 1}, {"size_mib": 1}], "networks": [{}, {}],
    }  # fmt: skip
    found = one(wanted)
    assert found["restart_required"] is False
    assert found["restart_reasons"] == []
    each = connection.domains["web"]
    live, stored = domain.parse(t.cast("t.Any", each.live)), domain.parse(t.cast("t.Any", each.stored))
    for model in (live, stored):
        assert (model["memory_mib"], model["vcpus"], model["description"]) == (512, 3, "x")
        assert (len(model["disks"]), len(model["networks"])) == (2, 2)
        assert model["marks"]["tags"] == {"a": "<b>"}
    assert not bring(wanted)["changed"]


def test_what_it_cannot_take_over_is_stored_and_told_until_it_was_restarted(connection: FakeConnection) -> None:
    bring(WEB)
    wanted = {**WEB, "machine": "pc", "memory_mib": 1024}
    found = one(wanted)
    assert found["restart_required"]
    assert [each["option"] for each in found["restart_reasons"]] == ["machine", "memory_mib"]
    assert domain.parse(t.cast("t.Any", connection.domains["web"].stored))["machine"] == "pc"
    again = bring(wanted)
    assert not again["changed"]
    assert again["guests"][0]["restart_required"]
    restarted = one(wanted, restart_on_change=True)
    assert (restarted["actions"], restarted["restarted"]) == (["stop", "start"], True)
    assert not restarted["restart_required"]
    assert not bring(wanted)["changed"]


def test_what_changes_the_definition_alone_is_shown() -> None:
    bring(WEB)
    result = bring({**WEB, "autostart": True})
    assert result["guests"][0]["actions"] == ["define"]
    assert (result["diff"]["before"]["web"]["autostart"], result["diff"]["after"]["web"]["autostart"]) == (None, True)
    assert not bring({**WEB, "autostart": True})["changed"]


def test_two_disks_at_once_share_a_new_controller(connection: FakeConnection) -> None:
    bring(WEB)
    scsi = {"size_mib": 1, "bus": "scsi"}
    found = one({**WEB, "disks": [{"size_mib": 1}, scsi, scsi]})
    assert found["restart_reasons"] == []
    live = t.cast("t.Any", connection.domains["web"].live)
    assert sorted(domain.parse(live)["disks"]) == ["sdc", "sdd", "vda"]
    assert len(live.findall("devices/controller[@type='scsi']")) == 1


def test_a_refusal_of_libvirt_becomes_a_reason(connection: FakeConnection) -> None:
    bring(WEB)
    connection.domains["web"].refuses["attach"] = FakeError(errors.OPERATION_FAILED, "No more available PCI slots")
    found = one({**WEB, "networks": [{}, {}]})
    assert found["restart_required"]
    assert "No more available PCI slots" in found["restart_reasons"][0]["reason"]


def test_what_the_running_guest_refuses_again_is_no_change(connection: FakeConnection) -> None:
    bring(WEB)
    wanted = {**WEB, "description": "front end", "disks": [{"size_mib": 1}, {"size_mib": 1}]}
    for step in ("attach", "description"):
        connection.domains["web"].refuses[step] = FakeError(errors.INTERNAL_ERROR, "No more available PCI slots")
    assert bring(wanted)["changed"], "it is stored"
    again = bring(wanted)
    (found,) = again["guests"]
    assert (again["changed"], found["changed"], found["actions"], again["diff"]["after"]) == (False, False, [], {})
    assert [one["option"] for one in found["restart_reasons"]] == ["description", "disks.vdb"]
    assert bring(wanted, check_mode=True)["changed"], "it would be tried"
    del connection.domains["web"].refuses["description"]
    assert bring(wanted)["changed"]
    assert not bring(wanted)["changed"]
    assert bring(wanted, restart_on_change=True)["guests"][0]["restarted"]


def test_other_errors_of_libvirt_are_errors(connection: FakeConnection) -> None:
    bring(WEB)
    connection.domains["web"].refuses["attach"] = FakeError(errors.RPC, "Cannot recv data")
    with pytest.raises(HostError, match="Cannot recv data"):
        bring({**WEB, "networks": [{}, {}]})


def test_a_guest_that_does_not_let_go_is_to_be_restarted(connection: FakeConnection) -> None:
    bring({**WEB, "networks": [{}, {}], "max_memory_mib": 512})
    connection.domains["web"].releases = False
    found = one({**WEB, "memory_mib": 200})
    reasons = {each["option"].partition(".")[0]: each["reason"] for each in found["restart_reasons"]}
    assert "let go" in reasons["networks"]
    assert "balloon" in reasons["memory_mib"]


def test_one_that_lets_go_of_nothing_takes_its_time_once(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(guest_live, "time", clock)
    monkeypatch.setattr(guest_live, "_UNPLUG_S", 20)
    monkeypatch.setattr(guest_live, "_POLL_S", 1)
    bring({**WEB, "networks": [{}, {}, {}], "disks": [{"size_mib": 1}] * 2})
    connection.domains["web"].releases = False
    found = bring(WEB)
    assert len(found["guests"][0]["restart_reasons"]) == 3
    assert sum(clock.slept) == 21
    # That it is tried again is no reason to write down again what is known.
    record = Path(paths.definition_file("web"))
    before = record.stat()
    assert not bring(WEB)["changed"]
    assert record.stat() == before
    # What it lets go of it is asked for before it gets anything else.
    connection.domains["web"].releases = True
    connection.calls.clear()
    bring({**WEB, "networks": [{}, {"mac": "52:54:00:00:00:99"}], "memory_mib": 128})
    done = [call.split()[0] for call in connection.calls]
    assert done[done.index("detach") :] == ["detach"] * 3 + ["memory", "marks", "attach"]


def test_memory_that_it_keeps_is_told_by_each_run(connection: FakeConnection) -> None:
    """Not as a reason to restart it: it would start with as much."""
    big, small = ({**WEB, "memory_mib": memory, "max_memory_mib": 512} for memory in (512, 300))
    bring(big)
    connection.domains["web"].releases = False
    for dummy in range(2):
        found = bring(small)
        assert len(found["warnings"]) == 1
        assert "Guest web still has 512 MiB of memory, and is to have 300: it gives back" in found["warnings"][0]
        assert (found["guests"][0]["restart_required"], found["guests"][0]["memory_mib"]) == (False, 512)
    # It is started again now, or has given it back.
    assert not bring({**small, "cpu": {"model": "EPYC"}}, restart_on_change=True)["warnings"]
    connection.domains["web"].releases = True
    connection.domains["web"].setMemoryFlags(300 * 1024, 1)
    assert bring({**small, "cpu": {"model": "EPYC"}})["warnings"] == []


@pytest.mark.parametrize("state", ["running", "present", "paused"])
def test_it_is_restarted_for_that_where_it_may(connection: FakeConnection, state: str) -> None:
    bring({**WEB, "networks": [{}, {}]})
    connection.domains["web"].releases = False
    found = one({**WEB, "state": state}, restart_on_change=True)
    assert (found["restarted"], found["restart_reasons"]) == (True, [])
    assert found["state"] == ("paused" if state == "paused" else "running")
    assert not bring({**WEB, "state": state})["changed"]


@pytest.mark.parametrize(("most", "restarted"), [(None, True), (512, False)])
def test_nor_is_it_restarted_in_vain(connection: FakeConnection, most: int, restarted: bool) -> None:
    """It is started with the most that it may have."""
    bring({**WEB, "memory_mib": 300, "max_memory_mib": most})
    connection.domains["web"].releases = False
    found = one({**WEB, "memory_mib": 256, "max_memory_mib": most}, restart_on_change=True)
    assert found["restarted"] == restarted


def test_disks_grow_and_never_shrink(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    grown = bring({**WEB, "disks": [{"size_mib": 2}]})
    assert grown["guests"][0]["actions"] == ["grow disk vda"]
    assert grown["diff"]["before"]["web"]["disks.vda.virtual_bytes"] == 2**20
    assert grown["diff"]["after"]["web"]["disks.vda.virtual_bytes"] == 2 * 2**20
    assert connection.domains["web"].sizes == {"vda": 2 * 2**20}
    bring({"name": "web", "state": "stopped"})
    fake_domains.qcow2(place / "workloads/web/disks/vda.qcow2", 2 * 2**20)
    bring({**WEB, "disks": [{"size_mib": 3}], "state": "stopped"})
    with pytest.raises(Refused, match="more than 1"):
        bring({**WEB, "state": "stopped"})


def test_a_disk_that_gets_another_name_grows_under_the_one_that_it_has(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    known = domains.read(t.cast("t.Any", connection), ["web"])["web"]
    job = types.SimpleNamespace(name="web", known=known)
    path = str(place / "workloads/web/disks/vda.qcow2")
    work = guest_disks.Work("grow", "sdc", path, "qcow2", 2**22)
    guest_live.grow(Host(run=fake_domains.run), t.cast("t.Any", job), work)
    assert connection.domains["web"].sizes == {"vda": 2**22}


def test_a_file_that_a_running_guest_gets_later_grows_by_itself(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    fake_domains.qcow2(place / "other.qcow2", 2**20)
    wanted = {**WEB, "disks": [{"path": str(place / "other.qcow2"), "size_mib": 2}]}
    assert "disks.vda.path" in [each["option"] for each in one(wanted)["restart_reasons"]]
    assert connection.domains["web"].sizes == {}
    assert not bring(wanted)["changed"]


def test_a_disk_that_is_taken_away_is_kept(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    result = bring(WEB)
    assert any("vdb" in warning and "kept" in warning for warning in result["warnings"])
    assert (place / "workloads/web/disks/vdb.qcow2").exists()
    with pytest.raises(Refused, match="there already"):
        bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})


def test_a_disk_that_is_given_another_bus_is_not_replaced_by_a_new_one(connection: FakeConnection, place: Path) -> None:
    """Its name would be another one, and so a fresh disk would take its place."""
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    connection.calls.clear()
    scsi = {**WEB, "disks": [{"size_mib": 1, "bus": "scsi"}, {"name": "vdb", "size_mib": 1}]}
    with pytest.raises(Refused, match="vda would be taken away, and sdc be added on another bus") as caught:
        bring(scsi)
    path = f"{place}/workloads/web/disks/vda.qcow2"
    assert f"vda is {path}" in caught.value.hint
    with pytest.raises(Refused, match="vdb would be taken away"):
        bring({**WEB, "disks": [{"size_mib": 1, "bus": "scsi"}, {"size_mib": 1}]})
    assert (connection.calls, sorted(os.listdir(os.path.dirname(path)))) == ([], ["vda.qcow2", "vdb.qcow2"])
    wanted = {**WEB, "state": "stopped", "disks": [{"path": path, "bus": "scsi"}, {"name": "vdb", "size_mib": 1}]}
    with pytest.raises(Refused, match="another bus"):
        bring(wanted)
    bring({"name": "web", "state": "stopped"})
    with pytest.raises(Refused, match="another bus"):
        bring({**scsi, "state": "stopped"})
    bring(wanted)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]
    assert {name: disk["path"] for name, disk in found.items()} == {"sdc": path, "vdb": path.replace("vda", "vdb")}


def test_identity_is_kept(connection: FakeConnection) -> None:
    bring(WEB)
    before = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    bring({**WEB, "memory_mib": 512})
    after = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    assert (after["uuid"], list(after["networks"])) == (before["uuid"], list(before["networks"]))
    with pytest.raises(Refused, match="keeps its UUID"):
        bring({**WEB, "uuid": "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"})


def test_each_card_has_a_mac_of_its_own(connection: FakeConnection) -> None:
    """The only card has the MAC that stands for a second one, and keeps it."""
    second = guest_definition.mac_of("web", 1)
    bring({**WEB, "networks": [{"mac": second}]})
    wanted = {**WEB, "networks": [{}, {"model": "e1000"}]}
    bring(wanted)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]
    assert [card["model"] for card in found.values()] == ["virtio", "e1000"]
    assert next(iter(found)) == second
    assert not bring(wanted)["changed"]


# -- Templates
def test_a_linked_disk_rests_on_the_template(connection: FakeConnection, place: Path) -> None:
    template(place)
    bring({**WEB, "disks": [{"template": "debian", "size_mib": 4}]})
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    below = found["disks"]["vda"]["backing"]
    assert below == [{"path": f"{place}/templates/sha256/{DIGEST}/disk.qcow2", "format": "qcow2", "read_only": True}]
    assert found["marks"]["templates"] == {"vda": DIGEST}
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert shown["template"] == "debian"
    assert not bring({**WEB, "disks": [{"template": "debian", "size_mib": 4}]})["changed"]


@pytest.fixture
def outside(place: Path) -> Path:
    """A disk's path where nobody looks for images, on a host with a template."""
    template(place)
    (place / "srv").mkdir()
    return place / "srv/vm.qcow2"


def check_stays(path: Path) -> None:
    """The template stays while the image at ``path`` rests on it, and it is said which one that is."""
    assert templates.dependants(DIGEST) == [str(path)]
    assert templates.report()["templates"][0]["dependants"] == [str(path)]
    with pytest.raises(Refused, match=f"debian is in use by {path}"):
        templates.remove("debian")


@pytest.mark.parametrize("how", ["made", "found", "link"])
def test_a_disk_that_a_removed_guest_leaves_elsewhere_keeps_its_template(
    outside: Path, place: Path, disk_records: Path, how: str
) -> None:
    absent = {"name": "web", "state": "absent"}
    base = paths.template_disk(DIGEST)
    if how == "found":
        fake_domains.qcow2(outside, 2**21, base, "qcow2")
    disk = {"path": str(outside)} if how != "link" else {}
    bring({**WEB, "disks": [{**disk, **({} if how == "found" else {"template": "debian"})}]})
    if how == "link":
        home = place / "workloads/web/disks/vda.qcow2"
        home.rename(outside)
        home.symlink_to(outside)
    bring(absent)
    check_stays(outside)
    # A guest again, and none again: it is told once.
    bring({**WEB, "disks": [{"path": str(outside)}]})
    check_stays(outside)
    bring(absent)
    check_stays(outside)
    item = {"path": str(outside), "backing": base}
    assert not disk_images.bring_to(Host(run=fake_domains.run), [item])["changed"]
    gone = disk_images.bring_to(Host(run=fake_domains.run), [{"path": str(outside), "state": "absent"}])
    assert (gone["images"][0]["actions"], os.listdir(disk_records)) == (["remove"], [])
    assert templates.remove("debian")


def test_that_is_known_before_libvirt_forgets_it(outside: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one without a definition nobody else knows it, should the run end there."""
    bring({**WEB, "disks": [{"path": str(outside), "template": "debian"}]})
    (place / "workloads/web/definition.json").unlink()

    def killed(*args: t.Any) -> None:
        raise Killed

    monkeypatch.setattr(guests, "forget_variables", killed)
    with pytest.raises(Killed):
        bring({"name": "web", "state": "absent"})
    check_stays(outside)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_so_does_one_that_is_taken_away(outside: Path, state: str) -> None:
    linked = {"path": str(outside), "template": "debian"}
    bring({**WEB, "state": state, "disks": [{"size_mib": 1}, linked]})
    assert templates.dependants(DIGEST) == ["guest web"]
    bring({**WEB, "state": state})
    check_stays(outside)
    bring({**WEB, "state": state, "disks": [{"size_mib": 1}, {"path": str(outside)}]})
    check_stays(outside)


def test_one_that_is_gone_or_another_by_now_keeps_nothing(outside: Path, disk_records: Path) -> None:
    wanted = {**WEB, "disks": [{"path": str(outside), "template": "debian"}]}
    bring(wanted)
    bring({"name": "web", "state": "absent"})
    for other in (2**21, 2**22):
        fake_domains.qcow2(outside, other)
        assert templates.dependants(DIGEST) == []
        item = {"path": str(outside), "size": str(other)}
        assert not disk_images.bring_to(Host(run=fake_domains.run), [item])["changed"]
        assert disk_images.report([str(outside)])["images"][0]["problem"] is None
    outside.unlink()
    assert templates.dependants(DIGEST) == []
    bring(wanted)
    assert templates.dependants(DIGEST) == ["guest web"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (outside.exists(), os.listdir(disk_records)) == (False, [])
    assert templates.remove("debian")


def test_what_a_guest_writes_into_a_raw_disk_keeps_nothing(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = outside.with_suffix(".raw")
    bring({**WEB, "disks": [{"path": str(raw), "format": "raw", "size_mib": 1}]})
    fake_domains.qcow2(raw, 2**20, paths.template_disk(DIGEST), "qcow2")
    bring({"name": "web", "state": "absent"})
    assert templates.dependants(DIGEST) == []
    # Nor does a disk behind a network that has the name of some file here.
    monkeypatch.chdir(raw.parent)
    guest_disks.leave({raw.name: "qcow2"})
    assert templates.dependants(DIGEST) == []


def left_behind(name: str, connection: FakeConnection) -> list[str]:
    """Why its files could not leave this host."""
    return guest_preflight._in_files(name, needs_of(connection, name))


def test_a_flattened_disk_rests_on_nothing(connection: FakeConnection, place: Path) -> None:
    """libvirt and QEMU would go on reading from the template."""
    template(place)
    wanted = {**WEB, "state": "stopped", "disks": [{"template": "debian"}]}
    bring(wanted)
    assert templates.dependants(DIGEST) == ["guest web"]
    fake_domains.qcow2(place / "workloads/web/disks/vda.qcow2", 2**21)
    with pytest.raises(HostError, match="flattened or rebased"):
        bring({"name": "web", "state": "running"})
    assert len(left_behind("web", connection)) == 1
    bring(wanted)
    assert left_behind("web", connection) == []
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    assert found["disks"]["vda"]["backing"] == []
    assert templates.dependants(DIGEST) == []
    assert not bring(wanted)["changed"]
    bring({"name": "web", "state": "running"})


def test_a_flattened_disk_above_snapshots(connection: FakeConnection, place: Path) -> None:
    off = {**WEB, "state": "stopped"}
    bring(off)
    snap("one")
    made = place / "workloads/web/disks/vda-1.qcow2"
    fake_domains.qcow2(made, 2**20)
    for wanted in ({"name": "web", "state": "running"}, WEB, off):
        with pytest.raises(HostError, match=r"vda-1\.qcow2 was flattened or rebased, and the guest has") as refused:
            bring(wanted)
    assert f"-b {place}/workloads/web/disks/vda.qcow2 -F qcow2 {made}'" in refused.value.hint
    fake_domains.qcow2(made, 2**20, f"{place}/workloads/web/disks/vda.qcow2", "qcow2")
    bring({"name": "web", "state": "running"})
    assert not bring(WEB)["changed"]


def test_a_file_that_was_there_before_is_kept(connection: FakeConnection, place: Path) -> None:
    """The disk that the collection made has its name, but that does not make it ours."""
    bring({**WEB, "state": "stopped"})
    fake_domains.qcow2(place / "mine.qcow2", 2**20)
    bring({**WEB, "state": "stopped", "disks": [{"path": str(place / "mine.qcow2")}]})
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (place / "mine.qcow2").exists()


def test_a_disk_that_was_moved_is_ours_still(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    (place / "workloads/web/disks/vda.qcow2").rename(place / "moved.qcow2")
    bring({**WEB, "state": "stopped", "disks": [{"path": str(place / "moved.qcow2")}]})
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not (place / "moved.qcow2").exists()


def test_a_disk_is_not_read_as_another_format_than_it_is_in(connection: FakeConnection, place: Path) -> None:
    path = place / "workloads/web/disks/vda.qcow2"
    fixed = place / "fixed.img"
    fake_domains.qcow2(fixed, 2**20)
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"path": str(fixed)}]}
    bring(wanted)
    with pytest.raises(Refused, match=f"vdb: format: {fixed} is qcow2, not raw"):
        bring({**wanted, "disks": [{"size_mib": 1}, {"path": str(fixed), "format": "raw"}]})
    raw = {**wanted, "disks": [{"size_mib": 1, "format": "raw"}, {"path": str(fixed)}]}
    with pytest.raises(InputError, match="there is no file"):
        bring(raw)
    moved = path.rename(path.with_suffix(".raw"))
    with pytest.raises(Refused, match=r"vda\.raw is qcow2, not raw"):
        bring(raw)
    moved.write_bytes(bytes(2**20))
    bring(raw)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]
    assert (found["path"], found["format"]) == (str(moved), "raw")
    assert not bring(raw)["changed"]


@pytest.fixture
def pools(connection: FakeConnection, place: Path) -> Path:
    """Two pools, and the file that a guest's disk has in the first one."""
    for name in ("one", "two"):
        (place / name).mkdir()
        connection.pools[name] = str(place / name)
    return place / "one/web-vda.qcow2"


POOLED = {**WEB, "state": "stopped", "disks": [{"pool": "one", "size_mib": 1}]}


@pytest.mark.parametrize("delete", [False, True])
def test_a_guest_is_removed_though_its_pool_is_gone(connection: FakeConnection, pools: Path, delete: bool) -> None:
    bring(POOLED)
    del connection.pools["one"]
    with pytest.raises(InputError, match="no pool 'one'"):
        bring(POOLED)
    result = one({"name": "web", "state": "absent", "delete_disks": delete})
    assert (result["kept_disks"], pools.exists()) == ([] if delete else [str(pools)], not delete)


def test_a_pool_that_is_in_another_directory_by_now(connection: FakeConnection, pools: Path) -> None:
    bring(POOLED)
    connection.pools["one"] = connection.pools["two"]
    with pytest.raises(InputError, match=f"the disk is {pools}, and there is no file"):
        bring(POOLED)
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not pools.exists()


def test_one_of_which_libvirt_knows_nothing_needs_its_pool(connection: FakeConnection, pools: Path) -> None:
    """Else its disk would stay behind, and nobody be told."""
    bring(POOLED)
    del connection.pools["one"], connection.domains["web"]
    with pytest.raises(InputError, match="no pool 'one'"):
        bring({"name": "web", "state": "absent", "delete_disks": True})
    connection.pools["one"] = str(pools.parent)
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not pools.exists()


def test_a_disk_is_given_another_pool_when_it_was_moved_there(connection: FakeConnection, pools: Path) -> None:
    bring(POOLED)
    wanted = {**POOLED, "disks": [{"pool": "two", "size_mib": 1}]}
    target = pools.parent.with_name("two") / pools.name
    with pytest.raises(InputError, match=f"the disk is {pools}, and there is no file {target}"):
        bring(wanted)
    shutil.copy(pools, target)
    with pytest.raises(Refused, match="is there already"):
        bring(wanted)
    pools.unlink()
    del connection.pools["one"]
    bring(wanted)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]
    assert found["vda"]["path"] == str(target)
    assert not bring(wanted)["changed"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not target.exists()


def test_one_with_snapshots_stays_where_it_is(pools: Path) -> None:
    """What was written since lies in another file, which rests on this one."""
    bring(POOLED)
    snap("one")
    target = pools.rename(pools.parent.with_name("two") / pools.name)
    for disk in ({"pool": "two", "size_mib": 1}, {"path": str(target)}):
        with pytest.raises(Refused, match="has snapshots"):
            bring({**POOLED, "disks": [disk]})


def test_a_guest_stays_with_its_template(place: Path) -> None:
    template(place)
    wanted = {**WEB, "disks": [{"template": "debian"}]}
    bring(wanted)
    other = "cd" * 32
    template(place, digest=other)
    result = bring(wanted)
    assert not result["changed"]
    assert any("stays with the template" in warning for warning in result["warnings"])
    (place / "templates/names/fedora").write_text(other)
    with pytest.raises(Refused, match="was made of the template debian"):
        bring({**WEB, "disks": [{"template": "fedora"}]})
    assert not bring({**WEB, "disks": [{"template": DIGEST}]})["guests"][0]["restart_required"]


def test_a_disk_that_is_there_is_not_made_of_a_template(place: Path) -> None:
    template(place)
    bring(WEB)
    with pytest.raises(Refused, match="vda was not made of a template"):
        bring({**WEB, "disks": [{"template": "debian"}]})


def test_a_disk_that_is_to_be_a_full_copy_and_is_none_is_told(place: Path) -> None:
    template(place)
    linked, full = ({**WEB, "state": "stopped", "disks": [{"template": "debian", "linked": one}]} for one in (1, 0))
    bring(linked)
    result = bring(full)
    assert not result["changed"]
    assert any("rests on its template still" in warning for warning in result["warnings"])
    assert templates.dependants(DIGEST) == ["guest web"]
    fake_domains.qcow2(place / "workloads/web/disks/vda.qcow2", 2**21)
    assert bring(full)["warnings"] == []
    assert bring(linked)["warnings"] == []


def test_many_new_guests_are_compared_with_those_that_are_there_at_the_price_of_one(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "name": "there"})
    parse, read = domain.parse, []

    def counted(root: xml.Element) -> domain.Model:
        read.append(xml.text_of(root, "name"))
        return parse(root)

    monkeypatch.setattr(domain, "parse", counted)
    times = []
    for names in (["a"], ["b", "c", "d", "e"]):
        read.clear()
        bring(*({**WEB, "name": name} for name in names))
        times.append(read.count("there"))
    assert times[0] == times[1] > 0


def test_a_guest_whose_disk_stays_shuts_down_before_it_goes(connection: FakeConnection, place: Path) -> None:
    """What it has in its memory is to come to the disk of the user first."""
    data = place / "data.qcow2"
    fake_domains.qcow2(data, 2**20)
    gone = {"name": "web", "state": "absent", "delete_disks": True}
    bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(data), "read_only": True}]})
    connection.calls.clear()
    bring(gone)
    assert connection.calls[0] == "destroy web"
    bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(data)}]})
    connection.domains["web"].obeys = False
    connection.calls.clear()
    with pytest.raises(HostError, match="did not stop within 0 s"):
        bring({**gone, "stop_timeout_s": 0})
    connection.domains["web"].obeys = True
    bring(gone)
    assert connection.calls == ["shutdown web", "undefine web 23"]
    assert data.exists()


def test_no_guest_writes_to_what_others_rest_on(place: Path) -> None:
    template(place)
    disk = str(place / f"templates/sha256/{DIGEST}/disk.qcow2")
    bring({**WEB, "disks": [{"path": disk, "read_only": True}]})
    for name in ("web", "new"):
        with pytest.raises(Refused, match="is a template's"):
            bring({**WEB, "name": name, "disks": [{"path": disk}]})
    bring({**WEB, "name": "other", "state": "stopped"})
    snap("one", guest="other")
    link = place / "link.qcow2"
    link.symlink_to(place / "workloads/other/disks/vda.qcow2")
    for path in (str(link), os.readlink(link)):
        with pytest.raises(Refused, match="is that of 'other'"):
            bring({**WEB, "name": "db", "disks": [{"path": path}]})


def test_a_template_that_is_not_here(place: Path) -> None:
    with pytest.raises(InputError, match="no template"):
        bring({**WEB, "disks": [{"template": "debian"}]})
    template(place)
    with pytest.raises(Refused, match="more than 1"):
        bring({**WEB, "disks": [{"template": "debian", "size_mib": 1}]})


def test_an_image_that_rests_on_a_file_from_elsewhere_is_refused(place: Path) -> None:
    (place / "secret").write_bytes(bytes(1024))
    image = place / "image.qcow2"
    fake_domains.qcow2(image, 2**20, str(place / "secret"), "raw")
    with pytest.raises(Refused, match="rests on"):
        bring({**WEB, "disks": [{"path": str(image)}]})
    (place / "image.qcow2").write_bytes(b"no image")
    with pytest.raises(Refused):
        bring({**WEB, "disks": [{"path": str(image)}]})
    with pytest.raises(InputError, match="no file"):
        bring({**WEB, "disks": [{"path": str(place / "absent")}]})


def test_an_image_that_is_cut_off_or_damaged_is_refused(place: Path) -> None:
    image = place / "image.qcow2"
    wanted = {**WEB, "disks": [{"path": str(image)}]}
    fake_domains.qcow2(image, 2**20)
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match=r"image\.qcow2: .* beyond its end"):
        bring(wanted)
    # An incompatible feature: the image is corrupt.
    image.write_bytes(whole[:79] + b"\x02" + whole[80:])
    with pytest.raises(Refused, match="marked as damaged"):
        bring(wanted)
    image.write_bytes(whole)
    bring(wanted)


def test_a_template_that_has_changed_is_refused_when_a_guest_on_it_is_started(place: Path) -> None:
    template(place)
    bring({**WEB, "state": "stopped", "disks": [{"template": "debian"}]})
    with open(place / f"templates/sha256/{DIGEST}/disk.qcow2", "ab") as file:
        file.write(b"more")
    bring({"name": "web", "state": "stopped"})
    for wanted in ({"name": "web"}, {**WEB, "disks": [{"template": "debian"}]}):
        with pytest.raises(Refused, match=r"is damaged: .* guest web"):
            bring(wanted)


def test_a_template_that_was_only_touched_is_known_again_but_not_in_check_mode(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template(place)
    monkeypatch.setattr(disks, "digest", lambda path: DIGEST)
    disk = place / f"templates/sha256/{DIGEST}/disk.qcow2"
    for wanted in ({**WEB, "state": "stopped", "disks": [{"template": "debian"}]}, {"name": "web"}):
        os.utime(disk)
        before = templates.record(DIGEST)
        assert bring(wanted, check_mode=True)["changed"]
        assert templates.record(DIGEST) == before
        bring(wanted)
        assert (templates.record(DIGEST) or {})["seen"]["mtime_ns"] == disk.stat().st_mtime_ns


def test_no_disk_is_made_in_a_pool_that_is_not_active(connection: FakeConnection, place: Path) -> None:
    """What is mounted there hides it later. A disk that is there already is where it is."""
    (place / "pool").mkdir()
    connection.pools["images"] = str(place / "pool")
    connection.inactive_pools.add("images")
    wanted = {**WEB, "disks": [{"pool": "images", "size_mib": 1}]}
    with pytest.raises(Missing, match="the pool 'images' is not active"):
        bring(wanted)
    assert list((place / "pool").iterdir()) == []
    connection.inactive_pools.clear()
    bring(wanted)
    connection.inactive_pools.add("images")
    assert not bring(wanted)["changed"]


# -- Others
def foreign(connection: FakeConnection, text: str = "", top: str = "") -> None:
    connection.defineXML(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>old</name><uuid>9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11</uuid>"
        "<memory unit='MiB'>256</memory><vcpu>1</vcpu><os><type machine='pc-i440fx-9.2' arch='x86_64'>hvm</type></os>"
        "<devices><interface type='network'><mac address='52:54:00:00:00:77'/><source network='default'/>"
        f"<model type='virtio'/></interface>{text}</devices>{top}</domain>"
    )
    connection.calls.clear()


def test_a_foreign_domain_is_shown_and_not_touched(connection: FakeConnection) -> None:
    foreign(connection)
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert (shown["name"], shown["managed"], shown["placement"], shown["state"]) == ("old", False, None, "stopped")
    for state in ("running", "stopped", "absent"):
        with pytest.raises(Refused, match="not made by"):
            bring({"name": "old", "memory_mib": 64, "state": state})
    assert connection.calls == []


def test_a_disk_is_not_taken_over_as_what_it_is_not(connection: FakeConnection, place: Path) -> None:
    """As raw the guest would find a header for its first bytes. What libvirt reads as raw may begin with anything."""
    disk = place / "own"
    fake_domains.qcow2(disk, 2**20)
    wanted = {"name": "old", "memory_mib": 256, "disks": [{"path": str(disk), "format": "raw"}], "state": "stopped"}

    def define(kind: str) -> None:
        source = f"<source file='{disk}'/><target dev='vda' bus='virtio'/>"
        foreign(connection, f"<disk type='file'><driver name='qemu' type='{kind}'/>{source}</disk>")

    define("qcow2")
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"format: {disk} is qcow2, not raw"):
            bring(wanted, adopt=True, check_mode=check_mode)
    assert connection.calls == []
    define("raw")
    assert one(wanted, adopt=True)["actions"][0] == "adopt"


@pytest.mark.parametrize("told", [True, False])
def test_what_lies_below_a_snapshot_is_not_taken_over_for_the_disk(
    connection: FakeConnection, place: Path, told: bool
) -> None:
    """It was made by other means, and the guest has written above it since."""
    base, top = place / "own.qcow2", place / "own.snap"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(top, 2**20, str(base), "qcow2")
    named = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    foreign(
        connection,
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{top}'/>{named if told else ''}"
        "<target dev='vda' bus='virtio'/></disk>",
    )
    wanted = {"name": "old", "memory_mib": 256, "state": "stopped"}
    with pytest.raises(Refused, match=f"libvirt has {top} for it, and not {base}") as refused:
        bring({**wanted, "disks": [{"path": str(base)}]}, adopt=True)
    assert f"virsh blockcommit old vda --base {base}" in refused.value.hint
    assert connection.calls == []
    assert one({**wanted, "disks": [{"path": str(top)}]}, adopt=True)["actions"][0] == "adopt"


def test_no_guest_writes_to_what_a_foreign_one_rests_on_without_a_word(connection: FakeConnection, place: Path) -> None:
    """The XML of a linked clone that does not run names the clone alone."""
    base, clone = place / "base.qcow2", place / "clone.qcow2"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(clone, 2**20, str(base), "qcow2")
    source = f"<driver name='qemu' type='qcow2'/><source file='{clone}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'>{source}</disk>")
    with pytest.raises(Refused, match=f"The disk {base} of guest 'web' is that of 'old'"):
        bring({**WEB, "disks": [{"path": str(base)}]})
    assert bring({**WEB, "disks": [{"path": str(base), "read_only": True}]})["changed"]


def test_adopted_it_keeps_its_identity(connection: FakeConnection) -> None:
    foreign(connection)
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    assert one(wanted, adopt=True)["actions"][0] == "adopt"
    found = domain.parse(t.cast("t.Any", connection.domains["old"].stored))
    assert found["uuid"] == "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"
    assert list(found["networks"]) == ["52:54:00:00:00:77"]
    assert found["machine"] == "pc-i440fx-9.2"
    again = bring(wanted)
    assert not again["changed"]
    assert again["guests"][0]["managed"]


def test_a_disk_that_another_one_has_as_a_volume_is_refused(connection: FakeConnection, place: Path) -> None:
    disk = place / "tf.qcow2"
    fake_domains.qcow2(disk, 2**20)
    connection.pools["p"] = str(place)
    connection.volumes["p", "tf.qcow2"] = str(disk)
    volume = "<source pool='p' volume='tf.qcow2'><encryption format='luks'/></source><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='volume'><driver name='qemu' type='qcow2'/>{volume}</disk>")
    given = {"memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}], "state": "stopped"}
    with pytest.raises(Refused, match=f"The disk {disk} of guest 'web' is that of 'old'"):
        bring({**given, "name": "web"})
    # Taken over it is a plain disk.
    taken = bring({**given, "name": "old"}, adopt=True)
    after = taken["diff"]["after"]["old"]
    assert [key for key in after if key.startswith("disks")] == [
        "disks.vda.cache",
        "disks.vda.path",
        "disks.vda.backing",
    ]
    text = connection.domains["old"].XMLDesc(2)
    assert f'<source file="{disk}">' in text
    assert "luks" in text
    assert not bring({**given, "name": "old"})["changed"]


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("said", [True, False])
def test_adopted_its_disk_rests_on_what_it_did(
    connection: FakeConnection, place: Path, disk_records: Path, state: str, said: bool
) -> None:
    """As Terraform (base_volume_id) and clones of cloud images have it."""
    for name in ("base", "pool"):
        (place / name).mkdir()
    base, disk = place / "base/cloud.qcow2", place / "pool/tf.qcow2"
    fake_domains.qcow2(base, 2**20)
    fake_domains.qcow2(disk, 2**20, str(base), "qcow2")
    connection.pools["p"] = str(place / "pool")
    connection.volumes["p", "tf.qcow2"] = str(disk)
    below = f"<backingStore type='file'><format type='qcow2'/><source file='{base}'/><backingStore/></backingStore>"
    foreign(
        connection,
        "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='p' volume='tf.qcow2'/>"
        f"{below if said else ''}<target dev='vda' bus='virtio'/></disk>",
    )
    if state == "running":
        connection.domains["old"].createWithFlags(0)
        connection.calls.clear()
        if not said:
            # What runs libvirt has looked at.
            t.cast("t.Any", connection.domains["old"].live).find("devices/disk").append(xml.parse(below))
    content = disk.read_bytes()
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}]}
    wanted["state"] = state
    # No other guest gains by it.
    with pytest.raises(Refused, match=f"{disk} rests on {base}"):
        bring({**wanted, "name": "new"}, adopt=True)
    assert connection.calls == []
    assert one(wanted, adopt=True)["actions"][0] == "adopt"
    found = domain.parse(t.cast("t.Any", connection.domains["old"].stored))["disks"]["vda"]
    assert found["backing"] == [{"path": str(base), "format": "qcow2", "read_only": False}]
    assert "open" not in found
    assert disk.read_bytes() == content
    assert not bring(wanted)["changed"]
    assert any("Flatten it while" in each for each in blockers(connection, "old"))
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"{disk} rests on it"):
            disk_images.bring_to(
                Host(run=fake_domains.run), [{"path": str(base), "state": "absent"}], check_mode=check_mode
            )
    # Where somebody lets it rest on another file later, that one libvirt has not named.
    fake_domains.qcow2(place / "secret", 2**20)
    fake_domains.qcow2(disk, 2**20, str(place / "secret"), "qcow2")
    connection.domains["old"].live = None
    connection.domains["old"].number = fake_domains.SHUTOFF
    with pytest.raises(Refused, match=f"{disk} rests on {place}/secret"):
        bring({**wanted, "state": "stopped"})


@pytest.mark.parametrize(
    ("xml_says", "format_said", "known"),
    [
        # What libvirt would read: all by the header, or what is below the part that the XML names.
        ("", True, ["base", "deep"]),
        ("<backingStore><format type='qcow2'/><source file='{place}/base'/></backingStore>", True, ["base", "deep"]),
        # The XML knows of nothing, or of another file.
        ("<backingStore/>", True, []),
        ("<backingStore><format type='qcow2'/><source file='{place}/x'/></backingStore>", True, ["x"]),
        # libvirt does not start it.
        ("", False, []),
    ],
)
def test_what_a_domain_reads_already(place: Path, xml_says: str, format_said: bool, known: list[str]) -> None:
    fake_domains.qcow2(place / "deep", 2**20)
    fake_domains.qcow2(place / "base", 2**20, str(place / "deep"), "qcow2")
    fake_domains.qcow2(place / "top", 2**20, str(place / "base"), "qcow2")
    if not format_said:
        header = (place / "top").read_bytes()
        (place / "top").write_bytes(header[:104] + bytes(8) + header[112:])
    text = xml_says.format(place=place)
    model = domain.parse(
        xml.parse(
            f"<domain><devices><disk><driver type='qcow2'/><source file='{place}/top'/>{text}<target dev='vda'/></disk>"
            "</devices></domain>"
        )
    )
    top = str(place / "top")
    found = guest_disks.told(top, "qcow2", [domain.EMPTY, model], adopted=True)
    assert found == {str(place / name) for name in known}
    # Of one of ours the header says nothing. What is raw for libvirt the guest has written.
    named = {one["path"] for one in model["disks"]["vda"]["backing"]}
    assert guest_disks.told(top, "qcow2", [model], adopted=False) == named
    assert guest_disks.told(top, "raw", [model], adopted=True) == set()
    model["disks"]["vda"]["format"] = "raw"
    assert guest_disks.told(top, "qcow2", [model], adopted=True) == set()


def unsaid(root: t.Any) -> None:
    """Let a domain be as virt-install would have written it."""
    for disk in root.findall("devices/disk"):
        for part in disk.findall("backingStore"):
            disk.remove(part)


def blockers(connection: FakeConnection, name: str) -> list[str]:
    """Why a guest itself could not leave its host."""
    known = domains.read(t.cast("t.Any", connection), [name])[name]
    return migration.refused(name, known.live, known.xml, known.state, [], needs_of(connection, name))


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_a_guest_of_virt_install_moves_from_shared_storage_once_it_is_described(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: True)
    disk = place / "nfs.qcow2"
    fake_domains.qcow2(disk, 2**20)
    source = f"<driver name='qemu' type='qcow2' cache='none'/><source file='{disk}'/><target dev='vda' bus='virtio'/>"
    foreign(connection, f"<disk type='file'>{source}</disk>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "disks": [{"path": str(disk)}]}
    wanted["state"] = state
    bring(wanted, adopt=True)
    assert (bring(wanted, adopt=True)["changed"], blockers(connection, "old")) == (False, [])
    # As it is where it was taken over before that was looked at, or where somebody has defined it anew.
    unsaid(connection.domains["old"].stored)
    (said,) = blockers(connection, "old")
    assert "vda without a word on what it rests on" in said
    assert "Run it once with its description (cnvm.platform.guest)" in said
    for check_mode in (True, False):
        result = bring(wanted, check_mode=check_mode)
        (found,) = result["guests"]
        assert found["actions"] == ["change disks.vda.backing"]
        assert result["diff"]["before"]["old"]["disks.vda.backing"] == "left to its file"
        assert result["diff"]["after"]["old"]["disks.vda.backing"] == "written down"
        assert (found["restart_required"], result["warnings"]) == (False, [])
    assert blockers(connection, "old") == []
    assert not bring(wanted)["changed"]


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_of_a_disk_of_which_nothing_was_said_its_file_tells_what_it_rests_on(
    connection: FakeConnection, place: Path, state: str
) -> None:
    """Without its template it would be lost at the next start."""
    template(place)
    wanted = {**WEB, "state": state, "disks": [{"template": "debian"}]}
    bring(wanted)
    below = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]["backing"]
    unsaid(connection.domains["web"].stored)
    assert one(wanted)["actions"] == ["change disks.vda.backing"]
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]
    assert [found["backing"], "open" in found] == [below, False]
    assert [each["path"] for each in below] == [paths.template_disk(DIGEST)]
    assert not bring(wanted)["changed"]


def test_a_volume_that_somebody_made_of_a_disk_is_a_plain_disk_again(connection: FakeConnection, place: Path) -> None:
    connection.pools["p"] = str(place)
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1, "pool": "p"}]}
    bring(wanted)
    (path,) = (disk["path"] for disk in domain.parse(connection.domains["web"].stored)["disks"].values())  # type: ignore[arg-type]
    connection.volumes["p", os.path.basename(path)] = path
    drive = t.cast("t.Any", connection.domains["web"].stored).find("devices/disk")
    drive.set("type", "volume")
    drive.find("source").attrib = {"pool": "p", "volume": os.path.basename(path)}
    (said,) = blockers(connection, "web")
    assert "Run it with its description (cnvm.platform.guest), which makes a plain disk of that." in said
    assert one(wanted)["actions"] == ["change disks.vda.path"]
    assert blockers(connection, "web") == []
    assert not bring(wanted)["changed"]


def test_where_a_volume_is_libvirt_is_asked_once(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is stored and what runs, and of all guests that read it."""
    connection.volumes["p", "v"] = str(place / "v")
    connection.pools["p"] = str(place)
    volume = "<disk type='volume' device='cdrom'><source pool='p' volume='v'/><target dev='sda'/></disk>"
    for name in ("one", "two"):
        connection.defineXML(f"<domain><name>{name}</name><memory>1024</memory><devices>{volume}</devices></domain>")
        connection.domains[name].createWithFlags(0)
    asked: list[str] = []
    look = FakeConnection.storagePoolLookupByName

    def count(self: FakeConnection, name: str) -> t.Any:
        asked.append(name)
        return look(self, name)

    monkeypatch.setattr(FakeConnection, "storagePoolLookupByName", count)
    known = domains.read(t.cast("t.Any", connection))
    assert asked == ["p"]
    models = [model for one in known.values() for model in (one.model, one.live_model)]
    assert [model["cdroms"]["sda"]["path"] for model in models if model] == [str(place / "v")] * 4


def test_memory_that_is_divided_into_cells_is_not_changed_without_them(connection: FakeConnection) -> None:
    cells = "<cell id='0' cpus='0' memory='131072'/><cell id='1' cpus='1' memory='128' unit='MiB'/>"
    foreign(connection, top=f"<cpu mode='host-model'><numa>{cells}</numa></cpu>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    for more, option in (({"memory_mib": 512}, "memory_mib"), ({"max_memory_mib": 512}, "max_memory_mib")):
        for check_mode in (True, False):
            with pytest.raises(
                Refused, match=f"old: {option}: .* cells of 128 \\+ 128 MiB, which make 256 and not 512"
            ):
                bring({**wanted, **more}, adopt=True, check_mode=check_mode)
    assert connection.calls == []
    bring({**wanted, "memory_mib": 128, "max_memory_mib": 256}, adopt=True)
    found = t.cast("t.Any", connection.domains["old"].stored)
    assert (domain.parse(found)["memory_mib"], domain.memory_cells(found)) == (128, [128, 128])


def test_what_libvirt_leaves_out_is_said(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    define = connection.defineXML
    monkeypatch.setattr(connection, "defineXML", lambda text: define(text.replace(">524288<", ">262144<")))
    (warning,) = [each for each in bring({**WEB, "memory_mib": 512})["warnings"] if "has not taken" in each]
    assert "Guest web: libvirt has not taken over max_memory_mib, memory_mib" in warning
    assert not [each for each in bring({**WEB, "name": "db"})["warnings"] if "has not taken" in each]


def test_what_goes_past_libvirt_is_said_when_it_is_adopted(connection: FakeConnection) -> None:
    foreign(connection, "<hostdev/>", "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>")
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert shown["other_devices"] == ["hostdev", "qemu:commandline"]
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    for check_mode in (True, False):
        (warning,) = bring(wanted, adopt=True, check_mode=check_mode)["warnings"]
        assert "qemu:commandline, which goes past libvirt" in warning
    assert "-snapshot" in connection.domains["old"].XMLDesc(2)
    assert bring(wanted)["warnings"] == []


def test_adopted_it_gets_no_other_machine_or_firmware_without_a_word(connection: FakeConnection) -> None:
    """They have defaults for guests that are made here."""
    foreign(connection)
    root = t.cast("t.Any", connection.domains["old"].stored)
    root.find("os").set("firmware", "efi")
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "state": "stopped"}
    for check_mode in (True, False):
        machine, firmware = bring(wanted, adopt=True, check_mode=check_mode)["warnings"]
        assert "has the machine pc-i440fx-9.2, and gets q35 when it is started anew" in machine
        assert firmware.endswith("it may not boot then. Say firmware: uefi to keep it.")
    assert bring(wanted, adopt=True)["warnings"] == []


def test_adopted_it_loses_no_disk_without_a_word(connection: FakeConnection, place: Path) -> None:
    """A size alone is another disk, which is made anew."""
    path = place / "old.qcow2"
    fake_domains.qcow2(path, 2**20)
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )
    foreign(connection, disk)
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "state": "stopped"}
    lost = f"Guest old loses the disk vda; its file {path} is kept."
    for now in ([{"size_mib": 1}], []):
        assert lost in bring({**wanted, "disks": now}, adopt=True, check_mode=True)["warnings"]
    wanted["disks"] = [{"path": str(path)}]
    assert bring(wanted, adopt=True)["warnings"] == []
    assert bring(wanted)["warnings"] == []


# As virt-install 5 and libvirt 11 make one with a SPICE screen, and its user then limits and pins it; shortened.
VIRT_INSTALL = """
<domain type='kvm'>
  <name>desk</name>
  <uuid>5c0c1d6e-2f0b-4f55-9a52-1d2c3b4a5f60</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://debian.org/debian/13'/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <iothreads>1</iothreads>
  <cputune><vcpupin vcpu='0' cpuset='0'/></cputune>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <firmware><feature enabled='no' name='enrolled-keys'/><feature enabled='no' name='secure-boot'/></firmware>
    <loader readonly='yes' type='pflash' format='raw'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' format='raw'>/var/lib/libvirt/qemu/nvram/desk_VARS.fd</nvram>
  </os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'>
    <topology sockets='1' dies='1' clusters='1' cores='2' threads='2'/>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap' iothread='1' queues='2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
      <iotune><total_iops_sec>500</total_iops_sec></iotune>
      <boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'/>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='virtio-serial' index='0'/>
    <interface type='network'>
      <mac address='52:54:00:f4:bf:15'/>
      <source network='default'/>
      <bandwidth><inbound average='1000'/></bandwidth>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='spiceport'>
      <source channel='org.spice-space.webdav.0'/><target type='virtio' name='org.spice-space.webdav.0'/>
    </channel>
    <input type='tablet' bus='usb'/>
    <input type='keyboard' bus='ps2'/>
    <smartcard mode='passthrough' type='spicevmc'/>
    <graphics type='spice' autoport='yes'>
      <listen type='none'/><image compression='off'/><gl enable='yes'/>
    </graphics>
    <sound model='ich9'><audio id='1'/></sound>
    <audio id='1' type='spice'/>
    <video><model type='virtio' heads='1' primary='yes'><acceleration accel3d='yes'/></model></video>
    <redirdev bus='usb' type='spicevmc'/>
    <redirdev bus='usb' type='spicevmc'/>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


@pytest.mark.parametrize("screen", ["none", "vnc"])
def test_what_virt_install_has_made_is_taken_over_once(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, screen: str
) -> None:
    """It keeps what has no option, loses what only a SPICE screen serves, and says until its restart what waits."""
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    fake_domains.qcow2(place / "desk.qcow2", 2**20)
    each = connection.defineXML(VIRT_INSTALL.replace("{disk}", str(place / "desk.qcow2")))
    each.createWithFlags(0)
    wanted = {
        "name": "desk", "memory_mib": 2048, "vcpus": 4, "firmware": "uefi", "graphics": {"type": screen},
        "disks": [{"path": str(place / "desk.qcow2"), "cache": "none"}], "networks": [{}],
    }  # fmt: skip
    taken = one(wanted, adopt=True)
    waits = ["boot", "cdrom", "cpu", "disks.vda.cache", "graphics"]
    assert [reason["option"] for reason in taken["restart_reasons"]] == waits
    stored = xml.document(t.cast("t.Any", each.stored))
    gone = ["spice", "redirdev", "smartcard", "accel3d"]
    kept = [
        "<total_iops_sec>500<", 'iothread="1"', 'queues="2"', 'bus="0x04"', 'cache="none"', "<inbound", 'queues="4"',
        'cores="2"', 'cpuset="0-3"', "debian/13", "<sound", 'id="1" type="none"', "guest_agent.0", "desk_VARS.fd",
        'host-model"',
    ]  # fmt: skip
    assert [word for word in gone if word in stored] == []
    assert [word for word in kept if word not in stored] == []
    again = bring(wanted)
    assert not again["changed"]
    assert again["guests"][0]["restart_reasons"] == taken["restart_reasons"]
    assert one(wanted, restart_on_change=True)["restarted"]
    last = bring(wanted)
    assert not last["changed"]
    assert not last["guests"][0]["restart_required"]


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("", {"networks": [{"mac": "52:54:00:00:00:77"}]}, "MAC"),
        ("", {"uuid": "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"}, "UUID"),
        ("<disk type='file'><source file='{place}/d.qcow2'/><target dev='vda'/></disk>", {}, "disk"),
    ],
)
def test_what_another_domain_has_is_refused(
    connection: FakeConnection, place: Path, text: str, given: dict[str, t.Any], said: str
) -> None:
    fake_domains.qcow2(place / "d.qcow2", 2**20)
    foreign(connection, text.format(place=place))
    with pytest.raises(Refused, match=said):
        bring({**WEB, "disks": [{"path": str(place / "d.qcow2")}] if text else [], **given})
    assert connection.calls == []


def test_no_disk_rests_on_what_another_guest_writes_to(connection: FakeConnection, place: Path) -> None:
    shared, over = place / "workloads/shared.qcow2", place / "over.qcow2"
    web = {**WEB, "state": "stopped"}
    bring(web)
    db = {**WEB, "name": "db", "disks": [{"path": str(over)}]}
    for below in ("vda", "vda-1"):
        fake_domains.qcow2(over, 2**20, f"{place}/workloads/web/disks/{below}.qcow2", "qcow2")
        for check_mode in (True, False):
            with pytest.raises(Refused, match=f"rests on .*/{below}.qcow2, to which guest 'web' writes") as refused:
                bring(db, check_mode=check_mode)
            assert "flatten: true" in refused.value.hint
        # A file that is frozen as part of a snapshot is written to when that is merged.
        snap(f"above {below}".replace(" ", "-"))
    # One that comes in the same call.
    fake_domains.qcow2(shared, 2**20)
    fake_domains.qcow2(over, 2**20, str(shared), "qcow2")
    with pytest.raises(Refused, match="to which guest 'new' writes"):
        bring({**web, "name": "new", "disks": [{"path": str(shared)}]}, db)
    # On what nobody writes to many rest.
    other = place / "other.qcow2"
    fake_domains.qcow2(other, 2**20, str(shared), "qcow2")
    bring(db, {**db, "name": "new", "disks": [{"path": str(other)}]})
    assert not bring(db)["changed"]


def test_what_goes_with_another_guest_is_refused(connection: FakeConnection, place: Path) -> None:
    fixed, made, link = (place / f"{name}.qcow2" for name in ("fixed", "made", "link"))
    fake_domains.qcow2(fixed, 2**20)
    link.symlink_to(place / "workloads/old/disks/vdb.qcow2")
    disks: list[dict[str, t.Any]] = [{"path": str(fixed)}, {"size_mib": 1}, {"path": str(made), "size_mib": 1}]
    bring({**WEB, "name": "old", "state": "stopped", "disks": disks})
    leaves = {"name": "old", "state": "absent"}
    for path, more in ((link.readlink(), {}), (link, {}), (made, {"delete_disks": True})):
        with pytest.raises(Refused, match="and goes with it"):
            bring({**leaves, **more}, {**WEB, "disks": [{"path": str(path)}]})
    # The one is kept where it is, the other was there before.
    bring(leaves, {**WEB, "disks": [{"path": str(made)}]}, check_mode=True)
    bring({**leaves, "delete_disks": True}, {**WEB, "disks": [{"path": str(fixed)}]})
    assert sorted(connection.domains) == ["web"]
    assert (fixed.exists(), made.exists()) == (True, False)


@pytest.mark.parametrize("gets", ["disk", "mac"])
@pytest.mark.parametrize("new", [True, False])
def test_what_another_guest_has_is_not_given_away_before_that_has_ended(
    connection: FakeConnection, place: Path, gets: str, new: bool
) -> None:
    fixed, mac = place / "fixed.qcow2", "52:54:00:00:00:77"
    fake_domains.qcow2(fixed, 2**20)
    bring({**WEB, "name": "old", "disks": [{"path": str(fixed)}], "networks": [{"mac": mac}]})
    connection.domains["old"].obeys = False
    leaves = {"name": "old", "state": "absent", "stop_timeout_s": 0}
    wanted = {**WEB, **({"disks": [{"path": str(fixed)}]} if gets == "disk" else {"networks": [{"mac": mac}]})}
    there = ["db", "old"] if new else ["db", "old", "web"]
    if not new:
        # One that was stopped for that runs on.
        bring({**WEB, "disks": [], "machine": "pc"})
    with pytest.raises(HostError, match="'old' did not stop") as caught:
        bring(wanted, leaves, {**WEB, "name": "db"}, restart_on_change=True)
    assert caught.value.details["guests"] == ["old", "web"]
    assert (sorted(connection.domains), sorted(os.listdir(place / "workloads"))) == (there, there)
    assert all(each.live is not None for each in connection.domains.values())
    bring(wanted, {**leaves, "force_stop": True}, restart_on_change=True)
    assert sorted(connection.domains) == ["db", "web"]
    assert not bring(wanted, leaves)["changed"]


def test_another_network_is_not_there(connection: FakeConnection) -> None:
    with pytest.raises(InputError, match="no network 'lan'"):
        bring({**WEB, "networks": [{"source": "lan"}]})
    with pytest.raises(InputError, match="no bridge 'br9'"):
        bring({**WEB, "networks": [{"type": "bridge", "source": "br9"}]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"machine": "pc-q35-99.0"}, "web: machine: .*pc-q35-99.0"),
        ({"cpu": {"model": "max"}}, "web: cpu: model: .*'max'"),
        ({"cpu": {"features": {"nonsense": "require"}}}, "web: cpu: .*nonsense"),
    ],
)
def test_what_libvirt_would_say_at_the_start_is_said_before_anything(
    connection: FakeConnection, given: dict[str, t.Any], said: str
) -> None:
    for _time in ("new", "there"):
        connection.calls.clear()
        with pytest.raises(InputError, match=said):
            bring({**WEB, **given}, restart_on_change=True)
        assert connection.calls == []
        bring(WEB)
    assert bring({**WEB, "cpu": {"features": {"unheard": "require"}}})["changed"], "where libvirt cannot tell"


def test_a_change_that_libvirt_refuses_leaves_no_disk(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    connection.fails["web"] = FakeError(errors.OPERATION_FAILED, "no firmware")
    more = {**WEB, "state": "stopped", "firmware": "uefi", "disks": [{"size_mib": 1}, {"size_mib": 1}]}
    with pytest.raises(HostError):
        bring(more)
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]
    del connection.fails["web"]
    assert "create disk vdb" in one(more)["actions"]


# -- Exactly one
def test_a_guest_that_was_moved_is_left_alone(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    owner = json.loads((place / "workloads/web/owner.json").read_text())
    (place / "workloads/web/owner.json").write_text(
        json.dumps({**owner, "owner": "other", "owner_name": "host2", "generation": 2})
    )
    connection.calls.clear()
    for item in (WEB, {"name": "web", "state": "stopped"}, {"name": "web", "state": "absent"}):
        result = bring(item)
        assert not result["changed"]
        assert result["guests"][0]["placement"] == "host2"
        assert result["guests"][0]["state"] == "moved"
    assert connection.calls == []


@pytest.mark.parametrize("owner", ["me", "other"])
def test_a_container_of_that_name_is_no_guest(place: Path, owner: str) -> None:
    own = place / "workloads/web"
    own.mkdir()
    (own / "owner.json").write_text(json.dumps({"kind": "container", "owner": owner, "generation": 3}))
    result = bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (result["changed"], result["warnings"]) == (False, [])
    assert (own / "owner.json").exists()
    with pytest.raises(InputError, match="no such guest"):
        bring({"name": "web", "state": "stopped"})
    if owner == "me":
        with pytest.raises(Refused, match="has a container called 'web'"):
            bring(WEB)


def test_a_guest_in_a_move_is_refused(place: Path) -> None:
    bring(WEB)
    (place / "workloads/web/move.json").write_text("{}")
    with pytest.raises(Refused, match="not finished"):
        bring({"name": "web", "state": "stopped"})


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


def test_a_name_or_an_address_at_a_peer(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"db": {"here": True, "kind": "guest", "address": "10.100.101.30"}}
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": theirs}})
    found = one({**WEB, "name": "db"})
    assert (found["placement"], found["state"], found["changed"]) == ("host2", "moved", False)
    card = {"type": "overlay", "address": "10.100.101.30"}
    with pytest.raises(Refused, match="belongs to guest 'db' at host2"):
        bring({**WEB, "networks": [card]})
    assert connection.calls == []
    made = one({**WEB, "networks": [{**card, "address": "10.100.101.31"}], "cloud_init": {"user_data": {}}})
    assert made["overlay_address"] == "10.100.101.31"
    overlay(place, monkeypatch, {"host2": {"ok": False, "error": "no route"}})
    with pytest.raises(PeerError, match="no route"):
        bring({**WEB, "name": "mail"})
    assert not os.path.exists(place / "workloads/mail")


def test_a_mac_or_a_uuid_at_a_peer(connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another guest may not have it, wherever that is: neither a new one nor one that gets another card."""
    mac, uuid = "52:54:00:00:00:77", "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"
    db = {"here": True, "kind": "guest", "uuid": uuid, "macs": [mac]}
    answers: dict[str, t.Any] = {"host2": {"ok": True, "workloads": {"db": db}}}
    overlay(place, monkeypatch, answers)
    for given, said in (({"networks": [{"mac": mac}]}, f"MAC {mac}"), ({"uuid": uuid}, f"UUID {uuid}")):
        for check_mode in (True, False):
            with pytest.raises(Refused, match=f"{said} of 'web' belongs to guest 'db' at host2"):
                bring({**WEB, **given}, check_mode=check_mode)
        assert connection.calls == []
        assert os.listdir(place / "workloads") == []
    bring(WEB)
    with pytest.raises(Refused, match=f"MAC {mac} of 'web' belongs to guest 'db' at host2"):
        bring({**WEB, "networks": [{}, {"mac": mac}]})
    answers["host2"]["workloads"]["db"] = {**db, "here": False}
    assert bring({**WEB, "networks": [{}, {"mac": mac}]})["changed"]
    answers["host2"] = {"ok": False, "error": "no route"}
    assert bring({**WEB, "networks": [{}, {"mac": mac}, {}]})["changed"], "one that is silent is in nobody's way"


def test_the_address_of_one_that_is_removed_in_the_same_call(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with containers; but not before that one has ended."""
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": {}}})
    wanted = {**WEB, "networks": [{"type": "overlay", "address": "10.100.101.30"}]}
    bring({**wanted, "name": "old"})
    with pytest.raises(Refused, match=r"address 10\.100\.101\.30 of 'web' is that of guest 'old'"):
        bring(wanted)
    connection.domains["old"].obeys = False
    leaves = {"name": "old", "state": "absent", "stop_timeout_s": 0}
    with pytest.raises(HostError, match="'old' did not stop"):
        bring(wanted, leaves)
    assert sorted(connection.domains) == ["old"]
    connection.calls.clear()
    bring(wanted, {**leaves, "force_stop": True})
    assert sorted(connection.domains) == ["web"]
    assert not bring(wanted, leaves)["changed"]


# -- Failures
def test_a_creation_that_fails_leaves_nothing(connection: FakeConnection, place: Path) -> None:
    made = place / "made.qcow2"
    connection.fails["web"] = FakeError(errors.XML_ERROR, "XML error: no")
    with pytest.raises(HostError, match="XML error"):
        bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(made), "size_mib": 1}]})
    assert os.listdir(place / "workloads") == []
    assert not made.exists()
    assert connection.domains == {}
    del connection.fails["web"]
    assert one(WEB)["state"] == "running"


def test_a_creation_that_was_cut_off_is_made_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(WEB, monkeypatch, "own")
    assert "claim" in json.loads((place / "workloads/web/owner.json").read_text())
    found = one(WEB)
    assert found["actions"] == ["create", "start with the host", "start"]
    assert found["state"] == "running"
    assert "claim" not in json.loads((place / "workloads/web/owner.json").read_text())


@pytest.mark.parametrize("delete", [False, True])
def test_or_is_removed(connection: FakeConnection, place: Path, delete: bool) -> None:
    """Its name would be taken on all hosts otherwise."""
    bring({**WEB, "state": "stopped"})
    own = place / "workloads/web"
    (own / "owner.json").write_text(json.dumps({"kind": "guest", "owner": "me", "claim": True}))
    (own / "definition.json").unlink()
    absent = {"name": "web", "state": "absent", "delete_disks": delete}
    assert one(absent, check_mode=True)["changed"]
    result = one(absent)
    assert result["kept_disks"] == [f"{place}/kept_disks/web/vda.qcow2"]
    assert (own.exists(), connection.domains) == (False, {})
    assert not bring(absent)["changed"]


def cut(*args: t.Any, **words: t.Any) -> t.NoReturn:
    raise Killed


def cut_off(item: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch, step: str, **options: t.Any) -> None:
    """Bring it to what is wanted, and be killed before this step."""

    with monkeypatch.context() as patched:
        patched.setattr(ownership.Registry if step == "own" else guests.Batch, step, cut)
        patched.setattr(ownership.Registry, "give_up", cut)
        with pytest.raises(Killed):
            bring(item, **options)


@pytest.mark.parametrize(
    ("disk", "same"),
    [
        ({"pool": "images", "size_mib": 1}, False),
        ({"path": "web-vda.qcow2", "template": "debian"}, False),
        # It may be given for what is in it.
        ({"path": "web-vda.qcow2", "size_mib": 1}, True),
    ],
)
def test_a_disk_elsewhere_of_a_creation_that_was_cut_off_is_made_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, t.Any], same: bool
) -> None:
    template(place)
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    made = place / "pool/web-vda.qcow2"
    wanted = {**WEB, "disks": [{**disk, **({"path": str(made)} if "path" in disk else {})}]}
    cut_off(wanted, monkeypatch, "_seed")
    made.write_bytes(made.read_bytes() + b"of the first run")
    assert one(wanted, check_mode=True)["actions"][0] == "create"
    assert one(wanted)["state"] == "running"
    assert made.read_bytes().endswith(b"of the first run") is same


def test_nothing_else_in_a_pool_is_overwritten(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's own disk is as much somebody's, when no creation that made it was cut off."""
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    fake_domains.qcow2(place / "pool/web-vdb.qcow2", 2**20)
    disk = {"pool": "images", "size_mib": 1}
    cut_off({**WEB, "disks": [disk]}, monkeypatch, "_seed")
    with pytest.raises(Refused, match=r"web-vdb\.qcow2 is there already"):
        bring({**WEB, "disks": [disk, disk]})


def test_a_disk_in_a_pool_of_a_creation_that_was_cut_off_is_kept_when_the_guest_is_removed(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    cut_off({**WEB, "disks": [{"pool": "images", "size_mib": 1}]}, monkeypatch, "_seed")
    assert one({"name": "web", "state": "absent"})["kept_disks"] == [f"{place}/pool/web-vda.qcow2"]


@pytest.mark.parametrize("step", ["_seed", "_define", "_drop_seed"])
@pytest.mark.parametrize("disk", [{"size_mib": 1}, {"pool": "images", "size_mib": 1}])
def test_adding_a_disk_that_was_cut_off_is_done_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, step: str, disk: dict[str, t.Any]
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    bring({**WEB, "state": "stopped"})
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, disk]}
    with monkeypatch.context() as patch:
        # Nothing is cleared away by one that is killed.
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        cut_off(wanted, monkeypatch, step)
    made = place / ("pool/web-vdb.qcow2" if "pool" in disk else "workloads/web/disks/vdb.qcow2")
    assert made.exists()
    bring(wanted)
    assert not bring(wanted)["changed"]
    assert not (place / "workloads/web/making.json").exists()
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not made.exists(), "it is the guest's own"


def test_a_disk_that_was_being_added_stays_on_record_when_it_is_not_wanted_any_more(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    first, disk = {**WEB, "state": "stopped"}, {"pool": "images", "size_mib": 1}
    bring(first)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        cut_off({**first, "disks": [{"size_mib": 1}, disk]}, monkeypatch, "_seed")
    assert bring({**first, "memory_mib": 128})["changed"]
    assert not bring({**first, "memory_mib": 128})["changed"]
    assert bring({**first, "memory_mib": 128, "disks": [{"size_mib": 1}, disk]})["changed"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not (place / "pool/web-vdb.qcow2").exists(), "it is the guest's own"


@pytest.mark.parametrize("delete", [False, True])
def test_a_disk_that_was_being_added_goes_with_the_guest(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    bring({**WEB, "state": "stopped"})
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        disk = {"pool": "images", "size_mib": 1}
        cut_off({**WEB, "state": "stopped", "disks": [{"size_mib": 1}, disk]}, monkeypatch, "_seed")
    kept = one({"name": "web", "state": "absent", "delete_disks": delete})["kept_disks"]
    made = f"{place}/pool/web-vdb.qcow2"
    assert (made in kept, os.path.exists(made)) == (not delete, not delete)


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


@pytest.fixture
def steps(place: Path, connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> Steps:
    # No power is cut, and waiting for disks takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Steps(place, connection, monkeypatch)


@pytest.mark.parametrize("again", ["the same", "absent"])
def test_making_one_is_killed_at_each_step(steps: Steps, again: str) -> None:
    """The same run again makes the guest as if nothing had been, and it can be removed without a trace."""
    bring(steps.guest)
    whole = steps.seen()
    assert [disk["made"] for disk in whole[1]["disks"]] == [True] * 4 + [False]
    bring(steps.absent)
    steps.gone()

    def look() -> None:
        if again == "the same":
            bring(steps.guest)
            assert steps.seen() == whole
            assert not bring(steps.guest)["changed"]
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: None, lambda: bring(steps.guest), look) > 20


def test_making_one_is_killed_twice(steps: Steps) -> None:
    """What the first run has made, and the second one leaves as it is, was made all the same."""
    for step in ("_seed", "_define"):
        cut_off(steps.guest, steps.monkeypatch, step)
    bring(steps.guest)
    assert [disk["made"] for disk in steps.seen()[1]["disks"]] == [True] * 4 + [False]
    bring(steps.absent)
    steps.gone()


def test_changing_words_alone_is_killed_at_each_step(steps: Steps) -> None:
    """libvirt has them before they are written down, and no disk tells the next run."""
    second = {**WEB, "memory_mib": 128, "tags": {"a": "b"}, "state": "stopped"}
    bring(second)
    whole = steps.seen()

    def look() -> None:
        bring(second)
        assert steps.seen() == whole
        assert not bring(second)["changed"]

    assert steps.kill(lambda: bring({**WEB, "state": "stopped"}), lambda: bring(second), look) > 5


def test_making_the_domain_anew_is_killed_at_each_step(steps: Steps) -> None:
    """Of a guest that libvirt does not know any more; it gets a disk at the same time."""
    first = {**steps.guest, "disks": steps.guest["disks"][:1]}

    def lose() -> None:
        bring(first)
        steps.connection.domains.clear()

    lose()
    bring(steps.guest)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        bring(steps.guest)
        assert steps.seen() == whole
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lose, lambda: bring(steps.guest), look) > 20


def test_giving_up_is_killed_at_each_step(steps: Steps) -> None:
    """What cannot be made is removed, by this run or by the next one."""

    def make() -> None:
        steps.connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
        with contextlib.suppress(HostError):
            bring(steps.guest)

    def look() -> None:
        steps.connection.fails.clear()
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: None, make, look) > 20


@pytest.mark.parametrize("again", ["the same", "absent"])
@pytest.mark.parametrize("state", ["stopped", "running", "restarted"])
def test_changing_one_is_killed_at_each_step(steps: Steps, state: str, again: str) -> None:
    first = {**steps.guest, "state": "running" if state == "restarted" else state}
    disks = [*steps.guest["disks"], {"size_mib": 1}, {"pool": "images", "size_mib": 1}, steps.at("c.qcow2")]
    disks[0] = {"size_mib": 2}
    second = {
        **first, "disks": disks, "memory_mib": 128, "tags": {"a": "b"}, "cloud_init": {"user_data": "#cloud-config\n#2"}
    }  # fmt: skip
    if state == "restarted":
        second.update(state="present", machine="pc")
    options = {"restart_on_change": True}
    bring(first)
    bring(second, **options)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        if again == "the same":
            bring(second, **options)
            assert steps.seen() == whole
            assert not bring(second, **options)["changed"]
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: bring(first), lambda: bring(second, **options), look) > 20


def test_taking_things_away_is_killed_at_each_step(steps: Steps) -> None:
    second = {key: value for key, value in steps.guest.items() if key != "cloud_init"}
    second["disks"] = steps.guest["disks"][:2]
    options = {"restart_on_change": True}
    bring(steps.guest)
    bring(second, **options)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        bring(second, **options)
        assert steps.seen() == whole
        assert not bring(second, **options)["changed"]
        bring(steps.absent)
        shutil.rmtree(steps.place / "kept_disks")
        (steps.place / "srv/b.qcow2").unlink()
        steps.gone()

    (steps.place / "srv/b.qcow2").unlink()
    shutil.rmtree(steps.place / "kept_disks")
    assert steps.kill(lambda: bring(steps.guest), lambda: bring(second, **options), look) > 10


@pytest.mark.parametrize("delete", [True, False])
def test_removing_one_is_killed_at_each_step(steps: Steps, delete: bool) -> None:
    absent = {**steps.absent, "delete_disks": delete}
    kept = ["kept_disks/web/vda.qcow2", "kept_disks/web/vdc.qcow2", "pool/web-vdb.qcow2", "srv/b.qcow2"]

    def look() -> None:
        bring(absent)
        assert not bring(absent)["changed"]
        if not delete:
            for name in kept:
                (steps.place / name).unlink()
            (steps.place / "kept_disks/web").rmdir()
        steps.gone()

    assert steps.kill(lambda: bring(steps.guest), lambda: bring(absent), look) > 10


@pytest.mark.parametrize("runs", [False, True])
def test_adopting_one_is_killed_at_each_step(steps: Steps, runs: bool) -> None:
    """It stays what it is: with its UUID, its cards, and the disk that it had."""
    had = steps.place / "old.qcow2"
    fake_domains.qcow2(had, 2**20)
    disk = {"path": str(had), "name": "vda"}
    wanted = {
        **steps.guest, "name": "old", "machine": "pc", "state": "running" if runs else "stopped",
        "disks": [disk, {"size_mib": 1}, {"pool": "images", "size_mib": 1}],
    }  # fmt: skip

    def come() -> None:
        foreign(
            steps.connection,
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{had}'/>"
            "<target dev='vda' bus='virtio'/></disk>",
        )
        if runs:
            steps.connection.domains["old"].createWithFlags(0)

    def go() -> None:
        bring({**steps.absent, "name": "old"})
        assert steps.files() == []
        assert had.exists()

    come()
    bring(wanted, adopt=True)
    whole = steps.seen("old")
    assert whole[2]["uuid"].startswith("9a1c1f9e")
    go()

    def look() -> None:
        bring(wanted, adopt=True)
        assert steps.seen("old") == whole
        assert not bring(wanted, adopt=True)["changed"]
        go()

    assert steps.kill(come, lambda: bring(wanted, adopt=True), look) > 10


def test_nothing_else_is_overwritten_by_a_disk_that_is_added(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    fake_domains.qcow2(place / "workloads/web/disks/vdb.qcow2", 2**20)
    with pytest.raises(Refused, match=r"vdb\.qcow2 is there already"):
        bring({**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"size_mib": 1}]})


MORE = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"size_mib": 1}]}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("when", ["before it is begun", "before it is made", "while it is made"])
def test_nor_is_what_came_since_it_was_decided(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, when: str, there: bool
) -> None:
    """Nor is it removed with what was made: by this run, or by one that goes on after a run that was killed."""
    if there:
        bring({**WEB, "state": "stopped"})
    theirs = place / "workloads/web/disks/vdb.qcow2"
    owner, name = {
        "before it is begun": (guest_disks, "make_home"), "before it is made": (guest_disks, "do"),
        "while it is made": (disks, "run"),
    }[when]  # fmt: skip
    work = getattr(owner, name)

    def meanwhile(*args: t.Any, **words: t.Any) -> t.Any:
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_text("theirs")
        return work(*args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, meanwhile)
        with pytest.raises(disks.Taken, match=rf"{theirs} came while it was to be made here"):
            bring(MORE)
    assert theirs.read_text() == "theirs"
    assert sorted(os.listdir(theirs.parent)) == (["vda.qcow2", "vdb.qcow2"] if there else ["vdb.qcow2"])
    with pytest.raises(Refused, match="is there already"):
        bring(MORE)
    theirs.unlink()
    assert one(MORE)["state"] == "stopped"
    assert not list(place.rglob(disks.TEMPORARY))


def test_what_lay_there_before_a_creation_that_was_cut_off_stays(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place / "workloads/web/disks"
    home.mkdir(parents=True)
    (home / "data.raw").write_text("theirs")
    (home / "vdb.qcow2").write_text("theirs")
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")

    def fail() -> None:
        with pytest.raises(HostError, match="define"):
            bring(WEB)
        assert sorted(os.listdir(home)) == ["data.raw", "vdb.qcow2"]

    fail()
    cut_off(WEB, monkeypatch, "_define")
    assert sorted(os.listdir(home)) == ["data.raw", "vda.qcow2", "vdb.qcow2"]
    # It is none of those that were being made.
    with pytest.raises(Refused, match=r"vdb\.qcow2 is there already"):
        bring(MORE)
    fail()
    assert [each.read_text() for each in home.iterdir()] == ["theirs"] * 2
    assert not (place / "workloads/web/owner.json").exists()


# -- libvirt's daemon ends
RPC = FakeError(errors.RPC, "Cannot recv data: Connection reset by peer")


@pytest.fixture
def dies(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., t.Any]:
    """The daemon ends as it is told to define a guest, before or after it has written it down. It is there again for
    the next run."""
    define = connection.defineXML

    @contextlib.contextmanager
    def within(*, written: bool) -> t.Iterator[None]:
        def refuse(*args: t.Any) -> t.NoReturn:
            raise RPC

        with monkeypatch.context() as patch:

            def end(text: str) -> t.NoReturn:
                if written:
                    define(text)
                for name in ("lookupByName", "listAllDomains", "getAllDomainStats"):
                    patch.setattr(connection, name, refuse)
                raise RPC

            patch.setattr(connection, "defineXML", end)
            with pytest.raises(HostError, match=r"define the guest '.*': Cannot recv data") as caught:
                yield
        assert "the next run goes on from there" in str(caught.value)

    return within


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("again", ["the same", "absent"])
def test_a_creation_during_which_the_daemon_ends_is_made_again(
    steps: Steps, dies: t.Callable[..., t.Any], written: bool, again: str
) -> None:
    bring(steps.guest)
    whole = steps.seen()
    bring(steps.absent)
    with dies(written=written):
        bring(steps.guest)
    assert (steps.place / "pool/web-vdb.qcow2").exists()
    if again == "the same":
        bring(steps.guest)
        assert steps.seen() == whole
    bring(steps.absent)
    steps.gone()


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("adopt", [False, True])
def test_a_change_during_which_the_daemon_ends_is_finished(
    connection: FakeConnection, place: Path, dies: t.Callable[..., t.Any], written: bool, adopt: bool
) -> None:
    if adopt:
        foreign(connection)
    else:
        bring({**WEB, "name": "old", "state": "stopped", "disks": []})
    wanted = {**MORE, "name": "old", "machine": "pc" if adopt else "q35"}
    with dies(written=written):
        bring(wanted, adopt=adopt)
    made = [place / f"workloads/old/disks/{name}.qcow2" for name in ("vda", "vdb")]
    assert all(path.exists() for path in made)
    assert len(domain.parse(t.cast("t.Any", connection.domains["old"].stored))["disks"]) == (2 if written else 0)
    uuid = domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"]
    bring(wanted, adopt=adopt)
    assert domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"] == uuid
    assert not bring(wanted)["changed"]
    assert not (place / "workloads/old/making.json").exists()
    assert one({"name": "old", "state": "absent", "delete_disks": True})["kept_disks"] == []
    assert not any(path.exists() for path in made)


def test_what_a_guest_has_is_not_removed_with_a_change_that_failed(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt may have taken it, and have failed as it was asked for something else."""
    bring({**WEB, "state": "stopped"})
    define = connection.defineXML

    def fail(text: str) -> t.NoReturn:
        define(text)
        raise FakeError(errors.INTERNAL_ERROR, "no event")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "defineXML", fail)
        with pytest.raises(HostError, match="no event"):
            bring(MORE)
    assert (place / "workloads/web/disks/vdb.qcow2").exists()
    bring(MORE)
    assert not bring(MORE)["changed"]
    assert one({"name": "web", "state": "absent", "delete_disks": True})["kept_disks"] == []


# -- A guest that is off for a change
CHANGE = {**WEB, "state": "present", "machine": "pc"}


def stopped_and_killed(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, step: str, item: dict[str, t.Any], **options: t.Any
) -> None:
    """A run that is to change it with a restart, and is killed before this step."""
    with monkeypatch.context() as patch:
        if step == "define":
            patch.setattr(connection, "defineXML", cut)
        patch.setattr(connection.domains[item["name"]], "createWithFlags", cut)
        with pytest.raises(Killed):
            bring(item, restart_on_change=True, **options)
    assert connection.domains[item["name"]].live is None


@pytest.mark.parametrize("step", ["define", "start"])
@pytest.mark.parametrize("state", ["running", "paused"])
@pytest.mark.parametrize("again", ["the same", "its state alone", "without a restart"])
def test_one_that_was_stopped_for_a_change_is_started_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, step: str, state: str, again: str
) -> None:
    bring({**WEB, "state": state})
    stopped_and_killed(connection, monkeypatch, step, CHANGE)
    item = {"name": "web", "state": "present"} if again == "its state alone" else CHANGE
    planned = one(item, check_mode=True)["actions"]
    result = one(item, restart_on_change=again == "the same")
    assert (result["state"], result["actions"]) == (state, planned)
    assert not (place / "workloads/web/restart.json").exists()
    # That is over: whoever shuts it down now wants it off.
    connection.domains["web"].destroy()
    assert one(CHANGE, restart_on_change=True)["state"] == "stopped"


def test_so_is_one_that_was_taken_over(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(connection)
    connection.domains["old"].createWithFlags(0)
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "machine": "q35", "state": "present"}
    stopped_and_killed(connection, monkeypatch, "define", wanted, adopt=True)
    assert one(wanted, adopt=True)["state"] == "running"


@pytest.mark.parametrize(
    "since", ["it was stopped by name", "it was started and shut down", "it was seen to run", "the host was booted"]
)
def test_one_that_is_off_for_another_reason_by_now_stays_off(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    bring(WEB)
    log = place / "qemu_logs/web.log"
    log.parent.mkdir()
    first = "2026-01-01 10:00:00.000+0000: starting up libvirt version: 10.0.0\nchar device redirected\n"
    log.write_text(first)
    stopped_and_killed(connection, monkeypatch, "start", CHANGE)
    each = connection.domains["web"]
    if since == "it was stopped by name":
        assert not bring({"name": "web", "state": "stopped", "autostart": True})["changed"]
    elif since == "it was started and shut down":
        log.write_text(f"{first}{first.replace('10:00', '11:00')}2026-01-01 11:01:00.000+0000: shutting down\n")
    elif since == "it was seen to run":
        each.createWithFlags(0)
        assert not bring(CHANGE)["changed"]
        each.shutdown()
    else:
        monkeypatch.setattr(movedir, "boot_id", lambda: "another one")
    result = bring(CHANGE, restart_on_change=True)
    assert (result["changed"], each.live) == (False, None)
    assert not (place / "workloads/web/restart.json").exists()


@pytest.mark.parametrize("room", [True, False])
def test_one_that_could_not_be_started_again_is_told_and_started_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    bring(WEB, {**WEB, "name": "db"})
    log = place / "qemu_logs/db.log"
    log.parent.mkdir()

    def full(*args: t.Any) -> t.NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    def start(flags: int) -> t.NoReturn:
        if room:
            # It got so far that libvirt has written it down.
            log.write_text("2026-01-01 11:00:00.000+0000: starting up libvirt version: 10.0.0\n")
        else:
            patch.setattr(guest_restarts, "note", full)
        raise FakeError(errors.INTERNAL_ERROR, "no memory")

    with monkeypatch.context() as patch:
        patch.setattr(connection.domains["db"], "createWithFlags", start)
        patch.setitem(connection.fails, "web", FakeError(errors.XML_ERROR, "no"))
        with pytest.raises(HostError, match=r"define the guest 'web'.* not started again: db\. .*no memory") as caught:
            bring(CHANGE, {**CHANGE, "name": "db"}, restart_on_change=True)
    assert caught.value.details["not_started"] == ["db"]
    assert (connection.domains["web"].live is None, connection.domains["db"].live is None) == (False, True)
    assert one({"name": "db", "state": "present"})["state"] == "running"


def test_nothing_is_told_of_one_that_has_not_stopped(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)

    def fail(*args: t.Any) -> t.NoReturn:
        raise HostError("There is no room left.")

    def running(flags: int) -> t.NoReturn:
        raise FakeError(errors.OPERATION_INVALID, "domain is already running")

    monkeypatch.setattr(guest_power, "stop", fail)
    monkeypatch.setattr(connection.domains["web"], "createWithFlags", running)
    with pytest.raises(HostError) as caught:
        bring(CHANGE, restart_on_change=True)
    assert str(caught.value) == "There is no room left."


@pytest.mark.parametrize("before", ["its turn", "it was stopped"])
def test_one_that_has_not_stopped_for_its_change_is_not_started_later(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Its owner turns it off: the next run leaves it so."""
    bring(WEB)
    each = connection.domains["web"]
    each.obeys = False
    item = {**CHANGE, "stop_timeout_s": 0}

    def fail(*args: t.Any) -> t.NoReturn:
        raise HostError("There is no room left.")

    with monkeypatch.context() as patch:
        if before == "it was stopped":
            patch.setattr(guest_power, "stop", fail)
        with pytest.raises(HostError, match="did not stop" if before == "its turn" else "no room"):
            bring(item, restart_on_change=True)
    assert each.live is not None
    assert not (place / "workloads/web/restart.json").exists()
    each.destroy()
    assert one(item, restart_on_change=True)["state"] == "stopped"


# -- One that is started meanwhile
@pytest.mark.parametrize("when", ["decided", "begun"])
def test_one_that_somebody_starts_is_not_removed(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    bring({**WEB, "state": "stopped"})
    owner, name = (guests.Batch, "see_again") if when == "decided" else (guest_disks, "leave")
    work = getattr(owner, name)

    def meanwhile(*args: t.Any) -> None:
        connection.domains["web"].createWithFlags(0)
        work(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, meanwhile)
        with pytest.raises(Refused, match="by somebody else a moment ago"):
            bring({"name": "web", "state": "absent", "delete_disks": True})
    assert connection.domains["web"].live is not None
    assert (place / "workloads/web/disks/vda.qcow2").exists()
    bring({"name": "web", "state": "absent"})
    assert connection.domains == {}


def test_one_that_ends_by_itself_is_removed_all_the_same(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    work = guests.Batch.see_again

    def meanwhile(*args: t.Any) -> None:
        connection.domains["web"].shutdown()
        work(*args)

    monkeypatch.setattr(guests.Batch, "see_again", meanwhile)
    bring({"name": "web", "state": "absent"})
    assert connection.domains == {}


@pytest.mark.parametrize("step", ["_define", "own"])
def test_one_whose_adoption_was_cut_off_is_not_ours_to_remove(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    foreign(connection)
    uuid = domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"]
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "disks": [{"size_mib": 1}], "state": "stopped"}
    cut_off(wanted, monkeypatch, step, adopt=True)
    for item in (wanted, {"name": "old", "state": "absent"}):
        with pytest.raises(Refused, match="not made by"):
            bring(item)
    bring(wanted, adopt=True)
    assert domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"] == uuid


def test_a_template_stays_while_a_disk_is_made_on_it(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template(place)
    make, refused = guest_disks.do, []

    def meanwhile(host: Host, work: guest_disks.Work) -> None:
        with pytest.raises(Refused, match="making disks of guest 'web'") as caught:
            templates.remove("debian")
        refused.append(caught.value)
        make(host, work)

    monkeypatch.setattr(guest_disks, "do", meanwhile)
    monkeypatch.setattr(libvirt, "available", lambda: False)
    disk = {"template": "debian"}
    bring({**WEB, "state": "stopped", "disks": [disk]})
    bring({**WEB, "state": "stopped", "disks": [disk, disk]})
    assert len(refused) == 2
    with pytest.raises(Refused, match="in use by guest web"):
        templates.remove("debian")


def test_a_disk_of_a_running_guest_is_not_made_again_when_taking_it_over_was_cut_off(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written to it."""
    foreign(connection)
    connection.domains["old"].createWithFlags(0)
    wanted = {"name": "old", "memory_mib": 256, "networks": [{}], "disks": [{"size_mib": 1}], "state": "present"}
    cut_off(wanted, monkeypatch, "own", adopt=True)
    before = (place / "workloads/old/disks/vda.qcow2").stat().st_ino
    assert one(wanted, adopt=True)["managed"]
    assert (place / "workloads/old/disks/vda.qcow2").stat().st_ino == before


def test_a_guest_that_somebody_changes_meanwhile_is_left_alone(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = guest_planning.Planner.decide

    def meanwhile(other: t.Callable[[], None]) -> None:
        def decide_slowly(self: guest_planning.Planner) -> list[guest_jobs.Job]:
            jobs = decide(self)
            other()
            return jobs

        monkeypatch.setattr(guest_planning.Planner, "decide", decide_slowly)

    def appears() -> None:
        connection.defineXML("<domain><name>web</name><memory>1024</memory></domain>")

    meanwhile(appears)
    with pytest.raises(Refused, match="a moment ago"):
        bring(WEB)
    assert not (place / "workloads/web").exists()
    connection.domains.clear()
    monkeypatch.setattr(guest_planning.Planner, "decide", decide)
    bring(WEB)

    def edited() -> None:
        each = connection.domains["web"]
        root = t.cast("t.Any", each.stored)
        each.stored = domain.patch(root, {**domain.parse(root), "description": "edited"})

    meanwhile(edited)
    with pytest.raises(Refused, match="a moment ago"):
        bring({**WEB, "memory_mib": 128})


def test_saved_memory_goes_on_with_what_it_was(connection: FakeConnection) -> None:
    bring(WEB)
    each = connection.domains["web"]
    saved = each.live
    bring({"name": "web", "state": "stopped"})

    def restore(flags: int) -> None:
        each.live, each.number = saved, fake_domains.RUNNING

    each.createWithFlags = restore  # type: ignore[method-assign]
    found = one({**WEB, "machine": "pc"})
    assert [reason["option"] for reason in found["restart_reasons"]] == ["machine"]


def test_nor_does_a_disk_grow_below_it(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    connection.domains["web"].saved = True
    for state in ("stopped", "running"):
        with pytest.raises(Refused, match="vda cannot grow: the guest was saved with its memory") as refused:
            bring({**WEB, "disks": [{"size_mib": 2}], "state": state})
        assert "virsh managedsave-remove web" in refused.value.hint
    # What it has later is no part of that.
    fake_domains.qcow2(place / "other.qcow2", 2**20)
    more = {"path": str(place / "other.qcow2"), "size_mib": 2}
    assert "grow disk vdb" in one({**WEB, "disks": [{"size_mib": 1}, more], "state": "stopped"})["actions"]


def test_a_start_that_fails_leaves_the_guest_defined(connection: FakeConnection) -> None:
    bring({**WEB, "state": "stopped"})
    connection.domains["web"].refuses["start"] = FakeError(errors.INTERNAL_ERROR, "process exited")
    with pytest.raises(HostError, match="process exited"):
        bring(WEB)
    del connection.domains["web"].refuses["start"]
    assert one(WEB)["actions"] == ["start"]


def test_a_domain_that_is_gone_is_made_again_with_its_disk(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    before = (place / "workloads/web/disks/vda.qcow2").stat().st_ino
    connection.domains.clear()
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert shown["state"] == "missing"
    assert one(WEB)["actions"] == ["create", "start with the host", "start"]
    assert (place / "workloads/web/disks/vda.qcow2").stat().st_ino == before


# -- cloud-init
def test_a_seed_is_made_and_made_again_when_the_data_change(connection: FakeConnection, place: Path) -> None:
    wanted = {**WEB, "cloud_init": {"user_data": {"packages": ["vim"]}}}
    bring(wanted)
    seed = place / "workloads/web/seed.iso"
    assert seed.exists()
    model = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    assert model["cdroms"] == {"sdb": {"path": str(seed), "bus": "scsi"}}
    assert not bring(wanted)["changed"]
    changed = {**wanted, "cloud_init": {"user_data": {"packages": ["emacs"]}}}
    found = one(changed)
    assert "write seed" in found["actions"]
    assert [each["option"] for each in found["restart_reasons"]] == ["cloud_init"]
    again = bring(changed)
    assert (again["changed"], again["guests"][0]["restart_required"]) == (False, True)
    assert "packages" not in (place / "workloads/web/definition.json").read_text()
    with pytest.raises(InputError, match="cloud_init"):
        bring({**wanted, "cloud_init": {"user_data": "#cloud-config\npackages: ["}})


def test_a_seed_that_is_not_wanted_goes_when_nothing_reads_it(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    found = one(WEB)
    assert "cloud_init" in [each["option"] for each in found["restart_reasons"]]
    assert (place / "workloads/web/seed.iso").exists()
    bring({"name": "web", "state": "stopped"})
    assert "remove seed" in one({**WEB, "state": "stopped"})["actions"]
    assert not (place / "workloads/web/seed.iso").exists()
    assert not bring({**WEB, "state": "stopped"})["changed"]


@pytest.mark.parametrize("more", [{"state": "stopped"}, {}])
def test_it_goes_with_the_stop_that_lets_go_of_it(place: Path, more: dict[str, t.Any]) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    assert "stop" in one({**WEB, **more}, restart_on_change=True)["actions"]
    assert not (place / "workloads/web/seed.iso").exists()
    assert not bring({**WEB, **more})["changed"]


def test_it_stays_as_long_as_something_names_it(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    bring({"name": "web", "state": "stopped"})
    connection.domains["web"].saved = True
    assert "remove seed" not in one({**WEB, "state": "stopped"})["actions"]
    connection.domains["web"].saved = False
    bring({**WEB, "state": "stopped", "cloud_init": {"user_data": {}}})
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
    with pytest.raises(HostError, match="define"):
        bring({**WEB, "state": "stopped"})
    assert (place / "workloads/web/seed.iso").exists()


# -- Screens, KVM
def test_two_screens_at_one_port(connection: FakeConnection) -> None:
    def at(name: str, port: t.Optional[int] = 5905, listen: str = "127.0.0.1", **more: t.Any) -> dict[str, t.Any]:
        return {**WEB, "name": name, "graphics": {"type": "vnc", "port": port, "listen": listen}, **more}

    for check_mode in (True, False):
        with pytest.raises(Refused, match="The port 5905 of the screen of guest 'web' is that of 'db', which is to be"):
            bring(at("web"), at("db", listen="0.0.0.0"), check_mode=check_mode)
    assert connection.calls == []
    bring(at("web"))
    for check_mode in (True, False):
        with pytest.raises(Refused, match="guest 'db' is that of 'web', which runs"):
            bring(at("db"), check_mode=check_mode)
    # At another address, or port, or as long as it is off, it is in nobody's way.
    bring(at("db", listen="192.0.2.1"), at("other", 5906), at("off", state="stopped"), at("none", None))
    with pytest.raises(Refused, match="guest 'off' is that of 'web', which runs"):
        bring({"name": "off", "state": "running"})
    # Nor is one that ends first.
    bring({"name": "web", "state": "stopped"}, {"name": "off", "state": "running"})
    # That libvirt has chosen it makes no difference.
    (live,) = t.cast("t.Any", connection.domains["none"].live).iter("graphics")
    live.set("port", "5907")
    with pytest.raises(Refused, match="guest 'new' is that of 'none', which runs"):
        bring(at("new", 5907))


def test_vnc_for_everybody_is_said(connection: FakeConnection) -> None:
    result = bring({**WEB, "graphics": {"type": "vnc", "listen": "0.0.0.0"}})
    assert len([warning for warning in result["warnings"] if "0.0.0.0" in warning]) == 2
    assert not any("screen" in warning for warning in bring({**WEB, "name": "db", "graphics": "vnc"})["warnings"])


def test_it_is_said_of_a_guest_that_is_started_by_its_name() -> None:
    start = {"name": "web", "state": "running"}
    bring({**WEB, "state": "stopped", "graphics": {"type": "vnc", "listen": "0.0.0.0", "password": "secret"}})
    (warning,) = [one for one in bring(start)["warnings"] if "screen" in one]
    assert "0.0.0.0" in warning
    assert bring(start)["warnings"] == [], "it runs already"


def test_a_second_screen_is_not_left_unseen(connection: FakeConnection) -> None:
    first = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>"
    foreign(connection, f"{first}<graphics type='vnc' port='5999' listen='0.0.0.0'/>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "graphics": "vnc"}
    taken = bring({**wanted, "state": "stopped"}, adopt=True)
    assert taken["diff"]["before"]["old"]["graphics"]["more"] == "vnc on 0.0.0.0"
    stored = t.cast("t.Any", connection.domains["old"].stored)
    assert [each.get("listen") for each in stored.findall("devices/graphics")] == ["127.0.0.1"]
    assert not bring({**wanted, "state": "stopped"})["changed"]
    # Somebody adds one later.
    stored.find("devices").append(xml.build(("graphics", {"type": "vnc", "listen": "0.0.0.0"})))
    (warning,) = [one for one in bring({"name": "old", "state": "running"})["warnings"] if "screen" in one]
    assert "vnc on 0.0.0.0" in warning
    running = bring(wanted)["guests"][0]
    assert [each["option"] for each in running["restart_reasons"]] == ["graphics"]


def test_a_password_is_that_of_the_screen_that_shows_something(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = {**WEB, "graphics": {"type": "vnc", "password": "before"}}
    bring(screen)
    for root in (connection.domains["web"].stored, connection.domains["web"].live):
        devices = t.cast("t.Any", root).find("devices")
        devices.insert(0, xml.build(("graphics", {"type": "egl-headless"})))
    updated: list[str] = []
    monkeypatch.setattr(connection.domains["web"], "updateDeviceFlags", lambda text, flags: updated.append(text))
    bring({**screen, "graphics": {"type": "vnc", "password": "after"}})
    assert [xml.parse(each).get("type") for each in updated] == ["vnc"]
    assert "egl-headless" in connection.domains["web"].XMLDesc(2)


def test_a_card_on_an_open_vswitch_bridge_is_taken_over(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = ["/sys/class/net/ovs0"]
    monkeypatch.setattr(os.path, "isdir", lambda path, real=os.path.isdir: path in devices or real(path))
    port = "<source bridge='ovs0'/><virtualport type='openvswitch'/><model type='virtio'/>"
    foreign(connection, f"<interface type='bridge'><mac address='52:54:00:00:00:78'/>{port}</interface>")
    switched = {"type": "bridge", "source": "ovs0"}
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}, switched]}
    bring(wanted, adopt=True)
    assert "openvswitch" in connection.domains["old"].XMLDesc(2)
    with pytest.raises(Missing, match="no bridge 'ovs0'"):
        bring({**wanted, "networks": [{}, switched, switched]})
    bring({"name": "old", "state": "stopped", "force_stop": True})
    devices.clear()
    with pytest.raises(Missing, match="no bridge 'ovs0'"):
        bring({"name": "old", "state": "running"})


def test_kvm_is_used_where_it_works(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="no /dev/kvm"):
        bring({**WEB, "accelerator": "kvm"})
    bring({**WEB, "state": "stopped"})
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    assert not bring({**WEB, "state": "stopped"})["changed"], "a guest that does not start stays as it is"
    found = one(WEB)
    assert found["type"] == "kvm"
    assert "change cpu" in found["actions"]
    assert one({**WEB, "name": "slow", "accelerator": "tcg"})["type"] == "tcg"


def test_nothing_is_said_of_kvm_that_was_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(WEB)
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    result = bring({**WEB, "machine": "pc"}, restart_on_change=True)
    assert (result["guests"][0]["restarted"], result["warnings"]) == (True, [])


def test_how_it_is_run_is_looked_at_when_its_state_alone_is_named(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, stop = {"name": "web", "state": "running"}, {"name": "web", "state": "stopped"}
    bring({**WEB, "state": "stopped"})
    assert bring(start)["warnings"] == [
        "Guest web is emulated, which is slow; KVM cannot be used: there is no /dev/kvm."
    ]
    assert bring(start)["warnings"] == []
    bring({**WEB, "state": "stopped", "accelerator": "tcg"})
    assert bring(start)["warnings"] == []
    bring(stop)
    with monkeypatch.context() as patch:
        patch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
        bring(WEB)
        bring(stop)
        assert bring(start)["warnings"] == []
        bring(stop)
    connection.calls.clear()
    for check_mode in (True, False):
        with pytest.raises(
            HostError, match="would run with KVM, which this host cannot: there is no /dev/kvm"
        ) as error:
            bring(start, check_mode=check_mode)
    assert "description" in error.value.hint
    assert connection.calls == []
    assert one(WEB)["type"] == "tcg"


def test_how_it_is_run_is_said_by_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(WEB)
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    found = one({**WEB, "accelerator": "kvm"})
    assert {each["option"] for each in found["restart_reasons"]} == {"accelerator", "cpu"}
    assert "change accelerator" in found["actions"]


# -- The helper
def record(place: Path, **more: t.Any) -> None:
    directory = place / "workloads/web"
    directory.mkdir(exist_ok=True)
    (directory / "owner.json").write_text(
        json.dumps({"kind": "guest", "owner": "me", "owner_name": "host1", "generation": 1, **more})
    )


def test_what_may_start(place: Path) -> None:
    guest_start.check_start("web")
    guest_start.check_start("no name of ours/../x")
    record(place)
    guest_start.check_start("web")
    record(place, claim=True)
    guest_start.check_start("web")
    record(place, owner="other", owner_name="host2")
    with pytest.raises(Refused, match="is at host2"):
        guest_start.check_start("web")
    record(place, owner="other", kind="container")
    guest_start.check_start("web")


def test_what_may_not_start_in_a_move(place: Path) -> None:
    record(place)
    journal = place / "workloads/web/move.json"
    journal.write_text(json.dumps({"role": "source"}))
    with pytest.raises(Refused, match="not finished"):
        guest_start.check_start("web")
    journal.write_text(json.dumps({"role": "source", "state": "begun"}))
    guest_start.check_start("web")
    # What came with the move is given up.
    active = {"role": "target", "kind": "guest", "state": "active", "peer": "host1"}
    journal.write_text(json.dumps(active))
    with pytest.raises(Refused, match="not finished"):
        guest_start.check_start("web")
    journal.write_text(json.dumps({**active, "anew": True}))
    guest_start.check_start("web")
    record(place, owner="other", owner_name="host2")
    with pytest.raises(Refused, match="is at host2"):
        guest_start.check_start("web")
    record(place)
    (place / "workloads/web/owner.json").write_text("{")
    journal.unlink()
    with pytest.raises(HostError):
        guest_start.check_start("web")


def test_what_arrives_starts_once(place: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    record(place, owner="other")
    owner, journal = place / "workloads/web/owner.json", place / "workloads/web/move.json"
    arriving = {"role": "target", "kind": "guest", "state": "receiving", "boot_id": boot, "peer": "host1"}
    for before in (True, False):
        if not before:
            owner.unlink()
        journal.write_text(json.dumps(arriving))
        guest_start.check_start("web")
        for more in ({"state": "prepared"}, {"boot_id": "before"}):
            journal.write_text(json.dumps({**arriving, **more}))
            with pytest.raises(Refused, match="is at host1" if not before else "not started here"):
                guest_start.check_start("web")


def test_the_command(place: Path) -> None:
    record(place, owner="other", owner_name="host2")
    command = guest_start.commands()["guest"]
    host = Host(run=fake_domains.run)
    with pytest.raises(Refused):
        command(["may-start", "web"], host)
    assert command(["may-start", "db"], host) == 0
    for words in ([], ["may-start"], ["stop", "web"]):
        with pytest.raises(InputError, match="Usage"):
            command(words, host)


# -- Snapshots
def snap(name: str, state: str = "present", guest: str = "web", **more: t.Any) -> dict[str, t.Any]:
    host = Host(run=fake_domains.run)
    return t.cast("dict[str, t.Any]", guest_snapshots.bring_to(host, [guest], name, state, **more)["guests"][0])


def top(connection: FakeConnection) -> str:
    return str(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]["path"])


def test_a_snapshot_of_a_running_guest(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    assert snap("one", check_mode=True)["snapshots"] == []
    made = snap("one", description="before")
    assert made["actions"] == ["create one"]
    assert [(each["name"], each["current"], each["description"]) for each in made["snapshots"]] == [
        ("one", True, "before")
    ]
    assert top(connection) == f"{place}/workloads/web/disks/vda-1.qcow2"
    assert not snap("one")["changed"]
    again = bring(WEB)
    assert not again["changed"], "above a snapshot a guest is as it was described"
    assert again["guests"][0]["snapshots"] == ["one"]


def test_above_a_snapshot_it_is_made_again_when_libvirt_has_lost_it(connection: FakeConnection, place: Path) -> None:
    """On the file that it has written to since, not on the one below."""
    bring(WEB)
    snap("one")
    del connection.domains["web"]
    assert bring(WEB)["changed"]
    assert top(connection) == f"{place}/workloads/web/disks/vda-1.qcow2"


def test_nor_is_it_guessed_which_file_is_the_newest(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    record = {"snapshots": [], "files": {}, "tops": {}, "gone": [], "pending": {"x": 1}}
    monkeypatch.setattr(snapshot_records, "load", lambda name: record)
    del connection.domains["web"]
    with pytest.raises(Refused, match="in which file its newest state is nobody knows"):
        bring(WEB)
    assert "web" not in connection.domains


def test_a_snapshot_that_somebody_has_made_by_other_means_is_not_undone(
    connection: FakeConnection, place: Path
) -> None:
    """What the guest has written since is in that file."""
    bring({**WEB, "state": "stopped"})
    path = f"{place}/workloads/web/disks/vda.qcow2"
    fake_domains.qcow2(Path(f"{path}.backup"), 2**20)
    text = xml.document(t.cast("t.Any", connection.domains["web"].stored))
    connection.domains["web"].stored = xml.parse(text.replace(f'"{path}"', f'"{path}.backup"'))
    for state in ("stopped", "running"):
        with pytest.raises(Refused, match=r"libvirt has .*vda.qcow2.backup for it, and not .*vda.qcow2\.") as caught:
            bring({**WEB, "state": state})
        assert "blockcommit" in caught.value.hint
    assert top(connection) == f"{path}.backup"


def by_other_means(connection: FakeConnection, place: Path) -> str:
    """A snapshot such as virsh makes, of which nobody tells us; the file in which the guest goes on."""
    each, made = connection.domains["web"], f"{place}/workloads/web/disks/by-virsh.qcow2"
    if each.isActive():
        disk = f'<disk name="vda" snapshot="external"><source file="{made}"/></disk>'
        each.snapshotCreateXML(f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>", 0)
    else:
        fake_domains.qcow2(Path(made), 2**20, top(connection), "qcow2")
        each.stored = xml.parse(each.XMLDesc(2).replace(f'"{top(connection)}"', f'"{made}"', 1))
    assert top(connection) == made
    return made


@pytest.mark.parametrize("power", ["running", "stopped"])
@pytest.mark.parametrize(
    ("name", "state"),
    [("two", "present"), ("one", "present"), ("one", "reverted"), ("one", "absent"), ("two", "absent")],
)
def test_above_a_snapshot_by_other_means_none_of_ours_is_touched(
    connection: FakeConnection, place: Path, power: str, name: str, state: str
) -> None:
    bring({**WEB, "state": power})
    snap("one")
    ours = top(connection)
    made = by_other_means(connection, place)
    before = (place / "workloads/web/snapshots.json").read_text(), sorted(os.listdir(place / "workloads/web/disks"))
    connection.calls.clear()
    for check_mode in (True, False):
        with pytest.raises(Refused, match=f"web: disks: vda: libvirt has {made} for it, and not {ours}") as caught:
            snap(name, state, check_mode=check_mode)
        assert f"virsh blockcommit web vda --base {ours} --active" in caught.value.hint
    assert connection.calls == []
    after = (place / "workloads/web/snapshots.json").read_text(), sorted(os.listdir(place / "workloads/web/disks"))
    assert after == before
    assert top(connection) == made


def test_nor_is_what_a_run_that_was_cut_off_has_made_below_it(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    made_and_killed("two", connection, monkeypatch)
    by_other_means(connection, place)
    for state in ("present", "absent"):
        with pytest.raises(Refused, match="by-virsh"):
            snap("two", state)
    assert sorted(os.listdir(place / "workloads/web/disks")) == [
        "by-virsh.qcow2", "vda-1.qcow2", "vda-2.qcow2", "vda.qcow2",
    ]  # fmt: skip


def test_a_disk_that_is_in_no_snapshot_is_where_the_guest_has_it(connection: FakeConnection, place: Path) -> None:
    off = {**WEB, "state": "stopped"}
    bring(off)
    snap("one")
    bring({**off, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    snap("one", "reverted")
    (place / "workloads/web/disks/vdb.qcow2").rename(place / "moved.qcow2")
    bring({**off, "disks": [{"size_mib": 1}, {"path": str(place / "moved.qcow2")}]})
    frozen = {each["name"]: each["path"] for each in snap("two")["snapshots"][1]["disks"]}
    assert frozen["vdb"] == str(place / "moved.qcow2")


def test_what_a_snapshot_that_is_there_lacks_is_said(connection: FakeConnection, place: Path) -> None:
    """It cannot be given to it any more, and who goes back to it would miss it."""

    def told(**more: t.Any) -> list[str]:
        host = Host(run=fake_domains.run)
        found = guest_snapshots.bring_to(host, ["web"], "one", "present", **more)
        assert not found["changed"]
        return t.cast("list[str]", found["warnings"])

    bring(WEB)
    snap("one", description="before")
    assert told() == told(description="before") == []
    for check_mode in (True, False):
        (said,) = told(description="after", quiesce=True, memory=True, check_mode=check_mode)
        assert said.startswith("guests: web: the snapshot 'one' is there already and stays as it was made (memory:")
        assert "quiesce: the guest's file systems were not" in said
        assert "description: it has 'before'" in said
    (said,) = told(memory=True)
    assert "quiesce" not in said


def test_one_that_has_its_memory_lacks_nothing(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    host = Host(run=fake_domains.run)
    for dummy in range(2):
        assert guest_snapshots.bring_to(host, ["web"], "one", "present", memory=True)["warnings"] == []


def test_a_snapshot_of_a_stopped_guest_and_back(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    snap("two")
    assert top(connection).endswith("vda-2.qcow2")
    snap("one", "reverted")
    assert top(connection).endswith("vda-3.qcow2")
    assert sorted(os.listdir(place / "workloads/web/disks")) == [
        "vda-1.qcow2", "vda-3.qcow2", "vda.qcow2",
    ]  # fmt: skip
    with pytest.raises(Refused, match="part"):
        snap("one", "absent", check_mode=True)
    snap("two", "absent")
    snap("one", "absent")
    assert top(connection).endswith("vda.qcow2")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]
    assert not (place / "workloads/web/snapshots.json").exists()
    assert not snap("one", "absent")["changed"]
    assert not bring({**WEB, "state": "stopped"})["changed"]


def test_a_disk_that_came_after_the_first_snapshot(connection: FakeConnection, place: Path) -> None:
    off = {**WEB, "state": "stopped"}
    more = {**off, "disks": [{"size_mib": 1}, {"size_mib": 1}]}
    bring(off)
    snap("one")
    bring(more)
    assert [each["name"] for each in snap("two")["snapshots"][1]["disks"]] == ["vda", "vdb"], "no disk is left out"
    assert not bring(more)["changed"]
    with pytest.raises(Refused, match="the disk vdb has snapshots"):
        bring(off)
    snap("one", "reverted")
    assert sorted(os.listdir(place / "workloads/web/disks")) == [
        "vda-1.qcow2", "vda-3.qcow2", "vda.qcow2", "vdb-2.qcow2", "vdb.qcow2",
    ]  # fmt: skip
    assert not bring(more)["changed"]
    snap("two", "absent")
    assert one(off)["actions"] == ["change disks.vdb"], "it is in no snapshot any more"
    assert [each["name"] for each in snap("three")["snapshots"][1]["disks"]] == ["vda"]
    snap("three", "absent")
    snap("one", "absent")
    assert not (place / "workloads/web/snapshots.json").exists()


def test_disks_that_wait_for_a_restart_are_in_the_way_of_a_snapshot(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1, "bus": "sata"}]})
    with pytest.raises(Refused, match=r"other disks than it is to have \(sdc\)"):
        snap("one")
    # The overlay would rest on the file that it has, and be said to rest on the other one.
    fake_domains.qcow2(place / "other.qcow2", 2**20)
    bring({**WEB, "disks": [{"path": str(place / "other.qcow2")}]})
    with pytest.raises(Refused, match=r"other disks than it is to have \(vda\)"):
        snap("one")


def test_what_cannot_be_merged_is_said_before_any_is(connection: FakeConnection) -> None:
    off = {**WEB, "state": "stopped"}
    bring(off, {**off, "name": "db"})
    host = Host(run=fake_domains.run)
    for name, state in (("one", "present"), ("two", "present"), ("one", "reverted")):
        guest_snapshots.bring_to(host, ["web"], name, state)
    guest_snapshots.bring_to(host, ["db"], "one", "present")
    for check_mode in (True, False):
        with pytest.raises(Refused, match="part"):
            guest_snapshots.bring_to(host, ["db", "web"], "one", "absent", check_mode=check_mode)
    assert snapshots.names(snapshot_records.load("db")) == ["one"]


def test_going_back_starts_a_running_guest_again(connection: FakeConnection) -> None:
    bring(WEB)
    snap("one")
    connection.calls.clear()
    snap("one", "reverted")
    assert [call.split()[0] for call in connection.calls] == ["destroy", "define", "start"]


def meanwhile(monkeypatch: pytest.MonkeyPatch, owner: t.Any, name: str, does: t.Callable[[], object]) -> None:
    """Somebody else ``does`` something once, while ``owner.name`` is at work."""
    real, todo = getattr(owner, name), [does]

    def slow(*args: t.Any, **words: t.Any) -> t.Any:
        result = real(*args, **words)
        while todo:
            todo.pop()()
        return result

    monkeypatch.setattr(owner, name, slow)


def test_a_guest_that_was_started_while_others_were_worked_on_runs(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {**WEB, "state": "stopped"}
    bring(off, {**off, "name": "db"})
    web, host = connection.domains["web"], Host(run=fake_domains.run)

    def both(name: str, state: str, method: str) -> list[str]:
        with monkeypatch.context() as patch:
            meanwhile(patch, guest_snapshots.Work, method, lambda: web.createWithFlags(0))
            connection.calls.clear()
            guest_snapshots.bring_to(host, ["db", "web"], name, state)
        return [call.split()[0] for call in connection.calls if call.split()[1] == "web"]

    assert both("one", "present", "create") == ["start", "snapshot", "define"]
    web.shutdown()
    assert both("one", "reverted", "revert") == ["start", "destroy", "define", "start"]
    web.shutdown()
    assert both("one", "absent", "remove") == ["start", "merge", "pivot", "define"]
    assert snapshots.names(snapshot_records.load("web")) == []


@pytest.mark.parametrize("state", ["present", "reverted"])
@pytest.mark.parametrize("at", [(disks, "create_overlay"), (guest_snapshots.Work, "_reread")])
def test_one_that_was_started_meanwhile_keeps_its_disks(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str, at: tuple[t.Any, str]
) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    files_before, was = os.listdir(place / "workloads/web/disks"), top(connection)
    with monkeypatch.context() as patch:
        meanwhile(patch, *at, lambda: connection.domains["web"].createWithFlags(0))
        with pytest.raises(Refused, match="Guest 'web' was started by somebody else"):
            snap("two" if state == "present" else "one", state)
    assert top(connection) == was
    assert connection.domains["web"].isActive()
    snap("three")
    assert {*files_before, Path(top(connection)).name} == set(os.listdir(place / "workloads/web/disks"))


def test_a_merge_of_one_that_was_started_meanwhile_is_finished_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    with monkeypatch.context() as patch:
        meanwhile(patch, disks, "run", lambda: connection.domains["web"].createWithFlags(0))
        with pytest.raises(Refused, match="Guest 'web' was started by somebody else"):
            snap("one", "absent")
    assert top(connection).endswith("vda-1.qcow2")
    assert sorted(os.listdir(place / "workloads/web/disks")) == ["vda-1.qcow2", "vda.qcow2"]
    snap("one", "absent")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]


def test_one_that_has_ended_while_it_was_to_be_turned_off(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    each = connection.domains["web"]

    def saved() -> None:
        each._end()
        each.saved = True
        each.refuses["destroy"] = FakeError(errors.OPERATION_INVALID, "domain is not running")

    meanwhile(monkeypatch, disks, "create_overlay", saved)
    assert snap("one", "reverted")["changed"]
    assert (each.saved, each.isActive()) == (False, 1)


def test_nor_is_what_somebody_has_made_meanwhile_left_out(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    meanwhile(monkeypatch, disks, "create_overlay", lambda: by_other_means(connection, place))
    with pytest.raises(Refused, match="by-virsh"):
        snap("two")
    assert top(connection).endswith("by-virsh.qcow2")


def test_saved_memory_fits_no_other_disks(connection: FakeConnection) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    connection.domains["web"].saved = True
    for name, state in (("two", "present"), ("one", "absent")):
        with pytest.raises(Refused, match="saved with its memory") as refused:
            snap(name, state, check_mode=True)
        assert "virsh managedsave-remove web" in refused.value.hint
    assert not snap("one")["changed"]
    assert not snap("two", "absent")["changed"]
    connection.calls.clear()
    snap("one", "reverted")
    assert connection.calls == ["unsave web", "define web"]


def test_what_a_run_that_was_cut_off_has_left_is_settled(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "state": "stopped"})
    keep = guest_snapshots.Work._keep

    def cut_at_its_end(work: guest_snapshots.Work, after: dict[str, t.Any], *gone: t.Any) -> None:
        return cut() if after["snapshots"] else keep(work, after, *gone)

    for method, instead in (("_define", cut), ("_keep", cut_at_its_end)):
        with monkeypatch.context() as patch:
            patch.setattr(guest_snapshots.Work, method, instead)
            patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
            with pytest.raises(Killed):
                snap(f"after{method}")
        assert not bring({**WEB, "state": "stopped"})["changed"]
    # The XML of the second was written: it is there, and the next one is above it.
    assert top(connection).endswith("vda-1.qcow2")
    assert [each["name"] for each in snap("three")["snapshots"]] == ["after_keep", "three"]


def made_and_killed(name: str, connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, **more: t.Any) -> None:
    """A snapshot that libvirt has made, by a run that was killed before it could write that down."""
    each = connection.domains["web"]
    make = each.snapshotCreateXML

    def killed(text: str, flags: int) -> t.NoReturn:
        make(text, flags)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(each, "snapshotCreateXML", killed)
        patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
        with pytest.raises(Killed):
            snap(name, **more)


def test_a_snapshot_whose_run_was_killed_is_there(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    made_and_killed("one", connection, monkeypatch)
    before = (place / "workloads/web/snapshots.json").read_text()
    assert bring(WEB)["guests"][0]["snapshots"] == ["one"], "a move is refused for it"
    for state, done in (("present", []), ("reverted", ["revert one"]), ("absent", ["remove one"])):
        found = snap("one", state, check_mode=True)
        assert (found["actions"], [each["name"] for each in found["snapshots"]]) == (done, ["one"])
    assert (place / "workloads/web/snapshots.json").read_text() == before
    assert not snap("one")["changed"]
    record = json.loads((place / "workloads/web/snapshots.json").read_text())
    assert (snapshots.names(record), record["pending"]) == (["one"], None)
    snap("one", "absent")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]


def test_what_a_killed_run_has_left_goes_also_when_nothing_is_to_do(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    memory = place / "workloads/web/disks/memory-1.save"

    def half(text: str, flags: int) -> t.NoReturn:
        memory.write_text("half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(connection.domains["web"], "snapshotCreateXML", half)
        patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
        with pytest.raises(Killed):
            snap("one", memory=True)
    snap("one", "absent", check_mode=True)
    assert memory.exists()
    assert not snap("one", "absent")["changed"]
    assert not memory.exists()
    assert not (place / "workloads/web/snapshots.json").exists()


@pytest.mark.parametrize("state", ["present", "absent"])
def test_what_libvirt_is_still_at_work_on_is_left_alone(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    bring(WEB)
    each = connection.domains["web"]
    made_and_killed("one", connection, monkeypatch, memory=True)
    before = (place / "workloads/web/snapshots.json").read_text()
    memory = place / "workloads/web/disks/memory-1.save"
    memory.write_text("half of it")
    each.job = 2
    with pytest.raises(Refused, match="still at work on a snapshot of guest 'web'"):
        snap("one", state)
    assert memory.exists()
    assert (place / "workloads/web/snapshots.json").read_text() == before
    each.job = 0
    assert snap("one")["snapshots"][0]["memory"]
    # Any other job is libvirt's to refuse.
    each.job = 2
    assert not snap("one")["changed"]


def test_a_snapshot_that_is_half_merged_is_not_gone_back_to(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "disks": [{"size_mib": 1}, {"size_mib": 1}]})
    snap("one")
    each = connection.domains["web"]
    commit = each.blockCommit
    for cut_at in ("vda", "vdb"):
        with monkeypatch.context() as patch:

            def commit_until(disk: str, *more: t.Any, at: str = cut_at) -> None:
                return cut() if disk == at else commit(disk, *more)

            patch.setattr(each, "blockCommit", commit_until)
            with pytest.raises(Killed):
                snap("one", "absent")
        for state in ("present", "reverted"):
            with pytest.raises(Refused, match="the snapshot 'one' of guest 'web' is being merged away") as caught:
                snap("one", state)
            assert "state: absent" in caught.value.hint
    snap("one", "absent")
    assert sorted(os.listdir(place / "workloads/web/disks")) == ["vda.qcow2", "vdb.qcow2"]
    assert snap("one")["changed"]


def test_going_back_without_room_leaves_a_guest_as_it_is(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    before = (place / "workloads/web/snapshots.json").read_text()
    connection.calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(disks, "create_overlay", lambda *args, **words: full())
        with pytest.raises(HostError, match="no room"):
            snap("one", "reverted")
    assert connection.calls == []
    assert (place / "workloads/web/snapshots.json").read_text() == before
    assert sorted(os.listdir(place / "workloads/web/disks")) == ["vda-1.qcow2", "vda.qcow2"]


def full() -> t.NoReturn:
    raise HostError("There is no room left.")


@pytest.mark.parametrize("where", ["destroy", "defineXML", "_reread", "start"])
def test_a_guest_that_was_turned_off_to_go_back_is_started_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    bring(WEB)
    snap("one")
    each = connection.domains["web"]
    with monkeypatch.context() as patch:
        if where == "_reread":
            patch.setattr(guest_snapshots.Work, where, cut)
        elif where == "start":
            patch.setattr(each, "createWithFlags", cut)
        else:

            def off(*args: t.Any) -> None:
                each._end()
                raise Killed

            patch.setattr(connection if where == "defineXML" else each, where, off)
        with pytest.raises(Killed):
            snap("one", "reverted")
    assert each.isActive() == 0
    snap("one", "reverted")
    assert each.isActive() == 1
    (top_now,) = set(os.listdir(place / "workloads/web/disks")) - {"vda.qcow2"}
    assert top(connection).endswith(top_now), "nothing is left of the one that was cut off"
    each.shutdown()
    snap("one", "reverted")
    assert each.isActive() == 0, "what it was then is forgotten"


def test_one_that_was_not_started_again_is_stopped_from_the_next_snapshot_on(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    with monkeypatch.context() as patch:
        patch.setattr(connection.domains["web"], "createWithFlags", cut)
        with pytest.raises(Killed):
            snap("one", "reverted")
    snap("two")
    snap("one", "reverted")
    assert connection.domains["web"].isActive() == 0


def test_one_that_somebody_has_started_and_shut_down_since_is_stopped(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    each = connection.domains["web"]
    with monkeypatch.context() as patch:
        patch.setattr(each, "createWithFlags", cut)
        with pytest.raises(Killed):
            snap("one", "reverted")
    each.createWithFlags(0)
    each.shutdown()
    snap("one", "reverted")
    assert each.isActive() == 0


@pytest.mark.parametrize("state", ["reverted", "absent"])
def test_what_nothing_needs_is_removed_by_the_next_run(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    snap("two")
    with monkeypatch.context() as patch:
        real = files.remove_file

        def remove(path: str, **words: t.Any) -> bool:
            # Where an overlay is to be made nothing lies yet.
            return cut() if "/disks/" in path and os.path.exists(path) else real(path, **words)

        patch.setattr(files, "remove_file", remove)
        with pytest.raises(Killed):
            snap("one", state)
    snap("three")
    there = {f"{place}/workloads/web/disks/{name}" for name in os.listdir(place / "workloads/web/disks")}
    record = json.loads((place / "workloads/web/snapshots.json").read_text())
    assert there == set(record["files"])
    assert "gone" not in record


def test_a_snapshot_that_was_not_begun_leaves_nothing(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "state": "stopped"})
    snap("one")
    with monkeypatch.context() as patch:
        patch.setattr(guest_snapshots.Work, "_define", cut)
        patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
        with pytest.raises(Killed):
            snap("two")
    snap("one", "absent")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]


def test_no_snapshot_takes_the_place_of_a_file(connection: FakeConnection, place: Path) -> None:
    """The disk itself, another disk of the guest or a file of somebody may be called as an overlay would be."""
    home = place / "workloads/web/disks"
    home.mkdir(parents=True)
    for name in ("vda-1.qcow2", "vdb-2.qcow2"):
        fake_domains.qcow2(home / name, 2**20)
    (home / "vda-4.qcow2").write_text("mine")
    (home / "memory-6.save").write_text("mine, too")
    given = {name: (home / name).stat().st_ino for name in os.listdir(home)}
    two = [{"path": str(home / name)} for name in ("vda-1.qcow2", "vdb-2.qcow2")]
    bring({**WEB, "state": "stopped", "disks": two})
    for name in ("one", "two"):
        snap(name)
    assert top(connection).endswith("vda-5.qcow2")
    snap("one", "reverted")
    assert top(connection).endswith("vda-7.qcow2")
    for name in ("two", "one"):
        snap(name, "absent")
    assert top(connection).endswith("vda-1.qcow2")
    assert {name: (home / name).stat().st_ino for name in os.listdir(home)} == given


def test_nor_does_one_of_a_running_guest(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    mine = place / "workloads/web/disks/vda-1.qcow2"
    mine.write_text("mine")
    snap("one")
    assert (top(connection)[-11:], mine.read_text()) == ("vda-2.qcow2", "mine")
    connection.domains["web"].refuses["snapshot"] = FakeError(errors.OPERATION_FAILED, "no")
    with pytest.raises(HostError):
        snap("two")
    assert sorted(os.listdir(mine.parent)) == ["vda-1.qcow2", "vda-2.qcow2", "vda.qcow2"]


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_what_a_snapshot_that_was_cut_off_has_left_makes_room_for_the_next(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    bring({**WEB, "state": state})
    home = place / "workloads/web/disks"

    def half(text: str, flags: int) -> t.NoReturn:
        fake_domains.qcow2(home / "vda-1.qcow2", 2**20)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(connection.domains["web"], "snapshotCreateXML", half)
        patch.setattr(guest_snapshots.Work, "_define", cut)
        patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
        with pytest.raises(Killed):
            snap("one")
    left = (home / "vda-1.qcow2").stat().st_ino
    (home / "kept").hardlink_to(home / "vda-1.qcow2")
    snap("one")
    assert top(connection).endswith("vda-1.qcow2")
    assert (home / "vda-1.qcow2").stat().st_ino != left
    assert sorted(os.listdir(home)) == ["kept", "vda-1.qcow2", "vda.qcow2"]


def test_nor_does_the_file_of_a_disk_go_that_was_taken_away_since(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that was cut off was to rest on it, and no guest has it any more."""
    two = [{"size_mib": 1}, {"size_mib": 1}]
    bring({**WEB, "state": "stopped", "disks": two})
    with monkeypatch.context() as patch:
        patch.setattr(guest_snapshots.Work, "_define", cut)
        patch.setattr(guest_snapshots.Work, "_back", lambda *args: None)
        with pytest.raises(Killed):
            snap("one")
    bring({**WEB, "state": "stopped", "disks": two[:1]})
    snap("one")
    assert sorted(os.listdir(place / "workloads/web/disks")) == ["vda-1.qcow2", "vda.qcow2", "vdb.qcow2"]


def test_a_merge_of_a_guest_that_goes_on_writing(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    snap("one")
    connection.calls.clear()
    snap("one", "absent")
    assert [call.split()[0] for call in connection.calls] == ["merge", "pivot", "define"]
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]


def test_a_merge_that_does_not_end_is_given_up(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB)
    snap("one")
    each = connection.domains["web"]
    each.catches_up = False
    monkeypatch.setattr(time, "monotonic", iter(range(0, 10**6, 2)).__next__)
    monkeypatch.setattr(guest_snapshots, "_POLL_S", 0)
    with pytest.raises(HostError, match="vda of guest 'web' was not merged within 5 s") as caught:
        snap("one", "absent", timeout_s="5")
    assert "timeout_s" in caught.value.hint
    assert connection.calls[-1] == "abort web vda"
    assert top(connection).endswith("vda-1.qcow2")
    assert (place / "workloads/web/disks/vda-1.qcow2").exists()
    each.catches_up = True
    snap("one", "absent")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]
    with pytest.raises(InputError, match="timeout_s"):
        snap("two", timeout_s=0)


def test_a_snapshot_that_fails_leaves_nothing(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    connection.domains["web"].refuses["snapshot"] = FakeError(errors.OPERATION_FAILED, "no")
    with pytest.raises(HostError):
        snap("one")
    assert os.listdir(place / "workloads/web/disks") == ["vda.qcow2"]
    assert not (place / "workloads/web/snapshots.json").exists()


def test_snapshots_that_cannot_be_had(connection: FakeConnection, place: Path) -> None:
    with pytest.raises(InputError, match="no guest"):
        snap("one")
    foreign(connection)
    with pytest.raises(InputError, match="no guest"):
        guest_snapshots.bring_to(Host(run=fake_domains.run), ["old"], "one", "present")
    bring({**WEB, "state": "stopped"})
    with pytest.raises(InputError, match="has no snapshot"):
        snap("one", "reverted")
    for option in ("quiesce", "memory"):
        with pytest.raises(InputError, match=f"{option}: guest 'web' does not run"):
            snap("one", quiesce=option == "quiesce", memory=option == "memory")
    bring(WEB)
    with pytest.raises(HostError, match="agent"):
        snap("one", quiesce=True)
    for check_mode in (True, False):
        # libvirt quiesces what has disks only.
        with pytest.raises(InputError, match="quiesce: the snapshot 'one' of guest 'web' is to have its memory"):
            snap("one", quiesce=True, memory=True, check_mode=check_mode)
    for bad in ("../x", 7, "", "a b"):
        with pytest.raises(InputError, match="name"):
            snap(bad)  # type: ignore[arg-type]


# -- Waiting
def test_waiting_ends_with_a_reason(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp", dict)
    with pytest.raises(HostError, match="no address of it was seen after 1 s"):
        bring({**WEB, "wait_for": {"address": True, "timeout_s": 1}})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    monkeypatch.setattr(guest_watch, "_arp", lambda: {mac: ["192.0.2.9"]})
    found = one({**WEB, "wait_for": {"address": True, "timeout_s": 1}})
    assert (found["address"], found["address_source"], found["changed"]) == ("192.0.2.9", "arp", False)
    monkeypatch.setattr(guest_watch, "speaks_ssh", lambda address: False)
    with pytest.raises(HostError, match="no SSH server greets at"):
        bring({**WEB, "wait_for": {"ssh": True, "timeout_s": 1}})


@pytest.fixture
def leases(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, t.Any]]:
    """Those of the network default. Nothing is known by ARP."""
    found: list[dict[str, t.Any]] = []
    network = connection.networkLookupByName("default")
    network.DHCPLeases = lambda: [dict(each) for each in found]
    monkeypatch.setattr(connection, "networkLookupByName", lambda name: network)
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp_table", lambda: "")
    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    return found


def test_a_lease_from_before_it_was_started_is_no_address(
    connection: FakeConnection, leases: list[dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = {"name": "web", "state": "running", "wait_for": {"address": True, "timeout_s": 1}}
    bring({**WEB, "state": "stopped"})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    leases.append({"mac": mac, "ipaddr": "192.168.122.9", "expirytime": 2**40})
    with pytest.raises(HostError, match="no address of it was seen"):
        bring(waited)
    # It was not started by this call: what is there will do.
    assert one(waited)["address"] == "192.168.122.9"
    bring({"name": "web", "state": "stopped"})
    start = fake_domains.FakeDomain.createWithFlags

    def renew(each: t.Any, flags: int) -> None:
        start(each, flags)
        leases[0]["expirytime"] += 1

    with monkeypatch.context() as patch:
        patch.setattr(fake_domains.FakeDomain, "createWithFlags", renew)
        found = one(waited)
    assert (found["address"], found["address_source"]) == ("192.168.122.9", "lease")
    # Another guest with that MAC, which was there before.
    bring({"name": "web", "state": "absent", "delete_disks": True})
    with pytest.raises(HostError, match="no address of it was seen"):
        bring({**WEB, **waited})


def test_whoever_answers_at_an_old_lease_is_up(
    connection: FakeConnection, leases: list[dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has forgotten who was there; whoever goes on with a lease that has no end is asked."""
    bring({**WEB, "state": "stopped"})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    leases.append({"mac": mac, "ipaddr": "192.168.122.9", "expirytime": 0})
    entries = [f"192.168.122.9 0x1 0x2 {mac} * virbr0", "192.168.122.8 0x1 0x2 52:54:00:00:00:77 * virbr0"]
    monkeypatch.setattr(guest_watch, "_arp_table", lambda: "\n".join(["IP address", *entries]))
    said: list[str] = []

    def run(argv: t.Sequence[str], *, stdin: t.Optional[str] = None, **kwargs: t.Any) -> t.Any:
        if argv[0] != "ip":
            return fake_domains.run(argv, **kwargs)
        said.append(f"{' '.join(argv)} < {stdin}")
        del entries[0]
        return None

    monkeypatch.setattr(
        guest_watch, "poke", lambda wanted: entries.extend(f"{each} 0x1 0x2 {mac} * virbr0" for each in wanted)
    )
    waited = {"name": "web", "state": "running", "wait_for": {"address": True, "timeout_s": 1}}
    result = guests.bring_to(Host(run=run), [waited])
    assert said == ["ip -force -batch - < neigh del 192.168.122.9 dev virbr0\n"]
    found = result["guests"][0]
    assert (found["address"], found["address_source"]) == ("192.168.122.9", "arp")


def test_one_whose_state_alone_is_named_is_asked_for_at_its_address(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": {}}})
    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    bring({**WEB, "networks": [{"type": "overlay", "address": "10.100.101.30"}]})
    poked: list[str] = []
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp", dict)
    monkeypatch.setattr(guest_watch, "poke", poked.extend)
    with pytest.raises(HostError, match="no address of it was seen"):
        bring({"name": "web", "wait_for": {"address": True, "timeout_s": 1}})
    assert set(poked) == {"10.100.101.30"}


def test_cloud_init_is_done_by_what_the_console_says(place: Path, connection: FakeConnection) -> None:
    bring({**WEB, "serial": "log"})
    each = connection.domains["web"]
    subject = guest_watch.Subject("web", each, t.cast("t.Any", each.live))
    log = Path(paths.guest_log("web"))
    assert guest_watch.cloud_init_done(subject) is None
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("[   3.1] cloud-init[500]: Cloud-init v. 24.4 running 'modules:final'\n")
    assert guest_watch.cloud_init_done(subject) is None
    log.write_text("x\nCloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.\n")
    assert guest_watch.cloud_init_done(subject) == []
    with open(log, "a", encoding="utf-8") as file:
        file.write("Cloud-init v. 24.4 running 'init-local' at Sat, 21 Nov 2026 11:00:00 +0000. Up 5.1 seconds.\n")
    assert guest_watch.cloud_init_done(subject) is None, "it was booted again since"
    log.write_text("x\nCloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.\n")
    guest_watch.mark_log("web")
    assert guest_watch.cloud_init_done(subject) is None, "what an earlier run has said is no news"
    assert guest_watch.last_words("web") == [
        "x", "Cloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.",
    ]  # fmt: skip


@pytest.mark.parametrize("lost", ["moved", "talkative"])
def test_that_cloud_init_is_done_is_known_without_its_words(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The log stays on the host that it was written on, and is not read from its beginning."""
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_LOG_TAIL", 1000)
    waited = {**WEB, "serial": "log", "wait_for": {"cloud_init": True, "timeout_s": 1}}
    bring({**WEB, "serial": "log"})
    log = Path(paths.guest_log("web"))
    log.write_text("Cloud-init v. 24.4 finished at Mon, 01 Jan. Up 9.5 seconds\n")
    assert not bring(waited)["changed"]
    if lost == "moved":
        log.unlink()
    else:
        log.write_text(log.read_text() + "web login:\n" * 200)
    connection.calls.clear()
    assert (bring(waited)["changed"], connection.calls) == (False, [])
    # Not by those that boot again.
    bring({"name": "web", "state": "stopped"})
    with pytest.raises(HostError, match="cloud-init has not said"):
        bring(waited)


def test_who_we_are() -> None:
    assert ownership.host_identity()["name"] == "host1"


def test_check_mode_where_libvirt_is_still_to_be_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what would change. Where there are records of guests it has to answer."""
    monkeypatch.setattr(libvirt, "available", lambda: False)
    found = bring(WEB, check_mode=True)
    assert (found["changed"], found["guests"]) == (True, [])
    assert "This host has no libvirt. Unless a task before installs it, this fails" in found["warnings"][0]
    assert not bring({"name": "web", "state": "absent"}, check_mode=True)["changed"]
    with pytest.raises(InputError, match="memory_mib"):
        bring({**WEB, "memory_mib": 0}, check_mode=True)
    bring(WEB)
    assert [one["name"] for one in bring(WEB, check_mode=True)["guests"]] == ["web"]


def test_a_host_for_containers_only_has_no_guests(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so when there are records of guests: they may run, and were not seen."""

    def look() -> dict[str, t.Any]:
        return guest_report.work(Host(run=fake_domains.run), {"names": None, "addresses": False}, False)

    assert (look()["libvirt"], look()["guests"]) == (True, [])
    bring(WEB)
    monkeypatch.setattr(libvirt, "available", lambda: False)
    assert [guest["name"] for guest in look()["guests"]] == ["web"]  # by asking, which fails without the binding
    bring({**WEB, "state": "absent"})
    shutil.rmtree(place / "workloads")
    assert look() == {"changed": False, "libvirt": False, "guests": []}
