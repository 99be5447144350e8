# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What must be done so that a host's links are as overlay.json says: the difference only, so that nothing else breaks.

The bridge has the host's own address and MAC. The gateway's address and MAC, the same on every host, are at the end of
a veth pair of their own: if the bridge had them, hosts could not talk to each other through the overlay.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import typing as t

from .overlay import (
    BRIDGE,
    GATEWAY,
    GATEWAY_PORT,
    KEEPALIVE_S,
    TUNNEL,
    VXLAN,
    Document,
    bridge_mac,
    encrypted,
    listen_port,
    tunnel_mtu,
)

_FLOOD = "00:00:00:00:00:00"
# Last of all routes: only when the tunnel has gone. The protocol makes network managers leave it alone.
LAST = "proto kernel metric 4294967294"
_FRESH_S = 180


@dataclasses.dataclass(frozen=True)
class Link:
    """A network interface as ``ip -j -d addr show`` describes it."""

    name: str
    kind: str = ""
    up: bool = False
    mtu: int = 0
    mac: str = ""
    master: str = ""
    addresses: tuple[str, ...] = ()
    data: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Flood:
    """An entry of the bridges' tables as ``bridge -j fdb show`` describes it."""

    mac: str
    link: str
    destination: str = ""
    state: str = ""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A peer as ``wg show IF dump`` describes it."""

    public_key: str
    endpoint: str = ""
    allowed: str = ""
    handshake_s: int = 0
    received: int = 0
    sent: int = 0
    keepalive_s: int = 0


@dataclasses.dataclass(frozen=True)
class WireGuard:
    """The interface itself: no private key is kept."""

    public_key: str
    port: int
    peers: tuple[Peer, ...] = ()


@dataclasses.dataclass(frozen=True)
class Live:
    """The network of a host as it is."""

    links: t.Mapping[str, Link]
    floods: tuple[Flood, ...] = ()
    wireguard: t.Optional[WireGuard] = None
    fallback: bool = False  # the route that catches what is for the tunnel when the tunnel has gone
    rules: tuple[str, ...] = ()  # families in which the rules are in place
    sysctl: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is missing, in the order in which it is done."""

    rules: bool = False
    make_tunnel: bool = False
    drop_tunnel: bool = False
    wireguard: bool = False
    ip: tuple[str, ...] = ()
    sysctl: tuple[tuple[str, str], ...] = ()
    fdb: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Steps()

    def texts(self) -> list[str]:
        """For people: one line each."""
        return [
            *(["packet filter"] if self.rules else []),
            *([f"remove {TUNNEL}"] if self.drop_tunnel else []),
            *([f"make {TUNNEL}"] if self.make_tunnel else []),
            *(["WireGuard peers"] if self.wireguard else []),
            *(f"ip {line}" for line in self.ip),
            *(f"sysctl {name}={value}" for name, value in self.sysctl),
            *(f"bridge {line}" for line in self.fdb),
        ]


# -- Reading the tools


def parse_links(text: str) -> dict[str, Link]:
    """From ``ip -j -d addr show``."""
    found = {}
    for entry in json.loads(text or "[]"):
        info = entry.get("linkinfo") or {}
        found[entry["ifname"]] = Link(
            name=entry["ifname"],
            kind=info.get("info_kind") or "",
            up="UP" in entry.get("flags", ()),
            mtu=int(entry.get("mtu", 0)),
            mac=entry.get("address") or "",
            master=entry.get("master") or "",
            addresses=tuple(
                f"{each['local']}/{each['prefixlen']}"
                for each in entry.get("addr_info", ())
                if each.get("family") == "inet"
            ),
            data=info.get("info_data") or {},
        )
    return found


def parse_floods(text: str) -> tuple[Flood, ...]:
    """From ``bridge -j fdb show``."""
    return tuple(
        Flood(entry["mac"], entry.get("ifname", ""), entry.get("dst", ""), entry.get("state", ""))
        for entry in json.loads(text or "[]")
    )


def parse_wireguard(text: str) -> t.Optional[WireGuard]:
    """From ``wg show IF dump``, whose first line has the private key; it is left behind here."""
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    peers = tuple(
        Peer(
            public_key=fields[0],
            endpoint="" if fields[2] == "(none)" else fields[2],
            allowed=fields[3],
            handshake_s=int(fields[4]),
            received=int(fields[5]),
            sent=int(fields[6]),
            keepalive_s=0 if fields[7] == "off" else int(fields[7]),
        )
        for fields in lines[1:]
    )
    return WireGuard(public_key=lines[0][1], port=int(lines[0][2]), peers=peers)


