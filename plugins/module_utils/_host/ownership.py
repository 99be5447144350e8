# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Which workloads (containers and guests) are this host's, and how one becomes so: a name stands for one on all hosts.

A workload is this host's by its owner record (``_migrate.records``). Before one is made the peers are asked; then a
claim is written and they are asked once more, so that two hosts that begin at once both see it, and stop.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, PeerError, Refused
from .._core.values import integer
from .._migrate import records
from . import files, placement
from .system import Host

CONTAINER, GUEST = "container", "guest"


class Newcomer(t.NamedTuple):
    """What is to be made here under a name. No other guest of any host may have its UUID or one of its MACs: it may
    come to that host one day, and on the overlay and on a bridge two MACs that are the same disturb each other at once.

    ``given``: files that were there before, which stay when it is given up. ``adopted``: it is taken over as it is.
    """

    uuid: str = ""
    address: str = ""
    macs: tuple[str, ...] = ()
    given: t.Collection[str] = ()
    adopted: bool = False


Newcomers = t.Mapping[str, Newcomer]


def host_identity() -> dict[str, t.Any]:
    """``host_id`` and ``name`` of this host."""
    identity = files.read_json(paths.HOST_FILE)
    if identity is None:
        raise HostError(f"This host has no {paths.HOST_FILE}.", hint="Run the role host_bootstrap on it.")
    return identity


def read_definition(name: str) -> dict[str, t.Any]:
    """The definition of a workload of this host."""
    definition = files.read_json(paths.definition_file(name))
    if definition is None:
        raise HostError(
            f"This host has no container or guest {name!r}.", hint=f"There is no {paths.definition_file(name)}."
        )
    return definition


def owned_here(name: str) -> bool:
    """Whether the owner record says that the workload is this host's."""
    owner = files.read_json(paths.owner_file(name))
    return owner is not None and owner.get("owner") == host_identity().get("host_id")


def is_moving(name: str) -> bool:
    """Whether a move of the workload, from or to this host, has not ended."""
    return os.path.exists(paths.journal_file(name))


def comes_from(name: str) -> str:
    """The host from which a move is bringing the workload here; '' when none is."""
    journal = files.read_json(paths.journal_file(name)) or {}
    return str(journal.get("peer") or "") if journal.get("role") == "target" else ""


def names(kind: str = "") -> list[str]:
    """The workloads (of one ``kind``) that this host has or had."""
    try:
        found = sorted(name for name in os.listdir(paths.WORKLOADS) if _is_workload(name))
    except FileNotFoundError:
        return []
    return [name for name in found if kind in ("", kind_of(name))]


def _is_workload(name: str) -> bool:
    """Whether there is any record of it: a disk that a guest is to have may lie in its directory before it is made."""
    records_of = (paths.owner_file, paths.definition_file, paths.journal_file)
    return any(os.path.exists(place(name)) for place in records_of)


def kind_of(name: str) -> str:
    """What a workload is, by its records on this host. One that is damaged does not say; who needs it hears of that."""
    for path in (paths.owner_file(name), paths.definition_file(name)):
        with contextlib.suppress(HostError):
            kind = (files.read_json(path) or {}).get("kind")
            if kind:
                return str(kind)
    return CONTAINER


def record(name: str, host_id: str) -> t.Optional[dict[str, t.Any]]:
    """Its owner record here; None also for a creation here that did not come to its end: it is made again."""
    return made(files.read_json(paths.owner_file(name)), host_id)


def made(owner: t.Optional[dict[str, t.Any]], host_id: str) -> t.Optional[dict[str, t.Any]]:
    """The same of the record as it was read."""
    return None if owner is not None and owner.get("claim") and owner.get("owner") == host_id else owner


def begun(name: str, kind: str) -> bool:
    """Whether making it here was begun, and did not come to its end."""
    owner = files.read_json(paths.owner_file(name)) or {}
    return bool(owner.get("claim")) and (owner.get("kind") or CONTAINER) == kind


