# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Local hosts, the deciding half: what users wrote, names, addresses, which packages, what to run, what has to change.

Nothing here touches the machine; ``_host/nspawn.py`` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import re
import typing as t

from . import mmdebstrap, values
from .errors import HostError, InputError, Refused

# Raise it when a base built by an older recipe must not be used any more.
RECIPE = 2
STATES = ("present", "powered_off", "absent")
LINKS = ("up", "down")
FLAVOURS = ("bare", "ready")
SUITES = ("trixie", "bookworm")
MOST_HOSTS = 64

HOST_NAME_RULE = "1 to 63 small letters, digits or '-', not at either end (a host name)"
SET_NAME_RULE = "1 to 20 small letters, digits or '-', not at either end"
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z")
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9_.@+-]+)+\Z")
_RATE = re.compile(r"([0-9]{1,30}(?:\.[0-9]+)?)\s*([kmg])bit\Z", re.ASCII | re.IGNORECASE)
_RATE_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
RATE_RULE = "64kbit to 100gbit, as a number with kbit, mbit or gbit, such as 1gbit; null for no limit"

DEFAULT_MIRROR = "http://deb.debian.org/debian"
# Where the layers of hosts cannot be: the kernel refuses these below a writable overlayfs layer.
_UNSUITABLE = ("overlay", "9p", "virtiofs", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "ramfs", "squashfs", "iso9660")

# What must be on the machine: a program, and the Debian package that has it.
MACHINE_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "timeout": "coreutils",
}
MACHINE_FILES = {"/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring"}

# udev: networkd waits for it before it sets up a link, as /sys is writable in a host.
_BARE = ("systemd-sysv", "udev", "dbus", "openssh-server", "python3", "ca-certificates")
_READY = (
    "bzip2",
    "conntrack",
    "crun",
    "iproute2",
    "iputils-arping",
    "iputils-ping",
    "kmod",
    "nftables",
    "openssh-client",
    "procps",
    "rsync",
    "tar",
    "wireguard-go",
    "wireguard-tools",
    "xz-utils",
    "zstd",
)
# The suites that have a newer CRIU, best first, and the version from which it copes with Linux 6.16.
NEWER_SUITES = ("forky", "sid")
NEWER_CRIU = "4.2"
# All that may come from there: CRIU, runc, and libraries that Debian's stable release has too old or by other names.
# libnl's parts have one version: QEMU and libvirt need another part than CRIU, and would be removed for want of it.
NEWER_PACKAGES = ("criu", "libcompel1", "libcriu2", "libnet9", "libnl-3-200", "libnl-route-3-200", "runc")
PACKAGE_DIR = "/var/lib/cnvm-local-packages"


# --- What users write -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One host as it is wanted. ``rate``: bits per second on its link, None for no limit. ``address`` may be open."""

    name: str
    address: t.Optional[str] = None
    state: str = "present"
    rate: t.Optional[int] = None
    link: str = "up"

    def shown(self) -> dict[str, t.Any]:
        """As the diff and the result show it."""
        return {"state": self.state, "address": self.address, "rate": rate_text(self.rate), "link": self.link}


def check_label(value: object, option: str, rule: str, most: int) -> str:
    """A host or set name: narrower than other names, because it becomes a host name and part of unit names."""
    if not isinstance(value, str):
        raise InputError(f"{option}: {value!r} is not text.", hint="Put it in quotes.")
    if len(value) > most or not _LABEL.match(value):
        shown = value if len(value) <= 70 else value[:67] + "..."
        raise InputError(f"{option}: {shown!r} is not allowed.", hint=f"Allowed: {rule}.")
    return value


def check_set(value: object) -> str:
    """The name of a set of hosts."""
    return check_label(value, "set", SET_NAME_RULE, 20)


def check_path(value: object, option: str) -> str:
    """An absolute path that can stand in mount options and unit properties as it is."""
    path = values.absolute_path(value, option)
    if not _PATH.match(path):
        raise InputError(
            f"{option}: {path!r} is not allowed.",
            hint="Allowed: an absolute path of letters, digits and '_.@+-', without '.' or '..'.",
        )
    return path


