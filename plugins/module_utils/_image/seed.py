# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Seeds: the small ISO images from which a guest learns at boot who it is (NoCloud and ConfigDrive).

A seed bears a mark in its volume descriptor, where ISO 9660 leaves room for applications: a digest of the data that it
was made of, and the instance-id. So a later run knows whether anything changed without a file beside it, and without
making it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
import typing as t
import uuid

from .._core.errors import InputError
from .._core.values import boolean, choice, known_keys
from . import userdata
from .userdata import YamlReader

TYPES = ("nocloud", "configdrive")
POLICIES = ("new_instance", "keep")
LABELS = {"nocloud": "cidata", "configdrive": "config-2"}
DATA_KEYS = ("type", "user_data", "meta_data", "network_config", "vendor_data", "check_user_data")
MOST_BYTES = 16 * 2**20

DESCRIPTOR_AT = 32768
# Within the descriptor.
_USE_AT, _USE_BYTES = 883, 512
MARK_AT = DESCRIPTOR_AT + _USE_AT
_MARK = "CNVM SEED 1 "
_NAMESPACE = uuid.UUID("7d0c0c37-3c0c-4c3b-9b52-7a8a4a3d5f11")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}\Z")
_INSTANCE_LINE = re.compile(r"^[\"']?instance-id[\"']?\s*:\s*(.*?)\s*(?:#.*)?$", re.MULTILINE)
# Where meta data have the guest's name. cloud-init reads it from the first in NoCloud, from the last in ConfigDrive.
_NAME_KEYS = ("local-hostname", "local_hostname", "hostname")
_NAME_LINE = re.compile(rf"^[\"']?({'|'.join(_NAME_KEYS)})[\"']?[ \t]*:[ \t]*(.*?)\s*$", re.MULTILINE)
# Characters that YAML's readers refuse or take for line ends; JSON's writer lets them stand.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Data:
    """What a guest is to be told. Each is text, a mapping, or None. ``instance_id``: the one that the user gave."""

    kind: str
    user_data: t.Any = None
    meta_data: t.Any = None
    network_config: t.Any = None
    vendor_data: t.Any = None
    instance_id: str = ""
    warnings: tuple[str, ...] = ()


def as_yaml(value: t.Any) -> str:
    """A value as YAML, without a library: JSON is YAML as long as no character is one that YAML's readers refuse."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True)
    return _NOT_PLAIN.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n"


def _json(value: t.Any) -> str:
    return json.dumps(value, allow_nan=False, indent=1, sort_keys=True) + "\n"


def _text_or_mapping(value: t.Any, option: str) -> t.Any:
    """Text, a mapping, or None; nothing but blanks is None."""
    if value is None or value in ("", {}):
        return None
    if not isinstance(value, (str, dict)):
        raise InputError(f"{option}: it is neither text nor a mapping.", hint="Give one of them.")
    if isinstance(value, str):
        if "\0" in value or len(value) > MOST_BYTES:
            raise InputError(f"{option}: it has NUL bytes, or more than {MOST_BYTES} bytes.", hint="Give less text.")
        return value if value.strip() else None
    return value


def normalise(value: t.Mapping[str, t.Any], option: str, yaml: YamlReader = None, name: str = "") -> Data:
    """What a guest is to be told, checked as far as that can be done here.

    InputError for what cloud-init could not use. ``yaml`` reads YAML; without it text is looked at from outside only,
    which is a warning. ``name`` is the guest's where the meta data name no other.
    """
    item = known_keys(dict(value), option, DATA_KEYS)
    kind = choice(item.get("type"), f"{option}: type", TYPES, "nocloud")
    wants_check = item.get("check_user_data")
    wants_check = True if wants_check is None else boolean(wants_check, f"{option}: check_user_data")
    parts = {key: _text_or_mapping(item.get(key), f"{option}: {key}") for key in DATA_KEYS[1:5]}
    warnings = []
    for key in ("user_data", "vendor_data"):
        given = parts[key]
        # What is no cloud-init in a guest has no vendor data either.
        if given is not None and (wants_check or isinstance(given, dict)):
            warnings += userdata.check_user_data(given, f"{option}: {key}", yaml)
    meta, instance_id = _meta_data(parts["meta_data"], f"{option}: meta_data", yaml, kind, name)
    network = parts["network_config"]
    if network is not None:
        network, ignored = _network(network, f"{option}: network_config", yaml, kind)
        warnings += ignored
    # What could be read is a mapping by now.
    unread = {"meta_data": meta, "network_config": network} if kind == "nocloud" and yaml is None else {}
    warnings += [userdata.not_read(f"{option}: {key}") for key, given in unread.items() if isinstance(given, str)]
    data = Data(kind, parts["user_data"], meta, network, parts["vendor_data"], instance_id, tuple(warnings))
    try:
        size = sum(len(text.encode()) for text in contents(data, "x").values())
    except UnicodeEncodeError:
        raise InputError(f"{option}: the data have characters that UTF-8 cannot hold.", hint="Give text.") from None
    except (TypeError, ValueError):
        raise InputError(f"{option}: the data have values that JSON cannot hold.", hint="Give plain values.") from None
    if size > MOST_BYTES:
        raise InputError(f"{option}: the data have {size} bytes.", hint=f"Allowed are {MOST_BYTES}.")
    return data


def _meta_data(value: t.Any, option: str, yaml: YamlReader, kind: str, name: str) -> tuple[t.Any, str]:
    """(meta data, the instance-id that they name)."""
    read = _mapping_of(value, option, yaml, kind) if isinstance(value, str) else value or {}
    if read is None:
        found = _INSTANCE_LINE.search(value)
        given: t.Any = found.group(1).strip("\"'") if found else None
        value = _text_with_name(value, name)
    else:
        _check_meta_data(read, option)
        value, given = _with_name(read, kind, name), _named_id(read)
    if given is None or given == "":
        return value, ""
    if not isinstance(given, str) or not _INSTANCE_ID.match(given):
        raise InputError(
            f"{option}: the instance-id {str(given)[:120]!r} is not allowed.",
            hint="Allowed: up to 100 letters, digits, '_', '.', ':' or '-'. Quote it if it is all digits.",
        )
    return value, given


def _check_meta_data(meta: t.Mapping[str, t.Any], option: str) -> None:
    for key in _NAME_KEYS:
        if not isinstance(meta.get(key), (str, type(None))):
            raise InputError(
                f"{option}: {key}: it is no text.", hint=f"Write '{key}: web'. Quote a name that is all digits."
            )
    for key in ("public-keys", "public_keys"):
        given = meta.get(key)
        if not (_are_keys(given) or (isinstance(given, dict) and all(map(_are_keys, given.values())))):
            raise InputError(
                f"{option}: {key}: it is no public SSH key.", hint="Allowed: one, a list, or 'NAME: KEY' lines."
            )


def _are_keys(value: t.Any) -> bool:
    return isinstance(value, (str, type(None))) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


def _with_name(meta: dict[str, t.Any], kind: str, name: str) -> dict[str, t.Any]:
    """Meta data with the guest's name where cloud-init reads it."""
    read = "hostname" if kind == "configdrive" else "local-hostname"
    found = next((meta[key] for key in (read, *_NAME_KEYS) if meta.get(key)), name)
    return {**meta, read: found} if found else meta


