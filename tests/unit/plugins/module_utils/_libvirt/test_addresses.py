# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import addresses

A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"

ARP = """IP address       HW type     Flags       HW address            Mask     Device
192.168.122.50   0x1         0x2         52:54:00:00:00:01     *        virbr0
192.168.122.51   0x1         0x0         00:00:00:00:00:00     *        virbr0
10.100.101.30    0x1         0x6         52:54:00:00:00:02     *        cnvm0
"""


def test_arp_knows_those_that_answered() -> None:
    assert addresses.from_arp(ARP) == {A: ["192.168.122.50"], B: ["10.100.101.30"]}
    assert addresses.from_arp("") == {}


def test_leases_that_ran_out_are_no_address() -> None:
    leases = [
        {"mac": A, "ipaddr": "192.168.122.9", "expirytime": 100, "type": 0},
        {"mac": A, "ipaddr": "192.168.122.10", "expirytime": 5000},
        {"mac": A, "ipaddr": "192.168.122.11", "expirytime": 9000},
        {"mac": A.upper(), "ipaddr": "192.168.122.12", "expirytime": 0},
        {"mac": "", "ipaddr": "192.168.122.13", "expirytime": 9000},
    ]
    assert addresses.from_leases(leases, now=1000) == {A: ["192.168.122.12", "192.168.122.11", "192.168.122.10"]}


def test_leases_of_an_earlier_run_are_no_address_until_they_are_renewed() -> None:
    before = [
        {"mac": A.upper(), "ipaddr": "192.168.122.10", "expirytime": 5000},
        {"mac": A, "ipaddr": "192.168.122.12", "expirytime": 0},
        {"mac": B, "ipaddr": "192.168.122.20", "expirytime": 5000},
    ]
    old = addresses.leases_of(before, {A})
    assert addresses.from_leases(before, 1000, old) == {B: ["192.168.122.20"]}
    after = [{**before[0], "expirytime": 5060}, *before[1:]]
    assert addresses.from_leases(after, 1000, old) == {A: ["192.168.122.10"], B: ["192.168.122.20"]}


def test_what_was_learnt_by_arp_and_by_nobody_said() -> None:
    assert addresses.learnt(ARP, {A, B}, {"10.0.0.1"}) == [("192.168.122.50", "virbr0")]
    assert addresses.learnt(ARP, {B}, ()) == []
    # A guest that is gone had the address that one is to have now.
    assert addresses.learnt(ARP, {B}, {"192.168.122.50"}) == [("192.168.122.50", "virbr0")]


def test_the_agent_tells_of_all_interfaces() -> None:
    told: dict[str, dict[str, t.Any]] = {
        "lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1", "prefix": 8, "type": 0}]},
        "enp1s0": {"hwaddr": A, "addrs": [{"addr": "192.168.122.50"}, {"addr": "fe80::1"}, {"addr": "2001:db8::1"}]},
        "tun0": {"hwaddr": None, "addrs": None},
    }
    assert addresses.from_interfaces(told)[A] == ["192.168.122.50", "fe80::1", "2001:db8::1"]
    assert addresses.from_interfaces(None) == {}


def test_choose_the_first_card_then_ipv4_then_the_best_source() -> None:
    found = addresses.choose(
        [A, B],
        {
            "arp": {A: ["192.168.122.60"], B: ["10.0.0.1"]},
            "lease": {A: ["192.168.122.50"], "52:54:00:00:00:99": ["192.168.122.99"]},
            "agent": {A: ["2001:db8::1", "192.168.122.50", "fe80::1", "127.0.0.1"]},
        },
    )
    assert [(one["address"], one["source"]) for one in found] == [
        ("192.168.122.50", "lease"),
        ("192.168.122.60", "arp"),
        ("2001:db8::1", "agent"),
        ("10.0.0.1", "arp"),
    ]
    assert found[-1]["mac"] == B


def test_an_address_that_nobody_saw_is_none() -> None:
    assert addresses.choose([A], {}) == []


def test_usable() -> None:
    good = ["10.0.0.1", "2001:db8::1"]
    bad = ["127.0.0.1", "169.254.1.1", "fe80::1%eth0", "::1", "0.0.0.0", "224.0.0.1", "x"]
    bad += ["2001:db8::1%eth0", "2001:db8::1%';id;'"]
    assert [each for each in good + bad if addresses.usable(each)] == good
