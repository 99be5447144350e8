# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The packet filter's rules, as text for ``nft -f -``. Each text is one transaction that replaces what was there."""

from __future__ import annotations

import hashlib

from .endpoint import Endpoint, forward_table, guard_table
from .overlay import GATEWAY, TUNNEL, VXLAN, Document, bridge_mac, encrypted


def drop_table(family: str, table: str) -> str:
    """Remove a table whether or not it is there: adding one that exists is no error, deleting one that does not is."""
    return f"add table {family} {table}\ndelete table {family} {table}\n"


def guard_rules(spec: Endpoint) -> str:
    """Only ARP and IPv4 with the container's own MAC and address may come out of its link.

    Hooked into the link itself: costs other traffic nothing, and goes when the link goes.
    """
    table = guard_table(spec.uuid)
    return (
        drop_table("netdev", table)
        + f"""table netdev {table} {{
  chain ingress {{
    type filter hook ingress device "{spec.host_link}" priority 0; policy accept;
    ether saddr != {spec.mac} drop
    arp saddr ether != {spec.mac} drop
    arp saddr ip != {{ {spec.address}, 0.0.0.0 }} drop
    ether type ip ip saddr != {spec.address} drop
    ether type != {{ arp, ip }} drop
  }}
}}
"""
    )


def forward_rules(spec: Endpoint) -> str:
    """Lead ports of the host to the container, for clients outside, on the host itself and on the overlay.

    The container sees this host's overlay address as the client. So its answers come back here even when it has moved
    to another host, and connections that were made through the forward live on. Clients that are on the overlay
    themselves are seen as the gateway: their answers must be routed, and bridged packets are not.
    """
    table = forward_table(spec.name)
    if not spec.ports:
        return drop_table("ip", table)
    leads = []
    for forward in spec.ports:
        where = f"ip daddr {forward.host_address}" if forward.host_address else "fib daddr type local"
        leads.append(
            f"    {where} {forward.protocol} dport {forward.host_port} dnat to {spec.address}:{forward.container_port}"
        )
    rules = "\n".join(leads)
    return (
        drop_table("ip", table)
        + f"""table ip {table} {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
{rules}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{rules}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ct status dnat ip daddr {spec.address} ip saddr {spec.subnet} snat to {spec.gateway}
    ct status dnat ip daddr {spec.address} masquerade
  }}
}}
"""
    )


def overlay_tables() -> tuple[tuple[str, str], ...]:
    """Family and name of the tables that belong to the overlay itself."""
    return (("ip", "cnvm_overlay"), ("bridge", "cnvm_overlay"))


def version_chain(document: Document) -> str:
    """The name of an empty chain that says which rules are in place, as rules themselves do not print as written."""
    return f"rules_{hashlib.sha256(_overlay_rules(document, 'x').encode()).hexdigest()[:12]}"


def overlay_rules(document: Document) -> str:
    """What the packet filter does for the overlay.

    The gateway address is on every host: neither ARP for it nor its MAC may cross to another host. VXLAN is let in from
    the tunnel alone and never out beside it. Containers and guests reach the world as the host, but open no connection
    to the hosts' tunnels, neither to another's nor to that of their own; nor does anybody else but the hosts. Linux
    would take packets for a tunnel's address wherever they come from, and what listens there trusts its peers: QEMU
    takes a guest's memory and its disks from whoever comes first.

    Where bridged packets pass the IP filter too (br_netfilter, as Docker wants it), they must leave no trace in the
    connection table: a packet on its way to the gateway would be taken for known there and not be masqueraded. Nor does
    VXLAN itself belong there: it uses many source ports and has no answers.
    """
    return _overlay_rules(document, version_chain(document))


def _overlay_rules(document: Document, mark: str) -> str:
    gateway, mac, port = document["gateway"], document["gateway_mac"], document["vxlan_port"]
    inside = f'{{ "{document["bridge"]}", "{GATEWAY}" }}'
    if encrypted(document):
        vxlan_in = f'udp dport {port} iifname != "{TUNNEL}" drop'
        beside = f'ip daddr {document["self"]["tunnel"]} iifname != {{ "{TUNNEL}", "lo" }} drop'
        vxlan_out = f'udp dport {port} oifname != "{TUNNEL}" drop'
        tunnels = f'iifname {inside} oifname "{TUNNEL}" ct state != {{ established, related }} drop'
    else:
        peers = ", ".join(sorted(peer["underlay"] for peer in document["peers"]))
        vxlan_in = f"udp dport {port} ip saddr != {{ {peers} }} drop" if peers else f"udp dport {port} drop"
        beside = vxlan_out = tunnels = ""
    forward = egress = ""
    if document["masquerade"]:
        forward = f"""
    oifname "{document["bridge"]}" iifname != {inside} ct state established,related accept
    oifname "{document["bridge"]}" iifname != {inside} ct status dnat accept
    oifname "{document["bridge"]}" iifname != {inside} drop"""
        egress = f"ip saddr {document['subnet']} ip daddr != {document['subnet']} oifname != {inside} masquerade"
    drops = "".join(drop_table(family, table) for family, table in overlay_tables())
    return f"""{drops}table ip cnvm_overlay {{
  chain {mark} {{
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname {inside} ip daddr 127.0.0.0/8 drop
    iifname "{document["bridge"]}" ether daddr != {bridge_mac(document["self"]["name"])} notrack
    udp dport {port} notrack
  }}
  chain raw_output {{
    type filter hook output priority -300; policy accept;
    udp dport {port} notrack
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    {vxlan_in}
    {beside}
  }}
  chain output {{
    type filter hook output priority -10; policy accept;
    {vxlan_out}
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    {tunnels}{forward}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    {egress}
  }}
}}
table bridge cnvm_overlay {{
  chain {mark} {{
  }}
  chain gateway {{
    ether saddr {mac} drop
    ether daddr {mac} drop
    arp saddr ip {gateway} drop
    arp daddr ip {gateway} drop
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{VXLAN}" jump gateway
  }}
  chain postrouting {{
    type filter hook postrouting priority 300; policy accept;
    oifname "{VXLAN}" jump gateway
  }}
}}
"""
