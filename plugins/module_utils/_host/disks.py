# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Disk images of a host: looked at by our own code, made and changed by qemu-img.

An image appears whole or not at all: it is made beside its place and renamed into it, and a run that was cut off leaves
what was there before. Before qemu-img may open an image its headers and those of all images below were read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import grp
import hashlib
import os
import pwd
import stat
import struct
import typing as t

from .._core import paths
from .._core.errors import HostError, InputError, Refused
from .._core.runner import CommandResult, checked
from .._core.values import human_bytes
from .._image import chain as chains
from .._image import commands, headers, trust
from .._image.chain import Node
from .._image.commands import Condition, Making
from .._image.formats import FORMATS
from .._image.overlay import CLUSTER, overlay
from . import disk_records, domains, files, mounts
from .system import Host

# Directories below these are looked through for images that rest on another one.
MOST_DEPTH = 4
MOST_FILES = 100_000
BUFFER = 2**20
# An image may hold anything; libvirt gives QEMU's user access to the disks of a guest that it starts.
NEW_MODE = 0o600
# QEMU holds locks (open file description locks) on these bytes of every image that it has open.
_LOCK_BYTES = (100, 200)
# What the names look like under which images are made.
TEMPORARY = ".cnvm-*.new"


_Limit = t.Callable[[list[str]], list[str]]


# -- Looking


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class File:
    """A file's bytes, as the readers of headers want them. Never blocks on what is no plain file or block device."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise InputError(
                f"There is no file {path} on this host.", hint="Create it or copy it there first."
            ) from None
        except OSError as error:
            raise HostError(f"{path} cannot be opened: {error.strerror}.", path=path) from error
        try:
            self.status = os.fstat(self._fd)
            if stat.S_ISBLK(self.status.st_mode):
                self.size = os.lseek(self._fd, 0, os.SEEK_END)
            elif stat.S_ISREG(self.status.st_mode):
                self.size = self.status.st_size
            else:
                raise InputError(f"{path} is no plain file.", hint="Give the path of a disk image.")
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, *dummy: object) -> None:
        os.close(self._fd)

    @property
    def by_descriptor(self) -> str:
        """A name of this very file for the commands that we run while it is open, whatever lies at its path by then."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end."""
        parts = []
        while length > 0:
            part = os.pread(self._fd, min(length, BUFFER), offset) if offset < self.size else b""
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def fingerprint(self) -> tuple[int, ...]:
        """Changes whenever the file does."""
        return _fingerprint(os.fstat(self._fd))

    def digest(self, algorithm: str = "sha256") -> str:
        """Digest of all its bytes."""
        total = hashlib.new(algorithm)
        buffer = memoryview(bytearray(BUFFER))
        offset = 0
        while True:
            got = os.preadv(self._fd, [buffer], offset)
            if not got:
                return total.hexdigest()
            total.update(buffer[:got])
            offset += got


def format_by_content(image: headers.Image, path: str) -> str:
    """The format that a file's content tells. For images that this host made; never for a disk that a guest writes to
    as raw: the guest decides what its first bytes are."""
    marks = [mark for mark in headers.identify(image) if mark != "iso"]
    if len(marks) > 1:
        raise Refused(f"{path} can be read as {' and as '.join(marks)}.", hint="Name its format.")
    if marks and marks[0] not in FORMATS:
        raise Refused(f"{path} is a {marks[0]} image.", hint=f"Supported are {', '.join(FORMATS)}.")
    return marks[0] if marks else "raw"


