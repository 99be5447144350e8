# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Clones spread over hosts: which host gets which, decided the same way each time, and never for one that is there.

A clone that some host has stays where it is, whatever the plan would say today. The others go, one after the other, to
the host that has the fewest of their set, then of their group, then the largest part of its memory left. None is made
as long as a host that may have it cannot be asked, or a host lacks the template that it needs.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.errors import CnvmError, InputError, Refused
from .._core.names import check_name, is_digest
from .._core.values import boolean, choice, decimal, integer, known_keys, word_list
from .._image.template import word_of
from .clones import Clone, clones_of
from .guest_definition import STATES

KEYS = (
    "template", "count", "group", "type", "pattern", "names", "linked", "disk", "state", "guest", "max_per_host",
    "hosts",
)  # fmt: skip
MOST_CLONES = 10_000
_FIELDS = ("template", "count", "group", "type")
# States of a guest in which it takes no memory.
_OFF = ("stopped", "moved", "missing", "crashed", "absent")
# States of a set in which its clones do.
_ON = ("running", "paused")


@dataclasses.dataclass(frozen=True)
class Set:
    """Clones that are alike. ``call``: the options of guest_clone that are the same on every host.

    ``memory_mib``: what each starts with. ``hosts``: those that may have them; None is any host, and () is none.
    """

    option: str
    template: str
    group: str
    state: str
    clones: tuple[Clone, ...]
    call: dict[str, t.Any]
    memory_mib: t.Optional[int] = None
    max_per_host: int = 0
    hosts: t.Optional[tuple[str, ...]] = None


@dataclasses.dataclass
class Room:
    """A host as the plan sees it; it fills up while clones are placed."""

    name: str
    total_mib: int
    free_mib: int
    here: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    placed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    # None: it was not asked for them.
    templates: t.Optional[dict[str, dict[str, t.Any]]] = None
    # Without it there are no guests.
    libvirt: bool = True
    # What those would take that are made and not started: it refuses none, but they are spread like others.
    later_mib: int = 0


