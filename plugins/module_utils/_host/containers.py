# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The containers of a host: seen all at once, brought to what is wanted one by one, started together."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import typing as t
import uuid

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, Refused
from .._net.endpoint import check_address, forwards_from
from .._oci.definition import DEFAULTS, IN_PLACE, normalise_all
from .._oci.plan import Plan, Seen, plan
from .._oci.users import Account
from . import archive, container_parts, container_report, container_units, files, images, netns, ownership
from .ownership import Newcomer, Registry
from .system import Host

_START_TIMEOUT_S = 30.0
_SETTLE_S = 0.3
# Starts that a container may need until its port answers (a service that waits for another one ends and tries again).
_TRIES = 4
Progress = t.Callable[[str], None]


# --------------------------------------------------------------------------------------------------------------------
# What a container finds in its files
# --------------------------------------------------------------------------------------------------------------------
def name_servers(text: str) -> list[str]:
    """The servers in a resolv.conf that a container can reach too: it has IPv4 only, and not the host's loopback."""
    found = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ") and len(line.split()) > 1]
    return [server for server in found if not server.startswith("127.") and ":" not in server]


def _host_name_servers() -> list[str]:
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            servers = name_servers(file.read())
            if servers:
                return servers
    return []


def _first_files(definition: t.Mapping[str, t.Any]) -> list[tuple[str, str, int, int, int]]:
    """(path, text, mode, uid, gid) of what a container is given before it starts for the first time."""
    hostname = definition["hostname"]
    short = hostname.split(".")[0]
    own = f"{definition['address'] or '127.0.1.1'}\t{hostname}{' ' + short if short != hostname else ''}\n"
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"
    servers = definition.get("dns") or (_host_name_servers() if definition["address"] else [])
    return [
        ("/etc/", "", 0o755, 0, 0),
        ("/etc/hostname", f"{hostname}\n", 0o644, 0, 0),
        ("/etc/hosts", hosts, 0o644, 0, 0),
        ("/etc/resolv.conf", "".join(f"nameserver {server}\n" for server in servers), 0o644, 0, 0),
    ]


def _login_account(definition: t.Mapping[str, t.Any], root: str) -> Account:
    """Whose keys ``authorized_keys`` are: ``login_user``, else the image's, else root."""
    process = (images.record(definition["image"]) or {}).get("process") or {}
    user = str(definition.get("login_user") or process.get("login_user") or "root")
    return container_parts.account_of(root, user, f"containers: {definition['name']}: login_user")


def _key_files(definition: t.Mapping[str, t.Any], root: str) -> list[tuple[str, str, int, int, int]]:
    account = _login_account(definition, root)
    home = account.home.rstrip("/")
    text = "".join(f"{line}\n" for line in definition["authorized_keys"])
    return [
        (f"{home}/", "", 0o755, account.uid, account.gid),
        (f"{home}/.ssh/", "", 0o700, account.uid, account.gid),
        (f"{home}/.ssh/authorized_keys", text, 0o600, account.uid, account.gid),
    ]


def write_inside(root: str, wanted: t.Sequence[tuple[str, str, int, int, int]], what: str) -> None:
    """Write files (a name that ends in ``/`` is a directory) into a container's tree. Links in it lead nowhere else,
    and a last part that is a link is replaced."""

    def work() -> None:
        for path, text, mode, uid, gid in wanted:
            if path == "/":
                continue
            if path.endswith("/"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path.rstrip("/"), mode)
                    os.chown(path.rstrip("/"), uid, gid, follow_symlinks=False)
                continue
            temporary = f"{path}.cnvm-new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                data = text.encode()
                while data:
                    data = data[os.write(fd, data) :]
                os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)
            os.rename(temporary, path)

    archive.inside(root, work, what)


