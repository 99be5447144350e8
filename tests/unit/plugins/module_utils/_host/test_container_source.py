# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How memory and files are copied while the container runs, and what is done when that fails or does not end."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import os
import tarfile
import tempfile
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    container_parts,
    container_processes,
    container_source,
    container_units,
    criu,
    files,
    freezer,
    kinds,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan, records
from ansible_collections.cnvm.platform.plugins.module_utils._migrate.timeline import Timeline

WORK = plan.Workload("web", "runc", True, 2**30, 0, 0)
MADE = plan.Plan(plan.PRE_COPY, ("both hosts track dirty memory",), (), (), 1159)
RATE = 125e6
MANY, FEW = 5000, 100  # pages: another round pays, or does not


class Sides:
    """A source whose runtime copies so many ``pages`` in each round, until there are no more, and a target.

    ``sent``: what came to the target, by part.
    """

    def __init__(self, pages: t.Sequence[int]) -> None:
        self.pages = list(pages)
        self.copied = 0
        self.argvs: list[t.Sequence[str]] = []
        self.sent: dict[str, list[str]] = {}

    def run(self, argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        self.argvs.append(argv)
        assert "--pre-dump" in argv
        if not self.pages:
            work = Path(argv[argv.index("--work-path") + 1])
            (work / "dump.log").write_text("(00.012) Error (criu/mem.c:1): Can't dump page with parasite\n")
            return CommandResult(tuple(argv), 1)
        self.copied = self.pages.pop(0)
        (Path(argv[argv.index("--image-path") + 1]) / "pages-1.img").write_text("memory")
        return CommandResult(tuple(argv), 0)

    def call(self, word: str, *, part: str, stream: t.Callable[[t.BinaryIO], None], **more: t.Any) -> dict[str, t.Any]:
        assert word == "images"
        came = io.BytesIO()
        stream(came)
        came.seek(0)
        with tarfile.open(fileobj=came) as archive:
            self.sent[part] = [name for name in archive.getnames() if name.endswith(".img")]
        return {}

    def parents(self) -> list[str]:
        """What each round says that it builds on."""
        return [argv[argv.index("--parent-path") + 1] if "--parent-path" in argv else "" for argv in self.argvs]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(container_parts, "runtime_command", lambda definition: ["runc"])
    monkeypatch.setattr(container_processes, "criu_lines", lambda definition: ('irmap-scan-path "/app"',))
    os.makedirs(f"{paths.move_dir('m1')}/work")


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., container_source.Leaving]:
    """One move, which has come to the point where memory is copied."""

    def make(sides: Sides, **request: t.Any) -> container_source.Leaving:
        monkeypatch.setattr(criu, "statistics", lambda directory: {"pages_written": sides.copied})
        move = types.SimpleNamespace(
            host=Host(run=t.cast("t.Any", sides.run)), name="web", definition={"name": "web"}, move_id="m1",
            mode=plan.PRE_COPY, request={"mode": "auto", "max_downtime_ms": 0, **request}, channel=sides,
            result={"plan": MADE.as_result(), "mode": plan.PRE_COPY}, phase=lambda name: None,
            left=lambda most=3600.0: most, progress=lambda kind: lambda count: None,
        )  # fmt: skip
        survey = kinds.Survey(MADE, True, {}, {}, {"work": WORK, "image": True, "rate": RATE})
        made = container_source.Leaving(t.cast("t.Any", move), survey)
        made.flags = {"dump": [], "restore": []}
        return made

    return make


Leave = t.Callable[..., container_source.Leaving]


@pytest.mark.parametrize(
    ("pages", "rounds"), [([FEW], 1), ([MANY, FEW, FEW], 2), ([MANY, MANY, MANY, MANY], 3)], ids=["1", "2", "most"]
)
def test_each_round_builds_on_the_one_before(leave: Leave, pages: list[int], rounds: int) -> None:
    sides = Sides(pages)
    leaving = leave(sides)
    assert leaving._pre_copy_or_fall_back() == f"../pre{rounds}"
    assert sides.parents() == ["", "../pre1", "../pre2"][:rounds]
    assert 'irmap-scan-path "/app"' in Path(container_parts.criu_config_file("web")).read_text().splitlines()
    assert sides.sent == {f"pre{number}": ["pages-1.img"] for number in range(1, rounds + 1)}
    assert leaving.move.result == {"plan": MADE.as_result(), "mode": plan.PRE_COPY}


