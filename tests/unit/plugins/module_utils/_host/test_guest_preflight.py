# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest needs of its target, and what a target finds of it."""

from __future__ import annotations

import socket

from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_preflight


def test_a_screen_needs_its_address_and_a_port_of_its_own() -> None:
    """One that does not run shows nothing yet, but must be able to."""
    assert guest_preflight._screen({"graphics": {"type": "none"}}, live=True) == []
    chosen = {"graphics": {"type": "vnc", "listen": "192.0.2.1", "port": None}}
    assert guest_preflight._screen(chosen, live=True) == ["192.0.2.1", 0]
    own = {"graphics": {"type": "vnc", "listen": "", "port": 5901}}
    assert guest_preflight._screen(own, live=True) == ["127.0.0.1", 5901]
    assert guest_preflight._screen(own, live=False) == ["127.0.0.1", 0]


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"at 127.0.0.1 port {port}: Address already in use" in guest_preflight._lacks_screen("127.0.0.1", port)
    assert guest_preflight._lacks_screen("127.0.0.1", port) == ""
    assert "Cannot assign" in guest_preflight._lacks_screen("192.0.2.1", 5901)
