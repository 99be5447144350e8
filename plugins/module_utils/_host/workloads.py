# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host workloads``: the guests and containers of this host in one answer, for the inventory plugin.

They are said as guest_info and container_info say them, without the definitions: those may hold secrets.
"""

from __future__ import annotations

import typing as t

from .._core import paths
from .._core.errors import CnvmError, InputError
from . import container_report, guest_report, libvirt
from .cli import write_line
from .files import read_json
from .system import Host


def _shown(found: t.Iterable[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    return [{key: value for key, value in one.items() if key != "definition"} for one in found]


def gather(host: Host) -> dict[str, t.Any]:
    """``containers``, ``guests``, and in ``guests_error`` why there are none when libvirt should have said."""
    identity = read_json(paths.HOST_FILE) or {}
    found: list[dict[str, t.Any]] = []
    error = ""
    if guest_report.has_libvirt():
        try:
            with libvirt.connect() as connection:
                found = guest_report.report(connection)
        except CnvmError as failure:
            error = str(failure)
    return {
        "schema": 1,
        "name": identity.get("name"),
        "containers": _shown(container_report.report(host)),
        "guests": _shown(found),
        "guests_error": error,
    }


def _workloads(args: t.Sequence[str], host: Host) -> int:
    if args:
        raise InputError("Usage: cnvm-host workloads.")
    write_line(host, gather(host))
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"workloads": _workloads}
