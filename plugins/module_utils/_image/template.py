# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a template is to be: the user's words made into one normal form, and what it is known by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
import typing as t

from .._core import mmdebstrap
from .._core.errors import InputError
from .._core.mmdebstrap import Recipe
from .._core.names import check_name, check_own_name, is_digest
from .._core.values import boolean, choice, known_keys, size_bytes
from . import bootable
from .definition import checksum_of, format_of, path_of
from .headers import SECTOR
from .trust import DEFAULT_MOST_VIRTUAL_BYTES

STATES = ("present", "absent")
SOURCES = ("source", "build", "guest", "peer")
KEYS = (
    "name",
    "state",
    "source",
    "build",
    "format",
    "checksum",
    "guest",
    "peer",
    "digest",
    "size",
    "reset_identity",
    "fingerprint",
    "refresh",
    "verify",
    "max_virtual_size",
)
# What stands for a checksum where the user has none, and knows it.
UNVERIFIED = "unverified"
# Of file names: what a file was compressed with does not matter, its content tells.
_COMPRESSED = re.compile(r"\.(gz|xz|zst|bz2)\Z", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A template as it is to be. One of ``source`` (a file of the host), ``build`` (packages), ``guest`` and ``peer``
    says where from; none of them: it is there. ``checksum``: (algorithm, digits) of the file, None where it is waived.
    ``size``: virtual bytes, None for as many as its source has."""

    name: str
    state: str = "present"
    source: str = ""
    format: str = ""
    checksum: t.Optional[tuple[str, str]] = None
    build: t.Optional[Recipe] = None
    guest: str = ""
    peer: str = ""
    digest: str = ""
    size: t.Optional[int] = None
    reset_identity: bool = False
    fingerprint: str = ""
    refresh: bool = False
    verify: bool = False
    max_virtual_bytes: int = DEFAULT_MOST_VIRTUAL_BYTES

    @property
    def origin(self) -> str:
        """Where it comes from, in a word for the record."""
        if self.source:
            return f"file {self.source}"
        if self.build:
            return f"built of {self.build.suite}"
        return f"guest {self.guest}" if self.guest else ""


def check_template_name(value: object, option: str) -> str:
    """A name that a template may have. A digest is too long for one."""
    return check_own_name(value, option)


def word_of(value: object, option: str) -> str:
    """A template as it is referred to: its name, or its digest with or without ``sha256:``."""
    text = value[len("sha256:") :] if isinstance(value, str) and value.startswith("sha256:") else value
    return text if isinstance(text, str) and is_digest(text) else check_template_name(text, option)


def _digest_of(value: object, option: str) -> str:
    if value is None or value == "":
        return ""
    text = value[len("sha256:") :] if isinstance(value, str) and value.startswith("sha256:") else value
    if not isinstance(text, str) or not is_digest(text):
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: 64 hexadecimal digits (sha256).")
    return text


def normalise(values: object) -> Wanted:
    """The module's options. InputError names the one that is wrong."""
    item = known_keys(values, "template", KEYS)

    def flag(key: str, default: bool = False) -> bool:
        given = item.get(key)
        return default if given is None or given == "" else boolean(given, key)

    state = choice(item.get("state") or "present", "state", STATES)
    if state == "absent":
        return Wanted(name=word_of(item.get("name"), "name"), state=state)
    name = check_template_name(item.get("name"), "name")
    sources = [key for key in SOURCES if item.get(key)]
    if len(sources) > 1:
        raise InputError(f"{sources[0]} and {sources[1]} are both given.", hint="Say in one way where it comes from.")
    source = path_of(item["source"], "source") if item.get("source") else ""
    guest = check_name(item["guest"], "guest") if item.get("guest") else ""
    build = mmdebstrap.read(item["build"], "build") if item.get("build") else None
    checksum, given = None, item.get("checksum")
    if given not in (None, "") and not source:
        raise InputError("checksum is that of a source.", hint="To ask for a certain content, give digest.")
    if source:
        if given in (None, ""):
            raise InputError(
                "checksum is missing: what a template is made of must be known.",
                hint=f"Give 'sha256:' and its 64 digits, or checksum: {UNVERIFIED} where nobody has told it.",
            )
        checksum = None if given == UNVERIFIED else checksum_of(given, "checksum")
    # Two guests of a disk that was a guest's would be taken for one.
    reset_identity = flag("reset_identity", bool(guest or build))
    if build and not reset_identity:
        raise InputError("reset_identity: what is built has no identity.", hint="Allowed with build: true.")
    size = item.get("size")
    if size not in (None, ""):
        least, most_bytes = (bootable.LEAST_BYTES, bootable.MOST_BYTES) if build else (SECTOR, 2**56)
        size = size_bytes(size, "size", least=least, most=most_bytes)
        if size % SECTOR:
            raise InputError(f"size: {size} is not allowed.", hint=f"Allowed: multiples of {SECTOR} bytes.")
    most = item.get("max_virtual_size")
    return Wanted(
        name=name,
        source=source,
        format=format_of(item.get("format"), "format", _COMPRESSED.sub("", source)) if source else "",
        checksum=checksum,
        build=build,
        guest=guest,
        peer=check_name(item["peer"], "peer") if item.get("peer") else "",
        digest=_digest_of(item.get("digest"), "digest"),
        size=t.cast("t.Optional[int]", size or None),
        reset_identity=reset_identity,
        fingerprint=str(item.get("fingerprint") or ""),
        refresh=flag("refresh"),
        verify=flag("verify"),
        max_virtual_bytes=DEFAULT_MOST_VIRTUAL_BYTES
        if most in (None, "")
        else size_bytes(most, "max_virtual_size", least=SECTOR, most=2**56),
    )


def made_of(wanted: Wanted, file: t.Optional[t.Sequence[int]] = None) -> str:
    """What a template is made of and how, as a sha256: the same again means that there is nothing to do.

    ``file``: what changes when the source does; it is only looked at where there is no checksum.
    """
    if wanted.fingerprint:
        return hashlib.sha256(b"given " + wanted.fingerprint.encode()).hexdigest()
    if wanted.guest:
        content: t.Any = ["guest", wanted.guest]
    elif wanted.build:
        content = ["build", bootable.RULES, dataclasses.asdict(wanted.build)]
    elif wanted.checksum:
        content = list(wanted.checksum)
    else:
        content = [posixpath.normpath(wanted.source), *(file or ())]
    parts = [content, wanted.format, wanted.size, wanted.reset_identity]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
