#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_info
short_description: The state of the overlay network on a host
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Says how the overlay of a host is configured, what its live network lacks, and which peers answer.
  - With O(require) it waits until those peers answer, and fails with both hosts and ports named when they do not.
extends_documentation_fragment:
  - cnvm.platform.info_module
options:
  require:
    description:
      - Names of peers that have to answer, through the tunnel and through the bridges, with the largest packets.
      - Names that are not peers of this host fail at once, except for the host's own.
    type: list
    elements: str
    default: []
  timeout_s:
    description: Seconds that the peers have to answer.
    type: float
    default: 30
requirements:
  - iproute2, nftables, wireguard-tools
  - root
seealso:
  - module: cnvm.platform.overlay
"""

EXAMPLES = r"""
- name: Which peers answer?
  cnvm.platform.overlay_info:
  register: found

- name: Wait until the tunnels to the other hosts of the play work
  cnvm.platform.overlay_info:
    require: "{{ ansible_play_hosts }}"
    timeout_s: 60
"""

RETURN = r"""
overlay:
  description:
    - What C(overlay.json) says, with RV(overlay.peers) completed by what was seen.
    - Only C(configured), C(up) and C(peers) where the host has no overlay.
  returned: always
  type: dict
  contains:
    configured:
      description: Whether the host has C(overlay.json).
      type: bool
      sample: true
    up:
      description: Whether bridge and VXLAN are up.
      type: bool
      sample: true
    engine:
      description: What encrypts, V(kernel), V(wireguard-go) or V(none).
      type: str
      sample: kernel
    missing:
      description: What C(cnvm-host overlay up) would mend.
      type: list
      elements: str
      sample: []
    peers:
      description: The other hosts. Bytes are counted by WireGuard since the tunnel came up.
      type: list
      elements: dict
      sample:
        - name: host2
          tunnel: 10.100.100.2
          underlay: 192.0.2.12
          address: 10.100.101.2
          endpoint: 192.0.2.12:51820
          public_key: p9X0NAMlQ8sY6sMOhXiVfVkGUZ6nmnlmJMpIJSbyyAw=
          revision: 1
          reachable: true
          last_handshake_s: 12
          received_bytes: 9312
          sent_bytes: 10044
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import decimal
from ansible_collections.cnvm.platform.plugins.module_utils._host import overlay
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    return {
        "require": {"type": "list", "elements": "str", "default": []},
        "timeout_s": {"type": "float", "default": 30.0},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    document = overlay.load()
    required = set(params["require"])
    timeout_s = decimal(params["timeout_s"], "timeout_s", least=0, most=3600)
    if required:
        if document is None:
            raise HostError("This host has no overlay.", hint="Run the role overlay on it.")
        required.discard(document["self"]["name"])
        strangers = sorted(required - {peer["name"] for peer in document["peers"]})
        if strangers:
            raise InputError(
                f"require: {strangers[0]} is no peer of {document['self']['name']}.",
                hint="Run the role overlay on both in one play.",
            )
        overlay.require_peers(host, document, required, timeout_s)
    return {"changed": False, "overlay": overlay.status(host, document)}


def main() -> None:
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
