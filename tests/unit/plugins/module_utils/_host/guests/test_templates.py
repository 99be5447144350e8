# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that rest on others: templates, pools, what a guest leaves behind."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Missing, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    disk_images,
    disks,
    guest_disks,
    guest_preflight,
    guest_report,
    guests,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, xml

from .. import fake_domains
from ..fake_domains import FakeConnection
from ..killing import Killed
from .bring import DIGEST, WEB, bring, needs_of, one, snap, template


def test_a_linked_disk_rests_on_the_template(connection: FakeConnection, place: Path) -> None:
    template(place)
    bring({**WEB, "disks": [{"template": "debian", "size_mib": 4}]})
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    below = found["disks"]["vda"]["backing"]
    assert below == [{"path": f"{place}/templates/sha256/{DIGEST}/disk.qcow2", "format": "qcow2", "read_only": True}]
    assert found["marks"]["templates"] == {"vda": DIGEST}
    (shown,) = guest_report.report(t.cast("t.Any", connection))
    assert shown["template"] == "debian"
    assert not bring({**WEB, "disks": [{"template": "debian", "size_mib": 4}]})["changed"]


@pytest.fixture
def outside(place: Path) -> Path:
    """A disk's path where nobody looks for images, on a host with a template."""
    template(place)
    (place / "srv").mkdir()
    return place / "srv/vm.qcow2"


def check_stays(path: Path) -> None:
    """The template stays while the image at ``path`` rests on it, and it is said which one that is."""
    assert templates.dependants(DIGEST) == [str(path)]
    assert templates.report()["templates"][0]["dependants"] == [str(path)]
    with pytest.raises(Refused, match=f"debian is in use by {path}"):
        templates.remove("debian")


@pytest.mark.parametrize("how", ["made", "found", "link"])
def test_a_disk_that_a_removed_guest_leaves_elsewhere_keeps_its_template(
    outside: Path, place: Path, disk_records: Path, how: str
) -> None:
    absent = {"name": "web", "state": "absent"}
    base = paths.template_disk(DIGEST)
    if how == "found":
        fake_domains.qcow2(outside, 2**21, base, "qcow2")
    disk = {"path": str(outside)} if how != "link" else {}
    bring({**WEB, "disks": [{**disk, **({} if how == "found" else {"template": "debian"})}]})
    if how == "link":
        home = place / "workloads/web/disks/vda.qcow2"
        home.rename(outside)
        home.symlink_to(outside)
    bring(absent)
    check_stays(outside)
    # A guest again, and none again: it is told once.
    bring({**WEB, "disks": [{"path": str(outside)}]})
    check_stays(outside)
    bring(absent)
    check_stays(outside)
    item = {"path": str(outside), "backing": base}
    assert not disk_images.bring_to(Host(run=fake_domains.run), [item])["changed"]
    gone = disk_images.bring_to(Host(run=fake_domains.run), [{"path": str(outside), "state": "absent"}])
    assert (gone["images"][0]["actions"], os.listdir(disk_records)) == (["remove"], [])
    assert templates.remove("debian")


