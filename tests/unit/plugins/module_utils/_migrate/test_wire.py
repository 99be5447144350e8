# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes over the channel between two hosts."""

from __future__ import annotations

import io
import struct
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core import errors
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(blacklist_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def sent(parts: t.Sequence[bytes]) -> bytes:
    out = io.BytesIO()

    def write(data: bytes) -> None:
        out.write(data)

    writer = wire.ChunkWriter(write)
    for part in parts:
        assert writer.write(memoryview(part)) == len(part)
    writer.close()
    return out.getvalue()


def reader(data: bytes) -> wire.ChunkReader:
    source = io.BytesIO(data)

    def exactly(size: int) -> bytes:
        found = source.read(size)
        if len(found) < size:
            raise errors.PeerError("cut")
        return found

    return wire.ChunkReader(exactly, source.readline)


@given(st.dictionaries(st.text(st.characters(blacklist_categories=["Cs"]), max_size=5), VALUES, max_size=5))
def test_a_line_is_one_line_and_comes_back(value: dict[str, t.Any]) -> None:
    data = wire.line(value)
    assert data.count(b"\n") == 1
    assert wire.parse(data) == value


@pytest.mark.parametrize("data", [b"", b"\n", b"Welcome to host2\n", b"[1]\n", b"\xff\xfe\n", b'{"a":', b"null\n"])
def test_what_is_no_protocol(data: bytes) -> None:
    with pytest.raises(errors.PeerError, match="not our protocol"):
        wire.parse(data)


@given(st.lists(st.binary(max_size=5000), max_size=20), st.integers(1, 7000))
def test_a_stream_comes_back(parts: list[bytes], size: int) -> None:
    stream = reader(sent(parts))
    found = b""
    while True:
        part = stream.read(size)
        if not part:
            break
        assert len(part) <= size
        found += part
    stream.finish()
    stream.finish()
    assert found == b"".join(parts)
    assert stream.count == len(found)


def test_a_stream_larger_than_a_chunk() -> None:
    data = bytes(range(256)) * (3 * wire.CHUNK // 256 + 1)
    stream = reader(sent([data]))
    assert stream.read() == data
    stream.finish()


def test_one_large_write_is_cut_into_chunks() -> None:
    sizes: list[int] = []
    writer = wire.ChunkWriter(lambda data: sizes.append(len(data)))
    writer.write(b"x" * (9 * wire.CHUNK))
    writer.close()
    assert len(sizes) == 10
    assert max(sizes) == wire.CHUNK + 4


def test_what_is_not_read_is_finished() -> None:
    source = io.BytesIO(sent([b"x" * 9000]) + b"next\n")
    stream = wire.ChunkReader(source.read, source.readline)
    stream.read(3)
    stream.finish()
    assert source.readline() == b"next\n"


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_changed_byte_is_found(content: bytes, data: st.DataObject) -> None:
    raw = bytearray(sent([content]))
    at = data.draw(st.integers(4, 3 + len(content)))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(errors.PeerError, match="checksums differ"):
        reader(bytes(raw)).finish()


@given(st.binary(max_size=300), st.data())
def test_a_stream_that_was_cut_is_found(content: bytes, data: st.DataObject) -> None:
    raw = sent([content])
    with pytest.raises(errors.PeerError):
        reader(raw[: data.draw(st.integers(0, len(raw) - 2))]).finish()


def test_what_went_out_before_a_write_failed_can_be_ended() -> None:
    out = io.BytesIO()

    def write(data: bytes) -> None:
        if out.tell() > 2 * wire.CHUNK:
            raise errors.HostError("No space.")
        out.write(data)

    writer = wire.ChunkWriter(write)
    with pytest.raises(errors.HostError):
        writer.write(b"x" * (4 * wire.CHUNK + 1))
    end = io.BytesIO()
    writer._write = lambda data: end.writelines([data])
    writer.end()
    stream = reader(out.getvalue() + end.getvalue())
    assert len(stream.read()) == 2 * wire.CHUNK
    stream.finish()


def test_a_chunk_that_is_too_long_is_not_read() -> None:
    """Nor anything behind it, of which nobody knows what it is."""
    stream = reader(struct.pack(">I", 2**32 - 1) + sent([b"x"]))
    for read in (lambda: stream.read(1), stream.finish):
        with pytest.raises(errors.PeerError, match="4294967295 bytes"):
            read()


@pytest.mark.parametrize("kind", [errors.HostError, errors.Refused, errors.PeerError, errors.InputError])
def test_an_error_is_raised_there_as_it_was_here(kind: type[errors.CnvmError]) -> None:
    answer = wire.parse(wire.error_line(kind("No.", hint="Do it.", criu_error="x", peer="me")))
    with pytest.raises(kind) as caught:
        wire.result_of(answer, "host2")
    assert caught.type is kind
    assert (caught.value.message, caught.value.hint) == ("No.", "Do it.")
    assert caught.value.details == {"criu_error": "x", "peer": "host2"}


def test_a_defect_arrives_with_its_name() -> None:
    with pytest.raises(errors.HostError, match="KeyError: 'x'"):
        wire.result_of(wire.parse(wire.error_line(KeyError("x"))), "host2")


@pytest.mark.parametrize("kind", ["t", "annotations", "SystemExit", "", None, "CnvmError"])
def test_a_peer_cannot_choose_what_is_raised(kind: t.Any) -> None:
    with pytest.raises(errors.CnvmError):
        wire.result_of({"error": {"kind": kind, "message": "m"}}, "host2")


def test_result() -> None:
    assert wire.result_of({"result": {"a": 1}}, "host2") == {"a": 1}
    assert wire.result_of({}, "host2") == {}
