# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_definition as gd
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_plan
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.changes import Changes, Difference, Step
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.guest_plan import Plan, Seen, Wanted, plan

OURS: dict[str, t.Any] = {"defined": True, "managed": True, "definition": {"name": "web"}, "autostart": True}
NOTHING = Wanted(definition={}, model={})
RESTART = Wanted(
    definition={},
    model={},
    changes=Changes(
        stored=(Difference("machine", "q35", "pc"), Difference("tags", {}, {"a": "b"})),
        steps=(Step("marks", "tags"),),
        reasons={"machine": "the machine is q35, and is to be pc"},
    ),
)


def item(state: str = "running", **more: t.Any) -> dict[str, t.Any]:
    return gd.normalise({"name": "web", "memory_mib": 64, "state": state, **more})


def actions(state: str, seen: dict[str, t.Any], wanted: t.Optional[Wanted] = NOTHING, **more: t.Any) -> list[str]:
    return plan(item(state), Seen(**seen), wanted, **more).actions


@pytest.mark.parametrize(
    ("state", "was", "expected"),
    [
        ("running", "running", []),
        ("running", "stopped", ["start"]),
        ("running", "paused", ["resume"]),
        ("running", "suspended", ["resume"]),
        ("running", "stopping", ["stop", "start"]),
        ("running", "crashed", ["stop", "start"]),
        ("present", "running", []),
        ("present", "stopped", []),
        ("present", "paused", []),
        ("present", "stopping", []),
        ("paused", "running", ["pause"]),
        ("paused", "paused", []),
        ("paused", "stopped", ["start", "pause"]),
        ("stopped", "stopped", ["do not start with the host"]),
        ("stopped", "running", ["stop", "do not start with the host"]),
        ("stopped", "paused", ["stop", "do not start with the host"]),
        ("stopped", "stopping", ["stop", "do not start with the host"]),
        ("absent", "running", ["stop", "remove"]),
        ("absent", "stopped", ["remove"]),
    ],
)
def test_states(state: str, was: str, expected: list[str]) -> None:
    assert actions(state, {**OURS, "state": was}) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", ["create", "start with the host", "start"]),
        ("present", ["create"]),
        ("stopped", ["create"]),
        ("paused", ["create", "start", "pause"]),
        ("absent", []),
    ],
)
def test_a_new_one(state: str, expected: list[str]) -> None:
    assert actions(state, {}) == expected


def test_a_state_alone_needs_a_guest_that_is_there() -> None:
    with pytest.raises(InputError, match="no such guest"):
        plan(gd.normalise({"name": "web", "state": "stopped"}), Seen())
    found = plan(gd.normalise({"name": "web", "state": "stopped"}), Seen(**OURS, state="running"))
    assert found.actions == ["stop", "do not start with the host"]


def test_a_change_that_needs_a_restart_is_stored_and_told() -> None:
    found = plan(item(), Seen(**OURS, state="running"), RESTART)
    assert found.actions == ["change machine", "change tags"]
    assert found.reasons == {"machine": "the machine is q35, and is to be pc"}
    assert found.live
    assert found.define


def test_a_restart_is_made_when_it_is_allowed() -> None:
    found = plan(item(), Seen(**OURS, state="running"), RESTART, restart_on_change=True)
    assert found.actions == ["stop", "change machine", "change tags", "start"]
    assert found.reasons == {}
    assert not found.live, "nothing is changed in a machine that is stopped anyway"
    paused = plan(item("present"), Seen(**OURS, state="paused"), RESTART, restart_on_change=True)
    assert (paused.stop, paused.start, paused.pause) == (True, True, True)


def test_nothing_is_to_be_restarted_when_it_does_not_run() -> None:
    for state, was in (("stopped", "running"), ("stopped", "stopped"), ("running", "stopped"), ("present", "stopped")):
        assert plan(item(state), Seen(**OURS, state=was), RESTART).reasons == {}


def test_elsewhere_nothing_is_done() -> None:
    for state in gd.STATES:
        found = plan(item(state), Seen(elsewhere="host2", defined=True), NOTHING)
        assert (found.changed, found.elsewhere) == (False, "host2")


