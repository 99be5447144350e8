#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay
short_description: The overlay network on a host
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Joins a host to the layer-2 network on which containers keep their addresses wherever they run. WireGuard between
    the hosts (the kernel's, or C(wireguard-go) where the kernel has none), VXLAN over it, a bridge on each host, and a
    gateway address that every host answers for itself.
  - Hosts need each other's public keys. So it is called twice on each host, first with O(state=prepared), then with
    O(state=present) and what the first calls returned as O(members). P(cnvm.platform.overlay#role) does that.
  - Only the difference is applied. Adding or removing a host does not disturb the tunnels between the others.
attributes:
  check_mode:
    description: Can run in check mode and says whether it would change the host.
    support: full
  diff_mode:
    description: Returns C(overlay.json) and what the live network lacks, before and after.
    support: full
  idempotent:
    description: Changes nothing when file and live network are as wanted.
    support: full
options:
  state:
    description:
      - With V(prepared) the host makes its key and says what the other hosts must know of it. Settings that are not
        allowed, and subnets that it reaches otherwise, are refused before that, so give the same ones as with
        V(present).
      - With V(present) it is in the overlay.
      - With V(absent) links, rules, C(overlay.json) and the key are removed. Refused while containers or guests are
        plugged in.
    type: str
    choices: [prepared, present, absent]
    default: present
  name:
    description: The name of this host, as its peers know it. Needed unless O(state=absent).
    type: str
  underlay:
    description:
      - IPv4 address at which the other hosts reach this one. Used with O(state=prepared).
      - Without it, the address from which the host would reach the internet.
    type: str
  port:
    description: UDP port at which this host's WireGuard listens. Used with O(state=prepared).
    type: raw
    default: 51820
  tunnel_address:
    description: The host's address inside O(tunnel_subnet), to have a certain one. Used with O(state=prepared).
    type: str
  address:
    description: The host's own address on the overlay, to have a certain one. Used with O(state=prepared).
    type: str
  members:
    description:
      - The hosts of the play, this one among them, each with what RV(member) of O(state=prepared) was.
      - Must be the same list, in the same order, on all hosts. Each computes all addresses from it.
      - Hosts that are known and not in the list stay, so that a play on some hosts does not cut off the others. What
        was said of them last counts.
      - As long as there are such hosts, O(encryption), O(tunnel_subnet), O(mtu), O(vni) and O(vxlan_port) stay as well.
    type: list
    elements: dict
    default: []
  removed:
    description:
      - Names of hosts that are no longer part of the overlay. The others remember it, and tell those that were not in
        this play, until such a host is in a play again.
      - The former name of a host that has another by now need not be named.
    type: list
    elements: str
    default: []
  subnet:
    description:
      - The overlay's subnet, for hosts and containers.
      - Refused where it overlaps a network that the host reaches now. Inside of one behind a router there is a warning.
    type: str
    default: 10.100.101.0/24
  tunnel_subnet:
    description: The same for the tunnels between the hosts. Not used with O(encryption=none).
    type: str
    default: 10.100.100.0/24
  gateway:
    description: The containers' gateway, which every host is for its own containers. By default the last address.
    type: str
  encryption:
    description:
      - Whether the hosts talk through WireGuard.
      - With V(none) everything, memory of moving containers included, crosses the network between the hosts in the
        clear, and addresses can be forged.
    type: str
    choices: [wireguard, none]
    default: wireguard
  mtu:
    description:
      - Largest packet of the overlay, in bytes; the same on all hosts.
      - V(0) computes it from the smallest link between the hosts, less 80 for WireGuard and 50 for VXLAN.
    type: raw
    default: 0
  vni:
    description: The VXLAN's number.
    type: raw
    default: 4242
  vxlan_port:
    description: UDP port of VXLAN.
    type: raw
    default: 4789
  masquerade:
    description:
      - Whether containers reach the world under their host's address.
      - If V(false), routers outside have to know the way to the overlay.
    type: bool
    default: true
requirements:
  - iproute2, nftables, wireguard-tools
  - wireguard-go where the kernel has no WireGuard
  - root
seealso:
  - module: cnvm.platform.overlay_info
"""

EXAMPLES = r"""
- name: Make keys
  cnvm.platform.overlay:
    state: prepared
    name: "{{ inventory_hostname }}"
  register: prepared

- name: Join the hosts of the play
  cnvm.platform.overlay:
    name: "{{ inventory_hostname }}"
    members: "{{ ansible_play_hosts | map('extract', hostvars, ['prepared', 'member']) | list }}"

- name: A host has gone
  cnvm.platform.overlay:
    name: "{{ inventory_hostname }}"
    members: "{{ ansible_play_hosts | map('extract', hostvars, ['prepared', 'member']) | list }}"
    removed: [host3]
"""

RETURN = r"""
member:
  description: What the other hosts must know of this one. The private key is not in it; it never leaves the host.
  returned: O(state=prepared)
  type: dict
  sample:
    name: host1
    underlay: 192.0.2.11
    underlay_mtu: 1500
    public_key: 5bXGVsM6W+XwJ2IYXyMgPzTNvvRZjKCwUlzmGNQbM2c=
    port: 51820
    tunnel_address: ""
    address: ""
    overlay: null
    taken: []
overlay:
  description: What the host's C(overlay.json) says.
  returned: O(state=present)
  type: dict
  sample:
    schema: 1
    subnet: 10.100.101.0/24
    gateway: 10.100.101.254
    gateway_mac: "02:50:8f:1a:7c:03"
    bridge: cnvm0
    mtu: 1370
    encryption: wireguard
    tunnel_subnet: 10.100.100.0/24
    vni: 4242
    vxlan_port: 4789
    masquerade: true
    self:
      name: host1
      tunnel: 10.100.100.1
      underlay: 192.0.2.11
      address: 10.100.101.1
      endpoint: 192.0.2.11:51820
      public_key: 5bXGVsM6W+XwJ2IYXyMgPzTNvvRZjKCwUlzmGNQbM2c=
      revision: 1
    peers:
      - name: host2
        tunnel: 10.100.100.2
        underlay: 192.0.2.12
        address: 10.100.101.2
        endpoint: 192.0.2.12:51820
        public_key: p9X0NAMlQ8sY6sMOhXiVfVkGUZ6nmnlmJMpIJSbyyAw=
        revision: 1
    removed: {}
steps:
  description: What was done to the live network, or would be in check mode. Empty when it was as wanted.
  returned: O(state=present) or O(state=absent)
  type: list
  elements: str
  sample: ["fdb append 00:00:00:00:00:00 dev cnvm-vx dst 10.100.100.3"]
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import integer
from ansible_collections.cnvm.platform.plugins.module_utils._host import overlay
from ansible_collections.cnvm.platform.plugins.module_utils._host.files import lock, write_json
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import diff_of, run_module
from ansible_collections.cnvm.platform.plugins.module_utils._net.overlay import (
    address_of,
    document_for,
    encrypted,
    member_from,
    settings_from,
)


def argument_spec() -> dict[str, t.Any]:
    return {
        "state": {"type": "str", "choices": ["prepared", "present", "absent"], "default": "present"},
        "name": {"type": "str"},
        "underlay": {"type": "str"},
        "port": {"type": "raw", "default": 51820},
        "tunnel_address": {"type": "str"},
        "address": {"type": "str"},
        "members": {"type": "list", "elements": "dict", "default": []},
        "removed": {"type": "list", "elements": "str", "default": []},
        "subnet": {"type": "str", "default": "10.100.101.0/24"},
        "tunnel_subnet": {"type": "str", "default": "10.100.100.0/24"},
        "gateway": {"type": "str"},
        "encryption": {"type": "str", "choices": ["wireguard", "none"], "default": "wireguard"},
        "mtu": {"type": "raw", "default": 0},
        "vni": {"type": "raw", "default": 4242},
        "vxlan_port": {"type": "raw", "default": 4789},
        "masquerade": {"type": "bool", "default": True},
    }


def prepare(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Make the key; say who this host is. What its overlay could not be is refused now."""
    settings = settings_from(params)
    wished = {key: address_of(params[key], key) if params[key] else "" for key in ("tunnel_address", "address")}
    document = overlay.load()
    # Its warnings are said by whoever joins.
    overlay.refuse_routed(host, document, settings._asdict())
    before = overlay.public_key(host, make=False)
    where, mtu = overlay.underlay(host, address_of(params["underlay"], "underlay") if params["underlay"] else "")
    member = {
        "name": check_name(params["name"], "name"),
        "port": integer(params["port"], "port", least=1, most=65535),
        "underlay": where,
        "underlay_mtu": mtu,
        "public_key": before or overlay.public_key(host, make=not check_mode),
        "overlay": document,
        "taken": overlay.workload_addresses(),
        **wished,
    }
    return {
        "changed": not before,
        "member": member,
        "diff": diff_of({"key": bool(before)}, {"key": True}, overlay.KEY_FILE),
    }


def present(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Write overlay.json and bring the live network to it."""
    members = [member_from(item, f"members[{index}]") for index, item in enumerate(params["members"])]
    settings = settings_from(params)
    document = document_for(check_name(params["name"], "name"), settings, members, params["removed"])
    if encrypted(document) and not check_mode:
        for entry in (document["self"], *document["peers"]):
            if not entry.get("public_key"):
                raise InputError(
                    f"members: {entry['name']} has no public key.", hint="Call this module with state prepared there."
                )
    with lock(overlay.LOCK_FILE, "the module overlay"):
        before = overlay.load()
        warnings = overlay.refuse_routed(host, before, document)
        overlay.refuse_taken(before, document, [member.name for member in members])
        if before != document and not check_mode:
            write_json(paths.OVERLAY_FILE, document)
        steps = overlay.reconcile(
            host, document, check=check_mode, changed_peers=before is not None and before != document
        ).texts()
    return {
        "changed": before != document or bool(steps),
        "overlay": document,
        "steps": steps,
        "warnings": warnings,
        "diff": diff_of({"overlay.json": before, "lacks": steps}, {"overlay.json": document, "lacks": []}, "overlay"),
    }


def absent(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Take it down."""
    with lock(overlay.LOCK_FILE, "the module overlay"):
        before = overlay.load()
        key = overlay.has_key()
        removed = overlay.take_down(host, before, check=check_mode)
        if not check_mode:
            overlay.forget()
    return {
        "changed": before is not None or key or bool(removed),
        "steps": [f"remove {name}" for name in removed],
        "diff": diff_of(
            {"overlay.json": before, "key": key, "there": removed},
            {"overlay.json": None, "key": False, "there": []},
            "overlay",
        ),
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    return {"prepared": prepare, "present": present, "absent": absent}[params["state"]](host, params, check_mode)


def main() -> None:
    run_module(
        work, argument_spec(), required_if=[("state", "prepared", ("name",)), ("state", "present", ("name", "members"))]
    )


if __name__ == "__main__":
    main()
