# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines of the runtimes and of CRIU, and the hook that holds a restored container."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._criu import commands

RUNC = ["/usr/sbin/runc", "--root", "/run/runc"]


@pytest.mark.parametrize(
    ("runtime", "version", "dump", "restore"),
    [
        ("runc", (1, 1, 15), [], []),
        ("runc", (1, 2, 0), ["--manage-cgroups-mode", "ignore"], ["--manage-cgroups-mode", "ignore"]),
        (
            "runc",
            (1, 3, 6),
            ["--manage-cgroups-mode", "ignore", "--tcp-skip-in-flight", "--link-remap"],
            ["--manage-cgroups-mode", "ignore"],
        ),
        ("crun", (1, 21), ["--manage-cgroups-mode", "ignore"], ["--manage-cgroups-mode", "ignore"]),
    ],
)
def test_flags_that_not_every_version_has(runtime: str, version: tuple[int, ...], dump: list, restore: list) -> None:
    assert commands.runtime_flags(runtime, version) == {"dump": dump, "restore": restore}


def test_what_not_every_runtime_has_a_flag_for_is_an_option_of_criu() -> None:
    assert commands.OPTIONS == ("network-lock nftables", "skip-in-flight", "link-remap", "ghost-limit 268435456")


def test_dump_never_kills() -> None:
    argv = commands.dump(RUNC, "web", "/i", "/w", flags=["--x"])
    assert argv[:4] == [*RUNC, "checkpoint"]
    assert "--leave-running" in argv
    assert "--tcp-established" in argv
    assert argv[-1] == "web"
    assert argv[argv.index("--image-path") + 1] == "/i"
    assert argv[argv.index("--work-path") + 1] == "/w"
    assert "--lazy-pages" not in argv
    assert "--parent-path" not in argv


def test_lazy_dump_serves_pages_and_says_when() -> None:
    argv = commands.dump(RUNC, "web", "/i", "/w", page_server="10.0.0.1:99", lazy=True, status_fd=7)
    assert argv[argv.index("--status-fd") + 1] == "7"
    assert argv[argv.index("--page-server") + 1] == "10.0.0.1:99"
    assert "--lazy-pages" in argv


def test_pre_dump_has_its_parent_by_a_relative_path() -> None:
    argv = commands.pre_dump(RUNC, "web", "/m/pre2", "/w", parent="../pre1")
    assert "--pre-dump" in argv
    assert "--leave-running" not in argv
    assert argv[argv.index("--parent-path") + 1] == "../pre1"


@pytest.mark.parametrize(("lazy", "work"), [(False, "/w"), (True, "/i")])
def test_restore_works_where_the_socket_of_the_pages_is(lazy: bool, work: str) -> None:
    argv = commands.restore(RUNC, "web", "/b", "/i", "/w", "/pid", lazy=lazy)
    assert argv[argv.index("--work-path") + 1] == work
    assert ("--lazy-pages" in argv) == lazy
    assert "--detach" not in argv


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_quote_is_undone_by_a_shell(word: str) -> None:
    shown = subprocess.run(["/bin/sh", "-c", f"printf %s {commands.quote(word)}"], capture_output=True, check=True)
    assert shown.stdout == word.encode()


@pytest.mark.parametrize(("code", "said"), [(0, "0"), (3, "3")])
def test_both_in_one_unit(tmp_path: Path, code: int, said: str) -> None:
    daemon = ["/bin/sh", "-c", f"printf x >&3; exit {code}"]
    argv = commands.restore_with_lazy_pages(daemon, ["/bin/echo", "it's", "a  restore"], str(tmp_path))
    shown = subprocess.run(argv, capture_output=True, check=True, timeout=10)
    assert shown.stdout == b"it's a  restore\n"
    end = time.monotonic() + 5
    while not (tmp_path / "lazy.rc").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "lazy.rc").read_text().strip() == said


def test_lazy_pages_are_in_less_of_a_hurry_than_what_was_restored(tmp_path: Path) -> None:
    daemon = ["/bin/sh", "-c", f"nice >{tmp_path}/nice; printf x >&3"]
    argv = commands.restore_with_lazy_pages(daemon, ["/usr/bin/nice"], str(tmp_path))
    restored = int(subprocess.run(argv, capture_output=True, check=True, timeout=10).stdout)
    assert int((tmp_path / "nice").read_text()) == min(restored + 10, 19)


class Hook:
    """The hook in a move's directory."""

    def __init__(self, move: Path) -> None:
        self.move = move
        (move / "images").mkdir()
        os.mkfifo(move / "answer")
        self.script = move / "hold"
        self.script.write_text(commands.HOLD_SCRIPT)

    def run(self, action: str = "post-restore") -> subprocess.Popen[bytes]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "CRTOOLS_SCRIPT_ACTION": action,
            "CRTOOLS_IMAGE_DIR": f"{self.move}/images",
        }
        return subprocess.Popen(["/bin/sh", str(self.script)], env=environment)

    def answer(self, word: str) -> None:
        threading.Thread(target=(self.move / "answer").write_text, args=(word + "\n",), daemon=True).start()


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


@pytest.mark.parametrize(("word", "code"), [("go", 0), ("abort", 1), ("", 1), ("go on", 1)])
def test_hold_waits_for_the_word(hook: Hook, word: str, code: int) -> None:
    process = hook.run()
    end = time.monotonic() + 5
    while not (hook.move / "prepared").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None
    hook.answer(word)
    assert process.wait(timeout=5) == code
    # CRIU may call it twice; the verdict stands.
    assert hook.run().wait(timeout=5) == code


def test_hold_is_silent_for_other_actions(hook: Hook) -> None:
    assert hook.run("pre-dump").wait(timeout=5) == 0
    assert not (hook.move / "prepared").exists()


def test_hold_whose_writer_dies_gives_up(hook: Hook) -> None:
    process = hook.run()
    os.close(os.open(hook.move / "answer", os.O_WRONLY))
    assert process.wait(timeout=5) == 1
