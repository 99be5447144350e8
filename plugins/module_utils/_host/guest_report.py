# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What there is of the guests of a host, and what is to be said of them: read all at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._core import paths
from .._core.errors import HostError
from .._core.names import chosen
from .._libvirt import changes, domain, guest_plan
from .._libvirt.addresses import Leases
from .._libvirt.domain import Model
from .._libvirt.guest_plan import Seen
from . import files, guest_restarts, guest_watch, libvirt, mounts, ownership, snapshot_records
from .domains import Known, read
from .system import Host


def see(name: str, host_id: str, known: t.Optional[Known]) -> Seen:
    """One guest as this host has it, from its records and from libvirt."""
    owner = ownership.record(name, host_id)
    if owner is not None and owner.get("kind") != ownership.GUEST:
        # That of a container is none of a guest's.
        owner = None
    here = owner is not None and owner.get("owner") == host_id
    found = Seen(
        definition=files.read_json(paths.definition_file(name)) if here else None,
        owner=owner,
        elsewhere="" if here or owner is None else str(owner.get("owner_name") or "another host"),
        moving=ownership.is_moving(name),
        managed=here,
        begun=owner is None and ownership.begun(name, ownership.GUEST),
    )
    if known is None or (owner is None and _is_leftover(name, known)):
        return found
    return dataclasses.replace(
        found,
        defined=True,
        was="" if found.elsewhere or known.live is not None else guest_restarts.was(name),
        persistent=known.persistent,
        state=known.state,
        why=known.why,
        autostart=known.autostart,
    )


def _is_leftover(name: str, known: Known) -> bool:
    """Whether a domain is what a creation of ours that was cut off has left: it is made again. Not one that was being
    taken over."""
    owner = files.read_json(paths.owner_file(name)) or {}
    made_here = bool(owner.get("claim")) and not owner.get("adopted")
    return made_here and known.live is None and bool(known.model["marks"])


