# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parsers of what a host says about itself, and the whole on a host that has nothing."""

from __future__ import annotations

import json
import platform
import shutil
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, hypervisor, info, libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.modules import host_info

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n'
UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.2 LTS"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'
ROCKY = (
    'NAME="Rocky Linux"\nVERSION_ID="9.5"\nID="rocky"\nID_LIKE="rhel centos fedora"\nPRETTY_NAME="Rocky Linux 9.5"\n'
)
RHEL = 'NAME="Red Hat Enterprise Linux"\nVERSION_ID="9.4"\nID="rhel"\nID_LIKE="fedora"\n# a comment=1\n'
ALPINE = "ID=alpine\nVERSION_ID=3.20.1\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (DEBIAN, ("debian", "debian", "13")),
        (UBUNTU, ("ubuntu", "debian", "24")),
        (ROCKY, ("rocky", "rhel", "9")),
        (RHEL, ("rhel", "rhel", "9")),
        (ALPINE, ("alpine", "alpine", "3")),
        ("", ("", "", "")),
    ],
)
def test_os(text: str, wanted: tuple[str, str, str]) -> None:
    found = info.os_facts(text)
    assert (found["id"], found["family"], found["major_version"]) == wanted


INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Xeon
flags\t\t: vmx fpu

processor\t: 1
model name\t: Other
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


def test_cpuinfo_of_intel_and_of_arm() -> None:
    assert info.parse_cpuinfo(INTEL) == {"model": "Xeon", "vendor": "GenuineIntel", "count": 2, "flags": ["fpu", "vmx"]}
    assert info.parse_cpuinfo(ARM) == {"model": "0xd0c", "vendor": "0x41", "count": 1, "flags": ["asimd", "fp"]}


def test_meminfo() -> None:
    text = "MemTotal:       24684084 kB\nMemFree:  1 kB\nMemAvailable:   23587640 kB\nHugePages_Total:       0\n"
    assert info.parse_meminfo(text) == {"total_bytes": 24684084 * 1024, "available_bytes": 23587640 * 1024}


def test_auxv() -> None:
    data = b"".join(word.to_bytes(8, "little") for word in (33, 7, 51, 11952, 0, 0))
    assert info.parse_auxv(data)[51] == 11952


UDP = """   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  367: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2
  368: 0100007F:0035 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4243 2
"""
TCP6 = (
    "  sl  local_address  remote_address  st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A"
    " 00000000:00000000 00:00000000 00000000     0        0 77 1 0 100 0 0 10 0\n"
    "   1: 0000000000000000FFFF00000B035A0A:0016 0000000000000000FFFF000001035A0A:C5E2 01"
    " 00000000:00000000 02:000A5B6A 00000000     0        0 78 4 0 20 4 29 10 -1\n"
)


def test_sockets() -> None:
    assert info.parse_sockets(UDP, "udp") == [{"protocol": "udp", "port": 51820, "inode": "4242"}]
    assert info.parse_sockets(TCP6, "tcp6") == [{"protocol": "tcp", "port": 22, "inode": "77"}]
    assert info.parse_sockets("", "tcp") == []


CHAINS = """table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
    }
}
table ip nat {
    chain input {
        type nat hook input priority 100; policy accept;
    }
}
table inet other {
    chain INPUT {
        type filter hook input priority 10; policy accept;
    }
}
"""


def test_only_chains_that_drop_what_comes_in() -> None:
    assert info.parse_input_chains(CHAINS) == [{"family": "inet", "table": "filter", "chain": "input"}]
    assert info.parse_input_chains("") == []


@pytest.mark.parametrize(
    "text", ["51820", "51820/icmp", "0/udp", "65536/udp", "x/tcp", "-1/udp", "5_1/udp", "٣/udp", ""]
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"ports\[1\]"):
        info.parse_ports(["22/tcp", text])


