# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a container that is on its way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import container_report


@pytest.mark.parametrize(("role", "state", "placement"), [("target", "moved", "host1"), ("source", "failed", None)])
def test_one_that_comes_for_the_first_time_is_at_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, state: str, placement: str | None
) -> None:
    """It has a definition here, and a journal, and no owner record yet."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    home = tmp_path / "web"
    home.mkdir()
    (home / "definition.json").write_text(json.dumps({"name": "web", "kind": "container", "uuid": "u"}))
    (home / "move.json").write_text(json.dumps({"role": role, "peer": "host1", "state": "receiving"}))
    found = container_report._report_one("web", "me", {})
    assert (found["state"], found["placement"], found["moving"]) == (state, placement, True)
