# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots are made, gone back to and merged."""

from __future__ import annotations

import json
import os
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import disks, files, guest_snapshots, snapshot_records
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors, snapshots, xml

from .. import fake_domains
from ..fake_domains import FakeConnection, FakeError
from ..killing import Killed
from .bring import WEB, bring, cut, foreign, full, meanwhile, one, snap, top


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
