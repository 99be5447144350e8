# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the helper starts."""

from __future__ import annotations

import io
import subprocess
import sys
import types

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import cli
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

# Each of them takes longer to load than what the hot paths have of their own.
SLOW = {"dataclasses", "inspect", "random", "ssl", "tarfile", "tempfile", "traceback"}


@pytest.mark.parametrize("word", ["version", "container", "guest", "move", "placement", "recover", "serve"])
def test_the_helper_loads_little(word: str) -> None:
    """A workload that moves stands still while the helper starts, and who follows a move starts it again and again."""
    room = f"{cli.__package__}.{cli._ROOMS.get(word, 'helper')}"
    program = f"import sys; sys.path = {sys.path!r}; import {cli.__name__}, {room}; print(*sys.modules, sep='\\n')"
    # As the launcher starts: isolated, and without site.
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True)
    assert not SLOW & set(done.stdout.splitlines())


def test_what_the_kernel_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied", "/run/cnvm")

    room = types.SimpleNamespace(commands=lambda: {"info": refuse})
    monkeypatch.setattr(cli, "importlib", types.SimpleNamespace(import_module=lambda *args: room))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said = io.BytesIO()
    assert cli.main(["info"], Host(run=None, stderr=said)) == 1  # type: ignore[arg-type]
    assert said.getvalue() == b"/run/cnvm cannot be used: Permission denied. This needs root (become: true).\n"
