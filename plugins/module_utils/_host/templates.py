# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The templates of a host: read-only disk images, each under the digest of its bytes; names point at them.

A template appears whole or not at all: it is made beside its place and renamed into it. What rests on it reads it as
long as it lives, so that its bytes may never change. Whether they have is seen by its size, its inode and the time of
its last change, which cost nothing; where one of them is another, or when it is asked for, all bytes are read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from .._core import paths
from .._core.errors import HostError, Missing, Refused
from .._core.names import is_digest
from . import building, disks, files, mounts

SCHEMA = 1
FORMAT = "qcow2"
# Nobody writes to it, and QEMU's user reads it.
MODE = 0o444
_DIRECTORY = 0o755


# --------------------------------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------------------------------
def names() -> dict[str, str]:
    """All names on this host and the digests that they stand for."""
    found = {}
    try:
        listing = sorted(os.listdir(f"{paths.TEMPLATES}/names"))
    except FileNotFoundError:
        return {}
    for name in listing:
        if not name.endswith(".new"):
            with open(paths.template_name_file(name), encoding="ascii", errors="replace") as file:
                found[name] = file.read().strip()
    return found


def names_of(digest: str) -> list[str]:
    """The names of one of them."""
    return [name for name, each in names().items() if each == digest]


def resolve(word: str) -> str:
    """The digest of a template of this host, given by that or by a name; '' where it is not here."""
    if is_digest(word):
        return word if os.path.exists(paths.template_disk(word)) else ""
    try:
        with open(paths.template_name_file(word), encoding="ascii", errors="replace") as file:
            digest = file.read().strip()
    except FileNotFoundError:
        return ""
    return digest if is_digest(digest) and os.path.exists(paths.template_disk(digest)) else ""


def require(word: str, option: str) -> str:
    """The same; Missing where it is not here."""
    digest = resolve(word)
    if not digest:
        known = ", ".join(names()) or "none"
        raise Missing(
            f"{option}: this host has no template {word!r}.",
            hint=f"It has: {known}. Bring it with the role cnvm.platform.guest_template.",
        )
    return digest


def point(name: str, digest: str) -> bool:
    """Let ``name`` stand for ``digest``; whether it did not before."""
    if names().get(name) == digest:
        return False
    files.write_text(paths.template_name_file(name), digest + "\n")
    return True


def digests() -> list[str]:
    """All templates of this host, those without a name, too."""
    try:
        listing = sorted(os.listdir(f"{paths.TEMPLATES}/sha256"))
    except FileNotFoundError:
        return []
    return [entry for entry in listing if is_digest(entry)]


# --------------------------------------------------------------------------------------------------------------------
# One of them
# --------------------------------------------------------------------------------------------------------------------
def _record_file(digest: str) -> str:
    return f"{paths.template_dir(digest)}/template.json"


def record(digest: str) -> t.Optional[dict[str, t.Any]]:
    """template.json, None where this host does not have it."""
    return files.read_json(_record_file(digest))


def described(digest: str) -> dict[str, t.Any]:
    """What of the record is the same on every host."""
    return {key: value for key, value in (record(digest) or {}).items() if key != "seen"}


