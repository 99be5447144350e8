# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests as a table to read."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guest_table
short_description: Guests as a table to read
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Makes lines of text of mappings, with a headline, and a column for each key.
positional: _input, columns
options:
  _input:
    description: The guests, as P(cnvm.platform.guest_rows#filter) returns them, or other mappings.
    type: list
    elements: dict
    required: true
  columns:
    description: Which keys, in which order.
    type: list
    elements: str
    default: [name, host, state, address, template, group, type]
"""

EXAMPLES = r"""
- name: Show the guests of this host
  ansible.builtin.debug:
    msg: "{{ found.guests | cnvm.platform.guest_table(['name', 'state', 'address']) }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import listing


def guest_table(rows: object, columns: t.Sequence[str] = listing.COLUMNS) -> list[str]:
    """The lines."""
    try:
        return listing.table(rows, columns)
    except CnvmError as error:
        raise AnsibleFilterError(f"guest_table: {error}") from error


class FilterModule:
    """Ansible's way to find it."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"guest_table": guest_table}
