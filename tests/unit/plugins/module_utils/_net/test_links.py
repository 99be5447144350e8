# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the tools print to what is missing: nothing when all is right, the one thing when one is wrong."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._net import links
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import (
    Document,
    Member,
    Settings,
    bridge_mac,
    document_for,
)

KEYS = {name: f"{name}{'=' * 10}" for name in ("host1", "host2", "host3")}
NOW = 1795217310


def document(*names: str, encryption: str = "wireguard") -> Document:
    members = [
        Member(name=name, underlay=f"10.90.4.1{name[-1]}", underlay_mtu=1500, public_key=KEYS[name]) for name in names
    ]
    return document_for(names[0], Settings(gateway="10.100.101.254", encryption=encryption), members)


THREE = document("host1", "host2", "host3")


def link(name: str, kind: str, mtu: int, mac: str = "", master: str = "", address: str = "", **data: t.Any) -> t.Any:
    """As ``ip -j -d addr show`` of iproute2 6.15 prints it, without what is not looked at."""
    info: dict[str, t.Any] = {"info_kind": kind, "info_data": data} if data else {"info_kind": kind}
    entry: dict[str, t.Any] = {
        "ifindex": 5,
        "ifname": name,
        "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
        "mtu": mtu,
        "operstate": "UP",
        "address": mac,
        "linkinfo": info,
        "addr_info": [{"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}],
    }
    if master:
        entry["master"] = master
    if address:
        local, length = address.split("/")
        entry["addr_info"].append({"family": "inet", "local": local, "prefixlen": int(length), "scope": "global"})
    return entry


ADDRESSES = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "mtu": 65536, "address": "00:00:00:00:00:00", "addr_info": []},
    link("cnvm-wg", "tun", 1420, address="10.100.100.1/24", type="tun", vnet_hdr=True),
    link("cnvm0", "bridge", 1370, "02:e2:ff:9d:b1:09", address="10.100.101.1/24", stp_state=0),
    link("cnvm-vx", "vxlan", 1370, "4e:5c:55:bb:02:d0", "cnvm0", id=4242, local="10.100.100.1", port=4789),
    link("cnvm-gwp", "veth", 1370, "72:33:9a:91:53:82", "cnvm0"),
    link("cnvm-gw", "veth", 1370, THREE["gateway_mac"], address="10.100.101.254/32"),
]
MAC = bridge_mac("host1")
ADDRESSES[2]["address"] = MAC

FLOODS = [
    {"mac": "01:00:5e:00:00:01", "ifname": "cnvm0", "flags": ["self"], "state": "permanent"},
    {"mac": "02:fb:70:38:22:13", "ifname": "cnvm-vx", "flags": [], "master": "cnvm0", "state": ""},
    {"mac": "02:fb:70:38:22:13", "ifname": "cnvm-vx", "dst": "10.100.100.3", "flags": ["self"], "state": ""},
    {"mac": "00:00:00:00:00:00", "ifname": "cnvm-vx", "dst": "10.100.100.2", "flags": ["self"], "state": "permanent"},
    {"mac": "00:00:00:00:00:00", "ifname": "cnvm-vx", "dst": "10.100.100.3", "flags": ["self"], "state": "permanent"},
    {"mac": THREE["gateway_mac"], "ifname": "cnvm-gwp", "flags": [], "master": "cnvm0", "state": "static"},
]

DUMP = (
    f"PRIVATE\t{KEYS['host1']}\t51820\toff\n"
    f"{KEYS['host2']}\t(none)\t10.90.4.12:51820\t10.100.100.2/32\t1795217303\t15844\t15916\t25\n"
    f"{KEYS['host3']}\t(none)\t10.90.4.13:51820\t10.100.100.3/32\t0\t0\t148\t25\n"
)

RIGHT = links.Live(
    links=links.parse_links(json.dumps(ADDRESSES)),
    floods=links.parse_floods(json.dumps(FLOODS)),
    wireguard=links.parse_wireguard(DUMP),
    fallback=True,
    rules=("ip", "bridge"),
    sysctl=links.wanted_sysctl(THREE),
)


def with_link(name: str, **changes: t.Any) -> links.Live:
    return dataclasses.replace(RIGHT, links={**RIGHT.links, name: dataclasses.replace(RIGHT.links[name], **changes)})


def without(*names: str) -> links.Live:
    return dataclasses.replace(RIGHT, links={name: each for name, each in RIGHT.links.items() if name not in names})


