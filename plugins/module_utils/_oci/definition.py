# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a container is: the user's words made into one normal form, and what a change of it costs."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .._core.errors import InputError
from .._core.names import check_name, check_workload_name, is_digest
from .._core.values import absolute_path, boolean, choice, decimal, integer, known_keys, listed, plain_text, word_list
from .._net.endpoint import Forward, forwards_from, overlap
from .config import CAPABILITIES, HOST_CAPABILITIES

SCHEMA = 1
RUNTIMES = ("runc", "crun")
STATES = ("present", "running", "stopped", "absent")
RESTARTS = ("always", "on_failure", "never")
SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL", "PWR", "WINCH", "RTMIN+3")

# What a container's definition holds, with what it is when the user says nothing.
DEFAULTS: dict[str, t.Any] = {
    "runtime": "runc",
    "address": "",
    "ports": [],
    "memory_mib": None,
    "cpus": None,
    "pids_limit": None,
    "env": {},
    "mounts": [],
    "command": [],
    "user": "",
    "cwd": "",
    "hostname": "",
    "dns": [],
    "capabilities_add": [],
    "capabilities_drop": [],
    "no_new_privileges": True,
    "seccomp": "default",
    "restart": "always",
    "stop_timeout_s": 10,
    "stop_signal": "TERM",
    "authorized_keys": [],
    "login_user": "",
    "labels": {},
}
# Keys of an item that steer the module and are no part of the definition.
STEERING = ("state", "wait_for")
ITEM_KEYS = ("name", "image", *DEFAULTS, *STEERING)

# Taken over by a running container.
IN_PLACE = frozenset(
    (
        "ports",
        "memory_mib",
        "cpus",
        "pids_limit",
        "restart",
        "stop_timeout_s",
        "stop_signal",
        "authorized_keys",
        "login_user",
        "labels",
        "image_name",
    )
)

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?\Z")
_KEY = re.compile(
    r"(ssh-(rsa|ed25519)|ecdsa-sha2-nistp[0-9]+|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" [A-Za-z0-9+/=]{40,}( .*)?\Z"
)
# Places that are made for the container and that a mount must not hide.
_TAKEN = ("/", "/proc", "/sys", "/dev")


def _text(value: object, option: str) -> str:
    text = plain_text(value, option)
    if "\0" in text:
        raise InputError(f"{option}: {text!r} is not allowed.", hint="Allowed: text without NUL bytes.")
    return text


