# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that fail, or are cut off at any step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import disks, files, guest_disks
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors

from .. import fake_domains
from ..fake_domains import FakeConnection, FakeError
from .bring import MORE, WEB, Steps, bring, cut_off, foreign, one, template


def test_a_creation_that_fails_leaves_nothing(connection: FakeConnection, place: Path) -> None:
    made = place / "made.qcow2"
    connection.fails["web"] = FakeError(errors.XML_ERROR, "XML error: no")
    with pytest.raises(HostError, match="XML error"):
        bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(made), "size_mib": 1}]})
    assert os.listdir(place / "workloads") == []
    assert not made.exists()
    assert connection.domains == {}
    del connection.fails["web"]
    assert one(WEB)["state"] == "running"


def test_a_creation_that_was_cut_off_is_made_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(WEB, monkeypatch, "own")
    assert "claim" in json.loads((place / "workloads/web/owner.json").read_text())
    found = one(WEB)
    assert found["actions"] == ["create", "start with the host", "start"]
    assert found["state"] == "running"
    assert "claim" not in json.loads((place / "workloads/web/owner.json").read_text())


@pytest.mark.parametrize("delete", [False, True])
def test_or_is_removed(connection: FakeConnection, place: Path, delete: bool) -> None:
    """Its name would be taken on all hosts otherwise."""
    bring({**WEB, "state": "stopped"})
    own = place / "workloads/web"
    (own / "owner.json").write_text(json.dumps({"kind": "guest", "owner": "me", "claim": True}))
    (own / "definition.json").unlink()
    absent = {"name": "web", "state": "absent", "delete_disks": delete}
    assert one(absent, check_mode=True)["changed"]
    result = one(absent)
    assert result["kept_disks"] == [f"{place}/kept_disks/web/vda.qcow2"]
    assert (own.exists(), connection.domains) == (False, {})
    assert not bring(absent)["changed"]


@pytest.mark.parametrize(
    ("disk", "same"),
    [
        ({"pool": "images", "size_mib": 1}, False),
        ({"path": "web-vda.qcow2", "template": "debian"}, False),
        # It may be given for what is in it.
        ({"path": "web-vda.qcow2", "size_mib": 1}, True),
    ],
)
def test_a_disk_elsewhere_of_a_creation_that_was_cut_off_is_made_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, t.Any], same: bool
) -> None:
    template(place)
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    made = place / "pool/web-vda.qcow2"
    wanted = {**WEB, "disks": [{**disk, **({"path": str(made)} if "path" in disk else {})}]}
    cut_off(wanted, monkeypatch, "_seed")
    made.write_bytes(made.read_bytes() + b"of the first run")
    assert one(wanted, check_mode=True)["actions"][0] == "create"
    assert one(wanted)["state"] == "running"
    assert made.read_bytes().endswith(b"of the first run") is same


