# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All interleavings of a move, of what can break it, and of ``recover`` at any time: a model check.

Two hosts with what they have on the disk (owner record, journal, files) and in memory (the container's processes, a
mover, a conversation, a recovery, a restarting unit). Each step is one write or one effect, in the order of mover.py,
handover.py, container_source.py, container_target.py, serve.py and recover.py. What follows from the records is asked
of the real ``_migrate.records``. The mode ``live`` is that of guests (guest_source.py, guest_target.py): the target
notes that it must ask before the copy is whole, not after.

Faults, at any step: either host loses power, the link is cut (what was sent may still arrive), a mover, recovery or
conversation is killed, an operation on the target fails, a copy dies on its own, CRIU dies and lets its container go.

At every instant: at most one copy runs (I1), and none goes on from before what another one did on the target, once that
has noted that it runs, unless the rest of its memory was still to come, or its files were lost (I4). From every state,
once both hosts and the link are back and ``recover`` has run on both, in either order: it runs in exactly one place and
nothing of the move is left (I2, I3). The source has removed its files only when those of the target are on its disk.

``before``: rules as they were when they had a hole; the check must find each of them again.
"""

from __future__ import annotations

import collections
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records

GENERATION = 1
NAMES = {"S": "host1", "T": "host2"}
Record = tuple[int, str]  # (generation, owner)


class World(t.NamedTuple):
    """Everything. ``s``, ``t``: who holds the container's lock on that host and how far it is."""

    mode: str
    # Source: on the disk, then in memory.
    so: Record = (GENERATION, "S")
    sj: t.Optional[str] = None
    sdata: bool = True
    sp: str = "run"  # run, soft (frozen, CRIU may thaw it), hard (frozen above it), dead
    s: t.Optional[tuple[t.Any, ...]] = None
    sunit: bool = False  # a unit that has seen that it may start the container, and is about to
    sstop: bool = False  # its unit has ended for good: it was stopped, or saw that it may not start the container
    # Target.
    to: t.Optional[Record] = None
    tj: t.Optional[str] = None
    tdata: bool = False
    tp: str = "none"  # none, held, run
    tmem: bool = False  # all pages are there
    tran: bool = False  # its copy has come alive: what it did is nowhere else
    tkept: bool = False  # its files are on the disk, and that is noted
    tlost: bool = False  # it has lost power before: some of them may be gone
    t: t.Optional[tuple[t.Any, ...]] = None
    tunit: bool = False
    # Between them.
    sup: bool = True
    tup: bool = True
    link: bool = True
    conv: bool = False
    req: t.Optional[str] = None
    ans: t.Optional[tuple[t.Any, ...]] = None
    faults: int = 0


Worlds = list[World]


def owner_of(record: t.Optional[Record]) -> t.Optional[dict[str, t.Any]]:
    return None if record is None else records.owner_record("web", "u", record[1], NAMES[record[1]], record[0])


def record_of(owner: t.Mapping[str, t.Any]) -> Record:
    return int(owner["generation"]), str(owner["owner"])


def journal_of(state: t.Optional[str]) -> t.Optional[dict[str, t.Any]]:
    owner = records.owner_record("web", "u", "S", "host1", GENERATION)
    return None if state is None else records.journal("source", state, "m1", owner, "host2", "T", "", "")


