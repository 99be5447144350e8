# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Missing
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import network, xml

# -- What libvirt says of networks (recorded)

DEFAULT = """<network connections='1'>
  <name>default</name>
  <uuid>dd8fe884-6c02-601e-7551-cca97df1c5df</uuid>
  <forward mode='nat'>
    <nat>
      <port start='1024' end='65535'/>
    </nat>
  </forward>
  <bridge name='virbr0' stp='on' delay='0'/>
  <mac address='52:54:00:f2:6d:a3'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
    </dhcp>
  </ip>
</network>
"""

# libvirt 11.3.0 of a network that runs.
LAB = """<network connections='1'>
  <name>lab</name>
  <uuid>7166eb60-9953-417c-8425-70334f588875</uuid>
  <forward mode='nat'>
    <nat>
      <port start='1024' end='65535'/>
    </nat>
  </forward>
  <bridge name='lab0' stp='on' delay='0'/>
  <mac address='52:54:00:22:6b:25'/>
  <domain name='lab.example' localOnly='yes'/>
  <dns>
    <host ip='192.168.150.2'>
      <hostname>gate</hostname>
    </host>
  </dns>
  <ip address='192.168.150.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.150.100' end='192.168.150.149'/>
      <range start='192.168.150.160' end='192.168.150.169'/>
      <host mac='52:54:00:00:00:02' name='web' ip='192.168.150.10'/>
      <host mac='52:54:00:00:00:01' ip='192.168.150.11'/>
    </dhcp>
  </ip>
</network>
"""

FLEET = """<network connections='1'>
  <name>fleet</name>
  <uuid>00b13e07-2632-411f-bcb4-6d47a8910bdb</uuid>
  <forward mode='bridge'/>
  <bridge name='cnvm0'/>
</network>
"""

# libvirt 9.0.0 of what build() makes of LAN below.
LAN_LIVE = """<network>
  <name>lan</name>
  <uuid>f3b63908-40bc-4092-8aee-c4d912ed8e6a</uuid>
  <forward dev='eth0' mode='nat'>
    <interface dev='eth0'/>
  </forward>
  <bridge stp='on' delay='0'/>
  <mtu size='1400'/>
  <domain name='lab.test' localOnly='yes'/>
  <dns>
    <forwarder addr='9.9.9.9'/>
    <host ip='192.168.150.77'>
      <hostname>a</hostname>
      <hostname>b.c</hostname>
    </host>
  </dns>
  <ip address='192.168.150.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.150.2' end='192.168.150.254'/>
      <host mac='52:54:00:00:00:01' name='web' ip='192.168.150.9'/>
    </dhcp>
  </ip>
</network>
"""

# Nothing of this can be said in the options; nothing of it may be lost without a word.
STRANGE = """<network ipv6='yes' trustGuestRxFilters='no'>
  <name>strange</name>
  <uuid>81ff0d90-c91e-6742-64da-4a736edb9a9b</uuid>
  <title>Title</title>
  <description>a &lt;b&gt; &amp; c</description>
  <metadata><m:x xmlns:m="urn:m"/></metadata>
  <forward mode='nat'>
    <nat ipv6='yes'>
      <address start='203.0.113.1' end='203.0.113.9'/>
      <port start='500' end='1000'/>
    </nat>
  </forward>
  <bridge name='virbr7' stp='off' delay='5' zone='libvirt'/>
  <mac address='52:54:00:17:3F:37'/>
  <domain name='Example.COM' register='yes'/>
  <dns forwardPlainNames='no'>
    <forwarder domain='example.org' addr='8.8.8.8'/>
    <txt name='example' value='example value'/>
    <host ip='192.168.122.2'><hostname>myhost</hostname></host>
  </dns>
  <bandwidth><inbound average='1000'/></bandwidth>
  <ip family='ipv6' address='2001:db8:ca2:2::1' prefix='64'/>
  <ip address='192.168.122.1' prefix='24' localPtr='yes'>
    <tftp root='/srv/tftp'/>
    <dhcp>
      <range start='192.168.122.100' end='192.168.122.254'><lease expiry='1' unit='hours'/></range>
      <range start='192.168.122.20' end='192.168.122.30'/>
      <host mac='00:16:3E:77:e2:ed' name='A.example.com' ip='192.168.122.10'/>
      <host name='nomac' ip='192.168.122.11'/>
      <bootp file='pxelinux.0'/>
    </dhcp>
  </ip>
  <ip address='192.168.123.1' netmask='255.255.255.0'/>
  <route address='192.168.222.0' prefix='24' gateway='192.168.122.10'/>
</network>
"""

