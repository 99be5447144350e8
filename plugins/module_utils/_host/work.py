# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The work of a module, done by whoever is there to do it: the module, or this host's own helper.

``cnvm-host work MODULE`` reads a request from its input and answers with a line; both are JSON. A module has to be
packed, sent, unpacked and loaded each time. The helper is here, so the action plugins ask it first (``_worker.py``).

The request: ``digest`` (of the helper's files, as the controller has them), ``params`` (the module's options, checked)
and ``check_mode``. The answer: the module's result, or ``{"other_version": …}`` when this helper is not that one.
"""

from __future__ import annotations

import importlib
import json
import typing as t

from .._core.errors import CnvmError, InputError
from .cli import write_line
from .helper import own_version
from .system import Host, Work, failure

# The module, and the file with its ``work``. Loaded when asked for.
WORK = {
    "container": "containers",
    "container_info": "container_report",
    "guest": "guests",
    "guest_clone": "guest_clones",
    "guest_info": "guest_report",
}


def answer(host: Host, name: str, request: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Do it; the answer. What is neither a CnvmError nor the kernel's refusal is a defect, and is not caught."""
    here = own_version()
    if request["digest"] != here["digest"]:
        return {"other_version": here["version"]}
    work: Work = importlib.import_module(f".{WORK[name]}", __package__).work
    try:
        return work(host, request["params"], request["check_mode"])
    except (CnvmError, OSError) as error:
        return failure(error)


def _work(args: t.Sequence[str], host: Host) -> int:
    """``cnvm-host work MODULE < request``."""
    if len(args) != 1 or args[0] not in WORK:
        raise InputError(f"Usage: cnvm-host work {'|'.join(sorted(WORK))}.")
    if host.stdin is None or host.stdout is None:
        raise RuntimeError("cnvm-host work needs its standard streams.")
    said = answer(host, args[0], json.loads(host.stdin.read()))
    # On one line of its own, even when something else was written before.
    host.stdout.write(b"\n")
    write_line(host, said)
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"work": _work}
