# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The overlay on this host: bring the live network to what overlay.json says, look at it, take it down."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import socket
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, PeerError, Refused
from .._core.runner import CommandResult, first_line
from .._libvirt.network import plugs_of
from .._net import icmp, links, nft
from .._net.endpoint import Endpoint, from_definition, host_link
from .._net.overlay import (
    BRIDGE,
    GATEWAY,
    GATEWAY_PORT,
    TUNNEL,
    VXLAN,
    Document,
    bridge_mac,
    encrypted,
    newcomers,
    subnets,
    tunnel_mtu,
    wireguard_conf,
)
from .._net.routes import in_the_way, parse_routes
from . import libvirt, netns
from .files import lock, read_json, remove_file, write_text
from .system import Host

KEY_FILE = f"{paths.ETC}/overlay.key"
LOCK_FILE = f"{paths.RUN}/overlay.lock"
USERSPACE_UNIT = "cnvm-wireguard.service"
_USERSPACE_SOCKET = f"/run/wireguard/{TUNNEL}.sock"
# wireguard-go answers wg through a socket; one that hangs must not hang us.
_WG_TIMEOUT_S = 10.0
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3


# -- Keys and addresses


def load() -> t.Optional[Document]:
    """overlay.json, None where the host has no overlay."""
    return read_json(paths.OVERLAY_FILE)


def public_key(host: Host, *, make: bool) -> str:
    """The host's public key, '' when there is none and ``make`` is false. The private one is made here and stays."""
    if not os.path.exists(KEY_FILE):
        if not make:
            return ""
        made = host.run(["wg", "genkey"])
        write_text(KEY_FILE, made.stdout.strip() + "\n", mode=0o600)
    return host.run(["wg", "pubkey"], stdin=_private_key() + "\n").stdout.strip()


