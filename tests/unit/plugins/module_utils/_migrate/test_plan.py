# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether and how a container can move."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan

RUNTIMES = {"runc": {"version": "1.3.6", "checkpoint": True}, "crun": {"version": "1.21", "checkpoint": True}}
SOURCE = plan.Side(
    "host1", "x86_64", frozenset({"avx", "sse"}), "6.12.1", "4.2.1", frozenset({"uffd-noncoop"}), RUNTIMES, 2,
    frozenset({"memory"}),
)  # fmt: skip
TARGET = SOURCE._replace(name="host2")
WORK = plan.Workload("web", "runc", True, 2**30, 0, 0)
RATE = 125e6


def make(
    wishes: t.Optional[plan.Wishes] = None, work: plan.Workload = WORK, source: plan.Side = SOURCE, **target: t.Any
) -> plan.Plan:
    return plan.make(source, TARGET._replace(**target), work, wishes or plan.Wishes(), RATE)


def tracking(side: plan.Side) -> plan.Side:
    return side._replace(criu_features=frozenset({"uffd-noncoop", "mem_dirty_track"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4.2.1", (4, 2, 1)), ("6.18.44-fc-v669", (6, 18, 44)), ("1.1.15+ds1", (1, 1, 15)), ("", ()), ("v1", ())],
)
def test_version(text: str, expected: tuple[int, ...]) -> None:
    assert plan.version(text) == expected


def test_auto_stops_where_it_can_do_nothing_better() -> None:
    made = make()
    assert (made.mode, made.blockers) == (plan.STOP_COPY, ())
    assert made.reasons == (
        "no pre-copy: host1, host2: the kernel does not track dirty memory (CONFIG_MEM_SOFT_DIRTY)",
        "no post-copy: the task does not allow it",
    )


def test_auto_takes_pre_copy_where_both_can() -> None:
    both = tracking(SOURCE).criu_features
    assert make(source=tracking(SOURCE), criu_features=both).mode == plan.PRE_COPY
    assert make(source=tracking(SOURCE)).mode == plan.STOP_COPY
    assert make(plan.Wishes(allow_post_copy=True), source=tracking(SOURCE), criu_features=both).mode == plan.PRE_COPY


def test_auto_takes_post_copy_only_when_it_may() -> None:
    allowed = plan.Wishes(allow_post_copy=True)
    assert make(allowed).mode == plan.POST_COPY
    assert make(allowed, WORK._replace(runtime="crun")).mode == plan.STOP_COPY
    assert make(allowed, criu_features=frozenset()).mode == plan.STOP_COPY


def test_post_copy_must_be_allowed() -> None:
    assert "Set allow_post_copy: true." in make(plan.Wishes(plan.POST_COPY)).blockers[0]
    assert make(plan.Wishes(plan.POST_COPY, allow_post_copy=True)).blockers == ()


def test_the_window_of_post_copy_is_told() -> None:
    for wishes in (plan.Wishes(allow_post_copy=True), plan.Wishes(plan.POST_COPY, allow_post_copy=True)):
        assert plan.WINDOW in make(wishes).reasons
    assert plan.WINDOW not in make().reasons


def test_what_was_asked_for_and_cannot_be() -> None:
    assert "mode pre_copy is not possible: host1" in make(plan.Wishes(plan.PRE_COPY)).blockers[0]


def test_what_does_not_run_goes_cold() -> None:
    made = make(plan.Wishes(plan.POST_COPY), WORK._replace(running=False, memory=0))
    assert (made.mode, made.blockers, made.expected_frozen_ms) == (plan.COLD, (), 0)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"architecture": "aarch64"}, "host2 is aarch64, host1 is x86_64."),
        ({"runtimes": {}}, "host2 has no runc. Run the role host_bootstrap on it."),
        ({"cgroup_version": 1}, "host2 does not use cgroup version 2."),
        (
            {"runtimes": {"runc": {"version": "1.3.6", "reason": "no libcriu"}}},
            "host2: runc cannot restore: no libcriu.",
        ),
        ({"criu": "4.1"}, "CRIU is 4.2.1 on host1 and 4.1 on host2."),
        ({"criu": ""}, "CRIU is 4.2.1 on host1 and missing on host2."),
        ({"cpu_flags": frozenset({"sse"})}, "The CPU of host2 lacks avx, which web may be using."),
    ],
)
def test_blockers(target: dict[str, t.Any], said: str) -> None:
    assert any(one.startswith(said) for one in make(**target).blockers)


