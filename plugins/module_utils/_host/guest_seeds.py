# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The cloud-init seed of a guest: its own data, and what follows from its definition."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core import paths
from .._libvirt.guest_definition import address_of, openstack_network, static_network
from . import seeds
from .disks import Attributes
from .system import Host


@dataclasses.dataclass(frozen=True)
class Seed:
    """A seed as it is to be. ``record``: what the definition keeps of it. ``changed``: it has to be written."""

    data: dict[str, t.Any]
    policy: str
    record: dict[str, t.Any]
    changed: bool
    warnings: tuple[str, ...] = ()


def data_of(item: t.Mapping[str, t.Any], overlay: t.Optional[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """What is told to the guest beside its name: the user's data, and its overlay address unless they say otherwise."""
    data = {key: value for key, value in item["cloud_init"].items() if key != "policy"}
    if data.get("network_config") in (None, "", {}) and address_of(item) and overlay:
        network = static_network(item, overlay)
        data["network_config"] = openstack_network(network) if data.get("type") == "configdrive" else network
    return data


def wanted(host: Host, item: t.Mapping[str, t.Any], overlay: t.Optional[t.Mapping[str, t.Any]]) -> t.Optional[Seed]:
    """The seed of a guest, compared with the one that is there; None when it is to have none."""
    if item["cloud_init"] is None:
        return None
    data, policy, name = data_of(item, overlay), item["cloud_init"]["policy"], item["name"]
    made = seeds.write(host, paths.guest_seed(name), data, policy, name=name, option=_option(name), check_mode=True)
    record = {"digest": made.digest, "instance_id": made.instance_id, "policy": policy}
    return Seed(data, policy, record, made.changed, made.warnings)


def write(host: Host, name: str, seed: Seed) -> None:
    """Make it. Only root and QEMU's user, to whom libvirt gives it, can read it."""
    attributes = Attributes(uid=0, gid=0, mode=0o600)
    seeds.write(
        host, paths.guest_seed(name), seed.data, seed.policy, name=name, option=_option(name), attributes=attributes
    )


def _option(name: str) -> str:
    return f"guests: {name}: cloud_init"
