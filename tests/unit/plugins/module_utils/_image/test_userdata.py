# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""User data and networks: mistakes are said before a guest boots, and never with the data."""

from __future__ import annotations

import base64
import typing as t

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host.seeds import yaml_reader
from ansible_collections.cnvm.platform.plugins.module_utils._image.userdata import (
    check_cloud_config,
    check_network,
    check_openstack_network,
    check_user_data,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB someone"
READ = yaml_reader()

GOOD_TEXTS = [
    "#cloud-config\npackages: [curl]\n",
    "#cloud-config\n",
    "\n#Cloud-Config\npackages: [curl]\n",
    "#cloud-config # a remark\npackages: [curl]\n",
    "#!/bin/sh\nreboot\n",
    "#include\nhttps://example.com/x\n",
    "#cloud-boothook\n#!/bin/sh\n",
    "#cloud-config-archive\n- {type: text/cloud-boothook}\n",
    "#cloud-config-archive\n- '#!/bin/sh'\n- {content: \"#include\\nhttps://x/y\"}\n",
    "#cloud-config-archive\n- {type: text/x-shellscript, content: '[x'}\n",
    "#cloud-config-archive\n- 'packages: [curl]'\n- {type: text/cloud-config, content: 'runcmd: [reboot]'}\n",
    "#cloud-config-archive\n",
    "#!/bin/sh\r\nreboot\r\n",
    "#!/bin/sh\n# MIME-Version: 1.0\nreboot\n",
    "#cloud-config\n# MIME-Version: 1.0\npackages: [curl]  # ü\n",
    "  \n",
]


@pytest.mark.parametrize("text", GOOD_TEXTS)
@pytest.mark.parametrize("reader", [None, READ])
def test_texts_that_cloud_init_takes(text: str, reader: t.Any) -> None:
    found = check_user_data(text, "x", reader)
    if reader is None and text.lower().lstrip().startswith("#cloud-config"):
        # Nobody has looked into it, and that is said.
        assert found == ["x: only how it begins was checked: this host has no PyYAML (python3-yaml) to read it with."]
    else:
        assert found == []


def message(*parts: str, mark: str = "x") -> str:
    """A MIME message; each part is its headers, an empty line, and its content."""
    inner = "".join(f"--{mark}\n{part}\n" for part in parts)
    return f"Content-Type: multipart/mixed; boundary={mark}\nMIME-Version: 1.0\n\n{inner}--{mark}--\n"


PACKED = base64.b64encode(b"runcmd: [ broken").decode()
GOOD_PARTS = [
    "Content-Type: text/cloud-config\n\npackages: [curl]  # ü\n",
    "Content-Type: text/plain; charset=utf-8\n\n#cloud-config\npackages: [curl]\n",
    "Content-Type: text/x-shellscript\n\n#!/bin/sh\r\nreboot\r\n",
    "Content-Type: text/x-shellscript-per-boot\n\n#!/bin/sh\nreboot\n",
    "Content-Type: text/cloud-config-archive\n\n- 'packages: [curl]'\n",
    "\n",
]


def test_a_message_of_good_parts() -> None:
    assert check_user_data(message(*GOOD_PARTS), "x", READ) == []
    assert check_user_data(f"MIME-Version: 1.0\n{GOOD_PARTS[0]}", "x", READ) == []
    found = check_user_data(message(*GOOD_PARTS), "x", None)
    assert [text.partition(": only how it begins was checked")[0] for text in found] == ["x[0]", "x[1]", "x[4]"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (message(GOOD_PARTS[2], "Content-Type: text/cloud-config\n\nruncmd: [ broken\n"), "[1]: it is no YAML"),
        (message("Content-Type: text/plain\n\n#cloud-config\nruncmd: reboot\n"), "[0]: runcmd: it is no list"),
        (message("Content-Type: text/plain\n\n# cloud-config\nruncmd: []\n"), "[0]: cloud-init would not know"),
        (message("Content-Type: text/cloud-config-archive\n\n- 'runcmd: reboot'\n"), "[0][0].content: runcmd"),
        (
            message(f"Content-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\n{PACKED}\n"),
            "[0]: it is no YAML",
        ),
        # In a message in it.
        (
            message(GOOD_PARTS[2], message("Content-Type: text/cloud-config\n\n- a\n", mark="y")),
            "[1]: it is no mapping",
        ),
        ("MIME-Version: 1.0\nContent-Type: text/cloud-config\n\nruncmd: [ broken\n", ": it is no YAML"),
        # These words do not make a message of it.
        ("#cloud-config\n# MIME-Version: 1.0\nruncmd: [ broken\n", ": it is no YAML"),
    ],
)
def test_broken_parts_of_a_message(text: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_user_data(text, "user_data", READ)
    assert caught.value.message.startswith(f"user_data{where}")


JINJA = "## template: jinja\n#cloud-config\nruncmd: [ broken\n"


@pytest.mark.parametrize("reader", [None, READ])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (JINJA, "x: it is a Jinja template, and was not checked"),
        (message(f"Content-Type: text/plain\n\n{JINJA}"), "x[0]: it is a Jinja template"),
        (message("Content-Type: application/x-gzip\n\nabc\n"), "x[0]: it is compressed, and was not checked"),
        (message("Content-Type: text/cloudconfig\n\na: 1\n"), "x[0]: cloud-init has no such type of a part"),
        (message(), "x: cloud-init finds no part"),
    ],
)
def test_what_is_not_looked_into_is_a_warning(text: str, words: str, reader: t.Any) -> None:
    (found,) = check_user_data(text, "x", reader)
    assert found.startswith(words)


