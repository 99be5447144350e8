# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be is refused before a host makes its key."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.modules import overlay


def run(argv: t.Sequence[str], **options: t.Any) -> t.NoReturn:
    raise AssertionError(f"{argv} was run")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("subnet", "10.100.101.1/24"),
        ("subnet", "10.100.101.0/30"),
        ("tunnel_subnet", "10.100.101.0/25"),
        ("gateway", "10.9.9.9"),
        ("mtu", "1_400"),
        ("vni", 0),
        ("vxlan_port", "65536"),
    ],
)
def test_settings_that_are_not_allowed(option: str, value: object) -> None:
    params = {name: spec.get("default") for name, spec in overlay.argument_spec().items()}
    with pytest.raises(InputError, match=f"^{option}: "):
        overlay.prepare(Host(run=run), {**params, "name": "host1", option: value}, check_mode=False)
