# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The steps of a teleport on the host that takes the container (see ``kinds``).

The order of what is written: the journal before anything of the container is here; ``prepared`` only when the restored
tree stands still in its hook; the owner record (generation + 1) before it may run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, PeerError, Refused
from .._core.names import check_name, is_digest
from .._criu import commands as criu_commands
from .._migrate import plan, records
from .._oci.definition import check_normal
from .._oci.members import Policy, layer_policy
from . import (
    archive,
    building,
    container_parts,
    container_units,
    criu,
    files,
    freezer,
    handover,
    images,
    info,
    movedir,
    netns,
    ownership,
)
from .kinds import Call
from .system import Host

HOLD_HOOK = f"{paths.HELPER_LIBRARY}/hold"
_ANNOUNCE_S = (0.0, 0.05, 0.15, 0.3)
# For records, logs and directories.
_RECORDS_BYTES = 16 << 20
# Whether there is room for what comes was asked before the move.
_HOWEVER_MUCH = Policy(max_bytes=2**50, max_entries=2**40)


def facts(host: Host) -> dict[str, t.Any]:
    """What this host is and can do."""
    return {"info": info.gather(host)}


def check_definition(definition: t.Mapping[str, t.Any]) -> None:
    """PeerError or InputError when it is none that the module container would write here."""
    if not is_digest(str(definition.get("image"))):
        raise PeerError(f"The definition of {definition['name']} names no image.")
    check_normal(definition)


def check(
    host: Host, definition: t.Mapping[str, t.Any], owner: t.Mapping[str, t.Any], needs: t.Mapping[str, int]
) -> dict[str, t.Any]:
    """Why this host cannot take the container now (address, ports, space), whether its image is here, and what it would
    take of the ``space`` here."""
    me = ownership.host_identity()
    found = network_problems(definition)
    if any(mount["type"] == "bind" for mount in definition.get("mounts") or ()):
        found.append(
            f"mounts: {me['name']} binds no directory of its own into a container that comes from another host."
        )
    has_image = images.record(definition["image"]) is not None
    once = {} if has_image else {definition["image"]: needs.get("image", 0)}
    needed = needs.get("layer", 0) + sum(once.values()) + _RECORDS_BYTES
    space = [{**movedir.space(paths.STATE), "needed_bytes": needed, "once": once}]
    found += plan.space_problems(me["name"], space)
    wanted = needs.get("memory", 0) + needs.get("images", 0)
    found += plan.memory_problems(me["name"], movedir.available_memory(), wanted)
    return {"problems": found, "image": has_image, "space": space}


def network_problems(definition: t.Mapping[str, t.Any]) -> list[str]:
    """Why the container's address or ports cannot be had on this host."""
    found = []
    try:
        spec = container_parts.endpoint(definition)
        if spec is not None:
            holder = netns.address_holder(spec)
            if holder:
                found.append(f"address: {definition['address']} is taken: {holder} answers for it.")
            netns.check_forwards(spec)
    except CnvmError as error:
        found.append(str(error))
    return found


def begin(
    host: Host, definition: t.Mapping[str, t.Any], journal: dict[str, t.Any], needs: t.Mapping[str, t.Any]
) -> None:
    """Make room: an empty writable layer, and memory for the checkpoint."""
    name = definition["name"]
    container_parts.make_place(name)
    files.write_json(paths.definition_file(name), definition)
    # What an earlier stay has left is older than what comes.
    for directory in (paths.upper_dir(name), paths.layer_work_dir(name)):
        files.remove_tree(directory)
    os.makedirs(paths.upper_dir(name), mode=0o755)
    if needs["expected"]:
        movedir.make(host, journal["move_id"], int(needs["expected"]))


