# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import network, xml
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.network_plan import (
    Plan,
    Seen,
    plan,
    settle,
    updates,
)

HOST = {"mac": "52:54:00:00:00:01", "address": "192.168.150.9", "name": "web"}
LAN = {"name": "lan", "subnet": "192.168.150.0/24", "bridge": "virbr7", "dhcp_hosts": [HOST]}
BRIDGE = {"name": "lan", "type": "bridge", "bridge": "br0"}


def item(source: t.Optional[dict[str, t.Any]] = None, **changes: t.Any) -> dict[str, t.Any]:
    return network.normalise({**(source or LAN), **changes})


def has(source: t.Optional[dict[str, t.Any]] = None, **changes: t.Any) -> dict[str, t.Any]:
    """The same as libvirt would tell it."""
    normal = item(source, **changes)
    return network.parse(network.build(normal, normal["name"]))


def seen(*, active: bool = True, guests: tuple[str, ...] = (), autostart: bool = True, **changes: t.Any) -> Seen:
    return Seen(has(**changes), has(**changes) if active else None, autostart, guests)


# -- The steps


def test_new_network() -> None:
    done = plan(item(), Seen())
    assert done.actions == ["define", "start", "enable"]
    assert done.define
    assert not done.restart
    assert plan(item(state="present"), Seen()).actions == ["define"]
    assert plan(item(state="inactive"), Seen()).actions == ["define"]
    assert plan(item(state="inactive", autostart=True), Seen()).actions == ["define", "enable"]


@pytest.mark.parametrize("state", ["active", "present", "inactive", "absent"])
def test_nothing_to_do(state: str) -> None:
    there = {"active": seen(), "present": seen(), "inactive": seen(active=False, autostart=False), "absent": Seen()}
    done = plan(item(state=state), there[state])
    assert not done.changed
    assert done.actions == []


def test_present_leaves_active_and_autostart_alone() -> None:
    assert not plan(item(state="present"), seen(active=False, autostart=False)).changed
    assert not plan(item(state="present"), seen(autostart=False)).changed
    assert plan(item(state="present", autostart=True), seen(active=False, autostart=False)).actions == ["enable"]


def test_autostart_follows_the_state_unless_it_is_given() -> None:
    assert plan(item(), seen(autostart=False)).actions == ["enable"]
    assert not plan(item(autostart=False), seen(autostart=False)).changed
    assert plan(item(state="inactive"), seen()).actions == ["stop", "disable"]


def test_bridge_that_nobody_named_stays() -> None:
    done = plan(item(bridge=None), seen())
    assert not done.changed
    assert done.description is not None
    assert done.description["bridge"] == "virbr7"
    # But not that of a network which is not libvirt's.
    assert settle(item(bridge=None), Seen(has(BRIDGE)))["bridge"] == ""


def test_reservation_is_changed_while_guests_are_plugged_in() -> None:
    new = {"mac": "52:54:00:00:00:02", "address": "192.168.150.10"}
    done = plan(item(dhcp_hosts=[{**HOST, "name": "db"}, new]), seen(guests=("web",)))
    assert (done.define, done.stop, done.start) == (True, False, False)
    assert done.actions == ["change dhcp_hosts"]
    assert [(each.add, each.section) for each in done.updates] == [
        (False, "dhcp_hosts"),
        (True, "dhcp_hosts"),
        (True, "dhcp_hosts"),
    ]
    assert done.updates[0].xml == '<host mac="52:54:00:00:00:01" name="web" ip="192.168.150.9"/>\n'
    assert done.updates[2].xml == '<host mac="52:54:00:00:00:02" ip="192.168.150.10"/>\n'


def test_stored_and_live_are_compared_each() -> None:
    both, old = has(), has(dhcp_hosts=[])
    # Somebody edited the stored one only, or the running one only.
    assert plan(item(), Seen(old, both, True)).define
    assert plan(item(), Seen(old, both, True)).updates == ()
    assert not plan(item(), Seen(both, old, True)).define
    assert len(plan(item(), Seen(both, old, True)).updates) == 1
    assert plan(item(), Seen(both, old, True)).actions == ["change dhcp_hosts"]
    # A network that nobody stored gets stored.
    assert plan(item(), Seen(None, both)).actions == ["define", "enable"]


