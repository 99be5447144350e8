# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a checkpoint, and who may restore it."""

from __future__ import annotations

import contextlib
import json
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._migrate import checkpoint, plan

SIDE = plan.Side(
    "host1", "x86_64", frozenset({"avx", "sse"}), "6.12.1", "4.2.1", frozenset(),
    {"runc": {"version": "1.3.6", "checkpoint": True}}, 2, frozenset(),
)  # fmt: skip
DEFINITION: dict[str, t.Any] = {"name": "web", "uuid": "u", "image": "a" * 64, "runtime": "runc", "address": "10.1.1.2"}
FILES = {"definition.json": (3, "b" * 64), "layer.tar": (10, "c" * 64), "images/pages-1.img": (4096, "d" * 64)}
DATA = checkpoint.manifest(DEFINITION, 4, SIDE, FILES, "2026-01-02T03:04:05Z")
MADE = checkpoint.parse(DATA, "/x")


def test_a_manifest_comes_back() -> None:
    assert (MADE["name"], MADE["generation"], MADE["host"], MADE["criu"]) == ("web", 4, "host1", "4.2.1")
    assert checkpoint.total_bytes(MADE) == 4109
    assert checkpoint.differences(MADE, dict(FILES)) == []


@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_no_byte_of_it_can_be_changed(at: int, bit: int) -> None:
    data = bytearray(DATA)
    data[at] ^= 1 << bit
    found = None
    with contextlib.suppress(InputError):
        found = checkpoint.parse(bytes(data), "/x")
    # Blanks between the words of the file mean nothing.
    assert found in (None, MADE)


@pytest.mark.parametrize("length", [0, 1, 100, len(DATA) - 3])
def test_it_cannot_be_cut_off(length: int) -> None:
    with pytest.raises(InputError, match="refused as a whole"):
        checkpoint.parse(DATA[:length], "/x")


def resealed(**changes: t.Any) -> bytes:
    value = {**MADE, **changes}
    value["digest"] = checkpoint._digest(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "images/../x", "images/a/b", "work/x", "images//x", "answer", ".", "images/", ""]
)
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(InputError, match="names"):
        checkpoint.parse(resealed(files={name: {"size": 1, "sha256": "b" * 64}}), "/x")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2}, {"kind": "x"}, {"files": []}, {"files": {"layer.tar": 5}}, {"name": "../x"}, {"name": 5},
        {"files": {"layer.tar": {"size": "1", "sha256": "b" * 64}}}, {"criu": None},
        {"files": {"layer.tar": {"size": 1, "sha256": "B"}}},
    ],
)  # fmt: skip
def test_manifests_that_say_nothing_of_use(changes: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        checkpoint.parse(resealed(**changes), "/x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer.tar": None}, "layer.tar is no plain file."),
        ({"layer.tar": (9, "c" * 64)}, "layer.tar has 9 bytes, not 10."),
        ({"layer.tar": (10, "e" * 64)}, "layer.tar was changed: its sha256 is another one."),
        ({"images/x": (1, "e" * 64)}, "images/x does not belong to it."),
        ({"images/x": None}, "images/x does not belong to it."),
    ],
)
def test_differences(change: dict[str, t.Any], said: str) -> None:
    assert checkpoint.differences(MADE, {**FILES, **change}) == [said]


def test_a_missing_file() -> None:
    assert checkpoint.differences(MADE, {"layer.tar": FILES["layer.tar"]}) == [
        "definition.json is missing.", "images/pages-1.img is missing.",
    ]  # fmt: skip


def blockers(mine: t.Optional[t.Mapping[str, t.Any]] = None, cpu_check: str = "flags", **side: t.Any) -> list[str]:
    mine = DEFINITION if mine is None else mine
    return checkpoint.blockers(MADE, DEFINITION, mine, SIDE._replace(**side), cpu_check)


def test_nothing_in_the_way() -> None:
    assert blockers() == []
    assert blockers(criu="4.3", kernel="6.18.1", cpu_flags=SIDE.cpu_flags | {"amx"}) == []
    assert blockers({**DEFINITION, "name": "other", "uuid": "v"}) == []


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        ({"image": "e" * 64}, "is made of the image eeee"),
        ({"runtime": "crun"}, "runs under crun, the checkpoint was made by runc"),
        ({"address": "10.1.1.3"}, "has the address 10.1.1.3, the checkpoint 10.1.1.2"),
        ({"address": ""}, "has the address none"),
        (
            {"mounts": [{"destination": "/data", "type": "bind"}]},
            "has other mounts than the checkpoint: /data (bind), not none",
        ),
    ],
)
def test_the_receivers_definition_decides(mine: dict[str, t.Any], said: str) -> None:
    found = blockers({**DEFINITION, **mine})
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("side", "said"),
    [
        ({"architecture": "aarch64"}, "host1 is aarch64"),
        ({"runtimes": {}}, "runc cannot restore: CRIU does not work"),
        ({"criu": "4.1"}, "has criu 4.1, older than 4.2.1"),
        ({"kernel": "6.1"}, "has kernel 6.1, older than 6.12.1"),
        ({"cpu_flags": frozenset({"sse"})}, "lacks avx"),
    ],
)
def test_hosts_that_cannot(side: dict[str, t.Any], said: str) -> None:
    found = blockers(**side)
    assert len(found) == 1
    assert said in found[0]


def test_a_cpu_that_is_not_looked_at() -> None:
    assert blockers(cpu_check="none", cpu_flags=frozenset()) == []
