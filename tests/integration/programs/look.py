# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: what there is of a container and of moves, as one JSON object."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import subprocess
import sys

NAME = sys.argv[1]


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def working() -> list[str]:
    """Processes of a move: every criu, and runtimes that checkpoint. (One that has restored goes on as the unit's.)"""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            words = read(f"/proc/{entry}/cmdline").split("\0")
            if read(f"/proc/{entry}/comm").strip() == "criu" or ("checkpoint" in words and "--image-path" in words):
                found.append(" ".join(words))
    return found


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


space = f"/run/netns/cnvm-{NAME}"
home = f"/var/lib/cnvm/workloads/{NAME}"
mounts = [line.split(" ")[4] for line in read("/proc/self/mountinfo").splitlines()]
units = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "cnvm-move-*", "cnvm-resolve-*")
events = read(f"/sys/fs/cgroup/cnvm.slice/cnvm-container@{NAME}.service/hold/payload/cgroup.events")
inside = ["ip", "netns", "exec", f"cnvm-{NAME}"]
print(
    json.dumps(
        {
            "move_dirs": os.listdir("/run/cnvm/moves") if os.path.isdir("/run/cnvm/moves") else [],
            "mounts": [path for path in mounts if "/run/cnvm/moves" in path or NAME in path.split("/")],
            "locked": locked(),
            "journal": read(f"{home}/move.json"),
            "owner": json.loads(read(f"{home}/owner.json") or "{}"),
            "home": sorted(os.listdir(home)) if os.path.isdir(home) else [],
            "units": units.split("\n")[:-1],
            "processes": working(),
            "space": str(os.stat(space).st_ino) if os.path.exists(space) else "",
            "drops": [line for line in output(*inside, "nft", "list", "tables").splitlines() if "CRIU" in line]
            if os.path.exists(space)
            else [],
            "forwards": [line for line in output("nft", "list", "tables").splitlines() if "cnvm_fwd" in line],
            "alive": "populated 1" in events,
            "at boot": glob.glob(f"/etc/systemd/system/*.wants/cnvm-container@{NAME}.service"),
            "frozen": "frozen 1" in events,
            "fifos": glob.glob(f"/run/cnvm/containers/{NAME}/incoming"),
            "boot_id": read("/proc/1/stat").split(" ")[21],
        }
    )
)
