# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a guest while it is worked on."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    guest_disks,
    guest_jobs,
    guest_planning,
    guest_report,
    guests,
    libvirt,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors

from .. import fake_domains
from ..fake_domains import FakeConnection, FakeError
from .bring import WEB, bring, cut_off, foreign, one, template


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
