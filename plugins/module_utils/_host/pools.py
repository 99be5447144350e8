# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's storage pools on this host: bring them to what is wanted, and tell what there is."""

from __future__ import annotations

import dataclasses
import functools
import grp
import os
import pwd
import stat
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, Refused
from .._libvirt import pool as description
from .._libvirt.pool import PERMISSIONS, Plan, Seen, plan
from . import libvirt
from .files import lock
from .system import Host

LOCK_FILE = f"{paths.RUN}/pools.lock"


@dataclasses.dataclass
class _Job:
    """One pool of a call: what is wanted, what there is, and what is to be done."""

    item: dict[str, t.Any]
    seen: Seen
    plan: Plan
    object: t.Optional[libvirt.Pool] = None
    # As it is stored and as it is active: where it is, a failed restart goes back to both.
    stored: str = ""
    active: str = ""

    @property
    def xml(self) -> str:
        """What a redefinition keeps."""
        return self.stored or self.active


def bring_to(host: Host, items: object, *, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring the pools of ``items`` (as users write them) to what is wanted; the module's result."""
    wanted = description.normalise_all(items)
    if check_mode and not libvirt.available():
        return libvirt.not_yet("pools", wanted)
    # libvirt's users come with it.
    wanted = [_numbers(item) for item in wanted]
    with lock(LOCK_FILE, "the module pool"), libvirt.connect() as connection:
        batch = _Batch(host, connection)
        jobs = batch.decide(wanted)
        if not check_mode:
            for job in _in_order(jobs):
                batch.apply(job)
        return {
            "changed": any(job.plan.changed for job in jobs),
            "pools": [_result(job) for job in jobs],
            "diff": {
                "before": {job.plan.name: _before(job) for job in jobs if job.plan.changed},
                "after": {job.plan.name: _after(job) for job in jobs if job.plan.changed},
            },
            "warnings": batch.warnings,
        }


def _in_order(jobs: t.Iterable[_Job]) -> list[_Job]:
    """What goes, goes first: another one may take its path."""
    return sorted(jobs, key=lambda job: job.item["state"] not in ("absent", "inactive"))


def _numbers(item: dict[str, t.Any]) -> dict[str, t.Any]:
    """With users and groups as numbers, which is what libvirt takes."""
    found = dict(item)
    if item["owner"] is not None and not item["owner"].isdigit():
        try:
            found["owner"] = str(pwd.getpwnam(item["owner"]).pw_uid)
        except KeyError:
            raise HostError(f"Pool {item['name']!r}: this host has no user {item['owner']!r}.") from None
    if item["group"] is not None and not item["group"].isdigit():
        try:
            found["group"] = str(grp.getgrnam(item["group"]).gr_gid)
        except KeyError:
            raise HostError(f"Pool {item['name']!r}: this host has no group {item['group']!r}.") from None
    return found


# -- Looking


def _read(pool: libvirt.Pool) -> tuple[Seen, str, str]:
    """A pool as libvirt has it, without its directory and users; and its XML, as stored and as it is active."""
    found = libvirt.library()
    with libvirt.doing(f"read the pool {pool.name()!r}"):
        stored = str(pool.XMLDesc(found.VIR_STORAGE_XML_INACTIVE)) if pool.isPersistent() else ""
        live = str(pool.XMLDesc(0)) if pool.isActive() else ""
        autostart = bool(pool.autostart()) if stored else False
    seen = Seen(
        config=description.parse(stored) if stored else None,
        live=description.parse(live) if live else None,
        autostart=autostart,
    )
    return seen, stored, live


def _directory(path: str) -> t.Optional[dict[str, str]]:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return {
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": str(found.st_uid),
        "group": str(found.st_gid),
    }


class _Batch:
    """One call. What is asked of libvirt or of the host is asked once, and only when it matters."""

    def __init__(self, host: Host, connection: libvirt.Connection) -> None:
        self.host = host
        self.connection = connection
        self.known = libvirt.pools(connection)
        self.warnings: list[str] = []

    @functools.cached_property
    def running(self) -> list[str]:
        return libvirt.running_xml(self.connection)

    def decide(self, wanted: t.Sequence[dict[str, t.Any]]) -> list[_Job]:
        """The plans for all, or an error before anything is touched."""
        jobs = [self._decide(item) for item in wanted]
        self._check_paths(jobs)
        for job in jobs:
            self._check(job)
        return jobs

    def _decide(self, item: dict[str, t.Any]) -> _Job:
        pool = self.known.get(item["name"])
        seen, stored, active = (Seen(), "", "") if pool is None else _read(pool)
        if item["path"]:
            seen = dataclasses.replace(seen, directory=_directory(item["path"]))
        first = plan(item, seen)
        if first.stop and seen.live and seen.live["type"] in description.MOUNTED:
            path = seen.live["path"]
            users = [text for text in self.running if description.disks_below(text, path)]
            seen = dataclasses.replace(seen, guests=tuple(sorted(map(description.guest_of, users))))
            first = plan(item, seen)
        return _Job(item, seen, first, pool, stored, active)

    def _check_paths(self, jobs: t.Sequence[_Job]) -> None:
        """Refused where a pool is to have the path that another one has by the time when it gets it."""
        moved = {job.plan.name for job in jobs if job.plan.new or "path" in job.plan.changes}
        if not moved:
            return
        has = {name: (_read(pool)[0].config or {}).get("path") for name, pool in self.known.items()}
        for job in _in_order(jobs):
            name, after = job.plan.name, job.plan.description
            has.pop(name, None)
            if after is None:
                continue
            for other, path in has.items():
                if name in moved and path == after["path"]:
                    later = other in moved
                    raise Refused(
                        f"Pool {name!r}: the path {path} is that of the pool {other!r}"
                        f"{', which is moved after it' if later else ''}.",
                        hint="Name that one first; where they exchange paths, give one another path in a call before."
                        if later
                        else "Use that one, or remove it first; its files stay.",
                    )
            has[name] = after["path"]

    def _check(self, job: _Job) -> None:
        """What libvirt would find out halfway, or not at all."""
        name, after = job.plan.name, job.plan.description
        if after is None:
            return
        if job.plan.lost and job.plan.changes:
            self.warnings.append(f"Pool {name!r} loses what this module does not describe: {'; '.join(job.plan.lost)}.")
        if not job.plan.start:
            return
        if after["type"] != "logical" and os.path.exists(after["path"]) and not os.path.isdir(after["path"]):
            raise HostError(f"Pool {name!r}: {after['path']} is no directory.", hint="Choose another path.")
        for device in [after["device"], *after["devices"]]:
            if device and not os.path.exists(device):
                raise HostError(f"Pool {name!r}: this host has no device {device}.", hint="See 'lsblk -p'.")
        if after["type"] == "logical" and not after["devices"] and not self._has_group(after["volume_group"]):
            raise HostError(
                f"Pool {name!r}: this host has no volume group {after['volume_group']!r}.",
                hint="Make it, or name the devices that it is to be made of in devices.",
            )

    def _has_group(self, name: str) -> bool:
        said = self.host.run(["vgs", "--noheadings", "-o", "vg_name", name], check=False, timeout_s=30)
        return said.rc == 0 and name in said.stdout.split()

    # -- Doing

    def apply(self, job: _Job) -> None:
        """The steps of one plan."""
        done, name = job.plan, job.plan.name
        if done.stop:
            with libvirt.doing(f"stop the pool {name!r}"):
                t.cast("libvirt.Pool", job.object).destroy()
        if done.undefine:
            with libvirt.doing(f"remove the pool {name!r}"):
                t.cast("libvirt.Pool", job.object).undefine()
        try:
            if done.define:
                self._define(job)
            if done.start:
                self._start(job)
        except CnvmError as error:
            self._go_back(job, error)
        if done.permissions:
            self._permit(job)
        if done.autostart is not None:
            with libvirt.doing(f"set whether the pool {name!r} starts with the host"):
                t.cast("libvirt.Pool", job.object).setAutostart(int(done.autostart))

    def _define(self, job: _Job) -> None:
        uuid = description.uuid_of(job.xml) if job.xml else ""
        text = description.build(t.cast("dict[str, t.Any]", job.plan.description), job.plan.name, uuid)
        with libvirt.doing(f"define the pool {job.plan.name!r}"):
            job.object = self.connection.storagePoolDefineXML(text, 0)

    def _start(self, job: _Job) -> None:
        found = libvirt.library()
        after = t.cast("dict[str, t.Any]", job.plan.description)
        pool = t.cast("libvirt.Pool", job.object)
        with libvirt.doing(f"make the pool {job.plan.name!r}"):
            if after["type"] == "logical":
                if after["devices"] and not self._has_group(after["volume_group"]):
                    # Refused by libvirt where a device holds something already.
                    pool.build(found.VIR_STORAGE_POOL_BUILD_NO_OVERWRITE)
            elif not os.path.isdir(after["path"]):
                # Only the directory: nothing is ever formatted.
                pool.build(found.VIR_STORAGE_POOL_BUILD_NEW)
        with libvirt.doing(f"start the pool {job.plan.name!r}"):
            pool.create(0)

    def _go_back(self, job: _Job, error: CnvmError) -> t.NoReturn:
        """When a changed pool does not start, what was active is started again; a new one is not left behind."""
        if job.plan.new and job.object is not None:
            try:
                job.object.undefine()
            except libvirt.library().libvirtError:
                pass  # what is told is why it did not start
            raise error
        if not job.plan.restart:
            raise error
        try:
            # What is stored need not be what was active: perhaps it would not start either.
            with libvirt.doing(f"bring back the pool {job.plan.name!r}"):
                job.object = self.connection.storagePoolDefineXML(job.active, 0)
                job.object.create(0)
            with libvirt.doing(f"store the pool {job.plan.name!r} again"):
                job.object = self.connection.storagePoolDefineXML(job.xml, 0)
        except CnvmError as second:
            raise HostError(
                f"{error.message} Nor could it be brought back as it was: {second.message}",
                hint=error.hint,
                **error.details,
            ) from error
        raise HostError(
            f"{error.message} The pool {job.plan.name!r} is active again as it was before.",
            hint=error.hint,
            **error.details,
        ) from error

    def _permit(self, job: _Job) -> None:
        after = t.cast("dict[str, t.Any]", job.plan.description)
        path = after["path"]
        owner, group = (-1 if after[key] is None else int(after[key]) for key in ("owner", "group"))
        try:
            os.chown(path, owner, group)
            if after["mode"] is not None:
                os.chmod(path, int(after["mode"], 8))
        except OSError as error:
            raise HostError(f"Pool {job.plan.name!r}: the permissions of {path} cannot be set: {error}.") from error
        with libvirt.doing(f"read the pool {job.plan.name!r} again"):
            t.cast("libvirt.Pool", job.object).refresh(0)


# -- Telling


def _space(pool: t.Optional[libvirt.Pool], active: bool) -> dict[str, int]:
    if pool is None or not active:
        return {}
    with libvirt.doing(f"tell the room of the pool {pool.name()!r}"):
        dummy, capacity, allocation, available = pool.info()
    return {"capacity_bytes": capacity, "allocation_bytes": allocation, "available_bytes": available}


def _result(job: _Job) -> dict[str, t.Any]:
    state = _state_after(job)
    with libvirt.doing(f"read the pool {job.plan.name!r}"):
        active = bool(job.object is not None and state == "active" and job.object.isActive())
    return {
        "name": job.plan.name,
        "state": state,
        "changed": job.plan.changed,
        "actions": job.plan.actions,
        "restarted": job.plan.restart,
        "path": (job.plan.description or {}).get("path", ""),
        **_space(job.object, active),
    }


def _state_after(job: _Job) -> str:
    state = str(job.item["state"])
    if state == "present":
        return "active" if job.seen.live is not None else "inactive"
    return state


def _before(job: _Job) -> dict[str, t.Any]:
    if not job.seen.there:
        return {"state": "absent"}
    stored, live = job.seen.config, job.seen.live
    shown = {
        "state": "inactive" if live is None else "active",
        "autostart": job.seen.autostart,
        **(stored or live or {}),
    }
    if job.plan.permissions and job.seen.directory:
        shown.update(job.seen.directory)
    differs = {
        key: value
        for key, value in (live or {}).items()
        if key not in PERMISSIONS and stored is not None and stored[key] != value
    }
    return {**shown, "live": differs} if differs else shown


def _after(job: _Job) -> dict[str, t.Any]:
    if job.item["state"] == "absent":
        return {"state": "absent"}
    autostart = job.seen.autostart if job.plan.autostart is None else job.plan.autostart
    known = {key: value for key, value in _before(job).items() if key in PERMISSIONS}
    wanted = job.plan.description or {}
    asked = {key: value for key, value in wanted.items() if key not in PERMISSIONS or value is not None}
    return {"state": _state_after(job), "autostart": autostart, **dict.fromkeys(PERMISSIONS), **known, **asked}


# -- Information


def report(names: t.Optional[t.Sequence[str]] = None, *, volumes: bool = False) -> list[dict[str, t.Any]]:
    """The pools (of ``names``), sorted by name."""
    with libvirt.connect() as connection:
        found = libvirt.pools(connection)
        return [_report(pool, volumes) for name, pool in found.items() if names is None or name in names]


def _report(pool: libvirt.Pool, volumes: bool) -> dict[str, t.Any]:
    seen, stored, active = _read(pool)
    shown = dict(seen.live or seen.config or description.DEFAULTS)
    if shown["path"]:
        shown.update(_directory(shown["path"]) or {})
    return {
        **shown,
        "name": str(pool.name()),
        "uuid": description.uuid_of(stored or active),
        "state": "active" if seen.live else "inactive",
        "autostart": seen.autostart,
        "persistent": seen.config is not None,
        **_space(pool, seen.live is not None),
        **({"volumes": _volumes(pool)} if volumes and seen.live else {}),
    }


def _volumes(pool: libvirt.Pool) -> list[dict[str, t.Any]]:
    with libvirt.doing(f"list the volumes of the pool {pool.name()!r}"):
        # Files come and go without libvirt.
        pool.refresh(0)
        found = []
        for volume in pool.listAllVolumes(0):
            dummy, capacity, allocation = volume.info()
            found.append(
                {
                    "name": str(volume.name()),
                    "path": str(volume.path()),
                    "capacity_bytes": capacity,
                    "allocation_bytes": allocation,
                }
            )
    return sorted(found, key=lambda each: str(each["name"]))
