# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed at any of its effects: what was done stays, and nothing is done any more, no clearing away."""

from __future__ import annotations

import builtins
import contextlib
import os
import typing as t

import pytest

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("unlink", "remove", "rename", "replace", "mkdir", "rmdir", "chmod", "link", "symlink", "truncate")
# More than any run has: one that never ends is no reason for a test to go on for ever.
_MOST = 500


class Killed(BaseException):
    """What a SIGKILL would be: nothing of ours runs any more."""


class Effects:
    """Those of one run. Of what comes after the one with the number ``last`` none is done. ``what``: the newest."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done = 0
        self.what = ""

    @property
    def killed(self) -> bool:
        return self.done > self.last

    def one(self, what: str) -> None:
        """Another one is about to be done."""
        if not self.killed:
            self.what = what
        self.done += 1
        if self.killed:
            raise Killed

    def wrote(self, fd: int) -> None:
        """A file was opened to be written to."""

    def before(self, work: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        """The same function, as one of the effects."""

        def do(*args: t.Any, **more: t.Any) -> t.Any:
            self.one(" ".join([getattr(work, "__name__", "call"), *(one for one in args if isinstance(one, str))]))
            return work(*args, **more)

        return do


class Calls(list[t.Any]):
    """What a stand-in writes down of what is done to it."""

    def __init__(self, effects: Effects) -> None:
        super().__init__()
        self.effects = effects

    def append(self, what: t.Any) -> None:
        self.effects.one(str(what))
        super().append(what)


@contextlib.contextmanager
def counted(
    effects: Effects, monkeypatch: pytest.MonkeyPatch, more: t.Sequence[tuple[t.Any, str]] = ()
) -> t.Iterator[None]:
    """All that is done to files, and ``more``: see ``at_each_effect``."""
    open_fd, open_file = os.open, builtins.open

    def opened_fd(path: t.Any, flags: int, *args: t.Any, **more: t.Any) -> int:
        writes = bool(flags & _WRITES)
        if writes:
            effects.one(f"open {path}")
        fd = open_fd(path, flags, *args, **more)
        if writes:
            effects.wrote(fd)
        return fd

    def opened_file(path: t.Any, mode: str = "r", *args: t.Any, **more: t.Any) -> t.Any:
        writes = not isinstance(path, int) and bool(set(mode) & set("wxa+"))
        if writes:
            effects.one(f"open {path}")
        file = open_file(path, mode, *args, **more)
        if writes:
            effects.wrote(file.fileno())
        return file

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened_fd)
        patch.setattr(builtins, "open", opened_file)
        for name in _CHANGES:
            patch.setattr(os, name, effects.before(getattr(os, name)))
        for owner, name in more:
            found = getattr(owner, name)
            patch.setattr(owner, name, Calls(effects) if isinstance(found, list) else effects.before(found))
        yield


def at_each_effect(
    monkeypatch: pytest.MonkeyPatch,
    before: t.Callable[[], object],
    run: t.Callable[[], object],
    after: t.Callable[[], object],
    more: t.Sequence[tuple[t.Any, str]] = (),
) -> int:
    """``run``, killed at its first effect, then at its second, and so on until it comes to its end; ``before`` and
    ``after`` each time. How often it was killed.

    ``more``: by owner and name, what has effects beside those on files: functions, and lists in which a stand-in writes
    down what is done to it.
    """
    for last in range(_MOST):
        before()
        effects = Effects(last)
        with counted(effects, monkeypatch, more), contextlib.suppress(Killed):
            run()
        try:
            after()
        except BaseException as error:
            raise AssertionError(f"Killed at effect {last + 1} ({effects.what}): {error}") from error
        if not effects.killed:
            return last
    raise AssertionError(f"It had not ended after {_MOST} effects.")
