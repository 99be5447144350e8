# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is asked for the addresses of guests."""

from __future__ import annotations

import base64
import fcntl
import json
import socket
import threading
import time
import types
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_watch, libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml

from . import fake_domains
from .fake_domains import FakeError


class Asked:
    """A domain whose agent answers once as many have been asked as must be, or not at all."""

    def __init__(self, mac: str, together: t.Optional[threading.Barrier]) -> None:
        self.mac = mac
        self.together = together
        self.limits: list[tuple[int, int]] = []

    def name(self) -> str:
        return self.mac

    def agentSetResponseTimeout(self, timeout: int, flags: int) -> None:
        self.limits.append((timeout, flags))

    def interfaceAddresses(self, source: int, flags: int) -> dict[str, t.Any]:
        assert source == 1
        if self.together is None:
            raise FakeError(86, "Guest agent is not responding")
        self.together.wait(60)
        return {"eth0": {"hwaddr": self.mac, "addrs": [{"addr": f"192.0.2.{self.mac[-1]}"}]}}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """What the host has seen of guests by itself."""
    found = types.SimpleNamespace(leases=[], arp={})
    library = fake_domains.library()
    monkeypatch.setattr(libvirt, "library", lambda: library)
    monkeypatch.setattr(guest_watch, "_arp", lambda: found.arp)
    network = types.SimpleNamespace(DHCPLeases=lambda: found.leases)
    monkeypatch.setattr(libvirt, "network", lambda connection, name: network)
    return found


def subject(number: int, together: t.Optional[threading.Barrier], state: str = "connected") -> guest_watch.Subject:
    mac = f"52:54:00:00:00:0{number}"
    live = xml.parse(
        f"<domain><devices><interface type='network'><mac address='{mac}'/><source network='default'/></interface>"
        f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{state}'/></channel>"
        "</devices></domain>"
    )
    return guest_watch.Subject(f"g{number}", Asked(mac, together), live)


def observe(*subjects: guest_watch.Subject) -> dict[str, list[tuple[str, str]]]:
    found = guest_watch.observe(t.cast("t.Any", None), subjects)
    return {name: [(one["address"], one["source"]) for one in each] for name, each in found.items()}


def test_agents_are_asked_side_by_side(seen: types.SimpleNamespace) -> None:
    """Those that hang are waited for together; they keep nobody from being seen."""
    together = threading.Barrier(3)
    hangs = subject(4, None)
    asked = [subject(number, together) for number in (1, 2, 3)]
    assert observe(*asked, hangs) == {
        **{f"g{number}": [(f"192.0.2.{number}", "agent")] for number in (1, 2, 3)},
        "g4": [],
    }
    # What is set stays, and libvirt has a guest's file systems come to rest in that time, too.
    for one in (*asked, hangs):
        assert one.domain.limits == [(guest_watch._AGENT_TIMEOUT_S, 0), (guest_watch._AGENT_FOR_EVER, 0)]


