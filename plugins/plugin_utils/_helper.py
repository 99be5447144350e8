# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""What of the collection is copied to hosts as the library of ``cnvm-host``."""

from __future__ import annotations

import json
import os

from ansible_collections.cnvm.platform.plugins.module_utils._core.digest import files_digest

ROOMS = ("_core", "_net", "_oci", "_criu", "_image", "_libvirt", "_migrate", "_host")


def collection_root() -> str:
    """The directory of this installation of the collection."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def helper_files(root: str) -> dict[str, str]:
    """Path below the helper's package → text, for every file of the rooms that a host needs."""
    files: dict[str, str] = {}
    for room in ROOMS:
        folder = os.path.join(root, "plugins", "module_utils", room)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    files[f"{room}/{name}"] = file.read()
    return files


def helper_digest() -> str:
    """The digest that a helper of this installation of the collection has."""
    return files_digest(helper_files(collection_root()))


def collection_version(root: str) -> str:
    """The version of the collection: of the installed one from MANIFEST.json, of a checkout from galaxy.yml."""
    try:
        with open(os.path.join(root, "MANIFEST.json"), encoding="utf-8") as file:
            return str(json.load(file)["collection_info"]["version"])
    except FileNotFoundError:
        pass
    try:
        with open(os.path.join(root, "galaxy.yml"), encoding="utf-8") as file:
            found = [line.split(":", 1)[1] for line in file if line.startswith("version:")]
    except FileNotFoundError:
        found = []
    return found[0].strip().strip("\"'") if found else "0.0.0"