LAN = {
    "name": "lan",
    "subnet": "192.168.150.0/24",
    "domain": "Lab.Test",
    "domain_local": True,
    "dhcp_hosts": [{"mac": "52:54:00:00:00:01", "address": "192.168.150.9", "name": "web"}],
    "dns_hosts": [{"address": "192.168.150.77", "names": ["a", "b.c"]}],
    "dns_forwarders": ["9.9.9.9"],
    "mtu": 1400,
    "forward_device": "eth0",
}


def description(item: dict[str, t.Any]) -> dict[str, t.Any]:
    """The normal form alone, as parse() returns it."""
    return {key: item[key] for key in network.DEFAULTS}


# -- XML


def test_parse_of_what_libvirt_made_of_it() -> None:
    assert network.parse(LAN_LIVE) == description(network.normalise(LAN))


def test_parse_of_networks_that_run() -> None:
    lab = {
        "name": "lab",
        "subnet": "192.168.150.0/24",
        "bridge": "lab0",
        "domain": "lab.example",
        "domain_local": True,
        "dns_hosts": [{"address": "192.168.150.2", "names": ["gate"]}],
        "dhcp_ranges": [
            {"start": "192.168.150.160", "end": "192.168.150.169"},
            {"start": "192.168.150.100", "end": "192.168.150.149"},
        ],
        "dhcp_hosts": [
            {"mac": "52:54:00:00:00:01", "address": "192.168.150.11"},
            {"mac": "52:54:00:00:00:02", "address": "192.168.150.10", "name": "web"},
        ],
    }
    assert network.parse(LAB) == description(network.normalise(lab))
    fleet = network.with_overlay(network.normalise({"name": "fleet", "type": "overlay"}), {"bridge": "cnvm0"})
    assert network.parse(FLEET) == description(fleet)


def test_parse_of_the_default_network() -> None:
    wanted = network.normalise({"name": "default", "subnet": "192.168.122.0/24", "bridge": "virbr0"})
    assert network.parse(DEFAULT) == description(wanted)
    assert network.kept_of(DEFAULT) == network.Kept("dd8fe884-6c02-601e-7551-cca97df1c5df", "52:54:00:f2:6d:a3")


def test_parse_puts_the_rest_into_words() -> None:
    found = network.parse(STRANGE)
    assert found["other"] == [
        "ipv6=yes",
        "trustGuestRxFilters=no",
        "bandwidth (inbound average=1000)",
        "route address=192.168.222.0 prefix=24 gateway=192.168.122.10",
        "forward nat ipv6=yes",
        "forward nat address start=203.0.113.1 end=203.0.113.9",
        "forward nat port start=500 end=1000",
        "domain register=yes",
        "dns forwardPlainNames=no",
        "dns txt name=example value=example value",
        "dns forwarder domain=example.org addr=8.8.8.8",
        "bridge stp=off",
        "bridge delay=5",
        "bridge zone=libvirt",
        "ip family=ipv6 address=2001:db8:ca2:2::1 prefix=64",
        "ip localPtr=yes",
        "ip tftp root=/srv/tftp",
        "dhcp range start=192.168.122.100 end=192.168.122.254 (lease expiry=1 unit=hours)",
        "dhcp host name=nomac ip=192.168.122.11",
        "dhcp bootp file=pxelinux.0",
        "ip address=192.168.123.1 netmask=255.255.255.0",
    ]
    assert found["subnet"] == "192.168.122.0/24"
    assert found["dhcp_ranges"] == [{"start": "192.168.122.20", "end": "192.168.122.30"}]
    assert found["dhcp_hosts"] == [{"mac": "00:16:3e:77:e2:ed", "address": "192.168.122.10", "name": "a.example.com"}]
    assert found["domain"] == "example.com"


def test_build_keeps_what_nobody_described() -> None:
    kept = network.kept_of(STRANGE)
    root = xml.parse(network.build(network.normalise(LAN), "strange", kept))
    assert xml.text_of(root, "uuid") == "81ff0d90-c91e-6742-64da-4a736edb9a9b"
    assert xml.text_of(root, "title") == "Title"
    assert xml.text_of(root, "description") == "a <b> & c"
    assert root.find("metadata/{urn:m}x") is not None
    assert xml.attribute(root, "mac", "address") == "52:54:00:17:3F:37"
    # A bridge that is not libvirt's has its own.
    bridge = network.normalise({"name": "b", "type": "bridge", "bridge": "br0"})
    assert xml.parse(network.build(bridge, "b", kept)).find("mac") is None


