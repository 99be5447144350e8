# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest runs in one place."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import (
    HostError,
    InputError,
    PeerError,
    Refused,
)

from ..fake_domains import FakeConnection
from .bring import WEB, bring, one, overlay


def test_a_guest_that_was_moved_is_left_alone(connection: FakeConnection, place: Path) -> None:
    bring(WEB)
    owner = json.loads((place / "workloads/web/owner.json").read_text())
    (place / "workloads/web/owner.json").write_text(
        json.dumps({**owner, "owner": "other", "owner_name": "host2", "generation": 2})
    )
    connection.calls.clear()
    for item in (WEB, {"name": "web", "state": "stopped"}, {"name": "web", "state": "absent"}):
        result = bring(item)
        assert not result["changed"]
        assert result["guests"][0]["placement"] == "host2"
        assert result["guests"][0]["state"] == "moved"
    assert connection.calls == []


@pytest.mark.parametrize("owner", ["me", "other"])
def test_a_container_of_that_name_is_no_guest(place: Path, owner: str) -> None:
    own = place / "workloads/web"
    own.mkdir()
    (own / "owner.json").write_text(json.dumps({"kind": "container", "owner": owner, "generation": 3}))
    result = bring({"name": "web", "state": "absent", "delete_disks": True})
    assert (result["changed"], result["warnings"]) == (False, [])
    assert (own / "owner.json").exists()
    with pytest.raises(InputError, match="no such guest"):
        bring({"name": "web", "state": "stopped"})
    if owner == "me":
        with pytest.raises(Refused, match="has a container called 'web'"):
            bring(WEB)


def test_a_guest_in_a_move_is_refused(place: Path) -> None:
    bring(WEB)
    (place / "workloads/web/move.json").write_text("{}")
    with pytest.raises(Refused, match="not finished"):
        bring({"name": "web", "state": "stopped"})


def test_a_name_or_an_address_at_a_peer(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"db": {"here": True, "kind": "guest", "address": "10.100.101.30"}}
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": theirs}})
    found = one({**WEB, "name": "db"})
    assert (found["placement"], found["state"], found["changed"]) == ("host2", "moved", False)
    card = {"type": "overlay", "address": "10.100.101.30"}
    with pytest.raises(Refused, match="belongs to guest 'db' at host2"):
        bring({**WEB, "networks": [card]})
    assert connection.calls == []
    made = one({**WEB, "networks": [{**card, "address": "10.100.101.31"}], "cloud_init": {"user_data": {}}})
    assert made["overlay_address"] == "10.100.101.31"
    overlay(place, monkeypatch, {"host2": {"ok": False, "error": "no route"}})
    with pytest.raises(PeerError, match="no route"):
        bring({**WEB, "name": "mail"})
    assert not os.path.exists(place / "workloads/mail")


def test_a_mac_or_a_uuid_at_a_peer(connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another guest may not have it, wherever that is: neither a new one nor one that gets another card."""
    mac, uuid = "52:54:00:00:00:77", "9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11"
    db = {"here": True, "kind": "guest", "uuid": uuid, "macs": [mac]}
    answers: dict[str, t.Any] = {"host2": {"ok": True, "workloads": {"db": db}}}
    overlay(place, monkeypatch, answers)
    for given, said in (({"networks": [{"mac": mac}]}, f"MAC {mac}"), ({"uuid": uuid}, f"UUID {uuid}")):
        for check_mode in (True, False):
            with pytest.raises(Refused, match=f"{said} of 'web' belongs to guest 'db' at host2"):
                bring({**WEB, **given}, check_mode=check_mode)
        assert connection.calls == []
        assert os.listdir(place / "workloads") == []
    bring(WEB)
    with pytest.raises(Refused, match=f"MAC {mac} of 'web' belongs to guest 'db' at host2"):
        bring({**WEB, "networks": [{}, {"mac": mac}]})
    answers["host2"]["workloads"]["db"] = {**db, "here": False}
    assert bring({**WEB, "networks": [{}, {"mac": mac}]})["changed"]
    answers["host2"] = {"ok": False, "error": "no route"}
    assert bring({**WEB, "networks": [{}, {"mac": mac}, {}]})["changed"], "one that is silent is in nobody's way"


def test_the_address_of_one_that_is_removed_in_the_same_call(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with containers; but not before that one has ended."""
    overlay(place, monkeypatch, {"host2": {"ok": True, "workloads": {}}})
    wanted = {**WEB, "networks": [{"type": "overlay", "address": "10.100.101.30"}]}
    bring({**wanted, "name": "old"})
    with pytest.raises(Refused, match=r"address 10\.100\.101\.30 of 'web' is that of guest 'old'"):
        bring(wanted)
    connection.domains["old"].obeys = False
    leaves = {"name": "old", "state": "absent", "stop_timeout_s": 0}
    with pytest.raises(HostError, match="'old' did not stop"):
        bring(wanted, leaves)
    assert sorted(connection.domains) == ["old"]
    connection.calls.clear()
    bring(wanted, {**leaves, "force_stop": True})
    assert sorted(connection.domains) == ["web"]
    assert not bring(wanted, leaves)["changed"]