def receive_image(
    description: t.Mapping[str, t.Any], name: str, stream: t.BinaryIO, *, waits: t.Callable[[], bool] = lambda: False
) -> None:
    """Store an image that comes as a tar of its directory; InputError when it is not what its digest says.

    ``waits``: whether to wait for another container that is just bringing it, asked again and again.
    """
    wanted = description["digest"]
    with files.lock(f"{paths.RUN}/locks/image-{wanted}.lock", f"receiving the image {wanted[:16]}", waits=waits):
        if images.record(wanted) is None:
            _store_image(description, stream)
        if name and name not in images.names():
            images.point(name, wanted)


def _store_image(description: t.Mapping[str, t.Any], stream: t.BinaryIO) -> None:
    with building.directory(paths.IMAGES, f"move-{description['digest'][:16]}") as place:
        # What it may hold was decided when it was made on the source; here its digest is what counts.
        policy = dataclasses.replace(_HOWEVER_MUCH, allow_setuid=True, allow_devices=True)
        archive.extract(stream, place, policy, what="Receiving the image")
        kept = {
            key: value for key, value in description.items() if key not in ("schema", "digest", "entries", "size_bytes")
        }
        images.store(place, kept, expected=description["digest"])


def receive_layer(name: str, stream: t.BinaryIO, removals: t.Sequence[str]) -> int:
    """Write a layer, or the difference to the one that came before. Bytes of files."""
    return archive.extract(
        stream, paths.upper_dir(name), layer_policy(), removals=removals, what="Receiving the writable layer"
    ).bytes


def prepare(host: Host, definition: t.Mapping[str, t.Any], move_id: str) -> None:
    """All that a restore needs but the checkpoint: layers, config.json (ours, with the limits of ``activate``), network
    unplugged, a waiting unit."""
    name = definition["name"]
    container_parts.forget_runtime(host, definition)
    container_parts.make_run_dir(name)
    container_parts.mount_layers(host, definition)
    container_parts.write_config(container_parts.without_limits(definition))
    spec = container_parts.endpoint(definition)
    if spec is None:
        container_parts.network_up(host, definition)
    else:
        netns.create(host, spec)
        netns.detach(host, spec)
        if spec.ports:
            netns.forwards_up(host, spec)
    if container_units.write_policy(definition):
        container_units.reload(host)
    files.write_text(HOLD_HOOK, criu_commands.HOLD_SCRIPT, mode=0o755, durable=False)
    container_parts.write_criu_config(name, [f"action-script {HOLD_HOOK}"])
    directory = paths.move_dir(move_id)
    for fifo in (container_parts.incoming_fifo(name), f"{directory}/answer"):
        if not os.path.exists(fifo):
            os.mkfifo(fifo, 0o600)
    host.run(["systemctl", "reset-failed", paths.unit_name(name)], check=False)
    host.run(["systemctl", "start", paths.unit_name(name)], timeout_s=20)
    # Fills CRIU's cache of what the kernel can do, which costs 20 to 30 ms at its first use.
    host.run(["criu", "check"], check=False, timeout_s=20)


def receive_images(move_id: str, part: str, stream: t.BinaryIO) -> int:
    """Write the checkpoint, or one pre-dump of it (``part``), into the move's directory. Bytes of files."""
    directory = f"{paths.move_dir(move_id)}/{check_name(part, 'part')}"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return archive.extract(stream, directory, _HOWEVER_MUCH, what="Receiving the checkpoint").bytes


def restore(
    definition: t.Mapping[str, t.Any], move_id: str, flags: t.Sequence[str], page_server: t.Optional[tuple[str, int]],
    timeout_s: float, gone: t.Callable[[], bool],
) -> None:  # fmt: skip
    """Restore and hold: returns when the whole tree stands still in the hook, and has said so in the journal.

    ``gone``: whether the source has hung up; there is no use in waiting then.
    """
    name, directory = definition["name"], paths.move_dir(move_id)
    lazy = page_server is not None
    argv = criu_commands.restore(
        container_parts.runtime_command(definition), name, paths.bundle_dir(name), f"{directory}/images",
        f"{directory}/work", container_parts.pid_file(name), flags=flags, lazy=lazy,
    )  # fmt: skip
    argv = container_parts.with_criu_config(name, argv)
    if page_server is not None:
        daemon = criu_commands.lazy_pages(page_server[0], page_server[1], f"{directory}/images")
        argv = criu_commands.restore_with_lazy_pages(daemon, argv, directory)
    _tell(container_parts.incoming_fifo(name), json.dumps({"argv": argv}))
    try:
        _wait_for_hold(definition, move_id, timeout_s, gone)
    except CnvmError:
        # Whatever came up must not run: the source goes on, and need not be able to tell us.
        freezer.kill(paths.unit_cgroup(name))
        raise
    arrived(name, move_id)


