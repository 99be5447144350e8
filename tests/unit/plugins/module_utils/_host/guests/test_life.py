# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is made, started, stopped and removed."""

from __future__ import annotations

import json
import os
import threading
import time
import types
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Missing, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disks,
    guest_power,
    guest_report,
    guests,
    mounts,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors, xml
from ansible_collections.cnvm.platform.tests.support import images

from .. import fake_domains
from ..dead_storage import Dead
from ..fake_clock import Clock
from ..fake_domains import FakeConnection, FakeError
from ..killing import Killed
from .bring import WEB, bring, foreign, one, snap


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
    monkeypatch.setattr(mounts, "_answers", lambda point: False)
    Dead(place / "workloads/far/disks", monkeypatch)
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


def test_who_is_not_asked_yet_is_asked_no_more_when_that_is_broken_off(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(WEB, {**WEB, "name": "db"})
    over = threading.Event()

    class Pool(ThreadPoolExecutor):
        def __exit__(self, *error: t.Any) -> t.Optional[bool]:
            over.set()
            return super().__exit__(*error)

    def broken_off(seconds: float) -> t.NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(guest_power, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(guest_power, "_PRESSES_AT_ONCE", 1)
    monkeypatch.setattr(guest_power, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=broken_off))
    goes_down_after(connection.domains["web"], lambda: over.wait(60))
    with pytest.raises(KeyboardInterrupt):
        bring(*({"name": name, "state": "stopped"} for name in ("web", "db")))
    assert [call for call in connection.calls if "shutdown" in call] == ["shutdown web"]


def test_one_that_goes_while_it_is_looked_at_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent, which does not answer any more, says so before it is seen."""
    each = types.SimpleNamespace(state=lambda flags: [fake_domains.RUNNING, 1])
    job = types.SimpleNamespace(
        name="web", item={"stop_timeout_s": 90}, plan=types.SimpleNamespace(remove=False),
        known=types.SimpleNamespace(domain=each),
    )  # fmt: skip
    one = guest_power._Stopping(t.cast("t.Any", job), t.cast("t.Any", None), print)
    asked: Future[None] = Future()
    one.asked = asked

    def goes(domain: object) -> bool:
        asked.set_exception(HostError("The agent is gone."))
        return True

    monkeypatch.setattr(guest_power, "_is_up", goes)
    assert not one.has_stopped()
    monkeypatch.setattr(guest_power, "_is_up", lambda domain: False)
    assert one.has_stopped()


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