def test_that_is_known_before_libvirt_forgets_it(outside: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one without a definition nobody else knows it, should the run end there."""
    bring({**WEB, "disks": [{"path": str(outside), "template": "debian"}]})
    (place / "workloads/web/definition.json").unlink()

    def killed(*args: t.Any) -> None:
        raise Killed

    monkeypatch.setattr(guests, "forget_variables", killed)
    with pytest.raises(Killed):
        bring({"name": "web", "state": "absent"})
    check_stays(outside)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_so_does_one_that_is_taken_away(outside: Path, state: str) -> None:
    linked = {"path": str(outside), "template": "debian"}
    bring({**WEB, "state": state, "disks": [{"size_mib": 1}, linked]})
    assert templates.dependants(DIGEST) == ["guest web"]
    bring({**WEB, "state": state})
    check_stays(outside)
    bring({**WEB, "state": state, "disks": [{"size_mib": 1}, {"path": str(outside)}]})
    check_stays(outside)


def test_one_that_is_gone_or_another_by_now_keeps_nothing(outside: Path, disk_records: Path) -> None:
    wanted = {**WEB, "disks": [{"path": str(outside), "template": "debian"}]}
    bring(wanted)
    bring({"name": "web", "state": "absent"})
    for other in (2**21, 2**22):
        fake_domains.qcow2(outside, other)
        assert templates.dependants(DIGEST) == []
        item = {"path": str(outside), "size": str(other)}
        assert not disk_images.bring_to(Host(run=fake_domains.run), [item])["changed"]
        assert disk_images.report([str(outside)])["images"][0]["problem"] is None
    outside.unlink()
    assert templates.dependants(DIGEST) == []
    bring(wanted)
    assert templates.dependants(DIGEST) == ["guest web"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (outside.exists(), os.listdir(disk_records)) == (False, [])
    assert templates.remove("debian")


def test_what_a_guest_writes_into_a_raw_disk_keeps_nothing(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = outside.with_suffix(".raw")
    bring({**WEB, "disks": [{"path": str(raw), "format": "raw", "size_mib": 1}]})
    fake_domains.qcow2(raw, 2**20, paths.template_disk(DIGEST), "qcow2")
    bring({"name": "web", "state": "absent"})
    assert templates.dependants(DIGEST) == []
    # Nor does a disk behind a network that has the name of some file here.
    monkeypatch.chdir(raw.parent)
    guest_disks.leave({raw.name: "qcow2"})
    assert templates.dependants(DIGEST) == []


def left_behind(name: str, connection: FakeConnection) -> list[str]:
    """Why its files could not leave this host."""
    return guest_preflight._in_files(name, needs_of(connection, name))


def test_a_flattened_disk_rests_on_nothing(connection: FakeConnection, place: Path) -> None:
    """libvirt and QEMU would go on reading from the template."""
    template(place)
    wanted = {**WEB, "state": "stopped", "disks": [{"template": "debian"}]}
    bring(wanted)
    assert templates.dependants(DIGEST) == ["guest web"]
    fake_domains.qcow2(place / "workloads/web/disks/vda.qcow2", 2**21)
    with pytest.raises(HostError, match="flattened or rebased"):
        bring({"name": "web", "state": "running"})
    assert len(left_behind("web", connection)) == 1
    bring(wanted)
    assert left_behind("web", connection) == []
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    assert found["disks"]["vda"]["backing"] == []
    assert templates.dependants(DIGEST) == []
    assert not bring(wanted)["changed"]
    bring({"name": "web", "state": "running"})


def test_a_flattened_disk_above_snapshots(connection: FakeConnection, place: Path) -> None:
    off = {**WEB, "state": "stopped"}
    bring(off)
    snap("one")
    made = place / "workloads/web/disks/vda-1.qcow2"
    fake_domains.qcow2(made, 2**20)
    for wanted in ({"name": "web", "state": "running"}, WEB, off):
        with pytest.raises(HostError, match=r"vda-1\.qcow2 was flattened or rebased, and the guest has") as refused:
            bring(wanted)
    assert f"-b {place}/workloads/web/disks/vda.qcow2 -F qcow2 {made}'" in refused.value.hint
    fake_domains.qcow2(made, 2**20, f"{place}/workloads/web/disks/vda.qcow2", "qcow2")
    bring({"name": "web", "state": "running"})
    assert not bring(WEB)["changed"]


def test_a_file_that_was_there_before_is_kept(connection: FakeConnection, place: Path) -> None:
    """The disk that the collection made has its name, but that does not make it ours."""
    bring({**WEB, "state": "stopped"})
    fake_domains.qcow2(place / "mine.qcow2", 2**20)
    bring({**WEB, "state": "stopped", "disks": [{"path": str(place / "mine.qcow2")}]})
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (place / "mine.qcow2").exists()


def test_a_disk_that_was_moved_is_ours_still(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "state": "stopped"})
    (place / "workloads/web/disks/vda.qcow2").rename(place / "moved.qcow2")
    bring({**WEB, "state": "stopped", "disks": [{"path": str(place / "moved.qcow2")}]})
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not (place / "moved.qcow2").exists()


def test_a_disk_is_not_read_as_another_format_than_it_is_in(connection: FakeConnection, place: Path) -> None:
    path = place / "workloads/web/disks/vda.qcow2"
    fixed = place / "fixed.img"
    fake_domains.qcow2(fixed, 2**20)
    wanted = {**WEB, "state": "stopped", "disks": [{"size_mib": 1}, {"path": str(fixed)}]}
    bring(wanted)
    with pytest.raises(Refused, match=f"vdb: format: {fixed} is qcow2, not raw"):
        bring({**wanted, "disks": [{"size_mib": 1}, {"path": str(fixed), "format": "raw"}]})
    raw = {**wanted, "disks": [{"size_mib": 1, "format": "raw"}, {"path": str(fixed)}]}
    with pytest.raises(InputError, match="there is no file"):
        bring(raw)
    moved = path.rename(path.with_suffix(".raw"))
    with pytest.raises(Refused, match=r"vda\.raw is qcow2, not raw"):
        bring(raw)
    moved.write_bytes(bytes(2**20))
    bring(raw)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]["vda"]
    assert (found["path"], found["format"]) == (str(moved), "raw")
    assert not bring(raw)["changed"]


@pytest.fixture
def pools(connection: FakeConnection, place: Path) -> Path:
    """Two pools, and the file that a guest's disk has in the first one."""
    for name in ("one", "two"):
        (place / name).mkdir()
        connection.pools[name] = str(place / name)
    return place / "one/web-vda.qcow2"


POOLED = {**WEB, "state": "stopped", "disks": [{"pool": "one", "size_mib": 1}]}


@pytest.mark.parametrize("delete", [False, True])
def test_a_guest_is_removed_though_its_pool_is_gone(connection: FakeConnection, pools: Path, delete: bool) -> None:
    bring(POOLED)
    del connection.pools["one"]
    with pytest.raises(InputError, match="no pool 'one'"):
        bring(POOLED)
    result = one({"name": "web", "state": "absent", "delete_disks": delete})
    assert (result["kept_disks"], pools.exists()) == ([] if delete else [str(pools)], not delete)


def test_a_pool_that_is_in_another_directory_by_now(connection: FakeConnection, pools: Path) -> None:
    bring(POOLED)
    connection.pools["one"] = connection.pools["two"]
    with pytest.raises(InputError, match=f"the disk is {pools}, and there is no file"):
        bring(POOLED)
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not pools.exists()


def test_one_of_which_libvirt_knows_nothing_needs_its_pool(connection: FakeConnection, pools: Path) -> None:
    """Else its disk would stay behind, and nobody be told."""
    bring(POOLED)
    del connection.pools["one"], connection.domains["web"]
    with pytest.raises(InputError, match="no pool 'one'"):
        bring({"name": "web", "state": "absent", "delete_disks": True})
    connection.pools["one"] = str(pools.parent)
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not pools.exists()


def test_a_disk_is_given_another_pool_when_it_was_moved_there(connection: FakeConnection, pools: Path) -> None:
    bring(POOLED)
    wanted = {**POOLED, "disks": [{"pool": "two", "size_mib": 1}]}
    target = pools.parent.with_name("two") / pools.name
    with pytest.raises(InputError, match=f"the disk is {pools}, and there is no file {target}"):
        bring(wanted)
    shutil.copy(pools, target)
    with pytest.raises(Refused, match="is there already"):
        bring(wanted)
    pools.unlink()
    del connection.pools["one"]
    bring(wanted)
    found = domain.parse(t.cast("t.Any", connection.domains["web"].stored))["disks"]
    assert found["vda"]["path"] == str(target)
    assert not bring(wanted)["changed"]
    bring({"name": "web", "state": "absent", "delete_disks": True})
    assert not target.exists()


def test_one_with_snapshots_stays_where_it_is(pools: Path) -> None:
    """What was written since lies in another file, which rests on this one."""
    bring(POOLED)
    snap("one")
    target = pools.rename(pools.parent.with_name("two") / pools.name)
    for disk in ({"pool": "two", "size_mib": 1}, {"path": str(target)}):
        with pytest.raises(Refused, match="has snapshots"):
            bring({**POOLED, "disks": [disk]})


def test_a_guest_stays_with_its_template(place: Path) -> None:
    template(place)
    wanted = {**WEB, "disks": [{"template": "debian"}]}
    bring(wanted)
    other = "cd" * 32
    template(place, digest=other)
    result = bring(wanted)
    assert not result["changed"]
    assert any("stays with the template" in warning for warning in result["warnings"])
    (place / "templates/names/fedora").write_text(other)
    with pytest.raises(Refused, match="was made of the template debian"):
        bring({**WEB, "disks": [{"template": "fedora"}]})
    assert not bring({**WEB, "disks": [{"template": DIGEST}]})["guests"][0]["restart_required"]


def test_a_disk_that_is_there_is_not_made_of_a_template(place: Path) -> None:
    template(place)
    bring(WEB)
    with pytest.raises(Refused, match="vda was not made of a template"):
        bring({**WEB, "disks": [{"template": "debian"}]})


def test_a_disk_that_is_to_be_a_full_copy_and_is_none_is_told(place: Path) -> None:
    template(place)
    linked, full = ({**WEB, "state": "stopped", "disks": [{"template": "debian", "linked": one}]} for one in (1, 0))
    bring(linked)
    result = bring(full)
    assert not result["changed"]
    assert any("rests on its template still" in warning for warning in result["warnings"])
    assert templates.dependants(DIGEST) == ["guest web"]
    fake_domains.qcow2(place / "workloads/web/disks/vda.qcow2", 2**21)
    assert bring(full)["warnings"] == []
    assert bring(linked)["warnings"] == []


def test_many_new_guests_are_compared_with_those_that_are_there_at_the_price_of_one(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring({**WEB, "name": "there"})
    parse, read = domain.parse, []

    def counted(root: xml.Element) -> domain.Model:
        read.append(xml.text_of(root, "name"))
        return parse(root)

    monkeypatch.setattr(domain, "parse", counted)
    times = []
    for names in (["a"], ["b", "c", "d", "e"]):
        read.clear()
        bring(*({**WEB, "name": name} for name in names))
        times.append(read.count("there"))
    assert times[0] == times[1] > 0


def test_a_guest_whose_disk_stays_shuts_down_before_it_goes(connection: FakeConnection, place: Path) -> None:
    """What it has in its memory is to come to the disk of the user first."""
    data = place / "data.qcow2"
    fake_domains.qcow2(data, 2**20)
    gone = {"name": "web", "state": "absent", "delete_disks": True}
    bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(data), "read_only": True}]})
    connection.calls.clear()
    bring(gone)
    assert connection.calls[0] == "destroy web"
    bring({**WEB, "disks": [{"size_mib": 1}, {"path": str(data)}]})
    connection.domains["web"].obeys = False
    connection.calls.clear()
    with pytest.raises(HostError, match="did not stop within 0 s"):
        bring({**gone, "stop_timeout_s": 0})
    connection.domains["web"].obeys = True
    bring(gone)
    assert connection.calls == ["shutdown web", "undefine web 23"]
    assert data.exists()


