# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which routes of a host are in the way of a subnet."""

from __future__ import annotations

import ipaddress

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._net.routes import Route, in_the_way, parse_routes

# ip -j -4 route show, iproute2 6.1.
ROUTES = """[
{"dst":"default","gateway":"172.16.0.1","dev":"eth0","flags":[]},
{"dst":"10.0.0.0/8","gateway":"172.16.0.254","dev":"eth0","flags":[]},
{"type":"unreachable","dst":"10.100.100.0/24","protocol":"kernel","metric":4294967294,"flags":[]},
{"dst":"172.16.0.0/30","dev":"eth0","protocol":"kernel","scope":"link","prefsrc":"172.16.0.2","flags":[]},
{"dst":"192.168.122.0/24","dev":"virbr0","protocol":"kernel","scope":"link","prefsrc":"192.168.122.1","flags":["linkdown"]},
{"dst":"192.168.200.7","dev":"tun0","scope":"link","flags":[]}
]
"""


def test_parse_routes() -> None:
    found = parse_routes(ROUTES)
    assert [(str(route.subnet), route.device, route.connected) for route in found] == [
        ("10.0.0.0/8", "eth0", False),
        ("10.100.100.0/24", "", False),
        ("172.16.0.0/30", "eth0", True),
        ("192.168.122.0/24", "virbr0", True),
        ("192.168.200.7/32", "tun0", True),
    ]
    assert parse_routes("") == parse_routes("[]") == []


@pytest.mark.parametrize(
    ("subnet", "wrong", "doubtful"),
    [
        ("192.168.150.0/24", "", ""),
        ("192.168.122.0/24", "the host's route to 192.168.122.0/24 at virbr0", ""),
        ("192.168.122.0/25", "the host's route to 192.168.122.0/24 at virbr0", ""),
        ("192.168.0.0/16", "the host's route to 192.168.122.0/24 at virbr0", ""),
        ("192.168.200.0/24", "the host's route to 192.168.200.7/32 at tun0", ""),
        ("172.16.0.0/24", "the host's route to 172.16.0.0/30 at eth0", ""),
        ("10.0.0.0/8", "the host's route to 10.0.0.0/8 at eth0", ""),
        ("10.5.0.0/24", "", "the host's route to 10.0.0.0/8 at eth0, of which less can be reached then"),
        ("10.100.100.0/24", "the host's route to 10.100.100.0/24", "10.0.0.0/8"),
    ],
)
def test_in_the_way(subnet: str, wrong: str, doubtful: str) -> None:
    found, maybe = in_the_way(subnet, parse_routes(ROUTES), frozenset())
    assert (found[0] if found else "") == wrong
    assert doubtful in (maybe[0] if maybe else "")


def test_own_bridge_is_not_in_the_way() -> None:
    route = Route(ipaddress.IPv4Network("192.168.122.0/24"), "virbr0", True)
    assert in_the_way("192.168.122.0/24", [route], frozenset(["virbr0"])) == ([], [])
    assert in_the_way("192.168.122.0/24", [route], frozenset(["virbr1"])) != ([], [])
