# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host container …``: what systemd calls to start, stop and clean up one container.

Everything that a container needs of its host (mount, network namespace, port forwards, cgroups) is made by ``run`` and
taken away by ``clean``, so that while the unit is not active nothing of it is left, and a reboot needs no repair.
The mover uses the same functions, one by one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, Refused
from .._core.names import check_name
from .._migrate import records
from . import container_parts, files, freezer, ownership
from .system import Host

# A start that is refused ends by this signal: systemd does not start the unit anew then (RestartPreventExitStatus). No
# exit code could say that, as the runtime ends with the container's own; it ends by no signal that it was not sent.
NOT_HERE = signal.SIGVTALRM
_LIMITERS = ("cpu", "memory", "pids")


# --------------------------------------------------------------------------------------------------------------------
# Cgroups
# --------------------------------------------------------------------------------------------------------------------
def own_cgroup() -> str:
    """The cgroup (version 2) that this process is in."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].strip()
    raise HostError("This host has no unified cgroup hierarchy (cgroup 2).", hint="Boot it with one.")


def enter_cgroups(name: str) -> None:
    """Go from the unit's cgroup into ``supervisor`` below it, and make ``hold`` beside that."""
    unit = paths.unit_cgroup(name)
    if not own_cgroup().startswith(unit):
        raise Refused(
            f"Container {name!r} is started by its unit only (this process is in {own_cgroup()}).",
            hint=f"Run 'systemctl start {paths.unit_name(name)}'.",
        )
    for group in (f"{unit}/supervisor", paths.hold_cgroup(name)):
        os.makedirs(container_parts.CGROUP_ROOT + group, exist_ok=True)
    container_parts.write_cgroup(f"{unit}/supervisor", "cgroup.procs", str(os.getpid()))
    with open(f"{container_parts.CGROUP_ROOT}{unit}/cgroup.controllers", encoding="ascii") as file:
        there = file.read().split()
    wanted = " ".join(f"+{one}" for one in _LIMITERS if one in there)
    if wanted:
        container_parts.write_cgroup(unit, "cgroup.subtree_control", wanted)
        container_parts.write_cgroup(paths.hold_cgroup(name), "cgroup.subtree_control", wanted)


# --------------------------------------------------------------------------------------------------------------------
# The life of a container
# --------------------------------------------------------------------------------------------------------------------
def _pump_output() -> int:
    """Let a process carry what is written into a pipe to our output; the pipe's end to write to.

    CRIU can dump a pipe that the runtime knows of, but not the journal's socket. The process is no child of ours: crun
    waits until its last child has ended, and this one waits until crun has.
    """
    receive, send = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            if os.fork():
                os._exit(0)
            os.dup2(receive, 0)
            os.closerange(3, 64)
            # It ends when the last writer has gone; a stop of the unit must not take the last lines away.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execvp("cat", ["cat"])
        finally:
            os._exit(127)
    os.waitpid(between, 0)
    os.close(receive)
    return send


