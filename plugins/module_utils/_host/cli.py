# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""``cnvm-host``: what a host does by itself, for systemd, for its peers and for the modules.

The launcher (installed by the role host_bootstrap) calls ``main`` with the effects; nothing here starts a process.
"""

from __future__ import annotations

import importlib
import json
import typing as t

from .._core.errors import CnvmError
from .system import Host, host_error

# The word on the command line and the file that has it. Loaded when asked for: the helper's start is in a hot path.
_ROOMS = {
    "info": "info",
    "overlay": "overlay",
    "container": "supervise",
    "placement": "placement",
    "serve": "serve",
    "move": "mover",
    "recover": "recover",
    "guest": "guest_start",
    "template": "template_making",
    "work": "work",
    "workloads": "workloads",
}
Command = t.Callable[[t.Sequence[str], Host], int]


def write_line(host: Host, value: object) -> None:
    """One line of JSON on the helper's output."""
    if host.stdout is not None:
        host.stdout.write(json.dumps(value, sort_keys=True).encode() + b"\n")
        host.stdout.flush()


def main(argv: t.Sequence[str], host: Host) -> int:
    """Run ``cnvm-host argv…``; the exit code.

    A CnvmError or the kernel's refusal becomes one line on stderr and code 1.
    """
    word = argv[0] if argv else ""
    try:
        if word == "version":
            write_line(host, importlib.import_module(".helper", __package__).own_version())
            return 0
        if word not in _ROOMS:
            raise CnvmError(
                f"cnvm-host: {word!r} is no command.", hint=f"There are: version, {', '.join(sorted(_ROOMS))}."
            )
        commands: dict[str, Command] = importlib.import_module(f".{_ROOMS[word]}", __package__).commands()
        return commands[word](argv[1:], host)
    except (CnvmError, OSError) as caught:
        error = host_error(caught) if isinstance(caught, OSError) else caught
        if host.stderr is not None:
            host.stderr.write(f"{error}\n".encode("utf-8", "replace"))
            host.stderr.flush()
        return 1