def _private_key() -> str:
    try:
        with open(KEY_FILE, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise HostError(f"The overlay's key cannot be read: {error}.", hint="Run the role overlay.") from error


def underlay(host: Host, wished: str) -> tuple[str, int]:
    """The address at which other hosts reach this one, and the MTU of the link that it is on.

    ``wished`` may be an address that a router outside translates: then the link is that of the default route.
    """
    found = links.parse_links(host.run(["ip", "-j", "-d", "addr", "show"]).stdout)
    for link in found.values():
        if wished and wished in (address.partition("/")[0] for address in link.addresses):
            return wished, link.mtu
    # Documentation's address (RFC 5737): nothing is sent, the kernel only says which way it would go.
    said = host.run(["ip", "-j", "route", "get", "198.51.100.1"], check=False)
    way = (json.loads(said.stdout or "[]") or [{}])[0] if said.rc == 0 else {}
    uplink = found.get(way.get("dev", ""))
    if uplink is None or not (wished or way.get("prefsrc")):
        raise HostError(
            "This host has no default route, so it is not known at which address other hosts reach it.",
            hint="Give its address in the option underlay (overlay_endpoint of the role).",
        )
    return wished or way["prefsrc"], uplink.mtu


def _definition_files() -> list[str]:
    """Of all workloads that this host knows."""
    return sorted(glob.glob(f"{glob.escape(paths.WORKLOADS)}/*/definition.json"))


def workload_addresses() -> list[str]:
    """Overlay addresses of the workloads that this host knows: no host may get one of them."""
    found = {(read_json(path) or {}).get("address") for path in _definition_files()}
    return sorted(str(address) for address in found if address)


def refuse_routed(host: Host, before: t.Optional[Document], document: Document) -> list[str]:
    """Refused when a subnet that the overlay is to have here would take machines away that the host reaches now.
    Returned are warnings. What the overlay has already was looked at when it got it."""
    new = subnets(document).items() - (subnets(before).items() if before else ())
    routes = parse_routes(host.run(["ip", "-j", "-4", "route", "show", "type", "unicast"]).stdout) if new else []
    warnings = []
    for option, subnet in sorted(new):
        wrong, doubtful = in_the_way(subnet, routes, (BRIDGE, TUNNEL, GATEWAY))
        if wrong:
            raise Refused(
                f"{option}: {subnet} overlaps {'; '.join(wrong)}.",
                hint="Choose another subnet for all hosts, or remove what is there.",
            )
        warnings += [f"{option}: {subnet} is inside of {each}." for each in doubtful]
    return warnings


def refuse_taken(before: t.Optional[Document], document: Document, members: t.Collection[str]) -> None:
    """Refused when somebody on a host that is left out has the address that a new host is to get."""
    for peer in newcomers(before, document, members):
        spec = Endpoint(peer["name"], "", peer["address"], 24, "", 0, bridge_mac(peer["name"]), BRIDGE)
        try:
            holder = netns.address_holder(spec)
        except OSError:
            return  # no bridge, or it is down: nobody can be asked
        if holder:
            raise Refused(
                f"address: {peer['address']}, which {peer['name']} would get, is taken: {holder} answers for it.",
                hint="Run the play on all hosts, or give the new host another address.",
            )


# -- The live network


def look(host: Host, document: Document) -> links.Live:
    """The network as it is."""
    found = links.parse_links(host.run(["ip", "-j", "-d", "addr", "show"]).stdout)
    floods = host.run(["bridge", "-j", "fdb", "show"], check=False) if VXLAN in found else None
    route = host.run(["ip", "-j", "route", "show", "type", "unreachable", document["tunnel_subnet"]], check=False)
    dump = (
        host.run(["wg", "show", TUNNEL, "dump"], check=False, timeout_s=_WG_TIMEOUT_S)
        if TUNNEL in found and encrypted(document)
        else None
    )
    mark = nft.version_chain(document)
    # One call each: in one batch nft does not find what is in the first table.
    rules = tuple(
        family
        for family, table in nft.overlay_tables()
        if host.run(["nft", "list", "chain", family, table, mark], check=False).rc == 0
    )
    return links.Live(
        links=found,
        floods=links.parse_floods(floods.stdout) if floods and floods.rc == 0 else (),
        wireguard=links.parse_wireguard(dump.stdout) if dump and dump.rc == 0 else None,
        fallback=route.rc == 0 and bool(json.loads(route.stdout or "[]")),
        rules=rules,
        sysctl={name: _sysctl(name) for name in links.wanted_sysctl(document)},
    )


def _sysctl_path(name: str) -> str:
    return f"/proc/sys/{name.replace('.', '/')}"


def _sysctl(name: str) -> str:
    try:
        with open(_sysctl_path(name), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def reconcile(host: Host, document: Document, *, check: bool = False, changed_peers: bool = False) -> links.Steps:
    """Do what is missing (``check``: only say it). ``changed_peers``: overlay.json has other peers than before."""
    steps = _plan(host, document)
    if changed_peers and encrypted(document) and not steps.wireguard:
        steps = dataclasses.replace(steps, wireguard=True)
    if check or not steps:
        return steps
    if steps.rules:
        host.run(["nft", "-f", "-"], stdin=nft.overlay_rules(document) + _container_rules(document))
    if steps.drop_tunnel:
        _drop_tunnel(host)
    if steps.make_tunnel:
        _make_tunnel(host)
        # The link is there now, and its unit may have done some of the rest already.
        later = _plan(host, document)
        steps_now = dataclasses.replace(steps, ip=later.ip, wireguard=later.wireguard)
    else:
        steps_now = steps
    if steps_now.wireguard:
        _sync_wireguard(host, document)
    _batch(host, "ip", steps_now.ip)
    for name, value in steps.sysctl:
        with open(_sysctl_path(name), "w", encoding="ascii") as file:
            file.write(value)
    _batch(host, "bridge", steps.fdb)
    return steps


def _plan(host: Host, document: Document) -> links.Steps:
    return links.plan(document, look(host, document), int(time.time()), ipv6=os.path.exists("/proc/sys/net/ipv6"))


def _batch(host: Host, program: str, lines: t.Sequence[str]) -> t.Optional[CommandResult]:
    return host.run([program, "-batch", "-"], stdin="\n".join(lines) + "\n") if lines else None


def _container_rules(document: Document) -> str:
    """Guards and port forwards of the containers that are plugged in: whoever flushed our rules took these as well."""
    texts = []
    for path in _definition_files():
        try:
            definition = read_json(path) or {}
            spec = from_definition(definition, document) if definition.get("address") else None
        except (CnvmError, KeyError):
            continue  # whoever starts it will say what is wrong with it
        if spec and netns.is_attached(spec):
            texts.append(nft.guard_rules(spec) + nft.forward_rules(spec))
    return "".join(texts)


def _make_tunnel(host: Host) -> None:
    """The kernel's WireGuard where it has one, else wireguard-go under a unit that keeps it running."""
    made = host.run(["ip", "link", "add", "name", TUNNEL, "type", "wireguard"], check=False)
    if made.rc == 0:
        return
    started = host.run(["systemctl", "restart", USERSPACE_UNIT], check=False, timeout_s=60)
    if started.rc:
        said = host.run(["journalctl", "-u", USERSPACE_UNIT, "-n", "40", "-o", "cat", "--no-pager"], check=False)
        why = [line for line in said.stdout.splitlines() if "ERROR" in line or "No such file" in line]
        raise HostError(
            "This host's kernel has no WireGuard, and wireguard-go does not start as "
            f"{USERSPACE_UNIT}: {(why or [first_line(started.stderr)])[-1]}",
            hint="Install wireguard-go (role host_bootstrap) and run the role overlay, or load the kernel's module. "
            f"See 'journalctl -u {USERSPACE_UNIT}'.",
        )
    _wait_for_userspace(20.0)


def _wait_for_userspace(patience_s: float, process: str = "") -> None:
    """Until wireguard-go, whose process id is ``process`` where that is known, can be talked to."""
    end = time.monotonic() + patience_s
    while not (os.path.exists(_USERSPACE_SOCKET) and os.path.exists(f"/sys/class/net/{TUNNEL}")):
        if time.monotonic() > end or (process and not os.path.exists(f"/proc/{process}")):
            raise HostError(
                f"wireguard-go ended, or has not made {TUNNEL} within {patience_s:g} s.",
                hint=f"See 'journalctl -u {USERSPACE_UNIT}'; it needs /dev/net/tun.",
            )
        time.sleep(0.02)


def _drop_tunnel(host: Host) -> None:
    host.run(["systemctl", "stop", USERSPACE_UNIT], check=False, timeout_s=60)
    if os.path.exists(f"/sys/class/net/{TUNNEL}"):
        host.run(["ip", "link", "del", TUNNEL])


def _sync_wireguard(host: Host, document: Document) -> None:
    """Change what differs; sessions with the other peers go on."""
    host.run(
        ["wg", "syncconf", TUNNEL, "/dev/stdin"],
        stdin=wireguard_conf(document, _private_key()),
        timeout_s=_WG_TIMEOUT_S,
    )


def take_down(host: Host, document: t.Optional[Document], *, check: bool = False) -> list[str]:
    """Remove all links and rules of the overlay; what was removed. Refused while anything else is plugged in."""
    ports = sorted(set(_listdir(f"/sys/class/net/{BRIDGE}/brif")) - {VXLAN, GATEWAY_PORT})
    if ports:
        owners = _owners(ports)
        named = ", ".join(f"{owners[port]} ({port})" if port in owners else f"interface {port}" for port in ports)
        raise Refused(
            f"The overlay cannot be taken down, plugged into it are: {named}.", hint="Stop or move them first."
        )
    present = [name for name in (VXLAN, GATEWAY, BRIDGE) if os.path.exists(f"/sys/class/net/{name}")]
    tunnel = os.path.exists(f"/sys/class/net/{TUNNEL}")
    if not check:
        if tunnel:
            _drop_tunnel(host)
        if present:
            _batch(host, "ip", [f"link del {name}" for name in present])
        if document:
            host.run(["ip", "route", "del", "unreachable", document["tunnel_subnet"], *links.LAST.split()], check=False)
        host.run(
            ["nft", "-f", "-"], stdin="".join(nft.drop_table(family, table) for family, table in nft.overlay_tables())
        )
    return [*present, *([TUNNEL] if tunnel else [])]


def _owners(ports: t.Collection[str]) -> dict[str, str]:
    """Names of the containers and guests that the bridge's ``ports`` belong to, as far as that can be told."""
    known = [read_json(path) or {} for path in _definition_files()]
    owners = {host_link(str(each.get("uuid"))): str(each.get("name")) for each in known}
    if not owners.keys() >= set(ports) and libvirt.available():
        with contextlib.suppress(libvirt.LibvirtError), libvirt.connect() as connection:
            owners.update((plug.tap, plug.guest) for text in libvirt.running_xml(connection) for plug in plugs_of(text))
    return owners


def has_key() -> bool:
    """Whether the host has its private key."""
    return os.path.exists(KEY_FILE)


def forget() -> None:
    """Remove what the host remembers of the overlay, its key included."""
    for path in (paths.OVERLAY_FILE, KEY_FILE):
        if os.path.exists(path):
            remove_file(path, durable=True)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


# -- Do the peers answer?


class _Asked(t.NamedTuple):
    peer: str
    way: str
    address: str
    packet_bytes: int


def unreachable(
    document: Document,
    names: t.Collection[str],
    timeout_s: float,
    *,
    ways: t.Sequence[str] = ("small", "full", "overlay"),
) -> dict[str, str]:
    """Peers among ``names`` that do not answer within ``timeout_s``, and the first way that does not work.

    ``small``: through the tunnel at all. ``full``: with the largest packet. ``overlay``: also through VXLAN and bridge.
    """
    pending: dict[int, _Asked] = {}
    for peer in document["peers"]:
        if peer["name"] in names:
            asked = {
                "small": (peer["tunnel"], 64),
                "full": (peer["tunnel"], tunnel_mtu(document)),
                "overlay": (peer["address"], int(document["mtu"])),
            }
            for way in ways:
                pending[len(pending) + 1] = _Asked(peer["name"], way, *asked[way])
    end = time.monotonic() + timeout_s
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        # "Do not fragment", and do not believe a path's MTU that was learnt earlier.
        link.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        identifier = os.getpid() & 0xFFFF
        while pending:
            for sequence, each in pending.items():
                try:
                    link.sendto(icmp.request(identifier, sequence, each.packet_bytes), (each.address, 0))
                except OSError:
                    pass  # no route, too large for the link: it stays unanswered
            round_end = min(end, time.monotonic() + 0.5)
            while pending and time.monotonic() < round_end:
                link.settimeout(max(0.001, round_end - time.monotonic()))
                try:
                    packet, (sender, _port) = link.recvfrom(65536)
                except socket.timeout:
                    break
                reply = icmp.reply_of(packet)
                if reply and reply[0] == identifier and reply[1] in pending and pending[reply[1]].address == sender:
                    del pending[reply[1]]
            if time.monotonic() >= end:
                break
    worst: dict[str, str] = {}
    for each in pending.values():
        if each.peer not in worst or ways.index(each.way) < ways.index(worst[each.peer]):
            worst[each.peer] = each.way
    return worst


def require_peers(host: Host, document: Document, names: t.Collection[str], timeout_s: float) -> None:
    """PeerError that names both hosts, addresses and ports when a peer among ``names`` does not answer in time."""
    missing = unreachable(document, names, timeout_s)
    if not missing:
        return
    own = document["self"]
    peers = {peer["name"]: peer for peer in document["peers"]}
    dump = (
        host.run(["wg", "show", TUNNEL, "dump"], check=False, timeout_s=_WG_TIMEOUT_S) if encrypted(document) else None
    )
    wireguard = links.parse_wireguard(dump.stdout) if dump and dump.rc == 0 else None
    shaken = {peer.public_key for peer in wireguard.peers if peer.handshake_s} if wireguard else set()
    said, hints = [], []
    for name, way in sorted(missing.items()):
        peer = peers[name]
        pair = f"{own['name']} ({own['tunnel']}) does not reach {name} ({peer['tunnel']})"
        if way == "small" and encrypted(document):
            what = "no answer" if peer["public_key"] in shaken else "no WireGuard handshake"
            said.append(f"{pair}: {what} between UDP {own['endpoint']} and {peer['endpoint']}.")
            port = peer["endpoint"].rpartition(":")[2]
            hints.append(f"Open UDP port {port} between the two in both directions.")
        elif way == "small":
            said.append(f"{pair}.")
            hints.append("Look at the network between the two and at firewalls of the hosts that drop ICMP.")
        elif way == "full":
            said.append(f"{pair} with packets of {tunnel_mtu(document)} bytes, only with smaller ones.")
            hints.append(
                f"The network between them carries less than its links say: set overlay_mtu below {document['mtu']}."
            )
        else:
            said.append(
                f"{own['name']} ({own['address']}) does not reach {name} ({peer['address']}) through VXLAN, UDP port "
                f"{document['vxlan_port']} between {own['tunnel']} and {peer['tunnel']}."
            )
            hints.append(
                f"Open UDP port {document['vxlan_port']} on {TUNNEL if encrypted(document) else 'both hosts'}."
            )
    raise PeerError(
        f"After {timeout_s:g} s the overlay does not work: {' '.join(said)}",
        hint=" ".join(dict.fromkeys(hints)),
        unreachable=missing,
    )


# -- Status


def status(host: Host, document: t.Optional[Document], *, ask: bool = True, timeout_s: float = 1.0) -> dict[str, t.Any]:
    """The overlay as people and modules want to see it. ``ask``: see whether the peers answer."""
    if document is None:
        return {"configured": False, "up": False, "peers": []}
    live = look(host, document)
    steps = links.plan(document, live, int(time.time()), ipv6=os.path.exists("/proc/sys/net/ipv6"))
    talk = {peer.public_key: peer for peer in live.wireguard.peers} if live.wireguard else {}
    missing = unreachable(document, [peer["name"] for peer in document["peers"]], timeout_s) if ask else {}
    peers = []
    for peer in document["peers"]:
        seen = talk.get(peer.get("public_key", ""))
        found = dict(peer)
        if ask:
            found["reachable"] = peer["name"] not in missing
        if seen:
            found["last_handshake_s"] = max(0, int(time.time()) - seen.handshake_s) if seen.handshake_s else None
            found["received_bytes"], found["sent_bytes"] = seen.received, seen.sent
        peers.append(found)
    kind = live.links[TUNNEL].kind if TUNNEL in live.links else ""
    return {
        "configured": True,
        "up": BRIDGE in live.links and live.links[BRIDGE].up and VXLAN in live.links and live.links[VXLAN].up,
        "missing": steps.texts(),
        "engine": {"wireguard": "kernel", "tun": "wireguard-go"}.get(kind, "none"),
        **{key: value for key, value in document.items() if key not in ("schema", "peers")},
        "peers": peers,
    }


# -- cnvm-host overlay …


def _need(document: t.Optional[Document]) -> Document:
    if document is None:
        raise HostError("This host has no overlay.", hint="Run the role overlay on it.")
    return document


def _write(host: Host, value: object) -> None:
    if host.stdout is not None:
        host.stdout.write(json.dumps(value, sort_keys=True).encode() + b"\n")


def _command(args: t.Sequence[str], host: Host) -> int:
    word = args[0] if args else ""
    document = load()
    if word == "up":
        with lock(LOCK_FILE, "overlay up"):
            _write(host, {"done": reconcile(host, _need(document)).texts()})
    elif word == "down":
        with lock(LOCK_FILE, "overlay down"):
            _write(host, {"removed": take_down(host, _need(document))})
    elif word == "status":
        _write(host, status(host, document))
    elif word == "tunnel":
        # For the unit of wireguard-go, which lost all it knew when it was started anew. No lock: 'up' may wait for us.
        if document and encrypted(document):
            _wait_for_userspace(20.0, os.environ.get("MAINPID", ""))
            steps = _plan(host, document)
            _sync_wireguard(host, document)
            _batch(host, "ip", [line for line in steps.ip if TUNNEL in line])
    else:
        raise CnvmError(f"cnvm-host overlay: {word!r} is no command.", hint="There are: up, down, status, tunnel.")
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's table."""
    return {"overlay": _command}
