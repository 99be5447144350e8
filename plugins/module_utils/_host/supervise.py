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
import stat
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, Refused
from .._core.names import check_name
from .._migrate import records
from .._net.endpoint import Endpoint, from_definition
from .._oci import config
from .._oci.users import Account, find_account
from . import archive, files, freezer, netns
from .system import Host

# systemd does not restart a unit that ended with this (RestartPreventExitStatus): it is not this host's to run.
NOT_HERE = 75
CGROUP_ROOT = "/sys/fs/cgroup"
OVERLAY_OPTIONS = "redirect_dir=off,metacopy=off,index=off"
_LIMITERS = ("cpu", "memory", "pids")


# --------------------------------------------------------------------------------------------------------------------
# What is known of a container
# --------------------------------------------------------------------------------------------------------------------
def read_definition(name: str) -> dict[str, t.Any]:
    """The definition of a container of this host."""
    definition = files.read_json(paths.definition_file(name))
    if definition is None:
        raise HostError(f"This host has no container {name!r}.", hint=f"There is no {paths.definition_file(name)}.")
    return definition


def host_identity() -> dict[str, t.Any]:
    """``host_id`` and ``name`` of this host."""
    identity = files.read_json(paths.HOST_FILE)
    if identity is None:
        raise HostError(f"This host has no {paths.HOST_FILE}.", hint="Run the role host_bootstrap on it.")
    return identity


def owned_here(name: str) -> bool:
    """Whether the owner record says that this host runs the container."""
    owner = files.read_json(paths.owner_file(name))
    return owner is not None and owner.get("owner") == host_identity().get("host_id")


def incoming_fifo(name: str) -> str:
    """Here a unit that was started for a restore waits for its word."""
    return f"{paths.run_dir(name)}/incoming"


def criu_config_file(name: str) -> str:
    """What CRIU reads after /etc/criu/default.conf when it is started ``with_criu_config``; empty outside a move."""
    return f"{paths.run_dir(name)}/.criu/default.conf"


def write_criu_config(name: str, lines: t.Sequence[str] = ()) -> None:
    """Options for CRIU. Its nftables lock takes 70 to 90 ms less than the one by iptables, which is its default."""
    text = "".join(f"{line}\n" for line in ("network-lock nftables", *lines))
    files.write_text(criu_config_file(name), text, mode=0o600, durable=False)


def remove_criu_config(name: str) -> None:
    """CRIU is as the host configured it again."""
    shutil.rmtree(os.path.dirname(criu_config_file(name)), ignore_errors=True)


def with_criu_config(name: str, argv: t.Sequence[str]) -> list[str]:
    """``argv`` (a runtime) so that its CRIU reads ``criu_config_file``: the one way that all runtimes know."""
    return ["/usr/bin/env", f"HOME={paths.run_dir(name)}", *argv]


def runtime_state(definition: t.Mapping[str, t.Any]) -> t.Optional[dict[str, t.Any]]:
    """``{"pid": …}`` of the container's init as its runtime wrote it down, None where there is no container."""
    runtime, name = definition.get("runtime", "runc"), definition["name"]
    path = f"/run/runc/{name}/state.json" if runtime == "runc" else f"/run/crun/{name}/status"
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
    except (OSError, ValueError):
        return None
    pid = state.get("init_process_pid") if runtime == "runc" else state.get("pid")
    return {"pid": int(pid or 0), "path": path}


def init_pid(definition: t.Mapping[str, t.Any]) -> int:
    """The process id of a container's init when it lives, else 0. A process elsewhere is never taken for it."""
    state = runtime_state(definition)
    if state is None or state["pid"] <= 0:
        return 0
    try:
        with open(f"/proc/{state['pid']}/cgroup", encoding="utf-8") as file:
            if paths.hold_cgroup(definition["name"]) not in file.read():
                return 0
        with open(f"/proc/{state['pid']}/stat", encoding="utf-8") as file:
            return 0 if file.read().rpartition(")")[2].split()[0] in "ZX" else int(state["pid"])
    except OSError:
        return 0


# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------
def rootfs(name: str) -> str:
    """Where the layers of a container are mounted."""
    return f"{paths.bundle_dir(name)}/rootfs"


