# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for libvirt's binding with domains that do as they are told, or do not; and for qemu-img.

The scenario of the guests uses the real ones. This one can fail on demand, and is there on every machine.
"""

from __future__ import annotations

import struct
import types
import typing as t
from pathlib import Path

from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors, xml

RUNNING, PAUSED, SHUTOFF = 1, 3, 5

CONSTANTS = {
    "VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE": 1,
    "VIR_CPU_COMPARE_IDENTICAL": 1,
    "VIR_CPU_COMPARE_SUPERSET": 2,
    "VIR_DOMAIN_SHUTOFF_DESTROYED": 2,
    "VIR_CONNECT_LIST_DOMAINS_TRANSIENT": 8,
    "VIR_CONNECT_LIST_DOMAINS_AUTOSTART": 1024,
    "VIR_DOMAIN_STATS_STATE": 1,
    "VIR_DOMAIN_XML_SECURE": 1,
    "VIR_DOMAIN_XML_INACTIVE": 2,
    "VIR_DOMAIN_XML_MIGRATABLE": 8,
    "VIR_DOMAIN_AFFECT_LIVE": 1,
    "VIR_DOMAIN_METADATA_DESCRIPTION": 0,
    "VIR_DOMAIN_METADATA_ELEMENT": 2,
    "VIR_DOMAIN_START_PAUSED": 1,
    "VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN": 1,
    "VIR_DOMAIN_BLOCK_RESIZE_BYTES": 1,
    "VIR_DOMAIN_UNDEFINE_MANAGED_SAVE": 1,
    "VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA": 2,
    "VIR_DOMAIN_UNDEFINE_NVRAM": 4,
    "VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA": 16,
    "VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT": 1,
    "VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA": 4,
    "VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY": 16,
    "VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE": 64,
    "VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC": 128,
    "VIR_DOMAIN_SNAPSHOT_CREATE_LIVE": 256,
    "VIR_DOMAIN_BLOCK_COMMIT_ACTIVE": 4,
    "VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC": 1,
    "VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT": 2,
    "VIR_DOMAIN_SAVE_RUNNING": 2,
    "VIR_DOMAIN_SAVE_PAUSED": 4,
    "VIR_DOMAIN_SAVE_IMAGE_XML_SECURE": 1,
}

# What libvirt gives to each of some machines by itself, and an older one does not know.
WATCHDOG = '<watchdog model="itco" action="reset"/>'


class FakeError(Exception):
    """libvirtError."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return str(self)


def library() -> types.SimpleNamespace:
    """What ``libvirt.library()`` returns."""
    return types.SimpleNamespace(libvirtError=FakeError, **CONSTANTS)


