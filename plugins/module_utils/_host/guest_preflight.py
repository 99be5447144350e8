# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a plan of a guest's move is made from: what it needs, and what a target has. Both sides; reads only."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError
from .._core.names import is_digest
from .._libvirt import admission, capabilities, changes, domain, errors, guest_plan, migration, network, xml
from .._libvirt.xml import Element
from .._migrate import plan
from .._net.endpoint import Endpoint
from .._net.overlay import encrypted
from . import (
    disk_guests,
    disks,
    domains,
    files,
    guest_disks,
    info,
    kinds,
    kvm,
    libvirt,
    mounts,
    movedir,
    netns,
    ownership,
    peers,
    preflight,
    snapshot_records,
    templates,
)
from .system import Host

Record = t.Mapping[str, t.Any]

# Where libvirt takes the ports from on which a guest and its disks arrive.
_PORTS = range(49152, 49216)


# --------------------------------------------------------------------------------------------------------------------
# On the source
# --------------------------------------------------------------------------------------------------------------------
def known(connection: libvirt.Connection, name: str) -> domains.Known:
    """The domain of a guest of this host."""
    found = domains.read(connection, [name]).get(name)
    if found is None or found.stored is None:
        raise HostError(f"libvirt does not know the guest {name!r} any more.", hint="See cnvm.platform.guest_info.")
    return found


def needs_of(
    name: str, found: domains.Known, definition: Record, host: Host, version: int, post_copy: bool
) -> dict[str, t.Any]:
    """What the target must have for it. ``version``: of this host's QEMU. ``post_copy``: whether it is allowed."""
    live = found.live is not None
    root = found.live if found.live is not None else found.xml
    following = found.model
    model = found.live_model or following
    pools = {disk["name"]: disk["pool"] for disk in definition["disks"]}
    fixed = {target: disk for target, disk in model["disks"].items() if disk["read_only"]}
    home = f"{paths.guest_disks_dir(name)}/"
    brought = [path for path in (paths.guest_seed(name),) if os.path.exists(path)]
    brought += [disk["path"] for disk in fixed.values() if disk["path"].startswith(home)]
    nvram = xml.text_of(root, "os/nvram")
    if nvram and not live and os.path.exists(nvram):
        brought.append(nvram)
    # What it starts with the next time may be something else.
    kept = [disk["path"] for disk in fixed.values()]
    for each in (model, following):
        kept += [each["kernel"], each["initrd"], *(drive["path"] for drive in each["cdroms"].values())]
    return {
        **_start(root, live=live),
        "next_start": _next_start(found),
        "uuid": model["uuid"],
        "post_copy": post_copy and live,
        "qemu": version,
        "memory": migration.taken_mib(model["max_memory_mib"]) * 2**20 if live else 0,
        "disks": [_disk(target, disk, pools) for target, disk in migration.disks_of(model).items()],
        "fixed": [_disk(target, disk, pools) for target, disk in fixed.items()],
        "files": {path: _stamp(path) for path in kept if path and path not in brought},
        "brought": brought,
        "address": definition.get("address") or "",
        "address_mac": next((card["mac"] for card in definition["networks"] if card["address"]), ""),
        "log": model["serial"]["log"] or following["serial"]["log"],
        "definition": xml.document(domains.portable(found.domain)) if not live else "",
        "mark": "",
    }


def _start(root: Element, *, live: bool) -> dict[str, t.Any]:
    """What a guest with this XML must have of its host. ``live``: to go on there; otherwise to be started."""
    model = domain.parse(root)
    return {
        "live": live,
        "type": model["type"],
        "arch": model["arch"],
        "machine": model["machine"],
        "cpu": _cpu(root, live=live),
        "firmware": _firmware(root),
        # Its definition may leave it to libvirt which of the host's it takes.
        "uefi": model["firmware"] == "uefi" and not xml.text_of(root, "os/loader"),
        "networks": sorted({(card["type"], card["source"]) for card in model["networks"].values()}),
        "macs": sorted(model["networks"]),
        "screen": _screen(model, live=live),
    }


