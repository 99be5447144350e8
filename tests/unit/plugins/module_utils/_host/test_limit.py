# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent is no more than was asked for, in each part of the time; what was not sent is not made up for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._host.limit import Limit

from .fake_clock import Clock

MIB = 2**20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(1, 1 << 16), st.floats(0, 3, allow_nan=False)), min_size=1, max_size=40),
)
def test_in_no_time_more_goes_out(clock: Clock, mib_s: int, writes: list[tuple[int, float]]) -> None:
    """``writes``: of how many bytes, and for how long the link took none before."""
    limit = Limit(mib_s)
    out: list[tuple[float, int]] = []
    for count, blocked_s in writes:
        clock.now += blocked_s
        assert count <= limit.piece
        out.append((clock.now, count))
        limit.sent(count)
    for first, (begin, _count) in enumerate(out):
        for last in range(first, len(out)):
            sent = sum(count for _now, count in out[first : last + 1])
            assert sent <= (out[last][0] - begin + 0.1 + 1e-6) * mib_s * MIB + limit.piece


def test_it_goes_on_evenly(clock: Clock) -> None:
    """The least limit, too, lets something out every tenth of a second."""
    begin, limit = clock.now, Limit(1)
    for _number in range(160):
        limit.sent(limit.piece)
    assert clock.now - begin == pytest.approx(160 * limit.piece / MIB)
    assert max(clock.slept) < 0.1


def test_what_was_not_sent_is_not_made_up_for(clock: Clock) -> None:
    """While the link took nothing, or there was only a hole to be read."""
    limit = Limit(1)
    clock.now += 60
    begin = clock.now
    for _number in range(32):
        limit.sent(limit.piece)
    assert clock.now - begin == pytest.approx(32 * limit.piece / MIB - 0.1)


def test_sleeping_too_long_is_made_up_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A high limit has pauses that are shorter than any sleep."""
    exact = clock.sleep
    monkeypatch.setattr(clock, "sleep", lambda seconds: exact(seconds + 0.0002))
    begin, limit = clock.now, Limit(2000)
    for _number in range(16 * 4000):
        limit.sent(limit.piece)
    assert clock.now - begin == pytest.approx(2.0, rel=0.01)


def test_none(clock: Clock) -> None:
    limit = Limit(0)
    for _number in range(100):
        limit.sent(limit.piece)
    assert clock.slept == []
