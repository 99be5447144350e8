#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network
short_description: Networks of a host that guests are plugged into, running and stored
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes libvirt's networks on a host. One call takes all of them.
  - The running network and the stored one are compared with what is wanted, each by itself, and both are brought to it.
  - Reservations, ranges of addresses and names of hosts are changed while the network runs. For everything else it is
    restarted. A network that guests are plugged into is restarted only when O(restart_on_change) allows it; then their
    interfaces are put back into its bridge, and they do not notice more than a pause of about a second. When that was
    cut off, the next run puts back those that are in no bridge.
  - Networks are IPv4 only. Before anything is changed, the subnet is compared with the routes of the host and with its
    other networks.
  - What an existing network has beyond these options (IPv6, VLANs, limits of bandwidth, parts of DNS) is removed when
    the network is described here; the difference and a warning name it. Title, description and metadata stay.
options:
  networks:
    description:
      - The networks, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      name:
        description:
          - Name of the network.
          - 1 to 63 letters, digits, V(_), V(.) or V(-), the first one a letter or a digit. Quote a name that is all
            digits.
        type: raw
        required: true
      state:
        description:
          - V(active) creates it if need be and starts it.
          - V(present) creates it if need be and leaves an active one active and an inactive one inactive.
          - V(inactive) creates it if need be and stops it.
          - V(absent) stops and removes it. Nothing else that is said of it is looked at.
        type: str
        choices: [present, active, inactive, absent]
        default: active
      autostart:
        description:
          - Whether it starts with the host. By default an active one does, an inactive one does not, and with
            O(networks[].state=present) it stays as it is.
        type: bool
      type:
        description:
          - V(nat) is a network of its own behind the host, whose address its guests have in the world.
          - V(routed) is one whose addresses the world knows the way to.
          - V(open) is the same without any rule in the host's packet filter.
          - V(isolated) ends at the host; without O(networks[].subnet) not even the host has an address in it.
          - V(bridge) is a bridge that the host has already, such as one with its own network card in it.
          - V(overlay) is the network that all hosts of M(cnvm.platform.overlay) share.
        type: str
        choices: [nat, routed, open, isolated, bridge, overlay]
        default: nat
      bridge:
        description:
          - With O(networks[].type=bridge) the bridge; required.
          - Otherwise the name of the bridge that libvirt makes. By default it chooses one (C(virbr0), C(virbr1), …),
            and that stays.
        type: str
      forward_device:
        description: The only interface of the host through which guests reach the world, for V(nat) and V(routed).
        type: str
      subnet:
        description:
          - The IPv4 subnet, such as V(192.168.150.0/24). Required for V(nat), V(routed) and V(open).
          - Refused when it overlaps a route of the host or another network. One inside of a larger subnet that is
            reached through a router is allowed, with a warning.
        type: str
      address:
        description: The host's address in it. By default the first one.
        type: str
      dhcp_ranges:
        description:
          - Addresses that guests are given, from C(start) to C(end).
          - By default all of the subnet for V(nat), and none for the other types. An empty list is for none.
        type: list
        elements: dict
        suboptions:
          start:
            description: The first address.
            type: str
            required: true
          end:
            description: The last address.
            type: str
            required: true
      dhcp_hosts:
        description:
          - Guests that are always given the same address. No MAC, address or name twice.
          - An address that another guest has been given is free when that one's lease ends; there is a warning.
        type: list
        elements: dict
        suboptions:
          mac:
            description: The guest's MAC, in quotes; YAML makes a number of some.
            type: raw
            required: true
          address:
            description: The address in the subnet, inside or outside of the ranges.
            type: str
            required: true
          name:
            description: The name that it is given, which DNS then knows.
            type: str
      domain:
        description: DNS domain of the guests.
        type: str
      domain_local:
        description: Whether names in O(networks[].domain) are never asked for elsewhere.
        type: bool
      dns:
        description: Whether the host answers DNS questions of the guests. True by default.
        type: bool
      dns_forwarders:
        description: Name servers that are asked instead of the host's own.
        type: list
        elements: str
      dns_hosts:
        description: More names that DNS knows. No address and no name twice.
        type: list
        elements: dict
        suboptions:
          address:
            description: The IPv4 address.
            type: str
            required: true
          names:
            description: Its names.
            type: list
            elements: str
            required: true
      mtu:
        description:
          - Largest packet in bytes, a whole number from 576. By default the kernel's, which is 1500.
          - Bridges that are not libvirt's have their own.
        type: raw
  restart_on_change:
    description:
      - Whether a network may be restarted for a change while guests are plugged into it. They are cut off for about a
        second and keep their interfaces; when their subnet changes, they have to ask for another address.
      - With V(false) the module fails instead, before it changes anything, and names the guests.
      - A network that nobody is plugged into is restarted in any case. The bridge of one that is in use is never
        exchanged.
    type: bool
    default: false
  force:
    description: Whether a network may be stopped or removed while guests are plugged into it, which cuts them off.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Says what it would do, after the same checks; changes nothing.
      - Where libvirt is still to be installed all would be new. A warning says so, and an empty list is returned.
      - A bridge or an overlay that is not there yet is a warning, as a task before may be about to make it.
    support: full
  diff_mode:
    description: Returns the descriptions before and after, and where the running network differs from the stored one.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - python3-libvirt, libvirt with its network driver, dnsmasq
  - P(cnvm.platform.host_bootstrap#role) with C(host_bootstrap_guests) installs them
  - root
seealso:
  - module: cnvm.platform.network_info
  - module: cnvm.platform.pool
  - module: cnvm.platform.overlay
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: A network behind the host, with addresses for guests
  cnvm.platform.network:
    networks:
      - name: cmnet
        bridge: bridge0
        subnet: 192.168.1.0/24

- name: The same with a range, a reservation and a domain
  cnvm.platform.network:
    networks:
      - name: lab
        subnet: 192.168.150.0/24
        domain: lab.example
        domain_local: true
        dhcp_ranges:
          - start: 192.168.150.100
            end: 192.168.150.199
        dhcp_hosts:
          - mac: "52:54:00:6b:3c:58"
            address: 192.168.150.10
            name: web

- name: Networks of several kinds
  cnvm.platform.network:
    networks:
      - name: fleet
        type: overlay
      - name: office
        type: bridge
        bridge: br0
      - name: backstage
        type: isolated
        subnet: 192.168.151.0/24
      - name: old
        state: absent
"""

RETURN = r"""
networks:
  description: The networks in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - name: lab
      state: active
      changed: true
      actions: [change dhcp_hosts]
      restarted: false
      bridge: virbr1
      mtu: 1500
  contains:
    name:
      description: Name of the network.
      type: str
      sample: lab
    state:
      description: V(active), V(inactive) or V(absent), as it is now, or would be in check mode.
      type: str
      sample: active
    changed:
      description: Whether something was done to it, or would be in check mode.
      type: bool
      sample: true
    actions:
      description: What was done, in order.
      type: list
      elements: str
      sample: [change domain, restart]
    restarted:
      description: Whether it was stopped and started again for a change.
      type: bool
      sample: true
    bridge:
      description: The bridge that guests are plugged into. Empty where it is not known yet (check mode).
      type: str
      sample: virbr1
    mtu:
      description: The bridge's largest packet in bytes; null where there is no bridge (yet).
      type: int
      sample: 1500
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._host.networks import bring_to
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def _network_options() -> dict[str, t.Any]:
    """What there is in an item. It is decoded by us: Ansible would take true for a number, and 7 for the name 007."""
    return {
        "name": {"type": "raw", "required": True},
        "state": {"type": "str", "choices": ["present", "active", "inactive", "absent"], "default": "active"},
        "autostart": {"type": "bool"},
        "type": {
            "type": "str",
            "choices": ["nat", "routed", "open", "isolated", "bridge", "overlay"],
            "default": "nat",
        },
        "bridge": {"type": "str"},
        "forward_device": {"type": "str"},
        "subnet": {"type": "str"},
        "address": {"type": "str"},
        "dhcp_ranges": {
            "type": "list",
            "elements": "dict",
            "options": {"start": {"type": "str", "required": True}, "end": {"type": "str", "required": True}},
        },
        "dhcp_hosts": {
            "type": "list",
            "elements": "dict",
            "options": {
                "mac": {"type": "raw", "required": True},
                "address": {"type": "str", "required": True},
                "name": {"type": "str"},
            },
        },
        "domain": {"type": "str"},
        "domain_local": {"type": "bool"},
        "dns": {"type": "bool"},
        "dns_forwarders": {"type": "list", "elements": "str"},
        "dns_hosts": {
            "type": "list",
            "elements": "dict",
            "options": {
                "address": {"type": "str", "required": True},
                "names": {"type": "list", "elements": "str", "required": True},
            },
        },
        "mtu": {"type": "raw"},
    }


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        "networks": {"type": "list", "elements": "raw", "required": True, "options": _network_options()},
        "restart_on_change": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the networks to what is wanted."""
    return bring_to(
        host,
        params["networks"],
        restart_on_change=params["restart_on_change"],
        force=params["force"],
        check_mode=check_mode,
    )


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
