# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Clones of a template on this host: guests like others, described together."""

from __future__ import annotations

import typing as t

from .._core import paths
from .._libvirt import clones
from . import files, guests, libvirt, ownership, templates
from .system import Host


def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The work of the module guest_clone: bring the clones to what is wanted."""
    return bring_to(
        host,
        {key: params[key] for key in clones.KEYS},
        restart_on_change=params["restart_on_change"],
        check_mode=check_mode,
        **ownership.asking(params),
    )


def bring_to(
    host: Host,
    values: object,
    *,
    restart_on_change: bool = False,
    ignore_unreachable: bool = False,
    ask_timeout_s: float = 10,
    check_mode: bool = False,
    uri: str = libvirt.URI,
) -> dict[str, t.Any]:
    """Bring the clones to what is wanted; the module's result. Refused when a template under them has changed, unless
    they are to end."""
    wanted = clones.normalise(values)
    digest = templates.resolve(wanted.template) if wanted.template else ""
    if wanted.state not in ("absent", "stopped"):
        for one in sorted({digest, *_rest_on(wanted)} - {""}):
            templates.check(one, remember=not check_mode)
    result = guests.bring_to(
        host,
        [dict(item) for item in wanted.items],
        restart_on_change=restart_on_change,
        ignore_unreachable=ignore_unreachable,
        ask_timeout_s=ask_timeout_s,
        check_mode=check_mode,
        uri=uri,
    )
    result["clones"] = result.pop("guests")
    result["warnings"] = clones.together(result["warnings"], {clone.name for clone in wanted.clones})
    result["template"] = {"name": wanted.template, "digest": digest or None} if wanted.template else None
    return result


def _rest_on(wanted: clones.Wanted) -> set[str]:
    """Digests of the templates that those rest on that are there already."""
    definitions = [files.read_json(paths.definition_file(clone.name)) or {} for clone in wanted.clones]
    return {digest for definition in definitions for digest in templates.below(definition)}
