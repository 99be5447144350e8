# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a guest, and what there is without libvirt."""

from __future__ import annotations

import fcntl
import shutil
import socket
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    guest_report,
    guest_watch,
    libvirt,
    ownership,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain

from .. import fake_domains
from ..fake_domains import FakeConnection
from .bring import WEB, bring, one, overlay


def test_waiting_ends_with_a_reason(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp", dict)
    with pytest.raises(HostError, match="no address of it was seen after 1 s"):
        bring({**WEB, "wait_for": {"address": True, "timeout_s": 1}})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    monkeypatch.setattr(guest_watch, "_arp", lambda: {mac: ["192.0.2.9"]})
    found = one({**WEB, "wait_for": {"address": True, "timeout_s": 1}})
    assert (found["address"], found["address_source"], found["changed"]) == ("192.0.2.9", "arp", False)
    monkeypatch.setattr(guest_watch, "speaks_ssh", lambda address: False)
    with pytest.raises(HostError, match="no SSH server greets at"):
        bring({**WEB, "wait_for": {"ssh": True, "timeout_s": 1}})


@pytest.fixture
def leases(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, t.Any]]:
    """Those of the network default. Nothing is known by ARP."""
    found: list[dict[str, t.Any]] = []
    network = connection.networkLookupByName("default")
    network.DHCPLeases = lambda: [dict(each) for each in found]
    monkeypatch.setattr(connection, "networkLookupByName", lambda name: network)
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp_table", lambda: "")
    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    return found


