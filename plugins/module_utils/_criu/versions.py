# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Versions of CRIU and of the OCI runtimes as they print them, and which CRIU works on which kernel."""

from __future__ import annotations

import json
import re
import typing as t

Version = tuple[int, ...]

_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)

# From this kernel on, CRIU must be at least this version; why. The last entry that applies counts.
# 6.13: older CRIU ends at once, it cannot make sense of the kernel's features. 6.16: SO_PASSCRED is refused on inet
# sockets, which CRIU asked of every socket (checkpoint-restore/criu#2705, in 4.2).
_FLOORS: tuple[tuple[Version, Version, str], ...] = (
    ((6, 13), (4, 1), "older versions do not start on it"),
    ((6, 16), (4, 2), "older versions cannot save a process that has a network socket"),
)


def parse_version(text: str) -> Version:
    """The first dotted number in ``text`` (``6.18.44-fc`` gives (6, 18, 44)); empty where there is none."""
    found = _NUMBERS.search(text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def version_text(version: t.Sequence[int]) -> str:
    """(4, 2, 1) as ``4.2.1``."""
    return ".".join(str(part) for part in version)


def parse_criu_version(text: str) -> str:
    """``Version: 4.2.1`` of ``criu --version`` (a second line names the commit of a development build)."""
    found = re.search(r"^Version:\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def parse_runtime_version(text: str) -> str:
    """The version in ``runc --version`` (without what the distribution adds) or ``crun --version``."""
    found = re.search(r"^(?:runc|crun) version (\S+)", text, re.MULTILINE)
    return re.split(r"[+~]", found.group(1))[0] if found else ""


def parse_crun_flags(text: str) -> list[str]:
    """What a crun was built with: ``+SYSTEMD +CRIU …`` in ``crun --version``, without what is marked as missing."""
    return sorted(word[1:] for line in text.splitlines() for word in line.split() if re.match(r"\+[A-Z]", word))


def parse_runtime_features(text: str) -> dict[str, t.Any]:
    """The parts of ``runc features`` or ``crun features`` that matter here; empty for runtimes without that command.

    ``checkpoint``: the runtime says that it can checkpoint (runc: built in; crun: found libcriu when it was asked).
    """
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    notes = said.get("annotations") or {}
    names = ("org.opencontainers.runc.checkpoint.enabled", "run.oci.crun.checkpoint.enabled")
    answers = [notes[name] for name in names if name in notes]
    linux = said.get("linux") or {}
    return {
        "oci_version": str(said.get("ociVersionMax", "")),
        "checkpoint": bool(answers) and all(answer == "true" for answer in answers),
        "cgroup_v2": bool((linux.get("cgroup") or {}).get("v2")),
        "seccomp": bool((linux.get("seccomp") or {}).get("enabled")),
        "namespaces": sorted(str(name) for name in linux.get("namespaces") or []),
    }


def minimum_criu(kernel_release: str) -> str:
    """The oldest CRIU that works on a kernel; empty where every supported version does."""
    kernel = parse_version(kernel_release)
    floors = [floor for since, floor, dummy in _FLOORS if kernel and kernel[:2] >= since]
    return version_text(floors[-1]) if floors else ""


def pair_problem(criu: str, kernel_release: str) -> str:
    """Why this CRIU cannot work on this kernel and what to do; empty when nothing is known against it."""
    kernel, version = parse_version(kernel_release), parse_version(criu)
    if not kernel or not version:
        return ""
    # The newest reason: it asks for the most.
    for since, floor, reason in reversed(_FLOORS):
        if kernel[:2] >= since and version < floor:
            return (
                f"CRIU {criu} does not work on Linux {kernel_release}: from {version_text(since)} on, {reason}."
                f" Install CRIU {version_text(floor)} or newer, or run a kernel before {version_text(since)}."
            )
    return ""
