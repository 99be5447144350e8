# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest on two of the hosts that counts on its console, with a client on the third, and what the tests ask of it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import time
import typing as t
from pathlib import Path

from ansible_collections.cnvm.platform.tests.integration.hosts import (
    HERE,
    MOVER,
    PATIENCE_S,
    SERVE,
    Client,
    Fleet,
    Host,
    Move,
    Reader,
    Trap,
    eventually,
    kill,
    playbook,
)
from ansible_collections.cnvm.platform.tests.support import tiny_guest

ADDRESS = "10.100.101.121"
# So much of its memory it writes to each second: with ``SLOW`` it never has little left to copy. The faster both are,
# the shorter is the first round over its memory. But what the link carries in ``max_downtime_ms`` must be less than it
# dirties between two rounds while it rests: a few pages.
DIRTY_MIB = 20
SLOW: dict[str, t.Any] = {"bandwidth_mib_s": 8, "auto_converge": False, "max_downtime_ms": 1}
# The same, until post-copy begins; it lasts for a second or two.
LAZY: dict[str, t.Any] = {**SLOW, "allow_post_copy": True}
# Where it has its disk, in its directory.
OWN_DISK = "disks/vda.qcow2"
# Of the source's journal, and of the target's.
_STATES = ("begun", "frozen", "leaving")
_HELD = ("prepared", "active")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnvm-platform/integration/tiny"


