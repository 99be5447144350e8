# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a guest is: the user's words made into one normal form, and that into the model of a domain.

The *item* is what a user wants, in full. The *definition* is what is kept of it in definition.json: no state, no
secrets. The *model* (``domain.py``) is what the definition means on one host.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import typing as t
import uuid

from .._core.errors import InputError, Missing
from .._core.names import NAME_RULE, check_name, check_workload_name, is_digest
from .._core.values import (
    absolute_path,
    boolean,
    choice,
    has_control,
    integer,
    known_keys,
    listed,
    plain_text,
    word_list,
)
from .._image import seed
from .domain import CDROM, SEED, Model

SCHEMA = 1
STATES = ("present", "running", "stopped", "paused", "absent")
BUSES = ("virtio", "scsi", "sata")
FORMATS = ("qcow2", "raw")
CACHES = ("none", "writeback", "writethrough", "directsync", "unsafe")
NETWORKS = ("network", "bridge", "overlay")
CARDS = ("virtio", "e1000", "e1000e", "rtl8139", "igb")
BOOTS = ("disk", "cdrom", "network")
POLICIES = ("require", "optional", "disable", "force", "forbid")

# What a guest's definition holds, with what it is when the user says nothing.
DEFAULTS: dict[str, t.Any] = {
    "description": "",
    "tags": {},
    "memory_mib": None,
    "max_memory_mib": None,
    "vcpus": 1,
    "max_vcpus": None,
    "cpu": {"model": "auto", "features": {}},
    "accelerator": "auto",
    "machine": "",
    "firmware": "bios",
    "secure_boot": False,
    "kernel": "",
    "initrd": "",
    "cmdline": "",
    "boot": ["disk", "cdrom"],
    "disks": [],
    "cdrom": "",
    "networks": [],
    "graphics": {"type": "none"},
    "serial": "console",
    "shared_folders": [],
    "cloud_init": None,
    "agent": True,
    "autostart": None,
}
_DISK = ("name", "path", "pool", "template", "linked", "size_mib", "format", "bus", "cache", "read_only", "serial")
# What the definition has of a disk beside the user's words: what its template is, and whether its file was made for it.
_LEARNT = ("template_digest", "made")
# Keys of an item that steer the module and are no part of the definition.
STEERING = ("state", "wait_for", "stop_timeout_s", "force_stop", "delete_disks")
ITEM_KEYS = ("name", "uuid", *DEFAULTS, *STEERING)

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_MACHINE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z", re.ASCII)
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}\Z", re.ASCII)
_FEATURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z", re.ASCII)
_TARGET = re.compile(r"(vd|sd)[a-z]{1,2}\Z", re.ASCII)
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\Z", re.ASCII)
_INTEL = ("x86_64", "i686")
# What a serial number may be made of, and what the tag of a shared folder is: both are read inside the guest.
_SERIAL = re.compile(r"[A-Za-z0-9_.+-]{1,20}\Z", re.ASCII)
_FOLDER_TAG = re.compile(r"[A-Za-z0-9_.-]{1,35}\Z", re.ASCII)


# --------------------------------------------------------------------------------------------------------------------
# Decoding
# --------------------------------------------------------------------------------------------------------------------
def uuid_of(name: str) -> str:
    """The UUID that stands for a name, on every host."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:cnvm.platform:guest:{name}"))


def mac_of(name: str, index: int) -> str:
    """The MAC of the guest's network number ``index``, on every host."""
    digits = hashlib.sha256(f"{name}/{index}".encode()).hexdigest()
    return f"52:54:00:{digits[0:2]}:{digits[2:4]}:{digits[4:6]}"


def _text(value: object, option: str, most: int = 4096) -> str:
    text = plain_text(value, option)
    if len(text) > most:
        raise InputError(f"{option}: {len(text)} characters are too many.", hint=f"At most {most}.")
    if has_control(text, but="\t\n"):
        raise InputError(f"{option}: it has a control character.", hint="Leave control characters out.")
    return text


def _word(value: object, option: str, rule: t.Pattern[str], hint: str) -> str:
    text = _text(value, option)
    if not rule.match(text):
        raise InputError(f"{option}: {text[:80]!r} is not allowed.", hint=hint)
    return text


