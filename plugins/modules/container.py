#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container
short_description: Containers of a host, supervised by systemd, each in exactly one place
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes the containers of a host. One call takes all of them.
  - A container is an image below, which is never written to, and a writable layer above. It runs under an OCI runtime
    as the systemd unit C(cnvm-container@NAME.service), comes back after a crash and after a reboot of the host, and
    its output is in the journal (C(journalctl -u cnvm-container@NAME -o cat)).
  - B(Exactly one.) A container runs in one place. When it was moved to another host, this module does nothing for it
    and returns where it is. Before it creates one it asks all hosts of the overlay whether they have the name or the
    address, and refuses when one of them does, or does not answer.
  - A change that a running container can take over (ports, limits, labels, restart policy, keys) is applied at once.
    Any other change stops the container and starts it again with its writable layer; see O(restart_on_change).
extends_documentation_fragment:
  - cnvm.platform.peers
options:
  containers:
    description:
      - The containers, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      name:
        description:
          - Name of the container. It stands for one container on all hosts of the overlay.
          - 1 to 63 letters, digits, V(_), V(.) or V(-), the first one a letter or a digit. Quote a name that is all
            digits.
        type: raw
        required: true
      state:
        description:
          - V(running) creates it if need be, starts it, and lets it start with the host.
          - V(present) creates it if need be and leaves a running one running and a stopped one stopped.
          - V(stopped) creates it if need be and stops it, also for the next boot.
          - V(absent) stops and removes it with its writable layer.
        type: str
        choices: [present, running, stopped, absent]
        default: running
      image:
        description:
          - Name or sha256 digest of an image of the host. Required unless the container is removed.
          - Images are made by M(cnvm.platform.bundle); an OCI bundle becomes one by it first.
        type: str
      runtime:
        description: The OCI runtime. V(crun) cannot move its memory after the switch (post-copy).
        type: str
        choices: [runc, crun]
        default: runc
      address:
        description:
          - The container's IPv4 address on the overlay. It keeps it wherever it runs.
          - Without one it has no network but its loopback.
        type: str
      ports:
        description:
          - Ports of the host that lead to ports of the container, as V("8080:80") or V("5353:53/udp"), in quotes, or as
            mappings with C(host_port), C(container_port), C(protocol) and C(host_address).
        type: list
        elements: raw
      memory_mib:
        description: Memory limit in MiB, a whole number from 8. Needs the cgroup controller C(memory).
        type: raw
      cpus:
        description: Limit of CPU time, in CPUs, such as V(0.5). Needs the cgroup controller C(cpu).
        type: raw
      pids_limit:
        description: Limit of processes and threads, a whole number from 4. Needs the cgroup controller C(pids).
        type: raw
      env:
        description: Environment variables beside those of the image.
        type: dict
      mounts:
        description:
          - Directories of the host (C(type=bind)) or memory (C(type=tmpfs)) in the container. A directory stays on its
            host; a container that has one is not moved.
        type: list
        elements: dict
        suboptions:
          type:
            description: What is mounted.
            type: str
            choices: [bind, tmpfs]
            default: bind
          source:
            description: Absolute path on the host, for V(bind).
            type: str
          destination:
            description: Absolute path in the container.
            type: str
            required: true
          read_only:
            description: Whether the container may not write there.
            type: bool
            default: false
          size_mib:
            description: Most MiB that a V(tmpfs) holds; a whole number.
            type: raw
      command:
        description: The command with its arguments, instead of the image's.
        type: list
        elements: str
      user:
        description: User of the command, as C(USER) or C(USER:GROUP), by name or number. Default is the image's.
        type: str
      cwd:
        description: Working directory of the command. Default is the image's.
        type: str
      hostname:
        description: Host name in the container. Default is its name.
        type: str
      dns:
        description: IPv4 name servers of the container. Default is the host's, but for those on its loopback.
        type: list
        elements: str
      capabilities_add:
        description: Capabilities beside the default ones. Those that would make its root the host's are refused.
        type: list
        elements: str
      capabilities_drop:
        description: Capabilities to take away from the default ones.
        type: list
        elements: str
      no_new_privileges:
        description: Whether programs in it cannot gain privileges (C(sudo), C(su), set-user-id).
        type: bool
        default: true
      seccomp:
        description: V(default) refuses kernel calls that a workload does not need; V(unconfined) refuses none.
        type: str
        choices: [default, unconfined]
        default: default
      restart:
        description:
          - When it is started again after its end. Ten starts in ten minutes are the most; then its state is C(failed).
          - With V(never) it does not start with the host either.
        type: str
        choices: [always, on_failure, never]
        default: always
      stop_timeout_s:
        description: Seconds between the signal that asks it to end and the one that kills it.
        type: raw
        default: 10
      stop_signal:
        description: Name of the signal that asks it to end, such as V(TERM) or V(INT).
        type: str
        default: TERM
      authorized_keys:
        description: Public SSH keys for O(containers[].login_user), one per item.
        type: list
        elements: str
      login_user:
        description: The user who gets O(containers[].authorized_keys). Default is the image's login user, else V(root).
        type: str
      labels:
        description: Texts of your own, returned with the container.
        type: dict
      wait_for:
        description:
          - Wait until the container accepts connections on a TCP port.
        type: dict
        suboptions:
          port:
            description: The port in the container.
            type: raw
            required: true
          timeout_s:
            description: Seconds after which the module fails.
            type: raw
            default: 60
  restart_on_change:
    description:
      - Whether a running container may be restarted for a change that it cannot take over while it runs. Its writable
        layer is kept, its memory and connections are lost.
      - With V(false) the module fails instead, before it changes anything, and names what would need the restart.
    type: bool
    default: true
  image_change:
    description:
      - Whether a container may go on with another image. Its writable layer is put over the new one.
      - With V(false) another image is refused. When the image's name has got a new content since the container was
        made, the container goes on with the old one and the module warns.
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what it would do, and asks the other hosts; changes nothing.
    support: full
  diff_mode:
    description: Returns the definitions before and after, with whether they run and start with the host.
    support: full
  idempotent:
    description: A second call changes nothing.
    support: full
