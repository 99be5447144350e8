# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's networks: what a user may write, the XML of it and back.

The normal form of a network is a dictionary with the keys of DEFAULTS. ``normalise`` makes it of what a user wrote,
``parse`` of libvirt's XML, ``build`` makes XML of it; ``parse(build(x)) == x``. What an XML has and the normal form
does not (IPv6, VLANs, bandwidth …) stands in ``other``, in words, so that it is never lost without a word.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from .._core.errors import InputError, Missing
from .._core.names import check_name
from .._core.values import boolean, choice, integer, known_keys, listed, plain_text, word_list
from .._net import overlay
from . import xml

# Where libvirt makes the bridge, and those where the bridge is somebody else's.
MANAGED = ("nat", "routed", "open", "isolated")
TYPES = (*MANAGED, "bridge", "overlay")
STATES = ("present", "active", "inactive", "absent")
_MODE_OF = {"nat": "nat", "routed": "route", "open": "open", "bridge": "bridge"}
_TYPE_OF = {mode: kind for kind, mode in _MODE_OF.items()}

DEFAULTS: dict[str, t.Any] = {
    "type": "nat",
    "bridge": "",
    "forward_device": "",
    "subnet": "",
    "address": "",
    "dhcp_ranges": [],
    "dhcp_hosts": [],
    "domain": "",
    "domain_local": False,
    "dns": True,
    "dns_forwarders": [],
    "dns_hosts": [],
    "mtu": None,
    "other": [],
}
ITEM_KEYS = ("name", "state", "autostart", *(key for key in DEFAULTS if key != "other"))
# What a running network takes over without being restarted.
IN_PLACE = ("dhcp_ranges", "dhcp_hosts", "dns_hosts")
_LAYER_3 = ("subnet", "address", "dhcp_ranges", "dhcp_hosts", "domain", "domain_local", "dns_forwarders", "dns_hosts")
# libvirt refuses larger ones.
_LARGEST_RANGE = 65535

_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
# Made by the role overlay; libvirt must not make them.
_OVERLAY_DEVICES = (overlay.BRIDGE, overlay.TUNNEL, overlay.VXLAN, overlay.GATEWAY, overlay.GATEWAY_PORT)


# -- What a user may write


def _text(value: object, option: str) -> str:
    return plain_text(value, option).strip()


def device_name(value: object, option: str) -> str:
    """The name of a network interface, as the kernel takes it; '' for none."""
    name = _text(value, option)
    if name and (not _DEVICE.match(name) or name in (".", "..")):
        raise InputError(
            f"{option}: {name!r} is not allowed.", hint="Allowed: 1 to 15 letters, digits, '_', '.' or '-'."
        )
    return name


def mac_address(value: object, option: str) -> str:
    """A unicast MAC in lower case. YAML makes a number of an unquoted one that is all digits."""
    mac = _text(value, option).lower()
    if not _MAC.match(mac):
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: such as '52:54:00:12:34:56', quoted.")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InputError(f"{option}: {mac!r} is not the address of one interface.", hint="The first byte must be even.")
    return mac


def host_name(value: object, option: str) -> str:
    """A DNS name or the last part of one; '' for none."""
    name = _text(value, option).lower()
    if name and (len(name) > 253 or not _HOSTNAME.match(name)):
        raise InputError(
            f"{option}: {name[:70]!r} is not allowed.", hint="Allowed: letters, digits, '-' and '.', as in DNS."
        )
    return name


def _address(value: object, option: str) -> ipaddress.IPv4Address:
    text = _text(value, option)
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not allowed.", hint="Allowed: a plain IPv4 address.") from None