@pytest.mark.parametrize("pages", [[], [MANY]], ids=["at once", "in the second round"])
def test_when_it_fails_auto_goes_on_with_stop_and_copy(leave: Leave, pages: list[int]) -> None:
    leaving = leave(Sides(pages), max_downtime_ms=60_000)
    assert leaving._pre_copy_or_fall_back() == ""
    expected = plan.expected_frozen_ms(plan.STOP_COPY, WORK, RATE)
    assert (leaving.move.mode, leaving.move.result["mode"]) == (plan.STOP_COPY, plan.STOP_COPY)
    said = leaving.move.result["plan"]
    assert (said["mode"], said["expected_frozen_ms"]) == (plan.STOP_COPY, expected)
    assert said["reasons"][0] == MADE.reasons[0]
    assert said["reasons"][1].startswith("pre-copy failed before anything was frozen: Memory of web cannot be copied:")
    assert "Can't dump page with parasite" in said["reasons"][1]


@pytest.mark.parametrize(
    "more", [{"mode": plan.PRE_COPY}, {"max_downtime_ms": 2000}], ids=["named", "would stand still for too long"]
)
def test_when_stop_and_copy_is_not_wanted_it_fails(leave: Leave, more: dict[str, t.Any]) -> None:
    leaving = leave(Sides([]), **more)
    with pytest.raises(HostError, match="Memory of web cannot be copied") as caught:
        leaving._pre_copy_or_fall_back()
    assert leaving.move.result == {"plan": MADE.as_result(), "mode": plan.PRE_COPY}
    assert "Can't dump page with parasite" in leaving.said(caught.value)["criu_error"]
    assert caught.value.details["log"] == f"{paths.move_dir('m1')}/work/dump.log"


