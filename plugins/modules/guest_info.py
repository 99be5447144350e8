#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_info
short_description: The virtual machines of a host, and those that went elsewhere
version_added: 0.1.0
description:
  - Returns all libvirt domains of a host, whoever made them, and the guests that were moved away from it. One call asks
    for all of them.
  - One whose records are damaged is among them, with what is wrong, and there is a warning.
  - A host without libvirt's Python binding that was never given a guest is one for containers only. It has no guests,
    which is no error, and RV(libvirt) says so.
options:
  names:
    description: Only these guests. Names that the host does not know are left out.
    type: list
    elements: str
  addresses:
    description:
      - Whether to find out the addresses of those that run. It costs a question for each network, and one to the agent
        in each guest that has an agent and no lease.
    type: bool
    default: true
extends_documentation_fragment:
  - cnvm.platform.info_module
seealso:
  - module: cnvm.platform.guest
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: See what runs here
  cnvm.platform.guest_info:
  register: found

- name: Show where the guest web can be reached
  ansible.builtin.debug:
    msg: "{{ found.guests | selectattr('name', 'equalto', 'web') | map(attribute='address') }}"
"""

RETURN = r"""
libvirt:
  description: Whether the host has libvirt. When not, only containers can run there.
  returned: success
  type: bool
  sample: true
guests:
  description: The guests, sorted by name.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      managed: true
      state: running
      placement: host1
      type: kvm
      memory_mib: 1024
      vcpus: 2
      address: 192.168.122.50
      address_source: lease
  contains:
    name:
      description: Name of the guest.
      type: str
      sample: web
    uuid:
      description: Its UUID.
      type: str
      sample: 0705aea1-1ea0-540a-967e-c710e0d8de07
    managed:
      description: Whether M(cnvm.platform.guest) made it, or has taken it over, and it is this host's.
      type: bool
      sample: true
    state:
      description: >-
        C(running), C(paused), C(stopped), C(stopping), C(crashed), C(suspended) (by itself), C(moved) (another host has
        it), C(missing) (it is this host's, and libvirt does not know it any more) or C(failed) (its records are
        damaged, and libvirt does not know it).
      type: str
      sample: running
    problem:
      description:
        - Which of its records is damaged, and how. Unless that is the one of its snapshots, it is not known whether it
          is this host's, and RV(guests[].managed) is false.
      returned: when its records cannot be read
      type: str
      sample: "/var/lib/cnvm/workloads/web/owner.json holds no JSON object. Restore it or remove it."
    paused_by:
      description: Why it is paused, such as C(user) or C(io_error); null when it is not.
      type: str
      sample: user
    placement:
      description: The host that has it, by the owner record; null for a domain that is not ours.
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
    begun:
      description: Whether a run that was to make it here was cut off. The next one ends that.
      type: bool
      sample: false
    moving:
      description: Whether a move of it is under way, or was cut off and waits for C(cnvm.platform.recover).
      type: bool
      sample: false
    persistent:
      description: Whether it is there when it does not run.
      type: bool
      sample: true
    autostart:
      description: Whether it starts with the host.
      type: bool
      sample: true
    type:
      description: How it is run, C(kvm) or C(tcg) (emulated), or libvirt's word for another kind.
      type: str
      sample: kvm
    description:
      description: Its description.
      type: str
      sample: The first web server
    tags:
      description: Its tags.
      type: dict
      sample: {group: front}
    group:
      description: Its tag C(group).
      type: str
      sample: front
    template:
      description: Its tag C(template), or else the template of its first disk that has one.
      type: str
      sample: debian-13
    memory_mib:
      description: Memory that it has now, or will have.
      type: int
      sample: 1024
    max_memory_mib:
      description: Memory that it can be given while it runs.
      type: int
      sample: 1024
    vcpus:
      description: Virtual CPUs that it has now, or will have.
      type: int
      sample: 2
    max_vcpus:
      description: Virtual CPUs that it can be given while it runs.
      type: int
      sample: 2
    cpu_model:
      description: The CPU that was asked for.
      type: str
      sample: host-model
    arch:
      description: Architecture.
      type: str
      sample: x86_64
    machine:
      description: Machine with its version.
      type: str
      sample: pc-q35-10.0
    firmware:
      description: C(bios) or C(uefi).
      type: str
      sample: bios
    disks:
      description: >-
        Its disks, each with C(name), C(path), C(format), C(bus), C(cache), C(read_only), C(backing) (what is below it,
        nearest first), C(template_digest) and C(allocated_bytes) (null where its storage does not answer).
      type: list
      elements: dict
      sample:
        - name: vda
          path: /var/lib/cnvm/workloads/web/disks/vda.qcow2
          format: qcow2
          bus: virtio
          cache: none
          read_only: false
          backing: []
          template_digest: null
          allocated_bytes: 200704
    cdroms:
      description: Its CD drives, each with C(name) and C(path) (null for an empty one).
      type: list
      elements: dict
      sample: [{name: sdb, path: /var/lib/cnvm/workloads/web/seed.iso}]
    networks:
      description: >-
        Its network cards, each with C(mac), C(type), C(source), C(model), C(mtu) (0 for the default) and C(device), the
        host's end of one that runs.
      type: list
      elements: dict
      sample: [{mac: "52:54:00:12:34:56", type: network, source: default, model: virtio, mtu: 0, device: vnet0}]
    address:
      description: The best address at which it was seen; null when none was.
      type: str
      sample: 192.168.122.50
    address_source:
      description: Who saw it there, as C(lease) (the network's DHCP server), C(agent) (in the guest) or C(arp).
      type: str
      sample: lease
    addresses:
      description: All of them, best first, each with C(address), C(mac) and C(source).
      type: list
      elements: dict
      sample: [{address: 192.168.122.50, mac: "52:54:00:12:34:56", source: lease}]
    overlay_address:
      description: The address on the overlay that it is to have.
      type: str
      sample: 10.100.101.30
    vnc:
      description: Where its screen can be seen, with C(listen) and C(port); null when nowhere.
      type: dict
      sample: {listen: 127.0.0.1, port: 5900}
    agent_connected:
      description: Whether the agent in it has opened its channel.
      type: bool
      sample: true
    log:
      description: File with what it has written on its console.
      type: str
      sample: /var/log/cnvm/guests/web.log
    console_command:
      description: The command that shows its console.
      type: str
      sample: virsh console web
    shared_folders:
      description: Directories of the host that it can mount.
      type: list
      elements: dict
      sample: []
    other_devices:
      description:
        - Kinds of devices for which this collection has no options, such as C(hostdev) or C(tpm), and parts of the
          domain that go past libvirt, such as C(qemu:commandline).
      type: list
      elements: str
      sample: []
    snapshots:
      description: Names of its snapshots, oldest first.
      type: list
      elements: str
      sample: [before-upgrade]
    restart_required:
      description: Whether its stored definition has something that takes effect only when it is started again.
      type: bool
      sample: false
    restart_reasons:
      description: What that is, and why.
      type: list
      elements: dict
      sample: []
    definition:
      description: All that was given to make it, in its normal form, without secrets.
      type: dict
      sample: {}
"""

from ansible_collections.cnvm.platform.plugins.module_utils._host.guest_report import work
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt.options import INFO
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def main() -> None:
    """Run the module. The action plugin of the same name asks the host's helper first, which does the same."""
    run_module(work, INFO)


if __name__ == "__main__":
    main()
