# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packet filter's texts: what each must keep out and let through."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._net import nft
from ansible_collections.cnvm.platform.plugins.module_utils._net.endpoint import Endpoint, Forward
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import (
    Document,
    Member,
    Settings,
    document_for,
)

SPEC = Endpoint(
    name="web",
    uuid="u-1",
    address="10.100.101.20",
    prefix_length=24,
    gateway="10.100.101.254",
    mtu=1370,
    mac="02:11:22:33:44:55",
    bridge="cnvm0",
    ports=(Forward(53, 5353, "udp", "192.0.2.1"), Forward(8080, 80)),
)


def document(hosts: int = 2, *, encryption: str = "wireguard", masquerade: bool = True) -> Document:
    members = [Member(f"host{n}", f"192.0.2.{n}", 1500, f"key{n}") for n in range(1, hosts + 1)]
    settings = Settings(gateway="10.100.101.254", encryption=encryption, masquerade=masquerade)
    return document_for("host1", settings, members)


TEXTS = {
    "guard": nft.guard_rules(SPEC),
    "forward": nft.forward_rules(SPEC),
    "overlay": nft.overlay_rules(document()),
    "routed": nft.overlay_rules(document(masquerade=False)),
    "plain": nft.overlay_rules(document(encryption="none")),
    "alone": nft.overlay_rules(document(1, encryption="none")),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_each_text_replaces_its_tables_whether_or_not_they_are_there(text: str) -> None:
    made = re.findall(r"^table (\w+ \w+) \{$", text, re.MULTILINE)
    assert made
    for table in made:
        assert (
            text.index(f"add table {table}\n") < text.index(f"delete table {table}\n") < text.index(f"table {table} {{")
        )


@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed here")
@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"guard"}))
def test_nft_takes_the_text(name: str) -> None:
    """Without root nft cannot look at the kernel's tables; then only what it says of the syntax counts."""
    done = subprocess.run(["nft", "-c", "-f", "-"], input=TEXTS[name], capture_output=True, text=True, check=False)
    assert "syntax error" not in done.stderr


def test_a_container_may_only_be_itself() -> None:
    rules = [line.strip() for line in TEXTS["guard"].splitlines() if line.strip().endswith("drop")]
    assert rules == [
        "ether saddr != 02:11:22:33:44:55 drop",
        "arp saddr ether != 02:11:22:33:44:55 drop",
        "arp saddr ip != { 10.100.101.20, 0.0.0.0 } drop",
        "ether type ip ip saddr != 10.100.101.20 drop",
        "ether type != { arp, ip } drop",
    ]
    assert f'device "{SPEC.host_link}"' in TEXTS["guard"]


def test_forwards_work_for_clients_outside_and_on_the_host() -> None:
    rules = [
        "ip daddr 192.0.2.1 udp dport 53 dnat to 10.100.101.20:5353",
        "fib daddr type local tcp dport 8080 dnat to 10.100.101.20:80",
    ]
    for hook in ("prerouting", "output"):
        chain = TEXTS["forward"].split(f"chain {hook} {{")[1].split("}")[0]
        assert [line.strip() for line in chain.splitlines()[2:] if line.strip()] == rules


def test_answers_come_back_to_this_host() -> None:
    chain = TEXTS["forward"].split("chain postrouting {")[1]
    assert chain.index("ip saddr 10.100.101.0/24 snat to 10.100.101.254") < chain.index("masquerade")


def test_a_container_without_forwards_has_no_table() -> None:
    text = nft.forward_rules(SPEC._replace(ports=()))
    assert re.search(r"^delete table ip cnvm_fwd_", text, re.MULTILINE)
    assert "chain" not in text


def test_the_gateway_stays_on_its_host() -> None:
    bridge = TEXTS["overlay"].split("table bridge cnvm_overlay {")[-1]
    mac = document()["gateway_mac"]
    for rule in (
        f"ether saddr {mac} drop",
        f"ether daddr {mac} drop",
        "arp saddr ip 10.100.101.254 drop",
        "arp daddr ip 10.100.101.254 drop",
        'iifname "cnvm-vx" jump gateway',
        'oifname "cnvm-vx" jump gateway',
    ):
        assert rule in bridge


def test_vxlan_stays_in_the_tunnel() -> None:
    assert 'udp dport 4789 iifname != "cnvm-wg" drop' in TEXTS["overlay"]
    assert 'udp dport 4789 oifname != "cnvm-wg" drop' in TEXTS["overlay"]


def test_a_tunnel_s_address_is_for_the_hosts_alone() -> None:
    assert 'ip daddr 10.100.100.1 iifname != { "cnvm-wg", "lo" } drop' in TEXTS["overlay"]
    assert 'iifname { "cnvm0", "cnvm-gw" } oifname "cnvm-wg" ct state' in TEXTS["overlay"]


def test_without_encryption_vxlan_comes_from_peers_only() -> None:
    assert "udp dport 4789 ip saddr != { 192.0.2.2 } drop" in TEXTS["plain"]
    assert "    udp dport 4789 drop" in TEXTS["alone"]
    assert "cnvm-wg" not in TEXTS["plain"]


def test_a_routed_overlay_neither_masquerades_nor_drops() -> None:
    assert "masquerade" in TEXTS["overlay"]
    assert "masquerade" not in TEXTS["routed"]
    assert 'oifname "cnvm0"' not in TEXTS["routed"]


def test_the_mark_stands_for_the_rules() -> None:
    mark = nft.version_chain(document())
    assert mark == nft.version_chain(document(3))  # peers are not in the rules of an encrypted overlay
    assert mark != nft.version_chain(document(masquerade=False))
    assert nft.version_chain(document(encryption="none")) != nft.version_chain(document(3, encryption="none"))
    assert TEXTS["overlay"].count(f"chain {mark} {{") == 2
