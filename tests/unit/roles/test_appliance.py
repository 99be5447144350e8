# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook of an appliance: what its host can do, what it asks for, and the way to the screen."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import capabilities
from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage, unsaid

# Of a host without KVM, whose network has to be started by hand.
REPORT = capabilities.report_lines(
    capabilities.report(
        {"cpu_extension": "svm", "kvm": {"device": True, "usable": False, "reason": "a virtual CPU hung"}},
        {
            "libvirt": "11.3.0",
            "qemu": "10.0.2",
            "device": {"mode": "0600", "owner": "root", "group": "kvm"},
            "modules": ["kvm", "kvm_amd"],
            "programs": {
                "qemu-img": "/usr/bin/qemu-img",
                "dnsmasq": "",
                "virtiofsd": "",
                "xorriso": "/usr/bin/xorriso",
            },
            "reachable": True,
            "reason": "",
            "firmware": ["bios"],
            "security": [],
            "default_network": {"state": "active", "autostart": False, "type": "nat", "subnet": "192.168.122.0/24"},
        },
    )
)


@pytest.fixture
def host(stage: Stage) -> Stage:
    """host1 has it run, with a screen."""
    stage.answers["host1"]["host_info"] = {"host_info": {"guests": {"report_lines": REPORT}}}
    stage.answers["host1"]["guest"] = {"guests": [{"state": "running", "vnc": {"listen": "127.0.0.1", "port": 5901}}]}
    return stage


def test_what_guests_need_is_said_before_it_is_made(host: Stage) -> None:
    """In one report: the processor, the modules, /dev/kvm, the network, and what is not right of them."""
    said = host.playbook("appliance", host="host1", guest="cernvm", iso="/c.iso")
    assert {line.partition(":")[0] for line in REPORT} >= {"processor", "kernel modules", "/dev/kvm", "network default"}
    assert any(line.startswith("/dev/kvm: no (mode 0600, owner root:kvm)") for line in REPORT)
    for line in REPORT:
        assert f'"{line}"' in said
        assert said.index(line) < said.index("TASK [Have it run]")


def test_the_screen_is_reached_as_ansible_reaches_the_host(host: Stage) -> None:
    way: dict[str, t.Any] = {
        "ansible_connection": "ssh",
        "ansible_host": "203.0.113.1",
        "ansible_user": "root",
        "ansible_port": 2222,
    }
    said = host.playbook("appliance", host="host1", guest="cernvm", iso="/c.iso", **way)
    assert (
        "Its screen: ssh -p 2222 -N -L 5900:127.0.0.1:5901 root@203.0.113.1, then a VNC viewer at 127.0.0.1:5900."
        in said
    )


def test_the_screen_of_this_machine(host: Stage) -> None:
    said = host.playbook("appliance", host="host1", guest="cernvm", iso="/c.iso")
    assert "Its screen: a VNC viewer at 127.0.0.1:5901." in said


def test_a_word_that_is_empty_is_not_said(host: Stage) -> None:
    """A survey sends all of its words."""
    words = ("user_data", "check_user_data", "seed_type", "cache_mib", "memory_mib", "vcpus", "network", "graphics")
    host.playbook("appliance", host="host1", guest="cernvm", iso="/c.iso", **unsaid(words))
    ((_host, options),) = host.asked("guest")
    (guest,) = options["guests"]
    # Before ansible-core 2.19 it is text in there, which the module takes, too.
    assert [int(disk["size_mib"]) for disk in guest["disks"]] == [20480]
    assert guest["networks"] == [{"source": "default"}]
    (host.path / "context.txt").write_text("[amiconfig]", encoding="utf-8")
    host.playbook(
        "appliance", host="host1", guest="cernvm", iso="/c.iso", user_data="context.txt", check_user_data="no"
    )
    expected = {
        "type": "nocloud",
        "user_data": "[amiconfig]",
        # As it was said: what is neither true nor false is refused by the module.
        "check_user_data": "no",
    }
    assert host.asked("guest")[0][1]["guests"][0]["cloud_init"] == expected
    told: dict[str, t.Any] = {"user_data": "context.txt", "check_user_data": "no", "seed_type": "configdrive"}
    host.playbook("appliance", host="host1", guest="cernvm", iso="/c.iso", **told)
    assert host.asked("guest")[0][1]["guests"][0]["cloud_init"] == {**expected, "type": "configdrive"}


@pytest.mark.parametrize(
    ("args", "words", "said"),
    [
        ([], {}, "say where, with -e host=HOST, one host of the inventory."),
        ([], {"host": ""}, "say where, with -e host=HOST, one host of the inventory."),
        ([], {"host": "hots1"}, "hots1 is not a host of this play. Hosts in it: host1, host2, localhost."),
        # It would be made twice.
        ([], {"host": "cnvm_hosts"}, "cnvm_hosts is not a host of this play."),
        (["--limit", "host2"], {"host": "host1"}, "host1 is not a host of this play. Hosts in it: host2. If --limit"),
    ],
)
def test_one_host_must_be_said(host: Stage, args: list[str], words: dict[str, str], said: str) -> None:
    assert f"host: {said}" in host.playbook("appliance", *args, guest="cernvm", iso="/c.iso", check=False, **words)
    assert host.asked("host_info") == host.asked("guest") == []


def test_with_limit(host: Stage) -> None:
    host.playbook("appliance", "--limit", "host1", host="host1", guest="cernvm", iso="/c.iso")
    assert [name for name, dummy in host.asked("guest")] == ["host1"]
