# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Local hosts: what of the user's own files is left alone."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


@pytest.mark.parametrize("directory", ["~/keys", "keys"])
def test_a_file_of_the_users_own_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch, directory: str) -> None:
    monkeypatch.setenv("HOME", str(stage.path))
    file = stage.path / "keys/known_hosts"
    file.parent.mkdir()
    file.write_text("mine", encoding="utf-8")
    said = stage.playbook("local_hosts", local_hosts_access_dir=directory, check=False)
    assert f"local_hosts_access_dir: {file} was not written by this role" in said
    assert file.read_text(encoding="utf-8") == "mine"
