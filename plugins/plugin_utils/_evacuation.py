# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""Who goes where when a host is to be empty, and back. No effects."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import choice, integer, known_keys
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.migration import taken_mib
from ansible_collections.cnvm.platform.plugins.module_utils._migrate.plan import space_problems

ORDERS = ("name", "smallest", "largest")
_KINDS = {"guests": "guest", "containers": "container"}
# States in which a workload takes no memory. A guest of ours that libvirt does not know any more is missing.
_OFF = ("stopped", "crashed", "failed", "missing")
# What is written down of a workload that has gone.
_RECORD = ("kind", "name", "uuid", "target")
Item = t.Mapping[str, t.Any]


def _meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo, in MiB."""
    return {name: int(kib) // 1024 for name, kib in re.findall(r"^(\w+):\s+([0-9]+) kB", text, re.MULTILINE)}


def _here(about: Item) -> list[dict[str, t.Any]]:
    """The workloads of a host: what is to be known of each to move it."""
    found = []
    for key, kind in _KINDS.items():
        for item in about.get(key) or ():
            if item.get("state") == "moved":
                continue
            found.append({
                "kind": kind,
                "name": str(item["name"]),
                "uuid": item.get("uuid"),
                "state": str(item.get("state")),
                **_memory(kind, item),
                "managed": kind == "container" or bool(item.get("managed")),
                "problem": str(item.get("problem") or ""),
            })  # fmt: skip
    return found


def _memory(kind: str, item: Item) -> dict[str, int]:
    """MiB that a workload has, that it takes of its host, and that must be free on one for it to come."""
    if item.get("state") in _OFF:
        return {"memory_mib": 0, "takes_mib": 0, "needs_mib": 0}
    if kind == "container":
        own = -(-int(item.get("memory_bytes") or 0) // 2**20)
        return {"memory_mib": own, "takes_mib": own, "needs_mib": own}
    own = int(item.get("memory_mib") or 0)
    # Of what a guest has given back there must be room, too, as it comes; it does not take it then.
    most = max(own, int(item.get("max_memory_mib") or 0))
    return {"memory_mib": own, "takes_mib": taken_mib(own), "needs_mib": taken_mib(most)}


def _free(about: Item, reserve: int) -> int:
    """MiB for more workloads: what nobody uses, and what is promised to nobody."""
    memory = _meminfo(str(about.get("meminfo") or ""))
    promised = sum(one["takes_mib"] for one in _here(about) if one["kind"] == "guest")
    available, total = memory.get("MemAvailable", 0), memory.get("MemTotal", 0)
    return min(available, total - promised) - reserve


def _has_libvirt(about: Item) -> bool:
    """Up to ansible-core 2.18 a template that gives None gives ''."""
    return isinstance(about.get("guests"), list)


def _first(hosts: t.Mapping[str, t.Any], names: t.Union[str, t.Sequence[str]]) -> list[str]:
    """Those that go first. One that is on another host has gone already; one that is nowhere is a slip of the pen."""
    words = names.split(",") if isinstance(names, str) else names  # as they come from -e first=a,b
    found = [word for word in (str(word).strip() for word in words) if word]
    known = {one["name"] for about in hosts.values() for one in _here(about)}
    unknown = [word for word in found if word not in known]
    if unknown:
        raise InputError(
            f"first: no host of this play has {unknown[0]!r}.", hint=f"There are: {', '.join(sorted(known))}."
        )
    return found


def _blocker(one: Item, reason: str) -> dict[str, str]:
    return {"kind": one["kind"], "name": one["name"], "state": str(one.get("state") or ""), "reason": reason}


def plan(
    hosts: t.Mapping[str, t.Any],
    host: str,
    *,
    target: str = "",
    order: object = "name",
    first: t.Union[str, t.Sequence[str]] = (),
    reserve_mib: object = 256,
) -> dict[str, t.Any]:
    """``moves`` away from ``host``, in order, and ``blockers``.

    ``hosts``: {name: {meminfo, guests, containers}}; ``guests`` is no list where a host has no libvirt. Each goes to
    the host that has the most memory left after those before it.
    """
    order = choice(order, "order", ORDERS)
    reserve = integer(reserve_mib, "memory_reserve_mib", least=0, most=2**30)
    if host not in hosts:
        raise InputError(f"{host!r} is not in this play, or does not answer.", hint=f"Hosts: {', '.join(hosts)}.")
    others = [target] if target else sorted(name for name in hosts if name != host)
    if target == host or any(name not in hosts for name in others) or not others:
        what = "There is no other host" if not others else f"{target!r} is no other host"
        raise InputError(f"{what} in this play that answers.", hint=f"Hosts: {', '.join(hosts)}.")
    first = _first(hosts, first)
    free = {name: _free(hosts[name], reserve) for name in others}
    moves, blockers = [], []
    for one in _sorted(_here(hosts[host]), order, first):
        if one["problem"]:
            blockers.append(_blocker(one, one["problem"]))
            continue
        if not one["managed"]:
            blockers.append(_blocker(one, "not made by this collection; take it over with cnvm.platform.guest (adopt)"))
            continue
        able = [name for name in others if one["kind"] == "container" or _has_libvirt(hosts[name])]
        if not able:
            blockers.append(_blocker(one, f"no libvirt that answers on {', '.join(others)}"))
            continue
        best = max(able, key=lambda name: (free[name], [-ord(letter) for letter in name]))
        if free[best] < one["needs_mib"]:
            left = ", ".join(f"{name} has {max(free[name], 0)} MiB" for name in able)
            blockers.append(_blocker(one, f"no room for {one['needs_mib']} MiB: {left}"))
            continue
        free[best] -= one["takes_mib"]
        moves.append(_move(one, host, best))
    return {"moves": moves, "blockers": blockers}


def _sorted(found: t.Iterable[dict[str, t.Any]], order: str, first: t.Sequence[str]) -> list[dict[str, t.Any]]:
    sign = {"name": 0, "smallest": 1, "largest": -1}[order]
    places = {name: number for number, name in enumerate(first)}
    return sorted(
        found,
        key=lambda one: (places.get(one["name"], len(places)), sign * one["memory_mib"], one["name"], one["kind"]),
    )


def _move(one: Item, source: str, target: str) -> dict[str, t.Any]:
    keys = ("kind", "name", "uuid", "state", "memory_mib")
    return {**{key: one[key] for key in keys}, "source": source, "target": target}


def checked_record(given: object) -> list[dict[str, t.Any]]:
    """What went away before, as it was written down; people may have taken something out of it."""
    if not isinstance(given, (list, tuple)):
        raise InputError("record is not a list.", hint=f"Each item has {', '.join(_RECORD)}.")
    for number, item in enumerate(given):
        where = f"record[{number}]"
        missing = [key for key in _RECORD if key not in known_keys(item, where, _RECORD)]
        if missing:
            raise InputError(f"{where}: {missing[0]} is missing.", hint=f"Each item has {', '.join(_RECORD)}.")
    return list(given)


def plan_back(
    hosts: t.Mapping[str, t.Any], host: str, record: t.Sequence[Item], *, reserve_mib: object = 256
) -> dict[str, t.Any]:
    """``moves`` of what ``record`` says went away from ``host``, the last one first; nothing for what is back.

    ``record`` is what of it is not.
    """
    moves: list[dict[str, t.Any]] = []
    blockers = []
    known = [(name, one) for name in hosts for one in _here(hosts[name]) if one["managed"] or one["problem"]]
    # One with damaged records counts where no other host has it.
    known.sort(key=lambda each: not each[1]["problem"])
    where = {(one["kind"], one["name"]): (name, one) for name, one in known}
    if host not in hosts:
        raise InputError(f"{host!r} is not in this play, or does not answer.", hint=f"Hosts: {', '.join(hosts)}.")
    free = _free(hosts[host], integer(reserve_mib, "memory_reserve_mib", least=0, most=2**30))
    away: list[Item] = []
    for entry in reversed(record):
        place, one = where.get((entry["kind"], entry["name"]), ("", {}))
        if place == host and one["uuid"] == entry["uuid"]:
            continue
        away.insert(0, entry)
        if not place:
            gone = f"no host of this play has it; it went to {entry['target']}"
            blockers.append(_blocker(entry, f"{gone}. If it was removed, take it out of the record (record_file)"))
        elif one["problem"]:
            blockers.append(_blocker(entry, one["problem"]))
        elif one["uuid"] != entry["uuid"]:
            blockers.append(_blocker(entry, f"the one of this name on {place} is another one"))
        elif free < one["needs_mib"]:
            blockers.append(_blocker(one, f"no room for {one['needs_mib']} MiB: {host} has {max(free, 0)} MiB"))
        else:
            free -= one["takes_mib"]
            moves.append(_move(one, place, host))
    return {"moves": moves, "blockers": blockers, "record": away}


def report(
    made: t.Mapping[str, t.Any], tried: t.Sequence[Item], done: t.Sequence[Item], before: t.Sequence[Item], host: str
) -> dict[str, t.Any]:
    """The plan with what is known since: what a look at each move has said, and what became of it.

    ``tried`` and ``done``: results of the modules, with ``item`` (the move). ``moves`` are those that can be made,
    ``record`` is what has gone from ``host``, or may have, and is not back. An item of ``done`` that is nothing but a
    move is one that is about to begin.
    """
    blockers = [*made["blockers"], *(_blocker(one["item"], reason) for one in tried for reason in _objections(one))]
    blockers += _crowded(made["moves"], tried)
    blocked = {(one["kind"], one["name"]) for one in blockers}
    results = {(one["item"]["kind"], one["item"]["name"]): one for one in done}
    outcomes, moves = [], []
    for one in made["moves"]:
        key = (one["kind"], one["name"])
        if key not in blocked:
            moves.append(one)
            outcomes.append(_outcome(one, results.get(key)))
    places = {(one["kind"], one["name"]): one for one in made["moves"]}
    for key in dict.fromkeys((one["kind"], one["name"]) for one in blockers):
        about = [one for one in blockers if (one["kind"], one["name"]) == key]
        reason = " ".join(one["reason"] for one in about)
        outcomes.append({**about[0], **places.get(key, {}), "reason": reason, "outcome": "blocked"})
    return {
        "moves": moves,
        "blockers": blockers,
        "outcomes": outcomes,
        "failed": [one["name"] for one in outcomes if one["outcome"] in ("failed", "blocked")],
        "left": [one["name"] for one in outcomes if one["outcome"] != "moved"],
        "record": _record(made.get("record", before), moves, results, host),
        "table": _table(outcomes),
    }


def _objections(result: Item) -> list[str]:
    """Why a move cannot be made, from a run of its module in check mode."""
    if isinstance(result.get("plan"), dict):
        return [str(reason) for reason in result["plan"].get("blockers") or ()]
    return [str(result.get("msg") or "no answer")]


def _crowded(moves: t.Sequence[Item], tried: t.Sequence[Item]) -> t.Iterator[dict[str, str]]:
    """Those for which the disks of their target have no room together with what goes there before them."""
    plans = {(one["item"]["kind"], one["item"]["name"]): one.get("plan") or {} for one in tried}
    taken: dict[tuple[str, int], dict[str, int]] = {}
    for one in moves:
        made = plans.get((one["kind"], one["name"]), {})
        after, sums = {}, []
        for space in () if made.get("blockers") else made.get("space") or ():
            place = (one["target"], space["device"])
            own = space["needed_bytes"] - sum(space["once"].values())
            after[place] = {**taken.get(place, {}), one["name"]: own, **space["once"]}
            sums.append({**space, "needed_bytes": sum(after[place].values())})
        problems = space_problems(one["target"], sums)
        if problems:
            yield _blocker(one, f"{problems[0]} That is with what goes there before it.")
        else:
            taken.update(after)


def _outcome(move: Item, result: t.Optional[Item]) -> dict[str, t.Any]:
    if result is None:
        return {**move, "outcome": "planned"}
    moved = result.get("outcome") == "target"
    return {
        **move,
        "outcome": "moved" if moved else "failed",
        "reason": "" if moved else str(result.get("msg") or "no answer"),
        "frozen_ms": result.get("frozen_ms"),
        "total_ms": (result.get("timeline") or {}).get("total_ms"),
    }


def _record(
    before: t.Sequence[Item], moves: t.Sequence[Item], results: t.Mapping[tuple[str, str], Item], host: str
) -> list[dict[str, t.Any]]:
    """``before``, without what is at home for certain, and with what has left it, or may have: one that waits for
    recovery, or of which nothing was heard, can be at its target by the time of the way back."""
    found = {(one["kind"], one["name"]): dict(one) for one in before}
    for one in moves:
        key = (one["kind"], one["name"])
        if key not in results:
            continue
        if results[key].get("outcome") == ("target" if one["target"] == host else "source"):
            found.pop(key, None)
        elif one["source"] == host:
            found.pop(key, None)  # it is the last one now
            found[key] = {word: one[word] for word in _RECORD}
    return list(found.values())


def _table(outcomes: t.Sequence[Item]) -> list[str]:
    """Lines for people."""
    if not outcomes:
        return ["Nothing has to move."]
    rows: list[tuple[str, ...]] = [("workload", "kind", "state", "from", "to", "outcome", "stood still", "took")]
    for one in outcomes:
        frozen, total = one.get("frozen_ms"), one.get("total_ms")
        places = [str(one.get(key) or "-") for key in ("name", "kind", "state", "source", "target", "outcome")]
        took = "-" if total is None else f"{total / 1000:.1f} s"
        rows.append((*places, "-" if frozen is None else f"{frozen:.0f} ms", took))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
    return lines + [f"{one['name']}: {one['reason']}" for one in outcomes if one.get("reason")]
