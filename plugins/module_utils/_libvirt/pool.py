# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""libvirt's storage pools: what a user may write, the XML of it and back, and what has to be done about a difference.

The normal form of a pool is a dictionary with the keys of DEFAULTS; ``parse(build(x)) == x``. What an XML has and the
normal form does not stands in ``other``, in words.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import typing as t

from .._core.errors import InputError, Refused
from .._core.names import check_name
from .._core.values import absolute_path, boolean, choice, known_keys, listed, plain_text, word_list
from . import xml

TYPES = ("dir", "fs", "netfs", "logical")
STATES = ("present", "active", "inactive", "absent")
# Those that are mounted or activated: stopping one takes its files away.
MOUNTED = ("fs", "netfs", "logical")
# Those whose volumes are files in a directory.
WITH_FILES = ("dir", "fs", "netfs")
_FORMATS = {
    "fs": ("auto", "ext2", "ext3", "ext4", "xfs", "vfat", "udf", "iso9660", "gfs2", "ocfs2"),
    "netfs": ("auto", "nfs", "cifs", "glusterfs"),
    "logical": ("lvm2",),
}
# Which keys a type has beside name, state, autostart and the permissions; those it needs come first.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dir": (("path",), ()),
    "fs": (("path", "device"), ("format",)),
    "netfs": (("path", "host", "export"), ("format",)),
    "logical": (("volume_group",), ("devices",)),
}

DEFAULTS: dict[str, t.Any] = {
    "type": "dir",
    "path": "",
    "device": "",
    "devices": [],
    "host": "",
    "export": "",
    "volume_group": "",
    "format": "",
    "mode": None,
    "owner": None,
    "group": None,
    "other": [],
}
ITEM_KEYS = ("name", "state", "autostart", *(key for key in DEFAULTS if key != "other"))
PERMISSIONS = ("mode", "owner", "group")

_MODE = re.compile(r"0?[0-7]{3}\Z", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\Z|[0-9]{1,10}\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?\Z", re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}\Z", re.ASCII)
# A pool lists, and lets through its name delete, everything that lies in its directory.
_SYSTEM = (
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/lib/cnvm",
    "/var/lib/libvirt",
)
_NEVER_BELOW = ("/dev", "/etc", "/proc", "/sys", "/boot", "/usr")


# -- What a user may write


def _text(value: object, option: str) -> str:
    return plain_text(value, option).strip()


def _path(value: object, option: str) -> str:
    """An absolute path, or nothing."""
    path = _text(value, option)
    return absolute_path(path, option) if path else ""


def _directory(value: object, option: str) -> str:
    path = _path(value, option)
    if path in _SYSTEM or path.startswith(tuple(f"{each}/" for each in _NEVER_BELOW)):
        raise InputError(
            f"{option}: {path} is a directory of the system.",
            hint="Give the pool one of its own, for example below /srv.",
        )
    return path


def _mode(value: object, option: str) -> t.Optional[str]:
    if value is None or value == "":
        return None
    # 0711 without quotes is 457 to YAML.
    if not isinstance(value, str) or not _MODE.match(value.strip()):
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: such as '0711', in quotes.")
    return f"{int(value.strip(), 8):04o}"


def _user(value: object, option: str) -> t.Optional[str]:
    if value is None or value == "":
        return None
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, option)
    if not _USER.match(name):
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: a name or a number.")
    return name


def _devices(value: object, option: str) -> list[str]:
    found = [absolute_path(one, option) for one in word_list(value, option)]
    if len(set(found)) != len(found):
        raise InputError(f"{option}: a path is given twice.")
    return found


