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
