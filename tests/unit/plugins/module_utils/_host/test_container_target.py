# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the target of a move does that needs no container: FIFOs, owner records, promises."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CnvmError,
    HostError,
    InputError,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    archive,
    container_parts,
    container_target,
    container_units,
    files,
    handover,
    images,
    kinds,
    movedir,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import records
from ansible_collections.cnvm.platform.plugins.module_utils._oci.users import Account

OWNER = records.owner_record("web", "u", "S", "host1", 3)
JOURNAL = records.journal("target", records.TARGET_PREPARED, "m1", OWNER, "host1", "S", "stop_copy", "b")
HOST = Host(run=t.cast("t.Any", lambda *args, **kwargs: pytest.fail(f"ran {args}")))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "WORKLOADS", f"{tmp_path}/containers")
    monkeypatch.setattr(paths, "RUN", f"{tmp_path}/run")
    monkeypatch.setattr(paths, "IMAGES", f"{tmp_path}/images")
    monkeypatch.setattr(paths, "HOST_FILE", f"{tmp_path}/host.json")
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    files.write_json(paths.journal_file("web"), JOURNAL)
    files.write_json(paths.definition_file("web"), {"name": "web", "image": "a" * 64})
    return tmp_path


def owner() -> t.Any:
    return files.read_json(paths.owner_file("web"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_memory_and_images_have_no_limit_of_their_own(tmp_path: Path) -> None:
    """A container with more than 64 GiB of memory would fail to move when it stands still."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "pages-1.img").open("wb") as file:
        file.truncate(65 << 30)
    packed = io.BytesIO()
    archive.pack(str(source), packed)
    packed.seek(0)
    assert container_target.receive_images("m1", "images", packed) == 65 << 30
    packed.seek(0)
    # Unpacked, but it is no image.
    with pytest.raises(FileNotFoundError, match="rootfs"):
        container_target.receive_image({"digest": "a" * 64}, "", packed)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_image_that_is_another_one_is_not_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "IMAGES", f"{state}/images")
    (state / "source/rootfs").mkdir(parents=True)
    packed = io.BytesIO()
    archive.pack(f"{state}/source", packed)
    packed.seek(0)
    with pytest.raises(InputError, match="The image has the digest"):
        container_target.receive_image({"digest": "a" * 64}, "debian", packed)
    assert (os.listdir(f"{state}/images"), os.listdir(f"{state}/images/building")) == (["building"], [])


def test_tell_waits_for_a_reader(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    heard: list[str] = []

    def listen() -> None:
        time.sleep(0.05)
        heard.append(fifo.read_text())

    listener = threading.Thread(target=listen)
    listener.start()
    assert container_target._tell(str(fifo), "go") is True
    listener.join(timeout=10)
    assert heard == ["go\n"]


def test_tell_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(HostError, match="Nobody reads"):
        container_target._tell(str(fifo), "go", wait_s=0.05)
    assert container_target._tell(str(fifo), "go", wait_s=0) is False
    assert container_target._tell(str(tmp_path / "none"), "go", wait_s=0) is False


def test_own_is_the_generation_that_the_source_committed() -> None:
    handover.own("web", JOURNAL)
    assert owner() == {**OWNER, "owner": "T", "owner_name": "host2", "generation": 4}
    handover.own("web", JOURNAL)
    assert owner()["generation"] == 4


def test_a_promise_is_kept() -> None:
    files.write_json(paths.owner_file("web"), {**OWNER, "generation": 5})
    with pytest.raises(HostError, match="was given back to host1; this copy never runs again"):
        container_target.activate(HOST, "web", JOURNAL, 1)
    assert owner()["generation"] == 5


def test_a_copy_of_an_earlier_boot_is_not_started() -> None:
    files.write_json(paths.owner_file("web"), OWNER)
    with pytest.raises(HostError, match="is gone"):
        container_target.activate(HOST, "web", JOURNAL, 1)
    assert owner() == OWNER


def test_give_back_promises_before_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(paths.owner_file("web"), {**OWNER, "owner": "T", "generation": 4})

    def kill(host: Host, name: str, move_id: str) -> None:
        assert owner()["generation"] == 5
        assert owner()["owner"] == "S"
        raise HostError("does not die")

    monkeypatch.setattr(container_target, "_kill", kill)
    with pytest.raises(HostError, match="does not die"):
        handover.give_back(HOST, "web", JOURNAL)
    # Not over: the journal says so to whoever asks.
    assert files.read_json(paths.journal_file("web")) == JOURNAL


@pytest.mark.parametrize(("record", "ran"), [({**OWNER, "owner": "T", "generation": 4}, True), (OWNER, False)])
def test_what_has_run_here_is_told_when_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, t.Any], ran: bool
) -> None:
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    files.write_json(paths.owner_file("web"), record)
    assert handover.give_back(HOST, "web", JOURNAL)["ran"] is ran


@pytest.mark.parametrize(("generation", "ran"), [(3, False), (4, True)])
@pytest.mark.usefixtures("state")
def test_give_back_again(monkeypatch: pytest.MonkeyPatch, generation: int, ran: bool) -> None:
    """Whether its copy has run is still known the second time."""
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    files.write_json(paths.owner_file("web"), {**OWNER, "owner": "T", "generation": generation})
    for _time in range(2):
        assert handover.give_back(HOST, "web", JOURNAL) == {"generation": 5, "ran": ran}
    assert os.listdir(paths.workload_dir("web")) == ["owner.json"]


def test_give_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    # Who received it was cut off.
    part = Path(f"{paths.IMAGES}/building/move-x/rootfs/file")
    files.write_text(str(part), "x")
    container_target.give_up(HOST, "web", JOURNAL)
    assert os.listdir(f"{paths.IMAGES}/building") == []
    assert not os.path.exists(paths.workload_dir("web"))


def test_give_up_never_removes_what_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    files.write_json(paths.owner_file("web"), {**OWNER, "owner": "T", "generation": 4})
    with pytest.raises(Refused, match="owned by this host since generation 4"):
        container_target.give_up(HOST, "web", JOURNAL)
    assert os.path.exists(paths.definition_file("web"))


def test_arrived_is_for_the_move_that_is_under_way() -> None:
    with pytest.raises(Refused, match="knows nothing of the move m2"):
        container_target.arrived("web", "m2")
    assert container_target.arrived("web", "m1")["state"] == records.TARGET_PREPARED


@pytest.mark.parametrize(("code", "expected"), [("0\n", True), ("1\n", False), ("", False)])
def test_drained_by_the_daemons_code(code: str, expected: bool) -> None:
    directory = Path(paths.move_dir("m1"))
    directory.mkdir(parents=True)
    assert container_target.drained(JOURNAL, 0) == {"ended": False, "drained": False}
    (directory / "lazy.rc").write_text(code)
    assert container_target.drained(JOURNAL, 0) == {"ended": True, "drained": expected}


def test_no_directory_is_bound_into_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source does not let it go with one; one that was taken over would."""
    monkeypatch.setattr(paths, "STATE", str(Path(paths.HOST_FILE).parent))
    mounts = [{"type": "tmpfs", "destination": "/y"}, {"type": "bind", "source": "/etc", "destination": "/x"}]
    for count, problems in ((1, []), (2, ["mounts: host2 binds no directory"])):
        definition = {"name": "web", "image": "a" * 64, "address": "", "ports": [], "mounts": mounts[:count]}
        found = container_target.check(HOST, definition, OWNER, {})["problems"]
        assert [one[: len("mounts: host2 binds no directory")] for one in found] == problems


@pytest.mark.parametrize(
    ("digest", "name", "said"),
    [
        ("/../../images", "", "is not made of the image '/../../images'"),
        ("b" * 64, "", "is not made of the image"),
        (None, "", "is not made of the image None"),
        ("a" * 64, "../../../../etc/passwd", "image_name: '../../../../etc/passwd' is not allowed"),
    ],
)
def test_an_image_is_stored_nowhere_else(digest: t.Any, name: str, said: str) -> None:
    args = {"description": {"digest": digest}, "name": name}
    call = kinds.Call(
        HOST, JOURNAL, args, True, lambda work: pytest.fail("received"), lambda: False, lambda count: None
    )
    with pytest.raises(CnvmError, match=said):
        container_target.OPERATIONS["image"](call)


def test_an_image_is_received_once_and_leaves_nothing_when_it_breaks(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers of one image may come at the same time, into the same place."""
    monkeypatch.setattr(paths, "IMAGES", f"{state}/images")
    digest = "a" * 64
    seen: list[list[str]] = []

    def extract(stream: t.Any, building: str, policy: t.Any, *, what: str) -> None:
        Path(building, "rootfs").mkdir()
        seen.append(os.listdir(f"{state}/images/building"))
        with pytest.raises(Refused, match="receiving the image aaaaaaaaaaaaaaaa is refused"):
            container_target.receive_image({"digest": digest}, "", stream)
        raise HostError("It was cut off.")

    monkeypatch.setattr(archive, "extract", extract)
    with pytest.raises(HostError, match="cut off"):
        container_target.receive_image({"digest": digest}, "debian", t.cast("t.BinaryIO", None))
    assert (len(seen), os.listdir(f"{state}/images/building")) == (1, [])
    files.write_json(f"{paths.image_dir(digest)}/image.json", {})
    container_target.receive_image({"digest": digest}, "debian", t.cast("t.BinaryIO", None))
    assert images.names() == {"debian": digest}


def test_an_image_that_another_container_is_just_bringing_is_waited_for() -> None:
    """Until it is there, or the source has hung up, which hears that something is waited for."""
    digest, told = "a" * 64, list[int]()
    args = {"description": {"digest": digest}, "name": "debian"}
    call = kinds.Call(
        HOST, {"name": "web"}, args, True, lambda work: work(t.cast("t.Any", None)), lambda: True, told.append
    )
    with contextlib.ExitStack() as other:
        other.enter_context(files.lock(f"{paths.RUN}/locks/image-{digest}.lock", "receiving the image"))
        with pytest.raises(Refused, match="is at work on it"):
            container_target.OPERATIONS["image"](call)

        def arrives() -> bool:
            files.write_json(f"{paths.image_dir(digest)}/image.json", {})
            other.close()
            return False

        assert container_target.OPERATIONS["image"](call._replace(gone=arrives)) == {}
    assert told == [0, 0]
    assert images.names() == {"debian": digest}


def test_a_source_says_nothing_to_the_runtime() -> None:
    call = t.cast("t.Any", types.SimpleNamespace(has_stream=False, args={"flags": ["--bundle", "/tmp/x"]}))
    with pytest.raises(PeerError, match="--bundle /tmp/x is nothing that a source decides"):
        container_target._op_restore(call)


def test_a_cold_move_brings_the_restart_policy(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd has to know it before it starts the container, which it does not when that did not run."""
    monkeypatch.setattr(container_units, "_UNITS", str(state / "units"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    definition = {"name": "web", "image": "a" * 64, "restart": "never", "stop_timeout_s": 10}
    files.write_json(paths.definition_file("web"), definition)
    ran: list[t.Sequence[str]] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        ran.append(argv)
        return CommandResult(tuple(argv), 0)

    container_target.activate(Host(run=run), "web", {**JOURNAL, "mode": "cold", "running": False}, 5)
    assert (state / "units/cnvm-container@web.service.d/policy.conf").read_text()
    assert [argv[:2] for argv in ran] == [["systemctl", "daemon-reload"]]
    assert owner()["owner"] == "T"


def test_a_job_that_is_done_at_once_is_not_run_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cold move: it has ended well before anybody saw it run, also when the move ends."""
    monkeypatch.setattr(container_units, "_UNITS", str(state / "units"))
    monkeypatch.setattr(container_units, "_WANTS", str(state / "wants"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    definition = {"name": "web", "image": "a" * 64, "restart": "on_failure", "stop_timeout_s": 10}
    files.write_json(paths.definition_file("web"), definition)
    started: list[t.Sequence[str]] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        if argv[1] == "start":
            started.append(argv)
        shown = f"Id={paths.unit_name('web')}\nActiveState=inactive\nSubState=dead\nResult=success\n"
        return CommandResult(tuple(argv), 0, shown if argv[1] == "show" else "")

    host, journal = Host(run=run), {**JOURNAL, "mode": "cold", "running": True, "enabled": True}
    container_target.activate(host, "web", journal, 0.2)
    container_target.finish(host, "web", journal)
    assert started == [["systemctl", "start", paths.unit_name("web")]]
    assert container_units.is_enabled("web")


def test_what_has_ended_before_it_was_stopped_for_the_move_is_noted() -> None:
    call = t.cast("t.Any", types.SimpleNamespace(name="web", move_id="m1", args={"running": False}))
    container_target.OPERATIONS["arrived"](call)
    assert (files.read_json(paths.journal_file("web")) or {})["running"] is False


@pytest.mark.parametrize(
    ("journal_state", "wanted", "anew"),
    [
        (records.TARGET_PREPARED, False, True),
        (records.TARGET_ACTIVE, True, True),
        (records.TARGET_ACTIVE, False, False),
    ],
)
def test_a_copy_that_was_not_whole_is_started_anew_unless_it_had_ended(
    monkeypatch: pytest.MonkeyPatch, state: Path, journal_state: str, wanted: bool, anew: bool
) -> None:
    """Its source is dead. It has been killed by the time the move ends, so that must be noted before."""
    monkeypatch.setattr(container_units, "_WANTS", str(state / "wants"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    monkeypatch.setattr(container_units, "is_wanted", lambda host, journal: wanted)
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    started: list[t.Sequence[str]] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        if argv[0] != "sync":
            started.append(argv)
        return CommandResult(tuple(argv), 0)

    journal = {**JOURNAL, "state": journal_state, "running": True}
    container_target.end_copy(HOST, "web", journal)
    monkeypatch.setattr(container_units, "is_wanted", lambda host, journal: False)
    container_target.finish(Host(run=run), "web", journal)
    assert bool(started) is anew


@pytest.mark.parametrize(("mode", "told"), [("cold", True), ("stop_copy", False)])
def test_one_that_came_without_memory_has_its_policy_before_it_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, state: Path, mode: str, told: bool
) -> None:
    monkeypatch.setattr(container_units, "_UNITS", str(state / "units"))
    monkeypatch.setattr(container_target, "_kill", lambda *args: None)
    files.write_json(paths.definition_file("web"), {"name": "web", "restart": "never"})
    done: list[t.Sequence[str]] = []

    def run(argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        done.append(argv)
        return CommandResult(tuple(argv), 0)

    container_target.end_copy(Host(run=run), "web", {**JOURNAL, "state": records.TARGET_PREPARED, "mode": mode})
    assert (["systemctl", "daemon-reload"] in done) is told
    assert (state / "units").exists() is told


def test_limits_hold_once_it_runs_and_not_while_criu_works_in_its_cgroup(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = {"name": "web", "image": "a" * 64, "cpus": 0.1, "pids_limit": 5, "memory_mib": 64}
    monkeypatch.setattr(container_units, "_UNITS", str(state / "units"))
    monkeypatch.setattr(container_target, "HOLD_HOOK", str(state / "hold"))
    monkeypatch.setattr(container_parts, "CGROUP_ROOT", str(state))
    monkeypatch.setattr(container_parts, "image_record", lambda digest: {"process": {"args": ["/app"]}})
    monkeypatch.setattr(container_parts, "account_of", lambda root, user: Account(0, 0, (), "/root"))
    for name in ("forget_runtime", "mount_layers", "network_up"):
        monkeypatch.setattr(container_parts, name, lambda *args: None)
    directory = Path(paths.move_dir("m1"))
    directory.mkdir(parents=True)
    container_target.prepare(Host(run=lambda argv, **more: CommandResult(tuple(argv), 0)), definition, "m1")
    config = files.read_json(f"{paths.bundle_dir('web')}/config.json") or {}
    assert set(config["linux"]["resources"]) == {"devices"}

    group = state / paths.payload_cgroup("web").lstrip("/")
    group.mkdir(parents=True)
    for file in ("cpu.max", "pids.max", "memory.max"):
        (group / file).write_text("max")
    for file in ("prepared", "verdict"):
        (directory / file).touch()
    files.write_json(paths.definition_file("web"), definition)
    monkeypatch.setattr(container_target, "is_alive", lambda name, journal: True)

    def alive(definition: dict[str, t.Any], directory: str) -> bool:
        assert (group / "pids.max").read_text() == "max"
        return True

    monkeypatch.setattr(container_target, "_alive", alive)
    container_target.activate(HOST, "web", JOURNAL, 1)
    found = [(group / file).read_text() for file in ("cpu.max", "pids.max", "memory.max")]
    assert found == ["10000 100000", "5", str(64 << 20)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nothing_waits_for_the_disk_while_a_layer_comes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container stands still for the last difference."""
    (state / "source").mkdir()
    (state / "source/file").write_text("x")
    packed = io.BytesIO()
    archive.pack(f"{state}/source", packed, layer=True)
    os.makedirs(paths.upper_dir("web"))
    for name in ("fsync", "sync"):
        monkeypatch.setattr(os, name, lambda *args: pytest.fail("waits"))
    call = kinds.Call(
        HOST, {"name": "web"}, {"removals": []}, True, lambda work: work(io.BytesIO(packed.getvalue())), lambda: False,
        lambda count: None,
    )  # fmt: skip
    assert container_target.OPERATIONS["layer"](call) == {"bytes": 1}
    assert Path(paths.upper_dir("web"), "file").read_text() == "x"


class Syncing:
    """Runs ``sync`` alone. ``said``: what the journal said by then each time."""

    def __init__(self) -> None:
        self.said: list[t.Optional[bool]] = []

    def __call__(self, argv: t.Sequence[str], **more: t.Any) -> CommandResult:
        assert list(argv) == ["sync", "-f", paths.workload_dir("web")]
        self.said.append((files.read_json(paths.journal_file("web")) or {}).get("kept"))
        return CommandResult(tuple(argv), 0)


@pytest.fixture
def synced(state: Path, monkeypatch: pytest.MonkeyPatch) -> Syncing:
    """On the host of boot "b"."""
    monkeypatch.setattr(container_units, "_WANTS", str(state / "wants"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    return Syncing()


def test_a_layer_is_kept_when_it_is_on_the_disk_and_then_that_is_noted(synced: Syncing) -> None:
    journal = {**JOURNAL, "state": records.TARGET_ACTIVE}
    call = kinds.Call(Host(run=synced), journal, {}, False, lambda work: None, lambda: False, lambda count: None)
    assert container_target.OPERATIONS["keep"](call) == {}
    noted = files.read_json(paths.journal_file("web")) or {}
    assert (synced.said, noted) == ([None], {**journal, "kept": True})
    container_target.keep(Host(run=synced), "web", noted)
    assert synced.said == [None]


@pytest.mark.parametrize("kept", [True, False])
def test_the_journal_does_not_end_before_the_layer_is_on_the_disk(synced: Syncing, kept: bool) -> None:
    """A source that finds none here deletes what it has, without a word to this host."""
    journal = {**JOURNAL, "state": records.TARGET_ACTIVE, "running": False}
    files.write_json(paths.journal_file("web"), {**journal, "kept": kept})
    container_target.finish(Host(run=synced), "web", journal)
    assert synced.said == ([] if kept else [False])
    assert not os.path.exists(paths.journal_file("web"))


@pytest.mark.parametrize("mode", ["stop_copy", "cold"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_that_may_be_lost_is_not_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch, synced: Syncing, mode: str, kept: bool
) -> None:
    """This host has lost power before the layer was on its disk. The source has all of it."""
    monkeypatch.setattr(movedir, "boot_id", lambda: "another")
    journal = {**JOURNAL, "mode": mode, "state": records.TARGET_ACTIVE, **({"kept": True} if kept else {})}
    assert container_target.has_run("web", journal) is kept
    assert container_target.is_alive("web", journal) is (kept and mode == "cold")
    with contextlib.nullcontext() if kept else pytest.raises(HostError, match="before all files of web were on its"):
        container_target.keep(Host(run=synced), "web", journal)
    assert synced.said == []


def test_a_stopped_container_whose_layer_may_be_lost_is_not_started(
    monkeypatch: pytest.MonkeyPatch, synced: Syncing
) -> None:
    monkeypatch.setattr(movedir, "boot_id", lambda: "another")
    with pytest.raises(HostError, match="before all files of web were on its disk"):
        container_target.activate(Host(run=synced), "web", {**JOURNAL, "mode": "cold", "running": True}, 1)
    assert owner() is None
