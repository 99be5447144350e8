# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Seeds of a host: ISO images with what a guest is told at boot."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import stat
import typing as t

from .._core import paths
from .._core.errors import CommandError, HostError, InputError, Refused
from .._core.values import choice, known_keys, listed
from .._image import seed
from .._image.definition import account_of, mode_of, path_of
from .._image.seed import DATA_KEYS, POLICIES, Data, Decision, Mark
from .._image.userdata import YamlReader
from . import disks, distribution, files
from .system import Host

ITEM_KEYS = ("path", "state", "policy", "owner", "group", "mode", *DATA_KEYS)
STATES = ("present", "absent")
_QUOTED = re.compile(r"(['\"])(?!<[a-z ]+>['\"]).*\1", re.DOTALL)
# All of them take mkisofs's options.
PROGRAMS = (("xorriso", "-no_rc", "-as", "mkisofs"), ("genisoimage",), ("mkisofs",))


@functools.cache
def _yaml() -> t.Any:
    """PyYAML; None where this host has none. Loaded when there is something to read: not every guest has a seed."""
    try:
        with distribution.libraries():
            import yaml
    except ImportError:
        return None
    return yaml


def yaml_reader() -> YamlReader:
    """A reader of YAML that says what is wrong without quoting it, or None where this host has no PyYAML."""
    return None if _yaml() is None else _read_yaml


