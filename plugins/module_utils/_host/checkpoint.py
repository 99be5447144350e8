# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""A running container into a file, and back. The steps are those of a move (``container_source`` and its target).

Both keep a journal, so that ``recover`` ends what was interrupted: a checkpoint by letting the container go on, a
restore by putting the writable layer back that the container had before, or by finishing when it runs already.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Refused
from .._core.values import absolute_path
from .._criu import commands as criu_commands
from .._migrate import checkpoint as manifests
from .._migrate import plan, records
from .._oci.members import Policy
from .._oci.plan import starts_with_host
from . import (
    archive,
    container_parts,
    container_preflight,
    container_processes,
    container_source,
    container_target,
    container_units,
    criu,
    files,
    freezer,
    images,
    info,
    movedir,
    ownership,
    preflight,
)
from .ownership import Registry
from .system import Host

DIRECTORY = f"{paths.STATE}/checkpoints"


def default_path(name: str) -> str:
    """Where the checkpoint of a container is kept when the user names no place."""
    return f"{DIRECTORY}/{name}.tar.zst"


def check_path(path: str) -> str:
    """``path`` in its shortest form when it can be a checkpoint's; InputError otherwise."""
    path = absolute_path(path, "path")
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isfile(path)):
        raise InputError(f"path: {path} is no plain file.", hint="Name a file.")
    return path


def read_manifest(path: str) -> dict[str, t.Any]:
    """The manifest of an archive, without unpacking the rest."""
    if archive.compression_of(path) != "zstd":
        raise InputError(f"path: {path} is no checkpoint of ours (it is not packed with zstd).")
    pipe, into = os.pipe()
    with open(path, "rb") as file:
        try:
            program = archive.Filter(["zstd", "-dc", "-q"], file.fileno(), into)
        finally:
            os.close(into)
    with os.fdopen(pipe, "rb") as stream:
        head = stream.read(archive.BLOCK)
        try:
            size = int(head[124:135], 8) if head[:100].rstrip(b"\0") == manifests.MANIFEST.encode() else -1
        except ValueError:
            size = -1
        data = stream.read(size) if 0 <= size <= manifests.MOST_MANIFEST else b""
    with contextlib.suppress(HostError):
        # It was not read to its end.
        program.wait()
    if size < 0 or len(data) < size:
        raise InputError(
            f"path: {path} is no checkpoint of ours, or it was cut off: it does not begin with a manifest."
        )
    return manifests.parse(data, path)