def test_nothing_is_done_when_all_is_right() -> None:
    steps = links.plan(THREE, RIGHT, NOW)
    assert steps.texts() == []
    assert not steps


def test_an_empty_host_gets_everything_in_order() -> None:
    steps = links.plan(THREE, links.Live(links={}), NOW)
    assert (steps.rules, steps.make_tunnel, steps.drop_tunnel, steps.wireguard) == (True, True, False, True)
    assert list(steps.ip) == [
        "route replace unreachable 10.100.100.0/24 proto kernel metric 4294967294",
        "link set dev cnvm-wg mtu 1420",
        "addr add 10.100.100.1/24 dev cnvm-wg",
        "link set dev cnvm-wg up",
        f"link add name cnvm0 address {MAC} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set dev cnvm0 addrgenmode none",
        "link set dev cnvm0 mtu 1370",
        "addr add 10.100.101.1/24 dev cnvm0",
        "link set dev cnvm0 up",
        "link add name cnvm-vx type vxlan id 4242 local 10.100.100.1 dstport 4789 learning ttl 64",
        "link set dev cnvm-vx addrgenmode none",
        "link set dev cnvm-vx mtu 1370",
        "link set dev cnvm-vx master cnvm0",
        "link set dev cnvm-vx up",
        f"link add name cnvm-gw address {THREE['gateway_mac']} type veth peer name cnvm-gwp",
        "link set dev cnvm-gw addrgenmode none",
        "link set dev cnvm-gw mtu 1370",
        "addr add 10.100.101.254/32 dev cnvm-gw",
        "link set dev cnvm-gwp addrgenmode none",
        "link set dev cnvm-gwp mtu 1370",
        "link set dev cnvm-gwp master cnvm0",
        "link set dev cnvm-gw up",
        "link set dev cnvm-gwp up",
    ]
    assert dict(steps.sysctl) == links.wanted_sysctl(THREE)
    assert list(steps.fdb) == [
        "fdb append 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.2",
        "fdb append 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.3",
        f"fdb replace {THREE['gateway_mac']} dev cnvm-gwp master static",
    ]


def test_a_kernel_without_ipv6_is_not_asked_for_it() -> None:
    assert [line for line in links.plan(THREE, links.Live(links={}), NOW, ipv6=False).ip if "addrgenmode" in line] == []


def test_a_new_host_touches_nothing_of_the_others() -> None:
    live = dataclasses.replace(
        RIGHT,
        floods=tuple(flood for flood in RIGHT.floods if flood.destination != "10.100.100.3"),
        wireguard=links.parse_wireguard("".join(DUMP.splitlines(True)[:2])),
    )
    assert links.plan(THREE, live, NOW).texts() == [
        "WireGuard peers",
        "bridge fdb append 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.3",
    ]


def test_a_host_that_went_takes_what_was_learnt_of_it_along() -> None:
    assert links.plan(document("host1", "host2"), RIGHT, NOW).texts() == [
        "WireGuard peers",
        "bridge fdb del 02:fb:70:38:22:13 dev cnvm-vx dst 10.100.100.3 self",
        "bridge fdb del 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.3 self",
    ]


@pytest.mark.parametrize(
    ("live", "texts"),
    [
        (with_link("cnvm0", up=False), ["ip link set dev cnvm0 up"]),
        (with_link("cnvm0", mtu=1500), ["ip link set dev cnvm0 mtu 1370"]),
        (
            with_link("cnvm0", addresses=("10.100.101.9/24", "10.100.101.1/24")),
            ["ip addr del 10.100.101.9/24 dev cnvm0"],
        ),
        (
            with_link("cnvm-wg", addresses=("10.100.100.7/24",)),
            ["ip addr del 10.100.100.7/24 dev cnvm-wg", "ip addr add 10.100.100.1/24 dev cnvm-wg"],
        ),
        (with_link("cnvm-vx", master=""), ["ip link set dev cnvm-vx master cnvm0"]),
        (
            with_link("cnvm-gw", mac="02:00:00:00:00:00"),
            [f"ip link set dev cnvm-gw address {THREE['gateway_mac']}"],
        ),
        (
            dataclasses.replace(RIGHT, fallback=False),
            ["ip route replace unreachable 10.100.100.0/24 proto kernel metric 4294967294"],
        ),
        (dataclasses.replace(RIGHT, rules=("ip",)), ["packet filter"]),
        (
            dataclasses.replace(RIGHT, sysctl={**RIGHT.sysctl, "net.ipv4.ip_forward": "0"}),
            ["sysctl net.ipv4.ip_forward=1"],
        ),
        (
            dataclasses.replace(RIGHT, floods=RIGHT.floods[:-1]),
            [f"bridge fdb replace {THREE['gateway_mac']} dev cnvm-gwp master static"],
        ),
    ],
)
def test_only_what_is_wrong_is_mended(live: links.Live, texts: list[str]) -> None:
    assert links.plan(THREE, live, NOW).texts() == texts


