# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who goes where when a host is to be empty: the plan and the report of the role evacuate."""

from __future__ import annotations

DOCUMENTATION = r"""
name: evacuation
short_description: Decide who goes where when a host is to be empty
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Decides for each guest and container of a host to which other host it goes, and in which order. Nothing is asked and
    nothing is done.
  - Each goes to the host that has the most memory left after those before it.
positional: _input, host
options:
  _input:
    description:
      - What each host has, by name, with the keys C(meminfo) (the text of its C(/proc/meminfo)), C(guests) (what
        M(cnvm.platform.guest_info) returns; no list where there is no libvirt) and C(containers) (what
        M(cnvm.platform.container_info) returns).
    type: dict
    required: true
  host:
    description: The host that is to be empty.
    type: str
    required: true
  target:
    description: The host to which all go. Empty is any other.
    type: str
    default: ''
  order:
    description: Who goes first, by V(name), or who has the least (V(smallest)) or the most memory (V(largest)).
    type: str
    choices: [name, smallest, largest]
    default: name
  first:
    description: Names of those that go before all others, in this order. Each must be on one of the hosts.
    type: list
    elements: str
    default: []
  memory_reserve_mib:
    description: MiB of each host that no workload gets.
    type: int
    default: 256
  back:
    description: Whether those in O(record) come back to O(host) instead, the last one first.
    type: bool
    default: false
  record:
    description: What went away from O(host) before, as C(record) of an earlier result.
    type: list
    elements: dict
    default: []
  tried:
    description: Results of the modules in check mode, each with the move as C(item).
    type: list
    elements: dict
    default: []
  done:
    description: Results of the modules, each with the move as C(item). With that alone the move is about to begin.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: See who would go where
  ansible.builtin.debug:
    msg: "{{ (hosts | cnvm.platform.evacuation('host1', order='largest')).table }}"
  vars:
    hosts:
      host1: {meminfo: "MemTotal: 8000000 kB", guests: [], containers: [{name: web, state: running}]}
      host2: {meminfo: "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB", guests: [], containers: []}
"""

RETURN = r"""
_value:
  description:
    - C(moves) that can be made, in order, each with C(kind), C(name), C(uuid), C(state), C(memory_mib), C(source) and
      C(target). C(blockers) have a C(reason) why one cannot move. C(outcomes) tell of all what became of them, C(table)
      the same as lines for people. C(failed) and C(left) name those that failed or cannot, and those that have not
      moved. C(record) is what has gone, or may have, and is not back.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError
from ansible_collections.cnvm.platform.plugins.plugin_utils import _evacuation


def evacuation(
    hosts: t.Mapping[str, t.Any],
    host: str,
    target: str = "",
    order: str = "name",
    first: t.Sequence[str] = (),
    memory_reserve_mib: object = 256,
    back: bool = False,
    record: t.Sequence[t.Mapping[str, t.Any]] = (),
    tried: t.Sequence[t.Mapping[str, t.Any]] = (),
    done: t.Sequence[t.Mapping[str, t.Any]] = (),
) -> dict[str, t.Any]:
    """The plan, and how far it is; what is wrong comes out as the filter's error."""
    try:
        record = _evacuation.checked_record(record)
        if back:
            made = _evacuation.plan_back(hosts, host, record, reserve_mib=memory_reserve_mib)
        else:
            made = _evacuation.plan(
                hosts, host, target=target, order=order, first=first, reserve_mib=memory_reserve_mib
            )
    except CnvmError as error:
        raise AnsibleFilterError(f"evacuation: {error}") from error
    return _evacuation.report(made, tried, done, record, host)


class FilterModule:
    """Ansible's way to find it."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"evacuation": evacuation}
