# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""A domain as plain data (the *model*) and as libvirt's XML, both ways.

``build`` makes the XML of a new domain. ``parse`` reads the XML of any domain, stored or live, ours or not. ``patch``
changes only what differs in a stored XML: PCI addresses, the machine's version, and what other tools added, stay.
Whatever a model says is what it reads back: ``parse(build(m)) == m`` and ``parse(patch(x, m)) == m``.

The keys of a model are those of ``EMPTY``. Lists of devices are dictionaries in it, by what names a device: disks by
their target, networks by their MAC, shared folders by their tag.
"""

from __future__ import annotations

import copy
import math
import typing as t

from .xml import GUEST_NAMESPACE, Element, Node, all_at, attribute, number, readable, text_of
from .xml import build as node

Model = dict[str, t.Any]

# What a domain is when nothing is said; also what the keys are.
EMPTY: Model = {
    "name": "",
    "uuid": "",
    "type": "qemu",
    "description": "",
    # Ours, kept in <metadata>: the digest of the definition, tags, digests of the disks' templates by target, and of a
    # running domain what it was started with that its XML does not tell: the CPU that was asked for (its XML has what
    # libvirt made of it), the digest of the cloud-init seed, and whether cloud-init was seen to be done.
    "marks": {},
    "memory_mib": 0,
    "max_memory_mib": 0,
    "vcpus": 1,
    "max_vcpus": 1,
    "cpu": {"model": "", "features": {}},
    "arch": "",
    "machine": "",
    "firmware": "bios",
    "secure_boot": False,
    "kernel": "",
    "initrd": "",
    "cmdline": "",
    "boot": [],
    "disks": {},
    "cdroms": {},
    "networks": {},
    "graphics": {"type": "none"},
    "serial": {"type": "none", "log": ""},
    "shared_folders": {},
    "agent": False,
}

MODES = ("host-model", "host-passthrough", "maximum")
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# The drives for the CD, which every installer finds on the SATA bus, and for the cloud-init seed, on the SCSI bus:
# kernels for clouds have virtio only. Disks of the user begin behind them.
CDROM, SEED = "sda", "sdb"
# Free slots for disks and networks that are added while the guest runs: q35 has none of itself.
_ROOT_PORTS = 12
# libvirt's 31 make 64 queues, for each of which QEMU opens a file when it starts a guest, also at the end of a move. At
# the 64th file of a process the kernel may wait for 10 ms and more (synchronize_rcu), in which the guest stands still.
_SERIAL_PORTS = 4
# The machines that have no version in their name, with the beginnings of those that have one. In this order.
_FAMILIES = {"q35": ("pc-q35-",), "virt": ("virt-",), "pc": ("pc-i440fx-",)}
_BOOT = {"disk": "hd", "cdrom": "cdrom", "network": "network"}
_GUEST = f"{{{GUEST_NAMESPACE}}}guest"
_UNITS = {
    "b": 1, "bytes": 1, "k": 2**10, "KiB": 2**10, "KB": 10**3, "M": 2**20, "MiB": 2**20, "MB": 10**6,
    "G": 2**30, "GiB": 2**30, "GB": 10**9, "T": 2**40, "TiB": 2**40, "TB": 10**12,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------------------
def parse(root: Element) -> Model:
    """The model of a domain's XML. What the model does not know is left out (see ``other_devices``)."""
    found = copy.deepcopy(EMPTY)
    devices = root.find("devices")
    found.update(
        name=text_of(root, "name"),
        uuid=text_of(root, "uuid").lower(),
        type=root.get("type", ""),
        description=text_of(root, "description"),
        marks=_marks(root.find(f"metadata/{_GUEST}")),
        # libvirt rounds it up when it starts the guest: rounded down, the running guest would for ever have more.
        max_memory_mib=_mebibytes(root.find("memory"), up=True),
        memory_mib=_mebibytes(root.find("currentMemory")) or _mebibytes(root.find("memory")),
        max_vcpus=number(text_of(root, "vcpu"), 1),
        vcpus=number(attribute(root, "vcpu", "current"), number(text_of(root, "vcpu"), 1)),
        cpu=_cpu(root.find("cpu")),
        arch=attribute(root, "os/type", "arch"),
        machine=attribute(root, "os/type", "machine"),
        kernel=text_of(root, "os/kernel"),
        initrd=text_of(root, "os/initrd"),
        cmdline=text_of(root, "os/cmdline"),
        boot=[_boot_word(each.get("dev", "")) for each in all_at(root, "os/boot")],
        agent=any(each.get("name") == AGENT_CHANNEL for each in all_at(devices, "channel/target")),
        graphics=_graphics(devices),
        serial=_serial(devices),
        disks={target: _disk(each) for target, each in _disks(devices, "disk").items()},
        cdroms={target: _cdrom(each) for target, each in _disks(devices, "cdrom").items()},
        networks={mac: _network(each) for mac, each in _interfaces(devices).items()},
        shared_folders={tag: _folder(each) for tag, each in _folders(devices).items()},
        **_firmware(root),
    )
    return found


def _mebibytes(element: t.Optional[Element], *, up: bool = False) -> int:
    if element is None:
        return 0
    return _mebibytes_of(text_of(element), element, up=up)


