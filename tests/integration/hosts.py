# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real hosts on this machine, a container on them with a client, and the questions that the tests ask about them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.cnvm.platform.plugins.module_utils._core.local_hosts import bridge_name, link_name
from ansible_collections.cnvm.platform.plugins.module_utils._net.endpoint import forward_table
from ansible_collections.cnvm.platform.tests.dev import CACHE, SUDO

HERE = Path(__file__).resolve().parent
# Containers and guests have hosts of their own: their tests run side by side.
SET = os.environ.get("CNVM_INTEGRATION_SET", "dev-it")
NAMES = ("host1", "host2", "host3")
ADDRESS = "10.100.101.111"
MEMORY_MIB = 24
STOP, CONT, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
# The hosts' own way to each other.
SSH = "ssh -F /etc/cnvm/ssh/config"
# What leads a move on its source.
MOVER = "cnvm-host move run"
# What answers it on its target.
SERVE = "cnvm-host serve"
STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
ACCESS = STATE / "cnvm-platform/local-hosts" / SET
# Generous: it says only after how long a test is given up. Nothing waits for time to pass.
PATIENCE_S = 90.0
_T = t.TypeVar("_T")


def eventually(what: str, condition: t.Callable[[], _T], seconds: float = PATIENCE_S, pause: float = 0.0) -> _T:
    """The first true value of ``condition``. Without a ``pause`` it is asked less often the longer it takes: others
    need the processors meanwhile."""
    begin = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        passed = time.monotonic() - begin
        if passed > seconds:
            raise AssertionError(f"{what}: not after {seconds:g} s; last seen: {value!r}")
        time.sleep(pause or min(max(0.1, passed / 5), 0.5))


