#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: template
short_description: Templates that guests are cloned from
version_added: 0.1.0
description:
  - Registers a disk image on a host as a template, builds one of Debian's packages, takes one over from another host,
    or removes one.
  - A template is a qcow2 image, read-only, in C(/var/lib/cnvm/templates), known by the sha256 of its bytes. Names point
    at it. It lies at the same path on every host, so that a guest whose disk rests on it can move.
  - An image from outside is read by the collection's own code first. It is refused when it names other files (backing
    file, data file, extents), when it is damaged or cut off, when it is not of the format that is said, when it is
    larger than O(max_virtual_size), or when its checksum is another one. Then it is converted under limits.
  - Whether a template was changed since is looked at with each call, by the file's size, inode and time of change.
    Where one of these differs, or with O(verify), all of its bytes are compared. One that has changed is refused until
    the right bytes are there again.
options:
  name:
    description:
      - Name of the template. A name can get another content; guests stay with what they were made of.
      - With O(state=absent) also a digest, to remove a template that has no name any more.
    type: raw
    required: true
  state:
    description:
      - V(present) makes sure that the name stands for the template.
      - V(absent) removes the name, and the template with its last name. It is refused while disks of guests rest on it,
        or other images that the collection has made, or that its guests have left, wherever these lie.
    type: str
    choices: [present, absent]
    default: present
  source:
    description:
      - Absolute path of a disk image on the host. It may be compressed with gzip, xz, zstd or bzip2; its content tells.
      - When the template was made of the same checksum, nothing is done, and the file need not even be there.
      - With neither this nor O(build) nor O(guest) nor O(peer) the template must be there.
    type: str
  build:
    description:
      - Build a disk that boots Debian, of packages, with C(mmdebstrap), C(mke2fs) and plain files; neither loop devices
        nor mounts of images are needed. The host and the guests are of the kind C(x86_64), and the guests have a BIOS.
      - Beside O(build.packages) it has cloud-init, which looks for a seed (NoCloud, ConfigDrive), the guest agent,
        sshd, systemd-networkd, which asks for an address by DHCP where cloud-init says nothing, GRUB, the kernel
        C(linux-image-cloud-amd64), and a console on the first serial port. Nobody has a password.
      - It is made anew when these options change, not when the distribution has newer packages; see O(refresh).
    type: dict
    suboptions:
      suite:
        description: The release of Debian, such as V(trixie).
        type: str
        required: true
      packages:
        description:
          - Packages to install beside those that every guest needs.
          - Where one of them is a kernel (C(linux-image-)…), it takes the place of the one named above.
        type: list
        elements: str
        default: []
      variant:
        description: What is installed beside them.
        type: str
        choices: [minbase, apt, essential, required, important, standard, buildd]
        default: minbase
      components:
        description: Parts of the archive. Default is V(main).
        type: list
        elements: str
        default: []
      mirror:
        description:
          - URL of the archive. Default is the distribution's own, with its updates and security updates.
          - It is what C(apt) in the guests asks, too.
        type: str
      customize:
        description:
          - Shell commands that are run in the new root file system, in order, without name resolution.
        type: list
        elements: str
        default: []
  format:
    description:
      - Format of O(source). Default is what its name says, without what it is compressed with. It is never guessed from
        the content.
    type: str
    choices: [raw, qcow2, vmdk, vdi, vhd, vhdx, vpc]
  checksum:
    description:
      - What O(source) must be, as V(sha256:) and 64 hexadecimal digits, or C(sha384), C(sha512). Of a compressed file
        it is that of the file as it is.
      - Required with O(source). V(unverified) waives it.
    type: str
  guest:
    description:
      - Name of a stopped guest of the host. The disk that it boots from is copied; the guest stays as it is. Refused
        where libvirt keeps its memory (C(virsh managedsave)).
      - When the template was made of that guest before, nothing is done; see O(refresh).
    type: raw
  peer:
    description:
      - Name of a host of the overlay that has the template. It is copied from host to host, encrypted, with the keys of
        P(cnvm.platform.host_bootstrap#role).
      - When this host has the template, nothing is done; see O(digest) and O(refresh).
    type: raw
  digest:
    description:
      - The digest that the template must have. Another content is refused.
      - Where it is the O(checksum), too, the source is the image of a template and is copied as it is.
    type: str
  size:
    description:
      - Virtual size of the template, as a number of bytes or with K, M, G or T. Default is that of its source; less is
        refused. Disks of clones can be larger in any case.
      - With O(build) the default is 3G, or more where the packages need it, and the most is 2T.
    type: raw
  reset_identity:
    description:
      - Whether what makes a machine that one is removed from the image, the machine id, SSH host keys, DHCP leases and
        identifiers, seeds of randomness, and what cloud-init knows of its instance. sshd of Debian and Ubuntu is told
        to make new host keys at its first start.
      - It works on ext4 and its predecessors, without mounting anything. Another root file system is refused, and so is
        an image whose C(/etc/fstab) has C(/var), or what else these files are in, in a file system of its own.
      - Default is V(true) with O(guest) and O(build), else V(false). Images that vendors publish for clouds need none.
    type: bool
  fingerprint:
    description:
      - What the source is known by. When the template was made of a source with the same fingerprint, nothing is done.
      - Default follows from O(checksum) or, where that is waived, from the file's size, inode and time of change.
    type: str
  refresh:
    description: Whether to make it even though it was made of the same.
    type: bool
    default: false
  verify:
    description: Whether to read all bytes of the template and compare its digest.
    type: bool
    default: false
  max_virtual_size:
    description: Most bytes of the disk that O(source) may have, as a number or with K, M, G or T.
    type: raw
    default: 1T
attributes:
  check_mode:
    description:
      - Says whether the template would be made. Its digest is not known before.
      - O(source) is not read. That it is no image, or has another O(checksum), is said when the template is made.
    support: full
  diff_mode:
    description: Returns the digest that the name stood for and the one that it stands for.
    support: full
  idempotent:
    description: A second call with the same source changes nothing.
    support: full
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on the host with C(host_bootstrap_guests=true).
  - For O(peer), P(cnvm.platform.overlay#role).
  - For O(reset_identity) and O(build), C(e2fsprogs).
  - For O(build), C(mmdebstrap), which P(cnvm.platform.host_bootstrap#role) installs on Debian and Ubuntu.
  - The program that O(source) is compressed with.
seealso:
  - module: cnvm.platform.template_info
  - module: cnvm.platform.guest_clone
  - module: cnvm.platform.disk_image
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Register an image that was copied to the host
  cnvm.platform.template:
    name: debian-13
    source: /var/tmp/debian-13-generic-amd64.qcow2
    checksum: sha256:9f0ae3b5e2c8a5a5a1a6d5d7c5f3e2d1c0b9a8978675645342312011ffeeddcc

- name: Build one of packages
  cnvm.platform.template:
    name: web
    build:
      suite: trixie
      packages: [nginx-light]

- name: Make a template of a guest that was installed by hand and is stopped now
  cnvm.platform.template:
    name: archlinux
    guest: archlinux

- name: Take a template over from another host
  cnvm.platform.template:
    name: debian-13
    peer: host1

- name: Has anybody changed it
  cnvm.platform.template:
    name: debian-13
    verify: true

- name: Remove it
  cnvm.platform.template:
    name: debian-13
    state: absent
"""

RETURN = r"""
template:
  description: The template; null when it is not there (yet).
  returned: success
  type: dict
  sample:
    name: debian-13
    digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    path: /var/lib/cnvm/templates/sha256/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae/disk.qcow2
    virtual_bytes: 3221225472
    file_bytes: 435159040
  contains:
    name:
      description: Its name.
      type: str
      sample: debian-13
    digest:
      description: Digest of its bytes (sha256).
      type: str
      sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    path:
      description: Where its image lies, on every host.
      type: str
      sample: /var/lib/cnvm/templates/sha256/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae/disk.qcow2
    virtual_bytes:
      description: The size that a guest sees.
      type: int
      sample: 3221225472
    file_bytes:
      description: Length of the file.
      type: int
      sample: 435159040
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
actions:
  description: What was done, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [make, name]
reset:
  description: Files of the image that were removed or emptied, because they made it one machine and no other.
  returned: success
  type: list
  elements: str
  sample: [/etc/machine-id, /etc/ssh/ssh_host_ed25519_key]
"""

import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import mmdebstrap
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._host.template_making import bring_to
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module


def argument_spec() -> dict[str, t.Any]:
    """The module's options. What is 'raw' is decoded by us: Ansible would take 7 for the name 007."""
    return {
        "name": {"type": "raw", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "source": {"type": "str"},
        "build": {"type": "dict", "options": mmdebstrap.argument_spec()},
        "format": {"type": "str", "choices": ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "vpc"]},
        "checksum": {"type": "str"},
        "guest": {"type": "raw"},
        "peer": {"type": "raw"},
        "digest": {"type": "str"},
        "size": {"type": "raw"},
        "reset_identity": {"type": "bool"},
        "fingerprint": {"type": "str"},
        "refresh": {"type": "bool", "default": False},
        "verify": {"type": "bool", "default": False},
        "max_virtual_size": {"type": "raw", "default": "1T"},
    }


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the template to what is wanted."""
    return bring_to(host, dict(params), check_mode=check_mode)


def main() -> None:
    """Run the module."""
    run_module(work, argument_spec())


if __name__ == "__main__":
    main()
