#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pool_info
short_description: The storage pools of a host
version_added: 0.1.0
description:
  - Returns libvirt's storage pools on a host, whoever made them. One call asks for all of them.
options:
  names:
    description: Only these pools. Names that the host does not know are left out.
    type: list
    elements: str
  volumes:
    description: Whether to list the volumes (files) of active pools, too. libvirt reads each of them for it.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Changes nothing.
      - Where libvirt is still to be installed a warning says so, and an empty list is returned. Otherwise that fails.
    support: full
extends_documentation_fragment:
  - cnvm.platform.info_module
requirements:
  - python3-libvirt and libvirt
  - root
seealso:
  - module: cnvm.platform.pool
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: See how much room the pools have
  cnvm.platform.pool_info:
  register: found

- name: Show it
  ansible.builtin.debug:
    msg: "{{ dict(found.pools | selectattr('state', 'equalto', 'active') | map(attribute='name')
      | zip(found.pools | selectattr('state', 'equalto', 'active') | map(attribute='available_bytes'))) }}"
"""

RETURN = r"""
pools:
  description:
    - The pools, sorted by name.
    - Beside what is listed here each has the keys of M(cnvm.platform.pool) as they are in force, and in C(other) what
      those cannot say.
  returned: success
  type: list
  elements: dict
  sample:
    - name: images
      uuid: 1f1b7a2e-7d5e-4ad9-9a10-6d8f3d0b8c1e
      state: active
      autostart: true
      persistent: true
      type: dir
      path: /srv/images
      mode: "0711"
      owner: "0"
      group: "0"
      capacity_bytes: 105089261568
      allocation_bytes: 22008889344
      available_bytes: 83080372224
  contains:
    name:
      description: Name of the pool.
      type: str
      sample: images
    uuid:
      description: What libvirt knows it by.
      type: str
      sample: 1f1b7a2e-7d5e-4ad9-9a10-6d8f3d0b8c1e
    state:
      description: V(active) or V(inactive).
      type: str
      sample: active
    autostart:
      description: Whether it starts with the host.
      type: bool
      sample: true
    persistent:
      description: Whether it is stored, and so is still there after it was stopped.
      type: bool
      sample: true
    type:
      description: As for M(cnvm.platform.pool), or libvirt's own word for a kind that that module does not make.
      type: str
      sample: dir
    path:
      description: Where its files or volumes are.
      type: str
      sample: /srv/images
    capacity_bytes:
      description: Its size. Only of an active pool, as are the next two.
      type: int
      sample: 105089261568
    allocation_bytes:
      description: What is in use.
      type: int
      sample: 22008889344
    available_bytes:
      description: What is free.
      type: int
      sample: 83080372224
    volumes:
      description: The volumes of an active pool, if O(volumes) asks for them.
      type: list
      elements: dict
      sample:
        - {name: web.qcow2, path: /srv/images/web.qcow2, capacity_bytes: 2147483648, allocation_bytes: 200704}
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import chosen
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._host.pools import report
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        "names": {"type": "list", "elements": "str"},
        "volumes": {"type": "bool", "default": False},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Tell what there is."""
    if check_mode and not libvirt.available():
        return libvirt.none_yet("pools")
    return {"changed": False, "pools": report(chosen(params["names"]), volumes=params["volumes"])}


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
