#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: Storage pools of a host
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes libvirt's storage pools on a host. One call takes all of them.
  - Nothing is ever formatted, and no file or volume is ever deleted. A pool that is removed leaves its files where they
    are.
  - Guests of this collection need no pool, they name their disks by path. libvirt wants one at the place of a disk that
    it copies in a migration, and other tools list files by pools.
options:
  pools:
    description:
      - The pools, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      name:
        description:
          - Name of the pool.
          - 1 to 63 letters, digits, V(_), V(.) or V(-), the first one a letter or a digit. Quote a name that is all
            digits.
        type: raw
        required: true
      state:
        description:
          - V(active) creates it if need be and starts it.
          - V(present) creates it if need be and leaves an active one active and an inactive one inactive.
          - V(inactive) creates it if need be and stops it.
          - V(absent) stops it and makes libvirt forget it. Nothing else that is said of it is looked at.
        type: str
        choices: [present, active, inactive, absent]
        default: active
      autostart:
        description:
          - Whether it starts with the host. By default an active one does, an inactive one does not, and with
            O(pools[].state=present) it stays as it is.
        type: bool
      type:
        description:
          - V(dir) is a directory, which is made where it is not there.
          - V(fs) is a file system that is mounted when the pool starts.
          - V(netfs) is the same from another machine.
          - V(logical) is a volume group of LVM.
        type: str
        choices: [dir, fs, netfs, logical]
        default: dir
      path:
        description:
          - The directory, or where the file system is mounted. Required except for V(logical).
          - Directories of the system are refused.
        type: str
      device:
        description: The block device with the file system. Required for V(fs).
        type: str
      host:
        description: The machine that has the file system. Required for V(netfs).
        type: str
      export:
        description: The directory there. Required for V(netfs).
        type: str
      volume_group:
        description: Name of the volume group. Required for V(logical).
        type: str
      devices:
        description:
          - For V(logical), empty block devices of which the volume group is made when it is not there. libvirt refuses
            devices that hold something.
        type: list
        elements: str
      format:
        description:
          - The file system. For V(fs) one of V(auto), V(ext2), V(ext3), V(ext4), V(xfs), V(vfat), V(udf), V(iso9660),
            V(gfs2), V(ocfs2); for V(netfs) one of V(auto), V(nfs), V(cifs), V(glusterfs).
        type: str
      mode:
        description: Permissions of the directory, such as V('0711'), in quotes. By default they stay as they are.
        type: raw
      owner:
        description: Owner of the directory, a name or a number. By default it stays as it is.
        type: raw
      group:
        description: Group of the directory, a name or a number. By default it stays as it is.
        type: raw
attributes:
  check_mode:
    description:
      - Says what it would do, after the same checks; changes nothing.
      - Where libvirt is still to be installed all would be new. A warning says so, and an empty list is returned.
    support: full
  diff_mode:
    description: Returns the descriptions before and after, and where the active pool differs from the stored one.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - python3-libvirt and libvirt with its storage driver
  - P(cnvm.platform.host_bootstrap#role) with C(host_bootstrap_guests) installs them
  - root
seealso:
  - module: cnvm.platform.pool_info
  - module: cnvm.platform.network
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: A directory for disks that QEMU can pass and others cannot list
  cnvm.platform.pool:
    pools:
      - name: images
        path: /srv/images
        mode: "0711"

- name: Pools of other kinds
  cnvm.platform.pool:
    pools:
      - name: iso
        type: netfs
        host: nas.example
        export: /export/iso
        path: /srv/iso
      - name: fast
        type: logical
        volume_group: vg0

- name: Forget a pool; its files stay
  cnvm.platform.pool:
    pools:
      - name: old
        state: absent
"""

RETURN = r"""
pools:
  description: The pools in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - name: images
      state: active
      changed: true
      actions: [define, start, enable]
      restarted: false
      path: /srv/images
      capacity_bytes: 105089261568
      allocation_bytes: 22008889344
      available_bytes: 83080372224
  contains:
    name:
      description: Name of the pool.
      type: str
      sample: images
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
      sample: [change mode]
    restarted:
      description: Whether it was stopped and started again for a change.
      type: bool
      sample: false
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
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._host.pools import bring_to
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def _pool_options() -> dict[str, t.Any]:
    """What is 'raw' is decoded by us: of an unquoted 0711 YAML makes 457, and of 007 it makes 7."""
    return {
        "name": {"type": "raw", "required": True},
        "state": {"type": "str", "choices": ["present", "active", "inactive", "absent"], "default": "active"},
        "autostart": {"type": "bool"},
        "type": {"type": "str", "choices": ["dir", "fs", "netfs", "logical"], "default": "dir"},
        "path": {"type": "str"},
        "device": {"type": "str"},
        "host": {"type": "str"},
        "export": {"type": "str"},
        "volume_group": {"type": "str"},
        "devices": {"type": "list", "elements": "str"},
        "format": {"type": "str"},
        "mode": {"type": "raw"},
        "owner": {"type": "raw"},
        "group": {"type": "raw"},
    }


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {"pools": {"type": "list", "elements": "raw", "required": True, "options": _pool_options()}}


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the pools to what is wanted."""
    return bring_to(host, params["pools"], check_mode=check_mode)


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
