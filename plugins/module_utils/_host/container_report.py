# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What is to be said of the containers of this host."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._core import paths
from .._core.errors import HostError
from .._core.names import chosen
from .._oci.plan import Seen
from . import container_parts, container_units, files, ownership
from .system import Host


def see(name: str, host_id: str, unit: t.Mapping[str, str]) -> Seen:
    """One container as this host has it, from its files."""
    written = files.read_json(paths.owner_file(name))
    owner = ownership.made(written, host_id)
    here = owner is not None and owner.get("owner") == host_id
    definition = files.read_json(paths.definition_file(name))
    return Seen(
        definition=definition if here else None,
        # What a creation or a removal has left that was cut off can be removed, too.
        owner=written or (None if definition is None else {}),
        here=here,
        elsewhere="" if here or owner is None else str(owner.get("owner_name") or "another host"),
        moving=ownership.is_moving(name),
        active=container_units.is_active(unit),
        enabled=container_units.is_enabled(name),
    )


def _memory(name: str) -> tuple[t.Optional[int], int]:
    """(bytes in use, processes) of a container, by its cgroup or, without the memory controller, by its processes."""
    group = container_parts.CGROUP_ROOT + paths.payload_cgroup(name)
    pids: list[str] = []
    for directory, _names, _files in os.walk(group):
        with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            pids += file.read().split()
    with contextlib.suppress(OSError, ValueError), open(f"{group}/memory.current", encoding="ascii") as file:
        return int(file.read()), len(pids)
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return (total if pids else None), len(pids)


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The work of the module container_info."""
    found = report(host, chosen(params["names"]))
    warnings = [f"Container {one['name']}: {one['problem']}" for one in found if "problem" in one]
    return {"changed": False, "containers": found, "warnings": warnings}


def report(host: Host, wanted: t.Optional[t.Sequence[str]] = None) -> list[dict[str, t.Any]]:
    """What is to be said of the host's containers (all, or ``wanted``), with few questions for many of them."""
    identity = files.read_json(paths.HOST_FILE) or {}
    known = ownership.names(ownership.CONTAINER)
    names = known if wanted is None else [name for name in wanted if name in known]
    units = container_units.states(host, names)
    return [_report_one(name, str(identity.get("host_id")), units[name]) for name in names]


def _report_one(name: str, host_id: str, unit: t.Mapping[str, str]) -> dict[str, t.Any]:
    problem = {}
    try:
        seen = see(name, host_id, unit)
    except HostError as error:
        # One whose records are damaged does not hide the others.
        seen = Seen(moving=ownership.is_moving(name), enabled=container_units.is_enabled(name))
        problem = {"problem": str(error)}
    owner = seen.owner or {}
    definition = seen.definition or {}
    # One that comes for the first time has no owner record here yet.
    elsewhere = seen.elsewhere or ("" if problem or owner else ownership.comes_from(name))
    found: dict[str, t.Any] = {
        "name": name,
        "uuid": definition.get("uuid") or owner.get("uuid"),
        "placement": owner.get("owner_name") or elsewhere or None,
        "owner": owner.get("owner"),
        "generation": owner.get("generation"),
        "moving": seen.moving,
        "unit": paths.unit_name(name),
        "enabled": seen.enabled,
        "log_command": f"journalctl -u {paths.unit_name(name)} -o cat",
    }
    if not seen.here or not definition:
        return {**found, "state": "moved" if elsewhere else "failed", "pid": None, **problem}
    pid = container_parts.init_pid(definition)
    memory, processes = _memory(name) if pid else (None, 0)
    active = unit.get("ActiveState", "")
    if pid:
        state = "paused" if container_parts.frozen(name) else "running"
    elif active == "failed":
        state = "failed"
    elif active == "activating" or (active == "active" and not pid):
        state = "restarting"
    else:
        state = "stopped"
    since = unit.get("ActiveEnterTimestamp", "").lstrip("@")
    return {
        **found,
        "state": state,
        "pid": pid or None,
        "processes": processes,
        "memory_bytes": memory,
        "restarts": int(unit.get("NRestarts") or 0),
        "since": _iso(since) if pid else None,
        "exit_code": int(unit.get("ExecMainStatus") or 0) if state in ("failed", "stopped") else None,
        "image": definition.get("image_name") or definition.get("image"),
        "image_digest": definition.get("image"),
        "runtime": definition.get("runtime"),
        "address": definition.get("address") or None,
        "ports": definition.get("ports") or [],
        "labels": definition.get("labels") or {},
        "restart": definition.get("restart"),
        "definition": definition,
    }


def _iso(seconds: str) -> t.Optional[str]:
    if not seconds.isdigit() or seconds == "0":
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(seconds)))