def normalise(item: object, option: str = "pools") -> dict[str, t.Any]:
    """One item of ``pools`` in its normal form: the keys of DEFAULTS, ``name``, ``state``, and ``autostart`` (None
    where it follows from the state). InputError names the key that is wrong. Users and groups may still be names."""
    values = known_keys(item, option, ITEM_KEYS)
    name = check_name(values.get("name"), f"{option}.name")
    where = f"{option}: {name}"
    autostart = values.get("autostart")
    normal: dict[str, t.Any] = {
        **DEFAULTS,
        "name": name,
        "state": choice(values.get("state"), f"{where}: state", STATES, "active"),
        "autostart": None if autostart is None else boolean(autostart, f"{where}: autostart"),
    }
    if normal["state"] == "absent":
        return normal
    kind = choice(values.get("type"), f"{where}: type", TYPES, "dir")
    needed, possible = _KEYS[kind]
    for key in needed:
        if not values.get(key):
            raise InputError(f"{where}: {key} is missing.", hint=f"A pool of type {kind} needs it.")
    for key in ("path", "device", "devices", "host", "export", "volume_group", "format"):
        if key not in (*needed, *possible) and values.get(key):
            raise InputError(f"{where}: a pool of type {kind} has no {key}.", hint="Leave it out.")
    host = _text(values.get("host"), f"{where}: host")
    if host and not _HOST.match(host):
        raise InputError(f"{where}: host: {host!r} is not allowed.", hint="Allowed: a name or an address.")
    group = _text(values.get("volume_group"), f"{where}: volume_group")
    if group and (not _GROUP.match(group) or group in (".", "..")):
        raise InputError(f"{where}: volume_group: {group!r} is not allowed.", hint="See lvm(8) for names.")
    formats = _FORMATS.get(kind)
    normal.update(
        type=kind,
        path=f"/dev/{group}" if kind == "logical" else _directory(values.get("path"), f"{where}: path"),
        device=_path(values.get("device"), f"{where}: device"),
        devices=_devices(values.get("devices"), f"{where}: devices"),
        host=host,
        export=_path(values.get("export"), f"{where}: export"),
        volume_group=group,
        format=choice(values.get("format"), f"{where}: format", formats, formats[0]) if formats else "",
        mode=_mode(values.get("mode"), f"{where}: mode"),
        owner=_user(values.get("owner"), f"{where}: owner"),
        group=_user(values.get("group"), f"{where}: group"),
    )
    if kind == "logical" and any(normal[key] is not None for key in PERMISSIONS):
        raise InputError(f"{where}: a pool of type logical has no permissions.", hint="Leave mode, owner, group out.")
    return normal


def normalise_all(items: object, option: str = "pools") -> list[dict[str, t.Any]]:
    """The whole list; no name and no path twice."""
    found = [normalise(item, f"{option}[{index}]") for index, item in enumerate(listed(items, option))]
    names: set[str] = set()
    places: dict[str, str] = {}
    for item in found:
        name, path = item["name"], item["path"]
        if name in names:
            raise InputError(f"{option}: {name!r} is given twice.", hint="Each pool once.")
        names.add(name)
        if item["state"] != "absent":
            if path in places:
                raise InputError(f"{option}: {places[path]!r} and {name!r} have the same path {path}.")
            places[path] = name
    return found


# -- XML


def build(normal: t.Mapping[str, t.Any], name: str, uuid: str = "") -> str:
    """The XML of a pool; ``owner`` and ``group`` are numbers by now. ``other`` cannot be written."""
    permissions = [(key, normal[key]) for key in PERMISSIONS if normal[key] is not None]
    devices = [normal["device"]] if normal["device"] else normal["devices"]
    return xml.document(
        (
            "pool",
            {"type": normal["type"]},
            ("name", name),
            ("uuid", uuid) if uuid else None,
            (
                "source",
                ("host", {"name": normal["host"]}) if normal["host"] else None,
                ("dir", {"path": normal["export"]}) if normal["export"] else None,
                [("device", {"path": path}) for path in devices],
                ("name", normal["volume_group"]) if normal["volume_group"] else None,
                ("format", {"type": normal["format"]}) if normal["format"] else None,
            ),
            ("target", ("path", normal["path"]), ("permissions", permissions) if permissions else None),
        )
    )


_KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ".": (("type",), ("name", "uuid", "capacity", "allocation", "available", "source", "target")),
    "source": ((), ("host", "dir", "device", "name", "format")),
    "target": ((), ("path", "permissions")),
    "target/permissions": ((), ("mode", "owner", "group", "label")),
    "source/host": (("name",), ()),
    "source/device": (("path",), ()),
    "source/dir": (("path",), ()),
}


def parse(text: str) -> dict[str, t.Any]:
    """The normal form of libvirt's XML, stored or live."""
    root = xml.parse(text, "a pool's XML", "pool")
    kind = root.get("type", "")
    other = []
    for path, (attributes, children) in _KNOWN.items():
        for element in root.findall(path):
            place = "" if path == "." else f"{path} "
            other += [f"{place}{key}={value}" for key, value in element.attrib.items() if key not in attributes]
            other += [place + xml.words(child) for child in element if child.tag not in children]
    devices = [each.get("path", "") for each in root.findall("source/device")]
    mode = xml.text_of(root, "target/permissions/mode")
    return {
        **DEFAULTS,
        "type": kind,
        "path": posixpath.normpath(xml.text_of(root, "target/path") or "/"),
        "device": devices[0] if kind == "fs" and devices else "",
        "devices": [] if kind == "fs" else devices,
        "host": xml.attribute(root, "source/host", "name"),
        "export": xml.attribute(root, "source/dir", "path"),
        "volume_group": xml.text_of(root, "source/name") if kind == "logical" else "",
        "format": xml.attribute(root, "source/format", "type") if kind in _FORMATS else "",
        "mode": f"{int(mode, 8):04o}" if _MODE.match(mode) else None,
        "owner": xml.text_of(root, "target/permissions/owner") or None,
        "group": xml.text_of(root, "target/permissions/group") or None,
        "other": other,
    }


