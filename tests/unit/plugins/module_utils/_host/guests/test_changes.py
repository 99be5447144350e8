# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in a guest that is there."""

from __future__ import annotations

import os
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import domains, guest_disks, guest_live
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors, guest_definition

from .. import fake_domains
from ..fake_clock import Clock
from ..fake_domains import FakeConnection, FakeError
from .bring import WEB, bring, one


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
