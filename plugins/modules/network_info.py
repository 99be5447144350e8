#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_info
short_description: The networks of a host, who is plugged in, and which addresses were given
version_added: 0.1.0
description:
  - Returns libvirt's networks on a host, whoever made them. One call asks for all of them.
options:
  names:
    description: Only these networks. Names that the host does not know are left out.
    type: list
    elements: str
  leases:
    description: Whether to tell the addresses that DHCP has given.
    type: bool
    default: true
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
  - module: cnvm.platform.network
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: See what networks there are
  cnvm.platform.network_info:
  register: found

- name: Show which address the guest web was given
  ansible.builtin.debug:
    msg: "{{ found.networks | map(attribute='leases') | flatten | selectattr('name', 'equalto', 'web')
      | map(attribute='address') }}"
"""

RETURN = r"""
networks:
  description:
    - The networks, sorted by name.
    - Beside what is listed here each has the keys of M(cnvm.platform.network) as they are in force, and in C(other)
      what those cannot say.
  returned: success
  type: list
  elements: dict
  sample:
    - name: lab
      uuid: 9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11
      state: active
      autostart: true
      persistent: true
      type: nat
      bridge: virbr1
      mtu: 1500
      forward_device: ""
      subnet: 192.168.150.0/24
      address: 192.168.150.1
      dhcp_ranges: [{start: 192.168.150.2, end: 192.168.150.254}]
      dhcp_hosts: [{mac: "52:54:00:6b:3c:58", address: 192.168.150.10, name: web}]
      domain: lab.example
      domain_local: true
      dns: true
      dns_forwarders: []
      dns_hosts: []
      other: []
      guests: [web]
      pending: []
      leases:
        - {mac: "52:54:00:6b:3c:58", address: 192.168.150.10, name: web, expires_epoch_s: 1795212990}
  contains:
    name:
      description: Name of the network.
      type: str
      sample: lab
    uuid:
      description: What libvirt knows it by.
      type: str
      sample: 9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11
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
      description: >-
        As for M(cnvm.platform.network), V(overlay) for the overlay's bridge; or libvirt's own word for a kind that
        that module does not make.
      type: str
      sample: nat
    bridge:
      description: The bridge that guests are plugged into.
      type: str
      sample: virbr1
    mtu:
      description: The bridge's largest packet in bytes; null where nothing is known.
      type: int
      sample: 1500
    guests:
      description: Running guests that are plugged in, and other interfaces in libvirt's bridge as C(interface NAME).
      type: list
      elements: str
      sample: [web]
    pending:
      description: Keys in which the running network differs from the stored one.
      type: list
      elements: str
      sample: []
    leases:
      description: Addresses that DHCP has given and that have not expired.
      type: list
      elements: dict
      sample:
        - {mac: "52:54:00:6b:3c:58", address: 192.168.150.10, name: web, expires_epoch_s: 1795212990}
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import chosen
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._host.networks import report
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        "names": {"type": "list", "elements": "str"},
        "leases": {"type": "bool", "default": True},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Tell what there is."""
    if check_mode and not libvirt.available():
        return libvirt.none_yet("networks")
    return {"changed": False, "networks": report(chosen(params["names"]), leases=params["leases"])}


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
