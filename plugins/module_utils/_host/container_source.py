# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The steps of a teleport on the host that gives the container away (see ``kinds``). ``recover`` uses them too.

The source is paused, never killed, until the target's copy has proven itself: ``thaw`` brings it back at any time
before the commit, and after it once the target has given the container back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import socket
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError
from .._criu import commands as criu_commands
from .._migrate import plan, records
from .._oci.members import difference
from . import (
    archive,
    container_parts,
    container_preflight,
    container_processes,
    container_units,
    criu,
    files,
    freezer,
    images,
    kinds,
    movedir,
    netns,
    ownership,
    peers,
)
from .system import Host

if t.TYPE_CHECKING:
    from .mover import Move

_LAYER_ROUNDS = 3
_SETTLED_BYTES = 1 << 20
# The target asks for one page after the other; one of the two sides hangs when none comes for so long.
_STALLED_S = 120
_ARRIVED = re.compile(r"\bbytes_acked:(\d+)")

is_enabled = container_units.is_enabled
survey = container_preflight.survey


def answers() -> bool:
    """There is no daemon; each program that is waited for has its own limit."""
    return True


def freeze(host: Host, definition: t.Mapping[str, t.Any], timeout_s: float) -> None:
    """Unplug the network, then stop the processes. In this order: the kernel of a frozen container would go on
    acknowledging data that nobody reads. A limit of its computing would make CRIU slow, which works in its processes.
    """
    spec = container_parts.endpoint(definition)
    if spec is not None:
        netns.detach(host, spec)
    freezer.freeze(paths.payload_cgroup(definition["name"]), timeout_s)
    container_parts.apply_limits({**definition, "cpus": None})


def hold(name: str, timeout_s: float) -> None:
    """Freeze above the container's own cgroup: CRIU thaws that one while it works, and when it is killed."""
    freezer.freeze(paths.hold_cgroup(name), timeout_s)


def thaw(host: Host, definition: t.Mapping[str, t.Any], move_id: str) -> None:
    """Let the container go on as if nothing had been: CRIU and its traces away, network in, thawed."""
    name = definition["name"]
    criu.kill_for(move_id)
    criu.unlock_network(host, name)
    spec = container_parts.endpoint(definition)
    if spec is not None and os.path.exists(paths.netns_path(name)):
        netns.attach(host, spec)
    criu.leave_repair(paths.payload_cgroup(name))
    container_parts.apply_limits(definition)
    freezer.thaw(paths.payload_cgroup(name))
    freezer.thaw(paths.hold_cgroup(name))


def pre_dump(
    host: Host, definition: t.Mapping[str, t.Any], move_id: str, part: str, flags: t.Sequence[str], parent: str,
    timeout_s: float,
) -> int:  # fmt: skip
    """Copy memory while the container runs (pre-copy); how many pages that were."""
    directory, work = f"{paths.move_dir(move_id)}/{part}", f"{paths.move_dir(move_id)}/work"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    argv = criu_commands.pre_dump(
        container_parts.runtime_command(definition), definition["name"], directory, work, flags=flags, parent=parent
    )
    container_parts.write_criu_config(definition["name"], container_processes.criu_lines(definition))
    result = host.run(container_parts.with_criu_config(definition["name"], argv), check=False, timeout_s=timeout_s)
    if result.rc:
        said = criu.failure(f"{work}/dump.log")
        reason = said["error"] or f"the runtime ended with code {result.rc}"
        raise HostError(
            f"Memory of {definition['name']} cannot be copied: {reason}.",
            hint=said["advice"],
            criu_error=said["error"],
            log=said["log"],
        )
    return criu.statistics(work).get("pages_written", 0)


