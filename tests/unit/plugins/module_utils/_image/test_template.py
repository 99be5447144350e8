# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of a template: what is taken, what is refused by name, and when two are made of the same."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.mmdebstrap import Recipe
from ansible_collections.cnvm.platform.plugins.module_utils._image.template import (
    KEYS,
    Wanted,
    made_of,
    normalise,
    word_of,
)

SHA = "a" * 64
FILE = {"name": "debian", "source": "/x/disk.qcow2", "checksum": f"sha256:{SHA}"}


def test_a_file_with_its_checksum() -> None:
    assert normalise(FILE) == Wanted("debian", source="/x/disk.qcow2", format="qcow2", checksum=("sha256", SHA))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.qcow2.xz", "qcow2"), ("a.raw.gz", "raw"), ("a.vmdk.BZ2", "vmdk"), ("a.vhd.zst", "vhd"), ("a.xz.raw", "raw")],
)
def test_what_a_file_is_compressed_with_is_no_format(name: str, kind: str) -> None:
    assert normalise({**FILE, "source": f"/x/{name}"}).format == kind


def test_a_checksum_is_waived_by_a_word_and_not_by_silence() -> None:
    assert normalise({**FILE, "checksum": "unverified"}).checksum is None
    for nothing in (None, ""):
        with pytest.raises(InputError, match="checksum is missing") as caught:
            normalise({**FILE, "checksum": nothing})
        assert "unverified" in caught.value.hint


def test_the_identity_of_a_guest_is_reset_unless_it_is_said() -> None:
    assert normalise({"name": "a", "guest": "web"}).reset_identity
    assert not normalise({"name": "a", "guest": "web", "reset_identity": "no"}).reset_identity
    assert not normalise(FILE).reset_identity


def test_what_is_built() -> None:
    found = normalise({"name": "a", "build": {"suite": "trixie", "packages": ["nginx"]}, "size": "4G"})
    assert found == Wanted("a", build=Recipe("trixie", ("nginx",)), size=4 * 2**30, reset_identity=True)
    assert found.origin == "built of trixie"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"reset_identity": False}, "reset_identity"),
        ({"size": "100M"}, "size"),
        ({"size": "3T"}, "size"),
        ({"guest": "web"}, "build and guest"),
        ({"checksum": "unverified"}, "checksum"),
        ({"build": "trixie"}, "build"),
        ({"build": {"packages": ["nginx"]}}, "build.suite"),
        ({"build": {"suite": "trixie", "kernel": "x"}}, "kernel"),
    ],
)
def test_what_cannot_be_built(more: dict[str, t.Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        normalise({"name": "a", "build": {"suite": "trixie"}, **more})


def test_another_recipe_is_another_template() -> None:
    def known(**build: t.Any) -> str:
        return made_of(normalise({"name": "a", "build": {"suite": "trixie", **build}}))

    assert known() == known(packages=[], mirror=None)
    different = [known(), known(suite="forky"), known(packages=["nginx"]), known(mirror="http://m/debian")]
    assert len({*different, known(customize=["true"]), known(components=["main"]), known(variant="apt")}) == 7


def test_all_options() -> None:
    found = normalise(
        {
            "name": "a",
            "state": "present",
            "source": "/x/a.img",
            "format": "vpc",
            "checksum": f"sha512:{'b' * 128}",
            "digest": f"sha256:{SHA}",
            "size": "4G",
            "reset_identity": True,
            "fingerprint": "one",
            "refresh": "yes",
            "verify": True,
            "max_virtual_size": "10G",
            "guest": None,
            "peer": "",
        }
    )
    assert found == Wanted(
        "a",
        source="/x/a.img",
        format="vhd",
        checksum=("sha512", "b" * 128),
        digest=SHA,
        size=4 * 2**30,
        reset_identity=True,
        fingerprint="one",
        refresh=True,
        verify=True,
        max_virtual_bytes=10 * 2**30,
    )


def test_to_remove_one_its_digest_will_do() -> None:
    assert normalise({"name": SHA, "state": "absent"}).name == SHA
    assert normalise({"name": f"sha256:{SHA}", "state": "absent"}).name == SHA
    with pytest.raises(InputError, match="name"):
        normalise({**FILE, "name": SHA})


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"name": 7}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "x.new"}, "reserved"),
        ({"guest": "web"}, "source and guest"),
        ({"peer": "host1", "source": None, "checksum": "unverified"}, "checksum"),
        ({"guest": "web", "peer": "host1", "source": ""}, "guest and peer"),
        ({"source": "x/a.qcow2"}, "source"),
        ({"source": "/x/../a.qcow2"}, "source"),
        ({"source": "/x/disk.img"}, "format"),
        ({"checksum": "md5:" + "a" * 32}, "checksum"),
        ({"checksum": SHA}, "checksum"),
        ({"digest": "sha256:abc"}, "digest"),
        ({"size": "1000"}, "size"),
        ({"size": 1000}, "multiples"),
        ({"size": True}, "size"),
        ({"refresh": "perhaps"}, "refresh"),
        ({"max_virtual_size": "much"}, "max_virtual_size"),
        ({"state": "there"}, "state"),
        ({"sorce": "/x"}, "sorce"),
        ({"peer": "../x", "source": None, "checksum": None}, "peer"),
    ],
)
def test_what_is_refused(more: dict[str, t.Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        normalise({**FILE, **more})


@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text())
    )
)
def test_whatever_is_given_it_is_understood_or_refused(values: dict[str, t.Any]) -> None:
    try:
        found = normalise(values)
    except InputError:
        return
    assert found.state == "absent" or sum(map(bool, (found.source, found.build, found.guest, found.peer))) <= 1


def test_a_word_is_a_name_or_a_digest() -> None:
    assert word_of("debian", "template") == "debian"
    assert word_of(f"sha256:{SHA}", "template") == SHA
    for bad in ("sha256:abc/", "../x", 5, "", None):
        with pytest.raises(InputError, match="template"):
            word_of(bad, "template")


def test_the_same_checksum_is_the_same_wherever_the_file_lies() -> None:
    one = normalise(FILE)
    assert made_of(one) == made_of(normalise({**FILE, "source": "/y/other.qcow2"}), (1, 2, 3))


@pytest.mark.parametrize(
    "more",
    [
        {"checksum": f"sha256:{'b' * 64}"},
        {"format": "raw"},
        {"size": "1G"},
        {"reset_identity": True},
        {"checksum": "unverified"},
        {"fingerprint": "x"},
    ],
)
def test_another_content_or_another_making_is_another_one(more: dict[str, t.Any]) -> None:
    assert made_of(normalise(FILE)) != made_of(normalise({**FILE, **more}))


def test_without_a_checksum_the_file_itself_counts() -> None:
    wanted = normalise({**FILE, "checksum": "unverified"})
    assert made_of(wanted, (5, 6)) == made_of(wanted, (5, 6)) != made_of(wanted, (5, 7))


def test_a_fingerprint_that_is_given_is_all_that_counts() -> None:
    one = normalise({**FILE, "fingerprint": "recipe 1", "size": "1G"})
    assert made_of(one) == made_of(normalise({"name": "b", "guest": "web", "fingerprint": "recipe 1"}))