class Guest:
    """The guest, wherever it is.

    ``more``: what its description has besides, or instead. ``files``: what its host has for that in its directory.
    ``disk``: its first disk, where that is not there. It has a plain disk elsewhere, too, if ``more`` has no disks.
    ``movers``: the hosts between which it moves.
    """

    def __init__(
        self, fleet: Fleet, name: str = "vm", address: str = ADDRESS, *,
        more: t.Optional[t.Mapping[str, t.Any]] = None, files: t.Sequence[str] = (OWN_DISK,), disk: str = "",
        movers: tuple[str, str] = ("host1", "host2"),
    ) -> None:  # fmt: skip
        self.fleet = fleet
        self.name = name
        self.address = address
        self.home = f"/var/lib/cnvm/workloads/{name}"
        self.more = dict(more or {})
        self.files = {"definition.json", "owner.json", *files}
        self.disk = disk or f"{self.home}/{OWN_DISK}"
        self.plain = "" if "disks" in self.more else f"/var/lib/libvirt/images/{name}-data.raw"
        self.plain_sum = ""
        # What its QEMU has in its command line.
        self.emulator = f"guest={name},"
        self.movers = (fleet[movers[0]], fleet[movers[1]])
        self.consoles: dict[str, Reader] = {}
        self.lines: dict[str, list[str]] = {}
        self.since = 0.0
        self.client: t.Optional[Client] = None

    def deploy(self) -> None:
        """Start it anew on the first host."""
        tiny_guest.make(CACHE)
        asked = {
            "guest": self.name, "tiny": str(CACHE), "address": self.address, "dirty_mib": DIRTY_MIB, "more": self.more,
            **self._where(),
        }  # fmt: skip
        playbook(str(HERE / "playbooks/guest.yml"), "-e", json.dumps(asked))
        if self.plain:
            # The guest has it, and does nothing with it.
            fill = f"dd if=/dev/urandom of={self.plain} bs=1M count=4 conv=notrunc,fsync status=none"
            self.plain_sum = self.source().sh(f"{fill}; sha256sum <{self.plain}")

    def remove(self) -> None:
        """Nothing of it stays."""
        asked = {"guest": self.name, **self._where()}
        playbook(str(HERE / "playbooks/remove_guest.yml"), "-e", json.dumps(asked))

    def _where(self) -> dict[str, str]:
        return {"home": self.movers[0].name, "movers": ":".join(host.name for host in self.movers)}

    def other(self, host: Host) -> Host:
        """Where it moves to from a host."""
        return self.movers[host is self.movers[0]]

    # --- what is there ---

    def look(self, host: Host) -> dict[str, t.Any]:
        """What there is of it on a host."""
        text = (HERE / "programs/look_guest.py").read_text()
        return t.cast("dict[str, t.Any]", json.loads(host.run("python3", "-c", text, self.name).stdout))

    def source(self) -> Host:
        """Where it is, by both owner records."""
        newest = max(
            (self.look(host)["owner"] for host in self.movers), key=lambda owner: int(owner.get("generation", -1))
        )
        return self.fleet[newest["owner_name"]]

    def watch(self) -> None:
        """Begin a test: read both consoles, and have a client."""
        self.since = time.time()
        for host in self.movers:
            self.listen(host)
        if self.client is None or self.client.broken():
            self.connect()
        eventually("it counts", self.ticks)

    def connect(self) -> None:
        """A new client."""
        if self.client is not None:
            self.client.stop()
        self.client = Client(self.fleet["host3"], self.address, 7, program="echo")
        self.client.check()

    def boots(self, host: Host) -> None:
        """A host that was off is on again, and its console is read."""
        self.fleet.change(**{host.name: {"state": "present"}})
        self.listen(host)

    def listen(self, host: Host) -> None:
        """Read the console on a host (again, when it was off)."""
        old = self.consoles.pop(host.name, None)
        if old is not None:
            old.stop()
            self.lines.setdefault(host.name, []).extend(old.lines)
        self.consoles[host.name] = Reader(host.program("console", self.name))

    def dismiss(self) -> None:
        """End of a test: nothing that it stopped or cut stays so."""
        for host in self.movers:
            self.fleet.mend(host)
            host.sh(f"pkill -CONT -f 'cnvm-[h]ost|[g]uest={self.name},' || true", check=False)
        for one in self.consoles.values():
            one.stop()
        self.consoles, self.lines = {}, {}
        if self.client is not None:
            self.client.stop()
        self.client = None

    def ticks(self) -> list[tuple[float, str, int]]:
        """All that was counted since ``watch``, in the order of time: (clock, host, number)."""
        found = []
        for name, reader in self.consoles.items():
            for line in {*reader.lines, *self.lines.get(name, ())}:
                clock, number = line.split()
                if float(clock) >= self.since:
                    found.append((float(clock), name, int(number)))
        return sorted(found)

    def stays(self, *, memory: bool = False) -> list[str]:
        """The hosts on which it counted, one after the other. Two copies at once would take turns in it.

        ``memory``: it never began to count anew, so its numbers have the order; a reader may be late.
        """
        ticks = sorted(self.ticks(), key=lambda one: one[2]) if memory else self.ticks()
        return [name for name, _group in itertools.groupby(name for _clock, name, _number in ticks)]

    def counts_on(self, host: Host) -> None:
        """It counts there now, and nowhere else."""
        now = time.time()
        eventually(
            f"it counts on {host.name}", lambda: [one for one in self.ticks() if one[0] > now and one[1] == host.name]
        )
        assert self.ticks()[-1][1] == host.name, self.stays()

    def starts_on(self, host: Host) -> None:
        """It was off, and runs there now that it is told to."""
        host.run("virsh", "start", self.name)
        self.connect()
        self.counts_on(host)

    def check(self, host: Host, stays: t.Sequence[Host], *, memory: bool = True, client: bool = True) -> None:
        """It runs on ``host`` and nowhere else, was on ``stays`` since ``watch``, and nothing of a move is left.

        What it has written to its disk it has read from there again. ``memory``: it never began to count anew.
        """
        self.settle(host)
        self.counts_on(host)
        assert self.stays(memory=memory) == [one.name for one in stays], self.ticks()[-40:]
        for one in self.movers:
            assert not self.said(one, "wrong")
        if memory:
            numbers = [number for _clock, _name, number in self.ticks()]
            assert len(numbers) == len(set(numbers)), sorted(numbers)
        if client:
            assert self.client
            self.client.check()
        # Standing still it has written all that it has. A QEMU that died leaves clusters that nobody uses (3), which
        # stay until the disk is copied: what came with this move, and has run since, has none.
        copied = memory and len(stays) > 1 and OWN_DISK in self.files
        raw = f"/var/tmp/{self.name}.raw"
        found = host.sh(
            f"""
            virsh suspend {self.name} >&2
            rc=0; qemu-img check -q -U {self.disk} >&2 || rc=$?
            qemu-img convert -U -O raw {self.disk} {raw} >&2 || rc=1
            virsh resume {self.name} >&2
            tail -c +1048577 {raw} | head -c 6M | sha256sum; rm {raw}
            [ $rc = 0 ] || [ $rc = {0 if copied else 3} ]
            """,
            seconds=PATIENCE_S,
        )
        # It was filled once, and never written to again.
        assert found.split()[0] in self.sums(), (found, self.sums())
        if self.plain:
            assert host.sh(f"sha256sum <{self.plain}") == self.plain_sum

    def settle(self, host: Host, *, running: bool = True) -> None:
        """Wait until both hosts are as if there had never been a move, with the guest on ``host``."""
        for one in self.movers:
            end = time.monotonic() + PATIENCE_S
            while left := self.remains(one, host, running=running):
                assert time.monotonic() < end, f"left on {one.name}: {left}"
                # To look costs more than to wait.
                time.sleep(0.5)

    def remains(self, host: Host, owner: Host, *, running: bool = True) -> dict[str, t.Any]:
        """What a move has left on ``host``, and what ``owner`` lacks."""
        seen = self.look(host)
        everywhere = ("journal", "move_dirs", "templates", "locked", "units", "processes", "ports")
        left = {key: seen[key] for key in everywhere}
        if host is owner:
            left["state"] = seen["state"] if seen["state"] != ("running" if running else "shut off") else ""
            left["emulators"] = seen["emulators"] != int(running)
            left["not its owner"] = seen["owner"].get("owner_name") != owner.name
            left["job"] = [word for word in seen["job"] if word != "None"]
            left["files"] = sorted(self.files ^ set(seen["files"]))
            left["images"] = sorted({self.plain} - {""} ^ set(seen["images"]))
        else:
            left |= {key: seen[key] for key in ("state", "emulators", "log", "images")}
            left["files"] = [name for name in seen["files"] if name != "owner.json"]
        return {key: value for key, value in left.items() if value}

    # --- moving ---

    def start(self, source: t.Optional[Host] = None, **more: t.Any) -> Move:
        """Start a move away from where it is."""
        source = source or self.source()
        target = self.other(source)
        request = {"guest": self.name, "target": target.name, **more}
        return Move(source, target, source.helper("move", "start", json.dumps(request)))

    def content(self, host: Host) -> str:
        """The sha256 of what its disks hold. (They are looked at while nobody writes to them.)"""
        raw = f"/var/tmp/{self.name}.raw"
        sound(host, self.disk)
        script = f"qemu-img convert -O raw {self.disk} {raw}; cat {raw} {self.plain} | sha256sum; rm {raw}"
        return host.sh(script, seconds=PATIENCE_S)

    def trap(self, source: Host, at: str, victim: str = "", number: int = signal.SIGSTOP) -> Trap:
        """What stops the mover as soon as it is so far: in a phase; or in a state that is on the disk (``_STATES``), or
        ``committed``, when the owner record names the target. Of ``_HELD`` it is what answers on the target that stops:
        it has just noted that it holds the copy, or that this runs, and the source has not heard of it yet.
        ``victim``: another program there, instead; ``number``: another signal."""
        host, program = source, MOVER
        if at in _HELD:
            host, program = self.other(source), SERVE
        if at in (*_STATES, *_HELD):
            file, text = f"{self.home}/move.json", f'"{at}"'
        elif at == "committed":
            file, text = f"{self.home}/owner.json", f'"{self.other(source).name}"'
        else:
            # What was said before, but not what the guest has.
            source.sh("rm -f /var/log/cnvm/moves/*/status.json")
            file, text = "/var/log/cnvm/moves/*/status.json", f'"phase": "{at}"'
        return Trap(host, file=file, text=text, signal=number, victim=victim or program)

    def stopped(self, at: str, **more: t.Any) -> Move:
        """A move that stands still since it was so far (see ``trap``)."""
        source = self.source()
        trap = self.trap(source, at)
        move = self.start(source, **more)
        trap.sprung()
        return move

    def arrived(self) -> Move:
        """A move that is not committed, with the copy whole on the target. Mover and target stand still."""
        move = self.stopped("prepared")
        # libvirt's way goes on. Who leads the move waits for the answer to its last question.
        move.target.sh(
            """
            for pid in $(pgrep -f "cnvm-[h]ost serve"); do
              ! grep -qz "^SSH_ORIGINAL_COMMAND=libvirt " "/proc/$pid/environ" || kill -CONT "$pid"
            done
            """
        )
        # While it is arriving libvirt tells nothing of its job.
        asked = ("virsh", "domjobinfo", self.name)
        eventually("the copy is whole", lambda: move.target.run(*asked, check=False).returncode == 0)
        kill(move.source, MOVER, signal.SIGSTOP)
        return move

    def slowly(self, source: t.Optional[Host] = None) -> Move:
        """A move that has begun to copy memory and does not come to its end by itself."""
        move = self.start(source, **SLOW)
        move.wait_phase("memory")
        eventually("memory is copied", lambda: move.status().get("bytes", {}).get("memory"), pause=0.2)
        return move

    def lazily(self) -> Move:
        """A move that has come to fetch the rest of the memory. The emulator that has it stands still since then."""
        source = self.source()
        trap = self.trap(source, "drain", self.emulator)
        move = self.start(source, **LAZY)
        trap.sprung()
        return move

    def move(self) -> Host:
        """A whole move that must succeed; where the guest is then."""
        move = self.start()
        result = move.result()
        assert result["outcome"] == "target", result
        self.settle(move.target)
        return move.target

    def recover(self) -> None:
        """What the playbook does: end what was interrupted, and then what had to wait for the other host."""
        for dummy in range(2):
            done = [host.run("cnvm-host", "recover", self.name, seconds=PATIENCE_S) for host in self.movers]
            outcomes = {one["outcome"] for each in done for one in json.loads(each.stdout)["results"]}
            if not outcomes & {"waiting", "busy"}:
                return
        raise AssertionError([each.stdout for each in done])

    def arrives(self, move: Move) -> None:
        """The move comes to its end, with the guest at its target."""
        result = move.result()
        assert result["outcome"] == "target", result
        self.check(move.target, [move.source, move.target])

    def begins_anew(self, host: Host, stays: t.Sequence[Host]) -> None:
        """``check`` of one that was started anew on ``host``: it has its disk, and its client another connection."""
        self.settle(host)
        self.counts_on(host)
        self.connect()
        self.check(host, stays, memory=False)
        # It has read its disk when it started; on its first host it said what it had written there.
        sums = self.sums()
        assert len(sums) > 1, sums
        assert len(set(sums)) == 1, sums

    def sums(self) -> list[str]:
        """What it has said of what its disk is filled with, each time that it started."""
        return [line.split()[1] for one in self.movers for line in self.said(one, "sum")]

    def said(self, host: Host, word: str) -> list[str]:
        """The lines of its console on a host that begin with a word, also of what it said before it went away."""
        logs = f"/var/log/cnvm/moves/*/{self.name}.log /var/log/cnvm/guests/{self.name}.log"
        # UEFI paints its screen, and what is said next is on the same line.
        script = rf"cat {logs} 2>/dev/null | sed 's/\x1b\[[0-9;=?]*[A-Za-z]//g' | grep -a '^{word} ' || true"
        return host.sh(script).splitlines()

    def stays_at(self, source: Host, result: t.Mapping[str, t.Any], *, client: bool = True) -> None:
        """The move failed, the guest goes on at its source. The next test moves it again: nothing is in the way."""
        assert result["outcome"] == "source", result
        assert result["error"], result
        self.check(source, [source], client=client)

    def moves_again(self, source: Host, result: t.Mapping[str, t.Any]) -> None:
        """``stays_at``; a second try succeeds with what the first one has left on its target."""
        self.stays_at(source, result)
        self.check(self.move(), [source, self.other(source)])


@contextlib.contextmanager
def userfaultfd(guest: Guest, value: str) -> t.Iterator[None]:
    """Let QEMU have pages fetched that a guest touches, or not. All hosts have one kernel, also those of tests that run
    at the same time: they take turns, and it is put back."""
    word, host = "vm.unprivileged_userfaultfd", guest.fleet["host3"]
    with open(CACHE.parent / "userfaultfd.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = host.run("sysctl", "-n", word).stdout.strip()
        host.run("sysctl", "-qw", f"{word}={value}")
        try:
            yield
        finally:
            host.run("sysctl", "-qw", f"{word}={before}")


def sound(host: Host, path: str) -> None:
    """The image has no errors. (It is looked at while nobody writes to it.)"""
    host.run("qemu-img", "check", "-q", path, seconds=PATIENCE_S)