def _subnet(value: object, option: str) -> ipaddress.IPv4Network:
    text = _text(value, option)
    try:
        loose = ipaddress.IPv4Network(text, strict=False)
        if "/" not in text:
            raise ValueError
    except ValueError:
        raise InputError(f"{option}: {text!r} is not allowed.", hint="Allowed: such as 192.168.150.0/24.") from None
    if str(loose.network_address) != text.partition("/")[0]:
        raise InputError(f"{option}: {text!r} is an address in a subnet.", hint=f"The subnet is {loose}.")
    if not 8 <= loose.prefixlen <= 30:
        size = "small" if loose.prefixlen > 30 else "large"
        raise InputError(f"{option}: {text!r} is too {size}.", hint="Allowed: from /8 to /30.")
    if loose.is_loopback or loose.is_multicast or loose.is_link_local or loose.is_reserved or text.startswith("0."):
        raise InputError(f"{option}: {loose} is not for hosts.", hint="Take one of 10/8, 172.16/12 or 192.168/16.")
    return loose


@dataclasses.dataclass(frozen=True)
class _Place:
    """A subnet and the host's address in it."""

    subnet: ipaddress.IPv4Network
    address: ipaddress.IPv4Address

    def guest(self, value: object, option: str) -> ipaddress.IPv4Address:
        """An address that a guest may have."""
        address = _address(value, option)
        if address not in self.subnet:
            raise InputError(f"{option}: {address} is not in the subnet {self.subnet}.")
        if address in (self.subnet.network_address, self.subnet.broadcast_address):
            raise InputError(f"{option}: {address} is the subnet's {'own' if self._is_first(address) else 'last'} one.")
        if address == self.address:
            raise InputError(f"{option}: {address} is the host's own address.", hint="Choose another one.")
        return address

    def _is_first(self, address: ipaddress.IPv4Address) -> bool:
        return address == self.subnet.network_address

    def free_ranges(self) -> list[dict[str, str]]:
        """All addresses that guests may have, as ranges that libvirt takes."""
        first, last = int(self.subnet.network_address) + 1, int(self.subnet.broadcast_address) - 1
        own = int(self.address)
        found = [(first, own - 1), (own + 1, last)]
        return [
            {"start": str(ipaddress.IPv4Address(start)), "end": str(ipaddress.IPv4Address(min(end, start + 65534)))}
            for start, end in found
            if start <= end
        ]


def _ranges(value: object, option: str, place: _Place) -> list[dict[str, str]]:
    found: list[tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]] = []
    for index, one in enumerate(listed(value, option)):
        where = f"{option}[{index}]"
        item = known_keys(one, where, ("start", "end"))
        start, end = (place.guest(item.get(key), f"{where}.{key}") for key in ("start", "end"))
        if end < start:
            raise InputError(f"{where}: {end} comes before {start}.", hint="Exchange start and end.")
        if start < place.address < end:
            raise InputError(
                f"{where}: the range contains the host's own address {place.address}.", hint="Give two ranges."
            )
        if int(end) - int(start) >= _LARGEST_RANGE:
            raise InputError(f"{where}: the range is too large.", hint=f"At most {_LARGEST_RANGE} addresses.")
        for other_start, other_end in found:
            if start <= other_end and other_start <= end:
                raise InputError(f"{where}: the range overlaps {other_start} to {other_end}.")
        found.append((start, end))
    return [{"start": str(start), "end": str(end)} for start, end in sorted(found)]


def _by_address(item: t.Mapping[str, t.Any]) -> int:
    return int(ipaddress.ip_address(item["address"]))


def _once(seen: dict[str, str], key: str, option: str, what: str) -> None:
    if key in seen:
        raise InputError(f"{option}: the {what} {key} is also that of {seen[key]}.", hint="Give each its own.")
    seen[key] = option


def _dhcp_hosts(value: object, option: str, place: _Place) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    macs: dict[str, str] = {}
    addresses: dict[str, str] = {}
    names: dict[str, str] = {}
    for index, one in enumerate(listed(value, option)):
        where = f"{option}[{index}]"
        item = known_keys(one, where, ("mac", "address", "name"))
        mac = mac_address(item.get("mac"), f"{where}.mac")
        address = str(place.guest(item.get("address"), f"{where}.address"))
        name = host_name(item.get("name"), f"{where}.name")
        _once(macs, mac, where, "MAC")
        _once(addresses, address, where, "address")
        if name:
            _once(names, name, where, "name")
        found.append({"mac": mac, "address": address, "name": name})
    return sorted(found, key=_by_address)


