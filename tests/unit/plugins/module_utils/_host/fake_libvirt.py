# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for python3-libvirt with networks and pools: as much of it as the adapters use, and no more.

What the real one does is seen by the scenario of the guests; this is for what goes wrong, which cannot be had there.
"""

from __future__ import annotations

import itertools
import types
import typing as t
from xml.etree import ElementTree

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors


class FakeError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return str(self)


class Thing:
    """A network or a pool: what is stored, what is in force, and the calls that were made."""

    def __init__(self, driver: Driver, stored: str = "", live: str = "", autostart: bool = False) -> None:
        self.driver = driver
        self.stored, self.live = stored, live
        self.starts_with_host = autostart
        # What start() says, in turn; None is for a good end.
        self.trouble: list[str | None] = []
        self.calls: list[str] = []

    def name(self) -> str:
        return ElementTree.fromstring(self.stored or self.live).findtext("name") or ""

    def XMLDesc(self, flags: int) -> str:
        return self.stored if flags & 1 and self.stored else self.live or self.stored

    def isActive(self) -> int:
        return int(bool(self.live))

    def isPersistent(self) -> int:
        return int(bool(self.stored))

    def autostart(self) -> int:
        return int(self.starts_with_host)

    def setAutostart(self, value: int) -> None:
        self.calls.append(f"autostart {value}")
        self.starts_with_host = bool(value)

    def create(self, flags: int = 0) -> None:
        self.calls.append("create")
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble:
            raise FakeError(errors.OPERATION_FAILED, trouble)
        self.live = self.stored
        self.driver.started(self)

    def destroy(self) -> None:
        self.calls.append("destroy")
        self.live = ""
        self.driver.stopped(self)

    def undefine(self) -> None:
        self.calls.append("undefine")
        self.stored = ""

    def update(self, command: int, section: int, index: int, xml: str, flags: int) -> None:
        self.calls.append(f"update {command} {section} {xml.strip()} {flags}")

    def bridgeName(self) -> str:
        found = ElementTree.fromstring(self.live).find("bridge")
        assert found is not None
        return found.get("name", "")

    def DHCPLeases(self) -> list[dict[str, t.Any]]:
        return [{"mac": "52:54:00:00:00:01", "ipaddr": "192.168.150.9", "hostname": None, "expirytime": 7}]

    def build(self, flags: int) -> None:
        self.calls.append(f"build {flags}")

    def refresh(self, flags: int) -> None:
        self.calls.append("refresh")

    def info(self) -> list[int]:
        return [2, 100, 40, 60]


class Guest:
    def __init__(self, xml: str) -> None:
        self.xml = xml

    def XMLDesc(self, flags: int) -> str:
        return self.xml


class Driver:
    """The connection. ``started`` and ``stopped`` may be replaced, to have bridges come and go."""

    def __init__(self) -> None:
        self.networks: list[Thing] = []
        self.pools: list[Thing] = []
        self.guests: list[Guest] = []
        self.started: t.Callable[[Thing], None] = lambda thing: None
        self.stopped: t.Callable[[Thing], None] = lambda thing: None
        self._bridges = itertools.count(1)

    def close(self) -> None:
        pass

    def getLibVersion(self) -> int:
        return 10_000_000

    def _look(self, things: list[Thing], name: str, code: int) -> Thing:
        for thing in things:
            if (thing.stored or thing.live) and thing.name() == name:
                return thing
        raise FakeError(code, f"no {name}")

    def _define(self, things: list[Thing], text: str, code: int) -> Thing:
        name = ElementTree.fromstring(text).findtext("name") or ""
        try:
            thing = self._look(things, name, code)
        except FakeError:
            thing = Thing(self)
            things.append(thing)
        thing.calls.append("define")
        thing.stored = text
        return thing

    def listAllNetworks(self, flags: int) -> list[Thing]:
        return [each for each in self.networks if each.stored or each.live]

    def networkLookupByName(self, name: str) -> Thing:
        return self._look(self.networks, name, errors.NO_NETWORK)

    def networkDefineXML(self, text: str) -> Thing:
        # As libvirt does, give a bridge to a network that names none.
        root = ElementTree.fromstring(text)
        bridge = root.find("bridge")
        if bridge is not None and not bridge.get("name"):
            bridge.set("name", f"virbr{next(self._bridges)}")
        return self._define(self.networks, ElementTree.tostring(root, "unicode"), errors.NO_NETWORK)

    def listAllStoragePools(self, flags: int) -> list[Thing]:
        return [each for each in self.pools if each.stored or each.live]

    def storagePoolDefineXML(self, text: str, flags: int) -> Thing:
        return self._define(self.pools, text, errors.NO_STORAGE_POOL)

    def listAllDomains(self, flags: int) -> list[Guest]:
        return self.guests


def module(driver: Driver) -> types.ModuleType:
    """The module ``libvirt`` that opens connections to ``driver``."""
    made = types.ModuleType("libvirt")
    made.__dict__.update(
        libvirtError=FakeError,
        open=lambda uri: driver,
        registerErrorHandler=lambda function, context: None,
        VIR_CONNECT_LIST_DOMAINS_ACTIVE=1,
        VIR_NETWORK_XML_INACTIVE=1,
        VIR_STORAGE_XML_INACTIVE=1,
        VIR_STORAGE_POOL_BUILD_NEW=0,
        VIR_STORAGE_POOL_BUILD_NO_OVERWRITE=4,
        VIR_NETWORK_SECTION_IP_DHCP_HOST=4,
        VIR_NETWORK_SECTION_IP_DHCP_RANGE=5,
        VIR_NETWORK_SECTION_DNS_HOST=10,
        VIR_NETWORK_UPDATE_COMMAND_DELETE=2,
        VIR_NETWORK_UPDATE_COMMAND_ADD_LAST=3,
        VIR_NETWORK_UPDATE_AFFECT_LIVE=1,
    )
    return made
