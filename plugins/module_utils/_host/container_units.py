# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The systemd units that supervise containers."""

from __future__ import annotations

import os
import time
import typing as t

from .._core import paths
from . import files, freezer, movedir
from .system import Host

_UNITS = "/etc/systemd/system"
_WANTS = f"{_UNITS}/multi-user.target.wants"
_UNIT_FILE = f"{_UNITS}/cnvm-container@.service"
_SHOW = "Id,ActiveState,SubState,Result,MainPID,NRestarts,ActiveEnterTimestamp,ExecMainStatus"
# The unit's own TimeoutStopSec covers a stop up to here.
_STOP_COVERED_S = 30
# How long the end of a container may take until systemd has decided what follows (TimeoutStopSec is 40 s).
_DECIDED_S = 45
_RESTART = {"always": "always", "on_failure": "on-failure", "never": "no"}


def states(host: Host, names: t.Sequence[str]) -> dict[str, dict[str, str]]:
    """What systemd says of the units of ``names``, in one question."""
    if not names:
        return {}
    units = {paths.unit_name(name): name for name in names}
    shown = host.run(["systemctl", "show", "--timestamp=unix", f"--property={_SHOW}", "--", *units])
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for block in shown.stdout.split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if fields.get("Id") in units:
            found[units[fields["Id"]]] = fields
    return found


def is_active(unit: t.Mapping[str, str]) -> bool:
    return unit.get("ActiveState") in ("active", "activating", "reloading")


def has_done_its_work(definition: t.Mapping[str, t.Any], unit: t.Mapping[str, str]) -> bool:
    """Whether a container that was started has ended well, and is not started anew for that."""
    return definition["restart"] != "always" and unit.get("SubState") == "dead" and unit.get("Result") == "success"


def is_wanted(host: Host, journal: t.Mapping[str, t.Any]) -> bool:
    """Whether systemd, by the restart policy, has a container run in whose move we are: it is up, is about to be
    started anew, or was to be and was turned away. Waits while one that ends just now is cleared away."""
    name = journal["name"]
    end = time.monotonic() + _DECIDED_S
    while time.monotonic() < end:
        unit = states(host, [name])[name]
        if unit.get("ActiveState") == "active" and freezer.populated(paths.payload_cgroup(name)):
            return True
        if unit.get("ActiveState") not in ("active", "deactivating"):
            # systemd forgets how a unit ended that nothing refers to.
            turned_away = files.read_json(paths.turned_away_file(name)) or {}
            return is_active(unit) or turned_away.get("move_id") == journal["move_id"]
        time.sleep(0.05)
    return True


def start_again(host: Host, journal: t.Mapping[str, t.Any]) -> bool:
    """At the end of a move: start its container where it is to run and does not; whether that was done.

    It is to run when the move had ended it (``anew`` in the journal). What ended by itself is left to its restart
    policy, as without a move; so is what a boot has ended: it runs if it starts with the host. From now on the journal
    must not turn it away any more (see ``supervise``).
    """
    name = journal["name"]
    if not journal.get("running") or freezer.populated(paths.payload_cgroup(name)):
        return False
    # Asked in any case: a unit that is about to be turned away would take no notice of a start.
    wanted = is_wanted(host, journal)
    booted = journal["boot_id"] != movedir.boot_id()
    if not (wanted or journal.get("anew") or (booted and is_enabled(name))):
        return False
    host.run(["systemctl", "start", paths.unit_name(name)], check=False, timeout_s=30)
    return True


def is_enabled(name: str) -> bool:
    """Whether the container starts with the host."""
    return os.path.islink(f"{_WANTS}/{paths.unit_name(name)}")


def enable(name: str, wanted: bool) -> bool:
    """Let it start with the host, or not; whether that is a change. systemd reads the link at the next boot."""
    if is_enabled(name) == wanted:
        return False
    link = f"{_WANTS}/{paths.unit_name(name)}"
    if wanted:
        os.makedirs(_WANTS, exist_ok=True)
        os.symlink(_UNIT_FILE, link)
    else:
        os.unlink(link)
    files.sync_dir(_WANTS)
    return True


def policy(definition: t.Mapping[str, t.Any]) -> str:
    """What the unit of this container has other than the template; empty: nothing."""
    lines = []
    if definition.get("restart", "always") != "always":
        lines.append(f"Restart={_RESTART[definition['restart']]}")
    if definition.get("stop_timeout_s", 10) > _STOP_COVERED_S:
        lines.append(f"TimeoutStopSec={definition['stop_timeout_s'] + 10}s")
    return "\n".join(["[Service]", *lines, ""]) if lines else ""


def write_policy(definition: t.Mapping[str, t.Any]) -> bool:
    """Write the unit's drop-in; True when systemd has to read its files again."""
    directory = f"{_UNITS}/{paths.unit_name(definition['name'])}.d"
    path = f"{directory}/policy.conf"
    wanted = policy(definition)
    if not wanted:
        if not os.path.isdir(directory):
            return False
        files.remove_tree(directory)
        return True
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == wanted:
                return False
    except FileNotFoundError:
        pass
    files.write_text(path, wanted)
    return True


def remove(name: str) -> bool:
    """Take away what is the container's own of its unit; True when systemd has to read its files again."""
    enable(name, False)
    directory = f"{_UNITS}/{paths.unit_name(name)}.d"
    if not os.path.isdir(directory):
        return False
    files.remove_tree(directory)
    return True


def reload(host: Host) -> None:
    """Let systemd read its files."""
    host.run(["systemctl", "daemon-reload"])