def test_guests_that_are_waited_for_are_tried_side_by_side(
    seen: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers slowly, or not at all, does not hold up the others."""
    together = threading.Barrier(3)
    monkeypatch.setattr(guest_watch, "speaks_ssh", lambda address: together.wait(60) >= 0)
    subjects = {one.name: one for one in (subject(number, None, "disconnected") for number in (1, 2, 3))}
    seen.arp = {t.cast(Asked, one.domain).mac: [f"192.0.2.{number}"] for number, one in enumerate(subjects.values(), 1)}
    asked = {"address": False, "ssh": True, "cloud_init": False, "port": None, "timeout_s": 1}
    guest_watch.wait(t.cast("t.Any", None), dict.fromkeys(subjects, asked), lambda names: subjects, lambda words: None)


@pytest.mark.parametrize(("had", "asked"), [("52:54:00:00:00:02", []), ("52:54:00:00:00:09", ["10.0.0.2"])])
def test_an_address_that_another_guest_had_is_asked_for(
    seen: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, had: str, asked: list[str]
) -> None:
    """The kernel remembers for hours who had it."""
    poked: list[str] = []
    monkeypatch.setattr(guest_watch, "poke", poked.extend)
    seen.arp[had] = ["10.0.0.2"]
    observe(subject(2, None, "disconnected")._replace(address="10.0.0.2"))
    assert poked == asked


def test_a_guest_may_take_its_time_to_answer(seen: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host is busy. Nobody waits for longer than that takes."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            seen.arp["52:54:00:00:00:02"] = ["10.0.0.2"]

    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    monkeypatch.setattr(time, "sleep", sleep)
    assert observe(subject(2, None, "disconnected")._replace(address="10.0.0.2")) == {"g2": [("10.0.0.2", "arp")]}
    assert len(pauses) == 10


def test_who_has_seen_it_is_said_and_a_lease_is_enough(seen: types.SimpleNamespace) -> None:
    seen.leases.append({"mac": "52:54:00:00:00:01", "ipaddr": "192.0.2.7", "expirytime": time.time() + 60})
    seen.arp["52:54:00:00:00:02"] = ["192.0.2.8"]
    leased, known, asked = subject(1, None), subject(2, None, "disconnected"), subject(3, threading.Barrier(1))
    assert observe(leased, known, asked) == {
        "g1": [("192.0.2.7", "lease")],
        "g2": [("192.0.2.8", "arp")],
        "g3": [("192.0.2.3", "agent")],
    }
    assert [one.domain.limits for one in (leased, known)] == [[], []]


class Agent:
    """qemuAgentCommand, with a guest that has this file, or whose agent may read none."""

    def __init__(self, text: t.Optional[str]) -> None:
        self.text = text
        self.asked: list[str] = []

    def __call__(self, each: t.Any, question: str, timeout: int, flags: int) -> str:
        asked = json.loads(question)
        self.asked.append(asked["execute"])
        if self.text is None:
            raise FakeError(86, "The command guest-file-open has been disabled for this instance")
        if asked["execute"] == "guest-file-open":
            assert asked["arguments"] == {"path": "/run/cloud-init/result.json", "mode": "r"}
            return json.dumps({"return": 7})
        assert asked["arguments"]["handle"] == 7
        return json.dumps({"return": {"buf-b64": base64.b64encode(self.text.encode()).decode()}})


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('{"v1": {"datasource": "NoCloud", "errors": ["(\'scripts-user\', RuntimeError())", "x"]}}',
         ["('scripts-user', RuntimeError())", "x"]),
        ('{"v1": {"datasource": "NoCloud", "errors": []}}', []),
        # It is being written.
        ('{"v1": ', None),
        (None, None),
    ],
)  # fmt: skip
def test_what_cloud_init_has_to_complain_about_is_told_by_the_agent(
    seen: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, text: t.Optional[str], errors: t.Optional[list[str]]
) -> None:
    agent = Agent(text)
    monkeypatch.setattr(guest_watch, "_agent_command", lambda: agent)
    one = subject(1, None)
    # Each time that somebody asks.
    for _again in range(2):
        assert guest_watch.cloud_init_done(one) == errors
    assert (
        agent.asked == (["guest-file-open", "guest-file-read", "guest-file-close"] if text else ["guest-file-open"]) * 2
    )
    if errors is None:
        return
    warnings: list[str] = []
    wait_for = {"address": False, "ssh": False, "port": None, "cloud_init": True, "timeout_s": 1}
    guest_watch.wait(t.cast("t.Any", None), {"g1": wait_for}, lambda names: {"g1": one}, warnings.append)
    assert warnings == [f"Guest g1: cloud-init: {error}" for error in errors]
    # Nobody is asked whose agent is not there.
    assert guest_watch.cloud_init_done(subject(1, None, "disconnected")) is None


def test_what_the_kernel_believes_is_forgotten_before_it_asks(
    seen: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had the address before, say; not what somebody has put there for good."""
    forgotten: list[t.Any] = []

    def ioctl(_socket: t.Any, number: int, request: bytes) -> t.NoReturn:
        forgotten.append((number, len(request), socket.inet_ntoa(request[4:8]), request[52:].rstrip(b"\0")))
        raise FileNotFoundError  # it has gone by itself

    line = "{} 0x1 {} 52:54:00:00:00:09 * virbr0\n".format
    table = "IP HW Flags HW Mask Device\n" + line("10.0.0.2", "0x2") + line("10.0.0.3", "0x6") + line("10.0.0.4", "0x2")
    monkeypatch.setattr(guest_watch, "_arp_table", lambda: table)
    monkeypatch.setattr(guest_watch, "poke", lambda wanted: None)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    seen.arp["52:54:00:00:00:09"] = ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    observe(*(subject(number, None, "disconnected")._replace(address=f"10.0.0.{number}") for number in (2, 3)))
    assert forgotten == [(0x8953, 68, "10.0.0.2", b"virbr0")]