def _flag(value: object, option: str, default: bool) -> bool:
    return default if value is None else boolean(value, option)


def _path(value: object, option: str) -> str:
    """An absolute path, or nothing."""
    path = "" if value is None or value == "" else absolute_path(value, option)
    if path == "/":
        raise InputError(f"{option}: '/' is not allowed.", hint="Name something below it.")
    return path


def _tags(value: object, option: str) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{option} is not a mapping.", hint="Write 'NAME: value' lines.")
    found = {}
    for name, text in value.items():
        name = check_name(name, f"{option}: a name")
        found[name] = _text(text, f"{option}: {name}")
    return found


def _cpu(value: object, option: str) -> dict[str, t.Any]:
    if value is None or value == "":
        value = {}
    if isinstance(value, str):
        value = {"model": value}
    item = known_keys(value, option, ("model", "features"))
    model = "auto" if item.get("model") in (None, "") else item["model"]
    hint = "Allowed: auto, host-model, host-passthrough, or the name of a model ('virsh cpu-models x86_64')."
    features: dict[str, str] = {}
    given = item.get("features")
    if isinstance(given, dict):
        given = [{"name": name, "policy": policy} for name, policy in given.items()]
    for index, one in enumerate(listed(given, f"{option}.features")):
        where = f"{option}.features[{index}]"
        one = {"name": one} if isinstance(one, str) else known_keys(one, where, ("name", "policy"))
        name = _word(one.get("name"), f"{where}.name", _FEATURE, "Allowed: the name of a CPU feature, such as vmx.")
        if name in features:
            raise InputError(f"{where}: {name!r} is given twice.", hint="Each feature once.")
        features[name] = choice(one.get("policy"), f"{where}.policy", POLICIES, "require")
    return {"model": _word(model, f"{option}.model", _CPU, hint), "features": features}


def _target(number: int, prefix: str) -> str:
    """The disk name number ``number``: vda … vdz, vdaa …"""
    letters = ""
    number += 1
    while number:
        number, at = divmod(number - 1, 26)
        letters = chr(ord("a") + at) + letters
    return prefix + letters


def _disk(value: object, option: str) -> dict[str, t.Any]:
    item = known_keys(value, option, _DISK)
    bus = choice(item.get("bus"), f"{option}.bus", BUSES, "virtio")
    name = _text(item.get("name"), f"{option}.name")
    wanted = "vd" if bus == "virtio" else "sd"
    if name and not (_TARGET.match(name) and name.startswith(wanted)):
        raise InputError(
            f"{option}.name: {name!r} is not allowed.",
            hint=f"Allowed on the bus {bus}: {wanted}a, {wanted}b, and so on.",
        )
    template = _text(item.get("template"), f"{option}.template").strip()
    if template.startswith("sha256:"):
        template = template[len("sha256:") :]
    if template and not is_digest(template):
        check_name(template, f"{option}.template")
    size = item.get("size_mib")
    disk: dict[str, t.Any] = {
        "name": name,
        "path": _path(item.get("path"), f"{option}.path"),
        "pool": "" if item.get("pool") in (None, "") else check_name(item["pool"], f"{option}.pool"),
        "template": template,
        "linked": _flag(item.get("linked"), f"{option}.linked", True),
        "size_mib": None if size is None else integer(size, f"{option}.size_mib", least=1, most=2**30),
        "format": choice(item.get("format"), f"{option}.format", FORMATS, "qcow2"),
        "bus": bus,
        "cache": choice(item.get("cache"), f"{option}.cache", CACHES, "none"),
        "read_only": _flag(item.get("read_only"), f"{option}.read_only", False),
        "serial": ""
        if item.get("serial") in (None, "")
        else _word(item["serial"], f"{option}.serial", _SERIAL, "Allowed: up to 20 letters, digits, '_.+-'."),
    }
    if disk["read_only"] and bus == "sata":
        raise InputError(
            f"{option}.read_only: QEMU lets a guest write to each disk on the bus sata.",
            hint="Choose the bus virtio or scsi.",
        )
    if disk["path"] and disk["pool"]:
        raise InputError(
            f"{option}: path and pool are both given.", hint="Say where the disk is in one of the two ways."
        )
    if not disk["path"] and not template and disk["size_mib"] is None:
        raise InputError(
            f"{option}: size_mib is missing.", hint="An empty disk needs a size; or give path or template."
        )
    if disk["path"].startswith("/dev/"):
        if template or disk["size_mib"] is not None or disk["format"] != "raw":
            raise InputError(
                f"{option}: a block device is used as it is.",
                hint="Give format: raw, and leave template and size_mib out.",
            )
    elif template and disk["linked"] and disk["format"] != "qcow2":
        raise InputError(f"{option}.format: a linked disk is qcow2.", hint="Leave format out, or set linked: false.")
    return disk


