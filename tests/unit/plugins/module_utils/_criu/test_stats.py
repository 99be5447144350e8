# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's statistics; the file is one that CRIU 4.2.1 wrote."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._criu import stats

DUMP = base64.b64decode("QFkQVQYzCVciAAAACiAIuBUQhtABGIYCIEAoNzAAOB1AAEgAUAZYBmAAaABwAA==")
NUMBERS = {
    "freezing_time": 2744, "frozen_time": 26630, "memdump_time": 262, "memwrite_time": 64, "pages_scanned": 55,
    "pages_skipped_parent": 0, "pages_written": 29, "irmap_resolve": 0, "pages_lazy": 0, "page_pipes": 6,
    "page_pipe_bufs": 6, "shpages_scanned": 0, "shpages_skipped_parent": 0, "shpages_written": 0,
}  # fmt: skip


def test_a_dump() -> None:
    assert stats.parse(DUMP) == NUMBERS


@pytest.mark.parametrize("length", range(len(DUMP)))
def test_a_file_that_was_cut_off_gives_nothing_wrong(length: int) -> None:
    found = stats.parse(DUMP[:length])
    assert found.items() <= NUMBERS.items()


@pytest.mark.parametrize("data", [b"", b"{}", DUMP[8:], b"\0" * 64, DUMP[:12] + b"\xff" * 40])
def test_what_is_no_statistics_file(data: bytes) -> None:
    assert stats.parse(data) == {}


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    assert isinstance(stats.parse(DUMP[:12] + data), dict)


def entry(*fields: int) -> bytes:
    """A message of an image: its size, then numbers for the fields from 1 on."""
    body = b"".join(bytes([number << 3]) + bytes([value]) for number, value in enumerate(fields, 1))
    return struct.pack("<I", len(body)) + body


PAGEMAP = struct.pack("<II", 0x54564319, 0x56084025)


def test_pages_that_were_left_behind_are_counted() -> None:
    # Address, pages, in the parent, flags (4: in the images, 2: left behind), pages in 64 bits.
    image = PAGEMAP + entry(1) + entry(9, 5, 0, 4) + entry(9, 7, 0, 2) + entry(9, 0, 0, 6, 11)
    assert stats.lazy_pages(image) == 18


@given(st.binary(max_size=200))
def test_any_bytes_are_no_pages(data: bytes) -> None:
    assert stats.lazy_pages(data) == 0
    assert isinstance(stats.lazy_pages(PAGEMAP + data), int)
