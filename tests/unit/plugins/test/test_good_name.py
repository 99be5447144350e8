# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles take for a name. The rule itself is tested with ``_core/names``."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import NAME_RULE
from ansible_collections.cnvm.platform.plugins.test import good_name

is_good = good_name.TestModule().tests()["good_name"]


@pytest.mark.parametrize("value", ["web", "7", "a.b-c_d", "x" * 63])
def test_good(value: str) -> None:
    assert is_good(value) is True


@pytest.mark.parametrize("value", ["", "-web", "a b", "web\n", "\u00e9", "x" * 64, "../web", 7, None, ["web"]])
def test_not_good(value: object) -> None:
    assert is_good(value) is False


def test_the_documentation_tells_the_rule() -> None:
    told = yaml.safe_load(good_name.DOCUMENTATION)["description"][1]
    assert told == f"It is {NAME_RULE}.".replace("'_', '.' or '-'", "C(_), C(.) or C(-)")