def has_libvirt() -> bool:
    """False where only containers run: there is nothing to ask for guests, and nothing that says there were any.

    Where there are records of guests libvirt must answer: who cannot ask it does not know that there are none.
    """
    return libvirt.available() or bool(ownership.names(ownership.GUEST))


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The work of the module guest_info."""
    if not has_libvirt():
        return {"changed": False, "libvirt": False, "guests": []}
    with libvirt.connect() as connection:
        found = report(connection, chosen(params["names"]), addresses=params["addresses"])
    warnings = [f"Guest {one['name']}: {one['problem']}" for one in found if "problem" in one]
    return {"changed": False, "libvirt": True, "guests": found, "warnings": warnings}


def report(
    connection: libvirt.Connection,
    wanted: t.Optional[t.Sequence[str]] = None,
    *,
    addresses: bool = True,
    old_leases: Leases = frozenset(),
) -> list[dict[str, t.Any]]:
    """What is to be said of all domains and guests (or of ``wanted``), sorted by name. ``old_leases`` say nothing."""
    host_id = str((files.read_json(paths.HOST_FILE) or {}).get("host_id"))
    known = read(connection, wanted)
    ours = set(ownership.names(ownership.GUEST))
    names = sorted({*known, *ours} if wanted is None else {name for name in wanted if name in known or name in ours})
    seen, problems = {}, {}
    for name in names:
        try:
            seen[name] = see(name, host_id, known.get(name))
        except HostError as error:
            # One whose records are damaged does not hide the others.
            seen[name], problems[name] = Seen(moving=ownership.is_moving(name)), str(error)
    subjects = [
        guest_watch.Subject(
            name,
            one.domain,
            one.live,
            str((seen[name].definition or {}).get("address") or "") if not seen[name].elsewhere else "",
        )
        for name, one in known.items()
        if one.live is not None and one.state == guest_plan.RUNNING
    ]
    found = guest_watch.observe(connection, subjects, old_leases) if addresses else {}
    away = mounts.silent()
    return [
        _report_one(name, seen[name], known.get(name), found.get(name, []), problems.get(name, ""), away)
        for name in names
    ]


def _report_one(
    name: str,
    seen: Seen,
    known: t.Optional[Known],
    addresses: t.Sequence[t.Mapping[str, str]],
    problem: str,
    away: mounts.Away,
) -> dict[str, t.Any]:
    owner = seen.owner or {}
    snapshots: list[str] = []
    try:
        snapshots = snapshot_records.names(name, known.model if known else domain.EMPTY) if seen.managed else []
    except HostError as error:
        problem = str(error)
    found: dict[str, t.Any] = {
        "name": name,
        "managed": seen.managed,
        "placement": owner.get("owner_name"),
        "owner": owner.get("owner"),
        "generation": owner.get("generation"),
        "moving": seen.moving,
        "begun": seen.begun,
        **({"problem": problem} if problem else {}),
    }
    if known is None:
        uuid = (seen.definition or owner).get("uuid")
        unknown = bool(problem) and not seen.managed
        state = "moved" if seen.elsewhere else "failed" if unknown else "missing"
        return {**found, "uuid": uuid, "state": state, "address": None, "address_source": None, "addresses": []}
    model, live = known.model, known.live_model
    shown = live or model
    tags = dict(model["marks"].get("tags") or {})
    devices = {} if known.live is None else domain.interface_names(known.live)
    reasons = {} if live is None or known.stored is None else changes.pending(model, live)
    return {
        **found,
        "uuid": model["uuid"],
        "state": "moved" if seen.elsewhere and known.live is None else known.state,
        "paused_by": known.why or None,
        "persistent": known.persistent,
        "autostart": known.autostart,
        "type": "tcg" if shown["type"] == "qemu" else shown["type"],
        "description": model["description"],
        "tags": tags,
        "group": tags.get("group"),
        "template": tags.get("template") or _template(seen.definition or {}),
        **{key: shown[key] for key in ("memory_mib", "max_memory_mib", "vcpus", "max_vcpus")},
        "cpu_model": (changes.live_model(shown, model)["cpu"]["model"]) or None,
        "arch": shown["arch"],
        "machine": shown["machine"],
        "firmware": shown["firmware"],
        "disks": [_report_disk(target, disk, model, away) for target, disk in shown["disks"].items()],
        "cdroms": [{"name": target, "path": drive["path"] or None} for target, drive in shown["cdroms"].items()],
        "networks": [{"mac": mac, **card, "device": devices.get(mac)} for mac, card in shown["networks"].items()],
        "address": addresses[0]["address"] if addresses else None,
        "address_source": addresses[0]["source"] if addresses else None,
        "addresses": [dict(each) for each in addresses],
        "overlay_address": (seen.definition or {}).get("address") or None,
        "vnc": _vnc(known),
        "agent_connected": known.live is not None and domain.agent_connected(known.live),
        "log": shown["serial"]["log"] or None,
        "console_command": f"virsh console {name}" if shown["serial"]["type"] == "pty" else None,
        "shared_folders": [{"tag": tag, **folder} for tag, folder in shown["shared_folders"].items()],
        "other_devices": [*domain.other_devices(known.xml), *domain.passed_through(known.xml)],
        "snapshots": snapshots,
        "restart_required": bool(reasons),
        "restart_reasons": listed_reasons(reasons),
        "definition": seen.definition,
    }


def _vnc(known: Known) -> t.Optional[dict[str, t.Any]]:
    if known.live is None:
        return None
    port = domain.vnc_port(known.live)
    return None if port is None else {"listen": domain.parse(known.live)["graphics"]["listen"], "port": port}


def _template(definition: t.Mapping[str, t.Any]) -> t.Optional[str]:
    """The template that its first disk was made of, as its owner called it."""
    named = [str(disk.get("template") or "") for disk in definition.get("disks") or ()]
    return next(filter(None, named), None)


def _report_disk(target: str, disk: t.Mapping[str, t.Any], model: Model, away: mounts.Away) -> dict[str, t.Any]:
    allocated = None
    with contextlib.suppress(OSError):
        # One guest whose file server is gone does not hide all others.
        allocated = os.stat(disk["path"]).st_blocks * 512 if away.real(disk["path"]) else None
    return {
        "name": target,
        **{key: disk[key] for key in ("path", "format", "bus", "cache", "read_only")},
        "backing": [each["path"] for each in disk["backing"]],
        "template_digest": model["marks"].get("templates", {}).get(target),
        "allocated_bytes": allocated,
    }


def listed_reasons(found: t.Mapping[str, str]) -> list[dict[str, str]]:
    """Reasons for a restart as modules return them."""
    return [{"option": option, "reason": reason} for option, reason in sorted(found.items())]