def test_ports_of_tunnels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own sockets: of WireGuard, of VXLAN (two that share a port), and of something else."""
    ports = {"51820/udp": 51820, "4789/udp": 4789, "1701/udp": 1701, "5000/udp": 0}
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = " 367: 00000000:{:04X} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 none 2\n"
    sockets = head + "".join(line.format(port) for port in ports.values() if port)
    monkeypatch.setattr(files, "text_of", lambda path: sockets if path in ("/proc/net/udp", "/proc/net/udp6") else "")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    vxlan = [
        {"ifname": name, "linkinfo": {"info_kind": "vxlan", "info_data": {"port": 4789}}} for name in ("vx1", "vx2")
    ]
    answers = {
        "wg show all listen-port": (0, "wg0\t51820\nwg1\t51821\n", ""),
        "ip -j -d link show type vxlan": (0, json.dumps([{}, *vxlan, {}]), ""),
    }
    assert info._port_users(tools(answers), info.parse_ports(list(ports))) == [
        {"port": "1701/udp", "program": "", "interface": ""},
        {"port": "4789/udp", "program": "", "interface": "vx1"},
        {"port": "4789/udp", "program": "", "interface": "vx2"},
        {"port": "51820/udp", "program": "", "interface": "wg0"},
    ]


def test_ports() -> None:
    assert info.parse_ports(["51820/udp", "22/tcp"]) == [("udp", 51820), ("tcp", 22)]


def test_machine_id_is_not_shown() -> None:
    digest = info.machine_digest("064af8b39cdb412aadd77ec018d18f0a\n")
    assert len(digest) == 32
    assert digest != "064af8b39cdb412aadd77ec018d18f0a"
    assert digest == info.machine_digest("064af8b39cdb412aadd77ec018d18f0a")
    assert info.machine_digest("\n") == ""


def bare_host() -> Host:
    def run(argv: t.Sequence[str], **dummy: t.Any) -> CommandResult:
        return CommandResult(argv=tuple(argv), rc=127, stderr=f"{argv[0]}: not found")

    return Host(run=run)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.usefixtures("no_programs")
def test_a_bare_host_is_described_without_an_error() -> None:
    found = info.gather(bare_host(), ["51820/udp"], 1.0)
    json.dumps(found)
    assert found["criu"]["usable"] is False
    assert "not installed" in found["criu"]["reason"]
    assert found["runtimes"]["runc"] == {
        "path": "",
        "version": "",
        "checkpoint": False,
        "reason": "runc is not installed.",
    }
    assert found["modes"] == ["cold"]
    assert found["libvirt"] == found["qemu"] == ""
    assert found["clock"]["skew_s"] > 1000


def tools(outputs: dict[str, tuple[int, str, str]]) -> Host:
    """A host with programs that answer by their words (without the directory)."""

    def run(argv: t.Sequence[str], **dummy: t.Any) -> CommandResult:
        rc, stdout, stderr = outputs.get(" ".join([argv[0].rpartition("/")[2], *argv[1:]]), (1, "", ""))
        return CommandResult(argv=tuple(argv), rc=rc, stdout=stdout, stderr=stderr)

    return Host(run=run)


def documented(name: str) -> set[str]:
    """The keys of a returned dictionary of the module, as its documentation names them."""
    source = Path(host_info.__file__ or "").read_text(encoding="utf-8")
    text = source.partition('RETURN = r"""')[2].partition('"""')[0]
    return set(yaml.safe_load(text)["host_info"]["contains"][name]["contains"])


def test_guests_where_there_is_no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert info.gather(tools({}))["guests"] is None
    found = info.gather(tools({}), guests=True)["guests"]
    assert (found["reachable"], found["reason"]) == (False, "libvirt is not installed.")
    assert {check["check"] for check in found["report"] if check["needed"] and not check["ok"]} == {
        "libvirt",
        "QEMU",
        "qemu-img",
    }
    assert set(found) == documented("guests")


def test_guests_where_libvirt_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection() -> t.NoReturn:
        raise HostError("libvirt could not be reached.", hint="Start it.")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("libvirtd", "qemu-img") else None)
    monkeypatch.setattr(libvirt, "connect", no_connection)
    found = hypervisor.look({"cpu_extension": "", "kvm": {"usable": False, "reason": "no"}}, "x86_64")
    assert (found["reachable"], found["reason"]) == (False, "libvirt could not be reached. Start it.")
    assert found["programs"]["qemu-img"] == "/usr/bin/qemu-img"
    assert set(found) == documented("guests")


LIBRARY = "\tlibcriu.so.2 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcriu.so.2\n"
ANSWERS = {
    "criu --version": (0, "Version: 4.2.1\n", ""),
    "criu check": (0, "Looks good.\n", ""),
    "criu check --feature uffd-noncoop": (0, "uffd-noncoop is supported\n", ""),
    "runc --version": (0, "runc version 1.3.6+ds1\n", ""),
    "runc features": (0, json.dumps({"annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"}}), ""),
    "crun --version": (0, "crun version 1.21\n+CRIU +YAJL\n", ""),
    "crun features": (0, json.dumps({"annotations": {"run.oci.crun.checkpoint.enabled": "true"}}), ""),
    "ldconfig -p": (0, LIBRARY, ""),
}


@pytest.mark.parametrize(
    ("change", "kernel", "runc", "crun", "modes"),
    [
        ({}, "6.18.1", "", "", ["post_copy", "stop_copy", "cold"]),
        ({"ldconfig -p": (0, "", "")}, "6.18.1", "", "libcriu.so.2", ["post_copy", "stop_copy", "cold"]),
        (
            {"crun --version": (0, "crun version 1.8.1\n+YAJL\n", "")},
            "6.18.1",
            "",
            "built without",
            ["post_copy", "stop_copy", "cold"],
        ),
        ({"crun features": (1, "unknown command features", "")}, "6.18.1", "", "", ["post_copy", "stop_copy", "cold"]),
        ({"runc features": (0, '{"annotations": {}}', "")}, "6.18.1", "built without", "", ["stop_copy", "cold"]),
        ({"criu --version": (0, "Version: 4.1.1\n", "")}, "6.18.1", "4.2 or newer", "4.2 or newer", ["cold"]),
        ({"criu --version": (0, "Version: 4.1.1\n", "")}, "6.12.1", "", "", ["post_copy", "stop_copy", "cold"]),
        (
            {"criu check": (1, "", "Error (a.c:1): no ns_last_pid\n")},
            "6.18.1",
            "no ns_last_pid",
            "no ns_last_pid",
            ["cold"],
        ),
    ],
)
def test_checkpoints(
    monkeypatch: pytest.MonkeyPatch, change: dict, kernel: str, runc: str, crun: str, modes: list[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}" if name in ("criu", "runc", "crun") else None)
    monkeypatch.setattr(platform, "release", lambda: kernel)
    found = info.gather(tools({**ANSWERS, **change}))
    for name, reason in (("runc", runc), ("crun", crun)):
        assert found["runtimes"][name]["checkpoint"] is (reason == "")
        assert reason in found["runtimes"][name]["reason"]
    assert found["modes"] == modes
