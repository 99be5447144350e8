# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Who ``user: www-data`` is, by the container's own passwd and group files."""

from __future__ import annotations

import typing as t

from .._core.errors import InputError


class Account(t.NamedTuple):
    """A user in the container."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def _rows(text: str, fields: int) -> list[list[str]]:
    return [row for row in (line.split(":") for line in text.splitlines()) if len(row) >= fields]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return -1
    return int(text) if int(text) < 2**32 - 1 else -1


def find_account(user: str, passwd: str, group: str, option: str = "user") -> Account:
    """The account that ``user`` stands for: a name or number, with ``:group`` if wanted. Empty: root.

    A number needs no entry; a name that has none is refused.
    """
    who, colon, of_group = user.partition(":")
    who = who or "0"
    row = next((row for row in _rows(passwd, 6) if row[0] == who or row[2] == who), None)
    uid = _number(row[2] if row else who)
    if uid < 0:
        known = ", ".join(sorted(row[0] for row in _rows(passwd, 6))[:40])
        raise InputError(f"{option}: the image has no user {who!r}.", hint=f"It has: {known or 'no /etc/passwd'}.")
    gid = max(_number(row[3]), 0) if row else 0
    if colon:
        entry = next((entry for entry in _rows(group, 3) if entry[0] == of_group or entry[2] == of_group), None)
        gid = _number(entry[2] if entry else of_group)
        if gid < 0:
            raise InputError(f"{option}: the image has no group {of_group!r}.", hint="Give its number.")
    groups = []
    if row and not colon:
        groups = [_number(entry[2]) for entry in _rows(group, 4) if row[0] in entry[3].split(",")]
    return Account(
        uid=uid,
        gid=gid,
        groups=tuple(sorted({number for number in groups if number >= 0 and number != gid})),
        home=(row[5] if row and row[5].startswith("/") else "/"),
    )
