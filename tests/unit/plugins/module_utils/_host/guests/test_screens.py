# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Screens, cards of the host, and how a guest is run."""

from __future__ import annotations

import os
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Missing, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import kvm
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml

from ..fake_domains import FakeConnection
from .bring import WEB, bring, foreign, one


def test_two_screens_at_one_port(connection: FakeConnection) -> None:
    def at(name: str, port: t.Optional[int] = 5905, listen: str = "127.0.0.1", **more: t.Any) -> dict[str, t.Any]:
        return {**WEB, "name": name, "graphics": {"type": "vnc", "port": port, "listen": listen}, **more}

    for check_mode in (True, False):
        with pytest.raises(Refused, match="The port 5905 of the screen of guest 'web' is that of 'db', which is to be"):
            bring(at("web"), at("db", listen="0.0.0.0"), check_mode=check_mode)
    assert connection.calls == []
    bring(at("web"))
    for check_mode in (True, False):
        with pytest.raises(Refused, match="guest 'db' is that of 'web', which runs"):
            bring(at("db"), check_mode=check_mode)
    # At another address, or port, or as long as it is off, it is in nobody's way.
    bring(at("db", listen="192.0.2.1"), at("other", 5906), at("off", state="stopped"), at("none", None))
    with pytest.raises(Refused, match="guest 'off' is that of 'web', which runs"):
        bring({"name": "off", "state": "running"})
    # Nor is one that ends first.
    bring({"name": "web", "state": "stopped"}, {"name": "off", "state": "running"})
    # That libvirt has chosen it makes no difference.
    (live,) = t.cast("t.Any", connection.domains["none"].live).iter("graphics")
    live.set("port", "5907")
    with pytest.raises(Refused, match="guest 'new' is that of 'none', which runs"):
        bring(at("new", 5907))


def test_vnc_for_everybody_is_said(connection: FakeConnection) -> None:
    result = bring({**WEB, "graphics": {"type": "vnc", "listen": "0.0.0.0"}})
    assert len([warning for warning in result["warnings"] if "0.0.0.0" in warning]) == 2
    assert not any("screen" in warning for warning in bring({**WEB, "name": "db", "graphics": "vnc"})["warnings"])


def test_it_is_said_of_a_guest_that_is_started_by_its_name() -> None:
    start = {"name": "web", "state": "running"}
    bring({**WEB, "state": "stopped", "graphics": {"type": "vnc", "listen": "0.0.0.0", "password": "secret"}})
    (warning,) = [one for one in bring(start)["warnings"] if "screen" in one]
    assert "0.0.0.0" in warning
    assert bring(start)["warnings"] == [], "it runs already"


def test_a_second_screen_is_not_left_unseen(connection: FakeConnection) -> None:
    first = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>"
    foreign(connection, f"{first}<graphics type='vnc' port='5999' listen='0.0.0.0'/>")
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}], "graphics": "vnc"}
    taken = bring({**wanted, "state": "stopped"}, adopt=True)
    assert taken["diff"]["before"]["old"]["graphics"]["more"] == "vnc on 0.0.0.0"
    stored = t.cast("t.Any", connection.domains["old"].stored)
    assert [each.get("listen") for each in stored.findall("devices/graphics")] == ["127.0.0.1"]
    assert not bring({**wanted, "state": "stopped"})["changed"]
    # Somebody adds one later.
    stored.find("devices").append(xml.build(("graphics", {"type": "vnc", "listen": "0.0.0.0"})))
    (warning,) = [one for one in bring({"name": "old", "state": "running"})["warnings"] if "screen" in one]
    assert "vnc on 0.0.0.0" in warning
    running = bring(wanted)["guests"][0]
    assert [each["option"] for each in running["restart_reasons"]] == ["graphics"]


def test_a_password_is_that_of_the_screen_that_shows_something(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = {**WEB, "graphics": {"type": "vnc", "password": "before"}}
    bring(screen)
    for root in (connection.domains["web"].stored, connection.domains["web"].live):
        devices = t.cast("t.Any", root).find("devices")
        devices.insert(0, xml.build(("graphics", {"type": "egl-headless"})))
    updated: list[str] = []
    monkeypatch.setattr(connection.domains["web"], "updateDeviceFlags", lambda text, flags: updated.append(text))
    bring({**screen, "graphics": {"type": "vnc", "password": "after"}})
    assert [xml.parse(each).get("type") for each in updated] == ["vnc"]
    assert "egl-headless" in connection.domains["web"].XMLDesc(2)


def test_a_card_on_an_open_vswitch_bridge_is_taken_over(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = ["/sys/class/net/ovs0"]
    monkeypatch.setattr(os.path, "isdir", lambda path, real=os.path.isdir: path in devices or real(path))
    port = "<source bridge='ovs0'/><virtualport type='openvswitch'/><model type='virtio'/>"
    foreign(connection, f"<interface type='bridge'><mac address='52:54:00:00:00:78'/>{port}</interface>")
    switched = {"type": "bridge", "source": "ovs0"}
    wanted = {"name": "old", "memory_mib": 256, "machine": "pc", "networks": [{}, switched]}
    bring(wanted, adopt=True)
    assert "openvswitch" in connection.domains["old"].XMLDesc(2)
    with pytest.raises(Missing, match="no bridge 'ovs0'"):
        bring({**wanted, "networks": [{}, switched, switched]})
    bring({"name": "old", "state": "stopped", "force_stop": True})
    devices.clear()
    with pytest.raises(Missing, match="no bridge 'ovs0'"):
        bring({"name": "old", "state": "running"})


def test_kvm_is_used_where_it_works(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="no /dev/kvm"):
        bring({**WEB, "accelerator": "kvm"})
    bring({**WEB, "state": "stopped"})
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    assert not bring({**WEB, "state": "stopped"})["changed"], "a guest that does not start stays as it is"
    found = one(WEB)
    assert found["type"] == "kvm"
    assert "change cpu" in found["actions"]
    assert one({**WEB, "name": "slow", "accelerator": "tcg"})["type"] == "tcg"


def test_nothing_is_said_of_kvm_that_was_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(WEB)
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    result = bring({**WEB, "machine": "pc"}, restart_on_change=True)
    assert (result["guests"][0]["restarted"], result["warnings"]) == (True, [])


def test_how_it_is_run_is_looked_at_when_its_state_alone_is_named(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, stop = {"name": "web", "state": "running"}, {"name": "web", "state": "stopped"}
    bring({**WEB, "state": "stopped"})
    assert bring(start)["warnings"] == [
        "Guest web is emulated, which is slow; KVM cannot be used: there is no /dev/kvm."
    ]
    assert bring(start)["warnings"] == []
    bring({**WEB, "state": "stopped", "accelerator": "tcg"})
    assert bring(start)["warnings"] == []
    bring(stop)
    with monkeypatch.context() as patch:
        patch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
        bring(WEB)
        bring(stop)
        assert bring(start)["warnings"] == []
        bring(stop)
    connection.calls.clear()
    for check_mode in (True, False):
        with pytest.raises(
            HostError, match="would run with KVM, which this host cannot: there is no /dev/kvm"
        ) as error:
            bring(start, check_mode=check_mode)
    assert "description" in error.value.hint
    assert connection.calls == []
    assert one(WEB)["type"] == "tcg"


def test_how_it_is_run_is_said_by_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(WEB)
    monkeypatch.setattr(kvm, "probe", lambda: {"usable": True, "reason": ""})
    found = one({**WEB, "accelerator": "kvm"})
    assert {each["option"] for each in found["restart_reasons"]} == {"accelerator", "cpu"}
    assert "change accelerator" in found["actions"]
