# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The writes of owner records by which a workload changes hosts, or does not. The rules are in ``_migrate.records``."""

from __future__ import annotations

import typing as t

from .._core import paths
from .._core.errors import HostError, Refused
from .._migrate import records
from . import files, kinds, ownership
from .system import Host

Record = t.Mapping[str, t.Any]


# --- on the source ---


def commit(name: str, owner: Record, target_id: str, target_name: str) -> dict[str, t.Any]:
    """The point of no return: the owner record names the target."""
    made = records.handed_over(owner, target_id, target_name)
    files.write_json(paths.owner_file(name), made)
    return made


def reclaim(journal: Record, generation: int, *, ran: bool) -> dict[str, t.Any]:
    """The target has given the workload back: it is this host's again. It may run when that is on the disk.

    ``ran``: whether the target's copy may have run. That is noted first, in the journal (which is returned): what stood
    still here may be too old to go on.
    """
    name, me = journal["name"], ownership.host_identity()
    noted = {**journal, "ran": ran}
    files.write_json(paths.journal_file(name), noted)
    files.write_json(
        paths.owner_file(name),
        records.owner_record(name, journal["uuid"], me["host_id"], me["name"], generation, journal["kind"]),
    )
    return noted


# --- on the target ---


def check_not_given_back(name: str, journal: Record) -> None:
    """HostError when this host has promised never to run the copy of this move."""
    if records.given_back(files.read_json(paths.owner_file(name)), journal["generation"]):
        raise HostError(f"{name} was given back to {journal['peer']}; this copy never runs again.")


def own(name: str, journal: Record) -> None:
    """Write that the workload is this host's, by the generation that the source has committed."""
    me = ownership.host_identity()
    owner = files.read_json(paths.owner_file(name)) or {}
    if owner.get("owner") != me["host_id"] or int(owner["generation"]) <= journal["generation"]:
        files.write_json(
            paths.owner_file(name),
            records.owner_record(
                name, journal["uuid"], me["host_id"], me["name"], journal["generation"] + 1, journal["kind"]
            ),
        )


def check_not_owned(name: str) -> t.Optional[dict[str, t.Any]]:
    """Refused when the workload is this host's: it is not removed. Else its owner record."""
    owner = files.read_json(paths.owner_file(name))
    if owner is not None and owner.get("owner") == ownership.host_identity()["host_id"]:
        raise Refused(f"{name} is owned by this host since generation {owner['generation']}; it is not removed.")
    return owner


def give_back(host: Host, name: str, journal: Record) -> dict[str, t.Any]:
    """After the commit: promise never to run this copy again, make sure that it is gone, and say so.

    The owner record goes first: what would start it anew must find that it is not ours. ``generation``: of the record
    by which the source has it back; ``ran``: whether this copy may have run.
    """
    owner = files.read_json(paths.owner_file(name)) or {"generation": journal["generation"]}
    generation = journal["generation"] + 2
    if int(owner["generation"]) < generation:
        made = records.owner_record(
            name, journal["uuid"], journal["peer_id"], journal["peer"], generation, journal["kind"]
        )
        # The source may ask for it later, or again.
        owner = {**made, "ran": int(owner["generation"]) > journal["generation"]}
        files.write_json(paths.owner_file(name), owner)
    kinds.target_of(journal).give_up(host, name, journal)
    return {"generation": generation, "ran": bool(owner.get("ran", True))}
