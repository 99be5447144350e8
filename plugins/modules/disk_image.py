#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_image
short_description: Disk images, made, converted, resized and repaired by qemu-img
version_added: 0.1.0
description:
  - Makes sure that disk images are as they are described. One call takes all images of a host, in the order in which
    they are needed - a base before its overlays.
  - B(Images only grow.) A smaller size is refused, an image that is there is never made anew unless O(images[].replace)
    says so, and its format is never changed in place.
  - B(All or nothing.) What takes more than one write is done on a copy beside the image, which takes its place at the
    end. A run that is killed, or that fills the disk, leaves what was there before.
  - B(Sources are hostile) unless O(images[].source.trusted). Before qemu-img may open one, its headers and tables are
    read by the collection's own code. It is refused when it is not of the format that it is said to be, or of two at
    once; names a backing file, a data file, extents or a parent; is larger than O(max_virtual_size), cut off, damaged,
    encrypted, or was not closed. qemu-img runs under limits then, and never guesses a format. What lies at
    O(images[].path) or O(images[].backing) is taken for yours; bring images from outside in as a source only.
  - An image that others rest on, or that a running guest has open, is not changed. Nothing is done to that of a
    template (see M(cnvm.platform.template)).
  - The disk of a stopped guest may grow, and be flattened, rebased or repaired. Not so where libvirt keeps the guest's
    memory (C(virsh managedsave)), which fits the disk as it is.
