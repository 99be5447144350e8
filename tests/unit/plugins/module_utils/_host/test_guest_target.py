# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a guest that fetches the rest of its memory has it all, and what becomes of one that never will."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    HostError,
    InputError,
    PeerError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    arriving,
    building,
    domains,
    files,
    guest_preflight,
    guest_source,
    guest_target,
    kinds,
    libvirt,
    movedir,
    ownership,
    sparse,
    template_making,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors, migration
from ansible_collections.cnvm.platform.tests.support import images

from . import fake_libvirt

RUNNING, PAUSED, SHUTOFF, CRASHED = 1, 3, 5, 6
LIBRARY = types.SimpleNamespace(
    libvirtError=fake_libvirt.FakeError, VIR_DOMAIN_SHUTOFF_SHUTDOWN=1, VIR_DOMAIN_SHUTOFF_DESTROYED=2,
    VIR_DOMAIN_RUNNING_POSTCOPY_FAILED=11, VIR_DOMAIN_PAUSED_POSTCOPY_FAILED=13,
)  # fmt: skip
JOURNAL = {
    "name": "web", "uuid": "u", "role": "target", "state": "active", "mode": "post_copy", "running": True,
    "boot_id": "b",
}  # fmt: skip
HOST = Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0))


class Guest:
    """It is in this state, for this reason."""

    def __init__(self, state: int, reason: int) -> None:
        self.now = (state, reason)
        self.arriving = False
        self.persistent = True
        self.calls: list[str] = []

    def jobInfo(self) -> list[int]:
        if self.arriving:
            raise fake_libvirt.FakeError(errors.OPERATION_UNSUPPORTED, "only on the source host")
        return [0]

    def state(self, flags: int) -> tuple[int, int]:
        return self.now

    def isActive(self) -> bool:
        return self.now[0] != SHUTOFF

    def UUIDString(self) -> str:
        return "u"

    def name(self) -> str:
        return "web"

    def isPersistent(self) -> bool:
        return self.persistent

    def setAutostart(self, value: int) -> None:
        if not self.persistent:
            raise fake_libvirt.FakeError(errors.OPERATION_INVALID, "cannot set autostart for transient domain")

    def destroy(self) -> None:
        self.calls.append("destroy")
        self.now = (SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_DESTROYED)

    def create(self) -> None:
        self.calls.append("create")
        self.now = (RUNNING, 1)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[int, int], Guest]:
    """Have libvirt know this guest."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    monkeypatch.setattr(paths, "TEMPLATES", str(tmp_path / "templates"))
    monkeypatch.setattr(libvirt, "library", lambda: LIBRARY)
    monkeypatch.setattr(libvirt, "connect", contextlib.nullcontext)
    monkeypatch.setattr(guest_source, "patiently", lambda work, *limit: work(None))
    files.write_json(paths.journal_file("web"), JOURNAL)

    def make(state: int, reason: int) -> Guest:
        made = Guest(state, reason)
        monkeypatch.setattr(libvirt, "domain", lambda connection, name: made)
        return made

    return make


@pytest.mark.parametrize(("generation", "problems"), [(3, []), (4, ["name"])])
def test_what_an_earlier_move_has_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: int, problems: list[str]
) -> None:
    """It goes as the next move begins. But not what the source has not given up."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    monkeypatch.setattr(ownership, "host_identity", lambda: {"name": "host2"})
    seen = {"name_taken": True, "lacks": [], "post_copy": "", "space": []}
    monkeypatch.setattr(guest_preflight, "look", lambda *args: dict(seen))
    monkeypatch.setattr(migration, "problems", lambda name, me, needs, seen: ["name"] if seen["name_taken"] else [])
    left = {"role": "target", "state": "prepared", "peer_id": "h1", "uuid": "u", "generation": 3}
    files.write_json(paths.journal_file("web"), left)
    owner = {"owner": "h1", "uuid": "u", "generation": generation}
    found = guest_target.check(HOST, {"name": "web"}, owner, {"definition": ""})
    assert found["problems"] == problems


