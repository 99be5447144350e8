# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module container_recover, as Ansible runs it."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.modules import container_recover


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> t.Callable[..., dict[str, t.Any]]:
    """Run it with containers of which ``moving`` are in a move, and a helper that says ``results``."""
    monkeypatch.setattr(paths, "WORKLOADS", f"{tmp_path}/containers")
    monkeypatch.setattr(paths, "HELPER", f"{tmp_path}/cnvm-host")

    def run_it(moving: t.Sequence[str] = (), results: t.Any = (), rc: int = 0, **args: t.Any) -> dict[str, t.Any]:
        for name in ("quiet", *moving):
            Path(paths.workload_dir(name)).mkdir(parents=True, exist_ok=True)
        for name in moving:
            Path(paths.journal_file(name)).write_text("{}")
        said = json.dumps({"results": list(results)}) if not rc else "it broke"
        helper = tmp_path / "cnvm-host"
        helper.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{said}'\nexit {rc}\n")
        helper.chmod(0o755)
        with patch_module_args(args), pytest.raises(SystemExit):
            container_recover.main()
        result: dict[str, t.Any] = json.loads(capfd.readouterr().out)
        asked = tmp_path / "asked"
        result["asked"] = asked.read_text().split() if asked.exists() else None
        return result

    return run_it


def test_nothing_to_do(run: t.Any) -> None:
    result = run()
    assert (result["changed"], result["results"], result["asked"]) == (False, [], None)


def test_what_is_in_a_move_is_recovered(run: t.Any) -> None:
    results = [
        {"name": "web", "outcome": "source", "message": "m"},
        {"name": "db", "outcome": "waiting", "message": "m"},
    ]
    result = run(["web", "db"], results)
    assert result["changed"]
    assert result["results"] == results
    assert result["asked"] == ["recover", "db", "web"]


@pytest.mark.parametrize(
    ("outcome", "changed"), [("source", True), ("target", True), ("waiting", False), ("busy", False), ("none", False)]
)
def test_changed(run: t.Any, outcome: str, changed: bool) -> None:
    assert run(["web"], [{"name": "web", "outcome": outcome, "message": "m"}])["changed"] is changed


def test_only_what_is_named(run: t.Any) -> None:
    assert run(["web", "db"], names=["web", ""])["asked"] == ["recover", "web"]
    assert run(["web"], names=["quiet"])["results"] == []


def test_fenced(run: t.Any) -> None:
    assert run(["web"], fenced="host2")["asked"] == ["recover", "--fenced", "host2", "web"]


def test_check_mode_says_what_would_be_looked_at(run: t.Any) -> None:
    result = run(["web"], _ansible_check_mode=True)
    assert (result["changed"], result["asked"]) == (True, None)
    assert [one["name"] for one in result["results"]] == ["web"]


@pytest.mark.parametrize("args", [{"names": ["../x"]}, {"fenced": "-x"}, {"names": ["a b"]}])
def test_bad_names(run: t.Any, args: dict[str, t.Any]) -> None:
    result = run(["web"], **args)
    assert result["failed"]
    assert result["error"] == "InputError"
    assert result["asked"] is None


def test_a_helper_that_fails(run: t.Any) -> None:
    result = run(["web"], rc=1)
    assert result["failed"]
    assert "Recovery failed: it broke" in result["msg"]
