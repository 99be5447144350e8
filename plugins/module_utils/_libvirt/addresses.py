# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The addresses that a guest was seen to have, and who saw them: a DHCP server, the agent inside, or the host's ARP.

What a definition says that a guest should have is never taken for one that it has.
"""

from __future__ import annotations

import ipaddress
import typing as t

LEASE, AGENT, ARP = "lease", "agent", "arp"
SOURCES = (LEASE, AGENT, ARP)

# {MAC: [address, …]}
Seen = dict[str, list[str]]

_COMPLETE = 0x2


def from_arp(text: str) -> Seen:
    """/proc/net/arp: only entries that were answered."""
    found: Seen = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 6 and int(fields[2], 16) & _COMPLETE:
            found.setdefault(fields[3].lower(), []).append(fields[0])
    return found


def from_leases(leases: t.Iterable[t.Mapping[str, t.Any]], now: float) -> Seen:
    """libvirt's leases of a network, newest first, without those that have run out."""
    found: Seen = {}
    valid = [each for each in leases if not each.get("expirytime") or each["expirytime"] > now]
    for each in sorted(valid, key=lambda lease: -int(lease.get("expirytime") or 2**62)):
        if each.get("mac") and each.get("ipaddr"):
            known = found.setdefault(str(each["mac"]).lower(), [])
            if each["ipaddr"] not in known:
                known.append(str(each["ipaddr"]))
    return found


def from_interfaces(interfaces: t.Optional[t.Mapping[str, t.Mapping[str, t.Any]]]) -> Seen:
    """What libvirt's interfaceAddresses returns."""
    found: Seen = {}
    for each in (interfaces or {}).values():
        addresses = [str(one["addr"]) for one in each.get("addrs") or [] if one.get("addr")]
        if each.get("hwaddr"):
            found.setdefault(str(each["hwaddr"]).lower(), []).extend(addresses)
    return found


def usable(address: str) -> bool:
    """Whether others can reach a guest there: not its loopback, and not an address that holds on one link only."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return not (found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast)


def choose(macs: t.Sequence[str], seen: t.Mapping[str, Seen]) -> list[dict[str, str]]:
    """The addresses of a guest's cards, best first: ``address``, ``mac`` and ``source``, each address once.

    ``seen``: by source. First the cards in their order, IPv4 before IPv6, then the sources as in SOURCES.
    """
    found: list[tuple[tuple[int, bool, int], dict[str, str]]] = []
    known: set[str] = set()
    for order, source in enumerate(SOURCES):
        for index, mac in enumerate(macs):
            for address in seen.get(source, {}).get(mac, []):
                if usable(address) and address not in known:
                    known.add(address)
                    found.append(((index, ":" in address, order), {"address": address, "mac": mac, "source": source}))
    return [each for _rank, each in sorted(found, key=lambda pair: pair[0])]
