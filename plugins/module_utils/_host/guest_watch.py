# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What can be seen of guests from outside: their addresses, whether they answer, what cloud-init says."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import socket
import struct
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

from .._core import paths
from .._core.errors import HostError
from .._libvirt import addresses, domain
from .._libvirt.domain import Model
from .._libvirt.xml import Element
from . import domains, libvirt

_ARP_TABLE = "/proc/net/arp"
_FORGET_ARP = 0x8953  # SIOCDARP
# A guest answers who asks for its address within milliseconds, where its host has time for it. The kernel asks again
# after a second.
_ARP_ANSWER_S = 1.3
_ARP_POLL_S = 0.02
_AGENT_TIMEOUT_S = 2
# VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK.
_AGENT_FOR_EVER = -2
# So many requests of one client libvirt's daemon works on (max_client_requests). Who does not answer takes seconds.
_ASKED_AT_ONCE = 5
# What is asked of a guest at a time while it is waited for.
_PAUSE_S = 0.25
# Of a log of a console, which may have grown for years.
_LOG_TAIL = 1 << 20
# What cloud-init says at the beginning of each of its stages, and at its end.
_STAGE = re.compile(r"Cloud-init v\. \S+ (running '|finished at )")
_RESULT_FILE = "/run/cloud-init/result.json"


class Subject(t.NamedTuple):
    """A guest that is looked at: its domain, its live XML, and the address that its definition gives it."""

    name: str
    domain: libvirt.Domain
    live: Element
    address: str = ""


