# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is meant, as Ansible gives it to the module."""

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.modules import guest_snapshot


def run(argv: t.Sequence[str], **options: t.Any) -> t.NoReturn:
    raise AssertionError(f"{argv} was run")


def params(guests: object, **others: object) -> dict[str, t.Any]:
    given = {"guests": guests, "name": "one", **others}
    validated = ArgumentSpecValidator(guest_snapshot.argument_spec()).validate(given)
    assert validated.error_messages == []
    return t.cast("dict[str, t.Any]", validated.validated_parameters)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("", []), ("web, db", ["web", "db"]), ([" web", ""], ["web"]), ([], []), (["b", "a"], ["b", "a"])],
)
def test_who_is_meant(given: object, meant: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_snapshot, "bring_to", lambda host, guests, *args, **options: {"guests": guests})
    assert guest_snapshot.work(Host(run=run), params(given), False) == {"guests": meant}


def test_a_name_that_yaml_made_a_number_of_is_refused() -> None:
    with pytest.raises(InputError, match=r"guests\[1\]: 7 is not text\. Put it in quotes"):
        guest_snapshot.work(Host(run=run), params(["web", 7]), False)


def test_a_description_that_yaml_made_a_number_of_is_refused() -> None:
    with pytest.raises(InputError, match=r"description: 1\.1 is not text\. Put it in quotes"):
        guest_snapshot.work(Host(run=run), params(["web"], description=1.10), False)
