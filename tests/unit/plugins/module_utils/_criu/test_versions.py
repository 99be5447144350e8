# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions as the real programs print them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._criu import versions

RUNC_TRIXIE = """runc version 1.1.15+ds1
commit: 1.1.15+ds1-2+b4
spec: 1.2.0
go: go1.24.4
libseccomp: 2.6.0
"""
RUNC_SID = "runc version 1.3.6+ds1\ncommit: 1.3.6+ds1-1\nspec: 1.2.1\ngo: go1.26.5\nlibseccomp: 2.6.0\n"
CRUN_TRIXIE = """crun version 1.21
commit: 10269840aa07fb7e6b7e1acff6198692d8ff5c88
rundir: /run/user/0/crun
spec: 1.0.0
+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU +WASM:wasmedge +YAJL
"""
CRUN_BOOKWORM = """crun version 1.8.1
commit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30
rundir: /run/crun
spec: 1.0.0
+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL
"""
RUNC_FEATURES = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.1",
    "hooks": ["prestart"],
    "linux": {
        "namespaces": ["uts", "cgroup", "time"],
        "cgroup": {"v1": True, "v2": True, "systemd": True},
        "seccomp": {"enabled": True},
    },
    "annotations": {
        "io.github.seccomp.libseccomp.version": "2.6.0",
        "org.opencontainers.runc.checkpoint.enabled": "true",
        "org.opencontainers.runc.version": "1.3.6+ds1",
    },
}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.18.44-fc-v669", (6, 18, 44)),
        ("6.1.0-37-amd64", (6, 1, 0)),
        ("5.14.0-503.el9.x86_64", (5, 14, 0)),
        ("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", (10, 0, 13)),
        ("", ()),
        ("none", ()),
    ],
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert versions.parse_version(text) == version


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=4))
def test_version_comes_back(parts: list[int]) -> None:
    assert versions.parse_version(versions.version_text(parts)) == tuple(parts)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version: 4.2.1\n", "4.2.1"),
        ("Version: 3.17.1\n", "3.17.1"),
        ("Version: 4.0\nGitID: v4.0-12-gabcdef\n", "4.0"),
        ("", ""),
        ("criu: error while loading shared libraries: libnet.so.9: Version: unknown", ""),
    ],
)
def test_criu_version(text: str, version: str) -> None:
    assert versions.parse_criu_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [(RUNC_TRIXIE, "1.1.15"), (RUNC_SID, "1.3.6"), (CRUN_TRIXIE, "1.21"), (CRUN_BOOKWORM, "1.8.1"), ("", "")],
)
def test_runtime_version(text: str, version: str) -> None:
    assert versions.parse_runtime_version(text) == version


def test_crun_flags() -> None:
    assert "CRIU" in versions.parse_crun_flags(CRUN_TRIXIE)
    assert "CRIU" not in versions.parse_crun_flags(CRUN_BOOKWORM)
    assert versions.parse_crun_flags("-CRIU +YAJL") == ["YAJL"]


def test_runtime_features() -> None:
    assert versions.parse_runtime_features(json.dumps(RUNC_FEATURES)) == {
        "oci_version": "1.2.1",
        "checkpoint": True,
        "cgroup_v2": True,
        "seccomp": True,
        "namespaces": ["cgroup", "time", "uts"],
    }


def test_runtime_features_of_crun_and_of_one_without_checkpoints() -> None:
    crun = {
        "annotations": {
            "org.opencontainers.runc.checkpoint.enabled": "true",
            "run.oci.crun.checkpoint.enabled": "false",
        }
    }
    assert versions.parse_runtime_features(json.dumps(crun))["checkpoint"] is False
    assert versions.parse_runtime_features(json.dumps({"annotations": None}))["checkpoint"] is False


@pytest.mark.parametrize("text", ["", "unknown command features", "[]", "null"])
def test_runtime_without_features(text: str) -> None:
    assert versions.parse_runtime_features(text) == {}


@pytest.mark.parametrize(
    ("criu", "kernel", "works"),
    [
        ("3.17.1", "6.1.0-37-amd64", True),
        ("3.17.1", "6.12.48-amd64", True),
        ("3.17.1", "6.13.0", False),
        ("4.1.1", "6.12.48+deb13-amd64", True),
        ("4.1.1", "6.15.9", True),
        ("4.1.1", "6.16.0", False),
        ("4.1.1", "6.18.44-fc-v669", False),
        ("4.2", "6.18.44-fc-v669", True),
        ("4.2.1", "7.0.0", True),
        ("3.19", "5.14.0-503.el9.x86_64", True),
        ("", "6.18.44", True),
        ("4.1", "", True),
    ],
)
def test_pairs(criu: str, kernel: str, works: bool) -> None:
    problem = versions.pair_problem(criu, kernel)
    assert (problem == "") is works
    if not works:
        assert criu in problem
        assert kernel in problem
        assert f"Install CRIU {versions.minimum_criu(kernel)} or newer" in problem


@pytest.mark.parametrize(
    ("kernel", "least"), [("6.12.1", ""), ("6.13", "4.1"), ("6.16", "4.2"), ("7.1", "4.2"), ("", "")]
)
def test_minimum(kernel: str, least: str) -> None:
    assert versions.minimum_criu(kernel) == least