def test_what_an_archive_has_that_is_not_looked_into_is_a_warning() -> None:
    parts = [JINJA, {"type": "text/cloudconfig", "content": "a: 1"}]
    found = check_user_data(f"#cloud-config-archive\n{yaml.safe_dump(parts)}", "x", READ)
    assert [words.partition(",")[0] for words in found] == [
        "x[0].content: it is a Jinja template",
        "x[1].content: cloud-init has no such type of a part",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("packages: [curl]\n", "would not know"),
        ("# cloud-config\npackages: [curl]\n", "letter by letter"),
        ("#cloud_config\n", "letter by letter"),
        ("#cloud-configs\n", "letter by letter"),
        ("\ufeff#cloud-config\n", "byte order mark"),
        ("\nMIME-Version: 1.0\nContent-Type: text/cloud-config\n\npackages: [curl]\n", "would not know"),
        ("[amiconfig]\nplugins=cernvm\n", "check_user_data"),
    ],
)
@pytest.mark.parametrize("reader", [None, READ])
def test_texts_that_cloud_init_would_leave_out(text: str, words: str, reader: t.Any) -> None:
    with pytest.raises(InputError) as caught:
        check_user_data(text, "user_data", reader)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#cloud-config\npackages: [curl\n", "line 3"),
        ("#cloud-config\na: b: c\n", "line 2"),
        ("#cloud-config\n\tpackages: [curl]\n", "line 2"),
        ("#cloud-config\nruncmd: []\nruncmd: []\n", "twice (line 3)"),
        ("#cloud-config\nusers:\n  - name: a\n    name: b\n", "twice (line 4)"),
        ("#cloud-config\n- packages\n", "no mapping"),
        ("#cloud-config\n" + "[" * 5000, "no YAML"),
        ("#cloud-config\na: !!python/object:os.system x\n", "no YAML"),
        ("#cloud-config-archive\n- [a\n", "no YAML"),
        ("#cloud-config-archive\ntype: text/cloud-config\n", "user_data: it is no list"),
        ("#cloud-config-archive\n- 7\n", "user_data[0]: it is neither"),
        ("#cloud-config-archive\n- {content: {a: b}}\n", "user_data[0].content: it is no text"),
        ("#cloud-config-archive\n- '#!/bin/sh'\n- 'runcmd: reboot'\n", "user_data[1].content: runcmd: it is no list"),
        (
            "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    #cloud-config\n    runcmd: [a\n",
            "user_data[0].content: it is no YAML",
        ),
    ],
)
def test_broken_yaml(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_user_data(text, "user_data", READ)
    assert words in str(caught.value)


GOOD_CONFIG: dict[str, t.Any] = {
    "hostname": "web",
    "users": ["default", {"name": "a", "ssh_authorized_keys": [KEY], "sudo": "ALL=(ALL) ALL", "lock_passwd": True}],
    "ssh_authorized_keys": [KEY],
    "packages": ["curl", ["nginx", "1.0"]],
    "package_update": "yes",
    "write_files": [{"path": "/etc/x", "content": "y", "permissions": "0644"}, {"path": "/etc/z"}],
    "runcmd": ["echo hi", ["ls", "-l", 5], None],
    "bootcmd": [],
    "ssh_pwauth": False,
    "growpart": {"mode": "auto"},
    "ntp": None,
    "timezone": "UTC",
}


def test_a_good_configuration() -> None:
    assert check_cloud_config(GOOD_CONFIG, "x") == []
    assert check_user_data("#cloud-config\n" + yaml.safe_dump(GOOD_CONFIG), "x", READ) == []


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"packages": "curl"}, "packages"),
        ({"runcmd": [{"echo foo": "bar"}]}, "runcmd[0]"),
        ({"bootcmd": [True]}, "bootcmd[0]"),
        ({"runcmd": [["a", {"b": 1}]]}, "runcmd[0]"),
        ({"runcmd": "reboot"}, "runcmd"),
        ({"write_files": [{"path": "etc/x"}]}, "write_files[0]"),
        ({"write_files": ["x"]}, "write_files[0]"),
        ({"write_files": [{"path": "/x", "permissions": 420}]}, "write_files[0].permissions"),
        ({"write_files": [{"path": "/x", "permissions": "rwx"}]}, "write_files[0].permissions"),
        ({"write_files": [{"path": "/x", "content": 7}]}, "write_files[0].content"),
        ({"users": True}, "users"),
        ({"users": [{"sudo": "x"}]}, "users[0]"),
        ({"users": [{"name": 7}]}, "users[0].name"),
        ({"users": [{"name": "a", "ssh_authorized_keys": 7}]}, "users[0].ssh_authorized_keys"),
        ({"ssh_authorized_keys": [7]}, "ssh_authorized_keys[0]"),
        ({"hostname": 7}, "hostname"),
        ({"password": 123456}, "password"),
        ({"package_update": "perhaps"}, "package_update"),
        ({"growpart": "auto"}, "growpart"),
        ({7: "x"}, "7"),
    ],
)
def test_what_cloud_init_would_choke_on(config: dict[t.Any, t.Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_cloud_config(config, "user_data")
    assert caught.value.message.startswith(f"user_data: {where}:")
    assert caught.value.hint


def test_keys_that_are_not_known_are_a_warning() -> None:
    warnings = check_cloud_config({"run_cmd": [], "package": [], "write_flies": [], "mine": 1}, "x")
    assert len(warnings) == 4
    for known, said in zip(("runcmd", "packages", "write_files"), warnings):
        assert said.endswith(f"{known} is meant perhaps.")
    assert "perhaps" not in warnings[3]


def test_what_is_no_key_is_a_warning() -> None:
    warnings = check_cloud_config({"ssh_authorized_keys": [KEY, "C4n4ry"]}, "x")
    assert len(warnings) == 1
    assert "ssh_authorized_keys[1]" in warnings[0]


VALUES: st.SearchStrategy[t.Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just("C4n4ry")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["name", "path"]), inner)),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD_CONFIG, "users", "write_files"]), VALUES))
def test_messages_never_have_the_data(config: dict[str, t.Any]) -> None:
    try:
        said = " ".join(check_cloud_config(config, "x"))
    except InputError as error:
        said = str(error)
    assert "C4n4ry" not in said


