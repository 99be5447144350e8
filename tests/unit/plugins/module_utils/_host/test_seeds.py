# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seeds of a host, with a stand-in for xorriso that writes what the descriptor has, and notes the files."""

from __future__ import annotations

import os
import shutil
import stat
import struct
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
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._host import disks, seeds
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

from .killing import at_each_effect

SECRET = "C4n4ry"
DATA: dict[str, t.Any] = {"user_data": {"password": SECRET}, "meta_data": {"local-hostname": "w"}}


class Xorriso:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.files: dict[str, str] = {}
        self.modes: set[int] = set()
        self.result: t.Optional[CommandResult] = None

    def __call__(
        self, argv: t.Sequence[str], *, stdin: t.Optional[str] = None, check: bool = True, timeout_s: t.Any = None
    ):
        self.calls.append(list(argv))
        self.files = {}
        for place, _below, names in os.walk(argv[-1]):
            self.modes.add(stat.S_IMODE(os.stat(place).st_mode))
            for name in names:
                path = Path(place, name)
                self.files[str(path.relative_to(argv[-1]))] = path.read_text()
                self.modes.add(stat.S_IMODE(path.stat().st_mode))
        if self.result:
            return checked(self.result)
        fields = {argv[n]: argv[n + 1] for n in range(len(argv) - 1) if argv[n].startswith("-")}
        raw = bytearray(b" " * 2048)
        raw[:7] = b"\1CD001\1"
        raw[40 : 40 + len(fields["-V"])] = fields["-V"].encode()
        struct.pack_into("<I", raw, 80, 17)
        Path(fields["-o"]).write_bytes(bytes(32768) + bytes(raw))
        self.modes.add(stat.S_IMODE(Path(fields["-o"]).stat().st_mode))
        return CommandResult(tuple(argv), 0)


@pytest.fixture
def xorriso(monkeypatch: pytest.MonkeyPatch) -> Xorriso:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "xorriso" else None)
    return Xorriso()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    (tmp_path / "d").mkdir()
    return tmp_path / "d"


def bring(xorriso: Xorriso, *items: dict[str, t.Any], check_mode: bool = False) -> dict[str, t.Any]:
    return seeds.bring_to(Host(run=xorriso), list(items), check_mode=check_mode)


def test_a_seed_is_made_once(place: Path, xorriso: Xorriso) -> None:
    item = {"path": f"{place}/w.iso", **DATA}
    would = bring(xorriso, item, check_mode=True)
    assert would["changed"]
    assert xorriso.calls == []
    assert os.listdir(place) == []
    done = bring(xorriso, item)
    assert would["diff"] == done["diff"]
    assert would["seeds"] == done["seeds"]
    made = done["seeds"][0]
    assert (made["changed"], made["new_instance"], made["type"], made["label"]) == (True, True, "nocloud", "cidata")
    assert sorted(xorriso.files) == ["meta-data", "user-data"]
    assert SECRET in xorriso.files["user-data"]
    assert made["instance_id"] in xorriso.files["meta-data"]
    assert stat.S_IMODE(os.stat(item["path"]).st_mode) == 0o600
    before = os.stat(item["path"]).st_ino
    again = bring(xorriso, item)
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"]
    assert len(xorriso.calls) == 1
    assert os.stat(item["path"]).st_ino == before


def test_the_data_are_nowhere_else(place: Path, xorriso: Xorriso) -> None:
    result = bring(xorriso, {"path": f"{place}/w.iso", **DATA})
    assert SECRET not in repr(result)
    assert SECRET not in repr(xorriso.calls)
    assert xorriso.modes == {0o600, 0o700}
    assert os.listdir(place.parent / "run/seeds") == []
    xorriso.result = CommandResult(("xorriso",), 5, "", "xorriso : FAILURE : something")
    with pytest.raises(CommandError):
        bring(xorriso, {"path": f"{place}/v.iso", **DATA})
    assert os.listdir(place.parent / "run/seeds") == []
    assert os.listdir(place) == ["w.iso"]