def write_contents(
    definition: t.Mapping[str, t.Any], keys: t.Collection[str], before: t.Optional[t.Mapping[str, t.Any]] = None
) -> None:
    """Write what follows from ``keys`` of the definition into the container's tree (its layers are mounted).

    ``before``: the definition that it had; another user than the one of now loses the keys.
    """
    root = container_parts.rootfs(definition["name"])
    wanted: list[tuple[str, str, int, int, int]] = []
    if {"hostname", "address", "dns"} & set(keys):
        wanted += _first_files(definition)
    if {"authorized_keys", "login_user"} & set(keys) and (definition["authorized_keys"] or "created" not in keys):
        wanted += _key_files(definition, root)
    # Another image may have another login user.
    if before is not None and before["authorized_keys"] and {"login_user", "image"} & set(keys):
        now = _key_files(definition, root)
        try:
            lost = _key_files({**before, "authorized_keys": []}, root)
        except InputError:
            lost = []
        if not lost or lost[-1][0] != now[-1][0]:
            wanted += [*lost, *now]
    if wanted:
        write_inside(root, wanted, f"Writing the files of container {definition['name']!r}")


# --------------------------------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------------------------------
def check_limits(item: t.Mapping[str, t.Any], there: t.Collection[str]) -> None:
    """InputError where a limit needs a controller that the host does not have."""
    for key, controller in (("memory_mib", "memory"), ("cpus", "cpu"), ("pids_limit", "pids")):
        if item.get(key) is not None and controller not in there:
            raise InputError(
                f"containers: {item['name']}: {key} needs the cgroup controller {controller!r}, which this host lacks.",
                hint=f"It has: {', '.join(there) or 'none'}. Leave {key} out, or give the host that controller.",
            )


def check_mounts(item: t.Mapping[str, t.Any]) -> None:
    """InputError where a directory to mount is not there: a runtime would make an empty one."""
    for mount in item["mounts"]:
        if mount["type"] == "bind" and not os.path.exists(mount["source"]):
            raise InputError(
                f"containers: {item['name']}: mounts: there is no {mount['source']} on this host.",
                hint="Create it first.",
            )


