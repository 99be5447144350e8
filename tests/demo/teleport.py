# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container moves between two hosts on this machine and back, while an SSH session and an HTTP client stay connected.

Both clients are on a third host, so that neither host of the move is on their way. Exit code 0: no connection was
reset, no request lost, and the same shell went on.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shlex
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import paramiko

from ansible_collections.cnvm.platform.tests.support.stage import BOLD, GREEN, GREY, RED, Failed, Stage, Teller, run

SUPPORT = Path(__file__).resolve().parent.parent / "support"
ADDRESS, MEMORY_MIB, PAUSE_MS = "10.100.101.20", 512, 5
# Each line: the shell's process, where it believes to be, and a number that grows. Slow enough to read.
LOOP = 'while :; do i=$((i+1)); echo "line $i of shell $$ on $HOSTNAME"; sleep 0.02; done'
LINE = re.compile(r"line (\d+) of shell (\d+) on (\S+)")


class Shell:
    """An interactive SSH session in the container, through the host ``client``; a thread reads what it prints."""

    def __init__(self, stage: Stage) -> None:
        key = paramiko.Ed25519Key.from_private_key_file(str(stage.key))
        self._jump = paramiko.SSHClient()
        self._jump.load_host_keys(str(stage.known_hosts))
        self._jump.connect(stage.addresses["client"], username="root", pkey=key, allow_agent=False, look_for_keys=False)
        transport = self._jump.get_transport()
        if transport is None:
            raise Failed("The SSH connection to the host 'client' has ended.")
        way = transport.open_channel("direct-tcpip", (ADDRESS, 22), ("127.0.0.1", 0))
        self._client = paramiko.SSHClient()
        host_key = stage.ssh("host1", "runc exec web cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
        known = paramiko.Ed25519Key(data=base64.b64decode(host_key))
        self._client.get_host_keys().add(ADDRESS, "ssh-ed25519", known)
        self._client.connect(ADDRESS, username="root", pkey=key, sock=way, allow_agent=False, look_for_keys=False)
        self._channel = self._client.invoke_shell(width=200)
        self._channel.settimeout(120)
        self.lines: list[tuple[float, int, int, str]] = []
        self.error = ""
        self.resets = 0
        self._channel.sendall(f"stty -echo; PS1=; i=0; {LOOP}\n".encode())
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        data = b""
        try:
            while True:
                more = self._channel.recv(65536)
                if not more:
                    raise EOFError("the session was closed")
                now = time.monotonic()
                *complete, data = (data + more).split(b"\n")
                for one in complete:
                    found = LINE.match(one.decode("utf-8", "replace").strip())
                    if found:
                        self.lines.append((now, int(found.group(1)), int(found.group(2)), found.group(3)))
        except Exception as error:  # noqa: BLE001 - whatever ends the session is the result
            self.error, self.resets = f"{type(error).__name__}: {error}", 1

    def wait_lines(self, count: int) -> None:
        """Until so many more lines have come."""
        end, goal = time.monotonic() + 60, len(self.lines) + count
        while len(self.lines) < goal:
            if self.error or time.monotonic() > end:
                raise Failed(f"The SSH session is dead: {self.error or 'nothing came for a minute'}.")
            time.sleep(0.02)

    def worst_gap(self, since: int) -> tuple[float, int]:
        """The longest silence in ms from line number ``since`` of the list on, and the place in the list after it."""
        gaps = [(self.lines[at][0] - self.lines[at - 1][0], at) for at in range(max(since, 1), len(self.lines))]
        longest, place = max(gaps)
        return longest * 1000, place

    def gapless(self) -> bool:
        """Whether each number is one more than the one before, from one shell on one machine."""
        numbers = [line[1] for line in self.lines]
        return (
            numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            and len({line[2:] for line in self.lines}) == 1
        )

    def close(self) -> None:
        self._client.close()
        self._jump.close()


class Web:
    """The HTTP client, on the host ``client``: it asks over one connection and is sent numbers over another."""

    def __init__(self, stage: Stage) -> None:
        stage.ssh("client", "cat > /run/heartbeat.py", input_text=(SUPPORT / "heartbeat.py").read_text())
        self._process = stage.start(
            stage.ssh_argv("client", f"exec python3 -u /run/heartbeat.py {ADDRESS} 80 {PAUSE_MS}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def report(self) -> dict[str, t.Any]:
        """What happened since the last report."""
        if self._process.stdin is None or self._process.stdout is None:
            raise Failed("The HTTP client has no pipes.")
        try:
            self._process.stdin.write("report\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise Failed("The HTTP client has ended.")
        return t.cast("dict[str, t.Any]", json.loads(line))


def running_on(stage: Stage) -> list[str]:
    """Hosts whose kernel has processes in the container's cgroup."""
    look = (
        "find /sys/fs/cgroup/cnvm.slice -path '*@web.service/*' -name cgroup.procs -exec cat {} + 2>/dev/null | wc -l"
    )
    return [host for host in ("host1", "host2") if int(stage.ssh(host, look)) > 0]


def teleport(stage: Stage, shell: Shell, web: Web, source: str, target: str) -> dict[str, t.Any]:
    """One move; what the product says and what the clients saw."""
    shell.wait_lines(20)
    web.report()
    since = len(shell.lines)
    results = stage.play(
        "cnvm.platform.teleport", "-e", "container=web", "-e", f"target={target}", "-e", "allow_post_copy=true"
    )
    moves = [one.result for one in results if one.host == source and "frozen_ms" in one.result]
    if not moves:
        raise Failed(f"The playbook did not move anything. Its output is in {stage.log}.")
    shell.wait_lines(20)
    seen = web.report()
    gap, place = shell.worst_gap(since)
    return {
        "from": source,
        "to": target,
        "move": moves[0],
        "ssh_gap": gap,
        "place": place,
        "http": seen,
        "running_on": running_on(stage),
    }


def number(value: float) -> str:
    return f"{value:,.0f}"


def table(teller: Teller, rows: t.Sequence[t.Sequence[str]]) -> None:
    """Columns as wide as they need be; the first is text, the others are numbers."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        teller.line("  " + teller.paint("   ".join(cells), BOLD if index == 0 else ""))


def show(teller: Teller, shell: Shell, moves: t.Sequence[dict[str, t.Any]]) -> None:
    rows = [["", *(f"{move['from']} → {move['to']}" for move in moves)]]
    for title, cell in (
        ("mode", lambda one: str(one["move"]["mode"])),
        ("container stood still", lambda one: number(one["move"]["frozen_ms"]) + " ms"),
        ("longest silence, SSH session", lambda one: number(one["ssh_gap"]) + " ms"),
        ("longest silence, HTTP stream", lambda one: number(one["http"]["silence_ms"]) + " ms"),
        ("longest wait, HTTP request", lambda one: number(one["http"]["worst_gap_ms"]) + " ms"),
        ("HTTP requests meanwhile", lambda one: number(one["http"]["requests"])),
        ("HTTP requests lost or doubled", lambda one: str(one["http"]["lost"])),
        ("bytes moved", lambda one: number(sum(one["move"]["timeline"]["bytes"].values()) / 2**20) + " MiB"),
        ("the move in all", lambda one: f"{one['move']['timeline']['total_ms'] / 1000:.1f} s"),
        ("connections reset", lambda one: str(one["http"]["resets"] + shell.resets)),
    ):
        rows.append([title, *(cell(move) for move in moves)])
    teller.line()
    table(teller, rows)
    for move in moves:
        teller.line()
        teller.line(f"  The SSH session around the move {move['from']} → {move['to']}:")
        before, after = shell.lines[move["place"] - 1], shell.lines[move["place"]]
        for (dummy, count, pid, name), host in ((before, move["from"]), (after, move["to"])):
            text = f"line {count} of shell {pid} on {name}"
            teller.line(f"    {text:<40}{teller.paint('running on ' + host, GREY)}")


def say_how_to_go_on(stage: Stage) -> None:
    """What --keep leaves, and how to use it and end it."""
    line = stage.teller.line
    jump = f"{shlex.join(stage.ssh_argv('client', '-W', '%h:%p'))}"
    known = stage.access / "known_containers"
    line("\nThe hosts stay. Log in to the container:")
    line(f"  ssh -i {stage.key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=accept-new \\")
    line(f'    -o ProxyCommand="{jump}" root@{ADDRESS}')
    line("Log in to a host:")
    line(f"  {shlex.join(stage.ssh_argv('host1'))}")
    line("Teleport it again:")
    more = ("-e", "container=web", "-e", "target=host2", "-e", "allow_post_copy=true")
    line(f"  {stage.playbook_line('-i', str(stage.inventory), 'cnvm.platform.teleport', *more)}")
    line("Take all away:")
    line(f"  {stage.removal_line()}")


def main(stage: Stage, keep: bool) -> int:
    teller = stage.teller
    begin = time.monotonic()
    teller.step("Look for what an earlier demo left")
    stage.down()
    stage.play(str(SUPPORT / "stage.yml"), "-e", f"stage_set={stage.name}", steps=True)
    stage.read_addresses()
    variables = {"stage_mib": str(MEMORY_MIB), "stage_key": str(stage.key)}
    stage.play(str(SUPPORT / "container.yml"), "-e", json.dumps(variables), steps=True)
    teller.step("Open an SSH session and an HTTP connection to it from a third host")
    shell, web = Shell(stage), Web(stage)
    shell.wait_lines(20)
    moves = []
    for source, target in (("host1", "host2"), ("host2", "host1")):
        teller.step(f"Teleport it from {source} to {target}, both connections in use")
        moves.append(teleport(stage, shell, web, source, target))
    teller.end()
    show(teller, shell, moves)
    bad = []
    if shell.resets or any(move["http"]["resets"] for move in moves):
        bad.append(f"a connection was reset {shell.error}")
    if any(move["http"]["lost"] for move in moves):
        bad.append("an HTTP request was lost or answered twice")
    if not shell.gapless():
        bad.append("the shell is not the same, or lines of it are missing")
    for move in moves:
        if move["running_on"] != [move["to"]]:
            bad.append(f"after the move to {move['to']} it ran on {', '.join(move['running_on']) or 'no host'}")
    shell.close()
    teller.line()
    if bad:
        teller.line(teller.paint("FAILED: ", RED) + "; ".join(bad) + ".")
    else:
        lines = f"{len(shell.lines):,} lines"
        teller.line(
            teller.paint("0 resets.", GREEN)
            + f" The same shell printed {lines}, none missing. {time.monotonic() - begin:.0f} s in all."
        )
    if keep:
        say_how_to_go_on(stage)
    return int(bool(bad))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="./dev demo", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--keep", action="store_true", help="leave the hosts up and say how to log in")
    options = parser.parse_args()
    the_stage = Stage("dev-demo", Teller(sys.stdout))
    sys.exit(run(lambda: main(the_stage, options.keep), the_stage, lambda: options.keep))
