# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What differs between the kinds of workloads when they move, as one interface for all of them.

The order of a move, its records and its recovery are the same for all (``mover``, ``serve``, ``recover``,
``handover``). A kind has two modules: one for the host that gives it away (``Source``), one for the host that takes it
(``Target``). They are loaded when a workload of that kind moves: the helper starts in a hot path.
"""

from __future__ import annotations

import importlib
import typing as t

from .._core.errors import CnvmError, HostError
from .._migrate import plan
from .system import Host

if t.TYPE_CHECKING:
    from . import container_source, container_target, guest_source, guest_target, peers
    from .mover import Move

Record = t.Mapping[str, t.Any]
# How long it may take until what has come is on the target's disk: that waits for what others write there, too.
KEEP_S = 600.0


class Survey(t.NamedTuple):
    """What a plan is made from, and what it led to. ``identity``: of the target.

    ``needs``: what the target must have room for; sent to it when the move begins. ``learnt``: for ``Leaving`` alone.
    """

    plan: plan.Plan
    running: bool
    identity: dict[str, t.Any]
    needs: dict[str, t.Any]
    learnt: dict[str, t.Any]


class Leaving:
    """One move on the source: the steps of ``mover`` that depend on what is moved, in this order."""

    # How long the copy may take to come alive.
    activate_limit_s = 30.0

    def __init__(self, move: Move, survey: Survey) -> None:
        self.move = move
        self.survey = survey
        self.host = move.host
        self.name = move.name
        self.definition = move.definition

    def begin(self) -> None:
        """What the target looks for when it begins. The journal is on the disk."""

    def bring(self) -> None:
        """What can be sent while it runs and is not its memory."""
        raise NotImplementedError

    def hold(self) -> None:
        """Until it stands still here and a copy that is whole, or can be made whole, is held on the target."""
        raise NotImplementedError

    def check_still(self) -> None:
        """HostError when it does not stand still here at the moment of the handover."""
        raise NotImplementedError

    def let_run(self) -> None:
        """The target has the word. What follows is its ``activate``."""

    def drain(self) -> None:
        """Until the target has what it still fetches from here (post-copy)."""

    def abandon(self) -> None:
        """End what works for this move by itself: what follows is ``roll_back``, or the end of this process."""

    def leave(self) -> None:
        """The target has it for good. What follows is ``let_go``."""

    def statistics(self) -> dict[str, t.Any]:
        """For the result."""
        return {}

    def said(self, error: CnvmError) -> dict[str, t.Any]:
        """What else is to be said of a failure."""
        return {}


class Source(t.Protocol):
    """A module: what a host does with a workload that it gives away."""

    def answers(self) -> bool:
        """Whether the daemon that the steps wait for says anything. It may wait for long for it."""

    def is_enabled(self, name: str) -> bool:
        """Whether it starts with the host."""

    def survey(
        self, host: Host, channel: peers.Channel, definition: dict[str, t.Any], owner: Record, request: Record
    ) -> Survey:
        """The plan of a move. Reads only, on both hosts."""

    def leaving(self, move: Move, survey: Survey) -> Leaving:
        """The steps of one move."""

    def roll_back(self, host: Host, journal: Record) -> t.Optional[bool]:
        """End a move with the workload as it was before; whether it had died, and was started anew, None when it does
        not run."""

    def secure(self, channel: peers.Channel, journal: Record) -> None:
        """Until the target has on its disk what ``let_go`` removes here. It runs there, so this may take its time."""

    def let_go(self, host: Host, journal: Record) -> list[str]:
        """End a move with the workload at the target: nothing stays but the owner record. And files that were not its
        own, which are returned."""

    def serves(self, journal: Record) -> bool:
        """Whether this host still sends what the target fetches (post-copy)."""

    def keeps(self, journal: Record) -> bool:
        """Whether what stands still here goes on here when a copy has run on the target, and has ended there: what that
        did is lost then. Else it is started anew there, where its disks are the newest."""


def going_on(name: str, anew: t.Optional[bool], how: str = "") -> str:
    """Words for what ``roll_back`` has done."""
    if anew is None:
        return f"{name} stays here and does not run"
    return f"{name} was started anew here" if anew else f"{name} goes on here{how}"


def was_anew(journal: Record, started: t.Optional[bool]) -> bool:
    """Whether what ``finish`` says (``started``) means that a copy that had run was started anew: it had ended."""
    return bool(started) and journal["mode"] != plan.COLD


def memory_lost(name: str) -> str:
    """Words for what came of one of which the target could not fetch all (post-copy)."""
    return f"The rest of the memory of {name} was lost on its way; it is started anew with its disks."


def is_gone(name: str, where: str) -> str:
    """Words for a guest of which ``finish`` says that it is not there any more."""
    return (
        f"libvirt on {where} does not know {name} any more. Its disks are not touched: describe it again"
        " (cnvm.platform.guest), or remove it."
    )


class Call(t.NamedTuple):
    """What the source of a move asks of its target. ``receive`` gives what the work makes of the stream that came;
    ``tell`` lets the source hear that so many more bytes have come which it does not send itself."""

    host: Host
    journal: dict[str, t.Any]
    args: dict[str, t.Any]
    has_stream: bool
    receive: t.Callable[[t.Callable[[t.BinaryIO], t.Any]], t.Any]
    gone: t.Callable[[], bool]
    tell: t.Callable[[int], None]

    @property
    def name(self) -> str:
        """Of the workload."""
        return str(self.journal["name"])

    @property
    def move_id(self) -> str:
        """Of the move."""
        return str(self.journal["move_id"])


class Target(t.Protocol):
    """A module: what a host does with a workload that it takes. Each step may be repeated."""

    # What only this kind needs, by the word on the wire.
    OPERATIONS: t.Mapping[str, t.Callable[[Call], dict[str, t.Any]]]

    def facts(self, host: Host) -> dict[str, t.Any]:
        """What this host is and can do."""

    def check_definition(self, definition: Record) -> None:
        """PeerError when it is none. Its name has been checked."""

    def check(self, host: Host, definition: Record, owner: Record, needs: Record) -> dict[str, t.Any]:
        """``problems``: why this host cannot take it now, a sentence each; and what else the source wants to know."""

    def begin(self, host: Host, definition: Record, journal: dict[str, t.Any], needs: Record) -> None:
        """Make room. The journal is on the disk, the definition is not."""

    def activate(self, host: Host, name: str, journal: Record, timeout_s: float) -> dict[str, t.Any]:
        """The source has committed: own it, let it run, and see that it runs. HostError when it does not come alive;
        the caller decides (``give_back``)."""

    def is_alive(self, name: str, journal: Record) -> bool:
        """Whether the copy that came with this move (not one of an earlier boot) is still there."""

    def has_run(self, name: str, journal: Record) -> bool:
        """Whether the copy that came with this move may have done something, be it that it has ended since."""

    def has_arrived(self, name: str, journal: Record) -> bool:
        """Whether what is prepared here is whole: what a source that died may have left so."""

    def keep(self, host: Host, name: str, journal: Record) -> None:
        """Have what has come on the disk: the source deletes its own only then. It runs here meanwhile."""

    def drained(self, journal: Record, timeout_s: float) -> dict[str, bool]:
        """Waits until nothing is fetched any more: ``ended``, and ``drained`` if all has come (post-copy). ``failed``,
        of a guest: it comes to no end without its source."""

    def announce(self, host: Host, name: str) -> None:
        """Repeat that its addresses are here now."""

    def statistics(self, journal: Record) -> dict[str, t.Any]:
        """For the result."""

    def finish(self, host: Host, name: str, journal: Record) -> t.Optional[bool]:
        """The source has let go: the move is over. Started again if it is to run and does not; whether it was. None
        when it is not there any more. HostError with ``over`` in its details when it cannot be started."""

    def end_copy(self, host: Host, name: str, journal: Record) -> None:
        """End a copy that can never be whole; its files stay, it may be started anew."""

    def give_up(self, host: Host, name: str, journal: Record) -> None:
        """Nothing of it stays here. Only before its owner record names this host."""


if t.TYPE_CHECKING:
    _SOURCES: tuple[Source, ...] = (container_source, guest_source)
    _TARGETS: tuple[Target, ...] = (container_target, guest_target)
_KINDS = ("container", "guest")


def source(kind: str) -> Source:
    """What a host does with workloads of a kind that it gives away."""
    return t.cast(Source, _module(kind, "source"))


def target(kind: str) -> Target:
    """What a host does with workloads of a kind that it takes."""
    return t.cast(Target, _module(kind, "target"))


def source_of(journal: Record) -> Source:
    """The same for the workload of a journal, or of an owner record."""
    return source(kind_of(journal))


def target_of(journal: Record) -> Target:
    """The same for the workload of a journal, or of an owner record."""
    return target(kind_of(journal))


def kind_of(record: Record) -> str:
    """The kind of the workload of a journal, or of an owner record."""
    return str(record.get("kind") or _KINDS[0])


def _module(kind: str, side: str) -> t.Any:
    if kind not in _KINDS:
        raise HostError(f"Workloads of the kind {kind!r} cannot be moved.", hint="Run host_bootstrap again.")
    return importlib.import_module(f".{kind}_{side}", __package__)
