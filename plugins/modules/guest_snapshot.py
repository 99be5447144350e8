#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_snapshot
short_description: Snapshots of virtual machines
version_added: 0.1.0
description:
  - Makes a snapshot of guests, goes back to it, or merges it away; each of all guests of a host that are named.
  - A snapshot is external. The disk's file is not written to any more, and the guest goes on in an overlay above it. It
    is made of running guests in a moment, and of stopped ones. The overlay is in C(/var/lib/cnvm/workloads/NAME/disks),
    under a name that no file there has.
  - Snapshots of a guest make a tree. Going back to one throws away what was written since, unless a later snapshot has
    kept it.
  - A guest with snapshots cannot be moved to another host. Merge them first.
  - Memory that libvirt keeps of a guest (C(virsh managedsave)) fits its disks as they are. With such memory no snapshot
    is made or merged away, and going back to one gives it up.
options:
  guests:
    description: Names of the guests.
    type: list
    elements: raw
    required: true
  name:
    description: Name of the snapshot, of 1 to 63 letters, digits, V(_), V(.) or V(-).
    type: raw
    required: true
  state:
    description:
      - V(present) makes it, where it is not there. One that is there stays as it was made; a warning says what of
        O(description), O(quiesce) and O(memory) is asked for and it lacks.
      - V(absent) merges it into what is above it, also while the guest runs; what the guest has now stays. It is
        refused where two lines part at it.
      - V(reverted) goes back to it. A running guest is turned off for it, and then started again, or goes on where it
        was when the snapshot has its memory. A disk that it got later stays as it is. This is done in each run.
      - Once a snapshot has begun to be merged away its files are no longer what they were. V(present) and V(reverted)
        are refused then, also when the merge was cut off or given up; V(absent) goes on with it.
      - All of them are refused while libvirt is still at work on a snapshot that a run that was cut off has begun, and
        above a snapshot that was made by other means (such as C(virsh snapshot-create-as)). The message says how to
        merge that.
    type: str
    choices: [present, absent, reverted]
    default: present
  description:
    description: A text of your own for a new snapshot.
    type: raw
    default: ''
  quiesce:
    description:
      - Whether the agent in the guest lets its file systems come to rest while the snapshot is made. Without it the
        disks are as after a power cut.
    type: bool
    default: false
  memory:
    description:
      - Whether the memory of a running guest is saved, too. It goes on meanwhile.
      - Not together with O(quiesce). Who goes back to it goes on where the guest was, with all that it was writing.
    type: bool
    default: false
  timeout_s:
    description:
      - How long the merge of a disk of a running guest may take, in seconds. It is given up then, and the guest goes on
        as before; the snapshot can only be merged then, by another run with O(state=absent). A guest that writes
        faster than is merged would let it go on for ever.
    type: raw
    default: 3600
attributes:
  check_mode:
    description: Says what it would do.
    support: full
  diff_mode:
    description: Returns the names of the snapshots before and after.
    support: full
  idempotent:
    description: A second call changes nothing, but for O(state=reverted), which goes back each time.
    support: partial
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on the host with C(host_bootstrap_guests=true).
seealso:
  - module: cnvm.platform.guest
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Make a snapshot of two guests
  cnvm.platform.guest_snapshot:
    guests: [web, db]
    name: before-upgrade
    quiesce: true

- name: Go back to it
  cnvm.platform.guest_snapshot:
    guests: [web, db]
    name: before-upgrade
    state: reverted

- name: Merge it away
  cnvm.platform.guest_snapshot:
    guests: [web, db]
    name: before-upgrade
    state: absent
"""

RETURN = r"""
guests:
  description: The guests in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      changed: true
      actions: [create before-upgrade]
      snapshots:
        - name: before-upgrade
          description: ''
          created: "2026-01-31T12:00:00Z"
          parent: null
          current: true
          quiesced: true
          memory: false
          state: running
          disks: [{name: vda, path: /var/lib/cnvm/workloads/web/disks/vda.qcow2}]
          allocated_bytes: 200704
  contains:
    name:
      description: Name of the guest.
      type: str
      sample: web
    changed:
      description: Whether something was done to it, or would be in check mode.
      type: bool
      sample: true
    actions:
      description: What was done.
      type: list
      elements: str
      sample: [create before-upgrade]
    snapshots:
      description: Its snapshots, oldest first.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the snapshot.
          type: str
          sample: before-upgrade
        description:
          description: What was said of it.
          type: str
          sample: ''
        created:
          description: When it was made, UTC.
          type: str
          sample: "2026-01-31T12:00:00Z"
        parent:
          description: The snapshot that it was made above; null for none.
          type: str
          sample: null
        current:
          description: Whether the guest is now above this one.
          type: bool
          sample: true
        quiesced:
          description: Whether its file systems were at rest.
          type: bool
          sample: true
        memory:
          description: Whether the memory was saved, too.
          type: bool
          sample: false
        state:
          description: What the guest was then, as in M(cnvm.platform.guest_info).
          type: str
          sample: running
        disks:
          description: Its files, by disk.
          type: list
          elements: dict
          sample: [{name: vda, path: /var/lib/cnvm/workloads/web/disks/vda.qcow2}]
        allocated_bytes:
          description: What these files take on the host's disk.
          type: int
          sample: 200704
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.values import plain_text, word_list
from ansible_collections.cnvm.platform.plugins.module_utils._host.guest_snapshots import bring_to
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        # Names and text are decoded by us: Ansible would take 7 for 007.
        "guests": {"type": "list", "elements": "raw", "required": True},
        "name": {"type": "raw", "required": True},
        "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
        "description": {"type": "raw", "default": ""},
        "quiesce": {"type": "bool", "default": False},
        "memory": {"type": "bool", "default": False},
        "timeout_s": {"type": "raw", "default": 3600},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Do it to each of the guests."""
    return bring_to(
        host,
        word_list(params["guests"], "guests"),
        params["name"],
        params["state"],
        description=plain_text(params["description"], "description"),
        quiesce=params["quiesce"],
        memory=params["memory"],
        timeout_s=params["timeout_s"],
        check_mode=check_mode,
    )


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
