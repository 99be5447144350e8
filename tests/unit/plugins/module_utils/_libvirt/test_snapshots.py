# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import typing as t

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import snapshots, xml

from . import guest_models

HOME = "/var/lib/cnvm/workloads/web/disks"


def model() -> dict[str, t.Any]:
    return guest_models.model(
        guest_models.item(
            disks=[{"template": "debian"}, {"size_mib": 1}, {"path": "/ro", "read_only": True}], cdrom="/c.iso"
        )
    )


def make(record: snapshots.Record, name: str) -> snapshots.Record:
    return snapshots.created(record, snapshots.overlays(record, HOME), {"name": name})


def test_a_guest_without_snapshots_has_its_disks_as_they_are() -> None:
    record = snapshots.empty(model())
    assert record["tops"] == {"vda": f"{HOME}/vda.qcow2", "vdb": f"{HOME}/vdb.qcow2"}
    assert snapshots.tops(record) == {}
    assert snapshots.tops(None) == {}
    assert snapshots.names(None) == []
    assert snapshots.with_tops(model(), record) == model()


def test_above_a_snapshot_the_guest_writes_to_an_overlay() -> None:
    record = make(snapshots.empty(model()), "one")
    path, chain = snapshots.tops(record)["vda"]
    assert path == f"{HOME}/vda-1.qcow2"
    assert [one["path"] for one in chain] == [f"{HOME}/vda.qcow2", guest_models.TEMPLATE]
    assert [one["read_only"] for one in chain] == [False, True]
    found = snapshots.with_tops(model(), record)
    assert found["disks"]["vda"]["path"] == path
    assert found["disks"]["vda"]["backing"] == chain
    assert found["disks"]["vdc"] == model()["disks"]["vdc"]


def test_names_that_are_taken_are_left_out() -> None:
    before = snapshots.empty(model())
    taken = {f"{HOME}/vdb-1.qcow2", f"{HOME}/memory-2.save", f"{HOME}/vda-4.qcow2"}
    record = snapshots.with_free_names(before, HOME, taken.__contains__)
    assert snapshots.overlays(record, HOME) == {"vda": f"{HOME}/vda-3.qcow2", "vdb": f"{HOME}/vdb-3.qcow2"}
    assert snapshots.memory_file(record, HOME) == f"{HOME}/memory-3.save"
    assert before["serial"] == 0
    # Of the disks that are asked for.
    assert snapshots.with_free_names(record, HOME, taken.__contains__, ["vda"])["serial"] == 2
    record = snapshots.with_free_names({**record, "serial": 3}, HOME, taken.__contains__, ["vdb"])
    assert record["serial"] == 3
    # What comes next is above it.
    assert snapshots.overlays(make(record, "one"), HOME)["vda"] == f"{HOME}/vda-5.qcow2"


def test_a_merge_into_the_base_brings_back_the_first_file() -> None:
    record = make(make(snapshots.empty(model()), "one"), "two")
    (first, second) = snapshots.removal(record, "one")
    assert (first.into, first.source, first.active) == (f"{HOME}/vda.qcow2", f"{HOME}/vda-1.qcow2", False)
    assert first.above == (f"{HOME}/vda-2.qcow2",)
    for step in (first, second):
        record = snapshots.merged(record, step, "one")
    record = snapshots.removed(record, "one")
    assert snapshots.names(record) == ["two"]
    assert snapshots.find(record, "two") == {"name": "two", "parent": "", "disks": snapshots.empty(model())["tops"]}
    (third, _fourth) = snapshots.removal(record, "two")
    assert third.active


def test_of_two_of_one_name_only_the_merged_one_goes() -> None:
    """The guest still writes above the other one."""
    record = make(make(snapshots.empty(model()), "one"), "one")
    for step in snapshots.removal(record, "one"):
        record = snapshots.merged(record, step, "one")
    record = snapshots.removed(record, "one")
    assert [each["disks"] for each in record["snapshots"]] == [snapshots.empty(model())["tops"]]
    assert snapshots.tops(record)["vda"][0] == f"{HOME}/vda-2.qcow2"


def test_that_one_is_being_merged_away_is_known_until_it_is() -> None:
    record = snapshots.removing(make(make(snapshots.empty(model()), "one"), "two"), "one")
    for step in snapshots.removal(record, "one"):
        record = snapshots.merged(record, step, "one")
        assert [each.get("removing", False) for each in record["snapshots"]] == [True, False]


def test_where_lines_part_nothing_is_merged() -> None:
    record = make(make(snapshots.empty(model()), "one"), "two")
    record, gone = snapshots.reverted(record, "one", snapshots.overlays(record, HOME))
    assert gone == [f"{HOME}/vda-2.qcow2", f"{HOME}/vdb-2.qcow2"]
    with pytest.raises(Refused, match="part"):
        snapshots.removal(record, "one")
    steps = snapshots.removal(record, "two")
    assert [(step.into, step.source) for step in steps] == [(f"{HOME}/vda-1.qcow2", ""), (f"{HOME}/vdb-1.qcow2", "")]


def test_what_was_cut_off_is_settled_by_the_stored_xml() -> None:
    before = make(snapshots.empty(model()), "one")
    after = make(before, "two")
    announced = snapshots.announce(before, after)
    done = snapshots.with_tops(model(), after)
    not_begun = snapshots.with_tops(model(), before)
    assert snapshots.settle(announced, done) == after
    assert snapshots.settle(announced, not_begun) == before
    assert snapshots.settle(before, done) == before


