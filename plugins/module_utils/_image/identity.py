# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""What makes a machine that one and no other, and how it is taken out of its disk: as scripts for debugfs.

debugfs (e2fsprogs) reads and writes ext file systems by itself: no kernel mounts an image that nobody vouches for. A
script can also read and write files of the host, so that nothing of the image gets into one but names of a few harmless
characters.
"""

from __future__ import annotations

import dataclasses
import re
import stat
import typing as t

from .._core.errors import Refused

PROGRAM = "debugfs"
# Emptied, not removed: systemd makes a new one at boot, and takes an absent one for the first boot of all.
MACHINE_ID = "/etc/machine-id"
# Files that are removed, by directory.
FILES: dict[str, str] = {
    # Of dhcpcd before 7.
    "/etc": r"dhcpcd\.(duid|secret)",
    "/etc/ssh": r"ssh_host_.*",
    "/etc/udev/rules.d": r"70-persistent-net\.rules",
    "/var/lib/dbus": r"machine-id",
    "/var/lib/dhclient": r".*\.leases?",
    "/var/lib/dhcp": r".*\.leases?",
    "/var/lib/dhcpcd": r"duid|secret|.*\.lease6?",
    "/var/lib/NetworkManager": r".*\.lease|secret_key|seen-bssids|timestamps",
    "/var/lib/systemd": r"random-seed|credential\.secret",
    "/var/lib/urandom": r"random-seed",
    "/var/lib/wicked": r"duid\.xml|iaid\.xml|lease-.*\.xml",
}
# Directories that are emptied with all below them: what cloud-init knows of its instance, with seeds that lie there.
TREES = ("/var/lib/cloud",)
# Debian's sshd does not start without host keys and makes none by itself; cloud-init does, where it runs.
SSH_UNITS = ("/lib/systemd/system/ssh.service", "/usr/lib/systemd/system/ssh.service")
SSH_DROP_IN = "/etc/systemd/system/ssh.service.d/cnvm-host-keys.conf"
SSH_DROP_IN_TEXT = """\
# Written by cnvm.platform: a clone makes its own host keys at its first start.
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""
# Where else a machine has its directories.
TABLE = "/etc/fstab"
_MOST_TABLE_BYTES = 2**20
MOST_DEPTH = 12
MOST_ENTRIES = 20_000

_LINE = re.compile(r"/(\d+)/([0-7]{6})/\d+/\d+/([^/]*)/(\d*)/\Z")
_HARMLESS = re.compile(r"[A-Za-z0-9@._:+=-][A-Za-z0-9@._:+=, ~-]*\Z", re.ASCII)
_PROMPT = "debugfs: ls -p "


