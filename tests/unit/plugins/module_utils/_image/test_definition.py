# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of an image: what is taken, and what is refused by name."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._image.definition import (
    ITEM_KEYS,
    Source,
    Wanted,
    normalise,
    normalise_all,
)

SHA = "a" * 64


def test_a_path_and_a_size_are_enough() -> None:
    assert normalise({"path": "/x/disk.img", "size": "1G"}) == Wanted("/x/disk.img", size=2**30)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.qcow2", "qcow2"),
        ("a.RAW", "raw"),
        ("a.vmdk", "vmdk"),
        ("a.vdi", "vdi"),
        ("a.vhd", "vhd"),
        ("a.vpc", "vhd"),
        ("a.vhdx", "vhdx"),
        ("a.iso", "raw"),
        ("a.img", "qcow2"),
        ("a", "qcow2"),
    ],
)
def test_the_format_follows_the_name(name: str, kind: str) -> None:
    assert normalise({"path": f"/x/{name}", "size": 512}).format == kind


def test_the_format_that_is_given_goes_over_the_name() -> None:
    assert normalise({"path": "/x/a.vmdk", "format": "vpc", "size": 512}).format == "vhd"


def test_yaml_makes_false_of_an_unquoted_off() -> None:
    assert normalise({"path": "/x/a", "size": 512, "preallocation": False}).preallocation == "off"


def test_all_keys() -> None:
    found = normalise(
        {
            "path": "/x//a",
            "format": "qcow2",
            "size": "10G",
            "source": {"path": "/y/b.vmdk", "checksum": f"sha256:{SHA.upper()}", "trusted": "yes"},
            "replace": True,
            "compression": "zstd",
            "cluster_size": "128K",
            "check": "true",
            "repair": "leaks",
            "owner": 64055,
            "group": "kvm",
            "mode": "0640",
        }
    )
    assert found == Wanted(
        "/x/a",
        size=10 * 2**30,
        source=Source("/y/b.vmdk", "vmdk", ("sha256", SHA), True),
        replace=True,
        compression="zstd",
        cluster_bytes=131072,
        check=True,
        repair="leaks",
        owner="64055",
        group="kvm",
        mode=0o640,
    )


def test_what_ansible_makes_of_options_that_are_not_given() -> None:
    given_nothing = dict.fromkeys(ITEM_KEYS)
    assert normalise({**given_nothing, "path": "/x/a.raw"}) == Wanted("/x/a.raw", format="raw")
    source = {"path": "/y/b.raw", "format": None, "checksum": None, "trusted": None}
    assert normalise({**given_nothing, "path": "/x/a", "source": source}).source == Source("/y/b.raw", "raw")


