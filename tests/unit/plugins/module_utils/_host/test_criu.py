# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRIU leaves behind: sockets in repair mode, packet-drop tables, processes."""

from __future__ import annotations

import os
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import criu, freezer
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

REPAIR = 19


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


@pytest.fixture
def in_repair() -> t.Iterator[tuple[socket.socket, socket.socket]]:
    client, other = connected()
    with client, other:
        try:
            client.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
        except PermissionError:
            pytest.skip("needs CAP_NET_ADMIN")
        yield client, other


def test_leave_repair(in_repair: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = in_repair
    with pytest.raises(OSError, match=r"."):
        client.send(b"x")
    monkeypatch.setattr(freezer, "processes", lambda cgroup: [os.getpid(), 2**22 + 5])
    open_before = len(os.listdir("/proc/self/fd"))
    assert criu.leave_repair("/x") == 1
    assert criu.leave_repair("/x") == 0
    assert len(os.listdir("/proc/self/fd")) == open_before
    client.sendall(b"it goes on")
    assert other.recv(20) == b"it goes on"


def test_other_sockets_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = connected()
    one, two = socket.socketpair()
    with client, other, one, two, socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        monkeypatch.setattr(freezer, "processes", lambda cgroup: [os.getpid()])
        assert criu.leave_repair("/x") == 0
        client.sendall(b"a")
        assert other.recv(1) == b"a"
        one.sendall(b"b")
        assert two.recv(1) == b"b"


def test_unlock_removes_only_criu_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], t.Any]] = []
    listed = "table inet CRIU-2310\ntable ip filter\ntable inet CRIU-x\ntable inet notCRIU-1\n"

    def run(argv: t.Sequence[str], *, stdin: t.Any = None, **kwargs: t.Any) -> CommandResult:
        calls.append((list(argv), stdin))
        return CommandResult(tuple(argv), 0, listed)

    monkeypatch.setattr(paths, "netns_path", lambda name: str(tmp_path))
    assert criu.unlock_network(Host(run=run), "web") is True
    assert calls[1] == (
        ["ip", "netns", "exec", "cnvm-web", "nft", "-f", "-"],
        "delete table inet CRIU-2310\ndelete table inet CRIU-x\n",
    )
    listed = "table ip filter\n"
    assert criu.unlock_network(Host(run=run), "web") is False
    assert len(calls) == 3


def test_kill_for_finds_by_name_and_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    program = tmp_path / "criu"
    program.symlink_to("/bin/sleep")
    mine = subprocess.Popen(["sh", "-c", f"exec {program} 60 0<{tmp_path}/moves/m1/x"], stderr=subprocess.DEVNULL)
    mine.wait(timeout=5)  # there is no such file yet
    (tmp_path / "moves/m1").mkdir(parents=True)
    (tmp_path / "moves/m1/x").touch()
    orphan = subprocess.Popen([str(program), "60"], stdin=(tmp_path / "moves/m1/x").open())
    stranger = subprocess.Popen([str(program), "61"], stdin=subprocess.DEVNULL)
    namesake = subprocess.Popen(["/bin/sleep", "62"], stdin=(tmp_path / "moves/m1/x").open())
    try:
        if not criu.serves("m1"):
            pytest.skip("the name of a program is the one of the file behind the link here")
        assert criu.kill_for("m1") >= 1
        assert orphan.wait(timeout=5) == -9
        assert not criu.serves("m1")
        assert stranger.poll() is None
        assert namesake.poll() is None
    finally:
        for one in (orphan, stranger, namesake):
            one.kill()
            one.wait()


def test_failure_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert criu.failure(f"{tmp_path}/none") == {"error": "", "advice": "", "log": f"{tmp_path}/none"}
    assert criu.statistics(str(tmp_path)) == {}
