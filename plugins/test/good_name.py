# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a text can be the name of a workload, an image, a template or a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: good_name
short_description: Whether a text can be a name
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Tests whether a text follows the rule for the names of containers, guests, images, templates and hosts.
  - It is 1 to 63 letters, digits, C(_), C(.) or C(-), the first one a letter or a digit (ASCII only).
options:
  _input:
    description: The text. What is no text, such as a number, is no name.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: The container must have a name
  ansible.builtin.assert:
    that: my_container is cnvm.platform.good_name
"""

RETURN = r"""
_value:
  description: Whether it can be a name.
  type: bool
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name


def good_name(value: object) -> bool:
    """Whether it can be a name."""
    try:
        check_name(value, "value")
    except InputError:
        return False
    return True


class TestModule:
    """Ansible's way to find it."""

    def tests(self) -> dict[str, t.Callable[..., bool]]:
        """Tests by name."""
        return {"good_name": good_name}
