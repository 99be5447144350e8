# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names: what goes into paths, units and cgroups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core import names, paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError


def test_a_text_with_commas_names_them() -> None:
    """As Ansible splits it."""
    assert names.chosen(["web", " db", ""]) == ["db", "web"]
    assert names.chosen([""]) == []
    assert names.chosen(None) is None


@pytest.mark.parametrize("name", ["a", "web", "web-1.example", "0", "A_b", "x" * 63])
def test_good_name(name: str) -> None:
    assert names.check_name(name, "name") == name


BAD = [
    "",
    "a/b",
    "..",
    ".",
    ".a",
    "-a",
    "_a",
    "a b",
    "a\n",
    "a\0",
    "grün",
    "x" * 64,
    "x" * 300,
    "a\\b",
    "a:b",
    "a@b",
    "$a",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_name(name: str) -> None:
    with pytest.raises(InputError, match=r"^containers\[0\]\.name: .* Allowed: 1 to 63 letters") as caught:
        names.check_name(name, "containers[0].name")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", [7, True, 1.5, ["a"], b"a"])
def test_name_that_yaml_changed(name: object) -> None:
    with pytest.raises(InputError, match=r"^name: .* Put it in quotes\. .* '\| string'\.$"):
        names.check_name(name, "name")


def test_name_that_is_missing() -> None:
    with pytest.raises(InputError, match=r"^guests\[0\]\.name is missing\. Give 1 to 63 letters"):
        names.check_name(None, "guests[0].name")


@given(st.text())
def test_a_name_that_passes_stays_in_its_directory(name: str) -> None:
    try:
        names.check_name(name, "name")
    except InputError:
        return
    parts = paths.workload_dir(name).split("/")
    assert parts[:-1] == paths.WORKLOADS.split("/")
    assert parts[-1] not in ("", ".", "..")
    assert name.isascii()


def test_is_digest() -> None:
    assert names.is_digest("0123456789abcdef" * 4)
    for text in ("", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "sha256:" + "a" * 57):
        assert not names.is_digest(text)