def test_without_the_target_nothing_goes_on(leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = Sides([FEW])

    def lost(*args: t.Any, **more: t.Any) -> t.NoReturn:
        raise PeerError("host2 does not answer.")

    monkeypatch.setattr(sides, "call", lost)
    with pytest.raises(PeerError):
        leave(sides)._pre_copy_or_fall_back()


class Layer:
    """A layer on a disk, and what is sent of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: str) -> None:
        monkeypatch.setattr(paths, "WORKLOADS", directory)
        self.root = Path(paths.upper_dir("web"))
        self.root.mkdir(parents=True)
        self.sent: list[bytes] = []
        self.while_sending: t.Callable[[], object] = lambda: None
        now_ns = time.time_ns
        # So nothing is sent again because it was changed just now.
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10**10)

    def call(self, word: str, *, stream: t.Callable[[t.BinaryIO], None], **more: t.Any) -> dict[str, t.Any]:
        came = io.BytesIO()
        stream(came)
        self.sent.append(came.getvalue())
        self.while_sending()
        return {}

    def run(self, argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        assert list(argv) == ["sync", "-f", str(self.root)]
        os.sync()
        return CommandResult(tuple(argv), 0)

    def leaving(self, max_downtime_ms: int = 0) -> container_source.Leaving:
        timeline = Timeline(time.monotonic)
        move = types.SimpleNamespace(
            host=Host(run=self.run), name="web", definition={"name": "web"}, mode=plan.STOP_COPY, channel=self,
            left=lambda: 60, progress=lambda kind: functools.partial(timeline.add_bytes, kind), time=timeline,
            request={"max_downtime_ms": max_downtime_ms}, result={"plan": MADE.as_result()},
        )  # fmt: skip
        survey = kinds.Survey(MADE, True, {}, {}, {"work": WORK, "image": True, "rate": RATE})
        return container_source.Leaving(t.cast("t.Any", move), survey)


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Layer]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Layer(monkeypatch, directory)


def test_a_store_into_a_mapped_file_is_not_lost(layer: Layer) -> None:
    """Only the first store into a clean page touches the time: another one may come between two looks."""
    file = layer.root / "file"
    file.write_bytes(bytes(8192))
    leaving = layer.leaving()
    with open(file, "r+b") as handle, mmap.mmap(handle.fileno(), 8192) as mapped:
        for number in (1, 2, 3):
            mapped[number] = number
            leaving._sync_layer(running=number < 3)
            time.sleep(0.02)  # longer than the clock of files ticks
    assert bytes([0, 1, 2, 3]) in layer.sent[-1]


@pytest.mark.parametrize(
    ("kind", "journal", "asked"),
    [
        ("container", {}, ["keep"]),
        ("guest", {}, []),
        ("guest", {"variables": False}, []),
        ("guest", {"variables": True}, ["keep"]),
    ],
)
def test_whether_the_target_is_asked_for_what_is_on_its_disk(
    kind: str, journal: dict[str, t.Any], asked: list[str]
) -> None:
    """What came of a guest without UEFI is there: no link is needed to let it go."""
    calls: list[str] = []
    channel = types.SimpleNamespace(call=lambda word, timeout_s: calls.append(word))
    kinds.source(kind).secure(t.cast("t.Any", channel), journal)
    assert calls == asked


@pytest.mark.parametrize("wanted", [True, False], ids=["runs", "has ended by itself"])
def test_a_cold_move_starts_only_what_it_has_stopped(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[t.Sequence[str]] = []
    arrived: list[bool] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        # What has stopped it is noted before: this process may end at any time.
        assert (move.journal["anew"], move.phases) == (True, ["stop"])
        ran.append(argv)
        return CommandResult(tuple(argv), 0)

    move = types.SimpleNamespace(
        host=Host(run=run), name="web", definition={"name": "web"}, mode=plan.COLD, journal={"running": True},
        phases=[], left=lambda most=3600.0: most, phase=lambda name: None,
        channel=types.SimpleNamespace(call=lambda word, running, timeout_s: arrived.append(running)),
    )  # fmt: skip
    move.freeze = move.phases.append
    monkeypatch.setattr(container_units, "is_wanted", lambda host, journal: wanted)
    leaving = container_source.Leaving(
        t.cast("t.Any", move), kinds.Survey(MADE, True, {}, {}, {"work": WORK, "image": True, "rate": RATE})
    )
    for name in ("_settle_layer", "_sync_layer"):
        monkeypatch.setattr(leaving, name, lambda: None)
    leaving.hold()
    assert (move.journal["running"], arrived) == (wanted, [wanted])
    assert [argv[:2] for argv in ran] == [["systemctl", "stop"]][: int(wanted)]


@pytest.mark.parametrize(
    ("running", "populated", "again", "anew"),
    [(True, True, False, False), (True, False, True, True), (True, False, False, None), (False, False, False, None)],
    ids=["stands still", "had died", "had ended by itself", "did not run"],
)
def test_what_is_rolled_back_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: bool, populated: bool, again: bool, anew: bool | None
) -> None:
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    owner = records.owner_record("web", "u", "S", "host1", 3)
    journal = records.journal("source", records.SOURCE_FROZEN, "m1", owner, "host2", "T", plan.STOP_COPY, "b")
    files.write_json(paths.definition_file("web"), {"name": "web"})

    def start_again(host: Host, journal: dict[str, t.Any]) -> bool:
        # Its unit must not be turned away any more.
        assert (files.read_json(paths.journal_file("web")) or {})["state"] == records.SOURCE_BEGUN
        return again

    monkeypatch.setattr(container_units, "start_again", start_again)
    monkeypatch.setattr(freezer, "populated", lambda cgroup: populated)
    monkeypatch.setattr(container_source, "thaw", lambda *args: None)
    host = Host(run=lambda argv, **more: CommandResult(tuple(argv), 0))
    assert container_source.roll_back(host, {**journal, "running": running}) is anew
    assert not os.path.exists(paths.journal_file("web"))


def test_cpu_quotas_do_not_slow_down_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works in the container's own processes while they stand still. They have their quota when they go on."""
    monkeypatch.setattr(container_parts, "CGROUP_ROOT", str(tmp_path))
    group = tmp_path / paths.payload_cgroup("web").lstrip("/")
    group.mkdir(parents=True)
    definition = {"name": "web", "cpus": 0.1, "pids_limit": 20, "memory_mib": None}
    for file in ("cpu.max", "pids.max", "cgroup.procs"):
        (group / file).write_text("")
    quotas: list[str] = []

    def note(*args: t.Any) -> None:
        quotas.append((group / "cpu.max").read_text())

    container_parts.apply_limits(definition)
    monkeypatch.setattr(freezer, "freeze", note)
    monkeypatch.setattr(freezer, "thaw", note)
    for name in ("kill_for", "unlock_network", "leave_repair"):
        monkeypatch.setattr(criu, name, lambda *args: None)
    container_source.freeze(Host(run=t.cast("t.Any", None)), definition, 1)
    assert [(group / file).read_text() for file in ("cpu.max", "pids.max")] == ["max 100000", "20"]
    container_source.thaw(Host(run=t.cast("t.Any", None)), definition, "m1")
    assert quotas == ["10000 100000"] * 3


@pytest.mark.parametrize("came", [True, False])
def test_a_page_server_that_has_ended_is_no_failure_while_the_target_is_about_to_say_that_it_has_all(
    leave: Leave, monkeypatch: pytest.MonkeyPatch, came: bool
) -> None:
    """Its last page was fetched, and after the target had been asked."""
    leaving = leave(Sides([]))
    asked: list[float] = []
    clock = iter(range(0, 1000, 10))

    def call(word: str, *, timeout_s: float, limit_s: float) -> dict[str, bool]:
        assert limit_s < timeout_s
        asked.append(limit_s)
        return {"ended": came and limit_s > 1, "drained": came and limit_s > 1}

    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(criu, "lazy_pages", lambda directory: 0)
    move = t.cast("t.Any", leaving.move)
    move.channel = types.SimpleNamespace(call=call)
    move.tell, move.time = lambda: None, Timeline(time.monotonic)
    # It ends just after the first question.
    serving = types.SimpleNamespace(running=lambda: not asked, wait=lambda timeout_s: None, served=lambda: 0)
    leaving.dump = t.cast("t.Any", serving)
    with contextlib.nullcontext() if came else pytest.raises(HostError, match="ended before the target had all"):
        leaving.drain()
    assert asked == [0.5, 20]


def test_while_it_drains_it_is_told_how_much_has_come(leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's word on the page server's connection, which ends a little before the rest is known."""
    leaving = leave(Sides([]))
    seen = iter(["\t cubic bytes_sent:9000 bytes_acked:4000 rto:204\n", "\t cubic bytes_acked:8193 lastsnd:4\n", ""])
    asked: list[t.Sequence[str]] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        asked.append(argv)
        return CommandResult((*argv,), 0, next(seen))

    host = Host(run=t.cast("t.Any", run), popen=t.cast("t.Any", lambda *args, **more: types.SimpleNamespace()))
    dump = container_source.Dump(host, {"name": "web", "runtime": "runc"}, "m1", (), page_server="10.0.0.1:40000")
    monkeypatch.setattr(dump, "running", lambda: True)
    monkeypatch.setattr(dump, "wait", lambda timeout_s: None)
    monkeypatch.setattr(criu, "lazy_pages", lambda directory: 2)
    answers = iter([False, False, True])
    told: list[int] = []
    move = t.cast("t.Any", leaving.move)
    move.time = Timeline(time.monotonic)
    move.tell = lambda: told.append(move.time.bytes["pages"])
    move.channel = types.SimpleNamespace(call=lambda word, **more: {"ended": next(answers), "drained": True})
    leaving.dump = dump
    # However long that takes.
    move.left = None
    leaving.drain()
    assert (told, move.time.bytes) == ([4000, 8193, 8193], {"pages": 2 * mmap.PAGESIZE})
    assert all(argv[-1] == "10.0.0.1:40000" for argv in asked)


def test_a_drain_in_which_nothing_comes_has_failed(leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would notice that one side hangs."""
    leaving = leave(Sides([]))
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    # Where that is not known there is no reason to give up.
    arrived = iter([1, 2, 3, None, None, None, None, 8])
    serving = types.SimpleNamespace(running=lambda: True, served=lambda: next(arrived, 8))
    leaving.dump = t.cast("t.Any", serving)
    move = t.cast("t.Any", leaving.move)
    move.time, move.tell = Timeline(lambda: 0.0), lambda: None
    move.channel = types.SimpleNamespace(call=lambda word, **more: {"ended": False})
    with pytest.raises(HostError, match="No page has come to the target for 120 s"):
        leaving.drain()
    assert move.time.bytes == {"pages": 8}


@pytest.fixture
def busy(layer: Layer) -> Layer:
    """A layer with a file of 50 MB of which a byte changes all the time."""
    file = layer.root / "db/base"
    file.parent.mkdir()
    file.write_bytes(b"x" * 50_000_000)

    def write() -> None:
        time.sleep(0.02)
        with open(file, "r+b") as handle:
            handle.write(str(len(layer.sent)).encode())

    layer.while_sending = write
    return layer


def test_a_file_that_changes_all_the_time_counts_as_sent_while_it_stands_still(busy: Layer) -> None:
    leaving = busy.leaving()
    leaving._settle_layer()
    more = leaving.move.result["plan"]["expected_frozen_ms"] - MADE.expected_frozen_ms
    assert more == pytest.approx(50_000_000 / RATE * 1000, abs=1)
    assert len(busy.sent) == 1  # another round would leave as much


def test_a_round_pays_while_it_leaves_less(layer: Layer) -> None:
    left = [40, 10, 1, 0]
    (layer.root / "file").write_bytes(b"x" * (100 << 20))

    def write() -> None:
        time.sleep(0.02)
        size = left.pop(0)
        (layer.root / f"{size}").write_bytes(b"x" * (size << 19))

    layer.while_sending = write
    assert layer.leaving()._sync_layer_while_running() == ["1"]
    assert len(layer.sent) == 3


def test_a_file_that_changes_all_the_time_is_refused_where_it_would_take_too_long(busy: Layer) -> None:
    limit = MADE.expected_frozen_ms + 100
    with pytest.raises(
        HostError, match=r"47 MiB of its files change .* \(the largest is /db/base\); max_downtime_ms is"
    ):
        busy.leaving(max_downtime_ms=limit)._settle_layer()
    busy.while_sending = lambda: None
    leaving = busy.leaving(max_downtime_ms=limit)
    leaving._settle_layer()
    assert leaving.move.result["plan"] == MADE.as_result()
