# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Where a workload is plugged into the overlay: the same address, MAC and names on whichever host it runs."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import typing as t

from .._core.errors import InputError
from .._core.values import choice, integer, known_keys

INSIDE = "eth0"
PROTOCOLS = ("tcp", "udp")
_FORWARD = re.compile(
    r"(?:(?P<address>[^:/\s]+):)?(?P<host>[0-9]+):(?P<container>[0-9]+)(?:/(?P<protocol>[a-z]+))?\Z", re.ASCII
)
_FORWARD_RULE = (
    "Allowed: 'HOST_PORT:CONTAINER_PORT', 'HOST_ADDRESS:HOST_PORT:CONTAINER_PORT', with '/tcp' or '/udp' behind it if "
    "need be, or a mapping with host_port, container_port, protocol and host_address."
)


class Forward(t.NamedTuple):
    """A port of the host that leads to a port of the container. ``host_address`` '': every address of the host."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_address: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        """As it stands in definition.json."""
        return self._asdict()

    def __str__(self) -> str:
        where = f"{self.host_address}:" if self.host_address else ""
        return f"{where}{self.host_port}:{self.container_port}/{self.protocol}"


class Endpoint(t.NamedTuple):
    """A container's end of the overlay."""

    name: str
    uuid: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int
    mac: str
    bridge: str
    ports: tuple[Forward, ...] = ()

    @property
    def host_link(self) -> str:
        """The host's side of the veth pair."""
        return host_link(self.uuid)

    @property
    def subnet(self) -> str:
        """The overlay's subnet."""
        return str(ipaddress.ip_network(f"{self.address}/{self.prefix_length}", strict=False))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def mac_of(uuid: str) -> str:
    """A locally administered unicast MAC that stands for ``uuid`` on every host."""
    digits = _digest(uuid)
    return ":".join(["02", *(digits[at : at + 2] for at in range(0, 10, 2))])


def host_link(uuid: str) -> str:
    """The name of the host's side of the veth pair: at most 15 characters, as the kernel wants."""
    return f"cv{_digest(uuid)[:11]}"


def forward_table(name: str) -> str:
    """The nft table with the port forwards of the container ``name``."""
    return f"cnvm_fwd_{_digest(name)[:16]}"


def guard_table(uuid: str) -> str:
    """The nft table that keeps the container from using another's address."""
    return f"cnvm_guard_{_digest(uuid)[:11]}"


def _ipv4(value: object, option: str) -> ipaddress.IPv4Address:
    try:
        if not isinstance(value, str):
            raise ValueError
        return ipaddress.IPv4Address(value)
    except ValueError:
        raise InputError(
            f"{option}: {value!r} is not allowed.", hint="Allowed: an IPv4 address, such as '10.100.101.20'."
        ) from None


def check_address(address: object, overlay: t.Mapping[str, t.Any], option: str = "address") -> str:
    """``address`` when a workload may have it on this overlay, else InputError naming ``option``.

    Not the network, broadcast or gateway address, and no host's own: a workload there would cut a host off.
    """
    found = _ipv4(address, option)
    subnet = ipaddress.IPv4Network(overlay["subnet"])
    allowed = f"Allowed: an address of the overlay's subnet {subnet} that no host has."
    if found not in subnet:
        raise InputError(f"{option}: {found} is outside the overlay's subnet {subnet}.", hint=allowed)
    if found in (subnet.network_address, subnet.broadcast_address):
        raise InputError(f"{option}: {found} is the network or broadcast address of {subnet}.", hint=allowed)
    if str(found) == overlay["gateway"]:
        raise InputError(f"{option}: {found} is the overlay's gateway.", hint=allowed)
    for host in (overlay["self"], *overlay.get("peers", ())):
        if str(found) == host.get("address"):
            raise InputError(f"{option}: {found} is the overlay address of the host {host['name']}.", hint=allowed)
    return str(found)


