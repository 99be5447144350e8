# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target may forget a move unasked only when the new request proves that its source has given it up."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

OWNER = records.owner_record("web", "u1", "id1", "host1", 4)
JOURNAL = records.journal("target", records.TARGET_RECEIVING, "m1", OWNER, "host1", "id1", "stop_copy", "b1")


@pytest.mark.parametrize("state", [records.TARGET_RECEIVING, records.TARGET_PREPARED])
def test_the_source_has_begun_anew(state: str) -> None:
    assert records.superseded({**JOURNAL, "state": state}, OWNER)


@pytest.mark.parametrize(
    "change",
    [
        {"state": records.TARGET_ACTIVE},
        {"role": "source", "state": records.SOURCE_BEGUN},
        {"peer_id": "id3"},
        {"uuid": "u2"},
        {"generation": 3},
        {"generation": 5},
    ],
)
def test_anything_else_must_be_recovered(change: dict) -> None:
    assert not records.superseded({**JOURNAL, **change}, OWNER)
