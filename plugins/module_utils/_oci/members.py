# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What may come out of an archive: the rules for its members, decided before anything is written."""

from __future__ import annotations

import dataclasses
import stat
import typing as t

from .._core.errors import InputError

# Ids above are "no id" or do not fit the kernel's 32 bits.
_MOST_ID = 2**32 - 2
# The attribute names of overlayfs that are part of a layer's content; the others describe the file system it was on.
_OVERLAY_CONTENT = ("trusted.overlay.opaque", "trusted.overlay.whiteout", "trusted.overlay.redirect")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What an archive may hold, and how much of it.

    ``allow_whiteouts``: character device 0:0 and overlayfs's attributes, as in a writable layer.
    ``replace_trees``: a member may take the place of a directory that is not empty (synchronising a layer).
    ``max_ratio``: bytes that may come out for each byte that goes in; needs ``compressed_bytes``.
    ``top``: names that may stand at the top of the archive; empty: any.
    ``to_the_end``: the stream is one archive and nothing else; what follows its end must be zeros.
    """

    allow_devices: bool = False
    allow_setuid: bool = False
    allow_whiteouts: bool = False
    allow_fifos: bool = True
    replace_trees: bool = False
    max_bytes: int = 64 * 2**30
    max_entries: int = 5_000_000
    max_ratio: int = 0
    compressed_bytes: int = 0
    top: tuple[str, ...] = ()
    to_the_end: bool = False

    @property
    def byte_limit(self) -> int:
        """The lower one of the two limits on bytes. Small archives are given 64 MiB whatever their ratio."""
        if self.max_ratio and self.compressed_bytes:
            return min(self.max_bytes, max(self.max_ratio * self.compressed_bytes, 64 * 2**20))
        return self.max_bytes


def layer_policy() -> Policy:
    """For the writable layer of a container that comes from its own host: everything that a layer can hold."""
    return Policy(
        allow_devices=True,
        allow_setuid=True,
        allow_whiteouts=True,
        replace_trees=True,
        max_bytes=2**50,
        max_entries=2**40,
    )


def member_path(name: str, what: str = "member") -> str:
    """``name`` without leading ``./``, ``""`` for the root itself; InputError where it could point elsewhere."""
    if "\0" in name or not name:
        raise InputError(f"The archive has a {what} with the name {name!r}.", hint="It is refused.")
    if name.startswith("/"):
        raise InputError(f"The archive has the absolute {what} {name!r}.", hint="Pack with relative names.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError(f"The archive has the {what} {name!r} with '..'.", hint="It could escape; it is refused.")
    return "/".join(parts)


def check_member(
    path: str,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    device: tuple[int, int],
    policy: Policy,
) -> bool:
    """Whether a member is to be written (False: left out); InputError where the policy forbids it.

    ``kind``: the file type as in ``st_mode`` (S_IFREG …). ``path``: as from member_path.
    """
    if not 0 <= uid <= _MOST_ID or not 0 <= gid <= _MOST_ID:
        raise InputError(
            f"The archive's member {path!r} has the owner {uid}:{gid}.", hint="Ids go from 0 to 4294967294."
        )
    if policy.top and path and path.split("/")[0] not in policy.top:
        raise InputError(f"The archive has {path!r} at its top.", hint=f"Allowed there: {', '.join(policy.top)}.")
    if kind == stat.S_IFREG and mode & 0o6000 and not policy.allow_setuid:
        raise InputError(
            f"The archive's {path!r} is set-user-id or set-group-id (mode {mode & 0o7777:04o}).",
            hint="Set allow_setuid: true if you trust it.",
        )
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        whiteout = kind == stat.S_IFCHR and device == (0, 0)
        if not (policy.allow_whiteouts if whiteout else policy.allow_devices):
            raise InputError(
                f"The archive's {path!r} is a device node.", hint="Set allow_devices: true if you trust it."
            )
    return kind != stat.S_IFIFO or policy.allow_fifos


def keep_attribute(name: str, policy: Policy) -> bool:
    """Whether an extended attribute goes with its file. Labels and overlayfs's bookkeeping belong to one host."""
    if name.startswith("trusted.overlay."):
        return policy.allow_whiteouts and name in _OVERLAY_CONTENT
    if name == "security.capability":
        return policy.allow_setuid
    return name.startswith(("user.", "system.posix_acl_"))


def parse_mtime(text: str) -> int:
    """Nanoseconds from a pax time such as ``1700000000.123456789`` (a float would lose the last digits)."""
    whole, _dot, fraction = text.partition(".")
    try:
        seconds = int(whole)
        nanoseconds = int((fraction + "000000000")[:9])
    except ValueError:
        raise InputError(f"The archive has the time {text[:40]!r}.", hint="It is refused.") from None
    if abs(seconds) > 2**40 or not (fraction + "0").isdigit():
        raise InputError(f"The archive has the time {text[:40]!r}.", hint="It is refused.")
    return seconds * 10**9 + (nanoseconds if seconds >= 0 and not whole.startswith("-") else -nanoseconds)


def difference(
    before: t.Mapping[str, tuple[int, ...]], after: t.Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str]]:
    """What changed between two snapshots of a tree: paths to send again (parents first), topmost paths that went."""
    changed = sorted(path for path, stamp in after.items() if before.get(path) != stamp)
    gone = sorted(path for path in before if path not in after)
    removed: list[str] = []
    for path in gone:
        if not (removed and path.startswith(removed[-1] + "/")):
            removed.append(path)
    return changed, removed
