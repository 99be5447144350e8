#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: template_info
short_description: The templates of a host, and what rests on them
version_added: 0.1.0
description:
  - Returns the templates of a host with their names, whether they are still what their digests say, and which guests
    and images rest on them.
options:
  names:
    description: Only these templates, by name or digest. Those that the host does not have are left out.
    type: list
    elements: str
  dependants:
    description:
      - Whether to look for what rests on them. Images in the collection's own directories, in those of libvirt's pools
        and beside the disks of all domains are read for it, and those that the collection has made or that its guests
        have left, wherever they lie.
    type: bool
    default: true
  verify:
    description: Whether to read all of their bytes, and not only to look whether their files were touched.
    type: bool
    default: false
extends_documentation_fragment:
  - cnvm.platform.info_module
seealso:
  - module: cnvm.platform.template
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: See which guests rest on what
  cnvm.platform.template_info:
  register: found

- name: Compare all bytes of one
  cnvm.platform.template_info:
    names: [debian-13]
    verify: true
  register: found
  failed_when: found.templates | selectattr('problem') | length > 0
"""

RETURN = r"""
templates:
  description: The templates, sorted by name, those without a name last.
  returned: success
  type: list
  elements: dict
  sample:
    - names: [debian-13]
      digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
      virtual_bytes: 3221225472
      problem: null
      dependants: [guest web01, guest web02]
  contains:
    names:
      description: Its names. None when they stand for something else by now; then it can be removed by its digest.
      type: list
      elements: str
      sample: [debian-13]
    digest:
      description: Digest of its bytes (sha256).
      type: str
      sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    path:
      description: Where its image lies, on every host.
      type: str
      sample: /var/lib/cnvm/templates/sha256/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae/disk.qcow2
    format:
      description: Its format, C(qcow2).
      type: str
      sample: qcow2
    virtual_bytes:
      description: The size that a guest sees.
      type: int
      sample: 3221225472
    file_bytes:
      description: Length of the file.
      type: int
      sample: 435159040
    allocated_bytes:
      description: What the file takes up on its file system.
      type: int
      sample: 435163136
    made_of:
      description: What it was made of, as a digest.
      type: str
      sample: fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9
    origin:
      description: Where it came from, in words.
      type: str
      sample: file /var/tmp/debian-13-generic-amd64.qcow2
    reset_identity:
      description: Whether its identity was reset when it was made.
      type: bool
      sample: false
    problem:
      description: Why it is not what its digest says any more; null when it is.
      type: str
      sample: null
    dependants:
      description: What rests on it, guests by name and other images by path. Null where nobody can say, such as while
        libvirt does not answer; a warning says why.
      returned: when O(dependants)
      type: list
      elements: str
      sample: [guest web01, /var/lib/cnvm/kept-disks/web02/vda.qcow2]
peers:
  description: Hosts of the overlay, from which this one can take templates over.
  returned: success
  type: list
  elements: str
  sample: [host2]
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import chosen
from ansible_collections.cnvm.platform.plugins.module_utils._host import files, templates
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._image.template import word_of
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        "names": {"type": "list", "elements": "str"},
        "dependants": {"type": "bool", "default": True},
        "verify": {"type": "bool", "default": False},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Report."""
    names = chosen(params["names"])
    found = templates.report(
        None if names is None else [word_of(name, "names") for name in names],
        with_dependants=params["dependants"],
        full=params["verify"],
    )
    overlay = files.read_json(paths.OVERLAY_FILE) or {}
    peers = sorted(str(peer["name"]) for peer in overlay.get("peers") or ())
    return {"changed": False, **found, "peers": peers}


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
