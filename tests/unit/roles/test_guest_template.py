# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A template of all hosts: what its module is asked for."""

from __future__ import annotations

import hashlib
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage


@pytest.mark.parametrize(("said", "asked"), [({"reset_identity": False}, {"False"}), ({}, {"None"})])
def test_false_is_an_answer(stage: Stage, said: dict[str, t.Any], asked: set[str]) -> None:
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1", **said)
    calls = [options for _host, options in stage.asked("template", check=True) if "guest" in options]
    assert len(calls) == 3
    assert {str(options.get("reset_identity")) for options in calls} == asked


@pytest.mark.parametrize(("said", "asked"), [({"max_virtual_size": "2T"}, "2T"), ({"max_virtual_size": ""}, "1T")])
def test_how_large_an_image_may_be(stage: Stage, said: dict[str, t.Any], asked: str) -> None:
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1", **said)
    calls = [options for _host, options in stage.asked("template", check=True) if "guest" in options]
    assert [options["max_virtual_size"] for options in calls] == [asked] * 3


def test_in_check_mode_an_older_template_will_not_do(stage: Stage) -> None:
    """The one that is to be made has no digest yet that could be compared."""
    for answers in stage.answers.values():
        answers["template"] = {"template": None, "changed": True}
    stage.playbook("vm_create", "--check", template="web", guest="web1")
    (taken,) = (options for _host, options in stage.asked("template", check=True) if "peer" in options)
    assert (taken["peer"], taken.get("digest"), taken["refresh"]) == ("host1", None, True)


def test_a_template_that_is_there_is_taken_by_its_digest(stage: Stage) -> None:
    one = {"digest": "1" * 64, "virtual_bytes": 2**20, "reset_identity": True}
    stage.answers["host1"]["template"] = {"template": one}
    stage.answers["host2"]["template"] = [{"template": None, "changed": True}, {"template": one, "changed": True}]
    stage.playbook("vm_create", "--check", template="web", guest="web1")
    (taken,) = (options for _host, options in stage.asked("template", check=True) if "peer" in options)
    assert (taken["peer"], taken["digest"], taken["refresh"]) == ("host1", "1" * 64, False)


MAKE = """
- hosts: host1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: cnvm.platform.guest_template
        tasks_from: make
"""


@pytest.mark.parametrize(
    ("checksum", "fails", "kept"),
    [("unverified", True, False), ("unverified", False, True), (f"sha256:{'a' * 64}", True, True)],
)
def test_what_was_got_and_is_no_template_is_got_again(
    stage: Stage, tmp_path: Path, checksum: str, fails: bool, kept: bool
) -> None:
    """The server would say that it has nothing newer."""
    url = "https://example.org/debian.qcow2"
    (tmp_path / "cache").mkdir()
    mark = hashlib.sha256(f"{url}{checksum}".encode()).hexdigest()[:16]
    cached = tmp_path / "cache" / f"{mark}-debian.qcow2"
    cached.write_text("<!doctype html>")
    (tmp_path / "make.yml").write_text(MAKE)
    refused = {"failed": True, "msg": "The file is a web page"}
    stage.answers["host1"]["template"] = refused if fails else {"template": {"digest": "1" * 64}}
    said = stage.playbook(
        "make.yml",
        check=not fails,
        guest_template_name="web",
        guest_template_url=url,
        guest_template_checksum=checksum,
        guest_template_cache_dir=str(tmp_path / "cache"),
        __guest_template_place=str(tmp_path / "place"),
        # It is in the cache: the role has got it a moment ago.
        __guest_template_found={"template": True},
    )
    assert ("The file is a web page" in said) == fails
    assert cached.exists() == kept
