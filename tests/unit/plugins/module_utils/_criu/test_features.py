# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRIU's checks printed on real kernels."""

from __future__ import annotations

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._criu import features

CRIU_3_17_ON_6_18 = """Error (criu/util.c:642): exited, status=1
Error (criu/util.c:642): exited, status=1
Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds
Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable
Error (criu/kerndat.c:1615): kerndat_vdso_fill_symtable failed when initializing kerndat.
Error (criu/crtools.c:260): Could not initialize kernel features detection.
"""


@pytest.mark.parametrize(
    ("rc", "stdout", "stderr", "answer"),
    [
        (0, "uffd-noncoop is supported\n", "", True),
        (0, "network_lock_nftables is supported\n", "", True),
        (1, "", "Warn  (criu/cr-check.c:824): Dirty tracking is OFF. Memory snapshot will not work.\n", False),
        (1, "", "Error (criu/cr-check.c:1901): Unknown feature bogus\n", None),
        (1, "", "Error (criu/cr-check.c:1642): Unknown feature pagemap_scan\n", None),
        (127, "", "criu: No such file or directory", False),
    ],
)
def test_feature(rc: int, stdout: str, stderr: str, answer: bool | None) -> None:
    assert features.parse_feature(rc, stdout, stderr) is answer


def test_check_that_is_content() -> None:
    assert features.parse_check(0, "Looks good.\n", "Warn  (criu/x.c:1): something\n") == ""


def test_check_says_the_first_error_that_tells_something() -> None:
    assert features.parse_check(1, "", CRIU_3_17_ON_6_18) == "vdso: Unexpected rt vDSO area bounds"


def test_check_that_says_nothing_is_still_a_failure() -> None:
    assert "code 1" in features.parse_check(1, "", "")


def test_error_with_time_stamp() -> None:
    assert features.parse_check(1, "", "(00.001) Warn  (a.c:1): x\n(00.002) Error (b.c:2): boom\n") == "boom"


FOUND = {"uffd-noncoop": True, "mem_dirty_track": True}


@pytest.mark.parametrize(
    ("checkpoint", "lazy", "incremental", "found", "wanted"),
    [
        (True, True, True, FOUND, ["pre_copy", "post_copy", "stop_copy", "cold"]),
        (True, True, True, {**FOUND, "mem_dirty_track": False}, ["post_copy", "stop_copy", "cold"]),
        (True, False, True, FOUND, ["pre_copy", "stop_copy", "cold"]),
        (True, True, False, FOUND, ["post_copy", "stop_copy", "cold"]),
        (True, True, True, {"uffd-noncoop": None}, ["stop_copy", "cold"]),
        (False, True, True, FOUND, ["cold"]),
    ],
)
def test_modes(checkpoint: bool, lazy: bool, incremental: bool, found: dict, wanted: list[str]) -> None:
    assert (
        features.modes(checkpoint=checkpoint, lazy_runtime=lazy, incremental_runtime=incremental, features=found)
        == wanted
    )
