# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A name stands for one workload on all hosts: what follows from the records here and from the peers' answers."""

from __future__ import annotations

import json
import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, PeerError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    container_parts,
    container_report,
    container_units,
    containers,
    files,
    images,
    netns,
    ownership,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.ownership import Newcomer
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._oci.definition import normalise
from ansible_collections.cnvm.platform.plugins.module_utils._oci.plan import Plan, plan

from .killing import at_each_effect

OVERLAY = {"subnet": "10.0.0.0/24", "gateway": "10.0.0.254", "self": {"name": "host1"}, "mtu": 1400, "bridge": "b"}
HERE = {"here": True, "claim": False, "address": "10.0.0.20"}
SILENT = {"ok": False, "error": "no route"}


def no_command(argv: t.Sequence[str], **kwargs: t.Any) -> t.NoReturn:
    raise AssertionError(argv)


HOST = Host(run=no_command)
NEW = Newcomer()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an identity and nothing on it."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    (tmp_path / "host.json").write_text('{"host_id": "me", "name": "host1"}')
    return tmp_path


def record(state: Path, name: str, owner: str = "me", **fields: t.Any) -> None:
    place = state / "workloads" / name
    place.mkdir(parents=True)
    values = {"owner": owner, "owner_name": {"me": "host1"}.get(owner, owner), "generation": 3, "uuid": "u", **fields}
    (place / "owner.json").write_text(json.dumps(values))
    (place / "definition.json").write_text('{"address": "10.0.0.20"}')


def owner(state: Path, name: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads((state / "workloads" / name / "owner.json").read_text()))


def says(**known: t.Any) -> dict[str, t.Any]:
    return {"ok": True, "workloads": known}


class Asked(ownership.Registry):
    """A registry whose peers say what the test says, one answer after the other (the last one again and again)."""

    def __init__(self, *answers: dict[str, t.Any], kind: str = ownership.CONTAINER, ignore: bool = False) -> None:
        super().__init__(HOST, kind, ignore_unreachable=ignore, ask_timeout_s=1)
        self.said = list(answers)
        self.asked = 0

    def answers(self) -> dict[str, t.Any]:
        self.asked += 1
        return self.said[0] if len(self.said) == 1 else self.said.pop(0)


# -- What is free -----------------------------------------------------------------------------------------------------
def test_free() -> None:
    answers = {"host2": says(other=HERE, given={**HERE, "here": False}), "host3": says()}
    ownership.check_free({"web": Newcomer(address="10.0.0.21"), "given": NEW}, answers, ignore_unreachable=False)


