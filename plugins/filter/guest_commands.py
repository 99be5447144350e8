# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that lead to a guest."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guest_commands
short_description: The commands that lead to a guest
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Makes the shell commands with which somebody at the controller reaches a guest through its host, with the key, the
    port and the options that Ansible has for that host.
positional: _input, way
options:
  _input:
    description: The guest, as P(cnvm.platform.guest_rows#filter) or M(cnvm.platform.guest_info) returns it.
    type: dict
    required: true
  way:
    description: The variables of its host (C(hostvars[host])).
    type: dict
    required: true
  user:
    description: Who is to log in. Without it that is up to C(ssh).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show how to log in
  ansible.builtin.debug:
    msg: "{{ (item | cnvm.platform.guest_commands(hostvars[inventory_hostname], user='debian')).ssh }}"
  loop: "{{ found.guests }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
_value:
  description:
    - C(ssh), C(console) (leave it with Ctrl and a closing bracket) and C(vnc) (a tunnel to port 5900 of this machine).
      A text is empty where there is no such way.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import listing
from ansible_collections.cnvm.platform.plugins.plugin_utils import _ssh


def guest_commands(guest: t.Mapping[str, t.Any], way: t.Mapping[str, t.Any], user: str = "") -> dict[str, str]:
    """The commands."""
    try:
        return listing.commands(guest, _ssh.way(way), user)
    except CnvmError as error:
        raise AnsibleFilterError(f"guest_commands: {error}") from error


class FilterModule:
    """Ansible's way to find it."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"guest_commands": guest_commands}