def test_no_guest_writes_to_what_others_rest_on(place: Path) -> None:
    template(place)
    disk = str(place / f"templates/sha256/{DIGEST}/disk.qcow2")
    bring({**WEB, "disks": [{"path": disk, "read_only": True}]})
    for name in ("web", "new"):
        with pytest.raises(Refused, match="is a template's"):
            bring({**WEB, "name": name, "disks": [{"path": disk}]})
    bring({**WEB, "name": "other", "state": "stopped"})
    snap("one", guest="other")
    link = place / "link.qcow2"
    link.symlink_to(place / "workloads/other/disks/vda.qcow2")
    for path in (str(link), os.readlink(link)):
        with pytest.raises(Refused, match="is that of 'other'"):
            bring({**WEB, "name": "db", "disks": [{"path": path}]})


def test_a_template_that_is_not_here(place: Path) -> None:
    with pytest.raises(InputError, match="no template"):
        bring({**WEB, "disks": [{"template": "debian"}]})
    template(place)
    with pytest.raises(Refused, match="more than 1"):
        bring({**WEB, "disks": [{"template": "debian", "size_mib": 1}]})


def test_an_image_that_rests_on_a_file_from_elsewhere_is_refused(place: Path) -> None:
    (place / "secret").write_bytes(bytes(1024))
    image = place / "image.qcow2"
    fake_domains.qcow2(image, 2**20, str(place / "secret"), "raw")
    with pytest.raises(Refused, match="rests on"):
        bring({**WEB, "disks": [{"path": str(image)}]})
    (place / "image.qcow2").write_bytes(b"no image")
    with pytest.raises(Refused):
        bring({**WEB, "disks": [{"path": str(image)}]})
    with pytest.raises(InputError, match="no file"):
        bring({**WEB, "disks": [{"path": str(place / "absent")}]})