def test_a_disk_that_is_elsewhere_than_a_snapshot_of_it_says() -> None:
    before = make(snapshots.empty(model()), "one")
    after = make(before, "two")
    now = snapshots.with_tops(model(), before)
    assert snapshots.strayed(now, before) == snapshots.strayed(now, before, after) == {}
    assert snapshots.strayed(snapshots.with_tops(model(), after), before, after) == {}
    now["disks"]["vda"] = {**now["disks"]["vda"], "path": "/srv/by-virsh"}
    assert snapshots.strayed(now, before, after) == {"vda": ("/srv/by-virsh", f"{HOME}/vda-1.qcow2")}
    assert snapshots.joined(before, now) == before
    del now["disks"]["vda"]
    assert snapshots.strayed(now, before) == {}


def test_one_that_is_in_no_snapshot_is_where_the_guest_has_it() -> None:
    record = snapshots.created(snapshots.empty(model()), {"vda": f"{HOME}/vda-1.qcow2"}, {"name": "one"})
    now = snapshots.with_tops(model(), record)
    now["disks"]["vdb"] = {**now["disks"]["vdb"], "path": "/srv/moved"}
    found = snapshots.joined(record, now)
    assert found["tops"] == {"vda": f"{HOME}/vda-1.qcow2", "vdb": "/srv/moved"}
    assert (found["files"]["/srv/moved"]["disk"], f"{HOME}/vdb.qcow2" in found["files"]) == ("vdb", False)


def test_xml_names_every_disk() -> None:
    record = snapshots.empty(model())
    root = xml.build(snapshots.node("a<b", snapshots.overlays(record, HOME), model()))
    modes = {each.get("name"): each.get("snapshot") for each in root.findall("disks/disk")}
    assert modes == {"vda": "external", "vdb": "external", "vdc": "no", "sda": "no"}
    assert xml.attribute(root, "memory", "snapshot") == "no"
    assert "a&lt;b" in xml.document(root)
    with_memory = xml.build(snapshots.node("a", {}, model(), "/m"))
    assert xml.attribute(with_memory, "memory", "file") == "/m"


class Machine(RuleBasedStateMachine):
    """Snapshots of one disk whose content is a number for each of four places; None is what is not in a file."""

    @initialize()
    def begin(self) -> None:
        self.model = guest_models.model(guest_models.item(disks=[{"template": "debian"}]))
        self.record = snapshots.empty(self.model)
        self.content: dict[str, dict[int, int]] = {guest_models.TEMPLATE: {0: -1}, self.top: {}}
        self.expected: dict[str, dict[int, int]] = {}
        self.now: dict[int, int] = {0: -1}
        self.serial = 0

    @property
    def top(self) -> str:
        return str(self.record["tops"]["vda"])

    def read(self, path: str) -> dict[int, int]:
        found: dict[int, int] = {}
        for each in [path, *(one["path"] for one in snapshots.below(self.record, path))]:
            found = {**self.content[each], **found}
        return found

    @rule(place=st.integers(0, 3), value=st.integers(0, 9))
    def write(self, place: int, value: int) -> None:
        self.content[self.top][place] = value
        self.now[place] = value

    @rule()
    def create(self) -> None:
        self.serial += 1
        name = f"s{self.serial}"
        made = snapshots.overlays(self.record, HOME)
        assert not set(made.values()) & set(self.content), "an overlay never takes the place of a file"
        self.record = snapshots.created(self.record, made, {"name": name})
        self.content[self.top] = {}
        self.expected[name] = dict(self.now)

    @precondition(lambda self: self.record["snapshots"])
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(snapshots.names(self.record)))
        made = snapshots.overlays(self.record, HOME)
        self.record, gone = snapshots.reverted(self.record, name, made)
        self.content[self.top] = {}
        for path in gone:
            del self.content[path]
        self.now = dict(self.expected[name])

    @precondition(lambda self: self.record["snapshots"])
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(snapshots.names(self.record)))
        try:
            steps = snapshots.removal(self.record, name)
        except Refused:
            return
        for step in steps:
            assert step.into != guest_models.TEMPLATE
            if step.source:
                self.content[step.into].update(self.content.pop(step.source))
            else:
                del self.content[step.into]
            self.record = snapshots.merged(self.record, step, name)
        self.record = snapshots.removed(self.record, name)
        del self.expected[name]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.read(self.top) == self.now
        for one in self.record["snapshots"]:
            assert self.read(one["disks"]["vda"]) == self.expected[one["name"]]
        assert snapshots.names(self.record) == list(self.expected)

    @invariant()
    def every_file_is_known_and_needed(self) -> None:
        assert set(self.record["files"]) == set(self.content)
        assert self.content[guest_models.TEMPLATE] == {0: -1}, "nothing is ever written to a template"
        if not self.record["snapshots"]:
            assert self.top == f"{HOME}/vda.qcow2"
            assert len(self.content) == 2

    @invariant()
    def parents_are_there(self) -> None:
        known = {"", *snapshots.names(self.record)}
        assert self.record["current"] in known
        assert all(one["parent"] in known for one in self.record["snapshots"])

    @invariant()
    def a_plan_changes_nothing(self) -> None:
        before = copy.deepcopy(self.record)
        for name in snapshots.names(self.record):
            try:
                snapshots.removal(self.record, name)
            except Refused:
                continue
        assert self.record == before


TestTree = Machine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=20)
