#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_helper
short_description: Install the library of the helper C(cnvm-host) on a host
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Copies the part of the collection that hosts need to work on their own (supervising containers, moving them)
    to the host. The role P(cnvm.platform.host_bootstrap#role) runs this module and installs the program itself.
  - The files are taken from the collection on the controller. They are only sent when the host has others.
  - They are installed beside the old ones and then switched to, so that a helper that runs meanwhile is not disturbed.
attributes:
  check_mode:
    description: Can run in check mode and says whether it would change the host.
    support: full
  diff_mode:
    description: Returns version and digest before and after.
    support: full
  idempotent:
    description: Changes nothing when the host has exactly these files.
    support: full
options:
  library:
    description: The directory that the library is installed in.
    type: path
    default: /usr/local/lib/cnvm
  version:
    description: The version of the collection. Set by the action plugin.
    type: str
    default: ""
  digest:
    description: The digest over all files. Set by the action plugin.
    type: str
    default: ""
  files:
    description: The files, path to text. Set by the action plugin, and only when they must be sent.
    type: dict
notes:
  - This module has an action plugin of the same name and does not work without it.
seealso:
  - module: cnvm.platform.host_info
"""

EXAMPLES = r"""
- name: Bring the helper's library up to date
  cnvm.platform.host_helper:
"""

RETURN = r"""
helper:
  description: What is installed now (in check mode, what would be).
  returned: success
  type: dict
  contains:
    version:
      description: Version of the collection that the files are from.
      type: str
      sample: 1.0.0
    digest:
      description: One sha256 over all files.
      type: str
      sample: 9f2b5a2d6a0c5a1df3e6f6a9a6f55c7c7a3c94f5d5f6c0c0d8d6b0a9e1c3f7a2
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import helper
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import diff_of, run_module


def argument_spec() -> dict[str, t.Any]:
    return {
        "library": {"type": "path", "default": "/usr/local/lib/cnvm"},
        "version": {"type": "str", "default": ""},
        "digest": {"type": "str", "default": ""},
        "files": {"type": "dict"},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    if not params["digest"]:
        raise InputError(
            "digest: is missing.", hint="The action plugin host_helper sets it; do not run the module alone."
        )
    before = helper.installed(params["library"])
    after = {"version": params["version"], "digest": params["digest"]}
    changed = before != after
    if changed and params["files"] is not None and not check_mode:
        helper.install(params["library"], params["files"], params["version"], params["digest"])
    return {"changed": changed, "helper": after, "diff": diff_of(before, after, params["library"])}


def main() -> None:
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
