# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Guests of many hosts in one list: chosen, as a table to read, and with the commands that lead to one of them."""

from __future__ import annotations

import shlex
import typing as t

from .._core.errors import InputError, Refused
from .._core.values import boolean
from .addresses import parsed
from .guest_definition import check_guest_name

COLUMNS = ("name", "host", "state", "address", "template", "group", "type")
_KEPT = ("state", "address", "address_source", "memory_mib", "vcpus", "console_command", "vnc", "managed")
_SAID = ("group", "type", "template")


def _answers(found: object) -> dict[str, t.Mapping[str, t.Any]]:
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise InputError("The guests are not given by host.", hint="Give what guest_info returned, by host.")
    return found


def rows_of(found: object) -> list[dict[str, t.Any]]:
    """A row for each guest of ``found`` ({host: what came of guest_info}), by name. One that was moved, or is on its
    way, is told where it is; where that is not known, where it went."""
    answers = _answers(found)
    rows = []
    newest: dict[str, tuple[int, bool]] = {}
    for guest in (guest for one in answers.values() for guest in one.get("guests") or ()):
        newest[guest["name"]] = max(newest.get(guest["name"], (-1, False)), _rank(guest))
    for host, one in answers.items():
        for guest in one.get("guests") or ():
            away = guest.get("state") == "moved" and not guest.get("managed")
            if (away or guest.get("moving")) and _rank(guest) < newest[guest["name"]]:
                continue
            tags = guest.get("tags") or {}
            rows.append(
                {
                    "name": str(guest["name"]),
                    "host": str(guest.get("placement") or "another host") if away else host,
                    **{key: guest.get(key) for key in _KEPT},
                    **{key: str(tags.get(key) or "") for key in _SAID},
                }
            )
    unique = {(row["name"], row["host"], row["state"]): row for row in rows}
    return [unique[key] for key in sorted(unique, key=lambda key: (key[0], key[1], str(key[2])))]


def _rank(guest: t.Mapping[str, t.Any]) -> tuple[int, bool]:
    """Which of two hosts knows more of a guest: the one with the newer record, then the one that has it."""
    return int(guest.get("generation") or -1), bool(guest.get("managed"))


def names_in(value: object, option: str) -> list[str]:
    """Names as a list, or as a text with commas."""
    if value in (None, ""):
        return []
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, list):
        raise InputError(f"{option}: {value!r} is no list of names.", hint="Allowed: name,name or a list.")
    return [check_guest_name(word, option) for word in words if word != ""]


def choose(
    found: object,
    others: object = None,
    *,
    names: object = None,
    group: object = "",
    kind: object = "",
    template: object = "",
    everything: object = False,
) -> list[dict[str, t.Any]]:
    """The rows of the collection's guests on the hosts of ``found`` that all words fit.

    ``others``: what came of guest_info on hosts with which nothing is done. Refused when nothing fits, or not one guest
    has each name, or one of the names is elsewhere.
    """
    wanted = names_in(names, "names")
    words = {"group": str(group or ""), "type": str(kind or ""), "template": str(template or "")}
    every = boolean(everything, "all")
    if not (wanted or any(words.values()) or every):
        raise InputError(
            "Which guests are meant is not said.",
            hint="Say it with -e guest=NAME, -e group=NAME, -e type=NAME, -e template=NAME or -e all=true.",
        )
    play = _answers(found)
    answers = {**_answers(others or {}), **play}
    silent = [host for host, one in answers.items() if not isinstance(one.get("guests"), list)]
    asked = f"Asked: {', '.join(host for host in answers if host not in silent) or 'none'}."
    if silent:
        asked += f" No answer came from {', '.join(silent)}."
    rows = rows_of(answers)
    for name in wanted:
        _check_place(name, [row for row in rows if row["name"] == name], play, asked)
    fitting = [
        row
        for row in rows
        if row["managed"]
        and (not wanted or row["name"] in wanted)
        and all(not word or row[key] == word for key, word in words.items())
    ]
    chosen = [row for row in fitting if row["host"] in play]
    if not chosen and not every:
        said = [f"{key} {word!r}" for key, word in words.items() if word]
        said += [f"name {', '.join(wanted)}"] if wanted else []
        away = f" On hosts that are not in this play: {_places(fitting)}." if fitting else ""
        raise Refused(f"No guest has {' and '.join(said)}.{away} {asked}", hint="See cnvm.platform.vm_list.")
    return chosen


