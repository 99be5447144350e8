#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_clone
short_description: Many guests of one template, in one call
version_added: 0.1.0
description:
  - Makes clones of a template, changes, starts, stops and removes them. All of them are described together, and are
    guests like those of M(cnvm.platform.guest).
  - A linked clone has a disk that rests on the template and holds only what differs; it is there in milliseconds and
    takes up kilobytes. A full one has a copy.
  - A second call changes nothing. With a larger O(count) the clones that are missing are made; with a smaller one those
    beyond are left alone.
  - B(Exactly one.) A clone runs in one place. Where one was moved to another host, nothing is done for it.
  - When the template was written to since it was registered, the call is refused, and names what rests on it.
extends_documentation_fragment:
  - cnvm.platform.peers
options:
  template:
    description:
      - Name or digest of a template of the host (see M(cnvm.platform.template)). A clone stays with what it was made
        of, also when the name stands for something else by now.
      - Required with O(guest), unless the clones are removed.
    type: raw
  pattern:
    description: Names of the clones, with one C(%d) or C(%02d) for their numbers, such as V(web%02d).
    type: str
  count:
    description: How many there are to be, numbered from 1. At most 1000.
    type: raw
  names:
    description: Names of the clones, instead of O(pattern) and O(count). The first one has the number 1.
    type: list
    elements: raw
  numbers:
    description:
      - Only these of them, by number. So the clones of one description can be spread over hosts.
      - An empty list is none of them. Without this option it is about all.
    type: list
    elements: raw
  linked:
    description: Whether their disks rest on the template. With V(false) each has a copy of its own.
    type: bool
    default: true
  disk:
    description: The disk of the template in each of them. Refused without O(guest), unless the clones are removed.
    type: dict
    suboptions:
      name:
        description: The device that the guest sees. Default is the first of its bus, such as V(vda).
        type: str
      size_mib:
        description: Its size, at least that of the template, which is the default.
        type: raw
      pool:
        description: Where it lies, a pool of the host that is a directory. Default is the guest's own directory.
        type: raw
      format:
        description: Its format. A linked one is V(qcow2).
        type: str
        choices: [qcow2, raw]
      bus:
        description: How the guest is connected to it. Default is V(virtio).
        type: str
        choices: [virtio, scsi, sata]
      cache:
        description: The cache mode. Default is V(none), with which the guest can be migrated.
        type: str
        choices: [none, writeback, writethrough, directsync, unsafe]
      serial:
        description: Its serial number.
        type: raw
  state:
    description: The state of all of them, as in O(cnvm.platform.guest#module:guests[].state).
    type: str
    choices: [present, running, stopped, paused, absent]
    default: running
  guest:
    description:
      - What all of them are, with the options that M(cnvm.platform.guest) has for a guest, but for C(name), C(uuid) and
        C(state). C(disks) are those beside that of the template. C(memory_mib) is required. C(wait_for) says nothing
        with another O(state) than V(running).
      - In all texts C({name}) and C({index}) stand for the clone's name and number, but not behind a C($) or C({), so
        that variables of shells and templates of cloud-init stay what they are.
      - An address on the overlay, and a port of C(graphics), is that of number 1. The others have those behind it.
      - The tag C(template) is set to the name of the template.
      - Left out, the call is about clones that are there, and changes only their state.
    type: dict
    default: {}
  restart_on_change:
    description:
      - Whether a running clone is shut down and started again for a change that it cannot take over while it runs.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Says what it would do, and asks the other hosts; changes nothing.
      - What a guest lacks and a task before may be about to make (a network, a template, a file) is a warning then.
      - Where libvirt is still to be installed all would be new. A warning says so, and an empty list is returned.
    support: full
  diff_mode:
    description: Returns what differs, before and after. Passwords and user-data are not in it.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on the host with C(host_bootstrap_guests=true).
seealso:
  - module: cnvm.platform.guest
  - module: cnvm.platform.template
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Ten web servers, as soon as possible
  cnvm.platform.guest_clone:
    template: debian-13
    pattern: web%02d
    count: 10
    guest:
      memory_mib: 512
      networks:
        - source: default
      cloud_init:
        user_data:
          fqdn: "{name}.example.org"
          ssh_authorized_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
      tags:
        group: front
        type: web

- name: Three databases with addresses on the overlay (.31, .32, .33), each with a copy and a second disk
  cnvm.platform.guest_clone:
    template: debian-13
    names: [ada, bob, cyd]
    linked: false
    disk:
      size_mib: 20480
    guest:
      memory_mib: 2048
      vcpus: 2
      disks:
        - size_mib: 102400
      networks:
        - type: overlay
          address: 10.100.101.31

- name: Stop the web servers
  cnvm.platform.guest_clone:
    pattern: web%02d
    count: 10
    state: stopped

- name: Remove them, with their disks
  cnvm.platform.guest_clone:
    pattern: web%02d
    count: 10
    state: absent
    guest:
      delete_disks: true
"""

RETURN = r"""
clones:
  description: The clones in the order of their numbers, with all that M(cnvm.platform.guest) returns of a guest.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web01
      state: running
      placement: host1
      changed: true
      actions: [create, start with the host, start]
      address: null
template:
  description: The template, with the digest that its name stands for on this host; null when none was named.
  returned: success
  type: dict
  sample:
    name: debian-13
    digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
"""

from ansible_collections.cnvm.platform.plugins.module_utils._host.guest_clones import work
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.options import CLONE
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def main() -> None:
    """Run the module. The action plugin of the same name asks the host's helper first, which does the same."""
    run_module(work, CLONE)


if __name__ == "__main__":
    main()
