#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_trust
short_description: SSH trust between hosts, with host keys checked
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Makes the key pair with which a host reaches its peers, and writes who the peers are.
  - A peer's key may start the helper C(cnvm-host serve) and nothing else; root's other keys are left alone.
  - Host keys are always checked, by the peer's name. They come from the inventory's hosts through connections that
    the controller has authenticated, never from the network.
  - A peer that is known stays known until it is named in O(removed).
attributes:
  check_mode:
    description: Can run in check mode and says whether it would change the host.
    support: full
  diff_mode:
    description: Returns the files before and after.
    support: full
  idempotent:
    description: Changes nothing when keys and peers are as wanted.
    support: full
options:
  name:
    description: The name of this host, as its peers know it. The role uses the name in the inventory.
    type: str
    required: true
  peers:
    description: The hosts that are to be trusted. This host itself may be among them and is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The peer's name.
        type: str
        required: true
      public_key:
        description: The key with which the peer will log in, as RV(identity.public_key) of its own run.
        type: str
        required: true
      host_keys:
        description: The peer's host keys, as RV(identity.host_keys) of its own run.
        type: list
        elements: str
        required: true
      port:
        description: The port of the peer's SSH server.
        type: raw
        default: 22
  removed:
    description: Names of hosts that are no longer trusted.
    type: list
    elements: str
    default: []
requirements:
  - OpenSSH
  - root
seealso:
  - module: cnvm.platform.host_info
"""

EXAMPLES = r"""
- name: Make the key of this host
  cnvm.platform.host_trust:
    name: "{{ inventory_hostname }}"
  register: own

- name: Trust the other hosts of the play
  cnvm.platform.host_trust:
    name: "{{ inventory_hostname }}"
    peers: "{{ ansible_play_hosts | map('extract', hostvars, ['own', 'identity']) | list }}"

- name: Forget a host
  cnvm.platform.host_trust:
    name: "{{ inventory_hostname }}"
    removed: [host3]
"""

RETURN = r"""
identity:
  description: What peers must know of this host, in the form that O(peers) takes.
  returned: success
  type: dict
  contains:
    name:
      description: The host's name.
      type: str
      sample: host1
    public_key:
      description: Its public key; empty in check mode on a host that has none yet.
      type: str
      sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq0b0kJ0sZkqQJb9b8WkN3v0k0m0y0O5k6q0d7Qm0aB
    host_keys:
      description: The public keys of its SSH server.
      type: list
      elements: str
      sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPyKf0v6JYw3JrO4kq2P0r6fV5v4Zk0sUq0v0o0n0m0l]
    port:
      description: The port of its SSH server.
      type: int
      sample: 22
"""

import os
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name
from ansible_collections.cnvm.platform.plugins.module_utils._host import trust
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import diff_of, run_module


def argument_spec() -> dict[str, t.Any]:
    return {
        "name": {"type": "str", "required": True},
        "peers": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "public_key": {"type": "str", "required": True, "no_log": False},
                "host_keys": {"type": "list", "elements": "str", "required": True, "no_log": False},
                "port": {"type": "raw", "default": 22},
            },
        },
        "removed": {"type": "list", "elements": "str", "default": []},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    name = check_name(params["name"], "name")
    options = trust.sshd_options(host)
    changes = trust.plan(name, params["peers"], params["removed"], options)
    missing = not (os.path.exists(trust.KEY) and os.path.exists(f"{trust.KEY}.pub"))
    if not check_mode:
        if missing:
            trust.make_key(host, name)
        trust.apply(changes)
    diff = [diff_of(change.before, change.after, change.path) for change in changes]
    return {"changed": missing or bool(changes), "identity": trust.identity(name, options), "diff": diff}


def main() -> None:
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