def check_packages(value: object, option: str) -> tuple[str, ...]:
    """Names of Debian packages."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{option}: {value!r} is not a list.", hint="Allowed: a list of package names.")
    for item in value:
        if not isinstance(item, str) or not _PACKAGE.match(item):
            raise InputError(f"{option}: {item!r} is not allowed.", hint="Allowed: names of Debian packages.")
    return tuple(sorted(set(value)))


def rate_bits(value: object, option: str) -> t.Optional[int]:
    """Bits per second from ``1gbit``, ``"100mbit"``; None from null (and from an empty text, as surveys send it)."""
    if value is None or value == "":
        return None
    found = _RATE.match(value.strip()) if isinstance(value, str) else None
    bits = int(float(found.group(1)) * _RATE_UNITS[found.group(2).lower()]) if found else 0
    if not 64_000 <= bits <= 100 * 10**9:
        raise InputError(f"{option}: {value!r} is not allowed.", hint=f"Allowed: {RATE_RULE}.")
    return bits


def rate_text(bits: t.Optional[int]) -> t.Optional[str]:
    """The reverse: the largest unit without a fraction."""
    if bits is None:
        return None
    for unit, factor in (("gbit", 10**9), ("mbit", 10**6), ("kbit", 10**3)):
        if bits % factor == 0:
            return f"{bits // factor}{unit}"
    return f"{bits}bit"


def check_subnet(value: object) -> ipaddress.IPv4Network:
    """The network between the machine and its hosts."""
    try:
        network = ipaddress.IPv4Network(value if isinstance(value, str) else "")
    except ValueError:
        network = None
    if network is None or not 16 <= network.prefixlen <= 29 or network.is_multicast or network.is_loopback:
        raise InputError(
            f"subnet: {value!r} is not allowed.",
            hint="Allowed: an IPv4 network of /16 to /29 with no host bits set, such as 10.213.77.0/24.",
        )
    return network


def check_bridge(value: object) -> str:
    """A name for the bridge, as the kernel takes it."""
    if not isinstance(value, str) or not _LINK_NAME.match(value):
        raise InputError(
            f"bridge: {value!r} is not allowed.", hint="Allowed: 1 to 15 letters, digits, '_', '.' or '-'."
        )
    return value


def _address(value: object, option: str) -> t.Optional[str]:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise InputError(
            f"{option}: {value!r} is not allowed.", hint="Allowed: an IPv4 address in quotes, such as '10.213.77.11'."
        ) from None


def read_hosts(value: object, *, state: str, rate: t.Optional[int] = None) -> tuple[Wanted, ...]:
    """Hosts from a count (``3``, ``"3"``) or a list; ``state`` and ``rate`` hold for items that do not say."""
    if isinstance(value, (bool, int, str)):
        try:
            count = values.integer(value, "hosts", least=1, most=MOST_HOSTS)
        except InputError:
            raise InputError(
                f"hosts: {value!r} is not allowed.",
                hint=f"Allowed: a whole number from 1 to {MOST_HOSTS}, or a list of hosts.",
            ) from None
        return tuple(Wanted(name=f"host{number}", state=state, rate=rate) for number in range(1, count + 1))
    if not isinstance(value, (list, tuple)):
        raise InputError(
            f"hosts: {value!r} is not allowed.",
            hint=f"Allowed: a whole number from 1 to {MOST_HOSTS}, or a list of hosts.",
        )
    if len(value) > MOST_HOSTS:
        raise InputError(f"hosts: {len(value)} hosts are too many.", hint=f"Allowed: up to {MOST_HOSTS}.")
    wanted = []
    for number, item in enumerate(value):
        option = f"hosts[{number}]"
        keys = values.known_keys(item, option, ("name", "address", "state", "rate", "link"))
        if keys.get("name") is None:
            raise InputError(f"{option}: name is missing.", hint=f"Allowed: {HOST_NAME_RULE}.")
        wanted.append(
            Wanted(
                name=check_label(keys["name"], f"{option}.name", HOST_NAME_RULE, 63),
                address=_address(keys.get("address"), f"{option}.address"),
                state=values.choice(keys.get("state", state), f"{option}.state", STATES),
                rate=rate_bits(keys["rate"], f"{option}.rate") if "rate" in keys else rate,
                link=values.choice(keys.get("link", "up"), f"{option}.link", LINKS),
            )
        )
    names = [host.name for host in wanted]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"hosts: the name {name!r} is there twice.", hint="Give each host its own name.")
    addresses = [host.address for host in wanted if host.address]
    for address in addresses:
        if addresses.count(address) > 1:
            raise InputError(f"hosts: the address {address} is there twice.", hint="Give each host its own address.")
    return tuple(wanted)


# --- Addresses ------------------------------------------------------------------------------------------------------


def subnet_candidates(set_name: str) -> t.Iterator[ipaddress.IPv4Network]:
    """Networks for a set that names none: always the same ones for a name, all within 10.200.0.0 to 10.249.255.255."""
    for attempt in range(16):
        digest = hashlib.sha256(f"{set_name}/{attempt}".encode()).digest()
        yield ipaddress.IPv4Network(f"10.{200 + digest[0] % 50}.{digest[1]}.0/24")


def pick_subnet(
    set_name: str,
    given: t.Optional[ipaddress.IPv4Network],
    wanted: t.Sequence[Wanted],
    routed: t.Sequence[ipaddress.IPv4Network],
) -> ipaddress.IPv4Network:
    """The network of a new set: as given, or that of the first address given, or a free one.

    ``routed``: what the machine already reaches by other ways than this set's bridge.
    """
    addresses = [host.address for host in wanted if host.address]
    if given is None and addresses:
        given = ipaddress.IPv4Network(f"{addresses[0]}/24", strict=False)
    if given is not None:
        clash = next((net for net in routed if net.overlaps(given)), None)
        if clash is not None:
            raise Refused(
                f"subnet: {given} overlaps {clash}, which this machine already uses.",
                hint="Choose another subnet, or leave it (and the addresses) out to have a free one chosen.",
            )
        return given
    for candidate in subnet_candidates(set_name):
        if not any(net.overlaps(candidate) for net in routed):
            return candidate
    raise Refused("subnet: none of the usual networks is free on this machine.", hint="Name a free one with subnet.")


def gateway(subnet: ipaddress.IPv4Network) -> str:
    """The machine's own address in the network: the first one."""
    return str(subnet.network_address + 1)