def test_a_lease_from_before_it_was_started_is_no_address(
    connection: FakeConnection, leases: list[dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = {"name": "web", "state": "running", "wait_for": {"address": True, "timeout_s": 1}}
    bring({**WEB, "state": "stopped"})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    leases.append({"mac": mac, "ipaddr": "192.168.122.9", "expirytime": 2**40})
    with pytest.raises(HostError, match="no address of it was seen"):
        bring(waited)
    # It was not started by this call: what is there will do.
    assert one(waited)["address"] == "192.168.122.9"
    bring({"name": "web", "state": "stopped"})
    start = fake_domains.FakeDomain.createWithFlags

    def renew(each: t.Any, flags: int) -> None:
        start(each, flags)
        leases[0]["expirytime"] += 1

    with monkeypatch.context() as patch:
        patch.setattr(fake_domains.FakeDomain, "createWithFlags", renew)
        found = one(waited)
    assert (found["address"], found["address_source"]) == ("192.168.122.9", "lease")
    # Another guest with that MAC, which was there before.
    bring({"name": "web", "state": "absent", "delete_disks": True})
    with pytest.raises(HostError, match="no address of it was seen"):
        bring({**WEB, **waited})


def test_whoever_answers_at_an_old_lease_is_up(
    connection: FakeConnection, leases: list[dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has forgotten who was there; whoever goes on with a lease that has no end is asked."""
    bring({**WEB, "state": "stopped"})
    mac = next(iter(domain.parse(t.cast("t.Any", connection.domains["web"].stored))["networks"]))
    leases.append({"mac": mac, "ipaddr": "192.168.122.9", "expirytime": 0})
    entries = [f"192.168.122.9 0x1 0x2 {mac} * virbr0", "192.168.122.8 0x1 0x2 52:54:00:00:00:77 * virbr0"]
    monkeypatch.setattr(guest_watch, "_arp_table", lambda: "\n".join(["IP address", *entries]))
    forgotten: list[str] = []

    def ioctl(_socket: t.Any, _number: int, request: bytes) -> None:
        forgotten.append(socket.inet_ntoa(request[4:8]))
        del entries[0]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(
        guest_watch, "poke", lambda wanted: entries.extend(f"{each} 0x1 0x2 {mac} * virbr0" for each in wanted)
    )
    waited = {"name": "web", "state": "running", "wait_for": {"address": True, "timeout_s": 1}}
    found = one(waited)
    assert forgotten == ["192.168.122.9"]
    assert (found["address"], found["address_source"]) == ("192.168.122.9", "arp")


def test_one_whose_state_alone_is_named_is_asked_for_at_its_address(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": {}}})
    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    bring({**WEB, "networks": [{"type": "overlay", "address": "10.100.101.30"}]})
    poked: list[str] = []
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_arp", dict)
    monkeypatch.setattr(guest_watch, "poke", poked.extend)
    with pytest.raises(HostError, match="no address of it was seen"):
        bring({"name": "web", "wait_for": {"address": True, "timeout_s": 1}})
    assert set(poked) == {"10.100.101.30"}


def test_cloud_init_is_done_by_what_the_console_says(place: Path, connection: FakeConnection) -> None:
    bring({**WEB, "serial": "log"})
    each = connection.domains["web"]
    subject = guest_watch.Subject("web", each, t.cast("t.Any", each.live))
    log = Path(paths.guest_log("web"))
    assert guest_watch.cloud_init_done(subject) is None
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("[   3.1] cloud-init[500]: Cloud-init v. 24.4 running 'modules:final'\n")
    assert guest_watch.cloud_init_done(subject) is None
    log.write_text("x\nCloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.\n")
    assert guest_watch.cloud_init_done(subject) == []
    with open(log, "a", encoding="utf-8") as file:
        file.write("Cloud-init v. 24.4 running 'init-local' at Sat, 21 Nov 2026 11:00:00 +0000. Up 5.1 seconds.\n")
    assert guest_watch.cloud_init_done(subject) is None, "it was booted again since"
    log.write_text("x\nCloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.\n")
    guest_watch.mark_log("web")
    assert guest_watch.cloud_init_done(subject) is None, "what an earlier run has said is no news"
    assert guest_watch.last_words("web") == [
        "x", "Cloud-init v. 24.4 finished at Sat, 21 Nov 2026 10:00:00 +0000. Datasource DataSourceNoCloud.",
    ]  # fmt: skip


@pytest.mark.parametrize("lost", ["moved", "talkative"])
def test_that_cloud_init_is_done_is_known_without_its_words(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The log stays on the host that it was written on, and is not read from its beginning."""
    monkeypatch.setattr(guest_watch, "_PAUSE_S", 0.001)
    monkeypatch.setattr(guest_watch, "_LOG_TAIL", 1000)
    waited = {**WEB, "serial": "log", "wait_for": {"cloud_init": True, "timeout_s": 1}}
    bring({**WEB, "serial": "log"})
    log = Path(paths.guest_log("web"))
    log.write_text("Cloud-init v. 24.4 finished at Mon, 01 Jan. Up 9.5 seconds\n")
    assert not bring(waited)["changed"]
    if lost == "moved":
        log.unlink()
    else:
        log.write_text(log.read_text() + "web login:\n" * 200)
    connection.calls.clear()
    assert (bring(waited)["changed"], connection.calls) == (False, [])
    # Not by those that boot again.
    bring({"name": "web", "state": "stopped"})
    with pytest.raises(HostError, match="cloud-init has not said"):
        bring(waited)


def test_who_we_are() -> None:
    assert ownership.host_identity()["name"] == "host1"


def test_check_mode_where_libvirt_is_still_to_be_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what would change. Where there are records of guests it has to answer."""
    monkeypatch.setattr(libvirt, "available", lambda: False)
    found = bring(WEB, check_mode=True)
    assert (found["changed"], found["guests"]) == (True, [])
    assert "This host has no libvirt. Unless a task before installs it, this fails" in found["warnings"][0]
    assert not bring({"name": "web", "state": "absent"}, check_mode=True)["changed"]
    with pytest.raises(InputError, match="memory_mib"):
        bring({**WEB, "memory_mib": 0}, check_mode=True)
    bring(WEB)
    assert [one["name"] for one in bring(WEB, check_mode=True)["guests"]] == ["web"]


def test_a_host_for_containers_only_has_no_guests(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so when there are records of guests: they may run, and were not seen."""

    def look() -> dict[str, t.Any]:
        return guest_report.work(Host(run=fake_domains.run), {"names": None, "addresses": False}, False)

    assert (look()["libvirt"], look()["guests"]) == (True, [])
    bring(WEB)
    monkeypatch.setattr(libvirt, "available", lambda: False)
    assert [guest["name"] for guest in look()["guests"]] == ["web"]  # by asking, which fails without the binding
    bring({**WEB, "state": "absent"})
    shutil.rmtree(place / "workloads")
    assert look() == {"changed": False, "libvirt": False, "guests": []}