def arrived(name: str, move_id: str, **learnt: t.Any) -> dict[str, t.Any]:
    """All is here that the container needs to go on. From now on only the source's word gives it up; the journal.

    ``learnt``: what else is to be noted.
    """
    journal = {**_journal(name, move_id), **learnt, "state": records.TARGET_PREPARED}
    files.write_json(paths.journal_file(name), journal)
    return journal


def _wait_for_hold(
    definition: t.Mapping[str, t.Any], move_id: str, timeout_s: float, gone: t.Callable[[], bool]
) -> None:
    """Until the hook says that all is restored and stands still."""
    directory = paths.move_dir(move_id)
    _wait_for(
        lambda: os.path.exists(f"{directory}/prepared"), definition, move_id, timeout_s, "The restore did not succeed",
        gone,
    )  # fmt: skip


def activate(host: Host, name: str, journal: t.Mapping[str, t.Any], timeout_s: float) -> dict[str, t.Any]:
    """The source has committed: write that it is ours, plug in, let it run, and see that it runs.

    HostError when it does not come alive; the caller decides (``give_back``). ``running_ms``: from the owner record
    on the disk to the restored processes running.
    """
    definition, move_id = ownership.read_definition(name), journal["move_id"]
    handover.check_not_given_back(name, journal)
    if journal["mode"] == "cold":
        _check_whole(name, journal)
        return _activate_cold(host, name, journal, timeout_s)
    directory = paths.move_dir(move_id)
    if not is_alive(name, journal) or not os.path.exists(f"{directory}/prepared"):
        raise HostError(f"The restored copy of {name} that was held here is gone.", hint="It is not started anew.")
    if not os.path.exists(f"{directory}/verdict") and not criu.restoring(move_id):
        # What it restored is still here, but nobody can let it run. Waiting for that would only prolong the freeze.
        raise HostError(f"CRIU was killed while it held the restored copy of {name}.", hint="It is not started anew.")
    start = time.monotonic()
    handover.own(name, journal)
    spec = container_parts.endpoint(definition)
    if spec is not None and not netns.is_attached(spec):
        netns.attach(host, spec)
    if not os.path.exists(f"{directory}/verdict"):
        _tell(f"{directory}/answer", "go")
    _wait_for(lambda: _alive(definition, directory), definition, move_id, timeout_s, f"{name} did not come alive")
    running_ms = round((time.monotonic() - start) * 1000, 1)
    container_parts.apply_limits(definition)
    files.write_json(paths.journal_file(name), {**journal, "state": records.TARGET_ACTIVE})
    files.remove_file(container_parts.incoming_fifo(name))
    return {"running_ms": running_ms, "generation": journal["generation"] + 1}


def _activate_cold(host: Host, name: str, journal: t.Mapping[str, t.Any], timeout_s: float) -> dict[str, t.Any]:
    """The container came without memory: own it, and start it if it ran on the source."""
    start = time.monotonic()
    handover.own(name, journal)
    definition = ownership.read_definition(name)
    if container_units.write_policy(definition):
        container_units.reload(host)
    if journal.get("running"):
        host.run(["systemctl", "start", paths.unit_name(name)], timeout_s=timeout_s)
        end = start + timeout_s
        while not freezer.populated(paths.payload_cgroup(name)):
            if container_units.has_done_its_work(definition, container_units.states(host, [name])[name]):
                break
            if time.monotonic() > end:
                raise HostError(f"{name} does not start.", hint=f"See 'journalctl -u {paths.unit_name(name)}'.")
            time.sleep(0.01)
    files.write_json(paths.journal_file(name), {**journal, "state": records.TARGET_ACTIVE})
    return {"running_ms": round((time.monotonic() - start) * 1000, 1), "generation": journal["generation"] + 1}


