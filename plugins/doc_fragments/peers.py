# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the other hosts are asked by the modules that make a workload, which may be on one host only."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  unreachable_peers:
    description:
      - What to do when a host of the overlay does not answer, so that it is not known whether it has a workload that is
        to be made here. V(ignore) is for hosts that are gone for good.
    type: str
    choices: [refuse, ignore]
    default: refuse
  ask_timeout_s:
    description: Seconds that the hosts of the overlay have to answer, from 1 to 600.
    type: raw
    default: 10
"""
