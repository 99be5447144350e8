# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image of an OCI layout is meant."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._oci import layout


def index(*tags: str) -> dict[str, t.Any]:
    named = [{"digest": "sha256:0", "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]
    return {
        "schemaVersion": 2,
        "manifests": [*named, {"digest": "sha256:1"}, {"digest": "sha256:2", "annotations": None}],
    }


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/srv/web", ("/srv/web", "")),
        ("/srv/web:v1", ("/srv/web", "v1")),
        ("/srv/a:b/web", ("/srv/a:b/web", "")),
        ("/srv/web.tar:v1.2", ("/srv/web.tar", "v1.2")),
    ],
)
def test_split(text: str, parts: tuple[str, str]) -> None:
    assert layout.split(text) == parts


def test_pick() -> None:
    assert layout.pick(index("v1"), "", "/l") == "v1"
    assert layout.pick(index("v1", "v2"), "v2", "/l") == "v2"
    assert layout.pick(index("v1", "latest"), "", "/l") == "latest"


@pytest.mark.parametrize(
    ("found", "tag", "message", "hint"),
    [
        (index("v1", "v2"), "", "/l has no image 'latest'", "v1, v2"),
        (index("v1"), "latest", "no image 'latest'", "v1"),
        (index(), "", "no image in /l has a tag", "umoci tag"),
        ([], "", "index.json of /l is none", "manifests"),
        ({"manifests": {}}, "", "index.json of /l is none", "manifests"),
    ],
)
def test_pick_refuses(found: t.Any, tag: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        layout.pick(found, tag, "/l")
    assert hint in refused.value.hint
