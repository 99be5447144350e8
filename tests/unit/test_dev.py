# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of ./dev that decide what counts as passed, and what its steps share."""

from __future__ import annotations

import operator
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.tests import dev
from ansible_collections.cnvm.platform.tests.checks import ansible_test
from ansible_collections.cnvm.platform.tests.demo import teleport
from ansible_collections.cnvm.platform.tests.integration import hosts
from ansible_collections.cnvm.platform.tests.support.stage import Stage, Teller, count, counts


def test_junit_counts(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests">'
        '<testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1.5"><testcase name="a" />'
        "</testsuite></testsuites>"
    )
    assert dev.junit_counts(report) == (4, 3, 3)


@pytest.mark.parametrize("content", [None, "", "<testsuites><testsuite tests='3'"])
def test_junit_counts_without_a_report(tmp_path: Path, content: str | None) -> None:
    report = tmp_path / "report.xml"
    if content is not None:
        report.write_text(content)
    assert dev.junit_counts(report) == (0, 0, 0)


def test_the_reason_of_a_failed_step() -> None:
    ansible = """TASK [a : Refused, and rescued] *****
fatal: [host1]: FAILED! => {"msg": "bad"}

TASK [a : Two] *****
failed: [host1] (item=x) => {"msg": "no x"}
failed: [host1] (item=y) =>
    msg: no y
ok: [host2]
    msg: good

TASK [a : Clear away] *****
changed: [host1]
"""
    assert dev.reasons(ansible) == [
        "TASK [a : Two]",
        'failed: [host1] (item=x) => {"msg": "no x"}',
        "failed: [host1] (item=y) =>",
        "    msg: no y",
    ]
    pytest_says = f"E  {ansible}FAILED tests/test_a.py::test_b - AssertionError: c\nERROR tests/test_a.py::test_d\n"
    assert dev.reasons(pytest_says, lines=1, width=27) == ["FAILED tests/test_a.py::tes"]
    assert dev.reasons("no reason\n") == []