def run(
    argv: t.Sequence[str], *, check: bool = True, seconds: float = 300, **more: t.Any
) -> subprocess.CompletedProcess[str]:
    """A command on this machine; its output is in the error when it fails."""
    done = subprocess.run(
        list(argv), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, check=False, **more
    )
    if check and done.returncode:
        raise AssertionError(
            f"{shlex.join(argv)} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        )
    return done


def playbook(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``ansible-playbook`` with the hosts' inventory, where there is one."""
    return run(playbook_argv(*args), check=check, seconds=900, env=environment())


def playbook_argv(*args: str) -> list[str]:
    """The command of ``playbook``."""
    inventory = ACCESS / "inventory.yml"
    where = str(inventory) if inventory.exists() else "localhost,"
    return [str(Path(sys.executable).parent / "ansible-playbook"), "-i", where, *args]


def call(host: Host, module: str, **args: t.Any) -> dict[str, t.Any]:
    """What a module returns on a host."""
    ansible = str(Path(sys.executable).parent / "ansible")
    argv = [
        ansible,
        host.name,
        "-i",
        str(ACCESS / "inventory.yml"),
        "-m",
        f"cnvm.platform.{module}",
        "-a",
        json.dumps(args),
    ]
    said = run(argv, check=False, env=environment()).stdout
    assert "=> {" in said, said
    return t.cast("dict[str, t.Any]", json.loads(said[said.index("=> {") + 3 :]))


def environment() -> dict[str, str]:
    """For Ansible. Where the collection is stands in ANSIBLE_COLLECTIONS_PATH, as './dev' sets it."""
    return {
        **os.environ,
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "False",
    }


class Reader:
    """Reads the lines of a program that goes on and on."""

    def __init__(self, argv: t.Sequence[str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in t.cast("t.IO[str]", self.process.stdout):
            self.lines.append(line.rstrip("\n"))

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Host:
    """One host, over SSH. One connection carries all commands; programs that go on have their own."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def argv(self, *words: str, own_connection: bool = False) -> list[str]:
        """SSH to it."""
        control = ["-o", "ControlPath=none"] if own_connection else [
            "-o", f"ControlPath={ACCESS}/%h", "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
        ]  # fmt: skip
        options = ["-o", f"UserKnownHostsFile={ACCESS}/known_hosts", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        return ["ssh", "-i", f"{ACCESS}/id_ed25519", *options, *control, f"root@{self.address}", shlex.join(words)]

    def run(self, *words: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return run(self.argv(*words), check=check, seconds=seconds)

    def sh(self, script: str, **more: t.Any) -> str:
        """Run a script of the shell there; what it prints."""
        return self.run("sh", "-ec", script, **more).stdout

    def program(self, name: str, *args: str) -> list[str]:
        """SSH to it, to run one of our programs."""
        return self.argv("python3", "-uc", (HERE / "programs" / f"{name}.py").read_text(), *args, own_connection=True)

    def look(self, container: str) -> dict[str, t.Any]:
        """What there is of a container and of moves."""
        text = (HERE / "programs/look.py").read_text()
        return t.cast("dict[str, t.Any]", json.loads(self.run("python3", "-c", text, container).stdout))

    def helper(self, *words: str, check: bool = True) -> dict[str, t.Any]:
        """What ``cnvm-host`` answers; ``{"failed": …}`` with what it said when it refused."""
        done = self.run("cnvm-host", *words, check=False)
        if done.returncode == 0:
            return t.cast("dict[str, t.Any]", json.loads(done.stdout.splitlines()[-1]))
        assert not check, f"{self.name}: cnvm-host {words}: {done.stderr}"
        return {"failed": done.stderr}

    def hang_up(self) -> None:
        """Forget the shared connection (the host has gone)."""
        run([*self.argv()[:-2], "-O", "exit", f"root@{self.address}"], check=False)


def pattern(word: str) -> str:
    """For ``pgrep -f``: every process that has ``word`` in its command line, but not the command that looks for it."""
    return f"[{word[0]}]{word[1:]}"


def kill(host: Host, word: str, number: int = KILL, *, check: bool = True) -> None:
    """A signal to every process of a host that has ``word`` in its command line."""
    host.run("pkill", f"-{number}", "-f", pattern(word), check=check)


class Trap:
    """A program on a host that waits for something and sends a signal at once."""

    def __init__(self, host: Host, **asked: t.Any) -> None:
        self.what = f"{asked} on {host.name}"
        self._reader = Reader(host.program("trap", json.dumps(asked)))
        eventually(f"{self.what} is set", lambda: "ready" in self._reader.lines, pause=0.01)

    def sprung(self) -> list[int]:
        """Wait until it has happened; who got the signal."""
        text = eventually(self.what, lambda: next(iter(self._reader.lines[1:]), ""), pause=0.01)
        pids = t.cast("list[int]", json.loads(text))
        assert pids, f"nothing came: {self.what}"
        return pids


class Client:
    """A TCP connection to the workload, from the third host. ``program``: what speaks there."""

    def __init__(self, host: Host, address: str, port: int = 80, program: str = "client") -> None:
        self._reader = Reader(host.program(program, address, str(port)))

    def answers(self) -> list[dict[str, t.Any]]:
        """All so far."""
        return [json.loads(line) for line in list(self._reader.lines)]

    def check(self, seconds: float = PATIENCE_S) -> None:
        """It goes on now, each answer was one further than the one before, from the same process, with all it held."""
        before = len(self._reader.lines)
        eventually(
            "the client gets answers",
            lambda: len(self._reader.lines) > before + 3 or self._reader.process.poll() is not None,
            seconds,
        )
        answers = self.answers()
        assert not [one for one in answers if "error" in one], answers[-2:]
        assert len({one.get("nonce") for one in answers}) == 1
        counts = [one["count"] for one in answers]
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        assert len({one["sum"] for one in answers if "sum" in one}) <= 1
        assert all(one["watch"] for one in answers if "sum" in one)

    def broken(self) -> bool:
        """Whether the connection has ended."""
        return any("error" in one for one in self.answers())

    def stop(self) -> None:
        """End it."""
        self._reader.stop()


class Fleet:
    """The hosts."""

    def __init__(self, names: t.Iterable[str] = NAMES) -> None:
        found = json.loads(
            run(
                [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(ACCESS / "inventory.yml"), "--list"],
                env=environment(),
            ).stdout
        )["_meta"]["hostvars"]
        self.hosts = {name: Host(name, found[name]["ansible_host"]) for name in names}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def other(self, host: Host) -> Host:
        """Where a container of ``host`` moves to."""
        return self["host2" if host.name == "host1" else "host1"]

    def change(self, **hosts: t.Mapping[str, str]) -> None:
        """Bring hosts of the set into a state: ``host1={"link": "down"}``. What is not named stays as it is.

        By the module itself: of hosts that are there the role would make no more, and take five times as long.
        """
        asked = {
            "set": SET,
            "hosts": [{"name": name, "address": self[name].address, **hosts[name]} for name in hosts],
            "ssh_key": f"{ACCESS}/id_ed25519",
            "cache_dir": str(CACHE / "local-hosts"),
        }
        module = "ansible_collections.cnvm.platform.plugins.modules.local_hosts"
        path = f"PYTHONPATH={os.environ['PYTHONPATH']}"
        run([*SUDO, "env", path, sys.executable, "-m", module, json.dumps({"ANSIBLE_MODULE_ARGS": asked})])

    @contextlib.contextmanager
    def slow(self, host: Host, rate: str = "20mbit") -> t.Iterator[None]:
        """The link to a host carries only so much for a while: what is sent there takes long enough to be disturbed."""
        queue = ["dev", self.device(host), "root"]
        bucket = ["tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
        run([*SUDO, "tc", "qdisc", "replace", *queue, *bucket])
        try:
            yield
        finally:
            run([*SUDO, "tc", "qdisc", "del", *queue], check=False)

    @contextlib.contextmanager
    def cut(self, host: Host) -> t.Iterator[None]:
        """Packets from and to the host vanish for a while; nobody is told."""
        self.unplug(host)
        try:
            yield
        finally:
            self.mend(host)

    @contextlib.contextmanager
    def apart(self, one: Host, other: Host) -> t.Iterator[None]:
        """Packets between two hosts vanish for a while. From here both can be reached."""
        ways = [(one, other.address), (other, one.address)]
        for host, address in ways:
            host.run("ip", "route", "add", "blackhole", address)
        try:
            yield
        finally:
            for host, address in ways:
                host.run("ip", "route", "del", "blackhole", address, check=False)

    def unplug(self, host: Host) -> None:
        """Packets from and to the host vanish."""
        run([*SUDO, "ip", "link", "set", "dev", self.device(host), "nomaster"])

    def mend(self, host: Host) -> None:
        """The host has its link, if it is on."""
        run([*SUDO, "ip", "link", "set", "dev", self.device(host), "master", bridge_name(SET)], check=False)

    def power_cut(self, host: Host) -> None:
        """The host is off, from now on for the others. First its link: to end its processes takes a while, in which
        they would go on, and the kernel would close their connections."""
        self.unplug(host)
        self.change(**{host.name: {"state": "powered_off"}})
        host.hang_up()

    def device(self, host: Host) -> str:
        """This machine's end of the host's link."""
        return link_name(SET, host.name)


class App:
    """A container on two of the hosts, with witnesses on both and a client on the third."""

    def __init__(self, fleet: Fleet, name: str = "app", address: str = ADDRESS) -> None:
        self.fleet = fleet
        self.name = name
        self.address = address
        self.movers = (fleet["host1"], fleet["host2"])
        self.witnesses: dict[str, Reader] = {}
        self.lines: list[str] = []
        self.since = 0.0
        self.client: t.Optional[Client] = None

    # --- what is there ---

    def source(self) -> Host:
        """Where it is, by both owner records."""
        found = [host.look(self.name) for host in self.movers]
        newest = max(found, key=lambda one: int(one["owner"].get("generation", -1)))
        return self.fleet[newest["owner"]["owner_name"]]

    def deploy(self, **more: t.Any) -> None:
        """Start it anew on the first host."""
        asked = {"app_name": self.name, "app_memory_mib": str(MEMORY_MIB), "app_address": self.address, **more}
        playbook(str(HERE / "playbooks/deploy.yml"), "-e", json.dumps(asked))

    def watch(self) -> None:
        """Begin a test: witnesses on both hosts, and a client."""
        self.since = time.time()
        for host in self.movers:
            self.witness(host)
        if self.client is None or self.client.broken():
            if self.client is not None:
                self.client.stop()
            self.client = Client(self.fleet["host3"], self.address)
        self.client.check()

    def witness(self, host: Host) -> None:
        """Note what a copy on this host does from now on (again, when the host was off)."""
        old = self.witnesses.pop(host.name, None)
        if old is not None:
            old.stop()
            self.lines += old.lines
        self.witnesses[host.name] = Reader(host.program("sampler", self.name))

    def dismiss(self) -> None:
        """End of a test: nothing that it stopped or cut stays so."""
        for host in self.movers:
            self.fleet.mend(host)
            host.sh("pkill -CONT -f 'cnvm-[h]ost|[c]riu' || true", check=False)
        for one in self.witnesses.values():
            one.stop()
        self.witnesses, self.lines = {}, []
        if self.client is not None:
            self.client.stop()
        self.client = None

    def stays(self) -> list[tuple[str, float, float]]:
        """Who has run since ``watch``, in the order of time: (copy, from, until). Two at once would take turns in it.

        A copy is its network namespace and its memory: the number of a namespace that is gone may be given again.
        """
        seen = {line for one in self.witnesses.values() for line in list(one.lines)} | set(self.lines)
        ticks = sorted((float(words[1]), f"{words[2]} {words[3]}") for words in map(str.split, seen) if len(words) == 4)
        found: list[tuple[str, float, float]] = []
        for clock, copy in ticks:
            if clock < self.since:
                continue
            begin = found.pop()[1] if found and found[-1][0] == copy else clock
            found.append((copy, begin, clock))
        return found

    def running_on(self) -> Host:
        """The host whose copy ticks now; fails when none does, or when both do."""
        now = time.time()
        copy = eventually("a copy runs", lambda: next((one[0] for one in self.stays()[-1:] if one[2] > now), ""))
        space = copy.split()[0]
        places = [host for host in self.movers if host.look(self.name)["space"] == space]
        assert len(places) == 1, (space, places)
        return places[0]

    def check(self, host: Host, moves: int, *, client: bool = True) -> None:
        """Exactly one copy runs, on ``host``; it changed hosts ``moves`` times since ``watch``; nothing is left."""
        self.settle(host)
        assert self.running_on().name == host.name
        if client and self.client is not None:
            self.client.check()
        stays = self.stays()
        assert len(stays) == moves + 1, stays

    def settle(self, host: Host) -> None:
        """Wait until both hosts are as if there had never been a move, with the container on ``host``."""
        for one in self.movers:
            self.clean(one, host)

    def clean(self, host: Host, owner: Host, seconds: float = PATIENCE_S) -> None:
        """Wait until nothing of a move is left on ``host``."""
        end = time.monotonic() + seconds
        while left := self.remains(host, owner):
            assert time.monotonic() < end, f"left on {host.name}: {left}"
            time.sleep(0.3)

    def remains(self, host: Host, owner: Host) -> dict[str, t.Any]:
        """What a move has left on ``host``, and what ``owner`` lacks."""
        seen = host.look(self.name)
        left = {key: seen[key] for key in ("move_dirs", "locked", "journal", "units", "processes", "drops", "fifos")}
        if host is owner:
            left["not running"] = not seen["alive"] or seen["frozen"]
            left["not started at boot"] = not seen["at boot"]
            left["not its owner"] = seen["owner"].get("owner_name") != owner.name
            left["mounts"] = [path for path in seen["mounts"] if "/run/cnvm/moves" in path]
        else:
            left |= {key: seen[key] for key in ("mounts", "space", "alive", "at boot")}
            left["forwards"] = [line for line in seen["forwards"] if forward_table(self.name) in line]
            left["files"] = [name for name in seen["home"] if name != "owner.json"]
        return {key: value for key, value in left.items() if value}

    # --- moving ---

    def start(self, mode: str = "stop_copy", source: t.Optional[Host] = None, **more: t.Any) -> Move:
        """Start a move away from where it is."""
        source = source or self.source()
        target = self.fleet.other(source)
        request = {
            "container": self.name, "target": target.name, "mode": mode, "allow_post_copy": mode == "post_copy", **more,
        }  # fmt: skip
        return Move(source, target, source.helper("move", "start", json.dumps(request)))

    def move(self, mode: str = "stop_copy") -> Host:
        """A whole move that must succeed; where the container is then."""
        move = self.start(mode)
        result = move.result()
        assert result["outcome"] == "target", result
        self.settle(move.target)
        return move.target


class Move:
    """A move that was started."""

    def __init__(self, source: Host, target: Host, started: t.Mapping[str, t.Any]) -> None:
        self.source, self.target = source, target
        self.id = str(started["move_id"])

    def status(self, seconds: float = 0) -> dict[str, t.Any]:
        """How far it is. With ``seconds`` it may take that long, until there is news."""
        return self.source.helper("move", "status", self.id, str(seconds))

    def wait_phase(self, *names: str) -> str:
        """Wait until it is in one of these phases."""
        path = f"/var/log/cnvm/moves/{self.id}/status.json"
        text = (HERE / "programs/phase.py").read_text()
        done = self.source.run("python3", "-c", text, path, str(PATIENCE_S), *names, seconds=PATIENCE_S + 30)
        status = json.loads(done.stdout)
        assert status["phase"] in names, status
        return t.cast("str", status["phase"])

    def result(self) -> dict[str, t.Any]:
        """How it ended; the mover lives to say so."""

        def ended() -> list[dict[str, t.Any]]:
            status = self.status(5)
            return [status["result"]] if status["phase"] == "done" else []

        # A daemon that hangs is waited for: 30 s for it to arrive, and 60 s for libvirt to end its job.
        return eventually("the move ends", ended, 2 * PATIENCE_S)[0]