def _next_start(found: domains.Known) -> dict[str, t.Any]:
    """The same for the next start of a guest that runs; {} where that needs nothing else, and for one that is off."""
    if found.live is None:
        return {}
    now, later = _start(found.live, live=True), _start(found.xml, live=False)
    following = found.model
    running = changes.live_model(domain.parse(found.live), following)
    # What libvirt has made of a CPU when it started it is no difference, nor is a port that must be free now.
    if (running["type"], running["cpu"]) == (following["type"], following["cpu"]):
        later["cpu"] = now["cpu"]
    if now["screen"][:1] == later["screen"][:1]:
        later["screen"] = now["screen"]
    return {} if later == {**now, "live": False} else later


def _screen(model: Record, *, live: bool) -> list[t.Any]:
    """Address and port of the guest's screen, [] where it has none; port 0 where libvirt chooses one, or later."""
    graphics = model["graphics"]
    if graphics["type"] != "vnc":
        return []
    return [graphics.get("listen") or "127.0.0.1", (graphics["port"] or 0) if live else 0]


def _cpu(root: Element, *, live: bool) -> str:
    """The CPU that it has, or will have; '' where that is the one of its host, whatever that is, or where libvirt will
    start it without a look at that of the host."""
    found = root.find("cpu")
    if found is None or found.get("mode", "custom") != "custom" or (not live and found.get("check") == "none"):
        return ""
    return xml.document(found)


def _firmware(root: Element) -> dict[str, int]:
    """The distribution's files that its firmware is made of, with their sizes; empty for a BIOS, which is QEMU's."""
    loader, nvram = xml.text_of(root, "os/loader"), root.find("os/nvram")
    found = [loader, "" if nvram is None else nvram.get("template", "")]
    return {path: os.path.getsize(path) for path in found if path and os.path.exists(path)}


