# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host that brings a guest may say to libvirt: of this guest alone, and as it was announced."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, PeerError
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, libvirt_tunnel
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import rpc

from .._libvirt.frames import frame, parameter, request

UUID = "0705aea1-1ea0-540a-967e-c710e0d8de07"
JOURNAL = {"move_id": "m1", "needs": {"uuid": UUID, "disks": [], "files": {}, "fixed": [], "brought": [], "log": ""}}


@pytest.fixture(autouse=True)
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The move goes on."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    files.write_json(paths.journal_file("web"), JOURNAL)


def domain(name: str = "web", devices: str = "") -> bytes:
    return f"<domain><name>{name}</name><uuid>{UUID}</uuid><devices>{devices}</devices></domain>".encode()


GOOD = parameter(b"destination_xml", domain())
BAD = domain(devices="<disk type='file'><source file='/etc/shadow'/><target dev='vda'/></disk>")


def check(procedure: int, body: bytes) -> None:
    (one,) = rpc.Frames().feed(frame(procedure, body=body))
    libvirt_tunnel._check("web", JOURNAL, one)


def cookie(inside: bytes) -> bytes:
    return b"<qemu-migration><name>web</name>" + inside + b"</qemu-migration>\0"


def test_what_was_announced_passes() -> None:
    check(rpc.OPEN, b"")
    check(rpc.PREPARE, request(GOOD, cookie=cookie(b"")))
    check(rpc.PREPARE, request(GOOD, parameter(b"destination_name", b"web")))
    check(rpc.PREPARE, request(GOOD, *(parameter(b"migrate_disks", disk) for disk in (b"vda", b"vdb"))))
    check(rpc.FINISH, request(GOOD, cookie=cookie(domain())))
    check(rpc.FINISH, request())


@pytest.mark.parametrize(
    ("procedure", "body"),
    [
        (11, b""),
        (rpc.PREPARE, request()),
        (rpc.PREPARE, request(parameter(b"destination_xml", domain("other")))),
        (rpc.PREPARE, request(parameter(b"destination_xml", BAD))),
        (rpc.PREPARE, request(GOOD, parameter(b"destination_name", b"other"))),
        (rpc.PREPARE, request(GOOD, GOOD)),
        (rpc.PREPARE, request(GOOD, *[parameter(b"destination_name", b"web")] * 2)),
        (rpc.FINISH, request(parameter(b"destination_name", b"other"))),
        (rpc.PREPARE, request(GOOD, parameter(b"destination_name\0x", b"other"))),
        (rpc.PREPARE, request(parameter(b"destination_xml", domain() + b"\0"))),
        (rpc.FINISH, request(GOOD, cookie=cookie(BAD))),
        (rpc.FINISH, request(GOOD, cookie=cookie(b"<a>" + BAD + b"</a>"))),
        (rpc.FINISH, request(GOOD, cookie=("\ufeff" + cookie(BAD)[:-1].decode()).encode("utf-16-le"))),
        (rpc.FINISH, request(GOOD, cookie=b"no xml")),
    ],
)
def test_anything_else_does_not(procedure: int, body: bytes) -> None:
    with pytest.raises(CnvmError):
        check(procedure, body)


def test_nothing_comes_of_a_move_that_has_ended() -> None:
    files.write_json(paths.journal_file("web"), {**JOURNAL, "move_id": "m2"})
    with pytest.raises(PeerError, match="has ended"):
        check(rpc.PREPARE, request(GOOD))


@pytest.mark.parametrize("left", [None, {"move_id": "m2"}])
def test_it_ends_with_the_move_when_the_peer_is_silent(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str] | None
) -> None:
    """What comes while the move goes on is passed on, however late."""
    monkeypatch.setattr(libvirt_tunnel, "_LOOK_S", 0.01)
    read, _peer = os.pipe()
    back, write = os.pipe()
    ours, libvirt = socket.socketpair()
    looks = []

    def look(path: str) -> dict[str, str] | None:
        looks.append(path)
        if len(looks) == 3:
            libvirt.sendall(b"late")
        return {"move_id": "m1"} if len(looks) < 6 else left

    monkeypatch.setattr(files, "read_json", look)
    with pytest.raises(PeerError, match="has ended"):
        libvirt_tunnel._pass("web", JOURNAL, read, write, ours)
    assert os.read(back, 99) == b"late"
    assert looks == [paths.journal_file("web")] * 6
