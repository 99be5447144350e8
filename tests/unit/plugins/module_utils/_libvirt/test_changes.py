# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import typing as t

import pytest
from hypothesis import given, settings

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.changes import (
    compare,
    differences,
    kept_memory,
    pending,
)
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.domain import EMPTY, Model, alike, build, parse

from . import guest_models

MAC = "52:54:00:00:00:01"


def model(**given: t.Any) -> Model:
    return guest_models.model(guest_models.item(**given))


def change(before: Model, after: Model) -> tuple[list[str], dict[str, str]]:
    """Steps in short, and reasons, for a running guest that was started as ``before``."""
    found = compare(after, before, before)
    return [f"{step.kind} {step.name}".strip() for step in found.steps if step.kind != "marks"], dict(found.reasons)


@settings(max_examples=40)
@given(guest_models.models())
def test_no_difference_is_no_change(model: Model) -> None:
    found = compare(model, model, model)
    assert (found.stored, found.steps, found.reasons) == ((), (), {})


@settings(max_examples=40)
@given(guest_models.models(), guest_models.models())
def test_every_difference_is_done_or_has_a_reason(wanted: Model, live: Model) -> None:
    """Nothing is left out: after the steps, each key that is still not as wanted has a reason."""
    found = compare(wanted, live, live)
    after = {**live, **{key: dict(live[key]) for key in ("disks", "cdroms", "networks")}}
    places = {"disk": "disks", "network": "networks", "media": "cdroms"}
    for step in found.steps:
        place = places.get(step.kind.rpartition("_")[2])
        if step.kind in ("memory", "vcpus"):
            after[step.key] = step.value
        elif step.kind in ("description", "marks"):
            after[step.kind] = step.value
        elif step.kind == "password":
            after["graphics"] = step.value
        elif place and step.value is None:
            del after[place][step.name]
        elif place:
            after[place][step.name] = step.value
    for key in wanted:
        if key in ("name", "uuid"):
            continue
        words = {"cdroms": ("cdrom", "cloud_init"), "type": ("accelerator",)}.get(key, (key,))
        reasons = [one for one in found.reasons if one in words or one.startswith(f"{key}.")]
        if reasons:
            continue
        if key.startswith("max_"):
            has = key[len("max_") :]
            # More than is needed does no harm until the next start, unless some are to be possible.
            enough = after[key] == wanted[key] or after[key] > wanted[key] <= wanted[has]
            assert enough or has in found.reasons
        elif key == "disks":
            # What is below a running disk is QEMU's business; the stored XML says it for the next start.
            is_now, is_wanted = (
                {name: {**disk, "backing": []} for name, disk in disks.items()} for disks in (after[key], wanted[key])
            )
            assert is_now == is_wanted
        elif key == "marks":
            kept = {"cpu": None, "seed": None}
            assert {**after[key], **kept} == {**wanted[key], **kept}
            assert after[key]["seed"] == live[key]["seed"]
        else:
            assert alike(key, wanted[key], after[key]), key


@settings(max_examples=40)
@given(guest_models.models(), guest_models.models())
def test_stored_differences_are_told_exactly_when_there_are_some(wanted: Model, stored: Model) -> None:
    same = all(alike(key, wanted[key], stored[key]) for key in wanted if key not in ("name", "uuid"))
    assert bool(differences(wanted, stored)) is not same


def test_memory() -> None:
    small, large = model(max_memory_mib=1024), model(memory_mib=1024, max_memory_mib=1024)
    assert change(small, large) == (["memory"], {})
    assert change(large, small) == (["memory"], {})
    steps, reasons = change(model(), large)
    assert steps == []
    assert "started with at most 512 MiB" in reasons["memory_mib"]


def test_that_cloud_init_is_done_is_kept_for_this_run() -> None:
    wanted = model(tags={"a": "b"})
    live = {**wanted, "marks": {**wanted["marks"], "cloud_init": "done"}}
    assert parse(build(live))["marks"] == live["marks"]
    assert compare(wanted, wanted, live).steps == ()
    other = model(tags={"a": "c"})
    assert [step.value["cloud_init"] for step in compare(other, wanted, live).steps] == ["done"]


def test_a_balloon_that_is_not_up_yet_is_no_difference() -> None:
    wanted = model(max_memory_mib=1024)
    booting = {**wanted, "memory_mib": 1024}
    assert compare(wanted, wanted, booting).steps == ()
    assert [step.kind for step in compare(wanted, booting, booting).steps] == ["memory"]
    assert [step.kind for step in compare(wanted, wanted, {**wanted, "memory_mib": 256}).steps] == ["memory"]


