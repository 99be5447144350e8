# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a host where a task before would have installed libvirt."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._host import libvirt
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host
from ansible_collections.cnvm.platform.plugins.modules import network_info, pool_info


def run(argv: t.Sequence[str], **options: t.Any) -> t.NoReturn:
    raise AssertionError(f"{argv} was run")


@pytest.mark.parametrize(("module", "key"), [(network_info, "networks"), (pool_info, "pools")])
def test_check_mode_warns_where_the_work_itself_fails(module: t.Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> t.NoReturn:
        raise HostError("This host's Python has no libvirt.")

    monkeypatch.setattr(libvirt, "library", library)
    params = {name: spec.get("default") for name, spec in module.argument_spec().items()}
    found = module.work(Host(run=run), params, True)
    assert (found["changed"], found[key]) == (False, [])
    assert found["warnings"] == [
        "This host has no libvirt. Unless a task before installs it, this fails; what there would be then is not known."
    ]
    with pytest.raises(HostError, match="no libvirt"):
        module.work(Host(run=run), params, False)
