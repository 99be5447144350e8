# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The archive of a checkpoint: what its manifest says, whether what came with it is that, and who may restore it.

CRIU takes a changed byte for memory and hangs on a file that was cut off. So every file stands in the manifest with
its size and sha256, and nothing is done before all of them are compared.
"""

from __future__ import annotations

import hashlib
import json
import typing as t

from .._core.errors import InputError
from .._core.names import check_name, is_digest
from . import plan

SCHEMA = 1
MANIFEST, DEFINITION, LAYER, IMAGES = "manifest.json", "definition.json", "layer.tar", "images"
TOP = (MANIFEST, DEFINITION, LAYER, IMAGES)
MOST_MANIFEST = 4 * 2**20
_TEXTS = ("name", "uuid", "image", "runtime", "runtime_version", "criu", "kernel", "architecture")

Stamp = tuple[int, str]  # size, sha256


def _digest(value: t.Mapping[str, t.Any]) -> str:
    plain = {key: part for key, part in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def manifest(
    definition: t.Mapping[str, t.Any], generation: int, side: plan.Side, files: t.Mapping[str, Stamp], created: str
) -> bytes:
    """The manifest of a checkpoint that was made on ``side``."""
    runtime = str(definition.get("runtime", "runc"))
    value: dict[str, t.Any] = {
        "schema": SCHEMA, "kind": "cnvm checkpoint", "name": definition["name"], "uuid": definition["uuid"],
        "generation": generation, "image": definition["image"], "image_name": definition.get("image_name") or "",
        "address": definition.get("address") or "", "host": side.name, "created": created, "runtime": runtime,
        "runtime_version": str((side.runtimes.get(runtime) or {}).get("version") or ""), "criu": side.criu,
        "kernel": side.kernel, "architecture": side.architecture, "cpu_flags": sorted(side.cpu_flags),
        "files": {path: {"size": size, "sha256": digest} for path, (size, digest) in sorted(files.items())},
    }  # fmt: skip
    value["digest"] = _digest(value)
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def parse(data: bytes, path: str) -> dict[str, t.Any]:
    """The manifest in ``data``; InputError when it is none, or not as it was written."""

    def refuse(why: str) -> InputError:
        return InputError(f"path: {path} is no checkpoint that can be used: {why}.", hint="It is refused as a whole.")

    try:
        value = json.loads(data)
    except ValueError as error:
        raise refuse(f"its manifest cannot be read ({error})") from error
    if not isinstance(value, dict) or value.get("kind") != "cnvm checkpoint":
        raise refuse("it has no manifest of a checkpoint")
    if value.get("schema") != SCHEMA:
        raise refuse(f"its manifest has the schema {value.get('schema')!r}, this version knows {SCHEMA}")
    if value.get("digest") != _digest(value):
        raise refuse("its manifest was changed or damaged")
    files = value.get("files")
    texts = [value.get(key) for key in _TEXTS]
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in texts):
        raise refuse("its manifest lacks something")
    for name, stamp in files.items():
        parts = name.split("/")
        if parts[0] not in TOP or len(parts) > 2 or any(part in ("", ".", "..") for part in parts):
            raise refuse(f"its manifest names {name!r}")
        if (
            not isinstance(stamp, dict)
            or not isinstance(stamp.get("size"), int)
            or not is_digest(str(stamp.get("sha256")))
        ):
            raise refuse(f"its manifest says nothing of use of {name!r}")
    check_name(value["name"], "path: name in the manifest")
    return value


def total_bytes(made: t.Mapping[str, t.Any]) -> int:
    """The bytes of all files."""
    return sum(int(stamp["size"]) for stamp in made["files"].values())


def differences(made: t.Mapping[str, t.Any], found: t.Mapping[str, t.Optional[Stamp]]) -> list[str]:
    """How what was unpacked (None: no plain file) is not what the manifest says, one sentence each."""
    problems = []
    for path, stamp in sorted(made["files"].items()):
        if path not in found:
            problems.append(f"{path} is missing.")
            continue
        there = found[path]
        if there is None:
            problems.append(f"{path} is no plain file.")
        elif there[0] != stamp["size"]:
            problems.append(f"{path} has {there[0]} bytes, not {stamp['size']}.")
        elif there[1] != stamp["sha256"]:
            problems.append(f"{path} was changed: its sha256 is another one.")
    problems += [f"{path} does not belong to it." for path in sorted(found) if path not in made["files"]]
    return problems


def _mounts(definition: t.Mapping[str, t.Any]) -> list[tuple[str, str]]:
    return sorted((str(one.get("destination")), str(one.get("type", "bind"))) for one in definition.get("mounts") or ())


def blockers(
    made: t.Mapping[str, t.Any], theirs: t.Mapping[str, t.Any], mine: t.Mapping[str, t.Any], side: plan.Side,
    cpu_check: str,
) -> list[str]:  # fmt: skip
    """Why the checkpoint cannot be restored into the container ``mine`` of the host ``side``; all reasons.

    ``theirs``: the definition it was made of. Only compared: what the container may do, ``mine`` decides.
    """
    name, found = mine["name"], []
    if made["image"] != mine["image"]:
        found.append(
            f"{name} is made of the image {mine['image'][:16]}, the checkpoint of {made['image'][:16]}"
            f" ({made.get('image_name') or 'no name'})."
        )
    if made["runtime"] != mine.get("runtime", "runc"):
        found.append(f"{name} runs under {mine.get('runtime', 'runc')}, the checkpoint was made by {made['runtime']}.")
    if (theirs.get("address") or "") != (mine.get("address") or ""):
        found.append(
            f"{name} has the address {mine.get('address') or 'none'}, the checkpoint {theirs.get('address') or 'none'}:"
            " its connections would be dead."
        )
    if _mounts(theirs) != _mounts(mine):
        found.append(
            f"{name} has other mounts than the checkpoint: {_said(_mounts(mine))}, not {_said(_mounts(theirs))}."
        )
    if made["architecture"] != side.architecture:
        found.append(f"{side.name} is {side.architecture}, the checkpoint is of {made['architecture']}.")
    runtime = side.runtimes.get(made["runtime"]) or {}
    if not runtime.get("checkpoint"):
        found.append(f"{side.name}: {made['runtime']} cannot restore: {runtime.get('reason') or 'CRIU does not work'}.")
    for what, here in (("criu", side.criu), ("kernel", side.kernel)):
        if plan.version(here)[:2] < plan.version(made[what])[:2]:
            found.append(f"{side.name} has {what} {here or 'none'}, older than {made[what]} of the checkpoint.")
    lost = sorted(set(made.get("cpu_flags") or ()) - side.cpu_flags)
    if lost and cpu_check == "flags":
        found.append(
            f"The CPU of {side.name} lacks {', '.join(lost[:8])}, which {name} may be using."
            " Set cpu_check: none if you know that it does not."
        )
    return found


def _said(mounts: t.Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{destination} ({kind})" for destination, kind in mounts) or "none"
