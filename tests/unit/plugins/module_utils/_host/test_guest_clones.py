# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of a host: what is handed to the code of guests, and that nothing is done on a template that has changed."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    building,
    guest_clones,
    guests,
    libvirt,
    templates,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.tests.support import images
from ansible_collections.cnvm.platform.tests.support.images import MIB

from .fake_qemu import Qemu

TWO = {"template": "debian", "pattern": "web%d", "count": 2, "guest": {"memory_mib": 512}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WORKLOADS", "KEPT_DISKS", "RUN", "TEMPLATES"):
        monkeypatch.setattr(paths, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(libvirt, "available", lambda: False)
    return tmp_path


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[dict[str, t.Any]], dict[str, t.Any]]]:
    """What the code of guests is asked for."""
    found: list[tuple[list[dict[str, t.Any]], dict[str, t.Any]]] = []

    def bring_to(host: Host, items: list[dict[str, t.Any]], **options: t.Any) -> dict[str, t.Any]:
        found.append((items, options))
        said = [f"Guest {item['name']} is emulated." for item in items]
        return {"changed": True, "guests": [{"name": item["name"]} for item in items], "diff": {}, "warnings": said}

    monkeypatch.setattr(guests, "bring_to", bring_to)
    return found


def template(name: str = "debian", size: int = 4 * MIB) -> str:
    with building.directory(paths.TEMPLATES, name) as place:
        images.qcow2(size).write(Path(place) / "disk.qcow2")
        digest, _new = templates.store(place, {"made_of": "x"})
    templates.point(name, digest)
    return digest


def bring(values: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
    return guest_clones.bring_to(Host(run=Qemu()), values, **options)


def test_they_are_guests_like_others(calls: list[t.Any]) -> None:
    digest = template()
    done = bring(TWO, check_mode=True, restart_on_change=True, ask_timeout_s=3)
    assert done["template"] == {"name": "debian", "digest": digest}
    assert [one["name"] for one in done["clones"]] == ["web1", "web2"]
    assert done["warnings"] == ["Guest web1 is emulated. So it is with web2."]
    items, options = calls[0]
    assert [item["disks"] for item in items] == [[{"template": "debian", "linked": True}]] * 2
    assert (options["check_mode"], options["restart_on_change"], options["ask_timeout_s"]) == (True, True, 3)


def test_a_template_that_has_changed_is_refused_before_anything(calls: list[t.Any]) -> None:
    digest = template()
    with open(paths.template_disk(digest), "ab") as file:
        file.write(b"more")
    with pytest.raises(Refused, match="damaged"):
        bring(TWO)
    assert calls == []
    # Who is to end need not have a whole one; they have to be stopped before it is mended.
    for state in ("stopped", "absent"):
        bring({**TWO, "state": state})
    assert len(calls) == 2


def test_one_that_was_only_touched_is_known_again_but_not_in_check_mode(calls: list[t.Any]) -> None:
    digest = template()
    os.utime(paths.template_disk(digest))
    before = templates.record(digest)
    bring(TWO, check_mode=True)
    assert templates.record(digest) == before
    bring(TWO)
    assert templates.record(digest) != before


def test_so_is_an_older_one_that_the_clones_rest_on(calls: list[t.Any]) -> None:
    old = template()
    definition = {"disks": [{"name": "vda", "linked": True, "template_digest": old, "path": "", "format": "qcow2"}]}
    home = Path(paths.WORKLOADS) / "web2"
    home.mkdir(parents=True)
    (home / "definition.json").write_text(json.dumps(definition))
    new = template(size=8 * MIB)
    assert bring(TWO)["template"]["digest"] == new
    with open(paths.template_disk(old), "ab") as file:
        file.write(b"more")
    with pytest.raises(Refused, match=old):
        bring(TWO)
    with pytest.raises(Refused, match="guest web2"):
        bring({"pattern": "web%d", "count": 2, "state": "running"})
    # A full copy does not depend on it.
    definition["disks"][0]["linked"] = False
    (home / "definition.json").write_text(json.dumps(definition))
    bring(TWO)


def test_a_template_that_is_not_here_is_the_guests_business(calls: list[t.Any]) -> None:
    """Clones may all be elsewhere by now."""
    assert bring(TWO)["template"] == {"name": "debian", "digest": None}
    assert bring({"names": ["a"], "state": "stopped"})["template"] is None
