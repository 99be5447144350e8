# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What two hosts write down of a move, and what follows from it. The source decides; the target asks.

The one decision of a move is the source's owner record: while it names the source, the move is not committed and can
be given up; once it names the target (generation + 1, on the disk) the source never runs the container again unless
the target has said that its copy is gone for good (generation + 2, back at the source). Records are compared by
generation only, never by a clock: hosts' clocks differ.
"""

from __future__ import annotations

import typing as t

SCHEMA = 1

# States of a journal (move.json). Written before what they announce is done.
SOURCE_BEGUN = "begun"  # nothing is frozen; giving up costs nothing
# The workload stands still or is about to. Giving up means thawing it; but once the owner record names the target, only
# the target's word can bring it back.
SOURCE_FROZEN = "frozen"
SOURCE_LEAVING = "leaving"  # the target has proven itself; what is here is being removed, and nothing brings it back
TARGET_RECEIVING = "receiving"  # may give up by itself
TARGET_PREPARED = "prepared"  # held, or about to be; must ask the source
TARGET_ACTIVE = "active"  # it runs here; the source may still have a frozen copy

# The mode in the journal of a container that is saved into a file: no other host can have it.
CHECKPOINT = "checkpoint"

# Answers of a source to "what about this move?"
DECIDED_COMMIT = "commit"
DECIDED_ABORT = "abort"
TAKEN_BACK = "taken_back"  # committed once, and then the source was told that this host is dead
UNDECIDED = "undecided"


def owner_record(
    name: str, uuid: str, owner: str, owner_name: str, generation: int, kind: str = "container"
) -> dict[str, t.Any]:
    """The owner record: which host may run the workload (a container or a guest), since which generation."""
    return {
        "schema": SCHEMA, "kind": kind, "name": name, "uuid": uuid, "owner": owner, "owner_name": owner_name,
        "generation": generation,
    }  # fmt: skip


def handed_over(owner: t.Mapping[str, t.Any], to: str, to_name: str) -> dict[str, t.Any]:
    """The owner record after the next handover."""
    return {**owner, "owner": to, "owner_name": to_name, "generation": int(owner["generation"]) + 1}


def newer(one: t.Optional[t.Mapping[str, t.Any]], other: t.Optional[t.Mapping[str, t.Any]]) -> bool:
    """Whether ``one`` is of a later generation than ``other`` (an absent record is older than any)."""
    return int((one or {}).get("generation", -1)) > int((other or {}).get("generation", -1))


def journal(
    role: str, state: str, move_id: str, owner: t.Mapping[str, t.Any], peer: str, peer_id: str, mode: str, boot_id: str
) -> dict[str, t.Any]:
    """The journal of a move. ``generation``: of the owner record at its beginning; ``peer``: the other host."""
    return {
        "schema": SCHEMA, "role": role, "state": state, "move_id": move_id, "kind": owner.get("kind", "container"),
        "name": owner["name"], "uuid": owner["uuid"], "generation": int(owner["generation"]), "peer": peer,
        "peer_id": peer_id, "mode": mode, "boot_id": boot_id,
    }  # fmt: skip


def superseded(current: t.Mapping[str, t.Any], owner: t.Mapping[str, t.Any]) -> bool:
    """Whether a target's journal is of a move that its source has given up: by ``owner`` the source has the container
    as it had it when that move began, and asks for another one."""
    return (
        current.get("role") == "target"
        and current.get("state") in (TARGET_RECEIVING, TARGET_PREPARED)
        and current.get("peer_id") == owner.get("owner")
        and current.get("uuid") == owner.get("uuid")
        and int(current.get("generation", -1)) == int(owner.get("generation", -2))
    )


def decision(
    move_id: str,
    generation: int,
    me: str,
    asker: str,
    owner: t.Optional[t.Mapping[str, t.Any]],
    current: t.Optional[t.Mapping[str, t.Any]],
    busy: bool,
) -> str:
    """What the source (``me``) says to the target (``asker``) of ``move_id``, which began at ``generation``.

    ``owner``, ``current``: its owner record and journal now; ``busy``: the mover still lives. A source that knows
    nothing of the move has given it up (it forgets a committed one only after the target has confirmed).
    """
    if owner is not None and owner.get("owner") == asker != me and int(owner["generation"]) == generation + 1:
        return DECIDED_COMMIT
    if owner is not None and owner.get("owner") == me and int(owner["generation"]) >= generation + 2:
        return TAKEN_BACK
    if current is not None and current.get("move_id") == move_id and busy:
        return UNDECIDED
    return DECIDED_ABORT


def given_back(owner: t.Optional[t.Mapping[str, t.Any]], generation: int) -> bool:
    """Whether the target's owner record promises never to run the copy of a move that began at ``generation``."""
    return int((owner or {}).get("generation", -1)) >= generation + 2


def source_next(state: str, owner_is_me: bool) -> str:
    """What ``recover`` must do on the source for a journal whose mover is gone.

    ``roll_back``, ``finish`` (ask the target first) or ``let_go`` (the target has proven itself).
    """
    if state not in (SOURCE_BEGUN, SOURCE_FROZEN, SOURCE_LEAVING):
        raise ValueError(state)
    if state == SOURCE_LEAVING:
        return "let_go"
    return "roll_back" if owner_is_me else "finish"


def target_next(state: str, decided: t.Optional[str], promised: bool = False) -> str:
    """What the target must do for a journal whose source said ``decided`` (None: it could not be asked).

    ``give_up``, ``give_back``, ``activate``, ``done`` or ``wait``. ``promised``: see ``given_back``.
    """
    if promised or decided == TAKEN_BACK:
        return "give_back"
    if state == TARGET_ACTIVE:
        return "done"
    if state == TARGET_RECEIVING and decided not in (UNDECIDED, DECIDED_COMMIT):
        # It has never said that it is prepared, so the source cannot have committed.
        return "give_up"
    if state == TARGET_PREPARED and decided == DECIDED_COMMIT:
        return "activate"
    if state == TARGET_PREPARED and decided == DECIDED_ABORT:
        return "give_up"
    return "wait"
