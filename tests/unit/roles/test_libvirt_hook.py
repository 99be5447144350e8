# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook that libvirt calls, run as libvirt runs it, with a helper that answers as told."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.plugin_utils import _helper

HOOK = Path(_helper.collection_root()) / "roles/host_bootstrap/files/libvirt-hook"
Call = t.Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the records are, with one of the guest web."""
    record = tmp_path / "workloads/web/owner.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(state: Path) -> Call:
    """Call the hook; ``helper``: what the helper does (None: there is none)."""

    def run(*words: str, helper: str | None = "exit 0") -> subprocess.CompletedProcess[str]:
        program = state / "cnvm-host"
        if helper is not None:
            program.write_text(f'#!/bin/sh\necho "$@" >>{state}/asked\n{helper}\n', encoding="utf-8")
            program.chmod(0o755)
        text = HOOK.read_text(encoding="utf-8")
        for real, here in ((paths.STATE, state), (paths.HELPER, program)):
            assert real in text
            text = text.replace(real, str(here))
        hook = state / "hook"
        hook.write_text(text, encoding="utf-8")
        hook.chmod(0o755)
        return subprocess.run(
            [hook, *words], input="<domain/>", env={}, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def asked(state: Path) -> list[str]:
    file = state / "asked"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_hook_looks_where_the_records_are(state: Path) -> None:
    record = paths.owner_file("$1")
    assert f'"{record}"' in HOOK.read_text(encoding="utf-8")


def test_guest_that_may_start(call: Call, state: Path) -> None:
    done = call("web", "prepare", "begin", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert asked(state) == ["guest may-start web"]


def test_guest_that_may_not_start(call: Call) -> None:
    done = call("web", "prepare", "begin", "-", helper="echo 'Guest web is at host2.' >&2; exit 1")
    assert (done.returncode, done.stderr) == (1, "Guest web is at host2.\n")


@pytest.mark.parametrize(
    "words",
    [
        ("web", "started", "begin", "-"),
        ("web", "prepare", "end", "-"),
        ("web", "migrate", "begin", "-"),
        ("web", "reconnect", "begin", "-"),
        ("web",),
        (),
    ],
)
def test_other_events_are_not_looked_at(call: Call, state: Path, words: tuple[str, ...]) -> None:
    assert call(*words, helper="exit 1").returncode == 0
    assert asked(state) == []


@pytest.mark.parametrize(
    "name", ["other", "", "..", "../workloads/web", "web/../web", "a b", "-x", "web\n", "w*b", "ẅeb"]
)
def test_guests_without_a_record_start(call: Call, state: Path, name: str) -> None:
    assert call(name, "prepare", "begin", "-", helper="exit 1").returncode == 0
    assert asked(state) == []


def test_helper_that_knows_no_guests(call: Call) -> None:
    older = "echo \"cnvm-host: 'guest' is no command. There are: version.\" >&2; exit 1"
    assert call("web", "prepare", "begin", "-", helper=older).returncode == 0


@pytest.mark.parametrize("helper", [None, "kill -9 $$", "exit 3"])
def test_without_an_answer_it_does_not_start(call: Call, helper: str | None) -> None:
    done = call("web", "prepare", "begin", "-", helper=helper)
    assert done.returncode == 1
    assert done.stderr.strip()