def test_inactive_network_is_only_defined_anew() -> None:
    done = plan(item(mtu=1400, state="present"), seen(active=False))
    assert done.actions == ["change mtu"]
    assert (done.define, done.updates) == (True, ())


def test_restart_when_nobody_is_plugged_in() -> None:
    done = plan(item(domain="lab"), seen())
    assert done.actions == ["change domain", "restart"]
    assert (done.define, done.updates) == (True, ())


def test_restart_with_guests_must_be_allowed() -> None:
    with pytest.raises(Refused, match="restarted for domain, mtu; db, web are plugged") as error:
        plan(item(domain="lab", mtu=1400), seen(guests=("db", "web")))
    assert "restart_on_change" in error.value.hint
    assert error.value.details == {"guests": ["db", "web"]}
    assert plan(item(domain="lab"), seen(guests=("web",)), restart_on_change=True).restart
    many = tuple(f"g{number}" for number in range(9))
    with pytest.raises(Refused, match="g4 and 4 more are plugged"):
        plan(item(domain="lab"), seen(guests=many))


def test_bridge_never_changes_under_guests() -> None:
    for change in (item(bridge="virbr8"), item(BRIDGE)):
        with pytest.raises(Refused, match="cannot change its bridge"):
            plan(change, seen(guests=("web",)), restart_on_change=True, force=True)
        assert plan(change, seen()).restart


def test_network_on_another_ones_bridge_needs_no_permission_to_restart() -> None:
    before = has(BRIDGE)
    live = {**before, "other": ["vlan"]}
    done = plan(item(BRIDGE), Seen(before, live, True, ("web",)))
    assert done.restart
    assert done.lost == ("vlan",)


def test_names_that_libvirt_cannot_tell_apart_need_a_restart() -> None:
    twice = [{"address": f"192.168.150.{last}", "names": ["www"]} for last in (20, 21)]
    live = {**has(), "dns_hosts": twice}
    assert plan(item(), Seen(live, live, True)).actions == ["change dns_hosts", "restart"]
    assert plan(item(dhcp_hosts=[]), Seen({**live, "dns_hosts": []}, {**live, "dns_hosts": []}, True)).updates


@pytest.mark.parametrize("state", ["inactive", "absent"])
def test_stop_with_guests_must_be_forced(state: str) -> None:
    with pytest.raises(Refused, match="web is plugged into it"):
        plan(item(state=state), seen(guests=("web",)), restart_on_change=True)
    done = plan(item(state=state), seen(guests=("web",)), force=True)
    assert done.stop
    assert not done.start


def test_absent() -> None:
    assert plan(item(state="absent"), seen()).actions == ["stop", "undefine"]
    assert plan(item(state="absent"), seen(active=False)).actions == ["undefine"]
    # A network that nobody stored goes when it is stopped.
    assert plan(item(state="absent"), Seen(None, has())).actions == ["stop"]


def test_what_is_not_described_goes_with_a_word() -> None:
    before = {**has(), "other": ["ip family=ipv6 address=2001:db8::1 prefix=64"]}
    done = plan(item(), Seen(before, before, True))
    assert done.actions == ["change other", "restart"]
    assert done.lost == ("ip family=ipv6 address=2001:db8::1 prefix=64",)


# -- Any change

ADDRESSES = st.lists(st.integers(2, 254), max_size=6, unique=True)