def inspect(path: str, kind: str = "") -> Node:
    """What an image says about itself. ``kind``: its format, where it is known; else its content tells."""
    with File(path) as image:
        kind = kind or format_by_content(image, path)
        try:
            header = headers.parse(image, kind)
        except Refused as refusal:
            raise Refused(f"{path}: {refusal.message}", hint=refusal.hint, path=path, format=kind) from None
        status = image.status
        identity = (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else ("device", status.st_rdev)
        return Node(path, identity, header, image.size, status.st_blocks * 512)


def chain(path: str, kind: str = "") -> tuple[Node, ...]:
    """An image and all below it, the base last; see ``_image.chain.walk`` for what is refused. SilentStorage where one
    of them is on storage that does not answer."""
    away = mounts.silent()

    def look(place: str, its_kind: str) -> Node:
        away.check([place], "" if place == path else path)
        return inspect(place, its_kind)

    return chains.walk(path, look, kind=kind)


def backing_path(node: Node) -> str:
    """The path of what an image rests on."""
    return chains.resolve(node.path, node.header.backing) if node.header.backing else ""


def check_untrusted(
    path: str, expected_format: str, max_virtual_bytes: int = trust.DEFAULT_MOST_VIRTUAL_BYTES
) -> headers.Header:
    """The header of an image from outside; Refused unless it is sound, complete in itself and what it is said to be."""
    with File(path) as image:
        return trust.check_untrusted(image, path, expected_format, max_virtual_bytes)


def check_sound(node: Node) -> None:
    """Refused when an image of this host, which nobody writes to now, is marked as damaged or is cut off."""
    with File(node.path) as image:
        trust.check_sound(image, node.path, node.header)


def check_cd(path: str) -> None:
    """Refused or InputError when a file is no image of a CD or DVD, or only a part of one."""
    with File(path) as image:
        trust.check_cd(image, path)


def digest(path: str, algorithm: str = "sha256") -> str:
    """Digest of the file's bytes."""
    with File(path) as image:
        return image.digest(algorithm)


def in_use(path: str) -> bool:
    """Whether a QEMU process has the image open, by the locks that it holds."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        start, length = _LOCK_BYTES
        # struct flock; a process id of 0 is what this call demands.
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(fd, getattr(fcntl, "F_OFD_GETLK", 36), asked)
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    except OSError:
        # A file system without locks: QEMU has none there either.
        return False
    finally:
        os.close(fd)


def _files_below(directory: str, depth: int, away: mounts.Away) -> t.Iterator[str]:
    """The plain files in a directory and ``depth`` levels below it, without following links. None below ``away``."""
    count, todo = 0, [(directory, 0)] if away.real(directory) else []
    while todo:
        place, level = todo.pop()
        here = os.path.realpath(place)
        # By what the directory says of its entries: where a link leads to may hang, and what is mounted there. Only
        # where somebody goes on to is looked whether it does.
        entries = _listed(place)
        below = [each for each in entries if _is(each.is_dir)]
        further = below if level < depth else []
        todo += [(each.path, level + 1) for each in further if not away.begins_at(os.path.join(here, each.name))]
        count += len(entries) - len(below)
        if count > MOST_FILES:
            raise HostError(
                f"There are more than {MOST_FILES} files in {directory}.",
                hint="Keep disk images apart from other files.",
            )
        found = [each for each in entries if _is(each.is_file)]
        yield from (each.path for each in found if not away.begins_at(os.path.join(here, each.name)))


def _is(kind: t.Callable[..., bool]) -> bool:
    """Whether an entry of a directory is of that kind (``is_dir``), and no link."""
    try:
        return kind(follow_symlinks=False)
    except OSError:
        return False


def _listed(directory: str) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing where it is gone meanwhile."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def overlays(
    directories: t.Iterable[str],
    *,
    beside: t.Iterable[str] = (),
    away: mounts.Away = mounts.NOTHING,
    unseen: t.Optional[list[str]] = None,
) -> dict[str, str]:
    """All images that rest on another one, with the real path of that, or its name where only QEMU knows what it stands
    for: in ``directories`` and below them, and in the directories ``beside`` themselves.

    ``unseen`` is told where there are too many files to look at; HostError without it.
    """
    found: dict[str, str] = {}
    places = {**dict.fromkeys(beside, 0), **dict.fromkeys(directories, MOST_DEPTH)}
    for directory, depth in places.items():
        try:
            for path in _files_below(directory, depth, away):
                below = rests_on(path, away)
                if below:
                    found[path] = below
        except HostError as error:
            if unseen is None:
                raise
            unseen.append(not_known(error))
    return found


def rests_on(path: str, away: mounts.Away = mounts.NOTHING) -> str:
    """The real path of what lies below an image by its content, or its name where only QEMU knows what it stands for;
    '' for nothing, also where it cannot be told, or leads to what is ``away``."""
    # Damaged, forged or gone meanwhile: it rests on nothing that we could name.
    with contextlib.suppress(OSError, Refused, InputError, HostError):
        with File(path) as image:
            kind = next((mark for mark in headers.identify(image) if mark in ("qcow2", "vmdk")), "")
            backing = headers.parse(image, kind).backing if kind else ""
        below = chains.rests_on(path, backing) if backing else ""
        return away.real(below) if below.startswith("/") else below
    return ""


def dependants(directories: t.Iterable[str] | str, path: str) -> list[str]:
    """The images in ``directories`` and below them that rest directly on ``path``."""
    places = [directories] if isinstance(directories, str) else directories
    return resting_on(path, overlays(places))


def resting_on(path: str, found: t.Mapping[str, str]) -> list[str]:
    """Those of ``found`` ({overlay: what it rests on}) that rest on ``path``, or may do so: of a name that only QEMU
    understands we see no more than that the file's own is in it."""
    real = os.path.realpath(path)
    name = os.path.basename(real)
    return sorted(overlay for overlay, below in found.items() if below == real or (below[:1] != "/" and name in below))


def overlays_around(
    wanted: t.Iterable[str],
    more: t.Iterable[str] = (),
    *,
    known: t.Optional[domains.Everything] = None,
    away: t.Optional[mounts.Away] = None,
    unseen: t.Optional[list[str]] = None,
) -> dict[str, str]:
    """The same, wherever something may rest on one of ``wanted``: beside it, in the collection's own places, where
    libvirt's guests (``known``, where they are already) have their images, in ``more``, and where images were made or
    left behind. Not what a guest has made its raw disk look like.

    Without ``away`` nobody is left out: storage that does not answer is HostError, or told to ``unseen``.
    """
    away = mounts.silent() if away is None else away
    if known is None:
        with domains.everything() as everything:
            known = everything
    beside = {*(os.path.dirname(path) for path in wanted), *domains.image_directories(*known)}
    # Of workloads their disks alone. Beside them lies what containers write: any number of files that say anything.
    guests = sorted(paths.guest_disks_dir(entry.name) for entry in _listed(paths.WORKLOADS))
    places = [*guests, paths.TEMPLATES, paths.KEPT_DISKS, *more]
    seen = {away.real(path) for path in domains.written_as_raw(known[0]) if path.startswith("/")}
    found = overlays(places, beside=sorted(beside), away=away, unseen=unseen)
    found = {path: below for path, below in found.items() if os.path.realpath(path) not in seen}
    # Read last: who takes a disk away from a guest writes that down first.
    seen.update(os.path.realpath(path) for path in found)
    for path in disk_records.layered(away):
        real = os.path.realpath(path)
        below = "" if real in seen else rests_on(path, away)
        if below:
            found[path] = below
            seen.add(real)
    for point in away.not_answering():
        error = HostError(
            f"What rests on the images here nobody can say: the storage at {point} does not answer.",
            hint=mounts.BRING_IT_BACK,
        )
        if unseen is None:
            raise error
        unseen.append(not_known(error))
    return found


def overlays_known(wanted: t.Iterable[str], more: t.Iterable[str] = ()) -> tuple[t.Optional[dict[str, str]], list[str]]:
    """The same for who only asks: None, and why, where nobody can say (libvirt does not answer, or too many files)."""
    try:
        return overlays_around(wanted, more), []
    except HostError as error:
        return None, [not_known(error)]


def not_known(error: HostError) -> str:
    """The warning where nobody can say what needs an image."""
    return f"What rests on the images here is not known: {error}"


# -- Making. Functions with a ``path`` that is made: it appears whole, with its mode, or not at all.


def run(host: Host, argv: t.Sequence[str], path: str) -> CommandResult:
    """A command of qemu-img; its failure in words that say what to do, of ``path``."""
    result = host.run(argv, check=False)
    if result.rc:
        raise commands.failure(result, path)
    return result


def _spoken_of(host: Host, alias: str, path: str) -> Host:
    """The same host. What its commands say of ``alias`` they say of ``path``, which is what users know."""

    def run_as(
        argv: t.Sequence[str],
        *,
        stdin: t.Optional[str] = None,
        check: bool = True,
        timeout_s: t.Optional[float] = None,
    ) -> CommandResult:
        result = host.run(argv, stdin=stdin, check=False, timeout_s=timeout_s)
        words = tuple(path if word == alias else word for word in result.argv)
        told = CommandResult(words, result.rc, *(text.replace(alias, path) for text in (result.stdout, result.stderr)))
        return checked(told) if check else told

    return host._replace(run=run_as)


def temporary(path: str) -> str:
    """Where the image of ``path`` is made. Always the same place, so that what a killed run left is found."""
    mark = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return os.path.join(os.path.dirname(path), TEMPORARY.replace("*", mark))


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Owner and mode of a file; None where it does not matter. ``new``: it takes the place of no other one."""

    uid: t.Optional[int] = None
    gid: t.Optional[int] = None
    mode: t.Optional[int] = None
    new: bool = False


class Taken(Refused):
    """Where a new file was to be made somebody has put another one."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} came while it was to be made here; it is not overwritten.",
            hint="See whose it is, and move it away. Then run it again.",
            path=path,
        )