def _dns_hosts(value: object, option: str) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = []
    addresses: dict[str, str] = {}
    taken: dict[str, str] = {}
    for index, one in enumerate(listed(value, option)):
        where = f"{option}[{index}]"
        item = known_keys(one, where, ("address", "names"))
        address = str(_address(item.get("address"), f"{where}.address"))
        names = [host_name(name, f"{where}.names") for name in word_list(item.get("names"), f"{where}.names")]
        if not names:
            raise InputError(f"{where}.names: a name is missing.")
        _once(addresses, address, where, "address")
        for name in names:
            # libvirt cannot change a running network in which two have the same.
            _once(taken, name, where, "name")
        found.append({"address": address, "names": names})
    return sorted(found, key=_by_address)


def normalise(item: object, option: str = "networks") -> dict[str, t.Any]:
    """One item of ``networks`` in its normal form: the keys of DEFAULTS, ``name``, ``state``, and ``autostart`` (None
    where it follows from the state). InputError names the key that is wrong."""
    values = known_keys(item, option, ITEM_KEYS)
    name = check_name(values.get("name"), f"{option}.name")
    where = f"{option}: {name}"

    def given(key: str) -> t.Any:
        value = values.get(key)
        return DEFAULTS.get(key) if value is None else value

    state = choice(values.get("state"), f"{where}: state", STATES, "active")
    autostart = values.get("autostart")
    normal: dict[str, t.Any] = {
        **DEFAULTS,
        "name": name,
        "state": state,
        "autostart": None if autostart is None else boolean(autostart, f"{where}: autostart"),
    }
    if state == "absent":
        return normal
    kind = choice(given("type"), f"{where}: type", TYPES)
    bridge = device_name(given("bridge"), f"{where}: bridge")
    normal.update(type=kind, bridge=bridge)
    if kind not in MANAGED:
        _nothing_of_layer_3(values, where, kind)
        if kind == "bridge" and not bridge:
            raise InputError(f"{where}: bridge is missing.", hint="Give the name of a bridge of the host.")
        if kind == "overlay" and bridge:
            raise InputError(f"{where}: the overlay's bridge is known.", hint="Leave bridge out.")
        return normal
    if bridge in _OVERLAY_DEVICES:
        raise InputError(f"{where}: bridge: {bridge!r} is the overlay's.", hint="Set type: overlay, or another name.")
    normal["forward_device"] = device_name(given("forward_device"), f"{where}: forward_device")
    if normal["forward_device"] and kind not in ("nat", "routed"):
        raise InputError(f"{where}: forward_device is for the types nat and routed.", hint="Leave it out.")
    if values.get("mtu") is not None:
        normal["mtu"] = integer(values["mtu"], f"{where}: mtu", least=576, most=65521)
    normal["domain"] = host_name(given("domain"), f"{where}: domain")
    normal["domain_local"] = boolean(given("domain_local"), f"{where}: domain_local")
    if normal["domain_local"] and not normal["domain"]:
        raise InputError(f"{where}: domain_local needs a domain.")
    normal["dns"] = boolean(given("dns"), f"{where}: dns")
    forwarders = word_list(given("dns_forwarders"), f"{where}: dns_forwarders")
    normal["dns_forwarders"] = [str(_address(one, f"{where}: dns_forwarders")) for one in forwarders]
    normal["dns_hosts"] = _dns_hosts(given("dns_hosts"), f"{where}: dns_hosts")
    if not normal["dns"] and (normal["dns_forwarders"] or normal["dns_hosts"]):
        raise InputError(f"{where}: without DNS there are no dns_forwarders and dns_hosts.", hint="Set dns: true.")
    if given("subnet") == "":
        if kind != "isolated":
            raise InputError(f"{where}: subnet is missing.", hint="Give one, such as 192.168.150.0/24.")
        _nothing_of_layer_3(values, where, "isolated without a subnet")
        return normal
    subnet = _subnet(given("subnet"), f"{where}: subnet")
    own = _address(given("address"), f"{where}: address") if given("address") != "" else subnet.network_address + 1
    if own not in subnet or own in (subnet.network_address, subnet.broadcast_address):
        raise InputError(f"{where}: address: {own} is no host's address in {subnet}.")
    place = _Place(subnet, own)
    normal.update(
        subnet=str(subnet),
        address=str(own),
        dhcp_hosts=_dhcp_hosts(given("dhcp_hosts"), f"{where}: dhcp_hosts", place),
        dhcp_ranges=place.free_ranges()
        if values.get("dhcp_ranges") is None and kind == "nat"
        else _ranges(given("dhcp_ranges"), f"{where}: dhcp_ranges", place),
    )
    return normal