options:
  images:
    description:
      - The images, each a mapping with the options below. Those that are not named are left alone.
    type: list
    elements: raw
    required: true
    suboptions:
      path:
        description:
          - Where it lies on the host, an absolute path. Its directory exists.
          - Links on the way are followed, as C(/var/lib/libvirt) is one on many hosts. The file itself may be none.
        type: str
        required: true
      state:
        description:
          - Whether it is there. V(absent) removes the file, and nothing that it rests on.
          - Refused where it is a disk of a guest that is there, be it stopped. So is O(images[].replace).
        type: str
        choices: [present, absent]
        default: present
      format:
        description:
          - Its format. Default is the one that its name ends with, else V(qcow2). V(vhd) is what qemu-img calls V(vpc).
          - An image that is there must have it. V(raw) is believed and never guessed from the content, which a guest
            may have written. One that looks like another image does not grow; one that its guest has encrypted (LUKS)
            does.
        type: str
        choices: [raw, qcow2, vmdk, vdi, vhd, vpc, vhdx]
      size:
        description:
          - Virtual size, what a guest sees, as bytes or with K, M, G or T (powers of 1024); a multiple of 512 bytes.
          - Default is the size of O(images[].source) or O(images[].backing), or what it has. An image that is there
            grows to it. Formats that qemu-img cannot resize (V(vmdk), V(vdi), V(vhd), V(vhdx)) are copied for that.
        type: raw
      source:
        description: The image that it is made of, converted and with all that is below it. Read only to make it.
        type: dict
        suboptions:
          path:
            description: Path of a file on the host.
            type: str
            required: true
          format:
            description:
              - Its format. Default is the one that its name ends with (an C(.iso) is V(raw)); of other names, such as
                C(.img), it must be given.
            type: str
            choices: [raw, qcow2, vmdk, vdi, vhd, vpc, vhdx]
          checksum:
            description: What the file must have, as C(sha256:) and 64 hexadecimal digits, or C(sha384:), C(sha512:).
            type: str
          trusted:
            description:
              - Whether it was made by you, or by this host, so that it may have backing files and any size. The chain
                of its backing files is still walked first, with an end.
            type: bool
            default: false
      replace:
        description:
          - Whether an image that is there is made anew when its source is another one than the one it was made of
            (another checksum; without one another path, size or time), or when it was made with other options. B(What
            was written to it is lost.)
          - Refused when nothing of that is another one, and yet it is not the file that was made here, such as a backup
            that was brought back. And, as with O(images[].state=absent), where it is a disk of a guest that has
            snapshots (M(cnvm.platform.guest_snapshot)).
        type: bool
        default: false
      backing:
        description:
          - The image that it rests on (V(qcow2) only). It is made as an overlay on it, which costs nothing and takes up
            what changes. An image that is there and rests on another one is rebased.
          - Refused where a guest writes to it, or to what it rests on, be that guest stopped.
          - A chain has at most 16 images, this one included.
        type: str
      backing_format:
        description: Format of O(images[].backing). Default is the one that its name ends with.
        type: str
        choices: [raw, qcow2, vmdk, vdi, vhd, vpc, vhdx]
      rebase:
        description:
          - How another O(images[].backing) is taken. V(safe) keeps the content and copies what differs between the two.
            V(unsafe) writes the other name only, for a base that was moved; with another content below, the image is
            lost. V(refuse) fails.
          - With internal snapshots in it, V(safe) is refused. They would be lost. A disk of a guest that has snapshots
            (M(cnvm.platform.guest_snapshot)) is not rebased at all.
        type: str
        choices: [safe, unsafe, refuse]
        default: safe
      flatten:
        description:
          - Whether it takes in all that it rests on, and needs no other file then.
          - Refused with internal snapshots in it, which would be lost, and of a disk of a guest that has snapshots
            (M(cnvm.platform.guest_snapshot)), which rest on one another.
        type: bool
        default: false
      compression:
        description: How it is compressed when it is made of a source (V(qcow2) only).
        type: str
        choices: [none, zlib, zstd]
        default: none
      preallocation:
        description:
          - What is allocated when it is made or grows. V(metadata) is for V(qcow2); V(falloc) and V(full) for V(qcow2)
            and V(raw). Others have O(images[].subformat).
        type: str
        choices: ["off", metadata, falloc, full]
        default: "off"
      subformat:
        description:
          - Kind of image within its format, when it is made. V(dynamic) (default) or V(fixed) for V(vdi), V(vhd) and
            V(vhdx); V(monolithicSparse) (default) or V(streamOptimized), as in an OVA, for V(vmdk).
        type: str
        choices: [dynamic, fixed, monolithicSparse, streamOptimized]
      cluster_size:
        description: Size of the clusters of a V(qcow2) when it is made, a power of two from 512 to 2M.
        type: raw
      check:
        description: Whether its inner tables are checked. A damaged image fails; leaked clusters are a warning.
        type: bool
        default: false
      repair:
        description:
          - What is repaired (V(qcow2) only). V(leaks) frees clusters that nothing uses. V(all) also mends damage, which
            may lose content. Both check first, and do nothing to a good image.
        type: str
        choices: [none, leaks, all]
        default: none
      owner:
        description: Name or number of its owner. Default is what it is; of a new one, who runs the module.
        type: raw
      group:
        description: Name or number of its group, likewise.
        type: raw
      mode:
        description: Its mode as octal digits in quotes. Default is what it is; of a new one, V("0600").
        type: raw
  max_virtual_size:
    description: The largest virtual size that a source from outside may have.
    type: raw
    default: 1T
  dependants_in:
    description:
      - Directories, with those below them, in which images may lie that rest on those that are changed. The directory
        of an image, the collection's own places, and the directories of libvirt's pools and of the disks of all domains
        are looked through anyway. So are the images that the collection has made, or that its guests have left.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description:
      - Reads headers and says what it would do; checks of tables run too. Changes nothing.
      - Checksums are not computed. A wrong one is said when the image is made.
      - What is refused as things are now fails, also where a task before would have changed that, such as one that
        removes the guest whose disk it is. The message says so.
    support: full
  diff_mode:
    description: Returns format, size, backing file, owner and mode before and after.
    support: full
  idempotent:
    description: A second call changes nothing, and reads headers only.
    support: full
requirements:
  - qemu-img (package qemu-utils on Debian, qemu-img on EL)
notes:
  - A copy takes as much room as the image does, until it has taken its place.
seealso:
  - module: cnvm.platform.disk_image_info
  - module: cnvm.platform.seed_image
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Import a cloud image, give it room, and make two overlays on it
  cnvm.platform.disk_image:
    images:
      - path: /var/lib/libvirt/images/base.qcow2
        source:
          path: /var/tmp/debian-13-genericcloud-amd64.img
          format: qcow2
          checksum: sha512:{{ debian_sha512 }}
        size: 10G
        mode: "0444"
      - path: /var/lib/libvirt/images/one.qcow2
        backing: /var/lib/libvirt/images/base.qcow2
      - path: /var/lib/libvirt/images/two.qcow2
        backing: /var/lib/libvirt/images/base.qcow2
        size: 20G