def forwards_from(value: object, option: str = "ports") -> tuple[Forward, ...]:
    """Port forwards as users write them (text or mappings), sorted; InputError names the item that is wrong."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{option}: {value!r} is not a list.", hint=_FORWARD_RULE)
    found: list[Forward] = []
    for index, item in enumerate(value):
        forward = _forward(item, f"{option}[{index}]")
        for other in found:
            if overlap(forward, other):
                raise InputError(f"{option}[{index}]: {forward} takes the same host port as {other}.")
        found.append(forward)
    return tuple(sorted(found))


def _forward(item: object, option: str) -> Forward:
    if isinstance(item, Forward):
        return item
    if isinstance(item, str):
        matched = _FORWARD.match(item.strip())
        if not matched:
            raise InputError(f"{option}: {item!r} is not allowed.", hint=_FORWARD_RULE)
        fields: dict[str, t.Any] = {
            "host_port": matched["host"],
            "container_port": matched["container"],
            "protocol": matched["protocol"],
            "host_address": matched["address"],
        }
    elif isinstance(item, dict):
        fields = known_keys(item, option, ("host_port", "container_port", "protocol", "host_address"))
    else:
        # YAML 1.1 reads an unquoted 8080:22 as a number to the base of 60.
        raise InputError(f"{option}: {item!r} is not text or a mapping.", hint=f"Put it in quotes. {_FORWARD_RULE}")
    for key in ("host_port", "container_port"):
        if fields.get(key) is None:
            raise InputError(f"{option}: {key} is missing.", hint=_FORWARD_RULE)
    address = fields.get("host_address") or ""
    return Forward(
        host_port=integer(fields["host_port"], f"{option}.host_port", least=1, most=65535),
        container_port=integer(fields["container_port"], f"{option}.container_port", least=1, most=65535),
        protocol=choice(fields.get("protocol") or "tcp", f"{option}.protocol", PROTOCOLS),
        host_address=str(_ipv4(address, f"{option}.host_address")) if address else "",
    )


def from_definition(definition: t.Mapping[str, t.Any], overlay: t.Mapping[str, t.Any]) -> Endpoint:
    """The endpoint of a container (definition.json) on this host's overlay (overlay.json)."""
    return Endpoint(
        name=definition["name"],
        uuid=definition["uuid"],
        address=check_address(definition["address"], overlay),
        prefix_length=ipaddress.IPv4Network(overlay["subnet"]).prefixlen,
        gateway=overlay["gateway"],
        mtu=int(overlay["mtu"]),
        mac=mac_of(definition["uuid"]),
        bridge=overlay["bridge"],
        ports=forwards_from(definition.get("ports")),
    )


def _same_address(one: str, other: str) -> bool:
    return not one or not other or one == other


def overlap(one: Forward, other: Forward) -> bool:
    """Whether two forwards want the same port of the same host."""
    return (one.protocol, one.host_port) == (other.protocol, other.host_port) and _same_address(
        one.host_address, other.host_address
    )


def forward_conflicts(
    spec: Endpoint,
    others: t.Mapping[str, t.Sequence[Forward]],
    listening: t.Iterable[tuple[str, str, int]],
) -> list[str]:
    """Why the forwards of ``spec`` cannot be put up on a host, one sentence each; empty when they can.

    ``others``: the forwards of the host's other containers, by name. ``listening``: what programs of the host listen
    on: protocol, address ('' for every address), port.
    """
    found = []
    programs = list(listening)
    for forward in spec.ports:
        for name, theirs in sorted(others.items()):
            if name != spec.name and any(overlap(forward, other) for other in theirs):
                found.append(
                    f"ports: {forward.protocol} port {forward.host_port} of the host already leads to the container "
                    f"{name}."
                )
        if any(
            (protocol, port) == (forward.protocol, forward.host_port) and _same_address(forward.host_address, address)
            for protocol, address, port in programs
        ):
            found.append(f"ports: a program of the host itself listens on {forward.protocol} port {forward.host_port}.")
    return found
