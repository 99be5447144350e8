# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Backing chains: which files an image rests on, walked with an end."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import typing as t

from .._core.errors import Refused
from .headers import Header

MOST_DEPTH = 16

# What QEMU takes for a protocol: a word and a colon before the first slash.
_PROTOCOL = re.compile(r"[^/:]*:")
# What lies behind a network.
_ADDRESS = re.compile(r"[^/:]*://|(nbd|rbd|sheepdog|vxhs):")


@dataclasses.dataclass(frozen=True)
class Node:
    """One image of a chain. ``identity`` is the same for two names of one file."""

    path: str
    identity: t.Hashable
    header: Header
    file_bytes: int = 0
    allocated_bytes: int = 0


def resolve(path: str, backing: str) -> str:
    """The absolute path of what the image ``path`` calls ``backing``; relative names start at its directory.

    Refused when it is no file but an address (``nbd://…``), or options for QEMU (``json:{…}``).
    """
    if _PROTOCOL.match(backing):
        raise Refused(
            f"{path}: the backing file {backing!r} is no plain file.",
            hint="Only files of this host are supported as backing files.",
        )
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), backing))


def rests_on(path: str, backing: str) -> str:
    """The absolute path of the file that the image ``path`` needs, whichever way it names that (``backing``): that we
    follow no addresses and no options does not make the file needless. '' for what lies behind a network, and the name
    itself where only QEMU knows what it stands for."""
    kind, _colon, rest = backing.partition(":")
    if kind == "json":
        return _in_options(path, rest)
    if kind == "file" and rest.startswith("/"):
        return f"/{posixpath.normpath(rest).lstrip('/')}"
    if _ADDRESS.match(backing):
        return ""
    return backing if _PROTOCOL.match(backing) else resolve(path, backing)


def _in_options(path: str, options: str) -> str:
    try:
        told = json.loads(options)
    except (ValueError, RecursionError):
        # QEMU takes more for JSON than others do.
        return f"json:{options}"
    named = f"json:{json.dumps(told, ensure_ascii=False)}"
    # A relative name starts where QEMU was started.
    found = {rests_on(path, name) if name[:1] == "/" or _PROTOCOL.match(name) else named for name in _file_names(told)}
    return found.pop() if len(found) == 1 else named if found else ""


def _file_names(options: object) -> t.Iterator[str]:
    if isinstance(options, list):
        for each in options:
            yield from _file_names(each)
    elif isinstance(options, dict):
        for key, value in options.items():
            if isinstance(value, str) and key.rpartition(".")[2] == "filename":
                yield value
            else:
                yield from _file_names(value)


def walk(path: str, look: t.Callable[[str, str], Node], *, kind: str = "", most: int = MOST_DEPTH) -> tuple[Node, ...]:
    """The chain of an image, itself first, the base last.

    ``look(path, format)`` gives one node; ``kind`` is the format of the first, of the others their overlay names it
    (empty: to be found out). Refused when the chain comes back to itself, is longer than ``most``, or has an image
    that keeps its content in other files.
    """
    nodes: list[Node] = []
    while True:
        node = look(path, kind)
        if any(node.identity == other.identity for other in nodes):
            raise Refused(
                f"{nodes[0].path}: its chain of backing files comes back to {node.path}.",
                hint="Such an image cannot be read. Give one of them another backing file.",
            )
        nodes.append(node)
        if len(nodes) > most:
            raise Refused(
                f"{nodes[0].path}: its chain of backing files has more than {most} images.", hint="Flatten some of it."
            )
        if node.header.data_file or node.header.extents or node.header.parent:
            raise Refused(
                f"{node.path}: it names {', '.join(node.header.external)}.", hint="Such images are not supported."
            )
        if not node.header.backing:
            return tuple(nodes)
        kind = node.header.backing_format
        path = resolve(node.path, node.header.backing)
