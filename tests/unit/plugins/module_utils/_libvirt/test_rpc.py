# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames of libvirt's protocol: cut anywhere, and only those let through that bring a guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import PeerError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import rpc

from .frames import frame, parameter, request, text


def one(data: bytes) -> rpc.Frame:
    (found,) = rpc.Frames().feed(data)
    return found


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_frames_come_out_whole_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(number, body=body) for number, body in enumerate(bodies))
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    frames = rpc.Frames()
    found = [each for begin, end in zip(places, places[1:]) for each in frames.feed(stream[begin:end])]
    assert [each.data[28:] for each in found] == bodies
    assert [each.procedure for each in found] == list(range(len(bodies)))


@pytest.mark.parametrize("size", [0, 27, rpc.MAX_FRAME + 1, 2**32 - 1])
def test_another_protocol(size: int) -> None:
    with pytest.raises(PeerError):
        rpc.Frames().feed(size.to_bytes(4, "big") + b"SSH-2.0")


@pytest.mark.parametrize("procedure", rpc.ALLOWED)
def test_what_brings_a_guest_is_let_through(procedure: int) -> None:
    assert rpc.is_allowed(one(frame(procedure)))


@pytest.mark.parametrize(
    "data",
    [
        frame(11),  # DOMAIN_CREATE_XML
        frame(304),  # DOMAIN_MIGRATE_PREPARE_TUNNEL3_PARAMS
        frame(1, program=0x20008087),  # QEMU's program, whose procedure 1 is a monitor command
        frame(rpc.PREPARE, kind=2),
        frame(rpc.PREPARE, kind=4),  # a call that brings file descriptors
    ],
)
def test_nothing_else_is_let_through(data: bytes) -> None:
    assert not rpc.is_allowed(one(data))


def test_a_sign_of_life_is_let_through() -> None:
    assert rpc.is_allowed(one(frame(1, kind=2, program=rpc.KEEPALIVE)))


def test_only_the_good_answer_to_the_last_question_says_that_a_guest_has_arrived() -> None:
    assert rpc.is_arrival(one(frame(rpc.FINISH, rpc.REPLY)))
    for other in (
        frame(rpc.FINISH, rpc.REPLY, status=1),
        frame(rpc.FINISH),
        frame(rpc.PREPARE, rpc.REPLY),
        frame(rpc.FINISH, rpc.REPLY, program=rpc.KEEPALIVE),
    ):
        assert not rpc.is_arrival(one(other))


def test_what_a_request_says_is_read() -> None:
    number = text(b"bandwidth") + (4).to_bytes(4, "big") + bytes(8)
    body = request(number, parameter(b"destination_xml", "<domain>ä</domain>".encode()), cookie=b"<a/>\0")
    for procedure in (rpc.PREPARE, rpc.FINISH):
        said = rpc.arguments(one(frame(procedure, body=body)))
        assert said == ({"destination_xml": "<domain>ä</domain>"}, b"<a/>")
        assert rpc.arguments(one(frame(procedure, rpc.REPLY, body=body))) is None
    assert rpc.arguments(one(frame(rpc.OPEN, body=body))) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        request(parameter(b"destination_xml", b"<a/>"), parameter(b"destination_xml", b"<b/>")),
        request(text(b"destination_xml") + (7).to_bytes(4, "big") + (99).to_bytes(4, "big") + b"<a/>"),
        request(text(b"x") + (8).to_bytes(4, "big")),
        (2**32 - 1).to_bytes(4, "big"),
        request(cookie=b"<a/>", rest=b"")[:-1],
    ],
)
def test_a_request_that_libvirt_would_not_write_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError):
        rpc.arguments(one(frame(rpc.PREPARE, body=body)))


@pytest.mark.parametrize(
    ("data", "departs", "answers"),
    [
        (frame(rpc.FINISH, body=bytes(12)), True, False),
        (frame(rpc.FINISH, body=bytes(11) + b"\1"), False, False),  # given up
        (frame(rpc.PREPARE, body=bytes(12)), False, False),
        (frame(rpc.FINISH, rpc.REPLY, body=bytes(12)), False, True),
        (frame(rpc.FINISH, rpc.REPLY, status=1), False, True),
        (frame(rpc.FINISH, body=bytes(12), program=rpc.KEEPALIVE), False, False),
    ],
)
def test_what_lets_a_guest_run_and_how_it_went(data: bytes, departs: bool, answers: bool) -> None:
    assert (rpc.is_departure(one(data)), rpc.is_answer(one(data))) == (departs, answers)
