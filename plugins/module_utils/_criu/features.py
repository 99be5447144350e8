# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What CRIU can do on a host, from what its own checks print, and which modes of a move follow from that."""

from __future__ import annotations

import typing as t

from . import log

# Asked one by one: of several features on one command line, CRIU checks only the last.
FEATURES = (
    "mem_dirty_track",
    "pagemap_scan",
    "uffd-noncoop",
    "network_lock_nftables",
    "link_nsid",
    "pidfd_store",
    "timens",
)


def parse_feature(rc: int, stdout: str, stderr: str) -> t.Optional[bool]:
    """Whether ``criu check --feature X`` found it; None where this CRIU does not know the feature."""
    if "Unknown feature" in stdout + stderr:
        return None
    return rc == 0


def parse_check(rc: int, stdout: str, stderr: str) -> str:
    """Why ``criu check`` is not content; empty when it is."""
    if rc == 0:
        return ""
    said = log.first_error(stderr, place=False) or log.first_error(stdout, place=False)
    return said or f"'criu check' ended with code {rc} and said nothing of use."


def modes(
    *, checkpoint: bool, lazy_runtime: bool, features: t.Mapping[str, t.Optional[bool]], incremental_runtime: bool
) -> list[str]:
    """The modes of a move that a host can take part in, the least downtime first.

    ``lazy_runtime``: the runtime can serve pages later (runc). ``incremental_runtime``: it can dump in rounds.
    """
    found = ["cold"]
    if checkpoint:
        found.insert(0, "stop_copy")
        if lazy_runtime and features.get("uffd-noncoop"):
            found.insert(0, "post_copy")
        if incremental_runtime and features.get("mem_dirty_track"):
            found.insert(0, "pre_copy")
    return found
