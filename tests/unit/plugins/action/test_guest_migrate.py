# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is seen of a migration while it runs. The rest is tested with container_migrate, which shares it."""

from __future__ import annotations

import json
from unittest import mock

import pytest

from ansible_collections.cnvm.platform.plugins.action import guest_migrate
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import migration
from ansible_collections.cnvm.platform.plugins.plugin_utils import _move
from ansible_collections.cnvm.platform.tests.support.actions import Host, action

MIB = 1 << 20


def test_how_far_it_is_is_shown_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []
    host = Host(
        start=[{"move_id": "m1"}],
        status=[
            {"phase": "prepare", "elapsed_ms": 100, "bytes": {}},
            {"phase": "memory", "elapsed_ms": 1100, "bytes": migration.sent_bytes({"disk_processed": 20 * MIB})},
            {
                "phase": "memory",
                "elapsed_ms": 2100,
                "bytes": migration.sent_bytes({"disk_processed": 20 * MIB, "memory_processed": 50 * MIB}),
            },
            {"phase": "done", "result": {"outcome": "target", "guest": "web", "target": "host2"}},
        ],
    )
    plugin = action(guest_migrate.ActionModule, "guest_migrate", {"guest": "web", "target": "host2"})
    # How many answers there were by then.
    monkeypatch.setattr(_move.display, "display", lambda text, *args, **kwargs: shown.append((text, len(host.asked))))
    with mock.patch.object(plugin, "_low_level_execute_command", host):
        result = plugin.run(None, {})
    assert (result["changed"], result["msg"]) == (True, "web is on host2 now.")
    assert json.loads(host.asked[1][2])["guest"] == "web"
    assert shown == [
        ("  web: prepare", 3),
        ("  web: memory, 20.0 MiB sent, 20.0 MiB/s", 4),
        ("  web: memory, 70.0 MiB sent, 50.0 MiB/s", 5),
    ]
    assert len(host.asked) == 6
