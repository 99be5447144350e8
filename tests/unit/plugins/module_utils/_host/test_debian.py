# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror that is being updated costs a moment; one that is wrong is told at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import debian
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

MIRROR = "http://m/debian"


class Mirror:
    """A run of mmdebstrap fails with each of these words, then it succeeds."""

    def __init__(self, root: Path, *said: str) -> None:
        self.root, self.said, self.runs = root, list(said), 0

    def run(self, argv: object, **_kwargs: object) -> CommandResult:
        self.runs += 1
        self.root.mkdir()  # fails where the last one has left something
        words = self.said.pop(0) if self.said else ""
        return CommandResult(("mmdebstrap",), 25 if words else 0, "", words)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("said", "runs", "code"),
    [
        ((), 1, 0),
        ((f"E: Failed to fetch {MIRROR}/pool/a.deb  503  Service Unavailable",), 2, 0),
        (("E: Failed to fetch store:/a Hash Sum mismatch", f"E: Failed to fetch {MIRROR}/a.deb 404 Not Found"), 3, 0),
        (("E: Failed to fetch a",) * 9, 3, 25),
        ((f"E: Failed to fetch {MIRROR}/a  Could not resolve 'm'",), 1, 25),
        ((f"E: The repository '{MIRROR} nosuch Release' does not have a Release file.",), 1, 25),
        (("E: Unable to locate package nosuch",), 1, 25),
    ],
)
def test_what_may_pass_is_tried_again(tmp_path: Path, said: tuple[str, ...], runs: int, code: int) -> None:
    mirror = Mirror(tmp_path / "root", *said)
    result = debian.patiently(Host(run=mirror.run), ["mmdebstrap"], str(mirror.root))
    assert (result.rc, mirror.runs) == (code, runs)
