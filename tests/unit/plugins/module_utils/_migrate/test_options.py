# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a move stand in three places and are said alike; a request is read strictly."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._migrate.options import CONTAINER, GUEST, parse_request
from ansible_collections.cnvm.platform.plugins.modules import container_migrate, guest_migrate

ROOT = Path(__file__).resolve().parents[5]


@pytest.mark.parametrize(("module", "spec"), [(container_migrate, CONTAINER), (guest_migrate, GUEST)])
def test_documentation_has_the_same_options(module: t.Any, spec: dict[str, t.Any]) -> None:
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in documented.items()
    } == spec


def test_role_has_the_same_defaults() -> None:
    defaults = yaml.safe_load((ROOT / "roles/migrate/defaults/main.yml").read_text(encoding="utf-8"))
    assert defaults == {f"migrate_{name}": one["default"] for name, one in GUEST.items() if "default" in one}


def test_role_has_the_same_modes() -> None:
    specs = yaml.safe_load((ROOT / "roles/teleport/meta/argument_specs.yml").read_text(encoding="utf-8"))
    modes = [
        one["choices"] for name, one in specs["argument_specs"]["main"]["options"].items() if name.endswith("mode")
    ]
    assert modes == [CONTAINER["mode"]["choices"]]


def test_a_request_has_all_options() -> None:
    assert parse_request('{"container": "web", "target": "host2", "timeout_s": "60"}') == {
        "kind": "container", "name": "web", "target": "host2", "mode": "auto", "allow_post_copy": False,
        "max_downtime_ms": 0, "cpu_check": "flags", "timeout_s": 60,
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"container": "../etc"}, {"container": None}, {"target": "-x"}, {"mode": "fast"}, {"timeout_s": True},
        {"timeout_s": "1_000"}, {"timeout_s": 5}, {"max_downtime_ms": -1}, {"allow_post_copy": "maybe"}, {"kind": "x"},
        {"guest": "web"},
    ],
)  # fmt: skip
def test_a_request_is_read_strictly(more: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        parse_request(json.dumps({"container": "web", "target": "host2", **more}))


def test_a_request_for_a_guest_has_all_options() -> None:
    assert parse_request('{"guest": "web", "target": "host2", "bandwidth_mib_s": "50"}') == {
        "kind": "guest", "name": "web", "target": "host2", "max_downtime_ms": 300, "bandwidth_mib_s": 50,
        "connections": 1, "auto_converge": True, "allow_post_copy": False, "timeout_s": 3600,
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"guest": "../etc"}, {"guest": None}, {"guest": 7}, {"target": "a b"}, {"bandwidth_mib_s": -1},
        {"bandwidth_mib_s": "1e3"}, {"connections": 0}, {"connections": True}, {"max_downtime_ms": 0},
        {"auto_converge": "maybe"}, {"timeout_s": 5}, {"mode": "live"}, {"container": "web"},
        {"allow_post_copy": "perhaps"}, {"allow_post_copy": True, "connections": 2},
    ],
)  # fmt: skip
def test_a_request_for_a_guest_is_read_strictly(more: dict[str, t.Any]) -> None:
    with pytest.raises(InputError):
        parse_request(json.dumps({"guest": "web", "target": "host2", **more}))


def test_a_request_that_is_none() -> None:
    with pytest.raises(InputError, match="no JSON"):
        parse_request("{")
