# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Missing, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt, networks, overlay
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import network as description
from ansible_collections.cnvm.platform.tests.unit.plugins.module_utils._host.fake_libvirt import (
    Driver,
    FakeError,
    Guest,
    Thing,
    module,
)

LAN: dict[str, t.Any] = {"name": "lan", "subnet": "192.168.150.0/24", "bridge": "virbr7"}
GUEST = """<domain><name>web</name><devices><interface type='network'>
<source network='lan' bridge='virbr7'/><target dev='vnet4'/><port isolated='yes'/></interface></devices></domain>"""


class World:
    """A host: libvirt, interfaces below a directory, and the commands that were run."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.sys.mkdir()
        self.driver = Driver()
        self.driver.started, self.driver.stopped = self.bridge_comes, self.bridge_goes
        self.commands: list[str] = []
        self.routes = "[]"
        self.failing: set[str] = set()

    def bridge_comes(self, thing: Thing) -> None:
        found = description.parse(thing.live)
        if found["type"] in description.MANAGED:
            (self.sys / found["bridge"] / "brif").mkdir(parents=True)
            (self.sys / found["bridge"] / "bridge").mkdir()
            (self.sys / found["bridge"] / "mtu").write_text(f"{found['mtu'] or 1500}\n")

    def bridge_goes(self, thing: Thing) -> None:
        for bridge in self.sys.iterdir():
            for member in self.inside(bridge.name):
                (self.sys / member / "master").unlink()
            if (bridge / "brif").is_dir():
                shutil.rmtree(bridge)

    def inside(self, bridge: str) -> list[str]:
        return sorted(each.parent.name for each in self.sys.glob("*/master") if each.read_text() == bridge)

    def plug(self, device: str, bridge: str, *, isolated: bool = False, mtu: int = 1500) -> None:
        (self.sys / device / "brport").mkdir(parents=True, exist_ok=True)
        (self.sys / device / "brport/isolated").write_text(str(int(isolated)))
        (self.sys / device / "mtu").write_text(str(mtu))
        if device.startswith("vnet"):
            (self.sys / device / "tun_flags").touch()
        (self.sys / device / "master").write_text(bridge)
        (self.sys / bridge / "brif" / device).touch()

    def run(self, argv: t.Sequence[str], **dummy: t.Any) -> CommandResult:
        line = " ".join(argv)
        self.commands.append(line)
        if line in self.failing:
            return CommandResult(tuple(argv), 2, stderr="RTNETLINK answers: no")
        words = line.split()
        if words[:4] == ["ip", "link", "set", "dev"] and words[5] == "master":
            (self.sys / words[4] / "master").write_text(words[6])
            (self.sys / words[6] / "brif" / words[4]).touch()
        return CommandResult(tuple(argv), 0, stdout=self.routes if words[:2] == ["ip", "-j"] else "")

    def call(self, *items: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        return networks.bring_to(Host(run=self.run), list(items), **options)

    def net(self, name: str = "lan") -> Thing:
        return self.driver.networkLookupByName(name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    binding = module(made.driver)
    monkeypatch.setattr(libvirt, "library", lambda: binding)
    monkeypatch.setattr(libvirt, "_code_names", dict)
    monkeypatch.setattr(networks, "_SYS", str(made.sys))
    monkeypatch.setattr(networks, "LOCK_FILE", str(tmp_path / "lock"))
    monkeypatch.setattr(overlay, "load", lambda: {"bridge": "cnvm0"})
    return made


def test_new_network_and_again(world: World) -> None:
    done = world.call({**LAN, "bridge": None})
    assert done["networks"] == [
        {
            "name": "lan",
            "state": "active",
            "changed": True,
            "actions": ["define", "start", "enable"],
            "restarted": False,
            "bridge": "virbr1",
            "mtu": 1500,
        }
    ]
    assert done["diff"]["before"] == {"lan": {"state": "absent"}}
    assert done["diff"]["after"]["lan"]["subnet"] == "192.168.150.0/24"
    again = world.call({**LAN, "bridge": None})
    assert not again["changed"]
    assert again["diff"] == {"before": {}, "after": {}}
    assert again["networks"][0]["bridge"] == "virbr1"


def test_check_mode_touches_nothing(world: World) -> None:
    assert world.call(LAN, check_mode=True)["changed"]
    assert world.driver.networks == []
    world.call(LAN)
    world.net().calls.clear()
    for change in ({**LAN, "mtu": 1400}, {**LAN, "state": "absent"}, {**LAN, "dhcp_ranges": []}):
        assert world.call(change, check_mode=True)["changed"]
    assert world.net().calls == []


def test_check_mode_where_libvirt_and_the_overlay_are_still_to_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt, "available", lambda: False)
    monkeypatch.setattr(overlay, "load", lambda: None)
    found = world.call(LAN, {"name": "far", "type": "overlay"}, check_mode=True)
    assert (found["changed"], found["networks"]) == (True, [])
    assert found["warnings"][0].endswith("what would change is not known: lan, far.")
    assert not world.call({**LAN, "state": "absent"}, check_mode=True)["changed"]


def test_running_network_is_updated_and_the_stored_one_is_defined(world: World) -> None:
    world.call(LAN)
    world.net().calls.clear()
    host = {"mac": "52:54:00:00:00:01", "address": "192.168.150.9"}
    done = world.call({**LAN, "dhcp_hosts": [host]})
    assert world.net().calls == ['update 3 4 <host mac="52:54:00:00:00:01" ip="192.168.150.9"/> 1', "define"]
    assert not done["networks"][0]["restarted"]


def test_address_that_another_guest_has_by_now(world: World) -> None:
    world.call(LAN)
    taken = {"mac": "52:54:00:00:00:02", "address": "192.168.150.9"}
    assert "until the lease of 52:54:00:00:00:01 ends" in world.call({**LAN, "dhcp_hosts": [taken]})["warnings"][0]
    assert world.call({**LAN, "dhcp_hosts": [{**taken, "mac": "52:54:00:00:00:01"}]})["warnings"] == []


def test_restart_puts_back_who_was_plugged_in(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7", isolated=True)
    world.plug("veth9", "virbr7")
    with pytest.raises(Refused) as error:
        world.call({**LAN, "mtu": 1400})
    assert error.value.details["guests"] == ["web", "interface veth9"]
    world.commands.clear()
    done = world.call({**LAN, "mtu": 1400}, restart_on_change=True)
    assert done["networks"][0]["actions"] == ["change mtu", "restart"]
    assert world.inside("virbr7") == ["veth9", "vnet4"]
    assert [line for line in world.commands if "route" not in line] == [
        "ip link set dev veth9 mtu 1400",
        "ip link set dev veth9 master virbr7",
        "ip link set dev vnet4 mtu 1400",
        "ip link set dev vnet4 master virbr7",
        "bridge link set dev vnet4 isolated on",
    ]


@pytest.mark.parametrize("step", ["define", "start", "plug in"])
def test_restart_that_was_cut_off_is_repaired(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Who was plugged in is known to the guests themselves; libvirt does not look."""
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7", isolated=True)
    changed = {**LAN, "domain": "lab"}

    class Killed(BaseException):
        pass

    def killed(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "plug in":
            patch.setattr(networks._Batch, "_plug_in", killed)
        else:
            patch.setattr(*{"define": (networks._Batch, "_define"), "start": (Thing, "create")}[step], killed)
        with pytest.raises(Killed):
            world.call(changed, restart_on_change=True)
    assert world.inside("virbr7") == []
    assert world.call(changed, check_mode=True)["networks"][0]["actions"][-1] == "plug in web"
    assert world.inside("virbr7") == []
    assert world.call(changed)["changed"]
    assert world.inside("virbr7") == ["vnet4"]
    assert "bridge link set dev vnet4 isolated on" in world.commands
    again = world.call(changed)
    assert (again["changed"], world.net().live != "") == (False, True)


def test_interfaces_are_put_into_no_network_that_is_to_be_down(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    world.call({**LAN, "state": "inactive"}, force=True)
    for state in ("inactive", "present"):
        assert not world.call({**LAN, "state": state})["changed"]
    # libvirt itself leaves them where they are.
    assert world.call({**LAN, "state": "active"})["networks"][0]["actions"] == ["start", "plug in web", "enable"]
    assert world.inside("virbr7") == ["vnet4"]


def test_interface_that_cannot_be_put_back_is_named(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    world.failing.add("ip link set dev vnet4 master virbr7")
    with pytest.raises(HostError, match=r"not plugged in again: vnet4 \(RTNETLINK"):
        world.call({**LAN, "domain": "lab"}, restart_on_change=True)


def test_network_that_does_not_start_again_goes_back(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    before = world.net().stored
    world.net().trouble = ["dnsmasq: Address already in use"]
    with pytest.raises(HostError, match=r"Address already in use.* runs again as it was before"):
        world.call({**LAN, "domain": "lab"}, restart_on_change=True)
    assert description.parse(world.net().stored) == description.parse(before)
    assert world.net().live
    assert world.inside("virbr7") == ["vnet4"]


def test_network_whose_stored_description_does_not_start_goes_back_to_what_ran(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    ran = world.net().live
    stored = world.net().stored = ran.replace("virbr7", "virbr8")

    def starts(thing: Thing) -> None:
        if thing.live != ran:
            thing.live = ""
            raise FakeError(errors.OPERATION_FAILED, "Address already in use")
        world.bridge_comes(thing)

    world.driver.started = starts
    with pytest.raises(HostError, match=r"Address already in use.* runs again as it was before"):
        world.call({**LAN, "domain": "lab"}, restart_on_change=True)
    assert (world.net().live, world.net().stored) == (ran, stored)
    assert world.inside("virbr7") == ["vnet4"]


def test_network_that_cannot_go_back_is_told(world: World) -> None:
    world.call(LAN)
    world.net().trouble = ["no", "no again"]
    with pytest.raises(HostError, match=r"no. Nor could it be brought back as it was: .* no again"):
        world.call({**LAN, "domain": "lab"})


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ('{"dst": "192.168.0.0/16", "dev": "eth0", "scope": "link"}', "route to 192.168.0.0/16 at eth0"),
        ('{"dst": "192.168.150.7", "dev": "tun0"}', "route to 192.168.150.7/32 at tun0"),
    ],
)
def test_subnet_that_is_taken(world: World, route: str, words: str) -> None:
    world.routes = f"[{route}]"
    with pytest.raises(Refused, match=words):
        world.call(LAN)
    assert world.driver.networks == []


def test_subnet_inside_of_a_routed_one_is_told(world: World) -> None:
    world.routes = '[{"dst": "192.168.0.0/16", "dev": "eth0", "gateway": "192.0.2.1"}]'
    assert "192.168.0.0/16" in world.call(LAN)["warnings"][0]


def test_subnet_of_a_network_that_starts_with_the_host(world: World) -> None:
    other = {"name": "other", "subnet": "192.168.150.0/25", "state": "inactive", "autostart": True}
    world.call(other)
    with pytest.raises(Refused, match=r"network 'other' .* starts with the host"):
        world.call(LAN)
    # It may go in the same call; a stopped one that stays stopped is not in the way.
    world.call({**other, "autostart": False})
    world.call(LAN)


def test_subnet_and_bridge_of_a_network_that_goes_in_the_same_call(world: World) -> None:
    world.call(LAN)
    world.routes = '[{"dst": "192.168.150.0/24", "dev": "virbr7", "scope": "link"}]'
    with pytest.raises(Refused, match="an interface 'virbr7' already"):
        world.call({**LAN, "name": "new"})
    done = world.call({**LAN, "name": "new"}, {"name": "lan", "state": "absent"})
    assert [each["state"] for each in done["networks"]] == ["active", "absent"]
    assert [each.name() for each in world.driver.listAllNetworks(0)] == ["new"]


def test_subnet_of_a_network_that_gets_another_in_the_same_call(world: World) -> None:
    world.call(LAN)
    world.routes = '[{"dst": "192.168.150.0/24", "dev": "virbr7", "scope": "link"}]'
    moved = {"name": "lan", "subnet": "192.168.151.0/24"}
    came: list[str] = []
    world.driver.started = lambda thing: came.append(thing.name())
    done = world.call({"name": "new", "subnet": LAN["subnet"]}, moved)
    assert came == ["lan", "new"]
    assert [each["name"] for each in done["networks"]] == ["new", "lan"]


def test_subnets_that_are_exchanged_are_refused_before_anything_is_touched(world: World) -> None:
    lan, other = {"name": "lan", "subnet": "192.168.150.0/24"}, {"name": "other", "subnet": "192.168.151.0/24"}
    world.call({**lan, "bridge": "virbr7"}, {**other, "bridge": "virbr8"})
    world.routes = """[{"dst": "192.168.150.0/24", "dev": "virbr7", "scope": "link"},
                       {"dst": "192.168.151.0/24", "dev": "virbr8", "scope": "link"}]"""
    with pytest.raises(Refused, match=r"192.168.151.0/24 overlaps the host's route to 192.168.151.0/24 at virbr8"):
        world.call({**lan, "subnet": other["subnet"]}, {**other, "subnet": lan["subnet"]})
    assert "destroy" not in world.net("lan").calls


def test_new_network_that_does_not_start_is_not_left_behind(world: World) -> None:
    def port_is_taken(thing: Thing) -> None:
        thing.live = ""
        raise FakeError(errors.OPERATION_FAILED, "port 53 is taken")

    world.driver.started = port_is_taken
    with pytest.raises(HostError, match="port 53 is taken"):
        world.call(LAN)
    assert world.driver.listAllNetworks(0) == []
    # One that was there before stays.
    world.call({**LAN, "state": "inactive"})
    with pytest.raises(HostError, match="port 53 is taken"):
        world.call(LAN)
    assert world.net().stored


def test_bridge_must_be_one(world: World) -> None:
    (world.sys / "eth0").mkdir()
    for name in ("eth0", "nothing"):
        office = {"name": "office", "type": "bridge", "bridge": name}
        with pytest.raises(Missing, match="has no bridge"):
            world.call(office)
        found = world.call(office, check_mode=True)
        assert (found["changed"], len(found["warnings"])) == (True, 1)
        assert found["warnings"][0].endswith(
            f"unless a task before makes what it lacks: this host has no bridge '{name}'."
        )
    (world.sys / "eth0/bridge").mkdir()
    assert world.call({"name": "office", "type": "bridge", "bridge": "eth0"})["changed"]


def test_overlay_is_its_bridge(world: World) -> None:
    (world.sys / "cnvm0/bridge").mkdir(parents=True)
    (world.sys / "cnvm0/mtu").write_text("1370")
    done = world.call({"name": "fleet", "type": "overlay"})
    assert (done["networks"][0]["bridge"], done["networks"][0]["mtu"]) == ("cnvm0", 1370)
    (found,) = networks.report()
    assert (found["type"], found["mtu"]) == ("overlay", 1370)


def test_check_mode_where_the_overlay_is_still_to_come(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = {"name": "fleet", "type": "overlay"}
    load = overlay.load
    monkeypatch.setattr(overlay, "load", lambda: None)
    with pytest.raises(Missing, match="no overlay"):
        world.call(fleet)
    found = world.call(fleet, LAN, check_mode=True)
    assert [(one["actions"], one["bridge"]) for one in found["networks"]] == [
        (["define", "start", "enable"], ""),
        (["define", "start", "enable"], "virbr7"),
    ]
    assert found["warnings"] == [
        "Network 'fleet' would be refused, unless a task before makes what it lacks: this host has no overlay."
    ]
    assert world.driver.networks == []
    # One that was there before goes on with the bridge that it has.
    (world.sys / "cnvm0/bridge").mkdir(parents=True)
    monkeypatch.setattr(overlay, "load", load)
    world.call(fleet)
    monkeypatch.setattr(overlay, "load", lambda: None)
    found = world.call(fleet, check_mode=True)
    assert (found["changed"], found["networks"][0]["bridge"]) == (False, "cnvm0")


def test_what_is_lost_is_told_and_kept_where_nothing_changes(world: World) -> None:
    world.call(LAN)
    thing = world.net()
    thing.stored = thing.live = thing.stored.replace(
        "</network>", "<bandwidth><inbound average='9'/></bandwidth></network>"
    )
    done = world.call(LAN)
    assert done["networks"][0]["actions"] == ["change other", "restart"]
    assert done["warnings"] == [
        "Network 'lan' loses what this module does not describe: bandwidth (inbound average=9)."
    ]
    assert "bandwidth" not in world.net().live


def test_forward_device_that_is_not_there_yet(world: World) -> None:
    assert "no interface 'ppp0'" in world.call({**LAN, "forward_device": "ppp0"})["warnings"][0]


def test_stop_and_remove(world: World) -> None:
    world.call(LAN)
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    with pytest.raises(Refused, match="web is plugged"):
        world.call({**LAN, "state": "inactive"})
    done = world.call({**LAN, "state": "inactive"}, force=True)
    assert done["networks"][0]["actions"] == ["stop", "disable"]
    assert world.call({"name": "lan", "state": "absent"})["networks"][0]["actions"] == ["undefine"]
    assert not world.call({"name": "lan", "state": "absent"})["changed"]


def test_report(world: World) -> None:
    world.call(LAN, {"name": "quiet", "type": "isolated", "state": "present"})
    world.driver.guests.append(Guest(GUEST))
    world.plug("vnet4", "virbr7")
    thing = world.net()
    thing.live = thing.live.replace("192.168.150.254", "192.168.150.99")
    lan, quiet = networks.report()
    assert (lan["state"], lan["guests"], lan["pending"]) == ("active", ["web"], ["dhcp_ranges"])
    assert lan["leases"] == [{"mac": "52:54:00:00:00:01", "address": "192.168.150.9", "name": "", "expires_epoch_s": 7}]
    assert (quiet["state"], quiet["autostart"], quiet["persistent"], quiet["mtu"]) == ("inactive", False, True, None)
    assert networks.report(["quiet", "nothing"], leases=False) == [quiet]