requirements:
  - P(cnvm.platform.host_bootstrap#role) and, for addresses, P(cnvm.platform.overlay#role) have run on the host.
seealso:
  - module: cnvm.platform.container_info
  - module: cnvm.platform.bundle
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Run a web server and a worker
  cnvm.platform.container:
    containers:
      - name: web
        image: cnvm
        address: 10.100.101.20
        ports:
          - "8080:80"
        command: [python3, -m, http.server, "80"]
        wait_for:
          port: 80
      - name: worker
        image: cnvm
        command: [/usr/bin/worker]
        env:
          QUEUE: fast
        restart: on_failure

- name: Remove a container
  cnvm.platform.container:
    containers:
      - name: worker
        state: absent
"""

RETURN = r"""
containers:
  description: The containers in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web
      state: running
      placement: host1
      changed: true
      actions: [create, enable, start]
      restarted: false
      pid: 4711
      address: 10.100.101.20
  contains:
    name:
      description: Name of the container.
      type: str
      sample: web
    state:
      description: C(running), C(paused), C(stopped), C(restarting), C(failed), C(moved) (elsewhere) or C(absent).
      type: str
      sample: running
    placement:
      description: The host that has it; null when none has.
      type: str
      sample: host1
    changed:
      description: Whether something was done to it, or would be in check mode.
      type: bool
      sample: true
    actions:
      description: What was done, in order.
      type: list
      elements: str
      sample: [stop, change env, start]
    restarted:
      description: Whether it was stopped and started again for a change.
      type: bool
      sample: false
    unit:
      description: The systemd unit that supervises it.
      type: str
      sample: cnvm-container@web.service
    log_command:
      description: The command that shows its output.
      type: str
      sample: journalctl -u cnvm-container@web.service -o cat
"""

from ansible_collections.cnvm.platform.plugins.module_utils._host.containers import work
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module
from ansible_collections.cnvm.platform.plugins.module_utils._oci.options import CONTAINER


def main() -> None:
    """Run the module. The action plugin of the same name asks the host's helper first, which does the same."""
    run_module(work, CONTAINER)


if __name__ == "__main__":
    main()
