# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's end of the overlay: addresses, names that fit the kernel, port forwards as people write them."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._net import endpoint
from ansible_collections.cnvm.platform.plugins.module_utils._net.endpoint import Forward

OVERLAY: dict[str, t.Any] = {
    "subnet": "10.100.101.0/24",
    "gateway": "10.100.101.254",
    "mtu": 1370,
    "bridge": "cnvm0",
    "self": {"name": "host1", "address": "10.100.101.1"},
    "peers": [{"name": "host2", "address": "10.100.101.2"}],
}


def spec_of(**changes: t.Any) -> endpoint.Endpoint:
    definition = {"name": "web", "uuid": "u-1", "address": "10.100.101.20", "ports": ["8080:80"], **changes}
    return endpoint.from_definition(definition, OVERLAY)


def test_an_endpoint_takes_what_the_overlay_says() -> None:
    spec = spec_of()
    assert (spec.prefix_length, spec.gateway, spec.mtu, spec.bridge) == (24, "10.100.101.254", 1370, "cnvm0")
    assert spec.subnet == "10.100.101.0/24"
    assert spec.ports == (Forward(8080, 80),)


@given(st.text(min_size=1))
def test_names_and_macs_fit_the_kernel_and_stand_for_the_uuid(uuid: str) -> None:
    link, mac = endpoint.host_link(uuid), endpoint.mac_of(uuid)
    assert len(link) == 13
    assert link.startswith("cv")
    assert int(mac[:2], 16) & 3 == 2  # locally administered, not multicast
    assert len(mac) == 17
    assert (link, mac) == (endpoint.host_link(uuid), endpoint.mac_of(uuid))
    assert mac != endpoint.mac_of(uuid + "x")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("10.100.102.20", "outside the overlay's subnet 10.100.101.0/24"),
        ("10.100.101.0", "network or broadcast address"),
        ("10.100.101.255", "network or broadcast address"),
        ("10.100.101.254", "gateway"),
        ("10.100.101.1", "host host1"),
        ("10.100.101.2", "host host2"),
        ("10.100.101.020", "'10.100.101.020' is not allowed"),
        ("10.100.101.20/24", "is not allowed"),
        ("fe80::1", "is not allowed"),
        ("web", "is not allowed"),
        (1684301076, "is not allowed"),
        (None, "is not allowed"),
    ],
)
def test_an_address_that_would_break_something_is_refused(address: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        endpoint.check_address(address, OVERLAY, "containers[0].address")
    assert str(error.value).startswith("containers[0].address: ")
    assert said in error.value.message


@given(st.integers(min_value=3, max_value=253))
def test_all_other_addresses_are_allowed(last: int) -> None:
    address = str(ipaddress.IPv4Address("10.100.101.0") + last)
    assert endpoint.check_address(address, OVERLAY) == address


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("8080:80", Forward(8080, 80)),
        (" 53:5353/udp ", Forward(53, 5353, "udp")),
        ("192.0.2.1:8080:80/tcp", Forward(8080, 80, "tcp", "192.0.2.1")),
        ({"host_port": "8080", "container_port": 80}, Forward(8080, 80)),
        ({"host_port": 1, "container_port": 2, "protocol": "udp", "host_address": None}, Forward(1, 2, "udp")),
    ],
)
def test_a_forward_is_read(written: object, meant: Forward) -> None:
    assert endpoint.forwards_from([written]) == (meant,)
    assert endpoint.forwards_from([meant.as_dict()]) == (meant,)
    assert endpoint.forwards_from([str(meant)]) == (meant,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (80, "ports[0]: 80 is not text or a mapping. Put it in quotes."),
        (484822, "Put it in quotes."),
        ("80", "'80' is not allowed"),
        ("0:80", "ports[0].host_port: '0' is not allowed"),
        ("80:65536", "ports[0].container_port"),
        ("80:80/sctp", "ports[0].protocol"),
        ("web:80:80", "ports[0].host_address"),
        ("٨٠:80", "is not allowed"),
        ({"host_port": True, "container_port": 80}, "ports[0].host_port"),
        ({"host_port": 80}, "container_port is missing"),
        ({"host_port": 80, "container_port": 80, "proto": "tcp"}, "unknown key 'proto'"),
    ],
)
def test_a_wrong_forward_is_refused_by_name(written: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        endpoint.forwards_from([written])
    assert said in str(error.value)


def test_forwards_are_no_text() -> None:
    with pytest.raises(InputError, match="ports: '80:80' is not a list"):
        endpoint.forwards_from("80:80")


def test_two_forwards_of_one_port_are_refused() -> None:
    with pytest.raises(InputError, match=r"ports\[1\]"):
        endpoint.forwards_from(["80:80", "192.0.2.1:80:81"])
    both = endpoint.forwards_from(["80:80/udp", "192.0.2.2:80:80", "192.0.2.1:80:81"])
    assert [str(forward) for forward in both] == ["192.0.2.2:80:80/tcp", "80:80/udp", "192.0.2.1:80:81/tcp"]


def test_forwards_do_not_depend_on_their_order() -> None:
    assert spec_of(ports=["1:1", "2:2"]) == spec_of(ports=["2:2", "1:1"])


def test_a_free_port_has_no_conflict() -> None:
    others = {"mail": [Forward(25, 25), Forward(8080, 80, "udp"), Forward(8080, 80, "tcp", "192.0.2.7")]}
    spec = spec_of(ports=["192.0.2.1:8080:80"])
    assert endpoint.forward_conflicts(spec, others, [("tcp", "", 22), ("udp", "", 8080)]) == []


def test_conflicts_name_the_other_side() -> None:
    others = {"mail": [Forward(8080, 1)], "web": [Forward(8080, 80)]}
    assert endpoint.forward_conflicts(spec_of(), others, [("tcp", "192.0.2.1", 8080)]) == [
        "ports: tcp port 8080 of the host already leads to the container mail.",
        "ports: a program of the host itself listens on tcp port 8080.",
    ]