def test_one_that_cannot_be_defined_is_told_while_its_source_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(guest_source, "patiently", lambda work, limit_s: limits.append(limit_s))
    guest_target._define("web", {"needs": {"definition": "<domain/>"}}, 30)
    assert limits == [30]


def test_no_disk_is_made_on_a_template_that_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKLOADS", "TEMPLATES", "RUN"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    with building.directory(paths.TEMPLATES, "debian") as place:
        images.qcow2(images.MIB).write(Path(place) / "disk.qcow2")
        digest, _new = templates.store(place, {})
    disk: dict[str, t.Any] = {
        "path": str(tmp_path / "vda.qcow2"), "shared": False, "template": digest, "virtual": images.MIB,
        "format": "qcow2",
    }  # fmt: skip
    journal = {"name": "web", "move_id": "m1", "needs": {"disks": [disk], "live": True}}
    call = kinds.Call(HOST, journal, {}, False, lambda work: None, lambda: False, lambda count: None)
    os.utime(paths.template_disk(digest))
    guest_target.OPERATIONS["prepare"](call)
    arriving.remove("m1", disk["path"])
    # What was only touched is not read again.
    seen = (templates.record(digest) or {})["seen"]
    assert seen["mtime_ns"] == os.stat(paths.template_disk(digest)).st_mtime_ns
    with open(paths.template_disk(digest), "ab") as file:
        file.write(b"more")
    with pytest.raises(Refused, match="damaged"):
        guest_target.OPERATIONS["prepare"](call)
    assert not (tmp_path / "vda.qcow2").exists()


@pytest.mark.parametrize(
    ("state", "reason", "arriving", "answer"),
    [
        (RUNNING, 10, True, "fetches"),
        (RUNNING, 11, True, "failed"),
        (RUNNING, 11, False, "drained"),
        (RUNNING, 1, False, "drained"),
        # Why it is paused says nothing of what it fetches.
        (PAUSED, 1, True, "fetches"),
        (PAUSED, 11, True, "fetches"),
        (PAUSED, 13, True, "failed"),
        (PAUSED, 1, False, "drained"),
        (SHUTOFF, 1, False, "gone"),
        (CRASHED, 1, False, "gone"),
    ],
)
def test_drained(there: t.Callable[[int, int], Guest], state: int, reason: int, arriving: bool, answer: str) -> None:
    there(state, reason).arriving = arriving
    ended = answer in ("drained", "gone")
    said = {"ended": ended, "drained": answer == "drained", "failed": answer == "failed"}
    assert guest_target.drained(JOURNAL, 0) == said
    whole = {"ended": True, "drained": True, "failed": False}
    assert guest_target.drained({**JOURNAL, "mode": "live"}, 0) == whole