class Dump:
    """A running ``runc checkpoint``. Post-copy: it serves pages until the last one is fetched, then ends."""

    def __init__(self, host: Host, definition: t.Mapping[str, t.Any], move_id: str, flags: t.Sequence[str],
                 page_server: str = "", parent: str = "") -> None:  # fmt: skip
        self.name = definition["name"]
        self.work = f"{paths.move_dir(move_id)}/work"
        self._host, self._server = host, page_server
        self._ready, ready = (-1, -1) if not page_server else os.pipe()
        argv = criu_commands.dump(
            container_parts.runtime_command(definition), self.name, f"{paths.move_dir(move_id)}/images", self.work,
            flags=flags, parent=parent, page_server=page_server, lazy=bool(page_server), status_fd=ready,
        )  # fmt: skip
        self._process = host.popen(
            container_parts.with_criu_config(self.name, argv),
            stdin=-3,
            stdout=-1,
            stderr=-2,
            start_new_session=True,
            pass_fds=(ready,) if page_server else (),
        )
        if page_server:
            os.close(ready)

    def _failed(self, what: str) -> HostError:
        said = criu.failure(f"{self.work}/dump.log")
        runtime = ""
        if self._process.poll() is not None:
            runtime = (self._process.stdout.read() or b"").decode("utf-8", "replace").strip()
        reason = said["error"] or (runtime.splitlines()[-1] if runtime else what)
        return HostError(
            f"{self.name} cannot be dumped: {reason}.",
            hint=said["advice"],
            criu_error=said["error"],
            log=said["log"],
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Until the pages are being served (post-copy)."""
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        byte = os.read(self._ready, 1) if poll.poll(timeout_s * 1000) else b""
        os.close(self._ready)
        if byte != b"\0":
            if not byte and self._process.poll() is None:
                with contextlib.suppress(Exception):
                    self._process.wait(timeout=2)
            raise self._failed(f"no page server within {timeout_s:g} s")

    def wait(self, timeout_s: float) -> None:
        """Until it has ended well."""
        try:
            code = self._process.wait(timeout=timeout_s)
        except Exception as error:  # subprocess.TimeoutExpired, which this room may not import
            raise self._failed(f"no end within {timeout_s:g} s") from error
        if code:
            raise self._failed(f"the runtime ended with code {code}")

    def running(self) -> bool:
        """Whether it still serves pages."""
        return self._process.poll() is None

    def served(self) -> t.Optional[int]:
        """How many bytes have come to the target from the page server (ss(8)); None where that is not known."""
        seen = self._host.run(["ss", "-Htin", "src", self._server], check=False, timeout_s=5)
        found = _ARRIVED.findall(seen.stdout)
        return sum(map(int, found)) if found else None


# --------------------------------------------------------------------------------------------------------------------
# One move
# --------------------------------------------------------------------------------------------------------------------
class Leaving(kinds.Leaving):
    """One move of a container."""

    def __init__(self, move: Move, survey: kinds.Survey) -> None:
        super().__init__(move, survey)
        self.work: plan.Workload = survey.learnt["work"]
        self.rate = float(survey.learnt["rate"])
        self._layer = paths.upper_dir(move.name)
        self._stamps: dict[str, tuple[int, ...]] = {}
        self.live = move.mode != plan.COLD
        if not self.live:
            self.activate_limit_s = 60.0

    def bring(self) -> None:
        """The image where it is missing, and the writable layer."""
        if not self.survey.learnt["image"]:
            self.move.phase("image")
            self._send_image()
        self.move.phase("layer")
        self._sync_layer_while_running()

    def hold(self) -> None:
        """Freeze, dump and restore; or stop, and send the rest of the writable layer."""
        if self.live:
            self._hold_live()
        else:
            self._hold_cold()

    def _hold_live(self) -> None:
        move = self.move
        runtime = self.definition.get("runtime", "runc")
        version = plan.version(self.host.run([runtime, "--version"]).stdout.split("version", 1)[-1].strip())
        self.flags = criu_commands.runtime_flags(runtime, version)
        movedir.make(self.host, move.move_id, int(self.survey.needs["expected"]))
        move.phase("prepare")
        move.channel.call("prepare", timeout_s=move.left(60))
        self.host.run(["criu", "check"], check=False, timeout_s=20)
        parent = self._pre_copy_or_fall_back() if move.mode == plan.PRE_COPY else ""
        self._settle_layer()
        # Before the freeze: it may look through all files.
        container_parts.write_criu_config(self.name, container_processes.criu_lines(self.definition))
        lazy = move.mode == plan.POST_COPY
        if not freezer.populated(paths.payload_cgroup(self.name)):
            raise HostError(f"{self.name} has ended by itself meanwhile.", hint="Start it first, or move it as it is.")
        move.freeze("freeze")
        freezer.hurry()
        freeze(self.host, self.definition, 10.0)
        move.phase("dump")
        address = peers.overlay()["self"]["tunnel"] if lazy else ""
        server = (address, _free_port(address)) if lazy else None
        self.dump = Dump(
            self.host, self.definition, move.move_id, self.flags["dump"],
            page_server=f"{server[0]}:{server[1]}" if server else "", parent=parent,
        )  # fmt: skip
        if lazy:
            self.dump.wait_ready(move.frozen_left())
        else:
            self.dump.wait(move.frozen_left())
        hold(self.name, 10.0)
        move.phase("layer_rest")
        self._sync_layer()
        move.phase("restore")
        directory = f"{paths.move_dir(move.move_id)}/images"
        move.channel.call(
            "restore", timeout_s=move.frozen_left() + 10, flags=self.flags["restore"], page_server=server,
            part="images", limit_s=move.frozen_left(),
            stream=lambda out: archive.pack(directory, out, progress=move.progress("checkpoint")),
        )  # fmt: skip

    def _hold_cold(self) -> None:
        move = self.move
        if self.survey.running:
            self._settle_layer()
        # It may have ended by itself since it was looked at: then it is not started again.
        anew = self.survey.running and container_units.is_wanted(self.host, move.journal)
        move.journal.update(running=anew, anew=anew)
        move.freeze("stop")
        if anew:
            self.host.run(["systemctl", "stop", paths.unit_name(self.name)], timeout_s=move.left())
        move.phase("layer_rest")
        self._sync_layer()
        # From here on the target asks before it gives up what it has.
        move.channel.call("arrived", timeout_s=move.left(60), running=anew)

    def check_still(self) -> None:
        """Its frozen processes must be there. Those that died in the meantime may be about to be started anew."""
        cgroup = paths.hold_cgroup(self.name)
        there = freezer.populated(cgroup)
        if there != self.live or (there and not freezer.is_frozen(cgroup)):
            raise HostError(f"{self.name} does not stand still at the moment of the handover.", hint="It is kept here.")

    def drain(self) -> None:
        """Until the target has all pages. A lost link or host in this time costs what was done since the freeze, and so
        would giving up: it may take as long as pages come."""
        move = self.move
        arrived, since = 0, time.monotonic()
        while True:
            # Asked before: it may come to its end between the two.
            serves = self.dump.running()
            limit = 0.5 if serves else 20
            answer = move.channel.call("drained", timeout_s=limit + 20, limit_s=limit)
            served = self.dump.served()
            if served is None or served > arrived:
                arrived, since = served or arrived, time.monotonic()
            move.time.bytes["pages"] = arrived
            move.tell()
            if answer["ended"]:
                break
            if not serves:
                raise HostError("The source's page server ended before the target had all pages.")
            if time.monotonic() - since > _STALLED_S:
                raise HostError(
                    f"No page has come to the target for {_STALLED_S} s.", hint="See lazy-pages.log on the target."
                )
        if not answer["drained"]:
            raise HostError("The target could not fetch all pages.", hint="See lazy-pages.log on the target.")
        with contextlib.suppress(HostError):
            # The copy here is to be killed; whether its CRIU ended in good order no longer matters.
            self.dump.wait(5)
        pages = criu.lazy_pages(f"{paths.move_dir(move.move_id)}/images")
        move.time.bytes["pages"] = pages * os.sysconf("SC_PAGE_SIZE")

    def statistics(self) -> dict[str, t.Any]:
        """CRIU's numbers of the dump."""
        return {"criu": criu.statistics(f"{paths.move_dir(self.move.move_id)}/work")}

    def said(self, error: CnvmError) -> dict[str, t.Any]:
        """The first real error of CRIU's log."""
        return {"criu_error": error.details.get("criu_error", "")}

    # --- memory, while it runs ---

    def _pre_copy_or_fall_back(self) -> str:
        """``_pre_copy``, or '' and stop-and-copy when that fails, was not asked for by name and is quick enough."""
        move = self.move
        try:
            return self._pre_copy()
        except HostError as error:
            expected = plan.expected_frozen_ms(plan.STOP_COPY, self.work, self.rate)
            limit = move.request["max_downtime_ms"]
            if move.request["mode"] != "auto" or (limit and expected > limit):
                raise
            move.mode = move.result["mode"] = plan.STOP_COPY
            move.result["plan"]["reasons"].append(f"pre-copy failed before anything was frozen: {error.message}")
            move.result["plan"].update(mode=plan.STOP_COPY, expected_frozen_ms=expected)
            return ""

    def _pre_copy(self) -> str:
        """Copy memory while the container runs, in rounds; the name of the last one."""
        move, parent = self.move, ""
        for number in range(1, container_preflight.PRE_COPY_ROUNDS + 1):
            move.phase(f"pre_copy_{number}")
            part = f"pre{number}"
            pages = pre_dump(self.host, self.definition, move.move_id, part, self.flags["dump"], parent, move.left())
            directory = f"{paths.move_dir(move.move_id)}/{part}"
            move.channel.call(
                "images", timeout_s=move.left(), part=part,
                stream=functools.partial(archive.pack, directory, progress=move.progress("pre_copy")),
            )  # fmt: skip
            parent = f"../{part}"
            # Another round pays while it leaves clearly less than this one did.
            if pages * 4096 < 4 << 20:
                break
        return parent

    # --- files ---

    def _send_image(self) -> None:
        digest = self.definition["image"]
        description = images.record(digest)
        self.move.channel.call(
            "image", timeout_s=self.move.left(), description=description,
            name=self.definition.get("image_name") or "",
            stream=lambda out: archive.pack(paths.image_dir(digest), out, progress=self.move.progress("image")),
        )  # fmt: skip

    def _sync_layer_while_running(self) -> list[str]:
        """Send what has changed in the writable layer, round by round; what has changed after the last one.

        Another round pays while it leaves clearly less than it has sent.
        """
        for _round in range(_LAYER_ROUNDS):
            before = self.move.time.bytes.get("layer", 0)
            self._sync_layer(running=True)
            sent = self.move.time.bytes.get("layer", 0) - before
            changed, _removed = difference(self._stamps, archive.snapshot(self._layer, now_ns=time.time_ns()))
            left = archive.content_bytes(self._layer, changed)
            if left < _SETTLED_BYTES or left > sent // 2:
                break
        return changed

    def _settle_layer(self) -> None:
        """The last rounds before it comes to stand still; HostError where it would be too long for what still changes.

        A file is sent whole, however little of it has changed.
        """
        changed = self._sync_layer_while_running()
        size, plan_made = archive.content_bytes(self._layer, changed), self.move.result["plan"]
        expected = plan_made["expected_frozen_ms"] = plan_made["expected_frozen_ms"] + round(size / self.rate * 1000)
        limit = self.move.request["max_downtime_ms"]
        if limit and expected > limit:
            largest = max(changed, key=lambda path: archive.content_bytes(self._layer, [path]), default="")
            raise HostError(
                f"{self.name} would stand still for about {expected} ms, as {size >> 20} MiB of its files change all"
                f" the time (the largest is /{largest}); max_downtime_ms is {limit}.",
                hint="Raise max_downtime_ms, or move it when less is written. A file that has changed is sent whole.",
            )

    def _sync_layer(self, *, running: bool = False) -> None:
        """Send what has changed in the writable layer since the last time."""
        now_ns = time.time_ns()
        if running:
            self.host.run(["sync", "-f", self._layer])
        stamps = archive.snapshot(self._layer, now_ns=now_ns)
        first = not self._stamps
        changed, removed = difference(self._stamps, stamps)
        self._stamps = stamps
        if first or changed or removed:
            self.move.channel.call(
                "layer", timeout_s=self.move.left(), removals=removed,
                stream=lambda out: archive.pack(
                    self._layer, out, paths=None if first else changed, layer=True, progress=self.move.progress("layer")
                ),
            )  # fmt: skip


leaving = Leaving


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


# --------------------------------------------------------------------------------------------------------------------
# The end
# --------------------------------------------------------------------------------------------------------------------
def roll_back(host: Host, journal: t.Mapping[str, t.Any]) -> t.Optional[bool]:
    """End a move on the source with the container as it was before; whether it was started anew since its processes had
    died, None when it does not run: it had ended by itself, or did not run before."""
    name = journal["name"]
    definition = ownership.read_definition(name)
    there = freezer.populated(paths.payload_cgroup(name))
    if there:
        thaw(host, definition, journal["move_id"])
    else:
        criu.kill_for(journal["move_id"])
        freezer.thaw(paths.hold_cgroup(name))
    movedir.remove(host, journal["move_id"])
    container_parts.remove_criu_config(name)
    # Its unit does not start it while a move has it frozen or stopped (see ``supervise``).
    files.write_json(paths.journal_file(name), {**journal, "state": records.SOURCE_BEGUN})
    anew = container_units.start_again(host, journal)
    movedir.end_journal(name)
    return anew if anew or there else None


def secure(channel: peers.Channel, journal: t.Mapping[str, t.Any]) -> None:
    """Until the target has the writable layer on its disk."""
    channel.call("keep", timeout_s=kinds.KEEP_S)


def let_go(host: Host, journal: t.Mapping[str, t.Any]) -> list[str]:
    """End a move on the source with the container at the target: kill the frozen copy, keep only the owner record."""
    name = journal["name"]
    criu.kill_for(journal["move_id"])
    if not freezer.kill(paths.hold_cgroup(name)):
        raise HostError(
            f"The frozen copy of {name} does not die.", hint="Its memory is still in use; the target has it."
        )
    definition = files.read_json(paths.definition_file(name))
    container_units.remove(name)
    host.run(["systemctl", "stop", paths.unit_name(name)], check=False, timeout_s=60)
    host.run(["systemctl", "reset-failed", paths.unit_name(name)], check=False)
    if definition is not None:
        container_parts.forget_runtime(host, definition)
        container_parts.network_down(host, definition)
    container_parts.unmount_layers(host, name)
    movedir.remove(host, journal["move_id"])
    for directory in (paths.bundle_dir(name), paths.upper_dir(name), paths.layer_work_dir(name)):
        files.remove_tree(directory)
    files.remove_file(paths.definition_file(name))
    movedir.end_journal(name)
    return []


def serves(journal: t.Mapping[str, t.Any]) -> bool:
    """Whether CRIU still serves pages to the target."""
    return criu.serves(journal["move_id"])


def keeps(journal: t.Mapping[str, t.Any]) -> bool:
    """With post-copy alone: the task has allowed that what it did since the freeze is lost."""
    return bool(journal["mode"] == plan.POST_COPY)