def test_copy_has_what_git_does_not_ignore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, copy = tmp_path / "checkout", tmp_path / "cache/copy"
    (checkout / "deep").mkdir(parents=True)
    (checkout / ".gitignore").write_text("*.log\n")
    (checkout / "deep/new file").write_text("one")
    (checkout / "run").write_text("#!/bin/sh\n")
    (checkout / "run").chmod(0o755)
    (checkout / "a.log").write_text("ignored")
    monkeypatch.setattr(dev, "ROOT", checkout)
    dev.copy_tree(copy)
    (checkout / "deep/new file").unlink()
    (checkout / "run").write_text("#!/bin/sh\nexit\n")
    dev.copy_tree(copy)
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if ".git/" not in f"{path}/")
    assert files == [".gitignore", "run"]
    assert (copy / "run").read_text() == "#!/bin/sh\nexit\n"
    assert (copy / "run").stat().st_mode & 0o111
    listed = subprocess.run(["git", "ls-files"], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert listed.split() == files


def test_what_is_brought_first_is_not_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """That of './dev bench NAME --json' is one object."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/requirements.txt").write_text("a==1\n")
    ran: list[str] = []

    def quietly(argv: list[str]) -> None:
        ran.append(" ".join(argv))
        if "apt-get" in argv and len(ran) == 1:
            raise dev.Failed("no such package")
        if "--clear" in argv:
            Path(argv[-1]).mkdir()

    (tmp_path / "apt-get").write_text("#!/bin/sh\necho lists\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(dev, "SUDO", [])
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "CACHE", tmp_path)
    monkeypatch.setattr(dev, "quietly", quietly)
    dev.install_packages([("no-such-program", "no-such-package", "to see")])
    path = dev.python_environment("requirements.txt")
    note, told = dev.note, threading.Event()

    def tell(text: str) -> None:
        note(text)
        told.set()

    monkeypatch.setattr(dev, "note", tell)
    with dev.lock("one"):
        waiting = threading.Thread(target=lambda: dev.lock("one").close())
        waiting.start()
        assert told.wait(60)
    waiting.join()
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "Installing the Debian package no-such-package (to see).",
        "lists",
        f"Making the Python environment {path}.",
        f"Waiting for another ./dev that uses {tmp_path / 'one'}.",
    ]


def test_who_is_not_root_disturbs_links_with_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(hosts, "SUDO", ["sudo"])
    monkeypatch.setattr(hosts, "run", lambda argv, **more: ran.append(argv[:2]))
    fleet, host = object.__new__(hosts.Fleet), hosts.Host("host1", "192.0.2.1")
    with fleet.slow(host), fleet.cut(host):
        pass
    assert ran == [["sudo", "tc"], ["sudo", "ip"], ["sudo", "ip"], ["sudo", "tc"]]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dev.Workshop:
    """A workshop without a copy of the tree: only what runs steps."""
    monkeypatch.setattr(dev, "LOGS", tmp_path)
    made = object.__new__(dev.Workshop)
    made.tree, made.env, made.results = tmp_path, dict(os.environ), []
    made.processes, made.ended = set(), threading.Event()
    return made


def test_steps_run_side_by_side(shop: dev.Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """The first wait for each other; the others need what one of those has left."""
    first = [f"first{number}" for number in range(dev.AT_A_TIME)]
    there = " && ".join(f"[ -e {name} ]" for name in first)
    wait = f"touch $0; until {there}; do sleep 0.01; done; touch $0.done"
    shop.run_all(
        [
            *(dev.Step(name, [["sh", "-c", wait, name]]) for name in first),
            dev.Step("c", [["sh", "-c", "ls *.done"]]),
            dev.Step("d", [["sh", "-c", "echo no such thing; echo FAILED d; exit 1"]]),
        ],
    )
    assert sorted((one.name, one.passed, one.failed) for one in shop.results) == [
        ("c", 1, 0), ("d", 0, 1), *((name, 1, 0) for name in first),
    ]  # fmt: skip
    assert shop.finish() == 1
    said = capsys.readouterr().out
    assert "no such thing" in said
    # Once more where the reader ends.
    assert said.endswith(f"\nd:\n  FAILED d\n\n{dev.AT_A_TIME + 1} passed, 1 failed\n")


def test_interrupted_steps_end(shop: dev.Workshop, tmp_path: Path) -> None:
    """Ctrl-C: what runs is ended, and nothing more begins."""

    def interrupt() -> dev.Step:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    first = dev.Step("a", [["sh", "-c", "touch started; exec sleep 600"]])
    second = dev.Step("b", [["touch", "second"]])
    # Unlike a generator this goes on after the interrupt: there is a step that could begin.
    steps = map(operator.call, [lambda: first, interrupt, lambda: second])
    with pytest.raises(KeyboardInterrupt):
        shop.run_all(steps)
    assert not (tmp_path / "second").exists()
    assert not shop.processes


def test_a_step_that_has_just_begun_is_interrupted_like_others(shop: dev.Workshop, tmp_path: Path) -> None:
    """All are told to end after it was started, and before it was known."""

    class Late(set["subprocess.Popen[bytes]"]):
        def add(self, process: subprocess.Popen[bytes]) -> None:
            shop.ended.set()
            super().add(process)

    shop.processes = Late()
    begin = time.monotonic()
    shop.run_all([dev.Step("a", [["sleep", "600"]])])
    assert time.monotonic() - begin < 300
    assert [(one.passed, one.failed) for one in shop.results] == [(0, 1)]


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set once somebody waits for a lock."""
    waits = threading.Event()
    monkeypatch.setattr(dev, "CACHE", tmp_path)
    monkeypatch.setattr(dev, "note", lambda text: waits.set())
    return waits


def test_a_step_waits_for_the_same_of_another_checkout(
    shop: dev.Workshop, tmp_path: Path, waits: threading.Event
) -> None:
    other = dev.lock("step-molecule-a")
    steps = [dev.Step("molecule a", [["touch", "done"]], alone=True)]
    thread = threading.Thread(target=shop.run_all, args=[steps])
    thread.start()
    assert waits.wait(60)
    assert not (tmp_path / "done").exists()
    other.close()
    thread.join(60)
    assert (tmp_path / "done").exists()
    assert [(one.name, one.passed, one.failed) for one in shop.results] == [("molecule a", 1, 0)]
    # It has let go of it.
    waits.clear()
    dev.lock("step-molecule-a").close()
    assert not waits.is_set()


def test_an_interrupted_step_waits_no_more(shop: dev.Workshop, tmp_path: Path, waits: threading.Event) -> None:
    def interrupt() -> dev.Step:
        assert waits.wait(60)
        raise KeyboardInterrupt

    first = dev.Step("molecule a", [["touch", "done"]], alone=True)
    with dev.lock("step-molecule-a"), pytest.raises(KeyboardInterrupt):
        shop.run_all(map(operator.call, [lambda: first, interrupt]))
    assert not (tmp_path / "done").exists()


def test_pip_settings_hold_what_the_environment_said() -> None:
    listing = (
        ":env:.cert='/env.crt'\n:env:.find-links='/opt/wheels'\nglobal.cert='/global.crt'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\ninstall.no-binary='x'\n"
    )
    settings = ansible_test.pip_settings(listing, {"https_proxy": "http://proxy:3128"})
    assert settings["global"]["proxy"] == "http://proxy:3128"
    assert settings["global"]["cert"] == "/env.crt"
    assert settings["global"]["find-links"] == "/opt/wheels"
    assert settings["global"]["extra-index-url"] == "https://a.example/simple\nhttps://b.example/simple"
    assert settings["install"]["no-binary"] == "x"


def test_hosts_for_guests_boot_from_one_base() -> None:
    """A base is made for each list of packages, which takes a minute or two."""
    lists = [
        yaml.safe_load((dev.ROOT / f"extensions/molecule/{name}/molecule.yml").read_text(encoding="utf-8"))[
            "provisioner"
        ]["inventory"]["hosts"]["all"]["vars"]["local_hosts_packages"]
        for name in ("guests", "images")
    ]
    assert lists[0] == lists[1]


def test_what_the_demo_leaves_can_be_used_without_ansible_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", "/a b")
    stage = Stage("dev-demo", Teller(sys.stdout))
    stage.addresses = {"client": "192.0.2.13", "host1": "192.0.2.11"}
    teleport.say_how_to_go_on(stage)
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "ansible-playbook" in line]
    assert len(commands) == 2
    for where, program, *_words in commands:
        assert where == "ANSIBLE_COLLECTIONS_PATH=/a b"
        assert os.access(program, os.X_OK)


def test_how_often_and_how_much_is_measured() -> None:
    assert (count("3"), counts("64,256")) == (3, [64, 256])
    for wrong in ("", "x", "0", "-1", "64,", "64,x"):
        with pytest.raises(ValueError):
            counts(wrong)
