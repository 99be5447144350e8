# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Clones of a template: one description of many guests, made into one description for each."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from .._core.errors import InputError
from .._core.values import boolean, choice, integer, known_keys, listed, word_list
from .._image.template import word_of
from .guest_definition import ITEM_KEYS, STATES, STEERING, check_guest_name

KEYS = ("template", "pattern", "count", "names", "numbers", "linked", "disk", "state", "guest")
DISK_KEYS = ("name", "size_mib", "pool", "format", "bus", "cache", "serial")
# What of a guest's description is not the same for all clones, or is said elsewhere.
OWN_KEYS = ("name", "uuid", "state")
GUEST_KEYS = tuple(key for key in ITEM_KEYS if key not in OWN_KEYS)
MOST = 1000

_PATTERN = re.compile(r"([^%]*)%(?:0([1-9]))?d([^%]*)\Z")
# Not ${name} of a shell, and not {{name}} of a template for cloud-init.
_WORD = re.compile(r"(?<![${])\{(name|index)\}(?!\})")


@dataclasses.dataclass(frozen=True)
class Clone:
    """A clone's name and its number, from 1."""

    name: str
    number: int


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Clones as they are to be. ``items``: of the option ``guests`` of the module guest, as a user would write them."""

    template: str
    state: str
    clones: tuple[Clone, ...]
    items: tuple[dict[str, t.Any], ...]


# --------------------------------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------------------------------
def name_of(pattern: object, number: int, option: str = "pattern") -> str:
    """The name number ``number`` of a pattern with one ``%d`` or ``%02d`` in it."""
    parts = _PATTERN.match(pattern) if isinstance(pattern, str) else None
    if parts is None:
        raise InputError(
            f"{option}: {pattern!r} is not allowed.", hint="Allowed: a name with one %d or %02d in it, such as web%02d."
        )
    before, width, after = parts.groups()
    return check_guest_name(f"{before}{number:0{width or 1}d}{after}", option)


def _words(value: object, option: str) -> t.Optional[list[t.Any]]:
    """None where nothing is said. An empty list is something."""
    return None if value is None or value == "" else word_list(value, option)


def clones_of(values: t.Mapping[str, t.Any]) -> tuple[Clone, ...]:
    """Who is meant by ``names``, or by ``pattern`` and ``count``, of which ``numbers`` may choose some, or none."""
    names, numbers = _words(values.get("names"), "names") or None, _words(values.get("numbers"), "numbers")
    pattern, count = values.get("pattern"), values.get("count")
    if names is not None and not (pattern in (None, "") and count in (None, "")):
        raise InputError("names and pattern are both given.", hint="Name them, or give a pattern and a count.")
    if names is None and pattern in (None, ""):
        raise InputError("pattern is missing.", hint="Give pattern: web%02d and count: 10, or names.")
    if names is not None:
        found = [check_guest_name(name, f"names[{index}]") for index, name in enumerate(names)]
        most = len(found)
    elif count in (None, "") and numbers is None:
        raise InputError("count is missing.", hint="Say how many clones there are to be.")
    else:
        most = MOST if count in (None, "") else integer(count, "count", least=1, most=MOST)
        found = []
    if numbers is None:
        chosen = list(range(1, most + 1))
    else:
        chosen = [integer(one, f"numbers[{index}]", least=1, most=most) for index, one in enumerate(numbers)]
    made = [Clone(found[number - 1] if found else name_of(pattern, number), number) for number in chosen]
    seen: set[str] = set()
    for clone in made:
        if clone.name in seen:
            raise InputError(f"{clone.name!r} is given twice.", hint="Each clone once.")
        seen.add(clone.name)
    return tuple(made)


# --------------------------------------------------------------------------------------------------------------------
# Descriptions
# --------------------------------------------------------------------------------------------------------------------
def fill(value: t.Any, clone: Clone) -> t.Any:
    """``value`` with ``{name}`` and ``{index}`` in all of its texts replaced."""
    if isinstance(value, str):
        words = {"name": clone.name, "index": str(clone.number)}
        return _WORD.sub(lambda found: words[found.group(1)], value)
    if isinstance(value, dict):
        return {key: fill(one, clone) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, clone) for one in value]
    return value


def _network(network: t.Any, clone: Clone) -> t.Any:
    """The address that is given is that of the first clone; the others have those behind it."""
    address = network.get("address") if isinstance(network, dict) else None
    if not isinstance(address, str) or not address.strip():
        return network
    try:
        return {**network, "address": str(ipaddress.IPv4Address(address.strip()) + (clone.number - 1))}
    except ValueError:
        # Whatever it is, it is refused where guests are described.
        return network


def _graphics(graphics: t.Any, clone: Clone) -> t.Any:
    """The same for the port of its screen."""
    port = graphics.get("port") if isinstance(graphics, dict) else None
    if port in (None, ""):
        return graphics
    number = integer(port, "guest: graphics.port", least=5900, most=65535)
    return {**graphics, "port": number + clone.number - 1}


def _described(
    clone: Clone, disk: t.Mapping[str, t.Any], guest: t.Mapping[str, t.Any], template: str
) -> dict[str, t.Any]:
    """A clone as the description has it."""
    item: dict[str, t.Any] = fill(dict(guest), clone)
    tags = item.get("tags")
    if tags in (None, ""):
        tags = {}
    if isinstance(tags, dict):
        item["tags"] = {"template": template, **tags}
    item["disks"] = [dict(disk), *listed(item.get("disks"), "guest: disks")]
    if isinstance(item.get("networks"), list):
        item["networks"] = [_network(network, clone) for network in item["networks"]]
    if item.get("graphics") is not None:
        item["graphics"] = _graphics(item["graphics"], clone)
    return item


def normalise(values: object) -> Wanted:
    """The module's options. InputError names the one that is wrong."""
    given = known_keys(values, "guest_clone", KEYS)
    state = choice(given.get("state") or "running", "state", STATES)
    clones = clones_of(given)
    guest = known_keys({} if given.get("guest") in (None, "") else given["guest"], "guest", GUEST_KEYS)
    if state != "running":
        # One description is for all states, and in the others there is nothing to wait for.
        guest = {key: value for key, value in guest.items() if key != "wait_for"}
    template = word_of(given["template"], "template") if given.get("template") not in (None, "") else ""
    linked = True if given.get("linked") in (None, "") else boolean(given["linked"], "linked")
    disk = known_keys({} if given.get("disk") in (None, "") else given["disk"], "disk", DISK_KEYS)
    first = {key: value for key, value in disk.items() if value not in (None, "")}
    # Without a description it is about clones that are there; so is the end of one.
    steering = {key: guest[key] for key in (*STEERING, "autostart") if guest.get(key) is not None and key != "state"}
    described = state != "absent" and any(guest[key] is not None for key in guest if key not in steering)
    if first and not described and state != "absent":
        raise InputError(
            "disk is given, and guest does not describe the clones.",
            hint="Give guest, too (memory_mib and all), or leave disk out: without guest only their state is changed.",
        )
    if described and not template:
        raise InputError("template is missing.", hint="Name a template of the host (cnvm.platform.template_info).")
    first.update(template=template, linked=linked)
    items = []
    for clone in clones:
        item = _described(clone, first, guest, template) if described else fill(steering, clone)
        items.append({**item, "name": clone.name, "state": state})
    return Wanted(template, state, clones, tuple(items))


def together(warnings: t.Sequence[str], names: t.Collection[str]) -> list[str]:
    """``warnings`` with those put together that say the same of several guests."""
    found: dict[str, list[str]] = {}
    for warning in warnings:
        name = next((name for name in names if warning.startswith(f"Guest {name} ")), "")
        found.setdefault(warning[len(f"Guest {name} ") :] if name else warning, []).append(name)
    made = []
    for words, whose in found.items():
        others = f" So it is with {', '.join(whose[1:])}." if len(whose) > 1 else ""
        made.append(f"Guest {whose[0]} {words}{others}" if whose[0] else words)
    return made
