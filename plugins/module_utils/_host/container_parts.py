# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What one container has on its host: layers, network, cgroups, what its runtime and CRIU know of it.

One by one, and made only where it is missing: its unit (``supervise``), the modules and a move use the same functions.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import typing as t

from .._core import paths
from .._core.errors import HostError
from .._criu import commands as criu_commands
from .._net.endpoint import Endpoint, from_definition
from .._oci import config
from .._oci.users import Account, find_account
from . import files, netns
from .system import Host

CGROUP_ROOT = "/sys/fs/cgroup"
OVERLAY_OPTIONS = "redirect_dir=off,metacopy=off,index=off"


# --------------------------------------------------------------------------------------------------------------------
# Its runtime
# --------------------------------------------------------------------------------------------------------------------
def runtime_command(definition: t.Mapping[str, t.Any]) -> list[str]:
    """The container's runtime and its global options. crun would look elsewhere when a login sets XDG_RUNTIME_DIR."""
    runtime = str(definition.get("runtime", "runc"))
    program = shutil.which(runtime, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise HostError(f"The runtime {runtime} is not installed on this host.", hint=f"Install the package {runtime}.")
    return [program, "--root", f"/run/{runtime}"]


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


def pid_file(name: str) -> str:
    """Where the runtime writes down the container's init."""
    return f"{paths.run_dir(name)}/init.pid"


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


def make_run_dir(name: str) -> str:
    """The container's directory below /run."""
    directory = paths.run_dir(name)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


def incoming_fifo(name: str) -> str:
    """Here a unit that was started for a restore waits for its word."""
    return f"{paths.run_dir(name)}/incoming"


# --------------------------------------------------------------------------------------------------------------------
# CRIU
# --------------------------------------------------------------------------------------------------------------------
def criu_config_file(name: str) -> str:
    """What CRIU reads after /etc/criu/default.conf when it is started ``with_criu_config``; empty outside a move."""
    return f"{paths.run_dir(name)}/.criu/default.conf"


def write_criu_config(name: str, lines: t.Sequence[str] = ()) -> None:
    """Options for CRIU, those of every container and ``lines``."""
    text = "".join(f"{line}\n" for line in (*criu_commands.OPTIONS, *lines))
    files.write_text(criu_config_file(name), text, mode=0o600, durable=False)


def remove_criu_config(name: str) -> None:
    """CRIU is as the host configured it again."""
    shutil.rmtree(os.path.dirname(criu_config_file(name)), ignore_errors=True)


def with_criu_config(name: str, argv: t.Sequence[str]) -> list[str]:
    """``argv`` (a runtime) so that its CRIU reads ``criu_config_file``: the one way that all runtimes know."""
    return ["/usr/bin/env", f"HOME={paths.run_dir(name)}", *argv]


# --------------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------------
def rootfs(name: str) -> str:
    """Where the layers of a container are mounted."""
    return f"{paths.bundle_dir(name)}/rootfs"


def layers_mounted(name: str) -> bool:
    """Whether the container's layers are mounted."""
    return rootfs(name) in files.mount_points()


def make_place(name: str) -> None:
    """The container's directory. Nobody else on the host may run what is set-user-id in there."""
    os.makedirs(paths.workload_dir(name), exist_ok=True)
    os.chmod(paths.workload_dir(name), 0o700)


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
    make_place(name)
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

    from . import archive  # only for this, and the helper's start is in a hot path

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
    else:
        netns.create_alone(host, name)


def network_down(host: Host, definition: t.Mapping[str, t.Any]) -> None:
    """Take away what ``network_up`` made; nothing to do where there is nothing."""
    name = definition["name"]
    if definition.get("address"):
        netns.remove(host, name, definition["uuid"])
    elif os.path.lexists(paths.netns_path(name)):
        host.run(["ip", "netns", "del", paths.netns_name(name)])


# --------------------------------------------------------------------------------------------------------------------
# Cgroups
# --------------------------------------------------------------------------------------------------------------------
def write_cgroup(path: str, file: str, value: str) -> None:
    """Write one file of a cgroup (``path`` relative to the root of the hierarchy)."""
    with open(f"{CGROUP_ROOT}{path}/{file}", "w", encoding="ascii") as out:
        out.write(value)


def controllers() -> list[str]:
    """The controllers of cgroup 2 on this host; limits need theirs."""
    try:
        with open(f"{CGROUP_ROOT}/cgroup.controllers", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def without_limits(definition: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The same container without its limits, which would hold for CRIU too: it works in its cgroup."""
    return {**definition, "memory_mib": None, "cpus": None, "pids_limit": None}


def apply_limits(definition: t.Mapping[str, t.Any]) -> None:
    """Write the limits of a running container into its cgroup. It may end just then, and takes that with it."""
    cpus = definition.get("cpus")
    limits = {
        "memory.max": str(definition["memory_mib"] * 2**20) if definition.get("memory_mib") else "max",
        "cpu.max": f"{int(cpus * 100000)} 100000" if cpus else "max 100000",
        "pids.max": str(definition["pids_limit"]) if definition.get("pids_limit") else "max",
    }
    group = paths.payload_cgroup(definition["name"])
    try:
        for file in limits.keys() & set(os.listdir(CGROUP_ROOT + group)):
            write_cgroup(group, file, limits[file])
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def frozen(name: str) -> bool:
    """Whether the container is frozen, at its own cgroup or above it."""
    try:
        with open(f"{CGROUP_ROOT}{paths.payload_cgroup(name)}/cgroup.events", encoding="ascii") as file:
            return "frozen 1" in file.read()
    except OSError:
        return False