# -- The difference


def wanted_sysctl(document: Document) -> dict[str, str]:
    """Each interface answers ARP for its own address only, and takes what comes by another way than answers go.

    ``route_localnet``: a program on the host may use a port forward through 127.0.0.1 (the rules keep strangers out).
    """
    bridge = document["bridge"]
    return {
        "net.ipv4.ip_forward": "1",
        f"net.ipv4.conf.{bridge}.forwarding": "1",
        f"net.ipv4.conf.{bridge}.arp_ignore": "1",
        f"net.ipv4.conf.{bridge}.arp_announce": "2",
        f"net.ipv4.conf.{bridge}.rp_filter": "2",
        f"net.ipv4.conf.{bridge}.route_localnet": "1",
        f"net.ipv4.conf.{GATEWAY}.forwarding": "1",
        f"net.ipv4.conf.{GATEWAY}.arp_ignore": "1",
        f"net.ipv4.conf.{GATEWAY}.rp_filter": "2",
    }


def plan(document: Document, live: Live, now_s: int, *, ipv6: bool = True) -> Steps:
    """What is missing. ``now_s``: seconds since 1970, to tell an endpoint that works from one that does not."""
    wireguard = encrypted(document)
    lines: list[str] = []
    if wireguard:
        lines += _tunnel_lines(document, live)
    elif live.fallback:
        lines.append(f"route del unreachable {document['tunnel_subnet']} {LAST}")
    lines += _bridge_lines(document, live, ipv6)
    vxlan_lines, vxlan_new = _vxlan_lines(document, live, ipv6)
    lines += vxlan_lines
    gateway_lines, gateway_new = _gateway_lines(document, live, ipv6)
    lines += gateway_lines
    return Steps(
        rules=set(live.rules) != {"ip", "bridge"},
        make_tunnel=wireguard and TUNNEL not in live.links,
        drop_tunnel=not wireguard and TUNNEL in live.links,
        wireguard=wireguard and not _wireguard_right(document, live.wireguard, now_s),
        ip=tuple(lines),
        sysctl=tuple(
            (name, value) for name, value in wanted_sysctl(document).items() if live.sysctl.get(name) != value
        ),
        fdb=tuple(_flood_lines(document, live, vxlan_new=vxlan_new, gateway_new=gateway_new)),
    )


def _common(link: t.Optional[Link], name: str, ipv6: bool, *, mtu: int, mac: str = "", master: str = "") -> list[str]:
    """What all links have to have: set when they are new or differ. Up comes last.

    A new link is made with its MAC: between making it and setting one, udev would give it one of its own.
    """
    lines = []
    if link is None and ipv6:
        lines.append(f"link set dev {name} addrgenmode none")
    if link is None or link.mtu != mtu:
        lines.append(f"link set dev {name} mtu {mtu}")
    if mac and link is not None and link.mac != mac:
        lines.append(f"link set dev {name} address {mac}")
    if master and (link is None or link.master != master):
        lines.append(f"link set dev {name} master {master}")
    return lines


def _up(link: t.Optional[Link], name: str) -> list[str]:
    return [] if link and link.up else [f"link set dev {name} up"]


def _addresses(link: t.Optional[Link], name: str, wanted: str) -> list[str]:
    has = link.addresses if link else ()
    lines = [f"addr del {address} dev {name}" for address in has if address != wanted]
    return lines if wanted in has else [*lines, f"addr add {wanted} dev {name}"]


def _tunnel_lines(document: Document, live: Live) -> list[str]:
    link = live.links.get(TUNNEL)
    length = ipaddress.IPv4Network(document["tunnel_subnet"]).prefixlen
    return [
        *([] if live.fallback else [f"route replace unreachable {document['tunnel_subnet']} {LAST}"]),
        *_common(link, TUNNEL, False, mtu=tunnel_mtu(document)),
        *_addresses(link, TUNNEL, f"{document['self']['tunnel']}/{length}"),
        *_up(link, TUNNEL),
    ]


