# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts below a directory, between which the collection's own code moves a guest, and what can happen to them.

Mover, conversation, recovery, handover, owner records, journals and the files of a guest are the real ones. Stand-ins
are libvirt, the commands, the wire, the plan (what a target refuses is no matter here), and the disk's cache: fsync is
only noted, and what was never synced is gone when the power is cut.

This is no second ``test_handover_model``. That one is a model of the protocol: it has few steps, and goes through all
their interleavings with up to three faults. Here the code itself runs, each of its effects is one step, and faults come
one at a time: what the model takes for one step, such as "it removes its files", may end half-way.

Where something lies is told by paths, which are the same on both hosts: they begin with the working directory, and that
is of the host at which something is being done now (``World.here``).
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import shutil
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, PeerError
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import (
    files,
    freezer,
    guest_disks,
    guest_preflight,
    guest_source,
    guest_start,
    guest_target,
    kinds,
    libvirt,
    mover,
    peers,
    preflight,
    recover,
    serve,
)
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host as System
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import (
    admission,
    errors,
    guest_definition,
    migration,
    xml,
)
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import plan, records, wire

from . import fake_domains
from .fake_clock import Clock
from .fake_domains import PAUSED, RUNNING, SHUTOFF, FakeConnection, FakeDomain, FakeError
from .killing import Calls, Effects, Killed, counted

NAME = "web"
UUID = "0705aea1-1ea0-540a-967e-c710e0d8de07"
# All paths of a host are below.
_HERE = "/proc/self/cwd"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# No run has so many effects.
NEVER = 10**6
# Beside PAUSED and SHUTOFF: why.
_REASONS = {"VIR_DOMAIN_PAUSED_POSTCOPY": 99, "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED": 98, "VIR_DOMAIN_SHUTOFF_SHUTDOWN": 1}
# What recovery needs, at most, until nothing is to do: each host asks the other, and hears of what that has done.
_ROUNDS = 5
_VARIABLES = "variables"


class Guest(t.NamedTuple):
    """What is moved: whether it ``runs`` (then it starts with its host, too); where its disk is (its ``own`` directory,
    another one, as that of a ``pool``, or storage that is ``shared``); whether its firmware has variables."""

    runs: bool
    place: str
    uefi: bool = False

    def __str__(self) -> str:
        return f"{'running' if self.runs else 'off'}-{self.place}{'-uefi' if self.uefi else ''}"


class Domain(FakeDomain):
    """libvirt's, with a memory: what the guest has written last, as it knows that."""

    def __init__(self, connection: Connection, text: str) -> None:
        super().__init__(connection, text)
        self.world = connection.world
        self.memory = ""

    def name(self) -> str:
        return NAME

    def UUIDString(self) -> str:
        return UUID

    def isPersistent(self) -> int:
        return int(self.stored is not None)

    def autostart(self) -> int:
        return int(self.automatic)

    def createWithFlags(self, flags: int) -> None:
        super().createWithFlags(flags)
        self.world.runs(self)

    def create(self) -> None:
        """libvirt asks our hook first."""
        try:
            guest_start.check_start(NAME)
        except CnvmError as error:
            raise FakeError(errors.OPERATION_FAILED, str(error)) from error
        self.createWithFlags(0)

    def resume(self) -> None:
        super().resume()
        self.world.runs(self, self.memory)

    def abortJob(self) -> None:
        """A move that is cancelled lets the guest go on here."""
        self._did("abort")
        self.job = 0
        if self.number == PAUSED:
            self.number = RUNNING
            self.world.runs(self, self.memory)

    def undefineFlags(self, flags: int) -> None:
        super().undefineFlags(flags)
        if self.world.guest.uefi and flags & fake_domains.CONSTANTS["VIR_DOMAIN_UNDEFINE_NVRAM"]:
            with self.world.aside(), contextlib.suppress(FileNotFoundError):
                os.unlink(self.world.variables)