def test_parse_of_modes_that_are_not_ours() -> None:
    found = network.parse(
        "<network><name>x</name><forward mode='vepa' dev='eth0'><interface dev='eth0' connections='2'/>"
        "<interface dev='eth1'/></forward></network>"
    )
    assert (found["type"], found["forward_device"]) == ("vepa", "eth0")
    assert found["other"] == ["forward interface dev=eth1"]


# -- Any network

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9](\.[a-z]{2,4})?", fullmatch=True)
DEVICES = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}[a-z0-9]", fullmatch=True)
MACS = st.integers(0, 2**24 - 1).map(
    lambda number: "52:54:00:" + ":".join(f"{number:06x}"[at : at + 2] for at in (0, 2, 4))
)


@st.composite
def items(draw: t.Any, kinds: tuple[str, ...] = ("nat", "routed", "open", "isolated", "bridge")) -> dict[str, t.Any]:
    """What a user may write."""
    item: dict[str, t.Any] = {"name": draw(NAMES), "type": draw(st.sampled_from(kinds))}
    if item["type"] == "bridge":
        return {**item, "bridge": draw(DEVICES)}
    bridge = draw(st.one_of(st.none(), DEVICES))
    assume(bridge is None or not bridge.startswith("cnvm"))
    item.update(bridge=bridge, mtu=draw(st.one_of(st.none(), st.integers(576, 65521))), dns=draw(st.booleans()))
    if item["type"] in ("nat", "routed"):
        item["forward_device"] = draw(st.one_of(st.none(), DEVICES))
    if item["type"] == "isolated" and draw(st.booleans()):
        return item
    length = draw(st.integers(20, 28))
    third = draw(st.integers(0, 255))
    subnet = ipaddress.IPv4Network(f"10.{third}.0.0/{length}")
    addresses = draw(st.lists(st.integers(1, subnet.num_addresses - 2), min_size=4, max_size=8, unique=True))
    own, *others = (str(subnet.network_address + each) for each in addresses)
    item.update(subnet=str(subnet), address=own)
    macs = draw(st.lists(MACS, min_size=len(others), max_size=len(others), unique=True))
    hosts = [{"mac": mac, "address": each} for mac, each in zip(macs, others)]
    item["dhcp_hosts"] = hosts[: draw(st.integers(0, len(hosts)))]
    if draw(st.booleans()):
        item["dhcp_ranges"] = [{"start": each, "end": each} for each in others[: draw(st.integers(0, 3))]]
    if draw(st.booleans()):
        item.update(domain=draw(NAMES), domain_local=draw(st.booleans()))
    if item["dns"]:
        item["dns_forwarders"] = draw(st.lists(st.sampled_from(["9.9.9.9", "8.8.8.8"]), unique=True))
        names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
        named = [(others[0], names[:1]), (others[1], names[1:])][: draw(st.integers(0, 2))]
        item["dns_hosts"] = [{"address": address, "names": some} for address, some in named]
    return item


@given(items())
def test_what_was_built_is_read_again(item: dict[str, t.Any]) -> None:
    normal = network.normalise(item)
    text = network.build(normal, normal["name"])
    assert network.parse(text) == description(normal)


@given(items())
def test_normal_form_is_a_normal_form(item: dict[str, t.Any]) -> None:
    normal = network.normalise(item)
    again = {key: value for key, value in normal.items() if key != "other"}
    # What is not said at all is not allowed for some types.
    again = {key: value for key, value in again.items() if value != network.DEFAULTS.get(key) or key == "dhcp_ranges"}
    if normal["type"] == "bridge" or not normal["subnet"]:
        again.pop("dhcp_ranges")
    assert network.normalise(again) == normal