def _places(rows: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    return ", ".join(f"{row['name']} ({row['host']})" for row in rows)


def _check_place(name: str, places: t.Sequence[t.Mapping[str, t.Any]], play: t.Mapping[str, t.Any], asked: str) -> None:
    """Refused unless one host of the play has the guest ``name``."""
    here = [row for row in places if row["managed"]]
    if len(here) > 1:
        raise Refused(
            f"Both {here[0]['host']} and {here[1]['host']} say that they have the guest {name!r}.",
            hint="Run the playbook cnvm.platform.recover.",
        )
    if not places:
        raise Refused(f"No host that was asked has a guest {name!r}. {asked}", hint="See cnvm.platform.vm_list.")
    if not here and places[0]["state"] != "moved":
        raise Refused(
            f"{places[0]['host']} has a domain {name!r} that was not made by this collection.",
            hint="Use virsh, or take it over with cnvm.platform.guest (adopt).",
        )
    at = (here or places)[0]["host"]
    if at not in play or not here:
        raise Refused(f"Guest {name!r} is at {at}. {asked}", hint="Take that host into the play.")


def table(rows: object, columns: t.Sequence[str] = COLUMNS) -> list[str]:
    """The rows as lines of text under a headline."""
    if not isinstance(rows, list):
        raise InputError("The rows are not a list.", hint="Give what guest_rows returned.")
    cells = [[column.upper() for column in columns]]
    cells += [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in cells]


def _in_brackets(address: str) -> str:
    """An IPv6 address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return "-" if value is None or value == "" else str(value)


# --------------------------------------------------------------------------------------------------------------------
# The way to one
# --------------------------------------------------------------------------------------------------------------------
def commands(guest: t.Mapping[str, t.Any], way: t.Mapping[str, t.Any], user: str = "") -> dict[str, str]:
    """Shell commands to a guest, '' where there is none: ``ssh`` through its host, ``console``, ``vnc``. People give
    them to a shell: of an address that is none, such as an option of ssh, there is no command.

    ``way``: Ansible's variables of the connection to the host. A jump with -J would know nothing of the key and the
    options that Ansible uses, so they are in a ProxyCommand when there are any.
    """
    local = way.get("ansible_connection") == "local"
    target = str(way.get("ansible_ssh_host") or way.get("ansible_host") or way.get("inventory_hostname"))
    login = way.get("ansible_ssh_user") or way.get("ansible_user")
    host = f"{login}@{target}" if login else target
    options = []
    key_file = way.get("ansible_ssh_private_key_file") or way.get("ansible_private_key_file")
    if key_file:
        options += ["-i", str(key_file)]
    for key in ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"):
        options += shlex.split(str(way.get(key) or ""))
    port = str(way.get("ansible_ssh_port") or way.get("ansible_port") or "")
    to_host = [] if local else ["ssh", *options, *(["-p", port] if port else [])]
    made = {"ssh": "", "console": "", "vnc": ""}
    address = parsed(guest.get("address"))
    if address:
        name = f"{user}@{address}" if user else str(address)
        jump: list[str] = []
        if options and not local:
            # ssh replaces what begins with a percent sign: here by the guest's own address.
            words = [word.replace("%", "%%") for word in to_host] + ["-W", "[%h]:%p", host.replace("%", "%%")]
            jump = ["-o", f"ProxyCommand={shlex.join(words)}"]
        elif not local:
            at = f"{login}@" if login else ""
            jump = ["-J", at + _in_brackets(target) + (f":{port}" if port else "")]
        made["ssh"] = shlex.join(["ssh", *jump, name])
    if guest.get("console_command"):
        words = shlex.split(str(guest["console_command"]))
        if boolean(way.get("ansible_become") or False, "ansible_become"):
            words = ["sudo", *words]
        made["console"] = shlex.join(words if local else [*to_host, "-t", host, shlex.join(words)])
    vnc = guest.get("vnc")
    if vnc and not local:
        made["vnc"] = shlex.join([*to_host, "-N", "-L", f"5900:{_in_brackets(str(vnc['listen']))}:{vnc['port']}", host])
    return made
