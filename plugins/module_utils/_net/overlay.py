# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What overlay.json of each host says, from what the hosts of a play and the files that are there say.

Every host of a play is given the same members and computes the same addresses for all of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import typing as t

from .._core.errors import InputError, Refused
from .._core.names import check_name
from .._core.values import boolean, choice, integer, known_keys, word_list

SCHEMA = 1
BRIDGE = "cnvm0"
TUNNEL = "cnvm-wg"
VXLAN = "cnvm-vx"
GATEWAY = "cnvm-gw"
GATEWAY_PORT = "cnvm-gwp"
ENCRYPTIONS = ("wireguard", "none")
WIREGUARD_BYTES = 80
VXLAN_BYTES = 50
LEAST_MTU = 576
KEEPALIVE_S = 25

Document = dict[str, t.Any]


class Settings(t.NamedTuple):
    """What the overlay is to be, the same on all hosts."""

    subnet: str = "10.100.101.0/24"
    tunnel_subnet: str = "10.100.100.0/24"
    gateway: str = ""
    encryption: str = "wireguard"
    mtu: int = 0
    vni: int = 4242
    vxlan_port: int = 4789
    masquerade: bool = True


class Member(t.NamedTuple):
    """A host of the play. ``tunnel`` and ``address`` are wishes ('' for none); ``document``: its overlay.json so far.

    ``taken``: overlay addresses of the containers that the host has.
    """

    name: str
    underlay: str
    underlay_mtu: int
    public_key: str = ""
    port: int = 51820
    tunnel: str = ""
    address: str = ""
    document: t.Optional[Document] = None
    taken: tuple[str, ...] = ()


# -- Reading what users give


def _network(value: object, option: str) -> ipaddress.IPv4Network:
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        found = ipaddress.IPv4Network(value)
    except ValueError:
        raise InputError(
            f"{option}: {value!r} is not allowed.",
            hint="Allowed: an IPv4 subnet with its length, such as '10.100.101.0/24', and no host bits set.",
        ) from None
    if not 8 <= found.prefixlen <= 29:
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: a length from /8 to /29.")
    return found


def address_of(value: object, option: str) -> str:
    """An IPv4 address of a host, written out."""
    try:
        if not isinstance(value, str):
            raise ValueError
        found = ipaddress.IPv4Address(value)
    except ValueError:
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: an IPv4 address.") from None
    if found.is_loopback or found.is_multicast or found.is_unspecified:
        raise InputError(f"{option}: {value} is no address at which another host can reach this one.")
    return str(found)


def public_key_of(value: object, option: str) -> str:
    """A WireGuard public key: 32 bytes in base64."""
    try:
        if not isinstance(value, str) or len(base64.b64decode(value, validate=True)) != 32:
            raise ValueError
    except (ValueError, binascii.Error):
        raise InputError(f"{option}: {value!r} is no WireGuard public key.") from None
    return value


def settings_from(params: t.Mapping[str, t.Any]) -> Settings:
    """Settings from the module's options; InputError names the option that is wrong."""
    subnet = _network(params["subnet"], "subnet")
    tunnels = _network(params["tunnel_subnet"], "tunnel_subnet")
    if subnet.overlaps(tunnels):
        raise InputError(f"tunnel_subnet: {tunnels} overlaps with the overlay's subnet {subnet}.")
    gateway = params.get("gateway") or str(subnet.broadcast_address - 1)
    if not _Pool(str(subnet), "gateway", ()).fits(address_of(gateway, "gateway")):
        raise InputError(f"gateway: {gateway} is not allowed.", hint=f"Allowed: a host address of {subnet}.")
    return Settings(
        subnet=str(subnet),
        tunnel_subnet=str(tunnels),
        gateway=str(gateway),
        encryption=choice(params["encryption"], "encryption", ENCRYPTIONS),
        mtu=integer(params["mtu"], "mtu", least=LEAST_MTU, most=65000)
        if params.get("mtu") not in (None, 0, "0")
        else 0,
        vni=integer(params["vni"], "vni", least=1, most=2**24 - 1),
        vxlan_port=integer(params["vxlan_port"], "vxlan_port", least=1, most=65535),
        masquerade=boolean(params["masquerade"], "masquerade"),
    )


_MEMBER_KEYS = (
    "name",
    "underlay",
    "underlay_mtu",
    "public_key",
    "port",
    "tunnel_address",
    "address",
    "overlay",
    "taken",
)


