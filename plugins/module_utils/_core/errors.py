# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The exceptions of the collection. Each says what happened, where, and what to do next."""

from __future__ import annotations

import typing as t


class CnvmError(Exception):
    """Something went wrong; nothing below a module's ``main()`` handles it unless it can mend it.

    ``message``: what happened and where, one sentence. ``hint``: what the reader can do about it.
    ``details``: JSON-able facts that are returned to the caller beside the message.
    """

    def __init__(self, message: str, *, hint: str = "", **details: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(CnvmError):
    """A value given by the user is not allowed; nothing was changed. Names the option and what is allowed."""


class Missing(InputError):
    """The host lacks something that an earlier task may be about to make. In check mode that is a warning."""


class Refused(CnvmError):
    """What was asked is understood but would break a promise (name taken, owned elsewhere, move under way)."""


class HostError(CnvmError):
    """A host lacks something that is needed: a program, a kernel feature, space, a service."""


class PeerError(CnvmError):
    """Another host could not be reached, or did not answer in time, or not in our protocol."""


class CommandError(CnvmError):
    """A command ended with a code other than 0. ``details``: ``argv``, ``rc``, ``stdout``, ``stderr``."""
