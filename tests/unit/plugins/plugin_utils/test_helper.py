# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is copied to hosts."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ansible_collections.cnvm.platform.plugins.plugin_utils import _helper as helper


def test_every_room_is_shipped_and_nothing_else() -> None:
    root = Path(helper.collection_root())
    assert (root / "galaxy.yml").exists() or (root / "MANIFEST.json").exists()
    files = helper.helper_files(str(root))
    assert "_host/cli.py" in files
    assert files["_core/errors.py"] == (root / "plugins/module_utils/_core/errors.py").read_text(encoding="utf-8")
    assert {path.split("/")[0] for path in files} <= set(helper.ROOMS)
    assert all(path.endswith(".py") for path in files)


def test_shipped_files_import_only_shipped_rooms() -> None:
    for path, text in helper.helper_files(helper.collection_root()).items():
        rooms = re.findall(r"^\s*from \.\.(_\w+)", text, re.MULTILINE)
        assert set(rooms) <= set(helper.ROOMS), path
        assert not re.search(r"^\s*(from|import) ansible", text, re.MULTILINE), path


def test_version_of_a_checkout_and_of_an_installed_collection(tmp_path: Path) -> None:
    assert helper.collection_version(str(tmp_path)) == "0.0.0"
    (tmp_path / "galaxy.yml").write_text("namespace: cnvm\nname: platform\nversion: '1.2.3'\n", encoding="utf-8")
    assert helper.collection_version(str(tmp_path)) == "1.2.3"
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"collection_info": {"version": "1.2.4"}}), encoding="utf-8")
    assert helper.collection_version(str(tmp_path)) == "1.2.4"