GOOD: dict[str, t.Any] = {"path": "/x/a.qcow2", "size": "1G"}
SOURCE = {"path": "/y/b.qcow2"}
BAD: dict[str, tuple[dict[str, t.Any], str]] = {
    "no path": ({"path": None}, "path"),
    "relative": ({"path": "a.qcow2"}, "path"),
    "dots": ({"path": "/x/../a"}, "path"),
    "a directory": ({"path": "/x/"}, "path"),
    "the root": ({"path": "/"}, "path"),
    "a line end": ({"path": "/x/a\nb"}, "path"),
    "NUL": ({"path": "/x/a\0b"}, "path"),
    "a device": ({"path": "/dev/sda"}, "path"),
    "the kernel's": ({"path": "/proc/self/mem"}, "path"),
    "a number": ({"path": 7}, "path"),
    "very long": ({"path": "/" + "a" * 2000}, "path"),
    "a tilde": ({"path": "~/a.qcow2"}, "path"),
    "unknown key": ({"sise": 1}, "sise"),
    "format": ({"format": "qcow"}, "format"),
    "negative size": ({"size": -512}, "size"),
    "no size": ({"size": 0}, "size"),
    "true as size": ({"size": True}, "size"),
    "an odd size": ({"size": 1000}, "size"),
    "unit": ({"size": "10GB2"}, "size"),
    "underscore": ({"size": "1_024"}, "size"),
    "exponent": ({"size": "1e9"}, "size"),
    "2^70": ({"size": 2**70}, "size"),
    "mode as a number": ({"mode": 0o644}, "mode"),
    "mode with other bits": ({"mode": "4755"}, "mode"),
    "owner": ({"owner": "a b"}, "owner"),
    "true as owner": ({"owner": True}, "owner"),
    "state": ({"state": "latest"}, "state"),
    "source without a path": ({"source": {"format": "raw"}}, "source.path"),
    "source whose name says nothing": ({"source": {"path": "/y/b.img"}}, "source.format"),
    "md5": ({"source": {**SOURCE, "checksum": "md5:" + "a" * 32}}, "checksum"),
    "short checksum": ({"source": {**SOURCE, "checksum": "sha256:abc"}}, "checksum"),
    "checksum without a name": ({"source": {**SOURCE, "checksum": SHA}}, "checksum"),
    "checksum that is no digits": ({"source": {**SOURCE, "checksum": "sha256:" + "g" * 64}}, "checksum"),
    "source and backing": ({"source": SOURCE, "backing": "/y/b.qcow2"}, "exclude"),
    "flatten and backing": ({"flatten": True, "backing": "/y/b.qcow2"}, "exclude"),
    "made of itself": ({"source": {"path": "/x/a.qcow2"}}, "itself"),
    "on itself": ({"backing": "/x/a.qcow2"}, "itself"),
    "backing of a raw disk": ({"format": "raw", "backing": "/y/b.qcow2"}, "backing"),
    "backing whose name says nothing": ({"backing": "/y/b.img"}, "backing_format"),
    "preallocated overlay": ({"backing": "/y/b.qcow2", "preallocation": "full"}, "preallocat"),
    "metadata of a raw disk": ({"format": "raw", "preallocation": "metadata"}, "preallocation"),
    "preallocated vmdk": ({"format": "vmdk", "preallocation": "full"}, "preallocation"),
    "compressed and empty": ({"compression": "zlib"}, "compression"),
    "compressed and flattened": ({"flatten": True, "compression": "zlib"}, "compression"),
    "compressed raw": ({"format": "raw", "source": SOURCE, "compression": "zlib"}, "compression"),
    "compressed and preallocated": ({"source": SOURCE, "compression": "zlib", "preallocation": "full"}, "exclude"),
    "subformat of another": ({"subformat": "fixed"}, "subformat"),
    "cluster size": ({"cluster_size": 1000}, "cluster_size"),
    "large clusters": ({"cluster_size": "4M"}, "cluster_size"),
    "clusters of a raw disk": ({"format": "raw", "cluster_size": "64K"}, "cluster_size"),
    "repair of a vdi": ({"format": "vdi", "repair": "all"}, "repair"),
    "replace without a source": ({"replace": True}, "replace"),
    "flag": ({"check": "perhaps"}, "check"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_clearly_meant_is_refused_by_name(name: str) -> None:
    change, word = BAD[name]
    with pytest.raises(InputError) as caught:
        normalise_all([{**GOOD, **change}])
    assert word in caught.value.message
    assert caught.value.hint


def test_an_image_is_given_once() -> None:
    with pytest.raises(InputError, match="twice"):
        normalise_all([GOOD, {**GOOD, "path": "/x//a.qcow2"}])


@pytest.mark.parametrize("empty", [None, "", [], [""]])
def test_an_empty_survey_is_an_empty_list(empty: object) -> None:
    assert normalise_all(empty) == []


@given(
    st.dictionaries(
        st.sampled_from(ITEM_KEYS),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.dictionaries(st.text(), st.text())),
    )
)
def test_any_value_is_taken_or_refused(item: dict[str, t.Any]) -> None:
    try:
        found = normalise({"path": "/x/a.qcow2", **item})
    except InputError:
        return
    assert found.path.startswith("/")
    assert ".." not in found.path.split("/")
    assert found.size is None or found.size % 512 == 0