@st.composite
def networks(draw: t.Any) -> dict[str, t.Any]:
    """Networks that differ in anything."""
    hosts = [
        {"mac": f"52:54:00:00:00:{draw(st.integers(0, 3)):02x}", "address": f"192.168.150.{last}", "name": name}
        for last, name in zip(draw(ADDRESSES), draw(st.lists(st.sampled_from(["a", "b", "", "c"]), max_size=6)))
    ]
    hosts = [
        one
        for index, one in enumerate(hosts)
        if not any(
            one["mac"] == other["mac"] or (one["name"] and one["name"] == other["name"]) for other in hosts[:index]
        )
    ]
    return {
        "name": "lan",
        "subnet": "192.168.150.0/24",
        "bridge": "virbr7",
        "dhcp_hosts": hosts,
        "dhcp_ranges": [{"start": f"192.168.150.{each}", "end": f"192.168.150.{each}"} for each in draw(ADDRESSES)],
        "dns_hosts": [
            {"address": f"192.168.150.{each}", "names": [name, f"{name}.lab"]}
            for each, name in zip(draw(ADDRESSES), draw(st.permutations(["a", "b", "c", "d", "e", "f"])))
        ],
        "mtu": draw(st.sampled_from([None, None, None, 1400])),
        "state": draw(st.sampled_from(["active", "present", "inactive", "absent"])),
        "autostart": draw(st.sampled_from([None, True, False])),
    }


def apply(done: Plan, before: Seen) -> Seen:
    """What libvirt makes of a plan: a model of it that takes updates as libvirt does, one by one, and no double."""
    live = None if done.stop else before.live
    config = None if done.undefine else before.config
    if live is not None and done.updates:
        live = {key: list(value) if isinstance(value, list) else value for key, value in live.items()}
        for update in done.updates:
            (one,) = _entries(update.section, update.xml)
            if update.add:
                taken = [each for each in live[update.section] if _same(update.section, each, one)]
                assert taken == [], f"libvirt: there is an existing entry {taken}"
                live[update.section].append(one)
            else:
                found = [each for each in live[update.section] if _same(update.section, each, one)]
                assert found == [one], f"libvirt: multiple matching records {found}"
                live[update.section].remove(one)
        for section in network.IN_PLACE:
            live[section].sort(key=lambda each: int(ipaddress.ip_address(each.get("address") or each["start"])))
    if done.define:
        assert done.description is not None
        config = network.parse(network.build(done.description, done.name))
    if done.start:
        live = config
    autostart = before.autostart if done.autostart is None else done.autostart
    return Seen(config, live, autostart if config is not None else False)


def _entries(section: str, text: str) -> list[dict[str, t.Any]]:
    inner = text if section == "dns_hosts" else f"<dhcp>{text}</dhcp>"
    outer = f"<dns>{inner}</dns>" if section == "dns_hosts" else ""
    ip = "" if outer else inner
    whole = f'<network>{outer}<ip address="192.168.150.1" netmask="255.255.255.0">{ip}</ip></network>'
    found: list[dict[str, t.Any]] = network.parse(whole)[section]
    return found


def _same(section: str, one: dict[str, t.Any], other: dict[str, t.Any]) -> bool:
    """As virNetworkDefUpdateIPDHCPHost and its like compare."""
    if section == "dhcp_hosts":
        return any(one[key] and one[key] == other[key] for key in ("mac", "address", "name"))
    if section == "dns_hosts":
        return one["address"] == other["address"] or bool(set(one["names"]) & set(other["names"]))
    return bool(one == other)


@given(networks(), networks(), networks(), st.booleans(), st.booleans())
def test_any_plan_leads_to_what_is_wanted_and_then_to_nothing(
    stored: dict[str, t.Any], running: dict[str, t.Any], wanted: dict[str, t.Any], active: bool, persistent: bool
) -> None:
    before = Seen(has(stored, state="active") if persistent else None, has(running, state="active") if active else None)
    want = item(wanted)
    after = apply(plan(want, before), before)
    assert not plan(want, after).changed
    if want["state"] == "absent":
        assert not after.there
    else:
        assert after.config == settle(want, before)
        assert after.live in (None, after.config)
        assert want["state"] == "present" or (after.live is not None) == (want["state"] == "active")


@given(networks(), networks())
def test_updates_name_only_what_differs(one: dict[str, t.Any], other: dict[str, t.Any]) -> None:
    before, after = has(one, state="active"), has(other, state="active")
    sections = {update.section for update in updates(before, after)}
    assert sections == {key for key in network.IN_PLACE if before[key] != after[key]}
    for update in updates(before, after):
        xml.parse(update.xml)