class Model:
    """The steps. ``before``: names of rules as they were once."""

    def __init__(self, mode: str, before: t.Collection[str] = ()) -> None:
        self.mode = mode
        self.before = frozenset(before)
        cold = mode == "cold"
        self.mover: list[t.Union[str, t.Callable[[World], t.Optional[World]]]] = [
            lambda w: w._replace(sj=records.SOURCE_BEGUN),
            "begin",
            lambda w: w._replace(sj=records.SOURCE_FROZEN),
            (lambda w: w._replace(sp="dead", sunit=False, sstop=True)) if cold else self.freeze,
            "arrived" if cold else self.hold,
            *{"cold": [], "live": ["hold", "arrive"]}.get(mode, ["restore"]),
            self.may_commit,
            lambda w: w._replace(so=record_of(records.handed_over(owner_of(w.so) or {}, "T", "host2"))),
            "activate",
            *self.end(),
        ]
        if cold and "cold_is_never_prepared" in self.before:
            self.mover[4] = "layer"

    def end(self) -> list[t.Union[str, t.Callable[[World], t.Optional[World]]]]:
        """What follows once it runs on the target."""
        drained = ["drained"] if self.mode == "post_copy" else []
        if "leaves_before_it_is_kept" in self.before:
            return [*drained, self.leave()[0], "keep", *self.leave()[1:]]
        return [*drained, *self.keep(), *self.leave()]

    def keep(self) -> list[t.Union[str, t.Callable[[World], t.Optional[World]]]]:
        """The target has its files on the disk. (That of guests has them there as they come.)"""
        return [] if self.mode == "live" or "is_not_kept" in self.before else ["keep"]

    def lost(self, w: World) -> bool:
        """Whether the target knows that some of its files may be gone."""
        return w.tlost and "believes_its_disk" not in self.before

    def leave(self) -> list[t.Union[str, t.Callable[[World], t.Optional[World]]]]:
        """``let_go``, and the end of it on the target."""
        first = [] if "leaves_without_a_word" in self.before else [lambda w: w._replace(sj=records.SOURCE_LEAVING)]
        return [
            *first,
            lambda w: w._replace(sp="dead"),
            lambda w: w._replace(sdata=False),
            lambda w: w._replace(sj=None),
            "finish",
        ]

    # --- steps of the mover that may fail (None) ---

    def freeze(self, w: World) -> t.Optional[World]:
        return w._replace(sp="soft") if w.sp == "run" else None

    def hold(self, w: World) -> t.Optional[World]:
        return w._replace(sp="hard") if w.sp == "soft" else None

    def may_commit(self, w: World) -> t.Optional[World]:
        if self.mode == "cold":
            return w if w.sp == "dead" else None
        return w if w.sp == "hard" else None

    # --- the source ---

    def source(self, w: World) -> Worlds:
        """The next step of whoever holds the lock on the source."""
        if w.s is None or not w.sup:
            return []
        name, at, waiting = w.s
        program = self.programs()[name]
        if at >= len(program):
            return [w._replace(s=None, conv=False, ans=None)]
        step = program[at]
        onward = w._replace(s=(name, at + 1, False))
        if not isinstance(step, str):
            done = step(onward)
            return [self.failed(w, peer=False) if done is None else done]
        if not waiting:
            if not w.conv:
                return [self.failed(w, peer=True)]
            return [w._replace(req=step, s=(name, at, True))]
        if not w.conv:
            return [self.failed(w, peer=True)]
        if w.ans is None:
            return []
        kind, *said = w.ans
        answered = onward._replace(ans=None)
        if kind == "error":
            return [self.failed(w._replace(ans=None), peer=False)]
        if step == "resume":
            return [self.settle(answered, *said)]
        return [answered]

    def programs(self) -> dict[str, list[t.Any]]:
        if not hasattr(self, "_programs"):
            roll = [self.thaw, lambda w: w._replace(sj=records.SOURCE_BEGUN), self.start_here]
            roll.append(lambda w: w._replace(sj=None))
            if "forgets_before_it_starts" in self.before:
                roll[1:] = [roll[3], roll[2]]
            self._programs: dict[str, list[t.Any]] = {
                "mover": self.mover,
                "roll": [*roll, "give_up"],
                "recover_roll": roll,
                "back": ["ask_back", *self.take_back(), *roll],
                "anew": ["anew", *self.keep(), *self.leave()],
                "take": [*self.take_back(), *roll],
                "ask": ["resume"],
                "finish": self.end(),
                "activate": ["activate", *self.end()],
                "let_go": self.leave(),
            }
        return self._programs

    def take_back(self) -> list[t.Any]:
        return [lambda w: w._replace(so=(GENERATION + 2, "S"))]

    def thaw(self, w: World) -> World:
        return w._replace(sp="run") if w.sp in ("soft", "hard") else w

    def start_here(self, w: World) -> World:
        if "stays_dead" in self.before and self.mode != "cold":
            return w
        return w._replace(sp="run", sunit=False, sstop=False) if w.sp == "dead" and w.so[1] == "S" and w.sdata else w

    def failed(self, w: World, peer: bool) -> World:
        """A step of the source failed; ``peer``: the other host cannot be asked."""
        assert w.s is not None
        name = w.s[0]
        end = w._replace(s=None, conv=False, ans=None, req=w.req)
        if name == "mover":
            left = w.sj in (records.SOURCE_LEAVING, None) and w.so[1] == "T"
            if left and not ("leaves_without_a_word" in self.before and not peer):
                return end
            if w.so[1] == "S":
                return w._replace(s=("roll", 0, False)) if w.sj else end
            return end if peer else w._replace(s=("back", 0, False))
        if (
            name in ("activate", "finish")
            and not peer
            and self.programs()[name][w.s[1]] != "keep"
            and w.sj != records.SOURCE_LEAVING
            and w.sj is not None
        ):
            return w._replace(s=("back", 0, False))
        return end

    def recover_source(self, w: World) -> Worlds:
        """``recover`` begins on the source."""
        if w.s is not None or not w.sup or w.sj is None:
            return []
        following = records.source_next(w.sj, w.so[1] == "S")
        if following == "roll_back":
            return [w._replace(s=("recover_roll", 0, False))]
        free = w.link and w.tup and w.t is None
        if following == "let_go":
            opened = w._replace(conv=True, t=("idle",), req=None, ans=None) if free else w
            return [opened._replace(s=("let_go", 1, False))]
        if not free:
            return []
        return [w._replace(s=("ask", 0, False), conv=True, t=("idle",), req=None, ans=None)]

    def settle(self, w: World, tj: t.Optional[str], to: t.Optional[Record], alive: bool, ran: bool) -> World:
        """``recover._settle``."""
        given_back = to is not None and to[0] >= GENERATION + 2 and to[1] == "S"
        if given_back and (tj is None or "believes_a_promise" in self.before):
            return w._replace(s=("take", 0, False))
        if tj is None:
            return w._replace(s=("let_go" if to is not None and to[1] == "T" else "take", 0, False))
        if given_back:
            return w._replace(s=("back", 0, False))
        if tj != records.TARGET_ACTIVE:
            return w._replace(s=("activate", 0, False))
        if alive:
            return w._replace(s=("finish", 0, False))
        return w._replace(s=("back" if self.may_lose() or not ran else "anew", 0, False))

    def may_lose(self) -> bool:
        """Whether what a copy has done that has ended on the target may be lost (``keeps``)."""
        return self.mode == "post_copy" or "gives_back_what_has_run" in self.before

    # --- the target ---

    def target(self, w: World) -> Worlds:
        """The next step of whoever holds the lock on the target."""
        if w.t is None or not w.tup:
            return []
        if w.t[0] == "idle":
            if w.req is not None:
                taken = w._replace(t=("op", w.req, 0), req=None)
                return [taken] if w.conv else [taken, w._replace(req=None)]
            return [] if w.conv else [w._replace(t=None)]
        if w.t[0] == "ask":
            return self.ask(w)
        kind, operation, at = w.t
        steps = getattr(self, "op_" + operation)
        done = steps(w, at)
        if isinstance(done, World):
            return [done._replace(t=(kind, operation, at + 1))]
        if kind == "own":
            return [w._replace(t=None)]
        return [w._replace(t=("idle",), ans=done if w.conv else None)]

    def ask(self, w: World) -> Worlds:
        """``recover`` on the target: is the source busy, what do its records say, and what follows."""
        assert w.t is not None
        _kind, at, busy = w.t
        reached = w.link and w.sup
        if at == 0:
            kept = w.tkept or (w.tj == records.TARGET_ACTIVE and not self.lost(w))
            return [w._replace(t=("ask", 1, w.s is not None if reached else None), tkept=kept)]
        decided, ended = None, False
        if reached and busy is not None:
            decided = records.decision("m1", GENERATION, "S", "T", owner_of(w.so), journal_of(w.sj), busy)
            ended = not busy and w.sj is None
        assert w.tj is not None
        promised = w.to is not None and w.to[0] >= GENERATION + 2
        following = records.target_next(w.tj, decided, promised)
        if following == "done" and decided == records.DECIDED_COMMIT and ended:
            return [w._replace(t=("own", "end", 0))]
        if following in ("give_up", "activate", "give_back"):
            return [w._replace(t=("own", following, 0))]
        return [w._replace(t=None)]

    def recover_target(self, w: World) -> Worlds:
        if w.t is not None or not w.tup or w.tj is None:
            return []
        return [w._replace(t=("ask", 0, None))]

    # Each operation: the world after its step ``at``, or its answer.

    def op_begin(self, w: World, at: int) -> t.Any:
        if at == 0:
            return ("error",) if w.tj is not None else w._replace(tj=records.TARGET_RECEIVING)
        return w._replace(tdata=False) if at == 1 else ("ok",)

    def op_layer(self, w: World, at: int) -> t.Any:
        return w._replace(tdata=True) if at == 0 else ("ok",)

    def op_arrived(self, w: World, at: int) -> t.Any:
        if at == 0:
            return w._replace(tdata=True)
        return w._replace(tj=records.TARGET_PREPARED) if at == 1 else ("ok",)

    def op_restore(self, w: World, at: int) -> t.Any:
        if at == 0:
            return w._replace(tdata=True, tp="held", tmem=self.mode != "post_copy")
        if at == 1:
            return w._replace(tj=records.TARGET_PREPARED) if w.tp == "held" else ("error",)
        return ("ok",)

    def op_hold(self, w: World, at: int) -> t.Any:
        return w._replace(tj=records.TARGET_PREPARED) if at == 0 else ("ok",)

    def op_arrive(self, w: World, at: int) -> t.Any:
        if at == 0:
            return w._replace(tdata=True, tp="held", tmem=True)
        return ("ok",) if w.tp == "held" else ("error",)

    def op_activate(self, w: World, at: int) -> t.Any:
        alive = self.is_alive(w)
        if at == 0:
            promised = w.to is not None and w.to[0] >= GENERATION + 2
            return w if alive and w.tj is not None and w.tdata and not promised else ("error",)
        if at == 1:
            return w._replace(to=(GENERATION + 1, "T"))
        if at == 2:
            return w._replace(tp="run", tunit=False) if alive else ("error",)
        return w._replace(tj=records.TARGET_ACTIVE, tran=True) if at == 3 else ("ok",)

    def is_alive(self, w: World) -> bool:
        return not self.lost(w) and (self.mode == "cold" or w.tp in ("held", "run"))

    def op_keep(self, w: World, at: int) -> t.Any:
        if at == 0:
            return ("error",) if self.lost(w) else w._replace(tkept=True)
        return ("ok",)

    def op_drained(self, w: World, at: int) -> t.Any:
        if at == 0 and not w.tmem:
            served = w.tp == "run" and w.sp == "hard" and w.sup and w.link
            return w._replace(tmem=True) if served else ("error",)
        return ("ok",)

    def op_finish(self, w: World, at: int) -> t.Any:
        return w._replace(tj=None) if at == 0 else ("ok",)

    def op_end(self, w: World, at: int) -> t.Any:
        """The end of a move by the target's own recovery, which starts what does not run."""
        if at == 0:
            return w._replace(tj=None)
        return w._replace(tp="run", tunit=False) if at == 1 else ("ok",)

    def op_give_up(self, w: World, at: int) -> t.Any:
        if at == 0:
            return w._replace(tp="none", tunit=False)
        if at == 1:
            return w._replace(tdata=False) if w.to is None or w.to[1] != "T" else ("error",)
        return w._replace(tj=None) if at == 2 else ("ok",)

    def op_anew(self, w: World, at: int) -> t.Any:
        """It is started by ``finish``, or by who ends the move later."""
        if at == 0:
            return w._replace(tp="none", tunit=False)
        if at == 1:
            return w._replace(tj=records.TARGET_ACTIVE)
        return ("ok",)

    def op_ask_back(self, w: World, at: int) -> t.Any:
        """``give_back``, when the source asks for it."""
        promised = w.to is not None and w.to[0] >= GENERATION + 2
        ran = w.tj == records.TARGET_ACTIVE and not self.lost(w)
        if at == 0 and ran and not promised and not self.may_lose():
            return ("error",)
        return self.op_give_back(w, at)

    def op_give_back(self, w: World, at: int) -> t.Any:
        if at == 0:
            return w._replace(to=(GENERATION + 2, "S"))
        if at == 1:
            return w._replace(tp="none", tunit=False)
        if at == 2:
            return w._replace(tdata=False)
        return w._replace(tj=None) if at == 3 else ("ok",)

    def op_resume(self, w: World, at: int) -> t.Any:
        return ("ok", w.tj, w.to, self.is_alive(w), w.tj == records.TARGET_ACTIVE and not self.lost(w))

    # --- units, faults, repairs ---

    def units(self, w: World) -> Worlds:
        """systemd starts what has died where the owner record allows it; looking and starting are two steps."""
        found: Worlds = []
        if w.sup:
            busy = w.s is not None and w.sj in (records.SOURCE_FROZEN, records.SOURCE_LEAVING)
            if "unit_does_not_look" in self.before:
                busy = False
            if w.sp == "dead" and not w.sunit and not w.sstop:
                may = w.so[1] == "S" and w.sdata and not busy
                found.append(w._replace(sunit=True) if may else w._replace(sstop=True))
            if w.sunit:
                found.append(
                    w._replace(sunit=False, sp="run") if w.sp == "dead" and w.sdata else w._replace(sunit=False)
                )
        if w.tup:
            started = w.tj == records.TARGET_ACTIVE or w.tj is None
            if w.tp == "none" and not w.tunit and w.to is not None and w.to[1] == "T" and w.tdata and started:
                found.append(w._replace(tunit=True))
            if w.tunit:
                found.append(
                    w._replace(tunit=False, tp="run") if w.tp == "none" and w.tdata else w._replace(tunit=False)
                )
        return found

    def faults(self, w: World) -> Worlds:
        """Whatever can break now."""
        gone = w._replace(faults=w.faults + 1)
        found: Worlds = []
        if w.sup:
            found.append(gone._replace(sup=False, s=None, sunit=False, sp="dead", sstop=False, conv=False, ans=None))
        if w.tup:
            lost = w.tlost or (w.tdata and not w.tkept and self.mode != "live")
            found.append(
                gone._replace(tup=False, t=None, tunit=False, tp="none", conv=False, req=None, ans=None, tlost=lost)
            )
        if w.link:
            found.append(gone._replace(link=False, conv=False, ans=None))
        if w.s is not None:
            found.append(gone._replace(s=None, conv=False, ans=None))
        if w.t is not None:
            found.append(gone._replace(t=None, conv=False, req=None, ans=None))
        if w.t is not None and w.t[0] == "op" and w.conv:
            found.append(gone._replace(t=("idle",), ans=("error",)))
        if w.sup and w.sp in ("run", "soft", "hard"):
            found.append(gone._replace(sp="dead"))
        if w.sup and w.sp == "soft":
            found.append(gone._replace(sp="run"))
        if w.tup and w.tp != "none":
            found.append(gone._replace(tp="none"))
        if w.sup and w.s is not None and w.sj == records.SOURCE_LEAVING:
            # Removing what is left fails half-way.
            found.append(self.failed(gone, peer=False))
        elif w.s is not None and w.s[0] == "mover" and w.so[1] == "T" and "leaves_without_a_word" in self.before:
            found.append(self.failed(gone, peer=False))
        return found

    def repairs(self, w: World) -> Worlds:
        """Power and link return. At boot a unit starts what it may; what is in a move is not enabled on its target."""
        found: Worlds = []
        if not w.sup:
            found.append(w._replace(sup=True))
        if not w.tup:
            found.append(w._replace(tup=True, tunit=w.to is not None and w.to[1] == "T" and w.tj is None))
        if not w.link:
            found.append(w._replace(link=True))
        return found

    def following(self, w: World, most_faults: int) -> t.Iterator[World]:
        yield from self.source(w)
        yield from self.target(w)
        yield from self.units(w)
        yield from self.repairs(w)
        yield from self.recover_source(w)
        yield from self.recover_target(w)
        if w.faults < most_faults:
            yield from self.faults(w)

    # --- the end ---

    def towards_the_end(self, w: World, turn: int, first: str) -> tuple[t.Optional[World], int]:
        """One step without faults: all comes back, all that runs ends, then recover on both in turn."""
        actors = (self.source, self.target) if first == "S" else (self.target, self.source)
        for some in (self.repairs, *actors, self.units):
            worlds = some(w)
            if worlds:
                return worlds[0], turn
        order = [self.recover_source, self.recover_target]
        if first == "T":
            order.reverse()
        for step in range(2):
            which = (turn + step) % 2
            worlds = order[which](w)
            if worlds:
                return worlds[0], (which + 1) % 2
        return None, turn