def announce(host: Host, name: str) -> None:
    """Repeat that the address is here now; a first frame may be lost while bridges learn."""
    spec = container_parts.endpoint(ownership.read_definition(name))
    if spec is not None:
        netns.announce(host, spec, _ANNOUNCE_S)


def drained(journal: t.Mapping[str, t.Any], timeout_s: float) -> dict[str, bool]:
    """Waits for the end of the daemon that fetches pages: ``ended``, and ``drained`` if it got them all (code 0)."""
    path = f"{paths.move_dir(journal['move_id'])}/lazy.rc"
    end = time.monotonic() + timeout_s
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)
    return {"ended": os.path.exists(path), "drained": files.text_of(path).strip() == "0"}


def is_alive(name: str, journal: t.Mapping[str, t.Any]) -> bool:
    """Whether the copy that came with this move (not one of an earlier boot) still has processes."""
    if journal["mode"] == "cold":
        return not _may_be_lost(journal)
    return journal["boot_id"] == movedir.boot_id() and freezer.populated(paths.payload_cgroup(name))


def has_run(name: str, journal: t.Mapping[str, t.Any]) -> bool:
    """Whether it has come alive here. What it did is lost with its files, where those were not all on the disk."""
    return bool(journal["state"] == records.TARGET_ACTIVE) and not _may_be_lost(journal)


def has_arrived(name: str, journal: t.Mapping[str, t.Any]) -> bool:
    """Whether what is prepared here is whole: it is noted as prepared only then."""
    return True


def keep(host: Host, name: str, journal: t.Mapping[str, t.Any]) -> None:
    """Have the writable layer on the disk, and note that it is. HostError when a part of it may be lost."""
    _check_whole(name, journal)
    if not journal.get("kept"):
        _sync(host, name)
        files.write_json(paths.journal_file(name), {**journal, "kept": True})


def _sync(host: Host, name: str) -> None:
    host.run(["sync", "-f", paths.workload_dir(name)])


def _may_be_lost(journal: t.Mapping[str, t.Any]) -> bool:
    """Whether this host has started anew before all that came was on its disk."""
    return not journal.get("kept") and bool(journal["boot_id"] != movedir.boot_id())


def _check_whole(name: str, journal: t.Mapping[str, t.Any]) -> None:
    if _may_be_lost(journal):
        raise HostError(
            f"This host started anew before all files of {name} were on its disk.",
            hint=f"{journal['peer']} still has them, and goes on with it.",
        )


