# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Command lines of qemu-img, and what it says. Formats are always named: it never has to guess one."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from .._core.errors import HostError, Refused
from .._core.runner import CommandResult, reason
from .formats import FORMATS

PROGRAM = "qemu-img"
# What a program that reads an image from outside may take of the host's memory.
MOST_MEMORY_BYTES = 4 * 2**30
CHECK_CPU_S = 3600


def limited(argv: t.Sequence[str], *, file_bytes: int = 0, cpu_s: int = 0) -> list[str]:
    """``argv`` with limits on memory, on the size of files that it writes, and on its time."""
    limits = [f"--as={MOST_MEMORY_BYTES}"]
    if file_bytes:
        limits.append(f"--fsize={file_bytes}")
    if cpu_s:
        limits.append(f"--cpu={cpu_s}")
    return ["prlimit", *limits, "--", *argv]


@dataclasses.dataclass(frozen=True)
class Making:
    """How an image is made: what only its creation decides. Names are those of the options."""

    format: str
    subformat: str = ""
    preallocation: str = "off"
    cluster_bytes: int = 0
    compression: str = "none"

    @property
    def options(self) -> list[str]:
        """The values of ``-o``."""
        found = []
        if self.preallocation != "off":
            found.append(f"preallocation={self.preallocation}")
        if self.format == "qcow2":
            if self.cluster_bytes:
                found.append(f"cluster_size={self.cluster_bytes}")
            if self.compression == "zstd":
                found.append("compression_type=zstd")
        if self.format in ("vmdk", "vhd", "vhdx") and self.subformat:
            found.append(f"subformat={self.subformat}")
        if self.format == "vhd":
            # Else the size is rounded up to what a disk geometry of the nineties can express.
            found.append("force_size=on")
        if self.format == "vdi" and self.subformat == "fixed":
            found.append("static=on")
        return found

    @property
    def words(self) -> list[str]:
        """The options as arguments."""
        return ["-o", ",".join(self.options)] if self.options else []


def create(path: str, making: Making, virtual_bytes: int, backing: str = "", backing_format: str = "") -> list[str]:
    """Make an empty image, or an overlay on ``backing``."""
    argv = [PROGRAM, "create", "-q", "-f", FORMATS[making.format].driver, *making.words]
    if backing:
        argv += ["-b", backing, "-F", FORMATS[backing_format].driver]
    return [*argv, path, str(virtual_bytes)]


def convert(source: str, source_format: str, path: str, making: Making, *, into: bool = False) -> list[str]:
    """Copy the content of ``source`` (its backing files included) to ``path``; ``into`` an image that is there."""
    argv = [PROGRAM, "convert", "-q", "-f", FORMATS[source_format].driver, "-O", FORMATS[making.format].driver]
    if into:
        # It was made a moment ago: what is not written reads as zeros.
        argv.append("-n")
    else:
        if making.compression != "none":
            argv.append("-c")
        argv += making.words
    return [*argv, source, path]


def resize(path: str, kind: str, virtual_bytes: int, preallocation: str = "off") -> list[str]:
    """Change the virtual size."""
    argv = [PROGRAM, "resize", "-q", "-f", FORMATS[kind].driver]
    if preallocation != "off":
        argv.append(f"--preallocation={preallocation}")
    return [*argv, path, str(virtual_bytes)]


def rebase(path: str, kind: str, backing: str, backing_format: str, *, unsafe: bool) -> list[str]:
    """Give it another backing file, or none. ``unsafe``: only the name is changed, the content taken for the same."""
    argv = [PROGRAM, "rebase", "-q", "-f", FORMATS[kind].driver]
    if unsafe:
        argv.append("-u")
    if backing:
        argv += ["-F", FORMATS[backing_format].driver]
    return [*argv, "-b", backing, path]


def check(path: str, kind: str, repair: str = "none") -> list[str]:
    """Look for damage; ``repair``: ``leaks`` or ``all``."""
    argv = [PROGRAM, "check", "-f", FORMATS[kind].driver, "--output=json"]
    if repair != "none":
        argv += ["-r", repair]
    return [*argv, path]


def measure(source: str, source_format: str, kind: str) -> list[str]:
    """How much a conversion will need."""
    return [
        PROGRAM,
        "measure",
        "--output=json",
        "-f",
        FORMATS[source_format].driver,
        "-O",
        FORMATS[kind].driver,
        source,
    ]


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a check found. ``leaks``: clusters that nothing uses, harmless. ``corruptions``: content is at stake."""

    corruptions: int = 0
    leaks: int = 0
    errors: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0

    @property
    def good(self) -> bool:
        """Whether the content can be trusted."""
        return not self.corruptions and not self.errors

    def as_dict(self) -> dict[str, int]:
        """For the module's result."""
        return dataclasses.asdict(self)


def _object(text: str) -> dict[str, t.Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def read_check(result: CommandResult, path: str) -> t.Optional[Condition]:
    """What ``check`` said (its codes: 0 good, 2 corrupt, 3 leaks, 63 not supported); None when it cannot say."""
    if result.rc == 63:
        return None
    found = _object(result.stdout)
    if result.rc not in (0, 2, 3) or "check-errors" not in found:
        raise failure(result, path)

    def number(key: str) -> int:
        value = found.get(key, 0)
        return value if isinstance(value, int) else 0

    return Condition(
        corruptions=number("corruptions"),
        leaks=number("leaks"),
        errors=number("check-errors"),
        corruptions_fixed=number("corruptions-fixed"),
        leaks_fixed=number("leaks-fixed"),
    )


def read_measure(result: CommandResult) -> int:
    """The bytes that a conversion needs; 0 when it cannot be said."""
    value = _object(result.stdout).get("required") if not result.rc else None
    return value if isinstance(value, int) else 0


# Which one of several it was: "Could not open '/d': Failed to get "write" lock".
_LOCKED = re.compile(r"'([^'\n]+)': Failed to get ")


def failure(result: CommandResult, path: str) -> Refused | HostError:
    """The exception for a command of qemu-img that failed, in words that say what to do. ``path``: the image that it
    is about, as the user knows it; the command may work on a copy."""
    details = {"argv": list(result.argv), "rc": result.rc, "stderr": result.stderr}
    if result.rc == 127:
        return HostError(
            "The program qemu-img is missing on this host.", hint="Install qemu-utils (Debian) or qemu-img (EL)."
        )
    if 'Failed to get "' in result.stderr or "Failed to get shared" in result.stderr:
        locked = _LOCKED.search(result.stderr)
        return Refused(
            f"{locked.group(1) if locked else path}: the image is in use by another process, such as a running guest.",
            hint="Stop the guest first.",
            **details,
        )
    if "No space left on device" in result.stderr or "Disk quota exceeded" in result.stderr:
        return HostError(
            f"There is no room left for {path}.", hint="Make room there; what was there before is as it was.", **details
        )
    if result.rc in (153, -25) or "File too large" in result.stderr:
        return Refused(
            f"{path}: the result would be larger than its source says that it is.",
            hint="The source is refused. Get it again.",
            **details,
        )
    return HostError(f"{' '.join(result.argv[:2])} failed: {reason(result)}", hint="", **details)
