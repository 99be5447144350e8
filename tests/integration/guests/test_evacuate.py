# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host is emptied of its container and its guest, and gets both back; what is in the way is said before."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.cnvm.platform.tests.integration.guest import Guest
from ansible_collections.cnvm.platform.tests.integration.hosts import App, Fleet, Host, playbook


def evacuate(host: Host, record: Path, *args: str, check: bool = True) -> str:
    """What the playbook prints, in one line. Only the two hosts that have the workloads take part."""
    done = playbook(
        "cnvm.platform.evacuate", "--limit", "host1,host2", "-e", f"host={host.name}", "-e", f"record_file={record}",
        *args, check=check,
    )  # fmt: skip
    assert check or done.returncode
    return " ".join(done.stdout.split())


def together(fleet: Fleet, app: App, guest: Guest) -> Host:
    """The host that has both; the guest is where earlier tests have left it."""
    if app.source().name != guest.source().name:
        app.move()
    return fleet[guest.source().name]


def places(app: App, guest: Guest) -> tuple[str, str]:
    return app.source().name, guest.source().name


def test_there_and_back(fleet: Fleet, app: App, guest: Guest, tmp_path: Path) -> None:
    home = together(fleet, app, guest)
    away = fleet.other(home)
    record = tmp_path / "record.json"

    said = evacuate(home, record, "--check")
    for name in (app.name, guest.name):
        assert f"{name} " in said
    assert said.count(" planned ") == 2
    assert not record.exists()
    assert places(app, guest) == (home.name, home.name)

    # Allowed to all; nobody has to use it. By name the container would go first.
    words = ("-e", "allow_post_copy=true", "-e", f"first={guest.name}")
    assert evacuate(home, record, *words).count(" moved ") == 2
    # Each is on record before it goes.
    assert [one["name"] for one in json.loads(record.read_text(encoding="utf-8"))] == [guest.name, app.name]
    guest.check(away, [home, away])
    app.settle(away)
    assert "Nothing has to move." in evacuate(home, record)

    assert evacuate(home, record, "-e", "back=true").count(" moved ") == 2
    guest.check(home, [home, away, home])
    app.settle(home)
    assert "Nothing has to move." in evacuate(home, record, "-e", "back=true")


def test_what_is_in_the_way(fleet: Fleet, app: App, guest: Guest, tmp_path: Path) -> None:
    """A guest that is paused cannot move: nothing does, until it is told to go on with the others."""
    home = together(fleet, app, guest)
    record = tmp_path / "record.json"
    home.run("virsh", "suspend", guest.name)
    try:
        said = evacuate(home, record, check=False)
        assert " blocked " in said
        assert " moved " not in said
        assert places(app, guest) == (home.name, home.name)

        said = evacuate(home, record, "-e", "continue=true", check=False)
        assert (said.count(" blocked "), said.count(" moved ")) == (1, 1)
        assert places(app, guest) == (fleet.other(home).name, home.name)
    finally:
        home.run("virsh", "resume", guest.name)
    app.settle(fleet.other(home))
