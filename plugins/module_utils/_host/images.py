# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The images of a host: unpacked, read-only by convention, each under the digest of its content; names point at them.

An image appears whole or not at all: it is made beside its place and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError
from .._core.names import is_digest
from .._oci.members import Policy
from . import archive, building, files

SCHEMA = 1
_CONTENT = Policy(allow_setuid=True)


def tree_digest(root: str, process: t.Mapping[str, t.Any]) -> tuple[str, int, int]:
    """(sha256, entries, bytes) of a root file system with its default process.

    Counted: paths, types, modes, owners, link targets, device numbers, which names are one file, the extended
    attributes that an image keeps, file content. Not counted: times, and the order in which a file system lists.
    """
    total = hashlib.sha256(b"cnvm image 1\0" + json.dumps(process, sort_keys=True).encode() + b"\0")
    entries = size = 0
    buffer = memoryview(bytearray(archive.BUFFER))
    first: dict[tuple[int, int], str] = {}
    status = os.lstat(root)
    total.update(b"%o %d:%d\0" % (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))
    found = sorted(archive.walk(root), key=lambda entry: entry[0])
    for path, status in found:
        full = os.path.join(root, path)
        kind = stat.S_IFMT(status.st_mode)
        entries += 1
        total.update(os.fsencode(path) + b"\0%o %d:%d" % (status.st_mode, status.st_uid, status.st_gid))
        for name, value in sorted(archive.attributes_of(full, _CONTENT)):
            total.update(b" " + name + b"=" + hashlib.sha256(value).digest())
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            other = first.setdefault((status.st_dev, status.st_ino), path)
            if other != path:
                total.update(b" same " + os.fsencode(other) + b"\0")
                continue
        if kind == stat.S_IFREG:
            size += status.st_size
            digest = hashlib.sha256()
            with open(full, "rb", buffering=0) as file:
                while True:
                    got = file.readinto(buffer)
                    if not got:
                        break
                    digest.update(buffer[:got])
            total.update(b" " + digest.digest())
        elif kind == stat.S_IFLNK:
            total.update(b" -> " + os.fsencode(os.readlink(full)))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            total.update(b" dev %d" % status.st_rdev)
        total.update(b"\0")
    return total.hexdigest(), entries, size


def names() -> dict[str, str]:
    """All names on this host and the digests that they stand for."""
    directory = f"{paths.IMAGES}/names"
    found = {}
    try:
        listing = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    for name in listing:
        if not name.endswith(".new"):
            with open(paths.image_name_file(name), encoding="ascii", errors="replace") as file:
                found[name] = file.read().strip()
    return found


def resolve(image: str) -> tuple[str, str]:
    """(digest, name) of an image of this host, given by either; the name is empty when it was given by digest.

    ``("", image)`` where this host has no such image.
    """
    if is_digest(image):
        return (image if os.path.isdir(paths.image_dir(image)) else "", "")
    try:
        with open(paths.image_name_file(image), encoding="ascii", errors="replace") as file:
            digest = file.read().strip()
    except FileNotFoundError:
        return "", image
    if not is_digest(digest) or not os.path.isdir(paths.image_dir(digest)):
        return "", image
    return digest, image


def record(digest: str) -> t.Optional[dict[str, t.Any]]:
    """image.json of an image, None where this host does not have it."""
    return files.read_json(f"{paths.image_dir(digest)}/image.json")


def record_of_name(name: str) -> t.Optional[dict[str, t.Any]]:
    """image.json of the image that ``name`` stands for."""
    digest, _name = resolve(name)
    return record(digest) if digest else None


def point(name: str, digest: str) -> bool:
    """Let ``name`` stand for ``digest``; whether it did not before."""
    if names().get(name) == digest:
        return False
    files.write_text(paths.image_name_file(name), digest + "\n")
    return True