def _stamp(path: str) -> dict[str, int]:
    """Another one when the file was written to or replaced. Not the time of its inode's change: libvirt gives QEMU's
    user access to an image when a guest starts, and takes it back at its end."""
    status = os.stat(path)
    return {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def problem(digest: str, *, full: bool = False, remember: bool = False) -> str:
    """Why a template is not what its digest says any more; '' when it is. ``full``: read all of it. ``remember``: write
    down by what it is known from now on, where it was copied or restored and is the same; not for who only looks."""
    path, known = paths.template_disk(digest), record(digest)
    try:
        stamp = _stamp(path)
    except FileNotFoundError:
        return f"{path} is gone"
    if not full and known is not None and known.get("seen") == stamp:
        return ""
    actual = disks.digest(path)
    if actual != digest:
        return f"{path} was changed: it is {actual} now"
    if remember and known is not None and known.get("seen") != stamp:
        files.write_json(_record_file(digest), {**known, "seen": stamp})
    return ""


def check(digest: str, *, full: bool = False, remember: bool = False) -> None:
    """Refused when a template is not what its digest says any more; see ``problem``."""
    found = problem(digest, full=full, remember=remember)
    if found:
        overlays, unseen = disks.overlays_known([paths.template_disk(digest)])
        known, users = names_of(digest), dependants(digest, overlays or {})
        said = [f"The template {', '.join(known) or digest} is damaged: {found}."]
        said += [f"These rest on it and read wrong data: {', '.join(users)}."] if users else []
        raise Refused(
            " ".join([*said, *unseen]),
            hint="Register it again from what it was made of, or from a host that has it (peer); nothing else is "
            "changed. Nobody may write to a template.",
            digest=digest,
            dependants=users,
        )


def below(definition: t.Mapping[str, t.Any]) -> set[str]:
    """The digests of the templates of this host that a guest's linked disks rest on."""
    found = {str(disk.get("template_digest") or "") for disk in definition.get("disks") or () if disk.get("linked")}
    return {digest for digest in found if digest and resolve(digest)}


def dependants(digest: str, overlays: t.Optional[t.Mapping[str, str]] = None) -> list[str]:
    """What rests on a template: ``guest NAME``, and the paths of other images.

    Guests by their definitions, wherever their disks are, and all images whose headers name it, in the collection's own
    places, where libvirt's guests have theirs, and where images are on record. ``overlays``: those of
    ``disks.overlays_around``, where several templates are looked at.
    """
    away = mounts.silent()
    guests, theirs = set(), set()
    try:
        listing = os.listdir(paths.WORKLOADS)
    except FileNotFoundError:
        listing = []
    for name in listing:
        definition = files.read_json(paths.definition_file(name)) or {}
        for disk in definition.get("disks") or ():
            if disk.get("linked") and disk.get("template_digest") == digest:
                guests.add(name)
                pooled = paths.pooled_disk(name, disk["name"], disk["format"])
                theirs.add(away.real(disk["path"]) if disk["path"] else pooled)
    real = os.path.realpath(paths.template_disk(digest))
    found = disks.overlays_around([real]) if overlays is None else overlays
    others = []
    for path in disks.resting_on(real, found):
        home = path[len(paths.WORKLOADS) + 1 :].split("/") if path.startswith(f"{paths.WORKLOADS}/") else []
        if len(home) > 1:
            guests.add(home[0])
        elif not theirs & {os.path.realpath(path), os.path.basename(path)}:
            others.append(path)
    return [*(f"guest {name}" for name in sorted(guests)), *sorted(others)]


# --------------------------------------------------------------------------------------------------------------------
# Coming and going
# --------------------------------------------------------------------------------------------------------------------
def store(made_in: str, description: t.Mapping[str, t.Any], *, expected: str = "") -> tuple[str, bool]:
    """Put ``made_in``/disk.qcow2 into its place; (digest, whether this host did not have it, or not whole).

    Refused when ``expected`` is another digest, or when it is not an image that is complete in itself.
    """
    made = f"{made_in}/disk.qcow2"
    header = disks.inspect(made, FORMAT).header
    if header.external or header.encrypted:
        raise Refused(f"The image is not complete in itself: {', '.join(header.external) or 'it is encrypted'}.")
    if header.snapshots:
        raise Refused(
            f"The image has {header.snapshots} internal snapshots, which every host would get with it.",
            hint="Leave digest out, and it is converted without them.",
        )
    digest = disks.digest(made)
    if expected and digest != expected:
        raise Refused(
            f"The template has the digest {digest}, not {expected}.", hint="The source is not what it should be."
        )
    os.chmod(made, MODE)
    disks.sync(made)
    place = paths.template_dir(digest)
    new = bool(problem(digest)) if os.path.isdir(place) else True
    if os.path.isdir(place):
        if new:
            # Guests that run on the damaged one keep it open until they stop.
            os.replace(made, paths.template_disk(digest))
        files.write_json(_record_file(digest), _whole(description, digest, paths.template_disk(digest)))
        return digest, new
    files.write_json(f"{made_in}/template.json", _whole(description, digest, made))
    os.chmod(made_in, _DIRECTORY)
    for above in (paths.TEMPLATES, os.path.dirname(place)):
        files.make_dirs(above)
        os.chmod(above, _DIRECTORY)
    for leftover in os.listdir(made_in):
        if leftover not in ("disk.qcow2", "template.json"):
            os.unlink(f"{made_in}/{leftover}")
    os.rename(made_in, place)
    files.sync_dir(os.path.dirname(place))
    return digest, True


def _whole(description: t.Mapping[str, t.Any], digest: str, path: str) -> dict[str, t.Any]:
    header = disks.inspect(path, FORMAT).header
    return {
        **description,
        "schema": SCHEMA,
        "digest": digest,
        "virtual_bytes": header.virtual_bytes,
        "file_bytes": os.path.getsize(path),
        "seen": _stamp(path),
    }


def make_read_only(digest: str, *, check_mode: bool = False) -> bool:
    """Whether somebody might have written to it."""
    path = paths.template_disk(digest)
    if stat.S_IMODE(os.stat(path).st_mode) == MODE:
        return False
    if not check_mode:
        os.chmod(path, MODE)
    return True


def _lock_file(digest: str) -> str:
    return f"{paths.RUN}/locks/template-{digest[:32]}.lock"


@contextlib.contextmanager
def used(digests_used: t.Iterable[str], what: str) -> t.Iterator[None]:
    """None of these templates is removed meanwhile: what is being made on it is not seen by who looks for that."""
    with contextlib.ExitStack() as held:
        for digest in sorted(digests_used):
            held.enter_context(files.lock(_lock_file(digest), what, shared=True))
        yield


def at(path: str) -> list[str]:
    """The digest of the template whose image this is, whatever leads there; none where it is no template's."""
    digest = os.path.basename(os.path.dirname(os.path.realpath(path)))
    known = is_digest(digest) and os.path.realpath(path) == os.path.realpath(paths.template_disk(digest))
    return [digest] if known else []


def remove(word: str, *, check_mode: bool = False) -> list[str]:
    """Remove a name, and the template when it has no other one; what was (or would be) removed.

    Refused when it is the last name and something rests on the template.
    """
    if not check_mode:
        # Also what a run that was cut off had begun to remove: that has no name, and no digest, any more.
        building.remove_unfinished(paths.TEMPLATES)
    known = names()
    digest = known.get(word) or (word if is_digest(word) and os.path.isdir(paths.template_dir(word)) else "")
    if not digest:
        return []
    with contextlib.nullcontext() if check_mode else files.lock(_lock_file(digest), f"removing the template {word}"):
        return _remove(word, known, digest, check_mode=check_mode)


def _remove(word: str, known: t.Mapping[str, str], digest: str, *, check_mode: bool) -> list[str]:
    there = is_digest(digest) and os.path.isdir(paths.template_dir(digest))
    others = [name for name, each in known.items() if each == digest and name != word]
    removed = [f"name {word}"] if word in known else []
    if others and word not in known:
        raise Refused(f"The template {word} has the name {', '.join(others)}.", hint="Remove that.")
    if there and not others:
        users = dependants(digest)
        if users:
            raise Refused(
                f"The template {word} is in use by {', '.join(users)}.",
                hint="Remove them with their disks first, or flatten their disks (cnvm.platform.disk_image).",
                dependants=users,
            )
        removed.append(f"template {digest}")
    if not check_mode:
        if there and not others:
            building.discard(paths.TEMPLATES, paths.template_dir(digest))
        # Last: without it a run that is cut off would leave a template that nobody asks to remove any more.
        if word in known:
            files.remove_file(paths.template_name_file(word), durable=True)
    return removed


# --------------------------------------------------------------------------------------------------------------------
# Telling
# --------------------------------------------------------------------------------------------------------------------
def report(
    wanted: t.Optional[t.Sequence[str]] = None, *, with_dependants: bool = True, full: bool = False
) -> dict[str, t.Any]:
    """What there is to say about the templates of this host (or of ``wanted``): ``templates`` by name, ``warnings``.

    Never fails for one of them: ``problem`` says what is wrong. ``dependants``: None where nobody can say.
    """
    known = names()
    asked = None if wanted is None else {known.get(word, word) for word in wanted}
    listed = [digest for digest in digests() if asked is None or digest in asked]
    overlays: t.Optional[dict[str, str]] = {}
    warnings: list[str] = []
    if with_dependants and listed:
        overlays, warnings = disks.overlays_known(map(paths.template_disk, listed))
    found = []
    for digest in listed:
        about = record(digest) or {}
        path = paths.template_disk(digest)
        try:
            allocated = os.stat(path).st_blocks * 512
        except FileNotFoundError:
            allocated = 0
        one = {
            "names": sorted(name for name, each in known.items() if each == digest),
            "digest": digest,
            "path": path,
            "format": FORMAT,
            **{key: about.get(key) for key in ("virtual_bytes", "file_bytes", "made_of", "origin", "reset_identity")},
            "allocated_bytes": allocated,
            "problem": problem(digest, full=full) or None,
        }
        if with_dependants:
            one["dependants"] = None if overlays is None else dependants(digest, overlays)
        found.append(one)
    found.sort(key=lambda one: (one["names"] or ["\x7f"], one["digest"]))
    return {"templates": found, "warnings": warnings}


def shown(digest: str, name: str) -> dict[str, t.Any]:
    """A template as a module returns it."""
    about = record(digest)
    if about is None:
        raise HostError(f"The template {digest} is not on this host.")
    keys = ("digest", "virtual_bytes", "file_bytes", "made_of", "origin", "reset_identity")
    return {"name": name, "path": paths.template_disk(digest), **{key: about.get(key) for key in keys}}