def _plain(value: object, option: str) -> str:
    """Text, or a number as users write it for environments and labels; a boolean has no one spelling."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _text(value, option)


def _command(value: object, option: str) -> list[str]:
    """A program and its arguments; a text is a program without any."""
    words = [value] if isinstance(value, str) and value else listed(value, option)
    return [_plain(word, option) for word in words]


def _mapping(value: object, option: str) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{option}: {value!r} is not a mapping.", hint="Write 'NAME: value' lines.")
    return {_text(key, f"{option}: a name"): _plain(text, f"{option}: {key}") for key, text in value.items()}


def _mounts(value: object, option: str) -> list[dict[str, t.Any]]:
    found: list[dict[str, t.Any]] = []
    for index, item in enumerate(listed(value, option)):
        where = f"{option}[{index}]"
        item = known_keys(item, where, ("source", "destination", "type", "read_only", "size_mib"))
        kind = choice(item.get("type") or "bind", f"{where}.type", ("bind", "tmpfs"))
        destination = absolute_path(item.get("destination"), f"{where}.destination")
        if destination in _TAKEN or destination.startswith(("/proc/", "/sys/", "/dev/")):
            raise InputError(
                f"{where}.destination: {destination!r} is not allowed.",
                hint="/, /proc, /sys and /dev are the container's own.",
            )
        mount: dict[str, t.Any] = {
            "type": kind,
            "destination": destination,
            "read_only": boolean(item["read_only"], f"{where}.read_only")
            if item.get("read_only") is not None
            else False,
        }
        if kind == "bind":
            mount["source"] = absolute_path(item.get("source"), f"{where}.source")
            if item.get("size_mib") is not None:
                raise InputError(f"{where}.size_mib: a bind mount has no size.", hint="Use it with type tmpfs.")
        else:
            if item.get("source"):
                raise InputError(f"{where}.source: a tmpfs has no source.", hint="Leave it out.")
            if item.get("size_mib") is not None:
                mount["size_mib"] = integer(item["size_mib"], f"{where}.size_mib", least=1, most=2**20)
        if destination in [other["destination"] for other in found]:
            raise InputError(f"{where}.destination: {destination!r} is given twice.", hint="Mount one thing there.")
        found.append(mount)
    # Parents first: a mount hides what was mounted below it before.
    return sorted(found, key=lambda mount: str(mount["destination"]))


def _capabilities(value: object, option: str, *, add: bool) -> list[str]:
    found = set()
    for one in word_list(value, option):
        word = _text(one, option).upper()
        word = word if word.startswith("CAP_") else f"CAP_{word}"
        if word not in CAPABILITIES:
            raise InputError(f"{option}: {one!r} is no capability.", hint="See capabilities(7).")
        if add and word in HOST_CAPABILITIES:
            raise InputError(
                f"{option}: {word} is not allowed.", hint="With it the container's root could take the host."
            )
        found.add(word)
    return sorted(found)


def _address(value: object, option: str, allowed: str) -> str:
    text = _text(value, option).strip()
    if not text:
        return ""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise InputError(f"{option}: {text!r} is not allowed.", hint=f"Allowed: {allowed}.") from None


def _keys(value: object, option: str) -> list[str]:
    found = []
    for index, one in enumerate(word_list(value, option)):
        line = _text(one, f"{option}[{index}]").strip()
        if not line or line.startswith("#"):
            continue
        if "\n" in line or not _KEY.match(line):
            raise InputError(
                f"{option}[{index}]: {line[:60]!r} is no public key.", hint="Give one 'ssh-ed25519 AAAA…' line each."
            )
        found.append(line)
    return found


def normalise(item: object, option: str = "containers") -> dict[str, t.Any]:
    """One item of ``containers`` in its normal form: all keys of DEFAULTS, ``name``, ``image`` (as the user wrote
    it), ``state`` and ``wait_for``. InputError names the key that is wrong."""
    values = known_keys(item, option, ITEM_KEYS)
    name = check_workload_name(values.get("name"), f"{option}.name")
    where = f"{option}: {name}"

    def given(key: str) -> t.Any:
        value = values.get(key)
        return DEFAULTS[key] if value is None else value

    def number(key: str, least: int, most: int) -> t.Optional[int]:
        value = given(key)
        return None if value is None else integer(value, f"{where}: {key}", least=least, most=most)

    hostname = _text(given("hostname"), f"{where}: hostname")
    if hostname and (len(hostname) > 64 or not _HOSTNAME.match(hostname)):
        raise InputError(
            f"{where}: hostname: {hostname!r} is not allowed.", hint="Allowed: letters, digits, '-' and '.'."
        )
    user = _plain(given("user"), f"{where}: user")
    if user and not _USER.match(user):
        raise InputError(f"{where}: user: {user!r} is not allowed.", hint="Allowed: USER, USER:GROUP, or numbers.")
    login_user = _plain(given("login_user"), f"{where}: login_user")
    if login_user and not _USER.match(login_user):
        raise InputError(f"{where}: login_user: {login_user!r} is not allowed.", hint="Allowed: a user of the image.")
    environment = _mapping(given("env"), f"{where}: env")
    for variable in environment:
        if not _VARIABLE.match(variable):
            raise InputError(
                f"{where}: env: {variable!r} is no name.", hint="Allowed: letters, digits, '_'; no digit first."
            )
    state = choice(values.get("state") or "running", f"{where}: state", STATES)
    image = _text(values.get("image"), f"{where}: image").strip()
    if image.startswith("sha256:"):
        image = image[len("sha256:") :]
    if image:
        if not is_digest(image):
            check_name(image, f"{where}: image")
    elif state != "absent":
        raise InputError(f"{where}: image is missing.", hint="Give the name or the digest of an image of the host.")
    cwd = given("cwd")
    normal: dict[str, t.Any] = {
        "name": name,
        "image": image,
        "runtime": choice(given("runtime"), f"{where}: runtime", RUNTIMES),
        "address": _address(given("address"), f"{where}: address", "a plain IPv4 address of the overlay"),
        "ports": [
            port.as_dict() for port in forwards_from(word_list(given("ports"), f"{where}: ports"), f"{where}: ports")
        ],
        # runc itself needs some; below, a container dies before its first line.
        "memory_mib": number("memory_mib", 8, 2**24),
        "cpus": None if given("cpus") is None else decimal(given("cpus"), f"{where}: cpus", least=0.01, most=4096),
        "pids_limit": number("pids_limit", 4, 2**22),
        "env": environment,
        "mounts": _mounts(given("mounts"), f"{where}: mounts"),
        "command": _command(given("command"), f"{where}: command"),
        "user": user,
        "cwd": absolute_path(cwd, f"{where}: cwd") if cwd else "",
        "hostname": hostname or name.replace("_", "-").replace(".", "-").strip("-"),
        "dns": [
            _address(one, f"{where}: dns", "IPv4 addresses")
            for one in word_list(given("dns"), f"{where}: dns")
            if one is not None
        ],
        "capabilities_add": _capabilities(given("capabilities_add"), f"{where}: capabilities_add", add=True),
        "capabilities_drop": _capabilities(given("capabilities_drop"), f"{where}: capabilities_drop", add=False),
        "no_new_privileges": boolean(given("no_new_privileges"), f"{where}: no_new_privileges"),
        "seccomp": choice(given("seccomp"), f"{where}: seccomp", ("default", "unconfined")),
        "restart": choice(given("restart"), f"{where}: restart", RESTARTS),
        "stop_timeout_s": number("stop_timeout_s", 0, 3600),
        "stop_signal": choice(given("stop_signal"), f"{where}: stop_signal", SIGNALS),
        "authorized_keys": _keys(given("authorized_keys"), f"{where}: authorized_keys"),
        "login_user": login_user,
        "labels": _mapping(given("labels"), f"{where}: labels"),
        "state": state,
        "wait_for": _wait_for(values.get("wait_for"), f"{where}: wait_for"),
    }
    if normal["ports"] and not normal["address"]:
        raise InputError(f"{where}: ports need an address.", hint="Give the container an address on the overlay.")
    return normal


def _wait_for(value: object, option: str) -> t.Optional[dict[str, t.Any]]:
    if value is None or value == "" or value == {}:
        return None
    item = known_keys(value, option, ("port", "timeout_s"))
    timeout = item.get("timeout_s")
    return {
        "port": integer(item.get("port"), f"{option}.port", least=1, most=65535),
        "timeout_s": integer(60 if timeout is None else timeout, f"{option}.timeout_s", least=1, most=3600),
    }


def normalise_all(items: object, option: str = "containers") -> list[dict[str, t.Any]]:
    """The whole list; no name, address or host port twice."""
    found = [normalise(item, f"{option}[{index}]") for index, item in enumerate(listed(items, option))]
    names: set[str] = set()
    addresses: dict[str, str] = {}
    ports: dict[str, tuple[Forward, ...]] = {}
    for item in found:
        name = item["name"]
        if name in names:
            raise InputError(f"{option}: {name!r} is given twice.", hint="Each container once.")
        names.add(name)
        if item["state"] == "absent":
            continue
        if item["address"] in addresses:
            raise InputError(
                f"{option}: {addresses[item['address']]!r} and {name!r} have the same address {item['address']}.",
                hint="Give each its own.",
            )
        if item["address"]:
            addresses[item["address"]] = name
        forwards = forwards_from(item["ports"])
        for other, taken in ports.items():
            for port in forwards:
                if any(overlap(port, one) for one in taken):
                    raise InputError(
                        f"{option}: {other!r} and {name!r} both want the host's port {port.host_port}/{port.protocol}.",
                        hint="Give each its own.",
                    )
        ports[name] = forwards
    return found


def definition_of(item: t.Mapping[str, t.Any], uuid: str, digest: str, image_name: str) -> dict[str, t.Any]:
    """definition.json from a normal item."""
    kept = {key: item[key] for key in DEFAULTS}
    return {"schema": SCHEMA, "name": item["name"], "uuid": uuid, "image": digest, "image_name": image_name, **kept}


def check_normal(definition: t.Mapping[str, t.Any]) -> None:
    """InputError unless it is what ``definition_of`` makes of a user's words: another host may send what it likes."""
    name = check_name(definition.get("name"), "name")
    words = {key: definition[key] for key in DEFAULTS if key in definition}
    normal = normalise({"name": name, "image": definition.get("image"), **words}, "definition")
    known_keys(definition, f"definition of {name}", ("schema", "name", "uuid", "image", "image_name", *DEFAULTS))
    differing = [key for key, value in words.items() if value != normal[key]]
    if differing:
        raise InputError(f"definition of {name}: {', '.join(differing)} is not in its normal form.")


def changed_keys(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """Keys in which two definitions differ, but for what only the first creation decides."""
    keys = (set(before) | set(after)) - {"schema", "uuid", "name"}
    return sorted(key for key in keys if before.get(key, DEFAULTS.get(key)) != after.get(key, DEFAULTS.get(key)))
