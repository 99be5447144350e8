# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""From what hosts say of their workloads to the hosts, groups and variables of an inventory. No effects.

What a host says is not trusted: names, states and addresses become parts of names, groups and command lines here, so
each is brought into a form that can do no harm there.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import ipaddress
import re
import shlex
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.addresses import parsed

KINDS = {"guests": "guest", "containers": "container"}
_STATES = frozenset((
    "running", "paused", "stopped", "stopping", "crashed", "suspended", "missing", "restarting", "failed",
))  # fmt: skip
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_NOT_IN_GROUPS = re.compile(r"[^A-Za-z0-9_]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# How far values are nested in a host's answer at most; those of ours are by less than half of that.
_DEEPEST = 32
Item = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """A host, and what it said: now, or (``stale``) the last time. ``ssh``: the command that leads to it, up to its
    address; None for this machine. ``open``: what makes that command use a connection that is there now. ``problem``:
    why there is no way to it."""

    name: str
    destination: str = ""
    ssh: t.Optional[tuple[str, ...]] = None
    answer: t.Optional[Item] = None
    stale: bool = False
    open: tuple[str, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """``direct``: the networks that are reached without a jump. ``accept_new``: take keys that were never seen."""

    prefix: str = "cnvm_"
    direct: tuple[t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network], ...] = ()
    accept_new: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A host of the inventory."""

    name: str
    groups: tuple[str, ...]
    variables: dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class _Seen:
    place: Place
    kind: str
    item: Item

    @property
    def name(self) -> str:
        return _NOT_IN_NAMES.sub("_", self.item["name"]).lstrip(".-_") or "unnamed"

    @property
    def managed(self) -> bool:
        return self.kind == "container" or bool(self.item.get("managed"))

    @property
    def ours(self) -> bool:
        """Also while it is on its way between two hosts."""
        return self.managed or bool(self.item.get("moving"))

    def is_there(self, variables: Item) -> bool:
        """Whether a host of these variables is this workload, which was read from another file, or twice."""
        workload = variables.get("cnvm_workload")
        name = workload.get("name") if isinstance(workload, dict) else None
        said = variables.get("cnvm_host"), variables.get("cnvm_kind"), name
        return said == (self.place.name, self.kind, self.item["name"])

    @property
    def rank(self) -> tuple[int, bool, bool]:
        """Which of two that say they have the same one is right: records are compared by generation, never by time. Of
        two with the same record the one whose it is."""
        generation = self.item.get("generation")
        return (generation if isinstance(generation, int) else -1, self.managed, not self.place.stale)


def check_answer(answer: object) -> str:
    """What is wrong with a host's answer; empty when nothing is."""
    if not isinstance(answer, dict) or answer.get("schema") != 1:
        return "its answer is of another version of the collection; run the role cnvm.platform.host_bootstrap again"
    for key in KINDS:
        found = answer.get(key)
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and isinstance(one.get("name"), str) for one in found
        ):
            return f"its answer has no list of {key}"
    return "" if _is_plain(answer, _DEEPEST) else "its answer has lone surrogates, or is nested too deep"


def _is_plain(value: object, depth: int) -> bool:
    """Whether what follows can take it: neither lone surrogates nor any depth can be written or templated."""
    if isinstance(value, str):
        return not _LONE_SURROGATE.search(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return not isinstance(value, list) or (depth > 0 and all(_is_plain(one, depth - 1) for one in value))


def networks(texts: t.Iterable[object]) -> tuple[t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network], ...]:
    """``10.0.0.0/8`` and the like; ValueError for what is no network."""
    return tuple(ipaddress.ip_network(str(text)) for text in texts)