def _nothing_of_layer_3(values: t.Mapping[str, t.Any], where: str, kind: str) -> None:
    for key in (*_LAYER_3, *(() if "isolated" in kind else ("forward_device", "mtu", "dns"))):
        value = values.get(key)
        left_out = value is None or value in ("", []) or (value is False and key != "dns")
        if not left_out:
            raise InputError(f"{where}: a network of type {kind} has no {key}.", hint="Leave it out.")


def with_overlay(item: t.Mapping[str, t.Any], document: t.Optional[overlay.Document]) -> dict[str, t.Any]:
    """``item`` with the overlay's bridge in place of the type ``overlay``. ``document``: overlay.json, None where it is
    Missing."""
    if item["type"] != "overlay":
        return dict(item)
    if document is None:
        raise Missing(
            f"Network {item['name']!r}: this host has no overlay.", hint="Run the role cnvm.platform.overlay first."
        )
    return {**item, "type": "bridge", "bridge": document["bridge"]}


def normalise_all(items: object, option: str = "networks") -> list[dict[str, t.Any]]:
    """The whole list; no name, bridge or subnet twice."""
    found = [normalise(item, f"{option}[{index}]") for index, item in enumerate(listed(items, option))]
    names: dict[str, str] = {}
    bridges: dict[str, str] = {}
    subnets: dict[str, ipaddress.IPv4Network] = {}
    for item in found:
        name = item["name"]
        _once(names, name, f"{option}: {name}", "name")
        if item["state"] == "absent":
            continue
        if item["bridge"] and item["type"] in MANAGED:
            _once(bridges, item["bridge"], f"{option}: {name}", "bridge")
        if item["subnet"]:
            subnet = ipaddress.IPv4Network(item["subnet"])
            for other, taken in subnets.items():
                if subnet.overlaps(taken):
                    raise InputError(f"{option}: the subnets of {other!r} ({taken}) and {name!r} ({subnet}) overlap.")
            subnets[name] = subnet
    return found


