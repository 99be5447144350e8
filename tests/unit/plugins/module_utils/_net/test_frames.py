# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames and packets that are put together by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._net import arp, icmp

MAC, ADDRESS = "02:3e:74:4b:9d:c3", "10.100.101.22"


def test_an_announcement_is_laid_out_as_rfc_5227_says() -> None:
    fields = [
        "ffffffffffff",  # to everybody
        "023e744b9dc3",
        "0806",
        "0001",  # Ethernet
        "0800",  # IPv4
        "06",
        "04",
        "0001",  # a request
        "023e744b9dc3",
        "0a646516",
        "000000000000",
        "0a646516",  # sender and target are the same address: an announcement
    ]
    assert arp.announcement(MAC, ADDRESS).hex() == "".join(fields)


def test_a_probe_claims_nothing() -> None:
    assert arp.sender_of(arp.probe(MAC, ADDRESS)) == (MAC, "0.0.0.0")
    assert arp.probe(MAC, ADDRESS)[38:42].hex() == "0a646516"


def test_the_sender_is_read_back() -> None:
    assert arp.sender_of(arp.announcement(MAC, ADDRESS) + bytes(18)) == (MAC, ADDRESS)


@pytest.mark.parametrize("frame", [b"", bytes(60), b"\xff" * 12 + b"\x08\x00" + bytes(46)])
def test_what_is_no_arp_has_no_sender(frame: bytes) -> None:
    assert arp.sender_of(frame) is None


def test_a_request_without_data_is_a_header_with_its_sum() -> None:
    """The sum is the complement of 0800 + 0d3b + 0001 (RFC 792)."""
    assert icmp.request(0x0D3B, 1, 28).hex() == "0800" + f"{0xFFFF - (0x0800 + 0x0D3B + 0x0001):04x}" + "0d3b0001"


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 9000))
def test_a_request_has_its_size_and_a_sum_that_adds_up(identifier: int, sequence: int, size: int) -> None:
    packet = icmp.request(identifier, sequence, size)
    assert 20 + len(packet) == (size // 2 * 2 if size >= 28 else 28)
    total = sum(int.from_bytes(packet[at : at + 2], "big") for at in range(0, len(packet), 2))
    assert total % 0xFFFF == 0


def test_a_reply_is_told_from_a_request() -> None:
    request = icmp.request(7, 9, 64)
    header = b"\x45" + bytes(19)
    assert icmp.reply_of(header + b"\0" + request[1:]) == (7, 9)
    assert icmp.reply_of(header + request) is None
    assert icmp.reply_of(b"\x46" + bytes(23) + b"\0" + request[1:]) == (7, 9)  # with an IP option
    assert icmp.reply_of(b"") is None
    assert icmp.reply_of(header + b"\0\0") is None