def assign(wanted: t.Sequence[Wanted], known: t.Mapping[str, str], subnet: ipaddress.IPv4Network) -> tuple[Wanted, ...]:
    """``wanted`` with every address filled in. ``known``: the addresses of the hosts that are there, by name.

    Hosts without an address count up from the eleventh (where the network is large enough), and keep what they have.
    """
    for host in wanted:
        if host.state == "absent" or host.address is None:
            continue
        address = ipaddress.IPv4Address(host.address)
        if address not in subnet:
            raise InputError(f"hosts: {host.name}: {address} is not in {subnet}.", hint="Change it or the subnet.")
        if address in (subnet.network_address, subnet.broadcast_address):
            raise InputError(f"hosts: {host.name}: {address} is not a host's address in {subnet}.", hint="Change it.")
        if str(address) == gateway(subnet):
            raise InputError(
                f"hosts: {host.name}: {address} is this machine's own address on the bridge.", hint="Take another."
            )
        other = next((name for name, has in known.items() if has == host.address and name != host.name), None)
        if other:
            raise Refused(f"hosts: {host.name}: {address} is the address of {other}.", hint="Take another.")
        if known.get(host.name, host.address) != host.address:
            raise Refused(
                f"hosts: {host.name} is there with the address {known[host.name]}, not {host.address}.",
                hint="Remove it first (state: absent); a host keeps its address.",
            )
    taken = {gateway(subnet), *known.values(), *(host.address for host in wanted if host.address)}
    base = 10 if subnet.prefixlen <= 27 else 1
    free = (str(subnet.network_address + n) for n in range(base + 1, subnet.num_addresses - 1))
    result = []
    for host in wanted:
        address_of = host.address or known.get(host.name)
        if address_of is None and host.state != "absent":
            address_of = next((address for address in free if address not in taken), None)
            if address_of is None:
                raise InputError(f"hosts: no address is left for {host.name} in {subnet}.", hint="Use a larger subnet.")
            taken.add(address_of)
        result.append(dataclasses.replace(host, address=address_of))
    return tuple(result)