def test_an_image_that_is_cut_off_or_damaged_is_refused(place: Path) -> None:
    image = place / "image.qcow2"
    wanted = {**WEB, "disks": [{"path": str(image)}]}
    fake_domains.qcow2(image, 2**20)
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match=r"image\.qcow2: .* beyond its end"):
        bring(wanted)
    # An incompatible feature: the image is corrupt.
    image.write_bytes(whole[:79] + b"\x02" + whole[80:])
    with pytest.raises(Refused, match="marked as damaged"):
        bring(wanted)
    image.write_bytes(whole)
    bring(wanted)


def test_a_template_that_has_changed_is_refused_when_a_guest_on_it_is_started(place: Path) -> None:
    template(place)
    bring({**WEB, "state": "stopped", "disks": [{"template": "debian"}]})
    with open(place / f"templates/sha256/{DIGEST}/disk.qcow2", "ab") as file:
        file.write(b"more")
    bring({"name": "web", "state": "stopped"})
    for wanted in ({"name": "web"}, {**WEB, "disks": [{"template": "debian"}]}):
        with pytest.raises(Refused, match=r"is damaged: .* guest web"):
            bring(wanted)


def test_a_template_that_was_only_touched_is_known_again_but_not_in_check_mode(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template(place)
    monkeypatch.setattr(disks, "digest", lambda path: DIGEST)
    disk = place / f"templates/sha256/{DIGEST}/disk.qcow2"
    for wanted in ({**WEB, "state": "stopped", "disks": [{"template": "debian"}]}, {"name": "web"}):
        os.utime(disk)
        before = templates.record(DIGEST)
        assert bring(wanted, check_mode=True)["changed"]
        assert templates.record(DIGEST) == before
        bring(wanted)
        assert (templates.record(DIGEST) or {})["seen"]["mtime_ns"] == disk.stat().st_mtime_ns


def test_no_disk_is_made_in_a_pool_that_is_not_active(connection: FakeConnection, place: Path) -> None:
    """What is mounted there hides it later. A disk that is there already is where it is."""
    (place / "pool").mkdir()
    connection.pools["images"] = str(place / "pool")
    connection.inactive_pools.add("images")
    wanted = {**WEB, "disks": [{"pool": "images", "size_mib": 1}]}
    with pytest.raises(Missing, match="the pool 'images' is not active"):
        bring(wanted)
    assert list((place / "pool").iterdir()) == []
    connection.inactive_pools.clear()
    bring(wanted)
    connection.inactive_pools.add("images")
    assert not bring(wanted)["changed"]