def one_place(w: World) -> bool:
    """Settled: it runs in one place, which owns it and has its files; the other has nothing."""
    here = w.sp == "run" and w.so[1] == "S" and w.sdata and w.tp == "none" and not (w.to and w.to[1] == "T")
    there = w.tp == "run" and w.to is not None and w.to[1] == "T" and w.tdata and w.sp == "dead" and w.so[1] == "T"
    return w.sj is None and w.tj is None and (here or (there and not w.sdata))


def explore(model: Model, most_faults: int) -> tuple[int, list[str]]:
    """(number of states, what is wrong with them)."""
    start = World(model.mode, s=("mover", 0, False), conv=True, t=("idle",))
    before: dict[World, t.Optional[World]] = {start: None}
    queue = collections.deque([start])
    settled: dict[tuple[World, int, str], bool] = {}
    while queue:
        w = queue.popleft()
        if w.sp == "run" and w.tp == "run":
            return len(before), ["two copies run:", *story(before, w)]
        lost = lost_for_good(model, w)
        if lost:
            return len(before), [lost, *story(before, w)]
        if w.tran and w.so[0] >= GENERATION + 2 and model.mode != "post_copy" and not w.tlost:
            return len(before), ["what it did on the target is lost:", *story(before, w)]
        for first in "ST":
            if not ends_well(model, w, first, settled):
                return len(before), [f"recover ({first} first) does not end it:", *story(before, w)]
        for found in model.following(w, most_faults):
            if found not in before:
                before[found] = w
                queue.append(found)
    return len(before), []


