# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What is in the way of a subnet on a host."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import typing as t


@dataclasses.dataclass(frozen=True)
class Route:
    """A route of the host. ``connected``: the subnet is at the end of the wire, not behind a router."""

    subnet: ipaddress.IPv4Network
    device: str = ""
    connected: bool = False


def parse_routes(text: str) -> list[Route]:
    """From ``ip -j -4 route show``; the default route is none, as everything is more exact than that."""
    found = []
    for entry in json.loads(text or "[]"):
        if entry.get("dst", "default") != "default":
            found.append(
                Route(
                    ipaddress.IPv4Network(entry["dst"], strict=False),
                    entry.get("dev", ""),
                    entry.get("scope") == "link" and "gateway" not in entry,
                )
            )
    return found


def overlap(one: str, other: str) -> bool:
    """Whether two subnets have an address in common."""
    return ipaddress.IPv4Network(one).overlaps(ipaddress.IPv4Network(other))


def in_the_way(subnet: str, routes: t.Iterable[Route], own: t.Collection[str]) -> tuple[list[str], list[str]]:
    """What forbids ``subnet`` on this host, and what only deserves a warning, as the ends of sentences. Routes through
    the devices ``own`` do not count: they go with the networks that are changed.

    A subnet inside of one that is reached through a router is usual where a site routes 10.0.0.0/8 as a whole; then it
    hides a part of it. Everything else that overlaps would take addresses away from machines that can be reached now.
    """
    wanted = ipaddress.IPv4Network(subnet)
    wrong, doubtful = [], []
    for route in routes:
        if not wanted.overlaps(route.subnet) or route.device in own:
            continue
        device = f" at {route.device}" if route.device else ""
        if route.connected or not wanted.subnet_of(route.subnet) or wanted == route.subnet:
            wrong.append(f"the host's route to {route.subnet}{device}")
        else:
            doubtful.append(f"the host's route to {route.subnet}{device}, of which less can be reached then")
    return wrong, doubtful
