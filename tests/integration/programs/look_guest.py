# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: what there is of a guest and of its moves, as one JSON object."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import subprocess
import sys

NAME = sys.argv[1]
IMAGES = "/var/lib/libvirt/images"
HOME = f"/var/lib/cnvm/workloads/{NAME}"


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def locked() -> str:
    path = f"/run/cnvm/locks/{NAME}.lock"
    if not os.path.exists(path):
        return ""
    with open(path, "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().decode() or "locked"
    return ""


def emulators() -> int:
    """How many QEMUs have this guest, whatever libvirt says."""
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            words = read(f"/proc/{entry}/cmdline").split("\0")
            count += "qemu-system" in words[0] and f"guest={NAME},debug-threads=on" in words
    return count


def ports(*what: str) -> list[str]:
    """Where a guest could arrive, or does."""
    found = [line.split()[3 - ("-l" not in what)] for line in output("ss", "-Htn", *what).splitlines()]
    return [one for one in found if 49152 <= int(one.rpartition(":")[2]) < 49216]


def working() -> list[str]:
    """The hosts' ways to each other, and what answers there: nobody has any but for a move."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            words = read(f"/proc/{entry}/cmdline").split("\0")
            if "/usr/local/sbin/cnvm-host" in words or "/etc/cnvm/ssh/config" in words:
                found.append(" ".join(words))
    return found


def listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def files() -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(top, name), HOME) for top, _dirs, names in os.walk(HOME) for name in names
    )


units = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "cnvm-move-*", "cnvm-resolve-*")
state = output("virsh", "domstate", NAME)
print(
    json.dumps(
        {
            "state": state,
            "log": os.path.exists(f"/var/log/cnvm/guests/{NAME}.log"),
            "job": output("virsh", "domjobinfo", NAME).split()[2:3] if state else [],
            "emulators": emulators(),
            "ports": ports("-l"),
            "connected": ports("state", "established"),
            "journal": read(f"{HOME}/move.json"),
            "owner": json.loads(read(f"{HOME}/owner.json") or "{}"),
            "files": files(),
            # With what is not finished, and the second names of what is coming.
            "images": [path for name in (f"{NAME}-*", ".cnvm-*") for path in glob.glob(f"{IMAGES}/{name}")],
            "move_dirs": listed("/run/cnvm/moves"),
            "templates": listed("/var/lib/cnvm/templates/building"),
            "processes": working(),
            "locked": locked(),
            "units": units.splitlines(),
        }
    )
)
