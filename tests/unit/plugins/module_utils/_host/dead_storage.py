# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that does not answer any more."""

from __future__ import annotations

import builtins
import os
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import files


class Listing(list[t.Any]):
    """What is in a directory, as os.scandir has it."""

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *dummy: object) -> None:
        pass


class Dead:
    """A file server that is gone: whoever touches what is mounted at ``point`` would hang. Here he fails."""

    def __init__(self, point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.point = str(point)
        self._asked = False
        kinds = f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n55 22 0:42 / {point} rw shared:3 - nfs4 192.0.2.1:/srv rw,hard\n"
        monkeypatch.setattr(files, "read_mounts", lambda: kinds)
        self._real = os.path.realpath
        for place, names in ((os, ("stat", "listdir", "open")), (builtins, ("open",)), (os.path, ("realpath",))):
            for name in names:
                monkeypatch.setattr(place, name, self._guarded(getattr(place, name)))
        for name in ("lstat", "readlink", "unlink", "rename", "replace", "link", "mkdir", "chmod"):
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name), follows=False))
        scan = self._guarded(os.scandir)

        def listed(path: str) -> Listing:
            with scan(path) as entries:
                return Listing(map(self._entry, entries))

        monkeypatch.setattr(os, "scandir", listed)

    def touch(self, path: object, follows: bool = True) -> None:
        # To find out where a path leads asks the same functions.
        if self._asked or not isinstance(path, str):
            return
        self._asked = True
        try:
            real = self._real(path) if follows else f"{self._real(os.path.dirname(path))}/{os.path.basename(path)}"
        finally:
            self._asked = False
        assert not f"{real}/".startswith(f"{self.point}/"), path

    def _guarded(self, work: t.Any, follows: bool = True) -> t.Any:
        def guarded(path: t.Any, *args: t.Any, **options: t.Any) -> t.Any:
            self.touch(path, follows and options.get("follow_symlinks", True))
            return work(path, *args, **options)

        return guarded

    def _entry(self, entry: os.DirEntry[str]) -> t.Any:
        def asked(word: str) -> t.Any:
            def ask(follow_symlinks: bool = True) -> t.Any:
                # What is mounted there a directory does not touch for that.
                if follow_symlinks:
                    self.touch(entry.path)
                return getattr(entry, word)(follow_symlinks=follow_symlinks)

            return ask

        return types.SimpleNamespace(name=entry.name, path=entry.path, is_dir=asked("is_dir"), is_file=asked("is_file"))
