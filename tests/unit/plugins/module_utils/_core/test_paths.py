# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths are used by helper, modules and units alike: they are an interface between versions on different hosts."""

from __future__ import annotations

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths


def test_container_paths() -> None:
    top = "/var/lib/cnvm/workloads/web"
    assert paths.workload_dir("web") == top
    assert paths.definition_file("web") == f"{top}/definition.json"
    assert paths.owner_file("web") == f"{top}/owner.json"
    assert paths.journal_file("web") == f"{top}/move.json"
    assert paths.bundle_dir("web") == f"{top}/bundle"
    # Both on one file system, as overlayfs wants it, and neither below the other.
    assert paths.upper_dir("web") == f"{top}/upper"
    assert paths.layer_work_dir("web") == f"{top}/work"


def test_what_does_not_outlive_a_boot_is_in_run() -> None:
    for path in (paths.run_dir("web"), paths.lock_file("web"), paths.move_dir("m1")):
        assert path.startswith("/run/cnvm/")


def test_hold_is_between_unit_and_payload() -> None:
    assert paths.unit_name("web") == "cnvm-container@web.service"
    assert paths.unit_cgroup("web") == "/cnvm.slice/cnvm-container@web.service"
    assert paths.hold_cgroup("web") == f"{paths.unit_cgroup('web')}/hold"
    assert paths.payload_cgroup("web") == f"{paths.hold_cgroup('web')}/payload"


def test_netns() -> None:
    assert paths.netns_path("web") == f"/run/netns/{paths.netns_name('web')}"
