# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the way of a container's move."""

from __future__ import annotations

import types
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    container_parts,
    container_preflight,
    container_units,
    info,
    kinds,
    movedir,
    ownership,
    peers,
    preflight,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan

HOST = Host(run=t.cast("t.Any", lambda *args, **kwargs: pytest.fail(f"ran {args}")))
FACTS = {
    "cpu": {"architecture": "x86_64", "flags": []},
    "kernel": "6.12",
    "criu": {"version": "4.2", "features": {"mem_dirty_track": True, "uffd-noncoop": True}},
    "runtimes": {"runc": {"version": "1.3.6", "checkpoint": True}},
    "cgroup": {"version": 2, "controllers": []},
}
MIB = 2**20


def test_directories_of_the_host_tie_a_container_to_it() -> None:
    mounts = [
        {"type": "bind", "source": "/srv/data", "destination": "/data"},
        {"type": "tmpfs", "destination": "/scratch"},
    ]
    assert container_preflight.ties({"name": "web"}) == ()
    (found,) = container_preflight.ties({"name": "web", "mounts": mounts})
    assert found.startswith("web has /data mounted from /srv/data of its host, which would stay behind.")


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., kinds.Survey]:
    """What is seen of a move of 100 MiB, with so many MiB of memory available on the source."""

    def made(
        mode: str, available: int, running: bool = True, unit: str = "active", shared: int = 0, tmpfs: int = 0,
        encryption: str = "wireguard",
    ) -> kinds.Survey:  # fmt: skip
        work = plan.Workload("web", "runc", running, 100 * MIB, 0, 0, shared * MIB, tmpfs * MIB)
        monkeypatch.setattr(container_parts, "init_pid", lambda definition: int(running))
        monkeypatch.setattr(container_units, "states", lambda host, names: {"web": {"ActiveState": unit}})
        monkeypatch.setattr(container_preflight, "workload", lambda definition, running: work)
        monkeypatch.setattr(preflight, "ask", lambda channel, kind: {"info": FACTS, "identity": {}})
        monkeypatch.setattr(preflight, "rate", lambda channel: 125e6)
        monkeypatch.setattr(peers, "overlay", lambda: {"encryption": encryption})
        monkeypatch.setattr(ownership, "host_identity", lambda: {"name": "host1"})
        monkeypatch.setattr(info, "gather", lambda host: FACTS)
        monkeypatch.setattr(movedir, "available_memory", lambda: available * MIB)
        request = {"mode": mode, "allow_post_copy": True, "max_downtime_ms": 0, "cpu_check": "flags"}
        answer = {"image": True, "problems": ["space: host2 is full."], "space": []}
        channel = types.SimpleNamespace(peer="host2", call=lambda word, **args: answer)
        return container_preflight.survey(HOST, t.cast("t.Any", channel), {"name": "web"}, {}, request)

    return made


@pytest.mark.parametrize(("mode", "written"), [(plan.STOP_COPY, 100), (plan.PRE_COPY, 200), ("auto", 200)])
def test_the_source_must_have_memory_for_the_checkpoint(
    survey: t.Callable[..., kinds.Survey], mode: str, written: int
) -> None:
    enough = written * 6 // 5
    assert survey(mode, enough).plan.blockers == ("space: host2 is full.",)
    assert survey(mode, enough - 1).plan.blockers == (
        f"memory: host1 has {enough - 1} MiB available; {written} MiB and a fifth more are needed.",
        "space: host2 is full.",
    )


@pytest.mark.parametrize(("mode", "running"), [(plan.COLD, True), (plan.POST_COPY, True), (plan.PRE_COPY, False)])
def test_what_writes_no_memory_needs_none(survey: t.Callable[..., kinds.Survey], mode: str, running: bool) -> None:
    assert survey(mode, 0, running).plan.blockers == ("space: host2 is full.",)


@pytest.mark.parametrize(("unit", "running"), [("activating", True), ("inactive", False)])
def test_what_is_between_two_tries_is_to_run_after_the_move(
    survey: t.Callable[..., kinds.Survey], unit: str, running: bool
) -> None:
    seen = survey("auto", 1000, running=False, unit=unit)
    assert (seen.plan.mode, seen.running) == (plan.COLD, running)


@pytest.mark.parametrize(("mode", "written"), [(plan.STOP_COPY, 160), (plan.PRE_COPY, 410), (plan.POST_COPY, 60)])
def test_shared_memory_and_tmpfs_are_written_in_each_mode(
    survey: t.Callable[..., kinds.Survey], mode: str, written: int
) -> None:
    """Shared memory anew in each round of a pre-copy."""
    enough = written * 6 // 5
    assert survey(mode, enough, shared=50, tmpfs=10).plan.blockers == ("space: host2 is full.",)
    assert f"{written} MiB and a fifth more" in survey(mode, enough - 1, shared=50, tmpfs=10).plan.blockers[0]


@pytest.mark.parametrize(
    ("mode", "running", "memory", "images"),
    [
        (plan.STOP_COPY, True, 160, 160),
        (plan.POST_COPY, True, 160, 60),
        (plan.COLD, True, 0, 0),
        (plan.STOP_COPY, False, 0, 0),
    ],
)
def test_what_the_target_needs(mode: str, running: bool, memory: int, images: int) -> None:
    work = plan.Workload("web", "runc", running, 100, 7, 9, 50, 10)
    assert container_preflight.checkpoint_sizes(work, mode) == {
        "layer": 7, "image": 9, "memory": memory, "images": images,
    }  # fmt: skip


def test_a_side_has_what_a_plan_compares() -> None:
    facts = {
        "cpu": {"architecture": "x86_64", "flags": ["sse", "avx"], "signal_frame_bytes": 3632},
        "kernel": "6.12.1",
        "criu": {"version": "4.2.1", "features": {"uffd-noncoop": True, "mem_dirty_track": False}},
        "runtimes": {},
        "cgroup": {"version": 2, "controllers": ["memory"]},
    }
    side = container_preflight.side("host1", facts)
    assert side.signal_frame == 3632
    assert set(side.cpu_flags) == {"sse", "avx"}
    assert set(side.criu_features) == {"uffd-noncoop"}


@pytest.mark.parametrize("mode", ["post_copy", "stop_copy"])
@pytest.mark.parametrize("encryption", ["wireguard", "none"])
def test_memory_that_goes_in_the_clear_is_told(
    survey: t.Callable[..., kinds.Survey], mode: str, encryption: str
) -> None:
    """What is sent by SSH does not."""
    told = any("in the clear" in one for one in survey(mode, 200, encryption=encryption).plan.warnings)
    assert told is (mode == "post_copy" and encryption == "none")
