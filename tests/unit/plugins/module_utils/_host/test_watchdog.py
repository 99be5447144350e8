# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signs of life go where systemd says, as often as it wants them, and only if it asks."""

from __future__ import annotations

import os
import socket
import threading
import time
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import watchdog


class Ended(BaseException):
    """Ends what would go on for ever."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it waited; the thread is run to its third wait, here and now."""
    found: list[float] = []

    def sleep(seconds: float) -> None:
        found.append(seconds)
        if len(found) == 3:
            raise Ended

    class Now:
        def __init__(self, target: t.Callable[..., None], args: tuple[t.Any, ...], daemon: bool) -> None:
            assert daemon, "it would keep the process from ending"
            self.work = lambda: target(*args)

        def start(self) -> None:
            with pytest.raises(Ended):
                self.work()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(threading, "Thread", Now)
    return found


@pytest.mark.parametrize("abstract", [False, True])
def test_signs_of_life(pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any, abstract: bool) -> None:
    where = f"@{os.urandom(8).hex()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + where[1:] if abstract else where)
        watchdog.begin(lambda: True)
        assert [systemd.recv(99) for _one in pauses] == [b"WATCHDOG=1"] * 3
    assert pauses == [15.0] * 3
    assert "NOTIFY_SOCKET" not in os.environ


def test_nobody_listens_for_a_while(pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    watchdog.begin(lambda: True)
    assert len(pauses) == 3


@pytest.mark.parametrize("missing", ["NOTIFY_SOCKET", "WATCHDOG_USEC"])
def test_nobody_asks(pauses: list[float], monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.delenv(missing)
    watchdog.begin(lambda: True)
    assert pauses == []


def test_none_while_nobody_answers(pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    said = iter((True, False, True))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        watchdog.begin(lambda: next(said))
        assert [systemd.recv(99) for _one in range(2)] == [b"WATCHDOG=1"] * 2
        with pytest.raises(BlockingIOError):
            systemd.recv(99)
