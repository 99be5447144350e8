# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The options of a move, for the action plugins and the helper alike, and a request made of them.

And those by which the peers are asked who has a workload, for all modules that make one.
"""

from __future__ import annotations

import json
import typing as t

from .._core.errors import InputError
from .._core.names import check_name
from .._core.values import boolean, choice, integer, known_keys
from .plan import MODES
from .wire import MOST_MIB_S

# Numbers are text here: the helper decodes them strictly (a survey sends text, YAML makes 1 of true).
CONTAINER: dict[str, dict[str, t.Any]] = {
    "container": {"type": "raw", "required": True},
    "target": {"type": "raw", "required": True},
    "mode": {"type": "str", "default": "auto", "choices": list(MODES)},
    "allow_post_copy": {"type": "bool", "default": False},
    "max_downtime_ms": {"type": "raw", "default": 0},
    "cpu_check": {"type": "str", "default": "flags", "choices": ["flags", "none"]},
    "timeout_s": {"type": "raw", "default": 600},
}
GUEST: dict[str, dict[str, t.Any]] = {
    "guest": {"type": "raw", "required": True},
    "target": {"type": "raw", "required": True},
    "max_downtime_ms": {"type": "raw", "default": 300},
    "bandwidth_mib_s": {"type": "raw", "default": 0},
    "connections": {"type": "raw", "default": 1},
    "auto_converge": {"type": "bool", "default": True},
    "allow_post_copy": {"type": "bool", "default": False},
    "timeout_s": {"type": "raw", "default": 3600},
}
# Documented in the fragment ``peers``.
PEERS: dict[str, dict[str, t.Any]] = {
    "unreachable_peers": {"type": "str", "choices": ["refuse", "ignore"], "default": "refuse"},
    "ask_timeout_s": {"type": "raw", "default": 10},
}


def parse_request(text: str) -> dict[str, t.Any]:
    """A request as an action plugin sends it, checked: ``kind``, ``name``, and the options of the kind but its name."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InputError(f"The request is no JSON: {error}.") from error
    if isinstance(given, dict) and "guest" in given:
        return _guest(given)
    known_keys(given, "request", tuple(CONTAINER))
    return {
        "kind": "container",
        "name": check_name(given.get("container"), "container"),
        "target": check_name(given.get("target"), "target"),
        "mode": choice(given.get("mode", "auto"), "mode", MODES),
        "allow_post_copy": boolean(given.get("allow_post_copy", False), "allow_post_copy"),
        "max_downtime_ms": integer(given.get("max_downtime_ms", 0), "max_downtime_ms", least=0, most=3_600_000),
        "cpu_check": choice(given.get("cpu_check", "flags"), "cpu_check", ("flags", "none")),
        "timeout_s": integer(given.get("timeout_s", 600), "timeout_s", least=10, most=86_400),
    }


def _guest(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    known_keys(given, "request", tuple(GUEST))

    def number(option: str, least: int, most: int) -> int:
        return integer(given.get(option, GUEST[option]["default"]), option, least=least, most=most)

    connections = number("connections", 1, 16)
    post_copy = boolean(given.get("allow_post_copy", False), "allow_post_copy")
    if post_copy and connections > 1:
        raise InputError("allow_post_copy: QEMU does it over one connection alone.", hint="Leave connections out.")
    return {
        "kind": "guest",
        "name": check_name(given.get("guest"), "guest"),
        "target": check_name(given.get("target"), "target"),
        "max_downtime_ms": number("max_downtime_ms", 1, 60_000),
        "bandwidth_mib_s": number("bandwidth_mib_s", 0, MOST_MIB_S),
        "connections": connections,
        "allow_post_copy": post_copy,
        "auto_converge": boolean(given.get("auto_converge", True), "auto_converge"),
        "timeout_s": number("timeout_s", 10, 604_800),
    }
