# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of roles share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two hosts, host1 and host2."""
    return Stage(tmp_path).build("host1", "host2")