def test_what_a_killed_run_left_is_not_in_the_seed(place: Path, xorriso: Xorriso) -> None:
    bring(xorriso, {"path": f"{place}/w.iso", **DATA})
    left = Path(xorriso.calls[0][-1])
    left.mkdir()
    (left / "vendor-data").write_text("old")
    bring(xorriso, {"path": f"{place}/w.iso", "user_data": {"packages": []}})
    assert Path(xorriso.calls[1][-1]) == left
    assert sorted(xorriso.files) == ["meta-data", "user-data"]


@pytest.mark.parametrize("state", ["present", "absent"])
def test_making_one_is_killed_at_each_step(
    place: Path, xorriso: Xorriso, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """The data may be secrets: the next run leaves them nowhere else."""
    item = {"path": f"{place}/w.iso", **DATA}
    absent = {"path": item["path"], "state": "absent"}

    def look() -> None:
        bring(xorriso, item if state == "present" else absent)
        assert os.listdir(place) == (["w.iso"] if state == "present" else [])
        seeds_left = place.parent / "run/seeds"
        assert not seeds_left.exists() or os.listdir(seeds_left) == []
        bring(xorriso, absent)

    assert at_each_effect(monkeypatch, lambda: None, lambda: bring(xorriso, item), look) > 8


def test_policies(place: Path, xorriso: Xorriso) -> None:
    item = {"path": f"{place}/w.iso", **DATA}
    first = bring(xorriso, item)["seeds"][0]
    changed = {**item, "user_data": {"packages": ["curl"]}}
    kept = bring(xorriso, {**changed, "policy": "keep"})["seeds"][0]
    assert (kept["changed"], kept["new_instance"], kept["instance_id"]) == (True, False, first["instance_id"])
    new = bring(xorriso, item)["seeds"][0]
    assert (new["changed"], new["new_instance"]) == (True, True)
    assert new["instance_id"] != first["instance_id"]


def test_the_function_for_guests(place: Path, xorriso: Xorriso) -> None:
    path = f"{place}/w.iso"
    written = seeds.write(Host(run=xorriso), path, DATA, "keep")
    assert (written.changed, written.new_instance, written.warnings) == (True, True, ())
    again = seeds.write(Host(run=xorriso), path, DATA, "keep")
    assert (again.changed, again.instance_id) == (False, written.instance_id)
    with pytest.raises(InputError, match="policy"):
        seeds.write(Host(run=xorriso), path, DATA, "never")


def test_nothing_is_written_when_one_of_them_is_wrong(place: Path, xorriso: Xorriso) -> None:
    good, bad = {"path": f"{place}/a.iso", **DATA}, {"path": f"{place}/b.iso", "user_data": "nothing\n"}
    with pytest.raises(InputError, match=r"b\.iso: user_data"):
        bring(xorriso, good, bad)
    assert xorriso.calls == []
    with pytest.raises(InputError, match="twice"):
        bring(xorriso, good, good)
    with pytest.raises(InputError, match="unknown key"):
        bring(xorriso, {**good, "size": 1})


def test_a_file_of_somebody_else_is_left_alone(place: Path, xorriso: Xorriso) -> None:
    path = place / "w.iso"
    for content in (b"", b"x" * 40000):
        path.write_bytes(content)
        for state in ("present", "absent"):
            with pytest.raises(Refused, match="no seed"):
                bring(xorriso, {"path": str(path), "state": state, **DATA})
        assert path.read_bytes() == content
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="no plain file"):
        bring(xorriso, {"path": str(path), **DATA})


def test_absent(place: Path, xorriso: Xorriso) -> None:
    item = {"path": f"{place}/w.iso", **DATA}
    bring(xorriso, item)
    gone = {"path": item["path"], "state": "absent"}
    assert bring(xorriso, gone, check_mode=True)["changed"]
    assert os.path.exists(item["path"])
    assert bring(xorriso, gone)["changed"]
    assert not bring(xorriso, gone)["changed"]
    assert os.listdir(place) == []


