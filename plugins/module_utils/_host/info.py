# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a host is and what it can do, gathered in one go: for the module host_info, for the helper, for preflights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, InputError
from .._criu import features as criu_features
from .._criu import versions
from . import files, helper, kvm, trust
from .cli import write_line
from .system import Host

_CAP_SYS_RESOURCE = 24
_AT_MINSIGSTKSZ = 51
_AT_NULL = 0


# --- parsers: text in, values out ---


def parse_os_release(text: str) -> dict[str, str]:
    """/etc/os-release."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def os_facts(text: str) -> dict[str, str]:
    """The distribution in the words that the role's variable files are named by."""
    said = parse_os_release(text)
    like = [said.get("ID", ""), *said.get("ID_LIKE", "").split()]
    family = next((name for name in ("debian", "rhel", "fedora") if name in like), said.get("ID", ""))
    return {
        "id": said.get("ID", ""),
        "version": said.get("VERSION_ID", ""),
        "major_version": said.get("VERSION_ID", "").split(".")[0],
        "codename": said.get("VERSION_CODENAME", ""),
        "pretty_name": said.get("PRETTY_NAME", ""),
        "family": {"fedora": "rhel"}.get(family, family),
    }


def parse_cpuinfo(text: str) -> dict[str, t.Any]:
    """/proc/cpuinfo: model and flags of the first CPU, and how many there are."""
    first: dict[str, str] = {}
    count = 0
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            count += name.strip() == "processor"
            first.setdefault(name.strip(), value.strip())
    return {
        "model": first.get("model name") or first.get("Model") or first.get("CPU part", ""),
        "vendor": first.get("vendor_id") or first.get("CPU implementer", ""),
        "count": count,
        "flags": sorted((first.get("flags") or first.get("Features") or "").split()),
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if len(line.split()) > 1}
    return {"total_bytes": found.get("MemTotal", 0), "available_bytes": found.get("MemAvailable", 0)}


def parse_auxv(data: bytes) -> dict[int, int]:
    """/proc/self/auxv."""
    size = 8 if len(data) % 16 == 0 else 4
    words = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
    return dict(zip(words[::2], words[1::2]))


def parse_sockets(text: str, protocol: str) -> list[dict[str, t.Any]]:
    """The listening sockets in /proc/net/{tcp,tcp6,udp,udp6}: protocol, port, inode."""
    wanted = "0A" if protocol.startswith("tcp") else "07"
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == wanted:
            port = int(fields[1].rpartition(":")[2], 16)
            found.append({"protocol": protocol[:3], "port": port, "inode": fields[9]})
    return found


def parse_wireguard_ports(text: str) -> list[tuple[int, str]]:
    """``wg show all listen-port``: port and interface."""
    lines = [line.split() for line in text.splitlines()]
    return [(int(words[1]), words[0]) for words in lines if len(words) == 2 and words[1].isdigit()]


def parse_vxlan_ports(text: str) -> list[tuple[int, str]]:
    """``ip -j -d link show type vxlan``: port and interface. Links of other types are empty in it."""
    ports = [
        (((link.get("linkinfo") or {}).get("info_data") or {}).get("port"), link.get("ifname"))
        for link in json.loads(text or "[]")
    ]
    return [(port, name) for port, name in ports if port]


def parse_input_chains(text: str) -> list[dict[str, str]]:
    """The chains in ``nft list chains`` that drop what comes in and was not accepted: family, table, chain."""
    found: list[dict[str, str]] = []
    family = table = chain = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["table"] and len(words) > 2:
            family, table = words[1], words[2]
        elif words[:1] == ["chain"] and len(words) > 1:
            chain = words[1]
        elif "hook input" in line and "policy drop" in line and "type filter" in line:
            found.append({"family": family, "table": table, "chain": chain})
    return found


def file_systems(mountinfo: str) -> dict[str, str]:
    """The types of file systems by their device numbers, from /proc/self/mountinfo: {"0:42": "nfs4"}."""
    lines = [line.split() for line in mountinfo.splitlines()]
    return {words[2]: words[words.index("-", 6) + 1] for words in lines if "-" in words[6:]}


def parse_mounts(text: str) -> list[tuple[str, str]]:
    """/proc/self/mounts as (mount point, type), in order."""
    return [(fields[1], fields[2]) for fields in (line.split() for line in text.splitlines()) if len(fields) > 2]


