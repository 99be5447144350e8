# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._host import guest_source, libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import errors

from . import fake_libvirt


class Domain:
    """A guest whose job lasts until the moment ``ends``. What was done to it, and when."""

    def __init__(self, ends: float, refuses: bool = False) -> None:
        self.now = 0.0
        self.ends = ends
        self.refuses = refuses
        self.done: list[tuple[str, float]] = []

    def jobInfo(self) -> list[int]:
        return [2 if self.now < self.ends else 0]

    def abortJob(self) -> None:
        self.done.append(("cancel", self.now))
        if self.refuses:
            raise fake_libvirt.FakeError(errors.OPERATION_INVALID, "not now")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., Domain]:
    def make(*args: t.Any) -> Domain:
        made = Domain(*args)
        monkeypatch.setattr(guest_source.time, "monotonic", lambda: made.now)
        monkeypatch.setattr(guest_source.time, "sleep", made.sleep)
        monkeypatch.setattr(guest_source, "cut_loose", lambda each: each.done.append(("cut", each.now)))
        monkeypatch.setattr(libvirt, "library", lambda: fake_libvirt.module(fake_libvirt.Driver()))
        return made

    return make


def test_connections_are_cut_before_it_is_told_to_cancel(domain: t.Callable[..., Domain]) -> None:
    each = domain(0.01)
    guest_source.end_job(each, cut_first=True)
    assert each.done == [("cut", 0.0), ("cancel", 0.0)]


def test_several_connections_are_cut_only_when_it_does_not_cancel(domain: t.Callable[..., Domain]) -> None:
    each = domain(0.9)
    guest_source.end_job(each, cut_first=False)
    assert {word for word, _when in each.done} == {"cancel"}
    each = domain(1.2)
    guest_source.end_job(each, cut_first=False)
    assert min(when for word, when in each.done if word == "cut") > 1.0


@pytest.mark.parametrize("cut_first", [True, False])
def test_a_job_that_does_not_end_is_not_waited_for_for_ever(domain: t.Callable[..., Domain], cut_first: bool) -> None:
    each = domain(1e9, True)
    guest_source.end_job(each, cut_first=cut_first)
    assert 59 < each.now < 62


def test_without_a_job_nothing_is_done(domain: t.Callable[..., Domain]) -> None:
    each = domain(0.0)
    guest_source.end_job(each, cut_first=True)
    assert each.done == []