class NoLinks(HostError):
    """A file system that gives a file no second name."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"The file system of {os.path.dirname(path)} has no hard links.", hint="Have the disk on another one."
        )


def link_new(made: str, path: str) -> None:
    """Give a file that is made another name, which nobody may have: Taken. NoLinks where it can have but one."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise Taken(path) from None
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise NoLinks(path) from error
        raise


def _put(made: str, path: str) -> None:
    """Give a file that is made its name, which nobody may have."""
    try:
        link_new(made, path)
    except NoLinks:
        # There it is looked at a moment before.
        if os.path.lexists(path):
            raise Taken(path) from None
        os.replace(made, path)


@contextlib.contextmanager
def appearing(path: str, attributes: t.Optional[Attributes] = None) -> t.Iterator[str]:
    """Make an empty file, and give its name; when the block ends well it takes the place of ``path``, and lasts.

    A file that is there keeps its owner and mode unless ``attributes`` says something else; a new one has 0600. Until
    then it has 0600 in any case: left to the programs that write to it, everybody could open it meanwhile. Taken when
    there is one though it is to be new.
    """
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise InputError(f"There is no directory {directory} on this host.", hint="Create it first.")
    wanted = attributes or Attributes()
    made = temporary(path)
    files.remove_file(made)
    try:
        before: t.Optional[os.stat_result] = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        before = None
    if wanted.new and before is not None:
        raise Taken(path)
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_MODE))
    try:
        yield made
        fd = os.open(made, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            uid = wanted.uid if wanted.uid is not None else before.st_uid if before else -1
            gid = wanted.gid if wanted.gid is not None else before.st_gid if before else -1
            os.fchown(fd, uid, gid)
            mode = wanted.mode if wanted.mode is not None else stat.S_IMODE(before.st_mode) if before else NEW_MODE
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        if wanted.new:
            _put(made, path)
        else:
            os.replace(made, path)
        files.sync_dir(directory)
    finally:
        files.remove_file(made)


def state_of(path: str) -> tuple[int, ...]:
    """Changes whenever a file does, or comes, or goes."""
    try:
        return _fingerprint(os.lstat(path))
    except FileNotFoundError:
        return ()


@contextlib.contextmanager
def replacing(path: str, attributes: t.Optional[Attributes] = None) -> t.Iterator[str]:
    """The same, for what takes its time. Refused when ``path`` is in use at the end, or has changed meanwhile: what
    a guest that was started has written to it is not in the copy."""
    before = state_of(path)
    with appearing(path, attributes) as made:
        yield made
        # That can take long, too; the look comes last.
        sync(made)
        if in_use(path) or state_of(path) != before:
            raise Refused(
                f"{path} was used while it was worked on, such as by a guest that was started. It is left as it is.",
                hint="Stop the guest first.",
                path=path,
            )


def create(
    host: Host, path: str, making: Making, virtual_bytes: int, *, attributes: t.Optional[Attributes] = None
) -> Node:
    """Make an empty image."""
    with appearing(path, attributes) as made:
        run(host, commands.create(made, making, virtual_bytes), path)
    return inspect(path, making.format)


def _write(path: str, parts: t.Mapping[int, bytes], length: int) -> None:
    """Let an empty file have zeros but for ``parts``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset, part in parts.items():
            os.pwrite(fd, part, offset)
        os.ftruncate(fd, length)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError(f"There is no room left for {path}.", hint="Make room there.") from None
        raise
    finally:
        os.close(fd)


def in_sectors(size: int) -> int:
    """What QEMU makes of the size of a raw file: a whole number of sectors, the last one filled up with zeros."""
    return -(-size // headers.SECTOR) * headers.SECTOR


def check_may_rest(path: str, below: t.Sequence[Node]) -> None:
    """Refused when an image cannot rest on a chain without making it endless, or longer than it may be."""
    real = os.path.realpath(path)
    if any(os.path.realpath(node.path) == real for node in below):
        raise Refused(f"{path} is below {below[0].path}: it cannot rest on that.", hint="Give another backing file.")
    if len(below) >= chains.MOST_DEPTH:
        raise Refused(
            f"{below[0].path}: its chain of backing files is as long as it may be.", hint="Flatten some of it."
        )


def create_overlay(
    host: Host,
    backing: str,
    backing_format: str,
    path: str,
    size: t.Optional[int] = None,
    *,
    cluster_bytes: int = 0,
    attributes: t.Optional[Attributes] = None,
) -> Node:
    """Make a qcow2 image that rests on ``backing``, at least as large as that. The whole chain is looked at first."""
    below = chain(backing, backing_format)
    check_may_rest(path, below)
    least = in_sectors(below[0].header.virtual_bytes)
    size = least if size is None else size
    if size < least:
        raise Refused(f"{path}: size: {size} is less than its backing file has ({least}).", hint="Images only grow.")
    with appearing(path, attributes) as made:
        if cluster_bytes not in (0, CLUSTER):
            making = Making("qcow2", cluster_bytes=cluster_bytes)
            run(host, commands.create(made, making, size, backing, backing_format), path)
        else:
            _write(made, *overlay(size, backing, backing_format))
    return inspect(path, "qcow2")


def convert(
    host: Host,
    source: str,
    source_format: str,
    path: str,
    making: Making,
    size: t.Optional[int] = None,
    *,
    trusted: bool = False,
    checksum: t.Optional[tuple[str, str]] = None,
    max_virtual_bytes: int = trust.DEFAULT_MOST_VIRTUAL_BYTES,
    attributes: t.Optional[Attributes] = None,
) -> Node:
    """Copy the content of an image into a new one, with all that is below it.

    Unless ``trusted``, ``source`` is an image from outside (see ``check_untrusted``): qemu-img runs under limits, and
    reads the file that was looked at, as the path may lead to another one a moment later.
    ``checksum``: (algorithm, digits) that the file must have. ``size``: virtual bytes of the new one, not less.
    """
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(File(source))
        before = image.fingerprint()
        if checksum:
            actual = image.digest(checksum[0])
            if actual != checksum[1]:
                raise Refused(
                    f"{source} has the {checksum[0]} {actual}, not {checksum[1]}.", hint="Get it again.", path=source
                )
        if trusted:
            virtual = chain(source, source_format)[0].header.virtual_bytes
            limit: _Limit = list
            # What it rests on may be named relative to its place.
            reads, reader = source, host
        else:
            virtual = trust.check_untrusted(image, source, source_format, max_virtual_bytes).virtual_bytes
            # A full copy with the tables that describe it; anything beyond is an attack on the disk.
            most = (size or virtual) + virtual // 8 + 2**26
            limit = functools.partial(commands.limited, file_bytes=most)
            reads = image.by_descriptor
            reader = _spoken_of(host, reads, source)
            if FORMATS[source_format].repairs:
                condition = check(reader, reads, source_format, untrusted=True, copy_of=source)
                if condition is not None and not condition.good:
                    raise Refused(f"{source}: the image is damaged.", hint="Get it again.", check=condition.as_dict())
        virtual = in_sectors(virtual)
        size = virtual if size is None else size
        if size < virtual:
            raise Refused(f"{path}: size: {size} is less than its source has ({virtual}).", hint="Images only grow.")
        made = stack.enter_context(replacing(path, attributes))
        check_room(reader, reads, source_format, path, making, limit)
        if size > virtual and not FORMATS[making.format].grows:
            # qemu-img cannot resize it afterwards: make it large, then fill it.
            run(host, commands.create(made, making, size), path)
            run(reader, limit(commands.convert(reads, source_format, made, making, into=True)), path)
        else:
            run(reader, limit(commands.convert(reads, source_format, made, making)), path)
            if size > virtual:
                run(host, commands.resize(made, making.format, size, making.preallocation), path)
        if not trusted and image.fingerprint() != before:
            raise Refused(f"{source} was changed while it was read.", hint="Let nobody else write to it.", path=source)
        got = inspect(made, making.format).header.virtual_bytes
        if got < size:
            raise HostError(f"{path} got {got} bytes, not {size}.", hint="Its format cannot express this size.")
    return inspect(path, making.format)


def check_room(host: Host, source: str, kind: str, path: str, making: Making, limit: _Limit) -> None:
    """HostError when a conversion will not find room; before it begins, where qemu-img can tell how much it needs."""
    if making.compression != "none" or making.format not in ("raw", "qcow2"):
        return
    # Of a raw image qemu-img tells the virtual size. It will have holes: what it takes up is what a qcow2 image does.
    measured = "qcow2" if making.preallocation == "off" else making.format
    needed = commands.read_measure(host.run(limit(commands.measure(source, kind, measured)), check=False))
    place = os.statvfs(os.path.dirname(path))
    free = place.f_bavail * place.f_frsize
    if needed > free:
        raise HostError(
            f"There is no room for {path}: it needs {human_bytes(needed)}, and {human_bytes(free)} are free.",
            hint="Make room there.",
            needed_bytes=needed,
            free_bytes=free,
        )


def check(
    host: Host, path: str, kind: str, *, repair: str = "none", untrusted: bool = False, copy_of: str = ""
) -> t.Optional[Condition]:
    """qemu-img's opinion of an image; None where it has none of this format. The chain was walked before."""
    argv = commands.check(path, kind, repair)
    limited = commands.limited(argv, cpu_s=commands.CHECK_CPU_S) if untrusted else argv
    return commands.read_check(host.run(limited, check=False), copy_of or path)


def resize(host: Host, path: str, kind: str, size: int, *, preallocation: str = "off") -> Node:
    """Let an image grow to ``size`` virtual bytes. Refused when it has more, or is in use."""
    node = chain(path, kind)[0]
    if size < node.header.virtual_bytes:
        raise Refused(f"{path} has {node.header.virtual_bytes} bytes, more than {size}.", hint="Images only grow.")
    if size == node.header.virtual_bytes:
        return node
    if in_use(path):
        raise Refused(f"{path} is in use by another process.", hint="Stop the guest first, or resize it in the guest.")
    if FORMATS[kind].grows:
        run(host, commands.resize(path, kind, size, preallocation), path)
        sync(path)
        return inspect(path, kind)
    # Its subformat stays as it is.
    making = Making(kind, node.header.subformat if node.header.subformat in FORMATS[kind].subformats else "")
    return convert(host, path, kind, path, making, size, trusted=True)


def sync(path: str) -> None:
    """What is in a file survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- Attributes


def _number(name: str, find: t.Callable[[str], int], option: str) -> t.Optional[int]:
    if not name:
        return None
    if name.isdigit():
        return int(name)
    try:
        return find(name)
    except KeyError:
        raise InputError(
            f"{option}: there is no {name!r} on this host.", hint="Give one that exists, or its number."
        ) from None


def attributes_of(option: str, owner: str, group: str, mode: t.Optional[int]) -> Attributes:
    """Names looked up on this host; ``option`` names the item in messages."""
    return Attributes(
        _number(owner, lambda name: pwd.getpwnam(name).pw_uid, f"{option}: owner"),
        _number(group, lambda name: grp.getgrnam(name).gr_gid, f"{option}: group"),
        mode,
    )


def shown_attributes(path: str, wanted: t.Optional[Attributes] = None) -> dict[str, t.Any]:
    """Owner, group and mode of a file; ``wanted``: as they will be, also of a file that is not there yet."""
    try:
        status = os.lstat(path)
        is_now = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    except FileNotFoundError:
        is_now = (os.geteuid(), os.getegid(), NEW_MODE)
    asked = (wanted.uid, wanted.gid, wanted.mode) if wanted else (None, None, None)
    owner, group, mode = (now if want is None else want for now, want in zip(is_now, asked))
    return {"owner": owner, "group": group, "mode": f"{mode:04o}"}


def differing(path: str, wanted: Attributes) -> tuple[str, ...]:
    """Which of owner, group and mode of a file are not as wanted."""
    before, after = shown_attributes(path), shown_attributes(path, wanted)
    return tuple(name for name in before if before[name] != after[name])


def set_attributes(path: str, wanted: Attributes, *, check_mode: bool = False) -> bool:
    """Owner and mode of a file that is there; whether they were others."""
    if not os.path.lexists(path) or not differing(path, wanted):
        return False
    if not check_mode:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchown(fd, -1 if wanted.uid is None else wanted.uid, -1 if wanted.gid is None else wanted.gid)
            if wanted.mode is not None:
                os.fchmod(fd, wanted.mode)
        finally:
            os.close(fd)
    return True


@contextlib.contextmanager
def at_work_on(path: str, *, check_mode: bool = False) -> t.Iterator[None]:
    """Nobody else works on ``path`` meanwhile, and what a killed run left behind is gone."""
    if check_mode:
        yield
        return
    mark = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with files.lock(f"{paths.RUN}/locks/disk-{mark}.lock", f"image {path}"):
        files.remove_file(temporary(path))
        yield
