#!/usr/bin/python
# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Images for containers, made of archives, directories, OCI layouts or Debian packages
version_added: 0.1.0
description:
  - Makes an image out of an OCI bundle (C(config.json) and C(rootfs)), a root file system, an OCI image layout, or
    packages of Debian or Ubuntu, and stores it on the host, unpacked, under the digest of its content and a name.
  - The digest counts paths, types, modes, owners, links, devices, extended attributes, contents and the default
    process. It does not count times, so two hosts that unpack the same content have the same digest.
  - Nothing from outside is trusted. Archives are unpacked in a changed root, no link in them is followed, and absolute
    names, C(..), hard links to the outside, devices and set-user-id files are refused.
  - Only the process (command, environment, directory, user) is taken over from a foreign C(config.json). It is checked
    by the rules of the OCI runtime-spec first.
  - A second run compares fingerprints and reads or moves nothing.
options:
  name:
    description:
      - Name of the image. 1 to 63 letters, digits, V(_), V(.) or V(-), the first one a letter or a digit; no C(.new) at
        its end.
    type: str
    required: true
  state:
    description:
      - V(present) makes sure that the name stands for an image made of the source.
      - V(absent) removes the name, and the image when no container and no other name needs it. O(name) may be the
        digest of an image that has no name any more.
    type: str
    choices: [present, absent]
    default: present
  archive:
    description:
      - Path on the host of a bundle as a tar archive, plain or compressed with zstd, xz, gzip or bzip2 (told by its
        content, not by its name). It holds C(config.json) and C(rootfs) at its top.
    type: str
  rootfs:
    description:
      - Path on the host of a root file system, as a directory or as a tar archive, compressed or not.
    type: str
  oci_layout:
    description:
      - OCI image layout on the host (a directory), or an archive of one. Needs C(umoci), for archives C(skopeo) too.
      - Where it has several images, V(PATH:TAG) says which one is meant. Default is C(latest).
    type: str
  mmdebstrap:
    description:
      - Make the root file system of packages. Needs C(mmdebstrap) on the host.
      - It is made anew when these options change, not when the distribution has newer packages; see O(refresh).
    type: dict
    suboptions:
      suite:
        description: The release, such as V(trixie).
        type: str
        required: true
      packages:
        description: Packages to install.
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
        description: URL of the archive. Default is the distribution's own.
        type: str
      customize:
        description: Shell commands that are run in the new root file system, in order, after O(files) are written.
        type: list
        elements: str
        default: []
  files:
    description: Text files to write into the root file system.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path in the image. Missing directories are made.
        type: str
        required: true
      content:
        description: The text.
        type: str
        required: true
      mode:
        description: Mode as octal digits in quotes.
        type: raw
        default: "0644"
      owner:
        description: A user of the image, or C(USER:GROUP).
        type: str
  config:
    description: What the image's containers do unless they are told otherwise. It goes over what the source says.
    type: dict
    default: {}
    suboptions:
      args:
        description: The command with its arguments. Where neither this nor the source names one it is C(/bin/sh).
        type: list
        elements: str
      env:
        description: Environment variables.
        type: dict
      cwd:
        description: Working directory, an absolute path.
        type: str
      user:
        description: User of the command, C(USER) or C(USER:GROUP).
        type: str
      login_user:
        description: The user who gets the SSH keys that M(cnvm.platform.container) is given.
        type: str
  fingerprint:
    description:
      - What the source is known by. When the image of that name was made of a source with the same fingerprint, nothing
        is done, and the source need not even be there.
      - Default is a digest of the archive or the options.
    type: str
  digest:
    description:
      - The digest that the image must have (sha256, 64 hexadecimal digits). Another content is refused.
    type: str
  refresh:
    description: Whether to make the image even though its source is the same.
    type: bool
    default: false
  dest:
    description:
      - Path on the host of an archive of the bundle to write. Its directory exists.
    type: str
  compression:
    description: How O(dest) is compressed.
    type: str
    choices: [zstd, xz, gzip, none]
    default: zstd
  allow_setuid:
    description:
      - Whether files from outside may be set-user-id or set-group-id or have capabilities. Those of O(mmdebstrap) may.
    type: bool
    default: false
  allow_devices:
    description: Whether device nodes may come from outside.
    type: bool
    default: false
  foreign_settings:
    description:
      - What to do when a foreign C(config.json) has hooks, host directories, devices, namespaces by path or annotations
        that runtimes obey. V(refuse) fails and names them; V(drop) leaves them out. They are never taken over.
    type: str
    choices: [refuse, drop]
    default: refuse
  max_bytes:
    description: Most bytes that may come out of an archive, as a number or with K, M, G or T.
    type: raw
    default: 64G
  max_entries:
    description: Most files that may come out of an archive.
    type: raw
    default: 5000000
  max_ratio:
    description: Most bytes that may come out of a compressed archive for each byte in it; V(0) for no limit.
    type: raw
    default: 200
