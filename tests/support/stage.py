# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of local hosts on which the demo and the benchmarks play: Ansible to set it up, SSH to look and to measure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import yaml

GREY, BOLD, GREEN, RED, PLAIN = "\033[90m", "\033[1m", "\033[32m", "\033[31m", "\033[0m"
_PLAY = re.compile(r"^PLAY \[(.*?)\] \*+")
# A task in a loop has one for each item.
_RESULT = re.compile(r"^(?:ok|changed|fatal): \[(\S+?)\](?:: FAILED!)?(?: => \(item=.*?\))? => (\{.*\})$")
_TASK = re.compile(r"^TASK \[(.*?)\] \*+")


class Failed(Exception):
    """Ends the script with a message."""


def count(text: str) -> int:
    """A whole number from 1 on, as a type of argparse, which says so when it is none."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def counts(text: str) -> list[int]:
    """The same, separated by commas."""
    return [count(word) for word in text.split(",")]


class Teller:
    """Says what is done, one line per step, with the time it took. Colour only on a terminal."""

    def __init__(self, out: t.TextIO) -> None:
        self.out = out
        self.colour = out.isatty() and "NO_COLOR" not in os.environ
        self._open = ""
        self._since = 0.0

    def paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{PLAIN}" if self.colour else text

    def line(self, text: str = "") -> None:
        self.end()
        print(text, file=self.out, flush=True)

    def step(self, text: str) -> None:
        """Begin a step; the one before has ended."""
        self.end()
        self._open, self._since = text, time.monotonic()
        if self.out.isatty():
            print(f"  {text} …", end="", file=self.out, flush=True)

    def end(self, good: bool = True, note: str = "") -> None:
        if not self._open:
            return
        took = f"{time.monotonic() - self._since:6.1f} s"
        mark = self.paint("✓", GREEN) if good else self.paint("✗", RED)
        start = "\r\033[K" if self.out.isatty() else ""
        text, self._open = self._open, ""
        print(f"{start}{mark} {text:<76}{self.paint(took, GREY)}  {note}".rstrip(), file=self.out, flush=True)


class Outcome(t.NamedTuple):
    """What a task did on a host, and how long the play was at the task until then."""

    task: str
    host: str
    result: dict[str, t.Any]
    seconds: float


class Stage:
    """Local hosts of one set. ``play`` runs playbooks on them, ``ssh`` commands."""

    def __init__(self, name: str, teller: Teller) -> None:
        self.name = name
        self.teller = teller
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        self.access = state / "cnvm-platform/local-hosts" / name
        self.key = self.access / "id_ed25519"
        self.inventory = self.access / "inventory.yml"
        self.known_hosts = self.access / "known_hosts"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.log = cache / "cnvm-platform/log" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self.addresses: dict[str, str] = {}
        self._children: list[subprocess.Popen[t.Any]] = []
        self.playbook_program = str(Path(sys.executable).with_name("ansible-playbook"))

    # --- Ansible ---

    def play(self, *args: str, steps: bool = False) -> list[Outcome]:
        """Run a playbook; what its tasks did. With ``steps`` each of its plays is one for the teller."""
        env = {
            **os.environ,
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_HOST_KEY_CHECKING": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_STDOUT_CALLBACK": "default",
        }
        where = ["-i", str(self.inventory)] if self.inventory.exists() else []
        argv = [self.playbook_program, *where, "-v", *args]
        lines: list[str] = []
        results: list[Outcome] = []
        task, since = "", time.monotonic()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(argv)}\n")
            process = self.start(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True)
            for line in process.stdout or ():
                log.write(line)
                lines.append(line)
                found = _PLAY.match(line)
                if found and steps:
                    self.teller.step(found.group(1))
                found = _TASK.match(line)
                if found:
                    task, since = found.group(1).rpartition(" : ")[2], time.monotonic()
                found = _RESULT.match(line.rstrip("\n"))
                if found:
                    with contextlib.suppress(ValueError):
                        result = json.loads(found.group(2))
                        results.append(Outcome(task, found.group(1), result, time.monotonic() - since))
            code = process.wait()
        if code:
            self.teller.end(good=False)
            end = "".join(lines[-30:])
            raise Failed(f"ansible-playbook ended with code {code}. Its output is in {self.log}; the end of it:\n{end}")
        return results

    def playbook_line(self, *words: str) -> str:
        """A command to be pasted: a newcomer's shell finds neither Ansible nor the collection."""
        where = shlex.quote(os.environ.get("ANSIBLE_COLLECTIONS_PATH", ""))
        return f"ANSIBLE_COLLECTIONS_PATH={where} {shlex.join([self.playbook_program, *words])}"

    def removal_line(self) -> str:
        """The command that takes all hosts of the set away."""
        settings = ("-e", f"local_hosts_set={self.name}", "-e", "local_hosts_state=absent")
        return self.playbook_line("cnvm.platform.local_hosts", *settings)

    def down(self) -> None:
        """Take all hosts of the set away."""
        self.end_children()
        if self.inventory.exists() or self.key.exists():
            variables = {"local_hosts_set": self.name, "local_hosts_state": "absent"}
            self.play("cnvm.platform.local_hosts", "-e", json.dumps(variables))

    def read_addresses(self) -> None:
        """Where the hosts are, from the inventory file of the set."""
        (group,) = yaml.safe_load(self.inventory.read_text()).values()
        self.addresses = {name: each["ansible_host"] for name, each in group["hosts"].items()}

    # --- SSH ---

    def ssh_argv(self, host: str, *words: str) -> list[str]:
        options = [
            f"UserKnownHostsFile={self.known_hosts}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes",
            "BatchMode=yes", "LogLevel=ERROR",
        ]  # fmt: skip
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), *flags, f"root@{self.addresses[host]}", *words]

    def ssh(self, host: str, command: str, *, input_text: str = "", check: bool = True, timeout_s: float = 120) -> str:
        """Standard output of a shell command on a host."""
        argv = self.ssh_argv(host, command)
        done = subprocess.run(
            argv, input=input_text, capture_output=True, text=True, check=False, timeout=timeout_s
        )  # fmt: skip
        if check and done.returncode:
            raise Failed(f"On {host} this ended with code {done.returncode}: {command}\n{done.stdout}{done.stderr}")
        return done.stdout

    # --- processes ---

    def start(self, argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[t.Any]:
        """A child that ends with us, but does not get the terminal's Ctrl-C."""
        child: subprocess.Popen[t.Any] = subprocess.Popen(argv, stdin=options.pop("stdin", subprocess.DEVNULL),
                                                          start_new_session=True, **options)  # fmt: skip
        self._children.append(child)
        return child

    def end_children(self) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            for child in self._children:
                if child.poll() is None:
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(child.pid, number)
                        child.wait(10)


def run(main: t.Callable[[], int], stage: Stage, keep: t.Callable[[], bool]) -> int:
    """``main``, and then everything away: after an error, Ctrl-C and SIGTERM, too."""

    def interrupted(*dummy: object) -> None:
        # One is enough; the next must not end the clearing away.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    teller = stage.teller
    code = 1
    try:
        code = main()
    except Failed as failure:
        teller.end(good=False)
        teller.line(str(failure))
    except KeyboardInterrupt:
        teller.end(good=False)
        teller.line("Interrupted.")
        code = 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stage.end_children()
        if code != 130 and keep():
            teller.end()
        else:
            teller.step("Take the hosts away")
            try:
                stage.down()
            except Failed as failure:
                teller.end(good=False)
                teller.line(str(failure))
                code = code or 1
            teller.end()
    return code
