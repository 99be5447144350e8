# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to an image: never less than nothing."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CnvmError,
    HostError,
    InputError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._image.commands import Condition
from ansible_collections.cnvm.platform.plugins.module_utils._image.definition import Source, Wanted
from ansible_collections.cnvm.platform.plugins.module_utils._image.formats import FORMATS
from ansible_collections.cnvm.platform.plugins.module_utils._image.headers import Header
from ansible_collections.cnvm.platform.plugins.module_utils._image.plan import Plan, Seen, in_place, plan

GIB = 2**30
NEW = Wanted("/d")
OVERLAY = dataclasses.replace(NEW, backing="/b", backing_format="qcow2")
MADE = dataclasses.replace(NEW, source=Source("/s", "vmdk"))
FLAT = Header("qcow2", GIB, cluster_bytes=65536)
THERE = Seen(exists=True, header=FLAT)
RESTING = Seen(
    exists=True,
    header=dataclasses.replace(FLAT, backing="/b", backing_format="qcow2"),
    backing="/b",
    same_backing=True,
)
# Its snapshots rest on the other image, too.
SAVED = dataclasses.replace(
    RESTING, header=dataclasses.replace(FLAT, backing="/b", backing_format="qcow2", snapshots=2)
)


def sized(wanted: Wanted, size: int) -> Wanted:
    return dataclasses.replace(wanted, size=size)


@pytest.mark.parametrize(
    ("wanted", "seen", "actions", "size"),
    [
        (sized(NEW, GIB), Seen(), ["create"], GIB),
        (OVERLAY, Seen(backing_bytes=GIB), ["create"], GIB),
        (sized(OVERLAY, 2 * GIB), Seen(backing_bytes=GIB), ["create"], 2 * GIB),
        (MADE, Seen(source_bytes=GIB), ["convert"], GIB),
        (sized(MADE, 2 * GIB), Seen(source_bytes=GIB), ["convert"], 2 * GIB),
        (NEW, THERE, [], GIB),
        (sized(NEW, GIB), THERE, [], GIB),
        (sized(NEW, 2 * GIB), THERE, ["resize"], 2 * GIB),
        (MADE, THERE, [], GIB),
        (dataclasses.replace(MADE, replace=True), dataclasses.replace(THERE, up_to_date=True), [], GIB),
        (dataclasses.replace(MADE, replace=True), dataclasses.replace(THERE, source_bytes=GIB), ["replace"], GIB),
        (dataclasses.replace(MADE, replace=True), Seen(exists=True, strange="vmdk", source_bytes=5), ["replace"], 5),
        (OVERLAY, RESTING, [], GIB),
        (OVERLAY, dataclasses.replace(RESTING, backing="/c", same_backing=False), ["rebase"], GIB),
        (OVERLAY, THERE, ["rebase"], GIB),
        (dataclasses.replace(NEW, flatten=True), RESTING, ["flatten"], GIB),
        (dataclasses.replace(NEW, flatten=True), THERE, [], GIB),
        (NEW, RESTING, [], GIB),
        (NEW, dataclasses.replace(THERE, attributes=("mode",)), ["change mode"], GIB),
        (dataclasses.replace(NEW, state="absent"), THERE, ["remove"], 0),
        (dataclasses.replace(NEW, state="absent"), Seen(), [], 0),
        (
            dataclasses.replace(sized(NEW, 2 * GIB), repair="leaks", flatten=True),
            dataclasses.replace(RESTING, condition=Condition(leaks=3)),
            ["repair", "flatten", "resize"],
            2 * GIB,
        ),
    ],
)
def test_the_steps(wanted: Wanted, seen: Seen, actions: list[str], size: int) -> None:
    made = plan(wanted, seen)
    assert (made.actions, made.virtual_bytes) == (actions, size)
    assert made.changed == bool(actions)


def test_a_backing_format_that_is_missing_is_written() -> None:
    header = dataclasses.replace(FLAT, backing="/b")
    made = plan(OVERLAY, dataclasses.replace(RESTING, header=header))
    assert (made.rebase, made.actions) == ("format", ["name the backing format"])


