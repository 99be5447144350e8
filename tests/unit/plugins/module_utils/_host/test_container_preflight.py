# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the way of a container's move."""

from __future__ import annotations

from ansible_collections.cnvm.platform.plugins.module_utils._host import container_preflight


def test_directories_of_the_host_tie_a_container_to_it() -> None:
    mounts = [
        {"type": "bind", "source": "/srv/data", "destination": "/data"},
        {"type": "tmpfs", "destination": "/scratch"},
    ]
    assert container_preflight.ties({"name": "web"}) == ()
    (found,) = container_preflight.ties({"name": "web", "mounts": mounts})
    assert found.startswith("web has /data mounted from /srv/data of its host, which would stay behind.")
