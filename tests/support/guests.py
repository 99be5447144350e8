# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Local hosts for guests, tiny guests on them, and a ping that sees how long one does not answer."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import yaml

from ansible_collections.cnvm.platform.tests.support import tiny_guest
from ansible_collections.cnvm.platform.tests.support.stage import Failed, Stage

SUPPORT = Path(__file__).resolve().parent
ECHO = SUPPORT.parent / "integration/programs/echo.py"
# Its packages are those of the scenario, so that they share the hosts' base.
SCENARIO = SUPPORT.parent.parent / "extensions/molecule/guests/molecule.yml"


def boot(stage: Stage, packages: t.Sequence[str] = ()) -> None:
    """Two hosts for guests and one for clients, with an overlay and what tiny guests need."""
    stage.teller.step("Make the tiny guest")
    tiny = stage.log.parent.parent / "tiny"
    tiny_guest.make(tiny)
    known = yaml.safe_load(SCENARIO.read_text(encoding="utf-8"))["provisioner"]["inventory"]["hosts"]["all"]["vars"]
    asked = {
        "stage_set": stage.name,
        "stage_packages": [*known["local_hosts_packages"], *packages],
        "stage_tiny": str(tiny),
    }
    stage.play(str(SUPPORT / "guest_stage.yml"), "-e", json.dumps(asked), steps=True)
    stage.read_addresses()


def guest(memory_mib: int, cmdline: str = "", **more: t.Any) -> dict[str, t.Any]:
    """The options of a tiny guest; without KVM, so that all machines measure the same."""
    return {
        "memory_mib": memory_mib, "accelerator": "tcg", "cpu": {"model": "qemu64"}, "serial": "log",
        "kernel": "/var/lib/libvirt/images/vmlinuz", "initrd": "/var/lib/libvirt/images/initrd",
        "cmdline": f"console=ttyS0 quiet {cmdline}".strip(), **more,
    }  # fmt: skip


class Pings:
    """Answers of a guest to a ping every 5 ms."""

    def __init__(self, stage: Stage, address: str) -> None:
        argv = stage.ssh_argv("client", f"exec ping -D -n -i 0.005 {address}")
        self._process = stage.start(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._answers: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            found = re.match(r"\[(\d+\.\d+)\] .* bytes from ", line)
            if found:
                self._answers.append(float(found[1]))

    def settle(self) -> None:
        """Until it has been answered for a second; what was before is forgotten."""
        for dummy in range(60):
            self._answers.clear()
            time.sleep(1)
            if len(self._answers) > 50:
                self._answers.clear()
                return
        raise Failed("The guest does not answer to pings.")

    def gap_ms(self) -> float:
        """The longest time without an answer since ``settle``, once it answers again."""
        for dummy in range(240):
            count = len(self._answers)
            time.sleep(0.25)
            if len(self._answers) > count + 10:
                break
        else:
            raise Failed("The guest does not answer to pings after the move.")
        answers = list(self._answers)
        return max(after - before for before, after in zip(answers, answers[1:], strict=False)) * 1000

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class Stream:
    """A TCP connection to a guest's echo server."""

    def __init__(self, stage: Stage, address: str) -> None:
        program = ECHO.read_text(encoding="utf-8")
        stage.ssh("client", "cat > /run/echo.py", input_text=program)
        argv = stage.ssh_argv("client", f"exec python3 -u /run/echo.py {address} 7")
        self._process = stage.start(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.answers = 0
        self.resets = 0
        self._longest_s = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.endswith("\n"):
                self._longest_s = max(self._longest_s, json.loads(line).get("took", 0.0))
                self.resets += "error" in line
                self.answers += 1

    def gap_ms(self) -> float:
        """The longest time that an answer took since this was asked last. After ``check`` it has come."""
        found, self._longest_s = self._longest_s * 1000, 0.0
        return found

    def check(self) -> int:
        """1 if it has ended, or gives no answers for half a minute."""
        before = self.answers
        for dummy in range(300):
            if self.answers > before or self.resets:
                break
            time.sleep(0.1)
        return int(self.resets > 0 or self.answers == before)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
