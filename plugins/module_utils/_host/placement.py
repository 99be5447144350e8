# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Where workloads (containers and guests) are: on this host, and by what its peers on the overlay say.

``cnvm-host placement`` answers for this host (peers call it over SSH); ``cnvm-host placement ask`` asks all peers at
once. Records are compared by owner and generation, never by time.
"""

from __future__ import annotations

import json
import os
import threading
import typing as t

from .._core import paths
from .._core.errors import CnvmError, HostError, InputError
from . import files
from .system import Host

# What a peer may say at most; more is an error and not read.
_MOST_ANSWER = 8 << 20


def local_placement() -> dict[str, t.Any]:
    """All that this host knows of workloads: its own, those it gave away, and those it is about to create."""
    identity = files.read_json(paths.HOST_FILE) or {}
    workloads: dict[str, t.Any] = {}
    try:
        names = sorted(os.listdir(paths.WORKLOADS))
    except FileNotFoundError:
        names = []
    for name in names:
        owner = files.read_json(paths.owner_file(name))
        if owner is None:
            continue
        definition = files.read_json(paths.definition_file(name)) or {}
        mine = owner.get("owner") == identity.get("host_id")
        workloads[name] = {
            "kind": owner.get("kind", "container"),
            "owner": owner.get("owner"),
            "owner_name": owner.get("owner_name"),
            "generation": owner.get("generation"),
            "uuid": owner.get("uuid"),
            # An address is taken where the container is, not where it was.
            "address": (definition.get("address") or owner.get("address") or "") if mine else "",
            "macs": _macs(definition) or owner.get("macs") or [] if mine else [],
            "here": mine,
            "claim": bool(owner.get("claim")),
            "moving": os.path.exists(paths.journal_file(name)),
        }
    return {"schema": 1, "host_id": identity.get("host_id"), "name": identity.get("name"), "workloads": workloads}


def _macs(definition: t.Mapping[str, t.Any]) -> list[str]:
    """The MACs of a guest's cards."""
    return [card["mac"] for card in definition.get("networks") or () if card.get("mac")]


def _ask_one(host: Host, peer: t.Mapping[str, t.Any], timeout_s: float, answers: dict[str, t.Any]) -> None:
    name = str(peer["name"])
    argv = [
        "ssh",
        "-F",
        paths.SSH_CONFIG,
        "-o",
        f"HostName={peer.get('tunnel') or peer.get('underlay')}",
        "--",
        name,
        "placement",
    ]
    try:
        result = host.run(argv, stdin="{}", check=False, timeout_s=timeout_s)
        if result.rc:
            said = (result.stderr.strip().splitlines() or ["no answer"])[-1]
            answers[name] = {"ok": False, "error": f"{said} (code {result.rc})"}
            return
        if len(result.stdout) > _MOST_ANSWER:
            raise ValueError("too long")
        answer = json.loads(result.stdout)
        if not isinstance(answer, dict) or not isinstance(answer.get("workloads"), dict):
            raise ValueError("no object")
        for each in answer["workloads"].values():
            if not isinstance(each, dict) or not isinstance(each.get("generation"), (int, type(None))):
                raise ValueError("a workload that is none")
        answers[name] = {"ok": True, "workloads": answer["workloads"], "host_id": answer.get("host_id")}
    except (CnvmError, OSError, ValueError, RecursionError) as error:
        answers[name] = {"ok": False, "error": str(error)[:300]}


def ask_peers(host: Host, overlay: t.Mapping[str, t.Any], *, timeout_s: float = 10) -> dict[str, t.Any]:
    """``{peer: {"ok": True, "workloads": {…}} | {"ok": False, "error": …}}`` of all peers, asked at once.

    ``host.run`` must bear threads: the helper's does, a module's does not (see ``ask``).
    """
    answers: dict[str, t.Any] = {}
    threads = [
        threading.Thread(target=_ask_one, args=(host, peer, timeout_s, answers), daemon=True)
        for peer in overlay.get("peers") or []
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 5)
    names = [str(peer["name"]) for peer in overlay.get("peers") or []]
    return {name: answers.get(name, {"ok": False, "error": "no answer in time"}) for name in names}


def ask(host: Host, overlay: t.Mapping[str, t.Any], *, timeout_s: float = 10) -> dict[str, t.Any]:
    """``ask_peers`` for whoever asks: for a module the helper does it, in a process of its own."""
    if host.is_helper:
        return ask_peers(host, overlay, timeout_s=timeout_s)
    result = host.run([paths.HELPER, "placement", "ask", str(timeout_s)], timeout_s=timeout_s + 20)
    try:
        return t.cast("dict[str, t.Any]", json.loads(result.stdout)["peers"])
    except (ValueError, KeyError) as error:
        raise HostError(
            f"{paths.HELPER} placement ask gave no answer: {error}.", hint="Run the role host_bootstrap again."
        ) from error


def placement(args: t.Sequence[str], host: Host) -> int:
    """``cnvm-host placement [ask [SECONDS]]``."""
    if not args:
        answer = local_placement()
    elif args[0] == "ask" and len(args) <= 2:
        overlay = files.read_json(paths.OVERLAY_FILE) or {}
        answer = {"peers": ask_peers(host, overlay, timeout_s=float(args[1]) if len(args) > 1 else 10)}
    else:
        raise InputError("Usage: cnvm-host placement [ask [SECONDS]].")
    if host.stdout is not None:
        host.stdout.write(json.dumps(answer, sort_keys=True).encode() + b"\n")
        host.stdout.flush()
    return 0


def commands() -> dict[str, t.Callable[[t.Sequence[str], Host], int]]:
    """For the helper's command table."""
    return {"placement": placement}