REFUSED: list[tuple[str, Wanted, Seen, type[CnvmError], str]] = [
    ("a smaller size", sized(NEW, GIB - 512), THERE, Refused, "less than the image has"),
    ("smaller than its source", sized(MADE, 512), Seen(source_bytes=GIB), Refused, "less than its source"),
    ("smaller than its base", sized(OVERLAY, 512), Seen(backing_bytes=GIB), Refused, "less than its backing"),
    (
        "made on a guest's disk",
        OVERLAY,
        Seen(backing_bytes=GIB, written_below={"/w": ["web"]}),
        Refused,
        "must not rest on /w, to which guest 'web' writes",
    ),
    (
        "rebased to a guest's disk",
        OVERLAY,
        dataclasses.replace(RESTING, backing="/c", same_backing=False, written_below={"/b": ["db", "web"]}),
        Refused,
        "guest 'db', 'web' writes",
    ),
    ("nothing to go by", NEW, Seen(), InputError, "nothing says"),
    ("another format", NEW, Seen(exists=True, strange="vmdk"), Refused, "is vmdk, not qcow2"),
    ("another format with a source", MADE, Seen(exists=True, strange="vmdk"), Refused, "is vmdk, not qcow2"),
    (
        "another base",
        dataclasses.replace(OVERLAY, rebase="refuse"),
        dataclasses.replace(RESTING, same_backing=False, backing="/c"),
        Refused,
        "rests on /c, not on /b",
    ),
    (
        "others rest on it",
        sized(NEW, 2 * GIB),
        dataclasses.replace(THERE, dependants=("/o",)),
        Refused,
        "/o rests on it",
    ),
    ("a guest uses it", sized(NEW, 2 * GIB), dataclasses.replace(THERE, in_use=True), Refused, "in use"),
    (
        "removed below others",
        dataclasses.replace(NEW, state="absent"),
        dataclasses.replace(THERE, dependants=("/o", "/p")),
        Refused,
        "/o, /p rest on it",
    ),
    (
        "replaced while in use",
        dataclasses.replace(MADE, replace=True),
        dataclasses.replace(THERE, in_use=True, source_bytes=GIB),
        Refused,
        "in use",
    ),
    (
        "removed from under a guest",
        dataclasses.replace(NEW, state="absent"),
        dataclasses.replace(THERE, guests=("web",)),
        Refused,
        "is a disk of guest 'web'",
    ),
    (
        "changed below saved memory",
        sized(NEW, 2 * GIB),
        dataclasses.replace(THERE, guests=("db", "web"), saved="web"),
        Refused,
        "managedsave-remove web",
    ),
    (
        "a template's mode",
        NEW,
        dataclasses.replace(THERE, template="debian", attributes=("mode",)),
        Refused,
        "the image of the template debian",
    ),
    (
        "made where a template's was",
        sized(NEW, GIB),
        Seen(template="debian"),
        Refused,
        "cnvm.platform.template (state: absent)",
    ),
    ("flattened with snapshots", dataclasses.replace(NEW, flatten=True), SAVED, Refused, "2 internal snapshots"),
    (
        "rebased with snapshots",
        dataclasses.replace(OVERLAY, rebase="safe"),
        dataclasses.replace(SAVED, same_backing=False, backing="/c"),
        Refused,
        "rebase: safe would lose",
    ),
    (
        "damaged",
        dataclasses.replace(NEW, check=True),
        dataclasses.replace(THERE, condition=Condition(corruptions=2)),
        HostError,
        "2 corruptions",
    ),
    (
        "damaged, and only leaks may be mended",
        dataclasses.replace(NEW, repair="leaks"),
        dataclasses.replace(THERE, condition=Condition(corruptions=2)),
        HostError,
        "repair: all",
    ),
]


@pytest.mark.parametrize(
    ("wanted", "seen", "error", "words"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED]
)
def test_what_is_refused(wanted: Wanted, seen: Seen, error: type[CnvmError], words: str) -> None:
    with pytest.raises(error) as caught:
        plan(wanted, seen)
    assert words in str(caught.value)


def test_snapshots_stay_with_what_they_rest_on() -> None:
    assert plan(sized(OVERLAY, 2 * GIB), SAVED).actions == ["resize"]
    moved = dataclasses.replace(SAVED, same_backing=False, backing="/c")
    assert plan(dataclasses.replace(OVERLAY, rebase="unsafe"), moved).actions == ["rebase"]
    alone = dataclasses.replace(SAVED, header=dataclasses.replace(FLAT, snapshots=2), backing="")
    assert plan(dataclasses.replace(NEW, flatten=True), alone).actions == []


