# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A path is taken as it is written, here as in all other modules for hosts."""

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.modules import template


def run(argv: t.Sequence[str], **options: t.Any) -> t.NoReturn:
    raise AssertionError(f"{argv} was run")


@pytest.mark.parametrize("path", ["~/disk.qcow2", "$HOME/disk.qcow2", "disk.qcow2"])
def test_a_source_has_an_absolute_path(path: str) -> None:
    given = {"name": "web", "source": path, "checksum": "unverified"}
    validated = ArgumentSpecValidator(template.argument_spec()).validate(given)
    assert (validated.error_messages, validated.validated_parameters["source"]) == ([], path)
    with pytest.raises(InputError, match="source: ") as caught:
        template.work(Host(run=run), validated.validated_parameters, check_mode=True)
    assert "absolute path" in caught.value.hint
