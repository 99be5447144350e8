# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What has to be done to a container so that it is as the user wants it. Decided before anything is touched."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import Refused
from .definition import IN_PLACE, changed_keys, definition_of


@dataclasses.dataclass(frozen=True)
class Seen:
    """A container as a host has it. ``definition`` is None where there is none, ``owner`` where the host has no
    record of it at all; empty where only that of its owner is missing.

    ``here``: the owner record names this host. ``elsewhere``: the host that has it, by the record or by the peers.
    ``moving``: a move of it is not finished. ``active``: its unit is up or on its way. ``enabled``: it starts at boot.
    """

    definition: t.Optional[dict[str, t.Any]] = None
    owner: t.Optional[dict[str, t.Any]] = None
    here: bool = False
    elsewhere: str = ""
    moving: bool = False
    active: bool = False
    enabled: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps for one container, in this order: stop, remove or create or update, enable, start."""

    name: str
    elsewhere: str = ""
    create: bool = False
    remove: bool = False
    stop: bool = False
    start: bool = False
    enable: t.Optional[bool] = None
    definition: t.Optional[dict[str, t.Any]] = None
    changes: tuple[str, ...] = ()
    outdated: bool = False

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.create or self.remove or self.stop or self.start or self.changes or self.enable is not None)

    @property
    def restart(self) -> bool:
        """Whether a running container is stopped and started again."""
        return self.stop and self.start

    @property
    def actions(self) -> list[str]:
        """The steps as words."""
        words = []
        if self.stop:
            words.append("stop")
        if self.remove:
            words.append("remove")
        if self.create:
            words.append("create")
        words += [f"change {key}" for key in self.changes]
        if self.enable is not None:
            words.append("enable" if self.enable else "disable")
        if self.start:
            words.append("start")
        return words


def starts_with_host(definition: t.Mapping[str, t.Any]) -> bool:
    """Whether a container that runs starts with its host too."""
    return bool(definition.get("restart", "always") != "never")


def plan(
    item: t.Mapping[str, t.Any],
    seen: Seen,
    *,
    digest: str = "",
    image_name: str = "",
    new_uuid: str = "",
    restart_on_change: bool = True,
    image_change: bool = False,
) -> Plan:
    """The steps that bring the container of ``item`` (normal form) from ``seen`` to what is wanted.

    ``digest``, ``image_name``: what the item's image is on this host. Refused where it must not be done.
    """
    name, state = item["name"], item["state"]
    if seen.elsewhere:
        return Plan(name=name, elsewhere=seen.elsewhere)
    if seen.moving:
        raise Refused(
            f"Container {name!r} is in a move that is not finished; nothing is changed.",
            hint="Wait for it, or run the playbook cnvm.platform.recover.",
        )
    if state == "absent":
        return Plan(name=name, remove=seen.definition is not None or seen.owner is not None, stop=seen.active)
    at_boot = state == "running" and starts_with_host(item)
    if seen.definition is None:
        definition = definition_of(item, new_uuid, digest, image_name)
        start = state == "running"
        return Plan(name=name, create=True, start=start, enable=True if at_boot else None, definition=definition)
    return _change(item, seen, digest, image_name, at_boot, restart_on_change, image_change)


def _change(
    item: t.Mapping[str, t.Any],
    seen: Seen,
    digest: str,
    image_name: str,
    at_boot: bool,
    restart_on_change: bool,
    image_change: bool,
) -> Plan:
    name, state = item["name"], item["state"]
    before = t.cast("dict[str, t.Any]", seen.definition)
    after = definition_of(item, before["uuid"], digest, image_name)
    outdated = False
    if after["image"] != before["image"] and not image_change:
        if image_name and image_name == before.get("image_name"):
            # The name has got a new content; the container goes on with the one it was made of.
            outdated = True
            after["image"] = before["image"]
        else:
            raise Refused(
                f"Container {name!r} was made of the image {before.get('image_name') or before['image']}, "
                f"not of {item['image']}.",
                hint="Set image_change: true to put its writable layer over the other image, or remove it first.",
            )
    changes = tuple(changed_keys(before, after))
    hard = [key for key in changes if key not in IN_PLACE]
    if hard and seen.active and state != "stopped" and not restart_on_change:
        raise Refused(
            f"Container {name!r} would have to be restarted for: {', '.join(hard)}.",
            hint="Set restart_on_change: true; the writable layer is kept.",
        )
    restart = bool(hard) and seen.active
    start = (state == "running" and not seen.active) or (restart and state != "stopped")
    enable: t.Optional[bool] = None
    if state == "running" and seen.enabled != at_boot:
        enable = at_boot
    elif seen.enabled and (state == "stopped" or not starts_with_host(item)):
        enable = False
    return Plan(
        name=name,
        stop=seen.active and (restart or state == "stopped"),
        start=start,
        enable=enable,
        definition=after,
        changes=changes,
        outdated=outdated,
    )
