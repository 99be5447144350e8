# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small parts of a container's life on a host."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    CommandError,
    HostError,
    InputError,
    Refused,
)
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    container_parts,
    container_units,
    containers,
    files,
    ownership,
    supervise,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._oci.definition import (
    changed_keys,
    definition_of,
    normalise,
)
from ansible_collections.cnvm.platform.plugins.module_utils._oci.plan import Plan
from ansible_collections.cnvm.platform.plugins.module_utils._oci.users import Account

SHOWN = """Id=cnvm-container@a.service
ActiveState=active
SubState=running
Result=success
MainPID=12
NRestarts=3
ActiveEnterTimestamp=@1700000000
ExecMainStatus=0

Id=cnvm-container@b.service
ActiveState=inactive
SubState=dead
Result=success
MainPID=0
NRestarts=0
ActiveEnterTimestamp=
ExecMainStatus=5
"""


def host_that_says(text: str) -> tuple[Host, list[tuple[str, ...]]]:
    ran: list[tuple[str, ...]] = []

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        ran.append(tuple(argv))
        return CommandResult(tuple(argv), 0, stdout=text)

    return Host(run=run), ran


def test_all_units_with_one_question() -> None:
    host, ran = host_that_says(SHOWN)
    found = container_units.states(host, ["a", "b", "c"])
    assert len(ran) == 1
    assert (found["a"]["ActiveState"], found["b"]["ExecMainStatus"], found["c"]) == ("active", "5", {})


def test_no_unit_is_no_question() -> None:
    host, ran = host_that_says("")
    assert container_units.states(host, []) == {}
    assert ran == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, ""),
        ({"restart": "always", "stop_timeout_s": 30}, ""),
        ({"restart": "on_failure"}, "[Service]\nRestart=on-failure\n"),
        ({"restart": "never", "stop_timeout_s": 31}, "[Service]\nRestart=no\nTimeoutStopSec=41s\n"),
    ],
)
def test_unit_policy(values: dict[str, t.Any], text: str) -> None:
    assert container_units.policy({"name": "web", **values}) == text


def test_name_servers_that_a_container_can_reach() -> None:
    text = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a\nnameserver ::1\nnameserver 2001:db8::1\n"
    assert containers.name_servers(text) == ["192.0.2.1"]


@pytest.mark.parametrize(("key", "controller"), [("memory_mib", "memory"), ("cpus", "cpu"), ("pids_limit", "pids")])
def test_limits_need_their_controllers(key: str, controller: str) -> None:
    item = normalise({"name": "web", "image": "x", key: 64})
    with pytest.raises(InputError, match=f"{key} needs the cgroup controller '{controller}'"):
        containers.check_limits(item, ["io"])
    containers.check_limits(item, [controller])


def test_one_that_ends_just_then_has_no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_parts, "CGROUP_ROOT", str(tmp_path))
    definition = {"name": "web", "pids_limit": 20}
    container_parts.apply_limits(definition)
    group = tmp_path / paths.payload_cgroup("web").lstrip("/")
    (group / "pids.max").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        container_parts.apply_limits(definition)


def test_what_is_mounted_must_be_there(tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path), "destination": "/x"}]
    containers.check_mounts(normalise({"name": "web", "image": "x", "mounts": mounts}))
    mounts[0]["source"] += "/none"
    with pytest.raises(InputError, match="none"):
        containers.check_mounts(normalise({"name": "web", "image": "x", "mounts": mounts}))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "containers"))
    monkeypatch.setattr(paths, "IMAGES", str(tmp_path / "images"))
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    return tmp_path


def test_mounting_needs_the_image(home: Path) -> None:
    host, ran = host_that_says("")
    definition = {"name": "web", "image": "a" * 64, "image_name": "cnvm"}
    with pytest.raises(HostError, match=r"\(cnvm\) is not here"):
        container_parts.mount_layers(host, definition)
    (home / "images/sha256" / ("a" * 64) / "rootfs").mkdir(parents=True)
    container_parts.mount_layers(host, definition)
    assert ran[-1][:4] == ("mount", "-t", "overlay", "cnvm-web")
    assert f"upperdir={home}/containers/web/upper" in ran[-1][-2]
    assert {"redirect_dir=off", "metacopy=off", "index=off"} <= set(ran[-1][-2].split(","))
    assert oct(os.stat(home / "containers/web/upper").st_mode)[-3:] == "755"
    # Its root can make a program set-user-id, which another user of the host must not reach.
    assert oct(os.stat(home / "containers/web").st_mode)[-3:] == "700"


