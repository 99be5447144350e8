# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Templates are made: of a disk image file, of packages, of a stopped guest's disk, or taken over from another host.

``cnvm-host template fetch PEER WORD`` takes a template over; the peer answers ``template send WORD [MIB_S]`` with its
record in one line of JSON and the bytes of its image behind it, no more than MIB_S of them in a second. What arrives is
believed when its digest is what it is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import time
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError, PeerError, Refused
from .._core.mmdebstrap import Recipe
from .._core.names import check_name, is_digest
from .._core.values import human_bytes, integer
from .._image import template
from .._image.commands import Making
from .._image.template import Wanted
from .._libvirt import domain, guest_plan
from .._migrate import wire
from . import (
    archive,
    building,
    cli,
    disks,
    domains,
    files,
    guest_disks,
    identity,
    libvirt,
    peers,
    template_building,
    templates,
)
from .limit import Limit
from .system import Host

_MAKING = Making(templates.FORMAT)
# The peer has nothing to do but to read a file and send it.
_SILENCE_S = 30.0
_FETCH_S = 24 * 3600
# Who waits for what is fetched hears so often that more of it has come.
_TELL_S = 0.5


# --------------------------------------------------------------------------------------------------------------------
# Of a file
# --------------------------------------------------------------------------------------------------------------------
def _unpacked(wanted: Wanted, place: str) -> str:
    """The file to convert: the source itself, or what comes out of it. Its checksum is compared first."""
    with disks.File(wanted.source) as image:
        before = image.fingerprint()
        if wanted.checksum:
            actual = image.digest(wanted.checksum[0])
            if actual != wanted.checksum[1]:
                raise Refused(
                    f"{wanted.source} has the {wanted.checksum[0]} {actual}, not {wanted.checksum[1]}.",
                    hint="Get it again.",
                    path=wanted.source,
                )
        kind = archive.compression_of(image.by_descriptor)
        if kind == "none":
            return wanted.source
        unpacked = f"{place}/unpacked"
        source = os.open(image.by_descriptor, os.O_RDONLY | os.O_CLOEXEC)
        sink = os.open(unpacked, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # A fixed image is as large as its disk, and has tables beside it.
            archive.unpack_file(source, kind, sink, wanted.max_virtual_bytes + wanted.max_virtual_bytes // 8 + 2**26)
        finally:
            os.close(source)
            os.close(sink)
        if image.fingerprint() != before:
            raise Refused(f"{wanted.source} was changed while it was read.", hint="Let nobody else write to it.")
    return unpacked


def _from_file(host: Host, wanted: Wanted, place: str) -> dict[str, t.Any]:
    source = _unpacked(wanted, place)
    if source == wanted.source and wanted.digest and wanted.checksum == ("sha256", wanted.digest):
        return _as_it_is(wanted, place)
    checksum = wanted.checksum if source == wanted.source else None
    limits: dict[str, t.Any] = {"checksum": checksum, "max_virtual_bytes": wanted.max_virtual_bytes}
    return _finish(host, wanted, place, source, wanted.format, limits)


def _as_it_is(wanted: Wanted, place: str) -> dict[str, t.Any]:
    """A template of another host that came in a file: another conversion could make other bytes of it."""
    if wanted.format != templates.FORMAT or wanted.reset_identity or wanted.size is not None:
        raise InputError(
            "digest is that of the file itself, which is not to be changed then.",
            hint="Leave size and reset_identity out, or give the digest that comes out of it.",
        )
    disks.check_untrusted(wanted.source, wanted.format, wanted.max_virtual_bytes)
    shutil.copyfile(wanted.source, f"{place}/disk.qcow2")
    return {"reset_identity": False}


def _finish(
    host: Host, wanted: Wanted, place: str, source: str, kind: str, options: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Make disk.qcow2 of ``source``; what was done, for the record."""
    made = f"{place}/disk.qcow2"
    if not wanted.reset_identity:
        disks.convert(host, source, kind, made, _MAKING, wanted.size, **options)
        return {"reset_identity": False}
    raw = f"{place}/raw"
    disks.convert(host, source, kind, raw, Making("raw"), wanted.size, **options)
    if source.startswith(f"{place}/"):
        os.unlink(source)
    return _without_identity(host, place, raw)


def _without_identity(host: Host, place: str, raw: str) -> dict[str, t.Any]:
    """The same, of a raw image of ours that is not needed any more."""
    done = identity.reset(host, raw, place)
    disks.convert(host, raw, "raw", f"{place}/disk.qcow2", _MAKING, trusted=True)
    os.unlink(raw)
    return {"reset_identity": True, "reset": done}


# --------------------------------------------------------------------------------------------------------------------
# Of packages
# --------------------------------------------------------------------------------------------------------------------
def _from_packages(host: Host, recipe: Recipe, wanted: Wanted, place: str) -> dict[str, t.Any]:
    return _without_identity(host, place, template_building.build(host, recipe, wanted.size, place))


# --------------------------------------------------------------------------------------------------------------------
# Of a guest
# --------------------------------------------------------------------------------------------------------------------
def _guest_disk(name: str, uri: str) -> dict[str, t.Any]:
    """The disk that a stopped guest boots from, as it is now."""
    with libvirt.connect(uri) as connection:
        known = domains.read(connection, [name]).get(name)
    if known is None:
        raise InputError(f"guest: this host has no guest {name!r}.", hint="See cnvm.platform.guest_info.")
    if known.live is not None or known.state != guest_plan.STOPPED:
        raise Refused(
            f"Guest {name!r} is {known.state}: what is on its disk is not all that it has written.",
            hint="Stop it first (cnvm.platform.guest, state: stopped).",
        )
    if known.saved:
        raise Refused(
            f"Guest {name!r} was saved with its memory: what is on its disk is not all that it has written.",
            hint=guest_plan.unsave(name),
        )
    target = domain.boot_disk(known.xml)
    if not target:
        raise InputError(f"guest: {name!r} has no disk.", hint="Name another guest.")
    return t.cast("dict[str, t.Any]", known.model["disks"][target])


def _from_guest(host: Host, wanted: Wanted, place: str, uri: str) -> dict[str, t.Any]:
    disk = _guest_disk(wanted.guest, uri)
    path, kind = str(disk["path"]), str(disk["format"])
    if disks.in_use(path):
        raise Refused(f"{path} is in use by another process.", hint="Stop what uses it first.")
    # Nothing that a guest writes into its disk changes what that rests on. What libvirt was told of may lie anywhere,
    # such as a disk in a pool that a snapshot was made of: the guest reads it already.
    guest_disks.backing_of(path, kind, f"guest: {wanted.guest}", [one["path"] for one in disk["backing"]])
    return _finish(host, wanted, place, path, kind, {"trusted": True})


# --------------------------------------------------------------------------------------------------------------------
# Of another host
# --------------------------------------------------------------------------------------------------------------------
def send(word: str, host: Host, mib_s: int = 0) -> None:
    """Answer a peer that wants a template: its record, then its bytes, ``mib_s`` in a second (0 is no limit)."""
    digest = templates.require(template.word_of(word, "template"), "template")
    templates.check(digest, remember=True)
    out = t.cast("t.BinaryIO", host.stdout)
    cli.write_line(host, {"template": templates.described(digest)})
    with open(paths.template_disk(digest), "rb", buffering=0) as file:
        offset, size, limit = 0, os.fstat(file.fileno()).st_size, Limit(mib_s)
        while offset < size:
            sent = os.sendfile(out.fileno(), file.fileno(), offset, min(size - offset, limit.piece))
            offset += sent
            limit.sent(sent)


class _Incoming:
    """What a peer sends. Each wait has an end; ssh's own words are kept for the message."""

    def __init__(self, host: Host, peer: t.Mapping[str, t.Any], word: str, mib_s: int) -> None:
        self.peer = str(peer["name"])
        # An older helper knows no limit. A move never asks one, the module template may.
        argv = peers.ssh_argv(peer, "template", "send", word, *([str(mib_s)] if mib_s else []))
        # -3 and -1 are subprocess.DEVNULL and PIPE.
        self._process = host.popen(argv, stdin=-3, stdout=-1, stderr=-1, start_new_session=True)
        self._out = self._process.stdout.fileno()
        self._rest = b""

    def lost(self, what: str) -> PeerError:
        """What to raise; ``what`` where the peer has said nothing itself."""
        os.set_blocking(self._process.stderr.fileno(), False)
        said = b""
        with contextlib.suppress(OSError, ValueError):
            said = os.read(self._process.stderr.fileno(), 4000) or b""
        words = said.decode("utf-8", "replace").strip().splitlines()
        return PeerError(
            f"The template could not be had from {self.peer}: {words[-1] if words else what}",
            hint="" if words else "Try again; see 'cnvm-host overlay status'.",
            peer=self.peer,
        )

    def read(self, most: int) -> bytes:
        """Up to ``most`` bytes, none at the end."""
        if self._rest:
            part, self._rest = self._rest[:most], self._rest[most:]
            return part
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if not poll.poll(_SILENCE_S * 1000):
            raise self.lost("it does not answer.")
        return os.read(self._out, most)

    def line(self) -> dict[str, t.Any]:
        """The record."""
        found = b""
        while b"\n" not in found:
            part = self.read(1 << 16)
            if not part or len(found) > wire.MAX_LINE:
                self._process.wait()
                raise self.lost("it sent no record.")
            found += part
        first, _newline, self._rest = found.partition(b"\n")
        about = wire.parse(first).get("template")
        if not isinstance(about, dict) or not is_digest(str(about.get("digest"))):
            raise self.lost("it sent no record.")
        return about

    def close(self) -> None:
        """End the program, however it stands."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            pipe.close()


def fetch(
    host: Host, peer: str, word: str, *, digest: str = "", mib_s: int = 0, waits: t.Callable[[], bool] = lambda: False,
    progress: t.Optional[t.Callable[[int], None]] = None,
) -> tuple[str, bool]:  # fmt: skip
    """Take a template over from ``peer``, under its digest alone; (digest, whether it was new here).

    ``digest``: what it must be. ``mib_s``: how much the peer may send in a second, 0 is no limit. ``waits``: whether to
    wait for somebody who is just fetching it, asked again and again. ``progress`` is called now and then with the bytes
    that have come since. Only the helper can do this: a module has no programs that run beside it.
    """
    incoming = _Incoming(host, peers.find(peer, "peer"), word, mib_s)
    try:
        about = incoming.line()
        if digest and about["digest"] != digest:
            raise Refused(f"{peer} has another template {word}: {about['digest']}, not {digest}.")
        path = f"{paths.RUN}/locks/template-{about['digest']}.lock"
        with files.lock(path, f"fetching template {word!r}", waits=waits):
            if templates.resolve(about["digest"]) and not templates.problem(about["digest"], remember=True):
                return str(about["digest"]), False
            return _receive(incoming, about, progress), True
    finally:
        incoming.close()


def fetched_bytes(digest: str) -> int:
    """How much has come of a template that somebody is just fetching."""
    try:
        return os.path.getsize(f"{building.place(paths.TEMPLATES, _label(digest))}/disk.qcow2")
    except FileNotFoundError:
        return 0


def _label(digest: str) -> str:
    return f"fetch-{digest[:16]}"


def _receive(incoming: _Incoming, about: t.Mapping[str, t.Any], progress: t.Optional[t.Callable[[int], None]]) -> str:
    size, digest = int(about["file_bytes"]), str(about["digest"])
    with building.directory(paths.TEMPLATES, _label(digest)) as place:
        free = os.statvfs(place)
        if size > free.f_bavail * free.f_frsize:
            raise HostError(f"There is no room for the template: it needs {human_bytes(size)}.", hint="Make room.")
        total, left = hashlib.sha256(), size
        untold, told_at = 0, time.monotonic()
        with open(f"{place}/disk.qcow2", "wb", buffering=0) as file:
            while left:
                part = incoming.read(min(left, wire.CHUNK))
                if not part:
                    raise incoming.lost(f"the connection ended {human_bytes(left)} before the end.")
                total.update(part)
                written = file.write(part)
                left -= written
                untold += written
                if progress is not None and (not left or time.monotonic() - told_at > _TELL_S):
                    progress(untold)
                    untold, told_at = 0, time.monotonic()
        if total.hexdigest() != digest:
            raise PeerError(f"What {incoming.peer} sent is not the template {digest}.", hint="Try again.")
        known = {key: about.get(key) for key in ("made_of", "origin", "reset_identity", "reset") if key in about}
        return templates.store(place, known, expected=digest)[0]


def _from_peer(host: Host, wanted: Wanted) -> tuple[str, bool]:
    argv = [paths.HELPER, "template", "fetch", wanted.peer, wanted.digest or wanted.name]
    result = host.run(argv, check=False, timeout_s=_FETCH_S)
    if result.rc:
        words = result.stderr.strip().splitlines()
        raise PeerError(words[-1] if words else f"{wanted.peer} could not be asked for the template.", peer=wanted.peer)
    try:
        said = json.loads(result.stdout)
        return str(said["digest"]), bool(said["new"])
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"{' '.join(argv[:3])} gave no answer: {error}.", hint="Run host_bootstrap again.") from error


# --------------------------------------------------------------------------------------------------------------------
# Bringing a template to what is wanted
# --------------------------------------------------------------------------------------------------------------------
def _known_by(wanted: Wanted, before: t.Optional[t.Mapping[str, t.Any]], check_mode: bool) -> str:
    """What it is made of now; '' in check mode, for a file that is not there yet."""
    if wanted.peer or not (wanted.source or wanted.build or wanted.guest):
        return str((before or {}).get("made_of") or "")
    if wanted.fingerprint or wanted.build or wanted.guest or wanted.checksum:
        return template.made_of(wanted)
    try:
        status = os.stat(wanted.source)
    except FileNotFoundError:
        if check_mode and before is None:
            return ""
        raise InputError(
            f"source: there is no file {wanted.source} on this host.", hint="Create it or copy it there first."
        ) from None
    return template.made_of(wanted, (status.st_size, status.st_mtime_ns, status.st_ino))


def _make(host: Host, wanted: Wanted, known_by: str, uri: str) -> tuple[str, bool, list[str]]:
    """(digest, whether it is new here, what of its identity was reset)."""
    if wanted.peer:
        digest, new = _from_peer(host, wanted)
        return digest, new, []
    with building.directory(paths.TEMPLATES, wanted.name) as place:
        if wanted.guest:
            about = _from_guest(host, wanted, place, uri)
        elif wanted.build:
            about = _from_packages(host, wanted.build, wanted, place)
        else:
            about = _from_file(host, wanted, place)
        description = {**about, "made_of": known_by, "origin": wanted.origin}
        digest, new = templates.store(place, description, expected=wanted.digest)
    return digest, new, list(about.get("reset") or [])


def bring_to(host: Host, values: object, *, check_mode: bool = False, uri: str = libvirt.URI) -> dict[str, t.Any]:
    """Make sure that the name stands for the template that is wanted, or for none; the module's result."""
    wanted = template.normalise(values)
    if wanted.state == "absent":
        return _take_away(wanted.name, check_mode=check_mode)
    before = templates.names().get(wanted.name)
    digest = templates.resolve(wanted.name)
    known = templates.record(digest) if digest else None
    wrong = templates.problem(digest, full=wanted.verify, remember=not check_mode) if digest else ""
    known_by = _known_by(wanted, known, check_mode)
    source = bool(wanted.source or wanted.build or wanted.guest or wanted.peer)
    if wrong and not source:
        templates.check(digest, full=wanted.verify)
    same = known is not None and not wrong and not wanted.refresh
    if same and wanted.digest:
        # The content decides, wherever it came from.
        same = digest == wanted.digest
    elif same:
        same = (known or {}).get("made_of", "") == known_by
    actions: list[str] = []
    reset: list[str] = []
    if not same:
        here = bool(wanted.digest and templates.resolve(wanted.digest))
        if here and not templates.problem(wanted.digest, remember=not check_mode):
            # Under another name, or under none.
            after = wanted.digest
        elif not source:
            templates.require(wanted.name, "name")
            raise Refused(
                f"The template {wanted.name} of this host is {digest}, not {wanted.digest}.",
                hint="Say where to take the other one from: source or peer.",
            )
        elif check_mode:
            after = ""
        else:
            with files.lock(f"{paths.RUN}/locks/template-{wanted.name}.lock", f"making template {wanted.name!r}"):
                after, new, reset = _make(host, wanted, known_by, uri)
            if new:
                actions.append("mend" if wrong and after == digest else "fetch" if wanted.peer else "make")
        if check_mode and not after:
            actions += ["fetch" if wanted.peer else "make", "name"]
        if after and before != after:
            actions.append("name")
            if not check_mode:
                templates.point(wanted.name, after)
        digest = after
    if digest and templates.make_read_only(digest, check_mode=check_mode):
        actions.append("make read-only")
    return {
        "changed": bool(actions),
        "actions": actions,
        "template": templates.shown(digest, wanted.name) if digest else None,
        "reset": reset,
        "diff": {
            "before": {"name": wanted.name, "digest": before} if before else {},
            "after": {"name": wanted.name, "digest": digest or "(known when it is made)"},
        },
    }


def _take_away(word: str, *, check_mode: bool) -> dict[str, t.Any]:
    before = templates.names().get(word, word if templates.resolve(word) else None)
    removed = templates.remove(word, check_mode=check_mode)
    return {
        "changed": bool(removed),
        "actions": [f"remove {one}" for one in removed],
        "template": None,
        "reset": [],
        "diff": {"before": {"name": word, "digest": before} if before else {}, "after": {}},
    }


# --------------------------------------------------------------------------------------------------------------------
# The helper's words
# --------------------------------------------------------------------------------------------------------------------
def _template(args: t.Sequence[str], host: Host) -> int:
    if len(args) in (2, 3) and args[0] == "send":
        send(args[1], host, integer(args[2], "MIB_S", least=0, most=wire.MOST_MIB_S) if args[2:] else 0)
    elif len(args) == 3 and args[0] == "fetch":
        peer, word = check_name(args[1], "PEER"), template.word_of(args[2], "TEMPLATE")
        digest, new = fetch(host, peer, word, digest=word if is_digest(word) else "")
        cli.write_line(host, {"digest": digest, "new": new})
    else:
        raise InputError("Usage: cnvm-host template send TEMPLATE [MIB_S], or fetch PEER TEMPLATE.")
    return 0


def answer(args: t.Sequence[str], host: Host) -> int:
    """What a peer may ask for."""
    if list(args[:1]) != ["send"]:
        raise CnvmError("This key may only ask for a template.", hint="Log in with your own key.")
    return _template(args, host)


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"template": _template}
