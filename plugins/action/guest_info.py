# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the host's helper do the work of the module guest_info. How is in ``_worker``."""

from __future__ import annotations

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.options import INFO
from ansible_collections.cnvm.platform.plugins.plugin_utils._worker import Worker


class ActionModule(Worker):
    """The module, done by the host's helper."""

    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = INFO
    MODULE = "guest_info"