@dataclasses.dataclass(frozen=True)
class Entry:
    """A name in a directory."""

    name: str
    mode: int
    size: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether something may be below it."""
        return stat.S_ISDIR(self.mode)


Listings = t.Mapping[str, t.Sequence[Entry]]


def look(directories: t.Iterable[str]) -> str:
    """A script that lists directories; those that are not there say so on stderr."""
    return "".join(f"ls -p {_quoted(directory)}\n" for directory in directories)


def _quoted(path: str) -> str:
    """A path as a word of a script. Refused where it is none."""
    if not all(_HARMLESS.match(part) for part in path.strip("/").split("/") if part) or len(path) > 4000:
        raise Refused(
            f"The image has a file with a strange name: {path[:200]!r}.",
            hint="Its identity is not reset. Remove the file in a guest of the image, or set reset_identity: false.",
        )
    return f'"{path}"' if " " in path else path


def read(text: str) -> dict[str, list[Entry]]:
    """What such a script said, by directory."""
    found: dict[str, list[Entry]] = {}
    current: t.Optional[list[Entry]] = None
    for line in text.splitlines():
        if line.startswith(_PROMPT):
            current = found.setdefault(line[len(_PROMPT) :].strip().strip('"'), [])
            continue
        parts = _LINE.match(line)
        if current is not None and parts and parts.group(3) not in (".", "..", ""):
            current.append(Entry(parts.group(3), int(parts.group(2), 8), int(parts.group(4) or 0)))
    return found


def first_directories() -> list[str]:
    """What is looked at first."""
    units = {path.rpartition("/")[0] for path in (*SSH_UNITS, SSH_DROP_IN)}
    return sorted({"/etc", *FILES, *TREES, *units, "/etc/systemd/system"})


def is_root(listings: Listings) -> bool:
    """Whether it is the file system that a machine boots from."""
    return any(entry.name in ("os-release", "passwd", "machine-id") for entry in listings.get("/etc", ()))


def has_table(listings: Listings) -> bool:
    """Whether it says which other file systems are mounted."""
    found = [entry for entry in listings.get("/etc", ()) if f"/etc/{entry.name}" == TABLE]
    return any(stat.S_ISREG(entry.mode) and entry.size <= _MOST_TABLE_BYTES for entry in found)


def check_mounts(table: str) -> None:
    """Refused where, by its fstab, what is to be reset lies in another file system than the root."""
    for line in table.splitlines():
        words = line.split()
        place = words[1].rstrip("/") if len(words) > 1 and not words[0].startswith("#") else ""
        if place and any(f"{directory}/".startswith(f"{place}/") for directory in first_directories()):
            raise Refused(
                f"The image has {place[:200]} in a file system of its own: the identity in that cannot be reset.",
                hint="Reset it in the guest (or with virt-sysprep), and set reset_identity: false.",
            )


def deeper(listings: Listings) -> list[str]:
    """Directories that have to be looked at, too, before all is known. Refused where there are too many."""
    if sum(map(len, listings.values())) > MOST_ENTRIES:
        raise Refused("The image has too many files below its cloud-init directory.", hint="Clear it in a guest first.")
    found = []
    for directory, entries in listings.items():
        if _in_trees(directory):
            if directory.count("/") > MOST_DEPTH:
                raise Refused(f"The image's {directory[:200]} is too deep.", hint="Clear it in a guest first.")
            below = [f"{directory}/{entry.name}" for entry in entries if entry.is_directory]
            found += [path for path in below if path not in listings]
    return sorted(found)


def _in_trees(directory: str) -> bool:
    return any(directory == tree or directory.startswith(f"{tree}/") for tree in TREES)


def reset(listings: Listings, empty: str, drop_in: str) -> tuple[list[str], list[str]]:
    """(script, words for people). ``empty`` and ``drop_in`` are files of the host: nothing, and SSH_DROP_IN_TEXT."""
    script: list[str] = []
    done: list[str] = []
    for entry in listings.get("/etc", ()):
        if entry.name == "machine-id" and (entry.size or not stat.S_ISREG(entry.mode)):
            script += [f"rm {MACHINE_ID}", f"write {empty} {MACHINE_ID}"]
            done.append(MACHINE_ID)
    for directory, pattern in FILES.items():
        for entry in listings.get(directory, ()):
            if re.fullmatch(pattern, entry.name) and stat.S_ISREG(entry.mode):
                path = f"{directory}/{entry.name}"
                script.append(f"rm {_quoted(path)}")
                done.append(path)
    for directory in sorted(listings, key=lambda path: (-path.count("/"), path)):
        if _in_trees(directory):
            for entry in listings[directory]:
                path = f"{directory}/{entry.name}"
                script.append(f"{'rmdir' if entry.is_directory else 'rm'} {_quoted(path)}")
                done += [path] if directory in TREES else []
    return [*script, *_host_keys(listings, drop_in, done)], done


def _host_keys(listings: Listings, drop_in: str, done: list[str]) -> list[str]:
    """What lets Debian's sshd make host keys, where there are none from now on."""
    directory, _slash, name = SSH_DROP_IN.rpartition("/")

    def there(path: str) -> bool:
        above, _cut, last = path.rpartition("/")
        return any(entry.name == last for entry in listings.get(above, ()))

    removed = any(path.startswith("/etc/ssh/") for path in done)
    if not removed or not any(there(unit) for unit in SSH_UNITS) or there(SSH_DROP_IN):
        return []
    return [*([] if there(directory) else [f"mkdir {directory}"]), f"write {drop_in} {directory}/{name}"]
