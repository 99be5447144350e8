# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes of packages: what is taken, what is refused by name, the command, and what is said when it fails."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.mmdebstrap import (
    KEYS,
    Recipe,
    argv,
    failure,
    read,
)

TRIXIE = Recipe("trixie")


def test_a_suite_is_enough() -> None:
    # As Ansible gives it: with what nobody has said.
    unsaid: dict[str, t.Any] = dict.fromkeys(KEYS)
    given_by_ansible = {**unsaid, "suite": "trixie", "packages": [], "variant": "minbase", "customize": []}
    assert read({"suite": "trixie"}, "build") == read(given_by_ansible, "build") == TRIXIE


def test_all_of_it() -> None:
    made = read(
        {
            "suite": "trixie",
            "packages": ["nginx", "linux-image-amd64=6.12.1-1", "crun/trixie-backports", "libc6:i386"],
            "variant": "apt",
            "components": ["main", "non-free-firmware"],
            "mirror": "http://deb.debian.org/debian",
            "customize": ["useradd -- me"],
        },
        "build",
    )
    assert argv(made, "/x/root", ["--dpkgopt=a"]) == [
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        "--variant=apt",
        "--include=nginx,linux-image-amd64=6.12.1-1,crun/trixie-backports,libc6:i386",
        "--components=main,non-free-firmware",
        "--dpkgopt=a",
        "--",
        "trixie",
        "/x/root",
        "http://deb.debian.org/debian",
    ]
    assert made.customize == ("useradd -- me",)


def test_what_is_not_said_is_left_to_the_program() -> None:
    assert argv(TRIXIE, "/x") == [
        "mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--", "trixie", "/x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"suite": None}, "build.suite"),
        ({"suite": "--aptopt=x"}, "build.suite"),
        ({"suite": "a b"}, "build.suite"),
        ({"suite": 13}, "build.suite"),
        ({"packages": "nginx"}, "build.packages"),
        ({"packages": ["a,b"]}, "build.packages"),
        ({"packages": ["-x"]}, "build.packages"),
        ({"packages": [7]}, "build.packages"),
        ({"packages": ["nginx "]}, "build.packages"),
        ({"variant": "custom"}, "build.variant"),
        ({"components": ["main,contrib"]}, "build.components"),
        ({"mirror": "-"}, "build.mirror"),
        ({"mirror": "deb.debian.org/debian"}, "build.mirror"),
        ({"mirror": "http://x/a b"}, "build.mirror"),
        ({"customize": "rm x"}, "build.customize"),
        ({"customize": [["rm", "x"]]}, "build.customize"),
        ({"include": ["x"]}, "include"),
    ],
)
def test_what_is_refused(more: dict[str, t.Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read({"suite": "trixie", **more}, "build")
    assert caught.value.hint


@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text())
    )
)
def test_no_value_becomes_an_option(values: dict[str, t.Any]) -> None:
    try:
        words = argv(read(values, "build"), "/x")
    except InputError:
        return
    after = words[words.index("--") + 1 :]
    assert 2 <= len(after) <= 3
    assert after[1] == "/x"
    assert len([word for word in words if word.startswith("--include")]) <= 1


UPDATE = "E: apt-get update --error-on=any -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed\n"
END = "I: main() received signal PIPE: waiting for setup...\nE: mmdebstrap failed to run\n"


NO_PACKAGE = """\
I: installing remaining packages inside the chroot...
Reading package lists...
E: Unable to locate package nosuchpkg
E: setup failed: E: apt-get --yes install nosuchpkg failed
"""
NO_VERSION = "E: Version '99' for 'openssh-server' was not found\nE: setup failed: E: apt-get failed\n"
NO_SUITE = """\
Err:2 http://deb.debian.org/debian trixi Release
  404  Not Found [IP: 203.0.113.80 80]
E: The repository 'http://deb.debian.org/debian trixi Release' does not have a Release file.
"""
NO_MIRROR = """\
E: Failed to fetch http://x.invalid/dists/trixie/InRelease  Could not resolve 'x.invalid'
E: Some index files failed to download. They have been ignored, or old ones used instead.
"""
NO_COMPONENT = """\
W: apt-get indextargets output is empty
E: apt-get update did not find any indices for architecture 'amd64' in suite 'trixie'
"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (NO_PACKAGE, "build.packages: Unable to locate package nosuchpkg."),
        (NO_VERSION, "build.packages: Version '99' for 'openssh-server' was not found."),
        (
            NO_SUITE + UPDATE,
            "build.suite: The repository 'http://deb.debian.org/debian trixi Release' does not have a Release file.",
        ),
        (
            NO_MIRROR + UPDATE,
            "build.mirror: Failed to fetch http://x.invalid/dists/trixie/InRelease  Could not resolve 'x.invalid'.",
        ),
        (
            NO_COMPONENT,
            "build.components: apt-get update did not find any indices for architecture 'amd64' in suite 'trixie'.",
        ),
    ],
)
def test_the_first_error_names_the_option(said: str, words: str) -> None:
    error = failure(said + END, TRIXIE, "build")
    assert isinstance(error, InputError)
    assert error.message == words
    assert error.hint.startswith("Allowed: ")


def test_what_is_the_hosts_fault() -> None:
    unsigned = "E: The repository 'http://archive.ubuntu.com/ubuntu noble InRelease' is not signed.\n"
    for said, words in (
        (unsigned + UPDATE + END, "nobody vouches"),
        ("dpkg: error: No space left on device\nE: setup failed\n" + END, "no room"),
        ("E: something else\n" + END, "mmdebstrap failed: something else."),
        ("", "failed: no output."),
    ):
        error = failure(said, TRIXIE, "build")
        assert isinstance(error, HostError)
        assert words in error.message
        assert error.hint
