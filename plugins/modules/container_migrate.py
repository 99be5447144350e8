#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_migrate
short_description: Teleport a running container to another host
version_added: 0.1.0
description:
  - Moves a container that M(cnvm.platform.container) made to another host, with its memory, files, address and open
    connections. Run it on the host that has the container; P(cnvm.platform.teleport#role) finds that host.
  - The two hosts do the work between themselves, through the encrypted overlay. The source is paused, not ended, until
    the copy on the target runs. Whatever fails before the target is given the word, the source goes on with its
    connections. A controller that is killed decides nothing, the move ends by itself.
  - Run the same task again after an interruption. It ends the interrupted move first.
options:
  container:
    description: Name of the container.
    type: raw
    required: true
  target:
    description: The host to move it to, by its name in the overlay (its inventory name).
    type: raw
    required: true
  mode:
    description:
      - V(pre_copy) copies memory while the container runs and freezes it for the rest; both kernels must track dirty
        memory.
      - V(post_copy) moves the container with almost no memory and fetches the rest while it runs. Needs runc and
        O(allow_post_copy=true).
      - V(stop_copy) freezes the container, copies all, and lets it go on.
      - V(cold) stops the container and starts it on the target; connections and memory are lost.
      - V(auto) takes pre-copy where both hosts can, else post-copy where it is allowed, else stop-and-copy.
    type: str
    default: auto
    choices: [auto, pre_copy, post_copy, stop_copy, cold]
  allow_post_copy:
    description:
      - Accept the window of post-copy. From the resume on the target until its memory has arrived, losing the link or
        a host costs what the container did since the freeze. Neither side runs twice; the source is kept frozen, and
        goes on from the freeze when the target's copy is known to be gone.
    type: bool
    default: false
  max_downtime_ms:
    description:
      - Refuse when the container is expected to stand still for longer, in milliseconds. 0 is no limit.
      - Also just before the freeze, when files change all the time that are too large to be sent in it. The container
        goes on then.
    type: raw
    default: 0
  cpu_check:
    description:
      - V(flags) refuses a target whose CPU lacks a feature that the source's has, or whose kernel keeps less of the
        CPU's state for a process; a program that uses it would crash.
      - V(none) only warns.
    type: str
    default: flags
    choices: [flags, none]
  timeout_s:
    description:
      - Give up and roll back when the move is not done after so many seconds. A container that runs at the target
        already is not given up as long as its memory comes.
    type: raw
    default: 600
attributes:
  check_mode:
    description:
      - Returns RV(plan). Fails with every blocker at once when it could not be done. Nothing is changed on either host.
    support: full
  diff_mode:
    description: The plan and the timeline say more than a difference would.
    support: none
  idempotent:
    description: The container is gone from the host afterwards, so a second run fails; the role does nothing then.
    support: none
seealso:
  - module: cnvm.platform.container
  - module: cnvm.platform.container_recover
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Teleport web to host2
  cnvm.platform.container_migrate:
    container: web
    target: host2
  register: move

- name: With the least downtime, or not at all
  cnvm.platform.container_migrate:
    container: web
    target: host2
    mode: post_copy
    allow_post_copy: true
    max_downtime_ms: 800
"""

RETURN = r"""
outcome:
  description: V(target) (it runs there), V(source) (it was rolled back) or V(waiting) (the message says for what).
  returned: always but in check mode
  type: str
  sample: target
plan:
  description: What was decided before anything was touched.
  returned: when the hosts could be asked
  type: dict
  sample:
    mode: stop_copy
    reasons: ["no pre-copy: host1: the kernel does not track dirty memory (CONFIG_MEM_SOFT_DIRTY)"]
    blockers: []
    warnings: []
    expected_frozen_ms: 1400
    space:
      - {device: 2049, path: /var/lib/cnvm, free_bytes: 53687091200, needed_bytes: 314572800, once: {}}
  contains:
    mode:
      description: The mode that was chosen.
      type: str
      sample: stop_copy
    reasons:
      description: Why.
      type: list
      elements: str
      sample: [asked for by the task]
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
      description: How long the container is expected to stand still, in milliseconds.
      type: int
      sample: 1400
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
          description: Of that, what serves other workloads, too, and comes once for all (the image), by its digest.
          type: dict
          sample: {}
mode:
  description: The mode of the move.
  returned: when a plan was made
  type: str
  sample: stop_copy
lost:
  description: That the container was started anew with its files, since its processes had died.
  returned: when that was so
  type: str
  sample: The memory of web is lost; it was started anew here with its files.
frozen_ms:
  description: From the freeze on the source to the copy on the target running, in milliseconds.
  returned: when the container was frozen
  type: float
  sample: 260.4
generation:
  description: Generation of the owner record by which the target has it.
  returned: when it runs on the target
  type: int
  sample: 2
timeline:
  description: What was done when.
  returned: when the move began
  type: dict
  sample:
    phases: [{"phase": "freeze", "start_ms": 4166.6, "ms": 9.0}]
    total_ms: 7916.9
    bytes: {"checkpoint": 1287418, "layer": 392734, "pages": 83886080}
  contains:
    phases:
      description: Each phase with RV(timeline.phases[].start_ms) since the beginning and its length, in milliseconds.
      type: list
      elements: dict
      sample: [{"phase": "freeze", "start_ms": 4166.6, "ms": 9.0}]
      contains:
        phase:
          description: Its name.
          type: str
          sample: freeze
        start_ms:
          description: When it began.
          type: float
          sample: 4166.6
        ms:
          description: How long it took.
          type: float
          sample: 9.0
    total_ms:
      description: From the beginning to the end.
      type: float
      sample: 7916.9
    bytes:
      description: Bytes that went over the link, by kind.
      type: dict
      sample: {"checkpoint": 1287418, "layer": 392734, "pages": 83886080}
criu:
  description: CRIU's own statistics of the dump and the restore, times in microseconds.
  returned: when it runs on the target
  type: dict
  sample: {"frozen_time": 84001, "pages_written": 19947}
left_behind:
  description:
    - It runs on the target, but not all that was left on the source could be removed; why.
      M(cnvm.platform.container_recover) ends it.
  returned: when the source could not be tidied
  type: str
  sample: /var/lib/cnvm/workloads/web/bundle cannot be removed. The playbook cnvm.platform.recover ends it.
failed_phase:
  description: The phase in which it failed.
  returned: failure
  type: str
  sample: restore
criu_error:
  description: The first real error of CRIU's log.
  returned: when CRIU failed
  type: str
  sample: "tcp: Can't bind inet socket back"
rolled_back:
  description: What was undone.
  returned: when it failed after the preflight
  type: list
  elements: str
  sample: [web goes on here as it was when it was frozen]
logs:
  description: Directories with CRIU's logs, on the source and on the target.
  returned: when it failed after the preflight
  type: dict
  sample: {"source": /var/log/cnvm/moves/7b0ecd22a9bf, "target": /var/log/cnvm/moves/7b0ecd22a9bf}
"""

# The work is done by the action plugin of the same name.