def check_free(wanted: Newcomers, answers: t.Mapping[str, t.Any], *, ignore_unreachable: bool) -> None:
    """Refused where a peer has a name, an address, a UUID or a MAC of ``wanted``, or cannot be asked."""
    silent = {peer: answer["error"] for peer, answer in answers.items() if not answer["ok"]}
    if silent and not ignore_unreachable:
        listed = "; ".join(f"{peer}: {error}" for peer, error in sorted(silent.items()))
        raise PeerError(
            f"Whether {', '.join(sorted(wanted))} runs elsewhere is not known: not all hosts answered ({listed}).",
            hint="Bring them back or, if they are gone for good, set unreachable_peers: ignore.",
            peers=silent,
        )
    for peer, answer in answers.items():
        for name, known in (answer.get("workloads") or {}).items():
            if not known.get("here"):
                continue
            kind = known.get("kind") or CONTAINER
            if name in wanted:
                doing = "is just being created at" if known.get("claim") else "is at"
                raise Refused(
                    f"{kind.capitalize()} {name!r} {doing} {peer}.",
                    hint="A name stands for one container or guest on all hosts.",
                )
            taken = [own for own, one in wanted.items() if one.address and one.address == known.get("address")]
            if taken:
                raise Refused(
                    f"The address {known['address']} of {taken[0]!r} belongs to {kind} {name!r} at {peer}.",
                    hint="Choose another one.",
                )
    check_identities(wanted, answers)


def check_identities(wanted: Newcomers, answers: t.Mapping[str, t.Any]) -> None:
    """Refused where a guest of a peer that has answered has a UUID or a MAC of another guest here."""
    for peer, answer in answers.items():
        for name, known in (answer.get("workloads") or {}).items():
            for own, one in wanted.items() if known.get("here") else ():
                if own == name:
                    continue
                same = [("MAC", mac) for mac in one.macs if mac in (known.get("macs") or ())]
                if one.uuid and one.uuid == known.get("uuid"):
                    same.append(("UUID", one.uuid))
                if same:
                    raise Refused(
                        f"The {same[0][0]} {same[0][1]} of {own!r} belongs to {known.get('kind') or CONTAINER} {name!r}"
                        f" at {peer}.",
                        hint="Choose another one.",
                    )


def check_free_here(wanted: t.Mapping[str, str], kind: str, leaving: t.Collection[str] = ()) -> None:
    """Refused where a workload of the other kind has a name on this host, or another one the address that goes with it
    (``wanted``: {name: address, or ''}); not those of the same kind that are ``leaving``."""
    host_id = (files.read_json(paths.HOST_FILE) or {}).get("host_id")
    getting = {address: name for name, address in wanted.items() if address}
    for other in names():
        if other in leaving and kind_of(other) == kind:
            continue
        if (files.read_json(paths.owner_file(other)) or {}).get("owner") != host_id:
            continue
        theirs = kind_of(other)
        if other in wanted and theirs != kind:
            raise Refused(f"This host has a {theirs} called {other!r}.", hint="Choose another name.")
        definition = files.read_json(paths.definition_file(other)) if getting else None
        address = str((definition or {}).get("address") or "")
        name = getting.get(address, other)
        if name != other:
            raise Refused(
                f"The address {address} of {name!r} is that of {theirs} {other!r}.", hint="Choose another one."
            )