def _text_with_name(text: str, name: str) -> str:
    """The same of text that nobody can read here."""
    lines = dict(_NAME_LINE.findall(text))
    found = next((lines[key] for key in _NAME_KEYS if lines.get(key)), json.dumps(name) if name else "")
    return _with_line(text, f"local-hostname: {found}") if found and "local-hostname" not in lines else text


def _with_line(text: str, line: str) -> str:
    """Text with one line more, at its end: it may begin with ``---``, and what is before that is another document."""
    return f"{text.rstrip()}\n{line}\n"


def _named_id(value: t.Mapping[str, t.Any]) -> t.Any:
    return next((value[key] for key in ("instance-id", "instance_id", "uuid") if value.get(key) is not None), None)


def _mapping_of(text: str, option: str, yaml: YamlReader, kind: str) -> t.Optional[dict[str, t.Any]]:
    """The mapping that a text stands for; None where it cannot be read here and can be passed on as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        value = userdata.read(text, option, yaml)
        if value is None and kind == "nocloud":
            return None
    if not isinstance(value, dict):
        raise InputError(
            f"{option}: it is no mapping{'' if yaml or kind == 'nocloud' else ' that can be read without PyYAML'}.",
            hint="Write 'KEY: VALUE' lines, or give a mapping instead of text.",
        )
    return value


def _network(value: t.Any, option: str, yaml: YamlReader, kind: str) -> tuple[t.Any, list[str]]:
    """(what is written, warnings for what of it would be ignored)."""
    if kind == "configdrive":
        if isinstance(value, str):
            value = _mapping_of(value, option, yaml, kind)
        userdata.check_openstack_network(value, option)
        return value, []
    warnings = userdata.check_network(value, option, yaml)
    if isinstance(value, dict) and list(value) == ["network"]:
        # Old versions of cloud-init want what is below.
        value = value["network"]
    return value, warnings


def contents(data: Data, instance_id: str) -> dict[str, str]:
    """The files of the seed by their paths in it."""
    if data.kind == "configdrive":
        return _config_drive(data, instance_id)
    files = {"meta-data": _no_cloud_meta_data(data.meta_data, instance_id), "user-data": _user_data(data.user_data)}
    if data.vendor_data is not None:
        files["vendor-data"] = _user_data(data.vendor_data)
    if data.network_config is not None:
        given = data.network_config
        files["network-config"] = given if isinstance(given, str) else as_yaml(given)
    return files


def _user_data(value: t.Any) -> str:
    """User or vendor data. Mappings get the first line without which cloud-init does not read them."""
    if value is None:
        return f"{userdata.CLOUD_CONFIG}\n{{}}\n"
    return value if isinstance(value, str) else f"{userdata.CLOUD_CONFIG}\n{as_yaml(value)}"


def _no_cloud_meta_data(value: t.Any, instance_id: str) -> str:
    if isinstance(value, str):
        # Text that nobody could read here.
        if _INSTANCE_LINE.search(value):
            return value
        return _with_line(value, f"instance-id: {json.dumps(instance_id)}")
    rest = {key: inner for key, inner in value.items() if key not in ("instance_id", "uuid")}
    return as_yaml({**rest, "instance-id": instance_id})


def _config_drive(data: Data, instance_id: str) -> dict[str, str]:
    meta = dict(data.meta_data or {})
    for ours in ("instance-id", "instance_id", "local-hostname", "local_hostname"):
        meta.pop(ours, None)
    keys = meta.pop("public-keys", None)
    if keys is not None:
        keys = [keys] if isinstance(keys, str) else keys
        meta["public_keys"] = (
            {f"key-{number}": key for number, key in enumerate(keys)} if isinstance(keys, list) else keys
        )
    if "hostname" in meta:
        meta.setdefault("name", meta["hostname"])
    meta["uuid"] = instance_id
    place = "openstack/latest"
    files = {f"{place}/meta_data.json": _json(meta)}
    if data.user_data is not None:
        files[f"{place}/user_data"] = _user_data(data.user_data)
    if data.vendor_data is not None:
        files[f"{place}/vendor_data.json"] = _json({"cloud-init": _user_data(data.vendor_data)})
    if data.network_config is not None:
        files[f"{place}/network_data.json"] = _json(data.network_config)
    return files


# -- What lies there already


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a seed says about itself. ``whole``: all of it is there."""

    kind: str
    digest: str
    instance_id: str
    whole: bool = True


