# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a plan of a container's move is made from: both hosts, the container's sizes, what is in the way."""

from __future__ import annotations

import typing as t

from .._core import paths
from .._criu.holdings import shared_bytes
from .._migrate import plan
from .._net.overlay import encrypted
from . import (
    archive,
    container_parts,
    container_processes,
    container_units,
    freezer,
    images,
    info,
    kinds,
    movedir,
    ownership,
    peers,
    preflight,
)
from .system import Host

# The most rounds in which memory is copied while the container runs.
PRE_COPY_ROUNDS = 3


def side(name: str, facts: t.Mapping[str, t.Any]) -> plan.Side:
    """What a plan wants to know of the host ``name``, from what ``info.gather`` found there."""
    return plan.Side(
        name=name,
        architecture=facts["cpu"]["architecture"],
        cpu_flags=frozenset(facts["cpu"]["flags"]),
        kernel=facts["kernel"],
        criu=str(facts["criu"].get("version") or ""),
        criu_features=frozenset(key for key, value in facts["criu"]["features"].items() if value),
        runtimes=facts["runtimes"],
        cgroup_version=int(facts["cgroup"]["version"] or 0),
        cgroup_controllers=frozenset(facts["cgroup"]["controllers"]),
        signal_frame=int(facts["cpu"].get("signal_frame_bytes") or 0),
    )


def ties(definition: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """What a container would leave behind on its host, also when it is stopped for the move."""
    return tuple(
        f"{definition['name']} has {mount['destination']} mounted from {mount['source']} of its host, which would stay "
        "behind. Put the files into the container, or take the mount out for the move."
        for mount in definition.get("mounts") or ()
        if mount.get("type") == "bind"
    )


def workload(definition: t.Mapping[str, t.Any], running: bool) -> plan.Workload:
    """The container as a plan sees it."""
    name = definition["name"]
    limits = {"memory_mib": "memory", "cpus": "cpu", "pids_limit": "pids"}
    image = images.record(definition["image"]) or {}
    seen = container_processes.look(definition) if running else container_processes.Seen()
    return plan.Workload(
        name=name,
        runtime=definition.get("runtime", "runc"),
        running=running,
        memory=freezer.private_bytes(paths.payload_cgroup(name)),
        shared=shared_bytes(seen.processes),
        tmpfs=container_processes.tmpfs_bytes(container_parts.init_pid(definition)) if running else 0,
        layer=archive.content_bytes(paths.upper_dir(name)),
        image=int(image.get("size_bytes") or 0),
        controllers=frozenset(limit for key, limit in limits.items() if definition.get(key)),
        obstacles=container_processes.in_the_way(definition, seen) if running else (),
        ties=ties(definition),
    )


def survey(
    host: Host, channel: peers.Channel, definition: t.Mapping[str, t.Any], owner: t.Mapping[str, t.Any],
    request: t.Mapping[str, t.Any],
) -> kinds.Survey:  # fmt: skip
    """The plan of a move of a container. Learnt: ``work``, ``image`` (whether the target has it), ``rate``.

    Reads only, on both hosts.
    """
    wishes = plan.Wishes(request["mode"], request["allow_post_copy"], request["max_downtime_ms"], request["cpu_check"])
    name = definition["name"]
    running = container_parts.init_pid(definition) > 0
    # Also one that is between two tries: it is to run wherever it ends up.
    up = running or container_units.is_active(container_units.states(host, [name])[name])
    there = preflight.ask(channel, "container")
    work = workload(definition, running)
    me = ownership.host_identity()
    link = preflight.rate(channel)
    made = plan.make(side(me["name"], info.gather(host)), side(channel.peer, there["info"]), work, wishes, link)
    sizes = checkpoint_sizes(work, made.mode)
    written = sizes["images"]
    if made.mode == plan.PRE_COPY:
        # What was copied while it ran, and what changed meanwhile. CRIU does not know what changed of shared memory.
        written += work.memory + PRE_COPY_ROUNDS * work.shared
    expected = written + (64 << 20) if made.mode != plan.COLD else 0
    answer = channel.call("check", timeout_s=60, definition=definition, owner=owner, needs=sizes)
    if answer["image"]:
        work = work._replace(image=0)
    here = plan.memory_problems(me["name"], movedir.available_memory(), written)
    # All but the pages of post-copy goes through SSH in any case.
    hidden = made.mode != plan.POST_COPY or encrypted(peers.overlay())
    clear = plan.in_the_clear(f"the memory of {name}", encrypted=hidden)
    made = made._replace(
        blockers=(*made.blockers, *here, *answer["problems"]), warnings=(*made.warnings, *clear),
        space=tuple(answer["space"]),
    )  # fmt: skip
    return kinds.Survey(
        made, up, there["identity"], {**sizes, "expected": expected},
        {"work": work, "image": answer["image"], "rate": link},
    )  # fmt: skip


def checkpoint_sizes(work: plan.Workload, mode: str) -> dict[str, int]:
    """Bytes that the target must have room for: ``layer``, ``image`` on disk, ``memory`` and ``images`` in memory."""
    if not work.running or mode == plan.COLD:
        memory = images = 0
    else:
        memory = work.memory + work.shared + work.tmpfs
        images = memory - work.memory if mode == plan.POST_COPY else memory
    return {"layer": work.layer, "image": work.image, "memory": memory, "images": images}
