# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is told beside what its owner says."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_seeds, seeds
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._image import seed
from ansible_collections.cnvm.platform.tests.unit.plugins.module_utils._libvirt import guest_models


@pytest.mark.parametrize(
    ("kind", "key", "own"),
    [
        ("nocloud", "ethernets", {"version": 2, "ethernets": {}}),
        ("configdrive", "links", {"links": [], "networks": []}),
    ],
)
def test_its_overlay_address_is_told_in_the_words_of_its_seed(kind: str, key: str, own: dict[str, t.Any]) -> None:
    def told(**more: t.Any) -> t.Any:
        cards = [{"type": "overlay", "address": "10.100.101.30"}]
        item = guest_models.item(networks=cards, cloud_init={"type": kind, **more})
        return seed.normalise(guest_seeds.data_of(item, guest_models.OVERLAY), "x").network_config

    assert key in told()
    assert told(network_config=own) == own


@pytest.mark.parametrize(
    ("meta", "name"), [(None, "web"), ({"x": 1}, "web"), ("x: 1\n", "web"), ("hostname: own\n", "own")]
)
def test_its_name_is_told_where_it_has_no_other(
    meta: t.Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(paths, "guest_seed", lambda guest: str(tmp_path / f"{guest}.iso"))
    monkeypatch.setattr(
        seeds,
        "_make",
        lambda host, path, data, decision, attributes: made.append((data.meta_data["local-hostname"], decision.digest)),
    )
    host = Host(run=lambda *args, **options: pytest.fail("a command was run"))
    wanted = guest_seeds.wanted(host, guest_models.item(cloud_init={"meta_data": meta}), None)
    assert wanted
    guest_seeds.write(host, "web", wanted)
    assert made == [(name, wanted.record["digest"])]