def asking(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """From the options of a module, how the hosts of the overlay are asked; arguments of ``Registry``."""
    return {
        "ignore_unreachable": params["unreachable_peers"] == "ignore",
        "ask_timeout_s": integer(params["ask_timeout_s"], "ask_timeout_s", least=1, most=600),
    }


def forget(name: str) -> None:
    """Remove the directory of a workload, and the owner record in it last: by that the next run finds what is left."""
    files.remove_tree(paths.workload_dir(name), last=os.path.basename(paths.owner_file(name)))


class Registry:
    """What one call of a module needs to know and write about who has what. ``warnings``: for the user."""

    def __init__(self, host: Host, kind: str, *, ignore_unreachable: bool, ask_timeout_s: float) -> None:
        self.host = host
        self.kind = kind
        self.ignore_unreachable = ignore_unreachable
        self.ask_timeout_s = ask_timeout_s
        self.identity = host_identity()
        self.overlay = files.read_json(paths.OVERLAY_FILE)
        self.warnings: list[str] = []
        # Those that are removed here before any is made.
        self.leaving: t.Collection[str] = ()
        self._generations: dict[str, int] = {}
        self._claims: list[str] = []
        self._given: dict[str, t.Collection[str]] = {}
        # Of these the ones that an earlier run has begun, which was cut off.
        self._begun: set[str] = set()

    def answers(self) -> dict[str, t.Any]:
        """What the peers have."""
        if not self.overlay or not self.overlay.get("peers"):
            return {}
        return placement.ask(self.host, self.overlay, timeout_s=self.ask_timeout_s)

    def locate(self, gone_away: t.Mapping[str, str], wanted: Newcomers) -> dict[str, str]:
        """Where those are that this host does not have: {name: host, '' when no host has it}.

        ``gone_away``: {name: host that got it, by the record here}; ``wanted``: those that are to be made here when
        they are nowhere. Refused or PeerError when that may not be.
        """
        if not gone_away and not wanted:
            return {}
        answers = self.answers()
        everybody = bool(answers) and all(answer["ok"] for answer in answers.values())
        found = {}
        for name in {**gone_away, **wanted}:
            holder = next((peer for peer, answer in answers.items() if _holds(answer, name, self.kind)), "")
            if not holder and name in gone_away:
                if everybody or (self.ignore_unreachable and name in wanted):
                    # It was given away, and has been removed there since, or its host is gone: the record is history.
                    known = files.read_json(paths.owner_file(name)) or {}
                    self._generations[name] = int(known.get("generation") or 0)
                    that = "on no host any more" if everybody else "on no host that answers (unreachable_peers: ignore)"
                    self.warnings.append(
                        f"{self.kind.capitalize()} {name} was moved to {gone_away[name]} and is {that}."
                    )
                else:
                    holder = gone_away[name]
            found[name] = holder
            # One that is made anew comes after all that a host remembers by this name.
            theirs = [
                ((answer.get("workloads") or {}).get(name) or {}).get("generation") for answer in answers.values()
            ]
            self._generations[name] = max(self._generations.get(name, 0), *(int(each or 0) for each in theirs), 0)
        free = {name: one for name, one in wanted.items() if not found[name]}
        if free:
            check_free_here({name: one.address for name, one in free.items()}, self.kind, self.leaving)
            check_free(free, answers, ignore_unreachable=self.ignore_unreachable)
        return found

    def check_elsewhere(self, name: str, address: str) -> None:
        """Refused where a peer has a workload of this host, or its address."""
        check_free({name: Newcomer(address=address)}, self.answers(), ignore_unreachable=self.ignore_unreachable)

    def check_address(self, name: str, address: str) -> None:
        """Refused where somebody has the address that a workload of this host is to get now."""
        check_free_here({name: address}, self.kind, self.leaving)
        self.check_elsewhere(name, address)

    def check_identities(self, wanted: Newcomers) -> None:
        """Refused where a peer that answers has a MAC that a guest of this host is to get now."""
        if wanted:
            check_identities(wanted, self.answers())

    def claim(self, wanted: Newcomers) -> None:
        """Say that these are being made here, then ask the peers once more."""
        if not wanted:
            return
        for name, one in wanted.items():
            if begun(name, self.kind):
                self._begun.add(name)
            self._given[name] = one.given
            self._write(name, one.uuid, claim=True, address=one.address, macs=list(one.macs), adopted=one.adopted)
            self._claims.append(name)
        try:
            check_free(wanted, self.answers(), ignore_unreachable=self.ignore_unreachable)
        except CnvmError:
            self.give_up()
            raise

    def own(self, name: str, uuid: str) -> None:
        """It is made, and this host's from now on."""
        self._write(name, uuid)
        self._claims.remove(name)

    def give_up(self, undo: t.Optional[t.Callable[[str], None]] = None) -> list[str]:
        """Leave nothing of what was claimed and not made. ``undo`` removes what was made; without it nothing was by
        this run, and what an earlier one has begun is left as it was.

        Those that ``undo`` could not end are returned. They stay as they are, and the next run goes on from there.
        """
        left = []
        for name in self._claims:
            try:
                if undo is not None:
                    undo(name)
                elif name in self._begun:
                    continue
            except CnvmError:
                left.append(name)
            else:
                self._forget(name)
        self._claims.clear()
        return left

    def _forget(self, name: str) -> None:
        """Remove its records. What its user has brought there stays: of its disks that is all that was not undone."""
        directory = os.path.realpath(paths.workload_dir(name))
        lying = [*self._given.get(name, ()), *_lying(paths.guest_disks_dir(name))]
        known = {place for path in lying for place in files.places(path)}
        given = {path for path in known if path.startswith(f"{directory}/")}
        if not given:
            forget(name)
        record = f"{directory}/{os.path.basename(paths.owner_file(name))}"
        for path in sorted(_lying(directory), key=lambda path: path == record):
            if path not in given:
                files.remove_file(path)

    def _write(self, name: str, uuid: str, **more: t.Any) -> None:
        made = records.owner_record(
            name, uuid, self.identity["host_id"], self.identity["name"], self._generations.get(name, 0) + 1, self.kind
        )
        claim = {key: value for key, value in more.items() if value}
        files.write_json(paths.owner_file(name), {**made, **claim})


def _lying(directory: str) -> list[str]:
    """All files below a directory."""
    return [f"{place}/{one}" for place, _below, found in os.walk(directory) for one in found]


def _holds(answer: t.Mapping[str, t.Any], name: str, kind: str) -> bool:
    known = (answer.get("workloads") or {}).get(name) or {}
    return bool(known.get("here")) and not known.get("claim") and (known.get("kind") or CONTAINER) == kind
