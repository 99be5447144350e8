# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of another process are ended, or kept short, and only those to one address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import connections

# Connects to each, says so, waits until all but the first have ended, and says how that one is.
PROGRAM = """
import select, socket, sys
first, *rest = [socket.create_connection((address, int(port))) for address, port in map(str.split, sys.argv[1:])]
print("there", flush=True)
assert not any(one.recv(1) for one in rest)
print("ended" if select.select([first], [], [], 0)[0] else "open", flush=True)
"""


@pytest.fixture
def servers() -> t.Iterator[list[str]]:
    """Two addresses with a port each, on which somebody takes connections and says nothing."""
    listening = [socket.create_server((address, 0)) for address in ("127.0.0.1", "127.0.0.2")]
    yield [f"{one.getsockname()[0]} {one.getsockname()[1]}" for one in listening]
    for one in listening:
        one.close()


def test_those_to_one_address_end(servers: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *servers, servers[1]], stdout=subprocess.PIPE, text=True
    ) as client:
        out = t.cast("t.IO[str]", client.stdout)
        try:
            assert out.readline() == "there\n"
            assert connections.cut(client.pid, "127.0.0.3") == 0
            assert connections.cut(client.pid, "127.0.0.2") == 2
            assert out.readline() == "open\n"
        finally:
            client.kill()
    assert connections.cut(client.pid, "127.0.0.2") == 0


def test_those_to_one_address_are_kept_short(servers: list[str]) -> None:
    def unsent_bytes(one: socket.socket) -> int:
        return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)

    here, there = (socket.create_connection((address, int(port))) for address, port in map(str.split, servers))
    with here, there:
        before = unsent_bytes(here)
        connections.keep_short(os.getpid(), "127.0.0.2", 131_072)
        assert (unsent_bytes(here), unsent_bytes(there)) == (before, 131_072)
