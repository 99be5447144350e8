# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host gets which clones: the plan of the role guest_fleet, made on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guest_fleet
short_description: Spread clones over hosts
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Decides which host gets which clones of a description, always the same way. Nothing is asked and nothing is done.
  - A clone that some host has stays there. Each of the others goes to the host with the fewest of its set, then the
    fewest of its group, then the largest part of its memory left.
positional: _input, hosts
options:
  _input:
    description:
      - The clones, as the role takes them (C(guest_fleet_clones)), or a text with a line C(template:count:group:type)
        for each set, or that list as YAML.
    type: raw
    required: true
  hosts:
    description:
      - What each host has, by name, with the keys C(memory_mib) (or C(meminfo), the text of its C(/proc/meminfo)) and
        C(guests) (what M(cnvm.platform.guest_info) returns). With C(templates) (what M(cnvm.platform.template_info)
        returns) a plan is refused when a host lacks one that it needs. Where C(libvirt) is false no clone goes.
    type: dict
    required: true
  others:
    description:
      - Hosts that get no clone, by name, with what came of M(cnvm.platform.guest_info) there. Clones that they have are
        not made again. When one of them did not answer and there are clones that no other has, the plan is refused.
    type: dict
    default: {}
  gone:
    description: Those of O(others) that need not answer, as they are gone for good.
    type: list
    elements: str
    default: []
  check_mode:
    description:
      - Whether no room for a clone, and a template that a host lacks, are only told as C(warnings). Clones without room
        have no place then.
    type: bool
    default: false
  tell:
    description: Whether a refusal is returned as C(refused), instead of an error.
    type: bool
    default: false
  placement:
    description:
      - Where each clone is to be, C(placement) of what this has returned before. With it nothing is decided, and only
        C(calls) is returned, of the names in O(hosts).
    type: dict
  defaults:
    description: What all sets have that do not say otherwise, with the keys C(guest), C(disk), C(linked) and C(state).
    type: dict
    default: {}
  max_per_host:
    description: How many of all these clones a host gets at most. V(0) is no limit.
    type: int
    default: 0
  memory_reserve_mib:
    description: MiB of each host that no clone gets.
    type: int
    default: 512
  memory_overcommit:
    description:
      - How much memory guests may have together, as a multiple of the host's. What each starts with counts, so
        C(max_memory_mib) where it has that.
    type: float
    default: 1.0
"""

EXAMPLES = r"""
- name: See which host would get what
  ansible.builtin.debug:
    msg: "{{ 'debian-13:4:front:web' | cnvm.platform.guest_fleet(hosts, defaults={'guest': {'memory_mib': 512}}) }}"
  vars:
    hosts:
      host1: {memory_mib: 8192, guests: []}
      host2: {memory_mib: 4096, guests: []}
"""

RETURN = r"""
_value:
  description:
    - C(calls) has, by host, the options for M(cnvm.platform.guest_clone), one mapping for each set. C(placement) has
      the host of each clone, C(elsewhere) those that a host has which is not among O(hosts). C(new) lists those that no
      host has yet, and C(templates) which hosts need which template for them. C(silent) says why a host of O(others) is
      not known, and C(warnings) has clones that are to be absent and that such a host may have; it has those of
      O(check_mode), too. C(refused) is there alone, with O(tell).
  type: dict
"""

import io
import typing as t

from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.yaml import yaml_load

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CnvmError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import fleet


def guest_fleet(
    description: object,
    hosts: object,
    defaults: t.Optional[t.Mapping[str, t.Any]] = None,
    max_per_host: object = 0,
    memory_reserve_mib: object = 512,
    memory_overcommit: object = 1,
    others: t.Optional[t.Mapping[str, t.Any]] = None,
    gone: object = None,
    tell: bool = False,
    check_mode: bool = False,
    placement: t.Optional[t.Mapping[str, str]] = None,
) -> dict[str, t.Any]:
    """The plan; what is in the way of one comes out as the filter's error, or is told."""
    try:
        if isinstance(description, str) and fleet.is_yaml(description):
            description = read_yaml(description)
        if placement is not None:
            names = [str(name) for name in t.cast("t.Mapping[str, t.Any]", hosts)]
            return {"calls": fleet.calls(description, names, placement, defaults)}
        return fleet.plan(
            description,
            hosts,
            defaults=defaults,
            max_per_host=max_per_host,
            reserve_mib=memory_reserve_mib,
            overcommit=memory_overcommit,
            others=others,
            gone=gone,
            check_mode=check_mode,
        )
    except CnvmError as error:
        if tell:
            return {"refused": str(error)}
        raise AnsibleFilterError(f"guest_fleet: {error}") from error


def read_yaml(text: str) -> object:
    """A description that is YAML. The error has no piece of it: there may be passwords in it."""
    try:
        # Ansible's own kinds of text are none to the parser, and before 2.19 str() leaves them what they are.
        return yaml_load(io.StringIO(text))
    except Exception as error:  # noqa: BLE001 - yaml.YAMLError, which this room does not import
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"The description is not YAML{where}: {getattr(error, 'problem', None) or type(error).__name__}.",
            hint="Write one set of clones per item, each after '- '.",
        ) from None


class FilterModule:
    """Ansible's way to find it."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"guest_fleet": guest_fleet}
