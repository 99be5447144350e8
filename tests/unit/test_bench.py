# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks make of what they have measured."""

from __future__ import annotations

import argparse
import types
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.bench import guests
from ansible_collections.cnvm.platform.tests.support.stage import Failed

# As virsh of libvirt 11 says it; shortened.
SAID = """Job type:         Completed
Time elapsed:     1842         ms
Memory processed: 50.250 MiB
Memory remaining: 0.000 B
Dirty rate:       0            pages/s
Iteration:        3
Total downtime:   48           ms
"""


def options(**given: t.Any) -> argparse.Namespace:
    return argparse.Namespace(**{"parts": ",".join(guests.PARTS), "write": False, **given})


class Begun(Exception):
    """The hosts would be made now."""


@pytest.fixture
def stage() -> t.Any:
    def begin(text: str) -> t.NoReturn:
        raise Begun(text)

    return types.SimpleNamespace(teller=types.SimpleNamespace(step=begin))


@pytest.mark.parametrize("parts", ["clones", "clones,many", ",".join(guests.PARTS[1:])])
def test_a_part_of_the_table_does_not_replace_it(stage: t.Any, parts: str) -> None:
    with pytest.raises(Failed, match=r"^--write: the table is of a whole run"):
        guests.main(stage, options(parts=parts, write=True))
    with pytest.raises(Begun):
        guests.main(stage, options(parts=parts))
    with pytest.raises(Begun):
        guests.main(stage, options(write=True))


def test_the_document_has_the_rows_that_are_written() -> None:
    """Their words; the figures are of a run."""
    written = guests.DOCUMENT.read_text(encoding="utf-8").partition(guests.BEGIN)[2].partition(guests.END)[0]
    there = [line.split(" | ")[0].removeprefix("| ") for line in written.strip().splitlines()[2:]]
    assert there == [row[0] for row in (*guests.ROWS, *guests.ALONE)]


def test_what_virsh_tells_of_the_memory() -> None:
    assert guests.job_info(SAID) == {
        "memory_sent_bytes": 50.25 * guests.MIB,
        "memory_rounds": 3,
        "memory_dirty_pages_per_s": 0,
    }
    assert guests.job_info("error: no job") == {}
