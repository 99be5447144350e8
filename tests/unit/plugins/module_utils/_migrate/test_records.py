# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owner records and journals, and what follows from them (test_handover_model has all of it at work)."""

from __future__ import annotations

import json
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

MINE = records.owner_record("web", "u", "S", "host1", 3)
GIVEN = records.handed_over(MINE, "T", "host2")
BACK = records.owner_record("web", "u", "S", "host1", 5)
JOURNAL = records.journal("source", records.SOURCE_FROZEN, "m1", MINE, "host2", "T", "stop_copy", "b")


def test_handover_is_the_next_generation() -> None:
    assert GIVEN == {**MINE, "owner": "T", "owner_name": "host2", "generation": 4}
    assert MINE["generation"] == 3
    assert json.loads(json.dumps(JOURNAL)) == JOURNAL
    assert JOURNAL["generation"] == 3


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(GIVEN, MINE, True), (MINE, GIVEN, False), (MINE, MINE, False), (MINE, None, True), (None, None, False)],
)
def test_newer(one: t.Any, other: t.Any, expected: bool) -> None:
    assert records.newer(one, other) is expected


@pytest.mark.parametrize(
    ("owner", "journal", "busy", "expected"),
    [
        (MINE, JOURNAL, True, records.UNDECIDED),
        (MINE, JOURNAL, False, records.DECIDED_ABORT),
        (MINE, None, False, records.DECIDED_ABORT),
        # Somebody is at work on the container, but not in this move.
        (MINE, {**JOURNAL, "move_id": "m2"}, True, records.DECIDED_ABORT),
        (MINE, None, True, records.DECIDED_ABORT),
        (GIVEN, JOURNAL, True, records.DECIDED_COMMIT),
        (GIVEN, JOURNAL, False, records.DECIDED_COMMIT),
        (GIVEN, None, False, records.DECIDED_COMMIT),
        # Committed to somebody else: this target has no part in it.
        ({**GIVEN, "owner": "X"}, None, False, records.DECIDED_ABORT),
        (BACK, None, False, records.TAKEN_BACK),
        (BACK, JOURNAL, True, records.TAKEN_BACK),
        (None, None, False, records.DECIDED_ABORT),
    ],
)
def test_decision(owner: t.Any, journal: t.Any, busy: bool, expected: str) -> None:
    assert records.decision("m1", 3, "S", "T", owner, journal, busy) == expected


@given(st.integers(-3, 9), st.sampled_from("STX"), st.booleans(), st.sampled_from([None, "m1", "m2"]))
def test_a_source_that_may_run_it_never_says_commit(generation: int, owner: str, busy: bool, move: t.Any) -> None:
    record = {**MINE, "owner": owner, "generation": generation}
    journal = None if move is None else {**JOURNAL, "move_id": move}
    said = records.decision("m1", 3, "S", "T", record, journal, busy)
    assert (said == records.DECIDED_COMMIT) == (owner == "T" and generation == 4)


def test_source_next() -> None:
    for state in (records.SOURCE_BEGUN, records.SOURCE_FROZEN):
        assert records.source_next(state, True) == "roll_back"
        assert records.source_next(state, False) == "finish"
    assert records.source_next(records.SOURCE_LEAVING, False) == "let_go"
    with pytest.raises(ValueError):
        records.source_next("prepared", True)


STATES = (records.TARGET_RECEIVING, records.TARGET_PREPARED, records.TARGET_ACTIVE)
ANSWERS = (None, records.DECIDED_COMMIT, records.DECIDED_ABORT, records.UNDECIDED, records.TAKEN_BACK)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("decided", ANSWERS)
def test_target_next(state: str, decided: t.Optional[str]) -> None:
    following = records.target_next(state, decided)
    # Without the source's word nothing starts, and nothing is given up that the source may count on.
    assert (following == "activate") == (state == records.TARGET_PREPARED and decided == records.DECIDED_COMMIT)
    if state == records.TARGET_PREPARED and decided in (None, records.UNDECIDED):
        assert following == "wait"
    if decided == records.TAKEN_BACK:
        assert following == "give_back"
    elif state == records.TARGET_ACTIVE:
        assert following == "done"
    # A promise is kept whatever the source says.
    assert records.target_next(state, decided, promised=True) == "give_back"


@pytest.mark.parametrize(("generation", "expected"), [(3, False), (4, False), (5, True), (6, True)])
def test_given_back(generation: int, expected: bool) -> None:
    assert records.given_back({**MINE, "generation": generation}, 3) is expected
    assert records.given_back(None, 3) is False
