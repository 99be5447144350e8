# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said in two places about the collection is said alike."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GALAXY: dict[str, t.Any] = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
PLUGINS = [
    path
    for kind in ("modules", "inventory", "filter", "callback", "connection", "lookup", "test")
    for path in sorted((ROOT / "plugins" / kind).glob("*.py"))
]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_action_group_has_every_module() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))
    modules = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
    assert runtime["action_groups"]["cnvm"] == modules


def test_the_oldest_ansible_core_that_is_allowed_is_tested() -> None:
    allowed = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))["requires_ansible"]
    tested = (ROOT / "tests/requirements-oldest.txt").read_text(encoding="utf-8")
    oldest = allowed.split(",")[0].replace(">=", "ansible-core==")
    assert re.findall("^ansible-core.*", tested, re.MULTILINE) == [oldest]


def test_changelog_has_this_version() -> None:
    releases = yaml.safe_load((ROOT / "changelogs/changelog.yaml").read_text(encoding="utf-8"))["releases"]
    assert max(releases, key=numbers) == GALAXY["version"]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_plugin_was_added_by_now(path: Path) -> None:
    added = re.findall(r"^ *version_added: ['\"]?([0-9.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert added
    assert max(map(numbers, added)) <= numbers(GALAXY["version"])


def test_documents_lead_to_files_that_are_there() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("roles/*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_readme_begins_with_what_a_newcomer_wants() -> None:
    """In this order, before anything else: what it is, a picture, two commands, the playbook and the move."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    screen = readme[readme.index("# cnvm.platform") : readme.index("## Read on")]
    places = [screen.index(part) for part in ("![", "./dev demo\n./dev test\n", "```yaml", "cnvm.platform.teleport -e")]
    assert places == sorted(places)
    assert len(re.findall(r"[.](?:\s|$)", screen[: places[0]].partition("\n\n")[2])) <= 4
    assert len(screen.splitlines()) <= 50
