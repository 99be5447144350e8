# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The network of a container on this host: its namespace, its link to the overlay, its port forwards.

``attach``, ``detach`` and ``announce`` are called while the container is frozen: one process or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import socket
import sys
import threading
import time
import typing as t

from .._core import paths
from .._core.errors import HostError, Refused
from .._core.runner import CommandResult
from .._net import arp, nft
from .._net.endpoint import (
    INSIDE,
    Endpoint,
    Forward,
    forward_conflicts,
    forward_table,
    forwards_from,
    guard_table,
    host_link,
)
from .files import read_json
from .system import Host

_CLONE_NEWNET = 0x40000000
_FORWARDING = 3  # of a bridge port: BR_STATE_FORWARDING
_TCP_LISTEN = "0A"
_UDP_UNCONNECTED = "07"
_MPTCP = "/proc/sys/net/mptcp/enabled"
_Result = t.TypeVar("_Result")
# How long somebody who has an address is given to say so.
ANSWER_S = 0.3


# -- The namespace


def create(host: Host, spec: Endpoint) -> bool:
    """Make the namespace with its end of the link configured; the host's side stays unplugged. Whether it changed.

    Mends a half-made one. A namespace that is right is left alone, plugged in or not.
    """
    existing = _is_namespace(spec.name)
    seen = _look_inside(host, spec.name) if existing else {}
    paired = bool(seen) and _index_of(spec.host_link) == seen.get("link_index")
    if paired and _configured(seen, spec):
        return False
    outside: list[str] = []
    if not existing:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(paths.netns_path(spec.name))  # left by a netns that was not finished; no namespace is behind it
        outside.append(f"netns add {paths.netns_name(spec.name)}")
    if not paired:
        if _index_of(spec.host_link):
            outside.append(f"link del {spec.host_link}")
        elif seen:
            _batch(host, [f"link del {INSIDE}"], inside=spec.name)
        outside.append(
            f"link add name {spec.host_link} mtu {spec.mtu} type veth peer name {INSIDE} mtu {spec.mtu} "
            f"address {spec.mac} netns {paths.netns_name(spec.name)}"
        )
        outside += _no_link_local(spec.host_link)
    if outside:
        _batch(host, outside)
    refuse_mptcp(spec.name)
    stale = (
        []
        if not paired
        else [
            f"addr del {info['local']}/{info['prefixlen']} dev {INSIDE}"
            for info in seen.get("addr_info", ())
            if (info["local"], info["prefixlen"]) != (spec.address, spec.prefix_length)
        ]
    )
    _batch(
        host,
        [
            "link set dev lo up",
            *_no_link_local(INSIDE),
            *stale,
            f"link set dev {INSIDE} mtu {spec.mtu} address {spec.mac}",
            f"addr replace {spec.address}/{spec.prefix_length} dev {INSIDE}",
            f"link set dev {INSIDE} up",
            f"route replace default via {spec.gateway} dev {INSIDE}",
        ],
        inside=spec.name,
    )
    host.run(["nft", "-f", "-"], stdin=nft.guard_rules(spec))
    return True


def create_alone(host: Host, name: str) -> bool:
    """Make the namespace of a container without an address, which has its loopback alone. Whether it changed."""
    if os.path.ismount(paths.netns_path(name)):
        return False
    host.run(["ip", "netns", "add", paths.netns_name(name)])
    refuse_mptcp(name)
    host.run(["ip", "-n", paths.netns_name(name), "link", "set", "lo", "up"])
    return True


def refuse_mptcp(name: str) -> None:
    """Nobody gets a socket of Multipath TCP in the namespace, as CRIU cannot dump it: programs that ask for one (each
    listener of Go does) take plain TCP then."""

    def write() -> None:
        # A kernel may be without it, a host that is a container itself may not be let; a plan of a move sees to these.
        with contextlib.suppress(OSError), open(_MPTCP, "w", encoding="ascii") as file:
            file.write("0")

    if os.path.exists(_MPTCP):
        _in_namespace(name, write)


def remove(host: Host, name: str, uuid: str) -> bool:
    """Take away link, guard, forwards and namespace, as far as they are there. Whether anything was.

    Whatever the overlay is by now: an address that was in it need not be so any more.
    """
    link = host_link(uuid)
    lines = [f"link del {link}"] if _index_of(link) else []
    if os.path.lexists(paths.netns_path(name)):
        lines.append(f"netns del {paths.netns_name(name)}")
    tables = nft.drop_table("netdev", guard_table(uuid)) + nft.drop_table("ip", forward_table(name))
    if lines:
        _batch(host, lines)
    host.run(["nft", "-f", "-"], stdin=tables)
    return bool(lines)


def attach(host: Host, spec: Endpoint) -> None:
    """Plug the host's side into the bridge and tell everybody where the address is now."""
    _batch(host, [f"link set dev {spec.host_link} master {spec.bridge}", f"link set dev {spec.host_link} up"])
    announce(host, spec)