def _bridge_lines(document: Document, live: Live, ipv6: bool) -> list[str]:
    link = live.links.get(BRIDGE)
    length = ipaddress.IPv4Network(document["subnet"]).prefixlen
    mac = bridge_mac(document["self"]["name"])
    options = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    make = [f"link add name {BRIDGE} address {mac} {options}"]
    return [
        *(make if link is None else []),
        *_common(link, BRIDGE, ipv6, mtu=document["mtu"], mac=mac),
        *_addresses(link, BRIDGE, f"{document['self']['address']}/{length}"),
        *_up(link, BRIDGE),
    ]


def _vxlan_lines(document: Document, live: Live, ipv6: bool) -> tuple[list[str], bool]:
    """Also whether the link is a new one, which has no entries yet.

    It is not bound to the tunnel's interface: it would go with it when wireguard-go is started anew.
    """
    link = live.links.get(VXLAN)
    wanted = {"id": document["vni"], "port": document["vxlan_port"], "local": document["self"]["tunnel"]}
    right = link is not None and all(link.data.get(key) == value for key, value in wanted.items())
    lines = []
    if not right:
        words = f"id {wanted['id']} local {wanted['local']} dstport {wanted['port']} learning ttl 64"
        lines = [f"link del {VXLAN}"] if link else []
        lines.append(f"link add name {VXLAN} type vxlan {words}")
        link = None
    lines += _common(link, VXLAN, ipv6, mtu=document["mtu"], master=BRIDGE)
    return [*lines, *_up(link, VXLAN)], not right


def _gateway_lines(document: Document, live: Live, ipv6: bool) -> tuple[list[str], bool]:
    end, port = live.links.get(GATEWAY), live.links.get(GATEWAY_PORT)
    right = end is not None and port is not None
    lines = []
    if not right:
        lines = [f"link del {link.name}" for link in (end, port) if link]
        lines.append(f"link add name {GATEWAY} address {document['gateway_mac']} type veth peer name {GATEWAY_PORT}")
        end = port = None
    return [
        *lines,
        *_common(end, GATEWAY, ipv6, mtu=document["mtu"], mac=document["gateway_mac"]),
        *_addresses(end, GATEWAY, f"{document['gateway']}/32"),
        *_common(port, GATEWAY_PORT, ipv6, mtu=document["mtu"], master=BRIDGE),
        *_up(end, GATEWAY),
        *_up(port, GATEWAY_PORT),
    ], not right


def _flood_lines(document: Document, live: Live, *, vxlan_new: bool, gateway_new: bool) -> list[str]:
    has = [] if vxlan_new else [flood for flood in live.floods if flood.link == VXLAN and flood.destination]
    wanted = {peer["tunnel"] for peer in document["peers"]}
    flooded = {flood.destination for flood in has if flood.mac == _FLOOD}
    lines = [f"fdb append {_FLOOD} dev {VXLAN} dst {address}" for address in sorted(wanted - flooded)]
    # What was learnt of a host that is gone goes, too.
    lines += [
        f"fdb del {flood.mac} dev {VXLAN} dst {flood.destination} self"
        for flood in has
        if flood.destination not in wanted
    ]
    mac = document["gateway_mac"]
    pinned = any(
        flood.mac == mac and flood.link == GATEWAY_PORT and flood.state in ("static", "permanent")
        for flood in live.floods
    )
    if gateway_new or not pinned:
        # Entries age: without this one the containers' traffic to the gateway would be shown to all of them.
        lines.append(f"fdb replace {mac} dev {GATEWAY_PORT} master static")
    return lines


def _wireguard_right(document: Document, live: t.Optional[WireGuard], now_s: int) -> bool:
    if live is None or live.public_key != document["self"]["public_key"] or live.port != listen_port(document):
        return False
    has = {peer.public_key: peer for peer in live.peers}
    if set(has) != {peer["public_key"] for peer in document["peers"]}:
        return False
    for wanted in document["peers"]:
        peer = has[wanted["public_key"]]
        # A peer that talks from another address than it was written down with is followed by WireGuard.
        fresh = now_s - peer.handshake_s < _FRESH_S
        if peer.allowed != f"{wanted['tunnel']}/32" or peer.keepalive_s != KEEPALIVE_S:
            return False
        if peer.endpoint != wanted["endpoint"] and not fresh:
            return False
    return True