def statistics(journal: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """CRIU's numbers of the restore."""
    directory = paths.move_dir(journal["move_id"])
    return {"criu": criu.statistics(f"{directory}/work") or criu.statistics(f"{directory}/images")}


def finish(host: Host, name: str, journal: t.Mapping[str, t.Any]) -> bool:
    """The source has let go: start with the host if it did there, remove the checkpoint and the journal. It may have
    ended meanwhile, and its unit had to wait for this moment to start it anew; whether that was done."""
    noted = files.read_json(paths.journal_file(name)) or {}
    if not noted.get("kept"):
        # A source that comes later and finds no journal here removes what it has.
        _sync(host, name)
    container_parts.remove_criu_config(name)
    container_units.enable(name, bool(journal.get("enabled")))
    movedir.remove(host, journal["move_id"])
    movedir.end_journal(name)
    return container_units.start_again(host, {**journal, "anew": noted.get("anew")})


def end_copy(host: Host, name: str, journal: t.Mapping[str, t.Any]) -> None:
    """Kill a copy that can never be whole. Its writable layer stays: ``finish`` starts it anew, if it had not ended by
    itself."""
    ran = journal["state"] == records.TARGET_ACTIVE
    if not ran or (journal["boot_id"] == movedir.boot_id() and container_units.is_wanted(host, journal)):
        files.write_json(paths.journal_file(name), {**journal, "anew": True})
    # Of one that came without memory nobody has written it yet.
    if journal["mode"] == "cold" and container_units.write_policy(ownership.read_definition(name)):
        container_units.reload(host)
    _kill(host, name, journal["move_id"])


def give_up(host: Host, name: str, journal: t.Mapping[str, t.Any]) -> None:
    """Nothing of the container stays here. Only before its owner record names this host."""
    move_id = journal["move_id"]
    directory = paths.move_dir(move_id)
    if os.path.isdir(directory) and not os.path.exists(f"{directory}/verdict"):
        _tell(f"{directory}/answer", "abort", wait_s=0)
        _tell(container_parts.incoming_fifo(name), json.dumps({"abort": True}), wait_s=0)
    _kill(host, name, move_id)
    movedir.remove(host, move_id)
    owner = handover.check_not_owned(name)
    for directory in (paths.bundle_dir(name), paths.upper_dir(name), paths.layer_work_dir(name)):
        files.remove_tree(directory)
    files.remove_file(paths.definition_file(name))
    building.remove_unfinished(paths.IMAGES)
    movedir.end_journal(name)
    if owner is None and not os.listdir(paths.workload_dir(name)):
        os.rmdir(paths.workload_dir(name))


def _kill(host: Host, name: str, move_id: str) -> None:
    unit = paths.unit_cgroup(name)
    criu.kill_for(move_id)
    if not freezer.kill(unit):
        raise HostError(
            f"Processes of {name} on this host do not die.", hint=f"See 'systemctl status {paths.unit_name(name)}'."
        )
    host.run(["systemctl", "stop", paths.unit_name(name)], check=False, timeout_s=60)
    host.run(["systemctl", "reset-failed", paths.unit_name(name)], check=False)
    definition = files.read_json(paths.definition_file(name))
    if definition is not None:
        container_parts.forget_runtime(host, definition)
        container_parts.network_down(host, definition)
    container_parts.unmount_layers(host, name)
    if os.path.isdir(paths.run_dir(name)):
        shutil.rmtree(paths.run_dir(name), ignore_errors=True)


def _journal(name: str, move_id: str) -> dict[str, t.Any]:
    journal = files.read_json(paths.journal_file(name))
    if journal is None or journal.get("move_id") != move_id:
        raise Refused(f"This host knows nothing of the move {move_id} of {name}.")
    return journal


def _tell(fifo: str, text: str, wait_s: float = 5.0) -> bool:
    """Write a line into a FIFO that somebody reads or is about to read; whether somebody did."""
    end = time.monotonic() + wait_s
    while True:
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if time.monotonic() >= end:
                if wait_s:
                    raise HostError(f"Nobody reads {fifo}: {error}.") from error
                return False
            time.sleep(0.001)
    try:
        os.write(fd, text.encode() + b"\n")
    finally:
        os.close(fd)
    return True


def _restore_log(move_id: str) -> str:
    """runc writes CRIU's log into the work path, which is the images' with lazy pages."""
    for place in ("work", "images"):
        path = f"{paths.move_dir(move_id)}/{place}/restore.log"
        if os.path.exists(path):
            return path
    return f"{paths.move_dir(move_id)}/work/restore.log"


def _alive(definition: t.Mapping[str, t.Any], directory: str) -> bool:
    """Restored to the end and running: what a runtime says is no proof, it says 'running' while the hook holds."""
    return (
        os.path.exists(f"{directory}/verdict")
        and "Tasks resumed" in criu.read_end(_restore_log(os.path.basename(directory)))
        and container_parts.init_pid(definition) > 0
        and freezer.all_run(paths.payload_cgroup(definition["name"]))
    )


def _wait_for(
    condition: t.Callable[[], bool], definition: t.Mapping[str, t.Any], move_id: str, timeout_s: float, what: str,
    gone: t.Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Until ``condition``; HostError with CRIU's own words when the unit ends before, or time is up."""
    name = definition["name"]
    end = time.monotonic() + timeout_s
    looked = 0.0
    while not condition():
        now = time.monotonic()
        dead = False
        if now - looked > 0.05:
            looked, dead = now, not freezer.populated(paths.unit_cgroup(name))
            if gone():
                raise PeerError(f"{what}: the source has hung up.")
        if (dead or now > end) and not condition():
            said = criu.failure(_restore_log(move_id))
            reason = said["error"] or (
                f"its unit {paths.unit_name(name)} ended" if dead else f"no end in {timeout_s:g} s"
            )
            movedir.keep_logs(move_id)
            raise HostError(
                f"{what}: {reason}.",
                hint=said["advice"] or f"See {paths.move_log_dir(move_id)}/restore.log.",
                criu_error=said["error"],
                log=f"{paths.move_log_dir(move_id)}/restore.log",
            )
        time.sleep(0.001)


# --------------------------------------------------------------------------------------------------------------------
# On the wire
# --------------------------------------------------------------------------------------------------------------------
def _op_image(call: Call) -> dict[str, t.Any]:
    """Receive the container's image; it must be what its digest says."""
    description, name = call.args["description"], call.args["name"]
    if description.get("digest") != ownership.read_definition(call.name)["image"]:
        raise PeerError(f"{call.name} is not made of the image {description.get('digest')!r}.")
    if name:
        check_name(name, "image_name")

    def waits() -> bool:
        """Another container may be bringing it just now: the source hears why nothing of its stream is taken."""
        call.tell(0)
        return not call.gone()

    call.receive(lambda file: receive_image(description, name, file, waits=waits))
    return {}


def _op_layer(call: Call) -> dict[str, t.Any]:
    """Receive the writable layer, or what has changed in it. The container may stand still meanwhile, so nothing here
    waits for the disk (see ``keep``)."""
    return {"bytes": call.receive(lambda file: receive_layer(call.name, file, call.args["removals"]))}


def _op_prepare(call: Call) -> dict[str, t.Any]:
    """Everything but the checkpoint."""
    prepare(call.host, ownership.read_definition(call.name), call.move_id)
    return {}


def _op_arrived(call: Call) -> dict[str, t.Any]:
    """All that a stopped container has is here. ``running``: whether it was stopped for the move."""
    arrived(call.name, call.move_id, running=bool(call.args["running"]))
    return {}


def _op_keep(call: Call) -> dict[str, t.Any]:
    """It runs here, and the source is about to remove its own."""
    keep(call.host, call.name, call.journal)
    return {}


def _op_images(call: Call) -> dict[str, t.Any]:
    """Receive the checkpoint."""
    return {"bytes": call.receive(lambda file: receive_images(call.move_id, str(call.args["part"]), file))}


def _op_restore(call: Call) -> dict[str, t.Any]:
    """Restore and hold. With a stream the checkpoint comes first: one round trip less while frozen."""
    server, flags = call.args.get("page_server"), tuple(call.args["flags"])
    if flags not in criu_commands.RESTORE_FLAGS:
        raise PeerError(f"{' '.join(map(str, flags))} is nothing that a source decides.")
    freezer.hurry()
    if call.has_stream:
        _op_images(call)
    restore(
        ownership.read_definition(call.name), call.move_id, flags,
        (str(server[0]), int(server[1])) if server else None, float(call.args["limit_s"]), call.gone,
    )  # fmt: skip
    return {}


OPERATIONS: t.Mapping[str, t.Callable[[Call], dict[str, t.Any]]] = {
    "image": _op_image,
    "layer": _op_layer,
    "prepare": _op_prepare,
    "arrived": _op_arrived,
    "keep": _op_keep,
    "images": _op_images,
    "restore": _op_restore,
}
