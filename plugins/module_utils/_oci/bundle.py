# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""config.json of a bundle from outside: read strictly, checked by the rules of the runtime-spec, and reduced to its
process. What would run or open something on the host is refused; what is only another default is left out."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from .._core.errors import InputError
from .config import CAPABILITIES, OCI_VERSION, build

# A config.json has some kilobytes; seccomp profiles make the largest.
MOST_BYTES = 1 << 20
LOGIN_USER = "cnvm.platform.login_user"
_VERSION = re.compile(r"1\.([0-9]{1,9})\.([0-9]{1,9})(-[0-9A-Za-z.-]+)?\Z", re.ASCII)
_NEWEST_MINOR = 3
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
# These make runtimes and CRIU run programs or open files of the host.
_UNSAFE_ANNOTATIONS = ("org.criu.", "run.oci.", "org.systemd.property.", "org.systemd.")
_NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_VIRTUAL = ("proc", "tmpfs", "devpts", "mqueue", "sysfs", "cgroup", "cgroup2")
_LIMITS = "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
_RLIMITS = frozenset(f"RLIMIT_{name}" for name in _LIMITS.split(" "))
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")


@dataclasses.dataclass(frozen=True)
class Process:
    """What an image says of its process. ``user`` is a name or ``UID:GID``, empty for root."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    login_user: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        """As it stands in image.json."""
        return {
            "args": list(self.args),
            "env": list(self.env),
            "cwd": self.cwd,
            "user": self.user,
            "login_user": self.login_user,
        }


def _wrong(where: str, what: str, hint: str) -> InputError:
    return InputError(f"config.json: {where}: {what}", hint=hint)


def _no_twins(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    for key, value in pairs:
        if key in found:
            raise _wrong(key, "is there twice.", "A reader would take one or the other; remove one.")
        found[key] = value
    return found


def parse(data: bytes) -> dict[str, t.Any]:
    """The object in a config.json."""
    if len(data) > MOST_BYTES:
        raise InputError(f"config.json has {len(data)} bytes.", hint=f"Allowed: {MOST_BYTES} at most.")
    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError("config.json starts with a byte order mark.", hint="Save it as UTF-8 without one.")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"config.json is no JSON: {error or 'too deep'}.", hint="Check it with a JSON parser."
        ) from None
    if not isinstance(value, dict):
        raise InputError("config.json holds no object.", hint="See the OCI runtime-spec.")
    return value


def _mapping(value: object, where: str) -> dict[str, t.Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(where, f"{value!r} is no object.", "See the OCI runtime-spec.")
    return value


def _array(value: object, where: str) -> list[t.Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(where, f"{value!r} is no array.", "See the OCI runtime-spec.")
    return value


def _texts(value: object, where: str) -> list[str]:
    found = _array(value, where)
    for one in found:
        if not isinstance(one, str) or "\0" in one:
            raise _wrong(where, f"{one!r} is not allowed.", "Allowed: texts without NUL bytes.")
    return found


def check_args(args: object, where: str) -> tuple[str, ...]:
    """A command: at least its program."""
    found = _texts(args, where)
    if not found or not found[0]:
        raise _wrong(where, "names no program.", "Give the command with its arguments.")
    return tuple(found)


def check_env(env: object, where: str) -> tuple[str, ...]:
    """``NAME=VALUE`` texts."""
    found = _texts(env, where)
    for line in found:
        if not line.partition("=")[0] or "=" not in line:
            raise _wrong(where, f"{line!r} is not allowed.", "Allowed: NAME=VALUE.")
    return tuple(found)


def check_cwd(cwd: object, where: str) -> str:
    """A directory in the container. The proc file system would lead to what the runtime has open (CVE-2024-21626)."""
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd or ".." in cwd.split("/"):
        raise _wrong(where, f"{cwd!r} is not allowed.", "Allowed: an absolute path without '..'.")
    if re.sub("/+", "/", cwd).startswith("/proc"):
        raise _wrong(where, f"{cwd!r} is not allowed.", "Allowed: a directory outside /proc.")
    return cwd


def _id(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32 - 1:
        raise _wrong(where, f"{value!r} is no id.", "Allowed: a whole number from 0 to 4294967294.")
    return value


def _check_process(process: dict[str, t.Any]) -> Process:
    user = _mapping(process.get("user"), "process.user")
    uid, gid = _id(user.get("uid", 0), "process.user.uid"), _id(user.get("gid", 0), "process.user.gid")
    for extra in _array(user.get("additionalGids"), "process.user.additionalGids"):
        _id(extra, "process.user.additionalGids")
    sets = _mapping(process.get("capabilities"), "process.capabilities")
    for name, words in sets.items():
        if name not in _CAPABILITY_SETS:
            raise _wrong(f"process.capabilities.{name}", "is no set.", f"Allowed: {', '.join(_CAPABILITY_SETS)}.")
        for word in _texts(words, f"process.capabilities.{name}"):
            if word not in CAPABILITIES:
                raise _wrong(f"process.capabilities.{name}", f"{word!r} is no capability.", "See capabilities(7).")
    missing = set(sets.get("ambient") or []) - (set(sets.get("inheritable") or []) & set(sets.get("permitted") or []))
    if missing:
        raise _wrong("process.capabilities.ambient", f"{min(missing)} is not inheritable.", "See capabilities(7).")
    seen = set()
    for limit in _array(process.get("rlimits"), "process.rlimits"):
        limit = _mapping(limit, "process.rlimits")
        kind, soft, hard = limit.get("type"), limit.get("soft"), limit.get("hard")
        if not isinstance(kind, str) or kind not in _RLIMITS or kind in seen:
            raise _wrong("process.rlimits", f"{kind!r} is unknown or there twice.", "See getrlimit(2).")
        if not isinstance(soft, int) or not isinstance(hard, int) or soft > hard:
            raise _wrong("process.rlimits", f"{kind}: soft {soft!r}, hard {hard!r}.", "Allowed: soft up to hard.")
        seen.add(kind)
    return Process(
        args=check_args(process.get("args"), "process.args"),
        env=check_env(process.get("env"), "process.env"),
        cwd=check_cwd(process.get("cwd"), "process.cwd"),
        user="" if (uid, gid) == (0, 0) else f"{uid}:{gid}",
    )


def _check_version(config: dict[str, t.Any]) -> None:
    version = config.get("ociVersion")
    match = _VERSION.match(version) if isinstance(version, str) else None
    if not match or int(match.group(1)) > _NEWEST_MINOR or (match.group(3) and int(match.group(1)) == _NEWEST_MINOR):
        raise _wrong("ociVersion", f"{version!r} is not allowed.", f"Allowed: 1.0.0 to 1.{_NEWEST_MINOR}.x.")


def _check_mounts(config: dict[str, t.Any], refused: list[str], left_out: list[str]) -> None:
    for index, mount in enumerate(_array(config.get("mounts"), "mounts")):
        where = f"mounts[{index}]"
        mount = _mapping(mount, where)
        target = mount.get("destination")
        if not isinstance(target, str) or not target.startswith("/") or ".." in target.split("/"):
            raise _wrong(f"{where}.destination", f"{target!r} is not allowed.", "Allowed: an absolute path.")
        options = _texts(mount.get("options"), f"{where}.options")
        kind = mount.get("type") or ("bind" if {"bind", "rbind"} & set(options) else "")
        if kind == "bind" or {"bind", "rbind"} & set(options):
            refused.append(f"{where} (the host's {mount.get('source')})")
        elif kind not in _VIRTUAL:
            raise _wrong(f"{where}.type", f"{kind!r} is not allowed.", f"Allowed: {', '.join(_VIRTUAL)}.")
        elif (target == "/proc" or target.startswith("/proc/")) and kind != "proc":
            raise _wrong(where, f"{kind} over {target}.", "Only proc may be mounted there.")
        else:
            left_out.append(f"{where} ({target})")


def _check_linux(linux: dict[str, t.Any], refused: list[str], left_out: list[str]) -> None:
    for index, space in enumerate(_array(linux.get("namespaces"), "linux.namespaces")):
        space = _mapping(space, f"linux.namespaces[{index}]")
        if space.get("type") not in _NAMESPACES:
            raise _wrong(
                "linux.namespaces", f"{space.get('type')!r} is unknown.", f"Allowed: {', '.join(_NAMESPACES)}."
            )
        if space.get("path"):
            refused.append(f"linux.namespaces ({space['type']} of {space['path']})")
        if space["type"] in ("user", "time"):
            raise _wrong("linux.namespaces", f"a {space['type']} namespace is not supported.", "Leave it out.")
    for index, device in enumerate(_array(linux.get("devices"), "linux.devices")):
        refused.append(f"linux.devices[{index}] ({_mapping(device, 'linux.devices').get('path')})")
    resources = _mapping(linux.get("resources"), "linux.resources")
    for rule in _array(resources.get("devices"), "linux.resources.devices"):
        rule = _mapping(rule, "linux.resources.devices")
        if rule.get("allow") and (rule.get("major") is None or rule.get("type") in (None, "a", "b")):
            refused.append("linux.resources.devices (allows devices of the host)")
    if _mapping(linux.get("sysctl"), "linux.sysctl"):
        left_out.append("linux.sysctl")
    for key in ("seccomp", "maskedPaths", "readonlyPaths", "cgroupsPath", "rootfsPropagation", "mountLabel"):
        if linux.get(key):
            left_out.append(f"linux.{key}")


def check(config: dict[str, t.Any], *, drop: bool = False) -> tuple[Process, list[str]]:
    """(process, what was left out) of a foreign config.json that keeps the rules.

    InputError where it breaks the runtime-spec, and, unless ``drop``, where it wants to run or open something on the
    host: hooks, host directories, devices, foreign namespaces, annotations that runtimes obey.
    """
    _check_version(config)
    root = _mapping(config.get("root"), "root")
    if root.get("path") not in ("rootfs", "./rootfs", "rootfs/"):
        raise _wrong("root.path", f"{root.get('path')!r} is not allowed.", "Allowed: rootfs.")
    refused: list[str] = []
    left_out: list[str] = []
    hooks = _mapping(config.get("hooks"), "hooks")
    for name, steps in hooks.items():
        if name not in _HOOKS:
            raise _wrong(f"hooks.{name}", "is unknown.", f"Allowed: {', '.join(_HOOKS)}.")
        if _array(steps, f"hooks.{name}"):
            refused.append(f"hooks.{name}")
    annotations = _mapping(config.get("annotations"), "annotations")
    for name, text in annotations.items():
        if not isinstance(text, str):
            raise _wrong(f"annotations.{name}", f"{text!r} is not text.", "Put it in quotes.")
        if name.startswith(_UNSAFE_ANNOTATIONS):
            refused.append(f"annotations.{name}")
    _check_mounts(config, refused, left_out)
    _check_linux(_mapping(config.get("linux"), "linux"), refused, left_out)
    process = _mapping(config.get("process"), "process")
    if process.get("terminal"):
        left_out.append("process.terminal")
    found = _check_process(process)
    if refused and not drop:
        raise InputError(
            f"config.json asks for what only the host's owner decides: {', '.join(refused)}.",
            hint="Remove it from the bundle, or set foreign_settings: drop to leave it out.",
            refused=refused,
        )
    return dataclasses.replace(found, login_user=annotations.get(LOGIN_USER, "")), [*refused, *left_out]


def override(process: Process, wanted: t.Mapping[str, t.Any]) -> Process:
    """``process`` with what the user gives instead (``env`` is added to)."""
    env = dict(line.split("=", 1) for line in process.env)
    for key, value in (wanted.get("env") or {}).items():
        if isinstance(value, bool):
            raise InputError(f"config.env: {key}: {value!r} is not text.", hint="Put it in quotes.")
        env[key] = "" if value is None else value
    changes: dict[str, t.Any] = {"env": check_env([f"{key}={value}" for key, value in env.items()], "env")}
    if wanted.get("args"):
        changes["args"] = check_args(list(wanted["args"]), "args")
    if wanted.get("cwd"):
        changes["cwd"] = check_cwd(wanted["cwd"], "cwd")
    for key in ("user", "login_user"):
        if wanted.get(key):
            changes[key] = str(wanted[key])
    return dataclasses.replace(process, **changes)


def bundle_config(process: Process, *, uid: int, gid: int, machine: str) -> dict[str, t.Any]:
    """A config.json with which any runtime starts the bundle. Containers of this collection get their own."""
    made = build(
        {"name": "bundle", "command": list(process.args)}, process.as_dict(), uid=uid, gid=gid, machine=machine
    )
    linux = made["linux"]
    linux.pop("cgroupsPath")
    linux["namespaces"] = [{"type": space["type"]} for space in linux["namespaces"]]
    if not any(line.startswith("HOME=") for line in process.env):
        # Runtimes take it from the passwd of whoever the user will be.
        made["process"]["env"] = [line for line in made["process"]["env"] if not line.startswith("HOME=")]
    made["annotations"] = {LOGIN_USER: process.login_user} if process.login_user else {}
    made["ociVersion"] = OCI_VERSION
    return made
