# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for members of archives."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._oci.members import (
    Policy,
    check_member,
    difference,
    keep_attribute,
    layer_policy,
    member_path,
    parse_mtime,
)


@pytest.mark.parametrize(("name", "path"), [("a", "a"), ("./a", "a"), (".", ""), ("./", ""), ("a//b/./c/", "a/b/c")])
def test_member_path(name: str, path: str) -> None:
    assert member_path(name) == path


@pytest.mark.parametrize("name", ["", "/", "/a", "..", "a/..", "../a", "a/../b", "a\0b", "./../a"])
def test_member_path_that_points_elsewhere(name: str) -> None:
    with pytest.raises(InputError):
        member_path(name)


@given(st.text(alphabet="a./\0\\~", max_size=20))
def test_a_member_path_never_leaves(name: str) -> None:
    try:
        path = member_path(name)
    except InputError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    assert member_path(path or ".") == path


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("5.1", 5_100_000_000),
        ("5.1234567899", 5_123_456_789),
        ("-2.5", -2_500_000_000),
        ("-0.5", -500_000_000),
    ],
)
def test_parse_mtime(text: str, nanoseconds: int) -> None:
    assert parse_mtime(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e5", "1.x", str(2**60), "1.-5", "--1"])
def test_parse_mtime_of_nonsense(text: str) -> None:
    with pytest.raises(InputError):
        parse_mtime(text)


def test_set_user_id_directories_are_harmless() -> None:
    assert check_member("mail", stat.S_IFDIR, 0o2775, 0, 8, (0, 0), Policy())


def test_each_permission_by_itself() -> None:
    null, whiteout = (stat.S_IFCHR, (1, 3)), (stat.S_IFCHR, (0, 0))
    for policy, allowed in ((Policy(allow_devices=True), null), (Policy(allow_whiteouts=True), whiteout)):
        for kind, device in (null, whiteout):
            if (kind, device) == allowed:
                assert check_member("a", kind, 0, 0, 0, device, policy)
            else:
                with pytest.raises(InputError):
                    check_member("a", kind, 0, 0, 0, device, policy)


@pytest.mark.parametrize(
    ("name", "image", "layer"),
    [
        ("user.x", True, True),
        ("system.posix_acl_access", True, True),
        ("security.capability", False, True),
        ("security.selinux", False, False),
        ("trusted.overlay.opaque", False, True),
        ("trusted.overlay.origin", False, False),
        ("trusted.other", False, False),
    ],
)
def test_keep_attribute(name: str, image: bool, layer: bool) -> None:
    assert (keep_attribute(name, Policy()), keep_attribute(name, layer_policy())) == (image, layer)


def test_small_archives_may_unpack_to_64_mib() -> None:
    assert Policy(max_ratio=10, compressed_bytes=100).byte_limit == 64 * 2**20
    assert Policy(max_ratio=10, compressed_bytes=100 * 2**20).byte_limit == 1000 * 2**20
    assert Policy(max_bytes=5, max_ratio=10, compressed_bytes=100).byte_limit == 5


def test_difference_names_the_topmost_of_what_is_gone() -> None:
    before = {"a": (1,), "a/b": (1,), "a/b/c": (1,), "ab": (1,), "d": (1,)}
    assert difference(before, {"ab": (1,), "d": (2,), "e": (1,)}) == (["d", "e"], ["a"])