# --- the parts ---


def _cpu() -> dict[str, t.Any]:
    found = parse_cpuinfo(files.text_of("/proc/cpuinfo"))
    try:
        with open("/proc/self/auxv", "rb") as file:
            vector = parse_auxv(file.read())
    except OSError:
        vector = {}
    return {**found, "architecture": platform.machine(), "signal_frame_bytes": vector.get(_AT_MINSIGSTKSZ, 0)}


def _container_kind() -> str:
    said = files.text_of("/run/systemd/container").strip()
    if said:
        return said
    if os.path.exists("/.dockerenv"):
        return "docker"
    return "podman" if os.path.exists("/run/.containerenv") else ""


def _virtualization(flags: t.Sequence[str]) -> dict[str, t.Any]:
    return {
        "cpu_extension": next((flag for flag in ("vmx", "svm") if flag in flags), ""),
        "kvm": kvm.probe(),
        "container": _container_kind(),
        "hypervisor": "hypervisor" in flags,
    }


def _cgroup(mounts: t.Sequence[tuple[str, str]]) -> dict[str, t.Any]:
    kinds = dict(mounts)
    if kinds.get("/sys/fs/cgroup") == "cgroup2":
        return {"version": 2, "controllers": sorted(files.text_of("/sys/fs/cgroup/cgroup.controllers").split())}
    return {"version": 1 if "cgroup" in kinds.values() else 0, "controllers": []}


def _wireguard(release: str) -> dict[str, bool]:
    modules = f"/lib/modules/{release}"
    kernel = (
        os.path.isdir("/sys/module/wireguard")
        or "/wireguard.ko" in files.text_of(f"{modules}/modules.builtin")
        or "/wireguard.ko" in files.text_of(f"{modules}/modules.dep")
    )
    return {"kernel": kernel, "userspace": shutil.which("wireguard-go") is not None}


def _criu(host: Host, release: str) -> dict[str, t.Any]:
    nothing = {
        "path": "",
        "version": "",
        "usable": False,
        "reason": "",
        "features": {},
        "minimum_version": versions.minimum_criu(release),
    }
    path = shutil.which("criu")
    if not path:
        return {**nothing, "reason": "CRIU is not installed."}
    version = versions.parse_criu_version(host.run([path, "--version"], check=False, timeout_s=10).stdout)
    check = host.run([path, "check"], check=False, timeout_s=20)
    reason = versions.pair_problem(version, release) or criu_features.parse_check(check.rc, check.stdout, check.stderr)
    features: dict[str, t.Optional[bool]] = {}
    for name in criu_features.FEATURES:
        answer = host.run([path, "check", "--feature", name], check=False, timeout_s=10)
        features[name] = criu_features.parse_feature(answer.rc, answer.stdout, answer.stderr)
    return {
        **nothing,
        "path": path,
        "version": version,
        "usable": not reason,
        "reason": reason,
        "features": features,
    }


def _has_library(host: Host, name: str) -> bool:
    known = host.run([shutil.which("ldconfig") or "/sbin/ldconfig", "-p"], check=False, timeout_s=10).stdout
    return any(line.split()[:1] == [name] for line in known.splitlines())