@pytest.mark.parametrize(
    ("answers", "error", "reason"),
    [
        ({"host2": says(web=HERE)}, Refused, "'web' is at host2"),
        ({"host2": says(web={**HERE, "claim": True})}, Refused, "just being created at host2"),
        ({"host2": says(web={**HERE, "kind": "guest"})}, Refused, "Guest 'web' is at host2"),
        ({"host2": says(other=HERE)}, Refused, "belongs to container 'other' at host2"),
        ({"host2": says(), "host3": SILENT}, PeerError, "host3: no route"),
    ],
)
def test_not_free(answers: dict[str, t.Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        ownership.check_free({"web": Newcomer(address="10.0.0.20")}, answers, ignore_unreachable=False)


def test_those_who_are_gone_can_be_ignored_but_not_those_who_answer() -> None:
    ownership.check_free({"web": NEW}, {"host3": SILENT}, ignore_unreachable=True)
    with pytest.raises(Refused):
        ownership.check_free({"web": NEW}, {"host2": says(web=HERE), "host3": SILENT}, ignore_unreachable=True)


def test_names_and_addresses_of_this_host(state: Path) -> None:
    record(state, "other")
    record(state, "gone", "host2")
    with pytest.raises(Refused, match="container 'other'"):
        ownership.check_free_here({"web": "10.0.0.20"}, ownership.CONTAINER)
    with pytest.raises(Refused, match="a container called 'other'"):
        ownership.check_free_here({"other": ""}, ownership.GUEST)
    ownership.check_free_here({"gone": ""}, ownership.GUEST)
    ownership.check_free_here({"other": "10.0.0.20"}, ownership.CONTAINER)
    ownership.check_free_here({"web": "10.0.0.21"}, ownership.CONTAINER)


def test_forgetting_is_killed_at_each_step(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as anything lies there, the record of whose it is does: by that the next run sees that it is to go."""
    home = state / "workloads/web"

    def come() -> None:
        record(state, "web")
        (home / "disks/below").mkdir(parents=True)
        for name in ("definition.json", "seed.iso", "disks/below/vda.qcow2"):
            (home / name).write_text("")

    def look() -> None:
        assert ownership.owned_here("web") or not home.exists() or os.listdir(home) == []
        ownership.forget("web")
        assert not home.exists()

    assert at_each_effect(monkeypatch, come, lambda: ownership.forget("web"), look) == 7


def test_workloads_by_kind(state: Path) -> None:
    record(state, "web")
    record(state, "db", kind="guest")
    # What a guest is to be made of, or what the making of one that failed has left.
    (state / "workloads/new/disks").mkdir(parents=True)
    assert ownership.names() == ["db", "web"]
    assert ownership.names(ownership.CONTAINER) == ["web"]
    assert ownership.names(ownership.GUEST) == ["db"]
    # Its definition does not say either. Whoever needs what the record says hears of it, and not who asks for another.
    (state / "workloads/web/owner.json").write_text("")
    assert ownership.names(ownership.CONTAINER) == ["web"]
    with pytest.raises(HostError, match=r"web/owner\.json cannot be read"):
        ownership.check_free_here({"new": ""}, ownership.CONTAINER)


def test_a_container_with_damaged_records_hides_no_other_one(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(state, "bad")
    record(state, "gone", "host2")
    record(state, "worse")
    (state / "workloads/bad/owner.json").write_text("[]")
    (state / "workloads/worse/definition.json").write_text('{"name": "wor')
    monkeypatch.setattr(container_units, "states", lambda host, names: {name: {} for name in names})
    found = container_report.work(HOST, {"names": None}, False)
    bad, gone, worse = found["containers"]
    assert (bad["name"], bad["state"], bad["placement"], bad["moving"]) == ("bad", "failed", None, False)
    assert bad["problem"].endswith("bad/owner.json holds no JSON object. Restore it or remove it.")
    assert (gone["state"], gone["placement"], "problem" in gone) == ("moved", "host2", False)
    assert (worse["state"], "definition.json cannot be read" in worse["problem"]) == ("failed", True)
    assert found["warnings"] == [f"Container bad: {bad['problem']}", f"Container worse: {worse['problem']}"]
    assert container_report.work(HOST, {"names": ["gone"]}, False)["warnings"] == []


def test_what_is_said_of_a_container_is_of_one_moment(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner record is read once: a move may write it in between."""
    record(state, "web", "host2")
    monkeypatch.setattr(container_units, "states", lambda host, names: {name: {} for name in names})
    read, asked = files.read_json, []

    def counted(path: str) -> t.Any:
        asked.append(path)
        return read(path)

    known = ownership.names(ownership.CONTAINER)
    monkeypatch.setattr(ownership, "names", lambda kind: known)
    monkeypatch.setattr(files, "read_json", counted)
    assert container_report.report(HOST)[0]["state"] == "moved"
    assert asked.count(paths.owner_file("web")) == 1


# -- Where they are ---------------------------------------------------------------------------------------------------
def test_nobody_is_asked_without_a_reason(state: Path) -> None:
    registry = Asked({})
    assert (registry.locate({}, {}), registry.asked) == ({}, 0)


def test_what_was_given_away_is_where_the_peers_say(state: Path) -> None:
    record(state, "web", "host2")
    registry = Asked({"host2": says(), "host3": says(web=HERE)})
    assert registry.locate({"web": "host2"}, {"web": NEW}) == {"web": "host3"}
    assert registry.warnings == []


def test_what_was_given_away_stays_there_while_somebody_is_silent(state: Path) -> None:
    record(state, "web", "host2")
    assert Asked({"host2": SILENT, "host3": says()}).locate({"web": "host2"}, {"web": NEW}) == {"web": "host2"}


def test_what_was_given_away_and_removed_there_is_made_again_as_a_later_generation(state: Path) -> None:
    record(state, "web", "host2")
    registry = Asked({"host2": says(), "host3": says()})
    assert registry.locate({"web": "host2"}, {"web": NEW}) == {"web": ""}
    assert "on no host any more" in registry.warnings[0]
    registry.claim({"web": Newcomer("u2")})
    registry.own("web", "u2")
    assert (owner(state, "web")["generation"], owner(state, "web")["owner"]) == (4, "me")


@pytest.mark.parametrize("answers", [{"host2": SILENT}, {}])
def test_what_was_given_away_to_a_host_that_is_gone_for_good_is_made_anew(
    state: Path, answers: dict[str, t.Any]
) -> None:
    """Also of two hosts, and when the other one was taken out of the overlay."""
    record(state, "web", "host2")
    registry = Asked(answers, ignore=True)
    # Its record stays as long as it is not made anew.
    assert registry.locate({"web": "host2"}, {}) == {"web": "host2"}
    assert registry.locate({"web": "host2"}, {"web": NEW}) == {"web": ""}
    assert "moved to host2 and is on no host that answers" in registry.warnings[0]
    registry.claim({"web": Newcomer("u2")})
    registry.own("web", "u2")
    assert (owner(state, "web")["generation"], owner(state, "web")["owner"]) == (4, "me")


def test_one_that_is_made_anew_comes_after_all_that_a_host_remembers_by_its_name(state: Path) -> None:
    gone = {"kind": "guest", "here": False, "generation": 9}
    registry = Asked({"host2": says(web=gone), "host3": says(web={**gone, "generation": 7})}, kind=ownership.GUEST)
    assert registry.locate({}, {"web": NEW}) == {"web": ""}
    registry.claim({"web": Newcomer("u")})
    registry.own("web", "u")
    assert owner(state, "web")["generation"] == 10


def test_a_new_one_that_a_peer_has_is_there(state: Path) -> None:
    assert Asked({"host2": says(web=HERE), "host3": says()}).locate({}, {"web": NEW}) == {"web": "host2"}


def test_a_new_one_with_the_name_of_another_kind_is_refused(state: Path) -> None:
    with pytest.raises(Refused, match="Guest 'web' is at host2"):
        Asked({"host2": says(web={**HERE, "kind": "guest"})}).locate({}, {"web": NEW})


def test_a_new_one_that_nobody_can_be_asked_about(state: Path) -> None:
    answers = {"host2": says(), "host3": SILENT}
    with pytest.raises(PeerError, match="host3"):
        Asked(answers).locate({}, {"web": NEW})
    assert Asked(answers, ignore=True).locate({}, {"web": NEW}) == {"web": ""}


# -- Making one -------------------------------------------------------------------------------------------------------
def test_a_claim_stands_until_it_is_made(state: Path) -> None:
    registry = Asked({"host2": says()}, kind=ownership.GUEST)
    registry.claim({"web": Newcomer("u", "10.0.0.9")})
    claimed = owner(state, "web")
    assert (claimed["claim"], claimed["address"], claimed["kind"], claimed["generation"]) == (
        True,
        "10.0.0.9",
        "guest",
        1,
    )
    assert ownership.record("web", "me") is None
    registry.own("web", "u")
    assert "claim" not in owner(state, "web")
    assert ownership.record("web", "me") == owner(state, "web")


def test_two_hosts_that_claim_at_once_both_stop(state: Path) -> None:
    registry = Asked({"host2": says(web={**HERE, "claim": True})})
    with pytest.raises(Refused, match="just being created"):
        registry.claim({"web": Newcomer("u"), "db": Newcomer("v")})
    assert ownership.names() == []


def test_two_hosts_that_claim_the_same_mac_at_once_both_stop(state: Path) -> None:
    """Each sees the other's claim the second time."""
    mine = {"web": Newcomer("u", macs=("52:54:00:00:00:77",))}
    theirs = {"here": True, "claim": True, "kind": "guest", "uuid": "v", "macs": ["52:54:00:00:00:77"]}
    registry = Asked({"host2": says()}, {"host2": says(db=theirs)}, kind=ownership.GUEST)
    registry.locate({}, mine)
    with pytest.raises(Refused, match=r"MAC .* of 'web' belongs to guest 'db' at host2"):
        registry.claim(mine)
    assert not (state / "workloads/web").exists()


def test_what_failed_leaves_nothing(state: Path) -> None:
    registry = Asked({"host2": says()})
    registry.claim({"web": Newcomer("u"), "db": Newcomer("v")})
    registry.own("db", "v")
    undone: list[str] = []
    registry.give_up(undone.append)
    assert (undone, ownership.names()) == (["web"], ["db"])


def test_what_failed_takes_nothing_that_lay_there_before(state: Path) -> None:
    """Such as kept disks that somebody has brought back, of which the guest is to get only one; also when the last run
    was killed, of which nobody knows what had lain there by then."""
    disks = state / "workloads/web/disks"
    disks.mkdir(parents=True)
    for name in ("vda.qcow2", "vdb.qcow2", "install.iso"):
        (disks / name).touch()
    for _run in ("killed", "fails"):
        registry = Asked({"host2": says()}, kind=ownership.GUEST)
        registry.claim({"web": Newcomer("u", given=(str(disks / "vda.qcow2"),))})
        (disks / "made.qcow2").touch()
    assert registry.give_up(lambda name: (disks / "made.qcow2").unlink()) == []
    assert sorted(each.name for each in disks.iterdir()) == ["install.iso", "vda.qcow2", "vdb.qcow2"]
    assert ownership.names() == []


def test_what_cannot_be_undone_stays_claimed(state: Path) -> None:
    def undo(name: str) -> None:
        if name == "web":
            raise HostError("libvirt does not answer.")

    registry = Asked({"host2": says()}, kind=ownership.GUEST)
    registry.claim({"web": Newcomer("u"), "db": Newcomer("v")})
    assert registry.give_up(undo) == ["web"]
    assert (ownership.names(), ownership.begun("web", ownership.GUEST)) == (["web"], True)


def test_what_an_earlier_run_has_begun_stays_when_this_one_does_nothing(state: Path) -> None:
    """Nobody would know what has been made of it."""
    Asked({"host2": says()}, kind=ownership.GUEST).claim({"web": Newcomer("u")})
    (state / "workloads/web/making.json").write_text("{}")
    registry = Asked({"host2": SILENT}, kind=ownership.GUEST)
    with pytest.raises(PeerError, match="host2"):
        registry.claim({"web": Newcomer("u"), "db": Newcomer("v")})
    assert (ownership.names(), ownership.begun("web", ownership.GUEST)) == (["web"], True)
    assert (state / "workloads/web/making.json").exists()


# -- What the containers' batch makes of it ---------------------------------------------------------------------------
def seen(answers: dict[str, t.Any], *wanted: t.Mapping[str, t.Any]) -> t.Any:
    items = [normalise({"image": "cnvm", **item}) for item in wanted]
    batch = containers.Batch(
        Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0)),
        items,
        Asked(answers),
        restart_on_change=True,
        image_change=False,
    )
    return batch.locate(batch.seen())


def test_what_is_here_needs_no_question(state: Path) -> None:
    record(state, "web")
    found = seen({}, {"name": "web"}, {"name": "old", "state": "absent"})
    assert found["web"].here


def test_containers_that_are_elsewhere(state: Path) -> None:
    record(state, "web", "host2")
    record(state, "old", "host2")
    found = seen(
        {"host2": says(), "host3": says(db=HERE)}, {"name": "web"}, {"name": "old", "state": "absent"}, {"name": "db"}
    )
    assert (found["web"].elsewhere, found["web"].owner) == ("", None)
    assert (found["old"].elsewhere, found["old"].owner["owner"]) == ("", "host2")
    assert found["db"].elsewhere == "host3"


@pytest.mark.parametrize("wanted", ["absent", "present"])
def test_what_is_on_no_host_while_a_move_of_it_is_not_finished_waits_for_that(state: Path, wanted: str) -> None:
    """The move's end would take away what had been made anew meanwhile."""
    record(state, "web", "host2")
    (state / "workloads/web/move.json").write_text('{"role": "source", "state": "leaving"}')
    item = normalise({"name": "web", "image": "cnvm", "state": wanted})
    with pytest.raises(Refused, match="in a move that is not finished"):
        plan(item, seen({"host2": says()}, item)["web"])
    assert plan(item, seen({"host2": says(web=HERE)}, item)["web"]).elsewhere == "host2"


def test_a_creation_that_was_cut_off_is_begun_again(state: Path) -> None:
    record(state, "web", claim=True)
    found = seen({"host2": says()}, {"name": "web"})
    assert (found["web"].here, found["web"].definition, found["web"].elsewhere) == (False, None, "")


@pytest.mark.parametrize("left", ["owner.json", "definition.json", ""])
def test_what_was_cut_off_can_be_removed(state: Path, left: str) -> None:
    """Of a creation (other hosts would be refused the name for ever), or of a removal."""
    record(state, "web", claim=True)
    for path in (state / "workloads/web").iterdir():
        if left and path.name != left:
            path.unlink()
    item = normalise({"name": "web", "state": "absent"})
    assert plan(item, seen({}, item)["web"]).remove
    assert not plan(item, seen({}, {"name": "db", "state": "absent"})["db"]).remove


def test_nothing_of_a_creation_that_was_cut_off_is_used(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its files nor a mount of its layers, which may be over another image."""
    monkeypatch.setattr(paths, "RUN", str(state / "run"))
    record(state, "web", claim=True)
    (state / "workloads/web/upper").mkdir()
    ran: list[tuple[str, ...]] = []

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        ran.append(tuple(argv))
        return CommandResult(tuple(argv), 0)

    mounted = iter([True, False])
    monkeypatch.setattr(container_parts, "layers_mounted", lambda name: next(mounted, False))
    item = normalise({"name": "web", "image": "cnvm", "state": "present"})
    batch = containers.Batch(Host(run=run), [item], Asked({}), restart_on_change=True, image_change=False)
    found: list[list[str]] = []

    def create(one: Plan) -> None:
        found.append(sorted(path.name for path in (state / "workloads/web").iterdir()))

    monkeypatch.setattr(batch, "create", create)
    batch.apply([Plan("web", create=True, definition={"uuid": "u", "address": ""})])
    assert found == [["owner.json"]]
    assert ("umount", container_parts.rootfs("web")) in ran


def test_a_removal_that_is_cut_off_leaves_no_part_of_a_layer_for_a_new_one(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(state, "web")
    (state / "workloads/web/upper").mkdir()

    def stop_at_the_layer(path: str) -> None:
        if os.path.basename(path) == "upper":
            raise KeyboardInterrupt
        shutil.rmtree(path, ignore_errors=True)

    monkeypatch.setattr(files, "remove_tree", stop_at_the_layer)
    batch = containers.Batch(
        Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0)), [], Asked({}),
        restart_on_change=True, image_change=False,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        batch.remove("web")
    assert owner(state, "web")["owner"] == "me"


def test_a_new_one_gets_what_one_has_that_is_removed_in_the_same_call(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as another name for what a container does."""
    monkeypatch.setattr(paths, "RUN", str(state / "run"))
    (state / "overlay.json").write_text(json.dumps(OVERLAY))
    record(state, "web")
    port = {"host_port": 8080, "container_port": 80}
    known = {"name": "web", "uuid": "u", "image": "a" * 64, "address": "10.0.0.20", "ports": [port]}
    (state / "workloads/web/definition.json").write_text(json.dumps(known))
    monkeypatch.setattr(images, "resolve", lambda image: ("a" * 64, image))
    monkeypatch.setattr(container_parts, "runtime_command", lambda item: ["runc"])
    monkeypatch.setattr(netns, "listening", list)
    new = {"name": "app", "image": "cnvm", "state": "present", "address": "10.0.0.20", "ports": ["8080:80"]}

    def decided(*items: dict[str, t.Any]) -> list[Plan]:
        batch = containers.Batch(
            Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0)),
            [normalise(item) for item in items],
            Asked({}),
            restart_on_change=True,
            image_change=False,
        )
        done: list[str] = []
        monkeypatch.setattr(batch, "remove", lambda name: done.append(f"remove {name}"))
        monkeypatch.setattr(batch, "create", lambda one: done.append(f"create {one.name}"))
        _seen, plans = batch.decide()
        batch.apply(plans)
        assert done == ["remove web", "create app"]
        return plans

    assert [one.actions for one in decided(new, {"name": "web", "state": "absent"})] == [["create"], ["remove"]]
    with pytest.raises(Refused, match="is that of container 'web'"):
        decided(new)
    with pytest.raises(Refused, match="already leads to the container web"):
        decided({**new, "address": "10.0.0.21"})
