# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module bundle makes of its options, before anything is touched."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import bundles
from ansible_collections.cnvm.platform.plugins.modules import bundle


def wanted(**values: t.Any) -> bundles.Wanted:
    defaults = {name: option.get("default") for name, option in bundle.argument_spec().items()}
    return bundle.wanted_image({**defaults, "name": "web", "rootfs": "/srv/root", **values})


@pytest.mark.parametrize("path", ["/", "/etc/motd/"])
def test_a_directory_is_no_file(path: str) -> None:
    """One would be made, without the content."""
    item = {"path": "/etc/motd", "content": "x", "mode": "0644", "owner": None}
    assert wanted(files=[item]).files == [item]
    with pytest.raises(InputError, match=r"files\.path: '.*' names no file"):
        wanted(files=[{**item, "path": path}])


def test_a_name_that_the_store_needs_for_itself() -> None:
    """``web.new`` was overwritten when ``web`` was made, and could not be removed."""
    assert wanted(name="web.newer").name == "web.newer"
    with pytest.raises(InputError, match=r"'web\.new' is reserved"):
        wanted(name="web.new")


@pytest.mark.parametrize("mode", ["0644", "4755", "600"])
def test_modes(mode: str) -> None:
    assert wanted(files=[{"path": "/a", "content": "", "mode": mode, "owner": None}]).files[0]["mode"] == mode


@pytest.mark.parametrize("mode", [0o644, "0888", "rw-r--r--", "-644", True, "0o644", "7" * 300])
def test_modes_that_are_none(mode: object) -> None:
    """YAML makes 420 of an unquoted 0644."""
    with pytest.raises(InputError, match=r"^files\.mode: .* in quotes"):
        wanted(files=[{"path": "/a", "content": "", "mode": mode, "owner": None}])


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "-rf", "x" * 300, "é", "a\nb"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match=r"^name: .* Allowed: 1 to 63 letters"):
        wanted(name=name)


@pytest.mark.parametrize(("option", "value"), [("max_bytes", "1e9"), ("max_entries", "1_000"), ("max_ratio", "-1")])
def test_numbers_that_are_none(option: str, value: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: "):
        wanted(**{option: value})


def test_numbers_of_a_survey() -> None:
    policy = wanted(max_bytes="1G", max_entries="512", max_ratio="0").policy
    assert (policy.max_bytes, policy.max_entries, policy.max_ratio) == (2**30, 512, 0)


@pytest.mark.parametrize("path", ["root", "/a/../b", "/a\0"])
@pytest.mark.parametrize("option", ["rootfs", "dest"])
def test_paths_that_are_none(option: str, path: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: .* an absolute path"):
        wanted(**{option: path})