# --------------------------------------------------------------------------------------------------------------------
# Bringing them to what is wanted
# --------------------------------------------------------------------------------------------------------------------
class Batch:
    """One call of the module: all of the host's containers that it names."""

    def __init__(
        self,
        host: Host,
        items: t.Sequence[t.Mapping[str, t.Any]],
        registry: Registry,
        *,
        restart_on_change: bool,
        image_change: bool,
    ) -> None:
        self.host = host
        self.items = items
        self.restart_on_change = restart_on_change
        self.image_change = image_change
        self.registry = registry
        registry.leaving = {item["name"] for item in items if item["state"] == "absent"}
        self.warnings = registry.warnings
        self.reload = False
        self._seen: dict[str, Seen] = {}
        # How often systemd had started each anew when we began to wait for it.
        self.tries: dict[str, int] = {}

    # -- deciding ---------------------------------------------------------------------------------------------------
    def seen(self) -> dict[str, Seen]:
        """All of them as they are."""
        names = [item["name"] for item in self.items]
        known = set(ownership.names(ownership.CONTAINER))
        units = container_units.states(self.host, [name for name in names if name in known])
        host_id = str(self.registry.identity["host_id"])
        return {
            name: container_report.see(name, host_id, units.get(name, {})) if name in known else Seen()
            for name in names
        }

    def locate(self, seen: dict[str, Seen]) -> dict[str, Seen]:
        """The same, with the true place of those that are elsewhere or not known here."""
        gone_away = {name: one.elsewhere for name, one in seen.items() if one.elsewhere}
        wanted = {
            item["name"]: Newcomer(address=item["address"])
            for item in self.items
            if seen[item["name"]].definition is None and item["state"] != "absent"
        }
        found = dict(seen)
        for name, holder in self.registry.locate(gone_away, wanted).items():
            owner = None if name in wanted and not holder else seen[name].owner
            found[name] = Seen(elsewhere=holder, owner=owner, moving=seen[name].moving)
        return found

    def decide(self) -> tuple[dict[str, Seen], list[Plan]]:
        """What each container needs. Raises before anything is changed when one of them cannot be had."""
        seen = self._seen = self.locate(self.seen())
        controllers = container_parts.controllers()
        plans = []
        for item in self.items:
            one = seen[item["name"]]
            digest = image_name = ""
            if item["state"] != "absent" and not one.elsewhere:
                digest, image_name = self.image_of(item, one)
                check_limits(item, controllers)
                check_mounts(item)
                self.check_network(item, one)
                container_parts.runtime_command(item)
            made = plan(
                item,
                one,
                digest=digest,
                image_name=image_name,
                new_uuid=str(uuid.uuid4()),
                restart_on_change=self.restart_on_change,
                image_change=self.image_change,
            )
            if made.elsewhere and item["state"] == "absent":
                self.warnings.append(f"Container {made.name} is at {made.elsewhere}; it was not removed.")
            if made.outdated:
                self.warnings.append(
                    f"Container {made.name} goes on with the image it was made of; {image_name} is another one now. "
                    "image_change: true puts it on the new one."
                )
            plans.append(made)
        return seen, plans

    def image_of(self, item: t.Mapping[str, t.Any], seen: Seen) -> tuple[str, str]:
        """(digest, name) of the item's image; one that a container was made of need not have its name any more."""
        digest, name = images.resolve(item["image"])
        if digest:
            return digest, name
        before = seen.definition or {}
        if item["image"] in (before.get("image"), before.get("image_name")):
            return before["image"], before.get("image_name") or ""
        known = ", ".join(sorted(images.names())) or "none"
        raise InputError(
            f"containers: {item['name']}: image: this host has no image {item['image']!r}.",
            hint=f"It has: {known}. Bring it with the module bundle or the role cnvm_image.",
        )

    def check_network(self, item: t.Mapping[str, t.Any], seen: Seen) -> None:
        """InputError or Refused where its address or its ports cannot be had on this host."""
        where = f"containers: {item['name']}: address"
        if not item["address"]:
            return
        overlay = self.registry.overlay
        if overlay is None:
            raise InputError(
                f"{where}: this host has no overlay network.", hint="Run the role overlay, or leave address out."
            )
        check_address(item["address"], overlay, where)
        before = seen.definition or {}
        if before and before.get("address") != item["address"]:
            self.registry.check_address(item["name"], item["address"])
        if item["ports"] and forwards_from(before.get("ports")) != forwards_from(item["ports"]):
            spec = container_parts.endpoint({**item, "uuid": before.get("uuid") or "new"})
            if spec is not None:
                netns.check_forwards(spec, self.registry.leaving)

    # -- doing ------------------------------------------------------------------------------------------------------
    def apply(self, plans: t.Sequence[Plan]) -> None:
        """Do what was decided. Each container is locked while it is changed; a move of it is refused meanwhile."""
        by_name = {item["name"]: item for item in self.items}
        # Removed first: another one may get the address or the ports.
        todo = sorted((one for one in plans if one.changed), key=lambda one: not one.remove)
        with contextlib.ExitStack() as held:
            for name in sorted(one.name for one in todo):
                held.enter_context(files.lock(paths.lock_file(name), f"changing container {name!r}"))
            self.see_again([one.name for one in todo])
            for one in todo:
                if one.create and ownership.begun(one.name, ownership.CONTAINER):
                    # A creation that was cut off: its layers may still be mounted, over another image.
                    self.remove(one.name)
            self.registry.claim(
                {
                    one.name: Newcomer(one.definition["uuid"], one.definition["address"])
                    for one in todo
                    if one.create and one.definition
                }
            )
            try:
                self.stop([one.name for one in todo if one.stop])
                for one in todo:
                    if one.remove:
                        self.remove(one.name)
                    elif one.create:
                        self.create(one)
                    elif one.changes and one.definition is not None:
                        self.change(one)
                    if one.enable is not None:
                        container_units.enable(one.name, one.enable)
            except BaseException:
                self.registry.give_up(self.undo)
                # What was stopped for its change alone runs on as it is.
                self.go_on([one.name for one in todo if one.restart])
                raise
            if self.reload:
                container_units.reload(self.host)
            self.start([one.name for one in todo if one.start])
        self.wait([by_name[one.name] for one in plans if not one.elsewhere])

    def see_again(self, names: t.Collection[str]) -> None:
        """Refused when somebody has changed or moved one since it was decided what to do with it."""
        for name, seen in self._seen.items():
            if name not in names:
                continue
            now = container_report.see(name, str(self.registry.identity["host_id"]), {})
            if now.moving or (now.here, now.definition) != (seen.here, seen.definition):
                raise Refused(
                    f"Container {name!r} was changed by somebody else a moment ago; nothing is changed.",
                    hint="Run it again.",
                )

    def undo(self, name: str) -> None:
        """Unmount what the creation of a container that failed had mounted."""
        with contextlib.suppress(CnvmError):
            container_parts.unmount_layers(self.host, name)

    def create(self, one: Plan) -> None:
        """Directories, records, layers, first files. It becomes ours with the owner record, last."""
        definition = t.cast("dict[str, t.Any]", one.definition)
        name = one.name
        files.write_json(paths.definition_file(name), definition)
        container_parts.mount_layers(self.host, definition)
        write_contents(definition, ("hostname", "authorized_keys", "created"))
        container_parts.write_config(definition)
        if not one.start:
            container_parts.unmount_layers(self.host, name)
        self.reload = container_units.write_policy(definition) or self.reload
        self.registry.own(name, definition["uuid"])

    def change(self, one: Plan) -> None:
        """Take over a new definition: in the running container where that is possible."""
        definition = t.cast("dict[str, t.Any]", one.definition)
        name = one.name
        running = not one.stop and container_parts.init_pid(definition) != 0
        hard = not IN_PLACE.issuperset(one.changes)
        if hard or {"authorized_keys", "login_user"} & set(one.changes):
            if "image" in one.changes:
                # A run that failed before it was to start it has left them mounted, over the image that it had.
                container_parts.unmount_layers(self.host, name)
            mounted = container_parts.layers_mounted(name)
            container_parts.mount_layers(self.host, definition)
            try:
                if hard:
                    # A user that it does not have is refused here, while it can go on as it was.
                    container_parts.write_config(definition)
                write_contents(definition, one.changes, files.read_json(paths.definition_file(name)))
            finally:
                if not mounted:
                    container_parts.unmount_layers(self.host, name)
        if running:
            if {"memory_mib", "cpus", "pids_limit"} & set(one.changes):
                container_parts.apply_limits(definition)
            if "ports" in one.changes:
                spec = container_parts.endpoint(definition)
                if spec is not None and spec.ports:
                    netns.forwards_up(self.host, spec)
                else:
                    netns.forwards_down(self.host, name)
        files.write_json(paths.definition_file(name), definition)
        self.reload = container_units.write_policy(definition) or self.reload

    def stop(self, names: t.Sequence[str]) -> None:
        """Stop units, all at once; each takes as long as its container may."""
        if names:
            units = [paths.unit_name(name) for name in names]
            self.host.run(["systemctl", "stop", "--", *units])
            # One that had to be killed was stopped as wanted, and did not fail.
            self.host.run(["systemctl", "reset-failed", "--", *units], check=False)

    def go_on(self, names: t.Sequence[str]) -> None:
        """Start units again, and do not wait for them."""
        if names:
            units = [paths.unit_name(name) for name in names]
            self.host.run(["systemctl", "start", "--no-block", "--", *units], check=False)

    def remove(self, name: str) -> None:
        """Remove a container that is stopped, with its writable layer."""
        definition = files.read_json(paths.definition_file(name)) or {"name": name}
        if definition.get("image"):
            container_parts.forget_runtime(self.host, definition)
            container_parts.network_down(self.host, definition)
        container_parts.unmount_layers(self.host, name)
        self.reload = container_units.remove(name) or self.reload
        self.host.run(["systemctl", "reset-failed", "--", paths.unit_name(name)], check=False)
        files.remove_tree(paths.run_dir(name))
        # The records last: what is left of a layer, of a removal that was cut off, is never taken for a new one's.
        for directory in (paths.bundle_dir(name), paths.upper_dir(name), paths.layer_work_dir(name)):
            files.remove_tree(directory)
        ownership.forget(name)

    def start(self, names: t.Sequence[str]) -> None:
        """Start units, all at once, and see that their containers run."""
        if not names:
            return
        units = [paths.unit_name(name) for name in names]
        # A unit that gave up after too many failures would not start.
        self.host.run(["systemctl", "reset-failed", "--", *units], check=False)
        self.host.run(["systemctl", "start", "--", *units], check=False)
        # One that systemd was about to try again has tried now, on request, and counts from there.
        tries = self._tries(names)
        self.tries.update(tries)
        definitions = [ownership.read_definition(name) for name in names]
        self._wait_until_settled(definitions, time.monotonic() + _START_TIMEOUT_S)
        # A command that is wrong ends within a moment, and a first process alone proves nothing yet.
        time.sleep(_SETTLE_S)
        self._wait_until_settled(definitions, time.monotonic() + _START_TIMEOUT_S)
        # What runs now may be another try of systemd.
        for name, count in self._tries(names).items():
            if count != tries[name]:
                raise self.not_up(name, "it ended at once")

    def _tries(self, names: t.Sequence[str]) -> dict[str, int]:
        """How often systemd has started each anew."""
        seen = container_units.states(self.host, names)
        return {name: int(unit.get("NRestarts") or 0) for name, unit in seen.items()}

    def _wait_until_settled(self, definitions: t.Sequence[t.Mapping[str, t.Any]], end: float) -> None:
        waiting = list(definitions)
        while waiting:
            waiting = [definition for definition in waiting if not self.settled(definition)]
            if waiting and time.monotonic() > end:
                raise self.not_up(waiting[0]["name"], f"nothing runs after {_START_TIMEOUT_S:.0f} s")
            if waiting:
                time.sleep(0.02)

    def settled(self, definition: t.Mapping[str, t.Any]) -> bool:
        """Whether a container runs or has done its work; not yet while it comes up or is cleared away. HostError when
        it failed instead."""
        if container_parts.init_pid(definition):
            return True
        unit = container_units.states(self.host, [definition["name"]])[definition["name"]]
        if container_units.has_done_its_work(definition, unit):
            return True
        if unit.get("ActiveState") in ("failed", "inactive") or unit.get("SubState", "").startswith("auto-restart"):
            raise self.not_up(definition["name"], "it ended at once")
        return False

    def wait(self, items: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        """Wait for the ports of all that have to run."""
        started = time.monotonic()
        waiting = [item for item in items if item["wait_for"] and item["state"] == "running"]
        self.tries = {**self._tries([item["name"] for item in waiting]), **self.tries}
        while waiting:
            waiting = [item for item in waiting if not _listens(item)]
            for item in waiting:
                if time.monotonic() - started > item["wait_for"]["timeout_s"]:
                    raise self.not_up(item["name"], f"nobody answers on its port {item['wait_for']['port']}")
            if waiting:
                self.check_alive([item["name"] for item in waiting])
                time.sleep(0.1)

    def check_alive(self, names: t.Sequence[str]) -> None:
        """HostError for one that ends again and again: waiting on would not help it."""
        for name, unit in container_units.states(self.host, names).items():
            again = int(unit.get("NRestarts") or 0) - self.tries[name]
            if unit.get("ActiveState") == "failed" or again >= _TRIES:
                raise self.not_up(name, "it ends again and again")

    def not_up(self, name: str, why: str) -> HostError:
        """The error with the container's last words."""
        log = self.host.run(
            ["journalctl", "--no-pager", "-o", "cat", "-n", "15", "-u", paths.unit_name(name)], check=False
        )
        last = [line for line in log.stdout.splitlines() if line.strip()][-15:]
        return HostError(
            f"Container {name!r} is not up: {why}.",
            hint=f"See 'journalctl -u {paths.unit_name(name)}'.",
            container=name,
            log=last,
        )


def _listens(item: t.Mapping[str, t.Any]) -> bool:
    """Whether somebody accepts connections on the port that is waited for."""
    port = item["wait_for"]["port"]
    if item["address"]:
        try:
            with socket.create_connection((item["address"], port), timeout=1):
                return True
        except OSError:
            return False
    pid = container_parts.init_pid(item)
    for file in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{file}", encoding="ascii") as table:
            for line in table.read().splitlines()[1:]:
                fields = line.split()
                # State 0A is LISTEN.
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
    return False


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The work of the module container: bring the containers to what is wanted."""
    return bring_to(
        host,
        params["containers"],
        restart_on_change=params["restart_on_change"],
        image_change=params["image_change"],
        check_mode=check_mode,
        **ownership.asking(params),
    )


def bring_to(
    host: Host,
    items: object,
    *,
    restart_on_change: bool = True,
    image_change: bool = False,
    ignore_unreachable: bool = False,
    ask_timeout_s: float = 10,
    check_mode: bool = False,
) -> dict[str, t.Any]:
    """Bring the containers of ``items`` (as users write them) to what is wanted; the module's result."""
    wanted = normalise_all(items)
    registry = Registry(host, ownership.CONTAINER, ignore_unreachable=ignore_unreachable, ask_timeout_s=ask_timeout_s)
    batch = Batch(host, wanted, registry, restart_on_change=restart_on_change, image_change=image_change)
    seen, plans = batch.decide()
    changed = any(one.changed for one in plans)
    if not check_mode:
        batch.apply(plans)
    reports = {one["name"]: one for one in container_report.report(host, [item["name"] for item in wanted])}
    results = []
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for item, one in zip(wanted, plans):
        was = seen[one.name]
        here = not one.elsewhere
        found = {key: value for key, value in reports.get(one.name, {}).items() if key != "definition"}
        placed = (
            registry.identity["name"] if here and (was.here or one.create) and not one.remove else one.elsewhere or None
        )
        results.append(
            {
                **found,
                "name": one.name,
                "changed": one.changed,
                "actions": one.actions,
                "restarted": one.restart,
                "placement": placed,
                **({"state": "absent"} if one.remove or (not found and here) else {}),
                **({"state": "moved"} if one.elsewhere else {}),
            }
        )
        if one.changed:
            before[one.name] = _shown(was.definition, was.active, was.enabled)
            final = item["state"] == "running" or (
                item["state"] == "present" and (one.start or (was.active and not one.stop))
            )
            enabled = was.enabled if one.enable is None else one.enable
            after[one.name] = _shown(None if one.remove else one.definition or was.definition, final, enabled)
    return {
        "changed": changed,
        "containers": results,
        "diff": {"before": before, "after": after},
        "warnings": batch.warnings,
    }


def _shown(definition: t.Optional[t.Mapping[str, t.Any]], active: bool, enabled: bool) -> dict[str, t.Any]:
    """A container in a diff: what is not as by default. A new one's uuid is not known before it is made."""
    if definition is None:
        return {}
    left_out = {"schema": definition.get("schema"), "uuid": definition.get("uuid"), **DEFAULTS}
    kept = {key: value for key, value in definition.items() if key not in left_out or left_out[key] != value}
    return {**kept, "running": active, "starts_at_boot": enabled}
