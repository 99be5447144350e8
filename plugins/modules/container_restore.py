#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: container_restore
short_description: Let a container go on from a checkpoint
version_added: 0.1.0
description:
  - Restores what M(cnvm.platform.container_checkpoint) has written, with memory, files and connections, into a
    container that is defined on this host and stopped. On another host than before, define it there first with
    M(cnvm.platform.container) and C(state=stopped).
  - The definition on this host decides what the container may do, its mounts, devices, limits and image. What the
    archive says of them is only compared. The image must be on this host, by its digest.
  - Every file of the archive is compared with its manifest before anything is touched. One changed byte, and it is
    refused. That finds damage. It does not tell who made the archive, so restore only those that you trust; its
    processes go on with the rights that they had.
  - The writable layer of the container is replaced by the one in the archive. When the restore fails, the one that it
    had is put back.
extends_documentation_fragment:
  - cnvm.platform.peers
options:
  path:
    description: The archive, an absolute path on this host.
    type: str
    required: true
  container:
    description: Name of the container on this host. Default is the name in the archive.
    type: raw
  cpu_check:
    description:
      - V(flags) refuses a CPU that lacks a feature that the one of the checkpoint had; a program that uses it would
        crash.
      - V(none) does not look.
    type: str
    default: flags
    choices: [flags, none]
  timeout_s:
    description: Give up when it is not restored after so many seconds.
    type: raw
    default: 120
attributes:
  check_mode:
    description: Reads and compares the whole archive, and fails with everything that is in the way.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: The container runs afterwards, so a second run is refused.
    support: none
seealso:
  - module: cnvm.platform.container_checkpoint
  - module: cnvm.platform.container
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Let web go on where it was
  cnvm.platform.container_restore:
    path: /var/lib/cnvm/checkpoints/web.tar.zst
"""

RETURN = r"""
checkpoint:
  description: What the archive says of itself.
  returned: success
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
container:
  description: The container that goes on.
  returned: when it was restored
  type: str
  sample: web
running_ms:
  description: From the restored processes standing still to their running, in milliseconds.
  returned: when it was restored
  type: float
  sample: 21.4
criu:
  description: CRIU's own statistics of the restore, times in microseconds.
  returned: when it was restored
  type: dict
  sample: {"forking_time": 4100, "restore_time": 52011, "pages_restored": 19947}
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_name
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import integer
from ansible_collections.cnvm.platform.plugins.module_utils._host import checkpoint
from ansible_collections.cnvm.platform.plugins.module_utils._host.ownership import asking
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._migrate.options import PEERS
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The options."""
    return {
        "path": {"type": "str", "required": True},
        "container": {"type": "raw"},
        "cpu_check": {"type": "str", "default": "flags", "choices": ["flags", "none"]},
        **PEERS,
        "timeout_s": {"type": "raw", "default": 120},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Restore it."""
    return checkpoint.restore(
        host,
        checkpoint.check_path(params["path"]),
        "" if params["container"] in (None, "") else check_name(params["container"], "container"),
        cpu_check=params["cpu_check"],
        **asking(params),
        timeout_s=integer(params["timeout_s"], "timeout_s", least=1, most=86_400),
        check_mode=check_mode,
    )


def main() -> None:
    """Entry point."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
