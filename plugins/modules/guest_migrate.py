#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_migrate
short_description: Migrate a guest to another host while it runs
version_added: 0.1.0
description:
  - Moves a guest that M(cnvm.platform.guest) made to another host, with its memory, disks, overlay addresses and open
    connections. Run it on the host that has the guest; P(cnvm.platform.migrate#role) finds that host. A guest that does
    not run is moved with its disks, and does not run there either.
  - Disks are copied unless they are on storage that both hosts have. Of a disk that rests on a template only what the
    guest has written is copied; a template that the target lacks is brought first, by its digest.
  - The two hosts do the work between themselves, through the encrypted overlay. The guest stands still on the source,
    with all it has, until the copy on the target has arrived whole and was given the word. Whatever fails before that,
    it goes on at the source. A controller that is killed decides nothing, the move ends by itself.
  - Run the same task again after an interruption. It ends the interrupted move first.
options:
  guest:
    description: Name of the guest.
    type: raw
    required: true
  target:
    description: The host to move it to, by its name in the overlay (its inventory name).
    type: raw
    required: true
  max_downtime_ms:
    description:
      - For how long the guest may stand still while the rest of its memory is copied, in milliseconds. It begins with
        little, and is raised up to this when the guest dirties its memory as fast as it is copied.
    type: raw
    default: 300
  bandwidth_mib_s:
    description:
      - Most MiB per second that are sent, of the memory and of each disk by itself; also of a disk of a guest that does
        not run, of a template that is brought, and of another file. 0 is no limit.
    type: raw
    default: 0
  connections:
    description:
      - Over how many connections memory is sent at once (QEMU's multifd).
      - With more than one, a QEMU 10.0 that gives a migration up can end with a failed assertion
        (C(yank_unregister_instance)), and the guest is then started anew at its source. So the default is one.
    type: raw
    default: 1
  auto_converge:
    description: Whether a guest that dirties its memory faster than it is copied is slowed down.
    type: bool
    default: true
  allow_post_copy:
    description:
      - Whether the guest may go on at the target before all of its memory is there, and fetch the rest when it needs
        it. That is done only when it has dirtied its memory as fast as it is copied, round after round, with
        O(max_downtime_ms) to stand still. A move then comes to its end whatever the guest does.
      - Until the rest has come, some of its memory is at one host alone. A link that is cut only makes the guest wait.
        But where QEMU ends or a host loses power, what the guest had in its memory is lost, and it is started anew with
        its disks.
      - QEMU on the target must be allowed to use userfaultfd, for which C(vm.unprivileged_userfaultfd) is 1 there.
        Where it is not, the guest is moved as if post-copy had not been allowed; the reasons of the plan say so.
      - Not with more than one of O(connections).
    type: bool
    default: false
  timeout_s:
    description:
      - Give up and roll back when the move is not done after so many seconds. A guest that runs at the target already
        is not given up.
      - A target that fetches a template, and gets no further with it for ten minutes, is not waited for in any case.
    type: raw
    default: 3600
attributes:
  check_mode:
    description:
      - Returns RV(plan). Fails with every blocker at once when it could not be done. Nothing is changed on either host.
    support: full
  diff_mode:
    description: The plan and the timeline say more than a difference would.
    support: none
  idempotent:
    description: The guest is gone from the host afterwards, so a second run fails; the role does nothing then.
    support: none
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on both hosts with C(host_bootstrap_guests=true), and
    P(cnvm.platform.overlay#role).
seealso:
  - module: cnvm.platform.guest
  - module: cnvm.platform.container_recover
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Migrate web to host2
  cnvm.platform.guest_migrate:
    guest: web
    target: host2
  register: move

- name: Leave room on the link for others, and take all the time that it needs
  cnvm.platform.guest_migrate:
    guest: database
    target: host2
    bandwidth_mib_s: 50
    timeout_s: 86400
"""

RETURN = r"""
outcome:
  description: V(target) (it is there), V(source) (it was rolled back) or V(waiting) (the message says for what).
  returned: always but in check mode
  type: str
  sample: target
plan:
  description: What was decided before anything was touched.
  returned: when the hosts could be asked
  type: dict
  sample:
    mode: live
    reasons: [web runs, vda is copied]
    blockers: []
    warnings: []
    expected_frozen_ms: 80
    space:
      - {device: 2049, path: /var/lib/cnvm, free_bytes: 53687091200, needed_bytes: 314572800, once: {}}
  contains:
    mode:
      description: V(live) or, of a guest that does not run, V(offline).
      type: str
      sample: live
    reasons:
      description: Why, and what is copied.
      type: list
      elements: str
      sample: [web runs, vda is copied]
    blockers:
      description: Why it cannot be done; all of them.
      type: list
      elements: str
      sample: []
    warnings:
      description: What may matter.
      type: list
      elements: str
      sample: []
    expected_frozen_ms:
      description: How long an idle guest is expected to stand still, in milliseconds.
      type: int
      sample: 80
    space:
      description: What it takes of each file system of the target.
      type: list
      elements: dict
      sample:
        - {device: 2049, path: /var/lib/cnvm, free_bytes: 53687091200, needed_bytes: 314572800, once: {}}
      contains:
        device:
          description: The number of the file system.
          type: int
          sample: 2049
        path:
          description: A directory on it.
          type: str
          sample: /var/lib/cnvm
        free_bytes:
          description: What is free.
          type: int
          sample: 53687091200
        needed_bytes:
          description: What comes. A fifth more must be free.
          type: int
          sample: 314572800
        once:
          description: Of that, what serves other workloads, too, and comes once for all (templates), by its digest.
          type: dict
          sample: {}
mode:
  description: The mode of the move, as in RV(plan.mode), or V(post_copy) where that had to be done.
  returned: when a plan was made
  type: str
  sample: live
reason:
  description: Why it was post-copy.
  returned: when it was
  type: str
  sample: 3 rounds over its memory, with 300 ms to stand still, left no less to copy
lost:
  description: That the guest was started anew with its disks, since it had died, the rest of its memory could not come,
    or its disks on shared storage were newer. Or that libvirt on the target does not know it any more, since somebody
    has undefined it meanwhile.
  returned: when that was so
  type: str
  sample: The rest of the memory of web was lost on its way; it was started anew with its disks.
frozen_ms:
  description:
    - From when the guest was seen to stand still on the source to when it runs on the target, in milliseconds. No less
      than C(downtime_ms) in RV(libvirt).
  returned: when the guest stood still
  type: float
  sample: 61.3
generation:
  description: Generation of the owner record by which the target has it.
  returned: when it is on the target
  type: int
  sample: 2
libvirt:
  description:
    - libvirt's own statistics of the job. The unit of each number is in its name.
    - C(throttle_percent) is there when QEMU slowed the guest down, and by how much at last. C(post_copy_requests) says
      how often the guest had to wait for some of its memory.
  returned: when it was moved while it ran
  type: dict
  sample:
    elapsed_ms: 1290
    downtime_ms: 48
    memory_bytes: 109846528
    memory_sent_bytes: 60416021
    memory_rounds: 3
    disk_bytes: 8716288
    disk_sent_bytes: 8716288
timeline:
  description: What was done when.
  returned: when the move began
  type: dict
  sample:
    phases: [{"phase": "memory", "start_ms": 412.5, "ms": 1203.0}]
    total_ms: 2091.4
    bytes: {"memory": 60416021, "disks": 8716288}
  contains:
    phases:
      description: Each phase with RV(timeline.phases[].start_ms) since the beginning and its length, in milliseconds.
      type: list
      elements: dict
      sample: [{"phase": "memory", "start_ms": 412.5, "ms": 1203.0}]
      contains:
        phase:
          description: Its name.
          type: str
          sample: memory
        start_ms:
          description: When it began.
          type: float
          sample: 412.5
        ms:
          description: How long it took.
          type: float
          sample: 1203.0
    total_ms:
      description: From the beginning to the end.
      type: float
      sample: 2091.4
    bytes:
      description:
        - Bytes that went over the link, by kind. V(memory) and V(disks); V(template), where the target lacked one and
          no other move was just bringing it; V(files) that belong to the guest, such as cloud-init's seed.
      type: dict
      sample: {"memory": 60416021, "disks": 8716288}
left_behind:
  description:
    - It is on the target, but not all that was left on the source could be removed; or it had died on the target by
      then, and cannot be started anew. Why, and what to do.
  returned: when the move did not end as it should
  type: str
  sample: libvirt could not remove the guest 'web'. The playbook cnvm.platform.recover ends it.
kept_disks:
  description:
    - Files that were in the guest's own directory on the source, and were no disks of it, such as a disk that was taken
      away from it. They did not go along. There they are now, on the source.
  returned: when there were some
  type: list
  elements: str
  sample: [/var/lib/cnvm/kept-disks/web/vdb.qcow2]
failed_phase:
  description: The phase in which it failed.
  returned: failure
  type: str
  sample: memory
error:
  description: What failed.
  returned: failure
  type: str
  sample: The connection to host2 was lost.
libvirt_error:
  description: What libvirt said of it, where that is not the error itself.
  returned: when libvirt failed
  type: str
  sample: "libvirt could not move the guest 'web': operation failed: migration out job: canceled by client."
rolled_back:
  description: What was undone.
  returned: failure
  type: list
  elements: str
  sample: [web goes on here]
logs:
  description: Directories with our logs, on the source and on the target. QEMU's own are in C(/var/log/libvirt/qemu).
  returned: failure
  type: dict
  sample: {"source": /var/log/cnvm/moves/7b0ecd22a9bf, "target": /var/log/cnvm/moves/7b0ecd22a9bf}
"""

# The work is done by the action plugin of the same name.