def layers_mounted(name: str) -> bool:
    """Whether the container's layers are mounted."""
    return rootfs(name) in files.mount_points()


def mount_layers(host: Host, definition: t.Mapping[str, t.Any]) -> None:
    """Mount the writable layer over the image; nothing to do where it is mounted."""
    name = definition["name"]
    if layers_mounted(name):
        return
    lower = f"{paths.image_dir(definition['image'])}/rootfs"
    if not os.path.isdir(lower):
        raise HostError(
            f"The image of container {name!r} ({definition.get('image_name') or definition['image']}) is not here.",
            hint=f"There is no {lower}. Bring it with the module bundle or the role cnvm_image.",
        )
    for directory in (paths.bundle_dir(name), rootfs(name), paths.upper_dir(name), paths.layer_work_dir(name)):
        os.makedirs(directory, mode=0o755 if directory == paths.upper_dir(name) else 0o711, exist_ok=True)
    options = (
        f"lowerdir={lower},upperdir={paths.upper_dir(name)},workdir={paths.layer_work_dir(name)},{OVERLAY_OPTIONS}"
    )
    host.run(["mount", "-t", "overlay", f"cnvm-{name}", "-o", options, rootfs(name)])


def unmount_layers(host: Host, name: str) -> bool:
    """Unmount the layers; whether they were mounted."""
    if not layers_mounted(name):
        return False
    result = host.run(["umount", rootfs(name)], check=False)
    if result.rc and layers_mounted(name):
        # Somebody looks into it. Detached, it ends with the last one who does; nothing is written by then.
        host.run(["umount", "-l", rootfs(name)])
    return True


def read_inside(root: str, names: t.Sequence[str]) -> list[str]:
    """Text files of a tree that others write to, read so that no link in it leads out; empty where there is none."""

    def work() -> list[str]:
        found = []
        for name in names:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                found.append("")
                continue
            try:
                regular = stat.S_ISREG(os.fstat(fd).st_mode)
                found.append(os.read(fd, 1 << 20).decode("utf-8", "replace") if regular else "")
            finally:
                os.close(fd)
        return found

    return t.cast("list[str]", archive.inside(root, work, f"Reading files in {root}"))


def account_of(root: str, user: str, option: str = "user") -> Account:
    """Who ``user`` is in the tree ``root``."""
    passwd, group = read_inside(root, ["/etc/passwd", "/etc/group"])
    return find_account(user, passwd, group, option)


def image_record(digest: str) -> dict[str, t.Any]:
    """image.json of an image of this host."""
    record = files.read_json(f"{paths.image_dir(digest)}/image.json")
    if record is None:
        raise HostError(f"The image {digest} is not on this host.", hint="Bring it with the module bundle.")
    return record


def write_config(definition: t.Mapping[str, t.Any]) -> None:
    """Make config.json of the container; its layers are mounted."""
    name = definition["name"]
    process = image_record(definition["image"]).get("process") or {}
    account = account_of(rootfs(name), definition.get("user") or process.get("user") or "")
    made = config.build(
        definition,
        process,
        uid=account.uid,
        gid=account.gid,
        groups=account.groups,
        home=account.home,
        machine=os.uname().machine,
    )
    files.write_json(f"{paths.bundle_dir(name)}/config.json", made, durable=False)


def make_run_dir(name: str) -> str:
    """The container's directory below /run."""
    directory = paths.run_dir(name)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


# --------------------------------------------------------------------------------------------------------------------
# Network
# --------------------------------------------------------------------------------------------------------------------
def endpoint(definition: t.Mapping[str, t.Any]) -> t.Optional[Endpoint]:
    """The container's place on the overlay, None when it has no address."""
    if not definition.get("address"):
        return None
    overlay = files.read_json(paths.OVERLAY_FILE)
    if overlay is None:
        raise HostError(
            f"Container {definition['name']!r} has the address {definition['address']}, but this host has no overlay.",
            hint="Run the role overlay on it.",
        )
    return from_definition(dict(definition), overlay)