# -- XML


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a network has and nobody describes: it stays when the network is defined anew."""

    uuid: str = ""
    mac: str = ""
    elements: tuple[xml.Element, ...] = ()


def build(normal: t.Mapping[str, t.Any], name: str, kept: t.Optional[Kept] = None) -> str:
    """The XML of a network. ``other`` cannot be written."""
    kept = kept or Kept()
    kind = normal["type"]
    managed = kind in MANAGED
    device = normal["forward_device"] or None
    mode = _MODE_OF.get(kind)
    bridge = {"name": normal["bridge"] or None, **({"stp": "on", "delay": 0} if managed else {})}
    return xml.document(
        (
            "network",
            ("name", name),
            ("uuid", kept.uuid) if kept.uuid else None,
            list(kept.elements),
            ("forward", {"mode": mode, "dev": device}) if mode else None,
            ("bridge", bridge),
            ("mtu", {"size": normal["mtu"]}) if normal["mtu"] else None,
            ("mac", {"address": kept.mac}) if kept.mac and managed else None,
            ("domain", {"name": normal["domain"], "localOnly": True if normal["domain_local"] else None})
            if normal["domain"]
            else None,
            _dns_node(normal) if managed else None,
            _ip_node(normal) if normal["subnet"] else None,
        )
    )


def _dns_node(normal: t.Mapping[str, t.Any]) -> t.Optional[xml.Node]:
    if not normal["dns"]:
        return ("dns", {"enable": False})
    if not normal["dns_forwarders"] and not normal["dns_hosts"]:
        return None
    return (
        "dns",
        [("forwarder", {"addr": address}) for address in normal["dns_forwarders"]],
        [dns_host_node(host) for host in normal["dns_hosts"]],
    )


def dns_host_node(host: t.Mapping[str, t.Any]) -> xml.Node:
    return ("host", {"ip": host["address"]}, [("hostname", name) for name in host["names"]])


def range_node(one: t.Mapping[str, str]) -> xml.Node:
    return ("range", {"start": one["start"], "end": one["end"]})


def dhcp_host_node(host: t.Mapping[str, str]) -> xml.Node:
    return ("host", {"mac": host["mac"], "name": host["name"] or None, "ip": host["address"]})


def _ip_node(normal: t.Mapping[str, t.Any]) -> xml.Node:
    nodes = [*map(range_node, normal["dhcp_ranges"]), *map(dhcp_host_node, normal["dhcp_hosts"])]
    netmask = str(ipaddress.IPv4Network(normal["subnet"]).netmask)
    return ("ip", {"address": normal["address"], "netmask": netmask}, ("dhcp", nodes) if nodes else None)


# What libvirt adds by itself to an address translation.
_NAT_PORTS = {"start": "1024", "end": "65535"}


class _Reader:
    """Takes from an XML what the normal form knows, and puts the rest into words."""

    def __init__(self, root: xml.Element) -> None:
        self.root = root
        self.other: list[str] = []

    def rest(self, element: xml.Element, where: str, attributes: t.Container[str], children: t.Container[str]) -> None:
        """Note attributes and children of ``element`` that are not among the known ones."""
        for key, value in element.attrib.items():
            if key not in attributes:
                self.other.append(f"{where} {key}={value}".strip())
        for child in element:
            if child.tag not in children:
                self.note(child, where)

    def note(self, element: xml.Element, where: str = "") -> None:
        self.other.append(f"{where} {xml.words(element)}".strip())

    def forward(self) -> tuple[str, str]:
        """Type and device."""
        element = self.root.find("forward")
        if element is None:
            return "isolated", ""
        mode, device = element.get("mode", "nat"), element.get("dev", "")
        self.rest(element, "forward", ("mode", "dev"), ("interface", "nat"))
        for interface in element.findall("interface"):
            # A running network also says with how many guests it shares the device.
            if interface.get("dev") != device:
                self.note(interface, "forward")
        for nat in element.findall("nat"):
            self.rest(nat, "forward nat", (), ("port",))
            for port in nat.findall("port"):
                if port.attrib != _NAT_PORTS:
                    self.note(port, "forward nat")
        return _TYPE_OF.get(mode, mode), device

    def bridge(self, managed: bool) -> str:
        element = self.root.find("bridge")
        if element is None:
            return ""
        usual = {"stp": "on", "delay": "0"} if managed else {}
        unusual = {key: value for key, value in element.attrib.items() if key != "name" and usual.get(key) != value}
        self.other += [f"bridge {key}={value}" for key, value in unusual.items()]
        return element.get("name", "")

    def dns(self) -> tuple[bool, list[str], list[dict[str, t.Any]]]:
        element = self.root.find("dns")
        if element is None:
            return True, [], []
        self.rest(element, "dns", ("enable",), ("forwarder", "host"))
        forwarders = []
        for one in element.findall("forwarder"):
            if set(one.attrib) == {"addr"}:
                forwarders.append(one.attrib["addr"])
            else:
                self.note(one, "dns")
        hosts = [
            {"address": one.get("ip", ""), "names": [xml.text_of(name) for name in one.findall("hostname")]}
            for one in element.findall("host")
        ]
        return element.get("enable", "yes") != "no", forwarders, sorted(hosts, key=_by_address_text)

    def ip(self) -> dict[str, t.Any]:
        """Subnet, address and DHCP of the first IPv4 address; the others are put into words."""
        found: dict[str, t.Any] = {}
        for element in self.root.findall("ip"):
            interface = _interface_of(element)
            if found or interface is None:
                self.note(element)
                continue
            self.rest(element, "ip", ("family", "address", "netmask", "prefix"), ("dhcp",))
            found = {"subnet": str(interface.network), "address": str(interface.ip)}
            found.update(self._dhcp(element.find("dhcp")))
        return found

    def _dhcp(self, element: t.Optional[xml.Element]) -> dict[str, t.Any]:
        ranges: list[dict[str, str]] = []
        hosts: list[dict[str, str]] = []
        for child in [] if element is None else element:
            known = {"range": {"start", "end"}, "host": {"mac", "name", "ip"}}.get(child.tag, set())
            if len(child) or not set(child.attrib) <= known or (child.tag == "host" and not child.get("mac")):
                self.note(child, "dhcp")
            elif child.tag == "range":
                ranges.append({"start": child.get("start", ""), "end": child.get("end", "")})
            else:
                mac, name = child.get("mac", "").lower(), child.get("name", "").lower()
                hosts.append({"mac": mac, "address": child.get("ip", ""), "name": name})
        return {
            "dhcp_ranges": sorted(ranges, key=lambda one: _by_address_text({"address": one["start"]})),
            "dhcp_hosts": sorted(hosts, key=_by_address_text),
        }


def _by_address_text(item: t.Mapping[str, t.Any]) -> tuple[int, str]:
    try:
        return _by_address(item), ""
    except ValueError:
        return -1, str(item["address"])


def _interface_of(element: xml.Element) -> t.Optional[ipaddress.IPv4Interface]:
    mask = element.get("netmask") or element.get("prefix")
    try:
        return ipaddress.IPv4Interface(f"{element.get('address', '')}/{mask}") if mask else None
    except ValueError:
        return None


# Harmless, and not ours: they stay as they are when the network is defined anew.
_KEPT = ("metadata", "title", "description")
_TOP = ("name", "uuid", "forward", "bridge", "mac", "mtu", "domain", "dns", "ip", *_KEPT)


def parse(text: str) -> dict[str, t.Any]:
    """The normal form of libvirt's XML, stored or live."""
    root = xml.parse(text, "a network's XML", "network")
    reader = _Reader(root)
    # How many guests are plugged in is no part of the description.
    reader.rest(root, "", ("connections",), _TOP)
    kind, device = reader.forward()
    for domain in root.findall("domain"):
        reader.rest(domain, "domain", ("name", "localOnly"), ())
    dns, forwarders, dns_hosts = reader.dns()
    mtu = xml.number(xml.attribute(root, "mtu", "size"))
    return {
        **DEFAULTS,
        "type": kind,
        "forward_device": device,
        "bridge": reader.bridge(kind in MANAGED),
        "mtu": mtu or None,
        "domain": xml.attribute(root, "domain", "name").lower(),
        "domain_local": xml.attribute(root, "domain", "localOnly") == "yes",
        "dns": dns,
        "dns_forwarders": forwarders,
        "dns_hosts": dns_hosts,
        **reader.ip(),
        "other": reader.other,
    }


def kept_of(text: str) -> Kept:
    """What stays of a network when it is defined anew."""
    root = xml.parse(text, "a network's XML", "network")
    elements = tuple(child for child in root if child.tag in _KEPT)
    return Kept(uuid=xml.text_of(root, "uuid"), mac=xml.attribute(root, "mac", "address"), elements=elements)


# -- Who is plugged in


@dataclasses.dataclass(frozen=True)
class Plug:
    """An interface of a running guest: the network that it names, the bridge that it is on, its tap."""

    guest: str
    tap: str
    network: str = ""
    bridge: str = ""
    mac: str = ""
    isolated: bool = False


def plugs_of(domain_xml: str) -> list[Plug]:
    """The interfaces of a running guest, from its live XML."""
    root = xml.parse(domain_xml, "a guest's XML", "domain")
    guest = xml.text_of(root, "name")
    return [
        Plug(
            guest=guest,
            tap=xml.attribute(each, "target", "dev"),
            network=xml.attribute(each, "source", "network"),
            bridge=xml.attribute(each, "source", "bridge"),
            mac=xml.attribute(each, "mac", "address"),
            isolated=xml.attribute(each, "port", "isolated") == "yes",
        )
        for each in xml.all_at(root, "devices/interface")
    ]
