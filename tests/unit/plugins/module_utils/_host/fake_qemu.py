# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for qemu-img that makes real files, as far as headers tell, and can be cut off at any place."""

from __future__ import annotations

import os
import shutil
import struct
import typing as t
from pathlib import Path

from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked
from ansible_collections.cnvm.platform.plugins.module_utils._host import disks
from ansible_collections.cnvm.platform.tests.support import images

VERBS = ("create", "convert", "resize", "rebase", "check", "measure", "cp")


class Qemu:
    """Does what qemu-img would, as far as headers tell. ``fail``: a verb, and what comes of it after half the work."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail: dict[str, t.Callable[[str], CommandResult]] = {}
        self.checks: list[tuple[int, str]] = []
        self.required = 1

    def __call__(
        self, argv: t.Sequence[str], *, stdin: t.Optional[str] = None, check: bool = True, timeout_s: t.Any = None
    ):
        words = list(argv)
        self.calls.append(words)
        if words[0] == "prlimit":
            words = words[words.index("--") + 1 :]
        if words[0] == "cp":
            shutil.copyfile(words[-2], words[-1])
            return CommandResult(tuple(argv), 0)
        assert words[0] == "qemu-img"
        result = getattr(self, words[1])(words[2:]) or CommandResult(tuple(argv), 0)
        if words[1] in self.fail:
            result = self.fail[words[1]](words[-2] if words[1] in ("create", "resize") else words[-1])
        return checked(result) if check else result

    @staticmethod
    def _option(words: list[str], name: str) -> str:
        return words[words.index(name) + 1] if name in words else ""

    def _make(self, path: str, kind: str, size: int, backing: str = "", backing_format: str = "") -> None:
        made = {
            "raw": lambda: images.Bytes(size),
            "qcow2": lambda: images.qcow2(size, backing=backing.encode(), backing_format=backing_format.encode()),
            "vdi": lambda: images.vdi(size),
            "vpc": lambda: images.vhd(size),
            "vmdk": lambda: images.vmdk(size // 512),
            "vhdx": lambda: images.vhdx(size),
        }[kind]()
        made.write(Path(path))

    def create(self, words: list[str]) -> None:
        backing, backing_format = self._option(words, "-b"), self._option(words, "-F")
        self._make(words[-2], self._option(words, "-f"), int(words[-1]), backing, backing_format)

    def convert(self, words: list[str]) -> None:
        source, target = words[-2:]
        if "-n" not in words:
            kind = {"vpc": "vhd"}.get(self._option(words, "-f"), self._option(words, "-f"))
            size = disks.inspect(source, kind).header.virtual_bytes
            # The last sector of a raw file is filled up.
            self._make(target, self._option(words, "-O"), (size + 511) // 512 * 512)

    def resize(self, words: list[str]) -> None:
        path, size = words[-2], int(words[-1])
        kind = self._option(words, "-f")
        if kind == "raw":
            os.truncate(path, size)
        else:
            with open(path, "r+b") as file:
                file.seek(24)
                file.write(struct.pack(">Q", size))

    def rebase(self, words: list[str]) -> None:
        path = words[-1]
        size = disks.inspect(path, "qcow2").header.virtual_bytes
        self._make(path, "qcow2", size, self._option(words, "-b"), self._option(words, "-F"))

    def check(self, words: list[str]) -> CommandResult:
        rc, text = self.checks.pop(0) if self.checks else (0, '{"check-errors": 0}')
        return CommandResult(("qemu-img", "check", words[-1]), rc, text)

    def measure(self, words: list[str]) -> CommandResult:
        return CommandResult(("qemu-img",), 0, f'{{"required": {self.required}}}')

    @property
    def verbs(self) -> list[str]:
        return [next(word for word in words if word in VERBS) for words in self.calls]