def member_from(item: object, option: str) -> Member:
    """A member from what ``state: prepared`` returned on its host."""
    fields = known_keys(item, option, _MEMBER_KEYS)
    return Member(
        name=check_name(fields.get("name"), f"{option}.name"),
        underlay=address_of(fields.get("underlay"), f"{option}.underlay"),
        underlay_mtu=integer(fields.get("underlay_mtu"), f"{option}.underlay_mtu", least=LEAST_MTU, most=65536),
        public_key=public_key_of(fields["public_key"], f"{option}.public_key") if fields.get("public_key") else "",
        port=integer(fields.get("port") or 51820, f"{option}.port", least=1, most=65535),
        tunnel=address_of(fields["tunnel_address"], f"{option}.tunnel_address") if fields.get("tunnel_address") else "",
        address=address_of(fields["address"], f"{option}.address") if fields.get("address") else "",
        document=fields.get("overlay") or None,
        taken=tuple(str(one) for one in fields.get("taken") or ()),
    )


# -- Addresses


class _Pool:
    """Addresses of one subnet: who has which, and the next free one."""

    def __init__(self, subnet: str, option: str, reserved: t.Iterable[str]) -> None:
        self.subnet = ipaddress.IPv4Network(subnet)
        self.option = option
        self.holders: dict[str, str] = {}
        self.reserved = set(reserved)

    def fits(self, address: str) -> bool:
        found = ipaddress.IPv4Address(address)
        ends = (self.subnet.network_address, self.subnet.broadcast_address)
        return found in self.subnet and found not in ends and address not in self.reserved

    def wish(self, name: str, address: str) -> None:
        if not self.fits(address):
            raise InputError(
                f"{self.option}: {address} of the host {name} is not allowed.",
                hint=f"Allowed: a host address of {self.subnet} that is not the gateway and that no container has.",
            )
        if self.holders.setdefault(address, name) != name:
            raise InputError(f"{self.option}: the hosts {self.holders[address]} and {name} both have {address}.")

    def keep(self, name: str, address: str) -> bool:
        return self.fits(address) and self.holders.setdefault(address, name) == name

    def next(self, name: str) -> str:
        for found in self.subnet.hosts():
            if self.fits(str(found)) and str(found) not in self.holders:
                self.holders[str(found)] = name
                return str(found)
        raise InputError(f"{self.option}: no address is left in {self.subnet} for the host {name}.")


def _entries(document: t.Optional[Document]) -> list[dict[str, t.Any]]:
    return [document["self"], *document.get("peers", ())] if document else []


def _revision(entry: t.Mapping[str, t.Any]) -> int:
    return int(entry.get("revision", 0))


class _Known(t.NamedTuple):
    """The newest word on each host from all members' documents: its entry, or the revision that removed it.

    A host that was down or left out by a limit comes with old words on others. So each entry has a revision of its own:
    whoever changes one gives it a higher number than all that are known.
    """

    entries: dict[str, dict[str, t.Any]]
    removed: dict[str, int]

    @property
    def newest(self) -> int:
        return max([0, *map(_revision, self.entries.values()), *self.removed.values()])


def _known(members: t.Sequence[Member]) -> _Known:
    entries: dict[str, dict[str, t.Any]] = {}
    removed: dict[str, int] = {}
    for member in members:
        for entry in _entries(member.document):
            if entry["name"] not in entries or _revision(entry) > _revision(entries[entry["name"]]):
                entries[entry["name"]] = entry
        for name, revision in (member.document or {}).get("removed", {}).items():
            removed[name] = max(revision, removed.get(name, 0))
    entries = {name: entry for name, entry in entries.items() if _revision(entry) >= removed.get(name, 0)}
    return _Known(entries, {name: revision for name, revision in removed.items() if name not in entries})


def _former_name(member: Member) -> str:
    """The name under which the others know the host so far."""
    return str(member.document["self"]["name"]) if member.document else member.name


