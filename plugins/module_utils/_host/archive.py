# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Trees as tar streams: packed with all that a root file system has, unpacked where nothing can escape.

Unpacking happens in a forked child that has changed its root into the destination. What a hostile archive could
still reach is that directory, and no link is followed in it either. What is checked is what is written: one parser,
one pass. The destination is a fresh directory that the caller throws away on failure, or a layer of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import tarfile
import types
import typing as t

from .._core.errors import CnvmError, HostError, InputError, Refused
from .._image import commands
from .._oci.members import Policy, check_member, keep_attribute, member_path, parse_mtime

BLOCK = 512
BUFFER = 1 << 20
# A pax header or a long name beyond this is an attack on our memory.
_MOST_HEADER = 1 << 20
# All that stands before the content of one member: long names, attributes, a map of holes.
_MOST_HEADERS = 4 << 20
_XATTR = "SCHILY.xattr."
_SMALL = 0o7777777
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_KINDS = {
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


@dataclasses.dataclass
class Tally:
    """What went through: entries, bytes of file content, names left out (sockets, FIFOs where not allowed)."""

    entries: int = 0
    bytes: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)


# --------------------------------------------------------------------------------------------------------------------
# Packing
# --------------------------------------------------------------------------------------------------------------------
def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def _pax_record(key: bytes, value: bytes) -> bytes:
    """One record ``LENGTH key=value\\n``, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header block. What does not fit stands in the pax header before it."""
    head = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            _octal(mode & 0o7777, 8),
            _octal(min(uid, _SMALL), 8),
            _octal(min(gid, _SMALL), 8),
            _octal(min(size, 0o77777777777), 12),
            _octal(min(max(mtime, 0), 0o77777777777), 12),
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            b"\0" * 64,
            _octal(min(device[0], _SMALL), 8),
            _octal(min(device[1], _SMALL), 8),
        )
    ).ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _header(
    name: bytes,
    kind: bytes,
    status: os.stat_result,
    *,
    size: int = 0,
    link: bytes = b"",
    records: t.Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    pax = [_pax_record(b"mtime", b"%d.%09d" % (seconds, nanoseconds))] if nanoseconds or seconds < 0 else []
    if len(name) > 100 or not name.isascii():
        pax.append(_pax_record(b"path", name))
    if len(link) > 100 or not link.isascii():
        pax.append(_pax_record(b"linkpath", link))
    if status.st_uid > _SMALL:
        pax.append(_pax_record(b"uid", b"%d" % status.st_uid))
    if status.st_gid > _SMALL:
        pax.append(_pax_record(b"gid", b"%d" % status.st_gid))
    if size > 0o77777777777:
        pax.append(_pax_record(b"size", b"%d" % size))
    pax.extend(_pax_record(*record) for record in records)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in (b"3", b"4") else (0, 0)
    main = _block(
        name,
        kind,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=size,
        mtime=seconds,
        link=link,
        device=device,
    )
    if not pax:
        return main
    body = b"".join(pax)
    return _block(b"./PaxHeaders/x", b"x", size=len(body)) + body + b"\0" * (-len(body) % BLOCK) + main


def attributes_of(path: t.Union[str, bytes], policy: Policy) -> list[tuple[bytes, bytes]]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []
    records = []
    for name in names:
        if keep_attribute(name, policy):
            try:
                value = os.getxattr(path, name, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODATA):
                    raise
                continue
            records.append(((_XATTR + name).encode("utf-8", "surrogateescape"), value))
    return records


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a sparse file has data: (offset, length)."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            # There is no more data, or a writer has cut it off in this moment.
            if error.errno != errno.ENXIO:
                raise
            break
        if start >= end:
            break
        found.append((start, end - start))
        at = end
    os.lseek(fd, 0, os.SEEK_SET)
    return found


def _has_holes(status: os.stat_result) -> bool:
    """Whether a file is worth asking for its holes."""
    return status.st_size > BUFFER and status.st_blocks * 512 < status.st_size


def _copy_out(fd: int, offset: int, length: int, buffer: memoryview, write: t.Callable[[t.Any], t.Any]) -> None:
    """``length`` bytes of ``fd`` from ``offset``; zeros for what a writer has cut off in the meantime."""
    while length:
        got = os.preadv(fd, [buffer[: min(length, BUFFER)]], offset)
        if not got:
            buffer[:BUFFER] = bytes(BUFFER)
            got = min(length, BUFFER)
        write(buffer[:got])
        offset += got
        length -= got


def walk(root: str) -> t.Iterator[tuple[str, os.stat_result]]:
    """All entries below ``root`` as (relative path, lstat), parents first, names sorted; never over a mount."""
    device = os.lstat(root).st_dev
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        deeper = []
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield path, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                deeper.append(path)
        waiting.extend(reversed(deeper))


def pack(
    root: str,
    out: t.BinaryIO,
    *,
    paths: t.Optional[t.Iterable[str]] = None,
    prefix: str = "",
    layer: bool = False,
    extra: t.Sequence[tuple[str, bytes]] = (),
    end: bool = True,
    progress: t.Optional[t.Callable[[int], None]] = None,
) -> Tally:
    """Write the tree ``root`` to ``out`` as a pax tar: numeric owners, modes, times in ns, hard links, holes,
    device nodes, attributes.

    ``paths``: only these (relative, not recursive; what is gone is left out). ``layer``: with overlayfs's whiteouts
    and attributes. ``prefix``: put before each name, with the root itself as its first member. ``extra``: files made
    of bytes, written first. ``progress`` is called with the bytes of each file. Hard links to a file that is not in
    the stream become files.
    """
    policy = Policy(allow_setuid=True, allow_devices=True, allow_whiteouts=layer)
    tally = Tally()
    buffer = memoryview(bytearray(BUFFER))
    write = out.write
    seen: dict[tuple[int, int], bytes] = {}
    base = os.fsencode(root)
    before = os.fsencode(prefix.rstrip("/") + "/") if prefix else b""
    root_status = os.lstat(root)
    for name, content in extra:
        head = _block(name.encode(), b"0", size=len(content), mtime=int(root_status.st_mtime))
        write(head + content + b"\0" * (-len(content) % BLOCK))
        tally.entries += 1
    found: t.Iterable[tuple[str, os.stat_result]]
    if paths is None:
        found = walk(root)
        write(_header(before or b"./", b"5", root_status, records=attributes_of(base, policy)))
    else:
        found = _named(root, paths)
    for path, status in found:
        kind = stat.S_IFMT(status.st_mode)
        letter = _TYPES.get(kind)
        short = os.fsencode(path)
        full = base + b"/" + short
        name_bytes = before + short
        if letter is None or (kind == stat.S_IFCHR and status.st_rdev == 0 and not layer):
            tally.skipped.append(path)
            continue
        key = (status.st_dev, status.st_ino)
        linked = kind != stat.S_IFDIR and status.st_nlink > 1
        first = seen.get(key) if linked else None
        fd, target = -1, b""
        try:
            if first is None and kind == stat.S_IFREG:
                fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    os.close(fd)
                    continue
            elif first is None and kind == stat.S_IFLNK:
                target = os.readlink(full)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # In a layer that is written to it may go, or become something else, in this very moment.
            continue
        tally.entries += 1
        if first is not None:
            write(_header(name_bytes, b"1", status, link=first))
            continue
        if linked:
            seen[key] = name_bytes
        if kind == stat.S_IFREG:
            _pack_file(fd, full, name_bytes, status, policy, buffer, write, tally, progress)
        elif kind == stat.S_IFLNK:
            write(_header(name_bytes, letter, status, link=target, records=attributes_of(full, policy)))
        else:
            slash = b"/" if kind == stat.S_IFDIR else b""
            write(_header(name_bytes + slash, letter, status, records=attributes_of(full, policy)))
    if end:
        write(b"\0" * (2 * BLOCK))
    out.flush()
    return tally


def _named(root: str, paths: t.Iterable[str]) -> t.Iterator[tuple[str, os.stat_result]]:
    for path in paths:
        try:
            yield path, os.lstat(os.path.join(root, path))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _pack_file(
    fd: int,
    full: bytes,
    name: bytes,
    status: os.stat_result,
    policy: Policy,
    buffer: memoryview,
    write: t.Callable[[t.Any], t.Any],
    tally: Tally,
    progress: t.Optional[t.Callable[[int], None]],
) -> None:
    try:
        records = attributes_of(full, policy)
        size = status.st_size
        parts = [(0, size)] if size else []
        if _has_holes(status):
            parts = _extents(fd, size)
            # GNU's pax format 0.1: the map stands in the header, the holes are not sent.
            numbers = ",".join(f"{at},{length}" for at, length in [*parts, (size, 0)]).encode()
            stored = sum(length for _at, length in parts)
            if len(numbers) < _MOST_HEADER // 2 and stored <= 0o77777777777:
                records = [
                    (b"GNU.sparse.size", b"%d" % size),
                    (b"GNU.sparse.numblocks", b"%d" % (len(parts) + 1)),
                    (b"GNU.sparse.map", numbers),
                    *records,
                ]
            else:
                parts = [(0, size)]
        stored = sum(length for _at, length in parts)
        write(_header(name, b"0", status, size=stored, records=records))
        for at, length in parts:
            _copy_out(fd, at, length, buffer, write)
        if stored % BLOCK:
            write(b"\0" * (-stored % BLOCK))
        tally.bytes += stored
        if progress is not None:
            progress(stored)
    finally:
        os.close(fd)


def content_bytes(root: str, paths: t.Optional[t.Iterable[str]] = None) -> int:
    """The bytes of files that ``pack`` would write: no holes, and a file once however many links it has."""
    total = 0
    linked: set[tuple[int, int]] = set()
    for path, status in walk(root) if paths is None else _named(root, paths):
        key = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode) or key in linked:
            continue
        if status.st_nlink > 1:
            linked.add(key)
        total += _data_bytes(os.path.join(root, path), status.st_size) if _has_holes(status) else status.st_size
    return total