def network_up(host: Host, definition: t.Mapping[str, t.Any]) -> None:
    """Namespace, address, bridge, port forwards. What is there and right is left alone."""
    name = definition["name"]
    spec = endpoint(definition)
    if spec is not None:
        netns.create(host, spec)
        netns.attach(host, spec)
        if spec.ports:
            netns.forwards_up(host, spec)
    elif not os.path.ismount(paths.netns_path(name)):
        # Without an address it is alone with its loopback.
        host.run(["ip", "netns", "add", paths.netns_name(name)])
        host.run(["ip", "-n", paths.netns_name(name), "link", "set", "lo", "up"])


def network_down(host: Host, definition: t.Mapping[str, t.Any]) -> None:
    """Take away what ``network_up`` made; nothing to do where there is nothing."""
    name = definition["name"]
    if definition.get("address") and os.path.exists(paths.OVERLAY_FILE):
        netns.remove(host, t.cast("Endpoint", endpoint(definition)))
    elif os.path.lexists(paths.netns_path(name)):
        host.run(["ip", "netns", "del", paths.netns_name(name)])


# --------------------------------------------------------------------------------------------------------------------
# Cgroups
# --------------------------------------------------------------------------------------------------------------------
def write_cgroup(path: str, file: str, value: str) -> None:
    """Write one file of a cgroup (``path`` relative to the root of the hierarchy)."""
    with open(f"{CGROUP_ROOT}{path}/{file}", "w", encoding="ascii") as out:
        out.write(value)


def own_cgroup() -> str:
    """The cgroup (version 2) that this process is in."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].strip()
    raise HostError("This host has no unified cgroup hierarchy (cgroup 2).", hint="Boot it with one.")


def controllers() -> list[str]:
    """The controllers of cgroup 2 on this host; limits need theirs."""
    try:
        with open(f"{CGROUP_ROOT}/cgroup.controllers", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def enter_cgroups(name: str) -> None:
    """Go from the unit's cgroup into ``supervisor`` below it, and make ``hold`` beside that."""
    unit = paths.unit_cgroup(name)
    if not own_cgroup().startswith(unit):
        raise Refused(
            f"Container {name!r} is started by its unit only (this process is in {own_cgroup()}).",
            hint=f"Run 'systemctl start {paths.unit_name(name)}'.",
        )
    for group in (f"{unit}/supervisor", paths.hold_cgroup(name)):
        os.makedirs(CGROUP_ROOT + group, exist_ok=True)
    write_cgroup(f"{unit}/supervisor", "cgroup.procs", str(os.getpid()))
    with open(f"{CGROUP_ROOT}{unit}/cgroup.controllers", encoding="ascii") as file:
        there = file.read().split()
    wanted = " ".join(f"+{one}" for one in _LIMITERS if one in there)
    if wanted:
        write_cgroup(unit, "cgroup.subtree_control", wanted)
        write_cgroup(paths.hold_cgroup(name), "cgroup.subtree_control", wanted)


def frozen(name: str) -> bool:
    """Whether the container is frozen, at its own cgroup or above it."""
    try:
        with open(f"{CGROUP_ROOT}{paths.payload_cgroup(name)}/cgroup.events", encoding="ascii") as file:
            return "frozen 1" in file.read()
    except OSError:
        return False


