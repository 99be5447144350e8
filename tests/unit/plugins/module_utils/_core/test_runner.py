# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failed command tells."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CommandError
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult, checked, first_line


def test_checked_returns_what_went_well() -> None:
    result = CommandResult(("true",), 0, stderr="a warning")
    assert checked(result) is result


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [("out", "\n  no such link \nmore", "no such link"), ("only out\n", " \n", "only out"), ("", "", "no output")],
)
def test_checked_tells_the_first_line(stdout: str, stderr: str, said: str) -> None:
    with pytest.raises(CommandError) as caught:
        checked(CommandResult(("ip", "link", "del", "x"), 2, stdout, stderr))
    assert caught.value.message == f"'ip link del x' ended with code 2: {said}"
    assert caught.value.details == {"argv": ["ip", "link", "del", "x"], "rc": 2, "stdout": stdout, "stderr": stderr}


def test_first_line() -> None:
    assert first_line("") == ""
    assert first_line("\n \n b \nc") == "b"
