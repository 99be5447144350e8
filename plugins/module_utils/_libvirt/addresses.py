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
# Leases as they are told from renewed ones: (MAC, address, when it ends).
Leases = frozenset[tuple[str, str, int]]

_COMPLETE, _PERMANENT = 0x2, 0x4


def _answered(text: str) -> t.Iterator[tuple[str, str, str, int]]:
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 6 and int(fields[2], 16) & _COMPLETE:
            yield fields[3].lower(), fields[0], fields[5], int(fields[2], 16)


def from_arp(text: str) -> Seen:
    """/proc/net/arp: only entries that were answered."""
    found: Seen = {}
    for mac, address, _device, _flags in _answered(text):
        found.setdefault(mac, []).append(address)
    return found


def learnt(text: str, macs: t.Collection[str], given: t.Collection[str]) -> list[tuple[str, str]]:
    """(address, device) of what /proc/net/arp has of ``macs``, or of the addresses that they are ``given``, and nobody
    has put there for good."""
    return [
        (ip, device)
        for mac, ip, device, flags in _answered(text)
        if (mac in macs or ip in given) and not flags & _PERMANENT
    ]


def _identified(lease: t.Mapping[str, t.Any]) -> tuple[str, str, int]:
    return str(lease.get("mac") or "").lower(), str(lease.get("ipaddr") or ""), int(lease.get("expirytime") or 0)


def leases_of(leases: t.Iterable[t.Mapping[str, t.Any]], macs: t.Collection[str]) -> Leases:
    """libvirt's leases that ``macs`` have. One that was renewed is another one."""
    return frozenset(each for each in map(_identified, leases) if each[0] in macs)


def from_leases(leases: t.Iterable[t.Mapping[str, t.Any]], now: float, old: Leases = frozenset()) -> Seen:
    """libvirt's leases, newest first, without those that have run out and without ``old`` ones."""
    found: Seen = {}
    valid = [each for each in map(_identified, leases) if (not each[2] or each[2] > now) and each not in old]
    for mac, address, _ends in sorted(valid, key=lambda lease: -(lease[2] or 2**62)):
        if mac and address and address not in found.setdefault(mac, []):
            found[mac].append(address)
    return found


def from_interfaces(interfaces: t.Optional[t.Mapping[str, t.Mapping[str, t.Any]]]) -> Seen:
    """What libvirt's interfaceAddresses returns."""
    found: Seen = {}
    for each in (interfaces or {}).values():
        addresses = [str(one["addr"]) for one in each.get("addrs") or [] if one.get("addr")]
        if each.get("hwaddr"):
            found.setdefault(str(each["hwaddr"]).lower(), []).extend(addresses)
    return found


def parsed(said: object) -> t.Optional[t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]]:
    """The address that somebody says it is; None for anything else.

    What follows a % names a link on which it holds, and may be any text, also one for a shell: that is none.
    """
    try:
        return None if "%" in str(said) else ipaddress.ip_address(str(said))
    except ValueError:
        return None


def usable(address: str) -> bool:
    """Whether others can reach a guest there: not its loopback, and not an address that holds on one link only."""
    found = parsed(address)
    return found is not None and not (
        found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast
    )


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