def test_an_old_libvirt_has_no_word_for_one_that_runs(
    there: t.Callable[[int, int], Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LIBRARY, "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED")
    there(RUNNING, 11).arriving = True
    assert guest_target.drained(JOURNAL, 0)["failed"] is False


@pytest.mark.parametrize(
    ("mode", "uuid", "kept", "owner", "arrived"),
    [
        ("live", "u", True, "S", True),
        ("live", "u", False, "S", False),
        # Somebody else's by that name.
        ("live", "other", True, "S", False),
        # It goes on here, and fetches the rest of its memory.
        ("post_copy", "u", False, "T", True),
        ("offline", "u", False, "S", True),
    ],
)
def test_what_has_arrived_is_what_libvirt_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: t.Callable[[int, int], Guest], mode: str, uuid: str,
    kept: bool, owner: str, arrived: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    files.write_json(paths.owner_file("web"), {"owner": owner, "generation": 2})
    there(PAUSED, 1).persistent = kept
    assert guest_target.has_arrived("web", {**JOURNAL, "mode": mode, "uuid": uuid}) is arrived


@pytest.mark.parametrize(
    "step",
    [
        lambda journal: guest_target.activate(HOST, "web", journal, 1),
        # With post-copy it is let run before that.
        lambda journal: guest_target.OPERATIONS["own"](
            t.cast("kinds.Call", types.SimpleNamespace(name="web", journal=journal, args={"mode": "live"}))
        ),
    ],
)
def test_what_is_gone_is_not_owned(
    monkeypatch: pytest.MonkeyPatch, there: t.Callable[[int, int], Guest], step: t.Callable[[t.Any], t.Any]
) -> None:
    """Nobody has looked since it began to be held. The source goes on, then."""
    there(SHUTOFF, 0)
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    with pytest.raises(HostError, match="The copy of web that was held here is gone"):
        step({**JOURNAL, "mode": "live", "uuid": "u", "boot_id": "b", "generation": 1, "peer": "host1"})
    assert files.read_json(paths.owner_file("web")) is None


@pytest.mark.parametrize(
    ("state", "reason", "running", "calls"),
    [
        (RUNNING, 11, True, ["destroy", "create"]),
        (SHUTOFF, 3, True, ["create"]),
        # Its user has turned it off meanwhile.
        (SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_SHUTDOWN, True, []),
        (SHUTOFF, LIBRARY.VIR_DOMAIN_SHUTOFF_DESTROYED, True, []),
        (SHUTOFF, 3, False, []),
    ],
)
def test_what_can_never_be_whole_is_started_anew(
    there: t.Callable[[int, int], Guest], monkeypatch: pytest.MonkeyPatch, state: int, reason: int, running: bool,
    calls: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    each, journal = there(state, reason), {**JOURNAL, "running": running}
    guest_target.end_copy(HOST, "web", journal)
    assert not each.isActive()
    guest_target.finish(HOST, "web", journal)
    assert each.calls == calls
    assert files.read_json(paths.journal_file("web")) is None


@pytest.mark.parametrize(
    ("booted", "enabled", "reason", "started"),
    [
        # Its QEMU has died: whether it starts with the host says nothing of that.
        (False, False, 5, True),
        (True, True, 0, True),
        (True, False, 0, False),
        (False, True, LIBRARY.VIR_DOMAIN_SHUTOFF_SHUTDOWN, False),
    ],
)
def test_what_died_before_the_move_was_over_is_started_anew(
    there: t.Callable[[int, int], Guest], monkeypatch: pytest.MonkeyPatch, booted: bool, enabled: bool, reason: int,
    started: bool,
) -> None:  # fmt: skip
    """The journal, by which it may be, is there until it runs."""
    monkeypatch.setattr(movedir, "boot_id", lambda: "later" if booted else "b")
    each = there(SHUTOFF, reason)
    noted = []
    monkeypatch.setattr(each, "create", lambda: noted.append(files.read_json(paths.journal_file("web"))))
    assert guest_target.finish(HOST, "web", {**JOURNAL, "running": True, "enabled": enabled}) is started
    assert [(one or {}).get("anew") for one in noted] == [True] * started
    assert files.read_json(paths.journal_file("web")) is None


def test_one_that_cannot_be_started_anew_is_told_and_in_no_move_any_more(
    there: t.Callable[[int, int], Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could do anything about it."""
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")

    def create() -> None:
        raise fake_libvirt.FakeError(errors.INTERNAL_ERROR, "no memory")

    monkeypatch.setattr(there(SHUTOFF, 5), "create", create)
    with pytest.raises(HostError, match="web had ended here, and cannot be started anew") as caught:
        guest_target.finish(HOST, "web", JOURNAL)
    assert "no memory" in caught.value.message
    assert "state: running" in caught.value.hint
    assert files.read_json(paths.journal_file("web")) is None


def test_a_move_ends_also_when_somebody_has_undefined_the_guest(
    there: t.Callable[[int, int], Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source has let go: nothing that this host waits for would ever come."""
    there(RUNNING, 1).persistent = False
    assert guest_target.finish(HOST, "web", JOURNAL) is False
    assert files.read_json(paths.journal_file("web")) is None
    files.write_json(paths.journal_file("web"), JOURNAL)
    monkeypatch.setattr(libvirt, "domain", lambda connection, name: None)
    assert guest_target.finish(HOST, "web", JOURNAL) is None
    assert files.read_json(paths.journal_file("web")) is None


@pytest.mark.parametrize(
    ("state", "post_copy", "owner", "now", "kept", "ran"),
    [
        ("active", False, "T", SHUTOFF, True, True),
        ("prepared", False, "T", PAUSED, True, False),
        # libvirt's daemon died when it had let it run.
        ("prepared", False, "T", RUNNING, True, True),
        ("prepared", False, "T", SHUTOFF, True, False),
        # libvirt lets it run itself, as soon as it keeps it; when it has ended nobody knows.
        ("prepared", True, "T", SHUTOFF, True, True),
        ("prepared", True, "T", PAUSED, False, False),
        ("prepared", True, "S", PAUSED, True, False),
    ],
)
def test_whether_a_copy_may_have_run(
    there: t.Callable[[int, int], Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, post_copy: bool,
    owner: str, now: int, kept: bool, ran: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    files.write_json(paths.HOST_FILE, {"host_id": "T", "name": "host2"})
    files.write_json(paths.owner_file("web"), {"owner": owner})
    there(now, 1).persistent = kept
    journal = {**JOURNAL, "mode": "live", "state": state, "uuid": "u", "needs": {"post_copy": post_copy}}
    assert guest_target.has_run("web", journal) is ran
    assert not guest_target.has_run("web", {**journal, "state": "prepared", "mode": "offline"})


def test_a_template_is_waited_for_until_the_source_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears that more of it comes, be it by this move or by that of another guest."""
    monkeypatch.setattr(paths, "TEMPLATES", str(tmp_path))
    asked: list[bool] = []
    told: list[int] = []

    def fetch(host: Host, peer: str, word: str, **more: t.Any) -> None:
        assert (peer, word, more["digest"], more["mib_s"]) == ("host1", "a" * 64, "a" * 64, 50)
        with building.directory(paths.TEMPLATES, f"fetch-{'a' * 16}") as place:
            for size in (3, 3, 4, 4):
                Path(f"{place}/disk.qcow2").write_bytes(b"x" * size)
                asked.append(more["waits"]())
        more["progress"](7)

    monkeypatch.setattr(template_making, "fetch", fetch)
    gone = iter([False, False, False, True])
    args = {"digest": "a" * 64, "bandwidth_mib_s": 50}
    call = kinds.Call(HOST, {"peer": "host1"}, args, False, lambda work: None, lambda: next(gone), told.append)
    assert guest_target.OPERATIONS["template"](call) == {}
    assert asked == [True, True, True, False]
    assert told == [0, 0, 7]


@pytest.mark.parametrize("mode", ["live", "post_copy", "offline"])
def test_what_somebody_has_made_with_its_name_meanwhile_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, there: t.Callable[[int, int], Guest], mode: str
) -> None:
    """libvirt has refused what was to come. The move gives up, and the other one runs on."""
    stranger = there(RUNNING, 1)
    monkeypatch.setattr(stranger, "UUIDString", lambda: "another")
    monkeypatch.setattr(stranger, "setAutostart", lambda value: stranger.calls.append("autostart"))
    monkeypatch.setattr(domains, "forget_variables", lambda connection, name: None)
    monkeypatch.setattr(libvirt, "undefine", lambda each: each.calls.append("undefine"))
    monkeypatch.setattr(movedir, "boot_id", lambda: "b")
    journal = {**JOURNAL, "state": "receiving", "move_id": "m1", "mode": mode}
    assert mode == "offline" or not guest_target.is_alive("web", journal)
    assert not guest_target.drained({**journal, "mode": "post_copy"}, 0)["drained"]
    guest_target.end_copy(HOST, "web", journal)
    guest_target.give_up(HOST, "web", journal)
    assert guest_target.finish(HOST, "web", journal) is None
    assert (stranger.calls, stranger.now) == ([], (RUNNING, 1))
    assert not Path(paths.journal_file("web")).exists()


def test_nothing_that_came_stays_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: t.Callable[[int, int], Guest]
) -> None:
    """Neither a disk in a pool nor the variables of its firmware nor a log, which are not in its directory."""
    monkeypatch.setattr(guest_source, "remove_domain", lambda each: None)
    monkeypatch.setattr(paths, "LOGS", str(tmp_path / "logs"))
    there(SHUTOFF, 0)
    pool, nvram = tmp_path / "pool.raw", tmp_path / "web_VARS.fd"
    seed = paths.guest_seed("web")
    disks: list[dict[str, t.Any]] = [
        {"name": "vda", "path": str(pool), "shared": False},
        {"name": "vdb", "path": str(tmp_path / "nfs.raw"), "shared": True},
        {"name": "vdc", "path": f"{paths.guest_disks_dir('web')}/vdc.qcow2", "shared": False},
    ]
    needs = {"disks": disks, "fixed": [], "brought": [seed, str(nvram)], "log": paths.guest_log("web")}
    journal = {**JOURNAL, "state": "receiving", "move_id": "m1"}
    guest_target.begin(HOST, {"name": "web", "kind": "guest"}, journal, needs)
    (tmp_path / "nfs.raw").write_text("x")
    Path(paths.guest_log("web")).write_text("x")
    brought = [str(pool), disks[2]["path"], seed, str(nvram)]
    for path in brought:
        Path(arriving.beside("m1", path)).write_text("x")
        arriving.publish("m1", path)
    # Who fetched it was killed.
    part = Path(f"{paths.TEMPLATES}/building/fetch-x/disk.qcow2")
    files.write_text(str(part), "x")
    guest_target.give_up(HOST, "web", files.read_json(paths.journal_file("web")) or {})
    assert not Path(paths.guest_log("web")).exists()
    assert not part.parent.exists()
    assert not Path(paths.workload_dir("web")).exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["nfs.raw"]


# --------------------------------------------------------------------------------------------------------------------
# What a host that was taken over may bring, and others who make files meanwhile
# --------------------------------------------------------------------------------------------------------------------
class Moving:
    """A move of a guest to this host, with one disk in a pool."""

    def __init__(self, name: str, path: Path, *, live: bool = True, **disk: t.Any) -> None:
        self.name = name
        self.disk = {
            "name": "vda", "path": str(path), "format": "raw", "below": "", "template": "", "virtual": images.MIB,
            "shared": False, "pool": "", **disk,
        }  # fmt: skip
        self.needs = {"disks": [self.disk], "fixed": [], "brought": [], "log": "", "live": live}
        self.journal: dict[str, t.Any] = {
            **JOURNAL, "name": name, "state": "receiving", "move_id": f"move-{name}",
            "mode": "live" if live else "offline",
        }  # fmt: skip

    def begin(self, **more: t.Any) -> None:
        definition = {"name": self.name, "kind": "guest", **more}
        guest_target.begin(Host(run=self._run), definition, self.journal, self.needs)

    def _run(self, argv: t.Sequence[str], **dummy: t.Any) -> CommandResult:
        with open(next(word for word in argv if ".cnvm-" in word), "wb") as made:
            made.truncate(images.MIB)
        return CommandResult(tuple(argv), 0)

    def do(self, word: str, stream: bytes = b"", **args: t.Any) -> dict[str, t.Any]:
        call = kinds.Call(
            Host(run=self._run), self.journal, args, bool(stream), lambda work: work(io.BytesIO(stream)), lambda: False,
            lambda count: None,
        )  # fmt: skip
        return guest_target.OPERATIONS[word](call)

    def bring(self, source: Path) -> dict[str, t.Any]:
        stream = io.BytesIO()
        sparse.send(str(source), stream, lambda count: None)
        return self.do("file", stream.getvalue(), path=self.disk["path"], size=source.stat().st_size)

    def give_up(self) -> None:
        guest_target.give_up(HOST, self.name, files.read_json(paths.journal_file(self.name)) or {})


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a pool; libvirt knows none of the guests."""
    for name in ("WORKLOADS", "TEMPLATES", "RUN", "LOGS", "NVRAM"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(libvirt, "domain", lambda connection, name: None)
    monkeypatch.setattr(guest_source, "patiently", lambda work, *limit: work(None))
    (made := tmp_path / "pool").mkdir()
    return made


@pytest.mark.parametrize("live", [True, False])
def test_two_guests_with_one_path(pool: Path, live: bool) -> None:
    """Neither was there when both were asked for. The second one hears so, and leaves the first one's alone."""
    path = pool / "data.raw"
    first, second = Moving("a", path, live=live), Moving("b", pool / "../pool/data.raw", live=live)
    first.begin()
    with pytest.raises(Refused, match="is to be a file of a, which is being moved"):
        second.begin()
    assert "own" not in second.journal
    first.do("prepare")
    assert path.exists() is live
    first.give_up()
    second.begin()


@pytest.mark.parametrize("live", [True, False])
def test_what_somebody_makes_meanwhile_is_not_touched(pool: Path, live: bool) -> None:
    path, source = pool / "data.raw", pool.parent / "source"
    source.write_bytes(b"x" * 512)
    move = Moving("a", path, live=live)
    move.begin()
    path.write_bytes(b"precious")
    with pytest.raises(Refused, match="it is not overwritten"):
        move.do("prepare") if live else move.bring(source)
    move.give_up()
    assert path.read_bytes() == b"precious"
    assert [one.name for one in pool.iterdir()] == ["data.raw"]


def test_where_the_disks_of_a_guest_are_put_lasts(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    home = Path(paths.guest_disks_dir("a"))
    monkeypatch.setattr(files, "sync_dir", lambda path: synced.append((path, home.is_dir())))
    Moving("a", home / "vda.raw").begin()
    assert (paths.workload_dir("a"), True) in synced


def test_no_disk_is_sent_where_it_could_not_get_its_name(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guest that does not run: all of it would have come before that is seen."""

    def link(*dummy: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    move = Moving("a", pool / "data.raw", live=False)
    move.begin()
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        with pytest.raises(HostError, match=rf"The file system of {pool} has no hard links"):
            move.do("prepare")
    # Asked again, and cut off before.
    Path(arriving.beside("move-a", str(pool / "data.raw")) + ".new").touch()
    move.do("prepare")
    move.give_up()
    assert list(pool.iterdir()) == []


def test_a_disk_is_there_when_it_is_whole_and_has_one_name_at_the_end(pool: Path, tmp_path: Path) -> None:
    path, source = pool / "data.raw", tmp_path / "source"
    source.write_bytes(b"x" * 512)
    move = Moving("a", path, live=False)
    move.begin()
    move.do("prepare")
    assert not path.exists()
    assert move.bring(source) == {"bytes": 512}
    assert path.read_bytes() == b"x" * 512
    with pytest.raises(PeerError, match="has come already"):
        move.bring(source)
    guest_target.finish(HOST, "a", move.journal)
    assert [(one.name, one.stat().st_nlink) for one in pool.iterdir()] == [("data.raw", 1)]


def test_the_variables_of_a_firmware_are_on_the_disk_before_the_source_removes_its_own(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU has written them, and nobody has them anywhere else then."""
    move, synced = Moving("web", pool / "vda.raw"), list[str]()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    assert move.do("keep") == {}
    assert synced == []
    variables = Path(paths.guest_nvram("web")[0])
    variables.parent.mkdir()
    variables.write_bytes(b"x")
    move.do("keep")
    assert synced == [str(variables), str(variables.parent)]

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(HostError, match=f"{variables} cannot be used: Input/output error"):
        move.do("keep")


def test_a_file_in_its_own_directory_that_is_not_of_the_move_stays(pool: Path) -> None:
    home = Path(paths.guest_disks_dir("a"))
    move = Moving("a", home / "vda.raw")
    move.begin()
    move.do("prepare")
    (home / "notes").write_bytes(b"x")
    move.give_up()
    assert [one.name for one in home.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("backing", "data_file", "below", "good"),
    [
        ("", "", "", True),
        ("/t/disk.qcow2", "", "/t/disk.qcow2", True),
        ("/etc/shadow", "", "", False),
        ("/etc/shadow", "", "/t/disk.qcow2", False),
        ("nbd://192.0.2.1/x", "", "", False),
        ("", "", "/t/disk.qcow2", False),
        ("", "/etc/shadow", "", False),
    ],
)
def test_a_disk_that_comes_names_no_file_but_its_template(
    pool: Path, tmp_path: Path, backing: str, data_file: str, below: str, good: bool
) -> None:
    move = Moving("a", pool / "vda.qcow2", live=False, format="qcow2", below=below)
    made = images.qcow2(
        images.MIB, backing=backing.encode(), backing_format=b"qcow2" if backing else b"", data_file=data_file.encode()
    )
    made.write(tmp_path / "source")
    move.begin()
    if good:
        move.bring(tmp_path / "source")
        assert [one.name for one in pool.glob("vda*")] == ["vda.qcow2"]
        return
    with pytest.raises(PeerError, match=r"What came as /.*/vda\.qcow2 is not what was announced") as caught:
        move.bring(tmp_path / "source")
    assert ".cnvm-" not in caught.value.message
    assert list(pool.iterdir()) == []


def test_variables_of_a_firmware_name_no_file_either(pool: Path, tmp_path: Path) -> None:
    move = Moving("a", Path(paths.guest_nvram("a")[1]), live=False)
    move.needs.update(disks=[], brought=[move.disk["path"]])
    images.qcow2(images.MIB, backing=b"/etc/shadow", backing_format=b"raw").write(tmp_path / "source")
    move.begin()
    with pytest.raises(PeerError, match="/etc/shadow"):
        move.bring(tmp_path / "source")
    assert not Path(move.disk["path"]).exists()


@pytest.mark.parametrize(
    ("disk", "made"),
    [
        ({"name": "vda", "path": "{pool}/data.raw", "pool": ""}, True),
        ({"name": "vda", "path": "", "pool": "srv"}, False),
        ({"name": "vda", "path": "/etc/passwd", "pool": ""}, False),
        ({"name": "vdz", "path": "{pool}/data.raw", "pool": ""}, False),
        # It is only read, and was here before.
        ({"name": "vdb", "path": "{pool}/fixed.raw", "pool": ""}, False),
    ],
)
def test_what_was_made_for_a_guest_is_what_comes_with_it(pool: Path, disk: dict[str, str], made: bool) -> None:
    """It is what is deleted with it one day."""
    move = Moving("a", pool / "data.raw")
    move.needs["fixed"] = [{"name": "vdb", "path": str(pool / "fixed.raw"), "pool": ""}]
    told = {**disk, "path": disk["path"].format(pool=pool), "format": "raw", "made": True}
    move.begin(disks=[told])
    assert (files.read_json(paths.definition_file("a")) or {})["disks"] == [{**told, "made": made}]


def test_a_definition_is_one_that_the_module_would_write() -> None:
    with pytest.raises(PeerError, match="not that of a guest"):
        guest_target.check_definition({"name": "web", "kind": "container"})
    with pytest.raises(InputError, match="memory_mib is missing"):
        guest_target.check_definition({"name": "web", "kind": "guest"})