def test_leaks_are_left_unless_asked_for() -> None:
    leaking = dataclasses.replace(THERE, condition=Condition(leaks=1))
    assert plan(dataclasses.replace(NEW, check=True), leaking).actions == []
    assert plan(dataclasses.replace(NEW, repair="leaks"), leaking).repair == "leaks"
    damaged = dataclasses.replace(THERE, condition=Condition(leaks=1, corruptions=1))
    assert plan(dataclasses.replace(NEW, repair="all"), damaged).repair == "all"


def test_what_only_creation_decides_is_said() -> None:
    made = plan(dataclasses.replace(NEW, cluster_bytes=4096), THERE)
    assert made.actions == []
    assert "cluster_size is 65536, not 4096" in made.warnings[0]


def test_who_depends_on_it_does_not_matter_where_nothing_is_done() -> None:
    busy = dataclasses.replace(THERE, in_use=True, dependants=("/o",), attributes=("mode",))
    assert plan(NEW, busy).actions == ["change mode"]


def test_the_disk_of_a_guest_may_grow_and_be_flattened() -> None:
    wanted = dataclasses.replace(sized(NEW, 2 * GIB), flatten=True)
    assert plan(wanted, dataclasses.replace(RESTING, guests=("web",))).actions == ["flatten", "resize"]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_takes_more_than_one_write_is_done_on_a_copy(kind: str) -> None:
    grows = kind in ("raw", "qcow2")
    assert in_place(Plan("/d", grow=True), kind) == grows
    assert in_place(Plan("/d", attributes=("mode",)), kind)
    for words in ({"repair": "leaks"}, {"flatten": True}, {"rebase": "safe"}):
        assert not in_place(Plan("/d", **t.cast("dict[str, t.Any]", words)), kind)
    assert in_place(Plan("/d", rebase="unsafe"), kind)


HEADERS = st.builds(
    Header,
    st.just("qcow2"),
    st.integers(0, 2**40),
    backing=st.sampled_from(["", "/b", "/c"]),
    backing_format=st.sampled_from(["", "raw", "qcow2"]),
)
WANTS = st.builds(
    Wanted,
    st.just("/d"),
    state=st.sampled_from(["present", "absent"]),
    size=st.one_of(st.none(), st.integers(1, 2**40)),
    source=st.one_of(st.none(), st.just(Source("/s", "raw"))),
    replace=st.booleans(),
    rebase=st.sampled_from(["safe", "unsafe", "refuse"]),
    flatten=st.booleans(),
    repair=st.sampled_from(["none", "leaks", "all"]),
)
CONDITIONS = st.one_of(st.none(), st.builds(Condition, st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)))
SIGHTS = st.builds(
    Seen,
    st.booleans(),
    st.one_of(st.none(), HEADERS),
    up_to_date=st.booleans(),
    source_bytes=st.integers(0, 2**40),
    condition=CONDITIONS,
    in_use=st.booleans(),
    dependants=st.sampled_from([(), ("/o",)]),
)


@given(WANTS, SIGHTS)
def test_nothing_is_lost_and_the_second_plan_is_empty(wanted: Wanted, seen: Seen) -> None:
    if not seen.exists:
        seen = Seen(source_bytes=seen.source_bytes)
    try:
        made = plan(wanted, seen)
    except CnvmError:
        return
    if seen.exists and (seen.in_use or seen.dependants):
        assert not made.touches
    if seen.exists and made.make:
        assert wanted.replace
        assert wanted.source
    if seen.header and not made.make and not made.remove and wanted.state == "present":
        assert made.virtual_bytes >= seen.header.virtual_bytes
    # As the host will be afterwards.
    if made.remove:
        after = Seen()
    elif made.changed:
        before = seen.header if seen.header and not made.make else Header("qcow2", made.virtual_bytes)
        backing = "" if made.flatten or made.make else before.backing
        header = dataclasses.replace(before, virtual_bytes=made.virtual_bytes, backing=backing)
        condition = Condition() if made.repair or made.make else seen.condition
        after = Seen(exists=True, header=header, up_to_date=bool(made.make) or seen.up_to_date, condition=condition)
    else:
        return
    assert plan(wanted, after).actions == []