def detach(host: Host, spec: Endpoint) -> None:
    """Unplug the host's side. Down first: an unplugged link that is up would talk to the host's own stack."""
    if _index_of(spec.host_link):
        _batch(host, [f"link set dev {spec.host_link} down", f"link set dev {spec.host_link} nomaster"])


def is_attached(spec: Endpoint) -> bool:
    """Whether the host's side is plugged into the bridge and up."""
    directory = f"/sys/class/net/{spec.host_link}"
    try:
        plugged = os.path.basename(os.readlink(f"{directory}/master")) == spec.bridge
        return plugged and bool(int(_read(f"{directory}/flags"), 16) & 1)
    except OSError:
        return False


# -- ARP


def announce(host: Host, spec: Endpoint, repeats_s: t.Sequence[float] = (0.0,)) -> None:
    """Send gratuitous ARP from inside the namespace at ``repeats_s`` seconds from now; blocks until the last.

    From inside, so that this host's bridge learns the port as well as the other hosts learn the tunnel. Raw frames
    pass CRIU's lock, which is in the namespace's IP filter.
    """
    start = time.monotonic()
    frame = arp.announcement(spec.mac, spec.address)
    with _in_namespace(spec.name, _raw_socket) as sender:
        _wait_for_port(spec.host_link, start + 0.5)
        for delay in sorted(repeats_s):
            time.sleep(max(0.0, start + delay - time.monotonic()))
            _send(sender, frame, time.monotonic() + 0.5)


class AddressQuestion:
    """Asks everybody on the overlay, once, who else has the address of ``spec``.

    A workload has the same MACs wherever it runs, so its own instance is nobody else. ``macs``: those of its other
    cards, too (Linux answers with each of them for all of its addresses).
    """

    def __init__(self, spec: Endpoint, macs: t.Sequence[str] = ()) -> None:
        own = _read(f"/sys/class/net/{spec.bridge}/address").strip()
        self._address, self._known = spec.address, (spec.mac, own, *macs)
        # Only what comes of the bridge, from the start: to let go of all else, as to close it, takes the kernel 10 ms.
        self._link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._link.bind((spec.bridge, arp.ETHERTYPE))
            self._link.send(arp.probe(own, spec.address))
        except BaseException:
            self.close()
            raise

    def holder(self, timeout_s: float = 0.0) -> t.Optional[str]:
        """The MAC of who has answered, or answers within ``timeout_s``; None when nobody does."""
        end = time.monotonic() + timeout_s
        while True:
            self._link.settimeout(max(0.0, end - time.monotonic()))
            try:
                claimed = arp.sender_of(self._link.recv(2048))
            except (socket.timeout, BlockingIOError):
                return None
            if claimed and claimed[1] == self._address and claimed[0] not in self._known:
                return claimed[0]

    def close(self) -> None:
        """Ask no more."""
        self._link.close()


def address_holder(spec: Endpoint, macs: t.Sequence[str] = (), timeout_s: float = ANSWER_S) -> t.Optional[str]:
    """The MAC of somebody else on the overlay who answers for the address of ``spec``, or None."""
    with contextlib.closing(AddressQuestion(spec, macs)) as asked:
        return asked.holder(timeout_s)


def _raw_socket() -> socket.socket:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sender.bind((INSIDE, 0))
    except BaseException:
        sender.close()
        raise
    return sender


def _send(sender: socket.socket, frame: bytes, until: float) -> None:
    """Send ``frame``. A link that has just come up refuses for some milliseconds (ENOBUFS, ENETDOWN)."""
    while True:
        try:
            sender.send(frame)
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.0005)


def _wait_for_port(link: str, until: float) -> None:
    """Until the bridge forwards frames of this port, which it does a moment after the link came up."""
    while time.monotonic() < until:
        try:
            if int(_read(f"/sys/class/net/{link}/brport/state")) == _FORWARDING:
                return
        except (OSError, ValueError):
            return  # not in a bridge: nobody to wait for
        time.sleep(0.0005)


