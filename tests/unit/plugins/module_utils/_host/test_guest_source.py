# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a move ends on the host that gave the guest away."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    connections,
    disks,
    domains,
    files,
    guest_preflight,
    guest_source,
    libvirt,
    movedir,
    mover,
    netns,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors, guest_plan, migration
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records
from ansible_collections.cnvm.platform.plugins.module_utils._migrate.timeline import Timeline

from . import fake_domains, fake_libvirt

RUNNING, PAUSED, SHUTOFF = 1, 3, 5
JOURNAL = {
    "name": "web",
    "peer": "host2",
    "move_id": "m1",
    "role": "source",
    "state": records.SOURCE_FROZEN,
    "running": True,
}
LIBRARY = types.SimpleNamespace(
    libvirtError=fake_libvirt.FakeError, VIR_DOMAIN_PAUSED_POSTCOPY=11, VIR_DOMAIN_PAUSED_POSTCOPY_FAILED=12,
    VIR_DOMAIN_SHUTOFF_SHUTDOWN=1, VIR_DOMAIN_SHUTOFF_DESTROYED=2,
)  # fmt: skip


class Domain:
    """A guest whose job lasts until the moment ``ends``. What was done to it, and when."""

    def __init__(self, ends: float, refuses: bool = False) -> None:
        self.now = 0.0
        self.ends = ends
        self.refuses = refuses
        self.done: list[tuple[str, float]] = []

    def state(self, flags: int) -> list[int]:
        return [1, 1]

    def jobInfo(self) -> list[int]:
        return [2 if self.now < self.ends else 0]

    def abortJob(self) -> None:
        self.done.append(("cancel", self.now))
        if self.refuses:
            raise fake_libvirt.FakeError(errors.OPERATION_INVALID, "not now")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., Domain]:
    def make(*args: t.Any) -> Domain:
        made = Domain(*args)
        monkeypatch.setattr(time, "monotonic", lambda: made.now)
        monkeypatch.setattr(time, "sleep", made.sleep)
        monkeypatch.setattr(guest_source, "cut_loose", lambda each, peer: each.done.append(("cut", each.now)))
        monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
        return made

    return make