- name: An empty disk, and one for another hypervisor
  cnvm.platform.disk_image:
    images:
      - path: /var/lib/libvirt/images/data.raw
        size: 5G
        preallocation: falloc
      - path: /var/tmp/data.vmdk
        subformat: streamOptimized
        source:
          path: /var/lib/libvirt/images/old.qcow2
          trusted: true

- name: Make an overlay independent of its base
  cnvm.platform.disk_image:
    images:
      - path: /var/lib/libvirt/images/one.qcow2
        flatten: true
"""

RETURN = r"""
images:
  description: The images in the order in which they were given.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /var/lib/libvirt/images/one.qcow2
      state: present
      changed: true
      actions: [create]
      format: qcow2
      virtual_bytes: 10737418240
      file_bytes: 196928
      allocated_bytes: 200704
      backing: /var/lib/libvirt/images/base.qcow2
      backing_format: qcow2
      owner: 0
      group: 0
      mode: "0600"
      check: null
  contains:
    path:
      description: Where it lies.
      type: str
      sample: /var/lib/libvirt/images/one.qcow2
    state:
      description: Whether it is there.
      type: str
      sample: present
    changed:
      description: Whether something was done to it, or would be in check mode.
      type: bool
      sample: true
    actions:
      description:
        - What was done - C(create), C(convert), C(replace), C(repair), C(flatten), C(rebase),
          C(name the backing format), C(resize), C(change owner), C(change group), C(change mode), C(remove).
      type: list
      elements: str
      sample: [create]
    format:
      description: Its format.
      type: str
      sample: qcow2
    virtual_bytes:
      description: The size that a guest sees.
      type: int
      sample: 10737418240
    file_bytes:
      description: Length of the file; null when it is not there (yet).
      type: int
      sample: 196928
    allocated_bytes:
      description: What the file takes up on its file system.
      type: int
      sample: 200704
    backing:
      description: The image that it rests on.
      type: str
      sample: /var/lib/libvirt/images/base.qcow2
    backing_format:
      description: The format that it says of that.
      type: str
      sample: qcow2
    owner:
      description: Number of its owner.
      type: int
      sample: 0
    group:
      description: Number of its group.
      type: int
      sample: 0
    mode:
      description: Its mode.
      type: str
      sample: "0600"
    check:
      description:
        - What a check found (C(corruptions), C(leaks), C(errors)) and repaired (C(corruptions_fixed), C(leaks_fixed)).
          Null when none was asked for, or the format has none.
      type: dict
      sample: null
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core.values import size_bytes, word_list
from ansible_collections.cnvm.platform.plugins.module_utils._host import disk_images
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module

FORMATS = ["raw", "qcow2", "vmdk", "vdi", "vhd", "vpc", "vhdx"]


def argument_spec() -> dict[str, t.Any]:
    """The module's options."""
    source = {
        "path": {"type": "str", "required": True},
        "format": {"type": "str", "choices": FORMATS},
        "checksum": {"type": "str"},
        "trusted": {"type": "bool", "default": False},
    }
    image = {
        "path": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "format": {"type": "str", "choices": FORMATS},
        "size": {"type": "raw"},
        "source": {"type": "dict", "options": source},
        "replace": {"type": "bool", "default": False},
        "backing": {"type": "str"},
        "backing_format": {"type": "str", "choices": FORMATS},
        "rebase": {"type": "str", "choices": ["safe", "unsafe", "refuse"], "default": "safe"},
        "flatten": {"type": "bool", "default": False},
        "compression": {"type": "str", "choices": ["none", "zlib", "zstd"], "default": "none"},
        "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
        "subformat": {"type": "str", "choices": ["dynamic", "fixed", "monolithicSparse", "streamOptimized"]},
        "cluster_size": {"type": "raw"},
        "check": {"type": "bool", "default": False},
        "repair": {"type": "str", "choices": ["none", "leaks", "all"], "default": "none"},
        "owner": {"type": "raw"},
        "group": {"type": "raw"},
        "mode": {"type": "raw"},
    }
    return {
        "images": {"type": "list", "elements": "raw", "required": True, "options": image},
        "max_virtual_size": {"type": "raw", "default": "1T"},
        "dependants_in": {"type": "list", "elements": "str", "default": []},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the images to what is wanted."""
    return disk_images.bring_to(
        host,
        params["images"],
        max_virtual_bytes=size_bytes(params["max_virtual_size"], "max_virtual_size", least=1),
        places=word_list(params["dependants_in"], "dependants_in"),
        check_mode=check_mode,
    )


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