def _assign(
    settings: Settings, members: t.Sequence[Member], known: _Known, others: t.Mapping[str, dict[str, t.Any]]
) -> dict[str, tuple[str, str]]:
    """Tunnel and overlay address of each member.

    First what was wished, then what a host has already, then the next free from the start: adding a host moves none.
    """
    taken = {address for member in members for address in member.taken}
    pools = {
        "tunnel": _Pool(settings.tunnel_subnet, "tunnel_address", ()),
        "address": _Pool(settings.subnet, "address", {settings.gateway, *taken}),
    }
    had = {
        member.name: known.entries.get(_former_name(member)) or known.entries.get(member.name, {}) for member in members
    }
    found: dict[str, dict[str, str]] = {member.name: {} for member in members}
    for key, pool in pools.items():
        for name, entry in others.items():
            pool.holders.setdefault(entry.get(key) or "", name)
        if key == "tunnel" and settings.encryption == "none":
            for member in members:
                found[member.name][key] = member.underlay
            continue
        for member in members:
            if getattr(member, key):
                pool.wish(member.name, getattr(member, key))
                found[member.name][key] = getattr(member, key)
        for member in members:
            own = had[member.name].get(key)
            if key not in found[member.name] and own and pool.keep(member.name, own):
                found[member.name][key] = own
        for member in members:
            if key not in found[member.name]:
                found[member.name][key] = pool.next(member.name)
    return {name: (each["tunnel"], each["address"]) for name, each in found.items()}


# -- The document


def mac_for(text: str) -> str:
    """A locally administered unicast MAC that stands for ``text``."""
    digits = hashlib.sha256(text.encode()).hexdigest()
    return ":".join(["02", *(digits[at : at + 2] for at in range(0, 10, 2))])


def _mtu(settings: Settings, members: t.Sequence[Member], others: t.Collection[str]) -> int:
    """One MTU for all hosts: what fits the smallest underlay, as a container takes its own along."""
    overhead = VXLAN_BYTES + (WIREGUARD_BYTES if settings.encryption == "wireguard" else 0)
    least = min(member.underlay_mtu for member in members) - overhead
    if settings.mtu:
        if settings.mtu > least:
            raise InputError(
                f"mtu: {settings.mtu} is too large for the network between the hosts.",
                hint=f"Allowed: up to {least} (its MTU less {overhead} bytes of tunnel), or 0 to have it computed.",
            )
        return settings.mtu
    if others:
        least = min([least, *(int(member.document["mtu"]) for member in members if member.document)])
    if least < LEAST_MTU:
        raise InputError(f"mtu: the network between the hosts leaves only {least} bytes; {LEAST_MTU} are needed.")
    return least


def _refuse_renumbering(settings: Settings, members: t.Sequence[Member]) -> None:
    for member in members:
        document = member.document or {}
        for key, value in (("subnet", settings.subnet), ("gateway", settings.gateway)):
            if document.get(key, value) != value:
                raise Refused(
                    f"{key}: the overlay of the host {member.name} has {document[key]}, not {value}: its containers "
                    "would lose their network.",
                    hint="Take the overlay down on all hosts first (state absent), or give the value that it has.",
                )


def _refuse_split(settings: Settings, mtu: int, members: t.Sequence[Member], others: t.Collection[str]) -> None:
    """What all hosts have to have alike does not change on some of them."""
    if not others:
        return
    wanted = {
        "encryption": settings.encryption,
        "vni": settings.vni,
        "vxlan_port": settings.vxlan_port,
        "tunnel_subnet": settings.tunnel_subnet,
        "mtu": mtu,
    }
    for key, value in wanted.items():
        if any(member.document and member.document[key] != value for member in members):
            raise Refused(
                f"{key}: it cannot become {value} on some hosts only; {', '.join(sorted(others))} would be left out.",
                hint="Run the play on all hosts, or name those that are gone in removed.",
            )


