# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's hook is told when a guest is to start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_start
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

from .. import fake_domains
from .bring import record


def test_what_may_start(place: Path) -> None:
    guest_start.check_start("web")
    guest_start.check_start("no name of ours/../x")
    record(place)
    guest_start.check_start("web")
    record(place, claim=True)
    guest_start.check_start("web")
    record(place, owner="other", owner_name="host2")
    with pytest.raises(Refused, match="is at host2"):
        guest_start.check_start("web")
    record(place, owner="other", kind="container")
    guest_start.check_start("web")


def test_what_may_not_start_in_a_move(place: Path) -> None:
    record(place)
    journal = place / "workloads/web/move.json"
    journal.write_text(json.dumps({"role": "source"}))
    with pytest.raises(Refused, match="not finished"):
        guest_start.check_start("web")
    journal.write_text(json.dumps({"role": "source", "state": "begun"}))
    guest_start.check_start("web")
    # What came with the move is given up.
    active = {"role": "target", "kind": "guest", "state": "active", "peer": "host1"}
    journal.write_text(json.dumps(active))
    with pytest.raises(Refused, match="not finished"):
        guest_start.check_start("web")
    journal.write_text(json.dumps({**active, "anew": True}))
    guest_start.check_start("web")
    record(place, owner="other", owner_name="host2")
    with pytest.raises(Refused, match="is at host2"):
        guest_start.check_start("web")
    record(place)
    (place / "workloads/web/owner.json").write_text("{")
    journal.unlink()
    with pytest.raises(HostError):
        guest_start.check_start("web")


def test_what_arrives_starts_once(place: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    record(place, owner="other")
    owner, journal = place / "workloads/web/owner.json", place / "workloads/web/move.json"
    arriving = {"role": "target", "kind": "guest", "state": "receiving", "boot_id": boot, "peer": "host1"}
    for before in (True, False):
        if not before:
            owner.unlink()
        journal.write_text(json.dumps(arriving))
        guest_start.check_start("web")
        for more in ({"state": "prepared"}, {"boot_id": "before"}):
            journal.write_text(json.dumps({**arriving, **more}))
            with pytest.raises(Refused, match="is at host1" if not before else "not started here"):
                guest_start.check_start("web")


def test_the_command(place: Path) -> None:
    record(place, owner="other", owner_name="host2")
    command = guest_start.commands()["guest"]
    host = Host(run=fake_domains.run)
    with pytest.raises(Refused):
        command(["may-start", "web"], host)
    assert command(["may-start", "db"], host) == 0
    for words in ([], ["may-start"], ["stop", "web"]):
        with pytest.raises(InputError, match="Usage"):
            command(words, host)