def entries(
    places: t.Sequence[Place],
    settings: Settings,
    there: t.Sequence[t.Mapping[str, Item]] = (),
    groups: t.Collection[str] = (),
) -> tuple[list[Entry], list[str]]:
    """(the inventory's hosts sorted by name, warnings). ``there``: the variables of hosts that are known already.
    ``groups``: the names of all groups: where a host has one of them, Ansible takes the group for it."""
    seen, warnings = _once(_all(places))
    count = collections.Counter(one.name for one in seen)
    managed = collections.Counter(one.name for one in seen if one.managed)
    # A workload must not become another host by its name.
    hosts = {place.name for place in places} | {"localhost", "127.0.0.1"}

    def taken(name: str, one: _Seen) -> str:
        """What of the inventory has this name, if anything."""
        if name in groups:
            return "group"
        host = name in hosts or any(name in known and not one.is_there(known[name]) for known in there)
        return "host" if host else ""

    found: dict[str, Entry] = {}
    for one in seen:
        name = one.name
        other = taken(name, one)
        if other or (count[name] > 1 and not (one.managed and managed[name] == 1)):
            name = f"{name}.{one.place.name}"
            while name in found or name in count or taken(name, one):
                name = f"{name}.{one.kind}"
            why = f"The inventory has a {other}" if other else "There is more than one"
            warnings.append(f"{why} {one.name!r}: the {one.kind} of {one.place.name} is {name!r} here.")
        found[name] = _entry(name, one, settings)
    return [found[name] for name in sorted(found)], [*warnings, *_one_for_ssh(seen)]


def _one_for_ssh(seen: t.Sequence[_Seen]) -> list[str]:
    """Of guests whose keys SSH would look for under one name: it takes capitals for small letters."""
    warnings = []
    first: dict[str, _Seen] = {}
    for one in seen:
        other = one if _on_overlay(one) else first.setdefault(_key_name(one).lower(), one)
        if other.name != one.name:
            warnings.append(
                f"SSH takes the names of {other.name!r} and {one.name!r} of {one.place.name} for one, and refuses the "
                "key of one of them. Give a guest another name, or an address on the overlay."
            )
    return warnings


def _all(places: t.Sequence[Place]) -> list[_Seen]:
    """All that hosts say they have; what has moved away is said by its new host."""
    return [
        _Seen(place, kind, item)
        for place in sorted(places, key=lambda place: place.name)
        for key, kind in KINDS.items()
        for item in (place.answer or {}).get(key, ())
        if item.get("state") != "moved"
    ]


def _once(seen: t.Sequence[_Seen]) -> tuple[list[_Seen], list[str]]:
    """Each workload once, where its newest record says that it is: a stale answer may have one that went on."""
    warnings = []
    best: dict[tuple[str, str], _Seen] = {}
    for index, one in enumerate(seen):
        key = (one.name, str(one.item.get("uuid")) if one.ours else str(index))
        other = best.get(key)
        if other is None or one.rank > other.rank:
            best[key] = one
        elif one.rank == other.rank and not one.place.stale:
            warnings.append(
                f"Both {other.place.name} and {one.place.name} say that they have {one.name!r}. "
                "Run the playbook cnvm.platform.recover."
            )
    return list(best.values()), warnings


def _state(one: _Seen) -> str:
    state = str(one.item.get("state"))
    return state if state in _STATES else "unknown"