def test_a_vxlan_with_another_number_is_made_anew_with_all_its_entries() -> None:
    texts = links.plan(THREE, with_link("cnvm-vx", data={"id": 7, "local": "10.100.100.1", "port": 4789}), NOW).texts()
    assert texts[:2] == [
        "ip link del cnvm-vx",
        "ip link add name cnvm-vx type vxlan id 4242 local 10.100.100.1 dstport 4789 learning ttl 64",
    ]
    assert texts[-2:] == [f"bridge fdb append 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.{n}" for n in (2, 3)]


def test_half_a_gateway_is_made_anew() -> None:
    texts = links.plan(THREE, without("cnvm-gw"), NOW).texts()
    assert texts[:2] == [
        "ip link del cnvm-gwp",
        f"ip link add name cnvm-gw address {THREE['gateway_mac']} type veth peer name cnvm-gwp",
    ]
    assert texts[-1].startswith("bridge fdb replace")


def test_a_tunnel_that_went_is_made_again_and_the_rest_stays() -> None:
    live = dataclasses.replace(without("cnvm-wg"), wireguard=None)
    assert links.plan(THREE, live, NOW).texts() == [
        "make cnvm-wg",
        "WireGuard peers",
        "ip link set dev cnvm-wg mtu 1420",
        "ip addr add 10.100.100.1/24 dev cnvm-wg",
        "ip link set dev cnvm-wg up",
    ]


def test_without_encryption_the_tunnel_goes() -> None:
    plain = document("host1", "host2", "host3", encryption="none")
    texts = links.plan(plain, RIGHT, NOW).texts()
    assert texts[:2] == [
        "remove cnvm-wg",
        "ip route del unreachable 10.100.100.0/24 proto kernel metric 4294967294",
    ]
    assert "ip link add name cnvm-vx type vxlan id 4242 local 10.90.4.11 dstport 4789 learning ttl 64" in texts
    assert "WireGuard peers" not in texts


# -- WireGuard


def dumped(**changes: t.Any) -> links.Live:
    assert RIGHT.wireguard
    peers = (dataclasses.replace(RIGHT.wireguard.peers[0], **changes), RIGHT.wireguard.peers[1])
    return dataclasses.replace(RIGHT, wireguard=dataclasses.replace(RIGHT.wireguard, peers=peers))


def test_the_private_key_is_left_behind() -> None:
    assert "PRIVATE" not in repr(links.parse_wireguard(DUMP))


def test_a_peer_that_talks_from_another_address_is_left_alone() -> None:
    assert not links.plan(THREE, dumped(endpoint="10.90.4.99:51820"), NOW)
    assert links.plan(THREE, dumped(endpoint="10.90.4.99:51820", handshake_s=NOW - 181), NOW).texts() == [
        "WireGuard peers"
    ]


@pytest.mark.parametrize("changes", [{"allowed": "0.0.0.0/0"}, {"keepalive_s": 0}, {"public_key": "other"}])
def test_a_peer_that_is_wrong_is_mended(changes: dict[str, t.Any]) -> None:
    assert links.plan(THREE, dumped(**changes), NOW).texts() == ["WireGuard peers"]


@pytest.mark.parametrize("changes", [{"public_key": "other"}, {"port": 1}])
def test_an_interface_that_is_wrong_is_mended(changes: dict[str, t.Any]) -> None:
    assert RIGHT.wireguard
    live = dataclasses.replace(RIGHT, wireguard=dataclasses.replace(RIGHT.wireguard, **changes))
    assert links.plan(THREE, live, NOW).texts() == ["WireGuard peers"]


def test_tools_that_print_nothing_are_read_as_nothing() -> None:
    assert links.parse_links("") == {}
    assert links.parse_floods("") == ()
    assert links.parse_wireguard("\n") is None
