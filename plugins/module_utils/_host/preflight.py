# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What is asked before any move: whether the workload is this host's, whether both hosts speak alike, how fast the link
is."""

from __future__ import annotations

import os
import time
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Refused
from . import files, helper, kinds, ownership, peers

_PROBE_BYTES = 4 * 2**20


def movable(name: str, kind: str = "container") -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """(definition, owner record) of a workload that this host may give away; Refused with the reason otherwise."""
    owner = files.read_json(paths.owner_file(name))
    me = ownership.host_identity()
    if owner is None or kinds.kind_of(owner) != kind:
        raise InputError(f"{kind}: this host has no {kind} {name!r}.", hint=f"See the module {kind}_info.")
    if owner["owner"] != me["host_id"]:
        raise Refused(
            f"{name} is not on {me['name']}: it runs on {owner.get('owner_name') or 'another host'}.",
            hint=f"Run this on {owner.get('owner_name') or 'that host'}.",
        )
    if files.read_json(paths.journal_file(name)) is not None:
        raise Refused(f"{name} is in a move that has not ended.", hint="Run the playbook cnvm.platform.recover.")
    return ownership.read_definition(name), owner


def rate(channel: peers.Channel) -> float:
    """Bytes per second that the link carries, measured with a few MiB."""

    def stream(writer: t.BinaryIO) -> None:
        block = os.urandom(2**20)
        for _part in range(_PROBE_BYTES // len(block)):
            writer.write(block)

    start = time.monotonic()
    channel.call("probe", timeout_s=60, stream=stream)
    return _PROBE_BYTES / max(time.monotonic() - start, 1e-3)


def ask(channel: peers.Channel, kind: str) -> dict[str, t.Any]:
    """What the target is and can do, for a workload of that kind. HostError when it has another helper than we."""
    there = channel.call("facts", timeout_s=30, kind=kind)
    mine = helper.installed(paths.HELPER_LIBRARY)
    if there["helper"].get("digest") != mine.get("digest"):
        raise HostError(
            f"{channel.peer} has another version of cnvm-host ({there['helper'].get('version') or 'none'})"
            f" than this host ({mine.get('version')}).",
            hint="Run the role host_bootstrap on both.",
        )
    return there