# --------------------------------------------------------------------------------------------------------------------
# The life of a container
# --------------------------------------------------------------------------------------------------------------------
def runtime_command(definition: t.Mapping[str, t.Any]) -> list[str]:
    """The container's runtime and its global options. crun would look elsewhere when a login sets XDG_RUNTIME_DIR."""
    runtime = str(definition.get("runtime", "runc"))
    program = shutil.which(runtime, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise HostError(f"The runtime {runtime} is not installed on this host.", hint=f"Install the package {runtime}.")
    return [program, "--root", f"/run/{runtime}"]


def forget_runtime(host: Host, definition: t.Mapping[str, t.Any]) -> None:
    """Remove what a runtime that died has left of the container: its state, and processes if any."""
    if runtime_state(definition) is not None:
        host.run([*runtime_command(definition), "delete", "--force", definition["name"]], check=False, timeout_s=20)
    # A runtime that was killed while it started leaves a directory without a state in it; while it restored, with the
    # container's root mounted in it (criu-root), which must not be emptied.
    for state in (f"/run/runc/{definition['name']}", f"/run/crun/{definition['name']}"):
        if os.path.isdir(state) and not os.path.islink(state):
            for point in reversed([one for one in files.mount_points() if one.startswith(f"{state}/")]):
                host.run(["umount", "-l", point])
            files.remove_tree(state)


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
    command = runtime_command(definition)
    return [*command, "run", "--bundle", paths.bundle_dir(name), "--pid-file", pid_file(name), name]


def pid_file(name: str) -> str:
    """Where the runtime writes down the container's init."""
    return f"{paths.run_dir(name)}/init.pid"


def prepare(host: Host, definition: t.Mapping[str, t.Any], *, network: bool = True) -> None:
    """All that must be there before the runtime starts, but the cgroups."""
    forget_runtime(host, definition)
    make_run_dir(definition["name"])
    mount_layers(host, definition)
    write_config(definition)
    if network:
        network_up(host, definition)


def _handing_over(name: str) -> bool:
    """Whether a move that is not finished had the container frozen or stopped. Another host may run it by now, or at
    any moment, also when this one was off meanwhile: started anew here it would be a second one. ``recover`` starts it
    once that cannot be.

    A restored copy that ends before its move has ended is not started anew either: the source may go on with the
    memory and the connections that such a start would lose.
    """
    journal = files.read_json(paths.journal_file(name)) or {}
    if journal.get("role") == "target":
        return journal.get("mode") != "cold"
    if journal.get("role") != "source" or journal.get("state") == records.SOURCE_BEGUN:
        return False
    return journal.get("mode") != records.CHECKPOINT or files.lock_holder(paths.lock_file(name)) != 0


def _run(name: str, host: Host) -> int:
    incoming = incoming_fifo(name)
    waits = os.path.exists(incoming)
    if not waits and not owned_here(name):
        owner = files.read_json(paths.owner_file(name)) or {}
        _say(host, f"Container {name} is not started: it is at {owner.get('owner_name') or 'an unknown host'}.")
        return NOT_HERE
    if not waits and _handing_over(name):
        _say(host, f"Container {name} is not started: a move of it is not finished. That starts it when it fails.")
        return NOT_HERE
    enter_cgroups(name)
    if waits:
        # Opening it waits for the mover; whatever it sends after the first line is not for us.
        with open(incoming, encoding="utf-8") as file:
            order = json.loads(file.readline() or "{}")
        argv = order.get("argv")
        if not argv:
            _say(host, f"Container {name}: the move to this host was given up.")
            return NOT_HERE
        # What is restored gets its own priority back.
        freezer.hurry()
        _become([str(word) for word in argv])
    definition = read_definition(name)
    write_cgroup(paths.hold_cgroup(name), "cgroup.freeze", "0")
    prepare(host, definition)
    _become(run_argv(definition))


def _stop(name: str, host: Host) -> int:
    """Ask init to end, wait, then kill. Called by systemd before it kills what is left."""
    definition = read_definition(name)
    pid = init_pid(definition)
    if not pid:
        return 0
    word = str(definition.get("stop_signal") or "TERM")
    number = getattr(signal, f"SIG{word}", signal.SIGTERM)
    end = time.monotonic() + float(definition.get("stop_timeout_s", 10))
    # A frozen one cannot end by itself, and must not be thawed: its other copy may live elsewhere.
    if not frozen(name):
        os.kill(pid, number)
        while time.monotonic() < end and init_pid(definition) == pid:
            time.sleep(0.02)
    if init_pid(definition) == pid:
        os.kill(pid, signal.SIGKILL)
        _say(host, f"Container {name} did not end in time (or was frozen) and was killed.")
    return 0


def _clean(name: str, host: Host) -> int:
    """Take away all that ``run`` made. Called by systemd when the unit has ended, however it did."""
    definition = files.read_json(paths.definition_file(name)) or {"name": name}
    problems = []
    for step in (
        lambda: forget_runtime(host, definition) if definition.get("image") else None,
        lambda: network_down(host, definition),
        lambda: unmount_layers(host, name),
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
    network_up(host, read_definition(name))
    return 0


def _net_down(name: str, host: Host) -> int:
    network_down(host, read_definition(name))
    return 0


def _status(name: str, host: Host) -> int:
    from . import containers

    if host.stdout is not None:
        report = containers.report(host, [name])
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
