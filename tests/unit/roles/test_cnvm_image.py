# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image of all hosts: who makes it, and who gets it."""

from __future__ import annotations

import hashlib
import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage

PLAY = """
- hosts: cnvm_hosts
  gather_facts: false
  tasks:
    - name: What an image has left that was made before this one
      ansible.builtin.set_fact:
        __cnvm_image_made: {image: {digest: other}}
      when: inventory_hostname == 'host1'
    - ansible.builtin.import_role:
        name: cnvm.platform.cnvm_image
"""


def play(stage: Stage, check: bool, **more: t.Any) -> str:
    """No host has the image."""
    for answers in stage.answers.values():
        answers.setdefault("bundle", {"image": None})
    file = stage.path / "play.yml"
    file.write_text(PLAY, encoding="utf-8")
    mine = {
        "cnvm_image_cache_dir": str(stage.path / "cache"),
        "__cnvm_image_on_host": str(stage.path / "incoming"),
        "__cnvm_image_mmdebstrap": {"rc": 0},
    }
    return stage.playbook(str(file), check=check, **mine, **more)


@pytest.mark.parametrize("how", [{"failed": True, "msg": "No room."}, "off"])
def test_when_its_maker_fails_no_other_one_makes_it(stage: Stage, how: t.Any) -> None:
    stage.answers["host1"]["bundle"] = [{"image": None}, how]
    said = play(stage, check=False)
    assert "host1, which makes the image, has failed or does not answer" in said
    assert "cnvm_image_build_host" in said
    assert {host for host, _options in stage.asked("bundle")} <= {"host1"}


def test_a_maker_that_does_not_answer_is_named(stage: Stage) -> None:
    stage.off.add("host1")
    said = play(stage, check=False, cnvm_image_build_host="host1")
    assert "host1, which makes the image, has failed or does not answer" in said


def test_an_image_of_the_cache_is_brought_to_who_made_another_one(stage: Stage) -> None:
    archive = stage.path / "archive"
    archive.write_bytes(b"archive")
    known = {"digest": "0" * 64, "sha256": hashlib.sha256(b"archive").hexdigest()}
    (stage.path / "archive.json").write_text(json.dumps(known), encoding="utf-8")
    play(stage, check=True, __cnvm_image_archive=str(archive))
    assert sorted(host for host, options in stage.asked("bundle") if "digest" in options) == ["host1", "host2"]


def test_what_is_not_allowed_is_named_all_at_once(stage: Stage) -> None:
    wrong = {
        "cnvm_image_name": "../x",
        "cnvm_image_user": "Root",
        "cnvm_image_suite": "a b",
        # A survey has no lists; the specification takes such a text for one.
        "cnvm_image_packages": "nginx, -x",
        "cnvm_image_services": [{"name": "a/b", "command": "true"}],
        "cnvm_image_build_host": "host9",
    }
    said = play(stage, check=False, **wrong)
    for option in ("cnvm_image_name", "cnvm_image_user", "cnvm_image_suite", "cnvm_image_build_host"):
        assert f"{option}: '{wrong[option]}' is not allowed. Allowed: " in said
    assert "cnvm_image_packages: -x is not allowed" in said
    assert "the name a/b is not allowed" in said
    assert "a host of this play, which are host1, host2." in said
    assert stage.asked("bundle") == stage.asked("bundle", check=True) == []


def test_only_what_is_not_allowed_is_named(stage: Stage) -> None:
    said = play(stage, check=False, cnvm_image_suite="a b")
    assert "cnvm_image_suite: 'a b' is not allowed" in said
    assert "cnvm_image_name" not in said


@pytest.mark.parametrize("wanted", ["yes", "no"])
def test_what_it_is_made_of(stage: Stage, wanted: str) -> None:
    """As a survey says it; the maker has room for nothing, but was told."""
    command = r"exec web -f '\n' \"🦀\""
    stage.answers["host1"]["bundle"] = [{"image": None}, {"failed": True, "msg": "No room."}]
    play(
        stage,
        check=False,
        cnvm_image_user="admin",
        cnvm_image_cron=wanted,
        cnvm_image_syslog=wanted,
        cnvm_image_sudo=wanted,
        # A survey has texts only. This one is one command.
        cnvm_image_customize=["touch /here"] if wanted == "yes" else "touch /here, /there",
        cnvm_image_services=[{"name": "web", "command": command}],
    )
    ((_host, options),) = stage.asked("bundle")
    files = {item["path"]: item for item in options["files"]}
    asked = wanted == "yes"
    assert files["/etc/cnvm/services.d/web"]["content"] == f"#!/bin/sh\n{command}\n"
    assert files["/etc/cnvm/services.d/web"]["mode"] == "0755"
    assert ({"/etc/cnvm/services.d/cron", "/etc/cnvm/services.d/syslog"} <= set(files)) is asked
    packages = options["mmdebstrap"]["packages"]
    assert {"cron", "busybox-syslogd", "sudo"} & set(packages) == (
        {"cron", "busybox-syslogd", "sudo"} if asked else set()
    )
    first, *others = options["mmdebstrap"]["customize"]
    assert first == "useradd --create-home --shell /bin/bash --password '*' -- admin"
    assert any("admin ALL=(ALL) NOPASSWD: ALL" in line for line in others) is asked
    assert ("touch /here" if asked else "touch /here, /there") in others
    assert options["config"]["login_user"] == "admin"