def test_a_seed_that_was_cut_off_is_made_again(place: Path, xorriso: Xorriso) -> None:
    item = {"path": f"{place}/w.iso", **DATA}
    first = bring(xorriso, item)["seeds"][0]
    with open(item["path"], "r+b") as file:
        file.seek(32768 + 80)
        file.write(struct.pack("<I", 5000))
    again = bring(xorriso, item)["seeds"][0]
    assert (again["changed"], again["new_instance"], again["instance_id"]) == (True, False, first["instance_id"])


def test_mode_and_owner(place: Path, xorriso: Xorriso) -> None:
    item = {"path": f"{place}/w.iso", **DATA}
    bring(xorriso, {**item, "mode": "0644"})
    assert bring(xorriso, item)["changed"] is False
    assert bring(xorriso, {**item, "mode": "0640"}, check_mode=True)["changed"]
    result = bring(xorriso, {**item, "mode": "0640"})
    assert (result["changed"], result["seeds"][0]["new_instance"]) == (True, False)
    assert result["diff"]["after"][item["path"]]["mode"] == "0640"
    assert len(xorriso.calls) == 1
    with pytest.raises(InputError, match="mode"):
        bring(xorriso, {**item, "mode": 420})


def test_no_program(place: Path, xorriso: Xorriso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HostError, match="xorriso is missing"):
        bring(xorriso, {"path": f"{place}/w.iso", **DATA})
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "genisoimage" else None)
    bring(xorriso, {"path": f"{place}/w.iso", **DATA})
    assert xorriso.calls[0][0] == "genisoimage"


def test_no_room(place: Path, xorriso: Xorriso) -> None:
    xorriso.result = CommandResult(("xorriso",), 5, "", "libburn : FATAL : No space left on device")
    with pytest.raises(HostError, match="no room"):
        bring(xorriso, {"path": f"{place}/w.iso", **DATA})


def test_without_a_yaml_library(place: Path, xorriso: Xorriso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_yaml", lambda: None)
    assert seeds.yaml_reader() is None
    text = {
        "user_data": "#cloud-config\nruncmd: [x\n", "vendor_data": "#cloud-config-archive\n- [\n",
        "meta_data": "local-hostname: [w\n", "network_config": "version: 3\n",
    }  # fmt: skip
    for check_mode in (True, False):
        found = bring(xorriso, {"path": f"{place}/t.iso", **text}, check_mode=check_mode)["warnings"]
        assert [words.partition(": only how it begins was checked")[0] for words in found] == [
            f"seeds: {place}/t.iso: {key}" for key in ("user_data", "vendor_data", "meta_data", "network_config")
        ]
    # What is not YAML, or is read without it, is no matter.
    good = {"user_data": "#!/bin/sh\n", "meta_data": '{"local-hostname": "w"}'}
    assert bring(xorriso, {"path": f"{place}/g.iso", **good})["warnings"] == []
    item = {
        "path": f"{place}/w.iso",
        "user_data": "#cloud-config\npackages: [curl\n",
        "meta_data": "local-hostname: w\n",
    }
    made = bring(xorriso, item)["seeds"][0]
    assert xorriso.files["meta-data"] == f'local-hostname: w\ninstance-id: "{made["instance_id"]}"\n'
    assert not bring(xorriso, item)["changed"]
    with pytest.raises(InputError):
        bring(xorriso, {**item, "user_data": "packages: [curl]\n"})


def test_two_at_once(place: Path, xorriso: Xorriso) -> None:
    with disks.at_work_on(f"{place}/w.iso"), pytest.raises(Refused, match="is at work on it"):
        bring(xorriso, {"path": f"{place}/w.iso", **DATA})