def routed_networks(routes: t.Iterable[t.Mapping[str, t.Any]], bridge: str) -> list[ipaddress.IPv4Network]:
    """The networks in the output of ``ip -json route show table all`` that do not leave by ``bridge``."""
    found = []
    for route in routes:
        target = str(route.get("dst", "default"))
        if target == "default" or route.get("dev") in (bridge, "lo"):
            continue
        try:
            network = ipaddress.IPv4Network(target)
        except ValueError:
            continue
        if network.prefixlen > 0:
            found.append(network)
    return found


# --- Names on the machine -------------------------------------------------------------------------------------------


def _short(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def bridge_name(set_name: str) -> str:
    """The set's bridge: readable where the kernel's 15 characters allow it."""
    name = f"lh-{set_name}"
    return name if len(name) <= 15 else f"lh-{_short(set_name)[:12]}"


def bridge_mac(set_name: str) -> str:
    """A fixed MAC, so that the bridge does not change it as hosts come and go."""
    digest = _short("bridge", set_name)
    return ":".join(["02", *(digest[n : n + 2] for n in range(0, 10, 2))])


def machine_name(set_name: str, host: str) -> str:
    """The name by which nspawn knows the host; short, because the link's name is made of it."""
    return f"lh{_short(set_name, host)[:10]}"


def link_name(set_name: str, host: str) -> str:
    """The machine's end of the host's link, as nspawn names it (15 characters)."""
    return f"vb-{machine_name(set_name, host)}"


def unit_name(set_name: str, host: str) -> str:
    """The host's unit, or its cgroup where systemd does not run the machine. '.' is in neither name."""
    return f"cnvm-local-{set_name}.{host}"


def table_name(set_name: str) -> str:
    """The set's nftables table."""
    return f"cnvm_local_{set_name.replace('-', '_')}"


def nft_add(set_name: str, subnet: str, bridge: str) -> str:
    """Lets the hosts reach what the machine reaches, under the machine's address; replaces an older table."""
    table = table_name(set_name)
    return (
        f"table ip {table} {{}}\n"
        f"delete table ip {table}\n"
        f"table ip {table} {{\n"
        f"  chain postrouting {{\n"
        f"    type nat hook postrouting priority srcnat; policy accept;\n"
        f'    ip saddr {subnet} oifname != "{bridge}" masquerade\n'
        f"  }}\n"
        f"}}\n"
    )


def settings_to_restore(changed: t.Mapping[str, str], bridges: t.Collection[str]) -> dict[str, str]:
    """What kernel settings were before, with the last set gone. Of ``bridges`` that are left somebody forwards packets,
    as Docker and libvirt do, and may have found that switched on."""
    return {key: before for key, before in changed.items() if key != "net/ipv4/ip_forward" or not bridges}


def shaping_argv(link: str, bits: t.Optional[int]) -> list[str]:
    """The tc command that shapes ``link``, or stops it. The burst is what the rate sends in about 2 ms."""
    if bits is None:
        return ["tc", "qdisc", "del", "dev", link, "root"]
    burst = max(32_768, bits // 8 // 488)
    return [
        *("tc", "qdisc", "replace", "dev", link, "root", "tbf"),
        *("rate", f"{bits}bit", "burst", f"{burst}b", "latency", "20ms"),
    ]


def shaped_rate(qdiscs: t.Iterable[t.Mapping[str, t.Any]]) -> t.Optional[int]:
    """The rate in the output of ``tc -json qdisc show dev LINK``, in bits per second (tc shows bytes)."""
    for qdisc in qdiscs:
        if qdisc.get("kind") == "tbf":
            return int(qdisc["options"]["rate"]) * 8
    return None


# --- Where files can lie --------------------------------------------------------------------------------------------


def file_system_of(path: str, mountinfo: str) -> str:
    """The type of the file system that holds ``path``, from the text of /proc/self/mountinfo."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if "-" not in fields:
            continue
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # The later of two mounts on one point is the one that is seen.
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind


def holds_layers(kind: str) -> bool:
    """Whether hosts' writable layers can lie on a file system of this type."""
    return kind not in _UNSUITABLE and not kind.startswith(("nfs", "fuse", "cifs", "smb"))


def cgroup2_mount(mountinfo: str) -> t.Optional[str]:
    """Where the unified cgroup hierarchy is mounted."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if "-" in fields and fields[fields.index("-") + 1] == "cgroup2":
            return fields[4]
    return None


def named_cgroup_mount(mountinfo: str) -> t.Optional[str]:
    """Where systemd's own old-style hierarchy is mounted: nspawn mirrors a host's cgroup there."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if "-" in fields and fields[fields.index("-") + 1] == "cgroup" and "name=systemd" in fields[-1].split(","):
            return fields[4]
    return None


# --- The base -------------------------------------------------------------------------------------------------------


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 18) from '6.18.44-amd64'."""
    found = re.match(r"([0-9]+)\.([0-9]+)", release)
    if not found:
        raise HostError(f"The kernel's version {release!r} cannot be read.")
    return int(found.group(1)), int(found.group(2))


def criu_from(suite: str, kernel: tuple[int, int]) -> str:
    """Where a CRIU that fits the kernel comes from: ``suite`` (its own), ``newer`` or ``none``.

    A local host runs on the machine's kernel, not on its suite's: CRIU 3.17 (bookworm) does not start from Linux 6.13
    on, and CRIU 4.1 (trixie) cannot dump a process with an internet socket from Linux 6.16 on.
    """
    if suite == "bookworm":
        return "suite" if kernel < (6, 13) else "none"
    return "suite" if kernel < (6, 16) else "newer"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what is in a base."""

    suite: str
    flavour: str
    packages: tuple[str, ...]
    criu: str
    architecture: str

    def include(self) -> list[str]:
        """The packages that come from the suite."""
        names = {*_BARE, *self.packages}
        if self.flavour == "ready":
            names.update(_READY)
            names.add("runc")
            if self.criu == "suite":
                # Bookworm's CRIU has no library package (and its crun does not load one).
                names.update(("criu",) if self.suite == "bookworm" else ("criu", "libcriu2"))
        return sorted(names)

    def digest(self) -> str:
        """The name of the base in the cache."""
        text = json.dumps({"recipe": RECIPE, "include": self.include(), **dataclasses.asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def label(self) -> str:
        """What people call it."""
        return f"Debian {self.suite}, {self.flavour}"


def recipe(suite: str, flavour: str, packages: tuple[str, ...], kernel: tuple[int, int], architecture: str) -> Recipe:
    """The recipe for what was asked for; HostError where no CRIU of that suite fits the kernel."""
    criu = criu_from(suite, kernel)
    if flavour == "ready" and criu == "none":
        raise HostError(
            f"No CRIU for Debian {suite} works on this machine's kernel {kernel[0]}.{kernel[1]}.",
            hint="Use suite trixie, or flavour bare.",
        )
    return Recipe(suite=suite, flavour=flavour, packages=packages, criu=criu, architecture=architecture)


def debian_mirror(sources: t.Mapping[str, str], is_debian: bool) -> str:
    """The mirror that the machine itself uses, from the texts of its apt sources by file name; else Debian's own.

    Only Debian's main archive counts: http(s), component main, a plain suite.
    """
    if not is_debian:
        return DEFAULT_MIRROR
    for name, text in sorted(sources.items()):
        for uri, suite, components in _sources(name, text):
            plain = "-" not in suite and "/" not in suite
            if plain and "main" in components and re.match(r"https?://[A-Za-z0-9.:/_~%-]+/debian/?\Z", uri):
                return uri.rstrip("/")
    return DEFAULT_MIRROR


def _sources(name: str, text: str) -> t.Iterator[tuple[str, str, list[str]]]:
    if not name.endswith(".sources"):
        for line in text.splitlines():
            words = re.sub(r"\[[^]]*\]", "", line.split("#")[0]).split()
            if len(words) >= 4 and words[0] == "deb":
                yield words[1], words[2], words[3:]
        return
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and last:
                fields[last] += " " + line.strip()
            elif ":" in line:
                last, _colon, rest = line.partition(":")
                last = last.strip().lower()
                fields[last] = rest.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split()


# $1: the new root. Runs as a hook of mmdebstrap, on the machine, with the root's /proc and /dev in place.
# The newer suite is there only while this runs; its index may be past its date, which is allowed for this list alone.
_FINISH = """\
#!/bin/sh
set -eu
root=$1
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
newer={newer}
allowed='{allowed}'
names='criu libcompel1 libcriu2'
plan() {{ chroot "$root" apt-get -q -s install --no-install-recommends "$@"; }}
list=$root/etc/apt/sources.list.d/cnvm-newer.sources
pin=$root/etc/apt/preferences.d/cnvm-newer
note=$root/etc/cnvm-local-base
if [ -n "$newer" ]; then
  got=
  for suite in $newer; do
    printf 'Types: deb\\nURIs: %s\\nSuites: %s\\nComponents: main\\n' '{mirror}' "$suite" >"$list"
    printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\\nCheck-Valid-Until: no\\n' >>"$list"
    printf 'Package: %s\\nPin: release n=%s\\nPin-Priority: 990\\n\\n' "$allowed" "$suite" >"$pin"
    printf 'Package: *\\nPin: release n=%s\\nPin-Priority: -1\\n' "$suite" >>"$pin"
    chroot "$root" apt-get -q update || continue
    version=$(chroot "$root" apt-cache policy criu | sed -n 's/^ *Candidate: //p')
    chroot "$root" dpkg --compare-versions "$version" ge '{least}' || continue
    plan $names || continue
    got=$suite
    break
  done
  [ -n "$got" ] || {{ echo "No CRIU {least} or newer that installs on {suite} was found in: $newer" >&2; exit 1; }}
  if plan $names runc; then names="$names runc"; fi
  if [ '{flavour}' = ready ]; then
    chroot "$root" apt-get -q -y install --no-install-recommends $names
  else
    mkdir -p "$root{packages}"
    index=$root{packages}/Packages
    planned=$(plan $names libnl-route-3-200 | sed -n 's/^Inst \\([^ ]*\\) .*/\\1/p')
    names=$(for name in $allowed; do echo "$planned" | grep -Fx "$name" || true; done)
    chroot "$root" sh -ec 'cd "$0"; apt-get -q -o APT::Sandbox::User=root download "$@"' '{packages}' $names
    for name in $names; do
      version=$(chroot "$root" apt-cache policy "$name" | sed -n 's/^ *Candidate: //p')
      file=$(cd "$root{packages}" && echo "$name"_*.deb)
      chroot "$root" apt-cache show "$name=$version" | sed "s|^Filename: .*|Filename: ./$file|" >>"$index"
      echo >>"$index"
    done
    echo 'deb [trusted=yes] file:{packages} ./' >"$root/etc/apt/sources.list.d/cnvm-local-packages.list"
  fi
  echo "from $got:" $names >"$note"
  rm -f "$list" "$pin"
  rm -rf "$root"/var/lib/apt/lists/*
fi
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf" "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
mkdir -p "$root/var/lib/cnvm" "$root/var/lib/libvirt/images" "$root{nested}"
systemctl --root="$root" -q enable ssh.service systemd-networkd.service
# The links are the host's own; the machine's disks and other devices are not its to manage.
mkdir -p "$root/etc/systemd/system/systemd-udev-trigger.service.d"
printf '[Service]\\nExecStart=\\nExecStart=-udevadm trigger --action=add --subsystem-match=net\\n' \
  >"$root/etc/systemd/system/systemd-udev-trigger.service.d/cnvm-local-hosts.conf"
# Not on a host that tests use: package work behind the tests' back, and a login prompt nobody sees.
systemctl --root="$root" -q mask apt-daily.timer apt-daily-upgrade.timer console-getty.service getty@.service \
  systemd-modules-load.service systemd-networkd-wait-online.service e2scrub_all.timer fstrim.timer
"""


def finish_script(made: Recipe, mirror: str, nested: str) -> str:
    """The shell script that completes a base after mmdebstrap has unpacked and configured its packages."""
    return _FINISH.format(
        newer=f"'{' '.join(NEWER_SUITES)}'" if made.criu == "newer" else "",
        allowed=" ".join(NEWER_PACKAGES),
        mirror=mirror,
        least=NEWER_CRIU,
        suite=made.suite,
        flavour=made.flavour,
        packages=PACKAGE_DIR,
        nested=nested,
    )


def build_argv(made: Recipe, target: str, mirror: str, finish: str, proxies: t.Mapping[str, str]) -> list[str]:
    """Builds the base in ``target``. All that it starts and mounts ends with it, and it ends with its caller."""
    root = mmdebstrap.Recipe(made.suite, tuple(made.include()), components=("main",), mirror=mirror)
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        # In a session of its own: in the background of a terminal (sudo's, SSH's) apt would be stopped by it.
        *("setsid", "--wait", "timeout", "-k", "10", "1500"),
        *("env", *(f"{name}={value}" for name, value in sorted(proxies.items()))),
        *mmdebstrap.argv(root, target, [f"--customize-hook={finish}"]),
    ]


# --- One host -------------------------------------------------------------------------------------------------------


def host_files(host: str, address: str, prefix: int, gateway_address: str) -> dict[str, str]:
    """The files that make a base this host, by path in the host; all world-readable."""
    return {
        "etc/hostname": f"{host}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {host}\n::1 localhost ip6-localhost ip6-loopback\n",
        # Kept without carrier, so that a cut and mended link leaves the host as it was.
        "etc/systemd/network/10-host0.network": (
            "[Match]\nName=host0\n\n"
            f"[Network]\nAddress={address}/{prefix}\nGateway={gateway_address}\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n"
        ),
    }


def resolver_text(resolv: str, behind_stub: str) -> str:
    """What hosts get as resolv.conf: the machine's, or what stands behind it where that is a stub on loopback."""

    def servers(text: str) -> list[str]:
        return re.findall(r"^\s*nameserver\s+(\S+)", text, re.MULTILINE)

    def far(text: str) -> bool:
        return any(not server.startswith("127.") and server != "::1" for server in servers(text))

    chosen = behind_stub if far(behind_stub) and not far(resolv) else resolv
    return "".join(
        f"{line}\n"
        for line in chosen.splitlines()
        if not line.startswith("#") and not re.match(r"\s*nameserver\s+(127\.|::1\s*$)", line)
    )


# nspawn's settings have no options for these. In order: crun refuses the hybrid layout; CRIU writes ns_last_pid;
# CRIU suspends seccomp, which works only where no filter of nspawn's own is in force.
NSPAWN_ENVIRONMENT = {
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
    "SYSTEMD_SECCOMP": "0",
}

# $1 lower, $2 the host's directory; then nspawn's command line.
# The layers are mounted in a mount namespace of the host's own: they go when the host goes, however it goes.
_START = """\
lower=$1 own=$2
shift 2
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$own/upper,workdir=$own/work" "$own/root"
exec "$@"
"""

# $1 the cgroup, $2 the console's log; then what goes on by itself. It is in the cgroup before this one returns: a host
# is taken for ended where its cgroup has no process.
_DETACH = """\
echo 0 >"$1/cgroup.procs"
log=$2
shift 2
exec setsid -f "$@" </dev/null >>"$log" 2>&1
"""


def start_argv(
    *,
    set_name: str,
    host: str,
    own: str,
    lower: str,
    bridge: str,
    binds: t.Mapping[str, str],
    cgroup: t.Optional[str],
) -> list[str]:
    """Starts a host and returns at once. ``cgroup``: where systemd does not run the machine, the host's cgroup."""
    console = f"{own}/console.log"
    settings = [f"{name}={value}" for name, value in NSPAWN_ENVIRONMENT.items()]
    boot = [
        *("unshare", "--mount", "/bin/sh", "-euc", _START, "cnvm-local-host", lower, own),
        *("systemd-nspawn", "--quiet", f"--directory={own}/root", "--boot", "--keep-unit", "--register=no"),
        *(f"--network-bridge={bridge}", f"--machine={machine_name(set_name, host)}", f"--hostname={host}"),
        *("--capability=all", "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        *(f"--bind={source}:{target}" for target, source in sorted(binds.items())),
    ]
    if cgroup is None:
        return [
            *("systemd-run", "--quiet", "--collect", f"--unit={unit_name(set_name, host)}.service"),
            f"--description=cnvm.platform local host {host} of the set {set_name}",
            *("--property=Delegate=yes", "--property=TasksMax=infinity", "--property=TimeoutStopSec=20s"),
            *(f"--property=StandardOutput=append:{console}", f"--property=StandardError=append:{console}"),
            *(f"--setenv={setting}" for setting in settings),
            *boot,
        ]
    return [
        *("/bin/sh", "-euc", _DETACH, "cnvm-local-host", cgroup, console),
        *("env", *settings, *boot),
    ]


def last_lines(text: str, count: int = 12) -> str:
    """The end of a console log, without colours and control characters."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[^\x09\x0a\x20-\x7e\u00a0-\uffff]", "", text)
    return "\n".join([line.rstrip() for line in plain.splitlines() if line.strip()][-count:])


def namespace_init(statuses: t.Mapping[int, str]) -> t.Optional[int]:
    """The process that is PID 1 of a host one level down, among /proc/PID/status texts by PID."""
    for pid, text in statuses.items():
        found = re.search(r"^NSpid:\s*(.*)$", text, re.MULTILINE)
        numbers = found.group(1).split() if found else []
        if len(numbers) == 2 and numbers[1] == "1":
            return pid
    return None


def has_capability(status: str, bit: int) -> bool:
    """Whether the process of this /proc/PID/status text has the capability in force."""
    found = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", status, re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> bit & 1)


# --- What has to change ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does, in this order; names of hosts. ``shape`` and ``links``: hosts whose link is to be set anew."""

    remove: tuple[str, ...] = ()
    power_off: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    boot: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    def any(self) -> bool:
        """Whether there is anything to do."""
        return any(dataclasses.astuple(self))


def plan(wanted: t.Sequence[Wanted], actual: t.Mapping[str, Wanted], leftovers: t.Collection[str] = ()) -> Plan:
    """From what is there to what is wanted. ``leftovers``: names with remains of a host that was never completed."""
    remove, power_off, create, boot, shape, links = [], [], [], [], [], []
    for host in wanted:
        has = actual.get(host.name)
        if host.state == "absent":
            if has is not None or host.name in leftovers:
                remove.append(host.name)
            continue
        if has is None:
            create.append(host.name)
        running = has is not None and has.state == "present"
        if host.state == "present" and not running:
            boot.append(host.name)
        elif host.state == "powered_off" and running:
            power_off.append(host.name)
        # Without traffic shaping and with its link up a host boots as wanted; else both are set once it runs.
        if (has.rate if has else None) != host.rate:
            shape.append(host.name)
        if (has.link if has else "up") != host.link:
            links.append(host.name)
    return Plan(*(tuple(names) for names in (remove, power_off, create, boot, shape, links)))