def _runtime(host: Host, name: str, criu: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    path = shutil.which(name)
    if not path:
        return {"path": "", "version": "", "checkpoint": False, "reason": f"{name} is not installed."}
    said = host.run([path, "--version"], check=False, timeout_s=10).stdout
    features = versions.parse_runtime_features(host.run([path, "features"], check=False, timeout_s=10).stdout)
    reason = criu["reason"]
    if not reason and name == "runc" and not features.get("checkpoint", True):
        reason = "This runc was built without support for checkpoints."
    if not reason and name == "crun" and "CRIU" not in versions.parse_crun_flags(said):
        reason = "This crun was built without support for checkpoints; use runc."
    if not reason and name == "crun" and not _has_library(host, "libcriu.so.2"):
        # crun loads it when it needs it; its own account of its features does not look.
        reason = "crun does not find libcriu.so.2; install it (libcriu2 on Debian, criu-libs on EL)."
    return {"path": path, "version": versions.parse_runtime_version(said), "checkpoint": not reason, "reason": reason}


def _program_version(host: Host, *argv: str) -> str:
    path = shutil.which(argv[0])
    if not path:
        return ""
    said = host.run([path, *argv[1:]], check=False, timeout_s=10).stdout
    return versions.version_text(versions.parse_version(said))


def _overlay() -> dict[str, t.Any]:
    try:
        said = files.read_json(paths.OVERLAY_FILE)
    except CnvmError as error:
        return {"configured": False, "reason": str(error)}
    if said is None:
        return {"configured": False, "reason": ""}
    bridge = str(said.get("bridge", ""))
    device = f"/sys/class/net/{bridge}"
    return {
        "configured": True,
        "reason": "",
        "subnet": said.get("subnet", ""),
        "bridge": bridge,
        "encryption": said.get("encryption", ""),
        "address": (said.get("self") or {}).get("address", ""),
        "tunnel": (said.get("self") or {}).get("tunnel", ""),
        "peers": sorted(str(peer.get("name")) for peer in said.get("peers") or []),
        "mtu": said.get("mtu", 0),
        # IFF_UP; a bridge without ports has no carrier and is up all the same.
        "up": bool(bridge) and bool(int(files.text_of(f"{device}/flags").strip() or "0", 16) & 1),
    }


def _tunnel_ports(host: Host) -> list[tuple[int, str]]:
    """The UDP ports of WireGuard and VXLAN and their interfaces: the sockets themselves do not tell."""
    wg, ip = shutil.which("wg"), shutil.which("ip")
    wireguard = host.run([wg, "show", "all", "listen-port"], check=False, timeout_s=10).stdout if wg else ""
    vxlan = host.run([ip, "-j", "-d", "link", "show", "type", "vxlan"], check=False, timeout_s=10).stdout if ip else ""
    return parse_wireguard_ports(wireguard) + parse_vxlan_ports(vxlan)


def _port_users(host: Host, ports: t.Sequence[tuple[str, int]]) -> list[dict[str, t.Any]]:
    """Who listens on the given ports. The program is empty for sockets of the kernel, the interface for all that are
    not of WireGuard or VXLAN. Several interfaces may share a port."""
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for entry in parse_sockets(files.text_of(f"/proc/net/{name}"), name):
            if (entry["protocol"], entry["port"]) in ports:
                found.append(entry)
    users: dict[str, str] = {}
    wanted = {f"socket:[{entry['inode']}]" for entry in found}
    for process in os.listdir("/proc") if wanted else []:
        if process.isdigit():
            try:
                links = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
            except OSError:
                continue
            for link in wanted.intersection(links):
                users[link] = files.text_of(f"/proc/{process}/comm").strip()
    programs = {(entry["protocol"], entry["port"]): users.get(f"socket:[{entry['inode']}]", "") for entry in found}
    tunnels = _tunnel_ports(host) if any(protocol == "udp" for protocol, dummy in programs) else []
    return [
        {"port": f"{number}/{protocol}", "program": program, "interface": interface}
        for (protocol, number), program in sorted(programs.items())
        for interface in (protocol == "udp" and [name for port, name in tunnels if port == number]) or [""]
    ]


def _firewall(host: Host) -> dict[str, t.Any]:
    active = host.run(["systemctl", "is-active", "firewalld", "ufw"], check=False, timeout_s=10).stdout.split()
    if active[:1] == ["active"]:
        return {"kind": "firewalld", "chains": []}
    if active[1:2] == ["active"] and "ENABLED=yes" in files.text_of("/etc/ufw/ufw.conf").replace(" ", ""):
        return {"kind": "ufw", "chains": []}
    nft = shutil.which("nft")
    chains = parse_input_chains(host.run([nft, "list", "chains"], check=False, timeout_s=10).stdout) if nft else []
    return {"kind": "nftables" if chains else "none", "chains": chains}


def _storage(mounts: t.Sequence[tuple[str, str]]) -> dict[str, t.Any]:
    path = paths.STATE
    while not os.path.exists(path):
        path = os.path.dirname(path)
    space = os.statvfs(path)
    inside = [(point, kind) for point, kind in mounts if path == point or path.startswith(point.rstrip("/") + "/")]
    # The longest mount point holds the path; of several on the same point, the last one is on top.
    kind = max(enumerate(inside), key=lambda entry: (len(entry[1][0]), entry[0]))[1][1] if inside else ""
    return {"path": paths.STATE, "free_bytes": space.f_bavail * space.f_frsize, "filesystem": kind}


def _capability(number: int) -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", files.text_of("/proc/self/status"), re.MULTILINE)
    return bool(found) and bool(int(found.group(1), 16) >> number & 1) if found else False


def machine_digest(machine_id: str) -> str:
    """An identity made from /etc/machine-id, which itself is not to be shown to others (machine-id(5))."""
    return hashlib.sha256(f"{machine_id.strip()}cnvm".encode()).hexdigest()[:32] if machine_id.strip() else ""


def parse_ports(texts: t.Sequence[str]) -> list[tuple[str, int]]:
    """``51820/udp`` as ("udp", 51820)."""
    ports = []
    for number, text in enumerate(texts):
        found = re.match(r"([0-9]{1,5})/(tcp|udp)\Z", text, re.ASCII)
        if not found or not 1 <= int(found.group(1)) <= 65535:
            raise InputError(f"ports[{number}]: {text!r} is not allowed.", hint="Allowed: such as '51820/udp'.")
        ports.append((found.group(2), int(found.group(1))))
    return ports


def _guests(virtualization: dict[str, t.Any], architecture: str, libvirt: str, qemu: str) -> dict[str, t.Any]:
    from . import hypervisor  # Only here: the helper looks at hosts where milliseconds count, and has no use for it.

    return hypervisor.look(virtualization, architecture, libvirt_version=libvirt, qemu_version=qemu)


def gather(
    host: Host, ports: t.Sequence[str] = (), reference_time: t.Optional[float] = None, *, guests: bool = False
) -> dict[str, t.Any]:
    """Everything; with ``guests`` also what libvirt says. Nothing is changed, and nothing kept from an earlier time."""
    now = time.time()
    wanted_ports = parse_ports(ports)
    release = platform.release()
    mounts = parse_mounts(files.text_of("/proc/self/mounts"))
    identity = files.read_json(paths.HOST_FILE) or {}
    cpu = _cpu()
    criu = _criu(host, release)
    runtimes = {name: _runtime(host, name, criu) for name in ("runc", "crun")}
    able = [name for name, runtime in runtimes.items() if runtime["checkpoint"]]
    sshd = trust.sshd_options(host)
    virtualization = _virtualization(cpu["flags"])
    libvirt = _program_version(host, "libvirtd", "--version") or _program_version(host, "virtqemud", "--version")
    qemu = _program_version(host, f"qemu-system-{cpu['architecture']}", "--version") or _program_version(
        host, "/usr/libexec/qemu-kvm", "--version"
    )
    return {
        "name": identity.get("name", ""),
        "host_id": identity.get("host_id", ""),
        "machine_digest": machine_digest(files.text_of("/etc/machine-id")),
        "boot_id": files.text_of("/proc/sys/kernel/random/boot_id").strip(),
        "os": os_facts(files.text_of("/etc/os-release")),
        "kernel": release,
        "kernel_modules": os.path.isdir(f"/lib/modules/{release}"),
        "python": platform.python_version(),
        "user_id": os.geteuid(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "sys_resource": _capability(_CAP_SYS_RESOURCE),
        "clock": {"epoch_s": now, "skew_s": None if reference_time is None else round(now - reference_time, 3)},
        "cpu": cpu,
        "memory": parse_meminfo(files.text_of("/proc/meminfo")),
        "storage": _storage(mounts),
        "cgroup": _cgroup(mounts),
        "virtualization": virtualization,
        "criu": criu,
        "runtimes": runtimes,
        "modes": criu_features.modes(
            checkpoint=bool(able),
            lazy_runtime="runc" in able,
            incremental_runtime=bool(able),
            features=criu["features"],
        ),
        "libvirt": libvirt,
        "qemu": qemu,
        "guests": _guests(virtualization, cpu["architecture"], libvirt, qemu) if guests else None,
        "wireguard": _wireguard(release),
        "overlay": _overlay(),
        "firewall": _firewall(host),
        "ports": _port_users(host, wanted_ports),
        "sshd": {"problem": trust.sshd_problem(sshd), "port": int((sshd.get("port") or ["22"])[0])},
        "helper": helper.installed(paths.HELPER_LIBRARY),
    }


def _info(args: t.Sequence[str], host: Host) -> int:
    write_line(host, gather(host, ports=args))
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """What ``cnvm-host`` finds here."""
    return {"info": _info}