def test_others_do_not_read_what_is_in_its_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = normalise({"name": "web", "image": "x", "env": {"PASSWORD": "secret"}, "command": ["a"]})
    definition = definition_of(item, "u", "a" * 64, "x")
    monkeypatch.setattr(container_parts, "mount_layers", lambda host, definition: None)
    monkeypatch.setattr(container_parts, "account_of", lambda root, user: Account(0, 0))
    monkeypatch.setattr(container_units, "write_policy", lambda definition: False)
    monkeypatch.setattr(containers, "write_contents", lambda definition, keys: None)
    image = home / "images/sha256" / ("a" * 64)
    image.mkdir(parents=True)
    (image / "image.json").write_text("{}")
    made = batch("")
    made.registry = t.cast("t.Any", types.SimpleNamespace(own=lambda name, uuid: None))
    made.create(Plan("web", create=True, start=True, definition=definition))
    written = [home / "containers/web/definition.json", home / "containers/web/bundle/config.json"]
    for path in written:
        assert "secret" in path.read_text()
        assert oct(os.stat(path).st_mode)[-3:] == "600"
    made.change(Plan("web", changes=("labels",), definition=definition))
    assert oct(os.stat(written[0]).st_mode)[-3:] == "600"


def test_a_busy_mount_is_detached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_parts, "layers_mounted", lambda name: True)
    ran = []

    def run(argv: t.Sequence[str], *, check: bool = True, **kwargs: t.Any) -> CommandResult:
        ran.append(list(argv[:-1]))
        return CommandResult(tuple(argv), 32 if argv[1] != "-l" else 0)

    assert container_parts.unmount_layers(Host(run=run), "web")
    assert ran == [["umount"], ["umount", "-l"]]


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(HostError, match="crun is not installed"):
        container_parts.runtime_command({"runtime": "crun"})


