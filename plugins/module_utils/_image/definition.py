# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What a disk image is to be: the user's words made into one normal form."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.errors import InputError
from .._core.values import absolute_path, boolean, choice, known_keys, listed, size_bytes
from .commands import Making
from .formats import ALIASES, FORMATS, NAMES, of_name
from .headers import SECTOR

STATES = ("present", "absent")
REBASES = ("safe", "unsafe", "refuse")
REPAIRS = ("none", "leaks", "all")
COMPRESSIONS = ("none", "zlib", "zstd")
CHECKSUMS = {"sha256": 64, "sha384": 96, "sha512": 128}

ITEM_KEYS = (
    "path",
    "state",
    "format",
    "size",
    "source",
    "replace",
    "backing",
    "backing_format",
    "rebase",
    "flatten",
    "compression",
    "preallocation",
    "subformat",
    "cluster_size",
    "check",
    "repair",
    "owner",
    "group",
    "mode",
)
SOURCE_KEYS = ("path", "format", "checksum", "trusted")

_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_MODE = re.compile(r"0?[0-7]{3}\Z")
# An image there would be somebody else's file, or none.
_SYSTEM = ("/proc", "/sys", "/dev", "/run/cnvm")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the content comes from. ``checksum``: (algorithm, digits) of the file, or None."""

    path: str
    format: str
    checksum: t.Optional[tuple[str, str]] = None
    trusted: bool = False


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An image as it is to be. ``size``: virtual bytes, None where it is left as it is."""

    path: str
    state: str = "present"
    format: str = "qcow2"
    size: t.Optional[int] = None
    source: t.Optional[Source] = None
    replace: bool = False
    backing: str = ""
    backing_format: str = ""
    rebase: str = "safe"
    flatten: bool = False
    compression: str = "none"
    preallocation: str = "off"
    subformat: str = ""
    cluster_bytes: int = 0
    check: bool = False
    repair: str = "none"
    owner: str = ""
    group: str = ""
    mode: t.Optional[int] = None

    @property
    def making(self) -> Making:
        """How it is made."""
        return Making(self.format, self.subformat, self.preallocation, self.cluster_bytes, self.compression)


def path_of(value: object, option: str, *, ours: bool = True) -> str:
    """An absolute path; ``ours``: not in a directory that only the kernel fills."""
    path = absolute_path(value, option)
    if str(value).endswith("/"):
        raise InputError(f"{option}: {value!r} names no file.", hint="Leave the slash at its end out.")
    if ours and any(path == place or path.startswith(place + "/") for place in _SYSTEM):
        raise InputError(f"{option}: {path!r} is not allowed.", hint="Choose another directory.")
    return path


def format_of(value: object, option: str, path: str, default: str = "") -> str:
    """The format that is given, else the one that the file's name stands for, else ``default``."""
    if value is not None and value != "":
        word = ALIASES.get(value, value) if isinstance(value, str) else value
        return choice(word, option, NAMES)
    found = of_name(path) or default
    if not found:
        raise InputError(
            f"{option} is missing: the name of {path} does not say it.",
            hint=f"Give one of {', '.join(NAMES)}. It is never guessed from the content.",
        )
    return found


def checksum_of(value: object, option: str) -> t.Optional[tuple[str, str]]:
    """(algorithm, digits) of ``ALGORITHM:DIGITS``."""
    if value is None or value == "":
        return None
    algorithm, colon, digits = value.partition(":") if isinstance(value, str) else ("", "", "")
    digits = digits.strip().lower()
    good = colon and CHECKSUMS.get(algorithm) == len(digits) and not digits.strip("0123456789abcdef")
    if not good:
        raise InputError(
            f"{option}: {str(value)[:200]!r} is not allowed.",
            hint="Allowed: 'sha256:' and 64 hexadecimal digits, or sha384, sha512. Weaker ones prove nothing.",
        )
    return algorithm, digits


