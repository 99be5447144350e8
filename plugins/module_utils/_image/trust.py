# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What an image from outside must be before it is used."""

from __future__ import annotations

import contextlib
import typing as t

from .._core.errors import Refused
from .._core.values import human_bytes
from . import layout
from .headers import Header, Image, identify, other_file, parse

DEFAULT_MOST_VIRTUAL_BYTES = 2**40
# Where a CD says which file systems it has.
_DESCRIPTORS = 32768


def check_untrusted(image: Image, name: str, kind: str, most_virtual_bytes: int) -> Header:
    """The header of an image that nobody vouches for. Refused, with ``name`` in the message, when it

    - is not of the format ``kind``, or bears the marks of another one, too;
    - names other files: a backing file, a data file, extents, a parent;
    - says that it is larger than ``most_virtual_bytes``;
    - is cut off, damaged, encrypted, or was not closed.
    """
    with _naming(name, kind):
        header = _check(image, kind, most_virtual_bytes)
    check_sound(image, name, header)
    return header


def check_sound(image: Image, name: str, header: Header) -> None:
    """Refused, with ``name`` in the message, when an image is marked as damaged or is cut off."""
    with _naming(name, header.format):
        if header.corrupt:
            raise Refused("The image is marked as damaged.", hint="Get it again.")
        layout.check(image, header)


def check_cd(image: Image, name: str) -> None:
    """Refused, with ``name`` in the message, when a file is no image of a CD or DVD, or only a part of one."""
    mark = image.read(_DESCRIPTORS + 1, 5)
    with _naming(name, "raw"):
        if mark == b"CD001":
            layout.check(image, parse(image, "raw"))
        elif mark != b"BEA01" or not _is_udf(image):
            other = other_file(image) or "has no file system of a CD or DVD (ISO 9660 or UDF)"
            raise Refused(f"The file {other}: it is no ISO image.", hint="Give one, or get it again.")


def _is_udf(image: Image) -> bool:
    """Whether it has UDF alone, as some DVDs do. How long it is to be is not looked for."""
    return any(image.read(_DESCRIPTORS + 2048 * number + 1, 3) == b"NSR" for number in range(1, 16))


@contextlib.contextmanager
def _naming(name: str, kind: str) -> t.Iterator[None]:
    try:
        yield
    except Refused as refusal:
        raise Refused(f"{name}: {refusal.message}", hint=refusal.hint, path=name, format=kind) from None


def _check(image: Image, kind: str, most_virtual_bytes: int) -> Header:
    marks = identify(image)
    # Raw data may well be a CD; everything else is one thing only.
    strange = [mark for mark in marks if mark != kind and not (kind == "raw" and mark == "iso")]
    if strange and kind in marks:
        raise Refused(
            f"The image can be read as {kind} and as {strange[0]}: each program would see another content.",
            hint="It is refused. Get it elsewhere.",
        )
    if strange:
        raise Refused(
            f"The image is {strange[0]}, not {kind}.", hint=f"Say so with format: {strange[0]}, or get it again."
        )
    if kind not in marks:
        other = other_file(image)
        if other:
            raise Refused(f"The file {other}: it is no {kind} image.", hint="Unpack it, or get it again.")
        if kind != "raw":
            raise Refused(f"The file is no {kind} image.", hint="Give its right format, or get it again.")
    header = parse(image, kind)
    if header.external:
        raise Refused(
            f"The image is not complete in itself: it names {', '.join(header.external)}.",
            hint="An image from outside could name any file of this host. Flatten it where it comes from.",
        )
    if header.most_virtual_bytes > most_virtual_bytes:
        raise Refused(
            f"The image has a virtual size of {human_bytes(header.most_virtual_bytes)}, "
            f"more than the {human_bytes(most_virtual_bytes)} that are allowed.",
            hint="Raise max_virtual_size if it is right.",
        )
    if header.encrypted:
        raise Refused(f"The image is encrypted ({header.encrypted}).", hint="Decrypt it where it comes from.")
    if header.dirty:
        raise Refused(
            "The image was not closed: its program was cut off while it wrote to it.",
            hint="Open and close it with the program that wrote it, and get it again.",
        )
    return header