class FakeDomain:
    """``obeys``: it shuts down when told. ``refuses``: {method: error} of what fails. ``catches_up``: a merge does.
    ``job``: libvirt is at work on it."""

    def __init__(self, connection: FakeConnection, text: str) -> None:
        self.connection = connection
        self.stored: t.Optional[xml.Element] = xml.parse(text)
        self.live: t.Optional[xml.Element] = None
        self.number = SHUTOFF
        self.reason = 0
        self.automatic = False
        self.obeys = True
        self.releases = True
        self.refuses: dict[str, FakeError] = {}
        self.sizes: dict[str, int] = {}
        self.saved = False
        self.catches_up = True
        self.job = 0
        self.merges: dict[str, str] = {}

    def _did(self, what: str, *details: t.Any) -> None:
        self.connection.calls.append(" ".join([what, self.name(), *(str(each) for each in details)]))
        if what in self.refuses:
            raise self.refuses[what]

    def connect(self) -> FakeConnection:
        return self.connection

    def name(self) -> str:
        return xml.text_of(self.stored if self.stored is not None else self.live, "name")

    def isActive(self) -> int:
        return int(self.live is not None)

    def state(self, flags: int) -> list[int]:
        return [self.number, self.reason]

    def XMLDesc(self, flags: int) -> str:
        root = self.stored if flags & 2 else self.live
        if root is None:
            raise FakeError(errors.NO_DOMAIN, "gone")
        text = xml.document(root)
        return text.replace(WATCHDOG, "") if flags & CONSTANTS["VIR_DOMAIN_XML_MIGRATABLE"] else text

    def createWithFlags(self, flags: int) -> None:
        self._did("start", flags)
        self.live = xml.parse(xml.document(t.cast(xml.Element, self.stored)))
        self.number, self.reason = (PAUSED, 1) if flags & 1 else (RUNNING, 1)

    def _end(self, reason: int = 2) -> None:
        self.live, self.number, self.reason = None, SHUTOFF, reason
        if self.stored is None:
            del self.connection.domains[self.name()]

    def shutdown(self) -> None:
        self._did("shutdown")
        if self.obeys:
            self._end(reason=1)

    def shutdownFlags(self, flags: int) -> None:
        self.shutdown()

    def destroy(self) -> None:
        self._did("destroy")
        self._end()

    def suspend(self) -> None:
        self._did("suspend")
        self.number, self.reason = PAUSED, 1

    def resume(self) -> None:
        self._did("resume")
        self.number = RUNNING

    def hasManagedSaveImage(self) -> int:
        return int(self.saved)

    def jobInfo(self) -> list[int]:
        if self.live is None:
            raise FakeError(errors.OPERATION_INVALID, "domain is not running")
        return [self.job]

    def managedSaveRemove(self, flags: int) -> None:
        self._did("unsave")
        self.saved = False

    def setAutostart(self, wanted: int) -> None:
        self._did("autostart", wanted)
        self.automatic = bool(wanted)

    def undefineFlags(self, flags: int) -> None:
        self._did("undefine", flags)
        del self.connection.domains[self.name()]

    def info(self) -> list[int]:
        return [1, 0, domain.parse(t.cast(xml.Element, self.live))["memory_mib"] * 1024, 1, 0]

    def _change(self, what: str, **values: t.Any) -> None:
        model = domain.parse(t.cast(xml.Element, self.live))
        self._did(what, *values)
        self.live = domain.patch(t.cast(xml.Element, self.live), {**model, **values})

    def setMemoryFlags(self, kibibytes: int, flags: int) -> None:
        if self.releases:
            self._change("memory", memory_mib=kibibytes // 1024)

    def setVcpusFlags(self, number: int, flags: int) -> None:
        self._change("vcpus", vcpus=number)

    def vcpusFlags(self, flags: int) -> int:
        return int(domain.parse(t.cast(xml.Element, self.live))["vcpus"])

    def setMetadata(self, kind: int, text: t.Optional[str], key: t.Any, uri: t.Any, flags: int) -> None:
        if kind == 0:
            self._change("description", description=text or "")
        else:
            # The real one adds the namespace, and refuses a text that has it already.
            root = xml.parse(t.cast(str, text), root="guest")
            for each in root.iter():
                each.tag = f"{{{uri}}}{each.tag}"
            self._change("marks", marks=domain.parse(xml.build(("domain", ("metadata", root))))["marks"])

    def _devices(self, text: str) -> tuple[str, dict[str, t.Any]]:
        found = domain.parse(xml.build(("domain", ("devices", xml.parse(text)))))
        kind = next(kind for kind in ("disks", "cdroms", "networks", "graphics") if found[kind] != domain.EMPTY[kind])
        return kind, found[kind]

    def attachDeviceFlags(self, text: str, flags: int) -> None:
        if "<controller" in text:
            if domain.has_controller(t.cast(xml.Element, self.live), "scsi"):
                raise FakeError(errors.OPERATION_FAILED, "operation failed: target scsi:0 already exists")
            t.cast(xml.Element, t.cast(xml.Element, self.live).find("devices")).append(xml.parse(text))
            return
        kind, found = self._devices(text)
        self._change("attach", **{kind: {**domain.parse(t.cast(xml.Element, self.live))[kind], **found}})

    def detachDeviceFlags(self, text: str, flags: int) -> None:
        kind, found = self._devices(text)
        before = domain.parse(t.cast(xml.Element, self.live))[kind]
        if self.releases:
            self._change("detach", **{kind: {name: one for name, one in before.items() if name not in found}})

    def updateDeviceFlags(self, text: str, flags: int) -> None:
        kind, found = self._devices(text)
        before = domain.parse(t.cast(xml.Element, self.live))[kind]
        self._change("update", **{kind: found if kind == "graphics" else {**before, **found}})

    def blockResize(self, disk: str, size: int, flags: int) -> None:
        self._did("resize", disk, size)
        self.sizes[disk] = size

    # -- snapshots
    def snapshotCreateXML(self, text: str, flags: int) -> None:
        self._did("snapshot", flags)
        wanted = xml.parse(text)
        for root in (self.stored, self.live):
            model = domain.parse(t.cast(xml.Element, root))
            for each in wanted.findall("disks/disk[@snapshot='external']"):
                name, path = each.get("name", ""), xml.attribute(each, "source", "file")
                old = model["disks"][name]
                below = [{"path": old["path"], "format": old["format"], "read_only": False}, *old["backing"]]
                qcow2(Path(path), 2**20, old["path"], old["format"])
                model["disks"][name] = {**old, "path": path, "format": "qcow2", "backing": below}
            patched = domain.patch(t.cast(xml.Element, root), model)
            if root is self.stored:
                self.stored = patched
            else:
                self.live = patched

    def _disk(self, name: str) -> xml.Element:
        disks = t.cast(xml.Element, self.live).findall("devices/disk")
        return next(each for each in disks if xml.attribute(each, "target", "dev") == name)

    def blockCommit(self, disk: str, base: str, top: str, bandwidth: int, flags: int) -> None:
        self._did("merge", disk)
        self.merges[disk] = base
        self._disk(disk).append(xml.build(("mirror", {"ready": "yes"} if self.catches_up else {})))

    def blockJobInfo(self, disk: str, flags: int) -> dict[str, int]:
        # It goes on writing: the numbers are never the same.
        return {"cur": 5, "end": 9} if disk in self.merges else {}

    def blockJobAbort(self, disk: str, flags: int) -> None:
        self._did("pivot" if flags & 2 else "abort", disk)
        base, each = self.merges.pop(disk), self._disk(disk)
        each.remove(t.cast(xml.Element, each.find("mirror")))
        if flags & 2:
            model = domain.parse(t.cast(xml.Element, self.live))
            at = [one["path"] for one in model["disks"][disk]["backing"]].index(base)
            below = model["disks"][disk]["backing"]
            model["disks"][disk] = {**model["disks"][disk], **below[at], "backing": below[at + 1 :]}
            self.live = domain.patch(t.cast(xml.Element, self.live), model)


class FakeConnection:
    """An older libvirt than that of the domains whose XML has a ``WATCHDOG``.

    ``calls``: everything that was done to the domains, in order. ``pools``: their directories by name. ``volumes``:
    the paths of those that their pools know."""

    def __init__(self) -> None:
        self.domains: dict[str, FakeDomain] = {}
        self.calls: list[str] = []
        self.questions = 0
        self.fails: dict[str, FakeError] = {}
        self.pools: dict[str, str] = {}
        self.inactive_pools: set[str] = set()
        self.volumes: dict[tuple[str, str], str] = {}
        self.alive = True

    def close(self) -> None:
        pass

    def isAlive(self) -> int:
        return int(self.alive)

    def defineXML(self, text: str) -> FakeDomain:
        name = xml.text_of(xml.parse(text), "name")
        self.calls.append(f"define {name}")
        if name in self.fails:
            raise self.fails[name]
        if "<boot " not in text:
            text = text.replace("</os>", "<boot dev='hd'/></os>")
        if name in self.domains:
            self.domains[name].stored = xml.parse(text)
        else:
            self.domains[name] = FakeDomain(self, text)
        return self.domains[name]

    def lookupByName(self, name: str) -> FakeDomain:
        if name not in self.domains:
            raise FakeError(errors.NO_DOMAIN, "no domain")
        return self.domains[name]

    def listAllDomains(self, flags: int) -> list[FakeDomain]:
        self.questions += 1
        found = list(self.domains.values())
        if flags & CONSTANTS["VIR_CONNECT_LIST_DOMAINS_TRANSIENT"]:
            found = [each for each in found if each.stored is None]
        if flags & CONSTANTS["VIR_CONNECT_LIST_DOMAINS_AUTOSTART"]:
            found = [each for each in found if each.automatic]
        return found

    def getAllDomainStats(self, stats: int, flags: int) -> list[tuple[FakeDomain, dict[str, int]]]:
        self.questions += 1
        return [(each, {"state.state": each.number, "state.reason": each.reason}) for each in self.domains.values()]

    def getCapabilities(self) -> str:
        return (
            "<capabilities><guest><arch name='x86_64'><machine canonical='pc-q35-10.0'>q35</machine></arch></guest>"
            "</capabilities>"
        )

    def getVersion(self) -> int:
        return 10_000_000

    def getCPUModelNames(self, arch: str) -> list[str]:
        return ["qemu64", "EPYC"]

    def compareHypervisorCPU(self, emulator: None, arch: str, machine: str, kind: str, text: str) -> int:
        if machine not in ("q35", "pc"):
            raise FakeError(errors.INVALID_ARG, f"invalid argument: the machine '{machine}' is not supported")
        if "nonsense" in text:
            raise FakeError(errors.INTERNAL_ERROR, "internal error: Unknown CPU feature nonsense")
        if "unheard" in text:
            raise FakeError(errors.NO_SUPPORT, "this function is not supported")
        return 2

    def domainXMLToNative(self, kind: str, text: str, flags: int) -> str:
        if WATCHDOG in text:
            raise FakeError(errors.CONFIG_UNSUPPORTED, "unsupported configuration: unknown watchdog model 'itco'")
        raise FakeError(errors.NO_NETWORK, "Network not found")

    def networkLookupByName(self, name: str) -> t.Any:
        if name != "default":
            raise FakeError(errors.NO_NETWORK, "no network")
        return types.SimpleNamespace(isActive=lambda: 1, DHCPLeases=list, name=lambda: "default")

    def listAllNetworks(self, flags: int) -> list[t.Any]:
        return [self.networkLookupByName("default")]

    def storagePoolLookupByName(self, name: str) -> t.Any:
        if name not in self.pools:
            raise FakeError(errors.NO_STORAGE_POOL, "no pool")
        root = xml.build(("pool", {"type": "dir"}, ("name", name), ("target", ("path", self.pools[name]))))

        def volume(wanted: str) -> t.Any:
            if name in self.inactive_pools:
                raise FakeError(errors.OPERATION_INVALID, "pool is not active")
            if (name, wanted) not in self.volumes:
                raise FakeError(errors.NO_STORAGE_VOL, "no volume")
            return types.SimpleNamespace(path=lambda: self.volumes[name, wanted])

        return types.SimpleNamespace(
            name=lambda: name,
            storageVolLookupByName=volume,
            XMLDesc=lambda flags: xml.document(root),
            isActive=lambda: int(name not in self.inactive_pools),
        )

    def listAllStoragePools(self, flags: int) -> list[t.Any]:
        return [self.storagePoolLookupByName(name) for name in self.pools]


def qcow2(path: Path, size: int, backing: str = "", backing_format: str = "") -> None:
    """The smallest image with which our readers are content."""
    cluster = 65536
    extension = backing_format.encode()
    header = bytearray(cluster)
    at = 104
    if backing:
        struct.pack_into(">II", header, at, 0xE2792ACA, len(extension))
        header[at + 8 : at + 8 + len(extension)] = extension
        at += 8 + (len(extension) + 7) // 8 * 8 + 8
        header[at : at + len(backing)] = backing.encode()
    entries = -(-size // (cluster * 8192))
    struct.pack_into(
        ">4sIQIIQIIQQIIQQQQII", header, 0, b"QFI\xfb", 3, at if backing else 0, len(backing), 16, size, 0, entries,
        2 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    path.write_bytes(bytes(header) + bytes(2 * cluster))


def run(argv: t.Sequence[str], *, check: bool = True, **kwargs: t.Any) -> CommandResult:
    """qemu-img, as far as it is called here."""
    words = list(argv)
    result = CommandResult(tuple(words), 0)
    if words[:2] == ["qemu-img", "create"]:
        path, size = Path(words[-2]), int(words[-1])
        if words[words.index("-f") + 1] == "raw":
            path.write_bytes(b"\0" * size)
        elif "-b" in words:
            qcow2(path, size, words[words.index("-b") + 1], words[words.index("-F") + 1])
        else:
            qcow2(path, size)
    elif words[:2] == ["qemu-img", "resize"]:
        with open(words[-2], "r+b") as file:
            file.seek(24)
            file.write(struct.pack(">Q", int(words[-1])))
    elif words[:2] == ["qemu-img", "rebase"]:
        path = Path(words[-1])
        backing_format = words[words.index("-F") + 1] if "-F" in words else ""
        qcow2(path, struct.unpack(">Q", path.read_bytes()[24:32])[0], words[words.index("-b") + 1], backing_format)
    elif words[0] == "xorriso":
        descriptor = bytearray(2048)
        descriptor[0:6] = b"\x01CD001"
        label = words[words.index("-V") + 1].encode()
        descriptor[40 : 40 + len(label)] = label
        Path(words[words.index("-o") + 1]).write_bytes(bytes(32768) + bytes(descriptor))
    elif words[:2] not in (["qemu-img", "commit"], ["qemu-img", "convert"]):
        result = CommandResult(tuple(words), 127, stderr=f"{words[0]}: not there")
    return checked(result) if check else result