def test_a_process_of_somebody_else_is_no_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded number may have been given to another process since."""
    definition = {"name": "web", "runtime": "runc"}
    monkeypatch.setattr(container_parts, "runtime_state", lambda definition: {"pid": os.getpid(), "path": "x"})
    assert container_parts.init_pid(definition) == 0


@pytest.mark.parametrize("args", [[], ["run"], ["fly", "web"], ["run", "web", "now"], ["run", "../web"], ["run", "-x"]])
def test_words_of_the_helper(args: list[str]) -> None:
    host, ran = host_that_says("")
    with pytest.raises(InputError):
        supervise.container(args, host)
    assert ran == []


def test_cleaning_goes_on_after_a_step_that_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: t.Any) -> t.NoReturn:
        raise CommandError("the network stays")

    done = []
    monkeypatch.setattr(container_parts, "network_down", fail)
    monkeypatch.setattr(container_parts, "unmount_layers", lambda host, name: done.append(name))
    (home / "run/containers/web").mkdir(parents=True)
    host, _ran = host_that_says("")
    assert supervise.container(["clean", "web"], host) == 1
    assert done == ["web"]
    assert not (home / "run/containers/web").exists()


@pytest.mark.parametrize("overlay", ["", '{"subnet": "10.9.9.0/24", "gateway": "10.9.9.1", "self": {"name": "host1"}}'])
def test_its_network_goes_whatever_the_overlay_is_by_now(
    overlay: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address may be in it no more; it could not even be removed."""
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(home / "overlay.json"))
    if overlay:
        (home / "overlay.json").write_text(overlay)
    host, ran = host_that_says("")
    container_parts.network_down(host, {"name": "web", "uuid": "u", "address": "10.100.101.20"})
    assert ran == [("nft", "-f", "-")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_files_go_into_the_tree_and_nowhere_else(tmp_path: Path) -> None:
    """A container's root may have put links where we write."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "canary").write_text("alive")
    (root / "etc/hostname").symlink_to("../../canary")
    (root / "etc/hosts.cnvm-new").symlink_to("../../canary")
    (root / "home").symlink_to("../..")
    wanted = [("/etc/", "", 0o755, 0, 0), ("/etc/hostname", "web\n", 0o640, 5, 6), ("/etc/hosts", "x\n", 0o644, 0, 0)]
    containers.write_inside(str(root), wanted, "Writing")
    assert (tmp_path / "canary").read_text() == "alive"
    assert not (root / "etc/hostname").is_symlink()
    assert (root / "etc/hostname").read_text() == "web\n"
    status = os.stat(root / "etc/hostname")
    assert (status.st_uid, status.st_gid, oct(status.st_mode)[-3:]) == (5, 6, "640")
    assert sorted(os.listdir(root / "etc")) == ["hostname", "hosts"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_files_are_read_from_the_tree_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    root = tmp_path / "root"
    root.mkdir()
    (root / "passwd").symlink_to("../secret")
    os.mkfifo(root / "pipe")
    (root / "good").write_text("text")
    found = container_parts.read_inside(str(root), ["/passwd", "/pipe", "/none", "/good", "/"])
    assert found == ["", "", "", "text", ""]


# -- Seeing that it is up ---------------------------------------------------------------------------------------------
def unit(active: str, sub: str, result: str = "success") -> str:
    return f"Id={paths.unit_name('web')}\nActiveState={active}\nSubState={sub}\nResult={result}\n"


@pytest.fixture
def without_init(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_parts, "init_pid", lambda definition: 0)


def batch(text: str) -> containers.Batch:
    host, _ran = host_that_says(text)
    return containers.Batch(host, [], t.cast("t.Any", _Nobody), restart_on_change=True, image_change=False)


class _Nobody:
    warnings: t.ClassVar[list[str]] = []


@pytest.mark.usefixtures("without_init")
@pytest.mark.parametrize(
    ("restart", "state", "settled"),
    [
        ("on_failure", unit("inactive", "dead"), True),
        ("never", unit("inactive", "dead"), True),
        ("on_failure", unit("deactivating", "stop-post"), False),
        ("always", unit("active", "running"), False),
        ("always", unit("activating", "start"), False),
    ],
)
def test_what_is_being_cleared_away_has_not_told_yet_how_it_ended(restart: str, state: str, settled: bool) -> None:
    assert batch(state).settled({"name": "web", "restart": restart}) is settled


@pytest.mark.usefixtures("without_init")
@pytest.mark.parametrize(
    ("restart", "state"),
    [
        ("always", unit("inactive", "dead")),
        ("always", unit("activating", "auto-restart")),
        ("on_failure", unit("activating", "auto-restart-queued", "exit-code")),
        ("never", unit("failed", "failed", "exit-code")),
    ],
)
def test_what_ended_at_once_is_not_up(restart: str, state: str) -> None:
    with pytest.raises(HostError, match="ended at once"):
        batch(state).settled({"name": "web", "restart": restart})


@pytest.mark.parametrize(("tries", "up"), [((0, 0), True), ((1, 1), True), ((0, 1), False), ((1, 2), False)])
def test_another_try_of_systemd_is_not_up(tries: tuple[int, int], up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process is seen both times, but it is not the same one."""
    monkeypatch.setattr(container_parts, "init_pid", lambda definition: 7)
    monkeypatch.setattr(ownership, "read_definition", lambda name: {"name": name, "restart": "always"})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    counts = iter(tries)

    def states(host: Host, names: t.Sequence[str]) -> dict[str, dict[str, str]]:
        return {"web": {"ActiveState": "active", "SubState": "running", "NRestarts": str(next(counts))}}

    monkeypatch.setattr(container_units, "states", states)
    with contextlib.nullcontext() if up else pytest.raises(HostError, match="ended at once"):
        batch("").start(["web"])


@pytest.mark.parametrize(("restarts", "up"), [([7, 7, 10], True), ([7, 7, 11], False), ([0, 4], False)])
def test_what_has_ended_long_ago_is_not_counted(restarts: list[int], up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those tries that it needs while its port is waited for."""
    counts = iter(restarts)
    answers = iter([False] * (len(restarts) - 1) + [True])

    def states(host: Host, names: t.Sequence[str]) -> dict[str, dict[str, str]]:
        return {name: {"ActiveState": "active", "NRestarts": str(next(counts))} for name in names}

    monkeypatch.setattr(container_units, "states", states)
    monkeypatch.setattr(containers, "_listens", lambda item: next(answers))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    item = normalise({"name": "web", "image": "x", "wait_for": {"port": 80}})
    monkeypatch.setattr(containers.Batch, "not_up", lambda self, name, why: HostError(why))
    with contextlib.nullcontext() if up else pytest.raises(HostError, match="again and again"):
        batch("").wait([item])


def test_one_that_cannot_be_changed_keeps_no_other_one_down(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had been stopped for their changes by then."""
    monkeypatch.setattr(paths, "RUN", str(home / "run"))
    host, ran = host_that_says("")
    registry = types.SimpleNamespace(warnings=[], claim=lambda new: None, give_up=lambda undo: None)
    both = containers.Batch(host, [], t.cast("t.Any", registry), restart_on_change=True, image_change=False)

    def change(one: Plan) -> None:
        raise HostError(f"No space left for {one.name}.")

    monkeypatch.setattr(both, "change", change)
    plans = [Plan(name, stop=True, start=True, definition={}, changes=("env",)) for name in ("db", "web")]
    with pytest.raises(HostError, match="No space left for db"):
        both.apply([*plans, Plan("old", stop=True, definition={}, changes=("env",))])
    units = [paths.unit_name(name) for name in ("db", "web")]
    assert ran[-1] == ("systemctl", "start", "--no-block", "--", *units)


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("owner.json", {"owner": "T", "owner_name": "host2", "generation": 4}),
        ("definition.json", {"name": "web", "image": "another"}),
        ("move.json", {"role": "source"}),
    ],
)
def test_what_somebody_else_has_changed_since_is_let_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, file: str, value: dict[str, t.Any]
) -> None:
    """A move that ended while the peers were asked, say."""
    monkeypatch.setattr(container_parts, "controllers", list)
    files.write_json(paths.owner_file("web"), {"owner": "S", "owner_name": "host1", "generation": 3})
    files.write_json(paths.definition_file("web"), {"name": "web", "image": "a"})
    host, ran = host_that_says("")
    registry = types.SimpleNamespace(warnings=[], identity={"host_id": "S"}, locate=lambda gone, wanted: {})
    item = {"name": "web", "state": "absent"}
    one = containers.Batch(host, [item], t.cast("t.Any", registry), restart_on_change=True, image_change=False)
    _seen, plans = one.decide()
    assert plans[0].remove
    del ran[:]
    files.write_json(f"{paths.workload_dir('web')}/{file}", value)
    with pytest.raises(Refused, match="changed by somebody else a moment ago; nothing is changed"):
        one.apply(plans)
    assert ran == []
    assert files.read_json(f"{paths.workload_dir('web')}/{file}") == value