# --------------------------------------------------------------------------------------------------------------------
# Addresses
# --------------------------------------------------------------------------------------------------------------------
def _arp_table() -> str:
    try:
        with open(_ARP_TABLE, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _arp() -> addresses.Seen:
    return addresses.from_arp(_arp_table())


def _leases(connection: libvirt.Connection, models: t.Iterable[Model]) -> list[t.Mapping[str, t.Any]]:
    """The leases of all networks that the cards of these guests are on, each asked once."""
    cards = [card for model in models for card in model["networks"].values()]
    found: list[t.Mapping[str, t.Any]] = []
    for name in sorted({card["source"] for card in cards if card["type"] == "network"}):
        with contextlib.suppress(libvirt.LibvirtError):
            network = libvirt.network(connection, name)
            if network is None:
                continue
            with libvirt.doing(f"read the leases of the network {name!r}"):
                found += network.DHCPLeases() or []
    return found


def _forget(macs: t.Collection[str], given: t.Collection[str]) -> None:
    """Let the kernel forget what it has learnt by ARP of these MACs and addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for address, device in addresses.learnt(_arp_table(), macs, given):
            # struct arpreq of arp(7): the address; its owner, flags and mask are left open.
            request = struct.pack("=HH4s44x16s", socket.AF_INET, 0, socket.inet_aton(address), device.encode())
            # One that is gone by itself meanwhile is none the worse.
            with contextlib.suppress(OSError):
                fcntl.ioctl(asking, _FORGET_ARP, request)


def forget(connection: libvirt.Connection, models: t.Sequence[Model], given: t.Collection[str]) -> addresses.Leases:
    """What is known of the addresses of guests that are about to be started is of an earlier run, or of a guest that is
    gone. The kernel forgets what it has learnt by ARP, also of the addresses that they are ``given``; the leases are
    returned, to be looked over."""
    macs = {mac for model in models for mac in model["networks"]}
    _forget(macs, given)
    return addresses.leases_of(_leases(connection, models), macs)


def _ask_agent(each: libvirt.Domain) -> addresses.Seen:
    library = libvirt.library()
    with contextlib.suppress(libvirt.LibvirtError), libvirt.doing("ask the agent"), _in_time(each):
        return addresses.from_interfaces(each.interfaceAddresses(library.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, 0))
    return {}


@contextlib.contextmanager
def _in_time(each: libvirt.Domain) -> t.Iterator[None]:
    """Let the agent answer soon, or not at all. That would stay so for everybody, and the file systems of a busy guest
    come to rest later than that: afterwards it is again as it is when nobody has said anything."""

    def limit(seconds: int) -> None:
        # It is not there with an old binding.
        with contextlib.suppress(AttributeError):
            each.agentSetResponseTimeout(seconds, 0)

    limit(_AGENT_TIMEOUT_S)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.library().libvirtError):
            limit(_AGENT_FOR_EVER)


def _ask_agents(subjects: t.Sequence[Subject]) -> dict[str, addresses.Seen]:
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip([one.name for one in subjects], pool.map(_ask_agent, [one.domain for one in subjects])))


def poke(wanted: t.Iterable[str]) -> None:
    """Send a datagram to each address, so that the kernel asks the network who has it. Nobody need answer it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for address in wanted:
            with contextlib.suppress(OSError):
                sender.sendto(b"", (address, 9))


def observe(
    connection: libvirt.Connection, subjects: t.Sequence[Subject], old: addresses.Leases = frozenset()
) -> dict[str, list[dict[str, str]]]:
    """The addresses that each guest was really seen to have, best first; one question for many guests. ``old``: leases
    that say nothing."""
    models = {one.name: domain.parse(one.live) for one in subjects}
    cards = {name: list(model["networks"]) for name, model in models.items()}
    leases = addresses.from_leases(_leases(connection, models.values()), time.time(), old)
    arp = _arp()
    # Who goes on with an old lease (one without an end, or with the memory of an earlier run) answers there.
    hoped = [(mac, one.address) for one in subjects for mac in cards[one.name] if one.address]
    hoped += [(mac, address) for mac, address, _ends in old if any(mac in each for each in cards.values())]

    def silent() -> list[str]:
        # The kernel may think of a guest that had the address before.
        answered = {address for mac, address in hoped if address in arp.get(mac, ())}
        return sorted({address for _mac, address in hoped} - answered)

    end = time.monotonic() + _ARP_ANSWER_S
    wanted = silent()
    if wanted:
        # Whom it believes to have such an address the kernel would go by for many seconds.
        _forget((), wanted)
        poke(wanted)
    while silent() and time.monotonic() < end:
        time.sleep(_ARP_POLL_S)
        arp = _arp()
    seen = {addresses.LEASE: leases, addresses.ARP: arp}
    found = {one.name: addresses.choose(cards[one.name], seen) for one in subjects}
    # Agents are asked last: one that hangs costs seconds.
    unleased = [one for one in subjects if not found[one.name] or found[one.name][0]["source"] != addresses.LEASE]
    for name, said in _ask_agents([one for one in unleased if domain.agent_connected(one.live)]).items():
        found[name] = addresses.choose(cards[name], {**seen, addresses.AGENT: said})
    return found


# --------------------------------------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------------------------------------
def accepts(address: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def speaks_ssh(address: str, port: int = 22) -> bool:
    """Whether an SSH server greets there: a port that is only open says little."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _agent_file(each: libvirt.Domain, path: str) -> t.Optional[bytes]:
    """A small file of the guest by its agent; None when it cannot be had."""
    command = _agent_command()
    if command is None:
        return None

    def ask(what: str, **arguments: t.Any) -> t.Any:
        question = json.dumps({"execute": what, "arguments": arguments})
        return json.loads(command(each, question, _AGENT_TIMEOUT_S, 0))["return"]

    handle = None
    try:
        handle = ask("guest-file-open", path=path, mode="r")
        read = ask("guest-file-read", handle=handle, count=1 << 16)
        return base64.b64decode(read["buf-b64"])
    except (libvirt.library().libvirtError, ValueError, KeyError, TypeError):
        return None
    finally:
        if handle is not None:
            with contextlib.suppress(libvirt.library().libvirtError, ValueError, KeyError):
                ask("guest-file-close", handle=handle)


def _agent_command() -> t.Optional[t.Callable[..., str]]:
    libvirt.library()
    try:
        import libvirt_qemu
    except ImportError:
        return None
    found: t.Callable[..., str] = libvirt_qemu.qemuAgentCommand
    return found


def cloud_init_done(one: Subject) -> t.Optional[list[str]]:
    """The errors that cloud-init ended with (none: an empty list); None while it is not known to be done.

    By the agent where it may read files, else by what was seen in this run of the guest, or by what cloud-init writes
    on the console.
    """
    if domain.agent_connected(one.live):
        raw = _agent_file(one.domain, _RESULT_FILE)
        if raw is not None:
            try:
                said = json.loads(raw)["v1"]
                return [str(error) for error in said.get("errors") or []]
            except (ValueError, KeyError, TypeError, AttributeError):
                return None
    if domain.parse(one.live)["marks"].get("cloud_init"):
        return []
    with contextlib.suppress(OSError), open(paths.guest_log(one.name), "rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(_log_start(one.name), end - _LOG_TAIL)
        if start > end:
            start = 0  # it was rotated
        file.seek(start)
        # Behind the end of an earlier boot there may be the beginning of this one.
        if _STAGE.findall(file.read(_LOG_TAIL).decode("utf-8", "replace"))[-1:] == ["finished at "]:
            return []
    return None


def _note_cloud_init(one: Subject) -> None:
    """Keep in a guest's live XML that cloud-init is done: it goes where the guest goes, and ends with this run. The log
    stays on its host, and what cloud-init has said there is far behind some day."""
    marks = domain.parse(one.live)["marks"]
    if marks and not marks.get("cloud_init"):
        with contextlib.suppress(libvirt.LibvirtError), libvirt.doing(f"note that cloud-init of {one.name!r} is done"):
            domains.set_marks(one.domain, {**marks, "cloud_init": "done"})


# Where in the log of its console a guest's present run begins, for those that were started by this process.
_starts: dict[str, int] = {}


def mark_log(name: str) -> None:
    """Say that a guest is about to be started: what its console said before is of no interest."""
    try:
        _starts[name] = os.path.getsize(paths.guest_log(name))
    except OSError:
        _starts[name] = 0


def _log_start(name: str) -> int:
    return _starts.get(name, 0)


def last_words(name: str, lines: int = 15) -> list[str]:
    """The end of what a guest has written on its console, where that is logged."""
    try:
        with open(paths.guest_log(name), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    shown = [re.sub(r"[^\x20-\x7e]", "", line) for line in text.splitlines()]
    return [line for line in shown if line.strip()][-lines:]


# --------------------------------------------------------------------------------------------------------------------
# Waiting
# --------------------------------------------------------------------------------------------------------------------
def missing(
    wait_for: t.Mapping[str, t.Any], one: Subject, found: t.Sequence[t.Mapping[str, str]]
) -> tuple[str, list[str]]:
    """(what is still waited for, or '', what cloud-init had to complain about)."""
    address = found[0]["address"] if found else ""
    if (wait_for["address"] or wait_for["ssh"] or wait_for["port"]) and not address:
        return "no address of it was seen", []
    if wait_for["ssh"] and not any(speaks_ssh(each["address"]) for each in found):
        return f"no SSH server greets at {address}", []
    if wait_for["port"] and not any(accepts(each["address"], wait_for["port"]) for each in found):
        return f"nobody answers on port {wait_for['port']} of {address}", []
    if wait_for["cloud_init"]:
        errors = cloud_init_done(one)
        if errors is None:
            return "cloud-init has not said that it is done", []
        return "", errors
    return "", []


def _all_missing(
    waiting: t.Mapping[str, t.Mapping[str, t.Any]],
    subjects: t.Mapping[str, Subject],
    found: t.Mapping[str, t.Sequence[t.Mapping[str, str]]],
) -> dict[str, tuple[str, list[str]]]:
    """The same of all that run, side by side."""

    def ask(name: str) -> tuple[str, list[str]]:
        return missing(waiting[name], subjects[name], found[name])

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip(subjects, pool.map(ask, subjects)))


def wait(
    connection: libvirt.Connection,
    wanted: t.Mapping[str, t.Mapping[str, t.Any]],
    look: t.Callable[[t.Sequence[str]], t.Mapping[str, Subject]],
    warn: t.Callable[[str], None],
    old: addresses.Leases = frozenset(),
) -> None:
    """Wait until all of ``wanted`` ({name: wait_for}) are what is waited for. HostError with the reason when not.

    ``look(names)`` gives those that run now. ``old``: leases that say nothing.
    """
    began = time.monotonic()
    waiting = dict(wanted)
    while waiting:
        subjects = look(list(waiting))
        found = observe(connection, list(subjects.values()), old)
        said = _all_missing(waiting, subjects, found)
        for name, wait_for in list(waiting.items()):
            if name not in subjects:
                raise _not_up(name, "it does not run any more")
            lacking, errors = said[name]
            if not lacking:
                del waiting[name]
                if wait_for["cloud_init"]:
                    _note_cloud_init(subjects[name])
                for error in errors:
                    warn(f"Guest {name}: cloud-init: {error}")
            elif time.monotonic() - began > wait_for["timeout_s"]:
                raise _not_up(name, f"{lacking} after {wait_for['timeout_s']} s")
        if waiting:
            time.sleep(_PAUSE_S)


def _not_up(name: str, why: str) -> HostError:
    return HostError(
        f"Guest {name!r} is not up: {why}.",
        hint=f"See its console with 'virsh console {name}', or in {paths.guest_log(name)} with serial: log.",
        guest=name,
        log=last_words(name),
    )
