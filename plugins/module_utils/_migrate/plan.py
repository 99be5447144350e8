# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Whether a container can move from one host to another, how, and how long it will stand still."""

from __future__ import annotations

import typing as t

from .._core.values import human_bytes

PRE_COPY, POST_COPY, STOP_COPY, COLD = "pre_copy", "post_copy", "stop_copy", "cold"
MODES = ("auto", PRE_COPY, POST_COPY, STOP_COPY, COLD)

# Frozen time that does not depend on the memory, in ms: dump, ship and restore of an empty container (measured on
# local hosts with runc 1.3 and CRIU 4.2), and what each GiB of memory adds to a dump that leaves the pages behind.
FIXED_MS = 300.0
LAZY_MS_PER_GIB = 120.0
DISK_BYTES_PER_S = 400e6
# CRIU packs what is in a tmpfs with tar and gzip.
TMPFS_BYTES_PER_S = 40e6
COLD_FIXED_MS = 1500.0
# Whoever lets a container be moved by post-copy is told.
WINDOW = "until the target has all of its memory, a lost link or host costs what it did since it stood still"


class Side(t.NamedTuple):
    """What a plan needs to know of a host; made from ``host_info`` (see ``side``).

    ``signal_frame``: bytes that grow with the state of the CPU that is saved for a process; 0 where it is not known.
    """

    name: str
    architecture: str
    cpu_flags: frozenset[str]
    kernel: str
    criu: str
    criu_features: frozenset[str]
    runtimes: t.Mapping[str, t.Mapping[str, t.Any]]
    cgroup_version: int
    cgroup_controllers: frozenset[str]
    signal_frame: int = 0


class Workload(t.NamedTuple):
    """What a plan needs to know of the container. Sizes in bytes.

    ``memory``: what each process has for itself. ``shared``: shared memory, and deleted files that are still open;
    like ``tmpfs``, the files in one, it is sent whole while the container stands still, in every mode but cold.
    ``obstacles``: what CRIU could not dump. ``ties``: what would stay behind on its host, however it moves.
    """

    name: str
    runtime: str
    running: bool
    memory: int
    layer: int
    image: int
    shared: int = 0
    tmpfs: int = 0
    controllers: frozenset[str] = frozenset()
    obstacles: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()


class Wishes(t.NamedTuple):
    """What the user asked for. ``max_downtime_ms`` 0: no limit. ``cpu_check``: flags or none."""

    mode: str = "auto"
    allow_post_copy: bool = False
    max_downtime_ms: int = 0
    cpu_check: str = "flags"


class Plan(t.NamedTuple):
    """``blockers``: why it cannot be done, all of them; with none, ``mode`` and ``reasons`` say how and why so.
    ``space``: what it takes of each file system of the target (see ``space_problems``)."""

    mode: str
    reasons: tuple[str, ...]
    blockers: tuple[str, ...]
    warnings: tuple[str, ...]
    expected_frozen_ms: int
    space: tuple[t.Mapping[str, t.Any], ...] = ()

    def as_result(self) -> dict[str, t.Any]:
        """For a module's result."""
        return {
            "mode": self.mode, "reasons": list(self.reasons), "blockers": list(self.blockers),
            "warnings": list(self.warnings), "expected_frozen_ms": self.expected_frozen_ms, "space": list(self.space),
        }  # fmt: skip


def version(text: str) -> tuple[int, ...]:
    """``4.2.1`` as (4, 2, 1); what follows the numbers is left out."""
    numbers = []
    for part in text.split("."):
        digits = ""
        for character in part:
            if not character.isdigit():
                break
            digits += character
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def expected_frozen_ms(mode: str, work: Workload, rate: float) -> int:
    """How long the container will stand still, by the model of docs/benchmarks.md. ``rate``: bytes per second."""
    if not work.running:
        return 0
    if mode == COLD:
        return round(COLD_FIXED_MS)

    def whole(size: int) -> float:
        return size / rate * 1000 + 2 * size / DISK_BYTES_PER_S * 1000

    always = FIXED_MS + whole(work.shared) + work.tmpfs * (1 / TMPFS_BYTES_PER_S + 1 / rate) * 1000
    if mode == POST_COPY:
        return round(always + LAZY_MS_PER_GIB * work.memory / 2**30)
    if mode == PRE_COPY:
        # Dirty pages of the last round; not known before, a tenth is what a service that works leaves.
        return round(always + work.memory / rate * 1000 / 10)
    return round(always + whole(work.memory))


def lacks_pre_copy(source: Side, target: Side) -> str:
    """Why pre-copy cannot be done, '' when it can."""
    names = [side.name for side in (source, target) if "mem_dirty_track" not in side.criu_features]
    return f"{', '.join(names)}: the kernel does not track dirty memory (CONFIG_MEM_SOFT_DIRTY)" if names else ""


def lacks_post_copy(target: Side, work: Workload) -> str:
    """Why post-copy cannot be done, '' when it can."""
    found = []
    if work.runtime != "runc":
        found.append(f"{work.runtime} has no lazy pages; only runc does")
    if "uffd-noncoop" not in target.criu_features:
        found.append(f"{target.name}: the kernel has no userfaultfd for CRIU (uffd-noncoop)")
    return "; ".join(found)


def lacks_of_cpu(source: Side, target: Side, work: Workload) -> t.Iterator[str]:
    """What the target's CPU lacks of the source's. Flags can be alike where the state that the kernel saves is not."""
    lost = sorted(source.cpu_flags - target.cpu_flags)
    if lost:
        yield f"The CPU of {target.name} lacks {', '.join(lost[:8])}, which {work.name} may be using."
    elif 0 < target.signal_frame < source.signal_frame:
        yield (
            f"{target.name} keeps less of its CPU's state for a process than {source.name} ({target.signal_frame} bytes"
            f" for a signal, not {source.signal_frame}), and {work.name} may be using it."
        )