def mode_of(value: object, option: str) -> t.Optional[int]:
    """A file mode. YAML makes the number 420 of an unquoted 0644, so that only text is clear."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _MODE.match(value):
        raise InputError(
            f"{option}: {value!r} is not allowed.", hint='Allowed: octal digits in quotes, such as "0644".'
        )
    return int(value, 8)


def account_of(value: object, option: str) -> str:
    """Name or number of a user or group."""
    if value is None or value == "":
        return ""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _ACCOUNT.match(text):
        raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: a name or a number.")
    return text


def _source(value: object, option: str) -> t.Optional[Source]:
    if value is None or value == "" or value == {}:
        return None
    item = known_keys(value, option, SOURCE_KEYS)
    path = path_of(item.get("path"), f"{option}.path")
    trusted = item.get("trusted")
    return Source(
        path=path,
        format=format_of(item.get("format"), f"{option}.format", path),
        checksum=checksum_of(item.get("checksum"), f"{option}.checksum"),
        trusted=False if trusted is None else boolean(trusted, f"{option}.trusted"),
    )


def normalise(value: object, option: str = "images") -> Wanted:
    """One item of the option ``images``. InputError names the key that is wrong."""
    item = known_keys(value, option, ITEM_KEYS)
    path = path_of(item.get("path"), f"{option}.path")
    where = f"{option}: {path}"

    def flag(key: str) -> bool:
        given = item.get(key)
        return False if given is None else boolean(given, f"{where}: {key}")

    def word(key: str, allowed: t.Sequence[str]) -> str:
        return choice(item.get(key), f"{where}: {key}", allowed, allowed[0])

    kind = format_of(item.get("format"), f"{where}: format", path, "qcow2")
    about = FORMATS[kind]
    size = item.get("size")
    if size is not None and size != "":
        size = size_bytes(size, f"{where}: size", least=SECTOR, most=2**56)
        if size % SECTOR:
            raise InputError(f"{where}: size: {size} is not allowed.", hint=f"Allowed: multiples of {SECTOR} bytes.")
    else:
        size = None
    backing = item.get("backing")
    backing = path_of(backing, f"{where}: backing") if backing is not None and backing != "" else ""
    cluster = item.get("cluster_size")
    cluster = 0 if cluster is None or cluster == "" else size_bytes(cluster, f"{where}: cluster_size", most=2**21)
    wanted = Wanted(
        path=path,
        state=word("state", STATES),
        format=kind,
        size=size,
        source=_source(item.get("source"), f"{where}: source"),
        replace=flag("replace"),
        backing=backing,
        backing_format=format_of(item.get("backing_format"), f"{where}: backing_format", backing) if backing else "",
        rebase=word("rebase", REBASES),
        flatten=flag("flatten"),
        compression=word("compression", COMPRESSIONS),
        preallocation=word("preallocation", ("off", "metadata", "falloc", "full")),
        subformat=word("subformat", ("", *about.subformats)),
        cluster_bytes=cluster,
        check=flag("check"),
        repair=word("repair", REPAIRS),
        owner=account_of(item.get("owner"), f"{where}: owner"),
        group=account_of(item.get("group"), f"{where}: group"),
        mode=mode_of(item.get("mode"), f"{where}: mode"),
    )
    _consistent(wanted, where)
    return wanted


def _consistent(wanted: Wanted, where: str) -> None:
    """InputError when the keys contradict each other or ask for what the format cannot do."""
    about = FORMATS[wanted.format]

    def refuse(what: str, hint: str) -> t.NoReturn:
        raise InputError(f"{where}: {what}", hint=hint)

    if wanted.backing and wanted.source:
        refuse("backing and source exclude each other.", "Make it of a source, or as an overlay on another image.")
    if wanted.backing and wanted.flatten:
        refuse("backing and flatten exclude each other.", "A flat image has no backing file.")
    if wanted.backing and not about.backing:
        refuse(f"{wanted.format} has no backing files.", "Use qcow2.")
    if wanted.backing == wanted.path or (wanted.source and wanted.source.path == wanted.path):
        refuse("it cannot be made of itself.", "Give another path.")
    if wanted.preallocation not in about.preallocations:
        refuse(
            f"{wanted.format} has no preallocation {wanted.preallocation}.",
            f"It has: {', '.join(about.preallocations)}. Others have the subformat fixed.",
        )
    if wanted.backing and wanted.preallocation != "off":
        refuse("an overlay cannot be preallocated.", "Leave preallocation out.")
    if wanted.compression != "none" and (wanted.format != "qcow2" or not wanted.source):
        refuse(
            "compression is for qcow2 images that are made of a source.",
            "A vmdk of the subformat streamOptimized is always compressed.",
        )
    if wanted.compression != "none" and wanted.preallocation != "off":
        refuse("compression and preallocation exclude each other.", "Choose one.")
    if wanted.cluster_bytes and (
        wanted.format != "qcow2" or wanted.cluster_bytes < 512 or wanted.cluster_bytes & (wanted.cluster_bytes - 1)
    ):
        refuse(
            f"cluster_size: {wanted.cluster_bytes} is not allowed.",
            "Allowed, for qcow2: a power of two from 512 to 2M.",
        )
    if wanted.repair != "none" and not about.repairs:
        refuse(f"a {wanted.format} image cannot be repaired.", "Only qcow2 can.")
    if wanted.replace and not wanted.source:
        refuse("replace needs a source.", "Remove the image first if it is to be made anew.")


def normalise_all(items: object, option: str = "images") -> list[Wanted]:
    """The whole list; no path twice."""
    found = [normalise(item, f"{option}[{index}]") for index, item in enumerate(listed(items, option))]
    paths: set[str] = set()
    for wanted in found:
        if wanted.path in paths:
            raise InputError(f"{option}: {wanted.path} is given twice.", hint="Each image once.")
        paths.add(wanted.path)
    return found
