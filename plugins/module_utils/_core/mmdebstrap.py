# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Root file systems made of Debian's packages: what users wrote, the command line, and what it says when it fails."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from . import values
from .errors import HostError, InputError
from .runner import first_line

PROGRAM = "mmdebstrap"
VARIANTS = ("minbase", "apt", "essential", "required", "important", "standard", "buildd")

_SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,63}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?([=/][A-Za-z0-9][A-Za-z0-9.+:~-]*)?\Z")
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9/-]*\Z")
_MIRROR = re.compile(r"(https?|ftp)://[^\s/]+(/\S*)?\Z|file:/\S+\Z")
# What apt says, and the option that it is about.
_SAID = (
    (re.compile(r"Unable to locate package|Couldn't find any package|(Version|Release) '.*' for '.*' was"), "packages"),
    (re.compile(r"has no installation candidate|unmet dependencies|Unable to correct problems"), "packages"),
    (re.compile(r"does not have a Release file"), "suite"),
    (re.compile(r"did not find any indices"), "components"),
    (re.compile(r"Could not resolve|Failed to fetch|Could not connect|Unable to connect|Connection failed"), "mirror"),
)
# A mirror that is being updated, or a link that was down for a moment.
_PASSING = re.compile(r"Failed to fetch|Hash Sum mismatch|unexpected size|Connection (failed|timed out|reset)")
_LASTING = re.compile(r"Could not resolve|does not have a Release file|Could not connect|Unable to connect")
_HINTS = {
    "packages": "Allowed: packages that the suite has, as 'apt list' shows them.",
    "suite": "Allowed: a release that the mirror has, such as trixie or bookworm.",
    "components": "Allowed: parts of the archive, such as main or contrib.",
    "mirror": "Allowed: the URL of an archive that the host reaches, such as http://deb.debian.org/debian.",
}


def argument_spec() -> dict[str, t.Any]:
    """The suboptions of a module's option that takes a recipe."""
    return {
        "suite": {"type": "str", "required": True},
        "packages": {"type": "list", "elements": "str", "default": []},
        "variant": {"type": "str", "choices": list(VARIANTS), "default": VARIANTS[0]},
        "components": {"type": "list", "elements": "str", "default": []},
        "mirror": {"type": "str"},
        "customize": {"type": "list", "elements": "str", "default": []},
    }


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a root file system is made of. ``mirror``: '' for the distribution's own archives; ``components``: none for
    main. ``customize``: shell commands to run in it."""

    suite: str
    packages: tuple[str, ...] = ()
    variant: str = VARIANTS[0]
    components: tuple[str, ...] = ()
    mirror: str = ""
    customize: tuple[str, ...] = ()


KEYS = tuple(field.name for field in dataclasses.fields(Recipe))


def _word(value: object, option: str, pattern: t.Pattern[str], allowed: str) -> str:
    if not isinstance(value, str) or not pattern.match(value):
        raise InputError(f"{option}: {value!r} is not allowed.", hint=f"Allowed: {allowed}.")
    return value


def _words(value: object, option: str) -> tuple[object, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{option}: {value!r} is not a list.", hint="Give a list.")
    return tuple(value)


def read(value: object, option: str) -> Recipe:
    """A recipe from the user's mapping ``option``. InputError names what is wrong."""
    item = values.known_keys(value, option, KEYS)
    mirror = item.get("mirror")
    commands = _words(item.get("customize"), f"{option}.customize")
    for command in commands:
        if not isinstance(command, str) or "\0" in command:
            raise InputError(f"{option}.customize: {command!r} is not text.", hint="Give a list of shell commands.")
    return Recipe(
        suite=_word(item.get("suite"), f"{option}.suite", _SUITE, "a release of the distribution, such as trixie"),
        packages=tuple(
            _word(each, f"{option}.packages", _PACKAGE, "names of packages, also as NAME=VERSION")
            for each in _words(item.get("packages"), f"{option}.packages")
        ),
        variant=values.choice(item.get("variant") or VARIANTS[0], f"{option}.variant", VARIANTS),
        components=tuple(
            _word(each, f"{option}.components", _COMPONENT, "parts of the archive, such as main or contrib")
            for each in _words(item.get("components"), f"{option}.components")
        ),
        mirror=_word(mirror, f"{option}.mirror", _MIRROR, "a URL with http, https, ftp or file") if mirror else "",
        customize=t.cast("tuple[str, ...]", commands),
    )


def argv(recipe: Recipe, target: str, more: t.Sequence[str] = ()) -> list[str]:
    """Makes the root file system in the directory ``target``. ``more``: further options."""
    words = [PROGRAM, "--mode=root", "--format=directory", f"--variant={recipe.variant}"]
    if recipe.packages:
        words.append(f"--include={','.join(recipe.packages)}")
    if recipe.components:
        words.append(f"--components={','.join(recipe.components)}")
    return [*words, *more, "--", recipe.suite, target, *([recipe.mirror] if recipe.mirror else [])]


def may_pass(said: str) -> bool:
    """Whether a run that failed with these words may succeed a moment later."""
    return bool(_PASSING.search(said)) and not _LASTING.search(said)


def failure(said: str, recipe: Recipe, option: str) -> InputError | HostError:
    """The exception for a run that failed, from what it wrote: the first error, not the last, says why."""
    errors = [line for line in map(str.strip, said.splitlines()) if line.startswith("E: ")]
    first = ((errors[0][3:] if errors else first_line(said)) or "no output").rstrip(".") + "."
    details = {"stderr": said[-6000:]}
    if "No space left on device" in said:
        return HostError(
            "There is no room left on this host to unpack the packages.",
            hint="Make room below /var/lib/cnvm.",
            **details,
        )
    if "is not signed" in first:
        return HostError(
            f"{option}: nobody vouches for the packages of {recipe.suite}: {first}",
            hint="Install the distribution's keyring on the host, such as debian-archive-keyring.",
            **details,
        )
    named = next((name for pattern, name in _SAID if pattern.search(first)), "")
    if named:
        return InputError(f"{option}.{named}: {first}", hint=_HINTS[named], **details)
    return HostError(f"{option}: {PROGRAM} failed: {first}", hint="All that it said is in stderr.", **details)