def _mebibytes_of(value: str, element: Element, *, up: bool = False) -> int:
    size = number(value) * _UNITS.get(element.get("unit", "KiB"), 2**10)
    return -(-size // 2**20) if up else size // 2**20


def _marks(element: t.Optional[Element]) -> dict[str, t.Any]:
    if element is None:
        return {}
    prefix = f"{{{GUEST_NAMESPACE}}}"
    found: dict[str, t.Any] = {"definition": element.get("definition", "")}
    found["tags"] = {each.get("name", ""): each.text or "" for each in element.findall(f"{prefix}tag")}
    found["seed"] = element.get("seed", "")
    if element.get("cloud_init"):
        found["cloud_init"] = element.get("cloud_init")
    found["templates"] = {each.get("disk", ""): text_of(each) for each in element.findall(f"{prefix}template")}
    cpu = element.find(f"{prefix}cpu")
    if cpu is not None:
        features = {each.get("name", ""): each.get("policy", "") for each in cpu.findall(f"{prefix}feature")}
        found["cpu"] = {"model": cpu.get("model", ""), "features": features}
    return found


def _cpu(element: t.Optional[Element]) -> dict[str, t.Any]:
    if element is None:
        return {"model": "", "features": {}}
    mode = element.get("mode", "custom")
    return {
        "model": mode if mode in MODES else text_of(element, "model"),
        "features": {each.get("name", ""): each.get("policy", "require") for each in element.findall("feature")},
    }


def _firmware(root: Element) -> dict[str, t.Any]:
    system = root.find("os")
    loader = None if system is None else system.find("loader")
    features = {each.get("name"): each.get("enabled") for each in all_at(system, "firmware/feature")}
    efi = attribute(system, "", "firmware") == "efi" or attribute(loader, "", "type") == "pflash"
    secure = features.get("secure-boot") == "yes" or (efi and attribute(loader, "", "secure") == "yes")
    return {"firmware": "uefi" if efi else "bios", "secure_boot": secure}


def _boot_word(device: str) -> str:
    return next((word for word, known in _BOOT.items() if known == device), device)


def _disks(devices: t.Optional[Element], device: str) -> dict[str, Element]:
    """The disks of one kind (``disk`` or ``cdrom``) by target, in the order of their names."""
    found = {
        attribute(each, "target", "dev"): each
        for each in all_at(devices, "disk")
        if each.get("device", "disk") in ((device, "lun") if device == "disk" else (device,))
    }
    return dict(sorted(found.items(), key=lambda pair: (len(pair[0]), pair[0])))


def boot_disk(root: Element) -> str:
    """The target of the disk that a domain boots from: the first by its place in the order, or in the XML; '' without
    disks."""
    found = [each for each in all_at(root, "devices/disk") if each.get("device", "disk") in ("disk", "lun")]
    found.sort(key=lambda each: number(attribute(each, "boot", "order"), 2**31))
    return attribute(found[0], "target", "dev") if found else ""


def path_of(disk: Element) -> str:
    """Where a disk's data are: a path, or for a source that has none its kind and name; '' for an empty drive."""
    source = disk.find("source")
    if source is None:
        return ""
    for name in () if source.get("protocol") else ("file", "dev", "dir"):
        if source.get(name):
            return source.get(name, "")
    known = [source.get(name, "") for name in ("pool", "volume", "protocol", "name") if source.get(name)]
    return f"{disk.get('type', '')}:{'/'.join(known)}" if known else ""


def volumes(root: Element) -> list[tuple[Element, str, str]]:
    """The sources of disks, and of what lies below them, that are volumes of a pool: (source, pool, volume).

    Who reads a domain puts where each is into the attribute ``file``, which libvirt does not read there: in a model
    they are files like others then, and ``patch`` makes such of them.
    """
    sources = [source for disk in all_at(root, "devices/disk") for source in disk.iter("source")]
    return [
        (each, each.get("pool", ""), each.get("volume", ""))
        for each in sources
        if each.get("pool") and each.get("volume")
    ]


def _chain(disk: Element) -> list[dict[str, t.Any]]:
    """What lies below a disk's file, nearest first. Files that libvirt may not give to QEMU's user are read_only."""
    found = []
    below = disk.find("backingStore")
    while below is not None and below.find("source") is not None:
        source = below.find("source")
        kept = attribute(source, "seclabel[@model='dac']", "relabel") == "no"
        found.append({"path": path_of(below), "format": attribute(below, "format", "type"), "read_only": kept})
        below = below.find("backingStore")
    return found


def is_closed(disk: Element) -> bool:
    """Whether a domain's XML says of a disk all that it rests on, with the end: else libvirt looks for it in the files.
    What is raw rests on nothing."""
    kind = attribute(disk, "driver", "type", "raw")
    while kind != "raw":
        below = disk.find("backingStore")
        if below is None:
            return False
        if below.find("source") is None:
            return True
        disk, kind = below, attribute(below, "format", "type")
    return True


def _volume(drive: Element) -> dict[str, str]:
    """A drive is to be a plain file: nobody wants this key, so that one whose place is known becomes such a file."""
    for source in drive.iter("source"):
        if source.get("pool") and source.get("volume") and source.get("file"):
            return {"volume": f"the volume {source.get('volume')} of the pool {source.get('pool')}"}
    return {}


def _disk(element: Element) -> dict[str, t.Any]:
    path = path_of(element)
    return {
        "path": path,
        "format": attribute(element, "driver", "type", "raw"),
        "bus": attribute(element, "target", "bus"),
        "cache": attribute(element, "driver", "cache", "default"),
        "read_only": element.find("readonly") is not None,
        "serial": text_of(element, "serial"),
        "backing": _chain(element),
        # All that it rests on is to be said: nobody wants this key either. Nobody looks what a device rests on.
        **({} if is_closed(element) or path.startswith("/dev/") else {"open": "left to its file"}),
        **_volume(element),
    }


def _cdrom(element: Element) -> dict[str, t.Any]:
    return {"path": path_of(element), "bus": attribute(element, "target", "bus"), **_volume(element)}


def _interfaces(devices: t.Optional[Element]) -> dict[str, Element]:
    return {attribute(each, "mac", "address").lower(): each for each in all_at(devices, "interface")}


def _network(element: Element) -> dict[str, t.Any]:
    source = element.find("source")
    # What a running guest is plugged into by a network that is a bridge of the host has the type of that bridge.
    # Not of another type: who brings a guest could call a device of the host a network.
    kind = element.get("type", "")
    kind = "network" if kind in ("bridge", "direct") and attribute(source, "", "network") else kind
    named = [attribute(source, "", name) for name in (kind, "network", "bridge", "dev")]
    return {
        "type": kind,
        "source": next((name for name in named if name), ""),
        "model": attribute(element, "model", "type"),
        "mtu": number(attribute(element, "mtu", "size")),
    }


def _graphics(devices: t.Optional[Element]) -> dict[str, t.Any]:
    shown = screens(devices)
    if not shown:
        return {"type": "none"}
    element = shown[0]
    port = number(element.get("port", "-1"), -1)
    others = ", ".join(" on ".join(filter(None, [each.get("type", ""), _listen(each)])) for each in shown[1:])
    return {
        "type": element.get("type", ""),
        "listen": _listen(element),
        "port": None if element.get("autoport") == "yes" or port < 0 else port,
        "password": element.get("passwd", ""),
        # A guest is to have one screen, or none: nobody wants this key, so that others do not stay unseen.
        **({"more": others} if others else {}),
    }


def screens(devices: t.Optional[Element]) -> list[Element]:
    """The screens of a domain. One without a head shows nothing: it draws for another one."""
    return [each for each in all_at(devices, "graphics") if each.get("type") != "egl-headless"]


def _listen(screen: Element) -> str:
    return attribute(screen, "listen[@type='address']", "address") or screen.get("listen", "")


def _serial(devices: t.Optional[Element]) -> dict[str, t.Any]:
    element = _first_serial(devices)
    if element is None:
        return {"type": "none", "log": ""}
    return {"type": element.get("type", ""), "log": attribute(element, "log", "file")}


def _first_serial(devices: t.Optional[Element]) -> t.Optional[Element]:
    """The serial port that the option means. Others are devices without an option."""
    return next((each for each in all_at(devices, "serial") if attribute(each, "target", "port", "0") == "0"), None)


def _folders(devices: t.Optional[Element]) -> dict[str, Element]:
    return {attribute(each, "target", "dir"): each for each in all_at(devices, "filesystem")}


def _folder(element: Element) -> dict[str, t.Any]:
    return {
        "source": attribute(element, "source", "dir"),
        "driver": "virtiofs" if attribute(element, "driver", "type") == "virtiofs" else "9p",
        "read_only": element.find("readonly") is not None,
    }


def vnc_port(root: Element) -> t.Optional[int]:
    """The port on which a running domain's screen can be seen now."""
    port = number(attribute(root, "devices/graphics[@type='vnc']", "port"), -1)
    return port if port > 0 else None


def switch_ports(root: Element) -> dict[str, str]:
    """The cards of a domain that are ports of an Open vSwitch bridge: {MAC: bridge}."""
    return {
        mac: attribute(each, "source", "bridge")
        for mac, each in _interfaces(root.find("devices")).items()
        if attribute(each, "virtualport", "type") == "openvswitch"
    }


def agent_connected(root: Element) -> bool:
    """Whether the agent in a running domain has opened its channel."""
    return any(
        each.get("name") == AGENT_CHANNEL and each.get("state") == "connected"
        for each in all_at(root, "devices/channel/target")
    )


def interface_names(root: Element) -> dict[str, str]:
    """The host's side of a running domain's networks: {MAC: device}."""
    return {mac: attribute(each, "target", "dev") for mac, each in _interfaces(root.find("devices")).items()}


def memory_cells(root: Element) -> list[int]:
    """The NUMA cells into which a guest's memory is divided, in MiB. What libvirt takes for its memory is their sum,
    whatever else is said."""
    cells = [each for each in all_at(root, "cpu/numa/cell") if each.get("memory")]
    return [_mebibytes_of(each.get("memory", ""), each, up=True) for each in cells]


_USUAL = (
    "emulator", "disk", "controller", "interface", "serial", "console", "channel", "input", "graphics", "video",
    "sound", "audio", "filesystem", "memballoon", "rng", "watchdog", "panic",
)  # fmt: skip


def other_devices(root: Element) -> list[str]:
    """Devices that this collection has no options for (host devices, TPM …): kept as they are, seldom movable."""
    devices = root.find("devices")
    found = {each.tag for each in (devices if devices is not None else ()) if each.tag not in _USUAL}
    found |= {f"disk {target}" for target, each in _disks(devices, "disk").items() if each.get("device") == "lun"}
    found |= {"floppy" for _target in _disks(devices, "floppy")}
    return sorted(found)


def passed_through(root: Element) -> list[str]:
    """Parts of a domain that go past libvirt, such as QEMU's own arguments (``qemu:commandline``)."""
    return sorted({readable(each.tag) for each in root if "}" in each.tag})


# --------------------------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------------------------
def build(model: Model) -> Element:
    """The XML of a new domain."""
    root = node(("domain", {"type": model["type"]}, ("name", model["name"]), ("uuid", model["uuid"]), ("devices",)))
    for keys, write in _SECTIONS:
        if write is _write_type or any(model[key] != EMPTY[key] for key in keys):
            write(root, model)
    _constants(root, model)
    return root


def patch(stored: Element, model: Model) -> Element:
    """A copy of ``stored`` (a domain's XML as libvirt keeps it) that says what ``model`` says."""
    root = copy.deepcopy(stored)
    if root.find("devices") is None:
        root.append(Element("devices"))
    _name_volumes(root)
    actual = parse(root)
    root.set("type", model["type"])
    for key in ("name", "uuid"):
        _put(root, (key, model[key]))
    for keys, write in _SECTIONS:
        if any(not alike(key, model[key], actual[key]) for key in keys):
            write(root, model)
    return root


def _name_volumes(root: Element) -> None:
    """Let volumes whose files are known be these files: not every pool is on another host, and AppArmor does not know
    what lies below a volume."""
    known = {id(source): source.get("file", "") for source, _pool, _volume in volumes(root)}
    for each in root.iter():
        source = each.find("source") if each.tag in ("disk", "backingStore") else None
        path = known.get(id(source))
        if source is None or not path:
            continue
        for name in ("pool", "volume", "mode", "file"):
            source.attrib.pop(name, None)
        kind, place = _source(path)
        each.set("type", kind)
        source.attrib.update(node(place).attrib)


def alike(key: str, wanted: t.Any, actual: t.Any) -> bool:
    """Whether what a domain has is what is wanted of it. A machine without a version stands for each of its versions,
    no architecture for any."""
    if key == "machine":
        return same_machine(wanted, actual)
    if key == "arch":
        return not wanted or wanted == actual
    return bool(wanted == actual)


def same_machine(wanted: str, actual: str) -> bool:
    """Whether ``actual`` (such as ``pc-q35-10.0``) is what ``wanted`` (``q35``, or a version of it) stands for."""
    return not wanted or wanted == actual or actual.startswith(_FAMILIES.get(wanted, ("\0",)))


def _put(parent: Element, wanted: Node, path: str = "") -> Element:
    """Replace the first child of the same tag (or at ``path``) by ``wanted``, or append it."""
    made = node(wanted)
    old = parent.find(path or made.tag)
    if old is None:
        parent.append(made)
    else:
        parent[list(parent).index(old)] = made
    return made


def _drop(parent: Element, *paths: str) -> None:
    for path in paths:
        for child in parent.findall(path):
            parent.remove(child)


def _under(root: Element, tag: str) -> Element:
    found = root.find(tag)
    if found is None:
        found = Element(tag)
        root.append(found)
    return found


def _text(parent: Element, tag: str, value: str) -> None:
    """One child with a text, or none for an empty one."""
    if value:
        _put(parent, (tag, value))
    else:
        _drop(parent, tag)


def _write_description(root: Element, model: Model) -> None:
    _text(root, "description", model["description"])


def _write_marks(root: Element, model: Model) -> None:
    metadata = _under(root, "metadata")
    if model["marks"]:
        _put(metadata, marks_node(model["marks"]))
    else:
        _drop(metadata, _GUEST)


def marks_node(marks: t.Mapping[str, t.Any], prefix: str = f"{{{GUEST_NAMESPACE}}}") -> Node:
    """Our part of a domain's <metadata>. Where it is changed in a running domain libvirt itself adds the namespace:
    without ``prefix``."""
    cpu = marks.get("cpu")
    features = [] if cpu is None else sorted(cpu["features"].items())
    return (
        f"{prefix}guest",
        {"definition": marks["definition"], "seed": marks["seed"] or None, "cloud_init": marks.get("cloud_init")},
        [(f"{prefix}tag", {"name": name}, text) for name, text in sorted(marks["tags"].items())],
        [(f"{prefix}template", {"disk": disk}, digest) for disk, digest in sorted(marks["templates"].items())],
        None
        if cpu is None
        else (
            f"{prefix}cpu",
            {"model": cpu["model"]},
            [(f"{prefix}feature", {"name": name, "policy": policy}) for name, policy in features],
        ),
    )


def _write_memory(root: Element, model: Model) -> None:
    _put(root, ("memory", {"unit": "KiB"}, model["max_memory_mib"] * 1024))
    _put(root, ("currentMemory", {"unit": "KiB"}, model["memory_mib"] * 1024))


def _write_vcpus(root: Element, model: Model) -> None:
    old, most = root.find("vcpu"), model["max_vcpus"]
    placed = {"placement": "static", **({} if old is None else old.attrib)}
    _put(root, ("vcpu", {**placed, "current": model["vcpus"] if model["vcpus"] != most else None}, most))
    # Which of them are online, one by one, and how they make sockets: libvirt refuses a count that contradicts it.
    _drop(root, "vcpus")
    cpu = root.find("cpu")
    if cpu is not None and _in_topology(cpu) not in (0, most):
        _drop(cpu, "topology")


def _in_topology(cpu: Element) -> int:
    """How many virtual CPUs the topology of a CPU makes; 0 where it has none."""
    parts = [number(value, 1) for each in cpu.findall("topology") for value in each.attrib.values()]
    return math.prod(parts) if parts else 0


def _write_cpu(root: Element, model: Model) -> None:
    cpu, old = model["cpu"], root.find("cpu")
    layout = [*all_at(root, "cpu/topology"), *all_at(root, "cpu/numa")]
    if not cpu["model"]:
        _drop(root, "cpu")
        if layout:
            _put(root, ("cpu", layout))
        return
    features = [("feature", {"policy": policy, "name": name}) for name, policy in sorted(cpu["features"].items())]
    if cpu["model"] in MODES:
        check = {"host-model": "partial"}.get(cpu["model"], "none")
        made: Node = ("cpu", {"mode": cpu["model"], "check": check}, features)
    else:
        # An emulated CPU has features that no host must have, and lacks some of its model: not checked.
        check = "partial" if model["type"] == "kvm" else "none"
        named = ("model", {"fallback": "forbid"}, cpu["model"])
        made = ("cpu", {"mode": "custom", "match": "exact", "check": check}, named, features)
    if old is None or _cpu(old)["model"] != cpu["model"]:
        _put(root, made).extend(layout)
        return
    # The same model keeps what no option says: its cache, the width of its addresses, whether it can be moved.
    kept = [part for part in old if part.tag != "feature"]
    _put(root, ("cpu", {**node(made).attrib, **old.attrib, "check": check}, kept, features))


def _write_type(root: Element, model: Model) -> None:
    system = _under(root, "os")
    kind = system.find("type")
    if kind is None:
        kind = node(("type", "hvm"))
        system.insert(0, kind)
    before = kind.get("machine", "")
    for key in ("arch", "machine"):
        if model[key] and not alike(key, model[key], kind.get(key, "")):
            kind.set(key, model[key])
    if before and _family(before) != _family(kind.get("machine", "")):
        _forget_slots(_under(root, "devices"))
        _add_ports(_under(root, "devices"), model["machine"])


def _family(machine: str) -> str:
    return next((family for family, starts in _FAMILIES.items() if machine.startswith((family, *starts))), machine)


def _forget_slots(devices: Element) -> None:
    """Take away what says where devices are plugged in: another kind of machine has other slots. And what is a part of
    the old one: libvirt refuses its controller of IDE disks, of which a model has none, on any but ``pc``."""
    _drop(devices, "controller[@type='pci']", "controller[@type='ide']", "watchdog[@model='itco']")
    for device in devices:
        _drop(device, "address[@type='pci']")


def _add_ports(devices: Element, machine: str) -> None:
    if _family(machine) in ("q35", "virt"):
        ports = [("pcie-root-port", at) for at in range(1, _ROOT_PORTS + 1)]
        devices.extend(
            [
                node(("controller", {"type": "pci", "index": at, "model": kind}))
                for kind, at in [("pcie-root", 0), *ports]
            ]
        )


def _write_firmware(root: Element, model: Model) -> None:
    system = _under(root, "os")
    _drop(system, "firmware", "loader", "nvram")
    system.attrib.pop("firmware", None)
    if model["firmware"] == "uefi":
        system.set("firmware", "efi")
        secure = model["secure_boot"]
        wanted = [("feature", {"enabled": secure, "name": name}) for name in ("enrolled-keys", "secure-boot")]
        _put(system, ("firmware", wanted))


def _write_kernel(root: Element, model: Model) -> None:
    system = _under(root, "os")
    for key in ("kernel", "initrd", "cmdline"):
        _text(system, key, model[key])


def _write_boot(root: Element, model: Model) -> None:
    system = _under(root, "os")
    _drop(system, "boot")
    system.extend([node(("boot", {"dev": _BOOT.get(word, word)})) for word in model["boot"]])
    # libvirt takes the order from one place or from the other.
    for device in _under(root, "devices"):
        _drop(device, "boot")


def _replace(
    root: Element,
    tag: str,
    old: t.Mapping[str, Element],
    wanted: t.Mapping[str, t.Any],
    actual: t.Mapping[str, t.Any],
    make: t.Callable[[str, t.Any], Node],
    renamed: t.Optional[t.Mapping[str, str]] = None,
) -> None:
    """Make the devices of one kind those of ``wanted``: each by its name, or by its old one (``renamed``: {new: old});
    what is as wanted is not touched."""
    devices = _under(root, "devices")
    renamed = renamed or {}
    moved = set(renamed.values())
    before = {name: old.get(renamed.get(name, "" if name in moved else name)) for name in wanted}
    for gone in [element for element in old.values() if element not in before.values()]:
        devices.remove(gone)
    last = max([at for at, each in enumerate(devices) if each.tag == tag], default=-1)
    for name, one in wanted.items():
        element = before[name]
        if element is None:
            last = last + 1 if last >= 0 else len(devices)
            devices.insert(last, node(make(name, one)))
        elif name in renamed or actual[name] != one:
            made = node(make(name, one))
            _keep(element, made)
            if name in renamed:
                _forget_place(made)
            devices[list(devices).index(element)] = made


def moved_names(had: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Disks that keep their data and get another name: {new name: old name}. ``had``, ``wanted``: {name: where its data
    are}; nothing is nowhere."""
    found: dict[str, str] = {}
    for name, place in wanted.items():
        if not place or had.get(name) == place:
            continue
        for other in had:
            if had[other] == place and wanted.get(other) != place and other not in found.values():
                found[name] = other
                break
    return found


def _forget_place(disk: Element) -> None:
    """Take away the address of a disk that gets another name: libvirt makes one of the name, which is the order in
    which the guest finds its disks. A controller of its own (with a thread, say) it keeps."""
    for address in disk.findall("address"):
        if address.get("controller", "0") == "0":
            disk.remove(address)


# What a model tells of a device, by tag: its parts; and the attributes of its driver.
_TOLD = {
    "disk": ("driver", "source", "backingStore", "target", "readonly", "serial"),
    "interface": ("driver", "mac", "source", "model", "mtu"),
    "filesystem": ("driver", "source", "target", "readonly"),
}
_TOLD_OF_DRIVER = {"disk": ("name", "type", "cache"), "interface": (), "filesystem": ("type",)}
# Of a driver, what another kind of device has, too.
_OF_ANY_DRIVER = {
    "disk": ("copy_on_read", "detect_zeroes", "discard", "error_policy", "io", "rerror_policy"),
    "interface": (),
    "filesystem": (),
}
# What a device of another kind would not have; what one with another source would not.
_OF_KIND = ("address", "binary", "product", "vendor", "wwn")
_OF_SOURCE = ("virtualport", "vlan", "auth", "encryption")
_OF_LUN = ("rawio", "sgio")


def _keep(old: Element, made: Element) -> None:
    """Let a device that is made anew keep what its model does not tell: limits, queues, keys, its address."""
    same_kind, same_source = _place(old) == _place(made), _source_of(old) == _source_of(made)
    gone = {*_TOLD[old.tag], *(() if same_kind else _OF_KIND), *(() if same_source else _OF_SOURCE)}
    if same_source and old.get("device") == "lun":
        made.set("device", "lun")
    before = old.find("driver")
    if before is not None:
        driver = _under(made, "driver")
        for name, value in before.attrib.items():
            kept = name not in _TOLD_OF_DRIVER[old.tag] if same_kind else name in _OF_ANY_DRIVER[old.tag]
            # Native asynchronous I/O is not there with every cache.
            if kept and (name != "io" or before.get("cache") == driver.get("cache")):
                driver.set(name, value)
        driver.extend(before if same_kind else ())
        if same_kind and "discard" not in before.attrib:
            # That has no option: a disk that is taken over does with free space what it did.
            driver.attrib.pop("discard", None)
        if not driver.attrib and not len(driver):
            made.remove(driver)
    if same_kind:
        lun = made.get("device") == "lun"
        _keep_attributes(old, made, but=() if lun else _OF_LUN)
        _keep_attributes(old.find("target"), made.find("target"))
    made.extend([part for part in old if part.tag not in gone])
    _keep_sources(old, made)


def _keep_attributes(old: t.Optional[Element], made: t.Optional[Element], but: t.Collection[str] = ()) -> None:
    if old is not None and made is not None:
        for name, value in old.attrib.items():
            if name not in but:
                made.attrib.setdefault(name, value)


def _keep_sources(old: Element, made: Element) -> None:
    """Leave a source that stays as it was written, with all that belongs to it (keys, reservations, a port group), and
    those below it, too."""
    before, after = old.find("source"), made.find("source")
    if before is None or after is None or _source_of(old) != _source_of(made):
        return
    if old.tag == "backingStore":
        # Who may write to what lies below a disk is told.
        _drop(before, "seclabel[@model='dac']")
        before.extend(after.findall("seclabel[@model='dac']"))
    made.set("type", old.get("type", ""))
    made[list(made).index(after)] = before
    before, after = old.find("backingStore"), made.find("backingStore")
    if before is not None and after is not None:
        _keep_sources(before, after)


def _source_of(element: Element) -> tuple[str, ...]:
    """Where a device's data are, or what it is plugged into."""
    if element.tag == "interface":
        card = _network(element)
        return card["type"], card["source"]
    return (attribute(element, "source", "dir") if element.tag == "filesystem" else path_of(element),)


def _place(element: Element) -> tuple[str, ...]:
    """What a device's address depends on."""
    driver = attribute(element, "driver", "type") if element.tag == "filesystem" else ""
    return attribute(element, "target", "bus"), attribute(element, "model", "type"), driver


def _write_disks(root: Element, model: Model) -> None:
    devices = root.find("devices")
    old = _disks(devices, "disk")
    actual = {name: _disk(each) for name, each in old.items()}
    # The first names on the SATA and the SCSI bus are those of our CD drives: whoever has them in a guest that is taken
    # over moves on.
    had, wanted = (
        {name: (one["path"], one["bus"]) if one["path"] else () for name, one in disks.items()}
        for disks in (actual, model["disks"])
    )
    _replace(root, "disk", old, model["disks"], actual, disk_node, moved_names(had, wanted))
    _write_scsi(root, model)


def _write_cdroms(root: Element, model: Model) -> None:
    old = _disks(root.find("devices"), "cdrom")
    _replace(root, "disk", old, model["cdroms"], {name: _cdrom(each) for name, each in old.items()}, cdrom_node)
    _write_scsi(root, model)


def _write_scsi(root: Element, model: Model) -> None:
    drives = [*model["disks"].values(), *model["cdroms"].values()]
    if any(drive["bus"] == "scsi" for drive in drives) and not has_controller(root, "scsi"):
        _under(root, "devices").append(node(SCSI_CONTROLLER))


SCSI_CONTROLLER: Node = ("controller", {"type": "scsi", "index": 0, "model": "virtio-scsi"})


def has_controller(root: Element, kind: str) -> bool:
    """Whether a domain has a controller of that kind, to which more can be added."""
    return any(each.get("type") == kind for each in all_at(root, "devices/controller"))


def _source(path: str, *parts: Node) -> tuple[str, Node]:
    """(type, source) of a path: QEMU opens a block device in another way than a file."""
    block = path.startswith("/dev/")
    return ("block", ("source", {"dev": path}, *parts)) if block else ("file", ("source", {"file": path}, *parts))


def _backing(chain: t.Sequence[t.Mapping[str, t.Any]]) -> Node:
    """The chain in full, with its end: what is not said here libvirt would look for in the files."""
    if not chain:
        return ("backingStore",)
    label = [("seclabel", {"model": "dac", "relabel": "no"})] if chain[0]["read_only"] else []
    kind, source = _source(chain[0]["path"], *label)
    return ("backingStore", {"type": kind}, ("format", {"type": chain[0]["format"]}), source, _backing(chain[1:]))


def disk_node(target: str, disk: t.Mapping[str, t.Any]) -> Node:
    """A disk, to define or to plug in."""
    kind, source = _source(disk["path"])
    cache = disk["cache"] if disk["cache"] != "default" else None
    return (
        "disk",
        {"type": kind, "device": "disk"},
        ("driver", {"name": "qemu", "type": disk["format"], "cache": cache, "discard": "unmap"}),
        source,
        _backing(disk["backing"]),
        ("target", {"dev": target, "bus": disk["bus"]}),
        ("readonly",) if disk["read_only"] else None,
        ("serial", disk["serial"]) if disk["serial"] else None,
    )


def cdrom_node(target: str, cdrom: t.Mapping[str, t.Any]) -> Node:
    """A CD drive with what is in it, to define or to change."""
    kind, source = _source(cdrom["path"]) if cdrom["path"] else ("file", None)
    return (
        "disk",
        {"type": kind, "device": "cdrom"},
        ("driver", {"name": "qemu", "type": "raw"}),
        source,
        ("target", {"dev": target, "bus": cdrom["bus"]}),
        ("readonly",),
    )


def _write_networks(root: Element, model: Model) -> None:
    old = _interfaces(root.find("devices"))
    actual = {mac: _network(each) for mac, each in old.items()}
    _replace(root, "interface", old, model["networks"], actual, network_node)


def network_node(mac: str, network: t.Mapping[str, t.Any]) -> Node:
    """A network interface, to define or to plug in."""
    return (
        "interface",
        {"type": network["type"]},
        ("mac", {"address": mac}),
        ("source", {network["type"]: network["source"]}),
        ("model", {"type": network["model"]}),
        ("mtu", {"size": network["mtu"]}) if network["mtu"] else None,
    )


def _write_graphics(root: Element, model: Model) -> None:
    devices = _under(root, "devices")
    before = screens(devices)
    _forget_spice(devices)
    if model["graphics"]["type"] == "none":
        _drop(devices, "graphics", "video", "input[@type='tablet']")
        return
    for each in before:
        devices.remove(each)
    made = node(graphics_node(model["graphics"]))
    for old in before[:1]:
        for name in ("keymap", "sharePolicy", "websocket") if old.get("type") == made.get("type") else ():
            if name in old.attrib:
                made.set(name, old.get(name, ""))
    devices.append(made)
    if devices.find("video") is None:
        devices.append(node(("video", ("model", {"type": "vga"}))))
    if devices.find("input[@type='tablet']") is None:
        # Without it the pointer on the screen is not where the mouse is.
        devices.append(node(("input", {"type": "tablet", "bus": "virtio"})))


def _forget_spice(devices: Element) -> None:
    """Take away what only a SPICE screen can serve. The sound card stays, and is heard nowhere."""
    _drop(devices, *(f"{tag}[@type='spicevmc']" for tag in ("channel", "redirdev", "smartcard")))
    _drop(devices, "channel[@type='spiceport']")
    for audio in devices.findall("audio[@type='spice']"):
        audio.set("type", "none")
    for card in devices.findall("video/model"):
        _drop(card, "acceleration")


def graphics_node(graphics: t.Mapping[str, t.Any]) -> Node:
    """A VNC screen, to define or to change."""
    return (
        "graphics",
        {
            "type": graphics["type"],
            "port": graphics["port"] if graphics["port"] is not None else -1,
            "autoport": graphics["port"] is None,
            "listen": graphics["listen"],
            "passwd": graphics["password"] or None,
        },
        ("listen", {"type": "address", "address": graphics["listen"]}),
    )


def _write_serial(root: Element, model: Model) -> None:
    devices = _under(root, "devices")
    for console in devices.findall("console"):
        # The double of the first serial port: there is only one such, and libvirt makes it anew.
        if attribute(console, "target", "type", "serial") == "serial":
            devices.remove(console)
    old = _first_serial(devices)
    # It stays before the others: its double is that of the port that comes first.
    at = next((at for at, each in enumerate(devices) if each.tag == "serial"), len(devices))
    if old is not None:
        devices.remove(old)
    serial = model["serial"]
    if serial["type"] != "none":
        log = ("log", {"file": serial["log"], "append": "on"}) if serial["log"] else None
        devices.insert(at, node(("serial", {"type": serial["type"]}, log, ("target", {"port": 0}))))


def _write_folders(root: Element, model: Model) -> None:
    old = _folders(root.find("devices"))
    actual = {tag: _folder(each) for tag, each in old.items()}
    _replace(root, "filesystem", old, model["shared_folders"], actual, _folder_node)
    if any(folder["driver"] == "virtiofs" for folder in model["shared_folders"].values()):
        # virtiofsd works in the guest's memory.
        memory = _under(root, "memoryBacking")
        _put(memory, ("source", {"type": "memfd"}))
        _put(memory, ("access", {"mode": "shared"}))


def _folder_node(tag: str, folder: t.Mapping[str, t.Any]) -> Node:
    shared = folder["driver"] == "virtiofs"
    return (
        "filesystem",
        {"type": "mount", "accessmode": "passthrough" if shared else "mapped"},
        ("driver", {"type": "virtiofs" if shared else "path"}),
        ("source", {"dir": folder["source"]}),
        ("target", {"dir": tag}),
        ("readonly",) if folder["read_only"] else None,
    )


def _write_agent(root: Element, model: Model) -> None:
    devices = _under(root, "devices")
    for channel in devices.findall("channel"):
        if attribute(channel, "target", "name") == AGENT_CHANNEL:
            devices.remove(channel)
    if model["agent"]:
        target = ("target", {"type": "virtio", "name": AGENT_CHANNEL})
        devices.append(node(("channel", {"type": "unix"}, target)))
        if not has_controller(root, "virtio-serial"):
            devices.append(node(("controller", {"type": "virtio-serial", "index": 0, "ports": _SERIAL_PORTS})))


def _constants(root: Element, model: Model) -> None:
    """What every new domain has and nobody chooses."""
    intel = model["arch"] in ("", "x86_64", "i686")
    root.append(node(("features", ("acpi",), ("apic",) if intel else None)))
    if intel:
        timers = [
            ("timer", {"name": "rtc", "tickpolicy": "catchup"}),
            ("timer", {"name": "pit", "tickpolicy": "delay"}),
            ("timer", {"name": "hpet", "present": "no"}),
        ]
        root.append(node(("clock", {"offset": "utc"}, timers)))
    else:
        root.append(node(("clock", {"offset": "utc"})))
    root.append(node(("pm", ("suspend-to-mem", {"enabled": "no"}), ("suspend-to-disk", {"enabled": "no"}))))
    devices = _under(root, "devices")
    _add_ports(devices, model["machine"])
    # It would cost memory and time at each boot, and nothing here can be plugged into it.
    devices.append(node(("controller", {"type": "usb", "index": 0, "model": "none"})))
    devices.append(node(("memballoon", {"model": "virtio"})))
    devices.append(node(("rng", {"model": "virtio"}, ("backend", {"model": "random"}, "/dev/urandom"))))


# Which keys of the model are written by whom. The order is that of the document.
_SECTIONS: tuple[tuple[tuple[str, ...], t.Callable[[Element, Model], None]], ...] = (
    (("description",), _write_description),
    (("marks",), _write_marks),
    (("memory_mib", "max_memory_mib"), _write_memory),
    (("vcpus", "max_vcpus"), _write_vcpus),
    (("arch", "machine"), _write_type),
    (("firmware", "secure_boot"), _write_firmware),
    (("kernel", "initrd", "cmdline"), _write_kernel),
    (("boot",), _write_boot),
    (("cpu",), _write_cpu),
    (("disks",), _write_disks),
    (("cdroms",), _write_cdroms),
    (("networks",), _write_networks),
    (("graphics",), _write_graphics),
    (("serial",), _write_serial),
    (("shared_folders",), _write_folders),
    (("agent",), _write_agent),
)
