# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""One file as a stream of the parts that hold data: each an offset and a length in 8 bytes, then its bytes.

The last part has no bytes, and stands at the end of the file.
"""

from __future__ import annotations

import errno
import os
import struct
import typing as t

from .._core.errors import HostError, PeerError
from . import files

_PART = struct.Struct(">QQ")
_CHUNK = 2**20


def send(path: str, out: t.BinaryIO, progress: t.Callable[[int], None]) -> None:
    """Write the file at ``path`` into ``out``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size, at = os.fstat(fd).st_size, 0
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            at = min(os.lseek(fd, begin, os.SEEK_HOLE), begin + _CHUNK)
            data = os.pread(fd, at - begin, begin)
            if len(data) != at - begin:
                raise HostError(f"{path} became shorter while it was read.", hint="Let nobody else write to it.")
            out.write(_PART.pack(begin, len(data)))
            out.write(data)
            progress(len(data))
        out.write(_PART.pack(size, 0))
    finally:
        os.close(fd)


def receive(path: str, stream: t.BinaryIO, size: int) -> int:
    """Make the file at ``path`` anew from ``stream``, to last; the bytes of its parts. It is to have ``size`` bytes."""
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    total = 0
    try:
        try:
            while True:
                begin, count = _PART.unpack(_exactly(stream, _PART.size))
                if not count:
                    break
                if count > _CHUNK or begin + count > size:
                    raise PeerError(f"What came as {path} is longer than was said.")
                data = memoryview(_exactly(stream, count))
                while data:
                    written = os.pwrite(fd, data, begin)
                    begin, data, total = begin + written, data[written:], total + written
            if begin != size:
                raise PeerError(f"What came as {path} has {begin} bytes, not {size}.")
            os.ftruncate(fd, size)
            os.fsync(fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostError(f"There is no room left for {path}.", hint="Make room there.") from None
            raise
        os.replace(f"{path}.new", path)
    except BaseException:
        os.unlink(f"{path}.new")
        raise
    finally:
        os.close(fd)
    # Else a power cut might leave what was there before, once the source has deleted what it has.
    files.sync_dir(os.path.dirname(path))
    return total


def _exactly(stream: t.BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise PeerError("A file was cut off on its way.")
        data += more
    return data