def _disks(value: object, option: str) -> list[dict[str, t.Any]]:
    found = [_disk(one, f"{option}[{index}]") for index, one in enumerate(listed(value, option))]
    taken = {CDROM, SEED, *(disk["name"] for disk in found if disk["name"])}
    for index, disk in enumerate(found):
        if disk["name"] in (CDROM, SEED):
            raise InputError(
                f"{option}[{index}].name: {disk['name']!r} is taken by a CD drive.", hint="Begin with sdc."
            )
        if [other["name"] for other in found if disk["name"]].count(disk["name"]) > 1:
            raise InputError(f"{option}[{index}].name: {disk['name']!r} is given twice.", hint="Give each its own.")
        if not disk["name"]:
            prefix = "vd" if disk["bus"] == "virtio" else "sd"
            disk["name"] = next(
                name for name in (_target(number, prefix) for number in range(702)) if name not in taken
            )
            taken.add(disk["name"])
        if disk["path"] and disk["path"] in [other["path"] for other in found[:index]]:
            raise InputError(f"{option}[{index}].path: {disk['path']!r} is given twice.", hint="One disk for each.")
    return found


def _mac(value: object, option: str) -> str:
    if not isinstance(value, str):
        # YAML 1.1 reads digits and colons as a number to the base of 60.
        raise InputError(f"{option}: {value!r} is not text.", hint="Put the MAC in quotes.")
    mac = value.strip().lower().replace("-", ":")
    if not _MAC.match(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InputError(
            f"{option}: {value!r} is not allowed.", hint="Allowed: a unicast MAC, such as '52:54:00:12:34:56'."
        )
    return mac


def _network(value: object, option: str, name: str, index: int) -> dict[str, t.Any]:
    item = known_keys(value, option, ("type", "source", "mac", "model", "address"))
    kind = choice(item.get("type"), f"{option}.type", NETWORKS, "network")
    source = _text(item.get("source"), f"{option}.source")
    address = _text(item.get("address"), f"{option}.address").strip()
    if kind == "overlay":
        if source:
            raise InputError(f"{option}.source: the overlay has one bridge on each host.", hint="Leave it out.")
    elif address:
        raise InputError(
            f"{option}.address: only on the overlay has a guest an address by its definition.",
            hint="Reserve it in the network (cnvm.platform.network), or set it with cloud_init.",
        )
    elif kind == "bridge":
        if not _DEVICE.match(source) or len(source) > 15:
            raise InputError(f"{option}.source: {source!r} is no name of a bridge.", hint="Name a bridge of the host.")
    else:
        source = check_name(source or "default", f"{option}.source")
    if address:
        try:
            address = str(ipaddress.IPv4Address(address))
        except ValueError:
            raise InputError(
                f"{option}.address: {address!r} is not allowed.", hint="Allowed: a plain IPv4 address of the overlay."
            ) from None
    return {
        "type": kind,
        "source": source,
        "mac": mac_of(name, index) if item.get("mac") in (None, "") else _mac(item["mac"], f"{option}.mac"),
        "model": choice(item.get("model"), f"{option}.model", CARDS, "virtio"),
        "address": address,
    }


def _networks(value: object, option: str, name: str) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = []
    for index, one in enumerate(listed(value, option)):
        network = _network(one, f"{option}[{index}]", name, index)
        if network["mac"] in [other["mac"] for other in found]:
            raise InputError(f"{option}[{index}].mac: {network['mac']} is given twice.", hint="Give each its own.")
        if network["address"] and any(other["address"] for other in found):
            raise InputError(
                f"{option}[{index}].address: a guest has one address on the overlay.", hint="Leave it out."
            )
        found.append(network)
    return found


def _graphics(value: object, option: str) -> dict[str, t.Any]:
    if value is None or value == "":
        value = {}
    # Any other text may be meant for a password: it is not shown.
    if value in ("none", "vnc"):
        value = {"type": value}
    item = known_keys(value, option, ("type", "listen", "port", "password"))
    kind = choice(item.get("type"), f"{option}.type", ("none", "vnc"), "none")
    if kind == "none":
        given = sorted(key for key in ("listen", "port", "password") if item.get(key) not in (None, ""))
        if given:
            raise InputError(f"{option}.{given[0]}: there is no screen.", hint="Set type: vnc.")
        return {"type": "none"}
    listen = _text(item.get("listen"), f"{option}.listen").strip() or "127.0.0.1"
    try:
        listen = str(ipaddress.ip_address(listen))
    except ValueError:
        raise InputError(
            f"{option}.listen: {listen!r} is no address.", hint="Allowed: an address of the host."
        ) from None
    password = item.get("password")
    if password is not None and not isinstance(password, str):
        # It is not shown, as what YAML made of it would tell most of it.
        raise InputError(f"{option}.password is not text.", hint="Put it in quotes.")
    password = _text(password, f"{option}.password")
    if len(password.encode()) > 8:
        raise InputError(f"{option}.password: it is too long.", hint="VNC takes 8 bytes and no more.")
    port = item.get("port")
    return {
        "type": "vnc",
        "listen": listen,
        "port": None if port is None else integer(port, f"{option}.port", least=5900, most=65535),
        "password": password,
    }


def _folders(value: object, option: str) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = []
    for index, one in enumerate(listed(value, option)):
        where = f"{option}[{index}]"
        item = known_keys(one, where, ("source", "tag", "driver", "read_only"))
        source = _path(item.get("source"), f"{where}.source")
        if not source:
            raise InputError(f"{where}.source is missing.", hint="Give the directory of the host.")
        tag = _word(item.get("tag"), f"{where}.tag", _FOLDER_TAG, "Allowed: up to 35 letters, digits, '_', '.', '-'.")
        if tag in [other["tag"] for other in found]:
            raise InputError(f"{where}.tag: {tag!r} is given twice.", hint="Give each its own.")
        driver = choice(item.get("driver"), f"{where}.driver", ("virtiofs", "9p"), "virtiofs")
        read_only = _flag(item.get("read_only"), f"{where}.read_only", False)
        found.append({"source": source, "tag": tag, "driver": driver, "read_only": read_only})
    return found


def _cloud_init(value: object, option: str) -> t.Optional[dict[str, t.Any]]:
    """The parts of the seed as they were given; what they must be is known where the seed is made."""
    if value is None or value == "" or value == {}:
        return None
    item = known_keys(value, option, (*seed.DATA_KEYS, "policy"))
    policy = choice(item.get("policy"), f"{option}.policy", seed.POLICIES, seed.POLICIES[0])
    return {**{key: item.get(key) for key in seed.DATA_KEYS}, "policy": policy}


def _wait_for(value: object, option: str) -> t.Optional[dict[str, t.Any]]:
    if value is None or value == "" or value == {}:
        return None
    if isinstance(value, str):
        choice(value, option, ("address", "ssh", "cloud_init"))
        value = {value: True}
    item = known_keys(value, option, ("address", "ssh", "cloud_init", "port", "timeout_s"))
    timeout, port = item.get("timeout_s"), item.get("port")
    found = {
        **{key: _flag(item.get(key), f"{option}.{key}", False) for key in ("address", "ssh", "cloud_init")},
        "port": None if port is None else integer(port, f"{option}.port", least=1, most=65535),
        "timeout_s": integer(300 if timeout is None else timeout, f"{option}.timeout_s", least=1, most=86400),
    }
    return found if any(found[key] for key in ("address", "ssh", "cloud_init", "port")) else None


def check_guest_name(value: object, option: str) -> str:
    """A name that a guest may have."""
    name = check_workload_name(value, option)
    if name.isdigit():
        # virsh and others take a number for the id of a running domain.
        raise InputError(f"{option}: {name!r} is all digits.", hint=f"Allowed: {NAME_RULE}, not digits alone.")
    return name


def normalise(item: object, option: str = "guests") -> dict[str, t.Any]:
    """One item of ``guests`` in its normal form: ``name``, ``uuid``, all keys of DEFAULTS and STEERING, and
    ``described``: whether it says what the guest is, and not only in which state. InputError names the key."""
    values = known_keys(item, option, ITEM_KEYS)
    name = check_guest_name(values.get("name"), f"{option}.name")
    where = f"{option}: {name}"

    def given(key: str) -> t.Any:
        value = values.get(key)
        return DEFAULTS.get(key) if value is None else value

    def whole(key: str, least: int, most: int) -> t.Optional[int]:
        value = given(key)
        return None if value is None else integer(value, f"{where}: {key}", least=least, most=most)

    def flag(key: str) -> bool:
        return boolean(given(key), f"{where}: {key}")

    own = _text(values.get("uuid"), f"{where}: uuid").lower()
    if own and (not _UUID.match(own) or len(set(own.replace("-", ""))) == 1):
        raise InputError(f"{where}: uuid: {own!r} is not allowed.", hint="Leave it out: it follows from the name.")
    memory, vcpus = whole("memory_mib", 8, 2**24), t.cast(int, whole("vcpus", 1, 4096))
    machine = _text(given("machine"), f"{where}: machine")
    if machine and not _MACHINE.match(machine):
        raise InputError(
            f"{where}: machine: {machine!r} is not allowed.", hint="Allowed: q35, pc, or a version of one."
        )
    normal: dict[str, t.Any] = {
        "name": name,
        "uuid": own or uuid_of(name),
        "described": any(values.get(key) is not None for key in (*DEFAULTS, "uuid") if key != "autostart"),
        "description": _text(given("description"), f"{where}: description").strip(),
        "tags": _tags(given("tags"), f"{where}: tags"),
        "memory_mib": memory,
        "max_memory_mib": whole("max_memory_mib", 8, 2**24) or memory,
        "vcpus": vcpus,
        "max_vcpus": whole("max_vcpus", 1, 4096) or vcpus,
        "cpu": _cpu(given("cpu"), f"{where}: cpu"),
        "accelerator": choice(given("accelerator"), f"{where}: accelerator", ("auto", "kvm", "tcg")),
        "machine": machine,
        "firmware": choice(given("firmware"), f"{where}: firmware", ("bios", "uefi")),
        "secure_boot": flag("secure_boot"),
        "kernel": _path(given("kernel"), f"{where}: kernel"),
        "initrd": _path(given("initrd"), f"{where}: initrd"),
        "cmdline": " ".join(_text(given("cmdline"), f"{where}: cmdline").split()),
        "boot": _boot(given("boot"), f"{where}: boot"),
        "disks": _disks(given("disks"), f"{where}: disks"),
        "cdrom": _path(given("cdrom"), f"{where}: cdrom"),
        "networks": _networks(given("networks"), f"{where}: networks", name),
        "graphics": _graphics(given("graphics"), f"{where}: graphics"),
        "serial": choice(given("serial"), f"{where}: serial", ("console", "log", "none")),
        "shared_folders": _folders(given("shared_folders"), f"{where}: shared_folders"),
        "cloud_init": _cloud_init(given("cloud_init"), f"{where}: cloud_init"),
        "agent": flag("agent"),
        "autostart": None if given("autostart") is None else flag("autostart"),
        "state": choice(values.get("state"), f"{where}: state", STATES, "running"),
        "wait_for": _wait_for(values.get("wait_for"), f"{where}: wait_for"),
        "stop_timeout_s": integer(
            90 if values.get("stop_timeout_s") is None else values["stop_timeout_s"],
            f"{where}: stop_timeout_s",
            least=0,
            most=86400,
        ),
        "force_stop": _flag(values.get("force_stop"), f"{where}: force_stop", False),
        "delete_disks": _flag(values.get("delete_disks"), f"{where}: delete_disks", False),
    }
    _check_whole(normal, where)
    return normal


def _boot(value: object, option: str) -> list[str]:
    found = [choice(word, option, BOOTS) for word in word_list(value, option)]
    if len(set(found)) != len(found):
        raise InputError(f"{option}: a device is given twice.", hint="Each once.")
    # libvirt has none boot from nothing.
    return found or list(DEFAULTS["boot"])


def _check_whole(item: t.Mapping[str, t.Any], where: str) -> None:
    """InputError where two options contradict each other."""
    if item["described"] and item["memory_mib"] is None and item["state"] != "absent":
        raise InputError(f"{where}: memory_mib is missing.", hint="Say how much memory the guest has.")
    if item["memory_mib"] is not None and item["max_memory_mib"] < item["memory_mib"]:
        raise InputError(f"{where}: max_memory_mib is less than memory_mib.", hint="Leave it out, or give more.")
    if item["max_vcpus"] < item["vcpus"]:
        raise InputError(f"{where}: max_vcpus is less than vcpus.", hint="Leave it out, or give more.")
    if item["secure_boot"] and item["firmware"] != "uefi":
        raise InputError(f"{where}: secure_boot needs UEFI.", hint="Set firmware: uefi.")
    if (item["initrd"] or item["cmdline"]) and not item["kernel"]:
        raise InputError(f"{where}: initrd and cmdline need a kernel.", hint="Set kernel, or leave them out.")
    if item["delete_disks"] and item["state"] != "absent":
        raise InputError(f"{where}: delete_disks goes with state absent.", hint="Leave it out.")
    if item["wait_for"] and item["state"] != "running":
        raise InputError(f"{where}: wait_for needs state running.", hint="Leave it out.")
    blind = item["described"] and not item["agent"] and item["serial"] != "log"
    if blind and item["wait_for"] and item["wait_for"]["cloud_init"]:
        raise InputError(
            f"{where}: wait_for: without the agent or a log of the console cloud-init cannot be seen.",
            hint="Set agent: true, or serial: log.",
        )


def normalise_all(items: object, option: str = "guests") -> list[dict[str, t.Any]]:
    """The whole list; no name, UUID, MAC, overlay address or disk twice."""
    found = [normalise(item, f"{option}[{index}]") for index, item in enumerate(listed(items, option))]
    taken: dict[tuple[str, str], str] = {}
    for item in found:
        name = item["name"]
        claims = [("name", name)]
        if item["state"] != "absent":
            claims.append(("UUID", item["uuid"]))
            claims += [("MAC", network["mac"]) for network in item["networks"]]
            claims += [("address", network["address"]) for network in item["networks"] if network["address"]]
            claims += [("disk", disk["path"]) for disk in item["disks"] if disk["path"] and not disk["read_only"]]
        for kind, value in claims:
            other = taken.setdefault((kind, value), name)
            if kind == "name" and (other != name or [one["name"] for one in found].count(name) > 1):
                raise InputError(f"{option}: {name!r} is given twice.", hint="Each guest once.")
            if other != name:
                raise InputError(
                    f"{option}: {other!r} and {name!r} have the same {kind} {value}.", hint="Give each its own."
                )
    return found


# --------------------------------------------------------------------------------------------------------------------
# The definition
# --------------------------------------------------------------------------------------------------------------------
def address_of(item: t.Mapping[str, t.Any]) -> str:
    """A guest's address on the overlay, '' when it has none."""
    return next((network["address"] for network in item["networks"] if network["address"]), "")


def definition_of(
    item: t.Mapping[str, t.Any], *, templates: t.Mapping[str, str], seeded: t.Optional[t.Mapping[str, t.Any]]
) -> dict[str, t.Any]:
    """definition.json from a normal item. ``templates``: digests by disk; ``seeded``: what is known of the seed.

    It is read by other programs and sent to other hosts: passwords and user-data are not in it.
    """
    kept = {key: item[key] for key in DEFAULTS if key not in ("cloud_init", "graphics", "disks")}
    graphics = {key: value for key, value in item["graphics"].items() if key != "password"}
    disks = [{**disk, "template_digest": templates.get(disk["name"], "")} for disk in item["disks"]]
    return {
        "schema": SCHEMA,
        "kind": "guest",
        "name": item["name"],
        "uuid": item["uuid"],
        "address": address_of(item),
        **kept,
        "graphics": graphics,
        "disks": disks,
        "cloud_init": dict(seeded) if seeded else None,
    }


def check_normal(definition: t.Mapping[str, t.Any]) -> None:
    """InputError unless it is what ``definition_of`` makes of a user's words: another host may send what it likes."""
    where = f"definition of {definition.get('name')}"
    known_keys(definition, where, ("schema", "kind", "name", "uuid", "address", *DEFAULTS))
    words = {key: definition.get(key) for key in DEFAULTS if key != "cloud_init"}
    told = [
        known_keys(disk, f"{where}: disks", (*_DISK, *_LEARNT)) for disk in listed(words["disks"], f"{where}: disks")
    ]
    words["disks"] = [{key: value for key, value in disk.items() if key not in _LEARNT} for disk in told]
    item = normalise({"name": definition.get("name"), "uuid": definition.get("uuid"), **words}, "definition")
    for disk in told:
        digest = disk.get("template_digest")
        if not isinstance(disk.get("made"), bool) or not (digest == "" or is_digest(str(digest))):
            raise InputError(f"{where}: disks: {disk.get('name')}: made or template_digest is not in its normal form.")
    seeded = definition.get("cloud_init")
    if seeded is not None:
        parts = known_keys(seeded, f"{where}: cloud_init", ("digest", "instance_id", "policy"))
        choice(parts.get("policy"), f"{where}: cloud_init: policy", seed.POLICIES)
        for key in ("digest", "instance_id"):
            _text(parts.get(key), f"{where}: cloud_init: {key}")
    normal = {**definition_of(item, templates={}, seeded=None), "cloud_init": seeded}
    normal["disks"] = [{**disk, **{key: one[key] for key in _LEARNT}} for disk, one in zip(normal["disks"], told)]
    differing = sorted(key for key, value in normal.items() if value != definition.get(key))
    if differing:
        raise InputError(f"{where}: {', '.join(differing)} is not in its normal form.")


def digest_of(definition: t.Mapping[str, t.Any]) -> str:
    """A sha256 that stands for a definition, of whatever order its keys are."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def changed_keys(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """Keys in which two definitions differ."""
    keys = (set(before) | set(after)) - {"schema", "kind", "name", "uuid", "address"}
    return sorted(key for key in keys if before.get(key, DEFAULTS.get(key)) != after.get(key, DEFAULTS.get(key)))


# --------------------------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------------------------
def default_machine(arch: str) -> str:
    """The machine that a guest gets when the user names none."""
    return "q35" if arch in _INTEL else "virt"


def cpu_of(cpu: t.Mapping[str, t.Any], kind: str, arch: str) -> dict[str, t.Any]:
    """The CPU of a guest of the domain type ``kind``. What KVM gives by itself can be moved to a host that has as much;
    an emulated CPU is the same everywhere. Neither does libvirt have but for Intel's architectures."""
    model = cpu["model"]
    if model == "auto" and arch in _INTEL:
        model = "host-model" if kind == "kvm" else "qemu64"
    elif model == "auto":
        model = "host-passthrough" if kind == "kvm" else "maximum"
    return {"model": model, "features": dict(cpu["features"])}


def model_of(
    definition: t.Mapping[str, t.Any],
    *,
    kind: str,
    arch: str,
    disks: t.Mapping[str, t.Mapping[str, t.Any]],
    overlay: t.Optional[t.Mapping[str, t.Any]],
    log: str,
    seed_path: str,
    password: str = "",
) -> Model:
    """The model of the domain that ``definition`` means on a host.

    ``kind``: the domain's type, ``kvm`` or ``qemu``; ``disks``: {name: path, backing} as they lie there; ``overlay``:
    its overlay.json; ``log``: where the console is written to; ``seed_path``: '' for none.
    """
    cpu = cpu_of(definition["cpu"], kind, arch)
    graphics = dict(definition["graphics"])
    if graphics["type"] != "none":
        graphics["password"] = password
    cdroms = {}
    if definition["cdrom"]:
        cdroms[CDROM] = {"path": definition["cdrom"], "bus": "sata"}
    if seed_path:
        cdroms[SEED] = {"path": seed_path, "bus": "scsi"}
    serial = definition["serial"]
    return {
        "name": definition["name"],
        "uuid": definition["uuid"],
        "type": kind,
        "description": definition["description"],
        "marks": {
            "definition": digest_of(definition),
            "tags": dict(definition["tags"]),
            "templates": {one["name"]: one["template_digest"] for one in definition["disks"] if one["template_digest"]},
            "cpu": cpu,
            "seed": str((definition["cloud_init"] or {}).get("digest", "")),
        },
        **{key: definition[key] for key in ("memory_mib", "max_memory_mib", "vcpus", "max_vcpus")},
        "cpu": cpu,
        "arch": arch,
        "machine": definition["machine"] or default_machine(arch),
        **{key: definition[key] for key in ("firmware", "secure_boot", "kernel", "initrd", "cmdline")},
        "boot": list(definition["boot"]),
        "disks": {
            one["name"]: {
                **{key: one[key] for key in ("format", "bus", "cache", "read_only", "serial")},
                **disks[one["name"]],
            }
            for one in definition["disks"]
        },
        "cdroms": cdroms,
        "networks": {one["mac"]: _network_model(one, overlay) for one in definition["networks"]},
        "graphics": graphics,
        "serial": {"type": "none" if serial == "none" else "pty", "log": log if serial == "log" else ""},
        "shared_folders": {
            one["tag"]: {key: one[key] for key in ("source", "driver", "read_only")}
            for one in definition["shared_folders"]
        },
        "agent": definition["agent"],
    }


def _network_model(network: t.Mapping[str, t.Any], overlay: t.Optional[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    if network["type"] != "overlay":
        return {"type": network["type"], "source": network["source"], "model": network["model"], "mtu": 0}
    if overlay is None:
        raise Missing(
            "networks: this host has no overlay network.", hint="Run the role overlay, or choose another network."
        )
    # The guest's card says how much fits through the tunnel; only virtio can.
    mtu = int(overlay["mtu"]) if network["model"] == "virtio" else 0
    return {"type": "bridge", "source": str(overlay["bridge"]), "model": network["model"], "mtu": mtu}


def static_network(item: t.Mapping[str, t.Any], overlay: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A cloud-init network configuration (version 2) with the guest's overlay address; the other cards ask DHCP."""
    cards: dict[str, t.Any] = {}
    prefix = ipaddress.IPv4Network(overlay["subnet"]).prefixlen
    others = any(network["type"] != "overlay" for network in item["networks"])
    for index, network in enumerate(item["networks"]):
        card: dict[str, t.Any] = {"match": {"macaddress": network["mac"]}}
        if network["address"]:
            card["addresses"] = [f"{network['address']}/{prefix}"]
            card["mtu"] = int(overlay["mtu"])
            if not others:
                card["routes"] = [{"to": "0.0.0.0/0", "via": overlay["gateway"]}]
        elif network["type"] == "overlay":
            card["dhcp4"] = False
        else:
            card["dhcp4"] = True
        cards[f"net{index}"] = card
    return {"version": 2, "ethernets": cards}


def openstack_network(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The same as a ConfigDrive says it: OpenStack's network_data."""
    links: list[dict[str, t.Any]] = []
    networks: list[dict[str, t.Any]] = []
    for name, card in config["ethernets"].items():
        mtu = {"mtu": card["mtu"]} if "mtu" in card else {}
        links.append({"id": name, "type": "phy", "ethernet_mac_address": card["match"]["macaddress"], **mtu})
        for address in map(ipaddress.IPv4Interface, card.get("addresses", ())):
            routes = [
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": route["via"]}
                for route in card.get("routes", ())
            ]
            where = {"ip_address": str(address.ip), "netmask": str(address.netmask), "routes": routes}
            networks.append({"id": name, "link": name, "type": "ipv4", **where})
        if card.get("dhcp4"):
            networks.append({"id": name, "link": name, "type": "ipv4_dhcp"})
    return {"links": links, "networks": networks, "services": []}