def _become(argv: t.Sequence[str]) -> t.NoReturn:
    """Go on as the runtime. It gets a small environment: NOTIFY_SOCKET would be mounted into the container."""
    output = _pump_output()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 64)
    os.execve(
        argv[0], list(argv), {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    )


def run_argv(definition: t.Mapping[str, t.Any]) -> list[str]:
    """The command that runs the container in the foreground."""
    name = definition["name"]
    command = container_parts.runtime_command(definition)
    return [*command, "run", "--bundle", paths.bundle_dir(name), "--pid-file", container_parts.pid_file(name), name]


def prepare(host: Host, definition: t.Mapping[str, t.Any], *, network: bool = True) -> None:
    """All that must be there before the runtime starts, but the cgroups."""
    container_parts.forget_runtime(host, definition)
    container_parts.make_run_dir(definition["name"])
    container_parts.mount_layers(host, definition)
    container_parts.write_config(definition)
    if network:
        container_parts.network_up(host, definition)


def _handing_over(name: str) -> str:
    """The move that is not finished and had the container frozen or stopped, or ''. Another host may run it by now, or
    at any moment, also when this one was off meanwhile: started anew here it would be a second one. ``start_again``
    does it once that cannot be.

    A restored copy that ends before its move has ended is not started anew either: the source may go on with the
    memory and the connections that such a start would lose.
    """
    journal = files.read_json(paths.journal_file(name)) or {}
    if journal.get("role") == "target":
        standing = journal.get("mode") != "cold"
    elif journal.get("role") != "source" or journal.get("state") == records.SOURCE_BEGUN:
        standing = False
    else:
        standing = journal.get("mode") != records.CHECKPOINT or files.lock_holder(paths.lock_file(name)) != 0
    return str(journal["move_id"]) if standing else ""


def _keep_back(host: Host, text: str) -> int:
    """It is not this host's to run, now or at all: say so, and end."""
    _say(host, text)
    os.kill(os.getpid(), NOT_HERE)
    return 1


def _run(name: str, host: Host) -> int:
    incoming = container_parts.incoming_fifo(name)
    waits = os.path.exists(incoming)
    if not waits and not ownership.owned_here(name):
        owner = files.read_json(paths.owner_file(name)) or {}
        return _keep_back(
            host, f"Container {name} is not started: it is at {owner.get('owner_name') or 'an unknown host'}."
        )
    move_id = "" if waits else _handing_over(name)
    if move_id:
        files.write_json(paths.turned_away_file(name), {"move_id": move_id}, durable=False)
        return _keep_back(host, f"Container {name} is not started: a move of it is not finished. Its end starts it.")
    enter_cgroups(name)
    if waits:
        # Opening it waits for the mover; whatever it sends after the first line is not for us.
        with open(incoming, encoding="utf-8") as file:
            order = json.loads(file.readline() or "{}")
        argv = order.get("argv")
        if not argv:
            return _keep_back(host, f"Container {name}: the move to this host was given up.")
        # What is restored gets its own priority back.
        freezer.hurry()
        _become([str(word) for word in argv])
    definition = ownership.read_definition(name)
    container_parts.write_cgroup(paths.hold_cgroup(name), "cgroup.freeze", "0")
    prepare(host, definition)
    _become(run_argv(definition))


def _stop(name: str, host: Host) -> int:
    """Ask init to end, wait, then kill. Called by systemd before it kills what is left."""
    definition = ownership.read_definition(name)
    pid = container_parts.init_pid(definition)
    if not pid:
        return 0
    # The real-time ones have no names of their own: RTMIN+3.
    word, _plus, more = str(definition.get("stop_signal") or "TERM").partition("+")
    number = getattr(signal, f"SIG{word}", signal.SIGTERM) + int(more or 0)
    end = time.monotonic() + float(definition.get("stop_timeout_s", 10))
    # A frozen one cannot end by itself, and must not be thawed: its other copy may live elsewhere.
    if not container_parts.frozen(name):
        os.kill(pid, number)
        while time.monotonic() < end and container_parts.init_pid(definition) == pid:
            time.sleep(0.02)
    if container_parts.init_pid(definition) == pid:
        os.kill(pid, signal.SIGKILL)
        _say(host, f"Container {name} did not end in time (or was frozen) and was killed.")
    return 0


def _clean(name: str, host: Host) -> int:
    """Take away all that ``run`` made. Called by systemd when the unit has ended, however it did."""
    definition = files.read_json(paths.definition_file(name)) or {"name": name}
    problems = []
    for step in (
        lambda: container_parts.forget_runtime(host, definition) if definition.get("image") else None,
        lambda: container_parts.network_down(host, definition),
        lambda: container_parts.unmount_layers(host, name),
        lambda: shutil.rmtree(paths.run_dir(name), ignore_errors=True),
    ):
        try:
            step()
        except CnvmError as error:
            problems.append(str(error))
    for problem in problems:
        _say(host, problem)
    return 1 if problems else 0


def _say(host: Host, text: str) -> None:
    if host.stderr is not None:
        host.stderr.write(text.encode("utf-8", "replace") + b"\n")
        host.stderr.flush()


def _net_up(name: str, host: Host) -> int:
    container_parts.network_up(host, ownership.read_definition(name))
    return 0


def _net_down(name: str, host: Host) -> int:
    container_parts.network_down(host, ownership.read_definition(name))
    return 0


def _status(name: str, host: Host) -> int:
    from . import container_report

    if host.stdout is not None:
        report = container_report.report(host, [name])
        host.stdout.write(json.dumps(report, indent=1, sort_keys=True).encode() + b"\n")
        host.stdout.flush()
    return 0


def _logs(name: str, host: Host) -> int:
    os.execvp("journalctl", ["journalctl", "--no-pager", "-o", "cat", "-u", paths.unit_name(name)])


_WORDS: dict[str, t.Callable[[str, Host], int]] = {
    "run": _run,
    "stop": _stop,
    "clean": _clean,
    "net-up": _net_up,
    "net-down": _net_down,
    "status": _status,
    "logs": _logs,
}


def container(args: t.Sequence[str], host: Host) -> int:
    """``cnvm-host container WORD NAME``."""
    if len(args) != 2 or args[0] not in _WORDS:
        raise InputError("Usage: cnvm-host container WORD NAME.", hint=f"WORD is one of: {', '.join(_WORDS)}.")
    return _WORDS[args[0]](check_name(args[1], "NAME"), host)


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"container": container}