def store(made_in: str, description: t.Mapping[str, t.Any], *, expected: str = "") -> tuple[str, bool]:
    """Put what ``made_in`` holds (rootfs, config.json) into its place; (digest, whether it is new here).

    InputError when ``expected`` is another digest.
    """
    digest, entries, size = tree_digest(f"{made_in}/rootfs", description.get("process") or {})
    if expected and digest != expected:
        raise InputError(
            f"The image has the digest {digest}, not {expected}.", hint="The source is not what it should be."
        )
    made = {"schema": SCHEMA, **description, "digest": digest, "entries": entries, "size_bytes": size}
    place = paths.image_dir(digest)
    if os.path.isdir(place):
        # The same content came another way; the record of where it came from is the newer one.
        before = files.read_json(f"{place}/image.json") or {}
        known = {*fingerprints(before), *fingerprints(made)}
        kept = {"archives": before["archives"]} if "archives" in before else {}
        files.write_json(f"{place}/image.json", {**made, **kept, "fingerprints": sorted(known)})
        return digest, False
    files.write_json(f"{made_in}/image.json", made)
    # An archive that holds its own top has made it somebody else's.
    os.chown(made_in, os.geteuid(), os.getegid())
    os.chmod(made_in, 0o700)
    files.make_dirs(os.path.dirname(place))
    os.sync()
    os.rename(made_in, place)
    files.sync_dir(os.path.dirname(place))
    return digest, True


def fingerprints(made: t.Mapping[str, t.Any]) -> set[str]:
    """All that the sources of an image are known by, from its record. By each name it may have been made of another."""
    return {*made.get("fingerprints", ()), made.get("fingerprint")} - {None}


def note_source(made: t.Mapping[str, t.Any], fingerprint: str) -> dict[str, t.Any]:
    """The record of an image that another source brings, too."""
    known = {**made, "fingerprints": sorted({*fingerprints(made), fingerprint})}
    files.write_json(f"{paths.image_dir(made['digest'])}/image.json", known)
    return known


def users_of(digest: str) -> list[str]:
    """The containers of this host that are made of an image."""
    found = []
    try:
        listing = sorted(os.listdir(paths.WORKLOADS))
    except FileNotFoundError:
        return []
    for name in listing:
        if (files.read_json(paths.definition_file(name)) or {}).get("image") == digest:
            found.append(name)
    return found


def remove(name: str, *, check_mode: bool = False) -> list[str]:
    """Remove a name, and the image when it has no other name and no container; what was (or would be) removed."""
    if not check_mode:
        # Also what a run that was cut off had begun to remove: that has no name, and no digest, any more.
        building.remove_unfinished(paths.IMAGES)
    known = names()
    digest = known.get(name) or (name if is_digest(name) and os.path.isdir(paths.image_dir(name)) else "")
    if not digest:
        return []
    removed = [f"name {name}"] if name in known else []
    used = users_of(digest)
    others = [other for other, target in known.items() if target == digest and other != name]
    if name not in known and (used or others):
        raise InputError(
            f"The image {name} is in use by {', '.join(f'container {one}' for one in used) or ', '.join(others)}.",
            hint="Remove them first.",
        )
    goes = not used and not others and os.path.isdir(paths.image_dir(digest))
    if goes:
        removed.append(f"image {digest}")
    if not check_mode:
        if goes:
            building.discard(paths.IMAGES, paths.image_dir(digest))
        # Last: without it a run that is cut off would leave an image that nobody asks to remove any more.
        if name in known:
            files.remove_file(paths.image_name_file(name), durable=True)
    return removed


def verify(digest: str) -> None:
    """HostError when an image is no longer what its digest says."""
    known = record(digest)
    if known is None:
        raise HostError(f"The image {digest} is not on this host.")
    actual, _entries, _size = tree_digest(f"{paths.image_dir(digest)}/rootfs", known.get("process") or {})
    if actual != digest:
        raise HostError(
            f"The image {digest} was changed on this host (it is {actual} now).",
            hint=f"Remove {paths.image_dir(digest)} and bring it again. Containers on it see the change.",
        )
