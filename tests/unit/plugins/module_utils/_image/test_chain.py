# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backing chains end."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._image import chain
from ansible_collections.cnvm.platform.plugins.module_utils._image.chain import (
    MOST_DEPTH,
    Node,
    resolve,
    rests_on,
    walk,
)
from ansible_collections.cnvm.platform.plugins.module_utils._image.headers import Header


def looker(links: dict[str, str], **more: t.Any):
    """Gives nodes by path; ``links``: the backing file of each."""
    asked: list[tuple[str, str]] = []

    def look(path: str, kind: str) -> Node:
        asked.append((path, kind))
        if path not in links:
            raise InputError(f"There is no file {path}.")
        header = Header("qcow2", 10, backing=links[path], backing_format="raw" if links[path] else "", **more)
        return Node(path, path.lower(), header)

    return look, asked


def test_a_chain_is_walked_with_the_formats_that_it_names() -> None:
    look, asked = looker({"/a/top": "mid", "/a/mid": "../b/base", "/b/base": ""})
    assert [node.path for node in walk("/a/top", look, kind="qcow2")] == ["/a/top", "/a/mid", "/b/base"]
    assert asked == [("/a/top", "qcow2"), ("/a/mid", "raw"), ("/b/base", "raw")]


@pytest.mark.parametrize(
    "links",
    [
        {"/x": "/x"},
        {"/x": "/y", "/y": "/x"},
        {"/x": "/y", "/y": "/z", "/z": "/y"},
        {"/x": "/X", "/X": ""},
    ],
)
def test_a_chain_that_comes_back(links: dict[str, str]) -> None:
    look, asked = looker(links)
    with pytest.raises(Refused, match="comes back"):
        walk("/x", look)
    assert len(asked) <= len(links) + 1


def test_a_chain_as_long_as_it_may_be_and_one_longer() -> None:
    links = {f"/{n}": f"/{n + 1}" for n in range(MOST_DEPTH - 1)}
    look, _asked = looker({**links, f"/{MOST_DEPTH - 1}": ""})
    assert len(walk("/0", look)) == MOST_DEPTH
    look, asked = looker({**links, f"/{MOST_DEPTH - 1}": f"/{MOST_DEPTH}", f"/{MOST_DEPTH}": ""})
    with pytest.raises(Refused, match=f"more than {MOST_DEPTH}"):
        walk("/0", look)
    assert len(asked) == MOST_DEPTH + 1


def test_a_missing_link_is_named() -> None:
    look, _asked = looker({"/x": "/gone"})
    with pytest.raises(InputError, match="/gone"):
        walk("/x", look)


@pytest.mark.parametrize("more", [{"data_file": "/d"}, {"extents": ("/e",)}, {"parent": True}])
def test_images_whose_content_is_elsewhere(more: dict) -> None:
    look, _asked = looker({"/x": ""}, **more)
    with pytest.raises(Refused, match="it names"):
        walk("/x", look)


@pytest.mark.parametrize(
    "name", ["json:{}", "nbd://h/x", "nbd:unix:/s", "ssh://h/x", "file:/x", "fat:rw:x", "a:b", ":"]
)
def test_what_qemu_takes_for_an_address(name: str) -> None:
    with pytest.raises(Refused, match="no plain file"):
        resolve("/a/b", name)


@pytest.mark.parametrize(
    ("name", "found"),
    [("c", "/a/c"), ("../c", "/c"), ("/c", "/c"), ("./c:d", "/a/c:d"), ("/c:d", "/c:d"), ("c//d", "/a/c/d")],
)
def test_names_are_relative_to_the_image(name: str, found: str) -> None:
    assert resolve("/a/b", name) == found


@given(st.text(max_size=40))
def test_every_name_becomes_an_absolute_path_or_is_refused(name: str) -> None:
    try:
        assert resolve("/a/b", name).startswith("/")
    except Refused:
        assert chain._PROTOCOL.match(name)


OPTIONS = '{"driver":"qcow2","file":{"driver":"file","filename":"/b/x.qcow2"}}'


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x.qcow2", "/a/x.qcow2"),
        ("file:/b/x.qcow2", "/b/x.qcow2"),
        ("file:///b/../x.qcow2", "/x.qcow2"),
        (f"json:{OPTIONS}", "/b/x.qcow2"),
        ('json:{"file.filename": "\\/b\\/x.qcow2"}', "/b/x.qcow2"),
        ('json:{"file": {"filename": "file:/b/x.qcow2"}}', "/b/x.qcow2"),
        ('json:{"children": [{"filename": "/b"}, {"filename": "/b"}]}', "/b"),
        ("nbd://host/x.qcow2", ""),
        ("nbd:host:10809", ""),
        ("https://host/x.qcow2", ""),
        ('json:{"driver": "nbd", "server.host": "h", "port": 7}', ""),
        ('json:{"file": {"filename": "nbd://host/x"}}', ""),
        # What only QEMU understands.
        ("file:x.qcow2", "file:x.qcow2"),
        ("blkdebug:/c:/b/x.qcow2", "blkdebug:/c:/b/x.qcow2"),
        ("json:{'file.filename': '/b/x.qcow2'}", "json:{'file.filename': '/b/x.qcow2'}"),
        ("json:" + "[" * 1000, "json:" + "[" * 1000),
        ('json:{"filename": "\\u0078.qcow2"}', 'json:{"filename": "x.qcow2"}'),
        ('json:{"a.filename": "/b", "b.filename": "/c"}', 'json:{"a.filename": "/b", "b.filename": "/c"}'),
    ],
)
def test_what_an_image_needs_whichever_way_it_names_it(name: str, found: str) -> None:
    assert rests_on("/a/top", name) == found


@given(st.text(max_size=40) | st.text(max_size=40).map("json:".__add__))
def test_any_name_is_a_path_or_itself(name: str) -> None:
    found = rests_on("/a/top", name)
    assert not found or found.startswith("/") or found[: found.index(":")] == name[: name.index(":")]