def digest_of(data: Data) -> str:
    """A digest of all that the seed holds, but for the instance-id."""
    total = hashlib.sha256(data.kind.encode())
    for path, text in sorted(contents(data, "").items()):
        total.update(f"\0{path}\0{hashlib.sha256(text.encode()).hexdigest()}".encode())
    return total.hexdigest()


def mark_of(digest: str, instance_id: str) -> bytes:
    """The mark as it stands at ``MARK_AT``."""
    return f"{_MARK}{digest} {instance_id}".encode("ascii").ljust(_USE_BYTES)


def read_mark(descriptor: bytes, size: int) -> t.Optional[Mark]:
    """The mark in an ISO's primary volume descriptor (2048 bytes at ``DESCRIPTOR_AT``); None when it has none."""
    if len(descriptor) < 2048 or not descriptor.startswith(b"\x01CD001"):
        return None

    def field(at: int, length: int) -> str:
        return descriptor[at : at + length].decode("ascii", "replace").rstrip(" \0")

    label, mark = field(40, 32), field(_USE_AT, _USE_BYTES)
    kind = next((kind for kind, name in LABELS.items() if name == label), "")
    digest, _blank, instance_id = mark[len(_MARK) :].partition(" ")
    if not mark.startswith(_MARK) or not kind or not instance_id:
        return None
    (sectors,) = struct.unpack_from("<I", descriptor, 80)
    return Mark(kind, digest, instance_id, sectors * 2048 <= size)


@dataclasses.dataclass(frozen=True)
class Decision:
    """``write``: the seed has to be made. ``new_instance``: the guest will take itself for a new one."""

    instance_id: str
    digest: str
    write: bool
    new_instance: bool


def decide(data: Data, policy: str, place: str, mark: t.Optional[Mark]) -> Decision:
    """Whether a seed has to be made, and its instance-id.

    An instance-id that the user gives is the one, whatever ``policy`` says. Else the one that is there stays as long as
    the data do; when they change, ``keep`` keeps it all the same, and ``new_instance`` makes another one, of ``place``
    (something that only this guest has), the data, and the one before: going back to earlier data is a change, too.
    """
    digest = digest_of(data)
    same = mark is not None and mark.digest == digest and mark.kind == data.kind
    if data.instance_id:
        instance_id = data.instance_id
    elif mark is not None and (same or policy == "keep"):
        instance_id = mark.instance_id
    else:
        before = mark.instance_id if mark else ""
        instance_id = str(uuid.uuid5(_NAMESPACE, f"{place}\0{before}\0{digest}"))
    new = mark is None or mark.instance_id != instance_id
    return Decision(instance_id, digest, new or not same or not (mark and mark.whole), new)