def _disk(target: str, disk: Record, pools: t.Mapping[str, str]) -> dict[str, t.Any]:
    """One disk: its own file, and the template below it. ``pools``: those in which the user wants the disks."""
    path = str(disk["path"])
    below = disk["backing"][0]["path"] if disk["backing"] else ""
    digest = _digest_in(below)
    made: dict[str, t.Any] = {
        "name": target, "path": path, "format": disk["format"], "below": below, "template": digest,
        "template_bytes": os.path.getsize(below) if digest and os.path.exists(below) else 0,
        "virtual": 0, "bytes": 0, "shared": False, "inode": 0, "pool": pools.get(target, ""),
    }  # fmt: skip
    with contextlib.suppress(OSError, CnvmError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            made["virtual"] = disks.inspect(path, disk["format"]).header.virtual_bytes
            made.update(bytes=status.st_blocks * 512, inode=status.st_ino, shared=on_shared_storage(path))
    return made


def _digest_in(path: str) -> str:
    """The digest of the template at ``path``, '' when it is none."""
    digest = os.path.basename(os.path.dirname(path))
    return digest if is_digest(digest) and path == paths.template_disk(digest) else ""


def _stamp(path: str) -> dict[str, t.Any]:
    if not os.path.isfile(path):
        return {"size": -1, "sha256": ""}
    size = os.path.getsize(path)
    # A large disc is compared by its size alone: reading it would take longer than the move.
    return {"size": size, "sha256": disks.digest(path) if size <= 256 * 2**20 else ""}


def on_shared_storage(path: str) -> bool:
    """Whether a file is on a file system that other hosts have, too."""
    device = os.stat(path).st_dev
    kinds_of = info.file_systems(files.read_mounts())
    return kinds_of.get(f"{os.major(device)}:{os.minor(device)}") in mounts.SHARED


def mark_of(path: str, mark: str) -> str:
    """A file beside one on shared storage. By it a host sees that it has the storage that the other one writes to: path
    and inode of a file may be the same on the storage of two servers."""
    return f"{os.path.dirname(os.path.realpath(path))}/{mark}"


def _is_same(disk: Record, mark: str) -> bool:
    """Whether this host has the same file at the path of a disk on shared storage. ``mark``: '' before the move."""
    with contextlib.suppress(OSError):
        same = os.stat(disk["path"]).st_ino == disk["inode"] and on_shared_storage(disk["path"])
        return same and (not mark or os.path.exists(mark_of(disk["path"], mark)))
    return False


def going(name: str, needs: Record) -> list[str]:
    """The disks that are deleted here once the guest has left: those that are copied, and what it reads of its own."""
    home = f"{paths.guest_disks_dir(name)}/"
    copied = [str(disk["path"]) for disk in needs["disks"] if not disk["shared"]]
    return [*copied, *(path for path in needs["brought"] if path.startswith(home))]


def _in_files(name: str, needs: Record) -> list[str]:
    """What the files themselves that are to go with the guest have in the way."""
    found = []
    for path in going(name, needs):
        if os.path.islink(path):
            real = os.path.realpath(path)
            found.append(
                f"disks: {path} is a link to {real}, which would stay behind. Stop {name} and bring the file itself to"
                " the place of the link, or give the guest the disk by its real path."
            )
    copied = [disk for disk in needs["disks"] if not disk["shared"]]
    brought = [disk for disk in needs["fixed"] if disk["path"] in needs["brought"]]
    for disk in (*copied, *brought):
        if disk["format"] != "qcow2":
            continue
        # What it is that cannot be read others say.
        with contextlib.suppress(OSError, CnvmError):
            node = disks.inspect(disk["path"], "qcow2")
            header, rests_on = node.header, disks.backing_path(node)
            by_libvirt = needs["live"] and disk not in brought
            if rests_on != disk["below"] and not by_libvirt:
                # The target takes no file that names another one than was announced.
                run = f"Stop {name}, then run it" if needs["live"] else f"Run {name}"
                found.append(
                    f"disks: {disk['path']} rests on {rests_on or 'nothing'}, and libvirt was told that it rests on"
                    f" {disk['below'] or 'nothing'}: it was flattened or rebased. {run} with its description"
                    " (cnvm.platform.guest) first."
                )
            if header.snapshots and by_libvirt:
                found.append(
                    f"snapshots: {disk['path']} has internal snapshots ({header.snapshots}), which are lost when it is"
                    f" copied while {name} runs. Stop {name}, and move it then: they go along. Or delete them"
                    " (qemu-img snapshot -l, -d)."
                )
            if header.data_file:
                found.append(
                    f"disks: {disk['path']} has its data in another file ({header.data_file}), which would stay behind."
                    " Make one file of it (qemu-img convert)."
                )
    return found


def _others_need(name: str, needs: Record, host: str) -> tuple[list[str], list[str]]:
    """(why it cannot, warnings) of what goes with the guest and is to leave this host (``host``).

    Storage that may hang is left out, but for what the guest itself has: a host that has lost its file server must be
    able to give its guests away. What lies there does not go with this one. What rests from there on a disk of this
    host alone is not seen; that is a chain which no other host can open.
    """
    own = [path for disk in (*needs["disks"], *needs["fixed"]) for path in (disk["path"], disk["below"]) if path]
    own += [*needs["brought"], *needs["files"], *guest_disks.at_home(name)]
    unseen: list[str] = []
    users = disk_guests.needed({name: going(name, needs)}, mounts.away_from(own), unseen).get(name)
    if not users:
        return [], unseen
    words = disk_guests.words_of(users)
    return [f"disks: others on {host} need files that go with {name}: {words}. {disk_guests.FREE_THEM}"], unseen


def _left_here(name: str, needs: Record, host: str) -> tuple[list[str], list[str]]:
    """(why they cannot be kept, a warning) of the files in the guest's own directory that do not go with it, such as a
    disk that was taken away from it: they are kept on this host (``host``)."""
    stay = guest_disks.staying(name, going(name, needs))
    if not stay:
        return [], []
    also = ", ".join(map(os.path.basename, stay))
    words = f"disks: beside what {name} has as its disks, {also} is in {paths.guest_disks_dir(name)}"
    problem = guest_disks.cannot_keep(name)
    if problem:
        return [f"{words}, and {problem}. Move away what you want to keep, and remove the rest."], []
    return [], [f"{words}: that stays on {host}, below {paths.KEPT_DISKS}."]


def survey(host: Host, channel: peers.Channel, definition: Record, owner: Record, request: Record) -> kinds.Survey:
    """The plan of a move of a guest. Learnt: ``templates``, those that the target lacks.

    Reads only, on both hosts.
    """
    name = definition["name"]
    me = ownership.host_identity()
    there = preflight.ask(channel, "guest")
    found: list[str] = []
    with libvirt.connect() as connection:
        seen = known(connection, name)
        with libvirt.doing("tell QEMU's version"):
            version = int(connection.getVersion())
        with libvirt.doing(f"look at what the guest {name!r} does"):
            if seen.live is not None and int(seen.domain.jobInfo()[0]):
                found.append(f"{name} is busy with another job of libvirt on {me['name']}. Wait for it.")
            ours = snapshot_records.names(name, seen.model)
            found += _kept_by_libvirt(name, seen, ours)
        private = _private_networks(connection, seen)
    mounts.silent().check(seen.files, f"files: {name}")
    needs = needs_of(name, seen, definition, host, version, bool(request["allow_post_copy"]))
    found += migration.refused(name, seen.live, seen.xml, seen.state, ours, needs)
    found += _in_files(name, needs)
    needed, unseen = _others_need(name, needs, me["name"])
    found += needed
    cannot_stay, stays = _left_here(name, needs, me["name"])
    found += cannot_stay
    answer = channel.call("check", timeout_s=90, definition=definition, owner=owner, needs=needs)
    live = bool(needs["live"])
    mode = migration.LIVE if live else migration.OFFLINE
    reasons = [f"{name} runs" if live else f"{name} does not run, so there is no memory to move"]
    moved = [disk for disk in needs["disks"] if not disk["shared"]]
    if moved:
        reasons.append(f"{', '.join(disk['name'] for disk in moved)} {'is' if len(moved) == 1 else 'are'} copied")
    shared = [disk["name"] for disk in needs["disks"] if disk["shared"]]
    if shared:
        is_or_are = "is" if len(shared) == 1 else "are"
        reasons.append(f"{', '.join(shared)} {is_or_are} on storage that both hosts have, and {is_or_are} not copied")
    if needs["post_copy"]:
        needs["post_copy"], reason = migration.post_copy(there["identity"]["name"], answer["post_copy"])
        reasons.append(reason)
    if answer.get("templates"):
        reasons.append("a template is brought first")
    overlay = files.read_json(paths.OVERLAY_FILE)
    warnings = migration.warnings(name, needs, encrypted=overlay is None or encrypted(overlay), private=private)
    made = plan.Plan(
        mode, tuple(reasons), (*found, *answer["problems"]), (*unseen, *stays, *warnings),
        migration.expected_ms(live), tuple(answer["space"]),
    )  # fmt: skip
    return kinds.Survey(made, live, there["identity"], needs, {"templates": answer.get("templates", [])})


def _private_networks(connection: libvirt.Connection, seen: domains.Known) -> list[str]:
    """The networks of the guest that libvirt has made on this host alone: those behind NAT, say."""
    names = {
        card["source"] for card in (seen.live_model or seen.model)["networks"].values() if card["type"] == "network"
    }
    found = []
    for name in sorted(names):
        each = libvirt.network(connection, name)
        with libvirt.doing(f"look at the network {name!r}"):
            if each is not None and network.parse(str(each.XMLDesc(0)))["type"] in network.MANAGED:
                found.append(name)
    return found


def _kept_by_libvirt(name: str, seen: domains.Known, ours: t.Sequence[str]) -> list[str]:
    """What libvirt itself keeps of the guest on this host, and would forget. ``ours``: its snapshots of the module
    guest_snapshot."""
    found = []
    if seen.saved:
        found.append(f"memory: {name} was saved with its memory, which would be lost. {guest_plan.unsave(name)}")
    if not ours and (seen.domain.snapshotNum() or seen.domain.listAllCheckpoints()):
        found.append(f"snapshots: libvirt has snapshots or checkpoints of {name}. Delete them first (virsh).")
    return found


# --------------------------------------------------------------------------------------------------------------------
# On the target
# --------------------------------------------------------------------------------------------------------------------
def look(host: Host, definition: Record, needs: Record, goes: t.Collection[str] = ()) -> dict[str, t.Any]:
    """What this host has of what a guest needs (see ``migration.problems``); ``lacks``: templates to bring;
    ``post_copy``: why it could do none. ``goes``: files that are gone when the move begins."""
    seen: dict[str, t.Any] = {"reachable": False, "reason": "", "lacks": [], "space": [], "post_copy": ""}
    try:
        with libvirt.connect() as connection:
            seen.update(_ask(connection, str(definition["name"]), needs), reachable=True)
    except CnvmError as error:
        return {**seen, "reason": str(error)}
    seen.update(_look_at_files(definition, needs, goes), memory=movedir.available_memory(), address_holder="")
    if goes or not seen["name_taken"]:
        seen["files"] += _in_the_way(str(definition["name"]), needs, goes)
    seen["ports"] = _ports() if needs["live"] else []
    seen["post_copy"] = _lacks_post_copy() if needs["post_copy"] else ""
    if needs["address"]:
        try:
            seen["address_holder"] = (
                netns.address_holder(on_overlay(str(definition["name"]), needs), needs["macs"]) or ""
            )
        except OSError as error:
            seen["address_holder"] = f"nobody could be asked ({error})"
    return seen


def _ask(connection: libvirt.Connection, name: str, needs: Record) -> dict[str, t.Any]:
    with libvirt.doing("tell QEMU's version"):
        version = int(connection.getVersion())
    known_domains = domains.read(connection)
    uuids = {one.model["uuid"]: other for other, one in known_domains.items()}
    macs = {mac: other for other, one in known_domains.items() for mac in one.model["networks"] if other != name}
    start, following = _look_at_start(connection, needs, macs), needs["next_start"]
    # libvirt would say once more that it has no such machine, or no UEFI for it.
    fits = start["uefi"] and needs["machine"] in start["machines"]
    return {
        **start,
        "next_start": _look_at_start(connection, following, macs) if following else {},
        "qemu": version,
        "name_taken": name in known_domains,
        "uuid_taken": uuids.get(needs["uuid"], "") if uuids.get(needs["uuid"]) != name else "",
        "pools": libvirt.pool_directories(connection),
        "definition": _in_definition(connection, name, needs, fits) if needs["definition"] else [],
    }


def _in_definition(connection: libvirt.Connection, name: str, needs: Record, fits: bool) -> list[str]:
    """What this host has against the XML with which the guest would be defined here. libvirt, where the rest ``fits``,
    is only to say how it would start it; what is not about the XML (a network that is missing) is told elsewhere."""
    root = xml.parse(needs["definition"], f"the definition of {name}", "domain")
    strange = [f"gives {name} no {one}" for one in admission.strangers(name, root, needs)]
    if strange or not fits:
        return strange
    library = libvirt.library()
    try:
        connection.domainXMLToNative("qemu-argv", needs["definition"], 0)
    except library.libvirtError as error:
        if error.get_error_code() in (errors.CONFIG_UNSUPPORTED, errors.XML_ERROR):
            return [f"has a libvirt that does not take that of {name}: {error.get_error_message()}"]
    return []


def _look_at_start(connection: libvirt.Connection, needs: Record, macs: t.Mapping[str, str]) -> dict[str, t.Any]:
    """What this host has for a guest to go on, or to be started. ``macs``: those of its other domains."""
    with libvirt.doing("tell what this host can do"):
        said = capabilities.parse_capabilities(str(connection.getCapabilities()), needs["arch"])
    missing = []
    for kind, source in needs["networks"]:
        if kind == "bridge" and not os.path.isdir(f"/sys/class/net/{source}/bridge"):
            missing.append(f"bridge {source}")
        if kind == "direct" and not os.path.exists(f"/sys/class/net/{source}"):
            missing.append(f"interface {source}")
        if kind == "network":
            each = libvirt.network(connection, source)
            with libvirt.doing(f"look at the network {source!r}"):
                if each is None or (needs["live"] and not each.isActive()):
                    missing.append(f"{'active ' if each is not None else ''}network {source}")
    arch, machines = os.uname().machine, [*said["machine_types"], *said["machines"]]
    # Of the firmware for one that is not there libvirt tells nothing; and that it is not there is told anyway.
    has_machine = arch == needs["arch"] and needs["machine"] in machines
    return {
        "arch": arch,
        "machines": machines,
        "kvm": needs["type"] != "kvm" or kvm.probe()["usable"],
        # libvirt knows of no CPU for a machine that the host does not have: then it is asked about its usual one.
        "cpu": _cpu_problem(connection, needs, needs["machine"] if has_machine else None),
        "macs_taken": {mac: macs[mac] for mac in needs["macs"] if mac in macs},
        "networks_missing": missing,
        "firmware": [path for path, size in needs["firmware"].items() if not _has_firmware(path, size, needs)],
        "uefi": not needs["uefi"] or not has_machine or _has_uefi(connection, needs),
        "screen": _lacks_screen(*needs["screen"]) if needs["screen"] else "",
    }


def _has_firmware(path: str, size: int, needs: Record) -> bool:
    """Of a guest that runs the code comes with its memory, and has to fit; another one starts with what there is."""
    return os.path.isfile(path) and (not needs["live"] or os.path.getsize(path) == size)


def _has_uefi(connection: libvirt.Connection, needs: Record) -> bool:
    """Whether libvirt finds UEFI on this host for a guest that names none itself."""
    with libvirt.doing("tell with which firmware guests can start"):
        said = str(connection.getDomainCapabilities(None, needs["arch"], needs["machine"], None, 0))
    return "efi" in capabilities.parse_domain_capabilities(said)["firmware"]


def _cpu_problem(connection: libvirt.Connection, needs: Record, machine: t.Optional[str]) -> str:
    """Why QEMU cannot give the guest the CPU that it has; '' when it can, or nobody can tell."""
    if not needs["cpu"]:
        return ""
    library = libvirt.library()
    try:
        answer = connection.compareHypervisorCPU(
            None, needs["arch"], machine, needs["type"], needs["cpu"],
            library.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )  # fmt: skip
    except library.libvirtError as error:
        if error.get_error_code() in (errors.NO_SUPPORT, errors.OPERATION_UNSUPPORTED, errors.INVALID_ARG):
            return ""
        return str(error.get_error_message())
    good = (library.VIR_CPU_COMPARE_IDENTICAL, library.VIR_CPU_COMPARE_SUPERSET)
    return "" if answer in good else "it is not a superset."


def _look_at_files(definition: Record, needs: Record, goes: t.Collection[str] = ()) -> dict[str, t.Any]:
    """Files, templates, places for disks, and the space for them."""
    wrong, places, bad, lacks = [], [], [], []
    space: dict[int, dict[str, t.Any]] = {}

    def take(directory: str, count: int, once: str = "") -> None:
        # What is free on a file system is there once, for all directories on it.
        entry = movedir.space(directory)
        entry = space.setdefault(entry["device"], entry)
        entry["needed_bytes"] += count
        if once:
            entry["once"][once] = count

    for path, stamp in needs["files"].items():
        if not os.path.isfile(path):
            wrong.append(f"has no file {path}")
        elif not os.stat(path).st_mode & stat.S_IROTH:
            # Another guest's disk, or what is root's alone: a large file is only compared by its size.
            wrong.append(f"gives {path} to no guest that comes, for not everybody there may read it (chmod o+r)")
        elif _stamp(path) != stamp:
            wrong.append(f"has another {path}")
    for disk in (*needs["disks"], *needs["fixed"]):
        path, directory = disk["path"], os.path.dirname(disk["path"])
        home = path.startswith(f"{paths.guest_disks_dir(str(definition['name']))}/")
        if not is_digest(str(disk["template"])):
            # What is none, and not nothing, is refused (see ``admission``): nobody looks where it would lead.
            pass
        elif templates.record(disk["template"]) is None:
            if disk["template"] not in lacks:
                lacks.append(disk["template"])
                take(paths.TEMPLATES, disk["template_bytes"], once=disk["template"])
        else:
            # A plan writes nothing. Of a move the next steps need not read all of it again.
            found = templates.problem(disk["template"], remember=bool(needs["mark"]))
            bad += [found] if found else []
        if disk in needs["fixed"]:
            take(paths.STATE, disk["bytes"] if home else 0)
            continue
        if disk["shared"]:
            if not _is_same(disk, needs["mark"]):
                places.append(f"does not have {path}, which is on shared storage")
            continue
        if not home and not os.path.isdir(directory):
            places.append(f"has no directory {directory} for {disk['name']}")
        elif not home and os.path.lexists(path) and path not in goes:
            places.append(f"has a file {path} already; it is not overwritten")
        else:
            take(paths.STATE if home else directory, disk["bytes"])
    return {"files": wrong, "disks": places, "templates": bad, "lacks": lacks, "space": list(space.values())}


def _in_the_way(name: str, needs: Record, goes: t.Collection[str]) -> list[str]:
    """What an earlier guest of this name may have left, and nobody may lose; in words."""
    left = [path for path in guest_disks.at_home(name) if path not in goes]
    found = [f"has files in {paths.guest_disks_dir(name)} that somebody may need: {', '.join(left)}. Move them away"]
    variables = paths.guest_nvram(name) if needs["firmware"] or needs["uefi"] else ()
    outside = [path for path in needs["brought"] if not path.startswith(f"{paths.workload_dir(name)}/")]
    taken = [path for path in sorted({*variables, *outside}) if os.path.lexists(path) and path not in goes]
    return [*(found if left else ()), *(f"has a file {path} already; it is not overwritten" for path in taken)]


def _ports() -> list[str]:
    """Why a guest and its disks could not arrive at this host's tunnel address."""
    address, free = peers.overlay()["self"]["tunnel"], 0
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            free += 1
            if free == 2:
                return []
    return [f"{address} has no two free ports between {_PORTS[0]} and {_PORTS[-1]}"]


def _lacks_screen(address: str, port: int) -> str:
    """Why QEMU could not show the guest's screen there; '' when it can."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        # As QEMU has it: a connection that has just ended is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return f"cannot have its screen at {address}{f' port {port}' if port else ''}: {error.strerror}"
    return ""


def _lacks_post_copy() -> str:
    """Why QEMU, which is not root, could not have pages fetched that its guest touches; '' when it can."""
    with contextlib.suppress(OSError):
        if os.stat("/dev/userfaultfd").st_mode & stat.S_IROTH:
            return ""
    with contextlib.suppress(OSError), open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
        if file.read().strip() != "1":
            return "does not let QEMU use userfaultfd (with vm.unprivileged_userfaultfd = 1 it would)"
    return ""


def on_overlay(name: str, needs: Record) -> Endpoint:
    """The guest's place on the overlay, as ``netns`` asks about it. OSError where this host has no overlay."""
    overlay = peers.overlay()
    return Endpoint(name, needs["uuid"], needs["address"], 24, "", 0, needs["address_mac"], str(overlay["bridge"]))