def test_moving_is_refused() -> None:
    with pytest.raises(Refused, match="not finished"):
        plan(item(), Seen(**OURS, moving=True), NOTHING)


def test_a_foreign_domain_is_not_touched() -> None:
    for state in gd.STATES:
        with pytest.raises(Refused, match="not made by"):
            plan(item(state), Seen(defined=True, state="running"), NOTHING)
    found = plan(item(), Seen(defined=True, state="running", autostart=True), NOTHING, adopt=True)
    assert found.actions == ["adopt"]
    assert found.define
    removed = plan(item("absent"), Seen(defined=True, state="running"), None, adopt=True)
    assert removed.actions == ["stop", "remove"]


def test_a_transient_domain_is_not_kept() -> None:
    with pytest.raises(Refused, match="transient"):
        plan(item(), Seen(**OURS, persistent=False, state="running"), NOTHING)
    assert plan(item("absent"), Seen(**OURS, persistent=False, state="running")).actions == ["stop", "remove"]


@pytest.mark.parametrize("why", ["migration", "post_copy_failed", "save"])
def test_what_something_else_paused_is_not_resumed(why: str) -> None:
    with pytest.raises(Refused, match="goes on"):
        plan(item(), Seen(**OURS, state="paused", why=why), NOTHING)


def test_what_paused_by_itself_is_resumed() -> None:
    assert plan(item(), Seen(**OURS, state="paused", why="io_error"), NOTHING).resume


def test_autostart_is_what_was_said_or_follows_from_the_state() -> None:
    seen = Seen(**OURS, state="running")
    assert plan(item(), seen, NOTHING).autostart is None
    assert plan(item(autostart=False), seen, NOTHING).autostart is False
    assert plan(item("stopped", autostart=True), seen, NOTHING).autostart is None
    kept = Seen(defined=True, managed=True, state="running", autostart=True, definition={"autostart": True})
    assert plan(gd.normalise({"name": "web", "state": "stopped"}), kept).autostart is None


def test_a_record_without_a_domain_is_made_again() -> None:
    seen = Seen(definition={"name": "web"}, owner={"owner": "me"})
    assert plan(item(), seen, NOTHING).create
    assert plan(item("absent"), seen).actions == ["remove"]


def apply(seen: Seen, found: Plan) -> Seen:
    """What a guest is after its plan."""
    if found.remove:
        return Seen()
    state = seen.state
    if found.stop or found.create:
        state = guest_plan.STOPPED
    if found.start or found.resume:
        state = guest_plan.RUNNING
    if found.pause:
        state = guest_plan.PAUSED
    autostart = seen.autostart if found.autostart is None else found.autostart
    defined = seen.defined or found.create
    return Seen(
        definition={"name": "web"} if defined else None,
        defined=defined,
        managed=defined,
        state=state,
        autostart=autostart,
    )


@given(
    st.sampled_from(gd.STATES),
    st.sampled_from(["running", "paused", "stopped", "stopping", "crashed", "suspended"]),
    st.booleans(),
    st.booleans(),
)
def test_a_second_run_changes_nothing(state: str, was: str, there: bool, autostart: bool) -> None:
    seen = Seen(**{**OURS, "state": was, "autostart": autostart}) if there else Seen()
    wanted = item(state)
    try:
        first = plan(wanted, seen, NOTHING)
    except CnvmError:
        return
    after = apply(seen, first)
    second = plan(wanted, after, NOTHING)
    assert second.actions == []
    expected = {"running": "running", "paused": "paused", "stopped": "stopped"}
    if state in expected:
        assert after.state == expected[state]


def test_states_of_libvirt_have_words() -> None:
    assert [guest_plan.state_of(number) for number in (1, 3, 5, 7)] == ["running", "paused", "stopped", "suspended"]
    assert guest_plan.state_of(99) == "stopped"
    assert guest_plan.paused_reason(1) == "user"
    assert guest_plan.paused_reason(99) == "unknown"
