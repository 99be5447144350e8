# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays a container: ``endpoint.py create|attach|detach|announce|forwards|remove NAME ADDRESS [PORT…]``.

With the helper's own library, as the helper itself does it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t

sys.path.insert(0, "/usr/local/lib/cnvm")

from cnvm_platform._core.runner import CommandResult, checked  # type: ignore[import-not-found]
from cnvm_platform._host import netns  # type: ignore[import-not-found]
from cnvm_platform._host.system import Host  # type: ignore[import-not-found]
from cnvm_platform._net.endpoint import from_definition  # type: ignore[import-not-found]


def run(argv: t.Sequence[str], *, stdin: t.Optional[str] = None, check: bool = True, **_: t.Any) -> t.Any:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=environment, check=False)
    result = CommandResult(tuple(argv), done.returncode, done.stdout, done.stderr)
    return checked(result) if check else result


def main() -> None:
    word, name, address, *ports = sys.argv[1:]
    with open("/etc/cnvm/overlay.json", encoding="utf-8") as file:
        overlay = json.load(file)
    definition = {"name": name, "uuid": f"uuid of {name}", "address": address, "ports": ports}
    spec, host = from_definition(definition, overlay), Host(run=run)
    if word == "announce":
        netns.announce(host, spec, (0.0, 0.05, 0.15, 0.3))
    elif word == "forwards":
        netns.check_forwards(spec)
        netns.forwards_up(host, spec)
    elif word == "holder":
        print(netns.address_holder(spec))
    elif word == "remove":
        print(netns.remove(host, name, definition["uuid"]))
    else:
        print(getattr(netns, word)(host, spec))


main()
