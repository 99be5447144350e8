# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The library of ``cnvm-host`` on a host: installed whole beside the old one, then switched to by a link."""

from __future__ import annotations

import json
import os
import shutil
import typing as t

from .._core.digest import files_digest
from .._core.errors import InputError
from .files import read_json, sync_dir, write_json

PACKAGE = "cnvm_platform"
VERSION_FILE = "version.json"


def _link(library: str) -> str:
    return os.path.join(library, PACKAGE)


def own_version() -> dict[str, str]:
    """``version`` of the collection that this code is from and ``digest`` of its files, as the role wrote them down."""
    with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), VERSION_FILE), encoding="utf-8") as file:
        return t.cast("dict[str, str]", json.load(file))


def installed(library: str) -> dict[str, str]:
    """``version`` and ``digest`` of what is there, the digest from the files as they are; empty where nothing is."""
    top = _link(library)
    if not os.path.isdir(top):
        return {}
    files: dict[str, str] = {}
    for folder, subfolders, names in os.walk(os.path.realpath(top)):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, os.path.realpath(top))
            if relative != VERSION_FILE:
                with open(path, encoding="utf-8", errors="replace") as file:
                    files[relative] = file.read()
    said = read_json(os.path.join(top, VERSION_FILE)) or {}
    return {"version": str(said.get("version", "")), "digest": files_digest(files)}


def install(library: str, files: t.Mapping[str, str], version: str, digest: str) -> None:
    """Make ``files`` the library. A helper that runs meanwhile goes on with the files that it was started with."""
    import tempfile  # only for this, and the helper's start is in a hot path

    for path in files:
        if path != os.path.normpath(path) or path.startswith(("/", "..")) or not path.endswith(".py"):
            raise InputError(f"files: {path!r} is not allowed.", hint="Allowed: relative paths of Python files.")
    if files_digest(files) != digest:
        raise InputError(f"digest: {digest!r} is not that of the files.", hint="Leave it to the action plugin.")
    releases = os.path.join(library, "releases")
    os.makedirs(releases, exist_ok=True)
    release = tempfile.mkdtemp(prefix=f"{digest[:16]}-", dir=releases)
    os.chmod(release, 0o755)
    top = os.path.join(release, PACKAGE)
    for path, text in files.items():
        target = os.path.join(top, path)
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(target, 0o644)
    write_json(os.path.join(top, VERSION_FILE), {"version": version, "digest": digest}, mode=0o644)
    link = _link(library)
    before = os.path.realpath(link)
    if os.path.isdir(link) and not os.path.islink(link):
        shutil.rmtree(link)
    temporary = os.path.join(release, "link")
    os.symlink(os.path.relpath(top, library), temporary)
    os.sync()
    os.replace(temporary, link)
    sync_dir(library)
    # The one before stays for helpers that still run from it.
    for name in os.listdir(releases):
        path = os.path.join(releases, name)
        if path != release and not before.startswith(path + "/"):
            shutil.rmtree(path, ignore_errors=True)