def uuid_of(text: str) -> str:
    """The UUID that a pool keeps when it is defined anew."""
    return xml.text_of(xml.parse(text, "a pool's XML", "pool"), "uuid")


def guest_of(domain_xml: str) -> str:
    """The name of the guest."""
    return xml.text_of(xml.parse(domain_xml, "a guest's XML", "domain"), "name")


def disks_below(domain_xml: str, path: str) -> list[str]:
    """The files and devices below ``path`` that a guest uses, its backing files among them."""
    root = xml.parse(domain_xml, "a guest's XML", "domain")
    found = []
    for source in root.iter("source"):
        for name in (source.get("file"), source.get("dev"), source.get("dir")):
            if name and (name == path or name.startswith(path.rstrip("/") + "/")):
                found.append(name)
    return sorted(set(found))


# -- What has to be done


@dataclasses.dataclass(frozen=True)
class Seen:
    """A pool as libvirt has it. ``config``: what is stored (None: nothing). ``live``: what is active. ``directory``:
    mode, owner and group of its directory as it is (None: there is none). ``guests``: who uses files of it."""

    config: t.Optional[dict[str, t.Any]] = None
    live: t.Optional[dict[str, t.Any]] = None
    autostart: bool = False
    directory: t.Optional[dict[str, str]] = None
    guests: tuple[str, ...] = ()

    @property
    def there(self) -> bool:
        return self.config is not None or self.live is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps for one pool, in this order: stop, undefine or define, make, start, permissions, autostart."""

    name: str
    description: t.Optional[dict[str, t.Any]] = None
    define: bool = False
    undefine: bool = False
    stop: bool = False
    start: bool = False
    permissions: bool = False
    autostart: t.Optional[bool] = None
    changes: tuple[str, ...] = ()
    new: bool = False
    lost: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        steps = (self.define, self.undefine, self.stop, self.start, self.permissions, self.autostart is not None)
        return any(steps)

    @property
    def restart(self) -> bool:
        """Whether an active pool is stopped and started again."""
        return self.stop and self.start

    @property
    def actions(self) -> list[str]:
        """The steps as words."""
        words = ["define"] if self.new else [f"change {key}" for key in self.changes]
        if self.define and not words:
            words.append("define")
        if self.restart:
            words.append("restart")
        elif self.stop or self.start:
            words.append("stop" if self.stop else "start")
        if self.undefine:
            words.append("undefine")
        if self.autostart is not None:
            words.append("enable" if self.autostart else "disable")
        return words


def changed_keys(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> list[str]:
    """Keys in which two normal forms differ; permissions that nobody asked for do not count."""
    return [key for key in DEFAULTS if before[key] != after[key] and not (key in PERMISSIONS and after[key] is None)]


def plan(item: t.Mapping[str, t.Any], seen: Seen) -> Plan:
    """The steps that bring the pool of ``item`` (normal form, numbers for users) from ``seen`` to what is wanted.

    Refused where the files of a running guest would be taken away.
    """
    name, state = item["name"], item["state"]
    active = seen.live is not None
    if state == "absent":
        if active:
            _may_stop(name, seen)
        return Plan(name=name, stop=active, undefine=seen.config is not None)
    after = {key: item[key] for key in DEFAULTS}
    autostart = item["autostart"]
    if autostart is None:
        autostart = {"active": True, "inactive": False}.get(state, seen.autostart)
    stored = changed_keys(seen.config, after) if seen.config is not None else []
    live = [key for key in changed_keys(seen.live, after) if key not in PERMISSIONS] if seen.live is not None else []
    wrong = [key for key in PERMISSIONS if after[key] is not None and (seen.directory or {}).get(key) != after[key]]
    stop = active and (bool(live) or state == "inactive")
    if stop:
        _may_stop(name, seen)
    start = (state == "active" and not active) or (stop and state != "inactive")
    changes = tuple(key for key in DEFAULTS if key in stored or key in live or (key in wrong and active))
    return Plan(
        name=name,
        description=after,
        define=seen.config is None or bool(stored),
        stop=stop,
        start=start,
        permissions=bool(wrong) and (start or (active and not stop)),
        autostart=None if autostart == seen.autostart else autostart,
        changes=changes if seen.there else (),
        new=not seen.there,
        lost=tuple(dict.fromkeys([*(seen.config or {}).get("other", ()), *(seen.live or {}).get("other", ())])),
    )


def _may_stop(name: str, seen: Seen) -> None:
    if seen.guests and (seen.live or {}).get("type") in MOUNTED:
        raise Refused(
            f"Pool {name!r} cannot be stopped: running guests use files of it: {', '.join(seen.guests[:5])}.",
            hint="Stop them first.",
            guests=list(seen.guests),
        )