@pytest.mark.parametrize("change", [{"user": "nobody-there"}, {"login_user": "nobody-there"}])
def test_a_user_that_it_does_not_have_is_refused_while_it_can_go_on(
    change: dict[str, t.Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = normalise({"name": "web", "image": "x", "authorized_keys": ["ssh-ed25519 " + "A" * 60], **change})
    definition = definition_of(item, "u", "a" * 64, "x")
    image = home / "images/sha256" / ("a" * 64)
    image.mkdir(parents=True)
    (image / "image.json").write_text('{"process": {"args": ["/init"]}}')
    monkeypatch.setattr(container_parts, "read_inside", lambda root, names: ["root:x:0:0::/root:/bin/sh", ""])
    mounts: list[str] = []
    monkeypatch.setattr(container_parts, "layers_mounted", lambda name: False)
    monkeypatch.setattr(container_parts, "mount_layers", lambda host, definition: mounts.append("mount"))
    monkeypatch.setattr(container_parts, "unmount_layers", lambda host, name: mounts.append("unmount"))
    with pytest.raises(InputError, match="no user 'nobody-there'"):
        batch("").change(Plan("web", changes=tuple(change), definition=definition))
    assert mounts == ["mount", "unmount"]
    assert not (home / "containers/web/definition.json").exists()


def test_another_image_is_mounted_where_the_one_before_still_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that failed between making a container and starting it leaves its layers mounted."""
    definition = definition_of(normalise({"name": "web", "image": "x"}), "u", "b" * 64, "x")
    (home / "images/sha256" / ("b" * 64) / "rootfs").mkdir(parents=True)
    mounted = [container_parts.rootfs("web")]
    monkeypatch.setattr(files, "mount_points", lambda: mounted)
    monkeypatch.setattr(container_parts, "write_config", lambda definition: None)
    monkeypatch.setattr(container_units, "write_policy", lambda definition: False)
    ran: list[str] = []

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        ran.append(argv[0])
        mounted[:] = [argv[-1]] if argv[0] == "mount" else []
        return CommandResult(tuple(argv), 0)

    one = containers.Batch(Host(run=run), [], t.cast("t.Any", _Nobody), restart_on_change=True, image_change=True)
    one.change(Plan("web", changes=("image",), definition=definition))
    assert ran == ["umount", "mount", "umount"]


KEY, ANOTHER = (f"ssh-ed25519 {letter * 60}" for letter in "AB")


@pytest.mark.parametrize(
    ("was", "now", "keys"),
    [
        ({"login_user": "bob"}, {"login_user": "alice"}, {"/home/alice": KEY, "/home/bob": ""}),
        ({"login_user": "bob"}, {"login_user": "alice", "authorized_keys": []}, {"/home/alice": "", "/home/bob": ""}),
        ({"login_user": "bob"}, {"login_user": "bob", "authorized_keys": [ANOTHER]}, {"/home/bob": ANOTHER}),
        # The image's own login user is bob, too, and alice in the other image.
        ({}, {"login_user": "bob"}, {"/home/bob": KEY}),
        ({}, {"image": "b"}, {"/home/alice": KEY, "/home/bob": ""}),
        ({"login_user": "bob"}, {"login_user": "bob", "image": "b"}, {}),
        ({"authorized_keys": []}, {"image": "b", "authorized_keys": []}, {}),
        # He was removed in the container.
        ({"login_user": "carol"}, {"login_user": "alice"}, {"/home/alice": KEY}),
    ],
)
def test_the_keys_go_with_the_login_user(
    was: dict[str, t.Any], now: dict[str, t.Any], keys: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digest, user in (("a" * 64, "bob"), ("b" * 64, "alice")):
        place = home / "images/sha256" / digest
        place.mkdir(parents=True)
        (place / "image.json").write_text(f'{{"process": {{"login_user": "{user}"}}}}')
    passwd = "alice:x:1:1::/home/alice:/bin/sh\nbob:x:2:2::/home/bob:/bin/sh\n"
    monkeypatch.setattr(container_parts, "read_inside", lambda root, names: [passwd, ""])
    written: dict[str, str] = {}

    def write(root: str, wanted: t.Sequence[tuple[str, str, int, int, int]], what: str) -> None:
        written.update({path: text for path, text, *_rest in wanted if not path.endswith("/")})

    monkeypatch.setattr(containers, "write_inside", write)

    def definition(values: dict[str, t.Any]) -> dict[str, t.Any]:
        item = normalise({"name": "web", "image": "a", "authorized_keys": [KEY], **values})
        return definition_of(item, "u", item["image"] * 64, "")

    before, after = definition(was), definition(now)
    containers.write_contents(after, changed_keys(before, after), before)
    expected = {f"{place}/.ssh/authorized_keys": f"{text}\n" if text else "" for place, text in keys.items()}
    assert written == expected
