# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host is reached, and what becomes of one that does not answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ansible.plugins.loader import connection_loader

from ansible_collections.cnvm.platform.plugins.plugin_utils import _ssh


def test_the_way_that_ansible_takes() -> None:
    argv, destination = _ssh.command(
        "host1",
        {
            "ansible_host": "192.0.2.1", "ansible_port": 2222, "ansible_user": "admin",
            "ansible_ssh_private_key_file": "~/key", "ansible_ssh_common_args": "-o 'ProxyCommand=a %h' -o X=1",
        },
        7,
    )  # fmt: skip
    words = " ".join(argv)
    assert destination == "192.0.2.1"
    assert "-o BatchMode=yes -o ConnectTimeout=7" in words
    assert "-o ProxyCommand=a %h -o X=1 -p 2222" in words
    assert f"-i {os.path.expanduser('~/key')} -l admin" in words
    assert "ControlPersist" not in words
    assert "StrictHostKeyChecking" not in words


def test_a_host_that_has_only_a_name() -> None:
    argv, destination = _ssh.command("host1", {}, 7)
    assert destination == "host1"
    assert "-p" not in argv


def test_a_connection_that_is_open_is_used(tmp_path: Path) -> None:
    """Its socket is where Ansible's own plugin makes it."""
    variables = {
        "ansible_host": "192.0.2.1", "ansible_port": 2222, "ansible_user": "admin",
        "ansible_control_path_dir": str(tmp_path),
    }  # fmt: skip
    assert _ssh.open_connection("host1", variables) == ()
    name = connection_loader.get("ssh", class_only=True)._create_control_path("192.0.2.1", 2222, "admin")
    socket = Path(name % {"directory": str(tmp_path)})
    socket.touch()
    assert _ssh.open_connection("host1", variables) == ("-o", f'ControlPath="{socket}"')
    assert _ssh.open_connection("host1", {**variables, "ansible_user": "root"}) == ()
    chosen = {**variables, "ansible_control_path": "%(directory)s/mine"}
    assert _ssh.open_connection("host1", chosen) == ()
    (tmp_path / "mine").touch()
    assert _ssh.open_connection("host1", chosen) == ("-o", f'ControlPath="{tmp_path}/mine"')


@pytest.mark.parametrize(
    ("script", "answer", "error"),
    [
        ("echo '{\"a\": 1}'; echo noise >&2", {"a": 1}, ""),
        ("echo Welcome", None, "its answer is no JSON"),
        ("echo one >&2; echo 'Permission denied.' >&2; exit 255", None, "Permission denied."),
        ("exit 3", None, "code 3"),
        ("exit 127", None, "it has no cnvm-host; run the role cnvm.platform.host_bootstrap on it"),
    ],
)
def test_answers(script: str, answer: object, error: str) -> None:
    assert _ssh.ask(["sh", "-c", script], 30) == (answer, error)


def test_no_ssh() -> None:
    assert "No such file" in _ssh.ask(["/nowhere/ssh"], 30)[1]


@pytest.mark.parametrize("script", ["yes", "yes >&2"])
def test_one_that_never_ends_to_answer(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """It must not fill the controller's memory."""
    monkeypatch.setattr(_ssh, "_MOST_BYTES", 1 << 20)
    assert _ssh.ask(["sh", "-c", script], 30) == (None, "its answer is longer than 1.0 MiB")


def test_one_that_never_answers_does_not_keep_the_others() -> None:
    """Nor does what it has started, which has its output open."""
    begun = time.monotonic()
    found = _ssh.ask_all({"slow": ["sh", "-c", "sleep 600 & wait"], "good": ["echo", "{}"]}, 1)
    assert found == {"slow": (None, "no answer within 1 s"), "good": ({}, "")}
    assert time.monotonic() - begun < 300