@given(st.text(alphabet="<>/='\" abnetworkip\n", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"<network>{text}</network>", f"<network><ip {text}/></network>"):
        try:
            network.parse(candidate)
        except InputError:
            pass


# -- What a user may write


def test_nat_network_has_defaults() -> None:
    """cloudMe's network: one option beside its name."""
    normal = network.normalise({"name": "cmnet", "bridge": "bridge0", "subnet": "192.168.1.0/24"})
    assert normal == {
        **network.DEFAULTS,
        "name": "cmnet",
        "state": "active",
        "autostart": None,
        "type": "nat",
        "bridge": "bridge0",
        "subnet": "192.168.1.0/24",
        "address": "192.168.1.1",
        "dhcp_ranges": [{"start": "192.168.1.2", "end": "192.168.1.254"}],
    }


@pytest.mark.parametrize(
    ("address", "ranges"),
    [
        ("192.168.1.1", [("192.168.1.2", "192.168.1.254")]),
        ("192.168.1.254", [("192.168.1.1", "192.168.1.253")]),
        ("192.168.1.100", [("192.168.1.1", "192.168.1.99"), ("192.168.1.101", "192.168.1.254")]),
    ],
)
def test_default_range_is_what_is_left(address: str, ranges: list[tuple[str, str]]) -> None:
    normal = network.normalise({"name": "a", "subnet": "192.168.1.0/24", "address": address})
    assert [(one["start"], one["end"]) for one in normal["dhcp_ranges"]] == ranges


def test_default_range_is_no_larger_than_libvirt_takes() -> None:
    (only,) = network.normalise({"name": "a", "subnet": "10.0.0.0/8"})["dhcp_ranges"]
    size = int(ipaddress.IPv4Address(only["end"])) - int(ipaddress.IPv4Address(only["start"])) + 1
    assert size == 65535
    assert network.normalise({"name": "a", "subnet": "10.0.0.0/8", "dhcp_ranges": [only]})["dhcp_ranges"] == [only]


def test_no_range_where_none_is_wanted() -> None:
    assert network.normalise({"name": "a", "subnet": "192.168.1.0/24", "dhcp_ranges": []})["dhcp_ranges"] == []
    assert network.normalise({"name": "a", "type": "routed", "subnet": "192.168.1.0/24"})["dhcp_ranges"] == []


NAT = {"name": "lan", "subnet": "192.168.150.0/24"}
HOST = {"mac": "52:54:00:00:00:01", "address": "192.168.150.9", "name": "web"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 7}, "not text"),
        ({"name": "a/b"}, "not allowed"),
        ({"name": "<x>"}, "not allowed"),
        ({"name": "a&amp;b"}, "not allowed"),
        ({"name": ""}, "not allowed"),
        ({"name": None}, "name is missing"),
        ({"state": "running"}, "state"),
        ({"type": "ovs"}, "type"),
        ({"unknown": 1}, "unknown key"),
        ({"autostart": "maybe"}, "autostart"),
        ({"subnet": None}, "subnet is missing"),
        ({"subnet": "192.168.150.1/24"}, "The subnet is 192.168.150.0/24"),
        ({"subnet": "192.168.150.0"}, "such as"),
        ({"subnet": "192.168.150.0/24<"}, "such as"),
        ({"subnet": "2001:db8::/64"}, "such as"),
        ({"subnet": 3232274944}, "not text"),
        ({"subnet": "192.168.150.0/31"}, "too small"),
        ({"subnet": "10.0.0.0/7"}, "too large"),
        ({"subnet": "127.0.0.0/8"}, "not for hosts"),
        ({"subnet": "0.0.0.0/8"}, "not for hosts"),
        ({"subnet": "224.0.0.0/8"}, "not for hosts"),
        ({"subnet": "169.254.0.0/16"}, "not for hosts"),
        ({"address": "192.168.151.1"}, "no host's address"),
        ({"address": "192.168.150.0"}, "no host's address"),
        ({"address": "192.168.150.255"}, "no host's address"),
        ({"address": "192.168.150.1/24"}, "plain IPv4"),
        ({"bridge": "cnvm0"}, "overlay"),
        ({"bridge": "a" * 16}, "1 to 15"),
        ({"bridge": "a b"}, "1 to 15"),
        ({"bridge": "a/b"}, "1 to 15"),
        ({"bridge": "virbr%d"}, "1 to 15"),
        ({"bridge": ".."}, "1 to 15"),
        ({"bridge": "'/><x"}, "1 to 15"),
        ({"mtu": 100}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"mtu": "1_400"}, "mtu"),
        ({"mtu": 1e3}, "mtu"),
        ({"domain": "a b"}, "as in DNS"),
        ({"domain": "-a"}, "as in DNS"),
        ({"domain": "a..b"}, "as in DNS"),
        ({"domain": "a'/>"}, "as in DNS"),
        ({"domain_local": True}, "needs a domain"),
        ({"dns": False, "dns_forwarders": ["9.9.9.9"]}, "without DNS"),
        ({"dns_forwarders": ["dns.example"]}, "plain IPv4"),
        ({"dns_hosts": [{"address": "192.168.150.9"}]}, "name is missing"),
        ({"dns_hosts": [{"address": "192.168.150.9", "names": ""}]}, "name is missing"),
        ({"dns_hosts": [{"address": "192.168.150.9", "names": ["a"]}] * 2}, "the address"),
        (
            {"dns_hosts": [{"address": "192.0.2.1", "names": ["a"]}, {"address": "192.0.2.2", "names": ["b", "A"]}]},
            "the name",
        ),
        ({"type": "isolated", "forward_device": "eth0"}, "forward_device"),
        ({"type": "open", "forward_device": "eth0"}, "forward_device"),
        ({"dhcp_ranges": [{"start": "192.168.151.2", "end": "192.168.151.9"}]}, "not in the subnet"),
        ({"dhcp_ranges": [{"start": "192.168.150.9", "end": "192.168.150.2"}]}, "comes before"),
        ({"dhcp_ranges": [{"start": "192.168.150.0", "end": "192.168.150.9"}]}, "the subnet's own"),
        ({"dhcp_ranges": [{"start": "192.168.150.9", "end": "192.168.150.255"}]}, "the subnet's last"),
        ({"dhcp_ranges": [{"start": "192.168.150.1", "end": "192.168.150.9"}]}, "host's own address"),
        (
            {"address": "192.168.150.5", "dhcp_ranges": [{"start": "192.168.150.2", "end": "192.168.150.9"}]},
            "two ranges",
        ),
        ({"dhcp_ranges": [{"start": "192.168.150.2"}]}, "end"),
        ({"dhcp_ranges": ["192.168.150.2-192.168.150.9"]}, "not a mapping"),
        ({"dhcp_ranges": "x"}, "not a list"),
        (
            {
                "dhcp_ranges": [
                    {"start": "192.168.150.2", "end": "192.168.150.9"},
                    {"start": "192.168.150.9", "end": "192.168.150.20"},
                ]
            },
            "overlaps",
        ),
        ({"subnet": "10.0.0.0/8", "dhcp_ranges": [{"start": "10.0.0.2", "end": "10.1.0.1"}]}, "too large"),
        ({"dhcp_hosts": [{**HOST, "mac": 525400000001}]}, "not text"),
        ({"dhcp_hosts": [{**HOST, "mac": "525400000001"}]}, "quoted"),
        ({"dhcp_hosts": [{**HOST, "mac": "53:54:00:00:00:01"}]}, "one interface"),
        ({"dhcp_hosts": [{**HOST, "mac": "00:00:00:00:00:00"}]}, "one interface"),
        ({"dhcp_hosts": [{"address": "192.168.150.9"}]}, "mac"),
        ({"dhcp_hosts": [{"mac": "52:54:00:00:00:01"}]}, "address"),
        ({"dhcp_hosts": [{**HOST, "address": "192.168.151.9"}]}, "not in the subnet"),
        ({"dhcp_hosts": [{**HOST, "address": "192.168.150.1"}]}, "host's own"),
        ({"dhcp_hosts": [{**HOST, "name": "a_b"}]}, "as in DNS"),
        ({"dhcp_hosts": [{**HOST, "name": False}]}, "False is not text. Put it in quotes"),
        ({"domain": 7}, "7 is not text. Put it in quotes"),
        ({"state": False}, "state: False is not allowed"),
        ({"subnet": 0}, "subnet: 0 is not text"),
        ({"dhcp_hosts": [HOST, {**HOST, "address": "192.168.150.10", "name": "b"}]}, "the MAC"),
        ({"dhcp_hosts": [HOST, {**HOST, "mac": "52:54:00:00:00:02", "name": "b"}]}, "the address"),
        (
            {"dhcp_hosts": [HOST, {"mac": "52:54:00:00:00:02", "address": "192.168.150.10", "name": "WEB"}]},
            "the name",
        ),
        ({"dhcp_hosts": [HOST, {**HOST, "mac": HOST["mac"].upper()}]}, "the MAC"),
        ({"type": "bridge", "bridge": "br0"}, "no subnet"),
        ({"type": "bridge", "bridge": "br0", "subnet": None, "dns": False}, "no dns"),
        ({"type": "bridge", "bridge": "br0", "subnet": None, "mtu": 0}, "no mtu"),
        ({"type": "bridge", "subnet": None}, "bridge is missing"),
        ({"type": "overlay", "subnet": None, "bridge": "cnvm0"}, "Leave bridge out"),
        ({"type": "isolated", "subnet": None, "domain": "lab"}, "no domain"),
        ({"type": "isolated", "subnet": None, "dhcp_hosts": [HOST]}, "no dhcp_hosts"),
    ],
)
def test_bad_input_is_refused(change: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        network.normalise({**NAT, **change})
    assert words in str(error.value)


def test_input_is_decoded_as_surveys_send_it() -> None:
    normal = network.normalise(
        {"name": "lan", "subnet": " 192.168.150.0/24 ", "mtu": "1400", "autostart": "no", "domain_local": "no"}
    )
    assert (normal["mtu"], normal["autostart"], normal["subnet"]) == (1400, False, "192.168.150.0/24")
    # What Ansible makes of "" and of "192.0.2.1, 192.0.2.2".
    empty = network.normalise({**NAT, "dns_forwarders": [""], "dhcp_hosts": [""], "dns_hosts": [""]})
    assert (empty["dns_forwarders"], empty["dhcp_hosts"], empty["dns_hosts"]) == ([], [], [])
    for two in (["192.0.2.1", " 192.0.2.2"], "192.0.2.1, 192.0.2.2"):
        assert network.normalise({**NAT, "dns_forwarders": two})["dns_forwarders"] == ["192.0.2.1", "192.0.2.2"]


def test_absent_needs_nothing_but_a_name() -> None:
    assert network.normalise({"name": "lan", "state": "absent"})["state"] == "absent"
    # What a description says beside that is not looked at: it may be wrong by now.
    assert network.normalise({"name": "lan", "state": "absent", "subnet": "x"})["subnet"] == ""


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([{"name": "lan", "state": "absent"}], "name"),
        ([{"name": "b", "subnet": "192.168.0.0/16"}], "overlap"),
        ([{"name": "b", "subnet": "192.168.151.0/24", "bridge": "br7"}], "bridge"),
    ],
)
def test_list_has_nothing_twice(others: list[dict[str, t.Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network.normalise_all([{**NAT, "bridge": "br7"}, *others])


def test_list_may_replace_a_network_and_share_a_bridge_that_is_not_libvirts() -> None:
    found = network.normalise_all(
        [
            {"name": "old", "state": "absent", "subnet": "192.168.150.0/24"},
            NAT,
            {"name": "one", "type": "bridge", "bridge": "br0"},
            {"name": "two", "type": "bridge", "bridge": "br0"},
        ]
    )
    assert [item["name"] for item in found] == ["old", "lan", "one", "two"]
    with pytest.raises(InputError, match="not a list"):
        network.normalise_all({"name": "lan"})


def test_overlay_takes_the_bridge_of_the_overlay() -> None:
    item = network.normalise({"name": "fleet", "type": "overlay"})
    assert network.with_overlay(item, {"bridge": "cnvm0", "mtu": 1370})["bridge"] == "cnvm0"
    with pytest.raises(Missing, match="no overlay"):
        network.with_overlay(item, None)
    nat = network.normalise(NAT)
    assert network.with_overlay(nat, None) == nat


# -- Who is plugged in

DOMAIN = """<domain type='qemu' id='3'>
  <name>web</name>
  <devices>
    <interface type='network'>
      <mac address='52:54:00:6b:3c:58'/>
      <source network='lan' portid='1cd7ac4f-9e4d-4b1e-8a1d-7b1d2f9a8c55' bridge='virbr7'/>
      <target dev='vnet4'/>
      <model type='virtio'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:6b:3c:59'/>
      <source bridge='br0'/>
      <target dev='vnet5'/>
      <port isolated='yes'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:f1'/>
      <source network='fleet' portid='7176b568-4c78-45a2-8aad-506175880ae0' bridge='cnvm0'/>
      <target dev='vnet2'/>
    </interface>
    <interface type='user'><mac address='52:54:00:6b:3c:5a'/></interface>
  </devices>
</domain>
"""


def test_plugs_of_a_running_guest() -> None:
    assert network.plugs_of(DOMAIN) == [
        network.Plug("web", "vnet4", "lan", "virbr7", "52:54:00:6b:3c:58"),
        network.Plug("web", "vnet5", "", "br0", "52:54:00:6b:3c:59", isolated=True),
        network.Plug("web", "vnet2", "fleet", "cnvm0", "52:54:00:00:00:f1"),
        network.Plug("web", "", "", "", "52:54:00:6b:3c:5a"),
    ]