def ends_well(model: Model, w: World, first: str, settled: dict[tuple[World, int, str], bool]) -> bool:
    at: tuple[World, int, str] = (w._replace(faults=0), 0, first)
    chain = []
    seen = set()
    while at not in settled:
        if at in seen:
            result = False
            break
        seen.add(at)
        chain.append(at)
        if at[0].sp == "run" and at[0].tp == "run":
            result = False
            break
        after, turn = model.towards_the_end(at[0], at[1], first)
        if after is None:
            result = one_place(at[0])
            break
        at = (after, turn, first)
    else:
        result = settled[at]
    settled.update(dict.fromkeys(chain, result))
    return result


def lost_for_good(model: Model, w: World) -> str:
    """What is lost when a host dies for good now and the other is told so (``fenced``), '' when nothing is.

    What is whole on a host that must not start it without being told is still whole (I2).
    """
    let_go = w.sj == records.SOURCE_LEAVING or (w.sj is None and w.so[1] == "T")
    if w.tlost and not w.sdata:
        return "the source has removed its files, and not all of the target's were on its disk"
    if not let_go and not w.sdata:
        return "the target dies: the source has given up its files before the target had it for good"
    committed = w.so[1] == "T"
    if not committed or (w.to is not None and w.to[0] >= GENERATION + 2):
        return ""
    if not w.tdata or w.tj == records.TARGET_RECEIVING:
        return "the source dies: the target does not know that what it has is whole"
    return ""


