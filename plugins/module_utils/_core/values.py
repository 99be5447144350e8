# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Values as users and surveys write them, decoded strictly: what is not clearly meant is refused, by option name."""

from __future__ import annotations

import difflib
import re
import typing as t

from .errors import InputError

# Python makes no number of thousands of digits, and an infinite float of hundreds.
_INTEGER = re.compile(r"-?[0-9]{1,300}\Z", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]+)?)\s*([KMGT]i?B?|B)?\Z", re.ASCII)
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TRUE = ("true", "yes", "on", "1", "y", "t")
_FALSE = ("false", "no", "off", "0", "n", "f")
# The kernel takes 255 bytes for a name, and qcow2 has room for 1023 for the path of a backing file.
_NAME_BYTES, _PATH_BYTES = 255, 1023
PATH_RULE = (
    f"an absolute path without '.', '..' and control characters, of at most {_PATH_BYTES} bytes, "
    f"{_NAME_BYTES} between two slashes"
)


def integer(value: object, option: str, *, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``, given as a number or in decimal digits (a survey sends text)."""
    number: t.Optional[int] = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _INTEGER.match(value.strip()):
        number = int(value.strip())
    if number is None or not least <= number <= most:
        raise InputError(
            f"{option}: {value!r} is not allowed.", hint=f"Allowed: a whole number from {least} to {most}."
        )
    return number


def decimal(value: object, option: str, *, least: float, most: float) -> float:
    """A number from ``least`` to ``most``, whole or with a decimal point, given as a number or as text."""
    number: t.Optional[float] = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if least <= value <= most else None
    elif isinstance(value, str) and re.match(r"[0-9]+(\.[0-9]+)?\Z", value.strip(), re.ASCII):
        number = float(value.strip())
    if number is None or not least <= number <= most:
        raise InputError(f"{option}: {value!r} is not allowed.", hint=f"Allowed: a number from {least} to {most}.")
    return number


def boolean(value: object, option: str) -> bool:
    """True or false in the words that Ansible takes."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise InputError(f"{option}: {value!r} is not allowed.", hint="Allowed: true or false.")


def size_bytes(value: object, option: str, *, least: int = 0, most: int = 2**62) -> int:
    """Bytes from a number, or from text such as ``512M`` or ``1.5GiB`` (units are powers of 1024)."""
    found = _SIZE.match(value.strip()) if isinstance(value, str) else None
    number: t.Optional[int] = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif found:
        number = int(float(found.group(1)) * _UNITS[(found.group(2) or "")[:1]])
    if number is None or not least <= number <= most:
        raise InputError(
            f"{option}: {value!r} is not allowed.",
            hint=f"Allowed: bytes from {least} to {most}, or a number with K, M, G or T (powers of 1024).",
        )
    return number


def plain_text(value: object, option: str) -> str:
    """Text, empty where nothing is said. Of an unquoted 007, 1.10 or no YAML makes something else, and Ansible makes
    a number of ``{{ 7 }}`` though that is in quotes."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{option}: {value!r} is not text.",
            hint="Put it in quotes. What an expression gives becomes text with '| string'.",
        )
    return value


def has_control(text: str, *, but: str = "") -> bool:
    """Whether ``text`` has a control character that is not one of ``but``, or what XML or UTF-8 cannot hold."""
    return any(
        (each < " " and each not in but) or each in "\x7f\ufffe\uffff" or "\ud800" <= each <= "\udfff" for each in text
    )


def absolute_path(value: object, option: str) -> str:
    """A path in its shortest form. A relative one would mean another file for each user."""
    if value is None or value == "":
        raise InputError(f"{option} is missing.", hint=f"Give {PATH_RULE}.")
    value = plain_text(value, option)
    parts = [part for part in value.split("/") if part]
    path = "/" + "/".join(parts)
    good = value.startswith("/") and not {".", ".."} & set(parts) and not has_control(value)
    if not good or len(path.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        shown = value if len(value) <= 200 else value[:197] + "..."
        raise InputError(f"{option}: {shown!r} is not allowed.", hint=f"Allowed: {PATH_RULE}.")
    return path


def choice(value: object, option: str, allowed: t.Sequence[str], default: t.Optional[str] = None) -> str:
    """One of ``allowed``; ``default`` where nothing is said. YAML makes false of an unquoted ``off``."""
    if default is not None and (value is None or value == ""):
        return default
    if value is False and "off" in allowed:
        return "off"
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{option}: {value!r} is not allowed.", hint=f"Allowed: {', '.join(allowed)}.")
    return value


def listed(value: object, option: str) -> list[t.Any]:
    """A list; nothing, or a survey's empty answer, is an empty one. What it is instead may be secret."""
    # The last one is what Ansible makes of an empty text.
    if value is None or value == "" or value == [""]:
        return []
    if not isinstance(value, list):
        raise InputError(f"{option} is not a list.", hint="Write one value per line, each after '- '.")
    return value


def word_list(value: object, option: str) -> list[t.Any]:
    """A list of words, which may be one text with commas. Ansible splits such a text and leaves the blanks."""
    found = value.split(",") if isinstance(value, str) else listed(value, option)
    plain = [each.strip() if isinstance(each, str) else each for each in found]
    return [each for each in plain if each != ""]


def known_keys(item: object, option: str, allowed: t.Sequence[str]) -> dict[str, t.Any]:
    """``item`` when it is a mapping with no key outside ``allowed``. What it is instead may be secret."""
    hint = f"Allowed keys: {', '.join(sorted(allowed))}."
    if not isinstance(item, dict):
        raise InputError(f"{option} is not a mapping.", hint=hint)
    unknown = sorted(str(key) for key in item if key not in allowed)
    if unknown:
        nearest = "".join(f"Did you mean {word}? " for word in difflib.get_close_matches(unknown[0], allowed, 1))
        raise InputError(f"{option}: unknown key {unknown[0]!r}.", hint=nearest + hint)
    return t.cast("dict[str, t.Any]", item)


def human_bytes(number: float) -> str:
    """``number`` bytes as people read them: 3 significant digits, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    raise ValueError(number)