def _in_namespace(name: str, work: t.Callable[[], _Result]) -> _Result:
    """The result of ``work`` done inside the namespace, in a thread of its own that ends with it.

    A socket made there stays there.
    """
    outcome: list[_Result] = []
    failure: list[OSError] = []

    def enter() -> None:
        try:
            fd = os.open(paths.netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(fd)
            outcome.append(work())
        except OSError as error:  # handed to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failure:
        raise HostError(f"The network namespace {paths.netns_name(name)} cannot be used: {failure[0]}.") from failure[0]
    return outcome[0]


# -- Port forwards


def forwards_up(host: Host, spec: Endpoint) -> None:
    """Put up the port forwards of ``spec`` instead of those that the container had, in one step."""
    host.run(["nft", "-f", "-"], stdin=nft.forward_rules(spec))


def forwards_down(host: Host, name: str) -> None:
    """Take down the port forwards of a container."""
    host.run(["nft", "-f", "-"], stdin=nft.drop_table("ip", forward_table(name)))


def check_forwards(spec: Endpoint, leaving: t.Collection[str] = ()) -> None:
    """Refused when a host port that ``spec`` wants belongs to another container of this host, but for those that are
    ``leaving``, or to a program."""
    others = {name: ports for name, ports in _forwards_of_others(spec.name).items() if name not in leaving}
    conflicts = forward_conflicts(spec, others, listening())
    if conflicts:
        raise Refused(
            f"Container {spec.name}: {' '.join(conflicts)}", hint="Choose another host port.", conflicts=conflicts
        )


def _forwards_of_others(name: str) -> dict[str, tuple[Forward, ...]]:
    host_id = (read_json(paths.HOST_FILE) or {}).get("host_id")
    found = {}
    for path in glob.glob(f"{glob.escape(paths.WORKLOADS)}/*/definition.json"):
        other = os.path.basename(os.path.dirname(path))
        owner = (read_json(paths.owner_file(other)) or {}).get("owner")
        if other != name and owner in (None, host_id):
            found[other] = forwards_from((read_json(path) or {}).get("ports"))
    return found


def listening() -> list[tuple[str, str, int]]:
    """What programs of this host listen on: protocol, address ('' for every address), port."""
    found = []
    for file, protocol, state in (
        ("tcp", "tcp", _TCP_LISTEN),
        ("tcp6", "tcp", _TCP_LISTEN),
        ("udp", "udp", _UDP_UNCONNECTED),
        ("udp6", "udp", _UDP_UNCONNECTED),
    ):
        with contextlib.suppress(FileNotFoundError):
            found += parse_listening(_read(f"/proc/net/{file}"), protocol, state)
    return sorted(set(found))


def parse_listening(text: str, protocol: str, state: str) -> list[tuple[str, str, int]]:
    """The sockets of /proc/net/{tcp,udp}{,6} in ``state``. Sockets on the loopback alone do not count:
    a forward leaves them alone unless the client is the host itself."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] != state:
            continue
        digits, port = fields[1].split(":")
        # The kernel prints each 32-bit word of the address as a number of its own byte order.
        words = b"".join(int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8))
        address = socket.inet_ntop(socket.AF_INET6 if len(words) == 16 else socket.AF_INET, words)
        if address.startswith("::ffff:"):
            address = address[7:]
        if address.startswith("127.") or address == "::1":
            continue
        found.append((protocol, "" if address in ("0.0.0.0", "::") else address, int(port, 16)))
    return found


# -- What is there


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _index_of(link: str) -> t.Optional[int]:
    try:
        return int(_read(f"/sys/class/net/{link}/ifindex"))
    except OSError:
        return None


def _is_namespace(name: str) -> bool:
    """Whether the file of the namespace has one behind it (another file system is mounted on it)."""
    path = paths.netns_path(name)
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def _batch(host: Host, lines: t.Sequence[str], inside: str = "") -> CommandResult:
    """Run ``ip`` once for all ``lines``, in the host or inside the namespace of a container."""
    where = ["-n", paths.netns_name(inside)] if inside else []
    return host.run(["ip", *where, "-batch", "-"], stdin="\n".join(lines) + "\n")


def _no_link_local(link: str) -> list[str]:
    """No IPv6 address may come and go by itself: a restored connection must find the addresses it was saved with."""
    return [f"link set dev {link} addrgenmode none"] if os.path.exists("/proc/sys/net/ipv6") else []


def _look_inside(host: Host, name: str) -> dict[str, t.Any]:
    """What ``ip`` says of the namespace's link, with the default gateway under ``gateway``; empty without the link."""
    found = host.run(["ip", "-n", paths.netns_name(name), "-j", "-batch", "-"], stdin="addr show\nroute show default\n")
    return parse_inside(found.stdout)


def parse_inside(text: str) -> dict[str, t.Any]:
    """The link inside from the two JSON arrays that ``ip -j`` printed one after the other."""
    decoder = json.JSONDecoder()
    text = text.strip()
    links, end = decoder.raw_decode(text)
    rest = text[end:].strip()
    routes = decoder.raw_decode(rest)[0] if rest else []
    loopback = any("UP" in link.get("flags", ()) for link in links if link.get("ifname") == "lo")
    for link in links:
        if link.get("ifname") == INSIDE:
            gateways = [route.get("gateway") for route in routes if route.get("dev") == INSIDE]
            return {**link, "gateway": gateways[0] if gateways else None, "loopback": loopback}
    return {}


def _configured(seen: t.Mapping[str, t.Any], spec: Endpoint) -> bool:
    addresses = [(info["local"], info["prefixlen"]) for info in seen.get("addr_info", ())]
    return (
        addresses == [(spec.address, spec.prefix_length)]
        and seen["address"] == spec.mac
        and seen["mtu"] == spec.mtu
        and seen["gateway"] == spec.gateway
        and "UP" in seen["flags"]
        and bool(seen["loopback"])
    )
