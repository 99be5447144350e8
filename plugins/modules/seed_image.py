#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: seed_image
short_description: ISO images that tell guests at boot who they are (cloud-init)
version_added: 0.1.0
description:
  - Makes the small ISO images from which cloud-init in a guest reads user data, meta data, network configuration and
    vendor data, as C(NoCloud) (label C(cidata)) or C(ConfigDrive) (label C(config-2)). One call takes all of them.
  - B(Mistakes are said before a guest boots.) Text that cloud-init would not know, broken YAML, keys that are there
    twice, commands that YAML makes mappings of, MAC addresses and modes that YAML makes numbers of, addresses without
    the length of their network and the like are refused; keys that cloud-init does not have are a warning. So it is
    with each part of an archive or a MIME message. That a Jinja template is not looked into is a warning, too.
  - B(When data change.) cloud-init does most of its work once for each instance-id. O(seeds[].policy) decides whether
    changed data are a new instance. An instance-id in O(seeds[].meta_data) is taken as it is, and then it is you who
    decides.
  - A seed is made again only when something changed. It bears a digest of its data and its instance-id, so nothing is
    kept beside it. It is put in its place when it is whole; a guest that has the old one open goes on with that until
    it is started again.
  - User data and the like are not returned, not shown in diffs, and not in logs.
options:
  seeds:
    description: The seeds, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      path:
        description: Where it lies on the host, an absolute path. Its directory exists.
        type: str
        required: true
      state:
        description: Whether it is there. V(absent) removes it, but no file that this module did not make.
        type: str
        choices: [present, absent]
        default: present
      type:
        description: Where cloud-init is to find it. V(nocloud) unless the guest wants the other.
        type: str
        choices: [nocloud, configdrive]
        default: nocloud
      user_data:
        description:
          - What the guest is to do. A mapping is written as C(#cloud-config). Text is written as it is, and begins with
            C(#cloud-config), C(#!), C(#include), C(#cloud-boothook) or cloud-init's mark of a Jinja template, or is a
            MIME message.
        type: raw
      meta_data:
        description:
          - Who the guest is, as a mapping or as YAML - C(instance-id), C(local-hostname), C(public-keys) and others.
            For V(configdrive) these become C(uuid), C(hostname) and C(public_keys). A name may also stand in
            C(local_hostname) or C(hostname); it is put where cloud-init reads it.
        type: raw
      network_config:
        description:
          - The guest's network, as a mapping or as YAML. For V(nocloud) cloud-init's network configuration version 1 or
            2; for V(configdrive) OpenStack's network_data with C(links), C(networks) and C(services).
        type: raw
      vendor_data:
        description: Like O(seeds[].user_data), which goes over it.
        type: raw
      policy:
        description:
          - What a guest is when the data change. V(new_instance) gives it another instance-id - at its next boot
            cloud-init does everything anew, with new SSH host keys. V(keep) leaves the instance-id; cloud-init then
            does only what it does at every boot, and most of the change has no effect on a guest that has booted
            already.
          - Without a change both leave it.
        type: str
        choices: [new_instance, keep]
        default: new_instance
      check_user_data:
        description:
          - Whether text in O(seeds[].user_data) and O(seeds[].vendor_data) must be something that cloud-init takes.
            V(false) for guests that read it with something else, such as CernVM's C([amiconfig]), Ignition, or
            cloudbase-init's C(#ps1).
        type: bool
        default: true
      owner:
        description: Name or number of its owner. Default is what it is; of a new one, who runs the module.
        type: raw
      group:
        description: Name or number of its group, likewise.
        type: raw
      mode:
        description: Its mode as octal digits in quotes. Default is what it is; of a new one, V("0600").
        type: raw
attributes:
  check_mode:
    description: Checks the data and says what it would do. Changes nothing.
    support: full
  diff_mode:
    description: Returns type, instance-id, owner, mode and a digest of the data before and after, not the data.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - xorriso, genisoimage or mkisofs
  - PyYAML on the host, to look into YAML that is given as text; without it only how such text begins is
    checked, with a warning. Mappings are always checked.
seealso:
  - module: cnvm.platform.disk_image
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Tell a guest its name, its users and its address
  cnvm.platform.seed_image:
    seeds:
      - path: /var/lib/libvirt/images/web-seed.iso
        meta_data:
          local-hostname: web
        user_data:
          users:
            - name: admin
              sudo: ALL=(ALL) NOPASSWD:ALL
              shell: /bin/bash
              ssh_authorized_keys: "{{ my_keys }}"
          packages: [nginx-light]
        network_config:
          version: 2
          ethernets:
            nic:
              match:
                macaddress: "52:54:00:12:34:56"
              addresses: [192.0.2.20/24]
              routes:
                - to: default
                  via: 192.0.2.1
              nameservers:
                addresses: [192.0.2.1]

- name: Change what a guest does at every boot, without making it a new one
  cnvm.platform.seed_image:
    seeds:
      - path: /var/lib/libvirt/images/web-seed.iso
        policy: keep
        meta_data:
          local-hostname: web
        user_data:
          bootcmd:
            - [sysctl, -w, vm.swappiness=10]

- name: Contextualise an appliance that does not run cloud-init
  cnvm.platform.seed_image:
    seeds:
      - path: /var/lib/libvirt/images/cernvm-context.iso
        type: configdrive
        check_user_data: false
        user_data: |
          [amiconfig]
          plugins=cernvm
          [cernvm]
          organisations=ALICE
"""

RETURN = r"""
seeds:
  description: The seeds in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /var/lib/libvirt/images/web-seed.iso
      changed: true
      state: present
      type: nocloud
      label: cidata
      instance_id: 0b7c4f57-2f0b-5c1c-9f57-6b3f4f1f5d0e
      new_instance: true
      digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
  contains:
    path:
      description: Where it lies.
      type: str
      sample: /var/lib/libvirt/images/web-seed.iso
    changed:
      description: Whether it was made, removed or given another mode, or would be in check mode.
      type: bool
      sample: true
    state:
      description: Whether it is there.
      type: str
      sample: present
    type:
      description: Its type.
      type: str
      sample: nocloud
    label:
      description: Its volume label.
      type: str
      sample: cidata
    instance_id:
      description: The instance-id that it gives the guest.
      type: str
      sample: 0b7c4f57-2f0b-5c1c-9f57-6b3f4f1f5d0e
    new_instance:
      description: Whether this is another instance-id than before, or the first.
      type: bool
      sample: true
    digest:
      description: A digest of the data (sha256).
      type: str
      sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._host import seeds
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    seed = {
        "path": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "type": {"type": "str", "choices": ["nocloud", "configdrive"], "default": "nocloud"},
        "user_data": {"type": "raw", "no_log": True},
        "meta_data": {"type": "raw", "no_log": True},
        "network_config": {"type": "raw", "no_log": True},
        "vendor_data": {"type": "raw", "no_log": True},
        "policy": {"type": "str", "choices": ["new_instance", "keep"], "default": "new_instance"},
        "check_user_data": {"type": "bool", "default": True},
        "owner": {"type": "raw"},
        "group": {"type": "raw"},
        "mode": {"type": "raw"},
    }
    # As a whole, too: the journal of the host would have all of it otherwise.
    return {"seeds": {"type": "list", "elements": "raw", "required": True, "no_log": True, "options": seed}}


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the seeds to what is wanted."""
    return seeds.bring_to(host, params["seeds"], check_mode=check_mode)


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
