# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What has to be done so that a domain is as wanted: in its stored XML, and in the machine that runs.

Every difference between the wanted model and the running one becomes a *step* (done while it runs) or a *reason* why
the guest must be restarted. There is no third kind: nothing is left out silently.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .domain import CDROM, MODES, SEED, Model, alike, moved_names

# What a running QEMU cannot change, with what is to be said of it.
_FIXED = {
    "type": "how it is run (KVM or emulated)",
    "arch": "the architecture",
    "machine": "the machine",
    "cpu": "the CPU",
    "firmware": "the firmware",
    "secure_boot": "secure boot",
    "kernel": "the kernel",
    "initrd": "the initrd",
    "cmdline": "the kernel's command line",
    "boot": "the boot order",
    "serial": "the serial console",
    "agent": "the agent's channel",
}
# Disks on these buses can be plugged in and out.
_HOTPLUG_BUSES = ("virtio", "scsi")
# The options that others come of, which are called otherwise in a model.
_OPTIONS = {"type": "accelerator", f"cdroms.{CDROM}": "cdrom", f"cdroms.{SEED}": "cloud_init"}
# Keys of a model that are no difference by themselves.
_IDENTITY = ("name", "uuid")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that is not as wanted. ``key``: such as ``memory_mib`` or ``disks.vdb.cache``."""

    key: str
    before: t.Any
    after: t.Any


@dataclasses.dataclass(frozen=True)
class Step:
    """Something that is done to a running guest.

    ``kind``: memory, vcpus, description, marks, password, media, attach_disk, detach_disk, attach_network,
    detach_network or update_network. ``name``: of the device. ``value``: what it becomes.
    """

    kind: str
    key: str
    name: str = ""
    value: t.Any = None


@dataclasses.dataclass(frozen=True)
class Changes:
    """``stored``: what the stored XML says otherwise. ``steps``: what is done while the guest runs. ``reasons``: what
    needs a restart, in words, by key."""

    stored: tuple[Difference, ...] = ()
    steps: tuple[Step, ...] = ()
    reasons: t.Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """All options that have something to be done for, now or at the next start."""
        found = {one.key for one in self.stored}
        # A step is for a whole device, of which a part may be told already.
        found |= {one.key for one in self.steps if not any(key.startswith(f"{one.key}.") for key in found)}
        return sorted(found)


def _show(value: t.Any) -> str:
    if isinstance(value, dict) and set(value) == {"model", "features"}:
        features = [f"{policy} {name}" for name, policy in sorted(value["features"].items())]
        return ", ".join([value["model"] or "the default", *features])
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "nothing"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in sorted(value.items()) if one not in ("", None)) or "nothing"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value not in ("", None) else "nothing"


def _turned(what: str, before: t.Any, after: t.Any) -> str:
    return f"{what} is {_show(before)}, and is to be {_show(after)}"


def differences(wanted: Model, actual: Model) -> list[Difference]:
    """All that is not as wanted. Devices are compared one by one; a secret is not shown."""
    found: list[Difference] = []
    for key, value in wanted.items():
        if key in _IDENTITY or alike(key, value, actual[key]):
            continue
        if key in ("disks", "cdroms", "networks", "shared_folders"):
            for name in [*actual[key], *(name for name in value if name not in actual[key])]:
                place = f"{key}.{name}"
                found += _device(_OPTIONS.get(place, place), value.get(name), actual[key].get(name))
        elif key == "marks":
            found += _marks(value, actual[key])
        elif key == "graphics":
            found += _graphics(value, actual[key])
        else:
            found.append(Difference(_OPTIONS.get(key, key), actual[key], value))
    return found


def _device(key: str, wanted: t.Optional[t.Mapping[str, t.Any]], actual: t.Any) -> list[Difference]:
    if wanted is None or actual is None:
        return [Difference(key, actual, wanted)]
    found = {part: (actual.get(part), wanted[part]) for part in wanted if wanted[part] != actual.get(part)}
    # The same in other words: it is for the next start alone, and running() does not look at it.
    if "volume" in actual:
        found.setdefault("path", (actual["volume"], wanted["path"]))
    if "open" in actual:
        found.setdefault("backing", (actual["open"], "written down"))
    return [Difference(f"{key}.{part}", before, after) for part, (before, after) in found.items()]


def _marks(wanted: t.Mapping[str, t.Any], actual: t.Mapping[str, t.Any]) -> list[Difference]:
    tags = {} if not actual else actual.get("tags", {})
    if wanted.get("tags", {}) != tags:
        return [Difference("tags", tags, wanted.get("tags", {}))]
    return [Difference("marks", "", "")]


def _graphics(wanted: t.Mapping[str, t.Any], actual: t.Mapping[str, t.Any]) -> list[Difference]:
    shown = [{key: one for key, one in each.items() if key != "password"} for each in (actual, wanted)]
    if shown[0] != shown[1]:
        return [Difference("graphics", *shown)]
    return [Difference("graphics.password", "", "")]


# --------------------------------------------------------------------------------------------------------------------
# The running machine
# --------------------------------------------------------------------------------------------------------------------
def live_model(live: Model, stored: Model) -> Model:
    """A running domain's model, with the CPU that was asked for when it was started: its XML names the features that
    came of it, of which each host makes others. Of one that was not started by us that is what is stored, if it can be.
    """
    asked = live["marks"].get("cpu")
    if not asked and _came_of(stored["cpu"], live["cpu"]):
        asked = stored["cpu"]
    return {**live, "cpu": asked} if asked else live


def _came_of(asked: t.Mapping[str, t.Any], actual: t.Mapping[str, t.Any]) -> bool:
    """Whether the CPU of a running domain can be what libvirt made of ``asked``: a model, and more features."""
    if asked["model"] == "host-model":
        named = actual["model"] not in MODES
    else:
        named = asked["model"] in ("", actual["model"])
    return named and all(
        policy == "optional" or actual["features"].get(name) == policy for name, policy in asked["features"].items()
    )


def compare(wanted: Model, stored: Model, live: t.Optional[Model] = None) -> Changes:
    """What is to be done; ``live`` is None when the guest does not run."""
    stored_differences = tuple(differences(wanted, stored))
    if live is None:
        return Changes(stored=stored_differences)
    steps, reasons = running(wanted, live_model(live, stored), stored)
    return Changes(stored=stored_differences, steps=tuple(steps), reasons=reasons)


def pending(stored: Model, live: Model) -> dict[str, str]:
    """What of its stored XML a running guest does not have, whatever the cause."""
    steps, reasons = running(stored, live_model(live, stored), stored)
    for step in steps:
        if step.kind not in ("marks", "description"):
            reasons.setdefault(step.key, "the running guest has not taken it over")
    return reasons


def kept_memory(wanted: Model, live: Model) -> str:
    """What is to be said of a running guest that has more memory than it is to have, where a restart is of no use: it
    starts with the most that it may have, and has to give that back, too. Empty where there is nothing to say."""
    if wanted["memory_mib"] >= min(live["memory_mib"], wanted["max_memory_mib"]):
        return ""
    return (
        f"still has {live['memory_mib']} MiB of memory, and is to have {wanted['memory_mib']}: it gives back the rest "
        "when its kernel's driver virtio_balloon is up."
    )


def running(wanted: Model, live: Model, stored: Model) -> tuple[list[Step], dict[str, str]]:
    """Steps and reasons for a guest that runs as ``live``, and would start as ``stored``."""
    steps: list[Step] = []
    reasons: dict[str, str] = {}
    for key, what in _FIXED.items():
        if not alike(key, wanted[key], live[key]):
            reasons[_OPTIONS.get(key, key)] = _turned(what, live[key], wanted[key])
    _compute(wanted, live, stored, steps, reasons)
    _describe(wanted, live, steps)
    _storage(wanted, live, steps, reasons)
    _drives(wanted, live, steps, reasons)
    _cards(wanted, live, steps, reasons)
    _screen(wanted, live, steps, reasons)
    if live["marks"] and wanted["marks"].get("seed", "") != live["marks"].get("seed", ""):
        reasons["cloud_init"] = "what is on the cloud-init seed is read when the guest starts"
    for name in sorted({*wanted["shared_folders"], *live["shared_folders"]}):
        before, after = live["shared_folders"].get(name), wanted["shared_folders"].get(name)
        if before != after:
            reasons[f"shared_folders.{name}"] = _turned(f"the shared folder {name}", before, after)
    return steps, reasons


def _compute(wanted: Model, live: Model, stored: Model, steps: list[Step], reasons: dict[str, str]) -> None:
    for key, most, what in (("memory_mib", "max_memory_mib", "MiB of memory"), ("vcpus", "max_vcpus", "virtual CPUs")):
        if wanted[key] > live[most]:
            reasons[key] = f"it was started with at most {live[most]} {what}, and is to have {wanted[key]}"
            continue
        # A guest gives memory back when its balloon driver is up; it was told when it was started, or by a run before.
        # What has still to come is told by kept_memory().
        waiting = key == "memory_mib" and live[key] > wanted[key] == stored[key]
        if key == "vcpus" and wanted[key] < live[key] and live["type"] == "qemu":
            # QEMU 10 ends with a failed assertion (tcg_register_thread) when it is given one back later.
            reasons[key] = f"it has {live[key]} virtual CPUs, and being emulated cannot give one up while it runs"
        elif waiting and wanted[most] < live[most]:
            # It was not started with this.
            reasons[key] = f"it has not given back what it has above {wanted[key]} MiB: its balloon does not answer"
        elif wanted[key] != live[key] and not waiting:
            steps.append(Step(key.partition("_")[0], key, value=wanted[key]))
        # As a maximum that nobody has asked for, more than is to be possible does no harm until the next start.
        if wanted[most] > live[most] or wanted[key] < wanted[most] < live[most]:
            only = "only " if wanted[most] < live[most] else ""
            reasons[most] = (
                f"it was started with at most {live[most]} {what}, and {only}{wanted[most]} are to be possible"
            )


def _describe(wanted: Model, live: Model, steps: list[Step]) -> None:
    if wanted["description"] != live["description"]:
        steps.append(Step("description", "description", value=wanted["description"]))
    # These are of this run, and change when the guest is started again.
    kept = {**wanted["marks"], "cpu": live["cpu"], "seed": live["marks"].get("seed", "")}
    if live["marks"].get("cloud_init"):
        kept["cloud_init"] = live["marks"]["cloud_init"]
    if wanted["marks"] and kept != live["marks"]:
        key = "tags" if kept.get("tags") != live["marks"].get("tags") else "marks"
        steps.append(Step("marks", key, value=kept))


def _storage(wanted: Model, live: Model, steps: list[Step], reasons: dict[str, str]) -> None:
    # Taken away and added again they would be torn from a guest that works on them.
    paths = ({name: one["path"] for name, one in model["disks"].items()} for model in (live, wanted))
    renamed = moved_names(*paths)
    for new, old in renamed.items():
        reasons[f"disks.{new}"] = f"the disk {old} is called {new} from the next start"
    had = {name: one for name, one in live["disks"].items() if name not in renamed.values()}
    gets = {name: one for name, one in wanted["disks"].items() if name not in renamed}
    for name in [*had, *(name for name in gets if name not in had)]:
        before, after = had.get(name), gets.get(name)
        key = f"disks.{name}"
        if before is None and name in live["disks"]:
            reasons[key] = f"another disk is called {name} until the next start"
            continue
        if before is None or after is None:
            bus = (after or before or {})["bus"]
            if bus not in _HOTPLUG_BUSES:
                verb = "added" if before is None else "taken away"
                reasons[key] = f"the disk {name} on the bus {bus} cannot be {verb} while the guest runs"
            elif after is None:
                steps.append(Step("detach_disk", key, name))
            else:
                steps.append(Step("attach_disk", key, name, after))
            continue
        for part in ("path", "format", "bus", "cache", "read_only", "serial"):
            if before[part] != after[part]:
                reasons[f"{key}.{part}"] = _turned(f"the disk {name}'s {part}", before[part], after[part])


def _drives(wanted: Model, live: Model, steps: list[Step], reasons: dict[str, str]) -> None:
    for name in sorted({*live["cdroms"], *wanted["cdroms"]}):
        before, after = live["cdroms"].get(name), wanted["cdroms"].get(name)
        key = _OPTIONS.get(f"cdroms.{name}", f"cdroms.{name}")
        if before is None or after is None or before["bus"] != after["bus"]:
            verb = "added" if before is None else "taken away" if after is None else "moved to another bus"
            reasons[key] = f"the CD drive {name} cannot be {verb} while the guest runs"
            if name == CDROM and after is None and before is not None and before["path"]:
                # What is in it can. In another drive lies what its user has put there, or reads when the guest starts.
                steps.append(Step("media", key, name, {**before, "path": ""}))
        elif before["path"] != after["path"]:
            steps.append(Step("media", key, name, after))


def _cards(wanted: Model, live: Model, steps: list[Step], reasons: dict[str, str]) -> None:
    for mac in [*live["networks"], *(mac for mac in wanted["networks"] if mac not in live["networks"])]:
        before, after = live["networks"].get(mac), wanted["networks"].get(mac)
        key = f"networks.{mac}"
        if after is None:
            steps.append(Step("detach_network", key, mac))
        elif before is None:
            steps.append(Step("attach_network", key, mac, after))
        else:
            fixed = [part for part in ("model", "mtu") if before[part] != after[part]]
            for part in fixed:
                reasons[f"{key}.{part}"] = _turned(f"the network card {mac}'s {part}", before[part], after[part])
            if (before["type"], before["source"]) != (after["type"], after["source"]):
                steps.append(Step("update_network", key, mac, {**after, **{part: before[part] for part in fixed}}))


def _screen(wanted: Model, live: Model, steps: list[Step], reasons: dict[str, str]) -> None:
    before, after = live["graphics"], wanted["graphics"]
    shown = [{key: one for key, one in each.items() if key != "password"} for each in (before, after)]
    if shown[0] != shown[1]:
        reasons["graphics"] = _turned("the screen", *shown)
    elif before.get("password") != after.get("password"):
        if not after.get("password") or not before.get("password"):
            # QEMU decides once whether a password is asked for at all.
            reasons["graphics.password"] = "a screen gets or loses its password only when the guest is started"
        else:
            steps.append(Step("password", "graphics.password", value=after))