def _entry(name: str, one: _Seen, settings: Settings) -> Entry:
    item, state, address = one.item, _state(one), parsed(one.item.get("address"))
    tags = item.get("tags" if one.kind == "guest" else "labels")
    tags = {str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {}
    template = tags.get("template") or item.get("template")
    reason = ""
    if state != "running":
        reason = f"The {one.kind} {name} is {state}."
    elif address is None:
        reason = f"The {one.kind} {name} has no address" + ("." if one.kind == "container" else " that was seen.")
    elif one.place.problem:
        reason = f"There is no way to {one.place.name}: {one.place.problem}."
    variables: dict[str, t.Any] = {
        "cnvm_kind": one.kind,
        "cnvm_host": one.place.name,
        "cnvm_state": state,
        "cnvm_managed": one.managed,
        "cnvm_tags": tags,
        "cnvm_group": tags.get("group"),
        "cnvm_type": tags.get("type"),
        "cnvm_template": template,
        "cnvm_stale": one.place.stale,
        "cnvm_unreachable_reason": reason or None,
        # Without its definition, which is as large as the rest.
        "cnvm_workload": {key: value for key, value in item.items() if key != "definition"},
    }
    if reason:
        # Without an address, SSH would take the name for one, and may find another machine there. It shows what its
        # ProxyCommand says unless the connection is shared. A shell keeps the output open: SSH would not wait for echo.
        command = f"sh -c {_proxy_word(f'echo {shlex.quote(reason)} >&2')}"
        options = ssh_option("ProxyCommand", command), ssh_option("ControlPath", "none")
        variables["ansible_ssh_common_args"] = " ".join(options)
    else:
        variables["ansible_host"] = str(address)
        variables.update(_way(one, t.cast("ipaddress.IPv4Address", address), settings))
    named = {**tags, "template": str(template)} if template else tags
    return Entry(name, _groups(one, state, named, reachable=not reason, prefix=settings.prefix), variables)


def _way(one: _Seen, address: ipaddress.IPv4Address | ipaddress.IPv6Address, settings: Settings) -> dict[str, t.Any]:
    """How SSH comes to a workload, and by which name it knows its key."""
    options = []
    jump = one.place.ssh is not None and not any(address in network for network in settings.direct)
    if jump:
        options.append(ssh_option("ProxyCommand", proxy_command(one.place)))
    if not _on_overlay(one):
        # Another guest, on another host, may have the same address.
        options.append(ssh_option("HostKeyAlias", _key_name(one)))
    if settings.accept_new:
        options.append(ssh_option("StrictHostKeyChecking", "accept-new"))
    # Ansible would share one connection between all that have the same address.
    number = hashlib.sha256(f"{one.place.name} {one.item.get('uuid')} {one.name}".encode()).hexdigest()[:10]
    return {
        "ansible_ssh_common_args": " ".join(options),
        "ansible_control_path": f"%(directory)s/{number}-%%p-%%r",
        "cnvm_jump_host": one.place.name if jump else None,
    }


def _key_name(one: _Seen) -> str:
    return f"{one.name}.{one.place.name}"


def _on_overlay(one: _Seen) -> bool:
    """Whether its address is one that no other workload of the overlay has."""
    return one.kind == "container" or one.item.get("address") == one.item.get("overlay_address")


def ssh_option(name: str, value: str) -> str:
    """``-o NAME=VALUE`` for ansible_ssh_common_args, which is split as a shell does."""
    return f"-o {shlex.quote(f'{name}={value}')}"


def _proxy_word(text: str) -> str:
    """A word of a ProxyCommand: for the shell, and % is the start of what SSH puts in."""
    return shlex.quote(text).replace("%", "%%")


def proxy_command(place: Place) -> str:
    """The command that connects to an address as the host of ``place`` sees it."""
    words = [_proxy_word(word) for word in place.ssh or ()]
    return " ".join([*words, "-W", "'[%h]:%p'", _proxy_word(place.destination)])


def _groups(one: _Seen, state: str, tags: t.Mapping[str, str], *, reachable: bool, prefix: str) -> tuple[str, ...]:
    words = [f"{one.kind}s", f"state_{state}", f"host_{one.place.name}"]
    for key, value in tags.items():
        words.append(f"{key}_{value}" if key in ("group", "type", "template") else f"tag_{key}_{value}")
    image = one.item.get("image") if one.kind == "container" else None
    if image:
        words.append(f"image_{image}")
    if one.place.stale:
        words.append("stale")
    elif reachable:
        words.append("reachable")
    return tuple(_NOT_IN_GROUPS.sub("_", prefix + word) for word in words)