@given(
    st.sampled_from(["", "*", "!", "!!", "!a!", "&", "'", '"', "[", "{", "|", "%", "\\", '"\\']), st.text(max_size=9)
)
def test_messages_about_yaml_never_have_the_data(start: str, end: str) -> None:
    try:
        said = " ".join(check_user_data(f"#cloud-config\npassword: {start}C4n4ry{end}", "x", READ))
    except InputError as error:
        said = str(error)
    assert "C4n4ry" not in said


# -- Networks
V2 = {
    "version": 2,
    "ethernets": {
        "nic": {
            "match": {"macaddress": "52:54:00:12:34:56"},
            "dhcp4": False,
            "addresses": ["192.0.2.5/24", "2001:db8::5/64", {"192.0.2.6/24": {"label": "x"}}],
            "gateway4": "192.0.2.1",
            "routes": [{"to": "default", "via": "192.0.2.1"}],
            "nameservers": {"addresses": ["192.0.2.1"]},
        },
        "other": None,
    },
}
V1 = {
    "version": 1,
    "config": [
        {"type": "physical", "name": "eth0", "subnets": [{"type": "static", "address": "192.0.2.5/24"}]},
        {"type": "physical", "name": "eth1", "subnets": [{"type": "static", "address": "192.0.2.5", "netmask": "x"}]},
        {"type": "nameserver", "address": ["192.0.2.1"]},
    ],
}


