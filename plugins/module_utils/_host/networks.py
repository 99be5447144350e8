# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's networks on this host: bring them to what is wanted, and tell what there is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, Missing, Refused
from .._libvirt import network as description
from .._libvirt.network_plan import Plan, Seen, Update, plan
from .._net.routes import Route, in_the_way, overlap, parse_routes
from . import libvirt, overlay
from .files import lock
from .system import Host

LOCK_FILE = f"{paths.RUN}/networks.lock"
_SYS = "/sys/class/net"


@dataclasses.dataclass
class _Job:
    """One network of a call: what is wanted, what there is, and what is to be done."""

    item: dict[str, t.Any]
    seen: Seen
    plan: Plan
    object: t.Optional[libvirt.Network] = None
    # As it is stored and as it runs: where it is, a failed restart goes back to both.
    stored: str = ""
    running: str = ""

    @property
    def xml(self) -> str:
        """What a redefinition keeps."""
        return self.stored or self.running

    @property
    def bridge(self) -> str:
        """The bridge of the running network."""
        return str((self.seen.live or {}).get("bridge", ""))


def _in_turn(jobs: t.Iterable[_Job]) -> list[_Job]:
    """What goes, goes first, then what is restarted: others may take their subnets and bridges."""
    return sorted(jobs, key=lambda job: (job.item["state"] not in ("absent", "inactive"), not job.plan.stop))


def bring_to(
    host: Host, items: object, *, restart_on_change: bool = False, force: bool = False, check_mode: bool = False
) -> dict[str, t.Any]:
    """Bring the networks of ``items`` (as users write them) to what is wanted; the module's result."""
    wanted = description.normalise_all(items)
    if check_mode and not libvirt.available():
        return libvirt.not_yet("networks", wanted)
    with lock(LOCK_FILE, "the module network"), libvirt.connect() as connection:
        batch = _Batch(host, connection, restart_on_change=restart_on_change, force=force, check_mode=check_mode)
        jobs = batch.decide(batch.on_overlay(wanted))
        if not check_mode:
            for job in _in_turn(jobs):
                batch.apply(job)
        return {
            "changed": any(job.plan.changed for job in jobs),
            "networks": [batch.result(job) for job in jobs],
            "diff": {
                "before": {job.plan.name: _before(job) for job in jobs if job.plan.changed},
                "after": {job.plan.name: _after(job) for job in jobs if job.plan.changed},
            },
            "warnings": batch.warnings,
        }


# -- Looking


def _read(network: libvirt.Network) -> tuple[Seen, str, str]:
    """A network as libvirt has it, without who is plugged in; and its XML, as stored and as it runs."""
    found = libvirt.library()
    with libvirt.doing(f"read the network {network.name()!r}"):
        stored = str(network.XMLDesc(found.VIR_NETWORK_XML_INACTIVE)) if network.isPersistent() else ""
        live = str(network.XMLDesc(0)) if network.isActive() else ""
        autostart = bool(network.autostart()) if stored else False
    seen = Seen(
        config=description.parse(stored) if stored else None,
        live=description.parse(live) if live else None,
        autostart=autostart,
    )
    return seen, stored, live


def members(bridge: str) -> list[str]:
    """The interfaces in a bridge, but for the one that older libvirts put there to keep its MAC."""
    try:
        found = os.listdir(f"{_SYS}/{bridge}/brif") if bridge else []
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.endswith("-nic"))


def is_bridge(name: str) -> bool:
    """Whether the host has a bridge of that name."""
    return os.path.isdir(f"{_SYS}/{name}/bridge")