def test_memory_that_it_keeps_is_told_where_a_restart_would_not_help() -> None:
    wanted = model(max_memory_mib=1024)
    assert "has 1024 MiB of memory, and is to have 512" in kept_memory(wanted, {**wanted, "memory_mib": 1024})
    for live in (wanted, {**wanted, "memory_mib": 256}):
        assert kept_memory(wanted, live) == ""
    # Started again it would have no more than it is to have.
    assert kept_memory(model(), {**wanted, "memory_mib": 1024}) == ""


def test_memory_that_is_not_given_back_is_told_until_it_was_restarted() -> None:
    before, after = model(), model(memory_mib=300, max_memory_mib=300)
    assert compare(after, before, before).reasons == {}
    again = compare(after, after, before)
    assert "memory" not in [step.kind for step in again.steps]
    assert "300 MiB" in again.reasons["memory_mib"]
    assert pending(after, before) == again.reasons


def test_a_larger_maximum_alone_is_told() -> None:
    steps, reasons = change(model(), model(max_memory_mib=1024))
    assert steps == []
    assert list(reasons) == ["max_memory_mib"]


def test_a_smaller_maximum_is_told_until_it_was_restarted() -> None:
    for key, most, less in (("max_memory_mib", 2048, 1024), ("max_vcpus", 4, 3)):
        before, after = model(**{key: most}), model(**{key: less})
        steps, reasons = change(before, after)
        assert (steps, list(reasons)) == ([], [key])
        assert "and only" in reasons[key]
        assert pending(after, before) == reasons
    # Nobody has asked for a maximum: what it gives back at once is all.
    assert change(model(), model(memory_mib=256, max_memory_mib=256)) == (["memory"], {})


def test_vcpus() -> None:
    assert change(model(max_vcpus=4), model(vcpus=3, max_vcpus=4)) == (["vcpus"], {})
    assert list(change(model(), model(vcpus=2))[1]) == ["vcpus"]
    told = change(model(), model(max_vcpus=2))[1]
    assert told == {"max_vcpus": "it was started with at most 1 virtual CPUs, and 2 are to be possible"}
    fewer = model(vcpus=1, max_vcpus=4)
    assert list(change(model(vcpus=3, max_vcpus=4), fewer)[1]) == ["vcpus"]
    real = {**model(vcpus=3, max_vcpus=4), "type": "kvm"}
    assert change(real, {**fewer, "type": "kvm"}) == (["vcpus"], {})


def test_disks_come_and_go() -> None:
    one, two = model(disks=[{"size_mib": 1}]), model(disks=[{"size_mib": 1}, {"size_mib": 1}])
    assert change(one, two) == (["attach_disk vdb"], {})
    assert change(two, one) == (["detach_disk vdb"], {})
    steps, reasons = change(one, model(disks=[{"size_mib": 1}, {"size_mib": 1, "bus": "sata"}]))
    assert steps == []
    assert "bus sata cannot be added" in reasons["disks.sdc"]


def at(**names: str) -> Model:
    """A guest with disks of these names, on the bus that a name is of."""
    found = model(disks=[{"size_mib": 1}])
    disk = found["disks"]["vda"]
    disks = {name: {**disk, "path": path, "bus": {"v": "virtio", "s": "scsi"}[name[0]]} for name, path in names.items()}
    return {**found, "disks": disks}


@pytest.mark.parametrize(
    ("before", "after", "steps", "reasons"),
    [
        ({"sda": "/a"}, {"sdc": "/a"}, [], {"disks.sdc": "the disk sda is called sdc from the next start"}),
        ({"vda": "/a"}, {"sdc": "/a"}, [], {"disks.sdc": "the disk vda is called sdc from the next start"}),
        (
            {"sda": "/a", "sdb": "/b", "sdc": "/c"},
            {"sdc": "/a", "sdd": "/b", "sde": "/c"},
            [],
            {
                f"disks.sd{new}": f"the disk sd{old} is called sd{new} from the next start"
                for old, new in zip("abc", "cde")
            },
        ),
        (
            {"vda": "/a"},
            {"vda": "/b", "vdb": "/a"},
            [],
            {
                "disks.vdb": "the disk vda is called vdb from the next start",
                "disks.vda": "another disk is called vda until the next start",
            },
        ),
        # Two drives of one disk stay what they are.
        ({"vda": "/a", "vdb": "/a"}, {"vda": "/a", "vdb": "/a"}, [], {}),
        ({"vda": "/a", "vdb": "/a"}, {"vda": "/a"}, ["detach_disk vdb"], {}),
    ],
)
def test_a_disk_that_gets_another_name_is_not_torn_from_a_running_guest(
    before: dict[str, str], after: dict[str, str], steps: list[str], reasons: dict[str, str]
) -> None:
    assert change(at(**before), at(**after)) == (steps, reasons)