@pytest.mark.parametrize(
    "config", [V1, V2, {"network": V2}, {"version": 1, "config": "disabled"}, {"config": "disabled"}]
)
def test_good_networks(config: dict[str, t.Any]) -> None:
    assert check_network(config, "x", READ) == []
    assert check_network(yaml.safe_dump(config), "x", READ) == []
    assert check_network("anything", "x", None) == []


def nic(**words: t.Any) -> dict[str, t.Any]:
    return {"version": 2, "ethernets": {"nic": words}}


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({}, ""),
        ({"ethernets": {}}, ""),
        ({"version": "2"}, ""),
        ({"version": True}, ""),
        ({"version": 3}, ""),
        ("eth0\n", ""),
        ({"version": 2, "ethernets": ["eth0"]}, " ethernets"),
        ({"version": 2, "ethernets": {"nic": "dhcp"}}, " ethernets.nic"),
        (nic(match={"macaddress": 41135085296}), " ethernets.nic.match.macaddress"),
        (nic(macaddress="52:54:00:12:34"), " ethernets.nic.macaddress"),
        (nic(match="eth0"), " ethernets.nic.match"),
        (nic(dhcp4="perhaps"), " ethernets.nic.dhcp4"),
        (nic(addresses="192.0.2.5/24"), " ethernets.nic.addresses"),
        (nic(addresses=["192.0.2.5"]), " ethernets.nic.addresses"),
        (nic(addresses=["192.0.2.500/24"]), " ethernets.nic.addresses"),
        (nic(addresses=[192.0]), " ethernets.nic.addresses"),
        (nic(gateway4="nowhere"), " ethernets.nic.gateway4"),
        (nic(routes=[{"via": "192.0.2.1"}]), " ethernets.nic.routes"),
        (nic(routes={"to": "default"}), " ethernets.nic.routes"),
        (nic(nameservers=["192.0.2.1"]), " ethernets.nic.nameservers"),
        ({"version": 1}, " config"),
        ({"version": 1, "config": [{"name": "eth0"}]}, " config[0]"),
        ({"version": 1, "config": [{"type": "physical", "subnets": [{}]}]}, " config[0].subnets"),
        (
            {"version": 1, "config": [{"type": "physical", "subnets": [{"type": "static", "address": "1.2.3.4"}]}]},
            " config[0].subnets.address",
        ),
        ({"version": 1, "config": [{"type": "physical", "mac_address": 5}]}, " config[0].mac_address"),
    ],
)
def test_networks_that_would_not_come_up(config: t.Any, where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_network(config, "network_config", READ)
    assert caught.value.message.startswith(f"network_config:{where}")


@pytest.mark.parametrize(
    ("config", "where", "nearest"),
    [
        ({"version": 2, "ethernet": {}}, " ethernet", "ethernets"),
        (nic(adresses=["192.0.2.5/24"]), " ethernets.nic.adresses", "addresses"),
        ({"network": nic(DHCP4=True)}, " ethernets.nic.DHCP4", "dhcp4"),
        (nic(mine=1), " ethernets.nic.mine", ""),
        (nic(match={"mac_address": "52:54:00:12:34:56"}), " ethernets.nic.match.mac_address", "macaddress"),
        (nic(nameservers={"address": []}), " ethernets.nic.nameservers.address", "addresses"),
        ({"version": 2, "vlans": {"v": {"ids": 5}}}, " vlans.v.ids", "id"),
        ({"version": 1, "config": [{"type": "phisical"}]}, " config[0].type", "physical"),
    ],
)
def test_words_of_a_network_that_are_not_known_are_a_warning(config: t.Any, where: str, nearest: str) -> None:
    (said,) = check_network(config, "network_config", READ)
    assert said.startswith(f"network_config:{where}: cloud-init has no such ")
    assert ("perhaps" in said, nearest in said.partition(";")[2]) == (bool(nearest), True)


def test_a_network_of_openstack() -> None:
    good = {"links": [{"id": "a", "ethernet_mac_address": "52:54:00:12:34:56"}], "networks": [], "services": []}
    check_openstack_network(good, "x")
    for bad in (V2, {}, {"links": "a"}, {"links": ["a"]}, {"links": [{"ethernet_mac_address": 7}]}):
        with pytest.raises(InputError):
            check_openstack_network(bad, "x")
