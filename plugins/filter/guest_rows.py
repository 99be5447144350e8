# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests of many hosts in one list."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guest_rows
short_description: The guests of many hosts in one list
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Puts together what M(cnvm.platform.guest_info) returned on several hosts, one mapping for each guest. One that was
    moved is there once, with the host that has it.
  - Nothing of a guest's definition is in it but its tags.
positional: _input, choose, others
options:
  _input:
    description:
      - What came of M(cnvm.platform.guest_info), by host. A host that did not answer may be among them.
    type: dict
    required: true
  choose:
    description:
      - Only guests of this collection that fit all of the keys C(names) (a list, or a text with commas), C(group),
        C(type) and C(template), or with C(all) all of them.
    type: dict
  others:
    description:
      - The same of hosts that are only looked at. Guests that they have are not chosen; that they are there is a reason
        why one is not.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: See what runs where
  ansible.builtin.debug:
    msg: "{{ dict(hosts | zip(hosts | map('extract', hostvars, 'found'))) | cnvm.platform.guest_rows }}"
  vars:
    hosts: "{{ ansible_play_hosts }}"
"""

RETURN = r"""
_value:
  description:
    - The guests, sorted by name, each with C(name), C(host), C(state), C(address), C(address_source), C(template),
      C(group), C(type), C(memory_mib), C(vcpus), C(console_command), C(vnc) and C(managed).
    - With O(choose), a mapping with C(guests), such a list, and C(refused), a text that says why it is empty, or C('').
      Nothing that fits, and a name that is not there, is a reason.
  type: raw
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import known_keys
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import listing


def guest_rows(found: object, choose: t.Optional[t.Mapping[str, t.Any]] = None, others: object = None) -> t.Any:
    """The rows, or those that are chosen with what is in the way."""
    try:
        if choose is None:
            return listing.rows_of(found)
    except CnvmError as error:
        raise AnsibleFilterError(f"guest_rows: {error}") from error
    try:
        wanted = known_keys(choose, "choose", ("names", "group", "type", "template", "all"))
        guests = listing.choose(
            found,
            others,
            names=wanted.get("names"),
            group=wanted.get("group"),
            kind=wanted.get("type"),
            template=wanted.get("template"),
            everything=wanted.get("all") or False,
        )
    except CnvmError as error:
        return {"guests": [], "refused": str(error)}
    return {"guests": guests, "refused": ""}


class FilterModule:
    """Ansible's way to find it."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"guest_rows": guest_rows}