def story(before: dict[World, t.Optional[World]], last: World) -> list[str]:
    """How it came to that, as the fields that changed."""
    lines = []
    at: t.Optional[World] = last
    while at is not None:
        previous = before[at]
        if previous is not None:
            lines.append(
                ", ".join(
                    f"{name}: {old} -> {new}" for name, old, new in zip(World._fields, previous, at) if old != new
                )
            )
        at = previous
    return lines[::-1]


@pytest.mark.parametrize("mode", ["stop_copy", "post_copy", "cold", "live"])
def test_exactly_one_copy_whatever_happens(mode: str) -> None:
    states, wrong = explore(Model(mode), most_faults=3)
    assert wrong == []
    assert states > 20_000


@pytest.mark.parametrize(
    ("mode", "rule"),
    [
        ("stop_copy", "leaves_without_a_word"),
        ("stop_copy", "believes_a_promise"),
        ("stop_copy", "stays_dead"),
        ("cold", "forgets_before_it_starts"),
        ("cold", "cold_is_never_prepared"),
        ("stop_copy", "gives_back_what_has_run"),
        ("live", "gives_back_what_has_run"),
        ("stop_copy", "is_not_kept"),
        ("cold", "is_not_kept"),
        ("stop_copy", "leaves_before_it_is_kept"),
        ("stop_copy", "believes_its_disk"),
        ("cold", "believes_its_disk"),
    ],
)
def test_the_check_finds_what_was_wrong_once(mode: str, rule: str) -> None:
    _states, wrong = explore(Model(mode, [rule]), most_faults=3)
    assert wrong != []


def test_a_unit_that_restarts_must_look_for_a_move() -> None:
    _states, wrong = explore(Model("stop_copy", ["unit_does_not_look"]), most_faults=2)
    assert wrong != []


def test_a_move_that_nothing_breaks_ends_at_the_target() -> None:
    model = Model("stop_copy")
    w = World("stop_copy", s=("mover", 0, False), conv=True, t=("idle",))
    turn = 0
    while True:
        after, turn = model.towards_the_end(w, turn, "S")
        if after is None:
            break
        w = after
    assert (w.so, w.to, w.sp, w.tp) == ((2, "T"), (2, "T"), "dead", "run")
    assert one_place(w)
