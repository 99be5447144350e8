#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_checkpoint
short_description: Save a running container with its memory into a file
version_added: 0.1.0
description:
  - Writes the memory, the open files and connections and the writable layer of a container of this host into an archive
    on the host. M(cnvm.platform.container_restore) lets it go on from there, as it was at that moment.
  - The container stands still while its memory is copied within the host, and goes on while the archive is packed.
  - The archive holds everything that the container has in memory, passwords and keys too. It is readable for root only.
    Treat a copy of it as you treat those.
  - When it fails, the container goes on and no file is left.
options:
  container:
    description: Name of the container, which must run on this host.
    type: raw
    required: true
  path:
    description:
      - The file to write, an absolute path. A directory that is missing is created with mode V(0700).
      - Default is C(/var/lib/cnvm/checkpoints/NAME.tar.zst).
    type: str
  leave_running:
    description:
      - Whether the container goes on. V(false) stops it when the archive is written, also for the next boot; its
        connections are not closed, so that they live on when it is restored soon.
    type: bool
    default: true
  force:
    description: Replace a file that is there. Without it a checkpoint of the container that is there is left as it is.
    type: bool
    default: false
  timeout_s:
    description: Give up and let the container go on when the copy of its memory takes longer, in seconds.
    type: raw
    default: 120
attributes:
  check_mode:
    description: Fails with everything that is in the way. Changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: A file that is there is not written again, unless O(force=true).
    support: partial
seealso:
  - module: cnvm.platform.container_restore
  - module: cnvm.platform.container_migrate
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Save web as it is now
  cnvm.platform.container_checkpoint:
    container: web
    path: /var/lib/cnvm/checkpoints/web-before-upgrade.tar.zst

- name: Put it aside until the host has been rebooted
  cnvm.platform.container_checkpoint:
    container: web
    leave_running: false
    force: true
"""

RETURN = r"""
checkpoint:
  description: What the archive says of itself.
  returned: when there is an archive
  type: dict
  sample:
    path: /var/lib/cnvm/checkpoints/web.tar.zst
    size_bytes: 4213889
    content_bytes: 83886080
    name: web
    uuid: 0e1a3d8e-6c0c-4e6b-9d3f-0c2f5a7b9e11
    generation: 1
    image: 5b3dd1c9a1b6f0f7c0d4f2b8b0b1f8e5d7d6a3c2b1a09f8e7d6c5b4a39281706
    image_name: cnvm
    host: host1
    created: "2026-01-02T03:04:05Z"
    criu: 4.2.1
    kernel: 6.12.48
    runtime: runc
    digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
frozen_ms:
  description: How long the container stood still, in milliseconds.
  returned: when it was made and O(leave_running=true)
  type: float
  sample: 148.2
criu:
  description: CRIU's own statistics of the dump, times in microseconds.
  returned: when it was made
  type: dict
  sample: {"frozen_time": 84001, "pages_written": 19947}
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import integer
from ansible_collections.cnvm.platform.plugins.module_utils._host import checkpoint
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The options."""
    return {
        "container": {"type": "raw", "required": True},
        "path": {"type": "str"},
        "leave_running": {"type": "bool", "default": True},
        "force": {"type": "bool", "default": False},
        "timeout_s": {"type": "raw", "default": 120},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Make it, or say what is there."""
    name = check_name(params["container"], "container")
    return checkpoint.make(
        host,
        name,
        checkpoint.check_path(params["path"] or checkpoint.default_path(name)),
        leave_running=params["leave_running"],
        force=params["force"],
        timeout_s=integer(params["timeout_s"], "timeout_s", least=1, most=86_400),
        check_mode=check_mode,
    )


def main() -> None:
    """Entry point."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