def test_nothing_else_in_a_pool_is_overwritten(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's own disk is as much somebody's, when no creation that made it was cut off."""
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    fake_domains.qcow2(place / "pool/web-vdb.qcow2", 2**20)
    disk = {"pool": "images", "size_mib": 1}
    cut_off({**WEB, "disks": [disk]}, monkeypatch, "_seed")
    with pytest.raises(Refused, match=r"web-vdb\.qcow2 is there already"):
        bring({**WEB, "disks": [disk, disk]})


def test_a_disk_in_a_pool_of_a_creation_that_was_cut_off_is_kept_when_the_guest_is_removed(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    cut_off({**WEB, "disks": [{"pool": "images", "size_mib": 1}]}, monkeypatch, "_seed")
    assert one({"name": "web", "state": "absent"})["kept_disks"] == [f"{place}/pool/web-vda.qcow2"]


@pytest.mark.parametrize("step", ["_seed", "_define", "_drop_seed"])
@pytest.mark.parametrize("disk", [{"size_mib": 1}, {"pool": "images", "size_mib": 1}])
def test_adding_a_disk_that_was_cut_off_is_done_again(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, step: str, disk: dict[str, t.Any]
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    bring({**WEB, "state": "stopped"})
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, disk]}
    with monkeypatch.context() as patch:
        # Nothing is cleared away by one that is killed.
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        cut_off(wanted, monkeypatch, step)
    made = place / ("pool/web-vdb.qcow2" if "pool" in disk else "workloads/web/disks/vdb.qcow2")
    assert made.exists()
    bring(wanted)
    assert not bring(wanted)["changed"]
    assert not (place / "workloads/web/making.json").exists()
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not made.exists(), "it is the guest's own"


def test_a_disk_that_was_being_added_stays_on_record_when_it_is_not_wanted_any_more(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    first, disk = {**WEB, "state": "stopped"}, {"pool": "images", "size_mib": 1}
    bring(first)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        cut_off({**first, "disks": [{"size_mib": 1}, disk]}, monkeypatch, "_seed")
    assert bring({**first, "memory_mib": 128})["changed"]
    assert not bring({**first, "memory_mib": 128})["changed"]
    assert bring({**first, "memory_mib": 128, "disks": [{"size_mib": 1}, disk]})["changed"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not (place / "pool/web-vdb.qcow2").exists(), "it is the guest's own"


@pytest.mark.parametrize("delete", [False, True])
def test_a_disk_that_was_being_added_goes_with_the_guest(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    connection.pools["images"] = str(place / "pool")
    (place / "pool").mkdir()
    bring({**WEB, "state": "stopped"})
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_file", lambda path, durable=False: None)
        disk = {"pool": "images", "size_mib": 1}
        cut_off({**WEB, "state": "stopped", "disks": [{"size_mib": 1}, disk]}, monkeypatch, "_seed")
    kept = one({"name": "web", "state": "absent", "delete_disks": delete})["kept_disks"]
    made = f"{place}/pool/web-vdb.qcow2"
    assert (made in kept, os.path.exists(made)) == (not delete, not delete)


@pytest.mark.parametrize("again", ["the same", "absent"])
def test_making_one_is_killed_at_each_step(steps: Steps, again: str) -> None:
    """The same run again makes the guest as if nothing had been, and it can be removed without a trace."""
    bring(steps.guest)
    whole = steps.seen()
    assert [disk["made"] for disk in whole[1]["disks"]] == [True] * 4 + [False]
    bring(steps.absent)
    steps.gone()

    def look() -> None:
        if again == "the same":
            bring(steps.guest)
            assert steps.seen() == whole
            assert not bring(steps.guest)["changed"]
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: None, lambda: bring(steps.guest), look) > 20


def test_making_one_is_killed_twice(steps: Steps) -> None:
    """What the first run has made, and the second one leaves as it is, was made all the same."""
    for step in ("_seed", "_define"):
        cut_off(steps.guest, steps.monkeypatch, step)
    bring(steps.guest)
    assert [disk["made"] for disk in steps.seen()[1]["disks"]] == [True] * 4 + [False]
    bring(steps.absent)
    steps.gone()


def test_changing_words_alone_is_killed_at_each_step(steps: Steps) -> None:
    """libvirt has them before they are written down, and no disk tells the next run."""
    second = {**WEB, "memory_mib": 128, "tags": {"a": "b"}, "state": "stopped"}
    bring(second)
    whole = steps.seen()

    def look() -> None:
        bring(second)
        assert steps.seen() == whole
        assert not bring(second)["changed"]

    assert steps.kill(lambda: bring({**WEB, "state": "stopped"}), lambda: bring(second), look) > 5


def test_making_the_domain_anew_is_killed_at_each_step(steps: Steps) -> None:
    """Of a guest that libvirt does not know any more; it gets a disk at the same time."""
    first = {**steps.guest, "disks": steps.guest["disks"][:1]}

    def lose() -> None:
        bring(first)
        steps.connection.domains.clear()

    lose()
    bring(steps.guest)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        bring(steps.guest)
        assert steps.seen() == whole
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lose, lambda: bring(steps.guest), look) > 20


def test_giving_up_is_killed_at_each_step(steps: Steps) -> None:
    """What cannot be made is removed, by this run or by the next one."""

    def make() -> None:
        steps.connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
        with contextlib.suppress(HostError):
            bring(steps.guest)

    def look() -> None:
        steps.connection.fails.clear()
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: None, make, look) > 20


@pytest.mark.parametrize("again", ["the same", "absent"])
@pytest.mark.parametrize("state", ["stopped", "running", "restarted"])
def test_changing_one_is_killed_at_each_step(steps: Steps, state: str, again: str) -> None:
    first = {**steps.guest, "state": "running" if state == "restarted" else state}
    disks = [*steps.guest["disks"], {"size_mib": 1}, {"pool": "images", "size_mib": 1}, steps.at("c.qcow2")]
    disks[0] = {"size_mib": 2}
    second = {
        **first, "disks": disks, "memory_mib": 128, "tags": {"a": "b"}, "cloud_init": {"user_data": "#cloud-config\n#2"}
    }  # fmt: skip
    if state == "restarted":
        second.update(state="present", machine="pc")
    options = {"restart_on_change": True}
    bring(first)
    bring(second, **options)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        if again == "the same":
            bring(second, **options)
            assert steps.seen() == whole
            assert not bring(second, **options)["changed"]
        bring(steps.absent)
        steps.gone()

    assert steps.kill(lambda: bring(first), lambda: bring(second, **options), look) > 20


def test_taking_things_away_is_killed_at_each_step(steps: Steps) -> None:
    second = {key: value for key, value in steps.guest.items() if key != "cloud_init"}
    second["disks"] = steps.guest["disks"][:2]
    options = {"restart_on_change": True}
    bring(steps.guest)
    bring(second, **options)
    whole = steps.seen()
    bring(steps.absent)

    def look() -> None:
        bring(second, **options)
        assert steps.seen() == whole
        assert not bring(second, **options)["changed"]
        bring(steps.absent)
        shutil.rmtree(steps.place / "kept_disks")
        (steps.place / "srv/b.qcow2").unlink()
        steps.gone()

    (steps.place / "srv/b.qcow2").unlink()
    shutil.rmtree(steps.place / "kept_disks")
    assert steps.kill(lambda: bring(steps.guest), lambda: bring(second, **options), look) > 10


@pytest.mark.parametrize("delete", [True, False])
def test_removing_one_is_killed_at_each_step(steps: Steps, delete: bool) -> None:
    absent = {**steps.absent, "delete_disks": delete}
    kept = ["kept_disks/web/vda.qcow2", "kept_disks/web/vdc.qcow2", "pool/web-vdb.qcow2", "srv/b.qcow2"]

    def look() -> None:
        bring(absent)
        assert not bring(absent)["changed"]
        if not delete:
            for name in kept:
                (steps.place / name).unlink()
            (steps.place / "kept_disks/web").rmdir()
        steps.gone()

    assert steps.kill(lambda: bring(steps.guest), lambda: bring(absent), look) > 10


@pytest.mark.parametrize("runs", [False, True])
def test_adopting_one_is_killed_at_each_step(steps: Steps, runs: bool) -> None:
    """It stays what it is: with its UUID, its cards, and the disk that it had."""
    had = steps.place / "old.qcow2"
    fake_domains.qcow2(had, 2**20)
    disk = {"path": str(had), "name": "vda"}
    wanted = {
        **steps.guest, "name": "old", "machine": "pc", "state": "running" if runs else "stopped",
        "disks": [disk, {"size_mib": 1}, {"pool": "images", "size_mib": 1}],
    }  # fmt: skip

    def come() -> None:
        foreign(
            steps.connection,
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{had}'/>"
            "<target dev='vda' bus='virtio'/></disk>",
        )
        if runs:
            steps.connection.domains["old"].createWithFlags(0)

    def go() -> None:
        bring({**steps.absent, "name": "old"})
        assert steps.files() == []
        assert had.exists()

    come()
    bring(wanted, adopt=True)
    whole = steps.seen("old")
    assert whole[2]["uuid"].startswith("9a1c1f9e")
    go()

    def look() -> None:
        bring(wanted, adopt=True)
        assert steps.seen("old") == whole
        assert not bring(wanted, adopt=True)["changed"]
        go()

    assert steps.kill(come, lambda: bring(wanted, adopt=True), look) > 10


def test_nothing_else_is_overwritten_by_a_disk_that_is_added(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    fake_domains.qcow2(place / "workloads/web/disks/vdb.qcow2", 2**20)
    with pytest.raises(Refused, match=r"vdb\.qcow2 is there already"):
        bring({**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"size_mib": 1}]})


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("when", ["before it is begun", "before it is made", "while it is made"])
def test_nor_is_what_came_since_it_was_decided(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch, when: str, there: bool
) -> None:
    """Nor is it removed with what was made: by this run, or by one that goes on after a run that was killed."""
    if there:
        bring({**WEB, "state": "stopped"})
    theirs = place / "workloads/web/disks/vdb.qcow2"
    owner, name = {
        "before it is begun": (guest_disks, "make_home"), "before it is made": (guest_disks, "do"),
        "while it is made": (disks, "run"),
    }[when]  # fmt: skip
    work = getattr(owner, name)

    def meanwhile(*args: t.Any, **words: t.Any) -> t.Any:
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_text("theirs")
        return work(*args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, meanwhile)
        with pytest.raises(disks.Taken, match=rf"{theirs} came while it was to be made here"):
            bring(MORE)
    assert theirs.read_text() == "theirs"
    assert sorted(os.listdir(theirs.parent)) == (["vda.qcow2", "vdb.qcow2"] if there else ["vdb.qcow2"])
    with pytest.raises(Refused, match="is there already"):
        bring(MORE)
    theirs.unlink()
    assert one(MORE)["state"] == "stopped"
    assert not list(place.rglob(disks.TEMPORARY))


def test_what_lay_there_before_a_creation_that_was_cut_off_stays(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place / "workloads/web/disks"
    home.mkdir(parents=True)
    (home / "data.raw").write_text("theirs")
    (home / "vdb.qcow2").write_text("theirs")
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")

    def fail() -> None:
        with pytest.raises(HostError, match="define"):
            bring(WEB)
        assert sorted(os.listdir(home)) == ["data.raw", "vdb.qcow2"]

    fail()
    cut_off(WEB, monkeypatch, "_define")
    assert sorted(os.listdir(home)) == ["data.raw", "vda.qcow2", "vdb.qcow2"]
    # It is none of those that were being made.
    with pytest.raises(Refused, match=r"vdb\.qcow2 is there already"):
        bring(MORE)
    fail()
    assert [each.read_text() for each in home.iterdir()] == ["theirs"] * 2
    assert not (place / "workloads/web/owner.json").exists()