def test_connections_are_cut_before_it_is_asked_for_its_job_or_told_to_cancel(
    domain: t.Callable[..., Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = domain(0.01)
    known = each.jobInfo

    def ask() -> list[int]:
        each.done.append(("ask", each.now))
        return known()

    monkeypatch.setattr(each, "jobInfo", ask)
    guest_source.end_job(each, "host2", cut_first=True)
    assert [word for word, _when in each.done][:2] == ["cut", "ask"]
    assert ("cancel", 0.0) in each.done


def test_several_connections_are_cut_only_when_it_does_not_cancel(domain: t.Callable[..., Domain]) -> None:
    each = domain(0.9)
    guest_source.end_job(each, "host2", cut_first=False)
    assert {word for word, _when in each.done} == {"cancel"}
    each = domain(1.2)
    guest_source.end_job(each, "host2", cut_first=False)
    assert min(when for word, when in each.done if word == "cut") > 1.0


@pytest.mark.parametrize("cut_first", [True, False])
def test_a_job_that_does_not_end_is_not_waited_for_for_ever(domain: t.Callable[..., Domain], cut_first: bool) -> None:
    each = domain(1e9, True)
    guest_source.end_job(each, "host2", cut_first=cut_first)
    assert 59 < each.now < 62


def test_without_a_job_nothing_is_cancelled(domain: t.Callable[..., Domain]) -> None:
    each = domain(0.0)
    guest_source.end_job(each, "host2", cut_first=False)
    assert each.done == []


@pytest.mark.parametrize(
    ("reason", "peer", "cut"),
    [
        (2, "host2", [(77, "10.100.100.2")]),
        # The guest goes on at the target, and fetches its memory through them.
        (LIBRARY.VIR_DOMAIN_PAUSED_POSTCOPY, "host2", []),
        # It is in the overlay no more.
        (2, "host3", []),
    ],
)
def test_it_is_cut_loose_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, peer: str, cut: list[tuple[int, str]]
) -> None:
    """QEMU itself is not asked: it may not answer."""
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(guest_source, "_PID_FILE", str(tmp_path / "{}.pid"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    done: list[tuple[int, str]] = []
    monkeypatch.setattr(connections, "cut", lambda *args: done.append(args))
    each = Stopped(PAUSED, reason)
    files.write_json(
        paths.OVERLAY_FILE, {"self": {"name": "host1"}, "peers": [{"name": "host2", "tunnel": "10.100.100.2"}]}
    )
    guest_source.cut_loose(each, peer)
    assert done == []  # there is no QEMU
    (tmp_path / "web.pid").write_text("77")
    guest_source.cut_loose(each, peer)
    assert done == cut


def test_what_waits_to_be_sent_is_kept_short_while_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the last of it is sent, the guest stands still."""
    monkeypatch.setattr(guest_source, "_PID_FILE", str(tmp_path / "{}.pid"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    (tmp_path / "web.pid").write_text("77")
    files.write_json(
        paths.OVERLAY_FILE, {"self": {"name": "host1"}, "peers": [{"name": "host2", "tunnel": "10.100.100.2"}]}
    )
    done: list[tuple[t.Any, ...]] = []
    monkeypatch.setattr(connections, "keep_short", lambda *args: done.append(args))
    timeline = types.SimpleNamespace(bytes={})
    move = types.SimpleNamespace(channel=types.SimpleNamespace(peer="host2"), tell=lambda: None, time=timeline)
    leaving = guest_source.Leaving.__new__(guest_source.Leaving)
    vars(leaving).update(move=move, _slowed={})
    each = types.SimpleNamespace(name=lambda: "web", migrateSetMaxDowntime=lambda limit_ms: None)
    leaving._help(t.cast("t.Any", each), {}, migration.Pace(300))
    assert done == [(77, "10.100.100.2", 131_072)]


def watched(each: Domain, arrives_at: float, told: list[str]) -> guest_source.Leaving:
    """A move of a guest that is whole at the target at a time of ``each``. ``told``: what was done meanwhile."""
    move = types.SimpleNamespace(
        channel=types.SimpleNamespace(call=lambda word, timeout_s: told.append(word)),
        request={"max_downtime_ms": 1000}, mode="live", left=lambda: 3600, frozen_left=lambda: 30.0, freeze=told.append,
    )  # fmt: skip

    def wait(seconds: float) -> bool:
        each.sleep(seconds)
        return each.now >= arrives_at

    leaving = guest_source.Leaving.__new__(guest_source.Leaving)
    vars(leaving).update(
        move=move, name="web", survey=types.SimpleNamespace(needs={"address": ""}), live=True, _asked=None,
        _post_copy=False, _thread=types.SimpleNamespace(is_alive=lambda: True),
        _tunnel=types.SimpleNamespace(
            arrived=types.SimpleNamespace(wait=wait), lost=types.SimpleNamespace(is_set=lambda: False)
        ),
    )  # fmt: skip
    return leaving


def test_one_that_stands_still_and_does_not_arrive_goes_on(domain: t.Callable[..., Domain]) -> None:
    """However long the user lets the whole move take."""
    each = domain(1e9)
    each.state = lambda flags: [PAUSED, 1]  # type: ignore[method-assign]
    with pytest.raises(HostError, match="web stood still, and did not arrive in time"):
        watched(each, 1e9, [])._watch(each)
    assert 30 < each.now < 33


@pytest.mark.parametrize("arrives_at", [0.0, 1.0])
def test_the_target_holds_it_before_anything_is_decided(domain: t.Callable[..., Domain], arrives_at: float) -> None:
    """Once, be it that it was seen to stand still, or had arrived before that."""
    told: list[str] = []
    each = domain(1e9)
    each.state = lambda flags: [PAUSED, 1]  # type: ignore[method-assign]
    watched(each, arrives_at, told)._watch(each)
    assert told == ["switch", "hold"]


@pytest.mark.parametrize("answers_at", [1e9, 3.5])
def test_it_is_held_at_once_though_an_answer_is_on_its_way(
    domain: t.Callable[..., Domain], monkeypatch: pytest.MonkeyPatch, answers_at: float
) -> None:
    """The link is full of its memory when it comes to stand still."""
    each = domain(1e9)
    monkeypatch.setattr(each, "state", lambda flags: [PAUSED if each.now >= 4 else RUNNING, 1])
    monkeypatch.setattr(each, "jobStats", dict, raising=False)
    leaving = watched(each, 5, [])
    asked: list[float] = []
    held: list[tuple[str, float]] = []
    channel = types.SimpleNamespace(
        ask=lambda word, **more: asked.append(each.now),
        heard=lambda: each.now >= answers_at,
        call=lambda word, timeout_s: held.append((word, each.now)),
    )
    vars(leaving.move).update(channel=channel, freeze=lambda phase: held.append((phase, each.now)))
    monkeypatch.setattr(leaving, "_help", lambda *args: None)
    leaving._watch(each)
    assert [round(when, 1) for when in asked] == [3.0]
    assert [(word, round(when, 1)) for word, when in held] == [("switch", 4.0), ("hold", 4.0)]


class Question:
    """Who has an address; ``waited`` for an answer."""

    waited: list[float] = []

    def __init__(self, holder: t.Optional[str]) -> None:
        self._holder = holder

    def holder(self, timeout_s: float) -> t.Optional[str]:
        self.waited.append(timeout_s)
        return self._holder


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> str:
    """The MAC of who has the guest's address."""
    mac = "52:54:00:aa:aa:aa"
    monkeypatch.setattr(Question, "waited", [])
    monkeypatch.setattr(guest_preflight, "on_overlay", lambda name, needs: mac)
    monkeypatch.setattr(netns, "AddressQuestion", lambda spec, macs: Question(spec))
    monkeypatch.setattr(guest_source, "state_here", lambda name: guest_plan.PAUSED)
    return mac


def addressed(each: Domain, told: list[str]) -> guest_source.Leaving:
    """A move of a guest with an address on the overlay, that stands still."""
    each.state = lambda flags: [PAUSED, 1]  # type: ignore[method-assign]
    leaving = watched(each, 1.0, told)
    leaving.survey.needs.update(address="10.1.1.5", macs=[])
    return leaving


def test_one_whose_address_was_taken_meanwhile_is_kept(domain: t.Callable[..., Domain], taken: str) -> None:
    """Nobody waits for an answer while it stands still."""
    each = domain(1e9)
    leaving = addressed(each, [])
    leaving._watch(each)
    with pytest.raises(HostError, match=f"address: 10.1.1.5 was taken meanwhile: {taken} answers"):
        leaving.check_still()
    assert Question.waited == [0.0]


def test_with_post_copy_that_is_seen_while_it_can_go_on_here(domain: t.Callable[..., Domain], taken: str) -> None:
    told: list[str] = []
    leaving = addressed(domain(1e9), told)
    with pytest.raises(HostError, match=f"address: 10.1.1.5 was taken meanwhile: {taken} answers"):
        leaving._switch(t.cast("t.Any", None), migration.Pace(300))
    assert told == []
    assert Question.waited[0] > 0


def test_where_nobody_can_be_asked_for_an_address_it_moves(
    domain: t.Callable[..., Domain], monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    def fails(spec: object, macs: object) -> t.NoReturn:
        raise OSError("Network is down")

    monkeypatch.setattr(netns, "AddressQuestion", fails)
    each = domain(1e9)
    leaving = addressed(each, [])
    leaving._watch(each)
    leaving.check_still()


@pytest.mark.parametrize(
    ("state", "waits", "good"),
    [
        (guest_plan.PAUSED, True, True),
        (guest_plan.RUNNING, True, False),
        (guest_plan.STOPPED, True, False),
        (guest_plan.PAUSED, False, False),
    ],
)
def test_only_one_that_stands_still_is_given_away(
    domain: t.Callable[..., Domain], monkeypatch: pytest.MonkeyPatch, state: str, waits: bool, good: bool
) -> None:
    """Somebody may have resumed it, its QEMU have died, or libvirt's client (``waits``) have let it go on."""
    leaving = watched(domain(1e9), 1.0, [])
    leaving._thread = t.cast("t.Any", types.SimpleNamespace(is_alive=lambda: waits))
    monkeypatch.setattr(guest_source, "state_here", lambda name: state)
    with contextlib.nullcontext() if good else pytest.raises(HostError, match="web does not stand still"):
        leaving.check_still()


def test_a_daemon_that_was_started_anew_before_memory_is_copied_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, domain: t.Callable[..., Domain]
) -> None:
    """Of the connection to the old one is known only when it is used."""
    each = domain(0.0)
    broken = [libvirt.LibvirtError("Cannot write data: Broken pipe.", code=errors.SYSTEM_ERROR)]

    def known(connection: object, name: str) -> t.Any:
        if broken:
            raise broken.pop()
        return types.SimpleNamespace(domain=each)

    monkeypatch.setattr(libvirt, "connect", contextlib.nullcontext)
    monkeypatch.setattr(guest_preflight, "known", known)
    monkeypatch.setattr(guest_source, "Tunnel", lambda *args, **more: None)
    copied: list[t.Any] = []
    move = types.SimpleNamespace(
        channel=types.SimpleNamespace(peer="host2"), move_id="m1", phase=lambda name: None, left=lambda: 3600
    )
    leaving = types.SimpleNamespace(
        host=None, move=move, name="web", _post_copy=False, _migrate=lambda: None, _watch=copied.append
    )
    guest_source.Leaving._hold_live(t.cast("guest_source.Leaving", leaving))
    assert copied == [each]


class Stopped:
    """A guest that stands still for a move, or has ended. ``fails``: what goes wrong once."""

    def __init__(self, state: int, reason: int, fails: str = "") -> None:
        self.now = (state, reason)
        self.fails = fails
        self.calls: list[str] = []

    def state(self, flags: int) -> tuple[int, int]:
        return self.now

    def isActive(self) -> bool:
        return self.now[0] != SHUTOFF

    def jobInfo(self) -> list[int]:
        return [2 if self.now == (PAUSED, LIBRARY.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED) else 0]

    def name(self) -> str:
        return "web"

    def _do(self, what: str, state: int, reason: int) -> None:
        noted = files.read_json(paths.journal_file("web")) or {}
        self.calls.append(f"{what} {noted.get('state')} {'anew' if noted.get('anew') else ''}".strip())
        if self.fails == what:
            self.fails = ""
            raise fake_libvirt.FakeError(errors.CONFIG_UNSUPPORTED, "not now")
        self.now = (state, reason)

    def destroy(self) -> None:
        self._do("destroy", SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_DESTROYED)

    def create(self) -> None:
        self._do("create", RUNNING, 1)

    def resume(self) -> None:
        self._do("resume", RUNNING, 5)


@pytest.fixture
def roll_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., t.Optional[bool]]:
    """Roll a move of this guest back, as its journal has it, with ``more``."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(guest_source, "patiently", lambda work: work(None))
    monkeypatch.setattr(guest_source, "announce", lambda each: None)
    files.write_json(paths.journal_file("web"), JOURNAL)

    def back(each: Stopped, **more: t.Any) -> t.Optional[bool]:
        monkeypatch.setattr(libvirt, "domain", lambda connection, name: each)
        host = Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0))
        return guest_source.roll_back(host, {**(files.read_json(paths.journal_file("web")) or {}), **more})

    return back


def test_what_has_stopped_for_post_copy_is_started_anew(roll_back: t.Callable[[Stopped], t.Optional[bool]]) -> None:
    each = Stopped(PAUSED, LIBRARY.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    assert roll_back(each)
    assert each.calls == ["destroy frozen anew", "create begun anew"]
    assert files.read_json(paths.journal_file("web")) is None


def test_what_libvirt_has_lost_meanwhile_is_told(
    roll_back: t.Callable[..., t.Optional[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(One that somebody has only undefined, while it stands still, libvirt has as long as that runs.)"""
    with pytest.raises(HostError, match="does not know the guest 'web' any more"):
        roll_back(t.cast("t.Any", None))


def test_it_is_started_anew_by_the_next_that_tries(roll_back: t.Callable[[Stopped], t.Optional[bool]]) -> None:
    """It was turned off by us, not by its user."""
    each = Stopped(PAUSED, LIBRARY.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED, "create")
    with pytest.raises(CnvmError):
        roll_back(each)
    roll_back(each)
    assert each.calls[-1] == "create begun anew"


@pytest.mark.parametrize(
    ("state", "reason", "running", "calls", "anew"),
    [
        (PAUSED, 2, True, ["resume frozen"], False),
        (SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_DESTROYED, True, [], None),
        (SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_SHUTDOWN, True, [], None),
        (SHUTOFF, 3, True, ["create begun"], True),
        # It was off before.
        (SHUTOFF, 3, False, [], None),
    ],
)
def test_what_stood_still_goes_on_and_what_was_turned_off_stays_off(
    roll_back: t.Callable[..., t.Optional[bool]],
    state: int,
    reason: int,
    running: bool,
    calls: list[str],
    anew: t.Optional[bool],
) -> None:
    each = Stopped(state, reason)
    assert roll_back(each, running=running) is anew
    assert each.calls == calls


@pytest.mark.parametrize(
    ("state", "more", "calls"),
    [
        (PAUSED, {"ran": True, "shared": True}, ["destroy frozen anew", "create begun anew"]),
        # By who was cut off after that.
        (RUNNING, {"ran": True, "shared": True}, []),
        (PAUSED, {"ran": False, "shared": True}, ["resume frozen"]),
        (PAUSED, {"ran": True, "shared": False}, ["resume frozen"]),
    ],
)
def test_what_is_older_than_its_disks_does_not_go_on(
    roll_back: t.Callable[..., t.Optional[bool]], state: int, more: dict[str, bool], calls: list[str]
) -> None:
    """Its copy may have written to the disks that both hosts have: what it had in mind of them would ruin them."""
    each = Stopped(state, 2)
    assert roll_back(each, mode="live", **more) == ("create begun anew" in calls)
    assert each.calls == calls


def test_nor_does_libvirt_let_it_go_on(
    roll_back: t.Callable[..., t.Optional[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does when its client hears no answer any more."""
    each = Stopped(PAUSED, 2)
    leaving = object.__new__(guest_source.Leaving)
    journal = {**JOURNAL, "mode": "live", "ran": True, "shared": True}
    leaving.move = t.cast("t.Any", types.SimpleNamespace(journal=journal))
    leaving._tunnel = t.cast("t.Any", types.SimpleNamespace(close=lambda: each.calls.append("close")))
    leaving._thread, leaving._locks = None, contextlib.ExitStack()
    monkeypatch.setattr(libvirt, "domain", lambda connection, name: each)
    leaving.abandon()
    assert each.calls == ["destroy frozen anew", "close"]


@pytest.mark.parametrize(("lost", "answered"), [(False, True), (True, False), (False, False)])
def test_a_tunnel_that_is_lost_lets_nothing_go_on_once_the_target_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool, answered: bool
) -> None:
    """As the client hears no answer: it is ended before."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(guest_source, "patiently", lambda work: work(None))
    monkeypatch.setattr(guest_source, "_shared_owners", lambda each: {})
    each = Stopped(PAUSED, 2)
    monkeypatch.setattr(libvirt, "domain", lambda connection, name: each)
    leaving = object.__new__(guest_source.Leaving)
    leaving.name, leaving._stats, leaving._slowed, leaving._locks = "web", {}, {}, contextlib.ExitStack()

    def end(what: str) -> t.Callable[[], None]:
        return lambda: each.calls.append(what)

    leaving._tunnel = t.cast(
        "t.Any",
        types.SimpleNamespace(
            lost=types.SimpleNamespace(is_set=lambda: lost),
            answered=types.SimpleNamespace(wait=lambda timeout: answered),
            release=end("release"),
            close=end("close"),
        ),
    )
    leaving._thread = t.cast("t.Any", types.SimpleNamespace(join=lambda timeout: None))
    leaving.move = t.cast("t.Any", types.SimpleNamespace(result={}))
    leaving.leave()
    assert each.calls == [*([] if answered else ["destroy None"]), "release", "close"]


@pytest.mark.parametrize(("seen", "said"), [(20.0, 48.0), (61.3, 61.3)])
def test_it_stood_still_no_less_than_libvirt_says(seen: float, said: float) -> None:
    """Who looks from outside may be late."""
    leaving = guest_source.Leaving.__new__(guest_source.Leaving)
    move = types.SimpleNamespace(result={"frozen_ms": seen}, time=types.SimpleNamespace(bytes={}))
    tunnel = types.SimpleNamespace(
        lost=types.SimpleNamespace(is_set=lambda: False), answered=types.SimpleNamespace(wait=lambda timeout: True),
        release=lambda: None, close=lambda: None,
    )  # fmt: skip
    vars(leaving).update(
        move=move, _tunnel=tunnel, _thread=types.SimpleNamespace(join=lambda timeout: None), _slowed={},
        _stats={"downtime": 48}, _locks=contextlib.ExitStack(),
    )  # fmt: skip
    leaving.leave()
    assert move.result["frozen_ms"] == said


def test_all_that_is_sent_is_limited_and_counted(tmp_path: Path) -> None:
    """A template that the target fetches, a file that belongs to the guest, and the disk of one that does not run."""
    seed, disk = tmp_path / "seed.iso", tmp_path / "vda.qcow2"
    seed.write_bytes(b"x" * 5000)
    disk.write_bytes(b"x" * 7000)
    called: list[tuple[str, int]] = []
    seen = Timeline(time.monotonic)

    def call(op: str, *, timeout_s: float, mib_s: int = 0, bandwidth_mib_s: int = 0, **more: t.Any) -> None:
        called.append((op, mib_s or bandwidth_mib_s))
        if op == "template":
            more["progress"](3000)
        if op == "file":
            more["stream"](io.BytesIO())

    request = {"kind": "guest", "name": "web", "target": "host2", "timeout_s": 60, "bandwidth_mib_s": 50}
    move = mover.Move(t.cast("t.Any", None), request, "m1", lambda status: None)
    move.channel = t.cast("t.Any", types.SimpleNamespace(call=call))
    move.time = seen
    survey = types.SimpleNamespace(needs={"brought": [str(seed)]}, learnt={"templates": ["a" * 64]})
    leaving = guest_source.Leaving.__new__(guest_source.Leaving)
    vars(leaving).update(move=move, survey=survey)
    leaving.bring()
    leaving._send(str(disk), "disks")
    assert called == [("template", 50), ("prepare", 0), ("file", 50), ("file", 50)]
    assert seen.bytes == {"template": 3000, "files": 5000, "disks": 7000}


@pytest.fixture
def marked(tmp_path: Path) -> t.Callable[..., guest_source.Leaving]:
    """A move of a guest with disks on shared storage, in the test's directory and in this one below it."""

    def make(other: str, **more: t.Any) -> guest_source.Leaving:
        disks = [{"name": name, "path": str(tmp_path / name), "shared": True} for name in ("vda", "vdb", f"{other}/c")]
        disks.append({"name": "vdd", "path": str(tmp_path / "local/vdd"), "shared": False})
        move = types.SimpleNamespace(
            host=None, name="web", definition={}, mode="live", move_id="m1", journal={}, request={"connections": 1},
            phase=lambda name: None, left=lambda most: most,
            channel=types.SimpleNamespace(call=lambda op, **args: {}),
        )  # fmt: skip
        needs = {
            "disks": disks, "post_copy": False, "mark": "", "brought": [], "firmware": {}, "uefi": False, **more,
        }  # fmt: skip
        survey = types.SimpleNamespace(needs=needs, learnt={"templates": []})
        return guest_source.Leaving(t.cast("t.Any", move), t.cast("t.Any", survey))

    return make


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., guest_source.Leaving]:
    """A move of a guest that is off, with one disk. ``meanwhile``: what happens while that is sent."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(guest_source, "state_here", lambda name: guest_plan.STOPPED)
    disk = tmp_path / "vda.raw"
    disk.write_bytes(b"x" * 4096)

    def make(meanwhile: t.Callable[[Path], object] = lambda path: None) -> guest_source.Leaving:
        def call(word: str, **args: t.Any) -> dict[str, t.Any]:
            if word == "file":
                args["stream"](io.BytesIO())
                meanwhile(disk)
            return {}

        move = types.SimpleNamespace(
            host=None, name="web", definition={}, mode=migration.OFFLINE, move_id="m1", journal={},
            request={"connections": 1, "bandwidth_mib_s": 0}, freeze=lambda phase: None, left=lambda most: most,
            channel=types.SimpleNamespace(call=call, peer="host2"), progress=lambda kind: lambda count: None,
        )  # fmt: skip
        needs = {
            "disks": [{"name": "vda", "path": str(disk), "shared": False}], "post_copy": False, "brought": [],
            "firmware": {"/usr/share/OVMF/OVMF_CODE.fd": 4096}, "uefi": False,
        }  # fmt: skip
        return guest_source.Leaving(t.cast("t.Any", move), t.cast("t.Any", types.SimpleNamespace(needs=needs)))

    return make


def overwrite(path: Path) -> None:
    """As if it were long ago."""
    with open(path, "r+b") as file:
        file.write(b"y")
    os.utime(path, ns=(0, 0))


def exchange(path: Path) -> None:
    """What converts or repairs an image does this."""
    path.rename(f"{path}.old")
    path.write_bytes(b"x" * 4096)


@pytest.mark.parametrize("meanwhile", [overwrite, exchange, os.unlink])
def test_a_disk_that_was_changed_while_it_was_copied_does_not_move(
    stopped: t.Callable[..., guest_source.Leaving], meanwhile: t.Callable[[Path], object]
) -> None:
    """Of the copy nobody knows what it is, and the guest's disk would go with the move."""
    leaving = stopped(meanwhile)
    leaving.hold()
    with pytest.raises(HostError, match=r"vda\.raw is in use, or was changed while it was copied"):
        leaving.check_still()


def test_nor_does_one_that_somebody_has_open(
    stopped: t.Callable[..., guest_source.Leaving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has written so far may not be in the file yet."""
    leaving = stopped()
    leaving.hold()
    leaving.check_still()
    monkeypatch.setattr(disks, "in_use", lambda path: True)
    with pytest.raises(HostError, match="is in use"):
        leaving.check_still()
    leaving.abandon()
    with pytest.raises(HostError, match="is in use"):
        stopped().hold()


def test_nor_one_that_somebody_has_started(
    stopped: t.Callable[..., guest_source.Leaving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its disks are read, or by the time that they are there."""
    leaving = stopped()
    leaving.hold()
    monkeypatch.setattr(guest_source, "state_here", lambda name: guest_plan.RUNNING)
    with pytest.raises(HostError, match="web was started meanwhile"):
        leaving.check_still()
    leaving.abandon()
    with pytest.raises(HostError, match="web was started meanwhile"):
        stopped().hold()


@pytest.mark.parametrize("ends", [guest_source.Leaving.abandon, guest_source.Leaving.leave])
def test_no_module_works_on_a_disk_until_the_move_is_decided(
    tmp_path: Path,
    stopped: t.Callable[..., guest_source.Leaving],
    ends: t.Callable[[guest_source.Leaving], None],
) -> None:
    path = str(tmp_path / "vda.raw")
    leaving = stopped()
    with disks.at_work_on(path), pytest.raises(Refused, match="at work on it"):
        leaving.hold()
    leaving.hold()
    leaving.check_still()
    with pytest.raises(Refused, match="at work on it"), disks.at_work_on(path):
        pass
    leaving.move.journal["mode"] = migration.OFFLINE
    ends(leaving)
    with disks.at_work_on(path):
        pass


def test_the_variables_of_a_firmware_that_qemu_brings_are_noted(
    marked: t.Callable[..., guest_source.Leaving], stopped: t.Callable[[], guest_source.Leaving]
) -> None:
    """Those of a guest that is off come as a file."""
    for more in ({"firmware": {"/usr/share/OVMF/OVMF_CODE.fd": 4096}}, {"uefi": True}):
        assert marked("other", **more).move.journal["variables"] is True
    for leaving in (marked("other"), stopped()):
        assert leaving.move.journal["variables"] is False


def test_shared_storage_is_marked_until_the_target_has_seen_it(
    tmp_path: Path, marked: t.Callable[..., guest_source.Leaving]
) -> None:
    (tmp_path / "other").mkdir()
    leaving = marked("other")
    assert leaving.survey.needs["mark"] == ".cnvm-m1"
    # Not before the journal is written, by which it is removed in any case.
    assert list(tmp_path.rglob(".cnvm-*")) == []
    leaving.begin()
    assert sorted(tmp_path.rglob(".cnvm-*")) == [tmp_path / ".cnvm-m1", tmp_path / "other/.cnvm-m1"]
    assert leaving.move.journal["shared"]
    leaving.bring()
    assert list(tmp_path.rglob(".cnvm-*")) == []


def test_no_mark_stays(
    tmp_path: Path, marked: t.Callable[..., guest_source.Leaving], roll_back: t.Callable[..., t.Optional[bool]]
) -> None:
    """Of a move that fails before, nor of one that cannot begin."""
    (tmp_path / "other").mkdir()
    leaving = marked("other")
    leaving.begin()
    journal = leaving.move.journal
    roll_back(Stopped(RUNNING, 1), **journal, mode="live")
    assert list(tmp_path.rglob(".cnvm-*")) == []
    leaving = marked("none")
    with pytest.raises(HostError, match=r"none/\.cnvm-m1 cannot be made: No such file"):
        leaving.begin()
    roll_back(Stopped(RUNNING, 1), **{**JOURNAL, **leaving.move.journal})
    assert list(tmp_path.rglob(".cnvm-*")) == []


def test_storage_that_fails_does_not_keep_it_standing_still(
    monkeypatch: pytest.MonkeyPatch, roll_back: t.Callable[..., bool | None]
) -> None:
    remove = files.remove_file

    def stale(path: str, **more: t.Any) -> bool:
        if "/.cnvm-" in path:
            raise OSError(116, "Stale file handle", path)
        return remove(path, **more)

    monkeypatch.setattr(files, "remove_file", stale)
    each = Stopped(PAUSED, 2)
    assert roll_back(each, mode="live", marks=["/srv/nfs/.cnvm-m1"]) is False
    assert each.calls == ["resume frozen"]


def test_it_lets_go_of_all_but_the_owner_record_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("WORKLOADS", "RUN", "LOGS"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    monkeypatch.setattr(guest_source, "patiently", lambda work: None)
    owner, log, disk = Path(paths.owner_file("web")), Path(paths.guest_log("web")), tmp_path / "pool.qcow2"
    for path in (owner, Path(paths.definition_file("web")), Path(paths.journal_file("web")), log, disk):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    host = Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0))
    guest_source.let_go(host, {**JOURNAL, "moved": [str(disk)]})
    left = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([owner, Path(paths.move_log_dir("m1"), "web.log")])


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    """The journal of a move that has ended at the target. Beside the disk that went lies one that was taken away from
    the guest, and rests on another one."""
    for place in ("WORKLOADS", "RUN", "LOGS", "KEPT_DISKS"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    monkeypatch.setattr(guest_source, "patiently", lambda work: None)
    home = Path(paths.guest_disks_dir("web"))
    home.mkdir(parents=True)
    Path(paths.owner_file("web")).write_text("{}", encoding="utf-8")
    fake_domains.qcow2(home / "vda.qcow2", 2**20)
    fake_domains.qcow2(home / "base.qcow2", 2**20)
    fake_domains.qcow2(home / "vdb.qcow2", 2**20, f"{home}/base.qcow2", "qcow2")
    (home / ".cnvm-1.new").write_text("of a run that was killed", encoding="utf-8")
    return {**JOURNAL, "moved": [f"{home}/vda.qcow2"]}


def test_what_was_no_disk_of_it_is_kept(tmp_path: Path, gone: dict[str, t.Any]) -> None:
    """As it is when the guest is removed: its file may be the only one."""
    host = Host(run=fake_domains.run)
    kept = [f"{paths.KEPT_DISKS}/web/{name}.qcow2" for name in ("base", "vdb")]
    assert guest_source.let_go(host, gone) == kept
    assert disks.backing_path(disks.inspect(kept[1])) == kept[0]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [
        *map(Path, kept), Path(paths.owner_file("web"))
    ]  # fmt: skip


@pytest.mark.parametrize("killed_at", ["rename", "run", "remove_records", "end_journal"])
def test_what_is_kept_is_so_after_a_kill_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: dict[str, t.Any], killed_at: str
) -> None:
    """Whenever that was; and it is in one place, with nothing left of the first try."""

    def kill(*args: t.Any, **more: t.Any) -> t.NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        if killed_at == "rename":
            killed.setattr(os, "rename", kill)
        elif killed_at == "end_journal":
            killed.setattr(movedir, "end_journal", kill)
        elif killed_at == "remove_records":
            killed.setattr(guest_source, "remove_records", kill)
        with pytest.raises(KeyboardInterrupt):
            guest_source.let_go(Host(run=kill if killed_at == "run" else fake_domains.run), gone)
    guest_source.let_go(Host(run=fake_domains.run), gone)
    kept = [Path(paths.KEPT_DISKS, "web", f"{name}.qcow2") for name in ("base", "vdb")]
    assert disks.backing_path(disks.inspect(str(kept[1]))) == str(kept[0])
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [*kept, Path(paths.owner_file("web"))]


def test_a_disk_that_the_other_host_has_too_is_not_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt gives the disks of a guest back to root when it ends one."""
    done: list[t.Any] = []
    for name in ("shared", "local", "fixed"):
        (tmp_path / name).write_text("x")
    disks = {
        name: {"path": str(tmp_path / name), "read_only": name == "fixed"} for name in ("shared", "local", "fixed", "-")
    }
    monkeypatch.setattr(domains, "model_of", lambda each: {"disks": disks})
    monkeypatch.setattr(guest_preflight, "on_shared_storage", lambda path: os.stat(path) and "local" not in path)
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(os, "chown", lambda *args: done.append(args))
    each = types.SimpleNamespace(
        name=lambda: "web", isActive=lambda: True, isPersistent=lambda: False, destroy=lambda: done.append("destroy")
    )
    guest_source.remove_domain(t.cast("t.Any", each))
    status = os.stat(tmp_path / "shared")
    assert done == ["destroy", (str(tmp_path / "shared"), status.st_uid, status.st_gid)]


@pytest.mark.parametrize(
    ("state", "reason", "answer", "serves"),
    [
        (PAUSED, 11, {"status": "postcopy-active"}, True),
        (PAUSED, 12, {"status": "postcopy-active"}, True),
        (PAUSED, 11, {"status": "completed"}, True),
        (PAUSED, 11, None, True),
        (PAUSED, 12, {"status": "postcopy-paused"}, False),
        (PAUSED, 2, {"status": "completed"}, False),
        (SHUTOFF, 4, None, False),
    ],
)
def test_who_still_sends(monkeypatch: pytest.MonkeyPatch, state: int, reason: int, answer: t.Any, serves: bool) -> None:
    """One that cannot be asked may still send: the target's copy is not given up for that."""
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(libvirt, "connect", contextlib.nullcontext)
    monkeypatch.setattr(libvirt, "domain", lambda connection, name: Stopped(state, reason))
    monkeypatch.setattr(guest_source, "_ask_qemu", lambda each, word, arguments: answer)
    assert guest_source.serves(JOURNAL) is serves


@pytest.mark.parametrize(
    ("lost", "said", "libvirts", "kind", "message"),
    [
        (True, "It was not announced.", True, PeerError, "libvirt on host2 was lost: It was not announced."),
        (True, "", True, PeerError, "libvirt on host2 was lost."),
        # A banner of the target's sshd, which has nothing to do with it.
        (False, "Authorised use only", True, HostError, "No space left."),
        (False, "", False, HostError, "without a word"),
    ],
)
def test_why_it_ended(lost: bool, said: str, libvirts: bool, kind: type[CnvmError], message: str) -> None:
    leaving = object.__new__(guest_source.Leaving)
    leaving.name = "web"
    leaving.move = t.cast("t.Any", types.SimpleNamespace(channel=types.SimpleNamespace(peer="host2")))
    leaving._error = HostError("No space left.") if libvirts else None
    tunnel = types.SimpleNamespace(lost=types.SimpleNamespace(is_set=lambda: lost), last_words=lambda: said)
    error = leaving._why(t.cast("t.Any", tunnel))
    assert isinstance(error, kind)
    assert message in error.message


@pytest.mark.parametrize(
    ("said", "dead", "looks", "anew"),
    [
        # Its source is dead, and libvirt there has given it up: that is known soon.
        ("failed", True, 3, True),
        # It has sent all before it died.
        ("failed failed drained", True, 3, False),
        ("fetches drained", True, 2, False),
        # Said of what it was before a moment ago.
        ("failed failed fetches failed failed drained", True, 6, False),
        # libvirt's daemon was started anew: on the target, where QEMU goes on; here, where it knows no guest for a
        # moment; and both.
        ("failed", False, 21, True),
        ("failed failed failed failed drained", False, 5, False),
        ("fetches", True, 21, True),
        # A target that does not know the word.
        ("", True, 21, True),
        # It died there, too.
        ("failed gone", True, 2, True),
    ],
)
def test_a_drain_whose_source_is_silent(
    monkeypatch: pytest.MonkeyPatch, said: str, dead: bool, looks: int, anew: bool
) -> None:
    now, asked = 0.0, 0
    answers = said.split() or [""]

    def call(word: str, **more: t.Any) -> dict[str, t.Any]:
        nonlocal now, asked
        if word == "anew":
            return {"anew": True}
        if more["limit_s"] < 1:
            return {"ended": False, "drained": False}
        now, asked = now + more["limit_s"], asked + 1
        answer = answers[min(asked, len(answers)) - 1]
        found = {"ended": answer in ("drained", "gone"), "drained": answer == "drained"}
        return {**found, "failed": answer == "failed"} if answer else found

    leaving = object.__new__(guest_source.Leaving)
    leaving.name = "web"
    channel = types.SimpleNamespace(call=call)
    leaving.move = t.cast("t.Any", types.SimpleNamespace(channel=channel, journal=JOURNAL, result={}))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(guest_source, "serves", lambda journal: False)
    monkeypatch.setattr(guest_source, "_exit_of", lambda name: contextlib.nullcontext(lambda: dead))
    leaving.drain()
    assert (asked, "lost" in leaving.move.result) == (looks, anew)


def test_whether_qemu_has_ended_is_seen_by_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_source, "_PID_FILE", f"{tmp_path}/{{}}.pid")
    with guest_source._exit_of("web") as dead:
        # Nobody knows which it was.
        assert not dead()
    with subprocess.Popen(["sleep", "60"]) as process:
        (tmp_path / "web.pid").write_text(str(process.pid))
        with guest_source._exit_of("web") as dead:
            (tmp_path / "web.pid").unlink()
            assert not dead()
            process.kill()
            process.wait()
            assert dead()
    (tmp_path / "web.pid").write_text(str(process.pid))
    with guest_source._exit_of("web") as dead:
        # It had ended before: whether what ran then was this guest's is not known.
        assert not dead()
