#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_info
short_description: What runs on a host, and what went elsewhere
version_added: 0.1.0
description:
  - Returns the containers that M(cnvm.platform.container) made on a host, and those that were moved away from it. One
    call asks for all of them.
  - One whose records are damaged is among them, with what is wrong, and there is a warning.
options:
  names:
    description: Only these containers. Names that the host does not know are left out.
    type: list
    elements: str
extends_documentation_fragment:
  - cnvm.platform.info_module
seealso:
  - module: cnvm.platform.container
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: See what runs here
  cnvm.platform.container_info:
  register: found

- name: Show where the container web is
  ansible.builtin.debug:
    msg: "{{ found.containers | selectattr('name', 'equalto', 'web') | map(attribute='placement') }}"
"""

RETURN = r"""
containers:
  description: The containers, sorted by name.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      state: running
      placement: host1
      pid: 4711
      address: 10.100.101.20
      memory_bytes: 50331648
      restarts: 0
      since: "2026-01-31T12:00:00Z"
  contains:
    name:
      description: Name of the container.
      type: str
      sample: web
    uuid:
      description: What it is known by on all hosts; a removed and newly made container has another one.
      type: str
      sample: 9a1c1f9e-6b1a-4f0e-8a53-0c3b5a7f1c11
    state:
      description:
        - C(running), C(paused) (frozen), C(stopped), C(restarting) (between two starts), C(failed) (it ended too
          often, or its records are damaged) or C(moved) (another host has it).
      type: str
      sample: running
    problem:
      description: Which of its records is damaged, and how. What the records say is then not known.
      returned: when its records cannot be read
      type: str
      sample: "/var/lib/cnvm/workloads/web/owner.json holds no JSON object. Restore it or remove it."
    placement:
      description: The host that has it, by the owner record.
      type: str
      sample: host1
    owner:
      description: The identity of that host.
      type: str
      sample: 0123456789abcdef0123456789abcdef
    generation:
      description: How often it was given to a host; grows by one with each move.
      type: int
      sample: 1
    moving:
      description: Whether a move of it is under way, or was cut off and waits for C(cnvm.platform.recover).
      type: bool
      sample: false
    pid:
      description: Process id of its first process on the host; null when none runs.
      type: int
      sample: 4711
    processes:
      description: How many processes it has.
      type: int
      sample: 3
    memory_bytes:
      description:
        - Memory in use, by its cgroup. Without the memory controller it is the sum over its processes, which counts
          shared pages more than once.
      type: int
      sample: 50331648
    restarts:
      description: How often systemd has started it again by itself.
      type: int
      sample: 0
    since:
      description: When it was started or restored here, UTC.
      type: str
      sample: "2026-01-31T12:00:00Z"
    exit_code:
      description: Code of its last end, when it does not run.
      type: int
      sample: 0
    enabled:
      description: Whether it starts with the host.
      type: bool
      sample: true
    image:
      description: Name of its image, or the digest when it was given that way.
      type: str
      sample: cnvm
    image_digest:
      description: Digest of its image (sha256).
      type: str
      sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    runtime:
      description: Its OCI runtime.
      type: str
      sample: runc
    address:
      description: Its address on the overlay.
      type: str
      sample: 10.100.101.20
    ports:
      description: Its port forwards.
      type: list
      elements: dict
      sample: [{host_port: 8080, container_port: 80, protocol: tcp, host_address: ""}]
    labels:
      description: Its labels.
      type: dict
      sample: {}
    restart:
      description: Its restart policy.
      type: str
      sample: always
    unit:
      description: The systemd unit that supervises it.
      type: str
      sample: cnvm-container@web.service
    log_command:
      description: The command that shows its output.
      type: str
      sample: journalctl -u cnvm-container@web.service -o cat
    definition:
      description: All that was given to make it, in its normal form.
      type: dict
      sample: {}
"""

from ansible_collections.cnvm.platform.plugins.module_utils._host.container_report import work
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module
from ansible_collections.cnvm.platform.plugins.module_utils._oci.options import INFO


def main() -> None:
    """Run the module. The action plugin of the same name asks the host's helper first, which does the same."""
    run_module(work, INFO)


if __name__ == "__main__":
    main()