@pytest.mark.parametrize(
    ("here", "there", "refused"), [(3632, 1776, True), (1776, 3632, False), (0, 1776, False), (3632, 0, False)]
)
def test_a_cpu_of_which_less_is_saved(here: int, there: int, refused: bool) -> None:
    """0: a kernel that does not tell."""
    source = SOURCE._replace(signal_frame=here)
    made = make(source=source, signal_frame=there)
    assert [f"({there} bytes for a signal, not {here})" in one for one in made.blockers] == [True] * refused
    asked = make(plan.Wishes(cpu_check="none"), source=source, signal_frame=there)
    assert (asked.blockers, len(asked.warnings)) == ((), int(refused))


def test_all_blockers_at_once() -> None:
    work = WORK._replace(controllers=frozenset({"cpu", "memory", "pids"}), obstacles=("web is traced.",))
    made = make(plan.Wishes(max_downtime_ms=1), work, architecture="aarch64", runtimes={}, cgroup_version=1)
    assert len(made.blockers) >= 6
    assert "host2 lacks the cgroup controller cpu, which a limit of web needs." in made.blockers
    assert "host2 lacks the cgroup controller pids, which a limit of web needs." in made.blockers


def test_all_that_a_mode_lacks_at_once() -> None:
    crun = WORK._replace(runtime="crun")
    assert make(plan.Wishes(plan.PRE_COPY)).blockers == (
        "mode pre_copy is not possible: host1, host2: the kernel does not track dirty memory (CONFIG_MEM_SOFT_DIRTY).",
    )
    (said,) = make(plan.Wishes(plan.POST_COPY, True), crun, criu_features=frozenset()).blockers
    assert "crun has no lazy pages; only runc does; host2: the kernel has no userfaultfd" in said


def test_cold_needs_no_criu() -> None:
    nothing: dict[str, t.Any] = {"criu": "", "runtimes": {"runc": {"version": "1.1"}}, "cpu_flags": frozenset()}
    work = WORK._replace(obstacles=("web is traced.",))
    assert make(plan.Wishes(plan.COLD), work, **nothing).blockers == ()
    assert make(plan.Wishes(plan.STOP_COPY), work).blockers == ("web is traced.",)


@pytest.mark.parametrize("running", [True, False])
def test_what_would_stay_behind_is_in_the_way_of_a_cold_move_too(running: bool) -> None:
    work = WORK._replace(running=running, ties=("web has /data mounted.",))
    assert make(plan.Wishes(plan.COLD), work).blockers == ("web has /data mounted.",)


def test_warnings() -> None:
    made = make(
        plan.Wishes(cpu_check="none"), criu="4.3", kernel="6.1.0", cpu_flags=frozenset(),
        runtimes={"runc": {"version": "1.4.0", "checkpoint": True}},
    )  # fmt: skip
    assert made.blockers == ()
    assert len(made.warnings) == 4


@pytest.mark.parametrize(("most", "refused"), [(0, False), (1, True), (60_000, False)])
def test_downtime_that_is_too_long(most: int, refused: bool) -> None:
    assert bool(make(plan.Wishes(max_downtime_ms=most)).blockers) == refused


@given(st.integers(0, 2**40), st.floats(1e5, 1e11))
def test_expected_frozen_time(memory: int, rate: float) -> None:
    work = WORK._replace(memory=memory)
    times = {mode: plan.expected_frozen_ms(mode, work, rate) for mode in plan.MODES[1:]}
    assert all(time >= 0 for time in times.values())
    assert times[plan.PRE_COPY] <= times[plan.STOP_COPY]
    more = WORK._replace(memory=memory + 2**30)
    assert plan.expected_frozen_ms(plan.STOP_COPY, more, rate) > times[plan.STOP_COPY]


@pytest.mark.parametrize("mode", [plan.PRE_COPY, plan.POST_COPY, plan.STOP_COPY])
@pytest.mark.parametrize("what", ["shared", "tmpfs"])
def test_what_cannot_be_sent_before_or_after_counts_in_every_mode(mode: str, what: str) -> None:
    more = WORK._replace(shared=125_000_000) if what == "shared" else WORK._replace(tmpfs=125_000_000)
    assert plan.expected_frozen_ms(mode, more, RATE) - plan.expected_frozen_ms(mode, WORK, RATE) >= 1000
    assert plan.expected_frozen_ms(plan.COLD, more, RATE) == plan.expected_frozen_ms(plan.COLD, WORK, RATE)


def test_as_result_is_plain() -> None:
    assert make().as_result()["reasons"] == list(make().reasons)
