# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host guest may-start NAME``: whether this host may start a guest, for libvirt's hook.

libvirt waits for the answer at every start, and must not be asked anything meanwhile: it would wait for itself. So this
reads three small files and nothing else.
"""

from __future__ import annotations

import typing as t

from .._core import paths
from .._core.errors import InputError, Refused
from .._core.names import check_name
from .._migrate import records
from .files import read_json
from .system import Host


def check_start(name: str) -> None:
    """Refused when another host has the guest, or a move of it is not finished. Domains that are not ours may start.

    A damaged record is an error, too: the guest may be elsewhere.
    """
    try:
        check_name(name, "guest")
    except InputError:
        # A guest of ours has no such name.
        return
    owner, journal = read_json(paths.owner_file(name)), read_json(paths.journal_file(name))
    if journal is not None and journal.get("role") == "target" and _is_arriving(journal):
        # QEMU is started to receive it, and holds it until the move is decided.
        return
    if owner is None and journal is not None and journal.get("kind") == "guest":
        raise Refused(
            f"Guest {name!r} is at {journal.get('peer')}; it has not arrived here, and is not started.",
            hint="The playbook cnvm.platform.recover ends what is left of its move.",
        )
    if owner is None or owner.get("kind") != "guest":
        return
    identity = read_json(paths.HOST_FILE) or {}
    if owner.get("owner") != identity.get("host_id"):
        raise Refused(
            f"Guest {name!r} is at {owner.get('owner_name') or 'another host'}; it is not started here.",
            hint="Start it there, or bring it back with cnvm.platform.guest_migrate.",
        )
    begun = ("source", records.SOURCE_BEGUN)
    # ``anew``: what came with the move is given up, and its disks are here.
    if journal is not None and (journal.get("role"), journal.get("state")) != begun and not journal.get("anew"):
        raise Refused(
            f"Guest {name!r} is in a move that is not finished; it is not started.",
            hint="Wait for it, or run the playbook cnvm.platform.recover.",
        )


def _is_arriving(journal: t.Mapping[str, t.Any]) -> bool:
    """Whether a guest is on its way here. Once it is whole here, or this host was off meanwhile, it is not started."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        this_boot = file.read().strip()
    return journal.get("state") == records.TARGET_RECEIVING and journal.get("boot_id") == this_boot


def _guest(args: t.Sequence[str], host: Host) -> int:
    if len(args) != 2 or args[0] != "may-start":
        raise InputError("Usage: cnvm-host guest may-start NAME.")
    check_start(args[1])
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"guest": _guest}
