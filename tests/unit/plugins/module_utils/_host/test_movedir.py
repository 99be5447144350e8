# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of a move that is over; on a real file system."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, movedir
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

HOST = Host(run=t.cast("t.Any", lambda *args, **kwargs: pytest.fail(f"ran {args}")))


def test_the_end_of_a_move_leaves_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mover was killed as it wrote: what it had not finished never counted, and does not stay."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path))
    for record in (paths.journal_file("web"), paths.owner_file("web"), paths.definition_file("web")):
        files.write_json(record, {"generation": 1})
        Path(f"{record}.new").write_text('{"gener', encoding="utf-8")
    movedir.end_journal("web")
    assert sorted(os.listdir(tmp_path / "web")) == ["definition.json", "owner.json"]
    movedir.end_journal("web")
    assert files.read_json(paths.owner_file("web")) == {"generation": 1}


def test_a_full_disk_keeps_nothing_of_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed after its directory is what has filled it."""
    for place in ("RUN", "LOGS"):
        monkeypatch.setattr(paths, place, str(tmp_path / place))
    work = Path(paths.move_dir("m1"), "work")
    work.mkdir(parents=True)
    (work / "restore.log").write_text("Error (criu/files-reg.c:1): Can't write\n", encoding="utf-8")

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        movedir.remove(HOST, "m1")
    assert not work.parent.exists()


def test_what_a_guest_said_goes_with_the_logs_of_its_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stay for ever where the guest has been. What another one said stays."""
    monkeypatch.setattr(paths, "LOGS", str(tmp_path))
    log = Path(paths.guest_log("web"))
    log.parent.mkdir()
    others = [Path(paths.guest_log(name)) for name in ("web2", "web.log", "web.log.0")]
    for path in (log, Path(f"{log}.0"), *others):
        path.write_text(path.name, encoding="utf-8")
    movedir.keep_console("web", "m1")
    movedir.keep_console("web", "m1")  # the move was ended twice
    kept = Path(paths.move_log_dir("m1"))
    assert {path.name: path.read_text(encoding="utf-8") for path in kept.iterdir()} == {
        name: name for name in ("web.log", "web.log.0")
    }
    assert sorted(log.parent.iterdir()) == sorted(others)


def test_what_a_guest_said_is_no_reason_to_hold_up_its_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "LOGS", str(tmp_path))
    log = Path(paths.guest_log("web"))
    log.parent.mkdir()
    log.touch()
    (tmp_path / "moves").touch()
    movedir.keep_console("web", "m1")
    assert log.exists()