# --------------------------------------------------------------------------------------------------------------------
# Descriptions
# --------------------------------------------------------------------------------------------------------------------
def is_yaml(text: str) -> bool:
    """Whether a description is YAML (a list), and not lines; no template's name begins with one of these signs."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "").startswith(("-", "[", "{"))


def read_lines(text: str, option: str = "description") -> list[dict[str, t.Any]]:
    """A description file with a line ``template:count:group:type`` for each set; group and type may be left out.

    Lines that say the same of another count are one set of as many as all of them.
    """
    found: dict[tuple[str, ...], dict[str, t.Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        where = f"{option}: line {number}"
        parts = [part.strip() for part in line.split(":")]
        if not 2 <= len(parts) <= len(_FIELDS) or not parts[0]:
            raise InputError(f"{where}: {line[:80]!r} is not allowed.", hint="Allowed: template:count:group:type.")
        item: dict[str, t.Any] = dict(zip(_FIELDS, [*parts, "", ""]))
        item["count"] = integer(item["count"], f"{where}: count", least=1, most=1000)
        known = found.setdefault((item["template"], item["group"], item["type"]), {**item, "count": 0})
        known["count"] += item["count"]
    return list(found.values())


def default_pattern(template: str, group: str, kind: str) -> str:
    """The names of a set that has none: the words of its line, with a number where the count stands."""
    word = template[:12] if is_digest(template) else template
    return "-".join([*(part for part in (word, group, kind) if part), "%d"])


def _label(value: object, option: str) -> str:
    return "" if value is None or value == "" else check_name(value, option)


def _guest(item: t.Mapping[str, t.Any], defaults: t.Mapping[str, t.Any], option: str) -> dict[str, t.Any]:
    """The description of its guests: its own keys over those of all sets; tags are put together."""
    both = []
    for value, where in ((defaults.get("guest"), "guest"), (item.get("guest"), f"{option}: guest")):
        if value in (None, ""):
            value = {}
        if not isinstance(value, dict):
            raise InputError(f"{where} is not a mapping.", hint="Write 'OPTION: value' lines.")
        if not isinstance(value.get("tags") or {}, dict):
            raise InputError(f"{where}: tags is not a mapping.", hint="Write 'NAME: value' lines.")
        both.append(value)
    tags = {key: item[key] for key in ("group", "type") if item.get(key) not in (None, "")}
    tags = {**(both[0].get("tags") or {}), **tags, **(both[1].get("tags") or {})}
    return {**both[0], **both[1], **({"tags": tags} if tags else {})}


def _set(value: object, option: str, defaults: t.Mapping[str, t.Any]) -> Set:
    item = known_keys(value, option, KEYS)
    group, kind = _label(item.get("group"), f"{option}: group"), _label(item.get("type"), f"{option}: type")
    state = choice(defaults.get("state"), "state", STATES, "running")
    state = choice(item.get("state"), f"{option}: state", STATES, state)
    if item.get("template") in (None, ""):
        raise InputError(f"{option}: template is missing.", hint="Name a template.")
    template = word_of(item["template"], f"{option}: template")
    named = item.get("names") not in (None, "", [], [""])
    who: dict[str, t.Any] = {"names": item["names"]} if named else {"count": item.get("count")}
    if item.get("pattern") not in (None, ""):
        who["pattern"] = item["pattern"]
    elif not named:
        who["pattern"] = default_pattern(template, group, kind)
    if named and item.get("count") not in (None, ""):
        who["count"] = item["count"]
    try:
        clones = clones_of(who)
    except InputError as error:
        raise InputError(f"{option}: {error.message}", hint=error.hint) from None
    call: dict[str, t.Any] = {"template": template, "state": state, **who}
    for key in ("linked", "disk"):
        chosen = item.get(key) if item.get(key) not in (None, "") else defaults.get(key)
        if chosen not in (None, ""):
            call[key] = chosen
    guest = _guest(item, defaults, option)
    call["guest"] = guest
    most, hosts = item.get("max_per_host"), item.get("hosts")
    if hosts == "":
        hosts = None
    if hosts is not None and not (isinstance(hosts, list) and all(isinstance(host, str) for host in hosts)):
        raise InputError(f"{option}: hosts: {hosts!r} is not a list of hosts.", hint="Name hosts of the play.")
    return Set(
        option=option,
        template=template,
        group=group,
        state=state,
        clones=clones,
        call=call,
        memory_mib=_starts_with(guest, f"{option}: guest"),
        max_per_host=0 if most in (None, "") else integer(most, f"{option}: max_per_host", least=0, most=MOST_CLONES),
        hosts=None if hosts is None else tuple(hosts),
    )


def _starts_with(guest: t.Mapping[str, t.Any], option: str) -> t.Optional[int]:
    """The memory that a guest takes at its start, before it gives back what is above memory_mib; None where the
    description does not say."""
    given = [key for key in ("memory_mib", "max_memory_mib") if guest.get(key) not in (None, "")]
    found = [integer(guest[key], f"{option}: {key}", least=8, most=2**24) for key in given]
    return max(found) if "memory_mib" in given else None


def _takes(guest: t.Mapping[str, t.Any]) -> int:
    """The same of a guest that is there, as guest_info has it."""
    return max(int(guest.get(key) or 0) for key in ("memory_mib", "max_memory_mib"))


def sets_of(description: object, defaults: t.Mapping[str, t.Any]) -> list[Set]:
    """All sets of a description: lines of text, or a list of mappings. No name twice."""
    if isinstance(description, str):
        description = read_lines(description)
    if description is None:
        description = []
    if not isinstance(description, list):
        raise InputError("clones is not a list.", hint="Write one set of clones per item, each after '- '.")
    found = [_set(item, f"clones[{index}]", defaults) for index, item in enumerate(description)]
    if sum(len(one.clones) for one in found) > MOST_CLONES:
        raise InputError(f"There are more than {MOST_CLONES} clones.", hint="Describe fewer.")
    taken: dict[str, str] = {}
    for one in found:
        for clone in one.clones:
            other = taken.setdefault(clone.name, one.option)
            if other != one.option:
                raise InputError(
                    f"{one.option}: {clone.name!r} is a clone of {other}, too.", hint="Give one of them a pattern."
                )
    return found


# --------------------------------------------------------------------------------------------------------------------
# The plan
# --------------------------------------------------------------------------------------------------------------------
def _rooms(hosts: object, reserve_mib: int, overcommit: float) -> dict[str, Room]:
    if not isinstance(hosts, dict) or not hosts:
        raise InputError("hosts: there is none.", hint="Give what each host of the play has.")
    found = {}
    for name in sorted(hosts):
        about = known_keys(hosts[name], f"hosts: {name}", ("memory_mib", "meminfo", "guests", "templates", "libvirt"))
        given = about.get("memory_mib") if about.get("meminfo") is None else memory_mib(str(about["meminfo"]))
        total = integer(given, f"hosts: {name}: memory_mib", least=1, most=2**30)
        here = _by_name(about.get("guests"))
        used = sum(_takes(guest) for guest in here.values() if guest.get("state") not in _OFF)
        found[name] = Room(name, total, int(total * overcommit) - reserve_mib - used, here)
        found[name].libvirt = boolean(about.get("libvirt", True), f"hosts: {name}: libvirt")
        if about.get("templates") is not None:
            found[name].templates = _templates(about["templates"])
    return found


def _by_name(guests: t.Any) -> dict[str, dict[str, t.Any]]:
    return {str(guest["name"]): guest for guest in guests or ()}


def _templates(found: t.Any) -> dict[str, dict[str, t.Any]]:
    """What template_info returns, by name and by digest."""
    return {word: one for one in found for word in (str(one["digest"]), *map(str, one.get("names") or ()))}


@dataclasses.dataclass
class Others:
    """Hosts that get no clone: ``here`` has the guests of those that answered, ``silent`` why one did not."""

    here: dict[str, dict[str, dict[str, t.Any]]] = dataclasses.field(default_factory=dict)
    silent: dict[str, str] = dataclasses.field(default_factory=dict)


_HAS_LEFT = "has left the play since (see its error above)"


def why_silent(answer: t.Mapping[str, t.Any]) -> str:
    """Why a host's guests are not known, from what came of the task guest_info. It may have told of its libvirt, and so
    of its guests, but they were taken out as it has left the play."""
    said = " ".join(str(answer.get("msg") or "").split())[:200].rstrip(".")
    said = f" ({said})" if said else ""
    if answer.get("unreachable"):
        return f"did not answer{said}"
    if answer.get("failed"):
        return f"could not tell{said}"
    return _HAS_LEFT if "libvirt" in answer else "was not asked: it has left the play before"


def _bring_back(silent: t.Mapping[str, str]) -> str:
    """What to do that these hosts tell. One that has told already is there: it must not be named as gone."""
    left = [host for host, why in silent.items() if why == _HAS_LEFT]
    hints = [f"Mend what has stopped {', '.join(left)}, and run it again."] if left else []
    if len(left) < len(silent):
        away = ", ".join(host for host in silent if host not in left) if left else "them"
        hints.append(
            f"Bring {away} back or, if they are gone for good, name them in guest_fleet_gone_hosts (-e gone=HOST)."
        )
    return " ".join(hints)


def _others(answers: object, rooms: t.Mapping[str, Room], gone: t.Collection[str]) -> Others:
    found = Others()
    if answers in (None, ""):
        answers = {}
    if not isinstance(answers, dict):
        raise InputError("others is not a mapping.", hint="Give what guest_info returned, by host.")
    for name in sorted(answers):
        answer = answers[name]
        if name in rooms:
            continue
        if isinstance(answer.get("guests"), list):
            found.here[name] = _by_name(answer["guests"])
        elif name not in gone:
            found.silent[name] = why_silent(answer)
    return found


def _found(
    rooms: t.Mapping[str, Room], others: Others, names: t.Iterable[str], gone: t.Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """({name: host of the play that has it}, {name: host that has it and is not in the play}). What a host had that is
    ``gone`` nobody has."""
    known = {**{room.name: room.here for room in rooms.values()}, **others.here}
    has: dict[str, str] = {}
    gave: dict[str, str] = {}
    for name in names:
        for host, guests in known.items():
            guest = guests.get(name)
            if guest is None:
                continue
            if guest.get("problem"):
                raise Refused(f"Whether {host} has the guest {name!r} is not known: {guest['problem']}")
            # One whose making was cut off is made there by the next run.
            if guest.get("managed") or guest.get("begun"):
                if name in has:
                    raise Refused(
                        f"Both {has[name]} and {host} say that they have the guest {name!r}.",
                        hint="Run the playbook cnvm.platform.recover.",
                    )
                has[name] = host
            elif guest.get("state") == "moved":
                to = str(guest.get("placement") or "another host")
                # Where that host says that it has it no more, or will never say it, the record is history.
                if to not in {*known, *gone} or guest.get("moving"):
                    gave[name] = to
            elif host in rooms:
                raise Refused(
                    f"{host} has a domain {name!r} that was not made by this collection.",
                    hint="Give the clones another pattern, or take it over with cnvm.platform.guest (adopt).",
                )
    here = {name: host for name, host in has.items() if host in rooms}
    return here, {name: host for name, host in {**gave, **has}.items() if name not in here}


def _choose(one: Set, rooms: t.Mapping[str, Room], memory: int, most: int) -> t.Optional[Room]:
    """The host for the next clone of a set; None where there is no room."""
    best: t.Optional[tuple[tuple[int, int, int, str], Room]] = None
    for room in rooms.values():
        alike = sum(option == one.option for option, _group in room.placed)
        full = memory and room.free_mib < memory
        if not room.libvirt or full or (one.hosts is not None and room.name not in one.hosts):
            continue
        if (most and len(room.placed) >= most) or (one.max_per_host and alike >= one.max_per_host):
            continue
        group = sum(bool(one.group) and other == one.group for _option, other in room.placed)
        left = (room.free_mib - room.later_mib) * 1_000_000 // room.total_mib
        key = (alike, group, -left, room.name)
        if best is None or key < best[0]:
            best = key, room
    return best[1] if best else None


def plan(
    description: object,
    hosts: object,
    *,
    defaults: t.Optional[t.Mapping[str, t.Any]] = None,
    max_per_host: object = 0,
    reserve_mib: object = 512,
    overcommit: object = 1,
    others: object = None,
    gone: object = None,
    check_mode: bool = False,
) -> dict[str, t.Any]:
    """What each host has to be asked for.

    ``hosts``: {name: {memory_mib (or meminfo, a text), guests: as guest_info has them, libvirt: whether there is one,
    templates: as template_info has them}}. ``others``: {name: what came of guest_info} of hosts that get no clone,
    ``gone`` those of them that need not be known. The result: ``calls`` {host: options of guest_clone, one mapping for
    each set}, ``placement`` {clone: host}, ``elsewhere`` {clone: a host that is not in the play}, ``new`` (names),
    ``templates`` {template: hosts that need it}, ``silent`` {host: why}, ``warnings`` (clones that are to be absent and
    that a silent host may have are one).

    InputError when there is no room for all of them. Refused when a template is missing, or a host that does not answer
    may have one of those that would be made. In check mode, where the hosts and templates may be what a task before
    makes, no room and no template are warnings, and only those that have room have a place.
    """
    most = integer(max_per_host, "max_per_host", least=0, most=MOST_CLONES)
    reserve = integer(reserve_mib, "memory_reserve_mib", least=0, most=2**30)
    rooms = _rooms(hosts, reserve, decimal(overcommit, "memory_overcommit", least=0.1, most=100))
    sets = sets_of(description, defaults or {})
    lost = {str(host) for host in word_list(gone, "gone")}
    asked = _others(others, rooms, lost)
    for one in sets:
        # One that is left out today, or does not answer, only gets no new clone.
        unknown = sorted(set(one.hosts or ()) - {*rooms, *asked.here, *asked.silent, *lost})
        if unknown:
            raise InputError(
                f"{one.option}: hosts: {unknown[0]!r} is not in this play, nor one of guest_fleet_hosts.",
                hint=f"Hosts in the play: {', '.join(rooms)}.",
            )
    placement, elsewhere = _found(rooms, asked, [clone.name for one in sets for clone in one.clones], lost)
    for one in sets:
        for clone in one.clones:
            if clone.name in placement:
                room = rooms[placement[clone.name]]
                about = room.here[clone.name]
                off = about.get("state") in _OFF
                if one.state == "absent":
                    # It goes before others come.
                    room.free_mib += 0 if off else _takes(about)
                    continue
                room.placed.append((one.option, one.group))
                if off and one.state in _ON:
                    room.free_mib -= _takes(about)
    warnings: list[str] = []

    def refuse(error: CnvmError) -> None:
        if not check_mode:
            raise error
        warnings.append(error.message)

    known = {*placement, *elsewhere}
    nowhere = [(clone.name, one) for one in sets for clone in one.clones if clone.name not in known]
    missing = [name for name, one in nowhere if one.state != "absent"]
    unseen = [name for name, one in nowhere if one.state == "absent"]
    silent = "; ".join(f"{host} {why}" for host, why in asked.silent.items())
    if missing and silent:
        raise Refused(
            f"Whether {_are(missing)} there already is not known: {silent}. Nothing was made.",
            hint=_bring_back(asked.silent),
        )
    new = _place_new(sets, rooms, placement, elsewhere, most, refuse)
    if unseen and silent:
        warnings.append(f"Whether {_are(unseen)} gone is not known: {silent}. What is there stays as it is.")
    needed = {
        template: sorted({placement[clone.name] for one in sets for clone in one.clones
                          if one.template == template and clone.name in new})
        for template in sorted({one.template for one in sets if any(clone.name in new for clone in one.clones)})
    }  # fmt: skip
    _check_templates(needed, rooms, refuse)
    return {
        "calls": {name: _calls(sets, placement, name) for name in rooms},
        "placement": dict(sorted(placement.items())),
        "elsewhere": dict(sorted(elsewhere.items())),
        "new": new,
        "templates": needed,
        "silent": asked.silent,
        "warnings": warnings,
    }


def _shown(names: t.Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _are(names: t.Sequence[str]) -> str:
    return f"{_shown(names)} {'is' if len(names) == 1 else 'are'}"


def _check_templates(
    needed: t.Mapping[str, t.Sequence[str]], rooms: t.Mapping[str, Room], refuse: t.Callable[[CnvmError], None]
) -> None:
    """Refused unless each host has each template that it needs, and the same one as the others."""
    wrong = []
    missing = False
    for template, hosts in needed.items():
        has = {name: room.templates for name, room in rooms.items() if room.templates is not None}
        lacking = [name for name in hosts if name in has and template not in has[name]]
        if lacking:
            missing = True
            others = [name for name in has if template in has[name]]
            wrong.append(
                f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no template {template!r}"
                f" ({', '.join(others) or 'no host'} has it)"
            )
        there = {name: has[name][template] for name in hosts if name in has and name not in lacking}
        wrong += [f"{template!r} of {name}: {one['problem']}" for name, one in there.items() if one.get("problem")]
        if len({one["digest"] for one in there.values()}) > 1:
            listed = ", ".join(f"{name} {str(one['digest'])[:12]}" for name, one in there.items())
            wrong.append(f"template {template!r} is not the same on all hosts: {listed}")
    if wrong:
        refuse(
            Refused(
                f"{'; '.join(wrong)}. Nothing was made.",
                hint="Bring it to them with the role cnvm.platform.guest_template or the playbook "
                "cnvm.platform.vm_create."
                if missing
                else "Run the role cnvm.platform.guest_template on all hosts.",
            )
        )


def _place_new(
    sets: t.Sequence[Set],
    rooms: t.Mapping[str, Room],
    placement: dict[str, str],
    elsewhere: t.Mapping[str, str],
    most: int,
    refuse: t.Callable[[CnvmError], None],
) -> list[str]:
    """Give a host to each clone that none has; their names."""
    new: list[str] = []
    left_over: list[str] = []
    for one in sets:
        if one.state == "absent":
            continue
        for clone in one.clones:
            if clone.name in placement or clone.name in elsewhere:
                continue
            if one.memory_mib is None:
                raise InputError(
                    f"{one.option}: no host has {clone.name!r}, and memory_mib is missing.",
                    hint="Describe the guests (guest: {memory_mib: 512}), and it is made.",
                )
            if one.hosts is not None and not set(one.hosts) & set(rooms):
                away = f" (not in this play: {', '.join(one.hosts)})" if one.hosts else ""
                raise InputError(
                    f"{one.option}: hosts: there is none for {clone.name!r}{away}.",
                    hint="Name hosts of the play, or leave hosts out where any of them will do.",
                )
            takes = one.memory_mib if one.state in _ON else 0
            room = _choose(one, rooms, takes, most)
            if room is None:
                left_over.append(f"{clone.name} ({takes} MiB)")
                continue
            room.free_mib -= takes
            room.later_mib += one.memory_mib - takes
            room.placed.append((one.option, one.group))
            placement[clone.name] = room.name
            new.append(clone.name)
    if left_over:
        have = "; ".join(
            f"{room.name} has {max(room.free_mib, 0)} MiB left and {len(room.placed)} of these clones"
            if room.libvirt
            else f"{room.name} has no libvirt"
            for room in rooms.values()
        )
        refuse(
            InputError(
                f"There is no room for {len(left_over)} clones: {_shown(left_over)}. "
                f"With the others in their places {have}.",
                hint="Take more hosts, less memory, or another max_per_host, memory_reserve_mib or memory_overcommit.",
            )
        )
    return new


def _calls(sets: t.Sequence[Set], placement: t.Mapping[str, str], host: str) -> list[dict[str, t.Any]]:
    """What is to be absent comes first, and makes room."""
    found = []
    for one in sorted(sets, key=lambda one: one.state != "absent"):
        numbers = [clone.number for clone in one.clones if placement.get(clone.name) == host]
        if numbers:
            found.append({**one.call, "numbers": numbers})
    return found


def calls(
    description: object,
    hosts: t.Iterable[str],
    placement: t.Mapping[str, str],
    defaults: t.Optional[t.Mapping[str, t.Any]] = None,
) -> dict[str, list[dict[str, t.Any]]]:
    """``calls`` of some hosts, by the ``placement`` of a plan. That is made once, with what all hosts have; to each of
    them a description may say something else."""
    sets = sets_of(description, defaults or {})
    return {name: _calls(sets, placement, name) for name in hosts}


_MEMORY = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)


def memory_mib(meminfo: str) -> int:
    """The memory of a host, from its /proc/meminfo."""
    found = _MEMORY.search(meminfo)
    if found is None:
        raise InputError("hosts: /proc/meminfo has no MemTotal.", hint="Give memory_mib.")
    return int(found.group(1)) // 1024
