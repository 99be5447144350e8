# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""OCI image layouts: which image is meant (image-spec, image-layout.md and annotations.md)."""

from __future__ import annotations

import typing as t

from .._core.errors import InputError

_TAG = "org.opencontainers.image.ref.name"


def split(text: str) -> tuple[str, str]:
    """(path, tag) of ``PATH[:TAG]``; the tag is '' where none is given."""
    path, colon, tag = text.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (text, "")


def pick(index: t.Any, tag: str, path: str) -> str:
    """The tag of the image in ``path``, whose index.json is ``index``: ``tag``; where none is given the only one, or
    ``latest``."""
    found = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(found, list):
        raise InputError(f"oci_layout: the index.json of {path} is none.", hint="Its list 'manifests' is missing.")
    notes = [one.get("annotations") for one in found if isinstance(one, dict)]
    tags = sorted({str(each[_TAG]) for each in notes if isinstance(each, dict) and _TAG in each})
    if not tag:
        tag = tags[0] if len(tags) == 1 else "latest"
    if tag in tags:
        return tag
    if not tags:
        raise InputError(f"oci_layout: no image in {path} has a tag.", hint="Give it one: umoci tag, or skopeo copy.")
    raise InputError(f"oci_layout: {path} has no image {tag!r}.", hint=f"Its tags: {', '.join(tags)}. Give PATH:TAG.")
