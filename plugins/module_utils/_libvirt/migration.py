# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Whether a guest can move to another host, and what libvirt is told when it does.

The *needs* of a guest are what its target must have; the source makes them, they go over the wire. What the target has
*seen* of itself comes in as plain data. Both have in ``next_start``, where that is something else, what it is about the
start that is to follow: one that could not be started at the target is not brought there.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.values import human_bytes
from .._migrate import plan
from . import admission, domain
from .domain import Model
from .xml import Element

LIVE, OFFLINE = "live", "offline"
MODES = (LIVE, OFFLINE)
# With nothing that dirties memory a guest stands still for about so long: what is left of its memory, its devices, and
# two records on two disks.
FIXED_MS = 80
# How long the guest may stand still for its memory at first; where that is not enough it grows, up to what the user
# allows. The first is as short as that: QEMU makes use of all of it, and one that does little needs no more.
_LIMITS_MS = (2, 20, 60, 150, 300)
# Rounds over the memory that a limit is given before the next one.
ROUNDS = 3
# A round in which this part of what was sent was dirtied again has brought next to nothing.
_VAIN = 0.8
# QEMU's own memory, beside that of its guest.
_OVERHEAD_MIB = 128
# Emulated guests were seen not to survive their way from QEMU 7.2 to 10.0, also without libvirt; from this one they do.
_KEEPS_MEMORY = 10_000_000


# --------------------------------------------------------------------------------------------------------------------
# Why it cannot move
# --------------------------------------------------------------------------------------------------------------------
def obstacles(name: str, root: Element, state: str, snapshots: t.Sequence[str]) -> list[str]:
    """What of the guest itself, as its source has it, is in the way. ``root``: the XML of what would move."""
    model = domain.parse(root)
    found = []
    if state not in ("running", "stopped"):
        found.append(f"{name} is {state}. Resume or stop it first.")
    if model["cpu"]["model"] in ("host-passthrough", "maximum") and state != "stopped":
        found.append(f"cpu: {name} has the CPU of its host ({model['cpu']['model']}). Give it a named model.")
    for device in domain.other_devices(root):
        found.append(f"devices: {name} has a {device} of its host, which would stay behind.")
    for tag in sorted(model["shared_folders"]):
        found.append(f"shared_folders: {name} has the folder {tag} of its host, which would stay behind.")
    if snapshots:
        found.append(f"snapshots: {name} has {', '.join(snapshots)}. Delete them first (cnvm.platform.guest_snapshot).")
    for volume in admission.volumes(root):
        found.append(
            f"disks: {name} has {volume} of its host. Run it with its description (cnvm.platform.guest), which makes a"
            f" plain disk of that{'' if state == 'stopped' else ', and start it anew'}."
        )
    for target, disk in model["disks"].items():
        if not disk["path"].startswith("/") or disk["path"].startswith("/dev/"):
            found.append(f"disks: {target} is {disk['path']}, which cannot be copied.")
        if disk["cache"] not in ("none", "directsync", "default") and state != "stopped" and not disk["read_only"]:
            found.append(f"disks: {target} has cache: {disk['cache']}; moved while it runs it might lose data.")
        if len(disk["backing"]) > 1:
            found.append(f"disks: {target} rests on more than a template. Flatten it (cnvm.platform.disk_image).")
    return found


def refused(
    name: str,
    live: t.Optional[Element],
    stored: Element,
    state: str,
    snapshots: t.Sequence[str],
    needs: t.Mapping[str, t.Any],
) -> list[str]:
    """All that the guest, as its source has it, has in the way.

    ``live``: its XML while it runs; ``stored``: that of its next start, which goes with it. Of neither does the target
    let anything through that was not announced (``needs``).
    """
    root = stored if live is None else live
    model = domain.parse(root)
    found = obstacles(name, root, state, snapshots)
    for disk in (*needs["disks"], *needs["fixed"]):
        if disk["below"] and not disk["template"]:
            found.append(
                f"disks: {disk['name']} rests on {disk['below']}, which is no template. Flatten it while {name} is off"
                " (cnvm.platform.disk_image)."
            )
    strange = admission.strangers(name, root, needs)
    told = {*domain.other_devices(root), *admission.folders(model)}
    told |= set(admission.volumes(root))
    opened, opened_later = admission.left_open(root, needs), admission.left_open(stored, needs)
    told |= set(opened)
    told |= {word for tag, folder in model["shared_folders"].items() for word in (tag, folder["source"])}
    found += [f"files: {name} has {one}, which no other host gives it." for one in strange if one not in told]
    for one in sorted({*opened, *opened_later}):
        anew = ", and start it anew" if live is not None and one in opened else ""
        found.append(
            f"disks: {name} has {one}, and no other host takes the word of a file for that. Run it once with its"
            f" description (cnvm.platform.guest), which writes it down{anew}."
        )
    waiting = [one for one in admission.strangers(name, stored, needs) if one not in (*strange, *opened_later)]
    if waiting:
        found.append(
            f"changes: for its next start {name} has {', '.join(waiting)}, which no other host gives it. Start it anew"
            " first, or take that back."
        )
    return found


