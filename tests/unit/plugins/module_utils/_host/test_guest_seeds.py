# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is told beside what its owner says."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_seeds
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
