# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper's library: installed whole, switched by a link, damage noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.digest import files_digest
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import helper

FILES = {"_core/a.py": "A = 1\n", "_host/b.py": "B = 2\n"}


def install(library: Path, files: dict[str, str], version: str = "1.0.0") -> None:
    helper.install(str(library), files, version, files_digest(files))


def test_nothing_is_installed_at_first(tmp_path: Path) -> None:
    assert helper.installed(str(tmp_path)) == {}


def test_installed_files_are_the_given_ones(tmp_path: Path) -> None:
    install(tmp_path, FILES)
    assert helper.installed(str(tmp_path)) == {"version": "1.0.0", "digest": files_digest(FILES)}
    assert (tmp_path / "cnvm_platform/_core/a.py").read_text() == "A = 1\n"


def test_stale_files_are_gone_and_the_release_before_stays(tmp_path: Path) -> None:
    install(tmp_path, FILES)
    first = (tmp_path / "cnvm_platform").resolve()
    install(tmp_path, {"_core/a.py": "A = 2\n"}, "1.1.0")
    assert not (tmp_path / "cnvm_platform/_host").exists()
    assert (first / "_host/b.py").exists()
    install(tmp_path, {"_core/a.py": "A = 3\n"}, "1.2.0")
    assert not first.exists()
    assert len(list((tmp_path / "releases").iterdir())) == 2


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_damage_is_noticed_and_mended(tmp_path: Path, damage: str) -> None:
    install(tmp_path, FILES)
    file = tmp_path / "cnvm_platform/_core/a.py"
    if damage == "changed":
        file.write_text("A = 666\n")
    elif damage == "missing":
        file.unlink()
    else:
        (tmp_path / "cnvm_platform/_core/extra.py").write_text("")
    assert helper.installed(str(tmp_path))["digest"] != files_digest(FILES)
    install(tmp_path, FILES)
    assert helper.installed(str(tmp_path))["digest"] == files_digest(FILES)


def test_compiled_files_do_not_count(tmp_path: Path) -> None:
    install(tmp_path, FILES)
    cache = tmp_path / "cnvm_platform/_core/__pycache__"
    cache.mkdir()
    (cache / "a.cpython-313.pyc").write_bytes(b"\xff\x00")
    assert helper.installed(str(tmp_path))["digest"] == files_digest(FILES)


@pytest.mark.parametrize("path", ["/etc/passwd.py", "../x.py", "_core/../../x.py", "_core/x.sh", "_core//x.py"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="files"):
        install(tmp_path, {path: ""})
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_those_of_the_digest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="digest"):
        helper.install(str(tmp_path), FILES, "1.0.0", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_digest_tells_names_from_contents() -> None:
    assert files_digest({"a": "b"}) != files_digest({"a": "c"}) != files_digest({"b": "b"})
    assert files_digest({"a": "1", "b": "2"}) == files_digest({"b": "2", "a": "1"})