@pytest.mark.parametrize(
    "part", [{"cache": "writeback"}, {"bus": "scsi", "name": "sdc"}, {"serial": "x"}, {"read_only": True}]
)
def test_what_a_disk_is_needs_a_restart(part: dict[str, t.Any]) -> None:
    steps, reasons = change(model(disks=[{"size_mib": 1}]), model(disks=[{"size_mib": 1, **part}]))
    if "bus" in part:
        assert steps == ["detach_disk vda", "attach_disk sdc"]
    else:
        assert steps == []
        assert list(reasons) == [f"disks.vda.{next(iter(part))}"]


def test_a_cd_is_changed_and_a_drive_is_not() -> None:
    assert change(model(cdrom="/a.iso"), model(cdrom="/b.iso")) == (["media sda"], {})
    assert list(change(model(), model(cdrom="/b.iso"))[1]) == ["cdrom"]


def test_a_cd_goes_though_its_drive_stays_until_a_restart() -> None:
    steps, reasons = change(model(cdrom="/a.iso"), model())
    assert (steps, list(reasons)) == (["media sda"], ["cdrom"])
    step = compare(model(), model(cdrom="/a.iso"), model(cdrom="/a.iso")).steps[-1]
    assert step.value["path"] == ""
    # Once it is empty there is no more to do; nor is it to an empty drive, or to one of somebody else.
    empty = {**model(), "cdroms": {"sda": step.value}}
    assert change(empty, model())[0] == []
    assert change({**model(), "cdroms": {"hdd": {**step.value, "path": "/a.iso"}}}, model())[0] == []


def test_cards() -> None:
    lan, none = model(networks=[{"source": "lan", "mac": MAC}]), model()
    assert change(none, lan) == ([f"attach_network {MAC}"], {})
    assert change(lan, none) == ([f"detach_network {MAC}"], {})
    assert change(lan, model(networks=[{"source": "other", "mac": MAC}])) == ([f"update_network {MAC}"], {})
    steps, reasons = change(lan, model(networks=[{"source": "lan", "mac": MAC, "model": "e1000"}]))
    assert steps == []
    assert list(reasons) == [f"networks.{MAC}.model"]


def test_a_password_is_changed_but_not_added() -> None:
    with_one = model(graphics={"type": "vnc", "password": "one"})
    assert change(with_one, model(graphics={"type": "vnc", "password": "two"})) == (["password"], {})
    assert list(change(with_one, model(graphics={"type": "vnc"}))[1]) == ["graphics.password"]
    found = compare(model(graphics={"type": "vnc", "password": "two"}), with_one, with_one)
    assert "two" not in repr(found.stored)
    assert "one" not in repr(found.stored)


def test_the_screen_needs_a_restart_and_its_secret_is_not_told() -> None:
    reasons = change(model(), model(graphics={"type": "vnc", "password": "canary"}))[1]
    assert "127.0.0.1" in reasons["graphics"]
    assert "canary" not in reasons["graphics"]


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("machine", {"machine": "pc"}),
        ("firmware", {"firmware": "uefi"}),
        ("kernel", {"kernel": "/boot/k"}),
        ("boot", {"boot": ["cdrom"]}),
        ("serial", {"serial": "none"}),
        ("agent", {"agent": False}),
        ("cpu", {"cpu": "EPYC"}),
    ],
)
def test_what_needs_a_restart(key: str, given: dict[str, t.Any]) -> None:
    steps, reasons = change(model(), model(**given))
    assert steps == []
    assert list(reasons) == [key]


def test_a_device_is_told_once() -> None:
    lan, other = model(networks=[{"source": "lan", "mac": MAC}]), model(networks=[{"source": "other", "mac": MAC}])
    assert compare(other, lan, lan).keys == ["marks", f"networks.{MAC}.source"]


def test_tags_and_description_are_changed_at_once() -> None:
    found = compare(model(tags={"a": "b"}, description="x"), model(), model())
    assert [(step.kind, step.key) for step in found.steps] == [("description", "description"), ("marks", "tags")]
    assert found.reasons == {}
    assert found.keys == ["description", "tags"]


