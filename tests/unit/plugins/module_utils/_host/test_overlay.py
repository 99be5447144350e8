# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay of a host, with the commands recorded instead of run."""

from __future__ import annotations

import json
import os
import stat
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, overlay
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._net import links
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import (
    Document,
    Member,
    Settings,
    document_for,
)


def document(encryption: str = "wireguard") -> Document:
    members = [Member(f"host{n}", f"192.0.2.{n}", 1500, f"key{n}") for n in (1, 2, 3)]
    return document_for("host1", Settings(gateway="10.100.101.254", encryption=encryption), members)


class Recorder:
    """Answers by the beginning of the command line; what has no answer ends with code 0 and says nothing."""

    def __init__(self, **answers: tuple[int, str]) -> None:
        self.answers = {key.replace("_", " "): answer for key, answer in answers.items()}
        self.calls: list[str] = []
        self.given: dict[str, str] = {}

    def __call__(
        self, argv: t.Sequence[str], *, stdin: t.Optional[str] = None, check: bool = True, **_: t.Any
    ) -> CommandResult:
        line = " ".join(argv)
        self.calls.append(line)
        self.given[line] = stdin or ""
        rc, text = next((answer for start, answer in self.answers.items() if line.startswith(start)), (0, ""))
        result = CommandResult(tuple(argv), rc, text, text if rc else "")
        return checked(result) if check else result


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the host below ``tmp_path``."""
    monkeypatch.setattr(overlay, "KEY_FILE", str(tmp_path / "overlay.key"))
    monkeypatch.setattr(overlay, "LOCK_FILE", str(tmp_path / "overlay.lock"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "containers"))
    monkeypatch.setattr(overlay, "_sysctl_path", lambda name: str(tmp_path / name))
    return tmp_path


BARE = {"ip_-j": (0, "[]"), "nft_list": (1, "No such file or directory")}


def test_a_key_is_made_once_and_is_the_hosts_alone() -> None:
    run = Recorder(wg_genkey=(0, "PRIVATE\n"), wg_pubkey=(0, "PUBLIC\n"))
    assert overlay.public_key(Host(run=run), make=False) == ""
    assert run.calls == []
    assert overlay.public_key(Host(run=run), make=True) == "PUBLIC"
    assert overlay.public_key(Host(run=run), make=True) == "PUBLIC"
    assert run.calls.count("wg genkey") == 1
    assert stat.S_IMODE(os.stat(overlay.KEY_FILE).st_mode) == 0o600
    assert not any("PRIVATE" in call for call in run.calls)  # a command line can be read by everybody


def test_check_mode_only_looks() -> None:
    run = Recorder(**BARE)
    steps = overlay.reconcile(Host(run=run), document(), check=True)
    assert steps.make_tunnel
    assert [call for call in run.calls if not call.startswith(("ip -j", "bridge -j", "nft list"))] == []


def test_rules_come_first_and_entries_last(own_place: Path) -> None:
    files.write_text(overlay.KEY_FILE, "PRIVATE\n")
    run = Recorder(**BARE)
    overlay.reconcile(Host(run=run), document())
    done = [call for call in run.calls if not call.startswith(("ip -j", "bridge -j", "nft list"))]
    assert done == [
        "nft -f -",
        "ip link add name cnvm-wg type wireguard",
        "wg syncconf cnvm-wg /dev/stdin",
        "ip -batch -",
        "bridge -batch -",
    ]
    assert "PrivateKey = PRIVATE" in run.given["wg syncconf cnvm-wg /dev/stdin"]
    assert (own_place / "net.ipv4.ip_forward").read_text() == "1"


def test_a_kernel_without_wireguard_gets_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(overlay, "_wait_for_userspace", waited.append)
    files.write_text(overlay.KEY_FILE, "PRIVATE\n")
    run = Recorder(**BARE, ip_link_add=(2, "Error: Unknown device type."))
    overlay.reconcile(Host(run=run), document())
    assert "systemctl restart cnvm-wireguard.service" in run.calls
    assert waited


def test_a_unit_that_does_not_start_says_why() -> None:
    run = Recorder(
        **BARE,
        ip_link_add=(2, "Error: Unknown device type."),
        systemctl_restart=(1, "Job failed"),
        journalctl=(0, "ERROR: (cnvm-wg) Failed to listen on uapi socket: too many open files\n"),
    )
    with pytest.raises(HostError, match="too many open files"):
        overlay.reconcile(Host(run=run), document())


def test_without_encryption_wireguard_is_not_asked_for() -> None:
    run = Recorder(**BARE)
    overlay.reconcile(Host(run=run), document("none"))
    assert not any(call.startswith("wg") or "wireguard" in call for call in run.calls)


def test_peers_that_changed_are_told_even_when_they_look_right(monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(overlay.KEY_FILE, "PRIVATE\n")
    monkeypatch.setattr(overlay, "_plan", lambda host, document: links.Steps())
    run = Recorder()
    assert not overlay.reconcile(Host(run=run), document())
    assert run.calls == []
    assert overlay.reconcile(Host(run=run), document(), changed_peers=True).wireguard
    assert run.calls == ["wg syncconf cnvm-wg /dev/stdin"]


def test_it_stays_while_a_container_is_plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_listdir", lambda path: ["cnvm-vx", "cnvm-gwp", "cv0123456789a"])
    run = Recorder()
    with pytest.raises(Refused, match="1 containers of this host"):
        overlay.take_down(Host(run=run), document())
    assert run.calls == []


ADDRESSES = json.dumps(
    [
        {
            "ifname": name,
            "mtu": mtu,
            "flags": ["UP"],
            "addr_info": [{"family": "inet", "local": local, "prefixlen": 24}],
        }
        for name, mtu, local in (("eth0", 1500, "192.0.2.1"), ("eth1", 9000, "198.18.0.1"))
    ]
)


@pytest.mark.parametrize(
    ("wished", "found"),
    [
        ("", ("192.0.2.1", 1500)),
        ("198.18.0.1", ("198.18.0.1", 9000)),
        ("203.0.113.9", ("203.0.113.9", 1500)),  # a router outside translates it
    ],
)
def test_where_the_others_reach_the_host(wished: str, found: tuple[str, int]) -> None:
    way = json.dumps([{"dst": "198.51.100.1", "dev": "eth0", "prefsrc": "192.0.2.1"}])
    run = Recorder(**{"ip_-j_-d": (0, ADDRESSES), "ip_-j_route": (0, way)})
    assert overlay.underlay(Host(run=run), wished) == found


def test_a_host_without_a_default_route_has_to_be_told() -> None:
    run = Recorder(**{"ip_-j_-d": (0, ADDRESSES), "ip_-j_route": (2, "RTNETLINK answers: Network is unreachable")})
    with pytest.raises(HostError) as error:
        overlay.underlay(Host(run=run), "")
    assert "overlay_endpoint" in error.value.hint
    assert overlay.underlay(Host(run=run), "192.0.2.1") == ("192.0.2.1", 1500)


@pytest.mark.parametrize(
    ("way", "handshake", "said"),
    [
        ("small", 0, "no WireGuard handshake between UDP 192.0.2.1:51820 and 192.0.2.2:51820."),
        ("small", 5, "no answer between UDP 192.0.2.1:51820 and 192.0.2.2:51820."),
        ("full", 5, "with packets of 1420 bytes, only with smaller ones."),
        ("overlay", 5, "through VXLAN, UDP port 4789 between 10.100.100.1 and 10.100.100.2."),
    ],
)
def test_a_peer_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, way: str, handshake: int, said: str
) -> None:
    monkeypatch.setattr(overlay, "unreachable", lambda document, names, timeout_s: {"host2": way})
    dump = f"PRIVATE\tkey1\t51820\toff\nkey2\t(none)\t192.0.2.2:51820\t10.100.100.2/32\t{handshake}\t0\t0\t25\n"
    run = Recorder(wg_show=(0, dump))
    with pytest.raises(PeerError) as error:
        overlay.require_peers(Host(run=run), document(), ["host2"], 3)
    assert "host1 (10.100.10" in error.value.message
    assert "host2 (10.100.10" in error.value.message
    assert said in error.value.message
    assert error.value.hint
    assert error.value.details["unreachable"] == {"host2": way}


def test_a_host_without_an_overlay_says_so() -> None:
    assert overlay.status(Host(run=Recorder()), None) == {"configured": False, "up": False, "peers": []}
    with pytest.raises(HostError, match="no overlay"):
        overlay.commands()["overlay"](["up"], Host(run=Recorder()))
