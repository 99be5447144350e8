# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What has to be done so that a network of libvirt is as the user wants it. Decided before anything is touched."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import Refused
from . import xml
from .network import DEFAULTS, IN_PLACE, MANAGED, Plug, dhcp_host_node, dns_host_node, range_node

# -- What has to be done


@dataclasses.dataclass(frozen=True)
class Seen:
    """A network as libvirt has it. ``config``: what is stored (None: nothing of that name, or not stored). ``live``:
    what runs (None: it does not). ``guests``: who is plugged in, by name. ``loose``: interfaces of guests that are to
    be in it, and are in no bridge."""

    config: t.Optional[dict[str, t.Any]] = None
    live: t.Optional[dict[str, t.Any]] = None
    autostart: bool = False
    guests: tuple[str, ...] = ()
    loose: tuple[Plug, ...] = ()

    @property
    def there(self) -> bool:
        return self.config is not None or self.live is not None


class Update(t.NamedTuple):
    """One change of a running network: ``add`` or ``delete`` in a section, and the element."""

    add: bool
    section: str
    xml: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps for one network, in this order: updates, stop, undefine or define, start, plug in, autostart."""

    name: str
    description: t.Optional[dict[str, t.Any]] = None
    define: bool = False
    undefine: bool = False
    stop: bool = False
    start: bool = False
    autostart: t.Optional[bool] = None
    updates: tuple[Update, ...] = ()
    plug: tuple[Plug, ...] = ()
    changes: tuple[str, ...] = ()
    new: bool = False
    lost: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return bool(
            self.define or self.undefine or self.stop or self.start or self.updates or self.plug
            or self.autostart is not None
        )  # fmt: skip

    @property
    def restart(self) -> bool:
        """Whether a running network is stopped and started again."""
        return self.stop and self.start

    @property
    def actions(self) -> list[str]:
        """The steps as words."""
        words = ["define"] if self.new else [f"change {key}" for key in self.changes]
        if self.define and not words:
            words.append("define")
        if self.restart:
            words.append("restart")
        elif self.stop:
            words.append("stop")
        elif self.start:
            words.append("start")
        words += [f"plug in {guest}" for guest in dict.fromkeys(plug.guest for plug in self.plug)]
        if self.undefine:
            words.append("undefine")
        if self.autostart is not None:
            words.append("enable" if self.autostart else "disable")
        return words


def changed_keys(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """Keys in which two normal forms differ."""
    return [key for key in DEFAULTS if before[key] != after[key]]


def settle(item: t.Mapping[str, t.Any], seen: Seen) -> dict[str, t.Any]:
    """The normal form that is wanted, without a name. A bridge that nobody named stays what it is."""
    after = {key: item[key] for key in DEFAULTS}
    before = seen.config or seen.live
    if before and not after["bridge"] and (after["type"] in MANAGED) == (before["type"] in MANAGED):
        after["bridge"] = before["bridge"]
    return after


def plan(item: t.Mapping[str, t.Any], seen: Seen, *, restart_on_change: bool = False, force: bool = False) -> Plan:
    """The steps that bring the network of ``item`` (normal form) from ``seen`` to what is wanted.

    Refused where guests would be cut off and that was not allowed.
    """
    name, state = item["name"], item["state"]
    active = seen.live is not None
    if active and state in ("absent", "inactive") and seen.guests and not force:
        raise Refused(
            f"Network {name!r} cannot be stopped: {_guests(seen.guests)} plugged into it.",
            hint="Stop them first, or set force: true to cut them off.",
            guests=list(seen.guests),
        )
    if state == "absent":
        return Plan(name=name, stop=active, undefine=seen.config is not None)
    after = settle(item, seen)
    autostart = item["autostart"]
    if autostart is None:
        autostart = {"active": True, "inactive": False}.get(state, seen.autostart)
    stored = changed_keys(seen.config, after) if seen.config is not None else []
    live = changed_keys(seen.live, after) if seen.live is not None else []
    hard = [key for key in live if key not in IN_PLACE or not _tell_apart(key, seen.live)]
    restart = bool(hard) and state != "inactive"
    if restart:
        _may_restart(name, t.cast("dict[str, t.Any]", seen.live), after, hard, seen.guests, restart_on_change)
    goes_on = active and state != "inactive" and not restart
    return Plan(
        name=name,
        description=after,
        define=seen.config is None or bool(stored),
        stop=restart or (active and state == "inactive"),
        start=restart or (state == "active" and not active),
        autostart=None if autostart == seen.autostart else autostart,
        updates=tuple(updates(t.cast("dict[str, t.Any]", seen.live), after)) if goes_on and live else (),
        plug=seen.loose if after["type"] in MANAGED and (goes_on or restart or state == "active") else (),
        changes=tuple(key for key in DEFAULTS if key in stored or key in live) if seen.there else (),
        new=not seen.there,
        lost=tuple(dict.fromkeys([*(seen.config or {}).get("other", ()), *(seen.live or {}).get("other", ())])),
    )


def _tell_apart(key: str, live: t.Optional[t.Mapping[str, t.Any]]) -> bool:
    """Whether libvirt can tell the entries of a running network apart; not those of DNS that share a name."""
    names = [name for host in (live or {}).get("dns_hosts", ()) for name in host["names"]]
    return key != "dns_hosts" or len(set(names)) == len(names)


def _guests(names: t.Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _may_restart(
    name: str,
    live: t.Mapping[str, t.Any],
    after: t.Mapping[str, t.Any],
    hard: t.Sequence[str],
    guests: t.Sequence[str],
    allowed: bool,
) -> None:
    if not guests:
        return
    if "bridge" in hard or (live["type"] in MANAGED) != (after["type"] in MANAGED):
        # libvirt goes on thinking that they are on the old one, and plugs them back there.
        raise Refused(
            f"Network {name!r} cannot change its bridge: {_guests(guests)} plugged into it.",
            hint="Stop them first.",
            guests=list(guests),
        )
    if after["type"] in MANAGED and not allowed:
        raise Refused(
            f"Network {name!r} would have to be restarted for {', '.join(hard)}; {_guests(guests)} plugged into it.",
            hint="Set restart_on_change: true; they are cut off for about a second, and plugged in again.",
            guests=list(guests),
        )


def updates(live: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[Update]:
    """What is to be changed in a running network, in an order that libvirt accepts: what goes, goes first."""
    found = []
    nodes: dict[str, t.Callable[[t.Any], xml.Node]] = {
        "dhcp_ranges": range_node,
        "dhcp_hosts": dhcp_host_node,
        "dns_hosts": dns_host_node,
    }
    for key, node in nodes.items():
        gone = [one for one in live[key] if one not in after[key]]
        new = [one for one in after[key] if one not in live[key]]
        found += [Update(False, key, xml.document(node(one))) for one in gone]
        found += [Update(True, key, xml.document(node(one))) for one in new]
    return found