def test_the_cpu_that_runs_is_the_one_that_was_asked_for() -> None:
    """A running guest's XML names what libvirt made of host-model; that is no difference."""
    stored = guest_models.model(guest_models.item(), kind="kvm")
    live = parse(build(stored))
    live["cpu"] = {"model": "EPYC-Rome", "features": {"x2apic": "require", "hypervisor": "require"}}
    assert compare(stored, stored, live).reasons == {}
    other = guest_models.model(guest_models.item(cpu="EPYC"), kind="kvm")
    assert compare(other, stored, live).reasons == {"cpu": "the CPU is host-model, and is to be EPYC"}
    marks = next(step for step in compare(other, stored, live).steps if step.kind == "marks")
    assert marks.value["cpu"]["model"] == "host-model", "the marks of this run keep the CPU of this run"


@pytest.mark.parametrize(
    ("stored", "live", "same"),
    [
        ({"model": "host-model", "features": {}}, {"model": "EPYC-Rome", "features": {"x2apic": "require"}}, True),
        ({"model": "host-model", "features": {}}, {"model": "host-passthrough", "features": {}}, False),
        ({"model": "EPYC", "features": {"svm": "disable"}}, {"model": "EPYC", "features": {"svm": "disable"}}, True),
        ({"model": "EPYC", "features": {"svm": "disable"}}, {"model": "EPYC", "features": {"aes": "require"}}, False),
        ({"model": "EPYC", "features": {"aes": "optional"}}, {"model": "EPYC", "features": {}}, True),
        ({"model": "", "features": {}}, {"model": "qemu64", "features": {}}, True),
    ],
)
def test_a_running_domain_that_is_not_ours_may_have_the_cpu_that_is_stored(
    stored: dict[str, t.Any], live: dict[str, t.Any], same: bool
) -> None:
    """When it was started with something else it has to be restarted; and that is told until it is."""
    before, after = ({**model(), "cpu": cpu, "marks": {}} for cpu in (stored, live))
    assert ("cpu" not in pending(before, after)) is same
    wanted = model(cpu="Opteron_G5")
    first = compare(wanted, before, after)
    marks = next(step.value for step in first.steps if step.kind == "marks")
    assert marks["cpu"] == (stored if same else live)
    again = compare(wanted, wanted, {**after, "marks": marks})
    assert (again.steps, again.reasons) == ((), first.reasons)
    assert "cpu" in again.reasons


def test_a_seed_is_read_at_the_next_start() -> None:
    before, after = model(), model()
    after["marks"] = {**after["marks"], "seed": "new"}
    found = compare(after, before, before)
    assert list(found.reasons) == ["cloud_init"]
    assert compare(after, after, before).reasons == found.reasons, "it is told as long as it has not been restarted"
    assert compare(after, after, after).reasons == {}


def test_what_is_pending_is_whatever_differs() -> None:
    stored = model(disks=[{"size_mib": 1}], machine="pc", tags={"a": "b"})
    assert pending(stored, model(tags={"a": "c"})) == {
        "machine": "the machine is q35, and is to be pc",
        "disks.vda": "the running guest has not taken it over",
    }
    assert pending(stored, stored) == {}


def test_a_foreign_domain_is_compared_by_its_xml() -> None:
    stored = parse(xml.parse("<domain type='kvm'><cpu mode='host-passthrough'/></domain>"))
    assert "cpu" in [one.key for one in differences(model(), stored)]


def test_what_is_the_same_in_other_words_is_for_the_next_start_alone() -> None:
    disk = {"path": "/d/a", "format": "qcow2", "bus": "virtio", "cache": "none", "read_only": False, "serial": ""}
    wanted = {**copy.deepcopy(EMPTY), "disks": {"vda": {**disk, "backing": []}}, "cdroms": {"sda": {"path": "/d/c"}}}
    said = {"open": "left to its file", "volume": "the volume a of the pool p"}
    actual = copy.deepcopy(wanted)
    actual["disks"]["vda"].update(said)
    actual["cdroms"]["sda"].update(volume="the volume c of the pool p", bus="sata")
    wanted["cdroms"]["sda"]["bus"] = "sata"
    found = compare(wanted, actual, actual)
    assert {one.key: (one.before, one.after) for one in found.stored} == {
        "disks.vda.path": ("the volume a of the pool p", "/d/a"),
        "disks.vda.backing": ("left to its file", "written down"),
        "cdrom.path": ("the volume c of the pool p", "/d/c"),
    }
    assert (found.steps, found.reasons) == ((), {})
    assert pending(wanted, actual) == pending(actual, wanted) == {}
    # Where it is another one that is told.
    actual["disks"]["vda"].update(path="/d/b", backing=[{"path": "/d/base"}])
    keys = [one.key for one in compare(wanted, actual).stored]
    assert sorted(keys) == ["cdrom.path", "disks.vda.backing", "disks.vda.path"]