def _read_yaml(text: str) -> t.Any:
    yaml = _yaml()
    base: t.Any = yaml.SafeLoader

    class Loader(base):
        """Refuses a key that is there twice: the last one would silently win."""

        def construct_mapping(self, node: t.Any, deep: bool = False) -> t.Any:
            seen = set()
            for key, _value in node.value:
                name = getattr(key, "value", None)
                if isinstance(name, str) and key.tag != "tag:yaml.org,2002:merge":
                    if name in seen:
                        raise ValueError(f"a key is there twice (line {key.start_mark.line + 1})")
                    seen.add(name)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        # It may quote a value: a password that begins with '*' or '!' is an alias or a tag to YAML.
        what = _QUOTED.sub("…", str(getattr(error, "problem", None) or "it cannot be read"))
        raise ValueError(f"{what}{place}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of a seed. ``new_instance``: the guest will take itself for a new one at its next boot."""

    changed: bool
    instance_id: str
    new_instance: bool
    digest: str
    warnings: tuple[str, ...] = ()


def look(path: str) -> t.Optional[Mark]:
    """The mark of the seed at ``path``; None where there is no file. Refused when it is something else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is no plain file.", hint="Give another path.")
    with disks.File(path) as image:
        mark = seed.read_mark(image.read(seed.DESCRIPTOR_AT, 2048), image.size)
    if mark is None:
        raise Refused(
            f"{path} is no seed that this collection made.",
            hint="Nothing is overwritten. Remove it, or give another path.",
        )
    return mark


def write(
    host: Host,
    path: str,
    data: t.Mapping[str, t.Any],
    policy: str = "new_instance",
    *,
    name: str = "",
    attributes: t.Optional[disks.Attributes] = None,
    option: str = "cloud_init",
    check_mode: bool = False,
) -> Written:
    """Make sure that the seed at ``path`` holds ``data`` (the keys are ``_image.seed.DATA_KEYS``).

    ``policy``: whether a guest is a new instance when the data change. ``name`` is the guest's where they name no
    other. ``option`` names them in messages.
    """
    made = seed.normalise(data, option, yaml_reader(), name)
    decision = seed.decide(made, choice(policy, f"{option}: policy", POLICIES), path, look(path))
    if decision.write and not check_mode:
        _make(host, path, made, decision, attributes)
    return Written(decision.write, decision.instance_id, decision.new_instance, decision.digest, made.warnings)


def _make(host: Host, path: str, data: Data, decision: Decision, attributes: t.Optional[disks.Attributes]) -> None:
    program = next((words for words in PROGRAMS if shutil.which(words[0])), None)
    if program is None:
        raise HostError("The program xorriso is missing on this host.", hint="Install the package xorriso.")
    # In memory, and for root only: the data may be secrets. The name is that of the path: a killed run's is found.
    place = _workshop(path)
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    with disks.appearing(path, attributes) as iso:
        # They are gone by the time the seed is there: nobody makes one again that is there.
        files.remove_tree(place)
        os.mkdir(place, 0o700)
        try:
            for name, text in seed.contents(data, decision.instance_id).items():
                os.makedirs(os.path.dirname(f"{place}/{name}"), mode=0o700, exist_ok=True)
                files.write_text(f"{place}/{name}", text, mode=0o600, durable=False)
            host.run([*program, "-quiet", "-o", iso, "-V", seed.LABELS[data.kind], "-J", "-r", place])
        except CommandError as error:
            if "No space left" in str(error.details.get("stderr")):
                raise HostError(f"There is no room left for {path}.", hint="Make room there.") from None
            raise
        finally:
            files.remove_tree(place)
        with open(iso, "r+b") as file:
            file.seek(seed.MARK_AT)
            file.write(seed.mark_of(decision.digest, decision.instance_id))
        if look(iso) != Mark(data.kind, decision.digest, decision.instance_id):
            raise HostError(f"{program[0]} made no seed of {path}.", hint="Install the package xorriso.")


def _workshop(path: str) -> str:
    """Where the data lie of which the seed at ``path`` is made."""
    return f"{paths.RUN}/seeds/{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def remove_unfinished(path: str) -> None:
    """Remove the data of which the seed at ``path`` was being made when that was cut off."""
    files.remove_tree(_workshop(path))


def remove(path: str, *, check_mode: bool = False) -> bool:
    """Remove the seed at ``path``; whether it was there. Refused when it is no seed."""
    if not check_mode:
        remove_unfinished(path)
    if look(path) is None:
        return False
    if not check_mode:
        files.remove_file(path, durable=True)
    return True


def bring_to(host: Host, items: object, *, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring seeds to what is wanted; the module's result. Nothing is written before all of them were checked."""
    reader = yaml_reader()
    wanted: list[tuple[str, str, str, str, disks.Attributes, dict[str, t.Any]]] = []
    for number, item in enumerate(listed(items, "seeds")):
        known_keys(item, f"seeds[{number}]", ITEM_KEYS)
        path = path_of(item.get("path"), f"seeds[{number}].path")
        option = f"seeds: {path}"
        state = choice(item.get("state"), f"{option}: state", STATES, "present")
        policy = choice(item.get("policy"), f"{option}: policy", POLICIES, POLICIES[0])
        attributes = disks.attributes_of(
            option,
            account_of(item.get("owner"), f"{option}: owner"),
            account_of(item.get("group"), f"{option}: group"),
            mode_of(item.get("mode"), f"{option}: mode"),
        )
        data = {key: item.get(key) for key in DATA_KEYS}
        if state == "present":
            seed.normalise(data, option, reader)
        if any(path == other for other, *_rest in wanted):
            raise InputError(f"seeds: {path} is given twice.", hint="Each seed once.")
        wanted.append((path, option, state, policy, attributes, data))
    results = []
    warnings: list[str] = []
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for path, option, state, policy, attributes, data in wanted:
        with disks.at_work_on(path, check_mode=check_mode):
            mark = look(path)
            if mark is not None:
                before[path] = _shown(mark.kind, mark.digest, mark.instance_id, path)
            if state == "absent":
                changed = remove(path, check_mode=check_mode)
                results.append({"path": path, "changed": changed, "state": state})
                continue
            made = write(host, path, data, policy, attributes=attributes, option=option, check_mode=check_mode)
            changed = disks.set_attributes(path, attributes, check_mode=check_mode) or made.changed
            kind = data["type"] or "nocloud"
            after[path] = _shown(kind, made.digest, made.instance_id, path, attributes)
            warnings += made.warnings
            results.append(
                {
                    "path": path,
                    "changed": changed,
                    "state": state,
                    "type": kind,
                    "label": seed.LABELS[kind],
                    "instance_id": made.instance_id,
                    "new_instance": made.new_instance,
                    "digest": made.digest,
                }
            )
    return {
        "changed": any(one["changed"] for one in results),
        "seeds": results,
        "warnings": warnings,
        "diff": {"before": before, "after": after},
    }


def _shown(
    kind: str, digest: str, instance_id: str, path: str, attributes: t.Optional[disks.Attributes] = None
) -> dict[str, t.Any]:
    """A seed in a diff: what it holds may be secret, so only its digest is shown."""
    return {
        "type": kind,
        "data_sha256": digest,
        "instance_id": instance_id,
        **disks.shown_attributes(path, attributes),
    }