def stamps(root: str) -> dict[str, t.Optional[manifests.Stamp]]:
    """Size and sha256 of each file below ``root`` (relative); None for what is no plain file."""
    found: dict[str, t.Optional[manifests.Stamp]] = {}
    for path, status in archive.walk(root):
        if stat.S_ISREG(status.st_mode):
            digest = hashlib.sha256()
            with open(f"{root}/{path}", "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
            found[path] = (status.st_size, digest.hexdigest())
        elif not stat.S_ISDIR(status.st_mode):
            found[path] = None
    return found


def _shown(path: str, made: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    keys = ("name", "uuid", "generation", "image", "image_name", "host", "created", "criu", "kernel", "runtime")
    return {
        "path": path, "size_bytes": os.path.getsize(path) if os.path.exists(path) else 0,
        "content_bytes": manifests.total_bytes(made), "digest": made["digest"],
        **{key: made.get(key) for key in keys},
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Making one
# --------------------------------------------------------------------------------------------------------------------
def make(
    host: Host, name: str, path: str, *, leave_running: bool, force: bool, timeout_s: int, check_mode: bool
) -> dict[str, t.Any]:
    """Write the checkpoint of a container of this host; the module's result."""
    if os.path.exists(path) and not force:
        made = read_manifest(path)
        if made["name"] != name:
            raise InputError(f"path: {path} is a checkpoint of {made['name']}.", hint="force: true replaces it.")
        if (files.read_json(paths.definition_file(name)) or made)["uuid"] != made["uuid"]:
            raise InputError(
                f"path: {path} is a checkpoint of another container that was called {name}.",
                hint="force: true replaces it.",
            )
        return {"changed": False, "checkpoint": _shown(path, made)}
    definition, owner = preflight.movable(name)
    if not container_parts.init_pid(definition):
        raise Refused(f"{name} does not run, so there is nothing to save of it.", hint="Start it first.")
    side = container_preflight.side(ownership.host_identity()["name"], info.gather(host))
    runtime = side.runtimes.get(definition.get("runtime", "runc")) or {}
    work = container_preflight.workload(definition, running=True)
    found = list(work.obstacles)
    if not runtime.get("checkpoint"):
        found.insert(0, f"{definition.get('runtime', 'runc')} cannot checkpoint here: {runtime.get('reason')}.")
    wanted = work.memory + work.shared + work.tmpfs + work.layer
    if movedir.available_memory() < wanted * 6 // 5:
        found.append(f"memory: {wanted >> 20} MiB and a fifth more are needed while the checkpoint is made.")
    if found:
        raise Refused(" ".join(found))
    if check_mode:
        return {"changed": True}
    with files.lock(paths.lock_file(name), f"a checkpoint of {name}"):
        definition, owner = preflight.movable(name)
        return _make(host, definition, owner, side, path, leave_running, timeout_s, wanted)


def _make(
    host: Host, definition: dict[str, t.Any], owner: dict[str, t.Any], side: plan.Side, path: str, leave_running: bool,
    timeout_s: int, expected: int,
) -> dict[str, t.Any]:  # fmt: skip
    name, me = definition["name"], ownership.host_identity()
    move_id = os.urandom(6).hex()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    journal = {
        **records.journal(
            "source", records.SOURCE_BEGUN, move_id, owner, me["name"], me["host_id"], records.CHECKPOINT,
            movedir.boot_id(),
        ),
        "running": True, "enabled": container_units.is_enabled(name),
    }  # fmt: skip
    files.write_json(paths.journal_file(name), journal)
    try:
        directory = movedir.make(host, move_id, 2 * expected)
        files.write_json(paths.journal_file(name), {**journal, "state": records.SOURCE_FROZEN})
        start = time.monotonic()
        _dump(host, definition, side, move_id, timeout_s)
        if leave_running:
            container_source.thaw(host, definition, move_id)
            files.write_json(paths.journal_file(name), journal)
        frozen_ms = round((time.monotonic() - start) * 1000, 1)
        made = _pack(definition, owner, side, directory, path)
        if not leave_running:
            # Its state is in the file, which is on the disk: what is frozen may go.
            container_units.enable(name, False)
            journal = {**journal, "running": False}
            files.write_json(paths.journal_file(name), journal)
            host.run(["systemctl", "stop", paths.unit_name(name)], timeout_s=90)
            # Killed while it stood still, which is no failure here.
            host.run(["systemctl", "reset-failed", paths.unit_name(name)], check=False)
        statistics = criu.statistics(f"{directory}/work")
    except OSError as error:
        raise HostError(f"The checkpoint of {name} cannot be written: {error}.", hint="Is there space?") from error
    finally:
        # Whatever happened: nothing of it stays, and a container that is not stopped by now goes on.
        container_source.roll_back(host, journal)
    return {
        "changed": True, "checkpoint": _shown(path, made), "criu": statistics,
        "frozen_ms": frozen_ms if leave_running else None,
    }  # fmt: skip


def _dump(host: Host, definition: dict[str, t.Any], side: plan.Side, move_id: str, timeout_s: int) -> None:
    """Freeze, and copy memory and writable layer into the directory of ``move_id``."""
    name, directory = definition["name"], paths.move_dir(move_id)
    runtime = str(definition.get("runtime", "runc"))
    flags = criu_commands.runtime_flags(runtime, plan.version(str((side.runtimes.get(runtime) or {}).get("version"))))
    argv = criu_commands.dump(
        container_parts.runtime_command(definition),
        name,
        f"{directory}/images",
        f"{directory}/work",
        flags=flags["dump"],
    )
    container_source.freeze(host, definition, 10.0)
    # Asked when nothing changes any more: CRIU would also write what nobody could restore.
    container_parts.write_criu_config(name, container_processes.criu_lines(definition))
    result = host.run(container_parts.with_criu_config(name, argv), check=False, timeout_s=timeout_s)
    if result.rc:
        said = criu.failure(f"{directory}/work/dump.log")
        movedir.keep_logs(move_id)
        late = f"no end within {timeout_s} s" if result.rc in (124, 137) else f"{runtime} ended with code {result.rc}"
        raise HostError(
            f"{name} cannot be dumped: {said['error'] or late}.",
            hint=said["advice"], criu_error=said["error"], log=f"{paths.move_log_dir(move_id)}/dump.log",
        )  # fmt: skip
    container_source.hold(name, 10.0)
    with open(f"{directory}/{manifests.LAYER}", "wb", buffering=1 << 20) as out:
        archive.pack(paths.upper_dir(name), out, layer=True)


def _pack(
    definition: dict[str, t.Any], owner: dict[str, t.Any], side: plan.Side, directory: str, path: str
) -> dict[str, t.Any]:
    """Write the archive, the manifest first; the manifest."""
    files.write_json(f"{directory}/{manifests.DEFINITION}", definition, durable=False)
    kept = {
        name: stamp
        for name, stamp in stamps(directory).items()
        if stamp is not None and (name in manifests.TOP or os.path.dirname(name) == manifests.IMAGES)
    }
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data = manifests.manifest(definition, int(owner["generation"]), side, kept, created)
    archive.pack_file(directory, path, paths=[manifests.IMAGES, *sorted(kept)], extra=[(manifests.MANIFEST, data)])
    files.sync_dir(os.path.dirname(path))
    return manifests.parse(data, path)


# --------------------------------------------------------------------------------------------------------------------
# Restoring one
# --------------------------------------------------------------------------------------------------------------------
def restore(
    host: Host, path: str, name: str, *, cpu_check: str, ignore_unreachable: bool, ask_timeout_s: float, timeout_s: int,
    check_mode: bool,
) -> dict[str, t.Any]:  # fmt: skip
    """Let a stopped container of this host go on from a checkpoint; the module's result."""
    if not os.path.exists(path):
        raise InputError(f"path: there is no {path} on this host.", hint="Copy it there first.")
    made = read_manifest(path)
    name = name or made["name"]
    definition, owner = preflight.movable(name)
    if container_parts.init_pid(definition) or freezer.populated(paths.unit_cgroup(name)):
        raise Refused(
            f"{name} runs on this host.", hint="Stop it first (state: stopped); what it has in memory is lost."
        )
    registry = Registry(host, ownership.CONTAINER, ignore_unreachable=ignore_unreachable, ask_timeout_s=ask_timeout_s)
    registry.check_elsewhere(name, str(definition.get("address") or ""))
    with files.lock(paths.lock_file(name), f"a restore of {name}"):
        definition, owner = preflight.movable(name)
        move_id = os.urandom(6).hex()
        try:
            if movedir.available_memory() < 2 * manifests.total_bytes(made) * 6 // 5:
                raise Refused(f"memory: {2 * manifests.total_bytes(made) >> 20} MiB and a fifth more are needed.")
            flags = _verified(host, path, made, definition, move_id, cpu_check)
            if check_mode:
                return {"changed": True, "checkpoint": _shown(path, made)}
            return _restore(host, path, made, definition, owner, move_id, flags, timeout_s)
        finally:
            movedir.remove(host, move_id)


def _verified(
    host: Host, path: str, made: t.Mapping[str, t.Any], definition: dict[str, t.Any], move_id: str, cpu_check: str
) -> list[str]:
    """Unpack into memory and compare all; the runtime's flags for restoring. Nothing of the container is touched."""
    size = manifests.total_bytes(made)
    directory = movedir.make(host, move_id, size)
    os.rmdir(f"{directory}/work")
    policy = Policy(allow_fifos=False, top=manifests.TOP, max_bytes=size + manifests.MOST_MANIFEST, to_the_end=True)
    archive.extract_file(path, directory, policy)
    found = stamps(directory)
    with open(f"{directory}/{manifests.MANIFEST}", "rb") as file:
        again = manifests.parse(file.read(), path)
    found.pop(manifests.MANIFEST)
    problems = manifests.differences(again, found)
    if again["digest"] != made["digest"]:
        problems.append("it was replaced while it was read.")
    if problems:
        raise InputError(f"path: {path} is damaged: {' '.join(problems[:5])}", hint="It is refused as a whole.")
    os.mkdir(f"{directory}/work", 0o700)
    theirs = files.read_json(f"{directory}/{manifests.DEFINITION}") or {}
    side = container_preflight.side(ownership.host_identity()["name"], info.gather(host))
    refused = manifests.blockers(made, theirs, definition, side, cpu_check)
    if images.record(definition["image"]) is None:
        refused.append(f"The image {definition['image']} is not on this host. Bring it with the module bundle.")
    refused += container_target.network_problems(definition)
    if refused:
        raise Refused(" ".join(refused))
    version = plan.version(str(side.runtimes[made["runtime"]].get("version")))
    return criu_commands.runtime_flags(made["runtime"], version)["restore"]


def _before(name: str) -> str:
    """The writable layer that the container had, until the restored one runs."""
    return f"{paths.workload_dir(name)}/upper.before"


def _restore(
    host: Host, path: str, made: t.Mapping[str, t.Any], definition: dict[str, t.Any], owner: dict[str, t.Any],
    move_id: str, flags: t.Sequence[str], timeout_s: int,
) -> dict[str, t.Any]:  # fmt: skip
    name, me = definition["name"], ownership.host_identity()
    # One generation back: activating it makes it this host's by the record that is there already.
    was = {**owner, "generation": int(owner["generation"]) - 1}
    journal = records.journal(
        "restore", records.TARGET_RECEIVING, move_id, was, me["name"], me["host_id"], "restore", movedir.boot_id()
    )
    journal.update(running=True, enabled=starts_with_host(definition))
    files.write_json(paths.journal_file(name), journal)
    try:
        container_parts.unmount_layers(host, name)
        files.remove_tree(_before(name))
        os.makedirs(paths.upper_dir(name), mode=0o755, exist_ok=True)
        os.rename(paths.upper_dir(name), _before(name))
        files.remove_tree(paths.layer_work_dir(name))
        os.makedirs(paths.upper_dir(name), mode=0o755)
        with open(f"{paths.move_dir(move_id)}/{manifests.LAYER}", "rb", buffering=0) as stream:
            container_target.receive_layer(name, t.cast("t.BinaryIO", stream), ())
        container_target.prepare(host, definition, move_id)
        container_target.restore(definition, move_id, flags, None, timeout_s, lambda: False)
        running = container_target.activate(host, name, journal, 30)
        statistics = container_target.statistics(journal)["criu"]
    except BaseException:
        give_up(host, journal)
        raise
    _finish(host, {**journal, "state": records.TARGET_ACTIVE})
    container_target.announce(host, name)
    return {
        "changed": True, "checkpoint": _shown(path, made), "criu": statistics, "running_ms": running["running_ms"],
        "container": name,
    }  # fmt: skip


def _finish(host: Host, journal: t.Mapping[str, t.Any]) -> None:
    """It runs from the checkpoint: what it was before goes."""
    files.remove_tree(_before(journal["name"]))
    container_target.finish(host, journal["name"], journal)


def give_up(host: Host, journal: t.Mapping[str, t.Any]) -> None:
    """The container is stopped again, with the writable layer that it had."""
    name = journal["name"]
    movedir.keep_logs(journal["move_id"])
    container_target.end_copy(host, name, journal)
    if os.path.isdir(_before(name)):
        files.remove_tree(paths.upper_dir(name))
        files.remove_tree(paths.layer_work_dir(name))
        os.rename(_before(name), paths.upper_dir(name))
    movedir.remove(host, journal["move_id"])
    movedir.end_journal(name)


def recover(host: Host, journal: t.Mapping[str, t.Any]) -> str:
    """End a restore that was interrupted; what became of the container, for people."""
    name = journal["name"]
    if journal["state"] != records.TARGET_ACTIVE:
        give_up(host, journal)
        return f"The restore of {name} was interrupted; it is stopped, as it was before."
    _finish(host, journal)
    return f"{name} was restored here."
