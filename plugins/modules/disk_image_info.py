#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_image_info
short_description: What disk images are, what they rest on, and who needs them
version_added: 0.1.0
description:
  - Reads the headers of disk images and of all images below them. It does so by itself, without qemu-img, so that an
    image that nobody trusts can be looked at, too. Of files that a header names, only the headers are read.
  - Works while a guest runs.
options:
  paths:
    description: Absolute paths of images on the host.
    type: list
    elements: str
    required: true
  digest:
    description: Whether to compute the sha256 of each file, which reads all of it.
    type: bool
    default: false
  dependants:
    description: Whether to look for the guests whose disks they are, and for the images that rest on them.
    type: bool
    default: true
  dependants_in:
    description:
      - Directories to look through for images, with those below them. The directory of each image, the collection's
        own places, and the directories of libvirt's pools and of the disks of all domains are looked through anyway. So
        are the images that the collection has made, or that its guests have left.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - cnvm.platform.info_module
seealso:
  - module: cnvm.platform.disk_image
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Look at a disk and all below it
  cnvm.platform.disk_image_info:
    paths: [/var/lib/libvirt/images/one.qcow2]
  register: looked

- name: Show what it rests on
  ansible.builtin.debug:
    msg: "{{ looked.images[0].chain | map(attribute='path') }}"
"""

RETURN = r"""
images:
  description: The images in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /var/lib/libvirt/images/base.qcow2
      exists: true
      format: qcow2
      virtual_bytes: 10737418240
      backing: null
      dependants: [/var/lib/libvirt/images/one.qcow2]
      in_use: false
      problem: null
  contains:
    path:
      description: Where it lies.
      type: str
      sample: /var/lib/libvirt/images/base.qcow2
    exists:
      description: Whether there is a file. The other values are there only then.
      type: bool
      sample: true
    problem:
      description: What is wrong with it or with its chain; null when nothing is. It may be all that is known of it.
      type: str
      sample: null
    format:
      description:
        - Its format, as M(cnvm.platform.disk_image) made it, else by its content. A guest decides what the first bytes
          of its raw disk are.
      type: str
      sample: qcow2
    subformat:
      description: Kind of image within its format.
      type: str
      sample: null
    virtual_bytes:
      description: The size that a guest sees.
      type: int
      sample: 10737418240
    file_bytes:
      description: Length of the file.
      type: int
      sample: 435159040
    allocated_bytes:
      description: What the file takes up on its file system.
      type: int
      sample: 435163136
    cluster_bytes:
      description: The unit in which it allocates.
      type: int
      sample: 65536
    backing:
      description: The image that it rests on.
      type: str
      sample: null
    backing_format:
      description: The format that it says of that.
      type: str
      sample: null
    needs:
      description: Everything that its content depends on beside the file itself, in words.
      type: list
      elements: str
      sample: []
    compression:
      description: How it is, or may be, compressed.
      type: str
      sample: zlib
    encrypted:
      description: How it is encrypted; null when it is not.
      type: str
      sample: null
    snapshots:
      description: How many internal snapshots it has.
      type: int
      sample: 0
    dirty:
      description: Whether it was not closed. So are some images that are in use.
      type: bool
      sample: false
    corrupt:
      description: Whether it is marked as damaged.
      type: bool
      sample: false
    in_use:
      description: Whether a process has it open, by the locks that QEMU holds.
      type: bool
      sample: false
    digest:
      description: The sha256 of the file; null unless asked for.
      type: str
      sample: null
    chain:
      description: The image and all below it, the base last, each with C(path), C(format), C(virtual_bytes),
        C(file_bytes), C(allocated_bytes), C(cluster_bytes), C(backing) and C(backing_format).
      type: list
      elements: dict
      sample: [{path: /var/lib/libvirt/images/base.qcow2, format: qcow2, virtual_bytes: 10737418240, backing: null}]
    dependants:
      description:
        - Who needs it, where O(dependants) - the guests whose disk it is as C(guest NAME), and the paths of the images
          that rest directly on it. Null where nobody can say, such as while libvirt does not answer; a warning says
          why.
      type: list
      elements: str
      sample: [/var/lib/libvirt/images/one.qcow2]
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.values import word_list
from ansible_collections.cnvm.platform.plugins.module_utils._host import disk_images
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    return {
        "paths": {"type": "list", "elements": "str", "required": True},
        "digest": {"type": "bool", "default": False},
        "dependants": {"type": "bool", "default": True},
        "dependants_in": {"type": "list", "elements": "str", "default": []},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Report."""
    found = disk_images.report(
        word_list(params["paths"], "paths"),
        with_digest=params["digest"],
        with_dependants=params["dependants"],
        places=word_list(params["dependants_in"], "dependants_in"),
    )
    return {"changed": False, **found}


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