def blockers(source: Side, target: Side, work: Workload, wishes: Wishes, cold: bool) -> tuple[list[str], list[str]]:
    """(blockers, warnings) that hold for every mode; a ``cold`` move needs no CRIU."""
    found: list[str] = list(work.ties)
    warnings: list[str] = []
    if source.architecture != target.architecture:
        found.append(f"{target.name} is {target.architecture}, {source.name} is {source.architecture}.")
    there = target.runtimes.get(work.runtime) or {}
    here = source.runtimes.get(work.runtime) or {}
    if not there.get("version"):
        found.append(f"{target.name} has no {work.runtime}. Run the role host_bootstrap on it.")
    if target.cgroup_version != 2:
        found.append(f"{target.name} does not use cgroup version 2. Boot it with systemd.unified_cgroup_hierarchy=1.")
    for controller in sorted(work.controllers - target.cgroup_controllers):
        found.append(f"{target.name} lacks the cgroup controller {controller}, which a limit of {work.name} needs.")
    if cold:
        return found, warnings
    found += work.obstacles
    if there.get("version") and not there.get("checkpoint", False):
        found.append(f"{target.name}: {work.runtime} cannot restore: {there.get('reason') or 'CRIU does not work'}.")
    if not here.get("checkpoint", False):
        found.append(f"{source.name}: {work.runtime} cannot checkpoint: {here.get('reason') or 'CRIU does not work'}.")
    if version(source.criu)[:2] != version(target.criu)[:2]:
        old = version(target.criu) < version(source.criu)
        text = f"CRIU is {source.criu or 'missing'} on {source.name} and {target.criu or 'missing'} on {target.name}."
        (found if old else warnings).append(text)
    if version(str(here.get("version", "")))[:2] != version(str(there.get("version", "")))[:2]:
        warnings.append(
            f"{work.runtime} is {here.get('version')} on {source.name} and {there.get('version')} on {target.name}."
        )
    if version(target.kernel)[:2] < version(source.kernel)[:2]:
        warnings.append(
            f"The kernel of {target.name} ({target.kernel}) is older than {source.kernel} on {source.name}."
        )
    for text in lacks_of_cpu(source, target, work):
        if wishes.cpu_check == "flags":
            found.append(text + " Set cpu_check: none if you know that it does not.")
        else:
            warnings.append(text)
    return found, warnings


def make(source: Side, target: Side, work: Workload, wishes: Wishes, rate: float) -> Plan:
    """The plan of a move. ``rate``: bytes per second that the link is taken to carry."""
    reasons: list[str] = []
    found: list[str] = []
    mode = wishes.mode
    no_pre, no_post = lacks_pre_copy(source, target), lacks_post_copy(target, work)
    if not work.running and mode != COLD:
        reasons.append(f"{work.name} does not run, so there is no memory to move")
        mode = COLD
    elif mode == "auto":
        if not no_pre:
            mode = PRE_COPY
            reasons.append("both hosts track dirty memory")
        elif wishes.allow_post_copy and not no_post:
            mode = POST_COPY
            reasons += [f"no pre-copy: {no_pre}", "post-copy is allowed by the task", WINDOW]
        else:
            mode = STOP_COPY
            reasons += [f"no pre-copy: {no_pre}", f"no post-copy: {no_post or 'the task does not allow it'}"]
    else:
        reasons.append("asked for by the task")
        lack = {PRE_COPY: no_pre, POST_COPY: no_post}.get(mode, "")
        if lack:
            found.append(f"mode {mode} is not possible: {lack}.")
        if mode == POST_COPY:
            reasons.append(WINDOW)
            if not wishes.allow_post_copy:
                found.append(
                    "mode post_copy has a window in which a lost link or host costs state. Set allow_post_copy: true."
                )
    general, warnings = blockers(source, target, work, wishes, cold=mode == COLD)
    frozen = expected_frozen_ms(mode, work, rate)
    if wishes.max_downtime_ms and frozen > wishes.max_downtime_ms:
        found.append(
            f"{work.name} would stand still for about {frozen} ms by {mode};"
            f" max_downtime_ms is {wishes.max_downtime_ms}."
        )
    return Plan(mode, tuple(reasons), tuple(found + general), tuple(warnings), frozen)


def in_the_clear(what: str, *, encrypted: bool) -> tuple[str, ...]:
    """What its owner should know. ``encrypted``: by the overlay, or by the SSH that it goes through."""
    if encrypted:
        return ()
    return (f"This crosses the network in the clear, since the overlay's encryption is none: {what}.",)


def space_problems(host: str, space: t.Iterable[t.Mapping[str, t.Any]]) -> tuple[str, ...]:
    """Where ``host`` has no room on its disks. ``space``: for each file system its ``device`` (a number), a ``path`` on
    it, ``free_bytes``, ``needed_bytes`` and, of those, ``once``: {digest: bytes} of what is there once for all."""
    return tuple(
        f"space: {host} has {human_bytes(one['free_bytes'])} free in {one['path']},"
        f" {human_bytes(one['needed_bytes'])} and a fifth more are needed."
        for one in space
        if one["free_bytes"] < one["needed_bytes"] * 6 // 5
    )


def memory_problems(host: str, available: int, needed: int) -> tuple[str, ...]:
    """Why ``host`` cannot take so many bytes of memory and checkpoint."""
    if not needed or available >= needed * 6 // 5:
        return ()
    return (f"memory: {host} has {available >> 20} MiB available; {needed >> 20} MiB and a fifth more are needed.",)