attributes:
  check_mode:
    description: Says whether the image would be made. Its digest is not known before.
    support: full
  diff_mode:
    description: Returns the digest that the name stood for and the one that it stands for.
    support: full
  idempotent:
    description: A second call with the same source changes nothing.
    support: full
requirements:
  - P(cnvm.platform.host_bootstrap#role) has run on the host.
  - zstd, for archives compressed with it
seealso:
  - module: cnvm.platform.container
author:
  - the cnvm.platform authors (@cnvm)
"""

EXAMPLES = r"""
- name: Make an image of Debian packages and an archive of it
  cnvm.platform.bundle:
    name: web
    mmdebstrap:
      suite: trixie
      packages: [nginx-light]
    config:
      args: [nginx, -g, daemon off;]
    dest: /var/tmp/web.tar.zst

- name: Take an archive that was copied to the host
  cnvm.platform.bundle:
    name: web
    archive: /var/tmp/web.tar.zst
    allow_setuid: true

- name: Remove an image
  cnvm.platform.bundle:
    name: web
    state: absent
"""

RETURN = r"""
image:
  description: The image; null when it is not there (yet).
  returned: success
  type: dict
  sample:
    name: web
    digest: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    size_bytes: 151388160
    entries: 6822
    path: /var/lib/cnvm/images/sha256/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
  contains:
    name:
      description: Its name.
      type: str
      sample: web
    digest:
      description: Digest of its content (sha256).
      type: str
      sample: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    size_bytes:
      description: Bytes of all files.
      type: int
      sample: 151388160
    entries:
      description: Files, directories and links.
      type: int
      sample: 6822
    process:
      description: What its containers do unless they are told otherwise.
      type: dict
      sample: {args: [nginx], cwd: /, env: [], user: "", login_user: ""}
    fingerprint:
      description: What it was made of.
      type: str
      sample: fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9
    path:
      description: Where it lies on the host.
      type: str
      sample: /var/lib/cnvm/images/sha256/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
archive:
  description: The archive at O(dest); null when there is none.
  returned: success
  type: dict
  sample:
    path: /var/tmp/web.tar.zst
    size_bytes: 41943040
    sha256: baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096
ignored:
  description: What a foreign C(config.json) has that is not taken over.
  returned: when the image was made
  type: list
  elements: str
  sample: [process.terminal, linux.seccomp]
left_out:
  description: Files that were left out (sockets, FIFOs).
  returned: when the image was made
  type: list
  elements: str
  sample: []
removed:
  description: What was removed.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: [name web]
"""

import re
import typing as t

from ansible_collections.cnvm.platform.plugins.module_utils._core import mmdebstrap
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import check_own_name, is_digest
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import absolute_path, integer, size_bytes
from ansible_collections.cnvm.platform.plugins.module_utils._host import bundles
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module
from ansible_collections.cnvm.platform.plugins.module_utils._oci.members import Policy

_MODE = re.compile(r"[0-7]{1,5}\Z")


def argument_spec() -> dict[str, t.Any]:
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "archive": {"type": "str"},
        "rootfs": {"type": "str"},
        "oci_layout": {"type": "str"},
        "mmdebstrap": {"type": "dict", "options": mmdebstrap.argument_spec()},
        "files": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "path": {"type": "str", "required": True},
                "content": {"type": "str", "required": True},
                "mode": {"type": "raw", "default": "0644"},
                "owner": {"type": "str"},
            },
        },
        "config": {
            "type": "dict",
            "default": {},
            "options": {
                "args": {"type": "list", "elements": "str"},
                "env": {"type": "dict"},
                "cwd": {"type": "str"},
                "user": {"type": "str"},
                "login_user": {"type": "str"},
            },
        },
        "fingerprint": {"type": "str"},
        "digest": {"type": "str"},
        "refresh": {"type": "bool", "default": False},
        "dest": {"type": "str"},
        "compression": {"type": "str", "choices": ["zstd", "xz", "gzip", "none"], "default": "zstd"},
        "allow_setuid": {"type": "bool", "default": False},
        "allow_devices": {"type": "bool", "default": False},
        "foreign_settings": {"type": "str", "choices": ["refuse", "drop"], "default": "refuse"},
        "max_bytes": {"type": "raw", "default": "64G"},
        "max_entries": {"type": "raw", "default": 5000000},
        "max_ratio": {"type": "raw", "default": 200},
    }


def expected_digest(value: t.Optional[str]) -> str:
    """The digest that is asked for, without its algorithm."""
    digest = (value or "").removeprefix("sha256:")
    if digest and not is_digest(digest):
        raise InputError(f"digest: {value!r} is not allowed.", hint="Allowed: 64 hexadecimal digits in lower case.")
    return digest


def wanted_image(params: t.Mapping[str, t.Any]) -> bundles.Wanted:
    """The image that the module's options describe."""
    name = check_own_name(params["name"], "name")
    kind = next((source for source in bundles.SOURCES if params[source]), "")
    if not kind:
        raise InputError("No source is given.", hint=f"Give one of: {', '.join(bundles.SOURCES)}.")
    if kind == "mmdebstrap":
        mmdebstrap.read(params[kind], kind)
    else:
        absolute_path(params[kind], kind)
    for item in params["files"]:
        absolute_path(item["path"], "files.path")
        if item["path"].endswith("/"):
            raise InputError(f"files.path: {item['path']!r} names no file.", hint="Leave the slash at its end out.")
        # YAML makes the number 420 of an unquoted 0644, so that only text is clear.
        if not isinstance(item["mode"], str) or not _MODE.match(item["mode"]):
            raise InputError(
                f"files.mode: {item['mode']!r} is not allowed.", hint='Allowed: octal digits in quotes, such as "0644".'
            )
    return bundles.Wanted(
        name=name,
        kind=kind,
        source=params[kind],
        overrides={key: value for key, value in params["config"].items() if value},
        files=params["files"],
        fingerprint=params["fingerprint"] or "",
        drop_foreign=params["foreign_settings"] == "drop",
        policy=Policy(
            allow_devices=params["allow_devices"],
            allow_setuid=params["allow_setuid"] or kind == "mmdebstrap",
            allow_fifos=False,
            max_bytes=size_bytes(params["max_bytes"], "max_bytes", least=1),
            max_entries=integer(params["max_entries"], "max_entries", least=1, most=2**31),
            max_ratio=integer(params["max_ratio"], "max_ratio", least=0, most=10**6),
        ),
        digest=expected_digest(params["digest"]),
        dest=absolute_path(params["dest"], "dest") if params["dest"] else "",
        compression=params["compression"],
    )


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    if params["state"] == "absent":
        return bundles.take_away(params["name"], check_mode=check_mode)
    return bundles.bring_to(host, wanted_image(params), refresh=params["refresh"], check_mode=check_mode)


def main() -> None:
    run_module(work, argument_spec(), mutually_exclusive=[list(bundles.SOURCES)])


if __name__ == "__main__":
    main()