def document_for(name: str, settings: Settings, members: t.Sequence[Member], removed: object = None) -> Document:
    """overlay.json of the host ``name``."""
    own = {member.name: member for member in members}
    # SSH, which knows the hosts by their names, takes capitals for small letters.
    if len({each.lower() for each in own}) != len(members):
        raise InputError("members: a host is named twice, or the names of two differ in capitals only.")
    if name not in own:
        raise InputError(f"members: the host {name} itself is missing.")
    going = word_list(removed, "removed")
    both = sorted(set(own).intersection(going))
    if both:
        raise InputError(f"removed: {both[0]} is a member of this play.", hint="Leave it out of one of the two.")
    _refuse_renumbering(settings, members)
    subnets = [ipaddress.IPv4Network(settings.subnet)]
    if settings.encryption == "wireguard":
        subnets.append(ipaddress.IPv4Network(settings.tunnel_subnet))
    for member in members:
        for subnet in subnets:
            if ipaddress.IPv4Address(member.underlay) in subnet:
                raise InputError(
                    f"members: {member.underlay}, at which {member.name} is reached, lies in {subnet} of the overlay.",
                    hint="Choose another subnet, or the host's address outside the overlay.",
                )
    known = _known(members)
    # A member that has another name than before is the same host.
    leaving = {*going, *map(_former_name, members)} - set(own)
    others = {each: entry for each, entry in known.entries.items() if each not in own and each not in leaving}
    mtu = _mtu(settings, members, others)
    _refuse_split(settings, mtu, members, others)
    places = _assign(settings, members, known, others)
    revision = known.newest + 1
    entries = {
        each.name: _entry(each, *places[each.name], encrypted=settings.encryption == "wireguard") for each in members
    }
    for each, entry in entries.items():
        before = known.entries.get(each, {})
        entry["revision"] = _revision(before)
        if entry != before:
            entry["revision"] = revision
    peers = [entry for peer, entry in sorted({**others, **entries}.items()) if peer != name]
    return {
        "schema": SCHEMA,
        "subnet": settings.subnet,
        "gateway": settings.gateway,
        "gateway_mac": mac_for(f"gateway {settings.gateway}"),
        "bridge": BRIDGE,
        "mtu": mtu,
        "encryption": settings.encryption,
        "tunnel_subnet": settings.tunnel_subnet,
        "vni": settings.vni,
        "vxlan_port": settings.vxlan_port,
        "masquerade": settings.masquerade,
        "self": entries[name],
        "peers": peers,
        "removed": {
            **{each: number for each, number in known.removed.items() if each not in own},
            **{each: revision for each in leaving if each in known.entries},
        },
    }


def _entry(member: Member, tunnel: str, address: str, *, encrypted: bool) -> dict[str, t.Any]:
    entry = {"name": member.name, "tunnel": tunnel, "underlay": member.underlay, "address": address}
    if encrypted:
        entry["endpoint"] = f"{member.underlay}:{member.port}"
        entry["public_key"] = member.public_key
    return entry


def bridge_mac(name: str) -> str:
    """The MAC of the bridge of the host ``name``: fixed, or it would change with the containers that come and go."""
    return mac_for(f"bridge {name}")


def newcomers(before: t.Optional[Document], document: Document, members: t.Collection[str]) -> list[dict[str, t.Any]]:
    """Peers with an address that this host has not known as theirs, while hosts are left out: a container on one of
    those may have it."""
    if not before or {peer["name"] for peer in document["peers"]} <= set(members):
        return []
    names = {entry["name"] for entry in _entries(document)}
    known = {(entry["name"], entry["address"]) for entry in _entries(before)}
    # Of a host that has another name now, or has left.
    free = {entry["address"] for entry in _entries(before) if entry["name"] not in names}
    peers = [peer for peer in document["peers"] if peer["address"] not in free]
    return [peer for peer in peers if (peer["name"], peer["address"]) not in known]


def encrypted(document: Document) -> bool:
    """Whether the hosts talk through WireGuard."""
    return bool(document["encryption"] == "wireguard")


def subnets(document: Document) -> dict[str, str]:
    """What lies on the hosts' links, by option."""
    return {option: document[option] for option in ("subnet", *(["tunnel_subnet"] if encrypted(document) else []))}


def listen_port(document: Document) -> int:
    """The port at which this host's WireGuard listens."""
    return int(document["self"]["endpoint"].rpartition(":")[2])


def tunnel_mtu(document: Document) -> int:
    """What fits into one packet between two tunnel addresses."""
    return int(document["mtu"]) + VXLAN_BYTES


def wireguard_conf(document: Document, private_key: str) -> str:
    """For ``wg syncconf``. The keepalive keeps firewalls' state and the session's key fresh: a move starts at once."""
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"ListenPort = {listen_port(document)}"]
    for peer in document["peers"]:
        lines += [
            "",
            "[Peer]",
            f"PublicKey = {peer['public_key']}",
            f"Endpoint = {peer['endpoint']}",
            f"AllowedIPs = {peer['tunnel']}/32",
            f"PersistentKeepalive = {KEEPALIVE_S}",
        ]
    return "\n".join(lines) + "\n"
