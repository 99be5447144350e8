# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work of a module as the helper does it."""

from __future__ import annotations

import importlib
import io
import json
import os
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host import cli, guests, work
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

Answers = t.Callable[..., dict[str, t.Any]]


def nothing(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
    raise AssertionError(f"ran {args}")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """``cnvm-host work guest`` of the version ``d1`` is asked; its answer."""
    monkeypatch.setattr(work, "own_version", lambda: {"version": "0.1.0", "digest": "d1"})

    def ask_it(digest: str = "d1", check_mode: bool = False, **params: t.Any) -> dict[str, t.Any]:
        request = json.dumps({"digest": digest, "params": params, "check_mode": check_mode})
        out = io.BytesIO()
        assert cli.main(["work", "guest"], Host(run=nothing, stdin=io.BytesIO(request.encode()), stdout=out)) == 0
        lines = out.getvalue().decode().splitlines()
        return t.cast("dict[str, t.Any]", json.loads(lines[-1]))

    return ask_it


def test_it_is_the_modules_own_work(ask: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "work", lambda host, params, check_mode: {"changed": True, "saw": [params, check_mode]})
    assert ask(guests=[{"name": "café"}]) == {"changed": True, "saw": [{"guests": [{"name": "café"}]}, False]}
    assert ask(check_mode=True)["saw"] == [{}, True]


def test_another_version_does_nothing(ask: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "work", nothing)
    assert ask(digest="d2") == {"other_version": "0.1.0"}


def test_a_refusal_is_what_the_module_returns(ask: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: t.Any) -> t.NoReturn:
        raise Refused("web runs on host2.", hint="Migrate it back.", owner="host2")

    monkeypatch.setattr(guests, "work", refuse)
    said = ask()
    assert "refuse" in said.pop("exception")
    assert said == {
        "failed": True,
        "msg": "web runs on host2. Migrate it back.",
        "hint": "Migrate it back.",
        "error": "Refused",
        "details": {"owner": "host2"},
    }


def test_what_the_kernel_refuses_is_told(ask: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "work", lambda *args: os.stat("/dev/null/x"))
    said = ask()
    assert (said["failed"], said["error"]) == (True, "HostError")
    # Where it happened is not lost.
    assert "os.stat(" in said["exception"]
    assert said["msg"] == "/dev/null/x cannot be used: Not a directory. A file stands where a directory has to be."


def test_a_defect_is_not_dressed_up(ask: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "work", nothing)
    with pytest.raises(AssertionError, match="ran"):
        ask()


def test_what_is_no_module_is_refused() -> None:
    for words in ([], ["nothing"], ["guest", "guest"]):
        with pytest.raises(InputError, match=r"Usage: cnvm-host work container\|container_info\|guest\|"):
            work.commands()["work"](words, Host(run=nothing))


@pytest.mark.parametrize("name", sorted(work.WORK))
def test_module_and_helper_do_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"ansible_collections.cnvm.platform.plugins.modules.{name}")
    action = importlib.import_module(f"ansible_collections.cnvm.platform.plugins.action.{name}").ActionModule
    place = importlib.import_module(f"ansible_collections.cnvm.platform.plugins.module_utils._host.{work.WORK[name]}")
    called: dict[str, t.Any] = {}
    monkeypatch.setattr(module, "run_module", lambda does, spec: called.update(does=does, spec=spec))
    module.main()
    assert called == {"does": place.work, "spec": action.SPEC}
    assert name == action.MODULE


def paths_in(spec: t.Mapping[str, t.Any]) -> list[str]:
    found = [name for name, option in spec.items() if "path" in (option.get("type"), option.get("elements"))]
    return found + [name for option in spec.values() for name in paths_in(option.get("options") or {})]


@pytest.mark.parametrize("name", sorted(work.WORK))
def test_no_option_is_expanded_on_the_controller(name: str) -> None:
    action = importlib.import_module(f"ansible_collections.cnvm.platform.plugins.action.{name}").ActionModule
    assert paths_in({"here": {"type": "path"}, "below": {"options": {"there": {"elements": "path"}}}}) == [
        "here",
        "there",
    ]
    assert paths_in(action.SPEC) == []
