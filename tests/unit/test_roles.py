# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's variables: what stands in defaults, what the argument specification takes, what the README tells."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

ROLES = sorted(path for path in (Path(__file__).resolve().parents[2] / "roles").glob("*") if path.is_dir())


def defaults_of(role: Path) -> dict[str, t.Any]:
    file = role / "defaults/main.yml"
    values: dict[str, t.Any] = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}
    return {name: value for name, value in values.items() if not name.startswith("__")}


def options_of(role: Path) -> dict[str, dict[str, t.Any]]:
    """The options of all entry points."""
    text = (role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    options: dict[str, dict[str, t.Any]] = {}
    for entry in yaml.safe_load(text)["argument_specs"].values():
        options.update(entry.get("options") or {})
    return options


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_specification_agree(role: Path) -> None:
    defaults, options = defaults_of(role), options_of(role)
    assert set(defaults) == {name for name, option in options.items() if not option.get("required")}
    assert {name: option["default"] for name, option in options.items() if "default" in option} == {
        name: defaults[name] for name, option in options.items() if "default" in option
    }


def tasks_of(found: t.Any) -> t.Iterator[dict[str, t.Any]]:
    """Those in blocks, too."""
    for task in found or ():
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_nobody_becomes_root_on_the_controller(role: Path) -> None:
    """An inventory's ansible_become goes over a task's "become: false", but not over the variables of a task."""
    for path in sorted((role / "tasks").rglob("*.yml")):
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
            assert task.get("become") is not False, task["name"]
            if task.get("delegate_to") == "localhost":
                assert task.get("vars", {}).get("ansible_become") is False, task["name"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_rule_for_names_is_in_one_place(role: Path) -> None:
    """It is the test good_name."""
    files = [*(role / "tasks").rglob("*.yml"), *(role / "vars").rglob("*.yml")]
    assert [path.name for path in files if "[A-Za-z0-9_.-]{0,62}" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_readme_tells_every_variable(role: Path) -> None:
    readme = (role / "README.md").read_text(encoding="utf-8")
    assert [name for name in options_of(role) if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_readme_tells_no_variable_that_is_not_there(role: Path) -> None:
    """Beside the options there may be what the role leaves for later tasks."""
    readme = (role / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(rf"`({re.escape(role.name)}_\w+)`", readme))
    tasks = "".join(path.read_text(encoding="utf-8") for path in (role / "tasks").rglob("*.yml"))
    left = set(re.findall(rf"^ *(?:register: )?({re.escape(role.name)}_\w+):?", tasks, re.MULTILINE))
    assert told - set(options_of(role)) - left == set()
