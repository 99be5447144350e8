# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a migration of a guest. What it does is in ``_move``."""

from __future__ import annotations

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._migrate.options import GUEST
from ansible_collections.cnvm.platform.plugins.plugin_utils._move import Mover


class ActionModule(Mover):
    """One task, one move."""

    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = GUEST
    KIND = "guest"
    _VALID_ARGS = frozenset(GUEST)