def problems(name: str, host: str, needs: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> list[str]:
    """Why the target (``host``) cannot take it, all of them; ``seen``: what it has found of itself."""
    if not seen["reachable"]:
        return [f"libvirt: {host} has no libvirt that answers: {seen['reason']}"]
    found = _lacks(name, host, needs, seen)
    following = _lacks(name, host, needs["next_start"], seen["next_start"]) if needs["next_start"] else []
    found += [one.replace(": ", " (from its next start on): ", 1) for one in following if one not in found]
    found += [f"definition: {host} {what}." for what in seen["definition"]]
    if needs["live"] and seen["qemu"] < needs["qemu"]:
        versions = [_version(number) for number in (seen["qemu"], needs["qemu"])]
        found.append(f"QEMU: {host} has {versions[0]}, older than {versions[1]} here. Install a newer one there.")
    if seen["name_taken"]:
        found.append(f"name: {host} has another domain called {name}.")
    if seen["uuid_taken"]:
        found.append(f"uuid: the UUID of {name} is that of {seen['uuid_taken']} on {host}.")
    if seen["address_holder"]:
        found.append(f"address: {needs['address']} is taken: {seen['address_holder']} answers for it.")
    found += [f"files: {host} {what}." for what in seen["files"]]
    found += [f"disks: {host} {what}." for what in seen["disks"]]
    found += [f"template: {host}: {what}." for what in seen["templates"]]
    found += admission.refusals(name, host, needs, seen["pools"])
    found += [f"ports: {what}." for what in seen["ports"]]
    found += plan.space_problems(host, seen["space"])
    if needs["live"] and seen["memory"] < needs["memory"]:
        found.append(
            f"memory: {host} has {human_bytes(seen['memory'])} available, {human_bytes(needs['memory'])} are needed."
        )
    return found


def _lacks(name: str, host: str, needs: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> list[str]:
    """What the target lacks for it to go on, or to be started."""
    found = []
    if needs["arch"] != seen["arch"]:
        found.append(f"arch: {host} is {seen['arch']}, {name} is {needs['arch']}.")
    elif needs["machine"] not in seen["machines"]:
        found.append(f"machine: the QEMU of {host} has no machine {needs['machine']}. Install a newer one there.")
    if needs["type"] == "kvm" and not seen["kvm"]:
        found.append(f"KVM: {host} cannot use it, and {name} runs with it.")
    if seen["cpu"]:
        found.append(f"cpu: {host} cannot give {name} its CPU: {seen['cpu']}")
    found += [
        f"firmware: {host} has no {path}, or one of another size than here. Install the same version of its package."
        for path in seen["firmware"]
    ]
    if not seen["uefi"]:
        found.append(f"firmware: {host} has no UEFI for {name}. Install it there (ovmf on Debian, edk2-ovmf on EL).")
    found += [f"networks: the MAC {mac} is that of {other} on {host}." for mac, other in seen["macs_taken"].items()]
    found += [f"networks: {host} has no {what}." for what in seen["networks_missing"]]
    if seen["screen"]:
        found.append(f"graphics: {host} {seen['screen']}.")
    return found


def taken_mib(guest_mib: int) -> int:
    """What a guest takes of its host's memory when it has so much."""
    return guest_mib + _OVERHEAD_MIB


def warnings(
    name: str, needs: t.Mapping[str, t.Any], *, encrypted: bool, private: t.Iterable[str] = ()
) -> tuple[str, ...]:
    """What its owner should know. One that does not run goes through SSH in any case. ``private``: networks of the
    guest that each host has for itself."""
    live = needs["live"]
    found = [
        f"networks: {name} is in the network {each}, which each host has for itself: at the target it may need another"
        " address, and connections into it end. The overlay's addresses go along."
        for each in private
    ]
    if live and needs["type"] == "qemu" and needs["qemu"] < _KEEPS_MEMORY:
        found.append(
            f"memory: {name} is emulated, by QEMU {_version(needs['qemu'])}. From such a QEMU (seen with 7.2, not with"
            " 10.0) its memory may arrive damaged when hosts are busy: its kernel panics at the target. Stop it first."
        )
    found += plan.in_the_clear(f"the memory and the disks of {name}", encrypted=encrypted or not live)
    return tuple(found)


def post_copy(host: str, lacks: str) -> tuple[bool, str]:
    """Whether post-copy, which the task allows, can be done if it must; and a reason for the plan. ``lacks``: why the
    target (``host``) could not."""
    if lacks:
        return False, f"post-copy is allowed by the task, but {host} {lacks}"
    return True, "post-copy is allowed by the task, should it dirty memory as fast as it is copied"


def _version(number: int) -> str:
    """As libvirt counts it: 10000013 is 10.0.13."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


# --------------------------------------------------------------------------------------------------------------------
# How it moves
# --------------------------------------------------------------------------------------------------------------------
def flags(*, parallel: bool, auto_converge: bool, disks: bool, post_copy: bool = False) -> tuple[str, ...]:
    """Names of libvirt's flags (VIR_MIGRATE_…). It arrives paused: it runs when that is decided.

    With post-copy libvirt does not let it arrive so, and is kept from starting it (see ``_host.libvirt_tunnel``).
    """
    found = ["LIVE", "PERSIST_DEST", "ABORT_ON_ERROR", "POSTCOPY" if post_copy else "PAUSED"]
    if disks:
        found.append("NON_SHARED_INC")
    if parallel:
        found.append("PARALLEL")
    if auto_converge:
        found.append("AUTO_CONVERGE")
    return tuple(found)


@dataclasses.dataclass
class Pace:
    """How the copying of a guest's memory gets on, and what helps it. ``most_ms``: see ``max_downtime_ms``.

    It may stand still for ``limit_ms`` (0 until that is set). That is raised after so many rounds. When it can be
    raised no more, and so many rounds in a row were in vain, what is copied before it moves will never be enough.
    """

    most_ms: int
    limit_ms: int = 0
    vain: int = 0
    _round: int = 0
    _since: int = 0

    def look(self, stats: t.Mapping[str, t.Any]) -> bool:
        """Take libvirt's statistics in; whether ``limit_ms`` has changed."""
        now = int(stats.get("memory_iteration", 0))
        if not self.limit_ms or (now >= self._since + ROUNDS and self.limit_ms < self.most_ms):
            self.limit_ms = next_limit(self.limit_ms, self.most_ms)
            self._round = self._since = now
            return True
        if now > self._round and self.limit_ms >= self.most_ms:
            sent = int(stats.get("memory_bps", 0))
            dirtied = int(stats.get("memory_dirty_rate", 0)) * int(stats.get("memory_page_size", 0))
            # QEMU tells one rate for a second and more. Of short rounds in it, it is not known how each went.
            self.vain = self.vain + 1 if sent and dirtied >= sent * _VAIN else 0
            self._round = now
        return False

    def hopeless(self) -> bool:
        """Whether it does not get on."""
        return self.vain >= ROUNDS


def next_limit(limit_ms: int, most_ms: int) -> int:
    """The next longer time that a guest which does not converge may stand still; the same at the end."""
    longer = [each for each in _LIMITS_MS if each > limit_ms]
    return min(longer[0] if longer else most_ms, most_ms)


def sent_bytes(stats: t.Mapping[str, t.Any]) -> dict[str, int]:
    """What went over the link so far, by kind."""
    return {"memory": int(stats.get("memory_processed", 0)), "disks": int(stats.get("disk_processed", 0))}


_STATISTICS = {
    "time_elapsed": "elapsed_ms",
    "downtime": "downtime_ms",
    "setup_time": "setup_ms",
    "data_total": "total_bytes",
    "data_processed": "sent_bytes",
    "memory_total": "memory_bytes",
    "memory_processed": "memory_sent_bytes",
    "memory_normal": "memory_pages",
    "memory_constant": "memory_zero_pages",
    "memory_iteration": "memory_rounds",
    "memory_dirty_rate": "memory_dirty_pages_per_s",
    "memory_bps": "memory_bytes_per_s",
    "disk_total": "disk_bytes",
    "disk_processed": "disk_sent_bytes",
    "auto_converge_throttle": "throttle_percent",
    "memory_postcopy_requests": "post_copy_requests",
}


def slowed(stats: t.Mapping[str, t.Any]) -> dict[str, int]:
    """By how much QEMU slows the guest down, where it does. Of a job that has ended libvirt does not tell it."""
    return {key: int(stats[key]) for key in ("auto_converge_throttle",) if stats.get(key)}


def statistics(stats: t.Mapping[str, t.Any]) -> dict[str, int]:
    """libvirt's statistics of a job, with units in their names; only those that it gives."""
    return {ours: int(stats[theirs]) for theirs, ours in _STATISTICS.items() if theirs in stats}


def expected_ms(running: bool) -> int:
    """How long a guest is expected to stand still."""
    return FIXED_MS if running else 0


def disks_of(model: Model) -> dict[str, dict[str, t.Any]]:
    """The disks that hold data of the guest: {target: disk}. What is read-only comes as a file that must be there."""
    return {target: disk for target, disk in model["disks"].items() if not disk["read_only"]}