class Connection(FakeConnection):
    """To the libvirt of one host. What it is told to do are effects of that host."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.calls: list[str] = Calls(world.effects)

    def defineXML(self, text: str) -> FakeDomain:
        if NAME not in self.domains:
            self.calls.append(f"define {NAME}")
            self.domains[NAME] = Domain(self, text)
            return self.domains[NAME]
        return super().defineXML(text)


class Host:
    """One of the two: its directory, its libvirt, and how far it comes before it stops (``effects``)."""

    def __init__(self, world: World, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.connection = Connection(world)
        self.effects = Effects(NEVER)
        self.boots = 0
        # The inodes of what was written and not synced.
        self.unsynced: set[int] = set()

    @property
    def stopped(self) -> bool:
        return self.effects.killed

    @property
    def domain(self) -> t.Optional[Domain]:
        return t.cast("t.Optional[Domain]", self.connection.domains.get(NAME))

    @property
    def runs(self) -> bool:
        return self.domain is not None and self.domain.live is not None and self.domain.number == RUNNING

    def path(self, path: str) -> Path:
        """Where on this host lies what all hosts have at ``path``."""
        return self.root / os.path.relpath(path, _HERE)

    def record(self, path: str) -> dict[str, t.Any]:
        """What is written there; empty where nothing is."""
        return files.read_json(str(self.path(path))) or {}

    @property
    def owns(self) -> bool:
        return bool(self.record(paths.owner_file(NAME)).get("owner") == self.name)

    @property
    def journal(self) -> dict[str, t.Any]:
        return self.record(paths.journal_file(NAME))

    def content(self, path: str) -> str:
        return self.path(path).read_text().rstrip("\0 ")


class _Here(Effects):
    """Those of the host at which something is being done now."""

    def __init__(self, world: World) -> None:
        super().__init__(NEVER)
        self._world = world

    def one(self, what: str) -> None:
        if not self._world.is_aside:
            self._world.here.effects.one(what)

    def wrote(self, fd: int) -> None:
        if not self._world.is_aside:
            self._world.here.unsynced.add(os.fstat(fd).st_ino)


class _Stream(io.BytesIO):
    """What came with a request, all of it."""

    def finish(self) -> None:
        """As that of ``wire.ChunkReader``."""


class Link:
    """In the place of ``peers.Channel``: the real conversation is asked at the other host, and its answer comes back as
    on the wire. One of all messages may be ``World.cut``. Where the other host stops nobody answers any more."""

    is_late = False

    def __init__(self, world: World, there: Host) -> None:
        self._world, self._there = world, there
        self.peer = there.name
        self._is_lost = False
        with world.at(there):
            self._conversation = serve.Conversation(world.system, io.BytesIO(), io.BytesIO())

    def close(self) -> None:
        """The other side sees that nobody is there any more. One that was killed has let its lock go."""
        if self._is_lost:
            return
        self._is_lost = True
        with self._world.at(self._there):
            if self._there.stopped:
                self._conversation._held.close()
            else:
                self._conversation.close()

    def _lose(self) -> PeerError:
        self.close()
        return PeerError(f"The connection to {self.peer} was lost.", peer=self.peer)

    def call(
        self,
        op: str,
        *,
        timeout_s: float,
        stream: t.Optional[t.Callable[[t.BinaryIO], t.Any]] = None,
        mib_s: int = 0,
        progress: t.Optional[t.Callable[[int], None]] = None,
        **args: t.Any,
    ) -> dict[str, t.Any]:
        if self._is_lost or self._there.stopped:
            raise self._lose()
        data: t.Optional[_Stream] = None
        if stream is not None:
            sent = io.BytesIO()
            stream(sent)
            data = _Stream(sent.getvalue())
        lost = self._world.next_message(op)
        if lost == "before":
            raise self._lose()
        asked = json.loads(json.dumps(args))
        with self._world.at(self._there):
            try:
                answer = wire.line({"result": self._conversation._do(op, asked, t.cast("t.Any", data))})
            except Killed:
                raise self._lose() from None
            except Exception as error:  # noqa: BLE001 - as in the conversation
                answer = wire.error_line(error)
        if lost:
            raise self._lose()
        return wire.result_of(wire.parse(answer), self.peer)


class _Job:
    """In the place of the thread in which libvirt's client waits: libvirt ends its job, and the guest goes on."""

    def __init__(self) -> None:
        self._waits = True

    def is_alive(self) -> bool:
        return self._waits

    def join(self, timeout: float = 0.0) -> None:
        self._waits = False


