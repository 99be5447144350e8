# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay of a host, with the commands recorded instead of run."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import stat
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, libvirt, netns, overlay
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._net import links
from ansible_collections.cnvm.platform.plugins.module_utils._net.endpoint import Endpoint, host_link
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import (
    Document,
    Member,
    Settings,
    bridge_mac,
    document_for,
)
from ansible_collections.cnvm.platform.plugins.modules import overlay as module


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


DOMAIN = """<domain><name>db</name><devices>
<interface type="bridge"><source bridge="cnvm0"/><target dev="vnet3"/></interface></devices></domain>"""


@pytest.mark.parametrize(
    ("domains", "guest"), [([DOMAIN], "db (vnet3)"), ([], "interface vnet3"), (None, "interface vnet3")]
)
def test_it_stays_while_anything_is_plugged_in(
    own_place: Path, monkeypatch: pytest.MonkeyPatch, domains: t.Optional[list[str]], guest: str
) -> None:
    def running_xml(_connection: object) -> list[str]:
        if domains is None:
            raise libvirt.LibvirtError("libvirt does not answer")
        return domains

    monkeypatch.setattr(libvirt, "available", lambda: True)
    monkeypatch.setattr(libvirt, "connect", contextlib.nullcontext)
    monkeypatch.setattr(libvirt, "running_xml", running_xml)
    files.write_json(str(own_place / "containers/web/definition.json"), {"name": "web", "uuid": "1"})
    cable = host_link("1")
    for ports, said in (
        (["vnet3"], guest),
        ([cable], f"web ({cable})"),
        ([cable, "vnet3"], f"web ({cable}), {guest}"),
    ):
        monkeypatch.setattr(overlay, "_listdir", lambda path, ports=ports: ["cnvm-vx", "cnvm-gwp", *ports])
        run = Recorder()
        with pytest.raises(Refused, match=re.escape(f"plugged into it are: {said}.")):
            overlay.take_down(Host(run=run), document())
        assert run.calls == []


def test_it_goes_when_only_its_own_is_plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_listdir", lambda path: ["cnvm-vx", "cnvm-gwp"])
    run = Recorder()
    overlay.take_down(Host(run=run), document())
    assert "nft -f -" in run.calls


def route(destination: str, **changes: str) -> dict[str, t.Any]:
    return {"dst": destination, "dev": "eth0", "scope": "link", **changes}


def ask(routes: list[dict[str, t.Any]], *, check_mode: bool) -> dict[str, t.Any]:
    """The module on a host with these routes."""
    key = base64.b64encode(bytes(32)).decode()
    params = {
        **{option: settings.get("default") for option, settings in module.argument_spec().items()},
        "name": "host1",
        "members": [{"name": "host1", "underlay": "192.0.2.1", "underlay_mtu": 1500, "public_key": key}],
    }
    return module.present(Host(run=Recorder(**{"ip_-j_-4_route": (0, json.dumps(routes))}, **BARE)), params, check_mode)


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("10.100.0.0/16", "subnet: 10.100.101.0/24 overlaps the host's route to 10.100.0.0/16 at eth0."),
        ("10.100.100.128/25", "tunnel_subnet: 10.100.100.0/24 overlaps the host's route to 10.100.100.128/25 at eth0."),
    ],
)
def test_a_subnet_that_the_host_reaches_otherwise_is_refused(destination: str, said: str, check_mode: bool) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        ask([route(destination)], check_mode=check_mode)
    assert not os.path.exists(paths.OVERLAY_FILE)
    # What it has already is not asked about again: it may have been there first.
    run = Recorder(**{"ip_-j_-4_route": (0, json.dumps([route(destination)]))})
    assert overlay.refuse_routed(Host(run=run), document(), document()) == []


@pytest.mark.parametrize("check_mode", [True, False])
def test_such_a_subnet_is_refused_before_the_host_has_a_key(own_place: Path, check_mode: bool) -> None:
    """With the role, nothing of the overlay is on the host by then."""
    params = {option: settings.get("default") for option, settings in module.argument_spec().items()}
    run = Recorder(**{"ip_-j_-4_route": (0, json.dumps([route("10.100.0.0/16")]))})
    with pytest.raises(Refused, match=r"subnet: 10\.100\.10.\.0/24 overlaps the host's route to 10\.100\.0\.0/16"):
        module.prepare(Host(run=run), {**params, "name": "host1", "underlay": "192.0.2.1"}, check_mode)
    assert not any(call.startswith("wg") for call in run.calls)
    assert list(own_place.iterdir()) == []


def test_the_overlays_own_routes_are_not_in_its_way() -> None:
    own = [route("10.100.100.0/24", dev="cnvm-wg"), route("10.100.101.0/24", dev="cnvm0")]
    assert ask(own, check_mode=True)["warnings"] == []


def test_a_subnet_inside_of_one_behind_a_router_is_warned_of() -> None:
    inside = "is inside of the host's route to 10.0.0.0/8 at eth0, of which less can be reached then."
    assert ask([route("10.0.0.0/8", gateway="192.0.2.254", scope="global")], check_mode=True)["warnings"] == [
        f"subnet: 10.100.101.0/24 {inside}",
        f"tunnel_subnet: 10.100.100.0/24 {inside}",
    ]


def test_without_encryption_there_are_no_tunnels_in_the_way() -> None:
    run = Recorder(**{"ip_-j_-4_route": (0, json.dumps([route("10.100.100.0/24")]))})
    assert overlay.refuse_routed(Host(run=run), None, document("none")) == []
    with pytest.raises(Refused, match="tunnel_subnet: "):
        overlay.refuse_routed(Host(run=run), document("none"), document())


def test_an_address_that_somebody_left_out_has_goes_to_no_new_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answers(spec: Endpoint) -> str:
        asked.append(f"{spec.address} on {spec.bridge} but for {spec.mac}")
        return "02:00:00:00:00:07"

    monkeypatch.setattr(netns, "address_holder", answers)
    before = document()
    before["peers"] = [peer for peer in before["peers"] if peer["name"] == "host2"]
    overlay.refuse_taken(before, document(), ["host1", "host2", "host3"])
    assert asked == []
    with pytest.raises(Refused, match=r"10\.100\.101\.3, which host3 would get, is taken: 02:00:00:00:00:07"):
        overlay.refuse_taken(before, document(), ["host1", "host3"])
    assert asked == [f"10.100.101.3 on cnvm0 but for {bridge_mac('host3')}"]

    def no_bridge(spec: Endpoint) -> str:
        raise OSError("No such device")

    monkeypatch.setattr(netns, "address_holder", no_bridge)
    overlay.refuse_taken(before, document(), ["host1", "host3"])


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
