# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that take a list of items, which we decode: what a survey sends, what is wrong, and what is secret."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.testing import patch_module_args

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host import disk_images, seeds
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.module_utils._image import definition as images
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import guest_definition as guests
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import network as networks
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import options
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import pool as pools
from ansible_collections.cnvm.platform.plugins.module_utils._oci import definition as containers
from ansible_collections.cnvm.platform.plugins.module_utils._oci import options as container_options
from ansible_collections.cnvm.platform.plugins.modules import (
    disk_image,
    disk_image_info,
    guest,
    network,
    pool,
    seed_image,
)

Run = t.Callable[..., tuple[dict[str, t.Any], str]]


def nothing(argv: t.Sequence[str], **options: t.Any) -> t.NoReturn:
    raise AssertionError(f"{argv} was run")


@pytest.mark.parametrize(
    ("spec", "option", "decode"),
    [
        (container_options.CONTAINER, "containers", containers.normalise_all),
        (options.GUEST, "guests", guests.normalise_all),
        (disk_image.argument_spec(), "images", images.normalise_all),
        (network.argument_spec(), "networks", networks.normalise_all),
        (pool.argument_spec(), "pools", pools.normalise_all),
        (seed_image.argument_spec(), "seeds", lambda items: seeds.bring_to(Host(run=nothing), items)["seeds"]),
    ],
)
def test_an_empty_answer_is_an_empty_list(
    spec: dict[str, t.Any], option: str, decode: t.Callable[[object], list[t.Any]]
) -> None:
    validated = ArgumentSpecValidator(spec).validate({option: ""})
    assert validated.error_messages == []
    assert decode(validated.validated_parameters[option]) == []


def test_an_item_of_containers_is_decoded_by_us() -> None:
    """What Ansible made of one with a specification, we make of it."""
    said = {
        "name": "web", "image": "web", "address": "10.1.1.5", "ports": "8080:80, 5353:53/udp", "dns": "10.0.0.1, ",
        "command": "/bin/web, really", "capabilities_add": "net_raw,NET_ADMIN", "capabilities_drop": "", "mounts": "",
        "no_new_privileges": "no", "login_user": 1000, "env": "", "wait_for": "",
        "authorized_keys": f"ssh-ed25519 {'A' * 68} me",
    }  # fmt: skip
    validated = ArgumentSpecValidator(container_options.CONTAINER).validate({"containers": [said]})
    assert validated.error_messages == []
    (found,) = containers.normalise_all(validated.validated_parameters["containers"])
    assert {one["container_port"] for one in found["ports"]} == {80, 53}
    keys = ("dns", "command", "capabilities_add", "capabilities_drop", "mounts", "no_new_privileges", "login_user")
    assert [found[key] for key in keys] == [
        ["10.0.0.1"], ["/bin/web, really"], ["CAP_NET_ADMIN", "CAP_NET_RAW"], [], [], False, "1000",
    ]  # fmt: skip
    assert (found["env"], found["wait_for"], len(found["authorized_keys"])) == ({}, None, 1)
    with pytest.raises(InputError, match=r"^containers\[0\]: unknown key 'comand'"):
        containers.normalise_all([{**said, "comand": "x"}])


def test_paths_of_a_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    validated = ArgumentSpecValidator(disk_image_info.argument_spec()).validate(
        {"paths": "/tmp/a, /tmp/b", "dependants_in": "/srv, "}
    )
    assert validated.error_messages == []
    monkeypatch.setattr(disk_images, "report", lambda paths, **options: {"saw": [paths, options]})
    [paths, options] = disk_image_info.work(Host(run=nothing), validated.validated_parameters, False)["saw"]
    assert (paths, options["places"]) == (["/tmp/a", "/tmp/b"], ["/srv"])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The module guest, as far as it decodes; its result, and all that it has printed or written to the journal."""
    journal: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda self, text, log_args=None: journal.append(f"{text} {log_args}"))
    monkeypatch.setattr(
        guest, "work", lambda host, params, check_mode: {"guests": guests.normalise_all(params["guests"])}
    )

    def run_it(items: object) -> tuple[dict[str, t.Any], str]:
        with patch_module_args({"guests": items}), pytest.raises(SystemExit):
            guest.main()
        printed = capfd.readouterr().out
        return json.loads(printed), printed + "".join(journal)

    return run_it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memmory_mib": 512}, "guests[0]: unknown key 'memmory_mib'. Did you mean memory_mib? "),
        ({"state": "runing"}, "guests[0]: web: state: 'runing' is not allowed. Allowed: present, running, "),
        ({"boot": "disk, floppy"}, "guests[0]: web: boot: 'floppy' is not allowed. Allowed: disk, cdrom, network."),
        ({"name": None}, "guests[0].name is missing."),
    ],
)
def test_what_is_wrong_with_a_guest_is_told(run: Run, change: dict[str, t.Any], message: str) -> None:
    screen = {"type": "vnc", "password": "horse"}
    result, said = run([{"name": "web", "memory_mib": 512, "graphics": screen, **change}])
    assert result["failed"]
    assert result["msg"].startswith(message)
    assert "horse" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graphics": {"type": "vnc", "password": 71077345}}, "graphics.password is not text. Put it in quotes."),
        ({"graphics": {"type": "vnc", "password": ["71077345"]}}, "graphics.password is not text."),
        ({"graphics": {"type": "vnc", "passwrod": "71077345"}}, "unknown key 'passwrod'. Did you mean password?"),
        ({"graphics": ["71077345"]}, "graphics is not a mapping."),
        ({"graphics": "type=vnc password=71077345"}, "graphics is not a mapping."),
        ({"password": "71077345"}, "unknown key 'password'."),
        ({"cloud_init": "password: 71077345"}, "cloud_init is not a mapping."),
        ("name=web password=71077345", "guests[0] is not a mapping."),
        ({"graphics": {"type": "vnc", "password": "71077345"}}, ""),
    ],
)
def test_a_password_is_never_shown(run: Run, change: t.Any, message: str) -> None:
    items = [{"name": "web", "memory_mib": 512, **change}] if isinstance(change, dict) else change
    result, said = run(items)
    assert message in result.get("msg", "")
    assert bool(message) == bool(result.get("failed"))
    assert "71077345" not in said
