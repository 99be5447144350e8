#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_recover
short_description: End teleports and migrations that something interrupted
version_added: 0.1.0
description:
  - Ends what M(cnvm.platform.container_migrate) or M(cnvm.platform.guest_migrate) has left on a host when a host lost
    power, a link broke or a process was killed in the middle. It reads the journals, asks the other host of each, and
    finishes the move or rolls it back. It may be run at any time, any number of times.
  - Run it on both hosts; P(cnvm.platform.recover#role) does that on all.
  - While the other host cannot be asked and may run the container, nothing is started here. The result says so.
options:
  names:
    description: Only these containers and guests. All that are in a move, when not given.
    type: list
    elements: str
  fenced:
    description:
      - Name of a host that is switched off and will not come back with what it has now. Its side of the moves is then
        decided without asking it.
      - If that is not true, the container or guest may run twice. Never set it because a host merely does not answer.
    type: str
attributes:
  check_mode:
    description: Reports what is in a move, and changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: A second run finds nothing to do.
    support: full
seealso:
  - module: cnvm.platform.container_migrate
  - module: cnvm.platform.guest_migrate
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: End what a power cut has left
  cnvm.platform.container_recover:
"""

RETURN = r"""
results:
  description: One entry for each container or guest that was in a move.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      outcome: source
      message: The move was not committed; web goes on here.
  contains:
    name:
      description: Name of the container or guest.
      type: str
      sample: web
    outcome:
      description:
        - Where it is now. V(source), V(target), V(none) (it is in no move), V(waiting) (the other host must be asked
          first, or ends the move) or V(busy) (a move is under way).
      type: str
      sample: source
    message:
      description: What was found and done.
      type: str
      sample: The move was not committed; web goes on here.
"""

import json
import os
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name, chosen
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The options."""
    return {"names": {"type": "list", "elements": "str"}, "fenced": {"type": "str"}}


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Recover, or in check mode say what would be looked at."""
    names = [check_name(name, "names") for name in chosen(params["names"]) or ()]
    fenced = check_name(params["fenced"], "fenced") if params["fenced"] else ""
    found = sorted(os.listdir(paths.WORKLOADS)) if os.path.isdir(paths.WORKLOADS) else []
    moving = [name for name in found if os.path.exists(paths.journal_file(name)) and (not names or name in names)]
    if check_mode or not moving:
        text = "It is in a move that has not ended."
        return {
            "changed": bool(moving),
            "results": [{"name": name, "outcome": "waiting", "message": text} for name in moving],
        }
    words = [*(["--fenced", fenced] if fenced else []), *moving]
    answer = host.run([paths.HELPER, "recover", *words], check=False)
    if answer.rc:
        raise HostError(f"Recovery failed: {answer.stderr.strip() or answer.stdout.strip()}")
    results = json.loads(answer.stdout)["results"]
    return {"changed": any(one["outcome"] in ("source", "target") for one in results), "results": results}


def main() -> None:
    """Entry point."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
