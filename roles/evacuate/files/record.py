# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down what is away: ``record.py FILE``, with ``before`` and ``after`` as JSON on stdin; on the controller.

Two runs may empty the same host: each changes what it has changed itself since it wrote last, and leaves the rest of
the file as it is. A lock is held from reading to writing, on the directory: it leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys


def key_of(entry):
    """What tells one workload from another."""
    return entry["kind"], entry["name"]


def merged(there, before, after):
    """``there``, what the file has, with what makes ``after`` of ``before``. Who went last is the last one."""
    now = [key_of(entry) for entry in after]
    back = [entry for entry in before if key_of(entry) not in now]
    same = [entry for entry in before if key_of(entry) in now]
    count = 0
    while count < min(len(same), len(after)) and same[count] == after[count]:
        count += 1
    new = after[count:]
    gone = [key_of(entry) for entry in new]
    return [entry for entry in there if entry not in back and key_of(entry) not in gone] + new


def write(path, record):
    """The file is whole at any time."""
    made = path + ".new"
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(record, file, indent=4, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def main():
    path, change = os.path.realpath(sys.argv[1]), json.load(sys.stdin)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    there = None
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            there = json.load(file)
    record = merged(there or [], change["before"], change["after"])
    if record != there:
        write(path, record)
        sys.stdout.write("changed")


if __name__ == "__main__":
    main()
