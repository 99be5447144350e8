# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's seed tells it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors

from ..fake_domains import FakeConnection, FakeError
from .bring import WEB, bring, one


def test_a_seed_is_made_and_made_again_when_the_data_change(connection: FakeConnection, place: Path) -> None:
    wanted = {**WEB, "cloud_init": {"user_data": {"packages": ["vim"]}}}
    bring(wanted)
    seed = place / "workloads/web/seed.iso"
    assert seed.exists()
    model = domain.parse(t.cast("t.Any", connection.domains["web"].stored))
    assert model["cdroms"] == {"sdb": {"path": str(seed), "bus": "scsi"}}
    assert not bring(wanted)["changed"]
    changed = {**wanted, "cloud_init": {"user_data": {"packages": ["emacs"]}}}
    found = one(changed)
    assert "write seed" in found["actions"]
    assert [each["option"] for each in found["restart_reasons"]] == ["cloud_init"]
    again = bring(changed)
    assert (again["changed"], again["guests"][0]["restart_required"]) == (False, True)
    assert "packages" not in (place / "workloads/web/definition.json").read_text()
    with pytest.raises(InputError, match="cloud_init"):
        bring({**wanted, "cloud_init": {"user_data": "#cloud-config\npackages: ["}})


def test_a_seed_that_is_not_wanted_goes_when_nothing_reads_it(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    found = one(WEB)
    assert "cloud_init" in [each["option"] for each in found["restart_reasons"]]
    assert (place / "workloads/web/seed.iso").exists()
    bring({"name": "web", "state": "stopped"})
    assert "remove seed" in one({**WEB, "state": "stopped"})["actions"]
    assert not (place / "workloads/web/seed.iso").exists()
    assert not bring({**WEB, "state": "stopped"})["changed"]


@pytest.mark.parametrize("more", [{"state": "stopped"}, {}])
def test_it_goes_with_the_stop_that_lets_go_of_it(place: Path, more: dict[str, t.Any]) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    assert "stop" in one({**WEB, **more}, restart_on_change=True)["actions"]
    assert not (place / "workloads/web/seed.iso").exists()
    assert not bring({**WEB, **more})["changed"]


def test_it_stays_as_long_as_something_names_it(connection: FakeConnection, place: Path) -> None:
    bring({**WEB, "cloud_init": {"user_data": {}}})
    bring({"name": "web", "state": "stopped"})
    connection.domains["web"].saved = True
    assert "remove seed" not in one({**WEB, "state": "stopped"})["actions"]
    connection.domains["web"].saved = False
    bring({**WEB, "state": "stopped", "cloud_init": {"user_data": {}}})
    connection.fails["web"] = FakeError(errors.XML_ERROR, "no")
    with pytest.raises(HostError, match="define"):
        bring({**WEB, "state": "stopped"})
    assert (place / "workloads/web/seed.iso").exists()
