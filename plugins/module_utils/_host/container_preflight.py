# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a plan of a container's move is made from: both hosts, the container's sizes, what is in the way."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from .._core import paths
from .._criu import obstacles
from .._migrate import plan
from . import (
    archive,
    container_parts,
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

_CAP_SYS_RESOURCE = 24


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
    )


def _open_files(pid: int) -> t.Iterator[obstacles.OpenFile]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)
                kind = (
                    "char"
                    if stat.S_ISCHR(status.st_mode)
                    else "block"
                    if stat.S_ISBLK(status.st_mode)
                    else "file"
                    if stat.S_ISREG(status.st_mode)
                    else "other"
                )
                yield obstacles.OpenFile(os.readlink(entry.path), kind, status.st_size)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _net(pid: int, file: str) -> str:
    """/proc/PID/net/``file``, '' where there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{file}", encoding="ascii", errors="replace") as text:
        return text.read()
    return ""


def _sockets(pid: int, *files: str) -> int:
    """Sockets in files of /proc/PID/net; the first line of each is a heading."""
    return sum(len(_net(pid, file).splitlines()[1:]) for file in files)


def in_the_way(definition: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """What CRIU could not dump of a running container."""
    name = definition["name"]
    init = container_parts.init_pid(definition)
    home = _namespace(init)
    mighty = bool(int(freezer.status_field(os.getpid(), "CapEff") or "0", 16) >> _CAP_SYS_RESOURCE & 1)
    seen = [
        obstacles.Process(
            pid=pid,
            command=freezer.status_field(pid, "Name"),
            is_init=pid == init,
            traced=freezer.status_field(pid, "TracerPid") not in ("0", ""),
            out_of_reach=not mighty and freezer.status_field(pid, "Uid").split()[:1] not in ([], ["0"]),
            foreign_pid_namespace=_namespace(pid) not in (home, ""),
            files=tuple(_open_files(pid)),
        )
        for pid in freezer.processes(paths.payload_cgroup(name))
    ]
    raw, packet = _sockets(init, "raw", "raw6"), _sockets(init, "packet")
    return obstacles.obstacles(name, seen, raw, packet, obstacles.mptcp_sockets(_net(init, "protocols")))


def ties(definition: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """What a container would leave behind on its host, also when it is stopped for the move."""
    return tuple(
        f"{definition['name']} has {mount['destination']} mounted from {mount['source']} of its host, which would stay "
        "behind. Put the files into the container, or take the mount out for the move."
        for mount in definition.get("mounts") or ()
        if mount.get("type") == "bind"
    )


def tree_bytes(root: str) -> int:
    """The bytes of a tree's files."""
    return sum(status.st_size for _path, status in archive.walk(root) if stat.S_ISREG(status.st_mode))


def workload(definition: t.Mapping[str, t.Any], running: bool) -> plan.Workload:
    """The container as a plan sees it."""
    name = definition["name"]
    limits = {"memory_mib": "memory", "cpus": "cpu", "pids_limit": "pids"}
    image = images.record(definition["image"]) or {}
    return plan.Workload(
        name=name,
        runtime=definition.get("runtime", "runc"),
        running=running,
        memory=freezer.memory_bytes(paths.payload_cgroup(name)),
        layer=tree_bytes(paths.upper_dir(name)),
        image=int(image.get("size_bytes") or 0),
        controllers=frozenset(limit for key, limit in limits.items() if definition.get(key)),
        obstacles=in_the_way(definition) if running else (),
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
    # A pre-copy has the memory twice: what was copied while it ran, and what changed meanwhile.
    written = (2 if made.mode == plan.PRE_COPY else 1) * sizes["images"]
    expected = written + (64 << 20) if made.mode != plan.COLD else 0
    answer = channel.call("check", timeout_s=60, definition=definition, owner=owner, needs=sizes)
    if answer["image"]:
        work = work._replace(image=0)
    here = plan.memory_problems(me["name"], movedir.available_memory(), written)
    made = made._replace(blockers=(*made.blockers, *here, *answer["problems"]))
    return kinds.Survey(
        made, up, there["identity"], {**sizes, "expected": expected},
        {"work": work, "image": answer["image"], "rate": link},
    )  # fmt: skip


def checkpoint_sizes(work: plan.Workload, mode: str) -> dict[str, int]:
    """Bytes that the target must have room for: ``layer``, ``image`` on disk, ``memory`` and ``images`` in memory."""
    memory = work.memory if work.running and mode != plan.COLD else 0
    return {
        "layer": work.layer,
        "image": work.image,
        "memory": memory,
        "images": 0 if mode == plan.POST_COPY else memory,
    }