class World:
    """Both hosts, and all that there is to see of them from outside.

    ``newest``: what the guest has written last, wherever; that is on its disk when it runs. ``wrong``: what must never
    be, since the real code may take an error for one of its own, and go on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_aside = False
        self.effects = _Here(self)
        self.system = System(run=self._run)

    # --- how it begins ---

    def begin(self, guest: Guest) -> None:
        """All anew: the guest is on the first host, and nothing has happened to anybody."""
        self.guest = guest
        self.wrong: list[str] = []
        self.newest = self.before = "version 1"
        self.versions = 1
        self.messages = 0
        self.cut: tuple[int, str] = (-1, "")
        self.last_message = ""
        self.moves = 0
        with self.aside():
            self._lay_out()

    def _lay_out(self) -> None:
        os.chdir(self.directory)
        for one in self.directory.iterdir():
            shutil.rmtree(one)
        (self.directory / "shared").mkdir()
        self.first, self.second = (Host(self, name, self.directory / name) for name in ("host1", "host2"))
        for host in (self.second, self.first):
            for name in ("workloads", "state", "run/locks", "log", "nvram", "pool"):
                (host.root / name).mkdir(parents=True)
            (host.root / "shared").symlink_to(self.directory / "shared")
            self._go(host)
            files.write_json(paths.HOST_FILE, {"host_id": host.name, "name": host.name})
            other = self.other(host).name
            overlay = {"self": {"name": host.name}, "peers": [{"name": other, "tunnel": other}]}
            files.write_json(paths.OVERLAY_FILE, overlay)
        self._describe()

    def _describe(self) -> None:
        """The guest, at its first host."""
        place = self.guest.place
        self.disk = f"{paths.guest_disks_dir(NAME)}/vda.raw" if place == "own" else f"{_HERE}/{place}/web.raw"
        self.variables = paths.guest_nvram(NAME)[0]
        self.xml = (
            f"<domain type='qemu'><name>{NAME}</name><uuid>{UUID}</uuid><memory unit='MiB'>9</memory>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>"
            f"{f'<nvram>{self.variables}</nvram>' if self.guest.uefi else ''}</os><devices>"
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{self.disk}'/>"
            "<target dev='vda' bus='virtio'/></disk></devices></domain>"
        )
        guest_disks.make_home(NAME)
        Path(self.disk).write_text(self.newest.ljust(16))
        Path(paths.guest_seed(NAME)).write_text("seed")
        if self.guest.uefi:
            Path(self.variables).write_text(_VARIABLES)
        disk = {"name": "vda", "made": True, "pool": "", "path": "" if place == "own" else self.disk, "format": "raw"}
        definition = {"kind": "guest", "name": NAME, "uuid": UUID, "disks": [disk], "networks": [], "address": ""}
        files.write_json(paths.definition_file(NAME), definition)
        files.write_json(paths.owner_file(NAME), records.owner_record(NAME, UUID, "host1", "host1", 1, "guest"))
        domain = t.cast("Domain", self.first.connection.defineXML(self.xml))
        domain.automatic = self.guest.runs
        if self.guest.runs:
            domain.live, domain.number, domain.memory = xml.parse(self.xml), RUNNING, self.newest

    # --- where it happens ---

    def other(self, host: Host) -> Host:
        return self.second if host is self.first else self.first

    @contextlib.contextmanager
    def aside(self) -> t.Iterator[None]:
        """What is done now is no effect of our code: QEMU does it, or the test."""
        before, self.is_aside = self.is_aside, True
        try:
            yield
        finally:
            self.is_aside = before

    @contextlib.contextmanager
    def at(self, host: Host) -> t.Iterator[None]:
        """What is done now is done at this host."""
        before = self.here
        self._go(host)
        try:
            yield
        finally:
            self._go(before)

    def _go(self, host: Host) -> None:
        self.here = host
        os.chdir(host.root)

    # --- stand-ins ---

    @contextlib.contextmanager
    def connect(self, uri: str = "") -> t.Iterator[Connection]:
        with libvirt.doing("do what it was asked to"):
            yield self.here.connection

    @contextlib.contextmanager
    def connected(self, host: System, name: str) -> t.Iterator[Link]:
        there = self.first if name == self.first.name else self.second
        if there.stopped:
            raise PeerError(f"{name} cannot be reached.", peer=name)
        link = Link(self, there)
        try:
            yield link
        finally:
            link.close()

    def next_message(self, op: str) -> str:
        """Another message is about to go out: when it is lost (``before`` it was done, or ``after``), or ''."""
        self.messages += 1
        number, how = self.cut
        if self.messages != number + 1:
            return ""
        self.last_message = op
        return how

    def _run(self, argv: t.Sequence[str], *, check: bool = True, **more: t.Any) -> CommandResult:
        self.effects.one(argv[0])
        if argv[0] == "systemd-run" and "move" in argv:
            mover.move(argv[argv.index("move") + 1 :], self.system)
        with self.aside():
            return fake_domains.run(argv) if argv[0] == "qemu-img" else CommandResult(tuple(argv), 0)

    def synced(self, fd: int) -> None:
        """In the place of fsync."""
        self.here.unsynced.discard(os.fstat(fd).st_ino)

    def replaced(self, source: str, target: str) -> None:
        """In the place of os.replace: some file systems wait for the disk where a file takes the place of another."""
        with contextlib.suppress(FileNotFoundError):
            _UNLINK(target)
        _RENAME(source, target)

    def opened(self, path: t.Any, *args: t.Any, **more: t.Any) -> t.Any:
        """In the place of open: which boot it is of a host its kernel tells."""
        if path == _BOOT_ID:
            return io.StringIO(f"{self.here.name}-{self.here.boots}\n")
        return _OPEN(path, *args, **more)

    def survey(
        self,
        host: System,
        channel: t.Any,
        definition: dict[str, t.Any],
        owner: dict[str, t.Any],
        request: dict[str, t.Any],
    ) -> kinds.Survey:
        """A plan that has nothing to say but what the target does."""
        identity = preflight.ask(channel, "guest")["identity"]
        domain, shared = t.cast("Domain", self.here.domain), self.guest.place == "shared"
        live = domain.live is not None
        disk = {
            "name": "vda", "path": self.disk, "format": "raw", "below": "", "template": "", "template_bytes": 0,
            "virtual": 16, "bytes": 16, "shared": shared, "inode": os.stat(self.disk).st_ino, "pool": "",
        }  # fmt: skip
        brought = [paths.guest_seed(NAME), *([self.variables] if self.guest.uefi and not live else [])]
        needs = {
            "live": live, "uuid": UUID, "post_copy": False, "disks": [disk], "fixed": [], "files": {},
            "brought": brought, "log": "", "firmware": {"/firmware": 1} if self.guest.uefi else {}, "uefi": False,
            "next_start": {}, "definition": "" if live else domain.XMLDesc(2), "mark": "", "address": "", "macs": [],
        }  # fmt: skip
        seen = channel.call("check", timeout_s=90, definition=definition, owner=owner, needs=needs)
        made = plan.Plan(migration.LIVE if live else migration.OFFLINE, (), tuple(seen["problems"]), (), 0)
        return kinds.Survey(made, live, identity, needs, {"templates": []})

    def look(
        self,
        host: System,
        definition: t.Mapping[str, t.Any],
        needs: t.Mapping[str, t.Any],
        goes: t.Collection[str] = (),
    ) -> dict[str, t.Any]:
        """Of what a target looks at: whose files and names are in the way."""
        seen = guest_preflight._look_at_files(definition, needs, goes)
        taken = self.here.domain is not None
        in_the_way = guest_preflight._in_the_way(NAME, needs, goes) if goes or not taken else []
        return {**seen, "files": [*seen["files"], *in_the_way], "name_taken": taken, "post_copy": ""}

    def copy_live(self, leaving: guest_source.Leaving) -> None:
        """What libvirt does: the target receives what the guest has, which then stands still, and is whole there."""
        source, target = self.here, self.other(self.here)
        domain = t.cast("Domain", source.domain)
        leaving.move.phase("memory")
        self.effects.one("the memory")
        domain.job = 1
        leaving._thread = t.cast("t.Any", _Job())
        if target.stopped or target.journal.get("state") != records.TARGET_RECEIVING:
            raise PeerError(f"The connection to libvirt on {target.name} was lost.", peer=target.name)
        with self.at(target), self.aside():
            copy = Domain(target.connection, self.xml)
            copy.stored, copy.live, copy.number = None, xml.parse(self.xml), PAUSED
            target.connection.domains[NAME] = copy
            if self.guest.uefi:
                Path(self.variables).write_text(_VARIABLES)
                target.unsynced.add(os.stat(self.variables).st_ino)
        domain.number = PAUSED
        leaving._freeze()
        self.effects.one("the rest of the memory")
        with self.at(target), self.aside():
            # libvirt keeps its definition from now on.
            copy.stored, copy.memory = xml.parse(self.xml), domain.memory
            if self.guest.place != "shared":
                self._write_disk()

    # --- what the guest does ---

    def runs(self, domain: Domain, memory: str = "") -> None:
        """It does from now on, with what is on its disk, and writes to that; with ``memory``, if it goes on."""
        with self.aside():
            if self.other(self.here).runs:
                self.wrong.append("two run")
            if not os.path.exists(self.disk):
                self.wrong.append(f"it runs at {self.here.name} without a disk")
                return
            found = self.here.content(self.disk)
            if memory not in ("", found):
                self.wrong.append(f"it goes on at {self.here.name} from {memory!r}, and its disk has {found!r}")
            if found != self.newest:
                self.wrong.append(f"it runs at {self.here.name} with {found!r}, and has written {self.newest!r}")
            if self.guest.uefi and not (os.path.exists(self.variables) and self._has_variables(self.here)):
                self.wrong.append(f"it runs at {self.here.name} without the variables of its firmware")
            self.versions += 1
            self.before, self.newest = self.newest, f"version {self.versions}"
            self._write_disk()
            domain.memory = self.newest

    def _write_disk(self) -> None:
        with open(self.disk, "r+", encoding="ascii") as file:
            file.write(self.newest.ljust(16))

    def _has_variables(self, host: Host) -> bool:
        return host.content(self.variables) == _VARIABLES

    # --- what is done to it ---

    def move(self) -> dict[str, t.Any]:
        """Move it from the first host to the second. What is returned is what the mover says, if it can."""
        self.moves += 1
        request = {
            "kind": "guest", "name": NAME, "target": self.second.name, "max_downtime_ms": 300, "bandwidth_mib_s": 0,
            "connections": 1, "auto_converge": True, "allow_post_copy": False, "timeout_s": 3600,
        }  # fmt: skip
        move = mover.Move(self.system, request, f"move{self.moves}", lambda status: None)
        with self.at(self.first):
            try:
                return move.run()
            except Killed:
                # The kernel lets go of what it held; libvirt sees that its client is gone.
                if "steps" in vars(move):
                    t.cast("guest_source.Leaving", move.steps)._locks.close()
                if self.first.domain is not None:
                    self.first.domain.job = 0
                return {"outcome": "killed"}
            except CnvmError as error:
                return {"outcome": "refused", "error": str(error)}

    def start_again(self) -> str:
        """As ``move``, and as a user does it again: what is left of the move before is ended first. The outcome."""
        said, request = io.BytesIO(), json.dumps({"guest": NAME, "target": self.second.name})
        with self.at(self.first):
            try:
                mover.move(["start", request], self.system._replace(stdout=said))
            except CnvmError as error:
                return f"refused: {error}"
            started = json.loads(said.getvalue())
            if started.get("already"):
                return "already"
            status = files.read_json(f"{paths.move_log_dir(started['move_id'])}/status.json") or {}
            return str(status["result"]["outcome"])

    def recover(self, host: Host, fenced: str = "") -> str:
        """At one host: the outcome."""
        with self.at(host):
            try:
                return str(recover.recover_one(self.system, NAME, fenced)["outcome"])
            except Killed:
                return "killed"
            except CnvmError as error:
                return f"waiting: {error}"

    def settle(self) -> None:
        """Recover at both until nothing is to do."""
        said: list[str] = []
        for _round in range(_ROUNDS):
            said = [self.recover(host) for host in (self.first, self.second)]
            if said == ["none", "none"]:
                return
        self.wrong.append(f"recovery comes to no end: {', '.join(said)}")

    # --- what happens to it ---

    def killed_comes_back(self, host: Host) -> None:
        """What was killed there was our code alone."""
        host.effects = Effects(NEVER)

    def power_cut(self, host: Host) -> None:
        """Nothing runs there any more; what was not on its disk is gone, and nobody answers."""
        host.effects = Effects(-1)
        with contextlib.suppress(Killed):
            host.effects.one("the power is cut")
        host.boots += 1
        self._forget_what_nobody_noted(host)
        for domain in list(host.connection.domains.values()):
            domain.live, domain.number, domain.reason, domain.job = None, SHUTOFF, 0, 0
            if domain.stored is None:
                del host.connection.domains[NAME]
        with self.aside():
            shutil.rmtree(host.root / "run")
            for name in _files(host):
                if os.stat(host.root / name).st_ino in host.unsynced:
                    os.truncate(host.root / name, 0)
        host.unsynced.clear()

    def _forget_what_nobody_noted(self, host: Host) -> None:
        """By design: a copy that came alive an instant before its host could note that is not believed to have run.
        Then what it has done goes with it. (On a shared disk it has not: nobody goes on there with older memory.)"""
        noted = host.journal.get("state") != records.TARGET_PREPARED
        if host.runs and not noted and self.guest.place != "shared":
            self.newest = self.before

    def loses(self, dead: Host) -> None:
        """What it did there alone nobody will ever see, by the user's word."""
        self.newest = self.other(dead).content(self.disk)

    def boots(self, host: Host) -> None:
        """It is there again, and what starts with it starts."""
        host.effects = Effects(NEVER)
        with self.at(host), contextlib.suppress(FakeError):
            if host.domain is not None and host.domain.automatic:
                host.domain.create()

    # --- what must be ---

    def check(self, where: Host) -> None:
        """It is at one host, as it was, and nothing else is left anywhere."""
        other, domain = self.other(where), where.domain
        with self.aside():
            found = {
                "wrong": self.wrong,
                "owners": [host.name for host in (self.first, self.second) if host.owns],
                "known to libvirt": [host.name for host in (self.first, self.second) if host.domain],
                "defined": domain is not None and domain.stored is not None,
                "runs": domain is not None and domain.live is not None,
                "stands still": domain is not None and domain.number == PAUSED,
                "starts with its host": domain is not None and domain.automatic,
                "files": _left(where),
                "files elsewhere": [name for name in _left(other) if name != "workloads/web/owner.json"],
                "shared files": sorted(path.name for path in (self.directory / "shared").iterdir()),
            }
            wanted = {
                "wrong": [],
                "owners": [where.name],
                "known to libvirt": [where.name],
                "defined": True,
                "runs": self.guest.runs,
                "stands still": False,
                "starts with its host": self.guest.runs,
                "files": sorted(self._belongs(where)),
                "files elsewhere": [],
                "shared files": ["web.raw"] if self.guest.place == "shared" else [],
            }
            differing = [f"{key}: {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
            if not differing and where.content(self.disk) != self.newest:
                differing.append(f"its disk has {where.content(self.disk)}, not {self.newest}")
            if not differing and where.path(self.disk).stat().st_nlink != 1:
                differing.append("its disk has a second name")
            if not differing and self.guest.uefi and not self._has_variables(where):
                differing.append("its variables are lost")
        if differing:
            raise AssertionError("; ".join(differing))

    def _belongs(self, host: Host) -> t.Iterator[str]:
        """What a host has of the guest that is there."""
        names = [*(f"workloads/web/{name}" for name in ("owner.json", "definition.json", "seed.iso"))]
        if self.guest.place != "shared":
            names.append(str(host.path(self.disk).relative_to(host.root)))
        return iter([*names, "nvram/web_VARS.fd"] if self.guest.uefi else names)


def _files(host: Host) -> list[str]:
    """All files of a host."""
    found = [f"{directory}/{name}" for directory, _below, names in os.walk(host.root) for name in names]
    return sorted(os.path.relpath(path, host.root) for path in found)


def _left(host: Host) -> list[str]:
    """The same, but for logs, locks, and what a host is. (Nobody reads what a journal was being written to that never
    came to be, and the next one takes its place.)"""
    left_out = ("log/", "run/locks/", "run/arriving.lock", "etc/", "workloads/web/move.json.new")
    return [name for name in _files(host) if not name.startswith(left_out)]


_OPEN, _UNLINK, _RENAME = builtins.open, os.unlink, os.rename
_PLACES = {
    "WORKLOADS": "workloads", "RUN": "run", "LOGS": "log", "NVRAM": "nvram", "HOST_FILE": "etc/host.json",
    "OVERLAY_FILE": "etc/overlay.json", "TEMPLATES": "templates", "KEPT_DISKS": "kept", "DISK_RECORDS": "disks",
    "QEMU_LOGS": "log/qemu", "IMAGES": "images", "STATE": "state", "HELPER_LIBRARY": "library",
}  # fmt: skip


@contextlib.contextmanager
def two_hosts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[World]:
    """The world, for as long as the block lasts. Time passes only for who sleeps."""
    world, clock, library = World(directory), Clock(), fake_domains.library()
    vars(library).update(_REASONS)
    changed: list[tuple[t.Any, str, t.Any]] = [
        (builtins, "open", world.opened),
        (os, "fsync", world.synced),
        (os, "replace", world.replaced),
        (os, "chown", lambda *args, **more: None),
        (os, "fchown", lambda *args: None),
        (libvirt, "library", lambda: library),
        (libvirt, "_code_names", dict),
        (libvirt, "connect", world.connect),
        (peers, "connected", world.connected),
        (recover, "resolve_in_background", lambda host, name: None),
        (serve, "_pumped", lambda stream, work: work(stream)),
        (freezer, "hurry", lambda on=True: None),
        (guest_definition, "check_normal", lambda definition: None),
        (guest_source, "survey", world.survey),
        (guest_preflight, "look", world.look),
        (guest_preflight, "on_shared_storage", lambda path: world.guest.place == "shared"),
        (migration, "problems", _problems),
        (admission, "strangers", lambda name, root, needs: []),
        *((module, "time", clock) for module in (mover, guest_source, guest_target, recover, serve)),
        *((paths, name, f"{_HERE}/{place}") for name, place in _PLACES.items()),
    ]

    def hold_live(leaving: guest_source.Leaving) -> None:
        world.copy_live(leaving)

    changed.append((guest_source.Leaving, "_hold_live", hold_live))
    with monkeypatch.context() as patch:
        for owner, name, value in changed:
            patch.setattr(owner, name, value)
        patch.chdir(directory)
        with counted(world.effects, patch):
            yield world


def _problems(name: str, me: str, needs: t.Mapping[str, t.Any], seen: t.Mapping[str, t.Any]) -> list[str]:
    return [*seen["files"], *seen["disks"], *(["the name is taken"] if seen["name_taken"] else [])]