def mtu_of(device: str) -> t.Optional[int]:
    """The MTU of an interface; None where there is none."""
    try:
        with open(f"{_SYS}/{device}/mtu", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def plugged_in(name: str, live: t.Mapping[str, t.Any], plugs: t.Iterable[description.Plug]) -> tuple[str, ...]:
    """Who would be cut off without the network: guests by name, then whatever else is in libvirt's bridge."""
    managed = live["type"] in description.MANAGED
    ours = [plug for plug in plugs if plug.network == name or (managed and live["bridge"] == plug.bridge)]
    others = set(members(live["bridge"])) - {plug.tap for plug in ours} if managed else set()
    return (*sorted({plug.guest for plug in ours}), *(f"interface {each}" for each in sorted(others)))


def _isolated(device: str) -> bool:
    try:
        with open(f"{_SYS}/{device}/brport/isolated", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


class _Batch:
    """One call. What is asked of libvirt or of the host is asked once, and only when it matters."""

    def __init__(
        self, host: Host, connection: libvirt.Connection, *, restart_on_change: bool, force: bool, check_mode: bool
    ) -> None:
        self.host = host
        self.connection = connection
        self.restart_on_change = restart_on_change
        self.force = force
        self.check_mode = check_mode
        self.known = libvirt.networks(connection)
        self.warnings: list[str] = []

    @functools.cached_property
    def plugs(self) -> list[description.Plug]:
        return [plug for text in libvirt.running_xml(self.connection) for plug in description.plugs_of(text)]

    @functools.cached_property
    def loose(self) -> list[description.Plug]:
        """Interfaces of guests that are in no bridge: a restart of their network was cut off."""
        taps = [
            name
            for name in os.listdir(_SYS)
            if os.path.exists(f"{_SYS}/{name}/tun_flags") and not os.path.exists(f"{_SYS}/{name}/master")
        ]
        return [plug for plug in self.plugs if plug.network and plug.tap in taps] if taps else []

    @functools.cached_property
    def routes(self) -> list[Route]:
        return parse_routes(self.host.run(["ip", "-j", "-4", "route", "show"]).stdout)

    def _made_by_then(self, name: str, error: Missing) -> None:
        """In check mode the host may lack what the tasks before would have made; otherwise that is an error."""
        if not self.check_mode:
            raise error
        what = error.message.removeprefix(f"Network {name!r}: ")
        self.warnings.append(f"Network {name!r} would be refused, unless a task before makes what it lacks: {what}")

    def on_overlay(self, wanted: t.Sequence[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
        """With the overlay's bridge, without a name where a task before is to make the overlay."""
        document = overlay.load() if any(item["type"] == "overlay" for item in wanted) else None
        found = []
        for item in wanted:
            try:
                found.append(description.with_overlay(item, document))
            except Missing as error:
                self._made_by_then(item["name"], error)
                found.append(description.with_overlay(item, {"bridge": ""}))
        return found

    def decide(self, wanted: t.Sequence[dict[str, t.Any]]) -> list[_Job]:
        """The plans for all, or an error before anything is touched."""
        jobs = [self._decide(item) for item in wanted]
        going: set[str] = set()
        for job in _in_turn(jobs):
            self._check(job, jobs, going)
            if job.plan.stop and job.bridge:
                going.add(job.bridge)
        return jobs

    def _decide(self, item: dict[str, t.Any]) -> _Job:
        network = self.known.get(item["name"])
        seen, stored, running = (Seen(), "", "") if network is None else _read(network)
        if item["type"] in description.MANAGED and item["state"] in ("active", "present"):
            loose = tuple(plug for plug in self.loose if plug.network == item["name"])
            seen = dataclasses.replace(seen, loose=loose)

        def steps() -> Plan:
            return plan(item, seen, restart_on_change=self.restart_on_change, force=self.force)

        first = steps()
        if first.stop and seen.live:
            # Now it matters who is plugged in.
            seen = dataclasses.replace(seen, guests=plugged_in(item["name"], seen.live, self.plugs))
            first = steps()
        return _Job(item, seen, first, network, stored, running)

    def _check(self, job: _Job, jobs: t.Sequence[_Job], going: t.Collection[str]) -> None:
        """What libvirt would find out halfway, or not at all."""
        name, after = job.plan.name, job.plan.description
        if after is None:
            return
        if job.plan.lost and job.plan.changes:
            self.warnings.append(
                f"Network {name!r} loses what this module does not describe: {'; '.join(job.plan.lost)}."
            )
        if job.seen.live is not None and "dhcp_hosts" in job.plan.changes:
            self._check_leases(job, after)
        if after["type"] == "bridge":
            if job.item["state"] == "active" and after["bridge"] and not is_bridge(after["bridge"]):
                lacks = f"Network {name!r}: this host has no bridge {after['bridge']!r}."
                self._made_by_then(
                    name, Missing(lacks, hint="Make it first, or set type: nat to have libvirt make one.")
                )
            return
        fresh = job.plan.new or job.plan.start or "subnet" in job.plan.changes or "bridge" in job.plan.changes
        if not fresh:
            return
        bridge = after["bridge"]
        if bridge and bridge not in going and bridge != job.bridge and os.path.exists(f"{_SYS}/{bridge}"):
            raise Refused(
                f"Network {name!r}: this host has an interface {bridge!r} already.",
                hint="Choose another name, or set type: bridge to use it.",
            )
        device = after["forward_device"]
        if device and not os.path.exists(f"{_SYS}/{device}"):
            self.warnings.append(f"Network {name!r}: this host has no interface {device!r} to forward through (yet).")
        if after["subnet"]:
            self._check_subnet(name, after["subnet"], jobs, {*going, job.bridge} - {""})

    def _check_leases(self, job: _Job, after: t.Mapping[str, t.Any]) -> None:
        """A reserved address that another guest has by now is only given when that one's lease ends."""
        name = job.plan.name
        with libvirt.doing(f"tell the leases of the network {name!r}"):
            leases = t.cast("libvirt.Network", job.object).DHCPLeases()
        owners = {str(lease.get("ipaddr")): str(lease.get("mac")) for lease in leases}
        for host in after["dhcp_hosts"]:
            owner = owners.get(host["address"], host["mac"])
            if owner != host["mac"]:
                self.warnings.append(
                    f"Network {name!r}: {host['address']} is reserved for {host['mac']}, which gets another address "
                    f"until the lease of {owner} ends."
                )

    def _check_subnet(self, name: str, subnet: str, jobs: t.Sequence[_Job], going: t.Collection[str]) -> None:
        wrong, doubtful = in_the_way(subnet, self.routes, going)
        named = {job.plan.name for job in jobs}
        for other, network in self.known.items():
            if other not in named:
                seen = _read(network)[0]
                taken = (seen.config or {}).get("subnet", "")
                if taken and seen.autostart and seen.live is None and overlap(taken, subnet):
                    wrong.append(f"the network {other!r} ({taken}), which starts with the host")
        if wrong:
            raise Refused(
                f"Network {name!r}: the subnet {subnet} overlaps {'; '.join(wrong)}.",
                hint="Choose another subnet, or remove what is there.",
            )
        self.warnings += [f"Network {name!r}: the subnet {subnet} is inside of {each}." for each in doubtful]

    # -- Doing

    def apply(self, job: _Job) -> None:
        """The steps of one plan."""
        done, name = job.plan, job.plan.name
        for update in done.updates:
            self._update(job, update)
        if done.restart:
            self._restart(job)
        else:
            if done.stop:
                with libvirt.doing(f"stop the network {name!r}"):
                    t.cast("libvirt.Network", job.object).destroy()
            if done.undefine:
                with libvirt.doing(f"remove the network {name!r}"):
                    t.cast("libvirt.Network", job.object).undefine()
            if done.define:
                self._define(job)
            if done.start:
                self._start(job)
            self._plug_in(name, _loose(job))
        if done.autostart is not None:
            with libvirt.doing(f"set whether the network {name!r} starts with the host"):
                t.cast("libvirt.Network", job.object).setAutostart(int(done.autostart))

    def _update(self, job: _Job, update: Update) -> None:
        found = libvirt.library()
        section = {
            "dhcp_ranges": found.VIR_NETWORK_SECTION_IP_DHCP_RANGE,
            "dhcp_hosts": found.VIR_NETWORK_SECTION_IP_DHCP_HOST,
            "dns_hosts": found.VIR_NETWORK_SECTION_DNS_HOST,
        }[update.section]
        command = found.VIR_NETWORK_UPDATE_COMMAND_DELETE
        if update.add:
            command = found.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST
        with libvirt.doing(f"change {update.section} of the running network {job.plan.name!r}"):
            t.cast("libvirt.Network", job.object).update(
                command, section, -1, update.xml, found.VIR_NETWORK_UPDATE_AFFECT_LIVE
            )

    def _define(self, job: _Job) -> None:
        kept = description.kept_of(job.xml) if job.xml else None
        text = description.build(t.cast("dict[str, t.Any]", job.plan.description), job.plan.name, kept)
        with libvirt.doing(f"define the network {job.plan.name!r}"):
            job.object = self.connection.networkDefineXML(text)

    def _start(self, job: _Job) -> None:
        """A new network that does not start is not left behind."""
        network = t.cast("libvirt.Network", job.object)
        try:
            with libvirt.doing(f"start the network {job.plan.name!r}"):
                network.create()
        except CnvmError:
            if job.plan.new:
                with contextlib.suppress(libvirt.library().libvirtError):
                    network.undefine()
            raise

    def _restart(self, job: _Job) -> None:
        """Stop and start; whoever was in the bridge is put back into it. When the new one does not start, the one that
        ran is started again."""
        name = job.plan.name
        managed = (job.seen.live or {}).get("type") in description.MANAGED
        inside = [(each, _isolated(each)) for each in members(job.bridge)] if managed else []
        with libvirt.doing(f"stop the network {name!r}"):
            t.cast("libvirt.Network", job.object).destroy()
        try:
            if job.plan.define:
                self._define(job)
            with libvirt.doing(f"start the network {name!r} anew"):
                t.cast("libvirt.Network", job.object).create()
        except CnvmError as error:
            self._go_back(job, inside, error)
        self._plug_in(name, [*inside, *_loose(job)])

    def _go_back(self, job: _Job, inside: t.Sequence[tuple[str, bool]], error: CnvmError) -> t.NoReturn:
        name = job.plan.name
        try:
            # What is stored need not be what ran: perhaps it would not start either.
            with libvirt.doing(f"bring back the network {name!r}"):
                job.object = self.connection.networkDefineXML(job.running)
                job.object.create()
            self._plug_in(name, inside)
            with libvirt.doing(f"store the network {name!r} again"):
                job.object = self.connection.networkDefineXML(job.xml)
        except CnvmError as second:
            raise HostError(
                f"{error.message} Nor could it be brought back as it was: {second.message}",
                hint=error.hint or "See 'journalctl -u libvirtd -u virtnetworkd'.",
                **error.details,
            ) from error
        raise HostError(
            f"{error.message} The network {name!r} runs again as it was before.", hint=error.hint, **error.details
        ) from error

    def _plug_in(self, name: str, inside: t.Sequence[tuple[str, bool]]) -> None:
        """Into the network's bridge, whatever it is called by now. Interfaces that have gone meanwhile are left out."""
        if not inside:
            return
        with libvirt.doing(f"tell the bridge of the network {name!r}"):
            bridge = str(self.connection.networkLookupByName(name).bridgeName())
        mtu = mtu_of(bridge)
        lost = []
        for device, isolated in inside:
            if not os.path.exists(f"{_SYS}/{device}") or os.path.exists(f"{_SYS}/{device}/master"):
                continue
            # The bridge would take over the smallest MTU of all that are in it.
            if mtu and mtu_of(device) != mtu:
                self.host.run(["ip", "link", "set", "dev", device, "mtu", str(mtu)], check=False)
            plugged = self.host.run(["ip", "link", "set", "dev", device, "master", bridge], check=False)
            if isolated:
                self.host.run(["bridge", "link", "set", "dev", device, "isolated", "on"], check=False)
            if plugged.rc and os.path.exists(f"{_SYS}/{device}"):
                lost.append(f"{device} ({plugged.stderr.strip()})")
        if lost:
            raise HostError(
                f"The network {name!r} runs, but was not plugged in again: {', '.join(lost)}.",
                hint=f"Run 'ip link set dev NAME master {bridge}' for each.",
            )

    # -- Telling

    def result(self, job: _Job) -> dict[str, t.Any]:
        """What the module returns of one network."""
        state = _state_after(job)
        after = job.plan.description or {}
        bridge = after.get("bridge", "") or job.bridge
        if job.object is not None and not bridge and state != "absent":
            seen = _read(job.object)[0]
            bridge = str((seen.live or seen.config or {}).get("bridge", ""))
        return {
            "name": job.plan.name,
            "state": state,
            "changed": job.plan.changed,
            "actions": job.plan.actions,
            "restarted": job.plan.restart,
            "bridge": bridge if state != "absent" else "",
            "mtu": mtu_of(bridge) if bridge and state != "absent" else None,
        }


def _loose(job: _Job) -> list[tuple[str, bool]]:
    return [(plug.tap, plug.isolated) for plug in job.plan.plug]


def _state_after(job: _Job) -> str:
    state = str(job.item["state"])
    if state == "present":
        return "active" if job.seen.live is not None else "inactive"
    return state


def _before(job: _Job) -> dict[str, t.Any]:
    if not job.seen.there:
        return {"state": "absent"}
    stored, live = job.seen.config, job.seen.live
    shown = {
        "state": "inactive" if live is None else "active",
        "autostart": job.seen.autostart,
        **(stored or live or {}),
    }
    if stored is None:
        return {**shown, "stored": False}
    differs = {key: value for key, value in (live or {}).items() if stored[key] != value}
    return {**shown, "live": differs} if differs else shown


def _after(job: _Job) -> dict[str, t.Any]:
    if job.item["state"] == "absent":
        return {"state": "absent"}
    autostart = job.seen.autostart if job.plan.autostart is None else job.plan.autostart
    return {"state": _state_after(job), "autostart": autostart, **(job.plan.description or {})}


# -- Information


def report(names: t.Optional[t.Sequence[str]] = None, *, leases: bool = True) -> list[dict[str, t.Any]]:
    """The networks (of ``names``), sorted by name."""
    document = overlay.load()
    with libvirt.connect() as connection:
        found = libvirt.networks(connection)
        plugs = [plug for text in libvirt.running_xml(connection) for plug in description.plugs_of(text)]
        return [
            _report(network, plugs, document, leases)
            for name, network in found.items()
            if names is None or name in names
        ]


def _report(
    network: libvirt.Network,
    plugs: t.Sequence[description.Plug],
    document: t.Optional[t.Mapping[str, t.Any]],
    leases: bool,
) -> dict[str, t.Any]:
    seen, stored, running = _read(network)
    shown = dict(seen.live or seen.config or description.DEFAULTS)
    name, bridge = str(network.name()), str(shown["bridge"])
    if document and shown["type"] == "bridge" and bridge == document["bridge"]:
        shown["type"] = "overlay"
    guests = plugged_in(name, seen.live, plugs) if seen.live else ()
    pending = [key for key, value in (seen.live or {}).items() if seen.config and seen.config[key] != value]
    with libvirt.doing(f"tell the leases of the network {name!r}"):
        given = network.DHCPLeases() if leases and seen.live and (shown["dhcp_ranges"] or shown["dhcp_hosts"]) else []
    return {
        **shown,
        "name": name,
        "uuid": description.kept_of(stored or running).uuid,
        "state": "active" if seen.live else "inactive",
        "autostart": seen.autostart,
        "persistent": seen.config is not None,
        "mtu": mtu_of(bridge) or shown["mtu"],
        "guests": list(guests),
        "pending": pending,
        "leases": [_lease(lease) for lease in sorted(given, key=lambda lease: str(lease.get("ipaddr")))],
    }


def _lease(lease: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {
        "mac": lease.get("mac") or "",
        "address": lease.get("ipaddr") or "",
        "name": lease.get("hostname") or "",
        "expires_epoch_s": lease.get("expirytime") or 0,
    }