def _data_bytes(path: str, size: int) -> int:
    """What of a sparse file is data; all of it where that cannot be asked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return size
    try:
        return sum(length for _at, length in _extents(fd, size))
    except OSError:
        return size
    finally:
        os.close(fd)


def snapshot(root: str, *, now_ns: int = 0) -> dict[str, tuple[int, ...]]:
    """A stamp for each entry below ``root``; two of them compared by ``_oci.members.difference`` say what changed.

    ``now_ns``: the wall clock some time before. What was changed since then, or just before, has an unsure stamp (the
    kernel's clock for files ticks every few ms) and counts as changed the next time. Where somebody may store into
    mapped files, run ``sync -f ROOT`` between the two: only the first store into a page that is clean touches the time.
    """
    unsure = now_ns - 50_000_000 if now_ns else 2**63
    return {
        path: (
            status.st_mode,
            status.st_ino,
            status.st_size if not stat.S_ISDIR(status.st_mode) else 0,
            status.st_ctime_ns if status.st_ctime_ns < unsure else -1 - status.st_ctime_ns,
        )
        for path, status in walk(root)
    }


# --------------------------------------------------------------------------------------------------------------------
# Unpacking
# --------------------------------------------------------------------------------------------------------------------
class _Forward:
    """A stream that can only be read on, with the few methods that the parser of tar headers wants."""

    def __init__(self, stream: t.BinaryIO) -> None:
        self.stream = stream
        self.at = 0
        self.headers = 0
        self.buffer = memoryview(bytearray(BUFFER))

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, less only at the end of the stream."""
        if not 0 <= size <= _MOST_HEADER or self.headers > _MOST_HEADERS:
            raise InputError(
                f"The archive has a header of {max(size, self.headers)} bytes or more.", hint="It is refused."
            )
        parts = []
        while size:
            part = self.stream.read(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self.at += len(part)
            self.headers += len(part)
        return b"".join(parts)

    def seek(self, position: int) -> int:
        self.data(position - self.at, None)
        return self.at

    def data(self, length: int, fd: t.Optional[int]) -> None:
        """The next ``length`` bytes into ``fd``, or nowhere."""
        readinto = getattr(self.stream, "readinto", None)
        while length:
            want = min(length, BUFFER)
            if readinto is not None:
                got = readinto(self.buffer[:want]) or 0
                view = self.buffer[:got]
            else:
                chunk = self.stream.read(want)
                got = len(chunk)
                view = memoryview(chunk)
            if not got:
                raise InputError("The archive ends in the middle of a file.", hint="It was cut off; copy it again.")
            while fd is not None and view:
                view = view[os.write(fd, view) :]
            length -= got
            self.at += got


class _Unpacker:
    """Writes members below ``/`` of the process (which is the destination: the caller changed the root)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tally = Tally()
        self.directories: set[str] = {""}
        self.times: list[tuple[str, int]] = []

    def parent(self, path: str) -> None:
        """Make sure that all of ``path`` but its last part are real directories."""
        above = path.rpartition("/")[0]
        if above in self.directories:
            return
        self.parent(above)
        try:
            status = os.lstat("/" + above)
        except FileNotFoundError:
            os.mkdir("/" + above, 0o755)
            self.no_heritage("/" + above)
        else:
            if not stat.S_ISDIR(status.st_mode):
                raise InputError(
                    f"The archive's member {path!r} would go through {above!r}, which is no directory.",
                    hint="A member may not be reached through a link; it is refused.",
                )
        self.directories.add(above)

    def clear(self, path: str, *, keep_directory: bool) -> bool:
        """Make room at ``path``; whether a directory was kept there. Links are replaced, never followed."""
        try:
            status = os.lstat("/" + path)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(status.st_mode):
            os.unlink("/" + path)
            return False
        if keep_directory:
            return True
        if self.policy.replace_trees:
            shutil.rmtree("/" + path)
        else:
            try:
                os.rmdir("/" + path)
            except OSError:
                raise InputError(
                    f"The archive replaces the directory {path!r} by something else.", hint="It is refused."
                ) from None
        self.directories = {known for known in self.directories if known != path and not known.startswith(path + "/")}
        self.times = [entry for entry in self.times if entry[0] != path and not entry[0].startswith(path + "/")]
        return False

    def remove(self, path: str) -> None:
        """Take away what is gone at the origin."""
        path = member_path(path)
        if path and os.path.lexists("/" + path):
            self.parent(path)
            if stat.S_ISDIR(os.lstat("/" + path).st_mode):
                shutil.rmtree("/" + path)
            else:
                os.unlink("/" + path)

    def finish(self) -> None:
        """Times of directories, last: each file that was written into them had changed them."""
        for path, mtime in reversed(self.times):
            os.utime("/" + path, ns=(mtime, mtime), follow_symlinks=False)

    def attributes(self, path: str, member: tarfile.TarInfo) -> None:
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR) and keep_attribute(key[len(_XATTR) :], self.policy):
                os.setxattr(
                    "/" + path, key[len(_XATTR) :], value.encode("utf-8", "surrogateescape"), follow_symlinks=False
                )
            elif key == _XATTR + "security.capability" and not self.policy.allow_setuid:
                raise InputError(
                    f"The archive's {path!r} has file capabilities.", hint="Set allow_setuid: true if you trust it."
                )

    def member(self, member: tarfile.TarInfo, stream: _Forward) -> None:
        """Check one member and write it."""
        policy = self.policy
        path = member_path(member.name)
        self.tally.entries += 1
        if self.tally.entries > policy.max_entries:
            raise InputError(f"The archive has more than {policy.max_entries} entries.", hint="Raise max_entries.")
        if member.type == tarfile.LNKTYPE:
            self.hard_link(path, member_path(member.linkname, "hard link to"))
            return
        if member.isreg():
            kind = stat.S_IFREG
        elif member.type in _KINDS:
            kind = _KINDS[member.type]
        else:
            raise InputError(f"The archive's {path!r} is of the unknown type {member.type!r}.", hint="It is refused.")
        device = (member.devmajor, member.devminor)
        if not check_member(path, kind, member.mode, member.uid, member.gid, device, policy):
            self.tally.skipped.append(path)
            return
        if not path and kind != stat.S_IFDIR:
            raise InputError("The archive's root is no directory.", hint="It is refused.")
        if path:
            self.parent(path)
        mtime = parse_mtime(member.pax_headers["mtime"] if "mtime" in member.pax_headers else str(int(member.mtime)))
        where = "/" + path
        if kind == stat.S_IFREG:
            self.file(path, member, stream, mtime)
            return
        kept = bool(path) and self.clear(path, keep_directory=kind == stat.S_IFDIR)
        mode = member.mode & 0o7777
        if kind == stat.S_IFLNK:
            os.symlink(member.linkname, where)
        elif kind == stat.S_IFDIR:
            if path and not kept:
                os.mkdir(where, 0o700)
            self.directories.add(path)
        elif kind == stat.S_IFIFO:
            os.mkfifo(where, 0o600)
        else:
            os.mknod(where, kind | 0o600, os.makedev(*device))
        os.chown(where, member.uid, member.gid, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            if path and not kept:
                self.no_heritage(where)
            os.chmod(where, mode)
        if kept:
            self.drop_attributes(where)
        self.attributes(path, member)
        if kind == stat.S_IFDIR:
            self.times.append((path, mtime))
        else:
            os.utime(where, ns=(mtime, mtime), follow_symlinks=False)

    def drop_attributes(self, where: str) -> None:
        """An attribute that the origin no longer has must not stay on a directory that was there before."""
        for name in os.listxattr(where, follow_symlinks=False):
            if keep_attribute(name, self.policy):
                os.removexattr(where, name, follow_symlinks=False)

    def no_heritage(self, where: t.Union[int, str]) -> None:
        """Remove what a directory with a default ACL hands down to all that is made in it: it is not the archive's."""
        for name in ("system.posix_acl_access", "system.posix_acl_default"):
            with contextlib.suppress(OSError):
                os.removexattr(where, name)

    def file(self, path: str, member: tarfile.TarInfo, stream: _Forward, mtime: int) -> None:
        # For a sparse file ``size`` is what it takes once it is unpacked, its parts are what the stream holds.
        parts = getattr(member, "sparse", None)
        sizes = sum(length for _at, length in parts) if parts is not None else member.size
        self.tally.bytes += member.size
        if self.tally.bytes > self.policy.byte_limit:
            raise InputError(
                f"The archive unpacks to more than {self.policy.byte_limit} bytes.",
                hint="Raise max_bytes or max_ratio if that is right.",
            )
        self.clear(path, keep_directory=False)
        fd = os.open("/" + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if parts is None:
                stream.data(member.size, fd)
            else:
                for at, length in parts:
                    if at < 0 or length < 0 or at + length > member.size or sizes > member.size:
                        raise InputError(f"The archive's {path!r} has a wrong map of its holes.", hint="It is refused.")
                    os.lseek(fd, at, os.SEEK_SET)
                    stream.data(length, fd)
                os.ftruncate(fd, member.size)
            os.fchown(fd, member.uid, member.gid)
            self.no_heritage(fd)
            os.fchmod(fd, member.mode & 0o7777)
            self.attributes(path, member)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def hard_link(self, path: str, target: str) -> None:
        self.parent(target)
        try:
            status = os.lstat("/" + target)
        except FileNotFoundError:
            status = None
        if status is None or stat.S_ISDIR(status.st_mode):
            raise InputError(
                f"The archive's {path!r} is a hard link to {target!r}, which it does not hold.", hint="It is refused."
            )
        if path == target:
            return
        self.parent(path)
        self.clear(path, keep_directory=False)
        os.link("/" + target, "/" + path, follow_symlinks=False)


def _members(stream: _Forward) -> t.Iterator[tarfile.TarInfo]:
    """The members of a tar stream. Its only good end is a block of zeros."""
    # The parser of headers wants of a TarFile no more than this.
    archive = types.SimpleNamespace(
        fileobj=stream, encoding="utf-8", errors="surrogateescape", pax_headers={}, offset=0, tarinfo=tarfile.TarInfo
    )
    while True:
        stream.headers = 0
        try:
            member = tarfile.TarInfo.fromtarfile(t.cast("tarfile.TarFile", archive))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise InputError("The archive ends without its end mark.", hint="It was cut off; copy it again.") from None
        except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"The archive is damaged or no tar: {error}.", hint="It is refused.") from None
        if member.size < 0 or archive.offset < stream.at:
            raise InputError(f"The archive's {member.name!r} has the size {member.size}.", hint="It is refused.")
        after = archive.offset
        yield member
        stream.seek(after)


def _unpack(stream: t.BinaryIO, policy: Policy, removals: t.Sequence[str]) -> Tally:
    unpacker = _Unpacker(policy)
    for path in removals:
        unpacker.remove(path)
    forward = _Forward(stream)
    for member in _members(forward):
        try:
            unpacker.member(member, forward)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"The archive's {member.name!r} cannot be unpacked: {error}.", hint="It is refused."
            ) from None
    unpacker.finish()
    if policy.to_the_end:
        while True:
            forward.headers = 0
            rest = forward.read(BLOCK * 64)
            if rest.strip(b"\0"):
                raise InputError("Something follows the end of the archive.", hint="It is refused.")
            if not rest:
                break
    else:
        forward.read(BLOCK)
    return unpacker.tally


def inside(root: str, work: t.Callable[[], t.Any], what: str) -> t.Any:
    """What ``work`` returns (JSON-able) in a child whose root is ``root``: no link in there leads out.

    The child ends with ``work``; it imports nothing after the change of root, so ``work`` must not either.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(receive)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.umask(0)
            os.chroot(root)
            os.chdir("/")
            try:
                answer: dict[str, t.Any] = {"value": work()}
            except CnvmError as error:
                answer = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            except OSError as error:
                answer = {"kind": "HostError", "message": f"{what}: {error}.", "hint": ""}
            data = json.dumps(answer).encode()
            while data:
                data = data[os.write(send, data) :]
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        said = file.read()
    _pid, status = os.waitpid(child, 0)
    if not said or status:
        raise HostError(f"{what}: the process that did it died (status {status}).")
    answer = json.loads(said)
    if "kind" in answer:
        kind = InputError if answer["kind"] == "InputError" else HostError
        raise kind(answer["message"], hint=answer["hint"])
    return answer["value"]


def extract(
    stream: t.BinaryIO, dest: str, policy: Policy, *, removals: t.Sequence[str] = (), what: str = "Unpacking"
) -> Tally:
    """Unpack a tar stream into the directory ``dest``, first removing ``removals`` (relative paths) from it.

    InputError where the archive breaks the policy or is damaged; what was written by then is in ``dest``.
    Reads ``stream`` up to the archive's end and not beyond (it may go on with something else); give an unbuffered
    one when another process is to read on. Does not start threads and must not be used beside them.
    """

    def work() -> dict[str, t.Any]:
        return dataclasses.asdict(_unpack(stream, policy, removals))

    # Load what decoding headers needs while the interpreter's files can still be reached.
    tarfile.TarInfo("warm").tobuf(tarfile.PAX_FORMAT)
    b"\xff".decode("iso-8859-1")
    return Tally(**inside(dest, work, what))


# --------------------------------------------------------------------------------------------------------------------
# Compression
# --------------------------------------------------------------------------------------------------------------------
_MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip", b"BZh": "bzip2"}
_UNPACK = {"zstd": ["zstd", "-dc", "-q"], "xz": ["xz", "-dc"], "gzip": ["gzip", "-dc"], "bzip2": ["bzip2", "-dc"]}
_PACK = {"zstd": ["zstd", "-q", "-c", "-T0", "-3"], "xz": ["xz", "-c", "-T0", "-3"], "gzip": ["gzip", "-c"]}
COMPRESSIONS = ("none", "zstd", "xz", "gzip")


def compression_of(path: str) -> str:
    """By the file's first bytes, whatever its name says: none, zstd, xz, gzip or bzip2."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "none")


def _missing(program: str) -> HostError:
    return HostError(
        f"The program {program!r} is missing on this host.",
        hint="Install it, or run the role cnvm.platform.host_bootstrap again.",
    )


class Filter:
    """A program between two files: it reads ``source`` and writes ``sink`` (descriptors), no shell."""

    def __init__(self, argv: t.Sequence[str], source: int, sink: int) -> None:
        self.argv = list(argv)
        program = shutil.which(argv[0])
        if program is None:
            raise _missing(argv[0])
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Ansible's interpreter ignores it; a filter whose reader has gone must end.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                source = os.dup(source) if source == 1 else source
                os.dup2(source, 0)
                os.dup2(sink, 1)
                os.closerange(3, 256)
                os.execv(program, self.argv)
            finally:
                os._exit(127)

    def wait(self) -> None:
        """HostError when the program failed."""
        _pid, status = os.waitpid(self.pid, 0)
        if status:
            raise HostError(f"'{' '.join(self.argv)}' failed (status {status}).", hint="Is the archive whole?")


def unpack_file(source: int, kind: str, sink: int, most: int) -> None:
    """Decompress one file (a descriptor) into another. ``kind``: as ``compression_of`` says. Refused when more than
    ``most`` bytes come out of it."""
    if shutil.which(_UNPACK[kind][0]) is None:
        raise _missing(_UNPACK[kind][0])
    try:
        Filter(commands.limited(_UNPACK[kind], file_bytes=most), source, sink).wait()
    except HostError:
        if os.fstat(sink).st_size >= most:
            raise Refused(
                f"More than {most} bytes come out of the file.", hint="Raise the limit if it is right."
            ) from None
        raise


def extract_file(path: str, dest: str, policy: Policy) -> Tally:
    """``extract`` of a file, compressed or not."""
    kind = compression_of(path)
    if kind == "none":
        with open(path, "rb", buffering=0) as stream:
            return extract(t.cast("t.BinaryIO", stream), dest, policy, what=f"Unpacking {path}")
    policy = dataclasses.replace(policy, compressed_bytes=os.path.getsize(path))
    source = os.open(path, os.O_RDONLY)
    receive, send = os.pipe()
    try:
        program = Filter(_UNPACK[kind], source, send)
    except HostError:
        os.close(receive)
        raise
    finally:
        os.close(source)
        os.close(send)
    try:
        with os.fdopen(receive, "rb", buffering=0) as stream:
            tally = extract(t.cast("t.BinaryIO", stream), dest, policy, what=f"Unpacking {path}")
    except CnvmError:
        os.waitpid(program.pid, 0)
        raise
    program.wait()
    return tally


def pack_file(root: str, path: str, *, compression: str = "zstd", **options: t.Any) -> Tally:
    """``pack`` into the file ``path``, atomically (mode 0600: a root file system may hold secrets)."""
    temporary = f"{path}.new"
    sink = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        if compression == "none":
            with os.fdopen(os.dup(sink), "wb", buffering=BUFFER) as out:
                tally = pack(root, out, **options)
        else:
            receive, send = os.pipe()
            try:
                program = Filter(_PACK[compression], receive, sink)
            finally:
                os.close(receive)
            with os.fdopen(send, "wb", buffering=BUFFER) as out:
                tally = pack(root, out, **options)
            program.wait()
        os.fsync(sink)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(sink)
    os.replace(temporary, path)
    return tally
