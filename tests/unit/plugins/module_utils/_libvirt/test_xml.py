# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import xml

# Everything that XML 1.0 can hold, with what needs escaping more often than chance would have it.
TEXT = st.text(
    st.one_of(
        st.sampled_from("<>&\"'\n\r\t ;]"),
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"),
    ),
    max_size=20,
)
TAGS = st.sampled_from(["a", "b-c", "d.e", "_f", "{urn:cnvm.platform:guest:1}g", "{urn:x&y}h"])
ATTRIBUTES = st.dictionaries(TAGS, TEXT, max_size=3)
LEAVES = st.tuples(TAGS, ATTRIBUTES, TEXT)
NODES: st.SearchStrategy[t.Any] = st.recursive(
    LEAVES, lambda below: st.tuples(TAGS, ATTRIBUTES, st.lists(below, min_size=1, max_size=4)), max_leaves=12
)


def plain(element: ElementTree.Element) -> t.Any:
    return (element.tag, dict(element.attrib), element.text or "", [plain(child) for child in element])


@given(NODES)
@example(("a", {"b-c": "\"'<>&\r\n\t"}, "\r\n\t]]>&amp;"))
def test_what_was_built_is_read_again(node: t.Any) -> None:
    text = xml.document(node)
    assert plain(xml.parse(text)) == plain(xml.build(node))
    assert xml.document(xml.parse(text)) == text
    # Another reader sees the same.
    assert xml.document(ElementTree.fromstring(text)) == text


def test_document_is_indented_and_in_the_order_given() -> None:
    node = (
        "network",
        {"ipv6": True, "connections": None},
        ("name", "lan"),
        None,
        [("bridge", {"stp": False, "delay": 0}), []],
        ("metadata", ("{urn:cnvm.platform:guest:1}guest", {"digest": "ab"}, ("{urn:cnvm.platform:guest:1}tag", 7))),
    )
    assert xml.document(node) == (
        '<network ipv6="yes">\n'
        "  <name>lan</name>\n"
        '  <bridge stp="no" delay="0"/>\n'
        "  <metadata>\n"
        '    <cnvm:guest digest="ab" xmlns:cnvm="urn:cnvm.platform:guest:1">\n'
        "      <cnvm:tag>7</cnvm:tag>\n"
        "    </cnvm:guest>\n"
        "  </metadata>\n"
        "</network>\n"
    )


def test_what_other_tools_write_keeps_the_name_of_its_namespace() -> None:
    """Where a text is compared with the one before, it is no difference."""
    text = (
        "<metadata>\n"
        '  <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">\n'
        '    <libosinfo:os id="http://debian.org/debian/13"/>\n'
        "  </libosinfo:libosinfo>\n"
        "</metadata>\n"
    )
    assert xml.document(xml.parse(text)) == text


@pytest.mark.parametrize("text", ["\0", "\x1b[31m", "\ud800", "\ufffe"])
def test_build_refuses_what_xml_cannot_hold(text: str) -> None:
    with pytest.raises(InputError, match="description"):
        xml.build(("network", ("description", text)))
    with pytest.raises(InputError, match="a/@b"):
        xml.build(("a", {"b": text}))


@pytest.mark.parametrize("tag", ["", "a b", "a/><b", "1a", None, "{x}", "{a}b}c"])
def test_build_takes_no_tag_from_data(tag: t.Any) -> None:
    with pytest.raises(ValueError):
        xml.build((tag,))


def test_build_refuses_other_types() -> None:
    with pytest.raises(TypeError):
        xml.build(("a", 1.5))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
FILE = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&f;</a>'
OUTER = '<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a/>'


@pytest.mark.parametrize("text", [BOMB, FILE, OUTER])
def test_parse_refuses_document_types(text: str) -> None:
    with pytest.raises(InputError, match="document type"):
        xml.parse(text)


@pytest.mark.parametrize(
    "text", ["", "text", "<a>", "<a/><b/>", "<a>\0</a>", "<a>&x;</a>", "<a b='1' b='2'/>", "\ud800", b"\xff<a/>"]
)
def test_parse_says_whose_text_is_not_well_formed(text: t.Any) -> None:
    with pytest.raises(InputError, match="the network's XML is not well formed"):
        xml.parse(text, "the network's XML")


def test_parse_has_limits() -> None:
    with pytest.raises(InputError, match="nested deeper"):
        xml.parse("<a>" * 101 + "</a>" * 101)
    assert xml.parse("<a>" * 100 + "</a>" * 100) is not None
    with pytest.raises(InputError, match="too many"):
        xml.parse("<a>" + " " * xml.MOST_BYTES + "</a>")


def test_parse_wants_the_root_that_was_asked_for() -> None:
    assert xml.parse("<pool/>", root="pool").tag == "pool"
    with pytest.raises(InputError, match="<pool>, not a <network>"):
        xml.parse("<pool/>", root="network")


def test_parse_reads_bytes_in_their_own_encoding() -> None:
    assert xml.parse('<?xml version="1.0" encoding="iso-8859-1"?><a>ü</a>'.encode("latin-1")).text == "ü"
    assert xml.parse('<?xml version="1.0" encoding="iso-8859-1"?><a>ü</a>').text == "ü"


def test_looking_at_elements() -> None:
    root = xml.parse("<a n='5'><b c='d'> x </b><b c='e'/><e/></a>")
    assert xml.text_of(root, "b") == "x"
    assert xml.text_of(root, "e", "default") == "default"
    assert xml.text_of(root, "z", "default") == "default"
    assert xml.text_of(None, "z") == ""
    assert xml.attribute(root, "b[@c='e']", "c") == "e"
    assert xml.attribute(root, "", "n") == "5"
    assert xml.attribute(root, "b", "z", "default") == "default"
    assert [each.get("c") for each in xml.all_at(root, "b")] == ["d", "e"]
    assert xml.all_at(None, "b") == []
    assert [xml.number(each, 9) for each in ("5", "-1", "", "0x1", "\u0661", "1 ")] == [5, -1, 9, 9, 9, 9]
